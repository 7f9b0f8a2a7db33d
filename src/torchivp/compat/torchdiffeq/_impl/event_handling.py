"""Events within a step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torchivp.events.root import find_root


def find_event(
    interp_fn: Callable[[Tensor], Tensor],
    sign0: Tensor,
    t0: Tensor,
    t1: Tensor,
    event_fn: Callable[[Tensor, Tensor], Tensor],
    tol: float,
) -> tuple[Tensor, Tensor]:
    """Where `event_fn`, whose sign is `sign0` at `t0`, changes its sign before `t1`, and the state there."""

    def remaining(t: float) -> float:
        time = t0.new_tensor(t)
        return float(event_fn(time, interp_fn(time)) * sign0)

    with torch.no_grad():
        a, b = float(t0), float(t1)
        event_t = t0.new_tensor(find_root(remaining, a, b, remaining(a), remaining(b), float(tol)))
    return event_t, interp_fn(event_t)


def combine_event_functions(
    event_fn: Callable[[Tensor, Tensor], Tensor], t0: Tensor, y0: Tensor
) -> Callable[[Tensor, Tensor], Tensor]:
    """One function, positive at the start, that is zero where the first of the events in `event_fn` is."""
    with torch.no_grad():
        signs = torch.sign(event_fn(t0, y0))
    return lambda t, y: torch.min(event_fn(t, y) * signs)
