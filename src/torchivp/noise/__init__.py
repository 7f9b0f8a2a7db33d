"""Brownian motions that are functions of a seed and of time."""

from torchivp.noise.brownian import BaseBrownian
from torchivp.noise.increment import LEVY_AREAS, Increment, join
from torchivp.noise.interval import BrownianInterval, brownian_interval_like
from torchivp.noise.path import BrownianPath, BrownianTree, ReverseBrownian

__all__ = [
    "LEVY_AREAS",
    "BaseBrownian",
    "BrownianInterval",
    "BrownianPath",
    "BrownianTree",
    "Increment",
    "ReverseBrownian",
    "brownian_interval_like",
    "join",
]
