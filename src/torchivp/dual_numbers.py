"""Dual numbers, of `torch.autograd.forward_ad`: their level, and arithmetic that is as fast as it should be."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from torchivp.torch_func import in_forward_mode, inside_transform, is_dual, own_level

_one_at_a_time = threading.RLock()


@contextmanager
def dual_level() -> Iterator[None]:
    """The level of forward mode, of which there is one for all threads of a process: one thread waits for another."""
    with _one_at_a_time, own_level(), forward_ad.dual_level():
        yield


@contextmanager
def dual_numbers() -> Iterator[None]:
    """A level of forward mode, wherever this is: in a backward pass, too, and while other threads solve.

    There is one level for all threads of a process, so that one thread waits for another here. For other threads that
    solve, `in_forward_mode()` stays false.
    """
    with _one_at_a_time, forward_ad._set_fwd_grad_enabled(True), dual_level():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of torch, in what the first of them makes it import
            forward_ad.make_dual(torch.ones(()), torch.ones(()))
        yield


def parts(dual: Tensor) -> tuple[Tensor, Tensor]:
    """The value and the tangent, zero where there is none."""
    value, tangent = forward_ad.unpack_dual(dual)
    return value, torch.zeros_like(value) if tangent is None else tangent


class DualArithmetic(TorchFunctionMode):
    """Arithmetic of dual numbers with Python's numbers and with constant tensors, thirty times as fast as PyTorch's.

    PyTorch takes `x / 3` for a quotient of two tensors, and finds out in Python code of its own what becomes of the
    tangent that the 3 does not have; the first time it imports its compiler for that, which takes a second. It has the
    same operations for a tensor and a number, which need no second one. A constant tensor, such as the time, is given
    the tangent zero. To find out whether a tensor is a dual number takes as long as to multiply it, so that two
    tensors are looked at only if one may be the time, or another constant, and the other rows: not of equal dimensions.

    Args:
        thorough: whether to look at all pairs of tensors; within `torch.func.vmap`, what is mapped over is taken for
            dual numbers.
    """

    def __init__(self, thorough: bool = False) -> None:
        super().__init__()
        self._thorough = thorough

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if torch.compiler.is_compiling():  # a compiled function is traced, and has its own way with tangents
            return func(*args, **(kwargs or {}))
        if not kwargs and len(args) == 2 and isinstance(args[0], Tensor):
            if type(args[1]) in (int, float):
                func = _WITH_NUMBER.get(func, func)
            elif func in _OF_TWO and isinstance(args[1], Tensor):
                if inside_transform():
                    args = _with_tangents(*args, _is_wrapped) if self._thorough else args
                elif self._thorough or not args[0].ndim == args[1].ndim > 0:
                    args = _with_tangents(*args, is_dual)
        elif self._thorough and func in _OF_THREE and any(map(is_dual, args)):
            args = (args[0], *map(as_dual, args[1:]))  # the first may be written to
        return func(*args, **(kwargs or {}))


def _with_tangents(a: Tensor, b: Tensor, moves: Callable[[Tensor], bool]) -> tuple[Tensor, Tensor]:
    """Both, and if one of them is a dual number, so is the other."""
    moving, other = moves(a), moves(b)
    if moving and not other:
        b = as_dual(b)
    elif other and not moving:
        a = as_dual(a)
    return a, b


def as_dual(x: Tensor) -> Tensor:
    """The same as a dual number, with the tangent zero if it has none; what has no derivatives as it is."""
    if is_dual(x) or not (x.is_floating_point() or x.is_complex()):
        return x
    x = x.contiguous()  # a tangent must have its strides, and memory of its own for each element
    return forward_ad.make_dual(x, torch.zeros_like(x))


def at_rest(x: Tensor) -> Tensor:
    """A constant that dual numbers are to be multiplied by, with the tangent zero if there may be such numbers."""
    return as_dual(x) if in_forward_mode() and not inside_transform() else x


def _is_wrapped(x: Tensor) -> bool:
    return _functorch.is_functorch_wrapped_tensor(x)


_OF_TWO = {
    *(Tensor.add, Tensor.sub, Tensor.mul, Tensor.div, torch.add, torch.sub, torch.mul, torch.div),
    *(Tensor.minimum, Tensor.maximum, torch.minimum, torch.maximum),
}
_OF_THREE = {torch.addcmul, Tensor.addcmul, Tensor.addcmul_}
_WITH_NUMBER: dict[Callable[..., Any], Callable[..., Any]] = {
    **dict.fromkeys((Tensor.add, torch.add), torch.ops.aten.add.Scalar),
    **dict.fromkeys((Tensor.sub, torch.sub), torch.ops.aten.sub.Scalar),
    **dict.fromkeys((Tensor.mul, torch.mul), torch.ops.aten.mul.Scalar),
    **dict.fromkeys((Tensor.div, torch.div), torch.ops.aten.div.Scalar),
    Tensor.__rtruediv__: lambda x, number: torch.ops.aten.mul.Scalar(x.reciprocal(), number),
}
