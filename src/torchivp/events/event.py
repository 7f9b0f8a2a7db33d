"""What happens on the way of a solve, as the user states it."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from torchivp.checks import check_flag, check_time_first, check_whole_number


@dataclass(frozen=True)
class Event:
    """Something that happens when a function of time and state changes its sign.

    The sign is looked for at the ends of every step and at `checks` points between them; the time is located on the
    dense output, to rounding. An event that is merely reported changes no step. Where it changes the state or ends the
    solve, the step is retaken to end there, and its end corrected, so that the function vanishes at the state that the
    step leads to. A function that is zero at the start has no event there; one that touches zero without changing its
    sign has one only if it is exactly zero where it is looked at.

    `g` and `apply` are called more often than events happen: to look for tensors that need a gradient, and for
    derivatives. They must do nothing but return their values.

    `g` may carry SciPy's attributes, as in `g.terminal = True; g.direction = -1`: they hold where the arguments of the
    same names are not given, and must not contradict those that are. `g.terminal = 3` is `max_count=3`. A `partial` has
    those of the function within, if it has none of its own.

    Args:
        g: called as `g(t, y, *args)`; returns one real number, in a batch one for each row. With booleans, true and
            false are the signs.
        direction: 1 for changes from negative to positive in the direction of integration, -1 for the others, 0 for
            both. Default: `g.direction`, or both.
        terminal: whether the solve (of the row) ends at the event, after `apply`; the same as `max_count=1`. Default:
            `g.terminal`, or not.
        apply: called as `apply(t, y)` or `apply(t, y, *args)`; returns the state with which the integration goes on.
        max_count: the solve (of the row) ends at the event with this number; None for never.
        checks: at how many points within each step the sign is looked at.

    Raises:
        TypeError: `g` or `apply` is not callable, or another argument or an attribute of `g` is of the wrong type.
        ValueError: `direction`, `max_count` or `checks` is out of range, `terminal` and `max_count` are both given, or
            an attribute of `g` is out of range or contradicts an argument.

    Examples:
        >>> import torch
        >>> from torchivp import Event, solve_ivp
        >>> def flight(t, y):  # height and velocity
        ...     return torch.stack((y[1], torch.full_like(y[1], -9.81)))
        >>> ground = Event(lambda t, y: y[0], direction=-1, terminal=True)
        >>> landed = solve_ivp(flight, (0, 100), torch.tensor([20.0, 0.0]).double(), events=ground)
        >>> round(landed.events.t.item(), 4), landed.status.outcome.value
        (2.0193, 'event')
    """

    g: Callable[..., Any]
    direction: int = None  # pyright: ignore[reportAssignmentType] -- read from g, then never None
    terminal: bool = None  # pyright: ignore[reportAssignmentType]
    apply: Callable[..., Any] | None = None
    max_count: int | None = None
    checks: int = 4

    def __post_init__(self) -> None:
        if not callable(self.g):
            raise TypeError(f"g must be callable as g(t, y), got {self.g!r}")
        if self.apply is not None and not callable(self.apply):
            raise TypeError(f"apply must be callable as apply(t, y), got {self.apply!r}")
        check_time_first("g", self.g, "g(t, y)")
        if self.apply is not None:
            check_time_first("apply", self.apply, "apply(t, y)")
        self._settle_direction()
        self._settle_end()
        if self.max_count is not None:
            check_whole_number("max_count", self.max_count, 1)
        check_whole_number("checks", self.checks, 0)

    def _settle_direction(self) -> None:
        if self.direction is not None and self.direction not in (-1, 0, 1):
            raise ValueError(f"direction must be 1 (rising), -1 (falling) or 0 (both), got {self.direction!r}")
        carried = _carried(self.g, "direction", _direction, is_given=self.direction is not None)
        if None not in (carried, self.direction) and carried != self.direction:
            raise ValueError(
                f"g.direction is {carried}, but direction={self.direction} was given: leave one of them out"
            )
        object.__setattr__(self, "direction", (carried or 0) if self.direction is None else self.direction)

    def _settle_end(self) -> None:
        is_given = self.terminal is not None or self.max_count is not None
        if self.terminal is not None and check_flag("terminal", self.terminal) and self.max_count not in (None, 1):
            raise ValueError(
                f"terminal=True ends at the first event, max_count={self.max_count} at the one with this number: "
                "leave one of them out"
            )
        carried = _carried(self.g, "terminal", _count, is_given)
        given = 1 if self.terminal else self.max_count or 0
        if is_given and carried is not None and carried != given:
            said = f"max_count={self.max_count}" if self.max_count is not None else f"terminal={self.terminal}"
            raise ValueError(f"g.terminal is {carried}, 0 for never, but {said} was given: leave one of them out")
        object.__setattr__(self, "terminal", bool(self.terminal) or (not is_given and carried == 1))
        if not is_given and carried is not None and carried > 1:
            object.__setattr__(self, "max_count", carried)


def _carried(g: Callable[..., Any], name: str, read: Callable[[str, Any], int], is_given: bool) -> int | None:
    """An attribute that SciPy reads from event functions; None if there is none.

    Where the user says the same by an argument, an attribute that is of another kind is the function's own affair.
    """
    while isinstance(g, partial) and not hasattr(g, name):
        g = g.func
    value = getattr(g, name, None)
    if value is None:
        return None
    try:
        return read(f"the attribute {name} of the event function", value)
    except (TypeError, ValueError):
        if is_given:
            return None
        raise


def _direction(name: str, value: Any) -> int:
    """The sign of a number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or math.isnan(float(value)):
        raise TypeError(
            f"{name} must be a number, positive for rising, negative for falling, got {value!r}; if it means something "
            "else, write Event(g, direction=0)"
        )
    return (float(value) > 0.0) - (float(value) < 0.0)


def _count(name: str, value: Any) -> int:
    """The number of the event at which the solve ends, 0 for never."""
    if isinstance(value, bool | np.bool_):
        return int(value)
    if not isinstance(value, numbers.Real):
        raise TypeError(
            f"{name} must be True, False or the number of events after which the solve ends, got {value!r}; if it "
            "means something else, write Event(g, terminal=False)"
        )
    if not (float(value) >= 0.0 and float(value).is_integer()):
        raise ValueError(f"{name} must be True, False or a whole number of events, got {value!r}")
    return int(float(value))


def unchanged(t: Any, y: Any, *others: Any) -> Any:
    """The state as it is."""
    return y


@dataclass(frozen=True)
class Scheduled:
    """Something that happens at known times: doses, switches of an input.

    Steps end on the times exactly, and evaluate `func` on their own side of them: it may jump there. Those outside the
    span do not matter; one at the start comes before the first step, one at the end after the last. The times and the
    values are differentiable, but not times at which something else happens that does not move with them: `solve_ivp`
    refuses that. As with `Event`, `apply` must do nothing but return the new state.

    Args:
        times: [n], or in a batch [*batch, n] with NaN for no time.
        apply: called as `apply(t, y)` or `apply(t, y, *args)`, with values as `apply(t, y, value)` or
            `apply(t, y, value, *args)`; returns the state with which the integration goes on. Default: the state stays
            as it is, and `func` alone switches.
        values: a tensor with an entry for each time, [n, ...] or [*batch, n, ...], such as the doses.

    Raises:
        TypeError: `apply` is not callable.

    Examples:
        >>> import torch
        >>> from torchivp import Scheduled, solve_ivp
        >>> doses = Scheduled([0.0, 12.0], lambda t, y, dose: y + dose, [100.0, 50.0])
        >>> amount = solve_ivp(lambda t, y: -0.1 * y, (0, 24), torch.zeros(1).double(), events=doses).final
        >>> round(amount.item(), 2)
        24.13

        An input that `func` switches off, and by how much the result changes with the time of that:

        >>> off = torch.tensor([1.5], dtype=torch.float64, requires_grad=True)
        >>> filling = lambda t, y: torch.where(t < off.detach(), 2.0, 0.0) + 0 * y
        >>> amount = solve_ivp(filling, (0, 4), torch.zeros(1).double(), events=Scheduled(off)).final
        >>> (by_time,) = torch.autograd.grad(amount, off)
        >>> round(amount.item(), 6), round(by_time.item(), 6)
        (3.0, 2.0)
    """

    times: Any
    apply: Callable[..., Any] = unchanged
    values: Any = None

    def __post_init__(self) -> None:
        if not callable(self.apply):
            raise TypeError(
                f"apply must be callable as apply(t, y), got {self.apply!r}: leave it out if the state stays as it is"
            )
        check_time_first("apply", self.apply, "apply(t, y)")
