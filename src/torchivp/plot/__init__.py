"""Pictures of solutions and of fits, drawn with matplotlib; `pip install 'torchivp[fit]'` brings it.

Every function returns a `matplotlib.figure.Figure` of its own: nothing goes through `pyplot`, so that they work
without a screen and leave no state behind. Save one with `figure.savefig("fit.png")`.
"""

try:
    import matplotlib as _matplotlib  # noqa: F401 (asked for here so that every module below finds it)
except ImportError as error:
    raise ImportError("torchivp.plot draws with matplotlib, which is missing: pip install 'torchivp[fit]'") from error

from torchivp.plot.ensemble import plot_ensemble
from torchivp.plot.fit import plot_correlation, plot_fit, plot_phase, plot_residuals
from torchivp.plot.posterior import plot_posterior
from torchivp.plot.profile import plot_profiles
from torchivp.plot.solution import plot_phase_plane, plot_solution
from torchivp.plot.starts import plot_starts

__all__ = [
    "plot_correlation",
    "plot_ensemble",
    "plot_fit",
    "plot_phase",
    "plot_phase_plane",
    "plot_posterior",
    "plot_profiles",
    "plot_residuals",
    "plot_solution",
    "plot_starts",
]
