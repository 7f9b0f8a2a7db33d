"""Numbers and names that the user gives, checked."""

from __future__ import annotations

import difflib
import inspect
import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor


def check_number(name: str, value: Any) -> float:
    """A finite or infinite real number, given as a number or a tensor of one element.

    Raises:
        TypeError: it is neither.
        ValueError: it is NaN.
    """
    is_scalar = isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex()
    if isinstance(value, bool) or not (isinstance(value, numbers.Real) or is_scalar):
        raise TypeError(f"{name} must be a number, got {value!r}")
    number = float(value.detach() if isinstance(value, Tensor) else value)
    if math.isnan(number):
        raise ValueError(f"{name} must not be NaN")
    return number


def check_flag(name: str, value: Any) -> bool:
    """True or false.

    Raises:
        TypeError: it is neither.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def check_positive(name: str, value: Any, hint: str = "") -> float:
    """A positive number, which may be infinite, given as `check_number` takes it; `hint` ends the sentence.

    Raises:
        TypeError: it is no number.
        ValueError: it is not positive.
    """
    number = check_number(name, value)
    if not number > 0:
        raise ValueError(f"{name} must be positive, got {value!r}{hint}")
    return number


def check_whole_number(name: str, value: Any, smallest: int, largest: int | None = None, hint: str = "") -> int:
    """A whole number, NumPy's included, of at least `smallest` and at most `largest`; `hint` ends the sentence.

    Raises:
        TypeError: it is no whole number.
        ValueError: it is out of range.
    """
    limits = f"of at least {smallest}" if largest is None else f"between {smallest} and {largest}"
    sentence = f"{name} must be a whole number {limits}, got {value!r}{hint}"
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(sentence)
    number = int(value)
    if number < smallest or (largest is not None and number > largest):
        raise ValueError(sentence)
    return number


_STATES = frozenset({"y", "Y", "x", "X", "z", "u", "h", "state"})
_TIMES = frozenset({"t", "time"})


def check_time_first(name: str, function: Callable[..., Any], call: str) -> None:
    """Check that a function does not have the order of arguments of SciPy's `odeint`, by their names.

    Args:
        name: what it is called in messages.
        function: what the user gave.
        call: how it is called, such as "func(t, y)".

    Raises:
        TypeError: it takes the state first.
    """
    method = getattr(function, "forward", None) or function
    method = method if hasattr(method, "__code__") else type(method).__call__
    code = getattr(method, "__code__", None)
    if code is None:
        return  # of a built-in function or a partial one nothing is known
    own = code.co_argcount > 0 and code.co_varnames[0] == "self"
    first, second = (*code.co_varnames[own : code.co_argcount], "", "")[:2]
    if first in _STATES and second in _TIMES:
        raise TypeError(
            f"{name} takes ({first}, {second}) and is called as {call}, time first, unlike that of SciPy's odeint: "
            f"swap its arguments; if their names mislead, wrap it, lambda t, y: {call}"
        )


def refuse_keywords(door: Callable[..., Any], given: Mapping[str, Any], advice: Mapping[str, str]) -> None:
    """Refuse keyword arguments that a `door` does not have; `advice` says what to write instead of some.

    Raises:
        TypeError: there is one.
    """
    if not given:
        return
    name, parameters = next(iter(given)), inspect.signature(door).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
    close = closest(name, known)
    hint = f"did you mean {close}=?" if close else f"its arguments are {', '.join(known)}"
    raise TypeError(f"{door.__name__}() has no argument {name}=: {advice.get(name, hint)}")


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` is probably meant to be, whatever its case; None if none comes close."""
    names = {each.lower(): each for each in known}
    close = difflib.get_close_matches(name.lower(), names, n=1)
    return names[close[0]] if close else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The hint " Did you mean ...?" if a known name is close to `name`, else nothing."""
    close = closest(name, known)
    return "" if close is None else f" Did you mean {close!r}?"
