"""Kennedy and Carpenter's implicit-explicit pair of order 5(4): seven implicit stages a step, L-stable."""

from torchivp.methods.ode.implicit_runge_kutta import ImplicitRungeKutta
from torchivp.methods.ode.tableau import ButcherTableau, StagePolynomials, with_larger_error

_GAMMA = 41 / 200
_B = (
    -872700587467 / 9133579230613,
    0,
    0,
    22348218063261 / 9555858737531,
    -1143369518992 / 8141816002931,
    -39379526789629 / 19018526304540,
    32727382324388 / 42900044865799,
    _GAMMA,
)
_EMBEDDED = (
    -975461918565 / 9796059967033,
    0,
    0,
    78070527104295 / 32432590147079,
    -548382580838 / 3424219808633,
    -33438840321285 / 15594753105479,
    3629800801594 / 4656183773603,
    4035322873751 / 18575991585200,
)


class KenCarp5(ImplicitRungeKutta):
    """Kennedy and Carpenter's additive Runge-Kutta method of order 5(4), adaptive: ARK5(4)8L[2]SA.

    Of `func=(explicit, implicit)` the implicit part is solved for by a singly diagonally implicit method with an
    explicit first stage, L-stable; an explicit method with the same nodes and weights takes the other part. A single
    func is solved for as a whole. The error is estimated by their embedded method, sixteen times as large as the
    difference to it: of the implicit part its coefficients of order 5 are so small, and those of order 6 of the method
    itself so large, that the difference alone is less than the error in long steps. Kennedy and Carpenter, "Additive
    Runge-Kutta schemes for convection-diffusion-reaction equations", Appl. Numer. Math. 44 (2003). Dense output:
    theirs, of order 3, whose errors exceed those at the ends of long steps.
    """

    references = ("KennedyCarpenter2003",)
    tableau = ButcherTableau(
        order=5,
        c=(
            0,
            41 / 100,
            2935347310677 / 11292855782101,
            1426016391358 / 7196633302097,
            92 / 100,
            24 / 100,
            3 / 5,
            1,
        ),
        a=(
            (),
            (_GAMMA, _GAMMA),
            (41 / 400, -567603406766 / 11931857230679, _GAMMA),
            (683785636431 / 9252920307686, 0, -110385047103 / 1367015193373, _GAMMA),
            (
                3016520224154 / 10081342136671,
                0,
                30586259806659 / 12414158314087,
                -22760509404356 / 11113319521817,
                _GAMMA,
            ),
            (
                218866479029 / 1489978393911,
                0,
                638256894668 / 5436446318841,
                -1179710474555 / 5321154724896,
                -60928119172 / 8023461067671,
                _GAMMA,
            ),
            (
                1020004230633 / 5715676835656,
                0,
                25762820946817 / 25263940353407,
                -2161375909145 / 9755907335909,
                -211217309593 / 5846859502534,
                -4269925059573 / 7827059040749,
                _GAMMA,
            ),
            _B,
        ),
        b=_B,
        b_embedded=with_larger_error(_B, _EMBEDDED, 16),
        a_explicit=(
            (),
            (41 / 100,),
            (367902744464 / 2072280473677, 677623207551 / 8224143866563),
            (1268023523408 / 10340822734521, 0, 1029933939417 / 13636558850479),
            (
                14463281900351 / 6315353703477,
                0,
                66114435211212 / 5879490589093,
                -54053170152839 / 4284798021562,
            ),
            (
                14090043504691 / 34967701212078,
                0,
                15191511035443 / 11219624916014,
                -18461159152457 / 12425892160975,
                -281667163811 / 9011619295870,
            ),
            (
                19230459214898 / 13134317526959,
                0,
                21275331358303 / 2942455364971,
                -38145345988419 / 4862620318723,
                -1 / 8,
                -1 / 8,
            ),
            (
                -19977161125411 / 11928030595625,
                0,
                -40795976796054 / 6384907823539,
                177454434618887 / 12078138498510,
                782672205425 / 8267701900261,
                -69563011059811 / 9646580694205,
                7356628210526 / 4942186776405,
            ),
        ),
        dense=StagePolynomials(
            3,
            b=(
                (
                    -17674230611817 / 10670229744614,
                    43486358583215 / 12773830924787,
                    -9257016797708 / 5021505065439,
                ),
                (0, 0, 0),
                (0, 0, 0),
                (
                    65168852399939 / 7868540260826,
                    -91478233927265 / 11067650958493,
                    26096422576131 / 11239449250142,
                ),
                (
                    15494834004392 / 5936557850923,
                    -79368583304911 / 10890268929626,
                    92396832856987 / 20362823103730,
                ),
                (
                    -99329723586156 / 26959484932159,
                    -12239297817655 / 9152339842473,
                    30029262896817 / 10175596800299,
                ),
                (
                    -19024464361622 / 5461577185407,
                    115839755401235 / 10719374521269,
                    -26136350496073 / 3983972220547,
                ),
                (
                    -6511271360970 / 6095937251113,
                    5843115559534 / 2180450260947,
                    -5289405421727 / 3760307252460,
                ),
            ),
        ),
    )
