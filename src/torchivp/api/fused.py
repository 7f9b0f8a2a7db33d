"""How `solve_ivp` solves by a compiled kernel."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchivp.api.fused_events import NOT_SEEN, solve_with_events
from torchivp.api.fused_kernels import (
    as_read,
    checked_kernel,
    field_of,
    first_slopes,
    named_of,
    refuse_what_kernels_lack,
    tolerance_of,
    wanted_of,
)
from torchivp.api.fused_results import FusedResult, solution_of
from torchivp.api.fused_times import Moving
from torchivp.api.row_problem import check_events
from torchivp.api.rows import plan_rows
from torchivp.api.statement import Statement
from torchivp.api.times import times_of_rows, times_of_span
from torchivp.fused.kernel import Kernel
from torchivp.fused.nvidia import on_gpu
from torchivp.fused.refusal import CannotFuse, FuncFails
from torchivp.fused.replayed import Replayed
from torchivp.fused.solve import FusedSolve, FusedTimes, OutOfOrder
from torchivp.fused.used import Used
from torchivp.gradients.node import as_node
from torchivp.methods.jacobian import autograd_sees
from torchivp.methods.method import Method
from torchivp.methods.ode.auto import Auto
from torchivp.rows.integration import RowIntegration
from torchivp.rows.targets import fixed_ends
from torchivp.rows.times import RowTimes
from torchivp.solution import BatchSolution, LeanFailures, Solution
from torchivp.state import StateLayout
from torchivp.stepsize.constant import ConstantSteps, GridSteps
from torchivp.stepsize.pid import PIDController
from torchivp.times import Times

Backend = Literal["eager", "fused", "auto"]

_NOT_BY_ITSELF = (
    "kernels on GPUs are taken only where they are asked for, by backend='fused': how fast they are there has not been "
    "measured yet"
)
"""What "auto" says of states on a GPU."""


def try_fused(backend: Backend, stated: Statement, **others: Any) -> tuple[Solution | BatchSolution | None, str]:
    """The solution by a kernel; if there is none, and need not be, why.

    `others` are what else was asked for, by names.
    """
    check_backend(backend)
    if backend == "auto" and any(isinstance(x, Tensor) and on_gpu(x.device) for x in pytree.tree_leaves(stated.y0)):
        return None, _NOT_BY_ITSELF
    try:
        with LeanFailures():
            return solve_fused(stated, others), ""
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


def solve_fused(stated: Statement, others: dict[str, Any]) -> Solution | BatchSolution:
    """`solve_ivp` by a kernel; `others` are what else was asked for, by names.

    Raises:
        CannotFuse: there is no kernel for it; the message says what stands in the way.
    """
    actions = check_events(stated.events)
    params = named_of(stated.params, stated.gradient)
    refuse_what_kernels_lack(stated, others)
    if actions:
        return solve_with_events(stated, actions, params)
    func, args, controller = stated.func, stated.args, stated.controller
    field = field_of(stated.y0, stated.batch_dims)
    layout = field.layout

    def plan(method: type[Method] = stated.method) -> RowIntegration:
        found, _ = plan_rows(replace(stated, method=method))
        return found if moving is None else moving.restated(found)

    moving = None
    if not (callable(func) and type(args) in (tuple, list)):
        plan()  # whose questions have longer answers
    try:
        reading = field.read(func, args)
    except FuncFails:
        first_slopes(plan())  # raises what func raises, or says what is wrong with what it returns
        raise
    traced = reading.traced
    adaptive = isinstance(controller, PIDController)

    def kernel_of(method: type[Method]) -> Kernel:
        found = traced.kernels.get((method, adaptive))
        if found is None:
            found = checked_kernel(reading, method, adaptive, plan(), layout, field.apart(func, args, reading))
            traced.kernels[method, adaptive] = found
        if isinstance(found, CannotFuse):
            raise found
        return found

    kernel = kernel_of(stated.method)
    plain = _plain_times(stated, layout)
    used_times, moving = (plain, None) if plain else _times(stated, layout)
    given, held = reading.tensors, reading.used
    wanted = wanted_of(reading, given, params)
    # The memory of a tensor in order is that of flat states.
    if layout.is_tensor:
        start, lead, shape = stated.y0, layout.lead, tuple(layout.shapes[0])
    else:
        start, lead, shape = layout.flatten(stated.y0), (layout.rows,), (layout.size,)
    needs_gradient = torch.is_grad_enabled() and (start.requires_grad or bool(wanted) or moving is not None)
    tensors = None
    if needs_gradient:
        tensors = [start, *(given[i] for i in wanted), *(moving.moving.tensors.values() if moving else ())]

    def solve_by(kernel: Kernel, method: type[Method], rows: np.ndarray | None = None) -> FusedResult:
        """All rows, or some."""
        by_loop = plan(method) if moving is not None else None
        solve = FusedSolve(
            kernel,
            start.detach().contiguous(),
            lead,
            shape,
            used_times,
            controller if isinstance(controller, PIDController) else None,
            tolerance_of("rtol", stated.rtol, layout, field),
            tolerance_of("atol", stated.atol, layout, field),
            stated.max_steps,
            [None if x is None else as_read(x, layout.dtype, layout.device) for x in held],
            wanted if needs_gradient else [],
            lambda solve: Replayed(
                solve, by_loop or plan(method), [given[i] for i in wanted], Used(held, solve.inputs)
            ),
            needs_gradient or used_times.wanted is None,
            rows,
            by_loop and by_loop.problem,
        )
        if needs_gradient:
            kernel.pull(tuple(wanted), moving is not None)  # refused now rather than in the backward pass
            solve.keep()
        return FusedResult(solve, *(solve.run() if tensors is None else as_node(solve, tensors)))

    method = stated.method
    explicit, implicit = method.parts if issubclass(method, Auto) else (method, None)
    try:
        result = solve_by(kernel, explicit)
    except OutOfOrder:  # or with NaN for no time
        used_times, moving = _times(stated, layout)
        result = solve_by(kernel, explicit)
    again = None
    if implicit is not None and result.solve.found_stiff:
        stiff = result.solve.leave_stiff()
        if (implicit, adaptive) not in traced.kernels and not _is_seen(result.solve, stiff, plan()):
            traced.kernels[implicit, adaptive] = CannotFuse(NOT_SEEN)
        again = solve_by(kernel_of(implicit), implicit, np.flatnonzero(stiff))
    return solution_of(result, again, layout, plan, (explicit, implicit or explicit), stated.throw, moving)


def _is_seen(solve: FusedSolve, stiff: np.ndarray, plan: RowIntegration) -> bool:
    """Whether a method with derivatives can solve the rows that were found stiff."""
    problem, y = plan.problem, solve.last_states
    assert y is not None
    return bool(autograd_sees(problem.func.on(None), problem.user_time(solve.outcomes.t), y)[stiff].all())


def _times(stated: Statement, layout: StateLayout) -> tuple[FusedTimes, Moving | None]:
    """The times, after all of the door's questions, and how they move, if they do."""
    single, controller = None, stated.controller
    if layout.lead:
        moving = Moving(*times_of_rows(stated.t_span, stated.t_eval, layout.lead))
    else:
        single = stated.times or times_of_span(stated.t_span, stated.t_eval)
        moving = Moving.of_one(single, tied=stated.times is not None)
    times, grid = moving.times, None
    if isinstance(controller, ConstantSteps | GridSteps):
        grid = fixed_ends(controller, times) if single is None else _ends_of_one(controller, single)
    outputs, ends = (None if x is None else _as_tensor(x) for x in (times.outputs, grid))
    used = FusedTimes(_as_tensor(times.start), _as_tensor(times.end), outputs, ends)
    return used, moving if moving.moving.any and torch.is_grad_enabled() else None


def _as_tensor(x: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x))


def _ends_of_one(controller: ConstantSteps | GridSteps, times: Times) -> np.ndarray:
    return np.array([list(controller.targets(times)) if times.start != times.end else [times.end]])


def _plain_times(stated: Statement, layout: StateLayout) -> FusedTimes | None:
    """Times that are numbers and a tensor, the same for all rows: the kernel looks whether they are in order.

    Steps are adaptive, or in a batch of one size, so that their ends are the same for all rows too.
    """
    t_span, t_eval, controller = stated.t_span, stated.t_eval, stated.controller
    if isinstance(controller, GridSteps) or (isinstance(controller, ConstantSteps) and not layout.lead):
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
        wanted = t_eval.cpu().contiguous().unsqueeze(0)
    grid = _grid(start, end, controller) if isinstance(controller, ConstantSteps) else None
    return FusedTimes(*_span(start, end), wanted, grid, "none" if wanted is None else "first")


@lru_cache(maxsize=64)
def _span(start: float, end: float) -> tuple[Tensor, Tensor]:
    """A start and an end as tensors, which nobody writes into."""
    start_of_all, end_of_all = torch.tensor([[start], [end]], dtype=torch.float64, device="cpu")
    return start_of_all, end_of_all


@lru_cache(maxsize=8)
def _grid(start: float, end: float, controller: ConstantSteps) -> Tensor:
    """The ends of the steps of a row of a batch, which nobody writes into."""
    one = RowTimes(np.array([start], dtype=np.float64), np.array([end], dtype=np.float64), None)
    return _as_tensor(fixed_ends(controller, one))
