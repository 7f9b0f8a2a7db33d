"""Steps of the adjoint equations of an SDE, backwards in time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from torchivp.gradients.captured import LateLeaves
from torchivp.gradients.vjp import vjp
from torchivp.noise.increment import Increment
from torchivp.sde.terms import Terms

State = tuple[Tensor, Tensor]
"""The state y, and the gradient a of it."""

Shared = list[tuple[float, Sequence[Tensor | None]]]
"""Contributions of a step to the gradients of args and parameters: weights, and what they multiply."""


class Pull:
    """Drift and diffusion at states, with the products of gradients and their derivatives.

    Args:
        terms: in Stratonovich's calculus.
        shared: the tensors of `args` and the parameters.
        late: looks for other tensors in each evaluation.
    """

    def __init__(self, terms: Terms, shared: Sequence[Tensor], late: LateLeaves) -> None:
        self.terms = terms
        self.shared = list(shared)
        self._late = late

    def values(self, t: Tensor, y: Tensor, noise: Increment) -> tuple[Tensor, Tensor]:
        """The drift f and the product g W, with their graph, at a leaf `y`.

        Raises:
            RuntimeError: they use a tensor that needs a gradient and was not found at the start.
        """
        found = self.terms.f_and_g_prod(t, y, noise.W)
        if strangers := self._late.among(found, [y, t, *self.shared]):
            self._late.meet(strangers, partial(self._again, t.detach().clone(), y.detach().clone(), noise.W))
        return found

    def _again(self, t: Tensor, y: Tensor, W: Tensor) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        y = y.requires_grad_()
        return self.terms.f_and_g_prod(t, y, W), [y, *self.shared]

    def field(self, t: Tensor, y: Tensor, noise: Increment) -> tuple[Tensor, Tensor]:
        """The field f dt + g W, with its graph, at a leaf in the place of `y`; and the leaf."""
        y = y.detach().requires_grad_()
        f, prod = self.values(t, y, noise)
        return prod.add(f, alpha=noise.dt), y

    def back(
        self, value: Tensor, y: Tensor, a: Tensor, shared: bool = True
    ) -> tuple[Tensor, Tensor, Sequence[Tensor | None]]:
        """The `value`, a ∂value/∂y, and, if asked for, the same for the shared tensors."""
        dy, *others = vjp([value], [a], [y, *self.shared] if shared else [y])
        return value.detach(), torch.zeros_like(a) if dy is None else dy, others


def _midpoint(pull: Pull, t0: Tensor, t1: Tensor, y: Tensor, a: Tensor, noise: Increment) -> tuple[State, Shared]:
    v, da, _ = pull.back(*pull.field(t1, y, noise), a, shared=False)
    y_middle, a_middle = y.sub(v, alpha=0.5), a.add(da, alpha=0.5)
    v, da, shared = pull.back(*pull.field(t0 + 0.5 * (t1 - t0), y_middle, noise), a_middle)
    return (y - v, a + da), [(1.0, shared)]


def _heun(pull: Pull, t0: Tensor, t1: Tensor, y: Tensor, a: Tensor, noise: Increment) -> tuple[State, Shared]:
    v1, da1, shared1 = pull.back(*pull.field(t1, y, noise), a)
    v0, da0, shared0 = pull.back(*pull.field(t0, y - v1, noise), a + da1)
    return (y.sub(v0 + v1, alpha=0.5), a.add(da0 + da1, alpha=0.5)), [(0.5, shared1), (0.5, shared0)]


def _euler_heun(pull: Pull, t0: Tensor, t1: Tensor, y: Tensor, a: Tensor, noise: Increment) -> tuple[State, Shared]:
    y1 = y.detach().requires_grad_()
    f, prod = pull.values(t1, y1, noise)
    v1, da1, shared1 = pull.back(prod, y1, a)
    drift, da, shared = pull.back(f * noise.dt, y1, a)
    y0 = (y - v1).requires_grad_()
    v0, da0, shared0 = pull.back(pull.terms.g_prod(t0, y0, noise.W), y0, a + da1)
    y, a = y - drift, a + da
    return (y.sub(v0 + v1, alpha=0.5), a.add(da0 + da1, alpha=0.5)), [(1.0, shared), (0.5, shared1), (0.5, shared0)]


def _milstein(pull: Pull, t0: Tensor, t1: Tensor, y: Tensor, a: Tensor, noise: Increment) -> tuple[State, Shared]:
    """Euler's step, and half the derivative of the noise's field in its own direction.

    With p(y) = g W and q(y, a) = a ∂p/∂y, the noise moves (y, a) backwards along (-p, q). In that direction, held
    constant, the derivative of -p is (∂p/∂y) p, and that of q, and of its like for the parameters, is q ∂p - ∂<q, p>:
    all of them are gradients of p and q with respect to a, y and the parameters.
    """
    y1, a1 = y.detach().requires_grad_(), a.detach().requires_grad_()
    f, p = pull.values(t1, y1, noise)
    leaves = [y1, *pull.shared]
    firsts: Sequence[Tensor | None] = [None] * len(leaves)
    if p.requires_grad:
        firsts = torch.autograd.grad(p, leaves, a1, allow_unused=True, create_graph=True)
    direction, q = p.detach(), firsts[0]
    seconds: Sequence[Tensor | None] = [None] * (len(leaves) + 1)
    if q is not None:
        seconds = vjp([p, q], [q.detach(), -direction], [a1, *leaves])
    drift, da, shared = pull.back(f * noise.dt, y1, a)
    y, a = y - drift - direction, a + da
    slope, bend, *curved = seconds
    if slope is not None:
        y = y.sub(slope, alpha=0.5)
    if q is not None:
        a = a + q.detach()
    if bend is not None:
        a = a.add(bend, alpha=0.5)
    return (y, a), [(1.0, shared), (1.0, [None if x is None else x.detach() for x in firsts[1:]]), (0.5, curved)]


Step = Callable[[Pull, Tensor, Tensor, Tensor, Tensor, Increment], tuple[State, Shared]]

STEPS: dict[str, Step] = {
    "midpoint": _midpoint,
    "heun": _heun,
    "euler_heun": _euler_heun,
    "milstein": _milstein,
}
"""Steps of the state y and its gradient a from t1 back to t0, with the increment of the path from t0 to t1."""
