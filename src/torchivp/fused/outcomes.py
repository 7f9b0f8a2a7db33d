"""How the rows of a kernel ended."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from torchivp.fused.call import SolveCall

_FETCHED = 16_384
"""How so many rows of a GPU ended is fetched at once; of more rows, what a solve must know is found out there."""

SUCCESS, STIFF = 1, 8
"""Kinds of endings, as the kernel numbers them: the second where stability limits the steps."""


class Outcomes:
    """How the rows ended; those that are not solved have arrived where they start, without a step.

    Attributes:
        counts: the kind of ending, as the kernel numbers them, accepted steps, rejected ones, evaluations, Jacobians
            and factorisations, [6, rows].
        numbers: the last time, and of rows that failed the size of the step, of the next, and the error, [4, rows].
        stiff: which rows have been solved by the second of two methods, [rows]; None for none.
        addresses: where the kernel writes counts and numbers.
    """

    def __init__(self, rows: int) -> None:
        # Tensors tell where they lie sooner than arrays do.
        counts = torch.empty(6, rows, dtype=torch.int64, device="cpu")
        numbers = torch.empty(4, rows, dtype=torch.float64, device="cpu")
        self.addresses = counts.data_ptr(), numbers.data_ptr()
        self.counts, self.numbers = counts.numpy(), numbers.numpy()
        self.stiff: np.ndarray | None = None

    def with_again(self, other: Outcomes, stiff: np.ndarray) -> Outcomes:
        """These, but of the rows that are `stiff` those of another solve, with what the first has evaluated."""
        both = Outcomes(len(stiff))
        both.counts[:] = np.where(stiff, other.counts, self.counts)
        both.counts[3] = self.counts[3] + other.counts[3]
        both.numbers[:] = np.where(stiff, other.numbers, self.numbers)
        both.stiff = stiff
        return both

    def of(self, row: int) -> tuple[list[int], list[float]]:
        """The counts and the numbers of a row."""
        return self.counts[:, row].tolist(), self.numbers[:, row].tolist()

    @property
    def accepted(self) -> np.ndarray:
        """Steps taken, [rows]."""
        return self.counts[1]

    @property
    def t(self) -> np.ndarray:
        """The time that was reached, [rows]."""
        return self.numbers[0]

    @property
    def steps_there(self) -> Tensor:
        """Steps taken, [rows], where the rows are solved."""
        return torch.from_numpy(self.accepted)

    @property
    def t_there(self) -> Tensor:
        """The time that was reached, [rows], where the rows are solved."""
        return torch.from_numpy(self.t)

    def start_from(self, start: Tensor) -> None:
        """All rows have arrived where they start."""
        self.counts[:], self.counts[0] = 0, SUCCESS
        self.numbers[:], self.numbers[0] = 0, start

    def forget_steps(self, rows: np.ndarray) -> None:
        """Some of the rows have taken no steps."""
        self.counts[1, rows] = 0


class OutcomesOnGpu(Outcomes):
    """The same of rows on a GPU; counts and numbers are fetched when somebody asks for them."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self._table = torch.empty(10, rows, dtype=torch.int64, device=device)  # counts, and numbers behind them
        address = self._table.data_ptr()
        self.addresses = address, address + 6 * 8 * rows
        self.stiff = None

    def __getattr__(self, name: str) -> np.ndarray:
        if name not in ("counts", "numbers"):
            raise AttributeError(name)
        table = self._table.cpu()
        self.counts, self.numbers = table[:6].numpy(), table[6:].view(torch.float64).numpy()
        return getattr(self, name)

    @property
    def steps_there(self) -> Tensor:
        return self._table[1]

    @property
    def t_there(self) -> Tensor:
        return self._table[6].view(torch.float64)

    def start_from(self, start: Tensor) -> None:
        self._table.zero_()
        self._table[0] = SUCCESS
        self.t_there.copy_(start)

    def forget_steps(self, rows: np.ndarray) -> None:
        super().forget_steps(rows)
        self._table[1, torch.from_numpy(rows).to(self._table.device)] = 0

    def sum_up(self, call: SolveCall) -> None:
        """What the kernel of the processor says of all rows in the end."""
        rows = self._table.shape[1]
        if not rows:
            return
        ending, accepted = self._table[:2] if rows > _FETCHED else torch.from_numpy(self.counts[:2])
        stiff = ending == STIFF
        failed = (ending != SUCCESS) & ~stiff
        call.most, call.failed, call.stiff = torch.stack((accepted.max(), failed.sum(), stiff.sum())).tolist()
