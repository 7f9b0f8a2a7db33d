"""Every example runs, draws its picture, and learns something if it is there to learn."""

import os
import re
import runpy
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pytest
import torch

from programs import launch, run_program

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
    "odenet": 0.9,
    "ddp_latent_ode": 0.95,
}
"""The examples that train or fit, and to what part of the first loss a quick run brings it at most."""


def test_the_examples_that_train_are_there():
    assert TRAIN.keys() <= {path.stem for path in EXAMPLES.glob("*.py")}


@pytest.fixture
def quick_run(tmp_path, monkeypatch, capsys):
    """Runs an example in its short form, as a program of this process, checks what it draws and returns its output."""

    def run(script, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(script.parent)
        monkeypatch.setattr(sys, "argv", [str(script), "--quick", "--out", str(tmp_path), *arguments])
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            runpy.run_path(str(script), run_name="__main__")
        plt.close("all")
        picture = (tmp_path / f"{script.stem}.png").read_bytes()
        assert picture.startswith(b"\x89PNG") and len(picture) > 20_000
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_a_quick_run(script, quick_run):
    printed = quick_run(script)
    if script.stem in TRAIN:
        first, last = map(float, re.search(r"loss from (\S+) to (\S+);", printed).groups())
        assert last < TRAIN[script.stem] * first


@pytest.mark.parametrize(
    "noise", ["general", *(pytest.param(kind, marks=pytest.mark.sweep) for kind in ("diagonal", "scalar", "additive"))]
)
def test_a_latent_sde_with_noise_of_any_kind(noise, quick_run):
    quick_run(EXAMPLES / "latent_sde.py", "--data", "lorenz", "--noise", noise)


def test_the_articles_experiments_end_at_the_truth_and_lose_as_torchdiffeq_does(quick_run, tmp_path):
    """The fit of the shortest, and the losses of its loop, beside those with torchdiffeq on the same data."""
    pytest.importorskip("torchdiffeq")
    output = quick_run(ARTICLE / "van_der_pol.py")
    apart = float(re.search(r"the losses differ by at most (\S+)", output)[1])
    off = float(re.search(r"^mu .* (\S+)$", output, re.MULTILINE)[1])
    assert apart < 1e-4 and abs(off) < 2
    assert "fit: converged" in output
    assert (tmp_path / "van_der_pol.gif").read_bytes().startswith(b"GIF8")


@pytest.mark.parametrize("experiment", ["lotka_volterra", "lorenz", "neural_van_der_pol"])
def test_a_quick_run_of_the_articles_other_experiments(experiment, quick_run, tmp_path):
    assert "the article's loop, torchivp" in quick_run(ARTICLE / f"{experiment}.py")
    assert (tmp_path / f"{experiment}.gif").read_bytes().startswith(b"GIF8")


def example_run(command, tmp_path):
    """Run an example in processes of its own, and return what it prints."""
    environment = os.environ | {"MPLCONFIGDIR": str(tmp_path / "matplotlib"), "OMP_NUM_THREADS": "1"}
    run = run_program(command, env=environment, cwd=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path):
    script, found = EXAMPLES / "ddp_latent_ode.py", {}
    for count in (1, 2):
        output = example_run(launch(script, "--quick", "--out", tmp_path, processes=count), tmp_path)
        assert f"{count} at work: loss from" in output
        found[count] = torch.load(tmp_path / "ddp_latent_ode.pt")
    for name, alone in found[1].items():
        torch.testing.assert_close(found[2][name], alone, rtol=1e-4, atol=3e-5)


@pytest.mark.slow
def test_lightning_trains_on_two_processes(tmp_path):
    pytest.importorskip("lightning")
    script = EXAMPLES / "lightning" / "spiral.py"  # Lightning starts the second process itself
    output = example_run(launch(script, "--devices", 2, "--quick", "--out", tmp_path), tmp_path)
    first, last = map(float, re.search(r"2 at work: loss from (\S+) to (\S+);", output).groups())
    assert last < 0.9 * first and (tmp_path / "spiral.ckpt").exists()


@pytest.mark.parametrize("script", sorted(EXAMPLES.rglob("*.py")), ids=lambda path: path.stem)
def test_only_the_public_interface_is_used(script):
    """A reader should be able to do what the examples do with what the documentation lists."""
    text = script.read_text(encoding="utf-8")
    imports = re.findall(r"^(?:from|import) (torchivp\S*)", text, re.MULTILINE)
    parts = ("models", "fitting", "plot", "nn", "data", "training")
    assert imports and set(imports) <= {"torchivp", *(f"torchivp.{part}" for part in parts)}
    rivals = r"scipy\.integrate" if script.parent == ARTICLE else r"torchdiffeq|scipy\.integrate"
    assert not re.search(rivals, text)


class FakeMNIST:
    """What `torchvision.datasets.MNIST` is to a program that downloads nothing."""

    def __init__(self, folder, train, download):
        assert not download
        if not (folder / "MNIST" / "raw").is_dir():
            raise RuntimeError("Dataset not found. You can use download=True to download it")
        self.data = torch.full((6 if train else 2, 28, 28), 255, dtype=torch.uint8)
        self.targets = torch.zeros(len(self.data), dtype=torch.int64)


@pytest.fixture
def odenet():
    return SimpleNamespace(**runpy.run_path(str(EXAMPLES / "odenet.py")))


def test_mnist_is_refused_with_a_sentence_where_it_is_not(odenet, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(SystemExit, match="--data mnist needs torchvision: install it with `pip install torchvision`"):
        odenet.mnist(tmp_path)
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "torchvision.datasets", SimpleNamespace(MNIST=FakeMNIST))
    with pytest.raises(SystemExit, match=r"--data mnist finds no MNIST in the folder '.*': name the folder that holds"):
        odenet.mnist(tmp_path)


def test_mnist_is_read_as_torchvision_holds_it(odenet, tmp_path, monkeypatch):
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "torchvision.datasets", SimpleNamespace(MNIST=FakeMNIST))
    digits = odenet.mnist(tmp_path)
    assert digits.images.shape == (6, 1, 28, 28) and digits.test_images.shape == (2, 1, 28, 28)
    assert digits.images.min() == digits.images.max() == 1.0
    assert len(digits.labels) == 6 and len(digits.test_labels) == 2


def test_an_ode_in_the_place_of_six_residual_blocks_needs_about_a_third_of_their_parameters(odenet):
    counts = {name: odenet.count_parameters(odenet.network(name, 64)) for name in odenet.NETWORKS}
    assert counts["RK-Net"] == counts["ODE-Net"] and 0.3 < counts["ODE-Net"] / counts["ResNet"] < 0.4
