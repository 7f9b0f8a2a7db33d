"""`NeuralODE`: the solution of a differential equation as a layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from torchivp.api.arguments import Gradient, default_tolerances, find_gradient
from torchivp.api.ivp import solve_ivp
from torchivp.checks import check_flag, check_whole_number
from torchivp.methods import find_method
from torchivp.methods.method import Method
from torchivp.nn.field import Dynamics, Evaluations, needs_time
from torchivp.nn.regularisers import Regulariser
from torchivp.nn.times import Span, call_times, layer_times
from torchivp.solution import BatchSolution, Solution

_OPTIONS = ("step_size", "first_step", "min_step", "max_step", "max_steps", "controller", "norm", "backend")
_UNMEASURED = 1e30
"""The absolute tolerance of the regularisers' integrals, so that no step depends on them."""


class NeuralODE(nn.Module):
    """The solution of `dy/dt = field(t, y)` as a layer: from the initial states to the end states or the trajectories.

    Called as `layer(y0)`, or with other times as `layer(y0, t)`. `y0` is a tensor whose first dimension numbers the
    samples, such as [B, n] or [B, C, H, W]; without `augment` and `regularisers` any state of `solve_ivp` will do.

    Args:
        field: the right-hand side, called as `field(t, y)` or `field(y)`, whichever its arguments are: a network, a
            model of `torchivp.models`, a compiled module, a function. It returns a tensor in the shape of `y`.
        t: the start and the end, or all times of the trajectory in order; a number is an end that starts from 0. An
            `nn.Parameter` is a parameter of the layer, and trained.
        output: "end" for the states at the last time, or "trajectory" for those at all times.
        method: as in `solve_ivp`.
        rtol: as in `solve_ivp`.
        atol: as in `solve_ivp`.
        gradient: as in `solve_ivp`: "direct", "checkpointed", "backsolve", "forward" or an object with options.
        batch_dims: how many leading dimensions of `y0` number samples that step on their own, as in `solve_ivp`. With
            0 all samples share their steps.
        augment: the number of zeros that every sample gets as further features or channels, which gives its trajectory
            room to pass those of others. Source: Dupont, Doucet and Teh, "Augmented neural ODEs" (2019).
        augment_dim: the dimension of `y0` that they are put behind: 1 for the features of [B, n] and the channels of
            [B, C, H, W].
        keep_augmented: whether they stay in what the layer returns.
        regularisers: what is integrated along each trajectory in training mode: `KineticEnergy(weight)`,
            `JacobianNorm(weight)`. Add `penalty(model)` to the loss. They never change the steps.
        takes_time: whether the field is called as `field(t, y)`; None to see from its arguments.
        **options: further arguments of `solve_ivp`: `step_size`, `first_step`, `min_step`, `max_step`, `max_steps`,
            `controller`, `norm`, and `backend`: with "fused" or "auto" `nfe` counts the evaluations of forward solves
            alone, of the sample that took most.

    Attributes:
        nfe: how often the field was called, `nfe.forward` and `nfe.backward`, since `nfe.reset()`.
        integrals: the regularisers' integrals of the last forward pass, [B] each, by name; empty after one in eval
            mode.

    Raises:
        TypeError, ValueError: an argument does not make sense; the message says how to mend it.

    Examples:
        >>> import torch, torchivp
        >>> field = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
        >>> model = torch.nn.Sequential(torchivp.nn.NeuralODE(field, method="tsit5"), torch.nn.Linear(3, 10))
        >>> model(torch.randn(32, 3)).shape
        torch.Size([32, 10])
    """

    def __init__(
        self,
        field: Callable[..., Any],
        t: float | Sequence[float] | Tensor = (0.0, 1.0),
        *,
        output: Literal["end", "trajectory"] = "end",
        method: str | type[Method] = "dopri5",
        rtol: Any = None,
        atol: Any = None,
        gradient: str | Gradient = "direct",
        batch_dims: int = 0,
        augment: int = 0,
        augment_dim: int = 1,
        keep_augmented: bool = True,
        regularisers: Sequence[Regulariser] = (),
        takes_time: bool | None = None,
        **options: Any,
    ):
        super().__init__()
        if output not in ("end", "trajectory"):
            raise ValueError(f"output must be 'end' or 'trajectory', got {output!r}")
        unknown = [name for name in options if name not in _OPTIONS]
        if unknown:
            raise TypeError(
                f"NeuralODE has no argument {unknown[0]!r}: besides its own it takes {', '.join(_OPTIONS)}, as "
                "solve_ivp does"
            )
        if takes_time is None:
            self._timed = needs_time("field", field, "write takes_time=True or takes_time=False")
        else:
            self._timed = check_flag("takes_time", takes_time)
        self.field = field
        fixed = layer_times(t)
        self.t = t if isinstance(t, nn.Parameter) else fixed
        self.output = output
        self.method = find_method(method)
        self.rtol, self.atol = rtol, atol
        self.gradient = find_gradient(gradient)
        self.batch_dims = check_whole_number("batch_dims", batch_dims, 0)
        self.augment = check_whole_number("augment", augment, 0)
        self.augment_dim = augment_dim
        self.keep_augmented = check_flag("keep_augmented", keep_augmented)
        self.regularisers = _check_regularisers(regularisers)
        self.options = options
        self.nfe = Evaluations()
        self.integrals: dict[str, Tensor] = {}

    def forward(self, y0: Any, t: Any = None, *, shift: Tensor | None = None) -> Any:
        """Solve from the initial states `y0` at the first time.

        Args:
            y0: the initial states.
            t: other times than the layer's, as there, or times for each sample: a tensor [B, T] with NaN at the end of
                shorter rows, or a list with a series for each sample. Then the samples step on their own.
            shift: [B], what is added to the times for each sample: its field sees `shift + t`, and all samples share
                their steps.

        Returns:
            The states at the last time, in the shape of `y0`; or the trajectories, [T, *y0.shape] as `odeint` returns
            them, and with times or steps for each sample [B, T, ...] as `solve_ivp` does, NaN where `t` is.

        Raises:
            SolveError: the last time was not reached.
            TypeError, ValueError: an argument does not make sense; the message says how to mend it.
        """
        times = call_times(self.t if t is None else t)
        rows = self.batch_dims or (times.ndim - 1 if isinstance(times, Tensor) else 0)
        span = Span.of(times, self.output == "trajectory")
        state, lead = self._augmented(y0, rows)
        state_dims = state.ndim - lead if isinstance(state, Tensor) else 0
        regularisers = self.regularisers if self.training else ()
        counted = self.options.get("backend", "eager") == "eager"
        dynamics = Dynamics(self.field, self._timed, self.nfe, regularisers, state_dims, counted)
        extra: dict[str, Any] = {}
        if shift is not None:
            extra["shift"] = _checked_shift(shift, state, lead, rows).reshape(-1, *[1] * state_dims)
        if regularisers and getattr(self, "_is_replica", False):
            raise ValueError(
                "nn.DataParallel loses the integrals of regularisers, which its copies of the layer find: use "
                "nn.parallel.DistributedDataParallel"
            )
        if regularisers:
            drawn = {regulariser.name: regulariser.noise(state) for regulariser in regularisers}
            extra["noise"] = {name: noise for name, noise in drawn.items() if noise is not None}
        solution = self._solve(dynamics, span, state, lead, extra, rows)
        dynamics.solved = True
        if not counted:
            stats = [solution.stats] if isinstance(solution, Solution) else solution.stats
            self.nfe.forward += max((each.evaluations for each in stats), default=0)
        y = solution.y
        if regularisers:
            y, *integrals = y
            named = zip(regularisers, integrals, strict=True)
            self.integrals = {each.name: _last(total, rows, span).reshape(state.shape[:lead]) for each, total in named}
        else:
            self.integrals = {}
        if self.augment and not self.keep_augmented:
            dim = self.augment_dim % y0.ndim - y0.ndim
            y = y.narrow(dim, 0, y0.shape[dim])
        if self.output == "end":
            y = pytree.tree_map(lambda states: states.select(rows, 0), y)
        return y

    def _solve(
        self, dynamics: Dynamics, span: Span, state: Any, lead: int, extra: dict[str, Any], rows: int
    ) -> Solution | BatchSolution:
        """Solve for the state, and for the integrals of the regularisers beside it."""
        y, rtol, atol, options = state, self.rtol, self.atol, dict(self.options)
        count = len(dynamics.regularisers)
        if count:
            zeros = state.new_zeros((*state.shape[:lead], *[1] * (state.ndim - lead)))
            y = (state, *[zeros] * count)
            defaults = default_tolerances(state)
            rtol, atol = (own if given is None else given for own, given in zip(defaults, (rtol, atol), strict=True))
            rtol, atol = (rtol, *[0.0] * count), (atol, *[_UNMEASURED] * count)
            norm = options.get("norm")
            if norm is not None:
                options["norm"] = lambda error: norm(error[0])
        return solve_ivp(
            dynamics,
            (span.start, span.end),
            y,
            t_eval=span.outputs,
            method=self.method,
            rtol=rtol,
            atol=atol,
            args=(extra,) if extra else (),
            gradient=self.gradient,
            batch_dims=rows,
            **options,
        )

    def _augmented(self, y0: Any, rows: int) -> tuple[Any, int]:
        """The state to start from, and how many of its leading dimensions number the samples."""
        if not isinstance(y0, Tensor):
            if self.augment or self.regularisers:
                raise TypeError(f"augment and regularisers need a state that is one tensor, got {type(y0).__name__}")
            return y0, rows
        if self.regularisers and y0.is_complex():
            raise TypeError("regularisers need a real state: write torch.view_as_real(y0)")
        lead = rows or min(1, max(0, y0.ndim - 1))
        if not self.augment:
            return y0, lead
        dim = self.augment_dim
        if not (-y0.ndim <= dim < y0.ndim and dim % y0.ndim >= lead):
            raise ValueError(
                f"augment_dim must be a dimension of y0 behind those of the samples, got {dim} for the shape "
                f"{tuple(y0.shape)}" + ("" if y0.ndim > 1 else ": write augment_dim=0 for a single state [n]")
            )
        shape = list(y0.shape)
        shape[dim] = self.augment
        return torch.cat((y0, y0.new_zeros(shape)), dim), lead

    def __getstate__(self) -> dict[str, Any]:
        # The integrals hang on the graph of the last forward pass, which can be neither copied nor pickled.
        return self.__dict__ | {"integrals": {}}

    def extra_repr(self) -> str:
        """What distinguishes this layer from others, for `print`."""
        span = "learned" if isinstance(self.t, Tensor) else f"{self.t[0]:g} to {self.t[-1]:g}"
        return f"t={span}, output={self.output!r}, method={self.method.__name__}, gradient={self.gradient.name!r}"


def penalty(module: nn.Module) -> Tensor:
    """The sum of the regularisers' integrals of the last forward pass: what to add to the loss.

    Each is averaged over the samples and multiplied with its weight. All `NeuralODE`s within `module` count; after a
    forward pass in eval mode, which integrates none, it is zero.
    """
    total = torch.zeros(())
    for layer in module.modules():
        if isinstance(layer, NeuralODE):
            weights = {regulariser.name: regulariser.weight for regulariser in layer.regularisers}
            for name, integral in layer.integrals.items():
                total = total + weights[name] * integral.mean()
    return total


def _last(integral: Tensor, rows: int, span: Span) -> Tensor:
    """An integral at the last output of each sample; the dimension `rows` is that of the outputs."""
    if span.last is None or integral.shape[rows] == 1:
        return integral.select(rows, -1)
    index = span.last.to(integral.device).reshape(*span.last.shape, *[1] * (integral.ndim - rows))
    return torch.take_along_dim(integral, index, rows)


def _checked_shift(shift: Tensor, state: Any, lead: int, rows: int) -> Tensor:
    if rows:
        raise ValueError(
            "shift is for samples that share their steps: without times or steps for each sample; add it to t instead, "
            "layer(y0, t + shift[:, None])"
        )
    if not isinstance(state, Tensor) or lead == 0 or shift.shape != state.shape[:1]:
        samples = f"({state.shape[0]},)" if isinstance(state, Tensor) and lead else "that of the samples"
        raise ValueError(f"shift must have the shape {samples}, one number for each sample, got {tuple(shift.shape)}")
    return shift


def _check_regularisers(regularisers: Any) -> tuple[Regulariser, ...]:
    given = tuple(regularisers) if isinstance(regularisers, list | tuple) else (regularisers,)
    for regulariser in given:
        if not all(hasattr(regulariser, name) for name in ("name", "weight", "noise", "integrand")):
            raise TypeError(
                f"regularisers must be such as KineticEnergy(0.01) and JacobianNorm(0.01), got {regulariser!r}"
            )
    names = [regulariser.name for regulariser in given]
    if len(set(names)) < len(names):
        raise ValueError(f"regularisers must differ in their names, got {', '.join(names)}")
    return given
