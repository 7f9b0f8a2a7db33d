"""The kernel of the gradients of a solve."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from torchivp.fused.arrays import Array
from torchivp.fused.call import BEGIN, NOW, PULL, PullCall, loaded, structure
from torchivp.fused.derivatives import Derivatives
from torchivp.fused.graphs import Function, core_graph, outer_products, vjp_of
from torchivp.fused.refusal import CannotFuse
from torchivp.fused.steps import source_file

if TYPE_CHECKING:
    from torchivp.fused.kernel import Kernel

_SUMS_OF_THREAD = 64 * 1024
"""A thread of a GPU sums up so many bytes by itself at most: all that may run at a time take that memory."""


class PullKernel:
    """The kernel of the gradients of a solve.

    Args:
        kernel: that of the solve.
        wanted: the numbers of the inputs whose gradients are wanted.
        timed: whether those of the ends of the steps, and of the times of the outputs, are wanted too.

    Attributes:
        shared: for each wanted input that all rows share, its number and where its gradient lies among theirs.
        per_row: the same for those with an entry for each row.
        sums: the size of the gradients of the former.
        row_sums: that of the latter, of a row.
        kept: how many numbers are computed once.
    """

    def __init__(self, kernel: Kernel, wanted: tuple[int, ...], timed: bool):
        self.shared: list[tuple[int, slice]] = []
        self.per_row: list[tuple[int, slice]] = []
        self.sums = self.row_sums = 0
        self._kernel, self._wanted = kernel, wanted
        by = ["y", "t"] if timed else ["y"]
        self._by = [role for role in by if role in kernel.form.roles]
        lanes, matrices, lines = self._lowered_field()
        functions = _function("pull_field", "", lines, kernel.lowering.size)
        if kernel.derivatives is not None:
            argument = "const typename Lanes<W>::R* of_derivatives, "
            functions += _function("pull_derivatives", argument, self._lowered_derivatives(kernel.derivatives), "FUSED")
        self.kept = kernel.lowering.kept
        self._check_room(lanes + self.row_sums)
        before, step = kernel.form.coefficients.pull()
        self._parts = [
            "#define PULLS",
            *kernel.beginning(structure("Pull", PULL)),
            before,
            f"constexpr bool TIMED = {str(timed).lower()};",
            f"constexpr int SUMS_USED = {self.sums}, LANES_USED = {lanes}, LANE_SUMS = {max(lanes, 1)};",
            f"constexpr int ROW_SUMS_USED = {self.row_sums}, ROW_SUMS = {max(self.row_sums, 1)};",
            f"template <int W> constexpr int WIDE = {_room(matrices)} + 1;",
            source_file("outer.h"),
            *functions,
            *_unpacking(lanes, matrices),
            source_file("pull.h"),
            step,
        ]

    def _check_room(self, sums: int) -> None:
        """See to it that so many sums have room where a thread of a GPU keeps them."""
        size = sums * self._kernel.form.dtype.itemsize
        if self._kernel.gpu is not None and size > _SUMS_OF_THREAD:
            raise CannotFuse(
                f"the gradient of func sums up {sums} numbers, {size} bytes, in each thread of a GPU, which has "
                f"{_SUMS_OF_THREAD} bytes for that: solve on the CPU"
            )

    def source(self, shell: str = "host.h") -> str:
        """The kernel in C++, with what runs it, as for `Kernel.source`."""
        return "\n".join([*self._parts, source_file(shell)])

    @functools.cached_property
    def _pull(self) -> Any:
        """Compiled when it is first asked for: not every solve that could be differentiated is."""
        return loaded(self.source, "pull", self._kernel.gpu)

    def _pulled(self, function: Function, cotangents: Sequence[Array]) -> fx.Graph:
        """The gradients of the state, the time and what is wanted, given cotangents of what `function` gives."""
        kernel = self._kernel
        by = [kernel.form.roles.index(role) for role in self._by]
        examples = kernel.traced.examples
        seeds = [torch.zeros(x.shape, dtype=kernel.form.dtype) for x in cotangents]
        return core_graph(vjp_of(function, [*by, *self._wanted], len(examples)), [*examples, *seeds])

    def _lowered_field(self) -> tuple[int, list[tuple[int, int, int]], list[str]]:
        """The number of sums kept as lanes, the matrices that are not, and the lines of the gradients.

        A matrix is given by its shape, and by where its gradient begins among all.
        """
        kernel, form, lowering = self._kernel, self._kernel.form, self._kernel.lowering
        slope = Array.stored("g", (form.parts[-1],))
        graph = self._pulled(kernel.traced.values, [slope])
        # The derivatives that a method begins with add to the same sums, in lanes.
        apart = [form.roles[number] == "shared" and kernel.derivatives is None for number in self._wanted]
        outer = outer_products(graph, [*(False for _ in self._by), *apart])
        lines, found = lowering.lower(graph, [*kernel.inputs, slope], "the gradient of func")
        lines, outputs = list(lines), iter(found)
        lines += self._to_state_and_time(outputs)
        lanes, matrices, late = 0, [], []
        for number, transposed in zip(self._wanted, outer[len(self._by) :], strict=True):
            output = next(outputs)
            if form.roles[number] == "row":
                lines += lowering.added(output, "row_sums", self.row_sums)
                self.per_row.append((number, slice(self.row_sums, self.row_sums + output.size)))
                self.row_sums += output.size
            elif transposed is None:
                lines += lowering.added(output, "sums", lanes)
                self.shared.append((number, slice(lanes, lanes + output.size)))
                lanes += output.size
            else:
                left, right = output, next(outputs)
                late.append((number, *((right, left) if transposed else (left, right))))
        self.sums = lanes
        for number, left, right in late:
            (m, n), start = (left.size, right.size), self.sums
            lines += lowering.outer(left, right, f"outer<W, {m}, {n}>(wide + {_room(matrices)}")
            matrices.append((m, n, start))
            self.shared.append((number, slice(start, start + m * n)))
            self.sums += m * n
        return lanes, matrices, lines

    def _lowered_derivatives(self, derivatives: Derivatives) -> list[str]:
        """The same for the slope with its derivatives."""
        kernel, lowering = self._kernel, self._kernel.lowering
        cotangents = [Array.stored("g", (kernel.form.size,)), derivatives.cotangents("of_derivatives")]
        graph = self._pulled(derivatives.function, cotangents)
        lines, found = lowering.lower(graph, [*kernel.inputs, *cotangents], "the gradient of func's derivatives")
        lines, outputs = list(lines), iter(found)
        lines += self._to_state_and_time(outputs)
        places = {number: ("row_sums", where.start) for number, where in self.per_row}
        places |= {number: ("sums", where.start) for number, where in self.shared}
        for number, output in zip(self._wanted, outputs, strict=True):
            lines += lowering.added(output, *places[number])
        return lines

    def _to_state_and_time(self, outputs: Iterator[Array]) -> list[str]:
        """The lines that hand on to the state and the time what comes first of a graph's `outputs`."""
        found = {role: next(outputs) for role in self._by}
        lines = []
        for role, size in (("y", self._kernel.form.parts[-1]), ("t", 1)):
            lines += self._kernel.lowering.written(found.get(role, Array.known(torch.zeros(size))), f"to_{role}")
        return lines

    def run(self, call: PullCall) -> None:
        """Run the kernel."""
        self._pull(call, -(-call.rows // call.block), bool(self.kept))


def _function(name: str, argument: str, lines: Sequence[str], size: str) -> list[str]:
    """A function that hands cotangents on to the state, the time and what is wanted; `size`: whether it is large."""
    lanes = "typename Lanes<W>::R*"
    sums = f"{lanes} to_y, {lanes} to_t, {lanes} sums, Wide<W> wide, {lanes} row_sums"
    unused = "".join(f"(void){goal}; " for goal in ("g", "sums", "wide", "row_sums"))
    return [
        f"template <int W> {size} void {name}({NOW}, const typename Lanes<W>::R* g, {argument}{sums}) {{",
        BEGIN + unused,
        *lines,
        "}",
    ]


def _room(matrices: Sequence[tuple[int, int, int]]) -> str:
    """How many vectors the sums of matrices take, a C++ expression."""
    return " + ".join(["0", *(f"{m} * (({n} + W - 1) / W)" for m, n, _ in matrices)])


def _unpacking(lanes: int, matrices: Sequence[tuple[int, int, int]]) -> list[str]:
    """The function that adds up the sums of a block of rows."""
    lines = [
        "template <int W> DEVICE void add_up(",
        "const typename Lanes<W>::R* sums, Wide<W> wide, Totals total) {",
        f"for (int e = 0; e < {lanes}; ++e) total[e] = sum_of_lanes<W>(sums[e]);",
        "#ifndef __CUDACC_RTC__",
    ]
    for m, n, start in matrices:
        lines += [f"unpack<W, {m}, {n}>(wide, total + {start});", f"wide += {m} * (({n} + W - 1) / W);"]
    return [*lines, "#endif", "(void)sums; (void)wide; (void)total;", "}"]
