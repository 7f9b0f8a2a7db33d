"""Tables of doses: what is added to a state at known times, at once or as an infusion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchivp.checks import did_you_mean
from torchivp.events.event import Scheduled
from torchivp.fitting.reading.cells import read_names, read_numbers
from torchivp.fitting.reading.dates import Calendar, read_times_of
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


@dataclass(frozen=True)
class Infusion:
    """Adds to the derivative of one state from a time to another.

    Attributes:
        state: the number of the state.
        start: when it begins.
        end: when it ends, after that.
        rate: what it adds to the state per unit of time.
    """

    state: int
    start: float
    end: float
    rate: float


def read_doses(
    source: Any,
    trajectories: Sequence[str],
    states: Sequence[str],
    *,
    time: str = "time",
    trajectory: str | None = None,
    amount: str = "amount",
    state: str | None = "state",
    duration: str | None = "duration",
    rate: str | None = "rate",
    calendar: Calendar | None = None,
) -> dict[str, list[Scheduled | Infusion]]:
    """Read a table of doses, a row for each.

    Doses of one state at one time are added up. A dose with a duration, or with a rate, is an infusion: it is given
    evenly from its time on, for so long, or at so much per unit of time until all of it is given.

    Args:
        source: a table as `read_data` takes it.
        trajectories: the names of the trajectories of the data, [""] if they have none.
        states: the names of the model's states, in order.
        time: the column of times, numbers as in the data.
        trajectory: the column that names the trajectory of each dose; None if every trajectory gets all of them.
        amount: the column of amounts, in the unit of the state.
        state: the column that names the state that each dose is added to. If there is no column of the default name, or
            with None, all go to the first of `states`.
        duration: the column of durations, in the unit of the times. Empty or 0 is a dose that is given at once, as all
            are without a column of the default name, or with None.
        rate: the column of rates, in the unit of the state per unit of time; likewise. A row has one of the two.
        calendar: what dates are counted in and from: `calendar` of the data.

    Returns:
        For each trajectory its doses, a `Scheduled` for each state that is given some at once, and its infusions: the
        argument `schedule` of `fit`.

    Raises:
        DataError: a column is missing, a cell is empty or no number, a duration or rate is negative, a row has both, or
            a trajectory or state is unknown.
        TypeError: `source` is no table.
    """
    table = read_table(source, "doses")
    t = read_times_of(table, str(time), calendar)
    amounts = read_numbers(table, str(amount), "amount")
    for i in np.flatnonzero(np.isnan(amounts)):
        raise DataError(f"the amount column {str(amount)!r} is empty in {table.rows[i]}")
    if state == "state" and state not in table.columns:
        state = None
    dosed = [states[0]] * len(t) if state is None else _known(table, str(state), "state", states)
    treated = None if trajectory is None else _known(table, str(trajectory), "trajectory", trajectories)
    lasting = _durations(table, amounts, duration, rate)
    lasting = np.where(t + lasting > t, lasting, 0.0)  # what is over before time goes on is given at once
    scheduled: dict[str, list[Scheduled | Infusion]] = {}
    for name in trajectories:
        rows = [i for i in range(len(t)) if treated is None or treated[i] == name]
        doses = [[(t[i], amounts[i]) for i in rows if dosed[i] == each and not lasting[i]] for each in states]
        infusions = [
            Infusion(states.index(dosed[i]), float(t[i]), float(t[i] + lasting[i]), float(amounts[i] / lasting[i]))
            for i in rows
            if lasting[i]
        ]
        scheduled[name] = [*(_scheduled(k, of_state) for k, of_state in enumerate(doses) if of_state), *infusions]
    return scheduled


def _durations(
    table: Table, amounts: NDArray[np.float64], duration: str | None, rate: str | None
) -> NDArray[np.float64]:
    """How long each dose is given, [n]; 0 for those that are given at once."""
    given = {}
    for role, column in {"duration": duration, "rate": rate}.items():
        here = column is not None and (column != role or column in table.columns)
        given[role] = np.nan_to_num(read_numbers(table, str(column), role)) if here else np.zeros(len(amounts))
        for i in np.flatnonzero(given[role] < 0):
            raise DataError(
                f"the {role} column {str(column)!r} holds {given[role][i]:g} in {table.rows[i]}: a {role} is positive, "
                "or 0 for a dose that is given at once"
            )
    durations, rates = given["duration"], given["rate"]
    for i in np.flatnonzero((durations > 0) & (rates > 0)):
        raise DataError(
            f"{table.name} has both a duration and a rate in {table.rows[i]}, of which the amount says the one by the "
            "other: leave one empty"
        )
    for i in np.flatnonzero((rates > 0) & (amounts <= 0)):
        raise DataError(
            f"{table.name} has the rate {rates[i]:g} in {table.rows[i]}, and the amount {amounts[i]:g} is never given "
            "at that rate: write the amount that is given in all"
        )
    return np.where(rates > 0, amounts / np.where(rates > 0, rates, 1.0), durations)


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
