"""What a solve was computed with, and the sources of that."""

from __future__ import annotations

from torch import Tensor
from torch.utils import _pytree as pytree

from torchivp.api.statement import Statement
from torchivp.events.event import Scheduled
from torchivp.methods.ode.auto import Auto
from torchivp.references import Sources
from torchivp.solution import BatchSolution, OfRows, Solution
from torchivp.stepsize.pid import PIDController


def sources_of(solution: Solution | BatchSolution, stated: Statement) -> Sources:
    """What a solution was computed with: the parts in words, each with its sources.

    The gradient is one of them if the solution has one, events if there are any that are to be found, and of the
    methods between which "auto" switches those that took steps.
    """
    method, controller, events = stated.method, stated.controller, stated.events
    if issubclass(method, Auto):
        method = method.at_steps(not isinstance(controller, PIDController))
    found = method.cited(_stiff_elements(solution))
    if isinstance(controller, PIDController):
        found |= controller.cited()
    leaves = [solution.y] if isinstance(solution.y, Tensor) else pytree.tree_leaves(solution.y)
    differentiable = any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves)
    if differentiable:
        found |= stated.gradient.cited()
    listed = events if isinstance(events, list | tuple) else () if events is None else (events,)
    if not all(isinstance(event, Scheduled) for event in listed):
        found["events"] = ("OliveiraTakahashi2021", *(("ChenAmosNickel2021",) if differentiable else ()))
    if stated.jac_sparsity is not None:
        found["sparse Jacobians"] = ("CurtisPowellReid1974",)
    if stated.mass is not None and stated.mass.projection is not None:
        found["algebraic equations"] = ("HairerWanner1996",)
    return found


def _stiff_elements(solution: Solution | BatchSolution) -> int:
    """How many real numbers a state has of which "auto" has taken steps with its method for stiff problems."""
    every = [solution.stats] if isinstance(solution, Solution) else solution.stats
    if (isinstance(every, OfRows) and not every.stiff) or not any(stats.stiff for stats in every):
        return 0
    sizes = [leaf.numel() * (2 if leaf.is_complex() else 1) for leaf in pytree.tree_leaves(solution.final)]
    return sum(sizes) // len(every)
