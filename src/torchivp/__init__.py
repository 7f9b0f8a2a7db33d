"""torchivp: solve differential equations in PyTorch, differentiate through the solutions and fit them to data."""

from torchivp.api.ivp import solve_ivp
from torchivp.api.ode import odeint, odeint_adjoint, odeint_dense, odeint_event
from torchivp.events.event import Event, Scheduled
from torchivp.fit.data import DataError
from torchivp.fit.fitting import fit
from torchivp.fit.result import FitResult
from torchivp.gradients.backsolve import Backsolve
from torchivp.gradients.checkpointed import Checkpointed
from torchivp.gradients.direct import Direct
from torchivp.methods import ODE_METHODS
from torchivp.models import MODELS
from torchivp.solution import BatchSolution, EventLog, Outcome, Solution, SolveError, Stats, Status
from torchivp.stepsize.constant import ConstantSteps, GridSteps
from torchivp.stepsize.pid import PIController, PIDController

__version__ = "0.1.0"

__all__ = [
    "MODELS",
    "ODE_METHODS",
    "Backsolve",
    "BatchSolution",
    "Checkpointed",
    "ConstantSteps",
    "DataError",
    "Direct",
    "Event",
    "EventLog",
    "FitResult",
    "GridSteps",
    "Outcome",
    "PIController",
    "PIDController",
    "Scheduled",
    "Solution",
    "SolveError",
    "Stats",
    "Status",
    "fit",
    "odeint",
    "odeint_adjoint",
    "odeint_dense",
    "odeint_event",
    "solve_ivp",
]
