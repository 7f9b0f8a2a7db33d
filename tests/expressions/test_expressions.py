"""Formulas compute what Python and SymPy compute, and nothing but formulas is understood."""

import copy
import math
import pickle
import sys

import pytest
import sympy
import torch
from torch import Tensor
from torch.autograd import forward_ad

from compilers import needs_compiler
from torchivp import solve_ivp
from torchivp.expressions import FUNCTIONS, Expression, ExpressionError
from torchivp.expressions.functions import ELEMENTARY

X = {"x": 0.3, "y": 0.7, "k": 2.5}


def value(text: str, **values: Tensor | float) -> float:
    return Expression(text)({**X, **values}).item()


@pytest.mark.parametrize(
    "text",
    [
        *(
            "x + y*k",
            "x - y - k",
            "x/y/k",
            "x - (y - k)",
            "-x**2",
            "(-x)**2",
            "2**-x",
            "x**y**k",
            "--x",
            "+x",
            "1e-3*x",
        ),
        *(
            "1e-3*x",
            "(x + 1)*(y - 2)/(k + 3)",
            "x*x*x",
            "2*3/4 + x",
            "-(-3)*x",
            "x**-1.5",
            "0.5 - 2*x",
            "7",
            "2*(3 - 5)**3",
        ),
        *("x < y", "x < y < k", "x < y > k", "not x > y", "x == x", "x != x", "x >= 0.3 and y <= 0.6", "1 < 2 < 3"),
        *("x if x > y else y", "1 if y > x else 2", "x if 0 else y", "(x > y)*3 + (y > x)*4 - (x < 9)", "-(x < y)"),
        *("min(x, y)", "max(x, 0.5, y)", "min(2, 3, x, k, 1)", "max(2, 3)", "min(k, 1, 2)", "(x < y) + (x < k)"),
    ],
)
def test_formulas_mean_what_they_mean_in_python(text):
    assert value(text) == pytest.approx(float(eval(text, {"__builtins__": {}, "min": min, "max": max}, X)), rel=1e-15)


PYTHON = {
    **{name: getattr(math, name) for name in ELEMENTARY if hasattr(math, name)},
    **{"ln": math.log, "abs": abs, "sigmoid": lambda x: 1 / (1 + math.exp(-x)), "sign": lambda x: math.copysign(1, x)},
}


@pytest.mark.parametrize("name", ELEMENTARY)
def test_functions_are_those_of_mathematics(name):
    for at in (0.3, 0.9):
        assert value(f"{name}(x)", x=at) == pytest.approx(PYTHON[name](at), rel=1e-14)
    assert value(f"{name}(0.3)") == pytest.approx(PYTHON[name](0.3), rel=1e-14), "of constants too"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *[("x^2", 0.09), ("2*x^-1 + e^2", 2 / 0.3 + math.e**2), ("2*pi/24", math.pi / 12), ("pi*e", math.pi * math.e)],
        *[("heaviside(x)", 1), ("heaviside(0)", 1), ("heaviside(-x)", 0), ("heaviside(x - x)", 1)],
        *[("where(x < y, 5, x)", 5), ("where(x > y, 5, 6) / 4", 1.5), ("where(1 < 2, x, y)", 0.3)],
        *[("x and 2", 1), ("not x", 0), ("0 or not y", 0), ("x and 0", 0), ("0 or x", 1), ("1 or x", 1), ("not 0", 1)],
        *[("sqrt(x) \n + y", 0.3**0.5 + 0.7), ("α + 1", 5), ("min(x, x)", 0.3), ("log(e)", 1), ("exp(-x < 0)", math.e)],
    ],
)
def test_what_python_writes_otherwise(text, expected):
    assert value(text, α=4) == pytest.approx(expected, rel=1e-15)


def test_names_are_in_order_of_appearance():
    assert Expression("vmax*s/(km + s) + exp(-t) - pi").names == ("vmax", "s", "km", "t")
    assert Expression("a if c else b").names == ("a", "c", "b")
    assert Expression(" 1 + 2 ").names == () and Expression(" 1 + 2 ").text == "1 + 2"


FORMULAS = [
    *("a*x**2/(b + x**2)", "exp(-a*t)*sin(b*t + x)", "log(a*x + b)/sqrt(x)", "tanh(a*x)**3 - b/(1 + x)", "x**a + b**x"),
    *(
        "asin(x/9)*acos(b/9)*atan(a)",
        "sinh(x)/cosh(a)*tan(b/5)",
        "log10(x)*log2(a)",
        "(a + b)^2*(x - 1)^3",
        "a - (b - x)/t",
    ),
]


@pytest.mark.parametrize("text", FORMULAS)
def test_values_and_derivatives_are_those_of_sympy(text):
    at = {"a": 1.3, "b": 0.7, "x": 2.1, "t": 0.4}
    expression = Expression(text)
    names = expression.names
    log2, log10 = (lambda x: sympy.log(x, 2)), (lambda x: sympy.log(x, 10))
    exact = sympy.sympify(text.replace("^", "**"), {"log2": log2, "log10": log10})
    point = torch.tensor([at[name] for name in names], dtype=torch.float64)

    def of_vector(v: Tensor) -> Tensor:
        return expression(dict(zip(names, v.unbind(), strict=True)))

    derivatives = [exact, *(exact.diff(sympy.Symbol(name)) for name in names)]
    expected = torch.tensor([float(each.subs(at)) for each in derivatives], dtype=torch.float64)
    found = torch.stack([of_vector(point), *torch.autograd.functional.jacobian(of_vector, point)])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    with forward_ad.dual_level():
        dual = of_vector(forward_ad.make_dual(point, torch.ones_like(point)))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, expected[1:].sum(), rtol=1e-12, atol=1e-14)
    assert torch.autograd.gradgradcheck(of_vector, point.clone().requires_grad_())


def test_values_broadcast_and_are_mapped():
    expression = Expression("k*x*(1 - x) + (x > 0.5) + 2")
    k, x = torch.rand(3, 1).double(), torch.rand(4).double()
    expected = k * x * (1 - x) + (x > 0.5).double() + 2
    torch.testing.assert_close(expression({"k": k, "x": x}), expected)
    mapped = torch.vmap(lambda k: expression({"k": k, "x": x}))(k)
    torch.testing.assert_close(mapped, expected)


def test_precision_is_that_of_the_tensors():
    single = torch.rand(3)
    assert Expression("x + y + (x > 0.5)")({"x": single, "y": 1.0}).dtype == torch.float32
    assert Expression("where(x > 0.5, 1, 2)")({"x": single}).dtype == torch.float32
    assert Expression("where(x > 0.5, 1, 2)")({"x": single.double()}).dtype == torch.float64
    assert Expression("x + exp(n)")({"x": single, "n": torch.arange(3)}).dtype == torch.float32
    assert Expression("2*pi")({}).dtype == torch.float64 and Expression("x")({"x": 1}).dtype == torch.float64


def test_a_missing_value_is_named():
    with pytest.raises(ValueError, match=r"the formula 'a\*b \+ c' needs a value for a, c"):
        Expression("a*b + c")({"b": 1.0})


def test_it_is_pickled_copied_compared_and_shown():
    expression = Expression("a*b")
    for again in (pickle.loads(pickle.dumps(expression)), copy.deepcopy(expression)):
        assert again == expression and hash(again) == hash(expression) and again({"a": 2, "b": 3}) == 6
    assert repr(expression) == "Expression('a*b')" and expression != Expression("b*a")


ALLOWED = "a formula may hold numbers, names, .* and calls of abs, acos, .*where"
ATTACKS = {
    "__import__('os').system('x')": r"column 12 .*\"'\" is not allowed",
    "__import__(os)": "column 1 .*unknown function '__import__'",
    "().__class__": "column 1 .*a dot within a name is not allowed",
    "x.__class__": "a dot within a name is not allowed",
    "a.b": "column 1 of 'a.b': a dot within a name is not allowed",
    "exp.__globals__": r"'exp' is a function, and needs its argument: exp\(x\)",
    "1 + x.real": "column 5 .*a dot within a name is not allowed",
    "open('f')": r"\"'\" is not allowed",
    "open(f)": "unknown function 'open'. The functions are abs, acos",
    "eval(x)": "unknown function 'eval'",
    "exp(x)(y)": "only names of functions can be called",
    "(x)(y)": "unknown function 'x'",
    "[x for x in y]": r"'\[' is not allowed",
    "min(x for x in y)": "column 7 .*'for' is a word of Python's and can be no name: write for_",
    "x[0]": r"'\[' is not allowed",
    "{x}": "'{' is not allowed",
    "f'{x}'": r"\"'\" is not allowed",
    '"x"': "'\"' is not allowed",
    "lambda: 1": "':' is not allowed",
    "lambda": "'lambda' is a word of Python's",
    "ｌambda": "'lambda' is a word of Python's",
    "(x := 1)": "':' is not allowed",
    "x; y": "';' is not allowed",
    "x # y": "'#' is not allowed",
    "x, y": "a list with commas is not allowed",
    "exp(*x)": "exp takes one, as in exp",
    "exp(x=1)": "exp takes one, as in exp",
    "exp(x, y)": r"exp takes one, as in exp\(x\)",
    "exp()": "exp takes one",
    "min(x)": r"min takes two or more, as in min\(x, y\)",
    "where(x, y)": r"where takes three, as in where\(x > 0, x, 0\)",
    "__builtins__": "'__builtins__' is no name: names begin with a letter",
    "_0": "'_0' is no name",
    "＿0": "'＿' is not allowed",
    "exp": r"'exp' is a function, and needs its argument: exp\(x\)",
    "await x": "'await' is a word of Python's",
    "(yield)": "'yield' is a word of Python's",
    "x in y": "'in' is a word of Python's",
    "x is y": "'is' is a word of Python's",
    "x // y": "this operation is not allowed",
    "x << y": "this operation is not allowed",
    "x % y": "'%' is not allowed",
    "x @ y": "'@' is not allowed",
    "~x": "'~' is not allowed",
    "1j*x": "column 1 .*1j is no real number",
    "True": "True is no real number",
    "None": "None is no real number",
    "...": "Ellipsis is no real number",
    "x\0": r"'\\x00' is not allowed",
    "x\\y": "is not allowed",
    "2 x": r"column 3 of '2 x': this cannot be read \(a product is written a\*b\)",
    "α^2 x": "column 5 .*this cannot be read",
    "α^2 + x.y": "column 7 .*a dot within a name",
    "a if b": "cannot be read",
    "1) + (2": "cannot be read",
    "x²": "cannot be read",
    "": "an empty text is no formula",
    "  ": "an empty text is no formula",
    "epx(x)": "unknown function 'epx'. Did you mean 'exp'",
    "Sin(x)": "unknown function 'Sin'. Did you mean 'sin'",
    "beta(x)": r"unknown function 'beta'. .*a product is beta\*\(\.\.\.\)",
    "1/0": "column 1 .*this constant is not a finite number",
    "x + log(0)": "column 5 .*this constant is not a finite number",
    "(-8)**(1/3)": "this constant is not a finite number",
    "9**9**9**9": "this constant is not a finite number",
    "1e999": "this constant is not a finite number",
    "9" * 400: "this constant is not a finite number",
    "9" * 5000: "cannot be read",
    "(" * 150 + "x" + ")" * 150 + "**" + "(-" * 61 + "x" + ")" * 61: "holds too many formulas within each other",
    "(" * 3000 + "x" + ")" * 3000: "cannot be read|too many",
    "-" * 9000 + "x": "holds too many formulas within each other: define parts",
    "not " * 2000 + "x": "holds too many formulas",
    "x**" * 3000 + "x": "holds too many formulas",
    "exp(" * 150 + "x" + ")" * 150: "holds too many formulas",
    "x+" * 4999 + "x": "holds too many formulas",
    "x+" * 50000 + "x": "has 100001 characters, and 10000 are the most: define parts",
}


@pytest.mark.parametrize("text", ATTACKS, ids=lambda text: text[:30])
def test_nothing_else_is_understood(text, monkeypatch):
    monkeypatch.setattr("torchivp.expressions.expression._define", lambda source: pytest.fail(f"compiled {source}"))
    with pytest.raises(ExpressionError, match=ATTACKS[text]) as caught:
        Expression(text)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("text", ["x.y", "x$y", "x, y", "2 x", "x // y"])
def test_a_refusal_says_what_is_allowed(text):
    with pytest.raises(ExpressionError, match=ALLOWED):
        Expression(text)


def test_long_sums_and_deep_stacks_are_no_difficulty():
    terms = [f"k{i}*x" for i in range(300)]
    assert value(" + ".join(terms), **{f"k{i}": i for i in range(300)}) == pytest.approx(0.3 * 299 * 150)

    def deep(left: int) -> float:
        return value("-" * 40 + "x") if left == 0 else deep(left - 1)

    assert deep(sys.getrecursionlimit() // 3) == 0.3


def test_what_is_computed_twice_is_computed_once(monkeypatch):
    sources = []
    monkeypatch.setattr("torchivp.expressions.expression._define", sources.append)
    Expression("exp(-k*x)*a + exp(-k*x)*b + 2*3")
    assert sources[0].count("exp") == 1 and "6.0" in sources[0]


def test_every_function_is_described():
    assert all(f"`{name}" in Expression.__doc__ or f" {name}" in Expression.__doc__ for name in FUNCTIONS)


EVERYTHING = " + ".join(
    [f"{name}(x)" for name in ELEMENTARY]
    + ["min(x, z, 0.4)", "max(x, z, 0.5)", "heaviside(x - 0.31)", "where(x > 0.35, x, 1)", "(1 if z < 0.5 else 2)"]
    + ["2**x + x**2 + x**z + z**-1.5 + x**3", "(not x and z or x > t)", "(0.1 < x <= 0.4)", "(x != z)*(x == z)"]
)


class Both(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.expression = Expression(EVERYTHING)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        x, z = y.unbind(-1)
        return torch.stack([0.001 * self.expression({"x": x, "z": z, "t": t}), -z], -1)


@needs_compiler
def test_kernels_have_every_function():
    results = []
    for backend in ("eager", "fused"):
        y0 = torch.tensor([0.3, 0.6], dtype=torch.float64, requires_grad=True)
        y = solve_ivp(Both(), (0, 1.0), y0, method="rk4", step_size=0.1, backend=backend).y[-1]
        results.append(torch.stack([y, *torch.autograd.grad(y.sum(), y0)]))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-13)


def test_torch_compile_reads_a_formula_in_one_piece():
    expression = Expression("a*x**2 + min(x, 1, a) if x > 0.5 else exp(-x)")
    compiled = torch.compile(lambda a, x: expression({"a": a, "x": x}), backend="eager", fullgraph=True)
    a, x = torch.rand((), dtype=torch.float64), torch.rand(7, dtype=torch.float64)
    torch.testing.assert_close(compiled(a, x), expression({"a": a, "x": x}))
