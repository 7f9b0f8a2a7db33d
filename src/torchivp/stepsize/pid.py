"""Step size control by the estimated error."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from torchivp.references import Sources
from torchivp.times import Times


class History(NamedTuple):
    """What a controller remembers of earlier steps: their scaled errors, and whether the last try failed."""

    last: float = 1.0
    before_last: float = 1.0
    rejected: bool = False


@dataclass
class RowHistory:
    """The `History` of many rows, an array for each entry."""

    last: np.ndarray
    before_last: np.ndarray
    rejected: np.ndarray


class Decision(NamedTuple):
    """Whether a step counts, the size of the next one, and what to remember."""

    accept: bool
    h: float
    history: History


@dataclass(frozen=True)
class PIDController:
    """Choose each step so that the scaled error of the next one is about 1.

    With the scaled errors e_n of this step, e_{n-1} and e_{n-2} of the two accepted before it, and k one more
    than the order of the error estimate, the next step is the last one times
    `safety * e_n^(-(kp+ki+kd)/k) * e_{n-1}^((kp+2kd)/k) * e_{n-2}^(-kd/k)`, within the factor limits. A step is
    accepted if its scaled error is at most 1. After a rejection the step does not grow at once.

    The default is the classical I controller; `PIController` is smoother where stability limits the step.
    Source: Soederlind, "Digital filters in adaptive time-stepping", ACM TOMS 29 (2003); Hairer, Norsett and
    Wanner, "Solving Ordinary Differential Equations I", II.4, for the limits.

    Args:
        kp: coefficient of the proportional term.
        ki: coefficient of the integral term.
        kd: coefficient of the derivative term.
        safety: aim at this fraction of the step that would just meet the tolerance.
        factor_min: the step shrinks at most by this factor.
        factor_max: the step grows at most by this factor.
        first_step: size of the first step; None to estimate it (Hairer, Norsett and Wanner, II.4).
        min_step: no step is smaller, except to land on a required time.
        max_step: no step is larger.
        dead_band: a step that could grow by less than this factor stays as it is, for methods that factorise matrices
            for a step size (Hairer and Wanner, "Solving Ordinary Differential Equations II", IV.8).
        accept_at_min_step: take a step of the size `min_step` whatever its error, instead of failing.

    Raises:
        ValueError: a size or factor is out of its range.

    Examples:
        >>> import torch
        >>> from torchivp import PIDController, solve_ivp
        >>> smooth = PIDController(kp=0.4, ki=0.3, max_step=0.5)
        >>> solve_ivp(lambda t, y: -y, (0, 5), torch.ones(1).double(), controller=smooth).success
        True
    """

    kp: float = 0.0
    ki: float = 1.0
    kd: float = 0.0
    safety: float = 0.9
    factor_min: float = 0.2
    factor_max: float = 10.0
    first_step: float | None = None
    min_step: float = 0.0
    max_step: float = math.inf
    dead_band: float = 1.0
    accept_at_min_step: bool = False

    def __post_init__(self) -> None:
        gain = self.kp + self.ki + self.kd
        if not (0 < gain < math.inf):
            raise ValueError(f"kp + ki + kd must be positive, got {gain}: the step size must fall with the error")
        if not 0 < self.safety < 1:
            raise ValueError(f"safety must lie between 0 and 1, got {self.safety}; 0.9 is usual")
        if not 0 < self.factor_min < 1 < self.factor_max:
            raise ValueError(
                "the factors must satisfy 0 < factor_min < 1 < factor_max, "
                f"got {self.factor_min} and {self.factor_max}; 0.2 and 10 are usual"
            )
        if not 1 <= self.dead_band < self.factor_max:
            raise ValueError(
                f"dead_band must be at least 1 and less than factor_max, got {self.dead_band}; 1.2 is usual for "
                "methods that factorise matrices"
            )
        if not (0 <= self.min_step <= self.max_step and self.max_step > 0):
            raise ValueError(f"need 0 <= min_step <= max_step, max_step > 0, got {self.min_step} and {self.max_step}")
        if self.first_step is not None and not (self.first_step > 0 and math.isfinite(self.first_step)):
            raise ValueError(
                f"first_step must be positive, got {self.first_step}; "
                "the direction of integration comes from the order of the times"
            )

    def cited(self) -> Sources:
        """How it sizes steps, and the sources of that."""
        sources = ["HairerNorsettWanner1993"]
        if (self.kp, self.ki, self.kd) == (0.4, 0.3, 0.0):
            sources.append("Gustafsson1991")
        elif self.kp or self.kd:
            sources.append("Soderlind2003")
        if self.dead_band > 1:
            sources.append("HairerWanner1996")
        return {"step sizes": tuple(sources)}

    def targets(self, times: Times) -> list[float]:
        """The times that a step must end on: the end alone."""
        return [times.end]

    def adapt(self, error: float, h: float, proposed: float, history: History, error_order: float) -> Decision:
        """Judge a step whose scaled error is `error`, and size the next one.

        The step's size is `h`; it was `proposed` before the step was fitted to a required time.
        """
        accept = error <= 1.0 or (self.accept_at_min_step and proposed <= self.min_step and math.isfinite(error))
        factor = self._factor(error, history, error_order + 1) if math.isfinite(error) else self.factor_min
        # A rejected step must shrink, whatever the history says, and must not grow at once after that.
        largest = self.safety if not accept else 1.0 if history.rejected else self.factor_max
        factor = min(max(factor, self.factor_min), largest)
        if 1.0 < factor < self.dead_band:
            factor = 1.0
        next_h = min(max(h * factor, self.min_step), self.max_step)
        if not accept:
            return Decision(False, next_h, history._replace(rejected=True))
        return Decision(True, next_h, History(error, history.last))

    def adapt_rows(
        self,
        error: np.ndarray,
        h: np.ndarray,
        proposed: np.ndarray,
        history: RowHistory,
        error_order: int | np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """`adapt` for many rows at once: which steps to accept, and the sizes of the next; `history` is not changed."""
        accept = error <= 1.0
        if self.accept_at_min_step:
            accept |= (proposed <= self.min_step) & np.isfinite(error)
        k = error_order + 1
        factor = self.safety * np.maximum(error, sys.float_info.min) ** (-(self.kp + self.ki + self.kd) / k)
        if self.kp or self.kd:
            factor *= np.maximum(history.last, 1e-10) ** ((self.kp + 2 * self.kd) / k)
            factor *= np.maximum(history.before_last, 1e-10) ** (-self.kd / k)
            factor[error == 0.0] = self.factor_max
        largest: Any = self.factor_max
        if np.count_nonzero(accept) < len(accept) or np.count_nonzero(history.rejected):
            largest = np.where(accept, np.where(history.rejected, 1.0, self.factor_max), self.safety)
        # fmax: an error that is not a number is as bad as can be
        factor = np.minimum(np.fmax(factor, self.factor_min), largest)
        if self.dead_band > 1.0:
            factor = np.where((factor > 1.0) & (factor < self.dead_band), 1.0, factor)
        next_h = h * factor
        if self.min_step > 0.0 or self.max_step < math.inf:
            next_h = np.minimum(np.maximum(next_h, self.min_step), self.max_step)
        return accept, next_h

    def _factor(self, error: float, history: History, k: float) -> float:
        if error == 0.0:
            return self.factor_max
        factor = self.safety * error ** (-(self.kp + self.ki + self.kd) / k)
        if self.kp or self.kd:
            factor *= max(history.last, 1e-10) ** ((self.kp + 2 * self.kd) / k)
            factor *= max(history.before_last, 1e-10) ** (-self.kd / k)
        return factor


def PIController(**options: float) -> PIDController:
    """The PI controller with kp = 0.4, ki = 0.3 (Gustafsson, ACM TOMS 17 (1991)); other options as `PIDController`."""
    return PIDController(**{"kp": 0.4, "ki": 0.3, **options})  # pyright: ignore[reportArgumentType]
