"""Solves through which a gradient goes backwards: for many parameters, where tangents of each would cost too much."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from torchivp.api.ivp import solve_ivp
from torchivp.fitting.data import Dataset
from torchivp.fitting.parameters import ParameterLayout
from torchivp.fitting.solving.inputs import Inputs, changed_state
from torchivp.fitting.solving.step_loop import clamped
from torchivp.fitting.solving.stretches import Accuracy
from torchivp.models.model import Model
from torchivp.solution import SolveError


def states_backwards(
    model: Model, data: Dataset, inputs: Inputs, own: Tensor, times: Sequence[Sequence[float]], accuracy: Accuracy
) -> Tensor:
    """The states of all trajectories at their times, [n_trajectories, T, n_states], which autograd can follow.

    The steps are replayed from checkpoints on the way back, so that memory grows with the root of their number. After
    its last time, a trajectory stays at its last state.

    Args:
        model: in float64; with infusions, the rates are its last parameters.
        data: the trajectories.
        inputs: what acts on them.
        own: the locals of each trajectory, the parameters of the model first and its states last.
        times: of each trajectory, increasing.
        accuracy: how to solve.

    Raises:
        SolveError: a trajectory cannot be solved.
    """
    layout, n = ParameterLayout.of(model), len(model.states)
    count = layout.count - len(inputs.infused)
    paths = [
        _path(model, layout, inputs, series.name, float(series.t[0]), row[:count], row[-n:], t, accuracy)
        for series, row, t in zip(data.trajectories, own, times, strict=True)
    ]
    longest = max(map(len, paths))
    return torch.stack([torch.stack([*path, *[path[-1]] * (longest - len(path))]) for path in paths])


def _path(
    model: Model,
    layout: ParameterLayout,
    inputs: Inputs,
    name: str,
    start: float,
    parameters: Tensor,
    y: Tensor,
    times: Sequence[float],
    accuracy: Accuracy,
) -> list[Tensor]:
    """The states of a trajectory at its times."""

    def derivative(t: Tensor, state: Tensor, values: Tensor) -> Tensor:
        return functional_call(model, layout.named(values), (t, state))

    found: list[Tensor] = []
    pieces = inputs.pieces(name, start, times[-1], times)
    for piece in pieces:
        y = changed_state(piece.changes, y)
        if piece.start < piece.end:
            inner = [t for t in piece.outputs or [] if t < piece.end]
            rates = parameters.new_tensor([piece.rates.get(k, 0.0) for k in inputs.infused])
            solution = solve_ivp(
                clamped(derivative, piece.start, piece.end) if len(pieces) > 1 else derivative,
                (piece.start, piece.end),
                y,
                t_eval=[*inner, piece.end],
                args=(torch.cat([parameters, rates]),),
                gradient="checkpointed",
                throw=False,
                **accuracy.options(),
            )
            if not solution.status.ok:
                raise SolveError(solution.status)
            found += solution.y[:-1].unbind()
            y = solution.y[-1]
        y = changed_state(piece.last, y)
        if piece.outputs and piece.outputs[-1] == piece.end:
            found.append(y)
    return found
