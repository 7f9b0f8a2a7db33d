"""What every method for stochastic differential equations is: a function that takes one step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from torchivp.noise.increment import Increment
from torchivp.references import Sources
from torchivp.sde.terms import Terms


class Orders(NamedTuple):
    """Orders of convergence: of single paths (strong), and of expectations (weak)."""

    strong: float
    weak: float


class SDEMethod(ABC):
    """A method for dY = f(t, Y) dt + g(t, Y) dW on states [rows, size].

    A method knows nothing of step sizes or gradients, and `step` is a function of its arguments alone, so that a step
    can be taken again for a gradient.

    Attributes:
        orders: by the calculus and the noise of an SDE, the orders with which the method solves it; it solves no other.
        levy_area: what it needs of the path: "none", "space-time", or "foster" for the areas between channels. A method
            that needs less for some noise says so in `area_for`.
        options: the names of its arguments.
        references: its sources: keys of `references.bib`, or BibTeX entries.
    """

    orders: ClassVar[Mapping[tuple[str, str], Orders]]
    levy_area: ClassVar[str] = "none"
    options: ClassVar[tuple[str, ...]] = ()
    references: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def cited(cls) -> Sources:
        """What it takes steps with, and the sources of that."""
        return {f"method {cls.__name__} for SDEs": cls.references}

    @classmethod
    def area_for(cls, noise_type: str) -> str:
        """What it needs of the path where the noise is of this type: "none", "space-time", "davie" or "foster"."""
        return cls.levy_area

    def start(self, terms: Terms, t0: Tensor, y0: Tensor) -> Any:
        """What the first step starts from besides the state: a tuple of tensors [rows, ...], which may be empty."""
        return ()

    @abstractmethod
    def step(
        self, terms: Terms, t0: Tensor, t1: Tensor, y0: Tensor, noise: Increment, carry: Any
    ) -> tuple[Tensor, Any]:
        """Step from `y0` at `t0` to `t1`; returns the state there, and what the next step starts from besides.

        The size of the step is `noise.dt`, positive also where time decreases.
        """


def by_noise(sde_type: str, orders: Orders, **others: Orders) -> dict[tuple[str, str], Orders]:
    """The same `orders` for every type of noise but the `others`."""
    noises = ("general", "commutative", "additive", "scalar", "diagonal")
    return {(sde_type, noise): others.get(noise, orders) for noise in noises}
