"""What users try because another library has it: it works, or a sentence says what to write."""

import functools
import re

import pytest
import torch

import torchivp
from torchivp import Event, Scheduled, SolveError, odeint, odeint_adjoint, solve_ivp

Y0 = torch.tensor([1.0, 0.5], dtype=torch.float64)


def decay(t, y):
    return -y


@pytest.mark.parametrize(
    ("theirs", "ours"), [("RK45", "dopri5"), ("RK23", "bosh3"), ("Radau", "radau5"), ("BDF", "bdf")]
)
def test_scipys_names_of_methods_that_are_here(theirs, ours):
    found, expected = (solve_ivp(decay, (0, 1), Y0, method=method) for method in (theirs, ours))
    assert torch.equal(found.y, expected.y) and found.stats == expected.stats
    assert torch.equal(*(odeint(decay, Y0, [0.0, 1.0], method=method) for method in (theirs, ours)))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("Bdf", "Did you mean 'bdf'?"),
        ("LSODA", "LSODA switches between methods for problems that are stiff and not: so does method='auto'; or use "
         "SciPy's, method='scipy_solver' with options={'solver': 'LSODA'}"),
        ("DOP853", "DOP853 is of order 8: use method='dopri8'; or use SciPy's, method='scipy_solver' with options={"),
        ("rk45", "Did you mean 'RK45'?"),
        ("Dopri5", "Did you mean 'dopri5'?"),
        ("radau", "Did you mean 'Radau'?"),
        ("kvaerno4", "Did you mean 'kvaerno5'?"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("door", [solve_ivp, odeint, odeint_adjoint])
def test_methods_that_are_not_here(name, sentence, door):
    with pytest.raises(ValueError, match=re.escape(f"unknown method '{name}'. {sentence}")) as caught:
        door(decay, (0.0, 1.0), Y0, method=name) if door is solve_ivp else door(decay, Y0, [0.0, 1.0], method=name)
    assert "'adams'?" not in str(caught.value)


@pytest.mark.parametrize("solver", ["Radau", "BDF", "DOP853"])
def test_what_the_sentence_says_instead_works(solver):
    expected = Y0 * torch.exp(torch.tensor(-1.0, dtype=torch.float64))
    y = odeint(decay, Y0, [0.0, 1.0], method="scipy_solver", options={"solver": solver})
    torch.testing.assert_close(y[-1], expected, rtol=1e-5, atol=0)
    method = torchivp.ODE_METHODS["scipy_solver"].with_options(solver=solver)
    torch.testing.assert_close(solve_ivp(decay, (0, 1), Y0, method=method).y[-1], expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("adjoint", "write gradient='backsolve', or gradient='checkpointed' for the exact gradient in little memory"),
        (
            "options",
            "its options are arguments: step_size=, first_step=, min_step=, max_step=, max_steps=, norm=; those",
        ),
        ("lband", "write jac_sparsity=(lband, uband)"),
        ("max_num_steps", "write max_steps="),
        ("progress", "a solve shows no progress: let func count its calls, or print its t"),
        ("jump_t", "write events=torchivp.Scheduled(times): steps end on these times, and func may jump there"),
        ("tstops", "write events=torchivp.Scheduled(times): steps end on these times"),
        ("dens_output", "did you mean dense_output=?"),
        ("nothing_like_it", "its arguments are func, t_span, y0, t_eval, method, "),
    ],
)
def test_keywords_that_solve_ivp_does_not_have(name, sentence):
    with pytest.raises(TypeError, match=re.escape(f"solve_ivp() has no argument {name}=: {sentence}")):
        solve_ivp(decay, (0, 1), Y0, **{name: 1})


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("dense_output", "call odeint_dense(func, y0, t0, t1), which returns the solution as a function of time"),
        ("step_size", "write options={'step_size': ...}"),
        ("max_num_steps", "write options={'max_num_steps': ...}"),
        ("args", "write lambda t, y: func(t, y, *args)"),
        ("t_eval", "write t="),
        ("optoins", "did you mean options=?"),
        ("nothing_like_it", "its arguments are func, y0, t"),
    ],
)
@pytest.mark.parametrize("door", ["odeint", "odeint_adjoint", "odeint_dense"])
def test_keywords_that_the_doors_of_torchdiffeq_do_not_have(door, name, sentence):
    times = (0.0, 1.0) if door == "odeint_dense" else ([0.0, 1.0],)
    with pytest.raises(TypeError, match=re.escape(f"{door}() has no argument {name}=: {sentence}")):
        getattr(torchivp, door)(decay, Y0, *times, **{name: 1})


class StateFirst(torchivp.SDEIto):
    def f(self, y, t):
        return -y

    def g(self, t, y):
        return y


class Module(torch.nn.Module):
    def forward(self, x, t):
        return t - x


class Callable:
    def __call__(self, y, time):
        return time - y


SWAPPED = {
    "solve_ivp": lambda: solve_ivp(lambda y, t: t - y, (0, 1), Y0),
    "rows": lambda: solve_ivp(lambda y, t: t - y, (0, 1), Y0, batch_dims=1),
    "odeint": lambda: odeint(Module(), Y0, [0.0, 1.0]),
    "odeint_adjoint": lambda: odeint_adjoint(Callable(), Y0, [0.0, 1.0]),
    "a bound method": lambda: odeint(Module().forward, Y0, [0.0, 1.0]),
    "arguments": lambda: solve_ivp(lambda y, t, a: a * t - y, (0, 1), Y0, args=(1.0,)),
    "event_fn": lambda: odeint(decay, Y0, [0.0, 1.0], event_fn=lambda y, t: y[0] - 0.5),
    "events": lambda: solve_ivp(decay, (0, 1), Y0, events=lambda y, t: y[0] - 0.5),
    "apply": lambda: Event(lambda t, y: y[0], apply=lambda y, t: y),
    "a schedule": lambda: Scheduled([0.5], lambda y, t: y),
    "an SDE": lambda: torchivp.sdeint(StateFirst("diagonal"), Y0[None], [0, 1]),
}


@pytest.mark.parametrize("name", SWAPPED)
def test_functions_of_state_and_time_are_noticed(name):
    """The order of SciPy's odeint. Most would run, and give other numbers."""
    with pytest.raises(TypeError, match=r"takes \([xy], (t|time)\) and is called as \w+\(t, y\), time first, unlike"):
        SWAPPED[name]()


@pytest.mark.parametrize("func", [decay, lambda time, state: -state, lambda s, t: -t, functools.partial(decay),
                                  torch.mul, lambda *args: -args[1]])  # fmt: skip
def test_functions_of_other_names_are_left_alone(func):
    assert solve_ivp(func, (0, 1), Y0).success


@pytest.mark.parametrize("batch_dims", [0, 1])
def test_a_stiff_solve_that_runs_out_of_steps_is_told_what_to_try(batch_dims):
    with pytest.raises(SolveError, match="the problem is stiff: try method='rodas5p' or 'bdf'; 'auto' finds"):
        solve_ivp(lambda t, y: -1e6 * y, (0, 1), Y0, max_steps=50, batch_dims=batch_dims)
    for method in ("auto", "rodas5p", "bdf"):
        solution = solve_ivp(lambda t, y: -1e6 * y, (0, 1), Y0, method=method, batch_dims=batch_dims)
        assert bool(torch.as_tensor(solution.success).all()) and float(solution.final.abs().max()) < 1e-6
