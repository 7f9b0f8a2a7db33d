"""What a solve of an SDE keeps: measured over the tensors that live at any one time."""

import gc

import pytest
import torch

import torchivp
from memory import PeakMemory
from torchivp.noise import grid

pytestmark = pytest.mark.usefixtures("few_objects")


class Model(torchivp.SDEStratonovich):
    def __init__(self):
        super().__init__("diagonal")
        self.weight = torch.nn.Parameter(torch.full((64, 64), 0.01))

    def f(self, t, y):
        return torch.tanh(y @ self.weight)

    def g(self, t, y):
        return 0.1 * torch.cos(y)


def peak(solve, steps):
    y0 = torch.ones(256, 64)
    gc.collect()
    with PeakMemory() as memory:
        solve(Model(), y0, 1.0 / steps)
    return memory.peak / (y0.numel() * y0.element_size())


def no_gradient(sde, y0, dt):
    with torch.no_grad():
        torchivp.sdeint(sde, y0, [0.0, 1.0], method="reversible_heun", dt=dt)


def by(gradient):
    def solve(sde, y0, dt):
        torchivp.sdeint(sde, y0, [0.0, 1.0], method="reversible_heun", dt=dt, gradient=gradient)[-1].sum().backward()

    return solve


def by_adjoint(method):
    def solve(sde, y0, dt):
        torchivp.sdeint_adjoint(sde, y0, [0.0, 1.0], method=method, dt=dt)[-1].sum().backward()

    return solve


@pytest.mark.parametrize(
    "solve", [no_gradient, by("reversible"), by_adjoint("midpoint")], ids=["no gradient", "reversible", "adjoint"]
)
def test_memory_does_not_grow_with_the_number_of_steps(solve, monkeypatch):
    """Beyond the length of a block of noise."""
    monkeypatch.setattr(grid, "_LONGEST", 32)
    assert peak(solve, 150) < 1.1 * peak(solve, 50)


def test_direct_grows_and_checkpoints_grow_as_the_root():
    growth = {gradient: peak(by(gradient), 144) / peak(by(gradient), 9) for gradient in ("direct", "checkpointed")}
    assert growth["direct"] > 8
    assert growth["checkpointed"] < 5  # sqrt(16) = 4


@pytest.mark.parametrize("solve", [by("direct"), by("checkpointed"), by("reversible"), by_adjoint("midpoint")])
def test_nothing_is_left_behind(solve):
    def tensors():
        return sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects())

    y0 = torch.ones(4, 64)
    sde = Model()
    for _ in range(3):
        solve(sde, y0, 0.1)
    gc.collect()
    before = tensors()
    gc.disable()
    try:
        for _ in range(20):
            solve(sde, y0, 0.1)
        held = tensors()
    finally:
        gc.enable()
    # Without the garbage collector: there is no cycle of references that holds a tensor.
    assert held <= before + 2
