"""What the user's functions use besides their arguments, found in the graph of what they return.

A function may use leaves, and tensors that were computed from leaves elsewhere. It may also make leaves of its own, as
`t.requires_grad_()` does, which are no inputs. A second evaluation tells them apart: what turns up in the graphs of
both was there before, and what a function makes for itself is in one of them only. The numbers that autograd gives to
its nodes would not tell, since every thread counts for itself, and a node may come from any; and nothing records when
a tensor was made.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from torchivp.generators import Generators
from torchivp.split import functions_of

Evaluate = Callable[[], tuple[Tensor | Sequence[Tensor], Sequence[Tensor]]]
"""Evaluates functions of the user's; returns their value or values, and the leaves that stand for their arguments."""

Nodes = Set[Any]
"""Nodes of the graph."""

_OF_A_LEAF: Any = type(get_gradient_edge(torch.zeros((), requires_grad=True))[0])
"""The class of the node that stands for a leaf."""


def search(owners: Sequence[Any], evaluate: Evaluate, generators: Generators) -> tuple[list[Tensor], list[Any]]:
    """What the user's functions are found to use besides their arguments.

    They are evaluated once, and once more if they use what is not known yet. The numbers that they draw, they will draw
    again when they are next evaluated, unless they draw them once for all.

    Args:
        owners: what the user gave; the parameters of those that are an nn.Module are found whatever is used.
        evaluate: evaluates the functions.
        generators: what they may draw from.

    Returns:
        The tensors that require a gradient, and the nodes that made others elsewhere, from tensors not among these.
    """
    modules = [each for owner in owners for each in functions_of(owner) if isinstance(each, nn.Module)]
    parameters = [p for module in modules for p in module_parameters(module) if p.requires_grad]
    found = list({id(p): p for p in parameters}.values())
    before = generators.now()
    values, arguments = _watched(evaluate)
    nodes, leaves = _walk(values, [*arguments, *found])
    after = generators.now()
    if not leaves and after == before:
        return found, []
    generators.put_back(before)
    values, arguments = _watched(evaluate)
    if generators.now() != before:
        generators.put_back(before)
    else:  # the numbers drawn the first time were kept, and are not drawn again
        generators.put_back(after)
    shared: list[Any] = []
    _walk(values, [*arguments, *found], nodes, shared)
    known = [*found, *(node.variable for node in shared if isinstance(node, _OF_A_LEAF))]
    computed = [node for node in shared if not isinstance(node, _OF_A_LEAF) and _walk([node], known)[1]]
    return known, computed


def independent(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The `tensors`; any that was computed from others among them gives way to the leaves that it was computed from.

    The gradient of a leaf includes what reaches it by way of what was computed from it. If that had its own as well,
    autograd would add it once more.
    """
    for x in tensors:
        if x.grad_fn is None:
            continue
        nodes, leaves = _walk(x, [])
        met = {id(leaf) for leaf in leaves}
        if any(id(y) in met or (y.grad_fn in nodes and y.grad_fn is not x.grad_fn) for y in tensors):
            others = {id(y): y for y in (*tensors, *leaves) if y is not x}
            return independent(list(others.values()))
    return list(tensors)


def module_parameters(module: nn.Module) -> list[Tensor]:
    """The parameters of a module, or of a replica that `nn.DataParallel` made, which itself no longer lists them."""
    if not getattr(module, "_is_replica", False):
        return list(module.parameters())
    replicas: list[Any] = list(module.modules())
    return [parameter for replica in replicas for parameter in replica._former_parameters.values()]


class LateLeaves:
    """Looks for leaves that the backward pass of a solve meets, and that were not found at its start.

    The gradient of such a leaf would silently be missing. If func made it for itself, it goes with the graph, and
    nobody can ask for its gradient. If it stays, but does not turn up again where it was met, func has made it anew.

    Args:
        subject: what the user calls that which uses them.
        remedy: what to do about them, for the message.
        elsewhere: the nodes that are known to have made tensors elsewhere.
    """

    def __init__(self, subject: str, remedy: str, elsewhere: Sequence[Any]) -> None:
        self._subject = subject
        self._remedy = remedy
        self._elsewhere = set(elsewhere)
        self._met: list[tuple[weakref.ref[Tensor], Evaluate]] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """For the length of a backward pass. What is left when it is over, and its graphs are gone, is looked at.

        Raises:
            RuntimeError: func uses a leaf that it did not make.
        """
        try:
            yield
            for met, again in self._met:
                leaf = met()
                if leaf is not None and any(other is leaf for other in self.among(*_watched(again))):
                    self._refuse(leaf)
        finally:
            self._met.clear()

    def among(self, values: Tensor | Sequence[Tensor], known: Sequence[Tensor]) -> list[Tensor]:
        """The leaves that `values` were computed from and that are not `known`."""
        return _walk(values, known, self._elsewhere)[1]

    def meet(self, leaves: Sequence[Tensor], again: Evaluate) -> None:
        """Remember `leaves`, which turned up where `again` evaluates once more.

        Raises:
            RuntimeError: one turned up in another evaluation too.
        """
        self._met = [(leaf, where) for leaf, where in self._met if leaf() is not None]
        for leaf in leaves:
            if any(other() is leaf for other, _ in self._met):
                self._refuse(leaf)
        self._met += [(weakref.ref(leaf), again) for leaf in leaves]

    def _refuse(self, leaf: Tensor) -> None:
        raise RuntimeError(
            f"{self._subject} uses a tensor of shape {tuple(leaf.shape)} that requires a gradient, but did not use it "
            f"at the start of the solve, where this gradient mode looks for what it must differentiate: {self._remedy}"
        )


class NoLateLeaves(LateLeaves):
    """Looks for none, since the caller has named what is to be differentiated."""

    def __init__(self) -> None:
        super().__init__("", "", ())

    def among(self, values: Tensor | Sequence[Tensor], known: Sequence[Tensor]) -> list[Tensor]:
        return []


def _watched(evaluate: Evaluate) -> tuple[Tensor | Sequence[Tensor], Sequence[Tensor]]:
    """What `evaluate` returns, with autograd watching."""
    with torch.enable_grad():
        return evaluate()


def _walk(
    ends: Tensor | Sequence[Any], known: Sequence[Tensor], stop: Nodes = frozenset(), met: list[Any] | None = None
) -> tuple[Nodes, list[Tensor]]:
    """Walk through the graph from `ends`, tensors or nodes, to its leaves, but not beyond what is `known`.

    Nodes in `stop` are not walked through either; they are appended to `met`.

    Returns:
        The nodes, and the leaves that are not `known`.
    """
    leaves: list[Tensor] = []
    known_leaves = {id(x) for x in known if x.grad_fn is None}
    known_edges = {(x.grad_fn, x.output_nr) for x in known if x.grad_fn is not None}
    seen: set[Any] = {None}
    stack = [_edge(end) for end in ([ends] if isinstance(ends, Tensor) else ends)]
    while stack:
        edge = stack.pop()
        node = edge[0]
        if node in seen or edge in known_edges:
            continue
        variable = node.variable if isinstance(node, _OF_A_LEAF) else None
        if variable is not None and id(variable) in known_leaves:
            continue
        seen.add(node)
        if node in stop:
            if met is not None:
                met.append(node)
        elif variable is not None:
            leaves.append(variable)
        else:
            stack.extend(node.next_functions)
    return seen, leaves


def _edge(end: Any) -> tuple[Any, int]:
    """Where the graph of a tensor begins, or a node."""
    if not isinstance(end, Tensor):
        return end, 0
    if end.grad_fn is None and end.requires_grad:  # the tensor is a leaf
        return get_gradient_edge(end)[:2]
    return end.grad_fn, end.output_nr
