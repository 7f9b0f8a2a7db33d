"""The steps of a kernel, taken again in torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchivp.fused.solve import FusedSolve
from torchivp.gradients.captured import NoLateLeaves
from torchivp.gradients.inputs import Parameters
from torchivp.gradients.node import NodeSolve
from torchivp.gradients.replayed import ReplayedSolve
from torchivp.gradients.row_inputs import RowInputs
from torchivp.record import ChangeRecord, Checkpoint, Record
from torchivp.rows.loop import RowIntegration


class Replayed(NodeSolve):
    """The steps of a kernel's record, taken again in torch: for derivatives of its gradients.

    Args:
        solve: the solve by a kernel.
        plan: the same solve by the step loop.
        wanted: the tensors that the gradients are of, besides the initial states.
        leaves: the leaves of the arguments.
    """

    def __init__(self, solve: FusedSolve, plan: RowIntegration, wanted: Sequence[Tensor], leaves: Sequence[Any]):
        others = [x for x in wanted if not any(x is leaf for leaf in leaves)]
        self._solve, self._wanted = solve, wanted
        self._steps = ReplayedSolve(plan, RowInputs(plan.problem, Parameters(others), used=True), None)
        self.late = NoLateLeaves()

    def forward(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        raise AssertionError("the kernel has run")

    def again(self, tensors: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        solve, steps = self._solve, self._steps
        assert solve.record is not None
        y0, taken = solve.y0.reshape(solve.rows, solve.size), solve.outcomes.accepted
        most = int(taken.max(initial=0))
        ends = solve.record.ends[:, : most + 1].numpy().copy()
        ends[np.arange(most + 1) > taken[:, None]] = math.nan
        start = Checkpoint(0, y0, np.zeros(len(y0), dtype=np.int64))
        steps.record = Record(ends, taken, None, [start], ChangeRecord.joined([], y0), keeps_carry=False)
        asked = steps.plan.problem.times.outputs
        count = most + 1 if asked is None else asked.shape[1]
        steps.times = np.empty((len(y0), count + (asked is not None)))
        problem, found = steps.inputs.on_leaves(y0)
        leaf = solve.y0.detach().clone().requires_grad_()  # in the shape that the node is given
        states, _ = steps.run_again(replace(problem, y0=leaf.reshape(y0.shape)))
        rows = torch.arange(len(y0))
        if asked is None:
            last = states[rows, torch.from_numpy(taken)]
        else:
            ahead = torch.sign(solve.times.end - solve.times.start).numpy()[:, None]
            kept = (ahead * (asked - solve.outcomes.t[:, None]) <= 0).sum(1)
            last = states[rows, torch.from_numpy(np.ascontiguousarray(kept))]
        originals = steps.inputs.tensors
        order = [next(i for i, x in enumerate(originals) if x is tensor) for tensor in self._wanted]
        values = states[:, :count].reshape(*solve.lead, count, *solve.shape)
        return (values, last.reshape(solve.y0.shape)), [leaf, *(found[i] for i in order)]
