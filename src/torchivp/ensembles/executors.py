"""Tasks on executors that others have written, in order, and again where a worker died."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import platform
import sys
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from torchivp.checks import check_whole_number

T = TypeVar("T")
P = TypeVar("P")

Workers = Executor | Callable[[], Executor] | int | None
"""Who computes: an executor, a function that makes one, a number of processes, or nobody but this process."""

_DEATHS = 3
"""So many workers may die of a task before it is given up."""


def processes(count: int) -> Executor:
    """An executor with so many processes of this machine.

    They are no forks of this one, whose threads of torch would not survive that: on Linux they are forks of a server
    that has imported torchivp and computed nothing, so that new ones begin at once, and elsewhere started afresh.
    """
    if sys.platform != "linux":
        return ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torchivp"])
    return ProcessPoolExecutor(count, mp_context=context)


def portions(count: int, executor: Workers, each: int = 1) -> list[slice]:
    """So many things in even portions, `each` of them for every worker, where it is known how many there are, else 8.

    Args:
        count: how many things there are.
        executor: who takes them.
        each: how many portions there are for each worker; with more of them no worker waits long for the others.
    """
    workers = executor if isinstance(executor, int) else getattr(executor, "_max_workers", None)
    parts = min(count, each * (workers if isinstance(workers, int) else 8))
    ends = [count * part // parts for part in range(parts + 1)] if parts else []
    return [slice(a, b) for a, b in itertools.pairwise(ends)]


class WorkersDied(RuntimeError):
    """Workers died of the same task again and again, or the executor cannot be made again."""


def check_executor(executor: Any) -> Workers:
    """The executor, if it is one.

    Raises:
        TypeError, ValueError: the message says what will do.
    """
    if executor is None or isinstance(executor, Executor):
        return executor
    if isinstance(executor, int) and not isinstance(executor, bool):
        return check_whole_number("executor", executor, 1, hint=", of processes")
    if callable(executor):
        make: Callable[[], Any] = executor
        return make
    raise TypeError(
        f"executor must be a concurrent.futures.Executor, a function that makes one, or a number of processes, got "
        f"{executor!r}: executor=4, executor=client.get_executor() or executor=lambda: ProcessPoolExecutor(4)"
    )


def in_order(
    function: Callable[[P], T],
    payload: Callable[[int], P],
    count: int,
    executor: Workers,
    name: Callable[[int], str],
    threads: int = 1,
) -> Generator[T, None, None]:
    """What a function returns for each of many payloads, in their order.

    Args:
        function: found by import in other processes. What it raises is raised here.
        payload: what is sent to it with each task; made when its turn comes.
        count: how many tasks there are.
        executor: who computes; None for this process, where nothing is written and read.
        name: what a task is called in errors.
        threads: of torch, in every process that computes.

    Raises:
        WorkersDied: workers died of the same task several times, or an executor broke that cannot be made again.
    """
    if executor is None:
        with _threads(threads):
            for index in range(count):
                yield function(payload(index))
        return
    run = _Run(executor, function, payload, count, name, threads)
    with _threads(threads):  # those of an executor may be threads of this process
        try:
            yield from run.results()
        except BaseException:
            run.end(wait=False)
            raise
    run.end(wait=True)


class _threads:
    """Within this context torch computes on so many threads; it costs time to say so without need."""

    def __init__(self, count: int):
        self._count = count

    def __enter__(self) -> None:
        self._before = torch.get_num_threads()
        if self._before != self._count:
            torch.set_num_threads(self._count)

    def __exit__(self, *args: object) -> None:
        if self._before != self._count:
            torch.set_num_threads(self._before)


class _Run:
    """Tasks under way."""

    def __init__(
        self,
        executor: Executor | Callable[[], Executor] | int,
        function: Callable[[Any], Any],
        payload: Callable[[int], Any],
        count: int,
        name: Callable[[int], str],
        threads: int,
    ):
        self._function, self._payload, self._count, self._name = function, payload, count, name
        self._settings = _Settings(threads, torch.get_default_dtype(), _place())
        self._make: Callable[[], Executor] | None = None
        if isinstance(executor, Executor):
            self._executor = executor
        else:
            self._make = executor if callable(executor) else lambda: processes(executor)
            self._executor = self._made(self._make)
        self._waiting = deque(range(count))
        self._pending: dict[Future[Any], int] = {}
        self._deaths = [0] * count

    def _made(self, make: Callable[[], Executor]) -> Executor:
        executor = make()
        if not isinstance(executor, Executor):
            raise TypeError(f"the function executor= must return a concurrent.futures.Executor, got {executor!r}")
        return executor

    def results(self) -> Iterator[Any]:
        """What the tasks return, in order."""
        ready: dict[int, Any] = {}
        following = 0
        while following < self._count:
            broken = self._submit(len(ready))
            done = wait(self._pending, return_when=FIRST_COMPLETED).done if self._pending else set()
            for future in done:
                index = self._pending.pop(future)
                try:
                    ready[index] = future.result()
                except Exception as error:  # of the executor: what the function raises is a result
                    broken = error if isinstance(error, BrokenExecutor) else broken
                    self._died(index, error)
            if broken is not None:
                self._renew(broken)
            while following in ready:
                result = ready.pop(following)
                if isinstance(result, _Raised):
                    result.raise_here()
                yield result
                following += 1

    def _submit(self, ready: int) -> BrokenExecutor | None:
        """Hand out tasks, so many that no worker waits for one; returns the error if the executor is broken."""
        workers = getattr(self._executor, "_max_workers", None)
        most = 2 * workers if isinstance(workers, int) else self._count
        while self._waiting and len(self._pending) < most and (ready < 4 * most or not self._pending):
            index = self._waiting.popleft()
            data = pickle.dumps((self._function, self._payload(index), self._settings), protocol=5)
            try:
                self._pending[self._executor.submit(_work, data)] = index
            except BrokenExecutor as error:
                self._died(index, error)
                return error
        return None

    def _died(self, index: int, error: Exception) -> None:
        """A task is to be done again."""
        self._deaths[index] += 1
        if self._deaths[index] >= _DEATHS:
            raise WorkersDied(
                f"{_DEATHS} workers died while they had {self._name(index)} to solve, or another task that they were "
                f"given with it ({type(error).__name__}: {error}): is there enough memory? Give fewer rows at a time "
                "or fewer workers"
            ) from error
        self._waiting.appendleft(index)

    def _renew(self, error: Exception) -> None:
        """Make the executor again, all of whose tasks are lost."""
        if self._make is None:
            raise WorkersDied(
                f"a worker died and has broken the executor ({error}): give a function that makes one, which can be "
                "called again: executor=lambda: ProcessPoolExecutor(4, mp_context=get_context('spawn')), or "
                "executor=4"
            ) from error
        lost, self._pending = self._pending, {}
        wait(lost)
        for future, index in lost.items():
            failure = future.exception()
            if failure is None:
                self._pending[future] = index
            else:
                self._died(index, failure if isinstance(failure, Exception) else error)
        self._waiting = deque(sorted(self._waiting))
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._executor = self._made(self._make)

    def end(self, wait: bool) -> None:
        """No more of this: tasks that have not begun never will, and an executor of our own is shut down."""
        for future in self._pending:
            future.cancel()
        if self._make is not None:
            self._executor.shutdown(wait=wait, cancel_futures=True)


@dataclass(frozen=True)
class _Settings:
    """What a process that computes must have in common with this one.

    Attributes:
        threads: of torch.
        dtype: the default one of torch.
        home: the process that has asked.
    """

    threads: int
    dtype: torch.dtype
    home: tuple[str, int]


def _place() -> tuple[str, int]:
    return platform.node(), os.getpid()


@dataclass
class _Raised:
    """What a function raised in a worker.

    Attributes:
        error: the exception.
        where: the lines of its traceback.
    """

    error: Exception
    where: str

    def raise_here(self) -> None:
        """Raise it, with where it came from."""
        self.error.add_note(f"in a worker:\n{self.where}")
        raise self.error


def _work(data: bytes) -> Any:
    """Compute one task, in a worker."""
    function, payload, settings = pickle.loads(data)
    if torch.get_num_threads() != settings.threads:
        torch.set_num_threads(settings.threads)
    before = torch.get_default_dtype()
    if settings.home != _place():
        torch.set_default_dtype(settings.dtype)
    try:
        return function(payload)
    except Exception as error:
        return _Raised(_portable(error), "".join(traceback.format_exception(error)))
    finally:
        if settings.home != _place():
            torch.set_default_dtype(before)


def _portable(error: Exception) -> Exception:
    """The error, or one that says the same where it cannot be sent."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
