"""The backward pass of a solve whose steps are taken again, stretch by stretch from the last to the first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from torchivp.gradients.captured import LateLeaves
from torchivp.gradients.vjp import vjp

S = TypeVar("S")


@dataclass(frozen=True)
class Stretch:
    """Steps taken again with autograd watching.

    Attributes:
        results: what the solve returns of them.
        seeds: the gradients of these.
        last: what the next stretch goes on from: its states and what the method carries.
        rows: which rows, of those of the whole solve, that is; None for all.
        first: the leaves that this stretch goes on from.
        shared: the leaves that all stretches share.
    """

    results: Sequence[Tensor]
    seeds: Sequence[Tensor]
    last: Sequence[Tensor]
    rows: Tensor | None
    first: Sequence[Tensor]
    shared: Sequence[Tensor]


def pull_back(
    stretches: Iterable[S],
    take: Callable[[S], Stretch],
    late: LateLeaves,
    at_end: Sequence[Tensor | None] = (),
) -> tuple[Sequence[Tensor | None], list[Tensor | None]]:
    """The gradients of what the first of the `stretches` goes on from, and of what all of them share; None for zero.

    Args:
        stretches: all of them, the last one first.
        take: takes one of them again.
        late: looks for leaves that only later steps use.
        at_end: the gradients of what the last one ends with; nothing for zero.
    """
    totals: list[Tensor | None] = []
    with late.watching():
        for stretch in stretches:
            at_end, found = _through(partial(take, stretch), late, at_end)
            totals = totals or [None] * len(found)
            add_all(totals, found)
    return at_end, totals


def _through(
    take: Callable[[], Stretch], late: LateLeaves, at_end: Sequence[Tensor | None]
) -> tuple[Sequence[Tensor | None], Sequence[Tensor | None]]:
    """The gradients of what one stretch goes on from, and of what it shares with the others.

    Its graph is gone when this returns: two of them would take twice the memory.
    """
    with torch.enable_grad():
        taken = take()
    if strangers := late.among([*taken.results, *taken.last], [*taken.first, *taken.shared]):

        def again() -> tuple[Sequence[Tensor], Sequence[Tensor]]:
            taken = take()
            return [*taken.results, *taken.last], [*taken.first, *taken.shared]

        late.meet(strangers, again)
    seeds = at_end or [None] * len(taken.last)
    assert len(seeds) == len(taken.last), "what a stretch ends with is what the next one starts from"
    if taken.rows is not None:
        seeds = [seed if seed is None else seed[taken.rows] for seed in seeds]
    roots = [*taken.results, *taken.last]
    found = vjp(roots, [*taken.seeds, *seeds], [*taken.first, *taken.shared])
    return found[: len(taken.first)], found[len(taken.first) :]


def add_all(totals: list[Tensor | None], found: Sequence[Tensor | None], weight: float = 1.0) -> None:
    """Add what was `found`, times `weight`, to the `totals`, in place; None is zero.

    A total is always a tensor of its own.
    """
    for i, x in enumerate(found):
        if x is None:
            continue
        total = totals[i]
        if total is None:
            totals[i] = x * weight
        else:
            total.add_(x, alpha=weight)
