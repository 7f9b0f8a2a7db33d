"""Methods that take the drift at the end of the step, for stiff drifts: the equation that each step solves."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from torchivp.checks import check_number, check_positive, check_whole_number
from torchivp.methods.factorised import Factorised
from torchivp.methods.jacobian import slopes_and_jacobians
from torchivp.methods.limited import differentiable_twice
from torchivp.methods.real_pairs import to_complex, to_real
from torchivp.methods.sde.method import SDEMethod
from torchivp.noise.increment import Increment
from torchivp.sde.terms import Terms
from torchivp.solution import Outcome, SolveError, Status
from torchivp.torch_func import derivative_depth, entries, inside_transform, may_be_tracked, needs_gradient, read

_SLOW = 0.2
"""Corrections shrink more slowly than this: new Jacobians in every iteration pay."""

_HALVINGS = 10
"""A correction is halved so many times at most."""

_ROUNDING = 4.0
"""A residual of so many units in the last place of its terms is rounding."""

_THIRD = (
    "implicit methods for SDEs can be differentiated twice, not three times: use nested transforms such as "
    "torch.func.grad, which can, or an explicit method such as method='euler'"
)


class ImplicitDriftMethod(SDEMethod):
    """A method Y' = f(t1, Y') dt + R, with R known at the start of the step.

    Each row is solved for by Newton's iteration with a dense Jacobian of its own, [rows, size, size], so the memory and
    time of a step grow with the square and the cube of the size of a row. The rows must not depend on one another: if
    they do, through a normalisation over the batch for instance, the iteration is slow and the gradient approximate.
    A row in which R or the drift is not finite becomes NaN.

    Gradients are those of the exact solution, by the implicit function theorem, and can be differentiated once more,
    not twice; by nested transforms of torch.func, any number of times.

    Args:
        max_iters: the largest number of corrections in a step.
        newton_tol: the error that may remain in an element y, relative to max(1, |y|); None for 1e-8, in single
            precision 1e-5.
    """

    options = ("max_iters", "newton_tol")

    def __init__(self, max_iters: int = 20, newton_tol: float | None = None) -> None:
        self.max_iters = check_whole_number("max_iters", max_iters, 1)
        self.newton_tol = (
            None if newton_tol is None else check_positive("newton_tol", check_number("newton_tol", newton_tol))
        )

    @abstractmethod
    def explicit_part(self, terms: Terms, t0: Tensor, y0: Tensor, noise: Increment) -> Tensor:
        """What the step consists of besides the drift, the state at its start among it: R, a new tensor."""

    def step(
        self, terms: Terms, t0: Tensor, t1: Tensor, y0: Tensor, noise: Increment, carry: Any
    ) -> tuple[Tensor, Any]:
        right = self.explicit_part(terms, t0, y0, noise)
        if right.numel() == 0:
            return right, ()
        equation = _Equation(terms, t1, noise.dt, right, y0, self.newton_tol)
        return equation.with_gradient(equation.solve(self.max_iters)), ()


class _Equation:
    """Y - dt f(t, Y) = right, for all rows at once. Complex states are taken as real ones of twice the size.

    Args:
        terms: their drift is f.
        t: the time of the end of the step.
        dt: the size of the step.
        right: the right-hand side, [rows, size]; it may have a history.
        start: the state at the start of the step.
        tol: the error that may remain; None for a good choice.
    """

    def __init__(self, terms: Terms, t: Tensor, dt: float, right: Tensor, start: Tensor, tol: float | None) -> None:
        self._terms, self._t, self._dt = terms, t, dt
        self._complex = right.is_complex()
        self._right = to_real(right)
        self._known = self._right.detach()
        self._start = to_real(start.detach())
        if tol is None:
            tol = 1e-8 if self._known.dtype is torch.float64 else 1e-5
        self._tol = tol

    def solve(self, max_iters: int) -> Tensor:
        """The solution in real states, without history; NaN in rows that have none because something is not finite.

        From the right-hand side as a guess, with one Jacobian for all corrections as long as they shrink fast, and then
        with new ones, and damping. Where the drift is undefined at that guess, from the state before the step.

        Raises:
            SolveError: the iteration did not converge.
        """
        with torch.no_grad():
            guess = y = self._known
            lost: Tensor | None = None
            residual, system = self._linearised(y)
            change = system.correction(residual)
            size = left = self._size(change, y)
            for count in range(1, max_iters + 1):
                y = y + change
                change = system.correction(self._residual(y))
                last, size = size, self._size(change, y)
                # The error that the correction will leave, if they go on as they did.
                left = torch.where(size < 0.5 * last, size * size / (last - size), size)
                worst = read(left.amax())
                if not math.isfinite(worst) and lost is None:
                    undefined = ~residual.isfinite().all(1)
                    guess = torch.where(undefined.unsqueeze(1), self._start, guess)
                    lost = ~self._residual(guess).isfinite().all(1)
                if lost is not None:
                    left = left.masked_fill(lost, 0.0)
                    worst = read(left.amax())
                if worst <= self._tol:
                    return _without(lost, y + change)
                if read((~(size <= _SLOW * last) & ~(left <= self._tol)).any()):
                    y = torch.where(((size < last) | (left <= self._tol)).unsqueeze(1), y, guess)
                    return self._solve_damped(y, left, lost, max_iters, count)
            raise self._failure(max_iters, left)

    def _solve_damped(self, y: Tensor, size: Tensor, lost: Tensor | None, max_iters: int, count: int) -> Tensor:
        """Go on from `y` after `count` iterations, the last correction of which had this size, with new Jacobians each.

        Of a correction after which the same Jacobian would make another that is hardly smaller, a row takes a half, a
        quarter and so on: Deuflhard, "Newton Methods for Nonlinear Problems" (2004), 3.3.
        """
        share = y.new_ones(len(y), 1)
        while count < max_iters:
            count += 1
            residual, system = self._linearised(y)
            change = system.correction(residual)
            size = self._size(change, y)
            done = (size <= self._tol) | self._is_rounding(residual, system, y)
            if lost is not None:
                done = done | lost
            halvings = 0
            while True:
                trial = y + share * change
                further = system.correction(self._residual(trial))
                solved = self._size(further, trial) <= self._tol
                better = done | solved | (self._size(further, y) <= (1.0 - 0.5 * share.squeeze(1)) * size)
                if halvings == _HALVINGS or not read((~better).any()):
                    break
                halvings += 1
                share = torch.where(better.unsqueeze(1), share, 0.5 * share)
            done = done | solved
            if not read((~done).any()):
                return _without(lost, torch.where(solved.unsqueeze(1), trial + further, y))
            y = torch.where((better & trial.isfinite().all(1)).unsqueeze(1), trial, y)
            share = (2.0 * share).clamp_max(1.0)
            size = size.masked_fill(done, 0.0)
        raise self._failure(count, size)

    def with_gradient(self, y: Tensor) -> Tensor:
        """The solution `y` in the form of the state, as a function of all that the equation depends on.

        Its values stay what they are: to them come recorded corrections with the Jacobian at the solution, a constant,
        less their own values. Each makes one more derivative right: if e is the error of y when what it depends on
        moves by d, and e = O(d^n), a correction leaves (1 - M^-1 F' + O(e)) e = O(d^(n + 1)), as M is F' at d = 0.
        """
        reverse = torch.is_grad_enabled() and (needs_gradient(self._right) or needs_gradient(self._drift(y)))
        if reverse or may_be_tracked():
            _, system = self._linearised(y)
            for _ in range(_corrections()):
                change = system.correction(y - self._dt * self._drift(y) - self._right)
                y = y + (change - change.detach())
            y = differentiable_twice(_THIRD, y)
        return to_complex(y) if self._complex else y

    def _drift(self, y: Tensor) -> Tensor:
        return to_real(self._terms.f(self._t, to_complex(y) if self._complex else y))

    def _residual(self, y: Tensor) -> Tensor:
        return (y - self._known).sub(self._drift(y), alpha=self._dt)

    def _linearised(self, y: Tensor) -> tuple[Tensor, _System]:
        """The residual, and the linear equations with the Jacobians at `y`, without history."""
        f, jacobians = slopes_and_jacobians(self._drift, y)
        matrix = torch.eye(y.shape[1], dtype=y.dtype, device=y.device).sub(jacobians, alpha=self._dt)
        return (y - self._known).sub(f, alpha=self._dt), _System(matrix)

    def _size(self, change: Tensor, y: Tensor) -> Tensor:
        """The size of a change of each row, relative to max(1, |y|)."""
        return (change.abs() / y.abs().clamp_min(1.0)).amax(1)

    def _is_rounding(self, residual: Tensor, system: _System, y: Tensor) -> Tensor:
        """Whether the residual of each row is mere rounding in its terms."""
        terms = torch.bmm(system.matrix.abs(), y.abs().unsqueeze(2)).squeeze(2) + self._known.abs()
        return (residual.abs() <= _ROUNDING * torch.finfo(y.dtype).eps * terms).all(1)

    def _failure(self, count: int, size: Tensor) -> SolveError:
        """That it did not converge in rows whose last correction has a `size` above the tolerance, or NaN."""
        size = entries(size).flatten()
        failed = ~(size <= self._tol)
        numbers = failed.nonzero().flatten().tolist()
        where = f"{len(numbers)} of {len(size)} rows (the first is row {numbers[0]})" if len(size) > 1 else "the state"
        worst = read(size.nan_to_num(math.inf).amax())
        t = read(self._t)
        iterations = "1 iteration" if count == 1 else f"{count} iterations"
        sentence = (
            f"Newton's iteration for the drift at t = {t:.9g}, the end of a step of {self._dt:.3g}, did not converge "
            f"in {iterations} for {where}: the last correction was {worst:.3g} relative to max(1, |y|), and newton_tol "
            f"is {self._tol:.3g}. Make dt smaller, or raise max_iters in options. It converges slowly if the drift is "
            "not smooth, or if its rows depend on one another"
        )
        return SolveError(Status(Outcome.NOT_CONVERGED, sentence, t))


def _corrections() -> int:
    """How many derivatives of a solution must be right: two of autograd, on top of those at work, which nest."""
    return 2 + (derivative_depth() if inside_transform() else int(may_be_tracked()))


def _without(lost: Tensor | None, y: Tensor) -> Tensor:
    return y if lost is None else y.masked_fill(lost.unsqueeze(1), math.nan)


class _System:
    """Linear equations of each row, factorised.

    Args:
        matrix: [rows, size, size], without history.
    """

    def __init__(self, matrix: Tensor) -> None:
        # What is not finite must not reach the pivots. A row without a derivative is iterated as if it had none.
        self.matrix = matrix.nan_to_num(0.0, 0.0, 0.0)
        self._factorised = Factorised(self.matrix)

    def correction(self, residual: Tensor) -> Tensor:
        """What to add to make the residual vanish; differentiable with the matrix as a constant."""
        return self._factorised.solve(residual.neg().unsqueeze(2)).squeeze(2)
