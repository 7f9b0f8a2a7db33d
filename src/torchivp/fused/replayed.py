"""The steps of a kernel, taken again in torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from torchivp.fused.solve import FusedSolve
from torchivp.fused.used import Used
from torchivp.gradients.captured import NoLateLeaves
from torchivp.gradients.draws import check_led_back
from torchivp.gradients.inputs import Parameters
from torchivp.gradients.node import NodeSolve
from torchivp.gradients.replayed import ReplayedSolve
from torchivp.gradients.row_inputs import RowInputs
from torchivp.record import ChangeRecord, Checkpoint, Record
from torchivp.rows.integration import RowIntegration
from torchivp.rows.problem import RowProblem


class Replayed(NodeSolve):
    """The steps of a kernel's record, taken again in torch: for derivatives of its gradients.

    Args:
        solve: the solve by a kernel.
        plan: the same solve by the step loop.
        wanted: the tensors that the gradients are of, besides the initial states and times; some may be there twice.
        used: the tensors that func uses.
    """

    def __init__(self, solve: FusedSolve, plan: RowIntegration, wanted: Sequence[Tensor], used: Used):
        self._solve, self._wanted, self._used = solve, wanted, used
        self._steps = ReplayedSolve(plan, RowInputs(plan.problem, Parameters(), used=True), None)
        self.late = NoLateLeaves()

    def forward(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        raise AssertionError("the kernel has run")

    def again(self, tensors: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        self._used.check()
        solve, steps = self._solve, self._steps
        assert solve.record is not None
        y0, taken = solve.y0.reshape(solve.rows, solve.size), solve.outcomes.accepted
        ends, most = solve.taken_ends(), int(taken.max(initial=0))
        start = Checkpoint(0, y0, np.zeros(len(y0), dtype=np.int64))
        steps.record = Record(ends, taken, None, [start], ChangeRecord.joined([], y0), keeps_carry=False)
        asked = steps.plan.problem.times.outputs
        count = most + 1 if asked is None else asked.shape[1]
        steps.times = np.empty((len(y0), count + (asked is not None)))
        leaf = solve.y0.detach().clone().requires_grad_()  # in the shape that the node is given
        problem, found = self._on_leaves()
        times = [x.detach().requires_grad_() for x in problem.moving.tensors.values()]
        moving = problem.moving.with_tensors(dict(zip(problem.moving.tensors, times, strict=True)))
        states, _ = steps.run_again(replace(problem, y0=leaf.reshape(y0.shape), moving=moving))
        rows = torch.arange(len(y0))
        if asked is None:
            last = states[rows, torch.from_numpy(taken)]
        else:
            ahead = torch.sign(solve.times.end - solve.times.start).numpy()[:, None]
            kept = (ahead * (asked - solve.outcomes.t[:, None]) <= 0).sum(1)
            last = states[rows, torch.from_numpy(np.ascontiguousarray(kept))]
        there = solve.record.states[rows, torch.from_numpy(taken)]
        check_led_back(last, there, y0, steps.plan.norm.rtol)
        values = states[:, :count].reshape(*solve.lead, count, *solve.shape)
        return (values, last.reshape(solve.y0.shape)), [leaf, *found, *times]

    def _on_leaves(self) -> tuple[RowProblem, list[Tensor]]:
        """The problem on leaves that stand for what is wanted, and these in its order.

        A tensor has one, however often func meets it; where it is wanted again there is one that nothing uses. What has
        no history stands for itself, since func may hold it besides.
        """
        problem, one = self._steps.plan.problem, {}
        for x in self._wanted:
            one.setdefault(id(x), x if x.is_leaf else x.detach().requires_grad_())
        args = problem.func.args
        problem = problem.with_args(args.with_leaves([one.get(id(leaf), leaf) for leaf in args.leaves]))
        held = {id(leaf) for leaf in args.leaves}
        found, seen = [], set()
        for x in self._wanted:
            own = one[id(x)] if id(x) in held else x
            found.append(torch.zeros_like(own, requires_grad=True) if id(x) in seen else own)
            seen.add(id(x))
        return problem, found
