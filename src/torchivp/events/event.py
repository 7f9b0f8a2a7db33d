"""What happens on the way of a solve, as the user states it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torchivp.checks import check_flag, check_time_first, check_whole_number


@dataclass(frozen=True)
class Event:
    """Something that happens when a function of time and state changes its sign.

    The sign is looked for at the ends of every step and at `checks` points between them; the time is located on the
    dense output and the step retaken to end there, so that the function vanishes at the state found, to rounding. A
    function that is zero at the start has no event there; one that touches zero without changing its sign has one
    only if it is exactly zero where it is looked at.

    Args:
        g: called as `g(t, y, *args)`; returns one real number, in a batch one for each row. With booleans, true and
            false are the signs.
        direction: 1 for changes from negative to positive in the direction of integration, -1 for the others, 0 for
            both.
        terminal: whether the solve (of the row) ends at the event, after `apply`; the same as `max_count=1`.
        apply: called as `apply(t, y)` or `apply(t, y, *args)`; returns the state with which the integration goes on.
        max_count: the solve (of the row) ends at the event with this number; None for never.
        checks: at how many points within each step the sign is looked at.

    Raises:
        TypeError: `g` or `apply` is not callable, or another argument is of the wrong type.
        ValueError: `direction`, `max_count` or `checks` is out of range, or `terminal` and `max_count` are both given.
    """

    g: Callable[..., Any]
    direction: int = 0
    terminal: bool = False
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
        if self.direction not in (-1, 0, 1):
            raise ValueError(f"direction must be 1 (rising), -1 (falling) or 0 (both), got {self.direction!r}")
        if check_flag("terminal", self.terminal) and self.max_count not in (None, 1):
            raise ValueError(
                f"terminal=True ends at the first event, max_count={self.max_count} at the one with this number: "
                "leave one of them out"
            )
        if self.max_count is not None:
            check_whole_number("max_count", self.max_count, 1)
        check_whole_number("checks", self.checks, 0)


@dataclass(frozen=True)
class Scheduled:
    """Something that happens at known times: doses, switches of an input.

    Steps end on the times exactly. Those outside the span do not matter; one at the start comes before the first step,
    one at the end after the last. The times and the values are differentiable.

    Args:
        times: [n], or in a batch [*batch, n] with NaN for no time.
        apply: called as `apply(t, y)` or `apply(t, y, *args)`, with values as `apply(t, y, value)` or
            `apply(t, y, value, *args)`; returns the state with which the integration goes on.
        values: a tensor with an entry for each time, [n, ...] or [*batch, n, ...], such as the doses.

    Raises:
        TypeError: `apply` is not callable.
    """

    times: Any
    apply: Callable[..., Any]
    values: Any = None

    def __post_init__(self) -> None:
        if not callable(self.apply):
            raise TypeError(f"apply must be callable as apply(t, y), got {self.apply!r}")
        check_time_first("apply", self.apply, "apply(t, y)")
