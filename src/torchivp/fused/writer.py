"""Arrays of a kernel as lines of C++: memory for them, loops over them, and reading and writing of elements."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from torchivp.fused.arrays import TYPES, UNROLL, Array, Index, Kind, contiguous, literal

_SMALL = 128
"""A GPU's compiler writes a function out at every call if it holds so many numbers at most."""

LIFT: dict[Kind, str] = {"real": "up", "int": "up_i", "bool": "up_m"}
_DTYPES: dict[Kind, torch.dtype] = {"real": torch.float64, "int": torch.int64, "bool": torch.bool}

_CASTS: dict[tuple[Kind, Kind], Callable[[str], str]] = {
    ("int", "real"): lambda x: f"int_to_real<W>({x})",
    ("bool", "real"): lambda x: f"sel({x}, up<W>(1), up<W>(0))",
    ("real", "int"): lambda x: f"real_to_int<W>({x})",
    ("bool", "int"): lambda x: f"sel(widen_i<W>({x}), up_i<W>(1), up_i<W>(0))",
    ("real", "bool"): lambda x: f"({x} != 0)",
    ("int", "bool"): lambda x: f"narrow_i<W>({x} != 0)",
}
"""How numbers become numbers of another kind."""


class Writer:
    """Writes the lines that compute arrays.

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
        self._known: dict[tuple[Kind, tuple[str, ...]], str] = {}
        self._begin()

    def _begin(self) -> None:
        self._lines: list[str] = []
        self._held = 0

    def room(self, shape: Sequence[int], kind: Kind, lanes: bool) -> Array:
        """Memory for an array; real numbers that all rows share are computed once."""
        size = math.prod(shape)
        if not lanes and kind == "real":
            array = Array.stored("u", shape, kind, lanes=False, offset=self.kept)
            self.kept += size
            return array
        name = f"v{next(self._names)}"
        self._held += size
        self._lines.append(f"{TYPES[kind]} {name}[{max(size, 1)}];")
        return Array.stored(name, shape, kind)

    def lines_for(self, array: Array) -> list[str]:
        """Where the lines go that write an array."""
        return self._lines if array.lanes else self.once

    def type_of(self, array: Array) -> str:
        """The C++ type of an element."""
        return TYPES[array.kind] if array.lanes else "real"

    @property
    def size(self) -> str:
        """Whether the function that was lowered last is a large one, as a macro of C++."""
        return "FUSED" if self._held <= _SMALL else "LARGE"

    @contextmanager
    def loops(
        self, target: Array, shape: Sequence[int], tag: str = "i"
    ) -> Iterator[tuple[list[Index], Callable[[str], None]]]:
        """The places to write at, all of them or those of one pass of the loops, and how to write a line."""
        lines = self.lines_for(target)
        if math.prod(shape) <= UNROLL:
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
            places = [i for i in index if isinstance(i, int)]
            if len(places) == len(index):
                number = literal(array.constant[tuple(places)].item(), array.kind)
            else:
                number = f"{self.in_memory(array).place}[{Array.stored('', array.shape).flat_index(index)}]"
        else:
            number = f"{array.place}[{array.flat_index(index)}]"
        if array.lanes:
            assert lanes
            return number
        return f"{LIFT[array.kind]}<{'W' if lanes else 1}>({number})"

    def element(self, array: Array, index: Index) -> str:
        """An element of an output, as real numbers in lanes."""
        array, cast = self.as_kind(array, "real")
        return cast(self.read(array, index, lanes=True))

    def known(self, array: Array, index: Index) -> float | None:
        """The value of an element, if it is known."""
        return None if array.constant is None else float(array.constant[tuple(map(int, index))])

    def written(self, value: Array, goal: str, start: int = 0, how: str = "=") -> list[str]:
        """The lines that write an output, as lanes, to an array from `start` on, or add it."""
        self._lines, lines = [], self._lines
        flat = Array.stored(goal, value.shape, offset=start)
        with self.loops(flat, value.shape) as (places, write):
            for index in places:
                write(f"{goal}[{flat.flat_index(index)}] {how} {self.element(value, index)};")
        self._lines, written = lines, self._lines
        return written

    def added(self, value: Array, goal: str, start: int) -> list[str]:
        """The lines that add an output, as lanes, to an array from `start` on."""
        return [] if value.is_zero() else self.written(value, goal, start, "+=")

    def outer(self, left: Array, right: Array, call: str) -> list[str]:
        """The lines that add a product of a column and a row, summed over lanes, by a `call` that lacks its factors."""
        self._lines, lines = [], self._lines
        factors = []
        for array in (left, right):
            name = f"v{next(self._names)}"
            self._lines.append(f"{TYPES['real']} {name}[{array.size}];")
            self.copy_into(Array.stored(name, array.shape), array)
            factors.append(name)
        self._lines.append(f"{call}, {', '.join(factors)});")
        self._lines, added = lines, self._lines
        return added

    def in_memory(self, array: Array) -> Array:
        """An array of known numbers as memory that all rows share."""
        assert array.constant is not None
        numbers = tuple(literal(x, array.kind) for x in array.constant.reshape(-1).tolist())
        if (array.kind, numbers) not in self._known:
            name = f"c{next(self._names)}"
            ctype = {"real": "real", "int": "int64_t", "bool": "bool"}[array.kind]
            self.constants.append(f"CONSTANT {ctype} {name}[] = {{{', '.join(numbers)}}};")
            self._known[array.kind, numbers] = name
        return Array.stored(self._known[array.kind, numbers], array.shape, array.kind, lanes=False)

    def filled(
        self,
        shape: Sequence[int],
        sources: Sequence[Array],
        expression: Callable[..., str],
        kind: Kind = "real",
        bits: str = "",
    ) -> Array:
        """The same in a shape of its own; `bits` narrows whole numbers."""
        target = self.room(shape, kind, any(x.lanes for x in sources))
        with self.loops(target, target.shape) as (places, write):
            for index in places:
                value = expression(*(self.read(x, index, target.lanes) for x in sources))
                value = f"{bits}<W>({value})" if bits else value
                write(f"{target.place}[{target.flat_index(index)}] = {self.typed(value, target.lanes)};")
        return target

    @staticmethod
    def typed(expression: str, lanes: bool) -> str:
        """An expression over lanes, or over what all rows share."""
        return expression if lanes else expression.replace("<W>", "<1>")

    def as_kind(self, array: Array, kind: Kind) -> tuple[Array, Callable[[str], str]]:
        """The array with what makes its elements numbers of another kind."""
        if array.kind == kind:
            return array, lambda x: x
        if array.constant is not None:
            return Array.known(array.constant.to(_DTYPES[kind])), lambda x: x
        return array, _CASTS[array.kind, kind]

    def materialised(self, array: Array) -> Array:
        """The elements of a view in memory of their own, in order."""
        if array.strides == contiguous(array.shape) or array.constant is not None:
            return array
        target = self.room(array.shape, array.kind, array.lanes)
        self.copy_into(target, array)
        return target

    def reshaped(self, array: Array, shape: Sequence[int]) -> Array:
        """The same elements in the same order in another shape."""
        found = array.reshaped(shape) or self.materialised(array).reshaped(shape)
        assert found is not None
        return found

    def copy_into(self, target: Array, part: Array) -> None:
        """Write `part` into a view of memory."""
        part, cast = self.as_kind(part, target.kind)
        with self.loops(target, target.shape) as (places, write):
            for index in places:
                value = self.typed(cast(self.read(part, index, target.lanes)), target.lanes)
                write(f"{target.place}[{target.flat_index(index)}] = {value};")
