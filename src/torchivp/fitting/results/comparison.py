"""Fits of several models to the same data, side by side."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from torchivp.fitting.data import Dataset, import_pandas

if TYPE_CHECKING:
    from torchivp.fitting.results.summary import FitSummary


def compare(results: Mapping[str, FitSummary] | Iterable[FitSummary]) -> Any:
    """A table of fits to the same data: which model does best for the number of its quantities.

    Akaike weights say how likely each model is to be the best of those compared: exp(-delta/2), scaled to sum to one,
    with delta of AICc, or of AIC if AICc is infinite for one of them. Source: K. P. Burnham, D. R. Anderson, "Model
    Selection and Multimodel Inference", Springer (2002), section 2.9. Likelihoods of counts (Poisson, negative binomial
    noise) are probabilities and those of other noise densities: the two compare only roughly.

    A quantity that ends at a bound is one less that the data could move, and so it is for each active constraint:
    "n_effective" counts those that are left (see `FitResult`).

    A fit with priors is no maximum of the likelihood, which these criteria are about. Its likelihood is that of the
    estimates, and a quantity counts by how much more the data say of it than its prior: "n_effective" is the trace of
    the information of the data times the covariance a posteriori (T. J. Hastie, R. J. Tibshirani, "Generalized Additive
    Models", 1990), with which AIC and AICc predict as they do without priors. BIC approximates a probability that
    priors are part of, and is NaN. Where "n_effective" is not known, so are all of them, and the fit has no weight.
    Weights of networks count one by one, unless priors hold them.

    Args:
        results: what `fit` or `FitResult.load` returned: a dict by the names that the table gives them, or a list,
            whose fits are called like their models.

    Returns:
        A pandas DataFrame, the best fit first, with the columns "nll", "n_free", "n_effective", "AIC", "AICc", "BIC";
        "dAIC", "dAICc", "dBIC", each the distance from the smallest; "weight"; and "converged".

    Raises:
        TypeError: `results` holds something else.
        ValueError: there are fewer than two fits, or they are not of the same data.
        ImportError: pandas is not installed.
    """
    named = _named(results)
    _check_same_data(named)
    fits = list(named.values())
    criteria = {name: np.array([getattr(each, name.lower()) for each in fits]) for name in ("AIC", "AICc", "BIC")}
    columns = {
        "nll": [each.nll for each in fits],
        "n_free": [each.n_free for each in fits],
        "n_effective": [each.n_effective for each in fits],
        **criteria,
        **{f"d{name}": _above_best(values) for name, values in criteria.items()},
    }
    best = "dAIC" if np.isinf(criteria["AICc"]).any() else "dAICc"
    likelihoods = np.exp(-0.5 * columns[best])
    columns["weight"] = likelihoods / np.nansum(likelihoods)
    columns["converged"] = [each.converged for each in fits]
    pandas = import_pandas()
    return pandas.DataFrame(columns, index=pandas.Index(list(named), name="model")).sort_values(best, kind="stable")


def _above_best(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values - np.nanmin(values) if np.isfinite(values).any() else np.full(len(values), np.nan)


def _named(results: Mapping[str, FitSummary] | Iterable[FitSummary]) -> dict[str, FitSummary]:
    """The fits by name."""
    from torchivp.fitting.results.summary import FitSummary

    if isinstance(results, FitSummary) or not isinstance(results, Iterable):
        raise TypeError(f"compare takes several fits, compare([one, other]), got {type(results).__name__}")
    named: dict[str, FitSummary] = {}
    pairs = results.items() if isinstance(results, Mapping) else ((None, each) for each in results)
    for name, each in pairs:
        if not isinstance(each, FitSummary):
            raise TypeError(f"compare takes what fit or FitResult.load returned, got {type(each).__name__}")
        given = each.model_name if name is None else str(name)
        number = 2
        while name is None and given in named:  # models of the same name
            given, number = f"{each.model_name} {number}", number + 1
        named[given] = each
    if len(named) < 2:
        raise ValueError(f"compare takes two fits or more, got {len(named)}: compare([one, other])")
    return named


def _check_same_data(named: Mapping[str, FitSummary]) -> None:
    first, *others = named
    for other in others:
        one, two = named[first], named[other]
        if one.fingerprint != two.fingerprint or one.n_data != two.n_data:
            raise ValueError(
                f"{first} and {other} are not fitted to the same data ({one.n_data} values of {one.source}, "
                f"{two.n_data} of {two.source}), so that their likelihoods cannot be compared: fit both to one "
                "table, with the same columns observed (a stochastic model uses up the first values, unless initial or "
                "start gives its states)"
            )


def fingerprint(data: Dataset) -> str:
    """What tells the values of a dataset, their times and their limits apart from those of another one.

    Names of trajectories and of the source do not matter, nor does the order of the columns.
    """
    order = np.argsort(data.observables)
    digest = hashlib.sha256(repr(sorted(data.observables)).encode())
    for series in data.trajectories:
        seen = np.isfinite(series.values).any(1)
        values = np.where(np.isfinite(series.values), series.values + 0.0, np.nan)[seen][:, order]
        limits = np.zeros(values.shape) if series.censored is None else series.censored[seen][:, order]
        for table in (series.t[seen], values, limits):
            digest.update(repr(table.shape).encode())
            digest.update(np.ascontiguousarray(table, dtype=np.float64).tobytes())
    return digest.hexdigest()
