"""Why a row of a kernel did not reach its end, as the step loop would say it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from torchivp.error_norm import ErrorNorm
from torchivp.failures import Failures
from torchivp.fused.outcomes import Outcomes
from torchivp.methods.method import Method
from torchivp.problem import Problem
from torchivp.solution import Status
from torchivp.stepsize.pid import PIDController

_ENDINGS = dict(
    enumerate(("success", "out_of_steps", "no_progress", "not_finite", "error_not_finite", "underflow", "tolerance"), 1)
)
"""How rows end, as the kernel numbers it."""


def failure_of(
    outcomes: Outcomes,
    row: int,
    y: Tensor,
    problem: Problem,
    norm: ErrorNorm,
    method: type[Method],
    controller: PIDController | None,
    max_steps: int,
    describe: Callable[[int], str],
) -> Status:
    """Why a row failed.

    Args:
        outcomes: how the rows ended.
        row: the number of one that did not reach its end.
        y: its last state, [1, size].
        problem: the problem of this row.
        norm: the norm of its error.
        method: the method.
        controller: what sizes the steps; None for fixed ones.
        max_steps: the largest number of step attempts.
        describe: names an element of the state.
    """
    (code, accepted, rejected, *_), (t, taken, _, error) = outcomes.of(row)
    failures, ending = Failures(problem, norm, describe, controller is not None), _ENDINGS[code]
    if ending == "out_of_steps":
        counts = f"{accepted} accepted, {rejected} rejected"
        return failures.out_of_steps(t, taken, max_steps, counts, False)
    if ending == "no_progress":
        return failures.no_progress(t, taken)
    if ending == "not_finite":
        return failures.non_finite(t, y, taken)
    with torch.no_grad():
        t1 = t + math.copysign(taken, problem.times.end - t)
        step = method(y, problem.real_dtype, norm).step(problem.func, t, t1, y, None)
    if ending == "error_not_finite":
        return failures.norm_undefined(t, step, error)
    if ending == "underflow":
        return failures.underflow(t, step, error, taken)
    assert controller is not None
    return failures.tolerance_not_met(t, step, error, controller.min_step)
