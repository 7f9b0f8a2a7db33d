"""Kernels compute what torch computes, operation by operation: values, steps, failures and gradients."""

import functools
import itertools
import math
import re

import pytest
import scipy.special
import torch
from torch import nn
from torch.utils import _pytree as pytree

from compilers import needs_compiler
from fused.fields import FIELDS, Network, forced, lotka_volterra, perceptron, seeded, state
from torchivp import ODE_METHODS, PIController, PIDController, SolveError, solve_ivp
from torchivp.methods.ode.runge_kutta import ExplicitRungeKutta

pytestmark = needs_compiler

D = torch.float64
METHODS = [name for name, method in ODE_METHODS.items() if issubclass(method, ExplicitRungeKutta)]
FEW = ["in place"]
"""Fields that are solved in the fast tests."""
FINE = {"method": "rk4_classic", "step_size": 0.03}
"""Steps of a size that is given: what differs is rounding alone."""


def rows_of(case, rows):
    """The state of one row as that of many, all different; without rows, itself."""
    leaves, spec = pytree.tree_flatten(case.y0)
    if rows is not None:
        leaves = [x + 0.1 * seeded(i, rows, *x.shape) for i, x in enumerate(leaves)]
        leaves = [x.abs() for x in leaves] if case.func is lotka_volterra else leaves
    return pytree.tree_unflatten(leaves, spec)


def cast(tree, dtype):
    return pytree.tree_map(lambda x: x.to(dtype) if torch.is_tensor(x) and x.is_floating_point() else x, tree)


def leaves_of(tree):
    return [x for x in pytree.tree_leaves(tree) if torch.is_tensor(x)]


def assert_same(given, expected, rtol, atol=None):
    for x, y in zip(leaves_of(given), leaves_of(expected), strict=True):
        torch.testing.assert_close(x, y, rtol=rtol, atol=rtol if atol is None else atol, equal_nan=True)


def counts(solution, rows):
    every = [solution.stats] if rows is None else solution.stats
    return [(stats.accepted, stats.rejected) for stats in every]


def solved(case, rows, backend, *, y0=None, args=None, span=None, t_eval="some", **options):
    span = span or case.span
    if isinstance(t_eval, str):
        t_eval = torch.linspace(*span, 7, dtype=D) if t_eval == "some" else None
    batch = {} if rows is None else {"batch_dims": 1}
    return solve_ivp(
        case.func,
        span,
        rows_of(case, rows) if y0 is None else y0,
        t_eval=t_eval,
        args=case.args if args is None else args,
        backend=backend,
        **({"rtol": 1e-6, "atol": 1e-8} if "step_size" not in options and "controller" not in options else {}),
        **batch,
        **options,
    )


def assert_solves_alike(case, rows, rtol=None, *, spare=0, **options):
    """Steps of a size that comes from an error estimate differ as much as the rounding of its small differences. At a
    kink a step may fail in one backend and just pass in the other: so many, `spare`, may differ, and the two are then
    as close as their errors are small."""
    rtol = rtol or (1e-12 if "step_size" in options else 1e-8)
    with torch.no_grad():
        eager, fused = (solved(case, rows, backend, **options) for backend in ("eager", "fused"))
    for ours, theirs in zip(counts(fused, rows), counts(eager, rows), strict=True):
        assert ours == pytest.approx(theirs, rel=0, abs=spare)
    assert_same(fused.y, eager.y, rtol if counts(fused, rows) == counts(eager, rows) else 1e-4)
    assert_same(fused.t, eager.t, rtol)
    return eager, fused


def gradients(case, rows, backend, dtype=D, **options):
    y0, args = rows_of(case, rows), case.args
    owned = [x.detach().to(dtype) if x.is_floating_point() else x for x in leaves_of((y0, args))]
    given, spec = pytree.tree_flatten((y0, args))
    tensors = iter(x.requires_grad_() if x.is_floating_point() else x for x in owned)
    y0, args = pytree.tree_unflatten([next(tensors) if torch.is_tensor(x) else x for x in given], spec)
    solution = solved(case, rows, backend, y0=y0, args=args, **options)
    total = sum(
        (torch.cos(torch.arange(x.numel(), dtype=D)).reshape(x.shape) * x.nan_to_num()).sum()
        for x in leaves_of(solution.y)
    )
    params = list(case.func.parameters()) if isinstance(case.func, nn.Module) else []
    wanted = [x for x in [*owned, *params] if x.is_floating_point()]
    return torch.autograd.grad(total, wanted, allow_unused=True, materialize_grads=True)


def assert_differentiates_alike(case, rows, rtol=None, **options):
    rtol = rtol or (1e-10 if "step_size" in options else 1e-7)
    eager, fused = (gradients(case, rows, backend, **options) for backend in ("eager", "fused"))
    for x, y in zip(fused, eager, strict=True):
        torch.testing.assert_close(x, y, rtol=rtol, atol=rtol * float(y.abs().max() + 1))


# --- every field -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FEW)
def test_a_field_is_solved_and_differentiated_alike(name):
    for rows in (None, 7):
        assert_solves_alike(FIELDS[name], rows)
        assert_differentiates_alike(FIELDS[name], rows, **FINE)


@pytest.mark.sweep
@pytest.mark.parametrize("name", [name for name in FIELDS if name not in FEW])
def test_every_field_is_solved_and_differentiated_alike(name):
    spare = 4 if name == "linear input" else 0  # it has a kink at every data time
    for rows in (None, 1, 7, 17, 100):
        assert_solves_alike(FIELDS[name], rows, spare=spare)
    for rows in (None, 7):
        assert_solves_alike(FIELDS[name], rows, **FINE)
        assert_differentiates_alike(FIELDS[name], rows, **FINE)
    start, end = FIELDS[name].span
    assert_solves_alike(FIELDS[name], 7, spare=spare, span=(start + 0.01 * (end - start), start))  # back in time


@pytest.mark.sweep
@pytest.mark.parametrize("name", ["Lotka-Volterra", "branches", "reduced", "in place", "ring"])
def test_fields_in_single_precision(name):
    case = FIELDS[name]
    single = case._replace(y0=cast(case.y0, torch.float32), args=cast(case.args, torch.float32))
    for rows in (None, 18):
        y0 = cast(rows_of(case, rows), torch.float32)
        eager, fused = (
            solved(single, rows, backend, y0=y0, step_size=0.05, method="rk4_classic") for backend in ("eager", "fused")
        )
        assert_same(fused.y, eager.y, 1e-4)


# --- every method ----------------------------------------------------------------------------------------------------


def test_a_method_is_that_of_the_step_loop():
    _assert_method_alike("bosh3")


@pytest.mark.sweep
@pytest.mark.parametrize("method", [name for name in METHODS if name != "bosh3"])
def test_every_method_is_that_of_the_step_loop(method):
    _assert_method_alike(method)


def _assert_method_alike(method):
    case = FIELDS["Lotka-Volterra"]._replace(span=(0.0, 1.0))
    adapts = ODE_METHODS[method].error_order is not None
    for options in [{"step_size": 0.03}, *([{}] if adapts else [])]:  # outputs off the grid
        for rows in (None, 5):
            assert_solves_alike(case, rows, method=method, **options)
            assert_differentiates_alike(case, rows, method=method, **options)
        assert_solves_alike(case, 5, method=method, t_eval=None, **options)
        assert_differentiates_alike(case, None, method=method, t_eval=None, **options)
        assert_solves_alike(case, 5, method=method, span=(0.5, 0.0), **options)
    assert_solves_alike(case, 5, method=method, step_size=1 / 12)  # outputs on the grid


# --- how steps are sized ---------------------------------------------------------------------------------------------


def test_step_sizes_are_those_of_the_step_loop():
    case = FIELDS["Lotka-Volterra"]
    for options in (
        {"controller": PIController()},
        {"controller": PIDController(kp=0.4, ki=0.3, kd=0.1)},
        {"max_step": 0.07},
        {"min_step": 1e-3},
        {"first_step": 0.5},
        {"first_step": 1e-3, "max_step": 0.3},
    ):
        for rows in (None, 5):
            assert_solves_alike(case, rows, **options)


def test_tolerances_may_be_tensors():
    case = FIELDS["Lotka-Volterra"]
    y0 = rows_of(case, 5)
    for rtol, atol in ((state(1e-4, 1e-7), 1e-9), (1e-5, torch.logspace(-4, -9, 5, dtype=D)[:, None].expand(5, 2))):
        eager, fused = (
            solve_ivp(
                case.func,
                case.span,
                y0,
                args=case.args,
                batch_dims=1,
                rtol=rtol,
                atol=atol,
                backend=backend,
                t_eval=None,
            )
            for backend in ("eager", "fused")
        )
        assert counts(fused, 5) == counts(eager, 5)
        assert_same(fused.y, eager.y, 1e-6)  # rounding of small errors moves the ends of steps


def test_any_number_of_rows():
    for rows in (0, 1, 2, 9, 10_001):
        y0 = seeded(1, rows, 2)
        eager, fused = (
            solve_ivp(forced, (0.0, 1.0), y0, rtol=1e-5, batch_dims=1, backend=backend)
            for backend in ("eager", "fused")
        )
        assert fused.y.shape == eager.y.shape
        assert_same(fused.final, eager.final, 1e-10)
        if rows < 100:
            assert counts(fused, rows) == counts(eager, rows)


# --- derivatives -----------------------------------------------------------------------------------------------------


@pytest.mark.sweep
def test_gradients_are_those_of_finite_differences():
    case = FIELDS["Lotka-Volterra"]._replace(span=(0.0, 0.5))

    def outputs(y0, rates):
        return solved(case, 3, "fused", y0=y0, args=(rates,), step_size=0.1, method="rk4_classic").y

    y0 = rows_of(case, 3).requires_grad_()
    rates = (case.args[0] + 0.1 * seeded(1, 3, 4)).requires_grad_()  # of each row
    assert torch.autograd.gradcheck(outputs, (y0, rates))
    assert torch.autograd.gradgradcheck(outputs, (y0, rates))


def test_arguments_of_each_row_have_gradients_of_their_own():
    case = FIELDS["Lotka-Volterra"]
    each = case._replace(args=(case.args[0] + 0.1 * seeded(1, 7, 4),))
    assert_solves_alike(each, 7)
    assert_differentiates_alike(each, 7)


# --- failures --------------------------------------------------------------------------------------------------------


def blows_up(t, y):
    return y * y


def root(t, y):
    return -torch.sqrt(y) - 0.1


@pytest.mark.parametrize(
    ("func", "first", "others", "options"),
    [
        (blows_up, 1.2, (0.3, 0.5, -1.0), {}),
        (root, 0.01, (4.0, 9.0, 5.0), {}),
        (blows_up, math.nan, (0.3, 0.5, -1.0), {}),
        (blows_up, 1.2, (0.3, 0.5, -1.0), {"max_steps": 20}),
        (blows_up, 1.2, (0.3, 0.5, -1.0), {"min_step": 0.01}),
        (blows_up, 9.0, (0.03, 0.05, -1.0), {"step_size": 0.05, "method": "rk4_classic"}),
    ],
)
def test_a_row_fails_as_in_the_step_loop_and_leaves_the_others_alone(func, first, others, options):
    y0 = torch.tensor([[first], *([x] for x in others)], dtype=D)
    t = torch.linspace(0, 1, 5, dtype=D)

    def solve(backend, y0):
        tolerances = {} if "step_size" in options else {"rtol": 1e-6, "atol": 1e-8}
        return solve_ivp(
            func, (0.0, 1.0), y0, t_eval=t, batch_dims=1, throw=False, backend=backend, **tolerances, **options
        )

    eager, fused = solve("eager", y0), solve("fused", y0)
    assert [status.ok for status in eager.status] == [False, True, True, True]
    numbers = re.compile(r"-?\d+(\.\d*)?(e[-+]?\d+)?|nan|inf")
    for mine, theirs in zip(fused.status, eager.status, strict=True):
        assert mine.outcome == theirs.outcome
        assert numbers.sub("#", mine.message) == numbers.sub("#", theirs.message)
    failing, *well = zip(counts(fused, 4), counts(eager, 4), strict=True)
    assert all(mine == theirs for mine, theirs in well)
    assert failing[0] == pytest.approx(failing[1], rel=0.3)  # close to a singularity rounding decides
    assert_same(fused.y, eager.y, 1e-8)
    assert_same(fused.y[1:], solve("fused", y0[1:]).y, 1e-13)
    found = []
    for backend in ("eager", "fused"):
        leaf = y0.clone().requires_grad_()
        well = solve(backend, leaf).y[1:]
        found += torch.autograd.grad(well.sum(), leaf)
    assert_same(found[1], found[0], 1e-10)
    assert found[1][0] == 0


def test_a_single_failure_raises_the_same_sentence():
    for options in ({}, {"max_steps": 10}):
        said = []
        for backend in ("eager", "fused"):
            with pytest.raises(SolveError) as caught:
                solve_ivp(blows_up, (0.0, 2.0), state(1.0), rtol=1e-6, atol=1e-8, backend=backend, **options)
            said.append(str(caught.value))
        digits = re.compile(r"\d+(\.\d*)?(e[-+]?\d+)?")
        assert digits.sub("#", said[0]) == digits.sub("#", said[1])


# --- what func uses changes ------------------------------------------------------------------------------------------


def alike(func, y0, **options):
    with torch.no_grad():
        eager, fused = (
            solve_ivp(func, (0.0, 1.0), y0, backend=backend, rtol=1e-6, **options) for backend in ("eager", "fused")
        )
    assert_same(fused.final, eager.final, 1e-10)
    return fused.final


def test_what_func_uses_may_change_between_calls():
    net, y0 = Network(), state(0.1, 0.6, -0.7)
    seen = [alike(net, y0)]
    net.rate = 0.8  # a number of Python's
    seen.append(alike(net, y0))
    with torch.no_grad():
        net.shift += 1.0
    seen.append(alike(net, y0))
    net.scale.data.mul_(2.0)
    seen.append(alike(net, y0))
    net.scale = nn.Parameter(state(0.7))
    seen.append(alike(net, y0))
    net.order = torch.tensor([1, 2, 0])
    seen.append(alike(net, y0))
    assert all((a - b).abs().max() > 1e-6 for a, b in itertools.pairwise(seen))


def test_gradients_follow_requires_grad():
    net, y0 = perceptron(2), state(0.1, 0.6)

    def func(t, y):
        return net(y)

    def solve():
        return solve_ivp(func, (0.0, 1.0), y0, backend="fused").final.sum()

    solve().backward()
    first = net[0].weight.grad.clone()
    net[0].weight.grad = None
    net[0].weight.requires_grad_(False)
    solve().backward()
    assert net[0].weight.grad is None
    net[0].weight.requires_grad_(True)
    solve().backward()
    assert_same(net[0].weight.grad, first, 1e-12)


def test_closures_made_anew_are_told_apart():
    y0 = state(0.1, 0.6)
    for rate in (0.5, 1.0):
        alike(lambda t, y: -rate * y, y0)
    for factor in (1.0, 2.0):
        alike(functools.partial(lambda t, y, factor: factor * y, factor=factor), y0)


def test_modes_of_modules_are_followed():
    net = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)).double()
    y0 = seeded(1, 1, 2)

    def func(t, y):
        return net(y)

    net.eval()
    alike(func, y0)
    net.train()
    with pytest.raises(ValueError, match="no kernel"):
        solve_ivp(func, (0.0, 1.0), y0, backend="fused")


# --- refusals --------------------------------------------------------------------------------------------------------


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.nfe, self.last = 0, None

    def forward(self, t, y):
        self.nfe += 1
        return -y


class Keeping(Counting):
    def forward(self, t, y):
        self.last = y
        return -y


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, grad):
        return grad


def reads_time(t, y):
    return -y * float(t)


def asks_time(t, y):
    return -y if t > 1 else y


def asks_state(t, y):
    return -y if y.sum() > 1 else y


def draws(t, y):
    return y * torch.rand(2, dtype=D)


def drops(t, y):
    return torch.nn.functional.dropout(y, 0.5)


def leaves_torch(t, y):
    return torch.from_numpy(scipy.special.j0(y.detach().numpy()))


def prints(t, y):
    print(t)
    return y


def differentiates(t, y):
    y = y.detach().requires_grad_()
    return torch.autograd.grad((y**2).sum(), y)[0]


def sorts(t, y):
    return y.sort().values


def solves(t, y):
    return torch.linalg.solve(torch.outer(y, y) + torch.eye(2, dtype=D), y)


def goes_complex(t, y):
    return torch.fft.fft(y).real


def halves(t, y):
    return (y.half() * 2).double()


def selects(t, y):
    return y[y > 0].sum() * y


def writes(t, y):
    y[0] = 1.0
    return y


def steps_through(t, y):
    return Straight.apply(y)


@pytest.mark.parametrize(
    ("func", "why"),
    [
        (Counting(), "func changes an object .* do not count calls .*sol.stats.evaluations"),
        (Keeping(), "func changes an object"),
        (
            reads_time,
            r"func looks at values .*test_fields.py.* return -y \* float\(t\).*write torch.where",
        ),
        (asks_time, r"depends on the values of its arguments.*test_fields.py.*if t > 1.*write torch.where"),
        (asks_state, r"depends on the values of its arguments.*test_fields.py.*if y.sum\(\) > 1"),
        (draws, "rand .*test_fields.py.*draws random numbers.*pass them through args"),
        (drops, "draws random numbers"),
        (leaves_torch, "test_fields.py.*scipy.special.j0"),
        (prints, "func prints .*test_fields.py.*print outside of func"),
        (differentiates, "write torch.func.grad or torch.func.vjp"),
        (sorts, "sort .*test_fields.py.*not among the operations.*write amax, amin, or torch.where"),
        (solves, "linalg_solve.*test_fields.py.*solve linear systems before the solve"),
        (goes_complex, "complex numbers.*write real and imaginary parts"),
        (halves, "computes in float16, and the state is float64"),
        (selects, "test_fields.py.*depends on data: write torch.where"),
        (writes, r"func writes into a tensor that it is given.*test_fields.py.*y\[0\] = 1.0.*y.clone\(\)"),
        (steps_through, "torch.autograd.Function.*test_fields.py.*derivative of its own"),
    ],
)
def test_what_cannot_be_fused_is_refused_by_name_and_line(func, why):
    with pytest.raises(ValueError, match=f"(?s)no kernel for this solve: .*{why}"):
        solve_ivp(func, (0.0, 1.0), state(0.1, 0.6), backend="fused")
    if isinstance(func, Counting):
        assert func.nfe == 0
        assert func.last is None


def test_single_precision_of_double_is_refused():
    table = torch.linspace(0, 1, 2, dtype=D)
    with pytest.raises(ValueError, match=r"computes in float64, and the state is float32: write .to\(y.dtype\)"):
        solve_ivp(lambda t, y: (y * table).float(), (0.0, 1.0), torch.ones(2), backend="fused")


def test_a_gradient_that_no_kernel_takes_is_refused_before_the_solve():
    y0 = state(0.1, 0.6)

    def func(t, y):
        return torch.lgamma(y + 3)

    assert solve_ivp(func, (0.0, 1.0), y0, backend="auto").stats.backend == "fused"
    with pytest.raises(ValueError, match="digamma in the gradient of func is not among the operations"):
        solve_ivp(func, (0.0, 1.0), y0.requires_grad_(), backend="fused")
    found = solve_ivp(func, (0.0, 1.0), y0, backend="auto")
    found.final.sum().backward()
    assert found.stats.backend != "fused"
