"""A text of equations is the model that it says, or is refused with the line that is wrong."""

import copy
import pickle

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp as scipy_solve_ivp
from torch.func import functional_call

from compilers import needs_compiler
from torchivp import solve_ivp
from torchivp.expressions import ExpressionError
from torchivp.models import Equations, LotkaVolterra

PREDATORS = """
# predators and prey
prey' = growth - captures     # also d(prey)/dt = ... or dprey/dt = ...
predator' = delta*prey*predator - gamma*predator
captures = pressure * prey        # defined by what is defined below
pressure = beta*predator [1/year]
growth = alpha*prey "births # and nothing else"
alpha = 0.5 [1/year] "birth rate of prey"
beta = 3e-2
gamma = 0.8 "death rate [of predators]"
delta = 0.02 [1/(prey year)]
prey(0) = 10 [thousands]
predator(0) = 2*2 "those that hunt"
"""
VALUES = {"alpha": 0.5, "beta": 0.03, "gamma": 0.8, "delta": 0.02}
T = torch.tensor(0.5, dtype=torch.float64)


def test_a_text_says_all_that_a_model_is():
    model = Equations(PREDATORS)
    assert model.values() == VALUES and list(model.values()) == list(VALUES)
    assert model.states == {"prey": "prey", "predator": "those that hunt"}
    assert model.default_state == (10.0, 4.0) and model.initial_state().dtype == torch.float64
    assert model.units == {
        **{"alpha": "1/year", "delta": "1/(prey year)"},
        **{"prey": "thousands", "pressure": "1/year"},
    }
    assert model.meanings == {
        **{"alpha": "birth rate of prey", "gamma": "death rate [of predators]"},
        "growth": "births # and nothing else",
    }
    assert all(each.dtype == torch.float64 and each.ndim == 0 for each in model.parameters())
    assert repr(model) == "Equations(alpha=0.5, beta=0.03, gamma=0.8, delta=0.02)"


def test_derivatives_and_quantities_are_those_of_the_text():
    model, same = Equations(PREDATORS), LotkaVolterra(**VALUES)
    states = torch.rand(5, 3, 2, dtype=torch.float64)
    torch.testing.assert_close(model(T, states), same(T, states), rtol=1e-14, atol=0)
    torch.testing.assert_close(model(0.5, states[0, 0]), same(T, states[0, 0]), rtol=1e-14, atol=0)
    prey, predator = states.unbind(-1)
    quantities = model.quantities(T, states)
    assert list(quantities) == list(model.definitions)
    assert list(quantities).index("pressure") < list(quantities).index("captures")
    expected = {"growth": 0.5 * prey, "pressure": 0.03 * predator, "captures": 0.03 * predator * prey}
    torch.testing.assert_close({name: quantities[name] for name in expected}, expected)


@pytest.mark.parametrize("left", ["prey'", "prey '", "d(prey)/dt", "d ( prey ) / dt", "dprey/dt"])
def test_a_derivative_is_written_in_three_ways(left):
    assert Equations(f"{left} = -prey").states == {"prey": "prey"}


def test_its_solution_is_that_of_scipy():
    text = """
    x' = v
    v' = -k*x/m - damping*v + forcing
    forcing = strength*sin(omega*t) if t < 3 else 0
    omega = 2*pi/2
    k = 4
    x(0) = 1
    v(0) = 0
    damping = 0.1
    """
    model = Equations(text, m=2.0)
    assert model.values() == {"omega": np.pi, "k": 4, "damping": 0.1, "m": 2, "strength": 1}

    def oscillator(t, y):
        return [y[1], -4 * y[0] / 2 - 0.1 * y[1] + (np.sin(np.pi * t) if t < 3 else 0)]

    exact = scipy_solve_ivp(oscillator, (0, 5), [1.0, 0.0], "DOP853", rtol=1e-11, atol=1e-13, max_step=0.05)
    with torch.no_grad():
        solution = solve_ivp(model, (0, 5), model.initial_state(), method="dopri8", rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(solution.y[-1], exact.y[:, -1], rtol=1e-7)


def test_derivatives_by_parameters_and_batches_of_them():
    model, states = Equations(PREDATORS), torch.rand(3, 2, dtype=torch.float64)
    named = {name: value * torch.tensor([1.0, 2.0, 3.0]) for name, value in VALUES.items()}
    together = functional_call(model, named, (T, states))
    singly = [
        functional_call(model, {name: value[i] for name, value in named.items()}, (T, states[i])) for i in range(3)
    ]
    torch.testing.assert_close(together, torch.stack(singly))
    torch.testing.assert_close(torch.vmap(lambda p, y: functional_call(model, p, (T, y)))(named, states), together)

    def of_values(*values):
        return functional_call(model, dict(zip(VALUES, values, strict=True)), (T, states))

    assert torch.autograd.gradcheck(of_values, [each.detach().clone().requires_grad_() for each in model.parameters()])


def test_constant_derivatives_have_the_shape_of_the_state():
    model = Equations("x' = 1\ny' = k\nz' = sin(t)")
    states = torch.zeros(4, 3, dtype=torch.float64)
    expected = torch.tensor([1.0, 1.0, np.sin(0.5)], dtype=torch.float64)
    torch.testing.assert_close(model(T, states), expected.expand(4, 3))
    torch.testing.assert_close(model(T, states[0]), expected)
    assert model.float()(T.float(), states.float()).dtype == torch.float32
    assert Equations("x' = 2").values() == {}


def test_a_state_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"a state must be \[..., 2\], which are prey, predator; got \[4, 3\]"):
        Equations(PREDATORS)(T, torch.zeros(4, 3))


@needs_compiler
def test_a_kernel_solves_it():
    model = Equations(PREDATORS)
    results = []
    for backend in ("fused", "eager"):
        solution = solve_ivp(model, (0, 10), model.initial_state(), rtol=1e-8, atol=1e-8, backend=backend)
        results.append([solution.y[-1], *torch.autograd.grad(solution.y[-1].sum(), list(model.parameters()))])
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-9)


def test_it_is_copied_and_pickled():
    model = Equations(PREDATORS, alpha=0.7)
    states = torch.rand(3, 2, dtype=torch.float64)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert again.values() == model.values() and again.positive == model.positive
        assert again.definitions == model.definitions and again.text == model.text
        assert again(T, states).equal(model(T, states))
        with torch.no_grad():
            again.alpha.fill_(9.0)
        assert model.alpha == 0.7, "the parameters are its own"
    assert Equations("x' = x").states != model.states, "models share nothing"


def test_what_is_positive():
    text = "x' = a + b*x + c + undefined + k\nz' = k\na = 2\nb = -1\nc = 0\nk = 3\nx(0) = 4"
    assert Equations(text).positive == ("a", "k", "undefined"), "what begins so"
    assert Equations(text, a=-2.0).positive == ("k", "undefined")
    lists = f"{text}\nreal: a, k\npositive: x , z"
    assert Equations(lists).positive == ("undefined", "x", "z")
    assert Equations(lists).is_positive("x") and not Equations(lists).is_positive("a")
    assert Equations(lists, positive=["a"]).positive == ("a",)
    assert Equations(lists, positive=[]).positive == ()


def test_a_constant_is_no_parameter():
    model = Equations("x' = g*n*x + a\ng = 9.81 [m/s^2]\nn = 2*3\na = 1/24\nconstant: g, n")
    assert model.values() == {"a": 1 / 24}
    assert list(model.definitions) == ["g", "n"] and model.units == {"g": "m/s^2"}
    assert model(T, torch.ones(1, dtype=torch.float64)).item() == pytest.approx(9.81 * 6 + 1 / 24)


def test_long_lines_go_on_while_a_bracket_is_open():
    model = Equations('x\' = (a  # the first\n  + b  # the (second\n\n ) * x\n\na = 2\nb = 3 "a (bracket"')
    assert model(T, torch.ones(1, dtype=torch.float64)).item() == 5


def test_names_are_those_of_python():
    assert Equations("µ' = -λ*µ\nλ = 2").values() == {"λ": 2.0}  # the micro sign is the letter mu to Python


def test_a_file(tmp_path):
    path = tmp_path / "predators.txt"
    path.write_text("\ufeff" + PREDATORS, encoding="utf-8")
    assert Equations.from_file(path).values() == VALUES
    changed = Equations.from_file(str(path), positive=["prey"], alpha=0.9)
    assert changed.values()["alpha"] == 0.9 and changed.positive == ("prey",)
    path.write_text("x' = a\n\ny' = (b", encoding="utf-8")
    with pytest.raises(ExpressionError, match=r"^line 3 of predators.txt: a bracket is opened and never closed"):
        Equations.from_file(path)
    path.write_bytes(b"x' = \xff")
    with pytest.raises(ExpressionError, match=r"predators.txt must be a text file in UTF-8"):
        Equations.from_file(path)
    with pytest.raises(FileNotFoundError):
        Equations.from_file(tmp_path / "none.txt")


REFUSED = {
    "": r"^there is no equation in the equations: write at least one such as prey' = alpha\*prey",
    "a = 3": "^there is no equation in the equations",
    "x' = a*": r"^line 1 of the equations: column . of 'a\*': this cannot be read",
    "\n\nx' = open(x)": "^line 3 of the equations: column 1 of 'open.x.': unknown function 'open'",
    "x' = ": "^line 1 of .*an empty text is no formula",
    "x' = a\nx' = b": "^line 2 of the equations: the derivative of x is given in line 1 already",
    "x' = a\na = 2\na = 3": "^line 3 of .*: the value of a is given in line 2 already",
    "x' = a\nx(0) = 2\nx(0) = 3": "^line 3 of .*: the initial value of x is given in line 2 already",
    "a = 1\nx' = x": "^line 1 of .*: no formula uses the parameter a. Leave the line out, or use a",
    "x' = alhpa*x\nalpha = 3": "^line 2 .*: no formula uses the parameter alpha. Did you mean 'alhpa'",
    "x'' = -x": r"^line 1 of .*: \"x''\" = ... is not understood .for a second derivative write x' = v and v' = ",
    "x + y = 3": r"^line 1 of .*: 'x \+ y' = ... is not understood: a line must be name' = formula, d.name./dt = ",
    "x' = -x\nrubbish": "^line 2 of .*: 'rubbish' is not understood: a line must be",
    "x' = a\npositiv: a": "^line 2 of .*: 'positiv: a' is not understood: a line must be",
    "x' = a\npositive: a b": "^line 2 of .*: positive: must be followed by names with commas between them, got ' a b'",
    "x' = a\npositive: b": "^line 2 of .*: b is no state or parameter. There are a, x",
    "x' = alpha\npositive: alhpa": "^line 2 of .*: alhpa is no state or parameter. Did you mean 'alpha'",
    "x' = a\nreal: a\npositive: a": "^line 3 of .*: a is called positive and real",
    "x' = a\na = -1\npositive: a": "^line 3 of .*: a is called positive, but its value is -1",
    "x' = a\nx(0) = 0\npositive: x": "^line 3 of .*: x is called positive, but its value is 0",
    "x' = a\nconstant: a": "^line 2 of .*: a cannot be constant, because no line gives it a number: add a = number",
    "x' = a\na = x\nconstant: a": "^line 3 of .*: a cannot be constant",
    "prey' = a\npray(0) = 1": "^line 2 of .*: pray has an initial value, but no equation. .*'prey'.* Add pray'",
    "x' = z\nz' = x\nx(0) = 1\nz(1) = 1": r"^line 4 of .* must be those of one time, got x\(0\), z\(1\)",
    "x' = a\nx(0) = a": "^line 2 of .*: the initial value of x must be a number, got 'a'",
    "x' = a\nx(t0) = 1": "^line 2 of .*: the time in the brackets must be a number, got 't0'",
    "x' = a\nx = 3": r"^line 2 of .*: x is a state, whose initial value is given by x\(0\) = ...",
    "x' = p\np = q + 1\nq = r\nr = p": "^line [234] of .*: (p|q|r) is defined by itself: . uses . uses . uses .$",
    "x' = p\np = p": "^line 2 of .*: p is defined by itself: p uses p",
    "x' = p*(a\n+ b": "^line 1 of .*: a bracket is opened and never closed",
    "x' = a\na = 3 \"abc": "^line 2 of .*: the quotation mark before 'abc' is never closed",
    'x\' = a\na = 3 "m" [u]': '^line 2 of .*not understood: after the formula, first the .unit., then the "meaning"',
    "x' = a\na = 3 [u": "^line 2 of .*is not understood: after the formula",
    "t = 3\nx' = x": "^line 1 of .*: t is the time, and nothing else can be called so: write t_",
    "t' = 3": "^line 1 of .*: t is the time",
    "e = 2\nx' = x": "^line 1 of .*: e is the constant 2.718..., and nothing else",
    "exp = 2\nx' = x": "^line 1 of .*: exp is a function, and nothing else can be called so: write exp_",
    "lambda = 3\nx' = x": "^line 1 of .*: .*'lambda' is a word of Python's and can be no name: write lambda_",
    "_a = 3\nx' = x": "^line 1 of .*: ",
    "x' = sin(time)": "^the equations: a formula uses time, which is called t",
    "x' = half\nhalf = 2": "^line 2 of .*: no parameter can be called half, because Module has an attribute",
    "x' = text": "^the equations: .*no parameter can be called text, because Equations has an attribute",
    "x' = training": "no parameter can be called training, because Module has an attribute",
    "x' = 9**9**9**9": "^line 1 of .*: column 4 .* is not a finite number",
}


@pytest.mark.parametrize("text", REFUSED, ids=repr)
def test_what_is_wrong_is_said_with_its_line(text):
    with pytest.raises(ValueError, match=REFUSED[text]):
        Equations(text)


def test_unknown_names_are_refused_with_those_there_are():
    message = (
        "'alhpa' is given a value, but is no parameter of the equations. Did you mean 'alpha'. There are alpha, beta"
    )
    with pytest.raises(ValueError, match=message):
        Equations(PREDATORS, alhpa=2.0)
    with pytest.raises(
        ValueError, match=r"positive names 'pray', which is no state or parameter\. Did you mean 'prey'"
    ):
        Equations(PREDATORS, positive=["pray"])
    with pytest.raises(TypeError, match=r"positive must be a list of names, got 'prey': write positive=\['prey'\]"):
        Equations(PREDATORS, positive="prey")
    with pytest.raises(ValueError, match="the parameter alpha must be a finite number, got nan"):
        Equations(PREDATORS, alpha=float("nan"))


def test_a_thousand_definitions_are_no_difficulty():
    chain = [f"q{i} = q{i + 1} + 1" for i in range(1000)]
    model = Equations("\n".join(["x' = q0", *chain, "q1000 = x"]))
    assert model(T, torch.zeros(1, dtype=torch.float64)).item() == 1000
