"""Starts that say nothing of the size of a quantity on the linear scale."""

import numpy as np
import pytest

from compilers import needs_compiler
from torchivp import fit
from torchivp.models import Equations

T = np.linspace(0, 10, 41)


def line(**start):
    """`y = a t + b sin t`."""
    return Equations("y' = a + b*cos(t)\na = 1\nb = 1\ny(0) = 0\nreal: a, b", **start)


@needs_compiler
@pytest.mark.parametrize("truth", [(5.0, 1e3), (5e-9, 2e-9)])
@pytest.mark.parametrize("start", [(1.0, 1.0), (1e-9, 1e3), (0.0, 1e-9)])
def test_a_line_is_that_of_regression_from_any_start(start, truth):
    """Estimates, standard errors, and what is said of them."""
    x = np.stack([T, np.sin(T)], 1)
    clean = x @ truth
    y = clean + 0.01 * clean.std() * np.random.default_rng(0).standard_normal(len(T))
    found = fit(line(a=start[0], b=start[1]), {"time": T, "y": y}, fixed={"y": 0.0}, backend="fused", method="dopri5")
    expected, left, *_ = np.linalg.lstsq(x, y, rcond=None)
    errors = np.sqrt(np.diag(np.linalg.inv(x.T @ x)) * left[0] / len(T))
    assert found.converged, found.warnings
    for name, value, error in zip("ab", expected, errors, strict=True):
        assert found[name].value == pytest.approx(value, abs=0.02 * error)
        assert found[name].standard_error == pytest.approx(error, rel=1e-2)
    assert not [each for each in found.warnings if "determine" in each]
    assert all(each.determined == "well" for each in found.determined())


@needs_compiler
@pytest.mark.parametrize("start", [(1e-9, 1e3), (1e-9, 0.0)])
def test_a_curve_is_found_from_a_start_that_means_zero(start):
    model = Equations("y' = -k*y + s\nk = 1\ns = 1\ny(0) = 1000\nreal: k, s", k=start[0], s=start[1])
    y = 500 + 500 * np.exp(-2 * T) + np.random.default_rng(1).standard_normal(len(T))
    found = fit(
        model, {"time": T, "y": y}, fixed={"y": 1000.0}, start=dict(zip("ks", start, strict=True)), backend="fused"
    )
    assert found.converged
    assert found["k"].lower < 2.0 < found["k"].upper
    assert found["s"].lower < 1000.0 < found["s"].upper
    assert found.check_gradient().good
