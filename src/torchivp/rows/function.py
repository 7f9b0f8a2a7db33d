"""Functions of the user's, evaluated for all rows of a batch or for some of them."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchivp.boundary import UserFunction
from torchivp.mass import Projection
from torchivp.sparsity import Sparsity
from torchivp.split import copies_calling
from torchivp.state import StateLayout
from torchivp.torch_func import inside_transform

Result = Callable[[StateLayout, Any], Tensor]
"""Checks what a function returned for the rows of a layout, and lays it out as [rows, n]."""


class RowArguments:
    """The further arguments of a function, of which some have an entry for each row.

    Args:
        args: a pytree; tensors in it that begin with the batch dimensions have an entry for each row.
        layout: the state of all rows.

    Attributes:
        leaves: the leaves of the pytree.
        per_row: which of them have an entry for each row.
    """

    def __init__(self, args: Sequence[Any], layout: StateLayout):
        self.leaves, self._spec = pytree.tree_flatten(tuple(args))
        self._layout = layout
        dims = len(layout.lead)
        self.per_row = [
            dims > 0 and isinstance(leaf, Tensor) and tuple(leaf.shape[:dims]) == layout.lead for leaf in self.leaves
        ]

    def of_all(self) -> tuple[Any, ...]:
        """The arguments as the user gave them."""
        return pytree.tree_unflatten(self.leaves, self._spec)

    def of(self, rows: Tensor) -> tuple[Any, ...]:
        """The arguments for a choice of the rows, which then have one batch dimension."""
        dims, count = len(self._layout.lead), self._layout.rows
        leaves = [
            leaf.reshape(count, *leaf.shape[dims:])[rows] if per_row else leaf
            for leaf, per_row in zip(self.leaves, self.per_row, strict=True)
        ]
        return pytree.tree_unflatten(leaves, self._spec)

    def elsewhere(self) -> RowArguments:
        """Arguments like these, of which no two rows have the same.

        Where all have the same, as in a tensor of zeros that they share and that is as long as the batch by chance, a
        function that mixes them gives the right values for some of the rows, and wrong derivatives.
        """
        leaves = list(self.leaves)
        for i, leaf in enumerate(leaves):
            if self.per_row[i] and (leaf.is_floating_point() or leaf.is_complex()):
                size = torch.where(leaf == 0.0, 1.0, leaf.detach().abs()).to(leaf.dtype)
                part = torch.frac(0.618034 * torch.arange(1, leaf.numel() + 1, device=leaf.device)).to(leaf.dtype)
                leaves[i] = leaf.detach() + size * part.view(leaf.shape)
        return self.with_leaves(leaves)

    def with_leaves(self, leaves: Sequence[Any]) -> RowArguments:
        """The same arguments with other leaves."""
        return RowArguments(pytree.tree_unflatten(leaves, self._spec), self._layout)


class RowFunction:
    """The user's `function(t, y, *args)` on the rows of a batch.

    Args:
        function: the user's; takes `t` in the shape of the batch with a dimension of size 1 for each dimension of the
            state, and `y` in the user's shape; without batch dimensions `t` is 0-d.
        layout: the state of all rows.
        args: further arguments.
        result: checks and lays out what `function` returns.
        filler: times [rows, 1] and states [rows, size] at which it can be evaluated.
        row_wise: whether `function` may be called with some of the rows; if not, the others are filled in.
        takes_args: whether it takes the arguments.

    Attributes:
        jac: the user's function for its Jacobian.
        sparsity: where the Jacobian may have entries.
        projection: what is before dy/dt, in equations whose right-hand side this is; None for nothing.
    """

    def __init__(
        self,
        function: UserFunction,
        layout: StateLayout,
        args: RowArguments,
        result: Result,
        filler: tuple[Tensor, Tensor],
        row_wise: bool = True,
        takes_args: bool = True,
    ):
        self.call = function
        self.layout = layout
        self.args = args if takes_args else RowArguments((), layout)
        self.takes_args = takes_args
        self.result = result
        self.row_wise = row_wise
        self.jac: RowFunction | None = None
        self.sparsity: Sparsity | None = None
        self.projection: Projection | None = None
        self._filler = filler
        dims = {len(shape) for shape in layout.shapes}
        self._time_dims = (1,) * (dims.pop() if len(dims) == 1 else 0)

    @property
    def function(self) -> Callable[..., Any]:
        """What the user gave."""
        return self.call.function

    @property
    def may_repeat(self) -> bool:
        """Whether it may be called with the same row several times, at different times and states."""
        return self.row_wise and self.layout.rows > 1  # of a single row nobody has tried what it does with several

    def with_args(self, args: RowArguments) -> RowFunction:
        """The same function with other arguments."""
        other = copy.copy(self)
        other.args = args if self.takes_args else self.args
        other.jac = self.jac and self.jac.with_args(args)
        return other

    def calling(self, function: Callable[..., Any]) -> RowFunction:
        """The same, of another function that does the same."""
        other = copy.copy(self)
        other.call = self.call.calling(function)
        return other

    def filled_in(self) -> RowFunction:
        """The same function, never called with some of the rows."""
        other = copy.copy(self)
        other.row_wise = False
        return other

    def is_row_wise(self, elsewhere: tuple[Tensor, Tensor], *extra: Tensor) -> bool:
        """Whether the function seems to give the same values for some of the rows as for all, by a few tries.

        Args:
            elsewhere: times and states like those of the filler, where nothing vanishes by chance; the function need
                not be defined there, nor for other arguments.
            extra: what it takes besides.
        """
        if self.layout.rows <= 1 or not self.layout.lead:
            return True
        with torch.no_grad():
            if not self._same_for_some(self.at_filler(*extra), self._filler, extra):
                return False
            for other in (self, self.with_args(self.args.elsewhere())):
                try:
                    t, y = elsewhere
                    values = other.on(None)(t.clone(), y.clone(), *extra)
                except Exception:  # whatever goes wrong where nobody has asked for it
                    return True
                if not other._same_for_some(values, elsewhere, extra):
                    return False
            return True

    def _same_for_some(self, all_values: Tensor, place: tuple[Tensor, Tensor], extra: Sequence[Tensor]) -> bool:
        """Whether the function gives some of the rows the values that it gives them among all."""
        count, (t, y) = self.layout.rows, place
        # Fewer rows, and not in their places: whatever else has an entry for each row does not fit them.
        rows = torch.arange(count - 1, 0, -1, device=y.device)
        try:
            values = self.on(rows)(t[rows], y[rows], *(x[rows] for x in extra))
        except _Unpacked as error:  # with as many rows as a row has entries there is no error, but rows that mix
            raise _Unpacked(error.what, self.layout) from error
        except Exception:  # whatever goes wrong when rows are missing
            return False
        expected = all_values[rows]
        scale = torch.nan_to_num(expected.abs(), posinf=0.0).amax(0) if expected.numel() else expected.abs()
        close = torch.isclose(values, expected, rtol=1e-3, atol=0.0, equal_nan=True)
        return bool((close | ((values - expected).abs() <= 1e-4 * scale)).all())

    def at_filler(self, *extra: Tensor) -> Tensor:
        """The function where it can be evaluated, for all rows."""
        t, y = self._filler
        return self.on(None)(t, y.clone(), *extra)  # an apply may change its state in place

    def on(self, rows: Tensor | None) -> FunctionOnRows:
        """The function for a choice of the rows, or for all."""
        if rows is None:
            made = FunctionOnRows(self, self.layout, self.args.of_all())
        elif self.row_wise:
            made = FunctionOnRows(self, self.layout.with_rows(len(rows)), self.args.of(rows))
        else:
            made = FunctionAmongAll(self, rows, self._filler)
        made.of_rows = lambda some: self.on(some if rows is None else rows[some])
        if self.jac is not None:
            made.jacobian = self.jac.on(rows)
        return made

    def time_shape(self, layout: StateLayout) -> tuple[int, ...]:
        """The shape in which the function receives the times of the rows."""
        return layout.lead + self._time_dims if layout.lead else ()


class RowByRow:
    """A function of some rows that can be had for one of them alone.

    Attributes:
        of_rows: the function of a choice of them.
    """

    of_rows: Callable[[Tensor], RowByRow]

    def __init__(self) -> None:
        self._calls = [0]  # which copies that call a part of it share
        self._alone: list[RowByRow] = []

    @property
    def calls(self) -> int:
        """How often all of the rows, or a part of the function in all of them, were evaluated."""
        return self._calls[0]

    @calls.setter
    def calls(self, count: int) -> None:
        self._calls[0] = count

    @property
    def evaluations(self) -> int | np.ndarray:
        """How often the rows were evaluated; [rows], if some were alone."""
        return self.calls + np.array([alone.calls for alone in self._alone]) if self._alone else self.calls

    def alone(self, rows: int) -> Sequence[RowByRow]:
        """The function of each of the `rows` that there are."""
        self._alone = self._alone or [self.of_rows(torch.tensor([row])) for row in range(rows)]
        return self._alone

    @abstractmethod
    def __call__(self, t: Tensor, y: Tensor, *extra: Tensor) -> Tensor: ...


class FunctionOnRows(RowByRow):
    """A function of time [rows, 1] and state [rows, size] of some rows, and of what else there is for each row.

    Args:
        function: the user's.
        layout: the states of these rows.
        args: the further arguments for them.

    Attributes:
        args: the further arguments.
        sparsity: where its Jacobian may have entries.
        projection: what is before dy/dt, in equations whose right-hand side this is; None for nothing.
        jacobian: what the user gave for its Jacobian, on these rows.
    """

    jacobian: FunctionOnRows | None = None
    _reuses = False
    """Whether the function is seen to put what it returns where it was before."""

    def __init__(self, function: RowFunction, layout: StateLayout, args: tuple[Any, ...]):
        self._function = function.call
        self._result = partial(function.result, layout)
        self._layout = layout
        self.args = args
        self.sparsity = function.sparsity
        self.projection = function.projection
        self._time_shape = torch.Size(function.time_shape(layout))
        # Where the user's state has the very shape of the flat one.
        flat = layout.template is not None and layout.template.shape == (layout.rows, layout.size)
        self._shape: Callable[[Tensor], Any] = _as_it_is if flat else layout.unflatten
        super().__init__()

    @cached_property
    def summands(self) -> tuple[FunctionOnRows, FunctionOnRows] | None:
        """The explicit and the implicit part, if it is the sum of two functions."""
        return copies_calling(self, "_function", self._function.summands)

    def with_args(self, args: tuple[Any, ...]) -> FunctionOnRows:
        """The same function with other arguments for these rows."""
        other = copy.copy(self)
        other.args = args
        return other

    def __call__(self, t: Tensor, y: Tensor, *extra: Tensor) -> Tensor:
        self._calls[0] += 1
        layout, time_shape = self._layout, self._time_shape
        if t.shape != time_shape:
            t = t.reshape(time_shape)
        values = ()
        if extra:
            values = [x.reshape(layout.lead + tuple(x.shape[1:]) if x.ndim > 1 else time_shape) for x in extra]
        try:
            value = self._function(t, y, self._shape, *values, *self.args)
        except ValueError as error:
            if "values to unpack" in str(error) and layout.lead:
                raise _Unpacked(str(error), layout) from error
            raise
        return self._result(value)

    @cached_property
    def _each(self) -> UserFunction:
        return self._function.calling(partial(_one_by_one, self._function.function))

    @cached_property
    def _each_copied(self) -> UserFunction:
        function = self._function.function
        return self._function.calling(partial(_one_by_one, lambda *place: _copied(function(*place))))

    def at_each(self, t: Tensor, y: Tensor) -> Tensor:
        """The function of an event at n times and states of these rows, [n * rows, 1] and [n * rows, size].

        It is called n times, but what surrounds a call is done once. The values come in this order in any shape.
        """
        layout = self._layout
        count = len(y) // layout.rows
        self._calls[0] += count
        places = t.reshape(count, *self._time_shape), y, self._apart
        values = []
        if not (self._reuses or inside_transform()):
            values = self._each(*places, *self.args)
            self._reuses = _share_memory(values)
        if self._reuses or inside_transform():
            values = self._each_copied(*places, *self.args)
        lead, dtype = layout.lead, layout.real_dtype
        if all(isinstance(x, Tensor) and x.dtype is dtype and x.shape == lead for x in values):  # as it should be
            return torch.stack(values)
        return torch.cat([self._result(value) for value in values])

    def _apart(self, y: Tensor) -> Sequence[Any]:
        """States of these rows, [n * rows, size], as the function receives them."""
        layout = self._layout
        if layout.template is None:
            return [self._shape(rows) for rows in y.split(layout.rows)]
        return layout.unflatten(y, (len(y) // layout.rows, *layout.lead)).unbind()


def _one_by_one(function: Callable[..., Any], t: Tensor, y: Sequence[Any], *args: Any) -> list[Any]:
    return [function(*place, *args) for place in zip(t.unbind(), y, strict=True)]


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _share_memory(values: Sequence[Any]) -> bool:
    """Whether a function has put some of these values where others were."""
    try:
        return len({x.data_ptr() for x in values}) < len(values)
    except (AttributeError, RuntimeError):  # of what is no plain tensor nobody knows
        return True


class _Unpacked(ValueError):
    """A function takes a state of the batch to pieces as if it were one row.

    Args:
        what: what Python says of it.
        layout: the state of the batch.
    """

    def __init__(self, what: str, layout: StateLayout):
        y = f"y{'' if layout.is_tensor else '[...]'}"
        super().__init__(
            f"{what}. In a batch the tensors of the state have the batch dimensions first, here {layout.lead}, and the "
            f"state of a row after them: write x, z = {y}.unbind(-1), or {y}[..., 0] and {y}[..., 1]"
        )
        self.what = what

    def __reduce__(self) -> Any:  # what a caller catches, or sends on, is a ValueError with this sentence
        return ValueError, self.args


class FunctionAmongAll(FunctionOnRows):
    """The same for a function that must be called with all rows: the others are filled in."""

    def __init__(self, function: RowFunction, rows: Tensor, filler: tuple[Tensor, Tensor]):
        super().__init__(function, function.layout, function.args.of_all())
        self._rows = rows
        self._filler = filler

    def __call__(self, t: Tensor, y: Tensor, *extra: Tensor) -> Tensor:
        places = (t.reshape(len(y), 1), y)
        all_t, all_y = (
            base.index_copy(0, self._rows, x.to(base.dtype)) for base, x in zip(self._filler, places, strict=True)
        )
        count = len(all_y)
        all_extra = [x.new_zeros(count, *x.shape[1:]).index_copy(0, self._rows, x) for x in extra]
        return super().__call__(all_t, all_y, *all_extra)[self._rows]

    def at_each(self, t: Tensor, y: Tensor) -> Tensor:
        count = len(self._rows)
        return torch.cat([self(*place) for place in zip(t.split(count), y.split(count), strict=True)])


def _as_it_is(y: Tensor) -> Tensor:
    return y


derivative: Result = StateLayout.checked_derivative
"""What `func` returned, checked, as [rows, size]."""


jacobian: Result = StateLayout.checked_jacobian
"""What `jac` returned, checked, as [rows, size, size]."""


def changed_state(layout: StateLayout, value: Any) -> Tensor:
    """What the `apply` of an event returned, checked, as [rows, size]."""
    return layout.changed("apply", value)


def event_value(layout: StateLayout, value: Any) -> Tensor:
    """What the function of an event returned, one number for each row, as [rows, 1].

    Raises:
        TypeError: it is not a real tensor.
        ValueError: it is not of the shape of the batch.
    """
    if isinstance(value, Tensor) and value.shape == layout.lead and value.is_floating_point():  # as it should be
        return value.reshape(layout.rows, 1).clone()  # which the user's next function may use again
    if not isinstance(value, Tensor) or value.is_complex():
        kind = f"a {value.dtype} tensor" if isinstance(value, Tensor) else repr(value)
        raise TypeError(
            f"the function of an event must return a real tensor whose sign changes at the event, it returned {kind}"
        )
    if value.numel() != layout.rows or tuple(value.shape[: len(layout.lead)]) != layout.lead:
        expected = f"{layout.lead}, one number for each row" if layout.lead else "(): one number"
        raise ValueError(
            f"the function of an event must return shape {expected}; it returned shape {tuple(value.shape)}. "
            "Give several events as a list, events=[Event(g1), Event(g2)]"
        )
    if value.dtype == torch.bool:  # false is another sign than true, and not zero
        value = 2.0 * value - 1.0
    return value.reshape(layout.rows, 1).clone()
