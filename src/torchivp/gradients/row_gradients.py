"""How a solve of rows is differentiated: by replaying its steps, all at once or stretch by stretch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchivp.boundary import own_precision
from torchivp.dense import RowSteps
from torchivp.generators import Generators
from torchivp.gradients.backsolve import Backsolve
from torchivp.gradients.captured import LateLeaves, NoLateLeaves, search
from torchivp.gradients.checkpointed import Checkpointed
from torchivp.gradients.direct import Direct
from torchivp.gradients.draws import DrawingTrail, RecordedDraws, check_repeated
from torchivp.gradients.inputs import (
    check_parameters,
    late_leaves,
    refuse_dense_output,
    refuse_forward_mode,
    refuse_method_in_forward_mode,
    refuse_to_differentiate,
    refuse_undifferentiable,
    warn_of_computed,
)
from torchivp.gradients.node import kept
from torchivp.gradients.row_adjoint import adjoint_gradients, check_adjoint_of_rows
from torchivp.gradients.row_replay import Replay, ReplayedSteps, join_changes
from torchivp.gradients.vjp import vjp
from torchivp.methods.method import Method
from torchivp.rows.function import RowFunction
from torchivp.rows.loop import RowIntegration
from torchivp.rows.problem import RowProblem
from torchivp.rows.record import ChangeRecord, RowCheckpoint, RowOutputs, RowTrail
from torchivp.rows.steps import carry_to_keep
from torchivp.solution import LeanFailures, Stats, Status
from torchivp.torch_func import in_forward_mode, without_derivatives

_REMEDY = (
    "Pass it to func through args=(tensor,), or name it in params=(tensor,) with all others that need a gradient, or "
    "use gradient='direct'"
)


@dataclass
class RowResult:
    """What a solve of rows gives.

    Attributes:
        states: the outputs, [rows, T, size], NaN where there are none.
        times: their times, [rows, T].
        final: the last state of each row, [rows, size].
        final_times: when it is there, [rows].
        dense: the solutions within all steps, if they were asked for.
        changes: all that happened on the way; the states in it are those before it.
        status: how each row ended.
        stats: what each cost.
    """

    states: Tensor
    times: np.ndarray
    final: Tensor
    final_times: np.ndarray
    dense: list[RowSteps] | None
    changes: ChangeRecord
    status: list[Status]
    stats: list[Stats]


class RowInputs:
    """The tensors that a gradient flows to, and the problem restated on leaves in their places.

    Attributes:
        tensors: the initial states, the tensors of `args` and of the schedules that need a gradient, the parameters.
        late: looks for parameters that only later steps use, if the caller did not name them.
        used: whether anything that needs a gradient is used at all, parameters that nobody can name included.
    """

    def __init__(self, problem: RowProblem, parameters: Sequence[Tensor] | None, look: bool):
        self.problem = problem
        self.late: LateLeaves = NoLateLeaves()
        leaves = problem.func.args.leaves
        self._moving = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
        self._args = [leaves[i] for i in self._moving]
        self._schedules = [
            (number, name, value)
            for number, action in enumerate(problem.actions)
            for name, value in (("moving", action.moving), ("values", action.values))
            if value is not None and value.requires_grad
        ]
        self.parameters: list[Tensor] = []
        self.used = any(tensor.requires_grad for tensor in self.tensors)
        if parameters is not None:
            self.parameters = check_parameters("params", parameters)
        elif torch.is_grad_enabled():
            self._find_parameters(look)
        self.used = torch.is_grad_enabled() and (self.used or bool(self.parameters))

    @property
    def tensors(self) -> list[Tensor]:
        return [self.problem.y0, *self._args, *(value for *_, value in self._schedules), *self.parameters]

    def _find_parameters(self, look: bool) -> None:
        """Find what else is used, by every function at the start."""
        generators = Generators(self.problem.y0.device)
        if not look:
            with torch.enable_grad(), generators.kept():
                values, _ = self._evaluate()
            self.used |= any(value.requires_grad for value in values)
            return
        problem = self.problem
        functions = [problem.func, *(f for a in problem.actions for f in (a.g, a.apply) if f is not None)]
        self.parameters, computed = search([f.function for f in functions], self._evaluate, generators)
        self.used |= bool(computed)
        warn_of_computed(computed, _REMEDY)
        self.late = late_leaves(computed)

    def _evaluate(self) -> tuple[list[Tensor], list[Tensor]]:
        """What every function gives at the start, and the leaves that stand for its arguments."""
        isolated, leaves = self.on_leaves(self.problem.y0)
        values = [isolated.func.at_filler()]
        for action in isolated.actions:
            if action.g is not None:
                values.append(action.g.at_filler())
            if action.apply is not None and (action.values is None or action.values.shape[1]):
                extra = () if action.values is None else (action.values[:, 0],)
                values.append(action.apply.at_filler(*extra))
        return values, leaves

    def on_leaves(self, y: Tensor) -> tuple[RowProblem, list[Tensor]]:
        """The problem started from `y`, and the leaves that stand where `tensors` stood."""
        y = y.detach().requires_grad_()
        problem = self.problem
        args = list(problem.func.args.leaves)
        for i in self._moving:
            args[i] = args[i].detach().requires_grad_()
        restated = replace(problem, y0=y).with_args(problem.func.args.with_leaves(args))
        actions, scheduled = list(restated.actions), []
        for number, name, value in self._schedules:
            leaf = value.detach().requires_grad_()
            actions[number] = replace(actions[number], **{name: leaf})
            scheduled.append(leaf)
        restated = replace(restated, actions=actions)
        return restated, [y, *(args[i] for i in self._moving), *scheduled, *self.parameters]


def solve_rows(
    plan: RowIntegration,
    gradient: Direct | Checkpointed | Backsolve,
    parameters: Sequence[Tensor] | None,
    dense: bool = False,
) -> RowResult:
    """Integrate every row, so that autograd can differentiate the result as the gradient says.

    `dense` says whether to keep the solutions within all steps.

    Raises:
        ValueError: the gradient cannot be had with this method.
    """
    inputs = RowInputs(plan.problem, parameters, look=not isinstance(gradient, Direct))
    if in_forward_mode():
        refuse_method_in_forward_mode(plan.method)
        if inputs.used and not isinstance(gradient, Direct):
            refuse_forward_mode(f"gradient='{gradient.name}'", "gradient='direct'")
        gradient = Direct()  # the steps, taken again, carry tangents
    limit = gradient.checkpoints if isinstance(gradient, Checkpointed) and inputs.used else 0
    solve = _SolveOfRows(plan, inputs, limit)
    if not solve.replayable:
        watch = _UsedLater(plan.problem)
        plain = _SolveOfRows(replace(plan, problem=watch.problem), inputs, limit)
        states, _ = plain.forward(dense)
        if not watch.used:
            return plain.result(states, plain.changes.y)
        inputs.used, gradient = True, Direct()  # which finds what is used later by itself
    if not isinstance(gradient, Backsolve):
        refuse_undifferentiable(plan.method, wanted=True)
    if isinstance(gradient, Direct):
        with without_derivatives():
            solve.forward()
        start, y0 = _start(plan.problem), plan.problem.y0
        replayed = solve.replay.run(plan.problem, start, y0, None, solve.replay.most, dense)
        solve.dense = replayed.outputs.dense
        states, _ = replayed.outputs.collect(plan.problem.y0, solve.times.shape[1])
        if solve.expected is not None:
            check_repeated(states, solve.expected)
        return solve.result(states, _in_order(replayed.places, replayed.before, solve.changes.y))
    refuse_dense_output(dense)
    if isinstance(gradient, Backsolve):
        check_adjoint_of_rows(plan, gradient)
        solve.backsolve = gradient
    states, before = _Forward.apply(solve, *inputs.tensors)
    return solve.result(states, before)


class _UsedLater:
    """Whether functions that use nothing at the start that needs a gradient do so later.

    Attributes:
        problem: the same problem, whose functions are watched where gradients are enabled.
        used: whether they do, as far as they were evaluated.
    """

    def __init__(self, problem: RowProblem) -> None:
        self.problem = problem
        self.used = False
        if torch.is_grad_enabled():
            look = self._watched
            actions = [replace(a, g=a.g and look(a.g), apply=a.apply and look(a.apply)) for a in problem.actions]
            self.problem = replace(problem, func=look(problem.func), actions=actions)

    def _watched(self, watched: RowFunction) -> RowFunction:
        function = watched.function

        def look(*args: Any) -> Any:
            with torch.enable_grad():
                value = function(*args)
            if not any(x.requires_grad for x in _tensors(value)):
                return value
            self.used = True
            return pytree.tree_map_only(Tensor, Tensor.detach, value)

        return watched.calling(look)


def _start(problem: RowProblem) -> RowCheckpoint:
    return RowCheckpoint(0, problem.y0.detach(), np.zeros(problem.rows, dtype=np.int64))


def _in_order(places: np.ndarray, values: list[Tensor], like: Tensor) -> Tensor:
    """The `values`, which belong to these places, in the order of the places."""
    if not values:
        return like
    index = torch.from_numpy(places).to(like.device)
    return torch.zeros_like(like).index_copy(0, index, torch.cat(values))


def _tensors(carry: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(carry) if isinstance(x, Tensor)]


class _SolveOfRows:
    """A solve of rows that can be replayed."""

    backsolve: Backsolve | None = None
    replay: Replay
    dense: list[RowSteps] | None
    expected: Tensor | None = None
    """The outputs that steps taken again must lead to, if func draws random numbers."""
    times: np.ndarray
    changes: ChangeRecord
    status: list[Status]
    stats: list[Stats]

    def __init__(self, plan: RowIntegration, inputs: RowInputs, limit: int | None):
        self.plan = plan
        self.inputs = inputs
        self.limit = limit
        self._tangents = in_forward_mode()  # asked here: the solve itself runs without

    @property
    def replayable(self) -> bool:
        """Whether the steps may be taken again, for a gradient or with tangents."""
        return self.inputs.used or self._tangents

    def forward(self, dense: bool = False) -> tuple[Tensor, Tensor]:
        """The outputs and the states before what happened; everything else into the attributes."""
        problem = self.plan.problem
        outputs = RowOutputs(problem.times, dense)
        method, trail = self.plan.make_method(), RowTrail(problem.y0, problem.times.start, self.limit, replayable=False)
        if self.replayable:
            recorded = RecordedDraws(method, Generators(problem.y0.device))
            trail = DrawingTrail(recorded, problem.y0, problem.times.start, self.limit)
            method = cast("Method", recorded)
        self.status, self.stats = self.plan.run(outputs, trail, method)
        states, self.times = outputs.collect(problem.y0)
        self.last, self.dense = outputs.last, outputs.dense
        self.kept = outputs.last + 1
        self.changes = join_changes(trail.changes, problem)
        if isinstance(trail, DrawingTrail):
            drawn = trail.drawn() if self.backsolve is None else None
            self.replay = Replay(self.plan, trail, self.changes, drawn)
            self.expected = None if drawn is None else states.clone()  # not what is returned: that would be a cycle
        return states, self.changes.y

    def result(self, states: Tensor, before: Tensor) -> RowResult:
        """What there is, given the outputs with the last state after them, and the states before what happened."""
        rows = np.arange(len(self.last))
        entry = (self.plan.problem.select(rows), self.plan.problem.select(self.last))
        final, final_times, times = states[entry], self.times[rows, self.last], self.times
        if (wanted := self.plan.problem.times.outputs) is not None:
            early = np.flatnonzero(self.last < wanted.shape[1])
            places = (self.plan.problem.select(early), self.plan.problem.select(self.last[early]))
            nothing = states.new_full((len(early), states.shape[2]), torch.nan)
            states, times = states.index_put(places, nothing)[:, :-1], wanted
        changes = replace(self.changes, y=before)
        return RowResult(states, times, final, final_times, self.dense, changes, self.status, self.stats)

    def gradients(self, grad: Tensor, grad_before: Tensor) -> list[Tensor]:
        """The gradients of all inputs, stretch by stretch from the last to the first."""
        totals: list[Tensor] = [torch.zeros_like(x) for x in self.inputs.tensors]
        checkpoints = self.replay.trail.checkpoints
        ends = [checkpoint.step for checkpoint in checkpoints[1:]] + [self.replay.most]
        at_end: list[Any] = []
        with self.inputs.late.watching():
            for checkpoint, last in reversed(list(zip(checkpoints, ends, strict=True))):
                found = self._pull_back(checkpoint, last, grad, grad_before, at_end)
                first = torch.zeros_like(checkpoint.y) if found[0] is None else found[0]
                at_end = [first, *found[len(totals) :]]
                totals[1:] = [
                    a if b is None else a + b for a, b in zip(totals[1:], found[1 : len(totals)], strict=True)
                ]
        if at_end:
            totals[0] = at_end[0]
        return totals

    def _pull_back(
        self, checkpoint: RowCheckpoint, last: int, grad: Tensor, grad_before: Tensor, at_end: Sequence[Any]
    ) -> Sequence[Tensor | None]:
        """The gradients of what a stretch starts from: of all inputs, its first states among them, and its carry.

        They come from those of the outputs and of the states before what happened, and from `at_end`, those of the last
        states and their carry.
        """
        with torch.enable_grad():
            replayed, leaves = self._take_again(checkpoint, last)
            roots, seeds = self._seeds(replayed, grad, grad_before)
            if at_end:
                some = slice(None) if self.plan.problem.rows == 1 else self.plan.problem.select(replayed.rows)
                roots += self._ends(replayed)
                seeds += [seed if seed is None else seed[some] for seed in at_end]
        self._count_replayed(checkpoint.step, last)
        if strangers := self.inputs.late.among(roots, leaves):

            def again() -> tuple[list[Tensor], list[Tensor]]:
                replayed, leaves = self._take_again(checkpoint, last)
                return [*replayed.outputs.values, *replayed.before, *self._ends(replayed)], leaves

            self.inputs.late.meet(strangers, again)
        return vjp(roots, seeds, leaves)

    def _take_again(self, checkpoint: RowCheckpoint, last: int) -> tuple[ReplayedSteps, list[Tensor]]:
        """Take a stretch again; the leaves that it starts from are the inputs' and those of the carry."""
        problem, leaves = self.inputs.on_leaves(checkpoint.y)
        carry = pytree.tree_map_only(Tensor, lambda x: x.detach().requires_grad_(), checkpoint.carry)
        replayed = self.replay.run(problem, checkpoint, leaves[0], carry, last)
        if self.expected is not None:
            if replayed.outputs.values:
                index = tuple(torch.from_numpy(i).to(leaves[0].device) for i in replayed.outputs.places())
                check_repeated(torch.cat(replayed.outputs.values), self.expected[index])
            for following in self.replay.trail.checkpoints:
                if following.step == last:
                    check_repeated(replayed.y, following.y[problem.select(replayed.rows)])
        return replayed, [*leaves, *_tensors(carry)]

    def _ends(self, replayed: ReplayedSteps) -> list[Tensor]:
        """The last states of a stretch, and what the method keeps of its carry there."""
        return [replayed.y, *_tensors(carry_to_keep(self.replay.method, replayed.carry))]

    def _count_replayed(self, first: int, last: int) -> None:
        taken = np.clip(self.replay.steps, first, last) - first
        for stats, steps in zip(self.stats, taken.tolist(), strict=True):
            before = stats.backward.accepted if stats.backward is not None and last < self.replay.most else 0
            stats.backward = Stats(accepted=before + steps)

    def _seeds(self, replayed: ReplayedSteps, grad: Tensor, grad_before: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        roots: list[Tensor] = []
        seeds: list[Tensor] = []
        outputs = replayed.outputs
        if outputs.values:
            index = tuple(torch.from_numpy(i).to(grad.device) for i in outputs.places())
            roots.append(torch.cat(outputs.values))
            seeds.append(grad[index])
        if replayed.before:
            roots.append(torch.cat(replayed.before))
            seeds.append(grad_before[torch.from_numpy(replayed.places).to(grad.device)])
        return roots, seeds


class _Forward(torch.autograd.Function):
    """The solve as one node of the graph."""

    @staticmethod
    def forward(solve: _SolveOfRows, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        states, before = solve.forward()
        return states, before.clone()  # what this node returns holds it, and it the solve, which keeps the other

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.solve = inputs[0]
        ctx.save_for_backward(*output, *inputs[1:])

    @staticmethod
    @own_precision
    def backward(ctx: Any, *grads: Tensor) -> Any:
        with kept(ctx) as (solve, (states, before, *tensors)), torch.no_grad(), LeanFailures():
            if solve.backsolve is None:
                found = solve.gradients(*grads)
            else:
                found = adjoint_gradients(solve, solve.backsolve, states, before, *grads)
        name = "checkpointed" if solve.backsolve is None else "backsolve"
        return None, *refuse_to_differentiate(
            f"gradient='{name}' with batch_dims or events can be differentiated only once: use gradient='direct'",
            found,
            [*tensors, *grads],
        )
