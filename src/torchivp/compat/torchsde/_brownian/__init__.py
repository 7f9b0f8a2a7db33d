"""torchsde's Brownian motions: the same entropy and the same queries give the same numbers, bit for bit.

What is different: an entropy that is not given is drawn from PyTorch's generator, not NumPy's; a query that a rounding
error puts outside [t0, t1] gives no warning; a BrownianPath goes on after t0 + 1; queries have no depth that they fail
beyond; and changing a result in place does not change the path.
"""

from torchivp.compat.torchsde._brownian.brownian_base import BaseBrownian
from torchivp.compat.torchsde._brownian.brownian_interval import BrownianInterval
from torchivp.compat.torchsde._brownian.derived import (
    BrownianPath,
    BrownianTree,
    ReverseBrownian,
    brownian_interval_like,
)

__all__ = [
    "BaseBrownian",
    "BrownianInterval",
    "BrownianPath",
    "BrownianTree",
    "ReverseBrownian",
    "brownian_interval_like",
]
