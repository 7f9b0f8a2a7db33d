"""The divergence of an SDE from a prior with the same diffusion, as one more element of the state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchivp.boundary import caller_casts, warn
from torchivp.sde.functions import UserTerms
from torchivp.sde.terms import Terms
from torchivp.torch_func import inside_transform

_SMALLEST = 1e-7
"""A diagonal diffusion closer to zero than this is replaced by it, with its sign."""


class WithDivergence(Terms):
    """An SDE with drift f, its state extended by the integral of |u|² / 2, where g u = f - h for the prior drift h.

    Its expectation is the Kullback-Leibler divergence of the law of the paths from that of the prior's, by Girsanov's
    theorem (Li, Wong, Chen, Duvenaud, "Scalable gradients for stochastic differential equations", AISTATS (2020),
    section 5). A diffusion that is not diagonal is inverted by its pseudoinverse.
    """

    together = True

    def __init__(self, posterior: UserTerms) -> None:
        self._posterior = posterior
        self.sde_type, self.noise_type = posterior.sde_type, posterior.noise_type
        self.size = posterior.size + 1
        self.args = posterior.args
        self.channels = posterior.channels + 1 if posterior.diagonal else posterior.channels

    def with_args(self, args: Sequence[Any]) -> WithDivergence:
        return WithDivergence(self._posterior.with_args(args))

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return self.f_and_g(t, y)[0]

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return _with_zero(self._posterior.g(t, y[:, :-1]))

    def f_and_g(self, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        state = y[:, :-1]
        f, g = self._posterior.f_and_g(t, state)
        difference = f - self._posterior.h(t, state)
        if g.ndim == 2:
            sign = torch.where(g < 0, -1.0, 1.0) if not g.is_complex() else 1.0
            u = difference / torch.where(g.abs() < _SMALLEST, sign * torch.full_like(g, _SMALLEST), g)
        else:
            u = torch.bmm(torch.linalg.pinv(g), difference.unsqueeze(2)).squeeze(2)
        density = 0.5 * (u * u.conj()).sum(1, keepdim=True)
        return torch.cat([f, density.to(f.dtype)], dim=1), _with_zero(g)

    def warn_if_infinite(self, t: Tensor, y: Tensor) -> None:
        """Warn if no u solves g u = f - h at a state: no noise drives the paths from one law to the other then."""
        if self.diagonal or inside_transform() or caller_casts() or not y.numel():
            return
        (f, g), h = self._posterior.f_and_g(t, y), self._posterior.h(t, y)
        difference = (f - h).unsqueeze(2)
        left = difference - torch.bmm(g, torch.bmm(torch.linalg.pinv(g), difference))
        eps, sizes = torch.finfo(f.dtype).eps, torch.maximum(f.abs(), h.abs())
        # What rounding leaves of two that are nearly the same is no difference.
        if left.abs().amax() > eps**0.5 * difference.abs().amax() + 64.0 * eps * sizes.amax():
            warn(
                "logqp: the difference of the drifts, f - h, has a part that no noise drives (g u = f - h has no "
                "solution u), so that the divergence from the prior is infinite; what is returned leaves this part "
                "out. Let f and h differ within the range of g alone"
            )

    def g_prod(self, t: Tensor, y: Tensor, v: Tensor) -> Tensor:
        if self.diagonal:
            return _with_zero(self._posterior.g_prod(t, y[:, :-1], v[:, :-1]))
        return _with_zero(self._posterior.g_prod(t, y[:, :-1], v))

    def f_and_g_prod(self, t: Tensor, y: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        f, g = self.f_and_g(t, y)
        return f, self.prod(g, v)


def _with_zero(g: Tensor) -> Tensor:
    """The same diffusion, with none for the element of the divergence."""
    return torch.cat([g, torch.zeros_like(g[:, :1])], dim=1)
