"""What acts on a model from outside at known times: jumps of the right-hand side, and changes of the state."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from torchivp.dual_numbers import DualArithmetic, dual_level
from torchivp.events.event import Scheduled
from torchivp.fitting.data import Dataset, Trajectory
from torchivp.fitting.reading.doses import Dose


@dataclass(frozen=True)
class Addition:
    """Adds an amount to one state, which leaves tangents as they are."""

    state: int
    amount: float


Change = Addition | Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Piece:
    """A part of a trajectory within which the right-hand side is smooth.

    Attributes:
        start: where it begins.
        end: where it ends.
        outputs: the times of the outputs in it; None if none are wanted.
        changes: of the state at its start, in order.
        last: changes of the state at its end, if the trajectory ends there.
    """

    start: float
    end: float
    outputs: list[float] | None
    changes: list[Change]
    last: list[Change]


def changed_state(changes: Sequence[Change], y: Tensor) -> Tensor:
    """A state [n_states] after changes, in order; autograd follows them."""
    for change in changes:
        if isinstance(change, Addition):
            amount = torch.zeros_like(y)
            amount[change.state] = change.amount
            y = y + amount
        else:
            y = change(y)
    return y


def apply_changes(changes: Sequence[Change], y: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor]:
    """States after changes, with their tangents.

    Args:
        changes: in order; functions are of one state [n_states].
        y: the states, [rows, n_states].
        tangents: [rows, n_directions, n_states].
    """
    for change in changes:
        if isinstance(change, Addition):
            y = y.clone()
            y[:, change.state] += change.amount
        else:
            y, tangents = _apply(change, y, tangents)
    return y, tangents


def _apply(change: Callable[[Tensor], Tensor], y: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor]:
    """States after a change that may be any function, with their tangents."""
    rows, directions, n = tangents.shape
    with torch.no_grad(), dual_level():
        # One state at a time, since a change that writes `y[0] + dose` means one.
        state = torch.stack([change(row) for row in y])
        if not directions:
            return state, tangents
        dual = forward_ad.make_dual(y.repeat_interleave(directions, 0), tangents.reshape(-1, n))
        with DualArithmetic():
            moved = forward_ad.unpack_dual(torch.stack([change(row) for row in dual])).tangent
    return state, torch.zeros_like(tangents) if moved is None else moved.unflatten(0, (rows, directions))


@dataclass(frozen=True)
class Inputs:
    """Inputs at known times.

    Attributes:
        jump_times: where the right-hand side jumps.
        scheduled: changes of the state, by the name of the trajectory.
    """

    jump_times: Sequence[float] = ()
    scheduled: Mapping[str, Sequence[Scheduled]] = field(default_factory=dict)
    _known: dict[str, dict[float, list[Change]]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def pieces(self, trajectory: str, start: float, end: float, outputs: Sequence[float] | None) -> list[Piece]:
        """The pieces of a trajectory from `start` to `end`, each with its outputs and changes.

        An output at the time of a change is the state after it.
        """
        changes = self._changes(trajectory)
        inner = sorted(t for t in {*self.jump_times, *changes} if start < t < end)
        borders = [start, *inner, end]
        pieces = []
        for a, b in pairwise(borders):
            own = None
            if outputs is not None:
                until = len(outputs) if b == end else bisect.bisect_left(outputs, b)
                own = list(outputs[bisect.bisect_left(outputs, a) : until])
            pieces.append(Piece(a, b, own, changes.get(a, []), changes.get(b, []) if a < b == end else []))
        return pieces

    def times(self, trajectory: str) -> list[float]:
        """When something changes the state of a trajectory."""
        return sorted(self._changes(trajectory))

    def _changes(self, trajectory: str) -> dict[float, list[Change]]:
        if trajectory not in self._known:
            self._known[trajectory] = self._read_changes(trajectory)
        return self._known[trajectory]

    def _read_changes(self, trajectory: str) -> dict[float, list[Change]]:
        found: dict[float, list[Change]] = {}
        for schedule in self.scheduled.get(trajectory, ()):
            times = torch.as_tensor(schedule.times, dtype=torch.float64).reshape(-1).tolist()
            for i, t in enumerate(times):
                found.setdefault(t, []).append(_change(schedule, t, i))
        return found


def _change(schedule: Scheduled, t: float, number: int) -> Change:
    """What a schedule does at the time with this number."""
    if isinstance(schedule.apply, Dose) and schedule.values is not None:
        return Addition(schedule.apply.state, float(torch.as_tensor(schedule.values)[number]))
    value: tuple[Any, ...] = () if schedule.values is None else (torch.as_tensor(schedule.values)[number],)
    at = torch.tensor(t, dtype=torch.float64)
    return lambda y: schedule.apply(at, y, *value)


def read_inputs(jump_times: Sequence[float], schedule: Any, trajectories: Sequence[str]) -> Inputs:
    """The inputs as the arguments of `fit` describe them.

    Raises:
        ValueError: a time is no finite number, or a trajectory is unknown.
        TypeError: `schedule` holds something else than `Scheduled`.
    """
    jumps = [float(t) for t in jump_times]
    by_name = schedule if isinstance(schedule, Mapping) else dict.fromkeys(trajectories, schedule)
    unknown = [name for name in by_name if name not in trajectories]
    if unknown:
        raise ValueError(f"schedule names the trajectory {unknown[0]!r}, but there are {', '.join(trajectories)}")
    scheduled = {}
    for name, given in by_name.items():
        several = [] if given is None else [given] if isinstance(given, Scheduled) else list(given)
        for each in several:
            if not isinstance(each, Scheduled):
                raise TypeError(
                    f"schedule must be a torchivp.Scheduled, a list of these, or a dict of these by trajectory, got "
                    f"{type(each).__name__}"
                )
            jumps_of_it = torch.as_tensor(each.times, dtype=torch.float64).reshape(-1).tolist()
            if not all(map(math.isfinite, jumps_of_it)):
                raise ValueError(f"the times of schedule must be finite, got {jumps_of_it}")
        scheduled[name] = several
    if not all(map(math.isfinite, jumps)):
        raise ValueError(f"jump_times must be finite, got {jumps}")
    return Inputs(tuple(jumps), scheduled)


def from_first_change(data: Dataset, inputs: Inputs) -> Dataset:
    """The data with trajectories that begin at their first change of the state, if that is before their first time.

    Their initial state is the one before that change.
    """
    trajectories, earlier = [], []
    for series in data.trajectories:
        first = min(inputs.times(series.name), default=series.t[0])
        if first < series.t[0]:
            earlier.append(series.name)
            series = _beginning_at(series, first)
        trajectories.append(series)
    if not earlier:
        return data
    which = f" of {', '.join(earlier)}" if data.trajectory_name is not None else ""
    note = f"the data{which} begin after the first dose, so the initial state is the one before that"
    return replace(data, trajectories=trajectories, notes=[*data.notes, note])


def _beginning_at(series: Trajectory, t: float) -> Trajectory:
    """A trajectory with a row before the others, in which nothing was measured."""
    nothing = np.full((1, series.values.shape[1]), np.nan)
    return replace(
        series,
        t=np.concatenate([[t], series.t]),
        values=np.concatenate([nothing, series.values]),
        rows=["the first dose", *series.rows],
        sigma=None if series.sigma is None else np.concatenate([nothing, series.sigma]),
        censored=None
        if series.censored is None
        else np.concatenate([np.zeros(nothing.shape, dtype=np.int8), series.censored]),
    )
