"""Adams and Moulton's methods, their equations solved by functional iteration."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from torchivp.boundary import warn
from torchivp.checks import check_whole_number
from torchivp.error_norm import ErrorNorm
from torchivp.methods.method import Check, FlatFunc
from torchivp.methods.ode.combined import combined
from torchivp.methods.ode.fixed_step_adams import Corrected, FixedStepAdams, among
from torchivp.methods.ode.past_slopes import Grid
from torchivp.methods.ode.slope_polynomial import Array
from torchivp.times import time_scalar


class ImplicitAdams(FixedStepAdams):
    """Adams, Bashforth and Moulton's methods, of order 4 or another up to 12, fixed steps: about three evaluations.

    The explicit method predicts the end of the step, and the implicit one corrects it until a correction is within
    the tolerance. More precise and more stable than the explicit method. Hairer, Norsett and Wanner, "Solving Ordinary
    Differential Equations I", III.1 and, for steps of different sizes, III.5. Dense output: of the order of the method.

    Options: `max_order`, the order, 1 to 12; `max_iters`, the largest number of corrections.
    """

    references = ("HairerNorsettWanner1993",)
    max_iters: ClassVar[int] = 4
    options: ClassVar[Mapping[str, Check]] = {
        **FixedStepAdams.options,
        "max_iters": partial(check_whole_number, smallest=1),
    }

    def __init__(self, y0: Tensor, real_dtype: torch.dtype, norm: ErrorNorm):
        super().__init__(y0, real_dtype, norm)
        self._warned = False

    @property
    def slopes_needed(self) -> int:
        # The slope at the end of the step is one more.
        return max(self.max_order - 1, 1)

    def correct(
        self,
        func: FlatFunc,
        t1: float | Tensor,
        y0: Tensor,
        predicted: Tensor,
        grid: Grid,
        implicit: Array,
        slopes: Tensor,
        norm: ErrorNorm,
    ) -> Corrected:
        t, norm = time_scalar(t1, self._real_dtype, y0.device), norm.of_equations()
        n = self.max_order
        weights = grid.weights(implicit[:, n - 1 : n, :n], y0)
        y, slope, stages = predicted, slopes[:, 0], slopes
        slopes = slopes[:, : n - 1]
        going, changes = np.ones(len(y0), dtype=bool), np.zeros(len(y0))
        for _ in range(self.max_iters):
            # Rows that have converged wait for the others as they are.
            slope = among(going, func(t, y), slope)
            stages = torch.cat((slope.unsqueeze(1), slopes), 1)
            before, y = y, among(going, y0 + combined(weights, stages).squeeze(1), y)
            slope, changes = stages.select(1, 0), norm.rows(y - before, y0, y)
            going = going & ~(changes <= 1.0)
            if not np.count_nonzero(going):
                break
        else:
            self._warn(changes, t1)
        return Corrected(y, grid.nodes[:, :n], np.full(len(y0), n), stages)

    def _warn(self, changes: np.ndarray, t1: float | Tensor) -> None:
        if self._warned or not (changes > 1.0).any():  # what is not a number is reported by the solve
            return
        self._warned = True
        worst = int(np.nanargmax(changes))
        t = float(t1.detach().reshape(-1)[worst] if isinstance(t1, Tensor) else t1)
        warn(
            f"Functional iteration did not converge in {self.max_iters} iterations at t = {t:.9g}, step size "
            f"too large for the corrector: the last change was {changes[worst]:.3g} times the tolerance. Take shorter "
            "steps, allow more iterations with max_iters, or raise rtol and atol",
        )
