"""SRA2: strong order 3/2 for additive noise."""

from torchivp.compat.torchsde._core.methods.tableaus import full
from torchivp.methods.sde.additive_runge_kutta import AdditiveTableau

_tableau = AdditiveTableau(
    c0=(0.0, 3 / 4),
    c1=(1 / 3, 1.0),
    A0=((3 / 4,),),
    B0=((3 / 2,),),
    alpha=(1 / 3, 2 / 3),
    beta1=(0.0, 1.0),
    beta2=(3 / 2, -3 / 2),
)

STAGES = len(_tableau.alpha)
C0, C1 = tuple(_tableau.c0), tuple(_tableau.c1)
A0, B0 = full(_tableau.A0), full(_tableau.B0)
alpha, beta1, beta2 = tuple(_tableau.alpha), tuple(_tableau.beta1), tuple(_tableau.beta2)
