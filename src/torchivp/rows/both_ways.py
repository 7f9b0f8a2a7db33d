"""Whether a function has the same derivatives forwards and backwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchivp.boundary import caller_casts
from torchivp.dual_numbers import parts


class Leaves(NamedTuple):
    """Dual numbers that require a gradient, in the places of what a function on copies depends on.

    Attributes:
        y: the states, [copies * rows, size].
        extra: what there is for each row besides, [copies * rows, ...].
        own: the arguments that each copy has for itself, [copies, ...].
        used: what stands for what it uses besides, [copies, ...].
    """

    y: Tensor
    extra: Sequence[Tensor]
    own: Sequence[Tensor]
    used: Sequence[Tensor]


def same_backwards(value: Tensor, t: Tensor, leaves: Leaves, copies: int) -> bool:
    """Whether the tangents of a value, [copies * rows, ...], agree with its derivatives by the leaves, backwards.

    For weights w of the elements, w . (J v) must be (J^T w) . v in each copy, whose tangents are v. Where the time `t`
    moves, or the values are not finite, nothing is compared.
    """
    _, tangent = parts(value)
    if parts(t)[1].any() or not torch.isfinite(tangent).all():
        return True
    weights = _weights(value)
    inputs = [x for x in (leaves.y, *leaves.extra, *leaves.own, *leaves.used) if x.requires_grad]
    found: list[Tensor | None] = [None] * len(inputs)
    if value.requires_grad:
        found = list(torch.autograd.grad(value, inputs, weights, retain_graph=True, allow_unused=True))
    forwards = _products(weights, tangent, copies)
    total, size = torch.zeros_like(forwards), forwards.abs()
    for x, gradient in zip(inputs, found, strict=True):
        if gradient is not None:
            products = _products(parts(gradient)[0], parts(x)[1], copies)
            total, size = total + products, size + products.abs()
    return bool(((total - forwards).abs() <= _tolerance(value) * (size + size.amax())).all())


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two series of tangents are the same but for rounding; what is not finite is anything."""
    a, b = torch.nan_to_num(a), torch.nan_to_num(b)
    return bool(((a - b).abs() <= _tolerance(a) * b.abs().amax()).all()) if a.numel() else True


def _tolerance(x: Tensor) -> float:
    return 0.1 if caller_casts() else torch.finfo(x.dtype).eps ** 0.5


def _weights(like: Tensor) -> Tensor:
    """Numbers of the same shape between 1 and 2 without a pattern, drawn from no generator."""
    number = torch.arange(like.numel(), device=like.device, dtype=torch.float64)
    return (1.0 + torch.frac(0.618033988749895 * number)).reshape(like.shape).to(like.dtype)


def _products(a: Tensor, b: Tensor, copies: int) -> Tensor:
    """The real products of two series, [copies * rows, ...], in each copy."""
    a, b = a.detach(), b.detach()
    return (a.conj() * b).real.reshape(copies, -1).sum(1) if a.is_complex() else (a * b).reshape(copies, -1).sum(1)
