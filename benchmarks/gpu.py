"""Kernels on an NVIDIA GPU: whether they give what torch gives on the processor, and how long they take.

    python -m benchmarks.gpu [--quick] [--out DIR] [--minutes 7.5] [--only NAME]

It needs torch for CUDA with cuda-bindings, NumPy and SciPy, nothing else; torchdiffeq and diffrax are timed beside it
where they are installed. Everything is written down as it is found, by a process of its own: one that a GPU's error has
spoilt, or that has stopped getting on, is ended, and another goes on with what is left. The exit status is 0 if all is
well, 1 if something failed, and 2 without a GPU.

Times are milliseconds, the shortest of several calls: of the whole call from Python until the GPU is idle, and between
events on the GPU's stream. Compilation does not count. The bars are those of DiffEqGPU.jl on a V100.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import torchivp
from benchmarks.fields import lorenz, lotka_volterra, robertson

D, F = torch.float64, torch.float32

_PATIENCE = 150.0
"""Seconds after which a section is taken to have stopped getting on."""

_BARS = {"Lorenz, fixed": 145.0, "Lorenz, adaptive": 70.0}
"""Milliseconds to be better than."""


@dataclass
class Session:
    """Where what is found goes.

    Attributes:
        device: the GPU.
        quick: whether to leave out what takes longest.
        write: takes each line that is found.
    """

    device: torch.device
    quick: bool
    write: Callable[[dict[str, Any]], None]

    def check(self, name: str, ok: bool, detail: str = "") -> None:
        """Note whether something is as it should be."""
        self.write({"kind": "check", "name": name, "ok": bool(ok), "detail": detail})

    def same(self, name: str, found: Tensor, expected: Tensor, rtol: float, detail: str = "") -> None:
        """Check that numbers are the same, relative to the largest of them."""
        found, expected = found.detach().cpu().to(D), expected.detach().cpu().to(D)
        if found.shape != expected.shape:
            self.check(name, False, f"{tuple(found.shape)} in the place of {tuple(expected.shape)}")
            return
        holes = torch.equal(found.isnan(), expected.isnan())
        found, expected = found.nan_to_num(), expected.nan_to_num()
        scale = float(expected.abs().max()) if expected.numel() else 0.0
        worst = float((found - expected).abs().max()) / (scale or 1.0) if found.numel() else 0.0
        self.check(name, holes and worst <= rtol, f"differs by {worst:.1e}, at most {rtol:.0e}{detail}")

    def time(self, work: str, way: str, call: Callable[[], Any], repeats: int = 10) -> None:
        """Time a call, after two that do not count."""
        for _ in range(2):
            call()
        walls, events = [], []
        for _ in range(2 if self.quick else repeats):
            self._wait()
            before, between = time.perf_counter(), self._events()
            if between:
                between[0].record()
            call()
            if between:
                between[1].record()
            self._wait()
            walls.append(1e3 * (time.perf_counter() - before))
            if between:
                events.append(between[0].elapsed_time(between[1]))
        on_gpu = min(events) if events else None
        self.write(
            {"kind": "time", "work": work, "way": way, "wall": min(walls), "gpu": on_gpu, "bar": _BARS.get(work)}
        )

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _events(self) -> tuple[Any, Any] | None:
        if self.device.type != "cuda":
            return None
        return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)


# --- vector fields ---------------------------------------------------------------------------------------------------


def forced(t: Tensor, y: Tensor) -> Tensor:
    """That depends on time, through many functions."""
    return torch.cos(3 * t) - y * torch.exp(-t) + torch.sin(t + y) ** 2 + torch.atan2(y, y * y + 1) / 9 - torch.erf(y)


def branches(t: Tensor, y: Tensor) -> Tensor:
    """That jumps, and clamps."""
    bounded = torch.where(y > 0.5, 2.0 - y, y.clamp(min=-0.3) ** 2 + 0.5)
    return torch.where(t < 0.4, bounded, -bounded) + torch.maximum(y, torch.zeros_like(y)) - y.abs()


def in_place(t: Tensor, y: Tensor) -> Tensor:
    """That writes into a tensor which it makes."""
    dy = torch.zeros_like(y)
    dy[..., 0] = y[..., 1]
    dy[..., 1:] = -y[..., :-1]
    dy[..., 2:3] += torch.sin(t)
    return dy


def from_table(t: Tensor, y: Tensor, table: Tensor) -> Tensor:
    """Driven by a table of values at equal times, which all rows share."""
    at = (t * 8.0).clamp(0.0, 7.999)
    place = at.long().clamp(0, 7)
    values = table.reshape(-1)
    return values[place] + (at - place) * (values[place + 1] - values[place]) - y


def tree(t: Tensor, y: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state of two tensors."""
    return {"x": y["v"], "v": -torch.sin(y["x"]) - 0.1 * y["v"]}


def perceptron(width: int, dtype: torch.dtype) -> nn.Sequential:
    """A network of two hidden layers, always the same one."""
    generator = torch.Generator().manual_seed(5)
    net = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2)).to(D)
    with torch.no_grad():
        for x in net.parameters():
            x.copy_((torch.rand(x.shape, dtype=D, generator=generator) - 0.5) * 2 / math.sqrt(x.shape[-1]))
    return net.to(dtype)


@dataclass(frozen=True)
class Case:
    """A vector field with rows of initial states.

    Attributes:
        make: gives func, state and arguments on a device, in a precision, for so many rows.
        span: from where to where.
        methods: those that it is solved by, with their options.
    """

    make: Callable[[torch.device, torch.dtype, int], tuple[Callable[..., Any], Any, tuple[Any, ...]]]
    span: tuple[float, float]
    methods: Sequence[dict[str, Any]]


def _spread(rows: int, *values: float) -> Tensor:
    return torch.tensor(values, dtype=D) * torch.linspace(0.8, 1.2, rows, dtype=D).unsqueeze(1)


def _case(func: Callable[..., Any], values: Sequence[float], *args: Callable[[int], Tensor]) -> Any:
    """What makes a case of a function of tensors."""

    def make(device: torch.device, dtype: torch.dtype, rows: int) -> Any:
        return func, _spread(rows, *values).to(device, dtype), tuple(x(rows).to(device, dtype) for x in args)

    return make


def _trees(device: torch.device, dtype: torch.dtype, rows: int) -> Any:
    y0 = _spread(rows, 0.3, 0.7).to(device, dtype)
    return tree, {"x": y0[:, :1].contiguous(), "v": y0[:, 1:].contiguous()}, ()


def _networks(device: torch.device, dtype: torch.dtype, rows: int) -> Any:
    net = perceptron(17, dtype).to(device)
    return (lambda t, y: net(y)), _spread(rows, 0.3, -0.6).to(device, dtype), ()


_FIXED = {"method": "rk4", "step_size": 0.05}

CASES = {
    "Lotka-Volterra": Case(
        _case(lotka_volterra, (1.0, 0.7), lambda _: torch.tensor([[1.5, 1.0, 3.0, 1.0]], dtype=D)),
        (0.0, 3.0),
        [{"method": "tsit5"}, {"method": "dopri5"}, {"method": "dopri8"}, _FIXED, {"method": "rodas5p"}],
    ),
    "Lorenz": Case(
        _case(lorenz, (1.0, 0.2, 0.1), lambda rows: torch.linspace(0.0, 21.0, rows, dtype=D)),
        (0.0, 1.0),
        [{"method": "tsit5"}, {"method": "bosh3"}],
    ),
    "forced": Case(_case(forced, (0.1, -0.4, 2.0)), (0.0, 1.0), [{"method": "dopri5"}, {"method": "rodas5p"}]),
    "branches": Case(_case(branches, (0.1, 0.6, -0.7)), (0.0, 1.0), [_FIXED]),
    "in place": Case(_case(in_place, (0.1, 0.6, -0.7)), (1.0, 0.0), [{"method": "tsit5"}]),
    "table": Case(
        _case(from_table, (0.1, 0.6), lambda _: torch.sin(3 * torch.linspace(0.0, 1.0, 9, dtype=D)).reshape(1, 9)),
        (0.0, 1.0),
        [_FIXED],
    ),
    "tree": Case(_trees, (0.0, 2.0), [{"method": "tsit5"}]),
    "network": Case(_networks, (0.0, 1.0), [{"method": "tsit5"}, {"method": "rodas5p"}]),
    "Robertson": Case(
        _case(robertson, (1.0, 0.0, 0.0), lambda rows: torch.linspace(0.02, 0.08, rows, dtype=D)),
        (0.0, 1e3),
        [{"method": "rodas5p"}, {"method": "rosenbrock23", "rtol": 1e-4}],
    ),
}


def _leaves(tree_of: Any) -> list[Tensor]:
    return list(tree_of.values()) if isinstance(tree_of, dict) else [tree_of]


def _solved(
    case: Case,
    device: torch.device,
    dtype: torch.dtype,
    rows: int,
    backend: Any,
    gradient: bool,
    options: dict[str, Any],
) -> tuple[Any, list[Tensor]]:
    """The solution and, if they are asked for, the gradients by all there is."""
    func, y0, args = case.make(device, dtype, rows)
    leaves = [*_leaves(y0), *args]
    if isinstance(func, nn.Module) or gradient:
        held = [cell.cell_contents for cell in getattr(func, "__closure__", None) or ()]
        leaves += [x for net in held if isinstance(net, nn.Module) for x in net.parameters()]
    for x in leaves:
        x.requires_grad_(gradient)
    start, end = case.span
    outputs = start + (end - start) * torch.tensor([0.0, 0.1, 0.35, 0.7, 1.0], dtype=D)
    given: dict[str, Any] = {"t_eval": outputs, "args": args, "batch_dims": 1, "backend": backend, **options}
    if "step_size" not in options:
        small = dtype == F
        given = {"rtol": 1e-3 if small else 1e-7, "atol": 1e-4 if small else 1e-10} | given
    solution = torchivp.solve_ivp(func, case.span, y0, **given)
    if not gradient:
        return solution, []
    total = sum(
        (x.square() * torch.cos(torch.arange(x.numel(), device=x.device)).view(x.shape)).sum()
        for x in _leaves(solution.y)
    )
    return solution, list(torch.autograd.grad(total, leaves))


def _check_case(
    session: Session, name: str, dtype: torch.dtype, rows: int, gradient: bool, options: dict[str, Any]
) -> None:
    case, cpu = CASES[name], torch.device("cpu")
    title = f"{name}, {', '.join(map(str, options.values()))}, {str(dtype)[6:]}, {rows} rows"
    found, of_found = _solved(case, session.device, dtype, rows, "fused", gradient, options)
    expected, of_expected = _solved(case, cpu, dtype, rows, "eager", gradient, options)
    small, stiff = dtype == F, name == "Robertson"
    rtol = 1e-2 if small else 1e-5 if stiff else 1e-9 if "step_size" in options else 1e-7
    counts = [(x.accepted, x.rejected) for x in found.stats], [(x.accepted, x.rejected) for x in expected.stats]
    others = sum(mine != theirs for mine, theirs in zip(*counts, strict=True))
    for key, x, y in zip("ab", _leaves(found.y), _leaves(expected.y), strict=False):
        session.same(f"{title}: values {key}", x, y, rtol, f"; {others} rows with other numbers of steps")
    session.same(f"{title}: ends", found.t_final, expected.t_final, 1e-12)
    tries = np.array([sum(x) for x in counts[0]]), np.array([sum(x) for x in counts[1]])
    spare = (3 if small else 1) + (0.1 if small else 0.02) * tries[1]
    session.check(f"{title}: steps", bool((abs(tries[0] - tries[1]) <= spare).all()), f"{others} of {rows} rows differ")
    session.check(f"{title}: status", [x.outcome for x in found.status] == [x.outcome for x in expected.status])
    session.check(f"{title}: by a kernel", all(x.backend == "fused" for x in found.stats))
    session.check(
        f"{title}: on the GPU", all(x.device.type == session.device.type for x in (*_leaves(found.y), found.t))
    )
    for number, (x, y) in enumerate(zip(of_found, of_expected, strict=True)):
        session.same(f"{title}: gradient {number}", x, y, 5e-2 if small else 1e-4 if stiff else 1e-6)


# --- checks ----------------------------------------------------------------------------------------------------------


def values(session: Session) -> None:
    """Every field by its methods: values, numbers of steps and gradients against the step loop on the processor."""
    for name, case in CASES.items():
        for options in case.methods[: 1 if session.quick else None]:
            _check_case(session, name, D, 33, True, options)


def single_precision(session: Session) -> None:
    """The same in single precision."""
    for name in ("Lorenz",) if session.quick else ("Lotka-Volterra", "Lorenz", "network", "tree"):
        _check_case(session, name, F, 33, True, CASES[name].methods[0])


def numbers_of_rows(session: Session) -> None:
    """No row, one, a block of threads and one more, and many, of which some are compared."""
    for rows in (0, 1, 63, 64, 65):
        _check_case(session, "Lotka-Volterra", D, rows, rows > 0, {"method": "tsit5"})
    case, options = CASES["Lorenz"], {"method": "tsit5"}
    rows = 1000 if session.quick else 200_000
    with torch.no_grad():
        found, _ = _solved(case, session.device, D, rows, "fused", False, options)
        some = torch.tensor([0, 1, rows // 3, rows - 1])
        func, y0, args = case.make(torch.device("cpu"), D, rows)
        expected = torchivp.solve_ivp(
            func, case.span, y0[some], args=(args[0][some],), t_eval=found.t[0].cpu(), batch_dims=1, rtol=1e-7,
            atol=1e-10, method="tsit5",
        )  # fmt: skip
    session.same(f"Lorenz, {rows} rows, some of them", found.y.cpu()[some], expected.y, 1e-7)
    session.check(f"Lorenz, {rows} rows: all well", bool(found.success.all()))


def whole_records(session: Session) -> None:
    """All ends of steps, one problem without a batch, and the way back through more steps than there is room for."""

    def run(device: torch.device, backend: Any) -> tuple[Any, list[Tensor]]:
        y0 = torch.tensor([0.3, -0.2], dtype=D, device=device, requires_grad=True)
        w = torch.tensor(3.0, dtype=D, device=device, requires_grad=True)
        solution = torchivp.solve_ivp(
            lambda t, y, w: torch.stack([y[1], -w * y[0] + torch.sin(t)]), (0.0, 20.0), y0, args=(w,), method="rk4",
            step_size=0.05, backend=backend,
        )  # fmt: skip
        return solution, list(torch.autograd.grad(solution.y.square().sum(), [y0, w]))

    (found, of_found), (expected, of_expected) = run(session.device, "fused"), run(torch.device("cpu"), "eager")
    session.same("400 steps: times", found.t, expected.t, 1e-13)
    session.same("400 steps: states", found.y, expected.y, 1e-9)
    for number, (x, y) in enumerate(zip(of_found, of_expected, strict=True)):
        session.same(f"400 steps: gradient {number}", x, y, 1e-8)


def failures(session: Session) -> None:
    """Rows that fail beside rows that do not; stiff rows, which another method solves."""

    def blows_up(t: Tensor, y: Tensor) -> Tensor:
        return y * y

    for options in ({}, {"max_steps": 20}, {"method": "rk4", "step_size": 0.05}):
        first = 9.0 if "step_size" in options else 1.2
        y0 = torch.tensor([[first], [0.03], [math.nan], [-1.0]], dtype=D)
        t = torch.linspace(0, 1, 5, dtype=D)
        found, expected = (
            torchivp.solve_ivp(
                blows_up, (0.0, 1.0), y0.to(where), t_eval=t, batch_dims=1, throw=False, backend=by, **options
            )
            for where, by in ((session.device, "fused"), (torch.device("cpu"), "eager"))
        )
        title = f"failures, {options}"
        session.check(f"{title}: outcomes", [x.outcome for x in found.status] == [x.outcome for x in expected.status],
                      " | ".join(x.message for x in found.status))  # fmt: skip
        session.same(f"{title}: values", found.y, expected.y, 1e-6)

    def oscillator(t: Tensor, y: Tensor, mu: Tensor) -> Tensor:
        a, b = y.unbind(-1)
        return torch.stack([b, mu.reshape(a.shape) * ((1.0 - a * a) * b) - a], -1)

    mu = torch.tensor([1.0, 1000.0, 2.0, 500.0], dtype=D)
    y0, ends = torch.tensor([[2.0, 0.0]], dtype=D).repeat(4, 1), []
    for where, by in ((session.device, "fused"), (torch.device("cpu"), "eager")):
        given: dict[str, Any] = {"args": (mu.to(where),), "t_eval": torch.linspace(0.0, 3.0, 4, dtype=D), "rtol": 1e-6}
        ends.append(
            torchivp.solve_ivp(oscillator, (0.0, 3.0), y0.to(where), batch_dims=1, atol=1e-8, backend=by, **given)
        )
    session.check("auto: stiff rows", [x.stiff > 0 for x in ends[0].stats] == [False, True, False, True])
    session.same("auto: values", ends[0].y, ends[1].y, 1e-4)


def refusals(session: Session) -> None:
    """What kernels on GPUs do not do, and "auto"."""
    y0 = torch.ones(2, dtype=D, device=session.device)
    automatic = torchivp.solve_ivp(lambda t, y: -y, (0.0, 1.0), y0, backend="auto").stats.backend
    session.check("auto leaves it to torch", automatic.startswith("eager: kernels on GPUs are taken only"), automatic)
    try:
        torchivp.solve_ivp(
            lambda t, y: -y, (0.0, 1.0), y0, backend="fused", events=[torchivp.Event(lambda t, y: y[0] - 0.5)]
        )
        session.check("events are refused", False)
    except ValueError as error:
        session.check("events are refused", "kernels on GPUs take steps without events" in str(error), str(error))


def streams_and_threads(session: Session) -> None:
    """Solves on another stream, and on several threads at a time."""
    case, options = CASES["Lorenz"], {"method": "tsit5"}

    def run() -> list[Tensor]:
        solution, grads = _solved(case, session.device, D, 500, "fused", True, options)
        return [solution.y.detach(), *grads]

    expected = run()
    if session.device.type == "cuda":
        stream = torch.cuda.Stream(session.device)
        stream.wait_stream(torch.cuda.current_stream(session.device))
        with torch.cuda.stream(stream):
            found = run()
        stream.synchronize()
        session.check("another stream", all(map(torch.equal, found, expected)))
    results: list[list[Tensor]] = []

    def thread() -> None:
        results.append(run())

    threads = [threading.Thread(target=thread) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    same = len(results) == 4 and all(all(map(torch.equal, found, expected)) for found in results)
    session.check("four threads, bit for bit", same)


def eager_on_the_gpu(session: Session) -> None:
    """The rest of torchivp with tensors on the GPU, against the processor."""
    cpu = torch.device("cpu")

    def compare(name: str, run: Callable[[torch.device], Any], rtol: float) -> None:
        try:
            found, expected = run(session.device), run(cpu)
            for number, (x, y) in enumerate(zip(found, expected, strict=True)):
                session.same(f"eager, {name} {number}", x, y, rtol)
        except Exception as error:
            traceback.print_exc()
            session.check(f"eager, {name}", False, f"{type(error).__name__}: {error}")

    def start(where: torch.device) -> tuple[Tensor, Tensor]:
        y0 = _spread(4, 1.0, 0.7).to(where).requires_grad_()
        return y0, torch.tensor([[1.5, 1.0, 3.0, 1.0]], dtype=D, device=where, requires_grad=True)

    def by(**options: Any) -> Callable[[torch.device], Any]:
        def run(where: torch.device) -> Any:
            y0, rates = start(where)
            t = torch.linspace(0.0, 2.0, 5, dtype=D)
            solution = torchivp.solve_ivp(
                lotka_volterra, (0.0, 2.0), y0, t_eval=t, args=(rates,), batch_dims=1, rtol=1e-7, atol=1e-9, **options
            )
            return solution.y, *torch.autograd.grad(solution.y.square().sum(), [y0, rates])

        return run

    for method in ("dopri5", "rodas5p", "radau5", "bdf", "auto"):
        compare(method, by(method=method), 1e-6)
    for gradient in ("checkpointed", "backsolve", "forward"):
        compare(gradient, by(method="dopri5", gradient=gradient), 1e-6)

    def by_odeint(where: torch.device) -> Any:
        y0, rates = start(where)
        t = torch.linspace(0.0, 2.0, 5, dtype=D, device=where)
        y = torchivp.odeint_adjoint(lambda t, y: lotka_volterra(t, y, rates), y0, t, adjoint_params=(rates,))
        return y, *torch.autograd.grad(y.square().sum(), [y0, rates])

    compare("odeint_adjoint", by_odeint, 1e-6)

    def bounces(where: torch.device) -> Any:
        g = torch.tensor(9.81, dtype=D, device=where, requires_grad=True)
        bounce = torchivp.Event(
            lambda t, y, g: y[0], direction=-1, apply=lambda t, y, g: torch.stack([y[0] * 0, -0.8 * y[1]])
        )
        fall = torchivp.solve_ivp(
            lambda t, y, g: torch.stack([y[1], -g]), (0.0, 2.0), torch.tensor([1.0, 0.0], dtype=D, device=where),
            args=(g,), events=[bounce], rtol=1e-8, atol=1e-10,
        )  # fmt: skip
        return fall.final, torch.autograd.grad(fall.final.sum(), g)[0]

    compare("events", bounces, 1e-6)

    class Walk(torchivp.SDEIto):
        def __init__(self) -> None:
            super().__init__("diagonal")

        def f(self, t: Tensor, y: Tensor) -> Tensor:
            return 0.1 * y

        def g(self, t: Tensor, y: Tensor) -> Tensor:
            return 0.2 * y

    def walks(seed: int) -> Tensor:
        y0 = torch.ones(4000, 1, dtype=D, device=session.device)
        return torchivp.sdeint(Walk(), y0, torch.tensor([0.0, 1.0], dtype=D), dt=0.02, seed=seed)[-1]

    try:
        first, again, other = walks(1), walks(1), walks(2)
        session.check("sdeint: a seed is a path", torch.equal(first, again) and not torch.equal(first, other))
        mean, spread = float(first.mean()), math.exp(0.1) * math.sqrt(math.exp(0.04) - 1) / math.sqrt(4000)
        session.check(
            "sdeint: mean", abs(mean - math.exp(0.1)) < 5 * spread, f"{mean:.4f}, expected {math.exp(0.1):.4f}"
        )
    except Exception as error:
        traceback.print_exc()
        session.check("sdeint", False, f"{type(error).__name__}: {error}")

    def drawn(where: torch.device) -> Any:
        """A func that draws random numbers, whose gradient replays them."""
        y0 = torch.ones(3, dtype=D, device=where, requires_grad=True)
        results = []
        for gradient in ("direct", "checkpointed"):
            torch.manual_seed(3)
            found = torchivp.solve_ivp(
                lambda t, y: -y * (1 + 0.1 * torch.rand_like(y)),
                (0.0, 1.0),
                y0,
                method="rk4",
                step_size=0.1,
                gradient=gradient,
            ).final
            results.append(torch.autograd.grad(found.sum(), y0)[0])
        return results

    try:
        direct, checkpointed = drawn(session.device)
        session.same("generators are put back", checkpointed, direct, 1e-12)
    except Exception as error:
        traceback.print_exc()
        session.check("generators", False, f"{type(error).__name__}: {error}")

    def casts() -> None:
        net = perceptron(17, F).to(session.device)
        y0 = torch.ones(8, 2, device=session.device)
        with torch.autocast(session.device.type, dtype=torch.bfloat16):
            y = torchivp.solve_ivp(lambda t, y: net(y), (0.0, 1.0), y0, batch_dims=1, rtol=1e-2, atol=1e-3).final
        plain = torchivp.solve_ivp(lambda t, y: net(y), (0.0, 1.0), y0, batch_dims=1, rtol=1e-2, atol=1e-3).final
        y.sum().backward()
        session.check("autocast: dtype", y.dtype == F)
        session.same("autocast: values", y, plain, 5e-2)

    try:
        casts()
    except Exception as error:
        traceback.print_exc()
        session.check("autocast", False, f"{type(error).__name__}: {error}")


# --- times -----------------------------------------------------------------------------------------------------------


def time_lorenz(session: Session) -> None:
    """DiffEqGPU's ensemble: rho from 0 to 21, single precision, t in [0, 1]."""
    rows, device = 65_536 if session.quick else 8_388_608, session.device
    y0 = torch.tensor([[1.0, 0.0, 0.0]], device=device).repeat(rows, 1)
    rho, end = torch.linspace(0.0, 21.0, rows, device=device), torch.tensor([1.0], dtype=D)

    def solve(**options: Any) -> Any:
        with torch.no_grad():
            return torchivp.solve_ivp(
                lorenz,
                (0.0, 1.0),
                y0,
                args=(rho,),
                t_eval=end,
                method="tsit5",
                batch_dims=1,
                backend="fused",
                **options,
            )

    some = torch.tensor([0, rows // 2, rows - 1])
    exact = torchivp.solve_ivp(
        lorenz,
        (0.0, 1.0),
        y0.cpu()[some].double(),
        args=(rho.cpu()[some].double(),),
        rtol=1e-10,
        atol=1e-12,
        batch_dims=1,
    ).final
    for work, options in (("Lorenz, fixed", {"step_size": 1e-3}), ("Lorenz, adaptive", {"rtol": 1e-8, "atol": 1e-8})):
        solution = solve(**options)
        session.same(f"{work}, {rows} rows", solution.final.cpu()[some].double(), exact, 1e-3)
        del solution
        session.time(work, f"kernel, {rows} rows", lambda options=options: solve(**options).final, 5)


def _lotka_volterra(rows: int, device: torch.device, gradient: bool) -> Callable[..., Callable[[], Any]]:
    y0 = (torch.tensor([10.0, 5.0], dtype=D) * torch.linspace(0.9, 1.1, rows, dtype=D).unsqueeze(1)).to(device)
    rates = torch.tensor([[1.5, 1.0, 3.0, 1.0]], dtype=D, device=device, requires_grad=gradient)
    t = torch.linspace(0.0, 20.0, 11, dtype=D)

    def way(**options: Any) -> Callable[[], Any]:
        def call() -> Any:
            with torch.set_grad_enabled(gradient):
                y = torchivp.solve_ivp(
                    lotka_volterra, (0.0, 20.0), y0, t_eval=t, args=(rates,), method="dopri5", rtol=1e-6, atol=1e-8,
                    batch_dims=1, **options,
                ).y  # fmt: skip
                return torch.autograd.grad(y.sum(), rates) if gradient else y

        return call

    return way


def time_lotka_volterra(session: Session) -> None:
    """Lotka-Volterra over [0, 20], dopri5, 11 outputs, double precision."""
    for rows in (1, 30, 1000) if session.quick else (1, 30, 1000, 100_000, 1_000_000):
        for gradient in (False, True):
            work = f"Lotka-Volterra, {rows} rows{', forward and backward' if gradient else ''}"
            way = _lotka_volterra(rows, session.device, gradient)
            session.time(work, "kernel", way(backend="fused"), 10 if rows <= 1000 else 3)
            if rows == 1000 and not session.quick:
                session.time(work, "step loop", way(backend="eager"), 1)
    if not session.quick:
        by_torchdiffeq(session)
        by_diffrax(session)


def by_torchdiffeq(session: Session) -> None:
    """The same by torchdiffeq, where it is installed: one step for all rows."""
    try:
        import torchdiffeq
    except ImportError:
        return
    for rows in (1000, 100_000):
        y0 = (torch.tensor([10.0, 5.0], dtype=D) * torch.linspace(0.9, 1.1, rows, dtype=D).unsqueeze(1)).to(
            session.device
        )
        rates = torch.tensor([1.5, 1.0, 3.0, 1.0], dtype=D, device=session.device)
        t = torch.linspace(0.0, 20.0, 11, dtype=D, device=session.device)

        def call(y0: Tensor = y0, rates: Tensor = rates, t: Tensor = t) -> Any:
            with torch.no_grad():
                return torchdiffeq.odeint(lambda t, y: lotka_volterra(t, y, rates), y0, t, rtol=1e-6, atol=1e-8)

        session.time(f"Lotka-Volterra, {rows} rows", "torchdiffeq, joint steps", call, 1)


def by_diffrax(session: Session) -> None:
    """The same by diffrax, where it is installed: rows by vmap."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # or little is left for the others
    try:
        import diffrax  # pyright: ignore[reportMissingImports]
        import jax  # pyright: ignore[reportMissingImports]
        import jax.numpy as jnp  # pyright: ignore[reportMissingImports]
    except ImportError:
        return
    jax.config.update("jax_enable_x64", True)

    def field(t: Any, y: Any, rates: Any) -> Any:
        a, b, c, d = rates
        prey, predator = y
        return jnp.stack([a * prey - b * prey * predator, -c * predator + d * prey * predator])

    def solve(start: Any) -> Any:
        return diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Dopri5(),
            0.0,
            20.0,
            None,
            start,
            args=jnp.array([1.5, 1.0, 3.0, 1.0]),
            stepsize_controller=diffrax.PIDController(rtol=1e-6, atol=1e-8),
            saveat=diffrax.SaveAt(ts=jnp.linspace(0.0, 20.0, 11)),
            max_steps=None,
        ).ys

    compiled = jax.jit(jax.vmap(solve))
    for rows in (1000, 100_000):
        start = jnp.array([10.0, 5.0]) * jnp.linspace(0.9, 1.1, rows)[:, None]
        session.time(
            f"Lotka-Volterra, {rows} rows", "diffrax, jit", lambda start=start: compiled(start).block_until_ready(), 3
        )


def time_robertson(session: Session) -> None:
    """Robertson's reactions to 1e5, rodas5p, double precision."""
    for rows in (1000,) if session.quick else (1000, 100_000):
        y0 = torch.tensor([[1.0, 0.0, 0.0]], dtype=D, device=session.device).repeat(rows, 1)
        k, end = torch.linspace(0.02, 0.08, rows, dtype=D, device=session.device), torch.tensor([1e5], dtype=D)

        def call(y0: Tensor = y0, k: Tensor = k, end: Tensor = end) -> Any:
            with torch.no_grad():
                return torchivp.solve_ivp(
                    robertson, (0.0, 1e5), y0, t_eval=end, args=(k,), method="rodas5p", rtol=1e-6, atol=1e-9,
                    batch_dims=1, backend="fused",
                ).y  # fmt: skip

        session.time(f"Robertson, {rows} rows", "kernel", call, 5)


def time_networks(session: Session) -> None:
    """A network 2-64-64-2 over [0, 1], single precision, dopri5."""
    for rows in (256,) if session.quick else (256, 8192):
        net, y0 = perceptron(64, F).to(session.device), _spread(rows, 0.3, -0.6).to(session.device, F)
        end = torch.tensor([1.0], dtype=D)
        for gradient in (False, True):

            def call(
                backend: Any, net: Any = net, y0: Tensor = y0, end: Tensor = end, gradient: bool = gradient
            ) -> Any:
                with torch.set_grad_enabled(gradient):
                    y = torchivp.solve_ivp(
                        lambda t, y: net(y), (0.0, 1.0), y0, t_eval=end, method="dopri5", rtol=1e-4, atol=1e-6,
                        batch_dims=1, backend=backend,
                    ).y  # fmt: skip
                    return torch.autograd.grad(y.square().sum(), list(net.parameters())) if gradient else y

            work = f"network, {rows} rows{', forward and backward' if gradient else ''}"
            session.time(work, "kernel", lambda call=call: call("fused"), 5)
            if not session.quick:
                session.time(work, "step loop", lambda call=call: call("eager"), 2)


SECTIONS: dict[str, Callable[[Session], None]] = {
    "values": values,
    "rows": numbers_of_rows,
    "records": whole_records,
    "failures": failures,
    "refusals": refusals,
    "single": single_precision,
    "lorenz": time_lorenz,
    "threads": streams_and_threads,
    "lotka": time_lotka_volterra,
    "robertson": time_robertson,
    "networks": time_networks,
    "eager": eager_on_the_gpu,
}
"""What there is to do, the most telling first: time may run out."""


# --- processes -------------------------------------------------------------------------------------------------------


def run_sections(names: Sequence[str], session: Session) -> bool:
    """Run sections one after the other, whatever becomes of each; false if the GPU is of no more use here."""
    for name in names:
        session.write({"kind": "begun", "section": name})
        began = time.monotonic()
        try:
            SECTIONS[name](session)
        except Exception as error:
            traceback.print_exc()
            session.write({"kind": "failed", "section": name, "why": f"{type(error).__name__}: {error}"})
        session.write({"kind": "done", "section": name, "seconds": time.monotonic() - began})
        try:
            session._wait()
        except Exception:
            return False
    return True


def line_of(found: dict[str, Any]) -> str:
    """What is found, for people; empty if it is not worth a line."""
    if found["kind"] == "check":
        return f"  {'ok  ' if found['ok'] else 'FAIL'} {found['name']}: {found['detail']}"
    if found["kind"] == "time":
        gpu = "" if found["gpu"] is None else f", {found['gpu']:.3f} on the GPU"
        bar = (
            ""
            if found["bar"] is None
            else f" (bar {found['bar']:g}: {'met' if found['wall'] <= found['bar'] else 'MISSED'})"
        )
        return f"  {found['wall']:10.3f} ms{gpu}  {found['work']}, {found['way']}{bar}"
    if found["kind"] == "failed":
        return f"  FAIL section {found['section']}: {found['why']}"
    return f"{found['section']} ..." if found["kind"] == "begun" else f"  {found['seconds']:.1f} s"


def child(names: Sequence[str], quick: bool, into: Path) -> int:
    """Run sections, and write down what is found."""
    with into.open("a", encoding="utf-8") as file:

        def write(found: dict[str, Any]) -> None:
            file.write(json.dumps(found) + "\n")
            file.flush()
            print(line_of(found), flush=True)

        return 0 if run_sections(names, Session(torch.device("cuda", 0), quick, write)) else 3


def lines_in(path: Path) -> list[dict[str, Any]]:
    """What has been written down."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


def supervise(names: Sequence[str], command: Callable[[Sequence[str]], list[str]], file: Path, seconds: float) -> None:
    """Have processes run the sections until all are done or time is up; what becomes of each is in the file."""
    end, left = time.monotonic() + seconds, list(names)

    def note(section: str, why: str) -> None:
        found = {"kind": "failed", "section": section, "why": why}
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(found) + "\n")
        print(line_of(found), flush=True)

    while left and time.monotonic() < end:
        process, seen, since = subprocess.Popen(command(left)), 0, time.monotonic()
        why = ""
        while process.poll() is None:
            time.sleep(0.2)
            count = file.stat().st_size if file.exists() else 0
            if count != seen:
                seen, since = count, time.monotonic()
            if time.monotonic() > end or time.monotonic() - since > _PATIENCE:
                why = "time is up" if time.monotonic() > end else f"nothing was heard of it for {_PATIENCE:g} s"
                process.kill()
                process.wait()
        done = {x["section"] for x in lines_in(file) if x["kind"] == "done"}
        left = [name for name in left if name not in done]
        if left and (process.returncode not in (0, 3) or why):
            note(left.pop(0), why or f"its process ended with status {process.returncode}")
    for name in left:
        note(name, "no time was left for it")


def main(arguments: Sequence[str] | None = None) -> int:
    """Check and time everything; see the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rows, and fewer of everything")
    parser.add_argument("--out", type=Path, help="a directory for what is found, as JSON")
    parser.add_argument("--minutes", type=float, default=7.5, help="after so many, what is left is left out")
    parser.add_argument("--only", help=f"one section, or several with commas: {', '.join(SECTIONS)}")
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    names = options.only.split(",") if options.only else list(SECTIONS)
    if unknown := [name for name in names if name not in SECTIONS]:
        parser.error(f"there is no section {unknown[0]!r}: choose of {', '.join(SECTIONS)}")
    if not torch.cuda.is_available():
        print("benchmarks.gpu needs an NVIDIA GPU, and torch sees none: run it on a machine that has one")
        return 2
    if options.into is not None:
        return child(names, options.quick, options.into)
    folder = options.out or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "gpu.jsonl"
    file.unlink(missing_ok=True)
    about = {"gpu": torch.cuda.get_device_name(0), "torch": torch.__version__, "cuda": torch.version.cuda,
             "python": platform.python_version(), "torchivp": torchivp.__version__}  # fmt: skip
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)

    def command(left: Sequence[str]) -> list[str]:
        quick = ["--quick"] if options.quick else []
        return [sys.executable, "-m", "benchmarks.gpu", "--only", ",".join(left), "--into", str(file), *quick]

    supervise(names, command, file, 60 * options.minutes)
    return report(lines_in(file), about, folder if options.out else None)


def report(found: Sequence[dict[str, Any]], about: dict[str, Any], folder: Path | None) -> int:
    """Sum up what was found, and write it into a folder if there is one; gives the exit status."""
    checks, times = ([x for x in found if x["kind"] == kind] for kind in ("check", "time"))
    wrong = [x["name"] for x in checks if not x["ok"]]
    wrong += [f"section {x['section']} ({x['why']})" for x in found if x["kind"] == "failed"]
    print("\n| work | way | ms | ms on the GPU | bar |\n|---|---|---|---|---|")
    for x in times:
        gpu, bar = ("" if x[key] is None else f"{x[key]:.3f}" for key in ("gpu", "bar"))
        print(f"| {x['work']} | {x['way']} | {x['wall']:.3f} | {gpu} | {bar} |")
    if folder is not None:
        everything = {"about": about, "checks": checks, "times": times, "failed": wrong}
        (folder / "gpu.json").write_text(json.dumps(everything, indent=1), encoding="utf-8")
    passed = sum(x["ok"] for x in checks)
    print(f"\n{passed} of {len(checks)} checks passed; failed: {'; '.join(wrong) or 'nothing'}")
    return 1 if wrong or not checks + times else 0


if __name__ == "__main__":
    sys.exit(main())
