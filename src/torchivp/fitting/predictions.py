"""What the model says of the data, and along its path."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchivp.fitting.measured import Measured

NOT_FINITE = "an observable, or its derivative with respect to what is free, is not finite"


@dataclass
class Predictions:
    """What the model says should have been measured, at one `theta`.

    Attributes:
        theta: where, [n_free].
        values: the predictions, [n].
        jacobian: their derivatives by theta, [n, n_free]; [n, 0] if they were not wanted.
        measured: what was measured.
    """

    theta: NDArray[np.float64]
    values: NDArray[np.float64]
    jacobian: NDArray[np.float64]
    measured: Measured

    @property
    def numbers(self) -> tuple[NDArray[np.float64], ...]:
        """What a journal keeps."""
        return self.values, self.jacobian


@dataclass
class Parts:
    """What the model says of parts of trajectories.

    Attributes:
        found: the predictions of what was measured in them; the Jacobian is by the numbers that were asked for, [n, m].
        ends: the states at their ends, [n_parts, n_states].
        end_slopes: the derivatives of these, [n_parts, n_states, m].
    """

    found: Predictions
    ends: NDArray[np.float64]
    end_slopes: NDArray[np.float64]


@dataclass
class Path:
    """A trajectory of the model at times [T].

    Attributes:
        states: [T, n_states].
        state_slopes: their derivatives by theta, [T, n_states, n_free]; [..., 0] if they were not wanted.
        observables: [T, n_observed].
        observable_slopes: [T, n_observed, n_free]; [..., 0] if they were not wanted.
        spread: of a stochastic model: how uncertain they are besides.
    """

    states: NDArray[np.float64]
    state_slopes: NDArray[np.float64]
    observables: NDArray[np.float64]
    observable_slopes: NDArray[np.float64]
    spread: Spread | None = None


@dataclass
class Spread:
    """How uncertain the states of a stochastic model are where its parameters are known.

    Attributes:
        states: their variances, [T, n_states].
        observables: those of the observables, [T, n_observed].
        measurements: those of the measurements around them, [n_observed].
    """

    states: NDArray[np.float64]
    observables: NDArray[np.float64]
    measurements: NDArray[np.float64]
