"""The user's func on the flat state of one row, to be read."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchivp.fused.refusal import CannotFuse
from torchivp.fused.trace import Traced, read_function
from torchivp.state import StateLayout


class Reading(NamedTuple):
    """A function as it was read, and what it is called with.

    Attributes:
        traced: its graph.
        inputs: the inputs of the graph.
        roles: what each is: "t", "y", "shared", or, where there is an entry for each row, the number of the leaf.
        leaves: the leaves of the arguments, as the user gave them.
    """

    traced: Traced
    inputs: Sequence[Tensor]
    roles: Sequence[Any]
    leaves: Sequence[Any]

    @property
    def tensors(self) -> list[Tensor]:
        """What the function was read with, all rows of it."""
        pairs = zip(self.roles, self.inputs, strict=True)
        return [self.leaves[role] if isinstance(role, int) else x for role, x in pairs]

    @property
    def used(self) -> list[Tensor | None]:
        """The same without time and state, which are None."""
        return [None if role in ("t", "y") else x for role, x in zip(self.roles, self.tensors, strict=True)]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The roles without numbers: "row" where there is an entry for each row."""
        return tuple("row" if isinstance(role, int) else role for role in self.roles)


class Field:
    """`func(t, y, *args)` of one row of a layout, whatever func is: the reading is kept for every code of a func.

    Args:
        layout: the state of all rows.
    """

    def __init__(self, layout: StateLayout):
        self.layout = layout
        dims = 1 if layout.lead else 0
        one = layout.with_rows(1) if dims else layout
        shape = (1,) * (dims + len(layout.shapes[0])) if layout.is_tensor else (1, 1)
        self.t = torch.zeros(shape if dims else (), dtype=layout.real_dtype, device=layout.device)
        # Dynamo reads past a derivative of the user's own where nothing needs one.
        self.y = torch.ones(layout.size, dtype=layout.dtype, device=layout.device, requires_grad=True)
        self.tolerances: dict[tuple[str, float], Tensor] = {}
        self._signature = (layout.size, tuple(layout.shapes), layout.dtype, dims, str(layout.skeleton))
        self._evaluate = _of_tensor(one) if layout.is_tensor else _of_tree(one)
        self._evaluate_event = _of_event(one)
        self._two = _TwoRows(layout) if dims else None

    def read(
        self,
        func: Callable[..., Any],
        args: Sequence[Any],
        one_row: bool = False,
        owner: Any = None,
        is_event: bool = False,
    ) -> Reading:
        """The graph of func with these arguments.

        Args:
            func: the function.
            args: its arguments.
            one_row: whether these are those of one row, and differ from row to row.
            owner: what tells func apart from others of the same code.
            is_event: whether it gives one number, whose sign is that of an event, and not dy/dt.

        Raises:
            CannotFuse: func cannot be read.
        """
        leaves, spec = list(args), None
        if not all(isinstance(leaf, Tensor) for leaf in leaves):
            leaves, spec = pytree.tree_flatten(tuple(args))
        lead, rows = self.layout.lead, self.layout.rows
        per_row: dict[int, int] = {}
        of_row, arguments = list(leaves), tuple(args)
        for i, leaf in enumerate(leaves):
            if lead and isinstance(leaf, Tensor) and leaf.shape[: len(lead)] == lead:
                of_row[i] = _some_rows(leaf, rows, len(lead), 1)
                of_row[i].requires_grad_(leaf.requires_grad)
                per_row[id(of_row[i])] = i
        if one_row:
            per_row = {id(leaf): i for i, leaf in enumerate(leaves)}
        elif per_row:
            arguments = tuple(of_row) if spec is None else pytree.tree_unflatten(of_row, spec)
        key = (_code_of(func), owner, is_event, self._signature, len(args), one_row, *per_row.values())
        evaluate = self._evaluate_event if is_event else self._evaluate
        try:
            traced, inputs = read_function(key, evaluate, unwrapped(func), self.t, self.y, arguments)
        except CannotFuse as error:
            if one_row or not per_row:
                raise
            raise type(error)(f"{error}. {self._rows_of(leaves, per_row.values())}") from error
        if traced.roles is None:
            traced.roles = tuple(
                "t" if x is self.t else "y" if x is self.y else per_row.get(id(x), "shared") for x in inputs
            )
        return Reading(traced, inputs, traced.roles, leaves)

    def _rows_of(self, leaves: Sequence[Any], numbers: Iterable[int]) -> str:
        """What func gets of the arguments with these numbers: perhaps it takes them for something else."""
        lead, shapes = tuple(self.layout.lead), ", ".join(str(tuple(leaves[i].shape)) for i in numbers)
        return (
            f"Tensors in args that begin with the batch dimensions {lead} have an entry for each row, here those of "
            f"shape {shapes}, and func is read with one row: if one is the same for all rows, write args=(w[None],), "
            "or let func hold it"
        )

    def apart(self, func: Callable[..., Any], args: Sequence[Any], reading: Reading, is_event: bool = False) -> bool:
        """Whether a row of func depends on that row alone, whatever the values of its arguments and parameters are.

        What func does to two rows is compared with what its graph does to each of them, all of it at numbers drawn by
        chance.
        """
        if self._two is None:
            return True
        rows, lead = self.layout.rows, self.layout.lead
        leaves, spec = pytree.tree_flatten(tuple(args))
        of_two = list(leaves)
        for i in {role for role in reading.roles if isinstance(role, int)}:
            of_two[i] = _some_rows(leaves[i], rows, len(lead), 2).requires_grad_(leaves[i].requires_grad)
        numbers = {id(of_two[i]): i for i, x in enumerate(leaves) if of_two[i] is not x}
        key = (_code_of(func), "two rows", is_event, self._signature, len(args), *numbers.values())
        t, y, evaluate = self._two.t, self._two.y, self._two.event if is_event else self._two.func
        traced, inputs = read_function(key, evaluate, unwrapped(func), t, y, pytree.tree_unflatten(of_two, spec))
        drawn: dict[Any, Tensor] = {"t": _drawn(t), "y": _drawn(y).view(2, -1)}
        drawn |= {i: _drawn(of_two[i]) for i in numbers.values()}
        drawn |= {id(x): _drawn(x) for x in (*inputs, *reading.inputs)}
        roles = ["t" if x is t else "y" if x is y else numbers.get(id(x), id(x)) for x in inputs]
        with torch.no_grad():
            together = traced.module(*(drawn[role].reshape(x.shape) for role, x in zip(roles, inputs, strict=True)))[0]
            for row in (0, 1):
                own = [
                    drawn[id(x)] if role == "shared" else drawn[role][row : row + 1].reshape(x.shape)
                    for role, x in zip(reading.roles, reading.inputs, strict=True)
                ]
                alone = reading.traced.module(*own)[0]
                if not torch.allclose(together.view(2, -1)[row], alone, rtol=1e-3, atol=1e-4, equal_nan=True):
                    return False
        return True


class _TwoRows:
    """How functions are evaluated for two rows, to see whether these depend on each other.

    Attributes:
        t: the times.
        y: the states.
        func: evaluates what gives dy/dt.
        event: evaluates what gives the sign of an event.
    """

    def __init__(self, layout: StateLayout):
        two = layout.with_rows(2)
        dims = len(layout.shapes[0]) if layout.is_tensor else 1
        self.t = torch.zeros((2, *[1] * dims), dtype=layout.real_dtype, device=layout.device)
        self.y = torch.ones(2 * layout.size, dtype=layout.dtype, device=layout.device, requires_grad=True)
        self.func = _of_tensor(two) if layout.is_tensor else _of_tree(two)
        self.event = _of_event(two)


def _some_rows(leaf: Tensor, rows: int, dims: int, count: int) -> Tensor:
    """So many rows like those of an argument: the first, over again if there are fewer, zeros if there are none."""
    flat = leaf.detach().reshape(rows, *leaf.shape[dims:])[:count]
    return torch.cat([flat] * count)[:count] if rows else flat.new_zeros(count, *flat.shape[1:])


def _drawn(x: Tensor) -> Tensor:
    """Numbers like those of a tensor, drawn by chance; whole numbers as they are."""
    if not x.is_floating_point():
        return x.detach()
    drawn = torch.rand(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(x.numel())) + 0.5
    return drawn.to(x.device)


def _code_of(func: Any) -> Any:
    """What functions have in common that are read as one: their code, or their class."""
    while isinstance(func, functools.partial):
        func = func.func
    return getattr(func, "__code__", None) or type(func)


def _of_tensor(layout: StateLayout) -> Callable[..., Tensor]:
    shape, dtype = (*layout.lead, *layout.shapes[0]), layout.dtype

    def field_of_tensor(func: Any, t: Tensor, y: Tensor, args: tuple[Any, ...]) -> Tensor:
        slope = func(t, y.view(shape), *args)
        if slope.shape != shape:
            raise ValueError("func must return dy/dt in the shape of y")
        return slope.to(dtype).reshape(-1)

    return field_of_tensor


def _of_tree(layout: StateLayout) -> Callable[..., Tensor]:
    lead, shapes, dtype, rows = layout.lead, layout.shapes, layout.dtype, layout.rows
    tree = _tree(layout)

    def field_of_tree(func: Any, t: Tensor, y: Tensor, args: tuple[Any, ...]) -> Tensor:
        slopes = layout.leaves_of(func(t, tree(y), *args))
        for slope, shape in zip(slopes, shapes, strict=True):
            if slope.shape != lead + shape:
                raise ValueError("func must return dy/dt in the shape of y")
        return torch.cat([slope.to(dtype).reshape(rows, -1) for slope in slopes], dim=1).reshape(-1)

    return field_of_tree


def _tree(layout: StateLayout) -> Callable[[Tensor], Any]:
    """What makes the user's state of a flat one."""
    lead, sizes, shapes, dtypes = layout.lead, layout.sizes, layout.shapes, layout.dtypes
    spec, rows = layout.spec, layout.rows

    def tree(y: Tensor) -> Any:
        parts = [
            part.reshape(lead + shape).to(kind)
            for part, shape, kind in zip(y.view(rows, -1).split(sizes, dim=1), shapes, dtypes, strict=True)
        ]
        return pytree.tree_unflatten(parts, spec)

    return tree


def _of_event(layout: StateLayout) -> Callable[..., Tensor]:
    shape, dtype = (*layout.lead, *layout.shapes[0]), layout.dtype
    state = (lambda y: y.view(shape)) if layout.is_tensor else _tree(layout)

    def event(g: Any, t: Tensor, y: Tensor, args: tuple[Any, ...]) -> Tensor:
        value = g(t, state(y), *args)
        if not isinstance(value, Tensor):  # a number made of a tensor, which is found out and refused
            value = torch.full((), value, dtype=dtype)
        if value.dtype == torch.bool:  # false is another sign than true, and not zero
            value = 2.0 * value.to(dtype) - 1.0
        return value.to(dtype).reshape(-1)

    return event


def unwrapped(func: Any) -> Any:
    """What Dynamo is to read: a func that was compiled is the func that it was compiled from."""
    original = getattr(func, "_torchdynamo_orig_callable", None) or getattr(func, "_orig_mod", None)
    if getattr(func, "_torchdynamo_disable", False):
        raise CannotFuse("func is kept from being read, by torch.compiler.disable or by being a door of torchivp")
    return func if original is None else original
