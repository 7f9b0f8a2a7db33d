"""What a result can be turned into, and how a fit tells of its progress."""

import inspect
import json
import math
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch

from simulated import simulate
from torchivp.cli.fit import _print_result
from torchivp.fitting import FitResult, fit, read_data
from torchivp.fitting.call import python_call
from torchivp.models import LotkaVolterra, Model

DATA = simulate(LotkaVolterra(), np.linspace(0, 4, 17), noise=0.02)


def quick_fit(**options) -> FitResult:
    return fit(LotkaVolterra(), DATA, start=LotkaVolterra().values(), **options)


@pytest.fixture(scope="module")
def result() -> FitResult:
    return quick_fit(fixed={"delta": 1.0})


def test_json(result, tmp_path):
    text = result.to_json(tmp_path / "fit.json")
    assert (tmp_path / "fit.json").read_text() == text + "\n"
    plain = json.loads(text)
    assert plain == result.dictionary()
    assert plain["model"] == "LotkaVolterra"
    assert plain["observables"] == {"prey": "prey", "predator": "predator"}
    delta = next(estimate for estimate in plain["estimates"] if estimate["name"] == "delta")
    assert (delta["value"], delta["free"], delta["standard_error"]) == (1.0, False, None)
    assert "NaN" not in text


def test_summary(result):
    lines = result.summary().splitlines()
    assert lines[0] == "LotkaVolterra fitted to the DataFrame: 34 values, normal noise, 7 free quantities"
    assert lines[2].split() == ["estimate", "std.", "error", "95", "%", "from", "to", "unit"]
    assert lines[3].split()[:2] == ["alpha", f"{result['alpha'].value:.6g}"]
    assert any(line.split()[:2] == ["delta", "1"] and line.endswith("(held)") for line in lines)
    assert any(line.startswith("negative log-likelihood") for line in lines)
    assert any(line.startswith("converged after") for line in lines)


def test_repr(result):
    assert repr(result).startswith("FitResult(alpha=")
    assert repr(result).endswith("converged)")


def test_estimates_know_their_kind_and_unit(result):
    kinds = {estimate.name: estimate.kind for estimate in result.estimates}
    assert kinds["alpha"] == "parameter"
    assert kinds["prey(0)"] == "initial state"
    assert kinds["sigma(prey)"] == "sigma"
    assert result["alpha"].unit == "1/time"
    assert result["alpha"].description == "growth rate of the prey alone"
    assert result["sigma(prey)"].scale_error == pytest.approx(1 / math.sqrt(2 * 17))


def test_progress_may_be_a_function():
    told = []
    result = quick_fit(progress=lambda *news: told.append(news))
    stages, iterations, likelihoods = zip(*told, strict=True)
    assert stages[-1] == "maximum likelihood"
    assert list(iterations) == list(range(1, result.iterations + 1))
    assert likelihoods[-1] == pytest.approx(result.nll, abs=1e-3)


def test_progress_is_printed_line_by_line_where_there_is_no_terminal(capfd):
    quick_fit(progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "maximum likelihood: iteration" in err


def test_a_fit_is_silent_by_default(capfd):
    quick_fit()
    assert capfd.readouterr() == ("", "")


def test_a_search_that_is_cut_short_says_so():
    result = quick_fit(max_iterations=1)
    assert not result.converged
    assert result.message.startswith("not converged within 1 iterations")
    assert result.warnings[0].startswith("the search has not converged")


class Decay(Model):
    states: ClassVar = {"amount": ""}
    default_state = (1.0,)

    def __init__(self, rate: float = 0.5, half_life: float = 1.0):
        super().__init__(rate=rate)

    def forward(self, t, y):
        return -self.rate * y

    class Slow(LotkaVolterra):
        pass


TIMES = np.linspace(0, 4, 25)


def decaying(shape=0.0, **options) -> FitResult:
    """A fit of a decay to two trajectories with noise, and with a wave of the size `shape` that no decay has."""
    random = np.random.default_rng(1)
    tables = [
        pd.DataFrame({"time": TIMES, "amount": size * np.exp(-0.7 * TIMES), "run": run})
        for run, size in {"A": 2.0, "B": 3.0}.items()
    ]
    table = pd.concat(tables)
    table["amount"] += 0.02 * random.normal(size=len(table)) + shape * np.sin(2 * table["time"])
    return fit(Decay(0.6), table, trajectory="run", **options)


@pytest.fixture(scope="module")
def wavy() -> FitResult:
    return decaying(shape=0.05, start={"rate": 0.8}, rtol=1e-7)


def test_residuals_with_a_pattern_are_a_warning_everywhere(wavy, tmp_path):
    assert wavy.converged and not wavy.verdict.good
    (warning,) = wavy.warnings
    assert warning.startswith("the residuals of amount resemble the ones before them (lag-1 autocorrelation 0.")
    plain = json.loads(wavy.to_json())
    assert plain["warnings"] == [warning]
    assert plain["verdict"] == "The fit converged, but its residuals are not plain noise."
    assert wavy.summary().splitlines()[-2:] == [plain["verdict"], f"warning: {warning}"]
    page = wavy.report(tmp_path).read_text()
    assert page.count(plain["verdict"]) == page.count(warning) == 1


def test_residuals_like_noise_are_no_warning():
    result = decaying(start={"rate": 0.8})
    assert result.verdict.good and not result.warnings
    assert "its residuals look like noise: " in result.summary().splitlines()[-1]


def test_the_terminal_tells_the_verdict(wavy, capsys):
    _print_result(wavy, Path("index.html"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:] == [wavy.verdict.sentence, f"warning: {wavy.warnings[0]}", "Report: index.html"]


def test_the_call_names_all_that_was_given(wavy):
    assert wavy.call.splitlines() == [
        "from torchivp import fit",
        f"from {__name__} import Decay",
        "",
        "result = fit(",
        "    Decay(rate=0.6),",
        "    data,  # the DataFrame",
        "    time='time',",
        "    observe={'amount': 'amount'},",
        "    trajectory='run',",
        "    start={'rate': 0.8},",
        "    rtol=1e-07,",
        ")",
    ]
    assert json.loads(wavy.to_json())["call"] == wavy.call


def test_the_call_repeats_the_fit(result):
    again: dict = {"data": DATA}
    exec(result.call, again)
    assert [each.value for each in again["result"].estimates] == [each.value for each in result.estimates]


def call_of(model, data, **options) -> list[str]:
    """The lines of the call of a fit with these arguments."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(fit).parameters.items()}
    arguments = defaults | {"model": model, "data": data} | options
    return python_call(fit, arguments, read_data(DATA, list(model.states))).splitlines()


def test_the_call_holds_plain_numbers_lists_and_paths():
    lines = call_of(
        LotkaVolterra(), Path("it's.csv"), free=("alpha",), start={"alpha": np.float64(1.5)}, method="tsit5"
    )
    assert lines[1] == "from torchivp.models import LotkaVolterra"
    assert lines[5] == """    "it's.csv","""
    assert lines[8:-1] == ["    free=['alpha'],", "    start={'alpha': 1.5},", "    method='tsit5',"]


class Interval:
    """Something without a short description."""


def test_what_the_call_cannot_hold_is_an_ellipsis_and_a_comment():
    lines = call_of(
        LotkaVolterra(),
        DATA,
        doses=pd.DataFrame({"time": [1.0]}),
        bounds={"alpha": (np.float64(0), math.inf)},
        constraints=[lambda p: p.alpha < 2, "beta < 2"],
        derived={"first": call_of},
        priors={"alpha": torch.distributions.LogNormal(0.0, 1.0), "beta": Interval()},
    )
    here = __name__
    assert lines[8:-1] == [
        "    bounds={'alpha': [0.0, float('inf')]},",
        "    priors={'alpha': ..., 'beta': ...},  # LogNormal(loc=0, scale=1); the Interval",
        f"    constraints=[..., 'beta < 2'],  # a lambda of {here}",
        f"    derived={{'first': ...}},  # call_of of {here}",
        "    doses=...,  # the DataFrame",
    ]
    compile("\n".join(lines), "call", "exec")


def test_the_call_says_where_the_model_comes_from(monkeypatch):
    class Inner(LotkaVolterra):
        pass

    def model_lines(model):
        return call_of(model, DATA)[1:5:3]

    here = "test_the_call_says_where_the_model_comes_from"
    assert model_lines(Inner()) == [f"# Inner is a class within {here} of {__name__}", "    Inner(),"]
    assert model_lines(Decay.Slow()) == [f"from {__name__} import Decay", "    Decay.Slow(),"]
    monkeypatch.setattr(Decay.Slow, "__module__", "__main__")
    monkeypatch.setattr("__main__.__file__", "/somewhere/rabbits.py", raising=False)
    assert model_lines(Decay.Slow())[0] == "from rabbits import Decay"
    monkeypatch.delattr("__main__.__file__")
    assert model_lines(Decay.Slow())[0] == "# Decay.Slow is a class of the session in which the fit was made"


def test_trajectories_are_known_by_name_or_number(wavy):
    np.testing.assert_array_equal(wavy.predict(TIMES, "B"), wavy.predict(TIMES, 1))
    np.testing.assert_array_equal(wavy.prediction_band(TIMES, "B"), wavy.prediction_band(TIMES, 1))
    with pytest.raises(ValueError, match="there is no trajectory 'C', but A, B"):
        wavy.predict(TIMES, "C")
    with pytest.raises(ValueError, match="there is no trajectory 2: they are numbered from 0 to 1"):
        wavy.band(TIMES, 2)


@pytest.mark.parametrize("t", [[], [0.0, np.nan], [np.inf]], ids=str)
def test_times_of_a_prediction_are_numbers(wavy, t):
    with pytest.raises(ValueError, match="t must hold times, one or more, that are finite numbers"):
        wavy.predict(t)
