"""Compiled kernels beside libraries that compile: diffrax under jit, diffsol (pydiffsol), heyoka; and torchdiffeq.

Times are wall time, the shortest of some calls, on all cores; compilation and tracing do not count. Where a call ends
in states, those of the first, the middle and the last row are compared with SciPy's at tight tolerance: the error is
the largest difference, relative to the largest of its component in these rows. Peers that are not installed are left
out: the `bench` extra brings all of them.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torchdiffeq
from rich.console import Console
from rich.table import Table
from scipy import integrate
from torch import Tensor, nn

import torchivp
from benchmarks.fields import lorenz, lotka_volterra, robertson
from torchivp import ODE_METHODS, PIDController
from torchivp.fused.sensitivities import Sensitivities

DOUBLE = torch.float64
TIMES = torch.linspace(0.0, 20.0, 101, dtype=DOUBLE)
START = torch.tensor([10.0, 5.0], dtype=DOUBLE)
RATES = torch.tensor([1.5, 1.0, 3.0, 1.0], dtype=DOUBLE)
TOLERANCES = {"rtol": 1e-6, "atol": 1e-8}

Call = Callable[[], Any]


@dataclass(frozen=True)
class Way:
    """One way to do a piece of work.

    Attributes:
        name: what the table calls it.
        call: does it once; returns the last states, of all rows or the first, where the work is a solve.
        repeats: how often to call it.
    """

    name: str
    call: Call
    repeats: int = 30


def watched(rows: int) -> list[int]:
    """The rows whose errors are measured."""
    return sorted({0, rows // 2, rows - 1})


def by_scipy(
    func: Callable[..., Tensor], end: float, y0: Tensor, args: Tensor, method: Any, rtol: float, atol: float
) -> np.ndarray:
    """The last states, of rows of initial states and arguments."""

    def last(start: Tensor, arg: Tensor) -> np.ndarray:
        def field(t: float, y: np.ndarray) -> np.ndarray:
            return func(None, torch.from_numpy(y), arg).numpy()

        return integrate.solve_ivp(field, (0.0, end), start.numpy(), method, rtol=rtol, atol=atol).y[:, -1]

    return np.stack([last(*row) for row in zip(y0, args, strict=True)])


def starts(rows: int) -> Tensor:
    """Initial states of so many rows."""
    factors = torch.linspace(0.9, 1.1, rows, dtype=DOUBLE) if rows > 1 else torch.ones(1, dtype=DOUBLE)
    return START * factors.unsqueeze(1)


def forward(rows: int) -> Iterator[Way]:
    """Lotka-Volterra over [0, 20], dopri5, 101 outputs."""
    y0, repeats = starts(rows), 200 if rows < 100 else 5 if rows > 10_000 else 20
    options: dict[str, Any] = {"t_eval": TIMES, "args": (RATES,), "method": "dopri5", **TOLERANCES}
    if rows == 1:
        y0 = y0[0]
    else:
        options["batch_dims"] = 1

    def ours(backend: Any, **other: Any) -> Call:
        chosen: dict[str, Any] = {**options, "backend": backend, **other}
        return lambda: torchivp.solve_ivp(lotka_volterra, (0.0, 20.0), y0, **chosen).y[..., -1, :]

    yield Way("torchivp fused", ours("fused"), repeats)
    if rows == 1:
        yield Way("torchivp fused, dopri8, rtol 1e-8", ours("fused", method="dopri8", rtol=1e-8, atol=1e-10), repeats)
    if rows <= 1000:
        yield Way("torchivp eager", ours("eager"), 3)
    yield Way(
        "torchdiffeq dopri5, one step for all rows",
        lambda: torchdiffeq.odeint(lambda t, y: lotka_volterra(t, y, RATES), y0, TIMES, **TOLERANCES)[-1],
        3 if rows < 10_000 else 1,
    )
    for name, joint in (("rows", False), ("one step for all rows", True)):
        if (rows > 1 or joint) and (joint or rows <= 1000):
            yield from by_diffrax(f"diffrax Dopri5, jit, {name}", y0, joint, max(repeats // 4, 2))
    if rows == 1:
        yield from by_diffsol(repeats)
        yield from by_heyoka(repeats)


def by_diffrax(name: str, y0: Tensor, joint: bool, repeats: int) -> Iterator[Way]:
    """Lotka-Volterra by diffrax, in rows that share their steps or do not."""
    try:
        import diffrax  # pyright: ignore[reportMissingImports]
        import jax  # pyright: ignore[reportMissingImports]
        import jax.numpy as jnp  # pyright: ignore[reportMissingImports]
    except ImportError:
        return
    jax.config.update("jax_enable_x64", True)

    def field(t: Any, y: Any, rates: Any) -> Any:
        a, b, c, d = rates
        prey, predator = y[..., 0], y[..., 1]
        return jnp.stack([a * prey - b * prey * predator, -c * predator + d * prey * predator], -1)

    def solve(start: Any) -> Any:
        return diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Dopri5(),
            0.0,
            20.0,
            None,
            start,
            args=jnp.array(RATES.numpy()),
            stepsize_controller=diffrax.PIDController(**TOLERANCES),
            saveat=diffrax.SaveAt(ts=jnp.array(TIMES.numpy())),
            max_steps=None,
        ).ys

    compiled = jax.jit(solve if joint else jax.vmap(solve))
    start = jnp.array(y0.numpy())
    yield Way(
        name, lambda: np.asarray(compiled(start).block_until_ready())[-1 if joint else (slice(None), -1)], repeats
    )


DIFFSL = """
in_i {{ a = 1.5, b = 1, c = 3, d = 1{extra} }}
u_i {{ x = {x}, y = {y} }}
F_i {{ a*x - b*x*y, -c*y + d*x*y }}
"""


def diffsol(extra: str = "", x: str = "10", y: str = "5") -> Any:
    """Lotka-Volterra in diffsol's language, by its method of order 5; None without pydiffsol."""
    try:
        import pydiffsol  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    ode = pydiffsol.Ode(
        code=DIFFSL.format(extra=extra, x=x, y=y),
        matrix_type=pydiffsol.nalgebra_dense,
        scalar_type=pydiffsol.f64,
        ode_solver=pydiffsol.tsit45,
    )
    ode.rtol, ode.atol = TOLERANCES["rtol"], TOLERANCES["atol"]
    return ode


def by_diffsol(repeats: int) -> Iterator[Way]:
    """Lotka-Volterra by diffsol."""
    ode, t = diffsol(), TIMES.numpy()
    if ode is not None:
        yield Way("diffsol tsit45, compiled", lambda: ode.solve_dense(RATES.numpy(), t).ys[:, -1], repeats)


def by_heyoka(repeats: int, order: int = 0) -> Iterator[Way]:
    """Lotka-Volterra by heyoka's Taylor method, or its variational equations."""
    try:
        import heyoka as hy  # pyright: ignore[reportMissingImports]
    except ImportError:
        return
    x, y = hy.make_vars("x", "y")
    a, b, c, d = hy.par[0], hy.par[1], hy.par[2], hy.par[3]
    system: Any = [(x, a * x - b * x * y), (y, -c * y + d * x * y)]
    if order:
        system = hy.var_ode_sys(system, hy.var_args.vars | hy.var_args.params, order=order)
    taylor = hy.taylor_adaptive(system, START.tolist(), pars=RATES.tolist(), tol=1e-9)
    begin, t = np.array(taylor.state), TIMES.numpy()

    def solve() -> Any:
        taylor.time, taylor.state[:] = 0.0, begin
        return taylor.propagate_grid(t)[-1][-1][:2]

    yield Way("heyoka, Taylor, tol 1e-9", solve, repeats)


def backward(rows: int) -> Iterator[Way]:
    """The same, and the gradient of the sum of all outputs by initial states and rates."""
    y0 = starts(rows).requires_grad_()
    rates = RATES.clone().requires_grad_()

    def ours() -> Any:
        solution = torchivp.solve_ivp(
            lotka_volterra,
            (0.0, 20.0),
            y0,
            t_eval=TIMES,
            args=(rates,),
            method="dopri5",
            batch_dims=1,
            backend="fused",
            **TOLERANCES,
        )
        return torch.autograd.grad(solution.y.sum(), [y0, rates])

    def theirs() -> Any:
        states = torchdiffeq.odeint(lambda t, y: lotka_volterra(t, y, rates), y0, TIMES, **TOLERANCES)
        return torch.autograd.grad(states.sum(), [y0, rates])

    yield Way("torchivp fused", ours, 100)
    yield Way("torchdiffeq, backpropagation", theirs, 2)
    yield from diffrax_gradient(y0.detach())
    ode = diffsol(", x0 = 10, y0 = 5", "x0", "y0") if rows == 1 else None
    if ode is not None:
        ode.out_rtol = ode.out_atol = ode.param_rtol = ode.param_atol = 1e-6

        def adjoint() -> Any:
            parameters, t = np.concatenate([RATES.numpy(), START.numpy()]), TIMES.numpy()
            solution, checkpoint = ode.solve_adjoint_fwd(parameters, t)
            return ode.solve_adjoint_bkwd(solution, checkpoint, np.ones((2, len(t))))

        yield Way("diffsol, adjoint", adjoint, 20)


def diffrax_gradient(y0: Tensor) -> Iterator[Way]:
    """The gradient by diffrax, rows stepping on their own."""
    try:
        import diffrax  # pyright: ignore[reportMissingImports]
        import jax  # pyright: ignore[reportMissingImports]
        import jax.numpy as jnp  # pyright: ignore[reportMissingImports]
    except ImportError:
        return
    jax.config.update("jax_enable_x64", True)

    def field(t: Any, y: Any, rates: Any) -> Any:
        a, b, c, d = rates
        return jnp.stack([a * y[0] - b * y[0] * y[1], -c * y[1] + d * y[0] * y[1]])

    def solve(start: Any, rates: Any) -> Any:
        return diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Dopri5(),
            0.0,
            20.0,
            None,
            start,
            args=rates,
            stepsize_controller=diffrax.PIDController(**TOLERANCES),
            saveat=diffrax.SaveAt(ts=jnp.array(TIMES.numpy())),
            max_steps=1000,
        ).ys

    total = jax.jit(jax.grad(lambda y, rates: jax.vmap(solve, (0, None))(y, rates).sum(), argnums=(0, 1)))
    start, rates = jnp.array(y0.numpy()), jnp.array(RATES.numpy())
    yield Way("diffrax, jit, rows", lambda: total(start, rates)[0].block_until_ready(), 5)


def sensitivities(rows: int, states: int = 2) -> Iterator[Way]:
    """The same with the derivatives of all outputs by the four rates, and by so many initial states."""
    kernel = Sensitivities(
        lambda t, y, a, b, c, d: lotka_volterra(t, y, torch.stack([a, b, c, d])), 2, 4, ODE_METHODS["dopri5"]
    )
    y0, parameters = starts(rows), RATES.unsqueeze(1).expand(4, rows).contiguous()
    t0, t1, atol = torch.zeros(rows, dtype=DOUBLE), TIMES[-1:].expand(rows), torch.full((2,), 1e-8, dtype=DOUBLE)
    tangents = torch.zeros(rows, states + 4, 2, dtype=DOUBLE)
    tangents[:, :states] = torch.eye(2, dtype=DOUBLE)[:states]

    def ours(start: Tensor, moving: tuple[int, ...]) -> Call:
        options = {"rtol": 1e-6, "atol": atol, "controller": PIDController(), "max_steps": 100_000}
        return lambda: kernel.solve(y0, start, parameters, t0, t1, TIMES.expand(rows, -1), moving, **options)

    repeats = 100 if rows < 1000 else 5
    yield Way("torchivp fused", ours(tangents, (0, 1, 2, 3)), repeats)
    yield Way("torchivp fused, without derivatives", ours(tangents[:, :0], ()), repeats)
    if rows == 1:
        yield from by_heyoka(100, order=1)
        ode = diffsol(", x0 = 10, y0 = 5", "x0", "y0")
        if ode is not None:
            values, t = np.concatenate([RATES.numpy(), START.numpy()]), TIMES.numpy()
            yield Way("diffsol, forward sensitivities", lambda: ode.solve_fwd_sens(values, t).ys[:, -1], 100)


def stiff_sensitivities(rows: int) -> Iterator[Way]:
    """Robertson's reactions at 40 times, with the derivatives of all outputs by the three rates."""
    kernel = Sensitivities(robertson, 3, 3, ODE_METHODS["rodas5p"])
    y0 = torch.tensor([1.0, 0.0, 0.0], dtype=DOUBLE).expand(rows, 3)
    rates = torch.tensor([0.04, 3e7, 1e4], dtype=DOUBLE).unsqueeze(1).expand(3, rows)
    t, atol = torch.logspace(-5, 5, 40, dtype=DOUBLE), torch.full((3,), 1e-10, dtype=DOUBLE)
    t0, t1, tangents = torch.zeros(rows, dtype=DOUBLE), t[-1:].expand(rows), torch.zeros(rows, 3, 3, dtype=DOUBLE)

    def ours(start: Tensor, moving: tuple[int, ...]) -> Call:
        options = {"rtol": 1e-6, "atol": atol, "controller": PIDController(), "max_steps": 100_000}
        return lambda: kernel.solve(y0, start, rates, t0, t1, t.expand(rows, -1), moving, **options)

    yield Way("torchivp fused, rodas5p", ours(tangents, (0, 1, 2)), 100)
    yield Way("torchivp fused, rodas5p, without derivatives", ours(tangents[:, :0], ()), 100)


def many_lorenz(rows: int = 10_000) -> Iterator[Way]:
    """Lorenz's equations over [0, 10] with another rho in every row."""
    rho = torch.linspace(0.0, 21.0, rows, dtype=DOUBLE)
    y0 = torch.tensor([1.0, 0.0, 0.0], dtype=DOUBLE).expand(rows, 3).contiguous()
    t = torch.tensor([10.0], dtype=DOUBLE)
    yield Way(
        "torchivp fused",
        lambda: torchivp.solve_ivp(
            lorenz, (0.0, 10.0), y0, t_eval=t, args=(rho,), method="dopri5", batch_dims=1, backend="fused", **TOLERANCES
        ).y[:, -1],
        5,
    )
    try:
        import diffrax  # pyright: ignore[reportMissingImports]
        import jax  # pyright: ignore[reportMissingImports]
        import jax.numpy as jnp  # pyright: ignore[reportMissingImports]
    except ImportError:
        return
    jax.config.update("jax_enable_x64", True)

    def field(t: Any, y: Any, rho: Any) -> Any:
        return jnp.stack([10.0 * (y[1] - y[0]), y[0] * (rho - y[2]) - y[1], y[0] * y[1] - 8.0 / 3.0 * y[2]])

    def solve(rho: Any) -> Any:
        return diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Dopri5(),
            0.0,
            10.0,
            None,
            jnp.array([1.0, 0.0, 0.0]),
            args=rho,
            stepsize_controller=diffrax.PIDController(**TOLERANCES),
            max_steps=None,
        ).ys[-1]

    compiled, all_rho = jax.jit(jax.vmap(solve)), jnp.array(rho.numpy())
    yield Way("diffrax Dopri5, vmap and jit", lambda: np.asarray(compiled(all_rho).block_until_ready()), 2)


def network(with_gradient: bool) -> Iterator[Way]:
    """A network 2-64-64-2 with tanh as the right-hand side, 256 rows in single precision over [0, 1]."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
    y0, t = torch.randn(256, 2), torch.tensor([0.0, 1.0], dtype=DOUBLE)
    tolerances = {"rtol": 1e-5, "atol": 1e-6}
    parameters = list(net.parameters())

    def done(last: Tensor) -> Any:
        if not with_gradient:
            return last.detach()
        torch.autograd.grad(last.square().sum(), parameters)
        return None

    def ours() -> Any:
        with torch.set_grad_enabled(with_gradient):
            solution = torchivp.solve_ivp(
                lambda t, y: net(y),
                (0.0, 1.0),
                y0,
                t_eval=t,
                method="dopri5",
                batch_dims=1,
                backend="fused",
                **tolerances,
            )
            return done(solution.y[:, -1])

    def theirs() -> Any:
        with torch.set_grad_enabled(with_gradient):
            return done(torchdiffeq.odeint(lambda t, y: net(y), y0, t, **tolerances)[-1])

    yield Way("torchivp fused", ours)
    yield Way("torchdiffeq", theirs, 10)
    yield from network_by_diffrax(net, y0, tolerances, with_gradient)


def network_by_diffrax(net: nn.Sequential, y0: Tensor, tolerances: Any, with_gradient: bool) -> Iterator[Way]:
    """The same network by diffrax, one step for all rows."""
    try:
        import diffrax  # pyright: ignore[reportMissingImports]
        import jax  # pyright: ignore[reportMissingImports]
        import jax.numpy as jnp  # pyright: ignore[reportMissingImports]
    except ImportError:
        return
    weights = [jnp.array(p.detach().numpy()) for p in net.parameters()]

    def field(t: Any, y: Any, w: Any) -> Any:
        y = jnp.tanh(y @ w[0].T + w[1])
        y = jnp.tanh(y @ w[2].T + w[3])
        return y @ w[4].T + w[5]

    def last(w: Any, start: Any) -> Any:
        return diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Dopri5(),
            jnp.float32(0.0),
            jnp.float32(1.0),
            None,
            start,
            args=w,
            stepsize_controller=diffrax.PIDController(**tolerances),
            max_steps=256 if with_gradient else None,
        ).ys[-1]

    start = jnp.array(y0.numpy())
    if with_gradient:
        gradient = jax.jit(jax.grad(lambda w: (last(w, start) ** 2).sum()))
        yield Way("diffrax, jit, one step for all rows", lambda: jax.block_until_ready(gradient(weights)), 5)
    else:
        compiled = jax.jit(last)
        yield Way(
            "diffrax, jit, one step for all rows",
            lambda: np.asarray(compiled(weights, start).block_until_ready()),
            10,
        )


def training(epochs: int = 60) -> Iterator[Way]:
    """The article's training of Lotka-Volterra's rates: rk4 with steps of 0.1, Adam, 60 epochs."""

    class Rates(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rates = nn.Parameter(torch.tensor([1.4, 0.9, 2.8, 1.1], dtype=DOUBLE))

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return lotka_volterra(t, y, self.rates)

    t = torch.linspace(0.0, 20.0, 201, dtype=DOUBLE)
    y0 = torch.tensor([1.0, 1.0], dtype=DOUBLE)
    data = torchivp.odeint(lambda t, y: lotka_volterra(t, y, RATES), y0, t)

    def train(odeint: Any, options: dict[str, Any]) -> Any:
        model = Rates()
        adam = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(epochs):
            adam.zero_grad()
            (odeint(model, y0, t, method="rk4", options=options) - data).square().mean().backward()
            adam.step()

    fixed = {"step_size": 0.1}
    yield Way("torchivp fused", lambda: train(torchivp.odeint, fixed | {"backend": "fused"}), 3)
    yield Way("torchivp eager", lambda: train(torchivp.odeint, fixed), 1)
    yield Way("torchdiffeq", lambda: train(torchdiffeq.odeint, fixed), 1)


def stiff(rows: int) -> Iterator[Way]:
    """Robertson's reactions to 1e5, rtol 1e-6, atol 1e-9, each row with a rate constant of its own."""
    k = torch.full((1,), 0.04, dtype=DOUBLE) if rows == 1 else torch.linspace(0.02, 0.08, rows, dtype=DOUBLE)
    y0 = torch.tensor([1.0, 0.0, 0.0], dtype=DOUBLE).expand(rows, 3).contiguous()
    t = torch.tensor([1e5], dtype=DOUBLE)

    def ours(backend: Any, method: str) -> Call:
        return lambda: torchivp.solve_ivp(
            robertson,
            (0.0, 1e5),
            y0,
            t_eval=t,
            args=(k,),
            method=method,
            rtol=1e-6,
            atol=1e-9,
            batch_dims=1,
            backend=backend,
        ).y[:, -1]

    yield Way("torchivp fused, rodas5p", ours("fused", "rodas5p"), 50 if rows == 1 else 5)
    yield Way("torchivp eager, rodas5p", ours("eager", "rodas5p"), 1)
    from benchmarks.stiff import ROBER, by_diffrax, by_diffsol

    parameters = None if rows == 1 else k
    jitted = by_diffrax(ROBER, 1e-6, 1e-9, parameters)
    if jitted is not None:
        yield Way("diffrax Kvaerno5, jit", lambda: jitted().y[None], 2)
    compiled = by_diffsol(ROBER, 1e-6, 1e-9) if rows == 1 else None
    if compiled is not None:
        yield Way("diffsol BDF, compiled", lambda: compiled().y[None], 50)


def falling(t: Tensor, y: Tensor, g: Tensor) -> Tensor:
    """A ball in the air."""
    speed = y[..., 1]
    return torch.stack((speed, -g - 0.02 * speed * speed.abs()), -1)


def height(t: Tensor, y: Tensor, g: Tensor) -> Tensor:
    """That of the ball."""
    return y[..., 0]


def bounced(t: Tensor, y: Tensor) -> Tensor:
    """The ball after it has met the ground."""
    return torch.stack((torch.zeros_like(y[..., 0]), -0.8 * y[..., 1]), -1)


def absorption(t: Tensor, y: Tensor, rates: Tensor) -> Tensor:
    """A drug in the gut and in the blood."""
    gut, blood = y.unbind(-1)
    into, out = rates.unbind(-1)
    return torch.stack((-into * gut, into * gut - out * blood), -1)


def dosed(t: Tensor, y: Tensor) -> Tensor:
    """The amounts after a dose."""
    return y + torch.tensor([100.0, 0.0], dtype=DOUBLE)


def on_the_way(rows: int, ball: bool, with_gradient: bool = False) -> Iterator[Way]:
    """A ball that bounces for six seconds, or 30 daily doses; dopri5, 101 outputs."""
    spread = torch.linspace(0.8, 1.2, rows, dtype=DOUBLE).unsqueeze(1) if rows > 1 else torch.ones(1, 1, dtype=DOUBLE)
    if ball:
        func, end, y0, args = falling, 6.0, torch.tensor([10.0, 0.0], dtype=DOUBLE) * spread, 9.81 * spread.squeeze(1)
        events: Any = torchivp.Event(height, direction=-1, apply=bounced)
    else:
        func, end, y0, args = absorption, 720.0, torch.zeros(rows, 2, dtype=DOUBLE), torch.tensor([1.2, 0.15]) * spread
        events = torchivp.Scheduled(24.0 * torch.arange(30, dtype=DOUBLE), dosed)
    if rows == 1:
        y0, args = y0[0], args[0]
    args = args.clone().requires_grad_(with_gradient)
    options: dict[str, Any] = {"t_eval": torch.linspace(0.0, end, 101, dtype=DOUBLE), "events": events}
    options |= {"args": (args,), "method": "dopri5", "batch_dims": int(rows > 1), **TOLERANCES}

    def ours(backend: Any) -> Call:
        chosen: dict[str, Any] = {**options, "backend": backend}

        def solve() -> Any:
            y = torchivp.solve_ivp(func, (0.0, end), y0, **chosen).y
            return torch.autograd.grad(y.sum(), args) if with_gradient else y

        return solve

    yield Way("torchivp fused", ours("fused"), 20)
    yield Way("torchivp eager", ours("eager"), 2)


def exact_lotka_volterra(rows: int) -> np.ndarray:
    """What `forward` ends in."""
    y0 = starts(rows)[watched(rows)]
    return by_scipy(lotka_volterra, 20.0, y0, RATES.expand(len(y0), 4), "DOP853", 1e-12, 1e-12)


def exact_lorenz(rows: int = 10_000) -> np.ndarray:
    """What `many_lorenz` ends in."""
    rho = torch.linspace(0.0, 21.0, rows, dtype=DOUBLE)[watched(rows)]
    y0 = torch.tensor([1.0, 0.0, 0.0], dtype=DOUBLE).expand(len(rho), 3)
    return by_scipy(lorenz, 10.0, y0, rho, "DOP853", 1e-12, 1e-12)


def exact_robertson(rows: int) -> np.ndarray:
    """What `stiff` ends in."""
    k = torch.full((1,), 0.04, dtype=DOUBLE) if rows == 1 else torch.linspace(0.02, 0.08, rows, dtype=DOUBLE)
    k = k[watched(rows)]
    y0 = torch.tensor([1.0, 0.0, 0.0], dtype=DOUBLE).expand(len(k), 3)
    return by_scipy(robertson, 1e5, y0, k, "Radau", 1e-11, 1e-15)


@dataclass(frozen=True)
class Work:
    """Something to do.

    Attributes:
        ways: the ways to do it.
        rows: how many rows it has, where its errors are measured.
        exact: what the watched rows end in.
    """

    ways: Callable[[], Iterator[Way]]
    rows: int = 0
    exact: Callable[[], np.ndarray] | None = None


WORK: dict[str, Work] = {
    **{
        f"Lotka-Volterra, {name}": Work(partial(forward, rows), rows, partial(exact_lotka_volterra, rows))
        for name, rows in (("1 row", 1), ("30 rows", 30), ("1000 rows", 1000), ("100 000 rows", 100_000))
    },
    "forward and backward, 1 row": Work(partial(backward, 1)),
    "forward and backward, 30 rows": Work(partial(backward, 30)),
    "forward sensitivities, 1 row": Work(partial(sensitivities, 1)),
    "forward sensitivities, 30 rows": Work(partial(sensitivities, 30)),
    "forward sensitivities by the rates, 10 000 rows": Work(partial(sensitivities, 10_000, 0)),
    "forward sensitivities of Robertson, 1 row": Work(partial(stiff_sensitivities, 1)),
    "Lorenz, 10 000 rows": Work(many_lorenz, 10_000, exact_lorenz),
    "network, 256 rows, forward": Work(partial(network, False)),
    "network, 256 rows, forward and backward": Work(partial(network, True)),
    "training, rk4, 60 epochs": Work(training),
    "Robertson, 1 row": Work(partial(stiff, 1), 1, partial(exact_robertson, 1)),
    "Robertson, 1000 rows": Work(partial(stiff, 1000), 1000, partial(exact_robertson, 1000)),
    **{
        f"{what}, {name}{', forward and backward' if back else ''}": Work(partial(on_the_way, rows, ball, back))
        for what, ball in (("bouncing ball", True), ("daily doses", False))
        for name, rows in (("1 row", 1), ("1000 rows", 1000))
        for back in (False, True)
    },
}
"""What is done, by what the table calls it."""


def error_of(states: Any, exact: np.ndarray, rows: int) -> float:
    """The largest difference of the watched rows, or of the first alone, relative to the largest of each component."""
    found = np.asarray(states).reshape(-1, exact.shape[-1])
    found = found[watched(rows)] if len(found) == rows else found[:1]
    return float((abs(found - exact[: len(found)]) / abs(exact).max(0)).max())


def seconds(way: Way) -> float:
    """The shortest of its calls, after one that does not count."""
    way.call()
    best = math.inf
    for _ in range(way.repeats):
        begin = time.perf_counter()
        way.call()
        best = min(best, time.perf_counter() - begin)
    return best


def main() -> None:
    """Print a table for each piece of work."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="the work whose name contains this")
    parser.add_argument("--ours", action="store_true", help="torchivp's kernels alone")
    options = parser.parse_args()
    console = Console(width=110)
    for name, work in WORK.items():
        if options.only.lower() not in name.lower():
            continue
        exact, first = work.exact and work.exact(), None
        columns = ("way", "ms", "times the first", *(() if exact is None else ("error",)))
        table = Table(*columns, title=f"{name}, {torch.get_num_threads()} threads")
        for way in work.ways():
            if options.ours and not way.name.startswith("torchivp fused"):
                continue
            try:
                took = seconds(way)
            except ValueError as error:  # there is no kernel
                table.add_row(way.name, str(error)[:60], "")
                continue
            first = first or took
            error = () if exact is None else (f"{error_of(way.call(), exact, work.rows):.1e}",)
            table.add_row(way.name, f"{1e3 * took:.3g}", f"{took / first:.3g}", *error)
        console.print(table)


if __name__ == "__main__":
    main()
