"""The boundary of the user's functions: in which context they run, and what they may do to what they are given.

Everything that torchivp computes is computed in the state's own precision, whatever the caller's context says; a
function of the user's runs in the caller's context, in the forward solve and wherever its steps are taken again.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._C._dynamo.eval_frame import get_eval_frame_callback  # pyright: ignore[reportMissingModuleSource]
from torch.amp.autocast_mode import autocast, is_autocast_available

from torchivp.split import Split
from torchivp.torch_func import inside_transform, version

_P = ParamSpec("_P")
_R = TypeVar("_R")

_WITH_AUTOCAST = tuple(kind for kind in ("cpu", "cuda", "xpu", "mps") if is_autocast_available(kind))
"""The kinds of devices whose operations `torch.autocast` may run in another precision."""

_NOT_THE_USERS = (*(str(Path(file).parent) + os.sep for file in (__file__, torch.__file__)), contextlib.__file__)
"""Where the code lies that stands between a user's line and the place where something is noticed."""

_VERSION: Callable[[Tensor], int] = attrgetter("_version")

_NOT_EXPORTED = (
    "torch.export cannot follow a solve, whose steps depend on the values of the state: export func by itself, and "
    "solve with what it becomes, or write out the steps that you need"
)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line of the user's program that called torchivp, however deep within it this is noticed."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_NOT_THE_USERS):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


class _Caller(threading.local):
    """What the caller of the door that this thread is in had switched on.

    Attributes:
        autocast: for each kind of device on which operations are cast, its name and the precision; empty outside of
            doors, and in the user's functions, which are the callers of the doors that they go through.
    """

    autocast: tuple[tuple[str, torch.dtype], ...] = ()


_caller = _Caller()


def door(solve: Callable[_P, _R]) -> Callable[_P, _R]:
    """Make a function of the library's one through which users come in.

    Within it nothing is cast by `torch.autocast`; functions wrapped in a `UserFunction` run as the caller has it.
    `torch.compile` leaves it out of its graphs, since it would unroll the loop of the steps, and compile anew for each
    number of them; a compiled func runs compiled.
    """

    @functools.wraps(solve)
    def entered(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if torch.compiler.is_exporting():
            raise RuntimeError(_NOT_EXPORTED)
        active = _active_autocast()
        if not active:
            return solve(*args, **kwargs)
        with _plain(active), _called_with(active):
            return solve(*args, **kwargs)

    @functools.wraps(solve)
    def outside_of_graphs(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if not (torch.compiler.is_compiling() or _may_be_compiled()):
            return entered(*args, **kwargs)
        if not disabled:
            disabled.append(torch.compiler.disable(entered, reason=_NOT_EXPORTED))
        return disabled[0](*args, **kwargs)

    disabled: list[Any] = []
    return outside_of_graphs


def _may_be_compiled() -> bool:
    """Whether Dynamo looks at what this thread calls. It is not imported to find out, which takes seconds."""
    dynamo = sys.modules.get("torch._dynamo")
    return dynamo is not None and get_eval_frame_callback() is not None


def own_precision(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Make a backward pass, or whatever else runs after the door was left, compute in the state's own precision.

    Functions of the user's that it calls run as their caller had it.
    """

    @functools.wraps(function)
    def entered(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with _plain(_active_autocast()):
            return function(*args, **kwargs)

    return entered


def _active_autocast() -> tuple[tuple[str, torch.dtype], ...]:
    if not torch._C._is_any_autocast_enabled():
        return ()
    return tuple((kind, torch.get_autocast_dtype(kind)) for kind in _WITH_AUTOCAST if torch.is_autocast_enabled(kind))


def caller_casts() -> bool:
    """Whether functions of the user's run under `torch.autocast`."""
    return bool(_caller.autocast)


@contextmanager
def _called_with(active: tuple[tuple[str, torch.dtype], ...]) -> Iterator[None]:
    around, _caller.autocast = _caller.autocast, active
    try:
        yield
    finally:
        _caller.autocast = around


@contextmanager
def _plain(active: tuple[tuple[str, torch.dtype], ...]) -> Iterator[None]:
    with ExitStack() as stack:
        for kind, _ in active:
            stack.enter_context(autocast(kind, enabled=False))
        yield


class UserFunction:
    """A function of time, state and more that the user gave.

    It runs in the caller's precision. It gets a time of its own to write into, if it does that; if it writes into the
    state, which belongs to the solve, this is noticed and refused.

    Args:
        function: called as `function(t, y, *further)`.
        name: what it is called in messages.
        owns_state: whether the state is a copy, for the function to write into.
    """

    def __init__(self, function: Callable[..., Any], name: str = "func", owns_state: bool = False) -> None:
        self.function = function
        self.name = name
        self._owns_state = owns_state
        self._autocast = _caller.autocast
        self._call = self.in_context if self._autocast else function
        self._leaves_time: bool | None = None

    def calling(self, function: Callable[..., Any]) -> UserFunction:
        """The same, of another function, for the same caller."""
        other = UserFunction(function, self.name, self._owns_state)
        other._autocast = self._autocast
        other._call = other.in_context if self._autocast else function
        return other

    @functools.cached_property
    def summands(self) -> tuple[UserFunction, UserFunction] | None:
        """Those whose sum it is, the explicit and the implicit one; None if it is no such sum."""
        function = self.function
        if not isinstance(function, Split):
            return None
        return self.calling(function.explicit), self.calling(function.implicit)

    def __call__(self, t: Tensor, y: Tensor, shape: Callable[[Tensor], Any], *further: Any) -> Any:
        """The value of the function at `t` and `shape(y)`, which is, or is made of, views of `y`.

        Raises:
            ValueError: the function changed the state in place, or the time, which it left alone when it was first
                called.
        """
        if not isinstance(t, Tensor):  # a number, where one who uses the stand-ins' classes calls them so
            return self._call(t, shape(y), *further)
        # The time of one evaluation is also that of others. Whether the function writes into it shows at the first
        # call; a copy for every call would cost what a whole operation does.
        if not self._leaves_time:
            t = t.clone()
        writes = version if inside_transform() else _VERSION
        try:
            before = writes(t), t.requires_grad, writes(y)
        except RuntimeError:  # inference tensors do not tell
            return self.in_context(t.clone(), shape(y.clone()), *further)
        # Nor do NumPy's arrays and `.data` tell; what writes through them does so at the first call too.
        kept = (
            y.detach().clone() if self._leaves_time is None and not (self._owns_state or inside_transform()) else None
        )
        try:
            value = self._call(t, shape(y), *further)
        except RuntimeError as error:  # from autograd, if it watches the state
            if y.requires_grad and "leaf Variable that requires grad is being used in an in-place" in str(error):
                raise self._changed_state() from error
            raise
        if kept is not None and not torch.allclose(kept, y.detach(), rtol=0.0, atol=0.0, equal_nan=True):
            raise self._changed_state()
        after = writes(t), t.requires_grad, writes(y)
        if after != before or self._leaves_time is None:
            self._check_changes(before, after)
        return value

    def _check_changes(self, before: tuple[int, bool, int], after: tuple[int, bool, int]) -> None:
        """Refuse what a call changed, or remember that it did not: the time, whether that is tracked, and the state."""
        if after[2] != before[2] and not self._owns_state:
            raise self._changed_state()
        leaves_time = after[:2] == before[:2]
        if self._leaves_time and not leaves_time:
            raise ValueError(
                f"{self.name}(t, y) changes t in place, and did not when it was first called: write t = t / 60 in "
                "place of t /= 60, or begin with t = t.clone()"
            )
        self._leaves_time = leaves_time and self._leaves_time is not False

    def _changed_state(self) -> ValueError:
        return ValueError(
            f"{self.name}(t, y) changes y in place, but y is the state of the solve: write y = y + 1 in place of "
            "y += 1, or begin with y = y.clone()"
        )

    def in_context(self, *arguments: Any) -> Any:
        """Call the function with these arguments as they are, in the caller's precision."""
        if not self._autocast:
            return self.function(*arguments)
        # Where autograd watches, casts are not kept between calls: a cast that several evaluations share would add up
        # their gradients in low precision.
        kept = torch.is_autocast_cache_enabled() and not torch.is_grad_enabled()
        with ExitStack() as stack:
            stack.enter_context(_called_with(()))
            for kind, dtype in self._autocast:
                stack.enter_context(autocast(kind, dtype=dtype, cache_enabled=kept))
            return self.function(*arguments)
