"""Where a Jacobian may have entries other than zero, and how few products with vectors find them all."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

LEAST_SPARSE = 100
"""The smallest matrix for which a sparse factorisation is worth its overhead,"""

_MOST_FULL = 0.2
"""and the largest part of it that may be filled."""

_EXAMPLE = (
    "write jac_sparsity=(1, 1) for a band with one diagonal on each side, a matrix with an entry other than zero "
    "wherever d func_i / d y_j may be one, or 'auto' to have it found"
)


def is_sought(given: Any) -> bool:
    """Whether the user leaves it to us to find the pattern."""
    return isinstance(given, str) and given == "auto"


@dataclass(frozen=True)
class Sparsity:
    """The places of a square matrix that may hold something, those of its diagonal always among them.

    Products of unit vectors with the matrix, from the left, give a row each. Rows that share no column can be found
    together, as the sum of them: they have one colour. Curtis, Powell and Reid, "On the estimation of sparse Jacobian
    matrices", J. Inst. Math. Appl. 13 (1974).

    Attributes:
        size: the number of rows.
        rows: the row of each place, [n], in order.
        columns: its column, [n].
        colours: the colour of each row, [size].
        count: how many colours there are.
        found: whether it was found out at some states, so that there may be more at others: every Jacobian is checked.
    """

    size: int
    rows: Tensor
    columns: Tensor
    colours: Tensor
    count: int = field(init=False)
    found: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", int(self.colours.max()) + 1 if self.size else 0)

    @property
    def pays(self) -> bool:
        """Whether a sparse factorisation takes less time than a dense one, which knows no places."""
        few = len(self.rows) < _MOST_FULL * self.size**2
        return self.size >= LEAST_SPARSE and few and self.rows.device.type == "cpu"

    @property
    def places(self) -> tuple[Tensor, Tensor]:
        """The rows and the columns of the places, [n] each."""
        return self.rows, self.columns

    @cached_property
    def on_diagonal(self) -> Tensor:
        """Which of the places lie on the diagonal, [size]."""
        return (self.rows == self.columns).nonzero().squeeze(1)

    def repeated(self, times: int) -> Sparsity:
        """The places of a matrix of so many by so many blocks like this one, block after block; without colours."""
        first, second = (x.reshape(-1, 1) for x in torch.cartesian_prod(*[self.size * torch.arange(times)] * 2).T)
        rows, columns = (first + self.rows).reshape(-1), (second + self.columns).reshape(-1)
        return Sparsity(times * self.size, rows, columns, self.colours)

    @staticmethod
    def of(given: Any, size: int, device: torch.device, found: bool = False) -> Sparsity:
        """The pattern that a user gave: a matrix of any kind, or the numbers of diagonals below and above the main.

        Raises:
            TypeError: it is neither.
            ValueError: it is of another size.
        """
        matrix = _pattern(given, size)
        places = matrix.tocoo()
        order = np.lexsort((places.col, places.row))
        rows, columns = (torch.from_numpy(x[order].astype(np.int64)).to(device) for x in (places.row, places.col))
        return Sparsity(size, rows, columns, torch.from_numpy(_colours(matrix)).to(device), found)

    def seeds(self, like: Tensor) -> Tensor:
        """For each colour the sum of the unit vectors of its rows, [count, size]; last of all, if `found`, a probe."""
        seeds = torch.zeros(self.count, self.size, dtype=like.dtype, device=like.device)
        seeds = seeds.index_put((self.colours, torch.arange(self.size, device=like.device)), seeds.new_ones(()))
        return torch.cat((seeds, self._probe.to(seeds)[None])) if self.found else seeds

    def values(self, products: Tensor) -> Tensor:
        """The entries at the places, [..., n], of the products of the seeds with the matrix, [count, ..., size].

        Raises:
            ValueError: the matrix has others, where the pattern was found out.
        """
        values = products[self.colours[self.rows], ..., self.columns].movedim(0, -1)
        if self.found:
            self._check(values.detach(), products[-1].detach())
        return values

    @cached_property
    def _probe(self) -> Tensor:
        """Weights of the rows with which nothing cancels by chance, [size]."""
        number = torch.arange(1, self.size + 1, dtype=torch.float64, device=self.rows.device)
        return (1.0 + torch.frac(0.618034 * number)) * (1.0 - 2.0 * (torch.floor(number * number / 3.0) % 2.0))

    def _check(self, values: Tensor, product: Tensor) -> None:
        """Compare the sums of the entries in each column with the product of the whole matrix with the probe."""
        weighted = self._probe.to(values)[self.rows] * values
        sums, sizes = (
            product.new_zeros(product.shape).index_add(-1, self.columns, x) for x in (weighted, weighted.abs())
        )
        eps = torch.finfo(values.dtype).eps
        allowed = 1e4 * eps * sizes + 100 * eps * sizes.amax(-1, keepdim=True)
        wrong = (product - sums).abs() > allowed
        if bool(wrong.any()):
            column = int(wrong.flatten(0, -2).any(0).nonzero()[0])
            raise ValueError(
                "jac_sparsity='auto' has looked where the Jacobian of func has entries at the start and at states near "
                f"it, and now there is another one, in column {column} of the flattened state: write down the pattern "
                "that it has at all states, or leave jac_sparsity out"
            )

    def entries(self, matrix: Tensor) -> Tensor:
        """The entries at the places, [..., n], of a matrix, [..., size, size]."""
        return matrix[..., self.rows, self.columns]

    def dense(self, values: Tensor) -> Tensor:
        """The matrix, [..., size, size], with these entries, [..., n]."""
        matrix = values.new_zeros(*values.shape[:-1], self.size * self.size)
        return matrix.index_copy(-1, self.rows * self.size + self.columns, values).unflatten(-1, (self.size, self.size))


def _pattern(given: Any, size: int) -> Any:
    """The pattern as a matrix of SciPy's, in rows."""
    if isinstance(given, tuple) and len(given) == 2 and all(isinstance(x, int) and x >= 0 for x in given):
        lower, upper = given
        diagonals = list(range(-min(lower, size - 1), min(upper, size - 1) + 1)) if size else []
        matrix: Any = scipy.sparse.dia_array((np.ones((len(diagonals), size), bool), diagonals), shape=(size, size))
    elif isinstance(given, Tensor):
        matrix = given.detach().to_dense().cpu().numpy()
    elif isinstance(given, np.ndarray | list) or scipy.sparse.issparse(given):
        matrix = np.asarray(given) if isinstance(given, list) else given
    else:
        raise TypeError(f"jac_sparsity must be a matrix or the widths of a band, got {given!r}: {_EXAMPLE}")
    if matrix.shape != (size, size):
        raise ValueError(
            f"jac_sparsity must be of shape {(size, size)}, a row and a column for each element of the state (of a row "
            f"of a batch), got {tuple(matrix.shape)}: {_EXAMPLE}"
        )
    return (scipy.sparse.csr_array(matrix != 0) + scipy.sparse.eye_array(size, dtype=bool)).tocsr()


def _colours(matrix: Any) -> np.ndarray:
    """A colour for each row, different for rows that share a column: the first that is free, long rows first."""
    size = matrix.shape[0]
    by_column = matrix.tocsc()
    colours = np.full(size, -1, dtype=np.int64)
    for row in np.argsort(-np.diff(matrix.indptr), kind="stable"):
        columns = matrix.indices[matrix.indptr[row] : matrix.indptr[row + 1]]
        around = [by_column.indices[by_column.indptr[j] : by_column.indptr[j + 1]] for j in columns]
        taken = set(colours[np.concatenate(around)].tolist()) if around else set()
        colours[row] = next(colour for colour in range(size + 1) if colour not in taken)
    return colours
