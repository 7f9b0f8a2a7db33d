"""The checked problem: a user's SDE, its initial state and its noise, laid out in rows."""

from __future__ import annotations

import math
import numbers
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchivp.checks import check_flag, check_whole_number
from torchivp.noise.increment import LEVY_AREAS, has_A, has_H
from torchivp.sde.base import check_noise_type, check_sde_type
from torchivp.sde.functions import UserFunctions, UserTerms
from torchivp.sde.kl import WithDivergence
from torchivp.sde.terms import Terms
from torchivp.state import StateLayout


@dataclass(frozen=True)
class SDEProblem:
    """An SDE and where it starts.

    Attributes:
        terms: drift and diffusion; of a state with the divergence from the prior, if that was asked for.
        y0: the initial state, [rows, size].
        layout: how the user's states lie in it.
        logqp: whether the last element of the state is the divergence.
    """

    terms: Terms
    y0: Tensor
    layout: StateLayout
    logqp: bool

    @staticmethod
    def build(
        sde: Any,
        y0: Any,
        start: float,
        reverse: bool,
        bm: Any,
        names: Mapping[str, str] | None,
        logqp: bool,
        args: Sequence[Any],
        batch_dims: int | None,
        noise_size: int | None,
    ) -> SDEProblem:
        """The problem as the user states it, checked and laid out.

        Raises:
            TypeError: a tensor, tuple, dict or flag is none, or `sde` is a class.
            ValueError: the SDE lacks something, or shapes do not fit together.
        """
        if isinstance(sde, type):
            raise TypeError(f"sde is the class {sde.__name__}, not an object of it: write {sde.__name__}(...)")
        check_flag("logqp", logqp)
        for name, check in (("noise_type", check_noise_type), ("sde_type", check_sde_type)):
            if not hasattr(sde, name):
                raise ValueError(
                    f"the SDE, {type(sde).__name__}, has no attribute {name}: derive it from torchivp.SDEIto or "
                    f"SDEStratonovich, or set {name}"
                )
            check(getattr(sde, name))
        if not isinstance(args, tuple | list):
            raise TypeError(f"args must be a tuple, got {type(args).__name__}: write args=(args,)")
        functions = UserFunctions.of(sde, names)
        layout = StateLayout(y0, _batch_dims(y0, batch_dims))
        flat = layout.start(y0)
        t0 = torch.scalar_tensor(start, dtype=layout.real_dtype, device=layout.device)
        channels = _channels(functions, layout, t0, y0, args, bm, noise_size)
        terms = UserTerms(functions, layout, args, channels, reverse)
        with torch.no_grad():
            terms.check(t0, flat, _told_by(bm, noise_size))
        if channels == 0 and not terms.diagonal:
            raise ValueError(
                f"g returns no noises: the last dimension of {terms.noise_type} noise numbers the noises, and has the "
                "size 0; for an ODE use torchivp.odeint"
            )
        if not logqp:
            return SDEProblem(terms, flat, layout, False)
        if functions.h is None:
            raise ValueError("logqp=True needs the prior drift: define h(t, y), or name it, names={'prior_drift': ...}")
        divergence = WithDivergence(terms)
        with torch.no_grad():
            divergence.warn_if_infinite(t0.clone(), flat.clone())
        return SDEProblem(divergence, torch.cat([flat, torch.zeros_like(flat[:, :1])], dim=1), layout, True)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """The shape of the Brownian motion as the user sees it."""
        lead = self.layout.lead
        if self.terms.diagonal and not self.logqp and self.layout.is_tensor:
            return (*lead, *self.layout.shapes[0])
        return (*lead, self.terms.channels)

    def states(self, outputs: Tensor) -> Any:
        """The states [T, rows, size] in the shape of the user's, with a leading dimension T."""
        flat = outputs[..., : self.layout.size]
        return self.layout.unflatten(flat.flatten(0, 1), (len(outputs), *self.layout.lead))

    def divergence(self, outputs: Tensor) -> Tensor:
        """What the divergence grows by between any two outputs, [T - 1, *batch]."""
        total = outputs[..., -1]
        grown = total[1:] - total[:-1]
        return (grown.real if grown.is_complex() else grown).reshape(len(grown), *self.layout.lead)

    def carry_out(self, carry: Sequence[Tensor]) -> tuple[Any, ...]:
        """What a method carries, in the shapes that the user's functions have."""
        return tuple(self._out(x) for x in carry)

    def carry_in(self, carry: Any, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The inverse; `like` is what the method would have started from.

        Raises:
            ValueError: it does not fit.
        """
        if not isinstance(carry, tuple | list) or len(carry) != len(like):
            given = f"{len(carry)} entries" if isinstance(carry, tuple | list) else type(carry).__name__
            raise ValueError(
                f"extra_solver_state must be a tuple of {len(like)} entries, as sdeint(..., extra=True) returns it "
                f"with the same method, got {given}" + ("" if like else ": leave extra_solver_state out")
            )
        found = []
        for i, (given, own) in enumerate(zip(carry, like, strict=True)):
            leaves = pytree.tree_leaves(given)
            shapes = [tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in leaves]
            expected = [tuple(x.shape) for x in pytree.tree_leaves(self._out(own))]
            if shapes != expected:
                raise ValueError(
                    f"extra_solver_state[{i}] must have the shape {_listed(expected)}, got {_listed(shapes)}: pass "
                    "what sdeint(..., extra=True) returned for this state with the same method"
                )
            sizes = self.layout.sizes if len(leaves) > 1 else own.shape[1:2]
            parts = zip(leaves, sizes, strict=True)
            flat = torch.cat([x.reshape(self.layout.rows, size, *own.shape[2:]) for x, size in parts], dim=1)
            found.append(flat.to(own.dtype))
        return tuple(found)

    def _out(self, x: Tensor) -> Any:
        layout = self.layout
        if x.ndim == 2 and x.shape[1] == layout.size:
            return layout.unflatten(x)
        if x.ndim == 3 and x.shape[1] == layout.size and layout.is_tensor:
            return x.reshape(*layout.lead, *layout.shapes[0], x.shape[2])
        return x


def _batch_dims(y0: Any, given: int | None) -> int:
    """How many leading dimensions number the rows: all but the last, unless the user says otherwise."""
    dims = [leaf.ndim for leaf in pytree.tree_leaves(y0) if isinstance(leaf, Tensor)]
    if given is None:
        return max(min(dims, default=0) - 1, 0)
    return check_whole_number("batch_dims", given, 0, min(dims, default=0))


def _channels(
    functions: UserFunctions,
    layout: StateLayout,
    t0: Tensor,
    y0: Any,
    args: Sequence[Any],
    bm: Any,
    noise_size: int | None,
) -> int:
    """The number of noises in one row, from the kind of noise, the path, or one call of the diffusion."""
    noise_type = functions.owner.noise_type
    if noise_size is not None:
        noise_size = check_whole_number("noise_size", noise_size, 1)
    if noise_type in ("diagonal", "scalar"):
        expected = layout.size if noise_type == "diagonal" else 1
        if noise_size not in (None, expected):
            raise ValueError(
                f"{noise_type} noise of this state has {expected} channels, but noise_size={noise_size}: leave "
                "noise_size out"
            )
        return expected
    if noise_size is not None:
        return noise_size
    if bm is not None:
        return _bm_shape(bm)[-1]
    t0, y0 = t0.clone(), pytree.tree_map(torch.clone, y0)
    with torch.no_grad():
        g = functions.g.in_context(t0, y0, *args) if functions.g is not None else None
        if g is None and functions.f_and_g is not None:
            g = functions.f_and_g.in_context(t0, y0, *args)[1]
    leaves = pytree.tree_leaves(g)
    if not leaves or not isinstance(leaves[0], Tensor) or leaves[0].ndim == 0:
        raise ValueError(
            f"cannot tell how many noises there are, since the SDE of {noise_type} noise has no g(t, y): pass "
            "noise_size=m, or a Brownian motion bm=BrownianInterval(t0, t1, size=(batch, m))"
        )
    return leaves[0].shape[-1]


def _told_by(bm: Any, noise_size: int | None) -> str | None:
    """The argument that tells the number of noises, where it is not the diffusion."""
    return "noise_size" if noise_size is not None else "bm" if bm is not None else None


def _listed(shapes: Sequence[object]) -> str:
    return str(shapes[0]) if len(shapes) == 1 else str(list(shapes))


def _bm_shape(bm: Any) -> tuple[int, ...]:
    shape = getattr(bm, "shape", None)
    if shape is None or not (callable(bm) or hasattr(bm, "increment")):
        given = repr(bm) if shape is None else f"{type(bm).__name__} of shape {tuple(shape)}"
        raise ValueError(
            f"bm must be a Brownian motion with a shape, such as BrownianInterval(t0, t1, size=(batch, m)), got {given}"
        )
    return tuple(shape)


def check_path_times(bm: Any, times: Sequence[float]) -> None:
    """Check that a user's Brownian motion, if it tells where it starts and ends, has all of the `times`.

    Raises:
        ValueError: it starts too late, or ends too early.
    """
    first, last = min(times), max(times)
    start, end = (_time_of(bm, name) for name in ("t0", "t1"))
    span = max(1.0, abs(first)) if start is None or end is None else end - start
    slack = 1e-9 * span + 4 * sys.float_info.epsilon * max(abs(first), abs(last))
    if (start is not None and first < start - slack) or (end is not None and last > end + slack):
        extent = f"starts at t0={start}" if end is None else f"lasts from t0={start} to t1={end}"
        missing = f", t1={last}" if end is not None else ""
        raise ValueError(
            f"bm {extent}, but the solve takes the times from {first} to {last}: make it with t0={first}{missing}"
        )


def path_ends(bm: Any) -> list[float]:
    """Where a user's Brownian motion starts and ends, as far as it tells."""
    return [t for t in (_time_of(bm, "t0"), _time_of(bm, "t1")) if t is not None]


def _time_of(bm: Any, name: str) -> float | None:
    """Where a Brownian motion starts or ends; None if it does not tell."""
    value = getattr(bm, name, None)
    if isinstance(value, numbers.Real) or (isinstance(value, Tensor) and value.numel() == 1):
        return float(value)
    return None


def check_path(bm: Any, problem: SDEProblem, levy_area: str, method: str) -> None:
    """Check that a user's Brownian motion fits the problem and the method.

    Raises:
        ValueError: its shape, device or areas do not fit.
    """
    shape = _bm_shape(bm)
    expected = (problem.layout.rows, problem.terms.channels)
    fits = math.prod(shape) == math.prod(expected) and shape[: len(problem.layout.lead)] == problem.layout.lead
    if not fits:
        note = " (with logqp=True, one more channel than the state has elements)" if problem.logqp else ""
        raise ValueError(
            f"bm has shape {shape}, but {problem.terms.noise_type} noise of this problem has shape "
            f"{problem.noise_shape}{note}: pass size={problem.noise_shape} to it"
        )
    device = torch.device(getattr(bm, "device", problem.y0.device))
    if device != problem.y0.device:
        raise ValueError(f"bm lies on {device} and y0 on {problem.y0.device}: pass device='{problem.y0.device}' to bm")
    given = getattr(bm, "levy_area_approximation", "none")
    enough = [kind for kind in LEVY_AREAS if has_H(kind) >= has_H(levy_area) and has_A(kind) >= has_A(levy_area)]
    if has_H(levy_area) and given not in enough:
        raise ValueError(
            f"method {method!r} needs a Brownian motion with levy_area_approximation {' or '.join(map(repr, enough))}, "
            f"bm has {given!r}: make it with BrownianInterval(..., levy_area_approximation={levy_area!r})"
        )
