"""The curves of a fit: states and observables at any time, with their bands."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from torchivp.fitting.data import Dataset
from torchivp.fitting.levels import Levels
from torchivp.fitting.misfit import Misfit
from torchivp.fitting.predictions import Path as ModelPath
from torchivp.fitting.random_effects.estimates import RandomEffects
from torchivp.fitting.results.uncertainty import Uncertainty
from torchivp.fitting.searching.optimise import Search
from torchivp.models.model import Model

_ROUNDING = 1e-9

Band = tuple[NDArray[np.float64], NDArray[np.float64]]


class FitCurves:
    """What a fit predicts. Attributes are those of `FitResult`."""

    model: Model
    data: Dataset
    levels: Levels
    sizes: NDArray[np.float64]
    theta: NDArray[np.float64]
    uncertainty: Uncertainty
    random: RandomEffects | None
    search: Search

    @property
    def misfit(self) -> Misfit:
        """Model and data."""
        return self.search.misfit

    @property
    def sigma(self) -> NDArray[np.float64]:
        """The first size of the noise of each observable, [n_observed]: mostly its standard deviation.

        NaN where there is none, or where each value has its own.
        """
        return self.levels.per_observable(self.sizes)

    def predict(self, t: ArrayLike, trajectory: int | str = 0, population: bool = False) -> NDArray[np.float64]:
        """The states of the fitted model; of a stochastic model, their expectations given the data up to each time.

        Args:
            t: times in any order, [T], none before the first data time of the trajectory.
            trajectory: the number or the name of the trajectory.
            population: of a fit with random effects, whether to predict a trajectory with the values of the population
                instead of its own: the typical one with its conditions and doses.

        Returns:
            The states, [T, n_states].

        Raises:
            ValueError: a time lies before the first data time, there is no such trajectory, or there are no random
                effects.
            SolveError: the model cannot be solved up to the last of the times.
        """
        path, position = self._path(t, self._trajectory(trajectory), derivatives=False, population=population)
        return path.states[position]

    def observe(self, t: ArrayLike, trajectory: int | str = 0, population: bool = False) -> NDArray[np.float64]:
        """The observables of the fitted model, without noise, [T, n_observed]; else as `predict`."""
        path, position = self._path(t, self._trajectory(trajectory), derivatives=False, population=population)
        return path.observables[position]

    def band(self, t: ArrayLike, trajectory: int | str = 0) -> Band:
        """The pointwise 95 % confidence band of the states: where the curves lie.

        By the delta method, for positive states on the log scale. That of a stochastic model holds the state itself,
        which is not a curve known but for parameters. Arguments and errors as of `predict`.

        Returns:
            Its lower and upper edge, each [T, n_states]; infinitely wide where the data do not determine the curve.
        """
        trajectory = self._trajectory(trajectory)
        path, position = self._path(t, trajectory)
        log = np.array([self._is_log(state) for state in self.model.states])
        known = None if path.spread is None else path.spread.states[position]
        states = path.states[position]
        return _edges(states, self._reach(trajectory, path.state_slopes[position], states, known), log)

    def observable_band(self, t: ArrayLike, trajectory: int | str = 0) -> Band:
        """The pointwise 95 % confidence band of the observables, each [T, n_observed]; else as `band`."""
        trajectory = self._trajectory(trajectory)
        path, position = self._path(t, trajectory)
        known = None if path.spread is None else path.spread.observables[position]
        h = path.observables[position]
        return _edges(h, self._reach(trajectory, path.observable_slopes[position], h, known), self._log_observables())

    def prediction_band(self, t: ArrayLike, trajectory: int | str = 0) -> Band:
        """The pointwise 95 % prediction band: where new observations fall, each [T, n_observed].

        The band of the curve and the noise together; NaN for observables whose values have standard deviations of their
        own, since that of a new one is not known. Arguments and errors as of `band`.
        """
        trajectory = self._trajectory(trajectory)
        path, position = self._path(t, trajectory)
        h, slopes = path.observables[position], path.observable_slopes[position]
        if path.spread is not None:
            variances = path.spread.observables[position] + np.nan_to_num(path.spread.measurements)
            return _edges(h, self._reach(trajectory, slopes, h, variances), self._log_observables())
        log = np.array([noise.log for noise in self.levels.noises])
        uncertainty = self.uncertainty.of(trajectory)
        lower, upper = _edges(h, uncertainty.reach(slopes), self._log_observables())
        number = {k: i for i, k in enumerate(self._groups_with_data())}
        for k, group in enumerate(self.levels.of_observable):
            noise, known = self.levels.noises[k], self.levels.groups[group].known
            if noise.regression and known is None and uncertainty.known:
                # The noise is estimated, so that its share of the width has the same Student's distribution.
                added = np.zeros((len(h), len(uncertainty.counts)))
                added[:, number[group]] = (self.sigma[k] * (h[:, k] if noise.log else 1.0)) ** 2
                reach = uncertainty.reach(slopes[:, k], added)
                lower[:, k], upper[:, k] = _edges(h[:, k], reach, log[k])
            else:
                sizes = self._sizes_of(group, len(h))
                for edge, level, sign in ((lower, 0.025, -1), (upper, 0.975, 1)):
                    gap = np.hypot(edge[:, k] - h[:, k], noise.quantiles(h[:, k], sizes, level) - h[:, k])
                    edge[:, k] = h[:, k] + sign * gap
        return lower, upper

    def _reach(
        self,
        trajectory: int,
        slopes: NDArray[np.float64],
        values: NDArray[np.float64],
        variances: NDArray[np.float64] | None,
    ) -> NDArray[np.float64]:
        """Half the width of 95 % intervals of values with these slopes by theta, and variances besides."""
        if variances is None:
            return self.uncertainty.of(trajectory).reach(slopes)
        # Where a datum says all, a slope is made of rounding.
        little = np.abs(slopes) * self.uncertainty.magnitudes < _ROUNDING * np.abs(values).max(0)[:, None]
        slopes = np.where(little, 0.0, slopes)
        return self.uncertainty.reach(slopes, variances[..., None] * np.eye(len(self.uncertainty.counts))[0])

    def _groups_with_data(self) -> list[int]:
        return [self.levels.groups.index(part.group) for part in self.levels.parts(self.misfit.measured())]

    def _sizes_of(self, group: int, count: int) -> NDArray[np.float64]:
        one = self.levels.groups[group]
        own = one.known if one.known is not None else self.sizes[one.first : one.first + one.count]
        return np.broadcast_to(np.asarray(own, dtype=np.float64), (count, len(own)))

    def _trajectory(self, trajectory: int | str) -> int:
        names = [series.name for series in self.data.trajectories]
        if isinstance(trajectory, str):
            if trajectory not in names:
                raise ValueError(
                    f"there is no trajectory {trajectory!r}, but {', '.join(names) or 'one without a name'}"
                )
            return names.index(trajectory)
        if not 0 <= trajectory < len(names):
            raise ValueError(f"there is no trajectory {trajectory}: they are numbered from 0 to {len(names) - 1}")
        return trajectory

    def _times(self, t: ArrayLike, trajectory: int) -> tuple[list[float], NDArray[np.intp]]:
        """The times in order, each once, and where each of the given ones stands among them."""
        first = self.data.trajectories[trajectory].t[0]
        times, position = np.unique(np.atleast_1d(np.asarray(t, dtype=np.float64)), return_inverse=True)
        if not (len(times) and np.isfinite(times).all()):
            raise ValueError("t must hold times, one or more, that are finite numbers")
        if times[0] < first:
            raise ValueError(f"cannot predict at {times[0]:g}, before the first data time {first:g}")
        return times.tolist(), position

    def _path(
        self, t: ArrayLike, trajectory: int, derivatives: bool = True, population: bool = False
    ) -> tuple[ModelPath, NDArray[np.intp]]:
        """The path of a trajectory at the times in order, and where each of the given ones stands among them."""
        times, position = self._times(t, trajectory)
        if population and self.random is None:
            raise ValueError(
                "population=True is for fits with random effects, fit(..., random={name: 'lognormal'}); this one has "
                "none: leave it out"
            )
        misfit = self.misfit.shifted(None) if population else self.misfit
        return misfit.path(self.theta, trajectory, times, derivatives and self.uncertainty.known), position

    def _is_log(self, state: str) -> bool:
        observed = [noise for of, noise in zip(self.data.states, self.levels.noises, strict=True) if of == state]
        return self.model.is_positive(state) or any(noise.log for noise in observed)

    def _log_observables(self) -> NDArray[np.bool_]:
        """Which observables have bands on the log scale, [n_observed]."""
        each = zip(self.data.states, self.levels.noises, strict=True)
        return np.array([noise.log or (state is not None and self._is_log(state)) for state, noise in each])


def _edges(states: NDArray[np.float64], reach: NDArray[np.float64], log: NDArray[np.bool_] | np.bool_) -> Band:
    """The edges of bands that reach as far to both sides, on the log scale for the states where `log`."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        factor = np.exp(np.where(log, reach / np.abs(states), 0.0))
        return np.where(log, states / factor, states - reach), np.where(log, states * factor, states + reach)
