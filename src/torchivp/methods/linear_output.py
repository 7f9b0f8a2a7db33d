"""Dense output by a straight line, for any method."""

from __future__ import annotations

from torchivp.dense import Interpolant, StepPolynomials
from torchivp.methods.method import FlatFunc, Method, Step, derive


def with_linear_output(method: type[Method]) -> type[Method]:
    """The same method, whose solution within a step is the straight line between its ends: cheap, and of order 1."""

    def interpolant(self: Method, func: FlatFunc, step: Step) -> Interpolant:
        slope = (step.y1 - step.y0) / (step.t1 - step.t0)
        return Interpolant(step.t0, step.t1, step.y0, slope, StepPolynomials(((1.0,),), slope.device))

    return derive(method, interpolant=interpolant)
