"""The video of a training shows its epochs."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from torchivp import train
from torchivp.data import TrajectoryDataset
from torchivp.nn import NeuralODE
from torchivp.training import Video


def run(size=2, **options):
    torch.manual_seed(0)
    t = torch.linspace(0, 1, 4)
    y = torch.exp(-t)[:, None] * torch.arange(1.0, size + 1)
    y[2, 0] = torch.nan
    model = NeuralODE(nn.Linear(size, size), output="trajectory", method="rk4", step_size=0.5)
    return train(model, TrajectoryDataset(t, y), lr=0.05, **({"epochs": 3} | options))


def frames(path):
    with Image.open(path) as video:
        shown = []
        for i in range(video.n_frames):
            video.seek(i)
            shown.append(np.asarray(video.convert("L")))
        return shown


@pytest.mark.parametrize(("size", "shape"), [(1, (420, 650)), (2, (420, 1000)), (3, (420, 1000))])
def test_a_frame_before_and_after_every_epoch(size, shape, tmp_path):
    run(size, epochs=1 if size != 2 else 2, record=tmp_path / "new" / "training.gif")
    shown = frames(tmp_path / "new" / "training.gif")
    assert len(shown) == (2 if size != 2 else 3) and all(frame.shape == shape for frame in shown)
    assert all((first != second).any() for first, second in pairwise(shown))
    assert all(frame.std() > 5 for frame in shown)  # none is empty


def test_fewer_frames_another_trajectory_and_the_last_epoch(tmp_path):
    run(epochs=5, record=Video(tmp_path / "training.gif", every=2))
    assert len(frames(tmp_path / "training.gif")) == 4  # 0, 2, 4 and 5
    with pytest.raises(ValueError, match="there is no trajectory 1 to record: the dataset holds 1"):
        run(record=Video("training.gif", trajectory=1))


def test_a_resumed_training_shows_all_of_it(tmp_path):
    options = {"checkpoint": tmp_path / "training.pt", "record": tmp_path / "training.gif"}
    run(epochs=1, **options)
    run(epochs=2, **options)
    assert len(frames(tmp_path / "training.gif")) == 3
