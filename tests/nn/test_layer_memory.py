"""What a convolutional layer keeps in memory while it trains, measured over the tensors that live at any one time."""

import gc

import pytest
import torch
from torch import nn

from memory import PeakMemory
from torchivp import Checkpointed
from torchivp.nn import NeuralODE, TimeConv2d, TimeSequential


def training_step(gradient, tolerance):
    """The peak of a training step in bytes, and the evaluations of its forward pass."""
    torch.manual_seed(0)
    field = TimeSequential(
        *(nn.GroupNorm(2, 4), nn.Tanh(), TimeConv2d(4, 4, padding=1)),
        *(nn.GroupNorm(2, 4), nn.Tanh(), TimeConv2d(4, 4, padding=1), nn.GroupNorm(2, 4)),
    ).double()
    layer = NeuralODE(field, rtol=tolerance, atol=tolerance, gradient=gradient)
    images = torch.randn(16, 4, 6, 6, dtype=torch.float64)
    gc.collect()
    with PeakMemory() as memory:
        layer(images).square().mean().backward()
    return memory.peak, layer.nfe.forward


@pytest.mark.slow
def test_the_peak_of_training_does_not_grow_with_the_accuracy_but_for_direct():
    """The memory of ODE-Net: from loose to tight tolerances, more than ten times the evaluations."""
    growth = {}
    for gradient in ("direct", Checkpointed(1000), "backsolve"):
        (few, called), (many, often) = (training_step(gradient, tolerance) for tolerance in (1e-2, 1e-10))
        assert often > 10 * called
        growth[gradient] = many / few
    assert growth["direct"] > 10
    assert growth[Checkpointed(1000)] < 2  # state and slope after each step, which are little beside a step's graph
    assert growth["backsolve"] < 1.05
