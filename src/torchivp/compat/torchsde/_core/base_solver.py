"""The base classes of solvers: those of a program's own, and those whose steps torchivp takes."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from torchivp.boundary import warn
from torchivp.compat.torchsde._core import adaptive_stepping, interp
from torchivp.compat.torchsde._core.base_sde import terms_of
from torchivp.compat.torchsde.settings import LEVY_AREA_APPROXIMATIONS, NOISE_TYPES
from torchivp.methods.sde.method import SDEMethod
from torchivp.noise.along import PathNoise
from torchivp.sde.functions import UserTerms
from torchivp.sde_loop.steps import Steps

_REQUIRED = ("strong_order", "weak_order", "sde_type", "noise_types", "levy_area_approximations")


class BaseSDESolver(abc.ABC):
    """A solver of fixed or adaptive steps. One of your own defines `step` and the attributes.

    Args:
        sde: a `ForwardSDE`.
        bm: the Brownian motion.
        dt: the size of the steps, or of the first one.
        adaptive: choose the steps by their error.
        rtol: relative tolerance of adaptive steps.
        atol: absolute tolerance.
        dt_min: the smallest size of an adaptive step; such a step is accepted whatever its error.
        options: further options.

    Raises:
        ValueError: the solver does not solve this kind of SDE, or needs another kind of Brownian motion.
        NotImplementedError: one of the attributes is missing.

    Attributes:
        strong_order: the order of convergence of single paths.
        weak_order: the order of convergence of expectations.
        sde_type: the calculus that it solves SDEs of.
        noise_types: the noise that it can do with.
        levy_area_approximations: which of the kinds of Brownian motion it can do with.
    """

    strong_order: float
    weak_order: float
    sde_type: str
    noise_types: Sequence[str]
    levy_area_approximations: Sequence[str]

    def __init__(
        self,
        sde: Any,
        bm: Any,
        dt: Any,
        adaptive: bool,
        rtol: Any,
        atol: Any,
        dt_min: Any,
        options: dict[str, Any],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        missing = [name for name in _REQUIRED if not hasattr(self, name)]
        if missing:
            raise NotImplementedError(f"{type(self).__name__} must have the attributes {', '.join(missing)}")
        check_solver(type(self).__name__, self, sde, bm)
        self.sde = sde
        self.bm = bm
        self.dt = dt
        self.adaptive = adaptive
        self.rtol = rtol
        self.atol = atol
        self.dt_min = dt_min
        self.options = options

    def __repr__(self) -> str:
        return f"{type(self).__name__} of strong order: {self.strong_order}, and weak order: {self.weak_order}"

    def init_extra_solver_state(self, t0: Any, y0: Tensor) -> tuple[Any, ...]:
        """What the first step starts from besides the state."""
        return ()

    @abc.abstractmethod
    def step(self, t0: Any, t1: Any, y0: Tensor, extra0: Any) -> tuple[Tensor, Any]:
        """Step from `y0` at `t0` to `t1`; returns the state there, and what the next step starts from besides."""

    def integrate(self, y0: Tensor, ts: Tensor, extra0: Any) -> tuple[Tensor, Any]:
        """The states at the times `ts`, [T, batch, d], and what the solver carries after the last step."""
        if self.adaptive:
            return self._integrate_adaptively(y0, ts, extra0)
        steps = Steps.regular([float(t) for t in ts], float(self.dt))
        times = torch.tensor(steps.times(0, steps.count), dtype=ts.dtype, device=ts.device)
        states, y, extra = [y0], y0, extra0
        for i in range(steps.count):
            start = y
            y, extra = self.step(times[i], times[i + 1], start, extra)
            while len(states) < len(ts) and steps.outputs[len(states)][0] == i:
                states.append(torch.lerp(start, y, steps.outputs[len(states)][1]))
        return torch.stack(states), extra

    def _integrate_adaptively(self, y0: Tensor, ts: Tensor, extra0: Any) -> tuple[Tensor, Any]:
        states, size, ratio = [y0], self.dt, None
        begin = end = ts[0]
        start, y, extra = y0, y0, extra0
        for t in ts[1:]:
            while end < t:
                last = torch.minimum(end + size, ts[-1])
                middle = 0.5 * (end + last)
                whole, _ = self.step(end, last, y, extra)
                half, half_extra = self.step(end, middle, y, extra)
                halves, next_extra = self.step(middle, last, half, half_extra)
                with torch.no_grad():
                    error = adaptive_stepping.compute_error(whole, halves, self.rtol, self.atol)
                accepted = error <= 1 or size <= self.dt_min
                size, ratio = adaptive_stepping.update_step_size(error, size, prev_error_ratio=ratio)
                if size < self.dt_min:
                    warn("Hitting minimum allowed step size in adaptive time-stepping.")
                    size, ratio = self.dt_min, None
                if accepted:
                    begin, start = end, y
                    end, y, extra = last, halves, next_extra
            states.append(interp.linear_interp(begin, start, end, y, t))
        return torch.stack(states), extra


class EngineSolver(BaseSDESolver):
    """A solver whose steps torchivp takes."""

    method: ClassVar[type[SDEMethod]]
    levy_area_approximations: Sequence[str] = LEVY_AREA_APPROXIMATIONS.all()

    def __init__(self, sde: Any, bm: Any, dt: Any, adaptive: bool, rtol: Any, atol: Any, dt_min: Any, options: Any):
        orders = self.method.orders.get((self.sde_type, sde.noise_type))
        if orders is not None:
            self.strong_order, self.weak_order = orders.strong, orders.weak
        else:
            self.strong_order = self.weak_order = 0.0
        super().__init__(sde, bm, dt, adaptive, rtol, atol, dt_min, options)
        own = {name: options[name] for name in self.method.options if name in (options or {})}
        self._engine = self.method(**own)
        self._terms: tuple[Any, UserTerms] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "sde_type" in vars(cls) and "noise_types" not in vars(cls):
            noises = [noise for calculus, noise in cls.method.orders if calculus == cls.sde_type]
            cls.noise_types = tuple(noise for noise in NOISE_TYPES.all() if noise in noises)

    def init_extra_solver_state(self, t0: Any, y0: Tensor) -> tuple[Any, ...]:
        return self._engine.start(self._for(y0, 0), t0, y0)

    def step(self, t0: Any, t1: Any, y0: Tensor, extra0: Any) -> tuple[Tensor, Any]:
        levy_area = self.method.area_for(self.sde.noise_type)
        channels = self.bm.shape[-1]
        path = PathNoise(follow_calls(self.bm), len(y0), channels, levy_area, y0.dtype)
        noise = path.between(float(t0), float(t1))
        return self._engine.step(self._for(y0, channels), t0, t1, y0, noise, extra0)

    def _for(self, y: Tensor, channels: int) -> UserTerms:
        key = (y.shape, y.dtype, y.device, channels)
        if self._terms is None or self._terms[0] != key:
            self._terms = key, terms_of(self.sde, y, channels)
        return self._terms[1]


def check_solver(name: str, solver: Any, sde: Any, bm: Any) -> None:
    """Check that a solver, or a class of one, suits an SDE and its Brownian motion.

    Raises:
        ValueError: it does not.
    """
    if sde.sde_type != solver.sde_type:
        raise ValueError(f"{name} solves SDEs of type {solver.sde_type!r}, and the SDE is of type {sde.sde_type!r}")
    if sde.noise_type not in solver.noise_types:
        raise ValueError(
            f"{name} solves SDEs with noise of the types {list(solver.noise_types)}, and that of the SDE is "
            f"{sde.noise_type!r}"
        )
    check_levy_area(name, solver.levy_area_approximations, bm)
    if sde.noise_type == NOISE_TYPES.scalar and bm.shape[1:] != (1,):
        raise ValueError(f"the Brownian motion of scalar noise must have shape (batch, 1), got {tuple(bm.shape)}")


def check_levy_area(name: str, wanted: Sequence[str], bm: Any) -> None:
    """Check that a Brownian motion knows the Lévy areas that a solver needs.

    Raises:
        ValueError: it does not.
    """
    given = getattr(bm, "levy_area_approximation", LEVY_AREA_APPROXIMATIONS.none)
    if given not in wanted:
        simplest = next(x for x in ("none", "space-time", "foster", *wanted) if x in wanted)
        raise ValueError(
            f"{name} needs a Brownian motion with levy_area_approximation {' or '.join(map(repr, wanted))}, bm has "
            f"{given!r}: make it with BrownianInterval(..., levy_area_approximation={simplest!r})"
        )


class _Called:
    """A Brownian motion by its calls alone."""

    def __init__(self, bm: Any) -> None:
        self._bm = bm

    def __getattr__(self, name: str) -> Any:
        if name == "increment":
            raise AttributeError(name)
        return getattr(self._bm, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._bm(*args, **kwargs)


def follow_calls(bm: Any) -> Any:
    """The same Brownian motion; asked by its `__call__` if a subclass defined that anew, and `increment` not."""
    for cls in type(bm).__mro__:
        if "increment" in vars(cls):
            return bm
        if "__call__" in vars(cls):
            return _Called(bm) if hasattr(bm, "increment") else bm
    return bm
