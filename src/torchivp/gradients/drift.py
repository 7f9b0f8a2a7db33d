"""Whether a state that is solved backwards comes back to where the solve had passed."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from torchivp.error_norm import Tolerance

_FAR = 0.1  # of the size of the state


class Drift:
    """How far from the states of a solve the states come out that are solved backwards to the same times.

    A solve that forgets where it came from, as that of a stiff problem does, cannot be solved backwards: errors grow as
    differences shrank, whatever the tolerances, and the adjoint is taken along another path.

    Args:
        states: all that the solve has passed and that are known, [..., size]; NaN where there are none.
        atol: the absolute tolerance of the solve; states of its size are nothing.
    """

    def __init__(self, states: Tensor, atol: Tolerance):
        least = torch.as_tensor(atol, dtype=torch.float64, device=states.device).amax() / _FAR
        self._distance = torch.zeros_like(least)
        self._size = _largest(states.nan_to_num()).maximum(least)

    def compare(self, found: Tensor, passed: Tensor) -> None:
        """Take note of states that were found, and of those that the solve had passed, [rows, size] each."""
        self._distance = self._distance.maximum(_largest(found - passed))
        self._size = self._size.maximum(_largest(passed))

    def warn(self) -> None:
        """Warn if the gradient belongs to another path."""
        if self._distance > _FAR * self._size:
            # No numbers in it: Python shows the same text once, and another one at every step of a training.
            warnings.warn(
                "gradient='backsolve' (odeint_adjoint): solved backwards, the state does not come back to where the "
                "solve had passed, so that the gradient is that of another path, and wrong. Use "
                "gradient='checkpointed' in solve_ivp, or odeint; or ask for more outputs, from each of which the "
                "state begins anew",
                RuntimeWarning,
                stacklevel=2,
            )


def _largest(states: Tensor) -> Tensor:
    """The largest root mean square of the states [..., size], 0-d; 0 if there are none."""
    if not states.numel():
        return states.new_zeros((), dtype=torch.float64)
    norms = torch.linalg.vector_norm(states.detach(), dim=-1).double()
    return norms.amax() / states.shape[-1] ** 0.5
