"""The annotations of the doors agree with what the doors do; `make types` checks what follows from them."""

import inspect
from typing import get_args

import pytest

from torchivp import ODE_METHODS
from torchivp.api import ivp, ode
from torchivp.api.arguments import GRADIENTS, GradientName
from torchivp.methods import ALIASES, MethodName


def test_the_names_of_methods_and_gradients():
    assert get_args(MethodName) == (*ODE_METHODS, *ALIASES)
    assert set(ALIASES.values()) <= set(ODE_METHODS) and not set(ALIASES) & set(ODE_METHODS)
    assert get_args(GradientName) == tuple(GRADIENTS)


@pytest.mark.parametrize(
    ("door", "options", "decisive"),
    [
        (ivp.solve_ivp, ivp._Options, "batch_dims"),
        (ode.odeint, ode._Options, "event_fn"),
        (ode.odeint_adjoint, ode._AdjointOptions, "event_fn"),
    ],
)
def test_the_overloads_have_the_keywords_of_the_door(door, options, decisive):
    keywords = {
        parameter.name: parameter.annotation
        for parameter in inspect.signature(door).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name != decisive
    }
    declared = {}
    for base in reversed([base for base in (options, *getattr(options, "__orig_bases__", ())) if base is not dict]):
        declared |= {name: getattr(kind, "__forward_arg__", kind) for name, kind in base.__annotations__.items()}
    assert declared == keywords
