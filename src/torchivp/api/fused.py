"""How `solve_ivp` solves by a compiled kernel."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from torchivp.api.arguments import Gradient
from torchivp.api.fused_results import FusedResult, solution_of
from torchivp.api.rows import plan_rows
from torchivp.api.times import times_of_one, times_of_rows, times_of_span
from torchivp.boundary import caller_casts
from torchivp.error_norm import check_tolerance
from torchivp.fused.compiler import CompileError, NoCompiler
from torchivp.fused.explicit import ExplicitCoefficients
from torchivp.fused.field import Field, Reading
from torchivp.fused.kernel import Form, Kernel
from torchivp.fused.refusal import CannotFuse, FuncFails
from torchivp.fused.replayed import Replayed
from torchivp.fused.rosenbrock import RosenbrockCoefficients
from torchivp.fused.solve import FusedSolve, FusedTimes, OutOfOrder
from torchivp.fused.steps import Coefficients
from torchivp.gradients.backsolve import Backsolve
from torchivp.gradients.forward import Forward
from torchivp.gradients.node import as_node
from torchivp.integrate import Controller, check_controller
from torchivp.methods.consistent import slopes_of
from torchivp.methods.jacobian import autograd_sees
from torchivp.methods.method import Method
from torchivp.methods.ode.auto import LAST, Auto
from torchivp.methods.ode.rosenbrock import Rosenbrock
from torchivp.methods.ode.runge_kutta import ExplicitRungeKutta
from torchivp.rows.loop import RowIntegration
from torchivp.rows.targets import fixed_ends
from torchivp.solution import BatchSolution, LeanFailures, Solution
from torchivp.state import StateLayout
from torchivp.stepsize.constant import ConstantSteps, GridSteps
from torchivp.stepsize.pid import PIDController
from torchivp.times import Times
from torchivp.torch_func import may_be_tracked

Backend = Literal["eager", "fused", "auto"]

_fields: dict[Any, Field] = {}
_coefficients: dict[type[Method], Coefficients] = {}


def try_fused(backend: Backend, *problem: Any, **options: Any) -> tuple[Solution | BatchSolution | None, str]:
    """The solution by a kernel; if there is none, and need not be, why."""
    check_backend(backend)
    try:
        with LeanFailures():
            return solve_fused(*problem, **options), ""
    except CannotFuse as error:
        if backend == "fused":
            raise ValueError(f"backend='fused' has no kernel for this solve: {error}. Use backend='auto'") from None
        return None, str(error)


def check_backend(backend: Any) -> Backend:
    """Check the name of a backend.

    Raises:
        ValueError: there is none of that name.
    """
    if backend not in ("eager", "auto", "fused"):
        raise ValueError(f"unknown backend {backend!r}: it must be one of 'eager', 'fused', 'auto'")
    return backend


def take_backend(options: dict[str, Any]) -> Backend:
    """The backend among torchdiffeq's options, which is taken out of them."""
    return check_backend(options.pop("backend", "eager"))


def solve_fused(
    func: Callable[..., Any],
    t_span: Any,
    y0: Any,
    *,
    t_eval: Any,
    method: type[Method],
    rtol: Any,
    atol: Any,
    args: Sequence[Any],
    params: Sequence[Tensor] | None,
    gradient: Gradient,
    controller: Controller,
    max_steps: int,
    batch_dims: int,
    compact: bool | None,
    throw: bool,
    **others: Any,
) -> Solution | BatchSolution:
    """`solve_ivp` by a kernel; the arguments are those of `solve_ivp`, checked as far as they were by then.

    Raises:
        CannotFuse: there is no kernel for it; the message says what stands in the way.
    """
    _refuse_what_kernels_lack(method, gradient, controller, others)
    field = _field(y0, batch_dims)
    layout = field.layout

    def plan(method: type[Method] = method) -> RowIntegration:
        found, _ = plan_rows(
            func,
            t_span,
            y0,
            t_eval=t_eval,
            method=method,
            rtol=rtol,
            atol=atol,
            args=args,
            controller=controller,
            max_steps=max_steps,
            batch_dims=batch_dims,
            compact=compact,
        )
        return found

    if not (callable(func) and type(args) in (tuple, list)):
        plan()  # whose questions have longer answers
    try:
        reading = field.read(func, args)
    except FuncFails:
        _first_slopes(plan())  # raises what func raises, or says what is wrong with what it returns
        raise
    traced, inputs, roles, leaves = reading.traced, reading.inputs, reading.roles, reading.leaves
    adaptive = isinstance(controller, PIDController)

    def kernel_of(method: type[Method]) -> Kernel:
        found = traced.kernels.get((method, adaptive))
        if found is None:
            found = _checked_kernel(reading, method, adaptive, plan(), layout, field.apart(func, args, reading))
            traced.kernels[method, adaptive] = found
        if isinstance(found, CannotFuse):
            raise found
        return found

    kernel = kernel_of(method)
    times = _plain_times(t_span, t_eval, controller) or _times(t_span, t_eval, layout, controller)
    given = [leaves[role] if isinstance(role, int) else x for role, x in zip(roles, inputs, strict=True)]
    wanted = _wanted(given, roles, leaves, params)
    # The memory of a tensor in order is that of flat states.
    start, lead, shape = (y0, layout.lead, tuple(layout.shapes[0])) if layout.is_tensor else _flat(y0, layout)
    needs_gradient = torch.is_grad_enabled() and (start.requires_grad or bool(wanted))
    tensors = [start, *(given[i] for i in wanted)] if needs_gradient else None

    def solve_by(kernel: Kernel, method: type[Method], rows: np.ndarray | None = None) -> FusedResult:
        """All rows, or some."""
        solve = FusedSolve(
            kernel,
            start.detach().contiguous(),
            lead,
            shape,
            times,
            controller if isinstance(controller, PIDController) else None,
            _tolerance("rtol", rtol, layout, field),
            _tolerance("atol", atol, layout, field),
            max_steps,
            [None if role in ("t", "y") else _as_read(x, layout.dtype) for role, x in zip(roles, given, strict=True)],
            wanted if needs_gradient else [],
            lambda solve: Replayed(solve, plan(method), [given[i] for i in wanted]),
            needs_gradient or times.wanted is None,
            rows,
        )
        if needs_gradient:
            kernel.pull(tuple(wanted))  # refused now rather than in the backward pass
            solve.keep()
        return FusedResult(solve, *(solve.run() if tensors is None else as_node(solve, tensors)))

    explicit, implicit = method.parts if issubclass(method, Auto) else (method, None)
    try:
        result = solve_by(kernel, explicit)
    except OutOfOrder:  # or with NaN for no time
        times = _times(t_span, t_eval, layout, controller)
        result = solve_by(kernel, explicit)
    again = None
    if implicit is not None and result.solve.found_stiff:
        stiff = result.solve.leave_stiff()
        if (implicit, adaptive) not in traced.kernels and (why := _why_not_stiff(result.solve, stiff, plan())):
            traced.kernels[implicit, adaptive] = CannotFuse(why)
        again = solve_by(kernel_of(implicit), implicit, np.flatnonzero(stiff))
    return solution_of(result, again, layout, plan, (explicit, implicit or explicit), throw)


def _why_not_stiff(solve: FusedSolve, stiff: np.ndarray, plan: RowIntegration) -> str:
    """Why the rows that were found stiff cannot be solved by a method with derivatives; empty if they can."""
    problem, y = plan.problem, solve.last_states
    assert y is not None
    seen = autograd_sees(problem.func.on(None), problem.user_time(solve.outcomes.t), y)
    if seen[stiff].all():
        return ""
    return (
        "stability limits the steps of tsit5, and autograd does not see how func depends on the state, so that no "
        "other method can take over"
    )


def _flat(y0: Any, layout: StateLayout) -> tuple[Tensor, tuple[int, ...], tuple[int, ...]]:
    """The initial states as rows, how many there are, and the shape of one."""
    return layout.flatten(y0), (layout.rows,), (layout.size,)


def _refuse_what_kernels_lack(
    method: type[Method], gradient: Gradient, controller: Controller, others: dict[str, Any]
) -> None:
    for name, given in others.items():
        if given is not None and given is not False:
            raise CannotFuse(f"kernels do not take {name}")
    if not issubclass(method, ExplicitRungeKutta | Rosenbrock | Auto):
        raise CannotFuse(
            f"there are kernels of explicit Runge-Kutta and of Rosenbrock methods only, and {method.__name__} is "
            "neither: choose method='rodas5p' for stiff problems"
        )
    if isinstance(gradient, Backsolve):
        raise CannotFuse("kernels have the gradient of the steps taken, not gradient='backsolve'")
    if isinstance(gradient, Forward):
        raise CannotFuse("kernels differentiate backwards, not gradient='forward'")
    check_controller(controller, method)
    if may_be_tracked():
        raise CannotFuse("kernels are not followed by torch.func transforms and forward mode")
    if caller_casts():
        raise CannotFuse("kernels compute in the precision of the state, not under torch.autocast")


def _field(y0: Any, batch_dims: int) -> Field:
    """The way to read functions of such states."""
    if isinstance(y0, Tensor):
        key = (y0.shape, y0.dtype, y0.device, batch_dims)
        if key not in _fields:
            _fields[key] = _checked_field(StateLayout(y0, batch_dims))
        return _fields[key]
    return _checked_field(StateLayout(y0, batch_dims))


def _checked_field(layout: StateLayout) -> Field:
    if layout.device.type != "cpu":
        raise CannotFuse(f"kernels run on the CPU, and y0 lies on {layout.device}")
    if layout.dtype.is_complex or any(dtype != layout.dtype for dtype in layout.dtypes):
        kinds = ", ".join(sorted({str(dtype).removeprefix("torch.") for dtype in layout.dtypes}))
        raise CannotFuse(f"kernels compute in float64 or float32 throughout, and the state is {kinds}")
    if not layout.size:
        raise CannotFuse("the state has no elements")
    return Field(layout)


def _tableau(method: type[Method]) -> Coefficients:
    if method not in _coefficients:
        if issubclass(method, Rosenbrock):
            _coefficients[method] = RosenbrockCoefficients.of(method.tableau)
        elif issubclass(method, Auto):
            _coefficients[method] = replace(ExplicitCoefficients.of(method.parts[0].tableau), last=LAST.tolist())
        else:
            assert issubclass(method, ExplicitRungeKutta)
            _coefficients[method] = ExplicitCoefficients.of(method.tableau)
    return _coefficients[method]


def _bounds(layout: StateLayout) -> tuple[int, ...]:
    parts = [part for part in layout.parts() if part.stop > part.start]
    return (*(part.start for part in parts), layout.size)


def _checked_kernel(
    reading: Reading, method: type[Method], adaptive: bool, plan: RowIntegration, layout: StateLayout, apart: bool
) -> Kernel | CannotFuse:
    """The kernel, if the function as it was read is the function as it is; else why there is none.

    `apart` says whether the values of func in a row depend on that row alone.
    """
    if not (plan.problem.func.row_wise and apart):
        return CannotFuse(
            "rows of func depend on each other, or func cannot be called with one of them: pass what has an entry for "
            "each row through args; a tensor that all rows share must not begin with the dimensions of the batch: "
            "write args=(w[None],)"
        )
    form = Form(_tableau(method), layout.dtype, layout.size, _bounds(layout), adaptive, reading.kinds)
    try:
        for x in reading.inputs:
            _as_read(x, layout.dtype)
        kernel = Kernel(reading.traced, form)
    except CannotFuse as error:
        return error
    except (NoCompiler, CompileError) as error:
        return CannotFuse(str(error))
    if not _reads_right(reading, plan):
        return CannotFuse(
            "func gave other values when it was called than its graph does: it draws random numbers, or depends on "
            "what it did before"
        )
    return kernel


def _first_slopes(plan: RowIntegration) -> Tensor:
    """What func itself gives at the start, [rows, size]."""
    problem = plan.problem
    with torch.no_grad():
        return slopes_of(problem.func.on(None))(problem.user_time(problem.times.start), problem.y0)


def _reads_right(reading: Reading, plan: RowIntegration) -> bool:
    """Whether the graph gives the values of the function itself, at the starts of the first rows."""
    problem, count = plan.problem, min(2, plan.problem.rows)
    t, slopes = problem.user_time(problem.times.start), _first_slopes(plan)
    with torch.no_grad():
        for row in range(count):
            given: dict[Any, Tensor] = {"t": t[row : row + 1], "y": problem.y0[row]}
            inputs = []
            for role, x in zip(reading.roles, reading.inputs, strict=True):
                leaf = reading.leaves[role].reshape(problem.rows, *x.shape[1:]) if isinstance(role, int) else None
                value = given.get(role, x) if leaf is None else leaf[row : row + 1]
                inputs.append(value.detach().reshape(x.shape))
            found = reading.traced.module(*inputs)[0]
            if not torch.allclose(found, slopes[row], rtol=1e-4, atol=1e-6, equal_nan=True):
                return False
    return True


def _as_read(x: Tensor, dtype: torch.dtype) -> Tensor:
    """An input as the kernel reads it."""
    if x.device.type != "cpu" or x.is_complex() or x.layout is not torch.strided:
        raise CannotFuse(f"kernels read real tensors on the CPU, and func uses one that is {x.dtype} on {x.device}")
    read = x.detach().to(dtype).contiguous()
    if read.dtype is x.dtype:
        return read
    if not x.is_floating_point() and not torch.equal(read.to(x.dtype), x):
        raise CannotFuse(f"kernels read whole numbers as {dtype}, and func uses some that are too large for that")
    return read


def _tolerance(name: str, given: Any, layout: StateLayout, field: Field) -> Tensor:
    """A tolerance for each element, [rows or 1, size]."""
    if isinstance(given, float) and (name, given) in field.tolerances:
        return field.tolerances[name, given]
    checked = check_tolerance(name, given, layout)
    if not isinstance(checked, Tensor):
        checked = torch.full((1, layout.size), checked, dtype=torch.float64)
    if name == "atol":
        checked = checked.clamp(min=torch.finfo(layout.dtype).tiny)
    checked = checked.to(layout.dtype).contiguous()
    if isinstance(given, float):
        field.tolerances[name, given] = checked
    return checked


def _wanted(
    given: Sequence[Tensor], roles: Sequence[Any], leaves: Sequence[Any], params: Sequence[Tensor] | None
) -> list[int]:
    """The numbers of the inputs that a gradient flows to."""
    named = None if params is None else {id(x) for x in (*params, *leaves)}
    return [
        i
        for i, (x, role) in enumerate(zip(given, roles, strict=True))
        if role not in ("t", "y") and x.requires_grad and (named is None or id(x) in named)
    ]


def _times(t_span: Any, t_eval: Any, layout: StateLayout, controller: Controller) -> FusedTimes:
    """The times, after all of the door's questions."""
    if layout.lead:
        times, moving = times_of_rows(t_span, t_eval, layout.lead)
        single = None
    else:
        single = times_of_span(t_span, t_eval)
        times, moving = times_of_one(single)
    if moving.any:
        raise CannotFuse("kernels have no derivatives by times: pass t_span and t_eval without requires_grad")
    grid = None
    if isinstance(controller, ConstantSteps | GridSteps):
        grid = fixed_ends(controller, times) if single is None else _ends_of_one(controller, single)
    outputs, ends = (None if x is None else _as_tensor(x) for x in (times.outputs, grid))
    return FusedTimes(_as_tensor(times.start), _as_tensor(times.end), outputs, ends)


def _as_tensor(x: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x))


def _ends_of_one(controller: ConstantSteps | GridSteps, times: Times) -> np.ndarray:
    return np.array([list(controller.targets(times)) if times.start != times.end else [times.end]])


def _plain_times(t_span: Any, t_eval: Any, controller: Controller) -> FusedTimes | None:
    """Times that are numbers and a tensor, of adaptive steps: the kernel looks whether they are in order."""
    if isinstance(controller, ConstantSteps | GridSteps):
        return None
    if type(t_span) is not tuple or len(t_span) != 2 or not all(type(t) in (float, int) for t in t_span):
        return None
    start, end = t_span
    if not math.isfinite(end - start):
        return None
    wanted = None
    if t_eval is not None:
        if not isinstance(t_eval, Tensor) or t_eval.dtype != torch.float64 or t_eval.ndim != 1 or t_eval.requires_grad:
            return None
        wanted = t_eval.contiguous().unsqueeze(0)
    return FusedTimes(*_span(start, end), wanted, check="none" if wanted is None else "first")


@lru_cache(maxsize=64)
def _span(start: float, end: float) -> tuple[Tensor, Tensor]:
    """A start and an end as tensors, which nobody writes into."""
    start_of_all, end_of_all = torch.tensor([[start], [end]], dtype=torch.float64, device="cpu")
    return start_of_all, end_of_all
