"""What a solve asks its noise for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torchivp.noise.increment import Increment


class Noise(Protocol):
    """The increments of a path over the steps of a solve, in blocks of steps.

    Attributes:
        block: the number of steps in a block; the last block may have fewer.
    """

    block: int

    def steps(self, block: int, times: Sequence[float]) -> list[Increment]:
        """The increments of the steps of a block, whose ends are `times`, with its start before them.

        The same whenever they are asked for.
        """
        ...


class HeldNoise:
    """A noise that remembers the last blocks, for passes that come back to the same block in several stretches.

    Args:
        noise: what is asked for the other blocks.
    """

    _HELD = 2

    def __init__(self, noise: Noise) -> None:
        self.block = noise.block
        self._noise = noise
        self._held: dict[int, list[Increment]] = {}

    def steps(self, block: int, times: Sequence[float]) -> list[Increment]:
        """The increments of the steps of a block, whose ends are `times`."""
        found = self._held.get(block)
        if found is None:
            if len(self._held) == self._HELD:
                del self._held[next(iter(self._held))]
            found = self._held[block] = self._noise.steps(block, times)
        return found
