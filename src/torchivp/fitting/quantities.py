"""What is estimated: quantities, and how the numbers that each trajectory is solved with follow from them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchivp.fitting.parameters import TENSOR, ParameterLayout
from torchivp.fitting.priors import Prior

Kind = Literal["parameter", "tensor", "initial state", "random", "sigma", "derived"]
Scale = Literal["log", "linear", "logit"]


@dataclass(frozen=True)
class Quantity:
    """A parameter, an initial state, or the standard deviation of a measurement.

    Attributes:
        name: how reports and arguments call it: "alpha", "alpha[wild type]" of a group, "prey(1900)", or "prey(0)[A]"
            of trajectory A; "net.0.weight[1,0]".
        kind: "parameter", "tensor" for an entry of one, "initial state" or "sigma".
        key: the name of the parameter or state in the model.
        trajectories: the numbers of the trajectories that it belongs to; None for all.
        value: the value at which it is held, or from which the search starts.
        free: whether it is estimated.
        scale: on which it is estimated.
        lower: the smallest value that it may take.
        upper: the largest.
        magnitude: the size of a typical change on the scale of estimation: 1 on the log and logit scales.
        unit: its unit.
        description: its meaning.
        prior: what is known of it before the data.
        assumed: whether it is held at a value that nobody gave.
    """

    name: str
    kind: Kind
    key: str
    trajectories: tuple[int, ...] | None
    value: float
    free: bool
    scale: Scale
    magnitude: float
    unit: str
    description: str
    lower: float = -math.inf
    upper: float = math.inf
    prior: Prior | None = None
    assumed: bool = False

    @property
    def log(self) -> bool:
        """Whether it is estimated on the log scale."""
        return self.scale == "log"

    def to_scale(self, value: float) -> float:
        """A value on the scale of estimation."""
        if self.scale == "linear":
            return value
        with np.errstate(divide="ignore"):
            if self.scale == "log":
                return float(np.log(value))
            return float(np.log(value - self.lower) - np.log(self.upper - value))

    def from_scale(self, at: float) -> float:
        """The value of what stands at a place on the scale of estimation."""
        if self.scale == "linear":
            return at
        if self.scale == "log":
            return float(np.exp(at))
        return self.lower + (self.upper - self.lower) / (1 + float(np.exp(-at)))

    def slope(self, value: float) -> float:
        """How fast the value changes with its place on the scale of estimation."""
        if self.scale == "linear":
            return 1.0
        if self.scale == "log":
            return value
        return (value - self.lower) * (self.upper - value) / (self.upper - self.lower)

    @property
    def ends(self) -> tuple[float, float]:
        """The bounds on the scale of estimation."""
        if self.scale == "logit":
            return -math.inf, math.inf
        lower = max(self.lower, 0.0) if self.log else self.lower
        return self.to_scale(lower), self.to_scale(self.upper)


@dataclass(frozen=True)
class Assignment:
    """Numbers of a trajectory that follow from its others: a tied parameter, an initial state that is a formula.

    Attributes:
        targets: the names of what it computes.
        names: the names of what it computes this from.
        function: of a dict of tensors [...] by name; returns those of the targets, in their order.
        trajectories: the numbers of those to which it applies; None for all.
    """

    targets: tuple[str, ...]
    names: tuple[str, ...]
    function: Callable[[Mapping[str, Tensor]], Sequence[Tensor]]
    trajectories: tuple[int, ...] | None = None


class Quantities:
    """All quantities of a fit, the free ones of which form the vector `theta`, on their scales of estimation.

    Every trajectory has *locals*: the parameters of the model, further parameters (of observables, for example), and
    its initial state. Each is a quantity, a known constant, or assigned from other locals.

    Args:
        quantities: parameters first, then initial states, then standard deviations.
        layout: the parameters of the model, each number of which is a local.
        extras: the names of the further parameters, and of standard deviations.
        states: the names of the states.
        n_trajectories: the number of trajectories.
        constants: known locals of some trajectories, by number of trajectory and name.
        assignments: in an order in which they can be computed.

    Attributes:
        all: the quantities: the parameters in the order of the model, then the initial states by trajectory.
        free: those that are estimated, in the same order: the entries of `theta`.
        magnitudes: the size of a typical change of each entry of `theta`, [n_free].
        lower: the bounds of `theta`, [n_free].
        upper: likewise.
        names: the names of the locals: parameters, further parameters, states.
        single_names: those that formulas may use, without the entries of tensors.
        single: which of the free ones are no entries of tensors, [n_free].
        layout: as given.
        assignments: as given.
        shifts: by how much theta is moved in each trajectory, [n_trajectories, n_free]; None for not at all.
    """

    def __init__(
        self,
        quantities: Sequence[Quantity],
        layout: ParameterLayout,
        extras: Sequence[str],
        states: Sequence[str],
        n_trajectories: int,
        constants: Mapping[int, Mapping[str, float]] | None = None,
        assignments: Sequence[Assignment] = (),
    ):
        self.all = list(quantities)
        self.free = [quantity for quantity in self.all if quantity.free]
        self.magnitudes = np.array([quantity.magnitude for quantity in self.free])
        self.lower = np.array([quantity.ends[0] for quantity in self.free])
        self.upper = np.array([quantity.ends[1] for quantity in self.free])
        self.layout, self.state_names = layout, list(states)
        self.names = [*layout.numbers(), *extras, *states]
        self.single_names = [*(name for name, shape in layout if not shape), *extras, *states]
        self.single = np.array([quantity.kind != TENSOR for quantity in self.free], dtype=bool)
        self.assignments = list(assignments)
        self.shifts: Tensor | None = None
        self._values = torch.tensor([quantity.value for quantity in self.all], dtype=torch.float64)
        self._index = torch.tensor([i for i, quantity in enumerate(self.all) if quantity.free], dtype=torch.long)
        self._log = torch.tensor([quantity.scale == "log" for quantity in self.free], dtype=torch.bool)
        self._logit = torch.tensor([quantity.scale == "logit" for quantity in self.free], dtype=torch.bool)
        limits = [(q.lower, q.upper) if q.scale == "logit" else (0.0, 1.0) for q in self.free]
        self._low, self._high = torch.tensor(limits, dtype=torch.float64).reshape(-1, 2).unbind(1)
        self._read_sources(n_trajectories, constants or {})

    def _read_sources(self, n_trajectories: int, constants: Mapping[int, Mapping[str, float]]) -> None:
        """Find where each local comes from: the number of a quantity, or of a constant after them."""
        known = [0.0]  # which assigned locals have until they are computed
        source = np.full((n_trajectories, len(self.names)), len(self.all))
        by_key: dict[str, list[int]] = {}
        for number, quantity in enumerate(self.all):
            by_key.setdefault(quantity.name if quantity.kind == TENSOR else quantity.key, []).append(number)
        for column, name in enumerate(self.names):
            for number in by_key.get(name, []):
                rows = self.all[number].trajectories
                source[slice(None) if rows is None else list(rows), column] = number
        for trajectory, values in constants.items():
            for name, value in values.items():
                if name in self.names:
                    source[trajectory, self.names.index(name)] = len(self.all) + len(known)
                    known.append(value)
        self._source = torch.from_numpy(source)
        self._known = torch.tensor(known, dtype=torch.float64)
        position = np.full(len(self.all) + len(known), -1)
        position[self._index.numpy()] = np.arange(len(self.free))
        self._entry = position[source]  # of theta, for each local; -1 where it is none
        moving = self._entry >= 0
        for each in self.assignments:
            read = [self.names.index(name) for name in each.names]
            rows = slice(None) if each.trajectories is None else list(each.trajectories)
            for target in each.targets:
                moving[rows, self.names.index(target)] = moving[rows][:, read].any(1)
        self._moving = moving

    def shifted(self, shifts: NDArray[np.float64] | None) -> Quantities:
        """The same quantities, with theta moved in each trajectory by its own shifts [n_trajectories, n_free]."""
        other = copy.copy(self)
        other.shifts = None if shifts is None else torch.tensor(shifts)
        return other

    def rescaled(self, magnitudes: NDArray[np.float64]) -> Quantities:
        """The same quantities with other typical changes of the free ones, [n_free]."""
        other = copy.copy(self)
        other.magnitudes = magnitudes
        changed = iter(magnitudes.tolist())
        other.all = [replace(each, magnitude=next(changed)) if each.free else each for each in self.all]
        other.free = [each for each in other.all if each.free]
        return other

    def _in_trajectories(self, theta: Tensor) -> Tensor:
        """What `theta` [..., n_free] is in trajectories: itself, or one for each, [..., n_trajectories, n_free]."""
        return theta if self.shifts is None else theta[..., None, :] + self.shifts

    @property
    def n_trajectories(self) -> int:
        """The number of trajectories."""
        return len(self._source)

    @property
    def moving(self) -> NDArray[np.bool_]:
        """Which locals depend on theta, in some trajectory, [n_locals]."""
        return np.logical_or.reduce(self._moving, axis=0)

    def values(self, theta: Tensor) -> Tensor:
        """The values of all quantities, [..., n], at `theta` [..., n_free]; differentiable."""
        free = torch.where(self._log, torch.where(self._log, theta, 0.0).exp(), theta)
        if self._logit.any():
            inside = self._low + (self._high - self._low) * torch.where(self._logit, theta, 0.0).sigmoid()
            free = torch.where(self._logit, inside, free)
        return self._values.expand(*theta.shape[:-1], -1).index_copy(-1, self._index, free)

    def slopes(self, theta: NDArray[np.float64]) -> NDArray[np.float64]:
        """The derivative of the value of each free quantity by its entry of theta, [..., n_free]; no shifts."""
        values = self.values(torch.as_tensor(theta))[..., self._index]
        slopes = torch.where(self._log, values, 1.0)
        if self._logit.any():
            inside = (values - self._low) * (self._high - values) / (self._high - self._low)
            slopes = torch.where(self._logit, inside, slopes)
        return slopes.numpy()

    def single_values(self, theta: NDArray[np.float64]) -> dict[str, float]:
        """The free quantities that are no entries of tensors, by name."""
        return dict(zip(self.labels(self.single), self.free_values(theta)[self.single].tolist(), strict=True))

    def free_values(self, theta: NDArray[np.float64]) -> NDArray[np.float64]:
        """The values of the free quantities, [..., n_free]."""
        return self.values(torch.as_tensor(theta))[..., self._index].numpy()

    def on_bound(self, theta: NDArray[np.float64], distance: float) -> NDArray[np.bool_]:
        """Which entries of theta are closer to a bound than this many typical changes, [n_free]."""
        with np.errstate(invalid="ignore"):
            gaps = np.minimum(theta - self.lower, self.upper - theta)
        return np.array(gaps < distance * self.magnitudes, dtype=bool)

    def label(self, entry: int) -> str:
        """What an entry of theta belongs to, as reports call it: a quantity, or a tensor."""
        quantity = self.free[entry]
        return quantity.key if quantity.kind == TENSOR else quantity.name

    def labels(self, entries: NDArray[np.bool_]) -> list[str]:
        """What some of the entries of theta belong to, each once."""
        return list(dict.fromkeys(self.label(j) for j in np.flatnonzero(entries).tolist()))

    def probes(self) -> dict[str, NDArray[np.float64]]:
        """A change of theta for each free quantity, and one for each tensor, all entries of which move at random."""
        drawn = np.random.default_rng(0).standard_normal(len(self.free))
        found: dict[str, NDArray[np.float64]] = {}
        for j, one in enumerate(self.single):
            change = found.setdefault(self.label(j), np.zeros(len(self.free)))
            change[j] = self.magnitudes[j] * (1.0 if one else drawn[j])
        for change in found.values():
            change /= np.linalg.norm(change / self.magnitudes)
        return found

    def theta(self, values: Mapping[str, float] | None = None) -> NDArray[np.float64]:
        """The vector `theta` at the start values, some of which `values` may replace, by name."""
        given = values or {}
        return np.array([each.to_scale(given.get(each.name, each.value)) for each in self.free])

    def locals(self, theta: Tensor) -> Tensor:
        """The locals of every trajectory, [..., n_trajectories, n_locals], at `theta` [..., n_free]; differentiable."""
        values = self.values(self._in_trajectories(theta))
        every = torch.cat([values, self._known.expand(*values.shape[:-1], -1)], -1)
        if self.shifts is None:
            own = every[..., self._source]
        else:
            own = every.gather(-1, self._source.expand(*every.shape[:-1], -1))
        if not self.assignments:
            return own
        columns = list(own.unbind(-1))
        for each in self.assignments:
            for column, value in zip(
                self._columns(each.targets), each.function(self._named(columns, each)), strict=True
            ):
                columns[column] = self._where(each, value, columns[column])
        return torch.stack([column.expand(columns[0].shape) for column in columns], -1)

    def locals_and_slopes(self, theta: NDArray[np.float64]) -> tuple[Tensor, NDArray[np.float64]]:
        """The locals [..., n_trajectories, n_locals], and their derivatives by theta, [..., n_free] more."""
        at = torch.as_tensor(theta)
        with torch.no_grad():
            found = self.locals(at)
        slopes = np.zeros((*found.shape, len(self.free)))
        rows, columns = (self._entry >= 0).nonzero()
        entries = self._entry[rows, columns]
        own = self.slopes(self._in_trajectories(at).numpy())
        slopes[..., rows, columns, entries] = own[..., entries] if self.shifts is None else own[..., rows, entries]
        for each in self.assignments:
            self._add_slopes(each, found, slopes)
        return found, slopes

    def _add_slopes(self, each: Assignment, found: Tensor, slopes: NDArray[np.float64]) -> None:
        """The derivatives of what is assigned, from those of what it is computed from."""
        read = self._columns(each.names)
        inputs = [found[..., column].clone().requires_grad_() for column in read]
        rows = slice(None) if each.trajectories is None else list(each.trajectories)
        with torch.enable_grad():
            values = each.function(dict(zip(each.names, inputs, strict=True)))
        for column, value in zip(self._columns(each.targets), values, strict=True):
            changes = np.zeros_like(slopes[..., column, :])
            if value.requires_grad:
                # A number of a trajectory depends on those of this trajectory alone, so one sum has all derivatives.
                gradients = torch.autograd.grad(value.sum(), inputs, retain_graph=True, allow_unused=True)
                for of, gradient in zip(read, gradients, strict=True):
                    if gradient is not None:
                        changes += gradient.numpy()[..., None] * slopes[..., of, :]
            slopes[..., rows, column, :] = changes[..., rows, :]

    def _columns(self, names: Sequence[str]) -> list[int]:
        return [self.names.index(name) for name in names]

    def _named(self, columns: Sequence[Tensor], each: Assignment) -> dict[str, Tensor]:
        return {name: columns[self.names.index(name)] for name in each.names}

    def _where(self, each: Assignment, value: Tensor, otherwise: Tensor) -> Tensor:
        if each.trajectories is None:
            return value.expand(otherwise.shape)
        chosen = torch.zeros(self.n_trajectories, dtype=torch.bool)
        chosen[list(each.trajectories)] = True
        return torch.where(chosen, value, otherwise)

    def parameters(self, theta: Tensor, trajectory: int = 0) -> dict[str, Tensor]:
        """The parameters of the model in a trajectory by name, each [..., *shape]."""
        return self.layout.named(self.locals(theta)[..., trajectory, : self.layout.count])
