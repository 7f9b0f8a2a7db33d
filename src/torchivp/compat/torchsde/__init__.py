"""torchsde's functions and classes, and the names that programs take from within it, on torchivp's solvers.

`torchivp.sdeint` and `sdeint_adjoint` take the same calls. These here do as torchsde does where torchivp chose another
way: steps of `dt` go on from `ts[0]`, whatever the times `ts`, and the states there are interpolated; states are
[batch, d] and times increase; and the Brownian motions give torchsde's numbers for the same entropy.
"""

from torchivp.compat.torchsde._brownian import (
    BaseBrownian,
    BrownianInterval,
    BrownianPath,
    BrownianTree,
    ReverseBrownian,
    brownian_interval_like,
)
from torchivp.compat.torchsde._core.adjoint import sdeint_adjoint
from torchivp.compat.torchsde._core.base_sde import BaseSDE, SDEIto, SDEStratonovich
from torchivp.compat.torchsde._core.sdeint import sdeint

__all__ = [
    "BaseBrownian",
    "BaseSDE",
    "BrownianInterval",
    "BrownianPath",
    "BrownianTree",
    "ReverseBrownian",
    "SDEIto",
    "SDEStratonovich",
    "brownian_interval_like",
    "sdeint",
    "sdeint_adjoint",
]

__version__ = "0.2.6"
"""The version of torchsde whose interface this is: programs compare it."""
