"""The density of what a fit estimates given the data, at many points by one solve."""

from __future__ import annotations

import copy

import numpy as np
from numpy.typing import NDArray

from torchivp.fitting.levels import Levels
from torchivp.fitting.misfit import Misfit


class LogPosterior:
    """The logarithm of the density a posteriori, up to a constant.

    A point holds the free quantities on their scales of estimation, then the logarithms of the sizes of the noise that
    are estimated. The density is one in these coordinates. A quantity with a prior has the density of the prior, a
    density of its value; one without, and each size, is flat in its coordinate between its bounds. A size is at least
    what the fit takes for the smallest that makes sense.

    Args:
        misfit: model and data.
        levels: the noise.
        floor: the smallest sensible size of the noise of each observable, [n_observed].

    Attributes:
        names: of the coordinates.
        lower: their bounds, [n].
        upper: likewise.
    """

    def __init__(self, misfit: Misfit, levels: Levels, floor: NDArray[np.float64]):
        self.misfit, self.levels = copy.copy(misfit), levels
        self.quantities = misfit.quantities
        self.names = [*(quantity.name for quantity in self.quantities.free), *levels.names]
        smallest = levels.floors(floor).tolist()
        self.lower = np.concatenate([self.quantities.lower, np.log(smallest)])
        self.upper = np.concatenate([self.quantities.upper, np.full(len(smallest), np.inf)])
        self._priors = [(j, each.prior) for j, each in enumerate(self.quantities.free) if each.prior is not None]

    def __call__(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """The log density and the negative log-likelihood at each of the points [m, n]: two columns, [m, 2].

        The first is minus infinity, and the second infinite, out of bounds, where a constraint does not hold, and where
        the model cannot be solved.
        """
        found = np.tile([-np.inf, np.inf], (len(points), 1))
        prior = self.log_prior(points)
        inside = np.flatnonzero(np.isfinite(prior))
        if not len(inside):
            return found
        count = len(self.quantities.free)
        with np.errstate(all="ignore"):  # far from the optimum
            every = self.misfit.predictions_at(points[inside, :count], derivatives=False)
            solved = [(i, predictions) for i, predictions in zip(inside, every, strict=True) if predictions is not None]
            if not solved:
                return found
            at = np.array([i for i, _ in solved])
            values = np.stack([predictions.values for _, predictions in solved])
            nll = self.levels.nll_at(solved[0][1].measured, values, np.exp(points[at, count:]))
        known = np.isfinite(nll)
        found[at[known]] = np.stack([prior[at] - nll, nll], axis=1)[known]
        return found

    def log_prior(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """The logarithm of the density before the data at points [m, n], [m]: minus infinity out of bounds."""
        inside = ((points >= self.lower) & (points <= self.upper)).all(1)
        density = np.where(inside, 0.0, -np.inf)
        theta = points[:, : len(self.quantities.free)]
        if self._priors:
            values, slopes = self.quantities.free_values(theta), self.quantities.slopes(theta)
            with np.errstate(all="ignore"):  # out of bounds
                for j, prior in self._priors:  # the density of a value, times how fast it changes with the coordinate
                    density += prior.log_densities(values[:, j]) + np.log(np.abs(slopes[:, j]))
        return np.where(np.isfinite(density), density, -np.inf)

    def values(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """The values of quantities and sizes, [..., n], at points [..., n]."""
        count = len(self.quantities.free)
        return np.concatenate([self.quantities.free_values(points[..., :count]), np.exp(points[..., count:])], -1)
