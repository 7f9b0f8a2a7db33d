"""The classes that an SDE derives from, and those that give one further methods or other names."""

from __future__ import annotations

import abc
from typing import Any

import torch
from torch import Tensor

from torchivp.compat.torchsde.settings import NOISE_TYPES, SDE_TYPES
from torchivp.sde import base
from torchivp.sde.functions import ROLES, UserFunctions, UserTerms
from torchivp.sde.kl import WithDivergence
from torchivp.sde.terms import Terms
from torchivp.state import StateLayout


class BaseSDE(base.BaseSDE, abc.ABC):
    """An SDE as a module: derive from it and define the drift `f(t, y)` and the diffusion `g(t, y)`.

    Args:
        noise_type: "diagonal", "scalar", "additive" or "general".
        sde_type: "ito" or "stratonovich".

    Raises:
        ValueError: there is no such type.
    """

    def __init__(self, noise_type: str, sde_type: str) -> None:
        check_types(noise_type, sde_type)
        super().__init__(noise_type, sde_type)


class SDEIto(BaseSDE):
    """A `BaseSDE` in Itô's calculus."""

    def __init__(self, noise_type: str) -> None:
        super().__init__(noise_type, SDE_TYPES.ito)


class SDEStratonovich(BaseSDE):
    """A `BaseSDE` in Stratonovich's calculus."""

    def __init__(self, noise_type: str) -> None:
        super().__init__(noise_type, SDE_TYPES.stratonovich)


def check_types(noise_type: Any, sde_type: Any) -> None:
    """Check the types of an SDE.

    Raises:
        ValueError: there is no such type.
    """
    if noise_type not in NOISE_TYPES:
        raise ValueError(f"noise_type must be one of {NOISE_TYPES}, got {noise_type!r}")
    base.check_sde_type(sde_type)


def terms_of(sde: Any, y: Tensor, channels: int) -> UserTerms:
    """The drift and diffusion of an SDE with the usual names, for states like `y` [batch, d]."""
    return UserTerms(UserFunctions.of(sde, None), StateLayout(y, 1), (), channels)


class ForwardSDE(BaseSDE):
    """An SDE with all of the methods that methods of integration call, made from those that it has.

    Args:
        sde: has `f` and `g`, `f_and_g`, `g_prod` or `f_and_g_prod`.
        fast_dg_ga_jvp_column_sum: of no effect.
    """

    def __init__(self, sde: Any, fast_dg_ga_jvp_column_sum: bool = False) -> None:
        super().__init__(noise_type=sde.noise_type, sde_type=sde.sde_type)
        self._base_sde = sde
        self._terms: tuple[Any, UserTerms] | None = None

    def f(self, t: Any, y: Tensor) -> Tensor:
        """The drift."""
        return self._for(y).f(t, y)

    def g(self, t: Any, y: Tensor) -> Tensor:
        """The diffusion."""
        return self._for(y).g(t, y)

    def f_and_g(self, t: Any, y: Tensor) -> tuple[Tensor, Tensor]:
        """Both."""
        return self._for(y).f_and_g(t, y)

    def prod(self, g: Tensor, v: Tensor) -> Tensor:
        """A value of the diffusion times `v`."""
        return g * v if self.noise_type == NOISE_TYPES.diagonal else torch.bmm(g, v.unsqueeze(2)).squeeze(2)

    def g_prod(self, t: Any, y: Tensor, v: Tensor) -> Tensor:
        """The diffusion times `v`."""
        return self._for(y, v).g_prod(t, y, v)

    def f_and_g_prod(self, t: Any, y: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The drift, and the diffusion times `v`."""
        return self._for(y, v).f_and_g_prod(t, y, v)

    def g_prod_and_gdg_prod(self, t: Any, y: Tensor, v1: Tensor, v2: Tensor) -> tuple[Tensor, Tensor | float]:
        """The diffusion times `v1`, and the sum over the noises l of (∂g_l/∂y) g_l v2_l."""
        terms = self._for(y, v1)
        if self.noise_type == NOISE_TYPES.additive:
            return terms.g_prod(t, y, v1), 0.0
        weights = v2 if terms.diagonal else v2.unsqueeze(1)
        g, slope = terms.g_and_derivative(t, y, lambda g: g * weights)
        return terms.prod(g, v1), slope

    def dg_ga_jvp_column_sum(self, t: Any, y: Tensor, a: Tensor) -> Tensor | float:
        """The sum over the noises l of (∂g_l/∂y) (g a)_l, for noise of type "general"; zero for other noise."""
        if self.noise_type != NOISE_TYPES.general:
            return 0.0
        return self._for(y).g_and_derivative(t, y, lambda g: torch.bmm(g, a))[1]

    def _for(self, y: Tensor, v: Tensor | None = None) -> UserTerms:
        channels = 0 if v is None else v.shape[-1]
        key = (y.shape, y.dtype, y.device, channels)
        if self._terms is None or self._terms[0] != key:
            self._terms = key, terms_of(self._base_sde, y, channels)
        return self._terms[1]


class RenameMethodsSDE(BaseSDE):
    """An SDE under the usual names whose methods have others."""

    def __init__(
        self,
        sde: Any,
        drift: str = "f",
        diffusion: str = "g",
        prior_drift: str = "h",
        diffusion_prod: str = "g_prod",
        drift_and_diffusion: str = "f_and_g",
        drift_and_diffusion_prod: str = "f_and_g_prod",
    ) -> None:
        super().__init__(noise_type=sde.noise_type, sde_type=sde.sde_type)
        self._base_sde = sde
        given = (drift, diffusion, prior_drift, diffusion_prod, drift_and_diffusion, drift_and_diffusion_prod)
        for name, its_name in zip(ROLES.values(), given, strict=True):
            if hasattr(sde, its_name):
                setattr(self, name, getattr(sde, its_name))


class SDELogqp(BaseSDE):
    """An SDE with one more element of the state, which integrates |u|² / 2 where g u = f - h for the prior drift h.

    Args:
        sde: has `h`, besides drift and diffusion.

    Raises:
        AttributeError: it has no `h`.
    """

    def __init__(self, sde: Any) -> None:
        super().__init__(noise_type=sde.noise_type, sde_type=sde.sde_type)
        check_prior(sde, "h")
        self._base_sde = sde

    def f(self, t: Any, y: Tensor) -> Tensor:
        """The drift."""
        return self._extended(y).f(t, y)

    def g(self, t: Any, y: Tensor) -> Tensor:
        """The diffusion, zero for the element of the integral."""
        return self._extended(y).g(t, y)

    def f_and_g(self, t: Any, y: Tensor) -> tuple[Tensor, Tensor]:
        """Both."""
        return self._extended(y).f_and_g(t, y)

    def _extended(self, y: Tensor) -> Terms:
        return WithDivergence(terms_of(self._base_sde, y[:, :-1], 0))


def check_prior(sde: Any, name: str) -> None:
    """Check that an SDE has a prior drift.

    Raises:
        AttributeError: it has none.
    """
    if not hasattr(sde, name):
        raise AttributeError(
            f"logqp=True needs the prior drift, and {type(sde).__name__} has no attribute {name!r}: define h(t, y), or "
            "name it, names={'prior_drift': ...}"
        )
