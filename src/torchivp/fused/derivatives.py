"""The derivatives of a function that its steps start from, in C++."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from torchivp.fused.arrays import Array
from torchivp.fused.graphs import core_graph, linearised
from torchivp.fused.lower import Lowering, literal
from torchivp.fused.refusal import CannotFuse
from torchivp.fused.trace import Traced

_LARGEST = 32
"""Matrices have so many rows at most: beyond, what LAPACK does by blocks takes less time."""


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
        entries: the rows and columns of the entries of the Jacobian that vary.
        fixed: those of the entries that do not, with their values, but for the zeros.
        moves: whether there are derivatives by time.

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
        lines, (slope, matrix) = lowering.lower(core_graph(self.function, traced.examples), inputs)
        self._lowering, self._matrix = lowering, matrix
        columns = size if "y" in by else 0
        values = {(r, c): lowering.known(matrix, (c, r)) for c in range(columns) for r in range(size)}
        self.entries = [place for place, value in values.items() if value is None]
        self.fixed = [(*place, value) for place, value in values.items() if value]
        self._by_time = [(columns, e) for e in range(size)] if "t" in by else []
        self.moves = any(lowering.known(matrix, place) != 0 for place in self._by_time)
        flat = not (self.entries or self.fixed)
        if flat and "y" in by and slope.constant is None and _varies(traced, roles.index("y")):
            raise CannotFuse("autograd does not see how func depends on y: compute without .item() or .detach()")
        self._lines = [*lines, *lowering.written(slope, "dy"), *self._written_entries(size * size)]
        for place in self._by_time if self.moves else []:
            self._lines.append(f"by_time[{place[1]}] = {lowering.element(matrix, place)};")

    def _written_entries(self, all_of_them: int) -> list[str]:
        if len(self.entries) == all_of_them:
            rows = self._matrix.shape[1]
            return self._lowering.written(self._matrix.sliced(0, 0, rows, 1), "entries")
        elements = (self._lowering.element(self._matrix, (column, row)) for row, column in self.entries)
        return [f"entries[{n}] = {element};" for n, element in enumerate(elements)]

    def code(self, arguments: str, begin: str) -> list[str]:
        """What varies and what does not, and the function that computes the former."""

        def places(name: str, values: Sequence[int]) -> str:
            return f"CONSTANT int {name}[] = {{{', '.join(map(str, values)) or '0'}}};"

        values = ", ".join(literal(value, "real") for _, _, value in self.fixed)
        return [
            f"constexpr int ENTRIES = {len(self.entries)}, FIXED = {len(self.fixed)};",
            f"constexpr int COLUMNS = {self._matrix.shape[0]};",
            f"constexpr bool MOVES = {str(self.moves).lower()};",
            places("ENTRY_ROW", [row for row, _ in self.entries]),
            places("ENTRY_COLUMN", [column for _, column in self.entries]),
            places("FIXED_ROW", [row for row, _, _ in self.fixed]),
            places("FIXED_COLUMN", [column for _, column, _ in self.fixed]),
            f"CONSTANT real FIXED_VALUE[] = {{{values or '0'}}};",
            f"template <int W> FUSED void derivatives({arguments}, typename Lanes<W>::R* dy, ",
            "typename Lanes<W>::R* entries, typename Lanes<W>::R* by_time) {",
            f"(void)entries; (void)by_time; {begin}",
            *self._lines,
            "}",
        ]

    def cotangents(self, place: str) -> Array:
        """The array at `place` that holds the cotangents of the derivatives, zero for those that do not vary."""
        return Array.stored(place, self._matrix.shape)


_PLACES = (1.0, 100.0, -1.0, -100.0)
"""About where to look whether a function varies."""


def _varies(traced: Traced, place: int) -> bool:
    """Whether a function depends on the input at this place, near some values of all."""
    for size in _PLACES:
        inputs = [torch.full_like(x, size) if x.is_floating_point() else torch.zeros_like(x) for x in traced.examples]
        (here,) = traced.values(*inputs)
        inputs[place] = inputs[place] * 1.001
        (there,) = traced.values(*inputs)
        if not torch.allclose(here, there, rtol=0.0, atol=0.0, equal_nan=True):
            return True
    return False
