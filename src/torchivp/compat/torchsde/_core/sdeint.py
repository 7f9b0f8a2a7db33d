"""`sdeint`, and the parts of it that programs with a loop of their own use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torchivp.api import sde as api
from torchivp.boundary import warn
from torchivp.compat.failure import TorchsdeFailure
from torchivp.compat.torchsde._brownian import BrownianInterval
from torchivp.compat.torchsde._core import base_sde, methods, misc
from torchivp.compat.torchsde._core.base_solver import check_levy_area, follow_calls
from torchivp.compat.torchsde.settings import LEVY_AREA_APPROXIMATIONS, METHODS, NOISE_TYPES, SDE_TYPES
from torchivp.methods.sde import default_method, find_sde_method
from torchivp.sde.functions import ROLES
from torchivp.sde.problem import SDEProblem, check_path
from torchivp.solution import raising


def sdeint(
    sde: Any,
    y0: Tensor,
    ts: Any,
    bm: Any = None,
    method: Any = None,
    dt: Any = 1e-3,
    adaptive: bool = False,
    rtol: Any = 1e-5,
    atol: Any = 1e-4,
    dt_min: Any = 1e-5,
    options: Mapping[str, Any] | None = None,
    names: Mapping[str, str] | None = None,
    logqp: bool = False,
    extra: bool = False,
    extra_solver_state: Any = None,
    **unused_kwargs: Any,
) -> Any:
    """`torchivp.sdeint` for states [batch, d] and increasing times, with steps of `dt` from `ts[0]` on.

    The states at the times `ts` are interpolated between steps, unless `options` say `{"interp": None}`.
    """
    misc.handle_unused_kwargs(unused_kwargs, msg="`sdeint`")
    misc.assert_no_grad(["ts", "dt", "rtol", "atol", "dt_min"], [ts, dt, rtol, atol, dt_min])
    bm, names = check_call(sde, y0, ts, bm, method, adaptive, names, logqp)
    with raising(TorchsdeFailure):
        return api.sdeint(
            sde,
            y0,
            ts,
            bm=bm,
            method=method,
            dt=dt,
            adaptive=adaptive,
            rtol=rtol,
            atol=atol,
            dt_min=dt_min,
            options=interpolating(options),
            names=names,
            logqp=logqp,
            extra=extra,
            extra_solver_state=extra_solver_state,
        )


def check_call(
    sde: Any, y0: Any, ts: Any, bm: Any, method: Any, adaptive: bool, names: Mapping[str, str] | None, logqp: bool
) -> tuple[Any, dict[str, str]]:
    """Check what torchivp is less strict about; returns `bm` and `names` as torchivp takes them.

    Raises:
        ValueError: an argument makes no sense.
        AttributeError: `logqp` without a prior drift.
    """
    for name in ("noise_type", "sde_type"):
        if not hasattr(sde, name):
            raise ValueError(
                f"the SDE, {type(sde).__name__}, has no attribute {name}: derive it from SDEIto or SDEStratonovich, or "
                f"set {name}"
            )
    base_sde.check_types(sde.noise_type, sde.sde_type)
    if not isinstance(y0, Tensor) or y0.ndim != 2:
        given = f"a tensor of shape {tuple(y0.shape)}" if isinstance(y0, Tensor) else type(y0).__name__
        raise ValueError(
            f"y0 must be a tensor of shape (batch, channels), got {given}: reshape it, or call torchivp.sdeint, which "
            "takes states of any shape"
        )
    _check_times(ts)
    names = _known_names(names, logqp)
    if logqp:
        base_sde.check_prior(sde, names.get("prior_drift", "h"))
    if method is not None and not isinstance(method, str | type):
        raise ValueError(f"method must be the name of a method, one of {METHODS}, got {method!r}")
    if bm is not None:
        if len(getattr(bm, "shape", ())) != 2:
            raise ValueError(
                "bm must be a Brownian motion of shape (batch, noise channels), got "
                + (f"the shape {tuple(bm.shape)}" if hasattr(bm, "shape") else repr(bm))
                + ": make it with BrownianInterval(t0, t1, size=(batch, channels))"
            )
        name = default_method(sde.sde_type, sde.noise_type) if method is None else method
        if isinstance(name, str) and name in METHODS and name != METHODS.adjoint_reversible_heun:
            check_levy_area(f"method {name!r}", methods.select(name, sde.sde_type).levy_area_approximations, bm)
        bm = follow_calls(bm)
    _warn_of_euler(sde, method, adaptive)
    return bm, names


def _warn_of_euler(sde: Any, method: Any, adaptive: bool) -> None:
    """Warn as torchsde does of what is refused next, since programs look for it; of the rest torchivp warns."""
    stratonovich, additive = sde.sde_type == SDE_TYPES.stratonovich, sde.noise_type == NOISE_TYPES.additive
    if adaptive and method == METHODS.euler and stratonovich and not additive:
        warn(
            "Numerical solution is not guaranteed to converge to the correct solution when using adaptive "
            "time-stepping with the Euler--Maruyama method with non-additive noise.",
        )


def interpolating(options: Any) -> Any:
    """The options, with steps that do not land on the times asked for, unless they say otherwise."""
    return {"interp": "linear", **(options or {})} if isinstance(options, Mapping | None) else options


def check_contract(
    sde: Any,
    y0: Any,
    ts: Any,
    bm: Any,
    method: Any,
    adaptive: bool,
    options: Mapping[str, Any] | None,
    names: Mapping[str, str] | None,
    logqp: bool,
) -> tuple[base_sde.ForwardSDE, Tensor, Tensor, Any, str, dict[str, Any]]:
    """Check the arguments of `sdeint`, and fill in those not given.

    Returns:
        The SDE with all methods under their usual names, the initial state (with one more element if `logqp`), the
        times as a tensor, the Brownian motion, the name of the method and the options.

    Raises:
        ValueError: an argument makes no sense.
    """
    bm, names = check_call(sde, y0, ts, bm, method, adaptive, names, logqp)
    times = ts if isinstance(ts, Tensor) else torch.tensor(ts, dtype=y0.dtype.to_real(), device=y0.device)
    problem = SDEProblem.build(sde, y0, float(times[0]), False, bm, names, logqp, (), 1, None)
    engine_method = find_sde_method(method, sde.sde_type, sde.noise_type)
    method = default_method(sde.sde_type, sde.noise_type) if method is None else method
    if bm is None:
        bm = BrownianInterval(
            times[0],
            times[-1],
            size=(len(y0), problem.terms.channels),
            dtype=y0.dtype,
            device=y0.device,
            levy_area_approximation=LEVY_AREA_APPROXIMATIONS.foster
            if method == METHODS.log_ode_midpoint
            else engine_method.levy_area,
        )
    else:
        check_path(bm, problem, "none", str(method))
    sde = base_sde.RenameMethodsSDE(sde, **names) if names else sde
    forward = base_sde.ForwardSDE(base_sde.SDELogqp(sde) if logqp else sde)
    return forward, problem.y0, times, bm, method, dict(options or {})


def parse_return(y0: Tensor, ys: Tensor, extra_solver_state: Any, extra: bool, logqp: bool) -> Any:
    """What `sdeint` returns of the states `ys` [T, batch, d], whose last element is an integral if `logqp`."""
    found: list[Any] = [ys]
    if logqp:
        found = [ys[:, :, :-1], ys[1:, :, -1] - ys[:-1, :, -1]]
    if extra:
        found.append(extra_solver_state)
    return found[0] if len(found) == 1 else tuple(found)


def _check_times(ts: Any) -> None:
    """Check that the times increase."""
    hint = "pass a 1-D tensor, or a list of floats, such as torch.linspace(0, 1, 11)"
    if isinstance(ts, Tensor):
        if ts.ndim != 1 or not len(ts):
            raise ValueError(f"ts must be one-dimensional, got a tensor of shape {tuple(ts.shape)}: {hint}")
        times = ts.tolist()
    else:
        try:
            times = [float(t) for t in ts]
        except (TypeError, ValueError):
            raise ValueError(f"ts must hold the times at which to return the solution, got {ts!r}: {hint}") from None
        if not times:
            raise ValueError(f"ts must hold at least one time: {hint}")
    if not misc.is_strictly_increasing(times) or times[0] != times[0]:
        raise ValueError(
            f"ts must be strictly increasing, got {times if len(times) < 20 else '...'}: torchivp.sdeint also solves "
            "backwards in time"
        )


def _known_names(names: Mapping[str, str] | None, logqp: bool) -> dict[str, str]:
    """The names that are of use: a prior drift is none without `logqp`."""
    names = {} if names is None else dict(names)
    unknown = {key: names.pop(key) for key in list(names) if key not in ROLES}
    misc.handle_unused_kwargs(unknown, msg="`names`")
    if not logqp:
        names.pop("prior_drift", None)
    return names
