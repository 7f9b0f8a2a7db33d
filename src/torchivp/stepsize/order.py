"""The size of the next step, and the order that a method of varying order takes it with."""

from __future__ import annotations

import math

from torchivp.error_norm import ErrorNorm
from torchivp.methods.method import Method, Step
from torchivp.stepsize.pid import Decision, History, PIDController


def size_next_step(
    controller: PIDController,
    method: Method,
    norm: ErrorNorm,
    step: Step,
    error: float,
    taken: float,
    proposed: float,
    history: History,
) -> Decision:
    """Judge the step and size the next one; a method of varying order goes on at the order of the longest step.

    The step's size is `taken`; it was `proposed` before the step was fitted to a required time. Where the order
    changes, so do the step's `carry` and `retry`.
    """
    order = method.error_order if step.order is None else step.order
    assert order is not None
    decision = controller.adapt(error, taken, proposed, history, order)
    if decision.h > step.growth * taken or step.failure is not None:
        decision = decision._replace(h=max(step.growth * taken, controller.min_step))
    if not step.others:
        return decision
    best, best_order = decision, order
    for other, estimate in step.others:
        size = norm(estimate, step.y0, step.y1)
        candidate = controller.adapt(size, taken, proposed, history, other)
        if candidate.h > best.h:
            best, best_order = candidate, other
    if best_order != order:
        step.carry = method.at_order(step.carry, best_order)
        step.retry = method.at_order(step.retry, best_order)
    # Whatever another order promises, a step that is tried again must be shorter.
    longest = math.inf if decision.accept else controller.safety * taken
    return Decision(decision.accept, min(best.h, longest), best.history._replace(rejected=not decision.accept))
