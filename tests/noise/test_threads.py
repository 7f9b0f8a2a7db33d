"""Paths that several threads ask at once: nothing fails, and all get the same answers."""

import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch

from torchivp import noise, sdeint, sdeint_adjoint
from torchivp.compat.torchsde import _brownian as stand_in

D = torch.float64
THREADS = 4

PATHS = {
    "interval": partial(noise.BrownianInterval, 0.0, 4.0, size=(2, 2), entropy=1, levy_area_approximation="foster"),
    "path": lambda: noise.BrownianPath(0.0, torch.zeros(2), entropy=1),
    "tree": lambda: noise.BrownianTree(0.0, torch.zeros(2), 4.0, entropy=1),
    "reversed": lambda: noise.ReverseBrownian(noise.BrownianInterval(-4.0, 0.0, size=(2,), entropy=1)),
    "stand-in's interval": partial(
        stand_in.BrownianInterval, 0.0, 4.0, size=(2, 2), entropy=1, levy_area_approximation="foster", cache_size=5
    ),
    "stand-in's halfway tree": partial(
        stand_in.BrownianInterval, 0.0, 4.0, size=(2,), entropy=1, halfway_tree=True, tol=1e-3
    ),
    "stand-in's path": lambda: stand_in.BrownianPath(0.0, torch.zeros(2), entropy=1),
    "stand-in's tree": lambda: stand_in.BrownianTree(0.0, torch.zeros(2), 4.0, entropy=1),
    "stand-in's reversed": lambda: stand_in.ReverseBrownian(stand_in.BrownianInterval(-4.0, 0.0, size=(2,), entropy=1)),
}


@pytest.fixture(autouse=True)
def threads_that_take_turns_often():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.parametrize("name", PATHS)
def test_queries_from_several_threads(name):
    bm = PATHS[name]()
    ends = [(i / 37, i / 37 + length) for length in (0.05, 0.6) for i in range(0, 110, 8)]

    def ask(thread):
        order = torch.randperm(len(ends), generator=torch.Generator().manual_seed(thread)).tolist()
        answers = {ends[i]: bm(*ends[i]) for i in order}
        return [answers[end] for end in ends]

    with ThreadPoolExecutor(THREADS) as pool:
        first, *others = pool.map(ask, range(THREADS))
    for answers in others:
        assert all(torch.equal(a, b) for a, b in zip(first, answers, strict=True))
    if not name.startswith("stand-in"):  # whose path depends on the order of the queries, as torchsde's does
        again = PATHS[name]()
        assert all(torch.equal(a, again(*end)) for a, end in zip(first, ends, strict=True))
    # It is one path: what it does over two intervals adds up.
    torch.testing.assert_close(bm(0.3, 0.7) + bm(0.7, 2.1), bm(0.3, 2.1), rtol=1e-5, atol=1e-6)


class Linear:
    sde_type, noise_type = "stratonovich", "diagonal"

    def __init__(self):
        self.rate = torch.tensor(0.5, dtype=D, requires_grad=True)

    def f(self, t, y):
        return -self.rate * y

    def g(self, t, y):
        return self.rate * y


@pytest.mark.parametrize("rng", ["torch", "counter"])
@pytest.mark.parametrize("door", [sdeint, sdeint_adjoint])
def test_backward_passes_of_one_solve_from_several_threads(door, rng):
    """A backward pass draws the noise again."""
    sde = Linear()
    ys = door(sde, torch.ones(3, 1, dtype=D), [0.0, 1.0], dt=1e-2, rng=rng)

    def differentiate(_):
        return torch.autograd.grad(ys[-1].sum(), sde.rate, retain_graph=True)[0]

    expected = differentiate(0)
    with ThreadPoolExecutor(THREADS) as pool:
        assert all(torch.equal(found, expected) for found in pool.map(differentiate, range(2 * THREADS)))
