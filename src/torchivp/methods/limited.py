"""Tensors that can be differentiated a limited number of times."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchivp.torch_func import inside_transform, is_dual


def differentiable_twice(sentence: str, x: Tensor) -> Tensor:
    """The same tensor; differentiating it a third time raises RuntimeError with the sentence.

    Not so within transforms of `torch.func` and with forward derivatives, which cannot follow.
    """
    if not x.requires_grad or inside_transform() or is_dual(x):
        return x
    return _Limited.apply(sentence, 2, 1, x)[0]


class _Limited(torch.autograd.Function):
    """The first `count` tensors, unchanged, as functions of all of them; they can be differentiated `left` times."""

    @staticmethod
    def forward(sentence: str, left: int, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.view_as(tensor) for tensor in tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.sentence, ctx.left, _, *tensors = inputs
        ctx.save_for_backward(*(tensors if ctx.left else ()))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        if not ctx.left:
            raise RuntimeError(ctx.sentence)
        tensors = ctx.saved_tensors
        found = (*grads, *(torch.zeros_like(tensor) for tensor in tensors[len(grads) :]))
        if torch.is_grad_enabled():
            found = _Limited.apply(ctx.sentence, ctx.left - 1, len(found), *found, *tensors)
        return None, None, None, *found
