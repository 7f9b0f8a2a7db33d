"""The names of methods, of kinds of noise and of SDEs, as constants."""

from __future__ import annotations


class ContainerMeta(type):
    """A class whose attributes are strings: `in` asks for one of them, `all()` lists them."""

    def all(cls) -> list[str]:
        """The strings, sorted."""
        return sorted(value for name, value in vars(cls).items() if not name.startswith("__"))

    def __contains__(cls, item: object) -> bool:
        return item in cls.all()

    def __str__(cls) -> str:
        return str(cls.all())


class METHODS(metaclass=ContainerMeta):
    """The methods of torchsde; `torchivp.sde_methods` lists all that there are here."""

    euler = "euler"
    milstein = "milstein"
    srk = "srk"
    midpoint = "midpoint"
    reversible_heun = "reversible_heun"
    adjoint_reversible_heun = "adjoint_reversible_heun"
    heun = "heun"
    log_ode_midpoint = "log_ode"
    euler_heun = "euler_heun"


class NOISE_TYPES(metaclass=ContainerMeta):
    """The kinds of noise."""

    general = "general"
    diagonal = "diagonal"
    scalar = "scalar"
    additive = "additive"


class SDE_TYPES(metaclass=ContainerMeta):
    """The calculus that an equation is meant in."""

    ito = "ito"
    stratonovich = "stratonovich"


class LEVY_AREA_APPROXIMATIONS(metaclass=ContainerMeta):
    """What a Brownian motion knows besides its increments."""

    none = "none"
    space_time = "space-time"
    davie = "davie"
    foster = "foster"


class METHOD_OPTIONS(metaclass=ContainerMeta):
    """The options of methods."""

    grad_free = "grad_free"
