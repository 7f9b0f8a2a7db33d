"""Bounds and constraints as margins that must not be negative: places within them, and how far they let a quantity go.

Nothing here solves the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, nnls

from torchivp.fitting.constraints import broken, margins
from torchivp.fitting.misfit import Misfit
from torchivp.fitting.searching.linear_model import normals_of_bounds

Floats = NDArray[np.float64]

_INSIDE = 1e-9  # how far from a constraint searches stay, relative to the margin by a typical change,
_EDGE = 1e-7  # and how far the last value of a quantity for which there is a place within them
_AT = 1e-6  # how far a place may be that is at a constraint
_SAME = 1e-9  # margins of trajectories that differ by less are one
_HOLDS = 1e-6  # what holds a quantity back by less than this of all that does is rounding


class Limits:
    """Those of a misfit, for a search that holds some entries of theta.

    Args:
        misfit: which knows bounds and constraints.
        held: which entries stay where they are, [n_free].
    """

    def __init__(self, misfit: Misfit, held: NDArray[np.bool_] | None = None):
        self._constraints, self._quantities = misfit.constraints, misfit.quantities
        self.scale = misfit.quantities.magnitudes
        self.moved = np.arange(len(self.scale)) if held is None else np.flatnonzero(~held)
        self._names = [each.expression.text for each in misfit.constraints for _ in each.margins]
        self._chosen: NDArray[np.intp] | None = None

    @property
    def searchable(self) -> bool:
        """Whether there are constraints, all of which have margins, or, but for networks, bounds."""
        if self._constraints:
            return all(each.margins for each in self._constraints)
        bounded = any(bool(np.isfinite(end[self.moved]).any()) for end in self._bounds)
        return bounded and bool(self._quantities.single.all())

    def margins(self, theta: Floats) -> tuple[Floats, Floats, list[str]]:
        """The margins of constraints [m], their slopes by typical changes [m, n_free], and whose they are.

        Those of trajectories that have the same ones are told once.
        """
        values, slopes = margins(self._constraints, self._quantities, theta)
        slopes = slopes * self.scale
        count = len(values) // max(len(self._names), 1)
        if self._chosen is None:
            rows = np.concatenate([values[:, None], slopes], 1)
            sizes = np.maximum(np.abs(rows).max(axis=1, keepdims=True), np.finfo(float).tiny)
            whose = np.repeat(np.arange(len(self._names)), count)[:, None]
            alike = np.concatenate([whose, np.log(sizes), rows / sizes], 1)
            self._chosen = np.sort(np.unique(np.round(alike / _SAME), axis=0, return_index=True)[1])
        names = [self._names[i // count] for i in self._chosen.tolist()]
        return values[self._chosen], slopes[self._chosen], names

    def normals(self, theta: Floats) -> tuple[Floats, list[str]]:
        """The slopes by typical changes of what is zero, [k, n_free]: first of constraints, then bounds; in words."""
        values, slopes, names = self.margins(theta)
        sizes = _sizes(values, slopes)
        near = np.flatnonzero(values <= _AT * sizes)
        bounds = normals_of_bounds(self._quantities, theta)
        of_bounds = [f"the bound of {self._quantities.label(int(np.abs(row).argmax()))}" for row in bounds]
        return np.concatenate([slopes[near] / sizes[near, None], bounds]), [
            *(names[i] for i in near.tolist()),
            *of_bounds,
        ]

    def at_constraint(self, theta: Floats) -> bool:
        """Whether a place is at a constraint that can be followed."""
        return self.searchable and any(map(self.is_constraint, self.normals(theta)[1]))

    def is_constraint(self, name: str) -> bool:
        """Whether these words are those of a constraint, and not of a bound."""
        return name in self._names

    def minimised(
        self, theta: Floats, objective: Callable[..., Any], directions: Floats, inside: float = _INSIDE, **options: Any
    ) -> Floats:
        """Where SLSQP ends, which may be outside of them if there is nothing within.

        Args:
            theta: where to start, [n_free]; it may be outside.
            objective: its value and gradient, from n coordinates.
            directions: typical changes of the entries that are moved, by coordinate, [n_moved, n].
            inside: how far to stay from constraints.
            options: of `minimize`.
        """
        values, slopes, _ = self.margins(theta)
        sizes = _sizes(values, slopes)
        ends = [(end - theta)[self.moved] / self.scale[self.moved] for end in self._bounds]
        below, above = (np.flatnonzero(np.isfinite(end)) for end in ends)
        of_bounds = np.concatenate([directions[below], -directions[above]])
        gaps = np.concatenate([-ends[0][below], ends[1][above]])

        def margins_at(v: Floats) -> Floats:
            return np.concatenate(
                [self.margins(self.at(theta, directions @ v))[0] / sizes - inside, of_bounds @ v + gaps]
            )

        def slopes_at(v: Floats) -> Floats:
            of_constraints = self.margins(self.at(theta, directions @ v))[1][:, self.moved] / sizes[:, None]
            return np.concatenate([of_constraints @ directions, of_bounds])

        found = minimize(
            objective,
            np.zeros(directions.shape[1]),
            jac=True,
            method="SLSQP",
            constraints={"type": "ineq", "fun": margins_at, "jac": slopes_at},
            **options,
        )
        return self.at(theta, directions @ found.x)

    @property
    def _bounds(self) -> tuple[Floats, Floats]:
        return self._quantities.lower, self._quantities.upper

    def at(self, theta: Floats, changes: Floats) -> Floats:
        """Theta after typical changes of the entries that are moved, [n_moved], within the bounds."""
        moved = theta.copy()
        moved[self.moved] += self.scale[self.moved] * changes
        return np.clip(moved, *self._bounds)

    def broken(self, theta: Floats) -> list[str]:
        """The constraints that do not hold."""
        return broken(self._constraints, self._quantities, theta)

    def nearest(self, theta: Floats) -> Floats | None:
        """The nearest place within them in typical changes; None if there is none."""
        if not self.broken(theta):
            return theta
        if not len(self.moved):
            return None
        every = np.eye(len(self.moved))
        near = self.minimised(theta, lambda v: (0.5 * float(v @ v), v), every, options={"ftol": 1e-12})
        return None if self.broken(near) else near

    def furthest(self, theta: Floats, entry: int, end: float) -> tuple[Floats, list[str]]:
        """A place within them where an entry of theta is as near to `end` as they let it; and what does not let it.

        It is one from which no small step leads nearer.
        """
        place = self.moved.tolist().index(entry)
        target = (end - theta[entry]) / self.scale[entry]

        def gap(v: Floats) -> tuple[float, Floats]:
            left = np.zeros(len(v))
            left[place] = v[place] - target
            return 0.5 * left[place] ** 2, left

        found = self.minimised(theta, gap, np.eye(len(self.moved)), inside=_EDGE, options={"ftol": 1e-14})
        if self.broken(found) or abs(found[entry] - end) > abs(theta[entry] - end):
            found = theta
        normals, names = self.normals(found)
        outwards = np.sign(end - theta[entry]) * np.eye(len(theta))[entry]
        weights, _ = nnls(normals.T, -outwards) if len(normals) else (np.zeros(0), 0.0)
        return found, list(dict.fromkeys(name for name, w in zip(names, weights, strict=True) if w > _HOLDS))


def _sizes(values: Floats, slopes: Floats) -> Floats:
    """How large margins [m] are by a typical change, from their slopes; where these vanish, from themselves."""
    return np.maximum(np.linalg.norm(slopes, axis=1), np.maximum(1e-3 * np.abs(values), np.finfo(float).tiny))
