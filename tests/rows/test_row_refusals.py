"""What `solve_ivp` refuses of a batch, and what it says."""

# ruff: noqa: E501 -- tables of sentences

import math
import re

import pytest
import torch

from torchivp import Backsolve, Event, SolveError, odeint, solve_ivp

D = torch.float64
Y0 = torch.ones(3, 2, dtype=D)
NAN = math.nan


def decay(t, y):
    return -y


def solve(y0=Y0, t_span=(0.0, 1.0), func=decay, batch_dims=1, **options):
    return solve_ivp(func, t_span, y0, batch_dims=batch_dims, **options)


def refused(kind, sentence, *args, **options):
    with pytest.raises(kind, match=re.escape(sentence)) as info:
        solve(*args, **options)
    return str(info.value)


@pytest.mark.parametrize(
    ("batch_dims", "kind", "sentence"),
    [
        (-1, ValueError, "batch_dims must be a whole number of at least 0, got -1, the number of leading dimensions"),
        (True, TypeError, "batch_dims must be a whole number of at least 0, got True"),
        (1.0, TypeError, "batch_dims must be a whole number of at least 0, got 1.0"),
        ("1", TypeError, "batch_dims must be a whole number of at least 0, got '1'"),
        (3, ValueError, "batch_dims=3, so the first 3 dimensions of every tensor of y0 number the rows"),
    ],
)
def test_batch_dims(batch_dims, kind, sentence):
    refused(kind, sentence, batch_dims=batch_dims)


@pytest.mark.parametrize("batch_dims", [False, None, ""])
def test_batch_dims_that_count_as_false(batch_dims):
    refused(TypeError, "batch_dims must be a whole number of at least 0", batch_dims=batch_dims)


def test_a_state_with_fewer_dimensions_than_the_batch():
    message = refused(ValueError, "they must be (3,) throughout, but y0[1] has shape ()", (Y0, torch.tensor(1.0)))
    assert message.startswith("batch_dims=1, so the first 1 dimensions of every tensor of y0 number the rows")
    refused(ValueError, "but y0 has shape (3,)", torch.ones(3), batch_dims=2)


def test_leaves_with_other_leading_dimensions():
    refused(ValueError, "they must be (3,) throughout, but y0[1] has shape (4,)", (torch.ones(3), torch.ones(4)))
    state = {"a": torch.ones(2, 3), "b": torch.ones(2, 4)}
    refused(ValueError, "they must be (2, 3) throughout, but y0['b'] has shape (2, 4)", state, batch_dims=2)


@pytest.mark.parametrize(
    ("t_span", "kind", "sentence"),
    [
        (
            (0.0, torch.ones(2)),
            ValueError,
            "t_span[1] must be a number or have the shape of the batch, (3,), got shape (2,)",
        ),
        (
            (torch.zeros(3, 1), 1.0),
            ValueError,
            "t_span[0] must be a number or have the shape of the batch, (3,), got shape (3, 1)",
        ),
        ((0.0, 0.5, 1.0), ValueError, "t_span must be (t0, t1), each a number or a tensor of shape (3,)"),
        (torch.zeros(3, 2), ValueError, "t_span must be (t0, t1), each a number or a tensor of shape (3,)"),
        (1.0, ValueError, "t_span must be (t0, t1), each a number or a tensor of shape (3,), got 1.0"),
        ("01", ValueError, "t_span must be (t0, t1), each a number or a tensor of shape (3,), got '01'"),
        ((0.0, torch.tensor([1.0, NAN, 1.0])), ValueError, "t_span[1] must be finite, but is nan in row 1"),
        ((-math.inf, 1.0), ValueError, "t_span[0] must be finite, but is -inf in row 0"),
        ((0.0, "1"), TypeError, "t_span[1] must be a number or a tensor of numbers, got '1'"),
        ((0.0, True), TypeError, "t_span[1] must be a number or a tensor of numbers, got True"),
        ((0.0, None), TypeError, "t_span[1] must be a number or a tensor of numbers, got None"),
        ((0.0, 1j), TypeError, "t_span[1] must hold real numbers"),
        ((0.0, torch.ones(3, dtype=torch.bool)), TypeError, "t_span[1] must hold real numbers, got torch.bool"),
        ((-1.7e308, torch.tensor([0.0, 1.7e308, 0.0], dtype=D)), ValueError, "more than a float can hold"),
    ],
)
def test_t_span(t_span, kind, sentence):
    refused(kind, sentence, t_span=t_span, max_steps=100)


def test_a_0_d_span_is_no_span():
    refused(ValueError, "t_span must be (t0, t1)", t_span=torch.tensor(1.0))


@pytest.mark.parametrize(
    ("t_eval", "kind", "sentence"),
    [
        ([0.5, 1.5], ValueError, "t_eval holds times outside t_span = (0, 1) in row 0: [0.5, 1.5]; widen t_span"),
        ([[0.5], [-0.5], [0.5]], ValueError, "t_eval holds times outside t_span = (0, 1) in row 1: [-0.5]; widen t_span"),
        ([0.7, 0.5], ValueError, "in row 0, which goes from 0 to 1, it is [0.7, 0.5]"),
        (torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.6, 0.6]]), ValueError, "t_eval must run strictly from t0 to t1 in every row, but in row 2"),
        (torch.tensor([[0.1, 0.2], [NAN, 0.4], [0.6, NAN]]), ValueError, "t_eval has NaN before other times in row 1: NaN may only fill up the end of a row"),
        ([NAN, 0.5], ValueError, "t_eval has NaN before other times in row 0"),
        (torch.tensor([[0.1], [math.inf], [0.2]]), ValueError, "t_eval must be finite, but is infinite in row 1"),
        (torch.ones(2, 4), ValueError, "t_eval must be one-dimensional or of the shape (3, T), times for each row, got (2, 4)"),
        (0.5, ValueError, "t_eval must be one-dimensional or of the shape (3, T), times for each row, got ()"),
        ([torch.ones(1), torch.ones(2)], ValueError, "t_eval is a list of 2 series of times: give one for each row of a batch with batch_dims=1, here of shape (3,)"),
        ("half", TypeError, "t_eval must be a number or a tensor of numbers, got 'half'"),
        (torch.ones(3, 1, dtype=torch.complex64), TypeError, "t_eval must hold real numbers, got torch.complex64"),
        ([torch.ones(1, dtype=torch.cdouble)] * 3, TypeError, "t_eval[0] must hold real numbers"),
        ([torch.ones(1), 0.5, torch.ones(1)], (TypeError, ValueError), "t_eval"),
        ([["a"], [0.5], [0.5]], TypeError, "t_eval[0] must be a number or a tensor of numbers"),
    ],
)  # fmt: skip
def test_t_eval(t_eval, kind, sentence):
    refused(kind, sentence, t_eval=t_eval)


def test_t_eval_against_the_direction_of_one_row():
    t_span = (torch.tensor([0.0, 1.0, 0.0]), torch.tensor([1.0, 0.0, 1.0]))
    refused(
        ValueError,
        "t_eval must run strictly from t0 to t1 in every row, but in row 1, which goes from 1 to 0, it is [0.2, 0.8]",
        t_span=t_span,
        t_eval=[0.2, 0.8],
    )


def test_a_list_of_series_for_two_batch_dimensions():
    y0 = torch.ones(2, 2)
    refused(
        ValueError,
        "here of shape (2, 2); or a tensor of shape (2, 2, T)",
        y0,
        t_eval=[torch.ones(1)] * 3,
        batch_dims=2,
    )


@pytest.mark.parametrize(
    ("func", "kind", "sentence"),
    [
        (lambda t, y: -y[0], ValueError, "func must return dy/dt in the shape of y: y has shape (3, 2), func(t, y) has shape (2,)"),
        (lambda t, y: y.sum(), ValueError, "y has shape (3, 2), func(t, y) has shape ()"),
        (lambda t, y: y[:, :1], ValueError, "y has shape (3, 2), func(t, y) has shape (3, 1)"),
        (lambda t, y: None, TypeError, "func(t, y) returned None: is a return missing?"),
        (lambda t, y: (y, y), TypeError, "func must return the same structure as y0: y0 is a tensor of shape"),
        (lambda t, y: 1j * y, TypeError, "func(t, y) is torch.complex128, which does not fit into the state's torch.float64"),
        (lambda t, y: -y[: len(y) - 1], ValueError, "y has shape (3, 2), func(t, y) has shape (2, 2)"),
        ("decay", TypeError, "func must be callable as func(t, y), got str"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("method", "compact"), [("dopri5", None), ("dopri5", False), ("gl4", None)])
def test_func(func, kind, sentence, compact, method):
    options = {"step_size": 0.1} if method == "gl4" else {}
    refused(kind, sentence, func=func, compact=compact, method=method, **options)


def test_the_shape_that_func_returns_is_told_for_the_batch():
    state = {"a": torch.ones(2, 3), "b": torch.ones(2)}
    func = lambda t, y: {"a": y["a"], "b": y["a"]}
    refused(ValueError, "y['b'] has shape (2,), func(t, y)['b'] has shape (2, 3)", state, func=func)


@pytest.mark.parametrize(
    "func",
    [
        lambda t, y: -y * torch.tensor([[1.0], [2.0], [3.0]], dtype=D),
        lambda t, y: y - y.mean(0),
        lambda t, y: -y * torch.arange(1, len(y) + 1)[:, None],
        lambda t, y: -y.cumsum(0),
    ],
)
def test_a_func_that_is_not_row_wise(func):
    sentence = (
        "compact=True, but func gives other values for some of the rows than for all of them at once, or fails: pass "
        "what has an entry for each row as args"
    )
    y0 = Y0 * torch.tensor([[1.0], [0.2], [0.5]], dtype=D)
    refused(ValueError, sentence, y0, func=func, compact=True)
    solve(y0, func=func)  # found out by one try


@pytest.mark.parametrize("compact", ["yes", 2])
def test_compact(compact):
    refused(TypeError, f"compact must be True, False or None (find out), got {compact!r}", compact=compact)


@pytest.mark.parametrize("gradient", ["checkpointed", "backsolve"])
def test_dense_output_of_a_gradient_that_has_none(gradient):
    sentence = "dense_output=True is differentiable with gradient='direct' only"
    refused(ValueError, sentence, Y0.clone().requires_grad_(), dense_output=True, gradient=gradient)
    assert solve(dense_output=True, gradient=gradient).sol


@pytest.mark.parametrize(
    ("count", "columns", "what"),
    [
        (3, 2, "too many values to unpack"),
        (1, 2, "not enough values to unpack"),
        (2, 2, "not enough values to unpack"),  # by one row of the two: both fit, and would mix
    ],
)
@pytest.mark.parametrize("where", ["func", "g", "apply"])
def test_a_state_that_is_taken_to_pieces_like_that_of_one_row(count, columns, what, where):
    def unpacking(t, y):
        x, z = y
        return torch.stack((z, -x))

    events = {
        "func": None,
        "g": Event(lambda t, y: unpacking(t, y)[0]),
        "apply": Event(lambda t, y: t[:, 0] - 0.5, apply=unpacking),
    }[where]
    y0 = torch.ones(count, columns, dtype=D)
    sentence = (
        f". In a batch the tensors of the state have the batch dimensions first, here ({count},), and the state of a "
        "row after them: write x, z = y.unbind(-1), or y[..., 0] and y[..., 1]"
    )
    said = refused(ValueError, sentence, y0, func=unpacking if where == "func" else decay, events=events)
    assert said.startswith(what)


def test_unpacking_what_is_no_state_is_the_users():
    def func(t, y):
        a, b = [1, 2, 3]
        return a * b * y

    with pytest.raises(ValueError, match="too many values to unpack") as info:
        solve_ivp(func, (0.0, 1.0), Y0)
    assert "batch" not in str(info.value)


def test_times_of_each_row_without_batch_dims():
    t = torch.linspace(0, 1, 6, dtype=D).reshape(3, 2)
    sentence = (
        "for times of their own in the rows of a batch write solve_ivp(func, (t0, t1), y0, t_eval=t_eval, batch_dims=1)"
    )
    refused(ValueError, sentence, batch_dims=0, t_eval=t)
    with pytest.raises(ValueError, match=re.escape(sentence.replace("t_eval=t_eval", "t_eval=t"))):
        odeint(decay, Y0, t)
    sentence = "batch write t_span=(t_span[..., 0], t_span[..., 1]) with batch_dims=1"
    refused(ValueError, sentence, batch_dims=0, t_span=t)


def test_args_must_be_a_tuple():
    refused(TypeError, "args must be a tuple, got Tensor: write args=(args,)", args=torch.ones(3))


@pytest.mark.parametrize("method", ["dopri5", "rk4", "gl4"])
@pytest.mark.parametrize("transform", ["vmap", "grad", "jacrev", "jvp"])
def test_inside_transforms_of_torch_func(transform, method):
    options = {} if method == "dopri5" else {"step_size": 0.1}
    last = lambda y0: solve(y0, method=method, **options).y[:, -1].sum()
    with pytest.raises(
        ValueError, match=r"batch_dims and events do not work inside torch.func transforms such as vmap"
    ):
        if transform == "vmap":
            torch.func.vmap(last)(torch.ones(2, 3, 2, dtype=D))
        elif transform == "jvp":
            torch.func.jvp(last, (Y0,), (Y0,))
        else:
            getattr(torch.func, transform)(last)(Y0)


def test_the_norm_of_an_adjoint():
    y0 = Y0.clone().requires_grad_()
    with pytest.raises(ValueError, match=re.escape("Backsolve(norm=...) does not go with batch_dims or events: leave")):
        solve(y0, gradient=Backsolve(norm=lambda x: x.abs().max())).y[:, 0].sum().backward()


def test_methods_that_autograd_cannot_follow():
    y0 = Y0.clone().requires_grad_()
    for count in (1, 3):
        with pytest.raises(
            ValueError, match="autograd cannot follow the steps of ScipySolver: use gradient='backsolve'"
        ):
            solve(y0[:count], method="scipy_solver")


@pytest.mark.parametrize(
    ("options", "kind", "sentence"),
    [
        ({"rtol": -1e-6}, ValueError, "rtol must be finite and not negative, got -1e-06"),
        ({"atol": torch.full((3, 2), NAN)}, ValueError, "atol must be finite and not negative"),
        ({"rtol": torch.ones(3, 4)}, ValueError, "rtol of shape (3, 4) does not broadcast to the state's shape"),
        ({"rtol": {"a": 1.0}}, ValueError, "rtol with keys ['a'] does not match the state"),
        ({"max_steps": 0}, ValueError, "max_steps must be a whole number of at least 1, got 0"),
        ({"method": "rk4"}, ValueError, "RK4 has no error estimate and takes fixed steps: pass step_size=0.01"),
        ({"method": "gl4"}, ValueError, "GaussLegendre4 has no error estimate and takes fixed steps: pass step_size=0.01"),
        ({"step_size": -0.1}, ValueError, "step_size"),
        ({"gradient": "adjoint"}, ValueError, "unknown gradient 'adjoint'"),
    ],
)  # fmt: skip
def test_options(options, kind, sentence):
    refused(kind, sentence, **options)


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_the_same_is_refused_for_any_number_of_rows(rows):
    refused(ValueError, "takes fixed steps: pass step_size=0.01", Y0[:rows], method="rk4")
    refused(ValueError, "takes fixed steps: pass step_size=0.01", Y0[:rows], method="gl4")
    refused(TypeError, "compact must be True, False or None", Y0[:rows], compact="yes")


def test_an_error_of_func_on_the_way_is_the_users():
    def func(t, y):
        if (t > 0.5).any():
            raise ArithmeticError("mine")
        return -y

    with pytest.raises(ArithmeticError, match="mine"):
        solve(func=func)


def test_throw_raises_when_all_rows_are_through():
    y0 = torch.tensor([1.0, -1.0, 2.0], dtype=D)
    with pytest.raises(SolveError, match=r"2 of 3 rows did not reach the end: row 0: .*; row 2: "):
        solve_ivp(lambda t, y: y * y, (0.0, 2.0), y0, batch_dims=1)
