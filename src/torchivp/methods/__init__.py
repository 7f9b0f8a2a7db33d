"""The methods by name."""

from typing import Literal

from torchivp.checks import did_you_mean
from torchivp.methods.method import Method
from torchivp.methods.ode.adams import Adams
from torchivp.methods.ode.adaptive_heun import AdaptiveHeun
from torchivp.methods.ode.auto import Auto
from torchivp.methods.ode.bdf import BDF
from torchivp.methods.ode.bosh3 import Bosh3
from torchivp.methods.ode.dopri5 import Dopri5
from torchivp.methods.ode.dopri8 import Dopri8
from torchivp.methods.ode.euler import Euler
from torchivp.methods.ode.explicit_adams import ExplicitAdams
from torchivp.methods.ode.fehlberg2 import Fehlberg2
from torchivp.methods.ode.gauss_legendre4 import GaussLegendre4
from torchivp.methods.ode.gauss_legendre6 import GaussLegendre6
from torchivp.methods.ode.heun import Heun
from torchivp.methods.ode.heun2 import Heun2
from torchivp.methods.ode.heun3 import Heun3
from torchivp.methods.ode.implicit_adams import ImplicitAdams
from torchivp.methods.ode.implicit_euler import ImplicitEuler
from torchivp.methods.ode.implicit_midpoint import ImplicitMidpoint
from torchivp.methods.ode.kencarp3 import KenCarp3
from torchivp.methods.ode.kencarp4 import KenCarp4
from torchivp.methods.ode.kencarp5 import KenCarp5
from torchivp.methods.ode.kvaerno3 import Kvaerno3
from torchivp.methods.ode.kvaerno5 import Kvaerno5
from torchivp.methods.ode.midpoint import Midpoint
from torchivp.methods.ode.radau5 import Radau5
from torchivp.methods.ode.radau_iia3 import RadauIIA3
from torchivp.methods.ode.radau_iia5 import RadauIIA5
from torchivp.methods.ode.ralston import Ralston
from torchivp.methods.ode.rk4 import RK4
from torchivp.methods.ode.rk4_classic import RK4Classic
from torchivp.methods.ode.rodas4 import Rodas4
from torchivp.methods.ode.rodas5p import Rodas5P
from torchivp.methods.ode.rosenbrock23 import Rosenbrock23
from torchivp.methods.ode.scipy_solver import ScipySolver
from torchivp.methods.ode.sdirk2 import SDIRK2
from torchivp.methods.ode.trapezoid import Trapezoid
from torchivp.methods.ode.trbdf2 import TRBDF2
from torchivp.methods.ode.tsit5 import Tsit5

ODE_METHODS: dict[str, type[Method]] = {
    "euler": Euler,
    "midpoint": Midpoint,
    "heun": Heun,
    "adaptive_heun": AdaptiveHeun,
    "ralston": Ralston,
    "fehlberg2": Fehlberg2,
    "bosh3": Bosh3,
    "heun2": Heun2,
    "heun3": Heun3,
    "rk4": RK4,
    "rk4_classic": RK4Classic,
    "dopri5": Dopri5,
    "tsit5": Tsit5,
    "dopri8": Dopri8,
    "implicit_euler": ImplicitEuler,
    "implicit_midpoint": ImplicitMidpoint,
    "trapezoid": Trapezoid,
    "sdirk2": SDIRK2,
    "trbdf2": TRBDF2,
    "kvaerno3": Kvaerno3,
    "kvaerno5": Kvaerno5,
    "kencarp3": KenCarp3,
    "kencarp4": KenCarp4,
    "kencarp5": KenCarp5,
    "radau5": Radau5,
    "radauIIA3": RadauIIA3,
    "radauIIA5": RadauIIA5,
    "gl4": GaussLegendre4,
    "gl6": GaussLegendre6,
    "rosenbrock23": Rosenbrock23,
    "rodas4": Rodas4,
    "rodas5p": Rodas5P,
    "bdf": BDF,
    "auto": Auto,
    "adams": Adams,
    "explicit_adams": ExplicitAdams,
    "implicit_adams": ImplicitAdams,
    "fixed_adams": ImplicitAdams,
    "scipy_solver": ScipySolver,
}
"""Every ODE method, by the name that `method=` takes."""


ALIASES = {"RK45": "dopri5", "RK23": "bosh3", "Radau": "radau5", "BDF": "bdf"}
"""SciPy's names of methods that are here under others."""

_OF_SCIPY = {
    "lsoda": ("LSODA", "switches between methods for problems that are stiff and not: so does method='auto'"),
    "dop853": ("DOP853", "is of order 8: use method='dopri8'"),
}
"""What to use for SciPy's methods that are not here."""


MethodName = Literal[
    "euler",
    "midpoint",
    "heun",
    "adaptive_heun",
    "ralston",
    "fehlberg2",
    "bosh3",
    "heun2",
    "heun3",
    "rk4",
    "rk4_classic",
    "dopri5",
    "tsit5",
    "dopri8",
    "implicit_euler",
    "implicit_midpoint",
    "trapezoid",
    "sdirk2",
    "trbdf2",
    "kvaerno3",
    "kvaerno5",
    "kencarp3",
    "kencarp4",
    "kencarp5",
    "radau5",
    "radauIIA3",
    "radauIIA5",
    "gl4",
    "gl6",
    "rosenbrock23",
    "rodas4",
    "rodas5p",
    "bdf",
    "auto",
    "adams",
    "explicit_adams",
    "implicit_adams",
    "fixed_adams",
    "scipy_solver",
    "RK45",
    "RK23",
    "Radau",
    "BDF",
]
"""The names that `method=` takes, for type checkers: those of `ODE_METHODS` and `ALIASES`."""


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
    method = ALIASES.get(method, method)
    if method not in ODE_METHODS:
        raise ValueError(f"unknown method {method!r}.{_hint(method)} The methods are {', '.join(ODE_METHODS)}")
    return ODE_METHODS[method]


def _hint(unknown: str) -> str:
    """What may have been meant by the name of a method that does not exist."""
    if unknown.lower() in _OF_SCIPY:
        name, advice = _OF_SCIPY[unknown.lower()]
        return (
            f" {name} {advice}; or use SciPy's, method='scipy_solver' with options={{'solver': {name!r}}}, which in "
            f"solve_ivp is method=torchivp.ODE_METHODS['scipy_solver'].with_options(solver={name!r})."
        )
    return did_you_mean(unknown, (*ALIASES, *ODE_METHODS))
