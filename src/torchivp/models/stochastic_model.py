"""What a stochastic model is: a model whose states are driven by noise."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from torchivp.models.model import Model


class StochasticModel(Model):
    """Base of the stochastic models that `torchivp.fit` estimates, dy = forward(t, y) dt + diffusion(t, y) dW.

    W are independent standard Wiener processes, and the equation is one in Itô's sense. A subclass is written
    like one of `Model`, and defines `diffusion` too, with parameters of the same kind:

        >>> class OrnsteinUhlenbeck(StochasticModel):
        ...     states = {"x": "distance from rest"}
        ...     default_state = (1.0,)
        ...     def __init__(self, rate: float = 1.0, strength: float = 0.5):
        ...         super().__init__(rate=rate, strength=strength)
        ...     def forward(self, t, y):
        ...         return -self.rate * y
        ...     def diffusion(self, t, y):
        ...         return self.strength.expand_as(y)
        >>> OrnsteinUhlenbeck()
        OrnsteinUhlenbeck(rate=1, strength=0.5)

    `torchivp.sdeint(model, y0, ts, names={"drift": "forward", "diffusion": "diffusion"})` draws paths of it.

    Attributes:
        noise_type: "diagonal" if each state has a Wiener process of its own, and `diffusion` returns how strongly it
            drives that state, [..., n_states]; "general" (or "additive" or "scalar", which say more of the noise) if it
            returns a matrix, [..., n_states, n_noises].
        sde_type: "ito".
    """

    noise_type: ClassVar[str] = "diagonal"
    sde_type: ClassVar[str] = "ito"

    def diffusion(self, t: Tensor, y: Tensor) -> Tensor:
        """How strongly the noise drives each state, in units of the state per square root of the unit of time.

        Args:
            t: the time, 0-d.
            y: the state, [..., n_states].

        Returns:
            Shaped like `y` if `noise_type` is "diagonal", else [..., n_states, n_noises].
        """
        raise NotImplementedError(f"{type(self).__name__} must define diffusion(t, y)")

    def initial_covariance(self) -> Tensor:
        """The covariance of the initial state, [n_states, n_states]; zero, unless a subclass defines it.

        It may depend on parameters: that of a stationary Ornstein-Uhlenbeck process is strength²/(2 rate).
        """
        state = self.initial_state()
        return state.new_zeros(len(state), len(state))
