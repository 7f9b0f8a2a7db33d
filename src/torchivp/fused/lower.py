"""A graph of ATen's core operations as the body of a C++ function over lanes.

Every operation becomes a loop nest that writes an array, or a view of an array that exists. What depends on the
parameters alone is computed once for all rows and steps, in a function of its own.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from torchivp.fused.arrays import Array, Kind, kind_of, literal
from torchivp.fused.choices import CHOICES
from torchivp.fused.graphs import place_of
from torchivp.fused.operations import ADVICE, COMPARISONS, LOGIC, REAL, WHOLE
from torchivp.fused.places import PLACES
from torchivp.fused.reductions import REDUCTIONS
from torchivp.fused.refusal import CannotFuse
from torchivp.fused.shapes import SHAPES
from torchivp.fused.writer import LIFT, Writer

_LARGEST = 16_384
"""A function may hold so many numbers of a row."""

_OPERATIONS: dict[str, Callable[..., Any]] = SHAPES | REDUCTIONS | PLACES | CHOICES

_BITS = {torch.int8: "to_i8", torch.int16: "to_i16", torch.int32: "to_i32", torch.uint8: "to_u8"}
"""How whole numbers of fewer bits wrap around."""


class Lowering(Writer):
    """Writes C++ for graphs that share their inputs and what is computed once.

    Args:
        dtype: that of the state, in which the kernel computes.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def _begin(self) -> None:
        super()._begin()
        self._values: dict[fx.Node, Any] = {}
        self._node: fx.Node | None = None
        self._of = "func"

    def lower(self, graph: fx.Graph, inputs: Sequence[Array], of: str = "func") -> tuple[list[str], list[Array]]:
        """The lines that compute the outputs of the graph, and the outputs; `of` says what it is in refusals.

        Raises:
            CannotFuse: an operation has no C++.
        """
        lines, outputs, _ = self.lower_linear(graph, inputs, (), (), of)
        return lines, outputs

    def lower_linear(
        self,
        graph: fx.Graph,
        inputs: Sequence[Array],
        linear: Sequence[fx.Node],
        seeds: Sequence[Sequence[Array]],
        of: str = "func",
    ) -> tuple[list[str], list[Array], list[tuple[list[str], Array]]]:
        """The same where the last output is a linear function of the last inputs, each time for other seeds.

        Args:
            graph: the graph.
            inputs: its inputs, without the last.
            linear: the last inputs and all nodes that depend on them.
            seeds: what the last inputs are, each time.
            of: what it is in refusals.

        Returns:
            The lines of what does not depend on seeds; all outputs, or with seeds those but the last; and each time the
            lines of the rest and the last output.
        """
        self._begin()
        self._of = of
        once, kept = len(self.once), self.kept
        placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        (end,) = (node for node in graph.nodes if node.op == "output")
        results, changes = list(end.args[0]), []
        try:
            later = set(linear)
            self._lower(
                [node for node in graph.nodes if node not in later and node.op != "output"], placeholders, inputs
            )
            lines = self._lines
            for seed in seeds:
                self._lines = []
                self._lower_linear(linear, dict(zip(placeholders[len(inputs) :], seed, strict=True)))
                changes.append((self._lines, self.array(results[-1])))
            outputs = [self.array(x) for x in (results[:-1] if seeds else results)]
        except CannotFuse:
            del self.once[once:]  # others are lowered still
            self.kept = kept
            raise
        if self._held > _LARGEST:
            raise CannotFuse(
                f"{of} holds {self._held} numbers at a time, more than the {_LARGEST} that a kernel keeps near the "
                "processor: it is as fast without"
            )
        return lines, outputs, changes

    def _lower(self, nodes: Sequence[fx.Node], placeholders: Sequence[fx.Node], inputs: Sequence[Array]) -> None:
        given = dict(zip(placeholders, inputs, strict=False))
        for node in nodes:
            self._node = node
            if node.op == "placeholder":
                self._values[node] = self._input(node, given[node])
            elif node.op == "get_attr":
                value = getattr(node.graph.owning_module, str(node.target))
                self._values[node] = Array.known(value.detach().cpu()) if isinstance(value, Tensor) else value
            else:
                self._values[node] = self._call(node)

    def _lower_linear(self, nodes: Sequence[fx.Node], seeds: dict[fx.Node, Array]) -> None:
        """Nodes that are linear in seeds: where all of these are zero that they depend on, they are too."""
        later = set(nodes)
        for node in nodes:
            self._node = node
            if node in seeds:
                self._values[node] = seeds[node]
                continue
            depends = [self._values[x] for x in node.all_input_nodes if x in later]
            if _is_linear(node) and all(isinstance(x, Array) and x.is_zero() for x in depends):
                value = node.meta["val"]
                self._values[node] = Array.known(torch.zeros(value.shape, dtype=value.dtype))
            else:
                self._values[node] = self._summand(node) or self._call(node)

    def _summand(self, node: fx.Node) -> Array | None:
        """What a sum is of which all but one summand is known to be zero."""
        if _name_of(node) != "add" or node.kwargs.get("alpha", 1) != 1:
            return None
        left, right = (self.array(self._value(x)) for x in node.args)
        for one, other in ((left, right), (right, left)):
            if other.is_zero() and one.shape == tuple(node.meta["val"].shape) and one.kind == "real":
                return one
        return None

    def _input(self, node: fx.Node, array: Array) -> Array:
        """An input, which comes as real numbers, as what it is."""
        if kind_of(node.meta["val"].dtype) == "real" or not node.users:
            return array
        return self.fill_as(kind_of(node.meta["val"].dtype), node, [array], lambda x: x)

    def _call(self, node: fx.Node) -> Any:
        if node.target is operator.getitem:
            return self._values[node.args[0]][node.args[1]]  # pyright: ignore
        if not isinstance(node.target, torch._ops.OpOverload):
            raise self._unknown(node)
        args = [self._value(x) for x in node.args]
        kwargs = {key: self._value(x) for key, x in node.kwargs.items()}
        arrays = [x for x in _flat(args) if isinstance(x, Array)]
        if all(x.constant is not None for x in arrays):
            return self._folded(node, args, kwargs)
        how = _OPERATIONS.get(_name_of(node))
        self._check(node)
        value = how(self, node, *args, **kwargs) if how is not None else self.pointwise(node, args, kwargs)
        if _name_of(node) not in SHAPES and _is_narrower(node.meta["val"], self._dtype):
            for part in value if isinstance(value, list | tuple) else [value]:
                if not any(part is x for x in arrays):
                    self._round(part)
        return value

    def _check(self, node: fx.Node) -> None:
        """Refuse numbers that kernels do not compute with."""
        if not isinstance(node.meta.get("val"), Tensor):
            if _name_of(node) not in _OPERATIONS:
                raise self._unknown(node)
            return
        dtype = node.meta["val"].dtype
        if not all(isinstance(n, int) for n in node.meta["val"].shape):
            raise self.refusal("has a shape that depends on data: write torch.where")
        if dtype.is_complex:
            raise self.refusal("gives complex numbers: write real and imaginary parts, as torch.view_as_real does")
        if dtype in (torch.float16, torch.bfloat16) or (dtype is torch.float64 and self._dtype is torch.float32):
            state, own = (str(x).removeprefix("torch.") for x in (self._dtype, dtype))
            raise self.refusal(
                f"computes in {own}, and the state is {state}: write .to(y.dtype) where its operands come from, "
                "or give y0 in float64"
            )

    def _unknown(self, node: fx.Node) -> CannotFuse:
        name = _name_of(node)
        advice = next((f": {text}" for start, text in ADVICE.items() if name.startswith(start)), "")
        return self.refusal(f"is not among the operations that kernels know{advice}")

    def _value(self, x: Any) -> Any:
        if isinstance(x, fx.Node):
            return self._values[x]
        if isinstance(x, list | tuple):
            return type(x)(self._value(entry) for entry in x) if not isinstance(x, torch.Size) else x
        return x

    def array(self, x: Any) -> Array:
        """A value as an array; a number as one that is known."""
        if isinstance(x, fx.Node):
            x = self._values[x]
        if isinstance(x, Array):
            return x
        dtype = torch.bool if isinstance(x, bool) else torch.int64 if isinstance(x, int) else torch.float64
        return Array.known(torch.tensor(x, dtype=dtype))

    def _folded(self, node: fx.Node, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """The value of an operation on numbers that are known."""

        def known(x: Any) -> Any:
            if isinstance(x, Array):
                return x.constant
            return type(x)(map(known, x)) if isinstance(x, list | tuple) else x

        kwargs = {key: known(x) for key, x in kwargs.items() if key not in ("device", "layout", "pin_memory")}
        name = _name_of(node)
        if name.startswith("rand") or name in ("bernoulli", "normal", "native_dropout", "multinomial", "poisson"):
            raise self.refusal("draws random numbers, which a solve must not: pass them through args")
        if name in SHAPES and not any(isinstance(x, Array) for x in _flat(args)) and name.startswith(("empty", "new_")):
            return _OPERATIONS[name](self, node, *args, **kwargs)
        assert callable(node.target)
        value = node.target(*map(known, args), **kwargs)
        if isinstance(value, list | tuple):
            return [Array.known(x) for x in value]
        return value if value is None else Array.known(value)  # checks return nothing

    def refusal(self, why: str) -> CannotFuse:
        """That the node at hand cannot be lowered."""
        assert self._node is not None
        whose = "" if self._of == "func" else f" in {self._of}"
        return CannotFuse(f"{_name_of(self._node)}{whose}{place_of(self._node)} {why}")

    def new(self, node: fx.Node, lanes: bool) -> Array:
        """Memory for the value of a node."""
        value = node.meta["val"]
        return self.room(value.shape, kind_of(value.dtype), lanes)

    def number(self, value: float, node: fx.Node) -> str:
        """A number of the kind that the value of a node has, in all lanes."""
        return f"{LIFT[kind_of(node.meta['val'].dtype)]}<W>({value})"

    def fill(self, node: fx.Node, sources: Sequence[Array], expression: Callable[..., str]) -> Array:
        """An array each of whose elements is an expression of the elements of the sources there, broadcast."""
        value = node.meta["val"]
        return self.filled(value.shape, sources, expression, kind_of(value.dtype), _BITS.get(value.dtype, ""))

    def fill_as(self, kind: Kind, node: fx.Node, sources: Sequence[Array], expression: Callable[..., str]) -> Array:
        """The same of sources as numbers of one kind."""
        pairs = [self.as_kind(x, kind) for x in sources]

        def of_kind(*elements: str) -> str:
            return expression(*(cast(x) for (_, cast), x in zip(pairs, elements, strict=True)))

        return self.fill(node, [x for x, _ in pairs], of_kind)

    def loses_nothing(self, old: torch.dtype, new: torch.dtype) -> bool:
        """Whether numbers of one dtype are, in a kernel, those of the other already."""
        if kind_of(old) != kind_of(new):
            return False
        if kind_of(new) == "real":
            return not (torch.finfo(new).bits < torch.finfo(old).bits and torch.finfo(new).bits < self._bits)
        return new not in _BITS or old == new

    @property
    def _bits(self) -> int:
        return torch.finfo(self._dtype).bits

    def _round(self, array: Array) -> None:
        """Round to single precision, as torch does: what was computed in it is no more precise in a kernel."""
        if array.kind != "real" or array.constant is not None:
            return
        with self.loops(array, array.shape) as (places, write):
            for index in places:
                place = f"{array.place}[{array.flat_index(index)}]"
                write(self.typed(f"{place} = to_single<W>({place});", array.lanes))

    def pointwise(self, node: fx.Node, args: Sequence[Any], kwargs: dict[str, Any]) -> Array:
        """An operation of the tables, element by element."""
        name, result = _name_of(node), kind_of(node.meta["val"].dtype)
        alpha, mode = kwargs.pop("alpha", 1), kwargs.pop("rounding_mode", None)
        if all(name not in table for table in (REAL, COMPARISONS, LOGIC, WHOLE)) and name != "rsub":
            raise self._unknown(node)
        if others := [key for key in kwargs if key not in ("memory_format", "dtype", "layout", "device", "pin_memory")]:
            raise self.refusal(f"with {', '.join(others)} is not compiled")
        sources = [self.array(x) for x in args]
        kind: Kind = result
        if result == "bool" and any(x.kind != "bool" for x in sources):
            kind = "real" if any(x.kind == "real" for x in sources) else "int"
        compares = result == "bool" and kind != "bool"
        table = COMPARISONS if compares else {"real": REAL, "bool": LOGIC, "int": WHOLE}[kind]
        if name == "rsub":
            name, sources = "sub", sources[::-1]
        if name not in table:
            raise self.refusal(
                f"of {'truths' if kind == 'bool' else 'whole numbers'} is not compiled: write y.dtype numbers"
            )
        scaled = 0 if _name_of(node) == "rsub" else 1

        def expression(*operands: str) -> str:
            values = list(operands)
            if alpha != 1:
                values[scaled] = f"({LIFT[kind]}<W>({literal(alpha, kind)}) * {values[scaled]})"
            value = table["floor_divide" if mode == "floor" else name](*values)
            value = f"f_{mode}<W>({value})" if mode == "trunc" else value
            return f"narrow_i<W>({value})" if compares and kind == "int" else value

        return self.fill_as(kind, node, sources, expression)


def _flat(x: Any) -> Iterator[Any]:
    if isinstance(x, list | tuple):
        for entry in x:
            yield from _flat(entry)
    else:
        yield x


def _is_narrower(value: Any, dtype: torch.dtype) -> bool:
    """Whether numbers have fewer digits than those of a dtype."""
    first = value[0] if isinstance(value, list | tuple) else value
    return isinstance(first, Tensor) and first.dtype is torch.float32 and dtype is torch.float64


def _is_linear(node: fx.Node) -> bool:
    """Whether a node of a linear function gives zero for zeros: one tensor, and not one like another in shape alone."""
    value, name = node.meta.get("val"), _name_of(node)
    return (
        isinstance(value, Tensor) and value.is_floating_point() and not name.startswith("new_") and "_like" not in name
    )


def _name_of(node: fx.Node) -> str:
    """The operation without its overload: `add` of `aten.add.Tensor`."""
    target = node.target
    name = target._schema.name.split("::")[-1] if isinstance(target, torch._ops.OpOverload) else str(target)
    return name.removesuffix("_copy").removesuffix("_")
