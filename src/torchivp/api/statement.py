"""What `solve_ivp` was asked for, on its way to what solves it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from torchivp.api.arguments import Gradient
from torchivp.integrate import Controller
from torchivp.mass import Mass
from torchivp.methods.method import Method
from torchivp.times import Times


@dataclass(slots=True)  # frozen, it would take as long to make as a tenth of a short solve by a kernel
class Statement:
    """A problem and how to solve it.

    What does not depend on the layout of the states is checked: the method, the controller, the gradient, the Jacobian
    and the mass matrix. All else is as it was given, defaults put in.

    Attributes:
        func: the right-hand side; a pair of functions as the sum that it is.
        t_span: the start and the end.
        y0: the initial states.
        t_eval: the outputs.
        method: the method.
        controller: what sizes the steps.
        rtol: the relative tolerance.
        atol: the absolute one.
        max_steps: the largest number of step attempts.
        args: further arguments of `func`.
        params: the tensors that gradients are computed for besides.
        gradient: how to differentiate.
        norm: the norm of the error.
        events: what happens on the way.
        jac: the Jacobian, as a function.
        jac_sparsity: where it may have entries.
        mass: the mass matrix.
        batch_dims: how many dimensions of `y0` number rows.
        compact: whether `func` may be called with some of the rows.
        dense_output: whether the solution at any time is asked for.
        throw: whether to raise an error if the end is not reached.
        times: the times of `odeint`, each of them an entry of one tensor.
    """

    func: Callable[..., Any]
    t_span: Any
    y0: Any
    t_eval: Any
    method: type[Method]
    controller: Controller
    rtol: Any
    atol: Any
    max_steps: int
    gradient: Gradient
    args: Sequence[Any] = ()
    params: Sequence[Tensor] | None = None
    norm: Callable[[Any], Any] | None = None
    events: Any = None
    jac: Callable[..., Any] | None = None
    jac_sparsity: Any = None
    mass: Mass | None = None
    batch_dims: int = 0
    compact: bool | None = None
    dense_output: bool = False
    throw: bool = True
    times: Times | None = None
