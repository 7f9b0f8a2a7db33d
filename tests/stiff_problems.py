"""Stiff problems of the literature, with the states at their ends.

Hairer and Wanner, "Solving Ordinary Differential Equations II", IV.1 and IV.10; Mazzia and Magherini, "Test Set for
Initial Value Problem Solvers" (Bari, 2008). The right-hand sides take one state, [n], and rows, [rows, n]. What they
depend on are arguments after the state, each a number or [rows].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class StiffProblem(NamedTuple):
    """A problem whose solution at the end is known.

    Attributes:
        func: the right-hand side.
        y0: the initial state, [n].
        span: the start and the end.
        reference: the state at the end, [n], to 11 digits or more.
        atol_per_rtol: the absolute tolerance that suits the problem, in units of the relative one.
    """

    func: Callable[..., Tensor]
    y0: Tensor
    span: tuple[float, float]
    reference: Tensor
    atol_per_rtol: float

    def scaled_error(self, y: Tensor, rtol: float) -> float:
        """The largest error of an end state in units of the tolerance."""
        scale = rtol * (self.atol_per_rtol + self.reference.abs())
        return float(((y - self.reference).abs() / scale).max())


def robertson(t, y, k1=0.04, k2=3e7, k3=1e4):
    a, b, c = y.unbind(-1)
    slow, fast, back = k1 * a, k2 * b * b, k3 * b * c
    return torch.stack((back - slow, slow - back - fast, fast), -1)


def oregonator(t, y, s=77.27, q=8.375e-6, w=0.161):
    a, b, c = y.unbind(-1)
    return torch.stack((s * (b + a * (1 - q * a - b)), (c - (1 + a) * b) / s, w * (a - c)), -1)


def hires(t, y, k=280.0):
    a, b, c, d, e, f, g, h = y.unbind(-1)
    bound = k * f * h
    return torch.stack(
        (
            -1.71 * a + 0.43 * b + 8.32 * c + 0.0007,
            1.71 * a - 8.75 * b,
            -10.03 * c + 0.43 * d + 0.035 * e,
            8.32 * b + 1.71 * c - 1.12 * d,
            -1.745 * e + 0.43 * f + 0.43 * g,
            -bound + 0.69 * d + 1.71 * e - 0.43 * f + 0.69 * g,
            bound - 1.81 * g,
            -bound + 1.81 * g,
        ),
        -1,
    )


def van_der_pol(t, y, eps=1e-6):
    x, v = y.unbind(-1)
    return torch.stack((v, ((1 - x * x) * v - x) / eps), -1)


def pollution(t, y):
    """Verwer, "Gauss-Seidel iteration for stiff ODEs from chemical kinetics", SIAM J. Sci. Comput. 15 (1994)."""
    _, y1, y2, y3, y4, y5, y6, y7, _, y9, y10, y11, _, y13, y14, _, y16, y17, _, y19, y20 = (None, *y.unbind(-1))
    r1, r2, r3 = 0.35 * y1, 26.6 * y2 * y4, 1.23e4 * y5 * y2
    r4, r5, r6 = 8.6e-4 * y7, 8.2e-4 * y7, 1.5e4 * y7 * y6
    r7, r8, r9 = 1.3e-4 * y9, 2.4e4 * y9 * y6, 1.65e4 * y11 * y2
    r10, r11, r12 = 9e3 * y11 * y1, 0.022 * y13, 1.2e4 * y10 * y2
    r13, r14, r15 = 1.88 * y14, 1.63e4 * y1 * y6, 4.8e6 * y3
    r16, r17, r18 = 3.5e-4 * y4, 0.0175 * y4, 1e8 * y16
    r19, r20, r21 = 4.44e11 * y16, 1240.0 * y17 * y6, 2.1 * y19
    r22, r23, r24, r25 = 5.78 * y19, 0.0474 * y1 * y4, 1780.0 * y19 * y1, 3.12 * y20
    return torch.stack(
        (
            -r1 - r10 - r14 - r23 - r24 + r2 + r3 + r9 + r11 + r12 + r22 + r25,
            -r2 - r3 - r9 - r12 + r1 + r21,
            -r15 + r1 + r17 + r19 + r22,
            -r2 - r16 - r17 - r23 + r15,
            -r3 + 2 * r4 + r6 + r7 + r13 + r20,
            -r6 - r8 - r14 - r20 + r3 + 2 * r18,
            -r4 - r5 - r6 + r13,
            r4 + r5 + r6 + r7,
            -r7 - r8,
            -r12 + r7 + r9,
            -r9 - r10 + r8 + r11,
            r9,
            -r11 + r10,
            -r13 + r12,
            r14,
            -r18 - r19 + r16,
            -r20,
            r20,
            -r21 - r22 - r24 + r23 + r25,
            -r25 + r24,
        ),
        -1,
    )


def _at(n: int, values: dict[int, float]) -> Tensor:
    """Zeros, but for the values at their places, counted from one."""
    y = torch.zeros(n, dtype=torch.float64)
    for place, value in values.items():
        y[place - 1] = value
    return y


def _double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


STIFF = {
    "ROBER": StiffProblem(
        robertson,
        _double(1.0, 0.0, 0.0),
        (0.0, 1e5),
        _double(0.0178659211422, 7.2747514685e-8, 0.982134006109),
        1e-3,
    ),
    "OREGO": StiffProblem(
        oregonator, _double(1.0, 2.0, 3.0), (0.0, 360.0), _double(1.00081487032, 1228.17852155, 132.055494285), 1e-6
    ),
    "HIRES": StiffProblem(
        hires,
        _at(8, {1: 1.0, 8: 0.0057}),
        (0.0, 321.8122),
        _double(
            0.000737131257333,
            0.000144248572632,
            5.88872974097e-5,
            0.00117565134328,
            0.00238635619884,
            0.00623896825275,
            0.00284999839519,
            0.00285000160481,
        ),
        1e-4,
    ),
    "van der Pol": StiffProblem(
        van_der_pol, _double(2.0, 0.0), (0.0, 2.0), _double(1.70616773217, -0.892809701025), 1.0
    ),
    "POLLU": StiffProblem(
        pollution,
        _at(20, {2: 0.2, 4: 0.04, 7: 0.1, 8: 0.3, 9: 0.01, 17: 0.007}),
        (0.0, 60.0),
        _double(
            0.05646255480022769,
            0.1342484130422339,
            0.4139734331099427e-08,
            0.5523140207484359e-02,
            0.2018977262302196e-06,
            0.1464541863493966e-06,
            0.7784249118997964e-01,
            0.3245075353396018,
            0.7494013383880406e-02,
            0.1622293157301561e-07,
            0.1135863833257075e-07,
            0.2230505975721359e-02,
            0.2087162882798630e-03,
            0.1396921016840158e-04,
            0.8964884856898295e-02,
            0.4352846369330103e-17,
            0.6899219696263405e-02,
            0.1007803037365946e-03,
            0.1772146513969984e-05,
            0.5682943292316392e-04,
        ),
        1.0,
    ),
}
