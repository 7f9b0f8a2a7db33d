"""The solvers of torchsde's methods, by the names of their classes."""

from torchivp.compat.torchsde._core.base_solver import EngineSolver
from torchivp.compat.torchsde._core.methods.euler import Euler
from torchivp.compat.torchsde._core.methods.euler_heun import EulerHeun
from torchivp.compat.torchsde._core.methods.heun import Heun
from torchivp.compat.torchsde._core.methods.log_ode import LogODEMidpoint
from torchivp.compat.torchsde._core.methods.midpoint import Midpoint
from torchivp.compat.torchsde._core.methods.milstein import MilsteinIto, MilsteinStratonovich
from torchivp.compat.torchsde._core.methods.reversible_heun import AdjointReversibleHeun, ReversibleHeun
from torchivp.compat.torchsde._core.methods.srk import SRK
from torchivp.compat.torchsde.settings import METHODS, SDE_TYPES

__all__ = [
    "SRK",
    "AdjointReversibleHeun",
    "Euler",
    "EulerHeun",
    "Heun",
    "LogODEMidpoint",
    "Midpoint",
    "MilsteinIto",
    "MilsteinStratonovich",
    "ReversibleHeun",
    "select",
]

_SOLVERS: dict[str, type[EngineSolver]] = {
    METHODS.euler: Euler,
    METHODS.srk: SRK,
    METHODS.midpoint: Midpoint,
    METHODS.reversible_heun: ReversibleHeun,
    METHODS.adjoint_reversible_heun: AdjointReversibleHeun,
    METHODS.heun: Heun,
    METHODS.log_ode_midpoint: LogODEMidpoint,
    METHODS.euler_heun: EulerHeun,
}


def select(method: str, sde_type: str) -> type[EngineSolver]:
    """The class of the solver of a method.

    Raises:
        ValueError: there is no such method.
    """
    if method == METHODS.milstein:
        return MilsteinIto if sde_type == SDE_TYPES.ito else MilsteinStratonovich
    if method not in _SOLVERS:
        raise ValueError(f"method must be one of {sorted([*_SOLVERS, METHODS.milstein])}, got {method!r}")
    return _SOLVERS[method]
