"""Increments of two intervals put together, and the area of one."""

import math

import pytest
import torch

from torchivp.noise.increment import Increment, join, outer
from torchivp.noise.levy_area import area


def fine_path(samples, steps, m, seed=0):
    """Increments [samples, steps, m] of fine steps over [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, steps, m, generator=generator, dtype=torch.float64) / math.sqrt(steps)


def whole(dW, dt):
    """The increment that a path through these points, straight between them, has."""
    after = dW.cumsum(1)
    middle = after - dW / 2
    W = after[:, -1]
    A = 0.5 * (outer(middle, dW) - outer(dW, middle)).sum(1)
    return Increment(dt, W, middle.mean(1) - W / 2, A)


def test_join_is_what_the_whole_path_has():
    dW = fine_path(5, 12, 3)
    joined = join(whole(dW[:, :4], 4 / 12), whole(dW[:, 4:], 8 / 12))
    expected = whole(dW, 1.0)
    assert joined.dt == pytest.approx(1.0)
    for name in ("W", "H", "U", "A"):
        torch.testing.assert_close(getattr(joined, name), getattr(expected, name))


def test_join_of_what_is_there():
    one = torch.ones(4)
    assert join(Increment(1.0, one), Increment(2.0, one, one)).H is None
    nothing = Increment(0.0, 0 * one, 0 * one)
    joined = join(nothing, Increment(1.0, one, one))
    assert torch.equal(joined.H, one)
    assert torch.equal(join(nothing, nothing).H, 0 * one)
    scalar = Increment(1.0, one, one, torch.zeros(4))
    assert torch.equal(join(scalar, scalar).A, torch.zeros(4))


def test_U_needs_H():
    with pytest.raises(ValueError, match=r"U needs the space-time Lévy area.*'space-time'"):
        _ = Increment(1.0, torch.ones(3)).U


@pytest.mark.parametrize("kind", ["davie", "foster"])
@pytest.mark.parametrize("dt", [1.0, 0.01])
def test_area_law(kind, dt):
    generator = torch.Generator().manual_seed(1)
    n = 100_000
    W = torch.randn(n, 2, generator=generator, dtype=torch.float64) * math.sqrt(dt)
    H = torch.randn(n, 2, generator=generator, dtype=torch.float64) * math.sqrt(dt / 12)
    A = area(W, H, dt, kind, torch.randn(n, 2, 2, generator=generator, dtype=torch.float64))
    assert torch.equal(A, -A.transpose(-1, -2))
    rest = A[:, 0, 1] - (H[:, 0] * W[:, 1] - W[:, 0] * H[:, 1])
    assert abs(float(rest.mean())) < 0.01 * dt
    assert float(A[:, 0, 1].var()) == pytest.approx(dt**2 / 4, rel=0.03)
    assert float(rest.var()) == pytest.approx(dt**2 / 12, rel=0.03)


def test_true_area_given_W_and_H():
    """The conditional mean and variance that the approximations use, from the area of a fine path."""
    steps = 64
    path = whole(fine_path(60_000, steps, 2), 1.0)
    H0, H1 = path.H.unbind(-1)
    mean = H0 * path.W[:, 1] - path.W[:, 0] * H1
    rest = path.A[:, 0, 1] - mean
    assert float((path.A[:, 0, 1] * mean).sum() / (mean * mean).sum()) == pytest.approx(1.0, abs=0.02)
    squares = H0**2 + H1**2
    # rest² = c0 + c1 squares + noise: the least-squares fit, against 1/20 and 1/5.
    design = torch.stack([torch.ones_like(squares), squares], 1)
    fit = torch.linalg.lstsq(design, (rest**2)[:, None]).solution.flatten()
    # Straight pieces have no area, and the path's own have 1 / (4 steps²) each.
    assert float(fit[0]) == pytest.approx(1 / 20 - 1 / (4 * steps), abs=0.003)
    assert float(fit[1]) == pytest.approx(1 / 5, abs=0.02)
