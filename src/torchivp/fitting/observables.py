"""What is measured: states, or functions of states and parameters, with their derivatives."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import grad, jvp

from torchivp.expressions import Expression, compile_expressions
from torchivp.fitting.assignments import refuse_constants
from torchivp.fitting.data import DataError, Dataset
from torchivp.fitting.quantities import Quantities
from torchivp.models.model import Model

Formula = Callable[[Mapping[str, Tensor]], Tensor]
"""Of the time, the states and the parameters by name, which broadcast."""


@dataclass(frozen=True)
class Observed:
    """The values of observables, and how they change with what they are computed from.

    Attributes:
        values: [rows, T, n_observed].
        by_state: their derivatives by the states, [rows, T, n_observed, n_states].
        by_local: those by the locals of a row, [rows, T, n_observed, n_locals].
    """

    values: NDArray[np.float64]
    by_state: NDArray[np.float64]
    by_local: NDArray[np.float64]


@dataclass(frozen=True)
class Linearised:
    """An observable of many states, and its slope there, with their tangents in several directions.

    Attributes:
        value: [rows].
        slope: by the states, [rows, n_states].
        value_tangents: [rows, n_directions].
        slope_tangents: [rows, n_directions, n_states].
    """

    value: Tensor
    slope: Tensor
    value_tangents: Tensor
    slope_tangents: Tensor


class Observables:
    """The observables of a fit.

    Args:
        model: what is fitted.
        data: whose columns say what they observe: a state, an expression or a function.
        quantities: whose locals observables may use.

    Raises:
        DataError: a column observes what cannot be computed; the message says why.
    """

    def __init__(self, model: Model, data: Dataset, quantities: Quantities):
        self.names = list(data.observables)
        self._states = list(model.states)
        self._count, self._single = len(quantities.names), quantities.single_names
        self._parameters = [name for name in quantities.single_names if name not in model.states]
        self._columns_of = {name: quantities.names.index(name) for name in self._parameters}
        self._names = list(data.observables)
        self._columns: list[int | Formula] = []
        for column, state in zip(data.observables, data.states, strict=True):
            known = state is not None
            self._columns.append(
                self._states.index(state) if known else self._read(column, data.observe[column], model)
            )
        self.plain = all(isinstance(each, int) for each in self._columns)

    def _read(self, column: str, given: Any, model: Model) -> Formula:
        if not isinstance(given, str):
            return _function(column, given, self._states, self._parameters)
        definitions = getattr(model, "definitions", {})
        refuse_constants(f"what column {column!r} observes", given, self._single, time=True)
        formula = _Named(Expression(given), definitions)
        for name in formula.names:
            if name != "t" and name not in self._single:
                raise DataError(
                    f"column {column!r} is to observe {given!r}, which uses {name!r}. There are the states "
                    f"{', '.join(self._states)} and the parameters {', '.join(self._parameters)}; another parameter "
                    f"gets a start value by parameters={{{name!r}: 1.0}}"
                )
        return formula

    def check(self, t: float, y: Tensor, own: Tensor) -> None:
        """Refuse functions that fail, or whose value at a time of a trajectory depends on other times or trajectories.

        Args:
            t: a time.
            y: a state, [n_states].
            own: the locals of a trajectory, [n_locals].

        Raises:
            DataError: the message says which, and how to write it.
        """
        spread = torch.linspace(1.0, 1.5, 6, dtype=torch.float64).reshape(2, 3)
        times, states = t + 0.1 * (spread - 1), y * spread[..., None]
        rows = own.expand(2, -1)
        for k, each in enumerate(self._columns):
            if isinstance(each, int):
                continue
            name, hint = self._names[k], "compute it with torch, element by element"
            try:
                with torch.no_grad():
                    together = self._value(each, times, states, rows).expand(2, 3)
                    alone = [
                        self._value(each, times[i : i + 1, j : j + 1], states[i : i + 1, j : j + 1], rows[:1]).expand(
                            1, 1
                        )
                        for i in range(2)
                        for j in range(3)
                    ]
            except DataError:
                raise
            except Exception as error:
                raise DataError(
                    f"column {name!r} observes a function that fails where states are tensors [trajectories, times]: "
                    f"{error}: {hint}"
                ) from error
            if not torch.allclose(together, torch.cat(alone).reshape(2, 3), rtol=1e-9, equal_nan=True):
                raise DataError(
                    f"column {name!r} observes a function whose value at a time depends on other times: {hint}, "
                    "without sums, maxima or indices over the times"
                )

    def values(self, t: Tensor, y: Tensor, own: Tensor) -> NDArray[np.float64]:
        """The observables, [rows, T, n_observed].

        Args:
            t: the times, [rows, T].
            y: the states, [rows, T, n_states].
            own: the locals, [rows, n_locals].
        """
        if self.plain:
            return torch.stack([y[..., k] for k in self._columns if isinstance(k, int)], -1).numpy()
        with torch.no_grad():
            return torch.stack([self._value(each, t, y, own) for each in self._columns], -1).numpy()

    def followed(self, t: Tensor, y: Tensor, own: Tensor) -> Tensor:
        """The observables, [rows, T, n_observed], for autograd to differentiate; arguments as of `values`."""
        return torch.stack([self._value(each, t, y, own).expand(y.shape[:-1]) for each in self._columns], -1)

    def with_slopes(self, t: Tensor, y: Tensor, own: Tensor) -> Observed:
        """The observables with their derivatives; arguments as of `values`."""
        values = np.empty((*y.shape[:2], len(self._columns)))
        by_state = np.zeros((*values.shape, len(self._states)))
        by_local = np.zeros((*values.shape, self._count))
        for k, each in enumerate(self._columns):
            if isinstance(each, int):
                values[..., k] = y[..., each].numpy()
                by_state[..., k, each] = 1.0
                continue
            # An observable of one time of one row depends on its own numbers alone, so one sum has all derivatives.
            state = y.detach().clone().requires_grad_()
            mine = own[:, None].expand(*y.shape[:2], -1).detach().clone().requires_grad_()
            with torch.enable_grad():
                value = self._value(each, t, state, mine).expand(y.shape[:2])
            values[..., k] = value.detach().numpy()
            if value.requires_grad:
                found = torch.autograd.grad(value.sum(), (state, mine), allow_unused=True)
                for slopes, gradient in zip((by_state, by_local), found, strict=True):
                    if gradient is not None:
                        slopes[..., k, :] = gradient.numpy()
        return Observed(values, by_state, by_local)

    def linearised(
        self, k: int, t: Tensor, y: Tensor, own: Tensor, tangents: Tensor, own_tangents: Tensor
    ) -> Linearised:
        """An observable at the states of many rows.

        Args:
            k: its number.
            t: the times, [rows].
            y: the states, [rows, n_states].
            own: the locals, [rows, n_locals].
            tangents: of the states, [rows, n_directions, n_states].
            own_tangents: those of the locals of any row, [n_directions, n_locals].
        """
        column, (rows, directions, n) = self._columns[k], tangents.shape
        if isinstance(column, int):
            slope = torch.zeros_like(y)
            slope[:, column] = 1.0
            return Linearised(y[:, column], slope, tangents[:, :, column], torch.zeros_like(tangents))

        def both(state: Tensor, mine: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
            def total(s: Tensor) -> tuple[Tensor, Tensor]:
                value = self._value(column, times, s, mine).expand(len(s))
                return value.sum(), value

            slope, value = grad(total, has_aux=True)(state)
            return value, slope

        value, slope = both(y, own, t)
        if not directions:
            return Linearised(value, slope, y.new_zeros(rows, 0), torch.zeros_like(tangents))
        many = [x.repeat_interleave(directions, 0) for x in (y, own, t)]
        moved = (tangents.flatten(0, 1), own_tangents.repeat(rows, 1))
        found: Any = jvp(lambda state, mine: both(state, mine, many[2]), (many[0], many[1]), moved)
        values, slopes = found[1]
        return Linearised(value, slope, values.view(rows, directions), slopes.view(rows, directions, n))

    def _value(self, column: int | Formula, t: Tensor, y: Tensor, own: Tensor) -> Tensor:
        if isinstance(column, int):
            return y[..., column]
        own = own if own.ndim == y.ndim else own[:, None]
        named = {name: own[..., k] for name, k in self._columns_of.items()}
        named |= {name: y[..., k] for k, name in enumerate(self._states)}
        return torch.as_tensor(column({**named, "t": t}), dtype=torch.float64)


class _Named:
    """An expression, in which names that the model defines stand for their expressions."""

    def __init__(self, expression: Expression, definitions: Mapping[str, Expression]):
        used = _all_names(expression.names, definitions)
        inner = {name: formula for name, formula in definitions.items() if name in used}
        self.names = tuple(name for name in used if name not in definitions)
        self._compute = compile_expressions([expression], inner, self.names)

    def __call__(self, values: Mapping[str, Tensor]) -> Tensor:
        return self._compute(values["t"], *(values[name] for name in self.names))[0]


def _all_names(names: Sequence[str], definitions: Mapping[str, Expression]) -> dict[str, None]:
    """The names, and those in the definitions of them, in order."""
    found = dict.fromkeys(names)
    for name in names:
        if name in definitions:
            found |= _all_names(definitions[name].names, definitions)
    return found


def _function(column: str, given: Callable[..., Any], states: Sequence[str], parameters: Sequence[str]) -> Formula:
    """An observable that is a function `(y, p)` or `(t, y, p)` of objects with states and parameters as attributes."""
    count = len(inspect.signature(given).parameters)
    if count not in (2, 3):
        raise DataError(
            f"column {column!r} observes a function of {count} arguments: write lambda y, p: ... or lambda t, y, p: "
            "..., where y has the states and p the parameters as attributes"
        )

    return _OfAttributes(column, given, count == 3, tuple(states), tuple(parameters))


@dataclass(frozen=True)
class _OfAttributes:
    """An observable that is a function of objects with attributes.

    Attributes:
        column: what it is of, for errors.
        given: the function, `(y, p)` or `(t, y, p)`.
        timed: whether the time is its first argument.
        states: the attributes of y.
        parameters: those of p.
    """

    column: str
    given: Callable[..., Any]
    timed: bool
    states: tuple[str, ...]
    parameters: tuple[str, ...]

    def __call__(self, values: Mapping[str, Tensor]) -> Tensor:
        y = SimpleNamespace(**{name: values[name] for name in self.states})
        p = SimpleNamespace(**{name: values[name] for name in self.parameters})
        try:
            return self.given(values["t"], y, p) if self.timed else self.given(y, p)
        except AttributeError as error:
            raise DataError(
                f"column {self.column!r} observes a function that fails: {error}. y has {', '.join(self.states)}; "
                f"p has {', '.join(self.parameters)}"
            ) from error
