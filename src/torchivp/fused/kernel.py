"""The kernel of a function, a method and a precision: its source, and how it is called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchivp.fused.arrays import Array
from torchivp.fused.call import BEGIN, NOW, SOLVE, SolveCall, begin, loaded, structure
from torchivp.fused.derivatives import Derivatives
from torchivp.fused.graphs import core_graph, uses
from torchivp.fused.lower import Lowering
from torchivp.fused.nvidia import gpu_of, on_gpu
from torchivp.fused.pull import PullKernel
from torchivp.fused.refusal import CannotFuse
from torchivp.fused.steps import Coefficients, source_file, watch
from torchivp.fused.trace import Traced

PROCESSOR = torch.device("cpu")

_OPEN = {"low": "-INFINITY", "high": "INFINITY"}
"""The bounds of times at which the function is evaluated, and what they are where there are none."""

_MOST_CHECKS = 2048
"""Of all event functions in a step, what they were at the checks is kept near the processor."""


@dataclass(frozen=True)
class Form:
    """What a kernel is made for, besides the function.

    Attributes:
        coefficients: the method.
        dtype: the dtype of the state.
        size: the number of elements of a row's state, and of its tangents behind it.
        parts: the bounds of the leaves of the state.
        adaptive: whether steps are sized by their error.
        roles: what each input of the graph is: "t", "y", "shared" or "row".
        device: where it runs.
    """

    coefficients: Coefficients
    dtype: torch.dtype
    size: int
    parts: tuple[int, ...]
    adaptive: bool
    roles: tuple[str, ...]
    device: torch.device = PROCESSOR

    @property
    def real(self) -> str:
        return "double" if self.dtype == torch.float64 else "float"

    @property
    def states(self) -> int:
        """The number of elements of the state without tangents."""
        return self.parts[-1]

    @property
    def lanes(self) -> int:
        """How many rows go side by side: as many as fill a vector register of 64 bytes."""
        return 8 if self.dtype == torch.float64 else 16


def _input(i: int, role: str, example: Tensor) -> Array:
    shape = tuple(example.shape)
    if role in ("t", "y"):
        return Array.stored(role, shape)
    return Array.stored(f"in.{role[0]}{i}", shape, lanes=role == "row")


@dataclass(frozen=True)
class Watched:
    """An event function that a kernel watches.

    Attributes:
        traced: the function, as it was read.
        roles: what each input of its graph is, as those of `Form`.
        checks: at how many points within each step it is looked at.
        name: what it is called in refusals.
    """

    traced: Traced
    roles: tuple[str, ...]
    checks: int
    name: str


def check_operations(traced: Traced, roles: Sequence[str], dtype: torch.dtype) -> None:
    """Check that the operations of a function that has been read have C++, before any kernel of it is compiled.

    Raises:
        CannotFuse: one has not.
    """
    inputs = [_input(i, role, x) for i, (role, x) in enumerate(zip(roles, traced.examples, strict=True))]
    Lowering(dtype).lower(core_graph(traced.values, traced.examples), inputs)


class Kernel:
    """The compiled kernel of a function that has been read.

    Args:
        traced: the function.
        form: what the kernel is for.
        watched: the event functions that it watches, whose inputs come after those of the function; None for a kernel
            that takes all steps of a row by itself, and is not led by `rows/loop.py`.

    Attributes:
        roles: what all inputs are.
        room: how many steps a record has room for, which grows.
        steps: how many the last solve took, a guess at those of the next.
        kept: how many numbers are computed once.
        sees_time: whether the function depends on time.
        gpu: where it runs; None for the processor.

    Raises:
        CannotFuse: an operation has no C++.
        NoCompiler: there is no compiler.
        CompileError: what was written does not compile.
    """

    def __init__(self, traced: Traced, form: Form, watched: Sequence[Watched] | None = None):
        self.traced = traced
        self.form = form
        self.lowering = Lowering(form.dtype)
        self.inputs = [_input(i, role, x) for i, (role, x) in enumerate(zip(form.roles, traced.examples, strict=True))]
        self.derivatives: Derivatives | None = None
        self.roles, self._inputs = list(form.roles), list(self.inputs)
        self._watched = watched
        with PROCESSOR:  # whatever torch's default device is
            self._field = self._lowered_field()
            self._events = self._lowered_events(watched or ())
        self.kept = self.lowering.kept
        self.gpu = gpu_of(form.device) if on_gpu(form.device) else None
        self._solve = loaded(self.source, "solve", self.gpu)
        self._pulls: dict[tuple[tuple[int, ...], bool], PullKernel | CannotFuse] = {}
        self.room = 256 if self.gpu is None else 64  # a GPU has no more memory than it has
        self.steps = 100

    def _lowered_field(self) -> list[str]:
        """The function in C++; its derivatives, if the method needs them, are an attribute."""
        graph = core_graph(self.traced.values, self.traced.examples)
        lines, (slope,) = self.lowering.lower(graph, self.inputs)
        size = self.lowering.size
        used = uses(graph)
        self.sees_time = any(each and role == "t" for each, role in zip(used, self.form.roles, strict=True))
        self._derive(used)
        head = f"template <int W> {size} void field({NOW}, typename Lanes<W>::R* dy) {{"
        return [head, BEGIN, *lines, *self.lowering.written(slope, "dy"), "}"]

    def _lowered_events(self, watched: Sequence[Watched]) -> list[str]:
        """The event functions in C++, and by their numbers."""
        checks, lines = [event.checks for event in watched], []
        if len(checks) * max(checks, default=0) > _MOST_CHECKS:
            raise CannotFuse(
                f"a kernel looks at {len(checks)} event functions at {max(checks)} points within a step, more than "
                f"{_MOST_CHECKS} in all: give fewer checks"
            )
        for number, event in enumerate(watched):
            examples, first = event.traced.examples, len(self._inputs)
            inputs = [_input(first + i, role, x) for i, (role, x) in enumerate(zip(event.roles, examples, strict=True))]
            self.roles += event.roles
            self._inputs += inputs
            body, (value,) = self.lowering.lower(core_graph(event.traced.values, examples), inputs, event.name)
            lines += [f"template <int W> FUSED void event_{number}({NOW}, typename Lanes<W>::R* g) {{", begin("now")]
            lines += [*body, *self.lowering.written(value, "g"), "}"]
        lands = bool(checks) and not self.form.coefficients.uses_jacobian
        return [
            f"constexpr bool LANDS = {str(lands).lower()};",
            f"constexpr bool RESUMES = {str(self._watched is not None).lower()};",
            f"constexpr int EVENTS = {len(checks)}, SEEN = {max(len(checks), 1)};",
            f"constexpr int MOST_CHECKS = {max(checks, default=0)};",
            f"CONSTANT int CHECKS[] = {{{', '.join(map(str, checks)) or '0'}}};",
            *lines,
            f"template <int W> FUSED typename Lanes<W>::R event(int e, {NOW}) {{",
            "typename Lanes<W>::R g[1] = {up<W>(0)};",
            *(f"if (e == {number}) event_{number}<W>(now, y, in, g);" for number in range(len(checks))),
            "(void)e; (void)now; (void)y; (void)in;",
            "return g[0];",
            "}",
            *([source_file("events.h")] if lands else []),
        ]

    def _derive(self, used: Sequence[bool]) -> None:
        """The derivatives, if the method needs them, of a function that uses some of its inputs."""
        form = self.form
        if form.coefficients.uses_jacobian:
            roles = [role for role, is_used in zip(form.roles, used, strict=True) if is_used]
            self.derivatives = Derivatives(self.traced, form.roles, roles, form.states, self.lowering, self.inputs)

    def source(self, shell: str = "host.h") -> str:
        """The kernel in C++, with what runs it: "host.h" here, or "cuda.h", a row to a thread."""
        return "\n".join(
            [
                "#define SOLVES",
                *self.beginning(structure("Solve", SOLVE)),
                self.form.coefficients.step(self.form.size, self.form.states, self.form.adaptive),
                watch(self.form.coefficients.last),
                *self._events,
                source_file("solve.h"),
                source_file(shell),
            ]
        )

    def beginning(self, call: str) -> list[str]:
        """What every kernel begins with: lanes, the call, the inputs and the function."""
        form = self.form
        numbered = list(enumerate(zip(self.roles, self._inputs, strict=True)))
        shared = [i for i, (role, _) in numbered if role == "shared"]
        per_row = [(i, x) for i, (role, x) in numbered if role == "row"]
        led = self._watched is not None
        side = "sel(now < in.low, in.low, sel(now > in.high, in.high, now))" if led else "now"
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
            *(["typename Lanes<W>::R low, high;"] if led else []),
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
            *(f"put({name}, l, s.{name} ? s.{name}[row] : real({end}));" for name, end in _OPEN.items() if led),
            "(void)s; (void)l; (void)row;",
            "}",
            "};",
            "template <int W> FUSED typename Lanes<W>::R one_sided(",
            "const typename Lanes<W>::R& now, const In<W>& in) {",
            f"(void)in; return {side};",
            "}",
            "template <class Call> DEVICE void once(const Call& s) {",
            "const In<1> in(s); real* u = in.u; (void)u;",
            *self.lowering.once,
            "}",
            *self._field,
            *([] if self.derivatives is None else self.derivatives.code(NOW, BEGIN)),
        ]

    def solve(self, call: SolveCall) -> bool:
        """Run the kernel, unless the outputs asked for are to be checked first and are not in order.

        Times that lie on a GPU are not checked here.
        """
        return bool(self._solve(call, call.count, bool(self.kept)))

    def pull(self, wanted: tuple[int, ...], timed: bool = False) -> PullKernel:
        """The way back, with the gradients of the inputs with these numbers, besides that of the state.

        `timed` says whether those of times are wanted too.

        Raises:
            CannotFuse: an operation of the gradients has no C++.
        """
        key = wanted, timed
        if key not in self._pulls:
            try:
                with PROCESSOR:
                    self._pulls[key] = PullKernel(self, wanted, timed)
            except CannotFuse as error:
                self._pulls[key] = error
        found = self._pulls[key]
        if isinstance(found, CannotFuse):
            raise found
        return found
