"""The size of the next step, and the order that a method of varying order takes it with."""

from __future__ import annotations

import math

import numpy as np

from torchivp.error_norm import ErrorNorm
from torchivp.methods.method import Method, Step
from torchivp.stepsize.pid import Decision, History, PIDController, RowHistory


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
    assert isinstance(order, int)
    decision = controller.adapt(error, taken, proposed, history, order)
    if step.growth < math.inf and (decision.h > step.growth * taken or step.failure is not None):
        decision = decision._replace(h=max(step.growth * taken, controller.min_step))
    if step.hold and decision.accept:
        return decision._replace(h=taken)
    if not step.others:
        return decision
    best, best_order = decision, order
    for other, estimate in step.others:
        assert isinstance(other, int)
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


def size_next_steps(
    controller: PIDController,
    method: Method,
    norm: ErrorNorm,
    step: Step,
    errors: np.ndarray,
    taken: np.ndarray,
    proposed: np.ndarray,
    history: RowHistory,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`size_next_step` for many rows: which steps to accept, the sizes of the next, and the errors to remember."""
    order = method.error_order if step.order is None else step.order
    assert order is not None
    accept, h = controller.adapt_rows(errors, taken, proposed, history, order)
    if step.growth is not math.inf and np.any(step.growth < math.inf):
        limited = np.maximum(step.growth * taken, controller.min_step)
        h = np.minimum(h, limited)
        if step.failure is not None:
            failed = list(step.failure)
            h[failed] = limited[failed]
    best, best_order, remembered = h, order, errors
    held = step.hold is not False and accept & step.hold
    for other, estimate in step.others:
        offered = (np.asarray(other) > 0) & np.logical_not(held)
        if not offered.any():
            continue
        sizes = norm.rows(estimate, step.y0, step.y1)
        _, candidate = controller.adapt_rows(sizes, taken, proposed, history, np.maximum(other, 1))
        better = offered & (candidate > best)
        best, best_order = np.where(better, candidate, best), np.where(better, other, best_order)
        remembered = np.where(better, sizes, remembered)
    if step.others:
        best = np.where(accept, best, np.minimum(best, controller.safety * taken))
        if np.any(best_order != order):
            changed = np.where(best_order != order, best_order, 0)
            step.carry, step.retry = (method.at_order(carry, changed) for carry in (step.carry, step.retry))
    return accept, best if held is False else np.where(held, taken, best), remembered
