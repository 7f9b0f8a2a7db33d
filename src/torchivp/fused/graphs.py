"""What a kernel computes of a function, as graphs of ATen's core operations: its values, and its derivatives."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]
from torch.autograd import forward_ad
from torch.fx import traceback
from torch.utils import _pytree as pytree

from torchivp.fused.one_reader import one_reader
from torchivp.fused.refusal import CannotFuse

_NORMS = (
    "native_layer_norm",
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_functional",
    "_native_batch_norm_legit_no_training",
    "native_layer_norm_backward",
    "native_batch_norm_backward",
)
"""What is taken apart before it is differentiated: torch differentiates their changes as if mean and variance were
constant."""

_FURTHER = (
    *_NORMS,
    "native_group_norm",
    "_softmax",
    "_log_softmax",
    "addmv",
    "elu",
    "gelu",
    "hardtanh",
    "leaky_relu",
    "glu",
    "embedding",
)
"""What is not among the core operations' decompositions, and can be taken apart."""

_NOT_USERS = tuple(f'File "{Path(file).parent}' for file in (torch.__file__, __file__))
"""How lines of a trace begin that are torch's or ours."""


class _WithLines(fx.Interpreter):
    """Runs a graph so that what is made of it knows the lines of the user's."""

    def run(self, *inputs: Any, **kwargs: Any) -> Any:
        with traceback.preserve_node_meta():
            return super().run(*inputs, **kwargs)


class _AsRead(_WithLines):
    """Runs what Dynamo has read. Where the user has turned gradients off they stay off, whatever is made of it."""

    def run_node(self, n: fx.Node) -> Any:
        if "autograd_function_apply" in str(n.target):
            raise CannotFuse(
                f"a torch.autograd.Function{place_of(n)} has a derivative of its own: write it in torch's operations"
            )
        return super().run_node(n)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target is torch._C._set_grad_enabled:
            return super().call_function(target, args, kwargs)
        return super().call_function(target, *_apart(args, kwargs))

    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return super().call_method(target, *_apart(args, kwargs))


def _apart(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if torch.is_grad_enabled():
        return args, kwargs
    return pytree.tree_map_only(Tensor, torch.detach, (args, kwargs))


def _copied(old: Tensor, new: Tensor, non_blocking: bool = False) -> Tensor:
    return new.to(old.dtype).expand(old.shape)


def place_of(node: fx.Node) -> str:
    """Where in the user's program a node comes from; nothing if that is not known."""
    return users_line((node.meta.get("stack_trace") or "").splitlines())


def users_line(trace: Sequence[str]) -> str:
    """The last line of a trace that is the user's, in parentheses; nothing if there is none."""
    lines = [line.strip() for line in trace if line.strip()]
    places = [i for i, line in enumerate(lines) if line.startswith("File ") and not line.startswith(_NOT_USERS)]
    if not places:
        return ""
    place, *text = lines[places[-1] : places[-1] + 2]
    # Of what was typed into an interpreter nobody knows the text.
    known = bool(text) and not text[0].startswith(("File ", "Set TORCHDYNAMO"))
    return f" ({place.removeprefix('File ')}{f': {text[0]}' if known else ''})"


def _traced(
    function: Callable[..., Any], examples: Sequence[Tensor], decompositions: Any, remove: str
) -> fx.GraphModule:
    from torch.fx.experimental.proxy_tensor import make_fx

    flat = torch.func.functionalize(function, remove=remove) if remove else function
    level = forward_ad._current_level
    depth = _functorch.get_dynamic_layer_stack_depth()
    try:
        with one_reader():
            module = make_fx(flat, decomposition_table=decompositions, tracing_mode="fake")(*examples)
    except Exception as error:
        _functorch.pop_dynamic_layer_stack_and_undo_to_depth(depth)  # of transforms that have failed
        while forward_ad._current_level > level:
            forward_ad.exit_dual_level()
        if isinstance(error, CannotFuse):
            raise
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CannotFuse(f"func cannot be taken apart into plain operations: {first}") from None
    module.graph.eliminate_dead_code()
    return module


def without_mutation(module: fx.GraphModule, examples: Sequence[Tensor]) -> fx.GraphModule:
    """What Dynamo has read, as operations that write into nothing, each with a derivative if the user's has one.

    It is no finer than the user's: a derivative is that of torch's own operations, at ties and where numbers overflow.

    Raises:
        CannotFuse: what it does depends on the values of its arguments.
    """
    plain = {torch.ops.aten.copy.default: _copied, **_apart_by(_NORMS)}
    interpreter: type[_WithLines] = _AsRead
    if any(sign in str(node.target) for node in module.graph.nodes for sign in ("_increment_nesting", "dual_level")):
        # Transforms of torch.func have their depth written into what Dynamo has read: they are none but the outermost.
        module, interpreter = _traced(_running(module, _AsRead), examples, {}, ""), _WithLines
    found = _traced(_running(module, interpreter), examples, plain, "mutations")
    if any(map(_writes, found.graph.nodes)):  # what torch takes apart in Python may write once more
        found = _traced(_running(found, _WithLines), examples, plain, "mutations")
    for node in found.graph.nodes:
        if _writes(node):
            raise CannotFuse(
                f"func writes into a tensor that it is given{_place_behind(node)}: write into a copy, y.clone()"
            )
    return found


def on_processor(module: fx.GraphModule) -> fx.GraphModule:
    """The same function of tensors on the processor, wherever it was read: what it makes on its way it makes there."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    here = torch.device("cpu")
    for node in graph.nodes:
        node.args, node.kwargs = pytree.tree_map_only(torch.device, lambda _: here, (node.args, node.kwargs))
    names = [str(node.target) for node in graph.nodes if node.op == "get_attr"]
    held = {name: getattr(module, name) for name in names}
    return fx.GraphModule({name: x.to(here) if isinstance(x, Tensor) else x for name, x in held.items()}, graph)


def _running(module: fx.GraphModule, interpreter: type[_WithLines]) -> Callable[..., tuple[Tensor, ...]]:
    def function(*inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            return tuple(interpreter(module).run(*inputs))

    return function


def _place_behind(node: fx.Node) -> str:
    """Where a node comes from, or what it is made from last."""
    while not place_of(node) and node.all_input_nodes:
        node = node.all_input_nodes[-1]
    return place_of(node)


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def core_graph(function: Callable[..., Any], examples: Sequence[Tensor]) -> fx.Graph:
    """A function of tensors, which returns tensors, as a graph of core operations.

    Raises:
        CannotFuse: what it does depends on the values of its arguments.
    """
    with torch.no_grad():
        return _traced(function, examples, _decompositions(), "mutations_and_views").graph


@functools.cache
def _decompositions() -> dict[Any, Callable[..., Any]]:
    from torch._decomp import core_aten_decompositions

    return {**core_aten_decompositions(), **_apart_by(_FURTHER)}


@functools.cache
def _apart_by(names: Sequence[str]) -> dict[Any, Callable[..., Any]]:
    """How operations with these names, as far as torch has them, are taken apart."""
    from torch._decomp import get_decompositions

    return get_decompositions([getattr(torch.ops.aten, name) for name in names if hasattr(torch.ops.aten, name)])


Function = Callable[..., tuple[Tensor, ...]]
"""A function of tensors that gives several."""


def values_of(module: fx.GraphModule) -> Function:
    """The slopes, the one entry of a tuple, of the inputs of a function without mutation."""
    return lambda *inputs: tuple(_WithLines(module).run(*inputs))


def uses(graph: fx.Graph) -> list[bool]:
    """Whether each input of a graph is used in it."""
    return [bool(node.users) for node in graph.nodes if node.op == "placeholder"]


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


def with_change(function: Function, by: Sequence[int], count: int) -> Function:
    """What a function of `count` inputs, which gives one tensor, gives, and its change as the inputs `by` move.

    How they move are arguments behind the inputs, one for each of `by`.
    """

    def changing(*arguments: Tensor) -> tuple[Tensor, ...]:
        inputs, seeds = arguments[:count], arguments[count:]
        if not by:
            value = function(*inputs)[0]
            return value, torch.zeros_like(value)
        of = _of_some(function, by, inputs)
        return torch.func.jvp(lambda *leaves: of(*leaves)[0], tuple(inputs[i] for i in by), tuple(seeds))

    return changing


def merge_repeats(graph: fx.Graph) -> None:
    """Compute once what a graph computes twice: each derivative computes the values that it is made of anew."""
    known: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op == "get_attr":
            key = ("get_attr", id(getattr(graph.owning_module, str(node.target))))
        elif node.op == "call_function":
            key = (node.target, _key(node.args), _key(tuple(node.kwargs.items())))
        else:
            continue
        if known.setdefault(key, node) is not node:
            node.replace_all_uses_with(known[key])
            graph.erase_node(node)


def _key(x: Any) -> Any:
    """What is equal of arguments that are the same; numbers of different types are not."""
    if isinstance(x, fx.Node):
        return x
    return tuple(map(_key, x)) if isinstance(x, list | tuple) else (type(x), repr(x))


def depending_on(graph: fx.Graph, first: int) -> list[fx.Node]:
    """The inputs from a number on, and what depends on them but for the output, in order."""
    found = dict.fromkeys([node for node in graph.nodes if node.op == "placeholder"][first:])
    for node in graph.nodes:
        if node.op != "output" and any(x in found for x in node.all_input_nodes):
            found[node] = None
    return list(found)


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
