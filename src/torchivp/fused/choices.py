"""Operations element by element that are more than an expression of one kind of numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import fx

from torchivp.fused.arrays import Array, kind_of
from torchivp.fused.operations import LOGIC, REAL, WHOLE, power

if TYPE_CHECKING:
    from torchivp.fused.lower import Lowering


def _where(lowering: Lowering, node: fx.Node, condition: Array, a: Any, b: Any) -> Array:
    kind = kind_of(node.meta["val"].dtype)
    condition, truth = lowering.as_kind(condition, "bool")
    (a, cast_a), (b, cast_b) = (lowering.as_kind(lowering.array(x), kind) for x in (a, b))
    if kind == "bool":
        return lowering.fill(
            node, [condition, a, b], lambda c, x, y: f"(({truth(c)} & {cast_a(x)}) | (neg({truth(c)}) & {cast_b(y)}))"
        )
    wide = "{}" if kind == "real" else "widen_i<W>({})"
    return lowering.fill(
        node, [condition, a, b], lambda c, x, y: f"sel({wide.format(truth(c))}, {cast_a(x)}, {cast_b(y)})"
    )


def _clamp(lowering: Lowering, node: fx.Node, array: Array, low: Any = None, high: Any = None) -> Array:
    kind = kind_of(node.meta["val"].dtype)
    table = REAL if kind == "real" else WHOLE
    bounds = [(table[name], lowering.array(x)) for name, x in (("maximum", low), ("minimum", high)) if x is not None]

    def expression(result: str, *given: str) -> str:
        for (bounded, _), bound in zip(bounds, given, strict=True):
            result = bounded(result, bound)
        return result

    return lowering.fill_as(kind, node, [array, *(bound for _, bound in bounds)], expression)


def _power(lowering: Lowering, node: fx.Node, base: Any, exponent: Any) -> Array:
    base, exponent = lowering.array(base), lowering.array(exponent)
    known = float(exponent.constant) if exponent.constant is not None and exponent.constant.numel() == 1 else None
    shape = node.meta["val"].shape
    if kind_of(node.meta["val"].dtype) == "int":
        if known is None or not 0 <= known <= 8:
            raise lowering.refusal(
                "of whole numbers is compiled for a known exponent from 0 to 8: write numbers with a point"
            )
        one = ["up_i<W>(1)"] if known == 0 else []
        return lowering.fill(node, [base.expanded(shape)], lambda x: f"({' * '.join(one or [x] * int(known))})")
    if known is not None:
        return lowering.fill_as("real", node, [base.expanded(shape)], lambda x: power(x, known))
    return lowering.fill_as("real", node, [base, exponent], lambda x, y: f"f_pow<W>({x}, {y})")


def _convert(lowering: Lowering, node: fx.Node, array: Array, *_: Any, **__: Any) -> Array:
    """An array as numbers of the kind that the node has."""
    kind = kind_of(node.meta["val"].dtype)
    array, cast = lowering.as_kind(array, kind)
    source = node.args[0]
    same = isinstance(source, fx.Node) and lowering.loses_nothing(source.meta["val"].dtype, node.meta["val"].dtype)
    return array if array.constant is not None or same else lowering.fill(node, [array], cast)


def _copy(lowering: Lowering, node: fx.Node, old: Array, new: Array, *_: Any) -> Array:
    value = node.meta["val"]
    return lowering.fill_as(kind_of(value.dtype), node, [new.expanded(value.shape)], lambda x: x)


def _logical(name: str) -> Callable[..., Array]:
    return lambda lowering, node, *given: lowering.fill_as("bool", node, given, LOGIC[name])


def _whole_quotient(name: str) -> Callable[..., Array]:
    """Of whole numbers, by one that is known."""

    def lower(lowering: Lowering, node: fx.Node, a: Any, b: Any, *, rounding_mode: str | None = None) -> Array:
        if kind_of(node.meta["val"].dtype) != "int":
            return lowering.pointwise(node, [a, b], {"rounding_mode": rounding_mode} if rounding_mode else {})
        a, divisor = lowering.as_kind(lowering.array(a), "int")[0], lowering.array(b).constant
        if divisor is None or divisor.numel() != 1 or int(divisor) == 0:
            raise lowering.refusal(
                "of whole numbers is compiled for a divisor that is known: write numbers with a point"
            )
        how = f"i_{name}_{rounding_mode or 'floor'}"
        return lowering.fill(node, [a.expanded(node.meta["val"].shape)], lambda x: f"{how}<W>({x}, {int(divisor)})")

    return lower


CHOICES: dict[str, Callable[..., Any]] = {
    "where": _where,
    "clamp": _clamp,
    "clamp_min": lambda lowering, node, a, low: _clamp(lowering, node, a, low, None),
    "clamp_max": lambda lowering, node, a, high: _clamp(lowering, node, a, None, high),
    "pow": _power,
    "copy": _copy,
    "_to": _convert,
    "to": _convert,
    "convert_element_type": _convert,
    "logical_and": _logical("bitwise_and"),
    "logical_or": _logical("bitwise_or"),
    "logical_xor": _logical("bitwise_xor"),
    "logical_not": _logical("bitwise_not"),
    "div": _whole_quotient("div"),
    "floor_divide": _whole_quotient("div"),
    "remainder": _whole_quotient("mod"),
    "fmod": _whole_quotient("fmod"),
}
"""By their names; called with the lowering, the node and its arguments."""
