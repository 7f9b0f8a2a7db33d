"""A problem of one row, stated as a batch of one is."""

from __future__ import annotations

import numpy as np
import torch

from torchivp.integrate import Integration
from torchivp.problem import FlatFunction
from torchivp.rows.function import RowArguments, RowFunction
from torchivp.rows.integration import RowIntegration
from torchivp.rows.problem import RowProblem
from torchivp.rows.times import MovingTimes, RowTimes
from torchivp.times import Times


def as_rows(integration: Integration) -> RowProblem:
    """The problem of an integration that the user stated."""
    problem = integration.problem
    func = problem.func
    assert isinstance(func, FlatFunction)
    times = problem.times
    outputs = None if times.outputs is None else np.array([times.outputs], dtype=np.float64).reshape(1, -1)
    filler = problem.time(times.start).reshape(1, 1), problem.y0.detach()
    args = RowArguments(func.args, func.layout)
    function = RowFunction(func.call, func.layout, args, func.derivative, filler)
    function.jac = func.jac and RowFunction(func.jac, func.layout, args, func.checked_jacobian, filler)
    function.sparsity, function.projection = func.sparsity, func.projection
    return RowProblem(
        function,
        problem.y0,
        RowTimes(np.array([times.start]), np.array([times.end]), outputs),
        [],
        problem.real_dtype,
        stops=integration.stops,
        moving=moving_times(times),
        batched=False,
    )


def moving_times(times: Times) -> MovingTimes:
    """Those of the times of one row that a derivative is wanted by, each an entry of the user's tensor."""
    if times.tensor is None:
        return MovingTimes()
    start, end = (torch.as_tensor(times.at(t)).reshape(1) for t in (times.start, times.end))
    asked = torch.stack([times.given(t) for t in times.outputs]).unsqueeze(0) if times.outputs else None
    return MovingTimes(start, end, asked, times.anchors, tied=True)


def rows_plan(integration: Integration, problem: RowProblem) -> RowIntegration:
    """The same integration, of its `problem` stated as a batch of one is."""
    return RowIntegration(
        problem,
        type(integration.method),
        integration.controller,
        integration.norm,
        integration.max_steps,
        integration.describe,
    )
