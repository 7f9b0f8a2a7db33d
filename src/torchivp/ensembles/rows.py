"""The rows of an ensemble that are solved together, with random numbers that belong to each."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass
class Rows:
    """Some rows of an ensemble, in their order: what `ensemble` calls `solve` with.

    Attributes:
        first: the number of the first of them.
        count: how many they are.
        inputs: theirs, structured like the `inputs` of `ensemble`, with the first dimension of size `count`; None if
            that was a number.
        seed: of the ensemble, such as for `sdeint(..., rng="counter", seed=rows.seed, rows=rows.index)`.
    """

    first: int
    count: int
    inputs: Any = None
    seed: int = 0
    _generators: list[np.random.Generator] = field(default_factory=list, init=False, repr=False)

    def __len__(self) -> int:
        return self.count

    @property
    def index(self) -> Tensor:
        """Their numbers in the ensemble, [count], int64."""
        return torch.arange(self.first, self.first + self.count)

    @property
    def generators(self) -> list[np.random.Generator]:
        """A random number generator for each row, that of row i seeded by `SeedSequence(seed).spawn(n)[i]`.

        The numbers of a row depend on `seed` and on the number of the row alone. They go on from call to call.
        """
        if not self._generators:
            seeds = [np.random.SeedSequence(self.seed, spawn_key=(i,)) for i in self.index.tolist()]
            self._generators = [np.random.default_rng(seed) for seed in seeds]
        return self._generators

    def draw(self, draw: Callable[[np.random.Generator], Any]) -> Tensor:
        """Random numbers of each row, in the first dimension.

        Args:
            draw: called with the generator of each row; returns a number or an array, such as
                `lambda rng: rng.normal(size=3)`.

        Returns:
            [count, ...]: what it returns for each row, in NumPy's dtype, which is float64 for numbers with a point.
        """
        return torch.from_numpy(np.stack([np.asarray(draw(rng)) for rng in self.generators]))


@contextmanager
def seeded(rows: Rows) -> Iterator[None]:
    """The global generators of torch, NumPy and Python begin with what belongs to these rows, and are put back after.

    So what draws from them, such as `torch.randn` or an `sdeint` without `seed`, draws the same in every process.
    """
    words = np.random.SeedSequence(rows.seed, spawn_key=(rows.first, rows.count)).generate_state(4)
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    numpys, pythons = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices):
        torch.manual_seed(int(words[0]) << 32 | int(words[1]))
        np.random.seed(words[2:])
        random.seed(int(words[2]) << 32 | int(words[3]))
        try:
            yield
        finally:
            np.random.set_state(numpys)
            random.setstate(pythons)
