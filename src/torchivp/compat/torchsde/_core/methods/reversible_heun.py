"""The reversible Heun method."""

from typing import Any

from torchivp.compat.torchsde._core.base_solver import EngineSolver
from torchivp.compat.torchsde.settings import METHODS, SDE_TYPES
from torchivp.methods.sde import reversible_heun


class ReversibleHeun(EngineSolver):
    """The method "reversible_heun"."""

    method = reversible_heun.ReversibleHeun
    sde_type = SDE_TYPES.stratonovich


class AdjointReversibleHeun(ReversibleHeun):
    """The way back of "reversible_heun", the adjoint method "adjoint_reversible_heun".

    `sdeint_adjoint` takes it. There is no SDE that a solver of this class could be made for.
    """

    def __init__(self, sde: Any, *args: Any, **kwargs: Any) -> None:
        raise ValueError(
            f"{METHODS.adjoint_reversible_heun} can only be used for adjoint_method: call sdeint_adjoint(..., "
            f"method={METHODS.reversible_heun!r}), which takes its steps back exactly"
        )
