"""What a replay of steps starts from: the state and the carry with which the solve went on, in little memory."""

from dataclasses import replace

import pytest
import torch
from torch.utils import _pytree as pytree

from torchivp import Checkpointed, ConstantSteps, Direct, PIDController, solve_ivp
from torchivp.api.arguments import build_integration
from torchivp.api.statement import Statement
from torchivp.methods import find_method
from torchivp.recording import Outputs, Trail
from torchivp.stepsize.stops import Stops
from torchivp.times import Times

D = torch.float64


def integration(func, y0, method, controller, **changes):
    stated = Statement(
        func, (0.0, 1.0), y0, None, find_method(method), controller, rtol=1e-8, atol=1e-8, max_steps=1000,
        gradient=Direct(),
    )  # fmt: skip
    built, _ = build_integration(stated, Times(0.0, 1.0, outputs=(0.2, 0.5, 1.0)).anchored({0.5}, settles=False))
    return replace(built, **changes)


@pytest.mark.parametrize("checkpoints", [None, 2, 3, 1000])
@pytest.mark.parametrize(
    ("method", "controller"),
    [("dopri5", PIDController()), ("adams", PIDController()), ("rk4", ConstantSteps(0.05)),
     ("explicit_adams", ConstantSteps(0.05)), ("radauIIA5", ConstantSteps(0.05))],
)  # fmt: skip
def test_checkpointed_equals_direct_across_jumps(method, controller, checkpoints):
    """A stretch that begins where func jumps begins on its own side."""
    y0 = torch.tensor([1.0, 0.5], dtype=D, requires_grad=True)
    a, b = (torch.tensor(value, dtype=D, requires_grad=True) for value in (0.7, -1.3))

    def func(t, y):
        return torch.where(t < 0.5, a, b) * torch.sin(y + t)

    stops = Stops(jump_times=frozenset({0.5}))
    results = []
    for gradient in (Direct(), Checkpointed(checkpoints)):
        states, *_ = gradient.solve(integration(func, y0, method, controller, stops=stops), (a, b), None)
        results.append((states, *torch.autograd.grad(states.pow(3).sum(), (y0, a, b))))
    for found, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("method", "controller"), [("dopri5", PIDController()), ("rk4", ConstantSteps(0.05))])
def test_checkpointed_differentiates_times_as_direct_does(method, controller):
    """Of first and second order: of an output at a jump of func, at the ends of other steps and within steps."""
    y0, given = torch.tensor([1.0, 0.5], dtype=D), torch.tensor([0.0, 0.2, 0.5, 1.0], dtype=D, requires_grad=True)
    times = Times(0.0, 1.0, (0.0, 0.2, 0.5, 1.0), given.tolist(), given)
    times = times.anchored({0.5}, settles=isinstance(controller, PIDController))
    results = []
    for gradient in (Direct(), Checkpointed(3)):
        plan = integration(lambda t, y: torch.where(t < 0.5, 0.7, -1.3) * torch.sin(y + t), y0, method, controller,
                           stops=Stops(jump_times=frozenset({0.5})))  # fmt: skip
        states, *_ = gradient.solve(plan.with_problem(replace(plan.problem, times=times)), (), None)
        (first,) = torch.autograd.grad(states.pow(3).sum(), given, create_graph=True)
        results.append((first, *torch.autograd.grad(first.pow(2).sum(), given)))
    assert (results[0][0] != 0).all()
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-12)


def tensors_within(value):
    """All tensors that an object holds, at any depth."""
    found, seen, stack = [], set(), [value]
    while stack:
        item = stack.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, torch.Tensor):
            found.append(item)
        elif isinstance(item, tuple | list):
            stack += item
        elif hasattr(item, "__slots__") or hasattr(item, "__dict__"):
            names = [*getattr(item, "__slots__", ()), *getattr(item, "__dict__", ())]
            stack += [getattr(item, name) for name in names if not callable(getattr(item, name))]
    return found


@pytest.mark.parametrize("method", ["implicit_euler", "radauIIA5", "trbdf2", "trapezoid"])
@pytest.mark.parametrize("linear_solver", ["dense", "krylov"])
def test_checkpoints_of_implicit_methods_hold_a_few_states(method, linear_solver):
    size = 30
    chosen = find_method(method).with_options(linear_solver=linear_solver)
    plan = integration(lambda t, y: -torch.sin(y) * t, torch.ones(size, dtype=D), chosen, ConstantSteps(0.05))
    trail = Trail(Outputs(plan.problem.times), 1000)
    plan.run([trail])
    stages = len(chosen.tableau.b)
    for checkpoint in trail.checkpoints[1:]:
        tensors = tensors_within(checkpoint.carry)
        assert sum(x.numel() for x in tensors) <= (2 * stages + 2) * size + stages**2 + stages
        assert all(x.grad_fn is None for x in tensors)
        assert pytree.tree_leaves(checkpoint.carry)


@pytest.mark.parametrize("linear_solver", ["dense", "krylov"])
def test_a_replay_of_implicit_steps_makes_the_matrices_again(linear_solver):
    method = find_method("radauIIA3").with_options(linear_solver=linear_solver)
    rate = torch.tensor(3.0, dtype=D, requires_grad=True)
    found = [
        torch.autograd.grad(
            solve_ivp(lambda t, y: -rate * y**3, (0.0, 1.0), torch.linspace(1, 2, 5, dtype=D), method=method,
                      step_size=0.05, gradient=gradient).y.sum(),
            rate,
        )[0]
        for gradient in ("direct", "checkpointed")
    ]  # fmt: skip
    torch.testing.assert_close(found[1], found[0], rtol=1e-13, atol=0)


def test_what_the_search_for_events_hands_on_is_there_when_steps_are_taken_again():
    gradients = []
    for gradient in (Direct(), Checkpointed(2), Checkpointed()):
        y0 = torch.tensor([0.3, 0.5], dtype=D, requires_grad=True)
        options = {"method": "implicit_midpoint", "step_size": 0.07, "events": lambda t, y: y[0] - 0.4}
        solution = solve_ivp(
            lambda t, y: y**2 * t.cos(), (0.0, 1.0), y0, t_eval=[0.5, 1.0], gradient=gradient, **options
        )
        gradients.append(torch.autograd.grad(solution.y.sin().sum() + solution.events.t.sum(), y0)[0])
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-12, atol=1e-12)
