"""Trajectories of a known system, with noise, as a dataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from torchivp.checks import check_number, check_whole_number
from torchivp.data.trajectories import TrajectoryDataset
from torchivp.nn.neural_ode import NeuralODE


class SimulatedTrajectories(TrajectoryDataset):
    """Trajectories of a known system from scattered initial states, observed with normal noise.

    Args:
        field: the right-hand side, `field(t, y)` or `field(y)`; it is called with all states at once, [n, *state].
        t: the times at which it is observed, [T], in order. The first is that of the initial states.
        y0: the initial state, [*state], around which the others lie.
        n: the number of trajectories.
        spread: standard deviation of the initial states.
        noise: standard deviation of the observations, the first excepted, which is exact.
        seed: the seed of all that is drawn; None to draw from torch's own generator.
        names: what the states are called, for pictures.
        **options: how to solve: `method`, `rtol`, `atol`, `step_size` and others that `NeuralODE` takes.

    Attributes:
        exact: the trajectories without noise, [n, T, *state].

    Raises:
        SolveError: the system cannot be solved to the last time.
        TypeError, ValueError: an argument does not make sense.
    """

    def __init__(
        self,
        field: Callable[..., Any],
        t: Tensor | Sequence[float],
        y0: Tensor | Sequence[float],
        n: int,
        *,
        spread: float = 0.0,
        noise: float = 0.0,
        seed: int | None = None,
        names: Sequence[str] | None = None,
        **options: Any,
    ):
        y0 = torch.as_tensor(y0).detach()
        if not y0.is_floating_point() or y0.ndim == 0:
            raise ValueError(f"y0 must be a floating point state [n], got {y0.dtype} of shape {tuple(y0.shape)}")
        count = check_whole_number("n", n, 1)
        scales = {"spread": check_number("spread", spread), "noise": check_number("noise", noise)}
        for name, scale in scales.items():
            if scale < 0:
                raise ValueError(f"{name} is a standard deviation and must not be negative, got {scale:g}")
        generator = None if seed is None else torch.Generator(y0.device).manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=y0.dtype, device=y0.device)

        times = torch.as_tensor(t, dtype=y0.dtype, device=y0.device)
        starts = y0 + scales["spread"] * normal(count, *y0.shape)
        with torch.no_grad():
            solve = NeuralODE(field, output="trajectory", **options)
            self.exact = solve(starts, times).transpose(0, 1)
        observed = self.exact + scales["noise"] * normal(*self.exact.shape)
        observed[:, 0] = starts
        super().__init__(times, observed, names=names)
