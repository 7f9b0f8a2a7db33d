"""Implicit Runge-Kutta methods of fixed steps."""

from torchivp.compat.torchdiffeq._impl.solvers import EngineFixedGridODESolver


class ImplicitEuler(EngineFixedGridODESolver):
    """The method "implicit_euler"."""

    order = 1
    method = "implicit_euler"


class ImplicitMidpoint(EngineFixedGridODESolver):
    """The method "implicit_midpoint"."""

    order = 2
    method = "implicit_midpoint"


class Trapezoid(EngineFixedGridODESolver):
    """The method "trapezoid"."""

    order = 2
    method = "trapezoid"


class GaussLegendre4(EngineFixedGridODESolver):
    """The method "gl4"."""

    order = 4
    method = "gl4"


class GaussLegendre6(EngineFixedGridODESolver):
    """The method "gl6"."""

    order = 6
    method = "gl6"


class RadauIIA3(EngineFixedGridODESolver):
    """The method "radauIIA3"."""

    order = 3
    method = "radauIIA3"


class RadauIIA5(EngineFixedGridODESolver):
    """The method "radauIIA5"."""

    order = 5
    method = "radauIIA5"


class SDIRK2(EngineFixedGridODESolver):
    """The method "sdirk2"."""

    order = 2
    method = "sdirk2"


class TRBDF2(EngineFixedGridODESolver):
    """The method "trbdf2"."""

    order = 2
    method = "trbdf2"
