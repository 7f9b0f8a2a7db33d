"""A formula as assignments to variables, one for each operation."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import torch

from torchivp.checks import did_you_mean
from torchivp.expressions.functions import ELEMENTARY
from torchivp.expressions.grammar import ALLOWED, CONSTANTS, FUNCTIONS, column, describe, refuse

_ARITHMETIC: dict[type[ast.AST], tuple[str, Callable[..., Any]]] = {
    ast.Add: ("+", operator.add),
    ast.Sub: ("-", operator.sub),
    ast.Mult: ("*", operator.mul),
    ast.Div: ("/", operator.truediv),
    ast.Pow: ("**", operator.pow),
}
_COMPARISONS: dict[type[ast.AST], tuple[str, Callable[..., Any]]] = {
    ast.Lt: ("<", operator.lt),
    ast.LtE: ("<=", operator.le),
    ast.Gt: (">", operator.gt),
    ast.GtE: (">=", operator.ge),
    ast.Eq: ("==", operator.eq),
    ast.NotEq: ("!=", operator.ne),
}


_EXAMPLES = {"min": "min(x, y)", "max": "max(x, y)", "where": "where(x > 0, x, 0)"}


class Term(NamedTuple):
    """Something that is computed, as the name of a variable: a number, or whether something is true."""

    name: str
    truth: bool = False


Value = Term | float


class Code:
    """Assignments, each operation once: the name of the variable by what is assigned to it."""

    def __init__(self):
        self.assigned: dict[str, str] = {}

    def assign(self, right: str, truth: bool = False) -> Term:
        return Term(self.assigned.setdefault(right, f"_{len(self.assigned)}"), truth)

    def tensor(self, value: Value) -> str:
        """The variable of a value, also of a constant."""
        return value.name if isinstance(value, Term) else self.assign(f"_constant({value!r}, _like)").name


class Translation:
    """Writes a formula as assignments; refuses what is none."""

    def __init__(self, text: str, code: Code, values: Mapping[str, Value]):
        self._text, self._code, self._values = text, code, values

    def number(self, node: ast.expr) -> Value:
        """The value of a formula; 1 or 0 for what is true or not."""
        value = self._visit(node)
        if isinstance(value, Term) and value.truth:
            return self._code.assign(f"_as_number({value.name}, _like)")
        return value

    def truth(self, node: ast.expr) -> Value:
        """Whether a formula is true; of a constant, 1 or 0."""
        value = self._visit(node)
        if isinstance(value, Term):
            return value if value.truth else self._code.assign(f"{value.name} != 0.0", truth=True)
        return float(value != 0)

    def _visit(self, node: ast.expr) -> Value:
        visitor = getattr(self, f"_visit_{type(node).__name__}", None)
        if visitor is None:
            self._refuse(node, f"{describe(node)} is not allowed: {ALLOWED}")
        return visitor(node)

    def _visit_Constant(self, node: ast.Constant) -> Value:
        if isinstance(node.value, bool) or not isinstance(node.value, int | float):
            self._refuse(node, f"{node.value!r} is no real number, and only those are allowed")
        return self._constant(node, float, node.value)

    def _visit_Name(self, node: ast.Name) -> Value:
        return CONSTANTS[node.id] if node.id in CONSTANTS else self._values[node.id]

    def _visit_BinOp(self, node: ast.BinOp) -> Value:
        chain = [node]  # a sum of many terms is no deep recursion
        while isinstance(chain[-1].left, ast.BinOp):
            chain.append(chain[-1].left)
        left = self.number(chain[-1].left)
        for each in reversed(chain):
            if type(each.op) not in _ARITHMETIC:
                self._refuse(each, f"this operation is not allowed: {ALLOWED}")
            left = self._operate(each, *_ARITHMETIC[type(each.op)], left, self.number(each.right))
        return left

    def _visit_UnaryOp(self, node: ast.UnaryOp) -> Value:
        if isinstance(node.op, ast.Not):
            value = self.truth(node.operand)
            return self._code.assign(f"~{value.name}", truth=True) if isinstance(value, Term) else 1.0 - value
        value = self.number(node.operand)
        if isinstance(node.op, ast.UAdd):
            return value
        return self._code.assign(f"-{value.name}") if isinstance(value, Term) else -value

    def _visit_Compare(self, node: ast.Compare) -> Value:
        values = [self.number(each) for each in (node.left, *node.comparators)]
        parts = []
        for op, left, right in zip(node.ops, values, values[1:], strict=False):
            parts.append(self._operate(node, *_COMPARISONS[type(op)], left, right, truth=True))
        return self._join(parts, "&", 0.0)

    def _visit_BoolOp(self, node: ast.BoolOp) -> Value:
        symbol, decides = ("&", 0.0) if isinstance(node.op, ast.And) else ("|", 1.0)
        return self._join([self.truth(each) for each in node.values], symbol, decides)

    def _visit_IfExp(self, node: ast.IfExp) -> Value:
        return self._choose(node.test, node.body, node.orelse)

    def _visit_Call(self, node: ast.Call) -> Value:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name not in FUNCTIONS:
            self._refuse(node, self._unknown(node, name))
        named = [*node.keywords, *(each for each in node.args if isinstance(each, ast.Starred))]
        least, most = {"min": (2, math.inf), "max": (2, math.inf), "where": (3, 3)}.get(name, (1, 1))
        if named or not least <= len(node.args) <= most:
            wanted = {"min": "two or more", "max": "two or more", "where": "three"}.get(name, "one")
            self._refuse(node, f"{name} takes {wanted}, as in {_EXAMPLES.get(name, f'{name}(x)')}")
        if name == "where":
            return self._choose(*node.args)
        values = [self.number(each) for each in node.args]
        if name in ("min", "max"):
            return self._extreme(name, values)
        (value,) = values
        if name == "heaviside":
            return self._operate(node, ">=", operator.ge, value, 0.0, truth=True)
        if isinstance(value, Term):
            return self._code.assign(f"_{name}({value.name})")
        return self._constant(node, ELEMENTARY[name], value)

    def _operate(
        self, node: ast.expr, symbol: str, function: Callable[..., Any], a: Value, b: Value, truth: bool = False
    ) -> Value:
        """An operation on two numbers, done at once if both are constants."""
        if isinstance(a, Term) or isinstance(b, Term):
            return self._code.assign(f"{_operand(a)} {symbol} {_operand(b)}", truth)
        return self._constant(node, function, a, b)

    def _choose(self, test: ast.expr, if_true: ast.expr, if_false: ast.expr) -> Value:
        a, condition, b = self.number(if_true), self.truth(test), self.number(if_false)
        if not isinstance(condition, Term):
            return a if condition else b
        if not (isinstance(a, Term) or isinstance(b, Term)):  # which would have no precision
            a = Term(self._code.tensor(a))
        return self._code.assign(f"_where({condition.name}, {_operand(a)}, {_operand(b)})")

    def _join(self, parts: Iterable[Value], symbol: str, decides: float) -> Value:
        """The truth of all parts, or of any: of the one that decides, if it is among them."""
        joined: Value = 1.0 - decides
        for part in parts:
            if decides in (part, joined):
                return decides
            if isinstance(joined, Term) and isinstance(part, Term):
                joined = self._code.assign(f"{joined.name} {symbol} {part.name}", truth=True)
            elif isinstance(part, Term):
                joined = part
        return joined

    def _extreme(self, name: str, values: Sequence[Value]) -> Value:
        """The smallest or largest of some numbers."""
        terms = [value for value in values if isinstance(value, Term)]
        constants = [value for value in values if not isinstance(value, Term)]
        bound = (min if name == "min" else max)(constants) if constants else None
        if not terms:
            return values[0] if bound is None else bound
        joined = terms[0]
        for term in terms[1:]:
            joined = self._code.assign(f"_{name}imum({joined.name}, {term.name})")
        if bound is None:
            return joined
        clamp = "_clamp_max" if name == "min" else "_clamp_min"
        return self._code.assign(f"{clamp}({joined.name}, {bound!r})")

    def _constant(self, node: ast.expr, function: Callable[..., Any], *values: float) -> float:
        """What a function gives for constants, as a finite float."""
        try:
            value = float(function(*(torch.tensor(float(each), dtype=torch.float64) for each in values)))
        except OverflowError:  # of an integer that is no float
            value = math.inf
        if not math.isfinite(value):
            self._refuse(node, "this constant is not a finite number")
        return value

    def _unknown(self, node: ast.Call, name: str) -> str:
        if not name:
            return f"only names of functions can be called: {ALLOWED}"
        return (
            f"unknown function {name!r}.{did_you_mean(name, FUNCTIONS)} The functions are {', '.join(FUNCTIONS)}; a "
            f"product is {name}*(...)"
        )

    def _refuse(self, node: ast.expr, what: str) -> NoReturn:
        refuse(self._text, column(self._text, node), what)


def _operand(value: Value) -> str:
    """A value within an operation."""
    if isinstance(value, Term):
        return value.name
    return repr(value) if value >= 0 else f"({value!r})"
