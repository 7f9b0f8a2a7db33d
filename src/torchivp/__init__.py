"""torchivp: solve differential equations in PyTorch, differentiate through the solutions and fit them to data."""

from torchivp import data as data
from torchivp import ensembles as ensembles
from torchivp import nn as nn
from torchivp import training as training
from torchivp.api.ivp import solve_ivp
from torchivp.api.ode import odeint, odeint_adjoint, odeint_dense, odeint_event
from torchivp.api.sde import sdeint, sdeint_adjoint
from torchivp.api.steady import SteadyState, steady_state
from torchivp.citation import cite
from torchivp.ensembles.running import ensemble
from torchivp.events.event import Event, Scheduled
from torchivp.fitting.data import DataError
from torchivp.fitting.fitting import fit
from torchivp.fitting.results.result import FitResult
from torchivp.gradients.backsolve import Backsolve
from torchivp.gradients.checkpointed import Checkpointed
from torchivp.gradients.direct import Direct
from torchivp.gradients.forward import Forward
from torchivp.methods import ODE_METHODS
from torchivp.methods.sde import SDE_METHODS, Capability, sde_methods
from torchivp.models import MODELS
from torchivp.noise.brownian import BaseBrownian
from torchivp.noise.interval import BrownianInterval, brownian_interval_like
from torchivp.noise.path import BrownianPath, BrownianTree, ReverseBrownian
from torchivp.sde.base import BaseSDE, SDEIto, SDEStratonovich
from torchivp.solution import BatchSolution, EventLog, Outcome, Solution, SolveError, Stats, Status
from torchivp.stepsize.constant import ConstantSteps, GridSteps
from torchivp.stepsize.pid import PIController, PIDController
from torchivp.training.loop import train

__version__ = "0.1.0"

__all__ = [
    "MODELS",
    "ODE_METHODS",
    "SDE_METHODS",
    "Backsolve",
    "BaseBrownian",
    "BaseSDE",
    "BatchSolution",
    "BrownianInterval",
    "BrownianPath",
    "BrownianTree",
    "Capability",
    "Checkpointed",
    "ConstantSteps",
    "DataError",
    "Direct",
    "Event",
    "EventLog",
    "FitResult",
    "Forward",
    "GridSteps",
    "Outcome",
    "PIController",
    "PIDController",
    "ReverseBrownian",
    "SDEIto",
    "SDEStratonovich",
    "Scheduled",
    "Solution",
    "SolveError",
    "Stats",
    "Status",
    "SteadyState",
    "brownian_interval_like",
    "cite",
    "ensemble",
    "fit",
    "odeint",
    "odeint_adjoint",
    "odeint_dense",
    "odeint_event",
    "sde_methods",
    "sdeint",
    "sdeint_adjoint",
    "solve_ivp",
    "steady_state",
    "train",
]
