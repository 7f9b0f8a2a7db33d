"""What a solve is differentiated with respect to: the state, times, `args` and parameters."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from torchivp.integrate import Integration
from torchivp.methods.method import Method
from torchivp.problem import FlatFunction, Problem
from torchivp.torch_func import needs_gradient


class Inputs:
    """The tensors that a gradient flows to.

    Args:
        start: what the solve starts from.
        args: further arguments of the user's functions.
        parameters: other tensors that these use.
        complete: whether the caller named the parameters; if they were found, later steps may use others.

    Attributes:
        complete: as given.
        parameters: as given.
        tensors: `start`, then the tensors of `args` that require a gradient, then the parameters.
    """

    def __init__(self, start: Sequence[Tensor], args: Any, parameters: Sequence[Tensor], complete: bool) -> None:
        self.complete = complete
        self.parameters = list(parameters)
        self._args, self._args_spec = pytree.tree_flatten(args)
        self._moving = [i for i, leaf in enumerate(self._args) if isinstance(leaf, Tensor) and leaf.requires_grad]
        self.tensors: list[Tensor] = [*start, *(self._args[i] for i in self._moving), *self.parameters]

    @property
    def needed(self) -> bool:
        """Whether there is a gradient to compute."""
        return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in self.tensors)

    def args_on_leaves(self) -> tuple[Any, list[Tensor]]:
        """`args` with leaves for its tensors that require a gradient, and what stands in `tensors` after the start."""
        args = list(self._args)
        for i in self._moving:
            args[i] = args[i].detach().requires_grad_()
        return pytree.tree_unflatten(args, self._args_spec), [*(args[i] for i in self._moving), *self.parameters]


class GradientInputs(Inputs):
    """The tensors that a gradient flows to, and the problem restated on leaves in their places.

    What the solve starts from is the initial state, and the times if they need a gradient.

    Attributes:
        problem: the problem as the user stated it.
    """

    def __init__(self, problem: Problem, parameters: Sequence[Tensor], complete: bool = True) -> None:
        self.problem = problem
        self._func = user_function(problem)
        timed = [problem.times.tensor] if problem.times.tensor is not None else []
        super().__init__([problem.y0, *timed], self._func.args, parameters, complete)

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
        func = FlatFunction(self._func.func, self._func.layout, args)
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


def find_parameters(integration: Integration, parameters: Sequence[Tensor] | None) -> list[Tensor]:
    """The parameters that a gradient is wanted for.

    Those named by the caller, or else those of `func` if it is an nn.Module, and every leaf that one evaluation of
    `func` at the start is found to use. A tensor that was itself computed from others cannot be found in that way;
    if there is one and its gradient is lost, a warning says so.

    Raises:
        TypeError: `parameters` is not a sequence of tensors.
    """
    if not torch.is_grad_enabled():
        return []
    if parameters is not None:
        return check_parameters("params", parameters)
    problem = integration.problem

    def evaluate() -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        isolated, leaves = GradientInputs(problem, ()).on_leaves(problem.y0)
        return [isolated.func(isolated.time(isolated.times.start), leaves[0])], leaves

    found, computed = search_parameters(user_function(problem).func, evaluate)
    # Where no other gradient is wanted, autograd follows the steps, and that of a computed tensor is right.
    if GradientInputs(problem, found).needed or not integration.method.differentiable:
        warn_of_computed(computed, integration.remedy, stacklevel=6)
    return found


def search_parameters(
    owner: Any, evaluate: Callable[[], tuple[Sequence[Tensor], Sequence[Tensor]]]
) -> tuple[list[Tensor], list[str]]:
    """What the user's functions are found to use besides their arguments.

    Args:
        owner: what the user gave; its parameters, if it is an nn.Module, are found whatever is used.
        evaluate: evaluates the functions once, with autograd watching; returns their values and the leaves that stand
            for their arguments.

    Returns:
        The leaves, and the names of the nodes that made tensors elsewhere.
    """
    found = [p for p in module_parameters(owner) if p.requires_grad] if isinstance(owner, nn.Module) else []
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)  # a cast kept from before would hide the leaf that it was made from
    try:
        with torch.enable_grad():
            oldest = now()
            values, arguments = evaluate()
    finally:
        torch.set_autocast_cache_enabled(cached)
    captured, computed = other_leaves(values, oldest, [*arguments, *found])
    return [*found, *captured], computed


def module_parameters(module: nn.Module) -> list[Tensor]:
    """The parameters of a module, or of a replica that `nn.DataParallel` made, which itself no longer lists them."""
    if not getattr(module, "_is_replica", False):
        return list(module.parameters())
    replicas: list[Any] = list(module.modules())
    return [parameter for replica in replicas for parameter in replica._former_parameters.values()]


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
    return list(unique.values())


def other_leaves(
    results: Sequence[Tensor], oldest: int, known: Sequence[Tensor], start: Tensor | None = None
) -> tuple[list[Tensor], list[str]]:
    """What `results` were computed from since `oldest`, and after `start` if that is given.

    Returns:
        The leaves other than those `known`, and the names of the nodes that made tensors before.
    """
    found: dict[int, Tensor] = {}
    made_before: list[str] = []
    for result in results:
        captured, computed = _ends_of_graph(result, oldest, start)
        found.update({id(leaf): leaf for leaf in captured})
        made_before += computed
    return [leaf for leaf in found.values() if not any(leaf is other for other in known)], made_before


def warn_of_computed(nodes: Sequence[str], remedy: str, stacklevel: int, subject: str = "func") -> None:
    """Warn of tensors made by these nodes of the graph, whose gradient is lost; `remedy` says what to do.

    `subject` is what the user calls that which uses them.
    """
    for node in nodes:
        warnings.warn(
            f"{subject} uses a tensor that was computed elsewhere and requires a gradient (its grad_fn is {node}); "
            f"this gradient mode cannot see it and gives it none. {remedy}",
            stacklevel=stacklevel,
        )


def now() -> int:
    """A number less than that of every node of the graph made later, and greater than that of every earlier one."""
    node = torch.zeros((), requires_grad=True).clone().grad_fn
    assert node is not None
    return node._sequence_nr()  # pyright: ignore[reportAttributeAccessIssue]


def refuse_unknown_leaves(result: Tensor, start: Tensor, oldest: int, leaves: Sequence[Tensor]) -> None:
    """Look for leaves that a part of the graph uses, from `start` to `result`, but that are not among the inputs.

    Raises:
        RuntimeError: there is one; its gradient would silently be missing.
    """
    refuse_unknown(
        [result],
        oldest,
        leaves,
        "func",
        "name it in params=(tensor,) (adjoint_params= in odeint_adjoint), pass it through args=(tensor,), make func an "
        "nn.Module that holds it, or use gradient='direct'",
        start,
    )


def refuse_unknown(
    values: Sequence[Tensor],
    oldest: int,
    known: Sequence[Tensor],
    subject: str,
    remedy: str,
    start: Tensor | None = None,
) -> None:
    """Look for leaves that `values` were computed from since `oldest` and after `start`, but that are not `known`.

    `subject` is what the user calls that which uses them, and `remedy` says what to do.

    Raises:
        RuntimeError: there is one; its gradient would silently be missing.
    """
    for leaf in other_leaves(values, oldest, known, start)[0]:
        raise RuntimeError(
            f"{subject} uses a tensor of shape {tuple(leaf.shape)} that requires a gradient, but did not use it at the "
            f"start of the solve, where this gradient mode looks for what it must differentiate: {remedy}"
        )


def _ends_of_graph(result: Tensor, oldest: int, start: Tensor | None) -> tuple[list[Tensor], list[str]]:
    """The leaves in the graph of `result`, and the names of the nodes older than `oldest` that it grows from."""
    variables: list[Tensor] = []
    computed: list[str] = []
    seen = {None, None if start is None else start.grad_fn}
    stack = [result.grad_fn]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            variables.append(variable)
        elif node._sequence_nr() < oldest:  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
            computed.append(node.name())  # pyright: ignore[reportOptionalMemberAccess]
        else:
            stack.extend(parent for parent, _ in node.next_functions)  # pyright: ignore[reportOptionalMemberAccess]
    return variables, computed


def refuse_undifferentiable(method: Method, inputs: GradientInputs) -> None:
    """Refuse a method that autograd cannot follow where its gradient would be lost.

    Raises:
        ValueError: a gradient is wanted, and the method has none.
    """
    if inputs.needed and not method.differentiable:
        raise ValueError(
            f"autograd cannot follow the steps of {type(method).__name__}: use gradient='backsolve' (odeint_adjoint), "
            "or solve within torch.no_grad()"
        )


def refuse_inside_transform(gradient: str, problem: Problem, parameters: Sequence[Tensor] | None) -> None:
    """Refuse a gradient with a backward pass of its own, which no transform of `torch.func` can follow.

    Raises:
        ValueError: a gradient is wanted.
    """
    if not torch.is_grad_enabled():
        return
    inputs = GradientInputs(problem, check_parameters("params", parameters or ()))
    slope = problem.func(problem.time(problem.times.start), problem.y0)
    refuse_tracked(gradient, [*inputs.tensors, slope], "gradient='direct' (odeint)")


def refuse_tracked(gradient: str, tensors: Sequence[Tensor], instead: str) -> None:
    """Refuse what `refuse_inside_transform` does, if one of the `tensors` requires a gradient.

    `instead` is what the user may use.

    Raises:
        ValueError: one does.
    """
    if any(map(needs_gradient, tensors)):
        raise ValueError(
            f"{gradient} does not work inside torch.func transforms such as vmap or grad: use {instead}, or solve "
            "within torch.no_grad()"
        )


def refuse_dense_output(wanted: bool) -> None:
    """Refuse dense output where its gradient would be lost.

    Raises:
        ValueError: it was asked for.
    """
    if wanted:
        raise ValueError(
            "dense_output=True is differentiable with gradient='direct' only: use that, or ask for the times that you "
            "need in t_eval"
        )


class _Refuse(torch.autograd.Function):
    @staticmethod
    def forward(sentence: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.view_as(tensor) for tensor in tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.sentence = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(ctx.sentence)


def refuse_to_differentiate(sentence: str, results: Sequence[Tensor], inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    """The same results; differentiating them by `inputs` raises RuntimeError with the sentence.

    Without it there would be no path from one to the other, and the derivative would silently be zero.
    """
    if not torch.is_grad_enabled():
        return results
    return _Refuse.apply(sentence, len(results), *results, *inputs)
