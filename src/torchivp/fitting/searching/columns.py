"""Optima of the likelihood that explain one column well and the others less.

A likelihood with a size of the noise for each column has a maximum wherever one of them is explained so well that its
size is small, whatever is left of the others. A search that weighs columns by their scatter finds one of these maxima.
So from there each column is believed more than the others for a while.
"""

from __future__ import annotations

import numpy as np

from torchivp.fitting.priors import penalty
from torchivp.fitting.results.residual_checks import look_like_noise
from torchivp.fitting.searching.linear_model import ON_BOUND
from torchivp.fitting.searching.optimise import Likelihood, Search, Weighing

_BELIEVED = 0.05  # the size of the noise of a column that is believed, relative to that at the maximum
_EXACT = 1e-8  # a fraction of the variance of a column that is nothing
_FEW = 8  # residuals with a predecessor in which noise cannot be told from a pattern
_BRIEFLY = 20  # iterations
_WORTH = 3.0  # how much less likely a place may be from which one goes on


def likeliest_by_column(
    search: Search, likelihood: Likelihood, weighing: Weighing, floor: np.ndarray, tolerance: float
) -> Likelihood:
    """A maximum of the likelihood, or a better one from where one of several columns is explained.

    Where the residuals of all columns look like noise, or are nothing, none can be explained better, and nothing is
    searched.

    Args:
        search: which has found the maximum.
        likelihood: the maximum.
        weighing: makes residuals of size one of what a constant leaves.
        floor: the smallest sensible size of the noise of each observable, [n_observed].
        tolerance: as of `maximise_likelihood`.
    """
    levels, found, stage = search.levels, likelihood.minimum.found, "maximum likelihood, column by column"
    if len(levels.groups) < 2 or found is None or not np.isfinite(likelihood.nll):
        return likelihood
    if weighing.mean_squares(found).max() < _EXACT:
        return likelihood
    if look_like_noise(found.measured.tables(levels.standardised(found, likelihood.sizes), search.misfit.data), _FEW):
        return likelihood
    # On a bound steps are short, so that what is there waits.
    held, best = search.misfit.quantities.on_bound(found.theta, ON_BOUND), likelihood
    for group in levels.groups:
        if not group.count:
            continue
        sizes = likelihood.sizes.copy()
        sizes[group.first : group.first + group.count] *= _BELIEVED
        believed = Weighing(levels, sizes)
        way = search.minimise(
            found.theta,
            believed,
            stage,
            tolerance=1e-2,
            max_iterations=_BRIEFLY,
            known=found,
            held=None if held.all() else held,
        )
        if way.found is None or not levels.possible(way.found):
            continue
        there = levels.nll(way.found, levels.estimate(way.found, floor)) + penalty(search.misfit.quantities, way.theta)
        if there > search.cost(best) + _WORTH:  # a maximum that explains this column alone would be near
            continue
        again = search.maximise_likelihood(way.theta, floor, stage, tolerance=tolerance, known=way.found)
        if search.cost(again) < search.cost(best):
            best = again
    return best
