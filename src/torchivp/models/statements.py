"""The lines of a text of equations, one by one: what each of them states."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NoReturn

from torchivp.expressions import CONSTANTS, FUNCTIONS, Expression, ExpressionError

Kind = Literal["derivative", "initial value", "value", "positive", "real", "constant"]

_NAME = r"[^\W\d]\w*"
_LEFT_SIDES: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("derivative", re.compile(rf"({_NAME})\s*'")),
    ("derivative", re.compile(rf"d\s*\(\s*({_NAME})\s*\)\s*/\s*dt")),
    ("derivative", re.compile(rf"d({_NAME})\s*/\s*dt")),
    ("initial value", re.compile(rf"({_NAME})\s*\(([^()]*)\)")),
    ("value", re.compile(rf"({_NAME})")),
)
_LISTS: dict[str, Kind] = {"positive": "positive", "real": "real", "constant": "constant"}
_LIST = re.compile(r"(\w+)\s*:(.*)")
_CODE = re.compile(r"""(?:[^"#]|"[^"]*")*""")
_RIGHT_SIDE = re.compile(r"""([^"\[]*)(?:\[([^\]"]*)\])?\s*(?:"([^"]*)")?""")

_FORMS = (
    "a line must be name' = formula, d(name)/dt = formula, name(0) = number, name = formula, name = number, or "
    'positive:, real: or constant: with names; a [unit] and a "meaning" may follow a formula or number'
)


@dataclass(frozen=True)
class Statement:
    """What a line states.

    Attributes:
        kind: what it is about.
        name: of what; "" for a list of names.
        expression: the right side; None for a list of names.
        names: the names in a list.
        time: what is in the brackets of an initial value.
        unit: the unit, or "".
        meaning: the meaning, or "".
        place: the line and the source, for messages.
    """

    kind: Kind
    name: str
    place: str
    expression: Expression | None = None
    names: tuple[str, ...] = ()
    time: float | None = None
    unit: str = ""
    meaning: str = ""

    def refuse(self, what: str) -> NoReturn:
        """Raise an error that names the line."""
        raise ExpressionError(f"{self.place}: {what}")

    @property
    def formula(self) -> Expression:
        """The right side of a statement that is no list."""
        assert self.expression is not None
        return self.expression


def read_statements(text: str, source: str) -> list[Statement]:
    """What the lines of a text state, in their order.

    Args:
        text: the equations.
        source: where they come from, for messages.

    Raises:
        ExpressionError: a line states nothing that is understood; the message names it.
    """
    statements = []
    for number, line in _lines(text, source):
        place = f"line {number} of {source}"
        try:
            statements.append(_read(line, place))
        except ExpressionError as error:
            raise ExpressionError(f"{place}: {error}") from None
    return statements


def _lines(text: str, source: str) -> Iterator[tuple[int, str]]:
    """The lines without comments, and their numbers; one whose brackets are open goes on in the next."""
    begun, first = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        code = _CODE.match(line)
        rest = line[code.end() :] if code else line
        if rest.startswith('"'):
            raise ExpressionError(f"line {number} of {source}: the quotation mark before {rest[1:]!r} is never closed")
        begun, first = (f"{begun} {code[0] if code else ''}", first) if begun else (code[0] if code else "", number)
        bare = re.sub(r'"[^"]*"|\[[^\]]*\]', "", begun)
        if bare.count("(") > bare.count(")"):
            continue
        if begun.strip():
            yield first, begun.strip()
        begun = ""
    if begun:
        raise ExpressionError(f"line {first} of {source}: a bracket is opened and never closed")


def _read(line: str, place: str) -> Statement:
    left, equals, right = (part.strip() for part in line.partition("="))
    if not equals:
        return _read_list(line, place)
    for kind, pattern in _LEFT_SIDES:
        if found := pattern.fullmatch(left):
            return _read_equation(kind, found, right, place)
    second = " (for a second derivative write x' = v and v' = ...)" if "''" in left else ""
    raise ExpressionError(f"{left!r} = ... is not understood{second}: {_FORMS}")


def _read_equation(kind: Kind, left: re.Match[str], right: str, place: str) -> Statement:
    """A line with an equals sign, whose left side has been recognised."""
    parts = _RIGHT_SIDE.fullmatch(right)
    if parts is None:
        raise ExpressionError(f'{right!r} is not understood: after the formula, first the [unit], then the "meaning"')
    formula, unit, meaning = ((part or "").strip() for part in parts.groups())
    time = _number(left[2], "the time in the brackets") if kind == "initial value" else None
    return Statement(kind, _check_name(left[1]), place, Expression(formula), time=time, unit=unit, meaning=meaning)


def _read_list(line: str, place: str) -> Statement:
    """A line such as `positive: a, b`."""
    found = _LIST.fullmatch(line)
    if found and (kind := _LISTS.get(found[1])):
        names = [name.strip() for name in found[2].split(",")]
        if not all(re.fullmatch(_NAME, name) for name in names):
            raise ExpressionError(f"{kind}: must be followed by names with commas between them, got {found[2]!r}")
        return Statement(kind, "", place, names=tuple(_check_name(name) for name in names))
    raise ExpressionError(f"{line!r} is not understood: {_FORMS}")


def _check_name(name: str) -> str:
    """A name, as Python writes it.

    Raises:
        ExpressionError: it means something else in formulas.
    """
    meant = {"t": "the time", **{each: f"the constant {value:.4g}..." for each, value in CONSTANTS.items()}}
    if name in meant or name in FUNCTIONS:
        what = meant.get(name, "a function")
        raise ExpressionError(f"{name} is {what}, and nothing else can be called so: write {name}_")
    return Expression(name).names[0]


def _number(text: str, what: str) -> float:
    """The value of a formula without names."""
    expression = Expression(text)
    if expression.names:
        raise ExpressionError(f"{what} must be a number, got {expression.text!r}")
    return expression({}).item()
