"""RODAS: Hairer and Wanner's Rosenbrock pair of order 4(3)."""

from torchivp.methods.ode.rosenbrock import Rosenbrock, RosenbrockTableau, through_both_ends

_A5 = (1.221224509226641, 6.019134481288629, 12.53708332932087, -0.6878860361058950)
_B = (*_A5, 1.0, 1.0)


class Rodas4(Rosenbrock):
    """Hairer and Wanner's pair of order 4(3), L-stable and stiffly accurate, six stages, adaptive.

    Hairer and Wanner, "Solving Ordinary Differential Equations II" (1996), IV.7 and VI.4, their code RODAS. Dense
    output: order 3, from the stages.
    """

    references = ("HairerWanner1996",)
    takes_mass = True
    tableau = RosenbrockTableau(
        order=4,
        gamma=0.25,
        c=(0, 0.386, 0.21, 0.63, 1, 1),
        d=(0.25, -0.1043, 0.1035, -0.0362, 0, 0),
        a=(
            (),
            (1.544,),
            (0.9466785280815826, 0.2557011698983284),
            (3.314825187068521, 2.896124015972201, 0.9986419139977817),
            _A5,
            (*_A5, 1.0),
        ),
        coupling=(
            (),
            (-5.6688,),
            (-2.430093356833875, -0.2063599157091915),
            (-0.1073529058151375, -9.594562251023355, -20.47028614809616),
            (7.496443313967647, -10.24680431464352, -33.99990352819905, 11.70890893206160),
            (8.083246795921522, -7.981132988064893, -31.52159432874371, 16.31930543123136, -6.058818238834054),
        ),
        b=_B,
        b_embedded=(*_B[:5], 0.0),
        embedded_order=3,
        dense=through_both_ends(
            3,
            _B,
            (
                (10.12623508344586, -7.487995877610167, -34.80091861555747, -7.992771707568823, 1.025137723295662, 0),
                (-0.6762803392801253, 6.087714651680015, 16.43084320892478, 24.76722511418386, -6.594389125716872, 0),
            ),
        ),
    )
