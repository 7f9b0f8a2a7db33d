"""How a solve of rows is differentiated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchivp.gradients.adjoint import adjoint_gradients, check_adjoint_of_rows
from torchivp.gradients.backsolve import Backsolve
from torchivp.gradients.checkpointed import Checkpointed
from torchivp.gradients.direct import Direct
from torchivp.gradients.forward import Forward, ForwardSolve
from torchivp.gradients.node import as_node
from torchivp.gradients.refusals import (
    refuse_dense_output,
    refuse_forward_mode,
    refuse_method_in_forward_mode,
    refuse_steps_again,
    refuse_undifferentiable,
)
from torchivp.gradients.replayed import ReplayedSolve, RowResult
from torchivp.gradients.row_inputs import RowInputs, find_row_inputs
from torchivp.rows.function import RowFunction
from torchivp.rows.integration import RowIntegration
from torchivp.rows.problem import RowProblem
from torchivp.split import with_each
from torchivp.torch_func import in_forward_mode, without_derivatives


def solve_rows(
    plan: RowIntegration,
    gradient: Direct | Checkpointed | Backsolve | Forward,
    parameters: Sequence[Tensor] | None,
    dense: bool = False,
) -> RowResult:
    """Integrate every row, so that autograd can differentiate the result as the gradient says.

    `dense` says whether to keep the solutions within all steps.

    Raises:
        ValueError: the gradient cannot be had with this method.
    """
    inputs = find_row_inputs(plan.problem, parameters, look=not isinstance(gradient, Direct))
    if in_forward_mode():
        refuse_method_in_forward_mode(plan.method)
        if inputs.used and not isinstance(gradient, Direct):
            refuse_forward_mode(f"gradient='{gradient.name}'", "gradient='direct'")
        gradient = Direct()  # the steps, taken again, carry tangents
    limit = gradient.checkpoints if isinstance(gradient, Checkpointed) and inputs.used else 0
    solve = ReplayedSolve(plan, inputs, limit)
    if isinstance(gradient, Backsolve):
        solve = _BacksolvedRows(plan, inputs, gradient)
    if not solve.replayable:
        watch = _UsedLater(plan.problem)
        plain = ReplayedSolve(replace(plan, problem=watch.problem), inputs, limit)
        states, _ = plain.run(dense)
        if not watch.used:
            return plain.result(states, plain.record.changes.y)
        inputs.used, gradient = True, Direct()  # which finds what is used later by itself
        solve.plan = replace(plan, callbacks=None)  # which have been told
    if not isinstance(gradient, Backsolve):
        refuse_undifferentiable(plan.method, wanted=True)
    if isinstance(gradient, Direct):
        with without_derivatives():
            solve.run()
        return solve.result(*solve.run_again(plan.problem, dense))
    refuse_dense_output(dense)
    if isinstance(gradient, Backsolve):
        check_adjoint_of_rows(plan, gradient)
    node = ForwardSolve(gradient, solve) if isinstance(gradient, Forward) else solve
    states, before = as_node(node, inputs.tensors)
    return solve.result(states, before)


class _UsedLater:
    """Whether functions that use nothing at the start that needs a gradient do so later.

    Attributes:
        problem: the same problem, whose functions are watched where gradients are enabled.
        used: whether they do, as far as they were evaluated.
    """

    def __init__(self, problem: RowProblem) -> None:
        self.problem = problem
        self.used = False
        if torch.is_grad_enabled():
            look = self._watched
            actions = [replace(a, g=a.g and look(a.g), apply=a.apply and look(a.apply)) for a in problem.actions]
            self.problem = replace(problem, func=look(problem.func), actions=actions)

    def _watched(self, watched: RowFunction) -> RowFunction:
        def look(function: Callable[..., Any], *args: Any) -> Any:
            # Where a method differentiates it, by the state, that it depends on that says nothing.
            if torch.is_grad_enabled():
                return function(*args)
            torch._C._set_grad_enabled(True)  # a context would take longer than a small function
            try:
                value = function(*args)
            finally:
                torch._C._set_grad_enabled(False)
            if isinstance(value, Tensor):  # as nearly always, and then this is all that is asked
                if not value.requires_grad:
                    return value
            elif not any(isinstance(x, Tensor) and x.requires_grad for x in pytree.tree_leaves(value)):
                return value
            self.used = True
            return pytree.tree_map_only(Tensor, Tensor.detach, value)

        return watched.calling(with_each(watched.function, lambda function: partial(look, function)))


class _BacksolvedRows(ReplayedSolve):
    """A solve of rows with the continuous adjoint."""

    exact = False
    keeps_results = True
    mapped = False

    def __init__(self, plan: RowIntegration, inputs: RowInputs, options: Backsolve):
        super().__init__(plan, inputs, 0)
        self.options = options

    def expect(self, states: Tensor) -> None:
        """The way back draws other numbers, and says so; only a derivative of the gradient needs the same steps."""
        self._ended = self._last_of(states)

    def again(self, tensors: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        refuse_steps_again(self.plan.method)
        return super().again(tensors)

    def gradients(
        self, tensors: Sequence[Tensor], results: Sequence[Tensor], grads: Sequence[Tensor]
    ) -> Sequence[Tensor | None]:
        """The gradients of all inputs, by the adjoint."""
        self.check_events()
        states, before = results
        return adjoint_gradients(self, self.options, states, before, *grads)
