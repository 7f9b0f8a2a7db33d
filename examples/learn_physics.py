"""Learn how balls fly, and what they bounce off, from their trajectories.

Balls fall through air and bounce off the ground. Neither the law of flight nor the shape of the ground is known. Two
small networks learn them: one is the acceleration of a ball as a function of its velocity, the other the height of the
ground, which is the event function; how much speed a bounce keeps is learned too. `odeint_event` finds each bounce, and
the gradient goes through its time and place into all of them.

    python examples/learn_physics.py            # three minutes
    python examples/learn_physics.py --quick    # seconds, to see that it runs
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn

from torchivp import odeint, odeint_event

GRAVITY, DRAG, RESTITUTION = 4.0, 0.12, 0.85
WINDOW, SAMPLES = 0.6, 6  # training follows a ball for so long, and compares it with the observations so often
SOLVER = {"method": "rk4", "options": {"step_size": 0.125}}

BLUE, ORANGE, GREEN, INK, GREY = "#0072B2", "#D55E00", "#009E73", "#222222", "#8A8A8A"


class World(nn.Module):
    """A ball at (x, y) with the velocity (u, v), state (x, y, u, v), above a ground of some shape."""

    def acceleration(self, velocity):
        raise NotImplementedError

    def ground(self, x):
        raise NotImplementedError

    def forward(self, t, state):
        return torch.cat([state[2:], self.acceleration(state[2:])])

    def normal(self, x):
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.ground(x), x, create_graph=True)
        normal = torch.stack([-slope, torch.ones_like(slope)])
        return normal / normal.norm()

    def bounce(self, state):
        """Reflect the velocity at the ground."""
        normal = self.normal(state[0])
        towards = (state[2:] @ normal).clamp(max=0.0)
        return torch.cat([state[:2], state[2:] - (1 + self.restitution) * towards * normal])

    def trajectory(self, state, times):
        """The states at `times`, the first of which belongs to `state`; and the places of the bounces."""
        t, end = times[0], times[-1]
        states, bounces, done = [state[None]], [], 1

        def event(t, state):
            """A ball that has just bounced moves away from the ground; one more event ends the search."""
            approaching = state[2:] @ self.normal(state[0]) < 0
            height = state[1] - self.ground(state[0])
            return torch.stack([torch.where(approaching, height, 1.0), end + 1e-3 - t])

        while done < len(times):
            hit, ends = odeint_event(self, state, t, event_fn=event, **SOLVER)
            upto = int((times <= hit).sum())
            if upto > done:
                seen = torch.cat([t.reshape(1), times[done:upto]])
                states.append(odeint(self, state, seen, **SOLVER)[1:])
            if upto == len(times) or len(bounces) == 20:
                break
            bounces.append(ends[-1, :2])
            done, t, state = upto, hit, self.bounce(ends[-1])
        return torch.cat(states), bounces


class Truth(World):
    restitution = RESTITUTION

    def acceleration(self, velocity):
        return torch.tensor([0.0, -GRAVITY], dtype=velocity.dtype) - DRAG * velocity.norm() * velocity

    def ground(self, x):
        return 0.06 * x**2 + 0.25 * torch.sin(2.4 * x)


class Learned(World):
    def __init__(self):
        super().__init__()
        self.law = nn.Sequential(nn.Linear(2, 24), nn.Tanh(), nn.Linear(24, 2)).double()
        self.shape = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)).double()
        self.bounciness = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
        with torch.no_grad():
            self.shape[0].weight.mul_(3.0)
            self.shape[-1].weight.mul_(0.1)
            self.shape[-1].bias.fill_(0.1)

    @property
    def restitution(self):
        return torch.sigmoid(self.bounciness)

    def acceleration(self, velocity):
        return self.law(velocity / 3.0) * 3.0

    def ground(self, x):
        return self.shape(x.reshape(1) / 1.5).squeeze()


def observe(count, seconds, seed):
    """Trajectories of balls dropped from all over, [count, times, 4]."""
    random = torch.Generator().manual_seed(seed)
    times = torch.arange(0.0, seconds + 1e-9, WINDOW / SAMPLES, dtype=torch.float64)
    found = []
    with torch.no_grad():
        for x in torch.linspace(-2.8, 2.8, count, dtype=torch.float64):
            u, lift = torch.rand(2, generator=random, dtype=torch.float64)
            start = torch.stack([x, 1.6 + lift + 0.1 * x**2, 3 * u - 1.5, 0.0 * u])
            found.append(Truth().trajectory(start, times)[0])
    return times, torch.stack(found)


def train(model, times, observed, iterations, batch):
    groups = [(model.law.parameters(), 1e-2), (model.shape.parameters(), 8e-3), ([model.bounciness], 2e-2)]
    optimiser = torch.optim.Adam([{"params": parameters, "lr": rate} for parameters, rate in groups])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, iterations)
    # Most can be learned from the stretches with a bounce, where the vertical velocity jumps up.
    jumps = observed[:, :, 3].diff(dim=1) > 0.3
    chances = 0.2 + jumps.unfold(1, SAMPLES, 1).any(-1).double()
    losses = []
    for i in range(iterations):
        total = 0.0
        optimiser.zero_grad()
        for chosen in torch.multinomial(chances.flatten(), batch):
            ball, first = divmod(chosen.item(), chances.shape[1])
            window = observed[ball, first : first + SAMPLES + 1]
            predicted, _ = model.trajectory(window[0], times[: SAMPLES + 1])
            expected = window[: len(predicted), :2]
            loss = nn.functional.smooth_l1_loss(predicted[:, :2], expected, beta=0.05) / batch
            # No ball has ever been below the ground.
            sunk = torch.stack([torch.relu(model.ground(x) - y) for x, y in window[:, :2]]).mean() / batch
            (loss + sunk).backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(total)
        if i % 25 == 0:
            print(f"iteration {i:4d}   loss {total:.5f}   restitution {model.restitution.item():.3f}")
    return losses


def smooth(values, window=15):
    window = min(window, len(values))
    return torch.tensor(values).unfold(0, window, 1).mean(1)


def draw(path, model, before, losses, seconds):
    truth, x = Truth(), torch.linspace(-3.0, 3.0, 301, dtype=torch.float64)
    times = torch.linspace(0.0, seconds, int(40 * seconds) + 1, dtype=torch.float64)
    figure = Figure(figsize=(11, 7.2), dpi=150, layout="constrained")
    mosaic = figure.subplot_mosaic([["world", "world"], ["law", "loss"]], height_ratios=[1.45, 1])
    world, law, loss = mosaic["world"], mosaic["law"], mosaic["loss"]

    with torch.no_grad():
        ground, learned, start = (torch.stack([w.ground(s) for s in x]) for w in (truth, model, before))
        world.fill_between(x, ground, -1.0, color=GREY, alpha=0.25, lw=0)
        world.plot(x, ground, color=INK, lw=3.5, alpha=0.45, label="ground, true")
        world.plot(x, start, color=GREY, lw=1.3, ls=":", label="ground, before training")
        world.plot(x, learned, color=ORANGE, lw=1.8, label="ground, learned")
        for i, (x0, u0) in enumerate([(-2.2, 0.4), (0.3, -0.6), (1.6, 0.7)]):
            begin = torch.tensor([x0, 2.6, u0, 0.0], dtype=torch.float64)
            for w, style in ((truth, {"color": INK, "lw": 3.5, "alpha": 0.3}), (model, {"color": BLUE, "lw": 1.5})):
                states, bounces = w.trajectory(begin, times)
                name = "trajectory, true" if w is truth else "trajectory, learned"
                world.plot(*states[:, :2].T, **style, label=name if i == 0 else None)
            if bounces:
                label = "bounces, learned" if i == 0 else None
                world.plot(*torch.stack(bounces).T, "o", ms=5, mfc="white", mec=BLUE, mew=1.5, zorder=3, label=label)
    world.set(title="Balls that were not observed", xlabel="$x$", ylabel="$y$", xlim=(-3, 3), ylim=(-0.45, 3.3))
    world.legend(frameon=False, fontsize=8.5, ncols=3, loc="upper center")

    speed = torch.linspace(-3.5, 2.0, 56, dtype=torch.float64)
    falling = torch.stack([0 * speed, speed], -1)
    with torch.no_grad():
        law.plot(speed, [truth.acceleration(v)[1] for v in falling], color=INK, lw=3.5, alpha=0.45, label="true")
        law.plot(
            speed, [before.acceleration(v)[1] for v in falling], color=GREY, lw=1.3, ls=":", label="before training"
        )
        law.plot(speed, [model.acceleration(v)[1] for v in falling], color=BLUE, lw=1.8, label="learned")
    law.set(title="Law of flight, straight up and down", xlabel="velocity", ylabel="acceleration", xlim=(-3.5, 2))
    law.legend(frameon=False, fontsize=8.5)

    loss.semilogy(losses, color=GREY, lw=0.7, alpha=0.7)
    mean = smooth(losses)
    loss.semilogy(torch.arange(len(mean)) + (len(losses) - len(mean)) / 2, mean, color=BLUE, lw=1.8)
    loss.set(title="Loss", xlabel="iteration", xlim=(0, max(1, len(losses) - 1)))
    for axes in (world, law, loss):
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
    times, observed = observe(count=6 if arguments.quick else 24, seconds=2.0 if arguments.quick else 3.0, seed=1)
    model, before = Learned(), Learned()
    before.load_state_dict(model.state_dict())
    losses = train(model, times, observed, *((12, 4) if arguments.quick else (450, 16)))
    path = arguments.out / "learn_physics.png"
    draw(path, model, before, losses, seconds=1.2 if arguments.quick else 1.6)
    kept = f"restitution {model.restitution.item():.3f}, in truth {RESTITUTION}"
    print(f"loss from {losses[0]:.3g} to {smooth(losses)[-1]:.3g}; {kept}; picture: {path}")


if __name__ == "__main__":
    main()
