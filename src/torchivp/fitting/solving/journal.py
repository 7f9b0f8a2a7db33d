"""A file of all that a fit has solved, from which it goes on where it was interrupted."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from torchivp.journal import Journal

if TYPE_CHECKING:
    from torch import Tensor

    from torchivp.fitting.solving.stretches import Accuracy


class FitJournal(Journal):
    """The solves of a fit by what was asked for: the numbers of predictions, None where the model could not be solved.

    Args:
        path: of the file, which is made if it does not exist.
        fit: what identifies the fit; a file of another fit is refused.

    Raises:
        ValueError: the file is of another fit, or no journal.
    """

    def __init__(self, path: str | Path, fit: Sequence[Any]):
        super().__init__(path, fit, "fit", "other data, model or arguments")

    def key(
        self,
        accuracy: Accuracy,
        theta: NDArray[np.float64],
        horizon: float,
        derivatives: bool,
        shifts: Tensor | None = None,
        company: bool = False,
    ) -> bytes:
        """What identifies a solve."""
        said = repr((accuracy, horizon, derivatives, company)).encode()
        moved = b"" if shifts is None else np.ascontiguousarray(shifts).tobytes()
        return hashlib.sha256(said + np.ascontiguousarray(theta).tobytes() + moved).digest()

    def start_key(self, accuracy: Accuracy, start: NDArray[np.float64]) -> bytes:
        """What identifies a whole search from a start, which another process has made."""
        return hashlib.sha256(b"start" + repr(accuracy).encode() + np.ascontiguousarray(start).tobytes()).digest()
