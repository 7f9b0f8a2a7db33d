"""The noise of each observable, and the sizes of it: what is estimated of it, and the likelihood that follows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from torchivp.fitting.data import DataError, Dataset
from torchivp.fitting.measured import Measured
from torchivp.fitting.noise import NoiseModel, find_noise
from torchivp.fitting.noise.model import RELATIVE_FLOOR
from torchivp.fitting.results.uncertainty import Evidence

if TYPE_CHECKING:
    from torchivp.fitting.predictions import Predictions

Noise = str | NoiseModel
Sigma = str | float
MODES = ("separate", "shared")


@dataclass(frozen=True)
class Group:
    """Observables whose noise has the same sizes.

    Attributes:
        label: what tells it apart from others in the names of its sizes: "(hare)", or empty.
        noise: its kind.
        observables: their numbers.
        known: the sizes if they are given, else None.
        first: the place of its first size among all that are estimated.
    """

    label: str
    noise: NoiseModel
    observables: tuple[int, ...]
    known: tuple[float, ...] | None
    first: int

    @property
    def count(self) -> int:
        """How many of its sizes are estimated."""
        return 0 if self.known is not None else len(self.noise.sizes)

    @property
    def names(self) -> list[str]:
        """The names of the sizes that are estimated."""
        return [f"{size}{self.label}" for size in self.noise.sizes[: self.count]]


@dataclass(frozen=True)
class Part:
    """The values of a group: which of all they are, and their numbers."""

    group: Group
    which: NDArray[np.bool_]
    y: NDArray[np.float64]
    censored: NDArray[np.int8]
    sigma: NDArray[np.float64]

    def sizes(self, every: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sizes of each value, [..., n, k], from `every` one that is estimated, [..., n_sizes].

        Where a value has a sigma of its own, it is that.
        """
        group = self.group
        own = np.array(group.known) if group.known is not None else every[..., group.first : group.first + group.count]
        sizes = np.broadcast_to(own[..., None, :], (*every.shape[:-1], len(self.y), len(group.noise.sizes))).copy()
        if len(group.noise.sizes) == 1:
            sizes[..., 0] = np.where(np.isnan(self.sigma), sizes[..., 0], self.sigma)
        return sizes


class Levels:
    """The noise of all observables.

    Args:
        groups: such that each observable is in one.

    Attributes:
        groups: as given.
        names: the names of the sizes that are estimated, in the order in which vectors of `sizes` hold them.
    """

    def __init__(self, groups: Sequence[Group]):
        self.groups = list(groups)
        self.names = [name for group in self.groups for name in group.names]
        by_observable = {k: group for group in self.groups for k in group.observables}
        self.noises = [by_observable[k].noise for k in sorted(by_observable)]
        self._parts: list[tuple[Measured, list[Part]]] = []
        self.of_observable = [self.groups.index(by_observable[k]) for k in sorted(by_observable)]

    def parts(self, measured: Measured) -> list[Part]:
        """The values of each group that has some."""
        for known, parts in self._parts:
            if known is measured:
                return parts
        parts = []
        for group in self.groups:
            which = np.isin(measured.observable, group.observables)
            if which.any():
                parts.append(Part(group, which, measured.y[which], measured.censored[which], measured.sigma[which]))
        self._parts.append((measured, parts))
        return parts

    def rough(self, scale: NDArray[np.float64]) -> Levels:
        """Plain noise, normal or lognormal, of a known size for each observable [n_observed], for first searches."""
        names = ["lognormal" if noise.log else "normal" for noise in self.noises]
        return Levels(
            [Group("", find_noise(n), (k,), (s,), 0) for k, (n, s) in enumerate(zip(names, scale, strict=True))]
        )

    def transform(self, measured: Measured) -> NDArray[np.float64]:
        """The values on the scale of their noise, [n]: logarithms where it is lognormal."""
        return self.transform_like(measured.y, measured)

    def transform_like(self, values: NDArray[np.float64], measured: Measured) -> NDArray[np.float64]:
        """Predictions on the scale of the noise, [n]."""
        out = np.empty(len(values))
        for part in self.parts(measured):
            out[part.which] = part.group.noise.transform(values[part.which])
        return out

    def possible(self, found: Predictions) -> bool:
        """Whether there can be data with such predictions."""
        return all(part.group.noise.possible(found.values[part.which]).all() for part in self.parts(found.measured))

    def least_squares(
        self, found: Predictions, sizes: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Numbers, half of whose squares sum to the negative log-likelihood but for a constant at given sizes.

        Returns:
            They, [m, n] for n values, and their derivatives by the predictions, likewise.
        """
        pieces = [
            (
                part.which,
                *part.group.noise.residuals(part.y, found.values[part.which], part.sizes(sizes), part.censored),
            )
            for part in self.parts(found.measured)
        ]
        m = max(values.shape[1] for _, values, _ in pieces)
        every, slopes = np.zeros((m, len(found.values))), np.zeros((m, len(found.values)))
        for which, values, changes in pieces:
            every[: values.shape[1], which], slopes[: values.shape[1], which] = values.T, changes.T
        return every, slopes

    def residual_jacobian(self, found: Predictions, sizes: NDArray[np.float64]) -> NDArray[np.float64]:
        """The derivatives of the numbers of `least_squares` by theta, [m, n, n_free]."""
        return self.least_squares(found, sizes)[1][..., None] * found.jacobian

    def _each(self, found: Predictions, function: Callable[[Part, NDArray], NDArray]) -> NDArray[np.float64]:
        """A number for each value, from the part that it is in and its prediction."""
        out = np.empty(len(found.values))
        for part in self.parts(found.measured):
            out[part.which] = function(part, found.values[part.which])
        return out

    def nll(self, found: Predictions, sizes: NDArray[np.float64]) -> float:
        """Minus the logarithm of the density of the data."""
        return float(self.each_nll(found, sizes).sum())

    def each_nll(self, found: Predictions, sizes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Minus the logarithm of the density of each value, [n]."""
        return self._each(found, lambda part, h: part.group.noise.nll(part.y, h, part.sizes(sizes), part.censored))

    def nll_at(
        self, measured: Measured, values: NDArray[np.float64], sizes: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Minus the logarithm of the density of the data at many predictions [m, n] and sizes [m, n_sizes], [m].

        Infinite where there can be no data with such predictions.
        """
        total = np.zeros(len(values))
        for part in self.parts(measured):
            noise, h, every = part.group.noise, values[:, part.which].ravel(), part.sizes(sizes)
            y, censored = np.tile(part.y, len(values)), np.tile(part.censored, len(values))
            with np.errstate(all="ignore"):  # far from the data
                each = noise.nll(y, h, every.reshape(len(h), every.shape[-1]), censored)
            total += np.where(noise.possible(h), each, np.inf).reshape(len(values), -1).sum(1)
        return total

    def standardised(self, found: Predictions, sizes: NDArray[np.float64]) -> NDArray[np.float64]:
        """The residuals, standard normal if the model is right, [n]; NaN for values that are censored."""
        return self._each(
            found, lambda part, h: part.group.noise.standardised(part.y, h, part.sizes(sizes), part.censored)
        )

    def information(self, found: Predictions, sizes: NDArray[np.float64]) -> list[tuple[Part, NDArray[np.float64]]]:
        """The Fisher information of each value about its prediction and the log sizes, [n, 1 + k, 1 + k] by group."""
        return [
            (
                part,
                part.group.noise.information(found.values[part.which], part.sizes(sizes), part.censored, part.y),
            )
            for part in self.parts(found.measured)
        ]

    def weights(self, found: Predictions, sizes: NDArray[np.float64]) -> NDArray[np.float64]:
        """By how many standard deviations of the noise a prediction changes when it changes by one, [n]."""
        out = np.empty(len(found.values))
        for part, information in self.information(found, sizes):
            out[part.which] = np.sqrt(information[:, 0, 0])
        return out

    def distances(self, found: Predictions, other: Predictions, sizes: NDArray[np.float64]) -> NDArray[np.float64]:
        """How far other predictions are from those found, in standard deviations of the noise, [n]."""
        return np.abs(other.values - found.values) * self.weights(found, sizes)

    def evidence(self, found: Predictions, sizes: NDArray[np.float64]) -> list[Evidence]:
        """What each group of values says about theta, with the sizes of its noise estimated too."""
        evidence = []
        for part, of_each in self.information(found, sizes):
            jacobian = found.jacobian[part.which]
            rows = np.sqrt(of_each[:, 0, 0])[:, None] * jacobian
            if part.group.count and np.any(of_each[:, 0, 1:]):
                rows = _without_sizes(of_each, jacobian)
            evidence.append(Evidence(rows, len(jacobian), part.group.count > 0))
        return evidence

    def estimate(self, found: Predictions, floor: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sizes that make the data most likely, none below the `floor` of its observable, [n_observed]."""
        sizes = np.ones(len(self.names))
        for part in self.parts(found.measured):
            group, unknown = part.group, np.isnan(part.sigma)
            if group.count and unknown.any():
                least = max(floor[k] for k in group.observables)
                h = found.values[part.which][unknown]
                estimated = group.noise.estimate(part.y[unknown], h, part.censored[unknown], least)
                sizes[group.first : group.first + group.count] = estimated
        return sizes

    def doubts(self, found: Predictions | None, names: Sequence[str]) -> list[str]:
        """What is wrong with the noise of observables at a maximum of the likelihood, in words; empty if nothing is."""
        return []

    def at(self, found: Predictions) -> Levels:
        """The levels of a result, whose predictions are these."""
        return self

    def at_floor(self, sizes: NDArray[np.float64], floor: NDArray[np.float64]) -> bool:
        """Whether the noise of a group is as small as the error of the solver, all of it, and so means nothing."""
        least = sizes <= self.floors(floor)
        return any(
            group.count
            and least[group.first : group.first + group.count].all()
            and "dispersion" not in group.noise.sizes
            for group in self.groups
        )

    def floors(self, floor: NDArray[np.float64]) -> NDArray[np.float64]:
        """The smallest values that the estimated sizes take, [n_sizes], for the `floor` of each observable."""
        return np.array(
            [
                RELATIVE_FLOOR if size in ("relative", "dispersion") else max(floor[k] for k in group.observables)
                for group in self.groups
                for size in group.noise.sizes[: group.count]
            ]
        )

    def per_observable(self, sizes: NDArray[np.float64]) -> NDArray[np.float64]:
        """The first size of the noise of each observable, [n_observed]; NaN where there is none."""
        out = np.full(len(self.noises), np.nan)
        for group in self.groups:
            own = group.known if group.known is not None else sizes[group.first : group.first + group.count].tolist()
            out[list(group.observables)] = own[0] if len(own) else np.nan
        return out


def _without_sizes(information: NDArray[np.float64], jacobian: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows whose cross product is the information about theta that is left when the sizes are estimated too."""
    values, vectors = np.linalg.eigh(information)
    roots = np.sqrt(np.maximum(values, 0.0))[:, :, None] * np.swapaxes(vectors, 1, 2)  # [n, 1 + k, 1 + k]
    of_theta = (roots[:, :, :1] * jacobian[:, None]).reshape(-1, jacobian.shape[1])
    of_sizes, _ = np.linalg.qr(roots[:, :, 1:].reshape(len(of_theta), -1))
    return of_theta - of_sizes @ (of_sizes.T @ of_theta)


def read_levels(
    data: Dataset, noise: Noise | Mapping[str, Noise], sigma: Sigma | Mapping[str, Sigma], measured: Measured
) -> Levels:
    """The noise as the arguments of `fit` describe it.

    Raises:
        ValueError: an argument makes no sense.
        DataError: a value cannot have such noise.
    """
    noises = [find_noise(each) for each in _by_observable(data, noise, "noise", "normal")]
    modes = _by_observable(data, sigma, "sigma", "separate")
    shared = [k for k, mode in enumerate(modes) if mode == "shared"]
    if len({noises[k] for k in shared}) > 1:
        kinds = ", ".join(dict.fromkeys(noises[k].name for k in shared))
        raise ValueError(f"observables whose sigma is shared have noise of one kind, not {kinds}: sigma='separate'")
    groups, first = [], 0
    for k, (name, kind, mode) in enumerate(zip(data.observables, noises, modes, strict=True)):
        if mode == "shared" and k != shared[0]:
            continue
        own = tuple(shared) if mode == "shared" else (k,)
        label = f"({', '.join(data.observables[k] for k in own)})"
        known = None if isinstance(mode, str) else _known(name, kind, mode)
        if known is None and _all_given(measured, own):
            known = (math.nan,) * len(kind.sizes)  # each value has its own
        group = Group(label, kind, own, known, first)
        groups.append(group)
        first += group.count
    levels = Levels(groups)
    _check_values(levels, data, measured)
    return levels


def _by_observable(data: Dataset, given: Any, argument: str, default: Any) -> list[Any]:
    """What an argument says of each observable: it is one for all, or a dict."""
    if not isinstance(given, Mapping):
        each = [given] * len(data.observables)
    else:
        for name in given:
            if name not in data.observables:
                raise ValueError(f"{argument} names {name!r}, but the observables are {', '.join(data.observables)}")
        each = [given.get(name, default) for name in data.observables]
    if argument == "sigma":
        for one in each:
            if one not in MODES and not (isinstance(one, Real) and math.isfinite(one) and float(one) > 0):
                raise ValueError(f"sigma must be one of {MODES} or a positive number, got {one!r}")
    return each


def _known(name: str, kind: NoiseModel, value: float) -> tuple[float, ...]:
    if len(kind.sizes) != 1:
        raise ValueError(
            f"sigma gives {name} one number, and {kind.name} noise has {len(kind.sizes) or 'no'} sizes: leave it out"
        )
    return (float(value),)


def _all_given(measured: Measured, observables: Sequence[int]) -> bool:
    own = np.isin(measured.observable, observables)
    return bool(own.any()) and not np.isnan(measured.sigma[own]).any()


def _check_values(levels: Levels, data: Dataset, measured: Measured) -> None:
    for part in levels.parts(measured):
        noise = part.group.noise
        if len(noise.sizes) != 1 and not np.isnan(part.sigma).all():
            raise ValueError(
                f"sigmas are given for values with {noise.name} noise, which has no such size: noise='normal'"
            )
        refused = noise.refusal(part.y, part.censored)
        if refused is not None:
            place = np.flatnonzero(part.which)[refused[0]]
            series = data.trajectories[measured.trajectory[place]]
            column, row = data.observables[measured.observable[place]], series.rows[measured.row[place]]
            hint = "use noise='normal', or leave the value out" if noise.log else "use another noise, or leave it out"
            value = f"{measured.y[place]:g}"
            raise DataError(f"column {column!r} holds {value} in {row}, which {refused[1]}: {hint}")
