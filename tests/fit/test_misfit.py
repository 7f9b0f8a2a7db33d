"""Residuals, and their Jacobian against finite differences."""

from typing import ClassVar

import numpy as np
import pandas
import pytest
import torch
from torch.autograd import forward_ad
from torch.overrides import _get_current_function_mode

from simulated import simulate
from torchivp.dual_numbers import DualArithmetic
from torchivp.fitting import fit, read_data
from torchivp.fitting.choices import Choices, list_quantities
from torchivp.fitting.levels import read_levels
from torchivp.fitting.misfit import Misfit
from torchivp.fitting.solving.stretches import Accuracy
from torchivp.models import Equations, FitzHughNagumo, LotkaVolterra, Model


def misfit_of(model: Model, data, log: bool = False) -> Misfit:
    dataset = read_data(data, list(model.states))
    quantities = list_quantities(model, dataset, log_states=model.states if log else ())
    return Misfit(model, dataset, quantities, Accuracy("dopri5", 1e-10, 1e-10, 10_000))


class Unbatched(LotkaVolterra):
    """Does not take batches: a sum over all of `y` would mix them."""

    def forward(self, t, y):
        return super().forward(t, y) + 0.01 * y.sum()


class OneState(Model):
    """Would mix a batch of rates with a batch of states without an error, if there were as many as states."""

    states: ClassVar = {"amount": ""}
    default_state = (1.0,)

    def __init__(self):
        super().__init__(rate=0.5, inflow=0.1)

    def forward(self, t, y):
        return -self.rate * y + self.inflow


@pytest.mark.parametrize(
    ("model", "log", "count"),
    [
        (LotkaVolterra(), False, 12),
        (LotkaVolterra(), True, 101),
        (Unbatched(), True, 12),
        (Unbatched(), False, 101),
        *((OneState(), log, count) for log in (False, True) for count in (12, 101)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Model) else str(value),
)
def test_the_jacobian_is_that_of_finite_differences(model, log, count):
    data = simulate(model, np.linspace(0, 1, count), noise=0.1, lognormal=True)
    data.iloc[3, 1] = np.nan
    misfit = misfit_of(model, data, log)
    theta = misfit.quantities.theta() + 0.1
    found = misfit.predictions(theta)
    step = 1e-4

    def values(at):
        return misfit.predictions(at, derivatives=False).values

    slopes = [(values(theta + d) - values(theta - d)) / (2 * step) for d in step * np.eye(len(theta))]
    np.testing.assert_allclose(found.jacobian, np.stack(slopes, axis=1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.values, values(theta), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("model", [LotkaVolterra(), Unbatched(), OneState()], ids=lambda model: type(model).__name__)
def test_series_are_rows_of_one_solve(model):
    """And give what each gives by itself, whatever their times."""
    times = {"a": np.linspace(0, 0.6, 8), "b": np.linspace(0, 0.4, 5), "c": np.linspace(0, 0.6, 8)}
    tables = {name: simulate(model, t, noise=0.1, seed=i) for i, (name, t) in enumerate(times.items())}
    tables["a"].iloc[3, 1] = np.nan
    together = read_data(
        pandas.concat([table.assign(series=name) for name, table in tables.items()]),
        [*model.states],
        trajectory="series",
    )
    free = list(dict(model.named_parameters()))

    def misfit(dataset) -> Misfit:
        quantities = list_quantities(model, dataset, Choices(free=free))
        return Misfit(model, dataset, quantities, Accuracy("dopri5", 1e-10, 1e-10, 10_000))

    of_all, singles = misfit(together), [misfit(read_data(table, [*model.states])) for table in tables.values()]
    theta = of_all.quantities.theta() + 0.1
    for derivatives in (True, False):
        found = of_all.predictions(theta, derivatives=derivatives)
        each = [single.predictions(theta, derivatives=derivatives) for single in singles]
        np.testing.assert_allclose(found.values, np.concatenate([one.values for one in each]), atol=1e-7)
        np.testing.assert_allclose(found.jacobian, np.concatenate([one.jacobian for one in each]), atol=1e-6)
    assert of_all.solves == 2
    thetas = np.stack([theta, theta - 0.2])
    for found, at in zip(of_all.predictions_at(thetas), thetas, strict=True):
        np.testing.assert_allclose(found.values, of_all.predictions(at, derivatives=False).values, atol=1e-7)


def test_where_the_model_cannot_be_solved_the_predictions_elsewhere_are_as_good():
    class Explosion(LotkaVolterra):
        def forward(self, t, y):
            return self.alpha * y**2

    misfit = misfit_of(Explosion(), simulate(LotkaVolterra(), np.linspace(0, 2, 9)))
    small, large = np.full(6, -3.0), np.full(6, 3.0)
    found, none, again = misfit.predictions_at(np.stack([small, large, small]))
    assert none is None
    for each in (found, again):
        np.testing.assert_allclose(each.values, misfit.predictions(small, derivatives=False).values, rtol=1e-12)


@pytest.mark.parametrize("rows", [False, True], ids=["alone", "vmap"])
def test_arithmetic_with_constants_is_that_of_torch(rows):
    """To the last bit, tangents too, for whole numbers and for tensors of other dtypes."""
    c, whole = torch.tensor(1.25, dtype=torch.float64), torch.tensor(3)

    def function(x):
        return (
            x * 3,
            0.1 * x,
            x / 3,
            7 / x,
            x + 1,
            2.5 + x,
            x - 0.3,
            1 - x,
            x**3 / 3,
            x.mul(2),
            x.long() * 0.5,
            x * True,
            torch.mul(x, 0.3),
            torch.div(x, 7),
            torch.add(x, 2, alpha=3),
            *(x * c, c * x, x / c, c / x, x + c, c - x, torch.sub(x, c), x * c.float(), x * whole, whole / x, x / x),
            *(torch.minimum(x, c), x.maximum(c), c * c, c.float() + x.float(), x.sum() * c, x * c.expand(x.shape)),
        )

    x, slope = torch.linspace(0.5, 2.0, 7, dtype=torch.float64), torch.linspace(-1.0, 3.0, 7, dtype=torch.float64)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, slope)
        call = torch.func.vmap(function) if rows else function
        expected = call(dual)
        with DualArithmetic():
            found = call(dual)
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == other.dtype
            for a, b in zip(forward_ad.unpack_dual(one), forward_ad.unpack_dual(other), strict=True):
                assert (a is None and b is None) or torch.equal(a, b)


def test_every_call_with_dual_numbers_has_the_fast_arithmetic():
    """The first without it makes PyTorch import its compiler, for seconds."""
    seen = []

    class Watched(LotkaVolterra):
        def forward(self, t, y):
            if forward_ad.unpack_dual(y).tangent is not None:
                seen.append(isinstance(_get_current_function_mode(), DualArithmetic))
            return super().forward(t, y)

    misfit = misfit_of(Watched(), simulate(LotkaVolterra(), np.linspace(0, 1, 3)))
    misfit.predictions(misfit.quantities.theta())
    assert len(seen) > 10
    assert all(seen)


def test_both_ways_to_differentiate_agree():
    t = np.linspace(0, 20, 150).tolist()
    model = FitzHughNagumo()
    misfit = misfit_of(model, simulate(model, np.array(t)))
    theta = misfit.quantities.theta()
    forwards = misfit.path(theta, 0, t)
    misfit.step_loop.forwards = False
    backwards = misfit.path(theta, 0, t[:40])
    np.testing.assert_allclose(forwards.states[:40], backwards.states, rtol=1e-7)
    np.testing.assert_allclose(forwards.state_slopes[:40], backwards.state_slopes, rtol=1e-6, atol=1e-6)


def test_missing_values_are_not_predicted():
    data = simulate(LotkaVolterra(), np.linspace(0, 3, 5))
    data.loc[1, "prey"] = np.nan
    found = misfit_of(LotkaVolterra(), data).predictions(np.zeros(6))
    assert found.measured.observable.tolist() == [0, 1, 1, 0, 1, 0, 1, 0, 1]


def test_the_horizon_is_a_part_of_the_times():
    misfit = misfit_of(LotkaVolterra(), simulate(LotkaVolterra(), np.linspace(0, 3, 10)))
    whole = misfit.predictions(misfit.quantities.theta()).values
    part = misfit.predictions(misfit.quantities.theta(), horizon=0.31).values
    np.testing.assert_allclose(part, whole[:8], atol=1e-8)


def test_a_solve_that_fails_has_no_predictions():
    class Explosion(LotkaVolterra):
        def forward(self, t, y):
            return self.alpha * y**2

    data = simulate(LotkaVolterra(), np.linspace(0, 3, 10))
    assert misfit_of(Explosion(), data).predictions(np.full(6, 3.0)) is None


def test_a_model_that_is_not_positive_has_no_lognormal_noise():
    class Falling(LotkaVolterra):
        def forward(self, t, y):
            return -self.alpha * torch.ones_like(y)

    data = simulate(LotkaVolterra(), np.linspace(0, 3, 10))
    misfit = misfit_of(Falling(), data)
    found = misfit.predictions(np.zeros(6))
    for noise in ("normal", "lognormal"):
        levels = read_levels(misfit.data, noise, "separate", misfit.measured())
        assert levels.possible(found) == (noise == "normal")


def test_the_slope_of_a_root_at_zero_does_not_matter_where_the_state_is_known():
    """`sqrt(a)` of `a = k t`, whose initial value is held at zero."""
    t = np.linspace(0, 5, 11)
    options = {"observe": {"v": "sqrt(a)"}, "fixed": {"a": 0.0}, "backend": "eager", "rtol": 1e-6}
    v = np.sqrt(0.7 * t) + 0.01 * np.cos(9 * t)
    found = fit(Equations("a' = k\nk = 0.5\na(0) = 0"), {"time": t, "v": v}, **options)
    best = (np.sqrt(t) @ v / t.sum()) ** 2
    assert found["k"].value == pytest.approx(best, rel=1e-5)
