"""SRID1: strong order 3/2 for diagonal noise."""

from torchivp.compat.torchsde._core.methods.tableaus import full
from torchivp.methods.sde.diagonal_runge_kutta import DiagonalTableau

_tableau = DiagonalTableau(
    c0=(0.0, 3 / 4, 0.0, 0.0),
    c1=(0.0, 1 / 4, 1.0, 1 / 4),
    A0=((3 / 4,), (), ()),
    A1=((1 / 4,), (1.0,), (0.0, 0.0, 1 / 4)),
    B0=((3 / 2,), (), ()),
    B1=((1 / 2,), (-1.0,), (-5.0, 3.0, 1 / 2)),
    alpha=(1 / 3, 2 / 3, 0.0, 0.0),
    beta1=(-1.0, 4 / 3, 2 / 3, 0.0),
    beta2=(-1.0, 4 / 3, -1 / 3, 0.0),
    beta3=(2.0, -4 / 3, -2 / 3, 0.0),
    beta4=(-2.0, 5 / 3, -2 / 3, 1.0),
)

STAGES = len(_tableau.alpha)
C0, C1 = tuple(_tableau.c0), tuple(_tableau.c1)
A0, A1 = full(_tableau.A0), full(_tableau.A1)
B0, B1 = full(_tableau.B0), full(_tableau.B1)
alpha, beta1, beta2 = tuple(_tableau.alpha), tuple(_tableau.beta1), tuple(_tableau.beta2)
beta3, beta4 = tuple(_tableau.beta3), tuple(_tableau.beta4)
