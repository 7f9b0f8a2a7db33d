"""The doors with a kernel behind them: what they refuse, what they return, and whose errors come first."""

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.autograd import forward_ad

from compilers import needs_compiler
from torchivp import PIController, SolveError, odeint, odeint_adjoint, solve_ivp
from torchivp.api import fused_results
from torchivp.fused.field import Field
from torchivp.state import StateLayout

pytestmark = needs_compiler

Y0 = torch.tensor([1.0, 0.0], dtype=torch.float64)
ROWS = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 2.0]], dtype=torch.float64)
W = torch.tensor(2.0, dtype=torch.float64)


def oscillator(t, y, w):
    return torch.stack([y[..., 1], -w * y[..., 0]], -1)


def solve(y0=Y0, span=(0.0, 1.0), backend="fused", **options):
    return solve_ivp(oscillator, span, y0, args=(W,), backend=backend, **options)


def test_stats_say_what_took_the_steps():
    assert solve().stats.backend == "fused"
    assert solve(backend="eager").stats.backend == "eager"
    assert solve(backend="auto", norm=lambda x: x.abs().max()).stats.backend == "eager: kernels do not take norm"
    assert solve(ROWS, batch_dims=1).stats[2].backend == "fused"
    assert solve(ROWS, batch_dims=1, backend="auto", dense_output=True).stats[0].backend.startswith("eager: ")


def test_statistics_of_rows_are_made_when_they_are_looked_at(monkeypatch):
    """A million of them would take longer than the solve."""

    def never(*_):
        raise AssertionError("somebody looks at every row")

    with monkeypatch.context() as nobody:
        nobody.setattr(fused_results, "_stats_of", never)
        nobody.setattr(fused_results, "_status_of", never)
        solution, automatic = solve(ROWS, batch_dims=1), solve(ROWS, batch_dims=1, method="auto")
    assert [x.accepted > 0 for x in (*solution.stats, *automatic.stats)] == [True] * 6
    assert automatic.success.all()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"dense_output": True}, "kernels do not take dense_output"),
        ({"norm": lambda x: x.abs().max()}, "kernels do not take norm"),
        ({"mass": 2.0 * torch.eye(2, dtype=torch.float64)}, "kernels do not take mass"),
        ({"jac": torch.eye(2, dtype=torch.float64), "method": "rodas5p"}, "kernels do not take jac"),
        ({"jac_sparsity": torch.ones(2, 2), "method": "rodas5p"}, "kernels do not take jac_sparsity"),
        ({"method": "radau5"}, "Radau5 is neither: choose method=.rodas5p. for stiff problems"),
        ({"gradient": "backsolve"}, "not gradient='backsolve'"),
        ({"gradient": "forward"}, "kernels differentiate backwards, not gradient='forward'"),
        ({"y0": Y0.to(torch.complex128)}, "the state is complex128"),
        ({"y0": (Y0, Y0.float())}, "the state is float32, float64"),
    ],
)
def test_what_kernels_lack_is_refused_by_name(options, sentence):
    options = dict(options)
    y0 = options.pop("y0", Y0)
    with pytest.raises(ValueError, match=r"backend='fused' has no kernel for this solve: .*" + sentence):
        solve(y0, **options)


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="unknown backend 'jit': it must be one of 'eager', 'fused', 'auto'"):
        solve(backend="jit")
    with pytest.raises(ValueError, match="unknown backend 'jit'"):
        odeint(lambda t, y: -y, Y0, [0.0, 1.0], options={"backend": "jit"})


def test_errors_of_arguments_and_of_func_are_those_of_the_step_loop():
    with pytest.raises(TypeError, match=r"args must be a tuple, got Tensor: write args=\(args,\)"):
        solve_ivp(oscillator, (0.0, 1.0), Y0, args=W, backend="fused")
    with pytest.raises(ValueError, match="func must return dy/dt in the shape of y"):
        solve_ivp(lambda t, y: y[:1], (0.0, 1.0), Y0, backend="fused")
    with pytest.raises(ValueError, match="writes into a tensor that it is given"):
        solve_ivp(lambda t, y: y.add_(1.0), (0.0, 1.0), Y0, backend="fused")
    with pytest.raises(KeyError, match="rate"):
        solve_ivp(lambda t, y: -{}["rate"] * y, (0.0, 1.0), Y0, backend="fused")
    with pytest.raises(ValueError, match="rtol and atol are both 0"):
        solve(rtol=0.0, atol=0.0)
    with pytest.raises(ValueError, match="max_steps must be a whole number of at least 1"):
        solve(max_steps=0)


@pytest.mark.parametrize("times", [[0.0, 0.5, 0.4], [0.5, 0.5], [-0.1, 0.5], [0.5, 1.1], [0.5, float("nan")]])
def test_times_out_of_order_are_refused_as_without(times):
    t = torch.tensor(times, dtype=torch.float64)
    with pytest.raises(ValueError, match="t_eval") as expected:
        solve(backend="eager", t_eval=t)
    with pytest.raises(ValueError, match="t_eval") as found:
        solve(t_eval=t)
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("span", [(0.0, 1.0), (1.0, 0.0), (0, 2), (1.0, 1.0)])
@pytest.mark.parametrize("t_eval", [None, "within", []])
def test_results_have_the_form_of_those_of_the_step_loop(span, t_eval):
    if t_eval == "within":
        t_eval = torch.linspace(*span, 5, dtype=torch.float64) if span[0] != span[1] else [1.0]
    one, same = solve(span=span, t_eval=t_eval), solve(span=span, t_eval=t_eval, backend="eager")
    assert one.t.dtype == torch.float64 and one.t.shape == same.t.shape and one.y.shape == same.y.shape
    torch.testing.assert_close(one.t, same.t)
    torch.testing.assert_close(one.y, same.y, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(one.final, same.final, rtol=1e-9, atol=1e-9)
    assert one.t_final == same.t_final and one.message == same.message


def test_rows_have_times_of_their_own():
    start = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    end = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    t = [[0.2, 1.0], [1.0, 0.7, 0.1], []]
    one, same = (solve(ROWS, (start, end), batch_dims=1, t_eval=t, backend=backend) for backend in ("fused", "eager"))
    torch.testing.assert_close(one.y, same.y, rtol=1e-9, atol=1e-9, equal_nan=True)
    torch.testing.assert_close(one.t, same.t, equal_nan=True)
    assert [status.message for status in one.status] == [status.message for status in same.status]


def test_solutions_can_be_copied_and_sent():
    solution = solve(ROWS, batch_dims=1)
    for other in (pickle.loads(pickle.dumps(solution)), copy.deepcopy(solution)):
        assert other.status == list(solution.status) and other.stats[1:] == list(solution.stats)[1:]


def test_threads_may_solve_at_once():
    expected = [solve(span=(0.0, 1.0 + i), backend="eager").y[-1] for i in range(4)]
    found: list[torch.Tensor] = [torch.empty(0)] * 4

    def run(i):
        found[i] = solve(span=(0.0, 1.0 + i)).y[-1]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.testing.assert_close(found, expected)


def test_threads_may_read_functions_at_once():
    """What reads them changes settings of the whole process, and broke itself in each thread but one."""
    field = Field(StateLayout(Y0))
    functions = [
        lambda t, y: -y * torch.sin(t),
        lambda t, y: -y * torch.cos(t),
        lambda t, y: y.flip(-1) - y,
        lambda t, y: torch.tanh(y) - t,
    ]
    with ThreadPoolExecutor(len(functions)) as threads:
        readings = list(threads.map(lambda func: field.read(func, ()), functions))
    t, y = torch.tensor(0.3, dtype=Y0.dtype), Y0 + 0.5
    for func, reading in zip(functions, readings, strict=True):
        inputs = [t if role == "t" else y for role in reading.roles]
        torch.testing.assert_close(reading.traced.module(*inputs)[0], func(t, y))


@pytest.mark.parametrize("y0", [Y0, ROWS], ids=["single", "rows"])
def test_a_batch_of_gradients_is_that_of_the_steps(y0):
    y0 = y0.clone().requires_grad_()
    y = solve(y0, batch_dims=y0.ndim - 1).final
    basis = torch.eye(y.numel(), dtype=y.dtype).view(-1, *y.shape)
    found = torch.autograd.grad(y, y0, basis, retain_graph=True, is_grads_batched=True)[0]
    torch.testing.assert_close(found, torch.stack([torch.autograd.grad(y, y0, x, retain_graph=True)[0] for x in basis]))


def test_contexts_in_which_kernels_do_not_compute_are_left_to_the_step_loop():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert "autocast" in solve(backend="auto").stats.backend
    rows = torch.func.vmap(lambda y: solve(y, backend="auto").y[-1])(ROWS)
    torch.testing.assert_close(rows[0], solve().y[-1], rtol=1e-5, atol=1e-6)
    with forward_ad.dual_level():
        moved = solve(forward_ad.make_dual(Y0, torch.ones_like(Y0)), backend="auto").y[-1]
        assert forward_ad.unpack_dual(moved).tangent is not None


def test_no_graph_is_kept_where_none_is_wanted():
    y0 = Y0.clone().requires_grad_()
    assert solve(y0).y.requires_grad
    with torch.no_grad():
        assert not solve(y0).y.requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(solve(Y0.clone()).y[-1], solve(backend="eager").y[-1])


def test_a_solve_that_fails_says_what_it_would_have_said():
    for options in ({"max_steps": 3}, {"min_step": 0.5, "rtol": 1e-10}, {"y0": Y0 * float("nan")}):
        y0 = options.pop("y0", Y0)
        with pytest.raises(SolveError) as expected:
            solve(y0, backend="eager", **options)
        with pytest.raises(SolveError) as found:
            solve(y0, **options)
        assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("door", [odeint, odeint_adjoint])
def test_odeint_takes_it_as_an_option(door):
    class Decay(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = torch.nn.Parameter(torch.tensor([0.5, 1.5], dtype=torch.float64))

        def forward(self, t, y):
            return -self.rate * y * torch.cos(t)

    func, y0, t = Decay(), torch.ones(2, dtype=torch.float64, requires_grad=True), torch.linspace(0, 2, 9)
    for method, options in (("rk4", {"step_size": 0.1}), ("tsit5", {"max_step": 0.3})):
        states = door(func, y0, t, method=method, options={**options, "backend": "fused"})
        same = odeint(func, y0, t, method=method, options=options)
        torch.testing.assert_close(states, same, rtol=1e-9, atol=1e-9)
        inputs = [y0, func.rate]
        gradients = torch.autograd.grad(states.square().sum(), inputs)
        expected = torch.autograd.grad(same.square().sum(), inputs)
        torch.testing.assert_close(gradients, expected, rtol=1e-8, atol=1e-9)
    with pytest.raises(ValueError, match="kernels do not take jump_t"):
        door(func, y0, t, options={"backend": "fused", "jump_t": [1.0]})
    with pytest.raises(SolveError, match="max_steps = 3 step attempts"):
        door(func, y0, t, options={"backend": "fused", "max_num_steps": 3})


def test_a_controller_with_memory_takes_the_same_steps():
    one, same = (
        solve(ROWS, (0.0, 10.0), batch_dims=1, controller=PIController(), backend=b) for b in ("fused", "eager")
    )
    assert [s.accepted for s in one.stats] == [s.accepted for s in same.stats]
    torch.testing.assert_close(one.final, same.final, rtol=1e-9, atol=1e-9)
