"""Constraints that hold the estimates back: against closed forms of quadratic programs, and SciPy's trust-constr."""

import warnings
from itertools import chain, combinations
from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from scipy.optimize import LinearConstraint, NonlinearConstraint, minimize

from compilers import needs_compiler
from torchivp import fit
from torchivp.expressions import Expression
from torchivp.fitting.constraints import _margins_of
from torchivp.fitting.searching.linear_model import gain_within
from torchivp.models import Model

pytestmark = needs_compiler

T = np.linspace(0, 1, 13)
SIGMA = 0.05


class Cubic(Model):
    """`y' = a + 2 b t + 3 c t^2`, whose solution is linear in its parameters."""

    states: ClassVar = {"y": ""}
    default_state = (0.0,)
    positive = ()

    def __init__(self, a=0.1, b=0.1, c=0.1):
        super().__init__(a=a, b=b, c=c)

    def forward(self, t, y):
        return (self.a + 2 * self.b * t + 3 * self.c * t**2).expand(y.shape)


X = np.stack([T, T**2, T**3], 1)
Y = X @ np.array([0.4, -0.3, 0.5]) + SIGMA * np.random.default_rng(0).standard_normal(len(T))
COVARIANCE = np.linalg.inv(X.T @ X / SIGMA**2)
FREE = COVARIANCE @ X.T @ Y / SIGMA**2


def fitted(constraints, **options):
    given = {"initial": {"y": 0.0}, "sigma": SIGMA, "rtol": 1e-6, "method": "dopri5", "backend": "fused", **options}
    given |= {} if "optimiser" in options else {"shooting": "single"}
    given["start"] = {
        name: value for name, value in (("a", 0.1), ("b", 0.05), ("c", 0.1)) if name not in given.get("fixed", ())
    }
    return fit(Cubic(), {"time": T, "y": Y}, constraints=constraints, **given)


def cost(p):
    return 0.5 * (p - FREE) @ np.linalg.solve(COVARIANCE, p - FREE)


def projected(normals, ends):
    """The best place with equalities, and the covariance along them."""
    normals = np.reshape(normals, (-1, 3))
    gain = COVARIANCE @ normals.T @ np.linalg.inv(normals @ COVARIANCE @ normals.T)
    return FREE - gain @ (normals @ FREE - ends), COVARIANCE - gain @ normals @ COVARIANCE


def quadratic_program(rows, ends, at=None, value=0.0):
    """The best place with rows @ p <= ends, and p[at] = value, by trying all active sets; None if there is none."""
    fixed = [] if at is None else [(np.eye(3)[at], value)]
    best = None
    for active in chain(*(combinations(zip(rows, ends, strict=True), k) for k in range(4 - len(fixed)))):
        normals, levels = [each for each, _ in (*fixed, *active)], [end for _, end in (*fixed, *active)]
        if np.linalg.matrix_rank(np.reshape(normals, (-1, 3)), tol=1e-6) < len(normals):
            continue
        place = projected(normals, levels)[0]
        within = np.reshape(rows, (-1, 3)) @ place <= np.array(ends) + 1e-9
        if within.all() and (best is None or cost(place) < cost(best)):
            best = place
    return best


BOTH = ["a + b < 0.2"], {"b": (-0.1, 2.0)}


@pytest.mark.parametrize("options", [{}, {"optimiser": "l-bfgs"}], ids=["least-squares", "l-bfgs"])
@pytest.mark.parametrize(
    ("constraints", "bounds", "normals", "ends", "active"),
    [
        (["a + b + c < 0.4"], {}, [1, 1, 1], [0.4], ["a + b + c < 0.4"]),
        (["2*a < 0.3 and c > b - 5"], {}, [2, 0, 0], [0.3], ["2*a < 0.3 and c > b - 5"]),
        (["a < 0.3", "b - c < 0.1"], {}, [[1, 0, 0], [0, 1, -1]], [0.3, 0.1], ["a < 0.3", "b - c < 0.1"]),
        (*BOTH, [[1, 1, 0], [0, 1, 0]], [0.2, -0.1], ["a + b < 0.2"]),
        (["1e9*c < 0.2e9", "a + b < 0.2"], {}, [[0, 0, 1], [1, 1, 0]], [0.2, 0.2], ["1e9*c < 0.2e9", "a + b < 0.2"]),
    ],
)
def test_the_best_place_on_constraints_is_that_of_a_quadratic_program(
    constraints, bounds, normals, ends, active, options
):
    found = fitted(constraints, bounds=bounds, **options)
    expected, covariance = projected(normals, ends)
    errors = np.sqrt(np.maximum(np.diag(covariance), 0.0))
    assert found.converged, found.warnings
    np.testing.assert_allclose(found.theta, expected, atol=2e-3 * np.sqrt(np.diag(COVARIANCE)).min())
    for name, error in zip("abc", errors, strict=True):
        if error < 1e-6:
            assert np.isnan(found[name].standard_error)
        else:
            assert found[name].standard_error == pytest.approx(error, rel=1e-3)
    (warning,) = [each for each in found.warnings if "active" in each]
    assert f"{', '.join(active)} {'are' if len(active) > 1 else 'is'} active" in warning
    sides = {"a": found["a"].value, "b": found["b"].value, "c": found["c"].value}
    assert all(bool(Expression(text)(sides)) for text in constraints)


def test_margins_of_trajectories_that_are_small_beside_others_are_not_one():
    """Two dishes with an `a` of their own, each on its constraint, beside one whose margin is 1e10 times as large."""
    table = {"time": np.tile(T, 2), "dish": np.repeat(["one", "two"], len(T)), "y": np.tile(Y, 2)}
    limits = ["a < 0.03", "1e11*c < 5e10"]
    given = {"by": {"a": "dish"}, "trajectory": "dish", "initial": {"y": 0.0}, "sigma": SIGMA, "shooting": "single"}
    given |= {"start": {"a": 0.01, "b": 0.0, "c": 0.1}, "rtol": 1e-6, "method": "dopri5", "backend": "fused"}
    found = fit(Cubic(), table, constraints=limits, **given)
    assert found.converged, found.warnings
    np.testing.assert_allclose([found["a[one]"].value, found["a[two]"].value], 0.03, atol=1e-6)


def test_a_constraint_that_is_not_active_changes_nothing():
    found = fitted(["a + b + c < 5"])
    np.testing.assert_allclose(found.theta, FREE, atol=1e-3 * np.sqrt(np.diag(COVARIANCE)).min())
    assert not [each for each in found.warnings if "constraint" in each]


DISK = NonlinearConstraint(lambda p: p[0] ** 2 + p[2] ** 2, -np.inf, 0.04)


def by_scipy(function, *constraints):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a gradient does not change
        options = {"gtol": 1e-10, "xtol": 1e-12, "maxiter": 2000}
        start = [0.1, 0.1, 0.1]
        return minimize(function, start, method="trust-constr", constraints=[DISK, *constraints], options=options)


def test_a_curved_constraint_is_that_of_scipy():
    """With a prior, a bound that holds one quantity, and a size of the noise that is estimated."""
    options = {"bounds": {"b": (-0.1, 2.0)}, "priors": {"c": (0.1, 0.2)}, "sigma": "separate"}
    found = fitted(["a^2 + c^2 < 0.04"], **options)

    def nll(p):
        return 0.5 * len(T) * np.log(np.mean((Y - X @ p) ** 2)) + 0.5 * ((p[2] - 0.1) / 0.2) ** 2

    best = by_scipy(nll, LinearConstraint([0, 1, 0], -0.1, 2.0))
    assert found.converged, found.warnings
    assert nll(found.theta) == pytest.approx(best.fun, abs=1e-6)
    np.testing.assert_allclose(found.theta, best.x, atol=1e-3)


LIMIT = stats.chi2.ppf(0.95, 1) / 2


def end_of_interval(rise, estimate, sign):
    """Where a profile rises by the limit, or where there is nothing more."""
    inner, step = estimate, 0.01 * sign
    while rise(inner + step) < LIMIT:
        inner, step = inner + step, 1.2 * step
    if np.isfinite(rise(inner + step)):
        return optimize.brentq(lambda at: rise(at) - LIMIT, inner, inner + step)
    outer = inner + step
    for _ in range(50):
        middle = 0.5 * (inner + outer)
        inner, outer = (middle, outer) if np.isfinite(rise(middle)) else (inner, middle)
    return inner if rise(inner) < LIMIT else optimize.brentq(lambda at: rise(at) - LIMIT, estimate, inner)


@pytest.mark.parametrize(
    ("constraints", "bounds", "rows", "ends"),
    [
        (["a + b < 0.2"], {}, [[1, 1, 0]], [0.2]),  # active all along the profile of one side
        (["a + b < 0.3"], {}, [[1, 1, 0]], [0.3]),  # active from somewhere on
        (["a + b < 0.2", "b > a - 0.6"], {}, [[1, 1, 0], [1, -1, 0]], [0.2, 0.6]),  # in a corner
        (*BOTH, [[1, 1, 0], [0, -1, 0]], [0.2, 0.1]),
        ([], {"a": (None, 0.16), "c": (None, 0.5)}, [[1, 0, 0], [0, 0, 1]], [0.16, 0.5]),  # bounds that become active
        (
            ["100*a + 200*c < 61", "-2*b - c < 0.2"],  # far beyond the half width along the constraints
            {"b": (-0.45, None)},
            [[1, 0, 2], [0, -2, -1], [0, -1, 0]],
            [0.61, 0.2, 0.45],
        ),
    ],
)
def test_profiles_beside_constraints_are_those_of_quadratic_programs(constraints, bounds, rows, ends):
    found = fitted(constraints, bounds=bounds)
    least = cost(quadratic_program(rows, ends))
    for j, name in enumerate("abc"):
        profile = found.profile(name)

        def rise(value, j=j):
            best = quadratic_program(rows, ends, j, value)
            return np.inf if best is None else cost(best) - least

        expected = [rise(value) for value in profile.values]
        np.testing.assert_allclose(profile.nll - profile.nll_min, expected, atol=1e-4)
        for end, sign, why in ((profile.lower, -1, profile.open_below), (profile.upper, 1, profile.open_above)):
            true = end_of_interval(rise, profile.estimate, sign)
            assert end == pytest.approx(true, abs=2e-3 * abs(true - profile.estimate) + 1e-6)
            assert (why is None) == (rise(true) > LIMIT - 1e-6)
            assert why is None or "comes first" in why or " satisfy " in why
        assert not profile.warnings


def test_what_constraints_leave_of_a_quantity_is_said():
    found = fitted(*BOTH[:1], bounds=BOTH[1])
    said = found.profile("a")
    assert said.upper == pytest.approx(0.3, abs=1e-6)
    assert said.open_above == (
        "no larger values than 0.3 satisfy a + b < 0.2, the bound of b; there the negative log-likelihood has risen by "
        "less than 0.001 of the 1.92 that end it"
    )


def test_the_profile_in_a_curved_constraint_is_that_of_scipy():
    found = fitted(["a^2 + c^2 < 0.04"])
    profile = found.profile("c")
    assert not profile.open
    least = by_scipy(cost).fun
    for value, rise in ((profile.lower, LIMIT), (profile.upper, LIMIT), (profile.values[3], profile.nll[3])):
        best = by_scipy(cost, LinearConstraint([0, 0, 1], value, value))
        assert best.fun - least == pytest.approx(rise if rise == LIMIT else rise - profile.nll_min, abs=5e-3)
    wide = found.profile("c", level=0.99999)
    assert (wide.lower, wide.upper) == pytest.approx((-0.2, 0.2), abs=1e-5)
    assert wide.open_below is not None and "no smaller values than -0.2 satisfy a^2 + c^2 < 0.04" in wide.open_below


def test_the_bootstrap_keeps_to_constraints():
    scatter = fitted(["a + b + c < 0.4"]).bootstrap(8, seed=1)
    assert not scatter.failures
    assert (scatter.estimates.sum(1) <= 0.4).all()


@pytest.mark.parametrize("seed", range(4))
def test_what_a_step_gains_within_a_cone_is_that_of_slsqp(seed):
    rng = np.random.default_rng(seed)
    jacobian, values = rng.standard_normal((8 - 2 * seed, 4)), rng.standard_normal(8 - 2 * seed)
    normals = rng.standard_normal((3, 4))
    gain, weights = gain_within(jacobian, values, normals)
    best = minimize(
        lambda s: 0.5 * np.sum((jacobian @ s + values) ** 2),
        np.zeros(4),
        jac=lambda s: jacobian.T @ (jacobian @ s + values),
        method="SLSQP",
        constraints={"type": "ineq", "fun": lambda s: normals @ s, "jac": lambda s: normals},
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    assert gain == pytest.approx(0.5 * values @ values - best.fun, abs=1e-6)
    assert (normals @ best.x)[weights > 0] == pytest.approx(0.0, abs=1e-5)


def test_what_is_no_comparison_is_not_searched_on():
    found = fitted(["a + b + c < 0.4 or a > 100"])
    assert not found.converged
    assert any("holds the estimates back" in each for each in found.warnings)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a < b", ["(b) - (a)"]),
        ("a >= 2*b + 1", ["(a) - (2 * b + 1)"]),
        ("0 < a <= b", ["(a) - (0)", "(b) - (a)"]),
        ("a < b and b < c", ["(b) - (a)", "(c) - (b)"]),
        ("a < b or b < c", []),
        ("not a < b", []),
        ("where(a < b, 1, 0)", []),
    ],
)
def test_margins(text, expected):
    found = _margins_of(Expression(text).tree)
    assert [each.text for each in found] == expected
    for each in found:
        assert torch.isfinite(each({"a": 1.0, "b": 2.0, "c": 3.0}))


def test_criteria_do_not_count_what_bounds_and_constraints_hold():
    """They are those of the fit in which the same is known; what a bound and a constraint both say counts once."""
    known = fitted([], fixed={"a": 0.3}, sigma="separate")
    for limits in ({"constraints": ["a < 0.3"]}, {"bounds": {"a": (0.0, 0.3)}}):
        for both in ({}, {"constraints": ["a < 0.3", "2*a < 0.6"], "bounds": {"a": (None, 0.3)}}):
            held = fitted(**{"constraints": [], "sigma": "separate", **limits, **both})
            assert (held.n_free, held.n_effective) == (4, 3.0) and known.n_effective == known.n_free == 3
            assert (held.aic, held.aicc, held.bic) == pytest.approx((known.aic, known.aicc, known.bic), abs=1e-4)
    assert f"{len(T)} values, normal noise, 4 free quantities that count as 3" in held.summary()
    prior = {"priors": {"c": (0.1, 0.2)}, "sigma": "separate"}
    held, known = fitted(["a < 0.3"], **prior), fitted([], fixed={"a": 0.3}, **prior)
    assert held.n_effective == pytest.approx(known.n_effective, abs=1e-4)


def test_what_is_held_is_stored_without_an_error(tmp_path):
    found = fitted(*BOTH[:1], bounds=BOTH[1])
    for name in ("fit.json", "fit.pkl"):
        (found.to_json if name.endswith("json") else found.save)(tmp_path / name)
        again = type(found).load(tmp_path / name)
        assert np.isnan([again["a"].standard_error, again["b"].standard_error, again["b"].upper]).all()
        assert again["c"].standard_error == pytest.approx(found["c"].standard_error)
