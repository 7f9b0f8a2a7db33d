"""Times: Python floats for the step loop, tensors for `func` and for gradients."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchivp.torch_func import moves

COARSE = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""The relative spacing of dtypes in which times may be given, where it is larger than that of a Python float."""

DOUBLE = 2.0**-52
"""The relative spacing of Python floats."""


def spacing_of(*times: Any) -> float:
    """The largest relative spacing of the dtypes in which these times were given."""
    return max(COARSE.get(str(getattr(t, "dtype", "")).split(".")[-1], DOUBLE) for t in times)


def time_dtype(device: torch.device) -> torch.dtype:
    """The dtype in which times are computed on `device`: float64 wherever the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def time_scalar(t: float | Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The time `t` as `func` receives it: a 0-d tensor."""
    if isinstance(t, float):
        return torch.scalar_tensor(t, dtype=dtype, device=device)
    return torch.as_tensor(t, dtype=dtype, device=device)


def time_value(t: float | Tensor) -> float:
    """The time `t` as a float, without its gradient."""
    return t.detach().item() if isinstance(t, Tensor) else t


def carried(func: Callable[[Tensor, Tensor], Tensor], y: Tensor, t: Tensor, motion: Tensor) -> Tensor:
    """The states `y` at the times `t`, carried along the solution by a `motion` that is zero, but not its derivatives.

    One step of the classical Runge-Kutta method, whose length is zero: of derivatives by the motion, and of mixed ones,
    those up to the fourth order are right.

    Args:
        func: the right-hand side, called as `func(t, y)`.
        y: [n, size].
        t: as `func` receives it.
        motion: of the shape of `t`.
    """
    motion = motion.to(t)
    step, half = motion.to(y.dtype), 0.5 * motion
    k1 = func(t, y)
    k2 = func(t + half, y + 0.5 * step * k1)
    k3 = func(t + half, y + 0.5 * step * k2)
    k4 = func(t + motion, y + step * k3)
    return y + step / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)


class Times:
    """The times of a problem: Python floats for the step loop, and the tensor behind them if it needs a gradient.

    Attributes:
        start: where the integration starts.
        end: where it ends; reached exactly.
        outputs: the requested times, in the order of integration, or None for every accepted step.
        tensor: all known times as one float64 tensor, the start first, if a gradient with respect to time was asked
            for.
        anchors: ends of the solver's own steps that do not move with the start.
        settles: whether those after the first of the anchors do not either.
        spacing: the relative spacing of the numbers in which the times were given.
    """

    def __init__(
        self,
        start: float,
        end: float,
        outputs: Sequence[float] | None,
        known: Sequence[float] = (),
        tensor: Tensor | None = None,
        fixed: frozenset[float] = frozenset(),
        anchors: frozenset[float] = frozenset(),
        settles: bool = False,
        spacing: float = DOUBLE,
    ) -> None:
        self.start = start
        self.end = end
        self.outputs = None if outputs is None else tuple(outputs)
        self.direction = 1.0 if end >= start else -1.0
        self.tensor = tensor
        self._known = known
        self._fixed = fixed
        self.anchors, self.settles = anchors, settles
        passed = [t for t in anchors if (t - start) * self.direction > 0]
        self._settled = min(passed, key=lambda t: t * self.direction) if settles and passed else None
        self.spacing = spacing
        # An output is the entry that asked for it, even if it equals an end of the span; the start is the first.
        self._index = {t: i for i, t in enumerate(known)}
        if known:
            self._index[start] = 0
        self._entries: tuple[Tensor, ...] = () if tensor is None else tensor.unbind()

    def at(self, t: float) -> float | Tensor:
        """The time `t` as the step loop hands it on: a float, or a tensor through which a gradient flows.

        A time that the user gave is that entry of the user's tensor; a time that the solver chose moves with
        the start time; the time of an event stays where it is, and so does one at which func has a jump or a kink,
        and those of steps that are sized by their errors after it: a method begins anew there, with short ones.
        """
        if self.tensor is None:
            return t
        if t in self._fixed:
            return torch.tensor(t, dtype=torch.float64)
        index = self._index.get(t)
        if t in self.anchors and t not in (self.start, self.end):
            return torch.tensor(t, dtype=torch.float64)
        if index is not None:
            return self._entries[index]
        if self._settled is not None and (t - self._settled) * self.direction > 0:
            return torch.tensor(t, dtype=torch.float64)
        return self._entries[0] + (t - self.start)

    def given(self, t: float) -> Tensor:
        """The entry of the user's tensor for a time that the user gave."""
        return self._entries[self._index[t]]

    def motion(self, t: float) -> Tensor | None:
        """By how much an output at `t` moves against the end of the step there: zero, but not its gradient.

        None if they move together. They do not where func has a jump or a kink.
        """
        if self.tensor is None or t not in self.anchors or t not in self._index or t in (self.start, self.end):
            return None
        return self.given(t) - t

    def select(self, times: Sequence[float]) -> Tensor:
        """The series `times` as a float64 tensor; with its gradient if there is one."""
        if self.tensor is None:
            return torch.tensor(times, dtype=torch.float64)
        return torch.stack([torch.as_tensor(self.at(t)) for t in times]) if times else self.tensor[:0]

    def position(self, t: float) -> int | None:
        """Where the gradient with respect to the time `t` belongs in `tensor`; None if it belongs nowhere."""
        return None if t in self._fixed else self._index.get(t, 0)

    def with_tensor(self, tensor: Tensor | None) -> Times:
        """The same times, their gradient flowing to `tensor`."""
        return self._with(tensor=tensor)

    def anchored(self, anchors: Collection[float], settles: bool) -> Times:
        """The same times; the solver's own steps may end at `anchors`, which do not move with the start.

        `settles` says whether later ones of its own do not either.
        """
        return self._with(anchors=frozenset(anchors), settles=settles) if anchors else self

    def _with(self, **changes: Any) -> Times:
        """The same times but for some."""
        same = {name: getattr(self, name) for name in ("start", "end", "outputs", "tensor", "anchors", "settles")}
        return Times(**{**same, "known": self._known, "fixed": self._fixed, "spacing": self.spacing, **changes})

    def with_end(self) -> Times:
        """The same times, the end of the span among the outputs, if there is a choice of outputs."""
        if self.outputs is None or (self.outputs and self.outputs[-1] == self.end):
            return self
        return self._with(outputs=[*self.outputs, self.end])

    def until(self, t: float) -> Times:
        """The same times, ended at the event at `t`, which is the last output."""
        outputs = [s for s in self.outputs or () if (t - s) * self.direction > 0]
        return self._with(end=t, outputs=[*outputs, t], fixed=self._fixed | {t})


_OF_ROWS = {
    "t": "solve_ivp(func, (t0, t1), y0, t_eval={name}, batch_dims={dims})",
    "t_eval": "solve_ivp(func, (t0, t1), y0, t_eval={name}, batch_dims={dims})",
    "t_span": "t_span=({name}[..., 0], {name}[..., 1]) with batch_dims={dims}",
}
"""What to write for times of the rows of a batch, given as each of these arguments."""


def check_times(
    t: Any, name: str = "t", monotone: bool = True, endless: bool = False, example: str | None = None
) -> tuple[list[float], Tensor | None]:
    """Check a strictly monotone series of times; the last one may be infinite if the series may be `endless`.

    Args:
        t: the times.
        name: what they are called in messages.
        monotone: whether they must be in order.
        endless: whether the last one may be infinite.
        example: what to write instead of what is none; None for advice that follows from `name`.

    Returns:
        The times as floats, and `t` as a float64 tensor on the CPU if a derivative of it is wanted, else None.

    Raises:
        TypeError: `t` is not a real tensor, array or sequence of numbers.
        ValueError: `t` is empty, not one-dimensional, not finite or not strictly monotone.
    """
    given = t
    if not isinstance(t, Tensor):
        try:
            if _foreign(t):
                raise TypeError
            t = joined(t)
            if not isinstance(t, Tensor):
                t = torch.as_tensor(np.asarray(t, dtype=np.float64))
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(
                f"{name} must be a one-dimensional tensor of times, got {_foreign(t) or type(t).__name__}: "
                f"write {example or f'{name}=torch.linspace(t0, t1, steps)'}"
            ) from None
    if t.is_complex() or t.dtype == torch.bool:
        real = f"{name}.real" if t.is_complex() else f"{name}.double()"
        raise TypeError(f"{name} must hold real numbers, got {t.dtype}: write {example or real}")
    if t.ndim != 1:
        flat = f"{name}.reshape(1)" if t.ndim == 0 else f"{name}.flatten()"
        if not isinstance(given, Tensor | np.ndarray):
            flat = f"{name}=[{given!r}]" if t.ndim == 0 else f"{name}=torch.tensor({name}).flatten()"
        advice = f"write {example or flat}"
        if t.ndim > 1 and name in _OF_ROWS:
            of_rows = _OF_ROWS[name].format(name=name, dims=t.ndim - 1)
            advice = f"for one series {advice}; for times of their own in the rows of a batch write {of_rows}"
        raise ValueError(f"{name} must be one-dimensional, got shape {tuple(t.shape)}: {advice}")
    if t.numel() == 0:
        raise ValueError(f"{name} is empty: pass at least one time")
    values: list[float] = t.detach().to("cpu", torch.float64).tolist()
    for i, value in enumerate(values) if not all(map(math.isfinite, values)) else ():
        if not math.isfinite(value) and not (endless and i == len(values) - 1 and not math.isnan(value)):
            raise ValueError(f"{name} must be finite, but {name}[{i}] = {value}")
    if not endless and not math.isfinite(values[-1] - values[0]):
        raise ValueError(f"{name} spans more than a float can hold, from {values[0]:g} to {values[-1]:g}: rescale time")
    if monotone:
        _check_monotone(values, name)
    return values, t.to("cpu", torch.float64) if moves(t) else None


def joined(value: Any) -> Any:
    """Lists of numbers, nested at will, with tensors among them, as one tensor: derivatives reach its entries.

    Anything else is returned as it is.
    """
    if not isinstance(value, list | tuple):
        return value
    entries = [joined(entry) for entry in value]
    if not any(isinstance(entry, Tensor) for entry in entries):
        return value
    return torch.stack([x.cpu() if isinstance(x, Tensor) else torch.tensor(x, dtype=torch.float64) for x in entries])


def _foreign(t: Any) -> str:
    """What NumPy would take for numbers, although it is none, in words; empty if there is no such thing."""
    for entry in t if isinstance(t, list | tuple) else [t]:
        dtype = entry.dtype if isinstance(entry, Tensor | np.ndarray) else None
        if entry is None or isinstance(entry, str | bool | np.bool_) or dtype in (torch.bool, np.dtype(bool)):
            kind = type(entry).__name__ if dtype is None else f"an array of {dtype}"
            return kind if entry is t else f"a {type(t).__name__} with {kind}"
    return ""


def _check_monotone(values: list[float], name: str) -> None:
    direction = 1.0 if values[-1] >= values[0] else -1.0
    if all(map(operator.lt if direction > 0 else operator.gt, values, values[1:])):
        return
    unique, in_order = f"torch.unique({name})", f"{name}.sort().values"
    if direction < 0:
        unique, in_order = f"{unique}.flip(0)", f"{name}.sort(descending=True).values"
    for i, (before, after) in enumerate(pairwise(values)):
        if after == before:
            raise ValueError(
                f"{name} must be strictly increasing or decreasing, but {name}[{i}] = {name}[{i + 1}] = {after}: "
                f"drop the repeated time, {name} = {unique}"
            )
        if (after - before) * direction < 0:
            raise ValueError(
                f"{name} must be strictly increasing or decreasing, but {name}[{i}] = {before} and "
                f"{name}[{i + 1}] = {after}: sort it, {name} = {in_order}"
            )


def snap(times: list[float], given: Any, ends: Sequence[float]) -> list[float]:
    """The `times`, those that equal one of the `ends` to the precision of `given` exactly equal to it.

    In single precision 0.1 is another number than in double; asked for up to 0.1, it should not lie outside.
    """
    if not (isinstance(given, Tensor | np.ndarray) and str(given.dtype).split(".")[-1] in COARSE):
        return times
    eps = COARSE[str(given.dtype).split(".")[-1]]
    return [next((end for end in ends if abs(t - end) <= eps * abs(end)), t) for t in times]
