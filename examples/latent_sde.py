"""Infer the hidden path behind noisy measurements: a latent SDE.

A prior SDE says how a hidden state moves. Given a series of measurements, the posterior is an SDE with the same
diffusion g and another drift, h + g u, where h is the drift of the prior and u a network, the control, which sees what
a recurrent network has read of the measurements that are still to come. By Girsanov's theorem the divergence of the
posterior from the prior is the expectation of the integral of |u|^2 / 2, which `logqp=True` computes along the paths.
Prior, control and measurement are trained together: they make the lower bound of the evidence (ELBO) large. Li, Wong,
Chen and Duvenaud, "Scalable gradients for stochastic differential equations", AISTATS (2020).

There are two sets of data. `--data series` is one path of an Ornstein-Uhlenbeck process, measured at irregular times.
There the exact posterior is known, that of a Gaussian process, and the ELBO can at best reach the exact evidence.
`--data lorenz` are many paths of a stochastic Lorenz system, of which the prior, too, is learned by networks. Its
diffusion may be of any kind: the control moves the state only where the noise does, so the divergence is always finite.

    python examples/latent_sde.py                                 # a minute and a half
    python examples/latent_sde.py --data lorenz                   # the same
    python examples/latent_sde.py --data lorenz --noise general   # or scalar, or additive
    python examples/latent_sde.py --quick                         # seconds, to see that it runs
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from torchivp import SDEIto, sdeint

BLUE, ORANGE, GREEN, INK, GREY = "#0072B2", "#D55E00", "#009E73", "#222222", "#8A8A8A"

POSTERIOR = {"drift_and_diffusion": "steered", "prior_drift": "prior_drift"}
PRIOR = {"drift": "prior_drift", "diffusion": "diffusion"}


def network(inputs, hidden, outputs):
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, outputs)
    )


class LatentSDE(SDEIto):
    """Prior, posterior and measurement, for series that are measured at the same times.

    A subclass defines the prior: `prior_drift`, `diffusion`, `first_state` and `measurement`.

    Args:
        noise_type: the kind of diffusion.
        latent: the size of the hidden state.
        noises: the number of noises.
        observed: how many numbers are measured at each of the times.
        times: the times, increasing.
        dt: the size of a step.
    """

    def __init__(self, noise_type, latent, noises, observed, times, dt, hidden=64, context=32):
        super().__init__(noise_type)
        self.times, self.dt = times, dt
        self.encoder = nn.GRU(observed + 1, context)
        self.to_first = nn.Linear(context + observed, 2 * latent)
        self.control = network(latent + context + observed + 1, hidden, noises)
        nn.init.zeros_(self.control[-1].weight)  # at first the posterior is the prior
        nn.init.zeros_(self.control[-1].bias)

    def encode(self, series):
        """Of each measurement, what the encoder makes of it and those after it, and itself."""
        wait = self.times.diff(append=self.times[-1:])[:, None, None].expand(-1, series.shape[1], 1)
        states, _ = self.encoder(torch.cat([series, wait], dim=2).flip(0))
        return torch.cat([states.flip(0), series], dim=2)

    def steered(self, t, z, context):
        """Drift and diffusion of the posterior."""
        prior, g = self.prior_drift(t, z), self.diffusion(t, z)
        coming = int(torch.searchsorted(self.times, t, right=True))
        if coming == len(self.times):  # nothing is to come: the prior it is
            return prior, g
        wait = (self.times[coming] - t).expand(len(z), 1)
        u = self.control(torch.cat([z, context[coming], wait], dim=1))
        return prior + (g * u if self.noise_type == "diagonal" else (g @ u[:, :, None])[:, :, 0]), g

    def posterior(self, series, ts):
        """Paths given the series, one for each, [len(ts), batch, latent], and the divergence from the prior."""
        context = self.encode(series)
        mean, log_scale = self.to_first(context[0]).chunk(2, dim=1)
        first = Normal(mean, log_scale.exp())
        z, divergence = sdeint(
            self, first.rsample(), ts, method="euler", dt=self.dt, names=POSTERIOR, logqp=True, args=(context,)
        )
        return z, kl_divergence(first, self.first_state()).sum(dim=1) + divergence.sum(dim=0)

    def prior(self, count, ts):
        """Paths of the prior, [len(ts), count, latent]."""
        z0 = self.first_state().sample((count,))
        return sdeint(self, z0, ts, method="euler", dt=self.dt, names=PRIOR)

    def elbo(self, series, weight=1.0):
        """A lower bound of the logarithm of the evidence of each series; the weight is that of the divergence."""
        z, divergence = self.posterior(series, torch.cat([torch.zeros(1), self.times]))
        return self.measurement(z[1:]).log_prob(series).sum(dim=(0, 2)) - weight * divergence


class OrnsteinUhlenbeck(LatentSDE):
    """Of one number, dz = rate (mean - z) dt + scale dW; measured with noise. All parameters are learned."""

    def __init__(self, times, dt):
        super().__init__("diagonal", 1, 1, 1, times, dt)
        self.log_rate = nn.Parameter(torch.tensor(0.0))
        self.mean = nn.Parameter(torch.tensor(0.0))
        self.log_scale = nn.Parameter(torch.tensor(0.0))
        self.log_noise = nn.Parameter(torch.tensor(-1.0))

    def prior_drift(self, t, z, *context):
        return self.log_rate.exp() * (self.mean - z)

    def diffusion(self, t, z, *context):
        return self.log_scale.exp().expand_as(z)

    def first_state(self):
        return Normal(self.mean[None], (self.log_scale - 0.5 * (2.0 * self.log_rate.exp()).log()).exp()[None])

    def measurement(self, z):
        return Normal(z, self.log_noise.exp())

    def covariance(self, s, t):
        """Of the prior's states at the times s with those at t."""
        rate, scale = self.log_rate.exp(), self.log_scale.exp()
        return scale**2 / (2.0 * rate) * torch.exp(-rate * (s[:, None] - t).abs())

    def exact(self, series, ts):
        """The evidence's logarithm in closed form; mean and standard deviation of the posterior at the times ts."""
        noisy = self.covariance(self.times, self.times) + self.log_noise.exp() ** 2 * torch.eye(len(self.times))
        measured = MultivariateNormal(self.mean.expand(len(self.times)), noisy)
        gain = torch.linalg.solve(noisy, self.covariance(self.times, ts)).T
        mean = self.mean + gain @ (series - self.mean)
        variance = self.covariance(ts, ts).diagonal() - (gain * self.covariance(ts, self.times)).sum(dim=1)
        return measured.log_prob(series), mean, variance.sqrt()


class NeuralPrior(LatentSDE):
    """A prior made of networks, with a diffusion of any kind, measured through a network."""

    def __init__(self, noise_type, times, dt, observed, latent=4, noises=3, hidden=64):
        count = {"diagonal": latent, "scalar": 1}.get(noise_type, noises)
        super().__init__(noise_type, latent, count, observed, times, dt, hidden)
        self.shape = (latent, count)
        self.drift = network(latent, hidden, latent)
        if noise_type == "diagonal":  # each element's diffusion is a function of this element alone
            self.inner = nn.Parameter(torch.randn(2, latent, 8))
            self.outer = nn.Parameter(0.1 * torch.randn(latent, 8))
            self.level = nn.Parameter(torch.full((latent,), -1.0))
        elif noise_type == "additive":
            self.matrix = nn.Parameter(0.3 * torch.randn(latent, count))
        else:
            self.matrix = network(latent, hidden, latent * count)
        self.first_mean = nn.Parameter(torch.zeros(latent))
        self.first_log_scale = nn.Parameter(torch.zeros(latent))
        self.decoder = network(latent, hidden, observed)
        self.log_noise = nn.Parameter(torch.full((observed,), -1.0))

    def prior_drift(self, t, z, *context):
        return self.drift(z)

    def diffusion(self, t, z, *context):
        if self.noise_type == "diagonal":
            slope, shift = self.inner
            return ((torch.tanh(z[:, :, None] * slope + shift) * self.outer).sum(dim=2) + self.level).exp()
        if self.noise_type == "additive":
            return self.matrix.expand(len(z), *self.shape)
        return self.matrix(z).reshape(len(z), *self.shape)

    def first_state(self):
        return Normal(self.first_mean, self.first_log_scale.exp())

    def measurement(self, z):
        return Normal(self.decoder(z), self.log_noise.exp())


class StochasticOU(SDEIto):
    """The truth behind `--data series`."""

    rate, mean, scale, noise = 1.0, 0.5, 1.0, 0.2

    def __init__(self):
        super().__init__("additive")

    def f(self, t, y):
        return self.rate * (self.mean - y)

    def g(self, t, y):
        return torch.full((len(y), 1, 1), self.scale)


class StochasticLorenz(SDEIto):
    """The truth behind `--data lorenz`."""

    def __init__(self):
        super().__init__("diagonal")

    def f(self, t, y):
        a, b, c = y.unbind(1)
        return torch.stack([10.0 * (b - a), a * (28.0 - c) - b, a * b - 8.0 / 3.0 * c], dim=1)

    def g(self, t, y):
        return y * torch.tensor([0.1, 0.28, 0.3])


def train(model, series, iterations, batch, rate, warm=0.3):
    """Make the ELBO large; returns it as it was on the way, divided by the number of measured numbers."""
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=iterations, pct_start=0.1)
    numbers = series.shape[0] * series.shape[2]
    found = []
    for i in range(iterations):
        chosen = torch.randint(series.shape[1], (batch,))
        weight = min(1.0, 0.1 + i / (warm * iterations)) if warm else 1.0
        loss = -model.elbo(series[:, chosen], weight).mean() / numbers
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        found.append(-loss.item())
        if i % 100 == 0:
            print(f"iteration {i:5d}   ELBO per number {found[-1]:8.4f}")
    return found


@torch.no_grad()
def mean_elbo(model, series, repeats=1):
    """The ELBO of a series, on average."""
    return model.elbo(series.repeat(1, repeats, 1)).mean().item()


def band(axes, t, paths, color, name):
    """Where nine tenths, and half, of the paths run."""
    for low, alpha, label in ((0.05, 0.22, f"{name}: 90% and 50%"), (0.25, 0.35, None)):
        lower, upper = paths.quantile(torch.tensor([low, 1.0 - low]), dim=1)
        axes.fill_between(t, lower, upper, color=color, alpha=alpha, lw=0, label=label)


# One series.

END = 6.0
MEASURED = ((1.0, 2.7, 36), (3.7, 5.0, 28))  # two stretches: from, to and how often


def one_series():
    """The hidden path at fine times, the irregular times of measurements, and these, [times, 1, 1]."""
    generator = torch.Generator().manual_seed(7)
    times = [a + (b - a) * torch.rand(count, generator=generator) for a, b, count in MEASURED]
    times = torch.cat(times).sort().values
    fine = torch.linspace(0.0, END, 401)
    both = torch.cat([fine, times]).unique()
    truth = StochasticOU()
    path = sdeint(truth, torch.tensor([[1.0]]), both, dt=0.01, generator=generator)[:, 0, 0]
    noise = torch.randn(len(times), generator=generator)
    measured = path[torch.searchsorted(both, times)] + truth.noise * noise
    return both, path, times, measured[:, None, None]


def series(out, quick):
    ts, path, times, measured = one_series()
    model = OrnsteinUhlenbeck(times, dt=0.1 if quick else 0.025)
    before = mean_elbo(model, measured, 64)
    found = train(model, measured, iterations=12 if quick else 800, batch=32, rate=3e-2 if quick else 1e-2, warm=0.0)
    after = mean_elbo(model, measured, 64 if quick else 4096)
    with torch.no_grad():
        evidence, _, _ = model.exact(measured[:, 0, 0], ts)
    for name, value in (("rate", model.log_rate.exp()), ("mean", model.mean), ("scale", model.log_scale.exp()),
                        ("noise", model.log_noise.exp())):  # fmt: skip
        print(f"{name:>6}: learned {value.item():6.3f}, in truth {getattr(StochasticOU, name):6.3f}")
    print(f"ELBO before {before:.2f}, after {after:.2f}; exact evidence of the learned prior {evidence.item():.2f}")
    draw_series(out, model, ts, path, measured, [elbo * len(times) for elbo in found], 100 if quick else 2000)
    return before, after


@torch.no_grad()
def draw_series(out, model, ts, path, measured, found, count):
    evidence, mean, deviation = model.exact(measured[:, 0, 0], ts)
    z, _ = model.posterior(measured.expand(-1, count, -1), ts)
    z, prior = z[:, :, 0], model.prior(count, ts)[:, :, 0]

    figure = Figure(figsize=(12, 7.2), dpi=150, layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.25, 1])
    axes = top.subplots()
    band(axes, ts, z, BLUE, "posterior")
    axes.plot(ts, z[:, :3], color=BLUE, lw=0.7, alpha=0.8)
    axes.plot([], [], color=BLUE, lw=0.9, label="paths of the posterior")
    for sign in (-1.645, 1.645):
        axes.plot(ts, mean + sign * deviation, color=INK, lw=1.0, ls=(0, (4, 2)), label="exact 90%" if sign > 0 else "")
    axes.plot(ts, path, color=ORANGE, lw=1.1, label="the hidden path")
    axes.plot(model.times, measured[:, 0, 0], "o", ms=4.5, mfc="white", mec=INK, mew=1.2, zorder=4, label="measured")
    axes.set(xlim=(0, END), xlabel="time")
    axes.set_title("Posterior of the hidden path", fontweight="bold", fontsize=11)
    axes.legend(frameon=False, ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.13), fontsize=9)

    left, right = bottom.subplots(1, 2, width_ratios=[1.5, 1])
    band(left, ts, prior, GREEN, "prior")
    left.plot(ts, prior[:, :4], color=GREEN, lw=0.8)
    left.set(xlim=(0, END), ylim=axes.get_ylim(), xlabel="time")
    left.set_title("Paths of the learned prior", fontweight="bold", fontsize=11)
    right.plot(found, color=BLUE, lw=0.7)
    right.axhline(evidence, color=INK, lw=1.0, ls=(0, (4, 2)), label="exact evidence of the learned prior")
    right.set(xlabel="iteration", ylim=(min(found[-1], evidence.item()) - 60.0, evidence.item() + 10.0))
    right.set_title("ELBO", fontweight="bold", fontsize=11)
    right.legend(frameon=False, loc="lower right", fontsize=9)
    for each in (axes, left, right):
        each.spines[["top", "right"]].set_visible(False)
    figure.savefig(out)


# Paths of a stochastic Lorenz system.

STEP, COUNT, LATER = 0.04, 40, 25  # between measurements; how many there are, and how many more to foresee
LORENZ_NOISE = 0.05  # of the standard deviation of the paths


def lorenz_series(count, more=0):
    """Noisy series on the attractor, scaled to deviate by about one from zero: [COUNT + more, count, 3]."""
    burn = 3.0
    ts = torch.cat([torch.zeros(1), burn + STEP * torch.arange(COUNT + more)])
    y0 = torch.randn(count, 3) * 5.0 + torch.tensor([0.0, 0.0, 25.0])
    paths = sdeint(StochasticLorenz(), y0, ts, method="milstein", dt=0.01)[1:]
    paths = (paths - torch.tensor([0.0, 0.0, 23.0])) / torch.tensor([8.0, 9.0, 9.0])
    return paths + LORENZ_NOISE * torch.randn_like(paths)


def lorenz(out, quick, noise):
    measured = lorenz_series(64 if quick else 1024)
    unseen, later = lorenz_series(16 if quick else 256, LATER).split((COUNT, LATER))
    model = NeuralPrior(noise, STEP * torch.arange(1, COUNT + 1), STEP, observed=3)
    before = mean_elbo(model, unseen)
    found = train(model, measured, iterations=20 if quick else 2000, batch=32 if quick else 64, rate=1e-2)
    after = mean_elbo(model, unseen)
    print(f"ELBO of series that were not trained on: before {before:.1f}, after {after:.1f}")
    draw_lorenz(out, model, unseen, later, found)
    return before, after


@torch.no_grad()
def draw_lorenz(out, model, unseen, later, found):
    ts = torch.cat([torch.zeros(1), model.times])
    figure = Figure(figsize=(12.5, 8), dpi=150, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.25])
    planes = left.subplots(2, 1, sharex=True, sharey=True)
    made = model.measurement(model.prior(60, ts))
    for axes, paths, color, title in (
        (planes[0], unseen[:, :60], ORANGE, "Measured series"),
        (planes[1], made.mean[1:], BLUE, "Series from the learned prior"),
    ):
        axes.plot(paths[:, :, 0], paths[:, :, 2], color=color, lw=0.7, alpha=0.7)
        axes.set(ylabel="third number")
        axes.set_title(title, fontweight="bold", fontsize=11)
    planes[1].set(xlabel="first number")

    rows = right.subplots(4, 1, height_ratios=[1, 1, 1, 1])
    t = STEP * torch.arange(COUNT + LATER + 1)
    z, _ = model.posterior(unseen[:, :1].expand(-1, 500, -1), t)
    decoded = model.measurement(z).mean
    for i, axes in enumerate(rows[:3]):
        band(axes, t, decoded[:, :, i], BLUE, "posterior")
        axes.plot(model.times, unseen[:, 0, i], "o", ms=3, mfc="white", mec=INK, mew=0.9, label="measured")
        axes.plot(t[COUNT + 1 :], later[:, 0, i], "o", ms=3, mfc="white", mec=ORANGE, mew=0.9, label="measured later")
        axes.set(ylabel=("first", "second", "third")[i] + " number", xlim=(0, t[-1]))
        axes.axvline(model.times[-1], color=GREY, lw=0.8, ls=(0, (2, 2)))
    rows[0].set_title("A series that was not trained on, and what may follow", fontweight="bold", fontsize=11, pad=22)
    rows[0].legend(frameon=False, fontsize=9, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 0.98))
    rows[2].set(xlabel="time")
    rows[3].plot(found, color=BLUE, lw=0.7)
    rows[3].set(xlabel="iteration", ylabel="ELBO per number", ylim=(max(min(found), -2.5), None))
    for axes in (*planes, *rows):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("series", "lorenz"), default="series", help="what to learn from")
    parser.add_argument(
        "--noise",
        choices=("diagonal", "scalar", "additive", "general"),
        default="diagonal",
        help="the kind of diffusion, of --data lorenz",
    )
    parser.add_argument("--quick", action="store_true", help="a short training, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("."), help="the folder for the picture")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(0)
    path = arguments.out / "latent_sde.png"
    if arguments.data == "series":
        before, after = series(path, arguments.quick)
    else:
        before, after = lorenz(path, arguments.quick, arguments.noise)
    print(f"loss from {-before:.4g} to {-after:.4g}; picture: {path}")


if __name__ == "__main__":
    main()
