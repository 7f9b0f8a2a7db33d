"""A text of equations, understood: states, parameters, and what the formulas in it are called."""

from __future__ import annotations

import graphlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torchivp.checks import did_you_mean
from torchivp.expressions import Expression, ExpressionError
from torchivp.models.statements import Statement, read_statements


@dataclass(frozen=True)
class System:
    """What a text of equations says.

    Attributes:
        derivatives: the right side of each state's equation.
        initial: the initial value of each state.
        definitions: the quantities that are defined by formulas, each after those that it uses.
        parameters: the value of each parameter: first those that have lines, in their order.
        units: the units that were given, of states, parameters and definitions.
        meanings: the meanings that were given, likewise.
        stated: the statement that gives each name its value or equation.
        positive: the names of parameters and states that a line calls positive.
        real: the names of parameters that a line calls real.
    """

    derivatives: dict[str, Expression]
    initial: dict[str, float]
    definitions: dict[str, Expression]
    parameters: dict[str, float]
    units: dict[str, str]
    meanings: dict[str, str]
    stated: dict[str, Statement]
    positive: tuple[str, ...]
    real: tuple[str, ...]

    def positive_names(self, values: Mapping[str, float]) -> tuple[str, ...]:
        """What is estimated on the log scale: what a line says, and parameters whose values are positive.

        Args:
            values: the values of the parameters.
        """
        chosen = {*self.positive, *(name for name, value in values.items() if value > 0 and name not in self.real)}
        return tuple(name for name in (*values, *self.derivatives) if name in chosen)


def read_system(text: str, source: str) -> System:
    """Understand a text of equations.

    Args:
        text: the equations.
        source: where they come from, for messages.

    Raises:
        ExpressionError: it cannot be understood; the message names the line.
    """
    statements = read_statements(text, source)
    derivatives = _by_name(statements, "derivative")
    if not derivatives:
        raise ExpressionError(f"there is no equation in {source}: write at least one such as prey' = alpha*prey")
    values, starts = _by_name(statements, "value"), _by_name(statements, "initial value")
    constant, positive, real = (_listed(statements, kind) for kind in ("constant", "positive", "real"))
    for name, statement in values.items():
        if name in derivatives:
            statement.refuse(f"{name} is a state, whose initial value is given by {name}(0) = ...")
    defined = {name for name, each in values.items() if each.formula.names or name in constant}
    parameters = {
        name: values[name].formula({}).item() if name in values else 1.0
        for name in dict.fromkeys(_appearing(statements))
        if name not in derivatives and name not in defined
    }
    system = System(
        derivatives={name: statement.formula for name, statement in derivatives.items()},
        initial={name: _initial(name, starts) for name in derivatives},
        definitions=_sorted({name: values[name] for name in values if name in defined}),
        parameters=parameters,
        units={each.name: each.unit for each in statements if each.unit},
        meanings={each.name: each.meaning for each in statements if each.meaning},
        stated={**starts, **values, **derivatives},
        positive=tuple(positive),
        real=tuple(real),
    )
    _check_starts(starts, system)
    _check_parameters(statements, values, system, source)
    _check_lists(constant, positive, real, values, system)
    return system


def _by_name(statements: list[Statement], kind: str) -> dict[str, Statement]:
    """The statements of one kind."""
    found: dict[str, Statement] = {}
    for statement in statements:
        if statement.kind == kind:
            if statement.name in found:
                first = found[statement.name].place.partition(" of ")[0]
                statement.refuse(f"the {kind} of {statement.name} is given in {first} already")
            found[statement.name] = statement
    return found


def _listed(statements: list[Statement], kind: str) -> dict[str, Statement]:
    """The names in the lists of one kind, and the statement that lists each."""
    return {name: statement for statement in statements if statement.kind == kind for name in statement.names}


def _appearing(statements: list[Statement]) -> Iterator[str]:
    """The names that have lines of their own, in their order; then those in formulas; not the time."""
    yield from (statement.name for statement in statements if statement.kind == "value")
    for statement in statements:
        if statement.kind in ("value", "derivative"):
            yield from (name for name in statement.formula.names if name != "t")


def _initial(state: str, starts: Mapping[str, Statement]) -> float:
    if state not in starts:
        return 1.0
    expression = starts[state].formula
    if expression.names:
        starts[state].refuse(f"the initial value of {state} must be a number, got {expression.text!r}")
    return expression({}).item()


def _sorted(definitions: Mapping[str, Statement]) -> dict[str, Expression]:
    """The definitions, each after those that it uses."""
    uses = {name: [used for used in each.formula.names if used in definitions] for name, each in definitions.items()}
    try:
        order = list(graphlib.TopologicalSorter(uses).static_order())
    except graphlib.CycleError as error:
        circle = list(reversed(error.args[1]))
        definitions[circle[0]].refuse(f"{circle[0]} is defined by itself: {' uses '.join(circle)}")
    return {name: definitions[name].formula for name in order}


def _check_starts(starts: Mapping[str, Statement], system: System) -> None:
    """Refuse initial values of what is no state, and of different times."""
    for name, statement in starts.items():
        if name not in system.derivatives:
            statement.refuse(
                f"{name} has an initial value, but no equation.{did_you_mean(name, system.derivatives)} "
                f"Add {name}' = ..."
            )
    if len({statement.time for statement in starts.values()}) > 1:
        times = ", ".join(f"{name}({statement.time:g})" for name, statement in starts.items())
        list(starts.values())[-1].refuse(f"all initial values must be those of one time, got {times}")


def _check_parameters(
    statements: list[Statement], values: Mapping[str, Statement], system: System, source: str
) -> None:
    """Refuse parameters that no formula uses, and names that cannot be meant."""
    formulas = [each.formula for each in statements if each.kind in ("derivative", "value")]
    used = {name for formula in formulas for name in formula.names}
    unstated = [name for name in system.parameters if name not in values]
    for name in system.parameters:
        if name not in used:
            values[name].refuse(
                f"no formula uses the parameter {name}.{did_you_mean(name, unstated)} Leave the line out, or use {name}"
            )
    if "time" in unstated:
        raise ExpressionError(f"{source}: a formula uses time, which is called t")


def _check_lists(
    constant: Mapping[str, Statement],
    positive: Mapping[str, Statement],
    real: Mapping[str, Statement],
    values: Mapping[str, Statement],
    system: System,
) -> None:
    """Refuse lists that name what they cannot."""
    for name, statement in constant.items():
        if name not in values or values[name].formula.names:
            statement.refuse(f"{name} cannot be constant, because no line gives it a number: add {name} = number")
    starts = {**system.parameters, **system.initial}
    for name, statement in positive.items():
        if name in real:
            statement.refuse(f"{name} is called positive and real")
        if starts.get(name, math.inf) <= 0:
            statement.refuse(f"{name} is called positive, but its value is {starts[name]:g}")
    for name, statement in {**positive, **real}.items():
        if name not in starts:
            statement.refuse(
                f"{name} is no state or parameter.{did_you_mean(name, starts)} There are {', '.join(starts)}"
            )
