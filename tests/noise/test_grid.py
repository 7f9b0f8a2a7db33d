"""Increments drawn over the steps of a grid: their laws, and what they are a function of."""

import math

import pytest
import torch

from torchivp.noise.grid import GridNoise
from torchivp.noise.increment import LEVY_AREAS, has_A, has_H

F64 = torch.float64
CPU = torch.device("cpu")
RNG = ("torch", "counter")
TIMES = [0.0, 0.1, 0.6, 0.62, 1.62]


def make(rows=3, channels=2, levy="foster", dtype=F64, **kwargs):
    return GridNoise(rows, channels, levy, dtype.to_real(), dtype, CPU, **{"seed": 5, **kwargs})


def parts(increment):
    return [x for x in (increment.W, increment.H, increment.A) if x is not None]


def assert_equal(one, other):
    for a, b in zip(one, other, strict=True):
        assert a.dt == b.dt
        for x, y in zip(parts(a), parts(b), strict=True):
            assert torch.equal(x, y)


@pytest.mark.parametrize("rng", RNG)
@pytest.mark.parametrize("levy", LEVY_AREAS)
def test_what_increments_come_with(rng, levy):
    noise = make(levy=levy, rng=rng)
    found = noise.steps(1, TIMES)
    assert [x.dt for x in found] == pytest.approx([0.1, 0.5, 0.02, 1.0])
    for increment in found:
        assert increment.W.shape == (3, 2)
        assert (increment.H is not None) == has_H(levy) and (increment.A is not None) == has_A(levy)
        assert increment.H is None or increment.H.shape == (3, 2)
        if increment.A is not None:
            assert increment.A.shape == (3, 2, 2) and torch.equal(increment.A, -increment.A.mT)


@pytest.mark.parametrize("rng", RNG)
@pytest.mark.parametrize("levy", ["davie", "foster"])
def test_laws(rng, levy):
    """Steps of unequal size in one block, scaled to a size of one, are samples of one law; each is on its own, too."""
    rows = 40_000
    noise = make(rows, levy=levy, rng=rng)
    noise.block = 4
    found = noise.steps(0, TIMES)
    samples = []
    for x in found:
        rest = x.A[:, 0, 1] - (x.H[:, 0] * x.W[:, 1] - x.W[:, 0] * x.H[:, 1])
        scaled = torch.cat([x.W / math.sqrt(x.dt), x.H * math.sqrt(12 / x.dt), rest[:, None] * math.sqrt(12) / x.dt], 1)
        assert float(x.A[:, 0, 1].var() * 4 / x.dt**2) == pytest.approx(1.0, abs=0.05)
        samples.append(scaled)
    samples = torch.cat(samples, dim=1)  # everything has variance 1, and is uncorrelated with all else
    count = samples.shape[1]
    assert count == 20
    assert float(samples.mean(0).abs().max()) < 4.5 / math.sqrt(rows)
    covariance = samples.T @ samples / rows
    assert float((covariance - torch.eye(count, dtype=F64)).abs().max()) < 0.05
    normal = samples[:, [i for i in range(count) if i % 5 < 4]]
    assert float((normal**4).mean(0).sub(3.0).abs().max()) < 5 * math.sqrt(96 / rows)


@pytest.mark.parametrize("rng", RNG)
@pytest.mark.parametrize("levy", LEVY_AREAS)
def test_steps_of_equal_size_are_scaled_like_others(rng, levy):
    noise = make(levy=levy, rng=rng)
    equal, other = noise.steps(0, [0.0, 0.5, 1.0])[0], noise.steps(0, [0.0, 0.5, 0.75])[0]
    for x, y in zip(parts(equal), parts(other), strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("rng", RNG)
def test_backwards_in_time_increments_are_those_of_the_steps(rng):
    forwards, backwards = make(rng=rng).steps(0, [0.0, 0.5, 0.75]), make(rng=rng).steps(0, [1.0, 0.5, 0.25])
    assert_equal(forwards, backwards)


@pytest.mark.parametrize("rng", RNG)
@pytest.mark.parametrize("levy", LEVY_AREAS)
def test_a_block_is_a_function_of_the_seed_and_its_number(rng, levy):
    noise = make(levy=levy, rng=rng)
    first, second = noise.steps(0, TIMES), noise.steps(1, TIMES)
    assert_equal(noise.steps(0, TIMES), first)
    assert_equal(make(levy=levy, rng=rng).steps(1, TIMES), second)
    assert_equal(noise.steps(1, TIMES[:2]), second[:1])  # the grid may end within a block
    for other in (second, make(levy=levy, rng=rng, seed=6).steps(0, TIMES)):
        for a, b in zip(first, other, strict=True):
            assert not any(torch.equal(x, y) for x, y in zip(parts(a), parts(b), strict=True))


@pytest.mark.parametrize("rng", RNG)
@pytest.mark.parametrize("levy", LEVY_AREAS)
def test_no_number_is_drawn_twice(rng, levy):
    noise = make(rows=2, channels=3, levy=levy, rng=rng)
    noise.block = 4
    times = [float(i) for i in range(5)]
    found = [x for block in range(3) for x in noise.steps(block, times)]
    values = torch.cat([y.flatten() for x in found for y in (x.W, x.H) if y is not None])
    assert len(values.unique()) == len(values)
    if has_A(levy):
        rest = torch.cat([x.A[:, *torch.triu_indices(3, 3, 1)].flatten() for x in found])
        assert len(rest.unique()) == len(rest)


def test_blocks_are_smaller_where_there_are_more_numbers():
    blocks = [make(rows, 4, levy).block for rows in (1, 5_000, 2**20) for levy in ("none", "space-time", "foster")]
    assert blocks[:3] == [256, 256, 256]
    assert blocks[3] > blocks[4] > blocks[5] > 1
    assert blocks[6:] == [1, 1, 1]


@pytest.mark.parametrize("levy", LEVY_AREAS)
@pytest.mark.parametrize("numbers", [range(4, 7), torch.tensor([8, 0, 5])])
def test_numbers_of_rows(levy, numbers):
    whole = make(10, levy=levy, rng="counter")
    part = make(3, levy=levy, rng="counter", row_numbers=numbers)
    for one, other in zip(whole.steps(0, TIMES), part.steps(0, TIMES), strict=True):
        for x, y in zip(parts(one), parts(other), strict=True):
            assert torch.equal(x[torch.as_tensor(list(numbers))], y)


def test_numbers_of_the_counter_do_not_depend_on_the_block():
    one, other = make(rng="counter"), make(rng="counter")
    one.block, other.block = 2, 4
    times = [0.0, 0.5, 1.0, 1.5, 2.0]
    assert_equal([*one.steps(0, times[:3]), *one.steps(1, times[2:])], other.steps(0, times))


@pytest.mark.parametrize("rng", RNG)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_noise_of_complex_states_is_real(rng, dtype):
    found, real = (make(dtype=d, rng=rng).steps(0, TIMES) for d in (dtype, dtype.to_real()))
    for one, other in zip(found, real, strict=True):
        for x, y in zip(parts(one), parts(other), strict=True):
            assert x.dtype == dtype
            torch.testing.assert_close(x, y.to(dtype))
            assert float(x.imag.abs().max()) == 0.0


@pytest.mark.parametrize("rng", RNG)
def test_global_random_numbers_are_left_alone(rng):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    make(rng=rng).steps(0, TIMES)
    assert torch.equal(torch.rand(2), expected)
