"""Kennedy and Carpenter's implicit-explicit pair of order 3(2): three implicit stages a step, L-stable."""

from torchivp.methods.ode.implicit_runge_kutta import ImplicitRungeKutta
from torchivp.methods.ode.tableau import ButcherTableau, StagePolynomials, with_larger_error

_GAMMA = 1767732205903 / 4055673282236
_B = (1471266399579 / 7840856788654, -4482444167858 / 7529755066697, 11266239266428 / 11593286722821, _GAMMA)
_EMBEDDED = (
    2756255671327 / 12835298489170,
    -10771552573575 / 22201958757719,
    9247589265047 / 10645013368117,
    2193209047091 / 5459859503100,
)


class KenCarp3(ImplicitRungeKutta):
    """Kennedy and Carpenter's additive Runge-Kutta method of order 3(2), adaptive: ARK3(2)4L[2]SA.

    Of `func=(explicit, implicit)` the implicit part is solved for by a singly diagonally implicit method with an
    explicit first stage, L-stable; an explicit method with the same nodes and weights takes the other part. A single
    func is solved for as a whole. The error is estimated by their embedded method, four times as large as the
    difference to it: so it stays within some fifty times the tolerance where it grows on the way. Kennedy and
    Carpenter, "Additive Runge-Kutta schemes for convection-diffusion-reaction equations", Appl. Numer. Math. 44 (2003).
    Dense output: theirs, of order 2.
    """

    references = ("KennedyCarpenter2003",)
    tableau = ButcherTableau(
        order=3,
        c=(0, 1767732205903 / 2027836641118, 3 / 5, 1),
        a=((), (_GAMMA, _GAMMA), (2746238789719 / 10658868560708, -640167445237 / 6845629431997, _GAMMA), _B),
        b=_B,
        b_embedded=with_larger_error(_B, _EMBEDDED, 4),
        a_explicit=(
            (),
            (1767732205903 / 2027836641118,),
            (5535828885825 / 10492691773637, 788022342437 / 10882634858940),
            (6485989280629 / 16251701735622, -4246266847089 / 9704473918619, 10755448449292 / 10357097424841),
        ),
        dense=StagePolynomials(
            2,
            b=(
                (4655552711362 / 22874653954995, -215264564351 / 13552729205753),
                (-18682724506714 / 9892148508045, 17870216137069 / 13817060693119),
                (34259539580243 / 13192909600954, -28141676662227 / 17317692491321),
                (584795268549 / 6622622206610, 2508943948391 / 7218656332882),
            ),
        ),
    )
