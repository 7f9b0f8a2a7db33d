"""Values, scales and bounds as the user gave them, checked."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, get_args

from torch.nn.parameter import is_lazy

from torchivp.fitting.quantities import Quantity, Scale
from torchivp.models.model import Model


def check_parameters(model: Model) -> None:
    """Refuse parameters that are no real numbers, or none yet."""
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise ValueError(f"the parameter {name} has no numbers yet: call the model once, for its lazy layers")
        if not parameter.is_floating_point() or not bool(parameter.isfinite().all()):
            raise ValueError(f"the parameter {name} must hold finite real numbers")


def finite_number(argument: str) -> Callable[[str, Any], float]:
    """What reads a value of an argument by name."""

    def read(name: str, value: Any) -> float:
        if not math.isfinite(value):
            raise ValueError(f"{argument} gives {name} the value {value}, which is not a finite number")
        return float(value)

    return read


def check_scale(name: str, scale: Any) -> Scale:
    """The scale of a quantity, if it is one."""
    if scale not in get_args(Scale):
        raise ValueError(f"the scale of {name} must be one of {get_args(Scale)}, got {scale!r}")
    return scale


def check_bounds(name: str, given: Any) -> tuple[float, float]:
    """The bounds of a quantity, infinite for None."""
    try:
        lower, upper = (
            float(-math.inf if end is None and i == 0 else math.inf if end is None else end)
            for i, end in enumerate(given)
        )
    except (TypeError, ValueError):
        raise ValueError(f"the bounds of {name} must be (lower, upper), None for no bound, got {given!r}") from None
    if not lower < upper:
        raise ValueError(f"the bounds of {name} must be (lower, upper) with lower < upper, got {given!r}")
    return lower, upper


def into_bounds(value: float, lower: float, upper: float, scale: Scale) -> float:
    """A default value, moved into the bounds if need be."""
    if lower < value < upper:
        return value
    if math.isfinite(lower) and math.isfinite(upper):
        return math.sqrt(lower * upper) if scale == "log" and lower > 0 else 0.5 * (lower + upper)
    if math.isfinite(lower):
        return max(value, lower + (abs(lower) or 1.0))
    return min(value, upper - 0.5 * (abs(upper) or 1.0))


def check_start(quantity: Quantity, model: str) -> None:
    """Refuse a value that the scale or the bounds of a free quantity do not allow."""
    if not quantity.free:
        return
    name, value, ends = quantity.name, quantity.value, (quantity.lower, quantity.upper)
    if quantity.scale == "logit" and not all(map(math.isfinite, ends)):
        raise ValueError(
            f"{name} is estimated on the logit scale, which needs bounds={{{quantity.key!r}: (lower, upper)}}"
        )
    if quantity.log and not value > 0:
        raise ValueError(
            f"{name} is estimated on the log scale, so its start value must be positive, got {value:g}: give "
            f"start={{{quantity.key!r}: ...}} or leave it out of {model}.positive"
        )
    inside = ends[0] < value < ends[1] if quantity.scale == "logit" else ends[0] <= value <= ends[1]
    if not inside:
        raise ValueError(f"{name} starts at {value:g}, outside its bounds ({ends[0]:g}, {ends[1]:g}): mend one of them")
    if quantity.prior is not None and not math.isfinite(quantity.prior.negative_log_density(value)):
        raise ValueError(
            f"{name} starts at {value:g}, where its prior {quantity.prior.text} has no density: give start"
        )
