"""Adams methods of fixed steps."""

from torchivp.compat.torchdiffeq._impl.solvers import EngineFixedGridODESolver


class AdamsBashforth(EngineFixedGridODESolver):
    """The method "explicit_adams"."""

    order = 4
    method = "explicit_adams"


class AdamsBashforthMoulton(EngineFixedGridODESolver):
    """The method "implicit_adams"."""

    order = 4
    method = "implicit_adams"
