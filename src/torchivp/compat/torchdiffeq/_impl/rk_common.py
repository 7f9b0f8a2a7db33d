"""Runge-Kutta solvers: their tableaus, and single steps."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchivp.compat.torchdiffeq._impl.misc import (
    Perturb,
    _compute_error_ratio,
    _optimal_step_size,
    _select_initial_step,
)
from torchivp.compat.torchdiffeq._impl.solvers import EngineAdaptiveSolver
from torchivp.methods import ODE_METHODS
from torchivp.methods.method import Method
from torchivp.methods.ode.order_conditions import residual
from torchivp.methods.ode.runge_kutta import ExplicitRungeKutta
from torchivp.methods.ode.tableau import ButcherTableau

__all__ = ["_compute_error_ratio", "_optimal_step_size", "_select_initial_step"]
"""Names that programs import from here although they are defined elsewhere."""


class _ButcherTableau(NamedTuple):
    """The coefficients of an explicit Runge-Kutta method.

    Attributes:
        alpha: the nodes of the stages after the first.
        beta: their rows.
        c_sol: the weights.
        c_error: the weights of the error estimate.
    """

    alpha: Tensor
    beta: Sequence[Tensor]
    c_sol: Tensor
    c_error: Tensor


class _RungeKuttaState(NamedTuple):
    """The last step of a solver: state and slope at its end, the step, the size of the next, the interpolant."""

    y1: Tensor
    f1: Tensor
    t0: Tensor
    t1: Tensor
    dt: Tensor
    interp_coeff: Sequence[Tensor]


class _UncheckedAssign(torch.autograd.Function):
    """Writes `value` into `scratch` at `index`, and returns `scratch`.

    Autograd does not count it as a change of `scratch`, so that what used other parts of it can be differentiated.
    """

    @staticmethod
    def forward(scratch: Tensor, value: Tensor, index: Any) -> Tensor:
        scratch.data[index] = value
        return scratch

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.index = inputs[2]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0], grads[0][ctx.index], None


def tableau_of(name: str) -> _ButcherTableau:
    """The tableau of a method of torchivp's that estimates its error."""
    method = ODE_METHODS[name]
    assert issubclass(method, ExplicitRungeKutta) and method.tableau.b_embedded is not None
    tableau = method.tableau
    c_sol = torch.tensor(tableau.b, dtype=torch.float64)
    return _ButcherTableau(
        alpha=torch.tensor(tableau.c[1:], dtype=torch.float64),
        beta=[torch.tensor(row, dtype=torch.float64) for row in tableau.a[1:]],
        c_sol=c_sol,
        c_error=c_sol - torch.tensor(tableau.b_embedded, dtype=torch.float64),
    )


def method_from(name: str, order: int, tableau: _ButcherTableau) -> type[Method]:
    """The method of a tableau, as one of torchivp's.

    Raises:
        ValueError: the weights are not of the `order`, or estimate no error.
    """
    rows = [(), *(torch.as_tensor(row).tolist() for row in tableau.beta)]
    b = torch.as_tensor(tableau.c_sol, dtype=torch.float64)
    embedded = (b - torch.as_tensor(tableau.c_error)).tolist()
    a = np.array([[*row, *[0.0] * (len(rows) - len(row))] for row in rows])
    matches = [p for p in range(order, 0, -1) if residual(a, np.array(embedded), p) < 1e-13]
    if not matches:
        raise ValueError(f"{name}: c_sol - c_error must be the weights of a method, and has order 0")
    coefficients = ButcherTableau(
        order=order,
        c=(0.0, *torch.as_tensor(tableau.alpha).tolist()),
        a=rows,
        b=b.tolist(),
        b_embedded=embedded,
        embedded_order=matches[0],
    )
    return types.new_class(name, (ExplicitRungeKutta,), exec_body=lambda body: body.update(tableau=coefficients))


class RKAdaptiveStepsizeODESolver(EngineAdaptiveSolver):
    """An adaptive Runge-Kutta solver. One of your own defines `order` and `tableau`; torchivp does the rest.

    Its dense output is the cubic Hermite interpolant: `mid`, the weights of the middle of a step, is not used.
    """

    order: ClassVar[int]
    tableau: ClassVar[_ButcherTableau]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "tableau" in cls.__dict__ and "method" not in cls.__dict__:
            cls.method = method_from(cls.__name__, cls.order, cls.tableau)


def _runge_kutta_step(
    func: Callable[..., Tensor], y0: Tensor, f0: Tensor, t0: Tensor, dt: Tensor, t1: Tensor, tableau: _ButcherTableau
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One step of the method of a tableau.

    Returns:
        The state at `t1`, the last stage, the estimate of the error, and the stages, [*y0.shape, number of stages].
    """
    k = _stages(func, y0, f0, t0, dt, t1, tableau.alpha.tolist(), tableau.beta)
    return y0 + _combine(k, tableau.c_sol, dt), k[-1], _combine(k, tableau.c_error, dt), torch.stack(k, dim=-1)


def rk4_step_func(
    func: Callable[..., Tensor],
    t0: Tensor,
    dt: Tensor,
    t1: Tensor,
    y0: Tensor,
    f0: Tensor | None = None,
    perturb: bool = False,
) -> Tensor:
    """The change of `y` in a step of the method of order 4 of the textbooks."""
    return _change("rk4_classic", func, t0, dt, t1, y0, f0, perturb)


def rk4_alt_step_func(
    func: Callable[..., Tensor],
    t0: Tensor,
    dt: Tensor,
    t1: Tensor,
    y0: Tensor,
    f0: Tensor | None = None,
    perturb: bool = False,
) -> Tensor:
    """The change of `y` in a step of the 3/8 rule, which the method "rk4" is."""
    return _change("rk4", func, t0, dt, t1, y0, f0, perturb)


def _change(
    name: str,
    func: Callable[..., Tensor],
    t0: Tensor,
    dt: Tensor,
    t1: Tensor,
    y0: Tensor,
    f0: Tensor | None,
    perturb: bool,
) -> Tensor:
    method = ODE_METHODS[name]
    assert issubclass(method, ExplicitRungeKutta)
    _, *nodes = method.tableau.c
    _, *rows = method.tableau.a
    if f0 is None:
        f0 = func(t0, y0, perturb=Perturb.NEXT) if perturb else func(t0, y0)
    k = _stages(func, y0, f0, t0, dt, t1, nodes, [torch.tensor(row, dtype=torch.float64) for row in rows], perturb)
    return _combine(k, torch.tensor(method.tableau.b, dtype=torch.float64), dt)


def _stages(
    func: Callable[..., Tensor],
    y0: Tensor,
    f0: Tensor,
    t0: Tensor,
    dt: Tensor,
    t1: Tensor,
    nodes: Sequence[float],
    rows: Sequence[Tensor],
    perturb: bool = False,
) -> list[Tensor]:
    k = [f0]
    for node, row in zip(nodes, rows, strict=True):
        y = y0 + _combine(k, row, dt)
        if node != 1:
            k.append(func(t0 + node * dt, y))
        else:
            k.append(func(t1, y, perturb=Perturb.PREV) if perturb else func(t1, y))
    return k


def _combine(k: Sequence[Tensor], weights: Tensor, dt: Tensor) -> Tensor:
    stages = torch.stack(list(k), dim=-1)
    return torch.sum(stages * (weights.to(stages) * dt.to(stages.dtype.to_real())), dim=-1)
