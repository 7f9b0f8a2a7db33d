"""Every example runs, draws its picture, and learns something if it is there to learn."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
TRAIN = {"spiral_fit": 0.5, "continuous_flow": 0.9, "latent_ode": 0.9, "dosing": 0.1}
"""The examples that train or fit, and to what part of the first loss a quick run brings it at most."""


def test_the_examples_that_train_are_there():
    assert TRAIN.keys() <= {path.stem for path in EXAMPLES.glob("*.py")}


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_a_quick_run(script, tmp_path):
    run = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", script, "--quick", "--out", tmp_path],
        capture_output=True,
        text=True,
        timeout=120,
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
def test_only_the_public_interface_is_used(script):
    """A reader should be able to do what the examples do with what the documentation lists."""
    imports = re.findall(r"^(?:from|import) (torchivp\S*)", script.read_text(encoding="utf-8"), re.MULTILINE)
    assert imports and set(imports) <= {"torchivp", "torchivp.models", "torchivp.fit", "torchivp.plot"}
    assert not re.search(r"torchdiffeq|scipy\.integrate", script.read_text(encoding="utf-8"))
