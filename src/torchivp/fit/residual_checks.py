"""Do the residuals of a fit look like noise? Three tests, and what they found in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from torchivp.fit import FitResult

FEWEST = 8
"""With fewer residuals of an observable than this, no test could tell anything."""

LEVEL = 0.01
"""The chance that a test of size and shape objects to residuals that are noise."""


def check_residuals(result: FitResult) -> list[str]:
    """What is wrong with the standardised residuals, one clause per finding; empty if nothing is.

    For each observable with enough data: is a residual like the one before (lag-1 autocorrelation above 1.96/√n), is
    the size the one that sigma says (chi-squared test), is the distribution normal (Shapiro-Wilk test)? Residuals
    that alternate are no finding: to follow the data makes them so.

    Args:
        result: the fit.
    """
    findings = []
    for column, name in enumerate(result.data.observables):
        series = [result.residuals(index)[:, column] for index in range(len(result.data.trajectories))]
        residuals = np.concatenate([values[np.isfinite(values)] for values in series])
        if len(residuals) >= FEWEST:
            findings += _pattern_in_time(name, series) + _size(name, residuals) + _shape(name, residuals)
    return findings


def share_within(result: FitResult) -> tuple[int, int]:
    """How many standardised residuals lie within ±1.96, where 95 % of them belong, and how many there are."""
    every = np.concatenate([result.residuals(index).ravel() for index in range(len(result.data.trajectories))])
    present = every[np.isfinite(every)]
    return int((np.abs(present) <= 1.96).sum()), len(present)


def _pattern_in_time(name: str, series: list[np.ndarray]) -> list[str]:
    """Is a residual like its predecessor in the same trajectory?"""
    products = np.concatenate([values[1:] * values[:-1] for values in series])
    products = products[np.isfinite(products)]
    squares = np.concatenate([values[np.isfinite(values)] ** 2 for values in series])
    if len(products) < FEWEST:
        return []
    autocorrelation = products.mean() / squares.mean()
    if autocorrelation <= 1.96 / np.sqrt(len(products)):
        return []
    return [f"those of {name} resemble the ones before them (lag-1 autocorrelation {autocorrelation:.2f})"]


def _size(name: str, residuals: np.ndarray) -> list[str]:
    """Is the scatter the one that sigma says? It always is where sigma was estimated."""
    below = stats.chi2.cdf((residuals**2).sum(), len(residuals))
    if LEVEL / 2 <= below <= 1 - LEVEL / 2:
        return []
    size = np.sqrt((residuals**2).mean())
    return [f"those of {name} are {size:.2g} times as large as their sigma says"]


def _shape(name: str, residuals: np.ndarray) -> list[str]:
    """Is the distribution normal?"""
    if np.ptp(residuals) == 0 or stats.shapiro(residuals).pvalue >= LEVEL:
        return []
    return [f"those of {name} are not normally distributed (largest: {np.abs(residuals).max():.1f} sigma)"]
