"""From observation to observation: what is believed of the states moves with the model, and each datum corrects it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchivp.fitting.measured import Measured
from torchivp.fitting.observables import Linearised, Observables
from torchivp.fitting.solving.stretches import Accuracy, Solver, Stretch
from torchivp.fitting.stochastic.measurement import Deviations
from torchivp.fitting.stochastic.moments import Moments
from torchivp.solution import Outcome, SolveError, Status


@dataclass(frozen=True)
class Borders:
    """The times at which a walk stops.

    Attributes:
        times: of each trajectory, increasing, [n_trajectories, n_borders]; NaN after its last.
        sided: whether the right-hand side jumps at some of them.
    """

    times: NDArray[np.float64]
    sided: bool

    @staticmethod
    def of(times: Mapping[int, Sequence[float]], count: int, jumps: Sequence[float]) -> Borders:
        """The borders of `count` trajectories: the times of some of them, by number, and jumps between these."""
        stops = {i: np.union1d(t, [x for x in jumps if t[0] < x < t[-1]]) for i, t in times.items()}
        padded = np.full((count, max(map(len, stops.values()))), np.nan)
        for i, t in stops.items():
            padded[i, : len(t)] = t
        return Borders(padded, bool(jumps))


@dataclass
class Belief:
    """Means and covariances of the states of rows, with their tangents.

    Attributes:
        mean: [rows, n].
        covariance: [rows, n, n].
        mean_tangents: [rows, n_directions, n].
        covariance_tangents: [rows, n_directions, n, n].
    """

    mean: Tensor
    covariance: Tensor
    mean_tangents: Tensor
    covariance_tangents: Tensor

    @staticmethod
    def initial(moments: Moments, y0: Tensor, tangents: Tensor, parameters: Tensor, moving: Sequence[int]) -> Belief:
        """What is believed at the start: the last directions move the `moving` parameters."""
        rows, directions, n = tangents.shape
        covariance, by_parameters = moments.initial_covariances(parameters, derivatives=bool(moving))
        changes = y0.new_zeros(rows, directions, n, n)
        if moving:
            changes[:, directions - len(moving) :] = by_parameters[:, list(moving)]
        return Belief(y0, covariance, tangents, changes)

    @staticmethod
    def joined(beliefs: Sequence[Belief]) -> Belief:
        """The rows of several, one below the other."""
        parts = ("mean", "covariance", "mean_tangents", "covariance_tangents")
        return Belief(*(torch.cat([getattr(each, part) for each in beliefs]) for part in parts))

    def of(self, rows: Any) -> Belief:
        """That of some of the rows."""
        parts = (self.mean, self.covariance, self.mean_tangents, self.covariance_tangents)
        return Belief(*(part[rows] for part in parts))

    def widen(self, rows: Tensor, state: int, variance: Tensor, tangents: Tensor) -> None:
        """Add a variance [n] to that of a state in some rows, with its tangents [n, n_directions]."""
        self.covariance[rows, state, state] += variance
        self.covariance_tangents[rows, :, state, state] += tangents

    def put(self, rows: Tensor, other: Belief) -> None:
        """Believe something else of some of the rows."""
        self.mean = self.mean.index_copy(0, rows, other.mean)
        self.covariance = self.covariance.index_copy(0, rows, other.covariance)
        self.mean_tangents = self.mean_tangents.index_copy(0, rows, other.mean_tangents)
        self.covariance_tangents = self.covariance_tangents.index_copy(0, rows, other.covariance_tangents)

    def packed(self) -> tuple[Tensor, Tensor]:
        """As states of `Moments`, [rows, n + n (n + 1)/2], and their tangents."""
        i, j = np.tril_indices(self.mean.shape[-1])
        return (
            torch.cat([self.mean, self.covariance[..., i, j]], -1),
            torch.cat([self.mean_tangents, self.covariance_tangents[..., i, j]], -1),
        )

    @staticmethod
    def unpacked(z: Tensor, tangents: Tensor, n: int) -> Belief:
        """From states of `Moments`."""
        a, b = np.indices((n, n))
        i, j = np.maximum(a, b), np.minimum(a, b)
        place = n + i * (i + 1) // 2 + j
        return Belief(z[..., :n], z[..., place], tangents[..., :n], tangents[..., place])

    def innovation(self, seen: Linearised, r: Tensor, r_tangents: Tensor) -> tuple[Tensor, Tensor]:
        """The variance of an observation with noise of variance r [rows], [rows], and its tangents."""
        slope, covariance = seen.slope, self.covariance
        along = torch.einsum("rij,rj->ri", covariance, slope)
        variance = (along * slope).sum(-1) + r
        moved = 2 * torch.einsum("ri,rdi->rd", along, seen.slope_tangents) + r_tangents
        moved += torch.einsum("ri,rdij,rj->rd", slope, self.covariance_tangents, slope)
        return variance, moved

    def corrected(self, seen: Linearised, y: Tensor, variance: Tensor, variance_tangents: Tensor) -> Belief:
        """What is believed after an observation y [rows]: the update of the Kalman filter.

        With c = P h', the mean moves by c e/S and the covariance by -c cᵀ/S.
        """
        s, moved_s = variance[:, None], variance_tangents[..., None]
        along = torch.einsum("rij,rj->ri", self.covariance, seen.slope)
        moved_along = torch.einsum("rdij,rj->rdi", self.covariance_tangents, seen.slope)
        moved_along += torch.einsum("rij,rdj->rdi", self.covariance, seen.slope_tangents)
        gain = along / s
        moved_gain = moved_along / s[:, None] - gain[:, None] * moved_s / s[:, None]
        error = (y - seen.value)[:, None]
        outer, moved_outer = along[:, :, None] * gain[:, None], moved_along[..., None] * gain[:, None, None]
        moved_outer = moved_outer + along[:, None, :, None] * moved_gain[..., None, :]
        return Belief(
            self.mean + gain * error,
            self.covariance - outer,
            self.mean_tangents + moved_gain * error[:, None] - gain[:, None] * seen.value_tangents[..., None],
            self.covariance_tangents - moved_outer,
        )


@dataclass
class Seen:
    """The innovations of data.

    Attributes:
        values: expectations and variances, [2, n_thetas, n].
        tangents: [2, n_thetas, n, n_directions].
    """

    values: Tensor
    tangents: Tensor


@dataclass
class Walk:
    """Rows on their way: a trajectory of the data in each.

    Attributes:
        belief: what is believed where they are.
        parameters: of the model, [rows, n_parameters].
        moving: the numbers of the parameters that move in the last directions.
        own: the locals, [rows, n_locals].
        moved: the number of the local that each direction moves.
        trajectories: the number of the trajectory of each row, [rows].
        borders: where they stop.
        observables: what data observe.
        deviations: how exactly.
        solver: solves the equations of the moments.
        accuracy: how.
        ok: which rows have come so far, [rows].
        steps: in how many steps, [rows].
        failure: why the first of the others have not.
    """

    belief: Belief
    parameters: Tensor
    moving: tuple[int, ...]
    own: Tensor
    moved: Sequence[int]
    trajectories: NDArray[np.intp]
    borders: Borders
    observables: Observables
    deviations: Deviations
    solver: Solver
    accuracy: Accuracy
    ok: Tensor = field(init=False)
    steps: Tensor = field(init=False)
    failure: Status | None = field(default=None)

    def __post_init__(self) -> None:
        self.ok = torch.ones(len(self.own), dtype=torch.bool)
        self.steps = torch.zeros(len(self.own), dtype=torch.long)
        self._passed: list[Belief] = []

    def observe_all(self, measured: Measured) -> Seen:
        """Walk to the end: the innovations of all data. The rows are those of thetas and of all trajectories."""
        count, n = len(self.borders.times), len(measured.y)
        shape = (2, len(self.own) // count, n)
        seen = Seen(self.own.new_full(shape, torch.nan), self.own.new_full((*shape, len(self.moved)), torch.nan))
        for _ in self._stops(measured, seen):
            pass
        return seen

    def keep(self, measured: Measured, wanted: Sequence[float]) -> Belief:
        """Walk to the end with one row: what is believed at increasing times, as the rows of a belief.

        At the time of an observation that is what it leads to.

        Raises:
            SolveError: the row does not get there.
        """
        times, kept = self.borders.times[self.trajectories[0]], []
        for b in self._stops(measured, None, wanted):
            kept += self._passed
            if times[b] in wanted:
                kept.append(replace(self.belief))
        if self.failure is not None:
            raise SolveError(self.failure)
        return Belief.joined(kept)

    def _stops(self, measured: Measured, seen: Seen | None, wanted: Sequence[float] = ()) -> Iterator[int]:
        """Go from border to border, and say at which the rows are."""
        waiting = self._by_border(measured)
        for b in range(self.borders.times.shape[1]):
            if b:
                self._advance(b, wanted)
            for data in waiting.get(b, ()):
                self._correct(measured, data, seen)
            yield b

    def _by_border(self, measured: Measured) -> dict[int, list[NDArray[np.intp]]]:
        """The data at each border, one after the other: the number of the datum of each trajectory, -1 for none."""
        found: dict[int, list[NDArray[np.intp]]] = {}
        for i in sorted(set(self.trajectories.tolist())):
            times = self.borders.times[i]
            mine = np.flatnonzero(measured.trajectory == i)
            at = np.array(measured.times[i])[measured.place[mine]]
            mine, at = mine[at <= np.nanmax(times)], at[at <= np.nanmax(times)]
            for datum, b in zip(mine.tolist(), np.searchsorted(times[~np.isnan(times)], at).tolist(), strict=True):
                self._put_datum(found.setdefault(b, []), i, datum, measured)
        return found

    def _put_datum(self, slots: list[NDArray[np.intp]], i: int, datum: int, measured: Measured) -> None:
        """Where all data of a slot are of one observable."""
        for slot in slots:
            if slot[i] < 0 and measured.observable[slot.max()] == measured.observable[datum]:
                slot[i] = datum
                return
        slots.append(np.full(len(self.borders.times), -1))
        slots[-1][i] = datum

    def _advance(self, b: int, wanted: Sequence[float]) -> None:
        """Solve from the border before to this one; a single row may pass times at which it is wanted."""
        ends = self.borders.times[self.trajectories][:, b - 1 : b + 1]
        rows = torch.from_numpy(np.flatnonzero(self.ok.numpy() & ~np.isnan(ends[:, 1])))
        if not len(rows):
            return
        own = self.belief.of(rows)
        z, tangents = own.packed()
        start, end = torch.from_numpy(ends)[rows].unbind(1)
        inner = [t for t in wanted if float(ends[0, 0]) < t < float(ends[0, 1])]
        t = torch.tensor(inner, dtype=z.dtype).expand(len(rows), -1)
        parts = (self.parameters[rows], z, tangents, self.moving, start.contiguous(), end.contiguous(), t)
        solved = self.solver.solve(Stretch(*parts, self.borders.sided), self.accuracy)
        self.belief.put(rows, Belief.unpacked(solved.final, solved.final_tangents, own.mean.shape[-1]))
        passed = Belief.unpacked(solved.states, solved.tangents, own.mean.shape[-1])
        self._passed = [passed.of((slice(None), k)) for k in range(len(inner))]
        self.steps[rows] += solved.steps
        self.ok[rows] &= solved.ok
        self.failure = self.failure or solved.failure

    def _correct(self, measured: Measured, data: NDArray[np.intp], seen: Seen | None) -> None:
        """Take note of a datum of some trajectories, all of one observable."""
        numbers = data[self.trajectories]
        chosen = np.flatnonzero(self.ok.numpy() & (numbers >= 0))
        if not len(chosen):
            return
        rows, datum = torch.from_numpy(chosen), numbers[chosen]
        k, here = int(measured.observable[datum[0]]), self.belief.of(rows)
        times = [measured.times[measured.trajectory[d]][measured.place[d]] for d in datum]
        t = torch.tensor(times, dtype=self.own.dtype)
        moves = torch.eye(self.own.shape[1], dtype=self.own.dtype)[list(self.moved)]
        linear = self.observables.linearised(k, t, here.mean, self.own[rows], here.mean_tangents, moves)
        r, moved_r = self.deviations.variances(k, measured.sigma[datum], self.own[rows], self.moved)
        s, moved_s = here.innovation(linear, r, moved_r)
        if seen is not None:
            q = torch.from_numpy(chosen // len(self.borders.times))
            seen.values[:, q, datum] = torch.stack([linear.value, s])
            seen.tangents[:, q, datum] = torch.stack([linear.value_tangents, moved_s])
        self._check(rows, k, t, s)
        self.belief.put(rows, here.corrected(linear, torch.from_numpy(measured.y[datum]), s, moved_s))

    def _check(self, rows: Tensor, k: int, t: Tensor, variance: Tensor) -> None:
        """Rows end where a variance is not positive."""
        bad = ~(variance > 0)
        if bool(bad.any()):
            time = float(t[bad][0])
            self.ok[rows] &= ~bad
            self.failure = self.failure or Status(
                Outcome.NON_FINITE,
                f"the variance of {self.observables.names[k]} at time {time:g} given the data before is not positive: "
                "no noise reaches it",
                time,
            )
