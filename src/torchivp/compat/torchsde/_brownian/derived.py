"""Brownian motions made of Brownian intervals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchivp.boundary import warn
from torchivp.compat.torchsde._brownian.brownian_base import BaseBrownian, returned
from torchivp.compat.torchsde._brownian.brownian_interval import BrownianInterval
from torchivp.noise.brownian import check_order
from torchivp.noise.guard import Guard


class _Wrapper(BaseBrownian):
    """A Brownian motion of the same shape, type and device as another one."""

    def __init__(self, inner: Any):
        self._inner = inner

    @property
    def shape(self) -> tuple[int, ...]:
        return self._inner.shape

    @property
    def dtype(self) -> torch.dtype:
        return self._inner.dtype

    @property
    def device(self) -> torch.device:
        return self._inner.device

    @property
    def levy_area_approximation(self) -> str:
        return self._inner.levy_area_approximation


class ReverseBrownian(_Wrapper):
    """A Brownian motion in reversed time: a query of (ta, tb) is one of (-tb, -ta), of the same sign.

    Args:
        base_brownian: the Brownian motion.
    """

    def __init__(self, base_brownian: Any):
        super().__init__(base_brownian)
        self.base_brownian = base_brownian

    def __call__(self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False) -> Any:
        if tb is None:
            raise ValueError("ReverseBrownian answers queries of intervals only: give ta and tb")
        return self.base_brownian(-tb, -ta, return_U=return_U, return_A=return_A)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(base_brownian={self.base_brownian})"


class BrownianPath(_Wrapper):
    """A Brownian motion from t0 on that keeps every increment it has computed.

    The path is made of BrownianIntervals: one over [t0, t0 + 1], and after it, when a query comes to them, one each
    over [t0 + 1, t0 + 2], [t0 + 2, t0 + 4], [t0 + 4, t0 + 8] and so on.

    Args:
        t0: where it starts.
        w0: its value there, which `bm(t)` adds; `bm(ta, tb)` does not.
        window_size: of no effect.
        entropy: the seed; by default drawn from PyTorch's generator.
    """

    def __init__(self, t0: float | Tensor, w0: Tensor, window_size: int = 8, entropy: int | None = None):
        self._w0 = w0
        self._t0 = float(t0)
        self._interval = _interval_of(w0, t0, t0 + 1, entropy=entropy, cache_size=None)
        self._pieces = [self._interval]
        self._ends = [float(t0 + 1)]
        self._guard = Guard()
        super().__init__(self._interval)

    def __call__(self, t: Any, tb: Any = None, return_U: bool = False, return_A: bool = False) -> Any:
        out: Any
        if float(t if tb is None else tb) <= self._ends[0]:
            out = self._interval(t, tb, return_U=return_U, return_A=return_A)
        else:
            if tb is None:
                warn("BrownianPath answers queries of intervals, bm(ta, tb): bm(t) is slower")
            out = returned(self._sum(*(self._t0, t) if tb is None else (t, tb)), None, None, return_U, return_A)
        return out + self._w0 if tb is None and not return_U and not return_A else out

    def _sum(self, ta: Any, tb: Any) -> Tensor:
        """W over [ta, tb], of all pieces."""
        ta, tb = float(ta), float(tb)
        check_order(ta, tb)
        with self._guard:
            self._reach(tb)
            pieces = list(zip(self._pieces, self._ends, strict=True))
        W = torch.zeros(self.shape, dtype=self.dtype, device=self.device)
        start = -math.inf  # a query that starts before t0 is for the first piece to warn of
        for piece, end in pieces:
            if ta < end and tb > start:
                W = W + piece(max(ta, start), min(tb, end))
            start = end
        return W

    def _reach(self, t: float) -> None:
        """Make pieces up to `t`."""
        if not math.isfinite(t):
            raise ValueError(f"a query of a BrownianPath must end at a finite time, got {t}")
        while self._ends[-1] < t:
            number = len(self._pieces)
            seeds = np.random.SeedSequence(self._interval.entropy, spawn_key=(number,)).generate_state(4)
            entropy = int.from_bytes(seeds.astype("<u4").tobytes(), "little")
            start, end = self._ends[-1], self._t0 + 2.0**number
            self._pieces.append(_interval_of(self._w0, start, end, entropy=entropy, cache_size=None))
            self._ends.append(end)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(interval={self._interval})"


class BrownianTree(_Wrapper):
    """A Brownian motion over [t0, t1] that depends on the entropy alone, neither on the queries nor on their order.

    Args:
        t0: where it starts.
        w0: its value there, which `bm(t)` adds; `bm(ta, tb)` does not.
        t1: where it ends; t0 + 1 if not given.
        w1: its value there, if it is known.
        entropy: the seed; by default drawn from PyTorch's generator.
        tol: times are rounded to as many decimal places as resolve this.
        pool_size: the size of the pool that the seeds are mixed in.
        cache_depth: of no effect.
        safety: of no effect.
    """

    def __init__(
        self,
        t0: float | Tensor,
        w0: Tensor,
        t1: float | Tensor | None = None,
        w1: Tensor | None = None,
        entropy: int | None = None,
        tol: float = 1e-6,
        pool_size: int = 24,
        cache_depth: int = 9,
        safety: float | None = None,
    ):
        self._w0 = w0
        self._interval = _interval_of(
            w0,
            t0,
            t0 + 1 if t1 is None else t1,
            entropy=entropy,
            tol=tol,
            pool_size=pool_size,
            halfway_tree=True,
            W=None if w1 is None else w1 - w0,
        )
        super().__init__(self._interval)

    def __call__(self, t: Any, tb: Any = None, return_U: bool = False, return_A: bool = False) -> Any:
        out = self._interval(t, tb, return_U=return_U, return_A=return_A)
        return out + self._w0 if tb is None and not return_U and not return_A else out

    def __repr__(self) -> str:
        return f"{type(self).__name__}(interval={self._interval})"


def _interval_of(w: Tensor, t0: float | Tensor, t1: float | Tensor, **options: Any) -> BrownianInterval:
    """A Brownian interval of samples like `w`."""
    return BrownianInterval(t0, t1, size=tuple(w.shape), dtype=w.dtype, device=w.device, **options)


def brownian_interval_like(
    y: Tensor,
    t0: float | Tensor = 0.0,
    t1: float | Tensor = 1.0,
    size: tuple[int, ...] | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    **kwargs: Any,
) -> BrownianInterval:
    """A Brownian interval with the shape, type and device of `y`, where they are not given otherwise."""
    size = tuple(y.shape) if size is None else size
    dtype = y.dtype if dtype is None else dtype
    device = y.device if device is None else device
    return BrownianInterval(t0, t1, size=size, dtype=dtype, device=device, **kwargs)
