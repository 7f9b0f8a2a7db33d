"""What a formula may hold; its text as a syntax tree, or a sentence that says what is wrong with it and where."""

from __future__ import annotations

import ast
import keyword
import math
import re
import warnings
from typing import NoReturn

from torchivp.expressions.functions import ELEMENTARY

CONSTANTS = {"pi": math.pi, "e": math.e}
"""The constants that a formula may name."""

FUNCTIONS = tuple(sorted([*ELEMENTARY, "heaviside", "max", "min", "where"]))
"""The names of all functions that a formula may call."""

ALLOWED = (
    "a formula may hold numbers, names, + - * / and ** or ^, comparisons, 'and', 'or', 'not', 'a if c else b', the "
    f"constants {' and '.join(CONSTANTS)}, and calls of {', '.join(FUNCTIONS)}"
)

LONGEST = 10_000
"""The largest number of characters of a formula."""

DEEPEST = 60
"""The largest number of formulas within each other; a sum or product of many terms counts once."""

_WORDS = frozenset(keyword.kwlist) - {"and", "or", "not", "if", "else", "True", "False", "None"}
_STRANGE = re.compile(r"[^\w\s.+\-*/^()<>=!,]")


class ExpressionError(ValueError):
    """A formula or an equation cannot be understood; the message names the place and what is allowed there."""


def parse(text: str) -> ast.expr:
    """The syntax tree of a formula, not yet checked for what its parts are.

    Raises:
        ExpressionError: the text is none; the message names the column.
    """
    if not text:
        raise ExpressionError(f"an empty text is no formula: {ALLOWED}")
    if len(text) > LONGEST:
        raise ExpressionError(
            f"the formula {shorten(text)!r} has {len(text)} characters, and {LONGEST} are the most: "
            "define parts of it by names"
        )
    if strange := _STRANGE.search(text):
        refuse(text, strange.start(), f"{strange[0]!r} is not allowed: {ALLOWED}")
    for word in re.finditer(r"\w+", text):
        _check_word(text, word.start(), word[0])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what Python thinks of the text
            tree = ast.parse(_as_python(text), mode="eval").body
    except SyntaxError as error:
        place = _place(text, (error.offset or 1) - 1)
        refuse(text, place, f"this cannot be read (a product is written a*b): {ALLOWED}")
    except (RecursionError, MemoryError, ValueError, OverflowError):
        raise _too_deep(text) from None
    if _depth(tree) > DEEPEST:
        raise _too_deep(text)
    return tree


def free_names(text: str, tree: ast.expr) -> tuple[str, ...]:
    """The names in a formula that are neither constants nor called, in order of appearance.

    Raises:
        ExpressionError: a name is that of a function, or begins with an underscore.
    """
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in called]
    found.sort(key=lambda node: node.col_offset)
    for node in found:
        if node.id in FUNCTIONS:
            refuse(text, column(text, node), f"{node.id!r} is a function, and needs its argument: {node.id}(x)")
        _check_word(text, column(text, node), node.id)  # which Python may have written otherwise: no wide letters
        if node.id.startswith("_"):
            refuse(text, column(text, node), f"{node.id!r} is no name: names begin with a letter")
    return tuple(dict.fromkeys(node.id for node in found if node.id not in CONSTANTS))


def column(text: str, node: ast.expr) -> int:
    """Where in a formula a part of its tree begins, from 0."""
    return _place(text, len(_as_python(text).encode()[: node.col_offset].decode()))


def describe(node: ast.expr) -> str:
    """What a part of a tree is, in words."""
    return {ast.Attribute: "a dot within a name", ast.Tuple: "a list with commas"}.get(type(node), "this")


def refuse(text: str, place: int, what: str) -> NoReturn:
    """Raise an error that names the column, from 1."""
    raise ExpressionError(f"column {place + 1} of {shorten(text)!r}: {what}")


def shorten(text: str) -> str:
    """A text for a message."""
    return text if len(text) <= 80 else f"{text[:77]}..."


def _check_word(text: str, place: int, word: str) -> None:
    if word in _WORDS:
        refuse(text, place, f"{word!r} is a word of Python's and can be no name: write {word}_")


def _as_python(text: str) -> str:
    """The formula with Python's sign for powers, on one line."""
    return re.sub(r"\s", " ", text).replace("^", "**")


def _place(text: str, place: int) -> int:
    """The place in a formula of a place in its Python."""
    passed = 0
    for i, character in enumerate(text):
        passed += 2 if character == "^" else 1
        if passed > place:
            return i
    return max(len(text) - 1, 0)


def _depth(tree: ast.expr) -> int:
    """How many formulas there are within each other."""
    deepest = 0
    waiting: list[tuple[ast.AST, int]] = [(tree, 1)]
    while waiting:
        node, depth = waiting.pop()
        deepest = max(deepest, depth)
        for child in ast.iter_child_nodes(node):
            same = isinstance(node, ast.BinOp) and isinstance(child, ast.BinOp) and child is node.left
            waiting.append((child, depth if same else depth + 1))
    return deepest


def _too_deep(text: str) -> ExpressionError:
    return ExpressionError(
        f"the formula {shorten(text)!r} holds too many formulas within each other: define parts of it by names"
    )
