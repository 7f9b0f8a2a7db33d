"""What the steps of implicit methods share: how well their equations are solved, and how they are differentiated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchivp.error_norm import ErrorNorm
from torchivp.methods.implicit.equations import StageEquations
from torchivp.methods.implicit.linear import LINEAR_SOLVERS, Origin, StageSolver, Systems
from torchivp.methods.implicit.newton import Newton, Solved, why_not
from torchivp.methods.implicit.per_row import Flags, Numbers, any_of, pick, without
from torchivp.methods.implicit.preconditioner import Preconditioner
from torchivp.methods.method import Work
from torchivp.torch_func import any_dual, derivative_depth, inside_transform, read_rows

_CORRECTIONS = 2
"""How many times a solve can be differentiated, but for nested transforms of torch.func; see `recorded`."""


def check_linear_solver(name: str, value: Any) -> str:
    """Check the option `linear_solver`.

    Raises:
        ValueError: there is none of this name.
    """
    if value not in LINEAR_SOLVERS:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, LINEAR_SOLVERS))}, got {value!r}")
    return value


def systems_of(
    y0: Tensor, linear_solver: str, preconditioner: Preconditioner | None
) -> Callable[[Tensor, float], Systems]:
    """What makes the linear systems with some coefficients, solved to a tolerance, of methods with these options.

    Raises:
        ValueError: the options do not go together, or not with the states.
    """
    if preconditioner is not None and linear_solver not in ("auto", "krylov"):
        raise ValueError(
            f"preconditioner is for linear_solver='krylov', which needs no factors: leave it out with {linear_solver!r}"
        )
    if preconditioner is not None and y0.is_complex():
        raise ValueError(
            "preconditioner is for real states: leave it out, or write real and imaginary parts as elements of the "
            "state, as torch.view_as_real does"
        )
    kind = linear_solver if preconditioner is None else "krylov"
    return lambda a, tolerance: Systems(kind, a, tolerance, preconditioner)


def without_overflow(norm: ErrorNorm, dtype: torch.dtype) -> ErrorNorm:
    """The norm of stage equations: with tolerances not so small that the squares of scaled corrections overflow.

    Without an absolute tolerance there is none where the state is zero; but corrections may be large there.
    """
    norm, least = norm.of_equations(), torch.finfo(dtype).tiny ** 0.4
    norm.atol = norm.atol.clamp(min=least) if isinstance(norm.atol, Tensor) else max(norm.atol, least)
    return norm


def newton_of(norm: ErrorNorm, y0: Tensor, dt: Numbers, **options: Any) -> Newton:
    """What Newton's iteration needs in steps from the states `y0` whose slopes count `dt` times.

    `norm` is one `without_overflow`; the `options` are those of `Newton`.
    """
    length, tolerated = abs(dt), norm.tolerated(y0)
    measure = norm.size if isinstance(dt, float) else norm.sizes
    eps = torch.finfo(y0.dtype).eps

    def size(stages: Tensor) -> Numbers:
        if y0.is_complex():
            stages = torch.view_as_complex(stages.unflatten(2, (-1, 2)))
        # The largest of the stages, element by element.
        largest = stages.squeeze(0) if stages.shape[0] == 1 else torch.linalg.vector_norm(stages, torch.inf, 0)
        return measure(largest / tolerated)

    def is_rounding(change: Tensor, states: Sequence[Tensor], stalled: Flags) -> Flags:
        rounding, stages = 16 * eps, torch.stack(tuple(states))
        # Element by element, as tolerances are; if that does not help, rounding spreads from the largest element.
        found = length * size(change) <= rounding * size(stages)
        if any_of(without(stalled, found)):
            largest = [read_rows(x.abs().amax((0, 2))) for x in (change, stages)]
            spread = length * largest[0] <= rounding * largest[1]
            found = found | stalled & (bool(spread[0]) if isinstance(dt, float) else spread)
        return found

    return Newton(lambda change: length * size(change), is_rounding, **options)


def old_solver(
    systems: Systems, equations: StageEquations, solver: StageSolver | Origin
) -> tuple[StageSolver | None, Work]:
    """A linear solver with the Jacobians of the last step, or of the last stage; None if no row has any.

    And what it has cost.
    """
    known, made = solver.origin.known, 0
    if not any_of(known):
        return None, Work()
    if isinstance(solver, Origin):
        solver, made = systems.again(equations, solver), pick(known, 1, 0)
    other = solver.at_size(equations.sizes)
    changed = known & (other.origin.dt != solver.origin.dt)
    return other, Work(jacobians=made, factorisations=made + pick(changed, 1, 0))


def added(*works: Work) -> Work:
    """What all of these have cost."""
    return Work(*(sum(counts) for counts in zip(*works, strict=True)))


def failures(found: Solved, max_iters: int) -> dict[int, str]:
    """Why rows have no solution, by their places."""
    failed, sizes, counts = (np.atleast_1d(x) for x in (found.failed, found.size, found.iterations))
    return {i: why_not(float(sizes[i]), int(counts[i]), max_iters) for i in np.flatnonzero(failed).tolist()}


def tracked(sources: Sequence[Tensor | None]) -> bool:
    """Whether a gradient flows through one of these."""
    tensors = [x for x in sources if x is not None]
    return (
        inside_transform() or (torch.is_grad_enabled() and any(x.requires_grad for x in tensors)) or any_dual(tensors)
    )


def recorded(systems: Systems, equations: StageEquations, solved: Tensor) -> Tensor:
    """The `solved` slopes as functions of all that the equations depend on: their values stay what they are.

    That is, constants, and recorded Newton corrections with their values taken away. Their matrix M is constant
    too, the exact Jacobian of the residual F at these slopes. Each correction makes one more derivative right: if e
    is the error of the slopes k when what they depend on moves by d, and e = O(d^n), then the next error is
    e - M^-1 (F(k) - F(k - e)) = M^-1 (M - F' + O(e)) e, and F' = M + O(d), so it is O(d^(n + 1)).
    """
    solver = systems.at(equations, solved, True, by_autograd=True)
    for _ in range(_CORRECTIONS + derivative_depth()):
        change = solver.solve(equations.residual(solved))
        solved = solved + (change - change.detach())
    return solved
