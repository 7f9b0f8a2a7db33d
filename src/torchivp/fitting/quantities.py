"""What is estimated: parameters and initial states, their names, and the scale on which each is estimated."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchivp.fitting.data import Dataset
from torchivp.models.model import Model

Kind = Literal["parameter", "initial state", "sigma"]


@dataclass(frozen=True)
class Quantity:
    """A parameter or an initial state.

    Attributes:
        name: how reports and arguments call it: "alpha", "prey(1900)", or "prey(0)[A]" of trajectory A.
        kind: "parameter" or "initial state".
        key: the name of the parameter or state in the model.
        trajectory: the number of the trajectory that an initial state belongs to; None for a parameter.
        value: the value at which it is held, or from which the search starts.
        free: whether it is estimated.
        log: whether it is estimated on the log scale.
        magnitude: the size of a typical change on the scale of estimation: 1 on the log scale.
        unit: its unit.
        description: its meaning.
        assumed: whether it is held at a value that nobody gave.
    """

    name: str
    kind: Kind
    key: str
    trajectory: int | None
    value: float
    free: bool
    log: bool
    magnitude: float
    unit: str
    description: str
    assumed: bool = False


class Quantities:
    """All parameters and initial states of a fit, the free ones of which form the vector `theta`.

    `theta` [n_free] holds the logarithm of a quantity on the log scale and the value of one on the linear scale.

    Attributes:
        all: the quantities: the parameters in the order of the model, then the initial states by trajectory.
        free: those that are estimated, in the same order: the entries of `theta`.
        magnitudes: the size of a typical change of each entry of `theta`, [n_free].
    """

    def __init__(self, quantities: Sequence[Quantity], n_states: int):
        self.all = list(quantities)
        self.free = [quantity for quantity in self.all if quantity.free]
        self.magnitudes = np.array([quantity.magnitude for quantity in self.free])
        self._n_states = n_states
        self._parameters = [quantity.key for quantity in self.all if quantity.kind == "parameter"]
        self._values = torch.tensor([quantity.value for quantity in self.all], dtype=torch.float64)
        self._index = torch.tensor([i for i, quantity in enumerate(self.all) if quantity.free], dtype=torch.long)
        self._log = torch.tensor([quantity.log for quantity in self.free], dtype=torch.bool)

    def values(self, theta: Tensor) -> Tensor:
        """The values of all quantities, [..., n], at `theta` [..., n_free]; differentiable."""
        free = torch.where(self._log, torch.where(self._log, theta, 0.0).exp(), theta)
        return self._values.expand(*theta.shape[:-1], -1).index_copy(-1, self._index, free)

    def theta(self, values: Mapping[str, float] | None = None) -> NDArray[np.float64]:
        """The vector `theta` at the start values, some of which `values` may replace, by name."""
        given = values or {}
        natural = [given.get(quantity.name, quantity.value) for quantity in self.free]
        return np.array(
            [math.log(value) if quantity.log else value for quantity, value in zip(self.free, natural, strict=True)]
        )

    def parameters(self, values: Tensor) -> dict[str, Tensor]:
        """The parameters of the model by name, each [...], out of the values [..., n] of all quantities."""
        return dict(zip(self._parameters, values[..., : len(self._parameters)].unbind(-1), strict=True))

    def initial_state(self, values: Tensor, trajectory: int) -> Tensor:
        """The initial state of a trajectory, [..., n_states], out of the values [..., n] of all quantities."""
        first = len(self._parameters) + trajectory * self._n_states
        return values[..., first : first + self._n_states]


def list_quantities(
    model: Model,
    data: Dataset,
    *,
    free: str | Iterable[str] | None,
    fixed: Mapping[str, float] | None,
    start: Mapping[str, float] | None,
    lognormal: bool,
) -> Quantities:
    """The quantities of a fit as the arguments of `fit` describe them.

    Raises:
        ValueError: a name is unknown or both free and fixed, or a positive quantity is given a value that is not.
    """
    quantities = _parameters(model) + _initial_states(model, data, lognormal)
    fixed_values = _by_name(quantities, fixed or {}, "fixed")
    start_values = _by_name(quantities, start or {}, "start")
    if free == "all":
        free_names = {quantity.name for quantity in quantities}
    elif free is None:
        free_names = {each.name for each in quantities if each.kind == "parameter" or each.key in data.states}
    else:
        free_names = set(_by_name(quantities, dict.fromkeys([free] if isinstance(free, str) else free, 0.0), "free"))
        if both := free_names & set(fixed_values):
            raise ValueError(f"{', '.join(sorted(both))} cannot be both free and fixed: drop it from one")
    chosen = []
    for quantity in quantities:
        value = fixed_values.get(quantity.name, start_values.get(quantity.name, quantity.value))
        is_free = quantity.name in free_names and quantity.name not in fixed_values
        if is_free and quantity.log and not value > 0:
            raise ValueError(
                f"{quantity.name} is estimated on the log scale, so its start value must be positive, got {value:g}: "
                f"give start={{{quantity.key!r}: ...}} or leave it out of {type(model).__name__}.positive"
            )
        assumed = not is_free and quantity.name not in fixed_values and quantity.name not in start_values
        chosen.append(replace(quantity, value=value, free=is_free, assumed=assumed))
    if not any(quantity.free for quantity in chosen):
        raise ValueError("nothing is free, so there is nothing to fit: leave something out of fixed")
    return Quantities(chosen, len(model.states))


def _parameters(model: Model) -> list[Quantity]:
    quantities = []
    for name, parameter in model.named_parameters():
        if parameter.ndim != 0:
            raise ValueError(
                f"the parameter {name} has shape {tuple(parameter.shape)}, and a fit estimates single numbers: "
                "make each a parameter of its own"
            )
        value, log = parameter.item(), model.is_positive(name)
        unit, meaning = model.units.get(name, ""), model.meanings.get(name, "")
        magnitude = 1.0 if log else abs(value) or 1.0
        quantities.append(Quantity(name, "parameter", name, None, value, True, log, magnitude, unit, meaning))
    return quantities


def _initial_states(model: Model, data: Dataset, lognormal: bool) -> list[Quantity]:
    quantities = []
    for i, trajectory in enumerate(data.trajectories):
        label = f"[{trajectory.name}]" if trajectory.name else ""
        for (state, meaning), default in zip(model.states.items(), model.default_state, strict=True):
            log = model.is_positive(state)
            value, magnitude = default, abs(default) or 1.0
            if state in data.states:
                k = data.states.index(state)
                log = log or lognormal
                value, magnitude = _first_value(trajectory.values[:, k], data.column(k), log)
            magnitude = 1.0 if log else magnitude
            name = f"{state}({trajectory.t[0]:g}){label}"
            unit = model.units.get(state, "")
            description = f"initial value: {meaning}"
            quantities.append(Quantity(name, "initial state", state, i, value, True, log, magnitude, unit, description))
    return quantities


def _first_value(series: NDArray[np.float64], column: NDArray[np.float64], positive: bool) -> tuple[float, float]:
    """The first value of a series that is not missing, and the magnitude of a whole column."""
    magnitude = float(np.sqrt(np.mean(column**2))) or 1.0
    known = series[np.isfinite(series)]
    value = float(known[0]) if len(known) else float(column.mean())
    return (max(value, 1e-2 * magnitude) if positive else value), magnitude


def _by_name(quantities: Sequence[Quantity], given: Mapping[str, float], argument: str) -> dict[str, float]:
    """What `given` says, by the full names of quantities; a state's name stands for it in all trajectories."""
    found = {}
    for name, value in given.items():
        named = [quantity.name for quantity in quantities if name in (quantity.name, quantity.key)]
        if not named:
            known = list(dict.fromkeys([*(each.key for each in quantities), *(each.name for each in quantities)]))
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"{argument} names {name!r}, which is no parameter or state.{hint} There are {', '.join(known)}"
            )
        if not math.isfinite(value):
            raise ValueError(f"{argument} gives {name} the value {value}, which is not a finite number")
        found.update(dict.fromkeys(named, float(value)))
    return found
