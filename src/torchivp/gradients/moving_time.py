"""Times that move: of events, of schedules, and those that the user gave."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchivp.gradients.inputs import refuse_to_differentiate

_ONCE = "the derivative with respect to the time of an event, a schedule or an output can be taken only once"


def event_time(value: Tensor, slope: Tensor, t: Tensor) -> Tensor:
    """The times `t` at which event functions are zero, as functions of their `value` at fixed time.

    With the `slope` of the event function along the solution, dt = -dg / slope. Source: the implicit function theorem;
    Chen, Amos and Nickel, "Learning neural event functions for ordinary differential equations", ICLR 2021.
    All are of one shape. Differentiable once.
    """
    return _EventTime.apply(value, slope, t)


def moved(y: Tensor, slope: Tensor, t: Tensor) -> Tensor:
    """The states `y`, [n, size], which change by `slope` when their times `t`, [n, 1], move. Differentiable once."""
    return _Moved.apply(y, slope, t) if t.requires_grad else y


class _EventTime(torch.autograd.Function):
    @staticmethod
    def forward(value: Tensor, slope: Tensor, t: Tensor) -> Tensor:
        return t.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        value, slope, t = ctx.saved_tensors
        grad = grads[0].detach()
        wanted = grad != 0  # where nobody asks for the derivative, it need not exist
        usable = (slope != 0) & torch.isfinite(slope)
        if bool((wanted & ~usable).any()):
            rate, when = slope[wanted & ~usable][0].item(), t[wanted & ~usable][0].item()
            raise RuntimeError(
                f"the event function changes at the rate {rate:g} at the event at t = {when:.9g}, so the time of the "
                "event has no finite derivative: the function touches zero there, or is flat or vertical; use one that "
                "crosses zero at an angle"
            )
        found = torch.where(wanted, -grad / torch.where(usable, slope, 1.0), 0.0)
        (found,) = refuse_to_differentiate(_ONCE, [found.to(value.dtype)], [value, grads[0]])
        return found, None, None


class _Moved(torch.autograd.Function):
    @staticmethod
    def forward(y: Tensor, slope: Tensor, t: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        y, slope, t = ctx.saved_tensors
        grad = grads[0]
        with torch.no_grad():
            # A row that nobody asks about contributes nothing, whatever its slope.
            product = torch.where(grad != 0, slope.conj() * grad, 0.0)
            along = product.real.sum(1, keepdim=True).to(t.dtype)
        (along,) = refuse_to_differentiate(_ONCE, [along], [y, t, grad])
        return grad, None, along
