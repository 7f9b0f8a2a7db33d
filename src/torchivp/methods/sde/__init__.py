"""The methods for stochastic differential equations, by name, and which of them an SDE may choose from."""

from __future__ import annotations

from typing import Any, NamedTuple

from torchivp.checks import did_you_mean
from torchivp.methods import ODE_METHODS
from torchivp.methods.method import Method
from torchivp.methods.sde.dri1 import DRI1
from torchivp.methods.sde.euler import Euler
from torchivp.methods.sde.euler_heun import EulerHeun
from torchivp.methods.sde.heun import Heun
from torchivp.methods.sde.implicit_euler import ImplicitEuler
from torchivp.methods.sde.implicit_milstein import ImplicitMilstein
from torchivp.methods.sde.log_ode import LogODE
from torchivp.methods.sde.method import SDEMethod
from torchivp.methods.sde.midpoint import Midpoint
from torchivp.methods.sde.milstein import Milstein
from torchivp.methods.sde.reversible_heun import ReversibleHeun
from torchivp.methods.sde.ri6 import RI6
from torchivp.methods.sde.shark import ShARK
from torchivp.methods.sde.slowrk import SlowRK
from torchivp.methods.sde.sosra import SOSRA
from torchivp.methods.sde.spark import SPaRK
from torchivp.methods.sde.sra1 import SRA1
from torchivp.methods.sde.sra3 import SRA3
from torchivp.methods.sde.srid2 import SRID2
from torchivp.methods.sde.srk import SRK
from torchivp.sde.base import NOISE_TYPES, check_noise_type, check_sde_type

SDE_METHODS: dict[str, type[SDEMethod]] = {
    "euler": Euler,
    "milstein": Milstein,
    "euler_heun": EulerHeun,
    "heun": Heun,
    "midpoint": Midpoint,
    "log_ode": LogODE,
    "reversible_heun": ReversibleHeun,
    "implicit_euler": ImplicitEuler,
    "implicit_milstein": ImplicitMilstein,
    "srk": SRK,
    "srid2": SRID2,
    "sra1": SRA1,
    "sra3": SRA3,
    "sosra": SOSRA,
    "shark": ShARK,
    "spark": SPaRK,
    "slowrk": SlowRK,
    "ri6": RI6,
    "dri1": DRI1,
}
"""Every method for SDEs, by the name that `method=` takes."""


class Capability(NamedTuple):
    """What a method can do for one kind of SDE.

    Attributes:
        method: its name.
        sde_type: the calculus, "ito" or "stratonovich".
        noise_type: the noise.
        strong: the order of convergence of single paths.
        weak: the order of convergence of expectations.
        levy_area: what it needs of the path for this noise: "none", "space-time" or "foster".
    """

    method: str
    sde_type: str
    noise_type: str
    strong: float
    weak: float
    levy_area: str


def sde_methods(sde_type: str | None = None, noise_type: str | None = None) -> list[Capability]:
    """Which methods solve an SDE of this kind, with their orders, the highest strong order first.

    Args:
        sde_type: "ito" or "stratonovich"; None for both.
        noise_type: "diagonal", "scalar", "additive", "commutative" or "general"; None for all.

    Returns:
        A table with one row for each method, calculus and noise.

    Raises:
        ValueError: there is no such calculus or noise.

    Examples:
        >>> from torchivp import sde_methods
        >>> best = sde_methods("ito", "diagonal")[0]
        >>> best.method, best.strong
        ('srk', 1.5)
    """
    calculi = None if sde_type is None else check_sde_type(sde_type)
    noises = None if noise_type is None else check_noise_type(noise_type)
    table = [
        Capability(name, calculus, noise, orders.strong, orders.weak, method.area_for(noise))
        for name, method in SDE_METHODS.items()
        for (calculus, noise), orders in method.orders.items()
        if calculi in (None, calculus) and noises in (None, noise)
    ]
    return sorted(table, key=lambda row: (row.sde_type, NOISE_TYPES.index(row.noise_type), -row.strong))


def find_sde_method(method: Any, sde_type: str, noise_type: str) -> type[SDEMethod]:
    """The class of a method given by name or class, which must suit the SDE; None for a good choice.

    Raises:
        ValueError: there is no such method, or it does not solve this kind of SDE.
        TypeError: it is neither a name nor a class of a method.
    """
    if method is None:
        method = default_method(sde_type, noise_type)
    known = list(dict.fromkeys(row.method for row in sde_methods(sde_type, noise_type)))
    suitable = ", ".join(map(repr, known))
    for_ode = (
        method in ODE_METHODS if isinstance(method, str) else isinstance(method, type) and issubclass(method, Method)
    )
    if isinstance(method, type) and issubclass(method, SDEMethod):
        found, name = method, method.__name__
    elif isinstance(method, str) and method in SDE_METHODS:
        found, name = SDE_METHODS[method], method
    elif for_ode:
        name = repr(method) if isinstance(method, str) else method.__name__
        raise ValueError(
            f"{name} is a method for ODEs: for an SDE of type {sde_type!r} with {noise_type} noise there are {suitable}"
        )
    elif isinstance(method, str):
        raise ValueError(
            f"unknown method {method!r}.{did_you_mean(method, known)} For an SDE of type {sde_type!r} with "
            f"{noise_type} noise there are {suitable}"
        )
    elif isinstance(method, SDEMethod):
        own = type(method).__name__
        raise TypeError(f"method is an object of {own}: pass the class, method={own}, and its arguments in options")
    else:
        raise TypeError(f"method must be a name such as {known[0]!r}, got {type(method).__name__}")
    if (sde_type, noise_type) not in found.orders:
        raise ValueError(
            f"method {name!r} does not solve SDEs of type {sde_type!r} with {noise_type} noise; these do: {suitable}"
        )
    return found


def default_method(sde_type: str, noise_type: str) -> str:
    """The method to take if none is named."""
    if sde_type == "stratonovich":
        return "midpoint"
    return "euler" if noise_type == "general" else "milstein" if noise_type == "commutative" else "srk"
