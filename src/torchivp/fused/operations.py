"""ATen's pointwise operations as C++ expressions over lanes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Expression = Callable[..., str]


def _function(name: str) -> Expression:
    return lambda *x: f"f_{name}<W>({', '.join(x)})"


REAL: dict[str, Expression] = {
    "add": lambda a, b: f"({a} + {b})",
    "sub": lambda a, b: f"({a} - {b})",
    "mul": lambda a, b: f"({a} * {b})",
    "div": lambda a, b: f"({a} / {b})",
    "neg": lambda a: f"(-{a})",
    "reciprocal": lambda a: f"(up<W>(1) / {a})",
    "square": lambda a: f"({a} * {a})",
    "sqrt": _function("sqrt"),
    "rsqrt": lambda a: f"(up<W>(1) / f_sqrt<W>({a}))",
    "abs": _function("abs"),
    "sign": _function("sign"),
    "sgn": _function("sign"),
    "floor": _function("floor"),
    "ceil": _function("ceil"),
    "trunc": _function("trunc"),
    "round": _function("round"),
    "frac": lambda a: f"({a} - f_trunc<W>({a}))",
    "sigmoid": lambda a: f"(up<W>(1) / (up<W>(1) + f_exp<W>(-{a})))",
    "relu": lambda a: f"sel({a} <= 0, up<W>(0), {a})",
    "maximum": _function("max"),
    "minimum": _function("min"),
    "fmod": _function("fmod"),
    "remainder": _function("remainder"),
    "floor_divide": lambda a, b: f"f_floor<W>({a} / {b})",
    "atan2": _function("atan2"),
    "hypot": lambda a, b: f"f_sqrt<W>({a} * {a} + {b} * {b})",
    "log_sigmoid": lambda a: f"(f_min<W>({a}, up<W>(0)) - f_log1p<W>(f_exp<W>(-f_abs<W>({a}))))",
    "clone": lambda a: a,
    "copysign": lambda a, b: f"sel(({a} < 0) == ({b} < 0), {a}, -{a})",
} | {
    name: _function(name)
    for name in (
        "exp",
        "log",
        "sin",
        "cos",
        "tan",
        "asin",
        "acos",
        "atan",
        "sinh",
        "cosh",
        "tanh",
        "asinh",
        "acosh",
        "atanh",
        "expm1",
        "log1p",
        "exp2",
        "log2",
        "log10",
        "erf",
        "erfc",
        "lgamma",
    )
}
"""Of real numbers, giving real numbers."""

COMPARISONS: dict[str, Expression] = {
    "eq": lambda a, b: f"({a} == {b})",
    "ne": lambda a, b: f"({a} != {b})",
    "lt": lambda a, b: f"({a} < {b})",
    "le": lambda a, b: f"({a} <= {b})",
    "gt": lambda a, b: f"({a} > {b})",
    "ge": lambda a, b: f"({a} >= {b})",
    "isnan": lambda a: f"({a} != {a})",
    "isfinite": _function("isfinite"),
    "isinf": lambda a: f"neg(f_isfinite<W>({a}) | ({a} != {a}))",
}
"""Of numbers, giving truth."""

LOGIC: dict[str, Expression] = {
    "logical_and": lambda a, b: f"({a} & {b})",
    "bitwise_and": lambda a, b: f"({a} & {b})",
    "mul": lambda a, b: f"({a} & {b})",
    "logical_or": lambda a, b: f"({a} | {b})",
    "bitwise_or": lambda a, b: f"({a} | {b})",
    "logical_xor": lambda a, b: f"({a} ^ {b})",
    "bitwise_xor": lambda a, b: f"({a} ^ {b})",
    "ne": lambda a, b: f"({a} ^ {b})",
    "logical_not": lambda a: f"neg({a})",
    "bitwise_not": lambda a: f"neg({a})",
    "clone": lambda a: a,
}
"""Of truth, giving truth."""

WHOLE: dict[str, Expression] = {
    "add": lambda a, b: f"({a} + {b})",
    "sub": lambda a, b: f"({a} - {b})",
    "mul": lambda a, b: f"({a} * {b})",
    "neg": lambda a: f"(-{a})",
    "maximum": lambda a, b: f"sel({a} > {b}, {a}, {b})",
    "minimum": lambda a, b: f"sel({a} < {b}, {a}, {b})",
    "clone": lambda a: a,
}
"""Of whole numbers, giving whole numbers."""


def power(x: str, exponent: float) -> str:
    """`x` to a power that is known."""
    whole = {0.0: "up<W>(1)", 1.0: x, 2.0: f"({x} * {x})", 3.0: f"({x} * {x} * {x})", 0.5: f"f_sqrt<W>({x})"}
    if exponent in whole:
        return whole[exponent]
    if exponent == 4.0:
        return f"(({x} * {x}) * ({x} * {x}))"
    if exponent in (-1.0, -2.0, -0.5):
        return f"(up<W>(1) / {power(x, -exponent)})"
    return f"f_pow<W>({x}, up<W>({exponent!r}))"


Operand = float | str
"""A number that is known, or an expression."""


def shortened(name: str, operands: Sequence[Operand]) -> Operand | None:
    """What an operation gives where some of the numbers are known; None if that makes it no shorter.

    A product with zero is zero, as derivatives have it where there is nothing to differentiate, even where the other
    factor is not finite.
    """
    a, b = operands[0], operands[-1]
    numbers = [x for x in operands if isinstance(x, float)]
    if name == "mul" and 0.0 in numbers:
        return 0.0
    if name == "div" and a == 0.0:
        return 0.0
    if name in _ARITHMETIC and len(numbers) == len(operands) and not (name == "div" and b == 0.0):
        return _ARITHMETIC[name](*numbers)
    if name in ("add", "sub") and b == 0.0:
        return a
    if name == "add" and a == 0.0:
        return b
    if name == "sub" and a == 0.0:
        return f"(-{b})"
    if name == "mul" and 1.0 in numbers:
        return b if a == 1.0 else a
    return None


_ARITHMETIC: dict[str, Callable[..., float]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "neg": lambda a: -a,
    "clone": lambda a: a,
}
