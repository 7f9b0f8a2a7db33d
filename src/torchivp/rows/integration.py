"""What determines the steps of rows, and the loop that takes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from torchivp.callbacks import Callbacks
from torchivp.error_norm import ErrorNorm
from torchivp.integrate import Controller
from torchivp.methods.method import Method
from torchivp.rows.event_loop import EventLoop
from torchivp.rows.loop import RowLoop
from torchivp.rows.problem import RowProblem
from torchivp.rows.recorders import RowOutputs, RowTrail
from torchivp.solution import Stats, Status
from torchivp.torch_func import without_derivatives


@dataclass(frozen=True)
class RowIntegration:
    """All that determines the steps of the rows.

    Attributes:
        problem: the problem.
        method: the method.
        controller: what sizes the steps.
        norm: measures the errors against the tolerance.
        max_steps: the largest number of step attempts of a row.
        describe: names an element of a row's flat state, for messages.
        callbacks: what is told of every step.
    """

    problem: RowProblem
    method: type[Method]
    controller: Controller
    norm: ErrorNorm
    max_steps: int
    describe: Callable[[int], str]
    callbacks: Callbacks | None = None

    def make_method(self) -> Method:
        """The method, made for one row or for many."""
        like = self.problem.y0.detach()[:1]
        if not len(like):
            like = self.problem.y0.new_zeros(1, self.problem.y0.shape[1])
        return self.method(like, self.problem.real_dtype, self.norm)

    def run(
        self, outputs: RowOutputs, trail: RowTrail, method: Method | None = None
    ) -> tuple[list[Status], list[Stats]]:
        """Integrate every row from its start to its end; how each ended, and what it cost.

        `method` stands in for `make_method()`.
        """
        method = method or self.make_method()
        with without_derivatives(), np.errstate(over="ignore"):  # on the way to an infinite end
            kind = EventLoop if self.problem.actions else RowLoop
            loop = kind(self, outputs, trail, method)
            ended = loop.to_the_end()
            if not loop.looks_at_every_step and not loop.is_finite():
                # A state that is not finite stays so. Fixed steps therefore look at the last states only, so that no
                # step waits for the device, and look for the first bad step of each row if there is one.
                again = replace(self, callbacks=None)
                ended = RowLoop(again, outputs, trail, method, looks_at_every_step=True).to_the_end()
            return ended
