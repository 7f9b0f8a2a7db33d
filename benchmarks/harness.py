"""How things are measured: two callables timed in turns, and the peak of the memory that one call holds."""

from __future__ import annotations

import gc
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch.profiler import ProfilerActivity, profile

Call = Callable[[], object]
Timer = Callable[[int], float]

SHORTEST_SAMPLE = 0.05
"""Seconds; a call that takes less is repeated within a sample."""


@dataclass(frozen=True)
class Timing:
    """Seconds of processor time per call; `ours[i]` and `theirs[i]` were taken right after one another."""

    ours: list[float]
    theirs: list[float]

    @property
    def ratios(self) -> list[float]:
        """How many times as long theirs took, pair by pair."""
        return [theirs / ours for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def median_ours(self) -> float:
        return statistics.median(self.ours)

    @property
    def median_theirs(self) -> float:
        return statistics.median(self.theirs)


def prepare() -> None:
    """One thread, and a garbage collector that need not look through everything imported so far."""
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()


def compare(ours: Call, theirs: Call, repeats: int) -> Timing:
    """Time both callables `repeats` times, in turns: A B, B A, A B, ...

    What is read is the processor time of this process, which on one thread is the time on the clock without that in
    which another process had the core. Whatever else the machine does slows both of a pair alike.
    Both are called beforehand, which takes the lazy imports and the first allocations out of the samples.
    """
    return in_turns(partial(seconds, ours), partial(seconds, theirs), repeats)


def in_turns(ours: Timer, theirs: Timer, repeats: int) -> Timing:
    """Read two timers `repeats` times, in turns; they are told how many calls make one sample."""
    for timer in (ours, theirs):
        timer(1)
    loops = math.ceil(SHORTEST_SAMPLE / min(ours(1), theirs(1)))
    timing = Timing([], [])
    for i in range(repeats):
        turns = [(ours, timing.ours), (theirs, timing.theirs)]
        for timer, samples in turns if i % 2 == 0 else reversed(turns):
            samples.append(timer(loops))
    return timing


def seconds(call: Call, loops: int) -> float:
    """The processor time of a call, the mean over so many of them."""
    gc.collect()
    start = time.process_time()
    for _ in range(loops):
        call()
    return (time.process_time() - start) / loops


def peak_memory(call: Call) -> int:
    """The most bytes of tensors that `call` holds at one time, besides those that exist already.

    The profiler reports every allocation and release of torch's allocator with its time, those within kernels and
    those of tensors saved for the backward pass included; their running sum is followed to its peak.
    """
    call()  # what is cached from the first call on does not count
    gc.collect()
    with _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()  # pyright: ignore[reportAttributeAccessIssue]
        peak = max(peak, held)
    return peak


@contextmanager
def _quiet() -> Iterator[None]:
    """The profiler announces its start and end on file descriptor 2, whatever its log level: send that nowhere."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
