"""The kernel of a function, a method and a precision: its source, and how it is called."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchivp.fused.arrays import Array
from torchivp.fused.cache import load
from torchivp.fused.derivatives import Derivatives
from torchivp.fused.graphs import core_graph, uses, vjp_of
from torchivp.fused.lower import Lowering
from torchivp.fused.steps import Coefficients, source_file
from torchivp.fused.trace import Traced

_DOUBLE, _INT = ctypes.c_double, ctypes.c_int64
_DOUBLES, _REALS, _INTS = "double*", "real*", "int64_t*"

_FLAGS = ("-pthread", "-fno-strict-aliasing", "-ffp-contract=fast", "-w")
"""Elements of vectors are read through pointers to numbers; of W lanes in the signature of a function GCC has views."""

SOLVE: dict[str, Any] = {
    "rows": _INT,
    "outputs": _INT,
    "max_steps": _INT,
    "capacity": _INT,
    "threads": _INT,
    "block": _INT,
    # What is given, per row or, with a stride of 0, for all.
    "start": _DOUBLES,
    "end": _DOUBLES,
    "wanted": _DOUBLES,
    "span_stride": _INT,
    "wanted_stride": _INT,
    "y0": _REALS,
    "rtol": _REALS,
    "atol": _REALS,
    "rtol_stride": _INT,
    "atol_stride": _INT,
    # The ends of fixed steps, NaN after the last of a row.
    "grid": _DOUBLES,
    "grid_stride": _INT,
    "inputs": "const real* const*",
    "input_strides": _INTS,
    "uniform": _REALS,
    # How steps are sized.
    "safety": _DOUBLE,
    "factor_min": _DOUBLE,
    "factor_max": _DOUBLE,
    "first_step": _DOUBLE,
    "min_step": _DOUBLE,
    "max_step": _DOUBLE,
    "dead_band": _DOUBLE,
    "power": _DOUBLE,
    "power_last": _DOUBLE,
    "power_before": _DOUBLE,
    "remembers": _INT,
    "accept_at_min_step": _INT,
    # What comes back: the outputs, [rows, outputs, N], the last states, and how each row ended.
    "values": _REALS,
    "last": _REALS,
    "last_time": _DOUBLES,
    "outcome": _INTS,
    "accepted": _INTS,
    "rejected": _INTS,
    "evaluations": _INTS,
    "jacobians": _INTS,
    "factorisations": _INTS,
    # Of rows that failed: the size of the step, that of the next, the scaled error, [rows, 3].
    "failing": _DOUBLES,
    # The record: ends of steps and the states there, [rows, capacity + 1], and the slopes that steps start from.
    "ends": _DOUBLES,
    "states": _REALS,
    "slopes": _REALS,
}
"""What a call of a kernel is given: numbers, and the addresses of arrays."""


PULL: dict[str, Any] = {
    "rows": _INT,
    "outputs": _INT,
    "capacity": _INT,
    "threads": _INT,
    "block": _INT,
    "wanted": _DOUBLES,
    "wanted_stride": _INT,
    "directions": _DOUBLES,
    "inputs": "const real* const*",
    "input_strides": _INTS,
    "uniform": _REALS,
    # The record.
    "steps": _INTS,
    "ends": _DOUBLES,
    "states": _REALS,
    "slopes": _REALS,
    # The gradients of what came back: of the outputs, of the last states, and of the states at all ends of steps.
    "grad_values": _REALS,
    "grad_last": _REALS,
    "grad_states": _REALS,
    # Those that are sought: of the initial states, of the inputs that have an entry for each row and of those that have
    # not; and room for the sums over blocks of rows.
    "grad_y0": _REALS,
    "grad_rows": _REALS,
    "grad_shared": _REALS,
    "partial": _REALS,
}
"""What a call of the kernel of the gradients is given."""


class PullCall(ctypes.Structure):
    """The call as C++ reads it."""

    _fields_ = [(name, kind if isinstance(kind, type) else ctypes.c_void_p) for name, kind in PULL.items()]


class SolveCall(ctypes.Structure):
    """The call as C++ reads it."""

    _fields_ = [(name, kind if isinstance(kind, type) else ctypes.c_void_p) for name, kind in SOLVE.items()]


def structure(name: str, fields: dict[str, Any]) -> str:
    """A call as a structure of C++."""
    types = {_DOUBLE: "double", _INT: "int64_t"}
    return "\n".join([f"struct {name} {{", *(f"{types.get(kind, kind)} {field};" for field, kind in fields.items()), "};"])


@dataclass(frozen=True)
class Form:
    """What a kernel is made for, besides the function.

    Attributes:
        coefficients: the method.
        dtype: the dtype of the state.
        size: the number of elements of a row's state.
        parts: the bounds of its leaves.
        adaptive: whether steps are sized by their error.
        roles: what each input of the graph is: "t", "y", "shared" or "row".
    """

    coefficients: Coefficients
    dtype: torch.dtype
    size: int
    parts: tuple[int, ...]
    adaptive: bool
    roles: tuple[str, ...]

    @property
    def real(self) -> str:
        return "double" if self.dtype == torch.float64 else "float"

    @property
    def lanes(self) -> int:
        """How many rows go side by side: as many as fill a vector register of 64 bytes."""
        return 8 if self.dtype == torch.float64 else 16


_NOW = "const typename Lanes<W>::R& now, const typename Lanes<W>::R* y, const In<W>& in"
_BEGIN = "const typename Lanes<W>::R t[1] = {now}; const real* u = in.u; (void)t; (void)u; (void)y;"


class Kernel:
    """The compiled kernel of a function that has been read.

    Args:
        traced: the function.
        form: what the kernel is for.

    Raises:
        CannotFuse: an operation has no C++.
        NoCompiler: there is no compiler.
    """

    def __init__(self, traced: Traced, form: Form):
        self.traced = traced
        self.form = form
        self.lowering = Lowering()
        self.inputs = [self._input(i, role, x) for i, (role, x) in enumerate(zip(form.roles, traced.examples, strict=True))]
        graph = core_graph(traced.values, traced.examples)
        lines, (slope,) = self.lowering.lower(graph, self.inputs)
        self.slope = slope
        self._field = [*lines, *self.lowering.written(slope, "dy")]
        self.derivatives = None
        if form.coefficients.uses_jacobian:
            used = [role for role, is_used in zip(form.roles, uses(graph), strict=True) if is_used]
            self.derivatives = Derivatives(traced, form.roles, used, form.size, self.lowering, self.inputs)
        self.kept = self.lowering.kept
        self._solve = _loaded(self._source(), "solve")
        self._pulls: dict[tuple[int, ...], PullKernel] = {}
        self.room = 256

    def _input(self, i: int, role: str, example: Tensor) -> Array:
        shape = tuple(example.shape)
        if role == "t":
            return Array.stored("t", shape)
        if role == "y":
            return Array.stored("y", shape)
        return Array.stored(f"in.{role[0]}{i}", shape, lanes=role == "row")

    def _source(self) -> str:
        return "\n".join(
            [
                "#define SOLVES",
                *self.beginning(structure("Solve", SOLVE)),
                self.form.coefficients.step(self.form.size, self.form.adaptive),
                source_file("solve.h"),
                source_file("host.h"),
            ]
        )

    def beginning(self, call: str) -> list[str]:
        """What every kernel begins with: lanes, the call, the inputs and the function."""
        form = self.form
        numbered = list(enumerate(zip(form.roles, self.inputs, strict=True)))
        shared = [i for i, (role, _) in numbered if role == "shared"]
        per_row = [(i, x) for i, (role, x) in numbered if role == "row"]
        return [
            f"typedef {form.real} real;",
            source_file("shell.h"),
            source_file("lanes.h"),
            call,
            f"constexpr int LANES = {form.lanes};",
            form.coefficients.declarations(form.size, form.parts, form.adaptive),
            *self.lowering.constants,
            "template <int W> struct In {",
            *(f"const real* s{i};" for i in shared),
            *(f"typename Lanes<W>::R r{i}[{max(x.size, 1)}];" for i, x in per_row),
            "real* u;",
            "template <class Call> __DEVICE__ explicit In(const Call& s) {",
            *(f"s{i} = s.inputs[{i}];" for i in shared),
            "u = s.uniform;",
            "}",
            "template <class Call> __DEVICE__ void load(const Call& s, int l, int64_t row) {",
            *(
                f"for (int e = 0; e < {x.size}; ++e) put(r{i}[e], l, s.inputs[{i}][row * s.input_strides[{i}] + e]);"
                for i, x in per_row
            ),
            "(void)s; (void)l; (void)row;",
            "}",
            "};",
            "template <class Call> __DEVICE__ void once(const Call& s) {",
            "const In<1> in(s); real* u = in.u; (void)u;",
            *self.lowering.once,
            "}",
            f"template <int W> FUSED void field({_NOW}, typename Lanes<W>::R* dy) {{",
            _BEGIN,
            *self._field,
            "}",
            *([] if self.derivatives is None else self.derivatives.code(_NOW, _BEGIN)),
        ]

    def solve(self, call: SolveCall) -> None:
        """Run the kernel."""
        self._solve(ctypes.addressof(call))

    def pull(self, wanted: tuple[int, ...]) -> PullKernel:
        """The way back, with the gradients of the inputs with these numbers, besides that of the state."""
        if wanted not in self._pulls:
            self._pulls[wanted] = PullKernel(self, wanted)
        return self._pulls[wanted]


class PullKernel:
    """The kernel of the gradients of a solve.

    Args:
        kernel: that of the solve.
        wanted: the numbers of the inputs whose gradients are wanted.

    Attributes:
        shared: for each wanted input that all rows share, its number and where its gradient lies among theirs.
        per_row: the same for those with an entry for each row.
        sums: the size of the gradients of the former.
        row_sums: that of the latter, of a row.
        kept: how many numbers are computed once.
    """

    def __init__(self, kernel: Kernel, wanted: tuple[int, ...]):
        form, traced, lowering = kernel.form, kernel.traced, kernel.lowering
        self._kernel, self._wanted = kernel, wanted
        self.shared: list[tuple[int, slice]] = []
        self.per_row: list[tuple[int, slice]] = []
        self.sums = self.row_sums = 0
        for number in wanted:
            size = traced.examples[number].numel()
            if form.roles[number] == "row":
                self.per_row.append((number, slice(self.row_sums, self.row_sums + size)))
                self.row_sums += size
            else:
                self.shared.append((number, slice(self.sums, self.sums + size)))
                self.sums += size
        slope = Array.stored("g", kernel.slope.shape)
        functions = [*self._function("pull_field", "", traced.values, [slope])]
        if kernel.derivatives is not None:
            others = [slope, kernel.derivatives.cotangents("of_derivatives")]
            argument = "const typename Lanes<W>::R* of_derivatives, "
            functions += self._function("pull_derivatives", argument, kernel.derivatives.function, others, sparse=True)
        self.kept = lowering.kept
        before, step = form.coefficients.pull()
        self.source = "\n".join(
            [
                "#define PULLS",
                *kernel.beginning(structure("Pull", PULL)),
                before,
                f"constexpr int SUMS_USED = {self.sums}, SUMS = {max(self.sums, 1)};",
                f"constexpr int ROW_SUMS_USED = {self.row_sums}, ROW_SUMS = {max(self.row_sums, 1)};",
                *functions,
                source_file("pull.h"),
                step,
                source_file("host.h"),
            ]
        )
        self._pull = _loaded(self.source, "pull")

    def _function(
        self, name: str, argument: str, function: Any, cotangents: Sequence[Array], sparse: bool = False
    ) -> list[str]:
        """The C++ that takes cotangents of what `function` makes of the inputs to them."""
        kernel, wanted = self._kernel, self._wanted
        form, traced, lowering = kernel.form, kernel.traced, kernel.lowering
        y = [i for i, role in enumerate(form.roles) if role == "y"]
        seeds = [torch.zeros(x.shape, dtype=form.dtype) for x in cotangents]
        graph = core_graph(vjp_of(function, [*y, *wanted], len(traced.examples)), [*traced.examples, *seeds])
        lines, outputs = lowering.lower(graph, [*kernel.inputs, *cotangents], sparse)
        lines = list(lines)
        to_y = outputs.pop(0) if y else Array.known(torch.zeros(kernel.slope.shape))
        lines += lowering.written(to_y, "to_y")
        places = {number: ("row_sums", where.start) for number, where in self.per_row}
        places |= {number: ("sums", where.start) for number, where in self.shared}
        for number, output in zip(wanted, outputs, strict=True):
            lines += lowering.added(output, *places[number])
        return [
            f"template <int W> FUSED void {name}({_NOW}, const typename Lanes<W>::R* g, {argument}",
            "typename Lanes<W>::R* to_y, typename Lanes<W>::R* sums, typename Lanes<W>::R* row_sums) {",
            _BEGIN,
            *lines,
            "}",
        ]

    def run(self, call: PullCall) -> None:
        """Run the kernel."""
        self._pull(ctypes.addressof(call))


def _loaded(source: str, name: str) -> Any:
    function = getattr(load(source, "kernel", flags=_FLAGS), name)
    function.argtypes, function.restype = [ctypes.c_void_p], None
    return function
