"""Learn to make paths like those of a data set: a neural SDE as the generator of a GAN.

The generator turns Gaussian noise into the first state of an SDE, which it then solves: drift and diffusion are
networks, and the path is a linear function of the state. It is solved by the reversible Heun method, whose steps can be
taken back exactly, so that the gradient is exact and needs the memory of one step.

The discriminator reads a path as the control Y of a neural CDE, dH = f(t, H) dt + g(t, H) dY, and judges by its last
state; with the path goes its quadratic variation, which tells how rough it is. That is an SDE in Stratonovich's
calculus whose noise is Y: it is solved in the same way, with Y in the place of Brownian motion. The weights are
clipped, so that no layer changes by more than its argument, and the difference that the discriminator finds between
generator and data is a distance of Wasserstein's kind. Kidger, Foster, Li and Lyons, "Efficient and accurate gradients
for neural SDEs", NeurIPS (2021).

The data are paths of an Ornstein-Uhlenbeck process with a moving mean and growing noise.

    python examples/sde_gan.py            # three minutes
    python examples/sde_gan.py --quick    # seconds, to see that it runs
"""

import argparse
import math
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.optim.swa_utils import AveragedModel

from torchivp import SDEIto, SDEStratonovich, sdeint, sdeint_adjoint

T = torch.linspace(0.0, 4.0, 33)
STEP = 4.0 / 32
TIMES = 6  # how many sines and cosines of time the networks see
TIME_SCALE = 20.0  # of these, for the discriminator: it may change with time as fast as it likes
PATH_SCALE = 4.0  # of the paths, for the discriminator
JUDGEMENTS = 2  # steps of the discriminator for each of the generator
BLUE, ORANGE, INK, GREY = "#0072B2", "#D55E00", "#222222", "#8A8A8A"


class OrnsteinUhlenbeck(SDEIto):
    """The truth, dY = 2 (sin(pi t / 2) - Y) dt + (0.2 + 0.2 t) dW."""

    def __init__(self):
        super().__init__("additive")

    def f(self, t, y):
        return 2.0 * (torch.sin(0.5 * math.pi * t) - y)

    def g(self, t, y):
        return (0.2 + 0.2 * t).expand(len(y), 1, 1)


def dataset(count):
    """Paths of the truth, [len(T), count, 1]."""
    return sdeint(OrnsteinUhlenbeck(), 0.3 + 0.25 * torch.randn(count, 1), T, method="euler", dt=STEP / 8)


class LipSwish(nn.Module):
    """A smooth activation that changes by no more than its argument."""

    def forward(self, x):
        return 0.909 * nn.functional.silu(x)


def network(inputs, hidden, outputs, bounded=True):
    layers = [nn.Linear(inputs, hidden), LipSwish(), nn.Linear(hidden, outputs)]
    return nn.Sequential(*layers, nn.Tanh()) if bounded else nn.Sequential(*layers)


def with_time(t, x, scale=1.0):
    """The state after some functions of time."""
    angle = 0.5 * math.pi * t / T[-1] * torch.arange(1, TIMES + 1)
    functions = scale * torch.cat([torch.sin(angle), torch.cos(angle)])
    return torch.cat([functions.expand(len(x), 2 * TIMES), x], dim=1)


class Generator(SDEStratonovich):
    """An SDE whose state is driven by several noises; a linear function of the state is the path."""

    def __init__(self, size=16, noises=4, hidden=32, first_noise=4):
        super().__init__("general")
        self.shape, self.first_noise = (size, noises), first_noise
        self.first = network(first_noise, hidden, size, bounded=False)
        self.drift = network(2 * TIMES + size, hidden, size)
        self.diffusion = network(2 * TIMES + size, hidden, size * noises)
        self.readout = nn.Linear(size, 1)
        nn.init.zeros_(self.drift[-2].weight)
        nn.init.zeros_(self.drift[-2].bias)

    def f(self, t, x):
        return self.drift(with_time(t, x))

    def g(self, t, x):
        return self.diffusion(with_time(t, x)).reshape(len(x), *self.shape)

    def forward(self, count):
        """Some paths, [len(T), count, 1]."""
        x0 = self.first(torch.randn(count, self.first_noise))
        x = sdeint_adjoint(self, x0, T, dt=STEP, method="reversible_heun", adjoint_method="adjoint_reversible_heun")
        return self.readout(x)

    @torch.no_grad()
    def match_size(self, data):
        """Let the first values deviate, and the paths change from time to time, as much as those of the data."""
        self.readout.weight.mul_(data.diff(dim=0).std() / self(data.shape[1]).diff(dim=0).std())
        made = self(data.shape[1])
        for weights in self.first[-1].parameters():
            weights.mul_(data[0].std() / made[0].std())
        self.readout.bias.add_(data[0].mean() - self(data.shape[1])[0].mean())


class DrivingPath:
    """Paths and their quadratic variation, in the place of Brownian motion: called with two times, their change."""

    def __init__(self, paths):
        first = torch.zeros_like(paths[:1])
        variation = torch.cat([first, paths.diff(dim=0).square().cumsum(dim=0)])
        self.values = PATH_SCALE * torch.cat([paths, variation], dim=2)
        self.shape = self.values.shape[1:]

    def at(self, t):
        share, i = math.modf(min(max(t / STEP, 0.0), len(T) - 1.0))
        return torch.lerp(self.values[int(i)], self.values[min(int(i) + 1, len(T) - 1)], share)

    def __call__(self, ta, tb):
        return self.at(tb) - self.at(ta)


class Discriminator(SDEStratonovich):
    """A CDE, driven by the path that it judges."""

    def __init__(self, size=16, hidden=32):
        super().__init__("general")
        self.size = size
        self.first = network(1, hidden, size, bounded=False)
        self.drift = network(2 * TIMES + size, hidden, size)
        self.response = network(2 * TIMES + size, hidden, size * 2)
        self.readout = nn.Linear(size, 1)

    def f(self, t, h):
        return self.drift(with_time(t, h, TIME_SCALE))

    def g(self, t, h):
        return self.response(with_time(t, h, TIME_SCALE)).reshape(len(h), -1, 2)

    def forward(self, paths):
        h0 = self.first(PATH_SCALE * paths[0])
        h = sdeint(self, h0, T[[0, -1]], bm=DrivingPath(paths), dt=STEP, method="reversible_heun")
        return self.readout(h[-1])

    @torch.no_grad()
    def clip(self):
        """Let no layer change by more than its argument, in the largest element."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                limit = 1.0 / layer.in_features
                layer.weight.clamp_(-limit, limit)


def wasserstein(one, other):
    """The Wasserstein-1 distance of the distributions of as many numbers in each column, on average over columns."""
    return (one.sort(dim=0).values - other.sort(dim=0).values).abs().mean().item()


@torch.no_grad()
def distances(made, data):
    """How far apart the paths are at the times, and their changes from time to time."""
    made, data = made[:, :, 0].T, data[:, :, 0].T
    return wasserstein(made, data), wasserstein(made.diff(dim=1), data.diff(dim=1))


def train(generator, data, unseen, iterations, batch, every):
    """Train; returns the average of the generators of the last fifth, and the distances on the way."""
    discriminator = Discriminator()
    discriminator.clip()
    optimisers = [
        torch.optim.Adam(model.parameters(), lr=rate, betas=(0.0, 0.99))
        for model, rate in ((generator, 2e-3), (discriminator, 1e-2))
    ]
    schedules = [torch.optim.lr_scheduler.LinearLR(each, 1.0, 0.0, iterations + 1) for each in optimisers]
    average = AveragedModel(generator)
    found = []
    for i in range(iterations + 1):
        if i % every == 0:
            with torch.no_grad():
                found.append((i, *distances(generator(unseen.shape[1]), unseen)))
            print("iteration {:5d}   Wasserstein distance of values {:.4f}, of changes {:.4f}".format(*found[-1]))
        for last in (False,) * (JUDGEMENTS - 1) + (True,):
            real = data[:, torch.randint(data.shape[1], (batch,))]
            with torch.set_grad_enabled(last):  # only then the generator learns
                made = generator(batch)
            made, real = discriminator(torch.cat([made, real], dim=1)).chunk(2)
            difference = made.mean() - real.mean()
            for optimiser in optimisers:
                optimiser.zero_grad()
            difference.backward()
            for weights in discriminator.parameters():  # it makes the difference large, the generator makes it small
                weights.grad.neg_()
            for optimiser in optimisers:
                optimiser.step()
            discriminator.clip()
        for schedule in schedules:
            schedule.step()
        if i > 4 * iterations // 5:
            average.update_parameters(generator)
    return average.module, found


@torch.no_grad()
def draw(path, before, after, unseen, found, last, floor):
    figure = Figure(figsize=(12.5, 9.2), dpi=150, layout="constrained")
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=[1.15, 1, 0.9])
    panels = top.subplots(1, 3, sharey=True)
    samples = (("Data", INK, unseen), ("Before the training", GREY, before), ("After the training", BLUE, after))
    for axes, (title, color, paths) in zip(panels, samples, strict=True):
        axes.plot(T, paths[:, :50, 0], color=color, lw=0.7, alpha=0.5)
        for edge in (0.05, 0.5, 0.95):
            axes.plot(T, paths[:, :, 0].quantile(edge, dim=1), color=ORANGE, lw=1.8)
        axes.set(xlabel="time", xlim=(0, T[-1]), ylim=(-2.5, 2.5))
        axes.set_title(title, fontweight="bold", fontsize=11)
    panels[0].plot([], [], color=ORANGE, lw=1.8, label="5%, 50% and 95% of all paths")
    panels[0].legend(frameon=False, fontsize=9, loc="upper left")

    moments = (0, 8, 16, 24, 32)
    panels = middle.subplots(1, len(moments), sharey=False)
    for axes, i in zip(panels, moments, strict=True):
        values = unseen[i, :, 0]
        center, width = values.mean().item(), 4.0 * values.std().item()
        bins = torch.linspace(center - width, center + width, 50)
        axes.hist(values, bins, density=True, color=INK, alpha=0.22, label="data")
        axes.hist(before[i, :, 0], bins, density=True, histtype="step", color=GREY, lw=1.2, label="before")
        axes.hist(after[i, :, 0], bins, density=True, histtype="step", color=BLUE, lw=1.6, label="after")
        axes.set(xlabel="value", yticks=[])
        axes.set_ylim(top=1.4 * torch.histc(values, 50).max() / len(values) / (bins[1] - bins[0]))
        axes.set_title(f"at time {T[i]:g}", fontweight="bold", fontsize=11)
    handles = panels[0].get_legend_handles_labels()
    middle.legend(*handles, frameon=False, fontsize=9, ncols=3, loc="outside lower center")

    i, *curves = zip(*found, strict=True)
    panels = bottom.subplots(1, 2)
    names = ("values", "changes from time to time")
    for axes, curve, end, least, what in zip(panels, curves, last, floor, names, strict=True):
        axes.semilogy(i, curve, color=BLUE, lw=1.4, label="the generator in training")
        axes.axhline(end, color=ORANGE, lw=1.4, label="the average generator")
        axes.axhline(least, color=INK, lw=1.0, ls=(0, (4, 2)), label="as many other paths of the data")
        axes.set(xlabel="iteration")
        axes.set_title(f"Wasserstein-1 distance of the {what}", fontweight="bold", fontsize=11)
    panels[1].legend(frameon=False, fontsize=9)
    for figure_part in (top, middle, bottom):
        for axes in figure_part.axes:
            axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a short training, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("."), help="the folder for the picture")
    parser.add_argument("--iterations", type=int, help="of the training")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(0)
    data, unseen, others = dataset(8192), dataset(4096), dataset(4096)
    generator = Generator()
    generator.match_size(data)
    with torch.no_grad():
        before = generator(unseen.shape[1])
    iterations = arguments.iterations or (30 if arguments.quick else 2000)
    average, found = train(generator, data, unseen, iterations, 64 if arguments.quick else 256, every=50)
    with torch.no_grad():
        after = average(unseen.shape[1])
    first, last, floor = (distances(paths, unseen) for paths in (before, after, others))
    for what, *numbers in zip(("values", "changes"), first, last, floor, strict=True):
        print("Wasserstein distance of {}: before {:.4f}, after {:.4f}; of other data {:.4f}".format(what, *numbers))
    path = arguments.out / "sde_gan.png"
    draw(path, before, after, unseen, found, last, floor)
    print(f"loss from {sum(first):.3g} to {sum(last):.3g}; picture: {path}")


if __name__ == "__main__":
    main()
