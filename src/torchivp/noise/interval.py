"""A Brownian motion over an interval that is a function of its seed and of time, and stores no path."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchivp.boundary import warn
from torchivp.checks import check_number, check_whole_number
from torchivp.noise import dyadic
from torchivp.noise.brownian import BaseBrownian, check_order
from torchivp.noise.guard import Guard
from torchivp.noise.increment import LEVY_AREAS, Increment, has_A, has_H
from torchivp.noise.levy_area import area
from torchivp.noise.philox import derived_seed, normals
from torchivp.noise.rows import check_rows
from torchivp.noise.seed import check_seed, draw_seed

# The second normal of a node, and the number of the root's own normals.
SECOND = 1 << 60
ROOT = 0

# The nodes of recent times are kept: so many, if they need no more than so many bytes.
KEPT_NODES = 128
KEPT_BYTES = 1 << 28

# Numbers in work at once.
CPU_NUMBERS = 1 << 19
ACCELERATOR_NUMBERS = 1 << 26

TUNING: dict[str, Any] = {"dt": None, "tol": 0.0, "pool_size": 8, "cache_size": 45, "halfway_tree": False}


class BrownianInterval(BaseBrownian):
    """A Brownian motion W over [t0, t1], in torchsde's terms, as a function of `entropy` and time alone.

    Neither the order of the queries nor their number nor the thread that asks changes an answer, nor does memory grow
    with them. Increments
    have their exact joint law, at whatever times, down to 2^-48 of the interval: times closer than that are the same
    time. A query costs standard normals at up to 48 levels of a dyadic tree; levels that recent queries share are
    remembered, and times at few binary digits of the interval need few levels.

    For one `entropy`, the path without space-time area and the one with it differ; 'space-time', 'davie' and 'foster'
    share W and H. The area A is an approximation that is a function of the interval asked for; those of its parts, put
    together, give another.

    Args:
        t0: the start.
        t1: the end, after t0.
        size: the shape of W. The first dimension counts rows, and the last, if there are two or more, the channels of
            the noise. May be left out if W or H is given.
        dtype: a real floating dtype; that of W or H, or the default dtype.
        device: of the answers; that of W or H, or the CPU.
        entropy: the seed, from 0 to 2^64 - 1; None to draw one.
        dt: no effect; for calls written for torchsde, whose tree it tuned.
        tol: no effect, likewise.
        pool_size: no effect, likewise.
        cache_size: no effect, likewise.
        halfway_tree: no effect, likewise.
        levy_area_approximation: 'none' for W alone, 'space-time' for H as well, 'davie' or 'foster' for A as well.
        W: W(t1) - W(t0), if that is known.
        H: the space-time Lévy area over [t0, t1], if that is known.
        generator: where the seed is drawn from if `entropy` is None; None for torch's default generator, which
            `torch.manual_seed` governs.
        rows: the row numbers of a part of a batch, whose noise is then what those rows have in the whole; one for each
            entry of the first dimension. None for 0, 1, 2, ...

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range, or two do not fit each other.

    Examples:
        >>> from torchivp import BrownianInterval
        >>> path = BrownianInterval(0.0, 1.0, size=(3, 2), entropy=7)
        >>> whole, halves = path(0.0, 1.0), path(0.0, 0.5) + path(0.5, 1.0)
        >>> bool((whole - halves).abs().max() < 1e-6)
        True
    """

    def __init__(
        self,
        t0: Any = 0.0,
        t1: Any = 1.0,
        size: Sequence[int] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        entropy: int | None = None,
        dt: Any = None,
        tol: Any = 0.0,
        pool_size: int = 8,
        cache_size: int | None = 45,
        halfway_tree: bool = False,
        levy_area_approximation: str = "none",
        W: Tensor | None = None,
        H: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        rows: Tensor | Sequence[int] | range | None = None,
    ) -> None:
        given = {"dt": dt, "tol": tol, "pool_size": pool_size, "cache_size": cache_size, "halfway_tree": halfway_tree}
        warn_of_tuning(type(self).__name__, given, TUNING)
        self.t0, self.t1 = _check_interval(t0, t1)
        self._levy = _check_levy(levy_area_approximation, H)
        self._size, self._dtype, self._device = _check_like(size, dtype, device, W, H)
        self._entropy = draw_seed(generator) if entropy is None else check_seed(entropy)
        # Half precision is worked out in single.
        self._work = torch.float64 if self._dtype == torch.float64 else torch.float32
        self._count = math.prod(self._size[1:])
        self._rows = check_rows(rows, self._size[0] if self._size else 1)
        self._streams = 2 if has_H(self._levy) else 1
        self._recent: dict[int, Tensor] = {}
        self._guard = Guard()
        per_node = self._streams * len(self._rows) * self._count * self._work.itemsize
        self._keeps = per_node * KEPT_NODES <= KEPT_BYTES
        self._root = self._make_root(W, H)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._size

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def levy_area_approximation(self) -> str:
        return self._levy

    @property
    def entropy(self) -> int:
        """The seed: the same path again is `BrownianInterval` with the same arguments and this `entropy`."""
        return self._entropy

    def __repr__(self) -> str:
        return (
            f"BrownianInterval(t0={self.t0}, t1={self.t1}, size={self._size}, dtype={self._dtype}, "
            f"device={str(self._device)!r}, entropy={self._entropy}, levy_area_approximation={self._levy!r})"
        )

    def increment(self, ta: float, tb: float) -> Increment:
        """What the path does from ta to tb, with H and A if `levy_area_approximation` asks for them.

        Raises:
            ValueError: a time is NaN or outside of [t0, t1].
            RuntimeError: ta is later than tb.
        """
        ta, tb = float(ta), float(tb)
        ta, tb = self._within(ta), self._within(tb)
        check_order(ta, tb)
        span = self.t1 - self.t0
        first, last = dyadic.point((ta - self.t0) / span), dyadic.point((tb - self.t0) / span)
        W, H = self._W_and_H(first, last)
        A = None
        if has_A(self._levy):
            A = self._area(W, H, tb - ta, first, last)
        return Increment(
            tb - ta,
            W.to(self._dtype),
            None if H is None else H.to(self._dtype),
            None if A is None else A.to(self._dtype),
        )

    def _W_and_H(self, first: int, last: int) -> tuple[Tensor, Tensor | None]:
        """W and H, in the dtype of the work, between two points of the finest level."""
        if first == last:
            zeros = torch.zeros(self._size, dtype=self._work, device=self._device)
            return zeros, None if self._streams == 1 else torch.zeros_like(zeros)
        weights = dyadic.weights(first, last, self._streams == 2)
        sums = self._from_nodes(weights) if weights.nodes else [0.0, 0.0]
        root = weights.root.tolist()
        W = root[0][0] * self._root[0]
        if self._streams == 1:
            return W + sums[0], None
        return W + root[0][1] * self._root[1] + sums[0], root[1][1] * self._root[1] + sums[1]

    def _from_nodes(self, weights: dyadic.Weights) -> list[Tensor]:
        """The part of W, and of H, that the nodes of the tree give."""
        scale = math.sqrt(self.t1 - self.t0)
        factors = np.stack([part.ravel() for part in (weights.W, weights.H) if part is not None])
        columns = torch.from_numpy(factors * scale).to(device=self._device, dtype=self._work)[..., None]
        out = torch.empty(len(columns), len(self._rows) * self._count, dtype=self._work, device=self._device)
        numbers = CPU_NUMBERS if self._device.type == "cpu" else ACCELERATOR_NUMBERS
        at_once = max(1, numbers // columns.shape[1])
        if self._keeps:
            nodes = self._recall(weights.nodes)
            for i in range(0, out.shape[1], at_once):
                part = nodes if at_once >= out.shape[1] else [node[:, i : i + at_once] for node in nodes]
                _combine(out[:, i : i + at_once], columns, torch.cat(part))
        else:
            rows_at_once = max(1, at_once // max(self._count, 1))
            for i in range(0, len(self._rows), rows_at_once):
                part = self._normals(weights.nodes, self._rows[i : i + rows_at_once]).flatten(0, 1)
                start = i * self._count
                _combine(out[:, start : start + part.shape[1]], columns, part)
        return [part.view(self._size) for part in out]

    def _recall(self, nodes: list[int]) -> list[Tensor]:
        """The normals of each node, [streams, elements], made if they are not among the recent ones."""
        with self._guard:
            found = [self._recent.get(node) for node in nodes]
        missing = [node for node, normal in zip(nodes, found, strict=True) if normal is None]
        made = iter(self._normals(missing, self._rows) if missing else ())
        # Views of the nodes made together would keep all of them.
        values = [next(made).clone() if normal is None else normal for normal in found]
        with self._guard:
            for node, value in zip(nodes, values, strict=True):
                self._recent.pop(node, None)  # those asked for last are at the end
                self._recent[node] = value
            for node in list(self._recent)[: max(0, len(self._recent) - KEPT_NODES)]:
                del self._recent[node]
        return values

    def _normals(self, nodes: list[int], rows: Tensor | range) -> Tensor:
        """Standard normals, [nodes, streams, elements]."""
        names = [node | stream for node in nodes for stream in (0, SECOND)[: self._streams]]
        values = normals(self._entropy, names, rows, self._count, self._work, self._device)
        return values.view(len(nodes), self._streams, len(rows) * self._count)

    def _make_root(self, W: Tensor | None, H: Tensor | None) -> list[Tensor]:
        """W, and H if there is one, over the whole interval: given, or drawn."""
        scales = [math.sqrt(self.t1 - self.t0), math.sqrt((self.t1 - self.t0) / 12)]
        drawn = self._normals([ROOT], self._rows)[0]
        values = []
        for i, given in enumerate([W, H][: self._streams]):
            values.append((drawn[i] * scales[i]).view(self._size) if given is None else given.to(self._work))
        return values

    def _area(self, W: Tensor, H: Tensor | None, dt: float, first: int, last: int) -> Tensor:
        """A; its normals are a function of the seed and both ends."""
        if len(self._size) < 2 or H is None:
            return torch.zeros_like(W)
        m = self._size[-1]
        seed = derived_seed(self._entropy, first, last)
        numbers = normals(seed, [0], self._rows, self._count * m, self._work, self._device)
        return area(W, H, dt, self._levy, numbers.view(*self._size, m))

    @property
    def _start(self) -> float:
        return self.t0

    def _time(self, name: str, value: Any) -> float:
        """A time that the user gives; one in a short dtype may miss the ends by its rounding."""
        time = check_number(name, value)
        dtype = getattr(value, "dtype", None)
        if isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize < 8:
            slack = 4 * torch.finfo(dtype).eps * max(abs(self.t0), abs(self.t1))
            time = _clip(time, self.t0, self.t1, slack)
        return time

    def _within(self, time: float) -> float:
        """A time of the interval; one that misses it by rounding is taken for its end."""
        if self.t0 <= time <= self.t1:
            return time
        slack = 1e-9 * (self.t1 - self.t0) + 4 * np.finfo(float).eps * max(abs(self.t0), abs(self.t1))
        clipped = _clip(time, self.t0, self.t1, slack)
        if self.t0 <= clipped <= self.t1:
            return clipped
        if math.isnan(time):
            raise ValueError("the times of a Brownian increment must not be NaN, got nan")
        raise ValueError(
            f"the Brownian motion is defined from t0={self.t0} to t1={self.t1}, and was asked for t={time}: make it "
            f"with t0 and t1 around all times that are asked for"
        )


def brownian_interval_like(
    y: Tensor,
    t0: Any = 0.0,
    t1: Any = 1.0,
    size: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    **kwargs: Any,
) -> BrownianInterval:
    """A `BrownianInterval` with the shape, dtype and device of a tensor, where these are not given."""
    return BrownianInterval(
        t0,
        t1,
        size=y.shape if size is None else size,
        dtype=y.dtype if dtype is None else dtype,
        device=y.device if device is None else device,
        **kwargs,
    )


def warn_of_tuning(name: str, given: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Say which arguments, other than left at their defaults, have no effect."""
    changed = [key for key, value in given.items() if value is not defaults[key] and value != defaults[key]]
    if changed:
        verb = "has" if len(changed) == 1 else "have"
        warn(
            f"{', '.join(changed)} {verb} no effect in {name}: torchivp's path is exact and has no tree to tune",
        )


def _combine(out: Tensor, columns: Tensor, numbers: Tensor) -> None:
    """Write the sums over nodes of factor times normal, one for each set of factors.

    The order of the additions is a function of the number of nodes alone, and each is one of whole tensors, so that
    an element's sum does not depend on the elements beside it, as it may in a matrix product.
    """
    for i in range(len(columns)):
        terms = numbers * columns[i]
        count = len(terms)
        while count > 1:
            half = count // 2
            terms[:half].add_(terms[count - half : count])
            count -= half
        out[i] = terms[0]


def _clip(time: float, low: float, high: float, slack: float) -> float:
    """The nearer end for a time that is outside by no more than the slack; others as they are."""
    if low - slack <= time < low:
        return low
    if high < time <= high + slack:
        return high
    return time


def _check_interval(t0: Any, t1: Any) -> tuple[float, float]:
    start, end = check_number("t0", t0), check_number("t1", t1)
    if not (start < end and math.isfinite(end - start)):
        raise ValueError(f"t0 must be before t1 and both finite, got t0={start} and t1={end}")
    return start, end


def _check_levy(kind: str, H: Tensor | None) -> str:
    if kind not in LEVY_AREAS:
        raise ValueError(f"levy_area_approximation must be one of {', '.join(map(repr, LEVY_AREAS))}, got {kind!r}")
    if H is not None and not has_H(kind):
        raise ValueError("H is given, and levy_area_approximation='none' uses none: pass 'space-time', or leave H out")
    return kind


def _check_like(
    size: Sequence[int] | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    W: Tensor | None,
    H: Tensor | None,
) -> tuple[tuple[int, ...], torch.dtype, torch.device]:
    """The shape, dtype and device that are given, or those of W or H, which must agree."""
    shape = None if size is None else _check_size(size)
    place = None if device is None else torch.empty(0, device=device).device
    for name, value in (("W", W), ("H", H)):
        if value is None:
            continue
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
        shape = tuple(value.shape) if shape is None else shape
        dtype, place = dtype or value.dtype, place or value.device
        if (tuple(value.shape), value.dtype, value.device) != (shape, dtype, place):
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}, {value.dtype} and device {value.device}, and {shape}, {dtype} "
                f"and {place} are expected: give size, dtype and device as {name} has them, or leave them out"
            )
    if shape is None:
        raise ValueError("give size, the shape of the noise, such as (batch, channels); or W or H, which have it")
    dtype = dtype or torch.get_default_dtype()
    if not dtype.is_floating_point:
        raise ValueError(f"noise is real: dtype must be a floating dtype such as torch.float64, got {dtype}")
    return shape, dtype, place or torch.device("cpu")


def _check_size(size: Any) -> tuple[int, ...]:
    if isinstance(size, int) or not isinstance(size, Sequence):
        raise TypeError(f"size must be a tuple of whole numbers such as (batch, channels), got {size!r}")
    return tuple(check_whole_number("an entry of size", entry, 0) for entry in size)
