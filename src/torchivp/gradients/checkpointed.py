"""Differentiate by replaying the accepted steps from checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchivp.checks import check_whole_number
from torchivp.generators import Generators
from torchivp.gradients.direct import Direct
from torchivp.gradients.draws import Drawn, RecordedDraws, RepeatedDraws, check_repeated
from torchivp.gradients.inputs import (
    GradientInputs,
    find_parameters,
    refuse_dense_output,
    refuse_forward_mode,
    refuse_inside_transform,
    refuse_undifferentiable,
)
from torchivp.gradients.node import NodeSolve, as_node
from torchivp.gradients.vjp import vjp
from torchivp.integrate import Integration
from torchivp.methods.method import FlatFunc, Method, Step
from torchivp.problem import Problem
from torchivp.recording import Checkpoint, Interpolants, Outputs, Trail
from torchivp.solution import Outcome, Stats, Status
from torchivp.torch_func import inside_transform


@dataclass(frozen=True)
class Checkpointed:
    """The same gradient as `Direct`, to rounding, in the memory of a few steps.

    The forward pass keeps the times of the accepted steps and the state at some of them. The backward pass takes
    the steps between two checkpoints again, last stretch first, and lets autograd through them: one more
    evaluation of each stage, and the memory of the checkpoints and of one stretch. A second or higher derivative
    replays the whole solve at once, in the memory of `Direct`.

    Args:
        checkpoints: the largest number of states to hold; None for about the square root of the number of steps,
            which needs the least memory.

    Raises:
        TypeError: `checkpoints` is not a whole number.
        ValueError: it is less than 2.
    """

    checkpoints: int | None = None
    name = "checkpointed"

    def __post_init__(self) -> None:
        if self.checkpoints is not None:
            check_whole_number("checkpoints", self.checkpoints, 2, hint="; None chooses the number")

    def solve(
        self, integration: Integration, parameters: Sequence[Tensor] | None, interpolants: Interpolants | None
    ) -> tuple[Tensor, list[float], Status, Stats]:
        """Integrate; returns the states [T, size], their times, how it ended and what it cost."""
        if inside_transform():
            refuse_inside_transform("gradient='checkpointed'", integration.problem, parameters)
            return Direct().solve(integration, None, interpolants)
        found = find_parameters(integration, parameters)
        inputs = GradientInputs(integration.problem, found)
        if not inputs.needed:
            return Direct().solve(integration, found, interpolants)
        refuse_undifferentiable(type(integration.method), wanted=True)
        refuse_forward_mode("gradient='checkpointed'", "gradient='direct'")
        refuse_dense_output(interpolants is not None)
        solve = _CheckpointedSolve(integration, inputs, self.checkpoints)
        (states,) = as_node(solve, inputs.tensors)
        return states, solve.times, solve.status, solve.stats


class _CheckpointedSolve(NodeSolve):
    """A solve that can be replayed: what the forward pass leaves for the backward pass."""

    status: Status
    stats: Stats
    times: list[float]
    reached: int

    def __init__(self, integration: Integration, inputs: GradientInputs, limit: int | None):
        self.integration = integration
        self.inputs = inputs
        self.late = inputs.late
        self.limit = limit
        self.generators = Generators(integration.problem.y0.device)

    def forward(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """The states at the outputs; everything else goes into the attributes."""
        plain = self.integration.with_problem(self.inputs.without_gradient())
        outputs = Outputs(plain.problem.times)
        self.trail = Trail(outputs, self.limit)
        method = RecordedDraws(plain.method, self.generators)
        steps = _DrawnSteps(method)
        self.status, self.stats = replace(plain, method=cast("Method", method)).run([outputs, self.trail, steps])
        self.drawn = steps if method.any() else None
        self.reached = len(outputs.t)
        states = outputs.complete(self.status)
        self.times = outputs.t
        if self.status.outcome is Outcome.EVENT:
            self.reached = len(outputs.t)
            self.inputs.end_at(self.status.t)
        return [states]

    def gradients(
        self, tensors: Sequence[Tensor], results: Sequence[Tensor], grads: Sequence[Tensor]
    ) -> Sequence[Tensor | None]:
        """The gradients of all inputs, given that of the states, stretch by stretch from the last to the first."""
        (grad,) = grads
        totals: list[Tensor | None] = [None] * len(self.inputs.tensors)
        at_end: list[Tensor | None] = []
        self.stats.backward = Stats()
        with self.inputs.late.watching():
            for checkpoint, end in reversed(self._stretches()):
                found = self._pull_back(checkpoint, end, grad, at_end)
                at_end = [found[0], *found[len(totals) :]]
                totals[1:] = [_sum(a, b) for a, b in zip(totals[1:], found[1 : len(totals)], strict=True)]
        totals[0] = at_end[0] if at_end else None
        if self.trail.checkpoints[0].outputs:
            totals[0] = _sum(totals[0], grad[:1])
        return totals

    def _pull_back(
        self, checkpoint: Checkpoint, end: int, grad: Tensor, at_end: Sequence[Tensor | None]
    ) -> Sequence[Tensor | None]:
        """The gradients of what a stretch starts from: of all inputs, its first state among them, and its carry.

        They come from `grad`, that of the outputs, and from `at_end`, those of the last state and its carry.
        """
        with torch.enable_grad():
            kept, last, leaves = self._take_again(checkpoint, end)
        late = self.inputs.late
        if strangers := late.among([*kept, *last], leaves):

            def again() -> tuple[Sequence[Tensor], Sequence[Tensor]]:
                kept, last, leaves = self._take_again(checkpoint, end)
                return [*kept, *last], leaves

            late.meet(strangers, again)
        roots = [*kept, *last]
        first = checkpoint.outputs
        seeds: list[Any] = [grad[first : first + len(kept[0])]] if kept else []
        seeds += at_end or [None] * len(last)
        return vjp(roots, seeds, leaves)

    def _take_again(self, checkpoint: Checkpoint, end: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Take a stretch again: the outputs in it, the last state and its carry, and the leaves that it starts from."""
        problem, leaves = self.inputs.on_leaves(checkpoint.y)
        carry = pytree.tree_map_only(Tensor, lambda x: x.detach().requires_grad_(), checkpoint.carry)
        outputs, last = self._replay(problem, checkpoint, end, carry)
        kept = [torch.cat(outputs.states())] if outputs.states() else []
        assert self.stats.backward is not None
        self.stats.backward.evaluations += problem.func.evaluations
        self.stats.backward.accepted += end - checkpoint.step
        return kept, [last.y1, *_tensors(last.carry)], [*leaves, *_tensors(carry)]

    def again(self, tensors: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        start = self.trail.checkpoints[0]
        problem, leaves = self.inputs.on_leaves(start.y)
        states = [leaves[0]] * start.outputs
        if len(self.trail.times) > 1:
            outputs, _ = self._replay(problem, start, len(self.trail.times) - 1, None)
            states += outputs.states()
        missing = leaves[0].new_full((len(self.times) - sum(map(len, states)), leaves[0].shape[1]), torch.nan)
        return [torch.cat([*states, missing])], leaves

    def _replay(self, problem: Problem, start: Checkpoint, end: int, carry: Any) -> tuple[Outputs, Step]:
        outputs = Outputs(problem.times)
        outputs.resume(start.outputs, self.reached)
        times, orders = self.trail.times[start.step : end + 1], self.trail.orders[start.step : end]
        integration = self.integration.with_problem(problem)
        if self.drawn is None:
            return outputs, integration.replay(times, orders, problem.y0, carry, [outputs])
        with self.generators.kept():
            drawn = self.drawn.steps[start.step : end]
            method = RepeatedDraws(integration.method, self.generators, drawn, problem.real_dtype)
            integration = replace(integration, method=cast("Method", method))
            last = integration.replay(times, orders, problem.y0, carry, [outputs])
        there = [c.y for c in self.trail.checkpoints if c.step == end] or [self.drawn.end]
        check_repeated(last.y1, there[0])
        return outputs, last

    def _stretches(self) -> list[tuple[Checkpoint, int]]:
        """The checkpoints, each with the number of the step at which the stretch after it ends."""
        checkpoints = self.trail.checkpoints
        ends = [checkpoint.step for checkpoint in checkpoints[1:]] + [len(self.trail.times) - 1]
        return [(c, end) for c, end in zip(checkpoints, ends, strict=True) if end > c.step]


class _DrawnSteps:
    """What the generators were for every accepted step, and the state after the last."""

    end: Tensor

    def __init__(self, method: RecordedDraws) -> None:
        self._method = method
        self.steps: list[Drawn] = []

    def start(self, t: float, y: Tensor, carry: Any) -> None:
        self._method.begin()
        self.steps, self.end = [], y

    def accept(self, method: Method, func: FlatFunc, step: Step, t1: float) -> None:
        self.steps.append(self._method.accepted())
        self.end = step.y1


def _tensors(carry: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(carry) if isinstance(leaf, Tensor)]


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b
