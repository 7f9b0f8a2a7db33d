"""A model from any module, whose states are given names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from torchivp.models.described import check_known
from torchivp.models.model import Model


class ModuleModel(Model):
    """A model from an `nn.Module` that returns dy/dt from time and state, with its parameters under their names.

        >>> class Field(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = nn.Linear(2, 2)
        ...     def forward(self, t, y):
        ...         return self.net(y)
        >>> model = ModuleModel(Field(), states={"prey": 30.0, "predator": 4.0})
        >>> [name for name, _ in model.named_parameters()]
        ['net.weight', 'net.bias']

    Args:
        module: called as `module(t, y)` with the time, 0-d, and the state, [..., n_states]; its parameters are those of
            the model, the same tensors.
        states: the names of the states and an initial value of each; a list of names for initial values of 1.
        positive: the names of the parameters and states that are positive, and are therefore estimated on the log
            scale. None for all parameters that are single numbers and no state.
        units: the unit of parameters and states; those left out have none.
        meanings: what parameters and states mean; may leave some out.

    Attributes:
        module: the module.

    Raises:
        TypeError: `module` is no `nn.Module`.
        ValueError: a name is unknown, or a state is called like a parameter.
    """

    module: nn.Module

    def __init__(
        self,
        module: nn.Module,
        states: Mapping[str, float] | Iterable[str],
        *,
        positive: Iterable[str] | None = None,
        units: Mapping[str, str] | None = None,
        meanings: Mapping[str, str] | None = None,
    ):
        if not isinstance(module, nn.Module):
            raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
        initial = dict(states) if isinstance(states, Mapping) else dict.fromkeys(states, 1.0)
        if isinstance(states, str) or not initial:
            raise ValueError(f"states must be names of states with initial values, got {states!r}: {{'prey': 10.0}}")
        names = [name for name, _ in module.named_parameters()]
        if both := sorted(set(names) & set(initial)):
            raise ValueError(f"{both[0]} is both a state and a parameter: rename one")
        meant = dict(meanings or {})
        said = {"positive": positive or (), "units": units or (), "meanings": meant}
        for what, given in said.items():
            for name in given:
                check_known(name, [*initial, *names], f"{what} names {name!r}, which is no state or parameter")
        vars(self).update(  # class attributes of other models
            states={name: meant.pop(name, name) for name in initial},
            default_state=tuple(float(value) for value in initial.values()),
            units=dict(units or {}),
            meanings=meant,
            positive=None if positive is None else tuple(positive),
        )
        super().__init__()
        # Both have the same tables of what they hold, so that what is put into one, in copies too, is in the other.
        vars(self).update(
            _parameters=module._parameters, _buffers=module._buffers, _modules=module._modules, module=module
        )

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """What the module returns."""
        return self.module(t, y)

    def extra_repr(self) -> str:
        return ", ".join([type(self.module).__name__, *filter(None, [super().extra_repr()])])


def as_model(given: Any) -> Model:
    """The model that is given, or one of a module with an attribute `states`.

    Raises:
        TypeError: it is neither; the message shows how to make one.
    """
    if isinstance(given, Model):
        return given
    if isinstance(given, nn.Module):
        states = getattr(given, "states", None)
        if isinstance(states, Mapping | list | tuple):
            return ModuleModel(given, states, positive=getattr(given, "positive", None))
        raise TypeError(
            f"{type(given).__name__} does not name its states: torchivp.models.ModuleModel(module, "
            "states={'prey': 30.0, 'predator': 4.0})"
        )
    raise TypeError(f"model must be a torchivp.models.Model, got {type(given).__name__}")
