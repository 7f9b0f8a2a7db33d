"""Failures in the words by which programs recognise those of torchdiffeq and torchsde."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from torchivp.solution import Outcome, SolveError, Status


class _Failure(SolveError):
    """A `SolveError` whose text begins with `words`, and goes on with the sentence of `status`."""

    words: ClassVar[Mapping[Outcome, str]]

    def __init__(self, status: Status):
        words = self.words.get(status.outcome)
        super().__init__(status if words is None else replace(status, message=f"{words}: {status.message}"))
        self.status = status


class TorchdiffeqFailure(_Failure):
    """What torchdiffeq says, by how the solve ended."""

    words: ClassVar[Mapping[Outcome, str]] = {
        Outcome.MAX_STEPS: "max_num_steps exceeded",
        Outcome.STEP_UNDERFLOW: "underflow in dt",
        # Whatever is not finite shrinks torchdiffeq's steps to nothing, unless the option min_step keeps them.
        Outcome.NON_FINITE: "underflow in dt, non-finite values in state `y`",
        Outcome.NOT_CONVERGED: "Functional iteration did not converge",
        Outcome.NO_EVENT: "Reached maximum number of iterations",
    }


class TorchsdeFailure(_Failure):
    """What torchsde says, by how the solve ended."""

    words: ClassVar[Mapping[Outcome, str]] = {Outcome.NON_FINITE: "Found nans in the error estimate"}
