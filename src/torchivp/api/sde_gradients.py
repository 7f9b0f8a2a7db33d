"""The ways to differentiate a solve of an SDE."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from torchivp.gradients.backsolve import Backsolve
from torchivp.gradients.checkpointed import Checkpointed
from torchivp.gradients.direct import Direct
from torchivp.gradients.forward import Forward
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
    """The gradient given by name, or `Checkpointed(checkpoints=...)` or `Direct()`.

    Raises:
        ValueError: the name is unknown, or it is the gradient of an ODE.
        TypeError: it is neither a name nor a gradient.
    """
    if isinstance(gradient, Checkpointed):
        return SDECheckpointed(gradient.checkpoints)
    if isinstance(gradient, Direct):
        return SDEDirect()
    if isinstance(gradient, Backsolve) or gradient == "backsolve":
        given = repr(gradient) if isinstance(gradient, str) else "Backsolve(...)"
        raise ValueError(
            f"gradient={given} is for ODEs: use sdeint_adjoint, which solves the adjoint equations of an SDE backwards"
        )
    if isinstance(gradient, Forward) or gradient == "forward":
        raise ValueError(
            "gradient='forward' is for ODEs: use gradient='direct', within torch.autograd.forward_ad where derivatives "
            "forwards are wanted"
        )
    names = ", ".join(map(repr, SDE_GRADIENTS))
    if not isinstance(gradient, str):
        raise TypeError(f"gradient must be one of {names} or Checkpointed(checkpoints=20), got {gradient!r}")
    if gradient not in SDE_GRADIENTS:
        raise ValueError(f"unknown gradient {gradient!r}: it must be one of {names}; sdeint_adjoint has the adjoint")
    return SDE_GRADIENTS[gradient]()
