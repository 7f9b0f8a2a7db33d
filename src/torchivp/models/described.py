"""Models whose states and parameters are known when they are made, not when their class is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from torchivp.checks import did_you_mean
from torchivp.models.model import Model


class DescribedModel(Model):
    """Base of the models that are told their states and parameters.

    Args:
        states: name and meaning of each state.
        default_state: an initial state, one number per state.
        parameters: name and value of each parameter.
        positive: the names of what is positive; None for all parameters and no state.
        units: the unit of parameters and states; those left out have none.
        meanings: what parameters mean; may leave some out.
        defined: the names of other quantities, which may have units and meanings too.

    Raises:
        ValueError: a name is unknown, or as `Model` refuses it.
    """

    def __init__(
        self,
        states: Mapping[str, str],
        default_state: Iterable[float],
        parameters: Mapping[str, float],
        *,
        positive: Iterable[str] | None = None,
        units: Mapping[str, str] | None = None,
        meanings: Mapping[str, str] | None = None,
        defined: Iterable[str] = (),
    ):
        units, meanings = dict(units or {}), dict(meanings or {})
        if isinstance(positive, str):
            raise TypeError(f"positive must be a list of names, got {positive!r}: write positive=[{positive!r}]")
        for what, names in {"positive": positive or (), "units": units, "meanings": meanings}.items():
            known = [*states, *parameters, *(defined if what != "positive" else ())]
            for name in names:
                check_known(name, known, f"{what} names {name!r}, which is no state or parameter")
        vars(self).update(  # class attributes of other models
            states=dict(states),
            default_state=tuple(float(value) for value in default_state),
            units=units,
            meanings=meanings,
            positive=None if positive is None else tuple(positive),
        )
        super().__init__(**parameters)

    def _parts(self, y: Tensor) -> tuple[Tensor, ...]:
        """The states one by one, [...] each."""
        if y.shape[-1] != len(self.states):
            names = ", ".join(self.states)
            raise ValueError(f"a state must be [..., {len(self.states)}], which are {names}; got {list(y.shape)}")
        return y.unbind(-1)


def check_known(name: str, known: Sequence[str], complaint: str) -> None:
    """Refuse an unknown name.

    Args:
        name: the name.
        known: the names there are.
        complaint: what is wrong if it is none of them.

    Raises:
        ValueError: it is none of them; the message says which come close, and which there are.
    """
    if name not in known:
        raise ValueError(f"{complaint}.{did_you_mean(name, known)} There are {', '.join(known) or 'none'}")


def join_slopes(y: Tensor, slopes: Sequence[Tensor]) -> Tensor:
    """The derivatives of the states, [...] or less each, as one tensor [..., n_states]."""
    if any(slope.shape != slopes[0].shape for slope in slopes) or slopes[0].ndim < y.ndim - 1:
        slopes = torch.broadcast_tensors(*slopes, y[..., 0])[:-1]
    return torch.stack(tuple(slopes), -1)
