"""Differentiate a solve of an SDE by solving the adjoint equations backwards along the same path."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from torchivp.checks import check_number, check_positive, check_whole_number, did_you_mean
from torchivp.gradients.draws import solving_backwards
from torchivp.gradients.refusals import refuse_to_differentiate
from torchivp.gradients.sde_adjoint_adaptive import AdaptiveWayBack
from torchivp.gradients.sde_adjoint_way import WayBack
from torchivp.gradients.sde_backward import SDEBackward, solve_plainly
from torchivp.gradients.sde_inputs import SDEInputs, find_sde_inputs
from torchivp.gradients.sde_reversible import SDEReversible
from torchivp.methods.sde import SDE_METHODS
from torchivp.methods.sde.method import SDEMethod
from torchivp.methods.sde.reversible_heun import ReversibleHeun
from torchivp.noise.along import PathNoise
from torchivp.sde.terms import Terms
from torchivp.sde_loop.halving import Pace
from torchivp.sde_loop.integrate import SDEIntegration
from torchivp.solution import SolveError, failure_class

REVERSIBLE = "adjoint_reversible_heun"


@dataclass(frozen=True)
class SDEAdjoint:
    """The stochastic adjoint: the gradient from another solve, backwards, along the same path.

    The gradient a of the state and those of the parameters follow da = -a ∂f/∂y dt - a ∂g/∂y ∘ dW backwards in time,
    together with the state itself, which starts anew at every output from the one found there. An Itô equation is
    solved backwards in Stratonovich's calculus, with its corrected drift. Memory does not grow with the number of
    steps. The gradient converges to the right one with the size of the steps, but is not that of the steps taken, and
    where paths contract, the way back is unstable, with a warning where it is lost. A gradient that is to be
    differentiated again, `create_graph=True`, is that of the steps, in the memory of `SDEDirect`. Li, Wong, Chen and
    Duvenaud, "Scalable gradients for stochastic differential equations", AISTATS (2020).

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
        failure: what is raised if adaptive steps do not get to the start.

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
    failure: type[SolveError] = field(default_factory=failure_class)
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

    def pace(self, method: str, noise_type: str) -> Pace:
        """What the sizes of adaptive steps by a method depend on besides the error."""
        strong = SDE_METHODS[method].orders["stratonovich", noise_type].strong
        assert strong is not None, "all methods for the adjoint have one"
        return Pace(self.dt, self.dt_min, strong, self.max_steps, self.failure)


def find_adjoint(method: Any, terms: Terms, forward: SDEMethod, **settings: Any) -> SDEAdjoint | SDEReversible:
    """The gradient of `sdeint_adjoint`, for `adjoint_method=method`, after a forward solve by the method `forward`.

    Args:
        method: the name, or None for a good choice: the exact gradient of the reversible Heun method after that, else
            "midpoint".
        terms: drift and diffusion.
        forward: the method of the forward solve.
        settings: the other arguments of `SDEAdjoint`. The reversible gradient takes back the steps of the forward
            solve: it needs none of them, and `adaptive` is refused.

    Raises:
        TypeError: a setting, or the name, is of the wrong type.
        ValueError: there is no such method, or it does not suit the equation or the other arguments.
    """
    if (method is None and isinstance(forward, ReversibleHeun)) or method == REVERSIBLE:
        if not isinstance(forward, ReversibleHeun):
            raise ValueError(
                f"adjoint_method={REVERSIBLE!r} takes back the steps of method='reversible_heun' alone, and the method "
                f"is {type(forward).__name__}: leave adjoint_method out"
            )
        if settings.get("adaptive"):
            raise ValueError(
                f"adjoint_adaptive=True has no meaning for adjoint_method={REVERSIBLE!r}, which takes back the steps "
                "of the forward solve: leave it out, or pass adjoint_method='midpoint'"
            )
        return SDEReversible()
    if method is not None and not isinstance(method, str):
        raise TypeError(f"adjoint_method must be a name such as 'midpoint', got {type(method).__name__}")
    check_adjoint_method(method, terms, forward)
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
        raise ValueError(
            f"no adjoint_method {name!r} for SDEs of type {terms.sde_type!r} with {terms.noise_type} noise."
            f"{did_you_mean(name, names)} "
            f"Choose one of {', '.join(map(repr, names))}"
        )
    return allowed[name]


class _AdjointSolve(SDEBackward):
    """One solve: its end, and the way back from there."""

    exact = False
    keeps_results = True

    def __init__(self, inputs: SDEInputs, plan: SDEAdjoint, method: str) -> None:
        super().__init__(inputs)
        self.plan = plan
        self.method = method

    def run(self) -> tuple[Tensor, Sequence[Tensor]]:
        outputs, self.end, carry = self.inputs.integration.run()
        return torch.stack(outputs), carry

    def gradients(
        self, tensors: Sequence[Tensor], results: Sequence[Tensor], grads: Sequence[Tensor]
    ) -> Sequence[Tensor | None]:
        states = results[0]
        plan, known = self.plan, (self.inputs, self.method, self.end, states, grads[0])
        if plan.adaptive:
            pace = plan.pace(self.method, self.inputs.integration.terms.noise_type)
            way = AdaptiveWayBack(*known, pace, plan.rtol, plan.atol)
        else:
            way = WayBack(*known)
        with solving_backwards("sdeint_adjoint", states.device, "the SDE"):
            a, shared = way.run()
        return [a, *(None for _ in self.inputs.carried), *shared]
