"""Differentiate by solving the continuous adjoint equations backwards in time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torchivp.callbacks import Callbacks
from torchivp.checks import check_flag, check_whole_number
from torchivp.error_norm import ErrorNorm, Tolerance, check_tolerance
from torchivp.generators import Generators
from torchivp.gradients.captured import LateLeaves
from torchivp.gradients.direct import Direct
from torchivp.gradients.draws import check_led_back, solving_backwards
from torchivp.gradients.drift import Drift
from torchivp.gradients.inputs import GradientInputs, find_parameters, refuse_inside_transform, user_function
from torchivp.gradients.node import NodeSolve, as_node
from torchivp.gradients.refusals import (
    refuse_dense_output,
    refuse_forward_mode,
    refuse_preconditioner,
    refuse_steps_again,
)
from torchivp.gradients.vjp import vjp
from torchivp.integrate import Controller, Integration, at_steps, check_controller, check_norm
from torchivp.methods import find_method
from torchivp.methods.method import Method
from torchivp.problem import Problem
from torchivp.recording import Interpolants, Outputs
from torchivp.references import Sources
from torchivp.solution import Outcome, Stats, Status
from torchivp.state import StateLayout
from torchivp.stepsize.stops import Stops
from torchivp.times import Times
from torchivp.torch_func import inside_transform

Norm = Callable[[tuple[Tensor, ...]], Any]


@dataclass(frozen=True)
class Backsolve:
    """The continuous adjoint, `da/dt = -a^T df/dy`, solved backwards together with the state and the parameters.

    Memory does not depend on the number of steps: only the outputs are kept. The gradient is as accurate as the
    tolerances of the backward solve, not exact for the steps taken; one that is to be differentiated again,
    `create_graph=True`, is that of the steps, in the memory of `Direct`. The state is solved backwards too, from the
    stored output of each interval, which is unstable for strongly dissipative systems: a RuntimeWarning says where the
    states found are not those of the solve. Source: Pontryagin et al.
    (1962); Chen et al., "Neural ordinary differential equations" (2018).

    The error is measured by the largest root mean square of state, adjoint and each parameter's gradient, whatever
    the norm of the forward solve, unless `norm` is given. In a batch, or with events, each row is solved backwards on
    its own, with the norm of the forward solve for state and adjoint; the gradients of what rows share are integrals
    along its steps, as with `seminorm`, and `norm` is refused.

    Args:
        rtol: relative tolerance of the backward solve, for state and adjoint alike; None for that of the forward one.
        atol: absolute tolerance of the backward solve; None for that of the forward one.
        method: the method of the backward solve; None for that of the forward one.
        controller: what sizes the steps of the backward solve; None for the forward one's.
        seminorm: leave the parameters out of the error estimate, which saves steps (Kidger, Chen and Lyons, "Hey,
            that's not an ODE", ICML 2021).
        norm: another norm, a function of the tuple `(t, y, adjoint, *parameters)` of scaled errors, in which `t`, for
            the adjoint of time, is always zero, and the leaves of a state with several stand one after the other:
            `(t, *y, *adjoint, *parameters)`.
        stops: set by `odeint_adjoint` from its options `step_t`, `jump_t` and `perturb`; None for the forward solve's.
        callbacks: set by `odeint_adjoint` from the attributes `callback_..._adjoint` of func: what is told of every
            step of the backward solve.
        max_steps: the largest number of step attempts in the backward solve; None for the forward one's.

    Raises:
        TypeError, ValueError: an option does not make sense, here or when a solve begins.

    Examples:
        >>> import torch
        >>> from torchivp import Backsolve, solve_ivp
        >>> y0 = torch.ones(1, dtype=torch.float64, requires_grad=True)
        >>> end = solve_ivp(lambda t, y: -y, (0, 1), y0, gradient=Backsolve(rtol=1e-8)).final
        >>> round(torch.autograd.grad(end, y0)[0].item(), 5)
        0.36788
    """

    rtol: Any = None
    atol: Any = None
    method: str | type[Method] | None = None
    controller: Controller | None = None
    seminorm: bool = False
    norm: Norm | None = None
    stops: Stops | None = None
    callbacks: Callbacks | None = None
    max_steps: int | None = None
    name = "backsolve"

    def cited(self) -> Sources:
        """What it differentiates with, and the sources of that."""
        found: Sources = {"gradient backsolve": ("Pontryagin1962", "Chen2018")}
        if self.seminorm:
            found["its seminorm"] = ("KidgerChenLyons2021",)
        return found if self.method is None else {**found, **find_method(self.method).cited()}

    def __post_init__(self) -> None:
        check_flag("seminorm", self.seminorm)
        if self.norm is not None and not callable(self.norm):
            raise TypeError(f"norm must be a function of a tuple of scaled errors, got {self.norm!r}")
        if self.norm is not None and self.seminorm:
            raise ValueError("seminorm=True names a norm, and norm= gives another: drop one of them")
        if self.max_steps is not None:
            check_whole_number("max_steps", self.max_steps, 1)

    def tolerances(self, forward: ErrorNorm, layout: StateLayout) -> tuple[Tolerance, Tolerance]:
        """Those of the backward solve."""
        rtol = forward.rtol if self.rtol is None else check_tolerance("the adjoint's rtol", self.rtol, layout)
        atol = forward.atol if self.atol is None else check_tolerance("the adjoint's atol", self.atol, layout)
        return rtol, atol

    def solve(
        self, integration: Integration, parameters: Sequence[Tensor] | None, interpolants: Interpolants | None
    ) -> tuple[Tensor, list[float], Status, Stats]:
        """Integrate; returns the states, their times, how it ended and what it cost.

        The states are [T, size], or [T, *shape] where the state is one tensor: then they hang on the node of the
        graph that `odeint_adjoint` is, with nothing in between.
        """
        if inside_transform():
            refuse_inside_transform("gradient='backsolve' (odeint_adjoint)", integration.problem, parameters)
            return Direct().solve(integration, None, interpolants)
        found = find_parameters(integration, parameters)
        inputs = GradientInputs(integration.problem, found)
        if not inputs.needed:
            return Direct().solve(integration, found, interpolants)
        refuse_forward_mode("gradient='backsolve' (odeint_adjoint)", "gradient='direct' (odeint)")
        refuse_dense_output(interpolants is not None)
        controller = self.controller or integration.controller
        backward_method = type(integration.method) if self.method is None else find_method(self.method)
        backward_method = at_steps(backward_method, controller)
        check_controller(controller, backward_method)
        refuse_preconditioner(backward_method)
        layout = user_function(integration.problem).layout
        rtol, atol = self.tolerances(integration.norm, layout)
        check_norm(ErrorNorm(rtol, atol, (), layout.dtype), controller, "the adjoint's ")
        solve = _AdjointSolve(self, backward_method, rtol, atol, integration, inputs)
        (states,) = as_node(solve, inputs.tensors)
        return states, solve.times, solve.status, solve.stats


class _AdjointSolve(NodeSolve):
    """A solve and its adjoint: what the forward pass leaves for the backward pass."""

    exact = False
    keeps_results = True
    status: Status
    stats: Stats
    times: list[float]
    reached: int
    ended: Tensor

    def __init__(
        self,
        options: Backsolve,
        method: type[Method],
        rtol: Tolerance,
        atol: Tolerance,
        integration: Integration,
        inputs: GradientInputs,
    ):
        self.options = options
        self.method = method
        self.rtol = rtol
        self.atol = atol
        self.integration = integration
        self.inputs = inputs
        self.late = inputs.late
        self.generators = Generators(integration.problem.y0.device)
        self.norm = self.default_norm()
        self.adjoint_options = {"norm": self.norm}

    def forward(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """The states at the outputs, in their shape if the state is one tensor; the rest goes into the attributes."""
        self.drawn = self.generators.now()
        plain = self.integration.with_problem(self.inputs.without_gradient())
        outputs = Outputs(plain.problem.times)
        self.status, self.stats = plain.run([outputs])
        self.reached, self.ended = len(outputs.t), outputs.last.clone()
        states = outputs.complete(self.status)
        self.times = outputs.t
        if self.status.outcome is Outcome.EVENT:
            self.reached = len(outputs.t)
            self.inputs.end_at(self.status.t)
        return [self._shaped(states)]

    def _shaped(self, states: Tensor) -> Tensor:
        """The states, [T, size], in their shape if the state is one tensor."""
        layout = user_function(self.integration.problem).layout
        return states if layout.template is None else layout.unflatten(states, (len(states),))

    @property
    def attributes(self) -> dict[str, Any]:
        # Where programs written for torchdiffeq look for the norm, and exchange it before the backward pass.
        return {"adjoint_options": self.adjoint_options}

    def again(self, tensors: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        refuse_steps_again(type(self.integration.method))
        problem, leaves = self.inputs.on_leaves(self.inputs.problem.y0)
        outputs = Outputs(problem.times)
        with self.generators.kept():
            self.generators.put_back(self.drawn)
            status, _ = replace(self.integration, problem=problem, callbacks=None).run([outputs])
        norm = self.integration.norm
        check_led_back(outputs.last, self.ended, problem.y0, norm.rtol, norm.atol)
        return [self._shaped(outputs.complete(status))], leaves

    def gradients(
        self, tensors: Sequence[Tensor], results: Sequence[Tensor], grads: Sequence[Tensor]
    ) -> Sequence[Tensor | None]:
        """The gradients of all inputs, given that of the states."""
        rows = (len(results[0]), self.inputs.problem.y0.shape[1])  # flat again
        grad, states, norm = grads[0].reshape(rows), results[0].reshape(rows), self.adjoint_options["norm"]
        reached = self.reached
        while reached > 1 and not bool((grad[reached - 1] != 0).any()):
            reached -= 1  # nobody asks about the last output, which may be far away
        times, grad, states = self.times[:reached], grad[:reached], states[:reached]
        problem, leaves = self.inputs.on_leaves(self.inputs.problem.y0)
        others = [leaf for leaf in leaves[1:] if leaf is not problem.times.tensor]
        system = _AdjointSystem(problem, others, leaves, self.inputs.late)
        start = problem.times.start
        starts_with_output = bool(times) and times[0] == start
        moving = list(range(1 if starts_with_output else 0, len(times)))
        z = system.initial(states[-1:], grad[-1:]) if moving else system.initial(problem.y0.detach(), None)
        if moving:
            with self.inputs.late.watching():
                z = self._solve_backwards(system, z, [times[i] for i in moving], grad[moving], states[moving], norm)
        _, adjoint, *rest = system.split(z)
        time_gradient = []
        if problem.times.tensor is not None:
            time_gradient = [self._time_gradient(problem, times, grad, states, adjoint, moving)]
        if starts_with_output:
            adjoint = adjoint + grad[:1]
        return [adjoint, *time_gradient, *rest]

    def _solve_backwards(
        self, system: _AdjointSystem, z: Tensor, times: list[float], grad: Tensor, states: Tensor, norm: Norm
    ) -> Tensor:
        """Solve from the last of the `times` to the start; at each earlier one its output's gradient joins."""
        options, forward = self.options, self.integration

        drift, row = Drift(states[None], grad[None], self.rtol, self.atol), torch.zeros(1, dtype=torch.int64)

        def join_output(i: int, z: Tensor) -> Tensor:
            drift.compare(z[:, system.state], states[i : i + 1], z[:, system.adjoint], row)
            z = z.clone()
            z[:, system.state] = states[i]
            z[:, system.adjoint] += grad[i]
            return z

        problem = Problem(system, z, Times(times[-1], forward.problem.times.start, ()), forward.problem.real_dtype)
        error_norm = self._error_norm(system, norm)
        callbacks = options.callbacks and replace(options.callbacks, unflatten=system.as_tuple)
        backward = Integration(
            problem=problem,
            method=self.method(z, problem.real_dtype, error_norm),
            controller=options.controller or forward.controller,
            norm=error_norm,
            max_steps=forward.max_steps if options.max_steps is None else options.max_steps,
            describe=system.describe,
            stops=forward.stops if options.stops is None else options.stops,
            changes={t: partial(join_output, i) for i, t in enumerate(times[:-1])},
            callbacks=callbacks,
        )
        end = _End()
        with solving_backwards("gradient='backsolve' (odeint_adjoint)", z.device):
            status, stats = backward.run([end])
        self.stats.backward = stats
        if not status.ok:
            raise forward.failure(failed_backwards("in the backward solve", status))
        drift.compare(end.y[:, system.state], forward.problem.y0, end.y[:, system.adjoint], row)
        drift.warn()
        return end.y

    def default_norm(self) -> Norm:
        """What measures the error unless `adjoint_options` is changed, as a function of `_AdjointSystem.as_tuple`."""
        layout = user_function(self.integration.problem).layout
        chosen = _seminorm(1 + 2 * len(layout.sizes)) if self.options.seminorm else largest_root_mean_square
        norm = self.options.norm or chosen

        def of_tuple(tensors: tuple[Tensor, ...]) -> Any:
            t, y, adjoint, *parameters = tensors
            states = [leaf for part in (y, adjoint) for leaf in layout.leaves(part.reshape(1, layout.size))]
            size = norm((t, *states, *parameters))
            return size if isinstance(size, Tensor) else t.new_tensor(size)

        return of_tuple

    def _error_norm(self, system: _AdjointSystem, norm: Norm) -> ErrorNorm:
        dtype = self.inputs.problem.y0.dtype
        rtol, atol = system.tolerance(self.rtol), system.tolerance(self.atol)
        if norm is self.norm and self.options.norm is None:  # the same, without taking the tensor to pieces
            parts = system.state_parts if self.options.seminorm else [*system.state_parts, *system.parts[2:]]
            return ErrorNorm(rtol, atol, parts, dtype)
        return ErrorNorm(rtol, atol, system.parts, dtype, lambda z: float(norm(system.as_tuple(z))))

    def _time_gradient(
        self, problem: Problem, times: list[float], grad: Tensor, states: Tensor, adjoint: Tensor, moving: list[int]
    ) -> Tensor:
        """dL/dt_i = <dL/dy_i, f(t_i, y_i)> for an output, and dL/dt_0 = -<a(t_0), f(t_0, y_0)> for the start."""
        assert problem.times.tensor is not None
        total = torch.zeros_like(problem.times.tensor)
        plan = self.integration.with_problem(problem)
        with torch.no_grad():
            for i in moving:
                if (position := problem.times.position(times[i])) is not None:
                    func = plan.function_within(problem.times.start, times[i])
                    slope = func(problem.time(times[i]), states[i : i + 1])
                    total[position] += _inner(grad[i], slope).cpu()
            slope = problem.func(problem.time(problem.times.start), problem.y0)
            total[0] -= _inner(adjoint, slope).cpu()
        return total


class _AdjointSystem:
    """The equations of state, adjoint and parameter gradients, side by side in one [1, size] tensor."""

    def __init__(self, problem: Problem, others: Sequence[Tensor], leaves: Sequence[Tensor], late: LateLeaves):
        self._problem = problem
        self._others = others
        self._leaves = leaves
        self._late = late
        self._size = size = problem.y0.shape[1]
        self.evaluations = 0
        self.state, self.adjoint = slice(0, size), slice(size, 2 * size)
        self.parts = [self.state, self.adjoint]
        for tensor in others:
            start = self.parts[-1].stop
            self.parts.append(slice(start, start + self._real_or_same(tensor).numel()))
        self._sizes = [part.stop - part.start for part in self.parts]
        leaves_of_state = user_function(problem).layout.parts()
        self.state_parts = [slice(part.start + i, part.stop + i) for i in (0, size) for part in leaves_of_state]
        """The leaves of the state, and those of the adjoint."""

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        self.evaluations += 1
        differentiated = y.requires_grad  # by an implicit method
        state = y.narrow(1, 0, self._size)
        slope, leaves = self._evaluate(t, state)
        if strangers := self._late.among(slope, [*leaves, t]):
            self._late.meet(strangers, partial(self._evaluate, t.detach().clone(), state.detach().clone()))
        if not slope.requires_grad:
            return torch.cat([slope, *(y.new_zeros(1, size) for size in self._sizes[1:])], dim=1)
        adjoint = y.narrow(1, self._size, self._size)
        found = vjp([slope], [adjoint.neg()], [leaves[0], *self._others], create_graph=differentiated)
        rates = [
            y.new_zeros(1, size) if g is None else self._real_or_same(g).reshape(1, size)
            for g, size in zip(found, self._sizes[1:], strict=True)
        ]
        return torch.cat([slope if differentiated else slope.detach(), *rates], dim=1).to(y.dtype)

    def _evaluate(self, t: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The slope with its graph at `y`, or at a leaf in its place; that, and the others that stand for inputs."""
        with torch.enable_grad():
            state = y if y.requires_grad else y.detach().requires_grad_()
            return self._problem.func(t, state), [state, *self._leaves]

    def initial(self, y: Tensor, adjoint: Tensor | None) -> Tensor:
        z = y.new_zeros(1, self.parts[-1].stop)
        z[:, self.state] = y
        if adjoint is not None:
            z[:, self.adjoint] = adjoint
        return z

    def split(self, z: Tensor) -> list[Tensor]:
        """State, adjoint and the gradients of the parameters in their own shapes and dtypes."""
        y, adjoint, *rest = z.split(self._sizes, dim=1)
        return [y, adjoint, *(self._shaped(g, p) for g, p in zip(rest, self._others, strict=True))]

    def as_tuple(self, z: Tensor) -> tuple[Tensor, ...]:
        """The flat tensor as the user sees it: a zero for time, then the state, the adjoint, the parameters.

        State and adjoint have the shape of the state, and are flat if it has several leaves.
        """
        y, adjoint, *parameters = self.split(z)
        layout = user_function(self._problem).layout
        shape = layout.shapes[0] if layout.is_tensor else (layout.size,)
        zero = z.new_zeros((), dtype=self._problem.real_dtype)
        return (zero, y.reshape(shape), adjoint.reshape(shape), *parameters)

    def _real_or_same(self, parameter: Tensor) -> Tensor:
        """A complex parameter of a real system as pairs of real numbers; any other as it is."""
        if parameter.is_complex() and not self._problem.y0.is_complex():
            return torch.view_as_real(parameter.resolve_conj())
        return parameter

    def _shaped(self, gradient: Tensor, parameter: Tensor) -> Tensor:
        """The row `gradient` in the shape and dtype of the parameter that it belongs to."""
        if parameter.is_complex() and not gradient.is_complex():
            gradient = torch.view_as_complex(gradient.reshape(*parameter.shape, 2).contiguous())
        elif gradient.is_complex() and not parameter.is_complex():
            gradient = gradient.real
        return gradient.reshape(parameter.shape).to(parameter.dtype)

    def tolerance(self, tolerance: Tolerance) -> Tolerance:
        """A tolerance of the state for the whole system: the adjoint has the state's, a parameter the tightest."""
        if not isinstance(tolerance, Tensor):
            return tolerance
        count = self.parts[-1].stop - self.adjoint.stop
        return torch.cat([tolerance, tolerance, tolerance.min().expand(1, count)], dim=1)

    def describe(self, index: int) -> str:
        if index < self.state.stop:
            return f"element {index} of the state"
        if index < self.adjoint.stop:
            return f"element {index - self.adjoint.start} of the adjoint"
        which = next(i for i, part in enumerate(self.parts) if index < part.stop) - 2
        return f"the gradient of parameter {which}"


class _End:
    """The state at the end."""

    y: Tensor

    def start(self, t: float, y: Tensor, carry: Any) -> None:
        self.y = y

    def accept(self, method: Any, func: Any, step: Any, t1: float) -> None:
        self.y = step.y1


def failed_backwards(where: str, status: Status) -> Status:
    """Why a backward solve has failed, with what to do instead."""
    advice = "or use gradient='checkpointed', which solves nothing backwards"
    return replace(status, message=f"{where}: {status.message}; {advice}")


def largest_root_mean_square(tensors: Sequence[Tensor]) -> Tensor:
    """The largest root mean square of the tensors, 0-d; NaN if one of them is."""
    sizes = [torch.linalg.vector_norm(x) / math.sqrt(x.numel()) for x in tensors if x.numel()]
    return torch.stack(sizes).amax() if sizes else torch.zeros(())


def _seminorm(count: int) -> Norm:
    return lambda tensors: largest_root_mean_square(tensors[:count])


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return torch.sum(a.conj() * b).real
