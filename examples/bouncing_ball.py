"""Find how elastic a ball must be: derivatives through bounces.

A ball is dropped from 50 m; at each bounce it keeps the part e of its speed. It shall be as near as possible to
20 m after 15 s: what is e? Each bounce is an event, located by `odeint_event`. Its time and state are differentiable,
and so is the height at 15 s, through all of the bounces before: the secant method finds e in a few iterations.

    python examples/bouncing_ball.py
    python examples/bouncing_ball.py --quick
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from torchivp import odeint, odeint_event

GRAVITY = 9.8  # m/s^2
DROP = torch.tensor([50.0, 0.0], dtype=torch.float64)  # height in m, velocity in m/s
END = torch.tensor(15.0, dtype=torch.float64)  # s
WANTED = 20.0  # m
ANSWER = 0.866554105  # to nine digits

SOLVER = {"method": "dopri5", "rtol": 1e-11, "atol": 1e-11}
BLUE, ORANGE, GREEN, INK, GREY = "#0072B2", "#D55E00", "#009E73", "#222222", "#8A8A8A"


def flight(t, state):
    _, velocity = state.unbind()
    return torch.stack([velocity, torch.full_like(velocity, -GRAVITY)])


def ground(t, state):
    """The height of a falling ball; a rising one, which has just left the ground, cannot hit it."""
    height, velocity = state.unbind()
    return torch.where(velocity < 0, height, 1.0)


def bounce(state, restitution):
    _, velocity = state.unbind()
    return torch.stack([torch.zeros_like(velocity), -restitution * velocity])


def flights(restitution):
    """The ball's flights up to END: for each its start, its end and the state at its start."""
    t, state = torch.zeros((), dtype=torch.float64), DROP
    found = []
    while True:
        hit, states = odeint_event(flight, state, t, event_fn=ground, **SOLVER)
        if hit > END:
            return [*found, (t, END, state)]
        found.append((t, hit, state))
        t, state = hit, bounce(states[-1], restitution)


def final_height(restitution):
    start, end, state = flights(restitution)[-1]
    return odeint(flight, state, torch.stack([start, end]), **SOLVER)[-1, 0]


def height_and_slope(restitution):
    restitution = torch.tensor(restitution, dtype=torch.float64, requires_grad=True)
    height = final_height(restitution)
    (slope,) = torch.autograd.grad(height, restitution)
    return height.item(), slope.item()


def fit(guess):
    """Minimise (height - WANTED)^2: where its derivative vanishes, by the secant method; returns all iterates."""
    iterates, derivatives = [guess], []
    print(" e              height (m)      derivative of the misfit")
    while True:
        height, slope = height_and_slope(iterates[-1])
        derivatives.append(2 * (height - WANTED) * slope)
        print(f" {iterates[-1]:.10f}  {height:13.9f}  {derivatives[-1]:14.9f}")
        if len(iterates) == 1:
            step = -math.copysign(0.01, derivatives[-1])
        else:
            (e0, e1), (d0, d1) = iterates[-2:], derivatives[-2:]
            step = -d1 * (e1 - e0) / (d1 - d0)
        if abs(step) < 1e-11 or len(iterates) == 30:
            return iterates
        iterates.append(iterates[-1] + step)


def check_gradient(restitution):
    """The slope, and its relative difference from central differences."""
    step = 1e-5
    _, slope = height_and_slope(restitution)
    (above, _), (below, _) = height_and_slope(restitution + step), height_and_slope(restitution - step)
    return slope, abs((above - below) / (2 * step) / slope - 1)


def trajectory(restitution):
    """Times and heights, densely."""
    times, heights = [], []
    with torch.no_grad():
        for start, end, state in flights(torch.tensor(restitution, dtype=torch.float64)):
            t = torch.linspace(start.item(), end.item(), 100, dtype=torch.float64)
            times.append(t)
            heights.append(odeint(flight, state, t, **SOLVER)[:, 0])
    return torch.cat(times), torch.cat(heights)


def draw(path, iterates, points):
    figure = Figure(figsize=(11, 4.6), dpi=150, layout="constrained")
    over_time, landscape = figure.subplots(1, 2, width_ratios=[1.35, 1])

    for restitution, color, label in [(iterates[0], GREY, "before"), (iterates[-1], BLUE, "after")]:
        t, height = trajectory(restitution)
        over_time.plot(t, height, color=color, lw=1.8, label=f"{label}: e = {restitution:.6f}")
    over_time.axhline(0.0, color=INK, lw=1.0)
    over_time.plot(END, WANTED, "o", ms=9, mfc="white", mec=ORANGE, mew=2.2, zorder=3, label="wanted")
    over_time.set(
        title="A ball dropped from 50 m", xlabel="time (s)", ylabel="height (m)", xlim=(0, 15.6), ylim=(-1, 55)
    )
    over_time.legend(frameon=False, loc="upper right")

    grid = np.linspace(0.79, 0.92, points)
    heights, slopes = np.array([height_and_slope(e) for e in grid]).T
    landscape.plot(grid, heights, color=BLUE, lw=1.8, label="height at 15 s")
    for e, height, slope in list(zip(grid, heights, slopes, strict=True))[:: max(1, points // 10)]:
        width = 0.004 / math.hypot(1.0, slope / 400)
        landscape.plot([e - width, e + width], [height - width * slope, height + width * slope], color=GREEN, lw=2.6)
    landscape.plot([], [], color=GREEN, lw=2.6, label="slope by autograd")
    landscape.axhline(WANTED, color=ORANGE, lw=1.0, ls="--", label="wanted")
    seen = [e for e in iterates if grid[0] <= e <= grid[-1]]
    landscape.plot(seen, [height_and_slope(e)[0] for e in seen], "o", ms=5, color=INK, label="iterates of the fit")
    landscape.set(
        title="The height that shall be 20 m", xlabel="restitution e", ylabel="height at 15 s (m)", ylim=(5, 24)
    )
    landscape.legend(frameon=False, fontsize=8.5, loc="lower right")

    for axes in (over_time, landscape):
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set(fontweight="bold", fontsize=11)
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a coarser picture")
    parser.add_argument("--out", type=Path, default=Path("."), help="the folder for the picture")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    iterates = fit(guess=0.82)
    error = abs(iterates[-1] - ANSWER)
    slope, difference = check_gradient(iterates[0])
    path = arguments.out / "bouncing_ball.png"
    draw(path, iterates, points=31 if arguments.quick else 131)
    print(f"e = {iterates[-1]:.9f}, {error:.1e} from the answer; picture: {path}")
    print(f"at e = {iterates[0]} d height / d e = {slope:.9f}, by finite differences to within {difference:.1e}")
    if error > 1e-8 or difference > 1e-6:
        raise SystemExit("the answer or its gradient is wrong")


if __name__ == "__main__":
    main()
