"""Every example runs, draws its picture, and learns something if it is there to learn."""

import os
import re
import sys
from pathlib import Path

import pytest

from programs import run_program

EXAMPLES = Path(__file__).parents[2] / "examples"
TRAIN = {
    "spiral_fit": 0.5,
    "continuous_flow": 0.9,
    "latent_ode": 0.9,
    "dosing": 0.1,
    "latent_sde": 0.9,
    "sde_gan": 0.9,
    "heston": 0.01,
    "score_model": 0.8,
}
"""The examples that train or fit, and to what part of the first loss a quick run brings it at most."""


def test_the_examples_that_train_are_there():
    assert TRAIN.keys() <= {path.stem for path in EXAMPLES.glob("*.py")}


def quick_run(script, tmp_path, *arguments):
    """Run an example in its short form, and check what it draws and learns."""
    run = run_program(
        [sys.executable, "-W", "error::UserWarning", script, "--quick", "--out", tmp_path, *arguments],
        env=os.environ | {"MPLCONFIGDIR": str(tmp_path / "matplotlib"), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    picture = (tmp_path / f"{script.stem}.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 20_000
    if script.stem in TRAIN:
        first, last = map(float, re.search(r"loss from (\S+) to (\S+);", run.stdout).groups())
        assert last < TRAIN[script.stem] * first


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_a_quick_run(script, tmp_path):
    quick_run(script, tmp_path)


@pytest.mark.parametrize("noise", ["diagonal", "scalar", "additive", "general"])
def test_a_latent_sde_with_noise_of_any_kind(noise, tmp_path):
    quick_run(EXAMPLES / "latent_sde.py", tmp_path, "--data", "lorenz", "--noise", noise)


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_only_the_public_interface_is_used(script):
    """A reader should be able to do what the examples do with what the documentation lists."""
    imports = re.findall(r"^(?:from|import) (torchivp\S*)", script.read_text(encoding="utf-8"), re.MULTILINE)
    parts = ("models", "fitting", "plot", "nn", "data", "training")
    assert imports and set(imports) <= {"torchivp", *(f"torchivp.{part}" for part in parts)}
    assert not re.search(r"torchdiffeq|scipy\.integrate", script.read_text(encoding="utf-8"))
