"""Butcher tableaux: the coefficients of Runge-Kutta methods, which check themselves, and of dense output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from torchivp.methods.ode.order_conditions import residual

Coefficients = Sequence[float]


@dataclass(frozen=True)
class StagePolynomials:
    """Dense output from the stages: `y(t0 + theta dt) = y0 + dt sum_j b_j(theta) k_j`.

    Attributes:
        order: the order of the interpolant; its local error is of order `order + 1`.
        b: for each stage the coefficients of theta, theta^2, ... in its weight b_j(theta).
        c: nodes of further stages that only the interpolant needs.
        a: their rows.
    """

    order: int
    b: Sequence[Coefficients]
    c: Coefficients = ()
    a: Sequence[Coefficients] = ()

    @staticmethod
    def collocation(c: Coefficients) -> StagePolynomials:
        """The polynomial whose slopes at the nodes `c` are the stages; of the order of their number."""
        powers = np.vander(np.array(c, dtype=np.float64), increasing=True)
        lagrange = np.linalg.inv(powers).T  # row j: the coefficients of 1, theta, ... of the polynomial 1 at c_j
        return StagePolynomials(len(c), b=(lagrange / np.arange(1, len(c) + 1)).tolist())


@dataclass(frozen=True)
class ButcherTableau:
    """The coefficients of a Runge-Kutta method, in the usual names. Checks itself when it is made.

    Attributes:
        order: the order of the weights `b`.
        c: the nodes.
        a: the rows; zeros at the end of a row may be left out, so that `a[i]` of an explicit method has length i.
        b: the weights.
        b_embedded: the weights of the embedded method that estimates the error.
        embedded_order: its order; `order - 1` unless given.
        a_explicit: the rows of an explicit method with the same nodes and weights, for a part of func that is not
            stiff; None if all of func is treated alike. The order conditions hold in every mixture of these and `a`.
        dense: the dense output; None for the cubic Hermite interpolant.
        predicts: whether the next step starts from the last stage as its slope, although it was evaluated at a state
            that the step then corrects: the mode "predict, evaluate, correct" of multistep methods. The correction
            must be of the order of the local error.
        fsal: whether the last stage is `func` at the end of the step (first same as last): found, not declared.

    Raises:
        ValueError: a row does not sum to its node, or weights do not satisfy their order conditions.
    """

    order: int
    c: Coefficients
    a: Sequence[Coefficients]
    b: Coefficients
    b_embedded: Coefficients | None = None
    embedded_order: int | None = None
    a_explicit: Sequence[Coefficients] | None = None
    dense: StagePolynomials | None = None
    predicts: bool = False
    fsal: bool = field(init=False)

    def __post_init__(self) -> None:
        last_row = tuple(self.matrix[-1].tolist())
        object.__setattr__(self, "fsal", tuple(self.b) == last_row and self.c[-1] == 1)
        if self.b_embedded is not None and self.embedded_order is None:
            object.__setattr__(self, "embedded_order", self.order - 1)
        self._check()

    @property
    def error_order(self) -> int | None:
        """The order of the error estimate; None if there is none."""
        return None if self.embedded_order is None else min(self.order, self.embedded_order)

    @property
    def matrix(self) -> np.ndarray:
        """The rows of `a` as a square matrix."""
        return square(self.a)

    def split(self) -> np.ndarray:
        """The coefficients of the slopes of both parts of func, in turn, in the states that these are evaluated at.

        The slope of the implicit part at a stage comes before that of the explicit part, [2 stages, 2 stages].
        """
        assert self.a_explicit is not None
        rows = np.stack((self.matrix, square(self.a_explicit)), 2).reshape(len(self.c), -1)
        return np.repeat(rows, 2, 0)

    def _check(self) -> None:
        a, other = self.matrix, None
        _require(max(abs(a.sum(1) - np.array(self.c))) < 1e-13, "the rows of a must sum to the nodes c")
        if self.a_explicit is not None:
            other = square(self.a_explicit)
            off = max(abs(other.sum(1) - np.array(self.c)))
            _require(off < 1e-13, "the rows of a_explicit must sum to the nodes c")
            _require(not np.triu(other).any(), "a_explicit must be zero on its diagonal and above")
            alike = not np.triu(a, 1).any() and len(set(np.diag(a)) - {0.0}) <= 1
            _require(alike, "next to a_explicit a must be lower triangular, with equal numbers on its diagonal")
        _require(residual(a, np.array(self.b), self.order, other=other) < 1e-13, f"b must have order {self.order}")
        if self.b_embedded is not None and self.embedded_order is not None:
            _require(
                residual(a, np.array(self.b_embedded), self.embedded_order, other=other) < 1e-13,
                f"b_embedded must have order {self.embedded_order}",
            )
        if self.predicts:
            _require(self.c[-1] == 1, "the last stage must lie at the end of the step if the next one starts from it")
            _require(self.dense is not None, "if it predicts, dense output must come from the stages, not from slopes")
        if self.dense is not None:
            self._check_dense(self.dense, other)

    def _check_dense(self, dense: StagePolynomials, other: np.ndarray | None) -> None:
        _require(other is None or not dense.c, "dense.b of a method with a_explicit must do with its stages")
        a = square([*self.a, *dense.a])
        nodes = np.array([*self.c, *dense.c])
        _require(max(abs(a.sum(1) - nodes)) < 1e-12, "the rows of dense.a must sum to the nodes dense.c")
        polynomials = np.array(dense.b)
        degrees = np.arange(1, polynomials.shape[1] + 1)
        for theta in (0.25, 0.5, 0.75, 1.0):
            weights = polynomials @ theta**degrees
            off = residual(a, weights, dense.order, theta, other=other)
            _require(off < 1e-11, f"dense.b must have order {dense.order}")
        b = np.concatenate([np.array(self.b), np.zeros(len(dense.c))])
        _require(max(abs(polynomials.sum(1) - b)) < 1e-11, "dense.b must equal b at the end of the step")


def with_larger_error(b: Coefficients, b_embedded: Coefficients, factor: float) -> Coefficients:
    """Embedded weights whose difference to `b` is larger by this factor than that of `b_embedded`, of its order."""
    return tuple(x + factor * (y - x) for x, y in zip(b, b_embedded, strict=True))


def square(rows: Sequence[Coefficients]) -> np.ndarray:
    """The rows of a tableau as a matrix, with the zeros at their ends."""
    return np.array([[*row, *[0.0] * (len(rows) - len(row))] for row in rows], dtype=np.float64)


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise ValueError(f"inconsistent Butcher tableau: {sentence}")
