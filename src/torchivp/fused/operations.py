"""ATen's pointwise operations as C++ expressions over lanes."""

from __future__ import annotations

from collections.abc import Callable

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
    "rsqrt": lambda a: f"(up<W>(1) / f_sqrt<W>({a}))",
    "frac": lambda a: f"({a} - f_trunc<W>({a}))",
    "sigmoid": lambda a: f"(up<W>(1) / (up<W>(1) + f_exp<W>(-{a})))",
    "relu": lambda a: f"sel({a} < 0, up<W>(0), {a})",
    "log_sigmoid": lambda a: f"(f_min<W>({a}, up<W>(0)) - f_log1p<W>(f_exp<W>(-f_abs<W>({a}))))",
    "clone": lambda a: a,
    "sgn": _function("sign"),
    "maximum": _function("max"),
    "minimum": _function("min"),
    "floor_divide": _function("floor_div"),
} | {
    name: _function(name)
    for names in (
        "sqrt abs sign floor ceil trunc round fmax fmin fmod remainder copysign atan2 hypot",
        "exp log sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh",
        "expm1 log1p exp2 log2 log10 erf erfc lgamma",
    )
    for name in names.split()
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
    "signbit": lambda a: f"(f_copysign<W>(up<W>(1), {a}) < 0)",
    "isinf": lambda a: f"neg(f_isfinite<W>({a}) | ({a} != {a}))",
}
"""Of numbers, giving truth."""

LOGIC: dict[str, Expression] = {
    "bitwise_and": lambda a, b: f"({a} & {b})",
    "mul": lambda a, b: f"({a} & {b})",
    "bitwise_or": lambda a, b: f"({a} | {b})",
    "add": lambda a, b: f"({a} | {b})",
    "maximum": lambda a, b: f"({a} | {b})",
    "minimum": lambda a, b: f"({a} & {b})",
    "bitwise_xor": lambda a, b: f"({a} ^ {b})",
    "ne": lambda a, b: f"({a} ^ {b})",
    "eq": lambda a, b: f"neg({a} ^ {b})",
    "bitwise_not": lambda a: f"neg({a})",
    "clone": lambda a: a,
}
"""Of truth, giving truth."""

WHOLE: dict[str, Expression] = {
    "add": lambda a, b: f"({a} + {b})",
    "sub": lambda a, b: f"({a} - {b})",
    "mul": lambda a, b: f"({a} * {b})",
    "neg": lambda a: f"(-{a})",
    "square": lambda a: f"({a} * {a})",
    "abs": lambda a: f"sel({a} < 0, -{a}, {a})",
    "relu": lambda a: f"sel({a} < 0, up_i<W>(0), {a})",
    "sign": lambda a: f"sel({a} > 0, up_i<W>(1), sel({a} < 0, up_i<W>(-1), up_i<W>(0)))",
    "bitwise_and": lambda a, b: f"({a} & {b})",
    "bitwise_or": lambda a, b: f"({a} | {b})",
    "bitwise_xor": lambda a, b: f"({a} ^ {b})",
    "bitwise_not": lambda a: f"(~{a})",
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


ADVICE = {
    "convolution": "write slices or torch.roll times the weights, summed",
    "sort": "write amax, amin, or torch.where",
    "topk": "write amax, amin, or torch.where",
    "median": "write amax, amin, or torch.where",
    "_linalg": "solve linear systems before the solve, or write them out",
    "linalg": "solve linear systems before the solve, or write them out",
    "triangular_solve": "solve linear systems before the solve, or write them out",
    "_fft": "write the transform as a product with a matrix",
    "_cdist": "write the differences and their norm",
    "view_as_complex": "write real and imaginary parts",
    "complex": "write real and imaginary parts",
    "cond": "write torch.where",
    "_local_scalar_dense": "do not turn tensors into numbers; they may differ from row to row",
    "bernoulli": "pass random numbers through args",
    "rand": "pass random numbers through args",
}
"""What to write instead of operations whose names begin so."""
