"""Inequalities between parameters, such as ka > ke: what violates them counts as what cannot be solved.

Their margins, such as ka - ke, say how far it is to there, for the search on a constraint that is active.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchivp.expressions import Expression
from torchivp.fitting.quantities import Quantities

_INEQUALITIES = ast.Lt | ast.LtE | ast.Gt | ast.GtE


@dataclass(frozen=True)
class Constraint:
    """An inequality.

    Attributes:
        expression: true where it holds.
        columns: the numbers of the locals that it compares, in the order of its names.
        margins: differences that are all positive where it holds; none if it is no comparison, nor several with `and`.
    """

    expression: Expression
    columns: tuple[int, ...]
    margins: tuple[Expression, ...]

    def holds(self, own: Tensor) -> Tensor:
        """Whether it holds for all trajectories with these locals [..., n_trajectories, n_locals], [...]."""
        values = {name: own[..., k] for name, k in zip(self.expression.names, self.columns, strict=True)}
        return torch.as_tensor(self.expression(values)).bool().expand(own.shape[:-1]).all(-1)


def margins(
    constraints: Sequence[Constraint], quantities: Quantities, theta: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """All margins of all constraints in all trajectories, [m], and their derivatives by theta, [m, n_free]."""
    own, slopes = quantities.locals_and_slopes(theta)
    values, changes = [np.zeros(0)], [np.zeros((0, len(theta)))]
    for constraint in constraints:
        names = dict(zip(constraint.expression.names, constraint.columns, strict=True))
        for margin in constraint.margins:
            inputs = {name: own[:, names[name]].clone().requires_grad_() for name in margin.names}
            with torch.enable_grad():
                each = margin(inputs).expand(len(own))
                found = torch.autograd.grad(each.sum(), list(inputs.values()), allow_unused=True)
            by_theta = np.zeros((len(own), len(theta)))
            for name, gradient in zip(inputs, found, strict=True):
                if gradient is not None:
                    by_theta += gradient.numpy()[:, None] * slopes[:, names[name]]
            values.append(each.detach().numpy())
            changes.append(by_theta)
    return np.concatenate(values), np.concatenate(changes)


def broken(constraints: Sequence[Constraint], quantities: Quantities, theta: NDArray[np.float64]) -> list[str]:
    """The constraints that do not hold in all trajectories at theta, in words."""
    own = quantities.locals(torch.tensor(theta))
    return [each.expression.text for each in constraints if not bool(each.holds(own))]


def _margins_of(tree: ast.expr) -> tuple[Expression, ...]:
    """The differences that are positive where comparisons hold; none if something else is in it."""
    if isinstance(tree, ast.BoolOp) and isinstance(tree.op, ast.And):
        parts = [_margins_of(each) for each in tree.values]
        return tuple(each for part in parts for each in part) if all(parts) else ()
    if not isinstance(tree, ast.Compare) or not all(isinstance(op, _INEQUALITIES) for op in tree.ops):
        return ()
    sides = [ast.unparse(side) for side in (tree.left, *tree.comparators)]
    return tuple(
        Expression(f"({b}) - ({a})" if isinstance(op, ast.Lt | ast.LtE) else f"({a}) - ({b})")
        for op, (a, b) in zip(tree.ops, pairwise(sides), strict=True)
    )


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
        columns = tuple(quantities.names.index(name) for name in expression.names)
        one = Constraint(expression, columns, _margins_of(expression.tree))
        if not bool(one.holds(at_start)):
            raise ValueError(f"the constraint {text!r} does not hold at the start values: give start={{name: value}}")
        constraints.append(one)
    return constraints
