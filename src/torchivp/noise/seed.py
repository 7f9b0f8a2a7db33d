"""Seeds of noise, and where random numbers are drawn if a transform of `torch.func` is at work."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch._functorch import pyfunctorch

from torchivp.checks import check_whole_number
from torchivp.torch_func import inside_transform


def draw_seed(generator: torch.Generator | None = None) -> int:
    """A seed from `generator`, or from torch's default one, which `torch.manual_seed` governs."""
    device = "cpu" if generator is None else generator.device
    with pyfunctorch.temporarily_clear_interpreter_stack():
        return int(torch.randint(0, 2**63 - 1, (), generator=generator, device=device))


def check_seed(seed: Any, name: str = "entropy") -> int:
    """A seed that the user gives as the argument `name`.

    Raises:
        TypeError: it is no whole number.
        ValueError: it is out of range.
    """
    return check_whole_number(name, seed, 0, 2**64 - 1)


def outside_transforms() -> AbstractContextManager[object]:
    """Where random numbers are drawn for a transform as they would be without it: the same for all of a batch.

    That is what a function of a seed does. Within `torch.func.vmap(..., randomness="different")` they differ.
    """
    if not inside_transform():
        return nullcontext()
    for interpreter in pyfunctorch.retrieve_all_functorch_interpreters():
        if isinstance(interpreter, pyfunctorch.VmapInterpreter) and interpreter.randomness() == "different":
            return nullcontext()
    return pyfunctorch.temporarily_clear_interpreter_stack()
