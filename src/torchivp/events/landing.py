"""Where steps must end so that they end on events, which were located on the interpolant."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from torchivp.events.root import find_roots

_CORRECTIONS = 8
"""How often an end is corrected, each time with a new step. The first correction leaves next to nothing."""

_FAR = 0.1
"""A correction by this part of a step or more shows that the interpolant is no guide."""

_BEFORE = 1e-3
"""The slope of the event function is taken over this part of the way to the event."""

_WIDEN = 8.0
"""A bracket is looked for at distances that grow by this factor."""

Function = Callable[[np.ndarray], np.ndarray]
"""Event functions at times, an entry for each row; counted positive before the event."""


def slopes_before(function: Function, start: np.ndarray, t: np.ndarray, width: np.ndarray) -> np.ndarray:
    """The derivatives of functions just before `t`; NaN where one jumps there, and 0 where it is of no use.

    Args:
        function: the event functions on the interpolants.
        start: where the steps begin.
        t: where the events are on the interpolants.
        width: how near to them they were located.
    """
    before = t - _BEFORE * (t - start)
    value, value_before, just_before = function(t), function(before), function(t - np.copysign(width, t - start))
    with np.errstate(all="ignore"):
        slope = (value - value_before) / (t - before)
        smooth = np.maximum(np.abs(value), np.abs(just_before)) <= 0.1 * np.abs(value_before)
    return np.where(smooth, np.where(np.isfinite(slope), slope, 0.0), np.nan)


def land(
    at_end: Function,
    t: np.ndarray,
    start: np.ndarray,
    end: np.ndarray,
    slope: np.ndarray,
    wanted: np.ndarray,
    rounding: np.ndarray,
) -> np.ndarray:
    """The ends of steps at which event functions are what they are at the events on the interpolants.

    An end is corrected by the slope of the function, from step to step. Where this leads nowhere, or the function
    jumps, the event is sought by bisection, at the ends of steps too. Where that finds no change of sign either, as
    where two lie in one step, it stays where it is on the interpolant.

    Args:
        at_end: takes steps that end at some times, and gives the event functions there; NaN counts as beyond the event.
        t: where the events are on the interpolants.
        start: where the steps begin.
        end: where they ended before they were taken again.
        slope: the derivatives of the event functions there; NaN where they jump.
        wanted: what they shall be.
        rounding: how exactly times can be told.
    """
    low, high = np.minimum(start, end), np.maximum(start, end)
    value, lost, going = at_end(t), np.isnan(slope), ~np.isnan(slope)
    best, best_value = t, value
    for i in range(_CORRECTIONS + 1):
        with np.errstate(all="ignore"):
            correction = np.where(value == wanted, 0.0, (wanted - value) / slope)
        sensible = (np.abs(correction) < _FAR * (high - low)) & (low < t + correction) & (t + correction < high)
        converges = np.abs(value - wanted) <= np.abs(best_value - wanted) / 2 if i else True
        best, best_value = np.where(converges, t, best), np.where(converges, value, best_value)
        going &= ~(np.abs(correction) <= rounding)
        lost |= going & ~(sensible & converges & (i < _CORRECTIONS))
        going &= ~lost
        if not going.any():
            break
        last_t, last_value = t, value
        t = np.where(going, t + correction, t)
        value = at_end(t)
        with np.errstate(all="ignore"):
            slope = np.where(going, (value - last_value) / (t - last_t), slope)
    t, value = np.where(lost, best, t), np.where(lost, best_value, value)
    return _bisect(at_end, t, value, lost, start, end, rounding) if lost.any() else t


def _bisect(
    at_end: Function,
    t: np.ndarray,
    value: np.ndarray,
    lost: np.ndarray,
    start: np.ndarray,
    end: np.ndarray,
    rounding: np.ndarray,
) -> np.ndarray:
    """The ends of steps at which event functions change their signs, near `t`, where they are `value`."""
    later = value > 0.0  # whether the event is
    limit = np.where(later, end, start)
    inner, outer, reach = t, t, rounding
    inner_value = outer_value = value
    found = np.zeros(len(t), dtype=bool)
    while (going := lost & ~found & (outer != limit)).any():
        inner, inner_value = np.where(going, outer, inner), np.where(going, outer_value, inner_value)
        outer = np.where(going, t + np.copysign(np.minimum(reach, np.abs(limit - t)), limit - t), outer)
        outer = np.where(going & (np.abs(limit - t) <= reach), limit, outer)
        at_start = going & (outer == start)  # where no step need be taken to know the sign
        outer_value = at_end(np.where(at_start, inner, outer))
        outer_value = np.where(at_start, np.inf, outer_value)
        found |= going & ((outer_value > 0.0) != later)
        reach = _WIDEN * reach
    a, b = np.where(found, np.where(later, inner, outer), t), np.where(found, np.where(later, outer, inner), t)
    value_a, value_b = np.where(later, inner_value, outer_value), np.where(later, outer_value, inner_value)
    return find_roots(at_end, a, b, np.where(found, value_a, 1.0), np.where(found, value_b, 0.0), rounding)
