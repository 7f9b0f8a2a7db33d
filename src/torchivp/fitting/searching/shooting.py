"""Multiple shooting: the data in segments, each solved from a state of its own, which are joined bit by bit.

A path from one initial state soon loses the data where the parameters are wrong, and then says nothing of how to mend
them. Short segments that begin near the data do not. So the states at the borders between segments, the *nodes*, are
unknowns too, and that each segment ends where the next one begins is a constraint. It is met by a quadratic penalty
whose weight grows until the segments are one path. Each minimum is found by a damped Gauss-Newton method, the steps of
which eliminate one node after the other by orthogonal transformations: their cost grows with the number of segments,
and they are as stable for chaos as for decay.

Sources: J. van Domselaar and P. W. Hemker, "Nonlinear parameter estimation in initial value problems", Mathematisch
Centrum NW 18/75 (1975); H. G. Bock, "Recent advances in parameter identification techniques for O.D.E.", in P.
Deuflhard and E. Hairer (eds.), "Numerical Treatment of Inverse Problems in Differential and Integral Equations" (1983);
the elimination is that of G. J. Bierman, "Factorization Methods for Discrete Sequential Estimation" (1977).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from torchivp.fitting.predictions import Predictions
from torchivp.fitting.searching.linear_model import ON_BOUND
from torchivp.fitting.searching.matching import curve_of_state
from torchivp.fitting.searching.optimise import Search, Weighing
from torchivp.fitting.searching.segments import Segments, split
from torchivp.solution import SolveError

Floats = NDArray[np.float64]

_WEIGHTS = np.geomspace(1e-2, 1e8, 11)  # of a gap, where the data of a segment weigh as much at 1
_JOINED = 1e-3  # gaps this much smaller than the residuals, relative to the states, count as none,
_EXACT = 1e-2  # where residuals smaller than this count as this
_STEPS_AT_A_WEIGHT = 8
_TRIALS = 120  # solves of all segments
_SETTLED = 1e-2  # relative changes of the cost below which the weight grows
_DAMPING, _LEAST_DAMPING, _MOST_DAMPING = 1e-2, 1e-10, 1e8
_LARGEST = 300.0  # a logarithm of a state
_SMALLEST = 1e-2  # a positive state counts as at least this fraction of its mean size


@dataclass(frozen=True)
class Joined:
    """Where segments came together, or how far they got.

    Attributes:
        theta: the free quantities, [n_free].
        nodes: the states at the beginning of each segment on their scales, [n_segments, n_states].
        sizes: those of these states, [n_segments, n_states].
        left: the sum of the squared residuals along the segments.
        weight: the last weight of the gaps.
    """

    theta: Floats
    nodes: Floats
    sizes: Floats
    left: float
    weight: float


def shoot(search: Search, start: Floats | Joined, weighing: Weighing, stage: str) -> Joined | None:
    """Find free quantities by multiple shooting.

    Args:
        search: which knows the misfit, and is told of the iterations.
        start: where to start, [n_free], or where segments were joined by solves of another accuracy.
        weighing: what makes residuals of predictions, such that a constant would leave residuals of size one.
        stage: what the user is told that this is.

    Returns:
        None if a segment cannot be solved at the start, or the data have too few times for segments.
    """
    segments = split(search.misfit)
    if segments is None:
        return None
    shooter = _Shooter(search, segments, weighing, stage)
    begin = shooter.resume(start) if isinstance(start, Joined) else shooter.begin(start)
    if begin is None:
        return None
    end, weight = shooter.join(begin, start.weight if isinstance(start, Joined) else _WEIGHTS[0])
    return Joined(end.theta, end.nodes, shooter.sizes, end.left, weight)


@dataclass(frozen=True)
class _Point:
    """Quantities and nodes, and what the model says there.

    Attributes:
        theta: [n_free].
        nodes: the state at the beginning of each segment on its scale, [n_segments, n_states]; those of first segments
            are not used.
        found: the predictions.
        rows: the residuals of each segment [n_segments, m], filled up with zeros.
        slopes: their derivatives by the changes of quantities and of the node, [n_segments, m, n_free + n_states].
        gaps: between the ends of segments and the next nodes, relative to the size of a state, [n_segments, n_states];
            zero at the end of a trajectory.
        gap_slopes: by the changes of quantities and of the node before, [n_segments, n_states, n_free + n_states].
        node_slopes: by those of the node after, which moves its own state alone, [n_segments, n_states].
        priors: the residuals of the priors, and their derivatives by the changes of quantities.
    """

    theta: Floats
    nodes: Floats
    found: Predictions
    rows: Floats
    slopes: Floats
    gaps: Floats
    gap_slopes: Floats
    node_slopes: Floats
    priors: tuple[Floats, Floats]

    @property
    def left(self) -> float:
        """The sum of the squared residuals, those of the priors included."""
        return float(np.sum(self.rows**2) + np.sum(self.priors[0] ** 2))

    def cost(self, weight: float) -> float:
        """What is minimised at a weight of the gaps."""
        return self.left + weight * float(np.sum(self.gaps**2))


class _Shooter:
    """Joins segments.

    Quantities move in typical changes; nodes in logarithms of states that are positive, else in their sizes.
    """

    def __init__(self, search: Search, segments: Segments, weighing: Weighing, stage: str):
        self.search, self.segments, self.weighing, self.stage = search, segments, weighing, stage
        self.misfit = search.misfit.in_parts(segments.data)
        self.quantities = search.misfit.quantities
        model, data = self.misfit.model, self.misfit.data
        self.columns = [data.states.index(state) if state in data.states else None for state in model.states]
        noises = weighing.levels.noises
        self.log = np.array(
            [
                model.is_positive(state) or (column is not None and noises[column].log)
                for state, column in zip(model.states, self.columns, strict=True)
            ]
        )
        self.followers = np.append(segments.owner[1:] == segments.owner[:-1], False)  # which segments have a next one
        self.sizes = np.ones((len(segments.owner), len(model.states)))  # of the states at the nodes
        self.per_segment = max(1.0, self.misfit.measured().y.size / len(segments.owner))
        self.trials = 0

    def begin(self, theta: Floats) -> _Point | None:
        """The start: nodes near the data, and where a state is not observed, where segments from there lead."""
        theta = np.clip(theta, self.quantities.lower, self.quantities.upper)
        try:
            own = self.quantities.locals(torch.tensor(theta))[self.segments.owner]
        except SolveError as error:  # of a steady state
            self.search.misfit.shared.failure = error.status.message
            return None
        states = self._first_states(own)
        mean = np.sqrt(np.mean(states**2, 0))
        mean = np.where(mean > 0, mean, 1.0)
        self.sizes = np.where(self.log, np.maximum(np.abs(states), _SMALLEST * mean), mean)
        nodes = np.where(self.log, np.log(np.maximum(states, 1e-6 * mean)), states / mean)
        return self._solved(theta, nodes)

    def resume(self, joined: Joined) -> _Point | None:
        """Where segments were joined before."""
        self.sizes = joined.sizes
        return self._solved(joined.theta, joined.nodes)

    def _first_states(self, own: torch.Tensor) -> Floats:
        """The states at the beginning of each segment, [n_segments, n_states]."""
        n = len(self.columns)
        states = own[:, -n:].numpy().copy()
        known = np.zeros(states.shape, dtype=bool)
        starts = np.array([part.t[0] for part in self.misfit.data.trajectories])
        for i, chain in enumerate(self.segments.chains):
            for k, column in enumerate(self.columns):
                curve = None
                if column is not None:
                    curve = curve_of_state(self.search.misfit.data.trajectories[i], column, bool(self.log[k]))
                if curve is not None:
                    states[chain[1:], k], known[chain[1:], k] = curve(starts[chain[1:]]), True
        if known[self.segments.later].all():
            return states
        for before in self._in_order():
            at = own[before].clone()
            at[:, -n:] = torch.from_numpy(states[before])
            ends, ok = self.misfit.pass_part(at, before)
            after = np.array(before) + 1
            ends = np.where(self.log & (ends <= 0), states[before], ends)
            states[after] = np.where(known[after], states[after], np.where(ok[:, None], ends, states[before]))
        return states

    def _in_order(self) -> Iterator[list[int]]:
        """The numbers of the segments that have a next one: the first ones of all trajectories, and so on."""
        chains = self.segments.chains
        for place in range(max(map(len, chains)) - 1):
            yield [chain[place] for chain in chains if place < len(chain) - 1]

    def join(self, point: _Point, first: float) -> tuple[_Point, float]:
        """Let the weight of the gaps grow from the first one until there are none, or no more solves."""
        damping, last = _DAMPING, first
        for last in _WEIGHTS[first <= _WEIGHTS]:
            weight = float(last) * self.per_segment
            for _ in range(_STEPS_AT_A_WEIGHT):
                found, damping = self._improve(point, weight, damping)
                if found is None:
                    break
                gained = 1 - found.cost(weight) / point.cost(weight)
                point = found
                self.search.report(self.stage, point.found)
                if gained < _SETTLED:
                    break
            if self.trials >= _TRIALS or self._is_joined(point):
                break
            damping = min(damping, _DAMPING)
        return point, float(last)

    def _is_joined(self, point: _Point) -> bool:
        """Whether the segments are one path but for gaps that the data would not show."""
        residual = np.sqrt(point.left / point.rows.size)
        return bool(np.abs(point.gaps).max() < _JOINED * min(1.0, max(residual, _EXACT)))

    def _improve(self, point: _Point, weight: float, damping: float) -> tuple[_Point | None, float]:
        """A point with a smaller cost, None if there is none near, and how to damp the next step."""
        reduced = _Reduced(point, self._held(point, weight), weight)
        while damping < _MOST_DAMPING and self.trials < _TRIALS:
            # A typical change of a quantity, or of a node, counts as much as the same of all data that it moves.
            quantities, nodes = reduced.step(
                self.segments.chains, damping * self.misfit.measured().y.size, damping * self.per_segment
            )
            theta = np.clip(
                point.theta + quantities * self.quantities.magnitudes, self.quantities.lower, self.quantities.upper
            )
            trial = self._solved(theta, point.nodes + nodes)
            if trial is not None and trial.cost(weight) < point.cost(weight):
                moved = (theta - point.theta) / self.quantities.magnitudes
                hoped = point.cost(weight) - reduced.cost(moved, nodes)
                ratio = (point.cost(weight) - trial.cost(weight)) / hoped if hoped > 0 else 1.0
                factor = 0.1 if ratio > 0.75 else 1.0 if ratio > 0.25 else 4.0
                return trial, max(damping * factor, _LEAST_DAMPING)
            damping *= 8.0
        return None, damping

    def _held(self, point: _Point, weight: float) -> NDArray[np.bool_]:
        """Which quantities are on a bound beyond which the cost would fall, [n_free]."""
        n = len(point.theta)
        gradient = np.einsum("sm,smf->f", point.rows, point.slopes[..., :n])
        gradient += weight * np.einsum("sm,smf->f", point.gaps, point.gap_slopes[..., :n])
        gradient += point.priors[0] @ point.priors[1]
        gaps = [
            (point.theta - end) / self.quantities.magnitudes for end in (self.quantities.lower, self.quantities.upper)
        ]
        return ((np.abs(gaps[0]) < ON_BOUND) & (gradient > 0)) | ((np.abs(gaps[1]) < ON_BOUND) & (gradient < 0))

    def _solved(self, theta: Floats, nodes: Floats) -> _Point | None:
        self.trials += 1
        try:
            own, slopes = self.quantities.locals_and_slopes(theta)
        except SolveError as error:  # of a steady state
            self.search.misfit.shared.failure = error.status.message
            return None
        owner, later, n, count = self.segments.owner, self.segments.later, len(self.columns), len(theta)
        if not np.all(np.abs(np.where(self.log & later[:, None], nodes, 0.0)) <= _LARGEST):
            return None
        states, by_node = self._states(nodes)
        mine = own[owner].clone()
        mine[torch.from_numpy(later), -n:] = torch.from_numpy(states[later])
        by_all = np.zeros((len(owner), mine.shape[1], count + n))
        by_all[..., :count] = slopes[owner] * self.quantities.magnitudes
        by_all[later, -n:] = 0.0
        for k in range(n):
            by_all[later, k - n, count + k] = by_node[later, k]
        solved = self.misfit.solve_parts(mine, by_all)
        if solved is None or not self.weighing.levels.possible(solved.found):
            return None
        gaps, gap_slopes = np.zeros(nodes.shape), np.zeros((*nodes.shape, count + n))
        node_slopes = np.zeros(nodes.shape)
        before = np.flatnonzero(self.followers)
        after = before + 1
        sizes = self.sizes[after]
        gaps[before] = (solved.ends[before] - states[after]) / sizes
        gap_slopes[before] = solved.end_slopes[before] / sizes[..., None]
        node_slopes[before] = -by_node[after] / sizes
        known, by_theta = self.weighing.priors(self.quantities, theta)
        if not np.isfinite(known).all():
            return None
        priors = known, by_theta * self.quantities.magnitudes
        return _Point(
            theta, nodes, solved.found, *self._by_segment(solved.found), gaps, gap_slopes, node_slopes, priors
        )

    def _states(self, nodes: Floats) -> tuple[Floats, Floats]:
        """The states at nodes, and their derivatives by them."""
        growing = np.exp(np.where(self.log, nodes, 0.0))
        return np.where(self.log, growing, nodes * self.sizes), np.where(self.log, growing, self.sizes)

    def _by_segment(self, found: Predictions) -> tuple[Floats, Floats]:
        """Residuals and their slopes as tables with a row for each segment."""
        residuals, changes = self.weighing.levels.least_squares(found, self.weighing.sizes)
        m, numbers = len(residuals), found.measured.trajectory
        counts = np.bincount(numbers, minlength=len(self.segments.owner))
        place = np.arange(len(numbers)) - (np.cumsum(counts) - counts)[numbers]
        rows = np.zeros((len(counts), m * counts.max()))
        slopes = np.zeros((*rows.shape, found.jacobian.shape[1]))
        for i in range(m):
            rows[numbers, i * counts.max() + place] = residuals[i]
            slopes[numbers, i * counts.max() + place] = changes[i][:, None] * found.jacobian
        return rows, slopes


class _Reduced:
    """The linear least-squares problem of a step: what residuals and gaps are after small changes.

    Args:
        point: where.
        held: which quantities stay, [n_free].
        weight: of the gaps.
    """

    def __init__(self, point: _Point, held: NDArray[np.bool_], weight: float):
        self._point, self._weight = point, weight
        self._moved, n, count = np.flatnonzero(~held), point.nodes.shape[1], len(held)
        order = [*range(count, count + n), *self._moved]  # first the node, then quantities
        self._n = n
        table = np.concatenate([point.slopes[..., order], -point.rows[..., None]], -1)
        # What the data of a segment say of a step, in as many rows as there are unknowns.
        self._data = _triangle(table)
        root = np.sqrt(weight)
        self._gaps = root * np.concatenate([point.gap_slopes[..., order], -point.gaps[..., None]], -1)
        self._nodes = root * point.node_slopes

    def step(self, chains: Sequence[Sequence[int]], for_quantities: float, for_nodes: float) -> tuple[Floats, Floats]:
        """The changes of quantities and nodes that minimise what is left, and these squares of theirs times numbers."""
        n, moved = self._n, len(self._moved)
        kept: dict[int, Floats] = {}
        priors, by_quantity = self._point.priors
        last = [np.concatenate([by_quantity[:, self._moved], -priors[:, None]], 1)]
        last.append(np.sqrt(for_quantities) * np.eye(moved, moved + 1))
        for chain in chains:
            carry = np.zeros((0, n + moved + 1))
            for i in chain:
                # The columns: this node, the next one, the quantities, and the right-hand side.
                ahead = n if i != chain[-1] else 0
                own = np.concatenate([carry, self._data[i], np.sqrt(for_nodes) * np.eye(n, n + moved + 1)])
                rows = own if not ahead else np.concatenate([own, self._gaps[i]])
                next_one = np.zeros((len(rows), ahead))
                next_one[len(own) :] = np.diag(self._nodes[i][:ahead])
                table = np.concatenate([rows[:, :n], next_one, rows[:, n:]], 1)
                triangle = _triangle(table)
                kept[i], carry = triangle[:n], triangle[n:, n:]
            last.append(carry)
        every = np.concatenate(last)
        by_moved = np.linalg.lstsq(every[:, :-1], every[:, -1], rcond=None)[0]
        nodes, quantities = np.zeros(self._point.nodes.shape), np.zeros(len(self._point.theta))
        quantities[self._moved] = by_moved
        for chain in chains:
            after = np.zeros(0)
            for i in reversed(chain):
                row = kept[i]
                after = np.linalg.solve(row[:, :n], row[:, -1] - row[:, n:-1] @ np.concatenate([after, by_moved]))
                nodes[i] = after
        return quantities, nodes

    def cost(self, quantities: Floats, nodes: Floats) -> float:
        """What the linear problem says of the cost after changes."""
        point = self._point
        changes = np.concatenate([np.broadcast_to(quantities, (len(nodes), len(quantities))), nodes], 1)
        left = point.rows + np.einsum("smf,sf->sm", point.slopes, changes)
        gaps = point.gaps + np.einsum("smf,sf->sm", point.gap_slopes, changes)
        gaps[:-1] += point.node_slopes[:-1] * nodes[1:]
        priors = point.priors[0] + point.priors[1] @ quantities
        return float(np.sum(left**2) + self._weight * np.sum(gaps**2) + np.sum(priors**2))


def _triangle(table: Floats) -> Floats:
    """The triangular factors of tables [..., m, n], whose products with themselves are those of the tables."""
    factor: Any = np.linalg.qr(table, mode="r")  # the annotation of which means other modes
    return factor
