"""What every method is: a function that takes one step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from torchivp.dense import Interpolant

FlatFunc = Callable[[Tensor, Tensor], Tensor]
"""`func(t, y)` with a 0-d `t` and `y` of shape [1, size]."""


@dataclass(slots=True)
class Step:
    """One step, tried or taken.

    Attributes:
        t0: its start, a float, or a 0-d tensor if a gradient flows through time.
        t1: its end.
        y0: the state at its start, [1, size].
        y1: the state at its end, [1, size].
        error: the estimate of the error made in this step, [1, size]; None if the method has none.
        carry: what the next step starts from besides `y1`: a pytree of tensors, or None.
        retry: what the same step starts from if it is tried again with another size.
        stages: the method's own data, from which it makes the interpolant; valid until the next step.
    """

    t0: float | Tensor
    t1: float | Tensor
    y0: Tensor
    y1: Tensor
    error: Tensor | None
    carry: Any
    retry: Any
    stages: Any


class Method(ABC):
    """A one-step method, made for the state that it will step.

    A method knows nothing of step sizes or gradients. `step` is a function of its arguments alone, so that a
    step can be taken again from its start, for a gradient or by a compiled backend. Coefficients in the dtype
    and on the device of the state, and work space, are laid out once, when the method is made.

    Attributes:
        order: the order of convergence.
        error_order: the order of the error estimate (the exponent of the step size in the local error is one
            more); None if there is no estimate and the step size is fixed.

    Args:
        y0: the initial state, [1, size].
        real_dtype: the dtype of the `t` that `func` receives.
    """

    order: ClassVar[int]
    error_order: ClassVar[int | None]

    @abstractmethod
    def __init__(self, y0: Tensor, real_dtype: Any): ...

    @abstractmethod
    def step(self, func: FlatFunc, t0: float | Tensor, t1: float | Tensor, y0: Tensor, carry: Any) -> Step:
        """Step from `(t0, y0)` to `t1`."""

    @abstractmethod
    def interpolant(self, func: FlatFunc, step: Step) -> Interpolant:
        """The solution within `step`. May evaluate `func`, and may put the result into `step.carry`."""

    def initial_carry(self, f0: Tensor) -> Any:
        """The first step's `carry`, given that `func(t0, y0) = f0` is known already."""
        return None
