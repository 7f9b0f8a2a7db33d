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
from torch.func import functional_call

from torchivp.dual_numbers import DualArithmetic, dual_level
from torchivp.events.event import Scheduled
from torchivp.fitting.data import Dataset, Trajectory
from torchivp.fitting.reading.doses import Dose, Infusion
from torchivp.models.model import Model


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
        rates: what is added to the derivatives of states all through it, by their numbers.
        changes: of the state at its start, in order.
        last: changes of the state at its end, if the trajectory ends there.
    """

    start: float
    end: float
    outputs: list[float] | None
    rates: dict[int, float]
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
        infusions: additions to derivatives, by the name of the trajectory.
    """

    jump_times: Sequence[float] = ()
    scheduled: Mapping[str, Sequence[Scheduled]] = field(default_factory=dict)
    infusions: Mapping[str, Sequence[Infusion]] = field(default_factory=dict)
    _known: dict[str, dict[float, list[Change]]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def pieces(self, trajectory: str, start: float, end: float, outputs: Sequence[float] | None) -> list[Piece]:
        """The pieces of a trajectory from `start` to `end`, each with its outputs and changes.

        An output at the time of a change is the state after it.
        """
        changes, infusions = self._changes(trajectory), self.infusions.get(trajectory, ())
        borders_of_infusions = {t for infusion in infusions for t in (infusion.start, infusion.end)}
        inner = sorted(t for t in {*self.jump_times, *changes, *borders_of_infusions} if start < t < end)
        borders = [start, *inner, end]
        pieces = []
        for a, b in pairwise(borders):
            own = None
            if outputs is not None:
                until = len(outputs) if b == end else bisect.bisect_left(outputs, b)
                own = list(outputs[bisect.bisect_left(outputs, a) : until])
            rates: dict[int, float] = {}
            for each in infusions:
                if each.start <= a < each.end:
                    rates[each.state] = rates.get(each.state, 0.0) + each.rate
            pieces.append(Piece(a, b, own, rates, changes.get(a, []), changes.get(b, []) if a < b == end else []))
        return pieces

    def times(self, trajectory: str) -> list[float]:
        """When something changes the state of a trajectory, or begins to act on its derivative."""
        return sorted({*self._changes(trajectory), *(each.start for each in self.infusions.get(trajectory, ()))})

    @property
    def infused(self) -> list[int]:
        """The numbers of the states that have infusions."""
        return sorted({each.state for infusions in self.infusions.values() for each in infusions})

    @property
    def any(self) -> bool:
        """Whether something changes a state, or adds to its derivative."""
        return any(self.scheduled.values()) or any(self.infusions.values())

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
    scheduled, infusions = {}, {}
    for name, given in by_name.items():
        several = [] if given is None else [given] if isinstance(given, Scheduled | Infusion) else list(given)
        infusions[name] = [each for each in several if isinstance(each, Infusion)]
        several = [each for each in several if not isinstance(each, Infusion)]
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
    return Inputs(tuple(jumps), scheduled, infusions)


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


class Infused(Model):
    """A model some of whose states are added to at rates that are further parameters, the last ones.

    Args:
        model: the model.
        infused: the numbers of the states.
    """

    def __init__(self, model: Model, infused: Sequence[int]):
        # Of the class in general, these are of this object.
        self.states, self.default_state = model.states, model.default_state  # type: ignore[misc]
        super().__init__()
        own = {name.replace(".", "/"): name for name, _ in model.named_parameters()}  # no attribute has a dot
        for name, parameter in zip(own, model.parameters(), strict=True):
            self.register_parameter(name, parameter)
        rates = {k: _unused(f"infusion_{k}", list(own)) for k in infused}
        for name in rates.values():
            self.register_parameter(name, torch.nn.Parameter(torch.zeros((), dtype=torch.float64)))
        self._own, self._rates = own, rates
        self._model = [model]  # in a list, so that its parameters are not those of this module

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The derivative of the state, with the rates; these are one for each state, or end in a dimension of 1."""
        slope = functional_call(self._model[0], {of: getattr(self, name) for name, of in self._own.items()}, (t, y))
        for k, name in self._rates.items():
            rate = getattr(self, name)
            column = rate[..., None] if rate.ndim == slope.ndim - 1 else rate
            added = torch.nn.functional.one_hot(torch.tensor(k, device=y.device), slope.shape[-1])
            slope = slope + column * added
        return slope


def _unused(name: str, names: Sequence[str]) -> str:
    while name in names:
        name += "_"
    return name
