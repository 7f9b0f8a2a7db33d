"""The kernel of a function, a method and a precision: its source, and how it is called."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from torchivp.fused.arrays import Array
from torchivp.fused.call import BEGIN, NOW, SOLVE, SolveCall, loaded, structure
from torchivp.fused.derivatives import Derivatives
from torchivp.fused.graphs import core_graph, tangents_of, uses
from torchivp.fused.lower import Lowering
from torchivp.fused.pull import PullKernel
from torchivp.fused.refusal import CannotFuse
from torchivp.fused.steps import Coefficients, source_file
from torchivp.fused.trace import Traced


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
        self._solve = loaded(self.source(), "solve")
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
            "template <class Call> DEVICE explicit In(const Call& s) {",
            *(f"s{i} = s.inputs[{i}];" for i in shared),
            "u = s.uniform;",
            "}",
            "template <class Call> DEVICE void load(const Call& s, int l, int64_t row) {",
            *(
                f"for (int e = 0; e < {x.size}; ++e) put(r{i}[e], l, s.inputs[{i}][row * s.input_strides[{i}] + e]);"
                for i, x in per_row
            ),
            "(void)s; (void)l; (void)row;",
            "}",
            "};",
            "template <class Call> DEVICE void once(const Call& s) {",
            "const In<1> in(s); real* u = in.u; (void)u;",
            *self.lowering.once,
            "}",
            f"template <int W> FUSED void field({NOW}, typename Lanes<W>::R* dy) {{",
            BEGIN,
            *self._field,
            "}",
            *([] if self.derivatives is None else self.derivatives.code(NOW, BEGIN)),
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
