"""`sdeint_adjoint`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torchivp.api import sde as api
from torchivp.boundary import warn
from torchivp.compat.failure import TorchsdeFailure
from torchivp.compat.torchsde._core import misc
from torchivp.compat.torchsde._core.sdeint import check_call, interpolating
from torchivp.compat.torchsde.settings import METHODS
from torchivp.solution import raising


def sdeint_adjoint(
    sde: Any,
    y0: Tensor,
    ts: Any,
    bm: Any = None,
    method: Any = None,
    adjoint_method: str | None = None,
    dt: Any = 1e-3,
    adaptive: bool = False,
    adjoint_adaptive: bool = False,
    rtol: Any = 1e-5,
    adjoint_rtol: Any = 1e-5,
    atol: Any = 1e-4,
    adjoint_atol: Any = 1e-4,
    dt_min: Any = 1e-5,
    options: Mapping[str, Any] | None = None,
    adjoint_options: Mapping[str, Any] | None = None,
    adjoint_params: Any = None,
    names: Mapping[str, str] | None = None,
    logqp: bool = False,
    extra: bool = False,
    extra_solver_state: Any = None,
    **unused_kwargs: Any,
) -> Any:
    """`torchivp.sdeint_adjoint` for states [batch, d] and increasing times, with steps of `dt` from `ts[0]` on.

    The states at the times `ts` are interpolated between steps, unless `options` say `{"interp": None}`.
    """
    misc.handle_unused_kwargs(unused_kwargs, msg="`sdeint_adjoint`")
    misc.assert_no_grad(
        ["ts", "dt", "rtol", "adjoint_rtol", "atol", "adjoint_atol", "dt_min"],
        [ts, dt, rtol, adjoint_rtol, atol, adjoint_atol, dt_min],
    )
    bm, names = check_call(sde, y0, ts, bm, method, adaptive, names, logqp)
    if method == METHODS.reversible_heun:
        _warn_of_reversible_heun(ts, dt, adjoint_method, adaptive, adjoint_adaptive)
        if adjoint_method in (None, METHODS.adjoint_reversible_heun):
            adjoint_adaptive = False
    with raising(TorchsdeFailure):
        return api.sdeint_adjoint(
            sde,
            y0,
            ts,
            bm=bm,
            method=method,
            adjoint_method=adjoint_method,
            dt=dt,
            adaptive=adaptive,
            adjoint_adaptive=adjoint_adaptive,
            rtol=rtol,
            adjoint_rtol=adjoint_rtol,
            atol=atol,
            adjoint_atol=adjoint_atol,
            dt_min=dt_min,
            options=interpolating(options),
            adjoint_options=adjoint_options,
            adjoint_params=adjoint_params,
            names=names,
            logqp=logqp,
            extra=extra,
            extra_solver_state=extra_solver_state,
        )


def _warn_of_reversible_heun(
    ts: Any, dt: Any, adjoint_method: str | None, adaptive: bool, adjoint_adaptive: bool
) -> None:
    """Say what keeps the gradient of the reversible Heun method from being that of the equation's solution at `ts`."""
    name = METHODS.reversible_heun
    if adjoint_method not in (None, METHODS.adjoint_reversible_heun):
        warn(
            f"method={name!r}, but adjoint_method!={METHODS.adjoint_reversible_heun!r}: the gradient is not exact for "
            "the steps taken; leave adjoint_method out",
        )
    if adaptive or adjoint_adaptive:
        warn(
            f"method={name!r} with `adaptive` or `adjoint_adaptive`: the backward pass takes the steps of the forward "
            "one back, whatever adjoint_adaptive says, and its gradient holds the choice of the steps fixed",
        )
        return
    times = torch.as_tensor(ts, dtype=torch.float64, device="cpu")
    steps = (times - times[0]) / float(dt)
    if not torch.allclose(steps, steps.round()):
        warn(
            "The spacing between time points `ts` is not an integer multiple of the time step `dt`: the states there "
            "are interpolated between steps, and the gradient is that of the interpolated states; choose a dt that "
            "divides the spacing",
        )
