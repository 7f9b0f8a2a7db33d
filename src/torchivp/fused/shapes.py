"""Operations that see, join or lay out elements otherwise, without computing with them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from torchivp.fused.arrays import Array

if TYPE_CHECKING:
    from torchivp.fused.lower import Lowering


def _view(how: Callable[..., Any]) -> Callable[..., Any]:
    return lambda lowering, node, array, *args, **kwargs: how(array, *args)


def _transposed(array: Array, i: int, j: int) -> Array:
    if not array.shape:
        return array
    order = list(range(len(array.shape)))
    order[i], order[j] = order[j], order[i]
    return array.permuted(order)


def _sliced(array: Array, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Array:
    return array.sliced(dim % len(array.shape), start, end, step)


def _squeezed(array: Array, dims: Sequence[int] | int | None = None) -> Array:
    if dims is None:
        dims = range(len(array.shape))
    return array.squeezed([dims] if isinstance(dims, int) else dims)


def _reshape(lowering: Lowering, node: fx.Node, array: Array, *_: Any, **__: Any) -> Array:
    return lowering.reshaped(array, node.meta["val"].shape)


def _expand(lowering: Lowering, node: fx.Node, array: Array, *_: Any, **__: Any) -> Array:
    return array.expanded(node.meta["val"].shape)


def _split(lowering: Lowering, node: fx.Node, array: Array, sizes: Any, dim: int = 0) -> list[Array]:
    dim %= len(array.shape)
    if isinstance(sizes, int):
        ends = range(sizes, array.shape[dim] + sizes, sizes)
        return [array.sliced(dim, end - sizes, end, 1) for end in ends]
    ends = itertools.accumulate(sizes)
    return [array.sliced(dim, end - size, end, 1) for size, end in zip(sizes, ends, strict=True)]


def _diagonal(array: Array, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Array:
    dim1, dim2 = dim1 % len(array.shape), dim2 % len(array.shape)
    rest = [d for d in range(len(array.shape)) if d not in (dim1, dim2)]
    a = array.permuted([*rest, dim1, dim2])
    a = a.sliced(len(rest), max(-offset, 0), None, 1).sliced(len(rest) + 1, max(offset, 0), None, 1)
    n = min(a.shape[-2:])
    constant = None if a.constant is None else a.constant.diagonal(0, -2, -1)
    strides = (*a.strides[:-2], a.strides[-2] + a.strides[-1])
    return Array(a.place, (*a.shape[:-2], n), strides, a.offset, a.kind, a.lanes, constant)


def _as_strided(
    lowering: Lowering, node: fx.Node, array: Array, shape: Sequence[int], strides: Sequence[int], offset: int = 0
) -> Array:
    """The memory of a tensor in order, seen otherwise."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if not source.meta["val"].is_contiguous():
        raise lowering.refusal("of a tensor that is not contiguous is not compiled: write indices or reshape")
    if array.constant is not None:
        return Array.known(array.constant.contiguous().as_strided(shape, strides, offset))
    a = lowering.materialised(array)
    return Array(a.place, tuple(shape), tuple(strides), a.offset + (offset or 0), a.kind, a.lanes)


def _cat(lowering: Lowering, node: fx.Node, arrays: Sequence[Array], dim: int = 0) -> Array:
    arrays = [x for x in arrays if x.size or len(x.shape) > 1] or arrays[:1]
    target = lowering.new(node, any(x.lanes for x in arrays))
    dim, start = dim % len(target.shape), 0
    for array in arrays:
        end = start + array.shape[dim]
        lowering.copy_into(target.sliced(dim, start, end, 1), array)
        start = end
    return target


def _with_part(view: Callable[..., Array]) -> Callable[..., Array]:
    """A copy of an array in which a part, seen by `view`, is replaced."""

    def lower(lowering: Lowering, node: fx.Node, array: Array, part: Array, *args: Any, **kwargs: Any) -> Array:
        target = lowering.new(node, array.lanes or part.lanes)
        lowering.copy_into(target, array)
        lowering.copy_into(view(target, *args, **kwargs), part)
        return target

    return lower


def _repeat(lowering: Lowering, node: fx.Node, array: Array, repeats: Sequence[int]) -> Array:
    shape = (1,) * (len(repeats) - len(array.shape)) + array.shape
    a = array.expanded(shape)
    for d in reversed(range(len(shape))):
        a = a.unsqueezed(d)
    wide = a.expanded([n for pair in zip(repeats, shape, strict=True) for n in pair])
    return _reshape(lowering, node, wide)


def _constant_pad(lowering: Lowering, node: fx.Node, array: Array, pad: Sequence[int], value: float = 0) -> Array:
    target = lowering.new(node, array.lanes)
    filling = torch.tensor(value, dtype=node.meta["val"].dtype)
    lowering.copy_into(target, Array.known(filling).expanded(target.shape))
    inner, source = target, array
    for number in range(len(pad) // 2):
        dim = len(array.shape) - 1 - number
        before, after = pad[2 * number], pad[2 * number + 1]
        source = source.sliced(dim, max(-before, 0), source.shape[dim] - max(-after, 0), 1)
        inner = inner.sliced(dim, max(before, 0), inner.shape[dim] - max(after, 0), 1)
    lowering.copy_into(inner, source)
    return target


def _full(number: int | None, value: float = 0) -> Callable[..., Array]:
    """An array of one number: the argument of that number, or `value`."""

    def lower(lowering: Lowering, node: fx.Node, *args: Any, **kwargs: Any) -> Array:
        like: Tensor = node.meta["val"]
        given = value if number is None else args[number] if number < len(args) else kwargs["fill_value"]
        if not isinstance(given, Array):
            return Array.known(torch.full(like.shape, given, dtype=like.dtype))
        return given.expanded(like.shape)

    return lower


def _triangle(lower_part: bool) -> Callable[..., Array]:
    def lower(lowering: Lowering, node: fx.Node, array: Array, diagonal: int = 0) -> Array:
        ones = torch.ones(array.shape[-2:], dtype=torch.bool)
        mask = ones.tril(diagonal) if lower_part else ones.triu(diagonal)
        target = lowering.new(node, array.lanes)
        rows, columns = array.shape[-2:]
        nothing = Array.known(torch.zeros((), dtype=node.meta["val"].dtype))
        for i, j in itertools.product(range(rows), range(columns)):
            part = array.selected(-1, j).selected(-1, i) if mask[i, j] else nothing.expanded(array.shape[:-2])
            lowering.copy_into(target.selected(-1, j).selected(-1, i), part)
        return target

    return lower


SHAPES: dict[str, Callable[..., Any]] = {
    "permute": _view(Array.permuted),
    "t": _view(lambda a: _transposed(a, 0, -1)),
    "transpose": _view(_transposed),
    "select": _view(Array.selected),
    "slice": _view(_sliced),
    "unsqueeze": _view(Array.unsqueezed),
    "squeeze": _view(_squeezed),
    "expand": _expand,
    "broadcast_to": _expand,
    "flip": _view(Array.flipped),
    "unbind": _view(lambda a, dim=0: [a.selected(dim, i) for i in range(a.shape[dim])]),
    "split": _split,
    "split_with_sizes": _split,
    "diagonal": _view(_diagonal),
    "as_strided": _as_strided,
    "view": _reshape,
    "reshape": _reshape,
    "_unsafe_view": _reshape,
    "alias": _view(lambda a: a),
    "detach": _view(lambda a: a),
    "clone": _view(lambda a: a),
    "lift_fresh": _view(lambda a: a),
    "cat": _cat,
    "select_scatter": _with_part(Array.selected),
    "slice_scatter": _with_part(_sliced),
    "diagonal_scatter": _with_part(_diagonal),
    "repeat": _repeat,
    "constant_pad_nd": _constant_pad,
    "tril": _triangle(True),
    "triu": _triangle(False),
    "fill": _full(1),
    "full": _full(1),
    "full_like": _full(1),
    "new_full": _full(2),
    "zeros_like": _full(None),
    "new_zeros": _full(None),
    "_new_zeros_with_same_feature_meta": _full(None),
    "empty": _full(None),
    "empty_strided": _full(None),
    "empty_like": _full(None),
    "new_empty": _full(None),
    "new_empty_strided": _full(None),
    "ones_like": _full(None, 1),
    "new_ones": _full(None, 1),
}
"""By their names; called with the lowering, the node and its arguments."""
