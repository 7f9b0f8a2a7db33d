"""Operations that bring elements together: sums, extremes, norms, running sums, products of matrices."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import fx

from torchivp.fused.arrays import TYPES, UNROLL, Array, Kind, kind_of, literal

if TYPE_CHECKING:
    from torchivp.fused.lower import Lowering


_BLOCK = 4
"""So many elements of a matrix product are summed up side by side."""


def _reduced(
    lowering: Lowering,
    node: fx.Node,
    array: Array,
    dims: Sequence[int],
    begin: str,
    step: Callable[[str, str], str],
    end: Callable[[str], str] = lambda s: s,
) -> Array:
    """The elements along `dims`, or all, brought together: from `begin` by `step`, then `end`."""
    dims = [d % len(array.shape) for d in dims if array.shape] or list(range(len(array.shape)))
    rest = [d for d in range(len(array.shape)) if d not in dims]
    ordered = array.permuted([*rest, *dims])
    value = node.meta["val"]
    like = value[0] if isinstance(value, list | tuple) else value
    target = lowering.room(like.shape, kind_of(like.dtype), array.lanes)
    shape, along = [array.shape[d] for d in rest], [array.shape[d] for d in dims]
    flat = Array.stored(target.place, shape, target.kind, target.lanes, target.offset)
    lanes = target.lanes
    with lowering.loops(target, shape) as (places, write):
        for index in places:
            write(f"{{ {lowering.type_of(target)} s = {lowering.typed(begin, lanes)};")
            with lowering.loops(target, along, tag="j") as (inner, write_inner):
                for j in inner:
                    write_inner(f"s = {lowering.typed(step('s', lowering.read(ordered, [*index, *j], lanes)), lanes)};")
            write(f"{flat.place}[{flat.flat_index(index)}] = {lowering.typed(end('s'), lanes)}; }}")
    return target


def _best(lowering: Lowering, array: Array, dim: int, shape: Sequence[int], sign: str) -> list[Array]:
    """The largest or smallest element along a dimension, the first if there are several, and its place."""
    if not array.size:
        raise lowering.refusal("of nothing has no value")
    if not array.shape:
        array = array.unsqueezed(0)
    dim %= len(array.shape)
    rest = [d for d in range(len(array.shape)) if d != dim]
    ordered, around, n = array.permuted([*rest, dim]), [array.shape[d] for d in rest], array.shape[dim]
    kind: Kind
    kind, wide = ("real", "widen_i<W>(better)") if array.kind == "real" else ("int", "better")
    ordered, cast = lowering.as_kind(ordered, kind)
    values, places = lowering.room(shape, kind, True), lowering.room(shape, "int", True)
    flat = [Array.stored(x.place, around, x.kind) for x in (values, places)]
    with lowering.loops(values, around) as (indices, write):
        for index in indices:
            first = cast(lowering.read(ordered, [*index, 0], True))
            write(f"{{ {TYPES[kind]} s = {first}; {TYPES['int']} at = up_i<W>(0);")
            with lowering.loops(values, [n], tag="j") as (inner, write_inner):
                for (j,) in inner:
                    write_inner(f"{{ const {TYPES[kind]} x = {cast(lowering.read(ordered, [*index, j], True))};")
                    write_inner(f"const auto better = (x {sign} s) | ((x != x) & (s == s));")
                    write_inner(f"s = sel(better, x, s); at = sel({wide}, up_i<W>({j}), at); }}")
            for goal, value in zip(flat, ("s", "at"), strict=True):
                write(f"{goal.place}[{goal.flat_index(index)}] = {value};")
            write("}")
    if array.kind == "bool":
        values = lowering.filled(shape, [values], lowering.as_kind(values, "bool")[1], "bool")
    return [values, places]


def _product(
    lowering: Lowering, target: Array, a: Array, b: Array, bias: Array | None, alpha: float = 1, beta: float = 1
) -> None:
    """The product of matrices [m, k] and [k, n], plus the bias, into `target`, [m, n]."""
    (m, k), n, lanes = a.shape, b.shape[1], target.lanes
    if target.kind != "real":
        raise lowering.refusal("of whole numbers is not compiled: write .to(y.dtype)")
    lines, write = lowering.lines_for(target), lowering.lines_for(target).append

    def start(i: int | str, j: int | str) -> str:
        if bias is None:
            return lowering.typed("up<W>(0)", lanes)
        value = lowering.read(bias, [i, j], lanes)
        return value if beta == 1 else f"{literal(beta, 'real')} * {value}"

    def finish(i: int | str, j: int | str, total: str) -> str:
        return f"{target.place}[{target.flat_index([i, j])}] = {total};"

    def term(i: int | str, j: int | str, inner: int | str) -> str:
        value = f"{lowering.read(a, [i, inner], lanes)} * {lowering.read(b, [inner, j], lanes)}"
        return value if alpha == 1 else f"{literal(alpha, 'real')} * {value}"

    if m * k * n <= 4 * UNROLL:
        for i, j in itertools.product(range(m), range(n)):
            write(finish(i, j, " + ".join([start(i, j), *(term(i, j, inner) for inner in range(k))])))
        return
    rows: int | str = "i" if m > 1 else 0
    if m > 1:
        lines.append(f"for (int i = 0; i < {m}; ++i) {{")
    whole = n - n % _BLOCK
    if whole:
        lines.append(f"for (int j = 0; j < {whole}; j += {_BLOCK}) {{")
        for p in range(_BLOCK):
            lines.append(f"{lowering.type_of(target)} s{p} = {start(rows, f'(j + {p})')};")
        lines.append(f"for (int p = 0; p < {k}; ++p) {{")
        for p in range(_BLOCK):
            lines.append(f"s{p} += {term(rows, f'(j + {p})', 'p')};")
        lines.append("}")
        for p in range(_BLOCK):
            lines.append(finish(rows, f"(j + {p})", f"s{p}"))
        lines.append("}")
    for j in range(whole, n):
        lines.append(f"{{ {lowering.type_of(target)} s = {start(rows, j)};")
        lines.append(f"for (int p = 0; p < {k}; ++p) s += {term(rows, j, 'p')};")
        lines.append(f"{finish(rows, j, 's')} }}")
    if m > 1:
        lines.append("}")


def _dims(dims: Any) -> list[int]:
    return [dims] if isinstance(dims, int) else list(dims or [])


def _count(array: Array, dims: list[int]) -> int:
    return math.prod(array.shape[d] for d in dims) if dims and array.shape else array.size


def _joined(begin: int, sign: str) -> Callable[..., Array]:
    """All elements along dimensions, joined by an operator."""

    def lower(lowering: Lowering, node: fx.Node, array: Array, dims: Any = None, *_: Any, **__: Any) -> Array:
        array, cast = lowering.as_kind(array, kind_of(node.meta["val"].dtype))
        start = lowering.number(begin, node)
        return _reduced(lowering, node, array, _dims(dims), start, lambda s, x: f"{s} {sign} {cast(x)}")

    return lower


def _average(lowering: Lowering, node: fx.Node, array: Array, dims: list[int], count: float) -> Array:
    """The sum of real numbers, divided by a number."""
    return _reduced(
        lowering, node, array, dims, "up<W>(0)", lambda s, x: f"{s} + {x}", lambda s: f"{s} / real({count!r})"
    )


def _mean(lowering: Lowering, node: fx.Node, array: Array, dims: Any = None, *_: Any, **__: Any) -> Array:
    return _average(lowering, node, array, _dims(dims), _count(array, _dims(dims)))


def _var_mean(
    lowering: Lowering, node: fx.Node, array: Array, dims: Any = None, *, correction: Any = None, **_: Any
) -> tuple[Array, Array]:
    of = _dims(dims)
    count = _count(array, of)
    mean = _average(lowering, node, array, of, count)
    shape = [1 if not of or d in [o % len(array.shape) for o in of] else n for d, n in enumerate(array.shape)]
    centre = lowering.reshaped(mean, shape)
    ways = max(count - (1 if correction is None else float(correction)), 0.0)
    squares = lowering.filled(
        array.shape, [array, centre.expanded(array.shape)], lambda x, m: f"({x} - {m}) * ({x} - {m})"
    )
    return _average(lowering, node, squares, of, ways), mean


def _extreme(name: str, begin: str, sign: str, logic: str) -> Callable[..., Any]:
    def lower(lowering: Lowering, node: fx.Node, array: Array, dims: Any = None, *_: Any, **__: Any) -> Any:
        if isinstance(node.meta["val"], list | tuple):
            return _best(lowering, array, dims, node.meta["val"][0].shape, sign)
        if not array.size:
            raise lowering.refusal("of nothing has no value")
        if array.kind == "real":
            start, step = f"up<W>(real({begin}))", lambda s, x: f"f_{name}<W>({s}, {x})"
        elif array.kind == "bool":
            start, step = f"up_m<W>({'false' if logic == '|' else 'true'})", lambda s, x: f"({s} {logic} {x})"
        else:
            start = f"up_i<W>({'INT64_MIN' if sign == '>' else 'INT64_MAX'})"
            step = lambda s, x: f"sel({x} {sign} {s}, {x}, {s})"  # noqa: E731
        return _reduced(lowering, node, array, _dims(dims), start, step)

    return lower


def _place_of_extreme(sign: str) -> Callable[..., Array]:
    def lower(lowering: Lowering, node: fx.Node, array: Array, dim: int | None = None, keepdim: bool = False) -> Array:
        if dim is None:
            array, dim = lowering.reshaped(array, (array.size,)), 0
        return _best(lowering, array, dim, node.meta["val"].shape, sign)[1]

    return lower


def _norm(
    lowering: Lowering, node: fx.Node, array: Array, order: float = 2, dims: Any = None, *_: Any, **__: Any
) -> Array:
    begin, end = "up<W>(0)", lambda s: s
    if order == 2:
        step, end = lambda s, x: f"{s} + {x} * {x}", lambda s: f"f_sqrt<W>({s})"
    elif order == 1:
        step = lambda s, x: f"{s} + f_abs<W>({x})"  # noqa: E731
    elif order == 0:
        step = lambda s, x: f"{s} + sel({x} != 0, up<W>(1), up<W>(0))"  # noqa: E731
    elif order == math.inf:
        step = lambda s, x: f"f_max<W>({s}, f_abs<W>({x}))"  # noqa: E731
    elif order == -math.inf:
        begin, step = "up<W>(real(INFINITY))", lambda s, x: f"f_min<W>({s}, f_abs<W>({x}))"
    else:
        step = lambda s, x: f"{s} + f_pow<W>(f_abs<W>({x}), up<W>({float(order)!r}))"  # noqa: E731
        end = lambda s: f"f_pow<W>({s}, up<W>({1 / order!r}))"  # noqa: E731
    return _reduced(lowering, node, array, _dims(dims), begin, step, end)


def _cumulative(begin: int, sign: str) -> Callable[..., Array]:
    def lower(lowering: Lowering, node: fx.Node, array: Array, dim: int, **_: Any) -> Array:
        kind = kind_of(node.meta["val"].dtype)
        array, cast = lowering.as_kind(array, kind)
        target = lowering.new(node, array.lanes)
        source, goal = array, target
        if array.shape:
            rest = [d for d in range(len(array.shape)) if d != dim % len(array.shape)]
            source, goal = (x.permuted([*rest, dim % len(array.shape)]) for x in (array, target))
        else:
            source, goal = array.unsqueezed(0), target.unsqueezed(0)
        start = lowering.number(begin, node)
        with lowering.loops(target, source.shape[:-1]) as (places, write):
            for index in places:
                write(f"{{ {lowering.type_of(target)} s = {lowering.typed(start, target.lanes)};")
                with lowering.loops(target, source.shape[-1:], tag="j") as (inner, write_inner):
                    for j in inner:
                        at = [*index, *j]
                        value = lowering.typed(cast(lowering.read(source, at, target.lanes)), target.lanes)
                        write_inner(f"s = s {sign} {value}; {goal.place}[{goal.flat_index(at)}] = s;")
                write("}")
        return target

    return lower


def _matmul(lowering: Lowering, node: fx.Node, a: Array, b: Array) -> Array:
    """Of matrices and vectors, which are rows on the left and columns on the right."""
    goal = target = lowering.new(node, a.lanes or b.lanes)
    if len(a.shape) == 1:
        a, goal = a.unsqueezed(0), goal.unsqueezed(0)
    if len(b.shape) == 1:
        b, goal = b.unsqueezed(1), goal.unsqueezed(1)
    _product(lowering, goal, a, b, None)
    return target


def _addmm(
    lowering: Lowering, node: fx.Node, bias: Array, a: Array, b: Array, beta: float = 1, alpha: float = 1
) -> Array:
    target = lowering.new(node, bias.lanes or a.lanes or b.lanes)
    _product(lowering, target, a, b, bias.expanded(target.shape) if beta else None, alpha, beta)
    return target


def _bmm(lowering: Lowering, node: fx.Node, a: Array, b: Array) -> Array:
    target = lowering.new(node, a.lanes or b.lanes)
    for i in range(a.shape[0]):
        _product(lowering, target.selected(0, i), a.selected(0, i), b.selected(0, i), None)
    return target


def _of_truths(how: Callable[..., Array]) -> Callable[..., Array]:
    """The same of any numbers, which are true if they are not zero."""

    def lower(lowering: Lowering, node: fx.Node, array: Array, *args: Any, **kwargs: Any) -> Array:
        if array.kind != "bool":
            array, cast = lowering.as_kind(array, "bool")
            if array.constant is None:
                array = lowering.filled(array.shape, [array], cast, "bool")
        return how(lowering, node, array, *args, **kwargs)

    return lower


REDUCTIONS: dict[str, Callable[..., Any]] = {
    "sum": _joined(0, "+"),
    "mean": _mean,
    "prod": _joined(1, "*"),
    "var": lambda *args, **kwargs: _var_mean(*args, **kwargs)[0],
    "var_mean": _var_mean,
    "amax": _extreme("max", "-INFINITY", ">", "|"),
    "amin": _extreme("min", "INFINITY", "<", "&"),
    "max": _extreme("max", "-INFINITY", ">", "|"),
    "min": _extreme("min", "INFINITY", "<", "&"),
    "any": _of_truths(_extreme("max", "-INFINITY", ">", "|")),
    "all": _of_truths(_extreme("min", "INFINITY", "<", "&")),
    "argmax": _place_of_extreme(">"),
    "argmin": _place_of_extreme("<"),
    "linalg_vector_norm": _norm,
    "cumsum": _cumulative(0, "+"),
    "cumprod": _cumulative(1, "*"),
    "mm": _matmul,
    "addmm": _addmm,
    "bmm": _bmm,
    "mv": _matmul,
    "dot": _matmul,
    "vdot": _matmul,
}
"""By their names; called with the lowering, the node and its arguments."""
