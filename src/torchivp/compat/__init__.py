"""Stand-ins for other libraries, so that programs written for them run on torchivp as they are."""

import importlib
import pkgutil
import sys
import warnings

_PACKAGES = ("torchdiffeq", "torchsde")
"""The libraries there are stand-ins for, each a package in this one under its own name."""


def install() -> None:
    """Make `import torchdiffeq` and `import torchsde` import torchivp's stand-ins, whether or not these are installed.

    Call it before anything imports them. Modules that did so earlier keep what they imported; a warning says so, and
    later imports get the stand-ins all the same.
    """
    for name in _PACKAGES:
        _install(name)


def _install(name: str) -> None:
    package = importlib.import_module(f"{__name__}.{name}")
    if sys.modules.get(name) is package:
        return
    earlier = [module for module in sys.modules if module == name or module.startswith(f"{name}.")]
    if earlier:
        warnings.warn(
            f"{name} was imported before torchivp.compat.install(): what was imported from it until now stays "
            f"{name}'s own. Call install() before the first import of {name}",
            stacklevel=3,
        )
    # Modules of the real package that have no stand-in must not be found beside those that have one.
    for module in earlier:
        del sys.modules[module]
    sys.modules[name] = package
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        sys.modules[name + module.name.removeprefix(package.__name__)] = importlib.import_module(module.name)
