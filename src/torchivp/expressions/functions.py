"""The functions that formulas call: what the Python made of a formula finds among its global names."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

ELEMENTARY: dict[str, Callable[..., Tensor]] = {
    **{"exp": torch.exp, "expm1": torch.expm1, "sqrt": torch.sqrt, "sigmoid": torch.sigmoid, "erf": torch.erf},
    **{"log": torch.log, "ln": torch.log, "log10": torch.log10, "log2": torch.log2, "log1p": torch.log1p},
    **{"sin": torch.sin, "cos": torch.cos, "tan": torch.tan, "asin": torch.asin, "acos": torch.acos},
    **{"atan": torch.atan, "sinh": torch.sinh, "cosh": torch.cosh, "tanh": torch.tanh},
    **{"abs": torch.abs, "sign": torch.sign, "floor": torch.floor, "ceil": torch.ceil},
}
"""The functions of one number that a formula may call."""


def as_number(value: Tensor | float, like: Tensor) -> Tensor:
    """A number, or the truth of something, as a tensor of the precision of `like`, if it is none."""
    if isinstance(value, Tensor):
        return value if value.is_floating_point() or value.is_complex() else value.to(like.dtype)
    return constant(value, like)


def constant(value: float, like: Tensor) -> Tensor:
    """A number as a tensor of the precision of `like`."""
    return torch.full((), value, dtype=like.dtype, device=like.device)


_MORE = {
    **{"where": torch.where, "minimum": torch.minimum, "maximum": torch.maximum},
    **{"clamp_min": torch.clamp_min, "clamp_max": torch.clamp_max, "as_number": as_number, "constant": constant},
}

# With an underscore, as no name in a formula begins with one. Dynamo looks for them in the module itself.
globals().update({f"_{name}": function for name, function in {**ELEMENTARY, **_MORE}.items()})
