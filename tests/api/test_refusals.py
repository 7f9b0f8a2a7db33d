"""Wrong arguments are refused at the door: what was given, what was expected, how to mend it."""

import math
import re

import numpy as np
import pytest
import torch

from torchivp import (
    ODE_METHODS,
    Backsolve,
    Checkpointed,
    ConstantSteps,
    PIDController,
    odeint,
    odeint_adjoint,
    odeint_dense,
    solve_ivp,
)
from torchivp.compat import torchdiffeq as compat

Y0 = torch.ones(2, dtype=torch.float64)
T = torch.tensor([0.0, 1.0], dtype=torch.float64)


def decay(t, y):
    return -y


def refused(kind, sentence, call):
    with pytest.raises(kind, match=re.escape(sentence)):
        call()


@pytest.mark.parametrize("door", [odeint, odeint_adjoint])
@pytest.mark.parametrize(
    ("t", "kind", "sentence"),
    [
        (
            "abc",
            TypeError,
            "t must be a one-dimensional tensor of times, got str: write t=torch.linspace(t0, t1, steps)",
        ),
        (torch.tensor(1.0), ValueError, "t must be one-dimensional, got shape (): write t.reshape(1)"),
        (
            torch.zeros(2, 2),
            ValueError,
            "t must be one-dimensional, got shape (2, 2): for one series write t.flatten(); for times of their own in the rows of a batch write solve_ivp(func, (t0, t1), y0, t_eval=t, batch_dims=1)",
        ),
        (torch.zeros(0), ValueError, "t is empty: pass at least one time"),
        (torch.tensor([0, math.nan]), ValueError, "t must be finite, but t[1] = nan"),
        (torch.tensor([0.0, 1.0, 1.0]), ValueError, "t[1] = t[2] = 1.0: drop the repeated time, t = torch.unique(t)"),
        (torch.tensor([0.0, 2.0, 1.0]), ValueError, "but t[1] = 2.0 and t[2] = 1.0: sort it, t = t.sort().values"),
        (torch.tensor([1.0, 0.5, 0.5, 0.0]), ValueError, "drop the repeated time, t = torch.unique(t).flip(0)"),
        (torch.tensor([1.0, 0.2, 0.5, 0.0]), ValueError, "sort it, t = t.sort(descending=True).values"),
        (torch.tensor([0j, 1j]), TypeError, "t must hold real numbers, got torch.complex64: write t.real"),
        (torch.tensor([False, True]), TypeError, "t must hold real numbers, got torch.bool: write t.double()"),
        ([False, True], TypeError, "t must be a one-dimensional tensor of times, got a list with bool: write t="),
        (["0", "1"], TypeError, "t must be a one-dimensional tensor of times, got a list with str: write t="),
        (None, TypeError, "t must be a one-dimensional tensor of times, got NoneType: write t=torch.linspace("),
        (1.0, ValueError, "t must be one-dimensional, got shape (): write t=[1.0]"),
    ],
)
def test_times(door, t, kind, sentence):
    refused(kind, sentence, lambda: door(decay, Y0, t))


def test_times_of_other_kinds_are_understood():
    expected = odeint(decay, Y0, T)
    for t in ([0.0, 1.0], (0, 1), np.array([0.0, 1.0]), torch.tensor([0, 1])):
        torch.testing.assert_close(odeint(decay, Y0, t), expected)


@pytest.mark.parametrize(
    ("y0", "kind", "sentence"),
    [
        (
            1.0,
            TypeError,
            "y0 must be a tensor or a tuple, list or dict of tensors, but y0 is float: write torch.tensor(1.0)",
        ),
        ((Y0, 2), TypeError, "but y0[1] is int: write torch.tensor(2)"),
        ({"a": "b"}, TypeError, "but y0['a'] is str"),
        (np.ones(2), TypeError, "but y0 is ndarray: write torch.from_numpy(y0)"),
        ((Y0, np.ones(2)), TypeError, "but y0[1] is ndarray: write torch.from_numpy(y0[1])"),
        ((), ValueError, "y0 holds no tensor"),
        (
            torch.ones(2, dtype=torch.int64),
            TypeError,
            "y0 must be floating point or complex, got torch.int64: write y0.double()",
        ),
        ((Y0, Y0.to("meta")), ValueError, "the tensors of y0 lie on different devices (cpu, meta): move them to one"),
    ],
)
def test_states(y0, kind, sentence):
    refused(kind, sentence, lambda: odeint(decay, y0, T))
    refused(kind, sentence, lambda: solve_ivp(decay, (0, 1), y0))


@pytest.mark.parametrize(
    ("func", "y0", "kind", "sentence"),
    [
        (3, Y0, TypeError, "func must be callable as func(t, y), got int"),
        (lambda t, y: y[:1], Y0, ValueError, "y has shape (2,), func(t, y) has shape (1,)"),
        (lambda t, y: y.sum(), Y0, ValueError, "y has shape (2,), func(t, y) has shape ()"),
        (lambda t, y: None, Y0, TypeError, "func(t, y) returned None: is a return missing?"),
        (lambda t, y: None, (Y0, Y0), TypeError, "func(t, y) returned None: is a return missing?"),
        (lambda t, y: (y, y), Y0, TypeError, "func returned (a tensor of shape (2,), a tensor of shape (2,))"),
        (lambda t, y: y * 1j, Y0, TypeError, "func(t, y) is torch.complex128, which does not fit into the state's torch.float64: start from y0.to(torch.complex128)"),
        (lambda t, y: y.to("meta"), Y0, ValueError, "func(t, y) lies on meta, but y0 on cpu: move func's parameters and constants there"),
        (lambda t, y: (y[0],), (Y0, Y0), TypeError, "func must return the same structure as y0"),
        (lambda t, y: {"a": y["a"], "b": 1.0}, {"a": Y0, "b": Y0}, TypeError, "func(t, y)['b'] must be a tensor, got float"),
        (lambda t, y: {"a": y["a"], "b": y["b"][:1]}, {"a": Y0, "b": Y0}, ValueError, "y['b'] has shape (2,), func(t, y)['b'] has shape (1,)"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_functions(func, y0, kind, sentence, method):
    refused(kind, sentence, lambda: odeint(func, y0, T, method=method))


@pytest.mark.parametrize(
    ("options", "kind", "sentence"),
    [
        ({"method": "dopry5"}, ValueError, "unknown method 'dopry5'. Did you mean 'dopri5'? The methods are euler,"),
        ({"method": 5}, TypeError, "method must be a name such as 'dopri5', got int"),
        ({"rtol": -1.0}, ValueError, "rtol must be finite and not negative, got -1.0: write rtol=1e-6"),
        ({"atol": math.nan}, ValueError, "atol must be finite and not negative, got nan"),
        ({"rtol": "small"}, TypeError, "rtol must be made of numbers or tensors, got str"),
        ({"rtol": torch.ones(3)}, ValueError, "rtol of shape (3,) does not broadcast to the state's shape (2,)"),
        (
            {"rtol": torch.ones(2, requires_grad=True)},
            ValueError,
            "must not require a gradient: write rtol=rtol.detach()",
        ),
    ],
)
def test_methods_and_tolerances(options, kind, sentence):
    refused(kind, sentence, lambda: odeint(decay, Y0, T, **options))
    refused(kind, sentence, lambda: solve_ivp(decay, (0, 1), Y0, **options))


def test_one_tolerance_for_each_tensor():
    refused(
        ValueError,
        "rtol with 3 entries does not match the state: give one number, or one for each of "
        "(a tensor of shape (2,), a tensor of shape (2,))",
        lambda: odeint(lambda t, y: y, (Y0, Y0), T, rtol=(1e-3, 1e-3, 1e-3)),
    )


@pytest.mark.parametrize(
    ("options", "kind", "sentence"),
    [
        ({"t_span": (0, 1, 2)}, ValueError, "t_span must be (t0, t1), got 3 times: write t_span=(t[0], t[-1]), t_eval=t"),
        ({"t_span": (0, math.inf)}, ValueError, "t_span must be finite, but t_span[1] = inf"),
        ({"t_eval": [0.5, 2.0]}, ValueError, "t_eval holds 2.0, outside t_span = (0.0, 1.0): widen t_span"),
        ({"t_eval": [0.5, 0.2]}, ValueError, "t_eval runs from 0.5 to 0.2, against t_span = (0, 1): write t_eval=t_eval.flip(0)"),
        ({"method": "rk4"}, ValueError, "RK4 has no error estimate and takes fixed steps: pass step_size=0.01, or choose an adaptive method"),
        ({"method": "rk4", "controller": PIDController()}, ValueError, "RK4 has no error estimate"),
        ({"step_size": 0.1, "max_step": 1.0}, ValueError, "step_size fixes the steps, so max_step cannot be given with it: drop one"),
        ({"step_size": -0.1}, ValueError, "step_size must be positive and finite, got -0.1; the direction of integration comes from"),
        ({"step_size": "a"}, TypeError, "step_size must be a number, got 'a'"),
        ({"first_step": 0.0}, ValueError, "first_step must be positive, got 0.0"),
        ({"min_step": 2.0, "max_step": 1.0}, ValueError, "need 0 <= min_step <= max_step, max_step > 0, got 2.0 and 1.0"),
        ({"max_steps": 0}, ValueError, "max_steps must be a whole number of at least 1, got 0"),
        ({"max_steps": 10.0}, TypeError, "max_steps must be a whole number of at least 1, got 10.0"),
        ({"t_span": None}, TypeError, "t_span must be a one-dimensional tensor of times, got NoneType: write t_span=(t0, t1)"),
        ({"t_span": 1.0}, ValueError, "t_span must be one-dimensional, got shape (): write t_span=(t0, t1)"),
        ({"rtol": 0, "atol": 0}, ValueError, "rtol and atol are both 0, which no step can meet: pass rtol=1e-6 or atol=1e-9"),
        ({"controller": 3}, TypeError, "controller must be a PIDController, ConstantSteps or GridSteps, got 3"),
        ({"controller": ConstantSteps(0.1), "step_size": 0.1}, ValueError, "give either controller or step_size"),
        ({"gradient": "adjoint"}, ValueError, "unknown gradient 'adjoint': it must be one of 'direct', 'checkpointed', 'backsolve'"),
        ({"gradient": 1}, TypeError, "gradient must be one of 'direct', 'checkpointed', 'backsolve', 'forward' or an object"),
        ({"args": 3.0}, TypeError, "args must be a tuple, got float: write args=(args,)"),
        ({"norm": 2}, TypeError, "norm must be a function of the scaled error, got 2"),
        ({"params": [3.0], "gradient": "checkpointed"}, TypeError, "params must be a sequence of tensors, but params[0] is float"),
    ],
)  # fmt: skip
def test_solve_ivp(options, kind, sentence):
    refused(kind, sentence, lambda: solve_ivp(decay, **({"t_span": (0, 1), "y0": Y0} | options)))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: PIDController(safety=1.5), "safety must lie between 0 and 1, got 1.5; 0.9 is usual"),
        (
            lambda: PIDController(factor_min=2.0),
            "the factors must satisfy 0 < factor_min < 1 < factor_max, got 2.0 and 10.0",
        ),
        (lambda: Checkpointed(1), "checkpoints must be a whole number of at least 2, got 1; None chooses the number"),
        (lambda: ConstantSteps(math.inf), "step_size must be positive and finite, got inf"),
    ],
)
def test_objects(make, sentence):
    refused(ValueError, sentence, make)


def test_unknown_options_of_odeint_are_named_in_a_warning():
    with pytest.warns(UserWarning, match=r"^Dopri5: Unexpected arguments \['step_sise'\] are ignored"):
        odeint(decay, Y0, T, options={"step_sise": 0.1})
    sentence = (
        "RK4: Unexpected arguments ['implicit', 'stepsize'] are ignored. Did you mean 'step_size' for 'stepsize'? The "
        "options of RK4 are dtype, grid_constructor, interp, jump_t, max_num_steps, norm, perturb, step_size, step_t"
    )
    with pytest.warns(UserWarning, match=re.escape(sentence)):
        odeint(decay, Y0, T, method="rk4", options={"stepsize": 0.1, "implicit": True})


@pytest.mark.parametrize(
    ("options", "kind", "sentence"),
    [
        ({"jump_t": "0.5"}, TypeError, "of times, got str: write options={'jump_t': [0.5]}"),
        ({"step_t": [True]}, TypeError, "of times, got a list with bool: write options={'step_t': [0.5]}"),
        ({"jump_t": [[0.5]]}, ValueError, "got shape (1, 1): write options={'jump_t': [0.5]}"),
        ({"perturb": 1e-3}, TypeError, "option 'perturb' must be True or False, got 0.001"),
        ({"max_num_steps": 0}, ValueError, "option 'max_num_steps' must be a whole number of at least 1, got 0"),
        ({"max_num_steps": "3"}, TypeError, "option 'max_num_steps' must be a whole number of at least 1, got '3'"),
    ],
)
def test_options_of_odeint(options, kind, sentence):
    refused(kind, sentence, lambda: odeint(decay, Y0, T, options=options))


def test_dense_output_needs_a_span_and_steps():
    refused(ValueError, "t0 and t1 are both 0.0: the solution as a", lambda: odeint_dense(decay, Y0, 0, 0.0))
    refused(
        ValueError,
        "RK4 takes fixed steps, whose size does not follow from t0 and t1: pass options={'step_size': 0.01}",
        lambda: odeint_dense(decay, Y0, 0.0, 1.0, method="rk4"),
    )


def test_grid_options_exclude_each_other():
    options = {"step_size": 0.1, "grid_constructor": lambda f, y, t: t}
    refused(ValueError, "exclude each other", lambda: odeint(decay, Y0, T, method="rk4", options=options))


def test_a_grid_must_reach_from_start_to_end():
    options = {"grid_constructor": lambda f, y, t: t[:1].repeat(2) + torch.tensor([0.0, 0.5])}
    sentence = "the grid must lead from the start, 0.0, to the end, 1.0; it leads from 0.0 to 0.5"
    refused(ValueError, sentence, lambda: odeint(decay, Y0, T, method="rk4", options=options))


def test_options_of_another_adjoint_method_must_be_given():
    refused(
        ValueError,
        "pass adjoint_options too",
        lambda: odeint_adjoint(decay, Y0, T, method="rk4", options={"step_size": 0.1}, adjoint_method="dopri5"),
    )


@pytest.mark.parametrize("door", [odeint_adjoint, compat.odeint_adjoint])
def test_options_are_for_both_solves_by_one_method(door):
    """However it is named."""
    first, size = {"first_step": 0.1}, {"step_size": 0.1}
    for method, same, options in (
        (None, "dopri5", first),
        ("dopri5", ODE_METHODS["dopri5"], first),
        ("fixed_adams", "implicit_adams", size),
    ):
        y = door(decay, Y0, T, method=method, options=options, adjoint_method=same)
        torch.testing.assert_close(y[-1], Y0 / math.e, rtol=1e-3, atol=0)
    refused(
        ValueError,
        "options are for method=None and adjoint_method='bosh3' differs: pass adjoint_options too",
        lambda: door(decay, Y0, T, options=first, adjoint_method="bosh3"),
    )


def test_adjoint_params_are_checked():
    for params, sentence in (([1.0], "but adjoint_params[0] is float: write"), (3, "got 3: write adjoint_params=")):
        refused(TypeError, sentence, lambda p=params: odeint_adjoint(decay, Y0, T, adjoint_params=p))


def test_backsolve_options_are_checked():
    refused(
        ValueError,
        "must be 'seminorm', a function or absent",
        lambda: odeint_adjoint(decay, Y0, T, adjoint_options={"norm": 3}),
    )
    y0 = Y0.clone().requires_grad_()
    refused(ValueError, "RK4 has no error", lambda: solve_ivp(decay, (0, 1), y0, gradient=Backsolve(method="rk4")))
    refused(
        ValueError,
        "the adjoint's rtol and atol are both 0, which no step can meet",
        lambda: odeint_adjoint(decay, y0, T, adjoint_rtol=0, adjoint_atol=0),
    )
