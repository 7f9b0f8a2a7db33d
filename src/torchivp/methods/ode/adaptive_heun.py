"""Heun's method with the slope of the last step: one evaluation a step, second order."""

from dataclasses import replace

from torchivp.methods.ode.heun import Heun


class AdaptiveHeun(Heun):
    """Heun's method of order 2(1), adaptive, that evaluates func once in a step; torchdiffeq's `adaptive_heun`.

    Euler's method predicts the end of the step, func is evaluated there, and the trapezoidal rule corrects it. The next
    step starts from that same slope: "predict, evaluate, correct" (Hairer, Norsett and Wanner, "Solving Ordinary
    Differential Equations I", III.1), where `Heun` evaluates again. At the same accuracy that takes from half to four
    fifths of the evaluations.
    """

    references = ("HairerNorsettWanner1993",)
    tableau = replace(Heun.tableau, predicts=True)
