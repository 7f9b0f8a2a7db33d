"""What the filter of a stochastic model cannot do, refused at the door."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

from torchivp.models import StochasticModel


def check_stochastic(
    model: StochasticModel, *, schedule: Any, doses: Any, starts: int | None, random: Collection[str]
) -> None:
    """Refuse what the filter of a stochastic model cannot do, and a diffusion of the wrong shape."""
    name, n = type(model).__name__, len(model.states)
    if schedule is not None or doses is not None:
        raise ValueError(
            f"{name} is a stochastic model, and what {'doses' if doses is not None else 'schedule'} changes of the "
            "state at known times would change its covariance too, which is not solved: make it part of the right-hand "
            "side, such as an infusion with jump_times"
        )
    if starts is not None:
        raise ValueError(
            f"{name} is a stochastic model, whose search has one start, since what is expected of each observation "
            "follows the ones before: give start={name: value, ...} instead of starts"
        )
    if random:
        raise ValueError(
            f"{name} is a stochastic model, whose trajectories share their parameters: leave out random, or give each "
            "a value of its own by by={name: column}"
        )
    if tensors := [each for each, parameter in model.named_parameters() if parameter.ndim]:
        raise ValueError(
            f"{name} is a stochastic model, whose parameters are single numbers, and {tensors[0]} is a tensor: make "
            "each number a parameter of its own"
        )
    with torch.no_grad():
        shape = tuple(model.diffusion(torch.tensor(0.0, dtype=torch.float64), model.initial_state()).shape)
        covariance = tuple(model.initial_covariance().shape)
    fits = shape == (n,) if model.noise_type == "diagonal" else len(shape) == 2 and shape[0] == n
    if not fits:
        wanted = f"({n},), one number for each state" if model.noise_type == "diagonal" else f"({n}, number of noises)"
        raise ValueError(
            f"{name}.noise_type is {model.noise_type!r}, so that its diffusion of one state has the shape {wanted}, "
            f"got {shape}: return another, or set noise_type"
        )
    if covariance != (n, n):
        raise ValueError(f"{name}.initial_covariance must return the shape ({n}, {n}), got {covariance}")
