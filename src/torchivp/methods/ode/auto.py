"""Two methods in one: an explicit one where that is enough, and one for stiff problems where it is not."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from torchivp.dense import StepInterpolant, WithinSteps
from torchivp.error_norm import ErrorNorm
from torchivp.mass import projection_of
from torchivp.methods.consistent import slopes_of
from torchivp.methods.implicit.linear import LARGEST_DENSE
from torchivp.methods.implicit.per_row import Numbers, all_of, any_of, pick, without
from torchivp.methods.jacobian import autograd_sees, sparsity_of
from torchivp.methods.method import FlatFunc, Method, Step, Work, choice, derive, map_rows
from torchivp.methods.ode.bdf import BDF
from torchivp.methods.ode.rodas5p import Rodas5P
from torchivp.methods.ode.rosenbrock import UnseenDerivatives
from torchivp.methods.ode.some_rows import OnSome, WithinParts, put_together, taken
from torchivp.methods.ode.stiffness import RELIEF, RELIEF_FROM_PAST, Modes
from torchivp.methods.ode.tsit5 import Tsit5
from torchivp.methods.real_pairs import on_real_pairs, to_real
from torchivp.references import Sources
from torchivp.times import time_scalar, time_value
from torchivp.torch_func import inside_transform, read, read_rows

_LARGEST_ROSENBROCK = 200
"""The size of the largest state for which rodas5p takes no more time than bdf: each of its steps needs a Jacobian and
its factors, and bdf keeps both over many steps. Of a reaction-diffusion problem they take the same time here, at 400
bdf takes a third, dense or sparse, to errors twice as large."""

_CAUTION = 2.0
"""Errors of bdf count as so many times as large: by itself it would be given a more careful controller."""

_MOST_ENTRIES = 2**26
"""How many entries the dense matrices of all rows may have: 512 MB."""

LAST = np.array(Tsit5.tableau.b) - Tsit5.tableau.matrix[-2]
"""What makes the difference of the states of the last two stages of tsit5 of its slopes."""


class AutoCarry(NamedTuple):
    """What steps start from besides the states.

    Attributes:
        modes: which method each row is at.
        slope: `func` at the starts of the steps, [rows, size], for the explicit method; None if it is not known.
        own: what the stiff method starts from.
    """

    modes: Modes
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
    """tsit5 where the problem is not stiff, and rodas5p where it is; bdf for more than 200 states.

    Each row starts with tsit5. The difference of its last two stages, which lie at the same time, shows how fast func
    changes there: where stability and not accuracy limits the steps, the stiff method takes over, until its steps are
    so short that tsit5 would be stable. Hairer and Wanner, "Solving Ordinary Differential Equations II", IV.2. Where
    autograd does not see how func depends on the state, or cannot differentiate it twice, as derivatives of stiff steps
    ask, tsit5 goes on: a derivative is compared with a difference before the stiff method takes over. So it does where
    dense matrices of all rows would take more than 512 MB. With a singular mass matrix all steps are those of the stiff
    method. With fixed steps, none of which is rejected, `solve_ivp` takes tsit5 alone, or rodas5p where a Jacobian, its
    pattern or a singular mass matrix is given. `stats.stiff` and `stats.switches` say what was done. Dense output:
    that of the methods, of order 4 but for bdf.
    """

    references = ("HairerWanner1996",)
    order = Tsit5.order
    error_order = Tsit5.error_order
    rows_keep_carry = True
    uses_jacobian = True
    takes_mass = True
    parts: ClassVar[tuple[type[Tsit5], type[Rodas5P]]] = (Tsit5, Rodas5P)
    large: ClassVar[type[BDF] | None] = BDF
    largest_dense: ClassVar[int] = LARGEST_DENSE
    widest_gap = max(method.widest_gap for method in parts)

    def __init__(self, y0: Tensor, real_dtype: torch.dtype, norm: ErrorNorm):
        self._real_dtype = real_dtype
        self._like, self._norm = y0, norm
        self._explicit = Tsit5(y0, real_dtype, norm)
        stiff = self.stiff_method(y0.shape[1] * (2 if y0.is_complex() else 1))
        self._varies, self.iterates_anew = stiff.varies_order, stiff.iterates_anew
        self._make_implicit = partial(stiff, y0, real_dtype, norm)

    # Most solves need neither of these, or not before some steps.

    @cached_property
    def _implicit(self) -> Rodas5P | BDF:
        return self._make_implicit()

    @cached_property
    def _last(self) -> Tensor:
        return torch.tensor(LAST[None], dtype=self._like.dtype, device=self._like.device)

    @classmethod
    def stiff_method(cls, size: int) -> type[Rodas5P] | type[BDF]:
        """The stiff method for a state of so many real numbers."""
        return cls.parts[1] if cls.large is None or size <= _LARGEST_ROSENBROCK else cls.large

    @classmethod
    def at_steps(cls, fixed: bool, rows: int = 1) -> type[Self]:
        large = None if fixed else cls.large  # bdf would stay at order 1
        most = min(cls.largest_dense, math.isqrt(_MOST_ENTRIES // max(rows, 1)))
        same = (large, most) == (cls.large, cls.largest_dense)
        return cls if same else derive(cls, large=large, largest_dense=most)

    @classmethod
    def cited(cls, stiff: int = 1) -> Sources:
        of_stiff = cls.stiff_method(stiff).cited() if stiff else {}
        return {**super().cited(), **Tsit5.cited(), **of_stiff}

    def initial_carry(self, f0: Tensor) -> AutoCarry:
        own = self._implicit.initial_carry(f0) if self._varies else None
        return AutoCarry(Modes.of_rows(len(f0)), self._explicit.initial_carry(f0), own)

    def carry_to_keep(self, carry: AutoCarry | None) -> AutoCarry | None:
        if carry is None or carry.own is None or not self._varies:
            return carry and carry._replace(own=None)
        return carry._replace(own=self._implicit.carry_to_keep(carry.own))

    def at_order(self, carry: AutoCarry | None, order: int | np.ndarray) -> AutoCarry | None:
        if carry is None or carry.own is None or not any_of(carry.modes.stiff):
            return carry
        return carry._replace(own=self._implicit.at_order(carry.own, order))

    def again_at(self, carry: AutoCarry | None, told: int | np.ndarray) -> AutoCarry | None:
        """Negative where the stiff method took the step: what speaks for which may differ by rounding alone."""
        stiff = bool(told < 0) if isinstance(told, int) else np.asarray(told) < 0
        modes, slope, own = carry or AutoCarry(
            Modes() if isinstance(stiff, bool) else Modes.of_rows(len(stiff)), None, None
        )
        if isinstance(stiff, bool) and not isinstance(modes.stiff, bool):  # those of an initial carry, that of rows
            modes = Modes()
        if carry is None and not any_of(stiff):
            return None
        slope = slope if not any_of(modes.stiff ^ stiff) else None  # where it is not known whose it is
        return self.at_order(AutoCarry(modes.as_told(stiff), slope, own), abs(told))

    def step(self, func: FlatFunc, t0: float | Tensor, t1: float | Tensor, y0: Tensor, carry: AutoCarry | None) -> Step:
        modes, slope, own = carry or AutoCarry(Modes(), None, None)
        if not isinstance(modes.stiff, bool):  # those of an initial carry, that of rows
            modes = Modes()
        modes = self._usable(modes, func, t0, y0)
        if modes.stiff:
            try:
                step = self._stiff_step(self._implicit.step(func, t0, t1, y0, None if modes.switched else own))
            except UnseenDerivatives:
                modes = modes.relieved(True)
            else:
                stiffness = abs(time_value(t1 - t0)) * read(self._implicit.radius(step).squeeze(0))
                return self._finished(step, _Parts(None, step, None), modes, stiffness, None)
        step = self._explicit.step(func, t0, t1, y0, slope)
        if self._varies:
            step.order = self.error_order
        looks = modes.wait <= 0
        stiffness = read(self._stiffness(step.stages.all(), 1).squeeze(0)) if looks else math.nan
        return self._finished(step, _Parts(step, None, None), modes, stiffness, None)

    def step_rows(
        self, func: FlatFunc, t0: Tensor, t1: Tensor, y0: Tensor, carry: AutoCarry | None, norm: ErrorNorm
    ) -> Step:
        carry = carry or AutoCarry(Modes.of_rows(len(y0)), None, None)
        modes = self._usable(carry.modes, func, t0, y0)
        carry = AutoCarry(modes, carry.slope, self._begun(func, t0, y0, modes, carry.own))
        try:
            return self._step_rows(func, (t0, t1), y0, carry, norm)
        except UnseenDerivatives:
            carry = AutoCarry(modes.relieved(modes.stiff), None, None)
            return self._step_rows(func, (t0, t1), y0, carry, norm)

    def _stiff_step(self, step: Step) -> Step:
        """A step of the stiff method, with the errors that its controller is told."""
        if not self._varies or step.error is None:
            return step
        others = [(order, _CAUTION * error) for order, error in step.others]
        return replace(step, error=_CAUTION * step.error, others=others)

    def _usable(self, modes: Modes, func: FlatFunc, t: float | Tensor, y: Tensor) -> Modes:
        """The modes, with the stiff method in no row that it would serve badly, and in all that nothing else can."""
        if projection_of(func) is not None:
            return modes if all_of(modes.stiff) else modes.always_stiff()
        if (
            modes.told
            or not any_of(modes.switched)
            or not any_of(new := modes.stiff & modes.switched)
            or inside_transform()
        ):
            return modes
        if not isinstance(t, Tensor):
            t = time_scalar(t, self._real_dtype, y.device)
        if not self._fits(func, y):
            return modes.relieved(new)
        real = on_real_pairs(func) if y.is_complex() else func
        seen = autograd_sees(real, t.to(self._real_dtype), to_real(y))
        blind = without(new, bool(seen[0]) if isinstance(new, bool) else seen)
        return modes.relieved(blind) if any_of(blind) else modes

    def _fits(self, func: FlatFunc, y: Tensor) -> bool:
        """Whether the matrices of the stiff method, of all rows, are not too large; by products it needs none."""
        size, sparsity = y.shape[1] * (2 if y.is_complex() else 1), sparsity_of(func)
        by_products = self._varies and size > LARGEST_DENSE
        return size <= self.largest_dense or by_products or (sparsity is not None and sparsity.pays)

    def _begun(self, func: FlatFunc, t: Tensor, y: Tensor, modes: Modes, own: Any) -> Any:
        """What the stiff method starts from, with a past in no row that begins with it; `own` is what it was handed.

        A method that keeps a past has something for every row, so that rows can be chosen and put together.
        """
        if not self._varies:
            return own
        new = modes.stiff & modes.switched if own is not None else modes.stiff
        if own is not None and not new.any():
            return own
        slopes = torch.zeros_like(y) if not new.any() else slopes_of(func)(t.to(self._real_dtype), y).clone()
        begun = self._implicit.initial_carry(slopes)
        return begun if own is None else map_rows(choice(new), begun, own)

    def _step_rows(
        self, func: FlatFunc, ends: tuple[Tensor, Tensor], y0: Tensor, carry: AutoCarry, norm: ErrorNorm
    ) -> Step:
        modes, slope, own = carry
        if not any_of(modes.stiff):
            step = self._explicit.step_rows(func, *ends, y0, slope, norm)
            if self._varies:
                step.order = np.full(len(y0), self.error_order)
            looks = any_of(modes.wait <= 0)
            stiffness = read_rows(self._stiffness(step.stages, len(y0))) if looks else math.nan
            return self._finished(step, _Parts(step, None, None), modes, stiffness, own)
        sizes = np.abs(read_rows((ends[1] - ends[0]).squeeze(1)))
        if all_of(modes.stiff):
            step = self._stiff_step(self._implicit.step_rows(func, *ends, y0, own, norm))
            stiffness = sizes * read_rows(self._implicit.radius(step))
            return self._finished(step, _Parts(None, step, None), modes, stiffness, None)
        parts, stiffness = [], np.empty(len(y0))
        rows = [torch.from_numpy(np.flatnonzero(x)).to(y0.device) for x in (~modes.stiff, modes.stiff)]
        for method, own_carry, chosen in zip((self._explicit, self._implicit), (slope, own), rows, strict=True):
            some = OnSome(func, chosen, ends[0].detach().to(self._real_dtype), y0.detach())
            start, end, y = (x.index_select(0, chosen) for x in (*ends, y0))
            parts.append(method.step_rows(some, start, end, y, taken(own_carry, chosen), norm.take(chosen)))
        parts[1] = self._stiff_step(parts[1])
        stiffness[~modes.stiff] = read_rows(self._stiffness(parts[0].stages, len(rows[0])))
        stiffness[modes.stiff] = sizes[modes.stiff] * read_rows(self._implicit.radius(parts[1]))
        whole = put_together(ends, y0, parts, rows, self.error_order)
        return self._finished(whole, _Parts(parts[0], parts[1], modes.stiff), modes, stiffness, None)

    def _finished(self, step: Step, parts: _Parts, modes: Modes, stiffness: Numbers, own: Any) -> Step:
        """The step of all rows, with what the next one starts from; `step` comes with what the methods hand on.

        `own` is what the stiff method was to start from, if it has taken no part.
        """
        after, work = modes.after(stiffness, RELIEF_FROM_PAST if self._varies else RELIEF), step.work
        (slope, next_own), (old_slope, old_own) = parts.handed_on(step.carry), parts.handed_on(step.retry)
        if parts.implicit is None:
            next_own = old_own = own
        elif any_of(after.switched & modes.stiff):  # a slope that the stiff method does not hand on
            slope = None
        if parts.implicit is not None or any_of(modes.switched):
            work = (work or Work())._replace(stiff=modes.stiff * 1, switches=modes.switched * 1)
        carry, retry = AutoCarry(after, slope, next_own), AutoCarry(modes.settled(), old_slope, old_own)
        return Step(
            step.t0,
            step.t1,
            step.y0,
            step.y1,
            step.error,
            carry,
            retry,
            parts,
            step.order,
            step.others,
            step.hold,
            step.failure,
            work,
            step.growth,
            pick(modes.stiff, -1, 1) * (self.error_order if step.order is None else step.order),
        )

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
        return WithinParts(within, stiff)
