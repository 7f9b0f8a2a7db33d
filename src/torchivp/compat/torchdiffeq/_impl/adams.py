"""The Adams method of variable order and step size."""

from torchivp.compat.torchdiffeq._impl.solvers import EngineAdaptiveSolver


class VariableCoefficientAdamsBashforth(EngineAdaptiveSolver):
    """The method "adams"."""

    method = "adams"
