"""The problem that the arguments of `solve_ivp` describe, with batch dimensions or events."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchivp.api.times import as_times, shape_text
from torchivp.boundary import UserFunction
from torchivp.events.event import Event, Scheduled
from torchivp.jacobian_check import check_given_jacobian
from torchivp.mass import Mass
from torchivp.methods.pattern import found_sparsity
from torchivp.problem import check_right_hand_side
from torchivp.rows.function import Result, RowArguments, RowFunction, changed_state, derivative, event_value, jacobian
from torchivp.rows.problem import Action, RowProblem
from torchivp.rows.times import MovingTimes, RowTimes
from torchivp.sparsity import Sparsity, is_sought
from torchivp.split import functions_of
from torchivp.state import StateLayout, elsewhere
from torchivp.times import joined, time_dtype


def build_problem(
    func: Callable[..., Any],
    y0: Any,
    layout: StateLayout,
    times: RowTimes,
    moving: MovingTimes,
    args: Sequence[Any],
    events: Sequence[Event | Scheduled],
    compact: bool | None,
    jac: Callable[..., Any] | None = None,
    jac_sparsity: Any = None,
    mass: Mass | None = None,
) -> RowProblem:
    """The problem that the arguments describe, checked.

    Raises:
        TypeError: `func` is not callable, or `args` or `events` are of the wrong type.
        ValueError: `compact` is asked for, but the values of a function in a row depend on which rows there are.
    """
    check_right_hand_side(func)
    if not isinstance(args, tuple | list):
        raise TypeError(f"args must be a tuple, got {type(args).__name__}: write args=(args,)")
    if not (compact is None or isinstance(compact, bool)):
        raise TypeError(f"compact must be True, False or None (find out), got {compact!r}")
    if compact is not None and not layout.lead:
        raise ValueError("compact is for batches: give batch_dims too, or leave compact out")
    layout.check_times(times.start, times.end)
    flat = layout.start(y0)
    filler = _filler(times, flat, layout)
    arguments = RowArguments(args, layout)

    other = _elsewhere(times, filler) if layout.rows > 1 else filler  # of one row nothing is tried
    makers = _Makers(layout, arguments, filler, other, compact)
    right_hand_side = makers.make("func", func, derivative if mass is None else mass.derivative)
    right_hand_side.projection = mass and mass.projection
    if jac is not None:
        right_hand_side.jac = makers.make("jac", jac, jacobian if mass is None else mass.jacobian)
    if is_sought(jac_sparsity):
        span = torch.from_numpy(times.end - times.start).to(filler[0]).unsqueeze(1)
        right_hand_side.sparsity = found_sparsity(right_hand_side.on(None), *filler, span)
    elif jac_sparsity is not None:
        right_hand_side.sparsity = Sparsity.of(jac_sparsity, layout.size, layout.device)
    check_given_jacobian(right_hand_side.on(None), *filler, layout.name, layout.lead)
    schedules = [event for event in events if isinstance(event, Scheduled)]
    # Those that share a tensor of times have it read once, so that they are seen to move together.
    read = {id(event.times): as_times("the times of Scheduled", event.times) for event in schedules}
    actions = [_action(i, event, makers, flat, layout, read) for i, event in enumerate(events)]
    batched = bool(layout.lead)
    return RowProblem(right_hand_side, flat, times, actions, layout.real_dtype, moving=moving, batched=batched)


@dataclass(frozen=True)
class _Makers:
    """What all functions on rows have in common."""

    layout: StateLayout
    args: RowArguments
    filler: tuple[Tensor, Tensor]
    elsewhere: tuple[Tensor, Tensor]
    compact: bool | None

    def make(self, name: str, function: Callable[..., Any], result: Result, *extra: Tensor) -> RowFunction:
        """The user's function, called `name` in messages, on rows; `extra` is what it takes besides the arguments."""
        count = len(self.args.of_all())
        takes_args = all([_takes(name, each, 2 + len(extra), count) for each in functions_of(function)])
        # An apply is given a copy of the state.
        guarded = UserFunction(function, name, owns_state=name.endswith("apply"))
        made = RowFunction(guarded, self.layout, self.args, result, self.filler, takes_args=takes_args)
        if self.compact is False:
            return made.filled_in()
        if made.is_row_wise(self.elsewhere, *extra):
            return made
        if self.compact:
            raise ValueError(
                f"compact=True, but {name} gives other values for some of the rows than for all of them at once, or "
                f"fails: pass what has an entry for each row as args, so that it can be chosen along with the rows; "
                f"{self.shared}"
            )
        return made.filled_in()

    @property
    def shared(self) -> str:
        """What to do about tensors that are taken for such that have an entry for each row."""
        lead = ", ".join(map(str, self.layout.lead))
        return f"a tensor that all rows share must not begin with the dimensions ({lead}): write args=(w[None],)"


def _filler(times: RowTimes, y0: Tensor, layout: StateLayout) -> tuple[Tensor, Tensor]:
    """Times and states at which functions can be evaluated for rows that are not under way."""
    device = y0.device
    t = torch.from_numpy(times.start).to(device, time_dtype(device)).to(layout.real_dtype).unsqueeze(1)
    y = y0.detach()
    finite = torch.isfinite(y).all(1)
    if len(y) and not finite.all() and finite.any():
        y = torch.where(finite.unsqueeze(1), y, y[finite][0])
    return t, y


def _elsewhere(times: RowTimes, filler: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Later times and other states.

    A tensor that all rows share may look like one with an entry for each row where it is multiplied by zero.
    """
    t, y = filler
    span = times.end - times.start
    later = torch.from_numpy(0.37 * np.where(np.isfinite(span), span, times.direction))
    return t + later.to(t.device, t.dtype).unsqueeze(1), elsewhere(y)


def _action(
    number: int,
    event: Event | Scheduled,
    makers: _Makers,
    y0: Tensor,
    layout: StateLayout,
    read: Mapping[int, tuple[np.ndarray, Tensor | None]],
) -> Action:
    apply_name = f"events[{number}].apply"
    if isinstance(event, Event):
        apply = None if event.apply is None else makers.make(apply_name, event.apply, changed_state)
        g = makers.make(f"events[{number}].g", event.g, event_value)
        last = 1.0 if event.terminal else float(event.max_count or math.inf)
        return Action(apply, g, event.direction, last, event.checks)
    scheduled, moving = read[id(event.times)]
    rows, shape = layout.rows, scheduled.shape
    if len(shape) == 1:
        scheduled = np.broadcast_to(scheduled, (rows, *shape)).copy()
        moving = None if moving is None else moving.expand(rows, -1)
    elif shape[:-1] == layout.lead and len(shape) > 1:
        scheduled = scheduled.reshape(rows, -1).copy()
        moving = None if moving is None else moving.reshape(rows, -1)
    else:
        raise ValueError(
            "the times of Scheduled must be one-dimensional or of the shape "
            f"{shape_text(layout.lead, 'n')}, got {shape}: write times=[t1, t2]; where rows have different numbers of "
            "times, fill up with NaN"
        )
    count = scheduled.shape[1]
    values = None if event.values is None else _values(event.values, count, y0, layout)
    extra = () if values is None else (values[:, 0] if count else y0.new_zeros(rows),)
    apply = makers.make(apply_name, event.apply, changed_state, *extra)
    return Action(apply, times=scheduled, moving=moving, values=values)


def _values(values: Any, count: int, y0: Tensor, layout: StateLayout) -> Tensor:
    """What goes with each scheduled time, [rows, count, ...]."""
    try:
        values = torch.as_tensor(joined(values)).to(y0.device)
    except (TypeError, ValueError, RuntimeError):
        kind = type(values).__name__
        raise TypeError(f"the values of Scheduled must be a tensor with an entry for each time, got {kind}") from None
    if values.is_floating_point():
        values = values.to(layout.real_dtype)
    dims = len(layout.lead)
    if values.shape[: dims + 1] == (*layout.lead, count) and dims:
        return values.reshape(layout.rows, count, *values.shape[dims + 1 :])
    if values.ndim and values.shape[0] == count:
        return values.expand(layout.rows, *values.shape)
    raise ValueError(
        f"the values of Scheduled must have an entry for each of its {count} times, shape ({count}, ...)"
        + (f" or {(*layout.lead, count)} and more" if dims else "")
        + f", got shape {tuple(values.shape)}"
    )


def _takes(name: str, function: Callable[..., Any], fixed: int, args: int) -> bool:
    """Whether the function takes the further arguments besides the `fixed` ones: an `apply` need not.

    Raises:
        TypeError: it cannot be called as it should be.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # no signature to look at
        return True
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    any_number = any(p.kind == p.VAR_POSITIONAL for p in parameters)
    most = math.inf if any_number else len(positional)
    least = sum(p.default is p.empty for p in positional)
    is_apply = name.endswith("apply")
    if is_apply and least == fixed and not any_number:  # what has a default is the user's own
        return False
    if least <= fixed + args <= most:
        return True
    value = ", value" if fixed == 3 else ""
    raise TypeError(
        f"{name} is called as {name.split('.')[-1]}(t, y{value}, *args), here with {fixed + args} arguments, but takes "
        + (f"{least}" if least == most else f"{least} to {most}")
    )


def check_events(events: Any) -> list[Event | Scheduled]:
    """The events as a list; a function stands for an `Event` of it.

    Raises:
        TypeError: there is something else among them.
    """
    entries = list(events) if isinstance(events, list | tuple) else [] if events is None else [events]
    checked: list[Event | Scheduled] = []
    for entry in entries:
        if not isinstance(entry, Event | Scheduled):
            if not callable(entry):
                raise TypeError(
                    f"events must be functions g(t, y), Event(g, ...) and Scheduled(times, apply), got {entry!r}"
                )
            entry = Event(entry)
        checked.append(entry)
    return checked
