"""The times of `solve_ivp`, checked."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchivp.rows.times import MovingTimes, RowTimes
from torchivp.times import COARSE, Times, check_times, joined, snap, spacing_of
from torchivp.torch_func import moves


def times_of_span(t_span: Any, t_eval: Any, endless: bool = False) -> Times:
    """The times of a problem without batch dimensions; `endless` says whether the end may be infinite.

    Raises:
        TypeError: a time is not a real number or tensor.
        ValueError: a time is not finite, not in order or outside the span.
    """
    ends, ends_tensor = check_times(t_span, "t_span", monotone=False, endless=endless, example="t_span=(t0, t1)")
    if len(ends) != 2:
        raise ValueError(f"t_span must be (t0, t1), got {len(ends)} times: write t_span=(t[0], t[-1]), t_eval=t")
    start, end = ends
    if t_eval is None:
        return Times(start, end, None, ends, ends_tensor, spacing=spacing_of(t_span))
    empty = getattr(t_eval, "shape", None) == (0,) or (isinstance(t_eval, list | tuple) and not t_eval)
    wanted, wanted_tensor = ([], None) if empty else check_times(t_eval, "t_eval")
    wanted = snap(wanted, t_eval, ends)
    direction = 1.0 if end >= start else -1.0
    if len(wanted) > 1 and (wanted[-1] - wanted[0]) * direction < 0:
        raise ValueError(
            f"t_eval runs from {wanted[0]:g} to {wanted[-1]:g}, against t_span = ({ends[0]:g}, {ends[1]:g}): "
            "write t_eval=t_eval.flip(0)"
        )
    for t in wanted:
        if not min(ends) <= t <= max(ends):
            raise ValueError(f"t_eval holds {t!r}, outside t_span = ({ends[0]!r}, {ends[1]!r}): widen t_span")
    tensor = None
    if ends_tensor is not None or wanted_tensor is not None:
        tensor = torch.cat(
            [
                torch.tensor(floats, dtype=torch.float64) if known is None else known
                for floats, known in ((ends, ends_tensor), (wanted, wanted_tensor))
            ]
        )
    return Times(start, end, wanted, [*ends, *wanted], tensor, spacing=spacing_of(t_span, t_eval))


def times_of_rows(
    t_span: Any, t_eval: Any, lead: tuple[int, ...], endless: bool = False
) -> tuple[RowTimes, MovingTimes]:
    """The times of the rows of a batch, checked; `endless` says whether ends may be infinite.

    Raises:
        TypeError: a time is not a real number or tensor.
        ValueError: a time is of the wrong shape, not finite, not in order or outside its span.
    """
    if _length(t_span) != 2:
        hint = ": write t_span=(t[0], t[-1]), t_eval=t" if _length(t_span) > 2 else ""
        raise ValueError(f"t_span must be (t0, t1), each a number or a tensor of shape {lead}, got {t_span!r}{hint}")
    start, moving_start = _times_of_shape("t_span[0]", t_span[0], lead)
    end, moving_end = _times_of_shape("t_span[1]", t_span[1], lead)
    for name, ends, bad in (
        ("t_span[0]", start, ~np.isfinite(start)),
        ("t_span[1]", end, np.isnan(end) if endless else ~np.isfinite(end)),
    ):
        if bad.any():
            hint = ": only where an event ends the solve, Event(g, terminal=True), may a span be endless"
            found = f"{ends[bad][0]} in {_row(bad)}"
            raise ValueError(f"{name} must be finite, but is {found}{hint if name == 't_span[1]' else ''}")
    with np.errstate(over="ignore"):
        too_long = np.isfinite(end) & ~np.isfinite(end - start)
    if too_long.any():
        raise ValueError(
            f"t_span spans more than a float can hold in {_row(too_long)}, from {start[too_long][0]:g} to "
            f"{end[too_long][0]:g}: rescale time"
        )
    if t_eval is None:
        return RowTimes(start, end, None), MovingTimes(moving_start, moving_end, None)
    outputs, moving = _outputs(t_eval, lead)
    for row, given in enumerate(t_eval) if _is_ragged(t_eval) else ():
        outputs[row] = _snapped(outputs[row : row + 1], given, start[row : row + 1], end[row : row + 1])[0]
    outputs = _snapped(outputs, t_eval, start, end)
    _check_outputs(outputs, start, end)
    return RowTimes(start, end, outputs), MovingTimes(moving_start, moving_end, moving)


def times_of_one(times: Times) -> tuple[RowTimes, MovingTimes]:
    """The times of a problem without batch dimensions as those of one row."""
    outputs = None if times.outputs is None else np.array([times.outputs], dtype=np.float64).reshape(1, -1)
    rows = RowTimes(np.array([times.start]), np.array([times.end]), outputs)
    tensor = times.tensor
    if tensor is None:
        return rows, MovingTimes(None, None, None)
    return rows, MovingTimes(tensor[:1], tensor[1:2], None if outputs is None else tensor[2:].unsqueeze(0))


def as_times(name: str, value: Any) -> tuple[np.ndarray, Tensor | None]:
    """Times of any shape as float64, and as a float64 tensor on the CPU if they need a gradient.

    Raises:
        TypeError: they are no real numbers.
    """
    if isinstance(value, bool | str) or value is None:
        raise TypeError(f"{name} must be a number or a tensor of numbers, got {value!r}")
    try:
        value = joined(value)
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be a number or a tensor of numbers, got {type(value).__name__}") from None
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{name} must hold real numbers, got {tensor.dtype}")
    if not isinstance(value, Tensor | np.ndarray):
        tensor = torch.as_tensor(value, dtype=torch.float64)  # a list in default precision would be rounded
    tensor = tensor.to("cpu", torch.float64)
    return tensor.detach().numpy(), tensor if moves(tensor) else None


def _times_of_shape(name: str, value: Any, lead: tuple[int, ...]) -> tuple[np.ndarray, Tensor | None]:
    """One time for each row, [rows]."""
    times, moving = as_times(name, value)
    if times.shape not in ((), (1,), lead):
        raise ValueError(
            f"{name} must be a number or have the shape of the batch, {lead}, got shape {times.shape}: "
            "one time for each row"
        )
    rows = math.prod(lead)
    if times.size == 1 and times.shape != lead:
        return np.full(rows, float(times.reshape(()))), moving if moving is None else moving.reshape(1).expand(rows)
    return times.reshape(rows).copy(), moving if moving is None else moving.reshape(rows)


def _outputs(t_eval: Any, lead: tuple[int, ...]) -> tuple[np.ndarray, Tensor | None]:
    """The times asked for, [rows, T], NaN for none."""
    rows = math.prod(lead)
    if _is_ragged(t_eval):
        if len(lead) != 1 or len(t_eval) != rows:
            raise ValueError(
                f"t_eval is a list of {len(t_eval)} series of times: give one for each row of a batch with "
                f"batch_dims=1, here of shape {lead}; or a tensor of shape {shape_text(lead, 'T')} with NaN for no time"
            )
        series = [as_times(f"t_eval[{row}]", entry) for row, entry in enumerate(t_eval)]
        for row, (times, _) in enumerate(series):
            if times.ndim != 1:
                raise ValueError(f"t_eval[{row}] must be one-dimensional, got shape {times.shape}")
        entries = [torch.from_numpy(times) if moving is None else moving for times, moving in series]
        tensor = torch.nn.utils.rnn.pad_sequence(entries, batch_first=True, padding_value=math.nan)
        return tensor.detach().numpy(), tensor if moves(tensor) else None
    times, moving = as_times("t_eval", t_eval)
    if times.ndim == 1:
        times = np.broadcast_to(times, (rows, len(times)))
        return times.copy(), moving if moving is None else moving.expand(rows, -1)
    if times.shape[:-1] != lead:
        raise ValueError(
            f"t_eval must be one-dimensional or of the shape {shape_text(lead, 'T')}, times for each row, got "
            f"{times.shape}" + (": write t_eval=[0.5]" if times.ndim == 0 else "")
        )
    return times.reshape(rows, -1).copy(), moving if moving is None else moving.reshape(rows, -1)


def _snapped(outputs: np.ndarray, given: Any, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Those outputs that equal an end of the span to the precision in which they were given, exactly equal to it."""
    eps = COARSE.get(str(getattr(given, "dtype", "")).split(".")[-1])
    if eps is None:
        return outputs
    for ends in (start[:, None], end[:, None]):
        outputs = np.where(np.abs(outputs - ends) <= eps * np.abs(ends), ends, outputs)
    return outputs


def _check_outputs(outputs: np.ndarray, start: np.ndarray, end: np.ndarray) -> None:
    direction = np.where(end >= start, 1.0, -1.0)[:, None]
    given = ~np.isnan(outputs)
    if (given[:, 1:] & ~given[:, :-1]).any():
        row = _row((given[:, 1:] & ~given[:, :-1]).any(1))
        raise ValueError(f"t_eval has NaN before other times in {row}: NaN may only fill up the end of a row")
    if np.isinf(outputs).any():
        raise ValueError(f"t_eval must be finite, but is infinite in {_row(np.isinf(outputs).any(1))}")
    with np.errstate(invalid="ignore"):
        wrong = ((outputs[:, 1:] - outputs[:, :-1]) * direction <= 0).any(1)
        low, high = np.minimum(start, end)[:, None], np.maximum(start, end)[:, None]
        outside = ((outputs < low) | (outputs > high)).any(1)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"t_eval must run strictly from t0 to t1 in every row, but in row {row}, which goes from {start[row]:g} to "
            f"{end[row]:g}, it is {_short(outputs[row])}"
        )
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        raise ValueError(
            f"t_eval holds times outside t_span = ({start[row]:g}, {end[row]:g}) in row {row}: {_short(outputs[row])}; "
            "widen t_span"
        )


def _length(series: Any) -> int:
    """The length of a series, 0 if it is none."""
    if isinstance(series, Tensor | np.ndarray):
        return len(series) if series.ndim else 0
    return len(series) if isinstance(series, list | tuple) else 0


def _is_ragged(t_eval: Any) -> bool:
    """Whether there is a series for each row."""
    return isinstance(t_eval, list | tuple) and any(_is_series(entry) for entry in t_eval)


def shape_text(lead: tuple[int, ...], last: str) -> str:
    """A shape with a letter for its last dimension, for messages."""
    return f"({', '.join([*map(str, lead), last])}{'' if lead else ','})"


def _is_series(entry: Any) -> bool:
    return isinstance(entry, list | tuple) or (isinstance(entry, Tensor | np.ndarray) and entry.ndim > 0)


def _row(which: Any) -> str:
    return f"row {int(np.flatnonzero(which)[0])}"


def _short(times: np.ndarray) -> str:
    return np.array2string(times, threshold=6, edgeitems=3, separator=", ")
