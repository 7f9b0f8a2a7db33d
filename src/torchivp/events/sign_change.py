"""A function of time and state whose first change of sign ends a solve."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchivp.boundary import UserFunction
from torchivp.state import StateLayout


@dataclass(frozen=True)
class EventFunction:
    """The user's `event_fn(t, y)` on flat states.

    Attributes:
        func: returns a tensor of any shape, real or bool, in which each element is an event of its own.
        layout: the user's state.
    """

    func: UserFunction
    layout: StateLayout

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        """The values of all events, a one-dimensional tensor.

        Raises:
            TypeError: `func` did not return a real tensor.
        """
        values = self.func(t, y, self.layout.unflatten)
        if isinstance(values, bool | int | float):
            raise TypeError(
                f"event_fn must return a tensor, and returned {values!r}, a Python number, which loses the gradient: "
                "leave out float(), bool() or .item(), as in y[0] - 1"
            )
        if not isinstance(values, Tensor) or values.is_complex() or values.numel() == 0:
            kind = repr(values)
            if isinstance(values, Tensor):
                kind = f"a {values.dtype} tensor of shape {tuple(values.shape)}"
            raise TypeError(
                f"event_fn must return a real tensor, one element for each event, whose sign changes at the event; "
                f"it returned {kind}"
            )
        if values.dtype == torch.bool:  # false is another sign than true, and not zero
            values = 2.0 * values - 1.0
        elif not values.is_floating_point():
            values = values.to(torch.float64)
        return values.reshape(-1)


class SignChange:
    """Watches an event function from its start: positive until one of its elements changes sign.

    Args:
        event: the event function.
        t: the time at the start, as `func` receives it.
        y: the state there, [1, size].
    """

    def __init__(self, event: EventFunction, t: Tensor, y: Tensor):
        self._event = event
        self._signs = torch.sign(event(t, y.detach()).detach())
        self._only = self._signs.item() if len(self._signs) == 1 else None

    @property
    def at_start(self) -> bool:
        """Whether an element is zero at the start, which is an event already."""
        return not bool(self._signs.all())

    def remaining(self, t: Tensor, y: Tensor) -> Tensor:
        """The least of all elements, each counted positive at the start; differentiable."""
        return torch.amin(self._event(t, y) * self._signs)

    def value(self, t: Tensor, y: Tensor) -> float:
        """`remaining` as a float: zero or negative once there was an event."""
        if self._only is None:
            return self.remaining(t, y.detach()).item()
        return self._event(t, y.detach()).item() * self._only
