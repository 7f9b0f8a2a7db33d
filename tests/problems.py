"""Problems with known solutions, and functions that count or fail, for tests of every part."""

import numpy as np
import scipy.integrate
import torch

DETEST = {
    # Hull, Enright, Fellen and Sedgwick, "Comparing numerical methods for ordinary differential equations",
    # SIAM J. Numer. Anal. 9 (1972): one problem of each class.
    "A3 oscillation": (lambda t, y: y * torch.cos(t), [1.0]),
    "B2 linear reaction": (
        lambda t, y: torch.stack((-y[0] + y[1], y[0] - 2 * y[1] + y[2], y[1] - y[2])),
        [2.0, 0.0, 1.0],
    ),
    "C1 radioactive chain": (
        lambda t, y: torch.cat((-y[:1], y[:-2] - y[1:-1], y[-2:-1])),
        [1.0] + [0.0] * 9,
    ),
    "D2 orbit of eccentricity 0.3": (
        lambda t, y: torch.cat((y[2:], -y[:2] / torch.linalg.vector_norm(y[:2]) ** 3)),
        [0.7, 0.0, 0.0, (1.3 / 0.7) ** 0.5],
    ),
    "E2 van der Pol": (lambda t, y: torch.stack((y[1], (1 - y[0] ** 2) * y[1] - y[0])), [2.0, 0.0]),
}


def scipy_solution(func, y0, t):
    """The solution of a real problem at the times `t`, the first of them the start, by SciPy's DOP853."""
    exact = scipy.integrate.solve_ivp(
        lambda t, y: func(torch.tensor(t, dtype=torch.float64), torch.from_numpy(y)).numpy(),
        (float(t[0]), float(t[-1])),
        np.array(y0),
        t_eval=[float(s) for s in t],
        method="DOP853",
        rtol=1e-13,
        atol=1e-14,
    )
    return torch.from_numpy(exact.y.T)


class Counting:
    """A function of `(t, y)` that counts its calls and keeps the times of them."""

    def __init__(self, func):
        self.func = func
        self.times = []

    def __call__(self, t, y):
        self.times.append(float(t))
        return self.func(t, y)


class LotkaVolterra(torch.nn.Module):
    """The textbook system, its four parameters in one tensor."""

    def __init__(self, parameters=(1.5, 1.0, 3.0, 1.0)):
        super().__init__()
        self.parameters_ = torch.nn.Parameter(torch.tensor(parameters, dtype=torch.float64))

    def forward(self, t, y):
        alpha, beta, gamma, delta = self.parameters_.unbind()
        prey, predator = y.unbind(-1)
        return torch.stack((alpha * prey - beta * prey * predator, -gamma * predator + delta * prey * predator), -1)
