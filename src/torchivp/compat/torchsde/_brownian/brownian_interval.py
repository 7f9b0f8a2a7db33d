"""A Brownian motion over an interval of time, cut into smaller ones where queries ask for it."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from torchivp.boundary import warn
from torchivp.compat.torchsde._brownian.brownian_base import BaseBrownian, returned
from torchivp.compat.torchsde._brownian.interval_tree import IntervalTree, decimal_places
from torchivp.noise.brownian import check_order
from torchivp.noise.guard import Guard
from torchivp.noise.increment import LEVY_AREAS, Increment, outer

_WARM_UP = 100
"""How many queries pass before their average length decides how the tree is cut."""

_MOST_AFFORDED = 100
"""How many intervals in a row may be computed one from another, however large the cache."""

_ROUNDING = 1e-6
"""How far outside the interval, relative to its times, a query may lie by rounding errors."""


def _randn(size: tuple[int, ...], dtype: torch.dtype, device: torch.device, seed: int) -> Tensor:
    """Every random tensor comes from here. Programs replace it to get the same numbers on all devices."""
    generator = torch.Generator(device).manual_seed(int(seed))
    return torch.randn(size, dtype=dtype, device=device, generator=generator)


class _Interval:
    """One of the intervals that a `BrownianInterval`, its `_top`, has been cut into, by its number in the tree."""

    _top: BrownianInterval
    _number: int

    @property
    def _start(self) -> float:
        return self._top._tree.start[self._number]

    @property
    def _end(self) -> float:
        return self._top._tree.end[self._number]

    @property
    def _midway(self) -> float | None:
        """Where it has been cut; None if it has not been."""
        left = self._left_child
        return None if left is None else left._end

    @property
    def _is_left(self) -> bool:
        return self._number > 0 and not self._top._tree.is_right(self._number)

    @property
    def _parent(self) -> _Interval | None:
        return _part(self._top, self._top._tree.parent[self._number]) if self._number else None

    @property
    def _left_child(self) -> _Interval | None:
        left = self._top._tree.child[self._number]
        return _part(self._top, left) if left else None

    @property
    def _right_child(self) -> _Interval | None:
        left = self._top._tree.child[self._number]
        return _part(self._top, left + 1) if left else None

    def _increment_and_levy_area(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """W, H and A over the interval; H and A are None if the path has none."""
        with self._top._guard:
            W, H, A = self._top._of_interval(self._number)
        # The caller may change in place what it gets, and the cache must not change with it.
        return W.clone(), H if H is None else H.clone(), A

    def _loc(self, ta: float, tb: float) -> list[_Interval]:
        """The intervals that make up [ta, tb], from left to right; those that do not exist yet are made."""
        tree = self._top._tree
        with self._top._guard:
            return [_part(self._top, i) for i in tree.locate(tree.round(ta), tree.round(tb), self._number)]


class _Part(_Interval):
    def __init__(self, top: BrownianInterval, number: int):
        self._top, self._number = top, number


def _part(top: BrownianInterval, number: int) -> _Interval:
    return _Part(top, number) if number else top


class BrownianInterval(_Interval, BaseBrownian):
    """A Brownian motion over [t0, t1], the same for the same entropy and the same queries in the same order.

    Several threads may ask at once. It is one path for all of them, and the order of their queries decides which.

    Args:
        t0: where the interval starts.
        t1: where it ends.
        size: the shape of a sample. The last of two or more dimensions is that of the Brownian motion, the others are
            batches. Taken from `W` or `H` if not given, as are `dtype` and `device`.
        dtype: the type of the samples; by default PyTorch's default.
        device: where the samples are made; by default the CPU.
        entropy: the seed; by default drawn from PyTorch's generator, so that `torch.manual_seed` decides it.
        dt: the length that queries will have on average; estimated from the first queries if not given. It makes later
            queries faster, and is part of what decides the numbers.
        tol: times are rounded to as many decimal places as resolve this; 0 for no rounding.
        pool_size: the size of the pool that the seeds are mixed in.
        cache_size: for how many cuts to keep the increments on both sides; None for all. Part of what decides the
            numbers of paths with observed or given `dt`.
        halfway_tree: always cut an interval at its middle, down to `tol`: neither the order of the queries nor the
            other queries then have an influence on the numbers, and queries are slower.
        levy_area_approximation: "none"; "space-time" for U; "davie" or "foster" for U and A.
        W: the increment over [t0, t1], if it is known.
        H: the space-time Lévy area over [t0, t1], if it is known.

    Raises:
        ValueError: an argument is wrong, or two do not fit together.
    """

    def __init__(
        self,
        t0: float | Tensor = 0.0,
        t1: float | Tensor = 1.0,
        size: tuple[int, ...] | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        entropy: int | None = None,
        dt: float | Tensor | None = None,
        tol: float = 0.0,
        pool_size: int = 8,
        cache_size: int | None = 45,
        halfway_tree: bool = False,
        levy_area_approximation: str = "none",
        W: Tensor | None = None,
        H: Tensor | None = None,
    ):
        start, end = _number("t0", t0), _number("t1", t1)
        if start > end:
            raise ValueError(f"t0 must not be after t1, got t0={start:g} and t1={end:g}: exchange them")
        dt = None if dt is None else _number("dt", dt)
        tol = _number("tol", tol)
        if tol < 0 or (halfway_tree and tol == 0):
            wanted = "positive if halfway_tree is True, for example 1e-6" if halfway_tree else "0 or positive"
            raise ValueError(f"tol must be {wanted}, got {tol:g}")
        if halfway_tree and dt is not None:
            raise ValueError(
                f"dt has no effect if halfway_tree is True, got dt={dt:g}: leave out dt, or set halfway_tree=False"
            )
        if dt is not None and dt <= 0:
            raise ValueError(f"dt, the length of a query, must be positive, got {dt:g}")
        if cache_size is not None and cache_size < 0:
            raise ValueError(f"cache_size must be None, 0 or positive, got {cache_size}")
        if levy_area_approximation not in LEVY_AREAS:
            raise ValueError(
                f"levy_area_approximation must be one of {', '.join(LEVY_AREAS)}, got {levy_area_approximation!r}"
            )
        _check_known("W", W)
        _check_known("H", H)
        self._size = _common_size(size, W, H)
        self._dtype = _common_dtype(dtype, W, H)
        self._device = _common_device(device, W, H)
        if entropy is None:
            entropy = int(torch.randint(0, 2**31 - 1, (), device="cpu"))
        self._entropy = entropy
        self._levy_area_approximation = levy_area_approximation
        self._dt = dt
        self._tol = tol
        self._pool_size = pool_size
        self._cache_size = cache_size
        self._halfway_tree = halfway_tree
        self._have_H = levy_area_approximation != "none"
        self._have_A = levy_area_approximation in ("davie", "foster")

        digits = decimal_places(tol)
        longest = 0.0 if halfway_tree else math.inf
        self._guard = Guard()
        self._tree = IntervalTree(start, end, entropy, pool_size, digits, longest)
        self._slack = max(_ROUNDING * max(abs(start), abs(end)), 0.0 if digits is None else 10.0**-digits)
        self._last = 0
        self._cache: OrderedDict[int, tuple[Any, Any]] = OrderedDict()
        """The (W, H) of the two children of intervals, those used last at the end."""

        W_seed, H_seed, self._A_seed = self._tree.whole_seeds()
        if W is None:
            W = self._draw(W_seed) * math.sqrt(end - start)
        if H is None and self._have_H:
            H = self._draw(H_seed) * math.sqrt((end - start) / 12)
        self._whole: tuple[Tensor, Any] = W, H if self._have_H else None

        self._average_dt = 0.0
        self._shortest_dt = end - start
        self._num_queries = -_WARM_UP
        if dt is not None:
            self._expect(dt)

    def __call__(self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False) -> Any:
        """What the path does from `ta` to `tb`.

        Args:
            ta: the start of the interval; without `tb` its end, and the interval starts at t0.
            tb: its end.
            return_U: whether to return U, the integral of W(s) - W(ta) over the interval.
            return_A: whether to return A, the Lévy area.

        Returns:
            W, (W, U), (W, A) or (W, U, A). U and A are None if the path has none.

        Raises:
            RuntimeError: `ta` is after `tb`.
        """
        name = "tb"
        if tb is None:
            warn(
                f"{type(self).__name__} answers queries of intervals, bm(ta, tb): bm(t) is bm(t0, t), and slower than "
                "the increment from one time to the next",
            )
            ta, tb, name = self._tree.start[0], ta, "ta"
        ta, tb = self._within("ta", ta), self._within(name, tb)
        W, H, A = self._query(ta, tb)
        return returned(W, None if H is None else (tb - ta) * (0.5 * W + H), A, return_U, return_A)

    def increment(self, ta: float, tb: float) -> Increment:
        W, H, A = self._query(self._within("ta", ta), self._within("tb", tb))
        return Increment(float(tb) - float(ta), W, H, A)

    def _within(self, name: str, t: Any) -> float:
        """A time as a float, moved into [t0, t1], with a warning unless a rounding error put it outside."""
        t, start, end = float(t), self._tree.start[0], self._tree.end[0]
        if start <= t <= end:
            return t
        if math.isnan(t):
            raise ValueError(f"{name} must be a number, got nan")
        sign, bound, nearest = (">=", "t0", start) if t < start else ("<=", "t1", end)
        if abs(t - nearest) > self._slack:
            warn(
                f"Should have {name}{sign}{bound} but got {name}={t} and {bound}={nearest}: there is no path outside "
                f"[t0, t1], and {bound} is taken instead",
            )
        return nearest

    @property
    def _top(self) -> BrownianInterval:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self

    _number = 0

    def _query(self, ta: float, tb: float) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """W, H and A over [ta, tb]."""
        with self._guard:
            return self._query_alone(ta, tb)

    def _query_alone(self, ta: float, tb: float) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The same, for the one thread that may look at the tree."""
        if ta >= tb:
            check_order(ta, tb)
            W = torch.zeros(self._size, dtype=self._dtype, device=self._device)
            A = outer(W, W) if W.ndim >= 2 else W.clone()
            return W, W.clone() if self._have_H else None, A if self._have_A else None
        if self._dt is None and not self._halfway_tree:
            self._observe(tb - ta)
        tree = self._tree
        found = tree.locate(tree.round(ta), tree.round(tb), self._last)
        self._last = found[-1]
        W, H, A = self._of_interval(found[0])
        if len(found) == 1:
            # The caller may change in place what it gets, and the cache must not change with it.
            return W.clone(), H if H is None else H.clone(), A
        for i in found[1:]:
            Wi, Hi, Ai = self._of_interval(i)
            if H is not None:
                start, end = tree.start[i], tree.end[i]
                H = ((end - start) * (Hi + 0.5 * W) + (start - ta) * (H - 0.5 * Wi)) / (end - ta)
            if A is not None and W.ndim >= 2:
                A = A + Ai + 0.5 * (outer(W, Wi) - outer(Wi, W))
            W = W + Wi
        return W, H, A

    def _observe(self, dt: float) -> None:
        """Take the length of a query into account in how the tree is cut."""
        self._num_queries += 1
        if self._num_queries > 0:
            self._average_dt = (dt + self._average_dt * (self._num_queries - 1)) / self._num_queries
            if self._average_dt < 0.5 * self._shortest_dt:
                self._expect(dt)

    def _expect(self, dt: float) -> None:
        """Cut the tree for queries of length `dt`.

        The increments of intervals cut off one after another depend on each other in a chain. A chain that fits into
        the cache costs nothing; longer ones are avoided by cutting longer intervals at their middle.
        """
        afforded = _MOST_AFFORDED if self._cache_size is None else min(self._cache_size, _MOST_AFFORDED)
        self._shortest_dt = min(self._shortest_dt, dt)
        longest = self._shortest_dt * max(afforded, 1) * 0.8
        if longest != self._tree.longest:
            self._tree.refine(longest)

    def _of_interval(self, i: int) -> tuple[Tensor, Any, Any]:
        """W, H and A over an interval of the tree; `Any` because H and A may be None."""
        W, H = self._values(i)
        if not self._have_A:
            return W, H, None
        tree = self._tree
        seed = self._A_seed if i == 0 else tree.seeds(tree.parent[i])[3 if tree.is_right(i) else 2]
        return W, H, self._levy_area(W, H, tree.end[i] - tree.start[i], seed)

    def _values(self, i: int) -> tuple[Tensor, Any]:
        """W and H over an interval of the tree."""
        tree, cache = self._tree, self._cache
        values, below = self._whole, []
        while i:
            parent = tree.parent[i]
            if (halves := cache.get(parent)) is not None:
                cache.move_to_end(parent)
                values = halves[tree.is_right(i)]
                break
            below.append(i)
            i = parent
        for i in reversed(below):
            parent = tree.parent[i]
            halves = self._halves(parent, *values)
            values = halves[tree.is_right(i)]
            if self._cache_size != 0:
                if len(cache) == self._cache_size:
                    cache.popitem(last=False)
                cache[parent] = halves
        return values

    def _halves(self, i: int, W: Tensor, H: Any) -> tuple[tuple[Tensor, Any], tuple[Tensor, Any]]:
        """W and H over the two children of an interval, given those over the interval itself."""
        tree = self._tree
        start, middle, end = tree.start[i], tree.end[tree.child[i]], tree.end[i]
        W_seed, H_seed, _, _ = tree.seeds(i)
        inverse = 1 / (end - start)
        left, right = middle - start, end - middle
        X = self._draw(W_seed)
        if not self._have_H:
            W_left = left * W * inverse + math.sqrt(left * right * inverse) * X
            return (W_left, None), (W - W_left, None)
        # The order of the operations decides the last bit.
        Y = self._draw(H_seed)
        left_2, right_2 = left**2, right**2
        v = 0.5 * math.sqrt(left * right / (left * left_2 + right * right_2))
        a, b, c = v * left_2 * inverse, v * right_2 * inverse, v * (1 / math.sqrt(3))
        of_X = 2 * (a * left + b * right) * inverse * X
        share, rest = left * inverse, right * inverse
        W_left = share * W + 6 * share * right * inverse * H + of_X
        H_left = share**2 * H - a * X + c * right * Y
        W_right = rest * W - 6 * rest * left * inverse * H - of_X
        H_right = rest**2 * H - b * X - c * left * Y
        return (W_left, H_left), (W_right, H_right)

    def _levy_area(self, W: Tensor, H: Tensor, dt: float, seed: int) -> Tensor:
        """A over an interval, given W and H."""
        if W.ndim < 2:  # a batch of scalar Brownian motions
            return torch.zeros_like(W)
        A = outer(H, W) - outer(W, H)
        noise = _randn((*self._size, self._size[-1]), self._dtype, self._device, seed)
        noise = noise - noise.transpose(-1, -2)
        if self._levy_area_approximation == "davie":
            return A + math.sqrt(1 / 12 * dt**2) * noise
        tenth, H_2 = 0.1 * dt, H**2
        return A + (tenth * (tenth + H_2.unsqueeze(-1) + H_2.unsqueeze(-2))).sqrt() * noise

    def _draw(self, seed: int) -> Tensor:
        return _randn(self._size, self._dtype, self._device, seed)

    def display_binary_tree(self) -> None:
        """Print the intervals that there are, each below the one it is part of."""
        tree = self._tree
        if not self._halfway_tree:
            with self._guard:
                tree.cut_all()
        later, lines = [(0, 0)], []
        while later:
            i, depth = later.pop()
            lines.append(f"{' ' * depth}({tree.start[i]}, {tree.end[i]})")
            if left := tree.child[i]:
                later += [(left + 1, depth + 1), (left, depth + 1)]
        print("\n".join(lines))

    def __repr__(self) -> str:
        dt = None if self._dt is None else f"{self._dt:.3f}"
        return (
            f"{type(self).__name__}(t0={self._tree.start[0]:.3f}, t1={self._tree.end[0]:.3f}, size={self._size}, "
            f"dtype={self._dtype}, device={self._device!r}, entropy={self._entropy}, dt={dt}, tol={self._tol}, "
            f"pool_size={self._pool_size}, cache_size={self._cache_size}, "
            f"levy_area_approximation={self._levy_area_approximation!r})"
        )

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
    def entropy(self) -> int:
        """The seed."""
        return self._entropy

    @property
    def levy_area_approximation(self) -> str:
        return self._levy_area_approximation

    @property
    def dt(self) -> float | None:
        """The length of queries as given, None if it is observed."""
        return self._dt

    @property
    def tol(self) -> float:
        """What times are resolved to."""
        return self._tol

    @property
    def pool_size(self) -> int:
        """The size of the pool that the seeds are mixed in."""
        return self._pool_size

    @property
    def cache_size(self) -> int | None:
        """For how many cuts the increments are kept."""
        return self._cache_size

    @property
    def halfway_tree(self) -> bool:
        """Whether intervals are always cut at their middle."""
        return self._halfway_tree


def _number(name: str, value: Any) -> float:
    """A number, or the element of a tensor of one element, as a float."""
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(
            f"{name} must be a number or a tensor of one element, got a tensor of shape {list(value.shape)}"
        )
    try:
        number = float("no number" if isinstance(value, str) else value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number or a tensor of one element, got {value!r}") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}")
    return number


def _check_known(name: str, value: Any) -> None:
    """Check a given increment or Lévy area."""
    if value is None:
        return
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be a tensor, got {value!r}: make it one with torch.tensor")
    if not value.is_floating_point():
        raise ValueError(f"{name} must be of a floating-point type, got {value.dtype}: convert it with {name}.float()")


def _common_size(size: Any, W: Tensor | None, H: Tensor | None) -> tuple[int, ...]:
    given = {"size": None if size is None else tuple(size), **_attributes("shape", W, H)}
    return tuple(_common(given, "there is nothing to tell the shape of a sample: give size, W or H"))


def _common_dtype(dtype: torch.dtype | None, W: Tensor | None, H: Tensor | None) -> torch.dtype:
    given = {"dtype": dtype, **_attributes("dtype", W, H)}
    return torch.get_default_dtype() if W is None and H is None and dtype is None else _common(given)


def _common_device(device: Any, W: Tensor | None, H: Tensor | None) -> torch.device:
    given = {"device": None if device is None else torch.device(device), **_attributes("device", W, H)}
    return torch.device("cpu") if W is None and H is None and device is None else _common(given)


def _attributes(name: str, W: Tensor | None, H: Tensor | None) -> dict[str, Any]:
    return {f"W.{name}": getattr(W, name, None), f"H.{name}": getattr(H, name, None)}


def _common(given: dict[str, Any], if_none: str = "") -> Any:
    """The value that all of them have, the names of which are the keys; None is no value."""
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        raise ValueError(if_none)
    first, *others = given.values()
    if any(value != first for value in others):
        listed = ", ".join(f"{name}={value}" for name, value in given.items())
        raise ValueError(f"these must be equal, got {listed}: leave out all but one, or convert W and H")
    return first
