"""What a solve of an SDE is differentiated with respect to: the state, `args` and parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from torchivp.gradients.inputs import check_parameters, module_parameters, now, other_leaves, warn_of_computed
from torchivp.sde_loop.integrate import SDEIntegration
from torchivp.torch_func import inside_transform, needs_gradient

_REMEDY = (
    "Pass it to the SDE through args=(tensor,), or name it in adjoint_params=(tensor, ...) with all others that need a "
    "gradient, or use sdeint with gradient='direct'"
)


class SDEInputs:
    """The tensors that a gradient flows to, and the integration restated on leaves in their places.

    Attributes:
        integration: the integration as the user stated it.
        complete: whether the caller named the parameters; if they were found, later steps may use others.
        tensors: the initial state, then the tensors of its carry if there are any, then the tensors of `args` that
            require a gradient, then the parameters.
    """

    def __init__(self, integration: SDEIntegration, parameters: Sequence[Tensor], complete: bool) -> None:
        self.integration = integration
        self.complete = complete
        self.parameters = list(parameters)
        self._args, self._args_spec = pytree.tree_flatten(integration.terms.args)
        self._moving = [i for i, x in enumerate(self._args) if isinstance(x, Tensor) and x.requires_grad]
        self.carried = list(integration.carry or ())
        moving = [self._args[i] for i in self._moving]
        self.tensors: list[Tensor] = [integration.y0, *self.carried, *moving, *self.parameters]

    @property
    def needed(self) -> bool:
        """Whether there is a gradient to compute."""
        return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in self.tensors)

    def on_leaves(self, y: Tensor, carry: Sequence[Tensor] | None) -> tuple[SDEIntegration, list[Tensor]]:
        """The integration started from `y` and `carry`, and the leaves that stand where `tensors` stood.

        The leaves are `y`, the tensors of `carry`, those of `args`, and the parameters, which the SDE holds.
        """
        y = y.detach().requires_grad_()
        carried = None if carry is None else tuple(x.detach().requires_grad_() for x in carry)
        args = list(self._args)
        for i in self._moving:
            args[i] = args[i].detach().requires_grad_()
        terms = self.integration.terms.with_args(pytree.tree_unflatten(args, self._args_spec))
        leaves = [y, *(carried or ()), *(args[i] for i in self._moving), *self.parameters]
        return self.integration.restated(terms, y, carried), leaves


def find_sde_parameters(integration: SDEIntegration, named: Any, owner: Any) -> list[Tensor]:
    """The parameters that a gradient is wanted for.

    Those `named` by the caller, or else those of the SDE if it is an nn.Module, and every leaf that one evaluation of
    drift and diffusion at the start is found to use. A tensor that was itself computed from others cannot be found in
    that way; if there is one and its gradient is lost, a warning says so.

    Raises:
        TypeError: `named` is not a sequence of tensors.
    """
    if not torch.is_grad_enabled():
        return []
    if named is not None:
        return check_parameters("adjoint_params", named)
    found = [p for p in module_parameters(owner) if p.requires_grad] if isinstance(owner, nn.Module) else []
    isolated, leaves = SDEInputs(integration, (), True).on_leaves(integration.y0, integration.carry)
    with torch.enable_grad():
        oldest = now()
        t0 = isolated.time(isolated.steps.times(0, 0)[0])
        noise = torch.zeros(len(leaves[0]), isolated.terms.channels, dtype=leaves[0].dtype, device=leaves[0].device)
        values = isolated.terms.f_and_g_prod(t0, leaves[0], noise)
    captured, computed = other_leaves(list(values), oldest, [*leaves, *found])
    found += captured
    if SDEInputs(integration, found, False).needed:
        warn_of_computed(computed, _REMEDY, stacklevel=7)
    return found


def find_sde_inputs(gradient: str, integration: SDEIntegration, named: Any, owner: Any) -> SDEInputs | None:
    """What a gradient with a backward pass of its own has to compute; None if that is nothing.

    Args:
        gradient: what the user calls this gradient.
        integration: the solve.
        named: the parameters that the user named, or None.
        owner: the user's SDE.

    Raises:
        TypeError: `named` is not a sequence of tensors.
        ValueError: a transform of `torch.func` is at work, which no such backward pass can follow.
    """
    if inside_transform():
        _refuse_inside_transform(gradient, integration, named, owner)
        return None
    found = find_sde_parameters(integration, named, owner)
    inputs = SDEInputs(integration, found, complete=named is not None)
    return inputs if inputs.needed else None


def refuse_unknown_sde_leaves(values: Sequence[Tensor], oldest: int, known: Sequence[Tensor]) -> None:
    """Look for leaves that `values` were computed from since `oldest`, but that are not `known`.

    Raises:
        RuntimeError: there is one; its gradient would silently be missing.
    """
    for leaf in other_leaves(values, oldest, known)[0]:
        raise RuntimeError(
            f"the SDE uses a tensor of shape {tuple(leaf.shape)} that requires a gradient, but did not use it at the "
            "start of the solve, where this gradient mode looks for what it must differentiate: pass it through "
            "args=(tensor,), make the SDE an nn.Module that holds it, name it in adjoint_params=(tensor,) of "
            "sdeint_adjoint, or use sdeint with gradient='direct'"
        )


def _refuse_inside_transform(gradient: str, integration: SDEIntegration, named: Any, owner: Any) -> None:
    if not torch.is_grad_enabled():
        return
    parameters = check_parameters("adjoint_params", named or ())
    if isinstance(owner, nn.Module) and named is None:
        parameters = module_parameters(owner)
    if any(map(needs_gradient, SDEInputs(integration, parameters, True).tensors)):
        raise ValueError(
            f"{gradient} does not work inside torch.func transforms such as vmap or grad: use sdeint with "
            "gradient='direct', or solve within torch.no_grad()"
        )
