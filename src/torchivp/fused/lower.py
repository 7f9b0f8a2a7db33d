"""A graph of ATen's core operations as the body of a C++ function over lanes.

Every operation becomes a loop nest that writes an array, or a view of an array that exists. What depends on the
parameters alone is computed once for all rows and steps, in a function of its own.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from torchivp.fused.arrays import Array, Index, Kind, contiguous, kind_of
from torchivp.fused.operations import COMPARISONS, LOGIC, REAL, WHOLE, Operand, power, shortened
from torchivp.fused.refusal import CannotFuse

_UNROLL = 16
"""Loops over so many elements are written out."""

_LARGEST = 16_384
"""A function may hold so many numbers of a row."""

_SPARSE = 64
"""Of arrays of derivatives so many elements are written out, and any number if most are known."""

_BLOCK = 4
"""So many elements of a matrix product are summed up side by side."""

TYPES: dict[Kind, str] = {"real": "typename Lanes<W>::R", "int": "typename Lanes<W>::I", "bool": "typename Lanes<W>::M"}
_LIFT: dict[Kind, str] = {"real": "up", "int": "up_i", "bool": "up_m"}


def literal(value: float, kind: Kind) -> str:
    """A number in C++."""
    if kind == "bool":
        return "true" if value else "false"
    if kind == "int":
        return str(int(value))
    value = float(value)
    if math.isnan(value):
        return "real(NAN)"
    if math.isinf(value):
        return "real(INFINITY)" if value > 0 else "real(-INFINITY)"
    return f"real({value!r})"


class Lowering:
    """Writes C++ for graphs that share their inputs and what is computed once.

    Attributes:
        once: the lines that compute what depends on shared inputs alone, into the memory `u`.
        constants: lines that declare constant arrays.
        kept: how many numbers `once` keeps.
    """

    def __init__(self) -> None:
        self.once: list[str] = []
        self.constants: list[str] = []
        self.kept = 0
        self._names = itertools.count()
        self._known: dict[tuple[Any, ...], str] = {}
        self._noted: dict[str, dict[int, float]] = {}
        self._unwritten: dict[str, set[int]] = {}
        self._sparse = False
        self._begin()

    def _begin(self) -> None:
        self._lines: list[str] = []
        self._held = 0
        self._values: dict[fx.Node, Any] = {}
        self._node: fx.Node | None = None

    def lower(self, graph: fx.Graph, inputs: Sequence[Array], sparse: bool = False) -> tuple[list[str], list[Array]]:
        """The lines that compute the outputs of the graph, and the outputs.

        A `sparse` graph, one of derivatives, has many elements that are known to be zero, and those are left out.

        Raises:
            CannotFuse: an operation has no C++.
        """
        self._begin()
        self._sparse = sparse
        placeholders = iter(inputs)
        outputs: list[Array] = []
        for node in graph.nodes:
            self._node = node
            if node.op == "placeholder":
                self._values[node] = next(placeholders)
            elif node.op == "get_attr":
                value = getattr(node.graph.owning_module, node.target)
                self._values[node] = Array.known(value.detach().cpu())
            elif node.op == "output":
                outputs = [self._array(x) for x in node.args[0]]
            else:
                self._values[node] = self._call(node)
        if self._held > _LARGEST:
            raise CannotFuse(
                f"func holds {self._held} numbers at a time, more than the {_LARGEST} that a kernel keeps near the "
                "processor: it is as fast without"
            )
        return self._lines, outputs

    def _call(self, node: fx.Node) -> Any:
        name = _name_of(node)
        if node.target is operator.getitem:
            return self._values[node.args[0]][node.args[1]]  # pyright: ignore
        args = [self._value(x) for x in node.args]
        kwargs = {key: self._value(x) for key, x in node.kwargs.items()}
        arrays = [x for x in _flat(args) if isinstance(x, Array)]
        if all(x.constant is not None for x in arrays):
            return self._folded(node, args, kwargs)
        how = _OPERATIONS.get(name)
        if how is not None:
            if name not in _KNOWING:
                for x in arrays:
                    self.complete(x)
            return how(self, node, *args, **kwargs)
        return self._pointwise(name, node, args, kwargs)

    def _value(self, x: Any) -> Any:
        if isinstance(x, fx.Node):
            return self._values[x]
        if isinstance(x, list | tuple):
            return type(x)(self._value(entry) for entry in x) if not isinstance(x, torch.Size) else x
        return x

    def _array(self, x: Any) -> Array:
        """A value as an array; a number as one that is known."""
        if isinstance(x, fx.Node):
            x = self._values[x]
        if isinstance(x, Array):
            return x
        dtype = torch.bool if isinstance(x, bool) else torch.int64 if isinstance(x, int) else torch.float64
        return Array.known(torch.tensor(x, dtype=dtype))

    def _folded(self, node: fx.Node, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """The value of an operation on numbers that are known."""

        def known(x: Any) -> Any:
            if isinstance(x, Array):
                return x.constant
            return type(x)(map(known, x)) if isinstance(x, list | tuple) else x

        kwargs = {key: known(x) for key, x in kwargs.items() if key not in ("device", "layout", "pin_memory")}
        if _name_of(node) in ("rand", "randn", "rand_like", "randn_like", "bernoulli", "randint", "normal"):
            raise self.refusal("draws random numbers, which a solve must not")
        value = node.target(*map(known, args), **kwargs)  # pyright: ignore[reportCallIssue]
        return [Array.known(x) for x in value] if isinstance(value, list | tuple) else Array.known(value)

    # --- what is written ---------------------------------------------------------------------------------------------

    def refusal(self, why: str) -> CannotFuse:
        """That the node at hand cannot be lowered."""
        assert self._node is not None
        return CannotFuse(f"{_name_of(self._node)}{_place_of(self._node)} {why}")

    def new(self, node: fx.Node, lanes: bool, kind: Kind | None = None, zero: bool = False) -> Array:
        """Memory for the value of a node."""
        value = node.meta["val"]
        kind = kind or kind_of(value.dtype)
        if value.is_complex():
            raise self.refusal("gives complex numbers: write real and imaginary parts, as torch.view_as_real does")
        size = value.numel()
        if not lanes and kind == "real":
            array = Array.stored("u", value.shape, kind, lanes=False, offset=self.kept)
            self.kept += size
            if zero:
                self.once.append(f"for (int i = 0; i < {size}; ++i) u[{array.offset} + i] = 0;")
            return array
        name = f"v{next(self._names)}"
        self._held += size
        self._lines.append(f"{TYPES[kind]} {name}[{max(size, 1)}]{' = {}' if zero else ''};")
        return Array.stored(name, value.shape, kind)

    # --- elements that are known -------------------------------------------------------------------------------------
    # They are in no memory until somebody reads the whole array.

    def known(self, array: Array, index: Index) -> float | None:
        """The value of an element, broadcast, if it is known."""
        index = index[len(index) - len(array.shape) :]
        place = [0 if n == 1 else i for i, n in zip(index, array.shape, strict=True)]
        numbers = tuple(i for i in place if isinstance(i, int))
        if array.kind != "real" or len(numbers) < len(place):
            return None
        if array.constant is not None:
            return float(array.constant[numbers])
        noted = self._noted.get(array.place)
        return None if noted is None else noted.get(int(array.flat_index(numbers)))

    def note(self, array: Array, index: Index, value: float, written: bool = False) -> None:
        """An element of memory is known to have a value, which need not be `written` there."""
        flat = int(array.flat_index(index))
        self._noted.setdefault(array.place, {})[flat] = value
        if not written:
            self._unwritten.setdefault(array.place, set()).add(flat)

    def complete(self, array: Array) -> None:
        """Write what is known of the memory of an array to it."""
        for flat in sorted(self._unwritten.pop(array.place, ())):
            value = literal(self._noted[array.place][flat], "real")
            self._lines_for(array).append(f"{array.place}[{flat}] = {value if not array.lanes else f'up<W>({value})'};")

    def _forget(self, target: Array) -> None:
        """What was known of elements of memory is there from now on, and may change."""
        if target.place not in self._noted:
            return
        self.complete(target)
        for index in target.indices():
            self._noted[target.place].pop(int(target.flat_index(index)), None)

    def _operand(self, array: Array, index: Index, lanes: bool) -> Operand:
        value = self.known(array, index)
        return self.read(array, index, lanes) if value is None else value

    def _set(self, target: Array, index: Index, value: Operand) -> None:
        """Let an element have a value: noted if it is known, else written."""
        if not isinstance(value, str):
            self.note(target, index, value)
            return
        flat = int(target.flat_index(index))
        self._noted.get(target.place, {}).pop(flat, None)
        self._unwritten.get(target.place, set()).discard(flat)
        self._lines_for(target).append(f"{target.place}[{flat}] = {self._typed(value, target.lanes)};")

    def _filled(
        self, node: fx.Node, lanes: bool, sources: Sequence[Array], element: Callable[[Index], Operand]
    ) -> Array | None:
        """An array of elements some of which are known; None if it is not worth writing them out."""
        shape = node.meta["val"].shape
        if not self._sparse or not any(x.constant is not None or x.place in self._noted for x in sources):
            return None
        values = {index: element(index) for index in itertools.product(*map(range, shape))}
        unknown = sum(isinstance(x, str) for x in values.values())
        if not unknown:
            return Array.known(torch.tensor(list(values.values()), dtype=torch.float64).reshape(shape))
        if unknown > max(_SPARSE, len(values) // 2):
            return None
        target = self.new(node, lanes)
        for index, value in values.items():
            self._set(target, index, value)
        return target

    def _lines_for(self, array: Array) -> list[str]:
        return self._lines if array.lanes else self.once

    @contextmanager
    def loops(self, target: Array, shape: Sequence[int], tag: str = "i") -> Iterator[tuple[list[Index], Callable[[str], None]]]:
        """The places to write at, all of them written out or those of one pass of the loops, and how to write a line."""
        self._forget(target)
        lines = self._lines_for(target)
        if math.prod(shape) <= _UNROLL:
            yield list(itertools.product(*map(range, shape))), lines.append
            return
        names = [f"{tag}{d}" if n > 1 else 0 for d, n in enumerate(shape)]
        opened = [(name, n) for name, n in zip(names, shape, strict=True) if isinstance(name, str)]
        for name, n in opened:
            lines.append(f"for (int {name} = 0; {name} < {n}; ++{name}) {{")
        yield [names], lines.append
        lines.append("}" * len(opened))

    def read(self, array: Array, index: Index, lanes: bool) -> str:
        """An element, as lanes or as the number that all rows share."""
        if len(array.shape) < len(index):
            index = index[len(index) - len(array.shape) :]
        index = [0 if n == 1 else i for i, n in zip(index, array.shape, strict=True)]
        if array.constant is not None:
            if all(isinstance(i, int) for i in index):
                number = literal(array.constant[tuple(index)].item(), array.kind)
            else:
                number = f"{self._constant(array.constant, array.kind)}[{Array.stored('', array.shape).flat_index(index)}]"
        else:
            known = self.known(array, index)
            number = f"{array.place}[{array.flat_index(index)}]"
            if known is not None:
                return f"up<{'W' if lanes else 1}>({literal(known, 'real')})"
        if array.lanes:
            assert lanes
            return number
        return f"{_LIFT[array.kind]}<{'W' if lanes else 1}>({number})"

    def element(self, array: Array, index: Index) -> str:
        """An element as lanes, for those who write around the lines."""
        return self.read(array, index, lanes=True)

    def written(self, value: Array, goal: str, start: int = 0, how: str = "=") -> list[str]:
        """The lines that write an output, as lanes, to an array from `start` on, or add it."""
        self._lines, lines = [], self._lines
        self.complete(value)
        flat = Array.stored(goal, value.shape, offset=start)
        with self.loops(flat, value.shape) as (places, write):
            for index in places:
                write(f"{goal}[{flat.flat_index(index)}] {how} {self.read(value, index, True)};")
        self._lines, written = lines, self._lines
        return written

    def added(self, value: Array, goal: str, start: int) -> list[str]:
        """The lines that add an output, as lanes, to an array from `start` on."""
        return [] if value.is_zero() else self.written(value, goal, start, "+=")

    def _constant(self, value: Tensor, kind: Kind) -> str:
        numbers = tuple(literal(x, kind) for x in value.reshape(-1).tolist())
        if (kind, numbers) not in self._known:
            name = f"c{next(self._names)}"
            ctype = {"real": "real", "int": "int64_t", "bool": "bool"}[kind]
            self.constants.append(f"CONSTANT {ctype} {name}[] = {{{', '.join(numbers)}}};")
            self._known[(kind, numbers)] = name
        return self._known[(kind, numbers)]

    def fill(
        self,
        node: fx.Node,
        sources: Sequence[Array],
        expression: Callable[..., str],
        kind: Kind | None = None,
        shorter: Callable[..., Operand | None] | None = None,
    ) -> Array:
        """An array each of whose elements is an expression of the elements of the sources there, broadcast.

        `shorter` makes the same of elements some of which are known, or gives None.
        """
        lanes = any(x.lanes for x in sources) or (kind or kind_of(node.meta["val"].dtype)) != "real"
        if shorter is not None:

            def element(index: Index) -> Operand:
                found = shorter(*(self._operand(x, index, lanes) for x in sources))
                return expression(*(self.read(x, index, lanes) for x in sources)) if found is None else found

            target = self._filled(node, lanes, sources, element)
            if target is not None:
                return target
        for x in sources:
            self.complete(x)
        target = self.new(node, lanes, kind)
        with self.loops(target, target.shape) as (places, write):
            for index in places:
                operands = [self.read(x, index, lanes) for x in sources]
                write(f"{target.place}[{target.flat_index(index)}] = {self._typed(expression(*operands), lanes)};")
        return target

    @staticmethod
    def _typed(expression: str, lanes: bool) -> str:
        return expression if lanes else expression.replace("<W>", "<1>")

    def as_kind(self, array: Array, kind: Kind) -> tuple[Array, Callable[[str], str]]:
        """The array with what makes its elements numbers of another kind."""
        casts: dict[tuple[Kind, Kind], Callable[[str], str]] = {
            ("int", "real"): lambda x: f"int_to_real<W>({x})",
            ("bool", "real"): lambda x: f"sel({x}, up<W>(1), up<W>(0))",
            ("real", "int"): lambda x: f"real_to_int<W>({x})",
            ("bool", "int"): lambda x: f"sel(widen_i<W>({x}), up_i<W>(1), up_i<W>(0))",
            ("real", "bool"): lambda x: f"({x} != 0)",
            ("int", "bool"): lambda x: f"narrow_i<W>({x} != 0)",
        }
        if array.kind == kind:
            return array, lambda x: x
        if array.constant is not None:
            dtype = {"real": torch.float64, "int": torch.int64, "bool": torch.bool}[kind]
            return Array.known(array.constant.to(dtype)), lambda x: x
        return array, casts[array.kind, kind]

    def _pointwise(self, name: str, node: fx.Node, args: Sequence[Any], kwargs: dict[str, Any]) -> Array:
        alpha = kwargs.pop("alpha", 1)
        mode = kwargs.pop("rounding_mode", None)
        kwargs = {key: x for key, x in kwargs.items() if key not in ("memory_format", "dtype", "layout", "device", "pin_memory")}
        if kwargs:
            raise self.refusal(f"with {', '.join(kwargs)} is not compiled")
        result = kind_of(node.meta["val"].dtype)
        sources = [self._array(x) for x in args]
        table, kind = REAL, "real"
        if result == "bool" and all(x.kind == "bool" for x in sources):
            table, kind = LOGIC, "bool"
        elif result == "bool":
            table = COMPARISONS
            kind = "real" if any(x.kind == "real" for x in sources) else "int"
        elif result == "int":
            table, kind = WHOLE, "int"
        if name == "rsub":
            name, sources = "sub", sources[::-1]
        if name not in table:
            raise self.refusal("is not among the operations that kernels know")
        if name == "log_sigmoid" or len(sources) > 2:
            sources = sources[:1] if name == "log_sigmoid" else sources
        pairs = [self.as_kind(x, kind) for x in sources]
        compute, casts = table[name], [cast for _, cast in pairs]

        def expression(*operands: str) -> str:
            operands = tuple(cast(x) for cast, x in zip(casts, operands, strict=True))
            if alpha != 1:
                operands = (operands[0], f"({_LIFT[kind]}<W>({literal(alpha, kind)}) * {operands[1]})")
            value = compute(*operands)
            value = f"f_{mode}<W>({value})" if mode else value
            return f"narrow_i<W>({value})" if table is COMPARISONS and kind == "int" else value

        plain = table is REAL and alpha == 1 and mode is None and all(x.kind == "real" for x in sources)
        shorter = (lambda *operands: shortened(name, operands)) if plain else None
        return self.fill(node, [x for x, _ in pairs], expression, shorter=shorter)

    # --- what is not pointwise ---------------------------------------------------------------------------------------

    def materialised(self, array: Array) -> Array:
        """The elements of a view in memory of their own, in order."""
        if array.strides == contiguous(array.shape) or array.constant is not None:
            return array
        self.complete(array)
        name = f"v{next(self._names)}"
        if array.lanes:
            self._held += array.size
            self._lines.append(f"{TYPES[array.kind]} {name}[{max(array.size, 1)}];")
            target = Array.stored(name, array.shape, array.kind)
        else:
            target = Array.stored("u", array.shape, array.kind, lanes=False, offset=self.kept)
            self.kept += array.size
        with self.loops(target, target.shape) as (places, write):
            for index in places:
                write(f"{target.place}[{target.flat_index(index)}] = {self.read(array, index, array.lanes)};")
        return target

    def copy_into(self, target: Array, part: Array) -> None:
        """Write `part` into a view of memory."""
        part, cast = self.as_kind(part, target.kind)
        if self._sparse and part.kind == target.kind == "real":
            for index in target.indices():
                self._set(target, index, self._operand(part, index, target.lanes))
            return
        with self.loops(target, target.shape) as (places, write):
            for index in places:
                value = self._typed(cast(self.read(part, index, target.lanes)), target.lanes)
                write(f"{target.place}[{target.flat_index(index)}] = {value};")

    def reduced(
        self, node: fx.Node, array: Array, dims: Sequence[int], begin: str, step: Callable[[str, str], str], end: Callable[[str], str]
    ) -> Array:
        """The elements along `dims` brought together: from `begin` by `step`, then `end`."""
        dims = [d % len(array.shape) for d in dims] or list(range(len(array.shape)))
        rest = [d for d in range(len(array.shape)) if d not in dims]
        ordered = array.permuted([*rest, *dims])
        target = self.new(node, array.lanes or kind_of(node.meta["val"].dtype) != "real")
        shape = [array.shape[d] for d in rest]
        flat = Array.stored(target.place, shape, target.kind, target.lanes, target.offset)
        lanes, along = target.lanes, [array.shape[d] for d in dims]
        ctype = TYPES[target.kind] if lanes else "real"
        with self.loops(target, shape) as (places, write):
            for index in places:
                write(f"{{ {ctype} s = {self._typed(begin, lanes)};")
                with self.loops(target, along, tag="j") as (inner, write_inner):
                    for j in inner:
                        write_inner(f"s = {self._typed(step('s', self.read(ordered, [*index, *j], lanes)), lanes)};")
                write(f"{flat.place}[{flat.flat_index(index)}] = {self._typed(end('s'), lanes)}; }}")
        return target

    def sparse_sum(self, node: fx.Node, array: Array, dims: Sequence[int]) -> Array | None:
        """The sum along `dims` of elements some of which are known; None if it is not worth writing it out."""
        dims = [d % len(array.shape) for d in dims] or list(range(len(array.shape)))
        rest = [d for d in range(len(array.shape)) if d not in dims]
        ordered, along = array.permuted([*rest, *dims]), [array.shape[d] for d in dims]
        shape = node.meta["val"].shape  # with the dimensions that are summed over, of size 1, or without
        kept = range(len(shape)) if len(shape) == len(rest) else rest

        def element(index: Index) -> Operand:
            index = [index[i] for i in kept]
            terms = [self._operand(ordered, [*index, *j], array.lanes) for j in itertools.product(*map(range, along))]
            number = sum((x for x in terms if isinstance(x, float)), 0.0)
            unknown = [x for x in terms if isinstance(x, str)]
            if not unknown:
                return number
            return " + ".join([*([f"up<W>({literal(number, 'real')})"] if number else []), *unknown])

        return self._filled(node, array.lanes, [array], element)

    def product(self, target: Array, a: Array, b: Array, bias: Array | None, alpha: float = 1, beta: float = 1) -> None:
        """The product of matrices [m, k] and [k, n], plus the bias, into `target`, [m, n]."""
        (m, k), n, lanes = a.shape, b.shape[1], target.lanes
        ctype = TYPES["real"] if lanes else "real"
        lines, write = self._lines_for(target), self._lines_for(target).append

        def start(i: int | str, j: int | str) -> str:
            if bias is None:
                return self._typed("up<W>(0)", lanes)
            value = self.read(bias, [i, j], lanes)
            return value if beta == 1 else f"{literal(beta, 'real')} * {value}"

        def finish(i: int | str, j: int | str, total: str) -> str:
            return f"{target.place}[{target.flat_index([i, j])}] = {total};"

        def term(i: int | str, j: int | str, inner: int | str) -> str:
            value = f"{self.read(a, [i, inner], lanes)} * {self.read(b, [inner, j], lanes)}"
            return value if alpha == 1 else f"{literal(alpha, 'real')} * {value}"

        if m * k * n <= 4 * _UNROLL:
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
                lines.append(f"{ctype} s{p} = {start(rows, f'(j + {p})')};")
            lines.append(f"for (int p = 0; p < {k}; ++p) {{")
            for p in range(_BLOCK):
                lines.append(f"s{p} += {term(rows, f'(j + {p})', 'p')};")
            lines.append("}")
            for p in range(_BLOCK):
                lines.append(finish(rows, f"(j + {p})", f"s{p}"))
            lines.append("}")
        for j in range(whole, n):
            lines.append(f"{{ {ctype} s = {start(rows, j)};")
            lines.append(f"for (int p = 0; p < {k}; ++p) s += {term(rows, j, 'p')};")
            lines.append(f"{finish(rows, j, 's')} }}")
        if m > 1:
            lines.append("}")


def _flat(x: Any) -> Iterator[Any]:
    if isinstance(x, list | tuple):
        for entry in x:
            yield from _flat(entry)
    else:
        yield x


def _name_of(node: fx.Node) -> str:
    """The operation without its overload: `add` of `aten.add.Tensor`."""
    target = node.target
    name = target._schema.name.split("::")[-1] if isinstance(target, torch._ops.OpOverload) else str(target)
    return name.removesuffix("_copy").removesuffix("_")


def _place_of(node: fx.Node) -> str:
    """Where in the user's program a node comes from."""
    trace = node.meta.get("stack_trace") or ""
    lines = [line.strip() for line in trace.strip().splitlines()]
    return f" ({lines[-2].replace('File ', '')}: {lines[-1]})" if len(lines) >= 2 else ""


# --- operations that are more than pointwise -------------------------------------------------------------------------


def _view(how: Callable[..., Array]) -> Callable[..., Array]:
    return lambda lowering, node, array, *args, **kwargs: how(array, *args)


def _reshape(lowering: Lowering, node: fx.Node, array: Array, shape: Sequence[int], **_: Any) -> Array:
    found = array.reshaped(node.meta["val"].shape)
    if found is None:
        found = lowering.materialised(array).reshaped(node.meta["val"].shape)
    assert found is not None
    return found


def _cat(lowering: Lowering, node: fx.Node, arrays: Sequence[Array], dim: int = 0) -> Array:
    arrays = [x for x in arrays if x.size or len(x.shape) > 1] or arrays[:1]
    kind = kind_of(node.meta["val"].dtype)
    target = lowering.new(node, any(x.lanes for x in arrays) or kind != "real")
    dim, start = dim % len(target.shape), 0
    for array in arrays:
        end = start + array.shape[dim]
        lowering.copy_into(target.sliced(dim, start, end, 1), array)
        start = end
    return target


def _scatter(lowering: Lowering, node: fx.Node, array: Array, part: Array, view: Callable[[Array], Array]) -> Array:
    """A copy of an array with a part of it replaced."""
    kind = kind_of(node.meta["val"].dtype)
    target = lowering.new(node, array.lanes or part.lanes or kind != "real")
    lowering.copy_into(target, array)
    lowering.copy_into(view(target), part)
    return target


def _where(lowering: Lowering, node: fx.Node, condition: Array, a: Any, b: Any) -> Array:
    a, b = lowering._array(a), lowering._array(b)
    kind = kind_of(node.meta["val"].dtype)
    (a, cast_a), (b, cast_b) = lowering.as_kind(a, kind), lowering.as_kind(b, kind)
    mask = (lambda c: c) if kind == "real" else (lambda c: f"widen_i<W>({c})")
    if kind == "bool":
        return lowering.fill(node, [condition, a, b], lambda c, x, y: f"(({c} & {x}) | (neg({c}) & {y}))")
    same = (lambda c, x, y: x if x == y else None) if a.kind == b.kind == kind == "real" else None
    return lowering.fill(
        node, [condition, a, b], lambda c, x, y: f"sel({mask(c)}, {cast_a(x)}, {cast_b(y)})", shorter=same
    )


def _clamp(lowering: Lowering, node: fx.Node, array: Array, low: Any = None, high: Any = None) -> Array:
    kind = kind_of(node.meta["val"].dtype)
    given = [(which, lowering._array(x)) for which, x in (("max", low), ("min", high)) if x is not None]
    pairs = [lowering.as_kind(x, kind) for x in (array, *(bound for _, bound in given))]
    names = ["", *(which for which, _ in given)]

    def expression(*operands: str) -> str:
        values = [cast(x) for (_, cast), x in zip(pairs, operands, strict=True)]
        result = values[0]
        for which, bound in zip(names[1:], values[1:], strict=True):
            table = REAL if kind == "real" else WHOLE
            result = table["maximum" if which == "max" else "minimum"](result, bound)
        return result

    return lowering.fill(node, [x for x, _ in pairs], expression)


def _power(lowering: Lowering, node: fx.Node, base: Any, exponent: Any) -> Array:
    base, exponent = lowering._array(base), lowering._array(exponent)
    (base, cast), (exponent, cast_exponent) = lowering.as_kind(base, "real"), lowering.as_kind(exponent, "real")
    if exponent.constant is not None and exponent.constant.numel() == 1:
        number = float(exponent.constant)
        return lowering.fill(node, [base.expanded(node.meta["val"].shape)], lambda x: power(cast(x), number))
    return lowering.fill(node, [base, exponent], lambda x, y: f"f_pow<W>({cast(x)}, {cast_exponent(y)})")


def _convert(lowering: Lowering, node: fx.Node, array: Array, *_: Any, **__: Any) -> Array:
    kind = kind_of(node.meta["val"].dtype)
    if array.kind == kind:
        return array
    array, cast = lowering.as_kind(array, kind)
    return array if array.constant is not None else lowering.fill(node, [array], cast)


def _sum(lowering: Lowering, node: fx.Node, array: Array, dims: Any = None, keepdim: bool = False, **_: Any) -> Array:
    kind = kind_of(node.meta["val"].dtype)
    array, cast = lowering.as_kind(array, kind)
    dims = [dims] if isinstance(dims, int) else dims or []
    zero = "up<W>(0)" if kind == "real" else "up_i<W>(0)"
    found = lowering.sparse_sum(node, array, dims) if kind == array.kind == "real" else None
    if found is not None:
        return found
    lowering.complete(array)
    return lowering.reduced(node, array, dims, zero, lambda s, x: f"{s} + {cast(x)}", lambda s: s)


def _mean(lowering: Lowering, node: fx.Node, array: Array, dims: Any = None, keepdim: bool = False, **_: Any) -> Array:
    dims = [dims] if isinstance(dims, int) else dims or []
    count = math.prod(array.shape[d] for d in dims) if dims else array.size
    return lowering.reduced(node, array, dims, "up<W>(0)", lambda s, x: f"{s} + {x}", lambda s: f"{s} / {count}")


def _prod(lowering: Lowering, node: fx.Node, array: Array, dim: Any = None, keepdim: bool = False, **_: Any) -> Array:
    dims = [] if dim is None else [dim]
    return lowering.reduced(node, array, dims, "up<W>(1)", lambda s, x: f"{s} * {x}", lambda s: s)


def _extreme(name: str, begin: str) -> Callable[..., Array]:
    def lower(lowering: Lowering, node: fx.Node, array: Array, dims: Any = None, keepdim: bool = False) -> Array:
        dims = [dims] if isinstance(dims, int) else dims or []
        if array.kind != "real" or not array.size:
            raise lowering.refusal("is compiled for real numbers only")
        return lowering.reduced(
            node, array, dims, f"up<W>(real({begin}))", lambda s, x: f"f_{name}<W>({s}, {x})", lambda s: s
        )

    return lower


def _norm(lowering: Lowering, node: fx.Node, array: Array, order: float = 2, dims: Any = None, *_: Any, **__: Any) -> Array:
    dims = [dims] if isinstance(dims, int) else dims or []
    if order == 2:
        return lowering.reduced(node, array, dims, "up<W>(0)", lambda s, x: f"{s} + {x} * {x}", lambda s: f"f_sqrt<W>({s})")
    if order == 1:
        return lowering.reduced(node, array, dims, "up<W>(0)", lambda s, x: f"{s} + f_abs<W>({x})", lambda s: s)
    if order == math.inf:
        return lowering.reduced(node, array, dims, "up<W>(0)", lambda s, x: f"f_max<W>({s}, f_abs<W>({x}))", lambda s: s)
    raise lowering.refusal(f"of order {order} is not compiled")


def _cumulative(begin: str, sign: str) -> Callable[..., Array]:
    def lower(lowering: Lowering, node: fx.Node, array: Array, dim: int, **_: Any) -> Array:
        if not array.shape:
            return array
        dim %= len(array.shape)
        target = lowering.new(node, array.lanes)
        rest = [d for d in range(len(array.shape)) if d != dim]
        source, goal = array.permuted([*rest, dim]), target.permuted([*rest, dim])
        ctype = TYPES["real"] if target.lanes else "real"
        with lowering.loops(target, source.shape[:-1]) as (places, write):
            for index in places:
                write(f"{{ {ctype} s = {lowering._typed(begin, target.lanes)};")
                with lowering.loops(target, source.shape[-1:], tag="j") as (inner, write_inner):
                    for j in inner:
                        at = [*index, *j]
                        value = lowering.read(source, at, target.lanes)
                        write_inner(f"s = s {sign} {value}; {goal.place}[{goal.flat_index(at)}] = s;")
                write("}")
        return target

    return lower


def _mm(lowering: Lowering, node: fx.Node, a: Array, b: Array) -> Array:
    target = lowering.new(node, a.lanes or b.lanes)
    lowering.product(target, a, b, None)
    return target


def _addmm(lowering: Lowering, node: fx.Node, bias: Array, a: Array, b: Array, beta: float = 1, alpha: float = 1) -> Array:
    target = lowering.new(node, bias.lanes or a.lanes or b.lanes)
    lowering.product(target, a, b, bias.expanded(target.shape), alpha, beta)
    return target


def _bmm(lowering: Lowering, node: fx.Node, a: Array, b: Array) -> Array:
    target = lowering.new(node, a.lanes or b.lanes)
    for i in range(a.shape[0]):
        lowering.product(target.selected(0, i), a.selected(0, i), b.selected(0, i), None)
    return target


def _mv(lowering: Lowering, node: fx.Node, a: Array, x: Array) -> Array:
    target = lowering.new(node, a.lanes or x.lanes)
    lowering.product(target.unsqueezed(1), a, x.unsqueezed(1), None)
    return target


def _dot(lowering: Lowering, node: fx.Node, x: Array, y: Array) -> Array:
    target = lowering.new(node, x.lanes or y.lanes)
    lowering.product(target.unsqueezed(0).unsqueezed(0), x.unsqueezed(0), y.unsqueezed(1), None)
    return target


def _index(lowering: Lowering, node: fx.Node, array: Array, indices: Sequence[Array | None]) -> Array:
    """Elements at places that are known, or that differ from row to row."""
    array_indices = [x for x in indices if x is not None]
    if any(x.kind == "bool" for x in array_indices):
        raise lowering.refusal("by a mask has as many elements as are true, which depends on data: use torch.where")
    shape = torch.broadcast_shapes(*(x.shape for x in array_indices))
    given = [d for d, x in enumerate(indices) if x is not None]
    together = given == list(range(given[0], given[-1] + 1))
    first = given[0] if together else 0
    moves = any(x.lanes for x in array_indices)
    known = _picked(lowering, node, array, indices)
    if known is not None:
        return known
    lowering.complete(array)
    target = lowering.new(node, array.lanes or moves or array.kind != "real")
    source = array if array.constant is None else array
    with lowering.loops(target, target.shape) as (places, write):
        for place in places:
            around = [*place[:first], *place[first + len(shape) :]]
            chosen, rest = [], iter(around)
            for d in range(len(array.shape)):
                x = indices[d] if d < len(indices) else None
                if x is None:
                    chosen.append(next(rest))
                else:
                    chosen.append((x, list(place[first : first + len(shape)]), array.shape[d]))
            write(f"{target.place}[{target.flat_index(place)}] = {_gathered(lowering, source, chosen, target.lanes)};")
    return target


def _picked(lowering: Lowering, node: fx.Node, array: Array, indices: Sequence[Array | None]) -> Array | None:
    """Elements at places that are known, some of them known themselves; None if it is not worth writing them out."""
    numbers = [None if x is None else x.constant for x in indices]
    if array.kind != "real" or any(x is not None and n is None for x, n in zip(indices, numbers, strict=True)):
        return None
    whole = tuple(slice(None) if n is None else n.long() for n in numbers)
    places = torch.arange(array.size).view(array.shape)[whole]

    def element(index: Index) -> Operand:
        place = np.unravel_index(int(places[tuple(index)]), array.shape)  # pyright: ignore[reportArgumentType]
        return lowering._operand(array, [int(i) for i in place], array.lanes)

    return lowering._filled(node, array.lanes, [array], element)


def _gathered(lowering: Lowering, array: Array, chosen: Sequence[Any], lanes: bool) -> str:
    """The element of an array at places some of which are elements of arrays themselves."""
    plain: list[int | str] = []
    varies = False
    parts: list[str] = []
    for entry in chosen:
        if not isinstance(entry, tuple):
            plain.append(entry)
            parts.append("")
            continue
        x, index, n = entry
        index = index[len(index) - len(x.shape) :]
        if x.constant is not None and all(isinstance(i, int) for i in index):
            number = int(x.constant[tuple(0 if n == 1 else i for i, n in zip(index, x.shape, strict=True))])
            plain.append(number % n)
            parts.append("")
        else:
            varies = True
            plain.append(0)
            parts.append(f"wrapped<W>({lowering.read(x, index, True)}, {n})")
    if not varies:
        return lowering.read(array, plain, lanes)
    memory = array
    if memory.constant is not None:
        name = lowering._constant(memory.constant.contiguous(), memory.kind)
        memory = Array.stored(name, array.shape, array.kind, lanes=False)
    terms = [f"{s} * {part}" for part, s in zip(parts, memory.strides, strict=True) if part]
    gather = {"real": "gather", "int": "gather_i"}.get(memory.kind)
    if gather is None:
        raise lowering.refusal("of truths by places that differ from row to row is not compiled")
    return f"{gather}{'_lanes' if memory.lanes else ''}<W>({memory.place} + {memory.flat_index(plain)}, {' + '.join(terms)})"


def _index_put(
    lowering: Lowering, node: fx.Node, array: Array, indices: Sequence[Array | None], values: Array, accumulate: bool = False
) -> Array:
    """A copy with elements replaced, or added to, at places along the first dimension."""
    if len(indices) != len(array.shape) or any(x is None or x.kind != "int" for x in indices):
        raise lowering.refusal("is compiled for a number in every dimension only")
    target = lowering.new(node, lanes=True)
    lowering.copy_into(target, array)
    shape = torch.broadcast_shapes(*(x.shape for x in indices if x is not None))
    with lowering.loops(target, shape) as (places, write):
        for place in places:
            terms = []
            for x, n, s in zip(indices, target.shape, target.strides, strict=True):
                assert x is not None
                terms.append(f"{s} * wrapped<W>({lowering.read(x, place, True)}, {n})")
            value = lowering.read(values.expanded(shape), place, True)
            write(f"scatter<W, {'true' if accumulate else 'false'}>({target.place}, {' + '.join(terms) or 'up_i<W>(0)'}, {value});")
    return target


def _search(lowering: Lowering, node: fx.Node, sorted_: Array, values: Any, right: bool) -> Array:
    """How many of the sorted numbers lie before each value."""
    if len(sorted_.shape) != 1 or sorted_.lanes:
        raise lowering.refusal("is compiled for one sorted sequence that all rows share")
    sorted_, values = lowering.materialised(sorted_), lowering._array(values)
    n = sorted_.shape[0]
    place = sorted_.place
    if sorted_.constant is not None:
        place = lowering._constant(sorted_.constant.contiguous(), "real")
    where = f"{place} + {sorted_.offset}"
    return lowering.fill(
        node, [values], lambda x: f"search<W, {'true' if right else 'false'}>({where}, {n}, {x})", kind="int"
    )


def _searchsorted(
    lowering: Lowering, node: fx.Node, sorted_: Array, values: Any, *, right: bool = False, side: str | None = None, **_: Any
) -> Array:
    return _search(lowering, node, sorted_, values, right or side == "right")


def _bucketize(lowering: Lowering, node: fx.Node, values: Any, sorted_: Array, *, right: bool = False, **_: Any) -> Array:
    return _search(lowering, node, sorted_, values, right)


def _constant_pad(lowering: Lowering, node: fx.Node, array: Array, pad: Sequence[int], value: float = 0) -> Array:
    kind = kind_of(node.meta["val"].dtype)
    target = lowering.new(node, array.lanes or kind != "real")
    lowering.copy_into(target, Array.known(torch.tensor(float(value))).expanded(target.shape))
    inner, source = target, array
    for number in range(len(pad) // 2):
        dim = len(array.shape) - 1 - number
        before, after = pad[2 * number], pad[2 * number + 1]
        if before < 0 or after < 0:
            raise lowering.refusal("by a negative number is not compiled")
        inner = inner.sliced(dim, before, inner.shape[dim] - after, 1)
    lowering.copy_into(inner, source)
    return target


def _full(lowering: Lowering, node: fx.Node, *args: Any, **_: Any) -> Array:
    value = args[1] if _name_of(node) in ("full_like", "full", "new_full") else 0
    value = args[2] if _name_of(node) == "new_full" else value
    value = 1 if _name_of(node) in ("ones_like", "new_ones") else value
    return Array.known(torch.full(node.meta["val"].shape, value, dtype=node.meta["val"].dtype))


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "permute": _view(Array.permuted),
    "t": _view(lambda a: a.permuted(list(range(len(a.shape)))[::-1])),
    "transpose": _view(
        lambda a, i, j: a.permuted(
            [{i % len(a.shape): j % len(a.shape), j % len(a.shape): i % len(a.shape)}.get(d, d) for d in range(len(a.shape))]
        )
    ),
    "select": _view(Array.selected),
    "slice": _view(lambda a, dim=0, start=None, end=None, step=1: a.sliced(dim % len(a.shape), start, end, step)),
    "unsqueeze": _view(Array.unsqueezed),
    "squeeze": _view(
        lambda a, dims=None: a.squeezed(list(range(len(a.shape))) if dims is None else [dims] if isinstance(dims, int) else dims)
    ),
    "expand": lambda lowering, node, a, shape, **_: a.expanded(shape),
    "broadcast_to": lambda lowering, node, a, shape, **_: a.expanded(shape),
    "flip": _view(Array.flipped),
    "unbind": lambda lowering, node, a, dim=0: [a.selected(dim, i) for i in range(a.shape[dim])],
    "split": lambda lowering, node, a, size, dim=0: [
        a.sliced(dim % len(a.shape), i, i + size, 1) for i in range(0, a.shape[dim], size)
    ],
    "split_with_sizes": lambda lowering, node, a, sizes, dim=0: [
        a.sliced(dim % len(a.shape), end - size, end, 1) for size, end in zip(sizes, itertools.accumulate(sizes), strict=True)
    ],
    "diagonal": lambda lowering, node, a, offset=0, dim1=0, dim2=1: _diagonal(lowering, a, offset, dim1, dim2),
    "view": _reshape,
    "reshape": _reshape,
    "_unsafe_view": _reshape,
    "alias": _view(lambda a: a),
    "detach": _view(lambda a: a),
    "clone": _view(lambda a: a),
    "lift_fresh": _view(lambda a: a),
    "copy": lambda lowering, node, old, new, *_: _convert(lowering, node, new.expanded(node.meta["val"].shape)),
    "_to": _convert,
    "to": _convert,
    "convert_element_type": _convert,
    "cat": _cat,
    "select_scatter": lambda lowering, node, a, part, dim, i: _scatter(
        lowering, node, a, part, lambda x: x.selected(dim, i)
    ),
    "slice_scatter": lambda lowering, node, a, part, dim=0, start=None, end=None, step=1: _scatter(
        lowering, node, a, part, lambda x: x.sliced(dim % len(x.shape), start, end, step)
    ),
    "where": _where,
    "clamp": _clamp,
    "clamp_min": lambda lowering, node, a, low: _clamp(lowering, node, a, low, None),
    "clamp_max": lambda lowering, node, a, high: _clamp(lowering, node, a, None, high),
    "pow": _power,
    "sum": _sum,
    "mean": _mean,
    "prod": _prod,
    "amax": _extreme("max", "-INFINITY"),
    "amin": _extreme("min", "INFINITY"),
    "max": _extreme("max", "-INFINITY"),
    "min": _extreme("min", "INFINITY"),
    "linalg_vector_norm": _norm,
    "cumsum": _cumulative("up<W>(0)", "+"),
    "cumprod": _cumulative("up<W>(1)", "*"),
    "mm": _mm,
    "addmm": _addmm,
    "bmm": _bmm,
    "mv": _mv,
    "dot": _dot,
    "vdot": _dot,
    "index": _index,
    "index_select": lambda lowering, node, a, dim, i: _index(
        lowering, node, a, [None] * (dim % len(a.shape)) + [i if i.shape else i.unsqueezed(0)]
    ),
    "index_put": _index_put,
    "_unsafe_index_put": _index_put,
    "_unsafe_index": _index,
    "searchsorted": _searchsorted,
    "bucketize": _bucketize,
    "constant_pad_nd": _constant_pad,
    "full_like": _full,
    "full": _full,
    "new_full": _full,
    "zeros_like": _full,
    "new_zeros": _full,
    "ones_like": _full,
    "new_ones": _full,
    "_new_zeros_with_same_feature_meta": _full,
}
"""The operations that are not pointwise, by their names; called with the lowering, the node and its arguments."""


def _diagonal(lowering: Lowering, array: Array, offset: int, dim1: int, dim2: int) -> Array:
    dim1, dim2 = dim1 % len(array.shape), dim2 % len(array.shape)
    rest = [d for d in range(len(array.shape)) if d not in (dim1, dim2)]
    a = array.permuted([*rest, dim1, dim2])
    a = a.sliced(len(rest), max(-offset, 0), None, 1).sliced(len(rest) + 1, max(offset, 0), None, 1)
    n = min(a.shape[-2:])
    constant = None if a.constant is None else a.constant.diagonal(0, -2, -1)
    return Array(
        a.place, (*a.shape[:-2], n), (*a.strides[:-2], a.strides[-2] + a.strides[-1]), a.offset, a.kind, a.lanes, constant
    )


_KNOWING = {
    *("permute", "t", "transpose", "select", "slice", "unsqueeze", "squeeze", "expand", "broadcast_to", "flip"),
    *("unbind", "split", "split_with_sizes", "diagonal", "view", "reshape", "_unsafe_view", "alias", "detach", "clone"),
    *("lift_fresh", "copy", "_to", "to", "convert_element_type", "cat", "select_scatter", "slice_scatter", "where", "sum"),
    *("index", "_unsafe_index", "index_select"),
}
"""The operations that know of elements that are known; those that are pointwise do too."""
