"""The kernel of a function together with its variational equations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchivp.fused.arrays import Array
from torchivp.fused.call import BEGIN, NOW
from torchivp.fused.graphs import (
    Function,
    changes_along,
    core_graph,
    depending_on,
    merge_repeats,
    uses,
    variations_of,
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
        self._derive(uses(core_graph(values, examples)))
        lines, value, changes, _ = self._variations(values, examples, self.inputs, "dy", "func")
        field = _function("field", "typename Lanes<W>::R* dy", [*lines, *value, *changes])
        return [*field, *self._bend()] if form.coefficients.uses_jacobian else field

    def _bend(self) -> list[str]:
        """The function of the changes of J u + tau T, for Rosenbrock methods."""
        roles, examples = self.form.roles, self.traced.examples
        by = [roles.index(role) for role in ("y", "t") if role in roles]
        seeds = [torch.zeros_like(examples[i]) for i in by]
        held = [Array.stored("stage" if roles[i] == "y" else "shift", examples[i].shape) for i in by]
        along = changes_along(self.traced.values, by, len(examples))
        lines, _, changes, varies = self._variations(
            along, [*examples, *seeds], [*self.inputs, *held], "bent", "the second derivative of func"
        )
        arguments = "const typename Lanes<W>::R* stage, const typename Lanes<W>::R& tau, typename Lanes<W>::R* bent"
        first = "const typename Lanes<W>::R shift[1] = {tau}; (void)stage; (void)shift; (void)bent;"
        return [
            f"constexpr bool BENDS = {str(varies).lower()};",
            *_function("bend", arguments, [first, *lines, *changes] if varies else [first]),
        ]

    def _variations(
        self, function: Function, examples: Sequence[Tensor], inputs: Sequence[Array], goal: str, of: str
    ) -> tuple[list[str], list[str], list[str], bool]:
        """A function with its changes in C++.

        Returns:
            The lines that compute the value and what the changes have in common, those that write the value to `goal`,
            those that write the changes behind it, and whether it changes at all.
        """
        roles, size, lowering = self.form.roles, self.form.states, self.lowering
        y = roles.index("y") if "y" in roles else None
        varied = variations_of(function, y, [number for _, number in self._moved])
        graph = core_graph(varied, [*examples, torch.zeros(size, dtype=self.form.dtype)])
        merge_repeats(graph)
        late = depending_on(graph, len(examples))
        tangent = Array.stored("v", (size,))
        lines, within, (value, *each, along) = lowering.lower_in_two(graph, [*inputs, tangent], late, of)
        changes = [
            "for (int d = STATES; d < N; d += STATES) {",
            f"const typename Lanes<W>::R* v = y + d; typename Lanes<W>::R* to = {goal} + d; (void)v;",
            *within,
            *lowering.written(along, "to"),
            "}",
        ]
        for (direction, _), by_input in zip(self._moved, each, strict=True):
            changes += lowering.added(by_input, goal, size * (1 + direction))
        varies = not all(x.is_zero() for x in (*each, along))
        return lines, lowering.written(value, goal), changes, varies


def _function(name: str, arguments: str, lines: Sequence[str]) -> list[str]:
    """A function of C++ that is not written out where it is called, as it is long and there are many calls."""
    return [f"template <int W> CALLED void {name}({NOW}, {arguments}) {{", BEGIN, *lines, "}"]
