"""Fit predators and prey whose births and deaths are random to counts that are a little wrong.

The rates of Lotka's and Volterra's equations fluctuate like noise. The logarithms of the numbers then follow

    d log prey     = (alpha - beta predator - wobble²/2) dt + wobble dW1,
    d log predator = (delta prey - gamma - wobble²/2) dt + wobble dW2,

and a path soon is out of step with the one without noise. The likelihood of what is measured is found by a filter that
follows the data from one to the next, so that `fit` tells the noise of the populations from the errors of the counts.

    python examples/stochastic_predator_prey.py
    python examples/stochastic_predator_prey.py --quick    # a shorter series
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from torchivp import fit, sdeint
from torchivp.models import StochasticModel

TRUTH = {"alpha": 1.5, "beta": 1.0, "gamma": 1.5, "delta": 1.0, "wobble": 0.15}
GUESS = {"alpha": 1.0, "beta": 1.0, "gamma": 1.0, "delta": 1.0, "wobble": 0.3}
ERROR = 0.1  # of a counted number, relative
INTERVAL = 0.25  # between counts
BLUE, ORANGE, INK, GREY = "#0072B2", "#D55E00", "#222222", "#8A8A8A"


class PredatorPrey(StochasticModel):
    """The logarithms of prey and predators, as Itô's formula has them."""

    states = {"log_prey": "logarithm of the prey", "log_predator": "logarithm of the predators"}  # noqa: RUF012
    default_state = (0.0, 0.0)

    def __init__(self, alpha, beta, gamma, delta, wobble):
        super().__init__(alpha=alpha, beta=beta, gamma=gamma, delta=delta, wobble=wobble)

    def forward(self, t, y):
        prey, predator = y.exp().unbind(-1)
        drift = torch.stack([self.alpha - self.beta * predator, self.delta * prey - self.gamma], -1)
        return drift - self.wobble**2 / 2

    def diffusion(self, t, y):
        return self.wobble.expand_as(y)


def simulate(counts, seed=1):
    """A path of the populations and the counts of it, each [counts, 2], and their times."""
    t = INTERVAL * torch.arange(counts, dtype=torch.float64)
    torch.manual_seed(seed)
    names = {"drift": "forward", "diffusion": "diffusion"}
    with torch.no_grad():
        start = torch.tensor([[0.3, -0.3]], dtype=torch.float64)
        path = sdeint(PredatorPrey(**TRUTH), start, t, dt=INTERVAL / 25, method="srk", names=names)[:, 0]
    return t.numpy(), path.numpy(), (path + ERROR * torch.randn_like(path)).numpy()


def draw(picture, result, t, path, counted):
    """What was counted, the path behind it, and what the fit makes of both."""
    figure = Figure(figsize=(9, 6), dpi=150, layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    fine = np.linspace(t[0], t[-1] + 3.0, 4 * len(t))
    curves = result.predict(fine)
    bands = result.band(fine)
    for k, (panel, name, colour) in enumerate(zip(panels, ("prey", "predators"), (BLUE, ORANGE), strict=True)):
        lower, upper = (np.exp(edge[:, k]) for edge in bands)
        panel.fill_between(fine, lower, upper, color=colour, alpha=0.2, lw=0, label="95 % band")
        panel.semilogy(fine, np.exp(curves[:, k]), color=colour, lw=1.6, label="expected, given the counts so far")
        panel.semilogy(t, np.exp(path[:, k]), color=GREY, lw=1.1, ls="--", label="simulated")
        panel.semilogy(t, np.exp(counted[:, k]), "o", ms=3.5, color=INK, label="counted")
        panel.set(ylabel=name, yticks=[0.25, 0.5, 1, 2, 4], yticklabels=["0.25", "0.5", "1", "2", "4"])
        panel.minorticks_off()
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.18), fontsize=9)
    panels[1].set(xlabel="time")
    figure.savefig(picture)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a shorter series")
    parser.add_argument("--out", type=Path, default=Path("."), help="the folder for the picture")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    t, path, counted = simulate(counts=40 if arguments.quick else 200)
    data = {"time": t, "log_prey": counted[:, 0], "log_predator": counted[:, 1]}
    result = fit(PredatorPrey(**GUESS), data, sigma="shared")
    names = {**TRUTH, "sigma(log_prey, log_predator)": ERROR}
    for name, truth in names.items():
        print(f"{name}: {result[name].value:.3f} ± {result[name].standard_error:.3f}, in truth {truth}")
    picture = arguments.out / "stochastic_predator_prey.png"
    draw(picture, result, t, path, counted)
    print(f"negative log-likelihood {result.nll:.4g}; {result.verdict.sentence} Picture: {picture}")
    off = [
        abs(result[name].scale_error) ** -1 * abs(np.log(result[name].value / truth)) for name, truth in names.items()
    ]
    if not result.converged or max(off) > 4:
        raise SystemExit("the fit is wrong")


if __name__ == "__main__":
    main()
