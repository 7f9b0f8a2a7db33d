"""How exactly a stochastic model is observed: the standard deviations of the measurements."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchivp.fitting.data import DataError, Dataset
from torchivp.fitting.levels import MODES, Group
from torchivp.fitting.measured import Measured, measurements
from torchivp.fitting.noise import find_noise
from torchivp.fitting.quantities import Quantities, Quantity
from torchivp.fitting.solving.stretches import Accuracy
from torchivp.fitting.stochastic.innovations import InnovationLevels
from torchivp.models.stochastic_model import StochasticModel

_PART = 0.5  # of the change from one datum to the next: what a measurement may be wrong by, to begin with
_FINE = 1e-3  # of the square of that change: the size of a covariance that matters


@dataclass(frozen=True)
class Deviations:
    """The standard deviations of the measurements of each observable.

    Attributes:
        columns: the local that each is, or else its number, [n_observed].
    """

    columns: list[int | float]

    def variances(self, k: int, given: NDArray[np.float64], own: Tensor, moved: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The variances of measurements of an observable.

        Args:
            k: the observable.
            given: the standard deviations that stand in the data, NaN for none, [rows].
            own: the locals, [rows, n_locals].
            moved: the number of the local that each direction moves.

        Returns:
            They, [rows], and their tangents, [rows, n_directions].
        """
        column = self.columns[k]
        known = torch.from_numpy(given)
        sigma = own[:, column] if isinstance(column, int) else torch.full_like(known, column)
        moves = torch.tensor([1.0 if isinstance(column, int) and local == column else 0.0 for local in moved])
        slopes = torch.where(known.isnan(), 2 * sigma, 0.0)[:, None] * moves.to(own.dtype)
        return torch.where(known.isnan(), sigma, known) ** 2, slopes


@dataclass(frozen=True)
class Start:
    """A value that a trajectory starts from.

    Attributes:
        trajectory: the number of the trajectory.
        observable: that of the column.
        state: that of the state.
        row: that of the row of the trajectory.
    """

    trajectory: int
    observable: int
    state: int
    row: int


@dataclass(frozen=True)
class Measurement:
    """The data of a stochastic model, and how exact they are.

    A state that is observed at the beginning, and of whose beginning nothing is said, starts from what is then known
    of it: its first value, as exactly as that is measured. This is the limit of little knowledge before the data:
    J. Durbin and S. J. Koopman, "Time Series Analysis by State Space Methods", 2nd edition, Oxford (2012), chapter 5.
    (If it were estimated, it would meet that value exactly, and the likelihood would grow without bound as the standard
    deviation of the measurement goes to zero.)

    Attributes:
        data: with the values that trajectories start from among their known constants.
        of: of each observable, the name of the standard deviation that is estimated, or a number; NaN where each value
            has its own.
        quantities: the standard deviations that are estimated.
        starts: the values that trajectories start from.
    """

    data: Dataset
    of: list[str | float]
    quantities: list[Quantity]
    starts: list[Start]

    def levels(self) -> InnovationLevels:
        """The likelihood."""
        kind = find_noise("normal")
        return InnovationLevels([Group("", kind, (k,), (np.nan,), 0) for k in range(len(self.of))])

    def read(self, quantities: Quantities) -> Deviations:
        """The places of the standard deviations among the locals."""
        return Deviations([quantities.names.index(each) if isinstance(each, str) else each for each in self.of])

    def deviations(self, own: Tensor, quantities: Quantities) -> NDArray[np.float64]:
        """The standard deviation of each observable where the locals are `own`, [n_observed]."""
        columns = self.read(quantities).columns
        return np.array([float(own[each]) if isinstance(each, int) else each for each in columns])

    def typical(self, deviations: NDArray[np.float64]) -> NDArray[np.float64]:
        """The deviations, where each datum has its own their root mean square, [n_observed]."""
        every = measurements(self.data)
        own = [
            np.sqrt(np.nanmean(every.sigma[every.of(k)] ** 2)) if np.isnan(deviations[k]) else deviations[k]
            for k in range(len(deviations))
        ]
        return np.array(own)

    def without_starts(self, measured: Measured) -> Measured:
        """The data but for the values that trajectories start from."""
        used = {(each.trajectory, each.observable, each.row) for each in self.starts}
        every = zip(measured.trajectory.tolist(), measured.observable.tolist(), measured.row.tolist(), strict=True)
        kept = np.array([each not in used for each in every])
        parts = ("y", "observable", "trajectory", "place", "row", "censored", "sigma")
        return replace(measured, **{name: getattr(measured, name)[kept] for name in parts})

    def covariance_sizes(self, accuracy: Accuracy, states: Sequence[str]) -> NDArray[np.float64]:
        """How large deviations of each state are, in the units in which its tolerance is a fraction of it, [n_states].

        A tolerance times this is one of the square of the state: that of a variance.
        """
        atol = np.broadcast_to(np.asarray(accuracy.atol, dtype=np.float64), (len(states),))
        ratios = [
            _change(self.data, k) / atol[states.index(state)]
            for k, state in enumerate(self.data.states)
            if state is not None and atol[states.index(state)] > 0
        ]
        return _FINE * atol * min(ratios, default=0.1 / accuracy.rtol)


def read_measurement(
    model: StochasticModel, data: Dataset, noise: Any, sigma: Any, named: Iterable[str]
) -> Measurement:
    """What the arguments of `fit` say of the measurements of a stochastic model.

    Args:
        model: the model.
        data: the data.
        noise: as given.
        sigma: as given, without columns of standard deviations.
        named: the names of states, or of their initial values, of which other arguments say something.

    Raises:
        ValueError: an argument makes no sense for a stochastic model; the message says what does.
        DataError: data cannot be used.
    """
    _check_noise(model, data, noise)
    modes = _modes(data, sigma)
    shared = [k for k, mode in enumerate(modes) if mode == "shared"]
    every = measurements(data)
    of: list[str | float] = []
    quantities: dict[str, Quantity] = {}
    for k, mode in enumerate(modes):
        own = shared if mode == "shared" else [k]
        given = np.isin(every.observable, own)
        if not isinstance(mode, str):
            of.append(float(mode))
        elif given.any() and not np.isnan(every.sigma[given]).any():
            of.append(np.nan)
        else:
            quantity = _quantity(data, own)
            of.append(quantity.name)
            quantities[quantity.name] = quantity
    exact = [k for k, each in enumerate(of) if each == 0.0]
    _check_exact(data, exact, every)
    starts, states, trajectories = _starts(model, data, named), list(model.states), list(data.trajectories)
    for each in starts:
        series = trajectories[each.trajectory]
        value = float(series.values[each.row, each.observable])
        constants = {**series.constants, states[each.state]: value}
        trajectories[each.trajectory] = replace(series, constants=constants)
    return Measurement(replace(data, trajectories=trajectories), of, list(quantities.values()), starts)


def _check_noise(model: StochasticModel, data: Dataset, noise: Any) -> None:
    kinds = list(noise.values()) if isinstance(noise, Mapping) else [noise]
    for kind in kinds:
        if find_noise(kind).name != "normal":
            raise ValueError(
                f"{type(model).__name__} is a stochastic model, whose measurements have normal noise, got noise="
                f"{find_noise(kind).name!r}: leave noise out; if the noise is lognormal, fit the logarithms of the "
                "data, observe={'log_x': 'log(x)'}"
            )
    for series in data.trajectories:
        if series.censored is not None and series.censored.any():
            raise DataError(
                "limits of detection are no values that the filter of a stochastic model can be corrected by: leave "
                "censored out, and the values too"
            )


def _modes(data: Dataset, sigma: Any) -> list[str | float]:
    """What `sigma` says of each observable."""
    if isinstance(sigma, Mapping):
        for name in sigma:
            if name not in data.observables:
                raise ValueError(f"sigma names {name!r}, but the observables are {', '.join(data.observables)}")
        modes = [sigma.get(name, "separate") for name in data.observables]
    else:
        modes = [sigma] * len(data.observables)
    for mode in modes:
        if mode not in MODES and not (isinstance(mode, Real) and np.isfinite(float(mode)) and float(mode) >= 0):
            raise ValueError(
                f"sigma must be one of {MODES}, a positive number, or 0 for a state that is observed exactly, got "
                f"{mode!r}"
            )
    return modes


def _quantity(data: Dataset, observables: Sequence[int]) -> Quantity:
    """The standard deviation that observables have in common."""
    label = ", ".join(data.observables[k] for k in observables)
    changes = [_change(data, k) for k in observables]
    return Quantity(
        name=f"sigma({label})",
        kind="sigma",
        key=f"sigma({label})",
        trajectories=None,
        value=_PART * float(np.sqrt(np.mean(np.square(changes)))),
        free=True,
        scale="log",
        magnitude=1.0,
        unit="",
        description="standard deviation of the measurement",
    )


def _change(data: Dataset, k: int) -> float:
    """The root mean square of the change of an observable from one datum to the next."""
    columns = [series.values[:, k] for series in data.trajectories]
    changes = np.concatenate([np.diff(column[np.isfinite(column)]) for column in columns])
    found = float(np.sqrt(np.mean(changes**2))) if len(changes) else 0.0
    return found or float(np.abs(data.column(k)).max(initial=0.0)) or 1.0


def _check_exact(data: Dataset, exact: Sequence[int], measured: Measured) -> None:
    """Refuse sigma=0 for what is no state, or what is observed twice at a time."""
    seen: dict[str, str] = {}
    for k in exact:
        name, state = data.observables[k], data.states[k]
        if state is None:
            raise ValueError(
                f"sigma says that {name} is measured exactly, which only a state can be: give it a positive sigma, or "
                "make what it observes a state of the model"
            )
        if state in seen:
            raise ValueError(f"sigma says that {seen[state]} and {name} both are exactly {state}: leave one out")
        seen[state] = name
        own = measured.observable == k
        pairs = np.stack([measured.trajectory[own], measured.place[own]], 1)
        if len(np.unique(pairs, axis=0)) < len(pairs):
            raise DataError(
                f"column {name!r} holds two values at one time, and sigma says that both are exact: give it a positive "
                "sigma"
            )


def _starts(model: StochasticModel, data: Dataset, named: Iterable[str]) -> list[Start]:
    """The values in the data that trajectories start from: of each state that nothing else is said of, the first."""
    said, states = list(named), list(model.states)
    known = model.initial_covariance().diagonal() > 0
    starts: dict[tuple[int, str], Start] = {}
    for i, series in enumerate(data.trajectories):
        for k, state in enumerate(data.states):
            if state is None or state in series.constants or (i, state) in starts or bool(known[states.index(state)]):
                continue
            rows = np.flatnonzero((series.t == series.t[0]) & np.isfinite(series.values[:, k]))
            if len(rows) and not any(name == state or name.startswith(f"{state}(") for name in said):
                starts[i, state] = Start(i, k, states.index(state), int(rows[0]))
    return list(starts.values())
