"""The step of an explicit Runge-Kutta method in C++, from its tableau."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from torchivp.dense import HERMITE
from torchivp.methods.ode.runge_kutta import ButcherTableau, square

_UNROLL = 8
"""Loops over so many elements of the state are written out."""


@dataclass(frozen=True)
class Coefficients:
    """A tableau with its dense output as weights of slopes, whatever the dense output is made of.

    Attributes:
        c: the nodes of the stages, then those of further stages that only dense output needs.
        a: their rows.
        b: the weights of the end.
        error: the weights of the error estimate; empty without one.
        dense: for each slope the coefficients of theta, theta^2, ... in its weight.
        stages: how many stages there are, without the further ones.
        fsal: whether the last stage lies at the end of the step.
        predicts: whether the next step starts from the last stage although its state was corrected.
        error_order: the order of the error estimate.
    """

    c: Sequence[float]
    a: np.ndarray
    b: Sequence[float]
    error: Sequence[float]
    dense: np.ndarray
    stages: int
    fsal: bool
    predicts: bool
    error_order: int

    @staticmethod
    def of(tableau: ButcherTableau) -> Coefficients:
        """The coefficients of a method."""
        b = np.array(tableau.b)
        stages = len(b)
        error = [] if tableau.b_embedded is None else list(b - np.array(tableau.b_embedded))
        if tableau.dense is not None:
            c, rows = [*tableau.c, *tableau.dense.c], [*tableau.a, *tableau.dense.a]
            dense = np.array(tableau.dense.b)
        else:
            # Hermite's polynomial is made of the increment, which is b of the slopes, and of the slopes at both ends.
            hermite = np.array(HERMITE)
            c, rows = list(tableau.c), list(tableau.a)
            if not tableau.fsal:
                c, rows = [*c, 1.0], [*rows, list(b)]
            dense = np.zeros((len(c), hermite.shape[1]))
            dense[:stages] += np.outer(b, hermite[0])
            dense[0] += hermite[1]
            dense[-1] += hermite[2]
        return Coefficients(
            c, square(rows), list(b), error, dense, stages, tableau.fsal, tableau.predicts, tableau.error_order or 0
        )

    @property
    def further(self) -> int:
        """How many stages only dense output needs."""
        return len(self.c) - self.stages


def declarations(of: Coefficients, size: int, parts: Sequence[int], adaptive: bool) -> str:
    """What the loop must know of the method and the state; `parts` are the bounds of the leaves of the state."""
    return "\n".join(
        [
            f"constexpr int N = {size}, STAGES = {of.stages}, EXTRA = {of.further}, SLOPES = STAGES + EXTRA;",
            f"constexpr int DEGREE = {of.dense.shape[1]}, ERROR_ORDER = {of.error_order}, PARTS = {len(parts) - 1};",
            f"constexpr bool FSAL = {_bool(of.fsal)}, PREDICTS = {_bool(of.predicts)}, ADAPTIVE = {_bool(adaptive)};",
            f"CONSTANT int PART[] = {{{', '.join(map(str, parts))}}};",
        ]
    )


def tables(of: Coefficients) -> str:
    """The coefficients as arrays, for loops over stages."""

    def table(rows: np.ndarray) -> str:
        return ", ".join("{" + ", ".join(map(repr, row)) + "}" for row in rows.tolist())

    return "\n".join(
        [
            f"CONSTANT double A[SLOPES][SLOPES] = {{{table(of.a)}}};",
            f"CONSTANT double B[] = {{{', '.join(repr(float(b)) for b in of.b)}}};",
            f"CONSTANT double DENSE[SLOPES][DEGREE] = {{{table(of.dense)}}};",
            "template <int W> FUSED typename Lanes<W>::D stage_time(",
            "int i, const typename Lanes<W>::D& t0, const typename Lanes<W>::D& t1) {",
            "switch (i) {",
            *(f"case {i}: return {stage_time(c)};" for i, c in enumerate(of.c)),
            "default: return t1;",
            "}",
            "}",
        ]
    )


def _bool(x: bool) -> str:
    return "true" if x else "false"


def per_element(size: int, line: str) -> list[str]:
    """A line for each element `e` of the state, written out if there are few."""
    if size <= _UNROLL:
        return [line.replace("[e]", f"[{e}]") for e in range(size)]
    return [f"for (int e = 0; e < {size}; ++e) {line}"]


def combination(weights: Sequence[float] | np.ndarray, name: str = "k") -> str:
    """The weighted sum of slopes, or of other arrays numbered likewise."""
    terms = [
        f"{name}[{j}][e]" if w == 1 else f"real({float(w)!r}) * {name}[{j}][e]" for j, w in enumerate(weights) if w
    ]
    return " + ".join(terms) or "up<W>(0)"


def stage_time(c: float) -> str:
    """The time at a node, as the engine interpolates it."""
    c = float(c)
    if c in (0.0, 1.0):
        return "t1" if c else "t0"
    return f"t0 + (t1 - t0) * {c!r}" if c < 0.5 else f"t1 - (t1 - t0) * {1 - c!r}"


_ARGUMENTS = (
    "const typename Lanes<W>::D& t0, const typename Lanes<W>::D& t1, const typename Lanes<W>::R* y0, const In<W>& in, "
    "typename Lanes<W>::R (*k)[N]"
)


def _stage(of: Coefficients, i: int, size: int, state: str = "y") -> list[str]:
    return [
        *per_element(size, f"{state}[e] = y0[e] + h * ({combination(of.a[i][:i])});"),
        f"field<W>(to_real<W>({stage_time(of.c[i])}), {state}, in, k[{i}]);",
    ]


def step_code(of: Coefficients, size: int, adaptive: bool) -> str:
    """`step` and what dense output needs; the slope at the start is known."""
    lines = [
        f"template <int W> FUSED void step({_ARGUMENTS}, typename Lanes<W>::R* y1, typename Lanes<W>::R* error) {{",
        "const typename Lanes<W>::R h = to_real<W>(t1 - t0);",
        "typename Lanes<W>::R y[N];",
    ]
    for i in range(1, of.stages):
        last = of.fsal and i == of.stages - 1
        lines += _stage(of, i, size, "y1" if last else "y")
    if not of.fsal:
        lines += per_element(size, f"y1[e] = y0[e] + h * ({combination(of.b)});")
    if adaptive:
        lines += per_element(size, f"error[e] = h * ({combination(of.error)});")
    lines += ["(void)y; (void)error;", "}"]
    lines += [f"template <int W> FUSED void extra_slopes({_ARGUMENTS}) {{"]
    if of.further:
        lines += ["const typename Lanes<W>::R h = to_real<W>(t1 - t0);", "typename Lanes<W>::R y[N];"]
        for i in range(of.stages, len(of.c)):
            lines += _stage(of, i, size)
    lines += ["}", "// The state within a step is y0 + c[0] theta + c[1] theta^2 + ..."]
    lines += [
        "template <int W> FUSED void polynomials(const typename Lanes<W>::R& h, const typename Lanes<W>::R (*k)[N], "
        "typename Lanes<W>::R (*c)[N]) {"
    ]
    for d in range(of.dense.shape[1]):
        lines += per_element(size, f"c[{d}][e] = h * ({combination(of.dense[:, d])});")
    return "\n".join([*lines, "}"])
