"""The oscillator of van der Pol: one parameter from ten short series.

python examples/article/van_der_pol.py            # half a minute
python examples/article/van_der_pol.py --quick    # seconds, to see that it runs
"""

from typing import ClassVar

import torch
from article import SEED, arguments, draw, in_single_precision, record_training, run_fit, run_loops
from torch import Tensor

from torchivp.data import SimulatedTrajectories
from torchivp.models import Model

TRUTH = {"mu": 0.3}


class VanDerPol(Model):
    """In the variables of Liénard: `x' = mu (x - x^3/3 - y)`, `y' = x/mu`."""

    states: ClassVar = {"x": "position", "y": "Liénard's variable"}
    default_state = (0.0, 0.1)
    mu: Tensor

    def __init__(self, mu: float = 1.0):
        super().__init__(mu=mu)

    def forward(self, t, state):
        x, y = state.unbind(-1)
        return torch.stack((self.mu * (x - x**3 / 3 - y), x / self.mu), dim=-1)


def main():
    chosen = arguments(__doc__)
    t, y0 = torch.linspace(0, 10, 10, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    data = SimulatedTrajectories(
        VanDerPol(**TRUTH),
        t,
        y0,
        n=10,
        spread=0.1,
        noise=0.01,
        seed=SEED,
        names=["x", "y"],
        method="dopri8",
        rtol=1e-10,
    )
    single, start = in_single_precision(data), VanDerPol(mu=0.1)
    settings = {"epochs": 3 if chosen.quick else 50, "lr": 1e-2, "batch_size": 5, "step_size": 0.1}
    adam, _ = run_loops(start.float(), single, **settings)
    record_training(chosen.out / "van_der_pol.gif", start.float(), single, **settings)
    result = run_fit(start.double(), data, TRUTH, adam, method="dopri8", rtol=1e-6)
    rows = {"Before": [("start", start)], "After": [("Adam", adam.double()), ("fit", result.model)]}
    draw(chosen.out / "van_der_pol.png", data[0], data.names, rows)


if __name__ == "__main__":
    main()
