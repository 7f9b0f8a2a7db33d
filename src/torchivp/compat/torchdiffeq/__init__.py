"""torchdiffeq's functions, and the names that programs take from within it, on torchivp's solvers.

`torchivp.odeint` is the same function but for one thing: here `method` may also name a solver class that a program
has added to `SOLVERS`.
"""

from torchivp.compat.torchdiffeq._impl import odeint, odeint_adjoint, odeint_dense, odeint_event

__all__ = ["odeint", "odeint_adjoint", "odeint_dense", "odeint_event"]

__version__ = "0.2.5"
"""The version of torchdiffeq whose interface this is: programs compare it."""
