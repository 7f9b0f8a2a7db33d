"""SciPy's solvers behind torchivp's doors: accuracy, where steps end, what is refused, how they fail."""

import math
from dataclasses import replace

import pytest
import scipy.integrate
import torch

from problems import DETEST, Counting, double, scipy_solution
from torchivp import Outcome, SolveError, solve_ivp
from torchivp.api.arguments import build_integration
from torchivp.api.statement import Statement
from torchivp.boundary import UserFunction
from torchivp.error_norm import ErrorNorm
from torchivp.events.sign_change import EventFunction
from torchivp.gradients.direct import Direct
from torchivp.methods.ode.scipy_solver import ScipySolver
from torchivp.stepsize.own import OwnSteps
from torchivp.times import Times

SOLVERS = ["RK23", "RK45", "DOP853", "Radau", "BDF", "LSODA"]
IMPLICIT = ["Radau", "BDF", "LSODA"]


def by(solver, **options):
    return ScipySolver.with_options(solver=solver, **options)


def stepper(y0, solver="LSODA", rtol=1e-8, atol=1e-10):
    """A method made for `y0`, to take single steps with."""
    norm = ErrorNorm(rtol, atol, [slice(0, y0.shape[1])], y0.dtype)
    return by(solver)(y0, y0.dtype.to_real(), norm)


def build(func, y0, times, solver, **changes):
    stated = Statement(
        func, (times.start, times.end), y0, None, by(solver), OwnSteps(), rtol=1e-9, atol=1e-11, max_steps=10_000,
        gradient=Direct(),
    )  # fmt: skip
    integration, _ = build_integration(stated, times)
    return replace(integration, **changes)


def damped(t, y):
    """y = (exp(-t) cos 3t, -exp(-t) sin 3t) from (1, 0)."""
    a, b = y.unbind()
    return torch.stack((-a + 3 * b, -3 * a - b))


def damped_exactly(t):
    return torch.stack((torch.exp(-t) * torch.cos(3 * t), -torch.exp(-t) * torch.sin(3 * t)), dim=1)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("end", [2.0, -1.5])
def test_a_closed_form_within_steps_and_at_their_ends(solver, end):
    t = torch.linspace(0.0, end, 101, dtype=torch.float64)
    y0 = double(1.0, 0.0)
    dense = solve_ivp(damped, (0.0, end), y0, t_eval=t, method=by(solver), rtol=1e-8, atol=1e-10)
    assert (dense.y - damped_exactly(t)).abs().max() < 3e-6
    steps = solve_ivp(damped, (0.0, end), y0, method=by(solver), rtol=1e-8, atol=1e-10)
    assert (steps.y - damped_exactly(steps.t)).abs().max() < 1e-6
    assert steps.t[-1] == end and len(steps.t) == 1 + steps.stats.accepted


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_steps_are_those_of_scipy(solver):
    func, y0 = DETEST["E2 van der Pol"]
    counting = Counting(func)
    with torch.no_grad():
        ours = solve_ivp(counting, (0.0, 5.0), double(*y0), method=by(solver), rtol=1e-6, atol=1e-8)
    scipys = scipy.integrate.solve_ivp(
        lambda t, y: func(t, torch.from_numpy(y)).numpy(), (0.0, 5.0), y0, method=solver, rtol=1e-6, atol=1e-8
    )
    assert ours.t.tolist() == scipys.t.tolist()
    assert torch.equal(ours.y, torch.from_numpy(scipys.y.T))
    assert ours.stats.evaluations == len(counting.times)
    assert ours.stats.rejected == 0


@pytest.mark.parametrize("solver", SOLVERS)
def test_dense_output(solver):
    y0 = double(1.0, 0.0)
    sol = solve_ivp(damped, (0.0, 2.0), y0, method=by(solver), rtol=1e-8, atol=1e-10, dense_output=True).sol
    t = torch.linspace(0.0, 2.0, 64, dtype=torch.float64).reshape(8, 8)
    assert sol(t).shape == (8, 8, 2)
    assert (sol(t).reshape(64, 2) - damped_exactly(t.flatten())).abs().max() < 3e-6


@pytest.mark.parametrize("solver", SOLVERS)
def test_single_precision(solver):
    seen = set()

    def func(t, y):
        seen.add((t.dtype, t.ndim, y.dtype))
        return -y

    t = torch.tensor([0.0, 0.3, 1.0])
    y = solve_ivp(func, (0.0, 1.0), torch.ones(2), t_eval=t, method=by(solver), rtol=1e-5, atol=1e-7).y
    assert y.dtype == torch.float32
    assert seen == {(torch.float32, 0, torch.float32)}
    assert (y - torch.exp(-t)[:, None]).abs().max() < 1e-4


@pytest.mark.parametrize("solver", [s for s in SOLVERS if s not in ("LSODA", "Radau")])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_states(solver, dtype):
    t = torch.linspace(0.0, 2.0, 9, dtype=torch.float64)
    y0 = torch.tensor([1.0 + 0.5j], dtype=dtype)
    y = solve_ivp(lambda t, y: (-1 + 2j) * y, (0.0, 2.0), y0, t_eval=t, method=by(solver), rtol=1e-5, atol=1e-7).y
    assert y.dtype == dtype
    assert (y - y0 * torch.exp((-1 + 2j) * t)[:, None]).abs().max() < 2e-4


@pytest.mark.parametrize("solver", ["LSODA", "Radau"])
def test_complex_states_are_refused_by_some(solver):
    with pytest.raises(ValueError, match=rf"{solver} takes real states only.*options=\{{'solver': 'RK45'\}}"):
        solve_ivp(lambda t, y: 1j * y, (0.0, 1.0), torch.ones(1, dtype=torch.complex128), method=by(solver))


@pytest.mark.parametrize("solver", IMPLICIT)
def test_a_stiff_problem(solver):
    def robertson(t, y):
        a, b, c = y.unbind()
        slow, fast, faster = 0.04 * a, 1e4 * b * c, 3e7 * b**2
        return torch.stack((fast - slow, slow - fast - faster, faster))

    t = double(0.0, 0.4, 40.0, 4000.0)
    y0 = double(1.0, 0.0, 0.0)
    solution = solve_ivp(robertson, (0.0, 4000.0), y0, t_eval=t, method=by(solver), rtol=1e-7, atol=1e-10)
    # Hindmarsh, "LSODE and LSODI" (1980), as printed in the documentation of LSODE.
    expected = double(0.98517, 3.3864e-5, 1.4794e-2, 0.71582, 9.1851e-6, 0.28418, 0.18320, 8.9423e-7, 0.81680)
    torch.testing.assert_close(solution.y[1:], expected.reshape(3, 3), rtol=1e-4, atol=0)
    assert solution.stats.accepted < 700


@pytest.mark.parametrize("solver", SOLVERS)
def test_tolerances_of_elements(solver):
    func, y0 = DETEST["B2 linear reaction"]
    rtol, atol = double(1e-8, 1e-4, 1e-8), double(1e-10, 1e-4, 1e-10)
    y = solve_ivp(func, (0.0, 1.0), double(*y0), method=by(solver), rtol=rtol, atol=atol).y[-1]
    assert (y - scipy_solution(func, y0, [0.0, 1.0])[-1]).abs().max() < 1e-3


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.filterwarnings("error")
def test_the_tightest_tolerances_are_taken_without_a_warning(solver):
    y = solve_ivp(lambda t, y: -y, (0.0, 0.01), double(1.0), method=by(solver), rtol=0.0, atol=1e-10).y[-1]
    assert y.item() == pytest.approx(math.exp(-0.01), abs=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_step_can_be_taken_again_to_any_earlier_time(solver):
    y0 = double(1.0, 0.0)[None]
    method = stepper(y0, solver)

    def func(t, y):
        return damped(t, y[0])[None]

    first = method.step(func, 0.0, 2.0, y0, None)
    step = method.step(func, first.t1, 2.0, first.y1, first.carry)
    assert first.t1 < step.t1 < 2.0
    inside = method.interpolant(func, step)
    for fraction in (0.3, 0.6, 0.5, 1.0):
        t = step.t0 + fraction * (step.t1 - step.t0)
        again = method.step(func, step.t0, t, step.y0, step.retry)
        assert again.t1 == t
        torch.testing.assert_close(again.y1, inside.evaluate([t]), rtol=0, atol=0)
        torch.testing.assert_close(again.y1, damped_exactly(double(t)), rtol=0, atol=1e-7)
        within = 0.5 * (step.t0 + t)
        torch.testing.assert_close(method.interpolant(func, again).evaluate([within]), inside.evaluate([within]))
    shorter = method.step(func, step.t0, t, step.y0, again.retry)
    assert torch.equal(shorter.y1, again.y1)
    onwards = method.step(func, again.t1, 2.0, again.y1, None)
    assert again.t1 < onwards.t1 <= 2.0


def test_a_solver_that_stands_elsewhere_is_not_taken_on():
    y0 = double(1.0)[None]
    method = stepper(y0)
    first = method.step(lambda t, y: -y, 0.0, 2.0, y0, None)
    for start, bound, state in [(0.0, 2.0, y0), (first.t1, 1.0, first.y1), (first.t1, 2.0, 2 * first.y1)]:
        step = method.step(lambda t, y: -y, start, bound, state, first.carry)
        assert step.carry is not first.carry
    assert method.step(lambda t, y: -y, first.t1, 2.0, first.y1, first.carry).carry is first.carry


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_a_solve_ends_on_an_event(solver, direction):
    integration = build(lambda t, y: direction * damped(t, y), double(1.0, 0.0), Times(0.0, direction * 5, ()), solver)
    layout = integration.problem.func.layout
    event = EventFunction(UserFunction(lambda t, y: y[0], "event_fn"), layout)
    states, times, status, _ = Direct().solve(replace(integration, event=event), None, None)
    assert status.outcome is Outcome.EVENT
    assert times[-1] == pytest.approx(direction * math.pi / 6, abs=1e-7)
    assert abs(states[-1, 0]) < 1e-14


def test_changes_of_the_state_on_the_way():
    """As in the backward pass of the adjoint: the solver starts anew from the changed state."""
    doubled = {0.5: lambda y: 2 * y, 0.25: lambda y: 2 * y}
    integration = build(lambda t, y: -y, double(1.0), Times(1.0, 0.0, ()), "LSODA", changes=doubled)
    ends = []

    class Ends:
        def start(self, t, y, carry): ...

        def accept(self, method, func, step, t1):
            ends.append((t1, step.y1.item()))

    status, _ = integration.run([Ends()])
    assert status.ok and {0.5, 0.25, 0.0} <= {t for t, _ in ends}
    assert ends[-1] == (0.0, pytest.approx(4 * math.e, rel=1e-7))


@pytest.mark.parametrize("solver", SOLVERS)
def test_max_step(solver):
    t = solve_ivp(lambda t, y: -y, (0.0, 1.0), double(1.0), method=by(solver), max_step=0.05).t
    assert t.diff().max() < 0.05 + 1e-12


@pytest.mark.parametrize("solver", [s for s in SOLVERS if s != "LSODA"])  # which shortens it if it is too long
def test_first_step(solver):
    t = solve_ivp(lambda t, y: -y, (0.0, 1.0), double(1.0), method=by(solver), first_step=1e-4).t
    assert t[1].item() == pytest.approx(1e-4)
    t = solve_ivp(lambda t, y: -y, (0.0, 0.01), double(1.0), method=by(solver), first_step=5.0).t
    assert t[-1] == 0.01


def test_options_are_checked():
    with pytest.raises(ValueError, match=r"unknown solver 'LSODE'.*BDF, DOP853, LSODA, RK23, RK45, Radau"):
        by("LSODE")
    with pytest.raises(ValueError, match="unknown solver 'OdeSolver'"):
        by("OdeSolver")
    with pytest.raises(ValueError, match="unknown solver 'solve_ivp'"):
        by("solve_ivp")
    with pytest.raises(TypeError, match="no option 'order'; its options: solver, first_step, max_step, min_step"):
        ScipySolver.with_options(order=3)
    with pytest.raises(ValueError, match="max_step must be positive, got -1"):
        ScipySolver.with_options(max_step=-1)
    with pytest.raises(TypeError, match="first_step must be a number, got 'small'"):
        ScipySolver.with_options(first_step="small")
    y0 = double(1.0)[None]
    norm = ErrorNorm(1e-6, 1e-6, [slice(0, 1)], y0.dtype)
    with pytest.raises(ValueError, match=r"RK45 knows no shortest step.*options=\{'solver': 'LSODA'\}"):
        by("RK45", min_step=1e-3)(y0, torch.float64, norm)
    by("RK45", min_step=0)(y0, torch.float64, norm)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.filterwarnings("ignore:lsoda")
def test_a_singularity_ends_the_solve_with_a_sentence(solver):
    with pytest.raises(SolveError) as raised:
        solve_ivp(lambda t, y: y**2, (0.0, 2.0), double(1.0), method=by(solver), rtol=1e-6, atol=1e-9)
    status = raised.value.status
    assert status.t == pytest.approx(1.0, abs=1e-4)
    assert f"SciPy's {solver} failed: " in str(raised.value)
    assert "the solution may be singular there" in str(raised.value)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_func_that_is_not_finite(solver, bad):
    for start in (0.0, 0.5):

        def func(t, y, start=start):
            return -y if t < start else torch.full_like(y, bad)

        with pytest.raises(SolveError, match=f"SciPy's {solver} failed: .*func is not finite at t = ") as raised:
            solve_ivp(func, (0.0, 2.0), double(1.0, 2.0), method=by(solver))
        assert raised.value.status.t == pytest.approx(start, abs=0.1)


@pytest.mark.parametrize("solver", SOLVERS)
def test_an_initial_state_that_is_not_finite(solver):
    with pytest.raises(SolveError, match="initial state"):
        solve_ivp(lambda t, y: -y, (0.0, 1.0), double(1.0, math.nan), method=by(solver))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", [KeyError, ValueError])
def test_exceptions_of_func_come_through(solver, kind):
    def func(t, y):
        if t > 0.3:
            raise kind("mine")
        return -y

    with pytest.raises(kind, match="mine"):
        solve_ivp(func, (0.0, 1.0), double(1.0), method=by(solver))


@pytest.mark.parametrize("solver", SOLVERS)
def test_func_may_use_its_memory_again(solver):
    memory = torch.empty(2, dtype=torch.float64)

    def func(t, y):
        return torch.mul(y, -1.0, out=memory)

    with torch.no_grad():
        y = solve_ivp(func, (0.0, 1.0), double(1.0, 2.0), method=by(solver), rtol=1e-8, atol=1e-10).y[-1]
    torch.testing.assert_close(y, math.exp(-1) * double(1.0, 2.0), rtol=1e-6, atol=0)


def test_transforms_are_refused():
    def end(y0):
        return solve_ivp(lambda t, y: -y, (0.0, 1.0), y0, method="scipy_solver").y[-1]

    with pytest.raises(RuntimeError, match="vmap"):
        torch.func.vmap(end)(torch.ones(3, 1))


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_state_without_elements(solver):
    y = solve_ivp(lambda t, y: -y, (0.0, 1.0), torch.ones(0), t_eval=[0.0, 0.5, 1.0], method=by(solver)).y
    assert y.shape == (3, 0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_late_start(solver):
    """Where the spacing of floats is large, the first steps may not move time; that alone is no failure."""
    t0 = 1e9
    y = solve_ivp(lambda t, y: -y, (t0, t0 + 2), double(1.0), method=by(solver), rtol=1e-6, atol=1e-9).y[-1]
    assert y.item() == pytest.approx(math.exp(-2), rel=1e-4)
