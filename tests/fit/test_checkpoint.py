"""Fits that are interrupted go on where they were, to the same bits."""

import re

import numpy as np
import pytest
import torch

from compilers import needs_compiler
from simulated import simulate
from torchivp import Scheduled, fit
from torchivp.models import FunctionModel, LotkaVolterra

DATA = simulate(LotkaVolterra(), np.linspace(0, 1.5, 9), noise=0.1, lognormal=True)
QUICK = {"rtol": 1e-5, "method": "dopri5", "shooting": "single", "backend": "eager"}
OPTIONS = {
    "rtol": 1e-6,
    "method": "dopri5",
    "shooting": "single",
    "observe": {"prey": "prey", "both": lambda y, p: y.prey + y.predator},
    "start": {"alpha": 1.2, "prey": 1.0},
    "noise": "lognormal",
    "initial": {"predator": "prey"},
}


class Killed(Exception):
    pass


@needs_compiler
@pytest.mark.parametrize("backend", ["eager", "fused"])
def test_a_fit_that_was_killed_ends_at_the_same_bits(tmp_path, backend):
    path = tmp_path / "fit.journal"
    data = DATA.assign(both=DATA["prey"] + DATA["predator"])

    def die(stage, iteration, nll):
        if iteration == 4:
            raise Killed

    with pytest.raises(Killed):
        fit(LotkaVolterra(), data, **OPTIONS, backend=backend, checkpoint=path, progress=die)
    torn = path.read_bytes()
    path.write_bytes(torn[:-5])  # the last entry was being written
    resumed = fit(LotkaVolterra(), data, **OPTIONS, backend=backend, checkpoint=path)
    whole = fit(LotkaVolterra(), data, **OPTIONS, backend=backend)
    assert resumed.theta.tobytes() == whole.theta.tobytes()
    assert (resumed.nll, resumed.iterations) == (whole.nll, whole.iterations)
    assert resumed.solves < whole.solves
    again = fit(LotkaVolterra(), data, **OPTIONS, backend=backend, checkpoint=path)
    assert again.theta.tobytes() == whole.theta.tobytes()


def test_a_journal_of_another_fit_is_refused(tmp_path):
    path = tmp_path / "fit.journal"
    fit(LotkaVolterra(), DATA, start={"alpha": 1.5}, checkpoint=path, **QUICK)
    words = f"{path} is the journal of another fit (other data, model or arguments): give checkpoint= another name"
    with pytest.raises(ValueError, match=re.escape(words)):
        fit(LotkaVolterra(), DATA, start={"alpha": 1.4}, checkpoint=path, **QUICK)
    with pytest.raises(ValueError, match="another fit"):
        fit(LotkaVolterra(), 1.1 * DATA, start={"alpha": 1.5}, checkpoint=path, **QUICK)
    other = tmp_path / "notes.txt"
    other.write_text("no journal, but a text that is long enough")
    with pytest.raises(ValueError, match="is no journal of a fit"):
        fit(LotkaVolterra(), DATA, checkpoint=other, backend="eager")


def test_a_journal_knows_what_its_model_does(tmp_path):
    """Which its name and its parameters do not tell."""
    t = np.linspace(0, 2, 6)
    data = {"time": t, "x": 2 * np.exp(-0.5 * t), "group": list("aab") * 2}

    def model(function):
        return FunctionModel(function, states={"x": 2.0}, parameters={"rate": 1.0})

    def run(path, function=lambda t, y, p: {"x": -p.rate * y.x}, **options):
        return fit(model(function), data, start={"rate": 0.6}, backend="eager", checkpoint=path, **options)

    for i, (first, second) in enumerate(
        [
            ({}, {"function": lambda t, y, p: {"x": -p.rate * y.x**2}}),
            ({"schedule": Scheduled([1.0], lambda t, y: y + 0.1)}, {"schedule": Scheduled([1.0], lambda t, y: y + 3)}),
            ({"tied": {"rate": lambda p: p.k}}, {"tied": {"rate": lambda p: 2 * p.k}}),
        ]
    ):
        path = tmp_path / f"{i}.journal"
        if "tied" in first:
            options = {"parameters": {"k": 0.5}, "backend": "eager", "checkpoint": path}
            fit(model(lambda t, y, p: {"x": -p.rate * y.x}), data, **first, **options)
            with pytest.raises(ValueError, match="another fit"):
                fit(model(lambda t, y, p: {"x": -p.rate * y.x}), data, **second, **options)
            continue
        run(path, **first)
        with pytest.raises(ValueError, match="another fit"):
            run(path, **second)
        run(path, **first)


def test_a_fit_with_a_checkpoint_can_be_asked_after_it(tmp_path):
    """Even of a quantity that may be zero, which takes a solve after the search."""
    t = np.linspace(0, 2, 6)
    data = {"time": t, "x": 1 + 0.01 * np.cos(9 * t)}
    model = FunctionModel(lambda t, y, p: {"x": -p.rate * y.x}, states={"x": 1.0}, parameters={"rate": 0.1})
    found = fit(model, data, start={"rate": 0.1}, checkpoint=tmp_path / "fit.journal", backend="eager")
    assert found.predict([1.0]).shape == (1, 1)


def test_a_journal_runs_no_code(tmp_path):
    import pickle

    path = tmp_path / "fit.journal"
    fit(LotkaVolterra(), DATA, start={"alpha": 1.5}, checkpoint=path, **QUICK)
    attack = pickle.dumps((b"key", torch.nn.Linear))
    with path.open("ab") as file:
        file.write(len(attack).to_bytes(8, "little") + attack)
    with pytest.raises(ValueError, match="a journal of a fit holds no torch"):
        fit(LotkaVolterra(), DATA, start={"alpha": 1.5}, checkpoint=path, **QUICK)
