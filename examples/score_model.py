"""Learn to draw samples from a distribution: a score-based generative model, and two ways to sample from it.

Noise is added to the data little by little, by an SDE that carries any distribution at time 0 to nearly a normal one at
time 1. The same SDE runs backwards in time if its drift is corrected by the score, the gradient of the logarithm of the
density at each time: a small network learns it by guessing the noise in noisy data. Then

- `sdeint` on decreasing times carries normal noise back to data. The path of a Brownian motion drives it that is seen
  backwards in time, and the Itô integral is taken in the direction of integration, as that equation asks for;
- `odeint` does the same by an ODE with the same distributions at all times, the probability flow, along which the
  logarithm of the density can be followed too.

    python examples/score_model.py            # a minute
    python examples/score_model.py --quick    # seconds, to see that it runs
"""

import argparse
import math
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from torchivp import SDEIto, odeint, sdeint

FIRST = 1e-3  # the first time: at 0 the score of data without noise has no bound
LEAST, MOST = 0.1, 18.0  # the rate at which noise is added, at times 0 and 1
SPREAD = 0.12  # of the moons
LIMIT = 2.6  # of the pictures, in both directions
BLUE, ORANGE, GREEN, INK, GREY = "#0072B2", "#D55E00", "#009E73", "#222222", "#8A8A8A"


def moons(angle, upper):
    """The middle lines of two half moons, of about the size of a standard normal distribution."""
    x = np.where(upper, np.cos(angle), 1.0 - np.cos(angle)) - 0.5
    y = np.where(upper, np.sin(angle), 0.5 - np.sin(angle)) - 0.25
    return np.stack([x, 1.4 * y], axis=-1) * 1.25


def two_moons(count, random):
    """Points near two half moons, [count, 2]."""
    lines = moons(math.pi * random.random(count), random.random(count) < 0.5)
    return torch.tensor(lines + SPREAD * random.standard_normal((count, 2)), dtype=torch.float32)


def log_density_of_moons(points, keep=1.0, spread=0.0):
    """The logarithm of the density of keep x data + spread x noise, by the trapezoidal rule along the lines."""
    angle = np.linspace(0.0, math.pi, 301)
    weight = np.full(301, 1 / 600)
    weight[[0, -1]] /= 2
    centres = torch.tensor(np.concatenate([moons(angle, True), moons(angle, False)]), dtype=torch.float32)
    log_weight = torch.tensor(np.log(np.concatenate([weight, weight])), dtype=torch.float32)
    variance = torch.as_tensor((keep * SPREAD) ** 2 + spread**2)
    squares = (points[:, None] - torch.as_tensor(keep)[..., None] * centres).square().sum(dim=2)
    return torch.logsumexp(log_weight - squares / (2 * variance), dim=1) - (2 * math.pi * variance).log().squeeze(-1)


# How noise is added: dx = -rate(t) x / 2 dt + sqrt(rate(t)) dW.


def rate(t):
    return LEAST + (MOST - LEAST) * t


def remains(t):
    """What is left of the data at time t, and the standard deviation of the noise."""
    grown = LEAST * t + 0.5 * (MOST - LEAST) * t**2
    return torch.exp(-0.5 * grown), torch.sqrt(-torch.expm1(-grown))


class Score(nn.Module):
    """The gradient of log density at points x, [n, 2], and a time, or a time for each."""

    def __init__(self, hidden=96):
        super().__init__()
        self.first = nn.Linear(5, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.third = nn.Linear(hidden, hidden)
        self.last = nn.Linear(hidden, 2)

    def noise(self, t, x):
        """The guess of the noise in x, in units of its standard deviation."""
        keep, spread = (z.expand(len(x), 1) for z in remains(t))
        clock = torch.cat([keep, spread, spread.log()], dim=1)
        h = nn.functional.silu(self.first(torch.cat([x, clock], dim=1)))
        h = h + nn.functional.silu(self.second(h))
        h = h + nn.functional.silu(self.third(h))
        return self.last(h) + spread * x

    def forward(self, t, x):
        return -self.noise(t, x) / remains(t)[1]


class AddNoise(SDEIto):
    """Forwards in time, from data to noise."""

    def __init__(self):
        super().__init__("diagonal")

    def f(self, t, x):
        return -0.5 * rate(t) * x

    def g(self, t, x):
        return rate(t).sqrt().expand_as(x)


class RemoveNoise(AddNoise):
    """The same backwards in time, from noise to data; to be solved on decreasing times."""

    def __init__(self, score):
        super().__init__()
        self.score = score

    def f(self, t, x):
        return rate(t) * (-0.5 * x - self.score(t, x))


class Flow(nn.Module):
    """The probability flow and its divergence: points, and the logarithm of their density."""

    def __init__(self, score, follow_density=False):
        super().__init__()
        self.score, self.follow_density = score, follow_density

    def velocity(self, t, x):
        return -0.5 * rate(t) * (x + self.score(t, x))

    def forward(self, t, state):
        x, _ = state
        if not self.follow_density:
            return self.velocity(t, x), torch.zeros(len(x))
        divergence = torch.zeros(len(x))
        for i in range(2):
            unit = torch.zeros_like(x)
            unit[:, i] = 1.0
            velocity, slope = torch.func.jvp(lambda x: self.velocity(t, x), (x,), (unit,))
            divergence = divergence + slope[:, i]
        return velocity, divergence


def train(score, iterations, batch, random):
    optimiser = torch.optim.Adam(score.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, total_steps=iterations)
    for i in range(iterations):
        data = two_moons(batch, random)
        # One time in each of `batch` parts, which are smaller early on, where there is more to learn.
        t = FIRST + (1.0 - FIRST) * ((torch.arange(batch) + torch.rand(batch))[:, None] / batch) ** 2
        keep, spread = remains(t)
        noise = torch.randn_like(data)
        loss = (score.noise(t, keep * data + spread * noise) - noise).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if i % 1000 == 0:
            print(f"iteration {i:5d}   loss {loss.item():.4f}")


def misfit(score, random, count=2000):
    """The mean square difference between the guess of the noise and the best one, which the true density tells."""
    t = torch.linspace(FIRST, 1.0, count)[:, None]
    keep, spread = remains(t)
    x = (keep * two_moons(count, random) + spread * torch.randn(count, 2)).requires_grad_()
    (true,) = torch.autograd.grad(log_density_of_moons(x, keep, spread).sum(), x)
    with torch.no_grad():
        return (score.noise(t, x) + spread * true).square().mean().item()


def sample_by_sde(score, start, times):
    """Where points are at decreasing times, from `start` at time 1, or from so many drawn from normal noise."""
    start = torch.randn(start, 2) if isinstance(start, int) else start
    with torch.no_grad():
        return sdeint(RemoveNoise(score), start, times, method="srk", dt=0.01)


def sample_by_flow(score, start, times):
    start = torch.randn(start, 2) if isinstance(start, int) else start
    with torch.no_grad():
        return odeint(Flow(score), (start, torch.zeros(len(start))), times, rtol=1e-4, atol=1e-4)[0]


def log_density(score, points):
    """The logarithm of the density that the flow has at the first time."""
    times = torch.tensor([FIRST, 1.0])
    with torch.no_grad():
        x, grown = odeint(Flow(score, True), (points, torch.zeros(len(points))), times, rtol=1e-4, atol=1e-4)
    return -0.5 * (x[-1] ** 2).sum(dim=1) - math.log(2 * math.pi) + grown[-1]


def energy_distance(one, other):
    """Zero for samples of the same distribution on the average: 2 E|x - y| - E|x - x'| - E|y - y'|."""
    within = [torch.cdist(x, x).sum() / (len(x) * (len(x) - 1)) for x in (one, other)]
    return (2 * torch.cdist(one, other).mean() - sum(within)).item()


def judge(score, count, repeats, random):
    """The energy distances of samples from data, in thousandths: by how they are drawn, the mean and its error.

    Data drawn anew show what a perfect model has.
    """
    times = torch.tensor([1.0, FIRST])
    ways = {
        "data drawn anew": lambda: two_moons(count, random),
        "samples by the SDE": lambda: sample_by_sde(score, count, times)[-1],
        "samples by the flow": lambda: sample_by_flow(score, count, times)[-1],
    }
    distances = {}
    for name, way in ways.items():
        found = [1e3 * energy_distance(way(), two_moons(count, random)) for _ in range(repeats)]
        distances[name] = np.mean(found), np.std(found, ddof=1) / math.sqrt(repeats)
    return distances


def draw(path, score, fresh, resolution):
    figure = Figure(figsize=(12.5, 10.8), dpi=150, layout="constrained")
    rows = figure.subfigures(4, 1, height_ratios=[1, 1, 1, 1.45])
    times = torch.tensor([FIRST, 0.05, 0.15, 0.3, 0.5, 1.0])
    with torch.no_grad():
        forwards = sdeint(AddNoise(), fresh, times, method="srk", dt=0.01)
    backwards, flow = (draw_some(score, len(fresh), times.flip(0)) for draw_some in (sample_by_sde, sample_by_flow))
    for row, states, colour, title in (
        (rows[0], forwards, GREY, "Data become noise, by an SDE →"),
        (rows[1], backwards.flip(0), BLUE, "← Noise becomes data, by the SDE backwards in time"),
        (rows[2], flow.flip(0), ORANGE, "← Noise becomes data, by an ODE, the probability flow"),
    ):
        for axes, t, x in zip(row.subplots(1, len(times)), times, states, strict=True):
            axes.scatter(*x.T, s=1.5, color=colour, alpha=0.5, linewidths=0)
            axes.set(xlim=(-LIMIT, LIMIT), ylim=(-LIMIT, LIMIT), aspect="equal", xticks=[], yticks=[])
            axes.set_title(f"$t = {t:.3g}$", fontsize=9)
        row.suptitle(title, fontweight="bold", fontsize=11)

    paths, learned, true = rows[3].subplots(1, 3, width_ratios=[1.35, 1, 1])
    t = torch.linspace(1.0, FIRST, 301)
    start = torch.randn(7, 2, generator=torch.Generator().manual_seed(4))
    for states, colour, name in (
        (sample_by_sde(score, start, t), BLUE, "SDE"),
        (sample_by_flow(score, start, t), ORANGE, "flow"),
    ):
        lines = paths.plot(t, states[..., 0], color=colour, lw=1)
        lines[0].set_label(name)
    paths.set(xlabel="time, backwards", xlim=(1.0, 0.0), ylim=(-3.3, 3.3))
    paths.set_title("First coordinate, from the same starts")
    paths.legend(frameon=False, ncols=2, loc="upper center")
    paths.spines[["top", "right"]].set_visible(False)

    line = torch.linspace(-LIMIT, LIMIT, resolution)
    points = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1).reshape(-1, 2)
    densities = [f(points).exp().reshape(resolution, -1) for f in (partial(log_density, score), log_density_of_moons)]
    shades = {"cmap": "magma", "vmin": 0, "vmax": densities[1].max(), "extent": (-LIMIT, LIMIT, -LIMIT, LIMIT)}
    for axes, density, title in zip((learned, true), densities, ("flow", "data"), strict=True):
        shade = axes.imshow(density, origin="lower", **shades)
        axes.set(xticks=[], yticks=[])
        axes.set_title(f"Density of the {title}")
    rows[3].colorbar(shade, ax=(learned, true), shrink=0.8)
    for axes in (paths, learned, true):
        axes.title.set(fontweight="bold", fontsize=11)
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a short training, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("."), help="the folder for the picture")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    quick = arguments.quick

    torch.manual_seed(0)
    random = np.random.default_rng(0)
    score = Score()
    before = misfit(score, random)
    train(score, 100 if quick else 8000, 256 if quick else 1024, random)
    after = misfit(score, random)
    for name, (mean, error) in judge(score, 200 if quick else 3000, 2 if quick else 16, random).items():
        print(f"energy distance from data, in thousandths: {name:>19} {mean:6.2f} ± {error:.2f}")
    fresh = two_moons(200 if quick else 4000, random)
    true, learned = log_density_of_moons(fresh).mean(), log_density(score, fresh).mean()
    print(f"mean log density at fresh data: {learned:.3f} by the flow, {true:.3f} in truth")
    path = arguments.out / "score_model.png"
    draw(path, score, fresh[:3000], 20 if quick else 160)
    print(f"loss from {before:.3g} to {after:.3g}; picture: {path}")


if __name__ == "__main__":
    main()
