"""The door to ensembles: `ensemble`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchivp.checks import check_whole_number
from torchivp.ensembles.executors import Workers, check_executor, in_order
from torchivp.ensembles.progress import Progress, show_progress
from torchivp.ensembles.rows import Rows, seeded
from torchivp.ensembles.sending import Sent
from torchivp.ensembles.store import Store, StoredEnsemble
from torchivp.ensembles.values import Values, joined, to_values
from torchivp.journal import Journal


def ensemble(
    solve: Callable[[Rows], Any],
    inputs: Any,
    *,
    executor: Workers = None,
    block: int = 1024,
    chunk: int | None = None,
    seed: int = 0,
    reduce: Callable[[Any, Any], Any] | None = None,
    store: str | Path | None = None,
    checkpoint: str | Path | None = None,
    threads: int = 1,
    progress: bool | Progress = False,
) -> Any:
    """Solve many problems, some at a time, in this process or on the workers of an executor.

    `solve` is called with blocks of rows that are the same whatever the executor and `chunk`, and so are all numbers,
    to the last bit, on machines of the same kind. What is drawn at random belongs to the row (`rows.draw`, `rows.seed`)
    or to the block: at the beginning of each, the global generators of torch, NumPy and Python are seeded by `seed` and
    the number of its first row, and afterwards put back.

    Args:
        solve: a function of `Rows`: their numbers, inputs and random numbers. It returns a `BatchSolution` of these
            rows, by `solve_ivp(..., batch_dims=1)`, or a tensor or a structure of tensors with an entry for each row in
            the first dimension (of `sdeint`, `paths.movedim(1, 0)`). No gradient flows through an ensemble. Other
            processes receive `solve` by cloudpickle where that is installed, else by pickle, which needs a function at
            the top of a module that they can import.
        inputs: the number n of rows, or a tensor, an array or a structure of these with an entry for each row in the
            first dimension.
        executor: who solves: any `concurrent.futures.Executor`, such as Dask's `client.get_executor()` or mpi4py's
            `MPIPoolExecutor()`; a function that makes one, called again if a worker's death breaks it, as it does break
            a `ProcessPoolExecutor`; a number of processes of this machine; None for this process. Threads will do where
            all random numbers are those of `rows`.
        block: how many rows `solve` is called with; the last block may have fewer. What a row's numbers are may depend
            on it in the last bit, if those of `solve` for a row depend on how many others there are, as those of matrix
            products do.
        chunk: how many rows a task has, rounded up to whole blocks; None for one block. More of them save the
            time that a task takes to be sent.
        seed: of all random numbers.
        reduce: a function `reduce(total, values)` of what it returned before, None at first, and of what `solve`
            returned for the following block: called in this process, in the order of the rows, so that not all need be
            kept. `torchivp.ensembles.moments` is one.
        store: a folder to which results are written as they come, in files of Parquet (`torchivp[tables]`). A call that
            is repeated with the same arguments goes on from what is there.
        checkpoint: a file to which results are written as they come, for the same purpose, without Parquet.
        threads: of torch in each process that solves. Sums over large tensors may depend on it in the last bit.
        progress: True to show on the terminal how many rows are through, or a function `progress(done, n)`.

    A worker that dies costs the tasks that it and its fellows had begun, which are done again. With a number, processes
    begin from a program that has its main part under `if __name__ == "__main__":`, as Python's own do.

    Returns:
        What `solve` would have returned for all rows at once, on the CPU; with `reduce` the last total; with `store`
        and without `reduce` a `StoredEnsemble`.

    Raises:
        WorkersDied: three workers died of the same task; or an executor broke that cannot be made again.
        ValueError, TypeError: an argument makes no sense, or `solve` cannot be sent or returns no rows; the message
            says how to mend it.
        Exception: what `solve` raises. What was solved before is kept in `store` and `checkpoint`.

    Examples:
        >>> import torch, torchivp
        >>> def solve(rows):
        ...     y0 = 1 + 0.1 * rows.draw(lambda rng: rng.normal(size=1))
        ...     return torchivp.solve_ivp(lambda t, y: -y, (0.0, 1.0), y0, t_eval=[0.0, 1.0], batch_dims=1)
        >>> torchivp.ensemble(solve, 100, block=50).y.shape
        torch.Size([100, 2, 1])
    """
    if not callable(solve):
        raise TypeError(f"solve must be a function of rows, got {solve!r}")
    check_executor(executor)
    count = _count(inputs)
    plan = _Plan(
        count,
        check_whole_number("block", block, 1, hint=", the number of rows that solve is called with"),
        block if chunk is None else check_whole_number("chunk", chunk, 1, hint=", the number of rows of a task"),
        check_whole_number("seed", seed, 0),
        check_whole_number("threads", threads, 1),
    )
    if store is not None and checkpoint is not None:
        raise ValueError("store is a checkpoint too: leave checkpoint out")
    identity = [solve, _fingerprint(inputs), count, plan.block, seed, threads, str(torch.get_default_dtype())]
    with ExitStack() as stack:
        kept: Store | _Journaled | None = None
        if store is not None:
            kept = Store(store, identity, count)
        elif checkpoint is not None:
            other = "another function, inputs or arguments"
            kept = _Journaled(stack.enter_context(closing(Journal(checkpoint, identity, "ensemble", other))))
        tell = stack.enter_context(show_progress(progress, count))
        found = _solved(solve, inputs, plan, executor, kept, tell)
        if reduce is not None:
            total = None
            for values in found:
                total = reduce(total, values.restore())
            return total
        if store is not None:
            for _ in found:
                pass
            return StoredEnsemble(store)
        parts = list(found)
    return joined(parts, list(range(0, count, plan.block))).restore()


@dataclass(frozen=True)
class _Plan:
    """Which rows are solved together, and which are sent together.

    Attributes:
        count: of the rows.
        block: so many are solved together,
        chunk: and so many, at least, are sent together.
        seed: of the random numbers.
        threads: of torch.
    """

    count: int
    block: int
    chunk: int
    seed: int
    threads: int

    @property
    def firsts(self) -> range:
        """The first row of each block."""
        return range(0, self.count, self.block)

    def chunks(self, firsts: Sequence[int]) -> list[list[int]]:
        """The blocks that are sent together, of those that begin with these rows."""
        each = -(-self.chunk // self.block)
        return [list(firsts[i : i + each]) for i in range(0, len(firsts), each)]


class _Journaled:
    """Blocks in a journal."""

    def __init__(self, journal: Journal):
        self._journal = journal

    def __contains__(self, first: int) -> bool:
        return first.to_bytes(8, "little") in self._journal

    def __getitem__(self, first: int) -> Values:
        return Values(*self._journal[first.to_bytes(8, "little")])

    def add(self, firsts: Sequence[int], blocks: Sequence[Values]) -> None:
        """Write down a chunk."""
        for first, values in zip(firsts, blocks, strict=True):
            self._journal.add(first.to_bytes(8, "little"), values.plain)
        self._journal.flush()


@dataclass
class _Task:
    """A chunk of rows for a worker.

    Attributes:
        solve: the function of the user's.
        blocks: what it is called with.
    """

    solve: Sent[Callable[[Rows], Any]]
    blocks: list[Rows]


def _solve_chunk(task: _Task) -> list[Values]:
    blocks = []
    for rows in task.blocks:
        try:
            with seeded(rows):
                blocks.append(to_values(task.solve.value(rows), len(rows)))
        except Exception as error:
            error.add_note(f"in rows {rows.first} to {rows.first + len(rows) - 1} of the ensemble")
            raise
    return blocks


def _solved(
    solve: Callable[[Rows], Any],
    inputs: Any,
    plan: _Plan,
    executor: Workers,
    kept: Store | _Journaled | None,
    tell: Callable[[int], None],
) -> Iterator[Values]:
    """The values of each block, in order."""
    new = [first for first in plan.firsts if kept is None or first not in kept]
    chunks = plan.chunks(new)
    sent = Sent(solve, "solve")

    def task(number: int) -> _Task:
        ends = [(first, min(first + plan.block, plan.count)) for first in chunks[number]]
        return _Task(sent, [Rows(a, b - a, _part(inputs, a, b), plan.seed) for a, b in ends])

    def name(number: int) -> str:
        return f"rows {chunks[number][0]} to {min(chunks[number][-1] + plan.block, plan.count) - 1}"

    results = in_order(_solve_chunk, task, len(chunks), executor, name, plan.threads)
    ready: dict[int, Values] = {}
    number = 0
    with closing(results):
        for first in plan.firsts:
            if kept is not None and first in kept and first not in ready:
                values = kept[first]
            else:
                if first not in ready:
                    blocks = next(results)
                    ready = dict(zip(chunks[number], blocks, strict=True))
                    if kept is not None:
                        kept.add(chunks[number], blocks)
                    number += 1
                values = ready.pop(first)
            tell(min(first + plan.block, plan.count))
            yield values


def _count(inputs: Any) -> int:
    """How many rows there are.

    Raises:
        TypeError, ValueError: `inputs` is no number, nor what has an entry for each row.
    """
    if isinstance(inputs, int | np.integer) and not isinstance(inputs, bool):
        return check_whole_number("inputs", inputs, 1, hint=", of rows, or tensors with an entry for each")
    leaves = pytree.tree_leaves(inputs)
    if not leaves or not all(isinstance(leaf, Tensor | np.ndarray) and leaf.ndim for leaf in leaves):
        raise TypeError(
            "inputs must be a number of rows, or a tensor, an array or a structure of these with an entry for each row "
            f"in the first dimension, got {inputs!r}"
        )
    counts = {len(leaf) for leaf in leaves}
    if len(counts) > 1 or 0 in counts:
        raise ValueError(
            "inputs must have the same number of rows in the first dimension of each tensor, at least 1, got "
            f"{', '.join(map(str, sorted(counts)))}"
        )
    return counts.pop()


def _part(inputs: Any, first: int, end: int) -> Any:
    """Those of some rows, without the memory of the others."""
    if isinstance(inputs, int | np.integer):
        return None
    return pytree.tree_map(
        lambda leaf: leaf[first:end].detach().clone() if isinstance(leaf, Tensor) else leaf[first:end].copy(), inputs
    )


def _fingerprint(inputs: Any) -> str:
    """What tells inputs apart from others."""
    leaves, spec = pytree.tree_flatten(inputs)
    digest = hashlib.sha256(repr(spec).encode())
    for leaf in leaves:
        array = leaf.detach().cpu().numpy() if isinstance(leaf, Tensor) else np.asarray(leaf)
        digest.update(repr((array.dtype, array.shape)).encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
