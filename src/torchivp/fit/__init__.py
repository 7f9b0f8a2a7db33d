"""Fitting differential equations to data by maximum likelihood."""

from torchivp.fit.data import DataError, Dataset, Trajectory, read_data
from torchivp.fit.fitting import fit
from torchivp.fit.progress import Progress
from torchivp.fit.result import Estimate, FitResult

__all__ = ["DataError", "Dataset", "Estimate", "FitResult", "Progress", "Trajectory", "fit", "read_data"]
