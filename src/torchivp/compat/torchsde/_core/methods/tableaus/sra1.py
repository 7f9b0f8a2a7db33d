"""SRA1: strong order 3/2 for additive noise."""

from torchivp.compat.torchsde._core.methods.tableaus import full
from torchivp.methods.sde.sra1 import SRA1

_tableau = SRA1.tableau

STAGES = len(_tableau.alpha)
C0, C1 = tuple(_tableau.c0), tuple(_tableau.c1)
A0, B0 = full(_tableau.A0), full(_tableau.B0)
alpha, beta1, beta2 = tuple(_tableau.alpha), tuple(_tableau.beta1), tuple(_tableau.beta2)
