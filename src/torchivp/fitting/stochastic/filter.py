"""A stochastic model and data: what each observation is expected to be given those before it, as functions of theta."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchivp.fitting.data import Dataset
from torchivp.fitting.measured import Measured, measurements
from torchivp.fitting.misfit import Misfit
from torchivp.fitting.predictions import Path, Predictions, Spread
from torchivp.fitting.quantities import Quantities
from torchivp.fitting.solving.inputs import Inputs
from torchivp.fitting.solving.paths import Paths
from torchivp.fitting.solving.stretches import Accuracy
from torchivp.fitting.stochastic.innovations import Innovations
from torchivp.fitting.stochastic.measurement import Measurement
from torchivp.fitting.stochastic.moments import Moments
from torchivp.fitting.stochastic.walk import Belief, Borders, Walk
from torchivp.models.stochastic_model import StochasticModel
from torchivp.solution import SolveError

Floats = NDArray[np.float64]


class Filter(Misfit):
    """The continuous-discrete extended Kalman filter: predictions are innovations.

    Between observations, mean and covariance of the state follow their equations (`Moments`); each observation corrects
    them (`Walk`). Exact where the drift and the observables are linear and the diffusion does not depend on the state,
    where it is the filter of R. E. Kalman and R. S. Bucy, "New results in linear filtering and prediction theory",
    Journal of Basic Engineering 83 (1961).

    Args:
        model: the model, in float64.
        data: the data.
        quantities: what is estimated and what is held, standard deviations of measurements among them.
        accuracy: how to solve; the absolute tolerances are those of the states.
        inputs: jumps of the right-hand side at known times.
        measurement: how exact the data are.
    """

    model: StochasticModel

    def __init__(
        self,
        model: StochasticModel,
        data: Dataset,
        quantities: Quantities,
        accuracy: Accuracy,
        inputs: Inputs,
        measurement: Measurement,
    ):
        super().__init__(model, data, quantities, accuracy, inputs)
        self.measurement = measurement
        self._moments = Moments(model, float(data.trajectories[0].t[0]))
        self._solve_for(self._moments, self._moments.owner)
        self._sizes = measurement.covariance_sizes(accuracy, list(model.states))

    def _restored(self, theta: Floats, numbers: Sequence[Floats], measured: Measured) -> Predictions:
        values, jacobian, variances, variance_jacobian, deviations = numbers
        return Innovations(theta, values, jacobian, measured, variances, variance_jacobian, deviations)

    def _functions(self) -> Sequence[StochasticModel]:
        return self.model, _diffusion_of(self.model)

    def measured(self, horizon: float = 1.0) -> Measured:
        """What was measured, but for the values that the trajectories start from."""
        if horizon not in self._measured:
            self._measured[horizon] = self.measurement.without_starts(measurements(self.data, horizon))
        return self._measured[horizon]

    @cached_property
    def silent(self) -> list[int]:
        """The numbers of the locals that depend on theta and move neither the initial state nor the right-hand side."""
        first, n = self.quantities.layout.count, len(self.quantities.state_names)
        return (first + np.flatnonzero(self.quantities.moving[first:-n])).tolist()

    def _predicted(
        self, thetas: Floats, own: Tensor, slopes: Floats, measured: Measured, derivatives: bool
    ) -> list[Predictions | None]:
        count = len(self.data.trajectories)
        walk = self._walk(
            own.flatten(0, 1), list(range(count)) * len(thetas), dict(enumerate(measured.times)), derivatives
        )
        seen = walk.observe_all(measured)
        ok = (walk.ok.reshape(len(thetas), count).all(1) & self._allowed(own)).tolist()
        if walk.failure is not None:
            self.shared.failure = walk.failure.message
        moves = np.zeros((2, len(thetas), len(measured.y), slopes.shape[-1] if derivatives else 0))
        for i in range(count if derivatives else 0):
            mine = np.flatnonzero(measured.trajectory == i)
            by_local = seen.tangents.numpy()[:, :, mine]  # [2, n_thetas, n, n_directions]
            moves[:, :, mine] = np.einsum("mqnd,qdf->mqnf", by_local, slopes[:, i, self.moved])
        found: list[Predictions | None] = []
        (values, variances), (of_values, of_variances) = seen.values.numpy(), moves
        for q, theta in enumerate(thetas):
            parts = values[q], of_values[q], variances[q], of_variances[q]
            h, by_h, s, by_s = parts
            one = Innovations(
                theta, h, by_h, measured, s, by_s, self.measurement.deviations(own[q, 0], self.quantities)
            )
            found.append(self._finite(one, *parts) if ok[q] else None)
        return found

    def _walk(
        self, own: Tensor, trajectories: Sequence[int], times: Mapping[int, Sequence[float]], derivatives: bool
    ) -> Walk:
        rows = self._rows(own, trajectories, derivatives)
        silent = len(self.silent) if derivatives else 0
        states = len(self.directions[0]) if derivatives else 0
        still = rows.tangents.new_zeros(len(own), silent, len(self.model.states))
        tangents = torch.cat([rows.tangents[:, :states], still, rows.tangents[:, states:]], 1)
        belief = Belief.initial(self._moments, rows.y0, tangents, rows.parameters, rows.moving)
        moved = self.moved if derivatives else []
        deviations = self.measurement.read(self.quantities)
        for start in self.measurement.starts:
            at = torch.from_numpy(np.flatnonzero(np.array(trajectories) == start.trajectory))
            given = self.data.trajectories[start.trajectory].sigma
            sigma = np.full(len(at), np.nan if given is None else given[start.row, start.observable])
            belief.widen(at, start.state, *deviations.variances(start.observable, sigma, own[at], moved))
        self.shared.solves += 1
        return Walk(
            belief,
            rows.parameters,
            rows.moving,
            own,
            moved,
            np.array(trajectories),
            Borders.of(times, len(self.data.trajectories), self.inputs.jump_times),
            self.observables,
            deviations,
            self._paths.solver,
            self._of_moments(self.accuracy),
        )

    def _of_moments(self, accuracy: Accuracy) -> Accuracy:
        """The accuracy with absolute tolerances for covariances too."""
        n = len(self.model.states)
        of_states = np.broadcast_to(np.asarray(accuracy.atol, dtype=np.float64), (n,))
        i, j = np.tril_indices(n)
        of_covariances = np.sqrt(of_states[i] * of_states[j]) * np.sqrt(self._sizes[i] * self._sizes[j])
        return replace(accuracy, atol=(*of_states.tolist(), *of_covariances.tolist()))

    def steps(self, theta: Floats) -> int:
        """The largest number of steps that a trajectory takes, from observation to observation.

        Raises:
            SolveError: a solve failed.
        """
        own = self.quantities.locals(torch.tensor(theta))
        times = dict(enumerate(self.measured().times))
        walk = self._walk(own, range(len(own)), times, derivatives=False)
        walk.observe_all(self.measured())
        if walk.failure is not None:
            raise SolveError(walk.failure)
        return int(walk.steps.max())

    def path(self, theta: Floats, trajectory: int, t: Sequence[float], derivatives: bool = True) -> Path:
        """Mean and variance of states and observables given the data up to each of the times.

        Raises:
            SolveError: the solve failed.
        """
        own, slopes = self._locals_of(theta, trajectory)
        measured = self.measured()
        times = np.union1d([x for x in measured.times[trajectory] if x <= t[-1]], t[-1:]).tolist()
        walk = self._walk(own, [trajectory], {trajectory: times}, derivatives)
        belief = walk.keep(measured, t)
        means, covariances = belief.mean, belief.covariance
        paths = Paths(means[None], belief.mean_tangents[None], walk.ok, walk.steps)
        path = self._path(paths, own, slopes if derivatives else slopes[..., :0], t)
        by_state = self.observables.with_slopes(torch.tensor([t], dtype=torch.float64), means[None], own).by_state[0]
        spread = Spread(
            covariances.diagonal(dim1=-2, dim2=-1).numpy().clip(0.0),
            np.einsum("tki,tij,tkj->tk", by_state, covariances.numpy(), by_state).clip(0.0),
            self.measurement.typical(self.measurement.deviations(own[0], self.quantities)) ** 2,
        )
        return replace(path, spread=spread)


def _diffusion_of(model: StochasticModel) -> StochasticModel:
    """The same model, whose right-hand side is its diffusion."""
    kind = type(model)
    twin = copy.copy(model)
    twin.__class__ = cast(
        type[StochasticModel],
        type(kind.__name__, (kind,), {"forward": lambda self, t, y: self.diffusion(t, y).flatten()}),
    )
    return twin
