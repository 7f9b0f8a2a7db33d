"""The misfit between model and data: residuals as functions of what is estimated, with their Jacobian."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from torchivp.api.ivp import solve_ivp
from torchivp.fitting.data import Dataset
from torchivp.fitting.quantities import Quantities
from torchivp.models.model import Model
from torchivp.solution import Solution, SolveError
from torchivp.stepsize.constant import GridSteps
from torchivp.torch_func import pull_back

Noise = Literal["normal", "lognormal"]
SigmaMode = Literal["separate", "shared"]

_FEW_OUTPUTS = 200  # up to here, differentiating backwards is the faster way


@dataclass(frozen=True)
class Accuracy:
    """How the model is solved.

    Attributes:
        method: the name of an adaptive ODE method.
        rtol: relative tolerance.
        atol: absolute tolerance, in the units of the states.
        max_steps: a solve that needs more step attempts counts as failed.
    """

    method: str
    rtol: float
    atol: float
    max_steps: int


class _Solve(nn.Module):
    """A solve as a module, so that parameters are substituted once per solve instead of once per evaluation."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def forward(self, y0: Tensor, t_span: tuple[float, float], options: dict[str, Any]) -> Solution:
        """The solution from `y0` over `t_span`."""
        return solve_ivp(self.model, t_span, y0, **options)


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


class Misfit:
    """Model and data, ready to be compared.

    Each trajectory is solved by itself.

    Args:
        model: the model; not changed.
        data: the observations.
        quantities: what is estimated and what is held.
        noise: "normal" or "lognormal".
        accuracy: how the model is solved.
    """

    def __init__(self, model: Model, data: Dataset, quantities: Quantities, noise: Noise, accuracy: Accuracy):
        self.model = model
        self.data = data
        self.quantities = quantities
        self.noise: Noise = noise
        self.accuracy = accuracy
        self.observed = [list(model.states).index(state) for state in data.states]
        self._solve = _Solve(model)
        self._count = [0]

    @cached_property
    def _forwards(self) -> bool:
        return _takes_batches_forwards(self.model)

    @property
    def solves(self) -> int:
        """The number of solves so far, those at other accuracies included."""
        return self._count[0]

    def at_accuracy(self, **changes: Any) -> Misfit:
        """The same misfit, solved with other tolerances, method or `max_steps`."""
        other = copy.copy(self)
        other.accuracy = replace(self.accuracy, **changes)
        return other

    def states(self, theta: Tensor, trajectory: int, t: Sequence[float]) -> Tensor:
        """The states of the model at increasing times not before the first data time.

        Args:
            theta: the free quantities, [..., n_free].
            trajectory: the number of the trajectory.
            t: the times, [T].

        Returns:
            The states, [T, ..., n_states].

        Raises:
            SolveError: the solve failed.
        """
        return self._solution(theta, trajectory, t, t_eval=t).y

    def sensitivities(
        self, theta: NDArray[np.float64], trajectory: int, t: Sequence[float], columns: Sequence[int]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Some of the states, and their derivatives with respect to theta: those of the numerical solution, exactly.

        Few outputs are differentiated backwards through the solve, all at once. For many, one solve finds the steps and
        a second one takes them again, differentiated forwards along all entries of theta at once, which costs the
        same however many there are; this needs a model that takes batches.

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
        at = torch.tensor(theta)
        if len(t) * len(columns) <= _FEW_OUTPUTS or not self._forwards:
            states = self.states(at.requires_grad_(), trajectory, t)[:, list(columns)]
            rows = torch.eye(states.numel(), dtype=at.dtype).unflatten(1, states.shape)
            gradients = pull_back(lambda row: torch.autograd.grad(states, at, row, retain_graph=True)[0], rows)
            return states.detach().numpy(), gradients.numpy().reshape(*states.shape, len(at))
        with torch.no_grad(), forward_ad.dual_level():
            steps = self._solution(at, trajectory, t).t[1:].tolist()
            dual = forward_ad.make_dual(at.repeat(len(at), 1), torch.eye(len(at), dtype=at.dtype))
            again = self._solution(dual, trajectory, t, t_eval=t, controller=GridSteps(lambda _: steps))
            states, tangents = forward_ad.unpack_dual(again.y[:, :, list(columns)])
            assert tangents is not None, "the states depend on what is free"
            return states[:, 0].numpy(), tangents.movedim(1, 2).numpy()

    def residuals(self, theta: NDArray[np.float64], horizon: float = 1.0, derivatives: bool = True) -> Residuals | None:
        """The residuals at `theta` of the first part of each trajectory.

        Args:
            theta: the free quantities, [n_free].
            horizon: which fraction of the times of each trajectory, at least two of them, to use.
            derivatives: whether to compute the Jacobian; it is empty otherwise.

        Returns:
            The residuals; None if a solve fails, or a residual or a derivative is not finite.
        """
        values, rows, observable, log_data = [], [], [], 0.0
        for i, trajectory in enumerate(self.data.trajectories):
            count = max(2, int(np.ceil(horizon * len(trajectory.t))))
            data = trajectory.values[:count]
            known = np.isfinite(data)
            try:
                model, slopes = self._observables(theta, i, trajectory.t[:count].tolist(), derivatives)
            except SolveError:
                return None
            data, model, slopes = data[known], model[known], slopes[known]
            if self.noise == "lognormal":
                if not (model > 0).all():
                    return None
                data, model, slopes = np.log(data), np.log(model), slopes / model[:, None]
                log_data += float(data.sum())
            values.append(data - model)
            rows.append(-slopes)
            observable.append(known.nonzero()[1])
        found = Residuals(theta, np.concatenate(values), np.concatenate(observable), np.concatenate(rows), log_data)
        return found if np.isfinite(found.values).all() and np.isfinite(found.jacobian).all() else None

    def _observables(
        self, theta: NDArray[np.float64], trajectory: int, t: Sequence[float], derivatives: bool
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The observed states [T, n_observed] and their derivatives, [T, n_observed, n_free] or [T, n_observed, 0]."""
        if derivatives:
            return self.sensitivities(theta, trajectory, t, self.observed)
        with torch.no_grad():
            states = self.states(torch.tensor(theta), trajectory, t)[:, self.observed].numpy()
        return states, np.zeros((*states.shape, 0))

    def _solution(self, theta: Tensor, trajectory: int, t: Sequence[float], **options: Any) -> Solution:
        """The solution from the first data time to the last of `t`, at `theta` [..., n_free]."""
        self._count[0] += 1
        values = self.quantities.values(theta)
        substitutes = {f"model.{name}": value for name, value in self.quantities.parameters(values).items()}
        y0 = self.quantities.initial_state(values, trajectory)
        span = (float(self.data.trajectories[trajectory].t[0]), t[-1])
        return functional_call(self._solve, substitutes, (y0, span, {**asdict(self.accuracy), **options}))


def _takes_batches_forwards(model: Model) -> bool:
    """Whether batches of states and parameters, [n, n_states] and [n] each, can be differentiated forwards.

    A model that indexes states as `y[..., i]` takes batches.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch, in what the first dual number makes it import
        with forward_ad.dual_level():
            forward_ad.make_dual(torch.ones(()), torch.ones(()))
    count = len(model.states) + 1
    t = torch.zeros((), dtype=torch.float64)
    spread = torch.linspace(1.0, 1.5, count, dtype=torch.float64)
    with torch.no_grad(), forward_ad.dual_level():
        states = model.initial_state() + spread[:, None]
        parameters = {name: forward_ad.make_dual(value * spread, spread) for name, value in model.named_parameters()}
        try:
            together = functional_call(model, parameters, (t, forward_ad.make_dual(states, states)))
        except (RuntimeError, IndexError, ValueError, TypeError):
            return False
        singly = [
            functional_call(
                model, {name: value * spread[i] for name, value in model.named_parameters()}, (t, states[i])
            )
            for i in range(count)
        ]
        primal = forward_ad.unpack_dual(together).primal
    return primal.shape == states.shape and torch.allclose(primal, torch.stack(singly), equal_nan=True)
