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


def tangent_graph(
    module: Callable[..., Any], examples: Sequence[Tensor], state: int | None, states: int, moved: Sequence[int]
) -> fx.Graph:
    """The slopes, and how they change as the state and the inputs do: the variational equations.

    Args:
        module: the function.
        examples: its inputs.
        state: the number of the state among them; None if the function does not use it.
        states: how many directions leave the inputs where they are, as initial states do.
        moved: the number of the input, of one element, that moves in each further direction.

    Returns:
        A graph from all inputs and the tangents of the state, [directions, *state], to the slopes and their tangents.
    """

    def of_directions(*arguments: Tensor) -> tuple[Tensor, ...]:
        inputs, tangents = list(arguments[:-1]), arguments[-1]

        def slopes(numbers: Sequence[int], *values: Tensor) -> Tensor:
            replaced = list(inputs)
            for i, value in zip(numbers, values, strict=True):
                replaced[i] = value
            return module(*replaced)[0]

        found, here = [], module(*inputs)[0]
        for d, tangent in enumerate(tangents.unbind()):
            numbers = [] if state is None else [state]
            seeds = [] if state is None else [tangent]
            if d >= states:
                numbers.append(moved[d - states])
                seeds.append(torch.ones_like(inputs[numbers[-1]]))
            if not numbers:
                found.append(torch.zeros_like(here))
                continue
            primals = tuple(inputs[i] for i in numbers)
            found.append(torch.func.jvp(lambda *x, n=numbers: slopes(n, *x), primals, tuple(seeds))[1])
        return here, torch.stack(found)

    count = states + len(moved)
    size = examples[0].new_zeros(()) if state is None else examples[state]
    return core_graph(of_directions, [*examples, size.new_zeros((count, *size.shape))])


_FEW = 64
"""Gradients of so few elements are not worth bringing the lanes together."""


def outer_products(graph: fx.Graph, looked_at: Sequence[bool]) -> list[bool | None]:
    """Give the factors of outputs that are products of a column and a row, in place of the products.

    They are the gradients of weights. With their factors at hand the sum over rows is a product of matrices.

    Args:
        graph: the graph, which is changed.
        looked_at: which outputs to look at.

    Returns:
        For each output None, or whether it is the transposed product of the two outputs that stand in its place.
    """
    (end,) = [node for node in graph.nodes if node.op == "output"]
    found: list[bool | None] = []
    outputs: list[Any] = []
    for output, look in zip(end.args[0], looked_at, strict=True):
        factors, transposed = _factors(output) if look else (None, False)
        found.append(None if factors is None else transposed)
        outputs += [output] if factors is None else factors
    end.args = (tuple(outputs),)
    graph.eliminate_dead_code()
    return found


def _factors(node: Any) -> tuple[list[fx.Node] | None, bool]:
    """The column and the row whose product a value is, and whether it is transposed."""
    transposed = False
    while isinstance(node, fx.Node) and node.op == "call_function" and node.args:
        name = str(node.target)
        if "clone" in name or "alias" in name:
            node = node.args[0]
        elif "permute" in name and list(node.args[1]) == [1, 0]:  # pyright: ignore
            node, transposed = node.args[0], not transposed
        elif "aten.mm" in name:
            left, right = node.args
            if left.meta["val"].shape[1] == 1 and node.meta["val"].numel() > _FEW:  # pyright: ignore
                return [left, right], transposed  # pyright: ignore
            break
        else:
            break
    return None, False
