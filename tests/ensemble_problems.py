"""What workers solve in tests: found by import, as the functions of a program are."""

import os
import random
import signal
from pathlib import Path

import numpy as np
import torch

from torchivp import Event, sdeint, solve_ivp
from torchivp.sde.base import SDEIto

T = [0.0, 0.5, 1.0]


def decay(rows):
    """dy/dt = -rate y, whose rows depend on nothing else."""
    rate = torch.as_tensor(rows.inputs)
    return solve_ivp(
        lambda t, y, rate: -rate * y, (0.0, 1.0), torch.ones_like(rate), t_eval=T, args=(rate,), batch_dims=1
    )


def network(rows):
    """A field of matrix products, whose rows are not the same bits beside other rows."""
    torch.manual_seed(1)
    net = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.Tanh(), torch.nn.Linear(32, 4)).double()
    y0 = rows.draw(lambda rng: rng.normal(size=4))
    with torch.no_grad():
        return solve_ivp(lambda t, y: net(y), (0.0, 2.0), y0, t_eval=T, batch_dims=1).y


def drawn(rows):
    """Random numbers from everywhere."""
    by_row = rows.draw(lambda rng: rng.random())
    others = [torch.randn(len(rows)), torch.as_tensor(np.random.rand(len(rows))), torch.rand(len(rows))]
    python = torch.tensor([random.random() for _ in range(len(rows))])
    return {"row": by_row, "others": torch.stack([each.double() for each in [*others, python]], 1)}


class Geometric(SDEIto):
    def __init__(self):
        super().__init__(noise_type="diagonal")

    def f(self, t, y):
        return 0.1 * y

    def g(self, t, y):
        return 0.3 * y


def paths(rows):
    """Of geometric Brownian motion, [rows, T, 1]."""
    y0 = torch.ones(len(rows), 1, dtype=torch.float64)
    options = {"method": "euler", "dt": 0.1, "rng": "counter", "seed": rows.seed, "rows": rows.index}
    return sdeint(Geometric(), y0, torch.tensor(T, dtype=torch.float64), **options).movedim(1, 0)


def falling(rows):
    """Balls that end on the ground, some of them."""
    height = rows.inputs[:, None]
    y0 = torch.cat([height, torch.zeros_like(height)], 1)
    ground = Event(lambda t, y: y[..., 0], terminal=True)
    fall = lambda t, y: torch.stack([y[..., 1], -torch.ones_like(y[..., 1])], -1)
    return solve_ivp(fall, (0.0, 2.0), y0, t_eval=[0.5 * i for i in range(5)], events=ground, batch_dims=1)


def dying(rows, folder):
    """A worker dies of a block, as often as a file in the folder says; all that is begun is written down there."""
    folder = Path(folder)
    with (folder / "begun").open("a") as file:
        file.write(f"{rows.first}\n")
    left = folder / f"die-{rows.first}"
    if left.exists():
        times = int(left.read_text())
        if times:
            left.write_text(str(times - 1))
            os.kill(os.getpid(), signal.SIGKILL)
    return rows.draw(lambda rng: rng.random())


def failing(rows):
    """The second block fails."""
    if rows.first:
        raise ZeroDivisionError("of this row")
    return rows.index


def surroundings(rows):
    """What torch is like where the rows are solved."""
    return torch.tensor([[float(torch.get_num_threads()), torch.ones(1).element_size()]]).expand(len(rows), -1)
