"""Kennedy and Carpenter's implicit-explicit pair of order 4(3): five implicit stages a step, L-stable."""

from torchivp.methods.ode.implicit_runge_kutta import ImplicitRungeKutta
from torchivp.methods.ode.tableau import ButcherTableau, StagePolynomials, with_larger_error

_B = (82889 / 524892, 0, 15625 / 83664, 69875 / 102672, -2260 / 8211, 1 / 4)
_EMBEDDED = (
    4586570599 / 29645900160,
    0,
    178811875 / 945068544,
    814220225 / 1159782912,
    -3700637 / 11593932,
    61727 / 225920,
)


class KenCarp4(ImplicitRungeKutta):
    """Kennedy and Carpenter's additive Runge-Kutta method of order 4(3), adaptive: ARK4(3)6L[2]SA.

    Of `func=(explicit, implicit)` the implicit part is solved for by a singly diagonally implicit method with an
    explicit first stage, L-stable; an explicit method with the same nodes and weights takes the other part. A single
    func is solved for as a whole. The error is estimated by their embedded method, three times as large as the
    difference to it: so it stays within some fifty times the tolerance where it grows on the way. Kennedy and
    Carpenter, "Additive Runge-Kutta schemes for convection-diffusion-reaction equations", Appl. Numer. Math. 44 (2003).
    Dense output: theirs, of order 3.
    """

    references = ("KennedyCarpenter2003",)
    tableau = ButcherTableau(
        order=4,
        c=(0, 1 / 2, 83 / 250, 31 / 50, 17 / 20, 1),
        a=(
            (),
            (1 / 4, 1 / 4),
            (8611 / 62500, -1743 / 31250, 1 / 4),
            (5012029 / 34652500, -654441 / 2922500, 174375 / 388108, 1 / 4),
            (15267082809 / 155376265600, -71443401 / 120774400, 730878875 / 902184768, 2285395 / 8070912, 1 / 4),
            _B,
        ),
        b=_B,
        b_embedded=with_larger_error(_B, _EMBEDDED, 3),
        a_explicit=(
            (),
            (1 / 2,),
            (13861 / 62500, 6889 / 62500),
            (-116923316275 / 2393684061468, -2731218467317 / 15368042101831, 9408046702089 / 11113171139209),
            (
                -451086348788 / 2902428689909,
                -2682348792572 / 7519795681897,
                12662868775082 / 11960479115383,
                3355817975965 / 11060851509271,
            ),
            (
                647845179188 / 3216320057751,
                73281519250 / 8382639484533,
                552539513391 / 3454668386233,
                3354512671639 / 8306763924573,
                4040 / 17871,
            ),
        ),
        dense=StagePolynomials(
            3,
            b=(
                (6943876665148 / 7220017795957, -54480133 / 30881146, 6818779379841 / 7100303317025),
                (0, 0, 0),
                (7640104374378 / 9702883013639, -11436875 / 14766696, 2173542590792 / 12501825683035),
                (-20649996744609 / 7521556579894, 174696575 / 18121608, -31592104683404 / 5083833661969),
                (8854892464581 / 2390941311638, -12120380 / 966161, 61146701046299 / 7138195549469),
                (-11397109935349 / 6675773540249, 3843 / 706, -17219254887155 / 4939391667607),
            ),
        ),
    )
