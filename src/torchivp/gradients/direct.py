"""Differentiate by autograd through the steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from torchivp.gradients.inputs import GradientInputs, find_parameters, refuse_undifferentiable
from torchivp.integrate import Integration
from torchivp.recording import Interpolants, Outputs, Recorder
from torchivp.solution import Stats, Status


@dataclass(frozen=True)
class Direct:
    """Autograd through the accepted steps.

    Exact for the steps that were taken (step sizes count as constants), differentiable any number of times, and
    finds every tensor that `func` uses by itself. Memory grows with the number of steps.
    """

    name = "direct"

    def solve(
        self, integration: Integration, parameters: Sequence[Tensor] | None, interpolants: Interpolants | None
    ) -> tuple[Tensor, list[float], Status, Stats]:
        """Integrate; returns the states [T, size], their times, how it ended and what it cost."""
        if not integration.method.differentiable:
            found = find_parameters(integration, parameters)
            refuse_undifferentiable(integration.method, GradientInputs(integration.problem, found))
        outputs = Outputs(integration.problem.times)
        recorders: list[Recorder] = [outputs] if interpolants is None else [outputs, interpolants]
        status, stats = integration.run(recorders)
        return outputs.complete(status), outputs.t, status, stats
