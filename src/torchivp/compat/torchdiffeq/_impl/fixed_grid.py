"""Explicit Runge-Kutta methods of fixed steps."""

from torchivp.compat.torchdiffeq._impl.solvers import EngineFixedGridODESolver


class Euler(EngineFixedGridODESolver):
    """The method "euler"."""

    order = 1
    method = "euler"


class Midpoint(EngineFixedGridODESolver):
    """The method "midpoint"."""

    order = 2
    method = "midpoint"


class Heun2(EngineFixedGridODESolver):
    """The method "heun2"."""

    order = 2
    method = "heun2"


class Heun3(EngineFixedGridODESolver):
    """The method "heun3"."""

    order = 3
    method = "heun3"


class RK4(EngineFixedGridODESolver):
    """The method "rk4"."""

    order = 4
    method = "rk4"
