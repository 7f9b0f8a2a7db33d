"""Whether a state that is solved backwards comes back to where the solve had passed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchivp.boundary import warn
from torchivp.error_norm import Tolerance

_TOLERANCES = 30.0
"""So many tolerances are what steps may add up to, and not far."""


class Backwards(NamedTuple):
    """How states are solved backwards.

    Attributes:
        gradient: what the user calls the gradient.
        instead: what may be used where it is wrong.
        far: how far is too far, of the size of a component, times the fraction of the largest adjoint that is left.
        nothing: of the largest component: one that is smaller is looked at no more closely.
        whole: whether all components of a state are measured by the largest.
    """

    gradient: str
    instead: str
    far: float = 0.03
    nothing: float = 1e-4
    whole: bool = False


BACKSOLVE = Backwards(
    "gradient='backsolve' (odeint_adjoint)",
    "gradient='checkpointed' in solve_ivp, or odeint; or ask for more outputs, from each of which the state begins "
    "anew",
)


class Drift:
    """How far from the states of a solve the states come out that are solved backwards to the same times.

    A solve that forgets where it came from, as that of a stiff problem does, cannot be solved backwards: errors grow as
    differences shrank, whatever the tolerances, and the adjoint is taken along another path. Where little is left of
    the adjoint, that changes the gradient by little: on its way to rest, a state is forgotten, and so is the adjoint.

    Every row is looked at on its own: one of small states, or of a small gradient, is no less wrong.

    Args:
        states: all that the solve has passed and that are known, [rows, n, size]; NaN where there are none.
        grad: the derivatives by them, [rows, n, size].
        rtol: the relative tolerance of the way back.
        atol: the absolute one.
        way: how they are solved backwards.
    """

    def __init__(
        self, states: Tensor, grad: Tensor, rtol: Tolerance = 0.0, atol: Tolerance = 0.0, way: Backwards = BACKSOLVE
    ):
        self._way = way
        relative = float(torch.as_tensor(rtol).amax())
        absolute = torch.as_tensor(atol, dtype=torch.float64, device=states.device).amax()
        self._limit = max(way.far, _TOLERANCES * relative)
        largest = _largest_of_rows(states.nan_to_num())
        # One that starts from zero is measured by what steps are allowed, which is no small part of it.
        allowed = _TOLERANCES * (absolute + relative * largest)
        self._least = (way.nothing * largest).maximum(allowed / self._limit)
        self._adjoint = _largest_of_rows(grad)
        self._worst = torch.zeros_like(absolute)

    def compare(self, found: Tensor, passed: Tensor, adjoint: Tensor, rows: Tensor) -> None:
        """Take note of states that were found where the solve had passed others, and of the adjoint there.

        All are [n, size], in the rows with these numbers, [n].
        """
        if not passed.numel():
            return
        sizes = passed.detach().abs().double()
        if self._way.whole:
            sizes = sizes.amax(-1, keepdim=True)
        sizes = sizes.maximum(self._least[rows])
        away = ((found - passed).detach().abs().double() / sizes).nan_to_num(nan=torch.inf)
        far = away.where(passed.detach().isfinite(), 0.0).amax(-1)
        left = adjoint.detach().abs().double().amax(-1)
        largest = self._adjoint[rows, 0].maximum(left)
        self._adjoint = self._adjoint.index_put((rows,), largest.unsqueeze(1))
        self._worst = self._worst.maximum((far * left / largest).nan_to_num(nan=0.0).amax())

    def warn(self) -> None:
        """Warn if the gradient belongs to another path."""
        if self._worst > self._limit:
            # No numbers in it: Python shows the same text once, and another one at every step of a training.
            warn(
                f"{self._way.gradient}: solved backwards, the state does not come back to where the solve had passed, "
                "so that the gradient is that of another path, and wrong. Unless something that the right-hand side "
                f"uses has changed since the solve, use {self._way.instead}",
                RuntimeWarning,
            )


def _largest_of_rows(numbers: Tensor) -> Tensor:
    """The largest magnitude in each row, [rows, 1]; 0 if there are none."""
    sizes = numbers.detach().abs().double().flatten(1)
    return sizes.amax(1, keepdim=True) if sizes.numel() else sizes.new_zeros(len(sizes), 1)
