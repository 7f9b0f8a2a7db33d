"""A solve of an SDE as one node of autograd's graph, with a backward pass of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from torchivp.boundary import own_precision
from torchivp.generators import Generators, GeneratorState
from torchivp.gradients.node import kept
from torchivp.gradients.sde_direct import SDEDirect
from torchivp.gradients.sde_inputs import SDEInputs
from torchivp.noise.source import HeldNoise
from torchivp.sde_loop.integrate import SDEIntegration
from torchivp.solution import LeanFailures


class SDEBackward(ABC):
    """A solve that computes its gradients itself.

    It keeps what its backward pass needs in attributes, but never a tensor that it returned: that would be a cycle.

    Args:
        inputs: what is differentiated.

    Attributes:
        keeps_states: whether the backward pass needs the states that were returned.
        generators: what drift and diffusion may draw random numbers from.
        drawn: what they were at the start.
        draws: whether drift and diffusion drew from them.
    """

    keeps_states: ClassVar[bool] = False

    def __init__(self, inputs: SDEInputs) -> None:
        self.inputs = inputs
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
    def forward(self) -> tuple[Tensor, Sequence[Tensor]]:
        """The states [T, rows, size] and what the method carries after the last step; called without a graph."""

    @abstractmethod
    def gradients(self, states: Tensor | None, grads: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """The gradients of all inputs, given those of the states and of the carry; called without a graph.

        `states` are those returned, if `keeps_states`.
        """

    def solve(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The states and the carry, differentiable."""
        states, *carry = _Solve.apply(self, *self.inputs.tensors)
        return states, tuple(carry)


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(solve: SDEBackward, *tensors: Tensor) -> tuple[Tensor, ...]:
        solve.drawn = solve.generators.now()
        states, carry = solve.forward()
        solve.draws = solve.generators.now() != solve.drawn
        return states, *(x.clone() for x in carry)  # a carry may be a tensor of the user's

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.solve = inputs[0]
        ctx.save_for_backward(*inputs[1:], *(output[:1] if ctx.solve.keeps_states else ()))

    @staticmethod
    @own_precision
    def backward(ctx: Any, *grads: Tensor) -> Any:
        with kept(ctx) as (solve, saved), LeanFailures():
            count = len(solve.inputs.tensors)
            if torch.is_grad_enabled():
                return None, *_differentiable_gradients(solve, grads)
            found = solve.gradients(saved[-1] if len(saved) > count else None, grads)
        return None, *(torch.zeros_like(x) if g is None else g for g, x in zip(found, saved[:count], strict=True))


def _differentiable_gradients(solve: SDEBackward, grads: Sequence[Tensor]) -> Sequence[Tensor]:
    """The gradients for `create_graph=True`: those of the steps, taken again with autograd watching."""
    inputs = solve.inputs
    with solve.repeated(solve.drawn):
        states, carry = SDEDirect().solve(inputs.integration, None, None)
    used = [i for i, x in enumerate(inputs.tensors) if x.requires_grad]
    pairs = [(x, g) for x, g in zip([states, *carry], grads, strict=True) if x.requires_grad]
    found = torch.autograd.grad(
        [x for x, _ in pairs],
        [inputs.tensors[i] for i in used],
        [g for _, g in pairs],
        create_graph=True,
        materialize_grads=True,
    )
    gradients = dict(zip(used, found, strict=True))
    return [gradients.get(i, torch.zeros_like(x)) for i, x in enumerate(inputs.tensors)]


def solve_plainly(integration: SDEIntegration, named: Any, owner: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
    """A solve where no gradient was found to compute.

    If the parameters were found and not `named`, autograd may still know of tensors that were computed elsewhere.
    """
    with torch.set_grad_enabled(torch.is_grad_enabled() and named is None):
        return SDEDirect().solve(integration, named, owner)


def holding_noise(integration: SDEIntegration) -> SDEIntegration:
    """The same integration with a noise that remembers the last blocks."""
    return replace(integration, noise=HeldNoise(integration.noise))


def add_all(totals: list[Tensor | None], found: Sequence[Tensor | None], weight: float = 1.0) -> None:
    """Add what was `found`, times `weight`, to the `totals`, in place; None is zero.

    A total is always a tensor of its own.
    """
    for i, x in enumerate(found):
        if x is None:
            continue
        total = totals[i]
        if total is None:
            totals[i] = x * weight
        else:
            total.add_(x, alpha=weight)
