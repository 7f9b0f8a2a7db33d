"""Where a search may begin when nothing better is known: points within bounds, along priors, around the defaults."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from torchivp.fitting.misfit import Misfit
from torchivp.fitting.quantities import Quantity

_POWERS = 2.0  # without bounds, a quantity on the log scale starts within this many powers of ten of its default


def spread(misfit: Misfit, count: int) -> NDArray[np.float64]:
    """Points of a Sobol sequence on the scale of estimation, [count, n_free], the same ones each time.

    Within the bounds where a quantity has both, along its prior where it has one, else around its default: powers of
    ten on the log scale, twice its size on the linear one. An observed initial state without either starts from its
    first value in the data. A tensor starts as it is in the model.
    """
    quantities = misfit.quantities
    default = quantities.theta()
    if not (count and len(default)):
        return np.zeros((count, len(default)))
    points, moved = np.tile(default, (count, 1)), np.flatnonzero(quantities.single)
    if not len(moved):
        return points
    sobol = torch.quasirandom.SobolEngine(len(moved), scramble=True, seed=0)
    uniform = sobol.draw(count, dtype=torch.float64).numpy()
    for j, column in zip(moved, uniform.T, strict=True):
        quantity = quantities.free[j]
        points[:, j] = _along(quantity, default[j], column, quantity.key in misfit.data.states)
    return np.clip(points, quantities.lower, quantities.upper)


def _along(quantity: Quantity, default: float, uniform: NDArray[np.float64], observed: bool) -> NDArray[np.float64]:
    """Starts of one quantity on its scale of estimation, from numbers that are uniform between 0 and 1."""
    if quantity.prior is not None:
        try:
            values = quantity.prior.distribution.icdf(torch.as_tensor(uniform).clamp(1e-6, 1 - 1e-6))
            if quantity.lower < values.min() and values.max() < quantity.upper:
                return np.array([quantity.to_scale(value) for value in values.tolist()])
        except NotImplementedError:  # a distribution without quantiles
            pass
    if np.isfinite(quantity.lower) and np.isfinite(quantity.upper) and not (quantity.log and quantity.lower <= 0):
        inside = quantity.lower + (quantity.upper - quantity.lower) * np.array([1e-6, 1 - 1e-6])
        low, high = (quantity.to_scale(value) for value in inside.tolist())
        return low + (high - low) * uniform
    if quantity.kind == "initial state" and observed:
        return np.full(len(uniform), default)
    width = _POWERS * np.log(10) if quantity.scale != "linear" else 2 * quantity.magnitude
    return default + (2 * uniform - 1) * width
