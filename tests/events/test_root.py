"""The root of a function within a bracket: any function that changes its sign, in few evaluations."""

import math

import pytest
import scipy.optimize

from torchivp.events.root import find_root

SMOOTH = {
    "linear": (lambda x: 0.3 - x, 0.0, 1.0),
    "parabola": (lambda x: 2.0 - x * x, 0.0, 3.0),
    "cosine": (lambda x: math.cos(x) - x, 0.0, 2.0),
    "exponential": (lambda x: 1.0 - 1e-3 * math.exp(10 * x), 0.0, 4.0),
    "steep": (lambda x: math.tanh(1e6 * (0.7 - x)), 0.0, 1.0),
    "nearly flat": (lambda x: 1e-12 * (0.123 - x), -5.0, 5.0),
    "triple root": (lambda x: (0.4 - x) ** 3, 0.0, 1.0),
    "ninth root": (lambda x: (0.4 - x) ** 9, 0.0, 1.0),
    "denormal values": (lambda x: 1e-310 * (0.6 - x), 0.0, 1.0),
    "huge values": (lambda x: 1e308 * (0.6 - x), -0.1, 1.0),
    "values far apart": (lambda x: 1e300 if x < 0.25 else -1e-300, 0.0, 1.0),
    "huge arguments": (lambda x: 3e200 - x, 0.0, 1e201),
    "tiny arguments": (lambda x: 3e-200 - x, 0.0, 1e-199),
    "backwards": (lambda x: x - 0.3, 1.0, -1.0),
}


class Counted:
    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, x):
        self.calls += 1
        return self.function(x)


def bisections(a, b, width):
    return math.ceil(math.log2(abs(b - a) / width))


@pytest.mark.parametrize("name", SMOOTH)
def test_agrees_with_scipy(name):
    function, a, b = SMOOTH[name]
    width = 4 * math.ulp(max(abs(a), abs(b)))
    counted = Counted(function)
    root = find_root(counted, a, b, function(a), function(b), width)
    expected = scipy.optimize.bisect(lambda x: math.copysign(1.0, function(x)), a, b, xtol=width, maxiter=2000)
    # Denormal values are so coarse that the function is zero over an interval.
    assert abs(root - expected) <= 3 * width + (1e-13 if name == "denormal values" else 0.0)
    assert function(root) <= 0.0 < function(root + math.copysign(width, a - b))
    assert counted.calls <= bisections(a, b, width) + 2


@pytest.mark.parametrize("name", ["linear", "parabola", "cosine", "backwards"])
def test_converges_much_faster_than_bisection_where_the_function_is_smooth(name):
    function, a, b = SMOOTH[name]
    counted = Counted(function)
    find_root(counted, a, b, function(a), function(b), 4 * math.ulp(max(abs(a), abs(b))))
    assert counted.calls <= 14


@pytest.mark.parametrize("below", [-1.0, -1e-300, -1e300, -math.inf, math.nan, 0.0])
@pytest.mark.parametrize("above", [1.0, 1e-300, 1e300, math.inf])
@pytest.mark.parametrize("at", [0.0, 1e-9, 0.3, 1.0 - 1e-9])
def test_finds_a_jump_between_any_two_values(above, below, at):
    counted = Counted(lambda x: above if x <= at else below)
    width = 4 * math.ulp(1.0)
    root = find_root(counted, 0.0, 1.0, above, below, width)
    assert at < root <= at + width
    assert counted.calls <= bisections(0.0, 1.0, width) + 2


def test_finds_the_near_end_of_an_interval_of_zeros():
    counted = Counted(lambda x: max(0.3 - x, 0.0))
    root = find_root(counted, 0.0, 1.0, 0.3, 0.0, 1e-12)
    assert 0.3 <= root <= 0.3 + 1e-12
    assert counted.calls <= bisections(0.0, 1.0, 1e-12) + 3


def test_an_exact_zero_is_returned_as_it_is():
    assert find_root(lambda x: 0.5 - x, 0.0, 1.0, 0.5, -0.5, 1e-16) == 0.5


def test_no_bracket_narrower_than_the_spacing_of_numbers():
    b = math.nextafter(1.0, 2.0)
    assert find_root(lambda x: pytest.fail("there is nothing between"), 1.0, b, 1.0, -1.0, 0.0) == b


def test_a_width_of_zero_means_the_spacing_of_numbers():
    root = find_root(lambda x: 1 / 3 - x, 0.0, 1.0, 1 / 3, -2 / 3, 0.0)
    assert abs(root - 1 / 3) <= math.ulp(1.0)
