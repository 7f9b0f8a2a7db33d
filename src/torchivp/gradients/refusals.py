"""What a gradient cannot do, refused with a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchivp.methods.method import Method
from torchivp.torch_func import in_forward_mode, needs_gradient


def refuse_undifferentiable(method: type[Method], wanted: bool) -> None:
    """Refuse a method that autograd cannot follow where its gradient would be lost, if one is `wanted`.

    Raises:
        ValueError: a gradient is wanted, and the method has none.
    """
    if wanted and not method.differentiable:
        raise ValueError(
            f"autograd cannot follow the steps of {method.__name__}: use gradient='backsolve' (odeint_adjoint), "
            "or solve within torch.no_grad()"
        )
    refuse_method_in_forward_mode(method)


def refuse_steps_again(method: type[Method]) -> None:
    """Refuse the derivative of a gradient that was not found by steps, where it would have to be that of the steps.

    Raises:
        RuntimeError: autograd cannot follow the method.
    """
    if not method.differentiable:
        raise RuntimeError(
            f"a gradient by gradient='backsolve' that is to be differentiated again (create_graph=True) is that of the "
            f"steps taken, and autograd cannot follow those of {method.__name__}: choose another method, such as "
            "method='dopri5', or 'radau5' where the problem is stiff, or take the first derivative alone"
        )


def refuse_preconditioner(method: type[Method]) -> None:
    """Refuse a preconditioner in a backward solve.

    Raises:
        ValueError: the method has one.
    """
    if getattr(method, "preconditioner", None) is not None:
        raise ValueError(
            "gradient='backsolve' solves for state and adjoint together, which preconditioner is not made for: name "
            f"another method for the way back, Backsolve(method=...), such as {method.__name__} without it, or use "
            "gradient='checkpointed'"
        )


def refuse_method_in_forward_mode(method: type[Method]) -> None:
    """Refuse a method that autograd cannot follow where tangents would be lost.

    Raises:
        ValueError: forward mode is at work, and the method has no derivative.
    """
    if in_forward_mode() and not method.differentiable:
        raise ValueError(
            f"forward mode (torch.autograd.forward_ad) cannot follow the steps of {method.__name__}: choose another "
            "method, such as method='dopri5', or 'radau5' where the problem is stiff, or solve outside "
            "of dual_level()"
        )


def refuse_tracked(gradient: str, tensors: Sequence[Tensor], instead: str) -> None:
    """Refuse what `refuse_inside_transform` does, if one of the `tensors` requires a gradient.

    `instead` is what the user may use.

    Raises:
        ValueError: one does.
    """
    if any(map(needs_gradient, tensors)):
        raise ValueError(
            f"{gradient} does not work inside torch.func transforms such as vmap or grad: use {instead}, or solve "
            "within torch.no_grad()"
        )


def refuse_forward_mode(gradient: str, instead: str) -> None:
    """Refuse a gradient with a backward pass of its own, which would drop tangents.

    Whether there are any cannot be known: func may use them later than at the start. `gradient` is what the user calls
    this gradient, and `instead` what may be used.

    Raises:
        ValueError: forward mode is at work.
    """
    if in_forward_mode():
        raise ValueError(
            f"{gradient} has no derivative in forward mode (torch.autograd.forward_ad) beside its gradient: use "
            f"{instead}, which has both, or, if the tangents alone are wanted, solve within torch.no_grad()"
        )


def refuse_dense_output(wanted: bool) -> None:
    """Refuse dense output where its gradient would be lost.

    Raises:
        ValueError: it was asked for.
    """
    if wanted:
        raise ValueError(
            "dense_output=True is differentiable with gradient='direct' only: use that, or ask for the times that you "
            "need in t_eval"
        )


class _Refuse(torch.autograd.Function):
    @staticmethod
    def forward(sentence: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.view_as(tensor) for tensor in tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.sentence = inputs[0]

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
        raise RuntimeError(ctx.sentence)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(ctx.sentence)


def refuse_to_differentiate(sentence: str, results: Sequence[Tensor], inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    """The same results; differentiating them by `inputs` raises RuntimeError with the sentence.

    Without it there would be no path from one to the other, and the derivative would silently be zero.
    """
    if not torch.is_grad_enabled():
        return results
    return _Refuse.apply(sentence, len(results), *results, *inputs)
