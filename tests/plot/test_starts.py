"""Pictures of many starts."""

import numpy as np
import pytest

from fake_fit import FakeFit
from torchivp.fitting.searching.multistart import Attempt
from torchivp.plot import plot_starts


def attempt(nll, converged=True):
    return Attempt(np.zeros(2), np.zeros(2), nll, converged)


def test_starts_are_drawn_in_order_and_those_that_failed_are_counted():
    attempts = [attempt(3.0), attempt(3.0), attempt(7.5, False), attempt(np.inf, False)]
    (axes,) = plot_starts(FakeFit(attempts=attempts)).axes
    points = np.concatenate([line.get_xydata() for line in axes.lines if line.get_marker() == "o"])
    np.testing.assert_array_equal(points, [[1, 0.0], [2, 0.0], [3, 4.5]])
    assert axes.get_title(loc="left") == "1 of 4 starts failed"


def test_a_fit_without_a_list_of_starts_has_no_picture():
    with pytest.raises(ValueError, match="starts=100"):
        plot_starts(FakeFit())
