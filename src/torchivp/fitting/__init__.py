"""Fitting differential equations to data by maximum likelihood."""

from torchivp.fitting.data import DataError, Dataset, Infusion, Trajectory, read_data, read_doses
from torchivp.fitting.fitting import fit
from torchivp.fitting.progress import Progress
from torchivp.fitting.results.bootstrap import Bootstrap
from torchivp.fitting.results.comparison import compare
from torchivp.fitting.results.gradient_check import GradientCheck
from torchivp.fitting.results.posterior import Marginal, Posterior
from torchivp.fitting.results.profiles import Profile
from torchivp.fitting.results.result import FitResult
from torchivp.fitting.results.storing import StoredFit
from torchivp.fitting.results.summary import Estimate
from torchivp.fitting.results.uncertainty import Direction

__all__ = [
    "Bootstrap",
    "DataError",
    "Dataset",
    "Direction",
    "Estimate",
    "FitResult",
    "GradientCheck",
    "Infusion",
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
