"""The derivatives of a function that its steps start from, in C++."""

from __future__ import annotations

from collections.abc import Sequence

from torchivp.fused.arrays import Array
from torchivp.fused.graphs import core_graph, linearised
from torchivp.fused.lower import Lowering
from torchivp.fused.refusal import CannotFuse
from torchivp.fused.trace import Traced

_LARGEST = 32
"""Matrices with so many rows at most: beyond, what LAPACK does by blocks takes less time."""


class Derivatives:
    """The slope with its derivatives by the state and the time: only what varies is computed.

    Args:
        traced: the function.
        roles: what each of its inputs is.
        used: the roles of those that the slope depends on.
        size: the number of elements of the state.
        lowering: writes the C++.
        inputs: the inputs in it.

    Attributes:
        function: gives the slope and the derivatives, those by the elements of the state and then the one by time.

    Raises:
        CannotFuse: the state is too large, or an operation has no derivative or no C++.
    """

    def __init__(
        self,
        traced: Traced,
        roles: Sequence[str],
        used: Sequence[str],
        size: int,
        lowering: Lowering,
        inputs: Sequence[Array],
    ):
        if size > _LARGEST:
            raise CannotFuse(
                f"kernels of Rosenbrock methods eliminate matrices of up to {_LARGEST} rows, element by element, and "
                f"the state has {size} elements: the step loop eliminates larger ones by blocks, with LAPACK"
            )
        by = [role for role in ("y", "t") if role in used]
        if not by:
            raise CannotFuse("func depends neither on t nor on y, so that no method for stiff problems is needed")
        self.function = linearised(traced.values, [roles.index(role) for role in by])
        lines, (slope, matrix) = lowering.lower(core_graph(self.function, traced.examples), inputs, sparse=True)
        self._shape = matrix.shape
        self._columns = size if "y" in by else 0
        self._lowering = lowering
        self._entries: list[tuple[int, int]] = []
        self._fixed: list[tuple[int, int, float]] = []
        self._lines = [*lines, *(f"dy[{e}] = {lowering.element(slope, (e,))};" for e in range(size))]
        for column in range(self._columns):
            for row in range(size):
                value = lowering.known(matrix, (column, row))
                if value is None:
                    self._lines.append(f"entries[{len(self._entries)}] = {lowering.element(matrix, (column, row))};")
                    self._entries.append((row, column))
                elif value:
                    self._fixed.append((row, column, value))
        by_time = [(self._columns, e) for e in range(size)] if "t" in by else []
        self._moving = [place for place in by_time if lowering.known(matrix, place) != 0]
        for place in by_time if self._moving else []:
            self._lines.append(f"by_time[{place[1]}] = {lowering.element(matrix, place)};")
        if slope.constant is None and not (self._entries or self._fixed or self._moving):
            raise CannotFuse("autograd does not see how func depends on y: compute without .item() or .detach()")

    def code(self, arguments: str, begin: str) -> list[str]:
        """What varies and what does not, and the function that computes the former."""
        rows, columns = zip(*self._entries, strict=True) if self._entries else ((), ())
        fixed_rows, fixed_columns, values = zip(*self._fixed, strict=True) if self._fixed else ((), (), ())

        def places(name: str, values: Sequence[int]) -> str:
            return f"CONSTANT int {name}[] = {{{', '.join(map(str, values)) or '0'}}};"

        return [
            f"constexpr int ENTRIES = {len(rows)}, FIXED = {len(values)}, COLUMNS = {self._shape[0]};",
            f"constexpr bool MOVES = {str(bool(self._moving)).lower()};",
            places("ENTRY_ROW", rows),
            places("ENTRY_COLUMN", columns),
            places("FIXED_ROW", fixed_rows),
            places("FIXED_COLUMN", fixed_columns),
            f"CONSTANT double FIXED_VALUE[] = {{{', '.join(map(repr, values)) or '0'}}};",
            f"template <int W> FUSED void derivatives({arguments}, typename Lanes<W>::R* dy, ",
            "typename Lanes<W>::R* entries, typename Lanes<W>::R* by_time) {",
            f"(void)entries; (void)by_time; {begin}",
            *self._lines,
            "}",
        ]

    def cotangents(self, place: str) -> Array:
        """The array at `place` that holds the cotangents of the derivatives, zero for those that do not vary."""
        array = Array.stored(place, self._shape)
        varying = {(column, row) for row, column in self._entries} | set(self._moving)
        for index in array.indices():
            if index not in varying:
                self._lowering.note(array, index, 0.0)
        return array
