"""SOSRA: three drifts and three diffusions a step, for additive noise and drifts that are a little stiff."""

from torchivp.methods.sde.additive_runge_kutta import AdditiveRungeKutta, AdditiveTableau


class SOSRA(AdditiveRungeKutta):
    """Strong order 3/2, weak order 2, with a large region of stability.

    Rackauckas and Nie, "Stability-optimized high order methods and stiffness detection for pathwise stiff stochastic
    differential equations", IEEE HPEC (2020).
    """

    references = ("RackauckasNie2020",)
    tableau = AdditiveTableau(
        c0=(0.0, 0.6923962376159507, 1.0),
        c1=(0.0, 0.041248171110700504, 1.0),
        A0=((0.6923962376159507,), (-3.1609142252828395, 4.1609142252828395)),
        B0=((1.3371632704399763,), (1.442371048468624, 1.8632741501139225)),
        alpha=(0.2889874966892885, 0.6859880440839937, 0.025024459226717772),
        beta1=(-16.792534242221663, 17.514995785380226, 0.27753845684143835),
        beta2=(0.4237535769069274, 0.6010381474428539, -1.0247917243497813),
    )
