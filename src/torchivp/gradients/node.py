"""A solve as one node of autograd's graph: its derivatives of every order, what the node keeps, and for how long."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._C._autograd import _get_current_graph_task_keep_graph

from torchivp.boundary import own_precision
from torchivp.gradients.captured import LateLeaves, NoLateLeaves
from torchivp.gradients.vjp import vjp
from torchivp.solution import LeanFailures
from torchivp.torch_func import inside_transform, is_mapped, own_graph


class NodeSolve(ABC):
    """A solve that computes its gradients itself, with respect to tensors that the node is given.

    It keeps what its backward pass needs in attributes, but never a tensor that it returned: that would be a cycle.
    The methods are called without a graph, and are given the tensors.

    Attributes:
        exact: whether its gradients are those of the steps taken, to rounding. If they are not, a gradient that is to
            be differentiated further is that of the steps all the same, so that it is what is differentiated.
        keeps_results: whether the backward pass needs the results.
        mapped: whether `gradients` may be given a whole batch of them as one tensor, as `torch.func.vmap` has it.
        late: looks for leaves that only later steps use.
    """

    exact: ClassVar[bool] = True
    keeps_results: ClassVar[bool] = False
    mapped: ClassVar[bool] = True
    late: LateLeaves

    @abstractmethod
    def forward(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """The results."""

    @abstractmethod
    def again(self, tensors: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """The results, found once more with autograd watching; and the leaves that stand where the tensors stood.

        The tensors may be functions of one another, as an initial state is of a parameter. The leaves are not, so that
        what is found for one is not found again by way of another.
        """

    def gradients(
        self, tensors: Sequence[Tensor], results: Sequence[Tensor], grads: Sequence[Tensor]
    ) -> Sequence[Tensor | None]:
        """The gradients of the tensors, None for zero, given those of the results, which come if it `keeps_results`."""
        return self.gradients_of_steps(tensors, grads)

    def gradients_of_steps(self, tensors: Sequence[Tensor], grads: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """The same, by one graph of all steps."""
        with self.late.watching():
            with torch.enable_grad():
                results, leaves = self.again(tensors)
            if strangers := self.late.among(results, leaves):
                self.late.meet(strangers, lambda: self.again(tensors))
            return vjp(results, grads, leaves)

    @property
    def attributes(self) -> dict[str, Any]:
        """What the node is to have as attributes, for others to find."""
        return {}


def as_node(solve: NodeSolve, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The results of the solve, as functions of the tensors that can be differentiated any number of times."""
    return (_Node if inside_transform() else _PlainNode).apply(solve, *tensors)


class _Node(torch.autograd.Function):
    @staticmethod
    def forward(solve: NodeSolve, *tensors: Tensor) -> tuple[Tensor, ...]:
        return _results(solve, tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.solve, *tensors = inputs
        ctx.count = len(tensors)
        ctx.save_for_backward(*tensors, *(output if ctx.solve.keeps_results else ()))
        for name, value in ctx.solve.attributes.items():
            setattr(ctx, name, value)

    @staticmethod
    @own_precision
    def backward(ctx: Any, *grads: Tensor) -> Any:
        with _kept(ctx) as (solve, saved), LeanFailures():
            tensors, results = saved[: ctx.count], saved[ctx.count :]
            if torch.is_grad_enabled():
                return None, *as_node(_Gradients(solve, len(tensors)), [*tensors, *grads])
            if not solve.mapped and any(map(is_mapped, grads)):
                return None, *_or_zeros(solve.gradients_of_steps(tensors, grads), tensors)
            return None, *_or_zeros(solve.gradients(tensors, results, grads), tensors)


class _PlainNode(_Node):
    """The same outside of transforms: what they need has torch look up the signature of `forward` at every call."""

    setup_context = staticmethod(torch.autograd.Function.setup_context)

    @staticmethod
    def forward(ctx: Any, solve: NodeSolve, *tensors: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        results = _results(solve, tensors)
        _Node.setup_context(ctx, (solve, *tensors), results)
        return results


def _results(solve: NodeSolve, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    with own_graph():
        return tuple(solve.forward(tensors))


class _Gradients(NodeSolve):
    """The gradients of a solve, as functions of its tensors and of the gradients of its results, in this order.

    The values come from the backward pass of the solve if that is exact; their derivatives from all steps at once.
    """

    def __init__(self, solve: NodeSolve, count: int) -> None:
        self._solve = solve
        self._count = count
        self.late = NoLateLeaves()

    def forward(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        inputs, grads = tensors[: self._count], tensors[self._count :]
        solve = self._solve
        found = solve.gradients(inputs, (), grads) if solve.exact else solve.gradients_of_steps(inputs, grads)
        return _or_zeros(found, inputs)

    def again(self, tensors: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        results, leaves = self._solve.again(tensors[: self._count])
        seeds = [grad.detach().requires_grad_() for grad in tensors[self._count :]]
        used = [i for i, result in enumerate(results) if result.requires_grad]
        found: Sequence[Tensor | None] = [None] * len(leaves)
        if used:
            found = torch.autograd.grad(
                [results[i] for i in used], leaves, [seeds[i] for i in used], create_graph=True, allow_unused=True
            )
        return _or_zeros(found, leaves), [*leaves, *seeds]


def _or_zeros(found: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(x) if gradient is None else gradient for gradient, x in zip(found, like, strict=True)]


@contextmanager
def _kept(ctx: Any) -> Iterator[tuple[NodeSolve, Sequence[Tensor]]]:
    """For the length of a backward pass: `ctx.solve`, and the tensors that `ctx` has saved.

    Autograd frees the tensors after a backward pass that retains no graph. The node then lets go of the solve as well:
    of its checkpoints, and of func. A module that keeps its own solution holds the graph, and the graph, through func,
    the module; Python's garbage collector does not see through the graph, and would never free them.

    Raises:
        RuntimeError: the graph was freed; the sentence is autograd's.
    """
    saved = ctx.saved_tensors
    yield ctx.solve, saved
    if not _get_current_graph_task_keep_graph():
        del ctx.solve
