"""Solutions of many rows with their derivatives by initial states and parameters, in one pass of a kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchivp.fused.compiler import CompileError, NoCompiler
from torchivp.fused.explicit import ExplicitCoefficients
from torchivp.fused.field import Field, Reading
from torchivp.fused.kernel import Form, Kernel, TangentKernel
from torchivp.fused.refusal import CannotFuse
from torchivp.fused.solve import FusedSolve, FusedTimes
from torchivp.methods.ode.runge_kutta import ExplicitRungeKutta
from torchivp.state import StateLayout
from torchivp.stepsize.pid import PIDController

_MOST = 64
"""With more directions than this, kernels get slow and take long to compile."""


@dataclass(frozen=True)
class Directions:
    """By what the solutions are differentiated.

    Attributes:
        states: the numbers of the states whose initial values move.
        parameters: the numbers of the parameters that move.
    """

    states: tuple[int, ...] = ()
    parameters: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.states) + len(self.parameters)


class Sensitivities:
    """The forward sensitivities of `dy/dt = func(t, y, *parameters)`, by the variational equations.

    They are the derivatives of the numerical solution, exactly: the steps are those that the solution takes without
    them. Source: Hairer, Norsett and Wanner, "Solving Ordinary Differential Equations I", I.14 and II.6.

    Args:
        func: of one row: called with a 0-d time, a state [n] and 0-d parameters.
        n_states: n.
        n_parameters: the number of parameters.
        method: an explicit Runge-Kutta pair.
        owner: what tells func apart from others of the same code.

    Raises:
        CannotFuse: func cannot be read; the message says why.

    Attributes:
        used: the numbers of the parameters that func uses.
    """

    def __init__(
        self,
        func: Callable[..., Tensor],
        n_states: int,
        n_parameters: int,
        method: type[ExplicitRungeKutta],
        owner: Any = None,
    ):
        self._func = func
        self._size = n_states
        self._field = Field(StateLayout(torch.ones(n_states, dtype=torch.float64)))
        self._parameters = [torch.ones((), dtype=torch.float64) for _ in range(n_parameters)]
        self._coefficients = ExplicitCoefficients.of(method.tableau)
        self._method, self._owner = method, owner
        self.used = frozenset(role for role in self._read().roles if isinstance(role, int))

    def _read(self) -> Reading:
        return self._field.read(self._func, self._parameters, one_row=True, owner=self._owner)

    def _kernel(self, reading: Reading, directions: Directions) -> Kernel:
        kernels, key = reading.traced.kernels, (self._method, directions)
        if key not in kernels:
            kernels[key] = self._made(reading, directions)
        if isinstance(kernels[key], CannotFuse):
            raise kernels[key]
        return kernels[key]

    def _made(self, reading: Reading, directions: Directions) -> Kernel | CannotFuse:
        if len(directions) > _MOST:
            return CannotFuse(f"derivatives in {len(directions)} directions are more than the {_MOST} of a kernel")
        size = self._size * (1 + len(directions))
        form = Form(self._coefficients, torch.float64, size, (0, self._size), True, reading.kinds)
        unused = [p for p in directions.parameters if p not in reading.roles]
        if unused:
            return CannotFuse(f"func does not use the parameters with the numbers {unused}: leave them out")
        try:
            if not len(directions):
                return Kernel(reading.traced, form)
            moved = tuple(reading.roles.index(p) for p in directions.parameters)
            return TangentKernel(reading.traced, form, len(directions.states), moved)
        except CannotFuse as error:
            return error
        except (NoCompiler, CompileError) as error:
            return CannotFuse(str(error))

    def solve(
        self,
        y0: Tensor,
        parameters: Tensor,
        t0: float,
        t: Tensor,
        directions: Directions,
        *,
        rtol: float,
        atol: Tensor,
        controller: PIDController,
        max_steps: int,
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Solve all rows.

        Args:
            y0: the initial states, [rows, n], float64.
            parameters: [n_parameters, rows], float64.
            t0: when all rows start.
            t: the times of the outputs, [T], increasing, none before `t0`.
            directions: by what to differentiate.
            rtol: the relative tolerance.
            atol: the absolute tolerance of each state, [n].
            controller: what sizes the steps.
            max_steps: the largest number of step attempts.

        Returns:
            The states [rows, T, n], their derivatives [rows, T, directions, n], and the steps of each row; None if a
            row did not reach its end.

        Raises:
            CannotFuse: there is no kernel.
        """
        reading, n, count = self._read(), self._size, len(directions)
        kernel = self._kernel(reading, directions)
        start = y0.new_zeros(len(y0), 1 + count, n)
        start[:, 0] = y0
        for d, state in enumerate(directions.states):
            start[:, 1 + d, state] = 1.0
        inputs = [
            parameters[role].contiguous()
            if isinstance(role, int)
            else None
            if role in ("t", "y")
            else x.detach().double()
            for role, x in zip(reading.roles, reading.inputs, strict=True)
        ]
        span = torch.stack([torch.tensor(t0, dtype=torch.float64), t[-1]])
        all_rtol = y0.new_full((1, (1 + count) * n), rtol)
        all_atol = atol.clamp(min=torch.finfo(torch.float64).tiny).expand(1 + count, n).reshape(1, -1).contiguous()
        times = FusedTimes(span[:1], span[1:], t.contiguous().unsqueeze(0))
        rows = len(y0)
        solve = FusedSolve(
            kernel,
            start,
            (rows,),
            (1 + count, n),
            times,
            controller,
            all_rtol,
            all_atol,
            max_steps,
            inputs,
            [],
        )
        values, _ = solve.run()
        if not solve.well:
            return None
        return values[:, :, 0], values[:, :, 1:], torch.from_numpy(solve.outcomes.accepted)
