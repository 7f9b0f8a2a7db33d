import io

import numpy as np
import pytest
import torch

from torchivp import solve_ivp
from torchivp.cli import main
from torchivp.models import LotkaVolterra


def simulate(capsys, *arguments):
    """The header and the numbers that a simulation prints."""
    assert main(["simulate", *arguments]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    return out.splitlines()[0], np.loadtxt(io.StringIO(out), delimiter=",", skiprows=1)


def test_csv_goes_to_stdout(capsys):
    header, table = simulate(capsys, "lotka-volterra", "--t", "0,20")
    assert header == "t,prey,predator"
    assert table.shape == (101, 3)
    np.testing.assert_allclose(table[:, 0], np.linspace(0, 20, 101))
    np.testing.assert_array_equal(table[0, 1:], [1, 1])


def test_options_reach_the_solver(capsys):
    options = ["--set", "alpha=1.2,beta=0.8", "--set", "gamma=2", "--state", "10,5", "--points", "3"]
    _, table = simulate(
        capsys, "lotka-volterra", "--t", "0,2", *options, "--method", "tsit5", "--rtol", "1e-9", "--atol", "1e-12"
    )
    model = LotkaVolterra(alpha=1.2, beta=0.8, gamma=2.0)
    start = torch.tensor([10.0, 5.0], dtype=torch.float64)
    exact = solve_ivp(model, (0.0, 2.0), start, t_eval=[0.0, 1.0, 2.0], method="dopri8", rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(table[:, 1:], exact.y.detach().numpy(), rtol=1e-7)


def test_time_may_run_backwards_and_numbers_be_negative(capsys):
    _, table = simulate(capsys, "van-der-pol", "--t", "1,-1", "--state", "-1,0.5", "--points", "5")
    np.testing.assert_allclose(table[:, 0], [1, 0.5, 0, -0.5, -1])
    np.testing.assert_array_equal(table[0, 1:], [-1, 0.5])


def test_fixed_steps(capsys):
    _, table = simulate(capsys, "pendulum", "--t", "0,1", "--method", "euler", "--step-size", "0.5", "--points", "3")
    assert table[1, 1] == 1.0  # from rest, the first Euler step moves nothing


def test_files(capsys, tmp_path):
    csv, png = tmp_path / "sim.csv", tmp_path / "sim.png"
    assert main(["simulate", "pendulum", "--t", "0,10", "--out", str(csv), "--plot", str(png)]) == 0
    assert capsys.readouterr().out == ""
    assert csv.read_text().startswith("t,angle,velocity\n0,1,0\n")
    assert png.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lotka-voltera", "--t", "0,1"], "unknown model 'lotka-voltera'. Did you mean 'lotka-volterra'?"),
        (["sir", "--t", "0"], "--t must be a start and another end, such as 0,20; got '0'"),
        (["sir", "--t", "0,x"], "--t must be numbers with commas between them, such as 0,20; got '0,x'"),
        (["sir", "--t", "1,1"], "--t must be a start and another end"),
        (["sir", "--t", "0,inf"], "--t must be a start and another end"),
        (["sir", "--t", "0,1", "--points", "1"], "--points"),
        (["sir", "--t", "0,1", "--state", "1,2"], "one number for each of susceptible, infected, removed; got '1,2'"),
        (["sir", "--t", "0,1", "--set", "beta"], "--set must be name=value, got 'beta'"),
        (["sir", "--t", "0,1", "--set", "beta="], "--set must be name=value, got 'beta='"),
        (["sir", "--t", "0,1", "--set", "beta=fast"], "--set beta must be a number, got 'fast'"),
        (["sir", "--t", "0,1", "--set", "beta=1", "--set", "beta=2"], "--set gives beta twice"),
        (["sir", "--t", "0,1", "--set", "bta=1"], "sir has no parameter 'bta': its parameters are beta, gamma"),
        (["sir", "--t", "0,1", "--method", "dopri"], "unknown method 'dopri'. Did you mean 'dopri"),
        (["sir", "--t", "0,1", "--method", "rk4"], "takes fixed steps"),
        (["sir", "--t", "0,1", "--out", "/nowhere/sim.csv"], "/nowhere/sim.csv: No such file or directory"),
        (["sir", "--t", "0,1", "--plot", "sim.xyz"], "Format 'xyz' is not supported"),
    ],
)
def test_mistakes_are_one_line_on_stderr(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["simulate", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("torchivp: ")
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_equation_that_cannot_be_solved_is_failure_not_misuse(capsys):
    # Time reversed, the van der Pol oscillator leaves its cycle and blows up.
    assert main(["simulate", "van-der-pol", "--t", "0,-50", "--state", "5,5"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("torchivp: ")
    assert err.count("\n") == 1
