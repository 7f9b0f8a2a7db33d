"""`train` is the loop one would write by hand, for data of every kind."""

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from torchivp import odeint, train
from torchivp.data import SimulatedTrajectories, TrajectoryDataset
from torchivp.nn import JacobianNorm, KineticEnergy, NeuralODE, penalty
from torchivp.training import EpochRecord, History, Shooting


class Decay(nn.Module):
    def __init__(self, rate=0.2):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate))

    def forward(self, y):
        return -self.rate * y


class Oscillation(nn.Module):
    """The solution of x'' = -w^2 x in closed form, called as `train` calls a model."""

    def __init__(self, frequency):
        super().__init__()
        self.frequency = nn.Parameter(torch.tensor(frequency))

    def forward(self, y0, t):
        w = self.frequency
        angle = w * (t - t[..., :1])
        if t.ndim == 1:
            angle = angle[:, None]  # [T, B], else [B, T]
        else:
            y0 = y0[:, None]
        x, v = y0.unbind(-1)
        return torch.stack((x * angle.cos() + v / w * angle.sin(), v * angle.cos() - w * x * angle.sin()), -1)


def decays(n=6, times=5, **options):
    t = torch.linspace(0, 2, times)
    return SimulatedTrajectories(Decay(0.7), t, [1.0, 2.0], n, spread=0.3, seed=0, **options)


def decaying(rate=0.2, **options):
    options = {"method": "rk4", "step_size": 0.5} | options
    return NeuralODE(Decay(rate), output="trajectory", **options)


def test_the_losses_are_those_of_the_loop_written_by_hand():
    dataset, losses = decays(), []
    by_hand = Decay()
    torch.manual_seed(3)
    optimizer = torch.optim.Adam(by_hand.parameters(), lr=0.05)
    loader = DataLoader(dataset, batch_size=2, shuffle=True)
    for _ in range(4):
        total = 0.0
        for t, y, y0 in loader:
            predicted = odeint(lambda t, y: by_hand(y), y0, t[0], method="rk4", options={"step_size": 0.5})
            loss = nn.functional.mse_loss(predicted.transpose(0, 1), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        losses.append(total / len(loader))
    model = decaying()
    torch.manual_seed(3)
    history = train(model, dataset, epochs=4, batch_size=2, lr=0.05)
    assert history.losses == pytest.approx(losses, rel=1e-6)
    assert math.isclose(model.field.rate.item(), by_hand.rate.item(), rel_tol=1e-6)


def test_it_finds_the_truth_in_irregular_data_with_missing_values():
    t = [torch.tensor([0.0, 0.3, 1.0]), torch.tensor([1.0, 1.1, 2.0, 2.5]), torch.tensor([0.0, 3.0])]
    y = [torch.exp(-0.7 * (each - each[0]))[:, None] * torch.tensor([1.0, 2.0]) for each in t]
    y[0][1, 0] = y[1][2] = math.nan
    model = NeuralODE(Decay(), output="trajectory")
    history = train(model, TrajectoryDataset(t, y), epochs=30, optimizer=lambda p: torch.optim.LBFGS(p, max_iter=4))
    assert math.isclose(model.field.rate.item(), 0.7, rel_tol=1e-3)
    assert len(history) == 30 and history.losses[-1] < 1e-6


def test_samples_shifted_in_time_share_their_steps():
    t = torch.linspace(0, 1, 4)
    starts = torch.tensor([0.0, 5.0, 7.3])
    y = torch.exp(-0.7 * t)[None, :, None].expand(3, 4, 1)
    shifted, same = TrajectoryDataset(t + starts[:, None], y), TrajectoryDataset(t, y)
    seen = []

    class Watched(Decay):
        def forward(self, t, y):
            seen.append(t.flatten().tolist())
            return super().forward(y)

    losses = []
    for dataset in (shifted, same):
        model = NeuralODE(Watched(), output="trajectory", method="rk4", step_size=0.5)
        losses.append(train(model, dataset, epochs=2, lr=0.1).losses)
    assert seen[0] == pytest.approx([0.0, 5.0, 7.3]) and len(seen[-1]) == 1
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_rows_learn_the_same():
    losses = [
        train(decaying(method="dopri5", step_size=0.5, batch_dims=rows), decays(), epochs=3, lr=0.1).losses
        for rows in (0, 1)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_penalties_are_added():
    model = decaying(regularisers=[KineticEnergy(0.5), JacobianNorm(0.1)])
    dataset = decays()
    predicted = model(torch.stack([s.y0 for s in dataset]), dataset[0].t).transpose(0, 1)
    misfit = nn.functional.mse_loss(predicted, torch.stack([s.y for s in dataset]))
    expected = (misfit + penalty(model)).item()
    assert train(model, dataset, epochs=1).losses == pytest.approx([expected], rel=1e-5)
    assert penalty(model) > 0


def test_the_history_says_what_an_epoch_cost():
    model = decaying(gradient="checkpointed")
    history = train(model, decays(), epochs=2, batch_size=2, validation=decays(2), lr=0.05)
    assert model.training
    for number, record in enumerate(history, 1):
        assert record.epoch == number and record.lr == 0.05 and record.horizon is None and record.seconds > 0
        # Four steps of four stages for each of three batches, and one evaluation that looks for parameters.
        assert record.nfe_forward == 3 * 17 and record.nfe_backward >= 3 * 16
    assert "History(2 epochs, loss from" in repr(history)
    assert history.validation_losses == [record.validation for record in history]
    assert set(history.epochs[0].metrics()) == {
        "loss", "validation", "lr", "nfe_forward", "nfe_backward", "seconds"
    }  # fmt: skip


def test_the_validation_loss_is_that_of_the_whole_trajectories_in_eval_mode():
    class Noisy(Decay):
        def forward(self, y):
            assert not self.training or torch.is_grad_enabled()
            return super().forward(y) + (100.0 if self.training else 0.0)

    model = NeuralODE(Noisy(), output="trajectory", method="rk4", step_size=0.5)
    others = decays(3)
    record = train(model, decays(), epochs=1, validation=others, horizon=(0.5, 10)).epochs[0]
    rate = model.field.rate.item()
    expected = torch.stack([s.y0[None] * torch.exp(-rate * s.t[:, None]) - s.y for s in others]).square().mean()
    assert math.isclose(record.validation, expected.item(), rel_tol=1e-3) and record.loss > 100


def test_schedulers_step_after_every_epoch():
    halving = lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    assert [r.lr for r in train(decaying(), decays(), epochs=3, lr=0.1, scheduler=halving)] == [0.1, 0.05, 0.025]
    plateau = lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    history = train(decaying(0.7), decays(), epochs=3, lr=0.5, scheduler=plateau)
    assert history.epochs[-1].lr < 0.5


def test_long_gradients_are_shortened():
    optimizer = lambda parameters: torch.optim.SGD(parameters, lr=1.0)
    model = decaying()
    train(model, decays(), epochs=1, optimizer=optimizer, clip_norm=1e-3)
    assert math.isclose(model.field.rate.item(), 0.2 + 1e-3, rel_tol=1e-4)


def test_it_stops_when_the_loss_does_not_fall_and_keeps_the_best():
    rates, model = [], decaying(0.6)
    history = train(
        model,
        decays(),
        epochs=100,
        lr=0.08,  # past the minimum and back, with the momentum of Adam
        patience=2,
        callbacks=[lambda record: rates.append(model.field.rate.item())],
    )
    assert history.stopped_early and len(history) == history.best_epoch + 2 < 100
    assert history.losses[history.best_epoch - 1] == min(history.losses)
    assert model.field.rate.item() == rates[history.best_epoch - 1]


# Where one long trajectory misleads


def oscillations():
    t = torch.linspace(0, 12, 49)
    field = lambda t, y: torch.stack((y[..., 1], -4.0 * y[..., 0]), -1)
    return SimulatedTrajectories(field, t, [1.0, 0.0], 3, spread=0.2, noise=0.02, seed=0)


def test_a_growing_horizon_finds_what_whole_trajectories_hide():
    dataset = oscillations()
    whole, growing = Oscillation(0.7), Oscillation(0.7)
    train(whole, dataset, epochs=300, lr=0.02)
    history = train(growing, dataset, epochs=300, lr=0.02, horizon=(1.0, 200))
    assert abs(whole.frequency - 2) > 0.5  # in one of the many other minima
    assert abs(growing.frequency - 2) < 0.01
    horizons = [record.horizon for record in history]
    assert horizons[0] == 1.0 and horizons[100] == pytest.approx(6.5) and horizons[199] < 12
    assert horizons[200:] == [None] * 100


def test_a_horizon_may_be_a_function_of_the_epoch():
    lengths = []

    class Watched(Oscillation):
        def forward(self, y0, t):
            lengths.append(t.shape[-1])
            return super().forward(y0, t)

    train(Watched(2.0), oscillations(), epochs=4, horizon=lambda epoch: [0.01, 0.4, 6.0, math.inf][epoch - 1])
    assert lengths == [2, 2, 25, 49]


@pytest.mark.parametrize("shooting", [5, Shooting(5, start="data", continuity=1.0), Shooting(5, "free", 1.0)])
def test_segments_find_what_whole_trajectories_hide(shooting):
    model = Oscillation(0.7)
    train(model, oscillations(), epochs=300, lr=0.02, shooting=shooting)
    assert abs(model.frequency - 2) < 0.02


def test_segments_of_a_neural_ode_are_one_batch_with_common_steps():
    matrix = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(matrix.weight)
    model = NeuralODE(matrix, output="trajectory", method="rk4", step_size=0.25)
    history = train(model, oscillations(), epochs=150, lr=0.1, shooting=4)
    assert {record.nfe_forward for record in history} == {4 * 4}  # four steps in all, whatever the number of segments
    assert torch.allclose(matrix.weight, torch.tensor([[0.0, 1.0], [-4.0, 0.0]]), atol=0.15)


class ExactDecay(Decay):
    """The solution itself, called as `train` calls a model."""

    def forward(self, y0, t):
        factor = torch.exp(-self.rate * (t - t[..., :1]))[..., None]
        return factor[:, None] * y0 if t.ndim == 1 else factor * y0[:, None]


def test_free_starts_are_not_misled_by_noise():
    """Starting from noisy data, a slope is misjudged; states held together by continuity average the noise."""
    t = torch.linspace(0, 3, 31)
    dataset = SimulatedTrajectories(Decay(0.7), t, [1.0], 20, noise=0.2, seed=2)
    errors = []
    for shooting in (Shooting(1), Shooting(1, start="free", continuity=100.0)):
        model = ExactDecay(0.5)
        train(model, dataset, epochs=200, lr=0.03, shooting=shooting)
        errors.append(abs(model.rate.item() - 0.7))
    assert errors[1] < 0.05 < errors[0]


# Refusals


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"epochs": 0}, ValueError, "epochs must be a whole number of at least 1"),
        ({"batch_size": 2.5}, TypeError, "batch_size must be a whole number"),
        ({"lr": -1.0}, ValueError, "lr must be positive"),
        ({"lr": 1.0, "optimizer": torch.optim.Adam}, ValueError, "lr is for the default optimiser"),
        ({"optimizer": "adam"}, TypeError, "optimizer must be an optimiser of torch.optim"),
        ({"horizon": 3.0}, TypeError, "write horizon=(0.2, 100)"),
        ({"horizon": (-1.0, 10)}, ValueError, "the first horizon must be positive"),
        ({"horizon": (1.0, 10), "shooting": 3}, ValueError, "give either horizon or shooting"),
        ({"shooting": 0}, ValueError, "the length of segments must be a whole number of at least 1"),
        ({"checkpoint_every": 3}, ValueError, "give checkpoint='training.pt' too"),
        ({"record": "a.mp4"}, ValueError, "let it end on .gif"),
        ({"callbacks": [3]}, TypeError, "callbacks must be Callbacks or functions of an EpochRecord, got 3"),
        ({"loss": lambda a, b: a - b}, ValueError, "loss(predicted, observed) must return a tensor of one number"),
    ],
)
def test_arguments_that_make_no_sense(arguments, error, sentence):
    with pytest.raises(error) as caught:
        train(decaying(), decays(), **arguments)
    assert sentence in str(caught.value)


def test_shooting_that_makes_no_sense():
    with pytest.raises(ValueError, match=r"write Shooting\(5, start='free', continuity=1.0\)"):
        Shooting(5, start="free")
    with pytest.raises(ValueError, match="start must be 'data' or 'free', got 'random'"):
        Shooting(5, start="random")


def test_models_that_return_something_else():
    with pytest.raises(ValueError, match=r"of shape \(5, 6, 2\), got \(6, 2\): write NeuralODE"):
        train(NeuralODE(Decay()), decays())
    with pytest.raises(ValueError, match="keep_augmented=False"):
        train(NeuralODE(Decay(), output="trajectory", augment=1), decays())
    with pytest.raises(ValueError, match="Identity has no parameter that requires a gradient"):
        train(nn.Identity(), decays())


def test_datasets_that_are_none():
    with pytest.raises(TypeError, match=r"must be Series or pairs of tensors \(t, y\), got int"):
        train(decaying(), [1, 2])
    with pytest.raises(ValueError, match="the dataset holds no trajectories"):
        train(decaying(), [])


def test_a_loss_that_is_not_finite_ends_the_training_before_it_spoils_the_model():
    model = decaying(-60.0)
    with pytest.raises(RuntimeError, match=r"the loss is inf .* in epoch 1: take a smaller lr"):
        train(model, decays(times=20, method="rk4", step_size=0.5))
    assert model.field.rate.item() == -60.0


def test_an_empty_history():
    assert repr(History()) == "History(no epochs)"
    assert EpochRecord(1, math.inf, None, 0.1, None, 0, 0, 0.0).metrics().keys() == {
        "lr", "nfe_forward", "nfe_backward", "seconds"
    }  # fmt: skip
