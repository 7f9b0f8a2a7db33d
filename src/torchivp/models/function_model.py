"""A model from a function of named states and parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from torchivp.models.described import DescribedModel, check_known, join_slopes

Slopes = Mapping[str, Any] | Sequence[Any] | Tensor
"""What a function of named states may return: derivatives by name, in the order of the states, or as one tensor."""


class Named:
    """Tensors by name: `y.prey` and `y["prey"]` are the same, and `prey, predator = y` are those in order.

    Args:
        what: what they are, for messages.
        values: the tensors.

    Raises:
        AttributeError: there is none of that name; `KeyError` from brackets.
    """

    def __init__(self, what: str, values: dict[str, Any]):
        self._what, self._values = what, values

    def __getattr__(self, name: str) -> Any:
        if name not in self._values:
            raise AttributeError(self._complaint(name))
        return self._values[name]

    def __getitem__(self, name: str) -> Any:
        if name not in self._values:
            raise KeyError(self._complaint(name))
        return self._values[name]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values.values())

    def _complaint(self, name: object) -> str:
        try:
            check_known(str(name), list(self._values), f"there is no {self._what} {name!r}")
        except ValueError as error:
            return str(error)
        return f"a {self._what} is found by its name, got {name!r}"


class FunctionModel(DescribedModel):
    """A model from a function of the time, named states and named parameters.

        >>> def predators(t, y, p):
        ...     return {
        ...         "prey": p.alpha * y.prey - p.beta * y.prey * y.predator,
        ...         "predator": p.delta * y.prey * y.predator - p.gamma * y.predator,
        ...     }
        >>> FunctionModel(
        ...     predators,
        ...     states={"prey": 30.0, "predator": 4.0},
        ...     parameters={"alpha": 0.5, "beta": 0.03, "gamma": 0.8, "delta": 0.02},
        ... )
        FunctionModel(predators, alpha=0.5, beta=0.03, gamma=0.8, delta=0.02)

    Args:
        func: called as `func(t, y, p)`, with the time, 0-d; the states, `y.prey` or `y["prey"]`, tensors [...] each;
            and the parameters, likewise. It computes with torch operations and returns the derivatives: a dict by the
            names of the states, a sequence in their order, or a tensor [..., n_states]. In a dict or a sequence numbers
            are allowed.
        states: the names of the states and an initial value of each; a list of names for initial values of 1.
        parameters: the names and the values of the parameters.
        positive: the names of the parameters and states that are positive, and are therefore estimated on the log
            scale. None for all parameters and no state.
        units: the unit of parameters and states; those left out have none.
        meanings: what parameters and states mean; may leave some out.

    Attributes:
        func: the function.

    Raises:
        TypeError: `func` is no function, or does not take three arguments.
        ValueError: a name is unknown, or as `Model` refuses it. When called: the function does not return a
            derivative for each state.
    """

    func: Callable[[Tensor, Any, Any], Slopes]

    def __init__(
        self,
        func: Callable[[Tensor, Any, Any], Slopes],
        states: Mapping[str, float] | Iterable[str],
        parameters: Mapping[str, float],
        *,
        positive: Iterable[str] | None = None,
        units: Mapping[str, str] | None = None,
        meanings: Mapping[str, str] | None = None,
    ):
        _check_function(func)
        initial = dict(states) if isinstance(states, Mapping) else dict.fromkeys(states, 1.0)
        if isinstance(states, str) or not initial:
            raise ValueError(f"states must be names of states with initial values, got {states!r}: {{'prey': 10.0}}")
        self.func = func
        meant = dict(meanings or {})
        super().__init__(
            {name: meant.pop(name, name) for name in initial},
            initial.values(),
            parameters,
            positive=positive,
            units=units,
            meanings=meant,
        )
        self._parameter_names = tuple(parameters)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        states = Named("state", dict(zip(self.states, self._parts(y), strict=True)))
        parameters = Named("parameter", {name: getattr(self, name) for name in self._parameter_names})
        slopes = self.func(t, states, parameters)
        if isinstance(slopes, Tensor):
            if slopes.shape != y.shape:
                self._refuse(f"a tensor of shape {list(slopes.shape)} for states of shape {list(y.shape)}")
            return slopes
        return join_slopes(y, [_as_tensor(each, y) for each in self._in_order(slopes)])

    def _in_order(self, slopes: Mapping[str, Any] | Sequence[Any]) -> list[Any]:
        """The derivatives in the order of the states."""
        if isinstance(slopes, Mapping):
            if slopes.keys() != self.states.keys():
                self._refuse(f"derivatives of {', '.join(map(str, slopes)) or 'no state'}")
            return [slopes[name] for name in self.states]
        if not isinstance(slopes, list | tuple):
            self._refuse(f"{type(slopes).__name__}")
        if len(slopes) != len(self.states):
            self._refuse(f"{len(slopes)} derivatives")
        return list(slopes)

    def _refuse(self, got: str) -> NoReturn:
        raise ValueError(
            f"{_name_of(self.func)} must return a derivative for each of {', '.join(self.states)}, in a dict by name, "
            f"in a list in their order or as a tensor shaped like the state; got {got}"
        )

    def extra_repr(self) -> str:
        return ", ".join([_name_of(self.func), *filter(None, [super().extra_repr()])])


def _name_of(func: Callable[..., Any]) -> str:
    return getattr(func, "__name__", type(func).__name__)


def _as_tensor(value: Any, y: Tensor) -> Tensor:
    return value if isinstance(value, Tensor) else torch.full((), value, dtype=y.dtype, device=y.device)


def _check_function(func: Any) -> None:
    """Refuse what cannot be called with time, states and parameters."""
    if not callable(func):
        raise TypeError(f"func must be a function func(t, y, p), got {type(func).__name__}")
    try:
        signature = inspect.signature(func)
    except ValueError:  # of a function that is not written in Python
        return
    try:
        signature.bind(None, None, None)
    except TypeError:
        raise TypeError(
            f"{_name_of(func)} is called as func(t, y, p), with time, states and parameters, but takes {signature}"
        ) from None
