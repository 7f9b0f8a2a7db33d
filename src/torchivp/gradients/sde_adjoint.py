"""Differentiate a solve of an SDE by solving the adjoint equations backwards along the same path."""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchivp.checks import check_number, check_positive, check_whole_number
from torchivp.error_norm import ErrorNorm
from torchivp.gradients.inputs import now, refuse_to_differentiate
from torchivp.gradients.sde_backward import SDEBackward, add_all, solve_plainly
from torchivp.gradients.sde_inputs import SDEInputs, find_sde_inputs, refuse_unknown_sde_leaves
from torchivp.gradients.sde_reversible import SDEReversible
from torchivp.methods.sde.method import SDEMethod
from torchivp.methods.sde.reversible_heun import ReversibleHeun
from torchivp.noise.along import PathNoise
from torchivp.noise.increment import Increment, join
from torchivp.sde.terms import StratonovichTerms, Terms
from torchivp.sde_loop.integrate import SDEIntegration
from torchivp.solution import Outcome, SolveError, Status
from torchivp.stepsize.clip import Clip
from torchivp.stepsize.pid import History, PIDController

REVERSIBLE = "adjoint_reversible_heun"


@dataclass(frozen=True)
class SDEAdjoint:
    """The stochastic adjoint: the gradient from another solve, backwards, along the same path.

    The gradient a of the state and those of the parameters follow da = -a ∂f/∂y dt - a ∂g/∂y ∘ dW backwards in time,
    together with the state itself, which starts anew at every output from the one found there. An Itô equation is
    solved backwards in Stratonovich's calculus, with its corrected drift. Memory does not grow with the number of
    steps. The gradient converges to the right one with the size of the steps, but is not that of the steps taken, and
    where paths contract, the way back is unstable. A gradient that is to be differentiated again, `create_graph=True`,
    is that of the steps, in the memory of `SDEDirect`. Li, Wong, Chen and Duvenaud, "Scalable gradients for stochastic
    differential equations", AISTATS (2020).

    Args:
        method: "midpoint", "heun", "euler_heun", or, for noise that commutes, "milstein". For Itô equations "euler"
            too: since all of this is in Stratonovich's calculus, where Euler's method does not converge, it stands for
            "euler_heun". None for "midpoint".
        adaptive: choose the steps of the backward solve by their error; if not, they are those of the forward solve.
        rtol: relative tolerance of adaptive steps, for the state and for its gradient.
        atol: absolute tolerance, likewise.
        dt: the size of the first adaptive step.
        dt_min: the smallest size of an adaptive step. Such a step is accepted whatever its error, with a warning.
        max_steps: the largest number of attempts at adaptive steps.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument makes no sense.
    """

    method: str | None = None
    adaptive: bool = False
    rtol: float = 1e-5
    atol: float = 1e-4
    dt: float = 1e-3
    dt_min: float = 1e-5
    max_steps: int = 10_000_000
    name = "adjoint"

    def __post_init__(self) -> None:
        for name in ("rtol", "atol"):
            value = check_number(f"adjoint_{name}", getattr(self, name))
            if not 0.0 <= value < math.inf:
                raise ValueError(f"adjoint_{name} must be finite and not negative, got {value}")
        for name in ("dt", "dt_min"):
            check_positive(name, check_number(name, getattr(self, name)))
        check_whole_number("adjoint_options['max_num_steps']", self.max_steps, 1)

    def solve(self, integration: SDEIntegration, parameters: Any, owner: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Integrate; returns the states [T, rows, size] and what the method carries after the last step.

        Raises:
            ValueError: the method does not solve this adjoint equation, or adaptive steps lack a path that answers at
                any time, or the first carry needs a gradient.
        """
        method = check_adjoint_method(self.method, integration.terms, integration.method)
        if self.adaptive and not isinstance(integration.noise, PathNoise):
            raise ValueError(
                "adaptive steps of the adjoint need a Brownian motion that can be asked at any time: pass "
                "bm=BrownianInterval(...), or adjoint_adaptive=False"
            )
        inputs = find_sde_inputs("sdeint_adjoint", integration, parameters, owner)
        if inputs is None:
            return solve_plainly(integration, parameters, owner)
        if any(x.requires_grad for x in inputs.carried):
            raise ValueError(
                "the adjoint equations have no gradient for extra_solver_state: detach it, or use "
                f"adjoint_method={REVERSIBLE!r} with method='reversible_heun', or sdeint with gradient='checkpointed'"
            )
        states, carry = _AdjointSolve(inputs, self, method).solve()
        refusal = (
            "the adjoint equations have no gradient for what the method carries, which extra=True returns: use "
            f"adjoint_method={REVERSIBLE!r} with method='reversible_heun', or sdeint with gradient='checkpointed'"
        )
        carry = [x.detach() for x in carry]
        return states, tuple(refuse_to_differentiate(refusal, carry, inputs.tensors) if carry else carry)


def find_adjoint(method: Any, forward: SDEMethod, **settings: Any) -> SDEAdjoint | SDEReversible:
    """The gradient of `sdeint_adjoint`, for `adjoint_method=method`, after a forward solve by the method `forward`.

    Args:
        method: the name, or None for a good choice: the exact gradient of the reversible Heun method after that, else
            "midpoint".
        forward: the method of the forward solve.
        settings: the other arguments of `SDEAdjoint`. The reversible gradient takes back the steps of the forward solve
            and needs none of them.

    Raises:
        TypeError: a setting, or the name, is of the wrong type.
        ValueError: there is no such method.
    """
    if (method is None and isinstance(forward, ReversibleHeun)) or method == REVERSIBLE:
        if not isinstance(forward, ReversibleHeun):
            raise ValueError(
                f"adjoint_method={REVERSIBLE!r} takes back the steps of method='reversible_heun' alone, and the method "
                f"is {type(forward).__name__}: leave adjoint_method out"
            )
        return SDEReversible()
    if method is not None and not isinstance(method, str):
        raise TypeError(f"adjoint_method must be a name such as 'midpoint', got {type(method).__name__}")
    return SDEAdjoint(method, **settings)


def check_adjoint_method(name: str | None, terms: Terms, forward: SDEMethod) -> str:
    """The method for the adjoint equations that goes by this name; None for the default.

    Raises:
        ValueError: there is none.
    """
    if name is None:
        return "midpoint"
    allowed = {"midpoint": "midpoint", "heun": "heun", "euler_heun": "euler_heun"}
    if terms.noise_type != "general":
        allowed["milstein"] = "milstein"
    if terms.sde_type == "ito":
        allowed["euler"] = "euler_heun"
    if name not in allowed:
        names = [*allowed, *([REVERSIBLE] if isinstance(forward, ReversibleHeun) else [])]
        close = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"no adjoint_method {name!r} for SDEs of type {terms.sde_type!r} with {terms.noise_type} noise.{hint} "
            f"Choose one of {', '.join(map(repr, names))}"
        )
    return allowed[name]


class _AdjointSolve(SDEBackward):
    """One solve: its end, and the way back from there."""

    keeps_states = True

    def __init__(self, inputs: SDEInputs, plan: SDEAdjoint, method: str) -> None:
        super().__init__(inputs)
        self.plan = plan
        self.method = method

    def forward(self) -> tuple[Tensor, Sequence[Tensor]]:
        outputs, self.end, carry = self.inputs.integration.run()
        return torch.stack(outputs), carry

    def gradients(self, states: Tensor | None, grads: Sequence[Tensor]) -> Sequence[Tensor | None]:
        assert states is not None
        way = _AdaptiveWayBack if self.plan.adaptive else _WayBack
        a, shared = way(self.inputs, self.plan, self.method, self.end, states, grads[0]).run()
        return [a, *(None for _ in self.inputs.carried), *shared]


State = tuple[Tensor, Tensor]
"""The state y, and the gradient a of it."""

Shared = list[tuple[float, Sequence[Tensor | None]]]
"""Contributions of a step to the gradients of args and parameters: weights, and what they multiply."""


class _Pull:
    """Drift and diffusion at states, with the products of gradients and their derivatives.

    Args:
        terms: in Stratonovich's calculus.
        shared: the tensors of `args` and the parameters.
    """

    def __init__(self, terms: Terms, shared: Sequence[Tensor]) -> None:
        self.terms = terms
        self.shared = list(shared)

    def field(self, t: Tensor, y: Tensor, noise: Increment) -> tuple[Tensor, Tensor]:
        """The field f dt + g W, with its graph, at a leaf in the place of `y`; and the leaf."""
        y = y.detach().requires_grad_()
        f, prod = self.terms.f_and_g_prod(t, y, noise.W)
        return prod.add(f, alpha=noise.dt), y

    def back(
        self, value: Tensor, y: Tensor, a: Tensor, shared: bool = True, again: bool = False
    ) -> tuple[Tensor, Tensor, Sequence[Tensor | None]]:
        """The `value`, a ∂value/∂y, and, if asked for, the same for the shared tensors.

        The graph is kept if it is needed `again`.
        """
        leaves = [y, *self.shared] if shared else [y]
        found: Sequence[Tensor | None] = [None] * len(leaves)
        if value.requires_grad:
            found = torch.autograd.grad(value, leaves, a, allow_unused=True, retain_graph=again)
        dy, *others = found
        return value.detach(), torch.zeros_like(a) if dy is None else dy, others


def _midpoint(pull: _Pull, t0: Tensor, t1: Tensor, y: Tensor, a: Tensor, noise: Increment) -> tuple[State, Shared]:
    v, da, _ = pull.back(*pull.field(t1, y, noise), a, shared=False)
    y_middle, a_middle = y.sub(v, alpha=0.5), a.add(da, alpha=0.5)
    v, da, shared = pull.back(*pull.field(t0 + 0.5 * (t1 - t0), y_middle, noise), a_middle)
    return (y - v, a + da), [(1.0, shared)]


def _heun(pull: _Pull, t0: Tensor, t1: Tensor, y: Tensor, a: Tensor, noise: Increment) -> tuple[State, Shared]:
    v1, da1, shared1 = pull.back(*pull.field(t1, y, noise), a)
    v0, da0, shared0 = pull.back(*pull.field(t0, y - v1, noise), a + da1)
    return (y.sub(v0 + v1, alpha=0.5), a.add(da0 + da1, alpha=0.5)), [(0.5, shared1), (0.5, shared0)]


def _euler_heun(pull: _Pull, t0: Tensor, t1: Tensor, y: Tensor, a: Tensor, noise: Increment) -> tuple[State, Shared]:
    y1 = y.detach().requires_grad_()
    f, prod = pull.terms.f_and_g_prod(t1, y1, noise.W)
    v1, da1, shared1 = pull.back(prod, y1, a, again=True)
    drift, da, shared = pull.back(f * noise.dt, y1, a)
    y0 = (y - v1).requires_grad_()
    v0, da0, shared0 = pull.back(pull.terms.g_prod(t0, y0, noise.W), y0, a + da1)
    y, a = y - drift, a + da
    return (y.sub(v0 + v1, alpha=0.5), a.add(da0 + da1, alpha=0.5)), [(1.0, shared), (0.5, shared1), (0.5, shared0)]


def _milstein(pull: _Pull, t0: Tensor, t1: Tensor, y: Tensor, a: Tensor, noise: Increment) -> tuple[State, Shared]:
    """Euler's step, and half the derivative of the noise's field in its own direction.

    With p(y) = g W and q(y, a) = a ∂p/∂y, the noise moves (y, a) backwards along (-p, q). In that direction, held
    constant, the derivative of -p is (∂p/∂y) p, and that of q, and of its like for the parameters, is q ∂p - ∂<q, p>:
    all of them are gradients of p and q with respect to a, y and the parameters.
    """
    y1, a1 = y.detach().requires_grad_(), a.detach().requires_grad_()
    f, p = pull.terms.f_and_g_prod(t1, y1, noise.W)
    leaves = [y1, *pull.shared]
    firsts: Sequence[Tensor | None] = [None] * len(leaves)
    if p.requires_grad:
        firsts = torch.autograd.grad(p, leaves, a1, allow_unused=True, create_graph=True)
    direction, q = p.detach(), firsts[0]
    seconds: Sequence[Tensor | None] = [None] * (len(leaves) + 1)
    if q is not None:
        roots, seeds = [p], [q.detach()]
        if q.requires_grad:
            roots, seeds = [p, q], [q.detach(), -direction]
        seconds = torch.autograd.grad(roots, [a1, *leaves], seeds, allow_unused=True, retain_graph=True)
    drift, da, shared = pull.back(f * noise.dt, y1, a)
    y, a = y - drift - direction, a + da
    slope, bend, *curved = seconds
    if slope is not None:
        y = y.sub(slope, alpha=0.5)
    if q is not None:
        a = a + q.detach()
    if bend is not None:
        a = a.add(bend, alpha=0.5)
    return (y, a), [(1.0, shared), (1.0, [None if x is None else x.detach() for x in firsts[1:]]), (0.5, curved)]


_Step = Callable[[_Pull, Tensor, Tensor, Tensor, Tensor, Increment], tuple[State, Shared]]

_STEPS: dict[str, _Step] = {
    "midpoint": _midpoint,
    "heun": _heun,
    "euler_heun": _euler_heun,
    "milstein": _milstein,
}
"""Steps of the state y and its gradient a from t1 back to t0, with the increment of the path from t0 to t1."""


class _WayBack:
    """The backward solve on the steps of the forward one.

    Args:
        inputs: what is differentiated.
        plan: the settings.
        method: takes the steps.
        end: the last state.
        states: the states at the outputs.
        grad: the gradient of these.
    """

    def __init__(
        self, inputs: SDEInputs, plan: SDEAdjoint, method: str, end: Tensor, states: Tensor, grad: Tensor
    ) -> None:
        start = inputs.integration
        self.integration, leaves = inputs.on_leaves(start.y0, start.carry)
        terms = self.integration.terms
        shared = leaves[1 + len(inputs.carried) :]
        self.pull = _Pull(StratonovichTerms(terms) if terms.sde_type == "ito" else terms, shared)
        self.inputs, self.plan = inputs, plan
        self.step = _STEPS[method]
        self.states, self.grads = states.detach(), grad.unbind()
        self.y, self.a = end.detach(), torch.zeros_like(end)
        self.totals: list[Tensor | None] = [None] * len(shared)

    def run(self) -> tuple[Tensor, Sequence[Tensor | None]]:
        """The gradients of the initial state, and of args and parameters."""
        self.go_back()
        return self.a + self.grads[0], self.totals

    def go_back(self) -> None:
        """From the end to the start."""
        integration, outputs = self.integration, self.integration.steps.outputs
        length, left = integration.noise.block, len(self.grads) - 1
        for first in reversed(range(0, integration.steps.count, length)):
            last = min(first + length, integration.steps.count)
            increments, times = integration.increments(first, last)
            self.check(times[-1])
            for i in range(last - first - 1, -1, -1):
                before = None
                while outputs[left][0] == first + i:
                    share, grad = outputs[left][1], self.grads[left]
                    self.a = self.a.add(grad, alpha=share)
                    if share == 1.0:
                        self.y = self.states[left]
                    else:  # interpolated between the ends of the step
                        before = grad * (1.0 - share) if before is None else before.add(grad, alpha=1.0 - share)
                    left -= 1
                (self.y, self.a), shared = self.take(times[i], times[i + 1], increments[i])
                self.add(shared)
                if before is not None:
                    self.a = self.a + before

    def take(
        self, t0: Tensor, t1: Tensor, noise: Increment, y: Tensor | None = None, a: Tensor | None = None
    ) -> tuple[State, Shared]:
        """A step from t1 back to t0, from where the solve is, or from `y` and `a`."""
        with torch.enable_grad():
            (y, a), shared = self.step(self.pull, t0, t1, self.y if y is None else y, self.a if a is None else a, noise)
        return (y.detach(), a.detach()), shared

    def add(self, shared: Shared) -> None:
        """Add the contributions of a step."""
        for weight, found in shared:
            add_all(self.totals, found, weight)

    def check(self, t: Tensor) -> None:
        """Look for tensors that were not found at the start."""
        if self.inputs.complete:
            return
        with torch.enable_grad():
            oldest = now()
            value, y = self.pull.field(
                t, self.y, Increment(1.0, self.y.new_ones(len(self.y), self.pull.terms.channels))
            )
            refuse_unknown_sde_leaves([value], oldest, [y, *self.pull.shared])


class _AdaptiveWayBack(_WayBack):
    """The backward solve on steps of its own, each taken once whole and once in halves, on the same path.

    The steps land on the outputs.
    """

    def go_back(self) -> None:
        plan, ts = self.plan, [self._moment(*output) for output in self.integration.steps.outputs]
        left = len(ts) - 1
        if left == 0:
            return
        self.check(self.integration.time(ts[-1]))
        controller, history, h = self._controller(), History(), max(plan.dt, plan.dt_min)
        clip = Clip(ts[-2::-1], 1.0 if ts[0] > ts[-1] else -1.0)
        order = 0.5 if self.pull.terms.noise_type == "general" else 1.0
        t1, accepted, rejected, forced = ts[-1], 0, 0, 0
        self._land(left)
        while not clip.done:
            t0 = clip.step_end(t1, h, stretch=not history.rejected)
            taken, middle = abs(t1 - t0), t1 + 0.5 * (t0 - t1)
            if middle in (t0, t1):
                raise SolveError(self._stuck(t1, h))
            if accepted + rejected >= plan.max_steps:
                raise SolveError(self._out_of_steps(t1, ts, taken, accepted, rejected))
            error, state, shared = self._try(t0, middle, t1)
            accept, next_h, next_history = controller.adapt(error, taken, h, history, order - 0.5)
            # A step cut very short to land on an output says nothing about the size of the next one.
            if not accept or taken > 0.1 * h or next_h > h:
                h, history = next_h, next_history
            if not accept:
                if not math.isfinite(error) and taken <= plan.dt_min:
                    raise SolveError(self._not_finite(t1, taken))
                rejected += 1
                continue
            accepted += 1
            forced += error > 1.0
            self.y, self.a = state
            self.add(shared)
            t1 = t0
            if clip.reached(t0):
                left -= 1
                if left > 0:
                    self._land(left)
        if forced:
            warnings.warn(
                f"{forced} of {accepted} adaptive steps of the adjoint, of the size dt_min = {plan.dt_min:g}, do not "
                "meet the tolerances; loosen adjoint_rtol and adjoint_atol, or make dt_min smaller",
                stacklevel=2,
            )

    def _controller(self) -> PIDController:
        return PIDController(kp=0.1, ki=0.3, min_step=self.plan.dt_min, accept_at_min_step=True)

    def _land(self, k: int) -> None:
        """The solve is at the output `k`."""
        if self.integration.steps.outputs[k][1] == 1.0:
            self.y = self.states[k]
        self.a = self.a + self.grads[k]

    def _try(self, t0: float, middle: float, t1: float) -> tuple[float, State, Shared]:
        """A step from t1 back to t0 in halves: its scaled error, where it leads, and what it contributes."""
        noise = self.integration.noise
        assert isinstance(noise, PathNoise), "only a path can be asked for steps of any size"
        begin, halfway, end = map(self.integration.time, (t0, middle, t1))
        first, second = noise.between(t0, middle), noise.between(middle, t1)
        whole, _ = self.take(begin, end, join(first, second))
        half, shared = self.take(halfway, end, second)
        state, others = self.take(begin, halfway, first, *half)
        after, before = torch.cat(state, dim=1), torch.cat((self.y, self.a), dim=1)
        return self._norm()(after - torch.cat(whole, dim=1), before, after), state, [*shared, *others]

    def _norm(self) -> ErrorNorm:
        """Of the state and its gradient, whichever is worse."""
        size = self.y.shape[1]
        return ErrorNorm(self.plan.rtol, self.plan.atol, [slice(0, size), slice(size, 2 * size)], self.y.dtype)

    def _moment(self, step: int, share: float) -> float:
        """The time of an output."""
        if step < 0:
            return self.integration.steps.times(0, 0)[0]
        begin, end = self.integration.steps.times(step, step + 1)
        return end if share == 1.0 else begin + share * (end - begin)

    def _stuck(self, t: float, h: float) -> Status:
        sentence = (
            f"the step size of the adjoint fell to {h:.3g} at t = {t:.9g}, too small to move time: the tolerances "
            "cannot be met there; loosen adjoint_rtol and adjoint_atol, or raise dt_min"
        )
        return Status(Outcome.STEP_UNDERFLOW, sentence, t)

    def _out_of_steps(self, t: float, ts: Sequence[float], taken: float, accepted: int, rejected: int) -> Status:
        sentence = (
            f"{self.plan.max_steps} step attempts ({accepted} accepted, {rejected} rejected) took the adjoint from t = "
            f"{ts[-1]:g} back to t = {t:g} of {ts[0]:g}, where the step size is {taken:.3g}: raise "
            "adjoint_options={'max_num_steps': ...}, or loosen adjoint_rtol and adjoint_atol"
        )
        return Status(Outcome.MAX_STEPS, sentence, t)

    def _not_finite(self, t: float, taken: float) -> Status:
        sentence = (
            f"the adjoint is not finite at t = {t:.9g} even with the smallest step, dt_min = {taken:.3g}: the way back "
            "may be unstable; use sdeint with gradient='checkpointed'"
        )
        return Status(Outcome.NON_FINITE, sentence, t)
