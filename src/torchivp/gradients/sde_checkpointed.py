"""Differentiate a solve of an SDE by taking its steps again from checkpoints."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from torchivp.checks import check_whole_number
from torchivp.generators import GeneratorState
from torchivp.gradients.draws import check_led_back
from torchivp.gradients.sde_backward import SDEBackward, holding_noise, solve_plainly
from torchivp.gradients.sde_inputs import SDEInputs, find_sde_inputs
from torchivp.gradients.stretches import Stretch, pull_back
from torchivp.noise.source import Noise
from torchivp.sde_loop.integrate import SDEIntegration


@dataclass(frozen=True)
class SDECheckpointed:
    """The same gradient as `SDEDirect`, to rounding, in the memory of a few steps; for every method.

    The forward pass keeps the state at some of the steps. The backward pass takes the steps between two of them again,
    last stretch first, on the same noise, and lets autograd through them: one more evaluation of everything, and the
    memory of the checkpoints and of one stretch. A gradient that is to be differentiated again, `create_graph=True`,
    takes the memory of `SDEDirect`.

    Args:
        checkpoints: the largest number of states to hold; None for about the square root of the number of steps,
            which needs the least memory.

    Raises:
        TypeError: `checkpoints` is not a whole number.
        ValueError: it is less than 1.
    """

    checkpoints: int | None = None
    name = "checkpointed"

    def __post_init__(self) -> None:
        if self.checkpoints is not None:
            check_whole_number("checkpoints", self.checkpoints, 1, hint="; None chooses the number")

    def solve(self, integration: SDEIntegration, parameters: Any, owner: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Integrate; returns the states [T, rows, size] and what the method carries after the last step."""
        inputs = find_sde_inputs("gradient='checkpointed'", integration, parameters, owner)
        if inputs is None:
            return solve_plainly(integration, parameters, owner)
        return _CheckpointedSolve(inputs, self.checkpoints).solve()


@dataclass(frozen=True)
class _Checkpoint:
    """Where the step `step` starts from, and what the generators were before what follows."""

    step: int
    y: Tensor
    carry: Sequence[Tensor] | None
    drawn: GeneratorState


class _CheckpointedSolve(SDEBackward):
    """One solve: what its forward pass keeps, and how its backward pass uses it."""

    def __init__(self, inputs: SDEInputs, limit: int | None) -> None:
        super().__init__(inputs)
        steps = inputs.integration.steps
        number = max(1, math.isqrt(steps.count)) if limit is None else limit
        self.stride = max(1, math.ceil(steps.count / number))
        self.due = [step for step, _ in steps.outputs]
        self.kept: list[_Checkpoint] = []

    def run(self) -> tuple[Tensor, Sequence[Tensor]]:
        integration = holding_noise(self.inputs.integration)
        # The first stretch starts from what the user gave, so that its gradient includes that of the first carry.
        self.kept = [_Checkpoint(0, integration.y0, integration.carry, self.generators.now())]
        y, carry = integration.y0, integration.first_carry()
        outputs = [y]
        for first in range(0, integration.steps.count, self.stride):
            if first > 0:
                self.kept.append(_Checkpoint(first, y, carry, self.generators.now()))
            y, carry = integration.advance(y, carry, first, self._end(first), outputs)
        self._ended = y.clone()  # not what is returned: that would be a cycle
        return torch.stack(outputs), carry

    def gradients(
        self, tensors: Sequence[Tensor], results: Sequence[Tensor], grads: Sequence[Tensor]
    ) -> Sequence[Tensor | None]:
        noise = holding_noise(self.inputs.integration).noise
        grad, *at_end = grads
        (y, *carried), shared = pull_back(
            reversed(self.kept), lambda stretch: self._take(stretch, noise, grad), self.late, [None, *at_end]
        )
        return [grad[0] if y is None else y + grad[0], *carried, *shared]

    def _take(self, checkpoint: _Checkpoint, noise: Noise, grad: Tensor) -> Stretch:
        """Take the steps from a checkpoint to the next again, given the gradient of the outputs."""
        integration, leaves = self.inputs.on_leaves(checkpoint.y, checkpoint.carry)
        integration = replace(integration, noise=noise)
        first, last = checkpoint.step, self._end(checkpoint.step)
        begin = bisect_left(self.due, first)
        outputs: list[Any] = [None] * begin
        with self.repeated(checkpoint.drawn):
            y, carry = integration.advance(integration.y0, integration.first_carry(), first, last, outputs)
        following = [later.y for later in self.kept if later.step == last]
        check_led_back(y, following[0] if following else self._ended, checkpoint.y)
        start, seeds = 1 + len(checkpoint.carry or ()), grad[begin : len(outputs)].unbind()
        return Stretch(outputs[begin:], seeds, [y, *carry], None, leaves[:start], leaves[start:])

    def _end(self, first: int) -> int:
        """Where the stretch ends that starts with the step `first`."""
        return min(first + self.stride, self.inputs.integration.steps.count)
