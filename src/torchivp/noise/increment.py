"""The increment of a Brownian motion over one interval, with the integrals that higher-order methods ask for."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

LEVY_AREAS = ("none", "space-time", "davie", "foster")


def has_H(kind: str) -> bool:
    """Whether increments with areas of this kind, one of `LEVY_AREAS`, come with H."""
    return kind != "none"


def has_A(kind: str) -> bool:
    """Whether increments with areas of this kind, one of `LEVY_AREAS`, come with A, and so with H."""
    return kind in ("davie", "foster")


@dataclass(slots=True)
class Increment:
    """What a path does over an interval from ta to tb = ta + dt.

    Attributes:
        dt: the length of the interval.
        W: the change of the path, W(tb) - W(ta), normal with variance dt.
        H: the space-time Lévy area, U / dt - W / 2, normal with variance dt / 12 and independent of W; None if the
            path does not provide it.
        A: the antisymmetric Lévy area, of shape [..., m, m] for W of shape [..., m]; None if the path does not provide
            it. A_ij is half of ∫ W_i dW_j - ∫ W_j dW_i over the interval, W counted from ta, so that
            E[A_ij | W, H] = H_i W_j - W_i H_j.
    """

    dt: float
    W: Tensor
    H: Tensor | None = None
    A: Tensor | None = None

    @property
    def U(self) -> Tensor:
        """The integral of W(s) - W(ta) over the interval, dt (W / 2 + H).

        Raises:
            ValueError: the path did not provide H.
        """
        if self.H is None:
            raise ValueError(
                "U needs the space-time Lévy area, and this increment has none: make the path with "
                "levy_area_approximation='space-time'"
            )
        return self.dt * (0.5 * self.W + self.H)


def join(first: Increment, second: Increment) -> Increment:
    """The increment over two intervals, the second of which begins where the first ends.

    H and A are given if both have them.
    """
    dt = first.dt + second.dt
    W = first.W + second.W
    H = None
    if first.H is not None and second.H is not None:
        # U adds up, with what the first interval lifts the second by. Written for H so that nothing large cancels.
        left, right = (first.dt / dt, second.dt / dt) if dt else (0.5, 0.5)
        H = left * first.H + right * second.H + 0.5 * (right * first.W - left * second.W)
    A = None
    if first.A is not None and second.A is not None:
        A = first.A + second.A
        if first.W.ndim >= 2:
            A = A + 0.5 * (outer(first.W, second.W) - outer(second.W, first.W))
    return Increment(dt, W, H, A)


def outer(a: Tensor, b: Tensor) -> Tensor:
    """The products a_i b_j of the last dimensions."""
    return a.unsqueeze(-1) * b.unsqueeze(-2)
