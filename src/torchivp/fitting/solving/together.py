"""Searches side by side, whose solves are rows of one: each waits until all have asked for theirs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torchivp.fitting.misfit import Misfit
    from torchivp.fitting.predictions import Predictions
    from torchivp.fitting.solving.stretches import Accuracy

T = TypeVar("T")


@dataclass
class _Request:
    """What one of the searches has asked for.

    Attributes:
        number: that of the search; requests are answered in their order, so that threads decide about nothing.
        misfit: which answers.
        theta: where.
        kind: the accuracy, the horizon, and whether derivatives are wanted: what all rows of a solve share.
        answered: whether there is an answer.
        answer: the predictions.
        error: what went wrong instead.
    """

    number: int
    misfit: Misfit
    theta: NDArray[np.float64]
    kind: tuple[Accuracy, float, bool]
    answered: bool = False
    answer: Predictions | None = None
    error: BaseException | None = None


class Broker:
    """Collects what searches ask for, and solves all of it at once when each of them waits for an answer.

    Args:
        count: how many searches there are.
        alike: whether what one of them asks for when no other asks for anything is solved in company too, so that the
            numbers are those that it has with any others. A row by itself is solved in another way, which is faster.
    """

    def __init__(self, count: int, alike: bool = False):
        self._at_least = 2 if alike else 1
        self._changed = threading.Condition()
        self._running = count
        self._waiting: list[_Request] = []

    def ask(
        self, number: int, misfit: Misfit, theta: NDArray[np.float64], horizon: float, derivatives: bool
    ) -> Predictions | None:
        """The predictions at `theta`, when all other searches have asked too, or ended."""
        request = _Request(number, misfit, theta, (misfit.accuracy, horizon, derivatives))
        with self._changed:
            self._waiting.append(request)
            self._answer_if_all_wait()
            while not request.answered:
                self._changed.wait()
        if request.error is not None:
            raise request.error
        return request.answer

    def leave(self) -> None:
        """A search has ended."""
        with self._changed:
            self._running -= 1
            self._answer_if_all_wait()

    def _answer_if_all_wait(self) -> None:
        if not self._waiting or len(self._waiting) < self._running:
            return
        requests, self._waiting = sorted(self._waiting, key=lambda each: each.number), []
        kinds: dict[tuple[Accuracy, float, bool], list[_Request]] = {}
        for request in requests:
            kinds.setdefault(request.kind, []).append(request)
        for (_, horizon, derivatives), alike in kinds.items():
            try:
                thetas = [request.theta for request in alike]
                thetas += thetas[:1] * (self._at_least - len(thetas))
                found = alike[0].misfit.predictions_at(np.stack(thetas), horizon, derivatives)
                for request, answer in zip(alike, found, strict=False):
                    request.answer = answer
            except BaseException as error:
                for request in alike:
                    request.error = error
        for request in requests:
            request.answered = True
        self._changed.notify_all()


def side_by_side(misfit: Misfit, searches: Sequence[Callable[[Misfit], T]], alike: bool = False) -> list[T]:
    """Run searches at the same time, each of which solves by the misfit that it is called with.

    They run in threads, of which one computes at a time; what is gained is that their solves are rows of one. A search
    takes the same way as it takes alone.

    Args:
        misfit: what they ask.
        searches: functions of a misfit.
        alike: whether their numbers are to be the same to the last bit with any other searches beside them.

    Returns:
        What they return, in order.
    """
    if len(searches) < 2 and not alike:
        return [search(misfit) for search in searches]
    broker = Broker(len(searches), alike)
    results: list[T | None] = [None] * len(searches)
    errors: list[BaseException | None] = [None] * len(searches)

    def run(number: int) -> None:
        try:
            results[number] = searches[number](misfit.through(broker, number))
        except BaseException as error:
            errors[number] = error
        finally:
            broker.leave()

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(len(searches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        if error is not None:
            raise error
    return results  # pyright: ignore[reportReturnType]
