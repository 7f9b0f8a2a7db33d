"""Every example runs, draws its picture, and learns something if it is there to learn."""

import os
import re
import sys
from pathlib import Path

import pytest

from programs import run_program

EXAMPLES = Path(__file__).parents[2] / "examples"
ARTICLE = EXAMPLES / "article"
"""The article's experiments, which torchdiffeq is compared with."""
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


def test_the_articles_experiments_end_at_the_truth_and_lose_as_torchdiffeq_does(tmp_path):
    """The fit of the shortest, and the losses of its loop, beside those with torchdiffeq on the same data."""
    pytest.importorskip("torchdiffeq")
    output = article_run("van_der_pol", tmp_path)
    apart = float(re.search(r"the losses differ by at most (\S+)", output)[1])
    off = float(re.search(r"^mu .* (\S+)$", output, re.MULTILINE)[1])
    assert apart < 1e-4 and abs(off) < 2
    assert "fit: converged" in output


@pytest.mark.parametrize("experiment", ["lotka_volterra", "lorenz", "neural_van_der_pol"])
def test_a_quick_run_of_the_articles_other_experiments(experiment, tmp_path):
    output = article_run(experiment, tmp_path)
    assert "the article's loop, torchivp" in output


def article_run(experiment, tmp_path):
    """Run an experiment of the article in its short form, check that it draws and films, and return what it prints."""
    run = run_program(
        [sys.executable, "-W", "error::UserWarning", ARTICLE / f"{experiment}.py", "--quick", "--out", tmp_path],
        env=os.environ | {"MPLCONFIGDIR": str(tmp_path / "matplotlib"), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    assert (tmp_path / f"{experiment}.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / f"{experiment}.gif").read_bytes().startswith(b"GIF8")
    return run.stdout


@pytest.mark.parametrize("script", sorted(EXAMPLES.rglob("*.py")), ids=lambda path: path.stem)
def test_only_the_public_interface_is_used(script):
    """A reader should be able to do what the examples do with what the documentation lists."""
    text = script.read_text(encoding="utf-8")
    imports = re.findall(r"^(?:from|import) (torchivp\S*)", text, re.MULTILINE)
    parts = ("models", "fitting", "plot", "nn", "data", "training")
    assert imports and set(imports) <= {"torchivp", *(f"torchivp.{part}" for part in parts)}
    rivals = r"scipy\.integrate" if script.parent == ARTICLE else r"torchdiffeq|scipy\.integrate"
    assert not re.search(rivals, text)
