"""Differentiate by replaying the accepted steps from checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from torchivp.checks import check_whole_number
from torchivp.generators import Generators
from torchivp.gradients.direct import Direct
from torchivp.gradients.draws import Drawn, RecordedDraws
from torchivp.gradients.inputs import find_parameters, refuse_inside_transform
from torchivp.gradients.node import NodeSolve, as_node
from torchivp.gradients.refusals import refuse_dense_output, refuse_forward_mode, refuse_undifferentiable
from torchivp.gradients.replayed import ReplayedSolve
from torchivp.gradients.row_inputs import RowInputs
from torchivp.integrate import Integration
from torchivp.methods.method import FlatFunc, Method, Step
from torchivp.recording import Interpolants, Outputs, Trail
from torchivp.references import Sources
from torchivp.rows.single import as_rows, rows_plan
from torchivp.solution import Stats, Status
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

    Examples:
        >>> import torch
        >>> from torchivp import Checkpointed, solve_ivp
        >>> y0 = torch.ones(1, dtype=torch.float64, requires_grad=True)
        >>> end = solve_ivp(lambda t, y: -y, (0, 1), y0, gradient=Checkpointed(checkpoints=10)).final
        >>> round(torch.autograd.grad(end, y0)[0].item(), 5)
        0.36788
    """

    checkpoints: int | None = None
    name = "checkpointed"

    def cited(self) -> Sources:
        """What it differentiates with, and the sources of that: nothing, as autograd does it."""
        return {}

    def __post_init__(self) -> None:
        if self.checkpoints is not None:
            check_whole_number("checkpoints", self.checkpoints, 2, hint="; None chooses the number")

    def solve(
        self, integration: Integration, parameters: Sequence[Tensor] | None, interpolants: Interpolants | None
    ) -> tuple[Tensor, list[float], Status, Stats]:
        """Integrate; returns the states [T, size], their times, how it ended and what it cost."""
        return solve_as_node(self.name, integration, parameters, interpolants, self.checkpoints, lambda solve: solve)


def solve_as_node(
    name: str,
    integration: Integration,
    parameters: Sequence[Tensor] | None,
    interpolants: Interpolants | None,
    limit: int | None,
    node: Callable[[ReplayedSolve], NodeSolve],
) -> tuple[Tensor, list[float], Status, Stats]:
    """Integrate one row as one node of autograd's graph, whose steps can be taken again.

    Args:
        name: that of the gradient.
        integration: how to integrate.
        parameters: what the caller has named besides the state, times and arguments.
        interpolants: the dense output, if it was asked for.
        limit: the largest number of checkpoints; None for about the square root of the number of steps.
        node: what differentiates the solve, given the solve.

    Returns:
        The states [T, size], their times, how it ended and what it cost.
    """
    if inside_transform():
        refuse_inside_transform(f"gradient='{name}'", integration.problem, parameters)
        return Direct().solve(integration, None, interpolants)
    found = find_parameters(integration, parameters)
    inputs = RowInputs(as_rows(integration), found)
    if not inputs.used:
        return Direct().solve(integration, found, interpolants)
    refuse_undifferentiable(type(integration.method), wanted=True)
    refuse_forward_mode(f"gradient='{name}'", "gradient='direct'")
    refuse_dense_output(interpolants is not None)
    solve = _CheckpointedSolve(integration, inputs, limit)
    result = solve.result(*as_node(node(solve), inputs.tensors))
    return result.states[0], solve.reached, result.status[0], result.stats[0]


class _CheckpointedSolve(ReplayedSolve):
    """A solve of one row, by the loop for one row.

    Attributes:
        reached: the times of the outputs.
    """

    reached: list[float]

    def __init__(self, integration: Integration, inputs: RowInputs, limit: int | None):
        super().__init__(rows_plan(integration, inputs.problem), inputs, limit)
        self.integration = integration

    def run(self, dense: bool = False) -> tuple[Tensor, Tensor]:
        problem = self.integration.problem
        times = problem.times.with_tensor(None)
        plain = self.integration.with_problem(replace(problem, y0=problem.y0.detach(), times=times))
        outputs = Outputs(times)
        trail, steps = Trail(outputs, self.limit), _DrawnSteps(plain.method, problem.y0.device)
        status, stats = replace(plain, method=cast("Method", steps.method)).run([outputs, trail, steps])
        self.record = replace(trail.record(), drawn=steps.drawn())
        kept = len(outputs.t)
        states = outputs.complete(status)
        self.status, self.stats, self.reached = [status], [stats], outputs.t
        self.times, self.last = np.array([outputs.t]), np.array([kept - 1])
        if self.plan.problem.times.outputs is not None:  # with the last state after them, as a batch has it
            states = torch.cat([states[:kept], outputs.last, states[kept:]])
            self.times, self.last = np.array([[*outputs.t, status.t]]), np.array([kept])
        self.expect(states.unsqueeze(0))
        return states.unsqueeze(0), self.record.changes.y


class _DrawnSteps:
    """What the generators were for every accepted step.

    Attributes:
        method: the method, which notes it.
    """

    def __init__(self, method: Method, device: torch.device) -> None:
        self.method = RecordedDraws(method, Generators(device))
        self._steps: list[Drawn] = []

    def start(self, t: float, y: Tensor, carry: Any) -> None:
        self.method.begin()
        self._steps = []

    def accept(self, method: Method, func: FlatFunc, step: Step, t1: float) -> None:
        self._steps.append(self.method.accepted())

    def drawn(self) -> list[tuple[np.ndarray, Drawn]] | None:
        """In the order of the steps; None if nothing was drawn."""
        if not self.method.any():
            return None
        return [(np.array([number]), drawn) for number, drawn in enumerate(self._steps)]
