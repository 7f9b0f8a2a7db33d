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

from torchivp.expressions import Expression, compile_expressions
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
        self._states = list(model.states)
        self._locals = quantities.names
        self._parameters = [name for name in quantities.names if name not in model.states]
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
        formula = _Named(Expression(given), definitions)
        for name in formula.names:
            if name != "t" and name not in self._locals:
                raise DataError(
                    f"column {column!r} is to observe {given!r}, which uses {name!r}. There are the states "
                    f"{', '.join(self._states)} and the parameters {', '.join(self._parameters)}; another parameter "
                    f"gets a start value by parameters={{{name!r}: 1.0}}"
                )
        return formula

    def values(self, t: Tensor, y: Tensor, own: Tensor) -> NDArray[np.float64]:
        """The observables, [rows, T, n_observed].

        Args:
            t: the times, [rows, T].
            y: the states, [rows, T, n_states].
            own: the locals, [rows, n_locals].
        """
        if self.plain:
            return y[..., self._columns].numpy()
        with torch.no_grad():
            return torch.stack([self._value(each, t, y, own) for each in self._columns], -1).numpy()

    def with_slopes(self, t: Tensor, y: Tensor, own: Tensor) -> Observed:
        """The observables with their derivatives; arguments as of `values`."""
        values = np.empty((*y.shape[:2], len(self._columns)))
        by_state = np.zeros((*values.shape, len(self._states)))
        by_local = np.zeros((*values.shape, len(self._locals)))
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

    def _value(self, column: int | Formula, t: Tensor, y: Tensor, own: Tensor) -> Tensor:
        if isinstance(column, int):
            return y[..., column]
        own = own if own.ndim == y.ndim else own[:, None]
        named = {name: own[..., k] for k, name in enumerate(self._locals) if name in self._parameters}
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
    """An observable that is a function `(y, p)` or `(t, y, p)` of objects whose attributes are states and parameters."""
    count = len(inspect.signature(given).parameters)
    if count not in (2, 3):
        raise DataError(
            f"column {column!r} observes a function of {count} arguments: write lambda y, p: ... or lambda t, y, p: ..., "
            "where y has the states and p the parameters as attributes"
        )

    def formula(values: Mapping[str, Tensor]) -> Tensor:
        y = SimpleNamespace(**{name: values[name] for name in states})
        p = SimpleNamespace(**{name: values[name] for name in parameters})
        try:
            return given(y, p) if count == 2 else given(values["t"], y, p)
        except AttributeError as error:
            raise DataError(
                f"column {column!r} observes a function that fails: {error}. y has {', '.join(states)}; p has "
                f"{', '.join(parameters)}"
            ) from error

    return formula
