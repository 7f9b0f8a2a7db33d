"""`odeint_adjoint`, for methods of torchivp and for solver classes that programs bring along."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torchivp.api import ode
from torchivp.api.options import check_adjoint_options
from torchivp.compat.failure import TorchdiffeqFailure
from torchivp.compat.torchdiffeq._impl.misc import _flat_to_shape, _mixed_norm
from torchivp.compat.torchdiffeq._impl.odeint import engine_method, resolve
from torchivp.gradients.captured import module_parameters as find_parameters
from torchivp.solution import raising

__all__ = ["OdeintAdjointMethod", "find_parameters", "handle_adjoint_norm_", "odeint_adjoint"]


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
    with raising(TorchdiffeqFailure):
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


class OdeintAdjointMethod:
    """`odeint_adjoint` for arguments as `_check_inputs` returns them: one tensor, and time that increases."""

    @staticmethod
    def apply(
        shapes: Sequence[torch.Size] | None,
        func: Callable[..., Any],
        y0: Tensor,
        t: Tensor,
        rtol: Any,
        atol: Any,
        method: Any,
        options: Mapping[str, Any] | None,
        event_fn: Callable[..., Any] | None,
        adjoint_rtol: Any,
        adjoint_atol: Any,
        adjoint_method: Any,
        adjoint_options: Mapping[str, Any] | None,
        t_requires_grad: bool,
        *adjoint_params: Tensor,
    ) -> Any:
        """The states at the times `t`, [T, *y0.shape]; with an event its time, and the states at `t[0]` and there."""
        return odeint_adjoint(
            func,
            y0,
            t if t_requires_grad else t.detach(),
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


def handle_adjoint_norm_(
    adjoint_options: dict[str, Any], shapes: Sequence[torch.Size] | None, state_norm: Callable[[Tensor], Any]
) -> None:
    """Put a norm of `(t, y, adjoint, *parameters)` into `adjoint_options`, in which `y` and `adjoint` are flat.

    By default it is the largest of |t|, the `state_norm` of `y` and of `adjoint`, and the root mean square of each
    parameter, which "seminorm" leaves out. A norm that is there receives the tensors of a tuple one by one.
    """
    chosen = adjoint_options.get("norm")

    def largest(tensors: tuple[Tensor, ...]) -> Tensor:
        t, y, adjoint, *parameters = tensors
        sizes = [t.abs(), state_norm(y), state_norm(adjoint)]
        if chosen is None:
            sizes.append(_mixed_norm(parameters))
        return torch.stack([torch.as_tensor(size, dtype=t.dtype, device=t.device) for size in sizes]).amax()

    def one_by_one(tensors: tuple[Tensor, ...]) -> Any:
        t, y, adjoint, *parameters = tensors
        assert shapes is not None and callable(chosen)
        return chosen((t, *_flat_to_shape(y, (), shapes), *_flat_to_shape(adjoint, (), shapes), *parameters))

    if chosen is None or chosen == "seminorm":
        adjoint_options["norm"] = largest
    elif shapes is not None:
        adjoint_options["norm"] = one_by_one
