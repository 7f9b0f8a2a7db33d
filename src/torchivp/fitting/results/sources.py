"""What a fit was computed with, and the sources of that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchivp.fitting.stochastic.filter import Filter
from torchivp.methods import find_method
from torchivp.references import Sources
from torchivp.stepsize.pid import PIDController

if TYPE_CHECKING:
    from torchivp.fitting.results.result import FitResult


def sources_of(fit: FitResult) -> Sources:
    """The parts in words, each with its sources; of method "auto" both methods between which it switches."""
    method = find_method(fit.misfit.accuracy.method)
    controller = PIDController(**method.controller_options)  # pyright: ignore[reportArgumentType]
    found: Sources = {
        **method.cited(),
        **controller.cited(),
        "forward sensitivities": ("HairerNorsettWanner1993",),
        "least squares (SciPy)": ("BranchColemanLi1999", "Virtanen2020"),
    }
    if isinstance(fit.misfit, Filter):
        found["extended Kalman filter"] = ("KalmanBucy1961", "Jazwinski1970", "Schweppe1965")
    for noise in fit.levels.noises:
        if noise.references:
            found[f"{noise.name} noise"] = noise.references
    if fit.misfit.measured().censored.any():
        found["values beyond limits"] = ("Tobin1958",)
    if fit.random is not None:
        found["random effects"] = ("Wolfinger1993", "PinheiroBates1995", "LairdWare1982", "KassSteffey1989")
    return found
