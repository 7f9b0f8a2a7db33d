"""What a solve keeps in memory: measured over the tensors that live at any one time."""

import gc
import weakref

import pytest
import torch

from memory import PeakMemory
from torchivp import Checkpointed, solve_ivp

pytestmark = pytest.mark.usefixtures("few_objects")


def peak(gradient, steps):
    weight = torch.full((64, 64), 0.01, dtype=torch.float64, requires_grad=True)
    y0 = torch.ones(64, 64, dtype=torch.float64)
    gc.collect()
    with PeakMemory() as memory:
        y = solve_ivp(lambda t, y: torch.tanh(y @ weight), (0.0, 1.0), y0, t_eval=[1.0], method="rk4",
                      step_size=1.0 / steps, gradient=gradient).y  # fmt: skip
        y.sum().backward()
    return memory.peak / y0.numel() / 8


def test_direct_grows_with_the_number_of_steps_and_the_others_do_not():
    few, many = 16, 256
    growth = {
        gradient: peak(gradient, many) / peak(gradient, few) for gradient in ("direct", "checkpointed", "backsolve")
    }
    assert growth["direct"] > 10
    assert growth["checkpointed"] < 6  # sqrt(16) = 4
    assert growth["backsolve"] < 1.1


def test_fewer_checkpoints_hold_less_until_the_stretches_grow():
    sizes = {n: peak(Checkpointed(n), 400) for n in (2, 40, 400)}
    assert sizes[40] < sizes[2] / 3
    assert sizes[40] < sizes[400] / 2


def test_rejected_attempts_leave_nothing():
    """A field with a jump makes many attempts fail; the graph holds accepted steps only."""

    def nodes(solution):
        seen, stack = set(), [solution.y.grad_fn]
        while stack:
            node = stack.pop()
            if node is not None and node not in seen:
                seen.add(node)
                stack.extend(next_node for next_node, _ in node.next_functions)
        return len(seen)

    y0 = torch.ones(1, dtype=torch.float64, requires_grad=True)
    solutions = [
        solve_ivp(func, (0.0, 1.0), y0, t_eval=[1.0], rtol=1e-6, atol=1e-6)
        for func in (lambda t, y: -y * 1.0, lambda t, y: -y * (1.0 if t < 0.37 else 30.0))
    ]
    assert solutions[1].stats.rejected > 5
    per_step = [nodes(s) / s.stats.accepted for s in solutions]
    assert per_step[1] == pytest.approx(per_step[0], rel=0.1)


@pytest.mark.parametrize("gradient", ["direct", "checkpointed", "backsolve", "forward"])
@pytest.mark.parametrize("backward", [False, True])
def test_a_solve_is_freed_by_counting_references(gradient, backward):
    """No cycle keeps a graph alive until the garbage collector runs."""
    gc.collect()
    gc.disable()
    try:
        y0 = torch.ones(3, dtype=torch.float64, requires_grad=True)
        middle = y0 * 1.0
        alive = weakref.ref(middle)
        solution = solve_ivp(lambda t, y: -y, (0.0, 1.0), middle, gradient=gradient)
        if backward:
            solution.y.sum().backward()
        del solution, middle
        assert alive() is None
    finally:
        gc.enable()
