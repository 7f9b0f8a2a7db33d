"""A training that was killed goes on as if it had not been, to the last bit."""

import multiprocessing
import os
import signal

import pytest
import torch
from torch import nn

from torchivp import train
from torchivp.data import SimulatedTrajectories
from torchivp.nn import NeuralODE
from torchivp.training import Shooting


def dataset():
    t = torch.linspace(0, 2, 9)
    return SimulatedTrajectories(lambda t, y: -y, t, [1.0, 2.0], 6, spread=0.3, noise=0.1, seed=0)


def arrangement():
    """A model that draws random numbers, and an optimiser and scheduler with a memory of their own."""
    torch.manual_seed(1)
    field = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 2))
    model = NeuralODE(field, output="trajectory", method="rk4", step_size=0.25)
    scheduler = lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=20)
    return model, {
        "epochs": 5,
        "batch_size": 2,
        "scheduler": scheduler,
        "patience": 10,
        "validation": dataset(),
        "shooting": Shooting(2, start="free", continuity=0.1),
    }


def killed_at_step(step, path, every):
    """Train, and die in the middle of the evaluation number `step` of the loss."""
    calls = []

    def loss(predicted, observed):
        calls.append(1)
        if len(calls) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return nn.functional.mse_loss(predicted, observed)

    loss.__name__ = "mse_loss"
    model, arguments = arrangement()
    train(model, dataset(), checkpoint=path, checkpoint_every=every, loss=loss, **arguments)


# An epoch is three steps and three batches of validation: the second and the third epoch, after one and two steps.
@pytest.mark.parametrize(("step", "every"), [(8, 1), (9, 2), (15, 1), (15, None)])
def test_a_killed_training_goes_on_to_the_last_bit(step, every, tmp_path):
    path = tmp_path / "training.pt"
    model, arguments = arrangement()
    history = train(model, dataset(), **arguments)

    process = multiprocessing.get_context("fork").Process(target=killed_at_step, args=(step, path, every))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and path.exists()

    resumed, arguments = arrangement()
    torch.randn(17)  # what is drawn between does not matter
    resumed_history = train(resumed, dataset(), checkpoint=path, checkpoint_every=every, **arguments)
    for ours, theirs in zip(resumed.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(resumed_history, history, strict=True):
        assert (ours.loss, ours.validation, ours.lr) == (theirs.loss, theirs.validation, theirs.lr)
        assert (ours.nfe_forward, ours.nfe_backward) == (theirs.nfe_forward, theirs.nfe_backward)
    assert resumed_history.best_epoch == history.best_epoch


def test_a_training_that_is_over_is_not_repeated_and_can_be_prolonged(tmp_path):
    path = tmp_path / "folder" / "training.pt"
    model, arguments = arrangement()
    expected = train(model, dataset(), **arguments)
    model, arguments = arrangement()
    train(model, dataset(), checkpoint=path, **(arguments | {"epochs": 3}))
    model, _ = arrangement()
    assert train(model, dataset(), checkpoint=path, **(arguments | {"epochs": 3})).losses == expected.losses[:3]
    assert model.nfe.forward == 0
    assert train(model, dataset(), checkpoint=path, **arguments).losses == expected.losses
    model, _ = arrangement()
    assert len(train(model, dataset(), checkpoint=path, resume=False, **(arguments | {"epochs": 1}))) == 1


def test_other_settings_are_refused(tmp_path):
    path = tmp_path / "training.pt"
    model, arguments = arrangement()
    train(model, dataset(), checkpoint=path, **(arguments | {"epochs": 1}))
    with pytest.raises(ValueError, match=r"a training with batch_size = 2, and this one has 3: .*resume=False"):
        train(model, dataset(), checkpoint=path, **(arguments | {"batch_size": 3}))
    path.write_text("nothing")
    with pytest.raises(ValueError, match="is not the checkpoint of a training"):
        train(model, dataset(), checkpoint=path, **arguments)
