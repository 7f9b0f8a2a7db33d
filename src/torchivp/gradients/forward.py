"""Differentiate forwards: the derivatives by all inputs are integrated along the accepted steps, as dual numbers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from torchivp.checks import check_whole_number
from torchivp.dual_numbers import DualArithmetic, dual_numbers, parts
from torchivp.gradients.checkpointed import solve_as_node
from torchivp.gradients.directions import Directions, Sensitivities
from torchivp.gradients.node import NodeSolve
from torchivp.gradients.replayed import ReplayedSolve
from torchivp.gradients.row_inputs import RowInputs
from torchivp.integrate import Integration
from torchivp.record import ChangeRecord, Checkpoint, Record
from torchivp.recording import Interpolants
from torchivp.references import Sources
from torchivp.rows.copies import Copies, FunctionOnCopies, refuse_graph
from torchivp.rows.problem import RowProblem
from torchivp.solution import Stats, Status


@dataclass(frozen=True)
class Forward:
    """The same gradient as `Direct`, to rounding, by integrating the derivatives along with the solution.

    For few inputs and many outputs. The forward pass solves, and then takes the accepted steps once more with dual
    numbers, all inputs at once, a copy of the rows for each number in them. That gives the Jacobian of the outputs;
    every backward pass is a product with it, at next to no cost. The memory is that of the Jacobian. Second and higher
    derivatives replay the whole solve, in the memory of `Direct`. Where no gradient is wanted, solve within
    `torch.no_grad()`.

    The inputs are the numbers in `y0`, the times, `args` and the parameters that need a gradient. In a batch, what has
    an entry for each row counts as often as it has numbers in one row. Source: the variational equations; Hairer,
    Norsett and Wanner, "Solving Ordinary Differential Equations I", I.14.

    Args:
        max_inputs: the largest number of inputs; more are refused, as a backward pass costs less.

    Raises:
        TypeError: `max_inputs` is not a whole number.
        ValueError: it is less than 1; or when a solve begins, there are more inputs.

    Examples:
        >>> import torch
        >>> from torchivp import Forward, solve_ivp
        >>> y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
        >>> end = solve_ivp(lambda t, y: -y, (0, 1), y0, gradient=Forward(max_inputs=10)).final
        >>> [round(torch.autograd.grad(y, y0, retain_graph=True)[0].sum().item(), 5) for y in end]
        [0.36788, 0.36788]
    """

    max_inputs: int = 100
    name = "forward"

    def cited(self) -> Sources:
        """What it differentiates with, and the sources of that."""
        return {"gradient forward": ("HairerNorsettWanner1993",)}

    def __post_init__(self) -> None:
        check_whole_number("max_inputs", self.max_inputs, 1)

    def solve(
        self, integration: Integration, parameters: Sequence[Tensor] | None, interpolants: Interpolants | None
    ) -> tuple[Tensor, list[float], Status, Stats]:
        """Integrate; returns the states [T, size], their times, how it ended and what it cost."""
        return solve_as_node(self.name, integration, parameters, interpolants, 2, partial(ForwardSolve, self))


class ForwardSolve(NodeSolve):
    """A solve that knows the derivatives of its results.

    Args:
        options: how to differentiate.
        solve: the solve.

    Raises:
        ValueError: it has too many inputs.
    """

    sensitivities: Sensitivities | None = None

    def __init__(self, options: Forward, solve: ReplayedSolve) -> None:
        self.solve = solve
        self.late = solve.late
        problem = solve.plan.problem
        functions = [problem.func, *(f for a in problem.actions for f in (a.g, a.apply) if f is not None)]
        self.directions = Directions(solve.inputs, all(function.row_wise for function in functions))
        _check_count(self.directions, solve.inputs, options.max_inputs)

    def forward(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        results = self.solve.forward(tensors)
        if self.directions.count:
            self.sensitivities = _sensitivities(self.solve, self.directions)
        return results

    def again(self, tensors: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        return self.solve.again(tensors)

    def gradients(
        self, tensors: Sequence[Tensor], results: Sequence[Tensor], grads: Sequence[Tensor]
    ) -> Sequence[Tensor | None]:
        """Products of the gradients of the results with their derivatives."""
        return [None] * len(tensors) if self.sensitivities is None else self.sensitivities.gradients(*grads)


def _check_count(directions: Directions, inputs: RowInputs, most: int) -> None:
    """Refuse more inputs than there may be.

    Raises:
        ValueError: there are more.
    """
    if directions.count <= most:
        return
    counts = [0 if block is None else block.count for block in directions.blocks]
    bounds = np.cumsum([0, 1, len(inputs.start) - 1, len(inputs.moving), len(inputs.parameters)])
    named = zip(("y0", "times and schedules", "args", "parameters"), bounds, bounds[1:], strict=False)
    numbers = [(name, sum(counts[a:b])) for name, a, b in named]
    shown = ", ".join(f"{number} in {name}" for name, number in numbers if number)
    raise ValueError(
        f"gradient='forward' differentiates by at most {most} numbers, and here there are {directions.count} ({shown})"
        f": use gradient='checkpointed', whose cost does not depend on how many there are, or raise the limit, "
        f"gradient=Forward(max_inputs={directions.count})"
    )


def _sensitivities(solve: ReplayedSolve, directions: Directions) -> Sensitivities:
    """The derivatives of what a solve has given, by its steps taken again with dual numbers."""
    count, inputs, record = directions.count, solve.inputs, solve.record
    late, problem = inputs.late, solve.plan.problem
    with torch.no_grad(), dual_numbers(), DualArithmetic(thorough=True), late.watching(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")  # in an operation that is mapped
        copied = _copied(inputs, directions)
        again = _solve_of_copies(solve, copied, count)
        states, before = map(parts, again.run_again(copied))
    for stats, steps, evaluations in zip(solve.stats, record.steps.tolist(), again.evaluations.tolist(), strict=False):
        stats.backward = Stats(accepted=steps, evaluations=evaluations)
    rows, size = problem.rows, problem.y0.shape[1]
    of_rows = states[1].reshape(count, rows, -1, size).transpose(0, 1).contiguous()
    of_changes = before[1].reshape(count, len(record.changes.rows), size).transpose(0, 1).contiguous()
    return Sensitivities(of_rows, of_changes, record.changes.rows, directions.blocks)


def _copied(inputs: RowInputs, directions: Directions) -> RowProblem:
    """The problem, a copy for each direction, moving along it."""
    count = directions.count
    duals = []
    for x, tangent in zip(inputs.tensors, directions.tangents(inputs.tensors), strict=True):
        value = x.detach().expand(count, *x.shape).contiguous()
        duals.append(forward_ad.make_dual(value, tangent))
    first = len(inputs.start)
    start = [x.flatten(0, 1) for x in duals[:first]]
    args = dict(zip(inputs.moving, duals[first:], strict=False))
    used = list(zip(inputs.parameters, duals[first + len(inputs.moving) :], strict=True))
    started = inputs.started_from(start)
    return Copies(count, args, used, partial(_look, inputs)).problem(started)


def _look(inputs: RowInputs, value: Tensor, function: FunctionOnCopies, t: Tensor, y: Tensor) -> None:
    """Look at what func has used without its being moved.

    Raises:
        RuntimeError: a gradient is wanted for it, or would be lost.
    """
    strangers = inputs.late.among(value, [t, y])
    wanted = {id(x) for x in inputs.tensors}
    if any(id(x) in wanted for x in strangers):
        refuse_graph(function.name)
    if strangers:
        inputs.late.meet(strangers, lambda: (function.at(t.detach(), y.detach(), ()), []))


def _solve_of_copies(solve: ReplayedSolve, problem: RowProblem, count: int) -> ReplayedSolve:
    """The same solve, of the copies of its problem, its steps to be taken again."""
    rows = torch.arange(solve.plan.problem.rows, device=problem.y0.device).repeat(count)
    plan = replace(solve.plan, problem=problem, norm=solve.plan.norm.take(rows))
    again = ReplayedSolve(plan, solve.inputs, 0)
    again.record = _record_of_copies(solve.record, problem, count)
    again.times = np.concatenate([solve.times] * count)
    again.expect_again(solve, count)
    return again


def _record_of_copies(record: Record, problem: RowProblem, count: int) -> Record:
    changes, rows = record.changes, len(record.steps)
    copies = ChangeRecord(
        (changes.rows + rows * np.arange(count)[:, None]).reshape(-1),
        np.concatenate([changes.steps] * count),
        np.concatenate([changes.t] * count),
        list(changes.firings) * count,
        changes.y.repeat(count, 1),
        changes.after.repeat(count, 1),
        np.concatenate([changes.theta] * count),
    )
    drawn = None
    if record.drawn is not None:
        drawn = [
            (np.concatenate([numbers] * count), noted._replace(rows=noted.rows * count))
            for numbers, noted in record.drawn
        ]
    return Record(
        np.concatenate([record.ends] * count),
        np.concatenate([record.steps] * count),
        None if record.orders is None else np.concatenate([record.orders] * count),
        [Checkpoint(0, problem.y0.detach(), np.zeros(len(problem.y0), dtype=np.int64))],
        copies,
        record.keeps_carry,
        drawn,
    )
