"""Fitting differential equations to data by maximum likelihood."""

from torchivp.fitting.bootstrap import Bootstrap
from torchivp.fitting.comparison import compare
from torchivp.fitting.data import DataError, Dataset, Trajectory, read_data, read_doses
from torchivp.fitting.fitting import fit
from torchivp.fitting.gradient_check import GradientCheck
from torchivp.fitting.posterior import Marginal, Posterior
from torchivp.fitting.profiles import Profile
from torchivp.fitting.progress import Progress
from torchivp.fitting.result import FitResult
from torchivp.fitting.storing import StoredFit
from torchivp.fitting.summary import Estimate
from torchivp.fitting.uncertainty import Direction

__all__ = [
    "Bootstrap",
    "DataError",
    "Dataset",
    "Direction",
    "Estimate",
    "FitResult",
    "GradientCheck",
    "Marginal",
    "Posterior",
    "Profile",
    "Progress",
    "StoredFit",
    "Trajectory",
    "compare",
    "fit",
    "read_data",
    "read_doses",
]
