"""Operations that read or write elements at places that are computed, and look for places."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from torchivp.fused.arrays import Array, Index

if TYPE_CHECKING:
    from torchivp.fused.lower import Lowering

Chosen = Sequence["int | str | tuple[Array, Index]"]
"""Where an element is, for each dimension: a number or a loop variable, or the element of an array of whole numbers."""

Choice = Callable[[Index], Chosen]
"""Which element is meant at a place of another array."""


class _Indexing:
    """`array[indices]`, where an index is an array of whole numbers or None, which stands for all of a dimension.

    Attributes:
        shape: the shape of what is seen.
    """

    def __init__(self, lowering: Lowering, array: Array, indices: Sequence[Array | None]):
        self.indices = [x for index in indices for x in _without_masks(lowering, index)]
        self.indices += [None] * (len(array.shape) - len(self.indices))
        given = [d for d, x in enumerate(self.indices) if x is not None]
        self._together = tuple(torch.broadcast_shapes(*(x.shape for x in self.indices if x is not None)))
        self._first = given[0] if given == list(range(given[0], given[-1] + 1)) else 0
        around = [n for n, x in zip(array.shape, self.indices, strict=True) if x is None]
        self.shape = (*around[: self._first], *self._together, *around[self._first :])

    @property
    def lanes(self) -> bool:
        """Whether the places differ from row to row."""
        return any(x is not None and x.lanes for x in self.indices)

    def chosen(self, place: Index) -> Chosen:
        """Which element of the array is seen at a place."""
        beyond = self._first + len(self._together)
        around = iter([*place[: self._first], *place[beyond:]])
        return [next(around) if x is None else (x, place[self._first : beyond]) for x in self.indices]


def _without_masks(lowering: Lowering, index: Array | None) -> Iterator[Array | None]:
    if index is None or index.kind == "int":
        yield index
    elif index.constant is not None:
        yield from (Array.known(places) for places in index.constant.nonzero(as_tuple=True))
    else:
        raise lowering.refusal("by a mask has as many elements as are true, which depends on data: write torch.where")


def position(lowering: Lowering, array: Array, chosen: Chosen) -> tuple[list[int | str], list[str]]:
    """Where an element is: what of its index is known, with zeros for the rest, and the terms of the rest."""
    known: list[int | str] = []
    terms: list[str] = []
    for entry, n, stride in zip(chosen, array.shape, array.strides, strict=True):
        if not isinstance(entry, tuple):
            known.append(entry)
            continue
        x, index = entry
        index = index[len(index) - len(x.shape) :]
        if x.constant is not None and all(isinstance(i, int) or m == 1 for i, m in zip(index, x.shape, strict=True)):
            number = int(x.constant[tuple(0 if m == 1 else int(i) for i, m in zip(index, x.shape, strict=True))])
            known.append(number % n)
        else:
            known.append(0)
            terms.append(f"{stride} * wrapped<W>({lowering.read(x, index, True)}, {n})")
    return known, terms


def _gathered(lowering: Lowering, array: Array, chosen: Chosen, lanes: bool) -> str:
    """The element of an array at a place."""
    memory = array if array.constant is None else lowering.in_memory(array)
    known, terms = position(lowering, memory, chosen)
    if not terms:
        return lowering.read(array, known, lanes)
    assert memory.kind != "bool"
    gather = f"gather{'_i' if memory.kind == 'int' else ''}{'_lanes' if memory.lanes else ''}"
    return f"{gather}<W>({memory.place} + {memory.flat_index(known)}, {' + '.join(terms)})"


def _put(lowering: Lowering, target: Array, chosen: Chosen, value: str, add: bool) -> str:
    """The line that writes an element at a place."""
    known, terms = position(lowering, target, chosen)
    if not terms:
        return f"{target.place}[{target.flat_index(known)}] {'+=' if add else '='} {value};"
    assert target.kind != "bool"
    scatter = "scatter" if target.kind == "real" else "scatter_i"
    return (
        f"{scatter}<W, {'true' if add else 'false'}>({target.place} + {target.flat_index(known)}, "
        f"{' + '.join(terms)}, {value});"
    )


def _seen(lowering: Lowering, array: Array, shape: Sequence[int], lanes: bool, chosen: Choice) -> Array:
    """The elements of an array that are `chosen` for the places of a shape; `lanes`: if these differ between rows."""
    target = lowering.room(shape, array.kind, array.lanes or lanes)
    with lowering.loops(target, shape) as (places, write):
        for place in places:
            value = _gathered(lowering, array, chosen(place), target.lanes)
            write(f"{target.place}[{target.flat_index(place)}] = {lowering.typed(value, target.lanes)};")
    return target


def _with_values(
    lowering: Lowering, array: Array, values: Array, shape: Sequence[int], chosen: Choice, add: bool
) -> Array:
    """A copy of an array in which the elements `chosen` for the places of a shape are the values there, or more."""
    target = lowering.room(array.shape, array.kind, True)
    lowering.copy_into(target, array)
    values, cast = lowering.as_kind(values, target.kind)
    with lowering.loops(target, shape) as (places, write):
        for place in places:
            write(_put(lowering, target, chosen(place), cast(lowering.read(values, place, True)), add))
    return target


def _on_numbers(how: Callable[..., Array]) -> Callable[..., Array]:
    """Truths are read and written as whole numbers where places differ from row to row."""

    def lower(lowering: Lowering, node: fx.Node, array: Array, *args: Any, **kwargs: Any) -> Array:
        if array.kind != "bool":
            return how(lowering, node, array, *args, **kwargs)
        if array.constant is not None:
            numbers = Array.known(array.constant.to(torch.int64))
        else:
            numbers = lowering.filled(array.shape, [array], lowering.as_kind(array, "int")[1], "int")
        found = how(lowering, node, numbers, *args, **kwargs)
        return lowering.filled(found.shape, [found], lowering.as_kind(found, "bool")[1], "bool")

    return lower


def _index(lowering: Lowering, node: fx.Node, array: Array, indices: Sequence[Array | None]) -> Array:
    indexing = _Indexing(lowering, array, indices)
    return _seen(lowering, array, node.meta["val"].shape, indexing.lanes, indexing.chosen)


def _index_select(lowering: Lowering, node: fx.Node, array: Array, dim: int, index: Array) -> Array:
    if not array.shape:
        return array
    one = index if index.shape else index.unsqueezed(0)
    return _index(lowering, node, array, [*[None] * (dim % len(array.shape)), one])


def _index_put(
    lowering: Lowering,
    node: fx.Node,
    array: Array,
    indices: Sequence[Array | None],
    values: Array,
    accumulate: bool = False,
    *_: Any,
) -> Array:
    masks = [x for x in indices if x is not None and x.kind == "bool" and x.constant is None]
    if masks:
        return _masked_put(lowering, node, array, indices, values, accumulate)
    indexing = _Indexing(lowering, array, indices)
    shape = indexing.shape
    return _with_values(lowering, array, values.expanded(shape), shape, indexing.chosen, accumulate)


def _masked_put(
    lowering: Lowering, node: fx.Node, array: Array, indices: Sequence[Array | None], values: Array, accumulate: bool
) -> Array:
    mask, values_dims = indices[0], len(values.shape)
    rest = len(array.shape) - (0 if mask is None else len(mask.shape))
    if mask is None or len(indices) > 1 or (values_dims > rest and values.shape[0] != 1) or array.kind != "real":
        raise lowering.refusal("by a mask is compiled for one mask and one value for all: write torch.where")
    if values_dims > rest:
        values = values.squeezed([0])
    for _ in range(rest):
        mask = mask.unsqueezed(len(mask.shape))
    new = "{x} + {v}" if accumulate else "{v}"
    return lowering.fill(
        node,
        [mask.expanded(array.shape), array, values.expanded(array.shape)],
        lambda m, x, v: f"sel({m}, {new.format(x=x, v=v)}, {x})",
    )


def _along(array: Array, dim: int, index: Array) -> Choice:
    """Which element of the array is meant at a place of the index, which numbers those along a dimension."""
    return lambda place: [(index, place) if d == dim % len(array.shape) else i for d, i in enumerate(place)]


def _gather(lowering: Lowering, node: fx.Node, array: Array, dim: int, index: Array, **_: Any) -> Array:
    if not array.shape:
        of_one = _gather(lowering, node, array.unsqueezed(0), 0, lowering.reshaped(index, (1,)))
        return lowering.reshaped(of_one, node.meta["val"].shape)
    return _seen(lowering, array, index.shape, index.lanes, _along(array, dim, index))


def _scattering(add: bool) -> Callable[..., Array]:
    def lower(
        lowering: Lowering, node: fx.Node, array: Array, dim: int, index: Array, source: Any, **how: Any
    ) -> Array:
        if how.get("reduce") is not None or not array.shape:
            raise lowering.refusal("with reduce is not compiled: write scatter_add")
        source = lowering.array(source)
        source = source if source.shape else source.expanded(index.shape)
        return _with_values(lowering, array, source, index.shape, _along(array, dim, index), add)

    return lower


def _search(lowering: Lowering, node: fx.Node, sorted_: Array, values: Any, right: bool) -> Array:
    """How many of the sorted numbers lie before each value."""
    if len(sorted_.shape) != 1 or sorted_.lanes:
        raise lowering.refusal("is compiled for one sorted sequence that all rows share")
    (sorted_, _), (values, cast) = (lowering.as_kind(lowering.array(x), "real") for x in (sorted_, values))
    memory = lowering.materialised(sorted_) if sorted_.constant is None else lowering.in_memory(sorted_)
    where, n = f"{memory.place} + {memory.offset}", sorted_.shape[0]
    side = "true" if right else "false"
    return lowering.fill(node, [values], lambda x: f"search<W, {side}>({where}, {n}, {cast(x)})")


def _searchsorted(
    lowering: Lowering, node: fx.Node, sorted_: Array, values: Any, *, right: bool = False, side: Any = None, **how: Any
) -> Array:
    if how.get("sorter") is not None:
        raise lowering.refusal("with sorter is not compiled: sort before the solve")
    return _search(lowering, node, sorted_, values, right or side == "right")


def _bucketize(
    lowering: Lowering, node: fx.Node, values: Any, sorted_: Array, *, right: bool = False, **_: Any
) -> Array:
    return _search(lowering, node, sorted_, values, right)


PLACES: dict[str, Callable[..., Any]] = {
    "index": _on_numbers(_index),
    "_unsafe_index": _on_numbers(_index),
    "index_select": _on_numbers(_index_select),
    "index_put": _on_numbers(_index_put),
    "_unsafe_index_put": _on_numbers(_index_put),
    "gather": _on_numbers(_gather),
    "scatter": _on_numbers(_scattering(False)),
    "scatter_add": _on_numbers(_scattering(True)),
    "searchsorted": _searchsorted,
    "bucketize": _bucketize,
}
"""By their names; called with the lowering, the node and its arguments."""
