"""Fits in other processes: what is sent there solves as it does here."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from torchivp.ensembles.executors import Workers, in_order, portions
from torchivp.ensembles.sending import Sent
from torchivp.fitting.progress import silent
from torchivp.fused.refusal import CannotFuse

if TYPE_CHECKING:
    from torchivp.fitting.results.result import FitResult
    from torchivp.fitting.searching.optimise import Search

T = TypeVar("T")
Holder = TypeVar("Holder", "Search", "FitResult")


class Elsewhere(Generic[Holder]):
    """A search, or the result of a fit, for other processes, where it is solved by a kernel if it is here.

    Args:
        holder: the search, or the result.
        more: what else is sent.
    """

    def __init__(self, holder: Holder, more: Any = None):
        self._compiled = _search_of(holder).misfit.compiled
        self._sent = Sent((portable(holder), more), "the fit")

    def get(self) -> tuple[Holder, Any]:
        """The search or the result, in the process that it was sent to, and what else was sent.

        Raises:
            CannotFuse: there is no compiler for its kernel.
        """
        holder, more = self._sent.value
        misfit = _search_of(holder).misfit
        if self._compiled and not misfit.compiled:
            try:
                misfit.compile()
            except CannotFuse as error:
                error.add_note("a worker has no kernel for the fit, which has one where it began: give backend='eager'")
                raise
        return holder, more


def portable(holder: Holder) -> Holder:
    """A search, or the result of a fit, without what belongs to its process."""
    search = _search_of(holder)
    sent = replace(search, misfit=search.misfit.without_kernel(), progress=silent)
    if holder is search:
        return cast("Holder", sent)
    other = copy.copy(holder)
    vars(other)["search"] = sent
    return other


def _search_of(holder: Any) -> Search:
    return getattr(holder, "search", holder)


def by_portions(
    function: Callable[[tuple[Elsewhere[Holder], slice]], T],
    sent: Elsewhere[Holder],
    count: int,
    executor: Workers,
    what: str,
    each: int = 1,
) -> Iterator[tuple[slice, T]]:
    """What a function makes of portions of things, in order: with which they were, and what it returns.

    Args:
        function: found by import in other processes; called with the search or the result, and which to take.
        sent: the search or the result.
        count: how many things there are.
        executor: who computes.
        what: the plural of what they are called in errors.
        each: how many portions there are for each worker.
    """
    parts = portions(count, executor, each)
    names = [f"{what} {part.start} to {part.stop - 1}" for part in parts]
    results = in_order(function, lambda i: (sent, parts[i]), len(parts), executor, names.__getitem__)
    with closing(results):
        yield from zip(parts, results, strict=True)
