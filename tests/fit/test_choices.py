"""What can be said to `fit`: each way of saying it against closed forms, and what makes no sense is refused."""

import re
from contextlib import contextmanager
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import minimize

import torchivp
from compilers import HERE
from torchivp.fitting import DataError
from torchivp.fitting.noise import NOISE_MODELS, find_noise
from torchivp.models import Equations, Model

T = np.linspace(0.0, 4.0, 9)
NAMES = {
    torch.distributions.LogNormal: ("loc", "scale"),
    torch.distributions.Gamma: ("concentration", "rate"),
    torch.distributions.Beta: ("concentration1", "concentration0"),
}


class Decay(Model):
    """y' = -rate y."""

    states: ClassVar = {"amount": "what is left"}
    default_state = (2.0,)

    def __init__(self, rate=0.8):
        super().__init__(rate=rate)

    def forward(self, t, y):
        return -self.rate * y


def fit(model, data, **options):
    """By a kernel where it is one that many tests share, unless a test says otherwise."""
    shared = HERE is not None and type(model) is Decay
    return torchivp.fit(model, data, **{"backend": "fused" if shared else "auto", **options})


def decay(rate=0.7, start=3.0, t=T, sigma=0.05, seed=0):
    noise = np.random.default_rng(seed).normal(size=len(t))
    return pd.DataFrame({"time": t, "amount": start * np.exp(-rate * t) + sigma * noise})


@contextmanager
def refused(kind, words):
    with pytest.raises(kind, match=re.escape(words)):
        yield


def most_likely(data, predict, theta, noise, censored=None):
    """The maximum of the likelihood by SciPy: the parameters and the value of the negative log-likelihood."""
    kind, k = find_noise(noise), len(find_noise(noise).sizes)
    censored = np.zeros(len(data), dtype=np.int8) if censored is None else censored

    def nll(x):
        h = predict(np.exp(x[: len(theta)]))
        sizes = np.broadcast_to(np.exp(x[len(theta) :]), (len(data), k))
        return kind.nll(data, h, sizes, censored).sum() if kind.possible(h).all() else 1e10

    x = np.log([*theta, *[0.1] * k])
    for _ in range(4):
        x = minimize(nll, x, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 4000}).x
    return np.exp(x[: len(theta)]), nll(x)


@pytest.mark.parametrize("noise", NOISE_MODELS)
def test_noise_of_every_kind(noise):
    random = np.random.default_rng(3)
    size = np.full((17, len(find_noise(noise).sizes)), 0.1)
    t = np.linspace(0, 3, 17)
    curve = (40.0 if noise in ("poisson", "negative_binomial") else 4.0) * np.exp(-0.5 * t)
    data = pd.DataFrame({"time": t, "amount": find_noise(noise).draw(curve, size, random)})
    found = fit(Decay(), data, noise=noise)
    y = data["amount"].to_numpy()
    best, nll = most_likely(y, lambda p: p[1] * np.exp(-p[0] * t), (0.5, y[0]), noise)
    assert found.converged
    # Laplace's density has a kink at every datum, where the search sees a bend of width 1e-3.
    assert found.nll == pytest.approx(nll, abs=0.05 if noise == "laplace" else 1e-5)
    rtol = 2e-2 if noise == "laplace" else 2e-4
    np.testing.assert_allclose([found["rate"].value, found["amount(0)"].value], best, rtol=rtol)
    low, high = found.prediction_band(t)
    assert np.mean((low[:, 0] <= y) & (y <= high[:, 0])) > 0.8
    assert np.isfinite(found["rate"].standard_error)
    for name in found.levels.names:
        said = any(warning.startswith(f"{name}: the data show no noise of this kind") for warning in found.warnings)
        assert np.isnan(found[name].standard_error) == said, name


def test_a_size_of_which_the_data_show_nothing_has_no_interval_and_the_others_keep_theirs():
    y = 5 * np.exp(-0.6 * T) * (1 + 0.1 * np.random.default_rng(1).normal(size=len(T)))
    found = fit(Decay(), pd.DataFrame({"time": T, "amount": y}), noise="combined")
    absolute, relative = (found[name] for name in found.levels.names)
    assert np.isnan([absolute.standard_error, absolute.lower, absolute.upper]).all()
    assert relative.lower < 0.1 < relative.upper
    assert any(f"{absolute.name}: the data show no noise of this kind" in warning for warning in found.warnings)


def test_values_that_all_have_their_own_deviations_have_no_common_one(tmp_path):
    data = decay()
    data["sd"] = np.linspace(0.04, 0.06, len(data))
    found = fit(Decay(), data, observe=["amount"], sigma={"amount": "sd"})
    assert np.isnan(found.sigma).all()
    assert np.isnan(found.prediction_band(T)).all()
    assert np.isfinite(found.observable_band(T)).all()
    found.save(tmp_path / "fit.json")
    found.report(tmp_path / "report")


def test_a_quantity_is_not_both_fixed_and_given_a_start():
    with refused(ValueError, "fixed holds rate at 0.7, but start has it begin at 0.5: drop it from one"):
        fit(Decay(), decay(), fixed={"rate": 0.7}, start={"rate": 0.5})


def test_standard_errors_are_those_of_the_curvature_of_the_likelihood():
    """Where the size of the noise depends on the prediction, the sizes are estimated along."""
    random = np.random.default_rng(1)
    t = np.linspace(0, 4, 60)
    curve = 5 * np.exp(-0.6 * t)
    y = curve + np.hypot(0.05, 0.1 * curve) * random.normal(size=60)
    found = fit(Decay(), pd.DataFrame({"time": t, "amount": y}), noise="combined", fixed={"amount": 5.0})
    kind = find_noise("combined")

    def nll(x):
        return kind.nll(y, 5 * np.exp(-np.exp(x[0]) * t), np.tile(np.exp(x[1:]), (60, 1)), np.zeros(60, np.int8)).sum()

    at = np.log([found["rate"].value, *found.sizes])
    h = 1e-4
    steps = h * np.eye(3)
    hessian = np.array(
        [
            [(nll(at + a + b) - nll(at + a - b) - nll(at - a + b) + nll(at - a - b)) / (4 * h * h) for a in steps]
            for b in steps
        ]
    )
    observed = np.sqrt(np.diag(np.linalg.inv(hessian)))
    assert found["rate"].scale_error == pytest.approx(observed[0], rel=0.15), "expected and observed information differ"


def test_values_below_a_limit_of_detection():
    data = decay(rate=1.2, sigma=0.1)
    y = data["amount"].to_numpy()
    below = y < 0.4
    censored = data.assign(
        amount=[f"<{0.4}" if low else f"{value!r}" for low, value in zip(below, y.tolist(), strict=True)]
    )
    found = fit(Decay(), censored)
    values, codes = np.where(below, 0.4, y), np.where(below, -1, 0).astype(np.int8)
    best, nll = most_likely(values, lambda p: p[1] * np.exp(-p[0] * T), (1.2, 3.0), "normal", codes)
    assert found.nll == pytest.approx(nll, abs=1e-6)
    np.testing.assert_allclose([found["rate"].value, found["amount(0)"].value], best, rtol=1e-4)
    assert np.isnan(found.residuals()[below]).all()
    assert any("read as censored" in note or "censored" in note for note in found.notes)


@pytest.mark.parametrize(
    "observed",
    [
        "scale * amount + offset",
        lambda y, p: p.scale * y.amount + p.offset,
        lambda t, y, p: p.scale * y.amount + p.offset,
    ],
    ids=["expression", "function", "function of the time"],
)
def test_observables_are_functions_of_states_and_parameters(observed):
    data = decay(sigma=0.02).rename(columns={"amount": "signal"})
    data["signal"] = 5 * data["signal"] + 1
    found = fit(
        Decay(),
        data,
        observe={"signal": observed},
        parameters={"scale": 1.0, "offset": 0.1},
        initial={"amount": 3.0},
    )
    y = data["signal"].to_numpy()
    best, nll = most_likely(y, lambda p: p[1] * 3 * np.exp(-p[0] * T) + p[2], (0.7, 5.0, 1.0), "normal")
    assert found.nll == pytest.approx(nll, abs=1e-6)
    np.testing.assert_allclose([found[name].value for name in ("rate", "scale", "offset")], best, rtol=1e-4)
    curve = best[1] * 3 * np.exp(-best[0] * 1.5) + best[2]
    assert found.observe([1.5])[0, 0] == pytest.approx(curve, rel=1e-4)
    low, high = found.observable_band([1.5])
    assert low[0, 0] < curve < high[0, 0]


def test_what_equations_define_can_be_observed_by_name():
    model = Equations("a' = -k*a\nb' = k*a\nshare = b/total\ntotal = a + b\nk = 0.5\na(0) = 1\nb(0) = 0")
    t = np.linspace(0.2, 3, 8)
    data = pd.DataFrame({"time": [0, *t], "percent": [0, *(100 * (1 - np.exp(-0.8 * t)))]})
    found = fit(model, data, observe={"percent": "100*share"}, initial={"a": 1.0, "b": 0.0})
    assert found["k"].value == pytest.approx(0.8, rel=1e-6)


def two_series():
    return pd.concat([decay(0.5, 2.0, seed=1).assign(dish="a"), decay(0.9, 4.0, seed=2).assign(dish="b")])


def test_a_parameter_for_each_group_is_as_if_each_were_fitted_alone():
    data = two_series()
    found = fit(Decay(), data, trajectory="dish", by={"rate": "dish"}, sigma={"amount": 0.05})
    for name, own in data.groupby("dish"):
        alone = fit(Decay(), own, sigma=0.05)
        assert found[f"rate[{name}]"].value == pytest.approx(alone["rate"].value, rel=1e-6)
        assert found[f"rate[{name}]"].standard_error == pytest.approx(alone["rate"].standard_error, rel=1e-6)


def test_conditions_give_constants_and_groups():
    data = two_series()
    conditions = {"a": {"amount": 2.0, "strain": "slow"}, "b": {"amount": 4.0, "strain": "fast"}}
    found = fit(Decay(), data, trajectory="dish", conditions=conditions, by={"rate": "strain"})
    assert found.free_names == ["rate[slow]", "rate[fast]"]
    for label, start, (_, own) in zip(("slow", "fast"), (2.0, 4.0), data.groupby("dish"), strict=True):
        best, _ = most_likely(own["amount"].to_numpy(), lambda p, s=start: s * np.exp(-p[0] * T), (0.7,), "normal")
        assert found[f"rate[{label}]"].value == pytest.approx(best[0], rel=1e-4)
    assert found.predict([0.0], 1)[0, 0] == 4.0


def test_tied_parameters_follow_from_others():
    data = decay()
    plain = fit(Decay(), data)
    tied = fit(Decay(), data, tied={"rate": "log(2)/halflife"}, parameters={"halflife": 1.0})
    assert tied["halflife"].value == pytest.approx(np.log(2) / plain["rate"].value, rel=1e-6)
    assert tied["rate"].value == pytest.approx(plain["rate"].value, rel=1e-6)
    assert tied["rate"].standard_error == pytest.approx(plain["rate"].standard_error, rel=1e-4)
    by_function = fit(Decay(), data, tied={"rate": lambda p: np.log(2) / p.halflife}, parameters={"halflife": 1.0})
    assert by_function["halflife"].value == pytest.approx(tied["halflife"].value, rel=1e-9)


def test_derived_quantities_have_errors_by_the_delta_method():
    found = fit(Decay(), decay(), derived={"halflife": "log(2)/rate", "area": lambda p: p.amount / p.rate})
    rate = found["rate"]
    assert found["halflife"].value == pytest.approx(np.log(2) / rate.value, rel=1e-12)
    assert found["halflife"].standard_error == pytest.approx(np.log(2) / rate.value**2 * rate.standard_error, rel=1e-9)
    slopes = np.array(
        [-found["amount(0)"].value / rate.value, 1 / rate.value]
    )  # by the log of the rate, and the amount
    error = np.sqrt(slopes @ found.covariance @ slopes)
    assert found["area"].standard_error == pytest.approx(error, rel=1e-9)
    assert found.derive("halflife", "log(2)/rate") == found["halflife"]


def test_initial_states_are_shared_or_formulas():
    data = pd.concat([decay(0.5, 3.0, seed=1).assign(dish="a"), decay(0.9, 3.0, seed=2).assign(dish="b")])
    options = {"trajectory": "dish", "by": {"rate": "dish"}}
    shared = fit(Decay(), data, initial={"amount": "shared"}, **options)
    formula = fit(Decay(), data, initial={"amount": "2*half"}, parameters={"half": 1.0}, **options)
    assert shared.free_names == ["rate[a]", "rate[b]", "amount(0)"]
    assert shared["amount(0)"].value == pytest.approx(2 * formula["half"].value, rel=1e-6)
    assert shared["amount(0)"].standard_error == pytest.approx(2 * formula["half"].standard_error, rel=1e-4)
    known = fit(Decay(), data, initial={"amount": 3.0}, **options)
    assert not known["amount(0)[a]"].free
    assert known["amount(0)[a]"].value == 3.0


def test_a_model_that_starts_in_its_steady_state():
    """Production over loss, from which a dose moves it."""
    model = Equations("x' = production - loss*x\nproduction = 1\nloss = 1\nx(0) = 1")
    t = np.linspace(0, 3, 13)
    rest, loss = 2.0, 1.5
    y = rest + np.where(t >= 1, 3 * np.exp(-loss * (t - 1)), 0) + 0.01 * np.random.default_rng(0).normal(size=13)
    doses = pd.DataFrame({"time": [1.0], "amount": [3.0]})
    options = {"start": {"production": 2.8, "loss": 1.4}, "method": "dopri5"}
    found = fit(model, pd.DataFrame({"time": t, "x": y}), initial="steady", doses=doses, **options)

    def predict(p):
        return p[0] / p[1] + np.where(t >= 1, 3 * np.exp(-p[1] * (t - 1)), 0)

    best, nll = most_likely(y, predict, (3.0, 1.5), "normal")
    assert found.nll == pytest.approx(nll, abs=1e-6)
    np.testing.assert_allclose([found["production"].value, found["loss"].value], best, rtol=1e-5)


def test_doses_before_the_data_begin():
    t = np.array([1.0, 2.0, 3.0, 4.0])
    data = pd.DataFrame({"time": t, "amount": 5 * np.exp(-0.4 * t)})
    found = fit(Decay(), data, initial={"amount": 0.0}, doses={"time": [0.0], "amount": [5.0]})
    assert found["rate"].value == pytest.approx(0.4, rel=1e-6)
    assert any("begin after the first dose" in note for note in found.notes)


def test_known_standard_deviations():
    """Of each value: the estimate is that of weighted least squares, and its error is not multiplied by anything."""
    data = decay(rate=0.7, start=3.0)
    deviation = np.linspace(0.02, 0.3, 9)
    found = fit(Decay(0.7), data.assign(sd=deviation), sigma={"amount": "sd"}, fixed={"rate": 0.7})
    curve, y = np.exp(-0.7 * T), data["amount"].to_numpy()
    weights = 1 / deviation**2
    error = 1 / np.sqrt(np.sum(weights * curve**2))
    amount = found["amount(0)"]
    assert amount.value == pytest.approx(np.sum(weights * curve * y) * error**2, rel=1e-7)
    assert amount.standard_error == pytest.approx(error, rel=1e-7)
    assert (amount.upper - amount.value) == pytest.approx(1.959964 * error, rel=1e-5)
    assert found.n_free == 1


def test_replicates_count_each():
    twice = pd.concat([decay(seed=1), decay(seed=2)])
    found = fit(Decay(), twice)
    y, t = twice["amount"].to_numpy(), twice["time"].to_numpy()
    best, nll = most_likely(y, lambda p: p[1] * np.exp(-p[0] * t), (0.7, 3.0), "normal")
    assert found.nll == pytest.approx(nll, abs=1e-6)
    np.testing.assert_allclose([found["rate"].value, found["amount(0)"].value], best, rtol=1e-5)


def test_bounds_hold_what_they_bound():
    data = decay(rate=0.7)
    found = fit(Decay(), data, bounds={"rate": (None, 0.6)})
    assert found.converged
    assert found["rate"].value == pytest.approx(0.6, rel=1e-6)
    assert np.isnan(found["rate"].standard_error)
    assert any(warning.startswith("rate is at a bound") for warning in found.warnings)
    held = fit(Decay(), data, fixed={"rate": 0.6})
    assert found["amount(0)"].value == pytest.approx(held["amount(0)"].value, rel=1e-5)
    free = fit(Decay(), data)
    inside = fit(Decay(), data, bounds={"rate": (0.1, 5.0)}, scale={"rate": "logit"})
    assert inside["rate"].value == pytest.approx(free["rate"].value, rel=1e-6)
    assert inside["rate"].standard_error == pytest.approx(free["rate"].standard_error, rel=1e-4)
    assert 0.1 < inside["rate"].lower < inside["rate"].value < inside["rate"].upper < 5.0


def test_a_normal_prior_shrinks_as_the_closed_form_says():
    """Of a quantity that the data depend on linearly, with known noise."""
    data = decay(rate=0.7, start=3.0)
    found = fit(Decay(), data, sigma=0.05, fixed={"rate": 0.7}, priors={"amount": (2.0, 0.02)})
    curve, y = np.exp(-0.7 * T), data["amount"].to_numpy()
    precision = np.sum(curve**2) / 0.05**2 + 1 / 0.02**2
    mode = (np.sum(curve * y) / 0.05**2 + 2.0 / 0.02**2) / precision
    assert found["amount(0)"].value == pytest.approx(mode, rel=1e-6)
    assert found["amount(0)"].standard_error == pytest.approx(precision**-0.5, rel=1e-6)
    assert found.penalty == pytest.approx(0.5 * ((mode - 2.0) / 0.02) ** 2, rel=1e-5)


@pytest.mark.parametrize(
    "prior",
    [
        torch.distributions.LogNormal(-1.0, 0.1),
        torch.distributions.Gamma(40.0, 100.0),
        torch.distributions.Beta(8.0, 12.0),
    ],
    ids=lambda prior: type(prior).__name__,
)
def test_other_priors_find_the_maximum_a_posteriori(prior):
    data = decay(rate=0.7, start=3.0)
    found = fit(Decay(0.5), data, sigma=0.3, fixed={"amount": 3.0}, priors={"rate": prior})
    y = data["amount"].to_numpy()
    exact = type(prior)(*(getattr(prior, name).double() for name in NAMES[type(prior)]))

    def posterior(x):
        density = exact.log_prob(torch.tensor(np.exp(x[0]), dtype=torch.float64)).item()
        return np.sum((y - 3 * np.exp(-np.exp(x[0]) * T)) ** 2) / (2 * 0.3**2) - density

    best = minimize(posterior, [-0.5], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12}).x
    assert found["rate"].value == pytest.approx(np.exp(best[0]), rel=1e-5)


def test_constraints_choose_among_optima():
    """Absorption and elimination may change places: a constraint says which is the faster."""
    model = Equations("gut' = -ka*gut\ncentral' = ka*gut - ke*central\nka = 1\nke = 0.5\ngut(0) = 10\ncentral(0) = 0")
    t = np.linspace(0.25, 8, 14)
    central = 10 * 1.5 / (1.5 - 0.3) * (np.exp(-0.3 * t) - np.exp(-1.5 * t)) + 0.01 * np.cos(9 * t)
    data = pd.DataFrame({"time": [0, *t], "central": [np.nan, *central]})
    options = {"initial": {"gut": 10.0, "central": 0.0}, "parameters": {"f": 1.0}, "observe": {"central": "f*central"}}
    for text, start in (("ka > ke", {}), ("ka < ke", {"ka": 0.3, "ke": 1.0})):
        found = fit(model, data, constraints=[text], start=start or None, **options)
        assert (found["ka"].value > found["ke"].value) == (">" in text)
        assert sorted([found["ka"].value, found["ke"].value]) == pytest.approx([0.3, 1.5], rel=0.05)


def test_a_constraint_that_holds_one_quantity_is_like_a_bound():
    found = fit(Decay(), decay(rate=0.7), constraints=["rate < 0.5"], start={"rate": 0.3})
    bounded = fit(Decay(), decay(rate=0.7), bounds={"rate": (0.01, 0.5)}, start={"rate": 0.3})
    assert found.converged
    assert any(each.startswith("the constraint rate < 0.5 is active") for each in found.warnings)
    assert found.nll == pytest.approx(bounded.nll, abs=1e-6)
    assert found["rate"].value == pytest.approx(0.5, rel=1e-6)
    assert np.isnan(found["rate"].standard_error)
    first = found["amount(0)"]
    assert first.standard_error == pytest.approx(bounded["amount(0)"].standard_error, rel=1e-4)
    assert fit(Decay(), decay(rate=0.7), constraints=["rate < 5"]).converged


def test_doses_go_to_the_state_that_their_table_names():
    model = Equations("a' = -k*a\nb' = -c*b\nk = 0.5\nc = 0.8\na(0) = 0\nb(0) = 0")
    t = np.array([1.0, 2.0, 3.0, 4.0])
    a, b = np.exp(-0.4 * (t - 1)), 3 * np.exp(-0.9 * (t - 1))
    doses = pd.DataFrame({"time": [1.0, 1.0], "amount": [1.0, 3.0], "state": ["a", "b"]})
    data = pd.DataFrame({"time": t, "a": a + 0.01 * np.cos(t), "b": b - 0.01 * np.sin(5 * t)})
    found = fit(model, data, doses=doses, initial={"a": 0.0, "b": 0.0})
    assert [found["k"].value, found["c"].value] == pytest.approx([0.4, 0.9], abs=0.05)
    with refused(DataError, "zz"):
        fit(model, data, doses=doses.assign(state="zz"), initial={"a": 0.0, "b": 0.0})


def infused(t, rate, until, k):
    """A decay that gains `rate` per unit of time from 0 to `until`."""
    going, since = np.clip(t, 0, until), np.clip(t - until, 0, None)
    return rate / k * (1 - np.exp(-k * going)) * np.exp(-k * since)


@pytest.mark.parametrize("way", ["eager", "fused", "backwards"])
def test_infusions_are_those_of_the_closed_form(way, monkeypatch):
    """Two of them, one by its duration and one by its rate, and a dose that is given at once; of two rats."""
    t, days = np.linspace(0, 24, 7), pd.Timestamp("2026-03-01") + pd.to_timedelta(np.linspace(0, 24, 7), unit="h")
    curve = infused(t, 5, 2, 0.2) + infused(t - 8, 10, 1.5, 0.2)
    data = pd.concat(
        [
            pd.DataFrame({"time": days, "amount": curve + (t >= 12) * 3 * np.exp(-0.2 * (t - 12)), "rat": "A"}),
            pd.DataFrame({"time": days, "amount": infused(t - 3, 4, 6, 0.2), "rat": "B"}),
        ]
    )
    doses = pd.DataFrame(
        {
            "time": days[0] + pd.to_timedelta([0, 8, 12, 3], unit="h"),
            "amount": [10.0, 15, 3, 24],
            "duration": [2.0, None, None, 6],
            "rate": [None, 10.0, 0, None],
            "rat": ["A", "A", "A", "B"],
        }
    )
    options = {"backend": way, "sigma": 0.01, "rtol": 1e-6, "start": {"rate": 0.21}, "method": "dopri5"}
    if way == "backwards":
        monkeypatch.setattr("torchivp.fitting.misfit.MANY_DIRECTIONS", 0)
        options |= {"optimiser": "l-bfgs", "backend": "eager"}
    found = fit(Decay(0.5), data, trajectory="rat", doses=doses, initial={"amount": 0.0}, time_unit="hours", **options)
    assert found["rate"].value == pytest.approx(0.2, rel=1e-5)
    np.testing.assert_allclose(found.predict(t, "B")[:, 0], infused(t - 3, 4, 6, 0.2), atol=1e-3)


def test_a_checkpoint_is_of_what_a_table_of_doses_held(tmp_path):
    t, table = np.linspace(0, 4, 9), tmp_path / "doses.csv"
    data = pd.DataFrame({"time": t, "amount": 4 * np.exp(-0.5 * t)})
    options = {"doses": str(table), "checkpoint": tmp_path / "kept", "rtol": 1e-6, "backend": "eager"}
    options |= {"initial": {"amount": 0.0}, "sigma": 0.1, "start": {"rate": 0.6}}
    table.write_text("time,amount\n0,4\n")
    fit(Decay(), data, **options)
    table.write_text("time,amount\n0,8\n")
    with refused(ValueError, "is the journal of another fit (other data, model or arguments)"):
        fit(Decay(), data, **options)


def test_an_infusion_that_began_before_the_data():
    t = np.linspace(1, 9, 9)
    data = pd.DataFrame({"time": t, "amount": infused(t + 2, 5, 4, 0.3)})
    doses = {"time": [-2.0], "amount": [20.0], "duration": [4.0]}
    options = {"start": {"rate": 0.32}, "rtol": 1e-6, "method": "dopri5", "backend": "eager"}
    found = fit(Decay(0.5), data, doses=doses, initial={"amount": 0.0}, **options)
    assert found["rate"].value == pytest.approx(0.3, rel=1e-6)
    assert "the data begin after the first dose, so the initial state is the one before that" in found.notes


def test_one_measurement_after_a_dose_is_enough_of_each_animal():
    random = np.random.default_rng(0)
    t = np.linspace(0.5, 5, 12)
    data = pd.DataFrame(
        {"time": t, "amount": 5 * np.exp(-0.6 * t) + 0.01 * random.normal(size=12), "animal": range(12)}
    )
    doses = {"time": [0.0] * 12, "amount": [5.0] * 12, "animal": range(12)}
    found = fit(Decay(), data, trajectory="animal", initial={"amount": 0.0}, doses=doses)
    assert found["rate"].value == pytest.approx(0.6, rel=0.02)
    with refused(DataError, "each trajectory has only one time, and a fit needs one that has two"):
        fit(Decay(), data, trajectory="animal")
    with refused(DataError, "there is only one time of trajectory '3', and a fit needs two"):
        fit(Decay(), data[data["animal"] == 3], trajectory="animal")
    with refused(DataError, "there is only one time, and a fit needs two"):
        fit(Decay(), data[:1])


def test_a_group_whose_value_is_known_has_no_quantity():
    data = two_series()
    conditions = {"a": {"rate": 0.5, "kind": "known"}, "b": {"kind": "new"}}
    found = fit(Decay(), data, trajectory="dish", conditions=conditions, by={"rate": "kind"})
    assert found.free_names == ["rate[new]", "amount(0)[a]", "amount(0)[b]"]


def test_starts_are_spread_within_bounds_and_those_that_fail_are_told():
    model = Equations("x' = x^2 - k*x\nk = 4\nx(0) = 3")  # which is infinite in no time if k < 3
    t = np.linspace(0, 1, 9)
    x = 4 / (1 + (4 / 3 - 1) * np.exp(4 * t))
    data = pd.DataFrame({"time": t, "x": x + 0.002 * np.cos(11 * t)})
    options = {"initial": {"x": 3.0}, "rtol": 1e-6, "method": "dopri5"}
    found = fit(model, data, bounds={"k": (1e-1, 40.0)}, starts=8, **options)
    assert found["k"].value == pytest.approx(4.0, rel=0.02)
    nlls = [attempt.nll for attempt in found.attempts]
    assert len(nlls) == 8
    assert nlls == sorted(nlls)
    failed = [attempt for attempt in found.attempts if not np.isfinite(attempt.nll)]
    assert failed
    assert all(attempt.failure for attempt in failed)
    with refused(RuntimeError, "the model cannot be solved from any start"):
        fit(model, data, bounds={"k": (1e-3, 1e-1)}, starts=3, **options)


def test_stiff_models_are_solved_by_a_method_for_them():
    model = Equations("a' = -k*(a - cos(t))\nk = 1e5\na(0) = 1")
    t = np.linspace(0, 3, 12)
    data = pd.DataFrame({"time": t, "a": np.cos(t) + 1e-3 * np.cos(13 * t)})
    found = fit(model, data, fixed={"k": 1e5}, free=["a"])
    assert found.misfit.accuracy.method == "rodas5p"
    assert fit(Decay(), decay()).misfit.accuracy.method == "dopri5"


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        (
            {"observe": {"amount": "scale*amount"}},
            DataError,
            "uses 'scale'. There are the states amount and the parameters",
        ),
        ({"observe": {"amount": "amount.real"}}, ValueError, "amount.real"),
        ({"observe": {"amount": lambda y: y}}, DataError, "observes a function of 1 arguments: write lambda y, p: ..."),
        ({"observe": {"amount": lambda y, p: y.mass}}, DataError, "y has amount; p has rate"),
        ({"parameters": {"rate": 1.0}}, ValueError, "parameters names 'rate', which Decay has already: rename one"),
        ({"parameters": {"a b": 1.0}}, ValueError, "names of Python's finite numbers"),
        ({"by": {"rte": "dish"}}, ValueError, "by names 'rte', which is no parameter. Did you mean 'rate'?"),
        ({"by": {"rate": "dish"}}, ValueError, "by groups the trajectories by 'dish', which is no column that has one"),
        ({"tied": {"rate": "2*speed"}}, ValueError, "the formula of rate, '2*speed', uses 'speed'"),
        ({"tied": {"rate": 3}}, TypeError, "the formula of rate must be text or a function, got int"),
        ({"tied": {"rate": "k"}, "parameters": {"k": 1.0}, "start": {"rate": 1.0}}, ValueError, "rate is tied, so it"),
        (
            {"tied": {"rate": "q", "q": "rate"}, "parameters": {"q": 1.0}},
            ValueError,
            "rate, q follow from each other in a circle",
        ),
        ({"initial": {"mass": 1.0}}, ValueError, "initial names 'mass', but the states are amount"),
        ({"initial": "rest"}, ValueError, "initial must be 'steady', 'shared' or a dict by state"),
        ({"initial": {"amount": "rate*x"}}, ValueError, "uses 'x'; it may use rate"),
        ({"scale": {"rate": "cubic"}}, ValueError, "the scale of rate must be one of ('log', 'linear', 'logit')"),
        ({"scale": {"rate": "logit"}}, ValueError, "logit scale, which needs bounds={'rate': (lower, upper)}"),
        ({"bounds": {"rate": (2.0, 1.0)}}, ValueError, "the bounds of rate must be (lower, upper) with lower < upper"),
        (
            {"bounds": {"rate": 3.0}},
            ValueError,
            "the bounds of rate must be (lower, upper), None for no bound, got 3.0",
        ),
        (
            {"bounds": {"rate": (1.0, 2.0)}, "start": {"rate": 3.0}},
            ValueError,
            "rate starts at 3, outside its bounds (1, 2)",
        ),
        ({"priors": {"rate": 1.0}}, TypeError, "the prior of rate must be a torch.distributions object"),
        (
            {"priors": {"rate": (1.0, -1.0)}},
            ValueError,
            "the prior of rate is (mean, standard deviation), a positive one",
        ),
        (
            {"priors": {"rate": torch.distributions.Uniform(0.0, 1.0)}},
            ValueError,
            "has no mode at which its density is finite: take another distribution, or bounds={'rate': (lower, upper)}",
        ),
        (
            {"priors": {"rate": torch.distributions.Beta(2.0, 2.0)}, "start": {"rate": 3.0}},
            ValueError,
            "where its prior Beta",
        ),
        ({"constraints": ["rate"]}, ValueError, "constraints holds 'rate', which is no inequality such as 'ka > ke'"),
        ({"constraints": ["rate > speed"]}, ValueError, "the constraint 'rate > speed' uses 'speed'; there are rate"),
        ({"constraints": ["rate > 5"]}, ValueError, "the constraint 'rate > 5' does not hold at the start values"),
        ({"derived": {"x": "speed"}}, ValueError, "the formula of x, 'speed', uses 'speed'; it may use rate, amount"),
        ({"starts": 0}, ValueError, "starts"),
        ({"max_iterations": 0}, ValueError, "max_iterations"),
        ({"rtol": -1.0}, ValueError, "rtol"),
        ({"derived": {"rate": "2*rate"}}, ValueError, "derived names 'rate', which is a quantity of the fit already"),
        (
            {"fixed": {"sigma(amount)": 1.0}},
            ValueError,
            "the size of the noise of a column is held by sigma=",
        ),
        (
            {"initial": {"amount": 3.0}, "start": {"amount": 1.0}},
            ValueError,
            "initial holds amount at a number, and start",
        ),
        ({"parameters": {"e": 1.0}, "derived": {"x": "2*e"}}, ValueError, "uses 'e', which is a constant in formulas"),
        ({"parameters": {"t": 1.0}, "observe": {"amount": "t*amount"}}, ValueError, "uses 't', which is the time"),
        (
            {"observe": {"amount": lambda y, p: y.amount / y.amount.max()}},
            DataError,
            "observes a function whose value at a time depends on other times: compute it with torch, element by",
        ),
        (
            {"observe": {"amount": lambda y, p: y.amount.item()}},
            DataError,
            "observes a function that fails where states",
        ),
        ({"starts": 3, "start": {"rate": 1.0}}, ValueError, "stands instead of start: give one of them"),
        ({"sigma": {"amount": 0.0}}, ValueError, "or a positive number, got 0.0"),
        (
            {"doses": {"time": [0.0], "amount": [1.0]}, "schedule": []},
            ValueError,
            "as schedule or as doses, not as both",
        ),
    ],
    ids=lambda value: None if isinstance(value, dict | type) else value[:30],
)
def test_what_makes_no_sense_is_refused(options, kind, words):
    with refused(kind, words):
        fit(Decay(), decay(), **options)
