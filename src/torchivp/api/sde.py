"""The doors of torchsde: the same calls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Never

import torch
from torch import Tensor

from torchivp.api.options import warn_of_callbacks
from torchivp.api.sde_gradients import find_sde_gradient
from torchivp.api.sde_options import SDEOptions, read_adjoint_options, read_sde_options
from torchivp.boundary import door, warn
from torchivp.checks import check_flag, check_number, check_positive, refuse_keywords
from torchivp.error_norm import ErrorNorm, Tolerance, check_tolerance
from torchivp.gradients.checkpointed import Checkpointed
from torchivp.gradients.direct import Direct
from torchivp.gradients.sde_adjoint import find_adjoint
from torchivp.integrate import check_norm
from torchivp.methods.sde import SDE_METHODS, find_sde_method
from torchivp.methods.sde.method import SDEMethod
from torchivp.noise.along import PathNoise
from torchivp.noise.grid import GridNoise
from torchivp.noise.interval import BrownianInterval
from torchivp.noise.rows import check_rows
from torchivp.noise.seed import check_seed, draw_seed
from torchivp.noise.source import Noise
from torchivp.sde.problem import SDEProblem, check_path, check_path_times, path_ends
from torchivp.sde_loop.adaptive import AdaptiveSteps
from torchivp.sde_loop.halving import Pace
from torchivp.sde_loop.integrate import SDEIntegration
from torchivp.sde_loop.steps import Steps
from torchivp.solution import LeanFailures
from torchivp.times import check_times, snap
from torchivp.torch_func import inside_transform, moves

_PATHS = "every row of y0 is a path of its own: pass y0.expand({}, -1)"
_ADVICE = {
    "n_paths": _PATHS.format("n_paths"),
    "num_paths": _PATHS.format("num_paths"),
    "n_samples": _PATHS.format("n_samples"),
    "num_samples": _PATHS.format("num_samples"),
    "batch_size": _PATHS.format("batch_size"),
    "entropy": "write seed=",
    "t": "write ts=",
    "t_eval": "write ts=",
    "t_span": "write ts=[t0, t1]",
    "step_size": "write dt=",
    "max_steps": "write options={'max_num_steps': ...}",
    "max_num_steps": "write options={'max_num_steps': ...}",
    "solver": "write method=",
    "params": "sdeint_adjoint has adjoint_params=, and sdeint differentiates by whatever the SDE uses",
    "adjoint": "call sdeint_adjoint",
    "dense_output": "ask for all the times in ts=, or solve again with the same bm= and other ts",
    "device": "the solve runs where y0 is: pass y0.to(device)",
    "dtype": "the solve runs in the dtype of y0: pass y0.to(dtype)",
}
"""What to write instead of keywords that the doors do not have."""


@door
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
    gradient: str | Direct | Checkpointed = "direct",
    rng: str = "torch",
    seed: int | None = None,
    generator: torch.Generator | None = None,
    rows: Sequence[int] | Tensor | None = None,
    batch_dims: int | None = None,
    noise_size: int | None = None,
    **unknown: Never,
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
            beforehand to check what it returns. `t` is a 0-d tensor. None may change `y` in place.
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
        rtol: relative tolerance of adaptive steps, a number or a tensor that broadcasts to one row of the state; with
            `logqp`, that of the integral is the smallest of the tensor.
        atol: absolute tolerance, likewise.
        dt_min: the smallest size of an adaptive step. Such a step is accepted whatever its error, with a warning.
        options: a dict, see below.
        names: other names for the methods of `sde`: a dict from "drift", "diffusion", "prior_drift", "diffusion_prod",
            "drift_and_diffusion" or "drift_and_diffusion_prod".
        logqp: also integrate |u|^2 / 2, where g u = f - h for the prior drift `h(t, y)` of `sde`: its expectation is
            the Kullback-Leibler divergence of the paths from those with the drift h.
        extra: also return what the method carries from step to step: `(f, g, z)` of "reversible_heun", where f has the
            other sign if time decreases, else `()`.
        extra_solver_state: what an earlier solve carried, to go on with it.
        args: further arguments of every function of `sde`, `f(t, y, *args)`; tensors in it are differentiable.
        gradient: "direct" for autograd through the steps; "checkpointed" for the same gradient in the memory of about
            twice the square root of the number of steps; `Checkpointed(checkpoints=20)` says how many states to keep;
            "reversible", for method "reversible_heun", for the same gradient in the memory of one step.
        rng: "torch" for torch's random numbers, the fastest; "counter" for numbers of a row that do not depend on the
            device and the other rows, see `BrownianInterval`. Adaptive steps always have such numbers.
        seed: what the noise is a function of, from 0 to 2^64 - 1: the same seed, `ts`, `dt` and method have the same
            noise, with any gradient. For the same path at other steps pass `bm=BrownianInterval(..., entropy=seed)`.
            None to draw it.
        generator: where the seed is drawn from; None for torch's default generator.
        rows: with `rng="counter"` or adaptive steps, the number of each row in a larger batch, [rows], so that it has
            the noise that it would have there, given the same seed; None for 0, 1, 2, ...
        batch_dims: the number of leading dimensions of each tensor of `y0` that number rows.
        noise_size: the number m of noises, where neither `bm` nor `g` tells.
        unknown: other keywords are refused.

    The options: `grad_free`, of "milstein", true for differences in place of derivatives, which other methods ignore
    without a warning, since torchsde's programs pass it to all; `interp`, "linear" for steps of `dt` from `ts[0]` on
    that do not land on `ts`, where the states are interpolated, as in torchsde; `max_num_steps`, the largest number of
    steps, or of step attempts; those of the implicit methods, see there. Unknown options are named in a warning and
    ignored.

    Returns:
        The paths, [T, *y0.shape], for a pytree `y0` the same structure of such tensors; with `logqp`, then by how
        much the integral grows from each of the times to the next, [T - 1, *batch]; with `extra`, then what the method
        carries.

    Raises:
        SolveError: adaptive steps did not reach the last time; the message says where, why and what to try.
        TypeError, ValueError: an argument does not make sense; the message says how to mend it.

    Examples:
        >>> import torch
        >>> from torchivp import SDEIto, sdeint
        >>> class OrnsteinUhlenbeck(SDEIto):
        ...     def f(self, t, y):
        ...         return -y
        ...     def g(self, t, y):
        ...         return torch.full_like(y, 0.5)
        >>> sdeint(OrnsteinUhlenbeck("diagonal"), torch.ones(1000, 1), [0.0, 1.0, 4.0], dt=0.1, seed=0).shape
        torch.Size([3, 1000, 1])
    """
    refuse_keywords(sdeint, unknown, _ADVICE)
    adaptive, extra = check_flag("adaptive", adaptive), check_flag("extra", extra)
    door = _Door("sdeint", sde, y0, ts, bm, method, options, names, logqp, args, batch_dims, noise_size)
    door.plan(Randomness(rng, seed, generator, rows), dt, adaptive, rtol, atol, dt_min, extra_solver_state)
    with LeanFailures():
        return door.solve(find_sde_gradient(gradient), None, extra)


@door
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
    seed: int | None = None,
    generator: torch.Generator | None = None,
    rows: Sequence[int] | Tensor | None = None,
    batch_dims: int | None = None,
    noise_size: int | None = None,
    **unknown: Never,
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
        adjoint_adaptive: choose the steps of the backward solve by their error; not with "adjoint_reversible_heun".
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
        seed: as in `sdeint`.
        generator: as in `sdeint`.
        rows: as in `sdeint`.
        batch_dims: as in `sdeint`.
        noise_size: as in `sdeint`.
        unknown: other keywords are refused.

    Returns:
        As `sdeint`.

    Raises:
        SolveError: adaptive steps did not reach the last time, or in the backward pass the first.
        TypeError, ValueError: an argument does not make sense; the message says how to mend it.

    Examples:
        >>> import torch
        >>> from torchivp import SDEStratonovich, sdeint_adjoint
        >>> class Geometric(SDEStratonovich):
        ...     def __init__(self):
        ...         super().__init__("diagonal")
        ...         self.growth = torch.nn.Parameter(torch.tensor(0.1))
        ...     def f(self, t, y):
        ...         return self.growth * y
        ...     def g(self, t, y):
        ...         return 0.2 * y
        >>> sde = Geometric()
        >>> sdeint_adjoint(sde, torch.ones(8, 1), [0.0, 1.0], dt=0.1).mean().backward()
        >>> bool(sde.growth.grad > 0)
        True
    """
    refuse_keywords(sdeint_adjoint, unknown, _ADVICE)
    adaptive, extra = check_flag("adaptive", adaptive), check_flag("extra", extra)
    adjoint_adaptive = check_flag("adjoint_adaptive", adjoint_adaptive)
    door = _Door("sdeint_adjoint", sde, y0, ts, bm, method, options, names, logqp, args, batch_dims, noise_size)
    anywhere = adaptive or adjoint_adaptive
    door.plan(Randomness(rng, seed, generator, rows, anywhere), dt, adaptive, rtol, atol, dt_min, extra_solver_state)
    backward = find_adjoint(
        adjoint_method,
        door.problem.terms,
        door.method,
        adaptive=adjoint_adaptive,
        rtol=adjoint_rtol,
        atol=adjoint_atol,
        dt=dt,
        dt_min=dt_min,
        max_steps=read_adjoint_options(adjoint_options),
    )
    with LeanFailures():
        return door.solve(backward, adjoint_params, extra)


@dataclass(frozen=True)
class Randomness:
    """Where the noise comes from if the user gives no path.

    Attributes:
        rng: "torch" or "counter".
        seed: what it is a function of, or None.
        generator: where the seed is drawn from.
        rows: the numbers of the rows, for counter-based noise.
        anywhere: whether the noise must answer at any times, and not just for the steps.
    """

    rng: str
    seed: int | None
    generator: torch.Generator | None
    rows: Any
    anywhere: bool = False

    def __post_init__(self) -> None:
        given: object = self.generator
        if given is not None and not isinstance(given, torch.Generator):
            seed = given if isinstance(given, int) else 0
            raise TypeError(
                f"generator must be a torch.Generator, got {given!r}: write torch.Generator().manual_seed({seed})"
            )
        if self.seed is not None:
            check_seed(self.seed, "seed")
            if given is not None:
                raise ValueError("seed= is given, and generator= to draw one from: leave one of them out")


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
    ) -> None:
        self.ts, moving = check_times(ts, "ts")
        if moving is not None:
            raise ValueError(
                "ts must not require a gradient: the paths of an SDE have no derivative with respect to time; write "
                "ts.detach()"
            )
        if bm is not None:
            self.ts = snap(self.ts, ts, path_ends(bm))
        reverse = self.ts[-1] < self.ts[0]
        self.problem = SDEProblem.build(sde, y0, self.ts[0], reverse, bm, names, logqp, args, batch_dims, noise_size)
        terms = self.problem.terms
        self.problem.layout.check_times(self.ts[0], self.ts[-1])
        if bm is not None:
            check_path_times(bm, self.ts)
        self.owner, self.bm = sde, bm
        warn_of_callbacks(caller, sde)
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
        dt, dt_min = _plain_number("dt", dt), _plain_number("dt_min", dt_min)
        rtol, atol = (check_tolerance(name, x, problem.layout) for name, x in (("rtol", rtol), ("atol", atol)))
        if adaptive and len(ts) > 1:
            steps = Steps.through(ts, [])  # until they are chosen
        else:
            steps = Steps.landing(ts, dt) if self.options.landing else Steps.regular(ts, dt)
        noise = self._noise(randomness, adaptive)
        self.integration = SDEIntegration(
            problem.terms, self.method, problem.y0, None, steps, noise, problem.layout.real_dtype
        )
        if carry is not None and carry != ():
            with torch.no_grad():
                own = self.integration.first_carry()
            self.integration = replace(self.integration, carry=problem.carry_in(carry, own))
        self.adaptive = self._adaptive(dt, rtol, atol, dt_min) if adaptive and len(ts) > 1 else None
        if self.adaptive is None and steps.count > self.options.max_steps:
            count = f"{steps.count:.3g}" if steps.count >= 1e7 else steps.count
            raise ValueError(
                f"{count} steps of dt={dt} lead from {ts[0]:g} to {ts[-1]:g}, more than "
                f"options={{'max_num_steps': {self.options.max_steps}}} allow: make dt larger"
            )

    def solve(self, gradient: Any, parameters: Any, extra: bool) -> Any:
        """Solve, and return what the door returns."""
        problem, integration = self.problem, self.integration
        if self.adaptive is not None:
            integration = self.adaptive.choose(integration, self.ts)
        states, carry = gradient.solve(integration, parameters, self.owner)
        integration.found.clear()  # a graph may hold the integration
        _warn_if_not_finite(states, problem)
        found: list[Any] = [problem.states(states)]
        if problem.logqp:
            found.append(problem.divergence(states))
        if extra:
            found.append(problem.carry_out(carry))
        return found[0] if len(found) == 1 else tuple(found)

    def _noise(self, randomness: Randomness, adaptive: bool) -> Noise:
        problem = self.problem
        rows, channels = problem.layout.rows, problem.terms.channels
        levy_area = self.method.area_for(problem.terms.noise_type)
        dtype, real, device = problem.y0.dtype, problem.layout.dtype.to_real(), problem.y0.device
        if self.bm is not None:
            if (randomness.rng, randomness.seed, randomness.generator, randomness.rows) != ("torch", None, None, None):
                raise ValueError(
                    "bm is the noise already: leave rng, generator and rows out, seed too, or leave bm out"
                )
            check_path(self.bm, problem, levy_area, self.name)
            return PathNoise(self.bm, rows, channels, levy_area, dtype)
        anywhere = adaptive or randomness.anywhere
        if randomness.rows is not None and not anywhere and randomness.rng != "counter":
            raise ValueError("rows number the rows of counter-based noise: pass rng='counter' too, or leave rows out")
        numbers = check_rows(randomness.rows, rows)
        seed = draw_seed(randomness.generator) if randomness.seed is None else randomness.seed
        if not anywhere:
            return GridNoise(rows, channels, levy_area, real, dtype, device, seed, randomness.rng, numbers)
        first, last = min(self.ts), max(self.ts)
        path = BrownianInterval(
            first,
            last if last > first else first + 1.0,
            size=(rows, channels),
            dtype=real,
            device=device,
            entropy=seed,
            levy_area_approximation=levy_area,
            rows=numbers,
        )
        return PathNoise(path, rows, channels, levy_area, dtype)

    def _adaptive(self, dt: float, rtol: Tolerance, atol: Tolerance, dt_min: float) -> AdaptiveSteps:
        problem = self.problem
        orders = self.method.orders[problem.terms.sde_type, problem.terms.noise_type]
        if orders.strong < 1.0:
            warn(
                f"Numerical solution is not guaranteed to converge to the correct solution when using adaptive "
                f"time-stepping with {self.name} of strong order {orders.strong:g}: choose a method of order 1 or more "
                "if there is one (torchivp.sde_methods lists them)",
            )
        layout = problem.layout
        parts = [*layout.parts(), *([slice(layout.size, layout.size + 1)] if problem.logqp else [])]
        if problem.logqp:
            rtol, atol = (
                torch.cat([x, x.amin(1, keepdim=True)], 1) if isinstance(x, Tensor) else x for x in (rtol, atol)
            )
        pace = Pace(dt, dt_min, orders.strong, self.options.max_steps)
        norm = check_norm(ErrorNorm(rtol, atol, parts, layout.dtype), pace.controller)
        return AdaptiveSteps(pace, norm, self.options.landing)


def _plain_number(name: str, value: Any) -> float:
    """A positive, finite number that nothing is differentiated by."""
    if isinstance(value, Tensor) and moves(value):
        raise ValueError(f"{name} must not require a gradient: write {name}=float({name})")
    number = check_positive(name, check_number(name, value))
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}: write {name}=1e-3")
    return number


def _warn_if_not_finite(states: Tensor, problem: SDEProblem) -> None:
    if inside_transform():
        return  # where a value cannot be read
    last = states[-1].detach()
    if not last.isfinite().all():
        bad = int((~last.isfinite()).any(1).sum())
        warn(
            f"the solution is not finite in {bad} of {len(last)} rows: if drift and diffusion are right, make dt "
            "smaller, or choose a method for stiff drifts, such as method='implicit_euler'",
        )
