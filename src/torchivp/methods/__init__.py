"""The methods by name."""

import difflib

from torchivp.methods.method import Method
from torchivp.methods.ode.bosh3 import Bosh3
from torchivp.methods.ode.dopri5 import Dopri5
from torchivp.methods.ode.dopri8 import Dopri8
from torchivp.methods.ode.euler import Euler
from torchivp.methods.ode.fehlberg2 import Fehlberg2
from torchivp.methods.ode.heun import Heun
from torchivp.methods.ode.midpoint import Midpoint
from torchivp.methods.ode.ralston import Ralston
from torchivp.methods.ode.rk4 import RK4
from torchivp.methods.ode.rk4_classic import RK4Classic
from torchivp.methods.ode.tsit5 import Tsit5

ODE_METHODS: dict[str, type[Method]] = {
    "euler": Euler,
    "midpoint": Midpoint,
    "heun": Heun,
    "adaptive_heun": Heun,
    "ralston": Ralston,
    "fehlberg2": Fehlberg2,
    "bosh3": Bosh3,
    "rk4": RK4,
    "rk4_classic": RK4Classic,
    "dopri5": Dopri5,
    "tsit5": Tsit5,
    "dopri8": Dopri8,
}
"""Every ODE method, by the name that `method=` takes."""


def find_method(method: str | type[Method]) -> type[Method]:
    """The class of a method given by name or class.

    Raises:
        ValueError: the name is unknown.
        TypeError: it is neither a name nor a class of a method.
    """
    if isinstance(method, type) and issubclass(method, Method):
        return method
    if not isinstance(method, str):
        raise TypeError(f"method must be a name such as 'dopri5', got {type(method).__name__}")
    if method not in ODE_METHODS:
        close = difflib.get_close_matches(method, ODE_METHODS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown method {method!r}.{hint} The methods are {', '.join(ODE_METHODS)}")
    return ODE_METHODS[method]
