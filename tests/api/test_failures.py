"""Solves that cannot reach the end say what happened, where, and what to try."""

import math

import pytest
import torch

from problems import ADAPTIVE, FIXED, sampled
from torchivp import ODE_METHODS, Outcome, SolveError, odeint, solve_ivp

ONE = torch.ones(1, dtype=torch.float64)


def failing(func, y0=ONE, span=(0.0, 2.0), **options):
    solution = solve_ivp(func, span, y0, throw=False, **options)
    with pytest.raises(SolveError) as raised:
        solve_ivp(func, span, y0, **options)
    assert str(raised.value) == solution.message
    assert not solution.success
    return solution


@pytest.mark.parametrize("method", sampled(ADAPTIVE))
def test_a_singularity(method):
    rtol = 1e-4 if ODE_METHODS[method].order < 4 and method != "fehlberg2" else 1e-6
    solution = failing(lambda t, y: y**2, method=method, rtol=rtol, atol=rtol)  # y = 1 / (1 - t)
    assert solution.status.outcome in (Outcome.STEP_UNDERFLOW, Outcome.NON_FINITE)
    assert solution.status.t == pytest.approx(1.0, abs=1e-2)


def test_the_sentence_of_a_step_underflow():
    solution = failing(lambda t, y: y**2, torch.ones(1, 2, dtype=torch.float64), method="dopri5")
    assert solution.status.outcome is Outcome.STEP_UNDERFLOW
    assert "step size underflow at t = 1" in solution.message or "step size underflow at t = 0.99" in solution.message
    assert "times the tolerance, largest in y[0, 0]" in solution.message
    assert "may be singular there" in solution.message


def test_a_tolerance_below_the_rounding_of_the_state_is_named():
    solution = failing(lambda t, y: y**2, torch.ones(1), rtol=1e-8, atol=0)
    assert "rtol = 1e-08 is close to the rounding of torch.float32, 1.2e-07: use y0.double()" in solution.message


class Counted:
    def __init__(self, func):
        self.func, self.calls = func, 0

    def __call__(self, t, y):
        self.calls += 1
        assert self.calls < 2000, "this goes on and on"
        return self.func(t, y)


@pytest.mark.parametrize("method", ["bosh3", "dopri5", "tsit5", "dopri8"])
@pytest.mark.parametrize("span", [(0.0, 1.0), (0.0, -1e6)])
def test_steps_from_time_zero_are_not_made_ever_smaller(method, span):
    """Near zero, numbers are so closely spaced that they end no search for a step size."""
    func = Counted(lambda t, y: -y)
    with pytest.raises(SolveError, match="step size underflow at t = 0: ") as raised:
        solve_ivp(func, span, ONE, method=method, rtol=1e-300, atol=0.0)
    assert raised.value.status.outcome is Outcome.STEP_UNDERFLOW
    assert func.calls < 500


def test_a_norm_of_an_error_that_is_not_a_number_rejects_the_step():
    def func(t, y):
        return torch.sqrt(1.0 - y)  # y = 1 - (1 - t/2)^2; not a number beyond 1, where long steps try it

    def norm(x):
        return x.abs().max()

    solution = solve_ivp(func, (0.0, 1.9), 0 * ONE, first_step=1.9, norm=norm)
    assert solution.stats.rejected > 0 and not func(None, 1.1 * ONE).isfinite()
    assert solution.y[-1].item() == pytest.approx(1 - 0.05**2, rel=1e-4)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_func_that_is_not_finite_just_after_time_zero(method):
    func = Counted(lambda t, y: -y if t <= 0 else y * math.nan)
    with pytest.raises(SolveError, match="or func is undefined just beyond"):
        solve_ivp(func, (0.0, 1.0), ONE, method=method)
    assert func.calls < 600


def test_outputs_not_reached_are_nan_and_the_others_kept():
    t = torch.linspace(0, 2, 9, dtype=torch.float64)
    solution = failing(lambda t, y: y**2, t_eval=t)
    assert torch.equal(solution.t, t)
    torch.testing.assert_close(solution.y[:4, 0], 1 / (1 - t[:4]), rtol=1e-4, atol=0)
    assert solution.y[5:].isnan().all()


def test_an_element_in_which_no_error_is_tolerated_is_named():
    y0 = torch.tensor([1.0, 0.0], dtype=torch.float64)
    sentence = "y[1] = 0 and atol = 0, so no error is tolerated there: pass atol > 0"
    solution = failing(lambda t, y: torch.sin(9 * t) - y + 1e-9, y0, atol=0)
    assert f"no step can be taken from t = 0: {sentence}" in solution.message
    solution = failing(lambda t, y: torch.relu(t - 0.5) - y, y0, atol=0)  # the second one rises from zero at a kink
    assert sentence in solution.message
    assert solve_ivp(lambda t, y: -y, (0.0, 1.0), y0, atol=0).success  # nothing happens in that element


@pytest.mark.filterwarnings("ignore:Functional iteration did not converge:UserWarning")
@pytest.mark.parametrize("method", FIXED)
def test_fixed_steps_need_no_tolerance(method):
    y = solve_ivp(lambda t, y: -y, (0.0, 1.0), ONE, method=method, step_size=0.01, rtol=0, atol=0).y
    assert y[-1].item() == pytest.approx(math.exp(-1), rel=0.02)


def test_too_many_steps():
    solution = failing(lambda t, y: -y, max_steps=3)
    assert solution.status.outcome is Outcome.MAX_STEPS
    assert solution.message.startswith(
        "max_steps = 3 step attempts (3 accepted, 0 rejected) took the solution from t = 0"
    )
    assert (
        "of 2, where the step size is" in solution.message
        and "raise max_steps (option max_num_steps of" in solution.message
    )
    with pytest.raises(SolveError, match="max_steps = 3 step attempts"):
        odeint(lambda t, y: -y, ONE, torch.tensor([0.0, 1.0, 2.0]), options={"max_num_steps": 3})


def test_the_limit_on_steps_is_for_the_whole_solve():
    t = torch.linspace(0, 50, 50, dtype=torch.float64)
    with pytest.raises(SolveError, match="max_steps = 30"):
        odeint(lambda t, y: torch.cos(3 * t) * y, ONE, t, options={"max_num_steps": 30})


@pytest.mark.parametrize("method", sampled(FIXED + ADAPTIVE))
def test_func_that_is_not_finite(method):
    step = {"step_size": 0.01} if method in FIXED else {}
    solution = failing(lambda t, y: torch.sqrt(1.0 - t) * y, method=method, **step)
    assert solution.status.outcome is Outcome.NON_FINITE
    assert solution.status.t == pytest.approx(1.0, abs=0.02)


def test_func_that_is_not_finite_at_the_start():
    solution = failing(lambda t, y: y / t)
    assert "func is not finite at t = 0, where the state still is: the derivative of y[0] is inf" in solution.message


def test_a_state_that_is_not_finite_at_the_start():
    for method in FIXED + ADAPTIVE:
        step = {"step_size": 0.1} if method in FIXED else {}
        solution = failing(lambda t, y: -y, torch.tensor([1.0, math.nan]), method=method, **step)
        assert "the initial state is not finite: y[1] = nan" in solution.message


def test_fixed_steps_that_are_unstable():
    solution = failing(lambda t, y: -1e4 * y, ONE, span=(0.0, 8.0), method="rk4", step_size=0.1)
    assert solution.status.outcome is Outcome.NON_FINITE
    assert "the solution blows up, or func is undefined just beyond, or the step size is" in solution.message
    assert "too large for a stable solution: try a smaller step_size" in solution.message
    assert solution.y.isfinite().all() and len(solution.t) < 81


def test_fixed_steps_keep_what_came_before_the_failure():
    t = torch.linspace(0, 2, 5, dtype=torch.float64)
    solution = failing(lambda t, y: torch.sqrt(1.0 - t) * y, t_eval=t, method="rk4", step_size=0.125)
    assert solution.y[:3].isfinite().all() and solution.y[3:].isnan().all()


def test_a_tolerance_that_cannot_be_met():
    solution = failing(lambda t, y: torch.cos(50 * t) * y, min_step=0.1, rtol=1e-8, atol=1e-8)
    assert solution.status.outcome is Outcome.TOLERANCE_NOT_MET
    assert "with min_step = 0.1: the error of a step of that size is still" in solution.message
    assert "lower min_step, or loosen rtol and atol" in solution.message


def test_odeint_takes_the_smallest_step_whatever_its_error():
    y = odeint(lambda t, y: torch.cos(50 * t) * y, ONE, torch.tensor([0.0, 1.0]), options={"min_step": 0.1})
    assert y.isfinite().all()


def test_the_largest_step_is_respected():
    solution = solve_ivp(lambda t, y: 0 * y, (0.0, 1.0), ONE, max_step=0.1)
    assert solution.t.diff().max() <= 0.1 * 1.1 + 1e-12


def test_a_failure_of_a_pytree_names_the_leaf():
    y0 = {"calm": torch.ones(2, dtype=torch.float64), "wild": [torch.ones(1, 2, dtype=torch.float64)]}
    solution = failing(lambda t, y: {"calm": -y["calm"], "wild": [y["wild"][0] ** 2]}, y0)
    assert "y['wild'][0][0, 0]" in solution.message


def test_an_exception_of_func_is_passed_on():
    def func(t, y):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        solve_ivp(func, (0.0, 1.0), ONE, throw=False)
