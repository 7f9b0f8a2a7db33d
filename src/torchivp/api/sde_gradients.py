"""The ways to differentiate a solve of an SDE."""

from __future__ import annotations

from typing import Any

from torchivp.gradients.sde_direct import SDEDirect

SDEGradient = SDEDirect
SDE_GRADIENTS: dict[str, type[SDEGradient]] = {"direct": SDEDirect}
"""Every way to differentiate `sdeint`, by the name that `gradient=` takes."""


def find_sde_gradient(gradient: Any) -> SDEGradient:
    """The gradient given by name or object.

    Raises:
        ValueError: the name is unknown.
        TypeError: it is neither a name nor a gradient.
    """
    if isinstance(gradient, SDEGradient):
        return gradient
    names = ", ".join(map(repr, SDE_GRADIENTS))
    if not isinstance(gradient, str):
        raise TypeError(f"gradient must be one of {names}, got {gradient!r}")
    if gradient not in SDE_GRADIENTS:
        raise ValueError(f"unknown gradient {gradient!r}: it must be one of {names}")
    return SDE_GRADIENTS[gradient]()
