"""What a solve is differentiated with respect to: the state, times, `args` and parameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchivp.boundary import warn
from torchivp.generators import Generators
from torchivp.gradients.captured import LateLeaves, NoLateLeaves, independent, search
from torchivp.gradients.refusals import refuse_tracked
from torchivp.integrate import Integration
from torchivp.problem import FlatFunction, Problem


@dataclass(frozen=True)
class Parameters:
    """What the user's functions use besides their arguments.

    Attributes:
        tensors: what a gradient is wanted for.
        late: looks for others that only later steps use, if the caller did not name the tensors.
    """

    tensors: Sequence[Tensor] = ()
    late: LateLeaves = field(default_factory=NoLateLeaves)


class Inputs:
    """The tensors that a gradient flows to.

    Args:
        start: what the solve starts from.
        args: further arguments of the user's functions.
        parameters: other tensors that these use.

    Attributes:
        late: looks for those that only later steps use.
        start: what the solve starts from.
        moving: the places, among the leaves of `args`, of the tensors that require a gradient.
        parameters: other tensors that the functions use.
        tensors: `start`, then the tensors of `args` that require a gradient, then the parameters.
    """

    def __init__(self, start: Sequence[Tensor], args: Any, parameters: Parameters) -> None:
        self.late = parameters.late
        self.start = list(start)
        self.parameters = list(parameters.tensors)
        self._args, self._args_spec = pytree.tree_flatten(args)
        self.moving = [i for i, leaf in enumerate(self._args) if isinstance(leaf, Tensor) and leaf.requires_grad]
        self.tensors: list[Tensor] = [*start, *(self._args[i] for i in self.moving), *self.parameters]

    @property
    def needed(self) -> bool:
        """Whether there is a gradient to compute."""
        return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in self.tensors)

    def args_on_leaves(self) -> tuple[Any, list[Tensor]]:
        """`args` with leaves for its tensors that require a gradient, and what stands in `tensors` after the start."""
        args = list(self._args)
        for i in self.moving:
            args[i] = args[i].detach().requires_grad_()
        return pytree.tree_unflatten(args, self._args_spec), [*(args[i] for i in self.moving), *self.parameters]


class GradientInputs(Inputs):
    """The tensors that a gradient flows to, and the problem restated on leaves in their places.

    What the solve starts from is the initial state, and the times if they need a gradient.

    Attributes:
        problem: the problem as the user stated it.
    """

    def __init__(self, problem: Problem, parameters: Parameters) -> None:
        self.problem = problem
        self._func = user_function(problem)
        timed = [problem.times.tensor] if problem.times.tensor is not None else []
        super().__init__([problem.y0, *timed], self._func.args, parameters)

    def on_leaves(self, y: Tensor) -> tuple[Problem, list[Tensor]]:
        """The problem started from `y`, and the leaves that stand where `tensors` stood.

        The history of the originals hangs on none of them, except on the parameters, which `func` holds.
        """
        y = y.detach().requires_grad_()
        times = self.problem.times
        timed: list[Tensor] = []
        if times.tensor is not None:
            timed = [times.tensor.detach().requires_grad_()]
            times = times.with_tensor(timed[0])
        args, others = self.args_on_leaves()
        func = self._func.with_args(args)
        return replace(self.problem, y0=y, times=times, func=func), [y, *timed, *others]

    def end_at(self, t: float) -> None:
        """The solve ended on an event at `t`: what is differentiated ends there."""
        self.problem = replace(self.problem, times=self.problem.times.until(t))

    def without_gradient(self) -> Problem:
        """The problem for a solve that nothing is differentiated through."""
        return replace(self.problem, y0=self.problem.y0.detach(), times=self.problem.times.with_tensor(None))


def user_function(problem: Problem) -> FlatFunction:
    """The user's function of a problem that states one."""
    assert isinstance(problem.func, FlatFunction)
    return problem.func


def find_parameters(integration: Integration, parameters: Sequence[Tensor] | Parameters | None) -> Parameters:
    """The parameters that a gradient is wanted for.

    Those named by the caller, or else those of `func` if it is an nn.Module, and every leaf that it is found to use at
    the start. A tensor that was itself computed from others cannot be found in that way; if there is one and its
    gradient is lost, a warning says so.

    Raises:
        TypeError: `parameters` is not a sequence of tensors.
    """
    if not torch.is_grad_enabled():
        return Parameters()
    if isinstance(parameters, Parameters):  # found already
        return parameters
    if parameters is not None:
        return Parameters(check_parameters("params", parameters))
    problem = integration.problem

    def evaluate() -> tuple[Tensor, Sequence[Tensor]]:
        isolated, leaves = GradientInputs(problem, Parameters()).on_leaves(problem.y0)
        return isolated.func(isolated.time(isolated.times.start), leaves[0]), leaves

    tensors, computed = search([user_function(problem).func], evaluate, Generators(problem.y0.device))
    found = Parameters(tensors, late_leaves(computed, integration.method.differentiable))
    # Where no other gradient is wanted, autograd follows the steps, and that of a computed tensor is right.
    if GradientInputs(problem, found).needed or not integration.method.differentiable:
        warn_of_computed(computed, integration.remedy)
    return found


def check_parameters(name: str, parameters: Iterable[Tensor]) -> list[Tensor]:
    """Those of the `parameters`, which the argument `name` gives, that need a gradient.

    Raises:
        TypeError: they are not a sequence of tensors.
    """
    if not isinstance(parameters, Iterable):
        raise TypeError(
            f"{name} must be a sequence of tensors, got {parameters!r}: write {name}=tuple(model.parameters())"
        )
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    for i, parameter in enumerate(parameters):
        if not isinstance(parameter, Tensor):
            raise TypeError(
                f"{name} must be a sequence of tensors, but {name}[{i}] is {type(parameter).__name__}: "
                f"write {name}=tuple(model.parameters())"
            )
    unique = {id(p): p for p in parameters if p.requires_grad}
    return independent(list(unique.values()))


def warn_of_computed(nodes: Sequence[Any], remedy: str, subject: str = "func") -> None:
    """Warn of tensors made by these nodes of the graph, whose gradient is lost; `remedy` says what to do.

    `subject` is what the user calls that which uses them.
    """
    for node in nodes:
        warn(
            f"{subject} uses a tensor that was computed elsewhere and requires a gradient (its grad_fn is "
            f"{node.name()}); this gradient mode cannot see it and gives it none. {remedy}",
        )


def late_leaves(elsewhere: Sequence[Any], differentiable: bool = True) -> LateLeaves:
    """What looks for leaves that only later steps of an ODE use; `elsewhere` are nodes that were warned of.

    `differentiable` is whether autograd can follow the method.
    """
    return LateLeaves(
        "func",
        "name it in params=(tensor,) (adjoint_params= in odeint_adjoint), pass it through args=(tensor,), make func an "
        "nn.Module that holds it, or use gradient='direct'"
        + ("" if differentiable else ", with a method other than scipy_solver"),
        elsewhere,
    )


def refuse_inside_transform(gradient: str, problem: Problem, parameters: Sequence[Tensor] | None) -> None:
    """Refuse a gradient with a backward pass of its own, which no transform of `torch.func` can follow.

    Raises:
        ValueError: a gradient is wanted.
    """
    if not torch.is_grad_enabled():
        return
    inputs = GradientInputs(problem, Parameters(check_parameters("params", parameters or ())))
    slope = problem.func(problem.time(problem.times.start), problem.y0)
    refuse_tracked(gradient, [*inputs.tensors, slope], "gradient='direct' (odeint)")
