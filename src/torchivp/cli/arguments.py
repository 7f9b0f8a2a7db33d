"""What options hold: lists, numbers and `name=value`, checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from torchivp.cli.choice import completed_by
from torchivp.methods import ODE_METHODS

Method = Annotated[
    str,
    typer.Option(
        help="Name of the method that solves the equation, such as tsit5 or dopri8.",
        autocompletion=completed_by(ODE_METHODS),
    ),
]
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


def split_at_commas(text: str) -> list[str]:
    """The parts of a text between commas that stand outside all brackets: `a=min(x,1)` is one of `a=min(x,1),b=y`."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def parse_pairs(option: str, texts: Sequence[str]) -> dict[str, str]:
    """The pairs in `name=value`, `a=x,b=y`, ...

    Raises:
        ValueError: one of them is no such pair, or a name comes twice.
    """
    pairs: dict[str, str] = {}
    for pair in (pair for text in texts for pair in split_at_commas(text)):
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not (name and equals and value):
            raise ValueError(f"{option} must be name=value, got {pair!r}")
        if name in pairs:
            raise ValueError(f"{option} gives {name} twice")
        pairs[name] = value
    return pairs


def parse_one_or_pairs(option: str, texts: Sequence[str]) -> str | dict[str, str]:
    """A word that stands for all, such as `shared`; else the pairs in `name=value`, ...

    Raises:
        ValueError: it is neither.
    """
    if all("=" in text for text in texts):
        return parse_pairs(option, texts)
    if len(texts) > 1:
        raise ValueError(f"{option} must be one word for all, or name=value for each, got {' and '.join(texts)}")
    return texts[0].strip()


def number_or_text(text: str) -> float | str:
    """A number where the text is one."""
    try:
        return float(text)
    except ValueError:
        return text


def parse_values(option: str, texts: Sequence[str]) -> dict[str, float]:
    """The numbers in `name=1.5`, `a=1,b=2`, ...

    Raises:
        ValueError: one of them is no such pair, or its value is no number.
    """
    return {name: parse_number(f"{option} {name}", text) for name, text in parse_pairs(option, texts).items()}


def parse_ranges(option: str, texts: Sequence[str]) -> dict[str, tuple[float | None, float | None]]:
    """The bounds in `name=lower:upper`, `a=0:,b=:5`, ...: None where one is left out.

    Raises:
        ValueError: one of them is no such range.
    """
    ranges = {}
    for name, text in parse_pairs(option, texts).items():
        lower, colon, upper = text.partition(":")
        if not colon or not (lower.strip() or upper.strip()):
            raise ValueError(f"{option} {name} must be lower:upper, such as 0:1, 0: or :1, got {text!r}")
        ends = [parse_number(f"{option} {name}", end) if end.strip() else None for end in (lower, upper)]
        ranges[name] = (ends[0], ends[1])
    return ranges


def parse_normal(option: str, texts: Sequence[str]) -> dict[str, tuple[float, float]]:
    """The means and standard deviations in `name=mean:sd`, ...

    Raises:
        ValueError: one of them is no such pair of numbers.
    """
    found = {}
    for name, text in parse_pairs(option, texts).items():
        mean, colon, deviation = text.partition(":")
        if not colon:
            raise ValueError(f"{option} {name} must be mean:sd, such as 0.5:0.1, got {text!r}")
        found[name] = tuple(parse_number(f"{option} {name}", number) for number in (mean, deviation))
    return found
