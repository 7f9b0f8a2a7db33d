"""What the options of odeint, its callbacks, odeint_dense and norms of the adjoint do."""

import copy
import math
import re
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch

from problems import ADAPTIVE, FIXED, METHODS, Counting, covering
from torchivp import ODE_METHODS, Event, SolveError, odeint, odeint_adjoint, odeint_dense, solve_ivp

D = torch.float64
DOORS = [odeint, odeint_adjoint]
ONE = torch.ones(1, dtype=D)


def decay(t, y):
    return -y


def grid_of(method, size):
    return {"step_size": size} if method in FIXED else {}


# ---- jump_t: func is discontinuous in time --------------------------------------------------------------------------


def staircase(t, y):
    """The slope is 1 up to t = 1/3, then 5: y = t, then 1/3 + 5 (t - 1/3)."""
    return torch.where(t < 1 / 3, 1.0, 5.0).to(y) * torch.ones_like(y)


@pytest.mark.parametrize("method", FIXED + ADAPTIVE)
@pytest.mark.parametrize("span", [(0.0, 1.0), (1.0, 0.0)])
def test_a_jump_is_stepped_over_exactly(method, span):
    """Each side is linear, and every method is exact for that: no step is rejected, and nothing is lost."""
    func = Counting(staircase)
    options = {"jump_t": [1 / 3], **grid_of(method, 0.25)}
    sign = 1.0 if span[0] == 0.0 else -1.0
    y = odeint(func, 0.0 * ONE, list(span), method=method, options=options)
    assert y[-1].item() == pytest.approx(sign * (1 / 3 + 10 / 3), rel=1e-12)
    assert 1 / 3 not in func.times
    assert len(func.times) < 350
    without = Counting(staircase)
    if method in ADAPTIVE and method != "adams":
        odeint(without, 0.0 * ONE, list(span), method=method)
        assert len(func.times) <= len(without.times)


@pytest.mark.parametrize(
    "jumps",
    [
        1 / 3,
        np.float64(1 / 3),
        torch.tensor(1 / 3, dtype=D),
        [1 / 3],
        (1 / 3,),
        torch.tensor([1 / 3], dtype=D),
        torch.tensor([2.0, 1 / 3, -1.0], dtype=D),
    ],
)
def test_jumps_may_be_given_in_any_form_and_order(jumps):
    y = odeint(staircase, 0.0 * ONE, [0.0, 1.0], options={"jump_t": jumps})
    assert y[-1].item() == pytest.approx(11 / 3, rel=1e-12)


@pytest.mark.parametrize("method", ["rk4", "midpoint", "dopri5", "dopri8"])
@pytest.mark.parametrize("span", [(0.0, 1.0), (1.0, 0.0)])
def test_each_side_of_a_jump_sees_its_own_limit(method, span):
    """func is undefined at the jump itself, and beyond it a different function altogether."""

    def func(t, y):
        assert t != 0.5
        return torch.where(t < 0.5, -y, 3.0 * y)

    y = odeint(func, ONE, list(span), method=method, options={"jump_t": [0.5], **grid_of(method, 0.01)})
    exact = math.exp(1.0 if span[0] == 0.0 else -1.0)
    assert y[-1].item() == pytest.approx(exact, rel=1e-3 if method == "midpoint" else 1e-6)


@pytest.mark.parametrize("method", ["euler", "rk4", "dopri5"])
def test_jumps_at_both_ends_of_the_span(method):
    func = Counting(lambda t, y: torch.where((t > 0) & (t < 1), 2.0, math.nan).to(y) * torch.ones_like(y))
    y = odeint(func, 0.0 * ONE, [0.0, 1.0], method=method, options={"jump_t": [0.0, 1.0], **grid_of(method, 0.25)})
    assert y[-1].item() == pytest.approx(2.0, rel=1e-12)
    assert not {0.0, 1.0} & set(func.times)


@pytest.mark.parametrize("method", ["rk4", "dopri5", "bosh3"])
def test_many_jumps(method):
    """A square wave: y is a triangle wave."""
    jumps = [k / 10 for k in range(1, 30)]

    def wave(t, y):
        passed = (t > torch.tensor(jumps, dtype=D)).sum()
        return (1.0 - 2.0 * (passed % 2)).to(y) * torch.ones_like(y)

    options = {"jump_t": jumps, **grid_of(method, 0.07)}
    y = odeint(wave, 0.0 * ONE, [0.0, 1.0, 2.1, 2.9], method=method, options=options)
    torch.testing.assert_close(y[:, 0], torch.tensor([0.0, 0.0, 0.1, 0.1], dtype=D), rtol=0, atol=1e-9)


def test_a_jump_in_single_precision():
    func = Counting(staircase)
    y = odeint(func, torch.zeros(1), torch.tensor([0.0, 1.0]), rtol=1e-5, atol=1e-6, options={"jump_t": [1 / 3]})
    assert y[-1].item() == pytest.approx(11 / 3, rel=1e-6)
    assert float(torch.tensor(1 / 3)) not in func.times


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_gradients_through_a_jump(door, method):
    """y' = a y up to 0.5, then b y: y(1) = y0 exp(a/2 + b/2)."""
    y0 = ONE.clone().requires_grad_()
    a, b = torch.tensor([0.7, -1.3], dtype=D).requires_grad_().unbind()
    a, b = a.detach().requires_grad_(), b.detach().requires_grad_()
    t = torch.tensor([0.0, 1.0], dtype=D, requires_grad=True)

    def func(t, y):
        assert t != 0.5
        return torch.where(t < 0.5, a, b) * y

    y = door(func, y0, t, method=method, options={"jump_t": [0.5], **grid_of(method, 0.01)})
    y[-1].sum().backward()
    exact = math.exp(-0.3)
    assert y0.grad.item() == pytest.approx(exact, rel=1e-6)
    assert a.grad.item() == pytest.approx(exact / 2, rel=1e-6)
    assert b.grad.item() == pytest.approx(exact / 2, rel=1e-6)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("method", ["rk4", "dopri5"])
@pytest.mark.parametrize("option", ["jump_t", "step_t"])
def test_a_jump_stays_where_it_is_when_the_start_moves(door, method, option):
    """y(1) = y0 + (1/3 - t0) + 5 (1 - 1/3): the slope at each end is the derivative by that end."""
    t = torch.tensor([0.0, 1.0], dtype=D, requires_grad=True)

    def func(t, y):  # where a step may evaluate it on either side, a kink
        return staircase(t, y) if option == "jump_t" else 1.0 + 30.0 * torch.relu(t - 1 / 3) + 0.0 * y

    y = door(func, 0.0 * ONE, t, method=method, options={option: [1 / 3], **grid_of(method, 0.1)})
    (found,) = torch.autograd.grad(y[-1], t)
    expected = torch.tensor([-1.0, 5.0 if option == "jump_t" else 21.0], dtype=D)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


# ---- step_t: times that steps end on ---------------------------------------------------------------------------------


class Ends(Counting):
    """Records the ends of the accepted steps."""

    def __init__(self, func):
        super().__init__(func)
        self.ends = []

    def callback_accept_step(self, t, y, dt):
        self.ends.append(t.item())


@pytest.mark.parametrize("span", [[0.0, 1.0], [1.0, 0.0]])
@pytest.mark.parametrize("kinks", [[0.3, 0.7], [0.7, 0.3], torch.tensor([0.3, 0.7], dtype=D), [0.3, 0.7, 5.0]])
def test_steps_land_on_kinks(span, kinks):
    func = Ends(lambda t, y: torch.abs(t - 0.3) + torch.abs(t - 0.7) + 0 * y)
    y = odeint(func, 0.0 * ONE, span, options={"step_t": kinks})
    assert {0.3, 0.7} <= set(func.ends)
    assert y[-1].item() == pytest.approx((1 if span[0] == 0 else -1) * 0.58, rel=1e-12)


def test_a_kink_is_evaluated_at_and_a_jump_is_not():
    for option, seen in (("step_t", True), ("jump_t", False)):
        func = Counting(decay)
        odeint(func, ONE, [0.0, 1.0], options={option: [0.3]})
        assert (0.3 in func.times) is seen


@pytest.mark.parametrize("door", [odeint, odeint_adjoint])
def test_the_time_of_a_jump_has_no_gradient_and_says_so(door):
    jump = torch.tensor([0.5], requires_grad=True)
    with pytest.raises(ValueError, match=r"option 'jump_t' must not require a gradient: .*Write jump_t\.detach"):
        door(torch.nn.Identity(), torch.ones(1), [0.0, 1.0], options={"jump_t": jump})


@pytest.mark.parametrize("name", ["step_t", "jump_t"])
def test_times_of_steps_are_checked(name):
    with pytest.raises(ValueError, match=re.escape(f"option '{name}' must be finite, but option '{name}'[0] = nan")):
        odeint(decay, ONE, [0.0, 1.0], options={name: [math.nan]})


# ---- perturb and interp ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["euler", "rk4", "midpoint"])
def test_perturb_keeps_func_away_from_the_grid(method):
    grid = [i * 0.125 for i in range(9)]
    ends = set(grid) if method == "rk4" else set(grid[:-1])
    plain, moved = Counting(decay), Counting(decay)
    expected = odeint(plain, ONE, [0.0, 1.0], method=method, options={"step_size": 0.125})
    y = odeint(moved, ONE, [0.0, 1.0], method=method, options={"step_size": 0.125, "perturb": True})
    assert ends <= set(plain.times)
    assert not set(grid) & set(moved.times)
    assert len(moved.times) == len(plain.times)
    torch.testing.assert_close(y, expected, rtol=1e-14, atol=0)


def test_interp_is_linear_or_the_methods_own():
    t = [0.0, 0.25, 0.5, 1.0]
    ends = odeint(decay, ONE, [0.0, 1.0], method="rk4", options={"step_size": 1.0})
    linear = odeint(decay, ONE, t, method="rk4", options={"step_size": 1.0, "interp": "linear"})
    cubic = odeint(decay, ONE, t, method="rk4", options={"step_size": 1.0, "interp": "cubic"})
    torch.testing.assert_close(linear, torch.lerp(ends[0], ends[1], torch.tensor(t, dtype=D)[:, None]))
    assert (cubic[:, 0] - torch.exp(-torch.tensor(t, dtype=D))).abs().max() < 0.01
    with pytest.raises(ValueError, match="Unknown interpolation method 'quintic'"):
        odeint(decay, ONE, t, method="rk4", options={"interp": "quintic"})


# ---- limits, names ---------------------------------------------------------------------------------------------------


def test_max_num_steps_counts_over_the_whole_solve():
    t = torch.linspace(0, 10, 11)
    odeint(decay, ONE, t, method="rk4", options={"max_num_steps": 10})
    with pytest.raises(SolveError, match="max_steps = 9 step attempts"):
        odeint(decay, ONE, t, method="rk4", options={"max_num_steps": 9})


def test_a_step_of_min_step_is_always_accepted():
    func = Ends(lambda t, y: torch.cos(100 * t) + 0 * y)
    odeint(func, ONE, [0.0, 1.0], options={"min_step": 0.1})
    assert len(func.ends) <= 11


def test_dtype_is_understood_and_checked():
    y = odeint(decay, ONE, [0.0, 1.0], options={"dtype": torch.float32})
    assert torch.equal(y, odeint(decay, ONE, [0.0, 1.0]))
    with pytest.raises(TypeError, match=re.escape("option 'dtype' must be a floating point dtype, got 'float'")):
        odeint(decay, ONE, [0.0, 1.0], options={"dtype": "float"})


@pytest.mark.filterwarnings("ignore:Functional iteration did not converge:UserWarning")
@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("method", ["explicit_adams", "implicit_adams"])
def test_the_adams_methods_are_explicit_or_implicit_as_told(method, implicit):
    """The order that a class was made with stays."""
    t = torch.linspace(0, 1, 11)
    chosen = ODE_METHODS["implicit_adams" if implicit else "explicit_adams"].with_options(max_order=2)
    given = ODE_METHODS[method].with_options(max_order=2)
    y = odeint(decay, ONE, t, method=given, options={"implicit": implicit})
    assert torch.equal(y, odeint(decay, ONE, t, method=chosen))
    with pytest.raises(TypeError, match="option 'implicit' must be True or False, got 1"):
        odeint(decay, ONE, t, method=method, options={"implicit": 1})


def test_names_of_early_versions():
    with pytest.warns(DeprecationWarning, match="option 'grid_points' is now called 'jump_t'"):
        y = odeint(staircase, 0.0 * ONE, [0.0, 1.0], options={"grid_points": [1 / 3]})
    assert y[-1].item() == pytest.approx(11 / 3, rel=1e-12)
    func = Counting(decay)
    with pytest.warns(DeprecationWarning, match="option 'eps' is now called 'perturb'"):
        odeint(func, ONE, [0.0, 1.0], method="euler", options={"step_size": 0.25, "eps": 1e-6})
    assert not {0.0, 0.25, 0.5, 0.75} & set(func.times)


@pytest.mark.parametrize("door", DOORS)
def test_options_are_not_changed(door):
    options = {"step_size": 0.1, "jump_t": [0.5], "perturb": True, "interp": "linear", "max_num_steps": 100}
    before = copy.deepcopy(options)
    door(decay, ONE, [0.0, 1.0], method="rk4", options=options)
    assert options == before


# ---- callbacks -------------------------------------------------------------------------------------------------------


class Watched(torch.nn.Module):
    """Keeps what its callbacks are told."""

    def __init__(self, field=decay):
        super().__init__()
        self.rate = torch.nn.Parameter(torch.ones(1, dtype=D))
        self.field = field
        self.told = []

    def forward(self, t, y):
        return self.rate * self.field(t, y)

    def keep(self, name):
        return lambda *arguments: self.told.append((name, *arguments))

    def __getattr__(self, name):
        if name.startswith("callback_"):
            return self.keep(name.removeprefix("callback_"))
        return super().__getattr__(name)

    def count(self, name):
        return sum(entry[0] == name for entry in self.told)


@pytest.mark.parametrize("span", [[0.0, 1.0], [1.0, 0.0]])
def test_callbacks_are_told_of_every_step(span):
    func = Watched(lambda t, y: torch.where(t < 0.5, 1.0, 50.0) * torch.cos(50 * t) * y)
    odeint(func, ONE, span)
    assert func.count("step") == func.count("accept_step") + func.count("reject_step")
    assert func.count("reject_step") > 0
    names = [entry[0] for entry in func.told]
    assert all(name == "step" for name in names[::2]) and "step" not in names[1::2]
    for _, t, y, dt in func.told:
        assert t.shape == dt.shape == () and t.dtype == dt.dtype == D and y.shape == (1,)
        assert 0.0 <= t.item() <= 1.0 and dt.item() > 0.0
    accepted = [(t.item(), dt.item()) for name, t, _, dt in func.told if name == "accept_step"]
    assert accepted[0][0] == span[0]
    assert sum(dt for _, dt in accepted) == pytest.approx(1.0)
    sign = 1 if span[0] == 0.0 else -1
    for (t0, dt), (t1, _) in pairwise(accepted):
        assert t0 + sign * dt == pytest.approx(t1)


def test_a_callback_receives_the_state_in_its_shape():
    class Pair:
        def __call__(self, t, y):
            return {"a": -y["a"], "b": y["b"]}

        def callback_step(self, t, y, dt):
            shapes.add((y["a"].shape, y["b"].shape))

    shapes = set()
    odeint(Pair(), {"a": torch.ones(2, 3), "b": torch.ones(())}, [0.0, 1.0], rtol=1e-3, atol=1e-3)
    assert shapes == {((2, 3), ())}


def test_callbacks_of_the_backward_solve():
    func = Watched()
    y = odeint_adjoint(func, ONE.clone().requires_grad_(), [0.0, 1.0])
    assert not any(entry[0].endswith("adjoint") for entry in func.told)
    forward = len(func.told)
    y[-1].sum().backward()
    backward = func.told[forward:]
    assert backward and all(entry[0].endswith("_adjoint") for entry in backward)
    assert backward[0][1].item() == 1.0
    for _, t, state, dt in backward:
        time, y, adjoint, rate = state
        assert time.shape == () and y.shape == adjoint.shape == rate.shape == (1,)
        assert 0.0 <= t.item() <= 1.0 and dt.item() > 0.0
    torch.testing.assert_close(backward[0][2][2], ONE)  # the adjoint begins as the gradient of the output


def test_callbacks_of_fixed_steps():
    class Steps(Counting):
        def callback_step(self, t, y, dt):
            starts.append((t.item(), dt.item()))

    starts = []
    odeint(Steps(decay), ONE, [1.0, 0.0], method="euler", options={"step_size": 0.25})
    assert starts == [(1.0, 0.25), (0.75, 0.25), (0.5, 0.25), (0.25, 0.25)]


def test_callbacks_that_are_never_called_are_named_in_a_warning():
    func = Ends(decay)
    with pytest.warns(UserWarning, match=r"Solver 'RK4' does not support callbacks \{'callback_accept_step'\}"):
        odeint(func, ONE, [0.0, 1.0], method="rk4")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        odeint(func, ONE, [0.0, 1.0])


@pytest.mark.parametrize("door", DOORS)
def test_an_exception_in_a_callback_comes_through(door):
    class Stop(Exception):
        pass

    class Stopping(Counting):
        def callback_accept_step(self, t, y, dt):
            if t > 0.2:
                raise Stop

    with pytest.raises(Stop):
        door(Stopping(decay), ONE.clone().requires_grad_(), [0.0, 1.0])


# ---- odeint_dense ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "span"), covering(METHODS, ["rk4", "dopri5", "adams", "gl4"], [(0.0, 2.0), (2.0, 0.0)])
)
def test_dense_output_of_every_method(method, span):
    y0 = torch.tensor([1.0, 0.0], dtype=D)
    start = span[0]
    order = ODE_METHODS[method].order
    rtol = 1e-7 if method in ("fehlberg2", "rosenbrock23") else {2: 1e-5, 3: 1e-6}.get(order, 1e-8)
    sol = odeint_dense(lambda t, y: torch.stack((y[1], -y[0])), y0, *span, method=method, rtol=rtol, atol=rtol,
                       options=grid_of(method, 0.01 if order < 4 else 0.02))  # fmt: skip
    t = torch.linspace(0, 2, 60, dtype=D).reshape(3, 20)
    exact = torch.stack((torch.cos(t - start), -torch.sin(t - start)), -1)
    assert sol(t).shape == (3, 20, 2)
    assert (sol(t) - exact).abs().max() < {1: 2e-2, 2: 1e-4}.get(order, 1e-5)
    assert sol(0.5).shape == (2,)


def test_dense_output_of_a_tuple():
    sol = odeint_dense(lambda t, y: (-y[0], y[1]), (ONE, torch.ones(2, 3, dtype=D)), 0.0, 1.0)
    a, b = sol(torch.tensor([0.25, 0.75], dtype=D))
    assert a.shape == (2, 1) and b.shape == (2, 2, 3)
    assert b[1, 0, 0].item() == pytest.approx(math.exp(0.75), rel=1e-6)


def test_dense_output_out_of_range():
    sol = odeint_dense(decay, ONE, 1.0, 0.0)
    with pytest.raises(ValueError, match=re.escape("t = 1.5 lies outside the solution's span [0.0, 1.0]: solve over")):
        sol(torch.tensor([0.5, 1.5], dtype=D))


def test_dense_output_of_fixed_steps_needs_a_step_size():
    sol = odeint_dense(decay, ONE, 0.0, 1.0, method="rk4", options={"step_size": 0.1})
    assert sol(1.0).item() == pytest.approx(math.exp(-1), rel=1e-5)


def test_gradients_of_dense_output():
    """y = y0 exp(-(t - t0)), differentiated by y0, t0 and t, twice by y0."""
    y0, t0, t = (torch.tensor(value, dtype=D, requires_grad=True) for value in (2.0, 0.5, 1.2))
    sol = odeint_dense(lambda t, y: -y, y0, t0, torch.tensor(2.0, dtype=D), rtol=1e-11, atol=1e-11)
    y = sol(t)
    exact = 2 * math.exp(-0.7)
    found = torch.autograd.grad(y, (y0, t0, t))
    torch.testing.assert_close(torch.stack(found), torch.tensor([exact / 2, exact, -exact], dtype=D), rtol=1e-6, atol=0)


# ---- norms of the adjoint --------------------------------------------------------------------------------------------


def node_with_options(y):
    assert isinstance(y.grad_fn.adjoint_options, dict)
    return y.grad_fn


def test_the_norm_of_the_adjoint_may_be_exchanged_before_the_backward_pass():
    func, seen = Watched(), []

    def norm(tensors):
        seen.append(tuple(x.shape for x in tensors))
        return max(x.abs().max() for x in tensors if x.numel())

    y0 = torch.ones(2, 3, dtype=D, requires_grad=True)
    y = odeint_adjoint(func, y0, [0.0, 0.5, 1.0], rtol=1e-8, atol=1e-8)
    node_with_options(y).adjoint_options["norm"] = norm
    y[-1].sum().backward()
    assert set(seen) == {((), (2, 3), (2, 3), (1,))}
    torch.testing.assert_close(y0.grad, torch.full((2, 3), math.exp(-1), dtype=D), rtol=1e-6, atol=0)


@pytest.mark.parametrize("method", ["implicit_euler", "trbdf2", "radauIIA5", "gl4", "implicit_adams"])
def test_a_norm_that_sees_nothing_does_not_spoil_implicit_steps(method):
    """It measures errors of steps. Equations are solved to the tolerances whatever it says, backwards too."""
    calls = []

    def blind(x):
        calls.append(x)
        return 0.0

    results = []
    for norm in ({}, {"norm": blind}):
        y0 = torch.tensor([0.5, 1.0], dtype=D, requires_grad=True)  # of more, implicit steps lead nowhere backwards
        options = {"step_size": 0.1}
        y = odeint_adjoint(lambda t, y: -(y**2), y0, [0.0, 1.0], method=method, options={**options, **norm},
                           adjoint_options={**options, **norm}, rtol=1e-6, atol=1e-6)  # fmt: skip
        (gradient,) = torch.autograd.grad(y[-1].sum(), y0)
        results.append((y.detach(), gradient))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert not calls


def test_a_norm_that_calls_everything_small_saves_steps():
    evaluations = []
    for norm in (None, lambda tensors: 1e-3 * max(x.abs().max() for x in tensors)):
        func = Counting(lambda t, y: torch.cos(5 * t) * y)
        y = odeint_adjoint(func, ONE.clone().requires_grad_(), [0.0, 3.0])
        before = len(func.times)
        if norm is not None:
            node_with_options(y).adjoint_options["norm"] = norm
        y[-1].sum().backward()
        evaluations.append(len(func.times) - before)
    assert evaluations[1] < 0.7 * evaluations[0]


@pytest.mark.parametrize("leaves", [1, 2])
def test_a_norm_in_adjoint_options(leaves):
    seen = set()

    def norm(tensors):
        seen.add(tuple(x.shape for x in tensors))
        return max(x.abs().max() for x in tensors)

    y0 = tuple(torch.ones(2 + i, dtype=D, requires_grad=True) for i in range(leaves))
    rate = torch.ones(1, dtype=D, requires_grad=True)
    func = (lambda t, y: -rate * y) if leaves == 1 else (lambda t, y: tuple(-rate * part for part in y))
    y = odeint_adjoint(func, y0[0] if leaves == 1 else y0, [0.0, 1.0], adjoint_options={"norm": norm})
    (y if leaves == 1 else y[0])[-1].sum().backward()
    shapes = tuple(part.shape for part in y0)
    assert seen == {((), *shapes, *shapes, (1,))}
    assert rate.grad.item() == pytest.approx(-2 * math.exp(-1), rel=1e-6)


@pytest.mark.parametrize("door", [odeint, odeint_adjoint])
@pytest.mark.parametrize(("method", "options"), [("dopri5", {}), ("rk4", {"step_size": 0.1}), ("rk4", {})])
def test_an_output_at_a_jump_moves_and_the_jump_does_not(door, method, options):
    """y' = 1 before 0.5 and -2 after: y(t1) = t1 - t0 up to there, and y(1) does not depend on where an output is."""

    def func(t, y):
        return torch.where(t < 0.5, 1.0, -2.0) * torch.ones_like(y)

    t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64, requires_grad=True)
    y = door(func, torch.zeros(1, dtype=torch.float64), t, method=method, options={"jump_t": [0.5], **options})
    at_jump, at_end = (torch.autograd.grad(y[i].sum(), t, retain_graph=True)[0] for i in (1, 2))
    torch.testing.assert_close(at_jump, torch.tensor([-1.0, 1.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(at_end, torch.tensor([-1.0, 0.0, -2.0], dtype=torch.float64))


# ---- callbacks of solve_ivp -----------------------------------------------------------------------------------------


class Told:
    """A function that is told of its steps."""

    def __init__(self, func):
        self.func, self.step, self.accept, self.reject = func, [], [], []
        self.callback_step = lambda *told: self.step.append(told)
        self.callback_accept_step = lambda *told: self.accept.append(told)
        self.callback_reject_step = lambda *told: self.reject.append(told)

    def __call__(self, t, y, *args):
        return self.func(t, y, *args)

    def counts(self):
        return [len(self.step), len(self.accept), len(self.reject)]


def pulse(t, y):
    return -y + 20.0 * torch.exp(-300.0 * (t - 0.5) ** 2)


@pytest.mark.parametrize("gradient", ["direct", "checkpointed"])
def test_callbacks_of_solve_ivp_are_those_of_odeint(gradient):
    by_odeint, by_ivp = Told(pulse), Told(pulse)
    odeint(by_odeint, ONE, [0.0, 2.0], rtol=1e-6, atol=1e-8, options={"first_step": 0.5})
    solution = solve_ivp(
        by_ivp,
        (0.0, 2.0),
        ONE.clone().requires_grad_(),
        method="dopri5",
        rtol=1e-6,
        atol=1e-8,
        first_step=0.5,
        gradient=gradient,
    )
    solution.final.sum().backward()
    assert by_ivp.counts() == by_odeint.counts()
    stats = solution.stats
    assert by_ivp.counts() == [stats.accepted + stats.rejected, stats.accepted, stats.rejected] and stats.rejected > 0
    for told, expected in zip(by_ivp.accept, by_odeint.accept, strict=True):
        for x, y in zip(told, expected, strict=True):
            torch.testing.assert_close(x.detach(), y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gradient", ["direct", "checkpointed", "backsolve", "forward"])
def test_callbacks_of_a_batch(gradient):
    """Each row is told of its own steps, and NaN where there are none."""
    func = Told(pulse)
    y0 = torch.stack([ONE, 2 * ONE, 3 * ONE]).requires_grad_()
    span = (torch.zeros(3, dtype=D), torch.tensor([2.0, 0.3, 1.0], dtype=D))
    solution = solve_ivp(func, span, y0, batch_dims=1, first_step=0.5, gradient=gradient)
    solution.final.sum().backward()
    for row, stats in enumerate(solution.stats):
        for told, count in (
            (func.accept, stats.accepted),
            (func.reject, stats.rejected),
            (func.step, stats.accepted + stats.rejected),
        ):
            assert all(t.shape == (3,) and y.shape == y0.shape and dt.shape == (3,) for t, y, dt in told)
            assert sum(not t[row].isnan() for t, _, _ in told) == count
            assert all(y[row].isnan().all() and dt[row].isnan() for t, y, dt in told if t[row].isnan())
        mine = [(t[row], y[row], dt[row]) for t, y, dt in func.accept if not t[row].isnan()]
        starts, states, sizes = (torch.stack(x).detach() for x in zip(*mine, strict=True))
        torch.testing.assert_close(starts + sizes, solution.t[row][1 : 1 + len(mine)])
        torch.testing.assert_close(states, solution.y[row][: len(mine)].detach())
    assert sum(stats.rejected for stats in solution.stats) > 0


@pytest.mark.parametrize("lead", [(), (2,)])
def test_callbacks_with_events(lead):
    """Of a step that is taken again to end on an event, they are told as it was taken."""
    func = Told(lambda t, y: {"x": -y["x"]})
    doubled = Event(lambda t, y: y["x"][..., 0] - 0.5, apply=lambda t, y: {"x": 2.0 * y["x"]}, max_count=3)
    y0 = {"x": torch.ones(*lead, 1, dtype=D)}
    solution = solve_ivp(func, (0.0, 10.0), y0, batch_dims=len(lead), events=doubled, max_step=0.3)
    assert all(y["x"].shape == (*lead, 1) and t.shape == dt.shape == lead for t, y, dt in func.accept)
    starts, sizes = (torch.stack([told[i].reshape(-1)[0] for told in func.accept]) for i in (0, 2))
    stats = solution.stats[0] if lead else solution.stats
    assert len(starts) == stats.accepted
    torch.testing.assert_close(starts[1:], (starts + sizes)[:-1])
    assert float(starts[-1] + sizes[-1]) == pytest.approx(3 * math.log(2.0), rel=1e-5)
    assert all((starts - k * math.log(2.0)).abs().min() < 1e-5 for k in (1, 2))


def test_kernels_call_no_callbacks():
    func = Told(pulse)
    with pytest.raises(ValueError, match="has no kernel for this solve: kernels do not take callbacks"):
        solve_ivp(func, (0.0, 1.0), ONE, backend="fused")
    solution = solve_ivp(func, (0.0, 1.0), ONE, backend="auto")
    assert solution.stats.backend == "eager: kernels do not take callbacks"
    assert len(func.accept) == solution.stats.accepted
