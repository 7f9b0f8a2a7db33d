"""A formula as text, and formulas as one function of tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from torchivp.expressions import functions
from torchivp.expressions.grammar import free_names, parse, shorten
from torchivp.expressions.translation import Code, Term, Translation, Value


class Expression:
    """A formula in names, such as `vmax*s/(km + s)`, which PyTorch computes.

    It holds numbers, names, `+ - * /`, powers as `**` or `^`, comparisons, `and`, `or`, `not`, `a if c else b`, the
    constants `pi` and `e`, and calls of these functions: `exp expm1 log ln log10 log1p log2 sqrt sigmoid erf abs sign
    sin cos tan asin acos atan sinh cosh tanh floor ceil`, `min` and `max` of two numbers or more, `where(c, a, b)`, and
    `heaviside(x)`, which is 1 where `x >= 0`. Nothing else is understood, so that text from anywhere may be read.

    What is true counts as 1 in arithmetic, what is false as 0. Numbers are true where they are not 0; `and`, `or` and
    `not` return truth, not one of their operands. Both branches of `a if c else b` are computed; where the one that is
    not taken has an infinite derivative, that of the whole is NaN. Constants are computed as floats, once.

    Args:
        text: the formula.

    Attributes:
        text: the formula, without spaces around it.
        tree: its syntax tree, from Python's `ast`.
        names: the names in it that are neither functions nor constants, in order of appearance.

    Raises:
        ExpressionError: the text is no such formula; the message names the column. Also for a constant part that is
            not finite, such as `1/0`, and for more than 10 000 characters or 60 formulas within each other.
    """

    def __init__(self, text: str):
        self.text = text.strip()
        self.tree = parse(self.text)
        self.names = free_names(self.text, self.tree)
        self._compute = compile_expressions([self], {}, self.names)

    def __call__(self, values: Mapping[str, Tensor | float]) -> Tensor:
        """Compute the formula, differentiably.

        Args:
            values: the value of each name, of any shapes that broadcast. Numbers, and tensors of integers, take the
                precision of the other tensors: float64 if there are none. Names that do not occur are ignored.

        Returns:
            The value, in the shape that those of its names broadcast to.

        Raises:
            ValueError: a name has no value.
        """
        missing = [name for name in self.names if name not in values]
        if missing:
            raise ValueError(f"the formula {shorten(self.text)!r} needs a value for {', '.join(missing)}")
        given = [values[name] for name in self.names]
        tensors = [value for value in given if isinstance(value, Tensor)]
        types = [tensor.dtype for tensor in tensors if tensor.is_floating_point()]
        dtype = functools.reduce(torch.promote_types, types) if types else torch.float64
        like = torch.zeros((), dtype=dtype, device=tensors[0].device if tensors else None)
        return self._compute(like, *(functions.as_number(value, like) for value in given))[0]

    def __repr__(self) -> str:
        return f"Expression({self.text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Expression) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __reduce__(self) -> tuple[type[Expression], tuple[str]]:
        return Expression, (self.text,)


def compile_expressions(
    results: Sequence[Expression], definitions: Mapping[str, Expression], arguments: Sequence[str]
) -> Callable[..., tuple[Tensor, ...]]:
    """A function that computes several formulas, and what they have in common once.

    Args:
        results: the formulas.
        definitions: formulas to be put in for names, each after those that it uses itself.
        arguments: the other names, in the order in which the function takes them.

    Returns:
        A function of a tensor, whose precision and device constants are given, and of a tensor for each of the
        `arguments`. It returns a tensor for each of the `results`.

    Raises:
        ExpressionError: a formula holds what is not allowed.
    """
    code = Code()
    values: dict[str, Value] = {name: Term(name) for name in arguments}
    for name, expression in definitions.items():
        values[name] = Translation(expression.text, code, values).number(expression.tree)
    found = [Translation(expression.text, code, values).number(expression.tree) for expression in results]
    returned = "".join(f"{code.tensor(value)}, " for value in found)
    lines = [f"{name} = {right}" for right, name in code.assigned.items()] + [f"return ({returned})"]
    header = f"def formula({', '.join(['_like', *arguments])}):"
    return _define("\n    ".join([header, *lines]) + "\n")


@functools.lru_cache(maxsize=1024)
def _define(source: str) -> Callable[..., tuple[Tensor, ...]]:
    """The function of a source that consists of what `Translation` writes, and of nothing of the user's but names."""
    namespace = dict(vars(functions))
    exec(compile(source, "<formula>", "exec"), namespace)
    return namespace["formula"]
