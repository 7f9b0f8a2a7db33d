"""The order conditions of Runge-Kutta methods, by rooted trees.

Butcher, "Numerical Methods for Ordinary Differential Equations", section 31; Hairer, Norsett and Wanner,
"Solving Ordinary Differential Equations I", section II.2, theorem 2.13: a method has order p exactly if
`sum_i b_i Phi_i(tree) = 1 / gamma(tree)` for every rooted tree with at most p vertices.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

Tree = tuple["Tree", ...]
"""A rooted tree: the tuple of the subtrees that hang on its root."""


@cache
def rooted_trees(order: int) -> tuple[Tree, ...]:
    """All rooted trees with `order` vertices; there are 1, 1, 2, 4, 9, 20, 48, 115, ... of them."""
    smaller = [tree for n in range(1, order) for tree in rooted_trees(n)]
    return tuple(_forests(order - 1, smaller))


def _forests(vertices: int, trees: list[Tree]) -> list[Tree]:
    """All multisets of `trees`, which are sorted by size, with `vertices` vertices in total."""
    if vertices == 0:
        return [()]
    return [
        (*forest, tree)
        for i, tree in enumerate(trees)
        if len_tree(tree) <= vertices
        for forest in _forests(vertices - len_tree(tree), trees[: i + 1])
    ]


@cache
def len_tree(tree: Tree) -> int:
    """The number of vertices of a tree."""
    return 1 + sum(len_tree(subtree) for subtree in tree)


@cache
def density(tree: Tree) -> int:
    """The density gamma of a tree."""
    gamma = len_tree(tree)
    for subtree in tree:
        gamma *= density(subtree)
    return gamma


def residual(
    a: np.ndarray,
    b: np.ndarray,
    order: int,
    theta: float = 1.0,
    single: np.ndarray | None = None,
    other: np.ndarray | None = None,
) -> float:
    """The largest violation of the conditions up to `order` of the weights `b` at the fraction `theta` of a step.

    A Rosenbrock method has another matrix, `alpha + Gamma`, where a `single` subtree hangs on a vertex (Hairer and
    Wanner, "Solving Ordinary Differential Equations II", IV.7). A pair of methods with the same weights for the two
    parts of a sum has the matrix of either where a subtree hangs on a vertex, `a` or the `other`, in every combination
    (Kennedy and Carpenter, "Additive Runge-Kutta schemes for convection-diffusion-reaction equations", Appl. Numer.
    Math. 44 (2003), section 2).
    """
    weights: dict[Tree, Sequence[np.ndarray]] = {}

    def phis(tree: Tree) -> Sequence[np.ndarray]:
        if tree not in weights:
            matrix = single if single is not None and len(tree) == 1 else a
            matrices = [matrix] if other is None else [matrix, other]
            found = [np.ones(len(b))]
            for subtree in tree:
                factors = [matrix @ phi for matrix in matrices for phi in phis(subtree)]
                found = [product * factor for product in found for factor in factors]
            weights[tree] = found
        return weights[tree]

    return max(
        abs(float(b @ phi) - theta**n / density(tree))
        for n in range(1, order + 1)
        for tree in rooted_trees(n)
        for phi in phis(tree)
    )
