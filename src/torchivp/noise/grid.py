"""The increments of a Brownian motion over the steps of a grid, drawn in blocks of many steps at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from torchivp.noise.increment import Increment, has_A, has_H
from torchivp.noise.levy_area import area
from torchivp.noise.philox import normals
from torchivp.noise.seed import outside_transforms

_ELEMENTS = 2**18
"""About so many numbers are drawn at once."""
_LONGEST = 256
"""No block has more steps."""


class GridNoise:
    """Increments of the steps 0, 1, 2, ... of a grid: a function of the seed and the number of the step.

    One block of steps is held at a time; a block that is asked for again is drawn again. With `rng="torch"` a block
    comes from torch's generator, seeded by the seed and the number of the block: the fastest, but the numbers depend
    on the device, and those of a row on the other rows. With `rng="counter"` they depend on neither, and take longer.

    Args:
        rows: the number of rows.
        channels: the number of noises in one row.
        levy_area: what the increments come with: "none", "space-time", "davie" or "foster".
        real_dtype: the dtype in which they are drawn.
        dtype: the dtype of the increments: the same, or the complex one of the same precision.
        device: where they are.
        seed: what they are a function of.
        rng: "torch" or "counter".
        row_numbers: the numbers of the rows within the whole, for `rng="counter"`; None for 0, 1, 2, ...
    """

    def __init__(
        self,
        rows: int,
        channels: int,
        levy_area: str,
        real_dtype: torch.dtype,
        dtype: torch.dtype,
        device: torch.device,
        seed: int,
        rng: str = "torch",
        row_numbers: Tensor | range | None = None,
    ) -> None:
        self.levy_area = levy_area
        self.dtype = dtype
        self._real = real_dtype
        self.rows, self.channels = rows, channels
        self.seed, self.rng = seed, rng
        self._has_A = has_A(levy_area)
        self._kinds = 2 if has_H(levy_area) else 1
        numbers = range(rows) if row_numbers is None else row_numbers
        self._row_numbers = numbers.to(device) if isinstance(numbers, Tensor) else numbers
        drawn = rows * channels * (self._kinds + (channels if self._has_A else 0))
        self.block = max(1, min(_LONGEST, _ELEMENTS // max(drawn, 1)))
        self._device = device

    def steps(self, block: int, times: Sequence[float]) -> list[Increment]:
        """The increments of the steps of a block, whose ends are `times`, with its start before them.

        There may be fewer than the block has, at the end of the grid.
        """
        sizes = [abs(b - a) for a, b in pairwise(times)]
        drawn = self._draw(block, self._kinds, self.channels)[: len(sizes)]
        equal = max(sizes) - min(sizes) <= 1e-12 * max(sizes)
        roots: float | Tensor = math.sqrt(sizes[0])
        if not equal:
            roots = torch.tensor(sizes, dtype=self._real, device=self._device).sqrt_().view(-1, 1, 1)
        W = (drawn[:, 0] * roots).to(self.dtype).unbind()
        if self._kinds == 1:
            return [Increment(dt, w) for dt, w in zip(sizes, W, strict=True)]
        H = (drawn[:, 1] * (roots * math.sqrt(1 / 12))).to(self.dtype).unbind()
        increments = [Increment(dt, w, h) for dt, w, h in zip(sizes, W, H, strict=True)]
        if self._has_A:
            further = self._draw(block, self.channels, self.channels, offset=2)
            for increment, xi in zip(increments, further.unbind(), strict=False):
                xi = xi.transpose(0, 1)
                increment.A = area(increment.W, increment.H, increment.dt, self.levy_area, xi)  # pyright: ignore[reportArgumentType]
        return increments

    def _draw(self, block: int, kinds: int, size: int, offset: int = 0) -> Tensor:
        """Standard normals [steps, kinds, rows, size] of a block."""
        if self.rng == "torch":
            generator = torch.Generator(self._device).manual_seed(_mix(self.seed, 2 * block + (offset > 0)))
            shape = (self.block, kinds, self.rows, size)
            with outside_transforms():
                return torch.randn(shape, generator=generator, dtype=self._real, device=self._device)
        per_step = 2 + self.channels
        first = block * self.block
        nodes = [(first + i) * per_step + offset + kind for i in range(self.block) for kind in range(kinds)]
        drawn = normals(self.seed, nodes, self._row_numbers, size, self._real, self._device)
        return drawn.view(self.block, kinds, self.rows, size)


def _mix(seed: int, number: int) -> int:
    """A seed for torch's generator from a seed and a number, by the finalizer of SplitMix64 (Steele et al. 2014)."""
    mask = 2**64 - 1
    z = (seed + (number + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return (z ^ (z >> 31)) & (2**63 - 1)
