"""The kernel of a function, a method and a precision: its source, and how it is called."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from torchivp.fused.arrays import Array
from torchivp.fused.cache import load
from torchivp.fused.derivatives import Derivatives
from torchivp.fused.graphs import Function, core_graph, outer_products, tangents_of, uses, vjp_of
from torchivp.fused.lower import Lowering
from torchivp.fused.refusal import CannotFuse
from torchivp.fused.steps import Coefficients, source_file
from torchivp.fused.trace import Traced

_DOUBLE, _INT = ctypes.c_double, ctypes.c_int64
_DOUBLES, _REALS, _INTS = "double*", "real*", "int64_t*"

_FLAGS = ("-O2", "-pthread", "-fno-strict-aliasing", "-ffp-contract=fast", "-w")
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
    "check_wanted": _INT,
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
    # How steps are sized; a first step of less than 0 is estimated.
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
    # What comes back: the outputs, [rows, outputs, N], the last states, and how each row ended: the outcome, accepted
    # steps, rejected ones, evaluations, Jacobians, factorisations, [6, rows]; its last time, and if it failed the sizes
    # of the step and of the next and the scaled error, [4, rows].
    "values": _REALS,
    "last": _REALS,
    "counts": _INTS,
    "numbers": _DOUBLES,
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
    return "\n".join(
        [f"struct {name} {{", *(f"{types.get(kind, kind)} {field};" for field, kind in fields.items()), "};"]
    )


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

    Attributes:
        room: how many steps a record has room for, which grows.
        steps: how many the last solve took, a guess at those of the next.
        kept: how many numbers are computed once.

    Raises:
        CannotFuse: an operation has no C++.
        NoCompiler: there is no compiler.
    """

    def __init__(self, traced: Traced, form: Form):
        self.traced = traced
        self.form = form
        self.lowering = Lowering(form.dtype)
        self.inputs = [
            self._input(i, role, x) for i, (role, x) in enumerate(zip(form.roles, traced.examples, strict=True))
        ]
        self.derivatives: Derivatives | None = None
        self._field = self._lowered_field()
        self.kept = self.lowering.kept
        self._solve = _loaded(self.source(), "solve")
        self._pulls: dict[tuple[int, ...], PullKernel | CannotFuse] = {}
        self.room = 256
        self.steps = 100

    def _lowered_field(self) -> list[str]:
        """The lines of the function; its derivatives, if the method needs them, are an attribute."""
        form, lowering = self.form, self.lowering
        graph = core_graph(self.traced.values, self.traced.examples)
        lines, (slope,) = lowering.lower(graph, self.inputs)
        lines = [*lines, *lowering.written(slope, "dy")]
        if form.coefficients.uses_jacobian:
            used = [role for role, is_used in zip(form.roles, uses(graph), strict=True) if is_used]
            self.derivatives = Derivatives(self.traced, form.roles, used, form.size, lowering, self.inputs)
        return lines

    def _input(self, i: int, role: str, example: Tensor) -> Array:
        shape = tuple(example.shape)
        if role == "t":
            return Array.stored("t", shape)
        if role == "y":
            return Array.stored("y", shape)
        return Array.stored(f"in.{role[0]}{i}", shape, lanes=role == "row")

    def source(self, shell: str = "host.h") -> str:
        """The kernel in C++, with what runs it: "host.h" here, or "cuda.h", a row to a thread."""
        return "\n".join(
            [
                "#define SOLVES",
                *self.beginning(structure("Solve", SOLVE)),
                self.form.coefficients.step(self.form.size, self.form.adaptive),
                source_file("solve.h"),
                source_file(shell),
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

    def solve(self, call: SolveCall) -> bool:
        """Run the kernel, unless the outputs asked for are to be checked first and are not in order."""
        return bool(self._solve(ctypes.addressof(call)))

    def pull(self, wanted: tuple[int, ...]) -> PullKernel:
        """The way back, with the gradients of the inputs with these numbers, besides that of the state.

        Raises:
            CannotFuse: an operation of the gradients has no C++.
        """
        if wanted not in self._pulls:
            try:
                self._pulls[wanted] = PullKernel(self, wanted)
            except CannotFuse as error:
                self._pulls[wanted] = error
        found = self._pulls[wanted]
        if isinstance(found, CannotFuse):
            raise found
        return found


class TangentKernel(Kernel):
    """The kernel of a function together with its variational equations.

    The state of a row is that of the function, then its tangents, direction by direction. Steps are sized by the error
    of the function's state alone, so that they are those without tangents.

    Args:
        traced: the function.
        form: what the kernel is for, with the size of all of the state.
        states: how many directions move the initial state alone.
        moved: the number of the input that moves in each further direction.
    """

    def __init__(self, traced: Traced, form: Form, states: int, moved: tuple[int, ...]):
        self._states = states
        self._moved = moved
        super().__init__(traced, form)

    def _lowered_field(self) -> list[str]:
        roles, traced, lowering = self.form.roles, self.traced, self.lowering
        y = roles.index("y") if "y" in roles else None
        count, size = self._states + len(self._moved), self.form.parts[-1]
        tangents = Array.stored("y", (count, size), offset=size)
        examples = [*traced.examples, torch.zeros(count, size, dtype=self.form.dtype)]
        graph = core_graph(tangents_of(traced.values, y, self._states, self._moved), examples)
        lines, (slope, change) = lowering.lower(graph, [*self.inputs, tangents])
        return [*lines, *lowering.written(slope, "dy"), *lowering.written(change, "dy", size)]


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
        self.shared: list[tuple[int, slice]] = []
        self.per_row: list[tuple[int, slice]] = []
        self.sums = self.row_sums = 0
        self._kernel, self._wanted = kernel, wanted
        lanes, matrices, lines = self._lowered_field()
        functions = _function("pull_field", "", lines)
        if kernel.derivatives is not None:
            argument = "const typename Lanes<W>::R* of_derivatives, "
            functions += _function("pull_derivatives", argument, self._lowered_derivatives(kernel.derivatives))
        self.kept = kernel.lowering.kept
        before, step = kernel.form.coefficients.pull()
        self._parts = [
            "#define PULLS",
            *kernel.beginning(structure("Pull", PULL)),
            before,
            f"constexpr int SUMS_USED = {self.sums}, LANE_SUMS = {max(lanes, 1)};",
            f"constexpr int ROW_SUMS_USED = {self.row_sums}, ROW_SUMS = {max(self.row_sums, 1)};",
            f"template <int W> constexpr int WIDE = {_room(matrices)} + 1;",
            source_file("outer.h"),
            *functions,
            *_unpacking(lanes, matrices),
            source_file("pull.h"),
            step,
        ]

    def source(self, shell: str = "host.h") -> str:
        """The kernel in C++, with what runs it, as for `Kernel.source`."""
        return "\n".join([*self._parts, source_file(shell)])

    @functools.cached_property
    def _pull(self) -> Any:
        """Compiled when it is first asked for: not every solve that could be differentiated is."""
        return _loaded(self.source(), "pull")

    def _pulled(self, function: Function, cotangents: Sequence[Array]) -> fx.Graph:
        """The gradients of the state and of what is wanted, given cotangents of what `function` makes of the inputs."""
        kernel = self._kernel
        y = [i for i, role in enumerate(kernel.form.roles) if role == "y"]
        examples = kernel.traced.examples
        seeds = [torch.zeros(x.shape, dtype=kernel.form.dtype) for x in cotangents]
        return core_graph(vjp_of(function, [*y, *self._wanted], len(examples)), [*examples, *seeds])

    def _lowered_field(self) -> tuple[int, list[tuple[int, int, int]], list[str]]:
        """The number of sums kept as lanes, the matrices that are not, and the lines of the gradients.

        A matrix is given by its shape, and by where its gradient begins among all.
        """
        kernel, form, lowering = self._kernel, self._kernel.form, self._kernel.lowering
        slope = Array.stored("g", (form.parts[-1],))
        graph = self._pulled(kernel.traced.values, [slope])
        by_state = "y" in form.roles
        # The derivatives that a method begins with add to the same sums, in lanes.
        apart = [form.roles[number] == "shared" and kernel.derivatives is None for number in self._wanted]
        outer = outer_products(graph, [*([False] if by_state else []), *apart])
        lines, found = lowering.lower(graph, [*kernel.inputs, slope], "the gradient of func")
        lines, outputs = list(lines), iter(found)
        zero = Array.known(torch.zeros(slope.shape))
        lines += lowering.written(next(outputs) if by_state else zero, "to_y")
        lanes, matrices, late = 0, [], []
        for number, transposed in zip(self._wanted, outer[by_state:], strict=True):
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
        zero = Array.known(torch.zeros(kernel.form.size))
        lines += lowering.written(next(outputs) if "y" in kernel.form.roles else zero, "to_y")
        places = {number: ("row_sums", where.start) for number, where in self.per_row}
        places |= {number: ("sums", where.start) for number, where in self.shared}
        for number, output in zip(self._wanted, outputs, strict=True):
            lines += lowering.added(output, *places[number])
        return lines

    def run(self, call: PullCall) -> None:
        """Run the kernel."""
        self._pull(ctypes.addressof(call))


def _function(name: str, argument: str, lines: Sequence[str]) -> list[str]:
    """A function that hands cotangents on to the state and to what is wanted."""
    sums = ", ".join(f"typename Lanes<W>::R* {goal}" for goal in ("to_y", "sums", "wide", "row_sums"))
    unused = "".join(f"(void){goal}; " for goal in ("g", "sums", "wide", "row_sums"))
    return [
        f"template <int W> FUSED void {name}({_NOW}, const typename Lanes<W>::R* g, {argument}{sums}) {{",
        _BEGIN + unused,
        *lines,
        "}",
    ]


def _room(matrices: Sequence[tuple[int, int, int]]) -> str:
    """How many vectors the sums of matrices take, a C++ expression."""
    return " + ".join(["0", *(f"{m} * (({n} + W - 1) / W)" for m, n, _ in matrices)])


def _unpacking(lanes: int, matrices: Sequence[tuple[int, int, int]]) -> list[str]:
    """The function that adds up the sums of a block of rows."""
    lines = [
        "template <int W> __DEVICE__ void add_up(",
        "const typename Lanes<W>::R* sums, const typename Lanes<W>::R* wide, real* total) {",
        f"for (int e = 0; e < {lanes}; ++e) total[e] = sum_of_lanes<W>(sums[e]);",
    ]
    for m, n, start in matrices:
        lines += [f"unpack<W, {m}, {n}>(wide, total + {start});", f"wide += {m} * (({n} + W - 1) / W);"]
    return [*lines, "(void)sums; (void)wide; (void)total;", "}"]


def _loaded(source: str, name: str) -> Any:
    function = getattr(load(source, "kernel", flags=_FLAGS), name)
    function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_int64
    return function
