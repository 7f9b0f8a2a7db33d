"""`odeint` and its relatives, for methods of torchivp and for solver classes that programs bring along."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from torchivp.api import ode
from torchivp.api.options import read_options
from torchivp.compat.failure import TorchdiffeqFailure
from torchivp.compat.torchdiffeq._impl.adams import VariableCoefficientAdamsBashforth
from torchivp.compat.torchdiffeq._impl.adaptive_heun import AdaptiveHeunSolver
from torchivp.compat.torchdiffeq._impl.bosh3 import Bosh3Solver
from torchivp.compat.torchdiffeq._impl.dopri5 import Dopri5Solver
from torchivp.compat.torchdiffeq._impl.dopri8 import Dopri8Solver
from torchivp.compat.torchdiffeq._impl.fehlberg2 import Fehlberg2
from torchivp.compat.torchdiffeq._impl.fixed_adams import AdamsBashforth, AdamsBashforthMoulton
from torchivp.compat.torchdiffeq._impl.fixed_grid import RK4, Euler, Heun2, Heun3, Midpoint
from torchivp.compat.torchdiffeq._impl.fixed_grid_implicit import (
    SDIRK2,
    TRBDF2,
    GaussLegendre4,
    GaussLegendre6,
    ImplicitEuler,
    ImplicitMidpoint,
    RadauIIA3,
    RadauIIA5,
    Trapezoid,
)
from torchivp.compat.torchdiffeq._impl.misc import _check_inputs, _flat_to_shape
from torchivp.compat.torchdiffeq._impl.scipy_wrapper import ScipyWrapperODESolver
from torchivp.compat.torchdiffeq._impl.solvers import EngineSolver, MethodOrName
from torchivp.compat.torchdiffeq._impl.tsit5 import Tsit5Solver
from torchivp.dense import DenseSolution
from torchivp.methods import find_method
from torchivp.methods.method import Method
from torchivp.solution import raising
from torchivp.state import StateLayout

SOLVERS: dict[str, type[Any]] = {
    "dopri8": Dopri8Solver,
    "dopri5": Dopri5Solver,
    "tsit5": Tsit5Solver,
    "bosh3": Bosh3Solver,
    "fehlberg2": Fehlberg2,
    "adaptive_heun": AdaptiveHeunSolver,
    "euler": Euler,
    "midpoint": Midpoint,
    "heun2": Heun2,
    "heun3": Heun3,
    "rk4": RK4,
    "explicit_adams": AdamsBashforth,
    "implicit_adams": AdamsBashforthMoulton,
    "fixed_adams": AdamsBashforthMoulton,
    "adams": VariableCoefficientAdamsBashforth,
    "implicit_euler": ImplicitEuler,
    "implicit_midpoint": ImplicitMidpoint,
    "trapezoid": Trapezoid,
    "radauIIA3": RadauIIA3,
    "gl4": GaussLegendre4,
    "radauIIA5": RadauIIA5,
    "gl6": GaussLegendre6,
    "sdirk2": SDIRK2,
    "trbdf2": TRBDF2,
    "scipy_solver": ScipyWrapperODESolver,
}
"""The solver classes by the names that `method=` takes. A class that a program adds is found under its name."""


def odeint(
    func: Callable[..., Any],
    y0: Any,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: Any = None,
    options: Mapping[str, Any] | None = None,
    event_fn: Callable[..., Any] | None = None,
) -> Any:
    """`torchivp.odeint`, whose `method` may also be a solver class or the name of one in `SOLVERS`."""
    solver = find_solver(method)
    if solver is not None and not _on_engine(solver):
        return _solve_elsewhere(solver, func, y0, t, rtol, atol, options, event_fn)
    method, options = engine_method(method, func, y0, rtol, atol, options)
    with raising(TorchdiffeqFailure):
        return ode.odeint(func, y0, t, rtol=rtol, atol=atol, method=method, options=options, event_fn=event_fn)


def odeint_event(
    func: Callable[..., Any],
    y0: Any,
    t0: Tensor,
    *,
    event_fn: Callable[..., Any],
    reverse_time: bool = False,
    odeint_interface: Callable[..., Any] = odeint,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    """`torchivp.odeint_event`, whose `odeint_interface` is the `odeint` of this module."""
    return ode.odeint_event(
        func,
        y0,
        t0,
        event_fn=event_fn,
        reverse_time=reverse_time,
        odeint_interface=odeint_interface,
        **kwargs,
    )


def odeint_dense(
    func: Callable[..., Any],
    y0: Any,
    t0: Any,
    t1: Any,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: Any = None,
    options: Mapping[str, Any] | None = None,
) -> DenseSolution:
    """`torchivp.odeint_dense`, whose `method` may also be a solver class or the name of one in `SOLVERS`."""
    method, options = engine_method(method, func, y0, rtol, atol, options)
    with raising(TorchdiffeqFailure):
        return ode.odeint_dense(func, y0, t0, t1, rtol=rtol, atol=atol, method=method, options=options)


def find_solver(method: Any) -> type[Any] | None:
    """The solver class that `method` is or names; None for what torchivp itself must know."""
    if isinstance(method, type) and not issubclass(method, Method):
        return method
    return SOLVERS.get(method or "dopri5") if method is None or isinstance(method, str) else None


def resolve(method: Any) -> type[Any]:
    """The class that takes the steps: one of torchivp's methods, or a solver class that a program brought along."""
    solver = find_solver(method)
    if solver is None:
        return find_method(method)
    return find_method(solver.method) if solver.__module__.startswith("torchivp.") else solver


def engine_method(
    method: Any, func: Callable[..., Any], y0: Any, rtol: Any, atol: Any, options: Mapping[str, Any] | None
) -> tuple[MethodOrName | None, Mapping[str, Any] | None]:
    """The method and options for torchivp's own functions.

    Raises:
        TypeError: `method` is a solver that integrates by itself.
    """
    solver = find_solver(method)
    if solver is None:
        return method, options
    if not _on_engine(solver):
        raise TypeError(
            f"{solver.__name__} has an integrate() of its own, which odeint calls and nothing else can: let it define "
            "_step_func only"
        )
    if solver.__module__.startswith("torchivp."):
        return solver.method, options
    state = y0 if isinstance(y0, Tensor) else StateLayout(y0).flatten(y0)[0]
    # The solver lives on in the class of its method until the garbage collector comes; the graph must not.
    return solver(func=func, y0=state.detach(), rtol=rtol, atol=atol, **read_options("options", options)).steps()


def _on_engine(solver: type[Any]) -> bool:
    """Whether torchivp takes the steps of this solver class."""
    ours = (EngineSolver.integrate, EngineSolver.integrate_until_event)
    return issubclass(solver, EngineSolver) and (solver.integrate, solver.integrate_until_event) == ours


def _solve_elsewhere(
    solver: type[Any],
    func: Callable[..., Any],
    y0: Any,
    t: Tensor,
    rtol: Any,
    atol: Any,
    options: Mapping[str, Any] | None,
    event_fn: Callable[..., Any] | None,
) -> Any:
    """Let a solver class that integrates by itself do so."""
    shapes, func, y0, t, rtol, atol, _, options, event_fn, is_reversed = _check_inputs(
        func, y0, t, rtol, atol, solver.__name__, options, event_fn, {solver.__name__: solver}
    )
    instance = solver(func=func, y0=y0, rtol=rtol, atol=atol, **(options or {}))

    def as_user(solution: Tensor) -> Any:
        return solution if shapes is None else _flat_to_shape(solution, (len(solution),), shapes)

    if event_fn is None:
        return as_user(instance.integrate(t))
    event_t, solution = instance.integrate_until_event(t[0], event_fn)
    event_t = event_t.to(t)
    return -event_t if is_reversed else event_t, as_user(solution)
