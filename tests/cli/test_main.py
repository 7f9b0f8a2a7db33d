import re
import shutil
import sys
from pathlib import Path

import pytest

from programs import run_program
from torchivp import __version__
from torchivp.cli import main


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"torchivp {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_shows_the_commands_and_how_to_start(arguments, capsys):
    assert main(arguments) == 0
    out = capsys.readouterr().out
    for words in ("fit", "models", "simulate", "Start here", "torchivp simulate lotka-volterra --t 0,20"):
        assert words in out


@pytest.mark.parametrize("command", ["fit", "models", "simulate"])
def test_every_command_teaches_by_example(command, capsys):
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert "Examples:" in out
    assert len(re.findall(rf"^ torchivp {command}", out, re.MULTILINE)) >= 1


def test_examples_in_help_are_understood(capsys, monkeypatch, tmp_path):
    from torchivp.cli.models import EXAMPLES as models
    from torchivp.cli.simulate import EXAMPLES as simulate

    monkeypatch.chdir(tmp_path)
    shutil.copy(Path(__file__).parents[2] / "examples/data/predators.txt", tmp_path)
    for line in (models + "\n" + simulate).splitlines():
        if line.startswith("torchivp "):
            assert main(line.partition(" > ")[0].split()[1:]) == 0, capsys.readouterr().err
    assert (tmp_path / "sim.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["smulate"], "No such command 'smulate'. Did you mean 'simulate'?"),
        (["fit"], "Missing argument"),
        (["simulate", "sir"], "Missing option '--t'."),
        (["simulate", "sir", "--t", "0,1", "--speed", "9"], "No such option: --speed"),
    ],
)
def test_a_request_that_makes_no_sense_is_one_line_on_stderr(arguments, message, capsys):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("torchivp: ")
    assert message in err
    assert err.count("\n") == 1


def test_models_are_listed_with_equations_and_parameters(capsys):
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^lotka-volterra +Predators and their prey\.", out, re.MULTILINE)
    for words in (
        "prey'     =  alpha prey - beta prey predator",
        "initial state: prey = 1, predator = 1",
        "gamma = 3    death rate of the predators alone",
        "van-der-pol",
    ):
        assert words in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_its_libraries_the_command_says_what_to_install(missing):
    code = f"import sys; sys.modules[{missing!r}] = None; from torchivp.cli import main; sys.exit(main(['models']))"
    done = run_program([sys.executable, "-c", code])
    assert done.returncode == 2
    assert done.stderr == "torchivp: the command line needs typer and rich: pip install 'torchivp[cli]'\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("simulate lotka", ["lotka-volterra"]),
        ("fit data.csv --model va", ["van-der-pol"]),
        ("fit data.csv --method rodas", ["rodas4", "rodas5p"]),
        ("simulate sir --method ts", ["tsit5"]),
        ("ver", ["versions"]),
    ],
)
def test_a_shell_completes_commands_models_and_methods(words, expected, monkeypatch, capsys):
    monkeypatch.setenv("_TORCHIVP_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"torchivp {words}")
    monkeypatch.setenv("COMP_CWORD", str(len(words.split())))
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 0
    assert capsys.readouterr().out.split() == expected


def test_a_shell_is_told_how_to_complete(monkeypatch, capsys):
    monkeypatch.setenv("_TORCHIVP_COMPLETE", "source_bash")
    with pytest.raises(SystemExit):
        main([])
    assert "complete -o default -F _torchivp_completion torchivp" in capsys.readouterr().out


def test_versions_are_told(capsys):
    assert main(["versions"]) == 0
    out = capsys.readouterr().out
    for name in (f"torchivp:     {__version__}", "python:", "platform:", "torch:", "scipy:", "c++ compiler:"):
        assert f"\n{name}" in f"\n{out}"


def test_versions_are_told_without_the_libraries_of_the_command():
    code = "import sys; sys.modules['typer'] = None; from torchivp.cli import main; sys.exit(main(['versions']))"
    done = run_program([sys.executable, "-c", code])
    assert done.returncode == 0
    assert done.stdout.startswith(f"torchivp:     {__version__}\n")


def test_the_module_is_the_command():
    done = run_program([sys.executable, "-m", "torchivp", "--version"])
    assert (done.returncode, done.stdout) == (0, f"torchivp {__version__}\n")
