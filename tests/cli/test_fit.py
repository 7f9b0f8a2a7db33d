import inspect
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import torchivp.cli.fit
from fake_fit import FakeFit
from programs import run_program
from torchivp.cli import main

DATA = Path(__file__).parents[2] / "examples/data/lynx_hare.csv"
PLAIN = ["--model", "lotka-volterra", "--time", "year", "--observe", "hare,lynx"]
HARES = [*PLAIN, "--noise", "lognormal"]


class Recorder:
    """Stands in for `fit`: records how it is called and returns a fake result."""

    def __init__(self, **result):
        self.result = FakeFit(**result)

    def __call__(self, model, data, **options):
        self.model, self.data, self.options = model, data, options
        return self.result


@pytest.fixture
def recorder(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(torchivp.cli.fit, "fit_model", recorder)
    return recorder


@pytest.fixture
def no_report(monkeypatch):
    monkeypatch.setattr(torchivp.cli.fit, "write_report", lambda result, out, **_: out / "index.html")


@pytest.mark.usefixtures("no_report")
def test_options_reach_the_fit(recorder, tmp_path):
    options = ["--sigma", "shared", "--fix", "alpha=0.5,beta=0.03", "--fix", "prey=30", "--start", "gamma=1"]
    options += ["--free", "delta,predator", "--method", "tsit5", "--rtol", "1e-7", "--atol", "1e-9", "--quiet"]
    options += ["--max-step", "0.25", "--jump-times", "0.5,24"]
    assert main(["fit", str(DATA), *HARES, *options, "--out", str(tmp_path / "report")]) == 0
    assert type(recorder.model).__name__ == "LotkaVolterra"
    assert recorder.data == str(DATA)
    assert recorder.options == {
        "time": "year",
        "observe": ["hare", "lynx"],
        "noise": "lognormal",
        "sigma": "shared",
        "free": ["delta", "predator"],
        "fixed": {"alpha": 0.5, "beta": 0.03, "prey": 30.0},
        "start": {"gamma": 1.0},
        "method": "tsit5",
        "rtol": 1e-7,
        "atol": 1e-9,
        "max_step": 0.25,
        "jump_times": [0.5, 24.0],
        "max_iterations": 200,
        "shooting": "auto",
        "optimiser": "auto",
        "backend": "auto",
        "progress": False,
    }


EVERYTHING = {
    "--time": "day",
    "--observe": "virus=log(max(load,1))/log(10),cells=scale*cells",
    "--trajectory": "patient",
    "--long": "what, value",
    "--time-unit": "days",
    "--conditions": "arms.csv",
    "--doses": "doses.csv",
    "--censored": "virus=below",
    "--noise": "virus=student_t,cells=poisson",
    "--sigma": "virus=0.3",
    "--initial": "load=0,cells=where(k > 1, a, b),drug=shared",
    "--parameter": "scale=2",
    "--by": "k=arm",
    "--tie": "a=min(b, 3),c=2*b",
    "--scale": "k=logit",
    "--bounds": "k=0:1,b=:5,a=-2:",
    "--prior": "b=1:0.3",
    "--constraint": "a > b",
    "--derive": "R0=max(a, b)/k",
    "--starts": "8",
    "--shooting": "single",
    "--optimiser": "l-bfgs",
    "--checkpoint": "journal",
    "--max-steps": "500",
    "--backend": "eager",
}
"""Every option beside those of the test above."""


@pytest.mark.usefixtures("no_report")
def test_further_options_reach_the_fit(recorder, tmp_path):
    given = [part for option in EVERYTHING.items() for part in option]
    given += ["--sigma", "cells=cells_sd", "--constraint", "b < 4", "--quiet", "--out", str(tmp_path)]
    assert main(["fit", "book.xlsx#Two", "--model", "lotka-volterra", *given]) == 0
    assert recorder.data == "book.xlsx#Two"
    assert recorder.options == {
        "time": "day",
        "observe": {"virus": "log(max(load,1))/log(10)", "cells": "scale*cells"},
        "trajectory": "patient",
        "long": ("what", "value"),
        "time_unit": "days",
        "conditions": "arms.csv",
        "doses": "doses.csv",
        "censored": {"virus": "below"},
        "noise": {"virus": "student_t", "cells": "poisson"},
        "sigma": {"virus": 0.3, "cells": "cells_sd"},
        "initial": {"load": 0.0, "cells": "where(k > 1, a, b)", "drug": "shared"},
        "parameters": {"scale": 2.0},
        "by": {"k": "arm"},
        "tied": {"a": "min(b, 3)", "c": "2*b"},
        "scale": {"k": "logit"},
        "bounds": {"k": (0.0, 1.0), "b": (None, 5.0), "a": (-2.0, None)},
        "priors": {"b": (1.0, 0.3)},
        "constraints": ["a > b", "b < 4"],
        "derived": {"R0": "max(a, b)/k"},
        "starts": 8,
        "shooting": "single",
        "optimiser": "l-bfgs",
        "checkpoint": "journal",
        "max_steps": 500,
        "backend": "eager",
        "method": "auto",
        "rtol": 1e-8,
        "max_iterations": 200,
        "progress": False,
    }


def test_every_argument_of_the_door_has_an_option():
    """All but functions of Python, and what the command takes otherwise (DATA, --fix, --quiet, ...)."""
    renamed = {"fixed": "fix", "parameters": "parameter", "tied": "tie", "priors": "prior", "constraints": "constraint"}
    renamed |= {"derived": "derive", "progress": "quiet", "executor": "processes"}
    arguments = set(inspect.signature(torchivp.fitting.fit).parameters) - {"schedule"}
    options = set(inspect.signature(torchivp.cli.fit.fit).parameters) - {
        "context",
        "equations",
        "out",
        "json",
        "profiles",
    }
    assert {renamed.get(name, name) for name in arguments} == options


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--sigma", "0.25"], {"sigma": 0.25}),
        (["--sigma", "error", "--long", "what,value"], {"sigma": "error"}),
        (["--censored", "limit", "--long", "what,value"], {"censored": "limit"}),
        (["--initial", "steady"], {"initial": "steady"}),
        (["--noise", "poisson"], {"noise": "poisson"}),
        (
            ["--observe", "hare=prey", "--observe", "lynx=2*predator"],
            {"observe": {"hare": "prey", "lynx": "2*predator"}},
        ),
    ],
)
def test_a_word_stands_for_all(words, expected, recorder, tmp_path):
    assert main(["fit", "t.csv", "--model", "lotka-volterra", "--json", *words]) == 0
    assert expected.items() <= recorder.options.items()


def test_json_is_all_that_is_printed(recorder, capsys, tmp_path):
    assert main(["fit", str(DATA), *HARES, "--json", "--out", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["nll"] == 134.97 and err == ""
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(out)


def test_without_a_folder_there_is_no_report(recorder, capsys):
    assert main(["fit", str(DATA), *HARES]) == 0
    out = capsys.readouterr().out
    assert "alpha" in out and "Report" not in out
    recorder.result.converged, recorder.result.message = False, "not converged"
    assert main(["fit", str(DATA), *HARES, "--json", "--quiet"]) == 1
    assert capsys.readouterr().err == "torchivp: the fit has not converged\n"


@pytest.mark.usefixtures("no_report")
def test_columns_are_given_to_states_by_name(recorder, tmp_path):
    arguments = ["--model", "lotka-volterra", "--time", "year", "--observe", "lynx=predator,hare=prey"]
    assert main(["fit", str(DATA), *arguments, "--out", str(tmp_path)]) == 0
    assert recorder.options["observe"] == {"lynx": "predator", "hare": "prey"}
    assert not {"noise", "free", "start"} & set(recorder.options)  # the door's own defaults


@pytest.mark.usefixtures("no_report")
def test_all_is_free(recorder, tmp_path):
    assert main(["fit", str(DATA), *HARES, "--free", "all", "--out", str(tmp_path)]) == 0
    assert recorder.options["free"] == "all"


@pytest.mark.usefixtures("recorder", "no_report")
def test_the_table_states_estimates_statistics_and_report(capsys, tmp_path):
    assert main(["fit", str(DATA), *HARES, "--out", str(tmp_path / "[report]")]) == 0
    out = capsys.readouterr().out
    assert re.search(r"alpha .* 0\.5470 .* 0\.033 .* 0\.4863 to 0\.6153 .* 1/year", out)
    assert re.search(r"sigma\(lynx\) .* 0\.2400", out)
    assert "nll 134.970   AIC 285.940   AICc 290.300   BIC 299.800" in out
    assert f"Report: {tmp_path}/[report]/index.html" in out


@pytest.mark.usefixtures("recorder", "no_report")
def test_quiet_prints_nothing(capsys, tmp_path):
    assert main(["fit", str(DATA), *HARES, "--out", str(tmp_path), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_warnings_are_printed(recorder, no_report, capsys, tmp_path):
    recorder.result.warnings.append("alpha and beta [both] are hardly determined")
    assert main(["fit", str(DATA), *HARES, "--out", str(tmp_path)]) == 0
    assert "warning: alpha and beta [both] are hardly determined" in capsys.readouterr().out


def test_a_fit_that_does_not_converge_is_reported_and_fails(recorder, capsys, tmp_path):
    recorder.result.converged = False
    recorder.result.message = "not converged within 200 iterations"
    assert main(["fit", str(DATA), *HARES, "--out", str(tmp_path), "--quiet"]) == 1
    page = tmp_path / "index.html"
    assert (
        capsys.readouterr().err == f"torchivp: the fit has not converged within 200 iterations; its report is {page}\n"
    )
    assert "The fit did not converge" in page.read_text()


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (None, HARES, "there is no file data.csv"),
        ("", HARES, "data.csv is empty"),
        ("year,hare,lynx\n", HARES, "no rows"),
        ("year,hare,wolf\n1,2,3\n2,3,4\n", HARES, "no data column 'lynx'"),
        ("yaer,hare,lynx\n1,2,3\n2,3,4\n", HARES, "no time column 'year'. Did you mean 'yaer'?"),
        ("year,hare,lynx\n1,2,3\n2,few,4\n", HARES, "column 'hare' must hold numbers, but holds 'few' in line 3"),
        ("year,hare,lynx\n1,2,3\n1,3,4\n", HARES, "too few data: there is only one time"),
        ("year,hare,lynx\n1,2,3\n2,0,4\n", HARES, "is not positive"),
        (DATA, ["--model", "lotka-voltera"], "unknown model 'lotka-voltera'. Did you mean 'lotka-volterra'?"),
        (DATA, [*PLAIN, "--noise", "gamma"], "unknown noise 'gamma'. The noise models are normal, lognormal"),
        (DATA, [*HARES, "--noise", "hare=normal"], "--noise must be one word for all, or name=value for each, got"),
        (DATA, [*PLAIN, "--noise", "wolf=normal"], "noise names 'wolf', but the observables are hare, lynx"),
        (DATA, [*HARES, "--sigma", "none"], "sigma must be one of ('separate', 'shared') or a positive number"),
        (DATA, [*HARES, "--sigma", "hare=error"], "no sigma column 'error'"),
        (DATA, [*HARES, "--long", "what"], "--long must be two columns, of names and of values, such as what,value;"),
        (DATA, [*HARES, "--time-unit", "moons"], "time_unit must be one of"),
        (DATA, [*HARES, "--conditions", "arms.csv"], "name the column that does so, trajectory='column'"),
        (DATA, [*HARES, "--doses", "doses.csv"], "there is no file doses.csv"),
        (DATA, [*HARES, "--censored", "hare"], "censored must be a dict from column to the column"),
        (DATA, [*HARES, "--initial", "rest"], "initial must be 'steady', 'shared' or a dict by state"),
        (DATA, [*HARES, "--initial", "wolf=1"], "initial names 'wolf', but the states are prey, predator"),
        (DATA, [*HARES, "--parameter", "alpha=1"], "parameters names 'alpha', which LotkaVolterra has already"),
        (DATA, [*HARES, "--by", "alpha=site"], "by groups the trajectories by 'site', which is no column"),
        (DATA, [*HARES, "--tie", "alpha=2*gama"], "the formula of alpha, '2*gama', uses 'gama'"),
        (DATA, [*HARES, "--scale", "alpha=cubic"], "the scale of alpha must be one of ('log', 'linear', 'logit')"),
        (DATA, [*HARES, "--bounds", "alpha=1"], "--bounds alpha must be lower:upper, such as 0:1, 0: or :1, got '1'"),
        (DATA, [*HARES, "--bounds", "alpha=:"], "--bounds alpha must be lower:upper, such as 0:1, 0: or :1, got ':'"),
        (DATA, [*HARES, "--bounds", "alpha=a:1"], "--bounds alpha must be a number, got 'a'"),
        (DATA, [*HARES, "--bounds", "alpha=2:1"], "the bounds of alpha must be (lower, upper) with lower < upper"),
        (DATA, [*HARES, "--prior", "alpha=1"], "--prior alpha must be mean:sd, such as 0.5:0.1, got '1'"),
        (DATA, [*HARES, "--prior", "alpha=1:0"], "the prior of alpha is (mean, standard deviation), a positive one"),
        (
            DATA,
            [*HARES, "--constraint", "alpha"],
            "constraints holds 'alpha', which is no inequality such as 'ka > ke'",
        ),
        (
            DATA,
            [*HARES, "--starts", "3", "--start", "alpha=1"],
            "starts=3 stands instead of start",
        ),
        (DATA, [*HARES, "--backend", "gpu"], "'gpu' is not one of 'auto', 'eager', 'fused'"),
        (DATA, [*HARES, "--checkpoint", "data.csv"], "data.csv is"),
        (DATA, [*HARES, "--method", "dopri55"], "unknown method 'dopri55'. Did you mean 'dopri5'?"),
        (DATA, [*HARES, "--method", "euler"], "adaptive"),
        (DATA, [*HARES, "--fix", "alpha"], "--fix must be name=value, got 'alpha'"),
        (DATA, [*HARES, "--fix", "alpha=much"], "--fix alpha must be a number, got 'much'"),
        (DATA, [*HARES, "--start", "=1"], "--start must be name=value, got '=1'"),
        (DATA, [*HARES, "--fix", "alfa=1"], "'alfa', which is no parameter or state. Did you mean 'alpha'?"),
        (DATA, [*HARES, "--free", "alpha,,beta"], "--free must be names with commas between them"),
        (DATA, [*PLAIN[:4], "--observe", "hare=prey,lynx"], "--observe must be name=value, got 'lynx'"),
        (DATA, [*PLAIN[:4], "--observe", "hare=pray"], "column 'hare' is to observe 'pray', but the states are prey"),
        (DATA, [*HARES, "--trajectory", "site"], "no trajectory column 'site'"),
        (DATA, [*HARES, "--max-iterations", "0"], "--max-iterations"),
        (DATA, [*HARES, "--out", "data.csv"], "data.csv: File exists"),
    ],
)
def test_mistakes_are_one_line_on_stderr(content, arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("data.csv").write_text(content.read_text() if isinstance(content, Path) else content)
    assert main(["fit", "data.csv", "--out", "report", "--quiet", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("torchivp: ")
    assert message in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The process of a fit to the example, run as a user would run it, and the folder of its report."""
    folder = tmp_path_factory.mktemp("fit") / "hare-lynx"
    program = Path(sys.executable).with_name("torchivp")
    return run_program([program, "fit", DATA, *HARES, "--out", folder]), folder


def test_the_program_is_installed():
    assert shutil.which("torchivp", path=Path(sys.executable).parent)


def test_hare_and_lynx_are_fitted_as_in_the_literature(finished):
    done, _ = finished
    assert done.returncode == 0, done.stderr
    # Posterior means and standard deviations of Carpenter's case study (2018), whose priors are weak.
    for name, mean, deviation in [
        ("alpha", 0.55, 0.064),
        ("beta", 0.028, 0.004),
        ("gamma", 0.80, 0.092),
        ("delta", 0.024, 0.004),
        ("prey(1900)", 33.96, 2.9),
        ("predator(1900)", 5.93, 0.54),
        ("sigma(hare)", 0.25, 0.045),
        ("sigma(lynx)", 0.25, 0.044),
    ]:
        row = re.search(rf"{re.escape(name)} +│ +(\S+) │ +(\S+) │", done.stdout)
        assert row, f"{name} is not in the table:\n{done.stdout}"
        assert abs(float(row[1]) - mean) < deviation
        assert 0.6 < float(row[2]) / deviation < 1.2
    assert "nll 122.926   AIC 261.852" in done.stdout


def test_the_report_lies_where_the_program_says(finished):
    done, folder = finished
    assert f"Report: {folder}/index.html" in done.stdout
    names = {"index.html", "fit.png", "residuals.png", "phase.png", "correlation.png", "result.json"}
    assert {path.name for path in folder.iterdir()} == names


def test_the_report_loads_nothing_and_quotes_the_command(finished):
    _, folder = finished
    page = (folder / "index.html").read_text()
    loads = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", page)
    assert [load for load in loads if not load.startswith("data:image/png;base64,")] == ["result.json"]
    assert not re.search(r"https?://", page)
    assert f"torchivp fit {DATA} {' '.join(HARES)} --out {folder}" in page


def test_profiles_are_for_the_report(capsys):
    assert main(["fit", "table.csv", "--model", "pendulum", "--profiles"]) == 2
    assert "--profiles is for the report: give --out folder" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "asked"), [([], False), (["--profiles"], True)])
def test_the_report_has_profiles_if_asked_for(words, asked, recorder, monkeypatch, tmp_path):
    asked_for = []

    def record(result, folder, command, profiles, progress):
        asked_for.append((profiles, progress))
        return folder / "index.html"

    monkeypatch.setattr(torchivp.cli.fit, "write_report", record)
    assert main(["fit", "table.csv", "--model", "pendulum", "--quiet", "--out", str(tmp_path), *words]) == 0
    assert asked_for == [(asked, False)]


def test_progress_goes_to_stderr(finished):
    done, _ = finished
    assert "iteration" in done.stderr
    assert "iteration" not in done.stdout


def test_options_work_together(tmp_path, monkeypatch, capsys):
    """A table of long form, doses, conditions, an expression, noise by column, ties, bounds, a prior, a constraint."""
    monkeypatch.chdir(tmp_path)
    hours, ka, ke = np.array([0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0]), 1.2, 0.25
    rows = ["patient,hour,what,value,error"]
    for patient, volume in (("Ann", 10.0), ("Bo", 14.0)):
        amount = 100 * ka / (ka - ke) * (np.exp(-ke * hours) - np.exp(-ka * hours))
        wave = 0.05 * np.cos(3.7 * hours + volume)
        rows += [f"{patient},{t},plasma,{a / volume + w},0.05" for t, a, w in zip(hours, amount, wave, strict=True)]
        rows += [f"{patient},0,plasma,,0.05"]
    Path("blood.csv").write_text("\n".join(rows))
    Path("doses.csv").write_text("patient,hour,amount\nAnn,0,100\nBo,0,100\n")
    Path("patients.csv").write_text("patient,volume\nAnn,10\nBo,14\n")
    Path("pk.txt").write_text("gut' = -ka*gut\nblood' = ka*gut - ke*blood\nka = 1\nke = 0.5\n")
    line = """fit blood.csv --equations pk.txt --trajectory patient --time hour --long what,value
        --observe 'plasma=max(blood,0)/volume' --parameter volume=1 --doses doses.csv --conditions patients.csv
        --sigma error --initial gut=0,blood=0 --bounds ka=0.1:10 --prior ke=0.3:0.2 --constraint 'ka > ke'
        --derive 'half=log(2)/ke' --start ka=1 --start ke=0.3 --rtol 1e-6 --checkpoint journal --json --quiet"""
    assert main(shlex.split(line)) == 0, capsys.readouterr().err
    out, err = capsys.readouterr()
    found = {each["name"]: each for each in json.loads(out)["estimates"]}
    assert err == "" and Path("journal").stat().st_size
    assert found["ka"]["value"] == pytest.approx(ka, rel=0.05) and found["ke"]["value"] == pytest.approx(ke, rel=0.03)
    assert found["half"]["value"] == pytest.approx(np.log(2) / found["ke"]["value"])
    call = json.loads(out)["call"]
    assert "observe={'plasma': 'max(blood,0)/volume'}" in call and "doses='doses.csv'" in call
