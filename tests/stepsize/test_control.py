"""Step size control, apart from any method: stub functions with a known error."""

import math

import numpy as np
import pytest
import torch

from torchivp import ConstantSteps, PIController, PIDController, solve_ivp
from torchivp.stepsize.clip import Clip
from torchivp.stepsize.pid import History, RowHistory
from torchivp.times import Times


def test_the_integral_controller_aims_below_the_tolerance():
    decision = PIDController().adapt(0.5, 0.1, 0.1, History(), error_order=4)
    assert decision.accept
    assert decision.h == pytest.approx(0.1 * 0.9 * 0.5 ** (-1 / 5))


def test_proportional_and_derivative_terms():
    """The formula of Soederlind with errors 0.5, 0.2 and 0.1, newest first."""
    controller = PIDController(kp=0.2, ki=0.3, kd=0.1)
    decision = controller.adapt(0.5, 1.0, 1.0, History(0.2, 0.1), error_order=4)
    factor = 0.9 * 0.5 ** (-0.6 / 5) * 0.2 ** (0.4 / 5) * 0.1 ** (-0.1 / 5)
    assert decision.h == pytest.approx(factor)
    assert decision.history == History(0.5, 0.2, False)


def test_a_rejected_step_shrinks_and_does_not_grow_at_once():
    controller = PIDController()
    rejected = controller.adapt(3.0, 1.0, 1.0, History(), 4)
    assert not rejected.accept and rejected.h == pytest.approx(0.9 * 3.0 ** (-1 / 5))
    again = controller.adapt(1e-6, 0.5, 0.5, rejected.history, 4)
    assert again.accept and again.h == 0.5


@pytest.mark.parametrize(
    ("error", "factor"), [(1e9, 0.2), (math.nan, 0.2), (math.inf, 0.2), (0.0, 10.0), (1e-30, 10.0)]
)
def test_factors_are_limited(error, factor):
    decision = PIDController().adapt(error, 1.0, 1.0, History(), 4)
    assert decision.h == pytest.approx(factor)
    assert decision.accept == (error < 1)


def test_sizes_are_limited():
    controller = PIDController(min_step=0.5, max_step=2.0)
    assert controller.adapt(1e9, 1.0, 1.0, History(), 4).h == 0.5
    assert controller.adapt(0.0, 1.0, 1.0, History(), 4).h == 2.0


def test_a_step_that_could_grow_by_little_is_kept():
    """For one row and for rows alike; one that must shrink, or may grow by much, is not."""
    controller = PIDController(dead_band=1.2)
    errors = np.array([0.4, 0.1, 0.9])  # factors of the step: 1.08, 1.43, 0.92
    history = RowHistory(np.ones(3), np.ones(3), np.zeros(3, dtype=bool))
    _, rows = controller.adapt_rows(errors, np.full(3, 0.5), np.full(3, 0.5), history, 4)
    single = [controller.adapt(error, 0.5, 0.5, History(), 4).h for error in errors]
    assert rows.tolist() == single
    assert single[0] == 0.5 and single[1] > 0.6 and single[2] < 0.5
    with pytest.raises(
        ValueError, match=r"dead_band must be at least 1 and less than factor_max, got 0.9; 1.2 is usual"
    ):
        PIDController(dead_band=0.9)


def test_presets_take_the_other_options():
    assert PIController(max_step=2.0) == PIDController(kp=0.4, ki=0.3, max_step=2.0)


@pytest.mark.parametrize("safety", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("end", [0.7, 1.0, 1.3])
def test_no_step_size_is_tried_twice(safety, end):
    """A step stretched to land on the end, and then rejected, must not be stretched to the same size again."""
    sizes = []

    def func(t, y):
        sizes.append(float(t))
        return torch.cos(30 * t) * y

    y0 = torch.ones(1, dtype=torch.float64)
    solution = solve_ivp(func, (0.0, end), y0, controller=PIDController(safety=safety), rtol=1e-10, atol=1e-10)
    assert solution.stats.rejected < 0.5 * solution.stats.accepted


@pytest.mark.parametrize("h", [0.01, 0.3, 0.55, 0.95, 3.0, math.inf])
@pytest.mark.parametrize("direction", [1.0, -1.0])
@pytest.mark.parametrize("stretch", [True, False])
def test_steps_land_on_every_required_time(h, direction, stretch):
    targets = [direction * t for t in (1.0, 1.5, 1.5000001, 4.0)]
    clip, t, hit, longest = Clip(targets, direction), 0.0, [], 0.0
    while not clip.done:
        end = clip.step_end(t, h, stretch)
        assert (end - t) * direction > 0
        longest, t = max(longest, abs(end - t)), end
        if clip.reached(t):
            hit.append(t)
    assert hit == targets
    assert longest <= (1.1 if stretch else 1.0) * h * (1 + 1e-12)


@pytest.mark.parametrize("batch_dims", [0, 1])
def test_no_step_is_longer_than_the_longest(batch_dims):
    """Nor the last ones, which are else a little longer than proposed rather than one more."""
    y0, spans = torch.ones(3, 1, dtype=torch.float64), torch.tensor([9.9, 10.0, 10.05], dtype=torch.float64)
    options = {"max_step": 1.0, "first_step": 0.7, "batch_dims": batch_dims}
    end = spans if batch_dims else 10.05
    t = solve_ivp(lambda t, y: -1e-4 * y, (0.0, end), y0, **options).t
    steps = t.diff(dim=-1)
    assert (steps[~steps.isnan()] <= 1.0 + 1e-12).all() and (steps[~steps.isnan()] > 0.6).all()


@pytest.mark.parametrize(
    ("span", "size", "count"),
    [((0.0, 1.0), 0.1, 10), ((0.0, 1.0), 0.3, 4), ((1.0, 0.0), 0.1, 10), ((0.0, 0.3), 0.1, 3), ((0.0, 0.05), 0.1, 1),
     ((1e9, 1e9 + 1), 0.1, 10)],
)  # fmt: skip
def test_constant_steps(span, size, count):
    times = Times(*span, None)
    targets = list(ConstantSteps(size).targets(times))
    assert len(targets) == count and targets[-1] == span[1]
    signed = math.copysign(size, span[1] - span[0])
    assert targets[:-1] == [span[0] + i * signed for i in range(1, count)]


def test_the_first_step_fits_the_problem():
    """Over nine orders of magnitude of the time scale the first step needs no or few rejections."""
    for scale in (1e-6, 1e-3, 1.0, 1e3):
        y0 = torch.ones(1, dtype=torch.float64)
        solution = solve_ivp(lambda t, y, s=scale: -y / s, (0.0, 10 * scale), y0)
        assert solution.stats.rejected <= 1
        assert 1e-4 < solution.t[1].item() / scale < 1


def test_the_first_step_may_be_given():
    solution = solve_ivp(lambda t, y: -y, (0.0, 1.0), torch.ones(1, dtype=torch.float64), first_step=1e-3)
    assert solution.t[1].item() == 1e-3
    assert solution.stats.evaluations == 1 + 6 * (solution.stats.accepted + solution.stats.rejected)
