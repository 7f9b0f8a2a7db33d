"""States at the ends of a span without batch dimensions, as functions of times that move on their own."""

from __future__ import annotations

import torch
from torch import Tensor

from torchivp.methods.consistent import slopes_of
from torchivp.problem import Problem
from torchivp.times import carried


def at_first_output(states: Tensor, problem: Problem) -> Tensor:
    """The states, the first of them as a function of the time it was asked for, if that equals the start.

    Its value is the initial state. The start and the time asked for are different entries of `times.tensor`.
    """
    times = problem.times
    asked_for = times.tensor is not None and len(times.tensor) > 2
    if times.tensor is None or not asked_for or not times.outputs or times.outputs[0] != times.start:
        return states
    start, asked = times.tensor[0], times.tensor[2]
    states = states.reshape(len(states), problem.y0.shape[1])
    first = carried(slopes_of(problem.func), states[:1], problem.time(start), asked - start)
    return torch.cat([first, states[1:]])


def at_end(final: Tensor, t_final: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
    """The state at the end of the span, [1, size], and its time, 0-d, as functions of the end.

    Where the end was asked for, the output is a function of that entry of `t_eval`, and not of the end.
    """
    times = problem.times
    if times.tensor is None:
        return final, t_final
    motion = times.tensor[1] - times.at(times.end)
    final = carried(slopes_of(problem.func), final, problem.time(times.at(times.end)), motion)
    return final, t_final + motion.to(t_final)
