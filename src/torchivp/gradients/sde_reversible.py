"""Differentiate a solve of an SDE by taking its reversible steps back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchivp.gradients.drift import Backwards, Drift
from torchivp.gradients.sde_backward import SDEBackward, solve_plainly
from torchivp.gradients.sde_inputs import SDEInputs, find_sde_inputs
from torchivp.gradients.stretches import add_all
from torchivp.gradients.vjp import vjp
from torchivp.methods.sde.reversible_heun import ReversibleHeun
from torchivp.noise.increment import Increment
from torchivp.sde.terms import Terms
from torchivp.sde_loop.integrate import SDEIntegration


@dataclass(frozen=True)
class SDEReversible:
    """The same gradient as `SDEDirect`, to rounding, in the memory of one step; for the reversible Heun method.

    The forward pass keeps its end alone. The backward pass takes the steps back one by one, on the same noise, with one
    evaluation of drift and diffusion each. What rounding lost on the way there it cannot find again, and the way back
    magnifies it where paths contract, with a warning where that shows at the start: over long spans of strongly
    dissipative equations `SDECheckpointed` is safer. A gradient that is to be differentiated again,
    `create_graph=True`, takes the memory of `SDEDirect`. Kidger, Foster, Li and Lyons, "Efficient and accurate
    gradients for neural SDEs", NeurIPS (2021), Algorithm 2.
    """

    name = "reversible"

    def solve(self, integration: SDEIntegration, parameters: Any, owner: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Integrate; returns the states [T, rows, size] and what the method carries after the last step.

        Raises:
            ValueError: the method is not reversible.
        """
        if not isinstance(integration.method, ReversibleHeun):
            raise ValueError(
                "gradient='reversible' takes back the steps of method='reversible_heun' alone, and the method is "
                f"{type(integration.method).__name__}: choose that method, or gradient='checkpointed'"
            )
        inputs = find_sde_inputs("gradient='reversible'", integration, parameters, owner)
        if inputs is None:
            return solve_plainly(integration, parameters, owner)
        return _ReversibleSolve(inputs).solve()


class _ReversibleSolve(SDEBackward):
    """One solve: the end of its forward pass, and the way back from there."""

    def run(self) -> tuple[Tensor, Sequence[Tensor]]:
        outputs, y, carry = self.inputs.integration.run()
        self.end = (y, carry[2])
        return torch.stack(outputs), carry

    def gradients(
        self, tensors: Sequence[Tensor], results: Sequence[Tensor], grads: Sequence[Tensor]
    ) -> Sequence[Tensor | None]:
        before = self.generators.now()
        with self.inputs.late.watching():
            found = _WayBack(self.inputs, *self.end, *grads).run()
        if self.generators.now() != before:
            raise RuntimeError(
                "the SDE draws random numbers, which gradient='reversible' (adjoint_method='adjoint_reversible_heun') "
                "cannot draw again on the way back: use sdeint with gradient='checkpointed'"
            )
        return found


class _Evaluation:
    """The drift and the diffusion at one point, with the graph that leads there."""

    __slots__ = ("_roots", "_z", "f", "g")

    def __init__(self, terms: Terms, t: Tensor, z: Tensor) -> None:
        with torch.enable_grad():
            self._z = z.detach().requires_grad_()
            f, g = self._roots = terms.f_and_g(t, self._z)
        self.f, self.g = f.detach(), g.detach()

    def pull(self, df: Tensor, dg: Tensor, shared: Sequence[Tensor], totals: list[Tensor | None]) -> Tensor | None:
        """The gradient of the point from those of drift and diffusion; those of the `shared` tensors are added up."""
        dz, *found = vjp(self._roots, [df, dg], [self._z, *shared])
        add_all(totals, found)
        return dz

    def graph(self, shared: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Drift and diffusion with their graph, and the leaves that stand in it for inputs."""
        return self._roots, [self._z, *shared]


_BACK = Backwards(
    "gradient='reversible' (adjoint_method='adjoint_reversible_heun')",
    "gradient='checkpointed' in sdeint",
    far=1e-3,  # steps that are exact lead back much nearer than equations solved backwards do
    nothing=1.0,
)


class _WayBack:
    """The backward pass: the state (y, z) at the end of a step, and the gradients of all that the step led to.

    A step from (y, f, g, z) to (y', f', g', z') is z' = 2 y - z + f dt + g W, then f' and g' at z', then y' = y + (f +
    f') dt / 2 + (g + g') W / 2.

    Args:
        inputs: what is differentiated.
        y: the last state.
        z: the last point at which drift and diffusion were evaluated.
        grad: the gradient of the states returned.
        df: the gradient of the last drift, as the method carries it.
        dg: the gradient of the last diffusion.
        dz: the gradient of the last z.
    """

    def __init__(self, inputs: SDEInputs, y: Tensor, z: Tensor, grad: Tensor, df: Tensor, dg: Tensor, dz: Tensor):
        self.inputs = inputs
        start = inputs.integration
        self.integration, leaves = inputs.on_leaves(start.y0, start.carry)
        self.shared = leaves[1 + len(inputs.carried) :]
        self.totals: list[Tensor | None] = [None] * len(self.shared)
        self.y, self.z = y, z
        self.grads = grad.unbind()
        self.dy, self.df, self.dg, self.dz = torch.zeros_like(y), df, dg, dz
        self.left = len(self.grads) - 1

    def run(self) -> Sequence[Tensor | None]:
        """The gradients of all inputs."""
        integration = self.integration
        length, count = integration.noise.block, integration.steps.count
        t1 = integration.time(integration.steps.times(count, count)[0])
        here = self._evaluate(t1, self.z) if count else None
        for first in reversed(range(0, count, length)):
            last = min(first + length, count)
            increments, times = integration.increments(first, last)
            for step in range(last - 1, first - 1, -1):
                assert here is not None
                here = self._back(step, times[step - first], increments[step - first], here)
        dy = self.dy + self.grads[0]
        if self.inputs.carried:
            return [dy, self.df, self.dg, self.dz, *self.totals]
        if here is None:
            here = self._evaluate(t1, self.integration.y0)
        dz = here.pull(self.df, self.dg, self.shared, self.totals)
        dy = dy + self.dz
        return [dy if dz is None else dy + dz, *self.totals]

    def _back(self, step: int, t0: Tensor, noise: Increment, here: _Evaluation) -> _Evaluation | None:
        """Take one step back, from the end of it, `here`; returns the evaluation at its start."""
        terms, dt, W = self.integration.terms, noise.dt, noise.W
        dy, rest = self._seen(step)
        half = 0.5 * dy
        dz = here.pull(self.df.add(half, alpha=dt), self.dg + _outer(terms, half, W), self.shared, self.totals)
        dz = self.dz if dz is None else self.dz + dz
        both = half + dz
        self.df, self.dg = dt * both, _outer(terms, both, W)
        self.dy, self.dz = dy.add(dz, alpha=2.0), -dz
        if rest is not None:
            self.dy = self.dy + rest
        y, f, g = self.y, here.f, here.g
        if step == 0:  # the start is known
            first = None if self.inputs.carried else self._evaluate(t0, self.integration.y0)
            f0, g0 = self.inputs.carried[:2] if first is None else (first.f, first.g)
            y = y.sub(f0 + f, alpha=0.5 * dt).sub_(terms.prod(g0 + g, W), alpha=0.5)
            known = torch.stack([self.integration.y0.detach(), self.y], 1)
            drift = Drift(known, torch.stack(self.grads, 1), way=_BACK)
            drift.compare(y, self.integration.y0, self.dy + self.dz, torch.arange(len(y)))
            drift.warn()
            return first
        z = (2 * y - self.z).sub_(f, alpha=dt).sub_(terms.prod(g, W))
        before = self._evaluate(t0, z)
        self.y = y.sub(before.f + f, alpha=0.5 * dt).sub_(terms.prod(before.g + g, W), alpha=0.5)
        self.z = z
        return before

    def _seen(self, step: int) -> tuple[Tensor, Tensor | None]:
        """The gradients of the states at the end and at the start of a step, with those of the outputs within it."""
        outputs = self.integration.steps.outputs
        end, start = self.dy, None
        while outputs[self.left][0] == step:
            share, grad = outputs[self.left][1], self.grads[self.left]
            end = end.add(grad, alpha=share)
            if share < 1.0:
                start = grad * (1.0 - share) if start is None else start.add(grad, alpha=1.0 - share)
            self.left -= 1
        return end, start

    def _evaluate(self, t: Tensor, z: Tensor) -> _Evaluation:
        found, late = _Evaluation(self.integration.terms, t, z), self.inputs.late
        values, leaves = found.graph(self.shared)
        if strangers := late.among(values, [*leaves, t]):
            terms, shared, t, z = self.integration.terms, self.shared, t.detach().clone(), z.clone()
            late.meet(strangers, lambda: _Evaluation(terms, t, z).graph(shared))
        return found


def _outer(terms: Terms, v: Tensor, W: Tensor) -> Tensor:
    """The gradient of the diffusion, given that of its product with `W`."""
    if terms.diagonal:
        return v * W.conj()
    return v.unsqueeze(2) * W.conj().unsqueeze(1)
