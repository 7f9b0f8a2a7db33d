"""Adams and Bashforth's methods: one evaluation a step, whatever the order."""

from torch import Tensor

from torchivp.error_norm import ErrorNorm
from torchivp.methods.method import FlatFunc
from torchivp.methods.ode.fixed_step_adams import Corrected, FixedStepAdams
from torchivp.methods.ode.past_slopes import Grid
from torchivp.methods.ode.slope_polynomial import Array


class ExplicitAdams(FixedStepAdams):
    """Adams and Bashforth's methods, of order 4 or another up to 12, fixed steps: one evaluation a step.

    The higher the order, the shorter the steps must be to be stable. Hairer, Norsett and Wanner, "Solving Ordinary
    Differential Equations I", III.1 and, for steps of different sizes, III.5. Dense output: of the order of the method.

    Option `max_order`: the order, 1 to 12.
    """

    references = ("HairerNorsettWanner1993",)

    @property
    def slopes_needed(self) -> int:
        return self.max_order

    def correct(
        self,
        func: FlatFunc,
        t1: float | Tensor,
        y0: Tensor,
        predicted: Tensor,
        grid: Grid,
        implicit: Array,
        slopes: Tensor,
        norm: ErrorNorm,
    ) -> Corrected:
        return Corrected(predicted, grid.nodes[:, 1:], grid.count, slopes)
