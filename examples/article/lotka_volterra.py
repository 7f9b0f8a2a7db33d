"""Prey and predators: four parameters from ten noisy series.

python examples/article/lotka_volterra.py            # a minute
python examples/article/lotka_volterra.py --quick    # seconds, to see that it runs
"""

from typing import ClassVar

import torch
from article import SEED, arguments, draw, in_single_precision, record_training, run_fit, run_loops
from torch import Tensor

from torchivp.data import SimulatedTrajectories
from torchivp.models import Model

TRUTH = {"alpha": 1.5, "beta": 1.0, "delta": 3.0, "gamma": 1.0}


class LotkaVolterra(Model):
    """With the article's names: `x' = alpha x - beta x y`, `y' = -delta y + gamma x y`."""

    states: ClassVar = {"x": "prey", "y": "predators"}
    default_state = (2.5, 2.5)
    alpha: Tensor
    beta: Tensor
    delta: Tensor
    gamma: Tensor

    def __init__(self, alpha: float, beta: float, delta: float, gamma: float):
        super().__init__(alpha=alpha, beta=beta, delta=delta, gamma=gamma)

    def forward(self, t, state):
        x, y = state.unbind(-1)
        return torch.stack((self.alpha * x - self.beta * x * y, -self.delta * y + self.gamma * x * y), dim=-1)


def main():
    chosen = arguments(__doc__)
    t, y0 = torch.arange(0, 10, 0.1, dtype=torch.float64), torch.full((2,), 2.5, dtype=torch.float64)
    truth = LotkaVolterra(**TRUTH)
    data = SimulatedTrajectories(
        truth, t, y0, n=10, spread=0.1, noise=0.1, seed=SEED, names=["x", "y"], method="dopri8", rtol=1e-10
    )
    single, start = in_single_precision(data), LotkaVolterra(alpha=1.6, beta=1.1, delta=2.7, gamma=1.2)
    settings = {"epochs": 2 if chosen.quick else 60, "lr": 1e-2, "batch_size": 5, "step_size": 0.1}
    adam, _ = run_loops(start.float(), single, **settings)
    record_training(chosen.out / "lotka_volterra.gif", start.float(), single, **settings)
    result = run_fit(start.double(), data, TRUTH, adam, method="dopri8", rtol=1e-6)
    rows = {"Before": [("start", start)], "After": [("Adam", adam.double()), ("fit", result.model)]}
    draw(chosen.out / "lotka_volterra.png", data[0], data.names, rows)


if __name__ == "__main__":
    main()
