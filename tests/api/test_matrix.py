"""Every door with every feature: the right numbers and derivatives, or a refusal; never a wrong number.

The problem is y' = -a y from y0 at t[0], whose solution is known; for stochastic equations dY = -a Y dt + s Y o dW
along one path, which is solved by y0 exp(-a (t - t0) + s (W(t) - W(t0))). Derivatives are with respect to a and y0.
"""

import itertools
import pickle
import re
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from torchivp import (
    BrownianInterval,
    Event,
    Scheduled,
    Solution,
    odeint,
    odeint_adjoint,
    odeint_dense,
    odeint_event,
    sdeint,
    sdeint_adjoint,
    solve_ivp,
)

D = torch.float64
LEVEL, JUMP, DOSE_TIME, NOISE = 0.9, 0.3, 0.15, 0.1


def linear(rate):
    return lambda t, y: pytree.tree_map(lambda x: -rate * x, y)


@dataclass(frozen=True)
class Problem:
    """What a feature asks of a door.

    Attributes:
        rate: a.
        y0: tensors of shape [2], in any structure.
        t: where to start, and the outputs.
        field: makes func, given a.
        dense: read the outputs off the solution as a function of time.
        step: the size of fixed steps of Euler's method; None for adaptive steps.
    """

    rate: Any = field(default_factory=lambda: torch.tensor(0.7, dtype=D, requires_grad=True))
    y0: Any = field(default_factory=lambda: torch.tensor([1.2, 0.6], dtype=D, requires_grad=True))
    t: Any = field(default_factory=lambda: torch.tensor([0.1, 0.3, 0.8], dtype=D))
    field: Callable[..., Any] = linear
    dense: bool = False
    step: float | None = None

    @property
    def func(self):
        return self.field(self.rate)

    @property
    def inputs(self):
        """The tensors to differentiate by."""
        leaves = [self.rate, *pytree.tree_leaves(self.y0), self.t]
        return [x for x in leaves if x.requires_grad]

    def map(self, change):
        """The same with `change` made to all tensors but the times."""
        return replace(self, rate=change(self.rate), y0=pytree.tree_map(change, self.y0))


# Doors: a call, how to read the states at t[1:] off what it returns, and what they should be.


def loose(p):
    """Whether the problem is in single precision."""
    return any(x.dtype in (torch.float32, torch.complex64) for x in pytree.tree_leaves(p.y0))


def tolerances(p):
    return {"rtol": 1e-5, "atol": 1e-6} if loose(p) else {"rtol": 1e-8, "atol": 1e-10}


def ode_options(p):
    dense = {"dense_output": True} if p.dense else {}
    fixed = {} if p.step is None else {"method": "euler", "options": {"step_size": p.step}}
    return tolerances(p) | dense | fixed


def ivp(p, y0=None, **options):
    fixed = {} if p.step is None else {"method": "euler", "step_size": p.step}
    y0 = p.y0 if y0 is None else y0
    return solve_ivp(p.func, (p.t[0], p.t[-1]), y0, t_eval=p.t[1:], dense_output=p.dense, **tolerances(p), **fixed,
                     **options)  # fmt: skip


def first(y):
    """The element that events look at."""
    return pytree.tree_leaves(y)[0][..., 0].abs()


def jump(t, y):
    return pytree.tree_map(lambda x: x + JUMP, y)


def rows(p, **options):
    return ivp(p, pytree.tree_map(lambda x: torch.stack([2 * x, x]), p.y0), batch_dims=1, **options)


def path():
    return BrownianInterval(0.0, 1.0, size=(1, 1), dtype=D, entropy=7)


class Equation(torch.nn.Module):
    sde_type, noise_type = "stratonovich", "scalar"

    def __init__(self, drift):
        super().__init__()
        self.f = drift
        self.callback_step = getattr(drift, "callback_step", None)

    def g(self, t, y):
        return pytree.tree_map(lambda x: NOISE * x[..., None], y)


def sde(door, **options):
    def call(p):
        dense = {"dense_output": True} if p.dense else {}
        y0 = pytree.tree_map(lambda x: x[None], p.y0)
        equation = Equation(p.func)
        return door(equation, y0, p.t, bm=path(), dt=p.step or 0.02, **options, **dense)

    return call


def at_outputs(result, p):
    return pytree.tree_map(lambda x: x[1:], result)


def of_solution(solution, p):
    return solution.sol(p.t[1:]) if p.dense else solution.y


def of_rows(solution, p):
    y = solution.sol(p.t[1:].expand(2, -1)) if p.dense else solution.y
    for leaf in pytree.tree_leaves(y):
        torch.testing.assert_close(leaf[0], 2 * leaf[1], rtol=1e-3, atol=0)
    return pytree.tree_map(lambda x: x[1], y)


def of_paths(result, p):
    return pytree.tree_map(lambda x: x[1:, 0], result)


def decay(p, w=0.0):
    """y0 exp(-a (t - t0) + w) at t[1:]."""

    def exact(y0):
        rate = p.rate * torch.ones((), dtype=y0.dtype)
        factors = torch.exp(-getattr(p.field, "spin", 1.0) * rate * (p.t[1:] - p.t[0]) + w)
        return (factors[:, None] * y0).to(y0.dtype)

    return pytree.tree_map(exact, p.y0)


def crossing(p):
    """When the first element is down to the level."""
    return p.t[0] + torch.log(first(p.y0) / LEVEL) / p.rate


def with_jump_at(when):
    def exact(p):
        instant = when(p)
        spin = getattr(p.field, "spin", 1.0)
        return pytree.tree_map(
            lambda y: torch.where(
                ((p.t[1:] - instant) * (p.t[-1] - p.t[0]) > 0)[:, None],
                y + (JUMP * torch.exp(-spin * p.rate * (p.t[1:] - instant)))[:, None],
                y,
            ),
            decay(p),
        )

    return exact


def until_event(p):
    instant = crossing(p)
    spin = getattr(p.field, "spin", 1.0)
    return instant, pytree.tree_map(lambda y: y * torch.exp(-spin * p.rate * (instant - p.t[0])), p.y0)


def event_door(p):
    options = ode_options(p)
    return odeint_event(
        p.func, p.y0, p.t[0], event_fn=lambda t, y: first(y) - LEVEL, reverse_time=bool(p.t[-1] < p.t[0]), **options
    )


def along_the_path(p):
    w = path()
    return decay(p, torch.stack([NOISE * (w(t) - w(p.t[0]))[0, 0] for t in p.t[1:]]))


@dataclass(frozen=True)
class Door:
    call: Callable[[Problem], Any]
    read: Callable[[Any, Problem], Any]
    exact: Callable[[Problem], Any] = decay
    rtol: float = 1e-6

    def solve(self, p):
        return self.read(self.call(p), p)


def with_event(p, **options):
    return ivp(p, events=Event(lambda t, y: first(y) - LEVEL, apply=jump), **options)


def with_dose(p, **options):
    return ivp(p, events=Scheduled([DOSE_TIME], jump), **options)


def stiffened(call, read):
    """A door to the same problem with a fast element beside it, so that the default method changes on the way."""

    def beside(rate, backwards, inner):
        k = -1e4 if backwards else 1e4

        def func(t, y):
            level = pytree.tree_leaves(y["slow"])[0][..., :1]
            return {"slow": inner(t, y["slow"]), "fast": -k * (y["fast"] - level)}

        func.__dict__.update(vars(inner) if hasattr(inner, "callback_step") else {})
        return func

    def enter(p):
        if p.step is not None:  # too long for the fast one
            return call(p)
        fast = pytree.tree_leaves(p.y0)[0].detach()[:1] + 0.5
        backwards = bool(p.t[-1] < p.t[0])
        solution = call(
            replace(p, y0={"slow": p.y0, "fast": fast}, field=lambda rate: beside(rate, backwards, p.field(rate)))
        )
        stats = solution.stats if isinstance(solution, Solution) else solution.stats[0]
        assert stats.stiff > 0
        return solution

    def leave(solution, p):
        y = read(solution, p)
        return y if p.step is not None else y["slow"]

    return enter, leave


def ways(call, read, exact):
    for gradient in ("direct", "checkpointed", "backsolve", "forward"):
        yield gradient, Door(lambda p, g=gradient: call(p, gradient=g), read, exact)


DOORS = {
    "odeint": Door(lambda p: odeint(p.func, p.y0, p.t, **ode_options(p)), at_outputs),
    "odeint_adjoint": Door(lambda p: odeint_adjoint(p.func, p.y0, p.t, **ode_options(p)), at_outputs),
    "odeint_event": Door(event_door, lambda r, p: (r[0], pytree.tree_map(lambda x: x[1], r[1])), until_event),
    "odeint_dense": Door(
        lambda p: odeint_dense(p.func, p.y0, p.t[0], p.t[-1], **ode_options(replace(p, dense=False))),
        lambda sol, p: sol(p.t[1:]),
    ),
    **{f"solve_ivp, {way}": door for way, door in ways(ivp, of_solution, decay)},
    **{f"rows, {way}": door for way, door in ways(rows, of_rows, decay)},
    **{f"events, {way}": door for way, door in ways(with_event, of_solution, with_jump_at(crossing))},
    **{f"schedule, {way}": door for way, door in ways(with_dose, of_solution, with_jump_at(lambda p: DOSE_TIME))},
    "stiff, direct": Door(*stiffened(ivp, of_solution)),
    "stiff, checkpointed": Door(*stiffened(lambda p: ivp(p, gradient="checkpointed"), of_solution)),
    "stiff, forward": Door(*stiffened(lambda p: ivp(p, gradient="forward"), of_solution)),
    "stiff rows, direct": Door(*stiffened(rows, of_rows)),
    "sdeint": Door(sde(sdeint), of_paths, along_the_path, 2e-4),
    "sdeint_adjoint": Door(sde(sdeint_adjoint), of_paths, along_the_path, 2e-4),
    "sdeint, checkpointed": Door(sde(sdeint, gradient="checkpointed"), of_paths, along_the_path, 2e-4),
    "sdeint_adjoint, reversible": Door(sde(sdeint_adjoint, method="reversible_heun"), of_paths, along_the_path, 2e-4),
}


# Features: each states a problem and compares what the door makes of it with what it should be.


def close(found, expected, rtol):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol, check_dtype=False)


def total(states):
    """A number that every output and element has a part in."""
    leaves = [torch.view_as_real(x) if x.is_complex() else x for x in pytree.tree_leaves(states)]
    return sum((x * torch.linspace(1.0, 2.0, x.numel(), dtype=x.dtype).reshape(x.shape)).sum() for x in leaves)


def derivative(states, p):
    return torch.autograd.grad(total(states), p.inputs)


def right(door, p, rtol=None):
    """Value and gradient are right."""
    rtol = door.rtol if rtol is None else rtol
    found, expected = door.solve(p), door.exact(p)
    close(found, expected, rtol)
    close(derivative(found, p), derivative(expected, p), 10 * rtol)


def changed(p, dtype):
    return p.map(lambda x: x.detach().to(dtype).requires_grad_())


def of_inputs(door, p):
    """The door, and what is right, as functions of a and y0."""
    return [lambda rate, y0, f=f: f(replace(p, rate=rate, y0=y0)) for f in (door.solve, door.exact)]


def in_float64(door):
    right(door, Problem())


def in_float32(door):
    right(door, changed(Problem(), torch.float32), max(door.rtol, 1e-4))


def in_autocast(door):
    seen = []

    def watched(rate):
        def func(t, y):
            seen.append((y.dtype, torch.is_autocast_enabled("cpu")))
            return -rate * y

        return func

    p = replace(changed(Problem(), torch.float32), field=watched)
    with torch.autocast("cpu", torch.bfloat16):
        found = door.solve(p)
    expected = door.exact(p)
    close(found, expected, max(door.rtol, 1e-4))
    close(derivative(found, p), derivative(expected, p), max(10 * door.rtol, 1e-3))
    assert set(seen) == {(torch.float32, True)}


def in_forward_mode(door):
    p = Problem().map(lambda x: x.detach())
    with forward_ad.dual_level():
        dual = p.map(lambda x: forward_ad.make_dual(x, torch.ones_like(x)))
        found, expected = (
            [forward_ad.unpack_dual(x) for x in pytree.tree_leaves(f(dual))] for f in (door.solve, door.exact)
        )
        close([x.primal for x in found], [x.primal for x in expected], door.rtol)
        close([x.tangent for x in found], [x.tangent for x in expected], 10 * door.rtol)


def in_jvp(door):
    p = Problem().map(lambda x: x.detach())
    inputs = (p.rate, p.y0)
    found, expected = (torch.func.jvp(f, inputs, pytree.tree_map(torch.ones_like, inputs)) for f in of_inputs(door, p))
    close(found, expected, 10 * door.rtol)


def in_vjp(door):
    p = Problem().map(lambda x: x.detach())
    found, expected = (torch.func.vjp(f, p.rate, p.y0) for f in of_inputs(door, p))
    close(found[0], expected[0], door.rtol)
    weights = pytree.tree_map(torch.ones_like, expected[0])
    close(found[1](weights), expected[1](weights), 10 * door.rtol)


def in_vmap(door):
    p = Problem().map(lambda x: x.detach())
    rates = torch.tensor([0.7, 0.9], dtype=D)
    found, expected = (torch.vmap(f)(rates, torch.stack([p.y0, 0.9 * p.y0])) for f in of_inputs(door, p))
    close(found, expected, door.rtol)


def twice(door):
    p, seconds = Problem(), []
    for f in (door.solve, door.exact):
        firsts = torch.autograd.grad(total(f(p)), p.inputs, create_graph=True)
        seconds.append(torch.autograd.grad(sum(x.sum() for x in firsts), p.inputs))
    close(*seconds, 20 * door.rtol)


def of_dependent_inputs(door):
    """The initial state is a function of the rate, which func uses by itself; in a gradient with a graph too."""
    p, found = Problem(), []
    for f in (door.solve, door.exact):
        for create_graph in (False, True):
            states = f(replace(p, y0=p.y0.detach() * (p.rate / 0.7)))
            found.append(torch.autograd.grad(total(states), p.rate, create_graph=create_graph)[0].detach())
    close(found[0], found[2], 10 * door.rtol)
    close(found[1], found[3], 10 * door.rtol)


def spinning(rate):
    return lambda t, y: -spinning.spin * rate * y


spinning.spin = 1.0 + 2.0j


def of_complex_state(door):
    p = replace(Problem(), field=spinning)
    right(door, replace(p, y0=(p.y0.detach() * (0.6 + 0.8j)).requires_grad_()))


def of_dict(door):
    p = Problem()
    right(door, replace(p, y0={"u": p.y0, "v": (0.5 * p.y0.detach()).requires_grad_()}))


def in_reversed_time(door):
    right(door, replace(Problem(), rate=torch.tensor(-0.7, dtype=D, requires_grad=True), t=1.0 - Problem().t))


def without_graph(mode):
    def check(door):
        p = Problem()
        with mode():
            found = door.solve(p)
        assert not any(x.requires_grad for x in pytree.tree_leaves(found))
        with torch.no_grad():
            close(pytree.tree_map(lambda x: x.clone(), found), door.exact(p), door.rtol)

    return check


def compiled(door):
    torch._dynamo.reset()
    right(door, replace(Problem(), field=lambda rate: torch.compile(lambda t, y: -rate * y, backend="eager")))


def densely(door):
    right(door, replace(Problem(), dense=True))


def with_callbacks(door):
    steps = []

    def watched(rate):
        func = linear(rate)
        func.callback_step = lambda t, y, dt: steps.append(t)
        return func

    right(door, replace(Problem(), field=watched))
    assert steps


def by_times(door):
    right(door, replace(Problem(), t=Problem().t.requires_grad_()))


def drawing(rate):
    return lambda t, y: -rate * (2.0 * torch.rand((), dtype=D)) * y


def of_random_func(door):
    """The same seed gives the same numbers, and the derivative by a is theirs, which are a smooth function of it."""

    def value(rate):
        torch.manual_seed(3)
        return total(door.solve(replace(Problem(), rate=rate, step=0.1, field=drawing)))

    rate = Problem().rate
    (found,) = torch.autograd.grad(value(rate), rate)
    with torch.no_grad():
        expected = (value(rate + 1e-4) - value(rate - 1e-4)) / 2e-4
        assert value(rate) == value(rate)
    close(found, expected, 1e-6)


def backward_elsewhere(door):
    p, found = Problem(), []
    states = door.solve(p)
    thread = threading.Thread(target=lambda: found.extend(derivative(states, p)))
    thread.start()
    thread.join()
    close(tuple(found), derivative(door.exact(p), p), 10 * door.rtol)


def pickled(door):
    p = Problem()
    result = door.call(p)
    copy = pickle.loads(pickle.dumps(result))
    close(door.read(copy, p), door.exact(p), door.rtol)


FEATURES = {
    "f64": in_float64,  # states of double precision
    "f32": in_float32,  # states of single precision
    "amp": in_autocast,  # torch.autocast to bfloat16: func runs in it, the solve does not
    "fwd": in_forward_mode,  # torch.autograd.forward_ad
    "jvp": in_jvp,  # torch.func.jvp
    "vjp": in_vjp,  # torch.func.vjp
    "map": in_vmap,  # torch.vmap
    "2nd": twice,  # second derivatives
    "dep": of_dependent_inputs,  # an initial state that is a function of a parameter
    "cpx": of_complex_state,  # complex states
    "dict": of_dict,  # states in a dict
    "rev": in_reversed_time,  # time that decreases
    "ng": without_graph(torch.no_grad),  # torch.no_grad
    "inf": without_graph(torch.inference_mode),  # torch.inference_mode
    "cmp": compiled,  # a func by torch.compile
    "den": densely,  # dense output
    "cb": with_callbacks,  # callbacks of func
    "t": by_times,  # gradients by the times
    "rng": of_random_func,  # a func that draws random numbers
    "thr": backward_elsewhere,  # a backward pass in another thread
    "pkl": pickled,  # a result that was pickled
}

# The table: "." where value and derivatives are right, a capital letter where the call or its backward pass is refused,
# a small one where a warning says what is not to be had.

TABLE = """
                            f64 f32 amp fwd jvp vjp map 2nd dep cpx dict rev ng inf cmp den cb t rng thr pkl
odeint                      .   .   .   .   .   .   .   .   .   .   .    .   .  .   .   K   .  . .   .   .
odeint_adjoint              .   .   .   .   .   F   .   .   .   .   .    .   .  .   .   K   .  . r   .   .
odeint_event                .   .   .   .   E   E   E   T   .   .   .    .   .  .   .   K   .  . S   .   .
odeint_dense                .   .   .   .   .   .   .   .   .   .   .    .   .  .   .   .   .  . .   .   .
solve_ivp, direct           .   .   .   .   .   .   .   .   .   .   .    .   .  .   .   .   .  . .   .   .
solve_ivp, checkpointed     .   .   .   .   .   F   .   .   .   .   .    .   .  .   .   D   .  . .   .   .
solve_ivp, backsolve        .   .   .   .   .   F   .   .   .   .   .    .   .  .   .   D   .  . r   .   .
solve_ivp, forward          .   .   .   .   .   F   .   .   .   .   .    .   .  .   .   D   .  . .   .   .
rows, direct                .   .   .   .   B   B   B   .   .   .   .    .   .  .   .   .   .  . .   .   .
rows, checkpointed          .   .   .   .   B   B   B   .   .   .   .    .   .  .   .   D   .  . .   .   .
rows, backsolve             .   .   .   .   B   B   B   .   .   .   .    .   .  .   .   D   .  . r   .   .
rows, forward               .   .   .   .   B   B   B   .   .   .   .    .   .  .   .   D   .  . .   .   .
events, direct              .   .   .   .   B   B   B   T   .   .   .    .   .  .   .   .   .  . A   .   .
events, checkpointed        .   .   .   .   B   B   B   T   .   .   .    .   .  .   .   D   .  . S   .   .
events, backsolve           .   .   .   .   B   B   B   T   .   .   .    .   .  .   .   D   .  . S   .   .
events, forward             .   .   .   .   B   B   B   T   .   .   .    .   .  .   .   D   .  . S   .   .
schedule, direct            .   .   .   .   B   B   B   .   .   .   .    .   .  .   .   .   .  . .   .   .
schedule, checkpointed      .   .   .   .   B   B   B   .   .   .   .    .   .  .   .   D   .  . .   .   .
schedule, backsolve         .   .   .   .   B   B   B   .   .   .   .    .   .  .   .   D   .  . r   .   .
schedule, forward           .   .   .   .   B   B   B   .   .   .   .    .   .  .   .   D   .  . .   .   .
stiff, direct               .   .   .   .   .   .   .   .   .   .   .    .   .  .   .   .   .  . .   .   .
stiff, checkpointed         .   .   .   .   .   F   .   .   .   .   .    .   .  .   .   D   .  . .   .   .
stiff, forward              .   .   .   .   .   F   .   .   .   .   .    .   .  .   .   D   .  . .   .   .
stiff rows, direct          .   .   .   .   B   B   B   .   .   .   .    .   .  .   .   .   .  . .   .   .
sdeint                      .   .   .   .   .   .   .   .   .   .   .    .   .  .   .   K   c  N .   .   .
sdeint_adjoint              .   .   .   .   .   F   .   .   .   .   .    .   .  .   .   K   c  N r   .   .
sdeint, checkpointed        .   .   .   .   .   F   .   .   .   .   .    .   .  .   .   K   c  N .   .   .
sdeint_adjoint, reversible  .   .   .   .   .   F   .   .   .   .   .    .   .  .   .   K   c  N R   .   .
"""

SENTENCES = {
    "A": r"func draws random numbers, and its steps cannot be taken again .* use odeint, which takes no step again",
    "B": r"batch_dims and events do not work inside torch.func .* need no vmap, pass them with batch_dims=1",
    "D": r"dense_output=True is differentiable with gradient='direct' only: use that, or ask for the times",
    "E": r"event_fn does not work inside torch.func transforms .* use autograd .* and a loop over the batch",
    "F": r"does not work inside torch.func transforms .* use (sdeint with )?gradient='direct'",
    "K": r"has no argument dense_output=: (call odeint_dense|ask for all the times in ts=)",
    "N": r"ts must not require a gradient: .* write ts.detach\(\)",
    "R": r"the SDE draws random numbers, which gradient='reversible' .* cannot draw again .* gradient='checkpointed'",
    "S": r"func draws random numbers, and others each time: it has no slope .* Draw the numbers beforehand",
    "T": r"the derivative with respect to the time of an event, .* can be taken only once",
    "c": r"does not support callbacks, and callback_step will not be called: odeint and solve_ivp call them",
    "r": r"draws random numbers, and .* has drawn others on the way back: .* Use gradient='checkpointed'",
}


def cells():
    header, *lines = TABLE.strip("\n").splitlines()
    for line in lines:
        door, entries = re.fullmatch(r"(\S.*?\S) {2,}(.*)", line).groups()
        yield from (((door, feature), entry) for feature, entry in zip(header.split(), entries.split(), strict=True))


CELLS = dict(cells())


def test_the_table_is_complete():
    assert list(CELLS) == list(itertools.product(DOORS, FEATURES))
    assert set(CELLS.values()) == {".", *SENTENCES}


FAST = {
    "stiff, direct": ("fwd", "vjp", "map", "2nd", "cpx", "cmp", "t"),
    "stiff rows, direct": ("f64", "cpx", "rev", "inf"),
}


def fast_and_swept():
    """Of the solves with a change of method, which take longer, those that differ from others."""
    for door, feature in CELLS:
        swept = door.startswith("stiff") and feature not in FAST.get(door, ("f64",))
        yield pytest.param(door, feature, marks=pytest.mark.sweep if swept else ())


@pytest.mark.parametrize(("door", "feature"), list(fast_and_swept()))
def test_cell(door, feature):
    entry = CELLS[door, feature]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=UserWarning, module=__name__)  # those that point at a line of ours
        if entry == ".":
            FEATURES[feature](DOORS[door])
            return
        error = UserWarning if entry.islower() else (TypeError, ValueError, RuntimeError)
        with pytest.raises(error, match=SENTENCES[entry]):
            FEATURES[feature](DOORS[door])
