"""Arguments that the front doors share, checked."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from torchivp.checks import check_whole_number
from torchivp.error_norm import ErrorNorm, check_tolerance
from torchivp.failures import is_finite
from torchivp.gradients.backsolve import Backsolve
from torchivp.gradients.checkpointed import Checkpointed
from torchivp.gradients.direct import Direct
from torchivp.gradients.forward import Forward
from torchivp.integrate import Integration, at_steps, check_controller, check_norm
from torchivp.jacobian_check import check_given_jacobian
from torchivp.mass import Mass
from torchivp.methods import ODE_METHODS
from torchivp.methods.consistent import consistent
from torchivp.methods.method import FlatFunc, Method
from torchivp.methods.pattern import found_sparsity
from torchivp.problem import FlatFunction, Problem
from torchivp.sparsity import is_sought
from torchivp.split import Split
from torchivp.state import StateLayout
from torchivp.times import Times
from torchivp.torch_func import read

if TYPE_CHECKING:
    from torchivp.api.statement import Statement

Gradient = Direct | Checkpointed | Backsolve | Forward
GradientName = Literal["direct", "checkpointed", "backsolve", "forward"]
GRADIENTS: dict[str, type[Gradient]] = {
    "direct": Direct,
    "checkpointed": Checkpointed,
    "backsolve": Backsolve,
    "forward": Forward,
}
"""Every way to differentiate a solve, by the name that `gradient=` takes."""


def find_gradient(gradient: str | Gradient) -> Gradient:
    """The gradient given by name or object.

    Raises:
        ValueError: the name is unknown.
        TypeError: it is neither a name nor a gradient.
    """
    if isinstance(gradient, Gradient):
        return gradient
    if isinstance(gradient, str) and gradient in GRADIENTS:
        return GRADIENTS[gradient]()
    names = ", ".join(map(repr, GRADIENTS))
    if isinstance(gradient, str):
        raise ValueError(f"unknown gradient {gradient!r}: it must be one of {names}")
    raise TypeError(
        f"gradient must be one of {names} or an object such as Checkpointed(checkpoints=20), got {gradient!r}"
    )


def build_integration(stated: Statement, times: Times) -> tuple[Integration, StateLayout]:
    """How the step loop of one row solves a problem, and the layout of the user's state."""
    args, jac_sparsity, controller = stated.args, stated.jac_sparsity, stated.controller
    problem = Problem.build(stated.func, stated.y0, times, args, stated.jac, jac_sparsity, stated.mass)
    assert isinstance(problem.func, FlatFunction)
    problem.y0 = consistent_start(problem.func.with_args(args), problem.time(times.at(times.start)), problem.y0)
    layout = problem.func.layout
    function = problem.func.with_args(args)  # its evaluations are not those of the solve
    if is_sought(jac_sparsity):
        start, span = (problem.time(t) for t in (times.start, times.end - times.start))
        function.sparsity = problem.func.sparsity = found_sparsity(function, start, problem.y0, span)
    check_given_jacobian(function, problem.time(times.start), problem.y0, layout.name, layout.lead)
    method = at_steps(stated.method, controller)
    error_norm = norm_of(layout, stated.rtol, stated.atol, stated.norm)
    integration = Integration(
        problem=problem,
        method=method(problem.y0, problem.real_dtype, error_norm),
        controller=check_controller(controller, method),
        norm=check_norm(error_norm, controller),
        max_steps=check_whole_number("max_steps", stated.max_steps, 1),
        describe=layout.name,
        callbacks=stated.callbacks and replace(stated.callbacks, unflatten=layout.unflatten),
    )
    return integration, layout


def check_jacobian(func: Any, method: type[Method], y0: Any, batch_dims: int, jac: Any, jac_sparsity: Any) -> Any:
    """The user's function for the Jacobian of `func`, or one that returns the constant matrix that was given.

    Raises:
        TypeError: it is neither.
        ValueError: the method uses no such Jacobian, or the state is not one real tensor.
    """
    name = "jac" if jac is not None else "jac_sparsity"
    if jac is None and jac_sparsity is None:
        return None
    if not method.uses_jacobian:
        raise ValueError(f"{method.__name__} uses no Jacobian: leave {name} out, or choose a method for stiff problems")
    if isinstance(func, Split) and not method.splits:
        names = ", ".join(f"{name!r}" for name, other in ODE_METHODS.items() if other.splits)
        raise ValueError(
            f"with func=(explicit, implicit) {name} is that of the implicit function, which {method.__name__} does not "
            f"treat by itself: leave {name} out, choose one of {names}, or write the sum as one function"
        )
    if jac is not None and is_sought(jac_sparsity):
        raise ValueError(
            "jac_sparsity='auto' finds the pattern of the Jacobian that autograd finds: with jac write it down, or "
            "leave jac_sparsity out"
        )
    layout = StateLayout(y0, batch_dims)
    if jac is not None and not layout.is_tensor:
        raise ValueError("jac is for states that are one tensor: leave it out, and the Jacobian is found by autograd")
    if layout.dtype.is_complex:
        raise ValueError(f"{name} is for real states: leave it out for complex ones, as func need not be holomorphic")
    if isinstance(jac, Tensor):
        matrix, shape = jac, (*layout.shapes[0], *layout.shapes[0])
        if tuple(matrix.shape) != shape:
            raise ValueError(
                f"jac must be of shape {shape}, d func_i / d y_j with the index i of func first, got shape "
                f"{tuple(matrix.shape)}"
                + (": where rows have matrices of their own, pass them as args" if batch_dims else "")
            )
        return lambda t, y, *args: matrix.expand(*y.shape[:batch_dims], *matrix.shape)
    if jac is not None and not callable(jac):
        raise TypeError(f"jac must be a function jac(t, y, *args) or a constant matrix, a tensor, got {jac!r}")
    return jac


def check_mass(mass: Any, method: type[Method], gradient: Gradient, layout: StateLayout, jac_sparsity: Any) -> Mass:
    """The mass matrix that the user gave, taken apart.

    Raises:
        TypeError: it is no matrix.
        ValueError: it does not go with the other arguments.
    """
    checked = Mass.of(mass, layout)
    if jac_sparsity is not None and checked.factor.diagonal is None:
        raise ValueError(
            "jac_sparsity is the pattern of func, which a mass that is not diagonal mixes: leave it out, or write "
            "the equations so that mass is diagonal"
        )
    if checked.projection is None:
        return checked
    if not method.takes_mass:
        names = ", ".join(f"{name!r}" for name, other in ODE_METHODS.items() if other.takes_mass)
        raise ValueError(
            f"mass is singular, so that some of the equations are algebraic, which {method.__name__} cannot solve: "
            f"choose one of {names}"
        )
    if isinstance(gradient, Backsolve):
        raise ValueError(
            "gradient='backsolve' has no adjoint of equations with a singular mass: use gradient='checkpointed', or "
            "'direct'"
        )
    if layout.dtype.is_complex:
        raise ValueError(
            "a singular mass is for real states: write real and imaginary parts as elements of the state, as "
            "torch.view_as_real does"
        )
    if checked.tracked is not None:
        raise ValueError(
            "a singular mass must not require a gradient, as any change of it may change which equations are "
            "algebraic: write mass.detach(), and what is to be learned into func"
        )
    return checked


def consistent_start(func: FlatFunc, t: Tensor, y0: Tensor) -> Tensor:
    """The initial states, [rows, size], with which the equations without a derivative hold, if there are such.

    Raises:
        ValueError: there are none near `y0`.
    """
    found, why = consistent(func, t, y0)
    if why:
        row, reason = min(why.items())
        where = f", in row {row}" if len(y0) > 1 else ""
        raise ValueError(f"mass is singular, and y0 cannot be made consistent{where}: {reason}")
    return found


def norm_of(layout: StateLayout, rtol: Any, atol: Any, norm: Callable[[Any], Any] | None = None) -> ErrorNorm:
    """What measures errors: the user's tolerances, and the user's norm if there is one, of a row at a time."""
    return ErrorNorm(
        check_tolerance("rtol", rtol, layout),
        check_tolerance("atol", atol, layout),
        layout.parts(),
        layout.dtype,
        None if norm is None else flat_norm(norm, layout.with_rows(1) if layout.lead else layout),
    )


def flat_norm(norm: Callable[[Any], Any], layout: StateLayout) -> Callable[[Tensor], float]:
    """The user's norm as a norm of flat states, checked at each call."""
    if not callable(norm):
        raise TypeError(f"norm must be a function of the scaled error, got {norm!r}")

    def flat_norm(x: Tensor) -> float:
        size = norm(layout.unflatten(x))
        if isinstance(size, Tensor) and size.numel() == 1:
            size = read(size.detach().reshape(()))
        # Of an error that is not a number, neither is the norm.
        undefined = isinstance(size, numbers.Real) and math.isnan(size) and is_finite(x)
        if not isinstance(size, numbers.Real) or size < 0 or undefined:
            raise ValueError(f"norm must return one number that is not negative, got {size!r}")
        return float(size)

    return flat_norm


def default_tolerances(y0: Any) -> tuple[float, float]:
    """`rtol` and `atol` for the precision of the state: 1e-6 and 1e-9 in double, 1e-4 and 1e-6 in single."""
    dtype = y0.dtype if isinstance(y0, Tensor) else StateLayout(y0).dtype
    return (1e-6, 1e-9) if dtype in (torch.float64, torch.complex128) else (1e-4, 1e-6)
