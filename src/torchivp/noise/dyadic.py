"""Brownian increments as sums of standard normals, one or two to each node of a dyadic tree.

White noise over the root interval is the sum of independent standard normals times an orthonormal basis. W over [a, b]
is its product with the function that is one there, and H with the function (b - u) / (b - a) - 1/2 there. A basis of
functions that each live on one node of the dyadic tree, and that are orthogonal to the constants there, leaves only the
nodes that have a or b inside: the products with all others vanish. Sums are exact, not truncated, as times are points
of the finest level.

Without H the basis is Haar's. With H its functions are linear on the halves of the node, two to a node, and orthogonal
to the linear functions there (Alpert's multiwavelets), so that the root's W and H are numbers of the basis too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# Levels of the tree: times are told apart to 2^-48 of the interval, 16 rounding errors of its end in float64.
DEPTH = 48
POINTS = 1 << DEPTH

ROOT_3 = math.sqrt(3)


@dataclass(slots=True)
class Weights:
    """What an increment over a part of the unit interval is made of.

    Attributes:
        nodes: the nodes' numbers; that of node k of level l is 2^l + k.
        W: the factors of the nodes' normals in W, of shape [nodes, 1], or [nodes, 2] with H.
        H: the factors in H, likewise; None without H.
        root: the factors of the root's own W and H in W (first row) and H (second); 1 by 1 without H.
    """

    nodes: list[int]
    W: np.ndarray
    H: np.ndarray | None
    root: np.ndarray


def point(fraction: float) -> int:
    """The point of the finest level nearest to a fraction of the root interval."""
    return min(max(round(fraction * POINTS), 0), POINTS)


def weights(first: int, last: int, with_H: bool) -> Weights:
    """The weights of the increment from one point of the finest level to a later one."""
    nodes = list(dict.fromkeys(_inside(first) + _inside(last)))
    spans = np.array([(_start(node), POINTS >> (node.bit_length() - 1)) for node in nodes], dtype=np.int64)
    start, length = spans.reshape(-1, 2).T
    middle, end = start + length // 2, start + length
    left = _overlap(start, middle, first, last)
    right = _overlap(middle, end, first, last)
    h = length / POINTS
    if not with_H:
        W = (left[0] - right[0]) / np.sqrt(h)
        return Weights(nodes, W[:, None], None, np.array([[(last - first) / POINTS]]))
    return _weights_with_H(nodes, first, last, middle, h, left, right)


def _weights_with_H(
    nodes: list[int],
    first: int,
    last: int,
    middle: np.ndarray,
    h: np.ndarray,
    left: tuple[np.ndarray, np.ndarray],
    right: tuple[np.ndarray, np.ndarray],
) -> Weights:
    """The products of the two functions of each node, 2 - 6|x| times -sign(x) and √3 (4|x| - 1), with those of W and H.

    x is the distance from the node's middle in lengths of the node. On each half all four functions are linear, and the
    product of two linear functions over a width w is w (f g + f' g' w² / 12), f and g taken at the centre.
    """
    dt = (last - first) / POINTS
    W, H = np.zeros((len(nodes), 2)), np.zeros((len(nodes), 2))
    scale = 1 / np.sqrt(h)
    for (width, twice_centre), side in ((left, -1.0), (right, 1.0)):
        x = np.abs(twice_centre - 2 * middle) / (2 * POINTS) / h
        # of what H takes the product with: value at the centre, and slope
        value = ((first + last) - twice_centre) / (2 * POINTS) / dt
        slope = -1 / dt
        odd, even = (-side * (2 - 6 * x), 6.0), (ROOT_3 * (4 * x - 1), side * 4 * ROOT_3)
        for i, (g, g_slope) in enumerate((odd, even)):
            W[:, i] += width * g * scale
            H[:, i] += width * (value * g + slope * (g_slope / h) * width**2 / 12) * scale
    return Weights(nodes, W, H, _root_with_H(first, last))


def _root_with_H(first: int, last: int) -> np.ndarray:
    """The factors of the root's W and H: white noise given them has the mean W + 12 H (1/2 - u)."""
    dt = (last - first) / POINTS
    centre = (POINTS - first - last) / (2 * POINTS)
    return np.array([[dt, 12 * dt * centre], [0.0, dt * dt]])


def _inside(where: int) -> list[int]:
    """The nodes that have a point inside, from the root down."""
    if where in (0, POINTS):
        return []
    levels = DEPTH - ((where & -where).bit_length() - 1)
    number = POINTS + where
    return [number >> (DEPTH - level) for level in range(levels)]


def _start(node: int) -> int:
    level = node.bit_length() - 1
    return (node - (1 << level)) << (DEPTH - level)


def _overlap(start: np.ndarray, end: np.ndarray, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """The width, in unit intervals, of what is common with [first, last], and twice its centre, in points."""
    low, high = np.maximum(start, first), np.minimum(end, last)
    return np.maximum(high - low, 0) / POINTS, low + high
