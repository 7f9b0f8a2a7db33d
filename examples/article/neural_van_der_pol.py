"""A neural field learns the oscillator of van der Pol from thirty noisy series, by multiple shooting.

python examples/article/neural_van_der_pol.py            # a minute
python examples/article/neural_van_der_pol.py --quick    # seconds, to see that it runs
"""

import copy
import time
from itertools import pairwise

import torch
from article import SEED, arguments, draw, in_single_precision, run_loops
from torch import nn
from van_der_pol import VanDerPol

from torchivp import odeint, train
from torchivp.data import SimulatedTrajectories, collate
from torchivp.nn import NeuralODE
from torchivp.training import Video

STAGES = ((5, 300, 1e-2), (10, 200, 3e-3), (25, 100, 3e-3))
"""The length of the segments, the number of epochs, and the learning rate."""
STEP_SIZE = 0.101
"""A third of the time between two observations."""


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        sizes = (2, 8, 16, 32)
        hidden = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.LeakyReLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(32, 2))

    def forward(self, t, state):
        return self.layers(state)


def whole_loss(field, data):
    """The mean square error of the whole trajectories, all of them."""
    t, y, y0 = collate([data[i] for i in range(len(data))])
    with torch.no_grad():
        predicted = odeint(field, y0, t, method="rk4", options={"step_size": STEP_SIZE})
    return nn.functional.mse_loss(predicted.transpose(0, 1), y).item()


def main():
    chosen = arguments(__doc__)
    t, y0 = torch.linspace(0, 30, 100, dtype=torch.float64), torch.tensor([0.5, 0.1], dtype=torch.float64)
    data = in_single_precision(
        SimulatedTrajectories(
            VanDerPol(0.2), t, y0, n=30, spread=0.1, noise=0.1, seed=SEED, names=["x", "y"], method="dopri8", rtol=1e-10
        )
    )
    torch.manual_seed(SEED)
    start = Field()
    epochs = 1 if chosen.quick else 2
    print(f"{epochs} of the article's 1500 epochs:")
    run_loops(start, data, epochs=epochs, lr=1e-3, batch_size=5, step_size=0.1)

    layer = NeuralODE(copy.deepcopy(start), output="trajectory", method="rk4", step_size=STEP_SIZE)
    first, began = whole_loss(start, data), time.process_time()
    for number, (length, epochs, lr) in enumerate(STAGES):
        epochs = 2 if chosen.quick else epochs
        video = Video(chosen.out / "neural_van_der_pol.gif", every=max(1, epochs // 30), fps=8)
        train(layer, data, epochs=epochs, lr=lr, shooting=length, record=video if number == 0 else None)
        seconds = time.process_time() - began
        print(f"segments of {length:2} observations, {epochs} epochs: ", end="")
        print(f"loss of the whole trajectories {whole_loss(layer.field, data):.4f}; {seconds:.1f} s so far")
    print(f"multiple shooting: loss from {first:.4g} to {whole_loss(layer.field, data):.4g}; {seconds:.1f} s")
    rows = {"Before": [("start", start)], "After": [("learned", layer.field)]}
    draw(chosen.out / "neural_van_der_pol.png", data[0], data.names, rows)


if __name__ == "__main__":
    main()
