"""The base classes of solvers.

A solver is made for a problem, `Solver(func=..., y0=..., rtol=..., atol=..., **options)`, and then told to
`integrate(t)`. Those that torchivp takes the steps of are `EngineSolver`s.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from torchivp.api import ode
from torchivp.compat.failure import TorchdiffeqFailure
from torchivp.compat.torchdiffeq._impl.misc import (
    _all_callback_names,
    _handle_unused_kwargs,
    _null_callback,
    _rms_norm,
)
from torchivp.compat.torchdiffeq.step_function import with_step_function
from torchivp.error_norm import ErrorNorm, check_tolerance
from torchivp.methods import find_method
from torchivp.methods.method import Method
from torchivp.solution import raising
from torchivp.state import StateLayout
from torchivp.stepsize.constant import ConstantSteps
from torchivp.stepsize.stops import OneSided
from torchivp.times import Times

MethodOrName = str | type[Method]


class EngineSolver(ABC):
    """A solver whose steps torchivp takes."""

    func: Callable[..., Any]
    y0: Any
    rtol: Any
    atol: Any

    @classmethod
    def valid_callbacks(cls) -> set[str]:
        """The names of the callbacks that are called."""
        return set()

    @abstractmethod
    def steps(self) -> tuple[MethodOrName, dict[str, Any]]:
        """The method and the options with which torchivp's `odeint` takes the steps of this solver."""

    def integrate(self, t: Tensor) -> Tensor:
        """The states at the times `t`, [T, *y0.shape]."""
        return self._solve(t, None)

    def integrate_until_event(self, t0: Tensor, event_fn: Callable[..., Any]) -> tuple[Tensor, Tensor]:
        """The time of the first event, and the states at `t0` and there."""
        return self._solve(torch.stack([t0, torch.full_like(t0, torch.inf)]), event_fn)

    def _solve(self, t: Tensor, event_fn: Callable[..., Any] | None) -> Any:
        method, options = self.steps()

        def func(t: Tensor, y: Any) -> Any:
            return self.func(t, y)

        for name in self.valid_callbacks():
            callback = getattr(self.func, name, _null_callback)
            if callback is not _null_callback:
                setattr(func, name, callback)
        with raising(TorchdiffeqFailure):
            return ode.odeint(
                func,
                self.y0,
                t,
                rtol=self.rtol,
                atol=self.atol,
                method=find_method(method),
                options=options,
                event_fn=event_fn,
            )


class AdaptiveStepsizeODESolver(ABC):
    """A solver of one's own: `_advance` returns the state at the next time asked for."""

    def __init__(self, dtype: torch.dtype, y0: Tensor, norm: Callable[[Tensor], Any], **unused_kwargs: Any):
        _handle_unused_kwargs(self, unused_kwargs)
        self.y0 = y0
        self.dtype = dtype
        self.norm = norm

    @classmethod
    def valid_callbacks(cls) -> set[str]:
        """The names of the callbacks that are called."""
        return set()

    def _before_integrate(self, t: Tensor) -> None:  # noqa: B027
        """Get ready; does nothing unless a subclass says otherwise."""

    @abstractmethod
    def _advance(self, next_t: Tensor) -> Tensor:
        """The state at `next_t`."""

    def integrate(self, t: Tensor) -> Tensor:
        """The states at the times `t`, [T, *y0.shape]."""
        t = t.to(self.dtype)
        self._before_integrate(t)
        return torch.stack([self.y0, *(self._advance(next_t) for next_t in t[1:])])


class AdaptiveStepsizeEventODESolver(AdaptiveStepsizeODESolver):
    """A solver of one's own that finds events."""

    @abstractmethod
    def _advance_until_event(self, event_fn: Callable[..., Any]) -> tuple[Tensor, Tensor]:
        """The time of the first event, and the state there."""

    def integrate_until_event(self, t0: Tensor, event_fn: Callable[..., Any]) -> tuple[Tensor, Tensor]:
        """The time of the first event, and the states at `t0` and there."""
        self._before_integrate(t0.to(self.y0.device, self.dtype).reshape(-1))
        event_time, y1 = self._advance_until_event(event_fn)
        return event_time, torch.stack([self.y0, y1])


class FixedGridODESolver(EngineSolver):
    """A solver of fixed steps. One of your own defines `order` and `_step_func`; torchivp does the rest.

    `_step_func` must be a function of its arguments alone: a step can be taken more than once.
    """

    order: int

    def __init__(
        self,
        func: Callable[..., Any],
        y0: Any,
        step_size: float | None = None,
        grid_constructor: Callable[..., Tensor] | None = None,
        interp: str = "linear",
        perturb: bool = False,
        **options: Any,
    ):
        self.func = func
        self.y0 = y0
        self.rtol, self.atol = options.pop("rtol", 1e-7), options.pop("atol", 1e-9)
        if isinstance(y0, Tensor):
            self.dtype, self.device = y0.dtype, y0.device
        self.step_size = step_size
        self.interp = interp
        self.perturb = perturb
        if step_size is not None and grid_constructor is not None:
            raise ValueError("options 'step_size' and 'grid_constructor' exclude each other: give one of them")
        self.grid_constructor = grid_constructor or (_times_asked_for if step_size is None else self._even_grid)
        self._options = options

    @classmethod
    def valid_callbacks(cls) -> set[str]:
        return {"callback_step"}

    @abstractmethod
    def _step_func(self, func: Callable[..., Tensor], t0: Tensor, dt: Tensor, t1: Tensor, y0: Tensor) -> Any:
        """Step from `(t0, y0)` to `t1 = t0 + dt`; returns the change of `y`, and `func(t0, y0)`."""

    def steps(self) -> tuple[MethodOrName, dict[str, Any]]:
        options = {"interp": self.interp, "perturb": self.perturb, **self._options}
        if self.step_size is not None:
            options["step_size"] = self.step_size
        elif self.grid_constructor is not _times_asked_for:
            options["grid_constructor"] = self.grid_constructor
        return with_step_function(self), options

    def _even_grid(self, func: Any, y0: Any, t: Tensor) -> Tensor:
        assert self.step_size is not None
        times = Times(float(t[0]), float(t[-1]), None)
        return torch.cat([t[:1], t.new_tensor(list(ConstantSteps(self.step_size).targets(times)))])

    def _linear_interp(self, t0: Tensor, t1: Tensor, y0: Tensor, y1: Tensor, t: Tensor) -> Tensor:
        return torch.lerp(y0, y1, ((t - t0) / (t1 - t0)).to(y0.dtype))

    def _cubic_hermite_interp(
        self, t0: Tensor, y0: Tensor, f0: Tensor, t1: Tensor, y1: Tensor, f1: Tensor, t: Tensor
    ) -> Tensor:
        dt = t1 - t0
        x = (t - t0) / dt
        chord = y0 + x * (y1 - y0)
        return chord + x * (1 - x) * ((1 - x) * (dt * f0 - (y1 - y0)) - x * (dt * f1 - (y1 - y0)))


class EngineFixedGridODESolver(FixedGridODESolver):
    """A method of fixed steps of torchivp's. A subclass with a `_step_func` of its own steps by that instead."""

    method: ClassVar[str]

    def steps(self) -> tuple[MethodOrName, dict[str, Any]]:
        by_step_function, options = super().steps()
        own = type(self)._step_func is not EngineFixedGridODESolver._step_func
        return by_step_function if own else self.method, options

    def _step_func(self, func: Callable[..., Tensor], t0: Tensor, dt: Tensor, t1: Tensor, y0: Tensor) -> Any:
        flat, layout, real_dtype = y0.reshape(1, -1), StateLayout(y0), y0.dtype.to_real()
        t0, t1 = t0.to(real_dtype), t1.to(real_dtype)

        def flat_func(t: Tensor, y: Tensor) -> Tensor:
            return func(t, y.reshape(y0.shape)).reshape(1, -1)

        if self.perturb:
            flat_func = OneSided(flat_func, torch.nextafter(t0, t1), torch.nextafter(t1, t0))
        rtol, atol = check_tolerance("rtol", self.rtol, layout), check_tolerance("atol", self.atol, layout)
        norm = ErrorNorm(rtol, atol, layout.parts(), y0.dtype)
        method = find_method(self.method)(flat, real_dtype, norm)
        f0 = flat_func(t0, flat)
        step = method.step(flat_func, t0, t1, flat, method.initial_carry(f0))
        if step.failure is not None:
            raise RuntimeError(f"{type(self).__name__}: {step.failure[0]}")
        return (step.y1 - flat).reshape(y0.shape), f0.reshape(y0.shape)


class EngineAdaptiveSolver(EngineSolver, AdaptiveStepsizeEventODESolver):
    """A method of torchivp's that sizes its steps by their errors."""

    method: ClassVar[MethodOrName]

    def __init__(self, func: Callable[..., Any], y0: Any, rtol: Any = 1e-7, atol: Any = 1e-9, **options: Any):
        super().__init__(options.get("dtype", torch.float64), y0, options.get("norm", _rms_norm))
        self.func = func
        self.rtol, self.atol = rtol, atol
        self._options = options

    @classmethod
    def valid_callbacks(cls) -> set[str]:
        return set(_all_callback_names)

    def steps(self) -> tuple[MethodOrName, dict[str, Any]]:
        return self.method, self._options

    def _advance(self, next_t: Tensor) -> Tensor:
        raise NotImplementedError(_NO_STATE.format(type(self).__name__))

    def _advance_until_event(self, event_fn: Callable[..., Any]) -> tuple[Tensor, Tensor]:
        raise NotImplementedError(_NO_STATE.format(type(self).__name__))

    def _before_integrate(self, t: Tensor) -> None:
        raise NotImplementedError(_NO_STATE.format(type(self).__name__))

    def _adaptive_step(self, rk_state: Any) -> Any:
        raise NotImplementedError(_NO_STATE.format(type(self).__name__))


_NO_STATE = (
    "{} steps within torchivp, which has no rk_state to advance: give func a callback_accept_step(t, y, dt) to see "
    "every step, and an event_fn to end the solve early"
)


def _times_asked_for(func: Any, y0: Any, t: Tensor) -> Tensor:
    """The grid of a solver that steps from each of the times `t` to the next."""
    return t
