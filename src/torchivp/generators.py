"""The random number generators that functions of the user's draw from, put back so that they draw the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

GeneratorState = tuple[bytes, ...]
"""What the generators were at one moment."""


class Generators:
    """The generator of the CPU, and that of the device of the state, as `torch.utils.checkpoint` takes care of them.

    Args:
        device: the device of the state.
    """

    def __init__(self, device: torch.device) -> None:
        self._generators = [torch.default_generator]
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            self._generators.append(torch.cuda.default_generators[index])
        self._last: GeneratorState = ()

    def now(self) -> GeneratorState:
        """What they are; as long as nothing is drawn, in the same object, which takes its memory once."""
        states = tuple(generator.get_state().numpy().tobytes() for generator in self._generators)
        if states != self._last:
            self._last = states
        return self._last

    def put_back(self, states: GeneratorState) -> None:
        """Let them be what they were."""
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(_tensor(state))

    @contextmanager
    def kept(self) -> Iterator[None]:
        """After this, they are what they were before."""
        before = self.now()
        try:
            yield
        finally:
            if self.now() != before:
                self.put_back(before)


def _tensor(state: bytes) -> Tensor:
    return torch.frombuffer(bytearray(state), dtype=torch.uint8)
