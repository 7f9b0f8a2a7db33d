"""What the user chooses to estimate, to hold, to tie and to share: the arguments of `fit` as `Quantities`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from torchivp.checks import did_you_mean
from torchivp.fitting.assignments import STEADY, initial_assignments, tie_assignments
from torchivp.fitting.chosen_values import (
    check_bounds,
    check_parameters,
    check_scale,
    check_start,
    finite_number,
    into_bounds,
)
from torchivp.fitting.data import DataError, Dataset, Trajectory
from torchivp.fitting.parameters import TENSOR, ParameterLayout, entries
from torchivp.fitting.priors import read_prior
from torchivp.fitting.quantities import Assignment, Quantities, Quantity, Scale
from torchivp.models.model import Model

SHARED = "shared"

Formula = str | Callable[..., Any]
"""An expression in names, such as "763 - infected", or a function of the object `p` whose attributes these are."""


@dataclass(frozen=True)
class Choices:
    """The arguments of `fit` that say what is estimated, as they were given."""

    free: str | Iterable[str] | None = None
    fixed: Mapping[str, float] = field(default_factory=dict)
    start: Mapping[str, float] = field(default_factory=dict)
    parameters: Mapping[str, float] = field(default_factory=dict)
    scale: Mapping[str, Scale] = field(default_factory=dict)
    bounds: Mapping[str, Sequence[float]] = field(default_factory=dict)
    priors: Mapping[str, Any] = field(default_factory=dict)
    by: Mapping[str, str] = field(default_factory=dict)
    tied: Mapping[str, Formula] = field(default_factory=dict)
    initial: str | Mapping[str, Formula | float] = field(default_factory=dict)
    random: Mapping[str, Scale | None] = field(default_factory=dict)


def list_quantities(
    model: Model,
    data: Dataset,
    choices: Choices | None = None,
    log_states: Iterable[str] = (),
    deviations: Sequence[Quantity] = (),
) -> Quantities:
    """The quantities of a fit.

    Args:
        model: what is fitted.
        data: to what.
        choices: the arguments of the user.
        log_states: the states whose initial values are positive, since their noise is lognormal.
        deviations: of the measurements of a stochastic model.

    Raises:
        ValueError: a name is unknown or chosen in two ways that exclude each other, or a value is out of its bounds.
    """
    choices = choices or Choices()
    chooser = _Chooser(model, data, choices, frozenset(log_states))
    quantities = chooser.apply_values([*chooser.parameters(), *chooser.initial_states(), *deviations])
    if not any(quantity.free for quantity in quantities):
        raise ValueError("nothing is free, so there is nothing to fit: leave something out of fixed")
    constants = {i: series.constants for i, series in enumerate(data.trajectories)}
    return Quantities(
        quantities,
        chooser.layout,
        [*choices.parameters, *(each.name for each in deviations)],
        list(model.states),
        len(data.trajectories),
        constants,
        chooser.assignments,
    )


class _Chooser:
    """Makes quantities from the model, the data and the choices."""

    def __init__(self, model: Model, data: Dataset, choices: Choices, log_states: frozenset[str]):
        self.model, self.data, self.choices, self.log_states = model, data, choices, log_states
        check_parameters(model)
        self.layout = ParameterLayout.of(model)
        self.tensors = {name: shape for name, shape in self.layout if shape}
        self.names = [*(name for name in self.layout.names if name not in self.tensors), *choices.parameters]
        self.initial = self._read_initial()
        self._check_names()
        self.assignments: list[Assignment] = [
            *tie_assignments(choices.tied, self.names, data),
            *initial_assignments(self.initial, self.names, model, data),
        ]
        assigned = {target for each in self.assignments for target in each.targets}
        self.computed = assigned | {name for name in self.initial if self.initial[name] == STEADY}

    def _read_initial(self) -> dict[str, Formula | float]:
        given = self.choices.initial
        if isinstance(given, str):
            if given not in (STEADY, SHARED):
                raise ValueError(
                    f"initial must be {STEADY!r}, {SHARED!r} or a dict by state, such as initial={{"
                    f"{next(iter(self.model.states))!r}: 1.0}}, got {given!r}"
                )
            return dict.fromkeys(self.model.states, given)
        for state in given:
            if state not in self.model.states:
                raise ValueError(f"initial names {state!r}, but the states are {', '.join(self.model.states)}")
        return {
            **dict.fromkeys((state for state in self.model.states if state in self.choices.random), SHARED),
            **given,
        }

    def _check_names(self) -> None:
        """Refuse names that clash, and those that nothing has."""
        choices, model = self.choices, self.model
        own = {name for name, _ in model.named_parameters()}
        for name, value in choices.parameters.items():
            if name in own or name in model.states or self._is_of_tensors(name):
                raise ValueError(f"parameters names {name!r}, which {type(model).__name__} has already: rename one")
            if not name.isidentifier() or not math.isfinite(value):
                raise ValueError(f"parameters must give names of Python's finite numbers, got {name!r}: {value!r}")
        for argument, given in (("tied", choices.tied), ("by", choices.by)):
            for name in given:
                if self._is_of_tensors(name):
                    raise ValueError(
                        f"{argument} names {name!r}, which is a tensor, and a formula or a label gives single numbers: "
                        "make each number a parameter of its own"
                    )
                if name not in self.names:
                    raise ValueError(
                        f"{argument} names {name!r}, which is no parameter.{did_you_mean(name, self.names)} There are "
                        f"{', '.join(self.names)}"
                    )
        if both := sorted(set(choices.tied) & {*choices.by, *choices.fixed, *choices.start}):
            raise ValueError(f"{both[0]} is tied, so it cannot be in by, fixed or start too: drop it from one")

    def parameters(self) -> list[Quantity]:
        """A quantity for each number of a parameter, or for each group of trajectories where `by` says so."""
        quantities = []
        for name, parameter in self.model.named_parameters():
            if parameter.ndim:
                quantities += self._tensor(name, parameter)
            else:
                quantities += self._parameter(name, parameter.item(), self.model.is_positive(name))
        for name, value in self.choices.parameters.items():
            quantities += self._parameter(name, float(value), value > 0)
        return quantities

    def _tensor(self, name: str, parameter: Tensor) -> list[Quantity]:
        """A quantity for each entry of a parameter that is a tensor; positive only where the model says so."""
        values = parameter.detach().double()
        log = name in (self.model.positive or ())
        size = values.square().mean().sqrt().item() or 1.0
        unit, meaning = self.model.units.get(name, ""), self.model.meanings.get(name, "")
        scale: Scale = "log" if log else "linear"
        return [
            Quantity(entry, TENSOR, name, None, value, True, scale, 1.0 if log else size, unit, meaning)
            for entry, value in zip(entries(name, tuple(values.shape)), values.flatten().tolist(), strict=True)
        ]

    def _is_of_tensors(self, name: str) -> bool:
        """Whether a name is that of a tensor, or of a module with tensors in it."""
        return any(_stands_for(name, tensor, tensor) for tensor in self.tensors)

    def _by_entry(self, given: Mapping[str, Any], argument: str) -> dict[str, Any]:
        """What `given` says, with a number for each entry of a tensor in the place of the tensor."""
        found: dict[str, Any] = {}
        for name, value in given.items():
            if not self._is_of_tensors(name):
                found[name] = value
                continue
            shape = self.tensors.get(name)
            values = np.asarray(value.detach() if isinstance(value, Tensor) else value, dtype=np.float64)
            if shape is None or values.shape != shape:
                of = [each for each in self.tensors if _stands_for(name, each, each)]
                listed = ", ".join(f"{each} of shape {self.tensors[each]}" for each in of)
                raise ValueError(
                    f"{argument} gives {name} the shape {values.shape}, and there is {listed}: give {argument}="
                    f"{{{of[0]!r}: a tensor of its shape}}; what is to stay as it is in the model is left out of free, "
                    "or gets requires_grad_(False)"
                )
            found |= dict(zip(entries(name, shape), values.ravel().tolist(), strict=True))
        return found

    def _parameter(self, name: str, value: float, log: bool) -> list[Quantity]:
        if name in self.choices.tied or self._all_known(name):
            return []
        unit, meaning = self.model.units.get(name, ""), self.model.meanings.get(name, "")
        magnitude = 1.0 if log else abs(value) or 1.0
        scale: Scale = "log" if log else "linear"
        one = Quantity(name, "parameter", name, None, value, True, scale, magnitude, unit, meaning)
        if name not in self.choices.by:
            return [one]
        groups = self._groups(self.choices.by[name])
        known = [i for i, series in enumerate(self.data.trajectories) if name in series.constants]
        groups = {label: rows for label, rows in groups.items() if not set(rows) <= set(known)}
        return [replace(one, name=f"{name}[{label}]", trajectories=tuple(rows)) for label, rows in groups.items()]

    def _groups(self, column: str) -> dict[str, list[int]]:
        """The trajectories with each label of a column."""
        groups: dict[str, list[int]] = {}
        for i, series in enumerate(self.data.trajectories):
            label = self._label(series, str(column))
            groups.setdefault(label, []).append(i)
        return groups

    def _label(self, series: Trajectory, column: str) -> str:
        if column == self.data.trajectory_name:
            return series.name
        if column in series.labels:
            return series.labels[column]
        if column in series.constants:
            return f"{series.constants[column]:g}"
        known = [self.data.trajectory_name, *series.labels, *series.constants]
        listed = ", ".join(str(each) for each in known if each is not None)
        raise ValueError(
            f"by groups the trajectories by {column!r}, which is no column that has one value in each; such are "
            f"{listed or 'none: name the column of the trajectories, trajectory='}"
        )

    def initial_states(self) -> list[Quantity]:
        """A quantity for each initial state that is not a formula: of each trajectory, or shared."""
        quantities = []
        for state in self.model.states:
            if self.initial.get(state) == SHARED:
                quantities.append(self._initial_state(state, None))
        for i in range(len(self.data.trajectories)):
            for state in self.model.states:
                if state in self.computed or self.initial.get(state) == SHARED:
                    continue
                if state not in self.data.trajectories[i].constants:
                    quantities.append(self._initial_state(state, i))
        return quantities

    def _initial_state(self, state: str, trajectory: int | None) -> Quantity:
        model, data = self.model, self.data
        log = model.is_positive(state) or state in self.log_states
        series = data.trajectories[trajectory or 0]
        label = f"[{series.name}]" if series.name and trajectory is not None else ""
        default = model.default_state[list(model.states).index(state)]
        value, magnitude = default, abs(default) or 1.0
        if state in data.states:
            k = data.states.index(state)
            first = series.values[:, k]
            if trajectory is None:
                first = np.array([_first_known(each.values[:, k], np.nan) for each in data.trajectories])
            value, magnitude = _first_value(first, data.column(k), log)
        return Quantity(
            name=f"{state}({series.t[0]:g}){label}",
            kind="initial state",
            key=state,
            trajectories=None if trajectory is None else (trajectory,),
            value=value,
            free=True,
            scale="log" if log else "linear",
            magnitude=1.0 if log else magnitude,
            unit=model.units.get(state, ""),
            description=f"initial value: {model.states[state]}",
        )

    def _all_known(self, name: str) -> bool:
        """Whether a parameter is a known constant in every trajectory."""
        return all(name in series.constants for series in self.data.trajectories)

    def apply_values(self, quantities: list[Quantity]) -> list[Quantity]:
        """The quantities with their scales, bounds, priors and values, free or held."""
        choices = self.choices
        fixed = self._by_name(quantities, self._by_entry(choices.fixed, "fixed"), "fixed")
        fixed |= self._numbers_of_initial(quantities)
        start = self._by_name(quantities, self._by_entry(choices.start, "start"), "start")
        for name in sorted({*fixed} & {*start}):
            if fixed[name] != start[name]:
                raise ValueError(
                    f"fixed holds {name} at {fixed[name]:g}, but start has it begin at {start[name]:g}: "
                    "drop it from one"
                )
        scales = self._by_name(quantities, choices.random, "random", lambda _, scale: scale)
        scales = {name: scale for name, scale in scales.items() if scale is not None}
        scales |= self._by_name(quantities, choices.scale, "scale", check_scale)
        bounds = self._by_name(quantities, choices.bounds, "bounds", check_bounds)
        priors = self._by_name(quantities, choices.priors, "priors", read_prior)
        free = self._free_names(quantities, fixed)
        chosen = []
        for each in quantities:
            lower, upper = bounds.get(each.name, (-math.inf, math.inf))
            known = fixed.get(each.name, start.get(each.name))
            is_free = each.name in free and each.name not in fixed
            scale = scales.get(each.name, each.scale)
            value = each.value if known is None else known
            magnitude = each.magnitude
            if scale != each.scale:
                magnitude = 1.0 if scale != "linear" else abs(value) or 1.0
            made = replace(
                each,
                value=value if known is not None or each.kind == TENSOR else into_bounds(value, lower, upper, scale),
                free=is_free,
                scale=scale,
                magnitude=magnitude,
                lower=lower,
                upper=upper,
                prior=priors.get(each.name),
                assumed=not is_free and known is None,
            )
            check_start(made, type(self.model).__name__)
            chosen.append(made)
        return chosen

    def _numbers_of_initial(self, quantities: Sequence[Quantity]) -> dict[str, float]:
        numbers = {state: float(x) for state, x in self.initial.items() if isinstance(x, Real)}
        for state in numbers:
            for argument in ("fixed", "start", "bounds", "scale", "priors"):
                if state in getattr(self.choices, argument):
                    raise ValueError(
                        f"initial holds {state} at a number, and {argument} names it too: drop it from one"
                    )
        return self._by_name(quantities, numbers, "initial")

    def _free_names(self, quantities: Sequence[Quantity], fixed: Mapping[str, float]) -> set[str]:
        given = self.choices.free
        if given == "all":
            return {each.name for each in quantities}
        if given is None:
            said = {state for state, how in self.initial.items() if how == SHARED}
            free = {*self.data.states, *said}
            frozen = {name for name, parameter in self.model.named_parameters() if not parameter.requires_grad}
            return {
                each.name
                for each in quantities
                if (each.key not in frozen if each.kind == TENSOR else each.kind != "initial state" or each.key in free)
            }
        names = dict.fromkeys([given] if isinstance(given, str) else given, 0.0)
        found = set(self._by_name(quantities, names, "free"))
        found |= {each.name for each in quantities if each.kind == "sigma" and each.name not in fixed}
        if both := found & set(fixed):
            raise ValueError(f"{', '.join(sorted(both))} cannot be both free and fixed: drop it from one")
        return found

    def _by_name(
        self,
        quantities: Sequence[Quantity],
        given: Mapping[str, Any],
        argument: str,
        read: Callable[[str, Any], Any] | None = None,
    ) -> dict[str, Any]:
        """What `given` says, by the full names of quantities; a state's or parameter's name stands for all of its."""
        found = {}
        for name, value in given.items():
            named = [quantity.name for quantity in quantities if _stands_for(name, quantity.name, quantity.key)]
            if not named:
                self._refuse_name(quantities, name, argument)
            found.update(dict.fromkeys(named, (read or finite_number(argument))(name, value)))
        return found

    def _refuse_name(self, quantities: Sequence[Quantity], name: str, argument: str) -> None:
        if name in self.computed or name in self.choices.tied:
            raise ValueError(
                f"{argument} names {name!r}, which follows from others (tied or initial): drop it from one"
            )
        if any(name in series.constants for series in self.data.trajectories):
            raise ValueError(f"{argument} names {name!r}, which the conditions give: drop it from one")
        if name.startswith("sigma"):
            raise ValueError(
                f"{argument} names {name!r}: the size of the noise of a column is held by sigma={{column: number}}, "
                "and neither started nor bounded"
            )
        singles = [each.name for each in quantities if each.kind != TENSOR]
        known = list(dict.fromkeys([*(each.key for each in quantities), *singles]))
        raise ValueError(
            f"{argument} names {name!r}, which is no parameter or state.{did_you_mean(name, known)} There are "
            f"{', '.join(known)}"
        )


def _stands_for(given: str, name: str, key: str) -> bool:
    """Whether a name in an argument is a quantity's, or that of the parameter, state or module that it belongs to."""
    return given in (name, key) or key.startswith(f"{given}.")


def _first_known(series: NDArray[np.float64], otherwise: float) -> float:
    known = series[np.isfinite(series)]
    return float(known[0]) if len(known) else otherwise


def _first_value(series: NDArray[np.float64], column: NDArray[np.float64], positive: bool) -> tuple[float, float]:
    """The first value of a series that is not missing, and the magnitude of a whole column."""
    magnitude = float(np.sqrt(np.mean(column**2))) or 1.0
    value = _first_known(series, float(column.mean()))
    return (max(value, 1e-2 * magnitude) if positive else value), magnitude


def check_enough(data: Dataset, n_free: int, used: int = 0) -> None:
    """Refuse data of which there are no more than what is estimated, but for some that are used for something else.

    Raises:
        DataError: the message counts both.
    """
    if data.n_data - used <= n_free:
        raise DataError(
            f"too few data: {data.n_data - used} values for {n_free} free quantities, sigmas included: hold some, "
            "fixed={name: value}"
        )
