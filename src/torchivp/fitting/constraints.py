"""Inequalities between parameters, such as ka > ke: what violates them counts as what cannot be solved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchivp.expressions import Expression
from torchivp.fitting.quantities import Quantities


@dataclass(frozen=True)
class Constraint:
    """An inequality.

    Attributes:
        expression: true where it holds.
        columns: the numbers of the locals that it compares, in the order of its names.
    """

    expression: Expression
    columns: tuple[int, ...]

    def holds(self, own: Tensor) -> Tensor:
        """Whether it holds for all trajectories with these locals [..., n_trajectories, n_locals], [...]."""
        values = {name: own[..., k] for name, k in zip(self.expression.names, self.columns, strict=True)}
        return torch.as_tensor(self.expression(values)).bool().expand(own.shape[:-1]).all(-1)


def read_constraints(given: Sequence[str], quantities: Quantities) -> list[Constraint]:
    """The constraints as the argument of `fit` gives them.

    Raises:
        ValueError: one is no inequality between parameters, or does not hold at the start.
    """
    constraints = []
    at_start = quantities.locals(torch.tensor(quantities.theta()))
    for text in [given] if isinstance(given, str) else given:
        if not any(sign in text for sign in "<>"):
            raise ValueError(f"constraints holds {text!r}, which is no inequality such as 'ka > ke'")
        expression = Expression(text)
        for name in expression.names:
            if name not in quantities.single_names:
                known = ", ".join(quantities.single_names)
                raise ValueError(f"the constraint {text!r} uses {name!r}; there are {known}")
        one = Constraint(expression, tuple(quantities.names.index(name) for name in expression.names))
        if not bool(one.holds(at_start)):
            raise ValueError(f"the constraint {text!r} does not hold at the start values: give start={{name: value}}")
        constraints.append(one)
    return constraints
