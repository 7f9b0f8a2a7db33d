"""What a solve is differentiated with respect to, and its problem restated on leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from torchivp.generators import Generators
from torchivp.gradients.captured import search
from torchivp.gradients.inputs import Inputs, Parameters, check_parameters, late_leaves, warn_of_computed
from torchivp.rows.problem import RowProblem

_REMEDY = (
    "Pass it to func through args=(tensor,), or name it in params=(tensor,) with all others that need a gradient, or "
    "use gradient='direct'"
)


class RowInputs(Inputs):
    """The tensors that a gradient flows to, and the problem restated on leaves in their places.

    What the solve starts from are the initial states, and the tensors of the schedules and of the times that need a
    gradient.

    Args:
        problem: the problem.
        parameters: what its functions use besides.
        used: whether they use tensors that need a gradient and that nobody can name.

    Attributes:
        used: whether anything that needs a gradient is used at all.
    """

    def __init__(self, problem: RowProblem, parameters: Parameters, used: bool = False) -> None:
        self.problem = problem
        self._schedules = [
            (number, name, value)
            for number, action in enumerate(problem.actions)
            for name, value in (("moving", action.moving), ("values", action.values))
            if value is not None and value.requires_grad
        ]
        self._times = problem.moving.tensors
        start = [problem.y0, *(value for *_, value in self._schedules), *self._times.values()]
        super().__init__(start, problem.func.args.leaves, parameters)
        self.used = torch.is_grad_enabled() and (used or self.needed)

    def on_leaves(self, y: Tensor) -> tuple[RowProblem, list[Tensor]]:
        """The problem started from `y`, and the leaves that stand where `tensors` stood.

        The history of the originals hangs on none of them, except on the parameters, which the functions hold.
        """
        args, others = self.args_on_leaves()
        start = [x.detach().requires_grad_() for x in (y, *self.start[1:])]
        restated = self.started_from(start).with_args(self.problem.func.args.with_leaves(args))
        return restated, [*start, *others]

    def started_from(self, start: Sequence[Tensor]) -> RowProblem:
        """The problem with other tensors in the places of `self.start`."""
        y0, *others = start
        count, actions = len(self._schedules), list(self.problem.actions)
        for (number, name, _), tensor in zip(self._schedules, others[:count], strict=True):
            actions[number] = replace(actions[number], **{name: tensor})
        moving = self.problem.moving.with_tensors(dict(zip(self._times, others[count:], strict=True)))
        return replace(self.problem, y0=y0, actions=actions, moving=moving)


def find_row_inputs(problem: RowProblem, named: Sequence[Tensor] | None, look: bool) -> RowInputs:
    """What a gradient flows to, with the parameters `named` by the caller or else found at the start.

    `look` says whether they must be known one by one.

    Raises:
        TypeError: `named` is not a sequence of tensors.
    """
    if named is not None:
        return RowInputs(problem, Parameters(check_parameters("params", named)))
    if not torch.is_grad_enabled():
        return RowInputs(problem, Parameters())
    if not look:
        generators = Generators(problem.y0.device)
        with torch.enable_grad(), generators.kept():
            values, _ = _evaluate(problem)
        return RowInputs(problem, Parameters(), used=any(value.requires_grad for value in values))
    inputs, computed = search_row_inputs(problem)
    warn_of_computed(computed, _REMEDY)
    return inputs


def search_row_inputs(problem: RowProblem, known: Sequence[Tensor] = ()) -> tuple[RowInputs, list[Any]]:
    """What a gradient flows to, as far as it is `known` or found at the start, and the nodes that made the rest."""
    generators = Generators(problem.y0.device)
    functions = [problem.func, *(f for a in problem.actions for f in (a.g, a.apply) if f is not None)]
    tensors, computed = search([f.function for f in functions], lambda: _evaluate(problem), generators)
    tensors = list({id(x): x for x in (*tensors, *known)}.values())
    return RowInputs(problem, Parameters(tensors, late_leaves(computed)), used=bool(computed)), computed


def _evaluate(problem: RowProblem) -> tuple[list[Tensor], list[Tensor]]:
    """What every function gives at the start, and the leaves that stand for its arguments."""
    isolated, leaves = RowInputs(problem, Parameters()).on_leaves(problem.y0)
    values = [isolated.func.at_filler()]
    for action in isolated.actions:
        if action.g is not None:
            values.append(action.g.at_filler())
        if action.apply is not None and (action.values is None or action.values.shape[1]):
            extra = () if action.values is None else (action.values[:, 0],)
            values.append(action.apply.at_filler(*extra))
    return values, leaves
