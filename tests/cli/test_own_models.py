"""The commands take a file of equations, or a model in a Python file."""

import io
from pathlib import Path

import numpy as np
import pytest

import torchivp.cli.fit
from torchivp.cli import main
from torchivp.models import Equations

DATA = Path(__file__).parents[2] / "examples/data"
HARES = [str(DATA / "lynx_hare.csv"), "--time", "year", "--observe", "hare=prey,lynx=predator", "--noise", "lognormal"]
GROWTH = """
import beside
from torchivp.models import FunctionModel, Model

class Growth(Model):
    states = {"size": "size of the colony"}
    default_state = (0.5,)

    def __init__(self, rate=1.0):
        super().__init__(rate=rate)

    def forward(self, t, y):
        return self.rate * y * beside.ONE

class Demanding(Growth):
    def __init__(self, rate):
        super().__init__(rate)

instance = FunctionModel(lambda t, y, p: [p.rate * y.size], {"size": 0.5}, {"rate": 1.0})
number = 3
"""


@pytest.fixture
def growth(tmp_path, monkeypatch):
    """A folder with a Python file of models."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # so that what is imported from here is forgotten afterwards
    Path("growth.py").write_text(GROWTH)
    Path("beside.py").write_text("ONE = 1.0\n")
    Path("broken.py").write_text("\n\n1 / 0\n")
    Path("decay.txt").write_text("x' = -rate*x\nrate = 0.5\nx(0) = 2\n")
    Path("wrong.txt").write_text("x' = a\ny = (b\n")


def simulate(capsys, *arguments):
    assert main(["simulate", *arguments, "--t", "0,2", "--points", "3", "--rtol", "1e-9"]) == 0, capsys.readouterr().err
    return np.loadtxt(io.StringIO(capsys.readouterr().out), delimiter=",", skiprows=1)


@pytest.mark.usefixtures("growth")
@pytest.mark.parametrize("name", ["Growth", "instance"])
def test_a_model_of_a_python_file_is_simulated(name, capsys):
    table = simulate(capsys, f"growth.py:{name}", "--set", "rate=0.7")
    np.testing.assert_allclose(table[:, 1], 0.5 * np.exp(0.7 * np.arange(3)), rtol=1e-6)


@pytest.mark.usefixtures("growth")
def test_equations_are_simulated(capsys):
    np.testing.assert_allclose(simulate(capsys, "--equations", "decay.txt")[:, 1], 2 * np.exp([0, -0.5, -1]), rtol=1e-6)
    table = simulate(capsys, "--equations", "decay.txt", "--set", "rate=1", "--state", "1")
    np.testing.assert_allclose(table[:, 1], np.exp([0, -1, -2]), rtol=1e-6)


def test_equations_are_fitted(capsys, tmp_path):
    report = tmp_path / "report"
    start = ["--start", "alpha=0.55,beta=0.028,gamma=0.8,delta=0.024"]
    assert main(["fit", *HARES, *start, "--equations", str(DATA / "predators.txt"), "--out", str(report)]) == 0
    out = capsys.readouterr().out
    assert "nll 122.926   AIC 261.852" in out and "1/(predator year)" in out
    page = (report / "index.html").read_text()
    assert "the model’s prey (population of the prey)" in page
    assert f"--equations {DATA / 'predators.txt'}" in page


@pytest.mark.usefixtures("growth")
def test_a_model_of_a_python_file_is_fitted(monkeypatch):
    given = []
    monkeypatch.setattr(torchivp.cli.fit, "fit_model", lambda *args, **options: given.append(args[0]) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["fit", "data.csv", "--model", "growth.py:Growth", "--out", "report"])
    assert type(given[0]).__name__ == "Growth" and given[0].values() == {"rate": 1.0}


def test_models_says_what_is_understood_of_a_file(capsys):
    assert main(["models", "--equations", str(DATA / "predators.txt")]) == 0
    out = capsys.readouterr().out
    for words in (
        "predator' = delta*prey*predator - gamma*predator",
        "births = alpha*prey",
        "│ prey     │ 30            │ thousands │ positive     │ population of the prey",
        "│ alpha     │ 0.5   │ 1/year            │ positive     │ growth rate of the",
    ):
        assert words in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.usefixtures("growth")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "or --equations, a text file, and not both; got neither"),
        (["sir", "--equations", "decay.txt"], "and not both; got sir and decay.txt"),
        (["--equations", "none.txt"], "none.txt: No such file or directory"),
        (["--equations", "wrong.txt"], "line 2 of wrong.txt: a bracket is opened and never closed"),
        (["decay.txt"], "decay.txt is no model: if it is a file of equations, write --equations decay.txt"),
        (["growth.py"], "growth.py is a file, which may hold several models: write growth.py:Class"),
        (["none.py:Growth"], "there is no file none.py"),
        (["growth.py:Grwth"], "no model 'Grwth'. Did you mean 'Growth'? There are Growth, Demanding, instance"),
        (["growth.py:number"], "number of growth.py must be a torchivp.models.Model, got int"),
        (["growth.py:Demanding"], "Demanding() of growth.py fails, which gives its parameters their defaults: "),
        (["broken.py:Growth"], "broken.py cannot be imported: ZeroDivisionError in line 3: division by zero"),
        (["--equations", "decay.txt", "--set", "x=1"], "decay.txt has no parameter 'x': its parameters are rate"),
        (["--equations", "decay.txt", "--set", "rate=nan"], "--set rate must be a finite number, got nan"),
    ],
)
def test_mistakes_are_one_line_on_stderr(arguments, message, capsys):
    assert main(["simulate", *arguments, "--t", "0,1"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("torchivp: ") and err.count("\n") == 1
    assert message in err


@pytest.mark.usefixtures("growth")
def test_a_fit_needs_one_model(capsys):
    assert main(["fit", "data.csv", "--out", "report"]) == 2
    assert "give --model (torchivp models lists them) or --equations, a text file" in capsys.readouterr().err
    assert not Path("report").exists()


def test_the_example_is_read():
    model = Equations.from_file(DATA / "predators.txt")
    assert list(model.values()) == ["alpha", "beta", "gamma", "delta"]
    assert set(model.meanings) == set(model.values()) and model.positive == (*model.values(), "prey", "predator")
