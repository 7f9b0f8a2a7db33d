"""Throw a thousand balls over hills, and turn each until it lands as far away as it can.

Every ball has its own drag and its own speed, flies until it meets the ground and stops there: a batch of problems that
step and end on their own, solved by one call of `solve_ivp`. The landing points are differentiable, through the times
of contact, which are events. So gradient ascent finds the best angle of every ball.

    python examples/projectiles.py
    python examples/projectiles.py --quick
"""

import argparse
import math
from pathlib import Path

import torch
from matplotlib.figure import Figure

from torchivp import Event, solve_ivp

GRAVITY = 9.81  # m/s^2
LONGEST = 60.0  # s, longer than any flight
BLUE, ORANGE, INK, GREY = "#0072B2", "#D55E00", "#222222", "#8A8A8A"
BALLS = (BLUE, ORANGE, "#009E73", "#A6568C", "#8C6D00")


def ground(x):
    """The height of the ground, in m; the balls start on the top of a hill."""
    return 4.0 * torch.cos(x / 9.0) + 3.0 * torch.cos(x / 23.0)


def flight(t, state, drag):
    """Gravity, and air that brakes with the square of the speed; `state` is [balls, (x, z, velocity in x, in z)]."""
    velocity = state[:, 2:]
    braking = drag * velocity.norm(dim=1, keepdim=True) * velocity
    return torch.cat([velocity, -braking - torch.tensor([0.0, GRAVITY])], dim=1)


def clearance(t, state, drag):
    """The height above the ground: zero at the start, which is no event, and falling through zero at the end."""
    return state[:, 1] - ground(state[:, 0])


def launch(angles, speeds):
    """The states in which the balls leave the ground at x = 0."""
    x = torch.zeros_like(angles)
    return torch.stack([x, ground(x), speeds * torch.cos(angles), speeds * torch.sin(angles)], dim=1)


def land(angles, speeds, drag, rtol=1e-6):
    """The times at which the balls land, and the states in which they do; one event for each, in their order."""
    solution = solve_ivp(
        flight,
        (0.0, LONGEST),
        launch(angles, speeds),
        t_eval=[],
        args=(drag,),
        batch_dims=1,
        events=Event(clearance, direction=-1, terminal=True),
        compact=True,
        rtol=rtol,
        atol=1e-3 * rtol,
    )
    return solution.events.t, solution.events.y


def optimise(angles, speeds, drag, iterations):
    """The angles after so many steps of gradient ascent, and the mean distance before each."""
    angles = angles.clone().requires_grad_()
    optimiser = torch.optim.Adam([angles], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, iterations)
    distances = []
    for i in range(iterations):
        _, states = land(angles, speeds, drag, rtol=1e-4)
        loss = -states[:, 0].sum()  # no angle matters to another ball
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        distances.append(-loss.item() / len(angles))
        if i % 10 == 0:
            print(f"iteration {i:3d}   mean distance {distances[-1]:8.3f} m")
    return angles.detach(), distances


def check_gradient(angles, speeds, drag):
    """The largest relative difference of the slopes of the landing points from central differences.

    One entry each for the slopes with respect to angle, speed and drag; all balls at once.
    """
    inputs = [x.clone().requires_grad_() for x in (angles, speeds, drag)]
    slopes = torch.autograd.grad(land(*inputs, rtol=1e-10)[1][:, 0].sum(), inputs)
    differences = []
    with torch.no_grad():
        for i, slope in enumerate(slopes):
            step = 1e-5 * inputs[i]
            above, below = (
                land(*(x + sign * step if j == i else x for j, x in enumerate(inputs)), rtol=1e-10)[1][:, 0]
                for sign in (1, -1)
            )
            numerical = ((above - below) / 2).reshape(step.shape) / step
            differences.append(((slope - numerical).abs() / slope.abs().clamp(min=1e-3 * slope.abs().mean())).max())
    return torch.stack(differences)


def trajectories(angles, speeds, drag, points):
    """The balls' ways from start to landing, [balls, points, (x, z)]: every ball is asked for its own times."""
    with torch.no_grad():
        times, _ = land(angles, speeds, drag)
        t = times[:, None] * torch.linspace(0.0, 1.0, points)
        solution = solve_ivp(
            flight, (0.0, times), launch(angles, speeds), t_eval=t, args=(drag,), batch_dims=1, compact=True
        )
    return solution.y[..., :2]


def draw(path, before, after, speeds, drag, points):
    figure = Figure(figsize=(11, 8), dpi=150, layout="constrained")
    panels = figure.subplot_mosaic("AAA;BCC", height_ratios=[1.1, 1.0])
    flights, distances, best = (panels[name] for name in "ABC")
    with torch.no_grad():
        (_, start), (_, end) = land(before, speeds, drag), land(after, speeds, drag)

    turned = (after - before).abs()
    shown = torch.nonzero((turned > 0.2) & (turned < 0.4)).flatten()
    shown = shown[torch.argsort(end[shown, 0])]
    shown = shown[torch.linspace(0.1, 0.98, len(BALLS)).mul(len(shown)).long()]
    for angles, style in [(before, "--"), (after, "-")]:
        ways = trajectories(angles[shown], speeds[shown], drag[shown], points)
        for way, color in zip(ways, BALLS, strict=True):
            flights.plot(*way.T, color=color, lw=1.7, ls=style)
            flights.plot(*way[-1], "o", ms=6, mfc="white", mec=color, mew=1.8, zorder=4)
    x = torch.linspace(-3.0, 1.04 * end[shown, 0].max().item(), 500)
    flights.fill_between(x, ground(x), -12.0, color="#E4DCCB", lw=0)
    flights.plot(x, ground(x), color=INK, lw=1.2)
    for style, label in [("--", "before"), ("-", "after")]:
        flights.plot([], [], color=INK, lw=1.7, ls=style, label=label)
    flights.plot([], [], "o", ms=6, mfc="white", mec=INK, mew=1.8, label="landing point")
    flights.set(
        title=f"{len(BALLS)} of {len(speeds)} balls",
        xlabel="distance x (m)",
        ylabel="height z (m)",
        xlim=(x[0], x[-1]),
        ylim=(-12.0, None),
        aspect="equal",
    )
    flights.legend(frameon=False, loc="upper left")

    limit = 1.05 * end[:, 0].max().item()
    distances.plot([0, limit], [0, limit], color=INK, lw=0.9)
    distances.annotate("no gain", (0.75 * limit, 0.75 * limit), (6, -6), textcoords="offset points", va="top")
    distances.plot(start[:, 0], end[:, 0], "o", ms=2.6, color=BLUE, alpha=0.5, mew=0)
    distances.set(
        title="Where the balls land",
        xlabel="distance before (m)",
        ylabel="distance after (m)",
        xlim=(0, limit),
        ylim=(0, limit),
        aspect="equal",
    )

    ratio = (drag[:, 0] * speeds**2 / GRAVITY).numpy()
    best.semilogx(ratio, before.rad2deg(), "o", ms=2.6, color=GREY, alpha=0.45, mew=0, label="before")
    best.semilogx(ratio, after.rad2deg(), "o", ms=2.6, color=BLUE, alpha=0.7, mew=0, label="after")
    best.axhline(45.0, color=ORANGE, lw=1.2, ls="--", label="best on a plane without air")
    best.set(title="The angles", xlabel="drag at launch / weight", ylabel="launch angle (degrees)", ylim=(0, 90))
    best.legend(frameon=False, fontsize=8.5, loc="upper center", ncols=3, markerscale=2)

    for axes in (flights, distances, best):
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set(fontweight="bold", fontsize=11)
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer balls and iterations, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("."), help="the folder for the picture")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    balls = 60 if arguments.quick else 1000
    speeds = 30.0 + 25.0 * torch.rand(balls)  # m/s
    drag = torch.exp(math.log(0.001) + math.log(30.0) * torch.rand(balls, 1))  # 1/m, from 0.001 to 0.03
    angles = torch.deg2rad(15.0 + 60.0 * torch.rand(balls))  # above the horizon

    differences = check_gradient(angles, speeds, drag)
    print(
        "slopes of the landing points against finite differences, with respect to "
        + ", ".join(f"{name}: {value:.1e}" for name, value in zip(("angle", "speed", "drag"), differences, strict=True))
    )
    found, distances = optimise(angles, speeds, drag, iterations=15 if arguments.quick else 60)
    path = arguments.out / "projectiles.png"
    draw(path, angles, found, speeds, drag, points=100)
    print(f"mean distance {distances[0]:.2f} m before, {distances[-1]:.2f} m after; picture: {path}")
    if differences.max() > 1e-5 or distances[-1] < 1.1 * distances[0]:
        raise SystemExit("the gradients or the optimisation is wrong")


if __name__ == "__main__":
    main()
