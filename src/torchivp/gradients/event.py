"""The time and the state of an event as functions of what they depend on."""

from __future__ import annotations

import torch
from torch import Tensor

from torchivp.boundary import warn
from torchivp.events.sign_change import SignChange
from torchivp.gradients.moving_time import Slope, event_time, moved
from torchivp.methods.method import FlatFunc
from torchivp.torch_func import moves


def differentiate_event(
    func: FlatFunc, sign: SignChange, start: tuple[Tensor, Tensor], t: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """The time `t` and the state `y` of an event, with the gradients that they have because the event moves.

    At the event g(t, y(t)) = 0, so dt = -dg / (g_t + g_y f), where dg is the change of g at fixed time: through the
    state, and through whatever else g depends on. The state then changes by f dt besides its change at fixed time.
    Source: the implicit function theorem; Chen, Amos and Nickel, "Learning neural event functions for ordinary
    differential equations", ICLR 2021.

    Args:
        func: the right-hand side.
        sign: the event function and the signs that it began with.
        start: the time and the state that the solve began with.
        t: the time of the event, 0-d, in the dtype that `func` receives.
        y: the state there, [1, size], a function of everything but the time of the event.

    Returns:
        The same time and state. They can be differentiated once. If the event function is piecewise constant, the
        event stays where it is, and a warning says so. Without anything to differentiate they are as they were.
    """
    value = sign.remaining(t, y)
    if not (moves(y) or moves(value)):
        return t, y
    when, along = _moved(func, sign, start, t, y, value)
    if along is not None:
        return when, moved(y, along, when.reshape(1, 1))
    warn(
        "the time of the event gets no gradient, since event_fn has none: its values are true or false, or "
        "piecewise constant as those of torch.sign. The state at the event is differentiated at a fixed time. "
        "Return a number that falls to zero at the event, such as y[0] - 0.5 instead of y[0] > 0.5, or solve "
        "within torch.no_grad()",
    )
    return t, y


def differentiate_event_time(
    func: FlatFunc, sign: SignChange, start: tuple[Tensor, Tensor], t: Tensor, y: Tensor
) -> Tensor:
    """The time of an event alone, with its gradient; arguments as in `differentiate_event`.

    It has none, without a warning, if the event function is piecewise constant.
    """
    value = sign.remaining(t, y)
    return _moved(func, sign, start, t, y, value)[0] if moves(value) else t


def _moved(
    func: FlatFunc, sign: SignChange, start: tuple[Tensor, Tensor], t: Tensor, y: Tensor, value: Tensor
) -> tuple[Tensor, Slope | None]:
    """The time of the event, which moves, and the slope of the state there; None if the function is constant."""
    g_t, g_y = _gradients(sign, t, y)
    if not any(bool(g.any()) for g in (g_t, g_y, *_gradients(sign, *start))):
        return t, None
    along = Slope.of(func, t, y)
    slope = g_t + torch.sum(g_y.conj() * along.value).real
    return event_time(value.to(t.dtype), Slope(slope, along.drawn), t), along


def _gradients(sign: SignChange, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The derivatives of the event function with respect to time and state; zero where it has none."""
    with torch.enable_grad():
        time, state = t.detach().requires_grad_(), y.detach().requires_grad_()
        value = sign.remaining(time, state)
    if not value.requires_grad:
        return torch.zeros_like(t), torch.zeros_like(y)
    g_t, g_y = torch.autograd.grad(value, (time, state), allow_unused=True)
    return torch.zeros_like(t) if g_t is None else g_t, torch.zeros_like(y) if g_y is None else g_y
