"""Learn the dynamics of a spiral from its trajectory: a neural ODE.

The truth is y' = A y^3, with the cube taken element by element. A small network f, which knows nothing of it, is
trained so that the solutions of y' = f(y) follow short stretches of the trajectory. The gradients come from the adjoint
equation, so that memory does not grow with the number of steps.

    python examples/spiral_fit.py            # one minute
    python examples/spiral_fit.py --quick    # seconds, to see that it runs
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from torchivp import odeint
from torchivp import odeint_adjoint as odeint_for_training

A = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]])
Y0 = torch.tensor([2.0, 0.0])
T = torch.linspace(0.0, 25.0, 1000)

STRETCH = 20  # points of the trajectory in each stretch
BATCH = 64  # stretches in each step of the optimiser

BLUE, ORANGE, INK, GREY = "#0072B2", "#D55E00", "#222222", "#8A8A8A"


def truth(t, y):
    return y**3 @ A.T


class Dynamics(nn.Module):
    """The learned right-hand side."""

    def __init__(self, hidden=50):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, hidden), nn.Tanh(), nn.Linear(hidden, 2))

    def forward(self, t, y):
        return self.net(y**3)


def stretches(trajectory):
    """The starts of some stretches, and how they go on: [BATCH, 2] and [STRETCH, BATCH, 2].

    The spiral is fast at first: starts are drawn evenly along the curve, not in time, or few would be there.
    """
    lengths = trajectory.diff(dim=0).norm(dim=1)
    first = torch.multinomial(lengths[: len(T) - STRETCH], BATCH, replacement=True)
    return trajectory[first], torch.stack([trajectory[first + i] for i in range(STRETCH)])


def train(model, trajectory, iterations):
    optimiser = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=iterations)
    losses = []
    for i in range(iterations):
        start, expected = stretches(trajectory)
        predicted = odeint_for_training(model, start, T[:STRETCH], rtol=1e-4, atol=1e-5)
        loss = (predicted - expected).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        if i % 100 == 0:
            print(f"iteration {i:5d}   loss {loss.item():.5f}")
    return losses


def draw(path, model, trajectory, losses):
    with torch.no_grad():
        t = torch.linspace(T[0], T[-1], 5 * len(T))
        learned = odeint(model, Y0, t, rtol=1e-6, atol=1e-8)
    figure = Figure(figsize=(11, 8.5), dpi=150, layout="constrained")
    (over_time, phase), (field, loss) = figure.subplots(2, 2)

    for axis, (name, color) in enumerate([("$y_1$", BLUE), ("$y_2$", ORANGE)]):
        over_time.plot(T[::5], trajectory[::5, axis], "o", ms=2.6, color=color, alpha=0.45, label=f"{name}, data")
        over_time.plot(t, learned[:, axis], color=color, lw=1.6, label=f"{name}, learned")
    over_time.set(title="Trajectory", xlabel="time $t$", xlim=(0, 25), ylim=(-2.5, 2.9))
    over_time.legend(ncols=4, frameon=False, fontsize=8.5, loc="upper center", columnspacing=1.2)

    phase.plot(*trajectory[::3].T, "o", ms=2.6, color=GREY, alpha=0.6, label="data")
    phase.plot(*learned.T, color=BLUE, lw=1.6, label="learned")
    phase.plot(*Y0, "o", ms=7, color=ORANGE, label="start")
    phase.set(
        title="Phase portrait", xlabel="$y_1$", ylabel="$y_2$", xlim=(-2.2, 2.2), ylim=(-2.2, 2.2), aspect="equal"
    )
    phase.legend(frameon=False, fontsize=9, loc="upper right")

    grid = np.linspace(-2.2, 2.2, 41)
    points = torch.tensor(np.stack(np.meshgrid(grid, grid), axis=-1), dtype=torch.float32)
    with torch.no_grad():
        velocity, exact = model(0.0, points), truth(0.0, points)
    error = (velocity - exact).norm(dim=-1) / exact.norm(dim=-1).clamp(min=1e-2)
    shade = field.pcolormesh(grid, grid, 100 * error, cmap="Blues", vmin=0, vmax=30, shading="gouraud")
    field.streamplot(grid, grid, *velocity.unbind(-1), color=INK, linewidth=0.8, arrowsize=0.9, density=1.1)
    field.plot(*trajectory.T, color=ORANGE, lw=1.0, alpha=0.8)
    field.set(
        title="Learned vector field", xlabel="$y_1$", ylabel="$y_2$", xlim=(-2.2, 2.2), ylim=(-2.2, 2.2), aspect="equal"
    )
    figure.colorbar(shade, ax=field, label="difference from the true velocity (%)", shrink=0.85, extend="max")

    window = max(1, len(losses) // 50)
    smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
    loss.semilogy(losses, color=GREY, lw=0.6, alpha=0.6)
    loss.semilogy(np.arange(len(smooth)) + window // 2, smooth, color=BLUE, lw=1.8)
    loss.set(title="Loss", xlabel="iteration", ylabel="mean absolute error", xlim=(0, len(losses)))

    for axes in (over_time, phase, field, loss):
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set(fontweight="bold", fontsize=11)
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a short training, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("."), help="the folder for the picture")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(0)
    trajectory = odeint(truth, Y0, T, rtol=1e-7, atol=1e-8)
    model = Dynamics()
    losses = train(model, trajectory, iterations=60 if arguments.quick else 2000)
    path = arguments.out / "spiral_fit.png"
    draw(path, model, trajectory, losses)
    print(f"loss from {losses[0]:.3g} to {losses[-1]:.3g}; picture: {path}")


if __name__ == "__main__":
    main()
