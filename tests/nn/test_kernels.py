"""Layers whose solves are done by a kernel."""

import pytest
import torch
from torch import nn

from compilers import needs_compiler
from torchivp.nn import NeuralODE

pytestmark = needs_compiler


@pytest.mark.parametrize("batch_dims", [0, 1])
def test_a_layer_with_a_kernel_is_the_layer_without(batch_dims):
    field = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    found = []
    for backend in ("fused", "eager"):
        layer = NeuralODE(field, rtol=1e-8, batch_dims=batch_dims, backend=backend)
        y = layer(x)
        gradients = torch.autograd.grad(y.square().sum(), [x, *field.parameters()])
        found.append((y.detach(), gradients))
        assert layer.nfe.forward > 10
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-10)
