"""The kernel of a function, a method and a precision: its source, and how it is called."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

from torchivp.fused.arrays import Array
from torchivp.fused.cache import load
from torchivp.fused.graphs import value_graph
from torchivp.fused.lower import Lowering
from torchivp.fused.steps import Coefficients, declarations, step_code
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
    # Of rows that failed: the size of the step, that of the next, the scaled error, [rows, 3].
    "failing": _DOUBLES,
    # The record: ends of steps and the states there, [rows, capacity + 1], and the slopes that steps start from.
    "ends": _DOUBLES,
    "states": _REALS,
    "slopes": _REALS,
}
"""What a call of a kernel is given: numbers, and the addresses of arrays."""


class SolveCall(ctypes.Structure):
    """The call as C++ reads it."""

    _fields_ = [(name, kind if isinstance(kind, type) else ctypes.c_void_p) for name, kind in SOLVE.items()]


def structure(name: str, fields: dict[str, Any]) -> str:
    """A call as a structure of C++."""
    types = {_DOUBLE: "double", _INT: "int64_t"}
    return "\n".join([f"struct {name} {{", *(f"{types.get(kind, kind)} {field};" for field, kind in fields.items()), "};"])


def source_file(name: str) -> str:
    """The text of a file of C++."""
    return (files("torchivp.fused") / "source" / name).read_text(encoding="utf-8")


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
        lines, (slope,) = self.lowering.lower(value_graph(traced.module, traced.examples), self.inputs)
        self.slope = slope
        self.kept = self.lowering.kept
        self.source = self._source([*lines, *self._written(slope, "dy")])
        self._solve = self._loaded("solve")

    def _input(self, i: int, role: str, example: Tensor) -> Array:
        shape = tuple(example.shape)
        if role == "t":
            return Array.stored("t", shape)
        if role == "y":
            return Array.stored("y", shape)
        return Array.stored(f"in.{role[0]}{i}", shape, lanes=role == "row")

    def _written(self, value: Array, goal: str) -> list[str]:
        return [
            f"{goal}[{e}] = {self.lowering.element(value, index)};" for e, index in enumerate(value.indices())
        ]

    def _source(self, field: Sequence[str]) -> str:
        form = self.form
        shared = [(i, x) for i, (role, x) in enumerate(zip(form.roles, self.inputs, strict=True)) if role == "shared"]
        per_row = [(i, x) for i, (role, x) in enumerate(zip(form.roles, self.inputs, strict=True)) if role == "row"]
        arguments = "const typename Lanes<W>::R& now, const typename Lanes<W>::R* y, const In<W>& in, typename Lanes<W>::R* dy"
        return "\n".join(
            [
                f"typedef {form.real} real;",
                source_file("shell.h"),
                source_file("lanes.h"),
                structure("Solve", SOLVE),
                declarations(form.coefficients, form.size, form.parts, form.adaptive),
                *self.lowering.constants,
                "template <int W> struct In {",
                *(f"const real* s{i};" for i, _ in shared),
                *(f"typename Lanes<W>::R r{i}[{max(x.size, 1)}];" for i, x in per_row),
                "real* u;",
                "__DEVICE__ explicit In(const Solve& s) {",
                *(f"s{i} = s.inputs[{i}];" for i, _ in shared),
                "u = s.uniform;",
                "}",
                "__DEVICE__ void load(const Solve& s, int l, int64_t row) {",
                *(
                    f"for (int e = 0; e < {x.size}; ++e) put(r{i}[e], l, s.inputs[{i}][row * s.input_strides[{i}] + e]);"
                    for i, x in per_row
                ),
                "(void)s; (void)l; (void)row;",
                "}",
                "};",
                "__DEVICE__ void once(const Solve& s) {",
                "const In<1> in(s); real* u = in.u; (void)u;",
                *self.lowering.once,
                "}",
                f"template <int W> FUSED void field({arguments}) {{",
                "const typename Lanes<W>::R t[1] = {now}; const real* u = in.u; (void)t; (void)u;",
                *field,
                "}",
                step_code(form.coefficients, form.size, form.adaptive),
                source_file("solve.h"),
                f"constexpr int LANES = {form.lanes};",
                source_file("host.h"),
            ]
        )

    def _loaded(self, name: str) -> Any:
        function = getattr(load(self.source, "kernel", flags=_FLAGS), name)
        function.argtypes, function.restype = [ctypes.c_void_p], None
        return function

    def solve(self, call: SolveCall) -> None:
        """Run the kernel."""
        self._solve(ctypes.addressof(call))
