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
    from torch._decomp import core_aten_decompositions  # noqa: PLC0415
    from torch.fx.experimental.proxy_tensor import make_fx  # noqa: PLC0415

    flat = torch.func.functionalize(function, remove="mutations_and_views")
    try:
        with torch.no_grad():
            module = make_fx(flat, decomposition_table=core_aten_decompositions(), tracing_mode="fake")(*examples)
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CannotFuse(f"func cannot be taken apart into plain operations: {first}") from None
    module.graph.eliminate_dead_code()
    return module.graph


def value_graph(module: Callable[..., Any], examples: Sequence[Tensor]) -> fx.Graph:
    """The slopes, from the inputs."""
    return core_graph(lambda *inputs: tuple(module(*inputs)), examples)


def vjp_graph(module: Callable[..., Any], examples: Sequence[Tensor], wanted: Sequence[int], slope: Tensor) -> fx.Graph:
    """The gradients of the inputs `wanted`, from all inputs and that of the slopes, shaped like `slope`."""

    def gradients(*arguments: Tensor) -> tuple[Tensor, ...]:
        inputs, seed = list(arguments[:-1]), arguments[-1]

        def of_wanted(*leaves: Tensor) -> Tensor:
            for i, leaf in zip(wanted, leaves, strict=True):
                inputs[i] = leaf
            return module(*inputs)[0]

        return torch.func.vjp(of_wanted, *(inputs[i] for i in wanted))[1](seed)

    return core_graph(gradients, [*examples, slope])
