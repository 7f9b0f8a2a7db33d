"""Times that move: of events, of schedules, and those that the user gave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchivp.generators import Generators
from torchivp.gradients.refusals import refuse_to_differentiate
from torchivp.times import carried
from torchivp.torch_func import is_mapped, moves

_ONCE = "the derivative with respect to the time of an event, a schedule or an output can be taken only once"
_DRAWN = (
    "func draws random numbers, and others each time: it has no slope with which the state would move with the time of "
    "an event, a schedule or an output. Draw the numbers beforehand, or detach what depends on this time"
)

_ONE_BY_ONE = (
    "gradients that depend on the times of events, schedules or outputs cannot be taken as a batch: take them one "
    "after the other, without is_grads_batched=True (vectorize=False in torch.autograd.functional.jacobian)"
)


class Slope(NamedTuple):
    """How fast the states change where their times move.

    Attributes:
        value: the rate, shaped like the states.
        drawn: whether it was drawn at random, so that no derivative may depend on it.
    """

    value: Tensor
    drawn: bool

    @staticmethod
    def of(func: Callable[[Tensor, Tensor], Tensor], t: Tensor, y: Tensor) -> Slope:
        """That of the solution of dy/dt = func(t, y). What func draws for it, the steps to come draw again."""
        generators = Generators(y.device)
        before = generators.now()
        with generators.kept(), torch.no_grad():
            value = func(t.detach(), y.detach())
            return Slope(value, drawn=generators.now() != before)

    @property
    def back(self) -> Slope:
        """That with which the states change if their times are held, and all else moves."""
        return Slope(-self.value, self.drawn)


def event_time(value: Tensor, slope: Slope, t: Tensor) -> Tensor:
    """The times `t` at which event functions are zero, as functions of their `value` at fixed time.

    With the `slope` of the event function along the solution, dt = -dg / slope. Source: the implicit function theorem;
    Chen, Amos and Nickel, "Learning neural event functions for ordinary differential equations", ICLR 2021.
    All are of one shape. Differentiable once, in either mode.
    """
    return _EventTime.apply(value, *slope, t)


def moved(y: Tensor, slope: Slope, t: Tensor) -> Tensor:
    """The states `y`, [n, size], which change with their `slope` when their times `t`, [n, 1], move.

    Differentiable once, in either mode.
    """
    return _Moved.apply(y, *slope, t) if moves(t) else y


def carried_on(func: Callable[[Tensor, Tensor], Tensor], y: Tensor, t: Tensor, motion: Tensor) -> Tensor:
    """`carried`; the derivative by the motion is refused where func draws random numbers, and has no slope."""
    generators = Generators(y.device)
    before = generators.now()
    with generators.kept():
        moving = carried(func, y, t, motion)
        if generators.now() == before:
            return moving
    return moved(y, Slope(torch.zeros_like(y), drawn=True), t + motion.to(t))


class _OfTimes(torch.autograd.Function):
    """A function of something, its slope, whether that was drawn at random, and the times."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        of, slope, ctx.drawn, t = inputs
        ctx.save_for_backward(of, slope, t)
        ctx.save_for_forward(of, slope, t)


class _EventTime(_OfTimes):
    @staticmethod
    def forward(value: Tensor, slope: Tensor, drawn: bool, t: Tensor) -> Tensor:
        return t.clone()

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        _, slope, t = ctx.saved_tensors
        if tangents[0] is None:
            return torch.zeros_like(t)
        _check_change(ctx, tangents[0])
        return _over(tangents[0], slope, t)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        value, slope, t = ctx.saved_tensors
        _check_change(ctx, grads[0])
        found = _over(grads[0].detach(), slope, t)
        (found,) = refuse_to_differentiate(_ONCE, [found.to(value.dtype)], [value, grads[0]])
        return found, None, None, None


def _check_change(ctx: Any, change: Tensor) -> None:
    """Check that a derivative can be taken, which must not depend on a slope that was drawn at random.

    Raises:
        RuntimeError: it does, or there is a whole batch of changes.
    """
    if is_mapped(change):
        raise RuntimeError(_ONE_BY_ONE)
    if ctx.drawn and bool((change != 0).any()):
        raise RuntimeError(_DRAWN)


def _over(change: Tensor, slope: Tensor, t: Tensor) -> Tensor:
    """By how much the events at `t` move when their functions change; minus `change / slope`.

    Raises:
        RuntimeError: an event has no finite derivative, and one is wanted.
    """
    wanted = change != 0  # where nobody asks for the derivative, it need not exist
    usable = (slope != 0) & torch.isfinite(slope)
    if bool((wanted & ~usable).any()):
        rate, when = slope[wanted & ~usable][0].item(), t[wanted & ~usable][0].item()
        raise RuntimeError(
            f"the event function changes at the rate {rate:g} at the event at t = {when:.9g}, so the time of the "
            "event has no finite derivative: the function touches zero there, or is flat or vertical; use one that "
            "crosses zero at an angle"
        )
    return torch.where(wanted, -change / torch.where(usable, slope, 1.0), 0.0)


class _Moved(_OfTimes):
    @staticmethod
    def forward(y: Tensor, slope: Tensor, drawn: bool, t: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        y, slope, _ = ctx.saved_tensors
        of_y, *_, of_t = tangents
        if of_t is not None:
            _check_change(ctx, of_t)
        along = torch.zeros_like(y) if of_t is None else torch.where(of_t != 0, slope * of_t, 0.0).to(y.dtype)
        return along if of_y is None else of_y + along

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        y, slope, t = ctx.saved_tensors
        grad = grads[0]
        _check_change(ctx, grad)
        with torch.no_grad():
            # A row that nobody asks about contributes nothing, whatever its slope.
            product = torch.where(grad != 0, slope.conj() * grad, 0.0)
            along = product.real.sum(1, keepdim=True).to(t.dtype)
        (along,) = refuse_to_differentiate(_ONCE, [along], [y, t, grad])
        return grad, None, None, along
