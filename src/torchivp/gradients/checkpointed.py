"""Differentiate by replaying the accepted steps from checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchivp.checks import check_whole_number
from torchivp.gradients.direct import Direct
from torchivp.gradients.inputs import (
    GradientInputs,
    find_parameters,
    now,
    refuse_dense_output,
    refuse_inside_transform,
    refuse_to_differentiate,
    refuse_undifferentiable,
    refuse_unknown_leaves,
)
from torchivp.integrate import Integration
from torchivp.methods.method import Step
from torchivp.problem import Problem
from torchivp.recording import Checkpoint, Interpolants, Outputs, Trail
from torchivp.solution import Outcome, Stats, Status
from torchivp.torch_func import inside_transform


@dataclass(frozen=True)
class Checkpointed:
    """The same gradient as `Direct`, to rounding, in the memory of a few steps.

    The forward pass keeps the times of the accepted steps and the state at some of them. The backward pass takes
    the steps between two checkpoints again, last stretch first, and lets autograd through them: one more
    evaluation of each stage, and the memory of the checkpoints and of one stretch. A second derivative replays
    the whole solve at once, in the memory of `Direct`.

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
        inputs = GradientInputs(integration.problem, found, complete=parameters is not None)
        if not inputs.needed:
            return Direct().solve(integration, found, interpolants)
        refuse_undifferentiable(integration.method, inputs)
        refuse_dense_output(interpolants is not None)
        solve = _CheckpointedSolve(integration, inputs, self.checkpoints)
        states = _Forward.apply(solve, *inputs.tensors)
        return states, solve.times, solve.status, solve.stats


class _CheckpointedSolve:
    """A solve that can be replayed: what the forward pass leaves for the backward pass."""

    status: Status
    stats: Stats
    times: list[float]
    reached: int

    def __init__(self, integration: Integration, inputs: GradientInputs, limit: int | None):
        self.integration = integration
        self.inputs = inputs
        self.limit = limit

    def forward(self) -> Tensor:
        """The states at the outputs, and everything else into the attributes."""
        plain = self.integration.with_problem(self.inputs.without_gradient())
        outputs = Outputs(plain.problem.times)
        self.trail = Trail(outputs, self.limit)
        self.status, self.stats = plain.run([outputs, self.trail])
        self.reached = len(outputs.t)
        states = outputs.complete(self.status)
        self.times = outputs.t
        if self.status.outcome is Outcome.EVENT:
            self.reached = len(outputs.t)
            self.inputs.end_at(self.status.t)
        return states

    def gradients(self, grad: Tensor) -> list[Tensor]:
        """The gradients of all inputs, given that of the states, stretch by stretch from the last to the first."""
        totals: list[Tensor | None] = [None] * len(self.inputs.tensors)
        at_end: list[Tensor | None] = []
        stats = Stats()
        for checkpoint, end in reversed(self._stretches()):
            with torch.enable_grad():
                oldest = now()
                problem, leaves = self.inputs.on_leaves(checkpoint.y)
                carry = pytree.tree_map_only(Tensor, lambda x: x.detach().requires_grad_(), checkpoint.carry)
                outputs, last = self._replay(problem, checkpoint, end, carry)
                kept = [torch.cat(outputs.states())] if outputs.states() else []
            if not self.inputs.complete:
                known = [*leaves, *_tensors(carry)]
                refuse_unknown_leaves(last.y1, last.y0, oldest, known)
            roots = [*kept, last.y1, *_tensors(last.carry)]
            first = checkpoint.outputs
            seeds: list[Any] = [grad[first : first + len(kept[0])]] if kept else []
            seeds += at_end or [None] * (len(roots) - len(seeds))
            used = [i for i, root in enumerate(roots) if root.requires_grad and seeds[i] is not None]
            found = torch.autograd.grad(
                [roots[i] for i in used],
                [*leaves, *_tensors(carry)],
                [seeds[i] for i in used],
                allow_unused=True,
            )
            at_end = [found[0], *found[len(leaves) :]]
            totals[1:] = [_sum(a, b) for a, b in zip(totals[1:], found[1 : len(leaves)], strict=True)]
            stats.evaluations += problem.func.evaluations
            stats.accepted += end - checkpoint.step
        totals[0] = at_end[0] if at_end else None
        if self.trail.checkpoints[0].outputs:
            totals[0] = _sum(totals[0], grad[:1])
        self.stats.backward = stats
        return _or_zeros(totals, self.inputs.tensors)

    def second_gradients(self, grad: Tensor, seeds: Sequence[Tensor]) -> list[Tensor]:
        """The gradients of `<seeds, gradients(grad)>` with respect to `grad` and all inputs."""
        with torch.enable_grad():
            grad = grad.detach().requires_grad_()
            start = self.trail.checkpoints[0]
            problem, leaves = self.inputs.on_leaves(start.y)
            states = [leaves[0]] * start.outputs
            if len(self.trail.times) > 1:
                outputs, _ = self._replay(problem, start, len(self.trail.times) - 1, None)
                states += outputs.states()
            first = _gradients(states, leaves, grad)
            pairs = [(g, s) for g, s in zip(first, seeds, strict=True) if g is not None and g.requires_grad]
        inputs = [grad, *leaves]
        if not pairs:
            return [torch.zeros_like(x) for x in inputs]
        second = torch.autograd.grad([g for g, _ in pairs], inputs, [s for _, s in pairs], allow_unused=True)
        return _or_zeros(second, inputs)

    def _replay(self, problem: Problem, start: Checkpoint, end: int, carry: Any) -> tuple[Outputs, Step]:
        outputs = Outputs(problem.times)
        outputs.resume(start.outputs, self.reached)
        times, orders = self.trail.times[start.step : end + 1], self.trail.orders[start.step : end]
        return outputs, self.integration.with_problem(problem).replay(times, orders, problem.y0, carry, [outputs])

    def _stretches(self) -> list[tuple[Checkpoint, int]]:
        """The checkpoints, each with the number of the step at which the stretch after it ends."""
        checkpoints = self.trail.checkpoints
        ends = [checkpoint.step for checkpoint in checkpoints[1:]] + [len(self.trail.times) - 1]
        return [(c, end) for c, end in zip(checkpoints, ends, strict=True) if end > c.step]


class _Forward(torch.autograd.Function):
    """The solve as one node of the graph."""

    @staticmethod
    def forward(solve: _CheckpointedSolve, *tensors: Tensor) -> Tensor:
        return solve.forward()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.solve = inputs[0]
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return None, *_Backward.apply(ctx.solve, grads[0], *ctx.saved_tensors)


class _Backward(torch.autograd.Function):
    """The backward pass as a node of its own, so that it can be differentiated once more."""

    @staticmethod
    def forward(solve: _CheckpointedSolve, grad: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(solve.gradients(grad))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.solve = inputs[0]
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *seeds: Tensor) -> Any:
        grad, *_ = ctx.saved_tensors
        with torch.no_grad():
            second = ctx.solve.second_gradients(grad, seeds)
        return None, *refuse_to_differentiate(
            "gradient='checkpointed' can be differentiated twice, not three times: use gradient='direct'",
            second,
            [*ctx.saved_tensors, *seeds],
        )


def _gradients(states: list[Tensor], leaves: list[Tensor], grad: Tensor) -> Sequence[Tensor | None]:
    """The gradients of the leaves, differentiable, given that of the first states."""
    if not states:
        return [None] * len(leaves)
    kept = torch.cat(states)
    return torch.autograd.grad(kept, leaves, grad[: len(kept)], create_graph=True, allow_unused=True)


def _tensors(carry: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(carry) if isinstance(leaf, Tensor)]


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _or_zeros(found: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, like, strict=True)]
