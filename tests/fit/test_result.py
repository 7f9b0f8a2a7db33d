"""What a result can be turned into, and how a fit tells of its progress."""

import json
import math

import numpy as np
import pytest

from simulated import simulate
from torchivp.fit import FitResult, fit
from torchivp.models import LotkaVolterra

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
