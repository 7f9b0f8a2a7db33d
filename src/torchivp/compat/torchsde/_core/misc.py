"""Checks of arguments, and small operations on tensors and lists of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from torchivp.boundary import warn


def assert_no_grad(names: Sequence[str], maybe_tensors: Sequence[Any]) -> None:
    """Refuse arguments that nothing is differentiated by.

    Raises:
        ValueError: one of them requires a gradient.
    """
    for name, value in zip(names, maybe_tensors, strict=False):
        if isinstance(value, Tensor) and value.requires_grad:
            raise ValueError(
                f"Argument {name} must not require gradient: there is no derivative with respect to it; pass "
                f"{name}.detach()"
            )


def handle_unused_kwargs(unused_kwargs: Mapping[str, Any], msg: str | None = None) -> None:
    """Warn of arguments that do not exist."""
    if unused_kwargs:
        start = "" if msg is None else f"{msg}: "
        warn(f"{start}Unexpected arguments {dict(unused_kwargs)} are ignored")


def is_strictly_increasing(ts: Iterable[Any]) -> bool:
    """Whether each element is larger than the one before."""
    return all(a < b for a, b in pairwise(map(float, ts)))


def is_nan(t: Tensor) -> Tensor:
    """Whether an element is not a number."""
    return t.isnan().any()


def flatten(sequence: Iterable[Tensor]) -> Tensor:
    """All elements of the tensors, one after another."""
    flat = [tensor.reshape(-1) for tensor in sequence]
    return torch.cat(flat) if flat else torch.empty(0)


def flat_to_shape(flat_tensor: Tensor, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """The inverse of `flatten`: tensors of these `shapes`."""
    sizes = [torch.Size(shape).numel() for shape in shapes]
    return [part.reshape(tuple(shape)) for part, shape in zip(flat_tensor.split(sizes), shapes, strict=True)]


def convert_none_to_zeros(sequence: Sequence[Tensor | None], like_sequence: Sequence[Tensor]) -> list[Tensor]:
    """The tensors, with zeros like those of the second list where there is None."""
    return [torch.zeros_like(like) if x is None else x for x, like in zip(sequence, like_sequence, strict=True)]


def make_seq_requires_grad(sequence: Sequence[Tensor]) -> list[Tensor]:
    """The tensors, those that require no gradient as new leaves that do."""
    return [x if x.requires_grad else x.detach().requires_grad_() for x in sequence]


def seq_add(*seqs: Sequence[Any]) -> list[Any]:
    """The sum of lists, element by element."""
    return [sum(elements) for elements in zip(*seqs, strict=False)]


def seq_sub(xs: Sequence[Any], ys: Sequence[Any]) -> list[Any]:
    """The difference of two lists, element by element."""
    return [x - y for x, y in zip(xs, ys, strict=False)]


def batch_mvp(m: Tensor, v: Tensor) -> Tensor:
    """Matrices [batch, d, m] times vectors [batch, m]."""
    return torch.bmm(m, v.unsqueeze(2)).squeeze(2)


def stable_division(a: Tensor, b: Tensor, epsilon: float = 1e-7) -> Tensor:
    """`a / b`, with divisors closer to zero than `epsilon` moved there; a divisor of zero counts as positive."""
    smallest = torch.where(b.detach() < 0, -epsilon, epsilon).to(b.dtype)
    return a / torch.where(b.detach().abs() > epsilon, b, smallest)


def vjp(outputs: Any, inputs: Any, **kwargs: Any) -> list[Tensor]:
    """What `torch.autograd.grad` gives, with zeros for inputs that were not used; one tensor or several of each."""
    outputs = make_seq_requires_grad([outputs] if isinstance(outputs, Tensor) else outputs)
    inputs = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    return convert_none_to_zeros(torch.autograd.grad(outputs, inputs, **{"allow_unused": True, **kwargs}), inputs)


def jvp(outputs: Any, inputs: Any, grad_inputs: Any = None, **kwargs: Any) -> list[Tensor]:
    """The derivative of `outputs` in the direction `grad_inputs` of `inputs`, from the graph between them."""
    outputs = make_seq_requires_grad([outputs] if isinstance(outputs, Tensor) else outputs)
    inputs = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    # The gradient is linear in what it is multiplied by, so that its own gradient by that is the other product.
    weights = [torch.zeros_like(output, requires_grad=True) for output in outputs]
    back = torch.autograd.grad(outputs, inputs, weights, create_graph=True, allow_unused=True)
    back = make_seq_requires_grad(convert_none_to_zeros(back, inputs))
    forth = torch.autograd.grad(back, weights, grad_inputs, **{"allow_unused": True, **kwargs})
    return convert_none_to_zeros(forth, weights)
