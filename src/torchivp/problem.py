"""The checked problem: any pytree `y0` seen as one [rows, size] tensor, and `func` wrapped to match.

Everything below the front doors works on one flat tensor of shape [1, size] (one row: all of `y0` shares a
step). This module is the only one that knows what the user's state looks like.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

_HALF = (torch.float16, torch.bfloat16)


def time_dtype(device: torch.device) -> torch.dtype:
    """The dtype in which times are computed on `device`: float64 wherever the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def time_scalar(t: float | Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The time `t` as `func` receives it: a 0-d tensor."""
    if isinstance(t, Tensor):
        return t.to(dtype=dtype, device=device)
    return torch.scalar_tensor(t, dtype=dtype, device=device)


class StateLayout:
    """How a pytree of tensors lies in one flat tensor.

    Attributes:
        shapes: the shape of each leaf.
        sizes: the number of elements of each leaf.
        size: the number of elements of all leaves.
        dtype: the dtype of the flat tensor: the leaves' promoted dtype, float32 for half-precision leaves.
        real_dtype: the dtype of the time that `func` receives: the real part of the leaves' promoted dtype.
        device: the device of every leaf.
    """

    def __init__(self, y0: Any):
        leaves, self._spec = pytree.tree_flatten(y0)
        if not leaves:
            raise ValueError("y0 holds no tensor: pass a tensor, or a tuple, list or dict of tensors")
        for path, leaf in zip(self._paths(), leaves, strict=True):
            _check_leaf(f"y0{path}", leaf)
        self.device: torch.device = leaves[0].device
        if any(leaf.device != self.device for leaf in leaves):
            devices = ", ".join(sorted({str(leaf.device) for leaf in leaves}))
            raise ValueError(
                f"the tensors of y0 lie on different devices ({devices}): move them to one, y.to('{self.device}')"
            )
        self.is_tensor = isinstance(y0, Tensor)
        self.shapes = [leaf.shape for leaf in leaves]
        self.sizes = [leaf.numel() for leaf in leaves]
        self.size = sum(self.sizes)
        self.dtypes = [leaf.dtype for leaf in leaves]
        promoted = self.dtypes[0]
        for dtype in self.dtypes[1:]:
            promoted = torch.promote_types(promoted, dtype)
        self.real_dtype = promoted.to_real()
        self.dtype = torch.float32 if promoted in _HALF else promoted
        self.template: Tensor | None = None
        """An empty tensor like `y0` where flattening `y0` is a mere change of shape, else None."""
        if self.is_tensor and self.dtype == self.dtypes[0]:
            self.template = torch.empty_like(leaves[0], memory_format=torch.contiguous_format)

    def _paths(self) -> list[str]:
        filled = pytree.tree_unflatten([0] * self._spec.num_leaves, self._spec)
        return [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(filled)[0]]

    def flatten(self, y: Any) -> Tensor:
        """Lay a pytree shaped like `y0` out as [1, size]."""
        leaves = pytree.tree_leaves(y)
        if len(leaves) == 1:
            return leaves[0].to(self.dtype).reshape(1, self.size)
        return torch.cat([leaf.to(self.dtype).reshape(1, -1) for leaf in leaves], dim=1)

    def unflatten(self, flat: Tensor, lead: tuple[int, ...] = ()) -> Any:
        """Give a [prod(lead), size] tensor the shape of `y0`, each leaf with the leading dimensions `lead`."""
        if self.template is not None:
            return flat.reshape(lead + self.shapes[0]) if lead else flat.view_as(self.template)
        leaves = [
            _cast(part, dtype).reshape(lead + shape)
            for part, shape, dtype in zip(flat.split(self.sizes, dim=1), self.shapes, self.dtypes, strict=True)
        ]
        return pytree.tree_unflatten(leaves, self._spec)

    def parts(self) -> list[slice]:
        """Where each leaf lies in the flat tensor."""
        ends = np.cumsum(self.sizes).tolist()
        return [slice(end - size, end) for end, size in zip(ends, self.sizes, strict=True)]

    def flatten_derivative(self, k: Any) -> Tensor:
        """Check what `func` returned against `y0` and lay it out as [1, size]."""
        template = self.template
        if (
            template is not None
            and isinstance(k, Tensor)
            and k.shape == template.shape
            and k.dtype == template.dtype
            and k.device == template.device
        ):
            return k.reshape(1, self.size)
        return self.flatten(self._checked_derivative(k))

    def _checked_derivative(self, k: Any) -> list[Tensor]:
        if isinstance(k, Tensor) and not self.is_tensor and self._is_flat_sequence():
            k = tuple(k.unbind())
        leaves, spec = pytree.tree_flatten(k)
        same = spec == self._spec or (
            self._is_flat_sequence() and isinstance(k, tuple | list) and len(leaves) == len(self.sizes) == len(k)
        )
        if not same:
            raise TypeError(
                f"func must return the same structure as y0: y0 is {self.describe()}, func returned {_describe(k)}"
            )
        for path, leaf, shape, dtype in zip(self._paths(), leaves, self.shapes, self.dtypes, strict=True):
            name = f"func(t, y){path}"
            if not isinstance(leaf, Tensor):
                raise TypeError(f"{name} must be a tensor, got {type(leaf).__name__}")
            if leaf.shape != shape:
                raise ValueError(
                    f"func must return dy/dt in the shape of y: y{path} has shape {tuple(shape)}, "
                    f"{name} has shape {tuple(leaf.shape)}"
                )
            if leaf.device != self.device:
                raise ValueError(
                    f"{name} lies on {leaf.device}, but y0 on {self.device}: "
                    f"move func's parameters and constants there, func.to('{self.device}')"
                )
            if not torch.can_cast(leaf.dtype, dtype):
                raise TypeError(
                    f"{name} is {leaf.dtype}, which does not fit into the state's {dtype}: "
                    f"start from y0.to({leaf.dtype})"
                )
        return leaves

    def _is_flat_sequence(self) -> bool:
        return self._spec.type in (tuple, list) and self._spec.num_children == self._spec.num_leaves

    def describe(self) -> str:
        """The state in words, for messages."""
        return _describe(pytree.tree_unflatten([torch.empty(s, device="meta") for s in self.shapes], self._spec))

    def name(self, index: int) -> str:
        """The element `index` of the flat tensor as the user would write it, such as `y['a'][2]`."""
        for path, part, shape in zip(self._paths(), self.parts(), self.shapes, strict=True):
            if index < part.stop:
                position = np.unravel_index(index - part.start, tuple(shape))
                return f"y{path}" + (f"[{', '.join(map(str, position))}]" if position else "")
        raise IndexError(index)


def _check_leaf(name: str, leaf: Any) -> None:
    if not isinstance(leaf, Tensor):
        raise TypeError(
            f"y0 must be a tensor or a tuple, list or dict of tensors, but {name} is {type(leaf).__name__}: "
            f"write torch.tensor({leaf!r})"
            if isinstance(leaf, int | float | complex)
            else f"y0 must be a tensor or a tuple, list or dict of tensors, but {name} is {type(leaf).__name__}"
        )
    if not (leaf.is_floating_point() or leaf.is_complex()):
        raise TypeError(f"{name} must be floating point or complex, got {leaf.dtype}: write {name}.double()")


def _cast(part: Tensor, dtype: torch.dtype) -> Tensor:
    if part.is_complex() and not dtype.is_complex:
        part = part.real
    return part.to(dtype)


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_describe(item)}" for key, item in value.items()) + "}"
    if isinstance(value, tuple | list):
        opening, closing = "()" if isinstance(value, tuple) else "[]"
        return opening + ", ".join(map(_describe, value)) + closing
    return type(value).__name__


class CountedFunction(Protocol):
    """A function of flat states, called with a 0-d time and a [1, size] state, that counts its evaluations."""

    evaluations: int

    def __call__(self, t: Tensor, y: Tensor) -> Tensor: ...


class FlatFunction:
    """The user's `func(t, y, *args)` as a function of flat states."""

    def __init__(self, func: Callable[..., Any], layout: StateLayout, args: Sequence[Any] = ()):
        self.func = func
        self.layout = layout
        self.args = tuple(args)
        self.evaluations = 0

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        self.evaluations += 1
        k = self.func(t, self.layout.unflatten(y), *self.args)
        return self.layout.flatten_derivative(k)


class Times:
    """The times of a problem: Python floats for the step loop, and the tensor behind them if it needs a gradient.

    Attributes:
        start: where the integration starts.
        end: where it ends; reached exactly.
        outputs: the requested times, in the order of integration, or None for every accepted step.
        tensor: all known times as one float64 tensor, if a gradient with respect to time was asked for.
    """

    def __init__(
        self,
        start: float,
        end: float,
        outputs: Sequence[float] | None,
        known: Sequence[float] = (),
        tensor: Tensor | None = None,
    ) -> None:
        self.start = start
        self.end = end
        self.outputs = None if outputs is None else tuple(outputs)
        self.direction = 1.0 if end >= start else -1.0
        self.tensor = tensor
        self._known = known
        self._index = {t: i for i, t in reversed(list(enumerate(known)))}

    def at(self, t: float) -> float | Tensor:
        """The time `t` as the step loop hands it on: a float, or a tensor through which a gradient flows.

        A time that the user gave is that entry of the user's tensor; a time that the solver chose moves with
        the start time.
        """
        if self.tensor is None:
            return t
        index = self._index.get(t)
        if index is not None:
            return self.tensor[index]
        return self.tensor[self._index[self.start]] + (t - self.start)

    def select(self, times: Sequence[float]) -> Tensor:
        """The series `times` as a float64 tensor; with its gradient if there is one."""
        if self.tensor is None:
            return torch.tensor(times, dtype=torch.float64)
        return torch.stack([torch.as_tensor(self.at(t)) for t in times])

    def position(self, t: float) -> int:
        """Where the time `t`, which the user gave, stands in `tensor`."""
        return self._index[t]

    def with_tensor(self, tensor: Tensor | None) -> Times:
        """The same times, their gradient flowing to `tensor`."""
        return Times(self.start, self.end, self.outputs, self._known, tensor)


def check_times(t: Any, name: str = "t", monotone: bool = True) -> tuple[list[float], Tensor | None]:
    """Check a strictly monotone series of times.

    Returns:
        The times as floats, and `t` as a float64 tensor on the CPU if it requires a gradient, else None.

    Raises:
        TypeError: `t` is not a real tensor, array or sequence of numbers.
        ValueError: `t` is empty, not one-dimensional, not finite or not strictly monotone.
    """
    if not isinstance(t, Tensor):
        try:
            if isinstance(t, list | tuple) and any(isinstance(entry, Tensor) for entry in t):
                t = torch.stack([torch.as_tensor(entry).to("cpu", torch.float64) for entry in t])
            else:
                t = torch.as_tensor(np.asarray(t, dtype=np.float64))
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(
                f"{name} must be a one-dimensional tensor of times, got {type(t).__name__}: "
                f"write {name}=torch.linspace(t0, t1, steps)"
            ) from None
    if t.is_complex() or t.dtype == torch.bool:
        raise TypeError(f"{name} must hold real numbers, got {t.dtype}: write {name}.real")
    if t.ndim != 1:
        raise ValueError(
            f"{name} must be one-dimensional, got shape {tuple(t.shape)}"
            + (f": write {name}.reshape(1)" if t.ndim == 0 else f": write {name}.flatten()")
        )
    if t.numel() == 0:
        raise ValueError(f"{name} is empty: pass at least one time")
    values: list[float] = t.detach().to("cpu", torch.float64).tolist()
    for i, value in enumerate(values):
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, but {name}[{i}] = {value}")
    if monotone:
        _check_monotone(values, name)
    return values, t.to("cpu", torch.float64) if t.requires_grad else None


def _check_monotone(values: list[float], name: str) -> None:
    direction = 1.0 if values[-1] >= values[0] else -1.0
    for i, (before, after) in enumerate(pairwise(values)):
        if after == before:
            raise ValueError(
                f"{name} must be strictly increasing or decreasing, but {name}[{i}] = {name}[{i + 1}] = {after}: "
                f"drop the repeated time, {name} = torch.unique({name})"
            )
        if (after - before) * direction < 0:
            raise ValueError(
                f"{name} must be strictly increasing or decreasing, but {name}[{i}] = {before} and "
                f"{name}[{i + 1}] = {after}: sort it, {name} = {name}.sort().values"
            )


@dataclass
class Problem:
    """An initial value problem on a flat state.

    Attributes:
        func: called as `func(t, y)` with a 0-d `t` and `y` of shape [1, size].
        y0: the initial state, [1, size].
        times: where it starts and ends, and the times asked for.
        real_dtype: the dtype of the `t` that `func` receives.
    """

    func: CountedFunction
    y0: Tensor
    times: Times
    real_dtype: torch.dtype

    def time(self, t: float | Tensor) -> Tensor:
        """The time `t` as `func` receives it."""
        return time_scalar(t, self.real_dtype, self.y0.device)

    @staticmethod
    def build(func: Callable[..., Any], y0: Any, times: Times, args: Sequence[Any] = ()) -> Problem:
        """The problem as the user states it, checked and flattened.

        Raises:
            TypeError: `func` is not callable, or `y0` or `args` are of the wrong type.
            ValueError: `y0` is empty of tensors or its leaves lie on several devices.
        """
        if not callable(func):
            raise TypeError(f"func must be callable as func(t, y), got {type(func).__name__}")
        if not isinstance(args, tuple | list):
            raise TypeError(f"args must be a tuple, got {type(args).__name__}: write args=(args,)")
        layout = StateLayout(y0)
        return Problem(FlatFunction(func, layout, args), layout.flatten(y0), times, layout.real_dtype)
