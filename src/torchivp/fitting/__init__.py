"""Fitting differential equations to data by maximum likelihood."""

from torchivp.fitting.data import DataError, Dataset, Trajectory, read_data, read_doses
from torchivp.fitting.fitting import fit
from torchivp.fitting.posterior import Marginal, Posterior
from torchivp.fitting.progress import Progress
from torchivp.fitting.result import Estimate, FitResult

__all__ = [
    "DataError",
    "Dataset",
    "Estimate",
    "FitResult",
    "Marginal",
    "Posterior",
    "Progress",
    "Trajectory",
    "fit",
    "read_data",
    "read_doses",
]
