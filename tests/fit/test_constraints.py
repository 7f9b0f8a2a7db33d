"""Constraints that hold the estimates back: against closed forms of quadratic programs, and SciPy's trust-constr."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy.optimize import LinearConstraint, NonlinearConstraint, minimize

from compilers import needs_compiler
from torchivp import fit
from torchivp.expressions import Expression
from torchivp.fitting.constraints import _margins_of
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
    given["start"] = {"a": 0.1, "b": 0.1, "c": 0.1}
    return fit(Cubic(), {"time": T, "y": Y}, constraints=constraints, **given)


def projected(normals, ends):
    """The best place with equalities, and the covariance along them."""
    normals = np.atleast_2d(normals)
    gain = COVARIANCE @ normals.T @ np.linalg.inv(normals @ COVARIANCE @ normals.T)
    return FREE - gain @ (normals @ FREE - ends), COVARIANCE - gain @ normals @ COVARIANCE


@pytest.mark.parametrize("options", [{}, {"optimiser": "l-bfgs"}], ids=["least-squares", "l-bfgs"])
@pytest.mark.parametrize(
    ("constraints", "normals", "ends", "active"),
    [
        (["a + b + c < 0.4"], [1, 1, 1], [0.4], ["a + b + c < 0.4"]),
        (["2*a < 0.3 and c > b - 5"], [2, 0, 0], [0.3], ["2*a < 0.3 and c > b - 5"]),
        (["a < 0.3", "b - c < 0.1"], [[1, 0, 0], [0, 1, -1]], [0.3, 0.1], ["a < 0.3", "b - c < 0.1"]),
    ],
)
def test_the_best_place_on_constraints_is_that_of_a_quadratic_program(constraints, normals, ends, active, options):
    found = fitted(constraints, **options)
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


def test_a_constraint_that_is_not_active_changes_nothing():
    found = fitted(["a + b + c < 5"])
    np.testing.assert_allclose(found.theta, FREE, atol=1e-3 * np.sqrt(np.diag(COVARIANCE)).min())
    assert not [each for each in found.warnings if "constraint" in each]


def test_a_curved_constraint_is_that_of_scipy():
    """With a prior, a bound that holds one quantity, and a size of the noise that is estimated."""
    options = {"bounds": {"b": (-0.1, 2.0)}, "priors": {"c": (0.1, 0.2)}, "sigma": "separate"}
    found = fitted(["a^2 + c^2 < 0.04"], **options)

    def cost(p):
        return 0.5 * len(T) * np.log(np.mean((Y - X @ p) ** 2)) + 0.5 * ((p[2] - 0.1) / 0.2) ** 2

    disk = NonlinearConstraint(lambda p: p[0] ** 2 + p[2] ** 2, -np.inf, 0.04)
    best = minimize(
        cost,
        [0.1, 0.1, 0.1],
        method="trust-constr",
        constraints=[disk, LinearConstraint([0, 1, 0], -0.1, 2.0)],
        options={"gtol": 1e-10, "xtol": 1e-12, "maxiter": 2000},
    )
    assert found.converged, found.warnings
    assert cost(found.theta) == pytest.approx(best.fun, abs=1e-6)
    np.testing.assert_allclose(found.theta, best.x, atol=1e-3)


def test_bootstrap_and_profiles_keep_to_constraints():
    found = fitted(["a + b + c < 0.4"])
    expected, _ = projected([1, 1, 1], [0.4])
    scatter = found.bootstrap(8, seed=1)
    assert not scatter.failures
    assert (scatter.estimates.sum(1) <= 0.4).all()
    profile = found.profile("a")

    def nll(theta):
        return 0.5 * np.sum((Y - X @ theta) ** 2) / SIGMA**2

    for value, at in zip(profile.values, profile.nll, strict=True):  # the others on the constraint, or within it
        on = projected([[1, 1, 1], [1, 0, 0]], [0.4, value])[0]
        within = projected([1, 0, 0], [value])[0]
        best = within if within.sum() < 0.4 else on
        assert at - profile.nll_min == pytest.approx(nll(best) - nll(expected), abs=2e-3)


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
