"""The time and the state of an event as functions of what they depend on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchivp.events.sign_change import SignChange
from torchivp.gradients.inputs import refuse_to_differentiate
from torchivp.methods.method import FlatFunc


def differentiate_event(func: FlatFunc, sign: SignChange, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The time `t` and the state `y` of an event, with the gradients that they have because the event moves.

    At the event g(t, y(t)) = 0, so dt = -dg / (g_t + g_y f), where dg is the change of g at fixed time: through the
    state, and through whatever else g depends on. The state then changes by f dt besides its change at fixed time.
    Source: the implicit function theorem; Chen, Amos and Nickel, "Learning neural event functions for ordinary
    differential equations", ICLR 2021.

    Args:
        func: the right-hand side.
        sign: the event function and the signs that it began with.
        t: the time of the event, 0-d, in the dtype that `func` receives.
        y: the state there, [1, size], a function of everything but the time of the event.

    Returns:
        The same time and state. They can be differentiated once.
    """
    with torch.enable_grad():
        time, state = t.detach().requires_grad_(), y.detach().requires_grad_()
        value = sign.remaining(time, state)
    if not value.requires_grad:  # an event function of booleans, say
        return t, y
    g_t, g_y = torch.autograd.grad(value, (time, state), allow_unused=True)
    with torch.no_grad():
        f = func(t, y.detach())
        slope = torch.zeros_like(t) if g_t is None else g_t
        if g_y is not None:
            slope = slope + torch.sum(g_y.conj() * f).real
    moved = _EventTime.apply(sign.remaining(t, y).to(t.dtype), slope, t)
    return moved, y + f * (moved - t)


class _EventTime(torch.autograd.Function):
    """The time of an event as a function of the value of its event function, given its slope along the solution."""

    @staticmethod
    def forward(value: Tensor, slope: Tensor, t: Tensor) -> Tensor:
        return t.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        value, slope, _ = ctx.saved_tensors
        (found,) = refuse_to_differentiate(
            "the time of an event can be differentiated only once: there are no second derivatives of odeint_event",
            [-grads[0].detach() / slope],
            [value, grads[0]],
        )
        return found, None, None
