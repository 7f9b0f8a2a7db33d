"""Rosenbrock methods: a tableau of coefficients, and the one engine that reads it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from torchivp.dense import Interpolant, RowInterpolant, StepPolynomials
from torchivp.error_norm import ErrorNorm
from torchivp.mass import Projection, projection_of
from torchivp.methods.factorised import Factorised
from torchivp.methods.implicit.per_row import is_single
from torchivp.methods.implicit.sparse import SparseFactorised
from torchivp.methods.jacobian import Derivatives, derivatives, given_jacobian, sparsity_of, spectral_bound
from torchivp.methods.method import FlatFunc, Memory, Method, Step, Work
from torchivp.methods.ode.order_conditions import residual
from torchivp.methods.ode.runge_kutta import RecordedRows, RowBuffer
from torchivp.methods.ode.tableau import Coefficients, StagePolynomials, square
from torchivp.methods.real_pairs import on_real_pairs, to_complex, to_real
from torchivp.sparsity import Sparsity
from torchivp.times import time_dtype, time_scalar
from torchivp.torch_func import inside_transform, moves


@dataclass(frozen=True)
class RosenbrockTableau:
    """The coefficients of a Rosenbrock method, in the form without products with the Jacobian. Checks itself.

    With a step dt from (t, y), J = df/dy and T = df/dt there, the stages u_i solve

        (I - dt gamma J) u_i = dt gamma func(t + c_i dt, y + sum_j a_ij u_j) + gamma sum_j coupling_ij u_j
                               + dt^2 gamma d_i T

    and the step ends at y + sum_i b_i u_i. With a projection P before dy/dt, it stands for I and before the sum of the
    coupled stages. Hairer and Wanner, "Solving Ordinary Differential Equations II", (IV.7.25).

    Attributes:
        order: the order of the weights `b`.
        gamma: the coefficient on the diagonal, the same for all stages.
        c: the nodes.
        d: the coefficients of the time derivative.
        a: the rows of the states of the stages; zeros at the end of a row may be left out.
        coupling: the rows of what the stages before add, likewise.
        b: the weights.
        b_embedded: the weights of the embedded method that estimates the error.
        embedded_order: its order.
        dense: the dense output, `y + sum_j b_j(theta) u_j`.

    Raises:
        ValueError: rows do not sum to `c` and `d`, or weights do not satisfy their order conditions.
    """

    order: int
    gamma: float
    c: Coefficients
    d: Coefficients
    a: Sequence[Coefficients]
    coupling: Sequence[Coefficients]
    b: Coefficients
    b_embedded: Coefficients
    embedded_order: int
    dense: StagePolynomials

    def __post_init__(self) -> None:
        alpha, gammas, dense = self.alpha, self.gammas, self.dense
        _require(max(abs(alpha.sum(1) - np.array(self.c))) < 1e-12, "the rows of alpha must sum to the nodes c")
        _require(max(abs(gammas.sum(1) - np.array(self.d))) < 1e-12, "the rows of Gamma must sum to d")
        _require(self._residual(self.b, self.order) < 1e-12, f"b must have order {self.order}")
        _require(
            self._residual(self.b_embedded, self.embedded_order) < 1e-12,
            f"b_embedded must have order {self.embedded_order}",
        )
        polynomials = np.array(dense.b)
        for theta in (0.25, 0.5, 0.75, 1.0):
            weights = polynomials @ theta ** np.arange(1, polynomials.shape[1] + 1)
            _require(self._residual(weights, dense.order, theta) < 1e-12, f"dense.b must have order {dense.order}")
        _require(max(abs(polynomials.sum(1) - np.array(self.b))) < 1e-13, "dense.b must equal b at the end of the step")

    @property
    def gammas(self) -> np.ndarray:
        """The matrix Gamma of the untransformed method, whose stages are k = Gamma^-1 u / dt."""
        return np.linalg.inv(np.eye(len(self.b)) / self.gamma - square(self.coupling))

    @property
    def alpha(self) -> np.ndarray:
        """The matrix alpha of the untransformed method."""
        return square(self.a) @ self.gammas

    def _residual(self, weights: Coefficients | np.ndarray, order: int, theta: float = 1.0) -> float:
        alpha, gammas = self.alpha, self.gammas
        return residual(alpha, np.array(weights) @ gammas, order, theta, alpha + gammas)


def of_untransformed(
    order: int,
    alpha: Sequence[Coefficients],
    gammas: Sequence[Coefficients],
    b: Coefficients,
    b_embedded: Coefficients,
    embedded_order: int,
    dense: StagePolynomials,
) -> RosenbrockTableau:
    """The tableau of a method that is given by the matrices alpha and Gamma and weights of the stages k."""
    rows, gamma_rows = square(alpha), square(gammas)
    inverse, diagonal = np.linalg.inv(gamma_rows), gamma_rows[0, 0]
    return RosenbrockTableau(
        order=order,
        gamma=float(diagonal),
        c=rows.sum(1).tolist(),
        d=gamma_rows.sum(1).tolist(),
        a=(rows @ inverse).tolist(),
        coupling=(np.eye(len(b)) / diagonal - inverse).tolist(),
        b=(np.array(b) @ inverse).tolist(),
        b_embedded=(np.array(b_embedded) @ inverse).tolist(),
        embedded_order=embedded_order,
        dense=StagePolynomials(dense.order, (inverse.T @ np.array(dense.b)).tolist()),
    )


def through_both_ends(order: int, b: Coefficients, h: Sequence[Coefficients]) -> StagePolynomials:
    """Dense output in the form `(1 - theta) y0 + theta (y1 + (1 - theta) sum_k theta^k sum_j h_kj u_j)`."""
    inner = np.array([-np.array(b), *h, np.zeros(len(b))])
    return StagePolynomials(order, np.diff(inner, axis=0).T.tolist())


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise ValueError(f"inconsistent Rosenbrock tableau: {sentence}")


@dataclass(frozen=True, slots=True)
class _Start(Memory):
    """What is known of the right-hand side at the start of a step, for when it is tried again.

    Attributes:
        found: the slope and its derivatives.
        recorded: whether as functions of all that they depend on.
    """

    found: Derivatives
    recorded: bool

    def map(self, function: Callable[..., Tensor], *others: _Start) -> _Start:
        each = [start.found for start in (self, *others)]
        by_times = [found.by_time for found in each if found.by_time is not None]
        found = Derivatives(
            function(*(found.slope for found in each)),
            function(*(found.jacobian for found in each)),
            function(*by_times) if len(by_times) == len(each) else None,
        )
        return _Start(found, self.recorded)


class UnseenDerivatives(ValueError):
    """func depends on the state, and autograd does not see how."""


class Rosenbrock(Method):
    """The engine of the Rosenbrock methods. A method is a subclass with a `tableau`.

    A step solves linear systems with one matrix, made of the exact Jacobian at its start, and iterates nothing. The
    Jacobian and the derivative by time come from autograd, together with the slope, so that func must compute in torch.
    A step that is tried again uses the same ones. Where the matrix is singular or not finite, neither is the error, and
    the step is tried shorter.

    Gradients are those of the steps as they are, of any order: the derivative of a linear system is one with the same
    factors.
    """

    tableau: ClassVar[RosenbrockTableau]
    uses_jacobian = True

    def __init_subclass__(cls) -> None:
        if "tableau" in cls.__dict__:
            tableau = cls.tableau
            cls.order, cls.error_order = tableau.order, min(tableau.order, tableau.embedded_order)
            cls.widest_gap = float(np.diff(sorted({0, *tableau.c, 1})).max())

    def __init__(self, y0: Tensor, real_dtype: torch.dtype, norm: ErrorNorm):
        tableau, dtype, device = self.tableau, y0.dtype.to_real(), y0.device
        self._real_dtype = real_dtype
        self._complex = y0.is_complex()

        def row(weights: Sequence[float] | np.ndarray) -> Tensor:
            return torch.tensor(np.array(weights)[None], dtype=dtype, device=device)

        self._a = [row(square(tableau.a)[i, :i]) for i in range(len(tableau.b))]
        self._coupling = [row(tableau.gamma * square(tableau.coupling)[i, :i]) for i in range(len(tableau.b))]
        self._b, self._error = row(tableau.b), row(np.array(tableau.b) - np.array(tableau.b_embedded))
        self._c = torch.tensor(tableau.c, dtype=time_dtype(device), device=device)
        self._dense_b = StepPolynomials(tableau.dense.b, device)

    def step(self, func: FlatFunc, t0: float | Tensor, t1: float | Tensor, y0: Tensor, carry: _Start | None) -> Step:
        start, end = (time_scalar(t, self._c.dtype, self._c.device) for t in (t0, t1))
        step = self._step(func, (start, end), t1 - t0, y0, carry)
        step.t0, step.t1 = t0, t1
        return step

    def step_rows(
        self, func: FlatFunc, t0: Tensor, t1: Tensor, y0: Tensor, carry: _Start | None, norm: ErrorNorm
    ) -> Step:
        return self._step(func, (t0, t1), t1 - t0, y0, carry)

    def _step(
        self, func: FlatFunc, ends: tuple[Tensor, Tensor], dt: float | Tensor, y0: Tensor, carry: _Start | None
    ) -> Step:
        """A step of every row, or of a single one, whose size `dt` is a float or 0-d."""
        real_func, real_y0 = (on_real_pairs(func), to_real(y0)) if self._complex else (func, y0)
        times = self._stage_times(*ends)
        size = dt.to(real_y0.dtype) if isinstance(dt, Tensor) else dt
        tracked = inside_transform() or any(map(moves, (y0, *ends)))
        start = carry
        if start is None or (tracked and not start.recorded):
            start = self._start(real_func, times, real_y0, tracked)
        stages = self._stages(real_func, times, size, real_y0, start)
        if stages is None:  # func depends on something else that is tracked
            start = self._start(real_func, times, real_y0, recorded=True)
            stages = self._stages(real_func, times, size, real_y0, start)
            assert stages is not None
        y1 = torch.addmm(real_y0.reshape(1, real_y0.numel()), self._b, stages).view_as(real_y0)
        with torch.no_grad():
            error = torch.mm(self._error, stages).view_as(real_y0)
        if self._complex:
            y1, error = to_complex(y1), to_complex(error)
        work = Work(jacobians=int(start is not carry), factorisations=1, solves=len(self._a))
        return Step(*ends, y0, y1, error, None, start, stages, work=work)

    def _start(self, func: FlatFunc, times: Sequence[Tensor], y0: Tensor, recorded: bool) -> _Start:
        found = derivatives(func, times[0], y0, recorded)
        if not found.seen:
            given = given_jacobian(func) is not None
            what, other = ("t", "bdf") if given else ("y", "scipy_solver")
            with torch.no_grad():  # it may not depend on the state, or on the time if the Jacobian is given
                t, y = (x + 1e-3 * (1.0 + x.abs()) for x in (times[0], y0))
                moved = func(t, y0) if given else func(times[0], y)
            if not torch.equal(moved, found.slope):
                raise UnseenDerivatives(
                    f"{type(self).__name__} needs the derivatives of func, and autograd does not see how func(t, y) "
                    f"depends on {what}: compute in torch, without .item(), .detach() or NumPy, or use a method that "
                    f"needs none, such as method={other!r} for stiff problems"
                )
        return _Start(found, recorded)

    def _stages(
        self, func: FlatFunc, times: Sequence[Tensor], dt: float | Tensor, y0: Tensor, start: _Start
    ) -> Tensor | None:
        """The stages, [stages, rows * size]; None if they must be recorded and `start` is not."""
        (slope, jacobian, by_time, _), recorded, gamma = start.found, start.recorded, self.tableau.gamma
        flat, scale = y0.reshape(1, y0.numel()), gamma * dt
        projection, single = projection_of(func), is_single(scale)
        solve, poison = self._systems(jacobian, scale, recorded, sparsity_of(func), projection)
        by_time = None if by_time is None else (scale * dt) * by_time
        stages = RecordedRows() if recorded else RowBuffer(len(self._a), y0)
        for i, (a, coupling, d) in enumerate(zip(self._a, self._coupling, self.tableau.d, strict=True)):
            if i == 0:
                right = scale * slope + poison
            else:
                before = stages.first(i)
                slope = func(times[i], torch.addmm(flat, a, before).view_as(y0))
                if not recorded and moves(slope):
                    return None
                if projection is None:
                    right = torch.addmm((scale * slope).view_as(flat), coupling, before).view_as(y0)
                else:
                    coupled = torch.mm(coupling, before).view_as(y0)
                    right = scale * slope + projection.differential.times(coupled, single)
            if by_time is not None and d:
                right = right + d * by_time
            stages.put(i, solve(right))
        return stages.first(len(self._a))

    def _systems(
        self,
        jacobian: Tensor,
        scale: float | Tensor,
        recorded: bool,
        sparsity: Sparsity | None,
        projection: Projection | None,
    ) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """What solves the linear systems of every row, and what is NaN where their matrix is not finite, else zero."""
        shape = jacobian.shape
        if is_single(scale):
            matrix = jacobian.squeeze(0) * -scale  # a single matrix takes less time than a batch of one
        else:
            assert isinstance(scale, Tensor)
            if projection is not None:  # a row that is through takes steps of size zero
                scale = torch.where(scale == 0.0, 1.0, scale)
            matrix = jacobian * -scale.unsqueeze(2)
        one = projection and projection.differential.matrix
        matrix = matrix + (torch.eye(shape[-1], dtype=matrix.dtype, device=matrix.device) if one is None else one)
        values = matrix.detach()
        # What is not finite must not reach the pivots.
        poison = (0.0 * values.sum((-2, -1))).reshape(-1, 1)
        values = values.nan_to_num(0.0, 0.0, 0.0)
        if recorded:
            solver = partial(Factorised(values).solve_for, matrix)
        elif sparsity is not None and sparsity.pays:
            solver = SparseFactorised(sparsity, sparsity.entries(values).reshape(shape[0], -1)).solve
        else:
            solver = Factorised(values).solve

        def solve(right: Tensor) -> Tensor:
            found = solver(right.mT if is_single(scale) else right.unsqueeze(2))
            return found.view_as(right) if found.is_contiguous() else found.reshape(right.shape)

        return solve, poison

    def _stage_times(self, t0: Tensor, t1: Tensor) -> Sequence[Tensor]:
        """The times of the stages, each 0-d or [rows, 1], as `func` receives them. A node c = 1 gives `t1`."""
        c = self._c.view(-1, 1, 1) if t0.ndim else self._c
        return torch.lerp(t0, t1, c).to(self._real_dtype).unbind()

    def radius(self, step: Step) -> Tensor:
        """Bounds of the spectral radii of the Jacobians that a step was made with, [rows]."""
        return spectral_bound(step.retry.found.jacobian)

    def interpolant(self, func: FlatFunc, step: Step) -> Interpolant:
        slopes = self._as_state(step.stages) / (step.t1 - step.t0)
        return Interpolant(step.t0, step.t1, step.y0, slopes, self._dense_b)

    def interpolant_rows(self, func: FlatFunc, step: Step) -> RowInterpolant:
        return RowInterpolant(step.y0, self._as_state(step.stages), self._dense_b)

    def _as_state(self, stages: Tensor) -> Tensor:
        return torch.view_as_complex(stages.unflatten(1, (-1, 2)).contiguous()) if self._complex else stages
