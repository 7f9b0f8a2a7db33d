"""The names that programs take from within torchdiffeq do what they do there."""

import gc
import importlib
import pkgutil
import warnings
import weakref
from itertools import pairwise

import pytest
import torch
import torchdiffeq as theirs
from torch import nn

from torchivp.compat import torchdiffeq as ours
from torchivp.compat.torchdiffeq._impl.adjoint import find_parameters
from torchivp.compat.torchdiffeq._impl.fixed_grid import RK4, Euler
from torchivp.compat.torchdiffeq._impl.misc import Perturb, _check_inputs, _flat_to_shape
from torchivp.compat.torchdiffeq._impl.odeint import SOLVERS
from torchivp.compat.torchdiffeq._impl.rk_common import RKAdaptiveStepsizeODESolver, _ButcherTableau
from torchivp.compat.torchdiffeq._impl.solvers import (
    AdaptiveStepsizeEventODESolver,
    FixedGridODESolver,
)

D = torch.float64
Y0 = torch.tensor([[1.0, 0.5, -0.3], [0.2, 0.1, 0.4]], dtype=D)
T = torch.linspace(0.0, 1.0, 5, dtype=D)

FIXED = [name for name, cls in SOLVERS.items() if issubclass(cls, FixedGridODESolver)]


# Imported before any test runs: one may install the stand-in, after which the names lead there.
THEIRS = {
    module.name: importlib.import_module(f"torchdiffeq._impl.{module.name}")
    for module in pkgutil.iter_modules(importlib.import_module("torchdiffeq._impl").__path__)
}


def their(module):
    return THEIRS[module]


def our(module):
    return importlib.import_module(f"torchivp.compat.torchdiffeq._impl.{module}")


def field(t, y, perturb=Perturb.NONE):
    return torch.sin(3 * t) * y - 0.5 * y * y


@pytest.fixture
def registered(monkeypatch):
    """Register a solver class for one test."""
    return lambda cls: monkeypatch.setitem(SOLVERS, "mine", cls)


def test_every_module_of_torchdiffeq_has_a_stand_in():
    for module in THEIRS:
        assert our(module).__name__.startswith("torchivp.")


def test_every_solver_of_torchdiffeq_is_there_under_the_name_of_its_class():
    for name, cls in their("odeint").SOLVERS.items():
        module = cls.__module__.removeprefix("torchdiffeq._impl.")
        assert getattr(our(module), cls.__name__) is SOLVERS[name]
        assert SOLVERS[name].valid_callbacks() == cls.valid_callbacks()
        if hasattr(cls, "order"):
            assert SOLVERS[name].order == cls.order


@pytest.mark.filterwarnings("ignore:Functional iteration did not converge:UserWarning")
@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_are_made_and_told_to_integrate(name):
    options = {"step_size": 0.25} if name in FIXED else {}
    solver = SOLVERS[name](func=field, y0=Y0, rtol=1e-6, atol=1e-8, **options)
    solution = solver.integrate(T)
    assert solution.shape == (5, 2, 3)
    torch.testing.assert_close(
        solution, ours.odeint(field, Y0, T, method=name, rtol=1e-6, atol=1e-8, options=options), rtol=0, atol=0
    )


@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "scipy_solver"])
def test_solvers_integrate_until_an_event(name):
    options = {"step_size": 0.01} if name in FIXED else {}
    solver = SOLVERS[name](func=lambda t, y: -y, y0=Y0, rtol=1e-6, atol=1e-8, **options)
    event_t, solution = solver.integrate_until_event(T[0], lambda t, y: y[0, 0] - 0.5)
    assert event_t.item() == pytest.approx(0.693, abs=0.01) and solution.shape == (2, 2, 3)


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("name", ["dopri5", "rk4"])
def test_checked_inputs_drive_a_solver(name, direction):
    """The way in which programs with an odeint of their own use solver classes."""
    y0, times = (Y0, Y0[0]), direction * T
    seen = []

    class Listening(nn.Module):
        def forward(self, t, y):
            return field(t, y[0]), -y[1]

        def callback_step(self, t, y, dt):
            seen.append((t.item(), [part.shape for part in y]))

    results = []
    for module, solvers in ((our("misc"), SOLVERS), (their("misc"), their("odeint").SOLVERS)):
        seen.clear()
        checked = module._check_inputs(Listening(), y0, times, (1e-8, 1e-8), 1e-9, name, None, None, solvers)
        shapes, func, flat, t, rtol, atol, method, options, event_fn, is_reversed = checked
        assert is_reversed is (direction == -1) and event_fn is None and method == name and "norm" in options
        assert flat.shape == (9,) and (t[1:] > t[:-1]).all()
        solution = solvers[method](func=func, y0=flat, rtol=rtol, atol=atol, **options).integrate(t)
        results.append(module._flat_to_shape(solution, (len(t),), shapes))
        assert seen[0] == (times[0].item(), [Y0.shape, Y0[0].shape])
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)


def test_checked_inputs_refuse_what_odeint_refuses():
    with pytest.raises(ValueError, match="unknown method 'nothing'"):
        _check_inputs(field, Y0, T, 1e-3, 1e-3, "nothing", None, None, SOLVERS)
    with pytest.raises(ValueError, match="t must be"):
        _check_inputs(field, Y0, T, 1e-3, 1e-3, None, None, lambda t, y: y, SOLVERS)


@pytest.mark.parametrize("name", ["euler", "midpoint", "heun2", "heun3", "rk4"])
@pytest.mark.parametrize("perturb", [False, True])
def test_step_functions(name, perturb):
    t0, dt = torch.tensor(0.3, dtype=D), torch.tensor(0.1, dtype=D)
    mine = SOLVERS[name](func=field, y0=Y0, atol=1e-9, perturb=perturb)
    other = their("odeint").SOLVERS[name](func=field, y0=Y0, atol=1e-9, perturb=perturb)
    (dy, f0), (their_dy, their_f0) = (
        mine._step_func(field, t0, dt, t0 + dt, Y0),
        other._step_func(their("misc")._PerturbFunc(field), t0, dt, t0 + dt, Y0),
    )
    torch.testing.assert_close(dy, their_dy, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(f0, their_f0, rtol=1e-13, atol=0)


@pytest.mark.parametrize("name", FIXED)
def test_every_method_of_fixed_steps_has_a_step_function(name):
    t0, dt = torch.tensor(0.3, dtype=D), torch.tensor(0.01, dtype=D)
    dy, f0 = SOLVERS[name](func=field, y0=Y0, atol=1e-9)._step_func(field, t0, dt, t0 + dt, Y0)
    torch.testing.assert_close(f0, field(t0, Y0))
    torch.testing.assert_close(dy, dt * f0, rtol=0, atol=1e-3)


def test_interpolation():
    data = [torch.randn(3, dtype=D) for _ in range(5)]
    t0, t1, t = (torch.tensor(s, dtype=D) for s in (0.5, 0.9, 0.63))
    mine, other = (module._interp_fit(*data, t1 - t0) for module in (our("interp"), their("interp")))
    torch.testing.assert_close(list(mine), list(other))
    torch.testing.assert_close(
        our("interp")._interp_evaluate(mine, t0, t1, t), their("interp")._interp_evaluate(other, t0, t1, t)
    )
    mine, other = (Euler(field, Y0), their("fixed_grid").Euler(field, Y0, atol=0.0))
    y0, y1, f0, f1, _ = data
    torch.testing.assert_close(mine._linear_interp(t0, t1, y0, y1, t), other._linear_interp(t0, t1, y0, y1, t))
    torch.testing.assert_close(
        mine._cubic_hermite_interp(t0, y0, f0, t1, y1, f1, t), other._cubic_hermite_interp(t0, y0, f0, t1, y1, f1, t)
    )


@pytest.mark.parametrize(
    ("module", "name"),
    [("dopri5", "_DORMAND_PRINCE_SHAMPINE_TABLEAU"), ("bosh3", "_BOGACKI_SHAMPINE_TABLEAU")],
)
def test_tableaus(module, name):
    mine, other = getattr(our(module), name), getattr(their(module), name)
    torch.testing.assert_close(mine.alpha, other.alpha)
    torch.testing.assert_close(list(mine.beta), list(other.beta))
    torch.testing.assert_close(mine.c_sol, other.c_sol)
    torch.testing.assert_close(mine.c_error, other.c_error, rtol=1e-13, atol=1e-17)


def test_the_middle_of_a_step_of_dopri5():
    torch.testing.assert_close(our("dopri5").DPS_C_MID, their("dopri5").DPS_C_MID, rtol=1e-9, atol=1e-12)


def test_a_step_of_a_tableau():
    func = their("misc")._PerturbFunc(field)
    t0, t1 = torch.tensor(0.2, dtype=D), torch.tensor(0.4, dtype=D)
    tableau = their("dopri5")._DORMAND_PRINCE_SHAMPINE_TABLEAU
    arguments = (Y0, field(t0, Y0), t0, t1 - t0, t1, tableau)
    mine = our("rk_common")._runge_kutta_step(field, *arguments)
    other = their("rk_common")._runge_kutta_step(func, *arguments)
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    for name in ("rk4_step_func", "rk4_alt_step_func"):
        a = getattr(our("rk_common"), name)(field, t0, t1 - t0, t1, Y0)
        torch.testing.assert_close(a, getattr(their("rk_common"), name)(func, t0, t1 - t0, t1, Y0), rtol=1e-13, atol=0)


def test_norms_and_step_sizes():
    mine, other = our("misc"), their("misc")
    x = torch.tensor([3.0, -4.0], dtype=D)
    for name in ("_linf_norm", "_rms_norm", "_zero_norm"):
        assert float(getattr(mine, name)(x)) == float(getattr(other, name)(x))
    assert float(mine._mixed_norm((x, 2 * x))) == float(other._mixed_norm((x, 2 * x)))
    assert mine._mixed_norm(()) == 0.0
    ratio = [m._compute_error_ratio(x, 0.1, 0.2, x, 2 * x, m._rms_norm) for m in (mine, other)]
    torch.testing.assert_close(*ratio)
    constants = [torch.tensor(value, dtype=D) for value in (0.9, 10.0, 0.2)]
    for value in (0.0, 1e-9, 0.5, 0.99, 1.5, 1e9):
        size = [
            m._optimal_step_size(torch.tensor(0.1, dtype=D), torch.tensor(value, dtype=D), *constants, 5)
            for m in (mine, other)
        ]
        torch.testing.assert_close(*size)
    first = [m._select_initial_step(field, T[0], Y0, 4, 1e-6, 1e-8, m._rms_norm) for m in (mine, other)]
    torch.testing.assert_close(*first)
    assert bool(mine._decreasing(-T)) and not bool(mine._decreasing(T))


def test_find_parameters():
    module = nn.Linear(2, 2)
    assert [id(p) for p in find_parameters(module)] == [id(p) for p in module.parameters()]


class OwnStep(FixedGridODESolver):
    """The midpoint method, as a program would write it."""

    order = 2

    def _step_func(self, func, t0, dt, t1, y0):
        assert dt > 0 and t1 > t0  # a program may take the root of dt
        f0 = func(t0, y0, perturb=Perturb.NEXT if self.perturb else Perturb.NONE)
        return dt * func(t0 + 0.5 * dt, y0 + 0.5 * dt * f0), f0


def silent_field():
    """The field as torchdiffeq hands it to a solver, without callbacks."""
    func = their("misc")._PerturbFunc(field)
    func.callback_step = lambda *args: None
    return func


def test_states_between_steps_of_a_solver_class_lie_on_a_line_unless_it_says_otherwise(monkeypatch):
    """As in torchdiffeq: for steps that torchivp takes, for a loop of one's own, and for the solvers of its methods."""
    t = torch.tensor([0.0, 0.13, 0.3], dtype=D)
    for options in ({"step_size": 0.1}, {"step_size": 0.1, "interp": "cubic"}):
        solutions = []
        for solvers, library in ((SOLVERS, ours), (their("odeint").SOLVERS, theirs)):
            base = FixedGridODESolver if library is ours else their("solvers").FixedGridODESolver

            class Own(base):
                order = 1

                def _step_func(self, func, t0, dt, t1, y0):
                    f0 = func(t0, y0)
                    return dt * f0, f0

            class OwnLoop(Own):
                def integrate(self, t):
                    assert self.interp == options.get("interp", "linear")
                    return super().integrate(t)

            states = [solvers["euler"](func=silent_field(), y0=Y0, atol=1e-9, **options).integrate(t)]
            for cls in (Own, OwnLoop):
                monkeypatch.setitem(solvers, "mine", cls)
                states.append(library.odeint(field, Y0, t, method="mine", options=options))
            solutions.append(states)
        for mine, other in zip(*solutions, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-12, atol=0)


@pytest.mark.parametrize("y0", [Y0, (Y0, Y0[0])], ids=["tensor", "tuple"])
@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("name", ["odeint", "odeint_adjoint"])
@pytest.mark.parametrize(
    "options", [None, {"step_size": 0.1, "interp": "cubic"}, {"step_size": 0.1, "interp": "linear", "perturb": True}]
)
def test_a_registered_step_function_is_as_good_as_the_method_itself(registered, options, name, direction, y0):
    registered(OwnStep)
    scale = torch.tensor(0.5, dtype=D, requires_grad=True)
    calls = []

    class Field(nn.Module):
        def forward(self, t, y):
            return tuple(field(t, scale * part) for part in y) if isinstance(y, tuple) else field(t, scale * y)

        def callback_step(self, t, y, dt):
            calls.append((round(t.item(), 12), round(dt.item(), 12)))

    results = []
    for method in ("mine", "midpoint"):
        t = (direction * T).requires_grad_()
        kwargs = {"adjoint_params": (scale,)} if name == "odeint_adjoint" else {}
        solution = getattr(ours, name)(Field(), y0, t, method=method, options=options, **kwargs)
        last = solution if isinstance(solution, torch.Tensor) else solution[0]
        results.append([last.detach(), *torch.autograd.grad(last.square().sum(), [scale, t]), list(calls)])
        calls.clear()
    assert results[0][-1] == results[1][-1] != []
    for mine, other in zip(results[0][:-1], results[1][:-1], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-12)


def test_a_registered_step_function_finds_events(registered):
    registered(OwnStep)
    y0 = Y0.clone().requires_grad_()
    event_t, _ = ours.odeint_event(
        lambda t, y: -y,
        y0,
        T[0],
        event_fn=lambda t, y: y[0, 0] - 0.5,
        method="mine",
        options={"step_size": 0.01},
        odeint_interface=ours.odeint_adjoint,
    )
    (gradient,) = torch.autograd.grad(event_t, y0)
    assert event_t.item() == pytest.approx(0.6931, abs=1e-4) and gradient[0, 0].item() == pytest.approx(1.0, abs=1e-3)
    dense = ours.odeint_dense(lambda t, y: -y, Y0, 0.0, 1.0, method="mine", options={"step_size": 0.01})
    torch.testing.assert_close(dense(0.503), Y0 * torch.exp(torch.tensor(-0.503, dtype=D)), rtol=1e-4, atol=0)


def test_the_graph_is_freed_with_the_result_of_a_registered_step_function(registered):
    registered(OwnStep)
    saved = []

    def keep(y):
        saved.append(weakref.ref(y))
        return y

    gc.collect()
    gc.disable()
    try:
        y0 = keep(Y0.clone().requires_grad_().sin())
        solution = ours.odeint(lambda t, y: keep(torch.sin(y)), y0, T, method="mine")
        del y0, solution
        assert len(saved) > 1 and all(reference() is None for reference in saved)
    finally:
        gc.enable()


def test_options_of_its_own_reach_the_solver(registered):
    class Damped(OwnStep):
        def __init__(self, func, y0, damping, **kwargs):
            super().__init__(func, y0, **kwargs)
            self.damping = damping

        def _step_func(self, func, t0, dt, t1, y0):
            dy, f0 = super()._step_func(func, t0, dt, t1, y0)
            return self.damping * dy, f0

    registered(Damped)
    half = ours.odeint(
        lambda t, y: torch.ones_like(y), Y0, T, method="mine", options={"damping": 0.5, "step_size": 0.5}
    )
    torch.testing.assert_close(half[-1], Y0 + 0.5)


def test_other_methods_for_the_adjoint(registered):
    registered(OwnStep)
    scale = torch.tensor(1.0, dtype=D, requires_grad=True)
    for method, adjoint_method in (("mine", "dopri5"), ("dopri5", "mine"), ("mine", "mine")):
        solution = ours.odeint_adjoint(
            lambda t, y: -scale * y,
            Y0,
            torch.linspace(0, 1, 101, dtype=D),
            method=method,
            adjoint_method=adjoint_method,
            adjoint_params=(scale,),
        )
        (gradient,) = torch.autograd.grad(solution[-1].sum(), scale)
        assert gradient.item() == pytest.approx(-Y0.sum().item() * 0.36788, rel=1e-3)


def test_a_step_function_that_returns_too_little_is_refused(registered):
    class Short(FixedGridODESolver):
        order = 1

        def _step_func(self, func, t0, dt, t1, y0):
            return dt * func(t0, y0)

    registered(Short)
    with pytest.raises(TypeError, match=r"Short._step_func must return \(dy, f0\)"):
        ours.odeint(field, Y0, T, method="mine")


class Clamped(RK4):
    """A solver that integrates by itself, with the parts of torchdiffeq's."""

    def __init__(self, func, y0, *, largest, **kwargs):
        super().__init__(func=func, y0=y0, **kwargs)
        self.largest = largest

    def integrate(self, t):
        grid = self.grid_constructor(self.func, self.y0, t)
        assert grid[0] == t[0] and grid[-1] == t[-1]
        y, states, j = self.y0, [self.y0], 1
        for t0, t1 in pairwise(grid):
            self.func.callback_step(t0, y, t1 - t0)
            dy, _ = self._step_func(self.func, t0, t1 - t0, t1, y)
            y1 = (y + dy).clamp(max=self.largest)
            while j < len(t) and t1 >= t[j]:
                states.append(self._linear_interp(t0, t1, y, y1, t[j]))
                j += 1
            y = y1
        return torch.stack(states)


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("y0", [Y0, (Y0, Y0[0])], ids=["tensor", "tuple"])
def test_a_solver_that_integrates_by_itself(registered, y0, direction):
    registered(Clamped)
    solution = ours.odeint(
        lambda t, y: (
            tuple(direction * torch.ones_like(part) for part in y) if isinstance(y, tuple) else direction + 0 * y
        ),
        y0,
        direction * T,
        method="mine",
        options={"largest": 1.2, "step_size": 0.125},
    )
    first = solution if isinstance(y0, torch.Tensor) else solution[0]
    torch.testing.assert_close(first[-1], (Y0 + 1).clamp(max=1.2))
    with pytest.raises(TypeError, match="Clamped has an integrate"):
        ours.odeint_adjoint(lambda t, y: y, Y0, T, method="mine", adjoint_params=())


def test_an_adaptive_solver_of_its_own(registered):
    class Exact(AdaptiveStepsizeEventODESolver):
        def __init__(self, func, y0, rtol, atol, **kwargs):
            super().__init__(dtype=D, y0=y0, **kwargs)
            self.func = func

        def _before_integrate(self, t):
            self.t0 = t[0]

        def _advance(self, next_t):
            return self.y0 * torch.exp(self.t0 - next_t)

        def _advance_until_event(self, event_fn):
            return self.t0 + 1, self._advance(self.t0 + 1)

    registered(Exact)
    torch.testing.assert_close(ours.odeint(field, Y0, T, method="mine")[-1], Y0 * torch.exp(-T[-1]))
    event_t, solution = ours.odeint(field, Y0, T[[0, -1]], method="mine", event_fn=lambda t, y: y[0, 0] - 2)
    assert event_t.item() == 1.0 and solution.shape == (2, 2, 3)


def test_a_runge_kutta_solver_of_its_own(registered):
    class Midpoint(RKAdaptiveStepsizeODESolver):
        order = 2
        tableau = _ButcherTableau(
            alpha=torch.tensor([0.5], dtype=D),
            beta=[torch.tensor([0.5], dtype=D)],
            c_sol=torch.tensor([0.0, 1.0], dtype=D),
            c_error=torch.tensor([-1.0, 1.0], dtype=D),
        )
        mid = torch.tensor([0.0, 0.5], dtype=D)

    registered(Midpoint)
    for name in ("odeint", "odeint_adjoint"):
        kwargs = {"adjoint_params": ()} if name == "odeint_adjoint" else {}
        solution = getattr(ours, name)(lambda t, y: -y, Y0, T, method="mine", rtol=1e-5, atol=1e-7, **kwargs)
        torch.testing.assert_close(solution[-1], Y0 * torch.exp(-T[-1]), rtol=1e-4, atol=0)
    with pytest.raises(ValueError, match="b must have order 3"):

        class Wrong(Midpoint):
            order = 3
            tableau = Midpoint.tableau

    solver = Midpoint(lambda t, y: -y, Y0, 1e-3, 1e-3)
    with pytest.raises(NotImplementedError, match="callback_accept_step"):
        solver._before_integrate(T)


def test_unused_arguments_are_named_in_a_warning():
    with pytest.warns(UserWarning, match=r"Unexpected arguments.*max_steps"):
        RK4(func=field, y0=Y0, rtol=1e-3, atol=1e-3, max_steps=3).integrate(T)
    with pytest.warns(UserWarning, match="'mine' does not support callbacks"), warnings.catch_warnings():
        func = nn.Identity()
        func.callback_accept_step = lambda t, y, dt: None
        _check_inputs(func, Y0, T, 1e-3, 1e-3, "mine", None, None, {"mine": RK4})


def test_shapes():
    shapes = [torch.Size([2]), torch.Size([]), torch.Size([0]), torch.Size([1, 3])]
    tensor = torch.arange(12.0).reshape(2, 6)
    for mine, other in zip(
        _flat_to_shape(tensor, (2,), shapes), their("misc")._flat_to_shape(tensor, (2,), shapes), strict=True
    ):
        torch.testing.assert_close(mine, other)


def test_versions():
    assert ours.__version__ == theirs.__version__


def outcome(call, *args):
    """What a call returns, or the class of what it raises and the word that its text begins with."""
    try:
        return call(*args)
    except (AssertionError, TypeError) as error:
        return type(error), str(error).split()[0]


def test_checks_of_times_and_tolerances():
    shapes = [torch.Size([2]), torch.Size([1, 3])]
    for name, arguments in (
        ("_assert_one_dimensional", [("t", T), ("t", T[None])]),
        ("_assert_increasing", [("t", T), ("t", -T), ("t", T[[0, 0]])]),
        ("_assert_floating", [("t", T), ("t", T.long())]),
        ("_check_timelike", [("t", T, True), ("t", -T, False), ("t", T[[0, 2, 1]], True), ("t", 3.0, True),
                             ("t", T.clone().requires_grad_(), False), ("t", T.clone().requires_grad_(), True)]),
        ("_tuple_tol", [("rtol", 1e-3, shapes), ("rtol", (1e-3, 1e-4), shapes), ("rtol", (1e-3,), shapes),
                        ("rtol", torch.tensor([1e-3, 1e-4]), shapes)]),
    ):  # fmt: skip
        for args in arguments:
            mine, other = (outcome(getattr(module, name), *args) for module in (our("misc"), their("misc")))
            if isinstance(other, torch.Tensor):
                assert torch.equal(mine, other), (name, args)
            else:
                assert mine == other, (name, args)


def test_the_next_number_hands_on_the_gradient():
    for module in (our("misc"), their("misc")):
        t = torch.tensor(0.5, requires_grad=True)
        after = module._nextafter(t, t + 1)
        assert after.item() == 0.5 + 2.0**-24 and torch.autograd.grad(after, t)[0] == 1


def test_an_unchecked_assignment():
    results = []
    for module in (our("rk_common"), their("rk_common")):
        x, y = (torch.tensor([value, 2.0], dtype=D, requires_grad=True) for value in (1.0, 3.0))
        k = module._UncheckedAssign.apply(torch.zeros(2, 2, dtype=D), x, (..., 0))
        square = k[..., 0].square()
        k = module._UncheckedAssign.apply(k, y * square, (..., 1))
        results.append([k.detach(), *torch.autograd.grad(k[..., 1].sum(), (x, y))])
        assert module._optimal_step_size(torch.tensor(0.1), torch.tensor(0.0), 0.9, 10.0, 0.2, 5) == 1.0
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("shapes", [None, [torch.Size([2]), torch.Size([1])]], ids=["tensor", "tuple"])
@pytest.mark.parametrize("options", [{}, {"norm": "seminorm"}, {"norm": lambda x: sum((p**2).sum() for p in x[1:])}])
def test_norms_of_the_adjoint(options, shapes):
    states = torch.tensor([[3.0, -1.0, 2.0], [0.5, 4.0, 1.0]], dtype=D)
    tensors = (torch.tensor(0.1, dtype=D), *states, torch.full((4,), 9.0, dtype=D))
    sizes = []
    for find in (our, their):
        handled = dict(options)
        find("adjoint").handle_adjoint_norm_(handled, shapes, lambda y: y.abs().max())
        sizes.append(handled["norm"](tensors))
    assert all(isinstance(size, torch.Tensor) and size == sizes[0] for size in sizes)


@pytest.mark.parametrize("event", [False, True])
@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("y0", [Y0, (Y0, Y0[0])], ids=["tensor", "tuple"])
def test_the_node_of_the_adjoint_by_itself(y0, direction, event):
    """Called as torchdiffeq's own odeint_adjoint calls it."""
    results = []
    for find in (our, their):
        scale = torch.tensor(0.5, dtype=D, requires_grad=True)

        def func(t, y):
            return tuple(field(t, scale * part) for part in y) if isinstance(y, tuple) else field(t, scale * y)

        def event_fn(t, y):
            return (y[0] if isinstance(y, tuple) else y)[0, 0] - (0.9 if direction > 0 else 1.1)

        t = (direction * (T[:2] if event else T)).requires_grad_()
        checked = find("misc")._check_inputs(func, y0, t, 1e-9, 1e-11, None, None, event_fn if event else None,
                                             find("odeint").SOLVERS)  # fmt: skip
        shapes, flat_func, flat, times, rtol, atol, method, options, flat_event, _ = checked
        adjoint_options = {}
        find("adjoint").handle_adjoint_norm_(adjoint_options, shapes, options["norm"])
        found = find("adjoint").OdeintAdjointMethod.apply(
            shapes, flat_func, flat, times, rtol, atol, method, options, flat_event, rtol, atol, method,
            adjoint_options, times.requires_grad, scale
        )  # fmt: skip
        event_t, solution = found if event else (times[-1], found)
        gradients = torch.autograd.grad(solution[-1].square().sum(), [scale, t])
        results.append([event_t.detach(), solution.detach(), *gradients])
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-8)
