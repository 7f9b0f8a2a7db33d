"""The checked problem: `func` wrapped to match the flat state, where it starts, and the times of interest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from torchivp.boundary import UserFunction
from torchivp.checks import check_time_first
from torchivp.mass import Mass, Projection
from torchivp.sparsity import Sparsity, is_sought
from torchivp.split import copies_calling, functions_of
from torchivp.state import StateLayout
from torchivp.times import Times, time_scalar
from torchivp.torch_func import of_its_own


class CountedFunction(Protocol):
    """A function of flat states, called with a 0-d time and a [1, size] state, that counts its evaluations."""

    @property
    def evaluations(self) -> Any: ...

    def __call__(self, t: Tensor, y: Tensor) -> Tensor: ...


class FlatFunction:
    """The user's `func(t, y, *args)` as a function of flat states.

    Args:
        func: the user's.
        layout: the state.
        args: further arguments.
        jac: the user's function for the Jacobian, called as `func` is.
        sparsity: where the Jacobian may have entries.
        mass: the matrix before dy/dt.

    Attributes:
        derivative: checks what `func` returns, and lays it out; with a mass matrix, multiplied so that nothing or a
            projection is left before dy/dt.
        checked_jacobian: the same for `jac`.
        projection: this projection.
    """

    def __init__(
        self,
        func: UserFunction,
        layout: StateLayout,
        args: Sequence[Any] = (),
        jac: UserFunction | None = None,
        sparsity: Sparsity | None = None,
        mass: Mass | None = None,
    ):
        self.call = func
        self.layout = layout
        self.args = tuple(args)
        self.jac = jac
        self.sparsity = sparsity
        self.mass = mass
        self.derivative = StateLayout.checked_derivative if mass is None else mass.derivative
        self.checked_jacobian = StateLayout.checked_jacobian if mass is None else mass.jacobian
        self.projection: Projection | None = mass and mass.projection
        self._calls = [0]

    @property
    def evaluations(self) -> int:
        """How often it was called, or one of its parts."""
        return self._calls[0]

    @cached_property
    def summands(self) -> tuple[FlatFunction, FlatFunction] | None:
        """The explicit and the implicit part, if it is the sum of two functions."""
        return copies_calling(self, "call", self.call.summands)

    @property
    def func(self) -> Callable[..., Any]:
        """What the user gave."""
        return self.call.function

    def with_args(self, args: Sequence[Any]) -> FlatFunction:
        """The same function with other arguments, its evaluations counted from zero."""
        return FlatFunction(self.call, self.layout, args, self.jac, self.sparsity, self.mass)

    @property
    def jacobian(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        """What the user gave for the Jacobian as a function of flat states that returns [1, size, size]."""
        jac = self.jac
        if jac is None:
            return None
        return lambda t, y: self.checked_jacobian(self.layout, jac(t, y, self.layout.unflatten, *self.args))

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        self._calls[0] += 1
        slope = self.derivative(self.layout, self.call(t, y, self.layout.unflatten, *self.args))
        return of_its_own(slope) if slope.requires_grad else slope  # methods copy what autograd does not follow


def check_right_hand_side(func: Any) -> None:
    """Check that what the user gave, or each of the two whose sum it is, can be called as func(t, y).

    Raises:
        TypeError: it cannot.
    """
    for function in functions_of(func):
        if not callable(function):
            hint = ": a pair (explicit, implicit) is for solve_ivp" if isinstance(func, tuple | list) else ""
            raise TypeError(f"func must be callable as func(t, y), got {type(func).__name__}{hint}")
        check_time_first("func", function, "func(t, y)")


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
    def build(
        func: Callable[..., Any],
        y0: Any,
        times: Times,
        args: Sequence[Any] = (),
        jac: Callable[..., Any] | None = None,
        jac_sparsity: Any = None,
        mass: Mass | None = None,
    ) -> Problem:
        """The problem as the user states it, checked and flattened.

        Raises:
            TypeError: `func` is not callable, or `y0` or `args` are of the wrong type.
            ValueError: `y0` is empty of tensors or its leaves lie on several devices.
        """
        check_right_hand_side(func)
        if not isinstance(args, tuple | list):
            raise TypeError(f"args must be a tuple, got {type(args).__name__}: write args=(args,)")
        layout = StateLayout(y0)
        layout.check_times(times.start, times.end)
        start, known = layout.start(y0), None if jac is None else UserFunction(jac, "jac")
        none = jac_sparsity is None or is_sought(jac_sparsity)
        sparsity = None if none else Sparsity.of(jac_sparsity, layout.size, layout.device)
        function = FlatFunction(UserFunction(func), layout, args, known, sparsity, mass)
        return Problem(function, start, times, layout.real_dtype)
