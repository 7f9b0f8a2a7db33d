"""The misfit between model and data: residuals as functions of what is estimated, with their Jacobian."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from torchivp.api.ivp import solve_ivp
from torchivp.dual_numbers import DualArithmetic
from torchivp.fitting.data import Dataset
from torchivp.fitting.inputs import Inputs, Piece
from torchivp.fitting.kernels import ModelKernel, plain
from torchivp.fitting.quantities import Quantities
from torchivp.fitting.right_hand_side import (
    REFUSALS,
    Way,
    call_rows,
    check_gradient,
    shape_parameter,
    way_forwards,
)
from torchivp.models.model import Model
from torchivp.solution import SolveError
from torchivp.torch_func import in_forward_mode, pull_back

Noise = Literal["normal", "lognormal"]
SigmaMode = Literal["separate", "shared"]


@dataclass(frozen=True)
class Accuracy:
    """How the model is solved.

    Attributes:
        method: the name of an adaptive ODE method.
        rtol: relative tolerance.
        atol: absolute tolerance, in the units of the states: a number, or one for each state.
        max_steps: a solve (of a piece between inputs) that needs more step attempts counts as failed.
        max_step: no step is longer.
    """

    method: str
    rtol: float
    atol: float | tuple[float, ...]
    max_steps: int
    max_step: float = math.inf

    def scaled(self, factor: float, further: float = 1.0) -> Accuracy:
        """The tolerances times a factor, and the absolute ones times a further one."""
        atol = np.array(self.atol) * (factor * further)
        return replace(self, rtol=self.rtol * factor, atol=tuple(atol) if atol.ndim else float(atol))

    def options(self) -> dict[str, Any]:
        """The options of `solve_ivp`."""
        return {
            "method": self.method,
            "rtol": self.rtol,
            "atol": torch.tensor(self.atol, dtype=torch.float64) if isinstance(self.atol, tuple) else self.atol,
            "max_steps": self.max_steps,
            "max_step": self.max_step,
            "norm": _largest_of_rows,
        }


_Solved = dict[int, tuple[NDArray[np.float64], NDArray[np.float64]]]
"""By number of trajectory, the observed states [T, n_observed] and their derivatives [T, n_observed, n_free]."""


def _largest_of_rows(error: Tensor) -> Tensor:
    """The norm of a scaled error [..., n_states]: rows share their steps, and each is as accurate as it is alone."""
    return error.square().mean(-1).amax().sqrt()


class _Walk(nn.Module):
    """The solve of trajectories, as a module: so parameters are substituted once instead of at every evaluation."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def forward(
        self,
        y0: Tensor,
        pieces: Sequence[Piece],
        accuracy: Accuracy,
        way: Way | None = None,
    ) -> tuple[Tensor, int]:
        """Solve one piece after the other.

        Args:
            y0: the initial state, [n_states], or with a `way` those of rows, [n, n_states].
            pieces: between inputs.
            accuracy: how to solve.
            way: how to call the model with rows; None if there are none.

        Returns:
            The states at the outputs of the pieces, [T, ...], or without outputs at the beginnings of all steps; and
            the number of steps.
        """
        parameters = dict(self.model.named_parameters())
        arithmetic = DualArithmetic() if in_forward_mode() else nullcontext()

        def derivative(t: Tensor, y: Tensor) -> Tensor:
            with arithmetic:
                return call_rows(self.model, parameters, t, y, way) if way in ("mapped", "singly") else self.model(t, y)

        y, states, steps = y0, [], 0
        for piece in pieces:
            y = piece.begin(y)
            if piece.start < piece.end:
                wanted = None if piece.outputs is None else sorted({*piece.outputs, piece.end})
                func = derivative if len(pieces) == 1 else piece.within(derivative)
                solution = solve_ivp(func, (piece.start, piece.end), y, t_eval=wanted, **accuracy.options())
                y = piece.finish(solution.y[-1])
                states.append(solution.y[:-1])
                steps += solution.stats.accepted
            if piece.outputs and piece.outputs[-1] == piece.end:
                states.append(y[None])
        return torch.cat(states), steps


@dataclass
class Residuals:
    """The residuals at one `theta`, on the scale of the noise: data minus model, or the difference of their logarithms.

    Attributes:
        theta: where, [n_free].
        values: the residuals, [n], all observables of a trajectory in the order of time, then the next trajectory.
        observable: the number of the observable of each, [n].
        jacobian: their derivatives with respect to theta, [n, n_free].
        log_data: the sum of the logarithms of the data with lognormal noise, which turns a density of the logarithms
            into one of the data; 0 with normal noise.
    """

    theta: NDArray[np.float64]
    values: NDArray[np.float64]
    observable: NDArray[np.intp]
    jacobian: NDArray[np.float64]
    log_data: float

    def mean_squares(self, n_observables: int) -> NDArray[np.float64]:
        """The mean squared residual of each observable, [n_observables]; zero where it has no data."""
        squares = np.bincount(self.observable, self.values**2, n_observables)
        return squares / np.maximum(np.bincount(self.observable, minlength=n_observables), 1)

    def by_trajectory(self, data: Dataset) -> list[NDArray[np.float64]]:
        """The residuals of all data as tables, [T, n_observables] for each trajectory; NaN where data are missing."""
        tables, first = [], 0
        for trajectory in data.trajectories:
            known = np.isfinite(trajectory.values)
            table = np.full(known.shape, np.nan)
            table[known] = self.values[first : first + known.sum()]
            first += known.sum()
            tables.append(table)
        return tables


class Misfit:
    """Model and data, ready to be compared.

    Trajectories with the same times and inputs are rows of one solve.

    Args:
        model: the model; not changed.
        data: the observations.
        quantities: what is estimated and what is held.
        noise: "normal" or "lognormal".
        accuracy: how the model is solved.
        inputs: what acts on the model at known times; default nothing.

    Attributes:
        kernel: solves trajectories on which nothing acts; None for the step loop.
    """

    kernel: ModelKernel | None = None

    def __init__(
        self,
        model: Model,
        data: Dataset,
        quantities: Quantities,
        noise: Noise,
        accuracy: Accuracy,
        inputs: Inputs | None = None,
    ):
        self.model = model
        self.data = data
        self.quantities = quantities
        self.noise: Noise = noise
        self.accuracy = accuracy
        self.inputs = inputs or Inputs()
        self.observed = [list(model.states).index(state) for state in data.states]
        self._walk = _Walk(model)
        self._shared = _Shared()
        alike: dict[Any, list[int]] = {}
        for i, series in enumerate(data.trajectories):
            schedules = self.inputs.scheduled.get(series.name, ())
            alike.setdefault((*series.t.tolist(), *map(id, schedules)), []).append(i)
        self._groups = list(alike.values())

    @property
    def solves(self) -> int:
        """The number of solves so far, those at other accuracies included."""
        return self._shared.solves

    @property
    def failure(self) -> str:
        """Why the last solve that failed did so, in a sentence."""
        return self._shared.failure

    def at_accuracy(self, accuracy: Accuracy) -> Misfit:
        """The same misfit, solved in another way."""
        other = copy.copy(self)
        other.accuracy = accuracy
        return other

    def check_gradient(self) -> None:
        """Refuse a model whose derivatives autograd loses.

        Raises:
            ValueError: the message says which, and how to write the model.
        """
        values = self.quantities.values(torch.tensor(self.quantities.theta()))
        parameters = self.quantities.parameters(values)
        series = self.data.trajectories[0].t
        times = [float(t) for t in np.linspace(series[0], series[-1], 4)]
        check_gradient(self.model, parameters, self.quantities.initial_state(values, 0), times)

    def states(self, theta: Tensor, trajectory: int, t: Sequence[float]) -> Tensor:
        """The states of the model at increasing times not before the first data time.

        Args:
            theta: the free quantities, [n_free].
            trajectory: the number of the trajectory.
            t: the times, [T].

        Returns:
            The states, [T, n_states].

        Raises:
            SolveError: the solve failed.
        """
        return self._solution(theta, [trajectory], self._pieces(trajectory, t, outputs=True))[0]

    def steps(self, theta: NDArray[np.float64]) -> int:
        """The largest number of steps that a solve takes to the end of the data.

        Raises:
            SolveError: a solve failed.
        """
        counts = []
        for group in self._groups:
            t = self.data.trajectories[group[0]].t.tolist()
            kernel = self._kernel(group, t)
            count = None if kernel is None else kernel.steps(theta, group, t, self.accuracy)
            if count is not None:
                counts.append(count)
                continue
            pieces = self._pieces(group[0], t)
            with torch.no_grad():
                counts.append(self._solution(torch.tensor(theta), group, pieces)[1])
        return max(counts)

    def sensitivities(
        self, theta: NDArray[np.float64], trajectory: int, t: Sequence[float], columns: Sequence[int]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Some of the states, and their derivatives with respect to theta: those of the numerical solution, exactly.

        Args:
            theta: the free quantities, [n_free].
            trajectory: the number of the trajectory.
            t: increasing times, [T].
            columns: the numbers of the wanted states.

        Returns:
            The states [T, n_columns] and their derivatives [T, n_columns, n_free].

        Raises:
            SolveError: the solve failed.
        """
        states, slopes = self._sensitivities(theta, [trajectory], t, columns)
        return states[:, 0], slopes[:, 0]

    def _sensitivities(
        self, theta: NDArray[np.float64], group: Sequence[int], t: Sequence[float], columns: Sequence[int]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Those of trajectories that are solved together, [T, n, n_columns] and [T, n, n_columns, n_free].

        One solve is differentiated forwards along all entries of theta at once, which costs the same however many
        outputs there are; the sizes of its steps are those without derivatives. Where autograd cannot follow the model
        forwards, each output is differentiated backwards.
        """
        kernel = self._kernel(group, t)
        if kernel is not None:
            self._shared.solves += 1
            found = kernel.sensitivities(theta, group, t, columns, self.accuracy)
            if found is not None:
                return found  # a solve that fails says why where it is done step by step
        if self._shared.forwards:
            try:
                return self._forwards(theta, group, t, columns)
            except SolveError:
                raise
            except REFUSALS:
                # A part of the model that the trial did not come to cannot be differentiated so.
                self._shared.forwards = False
        each = [self._backwards(theta, trajectory, t, columns) for trajectory in group]
        return np.stack([states for states, _ in each], 1), np.stack([slopes for _, slopes in each], 1)

    def _forwards(
        self, theta: NDArray[np.float64], group: Sequence[int], t: Sequence[float], columns: Sequence[int]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Derivatives by dual numbers, a row for each entry of theta and trajectory."""
        self._find_way()
        at, n = torch.tensor(theta), len(group)
        directions = torch.eye(len(at), dtype=at.dtype).repeat_interleave(n, 0)
        with torch.no_grad(), forward_ad.dual_level():
            dual = forward_ad.make_dual(at.repeat(len(directions), 1), directions)
            solved, _ = self._solution(dual, group, self._pieces(group[0], t, outputs=True))
            states, tangents = forward_ad.unpack_dual(solved[:, :, list(columns)])
            tangents = torch.zeros_like(states) if tangents is None else tangents
            return states[:, :n].numpy(), tangents.unflatten(1, (-1, n)).movedim(1, 3).numpy()

    def _backwards(
        self, theta: NDArray[np.float64], trajectory: int, t: Sequence[float], columns: Sequence[int]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Derivatives by one backward pass for each output."""
        at = torch.tensor(theta).requires_grad_()
        states = self.states(at, trajectory, t)[:, list(columns)]
        rows = torch.eye(states.numel(), dtype=at.dtype).unflatten(1, states.shape)
        gradients = pull_back(lambda row: torch.autograd.grad(states, at, row, retain_graph=True)[0], rows)
        return states.detach().numpy(), gradients.numpy().reshape(*states.shape, len(at))

    def residuals(self, theta: NDArray[np.float64], horizon: float = 1.0, derivatives: bool = True) -> Residuals | None:
        """The residuals at `theta` of the first part of each trajectory.

        Args:
            theta: the free quantities, [n_free].
            horizon: which fraction of the times of each trajectory, at least two of them, to use.
            derivatives: whether to compute the Jacobian; it is empty otherwise.

        Returns:
            The residuals; None if a solve fails, or a residual or a derivative is not finite.
        """
        solved: _Solved = {}
        for group in self._groups:
            t = self._times(group, horizon)
            try:
                if derivatives:
                    states, slopes = self._sensitivities(theta, group, t, self.observed)
                else:
                    states, slopes = self._observables(theta[None], group, t)[0]
            except SolveError:
                return None
            solved |= {i: (states[:, k], slopes[:, k]) for k, i in enumerate(group)}
        return self._compare(theta, solved, horizon)

    def residuals_at(self, thetas: NDArray[np.float64]) -> list[Residuals | None]:
        """The residuals without Jacobian at each of the `thetas` [n, n_free]: those of `residuals`, by one solve."""
        solved: list[_Solved] = [{} for _ in thetas]
        try:
            for group in self._groups:
                at_each = self._observables(thetas, group, self._times(group))
                for of_one, (states, slopes) in zip(solved, at_each, strict=True):
                    of_one |= {i: (states[:, k], slopes[:, k]) for k, i in enumerate(group)}
        except SolveError:  # of one of them perhaps, which must not spoil the others
            return [self.residuals(theta, derivatives=False) for theta in thetas]
        return [self._compare(theta, of_one) for theta, of_one in zip(thetas, solved, strict=True)]

    def _compare(self, theta: NDArray[np.float64], solved: _Solved, horizon: float = 1.0) -> Residuals | None:
        """The residuals from what has been solved at `theta`."""
        values, rows, observable, log_data = [], [], [], 0.0
        for i, trajectory in enumerate(self.data.trajectories):
            data, (model, slopes) = trajectory.values[: _count(horizon, trajectory.t)], solved[i]
            known = np.isfinite(data)
            data, model, slopes = data[known], model[known], slopes[known]
            if self.noise == "lognormal":
                if not (model > 0).all():
                    self._shared.failure = "an observed state is not positive, as lognormal noise needs it to be"
                    return None
                data, model, slopes = np.log(data), np.log(model), slopes / model[:, None]
                log_data += float(data.sum())
            values.append(data - model)
            rows.append(-slopes)
            observable.append(known.nonzero()[1])
        found = Residuals(theta, np.concatenate(values), np.concatenate(observable), np.concatenate(rows), log_data)
        if np.isfinite(found.values).all() and np.isfinite(found.jacobian).all():
            return found
        self._shared.failure = "an observed state, or its derivative with respect to what is free, is not finite"
        return None

    def _observables(
        self, thetas: NDArray[np.float64], group: Sequence[int], t: Sequence[float]
    ) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """The observed states of trajectories that are solved together, [T, n, n_observed], at each of the `thetas`.

        With derivatives [T, n, n_observed, 0], which are those with respect to nothing.
        """
        kernel = self._kernel(group, t)
        if kernel is not None:
            self._shared.solves += 1
            found = kernel.observables(thetas, group, t, self.observed, self.accuracy)
            if found is not None:
                return found
        at = torch.tensor(thetas[0] if len(thetas) == 1 else thetas.repeat(len(group), 0))
        with torch.no_grad():
            states, _ = self._solution(at, group, self._pieces(group[0], t, outputs=True))
        states = states.reshape(len(t), len(thetas), len(group), -1)[..., self.observed].numpy()
        return [(states[:, k], np.zeros((*states[:, k].shape, 0))) for k in range(len(thetas))]

    def _kernel(self, group: Sequence[int], t: Sequence[float]) -> ModelKernel | None:
        """The kernel, if there is one for these trajectories."""
        return self.kernel if self.kernel is not None and plain(self._pieces(group[0], t)) else None

    def _times(self, group: Sequence[int], horizon: float = 1.0) -> list[float]:
        """The times of the first part of the trajectories of a group."""
        t = self.data.trajectories[group[0]].t
        return t[: _count(horizon, t)].tolist()

    def _pieces(self, trajectory: int, t: Sequence[float], outputs: bool = False) -> list[Piece]:
        """The pieces from the first data time to the last of `t`."""
        series = self.data.trajectories[trajectory]
        return self.inputs.pieces(series.name, float(series.t[0]), t[-1], t if outputs else None)

    def _find_way(self) -> Way:
        """How to call the model with rows."""
        if self._shared.way is None:
            self._shared.way = way_forwards(self.model, float(self.data.trajectories[0].t[0]))
        return self._shared.way

    def _solution(self, theta: Tensor, group: Sequence[int], pieces: Sequence[Piece]) -> tuple[Tensor, int]:
        """What `_Walk` returns for a group of trajectories: a single one has no rows, unless `theta` has.

        Args:
            theta: the free quantities, [n_free], or [n, n_free] for as many rows, which are in turn those of the
                trajectories of the group.
            group: the numbers of the trajectories.
            pieces: those of each of them.
        """
        self._shared.solves += 1
        if len(group) > 1 and theta.ndim == 1:
            theta = theta.expand(len(group), -1)
        way = None if theta.ndim == 1 else self._find_way()
        values = self.quantities.values(theta)
        parameters = self.quantities.parameters(values)
        substitutes = {f"model.{name}": shape_parameter(value, way) for name, value in parameters.items()}
        if way is None:
            y0 = self.quantities.initial_state(values, group[0])
        else:
            starts = [self.quantities.initial_state(values[k :: len(group)], i) for k, i in enumerate(group)]
            y0 = torch.stack(starts, dim=1).flatten(0, 1)
        try:
            return functional_call(self._walk, substitutes, (y0, pieces, self.accuracy, way))
        except SolveError as error:
            self._shared.failure = error.status.message
            raise
        except REFUSALS:
            if way in (None, "singly"):
                raise
            # A part of the model that the trial did not come to cannot be called with rows.
            self._shared.way = "singly"
            return self._solution(theta, group, pieces)


def _count(horizon: float, t: NDArray[np.float64]) -> int:
    """The number of the first times that are this fraction of all."""
    return max(2, int(np.ceil(horizon * len(t))))


@dataclass
class _Shared:
    """What a misfit and its copies at other accuracies know together.

    Attributes:
        solves: the number of solves so far.
        failure: why the last solve that failed did so.
        way: how to call the model with rows, of dual numbers too; None before a try.
        forwards: whether the model can be differentiated forwards, as far as is known.
    """

    solves: int = 0
    failure: str = "no solve has failed"
    way: Way | None = None
    forwards: bool = True
