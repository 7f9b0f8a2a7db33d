"""Whether event functions still are what they were in a solve, when its gradient goes back through what they changed.

Steps that are taken again end where they did, whatever the event function says now. The derivatives of the times at
which they end are those of the function as it is.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from torchivp.generators import Generators
from torchivp.gradients.draws import is_repeated
from torchivp.record import ChangeRecord
from torchivp.rows.changes import changes_state, event_on
from torchivp.rows.problem import RowProblem

_NEAR = 0.01
"""How far from the events, where they are zero, functions are looked at, relative to the state."""

_CHANGED = (
    "an event function gives another value than in the solve: something that it uses has changed since, such as a "
    "tensor that was written into, the mode of a module, or a variable. Compute the gradient before that, or let it "
    "use a copy"
)


class EventMarks:
    """What the event functions that have changed the state give near the last event of each row.

    Args:
        problem: the problem.
        changes: what happened.
    """

    def __init__(self, problem: RowProblem, changes: ChangeRecord):
        self._changes = changes
        self._last: dict[int, dict[int, int]] = {}
        for i, (row, firing) in enumerate(zip(changes.rows.tolist(), changes.firings, strict=True)):
            for number, column in firing if changes_state(problem, firing) else ():
                if column < 0:
                    self._last.setdefault(number, {})[row] = i
        generators = Generators(problem.y0.device)
        before = generators.now()
        with generators.kept():
            values = self._values(problem) if self._last else []
            self._known = values if generators.now() == before else None

    def check(self, problem: RowProblem) -> None:
        """Check that the functions give what they gave.

        Raises:
            RuntimeError: one does not.
        """
        if self._known is not None and not all(map(is_repeated, self._values(problem), self._known, self._known)):
            raise RuntimeError(_CHANGED)

    @torch.no_grad()
    def _values(self, problem: RowProblem) -> list[Tensor]:
        values = []
        for number, places in self._last.items():
            rows, where = np.array(list(places)), np.array(list(places.values()))
            y = self._changes.y[problem.select(where)].detach()
            part = torch.frac(0.618034 * torch.arange(1, y.shape[1] + 1, device=y.device)).to(y.dtype)
            try:
                function = event_on(problem, problem.actions[number], rows)
                values.append(function(problem.user_time(self._changes.t[where]), y + _NEAR * part * y.abs()).clone())
            except Exception:  # it need not be defined there
                values.append(y.new_zeros(0).real)
        return values
