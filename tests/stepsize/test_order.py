"""The order of the longest step: of rows that differ in it what single rows do."""

import numpy as np
import torch

from torchivp import PIDController
from torchivp.error_norm import ErrorNorm
from torchivp.methods.method import Step
from torchivp.stepsize.order import size_next_step, size_next_steps
from torchivp.stepsize.pid import History, RowHistory

ROWS = 200


class Ordered:
    """A method whose carry is an order."""

    error_order = 1

    @staticmethod
    def at_order(carry, order):
        return np.where(order == 0, carry, order)


def test_rows_of_varying_order_are_sized_as_single_ones():
    """Of accepted, rejected and failed steps, whether they hold their size, and whatever orders they could go on at."""
    rng = np.random.default_rng(1)
    method, norm = Ordered(), ErrorNorm(0.0, 1.0, [slice(0, 1)], torch.float64)
    controller = PIDController(kp=0.2, ki=0.5, dead_band=1.2)
    order, hold = rng.integers(1, 6, ROWS), rng.random(ROWS) < 0.3
    lower, higher = (np.where(rng.random(ROWS) < 0.7, other, 0) for other in (order - 1, order + 1))
    errors = [torch.from_numpy(10.0 ** rng.uniform(-4, 1, (ROWS, 1))) for _ in range(3)]
    taken = rng.uniform(0.1, 1.0, ROWS)
    proposed, rejected = taken * rng.uniform(1.0, 1.1, ROWS), rng.random(ROWS) < 0.3
    last, before_last = 10.0 ** rng.uniform(-2, 0, (2, ROWS))
    y = torch.zeros(ROWS, 1, dtype=torch.float64)

    def step(rows, order, others, hold):
        return Step(0.0, 1.0, y[rows], y[rows], errors[0][rows], order, order, None, order, others, hold)

    everything = step(slice(None), order, [(lower, errors[1]), (higher, errors[2])], hold)
    sizes = norm.rows(errors[0], y, y)
    sizes[::17] = np.inf
    history = RowHistory(last, before_last, rejected)
    accept, h, remembered = size_next_steps(controller, method, norm, everything, sizes, taken, proposed, history)
    for i in range(ROWS):
        rows = slice(i, i + 1)
        others = [(int(o[i]), e[rows]) for o, e in ((lower, errors[1]), (higher, errors[2])) if o[i]]
        single = step(rows, int(order[i]), others, bool(hold[i]))
        before = History(last[i], before_last[i], bool(rejected[i]))
        decision = size_next_step(controller, method, norm, single, sizes[i], taken[i], proposed[i], before)
        assert (decision.accept, single.carry) == (accept[i], everything.carry[i])
        assert np.isclose(decision.h, h[i], rtol=1e-13)
        if decision.accept:
            assert np.isclose(decision.history.last, remembered[i], rtol=1e-13)
        if hold[i] and decision.accept:
            assert h[i] == taken[i] and everything.carry[i] == order[i]
