"""Models ready to solve and to fit, and the base class for further ones."""

from torchivp.checks import did_you_mean
from torchivp.models.equations import Equations
from torchivp.models.fitzhugh_nagumo import FitzHughNagumo
from torchivp.models.function_model import FunctionModel
from torchivp.models.lorenz import Lorenz
from torchivp.models.lotka_volterra import LotkaVolterra
from torchivp.models.model import Model
from torchivp.models.module_model import ModuleModel
from torchivp.models.pendulum import Pendulum
from torchivp.models.robertson import Robertson
from torchivp.models.sir import SIR
from torchivp.models.stochastic_model import StochasticModel
from torchivp.models.van_der_pol import VanDerPol

MODELS: dict[str, type[Model]] = {
    "fitzhugh-nagumo": FitzHughNagumo,
    "lorenz": Lorenz,
    "lotka-volterra": LotkaVolterra,
    "pendulum": Pendulum,
    "robertson": Robertson,
    "sir": SIR,
    "van-der-pol": VanDerPol,
}
"""Every model that comes with torchivp, by name."""

__all__ = [
    "MODELS",
    "SIR",
    "Equations",
    "FitzHughNagumo",
    "FunctionModel",
    "Lorenz",
    "LotkaVolterra",
    "Model",
    "ModuleModel",
    "Pendulum",
    "Robertson",
    "StochasticModel",
    "VanDerPol",
    "find_model",
]


def find_model(name: str) -> type[Model]:
    """The class of the model called `name`, such as "lotka-volterra".

    Raises:
        ValueError: there is no model of that name; the message lists those there are.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}.{did_you_mean(name, MODELS)} The models are {', '.join(MODELS)}")
    return MODELS[name]
