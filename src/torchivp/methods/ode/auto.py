"""Two methods in one: an explicit one where that is enough, and one for stiff problems where it is not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchivp.dense import StepInterpolant, WithinSteps
from torchivp.error_norm import ErrorNorm
from torchivp.mass import projection_of
from torchivp.methods.implicit.per_row import Flags, Numbers, all_of, any_of, pick, without
from torchivp.methods.jacobian import autograd_sees, given_jacobian, sparsity_of
from torchivp.methods.method import FlatFunc, Memory, Method, Step, Work, map_rows, on_arrays
from torchivp.methods.ode.rodas5p import Rodas5P
from torchivp.methods.ode.rosenbrock import UnseenDerivatives
from torchivp.methods.ode.tsit5 import Tsit5
from torchivp.methods.real_pairs import on_real_pairs, to_real
from torchivp.references import Sources
from torchivp.times import time_scalar, time_value
from torchivp.torch_func import inside_transform, read, read_rows

STABLE = 2.2
"""Steps are limited by stability where the step times the spectral radius is larger: for tsit5 it varies about 3."""

_CALM = 1.5
"""Below this, stability would not limit the steps of tsit5."""

PATIENCE = 10
"""After so many more steps that stability has limited than others, the stiff method takes over."""

_RELIEF = 5
"""After so many steps in turn that would be stable, the explicit one does."""

EVERY = 10
"""Steps in which nothing speaks for the stiff method are looked at once in so many."""

_PAUSE = 20
"""Where the stiff method cannot be used, so many more such steps are taken before it is thought of again."""

_LARGEST = 2000
"""The size of the largest state whose dense matrices are factorised."""

_NEVER = -(2**62)
"""The count in rows that must not switch."""

LAST = np.array(Tsit5.tableau.b) - Tsit5.tableau.matrix[-2]
"""What makes the difference of the states of the last two stages of tsit5 of its slopes."""


@dataclass(slots=True)
class _Modes(Memory):
    """Which method each row is at, and what speaks against it; of a single row in Python's numbers.

    Attributes:
        stiff: whether it is the stiff one.
        count: how many steps speak for the other one.
        wait: in how many steps to look whether the next one does.
        switched: whether the last step has led to the other one.
    """

    stiff: Flags = False
    count: Numbers = 0
    wait: Numbers = 0
    switched: Flags = False

    @staticmethod
    def of_rows(rows: int) -> _Modes:
        no, zero = np.zeros(rows, dtype=bool), np.zeros(rows, dtype=np.int64)
        return _Modes(no, zero, zero, no)

    def map(self, function: Callable[..., Tensor], *others: _Modes) -> _Modes:
        each = zip(*((x.stiff, x.count, x.wait, x.switched) for x in (self, *others)), strict=True)
        return _Modes(*(on_arrays(function, *arrays) for arrays in each))

    def after(self, stiffness: Numbers) -> _Modes:
        """Those after a step in which the step times the spectral radius was this; NaN where nobody knows."""
        looked = self.wait <= 0
        against = looked & pick(self.stiff, stiffness < _CALM, stiffness > STABLE)
        rest = pick(self.stiff, 0, pick(self.count > 0, self.count - 1, self.count))
        count = pick(against, self.count + 1, pick(looked, rest, self.count))
        switched = count >= pick(self.stiff, _RELIEF, PATIENCE)
        stiff, count = self.stiff ^ switched, pick(switched, 0, count)
        wait = pick(looked, pick(stiff | (count > 0), 0, EVERY - 1), self.wait - 1)
        return _Modes(stiff, count, wait, switched)

    def settled(self) -> _Modes:
        """The same, for when the step is tried again."""
        return replace(self, switched=self.switched & False) if any_of(self.switched) else self

    def relieved(self, rows: Flags) -> _Modes:
        """The same, but that these rows go back to the explicit method, for a while at least."""
        return _Modes(
            without(self.stiff, rows), pick(rows, -_PAUSE, self.count), self.wait, without(self.switched, rows)
        )

    def always_stiff(self) -> _Modes:
        """The same, but that all rows are at the stiff method and stay there."""
        every = self.stiff | True
        return _Modes(every, pick(every, _NEVER, self.count), self.wait, self.switched & False)


class AutoCarry(NamedTuple):
    """What steps start from besides the states.

    Attributes:
        modes: which method each row is at.
        slope: `func` at the starts of the steps, [rows, size], for the explicit method; None if it is not known.
        own: what the stiff method starts from.
    """

    modes: _Modes
    slope: Tensor | None
    own: Any


class _Parts(NamedTuple):
    """The steps of the rows at each method, None where there are none; where there are both, which are at the stiff."""

    explicit: Step | None
    implicit: Step | None
    stiff: np.ndarray | None

    def handed_on(self, carry: Any) -> tuple[Any, Any]:
        """What the explicit method hands on, and the stiff one; a pair already where both have taken steps."""
        if self.implicit is None:
            return carry, None
        return (None, carry) if self.explicit is None else carry


class Auto(Method):
    """tsit5 where the problem is not stiff, and rodas5p where it is.

    Each row starts with tsit5. The difference of its last two stages, which lie at the same time, shows how fast func
    changes there: where stability and not accuracy limits the steps, the stiff method takes over, until its steps are
    so short that tsit5 would be stable. Hairer and Wanner, "Solving Ordinary Differential Equations II", IV.2. Where
    autograd does not see how func depends on the state, or cannot differentiate it twice, as derivatives of stiff steps
    ask, tsit5 goes on: a derivative is compared with a difference before the stiff method takes over. With a singular
    mass matrix all steps are those of rodas5p. `stats.stiff` and `stats.switches` say what was done. Dense output: that
    of both methods, of order 4.
    """

    references = ("HairerWanner1996",)
    order = Tsit5.order
    error_order = Tsit5.error_order
    rows_keep_carry = True
    uses_jacobian = True
    takes_mass = True
    parts: ClassVar[tuple[type[Tsit5], type[Rodas5P]]] = (Tsit5, Rodas5P)
    widest_gap = max(method.widest_gap for method in parts)

    def __init__(self, y0: Tensor, real_dtype: torch.dtype, norm: ErrorNorm):
        self._real_dtype = real_dtype
        self._like, self._norm = y0, norm
        self._explicit = Tsit5(y0, real_dtype, norm)

    # Most solves need neither of these, or not before some steps.

    @cached_property
    def _implicit(self) -> Rodas5P:
        return Rodas5P(self._like, self._real_dtype, self._norm)

    @cached_property
    def _last(self) -> Tensor:
        return torch.tensor(LAST[None], dtype=self._like.dtype, device=self._like.device)

    @classmethod
    def cited(cls, stiff: bool = True) -> Sources:
        return {**super().cited(stiff), **Tsit5.cited(), **(Rodas5P.cited() if stiff else {})}

    def initial_carry(self, f0: Tensor) -> AutoCarry:
        return AutoCarry(_Modes.of_rows(len(f0)), self._explicit.initial_carry(f0), None)

    def carry_to_keep(self, carry: AutoCarry | None) -> AutoCarry | None:
        return carry and carry._replace(own=None)

    def step(self, func: FlatFunc, t0: float | Tensor, t1: float | Tensor, y0: Tensor, carry: AutoCarry | None) -> Step:
        modes, slope, own = carry or AutoCarry(_Modes(), None, None)
        if not isinstance(modes.stiff, bool):  # those of an initial carry, that of rows
            modes = _Modes()
        modes = self._usable(modes, func, t0, y0)
        if modes.stiff:
            try:
                step = self._implicit.step(func, t0, t1, y0, own)
            except UnseenDerivatives:
                modes = modes.relieved(True)
            else:
                stiffness = abs(time_value(t1 - t0)) * read(self._implicit.radius(step).squeeze(0))
                return self._finished(step, _Parts(None, step, None), modes, stiffness)
        step = self._explicit.step(func, t0, t1, y0, slope)
        looks = modes.wait <= 0
        stiffness = read(self._stiffness(step.stages.all(), 1).squeeze(0)) if looks else math.nan
        return self._finished(step, _Parts(step, None, None), modes, stiffness)

    def step_rows(
        self, func: FlatFunc, t0: Tensor, t1: Tensor, y0: Tensor, carry: AutoCarry | None, norm: ErrorNorm
    ) -> Step:
        carry = carry or AutoCarry(_Modes.of_rows(len(y0)), None, None)
        carry = carry._replace(modes=self._usable(carry.modes, func, t0, y0))
        try:
            return self._step_rows(func, (t0, t1), y0, carry, norm)
        except UnseenDerivatives:
            carry = AutoCarry(carry.modes.relieved(carry.modes.stiff), None, None)
            return self._step_rows(func, (t0, t1), y0, carry, norm)

    def _usable(self, modes: _Modes, func: FlatFunc, t: float | Tensor, y: Tensor) -> _Modes:
        """The modes, with the stiff method in no row that it would serve badly, and in all that nothing else can."""
        if projection_of(func) is not None:
            return modes if all_of(modes.stiff) else modes.always_stiff()
        new = modes.stiff & modes.switched
        if not any_of(new) or inside_transform():
            return modes
        if not self._fits(func, y):
            return modes.relieved(new)
        if not isinstance(t, Tensor):
            t = time_scalar(t, self._real_dtype, y.device)
        real = on_real_pairs(func) if y.is_complex() else func
        seen = autograd_sees(real, t.to(self._real_dtype), to_real(y))
        blind = without(new, bool(seen[0]) if isinstance(new, bool) else seen)
        return modes.relieved(blind) if any_of(blind) else modes

    @staticmethod
    def _fits(func: FlatFunc, y: Tensor) -> bool:
        """Whether the matrices of the stiff method are small, or sparse."""
        sparsity = sparsity_of(func)
        return y.shape[1] <= _LARGEST or (sparsity is not None and sparsity.pays)

    def _step_rows(
        self, func: FlatFunc, ends: tuple[Tensor, Tensor], y0: Tensor, carry: AutoCarry, norm: ErrorNorm
    ) -> Step:
        modes, slope, own = carry
        if not modes.stiff.any():
            step = self._explicit.step_rows(func, *ends, y0, slope, norm)
            looks = (modes.wait <= 0).any()
            stiffness = read_rows(self._stiffness(step.stages, len(y0))) if looks else np.full(len(y0), math.nan)
            return self._finished(step, _Parts(step, None, None), modes, stiffness)
        sizes = np.abs(read_rows((ends[1] - ends[0]).squeeze(1)))
        if modes.stiff.all():
            step = self._implicit.step_rows(func, *ends, y0, own, norm)
            stiffness = sizes * read_rows(self._implicit.radius(step))
            return self._finished(step, _Parts(None, step, None), modes, stiffness)
        parts, stiffness = [], np.empty(len(y0))
        rows = [torch.from_numpy(np.flatnonzero(x)).to(y0.device) for x in (~modes.stiff, modes.stiff)]
        for method, own_carry, chosen in zip((self._explicit, self._implicit), (slope, own), rows, strict=True):
            some = _OnSome(func, chosen, ends[0].detach().to(self._real_dtype), y0.detach())
            start, end, y = (x.index_select(0, chosen) for x in (*ends, y0))
            parts.append(method.step_rows(some, start, end, y, _taken(own_carry, chosen), norm.take(chosen)))
        stiffness[~modes.stiff] = read_rows(self._stiffness(parts[0].stages, len(rows[0])))
        stiffness[modes.stiff] = sizes[modes.stiff] * read_rows(self._implicit.radius(parts[1]))
        whole = _put_together(ends, y0, parts, rows)
        return self._finished(whole, _Parts(parts[0], parts[1], modes.stiff), modes, stiffness)

    def _finished(self, step: Step, parts: _Parts, modes: _Modes, stiffness: Numbers) -> Step:
        """The step of all rows, with what the next one starts from; `step` comes with what the methods hand on."""
        after, work = modes.after(stiffness), step.work
        (slope, own), (old_slope, old_own) = parts.handed_on(step.carry), parts.handed_on(step.retry)
        if any_of(after.switched & modes.stiff):  # a slope that the stiff method does not hand on
            slope = None
        if any_of(modes.stiff) or any_of(modes.switched):
            work = (work or Work())._replace(stiff=modes.stiff * 1, switches=modes.switched * 1)
        carry, retry = AutoCarry(after, slope, own), AutoCarry(modes.settled(), old_slope, old_own)
        return Step(step.t0, step.t1, step.y0, step.y1, step.error, carry, retry, parts, work=work)

    def _stiffness(self, stages: Tensor, rows: int) -> Tensor:
        """The step times the spectral radius, by the last two stages of tsit5, [rows]."""
        with torch.no_grad():
            stages = stages.detach()
            states = torch.mm(self._last, stages).view(rows, -1)
            slopes = (stages[-1] - stages[-2]).view(rows, -1)
            return torch.linalg.vector_norm(slopes, dim=1) / torch.linalg.vector_norm(states, dim=1)

    def interpolant(self, func: FlatFunc, step: Step) -> StepInterpolant:
        explicit, implicit, _ = step.stages
        if explicit is not None:
            return self._explicit.interpolant(func, explicit)
        return self._implicit.interpolant(func, implicit)

    def interpolant_rows(self, func: FlatFunc, step: Step) -> WithinSteps:
        explicit, implicit, stiff = step.stages
        if implicit is None:
            return self._explicit.interpolant_rows(func, explicit)
        if explicit is None:
            return self._implicit.interpolant_rows(func, implicit)
        within = self._explicit.interpolant_rows(func, explicit), self._implicit.interpolant_rows(func, implicit)
        return _WithinParts(within, stiff)


def _taken(carry: Any, rows: Tensor) -> Any:
    return map_rows(lambda x: x.index_select(0, rows.to(x.device)), carry)


def _spread(carry: Any, rows: Tensor, count: int) -> Any:
    """The carry of some of the rows as one of all `count`; zero in the others."""
    return map_rows(lambda x: x.new_zeros(count, *x.shape[1:]).index_copy(0, rows.to(x.device), x), carry)


class _OnSome:
    """The function of all rows, and its Jacobian if that is given, for some of them; the others stay where they are."""

    def __init__(self, func: FlatFunc, rows: Tensor, t: Tensor, y: Tensor):
        with torch.inference_mode(False):  # autograd takes nothing that was made in it
            self._func, self._rows, self._t, self._y = func, rows.clone(), t.clone(), y.clone()
        self.sparsity = sparsity_of(func)
        given = given_jacobian(func)
        self.jacobian = None if given is None else _OnSome(given, rows, t, y)

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        times, states = self._t.index_copy(0, self._rows, t.to(self._t.dtype)), self._y.index_copy(0, self._rows, y)
        return self._func(times, states).index_select(0, self._rows)


def _put_together(ends: tuple[Tensor, Tensor], y0: Tensor, parts: Sequence[Step], rows: Sequence[Tensor]) -> Step:
    """One step of the steps of some rows and of the others; its carry and retry are pairs of theirs."""
    count, order = len(y0), torch.argsort(torch.cat(tuple(rows)))
    y1 = torch.cat([step.y1 for step in parts])[order]
    error = torch.cat([step.error for step in parts if step.error is not None])[order]
    carry, retry = (
        tuple(_spread(getattr(step, name), chosen, count) for step, chosen in zip(parts, rows, strict=True))
        for name in ("carry", "retry")
    )
    work = np.zeros((count, len(Work._fields)), dtype=np.int64)
    for step, chosen in zip(parts, rows, strict=True):
        if step.work is not None:
            work[chosen.cpu().numpy()] = step.work.by_row(len(chosen))
    return Step(*ends, y0, y1, error, carry, retry, None, work=Work(*work.T))


class _WithinParts:
    """The solutions within the steps of some rows and of the others.

    Args:
        within: those of the one and of the other.
        second: which rows are among the other, [rows].
    """

    def __init__(self, within: tuple[WithinSteps, WithinSteps], second: np.ndarray):
        self._within = within
        self._second = second
        self._place = np.where(second, np.cumsum(second), np.cumsum(~second)) - 1
        self._order = torch.from_numpy(np.argsort(np.concatenate([np.flatnonzero(~second), np.flatnonzero(second)])))

    def at(self, rows: Tensor, theta: np.ndarray | Tensor, t: np.ndarray | Tensor | None = None) -> Tensor:
        number = rows.cpu().numpy()
        pieces, entries = [], []
        for within, of_this in zip(self._within, (~self._second[number], self._second[number]), strict=True):
            here = np.flatnonzero(of_this)
            if not len(here):
                continue
            entries.append(here)
            places = torch.from_numpy(self._place[number[here]])
            pieces.append(within.at(places, _entries(theta, here), None if t is None else _entries(t, here)))
        order = torch.from_numpy(np.argsort(np.concatenate(entries)))
        y = torch.cat(pieces)
        return y.index_select(0, order.to(y.device))

    def at_fraction(self, theta: float) -> Tensor:
        y = torch.cat([within.at_fraction(theta) for within in self._within])
        return y.index_select(0, self._order.to(y.device))

    def kept(self) -> _WithinParts:
        one, other = (within.kept() for within in self._within)
        return _WithinParts((one, other), self._second)


def _entries(values: np.ndarray | Tensor, which: np.ndarray) -> np.ndarray | Tensor:
    return values[torch.from_numpy(which)] if isinstance(values, Tensor) else values[which]
