"""torchivp: solve differential equations in PyTorch, differentiate through the solutions and fit them to data."""

from torchivp.api.ivp import solve_ivp
from torchivp.api.ode import odeint, odeint_adjoint
from torchivp.gradients.backsolve import Backsolve
from torchivp.gradients.checkpointed import Checkpointed
from torchivp.gradients.direct import Direct
from torchivp.methods import ODE_METHODS
from torchivp.solution import Outcome, Solution, SolveError, Stats, Status
from torchivp.stepsize.constant import ConstantSteps, GridSteps
from torchivp.stepsize.pid import PIController, PIDController

__version__ = "0.1.0"

__all__ = [
    "ODE_METHODS",
    "Backsolve",
    "Checkpointed",
    "ConstantSteps",
    "Direct",
    "GridSteps",
    "Outcome",
    "PIController",
    "PIDController",
    "Solution",
    "SolveError",
    "Stats",
    "Status",
    "odeint",
    "odeint_adjoint",
    "solve_ivp",
]
