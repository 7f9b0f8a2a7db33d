"""What keeps a learned field easy to solve: integrals along the trajectory that a loss can punish."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from torchivp.checks import check_positive


class Regulariser(Protocol):
    """An integral along the trajectory of each sample.

    Attributes:
        name: what it is called in `NeuralODE.integrals`.
        weight: what it is multiplied with in the penalty.
    """

    @property
    def name(self) -> str:
        """The key in `NeuralODE.integrals`."""
        ...

    @property
    def weight(self) -> float:
        """The factor in the penalty."""
        ...

    def noise(self, y0: Tensor) -> Tensor | None:
        """What is drawn at the start of a solve and kept to its end, in the shape of the state; None for nothing."""

    def integrand(self, y: Tensor, dy: Tensor, noise: Tensor | None, differentiated: bool) -> Tensor:
        """The integrand before it is summed over the state, in the shape of the state.

        Args:
            y: the state, which requires a gradient.
            dy: the field at `y`, computed from it.
            noise: what `noise` returned.
            differentiated: whether the integral will be differentiated.
        """
        ...


@dataclass(frozen=True)
class KineticEnergy:
    """The integral of `|field|^2` over time, summed over the state: straight and slow trajectories have little of it.

    Source: Finlay et al., "How to train your neural ODE: the world of Jacobian and kinetic regularization" (2020).

    Args:
        weight: what its mean over the samples is multiplied with in the penalty.
    """

    weight: float = 0.01
    name = "kinetic_energy"

    def __post_init__(self) -> None:
        check_positive("weight", self.weight)

    def noise(self, y0: Tensor) -> Tensor | None:
        return None

    def integrand(self, y: Tensor, dy: Tensor, noise: Tensor | None, differentiated: bool) -> Tensor:
        return dy.to(y.dtype).square()


@dataclass(frozen=True)
class JacobianNorm:
    """The integral of `|d field/d y|_F^2`, the squared Frobenius norm of the Jacobian, over time.

    It is estimated without bias by Hutchinson's way: the square of `e^T d field/d y` for one vector `e` of random signs
    that is drawn for every solve. Each evaluation costs one vector-Jacobian product.

    Source: Finlay et al., "How to train your neural ODE: the world of Jacobian and kinetic regularization" (2020).

    Args:
        weight: what its mean over the samples is multiplied with in the penalty.
    """

    weight: float = 0.01
    name = "jacobian_norm"

    def __post_init__(self) -> None:
        check_positive("weight", self.weight)

    def noise(self, y0: Tensor) -> Tensor | None:
        return torch.randint_like(y0, 0, 2) * 2 - 1

    def integrand(self, y: Tensor, dy: Tensor, noise: Tensor | None, differentiated: bool) -> Tensor:
        assert noise is not None
        if not dy.requires_grad:
            return torch.zeros_like(y)
        (product,) = torch.autograd.grad(
            dy, y, noise.to(dy.dtype), retain_graph=True, create_graph=differentiated, materialize_grads=True
        )
        return product.square()
