"""Solutions of many rows with their derivatives in chosen directions, in one pass of a kernel."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchivp.error_norm import ErrorNorm
from torchivp.fused.compiler import CompileError, NoCompiler
from torchivp.fused.endings import failure_of
from torchivp.fused.explicit import ExplicitCoefficients
from torchivp.fused.field import Field
from torchivp.fused.kernel import Form, Kernel, check_operations
from torchivp.fused.moving_rows import MovingRows
from torchivp.fused.outcomes import SUCCESS, Outcomes
from torchivp.fused.refusal import CannotFuse
from torchivp.fused.rosenbrock import RosenbrockCoefficients
from torchivp.fused.solve import FusedSolve, FusedTimes, OutOfOrder
from torchivp.fused.steps import Coefficients
from torchivp.fused.tangents import TangentKernel
from torchivp.methods.method import Method
from torchivp.methods.ode.rosenbrock import Rosenbrock
from torchivp.methods.ode.runge_kutta import ExplicitRungeKutta
from torchivp.problem import Problem
from torchivp.solution import Status
from torchivp.state import StateLayout
from torchivp.stepsize.pid import PIDController
from torchivp.times import Times

_TINY = torch.finfo(torch.float64).tiny

_MOST = 64
"""A kernel has so many directions at most."""

_LARGEST = 1024
"""And with its tangents the state of a row has so many elements, but for one direction: more leave the caches."""


@dataclass(frozen=True, eq=False)
class Solved:
    """The solutions of rows and their tangents. A row that failed has NaN where it did not come.

    Attributes:
        states: at the outputs, [rows, T, n]; NaN where there is no output.
        tangents: their derivatives in each direction, [rows, T, D, n].
        final: the states at the ends, [rows, n].
        final_tangents: their derivatives, [rows, D, n].
        steps: the number of steps taken, [rows], int64.
        ok: whether each row reached its end, [rows], bool.
    """

    states: Tensor
    tangents: Tensor
    final: Tensor
    final_tangents: Tensor
    steps: Tensor
    ok: Tensor
    _why: Callable[[int], Status] | None

    def failure(self, row: int) -> Status:
        """Why a row did not reach its end.

        Raises:
            ValueError: it did.
        """
        if self._why is None or self.ok[row]:
            raise ValueError(f"row {row} has not failed: ask for one where ok is False")
        return self._why(row)


class Sensitivities:
    """The forward sensitivities of `dy/dt = func(t, y, *parameters)`, by the variational equations.

    They are the derivatives of the numerical solution, exactly: those of the steps that are taken without them, with
    the step sizes held. Of Rosenbrock methods the stages are differentiated with the Jacobian in them. Source: Hairer,
    Norsett and Wanner, "Solving Ordinary Differential Equations I", I.14 and II.6.

    func is read once, when this is made, and not looked at again: whoever changes what it does (a number in a closure,
    an attribute of a module) makes another. The values of tensors that it uses may be changed in place.

    Args:
        func: of one row: called with a 0-d time, a state [n] and 0-d parameters.
        n_states: n.
        n_parameters: the number of parameters.
        method: an explicit Runge-Kutta method with an error estimate, or a Rosenbrock method.
        owner: what tells func apart from others of the same code.

    Raises:
        CannotFuse: func cannot be read, or the method has no kernel; the message says why.

    Attributes:
        used: the numbers of the parameters that func uses.
        traced: func as it was read, or as another was that is the same.
    """

    def __init__(
        self,
        func: Callable[..., Tensor],
        n_states: int,
        n_parameters: int,
        method: type[Method],
        owner: Any = None,
    ):
        self._func, self._method = func, method
        self._size, self._count = n_states, n_parameters
        self._coefficients = _coefficients_of(method)
        self._layout = StateLayout(torch.ones(n_states, dtype=torch.float64))
        parameters = [torch.ones((), dtype=torch.float64) for _ in range(n_parameters)]
        self._reading = Field(self._layout).read(func, parameters, one_row=True, owner=owner)
        self.traced = self._reading.traced
        if not self.traced.kernels:
            check_operations(self.traced, self._reading.kinds, torch.float64)
        self.used = frozenset(role for role in self._reading.roles if isinstance(role, int))
        self._kernels: dict[tuple[int, tuple[int, ...]], list[tuple[slice | None, Kernel]]] = {}
        self._rtols: dict[float, Tensor] = {}

    def solve(
        self,
        y0: Tensor,
        tangents: Tensor,
        parameters: Tensor,
        t0: Tensor,
        t1: Tensor,
        t: Tensor,
        moving: tuple[int, ...] = (),
        *,
        rtol: float,
        atol: Tensor,
        controller: PIDController,
        max_steps: int,
    ) -> Solved:
        """Solve all rows. Tensors are float64, on the CPU; autograd does not see what is computed.

        The parameters that move do so in the last directions, one in each: in direction `D - len(moving) + i` the
        parameter `moving[i]`. It may be one that func does not use.

        Args:
            y0: the initial states, [rows, n].
            tangents: how they move in each direction, [rows, D, n]; D = 0 solves without derivatives.
            parameters: [n_parameters, rows].
            t0: when each row starts, [rows].
            t1: when it ends, [rows], before or after `t0`. Where they are the same, no step is taken.
            t: the outputs, [rows, T], in the order in which the row comes to them, between `t0` and `t1`; several may
                be the same, and NaN is none. Rows that share theirs may be an expanded tensor.
            moving: the numbers of the parameters that move.
            rtol: the relative tolerance.
            atol: the absolute tolerance of each state, [n].
            controller: what sizes the steps.
            max_steps: the largest number of step attempts of a row.

        Raises:
            CannotFuse: there is no kernel; the message says why.
            ValueError: a tensor does not fit, or outputs are not in order.
        """
        given = MovingRows(y0, tangents, parameters, t0, t1, t, moving, rtol, atol, controller, max_steps)
        given.check(self._size, self._count)
        directions = tangents.shape[1]
        solves = [
            self._run(kernel, given, tangents if part is None else tangents[:, part])
            for part, kernel in self._kernels_for(directions, moving)
        ]
        solve, (values, last) = solves[0]
        outcomes = solve.outcomes
        # What ten thousand calls make of their results is worth the fewest calls of torch.
        states, final = values.select(2, 0), last.select(1, 0)
        if len(solves) == 1:
            changes, final_changes = values.narrow(2, 1, directions), last.narrow(1, 1, directions)
        else:
            changes = torch.cat([values[:, :, 1:] for _, (values, _) in solves], 2)
            final_changes = torch.cat([last[:, 1:] for _, (_, last) in solves], 1)
        ok, why = torch.from_numpy(outcomes.counts[0] == SUCCESS), None
        if not solve.well:
            why = self._why(given, outcomes, final.clone())
            final[~ok] = final_changes[~ok] = torch.nan
        return Solved(states, changes, final, final_changes, torch.from_numpy(outcomes.accepted), ok, why)

    def _run(self, kernel: Kernel, given: MovingRows, tangents: Tensor) -> tuple[FusedSolve, tuple[Tensor, Tensor]]:
        """What was solved; the outputs, [rows, T, 1 + directions, n], and the ends, [rows, 1 + directions, n]."""
        y0, t = given.y0.unsqueeze(1), given.t
        if len(t) > 1 and t.stride(0) == 0:
            t = t[:1]  # which all rows share
        times = FusedTimes(
            given.t0.contiguous(), given.t1.contiguous(), t.contiguous(), check="all" if t.shape[1] else "none"
        )
        solve = FusedSolve(
            kernel,
            torch.cat((y0, tangents), 1),
            (y0.shape[0],),
            (1 + tangents.shape[1], self._size),
            times,
            given.controller,
            self._rtol_of(given.rtol),
            given.atol.clamp_min(_TINY).unsqueeze(0),
            given.max_steps,
            self._inputs(given.parameters),
            (),
        )
        try:
            found = solve.run()
        except OutOfOrder:
            raise ValueError(given.out_of_order()) from None
        return solve, found

    def _rtol_of(self, rtol: float) -> Tensor:
        if rtol not in self._rtols:
            self._rtols[rtol] = torch.full((1, self._size), rtol, dtype=torch.float64)
        return self._rtols[rtol]

    def _inputs(self, parameters: Tensor) -> list[Tensor | None]:
        """What func is called with, as the kernel reads it."""
        reading = self._reading
        return [
            parameters[role].contiguous()
            if isinstance(role, int)
            else None
            if role in ("t", "y")
            else x.detach().double().contiguous()
            for role, x in zip(reading.roles, reading.inputs, strict=True)
        ]

    def _kernels_for(self, directions: int, moving: tuple[int, ...]) -> list[tuple[slice | None, Kernel]]:
        """The kernels, and which directions each is for; None for all."""
        found = self._kernels.get((directions, moving))
        if found is None:
            most = max(1, min(_MOST, _LARGEST // self._size - 1))
            parts = max(1, -(-directions // most))
            bounds = [directions * i // parts for i in range(parts + 1)]
            still = directions - len(moving)
            found = [
                (
                    None if parts == 1 else slice(a, b),
                    self._kernel(b - a, moving[max(a - still, 0) : max(b - still, 0)]),
                )
                for a, b in itertools.pairwise(bounds)
            ]
            self._kernels[directions, moving] = found
        return found

    def _kernel(self, directions: int, moving: tuple[int, ...]) -> Kernel:
        # Kept with what was read, as others of the same code have the same.
        kernels, key = self._reading.traced.kernels, (self._method, directions, moving)
        if key not in kernels:
            kernels[key] = self._made(directions, moving)
        if isinstance(kernels[key], CannotFuse):
            raise kernels[key]
        return kernels[key]

    def _made(self, directions: int, moving: tuple[int, ...]) -> Kernel | CannotFuse:
        reading, n = self._reading, self._size
        form = Form(self._coefficients, torch.float64, n * (1 + directions), (0, n), True, reading.kinds)
        moved = [reading.roles.index(p) if p in self.used else None for p in moving]
        try:
            return TangentKernel(reading.traced, form, moved) if directions else Kernel(reading.traced, form)
        except CannotFuse as error:
            return error
        except (NoCompiler, CompileError) as error:
            return CannotFuse(str(error))

    def _why(self, given: MovingRows, outcomes: Outcomes, last: Tensor) -> Callable[[int], Status]:
        """Says of a row that failed why it did, from what was known then."""
        norm = ErrorNorm(given.rtol, given.atol.unsqueeze(0), self._layout.parts(), torch.float64)
        parameters, spans = given.parameters.clone(), torch.stack((given.t0, given.t1), 1)

        def why(row: int) -> Status:
            start, end = spans[row].tolist()
            times = Times(start, end, None)
            problem = Problem.build(self._func, last[row], times, tuple(parameters[:, row]))
            return failure_of(
                outcomes,
                row,
                last[row : row + 1],
                problem,
                norm,
                self._method,
                given.controller,
                given.max_steps,
                self._layout.name,
            )

        return why


def _coefficients_of(method: type[Method]) -> Coefficients:
    if issubclass(method, Rosenbrock):
        return RosenbrockCoefficients.of(method.tableau)
    if not issubclass(method, ExplicitRungeKutta) or method.tableau.b_embedded is None:
        raise CannotFuse(
            "sensitivities are computed by kernels of Rosenbrock methods and of explicit Runge-Kutta methods with an "
            f"error estimate, and {method.__name__} is neither: choose method='rodas5p' or 'tsit5'"
        )
    return ExplicitCoefficients.of(method.tableau)
