"""Numbers that follow from others: tied parameters, initial states that are formulas or steady states."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from torchivp.api.steady import steady_state
from torchivp.expressions import CONSTANTS, Expression
from torchivp.fitting.data import Dataset
from torchivp.fitting.parameters import ParameterLayout
from torchivp.fitting.quantities import Assignment
from torchivp.models.model import Model

STEADY = "steady"


Named = tuple[tuple[str, ...], Callable[[Mapping[str, Tensor]], Tensor]]
"""The names that a formula uses, and the function of a dict of tensors that computes it."""


def refuse_constants(what: str, text: str, names: Sequence[str], time: bool = False) -> None:
    """Refuse a formula with a name that means a constant, or the time, and a quantity of the fit as well."""
    for name in (*CONSTANTS, *(["t"] if time else [])):
        if name in names and re.search(rf"\b{name}\b", text):
            meant = "the time" if name == "t" else "a constant"
            raise ValueError(
                f"{what}, {text!r}, uses {name!r}, which is {meant} in formulas and a name of the model too: write a "
                f"function instead, lambda p: p.{name}, or rename it {name}_"
            )


def read_formula(what: str, given: Any, names: Sequence[str]) -> Named:
    """The names that a formula uses, and the function of a dict of tensors that computes it.

    Args:
        what: what it is the formula of, for errors.
        given: an expression, or a function of an object whose attributes are the names.
        names: those that it may use.

    Raises:
        ValueError: it uses another name, or cannot be read.
        TypeError: it is neither text nor a function.
    """
    if isinstance(given, str):
        expression = Expression(given)
        refuse_constants(f"the formula of {what}", given, names)
        for name in expression.names:
            if name not in names:
                raise ValueError(f"the formula of {what}, {given!r}, uses {name!r}; it may use {', '.join(names)}")
        return expression.names, _Text(expression)
    if not callable(given):
        other = ", a number, 'shared' or 'steady'" if "initially" in what else ""
        raise TypeError(f"the formula of {what} must be text or a function{other}, got {type(given).__name__}")
    count = len(inspect.signature(given).parameters)
    if count != 1:
        raise ValueError(
            f"the formula of {what} is a function of one object, whose attributes are {', '.join(names)}: "
            f"lambda p: ..., got a function of {count} arguments"
        )
    read = _names_read(what, given, names)
    return read, _OfAttributes(given)


@dataclass(frozen=True)
class _Text:
    """A formula in words."""

    expression: Expression

    def __call__(self, values: Mapping[str, Tensor]) -> Tensor:
        return torch.as_tensor(self.expression(values), dtype=torch.float64)


@dataclass(frozen=True)
class _OfAttributes:
    """A function of an object whose attributes are the values."""

    given: Callable[..., Any]

    def __call__(self, values: Mapping[str, Tensor]) -> Tensor:
        return torch.as_tensor(self.given(SimpleNamespace(**values)), dtype=torch.float64)


@dataclass(frozen=True)
class _Single:
    """A formula as the function of an assignment with one target."""

    formula: Callable[[Mapping[str, Tensor]], Tensor]

    def __call__(self, values: Mapping[str, Tensor]) -> Sequence[Tensor]:
        return (self.formula(values),)


class _Recorder:
    """An object whose attributes are the names, which remembers those that are looked at."""

    def __init__(self, what: str, names: Sequence[str]):
        self._what, self._names = what, names
        self._read: list[str] = []

    def __getattr__(self, name: str) -> Tensor:
        if name not in self._names:
            raise ValueError(f"the formula of {self._what} uses {name!r}; it may use {', '.join(self._names)}")
        self._read.append(name)
        return torch.ones((), dtype=torch.float64)


def _names_read(what: str, function: Callable[..., Any], names: Sequence[str]) -> tuple[str, ...]:
    """The names that a function of an object with these attributes looks at."""
    recorder = _Recorder(what, names)
    function(recorder)
    return tuple(dict.fromkeys(recorder._read))


def tie_assignments(tied: Mapping[str, Any], parameters: Sequence[str], data: Dataset) -> list[Assignment]:
    """The parameters that are formulas of others, in an order in which they can be computed."""
    formulas: dict[str, Named] = {}
    for name, given in tied.items():
        others = [each for each in parameters if each != name]
        formulas[name] = read_formula(name, given, others)
    return [_assignment(name, formulas[name], data) for name in _ordered(formulas)]


def initial_assignments(
    initial: Mapping[str, Any], parameters: Sequence[str], model: Model, data: Dataset
) -> list[Assignment]:
    """The initial states that are formulas of parameters and other initial states, or steady states."""
    steady = [state for state, how in initial.items() if how == STEADY]
    if steady and len(steady) < len(model.states):
        others = [state for state in model.states if state not in steady]
        raise ValueError(
            f"a steady state is one of all states, and initial gives it to {', '.join(steady)} only: write "
            f"initial='steady', or give {', '.join(others)} as parameters of the model"
        )
    if steady:
        return [_steady(model)]
    formulas: dict[str, Named] = {}
    for state, given in initial.items():
        if given == "shared" or isinstance(given, Real):
            continue
        others = [*parameters, *(each for each in model.states if each != state)]
        formulas[state] = read_formula(f"{state}, initially,", given, others)
    return [_assignment(state, formulas[state], data) for state in _ordered(formulas)]


def _ordered(formulas: Mapping[str, Named]) -> list[str]:
    """The names such that each comes after those that its formula uses."""
    done: list[str] = []
    waiting = list(formulas)
    while waiting:
        ready = [name for name in waiting if not set(formulas[name][0]) & set(waiting) - {name}]
        if not ready:
            raise ValueError(f"{', '.join(waiting)} follow from each other in a circle: give one of them a value")
        done += ready
        waiting = [name for name in waiting if name not in ready]
    return done


def _assignment(name: str, named: Named, data: Dataset) -> Assignment:
    names, formula = named
    given = [name in series.constants for series in data.trajectories]
    rows = None if not any(given) else tuple(i for i, known in enumerate(given) if not known)
    return Assignment((name,), names, _Single(formula), rows)


def _steady(model: Model) -> Assignment:
    """The initial state at which the model rests, found from its default state, with its derivatives."""
    layout = ParameterLayout.of(model)
    return Assignment(tuple(model.states), tuple(layout.numbers()), _Rest(model, layout))


@dataclass(frozen=True)
class _Rest:
    """The steady state of a model as a function of its parameters."""

    model: Model
    layout: ParameterLayout

    def __call__(self, values: Mapping[str, Tensor]) -> Sequence[Tensor]:
        every = torch.stack(torch.broadcast_tensors(*(values[name] for name in self.layout.numbers())), -1)
        start, flat = self.model.initial_state(), every.reshape(-1, every.shape[-1])
        rows = [steady_state(self._derivative, start, args=(each,)).y for each in flat.unbind()]
        return torch.stack(rows).reshape(*every.shape[:-1], len(self.model.states)).unbind(-1)

    def _derivative(self, t: Tensor, y: Tensor, values: Tensor) -> Tensor:
        return functional_call(self.model, self.layout.named(values), (t, y))
