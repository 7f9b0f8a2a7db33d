"""A SolveError that is kept keeps nothing of the solve: not the states, nor what func made, nor the graph."""

import gc
import weakref
from pathlib import Path

import pytest
import torch

import torchivp
from torchivp import SolveError, odeint, odeint_adjoint, odeint_dense, odeint_event, sdeint, sdeint_adjoint, solve_ivp

D = torch.float64
pytestmark = pytest.mark.usefixtures("few_objects")
GRADIENTS = ["direct", "checkpointed", "backsolve", "forward"]


class Explosion(torch.nn.Module):
    """y' = rate y^2, which is infinite at t = 1; remembers weakly every tensor that it was given or made."""

    sde_type, noise_type = "ito", "diagonal"

    def __init__(self, power=2):
        super().__init__()
        self.rate = torch.nn.Parameter(torch.ones((), dtype=D))
        self.power = power
        self.seen = []

    def forward(self, t, y):
        k = self.rate * y**self.power
        self.seen += [weakref.ref(y), weakref.ref(k)]
        return k

    f = forward

    def g(self, t, y):
        return 0.01 * self.forward(t, y)


FEW = {"max_num_steps": 9}


def no_event(t, y):
    return y[..., 0] + 1e9


FORWARD = {
    "odeint": lambda func, y0: odeint(func, y0, [0.0, 2.0], options=FEW),
    "odeint, scipy_solver": lambda func, y0: odeint(func, y0, [0.0, 2.0], method="scipy_solver"),
    "odeint, implicit": lambda func, y0: odeint(func, y0, [0.0, 2.0], method="trbdf2", options={"step_size": 0.1}),
    "odeint_adjoint": lambda func, y0: odeint_adjoint(func, y0, [0.0, 2.0], options=FEW),
    "odeint_event": lambda func, y0: odeint_event(func, y0, 0.0, event_fn=no_event, horizon=0.5),
    "odeint_dense": lambda func, y0: odeint_dense(func, y0, 0.0, 2.0, options=FEW),
    **{
        f"solve_ivp, {g}": lambda func, y0, g=g: solve_ivp(func, (0.0, 2.0), y0, gradient=g, max_steps=9)
        for g in GRADIENTS
    },
    **{
        f"rows, {g}": lambda func, y0, g=g: solve_ivp(func, (0.0, 2.0), y0, gradient=g, max_steps=9, batch_dims=1)
        for g in GRADIENTS
    },
    **{
        f"events, {g}": lambda func, y0, g=g: solve_ivp(
            func, (0.0, 2.0), y0[0], gradient=g, max_steps=9, events=torchivp.Event(no_event)
        )
        for g in GRADIENTS
    },
    "implicit rows": lambda func, y0: solve_ivp(
        func, (0.0, 2.0), y0, batch_dims=1, method="implicit_euler", step_size=0.1
    ),
    "sdeint": lambda func, y0: sdeint(func, y0, [0.0, 2.0], dt=0.1, adaptive=True, options=FEW),
    "sdeint, implicit": lambda func, y0: sdeint(func, 9 * y0, [0.0, 2.0], dt=0.5, method="implicit_euler"),
    "sdeint_adjoint": lambda func, y0: sdeint_adjoint(func, y0, [0.0, 2.0], dt=0.1, adaptive=True, options=FEW),
}

SHORT = {"max_num_steps": 2}
BACKWARD = {
    "odeint_adjoint": lambda func, y0: odeint_adjoint(func, y0, [0.0, 2.0], adjoint_options=SHORT),
    "rows": lambda func, y0: (
        solve_ivp(func, (0.0, 2.0), y0, gradient=torchivp.Backsolve(max_steps=2), batch_dims=1, t_eval=[2.0]).y
    ),
    "sdeint_adjoint": lambda func, y0: sdeint_adjoint(
        func, y0, [0.0, 2.0], dt=0.1, adjoint_adaptive=True, adjoint_options=SHORT
    ),
}


def alive_after(failing, func):
    """How many of the tensors that func saw live while the error that `failing` raises is kept."""
    gc.collect()
    gc.disable()
    try:
        try:
            failing()
        except SolveError as raised:
            error = raised
        assert func.seen
        alive = sum(ref() is not None for ref in func.seen)
        del error
        return alive
    finally:
        gc.enable()


@pytest.mark.filterwarnings("ignore:Numerical solution is not guaranteed")
@pytest.mark.parametrize("way", FORWARD)
def test_an_error_that_is_kept_keeps_nothing_of_the_solve(way):
    func, y0 = Explosion(), torch.ones(2, 3, dtype=D)
    assert alive_after(lambda: FORWARD[way](func, y0), func) == 0


@pytest.mark.parametrize("way", BACKWARD)
def test_an_error_of_a_backward_pass_that_is_kept_keeps_nothing_of_it(way):
    func = Explosion(power=1)
    loss = BACKWARD[way](func, torch.ones(2, 3, dtype=D)).sum()
    func.seen.clear()
    assert alive_after(loss.backward, func) == 0


def test_the_traceback_of_an_error_ends_at_the_call_of_the_user():
    """Within torchivp there is only what all doors are wrapped in, which knows of nothing but the arguments."""
    with pytest.raises(SolveError) as caught:
        solve_ivp(Explosion(), (0.0, 2.0), torch.ones(2, 3, dtype=D))
    package = str(Path(torchivp.__file__).parent)
    assert {entry.name for entry in caught.traceback if str(entry.path).startswith(package)} <= {
        "entered",
        "outside_of_graphs",
    }
