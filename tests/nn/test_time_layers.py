"""Layers that see the time."""

import pytest
import torch
from torch import nn

from torchivp.nn import NeuralODE, TimeConv2d, TimeLinear, TimeSequential


def test_a_linear_layer_of_the_time_and_the_features():
    layer, y = TimeLinear(3, 2), torch.randn(5, 3)
    weight, bias = layer.linear.weight, layer.linear.bias
    expected = 0.7 * weight[:, 0] + y @ weight[:, 1:].T + bias
    for t in (0.7, torch.tensor(0.7), torch.full((5, 1), 0.7), torch.tensor(0.7, dtype=torch.float64)):
        assert torch.allclose(layer(t, y), expected, atol=1e-6)
    assert TimeLinear(3, 2, bias=False).linear.bias is None


@pytest.mark.parametrize("transpose", [False, True])
def test_a_convolution_of_the_time_and_the_channels(transpose):
    layer = TimeConv2d(3, 4, 3, stride=2, padding=1, transpose=transpose)
    y, t = torch.randn(2, 3, 8, 8), torch.tensor([0.3, 0.9]).reshape(2, 1, 1, 1)
    kind = nn.ConvTranspose2d if transpose else nn.Conv2d
    plain = kind(4, 4, 3, stride=2, padding=1)
    plain.load_state_dict(layer.conv.state_dict())
    expected = plain(torch.cat((t.expand(2, 1, 8, 8), y), 1))
    assert torch.equal(layer(t, y), expected)
    assert torch.equal(layer(0.3, y)[0], layer(torch.tensor(0.3), y)[0])
    assert layer(t, y).shape[-1] == (15 if transpose else 4)


def test_a_sequence_gives_the_time_to_those_that_take_it():
    layers = TimeSequential(TimeLinear(2, 8), nn.Tanh(), TimeSequential(nn.Linear(8, 8), TimeLinear(8, 2)))
    y = torch.randn(5, 2)
    first, activation, (linear, last) = layers
    assert torch.equal(layers(0.5, y), last(0.5, linear(activation(first(0.5, y)))))
    layers.append(TimeLinear(2, 3))
    assert layers(0.5, y).shape == (5, 3)
    layers[-1] = nn.Linear(2, 4)
    assert layers(0.5, y).shape == (5, 4)
    assert isinstance(layers[:2], TimeSequential) and layers[:2](0.5, y).shape == (5, 8)


def test_a_sequence_says_which_module_it_cannot_place():
    with pytest.raises(
        TypeError, match=r"whether layer1 is called as layer1\(t, y\) or layer1\(y\): MultiheadAttention needs 3"
    ):
        TimeSequential(nn.Tanh(), nn.MultiheadAttention(2, 1))


@pytest.mark.parametrize("rows", [0, 1])
def test_convolutions_in_time_with_steps_for_each_sample(rows):
    field = TimeSequential(
        TimeConv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), TimeConv2d(4, 2, 3, padding=1, transpose=True)
    )
    images = torch.randn(3, 2, 6, 6)
    layer = NeuralODE(field, batch_dims=rows, rtol=1e-5, atol=1e-6)
    alone = torch.cat([NeuralODE(field, rtol=1e-5, atol=1e-6)(image[None]) for image in images])
    assert torch.allclose(layer(images), alone, atol=1e-3)
