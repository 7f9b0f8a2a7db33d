"""Right-hand sides that are the sum of two functions, of which some methods treat one explicitly."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

_PAIR = "func=(explicit, implicit)"


@dataclass(frozen=True)
class Split:
    """The two functions of the user's whose sum is the right-hand side. It is called as each of them is."""

    explicit: Callable[..., Any]
    implicit: Callable[..., Any]

    def __call__(self, t: Tensor, y: Any, *args: Any) -> Any:
        """The sum.

        Raises:
            ValueError: the two return other structures or shapes.
        """
        # The first may write into the time, and the second may use the memory of the first again.
        one = pytree.tree_map_only(Tensor, Tensor.clone, self.explicit(t.clone(), y, *args))
        other = self.implicit(t, y, *args)
        try:
            return pytree.tree_map(_sum, one, other)
        except ValueError:
            raise ValueError(
                f"{_PAIR}: both must return dy/dt in the structure and shape of y, but explicit returned "
                f"{_described(one)} and implicit {_described(other)}"
            ) from None


def _sum(one: Any, other: Any) -> Any:
    """The sum of what has the same shape.

    Raises:
        ValueError: it has not.
    """
    if getattr(one, "shape", None) != getattr(other, "shape", None):
        raise ValueError
    return one + other


def _described(value: Any) -> str:
    leaves = pytree.tree_map(lambda x: tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__, value)
    return f"shape {leaves}" if isinstance(value, Tensor) else str(leaves)


def as_split(func: Any) -> Any:
    """A pair of functions as a `Split`; anything else as it is.

    Raises:
        TypeError: it is a sequence of something else.
    """
    if not isinstance(func, tuple | list):
        return func
    if len(func) != 2:
        raise TypeError(f"func must be a function func(t, y) or a pair (explicit, implicit), got {len(func)} entries")
    pair = Split(*func)
    for name, function in vars(pair).items():
        if not callable(function):
            raise TypeError(f"{_PAIR}: both must be functions of (t, y), but {name} is {type(function).__name__}")
    return pair


def functions_of(func: Any) -> tuple[Any, ...]:
    """The functions that the user gave: one, or both of a `Split`."""
    return (func.explicit, func.implicit) if isinstance(func, Split) else (func,)


def with_each(func: Callable[..., Any], change: Callable[[Any], Any]) -> Callable[..., Any]:
    """What `change` makes of a function, or the `Split` of what it makes of both."""
    return Split(change(func.explicit), change(func.implicit)) if isinstance(func, Split) else change(func)


def copies_calling(function: Any, name: str, calls: tuple[Any, Any] | None) -> tuple[Any, Any] | None:
    """Copies of a function on flat states that call each of these under this `name`; None if there are none."""
    if calls is None:
        return None
    parts = copy.copy(function), copy.copy(function)
    for part, call in zip(parts, calls, strict=True):
        setattr(part, name, call)
    return parts


def summands_of(func: Any) -> tuple[Any, Any] | None:
    """The explicit and the implicit part of a right-hand side on flat states; None if it is not split."""
    return getattr(func, "summands", None)
