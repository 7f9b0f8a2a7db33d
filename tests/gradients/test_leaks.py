"""Solves leave nothing behind: no tensors, no memory, no cycles of references."""

import gc
import tracemalloc
import weakref

import pytest
import torch

from problems import covering
from torchivp import (
    Event,
    Scheduled,
    odeint,
    odeint_adjoint,
    odeint_dense,
    odeint_event,
    sdeint,
    sdeint_adjoint,
    solve_ivp,
)

D = torch.float64
pytestmark = pytest.mark.usefixtures("few_objects")


class Model(torch.nn.Module):
    sde_type, noise_type = "stratonovich", "diagonal"

    def __init__(self):
        super().__init__()
        self.rate = torch.nn.Parameter(torch.full((3,), 0.5, dtype=D))

    def forward(self, t, y):
        return -self.rate * y

    def f(self, t, y):
        return self(t, y)

    def g(self, t, y):
        return 0.1 * self.rate * y


FEW = {"rtol": 1e-3, "atol": 1e-3}

EVENTS = [Event(lambda t, y: y[0] - 0.7, apply=lambda t, y: 2 * y), Scheduled([0.3], lambda t, y: y + 1.0)]

WAYS = {
    "odeint": lambda func, y0: odeint(func, y0, [0.0, 1.0], **FEW)[-1],
    "fixed steps": lambda func, y0: odeint(func, y0, [0.0, 1.0], method="rk4")[-1],
    "odeint_adjoint": lambda func, y0: odeint_adjoint(func, y0, [0.0, 1.0], **FEW)[-1],
    "checkpointed": lambda func, y0: solve_ivp(func, (0.0, 1.0), y0, gradient="checkpointed", **FEW).y[-1],
    "odeint_event": lambda func, y0: odeint_event(func, y0, 0.0, event_fn=lambda t, y: y[0] - 0.7, **FEW)[1][-1],
    "odeint_event by odeint_adjoint": lambda func, y0: odeint_event(
        func, y0, 0.0, event_fn=lambda t, y: y[0] - 0.7, odeint_interface=odeint_adjoint, **FEW
    )[1][-1],
    "odeint_dense": lambda func, y0: odeint_dense(func, y0, 0.0, 1.0, **FEW)(0.5),
    **{
        f"rows, {gradient}": lambda func, y0, gradient=gradient: (
            solve_ivp(func, (0.0, 1.0), y0.expand(2, 3), t_eval=[1.0], batch_dims=1, gradient=gradient, **FEW).y
        )
        for gradient in ("direct", "checkpointed", "backsolve", "forward")
    },
    **{
        f"events, {gradient}": lambda func, y0, gradient=gradient: (
            solve_ivp(func, (0.0, 1.0), y0, t_eval=[1.0], events=EVENTS, gradient=gradient, **FEW).y
        )
        for gradient in ("direct", "checkpointed", "backsolve", "forward")
    },
    **{
        f"sdeint, {gradient}": lambda func, y0, gradient=gradient: sdeint(
            func, y0[None], [0.0, 1.0], dt=0.25, method="reversible_heun", gradient=gradient
        )[-1]
        for gradient in ("direct", "checkpointed", "reversible")
    },
    "sdeint_adjoint": lambda func, y0: sdeint_adjoint(func, y0[None], [0.0, 1.0], dt=0.25)[-1],
}


def live_objects():
    """How many tensors there are, and how many objects in all that can hold others."""
    gc.collect()
    objects = gc.get_objects()
    return sum(issubclass(type(x), torch.Tensor) for x in objects), len(objects)


def solve_often(way, func, y0, times):
    for _ in range(times):
        way(func, y0).sum().backward()
        func.rate.grad = y0.grad = None


@pytest.mark.parametrize("way", WAYS)
def test_solves_leave_no_objects(way):
    func, y0 = Model(), torch.ones(3, dtype=D, requires_grad=True)
    solve_often(WAYS[way], func, y0, 8)  # caches fill
    tensors, objects = live_objects()
    solve_often(WAYS[way], func, y0, 20)
    tensors_after, objects_after = live_objects()
    assert tensors_after == tensors
    assert objects_after < objects + 10


LONG = [pytest.param(way, marks=pytest.mark.slow) for way in ("odeint", "odeint_adjoint", "sdeint, reversible")]
LONG += [
    pytest.param(way, marks=pytest.mark.sweep) for way in ("rows, checkpointed", "events, backsolve", "sdeint_adjoint")
]
"""What takes long is asked of each loop and each kind of gradient; the objects above are counted for every way."""


@pytest.mark.parametrize("way", LONG)
def test_hundreds_of_solves_leave_no_memory(way):
    func, y0 = Model(), torch.ones(3, dtype=D, requires_grad=True)
    tracemalloc.start()
    try:
        solve_often(WAYS[way], func, y0, 300)  # the interpreter's own free lists fill
        tensors, _ = live_objects()
        before, _ = tracemalloc.get_traced_memory()
        solve_often(WAYS[way], func, y0, 400)
        tensors_after, _ = live_objects()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert tensors_after == tensors
    assert (after - before) / 400 < 100  # bytes a solve: less than a tensor


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("backward", [False, True])
def test_everything_is_freed_by_counting_references(way, backward):
    """Of what a solve makes nothing waits for the garbage collector: not the graph, nor func and what it has made."""
    made = []

    class Recording(Model):
        def forward(self, t, y):
            k = super().forward(t, y)
            made.append(weakref.ref(k))
            return k

    gc.collect()
    gc.disable()
    try:
        func = Recording()
        made.append(weakref.ref(func))
        y0 = torch.ones(3, dtype=D, requires_grad=True)
        start = y0 * 1.0
        made.append(weakref.ref(start))
        y = WAYS[way](func, start)
        if backward:
            y.sum().backward()
        del y, start, func
        assert made and not any(ref() is not None for ref in made)
    finally:
        gc.enable()


class Wrapped(Model):
    """A module that is func, or that a func leads to which is a closure or has it among its attributes."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def solve(self, way):
        y0 = torch.ones(3, dtype=D)
        if self.how == "module":
            return way(self, y0)
        func = Model() if self.how == "attributes" else (lambda t, y: self(t, y))
        if isinstance(func, Model):
            func.owner = [self]
        func.f, func.g, func.sde_type, func.noise_type = self.f, self.g, self.sde_type, self.noise_type
        return way(func, y0)


@pytest.mark.parametrize(
    ("way", "how"), covering(WAYS, ["checkpointed", "sdeint_adjoint"], ["module", "closure", "attributes"])
)
def test_a_module_that_keeps_its_own_solution_is_freed_after_a_backward_pass(way, how):
    """Python's garbage collector does not see through the graph, which therefore has to let go of func."""
    module = Wrapped(how)
    module.solution = module.solve(WAYS[way])
    module.solution.sum().backward()
    alive = weakref.ref(module)
    del module
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("way", WAYS)
def test_the_result_does_not_keep_func_after_a_backward_pass(way):
    gc.collect()
    gc.disable()
    try:
        func = Model()
        alive = weakref.ref(func)
        y = WAYS[way](func, torch.ones(3, dtype=D))
        y.sum().backward()
        del func
        assert alive() is None and y.requires_grad
    finally:
        gc.enable()


@pytest.mark.parametrize("way", WAYS)
def test_a_graph_that_is_retained_keeps_func(way):
    """Also one that nothing else keeps. Once the graph is freed, autograd says so."""

    def gradients(y, **options):
        return torch.autograd.grad(y.sum(), y0, **options)

    torch.manual_seed(0)
    y0 = torch.ones(3, dtype=D, requires_grad=True)
    y = WAYS[way](Model(), y0)
    gc.collect()
    (first,), (second,), (last,) = gradients(y, retain_graph=True), gradients(y, retain_graph=True), gradients(y)
    assert torch.equal(first, second) and torch.equal(first, last) and first.abs().sum() > 0
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        gradients(y)
