"""SciPy's solvers."""

from torchivp.compat.torchdiffeq._impl.solvers import EngineAdaptiveSolver


class ScipyWrapperODESolver(EngineAdaptiveSolver):
    """The method "scipy_solver"."""

    method = "scipy_solver"

    @classmethod
    def valid_callbacks(cls) -> set[str]:
        return set()
