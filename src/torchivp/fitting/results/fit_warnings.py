"""What is to be said of a fit before its numbers are used, in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from torchivp.fitting.levels import Levels
from torchivp.fitting.misfit import Misfit
from torchivp.fitting.results.uncertainty import (
    Uncertainty,
)
from torchivp.fitting.searching.maximise import Maximum
from torchivp.fitting.searching.optimise import Search
from torchivp.fitting.searching.trust import no_better_than_constant


def _follows_all(levels: Levels, uncertainty: Uncertainty) -> bool:
    """Whether a sigma that is estimated has no degree of freedom left."""
    estimated = [group.count > 0 for group in levels.groups]
    return any(one and freedom <= 1.0 for one, freedom in zip(estimated, uncertainty.freedom, strict=False))


def _at_zero(misfit: Misfit, name: str) -> str:
    """That a quantity on the log scale may be zero, in words."""
    if name in [each.name for each in misfit.quantities.free if each.kind == "sigma"]:
        return (
            f"{name} is at its bound, zero: the noise of the model alone explains the data as well; sigma=0 says that "
            "they are exact"
        )
    return (
        f"{name} is at its bound, zero: the model explains the data as well without it. If it may be negative, leave "
        f"it out of the positive of {type(misfit.model).__name__}, which names what is estimated on the log scale (by "
        "default all parameters)"
    )


def fit_warnings(
    search: Search,
    maximum: Maximum,
    uncertainty: Uncertainty,
    on_bound: NDArray[np.bool_],
    absent: NDArray[np.bool_],
    at_zero: Sequence[str],
) -> list[str]:
    """All of it.

    Args:
        search: which has ended.
        maximum: where.
        uncertainty: of what was estimated.
        on_bound: which entries of theta are at a bound, [n_free].
        absent: which sizes of the noise are as small as the error of the solver, [n_sizes].
        at_zero: the names of what is at the bound of the log scale.
    """
    misfit, levels, likelihood = search.misfit, search.levels, maximum.likelihood
    warnings = []
    if not likelihood.converged:
        warnings.append("the search has not converged: the numbers are those of its last iteration")
    if likelihood.at_floor:
        warnings.append(
            "a sigma is as small as the error of the solver: the model fits these data exactly, and standard errors "
            "mean little"
        )
    elif lost := [name for name, none in zip(levels.names, absent, strict=True) if none]:
        warnings.append(
            f"{', '.join(lost)}: the data show no noise of this kind, or less than the error of the solver: take noise "
            "without it"
        )
    held = [
        quantity.name
        for quantity in misfit.quantities.all
        if quantity.kind == "initial state" and quantity.assumed and quantity.key not in misfit.data.states
    ]
    if held:
        warnings.append(
            f"not observed and not estimated, but held at the default of the model: {', '.join(held)} (give its value "
            "in fixed, or estimate it with free='all')"
        )
    names = misfit.quantities.labels(on_bound)
    if names:
        warnings.append(
            f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} at a bound, and the standard errors of the "
            "others take that as known: if the bound is not a fact, widen it"
        )
    if maximum.active:
        several = len(maximum.active) > 1
        warnings.append(
            f"the constraint{'s' if several else ''} {', '.join(maximum.active)} {'are' if several else 'is'} active: "
            "the likelihood grows beyond, and the estimates are the best there. Standard errors and intervals are "
            "those along it, and take it as known: if it is no fact, leave it out"
        )
    if not misfit.quantities.single.all() and _follows_all(levels, uncertainty):
        names = ", ".join(misfit.quantities.labels(~misfit.quantities.single))
        warnings.append(
            f"{names} can follow every datum, so that sigma, intervals and criteria mean nothing: give priors={{name: "
            "(0, 1)}, fewer numbers or a known sigma"
        )
    warnings += [_at_zero(misfit, name) for name in at_zero]
    if not at_zero:  # which says as much
        warnings += no_better_than_constant(misfit, levels, likelihood)
    said = [f"determine {name}" for name in at_zero]
    return warnings + [each for each in uncertainty.warnings if not any(f"{words}:" in f"{each}:" for words in said)]
