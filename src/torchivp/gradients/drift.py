"""Whether a state that is solved backwards comes back to where the solve had passed."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from torchivp.error_norm import Tolerance

_FAR = 0.03  # of the size of a component, times the fraction of the largest adjoint that is left there
_NOTHING = 1e-4  # of the largest component: one that is smaller is looked at no more closely
_TOLERANCES = 30.0, 100.0  # or so many relative tolerances, if that is more


class Drift:
    """How far from the states of a solve the states come out that are solved backwards to the same times.

    A solve that forgets where it came from, as that of a stiff problem does, cannot be solved backwards: errors grow as
    differences shrank, whatever the tolerances, and the adjoint is taken along another path. Where little is left of
    the adjoint, that changes the gradient by little: on its way to rest, a state is forgotten, and so is the adjoint.

    Args:
        states: all that the solve has passed and that are known, [..., size]; NaN where there are none.
        grad: the derivatives by them, [..., size].
        rtol: the relative tolerance of the way back.
        atol: the absolute one.
    """

    def __init__(self, states: Tensor, grad: Tensor, rtol: Tolerance, atol: Tolerance):
        times, relative = _TOLERANCES, float(torch.as_tensor(rtol).amax())
        least = torch.as_tensor(atol, dtype=torch.float64, device=states.device).amax() * times[1]
        largest = _largest(states.nan_to_num())
        self._least = least.maximum(max(_NOTHING, times[1] * relative) * largest)
        self._adjoint = _largest(grad)
        self._limit = max(_FAR, times[0] * relative)
        self._worst = torch.zeros_like(least)

    def compare(self, found: Tensor, passed: Tensor, adjoint: Tensor) -> None:
        """Take note of states that were found where the solve had passed others, and of the adjoint there.

        All are [rows, size].
        """
        if not passed.numel():
            return
        sizes = passed.detach().abs().double().maximum(self._least)
        away = ((found - passed).detach().abs().double() / sizes).nan_to_num(nan=torch.inf)
        far = away.where(passed.detach().isfinite(), 0.0).amax(-1)
        left = adjoint.detach().abs().double().amax(-1)
        self._adjoint = self._adjoint.maximum(left.amax())
        self._worst = self._worst.maximum((far * left / self._adjoint).nan_to_num(nan=0.0).amax())

    def warn(self) -> None:
        """Warn if the gradient belongs to another path."""
        if self._worst > self._limit:
            # No numbers in it: Python shows the same text once, and another one at every step of a training.
            warnings.warn(
                "gradient='backsolve' (odeint_adjoint): solved backwards, the state does not come back to where the "
                "solve had passed, so that the gradient is that of another path, and wrong. Use "
                "gradient='checkpointed' in solve_ivp, or odeint; or ask for more outputs, from each of which the "
                "state begins anew",
                RuntimeWarning,
                stacklevel=2,
            )


def _largest(numbers: Tensor) -> Tensor:
    """The largest magnitude, 0-d; 0 if there are none."""
    sizes = numbers.detach().abs().double()
    return sizes.amax() if sizes.numel() else sizes.new_zeros(())
