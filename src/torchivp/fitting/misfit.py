"""Model and data: the predictions of what was measured as functions of what is estimated, with their Jacobian."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchivp.fitting.constraints import Constraint
from torchivp.fitting.data import Dataset
from torchivp.fitting.measured import Measured, measurements
from torchivp.fitting.observables import Observables
from torchivp.fitting.predictions import NOT_FINITE, Parts, Path, Predictions
from torchivp.fitting.quantities import Quantities
from torchivp.fitting.solving.backwards import states_backwards
from torchivp.fitting.solving.inputs import Infused, Inputs
from torchivp.fitting.solving.journal import FitJournal
from torchivp.fitting.solving.kernels import ModelKernel
from torchivp.fitting.solving.paths import Paths, PathSolver, Rows
from torchivp.fitting.solving.right_hand_side import check_gradient
from torchivp.fitting.solving.step_loop import MANY_DIRECTIONS, StepLoop
from torchivp.fitting.solving.stretches import Accuracy, Solver
from torchivp.fitting.solving.together import Broker
from torchivp.models.model import Model
from torchivp.solution import SolveError

_AT_A_TIME = 1 << 15  # numbers of the tables of observables


@dataclass
class Shared:
    """What a misfit and its copies at other accuracies know together.

    Attributes:
        failure: why the last solve that failed did so, in a sentence.
        journal: of all predictions, if one is kept.
        solves: the number of solves of trajectories so far.
    """

    failure: str = "no solve has failed"
    journal: FitJournal | None = None
    solves: int = 0


class Misfit:
    """A model and the data that it is to explain.

    Args:
        model: the model, in float64.
        data: the data.
        quantities: what is estimated and what is held.
        accuracy: how to solve.
        inputs: jumps and changes of the state at known times.

    Attributes:
        model: as given; likewise `data`, `quantities`, `accuracy` and `inputs`.
        observables: what the columns of the data measure.
        solved: what solvers solve: the model.
        owner: what tells its right-hand side apart from others.
        step_loop: solves it in torch.
        constraints: where one does not hold, there are no predictions.
        shared: what copies of this know with it.
    """

    def __init__(
        self,
        model: Model,
        data: Dataset,
        quantities: Quantities,
        accuracy: Accuracy,
        inputs: Inputs | None = None,
    ):
        self.model, self.data, self.quantities, self.accuracy = model, data, quantities, accuracy
        self.inputs = inputs or Inputs()
        self.observables = Observables(model, data, quantities)
        infused = self.inputs.infused
        if infused:
            self._solve_for(Infused(model, infused), (type(model), *infused))
        else:
            self._solve_for(model, type(model))
        self.shared = Shared()
        self._measured: dict[float, Measured] = {}
        self.constraints: list[Constraint] = []
        self._broker: tuple[Broker, int] | None = None

    def _solve_for(self, solved: Model, owner: Any) -> None:
        """What solvers solve."""
        self.solved, self.owner = solved, owner
        self.step_loop = StepLoop(solved, float(self.data.trajectories[0].t[0]))
        self._paths = PathSolver(self.data, self.inputs, self.step_loop)

    @property
    def solves(self) -> int:
        """The number of solves so far, those at other accuracies included."""
        return self.shared.solves

    def count(self, solves: int) -> None:
        """Other processes have made so many solves."""
        self.shared.solves += solves

    @property
    def failure(self) -> str:
        """Why the last solve that failed did so, in a sentence."""
        return self.shared.failure

    @property
    def compiled(self) -> bool:
        """Whether something else than the step loop solves the model."""
        return self._paths.solver is not self.step_loop

    def use(self, solver: Solver) -> None:
        """Solve by something else than the step loop."""
        self._paths.solver = solver

    def compile(self) -> None:
        """Solve by a kernel.

        Raises:
            CannotFuse: there is none; the message says why.
        """
        start = float(self.data.trajectories[0].t[0])
        self.use(ModelKernel(self.solved, self.accuracy.method, self.owner, start))

    def at_accuracy(self, accuracy: Accuracy) -> Misfit:
        """The same misfit, solved in another way."""
        other = copy.copy(self)
        other.accuracy = accuracy
        return other

    def shifted(self, shifts: NDArray[np.float64] | None) -> Misfit:
        """The same misfit, with theta moved in each trajectory by its own shifts [n_trajectories, n_free]."""
        other = copy.copy(self)
        other.quantities = self.quantities.shifted(shifts)
        return other

    def rescaled(self, magnitudes: NDArray[np.float64]) -> Misfit:
        """The same misfit with other typical changes of what is free, [n_free]."""
        other = copy.copy(self)
        other.quantities = self.quantities.rescaled(magnitudes)
        return other

    def through(self, broker: Broker, number: int) -> Misfit:
        """The same misfit for one of several searches side by side, whose solves the broker puts together."""
        other = copy.copy(self)
        other._broker = (broker, number)
        return other

    def with_data(self, data: Dataset) -> Misfit:
        """The same misfit with other values of data that have the same times, columns and trajectories."""
        other = copy.copy(self)
        other.data, other._measured = data, {}
        return other

    def without_kernel(self) -> Misfit:
        """The same misfit, solved by the step loop and without a journal: those belong to its process."""
        other = copy.copy(self)
        other.shared = Shared(self.shared.failure)
        other._paths = replace(self._paths, solver=self.step_loop)
        return other

    def check_gradient(self) -> None:
        """Refuse a model whose derivatives autograd loses.

        Raises:
            ValueError: the message says which, and how to write the model.
        """
        own = self.quantities.locals(torch.tensor(self.quantities.theta()))[0]
        parameters = self.quantities.layout.named(own[: self.quantities.layout.count])
        series = self.data.trajectories[0].t
        self.observables.check(float(series[0]), own[-len(self.model.states) :], own)
        times = [float(t) for t in np.linspace(series[0], series[-1], 4)]
        for function in self._functions():
            check_gradient(function, parameters, own[-len(self.model.states) :], times)

    def _functions(self) -> Sequence[Model]:
        """The functions that the model consists of, as right-hand sides."""
        return (self.model,)

    def measured(self, horizon: float = 1.0) -> Measured:
        """What was measured in the first part of the times of each trajectory, at least two of them."""
        if horizon not in self._measured:
            self._measured[horizon] = measurements(self.data, horizon)
        return self._measured[horizon]

    def predictions(
        self, theta: NDArray[np.float64], horizon: float = 1.0, derivatives: bool = True
    ) -> Predictions | None:
        """The predictions at `theta` of the first part of each trajectory.

        Args:
            theta: the free quantities, [n_free].
            horizon: which fraction of the times of each trajectory, at least two of them, to use.
            derivatives: whether to compute the Jacobian; it is empty otherwise.

        Returns:
            The predictions; None if a solve fails, or a prediction or a derivative is not finite.
        """
        if self._broker is not None:
            broker, number = self._broker
            return broker.ask(number, self, theta, horizon, derivatives)
        return self.predictions_at(theta[None], horizon, derivatives)[0]

    def predictions_at(
        self, thetas: NDArray[np.float64], horizon: float = 1.0, derivatives: bool = False
    ) -> list[Predictions | None]:
        """Those at each of the `thetas` [n, n_free], by one solve of all trajectories at all of them."""
        journal = self.shared.journal
        if journal is None:
            return self._solved_at(thetas, horizon, derivatives)
        shifts, company = self.quantities.shifts, len(thetas) > 1  # in which the last bits may be others than alone
        keys = [journal.key(self.accuracy, theta, horizon, derivatives, shifts, company) for theta in thetas]
        new = [i for i, key in enumerate(keys) if key not in journal]
        if new:
            solved = new * 2 if company and len(new) == 1 else new
            for i, found in zip(new, self._solved_at(thetas[solved], horizon, derivatives), strict=False):
                journal.add(keys[i], None if found is None else found.numbers)
            journal.flush()
        measured, entries = self.measured(horizon), [journal[key] for key in keys]
        return [
            None if entry is None else self._restored(theta, entry, measured)
            for theta, entry in zip(thetas, entries, strict=True)
        ]

    def _restored(
        self, theta: NDArray[np.float64], numbers: Sequence[NDArray[np.float64]], measured: Measured
    ) -> Predictions:
        """Predictions from the numbers that a journal keeps."""
        values, jacobian = numbers
        return Predictions(theta, values, jacobian, measured)

    def _solved_at(self, thetas: NDArray[np.float64], horizon: float, derivatives: bool) -> list[Predictions | None]:
        try:
            own, slopes = self.quantities.locals_and_slopes(thetas)
        except SolveError as error:  # of a steady state, of one of them
            self.shared.failure = error.status.message
            if len(thetas) == 1:
                return [None]
            return [self._solved_at(theta[None], horizon, derivatives)[0] for theta in thetas]
        return self._predicted(thetas, own, slopes, self.measured(horizon), derivatives)

    def _predicted(
        self,
        thetas: NDArray[np.float64],
        own: Tensor,
        slopes: NDArray[np.float64],
        measured: Measured,
        derivatives: bool,
    ) -> list[Predictions | None]:
        """The predictions at thetas [n, n_free] with these locals, [n, n_trajectories, n_locals] and by theta."""
        count = len(self.data.trajectories)
        rows = self._rows(own.flatten(0, 1), list(range(count)) * len(thetas), derivatives)
        paths = self._solve(rows, dict(enumerate(measured.times)))
        return self._seen(thetas, own, slopes if derivatives else slopes[..., :0], measured, paths)

    def _seen(
        self, thetas: NDArray[np.float64], own: Tensor, slopes: NDArray[np.float64], measured: Measured, paths: Paths
    ) -> list[Predictions | None]:
        """What is predicted along solved paths; arguments as of `_predicted`, slopes [..., 0] for no derivatives."""
        count = len(self.data.trajectories)
        ok = (paths.ok.reshape(len(thetas), count).all(1) & self._allowed(own)).numpy()
        at = (slice(None), measured.trajectory, measured.place, measured.observable)
        n = len(measured.trajectory)
        every, by_theta = np.empty((len(thetas), n)), np.empty((len(thetas), n, slopes.shape[-1]))
        # So many at a time that what is computed on the way stays in the caches.
        most = max(1, _AT_A_TIME // (count * measured.padded_times.shape[1] * len(self.quantities.names)))
        for i in range(0, len(thetas), most):
            some = slice(i, i + most)
            of_some = paths.part(slice(i * count, (i + most) * count))
            shape = (len(own[some]), count)
            values, jacobian = self._observe(of_some, own[some], slopes[some], measured.padded_times, shape)
            every[some], by_theta[some] = values[at], jacobian[at]
        finite = np.logical_and(np.isfinite(every).all(1), np.isfinite(by_theta).all((1, 2)))
        if not np.all(finite[ok]):
            self.shared.failure = NOT_FINITE
        return [
            Predictions(theta, h, by, measured) if well else None
            for theta, well, h, by in zip(thetas, ok & finite, every, by_theta, strict=True)
        ]

    def pulled_back(
        self, theta: NDArray[np.float64], by_value: Callable[[Predictions], NDArray[np.float64]]
    ) -> tuple[Predictions, NDArray[np.float64]] | None:
        """The predictions at `theta`, and the gradient of a function of them by theta.

        With few directions they are carried along by the solve; with many, the gradient comes from one pass backwards,
        whose cost hardly depends on how many there are.

        Args:
            theta: the free quantities, [n_free].
            by_value: the derivatives of the function by the predictions, [n], from the predictions.

        Returns:
            None if a solve fails, or a number is not finite.
        """
        if not self.many:
            found = self.predictions(theta)
            return None if found is None else (found, by_value(found) @ found.jacobian)
        numbers = self._noted(theta, -1.0, lambda: self._solved_backwards(theta, by_value))
        if numbers is None:
            return None
        values, gradient = numbers
        return Predictions(theta, values, np.zeros((len(values), 0)), self.measured()), gradient

    def _noted(
        self, asked: NDArray[np.float64], horizon: float, solve: Callable[[], Sequence[NDArray[np.float64]] | None]
    ) -> Sequence[NDArray[np.float64]] | None:
        """The numbers that a solve gives, from the journal where there is one and it knows them."""
        journal = self.shared.journal
        if journal is None:
            return solve()
        key = journal.key(self.accuracy, asked, horizon, True)
        if key not in journal:
            journal.add(key, solve())
            journal.flush()
        return journal[key]

    def _solved_backwards(
        self, theta: NDArray[np.float64], by_value: Callable[[Predictions], NDArray[np.float64]]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """The predictions and the gradient."""
        measured, at = self.measured(), torch.tensor(theta, requires_grad=True)
        self.shared.solves += 1
        try:
            with torch.enable_grad():
                own = self.quantities.locals(at)
                states = states_backwards(self.solved, self.data, self.inputs, own, measured.times, self.accuracy)
                values = self.observables.followed(torch.from_numpy(measured.padded_times), states, own)
        except SolveError as error:
            self.shared.failure = error.status.message
            return None
        values = values[measured.trajectory, measured.place, measured.observable]
        found = Predictions(theta, values.detach().numpy(), np.zeros((len(values), 0)), measured)
        if not bool(self._allowed(own.detach()[None]).all()) or self._finite(found, found.values) is None:
            return None
        (gradient,) = torch.autograd.grad(values, at, torch.from_numpy(by_value(found)))
        return None if self._finite(found, gradient.numpy()) is None else (found.values, gradient.numpy())

    def in_parts(self, data: Dataset) -> Misfit:
        """The same misfit of parts of its trajectories, which `solve_parts` solves from states of their own."""
        other = copy.copy(self)
        other.data, other._measured, other._broker = data, {}, None
        other._paths = replace(self._paths, data=data)
        other.directions = tuple(range(len(self.quantities.state_names))), self.directions[1]
        vars(other).pop("moved", None)
        return other

    def solve_parts(self, own: Tensor, slopes: NDArray[np.float64]) -> Parts | None:
        """The predictions along parts, and the states at their ends, with their derivatives.

        Args:
            own: the locals of each part, [n_parts, n_locals].
            slopes: their derivatives by numbers that the caller knows, [n_parts, n_locals, m].

        Returns:
            None if a solve fails, or a number is not finite.
        """
        asked = np.concatenate([own.numpy().ravel(), slopes.ravel()])
        numbers = self._noted(asked, 0.0, lambda: self._solved_parts(own, slopes))
        if numbers is None:
            return None
        values, jacobian, ends, end_slopes = numbers
        return Parts(Predictions(np.empty(0), values, jacobian, self.measured()), ends, end_slopes)

    def _solved_parts(self, own: Tensor, slopes: NDArray[np.float64]) -> Sequence[NDArray[np.float64]] | None:
        """What the predictions consist of, the states at the ends, and their derivatives."""
        measured = self.measured()
        paths = self._solve(self._rows(own, range(len(own)), derivatives=True), dict(enumerate(measured.times)))
        (found,) = self._seen(np.empty((1, 0)), own[None], slopes[None], measured, paths)
        if found is None:
            return None
        rows, last = range(len(own)), [len(t) - 1 for t in measured.times]
        ends = paths.states[rows, last].numpy()
        end_slopes = np.einsum("rds,rdf->rsf", paths.tangents[rows, last].numpy(), slopes[:, self.moved])
        return (*found.numbers, ends, end_slopes) if np.isfinite(end_slopes).all() else None

    def pass_part(self, own: Tensor, numbers: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """The states at the ends of some of the parts, [n, n_states], and which of them were reached.

        Args:
            own: the locals of each of them, [n, n_locals].
            numbers: which they are.
        """
        times = {i: self.measured().times[i][-1:] for i in numbers}
        paths = self._solve(self._rows(own, numbers, derivatives=False), times)
        return paths.states[:, 0].numpy(), (paths.ok & paths.states[:, 0].isfinite().all(-1)).numpy()

    def _finite(self, found: Predictions, *numbers: NDArray[np.float64]) -> Predictions | None:
        """Predictions, if the numbers that they are made of are finite."""
        if all(np.isfinite(each).all() for each in numbers):
            return found
        self.shared.failure = NOT_FINITE
        return None

    def _allowed(self, own: Tensor) -> Tensor:
        """Where all constraints hold, [n_thetas]."""
        allowed = torch.ones(len(own), dtype=torch.bool)
        for constraint in self.constraints:
            holds = constraint.holds(own)
            if not bool(holds.all()):
                self.shared.failure = f"the constraint {constraint.expression.text} does not hold"
            allowed &= holds
        return allowed

    def _rows(self, own: Tensor, trajectories: Sequence[int], derivatives: bool) -> Rows:
        """The rows with these locals [rows, n_locals]; their directions are the locals that depend on theta."""
        quantities = self.quantities
        n, count = len(quantities.state_names), quantities.layout.count
        states, parameters = self.directions if derivatives else ((), ())
        tangents = own.new_zeros(len(own), len(states) + len(parameters), n)
        for d, state in enumerate(states):
            tangents[:, d, state] = 1.0
        return Rows(trajectories, own[:, :count], own[:, -n:], tangents, parameters)

    @cached_property
    def directions(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The numbers of the initial states and of the parameters of the model that depend on theta."""
        moving, n = self.quantities.moving, len(self.quantities.state_names)
        states = np.flatnonzero(moving[-n:]).tolist()
        return tuple(states), tuple(np.flatnonzero(moving[: self.quantities.layout.count]).tolist())

    @property
    def many(self) -> bool:
        """Whether there are so many directions that a gradient comes from a pass backwards."""
        return len(self.moved) > MANY_DIRECTIONS

    @cached_property
    def silent(self) -> list[int]:
        """The numbers of further locals with directions of their own, which do not move the right-hand side."""
        return []

    @cached_property
    def moved(self) -> list[int]:
        """The number of the local that each direction moves."""
        states, parameters = self.directions
        first = len(self.quantities.names) - len(self.quantities.state_names)
        return [*(first + state for state in states), *self.silent, *parameters]

    def _solve(self, rows: Rows, times: Mapping[int, Sequence[float]]) -> Paths:
        self.shared.solves += 1
        paths = self._paths.solve(rows, times, self.accuracy)
        if paths.failure:
            self.shared.failure = paths.failure.message
        return paths

    def _observe(
        self,
        paths: Paths,
        own: Tensor,
        slopes: NDArray[np.float64],
        times: NDArray[np.float64],
        shape: tuple[int, int],
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The observables of solved rows, [*shape, T, n_observed], and their derivatives by theta, [..., n_free].

        Args:
            paths: of rows that are those of `shape`, flattened.
            own: the locals, [*shape, n_locals].
            slopes: their derivatives by theta, [*shape, n_locals, n_free]; [..., 0] for no derivatives.
            times: of the trajectories, [shape[1], T].
            shape: of thetas and trajectories.
        """
        t = torch.from_numpy(times).expand(shape[0], -1, -1).flatten(0, 1)
        flat = own.flatten(0, 1)
        if not slopes.shape[-1]:
            values = self.observables.values(t, paths.states, flat).reshape(*shape, times.shape[1], -1)
            return values, np.zeros((*values.shape, 0))
        seen = self.observables.with_slopes(t, paths.states, flat)
        flat_slopes = slopes.reshape(-1, *slopes.shape[2:])
        # By the way of the states: first how each observable moves with each direction, then the chain rule.
        tangents = paths.tangents.numpy()
        if not np.isfinite(seen.by_state).all():
            # The slope of a root at zero does not matter where the state is known, and moves in no direction.
            still = (tangents == 0).all(-2)[..., None, :]
            seen.by_state[still & ~np.isfinite(seen.by_state)] = 0.0
        with np.errstate(invalid="ignore"):
            by_direction = seen.by_state @ np.swapaxes(tangents, -1, -2)
        jacobian = by_direction @ flat_slopes[:, None, self.moved]  # whose rounding does not depend on other rows
        if not self.observables.plain:
            jacobian += seen.by_local @ flat_slopes[:, None]
        return seen.values.reshape(*shape, *seen.values.shape[1:]), jacobian.reshape(*shape, *jacobian.shape[1:])

    def steps(self, theta: NDArray[np.float64]) -> int:
        """The largest number of steps that a solve takes to the end of the data.

        Raises:
            SolveError: a solve failed.
        """
        own = self.quantities.locals(torch.tensor(theta))
        count = len(self.data.trajectories)
        times = {i: series.t[-1:].tolist() for i, series in enumerate(self.data.trajectories)}
        paths = self._solve(self._rows(own, range(count), derivatives=False), times)
        return int(self._checked(paths).steps.max())

    def path(self, theta: NDArray[np.float64], trajectory: int, t: Sequence[float], derivatives: bool = True) -> Path:
        """States and observables of a trajectory at increasing times, with their derivatives by theta.

        Raises:
            SolveError: the solve failed.
        """
        own, slopes = self._locals_of(theta, trajectory)
        rows = self._rows(own, [trajectory], derivatives)
        paths = self._checked(self._solve(rows, {trajectory: list(t)}))
        return self._path(paths, own, slopes if derivatives else slopes[..., :0], t)

    def _locals_of(self, theta: NDArray[np.float64], trajectory: int) -> tuple[Tensor, NDArray[np.float64]]:
        """The locals of a trajectory, [1, n_locals], and their derivatives by theta, [1, n_locals, n_free]."""
        every, slopes = self.quantities.locals_and_slopes(theta)
        return every[trajectory : trajectory + 1], slopes[trajectory : trajectory + 1]

    def _path(self, paths: Paths, own: Tensor, slopes: NDArray[np.float64], t: Sequence[float]) -> Path:
        """States and observables of a trajectory that is solved; with slopes [..., 0] without their derivatives."""
        states = paths.states[0].numpy()
        by_theta = np.zeros((*states.shape, 0))
        if slopes.shape[-1]:
            by_theta = np.einsum("tds,df->tsf", paths.tangents[0].numpy(), slopes[0][self.moved])
        values, jacobian = self._observe(paths, own[None], slopes[None], np.array(t)[None], (1, 1))
        return Path(states, by_theta, values[0, 0], jacobian[0, 0])

    def _checked(self, paths: Paths) -> Paths:
        if paths.failure is not None:
            raise SolveError(paths.failure)
        return paths
