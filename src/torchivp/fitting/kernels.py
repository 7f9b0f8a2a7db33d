"""The solves of a fit by a compiled kernel: states and their derivatives with respect to theta in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call

from torchivp.fitting.quantities import Quantities, Quantity
from torchivp.fused.refusal import CannotFuse
from torchivp.fused.sensitivities import Sensitivities, Solved
from torchivp.methods import find_method
from torchivp.methods.ode.runge_kutta import ExplicitRungeKutta
from torchivp.models.model import Model
from torchivp.stepsize.pid import PIDController

if TYPE_CHECKING:
    from torchivp.fitting.misfit import Accuracy


class ModelKernel:
    """A model whose trajectories are rows of a kernel.

    Args:
        model: the model, in float64.
        quantities: what is estimated and what is held.
        method: the name of the method.

    Raises:
        CannotFuse: there is no kernel; the message says why.
    """

    def __init__(self, model: Model, quantities: Quantities, method: str):
        found = find_method(method)
        if not issubclass(found, ExplicitRungeKutta):
            raise CannotFuse(f"there are kernels of explicit Runge-Kutta methods for fits, and {method!r} is none")
        names = [quantity.key for quantity in quantities.all if quantity.kind == "parameter"]

        def derivative(t: Tensor, y: Tensor, *values: Tensor) -> Tensor:
            return functional_call(model, dict(zip(names, values, strict=True)), (t, y))

        self._quantities = quantities
        self._states = list(model.states)
        self._names = names
        self._kernel = Sensitivities(derivative, len(self._states), len(names), found, owner=type(model))
        free = [quantity for quantity in quantities.free if quantity.kind == "initial state"]
        parameters = [names.index(q.key) for q in quantities.free if q.kind == "parameter"]
        self._starting = sorted({self._states.index(quantity.key) for quantity in free})
        self._moving = tuple(p for p in parameters if p in self._kernel.used)

    def observables(
        self,
        thetas: NDArray[np.float64],
        group: Sequence[int],
        t: Sequence[float],
        columns: Sequence[int],
        accuracy: Accuracy,
    ) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]] | None:
        """Some of the states of trajectories, [T, n, n_columns], and derivatives by nothing, at each of the `thetas`.

        None if a solve fails.
        """
        solved = self._solve(thetas, group, t, False, accuracy)
        if solved is None:
            return None
        states = solved.states[..., list(columns)].unflatten(0, (len(thetas), len(group))).movedim(2, 1).numpy()
        return [(of_one, np.zeros((*of_one.shape, 0))) for of_one in states]

    def sensitivities(
        self,
        theta: NDArray[np.float64],
        group: Sequence[int],
        t: Sequence[float],
        columns: Sequence[int],
        accuracy: Accuracy,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """Some of the states, [T, n, n_columns], and their derivatives by theta, [T, n, n_columns, n_free].

        None if a solve fails.
        """
        solved = self._solve(theta[None], group, t, True, accuracy)
        if solved is None:
            return None
        states, changes = (x[..., list(columns)].movedim(1, 0) for x in (solved.states, solved.tangents))
        slopes = states.new_zeros(*states.shape, len(theta))
        values = self._quantities.values(torch.tensor(theta))
        scales = [values[i] if q.log else 1.0 for i, q in enumerate(self._quantities.all) if q.free]
        for j, (quantity, scale) in enumerate(zip(self._quantities.free, scales, strict=True)):
            rows, d = self._direction(quantity, group)
            if d is not None:
                slopes[:, rows, :, j] = scale * changes[:, rows, d]
        return states.numpy(), slopes.numpy()

    def _direction(self, quantity: Quantity, group: Sequence[int]) -> tuple[slice, int | None]:
        """The rows that move with a quantity, and the number of the direction in which; None if none does."""
        if quantity.kind == "parameter":
            number = self._names.index(quantity.key)
            moves = number in self._moving
            return slice(None), len(self._starting) + self._moving.index(number) if moves else None
        if quantity.trajectory not in group:
            return slice(0), None
        row = group.index(quantity.trajectory)
        return slice(row, row + 1), self._starting.index(self._states.index(quantity.key))

    def steps(
        self, theta: NDArray[np.float64], group: Sequence[int], t: Sequence[float], accuracy: Accuracy
    ) -> int | None:
        """The largest number of steps of the trajectories; None if a solve fails."""
        solved = self._solve(theta[None], group, t, False, accuracy)
        return None if solved is None else int(solved.steps.max())

    def _solve(
        self,
        thetas: NDArray[np.float64],
        group: Sequence[int],
        t: Sequence[float],
        derivatives: bool,
        accuracy: Accuracy,
    ) -> Solved | None:
        values = self._quantities.values(torch.tensor(thetas))
        starts = torch.stack([self._quantities.initial_state(values, i) for i in group], dim=1).flatten(0, 1)
        parameters = values[:, : len(self._names)].repeat_interleave(len(group), 0).T.contiguous()
        atol = torch.as_tensor(accuracy.atol, dtype=torch.float64).expand(len(self._states))
        rows, n = starts.shape
        moving = self._moving if derivatives else ()
        tangents = starts.new_zeros(rows, (len(self._starting) if derivatives else 0) + len(moving), n)
        for d, state in enumerate(self._starting if derivatives else ()):
            tangents[:, d, state] = 1.0
        outputs = torch.tensor(t, dtype=torch.float64)
        solved = self._kernel.solve(
            starts,
            tangents,
            parameters,
            outputs[:1].expand(rows),
            outputs[-1:].expand(rows),
            outputs.expand(rows, -1),
            moving,
            rtol=accuracy.rtol,
            atol=atol,
            controller=PIDController(max_step=accuracy.max_step),
            max_steps=accuracy.max_steps,
        )
        return solved if solved.ok.all() else None


def plain(pieces: Sequence[Any]) -> bool:
    """Whether a trajectory is one piece at whose ends nothing happens, as kernels solve it."""
    return len(pieces) == 1 and pieces[0].start < pieces[0].end and not (pieces[0].changes or pieces[0].last)
