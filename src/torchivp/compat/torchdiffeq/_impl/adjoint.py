"""`odeint_adjoint`, for methods of torchivp and for solver classes that programs bring along."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from torchivp.api import ode
from torchivp.api.options import check_adjoint_options
from torchivp.compat.torchdiffeq._impl.odeint import engine_method, resolve
from torchivp.gradients.captured import module_parameters as find_parameters

__all__ = ["find_parameters", "odeint_adjoint"]


def odeint_adjoint(
    func: Callable[..., Any],
    y0: Any,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: Any = None,
    options: Mapping[str, Any] | None = None,
    event_fn: Callable[..., Any] | None = None,
    adjoint_rtol: Any = None,
    adjoint_atol: Any = None,
    adjoint_method: Any = None,
    adjoint_options: Mapping[str, Any] | None = None,
    adjoint_params: Sequence[Tensor] | None = None,
) -> Any:
    """`torchivp.odeint_adjoint`, whose methods may also be solver classes or the names of some in `SOLVERS`."""
    same = adjoint_method is None or resolve(adjoint_method) is resolve(method)
    check_adjoint_options(same, method, adjoint_method, options, adjoint_options)
    if same:
        adjoint_method = None
    else:
        adjoint_options = {} if adjoint_options is None else adjoint_options
        adjoint_method, adjoint_options = engine_method(adjoint_method, func, y0, rtol, atol, adjoint_options)
    method, options = engine_method(method, func, y0, rtol, atol, options)
    return ode.odeint_adjoint(
        func,
        y0,
        t,
        rtol=rtol,
        atol=atol,
        method=method,
        options=options,
        event_fn=event_fn,
        adjoint_rtol=adjoint_rtol,
        adjoint_atol=adjoint_atol,
        adjoint_method=adjoint_method,
        adjoint_options=adjoint_options,
        adjoint_params=adjoint_params,
    )
