"""Where the Jacobian of a right-hand side has entries, found out at several states."""

from __future__ import annotations

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from torchivp.methods.jacobian import Linearisation, autograd_sees
from torchivp.methods.method import FlatFunc
from torchivp.sparsity import LEAST_SPARSE, Sparsity
from torchivp.split import summands_of
from torchivp.state import elsewhere
from torchivp.torch_func import inside_transform, pull_back, without_derivatives

_AT_ONCE = 2**22
"""How many numbers backward passes make at once."""

_SPANS = (0.0, 0.37, 0.71)
"""Where in the span of time to look, as what is switched on later has entries too."""

_UNSEEN = (
    "jac_sparsity='auto' is found by autograd, which does not see how func(t, y) depends on y: compute in torch, "
    "without .item(), .detach() or NumPy, or write down where the Jacobian has entries"
)


def found_sparsity(func: FlatFunc, t: Tensor, y: Tensor, span: Tensor) -> Sparsity | None:
    """Where the Jacobians of all rows may have entries; None if the matrix is small, or has no structure that pays.

    At the initial states and at others, where nothing vanishes by chance, now and later.

    Args:
        func: the right-hand side.
        t: where each row starts, [rows, 1], or 0-d.
        y: the initial states, [rows, size], real.
        span: how long they go on, with a sign, like `t`.

    Raises:
        ValueError: autograd does not see how `func` depends on the state.
    """
    size = y.shape[1]
    if size < LEAST_SPARSE or not len(y) or inside_transform():
        return None
    if parts := summands_of(func):
        func = parts[1]
    found: list[tuple[np.ndarray, np.ndarray]] = []
    with torch.inference_mode(False), without_derivatives():
        t, y, span = t.detach().clone(), y.detach().clone(), span.detach().clone()
        if not autograd_sees(func, t, y).all():
            raise ValueError(_UNSEEN)
        for part, state in zip(_SPANS, (y, elsewhere(y), elsewhere(y.flip(1)).flip(1)), strict=True):
            time = t + part * torch.where(torch.isfinite(span), span, torch.sign(span))
            try:
                if not bool(torch.isfinite(func(time.clone(), state)).all()):
                    continue
                found.append(_entries(func, time, state))
            except Exception:  # whatever goes wrong where nobody has asked for it
                if part == 0.0:
                    raise
    rows, columns = (np.concatenate(each) for each in zip(*found, strict=True))
    matrix = scipy.sparse.coo_array((np.ones(len(rows), dtype=bool), (rows, columns)), shape=(size, size))
    sparsity = Sparsity.of(matrix, size, y.device, found=True)
    return sparsity if 2 * sparsity.count <= size else None


def _entries(func: FlatFunc, t: Tensor, y: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The rows and columns of the entries other than zero."""
    exact, size = Linearisation(func, t, y), y.shape[1]
    chunk, places = max(1, _AT_ONCE // y.numel()), []
    for first in range(0, size, chunk):
        numbers = torch.arange(first, min(first + chunk, size), device=y.device)
        seeds = torch.zeros(len(numbers), *y.shape, dtype=y.dtype, device=y.device)
        seeds[torch.arange(len(numbers)), :, numbers] = 1.0
        some = (pull_back(exact.transposed_times, seeds) != 0.0).any(1)  # NaN is an entry
        rows, columns = some.nonzero(as_tuple=True)
        places.append(((rows + first).cpu().numpy(), columns.cpu().numpy()))
    rows, columns = zip(*places, strict=True)
    return np.concatenate(rows), np.concatenate(columns)
