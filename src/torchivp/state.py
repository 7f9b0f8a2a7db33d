"""The state as the user sees it, and as the engine does: any pytree of tensors as one [rows, size] tensor.

Everything below the front doors works on one flat tensor. Its rows are the problems of a batch, which step on their
own; without batch dimensions there is one row, and all of `y0` shares a step.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchivp.boundary import warn

_HALF = (torch.float16, torch.bfloat16)

_TIMES_TO_TELL = 32
"""There is a warning of spans with fewer different times, in the precision in which functions are told of them."""


class StateLayout:
    """How a pytree of tensors lies in one flat tensor.

    Args:
        y0: the pytree.
        batch_dims: how many leading dimensions of each leaf number the rows.

    Attributes:
        lead: the sizes of the batch dimensions.
        rows: the number of rows, 1 without batch dimensions.
        shapes: the shape of each leaf in one row.
        sizes: the number of elements of each leaf in one row.
        size: the number of elements of all leaves in one row.
        dtype: the dtype of the flat tensor: the leaves' promoted dtype, float32 for half-precision leaves.
        real_dtype: the dtype of the time that `func` receives: the real part of the leaves' promoted dtype.
        device: the device of every leaf.
        skeleton: the structure of `y0` with the numbers of its leaves in their places.
    """

    def __init__(self, y0: Any, batch_dims: int = 0):
        leaves, self._spec = pytree.tree_flatten(y0)
        if not leaves:
            raise ValueError("y0 holds no tensor: pass a tensor, or a tuple, list or dict of tensors")
        self.is_tensor = isinstance(y0, Tensor)
        self.skeleton: Any = 0 if self.is_tensor else pytree.tree_unflatten(list(range(len(leaves))), self._spec)
        self._paths = [""] if self.is_tensor else _paths(self.skeleton)
        for path, leaf in zip(self._paths, leaves, strict=True):
            _check_leaf(f"y0{path}", leaf)
        self.device: torch.device = leaves[0].device
        if any(leaf.device != self.device for leaf in leaves):
            devices = ", ".join(sorted({str(leaf.device) for leaf in leaves}))
            raise ValueError(
                f"the tensors of y0 lie on different devices ({devices}): move them to one, y.to('{self.device}')"
            )
        self.lead: tuple[int, ...] = tuple(leaves[0].shape[:batch_dims])
        for path, leaf in zip(self._paths, leaves, strict=True):
            _check_lead(f"y0{path}", leaf, batch_dims, self.lead)
        self.rows = math.prod(self.lead)
        self.shapes = [leaf.shape[batch_dims:] for leaf in leaves]
        self._shape = leaves[0].shape
        self.sizes = [math.prod(shape) for shape in self.shapes]
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

    @property
    def spec(self) -> pytree.TreeSpec:
        """The structure of `y0`."""
        return self._spec

    def with_rows(self, rows: int) -> StateLayout:
        """The layout of a batch of so many such rows, in one batch dimension."""
        other = copy.copy(self)
        other.lead, other.rows = (rows,), rows
        other._shape = torch.Size((rows, *self.shapes[0]))
        if self.template is not None:
            other.template = self.template.new_empty(other._shape)
        return other

    def __getstate__(self) -> Any:  # torch warns of copies of the structure itself
        return self.__dict__ | {"_spec": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _spec=pytree.tree_structure(state["skeleton"]))

    def check_times(self, start: float | np.ndarray, end: float | np.ndarray) -> None:
        """Check that functions can be told of the times between these, in the state's precision.

        A warning says so where next to nothing of the span is left in this precision.

        Raises:
            ValueError: a time is too large for torch to convert.
        """
        if self.real_dtype is torch.float64:
            return
        spans = np.array([np.atleast_1d(start), np.atleast_1d(end)], dtype=np.float64)
        farthest, info = np.abs(np.where(np.isfinite(spans), spans, 0.0)).max(0), torch.finfo(self.real_dtype)
        told = f"the right-hand side is told of the time in the precision of y0, {self.real_dtype}"
        if self.real_dtype is torch.float32 and (farthest > info.max).any():
            raise ValueError(
                f"{told}, whose numbers end at {info.max:g}, and the times reach {farthest.max():g}: take y0 in double "
                "precision, or rescale time"
            )
        length = np.abs(spans[1] - spans[0])
        lost = (length > 0.0) & (farthest > 10.0 * length) & (info.eps * farthest > length / _TIMES_TO_TELL)
        if (lost | (farthest > info.max)).any():  # no numbers in it: Python shows the same text once
            warn(
                f"{told}, which has less than {_TIMES_TO_TELL} numbers for the times of the solve, or none for the "
                "last of them: if it depends on time, take y0 in double precision, or let time start near 0"
            )

    def flatten(self, y: Any) -> Tensor:
        """Lay a pytree shaped like `y0` out as [rows, size]."""
        return self.laid_out([y] if self.is_tensor else self.leaves_of(y))

    def start(self, y0: Any) -> Tensor:
        """`y0` laid out, in memory of its own: a function that writes into the state does not reach the caller's."""
        return self.flatten(y0).clone(memory_format=torch.contiguous_format)

    def laid_out(self, leaves: Sequence[Tensor]) -> Tensor:
        """Lay the leaves of such a pytree out as [rows, size]."""
        if len(leaves) == 1:
            return leaves[0].to(self.dtype).reshape(self.rows, self.size)
        parts = zip(leaves, self.sizes, strict=True)
        return torch.cat([leaf.to(self.dtype).reshape(self.rows, size) for leaf, size in parts], dim=1)

    def leaves_of(self, value: Any) -> list[Any]:
        """The leaves of a structure like `y0`, in the order of those of `y0`.

        Tuples, named tuples and lists stand for each other, and so do dicts whose keys come in another order; one
        tensor stands for a flat tuple of its entries.

        Raises:
            ValueError: the structure is another one.
        """
        if isinstance(value, Tensor) and self._is_flat_sequence():
            value = tuple(value.unbind())
        leaves: list[Any] = [None] * len(self.shapes)
        _place(value, self.skeleton, leaves)
        return leaves

    def unflatten(self, flat: Tensor, lead: tuple[int, ...] | None = None) -> Any:
        """Give a [prod(lead), size] tensor the shape of `y0`, each leaf with the dimensions `lead`, or its own."""
        if lead is None:
            if self.template is not None:
                return flat.view_as(self.template)
            lead = self.lead
        if self.template is not None:
            shape = lead + self.shapes[0]
            return flat if flat.shape == shape else flat.reshape(shape)
        leaves = [
            _cast(part, dtype).reshape(lead + shape)
            for part, shape, dtype in zip(flat.split(self.sizes, dim=1), self.shapes, self.dtypes, strict=True)
        ]
        return pytree.tree_unflatten(leaves, self._spec)

    def leaves(self, flat: Tensor) -> list[Tensor]:
        """The leaves of a [1, size] tensor, in their shapes."""
        return [part.reshape(shape) for part, shape in zip(flat.split(self.sizes, dim=1), self.shapes, strict=True)]

    def parts(self) -> list[slice]:
        """Where each leaf lies in the flat tensor."""
        return [slice(end - size, end) for end, size in zip(accumulate(self.sizes), self.sizes, strict=True)]

    def checked_derivative(self, k: Any) -> Tensor:
        """Check what `func` returned, and lay it out as [rows, size]."""
        if (
            self.template is not None
            and isinstance(k, Tensor)
            and (shape := k.shape) == self._shape
            and k.dtype is self.dtype
            and k.device == self.device
            and k.layout is torch.strided
        ):
            return k if shape == (self.rows, self.size) else k.reshape(self.rows, self.size)
        return self.laid_out(self._checked(k, "func", "dy/dt"))

    def checked_jacobian(self, matrix: Any) -> Tensor:
        """Check what the user's function for the Jacobian returned, and lay it out as [rows, size, size].

        Raises:
            TypeError: it is no tensor.
            ValueError: it is of the wrong shape.
        """
        if not isinstance(matrix, Tensor):
            how = ": write torch.from_numpy(matrix)" if isinstance(matrix, np.ndarray) else ""
            raise TypeError(f"jac(t, y) must return a tensor, got {type(matrix).__name__}{how}")
        shape = (*self.lead, *self.shapes[0], *self.shapes[0])
        if tuple(matrix.shape) != shape:
            raise ValueError(
                f"jac(t, y) must return shape {shape}, d func_i / d y_j with the index i of func first, as "
                f"torch.func.jacfwd does; it returned shape {tuple(matrix.shape)}"
            )
        dense = matrix if matrix.layout is torch.strided else matrix.to_dense()
        return dense.to(self.device, self.dtype).reshape(self.rows, self.size, self.size)

    def changed(self, name: str, y: Any) -> Tensor:
        """Check the state that the user's function `name` returns, and lay it out as [rows, size]."""
        return self.laid_out(self._checked(y, name, "the state"))

    def check(self, name: str, value: Any, further: tuple[int, ...] = (), hint: str = "") -> None:
        """Check what the user's function `name` returns: leaves like those of the state, with `further` dimensions.

        Raises:
            TypeError: the structure or a dtype does not fit.
            ValueError: a shape or device does not fit; `hint` ends the sentence.
        """
        self._checked(value, name, "a value", further, hint)

    def _checked(self, k: Any, caller: str, what: str, further: tuple[int, ...] = (), hint: str = "") -> list[Tensor]:
        if k is None:
            raise TypeError(f"{caller}(t, y) returned None: is a return missing?")
        try:
            leaves = self.leaves_of(k)
        except ValueError:
            expected, found = self.describe(), _describe(k)
            if expected == found:  # they differ in what only their own classes know
                expected, found = str(self._spec), str(pytree.tree_structure(k))
            raise TypeError(
                f"{caller} must return the same structure as y0: y0 is {expected}, {caller} returned {found}"
            ) from None
        for path, leaf, shape, dtype in zip(self._paths, leaves, self.shapes, self.dtypes, strict=True):
            name = f"{caller}(t, y){path}"
            if not isinstance(leaf, Tensor):
                raise TypeError(f"{name} must be a tensor, got {type(leaf).__name__}")
            if leaf.shape != (*self.lead, *shape, *further):
                expected = f", so {caller} must return {(*self.lead, *shape, *further)}" if further else ""
                raise ValueError(
                    f"{caller} must return {what} in the shape of y: y{path} has shape {(*self.lead, *shape)}{expected}"
                    f", {name} has shape {tuple(leaf.shape)}{hint}"
                )
            if leaf.layout is not torch.strided:
                raise TypeError(f"{name} must be a dense tensor, got one of layout {leaf.layout}: return .to_dense()")
            if leaf.device != self.device:
                raise ValueError(
                    f"{name} lies on {leaf.device}, but y0 on {self.device}: "
                    f"move {caller}'s parameters and constants there, {caller}.to('{self.device}')"
                )
            if not torch.can_cast(leaf.dtype, dtype):
                raise TypeError(
                    f"{name} is {leaf.dtype}, which does not fit into the state's {dtype}: "
                    f"start from y0.to({leaf.dtype})"
                )
        return leaves

    def _is_flat_sequence(self) -> bool:
        skeleton = self.skeleton
        return isinstance(skeleton, tuple | list) and all(isinstance(entry, int) for entry in skeleton)

    def describe(self) -> str:
        """The state in words, for messages."""
        return _describe(pytree.tree_unflatten([torch.empty(s, device="meta") for s in self.shapes], self._spec))

    def name(self, index: int) -> str:
        """The element `index` of the flat tensor as the user would write it, such as `y['a'][2]`."""
        for path, part, shape in zip(self._paths, self.parts(), self.shapes, strict=True):
            if index < part.stop:
                position = np.unravel_index(index - part.start, tuple(shape))
                return f"y{path}" + (f"[{', '.join(map(str, position))}]" if position else "")
        raise IndexError(index)


def elsewhere(y: Tensor) -> Tensor:
    """States near these, [rows, size], where nothing vanishes by chance.

    No element is zero or equals another, and none changes its sign.
    """
    part = 0.1 + 0.2 * torch.frac(0.618034 * torch.arange(1, y.numel() + 1, device=y.device)).reshape(y.shape)
    size = torch.where(y == 0, torch.nan_to_num(y.abs(), posinf=0.0).amax() if y.numel() else 1.0, y.abs())
    size = torch.where(size == 0, 1.0, size)
    along = torch.where(y == 0, torch.ones_like(y), torch.sgn(y))
    return y + along * (part * size).to(y.dtype)


def _paths(skeleton: Any) -> list[str]:
    """How a user writes the way to each leaf, such as `['a'][2]`; numbers where a class of theirs does not tell."""
    try:
        return [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(skeleton)[0]]
    except ValueError:
        return [f", leaf {number}," for number in pytree.tree_leaves(skeleton)]


def _place(value: Any, node: Any, leaves: list[Any]) -> None:
    """Put the leaves of `value` where `node`, a part of the skeleton of the state, has their numbers.

    Raises:
        ValueError: the structures differ.
    """
    if isinstance(node, int):
        if not pytree.tree_is_leaf(value):
            raise ValueError(value)
        leaves[node] = value
    elif isinstance(node, dict) and isinstance(value, dict) and node.keys() == value.keys():
        for key, child in node.items():
            _place(value[key], child, leaves)
    elif isinstance(node, tuple | list) and isinstance(value, tuple | list) and len(node) == len(value):
        for entry, child in zip(value, node, strict=True):
            _place(entry, child, leaves)
    else:  # a structure of the user's own, or one that does not fit
        found, spec = pytree.tree_flatten(value)
        numbers, expected = pytree.tree_flatten(node)
        if spec != expected:
            raise ValueError(value)
        for number, leaf in zip(numbers, found, strict=True):
            leaves[number] = leaf


def _check_leaf(name: str, leaf: Any) -> None:
    if not isinstance(leaf, Tensor):
        raise TypeError(
            f"y0 must be a tensor or a tuple, list or dict of tensors, but {name} is {type(leaf).__name__}: "
            f"write torch.tensor({leaf!r})"
            if isinstance(leaf, int | float | complex)
            else f"y0 must be a tensor or a tuple, list or dict of tensors, but {name} is {type(leaf).__name__}"
            + (f": write torch.from_numpy({name})" if isinstance(leaf, np.ndarray) else "")
        )
    if leaf.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got one of layout {leaf.layout}: write {name}.to_dense()")
    if not (leaf.is_floating_point() or leaf.is_complex()):
        raise TypeError(f"{name} must be floating point or complex, got {leaf.dtype}: write {name}.double()")


def _check_lead(name: str, leaf: Tensor, batch_dims: int, lead: tuple[int, ...]) -> None:
    if leaf.ndim < batch_dims or leaf.shape[:batch_dims] != lead:
        raise ValueError(
            f"batch_dims={batch_dims}, so the first {batch_dims} dimensions of every tensor of y0 number the rows: "
            f"they must be {lead} throughout, but {name} has shape {tuple(leaf.shape)}"
        )


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
    if not pytree.tree_is_leaf(value):
        return f"a {type(value).__name__} with {', '.join(map(_describe, pytree.tree_leaves(value)))}"
    return type(value).__name__
