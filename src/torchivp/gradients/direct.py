"""Differentiate by autograd through the steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from torchivp.gradients.captured import LateLeaves
from torchivp.gradients.inputs import GradientInputs, Parameters, find_parameters
from torchivp.gradients.refusals import refuse_undifferentiable
from torchivp.integrate import Integration
from torchivp.problem import CountedFunction
from torchivp.recording import Interpolants, Outputs, Recorder
from torchivp.references import Sources
from torchivp.solution import Stats, Status


@dataclass(frozen=True)
class Direct:
    """Autograd through the accepted steps.

    Exact for the steps that were taken (step sizes count as constants), differentiable any number of times, and
    finds every tensor that `func` uses by itself. Memory grows with the number of steps.
    """

    name = "direct"

    def cited(self) -> Sources:
        """What it differentiates with, and the sources of that: nothing, as autograd does it."""
        return {}

    def solve(
        self,
        integration: Integration,
        parameters: Sequence[Tensor] | Parameters | None,
        interpolants: Interpolants | None,
    ) -> tuple[Tensor, list[float], Status, Stats]:
        """Integrate; returns the states [T, size], their times, how it ended and what it cost."""
        outputs = Outputs(integration.problem.times)
        recorders: list[Recorder] = [outputs] if interpolants is None else [outputs, interpolants]
        if integration.method.differentiable or not torch.is_grad_enabled():
            status, stats = integration.run(recorders)
            return outputs.complete(status), outputs.t, status, stats
        problem, found = integration.problem, find_parameters(integration, parameters)
        refuse_undifferentiable(type(integration.method), GradientInputs(problem, found).needed)
        watched = replace(problem, func=_Watched(problem.func, found.late))
        with found.late.watching():
            status, stats = integration.with_problem(watched).run(recorders)
        return outputs.complete(status), outputs.t, status, stats


class _Watched:
    """A function that is evaluated where autograd does not watch, and should use nothing that needs a gradient."""

    def __init__(self, func: CountedFunction, late: LateLeaves) -> None:
        self._func = func
        self._late = late

    @property
    def evaluations(self) -> int:
        return self._func.evaluations

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            value = self._func(t, y)
        if strangers := self._late.among(value, [t, y]):
            self._late.meet(strangers, partial(self._again, t.detach().clone(), y.detach().clone()))
        return value.detach()

    def _again(self, t: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        return self._func(t, y), [t, y]
