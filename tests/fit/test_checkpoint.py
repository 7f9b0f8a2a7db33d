"""Fits that are interrupted go on where they were, to the same bits."""

import re

import numpy as np
import pytest
import torch

from compilers import needs_compiler
from simulated import simulate
from torchivp import fit
from torchivp.models import LotkaVolterra

DATA = simulate(LotkaVolterra(), np.linspace(0, 3, 9), noise=0.1, lognormal=True)
OPTIONS = {
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
    fit(LotkaVolterra(), DATA, start={"alpha": 1.5}, checkpoint=path, backend="eager")
    words = f"{path} is the journal of another fit (other data, model or arguments): give checkpoint= another name"
    with pytest.raises(ValueError, match=re.escape(words)):
        fit(LotkaVolterra(), DATA, start={"alpha": 1.4}, checkpoint=path, backend="eager")
    with pytest.raises(ValueError, match="another fit"):
        fit(LotkaVolterra(), 1.1 * DATA, start={"alpha": 1.5}, checkpoint=path, backend="eager")
    other = tmp_path / "notes.txt"
    other.write_text("no journal, but a text that is long enough")
    with pytest.raises(ValueError, match="is no journal of a fit"):
        fit(LotkaVolterra(), DATA, checkpoint=other, backend="eager")


def test_a_journal_runs_no_code(tmp_path):
    import pickle

    path = tmp_path / "fit.journal"
    fit(LotkaVolterra(), DATA, start={"alpha": 1.5}, checkpoint=path, backend="eager")
    attack = pickle.dumps((b"key", torch.nn.Linear))
    with path.open("ab") as file:
        file.write(len(attack).to_bytes(8, "little") + attack)
    with pytest.raises(ValueError, match="a journal of a fit holds no torch"):
        fit(LotkaVolterra(), DATA, start={"alpha": 1.5}, checkpoint=path, backend="eager")
