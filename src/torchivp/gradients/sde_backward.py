"""A solve of an SDE as one node of autograd's graph, with a backward pass of its own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from torchivp.generators import Generators, GeneratorState
from torchivp.gradients.draws import check_led_back
from torchivp.gradients.node import NodeSolve, as_node
from torchivp.gradients.sde_direct import SDEDirect
from torchivp.gradients.sde_inputs import SDEInputs
from torchivp.noise.source import HeldNoise
from torchivp.sde_loop.integrate import SDEIntegration


class SDEBackward(NodeSolve):
    """A solve that computes its gradients itself.

    Args:
        inputs: what is differentiated.

    Attributes:
        generators: what drift and diffusion may draw random numbers from.
        drawn: what they were at the start.
        draws: whether drift and diffusion drew from them.
        ended: the last output, to which steps taken again must lead.
    """

    ended: Tensor

    def __init__(self, inputs: SDEInputs) -> None:
        self.inputs = inputs
        self.late = inputs.late
        self.generators = Generators(inputs.integration.y0.device)
        self.drawn: GeneratorState = ()
        self.draws = False

    @contextmanager
    def repeated(self, drawn: GeneratorState) -> Iterator[None]:
        """Where steps are taken again that began when the generators were `drawn`."""
        if not self.draws:
            yield
            return
        with self.generators.kept():
            self.generators.put_back(drawn)
            yield

    @abstractmethod
    def run(self) -> tuple[Tensor, Sequence[Tensor]]:
        """The states [T, rows, size] and what the method carries after the last step; called without a graph."""

    def forward(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        self.drawn = self.generators.now()
        states, carry = self.run()
        self.draws, self.ended = self.generators.now() != self.drawn, states[-1].clone()
        return states, *(x.clone() for x in carry)  # a carry may be a tensor of the user's

    def again(self, tensors: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        start = self.inputs.integration
        integration, leaves = self.inputs.on_leaves(start.y0, start.carry)
        with self.repeated(self.drawn):
            outputs, _, carry = integration.run()
        check_led_back(outputs[-1], self.ended, start.y0)
        return [torch.stack(outputs), *carry], leaves

    def solve(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The states and the carry, differentiable."""
        states, *carry = as_node(self, self.inputs.tensors)
        return states, tuple(carry)


def solve_plainly(integration: SDEIntegration, named: Any, owner: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
    """A solve where no gradient was found to compute.

    If the parameters were found and not `named`, autograd may still know of tensors that were computed elsewhere.
    """
    with torch.set_grad_enabled(torch.is_grad_enabled() and named is None):
        return SDEDirect().solve(integration, named, owner)


def holding_noise(integration: SDEIntegration) -> SDEIntegration:
    """The same integration with a noise that remembers the last blocks."""
    return replace(integration, noise=HeldNoise(integration.noise))
