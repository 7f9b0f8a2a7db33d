"""Do the residuals of a fit look like noise? Three tests, what they found in words, and the verdict on the fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import special

if TYPE_CHECKING:
    from torchivp.fitting import FitResult

FEWEST = 8
"""With fewer residuals of an observable than this, no test could tell anything."""

LEVEL = 0.01
"""The chance that a test of size and shape objects to residuals that are noise."""

_MOST_OF_SHAPIRO = 5000  # with more values than this its p-value is not known


class Verdict(NamedTuple):
    """What to think of a fit.

    Attributes:
        sentence: one sentence for the reader.
        good: whether the fit converged and its residuals look like noise.
        findings: what is wrong with the residuals, a sentence each; empty if nothing is, or if they were not tested.
    """

    sentence: str
    good: bool
    findings: list[str]


def judge(result: FitResult) -> Verdict:
    """Did the fit converge, and do its residuals look like noise?

    For each observable with enough data: is a residual like the one before (lag-1 autocorrelation above 1.96/√n), is
    the size the one that sigma says (chi-squared test), is the distribution normal (Shapiro-Wilk test, or for many
    values the one of D'Agostino and Pearson)? Residuals that alternate are no finding: to follow the data makes them
    so.
    """
    if not result.converged:
        return Verdict("The fit did not converge, so its estimates are not to be relied on.", False, [])
    residuals = [result.residuals(trajectory) for trajectory in range(len(result.data.trajectories))]
    findings = []
    spent = 0.0 if result.random is None else result.random.freedom / result.n_data
    for column, name in enumerate(result.data.observables):
        findings += _check_observable(name, [series[:, column] for series in residuals], spent)
    if findings:
        return Verdict("The fit converged, but its residuals are not plain noise.", False, findings)
    every = np.concatenate([series[np.isfinite(series)] for series in residuals])
    within = int((np.abs(every) <= 1.96).sum())
    if len(every) < FEWEST:
        few = f"The fit converged, and {len(every)} measurements are too few to judge it by its residuals."
        return Verdict(few, True, [])
    return Verdict(
        f"The fit converged, and its residuals look like noise: {within} of {len(every)} lie within ±1.96, where 95 % "
        "belong, and no test found a pattern in them.",
        True,
        [],
    )


def _check_observable(name: str, series: list[np.ndarray], spent: float = 0.0) -> list[str]:
    """What is wrong with the standardised residuals of an observable, an array for each trajectory.

    Args:
        name: of the observable.
        series: the residuals.
        spent: the fraction of the values that random effects use up: curves with their own values follow the data.
    """
    residuals = np.concatenate([values[np.isfinite(values)] for values in series])
    if len(residuals) < FEWEST:
        return []
    return _pattern_in_time(name, series) + _size(name, residuals, spent) + _shape(name, residuals)


def _pattern_in_time(name: str, series: list[np.ndarray]) -> list[str]:
    """Is a residual like its predecessor in the same trajectory?"""
    found, pairs = autocorrelation(series)
    if pairs < FEWEST or found <= 1.96 / np.sqrt(pairs):
        return []
    return [
        f"the residuals of {name} resemble the ones before them (lag-1 autocorrelation {found:.2f}), so that "
        "the standard errors are too small"
    ]


def autocorrelation(series: list[np.ndarray]) -> tuple[float, int]:
    """How much a residual is like its predecessor in the same trajectory, and how many have one.

    Args:
        series: the residuals of an observable, an array for each trajectory, NaN where data are missing.

    Returns:
        The lag-1 autocorrelation, for residuals whose mean is zero, and the number of pairs.
    """
    products = np.concatenate([values[1:] * values[:-1] for values in series])
    products = products[np.isfinite(products)]
    squares = np.concatenate([values[np.isfinite(values)] ** 2 for values in series])
    if not products.size or not squares.any():
        return 0.0, len(products)
    return float(products.mean() / squares.mean()), len(products)


def look_like_noise(tables: list[np.ndarray], fewest: int) -> bool:
    """Whether in every column at least so many residuals have a predecessor, and they know nothing of it.

    Args:
        tables: residuals [T, n_columns] of each trajectory, NaN where data are missing.
        fewest: the number.
    """
    alike = [autocorrelation([table[:, k] for table in tables]) for k in range(tables[0].shape[1])]
    return all(pairs >= fewest and abs(r) <= 1.96 / np.sqrt(pairs) for r, pairs in alike)


def _size(name: str, residuals: np.ndarray, spent: float) -> list[str]:
    """Is the scatter the one that sigma says? It always is where sigma was estimated."""
    below = special.chdtr(len(residuals) * (1 - spent), (residuals**2).sum())
    if LEVEL / 2 <= below <= 1 - LEVEL / 2:
        return []
    size = np.sqrt((residuals**2).mean())
    return [f"the residuals of {name} are {size:.2g} times as large as their sigma says"]


def _shape(name: str, residuals: np.ndarray) -> list[str]:
    """Is the distribution normal?"""
    from scipy import stats  # which takes a third of a second

    test = stats.shapiro if len(residuals) <= _MOST_OF_SHAPIRO else stats.normaltest
    if np.ptp(residuals) == 0 or test(residuals).pvalue >= LEVEL:
        return []
    return [f"the residuals of {name} are not normally distributed (largest: {np.abs(residuals).max():.1f} sigma)"]
