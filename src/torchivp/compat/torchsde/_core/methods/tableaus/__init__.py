"""The coefficients of Rößler's stochastic Runge-Kutta methods, a module for each.

Rößler, "Runge-Kutta methods for the strong approximation of solutions of stochastic differential equations", SIAM J.
Numer. Anal. 48 (2010).
"""

from __future__ import annotations

from torchivp.methods.sde.stages import Rows

FullRows = tuple[tuple[float, ...], ...]


def full(rows: Rows) -> FullRows:
    """Rows after the first, which may lack zeros at their ends, as rows of 0, 1, 2, ... entries."""
    return ((), *((*row, *[0.0] * (i - len(row))) for i, row in enumerate(rows, start=1)))
