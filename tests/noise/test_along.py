"""Increments of a user's path over the steps of a solve."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from torchivp.noise.along import PathNoise
from torchivp.noise.increment import LEVY_AREAS, has_A, has_H, join
from torchivp.noise.interval import BrownianInterval
from torchivp.noise.rows import check_rows
from torchivp.noise.seed import draw_seed
from torchivp.noise.source import HeldNoise

F64 = torch.float64
TIMES = [0.0, 0.25, 0.3, 1.0]


def path(levy, size=(3, 2), dtype=F64):
    return BrownianInterval(0.0, 1.0, size, dtype, entropy=4, levy_area_approximation=levy)


def called_only(bm):
    """A path as torchsde's are: it can be called, and no more."""
    calls = []

    def call(ta, tb, return_U=False, return_A=False):
        calls.append((return_U, return_A))
        return bm(ta, tb, return_U, return_A)

    call.calls = calls
    return call


def assert_close(one, other):
    assert one.dt == pytest.approx(other.dt)
    for x, y in zip((one.W, one.H, one.A), (other.W, other.H, other.A), strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            torch.testing.assert_close(x, y)


@pytest.mark.parametrize("needed", LEVY_AREAS)
@pytest.mark.parametrize("called", [False, True])
def test_increments_are_those_of_the_path(needed, called):
    bm = path(needed)
    asked = called_only(bm) if called else bm
    for found, (a, b) in zip(PathNoise(asked, 3, 2, needed, F64).steps(7, TIMES), pairwise(TIMES), strict=True):
        assert_close(found, bm.increment(a, b))
    if called:
        assert set(asked.calls) == {(has_H(needed), has_A(needed))}


@pytest.mark.parametrize("needed", LEVY_AREAS)
def test_no_more_than_is_needed_comes_with_an_increment(needed):
    found = PathNoise(path("foster"), 3, 2, needed, F64).between(0.25, 0.5)
    assert (found.H is not None) == has_H(needed) and (found.A is not None) == has_A(needed)


@pytest.mark.parametrize("needed", LEVY_AREAS)
@pytest.mark.parametrize("called", [False, True])
def test_backwards_W_and_A_change_their_sign(needed, called):
    bm = path(needed)
    noise = PathNoise(called_only(bm) if called else bm, 3, 2, needed, F64)
    for (a, b), back in zip(pairwise(TIMES), reversed(noise.steps(0, TIMES[::-1])), strict=True):
        there = bm.increment(a, b)
        assert back.dt == pytest.approx(b - a)
        torch.testing.assert_close(back.W, -there.W)
        if has_H(needed):
            torch.testing.assert_close(back.H, there.H)
        if has_A(needed):
            torch.testing.assert_close(back.A, -there.A)


@pytest.mark.parametrize("needed", ["none", "space-time"])
def test_increments_backwards_join_to_the_whole_way_back(needed):
    noise = PathNoise(path("space-time"), 3, 2, needed, F64)
    assert_close(join(noise.between(1.0, 0.3), noise.between(0.3, 0.0)), noise.between(1.0, 0.0))


def test_there_and_back_is_nowhere():
    bm = path("foster")
    noise = PathNoise(bm, 3, 2, "foster", F64)
    both = join(noise.between(0.2, 0.7), noise.between(0.7, 0.2))
    assert float(both.W.abs().max()) == 0.0 and float(both.A.abs().max()) < 1e-15


@pytest.mark.parametrize("size", [(2, 3, 5), (6, 5)])
def test_shapes_and_dtypes(size):
    bm = path("foster", size, torch.float32)
    found = PathNoise(bm, 6, 5, "foster", torch.complex64).between(0.0, 0.5)
    assert found.W.shape == found.H.shape == (6, 5) and found.A.shape == (6, 5, 5)
    assert found.W.dtype == found.H.dtype == found.A.dtype == torch.complex64
    torch.testing.assert_close(found.W.real.view(size), bm(0.0, 0.5))


def test_held_noise_asks_once_for_what_it_holds():
    asked = []

    def steps(block, times):
        asked.append(block)
        return PathNoise(path("none"), 3, 2, "none", F64).steps(block, times)

    noise = HeldNoise(SimpleNamespace(block=4, steps=steps))
    assert noise.block == 4
    first = noise.steps(0, TIMES)
    for block in (1, 0, 1, 0, 2, 1, 2, 0):
        assert_close(noise.steps(block, TIMES)[0], first[0])
    assert asked == [0, 1, 2, 0]


def test_seeds_within_transforms():
    def seed(x):
        return x + BrownianInterval(size=(1,), dtype=F64)(0.0, 0.5) + draw_seed() * 0.0

    torch.manual_seed(1)
    batch = torch.func.vmap(seed)(torch.zeros(3, 1, dtype=F64))
    torch.manual_seed(1)
    assert torch.equal(batch, seed(torch.zeros(1, dtype=F64)).expand(3, 1))


def test_numbers_of_rows():
    assert check_rows(None, 3) == range(3)
    assert check_rows([4, 5, 6], 3) == check_rows(range(4, 7), 3) == range(4, 7)
    assert torch.equal(torch.as_tensor(check_rows(torch.tensor([5, 1]), 2)), torch.tensor([5, 1]))
    assert len(check_rows([], 0)) == 0
