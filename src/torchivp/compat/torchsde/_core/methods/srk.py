"""Stochastic Runge-Kutta methods."""

from typing import Any

import torch
from torch import Tensor

from torchivp.compat.torchsde._core.base_solver import EngineSolver
from torchivp.compat.torchsde.settings import LEVY_AREA_APPROXIMATIONS, SDE_TYPES
from torchivp.methods.sde import srk


class SRK(EngineSolver):
    """The method "srk"."""

    method = srk.SRK
    sde_type = SDE_TYPES.ito
    levy_area_approximations = (
        LEVY_AREA_APPROXIMATIONS.space_time,
        LEVY_AREA_APPROXIMATIONS.davie,
        LEVY_AREA_APPROXIMATIONS.foster,
    )

    def step(self, t0: Any, t1: Any, y0: Tensor, extra0: Any) -> tuple[Tensor, Any]:
        t0, t1 = (torch.as_tensor(t, dtype=y0.dtype.to_real(), device=y0.device) for t in (t0, t1))
        return super().step(t0, t1, y0, extra0)
