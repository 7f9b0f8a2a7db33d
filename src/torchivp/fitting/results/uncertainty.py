"""Uncertainty of what was estimated, from the Fisher information on the scale of estimation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special
from scipy.linalg import null_space

from torchivp.fitting.parameters import TENSOR
from torchivp.fitting.quantities import Quantity

_TAIL = 0.025  # intervals hold 95 %
_SINGULAR = 1e-7  # a direction with a singular value this much smaller than the largest counts as not determined
MOST_INFORMED = 1000
"""Of more free quantities no information is computed."""

_PARALLEL = 1e-9  # what is no further from parallel is, relative to its length
_KNOWN = 1e12  # degrees of freedom of a size that is known
_TOLD_ONE_BY_ONE = 20  # more combinations that are not determined are counted instead
_WEAK = 2.0  # a direction with a standard error of this many typical changes (on the log scale e^2) is weak


Knowledge = Literal["well", "weakly", "not"]


@dataclass(frozen=True)
class Direction:
    """A combination of quantities, an eigenvector of the Fisher information, and how well the data determine it.

    The information is that about the quantities on their scales of estimation, in typical changes: a factor e on the
    log scale, the size of the quantity on the linear one.

    Attributes:
        eigenvalue: of the information.
        standard_error: of the combination, in typical changes: 1/sqrt(eigenvalue); infinite where it is zero.
        determined: "well"; "weakly", with a standard error above 2; or "not", where nothing but rounding does.
        combination: in words: one quantity, or the weighted sum of those that matter most.
        weights: of all quantities by name; their squares sum to one.
    """

    eigenvalue: float
    standard_error: float
    determined: Knowledge
    combination: str
    weights: dict[str, float]

    def __str__(self) -> str:
        how = {"well": "determined", "weakly": "weakly determined", "not": "not determined"}[self.determined]
        return f"{how}: {self.combination} (eigenvalue {self.eigenvalue:.3g}, standard error {self.standard_error:.2g})"


@dataclass(frozen=True)
class Uncertainty:
    """The covariance of the estimates, and the directions that the data say nothing about.

    The covariance is that of the likelihood, whose sigmas are root mean squares of the residuals. These are smaller
    than the noise, since the curve follows the data, and uncertain where they are few. So intervals take the noise to
    be `sqrt(n / degrees of freedom)` times as large and use Student's t distribution, as regression does. With several
    sigmas, each has its share of the variance of an estimate; the degrees of freedom are then those of F. E.
    Satterthwaite, "An approximate distribution of estimates of variance components", Biometrics Bulletin 2 (1946).

    Attributes:
        parts: of the covariance of theta that is due to the noise of each sigma, within the directions that the data
            determine, [n_sigma, n_free, n_free].
        counts: the number of values with each sigma, [n_sigma].
        freedom: the degrees of freedom of each sigma: its values less the free quantities that they determine,
            [n_sigma].
        undetermined: the other directions, as orthonormal columns in units of typical changes, [n_free, m].
        magnitudes: those units, [n_free].
        warnings: what is not determined, or only weakly, in words.
        directions: the eigenvectors of the Fisher information, the best determined first, within what bounds and
            constraints leave.
        held: which entries of theta bounds, or constraints beside them, hold altogether, [n_free].
        room: in how many directions the others leave theta, of n_free: one less for each bound and each constraint that
            holds it, but where these say the same.
        trajectories: the uncertainty of theta in each trajectory, where theta differs between them.
        known: whether there is any: not where theta is so long that its information was not computed, and all of the
            above is empty.
    """

    parts: NDArray[np.float64]
    counts: NDArray[np.float64]
    freedom: NDArray[np.float64]
    undetermined: NDArray[np.float64]
    magnitudes: NDArray[np.float64]
    warnings: list[str]
    directions: list[Direction]
    held: NDArray[np.bool_]
    room: int
    trajectories: tuple[Uncertainty, ...] = ()
    known: bool = True

    def of(self, trajectory: int) -> Uncertainty:
        """The uncertainty of theta in a trajectory."""
        return self.trajectories[trajectory] if self.trajectories else self

    @property
    def covariance(self) -> NDArray[np.float64]:
        """The covariance of theta, [n_free, n_free]."""
        return self.parts.sum(0)

    def standard_errors(self) -> NDArray[np.float64]:
        """The standard error of each entry of theta, [n_free]; infinite where the data do not determine it."""
        if not self.known:
            return np.full(len(self.magnitudes), np.inf)
        every = np.eye(len(self.magnitudes))
        return np.where(self._is_determined(every), np.sqrt(np.diag(self.covariance)), np.inf)

    def reach(self, derivatives: NDArray[np.float64], noise: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Half the width of 95 % intervals, by the delta method.

        Args:
            derivatives: of what the intervals are for with respect to theta, [..., n_free].
            noise: variances that are added, by the sigma that they come from, [..., n_sigma].
        """
        if not self.known:
            return np.full(np.shape(derivatives)[:-1], np.inf)
        shares = np.einsum("...i,kij,...j->...k", derivatives, self.parts, derivatives, optimize=True)
        total, freedom = self._of_shares(shares if noise is None else shares + noise)
        half = -special.stdtrit(freedom, _TAIL) * np.sqrt(total)
        return np.where(self._is_determined(derivatives), half, np.inf)

    def _of_shares(self, shares: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The variance of what has these variances by the sigmas they come from [..., n_sigma], and its freedom."""
        shares = shares * (self.counts / self.freedom)
        total = np.maximum(shares.sum(-1), np.finfo(float).tiny)
        freedom = total**2 / np.maximum((shares**2 / self.freedom).sum(-1), np.finfo(float).tiny)
        return total, np.maximum(freedom, self.freedom.min())

    def fall(self, entry: int, level: float) -> float:
        """By how much the log-likelihood falls from its maximum to the ends of an interval of an entry of theta.

        For many data half of a quantile of the chi-squared distribution, 1.92 for 95 %. For few, with sigmas that are
        estimated, n/2 log(1 + t^2/f) with the quantile t of Student's distribution with f degrees of freedom, and n
        values that f of them are left of. This makes the intervals of the profile those of regression, exactly so where
        the model is linear with one sigma: D. M. Bates, D. G. Watts, "Nonlinear Regression Analysis and Its
        Applications", Wiley (1988), section 6.1. With several sigmas, n and f are those of `reach`.

        Args:
            entry: of theta.
            level: the probability of the interval.
        """
        shares = self.parts[:, entry, entry]
        if not shares.any():  # nothing determines it
            shares = (self.freedom == self.freedom.min()).astype(np.float64)
        total, freedom = self._of_shares(shares)
        values = freedom * total / shares.sum()
        quantile = special.stdtrit(freedom, 0.5 * (1 + level))
        return float(0.5 * values * np.log1p(quantile**2 / freedom))

    def sigma_factors(self, group: int) -> tuple[float, float]:
        """By what to multiply the sigma of a group for the ends of its 95 % interval (chi-squared distribution)."""
        if not self.known:
            return math.nan, math.nan
        tails = (special.chdtri(self.freedom[group], tail) for tail in (_TAIL, 1 - _TAIL))
        low, high = (math.sqrt(self.counts[group] / tail) for tail in tails)
        return low, high

    def _is_determined(self, derivatives: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether the data determine what has the `derivatives` [..., n_free]."""
        scaled = derivatives * self.magnitudes
        along = np.abs(scaled @ self.undetermined).max(axis=-1, initial=0.0)
        return along <= 1e-3 * np.linalg.norm(scaled, axis=-1)


def correlation_of(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """The correlations that belong to covariances [n, n]."""
    errors = np.sqrt(np.diag(covariance))
    errors = np.where(errors > 0, errors, 1.0)
    return covariance / np.outer(errors, errors)


@dataclass(frozen=True)
class Evidence:
    """Rows whose cross product is the Fisher information about theta, from data with noise of one size, or a prior.

    Attributes:
        rows: [m, n_free].
        count: how many values of data they are made of.
        estimated: whether the size of the noise is estimated, so that intervals need Student's distribution.
    """

    rows: NDArray[np.float64]
    count: int
    estimated: bool


def fisher_uncertainty(
    evidence: Sequence[Evidence],
    free: Sequence[Quantity],
    on_bound: NDArray[np.bool_],
    normals: NDArray[np.float64] | None = None,
) -> Uncertainty:
    """The uncertainty of theta.

    Args:
        evidence: of each group of data, and of the priors.
        free: what the entries of theta are.
        on_bound: which entries their bounds hold; they count as known, [n_free].
        normals: directions that constraints hold, likewise, [m, n_free].
    """
    magnitudes = np.array([quantity.magnitude for quantity in free])
    jacobian = np.concatenate([each.rows for each in evidence])
    scaled = jacobian * magnitudes
    axes, held = _axes(on_bound, np.zeros((0, len(free))) if normals is None else normals * magnitudes)
    inner = scaled @ axes
    fill = np.zeros((max(0, inner.shape[1] - len(inner)), inner.shape[1]))  # for a direction for each of them
    _, singular, directions = np.linalg.svd(np.concatenate([inner, fill]), full_matrices=False)
    directions = directions @ axes.T
    lost = singular <= _SINGULAR * singular.max(initial=0.0)
    inverse = np.where(lost, 0.0, 1 / np.where(lost, 1.0, singular))
    root = magnitudes[:, None] * directions.T * inverse
    # What each residual moves the estimates by; its square is the residual's share of their covariance.
    influence = jacobian @ root @ root.T
    leverage = np.einsum("ni,ni->n", jacobian, influence)
    ends = np.cumsum([0, *(len(each.rows) for each in evidence)])
    groups = [slice(a, b) for a, b in pairwise(ends)]
    parts = np.stack([influence[group].T @ influence[group] for group in groups])
    counts = np.array([each.count for each in evidence], dtype=np.float64)
    # A sigma of which a column has hardly more values than it takes to determine something has one degree of freedom.
    freedom = np.maximum(counts - np.array([leverage[group].sum() for group in groups]), 1.0)
    for k, each in enumerate(evidence):
        if not each.estimated:
            counts[k] = freedom[k] = _KNOWN
    known = [
        _direction(value, row, singular.max(initial=0.0), free) for value, row in zip(singular, directions, strict=True)
    ]
    single = np.array([quantity.kind != TENSOR for quantity in free], dtype=bool)
    if not single.all():
        known = _beside_tensors(inner @ axes.T, single & ~held, free) if (single & ~held).any() else []
    warnings = _undetermined(known)
    room = axes.shape[1]
    return Uncertainty(parts, counts, freedom, directions[lost].T, magnitudes, warnings, known, held, room)


def _axes(on_bound: NDArray[np.bool_], normals: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The directions that bounds and normals [m, n_free] leave, orthonormal, [n_free, k], and what none moves."""
    axes, inner = np.eye(len(on_bound))[:, ~on_bound], normals[:, ~on_bound]
    sizes = np.linalg.norm(inner, axis=1)
    telling = sizes > _PARALLEL * np.linalg.norm(normals, axis=1)  # others have bounds for all that is in them
    if telling.any():
        axes = axes @ null_space(inner[telling] / sizes[telling, None], rcond=_PARALLEL)
    held = np.linalg.norm(axes, axis=1) <= _PARALLEL
    axes[held] = 0.0
    return axes, held


def no_uncertainty(free: Sequence[Quantity], on_bound: NDArray[np.bool_]) -> Uncertainty:
    """That of so many free quantities that their information was not computed."""
    nothing, none = np.zeros(0), np.zeros((0, 0))
    magnitudes = np.array([quantity.magnitude for quantity in free])
    warning = (
        f"{len(free)} numbers are free, more than the {MOST_INFORMED} whose Fisher information is computed: nothing "
        "has a standard error or a band; hold the tensors for those of the others, fixed={name: tensor}"
    )
    return Uncertainty(
        np.zeros((0, 0, 0)),
        nothing,
        nothing,
        none,
        magnitudes,
        [warning],
        [],
        on_bound,
        int((~on_bound).sum()),
        known=False,
    )


def _beside_tensors(
    scaled: NDArray[np.float64], single: NDArray[np.bool_], free: Sequence[Quantity]
) -> list[Direction]:
    """The directions of single quantities, from what information the tensors beside them leave.

    Weights of a network can stand in each other's place, and directions of them say nothing to anybody.

    Args:
        scaled: rows whose cross product is the information about typical changes, [m, n_free].
        single: whose directions, [n_free].
        free: what they are.
    """
    of_tensors = scaled[:, [quantity.kind == TENSOR for quantity in free]]
    basis, sizes, _ = np.linalg.svd(of_tensors, full_matrices=False)
    basis = basis[:, sizes > _SINGULAR * sizes.max(initial=0.0)]
    own = scaled[:, single]
    left = own - basis @ (basis.T @ own)
    fill = np.zeros((max(0, left.shape[1] - len(left)), left.shape[1]))
    _, singular, directions = np.linalg.svd(np.concatenate([left, fill]), full_matrices=False)
    chosen = [quantity for quantity, one in zip(free, single, strict=True) if one]
    largest = float(np.linalg.norm(own, 2))
    return [_direction(value, row, largest, chosen) for value, row in zip(singular, directions, strict=True)]


def _direction(value: float, direction: NDArray[np.float64], largest: float, free: Sequence[Quantity]) -> Direction:
    lost = value <= _SINGULAR * largest
    how: Knowledge = "not" if lost else "weakly" if value < 1 / _WEAK else "well"
    return Direction(
        eigenvalue=float(value) ** 2,
        standard_error=math.inf if lost else 1 / float(value),
        determined=how,
        combination=_combination(direction, free),
        weights={quantity.name: float(weight) for quantity, weight in zip(free, direction, strict=True)},
    )


def _undetermined(directions: Sequence[Direction]) -> list[str]:
    """Which combinations the data do not determine, or hardly, in words: the worst first."""
    warnings = []
    for each in reversed(directions):
        if each.determined == "not":
            warnings.append(f"the data do not determine {each.combination}")
        elif each.determined == "weakly":
            warnings.append(
                f"the data hardly determine {each.combination}: its standard error is {each.standard_error:.2g}"
            )
    if len(warnings) <= _TOLD_ONE_BY_ONE:
        return warnings
    return [
        f"the data do not determine, or hardly, {len(warnings)} combinations of {len(directions)} free quantities: the "
        "standard errors of single ones mean little, but what is predicted may be well determined; result.directions "
        "has the combinations"
    ]


def _combination(direction: NDArray[np.float64], free: Sequence[Quantity]) -> str:
    """A direction in words: a single quantity, or the weighted sum of those that matter most."""
    order = np.argsort(-np.abs(direction))
    leading = [i for i in order if abs(direction[i]) > 0.2 * abs(direction[order[0]])]
    if len(leading) == 1:
        return free[leading[0]].name
    sign = np.sign(direction[leading[0]])
    terms = [f"{sign * direction[i]:+.2f} {_term(free[i])}" for i in leading]
    return "the combination " + " ".join(terms).removeprefix("+")


def _term(quantity: Quantity) -> str:
    if quantity.scale != "linear":
        return f"{quantity.scale} {quantity.name}"
    return quantity.name if quantity.magnitude == 1 else f"{quantity.name}/{quantity.magnitude:.3g}"
