import re
import shutil
import sys
from pathlib import Path

import pytest

import torchivp.cli.fit
from fake_fit import TABLE, FakeFit
from programs import run_program
from torchivp.cli import main

DATA = Path(__file__).parents[2] / "examples/data/lynx_hare.csv"
HARES = ["--model", "lotka-volterra", "--time", "year", "--observe", "hare,lynx", "--noise", "lognormal"]


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
    monkeypatch.setattr(torchivp.cli.fit, "write_report", lambda result, out, command: out / "index.html")


@pytest.mark.usefixtures("no_report")
def test_options_reach_the_fit(recorder, tmp_path):
    options = ["--sigma", "shared", "--fix", "alpha=0.5,beta=0.03", "--fix", "prey=30", "--start", "gamma=1"]
    options += ["--free", "delta,predator", "--method", "tsit5", "--rtol", "1e-7", "--atol", "1e-9", "--quiet"]
    options += ["--max-step", "0.25", "--jump-times", "0.5,24"]
    assert main(["fit", str(DATA), *HARES, *options, "--out", str(tmp_path / "report")]) == 0
    assert type(recorder.model).__name__ == "LotkaVolterra"
    assert recorder.data.observables == ["hare", "lynx"]
    assert recorder.data.states == ["prey", "predator"]
    assert recorder.options == {
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
        "progress": False,
    }


@pytest.mark.usefixtures("no_report")
def test_columns_are_given_to_states_by_name(recorder, tmp_path):
    arguments = ["--model", "lotka-volterra", "--time", "year", "--observe", "lynx=predator,hare=prey"]
    assert main(["fit", str(DATA), *arguments, "--out", str(tmp_path)]) == 0
    assert dict(zip(recorder.data.observables, recorder.data.states, strict=True)) == {
        "lynx": "predator",
        "hare": "prey",
    }
    assert recorder.options["noise"] == "normal"
    assert recorder.options["free"] is None
    assert recorder.options["start"] is None


@pytest.mark.usefixtures("no_report")
def test_trajectories_are_told_apart(recorder, tmp_path):
    lines = DATA.read_text().splitlines()
    table = tmp_path / "two.csv"
    table.write_text("\n".join([f"{lines[0]},site", *(f"{line},{site}" for site in "AB" for line in lines[1:])]))
    assert main(["fit", str(table), *HARES, "--trajectory", "site", "--free", "all", "--out", str(tmp_path)]) == 0
    assert [trajectory.name for trajectory in recorder.data.trajectories] == ["A", "B"]
    assert len(recorder.data.trajectories[1].t) == len(TABLE)
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
        (DATA, [*HARES, "--noise", "gamma"], "'gamma' is not one of 'normal', 'lognormal'"),
        (DATA, [*HARES, "--sigma", "none"], "'none' is not one of 'separate', 'shared'"),
        (DATA, [*HARES, "--method", "dopri55"], "unknown method 'dopri55'. Did you mean 'dopri5'?"),
        (DATA, [*HARES, "--method", "euler"], "adaptive"),
        (DATA, [*HARES, "--fix", "alpha"], "--fix must be name=value, got 'alpha'"),
        (DATA, [*HARES, "--fix", "alpha=much"], "--fix alpha must be a number, got 'much'"),
        (DATA, [*HARES, "--start", "=1"], "--start must be name=value, got '=1'"),
        (DATA, [*HARES, "--fix", "alfa=1"], "'alfa', which is no parameter or state. Did you mean 'alpha'?"),
        (DATA, [*HARES, "--free", "alpha,,beta"], "--free must be names with commas between them"),
        (DATA, [*HARES, "--observe", "hare=prey,lynx"], "--observe must be name=value, got 'lynx'"),
        (DATA, [*HARES, "--observe", "hare=pray"], "column 'hare' is to observe 'pray', but the states are prey"),
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


def test_progress_goes_to_stderr(finished):
    done, _ = finished
    assert "iteration" in done.stderr
    assert "iteration" not in done.stdout
