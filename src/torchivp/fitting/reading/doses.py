"""Tables of doses: what is added to a state at known times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchivp.checks import did_you_mean
from torchivp.events.event import Scheduled
from torchivp.fitting.reading.cells import read_names, read_numbers
from torchivp.fitting.reading.dates import read_times
from torchivp.fitting.reading.table import DataError, Table
from torchivp.fitting.reading.tables import read_table


@dataclass(frozen=True)
class Dose:
    """Adds an amount to one state, as `Scheduled` applies it.

    Attributes:
        state: the number of the state.
    """

    state: int

    def __call__(self, t: Any, y: Tensor, amount: Tensor) -> Tensor:
        """The state [..., n_states] after the dose `amount` [...]."""
        added = torch.nn.functional.one_hot(torch.tensor(self.state, device=y.device), y.shape[-1])
        return y + torch.as_tensor(amount, device=y.device)[..., None].to(y.dtype) * added


def read_doses(
    source: Any,
    trajectories: Sequence[str],
    states: Sequence[str],
    *,
    time: str = "time",
    trajectory: str | None = None,
    amount: str = "amount",
    state: str | None = "state",
) -> dict[str, list[Scheduled]]:
    """Read a table of doses, a row for each.

    Doses of one state at one time are added up.

    Args:
        source: a table as `read_data` takes it.
        trajectories: the names of the trajectories of the data, [""] if they have none.
        states: the names of the model's states, in order.
        time: the column of times, numbers as in the data.
        trajectory: the column that names the trajectory of each dose; None if every trajectory gets all of them.
        amount: the column of amounts, in the unit of the state.
        state: the column that names the state that each dose is added to. If there is no column of the default name, or
            with None, all go to the first of `states`.

    Returns:
        For each trajectory its doses, a `Scheduled` for each state that has some: the argument `schedule` of `fit`.

    Raises:
        DataError: a column is missing, a cell is empty or no number, or a trajectory or state is unknown.
        TypeError: `source` is no table.
    """
    table = read_table(source, "doses")
    t, _ = read_times(table, str(time), dates="as time_unit='days' does for the data")
    amounts = read_numbers(table, str(amount), "amount")
    for i in np.flatnonzero(np.isnan(amounts)):
        raise DataError(f"the amount column {str(amount)!r} is empty in {table.rows[i]}")
    if state == "state" and state not in table.columns:
        state = None
    dosed = [states[0]] * len(t) if state is None else _known(table, str(state), "state", states)
    treated = None if trajectory is None else _known(table, str(trajectory), "trajectory", trajectories)
    if unread := [name for name in ("duration", "rate") if name in table.columns]:
        raise DataError(
            f"{table.name} has the column {unread[0]!r}, and doses are given at once: write an infusion into the "
            "model, with its beginning and end in jump_times, or drop the column"
        )
    scheduled: dict[str, list[Scheduled]] = {}
    for name in trajectories:
        rows = [i for i in range(len(t)) if treated is None or treated[i] == name]
        doses = [[(t[i], amounts[i]) for i in rows if dosed[i] == each] for each in states]
        scheduled[name] = [_scheduled(k, of_state) for k, of_state in enumerate(doses) if of_state]
    return scheduled


def _known(table: Table, column: str, role: str, known: Sequence[str]) -> list[str]:
    """A column of names, all of which are known."""
    names = read_names(table, column, role)
    for i, name in enumerate(names):
        if name not in known:
            raise DataError(
                f"the {role} column {column!r} names {name!r} in {table.rows[i]}.{did_you_mean(name, known)} "
                f"There {'is' if len(known) == 1 else 'are'} {', '.join(known)}"
            )
    return names


def _scheduled(state: int, doses: Sequence[tuple[float, float]]) -> Scheduled:
    """Doses (t, amount) of one state, in the order of time, those at one time as one."""
    total: dict[float, float] = {}
    for t, amount in sorted(doses):
        total[t] = total.get(t, 0.0) + amount
    times = torch.tensor(list(total), dtype=torch.float64)
    return Scheduled(times, Dose(state), torch.tensor(list(total.values()), dtype=torch.float64))
