"""Trajectories as datasets: shapes, irregular times, missing values, tables, batches."""

import math

import pandas
import pytest
import torch
from torch.utils.data import DataLoader, random_split

from torchivp.data import Series, SimulatedTrajectories, TrajectoryDataset, collate
from torchivp.fitting import DataError

nan = math.nan


def test_trajectories_with_common_times():
    t, y = torch.linspace(0, 1, 4), torch.randn(3, 4, 2)
    dataset = TrajectoryDataset(t, y, names=["prey", "predators"])
    assert len(dataset) == 3 and "3 trajectories, 4 times, states prey, predators" in repr(dataset)
    assert all(map(torch.equal, dataset[1], (t, y[1], y[1, 0])))
    batch = collate([dataset[0], dataset[2]])
    assert torch.equal(batch.t, t) and torch.equal(batch.y, y[[0, 2]]) and torch.equal(batch.y0, y[[0, 2], 0])


def test_one_trajectory_and_given_starts():
    t, y = torch.linspace(0, 1, 4), torch.randn(4, 2)
    y[0] = nan
    assert torch.equal(TrajectoryDataset(t, y, y0=[1.0, 2.0])[0].y0, torch.tensor([1.0, 2.0]))
    starts = torch.randn(3, 2)
    dataset = TrajectoryDataset(t, y.expand(3, 4, 2), starts)
    assert all(torch.equal(series.y0, start) for series, start in zip(dataset, starts, strict=True))


@pytest.mark.parametrize("as_lists", [True, False])
def test_irregular_times_and_missing_values(as_lists):
    t = torch.tensor([[0.0, 1.0, 3.0], [0.5, 0.75, nan]])
    y = torch.tensor([[[1.0, 1.0], [nan, 2.0], [3.0, nan]], [[4.0, 4.0], [5.0, 5.0], [nan, nan]]])
    dataset = TrajectoryDataset([t[0], t[1, :2]], [y[0], y[1, :2]]) if as_lists else TrajectoryDataset(t, y)
    assert dataset[1].t.tolist() == [0.5, 0.75] and dataset[1].y.shape == (2, 2)
    batch = collate(list(dataset))
    torch.testing.assert_close(batch.t, t, equal_nan=True)
    torch.testing.assert_close(batch.y, y, equal_nan=True)
    assert batch.y0.tolist() == [[1.0, 1.0], [4.0, 4.0]]


def test_states_of_any_shape():
    dataset = TrajectoryDataset(torch.linspace(0, 1, 3), torch.randn(2, 3, 1, 4, 4))
    assert dataset[0].y0.shape == (1, 4, 4) and collate([dataset[0]]).y.shape == (1, 3, 1, 4, 4)


def test_torch_splits_and_loads_them():
    dataset = TrajectoryDataset(torch.linspace(0, 1, 3), torch.randn(10, 3, 2))
    first, second = random_split(dataset, [7, 3])
    sizes = [len(batch.y) for batch in DataLoader(first, batch_size=3, shuffle=True, collate_fn=collate)]
    assert sizes == [3, 3, 1] and isinstance(second[0], Series)
    assert next(iter(DataLoader(dataset, batch_size=4))).y.shape == (4, 3, 2)  # torch's own, where times agree


def test_pairs_are_collated_too():
    t, y = torch.linspace(0, 1, 3), torch.randn(3, 2)
    assert torch.equal(collate([(t, y)]).y0, y[:1])
    with pytest.raises(TypeError, match=r"must be Series or pairs of tensors \(t, y\), got dict"):
        collate([{"t": t}])
    with pytest.raises(ValueError, match=r"must have the same shape, got \(2,\), \(3,\)"):
        collate([(t, y), (t, torch.randn(3, 3))])


@pytest.mark.parametrize("from_file", [True, False])
def test_tables(from_file, tmp_path):
    table = pandas.DataFrame(
        {
            "hour": [0, 1, 3, 2, 5],
            "x": [1.0, 2.0, 3.0, 4.0, None],
            "v": [0.0, None, 1.0, 2.0, 3.0],
            "run": list("aaabb"),
        }
    )
    if from_file:
        table.to_csv(tmp_path / "runs.csv", index=False)
        table = tmp_path / "runs.csv"
    dataset = TrajectoryDataset.from_table(table, ["v", "x"], time="hour", trajectory="run", dtype=torch.float64)
    assert dataset.names == ["v", "x"] and len(dataset) == 2
    torch.testing.assert_close(
        dataset[0].y, torch.tensor([[0.0, 1.0], [nan, 2.0], [1.0, 3.0]], dtype=torch.float64), equal_nan=True
    )
    assert dataset[1].t.tolist() == [2.0, 5.0] and dataset[1].y0.tolist() == [2.0, 4.0]
    with pytest.raises(DataError, match="has no data column 'z'"):
        TrajectoryDataset.from_table(table, ["z"], time="hour")


t3 = torch.linspace(0, 1, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ((t3, torch.ones(5, 3)), ValueError, "write y.unsqueeze(-1) where the state is one number"),
        ((t3, "y"), TypeError, "y must be a tensor [N, T, n] or a list of tensors [T, n], got str"),
        ((t3, torch.ones(2, 4, 1)), ValueError, "trajectory 0 has 3 times and states of shape (4, 1)"),
        (([t3], torch.ones(2, 3, 1)), ValueError, "t has times for 1 trajectories, and y states of 2"),
        ((t3.flip(0), torch.ones(2, 3, 1)), ValueError, "must be finite and increase strictly: sort them"),
        ((torch.tensor([nan, 0.0, 1.0]), torch.ones(2, 3, 1)), ValueError, "NaN may only fill up the end of a row"),
        ((t3[:1], torch.ones(2, 1, 1)), ValueError, "trajectory 0 has 1 times, and needs at least two"),
        ((t3, torch.full((2, 3, 1), nan)), ValueError, "begins with missing values"),
        ((t3, torch.tensor([0.0, 1.0, math.inf]).reshape(1, 3, 1)), ValueError, "write NaN for missing ones"),
        ((torch.arange(3), torch.ones(2, 3, 1)), TypeError, "times and states must be floating point"),
        ((t3, torch.ones(2, 3, 1), torch.ones(3)), ValueError, "y0 must be of shape (1,) or (2, 1)"),
        ((t3, []), ValueError, "there is no trajectory"),
    ],
)
def test_what_is_no_set_of_trajectories(arguments, error, sentence):
    with pytest.raises(error) as caught:
        TrajectoryDataset(*arguments)
    assert sentence in str(caught.value)


def test_names_that_do_not_fit():
    with pytest.raises(ValueError, match="1 states need 1 names, got a, b"):
        TrajectoryDataset(t3, torch.ones(2, 3, 1), names=["a", "b"])


# Simulated ones


def decay(t, y):
    return -y


def test_simulated_trajectories_are_those_of_the_system():
    t = torch.linspace(1, 3, 5, dtype=torch.float64)
    y0 = torch.tensor([1.0, 10.0], dtype=torch.float64)
    dataset = SimulatedTrajectories(decay, t, y0, 2000, spread=0.2, noise=0.05, seed=1, rtol=1e-8)
    states = torch.stack([series.y for series in dataset])
    starts = states[:, 0]
    assert torch.allclose(dataset.exact, starts[:, None] * torch.exp(1 - t)[:, None], rtol=1e-6)
    assert torch.equal(starts, dataset.exact[:, 0])  # the first point is exact
    noise = states[:, 1:] - dataset.exact[:, 1:]
    assert abs(noise.std() / 0.05 - 1) < 0.03 and abs(noise.mean()) < 0.002
    assert torch.allclose(starts.std(0), torch.tensor(0.2, dtype=torch.float64), rtol=0.1)
    assert torch.allclose(starts.mean(0), y0, atol=0.02)


def test_a_seed_repeats_them_and_leaves_the_generator_of_torch_alone():
    before = torch.get_rng_state()
    first = SimulatedTrajectories(decay, t3, [1.0], 2, spread=1.0, noise=1.0, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first[1].y, SimulatedTrajectories(decay, t3, [1.0], 2, spread=1.0, noise=1.0, seed=3)[1].y)
    other = SimulatedTrajectories(decay, t3, [1.0], 2, spread=1.0, noise=1.0)
    assert not torch.equal(first[1].y, other[1].y) and not torch.equal(torch.get_rng_state(), before)


def test_simulations_that_make_no_sense():
    with pytest.raises(ValueError, match="noise is a standard deviation and must not be negative, got -1"):
        SimulatedTrajectories(decay, t3, [1.0], 2, noise=-1.0)
    with pytest.raises(ValueError, match="y0 must be a floating point state"):
        SimulatedTrajectories(decay, t3, [1], 2)
