"""The doors of torchsde: the same calls."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from torchivp.api.sde_gradients import find_sde_gradient
from torchivp.api.sde_options import SDEOptions, read_adjoint_options, read_sde_options
from torchivp.checks import check_number, check_positive
from torchivp.error_norm import ErrorNorm, check_tolerance
from torchivp.gradients.checkpointed import Checkpointed
from torchivp.gradients.sde_adjoint import find_adjoint
from torchivp.methods.sde import SDE_METHODS, find_sde_method
from torchivp.methods.sde.method import SDEMethod
from torchivp.noise.along import PathNoise
from torchivp.noise.grid import GridNoise
from torchivp.noise.interval import BrownianInterval
from torchivp.noise.seed import draw_seed
from torchivp.sde.problem import SDEProblem, check_path
from torchivp.sde_loop.adaptive import AdaptiveSteps
from torchivp.sde_loop.integrate import Noise, SDEIntegration
from torchivp.sde_loop.steps import Steps
from torchivp.stepsize.pid import PIDController
from torchivp.times import check_times
from torchivp.torch_func import inside_transform


def sdeint(
    sde: Any,
    y0: Any,
    ts: Tensor | Sequence[float],
    bm: Any = None,
    method: str | type[SDEMethod] | None = None,
    dt: float = 1e-3,
    adaptive: bool = False,
    rtol: Any = 1e-5,
    atol: Any = 1e-4,
    dt_min: float = 1e-5,
    options: Mapping[str, Any] | None = None,
    names: Mapping[str, str] | None = None,
    logqp: bool = False,
    extra: bool = False,
    extra_solver_state: Any = None,
    *,
    args: Sequence[Any] = (),
    gradient: str | Checkpointed = "direct",
    rng: str = "torch",
    generator: torch.Generator | None = None,
    rows: Sequence[int] | Tensor | None = None,
    batch_dims: int | None = None,
    noise_size: int | None = None,
    **unused_kwargs: Any,
) -> Any:
    """Solve `dY = f(t, Y) dt + g(t, Y) dW`, `Y(ts[0]) = y0`, and return the paths at the times `ts`.

    The call of torchsde's `sdeint`. Every row of the batch is a path of its own noise. The noise is a function of a
    seed, which `torch.manual_seed` or `generator` governs; with `bm` it is that path.

    If `ts` decreases, the equation is solved backwards in time, driven by the path seen backwards: y(t - dt) = y -
    f dt + g (W(t - dt) - W(t)). In Stratonovich's calculus this takes back a solve forwards along the same `bm`. Itô's
    integrals are taken in the direction of integration, as in the reverse-time equations of score-based models.

    Args:
        sde: an object, such as a `BaseSDE`, with the attributes `sde_type`, "ito" or "stratonovich", and `noise_type`,
            "diagonal", "scalar", "additive", "commutative" or "general" (see `BaseSDE`), and the methods `f(t, y)` and
            `g(t, y)`, or `f_and_g(t, y)`, which returns both; `g_prod(t, y, v)`, the product of the diffusion and
            noise, and `f_and_g_prod(t, y, v)` are used where there is no need for `g` itself. Each is called once
            beforehand to check what it returns. `t` is a 0-d tensor.
        y0: the initial state: a tensor [batch, d], or of any shape, real or complex, or a tuple, list or dict of
            tensors. All dimensions but the last number the rows, unless `batch_dims` says otherwise. Where the noise is
            not diagonal, `g` has the shape of the state and one more dimension, which numbers the noises.
        ts: the times at which to return the solution, strictly increasing or decreasing, [T].
        bm: the Brownian motion, [*batch, d] for diagonal noise (one more channel with `logqp`), else [*batch, m]; such
            as `BrownianInterval`. None for a new one.
        method: the name of a method (see `sde_methods`), or the class of one. None for "srk" where the equation is
            Itô's and its noise diagonal, scalar or additive, "milstein" where it is commutative, "euler" where it is
            general; "midpoint" in Stratonovich's calculus.
        dt: the size of a step; between two of the times `ts` the steps are equal and no larger. With `adaptive`, the
            size of the first step.
        adaptive: choose the steps by their error, the difference between a step and two halves of it.
        rtol: relative tolerance of adaptive steps, a number or a tensor that broadcasts to one row of the state.
        atol: absolute tolerance, likewise.
        dt_min: the smallest size of an adaptive step. Such a step is accepted whatever its error, with a warning.
        options: a dict, see below.
        names: other names for the methods of `sde`: a dict from "drift", "diffusion", "prior_drift", "diffusion_prod",
            "drift_and_diffusion" or "drift_and_diffusion_prod".
        logqp: also integrate |u|^2 / 2, where g u = f - h for the prior drift `h(t, y)` of `sde`: its expectation is
            the Kullback-Leibler divergence of the paths from those with the drift h.
        extra: also return what the method carries from step to step: `(f, g, z)` of "reversible_heun", else `()`.
        extra_solver_state: what an earlier solve carried, to go on with it.
        args: further arguments of every function of `sde`, `f(t, y, *args)`; tensors in it are differentiable.
        gradient: "direct" for autograd through the steps; "checkpointed" for the same gradient in the memory of about
            twice the square root of the number of steps; `Checkpointed(checkpoints=20)` says how many states to keep;
            "reversible", for method "reversible_heun", for the same gradient in the memory of one step.
        rng: "torch" for torch's random numbers, the fastest; "counter" for numbers of a row that do not depend on the
            device and the other rows, see `BrownianInterval`. For steps of fixed size.
        generator: where the seed is drawn from; None for torch's default generator.
        rows: with `rng="counter"`, the number of each row in a larger batch, [rows], so that it has the noise that it
            would have there, given the same seed; None for 0, 1, 2, ...
        batch_dims: the number of leading dimensions of each tensor of `y0` that number rows.
        noise_size: the number m of noises, where neither `bm` nor `g` tells.
        unused_kwargs: what else is given is named in a warning and ignored.

    The options: `grad_free`, of "milstein", true for differences in place of derivatives; `interp`, "linear" for steps
    of `dt` from `ts[0]` on that do not land on `ts`, where the states are interpolated, as in torchsde;
    `max_num_steps`, the largest number of steps, or of step attempts; those of the implicit methods, see there. Unknown
    options are named in a warning and ignored.

    Returns:
        The paths, [T, *y0.shape], for a pytree `y0` the same structure of such tensors; with `logqp`, then by how
        much the integral grows from each of the times to the next, [T - 1, *batch]; with `extra`, then what the method
        carries.

    Raises:
        SolveError: adaptive steps did not reach the last time; the message says where, why and what to try.
        TypeError, ValueError: an argument does not make sense; the message says how to mend it.
    """
    door = _Door("sdeint", sde, y0, ts, bm, method, options, names, logqp, args, batch_dims, noise_size, unused_kwargs)
    door.plan(Randomness(rng, generator, rows), dt, adaptive, rtol, atol, dt_min, extra_solver_state)
    return door.solve(find_sde_gradient(gradient), None, extra)


def sdeint_adjoint(
    sde: Any,
    y0: Any,
    ts: Tensor | Sequence[float],
    bm: Any = None,
    method: str | type[SDEMethod] | None = None,
    adjoint_method: str | None = None,
    dt: float = 1e-3,
    adaptive: bool = False,
    adjoint_adaptive: bool = False,
    rtol: Any = 1e-5,
    adjoint_rtol: Any = 1e-5,
    atol: Any = 1e-4,
    adjoint_atol: Any = 1e-4,
    dt_min: float = 1e-5,
    options: Mapping[str, Any] | None = None,
    adjoint_options: Mapping[str, Any] | None = None,
    adjoint_params: Sequence[Tensor] | None = None,
    names: Mapping[str, str] | None = None,
    logqp: bool = False,
    extra: bool = False,
    extra_solver_state: Any = None,
    *,
    args: Sequence[Any] = (),
    rng: str = "torch",
    generator: torch.Generator | None = None,
    rows: Sequence[int] | Tensor | None = None,
    batch_dims: int | None = None,
    noise_size: int | None = None,
    **unused_kwargs: Any,
) -> Any:
    """`sdeint`, differentiated by solving the adjoint equations backwards along the same path.

    The call of torchsde's `sdeint_adjoint`. Memory does not grow with the number of steps. The gradient is as accurate
    as the steps are small; that of method "reversible_heun" is exact for the steps
    taken. `sdeint(..., gradient="checkpointed")` gives the exact gradient of every method in little memory.

    The adjoint is solved in Stratonovich's calculus, an Itô equation with its corrected drift (Li, Wong, Chen and
    Duvenaud, "Scalable gradients for stochastic differential equations", AISTATS (2020)).

    Args:
        sde: as in `sdeint`; need not be a module.
        y0: as in `sdeint`.
        ts: as in `sdeint`.
        bm: as in `sdeint`.
        method: as in `sdeint`.
        adjoint_method: "midpoint", "heun", "euler_heun", "milstein"; for Itô equations "euler" too, which stands for
            "euler_heun". None for "midpoint", or, with method "reversible_heun", "adjoint_reversible_heun".
        dt: as in `sdeint`; the backward solve takes the steps of the forward one, unless `adjoint_adaptive`.
        adaptive: as in `sdeint`.
        adjoint_adaptive: choose the steps of the backward solve by their error.
        rtol: as in `sdeint`.
        adjoint_rtol: relative tolerance of the backward solve.
        atol: as in `sdeint`.
        adjoint_atol: absolute tolerance of the backward solve.
        dt_min: as in `sdeint`, and for the backward solve.
        options: as in `sdeint`.
        adjoint_options: options of the backward solve: `max_num_steps`.
        adjoint_params: the tensors to compute gradients for besides `y0`. Default: the parameters of `sde` if it is a
            module, and the leaves that one evaluation finds in use.
        names: as in `sdeint`.
        logqp: as in `sdeint`.
        extra: as in `sdeint`.
        extra_solver_state: as in `sdeint`.
        args: as in `sdeint`.
        rng: as in `sdeint`.
        generator: as in `sdeint`.
        rows: as in `sdeint`.
        batch_dims: as in `sdeint`.
        noise_size: as in `sdeint`.
        unused_kwargs: as in `sdeint`.

    Returns:
        As `sdeint`.

    Raises:
        SolveError: adaptive steps did not reach the last time, or in the backward pass the first.
        TypeError, ValueError: an argument does not make sense; the message says how to mend it.
    """
    door = _Door(
        "sdeint_adjoint", sde, y0, ts, bm, method, options, names, logqp, args, batch_dims, noise_size, unused_kwargs
    )
    anywhere = adaptive or adjoint_adaptive
    door.plan(Randomness(rng, generator, rows, anywhere), dt, adaptive, rtol, atol, dt_min, extra_solver_state)
    backward = find_adjoint(
        adjoint_method,
        door.method,
        adaptive=adjoint_adaptive,
        rtol=adjoint_rtol,
        atol=adjoint_atol,
        dt=dt,
        dt_min=dt_min,
        max_steps=read_adjoint_options(adjoint_options),
    )
    return door.solve(backward, adjoint_params, extra)


@dataclass(frozen=True)
class Randomness:
    """Where the noise comes from if the user gives no path.

    Attributes:
        rng: "torch" or "counter".
        generator: where the seed is drawn from.
        rows: the numbers of the rows, for "counter".
        anywhere: whether the noise must answer at any times, and not just for the steps.
    """

    rng: str
    generator: torch.Generator | None
    rows: Any
    anywhere: bool = False


class _Door:
    """The arguments of a call, checked, and the solve that they ask for."""

    def __init__(
        self,
        caller: str,
        sde: Any,
        y0: Any,
        ts: Any,
        bm: Any,
        method: Any,
        options: Any,
        names: Mapping[str, str] | None,
        logqp: bool,
        args: Sequence[Any],
        batch_dims: int | None,
        noise_size: int | None,
        unused: Mapping[str, Any],
    ) -> None:
        if unused:
            warnings.warn(f"`{caller}`: Unexpected arguments {dict(unused)} are ignored", stacklevel=4)
        self.ts, moving = check_times(ts, "ts")
        if moving is not None:
            raise ValueError(
                "ts must not require a gradient: the paths of an SDE have no derivative with respect to time; write "
                "ts.detach()"
            )
        reverse = self.ts[-1] < self.ts[0]
        self.problem = SDEProblem.build(sde, y0, self.ts[0], reverse, bm, names, logqp, args, batch_dims, noise_size)
        terms = self.problem.terms
        self.owner, self.bm = sde, bm
        self.method_class = find_sde_method(method, terms.sde_type, terms.noise_type)
        self.options: SDEOptions = read_sde_options(caller, self.method_class, options)
        self.method = self.method_class(**self.options.method)
        self.name = next(
            (name for name, known in SDE_METHODS.items() if known is self.method_class), self.method_class.__name__
        )

    def plan(
        self, randomness: Randomness, dt: Any, adaptive: bool, rtol: Any, atol: Any, dt_min: Any, carry: Any
    ) -> None:
        """Fix the steps and the noise."""
        problem, ts = self.problem, self.ts
        if randomness.rng not in ("torch", "counter"):
            raise ValueError(f"rng must be 'torch' or 'counter', got {randomness.rng!r}")
        if randomness.rows is not None and randomness.rng != "counter":
            raise ValueError("rows number the rows of counter-based noise: pass rng='counter' too, or leave rows out")
        dt = _plain_number("dt", dt)
        fixed = Steps.landing(ts, dt) if self.options.landing else Steps.regular(ts, dt)
        noise = self._noise(randomness, adaptive)
        self.integration = SDEIntegration(
            problem.terms, self.method, problem.y0, None, fixed, noise, problem.layout.real_dtype
        )
        if carry is not None and carry != ():
            with torch.no_grad():
                own = self.integration.first_carry()
            self.integration = replace(self.integration, carry=problem.carry_in(carry, own))
        if adaptive and len(ts) > 1:
            steps = self._adaptive(dt, rtol, atol, dt_min).choose(self.integration, ts)
            self.integration = replace(self.integration, steps=steps)
        elif fixed.count > self.options.max_steps:
            raise ValueError(
                f"{fixed.count} steps of dt={dt} lead from {ts[0]:g} to {ts[-1]:g}, more than "
                f"options={{'max_num_steps': {self.options.max_steps}}} allow: make dt larger"
            )

    def solve(self, gradient: Any, parameters: Any, extra: bool) -> Any:
        """Solve, and return what the door returns."""
        problem = self.problem
        states, carry = gradient.solve(self.integration, parameters, self.owner)
        _warn_if_not_finite(states, problem)
        found: list[Any] = [problem.states(states)]
        if problem.logqp:
            found.append(problem.divergence(states))
        if extra:
            found.append(problem.carry_out(carry))
        return found[0] if len(found) == 1 else tuple(found)

    def _noise(self, randomness: Randomness, adaptive: bool) -> Noise:
        problem = self.problem
        levy_area, rows, channels = self.method.levy_area, problem.layout.rows, problem.terms.channels
        dtype, device = problem.y0.dtype, problem.y0.device
        if levy_area == "foster" and problem.terms.noise_type != "general":
            levy_area = "none"
        if self.bm is not None:
            if randomness.rng != "torch" or randomness.generator is not None:
                raise ValueError("bm is the noise already: leave rng and generator out, or leave bm out")
            check_path(self.bm, problem, levy_area, self.name)
            return PathNoise(self.bm, rows, channels, levy_area, dtype)
        seed = draw_seed(randomness.generator)
        if not (adaptive or randomness.anywhere):
            real = problem.layout.dtype.to_real()
            numbers = _row_numbers(randomness.rows, rows)
            return GridNoise(rows, channels, levy_area, real, dtype, device, seed, randomness.rng, numbers)
        if randomness.rng != "torch":
            raise ValueError("adaptive steps have counter-based noise anyway: leave rng out")
        first, last = min(self.ts), max(self.ts)
        path = BrownianInterval(
            first,
            last if last > first else first + 1.0,
            size=(rows, channels),
            dtype=problem.layout.dtype.to_real(),
            device=device,
            entropy=seed,
            levy_area_approximation=levy_area,
        )
        return PathNoise(path, rows, channels, levy_area, dtype)

    def _adaptive(self, dt: float, rtol: Any, atol: Any, dt_min: Any) -> AdaptiveSteps:
        problem = self.problem
        orders = self.method.orders[problem.terms.sde_type, problem.terms.noise_type]
        if orders.strong is None:
            raise ValueError(f"method {self.name} has no strong order, so it cannot adapt its steps")
        if orders.strong < 1.0 and problem.terms.noise_type != "additive":
            warnings.warn(
                f"Numerical solution is not guaranteed to converge to the correct solution when using adaptive "
                f"time-stepping with {self.name} of strong order {orders.strong:g}: choose a method of order 1 or more "
                "if there is one (torchivp.sde_methods lists them)",
                stacklevel=5,
            )
        layout = problem.layout
        parts = [*layout.parts(), *([slice(layout.size, layout.size + 1)] if problem.logqp else [])]
        norm = ErrorNorm(
            check_tolerance("rtol", rtol, layout), check_tolerance("atol", atol, layout), parts, layout.dtype
        )
        smallest = _plain_number("dt_min", dt_min)
        controller = PIDController(
            kp=0.1,
            ki=0.3,
            first_step=max(dt, smallest),
            min_step=smallest,
            accept_at_min_step=True,
        )
        return AdaptiveSteps(controller, norm, orders.strong, self.options.max_steps, self.options.landing)


def _plain_number(name: str, value: Any) -> float:
    """A positive number that nothing is differentiated by."""
    if isinstance(value, Tensor) and value.requires_grad:
        raise ValueError(f"{name} must not require a gradient: write {name}=float({name})")
    return check_positive(name, check_number(name, value))


def _row_numbers(given: Any, rows: int) -> Tensor | None:
    """The numbers of the rows that the user gives, checked."""
    if given is None:
        return None
    numbers = torch.as_tensor(given if isinstance(given, Tensor) else list(given))
    if numbers.is_floating_point() or numbers.shape != (rows,) or bool((numbers < 0).any()):
        raise ValueError(
            f"rows must be {rows} whole numbers, one for each row, none of them negative, got {given!r}: write "
            f"rows=range(start, start + {rows})"
        )
    return numbers.long()


def _warn_if_not_finite(states: Tensor, problem: SDEProblem) -> None:
    if inside_transform():
        return  # where a value cannot be read
    last = states[-1].detach()
    if not last.isfinite().all():
        bad = int((~last.isfinite()).any(1).sum())
        warnings.warn(
            f"the solution is not finite in {bad} of {len(last)} rows: if drift and diffusion are right, make dt "
            "smaller, or choose a method for stiff drifts, such as method='implicit_euler'",
            stacklevel=4,
        )
