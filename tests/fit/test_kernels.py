"""Fits whose solves are done by a kernel."""

import copy
import pickle
from typing import ClassVar

import numpy as np
import pandas
import pytest
import torch

from compilers import needs_compiler
from simulated import simulate
from torchivp import Scheduled, fit
from torchivp.fitting import read_data
from torchivp.fitting.choices import Choices, list_quantities
from torchivp.fitting.misfit import Misfit
from torchivp.fitting.solving.kernels import ModelKernel
from torchivp.fitting.solving.stretches import Accuracy
from torchivp.models import LotkaVolterra, Model

pytestmark = needs_compiler


class Branching(LotkaVolterra):
    """Looks at a value, which kernels cannot."""

    def forward(self, t, y):
        return super().forward(t, y) if float(t) >= 0.0 else y


def two_series():
    data = simulate(LotkaVolterra(), np.linspace(0, 4, 12), noise=0.1, lognormal=True)
    return pandas.concat([data.assign(series="a"), (1.3 * data).assign(time=data["time"], series="b")])


def test_predictions_and_their_jacobian_are_those_of_the_step_loop():
    model = LotkaVolterra().double()
    dataset = read_data(two_series(), list(model.states), trajectory="series")
    quantities = list_quantities(model, dataset, Choices(fixed={"delta": 1.0}), list(model.states))
    misfit = Misfit(model, dataset, quantities, Accuracy("dopri5", 1e-9, (1e-10, 1e-10), 10_000))
    theta = quantities.theta()
    expected, steps = misfit.predictions(theta), misfit.steps(theta)
    several = misfit.predictions_at(np.stack([theta, 1.01 * theta]))
    misfit.use(ModelKernel(model, "dopri5"))
    found = misfit.predictions(theta)
    assert expected is not None and found is not None
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(found.jacobian, expected.jacobian, rtol=1e-6, atol=1e-7)
    for one, same in zip(misfit.predictions_at(np.stack([theta, 1.01 * theta])), several, strict=True):
        assert one is not None and same is not None
        np.testing.assert_allclose(one.values, same.values, rtol=1e-7, atol=1e-8)
    assert abs(misfit.steps(theta) - steps) <= 0.1 * steps


def test_a_fit_finds_the_same_with_a_kernel():
    data = simulate(LotkaVolterra(), np.linspace(0, 2, 12), noise=0.1, lognormal=True)
    options = {"noise": "lognormal", "start": {"alpha": 1.45}, "rtol": 1e-7, "method": "dopri5", "shooting": "single"}
    eager = fit(LotkaVolterra(), data, backend="eager", **options)
    fused = fit(LotkaVolterra(), data, backend="fused", **options)
    assert fused.converged
    for one, same in zip(fused.estimates, eager.estimates, strict=True):
        assert one.value == pytest.approx(same.value, rel=1e-5)
        assert one.standard_error == pytest.approx(same.standard_error, rel=1e-4)


def test_a_copy_of_a_fit_is_solved_by_the_step_loop():
    """A kernel belongs to its process."""
    data = simulate(LotkaVolterra(), np.linspace(0, 4, 12), noise=0.1, lognormal=True)
    fused = fit(LotkaVolterra(), data, backend="fused", start={"alpha": 1.4})
    for same in (pickle.loads(pickle.dumps(fused)), copy.deepcopy(fused)):
        assert same.estimates == fused.estimates
        np.testing.assert_allclose(same.predict([1.0, 2.0]), fused.predict([1.0, 2.0]), rtol=1e-7)


def test_a_solve_that_fails_in_a_kernel_says_why():
    data = simulate(LotkaVolterra(), np.linspace(0, 4, 12), noise=0.1, lognormal=True)
    model = LotkaVolterra().double()
    dataset = read_data(data, list(model.states))
    quantities = list_quantities(model, dataset)
    misfit = Misfit(model, dataset, quantities, Accuracy("dopri5", 1e-9, 1e-9, 5))
    misfit.use(ModelKernel(model, "dopri5"))
    assert misfit.predictions(quantities.theta()) is None
    assert "max_steps = 5" in misfit.failure


def test_what_has_no_kernel_is_refused_or_solved_without():
    data = simulate(LotkaVolterra(), np.linspace(0, 4, 12), noise=0.1, lognormal=True)
    with pytest.raises(ValueError, match="backend='fused' has no kernel for this fit"):
        fit(Branching(), data, backend="fused")
    with pytest.raises(ValueError, match="unknown backend 'jit'"):
        fit(LotkaVolterra(), data, backend="jit")
    with pytest.raises(ValueError, match="backend='fused' has no kernel for this fit"):
        fit(LotkaVolterra(), data, backend="fused", method="bdf")


def test_series_on_which_something_acts_are_solved_piece_by_piece():
    dose = Scheduled(torch.tensor([1.0]), lambda t, y: y + 0.5)

    class Decay(Model):
        states = {"amount": ""}  # noqa: RUF012
        default_state = (1.0,)

        def __init__(self):
            super().__init__(rate=0.5)

        def forward(self, t, y):
            return -self.rate * y

    t = np.linspace(0.0, 3.0, 10)
    y = np.exp(-0.6 * t) + np.where(t >= 1.0, 0.5 * np.exp(-0.6 * (t - 1.0)), 0.0)
    data = pandas.DataFrame({"time": t, "amount": y + 1e-3 * np.cos(17 * t)})
    result = fit(Decay(), data, schedule=dose, backend="fused")
    assert result["rate"].value == pytest.approx(0.6, abs=0.01)


class Leaky(Model):
    """y' = -rate y - loss y, by numbers and by a tensor that are not parameters."""

    states: ClassVar = {"y": ""}
    default_state = (1.0,)

    def __init__(self, loss=0.0, scale=1.0):
        super().__init__(rate=0.5)
        self.loss, self.scale = loss, [scale]
        self.per = torch.tensor(1.0)

    def forward(self, t, y):
        return -(self.rate * self.scale[0] + self.loss) * y / self.per


def kernel_of(model):
    return ModelKernel(model.double(), "dopri5")._kernel("dopri5").traced


def test_what_was_read_of_a_model_serves_others_that_are_the_same():
    model = Leaky(0.25, 2.0)
    read = kernel_of(model)
    assert kernel_of(model) is kernel_of(copy.deepcopy(model)) is kernel_of(Leaky(0.25, 2.0)) is read
    assert kernel_of(Leaky(0.5, 2.0)) is not read and kernel_of(Leaky(0.25, 3.0)) is not read


@pytest.mark.parametrize("change", [{"loss": 0.3}, {"scale": [2.0]}, {"per": torch.tensor(4.0)}])
def test_a_model_that_has_changed_is_read_as_it_is(change):
    t = np.linspace(0, 3, 7)
    for model in (Leaky(), changed := Leaky()):
        if model is changed:
            vars(changed).update(change)
        rate = (0.8 * model.scale[0] + model.loss) / model.per.item()
        found = fit(model, {"time": t, "y": np.exp(-rate * t)}, fixed={"y": 1.0}, backend="fused")
        assert found["rate"].value == pytest.approx(0.8, rel=1e-6)


def test_no_number_of_different_models_is_too_many():
    for number in range(10):
        kernel_of(Leaky(1.0 + number))


def test_a_method_of_the_class_that_has_changed_is_read_as_it_is(monkeypatch):
    read = kernel_of(Leaky())
    monkeypatch.setattr(Leaky, "forward", lambda self, t, y: -2 * self.rate * y)
    assert kernel_of(Leaky()) is not read


def test_an_operation_that_kernels_lack_leaves_the_fit_to_the_step_loop():
    class Bessel(Leaky):
        def forward(self, t, y):
            return -self.rate * y * torch.special.bessel_j0(y)

    data = {"time": np.linspace(0, 60, 31), "y": np.exp(-0.3 * np.linspace(0, 60, 31))}
    assert "step loop" in fit(Bessel(), data, max_iterations=2, rtol=1e-4).solver
    with pytest.raises(ValueError, match="backend='fused' has no kernel for this fit: special_bessel_j0"):
        fit(Bessel(), data, backend="fused")
