"""The kernel of a function together with its variational equations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from torchivp.fused.arrays import Array
from torchivp.fused.call import BEGIN, NOW
from torchivp.fused.graphs import (
    Function,
    core_graph,
    depending_on,
    merge_repeats,
    uses,
    with_change,
)
from torchivp.fused.kernel import Form, Kernel
from torchivp.fused.trace import Traced


class TangentKernel(Kernel):
    """The kernel of a function together with its variational equations.

    The state of a row is that of the function, then its tangents, direction by direction. Steps are sized by the error
    of the function's state alone, so that they are those without tangents.

    What the tangents of all directions have in common is computed once, and a loop over the directions does the rest:
    the source does not grow with their number.

    Args:
        traced: the function.
        form: what the kernel is for, with the size of all of the state.
        moved: the number of the input that moves in each of the last directions; None for none.
    """

    def __init__(self, traced: Traced, form: Form, moved: Sequence[int | None]):
        self._directions = form.size // form.states - 1
        first = self._directions - len(moved)
        self._moved = [(first + d, number) for d, number in enumerate(moved) if number is not None]
        super().__init__(traced, form)

    def beginning(self, call: str) -> list[str]:
        return ["#define TANGENTS", *super().beginning(call)]

    def _lowered_field(self) -> list[str]:
        values, examples, form = self.traced.values, self.traced.examples, self.form
        graph, lines, value, changes, _ = self._varied(values, examples, self.inputs, "dy", "func")
        self._derive(uses(graph)[: len(examples)])
        field = _function("field", "typename Lanes<W>::R* dy", [*lines, *value, *changes])
        return [*field, *self._bend()] if form.coefficients.uses_jacobian else field

    def _bend(self) -> list[str]:
        """The function of the changes of J u + tau T, for Rosenbrock methods."""
        roles, examples = self.form.roles, self.traced.examples
        by = [roles.index(role) for role in ("y", "t") if role in roles]
        seeds = [torch.zeros_like(examples[i]) for i in by]
        held = [Array.stored("stage" if roles[i] == "y" else "shift", examples[i].shape) for i in by]
        along = with_change(self.traced.values, by, len(examples))
        _, lines, _, changes, varies = self._varied(
            lambda *inputs: along(*inputs)[1:],
            [*examples, *seeds],
            [*self.inputs, *held],
            "bent",
            "the second derivative of func",
        )
        arguments = "const typename Lanes<W>::R* stage, const typename Lanes<W>::R& tau, typename Lanes<W>::R* bent"
        first = "const typename Lanes<W>::R shift[1] = {tau}; (void)stage; (void)shift; (void)bent;"
        return [
            f"constexpr bool BENDS = {str(varies).lower()};",
            *_function("bend", arguments, [first, *lines, *changes] if varies else [first]),
        ]

    def _varied(
        self, function: Function, examples: Sequence[Tensor], inputs: Sequence[Array], goal: str, of: str
    ) -> tuple[fx.Graph, list[str], list[str], list[str], bool]:
        """A function with its changes in C++.

        Returns:
            The graph; the lines that compute the value and what the changes have in common, those that write the value
            to `goal`, those that write the changes behind it; and whether it changes at all.
        """
        size, lowering, dtype = self.form.states, self.lowering, self.form.dtype
        by = [i for i, role in enumerate(self.form.roles) if role == "y"]
        by_state = len(by)
        by += sorted({number for _, number in self._moved})
        varied = with_change(function, by, len(examples))
        graph = core_graph(varied, [*examples, *(torch.zeros_like(examples[i], dtype=dtype) for i in by)])
        merge_repeats(graph)
        still = [Array.known(torch.zeros(examples[i].shape, dtype=dtype)) for i in by]
        seeds = [[Array.stored("v", (size,))] * by_state + still[by_state:]]
        for _, number in self._moved:
            one = Array.known(torch.ones(examples[number].shape, dtype=dtype))
            seeds.append([one if i == number else x for i, x in zip(by, still, strict=True)])
        linear = depending_on(graph, len(examples))
        lines, (value,), changes = lowering.lower_linear(graph, inputs, linear, seeds, of)
        (within, along), *each = changes
        written = [
            "for (int d = STATES; d < N; d += STATES) {",
            f"const typename Lanes<W>::R* v = y + d; typename Lanes<W>::R* to = {goal} + d; (void)v;",
            *within,
            *lowering.written(along, "to"),
            "}",
        ]
        for (direction, _), (own, change) in zip(self._moved, each, strict=True):
            written += [*own, *lowering.added(change, goal, size * (1 + direction))]
        varies = not all(change.is_zero() for _, change in changes)
        return graph, lines, lowering.written(value, goal), written, varies


def _function(name: str, arguments: str, lines: Sequence[str]) -> list[str]:
    """A function of C++ that is not written out where it is called, as it is long and there are many calls."""
    return [f"template <int W> CALLED void {name}({NOW}, {arguments}) {{", BEGIN, *lines, "}"]
