"""The step of a Rosenbrock method in C++, from its tableau."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from torchivp.fused.steps import constants, numbers, source_file, stage_times, table
from torchivp.methods.ode.rosenbrock import RosenbrockTableau
from torchivp.methods.ode.tableau import square


@dataclass(frozen=True)
class RosenbrockCoefficients:
    """A tableau as the loops of the C++ read it.

    Attributes:
        tableau: the tableau.
        error_order: the order of the error estimate.
    """

    tableau: RosenbrockTableau
    error_order: int
    predicts = hands_on = False
    uses_jacobian = True
    last = ()

    @staticmethod
    def of(tableau: RosenbrockTableau) -> RosenbrockCoefficients:
        """The coefficients of a method."""
        return RosenbrockCoefficients(tableau, min(tableau.order, tableau.embedded_order))

    @property
    def stages(self) -> int:
        return len(self.tableau.b)

    @property
    def solves(self) -> int:
        return self.stages

    def declarations(self, size: int, parts: Sequence[int], adaptive: bool) -> str:
        # The slope at the start comes first, then the stages.
        return constants(
            size,
            parts,
            STAGES=self.stages,
            EXTRA=0,
            SLOPES=self.stages + 1,
            DEGREE=np.array(self.tableau.dense.b).shape[1],
            ERROR_ORDER=self.error_order,
            FSAL=False,
            PREDICTS=False,
            HERMITE=False,
            JACOBIAN=True,
            ADAPTIVE=adaptive,
        )

    def step(self, size: int, states: int, adaptive: bool) -> str:
        return "\n".join([self._tables(), source_file("rosenbrock.h")])

    def pull(self) -> tuple[str, str]:
        return "\n".join([numbers("NODES", self.tableau.c), self.step(0, 0, True)]), source_file("pull_rosenbrock.h")

    def _tables(self) -> str:
        of = self.tableau
        return "\n".join(
            [
                f"CONSTANT double GAMMA = {of.gamma!r};",
                table("A", square(of.a)),
                table("COUPLING", of.gamma * square(of.coupling)),
                numbers("BY_TIME", of.d),
                numbers("B", of.b),
                numbers("ERROR", np.array(of.b) - np.array(of.b_embedded)),
                table("DENSE", np.array(of.dense.b, dtype=np.float64)),
                stage_times(of.c),
            ]
        )
