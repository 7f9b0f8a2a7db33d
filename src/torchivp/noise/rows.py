"""The numbers of rows, which name their noise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchivp.noise.philox import run_of_rows


def check_rows(given: Any, count: int) -> Tensor | range:
    """The numbers of `count` rows that the user gives, as a range if they go up by ones; None for 0, 1, 2, ...

    Raises:
        TypeError: they are not whole numbers in a sequence.
        ValueError: they are not as many as the rows, or one is negative.
    """
    if given is None:
        return range(count)
    sentence = (
        f"rows must be {count} whole numbers, one for each row, none of them negative, got {given!r}: write "
        f"rows=range(start, start + {count})"
    )
    try:
        numbers = torch.as_tensor(list(given) if isinstance(given, range) else given).cpu()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(sentence) from None
    whole = not (numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool)
    if numbers.ndim != 1 or not (whole or numbers.numel() == 0):
        raise TypeError(sentence)
    numbers = numbers.to(torch.int64)
    if len(numbers) != count or bool((numbers < 0).any()):
        raise ValueError(sentence)
    return run_of_rows(numbers)
