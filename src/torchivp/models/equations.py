"""A model from the text of its equations."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from torchivp.expressions import Expression, ExpressionError, compile_expressions
from torchivp.models.described import DescribedModel, check_known, join_slopes
from torchivp.models.system import System, read_system


class Equations(DescribedModel):
    """A model from the text of its equations.

        >>> predators = Equations('''
        ... # predators and prey
        ... prey' = growth - beta*prey*predator         # also d(prey)/dt = ... or dprey/dt = ...
        ... predator' = delta*prey*predator - gamma*predator
        ... growth = alpha*prey                         # a quantity that other lines may use
        ... alpha = 0.5 [1/year] "birth rate of prey"   # a parameter: its default, unit and meaning
        ... beta = 0.03
        ... gamma = 0.8
        ... delta = 0.02
        ... prey(0) = 30 [thousands]                    # the default initial state, at any one time; otherwise 1
        ... predator(0) = 4 [thousands]
        ... positive: prey, predator
        ... ''')
        >>> predators
        Equations(alpha=0.5, beta=0.03, gamma=0.8, delta=0.02)

    Each line is an equation, and lines may come in any order. Formulas are those of `torchivp.expressions.Expression`;
    the time is called `t`. A name whose right side is a number, or a formula without names such as `2*pi/24`, is a
    parameter; so is every name that no line gives a value, with the default 1. A name whose right side has names in it
    is a quantity defined by them. A `#` begins a comment. A line whose brackets are open goes on in the next.

    Parameters whose values are positive are estimated on the log scale, the others and the states are not. Three lists
    change that: `positive: a, b` adds parameters and states; `real: c` takes parameters and states out; and
    `constant: g` makes a number of the parameter g that is never estimated.

    Args:
        text: the equations.
        positive: the names of the parameters and states that are estimated on the log scale; None for what the text
            says.
        **parameters: values of parameters in place of those in the text.

    Attributes:
        text: the equations.
        equations: the right side of each state's equation.
        definitions: the quantities that are defined by formulas, each after those that it uses.

    Raises:
        ExpressionError: the text cannot be understood; the message names the line.
        ValueError: a value is given to what is no parameter.
    """

    text: str
    equations: dict[str, Expression]
    definitions: dict[str, Expression]

    def __init__(self, text: str, /, *, positive: Iterable[str] | None = None, **parameters: float):
        self._build(text, "the equations", positive, parameters)

    @classmethod
    def from_file(cls, path: str | Path, /, *, positive: Iterable[str] | None = None, **parameters: float) -> Self:
        """A model from a text file, encoded as UTF-8.

        Args:
            path: the file.
            positive: as of the class.
            **parameters: as of the class.

        Raises:
            OSError: the file cannot be read.
            ExpressionError: it cannot be understood; the message names file and line.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            raise ExpressionError(f"{path} must be a text file in UTF-8") from None
        model = cls.__new__(cls)
        model._build(text, path.name, positive, parameters)
        return model

    def _build(self, text: str, source: str, positive: Iterable[str] | None, changed: dict[str, float]) -> None:
        system = read_system(text, source)
        for name in changed:
            check_known(name, list(system.parameters), f"{name!r} is given a value, but is no parameter of {source}")
        values = {**system.parameters, **changed}
        self.text, self.equations, self.definitions = text, system.derivatives, system.definitions
        for name in values:
            self._check_attribute(name, system, source)
        meanings = dict(system.meanings)
        super().__init__(
            {name: meanings.pop(name, name) for name in system.derivatives},
            system.initial.values(),
            values,
            positive=system.positive_names(values) if positive is None else positive,
            units=system.units,
            meanings=meanings,
            defined=system.definitions,
        )
        self._compile()

    def _compile(self) -> None:
        """Make functions of the formulas."""
        self._arguments = ("t", *self.states, *self.values())
        defined = [Expression(name) for name in self.definitions]
        self._slopes = compile_expressions(list(self.equations.values()), self._used(), self._arguments)
        self._defined = compile_expressions(defined, self.definitions, self._arguments)

    def _used(self) -> dict[str, Expression]:
        """The definitions that the equations need."""
        used: dict[str, Expression] = {}
        waiting = list(self.equations.values())
        while waiting:
            new = {name: self.definitions[name] for name in waiting.pop().names if name in self.definitions}
            waiting += [each for name, each in new.items() if name not in used]
            used |= new
        return {name: each for name, each in self.definitions.items() if name in used}

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return join_slopes(y, self._slopes(*self._given(t, y)))

    def quantities(self, t: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The quantities that are defined by formulas.

        Args:
            t: the time, 0-d.
            y: the state, [..., n_states].

        Returns:
            The value of each, by name, [...].
        """
        values = self._defined(*self._given(t, y))
        return {name: value.expand(y.shape[:-1]) for name, value in zip(self.definitions, values, strict=True)}

    def _given(self, t: Tensor, y: Tensor) -> list[Tensor]:
        """What the functions of the formulas take: a tensor like the state, and a value for each name."""
        parts = self._parts(y)
        time = t if isinstance(t, Tensor) else torch.as_tensor(t, dtype=y.dtype, device=y.device)
        return [parts[0], time, *parts, *(getattr(self, name) for name in self._arguments[1 + len(parts) :])]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_slopes", "_defined")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._compile()

    def _check_attribute(self, parameter: str, system: System, source: str) -> None:
        """Refuse a parameter whose name an attribute of the model has, and say where it is."""
        try:
            self._check_name(parameter)
        except ValueError as error:
            place = system.stated[parameter].place if parameter in system.stated else source
            raise ExpressionError(f"{place}: {error}") from None
