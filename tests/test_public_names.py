"""Importing a module gives the module."""

import pkgutil
from importlib import import_module
from types import ModuleType

import torchivp


def test_no_public_name_hides_a_module():
    """`import torchivp.fit as F` gave the function of that name. (`compat` repeats the names of other libraries.)"""
    found = pkgutil.walk_packages(torchivp.__path__, "torchivp.")
    names = [module.name for module in found if not module.name.startswith("torchivp.compat.torch")]
    assert len(names) > 100
    for name in names:
        import_module(name)
    for name in names:
        package, _, own = name.rpartition(".")
        assert isinstance(getattr(import_module(package), own), ModuleType), f"{name} is hidden"


def test_fit_is_a_function_of_the_package():
    from torchivp import fit
    from torchivp.fitting import fit as same

    assert torchivp.fit is fit is same
