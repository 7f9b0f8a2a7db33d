"""What is compared: each case is a problem, a way to solve it on either side, and the ratio that is wanted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
import torchdiffeq
from torch import Tensor, nn

import torchivp
from benchmarks.broyden import radau_by_broyden
from benchmarks.every_step import STEPS, bare_loop
from benchmarks.harness import Timing, compare, peak_memory
from benchmarks.problems import Problem, decay, flat, loss, lotka_volterra, perceptron, reference

Solve = Callable[..., Any]
"""Called like `odeint`."""


def checkpointed(func: nn.Module, y0: Tensor, t: Tensor, *, options: dict[str, Any] | None = None, **rest: Any) -> Any:
    """`solve_ivp(..., gradient="checkpointed")`, called like `odeint`."""
    ends, method = (float(t[0]), float(t[-1])), {} if "method" in rest else {"method": "dopri5"}
    return torchivp.solve_ivp(func, ends, y0, t_eval=t, gradient="checkpointed", **(options or {}), **method, **rest).y


@dataclass(frozen=True)
class Case:
    """Two ways to solve one problem.

    Attributes:
        name: what the table calls it.
        problem: the problem.
        arguments: method, tolerances and options, the same for both sides.
        ours: how torchivp solves it.
        theirs: how torchdiffeq does.
        gradient: whether the gradient of the loss is computed too, not the states alone.
        target: the ratio of times that is wanted.
        start, per_step: evaluations before the first step, and for each attempted step, on both sides.
        steps: the number of steps on both sides, if it is known. With it, or with `per_step`, the table shows the time
            of a step.
    """

    name: str
    problem: Problem
    arguments: dict[str, Any]
    ours: Solve
    theirs: Solve
    gradient: bool = False
    target: float | None = None
    start: int = 0
    per_step: int | None = None
    steps: int | None = None


@dataclass(frozen=True)
class Cost:
    """What one side takes and achieves, besides time.

    Attributes:
        forward: evaluations of the right-hand side in the forward pass.
        backward: and in the backward pass.
        error: the largest error at the last time, relative to the largest state of the solution.
        gradient_error: the norm of the error of the gradient, relative to that of the gradient.
        memory: bytes of tensors, at the peak.
        steps: attempted steps, if they follow from the evaluations.
    """

    forward: int
    backward: int
    error: float
    gradient_error: float | None
    memory: int
    steps: int | None


@dataclass(frozen=True)
class Row:
    """A case, measured."""

    case: Case
    timing: Timing
    ours: Cost
    theirs: Cost

    @property
    def reached(self) -> bool | None:
        """Whether the target was reached; None if there is none."""
        return None if self.case.target is None else self.timing.ratio >= self.case.target

    def as_json(self) -> dict[str, Any]:
        return {
            "case": self.case.name,
            "arguments": self.case.arguments,
            "ratio": self.timing.ratio,
            "ratio_min": min(self.timing.ratios),
            "ratio_max": max(self.timing.ratios),
            "target": self.case.target,
            "reached": self.reached,
            "seconds": asdict(self.timing),
            "ours": asdict(self.ours),
            "theirs": asdict(self.theirs),
        }


class Counted(nn.Module):
    """A right-hand side that counts its evaluations."""

    def __init__(self, func: nn.Module):
        super().__init__()
        self.func = func
        self.count = 0

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.count += 1
        return self.func(t, y)


def measure(case: Case, repeats: int) -> Row:
    """Costs first, which warms everything up, then time."""
    costs = [_cost(case, solve) for solve in (case.ours, case.theirs)]
    timing = compare(lambda: _solve(case, case.ours), lambda: _solve(case, case.theirs), repeats)
    return Row(case, timing, *costs)


def noise(case: Case, repeats: int) -> Timing:
    """Our side of the case timed against itself: how far a ratio strays from 1 by chance."""
    return compare(lambda: _solve(case, case.ours), lambda: _solve(case, case.ours), repeats)


def own_calls() -> dict[str, Callable[[], object]]:
    """What torchivp does in each case, by the name of the case."""
    return {case.name: partial(_solve, case, case.ours) for case in all_cases()}


def _states(case: Case, solve: Solve, func: nn.Module) -> Tensor:
    with torch.set_grad_enabled(case.gradient):
        return solve(func, case.problem.y0, case.problem.t, **case.arguments)


def _gradient(case: Case, y: Tensor) -> Tensor:
    return flat(torch.autograd.grad(loss(y), case.problem.parameters))


def _solve(case: Case, solve: Solve) -> None:
    """What is timed."""
    y = _states(case, solve, case.problem.func)
    if case.gradient:
        _gradient(case, y)


def _cost(case: Case, solve: Solve) -> Cost:
    func = Counted(case.problem.func)
    states, gradient = reference(case.problem)
    y = _states(case, solve, func)
    forward, gradient_error = func.count, None
    if case.gradient:
        assert gradient is not None
        gradient_error = float((_gradient(case, y).double() - gradient).norm() / gradient.norm())
    return Cost(
        forward=forward,
        backward=func.count - forward,
        error=float((y[-1].detach().double() - states[-1]).abs().max() / states.abs().max()),
        gradient_error=gradient_error,
        memory=peak_memory(lambda: _solve(case, solve)),
        steps=_steps(case, forward),
    )


def _steps(case: Case, evaluations: int) -> int | None:
    if case.per_step is None:
        return case.steps
    steps, left_over = divmod(evaluations - case.start, case.per_step)
    assert left_over == 0, f"{case.name}: {evaluations} evaluations are not {case.start} + {case.per_step} a step"
    return steps


def _lotka_volterra_cases() -> list[Case]:
    problem = lotka_volterra(torch.linspace(0, 20, 101, dtype=torch.float64))
    arguments = {"method": "dopri5", "rtol": 1e-6, "atol": 1e-8}
    ours, theirs = torchivp.odeint, torchdiffeq.odeint
    adjoint, their_adjoint = torchivp.odeint_adjoint, torchdiffeq.odeint_adjoint
    name = "Lotka-Volterra"
    return [
        Case(f"{name}: forward", problem, arguments, ours, theirs, target=2.0, start=2, per_step=6),
        Case(f"{name}: backprop", problem, arguments, ours, theirs, gradient=True, target=1.8),
        Case(f"{name}: adjoint", problem, arguments, adjoint, their_adjoint, gradient=True, target=3.0),
        Case(f"{name}: checkpointed", problem, arguments, checkpointed, their_adjoint, gradient=True),
    ]


def _decay_cases() -> list[Case]:
    ours, theirs = torchivp.odeint, torchdiffeq.odeint
    outputs, ends = torch.linspace(0, 20, 101, dtype=torch.float64), torch.tensor([0, 20], dtype=torch.float64)
    small = decay((30, 2), outputs)
    dopri5 = {"method": "dopri5", "rtol": 1e-6, "atol": 1e-8}
    dopri8 = {"method": "dopri8", "rtol": 1e-6, "atol": 1e-8}
    # A power of two and exactly 1000 of it, so that rounding adds no step on either side.
    rk4 = {"method": "rk4", "options": {"step_size": 1 / 64}}
    fixed = decay((64, 8), torch.tensor([0, 1000 / 64], dtype=torch.float64))
    large = decay((64, 8), ends)
    return [
        Case("decay 30x2: dopri5", small, dopri5, ours, theirs, target=3.0, start=2, per_step=6),
        Case("decay 30x2: dopri8", decay((30, 2), ends), dopri8, ours, theirs, start=2, per_step=13),
        Case("decay 64x8: dopri5", large, dopri5, ours, theirs, target=3.0, start=2, per_step=6),
        Case("decay 64x8: dopri8", large, dopri8, ours, theirs, target=3.0, start=2, per_step=13),
        Case("decay 64x8: rk4", fixed, rk4, ours, theirs, target=1.6, per_step=4),
    ]


def _implicit_cases() -> list[Case]:
    ends = torch.tensor([0, 5], dtype=torch.float64)
    arguments = {"method": "radauIIA5", "options": {"step_size": 0.05}}
    return [
        Case(f"decay {size}: radauIIA5", decay((size,), ends), arguments, torchivp.odeint, radau_by_broyden, steps=100)
        for size in (8, 128)
    ]


def _until_thousandth(door: Solve) -> Solve:
    """`door`, an `odeint_event`, called like `odeint`: until the sum of the states is a thousandth of what it was."""

    def solve(func: nn.Module, y0: Tensor, t: Tensor, **arguments: Any) -> Tensor:
        threshold = float(y0.sum()) / 1000
        return door(func, y0, t[0], event_fn=lambda t, y: y.sum() - threshold, **arguments)[1]

    return solve


def _event_cases() -> list[Case]:
    problem = decay((30, 2), torch.tensor([0, math.log(1000)], dtype=torch.float64))
    ours, theirs = _until_thousandth(torchivp.odeint_event), _until_thousandth(torchdiffeq.odeint_event)
    dopri5 = {"method": "dopri5", "rtol": 1e-6, "atol": 1e-8}
    rk4 = {"method": "rk4", "options": {"step_size": 1 / 16}}
    return [
        Case("decay 30x2: event, dopri5", problem, dopri5, ours, theirs),
        Case("decay 30x2: event, rk4", problem, rk4, ours, theirs),
    ]


def _perceptron_cases() -> list[Case]:
    problem = perceptron(torch.linspace(0, 5, 20))
    arguments = {"method": "dopri5", "rtol": 1e-5, "atol": 1e-6}
    ours, theirs = torchivp.odeint, torchdiffeq.odeint
    adjoint, their_adjoint = torchivp.odeint_adjoint, torchdiffeq.odeint_adjoint
    return [
        Case("perceptron: forward", problem, arguments, ours, theirs, start=2, per_step=6),
        Case("perceptron: backprop", problem, arguments, ours, theirs, gradient=True),
        Case("perceptron: adjoint", problem, arguments, adjoint, their_adjoint, gradient=True, target=3.0),
        Case("perceptron: checkpointed", problem, arguments, checkpointed, their_adjoint, gradient=True),
    ]


def _every_step_cases() -> list[Case]:
    """Fixed steps with an output at each of them, five trajectories in single precision: an article's training loop."""
    problem = lotka_volterra(torch.arange(0, 10.05, 0.1), rows=5)
    cases = []
    for method in (*STEPS, "explicit_adams"):
        arguments = {"method": method, "options": {"step_size": 0.1}}
        sides = [("bare loop", bare_loop)] if method in STEPS else []
        if method != "rk4_classic":  # which torchdiffeq does not have
            sides.append(("torchdiffeq", torchdiffeq.odeint))
        for gradient in (False, True):
            bar = 1 / 1.4 if method == "euler" else 1 / 1.2
            for name, theirs in sides:
                label = f"every step, {method}: {'backprop' if gradient else 'forward'}, {name}"
                target = bar if theirs is bare_loop else None
                cases.append(Case(label, problem, arguments, torchivp.odeint, theirs, gradient=gradient, target=target))
    return cases


def all_cases() -> list[Case]:
    return [
        *_lotka_volterra_cases(),
        *_decay_cases(),
        *_perceptron_cases(),
        *_implicit_cases(),
        *_event_cases(),
        *_every_step_cases(),
    ]


@dataclass(frozen=True)
class Scaling:
    """How the peak memory of a gradient grows with the number of steps: Lotka-Volterra, rk4, steps of 1/64.

    Attributes:
        steps: the numbers of steps.
        peaks: bytes for each of them, by way to compute the gradient.
    """

    name = "Lotka-Volterra: memory"
    steps: tuple[int, ...] = (100, 400, 1600)
    peaks: dict[str, list[int]] = field(default_factory=dict)


SCALING_WAYS: dict[str, Solve] = {
    "torchivp direct": torchivp.odeint,
    "torchivp checkpointed": checkpointed,
    "torchivp backsolve": torchivp.odeint_adjoint,
    "torchdiffeq odeint": torchdiffeq.odeint,
    "torchdiffeq odeint_adjoint": torchdiffeq.odeint_adjoint,
}


def measure_scaling() -> Scaling:
    scaling = Scaling()
    for name, solve in SCALING_WAYS.items():
        scaling.peaks[name] = []
        for steps in scaling.steps:
            problem = lotka_volterra(torch.tensor([0, steps / 64], dtype=torch.float64))
            arguments = {"method": "rk4", "options": {"step_size": 1 / 64}}
            case = Case(name, problem, arguments, solve, solve, gradient=True)
            scaling.peaks[name].append(peak_memory(lambda case=case: _solve(case, case.ours)))
    return scaling
