"""Seeds of noise."""

from __future__ import annotations

import torch


def draw_seed(generator: torch.Generator | None = None) -> int:
    """A seed from `generator`, or from torch's default one, which `torch.manual_seed` governs."""
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(0, 2**63 - 1, (), generator=generator, device=device))
