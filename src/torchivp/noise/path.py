"""Brownian motions that start from a given value, without an end or with one, and one that runs backwards."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from torchivp.checks import check_number
from torchivp.noise.brownian import Answer, BaseBrownian, check_order
from torchivp.noise.increment import Increment, join
from torchivp.noise.interval import BrownianInterval, brownian_interval_like, warn_of_tuning
from torchivp.noise.philox import derived_seed
from torchivp.noise.seed import check_seed, draw_seed

# No part of a path ends much later than so long after its start.
LATEST = 1e15


class _FromValue(BaseBrownian):
    """What `BrownianPath` and `BrownianTree` share: w0 + W(t) for one time, increments for two."""

    def __init__(self, t0: Any, w0: Tensor) -> None:
        self.t0 = check_number("t0", t0)
        if not isinstance(w0, Tensor):
            raise TypeError(f"w0 must be a tensor, the value of the path at t0, got {type(w0).__name__}")
        if not w0.dtype.is_floating_point:
            raise ValueError(f"noise is real: w0 must have a floating dtype such as torch.float64, got {w0.dtype}")
        self.w0 = w0

    def __call__(self, t: Any, tb: Any = None, return_U: bool = False, return_A: bool = False) -> Answer:
        """The value at t, or the increment from t to tb, as `BaseBrownian` gives it."""
        answer = super().__call__(t, tb, return_U, return_A)
        return self.w0 + answer if tb is None and isinstance(answer, Tensor) else answer

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.w0.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.w0.dtype

    @property
    def device(self) -> torch.device:
        return self.w0.device

    @property
    def levy_area_approximation(self) -> str:
        return "none"

    @property
    def _start(self) -> float:
        return self.t0


class BrownianPath(_FromValue):
    """A Brownian motion that starts from w0 at t0 and has no end.

    `bm(t)` is its value at t, `bm(ta, tb)` its increment. Time is divided at t0 + 1, t0 + 2, t0 + 4, ..., and each part
    is a `BrownianInterval` of its own: times closer than 2^-48 of the length of their part are the same time, such as
    times closer than 2e-9 at 1e6 after t0. The path reaches to 1e15 after t0; in float16, whose numbers end early, to
    1.6e7.

    Args:
        t0: the start.
        w0: the value there.
        window_size: no effect; for calls written for torchsde.
        entropy: the seed, from 0 to 2^64 - 1; None to draw one.
        generator: where the seed is drawn from if `entropy` is None; None for torch's default generator.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        t0: Any,
        w0: Tensor,
        window_size: int = 8,
        *,
        entropy: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(t0, w0)
        if not math.isfinite(self.t0):
            raise ValueError(f"t0 must be finite, got {self.t0}")
        warn_of_tuning("BrownianPath", {"window_size": window_size}, {"window_size": 8})
        self.entropy = draw_seed(generator) if entropy is None else check_seed(entropy)
        self._parts: dict[int, BrownianInterval] = {}

    def __repr__(self) -> str:
        return f"BrownianPath(t0={self.t0}, size={self.shape}, dtype={self.dtype}, entropy={self.entropy})"

    def increment(self, ta: float, tb: float) -> Increment:
        """What the path does from ta to tb.

        Raises:
            ValueError: a time is NaN, infinite, before t0 or too late.
            RuntimeError: ta is later than tb.
        """
        first, last = self._since(ta), self._since(tb)
        check_order(first + self.t0, last + self.t0)
        increments = []
        for i in range(_part_of(first), _part_of(last) + 1):
            low, high = (0.0 if i == 0 else 2.0 ** (i - 1)), 2.0**i
            if max(first, low) < min(last, high) or first == last:
                increments.append(self._part(i, low, high).increment(max(first, low), min(last, high)))
        whole = functools.reduce(join, increments)
        return Increment(tb - ta, whole.W, whole.H, whole.A)

    def _since(self, time: float) -> float:
        """The time since t0; a rounding error before it is none."""
        since = time - self.t0
        if not (math.isfinite(since) and since >= -1e-9 * max(1.0, abs(self.t0))):
            raise ValueError(
                f"the Brownian path starts at t0={self.t0} and was asked for t={time}: make it with an earlier t0, and "
                "ask for finite times"
            )
        room = torch.finfo(self.dtype).max / 16
        latest = min(LATEST, room * room)
        if since > latest:
            raise ValueError(
                f"the Brownian path of {self.dtype} from t0={self.t0} reaches to {latest:.3g} after t0, and was asked "
                f"for t={time}: use a smaller unit of time"
            )
        return max(since, 0.0)

    def _part(self, number: int, low: float, high: float) -> BrownianInterval:
        """The part of that number, made when it is first asked for."""
        if number not in self._parts:
            seed = derived_seed(self.entropy, number, 1 << 62)
            self._parts[number] = brownian_interval_like(self.w0, low, high, entropy=seed)
        return self._parts[number]


def _part_of(since: float) -> int:
    """The number of the part that has a time: 0 up to 1, 1 up to 2, 2 up to 4, ..."""
    if since <= 1:
        return 0
    mantissa, exponent = math.frexp(since)
    return exponent - 1 if mantissa == 0.5 else exponent


class BrownianTree(_FromValue):
    """A Brownian motion from w0 at t0 to t1, where it may be given to be w1.

    `bm(t)` is its value at t, `bm(ta, tb)` its increment.

    Args:
        t0: the start.
        w0: the value there.
        t1: the end; None for t0 + 1.
        w1: the value there; None to draw it.
        entropy: the seed, from 0 to 2^64 - 1; None to draw one.
        tol: no effect; for calls written for torchsde, whose tree it tuned.
        pool_size: no effect, likewise.
        cache_depth: no effect, likewise.
        safety: no effect, likewise.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        t0: Any,
        w0: Tensor,
        t1: Any = None,
        w1: Tensor | None = None,
        entropy: int | None = None,
        tol: float = 1e-6,
        pool_size: int = 24,
        cache_depth: int = 9,
        safety: float | None = None,
    ) -> None:
        super().__init__(t0, w0)
        given = {"tol": tol, "pool_size": pool_size, "cache_depth": cache_depth, "safety": safety}
        warn_of_tuning("BrownianTree", given, {"tol": 1e-6, "pool_size": 24, "cache_depth": 9, "safety": None})
        if w1 is not None and (not isinstance(w1, Tensor) or w1.shape != w0.shape):
            shape = tuple(w1.shape) if isinstance(w1, Tensor) else type(w1).__name__
            raise ValueError(f"w1 must be a tensor of the shape of w0, {tuple(w0.shape)}, got {shape}")
        end = self.t0 + 1 if t1 is None else t1
        W = None if w1 is None else w1 - w0
        self._interval = brownian_interval_like(w0, self.t0, end, entropy=entropy, W=W)

    def __repr__(self) -> str:
        return f"BrownianTree(interval={self._interval})"

    @property
    def t1(self) -> float:
        """The end."""
        return self._interval.t1

    @property
    def entropy(self) -> int:
        """The seed."""
        return self._interval.entropy

    def increment(self, ta: float, tb: float) -> Increment:
        """What the path does from ta to tb."""
        return self._interval.increment(ta, tb)

    def _time(self, name: str, value: Any) -> float:
        return self._interval._time(name, value)


class ReverseBrownian(BaseBrownian):
    """A Brownian motion from behind: the increment over [ta, tb] is that of another over [-tb, -ta].

    So the path at time s is minus the other's at -s. W is the other's, as in torchsde; H and A, which depend on what
    comes first, are the other's with the opposite sign, and U is dt W minus the other's.

    Args:
        base: the other Brownian motion; its attribute `base_brownian` is for code written for torchsde.
    """

    def __init__(self, base: BaseBrownian) -> None:
        self.base_brownian = base

    def __repr__(self) -> str:
        return f"ReverseBrownian(base_brownian={self.base_brownian})"

    def increment(self, ta: float, tb: float) -> Increment:
        """What the path does from ta to tb."""
        check_order(ta, tb)
        other = self.base_brownian.increment(-tb, -ta)
        H, A = (None if area is None else -area for area in (other.H, other.A))
        return Increment(other.dt, other.W, H, A)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base_brownian.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.base_brownian.dtype

    @property
    def device(self) -> torch.device:
        return self.base_brownian.device

    @property
    def levy_area_approximation(self) -> str:
        return self.base_brownian.levy_area_approximation
