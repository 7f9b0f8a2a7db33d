"""Vector fields as people write them, to be solved by kernels and by torch, operation by operation.

Each works on one problem and, with leading dimensions, on rows.
"""

from collections import namedtuple
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

D = torch.float64

Case = namedtuple("Case", "func y0 args span", defaults=((), (0.0, 1.0)))
"""A field, the state of one row (a tensor or a tree of them), arguments, and a span over which all is well."""


def seeded(number, *shape):
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(number))


def state(*values):
    return torch.tensor(values, dtype=D)


# --- plain formulas --------------------------------------------------------------------------------------------------


def lotka_volterra(t, y, rates):
    alpha, beta, gamma, delta = rates.unbind(-1)
    x, z = y.unbind(-1)
    return torch.stack([alpha * x - beta * x * z, delta * x * z - gamma * z], -1)


def forced(t, y):
    return torch.cos(3 * t) - y * torch.exp(-t) + torch.sin(t + y) ** 2


def branches(t, y):
    bounded = torch.where(y > 0.5, 2.0 - y, y.clamp(min=-0.3) ** 2 + 0.5)
    return torch.where(t < 0.4, bounded, -bounded) + torch.maximum(y, torch.zeros_like(y)) - y.abs()


def powers(t, y):
    exponent = torch.tensor([1.5, 0.7, 2.0], dtype=y.dtype)
    positive = y**2 + 0.1
    return positive**exponent - y**3 + positive**-0.5 - positive**1.7 + 2.0**y - positive**0.5 + 0.3 / positive


def functions(t, y):
    square = y * y + 1
    return (
        torch.log(square)
        + square.sqrt().rsqrt()
        + torch.atan2(y, square)
        - torch.sinh(y / 3)
        + torch.erf(y)
        - torch.log1p(square).expm1() / 9
        + torch.tan(y / 4)
        - torch.asinh(y)
        + torch.hypot(y, square) / 5
        + torch.nan_to_num(y)
        - torch.fmod(y, 70.0) / 70
    )


def activations(t, y):
    kinds = (F.softplus, F.silu, F.gelu, F.elu, F.leaky_relu, torch.tanh, torch.sigmoid, F.mish, F.softsign)
    return sum(kind(y * (1 + i / 3)) for i, kind in enumerate(kinds)) / 9 - y + F.gelu(y, approximate="tanh")


def in_place(t, y):
    dy = torch.zeros_like(y)
    dy[..., 0] = y[..., 1]
    dy[..., 1:] = -y[..., :-1]
    dy[..., 2:3] += torch.sin(t)
    dy[..., 1].mul_(0.5)
    dy[dy > 1.0] = 1.0
    return dy


def in_empty(t, y):
    dy = torch.empty_like(y)
    dy[..., [0, 2]] = y[..., [2, 0]]
    dy[..., 1] = -y.sum(-1)
    return dy


# --- shapes, sums and products ---------------------------------------------------------------------------------------


def shuffled(t, y):
    a, b = y.split([2, 2], -1)
    swapped = torch.cat([b.flip(-1), a], -1).roll(1, -1)
    return (
        swapped - y.cumsum(-1) / 4 + torch.stack([*y.unbind(-1)[::-1]], -1) * 0.1 - y.repeat_interleave(2, -1)[..., ::2]
    )


def reduced(t, y):
    norm = y.norm(dim=-1, keepdim=True)
    return (
        y.softmax(-1)
        - y.mean(-1, keepdim=True)
        + y.prod(-1, keepdim=True)
        + torch.logsumexp(y, -1, keepdim=True) / 3
        - norm
        + y.amax(-1, keepdim=True)
        - y.min(-1, keepdim=True).values
        - y.var(-1, keepdim=True)
        + torch.linalg.vector_norm(y, 3, dim=-1, keepdim=True)
    )


def products(t, y, matrix):
    """A state [..., 3, 2]."""
    inner = torch.einsum("...ij,...kj->...ik", y, y)
    return matrix @ y - 0.1 * inner @ y + (y @ y.transpose(-1, -2))[..., :2] * 0.1


def pendula(t, y):
    """Three pendula coupled by springs, their angles and speeds, [..., 3, 2]."""
    angle, speed = y[..., 0], y[..., 1]
    pull = angle.roll(1, -1) - 2 * angle + angle.roll(-1, -1)
    return torch.stack([speed, -torch.sin(angle) + 0.5 * pull - 0.1 * speed], -1)


REACTIONS = torch.randint(-1, 2, (30, 40), generator=torch.Generator().manual_seed(3)).to(D)
REACTANTS = torch.randint(0, 30, (40, 2), generator=torch.Generator().manual_seed(4))


def reactions(t, y, k):
    """30 species, 40 reactions of two each."""
    rates = k * y[..., REACTANTS[:, 0]] * y[..., REACTANTS[:, 1]]
    return 0.1 * rates @ REACTIONS.T - 0.1 * y


def diffusion(t, y):
    """The heat equation on a line of 24 points, insulated at one end."""
    flux = 20.0 * (y[..., 1:] - y[..., :-1])
    ends = torch.zeros_like(y[..., :1])
    return F.pad(flux, (0, 1)) - torch.cat([ends, flux], -1)


def ring(t, y):
    return 5.0 * (y.roll(1, -1) - 2 * y + y.roll(-1, -1)) - y.flip(-1) ** 3


# --- inputs from tables ----------------------------------------------------------------------------------------------

KNOTS = torch.linspace(-0.5, 1.5, 9, dtype=D)
TABLE = torch.sin(3 * KNOTS)


def linear_input(t, y, table):
    i = (torch.searchsorted(KNOTS, t) - 1).clamp(0, 7)
    share = (t - KNOTS[i]) / (KNOTS[i + 1] - KNOTS[i])
    return table[i] + share * (table[i + 1] - table[i]) - y


def cubic_input(t, y):
    slopes = torch.gradient(TABLE, spacing=(KNOTS,))[0]
    i = (torch.bucketize(t, KNOTS, right=True) - 1).clamp(0, 7)
    h = KNOTS[i + 1] - KNOTS[i]
    s = (t - KNOTS[i]) / h
    a, b = TABLE[i], TABLE[i + 1]
    p, q = slopes[i] * h, slopes[i + 1] * h
    return a + s * (p + s * (3 * (b - a) - 2 * p - q + s * (2 * (a - b) + p + q))) - y


def lookup(t, y, table):
    """By the state: every element has a place of its own."""
    place = ((y + 2) * 2).long().clamp(0, 8)
    return table[place] - y + table.take_along_dim(place.reshape(-1), 0).reshape(y.shape) * 0.1


# --- trees -----------------------------------------------------------------------------------------------------------


def tree(t, y):
    x, (v, w) = y["x"], y["rest"]
    return {"rest": (-x, w.sum(-1, keepdim=True) * torch.ones_like(w)), "x": v - 0.1 * x}


def with_options(t, y, options, pair):
    rate, (scale, shift) = options["rate"], pair
    return -rate * y * scale + shift


# --- objects ---------------------------------------------------------------------------------------------------------


def perceptron(size, *, norm=False, bias=True, activation=nn.Tanh):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        layers = [nn.Linear(size, 19, bias=bias), activation(), nn.Linear(19, size)]
        if norm:
            layers.insert(1, nn.LayerNorm(19))
        return nn.Sequential(*layers).double()


class Network(nn.Module):
    """With a float for an attribute, a buffer, whole numbers and a time-dependent input."""

    def __init__(self):
        super().__init__()
        self.net = perceptron(3, norm=True, activation=nn.SiLU)
        self.rate = 0.5
        self.register_buffer("shift", state(0.1, 0.2, 0.3))
        self.register_buffer("order", torch.tensor([2, 0, 1]))
        self.scale = nn.Parameter(state(1.5))

    def forward(self, t, y):
        return self.net(y)[..., self.order] * self.scale - self.rate * y + self.shift * torch.cos(t)


class Energy(nn.Module):
    """A Hamiltonian of a network."""

    def __init__(self):
        super().__init__()
        self.net = perceptron(2)

    def forward(self, t, y):
        def energy(q):
            return self.net(q).square().sum()

        gradient = torch.func.grad(energy)(y)
        return torch.stack([gradient[..., 1], -gradient[..., 0]], -1)


class Callable:
    def __init__(self, rate):
        self.rate = rate

    def __call__(self, t, y):
        return -self.rate * y

    def method(self, t, y):
        return self.rate * torch.sin(y)


def scaled(t, y, *, factor):
    return factor * y * torch.cos(t)


def normalised(t, y):
    with torch.no_grad():
        size = y.square().sum(-1, keepdim=True)
    return -y * size + (y * 2).detach()


FIELDS = {
    "Lotka-Volterra": Case(lotka_volterra, state(1.0, 0.7), (state(1.5, 1.0, 3.0, 1.0),), (0.0, 3.0)),
    "forced": Case(forced, state(0.1, -0.4, 2.0)),
    "branches": Case(branches, state(0.1, 0.6, -0.7)),
    "powers": Case(powers, state(0.1, 0.6, -0.7)),
    "functions": Case(functions, state(0.1, 0.6, -0.7), (), (0.0, 0.5)),
    "activations": Case(activations, state(0.1, 0.6, -0.7, 0.0)),
    "in place": Case(in_place, state(0.1, 0.6, -0.7, 0.3)),
    "in empty memory": Case(in_empty, state(0.1, 0.6, -0.7)),
    "shuffled": Case(shuffled, state(0.1, 0.6, -0.7, 0.3)),
    "reduced": Case(reduced, state(0.1, 0.6, -0.7, 0.3)),
    "products": Case(products, seeded(0, 3, 2), (seeded(1, 3, 3),)),
    "pendula": Case(pendula, seeded(2, 3, 2), (), (0.0, 2.0)),
    "reactions": Case(reactions, seeded(6, 30).abs(), (seeded(7, 40).abs(),)),
    "diffusion": Case(diffusion, seeded(8, 24)),
    "ring": Case(ring, seeded(9, 20)),
    "linear input": Case(linear_input, state(0.1, 0.6), (TABLE,)),
    "cubic input": Case(cubic_input, state(0.1, 0.6)),
    "lookup": Case(lookup, state(0.1, 0.6, -0.7), (TABLE,)),
    "tree": Case(tree, {"x": state(0.3), "rest": (state(0.1), state(0.5, -0.2))}),
    "options": Case(with_options, state(0.1, 0.6), ({"rate": state(1.0, 2.0)}, (state(0.5, 0.3), 0.25))),
    "perceptron": Case(lambda t, y, net=perceptron(2): net(y), state(0.1, 0.6)),  # noqa: B008
    "network": Case(Network(), state(0.1, 0.6, -0.7)),
    "Hamiltonian": Case(Energy(), state(0.1, 0.6)),
    "object": Case(Callable(2.0), state(0.1, 0.6)),
    "bound method": Case(Callable(2.0).method, state(0.1, 0.6)),
    "partial": Case(partial(scaled, factor=state(1.0, 2.0)), state(0.1, 0.6)),
    "compiled": Case(torch.compile(forced, backend="eager"), state(0.1, 0.6)),
    "gradients off": Case(normalised, state(0.1, 0.6)),
}
"""Vector fields by what is in them."""
