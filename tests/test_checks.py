"""Numbers that the user gives, checked."""

import math

import numpy as np
import pytest
import torch

from torchivp.checks import check_flag, check_number, check_positive, check_whole_number


def test_numbers_of_every_kind():
    for value in (2, 2.0, np.float32(2), np.int64(2), torch.tensor(2), torch.tensor([2.0], requires_grad=True)):
        assert check_number("x", value) == check_positive("x", value) == 2.0
    assert check_positive("x", math.inf) == math.inf


@pytest.mark.parametrize("value", [True, "2", None, 1j, [2.0], torch.ones(2), torch.tensor(1j)])
def test_what_is_no_number(value):
    with pytest.raises(TypeError, match="x must be a number, got"):
        check_number("x", value)


def test_numbers_out_of_range():
    with pytest.raises(ValueError, match="x must not be NaN"):
        check_number("x", math.nan)
    with pytest.raises(ValueError, match="x must be positive, got 0: leave it out"):
        check_positive("x", 0, hint=": leave it out")


def test_whole_numbers():
    assert [check_whole_number("n", value, 1, 12) for value in (1, np.int32(12))] == [1, 12]
    for value in (2.0, True, "2", None):
        with pytest.raises(TypeError, match="n must be a whole number of at least 1, got"):
            check_whole_number("n", value, 1)
    for value in (0, 13, np.int64(-1)):
        with pytest.raises(ValueError, match="n must be a whole number between 1 and 12, got"):
            check_whole_number("n", value, 1, 12)


def test_flags():
    assert check_flag("x", True) and not check_flag("x", False)
    with pytest.raises(TypeError, match="x must be True or False, got 1"):
        check_flag("x", 1)
