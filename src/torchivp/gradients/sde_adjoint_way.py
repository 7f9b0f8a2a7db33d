"""The way back of the adjoint equations of an SDE, on the steps of the forward solve."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchivp.gradients.drift import Backwards, Drift
from torchivp.gradients.sde_adjoint_steps import STEPS, Pull, Shared, State
from torchivp.gradients.sde_inputs import SDEInputs
from torchivp.gradients.stretches import add_all
from torchivp.noise.increment import Increment
from torchivp.sde.terms import StratonovichTerms

_BACK = Backwards(
    "sdeint_adjoint",
    "gradient='checkpointed' in sdeint, or smaller steps; or ask for more outputs, from each of which the state begins "
    "anew",
    far=0.3,  # steps of strong order 1/2 are far from exact before they are lost
    nothing=0.01,
    whole=True,
)


class WayBack:
    """The backward solve on the steps of the forward one.

    Args:
        inputs: what is differentiated.
        method: the name of the method that takes the steps.
        end: the last state.
        states: the states at the outputs.
        grad: the gradient of these.
    """

    def __init__(self, inputs: SDEInputs, method: str, end: Tensor, states: Tensor, grad: Tensor) -> None:
        start = inputs.integration
        self.integration, leaves = inputs.on_leaves(start.y0, start.carry)
        terms = self.integration.terms
        shared = leaves[1 + len(inputs.carried) :]
        self.pull = Pull(StratonovichTerms(terms) if terms.sde_type == "ito" else terms, shared, inputs.late)
        self.inputs = inputs
        self.step = STEPS[method]
        self.states, self.grads = states.detach(), grad.unbind()
        self.y, self.a = end.detach(), torch.zeros_like(end)
        self.drift = Drift(self.states.transpose(0, 1), grad.transpose(0, 1), way=_BACK)
        self.totals: list[Tensor | None] = [None] * len(shared)

    def run(self) -> tuple[Tensor, Sequence[Tensor | None]]:
        """The gradients of the initial state, and of args and parameters."""
        with self.inputs.late.watching():
            self.go_back()
        self.compare(0)
        self.drift.warn()
        return self.a + self.grads[0], self.totals

    def go_back(self) -> None:
        """From the end to the start."""
        integration, outputs = self.integration, self.integration.steps.outputs
        length, left = integration.noise.block, len(self.grads) - 1
        for first in reversed(range(0, integration.steps.count, length)):
            last = min(first + length, integration.steps.count)
            increments, times = integration.increments(first, last)
            for i in range(last - first - 1, -1, -1):
                before = None
                while outputs[left][0] == first + i:
                    share, grad = outputs[left][1], self.grads[left]
                    self.a = self.a.add(grad, alpha=share)
                    if share == 1.0:
                        self.compare(left)
                        self.y = self.states[left]
                    else:  # interpolated between the ends of the step
                        before = grad * (1.0 - share) if before is None else before.add(grad, alpha=1.0 - share)
                    left -= 1
                (self.y, self.a), shared = self.take(times[i], times[i + 1], increments[i])
                self.add(shared)
                if before is not None:
                    self.a = self.a + before

    def compare(self, output: int) -> None:
        """The solve has come back to an output."""
        self.drift.compare(self.y, self.states[output], self.a, torch.arange(len(self.a)))

    def take(
        self, t0: Tensor, t1: Tensor, noise: Increment, y: Tensor | None = None, a: Tensor | None = None
    ) -> tuple[State, Shared]:
        """A step from t1 back to t0, from where the solve is, or from `y` and `a`."""
        with torch.enable_grad():
            (y, a), shared = self.step(self.pull, t0, t1, self.y if y is None else y, self.a if a is None else a, noise)
        return (y.detach(), a.detach()), shared

    def add(self, shared: Shared) -> None:
        """Add the contributions of a step."""
        for weight, found in shared:
            add_all(self.totals, found, weight)
