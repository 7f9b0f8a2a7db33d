"""Kernels on a GPU give what they give on the processor.

The GPU is emulated (`emulated.py`). Where there is a real one, what is compared with the processor runs on that.
"""

import ctypes
import math
import threading
from contextlib import nullcontext
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from compilers import needs_compiler
from fused.emulated import Devices, emulated, needs_emulation
from fused.fields import FIELDS
from fused.test_fields import assert_differentiates_alike, assert_solves_alike, blows_up
from stiff_problems import robertson
from torchivp import ODE_METHODS, Event, PIDController, SolveError, odeint, solve_ivp
from torchivp.api.fused_kernels import as_read
from torchivp.api.fused_results import FusedResult, solution_of
from torchivp.fused import nvidia, outcomes, pull, solve
from torchivp.fused.explicit import ExplicitCoefficients
from torchivp.fused.field import Field
from torchivp.fused.kernel import Form, Kernel
from torchivp.fused.outcomes import OutcomesOnGpu
from torchivp.fused.refusal import CannotFuse
from torchivp.fused.rosenbrock import RosenbrockCoefficients
from torchivp.fused.sensitivities import Sensitivities
from torchivp.fused.solve import FusedTimes
from torchivp.state import StateLayout

REAL = torch.cuda.is_available()
HERE, THERE = torch.device("cpu"), torch.device("cuda" if REAL else "cpu")
D, F = torch.float64, torch.float32

somewhere = needs_compiler if REAL else needs_emulation
"""Marks what runs on either."""


def there():
    """Within, kernels run on a GPU; gives the driver that is emulated."""
    return nullcontext() if REAL else emulated()


def both(run):
    """What `run` gives on the processor and on the GPU, given the device."""
    here = run(HERE)
    with there():
        return here, run(THERE)


# --- the whole way ---------------------------------------------------------------------------------------------------

OUTPUTS = torch.linspace(0.0, 2.0, 5, dtype=D)


def driven(t, y, shared, own):
    """Parameters that all rows share, one that each has, and the time."""
    a, b = y.unbind(-1)
    own, t = own.reshape(a.shape), t.reshape(a.shape[:1] + (1,) * (a.ndim - 1))
    return torch.stack([-own * b + torch.sin(t), shared[..., 0] * a - shared[..., 1] * b], -1)


def problem(rows, dtype, device):
    """The tensors that gradients are of."""
    y0 = torch.tensor([1.0, 0.7], dtype=D) * torch.linspace(0.8, 1.2, max(rows, 1), dtype=D).unsqueeze(1)
    shared, own = torch.tensor([[1.5, 0.5]], dtype=D), torch.linspace(0.5, 2.0, max(rows, 1), dtype=D)[:rows]
    return [x.to(device, dtype).requires_grad_() for x in (y0[:rows], shared, own)]


def solved(rows, dtype=D, func=driven, **options):
    """A run for `both`: the solution, and the gradients of a sum of what it gives."""

    def run(device):
        y0, *args = leaves = problem(rows, dtype, device)
        solution = solve_ivp(func, (0.0, 2.0), y0, args=args, batch_dims=1, backend="fused", **options)
        value = solution.y.nan_to_num().square().sum() + solution.final.sum()
        return solution, torch.autograd.grad(value, leaves)

    return run


def costs(solution):
    return [(x.accepted, x.rejected, x.evaluations, x.jacobians, x.factorisations) for x in solution.stats]


def assert_alike(pair, rtol):
    (expected, of_expected), (found, of_found) = pair
    for name in ("y", "t", "final", "t_final"):
        x, y = getattr(found, name), getattr(expected, name)
        assert x.device.type == THERE.type and x.shape == y.shape and x.dtype == y.dtype
        torch.testing.assert_close(x.cpu(), y, rtol=rtol, atol=rtol, equal_nan=True)
    for x, y in zip(of_found, of_expected, strict=True):
        scale = float(y.abs().max()) if y.numel() else 0.0
        torch.testing.assert_close(x.cpu(), y, rtol=10 * rtol, atol=10 * rtol * scale)
    assert all(x.backend == "fused" for x in found.stats)
    assert costs(found) == costs(expected)


@somewhere
@pytest.mark.parametrize("rows", [0, 1, 63, 64, 65, 1000])
def test_any_number_of_rows(rows):
    assert_alike(both(solved(rows, t_eval=OUTPUTS)), 1e-9)


@somewhere
def test_all_ends_of_steps():
    """Their sizes follow from error estimates, small differences in which rounding shows."""
    assert_alike(both(solved(65)), 1e-5)


@somewhere
@pytest.mark.parametrize(
    "options",
    [
        {"t_eval": OUTPUTS, "method": "rk4", "step_size": 0.05},
        {"method": "rk4", "step_size": 0.3},
        {"t_eval": OUTPUTS, "method": "rodas5p"},
        pytest.param({"t_eval": OUTPUTS, "method": "rodas5p", "step_size": 0.1}, marks=pytest.mark.sweep),
        pytest.param({"t_eval": OUTPUTS, "method": "bosh3"}, marks=pytest.mark.sweep),
        pytest.param({"t_eval": OUTPUTS, "method": "euler", "step_size": 0.05}, marks=pytest.mark.sweep),
        pytest.param({"t_eval": OUTPUTS, "controller": PIDController(kp=0.2, ki=0.3, kd=0.1)}, marks=pytest.mark.sweep),
        pytest.param({"t_eval": OUTPUTS, "first_step": 0.01, "max_step": 0.1}, marks=pytest.mark.sweep),
    ],
)
def test_methods_and_steps(options):
    assert_alike(both(solved(33, **options)), 1e-9)


@somewhere
def test_single_precision():
    expected, found = both(solved(65, F, t_eval=OUTPUTS, method="tsit5", rtol=1e-4, atol=1e-5))
    torch.testing.assert_close(found[0].y.cpu(), expected[0].y, rtol=1e-4, atol=1e-4)
    for x, y in zip(found[1], expected[1], strict=True):
        assert x.dtype == F
        torch.testing.assert_close(x.cpu(), y, rtol=1e-3, atol=1e-3 * float(y.abs().max()))


@somewhere
def test_gradients_are_those_of_the_step_loop():
    with there():
        found = solved(20, t_eval=OUTPUTS)(THERE)[1]
    y0, *args = leaves = problem(20, D, HERE)
    eager = solve_ivp(driven, (0.0, 2.0), y0, args=args, batch_dims=1, t_eval=OUTPUTS, gradient="direct")
    expected = torch.autograd.grad(eager.y.square().sum() + eager.final.sum(), leaves)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x.cpu(), y, rtol=1e-9, atol=1e-9 * float(y.abs().max()))


@somewhere
@pytest.mark.parametrize("batched", [True, pytest.param(False, marks=pytest.mark.sweep)])
@pytest.mark.parametrize("options", [{"method": "tsit5"}, {"method": "rodas5p"}, {"method": "rk4", "step_size": 0.1}])
def test_derivatives_by_times(options, batched):
    def run(device):
        y0, *args = problem(5, D, device)
        y0, args = (y0, args) if batched else (y0[0], [args[0], args[1][0]])
        times = [torch.tensor(x, dtype=D, device=device, requires_grad=True) for x in (0.0, 2.0, [0.0, 0.55, 2.0])]
        start, end, outputs = times
        solution = solve_ivp(
            driven if batched else alone,
            (start, end),
            y0.detach(),
            t_eval=outputs,
            args=[x.detach() for x in args],
            batch_dims=int(batched),
            backend="fused",
            **options,
        )
        value = solution.y.square().sum() + solution.final.sum() + solution.t_final.sum() + solution.t.sum()
        return torch.autograd.grad(value, times)

    def alone(t, y, shared, own):
        return driven(t.reshape(1), y[None], shared, own.reshape(1))[0]

    for y, x in zip(*both(run), strict=True):
        assert x.device.type == THERE.type
        torch.testing.assert_close(x.cpu(), y, rtol=1e-9, atol=1e-9)


@somewhere
def test_derivatives_of_gradients():
    def run(device):
        y0, *args = leaves = problem(3, D, device)
        solution = solve_ivp(driven, (0.0, 1.0), y0, args=args, batch_dims=1, method="bosh3", backend="fused")
        grads = torch.autograd.grad(solution.final.square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(x.square().sum() for x in grads), leaves)

    for y, x in zip(*both(run), strict=True):
        torch.testing.assert_close(x.cpu(), y, rtol=1e-8, atol=1e-8 * float(y.abs().max()))


@somewhere
def test_one_problem_without_a_batch():
    """Whose time is a number; its outputs backwards in time, and by torchdiffeq's call."""
    y0 = torch.tensor([0.3, -0.2], dtype=D)
    t = torch.linspace(1.0, 0.0, 4, dtype=D)

    def run(device):
        y = odeint(lambda t, y: -y * t.cos(), y0.to(device), t.to(device), options={"backend": "fused"})
        return y, solve_ivp(lambda t, y: -y * t.cos(), (1.0, 0.0), y0.to(device), backend="fused").y

    for y, x in zip(*both(run), strict=True):
        torch.testing.assert_close(x.cpu(), y, rtol=1e-12, atol=0)


@somewhere
def test_rows_with_times_of_their_own():
    ends = torch.tensor([[0.0, 1.0], [0.0, 2.0], [1.0, -1.0]], dtype=D)
    t = torch.tensor([[0.0, 0.5, 1.0], [0.1, 0.2, 2.0], [0.5, 0.0, -1.0]], dtype=D)

    def run(device):
        y0 = problem(3, D, device)[0].detach()
        span = ends.unbind(1)
        return solve_ivp(lambda t, y: -y * t, span, y0, t_eval=t, batch_dims=1, backend="fused")

    expected, found = both(run)
    torch.testing.assert_close(found.y.cpu(), expected.y, rtol=1e-12, atol=0, equal_nan=True)
    torch.testing.assert_close(found.t_final.cpu(), expected.t_final, rtol=0, atol=0)


def perceptron(device):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        net = nn.Sequential(nn.Linear(2, 17), nn.Tanh(), nn.Linear(17, 17), nn.Tanh(), nn.Linear(17, 2))
    return net.to(device, D)


@somewhere
@pytest.mark.parametrize("method", ["tsit5", pytest.param("rodas5p", marks=pytest.mark.sweep)])
@pytest.mark.parametrize("room", [solve._SUMS, 60_000])
def test_weights_of_a_network_are_summed_over_threads(method, room):
    """By a row to a thread, or, with less room for the sums, by several."""

    def run(device):
        net, y0 = perceptron(device), problem(70, D, device)[0]
        y = solve_ivp(lambda t, y: net(y), (0.0, 1.0), y0, method=method, batch_dims=1, backend="fused").final
        return torch.autograd.grad(y.square().sum(), [y0, *net.parameters()])

    with mock.patch.object(solve, "_SUMS", room):
        expected, found = both(run)
    for y, x in zip(expected, found, strict=True):
        torch.testing.assert_close(x.cpu(), y, rtol=1e-9, atol=1e-9 * float(y.abs().max()))


@somewhere
def test_rows_that_are_found_stiff_are_solved_again():
    mu = torch.tensor([1.0, 1000.0, 2.0, 500.0], dtype=D)

    def run(device):
        y0 = torch.tensor([[2.0, 0.0]], dtype=D).repeat(4, 1).to(device).requires_grad_()
        own = mu.to(device).requires_grad_()
        options = {"t_eval": torch.linspace(0.0, 3.0, 4, dtype=D), "rtol": 1e-5, "atol": 1e-7}
        solution = solve_ivp(oscillator, (0.0, 3.0), y0, args=(own,), batch_dims=1, backend="fused", **options)
        return solution, torch.autograd.grad(solution.y.square().sum(), [y0, own])

    expected, found = both(run)
    assert [x.stiff > 0 for x in found[0].stats] == [False, True, False, True]
    torch.testing.assert_close(found[0].y.cpu(), expected[0].y, rtol=1e-8, atol=1e-8)
    for x, y in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(x.cpu(), y, rtol=1e-6, atol=1e-8)


def oscillator(t, y, mu):
    """Van der Pol's."""
    a, b = y.unbind(-1)
    return torch.stack([b, mu.reshape(a.shape) * ((1.0 - a * a) * b) - a], -1)


@somewhere
@pytest.mark.parametrize("fetched", [outcomes._FETCHED, 2])
@pytest.mark.parametrize("options", [{}, {"max_steps": 20}, {"min_step": 0.01}, {"step_size": 0.05, "method": "rk4"}])
def test_failures(options, fetched):
    """Of few rows, whose ends are fetched at once, and of many."""
    first = 9.0 if "step_size" in options else 1.2

    def run(device):
        y0 = torch.tensor([[first], [0.03], [math.nan], [-1.0]], dtype=D, device=device)
        t = torch.linspace(0, 1, 5, dtype=D)
        return solve_ivp(blows_up, (0.0, 1.0), y0, t_eval=t, batch_dims=1, throw=False, backend="fused", **options)

    with mock.patch.object(outcomes, "_FETCHED", fetched):
        expected, found = both(run)
    assert [x.ok for x in found.status] == [False, True, False, True]
    assert [x.outcome for x in found.status] == [x.outcome for x in expected.status]
    assert [x.message for x in found.status][1:] == [x.message for x in expected.status][1:]
    torch.testing.assert_close(found.y.cpu(), expected.y, rtol=1e-8, atol=1e-8, equal_nan=True)
    assert found.success.tolist() == expected.success.tolist()


@somewhere
def test_a_failure_is_raised_with_its_sentence():
    with there(), pytest.raises(SolveError, match=r"step size underflow at t = 1\.0"):
        y0 = torch.tensor([1.0], dtype=D, device=THERE)
        solve_ivp(blows_up, (0.0, 2.0), y0, rtol=1e-6, atol=1e-8, backend="fused")


@somewhere
def test_many_rows_of_which_some_are_stiff_and_some_fail():
    """What a solve must know of them is found out where they are."""
    with mock.patch.object(outcomes, "_FETCHED", 2):
        test_rows_that_are_found_stiff_are_solved_again()


# --- fields, of which the sweep has all ------------------------------------------------------------------------------

JUMPS = "branches", "linear input", "lookup"
"""Where rounding decides how often a step is tried."""


@needs_emulation
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "network" else pytest.mark.sweep) for name in FIELDS]
)
def test_fields(name):
    options = {"method": "rk4_classic", "step_size": 0.05} if name in JUMPS else {}
    with emulated():
        for rows in (None, 3):
            assert_solves_alike(FIELDS[name], rows, **options)
            assert_differentiates_alike(FIELDS[name], rows, **options)


@needs_emulation
def test_a_stiff_problem():
    t = torch.tensor([0.0, 1.0, 1e4], dtype=D)
    options = {"method": "rodas5p", "rtol": 1e-6, "atol": 1e-10, "t_eval": t}

    def run(device):
        y0 = torch.tensor([1.0, 0.0, 0.0], dtype=D)
        return solve_ivp(robertson, (0.0, 1e4), y0, backend="fused", **options)

    expected, found = both(run)
    torch.testing.assert_close(found.y, expected.y, rtol=1e-8, atol=1e-12)
    assert found.stats == expected.stats


@needs_emulation
@pytest.mark.parametrize("method", ["tsit5", "rodas5p"])
def test_sensitivities(method):
    """By kernels that carry tangents along, which fits have on the processor."""

    def run(device):
        made = Sensitivities(lambda t, y, k: torch.stack([-k * y[0] * y[1], k * y[0].sin()]), 2, 1, ODE_METHODS[method])
        y0 = torch.linspace(0.1, 1.0, 10, dtype=D).view(5, 2)
        tangents = torch.zeros(5, 3, 2, dtype=D)
        tangents[:, :2] = torch.eye(2, dtype=D)
        zero, one, t = torch.zeros(5, dtype=D), torch.ones(5, dtype=D), torch.linspace(0, 1, 3, dtype=D).expand(5, 3)
        atol = torch.full((2,), 1e-9, dtype=D)
        options = {"rtol": 1e-7, "atol": atol, "controller": PIDController(), "max_steps": 1000}
        return made.solve(y0, tangents, one.unsqueeze(0), zero, one, t, (0,), **options)

    expected, found = both(run)
    torch.testing.assert_close(found.states, expected.states, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.tangents, expected.tangents, rtol=1e-10, atol=1e-10)
    assert torch.equal(found.steps, expected.steps)


# --- how often, and by whom ------------------------------------------------------------------------------------------


@needs_emulation
def test_a_record_has_the_room_that_it_needs():
    """It is known after the first solve, which may have to be made again."""
    y0 = problem(5, D, HERE)[0].detach()

    def run(**options):
        return solve_ivp(
            lambda t, y: -y, (0.0, 10.0), y0, method="rk4", step_size=0.1, batch_dims=1, backend="fused", **options
        )

    def counted(driver, **options):
        before = driver.launched(b"solve")
        solution = run(**options)
        return driver.launched(b"solve") - before, solution

    expected = run()
    with emulated() as driver:
        first, solution = counted(driver)
        second, _ = counted(driver)
        third, _ = counted(driver, t_eval=OUTPUTS)
    assert (first, second, third) == (2, 1, 1)
    assert solution.y.shape == (5, 101, 2)
    torch.testing.assert_close(solution.y, expected.y, rtol=1e-12, atol=0)


@needs_emulation
def test_how_many_rows_ended_is_fetched_when_it_is_looked_at(monkeypatch):
    """Of the many, three numbers are, which say whether all is well."""
    monkeypatch.setattr(outcomes, "_FETCHED", 2)
    with emulated(), mock.patch.object(OutcomesOnGpu, "__getattr__", side_effect=AssertionError("fetched")):
        solution, _ = solved(5, t_eval=OUTPUTS)(HERE)
        assert solution.t_final.tolist() == [2.0] * 5
    assert all(x.accepted > 5 for x in solution.stats) and solution.success.all()


@needs_emulation
def test_what_all_rows_share_is_computed_before_them():
    """By one thread, in a launch of its own."""
    table = torch.linspace(1.0, 2.0, 4, dtype=D)
    y0 = problem(3, D, HERE)[0].detach()
    with emulated() as driver:
        before = driver.launched(b"prepare")
        shared = solve_ivp(lambda t, y: -y * torch.exp(table).sum(), (0.0, 1.0), y0, batch_dims=1, backend="fused")
        assert driver.launched(b"prepare") == before + 1
        solve_ivp(lambda t, y: -y, (0.0, 1.0), y0, batch_dims=1, backend="fused")
        assert driver.launched(b"prepare") == before + 1
    torch.testing.assert_close(shared.final, y0 * torch.exp(-torch.exp(table).sum()), rtol=1e-2, atol=1e-6)


@needs_emulation
def test_threads_share_what_is_compiled():
    found = []

    def run():
        with torch.enable_grad():
            found.append(solved(8, t_eval=OUTPUTS)(THERE))

    with emulated():
        run()
        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 5
    for solution, grads in found[1:]:
        assert torch.equal(solution.y, found[0][0].y)
        assert all(map(torch.equal, grads, found[0][1]))


@needs_emulation
def test_memory_that_a_driver_lacks():
    """Is asked for again when torch has given back what it does not use; then the driver's words are passed on."""
    y0 = torch.ones(2, dtype=D)

    def run():
        return solve_ivp(lambda t, y: -3.0 * y, (0.0, 1.0), y0, backend="fused").final

    with emulated() as driver, mock.patch("torch.cuda.empty_cache") as emptied:
        expected = run()
        driver.fail_next(2)
        assert torch.equal(run(), expected)
        assert emptied.call_count == 1
        driver.fail_next(1)
        with pytest.raises(RuntimeError, match=r"the driver of cpu refuses cuLaunchKernel: something is wrong \(CUDA_"):
            run()
        assert emptied.call_count == 1


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", ["first", "all"])
@needs_emulation
def test_outputs_that_are_not_in_order_are_those_of_the_processor(check):
    """Whether they are is found out before anything goes to the GPU, by another program than the processor's."""
    kernel = kernel_of(Field(StateLayout(torch.ones(1, dtype=D))).read(lambda t, y: -y, ()), "bosh3")
    choices = [-0.1, 0.0, 0.3, 0.7, 1.0, 1.1, math.nan]
    some = torch.cartesian_prod(*[torch.tensor(choices, dtype=D)] * 3)
    agreed = set()
    for wanted in (some[i : i + 1] for i in range(len(some))):
        for start, end in ((0.0, 1.0), (1.0, 0.0), (0.3, 0.3)):
            times = FusedTimes(torch.tensor([start], dtype=D), torch.tensor([end], dtype=D), wanted, check=check)
            expected = True
            try:
                run_kernel(kernel, times)
            except solve.OutOfOrder:
                expected = False
            assert times.in_order() == expected, (wanted, start, end)
            agreed.add(expected)
    assert agreed == {True, False}


def kernel_of(reading, method):
    kind = RosenbrockCoefficients if method == "rodas5p" else ExplicitCoefficients
    size = reading.traced.examples[reading.roles.index("y")].numel()
    form = Form(kind.of(ODE_METHODS[method].tableau), D, size, (0, size), True, reading.kinds)
    return Kernel(reading.traced, form)


def run_kernel(kernel, times):
    tolerance = torch.full((1, 1), 1e-2, dtype=D)
    return solve.FusedSolve(
        kernel, torch.ones(1, 1, dtype=D), (1,), (1,), times, PIDController(), tolerance, tolerance, 100, [None], ()
    ).run()


@needs_emulation
def test_orders_of_rows_and_of_none():
    start, end = torch.zeros(2, dtype=D), torch.tensor([1.0, -1.0], dtype=D)
    well = torch.tensor([[0.5, math.nan, 1.0], [-0.5, -0.5, -1.0]], dtype=D)
    assert FusedTimes(start, end, well, check="all").in_order()
    assert not FusedTimes(start, end, well.flip(0), check="all").in_order()
    assert FusedTimes(start, end, well.flip(0)).in_order()
    assert FusedTimes(start, end, well[:, :0], check="all").in_order()
    assert FusedTimes(start, end, None, check="all").in_order()


@needs_emulation
def test_outputs_out_of_order_are_refused_in_the_same_words():
    said = []
    for place in (nullcontext, emulated):
        with place(), pytest.raises(ValueError) as caught:
            t = torch.tensor([0.5, 0.1], dtype=D)
            solve_ivp(lambda t, y: -y, (0.0, 1.0), torch.ones(2, dtype=D), t_eval=t, backend="fused")
        said.append(str(caught.value))
    assert said[0] == said[1]


@needs_emulation
def test_kernels_on_gpus_are_asked_for():
    y0 = torch.ones(2, dtype=D)
    with emulated():
        solution = solve_ivp(lambda t, y: -y, (0.0, 1.0), y0, backend="auto")
        tree = solve_ivp(lambda t, y: {"x": -y["x"]}, (0.0, 1.0), {"x": y0}, backend="auto")
    assert solution.stats.backend == tree.stats.backend
    assert solution.stats.backend.startswith(
        "eager: kernels on GPUs are taken only where they are asked for, by backend="
    )


@needs_emulation
def test_events_are_for_the_processor():
    event = Event(lambda t, y: y[0] - 0.5)
    with emulated(), pytest.raises(ValueError, match="kernels on GPUs take steps without events: move y0 to the CPU"):
        solve_ivp(lambda t, y: -y, (0.0, 1.0), torch.ones(2, dtype=D), events=[event], backend="fused")


@needs_emulation
def test_sums_that_have_no_room_in_a_thread():
    """Of a Rosenbrock method, which adds weights up in each thread."""
    net = perceptron(HERE)
    sentence = (
        "the gradient of func sums up 393 numbers, 3144 bytes, in each thread of a GPU, which has 3000 bytes for that"
    )
    with emulated(), mock.patch.object(pull, "_SUMS_OF_THREAD", 3000), pytest.raises(ValueError, match=sentence):
        solve_ivp(lambda t, y: net(y), (0.0, 1.0), torch.ones(2, dtype=D), method="rodas5p", backend="fused")


def test_other_devices_have_no_kernels():
    y0 = torch.ones(2, device="meta")
    with pytest.raises(ValueError, match="kernels run on the CPU and on NVIDIA's GPUs, and y0 lies on meta"):
        solve_ivp(lambda t, y: -y, (0.0, 1.0), y0, backend="fused")


@needs_compiler
def test_tensors_elsewhere_are_refused():
    with pytest.raises(
        CannotFuse, match=r"read real tensors on the CPU, and func uses one that is torch\.float32 on meta"
    ):
        as_read(torch.ones(2, device="meta"), D, HERE)
    with pytest.raises(
        CannotFuse, match=r"read real tensors on cuda:0, and func uses one that is torch\.float32 on cpu"
    ):
        as_read(torch.ones(2), D, torch.device("cuda", 0))
    assert as_read(torch.tensor(2.0), D, torch.device("meta")).device.type == "meta"


# --- where memory lies -----------------------------------------------------------------------------------------------


@needs_emulation
@pytest.mark.parametrize("fetched", [outcomes._FETCHED, 2])
@pytest.mark.parametrize(
    ("method", "chosen", "outputs"),
    [
        ("tsit5", None, OUTPUTS.unsqueeze(0)),
        ("tsit5", None, None),
        ("rodas5p", None, OUTPUTS.unsqueeze(0)),
        ("rodas5p", [1, 3], None),
    ],
)
def test_all_that_a_kernel_is_told_of_lies_on_the_gpu(method, chosen, outputs, fetched, monkeypatch):
    """Tensors say that they lie there: what a launch is given is their memory, and nothing is done with others."""
    y0, shared, own = (x.detach() for x in problem(5, D, HERE))
    times = FusedTimes(torch.zeros(1, dtype=D), torch.full((1,), 2.0, dtype=D), outputs)
    some = None if chosen is None else np.array(chosen)
    devices, launched, launch = Devices(), [], nvidia.Gpu.launch

    def run(device):
        """The solve, and what it gives: outputs, gradients, times."""
        inputs = [{"t": None, "y": None, "shared": shared, 1: own}[role] for role in reading.roles]
        inputs = [None if x is None else x.to(device) for x in inputs]
        tolerance, start = torch.full((1, 2), 1e-6, dtype=D).to(device), y0.to(device)
        one = solve.FusedSolve(
            kernel,
            start,
            (5,),
            (2,),
            times,
            PIDController(),
            tolerance,
            tolerance,
            1000,
            inputs,
            wanted,
            None,
            True,
            some,
        )
        one.keep()
        values, last = one.run()
        grads = one.gradients([start, *(inputs[i] for i in wanted)], (), [2 * values.nan_to_num(), last])
        solution = solution_of(FusedResult(one, values, last), None, StateLayout(start, 1), None, (None, None), True)
        return costs(solution), [solution.y, solution.t, solution.final, solution.t_final, *grads]

    def watched(gpu, function, threads, call):
        addresses = {name: getattr(call, name) for name, kind in call._fields_ if kind is ctypes.c_void_p}
        for name, address in addresses.items():
            assert not address or devices.holds(address), f"{name} is not memory of the GPU"
        table = (ctypes.c_int64 * len(reading.roles)).from_address(addresses["inputs"])
        assert sum(map(devices.holds, table)) == len(wanted)
        launched.append(type(call).__name__)
        launch(gpu, function, threads, call)

    monkeypatch.setattr(outcomes, "_FETCHED", fetched)
    with emulated(), torch.no_grad():
        reading = Field(StateLayout(y0, 1)).read(driven, (shared, own))
        kernel = kernel_of(reading, method)
        wanted = [i for i, role in enumerate(reading.roles) if role not in ("t", "y")]
        expected_costs, expected = run(HERE)
        with devices, mock.patch.object(nvidia.Gpu, "launch", watched):
            found_costs, found = run(devices.GPU)
            assert [x.device for x in found] == [devices.GPU] * len(found)
    assert launched[0] == "SolveCall" and launched[-1] == "PullCall"
    assert found_costs == expected_costs
    assert [cost[0] > 0 for cost in found_costs] == [chosen is None or row in chosen for row in range(5)]
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x.as_subclass(torch.Tensor), y, rtol=0, atol=0, equal_nan=True)
