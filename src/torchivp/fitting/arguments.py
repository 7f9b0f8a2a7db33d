"""The arguments of `fit`, checked and read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np

from torchivp.checks import check_whole_number
from torchivp.fitting.data import Dataset, read_doses
from torchivp.fitting.levels import MODES
from torchivp.fitting.quantities import Quantities
from torchivp.fitting.searching.optimise import Shooting
from torchivp.fitting.searching.stiffness import AUTO
from torchivp.fitting.solving.inputs import Inputs, read_inputs
from torchivp.fitting.stochastic.measurement import Measurement, read_measurement
from torchivp.fitting.stochastic.refusals import check_stochastic
from torchivp.methods import find_method
from torchivp.models.model import Model
from torchivp.models.stochastic_model import StochasticModel


def check_arguments(model: Model, method: str, max_iterations: int, starts: int | None, start: Any) -> None:
    """Refuse a method of fixed steps, and numbers that are none."""
    if method != AUTO and find_method(method).error_order is None:
        raise ValueError(f"{method!r} takes fixed steps, and a fit needs an adaptive method such as 'dopri5'")
    check_whole_number("max_iterations", max_iterations, 1)
    if starts is not None:
        check_whole_number("starts", starts, 1)
        if start is not None:
            raise ValueError(f"starts={starts} stands instead of start: give one of them")


def check_shooting(shooting: Any, model: Model, starts: int | None) -> None:
    """Refuse what is no way of shooting, and multiple shooting where there is none."""
    if shooting not in get_args(Shooting):
        raise ValueError(f"shooting must be one of {', '.join(map(repr, get_args(Shooting)))}, got {shooting!r}")
    if shooting != "auto" and isinstance(model, StochasticModel):
        raise ValueError(
            f"a fit of a StochasticModel goes from datum to datum, and shoots nowhere: leave out shooting={shooting!r}"
        )
    if shooting == "multiple" and starts is not None:
        raise ValueError(
            f"starts={starts} searches from many starts by single shooting: leave out shooting='multiple', or starts"
        )


def check_descent(model: Model, **others: Any) -> None:
    """Refuse what only least squares does."""
    if isinstance(model, StochasticModel):
        raise ValueError("a StochasticModel is fitted by optimiser='least-squares': leave out optimiser")
    given = [name for name, value in others.items() if value not in (None, "auto")]
    if given:
        raise ValueError(
            f"{given[0]} takes optimiser='least-squares', since other optimisers go from the start values and nowhere "
            "else: leave out one of them"
        )


def refuse_reading(arguments: Mapping[str, Any], columns: Any) -> None:
    """Refuse what says how to read a table where the data have been read already."""
    defaults = {"time": "time", "observe": None, "trajectory": None, "long": None, "conditions": None}
    defaults |= {"censored": None, "time_unit": None}
    given = [name for name, default in defaults.items() if arguments[name] != default]
    if columns:
        given.append("a column in sigma")
    if given:
        raise ValueError(f"data is a Dataset, which has been read already: give {', '.join(given)} to read_data")


def measurement_of(
    arguments: Mapping[str, Any], data: Dataset, modes: Any, kinds: Mapping[str, Any]
) -> Measurement | None:
    """How the states of a stochastic model are measured; None for other models."""
    model, free, initial = arguments["model"], arguments["free"], arguments["initial"]
    if not isinstance(model, StochasticModel):
        return None
    check_stochastic(
        model, schedule=arguments["schedule"], doses=arguments["doses"], starts=arguments["starts"], random=kinds
    )
    named = [free] if isinstance(free, str) else free or []
    said = [arguments[name] or {} for name in ("fixed", "start", "scale", "bounds", "priors")]
    said.append(dict.fromkeys(model.states) if isinstance(initial, str) else initial or {})
    every = [*named, *(name for each in said for name in each)]
    return read_measurement(model, data, arguments["noise"], modes, every)


def split_sigma(sigma: Any, long: bool) -> tuple[Any, dict[str, str] | str]:
    """What `sigma` says of each observable, without the columns of standard deviations, and these."""
    if long and isinstance(sigma, str) and sigma not in MODES:
        return "separate", sigma
    if not isinstance(sigma, Mapping):
        return sigma, {}
    columns = {str(name): each for name, each in sigma.items() if isinstance(each, str) and each not in MODES}
    return {name: each for name, each in sigma.items() if name not in columns}, columns


def inputs_of(
    data: Dataset,
    states: list[str],
    jump_times: Sequence[float],
    schedule: Any,
    doses: Any,
    time: str,
    trajectory: str | None,
) -> Inputs:
    """What acts on the states, from `jump_times`, `schedule` and `doses`."""
    names = [series.name for series in data.trajectories]
    if doses is not None:
        if schedule is not None:
            raise ValueError("give the changes of the state as schedule or as doses, not as both")
        schedule = read_doses(doses, names, states, time=time, trajectory=trajectory, calendar=data.calendar)
    return read_inputs(jump_times, schedule, names)


def absolute_tolerance(
    given: float | Sequence[float] | None, factor: float, data: Dataset, quantities: Quantities, states: list[str]
) -> tuple[float, ...] | float:
    """The absolute tolerance of each state: as given, or `factor` times the smallest size that matters.

    An observed state matters down to its smallest value; it may grow from there, and then the error that it begins with
    grows along. What is not observed may matter wherever an observed state does.
    """
    if isinstance(given, Sequence):
        if len(given) != len(states):
            raise ValueError(f"atol must be a number, or one for each of {', '.join(states)}, got {len(given)} numbers")
        return tuple(map(float, given))
    if given is not None:
        return given
    sizes: dict[str, list[float]] = {state: [] for state in states}
    seen = [state for state in data.states if state is not None]
    for k, state in enumerate(data.states):
        if state is not None:
            sizes[state] += np.abs(data.column(k)).tolist()
    for quantity in quantities.all:
        if quantity.kind == "initial state":
            sizes[quantity.key].append(abs(quantity.value))
    smallest = {state: min(filter(None, values), default=np.inf) for state, values in sizes.items()}
    observed = min((smallest[state] for state in seen or states), default=np.inf)
    of_all = observed if np.isfinite(observed) else 1.0
    least = [smallest[state] if state in seen else min(smallest[state], of_all) for state in states]
    return tuple(factor * (size if np.isfinite(size) else of_all) for size in least)
