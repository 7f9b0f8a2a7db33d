"""A binary tree of subintervals of one interval of time, each of which has seeds of its own."""

from __future__ import annotations

import math

import numpy as np


class IntervalTree:
    """Subintervals that queries have cut an interval into, numbered in the order in which they were made.

    Interval 0 is the whole one. An interval that has been cut has two children, numbered `child[i]` (the left one) and
    `child[i] + 1`. The tree is kept in lists, so that it can be of any depth and be copied.

    Args:
        start: where the whole interval starts.
        end: where it ends.
        entropy: the seed of all seeds.
        pool_size: the size of the pool that the seeds are mixed in.
        digits: the number of decimal places that times are rounded to; None to take them as they are.
        longest: an interval longer than this is cut at its middle, not where a query asks for it.
    """

    def __init__(self, start: float, end: float, entropy: int, pool_size: int, digits: int | None, longest: float):
        self._digits = digits
        self._entropy = entropy
        self._pool_size = pool_size
        self.longest = longest
        self.start = [self.round(start)]
        self.end = [self.round(end)]
        self.parent = [0]
        self.child = [0]  # 0: it has not been cut
        self._keys = [0]
        self._depths = [0]
        self._seeds: list[list[int] | None] = [None]

    def round(self, t: float) -> float:
        """The time that stands for `t` in the tree."""
        return t if self._digits is None else round(t, self._digits)

    def middle(self, i: int) -> float:
        """The middle of an interval, as times are rounded."""
        return self.round((self.end[i] + self.start[i]) / 2)

    def is_right(self, i: int) -> bool:
        """Whether an interval is the second of its parent's children."""
        return i > 0 and not i % 2

    def seeds(self, i: int) -> list[int]:
        """Four seeds for what happens inside an interval that has been cut."""
        seeds = self._seeds[i]
        if seeds is None:
            key = (self._keys[i], self._depths[i])
            seeds = np.random.SeedSequence(self._entropy, spawn_key=key, pool_size=self._pool_size)
            seeds = self._seeds[i] = seeds.generate_state(4).tolist()
        return seeds

    def whole_seeds(self) -> list[int]:
        """Three seeds for the whole interval."""
        return np.random.SeedSequence(self._entropy, pool_size=self._pool_size).generate_state(3).tolist()

    def locate(self, ta: float, tb: float, near: int) -> list[int]:
        """The intervals that make up [ta, tb], from left to right; those that do not exist yet are made.

        Args:
            ta: a rounded time within the whole interval.
            tb: another, not before it.
            near: the interval to start the search from. It decides where a new cut is made only if `ta` is `tb`.
        """
        start, end, child = self.start, self.end, self.child
        i = near
        while ta < start[i] or tb > end[i]:
            i = self.parent[i]
        found = []
        later = [(i, ta, tb)]
        while later:
            i, ta, tb = later.pop()
            while ta != start[i] or tb != end[i]:
                left = child[i]
                if not left and not (left := self._cut_long(i)):
                    at_start = ta == start[i]
                    left = self._cut(i, tb if at_start else ta)
                    i = left if at_start else left + 1
                    continue
                middle = end[left]
                if tb <= middle:
                    i = left
                elif ta >= middle:
                    i = left + 1
                else:
                    later.append((left + 1, middle, tb))
                    i, tb = left, middle
            found.append(i)
        return found

    def refine(self, longest: float) -> None:
        """From now on cut intervals longer than `longest` at their middle, also those already cut elsewhere."""
        later = [0]
        while later:
            i = later.pop()
            left = self.child[i]
            # What is not cut yet will be when a query comes to it.
            if left and self.end[i] - self.start[i] > longest:
                middle = self.middle(i)
                if self.start[i] < middle < self.end[i]:
                    self.locate(self.start[i], middle, i)
                    later += [left + 1, left]
        self.longest = longest

    def cut_all(self) -> None:
        """Cut every interval that is too long."""
        i = 0
        while i < len(self.child):
            if not self.child[i]:
                self._cut_long(i)
            i += 1

    def _cut_long(self, i: int) -> int:
        """Cut an interval in the middle if it is too long, and there is a time in the middle; its left child or 0."""
        if self.end[i] - self.start[i] > self.longest:
            middle = self.middle(i)
            if self.start[i] < middle < self.end[i]:
                return self._cut(i, middle)
        return 0

    def _cut(self, i: int, t: float) -> int:
        """Cut an interval at `t`; its left child."""
        left = self.child[i] = len(self.child)
        key, depth = 2 * self._keys[i], self._depths[i] + 1
        self.start += (self.start[i], t)
        self.end += (t, self.end[i])
        self.parent += (i, i)
        self.child += (0, 0)
        self._keys += (key, key + 1)
        self._depths += (depth, depth)
        self._seeds += (None, None)
        return left


def decimal_places(tol: float) -> int | None:
    """The number of decimal places that resolve `tol`; None if it is 0, for all there are."""
    return -int(math.log10(tol)) if tol else None
