"""What is known of a quantity before the data: prior distributions, as residuals of a least-squares problem."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.distributions import Distribution, Normal

if TYPE_CHECKING:
    from torchivp.fitting.quantities import Quantities

_FLAT = 1e-12  # a density that falls by less from its mode to a value has its parabola there


@dataclass(frozen=True)
class Prior:
    """A distribution of the value of a quantity, on its natural scale whatever the scale of estimation.

    Attributes:
        distribution: a continuous `torch.distributions` object of one number, with a mode.
        mode: where its density is largest.
        text: how a user writes it, for reports.
    """

    distribution: Distribution
    mode: float
    text: str

    def negative_log_density(self, value: float) -> float:
        """Minus the logarithm of the density; infinite outside the support."""
        return -self._log_density(torch.tensor(value, dtype=torch.float64)).item()

    def log_densities(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The logarithm of the density at each value, of any shape; minus infinity outside the support."""
        at = torch.as_tensor(values)
        inside = self.distribution.support.check(at)  # pyright: ignore[reportOptionalMemberAccess]
        return torch.where(inside, self.distribution.log_prob(torch.where(inside, at, self.mode)), -math.inf).numpy()

    def residuals(self, values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The signed deviance residual r of each value [n], and its slope.

        r^2 / 2 is what the log density has lost since its mode; outside the support r is infinite.
        """
        at, mode = torch.tensor(values, requires_grad=True), torch.tensor(self.mode, dtype=torch.float64)
        inside = self.distribution.support.check(at.detach())  # pyright: ignore[reportOptionalMemberAccess]
        with torch.enable_grad():
            lost = self.distribution.log_prob(mode) - self.distribution.log_prob(torch.where(inside, at, mode))
            (slope,) = torch.autograd.grad(lost.sum(), at, create_graph=True)
            flat = lost.detach() <= _FLAT
            curvature = torch.zeros_like(slope)
            if bool(flat.any()) and slope.requires_grad:
                (curvature,) = torch.autograd.grad(slope.sum(), at)
        known = inside & lost.isfinite()
        away, root = at.detach() - mode, curvature.clamp_min(0.0).sqrt()
        size = torch.where(flat, root * away, (2 * lost.detach().clamp_min(0.0)).sqrt().copysign(away))
        slopes = torch.where(flat, root, slope.detach() / size)
        return torch.where(known, size, math.inf).numpy(), torch.where(known, slopes, 0.0).numpy()

    def _log_density(self, value: torch.Tensor) -> torch.Tensor:
        inside = self.distribution.support.check(value)  # pyright: ignore[reportOptionalMemberAccess]
        if not bool(inside):
            return torch.tensor(-math.inf, dtype=torch.float64)
        return self.distribution.log_prob(value)


def read_prior(name: str, given: Any) -> Prior:
    """The prior of a quantity as the argument `priors` of `fit` gives it.

    Args:
        name: of the quantity, for errors.
        given: a distribution of `torch.distributions`, or (mean, standard deviation) of a normal one.

    Raises:
        TypeError, ValueError: it is neither; the message shows one.
    """
    if isinstance(given, Sequence) and not isinstance(given, str) and len(given) == 2:
        mean, deviation = float(given[0]), float(given[1])
        if not (math.isfinite(mean) and math.isfinite(deviation) and deviation > 0):
            raise ValueError(f"the prior of {name} is (mean, standard deviation), a positive one, got {tuple(given)}")
        given = Normal(torch.tensor(mean, dtype=torch.float64), torch.tensor(deviation, dtype=torch.float64))
    if not isinstance(given, Distribution):
        raise TypeError(
            f"the prior of {name} must be a torch.distributions object, such as torch.distributions.LogNormal(0, 0.5), "
            f"or (mean, standard deviation) of a normal one, got {type(given).__name__}"
        )
    if given.batch_shape + given.event_shape != torch.Size():
        raise ValueError(f"the prior of {name} must be of one number, got shape {tuple(given.batch_shape)}")
    double = _in_double(given)
    try:
        mode = float(double.mode)
    except NotImplementedError:
        mode = math.nan
    if not math.isfinite(mode) or not math.isfinite(float(double.log_prob(torch.tensor(mode, dtype=torch.float64)))):
        raise ValueError(
            f"the prior of {name}, {in_words(given)}, has no mode at which its density is finite: take another "
            f"distribution, or bounds={{{name!r}: (lower, upper)}} for a uniform one"
        )
    return Prior(double, mode, in_words(given))


def in_words(given: Distribution) -> str:
    """A distribution with its parameters by name: that of some says nothing of them."""
    names = [name for name in inspect.signature(type(given)).parameters if name in given.arg_constraints]
    values = {name: getattr(given, name) for name in names}
    if not values or any(value.dim() for value in values.values()):
        return str(given)
    return f"{type(given).__name__}({', '.join(f'{name}={value.item():g}' for name, value in values.items())})"


def _in_double(given: Distribution) -> Distribution:
    """The same distribution with its parameters in float64."""
    names = [name for name in given.arg_constraints if name in vars(given) or hasattr(type(given), name)]
    values = {name: getattr(given, name) for name in names}
    chosen = {name: value.double() for name, value in values.items() if isinstance(value, torch.Tensor)}
    if "probs" in chosen and "logits" in chosen:
        del chosen["logits"]
    try:
        kind: Any = type(given)
        return kind(**chosen, validate_args=False)
    except TypeError:
        return given


def prior_residuals(
    quantities: Quantities, theta: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The residuals of the quantities that have a prior, [m], and their derivatives by theta, [m, n_free]."""
    known = [j for j, quantity in enumerate(quantities.free) if quantity.prior is not None]
    residuals, jacobian = np.zeros(len(known)), np.zeros((len(known), len(theta)))
    if known:
        values, slopes = quantities.free_values(theta), quantities.slopes(theta)
        same: dict[int, list[int]] = {}  # those of the entries of a tensor are one object
        for i, j in enumerate(known):
            same.setdefault(id(quantities.free[j].prior), []).append(i)
        for rows in same.values():
            of = [known[i] for i in rows]
            prior = quantities.free[of[0]].prior
            assert prior is not None, "chosen so"
            residuals[rows], by_value = prior.residuals(values[of])
            jacobian[rows, of] = by_value * slopes[of]
    return residuals, jacobian


def penalty(quantities: Quantities, theta: NDArray[np.float64]) -> float:
    """What the priors add to the negative log-likelihood, up to their largest densities."""
    return float(0.5 * np.sum(prior_residuals(quantities, theta)[0] ** 2))
