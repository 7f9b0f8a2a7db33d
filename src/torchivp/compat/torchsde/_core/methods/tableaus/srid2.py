"""SRID2: strong order 3/2 for diagonal noise."""

from torchivp.compat.torchsde._core.methods.tableaus import full
from torchivp.methods.sde.srid2 import SRID2

_tableau = SRID2.tableau

STAGES = len(_tableau.alpha)
C0, C1 = tuple(_tableau.c0), tuple(_tableau.c1)
A0, A1 = full(_tableau.A0), full(_tableau.A1)
B0, B1 = full(_tableau.B0), full(_tableau.B1)
alpha, beta1, beta2 = tuple(_tableau.alpha), tuple(_tableau.beta1), tuple(_tableau.beta2)
beta3, beta4 = tuple(_tableau.beta3), tuple(_tableau.beta4)
