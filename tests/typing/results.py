"""What type checkers know of the doors. `make types` checks this file; nothing runs it.

A line that must be an error says which; that it is none would be one.
"""
# pyright: reportUnnecessaryTypeIgnoreComment=true

from collections.abc import Sequence
from typing import assert_type

import torch
from torch import Tensor

from torchivp import (
    BatchSolution,
    Solution,
    Status,
    odeint,
    odeint_adjoint,
    odeint_event,
    sdeint,
    sdeint_adjoint,
    solve_ivp,
)


def decay(t: Tensor, y: Tensor) -> Tensor:
    return -y


def both(t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return -y[0], -y[1]


def level(t: Tensor, y: Tensor) -> Tensor:
    return y - 0.5


y0 = torch.ones(2)
pair = (y0, y0)
dims = int("1")

assert_type(solve_ivp(decay, (0, 1), y0), Solution)
assert_type(solve_ivp(decay, (0, 1), y0, method="RK45", rtol=1e-3, events=level).status, Status)
assert_type(solve_ivp(decay, (0, 1), y0, batch_dims=0), Solution)
assert_type(solve_ivp(decay, (0, 1), y0, batch_dims=1, gradient="checkpointed"), BatchSolution)
assert_type(solve_ivp(decay, (0, 1), y0, batch_dims=dims).status, Sequence[Status])
assert_type(odeint(decay, y0, [0.0, 1.0]), Tensor)
assert_type(odeint(both, pair, [0.0, 1.0], method="rk4"), tuple[Tensor, Tensor])
assert_type(odeint_adjoint(decay, y0, [0.0, 1.0], adjoint_rtol=1e-3), Tensor)
assert_type(odeint(decay, y0, [0.0, 1.0], event_fn=level, horizon=2.0), tuple[Tensor, Tensor])
assert_type(odeint_adjoint(decay, pair, [0.0, 1.0], event_fn=level), tuple[Tensor, tuple[Tensor, Tensor]])
assert_type(odeint_event(decay, y0, 0.0, event_fn=level), tuple[Tensor, Tensor])

solve_ivp(decay, (0, 1), y0, method="dopry5")  # pyright: ignore[reportArgumentType]
solve_ivp(decay, (0, 1), y0, gradient="adjoint")  # pyright: ignore[reportArgumentType]
solve_ivp(decay, (0, 1), y0, rtoll=1e-3)  # pyright: ignore[reportCallIssue]
status = solve_ivp(decay, (0, 1), y0).statut  # pyright: ignore[reportAttributeAccessIssue]
odeint(decay, y0, [0.0, 1.0], method="RK-45")  # pyright: ignore[reportArgumentType]
odeint_adjoint(decay, y0, [0.0, 1.0], adjoint_method="RK-45")  # pyright: ignore[reportArgumentType]
sdeint(None, y0, [0, 1], n_paths=5)  # pyright: ignore[reportArgumentType]
sdeint_adjoint(None, y0, [0, 1], n_paths=5)  # pyright: ignore[reportArgumentType]
