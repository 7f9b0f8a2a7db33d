"""The doors of torchdiffeq: the same calls."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Never, TypedDict, TypeVar, Unpack, overload

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchivp.api.fused import take_backend
from torchivp.api.ode_call import OdeCall
from torchivp.api.options import check_adjoint_options, find_callbacks, read_options
from torchivp.boundary import UserFunction, door
from torchivp.checks import check_number, refuse_keywords
from torchivp.dense import DenseSolution
from torchivp.events.sign_change import EventFunction, SignChange
from torchivp.gradients.backsolve import Backsolve
from torchivp.gradients.direct import Direct
from torchivp.gradients.event import differentiate_event
from torchivp.gradients.inputs import check_parameters
from torchivp.methods import MethodName, find_method
from torchivp.methods.method import Method
from torchivp.problem import Problem
from torchivp.solution import LeanFailures
from torchivp.state import StateLayout
from torchivp.stepsize.constant import GridSteps
from torchivp.times import Times
from torchivp.torch_func import derivatives_enabled

_REMEDY_IN_ADJOINT = (
    "Name it, and all others that need a gradient, in adjoint_params=(tensor, ...), or use odeint with a method other "
    "than scipy_solver"
)
_ADVICE = {
    "args": "write lambda t, y: func(t, y, *args)",
    "batch_dims": "call solve_ivp, which has it",
    "dense_output": "call odeint_dense(func, y0, t0, t1), which returns the solution as a function of time",
    "events": "write event_fn= for what ends the solve, or call solve_ivp for what happens on the way",
    "gradient": "call odeint_adjoint, or solve_ivp(..., gradient=...)",
    "params": "call odeint_adjoint, which has adjoint_params=",
    "t_eval": "write t=",
    "t_span": "write t=[t0, t1]",
    **{
        name: f"write options={{'{option}': ...}}"
        for name, option in {
            "step_size": "step_size",
            "dt": "step_size",
            "first_step": "first_step",
            "min_step": "min_step",
            "max_step": "max_step",
            "max_steps": "max_num_steps",
            "max_num_steps": "max_num_steps",
            "norm": "norm",
        }.items()
    },
}
"""What to write instead of keywords that the doors do not have."""


_State = TypeVar("_State")


class _Options(TypedDict, total=False):
    """The keywords of `odeint`, except the one that decides what it returns."""

    rtol: Any
    atol: Any
    method: MethodName | type[Method] | None
    options: Mapping[str, Any] | None
    horizon: float | None


class _AdjointOptions(_Options, total=False):
    """The same of `odeint_adjoint`."""

    adjoint_rtol: Any
    adjoint_atol: Any
    adjoint_method: MethodName | type[Method] | None
    adjoint_options: Mapping[str, Any] | None
    adjoint_params: Sequence[Tensor] | None


@overload
def odeint(
    func: Callable[..., Any],
    y0: _State,
    t: Tensor | Sequence[float],
    *,
    event_fn: None = None,
    **kwargs: Unpack[_Options],
) -> _State: ...
@overload
def odeint(
    func: Callable[..., Any],
    y0: _State,
    t: Tensor | Sequence[float],
    *,
    event_fn: Callable[..., Any],
    **kwargs: Unpack[_Options],
) -> tuple[Tensor, _State]: ...
@door
def odeint(
    func: Callable[..., Any],
    y0: Any,
    t: Tensor | Sequence[float],
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: MethodName | type[Method] | None = None,
    options: Mapping[str, Any] | None = None,
    event_fn: Callable[..., Any] | None = None,
    horizon: float | None = None,
    **unknown: Never,
) -> Any:
    """Solve `dy/dt = func(t, y)`, `y(t[0]) = y0`, and return the solution at the times `t`.

    The call of torchdiffeq's `odeint`. Differentiable by autograd through the steps, with respect to `y0`, `t` and
    everything that `func` uses, any number of times (implicit methods: twice); with `method="scipy_solver"` by the
    adjoint equations, as `odeint_adjoint` is.

    Args:
        func: the right-hand side; `t` is a 0-d tensor in the real dtype of the state. The result is cast to the
            dtype of the state. Its attributes `callback_step`, `callback_accept_step` and `callback_reject_step`, if
            it has them, are called with `(t, y, dt)`: before each step attempt, and after the decision on it.
        y0: the initial state: a tensor of any shape, floating point or complex, or a tuple, list or dict of such.
        t: the times at which to return the solution, strictly increasing or decreasing, [T]; `t[0]` belongs to `y0`.
        rtol: relative tolerance: a number, a tensor that broadcasts to the state, or a tuple with one for each
            tensor of the state. For methods of fixed step it matters only where they solve equations.
        atol: absolute tolerance, likewise.
        method: the name of a method (see `torchivp.ODE_METHODS`), or the class of one; None for "dopri5".
        options: a dict, see below. Unknown options are named in a warning and ignored.
        event_fn: `event_fn(t, y)` returns a tensor of which each element is an event: the solve ends where the first
            of them changes its sign, or at `t[0]` if one is zero there. `t` is then `[t0, t1]`, of which `t1` says
            the direction only; with a `grid_constructor` it is where the steps end. The elements may be true or
            false; the time of such an event has no gradient.
        horizon: the latest time (earliest, if time decreases) to look for an event; None for no limit but that on
            the number of step attempts, 100000 unless the option `max_num_steps` says otherwise.
        unknown: other keywords are refused.

    The options, by the methods that know them:

    - All methods: `backend`, "fused" for one kernel compiled from `func` that takes all steps, "auto" for one where
      there can be one, as in `solve_ivp`; `step_t`, times that steps end on; `jump_t`, times at which func is
      discontinuous; `perturb`, true to evaluate func just within the ends of each step instead of at them;
      `max_num_steps`, the largest number of step attempts; `norm`, a function of the scaled error, which matters to
      adaptive methods only; `dtype`, a precision of times, which have double precision anyway.
    - Adaptive methods (`dopri5`, `dopri8`, `tsit5`, `bosh3`, `fehlberg2`, `heun`, `adaptive_heun`, `ralston`, `adams`,
      and for stiff problems `auto`, `rodas5p`, `radau5`, `bdf`, `kvaerno5`, `kvaerno3`, `kencarp5`, `kencarp4`,
      `kencarp3`, `rodas4`, `rosenbrock23`): `first_step`; `min_step` (a step of that size is always accepted);
      `max_step`; `safety`; `ifactor`, the largest factor by which a step grows; `dfactor`, the smallest by which it
      shrinks.
    - Methods of fixed step (all others but `scipy_solver`): `step_size`, or `grid_constructor`, a function of
      `(func, y0, t)` that returns the step ends (without either, each step leads from one of the times `t` to the
      next); `interp`, "cubic" for the method's own dense output or "linear".
    - `explicit_adams`, `implicit_adams`: `max_order`; `implicit`, true or false, which chooses between the two. The
      implicit one: `max_iters`.
    - Implicit Runge-Kutta methods (`radauIIA5`, `radau5`, `trbdf2`, ...) and `bdf`: `max_iters`; `linear_solver`,
      "auto", "dense", "sparse" or "krylov"; `preconditioner`, for the last of these; `bdf`: `max_order`.
    - `scipy_solver`: `solver`, `first_step`, `min_step`, `max_step`.

    Returns:
        The solution, [T, *y0.shape], in the dtype of `y0`; for a pytree `y0` the same structure of such tensors.
        With `event_fn`, the time of the event, and the states at `t[0]` and at the event. The time is differentiable,
        once, the states as at fixed times; those of `odeint_event` move with the time.

    Raises:
        SolveError: the last time was not reached, or no event happened; the message says where, why and what to try.
        TypeError, ValueError: an argument does not make sense; the message says how to mend it.

    Examples:
        >>> import torch
        >>> from torchivp import odeint
        >>> y = odeint(lambda t, y: -y, torch.ones(1, dtype=torch.float64), torch.tensor([0.0, 1.0, 2.0]))
        >>> y.shape, bool((y[:, 0] - torch.exp(-torch.arange(3.0))).abs().max() < 1e-6)
        (torch.Size([3, 1]), True)
    """
    refuse_keywords(odeint, unknown, _ADVICE)
    forward_options = read_options("options", options)
    backend = take_backend(forward_options)
    call = OdeCall(func, y0, t, rtol, atol, method, forward_options, event_fn, horizon)
    gradient = Direct() if call.settings.method.differentiable else Backsolve()
    with LeanFailures():
        if backend != "eager" and (states := call.solve_fused(backend, None)) is not None:
            return states
        return call.solve(gradient, None)


@overload
def odeint_adjoint(
    func: Callable[..., Any],
    y0: _State,
    t: Tensor | Sequence[float],
    *,
    event_fn: None = None,
    **kwargs: Unpack[_AdjointOptions],
) -> _State: ...
@overload
def odeint_adjoint(
    func: Callable[..., Any],
    y0: _State,
    t: Tensor | Sequence[float],
    *,
    event_fn: Callable[..., Any],
    **kwargs: Unpack[_AdjointOptions],
) -> tuple[Tensor, _State]: ...
@door
def odeint_adjoint(
    func: Callable[..., Any],
    y0: Any,
    t: Tensor | Sequence[float],
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: MethodName | type[Method] | None = None,
    options: Mapping[str, Any] | None = None,
    event_fn: Callable[..., Any] | None = None,
    horizon: float | None = None,
    adjoint_rtol: Any = None,
    adjoint_atol: Any = None,
    adjoint_method: MethodName | type[Method] | None = None,
    adjoint_options: Mapping[str, Any] | None = None,
    adjoint_params: Sequence[Tensor] | None = None,
    **unknown: Never,
) -> Any:
    """`odeint`, differentiated by solving the adjoint equations backwards in time.

    The call of torchdiffeq's `odeint_adjoint`. Memory does not grow with the number of steps; the gradient is as
    accurate as the tolerances. A kernel (`options={"backend": "fused"}`) gives the exact gradient of the steps taken,
    in place of that of the adjoint equations, and so does `solve_ivp(..., gradient="checkpointed")` in little
    memory.

    Args:
        func: as in `odeint`; need not be a module. `callback_step_adjoint`, `callback_accept_step_adjoint` and
            `callback_reject_step_adjoint` are called in the backward solve; their state is the tuple
            `(t, y, adjoint, *parameters)`, in which a `y` of several tensors is flat.
        y0: as in `odeint`.
        t: as in `odeint`.
        rtol: as in `odeint`.
        atol: as in `odeint`.
        method: as in `odeint`.
        options: as in `odeint`.
        event_fn: as in `odeint`.
        horizon: as in `odeint`.
        adjoint_rtol: relative tolerance of the backward solve; None for `rtol`.
        adjoint_atol: absolute tolerance of the backward solve; None for `atol`.
        adjoint_method: method of the backward solve; None for `method`.
        adjoint_options: options of the backward solve; None for `options` without `norm`. `norm="seminorm"` leaves
            the parameters out of the error estimate; a callable `norm` receives `(t, y, adjoint, *parameters)`, with
            each of several tensors of `y` by itself.
        adjoint_params: the tensors to compute gradients for besides `y0` and `t`. Default: the parameters of `func`
            if it is a module, and the leaves that one evaluation finds in use.
        unknown: other keywords are refused.

    Returns:
        As `odeint`. The `grad_fn` behind it has an attribute `adjoint_options`, a dict; its entry "norm", a function
        of `(t, y, adjoint, *parameters)`, may be exchanged before the backward pass.

    Raises:
        SolveError: the last time, or in the backward pass the first, was not reached.
        TypeError, ValueError: an argument does not make sense; the message says how to mend it.

    Examples:
        >>> import torch
        >>> from torchivp import odeint_adjoint
        >>> field = torch.nn.Linear(2, 2)
        >>> y = odeint_adjoint(lambda t, y: field(y), torch.ones(2), [0.0, 1.0])
        >>> y[-1].sum().backward()
        >>> field.weight.grad.shape
        torch.Size([2, 2])
    """
    refuse_keywords(odeint_adjoint, unknown, _ADVICE)
    forward_options = read_options("options", options)
    backend = take_backend(forward_options)
    same = adjoint_method is None or find_method(adjoint_method) is find_method(method or "dopri5")
    check_adjoint_options(same, method, adjoint_method, forward_options, adjoint_options)
    if adjoint_options is None:
        backward_options = {key: value for key, value in forward_options.items() if key != "norm"}
    else:
        backward_options = read_options("adjoint_options", adjoint_options)
    norm = backward_options.pop("norm", None)
    if not (norm is None or norm == "seminorm" or callable(norm)):
        raise ValueError(f"adjoint_options['norm'] must be 'seminorm', a function or absent, got {norm!r}")
    if adjoint_params is not None:
        adjoint_params = check_parameters("adjoint_params", adjoint_params)
    call = OdeCall(func, y0, t, rtol, atol, method, forward_options, event_fn, horizon, _REMEDY_IN_ADJOINT)
    backward = call.read_settings(adjoint_method or method, backward_options, backward=True)
    gradient = Backsolve(
        rtol=adjoint_rtol,
        atol=adjoint_atol,
        method=backward.method,
        controller=backward.controller,
        seminorm=norm == "seminorm",
        norm=norm if callable(norm) else None,
        stops=backward.stops,
        callbacks=find_callbacks(func, backward.method, adjoint=True),
        max_steps=backward.max_steps,
    )
    with LeanFailures():
        if backend != "eager" and (states := call.solve_fused(backend, adjoint_params)) is not None:
            return states
        return call.solve(gradient, adjoint_params)


@door
def odeint_event(
    func: Callable[..., Any],
    y0: _State,
    t0: Tensor | float,
    *,
    event_fn: Callable[..., Any],
    reverse_time: bool = False,
    horizon: float | None = None,
    odeint_interface: Callable[..., Any] = odeint,
    **kwargs: Any,
) -> tuple[Tensor, _State]:
    """Solve `dy/dt = func(t, y)`, `y(t0) = y0`, until an event, whose time and state are differentiable.

    The call of torchdiffeq's `odeint_event`.

    Args:
        func: the right-hand side, as in `odeint`.
        y0: the initial state, as in `odeint`.
        t0: the time to start from.
        event_fn: as in `odeint`. Tensors that it uses get gradients. If it returns tensors of true and false, the
            time of the event has no gradient.
        reverse_time: integrate backwards in time.
        horizon: as in `odeint`.
        odeint_interface: `odeint`, `odeint_adjoint`, or a function that calls one of them.
        **kwargs: further arguments of `odeint_interface`.

    Returns:
        The time of the event, 0-d, and the states at `t0` and at the event, [2, *y0.shape] (each tensor of the state).
        Both are differentiable, once, with respect to `y0`, `t0`, and everything that `func` and `event_fn` use, if
        `event_fn` crosses zero at an angle.

    Raises:
        SolveError: there was no event, or the solve failed; the message says where, why and what to try.
        TypeError, ValueError: an argument does not make sense; the message says how to mend it.

    Examples:
        >>> import torch
        >>> from torchivp import odeint_event
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> t, y = odeint_event(lambda t, y: -y, one, torch.tensor(0.0), event_fn=lambda t, y: y - 0.5)
        >>> round(t.item(), 5)
        0.69315
    """
    begin = check_number("t0", t0)
    if not math.isfinite(begin):
        raise ValueError(f"t0 must be finite, got {begin}")
    start = torch.tensor(begin, dtype=torch.float64)
    if isinstance(t0, Tensor) and t0.is_floating_point():
        start = t0
    t = torch.cat([start.reshape(1), start.new_tensor([-math.inf if reverse_time else math.inf])])
    if horizon is not None:
        kwargs["horizon"] = horizon
    event_t, solution = odeint_interface(func, y0, t, event_fn=event_fn, **kwargs)
    if not derivatives_enabled():
        return event_t, solution
    event_t = event_t.detach()
    end = event_t.item()
    problem = Problem.build(func, y0, Times(begin, end, ()))
    layout = StateLayout(y0)
    first, last = (pytree.tree_map(lambda states, i=i: states[i], solution) for i in (0, -1))
    begins = problem.time(begin), problem.y0
    sign = SignChange(EventFunction(UserFunction(event_fn, "event_fn"), layout), *begins)
    if sign.at_start:
        return event_t + (start - start.detach()).to(event_t).reshape(()), solution
    time, state = differentiate_event(problem.func, sign, begins, problem.time(end), layout.flatten(last))
    states = torch.cat([layout.flatten(first), state])
    return event_t + (time - time.detach()).to(event_t), layout.unflatten(states, (2,))


@door
def odeint_dense(
    func: Callable[..., Any],
    y0: Any,
    t0: Tensor | float,
    t1: Tensor | float,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: MethodName | type[Method] | None = None,
    options: Mapping[str, Any] | None = None,
    **unknown: Never,
) -> DenseSolution:
    """Solve `dy/dt = func(t, y)`, `y(t0) = y0`, up to `t1`, and return the solution as a function of time.

    The call of torchdiffeq's `odeint_dense`, for every method, any state, and either direction of time. Differentiable
    as `odeint` is.

    Args:
        func: as in `odeint`.
        y0: as in `odeint`.
        t0: the start.
        t1: the end.
        rtol: as in `odeint`.
        atol: as in `odeint`.
        method: as in `odeint`. Methods of fixed step need the option `step_size` or `grid_constructor`.
        options: as in `odeint`.
        unknown: other keywords are refused.

    Returns:
        The solution `sol`: `sol(t)` has the shape `t.shape + y0.shape` (each tensor of the state).

    Raises:
        SolveError: `t1` was not reached.
        TypeError, ValueError: an argument does not make sense; the message says how to mend it.

    Examples:
        >>> import torch
        >>> from torchivp import odeint_dense
        >>> solution = odeint_dense(lambda t, y: -y, torch.ones(1, dtype=torch.float64), 0.0, 2.0)
        >>> round(solution(1.0).item(), 5)
        0.36788
    """
    refuse_keywords(odeint_dense, unknown, _ADVICE)
    begin, end = check_number("t0", t0), check_number("t1", t1)
    if begin == end:
        raise ValueError(f"t0 and t1 are both {begin}: the solution as a function of time needs a span of some length")
    call = OdeCall(func, y0, (t0, t1), rtol, atol, method, read_options("options", options), None)
    if call.settings.controller == GridSteps():
        raise ValueError(
            f"{call.settings.method.__name__} takes fixed steps, whose size does not follow from t0 and t1: "
            "pass options={'step_size': 0.01}"
        )
    with LeanFailures():
        return call.solve_densely()
