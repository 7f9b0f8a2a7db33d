"""The solves of a fit by a compiled kernel: states and their tangents in one pass."""

from __future__ import annotations

import itertools
from types import CodeType
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from torchivp.fitting.solving.step_loop import StepLoop
from torchivp.fitting.solving.stretches import Accuracy, Solved, Stretch
from torchivp.fused.sensitivities import Sensitivities
from torchivp.fused.trace import Traced
from torchivp.methods import find_method
from torchivp.models.model import Model
from torchivp.stepsize.pid import PIDController

_READINGS = 12
"""How many right-hand sides of one code are read. Dynamo gives up after 16, and says so to the user."""

_numbers = itertools.count()
_codes: dict[Any, tuple[CodeType, set[Traced]]] = {}
"""Of the right-hand sides of each kind of model one code, and what was read of it: Dynamo's guards say whether that is
what another would be read as, as that of the same model in another fit is."""


class ModelKernel:
    """A model whose trajectories are rows of a kernel.

    Args:
        model: the model, in float64.
        method: the name of the method; kernels for others are made when solves by them are asked for.
        owner: what tells its right-hand side apart from others of the same code; default the class of the model.
        t: a time at which the model may be called.

    Copies solve by the step loop: a kernel belongs to its process.

    Raises:
        CannotFuse: there is no kernel; the message says why.
    """

    def __init__(self, model: Model, method: str, owner: Any = None, t: float = 0.0):
        names = [name for name, _ in model.named_parameters()]

        def derivative(t: Tensor, y: Tensor, first: Tensor, last: Tensor, *values: Tensor) -> Tensor:
            inside = t.maximum(first).minimum(last)  # where the right-hand side jumps at the ends of a stretch
            return functional_call(model, dict(zip(names, values, strict=True)), (inside, y))

        self._model, self._time = model, t
        self._derivative, self._owner = derivative, owner or type(model)
        self._n_states, self._n_parameters = len(model.states), len(names)
        self._kernels: dict[str, Sensitivities] = {}
        kind = self._owner, *names
        if kind not in _codes or len(_codes[kind][1]) == _READINGS:
            _codes[kind] = derivative.__code__.replace(co_name=f"derivative_{next(_numbers)}"), set()
        derivative.__code__, read = _codes[kind]
        read.add(self._kernel(method).traced)

    def __reduce__(self) -> Any:
        return StepLoop, (self._model, self._time)

    def _kernel(self, method: str) -> Sensitivities:
        if method not in self._kernels:
            count = 2 + self._n_parameters
            self._kernels[method] = Sensitivities(
                self._derivative, self._n_states, count, find_method(method), owner=self._owner
            )
        return self._kernels[method]

    def solve(self, stretch: Stretch, accuracy: Accuracy) -> Solved:
        """Solve a stretch of each row."""
        sides = [stretch.start, stretch.end]
        if stretch.sided:
            sides = [torch.nextafter(*sides), torch.nextafter(*reversed(sides))]
        found = self._kernel(accuracy.method).solve(
            stretch.y,
            stretch.tangents,
            torch.cat([torch.stack(sides), stretch.parameters.T]).contiguous(),
            stretch.start,
            stretch.end,
            stretch.t,
            tuple(2 + number for number in stretch.moving),
            rtol=accuracy.rtol,
            atol=torch.as_tensor(accuracy.atol, dtype=torch.float64).expand(self._n_states),
            controller=PIDController(max_step=accuracy.max_step),
            max_steps=accuracy.max_steps,
        )
        failed = (~found.ok).nonzero().flatten().tolist()
        return Solved(
            found.states,
            found.tangents,
            found.final,
            found.final_tangents,
            found.steps,
            found.ok,
            found.failure(failed[0]) if failed else None,
        )
