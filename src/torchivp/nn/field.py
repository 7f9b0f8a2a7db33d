"""The field of a neural differential equation: whether it takes the time, and how often it is called."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from torchivp.nn.regularisers import Regulariser


@dataclass
class Evaluations:
    """How often the field of a layer was called since the last `reset`.

    Attributes:
        forward: calls in forward passes, those that look for parameters included.
        backward: calls in backward passes: none with `gradient="direct"`, where autograd goes through the calls of
            the forward pass.
    """

    forward: int = 0
    backward: int = 0

    def reset(self) -> None:
        """Count from zero again."""
        self.forward = self.backward = 0


def needs_time(name: str, field: Callable[..., Any], remedy: str) -> bool:
    """Whether a field is called as `field(t, y)`, and not as `field(y)`, by the arguments that it needs.

    Raises:
        TypeError: it is not callable, or its arguments do not tell; the sentence calls it `name` and ends on `remedy`.
    """
    if not callable(field):
        raise TypeError(f"{name} must be callable as {name}(t, y) or {name}(y), got {type(field).__name__}")
    inner: Any = field
    while isinstance(inner, nn.Module):
        # What torch.compile, DataParallel and DistributedDataParallel wrap takes what is wrapped takes.
        wraps = isinstance(inner, nn.DataParallel | nn.parallel.DistributedDataParallel)
        wrapped = inner.module if wraps else getattr(inner, "_orig_mod", None)
        inner = wrapped if isinstance(wrapped, nn.Module) else inner.forward
    try:
        parameters = inspect.signature(inner).parameters.values()
    except (TypeError, ValueError):  # no signature to look at
        parameters = ()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = sum(p.default is p.empty for p in positional)
    open_ended = any(p.kind == p.VAR_POSITIONAL for p in parameters)
    if needed in (1, 2) and not open_ended:
        return needed == 2
    takes = "takes any number of arguments" if open_ended or not parameters else f"needs {needed} arguments"
    raise TypeError(
        f"cannot tell whether {name} is called as {name}(t, y) or {name}(y): {type(field).__name__} {takes}; {remedy}"
    )


class Dynamics(nn.Module):
    """What the solver calls for one solve: the field, counted, and the integrands of the regularisers beside it.

    Args:
        field: the field.
        timed: whether it takes the time.
        nfe: where its calls are counted.
        regularisers: what is integrated along with the state.
        state_dims: the number of dimensions of the state of one sample.
        counted: whether calls are counted; if not, nothing is changed by a call, as kernels want it.
    """

    def __init__(
        self,
        field: Callable[..., Any],
        timed: bool,
        nfe: Evaluations,
        regularisers: Sequence[Regulariser],
        state_dims: int,
        counted: bool = True,
    ):
        super().__init__()
        self.field = field
        self._counted = counted
        self._timed = timed
        self._nfe = nfe
        self.regularisers = regularisers
        self._state_dims = state_dims
        if getattr(field, "_is_replica", False):
            # A copy made by nn.DataParallel lists its parameters in another place, and so must what holds it.
            self._is_replica, self._former_parameters = True, {}
        self.solved = False
        """Whether the forward pass is over, so that further calls belong to the backward pass."""

    def forward(self, t: Tensor, state: Any, extra: Mapping[str, Any] = MappingProxyType({})) -> Any:
        """The derivative; `extra` holds what differs from sample to sample: shifts of time, and noise."""
        if self._counted:
            self._count()
        if "shift" in extra:
            t = t + extra["shift"]
        if not self.regularisers:
            return self._derivative(t, state)
        return self._with_integrands(t, state[0], extra["noise"])

    def _count(self) -> None:
        if self.solved:
            self._nfe.backward += 1
        else:
            self._nfe.forward += 1

    def _derivative(self, t: Tensor, y: Any) -> Any:
        return self.field(t, y) if self._timed else self.field(y)

    def _with_integrands(self, t: Tensor, y: Tensor, noise: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        differentiated = torch.is_grad_enabled()
        with torch.enable_grad():  # some integrands are derivatives by the state
            if not y.requires_grad:
                y = y.detach().requires_grad_()
            dy = self._derivative(t, y)
            integrands = [each.integrand(y, dy, noise.get(each.name), differentiated) for each in self.regularisers]
        dims = tuple(range(-self._state_dims, 0))
        sums = [integrand.sum(dims, keepdim=True) if dims else integrand for integrand in integrands]
        derivative = (dy, *sums)
        return derivative if differentiated else tuple(part.detach() for part in derivative)
