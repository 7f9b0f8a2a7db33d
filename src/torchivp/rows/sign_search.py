"""Changes of sign among samples of event functions within steps."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

_FEW = 64
"""For so many numbers Python's own arithmetic takes less time than that with arrays."""

_HUGE = 1e150
"""Larger values are cut off, so that the square of none overflows."""


@dataclass
class Brackets:
    """Intervals of steps within which an event function changes its sign.

    Attributes:
        position: the place of the row, [n].
        thetas: the ends of the interval as fractions of the step, [2, n].
        values: the event function there, [2, n].
        sign: its sign at the start of the interval, [n].
    """

    position: np.ndarray
    thetas: np.ndarray
    values: np.ndarray
    sign: np.ndarray


class SignSearch:
    """Looks for the changes of sign that count among samples of an event function in steps."""

    def __init__(self, sign: np.ndarray, value: np.ndarray, level: np.ndarray, direction: int):
        self._direction = direction
        self.thetas = [0.0]
        self.values = [value]
        self._signs = [sign]
        self.sign = sign
        """The sign at the last sample; 0 where the function is zero there, and its sign is yet to be seen."""
        self._first_level = level
        self.level = level
        """Smaller values say nothing about the sign, until the first larger one."""
        self._dipped = np.zeros(len(sign), dtype=np.int64)  # the last interval in which a dip went through zero
        self._brackets: list[Brackets] = []

    def sample(self, theta: float, value: np.ndarray) -> None:
        """The function at the next fraction of each step."""
        hushed = (np.abs(value) <= self.level) & (self.level > 0.0)
        self.level = np.where(hushed, self.level, 0.0)
        crossed = (self.sign * value <= 0.0) & ~hushed
        hit = (self.sign != 0.0) & crossed & self._counts(self.sign)
        self._found(hit, self.thetas[-1], theta, self.values[-1], value, self.sign)
        self.sign = np.where(crossed, np.sign(value), self.sign)
        self.thetas.append(theta)
        self.values.append(value)
        self._signs.append(self.sign)

    def _counts(self, sign: np.ndarray) -> np.ndarray:
        """Whether a change from `sign` to the other is meant."""
        return np.full(len(sign), True) if self._direction == 0 else sign == -self._direction

    def _found(
        self,
        where: np.ndarray,
        low: float | np.ndarray,
        high: float | np.ndarray,
        value_low: np.ndarray,
        value_high: np.ndarray,
        sign: np.ndarray,
    ) -> None:
        position = np.flatnonzero(where)
        if len(position):
            low, high = (np.broadcast_to(x, where.shape)[position] for x in (low, high))
            values = np.stack([value_low[position], value_high[position]])
            self._brackets.append(Brackets(position, np.stack([low, high]), values, sign[position]))

    def brackets(self) -> Brackets:
        """Where the changes of sign are, in the order of the rows and, in a row, of the integration."""
        found = self._brackets
        if not found:
            return Brackets(np.zeros(0, dtype=np.int64), np.zeros((2, 0)), np.zeros((2, 0)), np.zeros(0))
        position, thetas, values, sign = (
            np.concatenate([getattr(bracket, entry.name) for bracket in found], axis=-1) for entry in fields(Brackets)
        )
        order = np.lexsort((thetas[0], position))
        return Brackets(position[order], thetas[:, order], values[:, order], sign[order])

    def dips(self) -> list[tuple[np.ndarray, tuple[int, np.ndarray]]]:
        """Where the function may have dipped through zero between samples: the vertex of a parabola through three."""
        places = []
        spacing = self.thetas[1] - self.thetas[0]
        for i in range(1, len(self.values) - 1):
            sign = self._signs[i]
            left, middle, right = (np.clip(sign * self.values[j], -_HUGE, _HUGE) for j in (i - 1, i, i + 1))
            curvature = left - 2 * middle + right
            convex = curvature > 0.0
            offset = np.where(convex, 0.5 * (left - right) / np.where(convex, curvature, 1.0), 2.0)
            lowest = middle - 0.5 * curvature * offset**2
            least = np.minimum(np.minimum(left, middle), right)
            if i == 1:
                least = np.where(left > self._first_level, least, 0.0)
            dip = (least > 0.0) & (np.abs(offset) < 1.0) & (offset != 0.0) & (lowest < 0.5 * least)
            if dip.any():
                places.append((self.thetas[i] + offset * spacing, (i, dip)))
        return places

    def insert(self, theta: np.ndarray, where: tuple[int, np.ndarray], value: np.ndarray) -> None:
        """The function at the place of a dip: its two changes of sign, if it goes through zero."""
        i, dip = where
        sign = self._signs[i]
        earlier = theta < self.thetas[i]
        interval = np.where(earlier, i, i + 1)  # which the dip seen from its other end may have been found in
        through = dip & (sign * value <= 0.0) & (self._dipped != interval)
        self._dipped = np.where(through, interval, self._dipped)
        start, end = (np.where(earlier, self.thetas[j], self.thetas[j + 1]) for j in (i - 1, i))
        value_start, value_end = (np.where(earlier, self.values[j], self.values[j + 1]) for j in (i - 1, i))
        self._found(through & self._counts(sign), start, theta, value_start, value, sign)
        beyond = through & (sign * value < 0.0)
        self._found(beyond & self._counts(-sign), theta, end, value, value_end, -sign)


def _all_alike(sign: list[float], start: list[float], values: np.ndarray) -> bool:
    """Whether event functions of few rows have their signs, and similar sizes, throughout: without arrays, in a tenth.

    Args:
        sign: the signs before the steps, those of all rows for one event after the other.
        start: the functions at their starts, in the same order.
        values: as in `keep_their_signs`.
    """
    for s, first, column in zip(sign, start, np.swapaxes(values, 1, 2).reshape(len(sign), -1).tolist(), strict=True):
        sizes = [s * x for x in (first, *column)]
        largest = max(sizes)
        if not all(3.0 * x > largest for x in sizes):  # nor where one is NaN
            return False
    return True


def keep_their_signs(sign: np.ndarray, start: np.ndarray, values: np.ndarray) -> bool:
    """Whether event functions clearly have their signs throughout the steps of all rows.

    Args:
        sign: the sign before them, [events, rows].
        start: the functions at their starts, [events, rows].
        values: the functions at the checks within and at the ends, [events, checks + 1, rows].
    """
    if 0 < values.size <= _FEW and _all_alike(sign.ravel().tolist(), start.ravel().tolist(), values):
        return True
    signed = sign[:, None] * np.concatenate((start[:, None], values), axis=1)
    low, high = np.minimum.reduce(signed, axis=1), np.maximum.reduce(signed, axis=1)
    if np.count_nonzero(high < 3.0 * low) == low.size:  # then no parabola through three of them comes near zero
        return True
    if np.count_nonzero((low > 0.0) & (high < _HUGE)) < low.size:
        return False
    # Where it curves away from zero, it may have dipped through it between the samples: see `SignSearch.dips`.
    left, middle, right = signed[:, :-2], signed[:, 1:-1], signed[:, 2:]
    return not np.count_nonzero(np.abs(left - right) < 2.0 * (left - 2.0 * middle + right))
