"""The step of an explicit Runge-Kutta method in C++, from its tableau."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from torchivp.dense import HERMITE
from torchivp.fused.steps import (
    combination,
    constants,
    numbers,
    per_element,
    source_file,
    stage_time,
    stage_times,
    table,
)
from torchivp.methods.ode.tableau import ButcherTableau, square

_ARGUMENTS = (
    "const typename Lanes<W>::D& t0, const typename Lanes<W>::D& t1, const typename Lanes<W>::R* y0, const In<W>& in, "
    "typename Lanes<W>::R (*k)[N]"
)


@dataclass(frozen=True)
class ExplicitCoefficients:
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
        hermite: whether dense output evaluates the slope at the end of the step, which the next step starts from.
        last: of a kernel that watches out for stiffness, what makes the difference of the states of the last two stages
            of their slopes.
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
    hermite: bool
    last: Sequence[float] = ()
    uses_jacobian = False
    solves = 0

    @staticmethod
    def of(tableau: ButcherTableau) -> ExplicitCoefficients:
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
        return ExplicitCoefficients(
            c,
            square(rows),
            list(b),
            error,
            dense,
            stages,
            tableau.fsal,
            tableau.predicts,
            tableau.error_order or 0,
            tableau.dense is None and not (tableau.fsal or tableau.predicts),
        )

    @property
    def hands_on(self) -> bool:
        return self.fsal or self.predicts

    def declarations(self, size: int, parts: Sequence[int], adaptive: bool) -> str:
        slopes, degree = self.dense.shape
        return constants(
            size,
            parts,
            STAGES=self.stages,
            EXTRA=slopes - self.stages,
            SLOPES=slopes,
            DEGREE=degree,
            ERROR_ORDER=self.error_order,
            FSAL=self.fsal,
            PREDICTS=self.predicts,
            HERMITE=self.hermite,
            JACOBIAN=False,
            ADAPTIVE=adaptive,
        )

    def step(self, size: int, states: int, adaptive: bool) -> str:
        """`step` and what dense output needs; the slope at the start is known."""
        lines = [
            source_file("explicit.h"),
            f"template <int W> FUSED void step({_ARGUMENTS}, const Start<W>&, ",
            "typename Lanes<W>::R* y1, typename Lanes<W>::R* error) {",
            "const typename Lanes<W>::R h = to_real<W>(t1 - t0);",
            "typename Lanes<W>::R y[N];",
        ]
        for i in range(1, self.stages):
            last = self.fsal and i == self.stages - 1
            lines += self._stage(i, size, "y1" if last else "y")
        if not self.fsal:
            lines += per_element(size, f"y1[e] = y0[e] + h * ({combination(self.b)});")
        if adaptive:
            lines += per_element(states, f"error[e] = h * ({combination(self.error)});")
        lines += ["(void)y; (void)error;", "}"]
        lines += [f"template <int W> FUSED void extra_slopes({_ARGUMENTS}) {{"]
        if len(self.c) > self.stages:
            lines += ["const typename Lanes<W>::R h = to_real<W>(t1 - t0);", "typename Lanes<W>::R y[N];"]
            for i in range(self.stages, len(self.c)):
                lines += self._stage(i, size)
        lines += ["}", "// The state within a step is y0 + c[0] theta + c[1] theta^2 + ..."]
        lines += [
            "template <int W> FUSED void polynomials(",
            "const typename Lanes<W>::R& h, const typename Lanes<W>::R (*k)[N], typename Lanes<W>::R (*c)[N]) {",
        ]
        for d in range(self.dense.shape[1]):
            lines += per_element(size, f"c[{d}][e] = h * ({combination(self.dense[:, d].tolist())});")
        return "\n".join([*lines, "}"])

    def _stage(self, i: int, size: int, state: str = "y") -> list[str]:
        return [
            *per_element(size, f"{state}[e] = y0[e] + h * ({combination(self.a[i][:i])});"),
            f"field<W>(to_real<W>({stage_time(self.c[i])}), {state}, in, k[{i}]);",
        ]

    def pull(self) -> tuple[str, str]:
        tables = [table("A", self.a), numbers("B", self.b), table("DENSE", self.dense), numbers("NODES", self.c)]
        return "\n".join([*tables, stage_times(self.c)]), source_file("pull_explicit.h")
