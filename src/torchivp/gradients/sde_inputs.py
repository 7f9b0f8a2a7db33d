"""What a solve of an SDE is differentiated with respect to: the state, `args` and parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchivp.generators import Generators
from torchivp.gradients.captured import LateLeaves, module_parameters, search
from torchivp.gradients.inputs import Inputs, Parameters, check_parameters, warn_of_computed
from torchivp.gradients.refusals import refuse_forward_mode, refuse_tracked
from torchivp.noise.along import PathNoise
from torchivp.sde_loop.integrate import SDEIntegration
from torchivp.torch_func import inside_transform, needs_gradient

_SUBJECT = "the SDE"
_REMEDY = (
    "Pass it to the SDE through args=(tensor,), or name it in adjoint_params=(tensor, ...) with all others that need a "
    "gradient, or use sdeint with gradient='direct'"
)
_LATE_REMEDY = (
    "pass it through args=(tensor,), make the SDE an nn.Module that holds it, name it in adjoint_params=(tensor,) of "
    "sdeint_adjoint, or use sdeint with gradient='direct'"
)


class SDEInputs(Inputs):
    """The tensors that a gradient flows to, and the integration restated on leaves in their places.

    What the solve starts from is the initial state, and the tensors of its carry if there are any.

    Attributes:
        integration: the integration as the user stated it.
        carried: the tensors of the carry.
    """

    def __init__(self, integration: SDEIntegration, parameters: Parameters) -> None:
        self.integration = integration
        self.carried: list[Tensor] = list(integration.carry or ())
        super().__init__([integration.y0, *self.carried], integration.terms.args, parameters)

    def on_leaves(self, y: Tensor, carry: Sequence[Tensor] | None) -> tuple[SDEIntegration, list[Tensor]]:
        """The integration started from `y` and `carry`, and the leaves that stand where `tensors` stood.

        The leaves are `y`, the tensors of `carry`, those of `args`, and the parameters, which the SDE holds.
        """
        y = y.detach().requires_grad_()
        carried = None if carry is None else tuple(x.detach().requires_grad_() for x in carry)
        args, others = self.args_on_leaves()
        restated = self.integration.restated(self.integration.terms.with_args(args), y, carried)
        return restated, [y, *(carried or ()), *others]


def find_sde_parameters(integration: SDEIntegration, named: Any, owner: Any) -> Parameters:
    """The parameters that a gradient is wanted for.

    Those `named` by the caller, or else those of the SDE if it is an nn.Module, and every leaf that drift and
    diffusion are found to use at the start. A tensor that was itself computed from others cannot be found in
    that way; if there is one and its gradient is lost, a warning says so.

    Raises:
        TypeError: `named` is not a sequence of tensors.
    """
    if not torch.is_grad_enabled():
        return Parameters()
    if named is not None:
        return Parameters(check_parameters("adjoint_params", named))

    def evaluate() -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        isolated, leaves = SDEInputs(integration, Parameters()).on_leaves(integration.y0, integration.carry)
        y = leaves[0]
        noise = torch.zeros(len(y), isolated.terms.channels, dtype=y.dtype, device=y.device)
        return isolated.terms.f_and_g_prod(isolated.time(isolated.steps.times(0, 0)[0]), y, noise), leaves

    tensors, computed = search([owner], evaluate, Generators(integration.y0.device))
    found = Parameters(tensors, LateLeaves(_SUBJECT, _LATE_REMEDY, computed))
    if SDEInputs(integration, found).needed:
        warn_of_computed(computed, _REMEDY, subject=_SUBJECT)
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
        ValueError: a transform of `torch.func` is at work, or the path requires a gradient, neither of which such a
            backward pass can follow.
    """
    _refuse_gradient_of_path(gradient, integration)
    if inside_transform():
        _refuse_inside_transform(gradient, integration, named, owner)
        return None
    inputs = SDEInputs(integration, find_sde_parameters(integration, named, owner))
    if not inputs.needed:
        return None
    refuse_forward_mode(gradient, "sdeint with gradient='direct'")
    return inputs


def _refuse_inside_transform(gradient: str, integration: SDEIntegration, named: Any, owner: Any) -> None:
    if not torch.is_grad_enabled():
        return
    parameters = check_parameters("adjoint_params", named or ())
    if isinstance(owner, nn.Module) and named is None:
        parameters = module_parameters(owner)
    refuse_tracked(gradient, SDEInputs(integration, Parameters(parameters)).tensors, "sdeint with gradient='direct'")


def _refuse_gradient_of_path(gradient: str, integration: SDEIntegration) -> None:
    """Refuse a user's path with a gradient of its own, told by its increment over the first step."""
    noise, steps = integration.noise, integration.steps
    if not (torch.is_grad_enabled() and isinstance(noise, PathNoise) and steps.count):
        return
    first = noise.between(*steps.times(0, 1))
    if any(needs_gradient(x) for x in (first.W, first.H, first.A) if x is not None):
        raise ValueError(
            f"bm carries a gradient, which {gradient} does not see: use sdeint with gradient='direct', or detach W and "
            "H"
        )
