"""Learn a density by maximum likelihood: a continuous normalizing flow.

A velocity field carries a standard normal distribution at time 0 to the distribution of the data at time 1. Along a
path z(t) of the flow the logarithm of the density changes by minus the divergence of the field, so that one solve from
time 1 back to 0 yields log p(x) of each data point x; its mean is what training maximises. The divergence is exact.

    python examples/continuous_flow.py            # three minutes
    python examples/continuous_flow.py --quick    # seconds, to see that it runs
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from torchivp import odeint

RADII, SPREAD = (1.5, 3.0), 0.14  # of the two circles
LIMIT = 4.2  # of the pictures, in both directions
BLUE, GREY = "#0072B2", "#8A8A8A"


def two_circles(count):
    """Points near two circles around the origin."""
    angle = 2 * math.pi * torch.rand(count)
    radius = torch.where(torch.rand(count) < 0.5, *RADII) + SPREAD * torch.randn(count)
    return torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=1)


class Flow(nn.Module):
    """The velocity field and its divergence, at many points z, [n, 2]."""

    def __init__(self, hidden=64):
        super().__init__()
        self.first = nn.Linear(3, hidden)  # of z and t
        self.second = nn.Linear(hidden, hidden)
        self.third = nn.Linear(hidden, 2)

    def forward(self, t, state):
        z, _ = state
        h = torch.tanh(self.first(torch.cat((z, t.expand(len(z), 1)), dim=1)))
        # The derivatives by both elements of z go through the layers along with the values: [2, n, hidden].
        dh = (1 - h**2) * self.first.weight[:, :2].T[:, None]
        h = torch.tanh(self.second(h))
        dh = (1 - h**2) * (dh @ self.second.weight.T)
        divergence = (dh * self.third.weight[:, None]).sum(dim=(0, 2))
        return self.third(h), divergence


def log_density(flow, x, t=1.0, **tolerances):
    """The logarithm of the density at time t, of points x, [n, 2]."""
    times = torch.tensor([t, 0.0])
    z, divergence = odeint(flow, (x, torch.zeros(len(x))), times, **tolerances)
    return -0.5 * (z[-1] ** 2).sum(dim=1) - math.log(2 * math.pi) + divergence[-1]


def sample(flow, count, times):
    """Where points drawn from the normal distribution are at these times: [len(times), count, 2]."""
    with torch.no_grad():
        return odeint(flow, (torch.randn(count, 2), torch.zeros(count)), times, rtol=1e-4, atol=1e-5)[0]


def train(flow, iterations, batch):
    optimiser = torch.optim.Adam(flow.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=iterations)
    losses = []
    for i in range(iterations):
        loss = -log_density(flow, two_circles(batch), rtol=1e-3, atol=1e-4).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        if i % 50 == 0:
            print(f"iteration {i:5d}   loss {loss.item():.4f}")
    return losses


def densities(flow, times, resolution):
    """The density on a grid at each of the times."""
    line = torch.linspace(-LIMIT, LIMIT, resolution)
    points = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1).reshape(-1, 2)
    with torch.no_grad():
        found = [log_density(flow, points, t, rtol=1e-4, atol=1e-5) if t > 0 else normal(points) for t in times]
    return [log_p.exp().reshape(resolution, resolution) for log_p in found]


def normal(points):
    return -0.5 * (points**2).sum(dim=1) - math.log(2 * math.pi)


def draw(path, flow, losses, resolution):
    extent = (-LIMIT, LIMIT, -LIMIT, LIMIT)
    figure = Figure(figsize=(12.5, 6.6), dpi=150, layout="constrained")
    rows = figure.subfigures(2, 1, height_ratios=[1, 1.28])

    times = [0.0, 0.25, 0.5, 0.75, 1.0]
    frames = rows[0].subplots(1, len(times))
    for axes, t, density in zip(frames, times, densities(flow, times, resolution), strict=True):
        axes.imshow(density, origin="lower", extent=extent, cmap="magma", vmin=0)
        axes.set_title(f"$t = {t:g}$", fontsize=10)
    rows[0].suptitle("The flow from a normal distribution to the data", fontweight="bold", fontsize=11)

    data, samples, density, loss = rows[1].subplots(1, 4)
    count = 4000
    for axes, points, title in (
        (data, two_circles(count), "Data"),
        (samples, sample(flow, count, torch.tensor([0.0, 1.0]))[-1], "Samples"),
    ):
        axes.scatter(*points.T, s=1.5, color=BLUE, alpha=0.5, linewidths=0)
        axes.set(xlim=extent[:2], ylim=extent[2:], aspect="equal")
        axes.set_title(title, fontweight="bold", fontsize=11)
    (learned,) = densities(flow, [1.0], resolution)
    shade = density.imshow(learned, origin="lower", extent=extent, cmap="magma", vmin=0)
    density.set_title("Learned density", fontweight="bold", fontsize=11)
    rows[1].colorbar(shade, ax=density, shrink=0.7)
    for axes in (*frames, data, samples, density):
        axes.set(xticks=[], yticks=[])

    window = max(1, len(losses) // 50)
    loss.plot(losses, color=GREY, lw=0.5, alpha=0.6)
    loss.plot(np.convolve(losses, np.ones(window) / window, mode="valid"), color=BLUE, lw=1.8)
    loss.axhline(entropy(), color="#222222", lw=1, ls="--")
    loss.annotate("entropy of the data", (0.02, entropy()), xycoords=("axes fraction", "data"), xytext=(0, -12),
                  textcoords="offset points", fontsize=9)  # fmt: skip
    loss.set(xlabel="iteration", ylabel="negative log-likelihood", ylim=(entropy() - 0.3, None), box_aspect=1)
    loss.set_title("Loss", fontweight="bold", fontsize=11)
    loss.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def entropy():
    """The entropy of the data: no model can have a smaller loss on the average."""
    radius = torch.linspace(0.5, 4.0, 4001, dtype=torch.float64)
    peaks = [torch.exp(-0.5 * ((radius - r) / SPREAD) ** 2) / (SPREAD * math.sqrt(2 * math.pi)) for r in RADII]
    of_radius = 0.5 * sum(peaks)
    in_the_plane = (of_radius / (2 * math.pi * radius)).clamp(min=1e-300)
    return -torch.trapezoid(of_radius * in_the_plane.log(), radius).item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a short training, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("."), help="the folder for the picture")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(0)
    flow = Flow()
    losses = train(flow, iterations=40 if arguments.quick else 1500, batch=128 if arguments.quick else 512)
    path = arguments.out / "continuous_flow.png"
    draw(path, flow, losses, resolution=40 if arguments.quick else 160)
    print(f"loss from {losses[0]:.3g} to {losses[-1]:.3g}; picture: {path}")


if __name__ == "__main__":
    main()
