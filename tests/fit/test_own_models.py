"""Models in words and models of functions are fitted like others, and the call of the fit makes them again."""

import inspect
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd

from torchivp.fitting import fit, read_data
from torchivp.fitting.call import python_call
from torchivp.models import Equations, FunctionModel

PREY = pd.DataFrame({"time": [0.0, 1.0, 2.0], "prey": [1.0, 1.5, 2.0]})


def call_of(model, data) -> list[str]:
    """The lines of the call of a fit."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(fit).parameters.items()}
    return python_call(fit, defaults | {"model": model, "data": data}, read_data(data, list(model.states))).splitlines()


def growing(t, y, p):
    return {"amount": p.rate * y.amount}


def made_by(lines: list[str]):
    """The model in a call of `fit`."""
    names: dict = {"fit": lambda model, *_, **__: model, "data": None}
    exec("\n".join(line for line in lines if line != "from torchivp import fit"), names)
    return names["result"]


def test_the_call_holds_the_text_of_equations():
    text = 'prey\' = alpha*prey - beta*prey*predator # "a comment"\npredator\' = -predator\nalpha = 0.5 "births"'
    for model in (Equations(text), Equations(text, alpha=0.7), Equations(text, positive=["prey"], beta=-1.0)):
        again = made_by(call_of(model, PREY))
        assert (again.equations, again.values(), again.positive) == (model.equations, model.values(), model.positive)
    assert call_of(Equations(text, alpha=0.7), PREY)[1:9] == [
        "from torchivp.models import Equations",
        "",
        "result = fit(",
        '    Equations("""',
        *text.splitlines(),
        '""", alpha=0.7),',
    ]
    assert made_by(call_of(Equations(text + "# \\"), PREY)).text == text + "# \\"


def test_the_call_says_where_the_function_of_a_model_comes_from(monkeypatch):
    monkeypatch.setitem(sys.modules, "tests_of_calls", SimpleNamespace(growing=growing))
    table = pd.DataFrame({"time": [0.0, 1.0], "amount": [1.0, 2.0]})
    options = {"positive": ["amount"], "units": {"rate": "1/h"}, "meanings": {"amount": "what there is"}}
    model = FunctionModel(growing, {"amount": 2.0}, {"rate": 0.5}, **options)
    lines = call_of(model, table)
    assert lines[1:3] == ["from torchivp.models import FunctionModel", f"from {__name__} import growing"]
    made = made_by([line.replace(__name__, "tests_of_calls") for line in lines])
    assert (made.func, made.states, made.default_state) == (growing, {"amount": "what there is"}, (2.0,))
    assert (made.values(), made.units, made.positive) == ({"rate": 0.5}, {"rate": "1/h"}, ("amount",))
    inner = FunctionModel(lambda t, y, p: [p.rate * y.amount], ["amount"], {"rate": 0.5})
    here = "test_the_call_says_where_the_function_of_a_model_comes_from"
    assert call_of(inner, table)[2:6:3] == [
        f"# func is a function within {here} of {__name__}",
        "    FunctionModel(func, states={'amount': 1.0}, parameters={'rate': 0.5}),",
    ]


HARES = """
prey' = births - beta*prey*predator
predator' = delta*prey*predator - gamma*predator
births = alpha*prey
alpha = 0.5 [1/year]
beta = 0.03
gamma = 0.8
delta = 0.02
positive: prey, predator
"""


def test_equations_are_fitted_as_the_class_of_the_same_model_is():
    table = Path(__file__).parents[2] / "examples/data/lynx_hare.csv"
    result = fit(
        Equations(HARES),
        table,
        time="year",
        observe=["hare", "lynx"],
        noise="lognormal",
        start=Equations(HARES).values(),
    )
    assert result.converged
    assert abs(result.nll - 122.92595) < 1e-4  # of LotkaVolterra
    assert result["alpha"].unit == "1/year"
    assert result.summary().startswith("Equations fitted to lynx_hare.csv")
