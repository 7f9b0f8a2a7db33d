"""Profile likelihoods: how the best likelihood changes with one quantity, and the intervals that follow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from torchivp.ensembles.executors import Workers, check_executor
from torchivp.fitting.progress import Progress, show_progress, silent, tell_part
from torchivp.fitting.quantities import Scale
from torchivp.fitting.results.profile_walk import Point, Walk
from torchivp.fitting.solving.elsewhere import Elsewhere, by_portions
from torchivp.references import Sources

if TYPE_CHECKING:
    from torchivp.fitting.results.result import FitResult

_LOWER = 1e-3  # a likelihood that is larger by less may be that of the optimum,
_LOWER_OF_TENSORS = 0.05  # or with tensors by this


@dataclass(frozen=True)
class Profile:
    """The profile likelihood of a quantity: at each of its values, all others are those that explain the data best.

    Its interval holds the values at which the log-likelihood has fallen by no more than `fall` from that of the fit.
    Unlike the interval of the Fisher information it needs no parabola, and where the data do not determine the quantity
    it is open. With priors, the likelihood is the density a posteriori. Source: A. Raue et al., "Structural and
    practical identifiability analysis of partially observed dynamical models by exploiting the profile likelihood",
    Bioinformatics 25 (2009).

    Attributes:
        name: of the quantity.
        level: the probability of the interval.
        scale: on which it is estimated.
        estimate: the value that the fit found.
        error: its standard error on that scale by the Fisher information, for comparison; infinite where the data do
            not determine it, NaN where a bound holds it.
        values: of the quantity, increasing, [m].
        nll: the smallest negative log-likelihood at each, priors included, [m].
        thetas: where it is: the free quantities on their scales of estimation, [m, n_free].
        nll_min: that of the fit, priors included.
        fall: by how much it rises to the ends of the interval (see `Uncertainty.fall`).
        lower: the lower end; where it is open, the bound, the smallest value for which the constraints leave values of
            the others, or the end of the scale: -inf, or 0 on the log scale.
        upper: the upper end, likewise.
        open_below: why the interval has no lower end, in words; None if it has one.
        open_above: why it has no upper end.
        warnings: what is wrong with the fit or the profile, in words.
    """

    name: str
    level: float
    scale: Scale
    estimate: float
    error: float
    values: NDArray[np.float64]
    nll: NDArray[np.float64]
    thetas: NDArray[np.float64] = field(repr=False)
    nll_min: float
    fall: float
    lower: float
    upper: float
    open_below: str | None
    open_above: str | None
    warnings: list[str]
    sources: ClassVar[Sources] = {"profile likelihood": ("Raue2009",)}

    @property
    def open(self) -> bool:
        """Whether a side is open."""
        return self.open_below is not None or self.open_above is not None

    @property
    def sentence(self) -> str:
        """The interval in words."""
        interval = f"{100 * self.level:g} % interval from {self.lower:.4g} to {self.upper:.4g}"
        sides = [("below", self.open_below), ("above", self.open_above)]
        return "; ".join(
            [
                f"{self.name} = {self.estimate:.4g}, {interval}",
                *(f"open {side}: {why}" for side, why in sides if why is not None),
            ]
        )


def profile(result: FitResult, name: str, level: float = 0.95, progress: Progress = silent) -> Profile:
    """The profile likelihood of a free quantity; see `FitResult.profile`."""
    _check(result, name, level)
    names = [quantity.name for quantity in result.misfit.quantities.free]
    walk = Walk(result, names.index(name), level, progress)
    below, above = walk.side(-1), walk.side(1)
    points = [*reversed(below.points), walk.start, *above.points]
    quantity = walk.quantity
    return Profile(
        name=name,
        level=level,
        scale=quantity.scale,
        estimate=quantity.from_scale(walk.start.x),
        error=result[name].scale_error,
        values=np.array([quantity.from_scale(point.x) for point in points]),
        nll=np.array([walk.nll_min + point.fall for point in points]),
        thetas=np.array([point.theta for point in points]),
        nll_min=walk.nll_min,
        fall=walk.limit,
        lower=_value(quantity.from_scale, below.end),
        upper=_value(quantity.from_scale, above.end),
        open_below=below.why,
        open_above=above.why,
        warnings=_warnings(walk, points),
    )


def _check(result: FitResult, name: str, level: float) -> None:
    if result.random is not None:
        raise ValueError(
            "profiles of a fit with random effects would need its marginal likelihood at every point, which they do "
            "not maximise: take the intervals of the estimates"
        )
    if not 0 < level < 1:
        raise ValueError(f"level must be a probability such as 0.95, got {level}")
    check_refits(result, "a profile")
    if name not in result.free_names:
        raise ValueError(
            f"there is no profile of {name!r}: profiles are of the free parameters and initial states, but no tensors: "
            f"{', '.join(result.free_names)}"
        )


def check_refits(result: FitResult, what: str) -> None:
    """Refuse what fits again and again by least squares where that takes derivatives by too many numbers.

    Raises:
        ValueError: the message says how many there are.
    """
    if result.misfit.many and not result.misfit.quantities.single.all():
        raise ValueError(
            f"{what} fits again by least squares, and {len(result.theta)} numbers are free, most of them in tensors: "
            "hold the tensors at their estimates, fixed={name: tensor}, for what is known of the others then"
        )


def profiles(
    result: FitResult,
    names: Sequence[str] | None = None,
    level: float = 0.95,
    executor: Workers = None,
    progress: bool | Progress = False,
) -> dict[str, Profile]:
    """Those of several quantities; see `FitResult.profiles`."""
    chosen = list(result.free_names if names is None else names)
    for name in chosen:
        _check(result, name, level)
    found: dict[str, Profile] = {}
    with show_progress(progress) as tell:
        tell_part(tell, "profiles", 0, len(chosen))
        for part, each in _computed(result, chosen, level, executor, tell):
            found |= dict(zip(chosen[part], each, strict=True))
            tell_part(tell, "profiles", len(found), len(chosen))
    return found


def _computed(
    result: FitResult, names: list[str], level: float, executor: Workers, tell: Progress
) -> Iterator[tuple[slice, list[Profile]]]:
    """Profiles as they are ready: which of them, and they."""
    if check_executor(executor) is None:
        for k, name in enumerate(names):
            yield slice(k, k + 1), [profile(result, name, level, tell)]
    else:
        sent = Elsewhere(result, (names, level))
        yield from by_portions(_profile_elsewhere, sent, len(names), executor, "the profiles", each=len(names))


def _profile_elsewhere(task: tuple[Elsewhere[FitResult], slice]) -> list[Profile]:
    """Some of the profiles, in a worker."""
    result, (names, level) = task[0].get()
    return [profile(result, name, level) for name in names[task[1]]]


def _value(from_scale, at: float) -> float:
    with np.errstate(over="ignore"):
        return float(from_scale(at))


def _warnings(walk: Walk, points: Sequence[Point]) -> list[str]:
    warnings = []
    best = min(points, key=lambda point: point.fall)
    single = walk.search.misfit.quantities.single
    if best.fall < -(_LOWER if single.all() else _LOWER_OF_TENSORS):
        values = walk.search.misfit.quantities.single_values(best.theta)
        start = ", ".join(f"{name!r}: {value:.6g}" for name, value in values.items())
        warnings.append(
            f"the profile of {walk.quantity.name} leads to a negative log-likelihood that is {-best.fall:.3g} smaller, "
            f"so the fit was not at its optimum: fit again with start={{{start}}}"
        )
    if unsettled := sum(not point.settled for point in points):
        warnings.append(
            f"at {unsettled} of {len(points)} points of the profile of {walk.quantity.name} the search for the others "
            "has not converged, so that the likelihood there may be larger: give fit a larger max_iterations"
        )
    return warnings
