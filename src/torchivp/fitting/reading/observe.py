"""What each column of data observes: a state, an expression or a function."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from torchivp.checks import did_you_mean
from torchivp.fitting.reading.table import DataError


def columns_called_like_states(columns: Sequence[str], states: Sequence[str], name: str) -> dict[str, Any]:
    """The columns of a table of this name that are called like states, each of which observes that state.

    Raises:
        DataError: there is none.
    """
    observed: dict[str, Any] = {column: column for column in columns if column in states}
    if not observed:
        call = ", ".join(f"{column!r}: state" for column in columns)
        raise DataError(
            f"no column of {name} is called like one of the states {', '.join(states)}: say which state each "
            f"observes, observe={{{call}}}"
        )
    return observed


def names_that_are_known(
    measured: Sequence[str], states: Sequence[str], names: Collection[str], where: str
) -> dict[str, Any]:
    """All that is measured in a table of long form, each of which observes what is called like it.

    Raises:
        DataError: something is neither a state nor another known name.
    """
    for each in measured:
        if each not in states and each not in names:
            call = ", ".join(f"{each!r}: state" for each in measured)
            raise DataError(
                f"{where} names {each!r}, which is none of the states {', '.join(states)}:"
                f"{did_you_mean(each, states)} Say what each observes, and leave out what is not to be fitted, "
                f"observe={{{call}}}"
            )
    return {each: each for each in measured}


def read_observe(
    observe: Sequence[str] | Mapping[str, Any], states: Sequence[str], names: Collection[str] = ()
) -> dict[str, Any]:
    """What the argument `observe` says, by column.

    Args:
        observe: a dict from column to the name of a state, the text of an expression or a callable; or a list of
            columns that are called like states, or else of one column per state in their order.
        states: the names of the states.
        names: other names that an expression may consist of.

    Raises:
        DataError: it names no column, or a column is to observe what cannot be observed.
    """
    if isinstance(observe, Mapping):
        specs = {str(column): spec for column, spec in observe.items()}
    elif not isinstance(observe, Iterable):
        raise DataError(f"observe must be a list of columns or a dict, observe={{column: state}}, got {observe!r}")
    else:
        specs = _listed([observe] if isinstance(observe, str) else [str(each) for each in observe], states)
    if not specs:
        raise DataError("observe names no column")
    for column, spec in specs.items():
        _check_spec(column, spec, states, names)
    return specs


def observed_state(spec: Any, states: Sequence[str]) -> str | None:
    """The state that a column observes, None if it observes something else."""
    return spec if isinstance(spec, str) and spec in states else None


def _check_spec(column: str, spec: Any, states: Sequence[str], names: Collection[str]) -> None:
    known = ", ".join(states)
    if callable(spec):
        return
    if not isinstance(spec, str) or not any(letter.isalpha() or letter == "_" for letter in spec):
        raise DataError(
            f"column {column!r} is to observe {spec!r}, which is no state, expression or function: name one of the "
            f"states {known}, or write an expression of them, observe={{{column!r}: '2 * {states[0]}'}}"
        )
    name = spec.strip()
    if spec in states or name in names or not name.isidentifier():
        return
    if hint := did_you_mean(name, states):
        raise DataError(f"column {column!r} is to observe {spec!r}, but the states are {known}.{hint}")


def _listed(columns: Sequence[str], states: Sequence[str]) -> dict[str, str]:
    """What each of the listed columns observes: the state of its name, or else that of its place."""
    listed, known = ", ".join(columns), ", ".join(states)
    for column in columns:
        if columns.count(column) > 1:
            raise DataError(f"observe lists {column!r} twice: {listed}")
    if set(columns) <= set(states):
        return {column: column for column in columns}
    if len(columns) != len(states):
        raise DataError(
            f"observe lists {len(columns)} columns ({listed}) for the {len(states)} states {known}: "
            "say which state each observes, observe={column: state}"
        )
    specs = dict(zip(columns, states, strict=True))
    for column, state in specs.items():
        if column in states and column != state:
            raise DataError(
                f"observe lists {listed} for the states {known}: by its place {column!r} observes {state!r}, by its "
                "name another state; say which, observe={column: state}"
            )
    return specs
