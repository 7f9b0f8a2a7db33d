"""What a kernel computes of a function, as graphs of ATen's core operations: its values, and its derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from torchivp.fused.refusal import CannotFuse


def core_graph(function: Callable[..., Any], examples: Sequence[Tensor]) -> fx.Graph:
    """The function, which takes and returns tensors, as a graph without mutation.

    Raises:
        CannotFuse: what it does depends on the values of its arguments.
    """
    from torch._decomp import core_aten_decompositions
    from torch.fx.experimental.proxy_tensor import make_fx

    flat = torch.func.functionalize(function, remove="mutations_and_views")
    try:
        with torch.no_grad():
            module = make_fx(flat, decomposition_table=core_aten_decompositions(), tracing_mode="fake")(*examples)
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CannotFuse(f"func cannot be taken apart into plain operations: {first}") from None
    module.graph.eliminate_dead_code()
    return module.graph


def uses(graph: fx.Graph) -> list[bool]:
    """Whether each input of a graph is used in it."""
    return [bool(node.users) for node in graph.nodes if node.op == "placeholder"]


Function = Callable[..., tuple[Tensor, ...]]
"""A function of tensors that gives several."""


def linearised(function: Function, by: Sequence[int]) -> Function:
    """What the function, which gives one tensor, gives, and its derivatives by the inputs `by`.

    There is a row of derivatives for each element of these inputs.
    """

    def with_derivatives(*inputs: Tensor) -> tuple[Tensor, ...]:
        sizes = [inputs[i].numel() for i in by]
        unit = torch.eye(sum(sizes), dtype=inputs[by[0]].dtype)
        seeds = [part.reshape(-1, *inputs[i].shape) for part, i in zip(unit.split(sizes, 1), by, strict=True)]

        def along(*seed: Tensor) -> Any:
            of = _of_some(function, by, inputs)
            return torch.func.jvp(lambda *leaves: of(*leaves)[0], tuple(inputs[i] for i in by), seed)

        return torch.func.vmap(along, out_dims=(None, 0))(*seeds)  # pyright: ignore[reportArgumentType]

    return with_derivatives


def vjp_of(function: Function, wanted: Sequence[int], count: int) -> Function:
    """The gradients of the inputs `wanted` of a function of `count`, from all of them and those of its outputs."""

    def gradients(*arguments: Tensor) -> tuple[Tensor, ...]:
        inputs, seeds = arguments[:count], arguments[count:]
        return torch.func.vjp(_of_some(function, wanted, inputs), *(inputs[i] for i in wanted))[1](seeds)

    return gradients


def _of_some(function: Function, which: Sequence[int], inputs: Sequence[Tensor]) -> Function:
    """The function of some of its inputs, the others as they are."""

    def of_some(*leaves: Tensor) -> tuple[Tensor, ...]:
        full = list(inputs)
        for i, leaf in zip(which, leaves, strict=True):
            full[i] = leaf
        return function(*full)

    return of_some
