"""The solves of a fit by the step loop: tangents by dual numbers, or by backward passes where autograd cannot."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from torchivp.api.ivp import solve_ivp
from torchivp.dual_numbers import DualArithmetic, dual_level, parts
from torchivp.fitting.parameters import ParameterLayout
from torchivp.fitting.solving.right_hand_side import REFUSALS, Way, call_rows, way_forwards
from torchivp.fitting.solving.stretches import Accuracy, Solved, Stretch
from torchivp.models.model import Model
from torchivp.solution import BatchSolution, Solution, Status
from torchivp.torch_func import pull_back

MANY_DIRECTIONS = 100
"""With more of them a gradient comes from a pass backwards."""

_FEW_ROWS, _FEW_NUMBERS = 8, 1000  # of models with tensors, whose derivatives come from passes backwards


def _largest_of_rows(error: Tensor) -> Tensor:
    """The norm of a scaled error [..., n_states]: rows share their steps, and each is as accurate as it is alone."""
    return error.square().mean(-1).amax().sqrt()


class StepLoop:
    """Solves a model by `solve_ivp`.

    Several rows are a batch, each with its own steps; the rows of dual numbers that carry the tangents of one row take
    the steps that it takes without them. A row by itself shares its time with its tangents, which is faster, and lets a
    model look at the value of the time.

    Args:
        model: in float64.
        t: a time at which it may be called.
    """

    def __init__(self, model: Model, t: float):
        self._model, self._time = model, t
        self._layout = ParameterLayout.of(model)
        self._substituted = _Substituted(model)
        self._way: Way | None = None  # to call the model with rows at one time
        self._way_of_batches: Way | None = None  # and at a time each
        self.forwards = True  # whether the model can be differentiated forwards, as far as is known

    def solve(self, stretch: Stretch, accuracy: Accuracy) -> Solved:
        rows, directions = stretch.tangents.shape[:2]
        if directions and (not self.forwards or self._cheaper_backwards(stretch)):
            return self._each(stretch, accuracy, self._backwards)
        try:
            if rows > 1 and self._find_way_of_batches() != "singly":
                return self._batch(stretch, accuracy)
            return self._each(stretch, accuracy, self._alone)
        except REFUSALS:
            # A part of the model that the trial did not come to cannot be called so.
            if self._way_of_batches not in (None, "singly"):
                self._way_of_batches = "singly"
            elif self._way not in (None, "singly"):
                self._way = "singly"
            elif directions and self.forwards:
                self.forwards = False
            else:
                raise
            return self.solve(stretch, accuracy)

    def _cheaper_backwards(self, stretch: Stretch) -> bool:
        """Whether copies of tensors for every direction would cost more than a pass backwards for every number."""
        numbers = (stretch.t.shape[1] + 1) * stretch.y.shape[1]
        few = len(stretch.y) <= _FEW_ROWS or len(stretch.moving) > MANY_DIRECTIONS
        return any(self._layout.shapes) and few and numbers <= max(_FEW_NUMBERS, 2 * len(stretch.moving))

    def _find_way(self) -> Way:
        if self._way is None:
            self._way = way_forwards(self._model, torch.tensor(self._time, dtype=torch.float64))
        return self._way

    def _find_way_of_batches(self) -> Way:
        if self._way_of_batches is None:
            count = len(self._model.states) + 1
            times = self._time + torch.linspace(0.0, 1e-3, count, dtype=torch.float64) * (1 + abs(self._time))
            self._way_of_batches = way_forwards(self._model, times)
        return self._way_of_batches

    def _each(self, stretch: Stretch, accuracy: Accuracy, one: Callable[[Stretch, Accuracy], Solved]) -> Solved:
        """Solve row by row."""
        if len(stretch.y) == 1:
            return one(stretch.row(0), accuracy)
        found = Solved.nothing(stretch)
        for r in range(len(stretch.y)):
            found.put(slice(r, r + 1), one(stretch.row(r), accuracy))
        return found

    def _alone(self, stretch: Stretch, accuracy: Accuracy) -> Solved:
        """One row, with the rows of its tangents if there are any."""
        directions = stretch.tangents.shape[1]
        if not directions:
            with torch.no_grad():
                solution = self._solve_one(stretch, stretch.y[0], stretch.parameters[0], None, accuracy)
            return _of_one(solution, stretch, lambda y: (y.unsqueeze(0), y.new_zeros(1, *y.shape[:-1], 0, y.shape[-1])))
        way = self._find_way()
        with torch.no_grad(), dual_level():
            y, parameters = _duals(stretch)
            solution = self._solve_one(stretch, y, parameters, way, accuracy)

            def apart(y: Tensor) -> tuple[Tensor, Tensor]:  # of [T, directions, n]
                value, tangent = parts(y)
                return value[..., 0, :].unsqueeze(0), tangent.unsqueeze(0)

            return _of_one(solution, stretch, apart)

    def _solve_one(
        self, stretch: Stretch, y: Tensor, parameters: Tensor, way: Way | None, accuracy: Accuracy
    ) -> Solution:
        """A solve without batch dimensions, whose last output is its end."""
        named = self._layout.named(parameters)
        start, end = stretch.start.item(), stretch.end.item()
        arithmetic = DualArithmetic() if way is not None else nullcontext()
        options = {**accuracy.options(), "norm": _largest_of_rows}

        def solution(model: Callable[[Tensor, Tensor], Tensor]) -> Solution:
            def derivative(t: Tensor, y: Tensor) -> Tensor:
                with arithmetic:
                    return model(t, y)

            func = clamped(derivative, start, end) if stretch.sided else derivative
            return solve_ivp(func, (start, end), y, t_eval=[*stretch.t[0].tolist(), end], throw=False, **options)

        if way in ("mapped", "singly"):
            return solution(lambda t, y: call_rows(self._model, named, t, y, way))
        columns = way == "columns"
        shaped = {f"model.{name}": x[:, None] if columns and x.ndim == 1 else x for name, x in named.items()}
        return functional_call(self._substituted, shaped, (solution,))

    def _batch(self, stretch: Stretch, accuracy: Accuracy) -> Solved:
        """All rows at once, each with rows of dual numbers for its tangents."""
        rows, directions = stretch.tangents.shape[:2]
        each = max(directions, 1)
        way = self._find_way_of_batches()
        arithmetic = DualArithmetic() if directions else nullcontext()
        low, high = (x.repeat_interleave(each, 0) for x in (stretch.start, stretch.end))
        sides = [torch.nextafter(low, high), torch.nextafter(high, low)] if stretch.sided else []

        def derivative(t: Tensor, y: Tensor, parameters: Tensor, *ends: Tensor) -> Tensor:
            times = t.squeeze(-1)
            if ends:
                times = times.maximum(ends[0]).minimum(ends[1])
            with arithmetic:
                return call_rows(self._model, self._layout.named(parameters), times, y, way)

        t, last = _with_end(stretch)
        with torch.no_grad(), dual_level() if directions else nullcontext():
            y, parameters = _duals(stretch) if directions else (stretch.y, stretch.parameters)
            solution = solve_ivp(
                derivative,
                torch.stack([low, high]).unbind(0),
                y,
                t_eval=t.repeat_interleave(each, 0),
                args=(parameters, *sides),
                batch_dims=1,
                throw=False,
                **accuracy.options(),
            )
            values, tangents = parts(solution.y)
        states = values[::each]
        moved = tangents.unflatten(0, (rows, each))[:, :directions].movedim(2, 1)  # [rows, T, directions, n]
        here = torch.arange(rows)
        return Solved(
            states[:, : stretch.t.shape[1]],
            moved[:, : stretch.t.shape[1]],
            states[here, last],
            moved[here, last],
            torch.tensor([stats.accepted for stats in list(solution.stats)[::each]]),
            solution.success[::each],
            _first_failure(solution),
        )

    def _backwards(self, stretch: Stretch, accuracy: Accuracy) -> Solved:
        """One row, by a backward pass for each number that comes out; the tangents follow by the chain rule."""
        y, parameters = (x[0].detach().clone().requires_grad_() for x in (stretch.y, stretch.parameters))
        with torch.enable_grad():
            solution = self._solve_one(stretch, y, parameters, None, accuracy)
            outputs = solution.y
        if not solution.status.ok:
            return Solved.nothing(stretch, solution.status)
        every = torch.eye(outputs.numel(), dtype=outputs.dtype).unflatten(1, outputs.shape)

        def pull(row: Tensor) -> Tensor:
            found = torch.autograd.grad(outputs, (y, parameters), row, retain_graph=True, materialize_grads=True)
            return torch.cat(found)

        by_start, by_parameters = pull_back(pull, every).split([len(y), len(parameters)], dim=1)
        tangents = stretch.tangents[0] @ by_start.T  # [directions, T * n]
        if stretch.moving:
            tangents[-len(stretch.moving) :] += by_parameters[:, list(stretch.moving)].T
        tangents = tangents.unflatten(1, outputs.shape).movedim(0, 1)
        return _of_one(solution, stretch, lambda y: (y.detach().unsqueeze(0), tangents.unsqueeze(0)))


class _Substituted(nn.Module):
    """Calls a function with the model, so that parameters are substituted once instead of at every evaluation."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[Model], Solution]) -> Solution:
        return function(self.model)


def _duals(stretch: Stretch) -> tuple[Tensor, Tensor]:
    """States and parameters as dual numbers, a row for each direction of each row."""
    rows, directions, n = stretch.tangents.shape
    y = forward_ad.make_dual(stretch.y.repeat_interleave(directions, 0), stretch.tangents.reshape(-1, n))
    parameters = stretch.parameters.repeat_interleave(directions, 0)
    moved = torch.zeros(directions, parameters.shape[1], dtype=parameters.dtype)
    for i, number in enumerate(stretch.moving):
        moved[directions - len(stretch.moving) + i, number] = 1.0
    return y, forward_ad.make_dual(parameters, moved.repeat(rows, 1))


def _of_one(solution: Solution, stretch: Stretch, apart: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Solved:
    """The solution of one row; `apart` takes its values and tangents apart, [1, T, n] and [1, T, directions, n]."""
    if not solution.status.ok:
        return Solved.nothing(stretch, solution.status)
    states, tangents = apart(solution.y)
    return Solved(
        states[:, :-1],
        tangents[:, :-1],
        states[:, -1],
        tangents[:, -1],
        torch.tensor([solution.stats.accepted]),
        torch.ones(1, dtype=torch.bool),
    )


def _with_end(stretch: Stretch) -> tuple[Tensor, Tensor]:
    """The times of each row with its end after them, and where that stands."""
    last = (~stretch.t.isnan()).sum(1)
    t = torch.cat([stretch.t, stretch.t.new_full((len(stretch.t), 1), torch.nan)], 1)
    t[torch.arange(len(t)), last] = stretch.end
    return t, last


def clamped(derivative: Callable[..., Tensor], start: float, end: float) -> Callable[..., Tensor]:
    """The right-hand side, at the ends of a stretch evaluated on the inner side of them."""
    first, last = math.nextafter(start, end), math.nextafter(end, start)
    return lambda t, y, *args: derivative(t.clamp(first, last), y, *args)


def _first_failure(solution: BatchSolution) -> Status | None:
    return next((status for status in solution.status if not status.ok), None)
