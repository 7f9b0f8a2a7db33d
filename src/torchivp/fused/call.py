"""What a call of a kernel is given, in Python and in C++, and how its function is loaded."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torchivp.fused.cache import load

if TYPE_CHECKING:
    from torchivp.fused.nvidia import Gpu

FLAGS = ("-O2", "-pthread", "-fno-strict-aliasing", "-ffp-contract=fast", "-w")
"""Elements of vectors are read through pointers to numbers; of W lanes in the signature of a function GCC has views."""

NOW = "const typename Lanes<W>::R& now, const typename Lanes<W>::R* y, const In<W>& in"
"""The arguments of a function of a row in C++."""


def begin(time: str) -> str:
    """How the body of such a function begins, which sees this time."""
    return f"const typename Lanes<W>::R t[1] = {{{time}}}; const real* u = in.u; (void)t; (void)u; (void)y;"


BEGIN = begin("one_sided<W>(now, in)")
"""How that of the right-hand side does, and those of its derivatives: it may jump at scheduled times."""

_DOUBLE, _INT = ctypes.c_double, ctypes.c_int64
_DOUBLES, _REALS, _INTS = "double*", "real*", "int64_t*"

_BOTH: dict[str, Any] = {
    "rows": _INT,
    "outputs": _INT,
    "capacity": _INT,
    "threads": _INT,
    "block": _INT,
    # What is given, per row or, with a stride of 0, for all.
    "start": _DOUBLES,
    "end": _DOUBLES,
    "wanted": _DOUBLES,
    "span_stride": _INT,
    "wanted_stride": _INT,
    "inputs": "const real* const*",
    "input_strides": _INTS,
    "uniform": _REALS,
    # Between which times the function is evaluated, [rows], if it may jump there.
    "low": _REALS,
    "high": _REALS,
    # The record: ends of steps and the states there, [rows, capacity + 1], and the slopes that steps start from.
    "ends": _DOUBLES,
    "states": _REALS,
    "slopes": _REALS,
}

SOLVE: dict[str, Any] = _BOTH | {
    # How many of them are solved, and which: all, if there is no list of them.
    "count": _INT,
    "chosen": _INTS,
    "max_steps": _INT,
    "check_wanted": _INT,
    "y0": _REALS,
    "rtol": _REALS,
    "atol": _REALS,
    "rtol_stride": _INT,
    "atol_stride": _INT,
    # The ends of fixed steps, NaN after the last of a row.
    "grid": _DOUBLES,
    "grid_stride": _INT,
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
    # The most steps of a row, how many rows failed, and how many were found stiff.
    "most": _INT,
    "failed": _INT,
    "stiff": _INT,
    # Of rows that are under way: their marks and tallies, in the order of fused/quiet.py, [..., count], and the slopes
    # that their steps start from, [count, N], if they are known. States come and go as y0 and last, [count, N].
    "marks": _DOUBLES,
    "tallies": _INTS,
    "slopes_now": _REALS,
    "knows_slopes": _INT,
    # The directions of changes of sign that are events, [events], 0 for both.
    "directions": _INTS,
    # Whether steps must end on the next of each event, [events, count]; and what comes back of an event in the last
    # step, [count, N]: the state there, or where the step ends on it, how large the elements were in it.
    "stops": _INTS,
    "there": _REALS,
}
"""What a call of a kernel is given: numbers, and the addresses of arrays."""


PULL: dict[str, Any] = _BOTH | {
    "steps": _INTS,
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
    # Where times move, those of the ends of the steps, [rows, capacity + 1], and of the times of the outputs,
    # [rows, outputs]; what is found is added.
    "grad_ends": _DOUBLES,
    "grad_wanted": _DOUBLES,
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


def loaded(source: Callable[[str], str], name: str, gpu: Gpu | None) -> Callable[[Any, int, bool], Any]:
    """The function of this name that a source compiles to.

    It takes a call, how many threads of a GPU there are to be, and whether one of them computes first what all use.

    Args:
        source: the source, with the shell that is named.
        name: the name.
        gpu: where it runs; None for the processor, which knows the number of its threads and what comes first.
    """
    if gpu is not None:
        program = gpu.load(source("cuda.h"), name)
        return lambda call, threads, prepares: program.run(call, threads, prepares) or 1
    function = getattr(load(source("host.h"), "kernel", flags=FLAGS), name)
    function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_int64
    return lambda call, threads, prepares: function(ctypes.addressof(call))
