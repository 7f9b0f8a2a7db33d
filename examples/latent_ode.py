"""Reconstruct and extrapolate noisy spirals: a latent ODE.

Each series of noisy positions is some stretch of a spiral, clockwise or counter-clockwise. A recurrent network reads
the first part of the series backwards in time, and proposes a distribution of the latent state at the first time; a
neural ODE carries that state to any other time; a decoder turns latent states into positions. The three are trained
together, as a variational autoencoder, to reproduce whole series. Of a new series they know only the first part: what
they make of the rest is extrapolation.

    python examples/latent_ode.py            # two minutes
    python examples/latent_ode.py --quick    # seconds, to see that it runs
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import nn

from torchivp import odeint

NOISE = 0.12  # standard deviation of the noise in the positions
T = torch.linspace(0.0, 4.5, 90)
SEEN = 60  # points of each series that the encoder sees
TURN = 2.0  # angle by which a spiral turns in a unit of time
LOWEST, HIGHEST = 0.5 * math.pi, 2.0 * math.pi  # the angles at which a series may begin
LATENT = 4

COLORS = ("#0072B2", "#D55E00")
INK, GREY = "#222222", "#8A8A8A"
DASHED = (0, (2, 1))


def spiral(first_angle, direction, t):
    """Positions at times t after the spiral had the first angle: [len(t), count, 2]."""
    angle = first_angle + TURN * t[:, None]
    radius = 0.25 * angle
    return torch.stack((radius * torch.cos(angle), direction * radius * torch.sin(angle)), dim=-1)


def dataset(count):
    """Noisy series, [len(T), count, 2], with the first angle and the direction of each."""
    first_angle = LOWEST + (HIGHEST - LOWEST) * torch.rand(count)
    direction = torch.where(torch.rand(count) < 0.5, 1.0, -1.0)
    clean = spiral(first_angle, direction, T)
    return clean + NOISE * torch.randn_like(clean), first_angle, direction


class LatentODE(nn.Module):
    """Encoder, dynamics and decoder."""

    def __init__(self, hidden=32):
        super().__init__()
        self.encoder = nn.GRU(2, hidden)
        self.to_latent = nn.Linear(hidden, 2 * LATENT)
        self.dynamics = nn.Sequential(
            nn.Linear(LATENT, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, LATENT)
        )
        self.decoder = nn.Sequential(nn.Linear(LATENT, hidden), nn.Tanh(), nn.Linear(hidden, 2))

    def encode(self, series):
        """Mean and logarithm of the variance of the latent state at the first time."""
        _, last = self.encoder(series[:SEEN].flip(0))
        return self.to_latent(last[0]).chunk(2, dim=1)

    def latent(self, z0, t):
        """The latent states at times t, the first of which is that of z0."""
        return odeint(lambda t, z: self.dynamics(z), z0, t, rtol=1e-3, atol=1e-4)

    def loss(self, series, weight, noise=None):
        """The negative evidence lower bound for each observed number; the weight is that of the divergence."""
        mean, log_variance = self.encode(series)
        noise = torch.randn_like(mean) if noise is None else noise
        z0 = mean + noise * torch.exp(0.5 * log_variance)
        predicted = self.decoder(self.latent(z0, T))
        misfit = 0.5 * ((series - predicted) / NOISE) ** 2 + math.log(NOISE * math.sqrt(2 * math.pi))
        divergence = 0.5 * (mean**2 + log_variance.exp() - log_variance - 1).sum()
        return (misfit.sum() + weight * divergence) / series.numel()


def train(model, series, iterations, batch):
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, total_steps=iterations)
    losses = []
    for i in range(iterations):
        chosen = torch.randperm(series.shape[1])[:batch]
        loss = model.loss(series[:, chosen], weight=min(1.0, 2 * i / iterations))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        if i % 50 == 0:
            print(f"iteration {i:5d}   loss {loss.item():.4f}")
    return losses


def draw(path, model, losses):
    """Series that the model has never seen: what it makes of their first part, and of the rest."""
    series, first_angle, direction = dataset(300)
    t = torch.linspace(T[0], T[-1], 300)
    known = t <= T[SEEN - 1]
    with torch.no_grad():
        z0, _ = model.encode(series)
        predicted = model.decoder(model.latent(z0, t))

    figure = Figure(figsize=(12.5, 8), dpi=150, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[2.9, 1])
    panels = left.subplots(2, 3)
    for row, (sign, color) in enumerate(zip((1.0, -1.0), COLORS, strict=True)):
        for axes, i in zip(panels[row], torch.nonzero(direction == sign).flatten(), strict=False):
            axes.plot(*spiral(first_angle[i : i + 1], sign, t)[:, 0].T, color=GREY, lw=5, alpha=0.35)
            axes.plot(*series[:SEEN, i].T, "o", ms=2.8, color=INK, alpha=0.6)
            axes.plot(*predicted[known, i].T, color=color, lw=2)
            axes.plot(*predicted[~known, i].T, color=color, lw=2, ls=DASHED)
            axes.set(aspect="equal", xlim=(-4, 4), ylim=(-4, 4))
            axes.set_axis_off()
        panels[row, 1].set_title(("Counter-clockwise", "Clockwise")[row], fontweight="bold", fontsize=11)
    legend = {
        "truth": Line2D([], [], color=GREY, lw=5, alpha=0.35),
        "observed": Line2D([], [], color=INK, marker="o", ms=3, lw=0),
        "reconstruction": Line2D([], [], color=INK, lw=2),
        "extrapolation": Line2D([], [], color=INK, lw=2, ls=DASHED),
    }
    left.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=4, frameon=False)

    codes, loss = right.subplots(2, 1)
    z = z0 - z0.mean(dim=0)
    plane = z @ torch.linalg.svd(z, full_matrices=False).Vh[:2].T
    for sign, color, name in ((1.0, COLORS[0], "counter-clockwise"), (-1.0, COLORS[1], "clockwise")):
        codes.plot(*plane[direction == sign].T, "o", ms=3.5, color=color, alpha=0.7, label=name)
    codes.legend(frameon=False, fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, borderaxespad=0,
                 handletextpad=0.1, columnspacing=0.8)  # fmt: skip
    codes.set(xticks=[], yticks=[], xlabel="first principal axis", ylabel="second principal axis")
    codes.set_title("Latent states at the start", fontweight="bold", fontsize=11, pad=22)

    above = np.array(losses) - (0.5 * math.log(2 * math.pi * math.e) + math.log(NOISE))
    window = max(1, len(losses) // 50)
    loss.semilogy(above, color=GREY, lw=0.5, alpha=0.6)
    loss.semilogy(np.convolve(above, np.ones(window) / window, mode="valid"), color=COLORS[0], lw=1.8)
    loss.set(xlabel="iteration", ylabel="negative ELBO above the noise's entropy")
    loss.set_title("Loss per number", fontweight="bold", fontsize=11)
    for axes in (codes, loss):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a short training, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("."), help="the folder for the picture")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(0)
    series, _, _ = dataset(1000)
    model = LatentODE()
    losses = train(model, series, iterations=100 if arguments.quick else 3000, batch=32 if arguments.quick else 128)
    path = arguments.out / "latent_ode.png"
    draw(path, model, losses)
    print(f"loss from {losses[0]:.3g} to {losses[-1]:.3g}; picture: {path}")


if __name__ == "__main__":
    main()
