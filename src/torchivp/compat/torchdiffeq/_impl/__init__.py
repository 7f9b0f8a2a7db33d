"""The modules of torchdiffeq that programs import although they are private."""

from torchivp.compat.torchdiffeq._impl.adjoint import odeint_adjoint
from torchivp.compat.torchdiffeq._impl.odeint import odeint, odeint_dense, odeint_event

__all__ = ["odeint", "odeint_adjoint", "odeint_dense", "odeint_event"]
