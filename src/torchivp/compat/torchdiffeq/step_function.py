"""A method of torchivp's out of the `_step_func` of a solver class."""

from __future__ import annotations

import types
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from torchivp.compat.torchdiffeq._impl.misc import _PerturbFunc
from torchivp.dense import HERMITE, Interpolant, StepPolynomials
from torchivp.error_norm import ErrorNorm
from torchivp.methods.method import FlatFunc, Method, Step
from torchivp.methods.one_row import OneRowMethod
from torchivp.times import time_scalar


class HasStepFunction(Protocol):
    """A solver that can step from `(t0, y0)` to `t1 = t0 + dt`."""

    y0: Tensor

    def _step_func(self, func: Any, t0: Tensor, dt: Tensor, t1: Tensor, y0: Tensor) -> Any: ...


def with_step_function(solver: HasStepFunction) -> type[Method]:
    """The method that steps as `solver` does."""
    attributes = {"solver": solver, "order": getattr(solver, "order", 1)}
    return types.new_class(type(solver).__name__, (StepFunction,), exec_body=lambda body: body.update(attributes))


class StepFunction(OneRowMethod):
    """The method that steps as its `solver` does, which sees increasing times and the state in its own shape."""

    error_order = None
    solver: ClassVar[HasStepFunction]

    def __init__(self, y0: Tensor, real_dtype: torch.dtype, norm: ErrorNorm):
        # The adjoint equations, which have more elements, lie in one flat tensor.
        self._shape = self.solver.y0.shape if self.solver.y0.numel() == y0.numel() else y0.shape[1:]
        self._time_dtype = y0.dtype.to_real()
        self._hermite = StepPolynomials(HERMITE, y0.device)

    def step(self, func: FlatFunc, t0: float | Tensor, t1: float | Tensor, y0: Tensor, carry: Any) -> Step:
        sign = 1 if t1 > t0 else -1
        start, end = (time_scalar(t, self._time_dtype, y0.device) * sign for t in (t0, t1))
        dt = time_scalar((t1 - t0) * sign, self._time_dtype, y0.device)

        def increasing(t: Tensor, y: Tensor) -> Tensor:
            return sign * func(sign * t, y.reshape(1, -1)).reshape(self._shape)

        result = self.solver._step_func(_PerturbFunc(increasing), start, dt, end, y0.reshape(self._shape))
        if not isinstance(result, tuple):
            raise TypeError(
                f"{type(self.solver).__name__}._step_func must return (dy, f0), the change of y and func(t0, y0), got "
                f"{type(result).__name__}"
            )
        dy, f0 = result
        y1 = y0 + dy.reshape(1, -1).to(y0.dtype)
        slope = None if f0 is None else sign * f0.reshape(1, -1).to(y0.dtype)
        return Step(t0, t1, y0, y1, None, None, None, slope)

    def interpolant(self, func: FlatFunc, step: Step) -> Interpolant:
        start, end = (time_scalar(t, self._time_dtype, step.y0.device) for t in (step.t0, step.t1))
        f0 = func(start, step.y0) if step.stages is None else step.stages
        chord = (step.y1 - step.y0) / (step.t1 - step.t0)
        slopes = torch.cat([chord, f0, func(end, step.y1)])
        return Interpolant(step.t0, step.t1, step.y0, slopes, self._hermite)
