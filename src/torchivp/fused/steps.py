"""What the kernels are told of a method: the interface of its two kinds, and what both write."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Protocol

import numpy as np

from torchivp.methods.ode.stiffness import EVERY, PATIENCE, STABLE

_UNROLL = 8
"""Loops over so many elements of the state are written out."""


class Coefficients(Protocol):
    """A method in C++.

    Attributes:
        stages: how many evaluations of the function a step takes that starts anew.
        predicts: whether the next step starts from the last stage although its state was corrected.
        error_order: the order of the error estimate.
        uses_jacobian: whether a step starts from the derivatives of the function too.
        hands_on: whether the next step starts from a slope that this one has computed.
        solves: how many linear systems a step solves, with one matrix.
        last: what makes the difference of the states of the last two stages of their slopes, where rows end as soon as
            stability limits their steps; empty where nobody looks for that.
    """

    @property
    def stages(self) -> int: ...
    @property
    def predicts(self) -> bool: ...
    @property
    def hands_on(self) -> bool: ...
    @property
    def error_order(self) -> int: ...
    @property
    def uses_jacobian(self) -> bool: ...
    @property
    def solves(self) -> int: ...
    @property
    def last(self) -> Sequence[float]: ...

    def declarations(self, size: int, parts: Sequence[int], adaptive: bool) -> str:
        """What the loop must know of the method and the state; `parts` are the bounds of its leaves.

        What follows the last leaf are tangents, whose errors are not looked at.
        """
        ...

    def step(self, size: int, states: int, adaptive: bool) -> str:
        """What a solve does in a step with a state of `size` elements, of which the first `states` have an error."""
        ...

    def pull(self) -> tuple[str, str]:
        """What a gradient needs before the loop back over the steps, and what it does in a step."""
        ...


def source_file(name: str) -> str:
    """The text of a file of C++."""
    return (files("torchivp.fused") / "source" / name).read_text(encoding="utf-8")


def constants(size: int, parts: Sequence[int], **known: int | bool) -> str:
    """Numbers and truths that the loops are compiled for."""
    numbers = {"N": size, "STATES": parts[-1], "PARTS": len(parts) - 1} | known
    types = {bool: "bool", int: "int"}
    lines = [f"constexpr {types[type(x)]} {name} = {str(x).lower()};" for name, x in numbers.items()]
    return "\n".join([*lines, f"CONSTANT int PART[] = {{{', '.join(map(str, parts))}}};"])


def numbers(name: str, values: Sequence[float] | np.ndarray) -> str:
    """An array of numbers, at least one."""
    return f"CONSTANT double {name}[] = {{{', '.join(repr(float(x)) for x in values) or '0'}}};"


def watch(last: Sequence[float]) -> str:
    """What the loop must know to see where stability limits the steps; see `Coefficients.last`."""
    return "\n".join(
        [
            f"constexpr bool WATCHES = {str(bool(last)).lower()};",
            f"constexpr double STABLE = {STABLE!r};",
            f"constexpr int PATIENCE = {PATIENCE}, EVERY = {EVERY};",
            numbers("LAST", last),
        ]
    )


def table(name: str, rows: np.ndarray) -> str:
    """A matrix of numbers."""
    inner = ", ".join("{" + ", ".join(map(repr, row)) + "}" for row in rows.tolist())
    return f"CONSTANT double {name}[{rows.shape[0]}][{rows.shape[1]}] = {{{inner}}};"


def stage_times(c: Sequence[float]) -> str:
    """The times of the stages, for loops over them."""
    return "\n".join(
        [
            "template <int W> FUSED typename Lanes<W>::D stage_time(",
            "int i, const typename Lanes<W>::D& t0, const typename Lanes<W>::D& t1) {",
            "switch (i) {",
            *(f"case {i}: return {stage_time(x)};" for i, x in enumerate(c)),
            "default: return t1;",
            "}",
            "}",
        ]
    )


def stage_time(c: float) -> str:
    """The time at a node, as the engine interpolates it."""
    c = float(c)
    if c in (0.0, 1.0):
        return "t1" if c else "t0"
    return f"t0 + (t1 - t0) * {c!r}" if c < 0.5 else f"t1 - (t1 - t0) * {1 - c!r}"


def per_element(size: int, line: str) -> list[str]:
    """A line for each element `e` of the state, written out if there are few."""
    if size <= _UNROLL:
        return [line.replace("[e]", f"[{e}]") for e in range(size)]
    return [f"for (int e = 0; e < {size}; ++e) {line}"]


def combination(weights: Sequence[float] | np.ndarray, name: str = "k") -> str:
    """The weighted sum of slopes, or of other arrays numbered likewise."""
    factors = {j: "" if w == 1 else f"real({float(w)!r}) * " for j, w in enumerate(weights) if w}
    terms = [f"{factor}{name}[{j}][e]" for j, factor in factors.items()]
    return " + ".join(terms) or "up<W>(0)"
