"""What options hold: lists, numbers and `name=value`, checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

Method = Annotated[str, typer.Option(help="Name of the method that solves the equation, such as tsit5 or dopri8.")]
RelativeTolerance = Annotated[float, typer.Option(help="Relative tolerance of the solver.")]
AbsoluteTolerance = Annotated[
    float | None, typer.Option(help="Absolute tolerance of the solver; default: chosen to suit.")
]


def parse_names(option: str, text: str) -> list[str]:
    """The names in `a,b`.

    Raises:
        ValueError: one of them is empty.
    """
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ValueError(f"{option} must be names with commas between them, such as a,b; got {text!r}")
    return names


def parse_number(option: str, text: str) -> float:
    """A number.

    Raises:
        ValueError: it is none.
    """
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{option} must be a number, got {text!r}") from None


def parse_numbers(option: str, text: str) -> list[float]:
    """The numbers in `1,2.5`.

    Raises:
        ValueError: one of them is none.
    """
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} must be numbers with commas between them, such as 0,20; got {text!r}") from None


def parse_pairs(option: str, texts: Sequence[str]) -> dict[str, str]:
    """The pairs in `name=value`, `a=x,b=y`, ...

    Raises:
        ValueError: one of them is no such pair, or a name comes twice.
    """
    pairs: dict[str, str] = {}
    for pair in (pair for text in texts for pair in text.split(",")):
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not (name and equals and value):
            raise ValueError(f"{option} must be name=value, got {pair!r}")
        if name in pairs:
            raise ValueError(f"{option} gives {name} twice")
        pairs[name] = value
    return pairs


def parse_values(option: str, texts: Sequence[str]) -> dict[str, float]:
    """The numbers in `name=1.5`, `a=1,b=2`, ...

    Raises:
        ValueError: one of them is no such pair, or its value is no number.
    """
    return {name: parse_number(f"{option} {name}", text) for name, text in parse_pairs(option, texts).items()}
