"""How trajectories are cut into segments."""

import math

import pytest
import torch

from torchivp.data import Series
from torchivp.training.shooting import Segments, Shooting


def series(count, missing=()):
    t = torch.arange(count, dtype=torch.float64)
    y = torch.stack((10 * t, -t), 1)
    for i in missing:
        y[i, 0] = math.nan
    return Series(t, y, y[0])


def spans(batch):
    return [(int(t[~t.isnan()][0]), int(t[~t.isnan()][-1])) for t in batch.series.t]


@pytest.mark.parametrize(
    ("count", "length", "expected"),
    [
        (9, 4, [(0, 4), (4, 8)]),
        (8, 3, [(0, 3), (3, 6), (4, 7)]),  # the last is as long as the others
        (4, 3, [(0, 3)]),
        (4, 9, [(0, 3)]),
        (4, 1, [(0, 1), (1, 2), (2, 3)]),
    ],
)
def test_segments_cover_a_trajectory(count, length, expected):
    whole = series(count)
    batch = Segments(Shooting(length), [whole], whole.t.device).batch([0])
    assert spans(batch) == expected
    starts = [start for start, _ in expected]
    assert torch.equal(batch.series.y0, whole.y[starts])
    # The states themselves, taken for predictions, leave no gaps.
    assert torch.equal(batch.gaps(batch.series.y), torch.zeros(len(expected) - 1, 2, dtype=torch.float64))


def test_segments_start_where_all_is_observed():
    whole = series(10, missing=(3, 4, 6))
    batch = Segments(Shooting(3), [whole], whole.t.device).batch([0])
    assert spans(batch) == [(0, 5), (5, 8), (7, 9)]
    assert batch.series.y0.isfinite().all()


def test_free_starts_begin_at_interpolated_data_and_belong_to_their_trajectory():
    both = [series(7, missing=(3,)), series(5)]
    segments = Segments(Shooting(2, "free", 1.0), both, torch.device("cpu"))
    assert segments.states.tolist() == [[20.0, -2.0], [40.0, -4.0], [20.0, -2.0]]
    batch = segments.batch([1])
    assert batch.series.y0.tolist() == [[0.0, 0.0], [20.0, -2.0]]
    # A segment is compared with the data up to where the next one starts.
    assert batch.series.y[:, :, 1].isnan().tolist() == [[False, False, True], [False, False, False]]
    batch.series.y0.sum().backward()
    assert segments.states.grad.tolist() == [[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]]
    odd = series(6, missing=(3,))
    assert Segments(Shooting(3, "free", 1.0), [odd], torch.device("cpu")).states.tolist() == [[20.0, -2.0]]
    late = series(8, missing=(3,))
    assert Segments(Shooting(3, "free", 1.0), [late], torch.device("cpu")).states[0].tolist() == [30.0, -3.0]
