"""What programs written for torchdiffeq rely on besides the numbers: who is called, when, with what."""

import math
import warnings
from functools import partial
from itertools import pairwise

import pytest
import torch
import torchdiffeq as theirs
from torch import nn
from torchdiffeq._impl import misc as their_misc

import torchivp
from torchivp.compat import torchdiffeq as ours
from torchivp.compat.torchdiffeq._impl import misc as our_misc
from torchivp.compat.torchdiffeq._impl.odeint import SOLVERS

D = torch.float64
ADAPTIVE = ["dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun"]
EXPLICIT = ["euler", "midpoint", "heun2", "heun3", "rk4"]
NOT_SCIPY = [name for name in SOLVERS if name != "scipy_solver"]
FIXED = [name for name in NOT_SCIPY if name not in (*ADAPTIVE, "tsit5", "adams")]
SIZED = {"options": {"step_size": 0.01, "interp": "cubic"}}
LIBRARIES = (ours, theirs)

# Imported before any test runs: one may install the stand-in, after which the name leads there.
NULL_CALLBACKS = {ours: our_misc._null_callback, theirs: their_misc._null_callback}

T = torch.linspace(0.0, 1.0, 3, dtype=D)
Y0 = torch.tensor([1.0, 0.5], dtype=D)


def with_steps(method):
    """The options with which every method solves an easy problem well."""
    return SIZED if method in FIXED else {}


class Recorded(nn.Module):
    """y' = -a y, which keeps what it was told."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(1.0, dtype=D))
        self.calls = []
        self.evaluated = []

    def forward(self, t, y):
        self.evaluated.append(t.item())
        return tuple(-self.a * part for part in y) if isinstance(y, tuple) else -self.a * y

    def note(self, name, t, y, dt):
        shapes = [part.shape for part in y] if isinstance(y, tuple) else y.shape
        self.calls.append((name, t.item(), shapes, dt.item()))


for name in ("callback_step", "callback_accept_step", "callback_reject_step"):
    for suffix in ("", "_adjoint"):
        setattr(Recorded, name + suffix, lambda self, t, y, dt, name=name + suffix: self.note(name, t, y, dt))


def recorded(library, name, y0=Y0, t=T, **kwargs):
    func = Recorded()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # methods of fixed steps call callback_step only, and say so
        solution = getattr(library, name)(func, y0, t, **kwargs)
        if name == "odeint_adjoint":
            (solution[0] if isinstance(solution, tuple) else solution).sum().backward()
    return func


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("y0", [Y0, (Y0, Y0[:1])], ids=["tensor", "tuple"])
@pytest.mark.parametrize("options", [{}, {"step_size": 0.1}])
@pytest.mark.parametrize("method", EXPLICIT)
def test_callbacks_of_fixed_steps(method, options, y0, direction):
    calls = [recorded(lib, "odeint", y0, direction * T, method=method, options=options).calls for lib in LIBRARIES]
    assert len(calls[0]) == len(calls[1]) == (10 if options else 2)
    for (name, t, shapes, dt), (their_name, their_t, their_shapes, their_dt) in zip(*calls, strict=True):
        assert (name, shapes) == (their_name, their_shapes)
        assert t == pytest.approx(their_t, abs=1e-15) and dt == pytest.approx(their_dt, rel=1e-12)
        assert dt > 0


@pytest.mark.parametrize("method", FIXED)
def test_callback_step_is_called_once_for_every_step_forward_and_backward(method):
    t = torch.tensor([0.0, 1.0], dtype=D)
    func = recorded(ours, "odeint_adjoint", t=t, method=method, options={"step_size": 0.1})
    names = [name for name, *_ in func.calls]
    assert names == ["callback_step"] * 10 + ["callback_step_adjoint"] * 10


@pytest.mark.parametrize("y0", [Y0, (Y0, Y0[:1])], ids=["tensor", "tuple"])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_callbacks_of_adaptive_steps(method, y0):
    for library in LIBRARIES:
        func = recorded(library, "odeint_adjoint", y0, method=method, rtol=1e-4, atol=1e-4, options={"first_step": 0.5})
        for suffix in ("", "_adjoint"):
            names = [n for n, *_ in func.calls if n.endswith("adjoint") == (suffix != "")]
            assert names[::2] == [f"callback_step{suffix}"] * (len(names) // 2)
            assert set(names[1::2]) <= {f"callback_accept_step{suffix}", f"callback_reject_step{suffix}"}
        shapes = [shapes for name, _, shapes, _ in func.calls if name.endswith("adjoint")]
        state = Y0.shape if y0 is Y0 else torch.Size([3])  # a tuple is flat here
        assert shapes[0] == [torch.Size([]), state, state, torch.Size([])]


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("perturb", [False, True])
@pytest.mark.parametrize("method", EXPLICIT)
def test_where_func_is_evaluated(method, perturb, direction):
    options = {"step_size": 0.25, "perturb": perturb, "interp": "linear"}
    mine, others = (recorded(lib, "odeint", t=direction * T, method=method, options=options) for lib in LIBRARIES)
    assert mine.evaluated == pytest.approx(others.evaluated, abs=1e-15)
    grid = {direction * i / 4 for i in range(5)}
    assert grid.isdisjoint(mine.evaluated) if perturb else set(mine.evaluated) & grid
    assert grid.isdisjoint(others.evaluated) if perturb else set(others.evaluated) & grid


@pytest.mark.parametrize("method", FIXED)
def test_perturb_moves_every_evaluation_off_the_grid(method):
    grid = {i / 4 for i in range(5)}
    func = recorded(ours, "odeint", method=method, options={"step_size": 0.25, "perturb": True, "interp": "linear"})
    assert func.evaluated and grid.isdisjoint(func.evaluated)


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("name", ["odeint", "odeint_adjoint"])
def test_grid_constructor(name, direction):
    """Called with the times asked for, signed as the user signs them, in both directions and both solves."""
    seen, solutions, gradients = [], [], []
    for library in LIBRARIES:
        calls = []

        def constructor(func, y0, t):
            calls.append(t.tolist())
            return torch.cat([torch.linspace(a, b, 4, dtype=D)[:-1] for a, b in pairwise(t)] + [t[-1:]])

        func = Recorded()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            solution = getattr(library, name)(
                func, Y0, direction * T, method="rk4", options={"grid_constructor": constructor}
            )
            gradients.append(torch.autograd.grad(solution.sum(), func.a)[0])
        solutions.append(solution.detach())
        seen.append(calls)
    torch.testing.assert_close(*solutions, rtol=1e-14, atol=0)
    torch.testing.assert_close(*gradients, rtol=1e-13, atol=0)
    assert seen[0][0] == seen[1][0] == (direction * T).tolist()
    if name == "odeint_adjoint":
        backward = [(direction * leg).tolist() for leg in (T[[2, 1]], T[[1, 0]])]
        assert seen[0][1:] == backward
        # torchdiffeq shows it the negated times in the adjoint of a solve backwards in time.
        assert seen[1][1:] == (backward if direction == 1 else (-torch.tensor(backward)).tolist())


def test_grid_constructor_with_an_event_is_given_two_times():
    calls = []

    def constructor(func, y0, t):
        calls.append(tuple(t.shape))
        return torch.linspace(float(t[0]), float(t[-1]), 20, dtype=D)

    t = torch.tensor([0.0, 2.0], dtype=D)
    event_t, _ = ours.odeint(
        lambda t, y: -y,
        Y0,
        t,
        method="rk4",
        options={"grid_constructor": constructor},
        event_fn=lambda t, y: y[0] - 0.5,
    )
    assert calls == [(2,)] and event_t.item() == pytest.approx(math.log(2), rel=1e-4)


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("option", ["step_t", "jump_t"])
@pytest.mark.parametrize("method", ["dopri5", "bosh3", "dopri8"])
def test_steps_end_on_step_t_and_jump_t(method, option, direction):
    stops = direction * torch.tensor([0.7, 0.3], dtype=D)
    for library in LIBRARIES:
        func = Recorded()
        options = {option: stops, "first_step": 0.2}
        solution = library.odeint(func, Y0, direction * T, method=method, options=options)
        starts = [t for name, t, *_ in func.calls if name == "callback_accept_step"]
        assert all(min(abs(start - stop) for start in starts) < 1e-15 for stop in stops.tolist())
        exact = Y0 * torch.exp(-direction * T)[:, None]
        torch.testing.assert_close(solution.detach(), exact, rtol=1e-6 if library is ours else 1e-4, atol=0)


@pytest.mark.parametrize("direction", [1, -1])
def test_jumps_of_func(direction):
    def func(t, y):
        return torch.where(t * direction < 0.5, 1.0, 3.0) * torch.ones_like(y)

    for library in LIBRARIES:
        options = {"jump_t": direction * torch.tensor([0.5], dtype=D)}
        solution = library.odeint(func, Y0, direction * T, options=options)
        torch.testing.assert_close(solution[-1], Y0 + 2 * direction, rtol=1e-12, atol=0)


def test_lists_of_step_t_hold_in_reversed_time_too():
    """torchdiffeq forgets to negate a list."""
    ends = {}
    for library in LIBRARIES:
        func = Recorded()
        library.odeint(func, Y0, -T, options={"step_t": [-0.3], "first_step": 0.2})
        ends[library] = [t for name, t, *_ in func.calls if name == "callback_accept_step"]
    assert -0.3 in ends[ours] and -0.3 not in ends[theirs]


@pytest.mark.parametrize("y0", [Y0, (Y0, Y0[:1])], ids=["tensor", "tuple"])
def test_norms_receive_what_the_state_is(y0):
    shapes = []
    for library in LIBRARIES:
        seen = set()

        def norm(error):
            parts = error if isinstance(error, tuple) else (error,)
            seen.add((isinstance(error, tuple), tuple(part.shape for part in parts)))
            return max(part.abs().max() for part in parts)

        library.odeint(Recorded(), y0, T, options={"norm": norm})
        shapes.append(seen)
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("y0", [Y0, (Y0, Y0[:1])], ids=["tensor", "tuple"])
def test_adjoint_norms_receive_the_same_tuple(y0):
    shapes, gradients = [], []
    for library in LIBRARIES:
        seen = set()

        def norm(error):
            seen.add(tuple(part.shape for part in error))
            return max(part.abs().max() for part in error)

        func = Recorded()
        solution = library.odeint_adjoint(func, y0, T, adjoint_options={"norm": norm})
        states = solution[0] if isinstance(solution, tuple) else solution
        gradients.append(torch.autograd.grad(states.sum(), func.a)[0])
        shapes.append(seen)
    assert shapes[0] == shapes[1] and len(shapes[0]) == 1
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=0)


def test_seminorm():
    for library in LIBRARIES:
        func = Recorded()
        solution = library.odeint_adjoint(func, Y0, T, adjoint_options={"norm": "seminorm"})
        (gradient,) = torch.autograd.grad(solution[-1].sum(), func.a)
        assert gradient.item() == pytest.approx(-1.5 * math.exp(-1), rel=1e-5)


def node_behind(tensor, depth):
    """The node of the graph so many steps down from a tensor, following the first branch."""
    node = tensor.grad_fn
    for _ in range(depth):
        node = node.next_functions[0][0]
    return node


@pytest.mark.parametrize("library", LIBRARIES, ids=["ours", "theirs"])
@pytest.mark.parametrize("y0", [Y0, (Y0, Y0[:1])], ids=["tensor", "tuple"])
def test_the_norm_of_the_backward_solve_can_be_exchanged_on_the_node(library, y0):
    func = Recorded()
    solution = library.odeint_adjoint(func, y0, T)
    out = solution if isinstance(solution, torch.Tensor) else solution[0]
    node = node_behind(out, 0 if isinstance(y0, torch.Tensor) else 2)
    assert isinstance(node.adjoint_options, dict)
    default, shapes = node.adjoint_options["norm"], []

    def norm(parts):
        t, y, adj_y, *params = parts
        shapes.append((t.shape, y.shape, adj_y.shape, [p.shape for p in params]))
        size = default(parts)
        assert isinstance(size, torch.Tensor) and size.shape == ()
        return size

    node.adjoint_options["norm"] = norm
    out.sum().backward()
    size = Y0.shape if isinstance(y0, torch.Tensor) else torch.Size([3])
    assert shapes and set(map(str, shapes)) == {str((torch.Size([]), size, size, [torch.Size([])]))}


@pytest.mark.parametrize("library", LIBRARIES, ids=["ours", "theirs"])
def test_callbacks_that_are_none_are_not_warned_of(library):
    """Programs put torchdiffeq's own `_null_callback` where they have no callback."""
    func = Recorded()
    names = ["callback_step", "callback_accept_step", "callback_reject_step"]
    for name in [*names, *(f"{name}_adjoint" for name in names)]:
        setattr(func, name, NULL_CALLBACKS[library])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        library.odeint_adjoint(func, Y0, T, method="rk4").sum().backward()


@pytest.mark.parametrize("name", ["odeint", "odeint_adjoint"])
@pytest.mark.parametrize("method", NOT_SCIPY)
def test_events_with_every_method(method, name):
    func = Recorded()
    y0 = Y0.clone().requires_grad_()
    t0 = torch.tensor(0.0, dtype=D, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the callbacks that fixed steps do not have
        event_t, solution = ours.odeint_event(
            func,
            y0,
            t0,
            event_fn=lambda t, y: y[0] - 0.5,
            odeint_interface=getattr(ours, name),
            method=method,
            rtol=1e-6,
            atol=1e-8,
            **with_steps(method),
        )
        assert solution.shape == (2, 2) and event_t.item() == pytest.approx(math.log(2), abs=0.01)
        gradients = torch.autograd.grad(event_t, [y0, t0, func.a])
    for gradient, exact in zip(gradients, ([1.0, 0.0], 1.0, -math.log(2)), strict=True):
        assert gradient.tolist() == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize("name", ["odeint", "odeint_adjoint"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("y0", [Y0, (Y0, Y0[:1])], ids=["tensor", "tuple"])
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_odeint_event(method, y0, reverse, name):
    """Times, states and gradients of an event with two elements, of which the second comes first."""
    level = 2.0 if reverse else 0.5

    def event_fn(t, y):
        y = y[0] if isinstance(y, tuple) else y
        return torch.stack([y[0] - 10 * level if reverse else y[0] - 0.1 * level, y[0] - level])

    results = []
    for library in LIBRARIES:
        func = Recorded()
        starts = [part.clone().requires_grad_() for part in (y0 if isinstance(y0, tuple) else (y0,))]
        start = tuple(starts) if isinstance(y0, tuple) else starts[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            event_t, solution = library.odeint_event(
                func,
                start,
                torch.tensor(0.2, dtype=D),
                event_fn=event_fn,
                reverse_time=reverse,
                odeint_interface=getattr(library, name),
                method=method,
                atol=1e-9,
                **with_steps(method),
            )
            leaves = solution if isinstance(solution, tuple) else (solution,)
            loss = event_t + sum(leaf.square().sum() for leaf in leaves)
            gradients = torch.autograd.grad(loss, [*starts, func.a])
        results.append([event_t.detach(), *(leaf.detach() for leaf in leaves), *gradients])
    for mine, other in zip(*results, strict=True):
        assert mine.shape == other.shape and mine.dtype == other.dtype
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["odeint", "odeint_adjoint"])
def test_small_shapes(name):
    results = []
    for library in LIBRARIES:
        solver = partial(getattr(library, name), Recorded())
        scalar = torch.tensor(1.0, dtype=D)
        results.append(
            [
                solver(scalar, T),
                solver(Y0, T[:1]),
                *solver((Y0, torch.empty(0, dtype=D)), T),
                *solver((Y0, scalar), T, rtol=(1e-6, 1e-4), atol=(1e-8, 1e-6)),
                solver(Y0, T, rtol=torch.tensor([1e-6, 1e-4]), atol=(1e-8, 1e-6)),
            ]
        )
    for mine, other in zip(*results, strict=True):
        assert mine.shape == other.shape and mine.dtype == other.dtype
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["odeint", "odeint_adjoint"])
@pytest.mark.parametrize("time_dtype", [torch.float32, D])
@pytest.mark.parametrize("state_dtype", [torch.float32, D, torch.complex64, torch.complex128])
def test_dtypes(state_dtype, time_dtype, name):
    """func gets the time in the real dtype of the state, whatever that of t."""
    for library in LIBRARIES:
        seen = set()

        def func(t, y):
            seen.add((t.dtype, t.shape, y.dtype))
            return -y

        y0 = Y0.to(state_dtype)
        solution = getattr(library, name)(
            func, y0, T.to(time_dtype), rtol=1e-4, atol=1e-4, **({"adjoint_params": ()} if "adjoint" in name else {})
        )
        assert solution.dtype == state_dtype
        assert seen == {(state_dtype.to_real(), torch.Size([]), state_dtype)}


@pytest.mark.parametrize("library", LIBRARIES, ids=["ours", "theirs"])
def test_options_are_left_as_they_are(library):
    options = {"first_step": 0.1, "jump_t": torch.tensor([-0.5], dtype=D)}
    given = dict(options)
    library.odeint_adjoint(Recorded(), Y0, -T, options=options)
    assert options == given


@pytest.mark.parametrize("library", LIBRARIES, ids=["ours", "theirs"])
def test_unknown_options_are_named_in_a_warning(library):
    with pytest.warns(UserWarning, match="Unexpected arguments.*stepsize"):
        library.odeint(lambda t, y: -y, Y0, T, options={"stepsize": 0.1})


def test_max_num_steps_is_for_the_whole_solve():
    """torchdiffeq counts from output to output. The error is an AssertionError in both."""
    t = torch.linspace(0, 10, 50, dtype=D)
    for solve in (
        lambda: theirs.odeint(lambda t, y: -y, Y0, t[[0, -1]], options={"max_num_steps": 3}),
        lambda: ours.odeint(lambda t, y: -y, Y0, t, options={"max_num_steps": 3}),
    ):
        with pytest.raises(AssertionError):
            solve()
    theirs.odeint(lambda t, y: -y, Y0, t, options={"max_num_steps": 3})


def test_dense_output():
    t = torch.linspace(0.05, 0.95, 7, dtype=D)
    mine, other = (library.odeint_dense(lambda t, y: -y, Y0, T[0], T[-1], method="dopri5") for library in LIBRARIES)
    torch.testing.assert_close(mine(t), torch.stack([other(s) for s in t]), rtol=1e-6, atol=1e-7)


def test_tuples_may_be_returned_as_lists():
    for library in LIBRARIES:
        a, b = library.odeint(lambda t, y: [-y[0], -y[1]], (Y0, Y0[:1]), T)
        assert a.shape == (3, 2) and b.shape == (3, 1)


def test_replicas_of_a_module_find_their_parameters():
    """nn.DataParallel makes copies that no longer list their parameters."""
    replica = Recorded()._replicate_for_data_parallel()
    replica.a = torch.tensor(1.0, dtype=D, requires_grad=True).clone()
    replica._former_parameters = {"a": replica.a}
    solution = ours.odeint_adjoint(replica, Y0, T)
    (gradient,) = torch.autograd.grad(solution[-1].sum(), replica.a)
    assert gradient.item() == pytest.approx(-1.5 * math.exp(-1), rel=1e-5)


@pytest.mark.parametrize("method", FIXED)
def test_gradcheck(method):
    """Where the steps follow from t, the gradient is that of the steps to rounding, by t too."""
    weight = torch.tensor([[-0.3, 0.8], [-0.7, 0.1]], dtype=D, requires_grad=True)

    def solve(y0, t, weight):
        return ours.odeint(lambda t, y: (y @ weight) * t, y0, t, method=method, rtol=1e-10, atol=1e-10)

    t = torch.tensor([0.1, 0.2, 0.35, 0.4, 0.6, 0.7], dtype=D, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the corrector of implicit_adams is not asked for so much
        assert torch.autograd.gradcheck(solve, (Y0.clone().requires_grad_(), t, weight), fast_mode=True)


FAILURES = {
    "underflow in dt": (lambda t, y: y**2, {}),
    "max_num_steps exceeded": (lambda t, y: -y, {"options": {"max_num_steps": 3}}),
    "underflow in dt, non-finite values in state `y`": (lambda t, y: y / 0, {}),
}


@pytest.mark.parametrize("words", FAILURES)
@pytest.mark.parametrize("name", ["odeint", "odeint_adjoint", "odeint_dense", "odeint_event", "a solver"])
def test_failures_begin_with_torchdiffeqs_words(name, words):
    func, kwargs = FAILURES[words]
    y0, t = torch.ones(2, dtype=D), torch.tensor([0.0, 2.0], dtype=D)
    calls = {
        "odeint": lambda: ours.odeint(func, y0, t, **kwargs),
        "odeint_adjoint": lambda: ours.odeint_adjoint(func, y0.requires_grad_(), t, adjoint_params=(), **kwargs),
        "odeint_dense": lambda: ours.odeint_dense(func, y0, t[0], t[1], **kwargs),
        "odeint_event": lambda: ours.odeint_event(func, y0, t[0], event_fn=lambda t, y: y[0] + t + 100, **kwargs),
        "a solver": lambda: SOLVERS["dopri5"](func=func, y0=y0, **kwargs.get("options", {})).integrate(t),
    }
    with pytest.raises(AssertionError) as caught:
        calls[name]()
    assert str(caught.value).startswith(words) and caught.value.args == (str(caught.value),)
    assert str(caught.value).endswith(caught.value.status.message)


def test_failures_of_the_backward_pass_begin_with_torchdiffeqs_words():
    y0 = torch.ones(2, dtype=D, requires_grad=True)
    for library in LIBRARIES:
        solution = library.odeint_adjoint(
            lambda t, y: -y, y0, T, adjoint_params=(), adjoint_options={"max_num_steps": 1, "first_step": 1e-3}
        )
        with pytest.raises(AssertionError, match=r"^max_num_steps exceeded"):
            solution.sum().backward()


def test_torchivps_own_failures_keep_their_sentences():
    with pytest.raises(AssertionError, match=r"^max_steps = 3 step attempts"):
        torchivp.odeint(lambda t, y: -y, Y0, T, options={"max_num_steps": 3})
