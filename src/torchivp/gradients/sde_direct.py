"""Differentiate a solve of an SDE by autograd through its steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchivp.sde_loop.integrate import SDEIntegration


@dataclass(frozen=True)
class SDEDirect:
    """Autograd through the steps: exact for them, and differentiable any number of times.

    Memory grows with the number of steps.
    """

    name = "direct"

    def solve(self, integration: SDEIntegration, parameters: Any, owner: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Integrate; returns the states [T, rows, size] and what the method carries after the last step."""
        outputs, _, carry = integration.run()
        return torch.stack(outputs), tuple(carry)
