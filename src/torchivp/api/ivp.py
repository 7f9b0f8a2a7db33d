"""The door for new programs, shaped like scipy's `solve_ivp`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal, Never, TypedDict, Unpack, overload

from torch import Tensor

from torchivp.api.arguments import (
    Gradient,
    GradientName,
    build_integration,
    check_jacobian,
    check_mass,
    default_tolerances,
    find_gradient,
)
from torchivp.api.fused import Backend, try_fused
from torchivp.api.moving_ends import at_end, at_first_output
from torchivp.api.options import find_callbacks
from torchivp.api.rows import solve_batch
from torchivp.api.sources import sources_of
from torchivp.api.statement import Statement
from torchivp.api.times import times_of_span
from torchivp.boundary import door
from torchivp.checks import check_number, check_whole_number, refuse_keywords
from torchivp.dense import DenseSolution, NoDenseOutput
from torchivp.integrate import Controller
from torchivp.methods import MethodName, find_method
from torchivp.methods.method import Method
from torchivp.methods.ode.auto import Auto
from torchivp.problem import Problem
from torchivp.recording import Interpolants
from torchivp.solution import BatchSolution, LeanFailures, Solution, SolveError, Status
from torchivp.split import as_split
from torchivp.state import StateLayout
from torchivp.stepsize.constant import ConstantSteps, GridSteps
from torchivp.stepsize.own import OwnSteps
from torchivp.stepsize.pid import PIDController
from torchivp.times import time_dtype

_PROGRESS = "a solve shows no progress: let func count its calls, or print its t"
_ADVICE = {
    "mass_matrix": "write mass=",
    "M": "write mass=",
    "lband": "write jac_sparsity=(lband, uband)",
    "uband": "write jac_sparsity=(lband, uband)",
    "progress": _PROGRESS,
    "progress_bar": _PROGRESS,
    "verbose": _PROGRESS,
    "adjoint": "write gradient='backsolve', or gradient='checkpointed' for the exact gradient in little memory",
    "adjoint_params": "write params=, with gradient='backsolve' or 'checkpointed'",
    "options": "its options are arguments: step_size=, first_step=, min_step=, max_step=, max_steps=, norm=; those of "
    "a method are given by method=torchivp.ODE_METHODS[name].with_options(...)",
    "max_num_steps": "write max_steps=",
    "event_fn": "write events=",
    **dict.fromkeys(
        ("jump_t", "step_t", "jump_ts", "step_ts", "tstops", "t_stops", "d_discontinuities"),
        "write events=torchivp.Scheduled(times): steps end on these times, and func may jump there",
    ),
    "vectorized": "write batch_dims=1 if the first dimension of y0 numbers problems; func is called with all of y",
    "dt": "write step_size= for fixed steps, or first_step=",
    "t": "write t_eval=",
    "ts": "write t_eval=",
}
"""What to write instead of keywords that the door does not have."""


RightHandSide = Callable[..., Any] | tuple[Callable[..., Any], Callable[..., Any]]
"""A function of the user's, or two whose sum is meant, `(explicit, implicit)`."""


class _Options(TypedDict, total=False):
    """The keywords of `solve_ivp`, except the one that decides what it returns."""

    t_eval: Sequence[float] | Sequence[Tensor] | Tensor | None
    method: MethodName | type[Method]
    rtol: Any
    atol: Any
    args: Sequence[Any]
    params: Sequence[Tensor] | None
    gradient: GradientName | Gradient
    dense_output: bool
    step_size: float | None
    first_step: float | None
    min_step: float
    max_step: float
    max_steps: int
    controller: Controller | None
    norm: Callable[[Any], float | Tensor] | None
    events: Any
    jac: Callable[..., Any] | Tensor | None
    jac_sparsity: Any
    mass: Any
    compact: bool | None
    backend: Backend
    throw: bool


@overload
def solve_ivp(
    func: RightHandSide,
    t_span: Sequence[float | Tensor] | Tensor,
    y0: Any,
    *,
    batch_dims: Literal[0] = 0,
    **options: Unpack[_Options],
) -> Solution: ...
@overload
def solve_ivp(
    func: RightHandSide,
    t_span: Sequence[float | Tensor] | Tensor,
    y0: Any,
    *,
    batch_dims: int,
    **options: Unpack[_Options],
) -> BatchSolution: ...
@door
def solve_ivp(
    func: RightHandSide,
    t_span: Sequence[float | Tensor] | Tensor,
    y0: Any,
    *,
    t_eval: Sequence[float] | Sequence[Tensor] | Tensor | None = None,
    method: MethodName | type[Method] = "auto",
    rtol: Any = None,
    atol: Any = None,
    args: Sequence[Any] = (),
    params: Sequence[Tensor] | None = None,
    gradient: GradientName | Gradient = "direct",
    dense_output: bool = False,
    step_size: float | None = None,
    first_step: float | None = None,
    min_step: float = 0.0,
    max_step: float = math.inf,
    max_steps: int = 100_000,
    controller: Controller | None = None,
    norm: Callable[[Any], float | Tensor] | None = None,
    events: Any = None,
    jac: Callable[..., Any] | Tensor | None = None,
    jac_sparsity: Any = None,
    mass: Any = None,
    batch_dims: int = 0,
    compact: bool | None = None,
    backend: Backend = "eager",
    throw: bool = True,
    **unknown: Never,
) -> Solution | BatchSolution:
    """Solve the initial value problem `dy/dt = func(t, y, *args)`, `y(t_span[0]) = y0`, or a batch of such problems.

    Differentiable with respect to `y0`, `t_span`, `t_eval`, the tensors in `args` and the parameters of `func`.

    Args:
        func: the right-hand side. `t` is a 0-d tensor in the real dtype of the state (in a batch, see below), `y` has
            the shape (or structure) of `y0`; returns the same structure, cast to the state's dtype. Functions and
            `nn.Module`s will do. A pair `(explicit, implicit)` of such functions stands for their sum: "kencarp3",
            "kencarp4" and "kencarp5" solve the equations of a step for the second one alone, other methods for all.
        t_span: start and end `(t0, t1)`; `t1 < t0` integrates backwards in time. The last step ends on `t1`, which may
            be infinite if one of the `events` ends the solve.
        y0: the initial state: a tensor of any shape, floating point or complex, or a tuple, list or dict, nested
            at will, of such tensors. All elements share a step, or with `batch_dims` those of a row.
        t_eval: the times at which to return the solution, strictly monotone in the direction of integration and
            within `t_span`; None for the end of every accepted step, and where `events` change the state, the states
            before and after.
        method: the name of a method (see `torchivp.ODE_METHODS`), or its class. Default "auto": "tsit5" where that is
            enough, and where the problem is stiff "rodas5p", or "bdf" for more than 200 states; `stats.stiff` and
            `stats.switches` say what was done.
        rtol: relative tolerance per step: a number, a tensor that broadcasts to the state, or a pytree like the
            state. Default 1e-6, and 1e-4 for states of single precision or less.
        atol: absolute tolerance per step, likewise. Default 1e-9, and 1e-6.
        args: further arguments of `func`; tensors among them, at any depth, receive gradients.
        params: the tensors that gradients other than `direct` are computed for, besides `y0`, `args` and
            times. Default: those of `func` if it is a module, and the leaves that one evaluation finds in use.
        gradient: how to differentiate: "direct" (autograd through the steps), "checkpointed" (the same gradient in
            little memory, by replaying steps), "backsolve" (the continuous adjoint), "forward" (the derivatives by at
            most 100 numbers, integrated along: for few inputs and many outputs, whose backward passes then cost next
            to nothing), or an object with options such as `Checkpointed(checkpoints=20)`.
        dense_output: also return `Solution.sol`, the solution at any time, in a batch NaN outside a row's span.
        step_size: take fixed steps of this size, with any method but `adams`, `bdf` and `scipy_solver`, which size
            their own; methods without an error estimate need it. `auto` is `tsit5` then, or `rodas5p` if `jac`,
            `jac_sparsity` or a singular `mass` is given.
        first_step: size of the first step; None to estimate it.
        min_step: no adaptive step is smaller.
        max_step: no adaptive step is larger.
        max_steps: the largest number of step attempts (of a row).
        controller: how to size the steps, instead of `step_size`, `first_step`, `min_step` and `max_step`:
            `PIController()`, for example.
        norm: the norm of the error in units of the tolerance, a function of the scaled error (shaped like `y0`),
            at most 1 where the step is good enough. Default: root mean square, over a pytree the largest one. It
            matters to adaptive steps only.
        events: what happens on the way: a function `g(t, y, *args)` whose changes of sign are reported (or end the
            solve, if it carries SciPy's `g.terminal`), an `Event`, which may end the solve or change the state, a
            `Scheduled`, which changes it at known times, or a list of these.
        jac: the Jacobian of `func` by the state, for methods that use one ("auto" does where the problem is stiff): a
            function `jac(t, y, *args)` that returns d func_i / d y_j, shaped like the state twice, or a constant
            matrix. Of a pair it is that of the implicit function. Default: by autograd.
        jac_sparsity: where the Jacobian may have entries other than zero: a matrix, or `(lower, upper)` for a band, of
            the flattened state. It takes fewer products to find one, and its linear systems are solved sparsely. Like
            `jac` it is compared with `func` at the start, and refused if it is wrong there. "auto" has it found by
            autograd, for 100 states and more, at the start and at some states near it; each Jacobian is then checked,
            and a ValueError raised if it has an entry elsewhere.
        mass: a constant matrix M, a tensor or NumPy array, [n, n] for the n elements of the flattened state (of a row):
            the problem is then `M dy/dt = func(t, y, *args)`. If M is singular, some of the equations are algebraic
            (see below).
        batch_dims: how many leading dimensions of `y0` number the rows of a batch. Each row is a problem of its own,
            with its own steps, status and failures; see below.
        compact: whether `func`, and what `events` holds, may be called with some of the rows, so that rows that are
            through cost nothing; None to find out by one try.
        backend: what takes the steps: "eager", torch, operation by operation; "fused", one kernel compiled from `func`
            that takes all of them, with its own exact gradient (see "Compiled kernels" in the documentation), a
            ValueError if there is none; "auto", a kernel where there can be one, else torch.
        throw: raise `SolveError` if the end is not reached; if False, return what there is, with NaN after it. In a
            batch it is raised when all rows are through.
        unknown: other keywords are refused.

    In a batch, `t` reaches `func` in the shape of the batch with a dimension of size 1 for each dimension of the state,
    so that it broadcasts against `y`; without `compact`, in the batch that `y0` has, else with some of its rows in one
    batch dimension, where the functions of events may find a row several times, at several moments of a step. Tensors
    in `args` that begin with the batch dimensions have an entry for each row, and come with the rows. `t_span` may
    hold tensors of the shape of the batch, `t_eval` may be of shape [*batch, T] with NaN for no time, or a list with a
    series for each row; rows may go in different directions. The numbers of a row do not depend on the other rows, to
    the last bit if those of `func` do not. All rows step at once, but with `scipy_solver`, which takes their steps one
    after the other.

    If `func` has attributes `callback_step`, `callback_accept_step` or `callback_reject_step`, as for `odeint`, they
    are called with `(t, y, dt)`: the start of each attempted, accepted or rejected step, the state there, and its size.
    In a batch all have an entry for each row, NaN in rows that take no such step then. Kernels call none.

    With a singular `mass` the problem is a differential-algebraic one, of index one: the algebraic equations must
    determine the part of the state that M does not multiply. This part of `y0`, and of what events change, need not be
    exact: it is a guess, from which Newton's iteration finds the state at which these equations hold. The methods
    "auto", "rodas4", "rodas5p", "radau5" and "bdf" are adaptive, "implicit_euler", "sdirk2", "radauIIA3" and
    "radauIIA5" take fixed steps. Tolerances are for all elements. `func` must compute in torch. Hairer and Wanner,
    "Solving Ordinary Differential Equations II", VI.1.

    Returns:
        A `Solution` with times `t` [T], states `y` [T, *y0.shape] (each leaf of a pytree; SciPy's has time last),
        `status`, `stats`, the last state `final` with its time `t_final`, `sol`, `events`. In a batch a `BatchSolution`
        with `t` [*batch, T], `y` [*batch, T, *state], `final` [*batch, *state].

    Raises:
        SolveError: the end was not reached, and `throw` is true; the message says where, why and what to try.
        TypeError, ValueError: an argument does not make sense; the message says how to mend it.

    Examples:
        >>> import torch, torchivp
        >>> solution = torchivp.solve_ivp(lambda t, y: -y, (0.0, 1.0), torch.ones(2, dtype=torch.float64))
        >>> bool((solution.y[-1] - torch.e**-1).abs().max() < 1e-6)
        True
    """
    refuse_keywords(solve_ivp, unknown, _ADVICE)
    right_hand_side = as_split(func)
    rtol_default, atol_default = default_tolerances(y0)
    method = find_method(method)
    if controller is None and method.sizes_steps and step_size is None:
        limits = {"first_step": (first_step, None), "min_step": (min_step, 0.0), "max_step": (max_step, math.inf)}
        method = method.with_options(**{name: given for name, (given, default) in limits.items() if given != default})
        controller = OwnSteps()
    elif controller is None:
        sizes = step_size, first_step, min_step, max_step
        plain = step_size is first_step is None and type(min_step) is type(max_step) is float
        given = not plain or sizes != _DEFAULT_SIZES
        controller = _controller(method, *sizes) if given else _default_controller(method)
    elif (step_size, first_step, min_step, max_step) != _DEFAULT_SIZES:
        raise ValueError(
            "give either controller or step_size, first_step, min_step and max_step: "
            "write controller=PIDController(first_step=..., max_step=...)"
        )
    known = check_jacobian(right_hand_side, method, y0, batch_dims, jac, jac_sparsity)
    gradient = find_gradient(gradient)
    hint = ", the number of leading dimensions of y0 that number the rows"
    dims = check_whole_number("batch_dims", batch_dims, 0, hint=hint)
    taken = mass if mass is None else check_mass(mass, method, gradient, StateLayout(y0, dims), jac_sparsity)
    if issubclass(method, Auto) and isinstance(controller, ConstantSteps | GridSteps):
        # Nothing rejects the steps that show stiffness: the choice between the two is the caller's.
        explicit, implicit = method.parts
        stiff = jac is not None or jac_sparsity is not None or (taken is not None and taken.projection is not None)
        method = implicit if stiff else explicit
    stated = Statement(
        right_hand_side,
        t_span,
        y0,
        t_eval,
        method,
        controller,
        rtol_default if rtol is None else rtol,
        atol_default if atol is None else atol,
        max_steps,
        gradient,
        args,
        params,
        norm,
        events,
        known,
        jac_sparsity,
        taken,
        dims,
        compact,
        dense_output,
        throw,
        find_callbacks(right_hand_side, method),
    )
    reason = ""
    if backend != "eager":
        solution, reason = try_fused(backend, stated)
        if solution is not None:
            return _finished(solution, stated)
    if dims or events is not None:
        with LeanFailures():
            solution = solve_batch(stated)
        return _finished(solution, stated, reason)
    times = times_of_span(t_span, t_eval)
    if dense_output and times.start == times.end:
        raise ValueError(
            f"dense_output=True needs a span of some length, got t_span = ({times.start:g}, {times.end:g})"
        )
    integration, layout = build_integration(stated, times.with_end())
    interpolants = Interpolants() if dense_output else None
    states, reached, status, stats = gradient.solve(integration, params, interpolants)
    if throw and not status.ok:
        with LeanFailures():
            raise SolveError(status)
    sol = NoDenseOutput()
    if interpolants is not None:
        nothing = NoDenseOutput("there is no dense output: the solve ended before its first step")
        sol = DenseSolution(interpolants.steps, layout.unflatten) if interpolants.steps else nothing
    t = times.select(reached).to(layout.device, time_dtype(layout.device))
    final, t_final = _final(states, t, reached, status, integration.problem)
    count = len(t) if times.outputs is None else len(times.outputs)  # without the end, if nobody asked for it
    outputs = layout.unflatten(at_first_output(states, integration.problem)[:count], (count,))
    solution = Solution(t[:count], outputs, status, stats, layout.unflatten(final, ()), t_final, sol)
    return _finished(solution, stated, reason)


def _finished(solution: Solution | BatchSolution, stated: Statement, reason: str = "") -> Solution | BatchSolution:
    """The solution, with what it was computed with, and the reason why no kernel took the steps, if one was wanted."""
    solution.sources = sources_of(solution, stated)
    if reason:
        for stats in [solution.stats] if isinstance(solution, Solution) else solution.stats:
            stats.backend = f"eager: {reason}"
    return solution


def _final(
    states: Tensor, t: Tensor, reached: Sequence[float], status: Status, problem: Problem
) -> tuple[Tensor, Tensor]:
    """The last state that was reached, [1, size], and its time, given the outputs with the end among them."""
    times = problem.times
    count = len(reached)
    if not status.ok:
        count = sum((x - status.t) * times.direction <= 0 for x in reached)
    if count == 0:
        return problem.y0, times.select([times.start])[0].to(t)
    final, t_final = states[count - 1 : count].reshape(1, -1), t[count - 1]
    return at_end(final, t_final, problem) if reached[count - 1] == times.end else (final, t_final)


_DEFAULT_SIZES = (None, None, 0.0, math.inf)
"""Of a call that says nothing of its steps: `step_size`, `first_step`, `min_step` and `max_step`."""


@lru_cache(maxsize=64)
def _default_controller(method: type[Method]) -> Controller:
    return _controller(method, *_DEFAULT_SIZES)


def _controller(method: type[Method], step_size: Any, first_step: Any, min_step: Any, max_step: Any) -> Controller:
    adaptive_only = {"first_step": first_step is not None, "min_step": min_step != 0, "max_step": max_step != math.inf}
    if step_size is not None:
        given = [name for name, is_given in adaptive_only.items() if is_given]
        if given:
            raise ValueError(f"step_size fixes the steps, so {', '.join(given)} cannot be given with it: drop one")
        return ConstantSteps(check_number("step_size", step_size))
    return PIDController(
        **method.controller_options,  # pyright: ignore[reportArgumentType]
        first_step=None if first_step is None else check_number("first_step", first_step),
        min_step=check_number("min_step", min_step),
        max_step=check_number("max_step", max_step),
    )
