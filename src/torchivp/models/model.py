"""What a model is: a right-hand side whose states and parameters have names, units and meanings."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn


class Model(nn.Module):
    """Base of the models that `torchivp.fit` estimates: `dy/dt = model(t, y)` with named states and parameters.

    A subclass lists its states, passes its parameters to `super().__init__` and defines `forward`:

        >>> class Decay(Model):
        ...     states = {"amount": "what is left"}
        ...     default_state = (1.0,)
        ...     rate: Tensor
        ...     def __init__(self, rate: float = 0.5):
        ...         super().__init__(rate=rate)
        ...     def forward(self, t, y):
        ...         return -self.rate * y
        >>> Decay()
        Decay(rate=0.5)

    Each parameter becomes a 0-d float64 `nn.Parameter` of that name. Further parameters, tensors and modules such as
    `nn.Linear`, are set as attributes, as in any `nn.Module`, and called like torch calls them, `net.0.weight`.

    Args:
        **parameters: the values of the parameters, in the order in which they are to be reported.

    Attributes:
        states: name and meaning of each state, in the order of the last dimension of `y`.
        default_state: an initial state, one number per state.
        meanings: what each parameter means; may leave parameters out.
        units: the unit of each parameter and state; those left out have none.
        positive: the names of parameters and states that are positive, and are therefore estimated on the log
            scale. None for all parameters that are single numbers and no state.

    Raises:
        TypeError: the class has no `states` or no `default_state`, or the first is no dict.
        ValueError: a parameter is not a finite number, a name is used twice or belongs to another attribute (such as
            `half` or `units`), or `default_state` does not fit.
    """

    states: ClassVar[dict[str, str]]
    default_state: ClassVar[tuple[float, ...]]
    meanings: ClassVar[dict[str, str]] = {}
    units: ClassVar[dict[str, str]] = {}
    positive: ClassVar[tuple[str, ...] | None] = None

    def __init__(self, **parameters: float):
        super().__init__()
        name = type(self).__name__
        states = getattr(self, "states", None)
        if not isinstance(states, Mapping) or not hasattr(self, "default_state"):
            names = [states] if isinstance(states, str) else states or ("x",)
            meanings = ", ".join(f'"{state}": "what {state} is"' for state in names)
            got = f"states = {states!r}" if states else "no states"
            raise TypeError(
                f"{name} must say which states it has and where they begin by default, got {got}: write "
                f"states = {{{meanings}}} and default_state = {(1.0,) * len(names)} in the class"
            )
        if len(self.default_state) != len(self.states):
            raise ValueError(
                f"{name}.default_state has {len(self.default_state)} numbers for {len(self.states)} states: "
                f"give one for each of {', '.join(self.states)}"
            )
        for parameter, value in parameters.items():
            if not math.isfinite(value):
                raise ValueError(f"{name}: the parameter {parameter} must be a finite number, got {value}")
            if parameter in self.states:
                raise ValueError(f"{name}: {parameter} is both a state and a parameter: rename one")
            self._check_name(parameter)
            self.register_parameter(parameter, nn.Parameter(torch.tensor(float(value), dtype=torch.float64)))

    def _check_name(self, parameter: str) -> None:
        """Check that an attribute can be called like the parameter."""
        name = type(self).__name__
        if not parameter.isidentifier():
            raise ValueError(f"{name}: a parameter becomes an attribute, so {parameter!r} must be a name of Python's")
        if hasattr(self, parameter):
            owners = (each for each in type(self).__mro__ if parameter in {*vars(each), *inspect.get_annotations(each)})
            owner = next(owners, nn.Module)
            what = f"{owner.__name__} has an attribute of that name"
            raise ValueError(f"{name}: no parameter can be called {parameter}, because {what}: rename it, {parameter}_")

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The derivative of the state.

        Args:
            t: the time, 0-d.
            y: the state, [..., n_states].

        Returns:
            dy/dt, shaped like `y`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward(t, y)")

    def is_positive(self, name: str) -> bool:
        """Whether the parameter or state `name` is positive, and so is estimated on the log scale."""
        if self.positive is None:
            return name not in self.states
        return name in self.positive

    def values(self) -> dict[str, float]:
        """The values of the parameters by name, of those that are single numbers."""
        return {name: parameter.item() for name, parameter in self.named_parameters() if not parameter.ndim}

    def initial_state(self) -> Tensor:
        """The default initial state, [n_states], float64."""
        return torch.tensor(self.default_state, dtype=torch.float64)

    def extra_repr(self) -> str:
        """The parameters, for `repr`."""
        return ", ".join(f"{name}={value:g}" for name, value in self.values().items())
