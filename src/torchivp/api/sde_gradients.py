"""The ways to differentiate a solve of an SDE."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from torchivp.gradients.checkpointed import Checkpointed
from torchivp.gradients.sde_checkpointed import SDECheckpointed
from torchivp.gradients.sde_direct import SDEDirect
from torchivp.gradients.sde_reversible import SDEReversible
from torchivp.sde_loop.integrate import SDEIntegration


class SDEGradient(Protocol):
    """A way to differentiate a solve."""

    def solve(self, integration: SDEIntegration, parameters: Any, owner: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Integrate; returns the states [T, rows, size] and what the method carries after the last step."""
        ...


SDE_GRADIENTS = {"direct": SDEDirect, "checkpointed": SDECheckpointed, "reversible": SDEReversible}
"""Every way to differentiate `sdeint`, by the name that `gradient=` takes."""


def find_sde_gradient(gradient: Any) -> SDEGradient:
    """The gradient given by name, or `Checkpointed(checkpoints=...)`.

    Raises:
        ValueError: the name is unknown.
        TypeError: it is neither a name nor a gradient.
    """
    if isinstance(gradient, Checkpointed):
        return SDECheckpointed(gradient.checkpoints)
    names = ", ".join(map(repr, SDE_GRADIENTS))
    if not isinstance(gradient, str):
        raise TypeError(f"gradient must be one of {names} or Checkpointed(checkpoints=20), got {gradient!r}")
    if gradient not in SDE_GRADIENTS:
        raise ValueError(f"unknown gradient {gradient!r}: it must be one of {names}; sdeint_adjoint has the adjoint")
    return SDE_GRADIENTS[gradient]()
