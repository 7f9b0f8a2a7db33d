"""`jac` and `jac_sparsity` of `solve_ivp`: the same solution as without them, in every way; and refused if wrong."""

import itertools
import re

import numpy as np
import pytest
import scipy.sparse
import torch

from problems import METHODS, covering, double, sampled
from torchivp import ODE_METHODS, solve_ivp
from torchivp.methods.implicit import sparse

USING = [name for name in METHODS if ODE_METHODS[name].uses_jacobian]
FEW = ["rodas5p", "bdf", "radau5", "kvaerno3", "auto"]
COUPLING = double(30.0, 100.0)
SPAN = (0.0, 0.5)


def chain(t, y, k=COUPLING):
    """Neighbours among five pull at each other, nonlinearly, and one is pushed; k is a number for all, or [rows, 2]."""
    left, right = k.unsqueeze(-1).unbind(-2)
    gaps = y[..., 1:] - y[..., :-1]
    pull = torch.nn.functional.pad(gaps, (0, 1)) * left - torch.nn.functional.pad(gaps, (1, 0)) * right
    return pull - y**3 + torch.nn.functional.pad(torch.sin(5 * t).expand(*y.shape[:-1], 1), (0, 4))


def chain_jacobian(t, y, k=COUPLING):
    left, right = k.unsqueeze(-1).unbind(-2)
    ones = torch.ones_like(y[..., 1:])
    on = -3 * y**2 - torch.nn.functional.pad(ones, (0, 1)) * left - torch.nn.functional.pad(ones, (1, 0)) * right
    diagonals = torch.diag_embed(on), torch.diag_embed(ones * left, 1), torch.diag_embed(ones * right, -1)
    return diagonals[0] + diagonals[1] + diagonals[2]


Y0 = double(1.0, 0.5, -0.2, 0.8, 0.1)
ROWS = torch.stack((Y0, 2 * Y0, -Y0.flip(0)))
PATTERN = np.abs(np.subtract.outer(np.arange(5), np.arange(5))) <= 1


def solved(method, y0=Y0, func=chain, rtol=1e-4, **options):
    if ODE_METHODS[method].error_order is None:
        options["step_size"] = 0.05
    return solve_ivp(func, SPAN, y0, method=method, rtol=rtol, atol=0.01 * rtol, **options)


class Calls:
    """A function that counts its calls."""

    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *args):
        self.calls += 1
        return self.function(*args)


@pytest.mark.parametrize("method", sampled(USING))
@pytest.mark.parametrize("batch_dims", [0, 1])
def test_a_jacobian_that_is_given_is_used_and_changes_nothing(method, batch_dims):
    y0 = ROWS if batch_dims else Y0
    jac = Calls(chain_jacobian)
    expected, found = solved(method, y0, batch_dims=batch_dims), solved(method, y0, jac=jac, batch_dims=batch_dims)
    torch.testing.assert_close(found.final, expected.final, rtol=1e-9, atol=1e-11)
    assert jac.calls > 2 or method == "auto"  # besides the comparison at the start


@pytest.mark.parametrize(
    ("method", "pattern"),
    sampled(
        covering(USING, ["rodas5p"], [(1, 1), PATTERN, torch.from_numpy(PATTERN), scipy.sparse.csr_array(PATTERN)])
    ),
)
def test_a_banded_pattern_gives_the_solution_of_dense_jacobians(method, pattern):
    expected, found = solved(method), solved(method, jac_sparsity=pattern)
    torch.testing.assert_close(found.final, expected.final, rtol=1e-9, atol=1e-11)
    assert found.stats.accepted == expected.stats.accepted


@pytest.mark.parametrize("method", FEW)
def test_rows_with_arguments_of_their_own_have_their_own_jacobians(method):
    k = torch.stack((COUPLING, 3 * COUPLING, 0.1 * COUPLING))
    batch = solved(method, ROWS, args=(k,), jac=chain_jacobian, jac_sparsity=(1, 1), batch_dims=1)
    for row in range(3):
        single = solved(method, ROWS[row], args=(k[row],))
        torch.testing.assert_close(batch.final[row], single.final, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("batch_dims", [0, 1])
@pytest.mark.parametrize("method", FEW)
def test_a_constant_matrix_serves_a_linear_problem(method, batch_dims):
    a = torch.diag(double(-1.0, -50.0, -3.0, -4.0, -2e3)) + 0.3
    y0 = ROWS if batch_dims else Y0
    found = solved(method, y0, lambda t, y: y @ a.T, jac=a, batch_dims=batch_dims)
    torch.testing.assert_close(found.final, y0 @ torch.linalg.matrix_exp(0.5 * a).T, rtol=1e-2, atol=1e-4)


def test_a_state_of_several_dimensions_has_a_jacobian_of_twice_as_many():
    y0 = Y0[:4].reshape(2, 2)

    def func(t, y):
        return -40 * y.T - 50 * y

    jac = torch.autograd.functional.jacobian(lambda y: func(0.0, y), y0)
    given, found = (solved("radau5", y0, func, **option) for option in ({"jac": jac}, {}))
    torch.testing.assert_close(given.final, found.final, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("method", "gradient"),
    sampled(covering(USING, ["rodas5p", "radau5"], ["direct", "checkpointed", "backsolve", "forward"])),
)
def test_gradients_are_those_without_a_given_jacobian(method, gradient):
    """A given one has no history that could be wrong: derivatives find theirs by autograd."""

    def gradients(**options):
        y0, k = Y0.clone().requires_grad_(), (0.1 * COUPLING).requires_grad_()
        final = solved(method, y0, args=(k,), gradient=gradient, **options).final
        return torch.autograd.grad((final * Y0).sum(), (y0, k))

    tolerance = {"rtol": 1e-4, "atol": 1e-5} if gradient == "backsolve" else {"rtol": 1e-7, "atol": 1e-9}
    expected = gradients()
    for options in ({"jac": lambda t, y, k: chain_jacobian(t, y, k).detach()}, {"jac_sparsity": (1, 1)}):
        torch.testing.assert_close(gradients(**options), expected, **tolerance)


@pytest.mark.parametrize("gradient", ["direct", "checkpointed", "backsolve", "forward"])
def test_a_jacobian_that_is_nearly_right_leaves_gradients_right(gradient):
    """Newton's iteration finds the same slopes with it, and their derivatives are by the exact one."""

    def gradients(**options):
        y0 = Y0.clone().requires_grad_()
        final = solve_ivp(chain, SPAN, y0, method="radau5", rtol=1e-6, atol=1e-8, gradient=gradient, **options).final
        return torch.autograd.grad((final * Y0).sum(), y0)[0]

    found = gradients(jac=lambda t, y: 1.0005 * chain_jacobian(t, y))
    torch.testing.assert_close(found, gradients(), rtol=1e-4, atol=1e-6)


def test_a_jacobian_where_autograd_sees_nothing_makes_a_stiff_problem_easy():
    def func(t, y):
        return torch.from_numpy(chain(t, y).detach().numpy())

    without, given = (solved("radau5", func=func, **options) for options in ({}, {"jac": chain_jacobian}))
    torch.testing.assert_close(given.final, solved("radau5").final, rtol=1e-4, atol=1e-6)
    assert given.stats.evaluations < 0.5 * without.stats.evaluations


@pytest.mark.parametrize("method", ["rodas4", "rodas5p", "rosenbrock23"])
def test_func_may_return_the_same_memory_each_time_beside_a_jacobian(method):
    """What a rejected step knows of its start is not what func has written over it since."""
    memory = torch.empty(5, dtype=torch.float64)

    def func(t, y):
        with torch.no_grad():
            return memory.copy_(chain(torch.zeros_like(t), y))

    def fresh(t, y):
        return chain(torch.zeros_like(t), y)

    found, expected = (solved(method, func=f, first_step=0.4, jac=chain_jacobian) for f in (func, fresh))
    assert expected.stats.rejected
    torch.testing.assert_close(found.final, expected.final, rtol=1e-12, atol=1e-14)


def heat(t, y):
    z = torch.nn.functional.pad(y, (1, 1))
    return 1e3 * (z[..., 2:] - 2 * y + z[..., :-2]) - y**2


LONG = torch.sin(torch.linspace(0.1, 3.0, 150, dtype=torch.float64))


@pytest.mark.parametrize("batch_dims", [0, 1])
@pytest.mark.parametrize("method", ["rodas5p", "bdf", "radau5", "kvaerno3", "sdirk2"])
def test_sparse_systems_give_the_solution_of_dense_ones(method, batch_dims, monkeypatch):
    factorise = Calls(sparse._factorise)
    monkeypatch.setattr(sparse, "_factorise", factorise)
    y0 = torch.stack((LONG, 0.5 * LONG)) if batch_dims else LONG
    options = {"batch_dims": batch_dims}
    dense, found = solved(method, y0, heat, **options), solved(method, y0, heat, jac_sparsity=(1, 1), **options)
    assert factorise.calls
    torch.testing.assert_close(found.final, dense.final, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("gradient", ["direct", "checkpointed", "backsolve"])
def test_gradients_through_sparse_systems_are_those_through_dense_ones(gradient):
    def gradients(**options):
        y0 = LONG.clone().requires_grad_()
        final = solve_ivp(heat, (0.0, 1e-3), y0, method="radau5", gradient=gradient, **options).final
        return torch.autograd.grad((final * LONG).sum(), y0)[0]

    torch.testing.assert_close(gradients(jac_sparsity=(1, 1)), gradients(), rtol=1e-6, atol=1e-8)


CHAIN = [{"jac": chain_jacobian}, {"jac_sparsity": (1, 1)}]


@pytest.mark.parametrize(
    ("method", "options"), sampled(itertools.product(FEW, CHAIN), covering(FEW, ["rodas5p"], CHAIN))
)
def test_transforms_and_inference_mode_take_both(method, options):
    expected = solved(method).final

    def final(y0):
        return solved(method, y0, **options).final

    torch.testing.assert_close(torch.func.vmap(final)(Y0.expand(2, 5))[1], expected, rtol=1e-3, atol=1e-5)
    leaf = Y0.clone().requires_grad_()
    (plain,) = torch.autograd.grad(solved(method, leaf).final.sum(), leaf)
    torch.testing.assert_close(torch.func.grad(lambda y0: final(y0).sum())(Y0), plain, rtol=1e-7, atol=1e-9)
    with torch.inference_mode():
        rows = solved(method, Y0.expand(2, 5).clone(), batch_dims=1, **options).final
    expected = solved(method, Y0.expand(2, 5), batch_dims=1).final
    torch.testing.assert_close(rows.clone(), expected, rtol=1e-9, atol=1e-11)


def test_the_comparison_at_the_start_is_not_counted():
    given, found = solved("radau5", jac=chain_jacobian).stats, solved("radau5").stats
    assert given.evaluations == found.evaluations - found.jacobians


def refused(kind, sentence, **options):
    with pytest.raises(kind, match=re.escape(sentence)):
        solved(options.pop("method", "radau5"), options.pop("y0", Y0), options.pop("func", chain), **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("method", ["rodas5p", "bdf", "auto"])
def test_a_transposed_jacobian_is_refused(method, dtype):
    refused(
        ValueError,
        "jac is not the derivative of func: at t = 0 and y0 it gives 100 for d func[0] / d y[1], where the derivative "
        "is 30. Is it transposed (the index of func comes first)",
        jac=lambda t, y: chain_jacobian(t, y).mT,
        y0=Y0.to(dtype),
        method=method,
    )


def test_a_jacobian_for_other_parameters_is_refused_and_the_row_named():
    k = torch.stack((COUPLING, 3 * COUPLING, 0.1 * COUPLING))
    wrong = k * double(1.0, 1.0, 1.1).unsqueeze(1)
    refused(
        ValueError,
        "at t = 0 and y0 of row 2 it gives",
        jac=lambda t, y, k, w: chain_jacobian(t, y, w),
        func=lambda t, y, k, w: chain(t, y, k),
        args=(k, wrong),
        y0=ROWS,
        batch_dims=1,
    )


def test_a_jacobian_that_is_wrong_where_nothing_vanishes_by_chance_is_refused():
    """Here the derivative of y**3 is zero at the start."""
    wrong = Calls(lambda t, y: torch.diag(y**2 - 1))
    sentence = "at t = 0 and a state near y0 it gives"
    refused(ValueError, sentence, func=lambda t, y: y**3 - y, jac=wrong, y0=torch.zeros(3, dtype=torch.float64))


def test_a_jacobian_that_is_not_finite_is_refused():
    refused(ValueError, "it gives nan for d func[0] / d y[0]", jac=lambda t, y: chain_jacobian(t, y) * torch.nan)


def test_a_wrong_jacobian_is_found_by_differences_where_autograd_sees_nothing():
    refused(
        ValueError,
        "it gives 100 for d func[0] / d y[1], where the derivative is 30",
        func=lambda t, y: torch.from_numpy(chain(t, y).detach().numpy()),
        jac=lambda t, y: chain_jacobian(t, y).mT,
    )


@pytest.mark.parametrize("numpy", [False, True])
def test_either_side_of_a_kink_is_right(numpy):
    def func(t, y):
        slope = -torch.relu(y - 1) * double(1.0, 2.0, 3.0) - y
        return torch.from_numpy(slope.detach().numpy()) if numpy else slope

    for side in (torch.ge, torch.gt):
        jac = Calls(lambda t, y, side=side: -torch.diag(double(1.0, 2.0, 3.0) * side(y, 1.0) + 1.0))
        final = solve_ivp(func, SPAN, double(1.0, 1.0, 1.0), method="radau5", jac=jac).final
        torch.testing.assert_close(final, torch.full_like(final, 0.5).neg().exp(), rtol=1e-5, atol=1e-7)


def test_where_there_is_no_derivative_nothing_is_compared():
    """The square root's is infinite where the solve starts, and func is no number below."""
    found = solve_ivp(
        lambda t, y: torch.sqrt(y) + 1.0,
        (0.0, 1.0),
        torch.zeros(2, dtype=torch.float64),
        method="bdf",
        jac=lambda t, y: torch.diag(0.5 / torch.sqrt(y)),
    )
    s = found.final.sqrt()
    torch.testing.assert_close(2 * (s - torch.log1p(s)), torch.ones_like(s), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch_dims", [0, 1])
@pytest.mark.parametrize("options", [{}, {"jac": chain_jacobian}])
def test_an_entry_outside_of_the_pattern_is_refused(options, batch_dims):
    row = " of row 0" if batch_dims else ""
    refused(
        ValueError,
        f"jac_sparsity has no place for d func[4] / d y[3], which is 100 at t = 0 and y0{row}: the pattern needs an "
        "entry in row 4, column 3 of the flattened state, or a band (lower, upper) with lower of at least 1",
        jac_sparsity=np.abs(np.subtract.outer(np.arange(5), np.arange(5))) <= (np.arange(5) < 4)[:, None],
        y0=ROWS if batch_dims else Y0,
        batch_dims=batch_dims,
        **options,
    )


def test_an_entry_outside_of_the_pattern_that_is_zero_at_the_start_is_refused():
    def func(t, y):
        return torch.stack((-y[..., 0] + y[..., 1] * y[..., 2], -y[..., 1], -y[..., 2]), -1)

    sentence = "jac_sparsity has no place for d func[0] / d y[2]"
    refused(ValueError, sentence, func=func, y0=double(1.0, 0.0, 0.0), jac_sparsity=(1, 1))


def test_an_entry_outside_of_a_large_pattern_is_named():
    def func(t, y):
        return heat(t, y) + torch.nn.functional.pad(y[..., :1], (149, 0))

    sentence = "jac_sparsity has no place for d func[149] / d y[0], which is 1 at"
    refused(ValueError, sentence, func=func, y0=LONG, jac_sparsity=(1, 1))


@pytest.mark.parametrize(
    ("options", "kind", "sentence"),
    [
        ({"method": "dopri5", "jac": chain_jacobian}, ValueError, "Dopri5 uses no Jacobian: leave jac out"),
        ({"method": "adams", "jac_sparsity": (1, 1)}, ValueError, "uses no Jacobian: leave jac_sparsity out"),
        ({"jac": chain_jacobian, "y0": Y0 + 0j}, ValueError, "jac is for real states"),
        ({"jac_sparsity": (1, 1), "y0": Y0 + 0j}, ValueError, "jac_sparsity is for real states"),
        ({"jac": chain_jacobian, "y0": (Y0, Y0)}, ValueError, "jac is for states that are one tensor"),
        ({"jac": np.eye(5)}, TypeError, "jac must be a function jac(t, y, *args) or a constant matrix, a tensor, got"),
        (
            {"jac": lambda t, y: chain_jacobian(t, y).numpy()},
            TypeError,
            "jac(t, y) must return a tensor, got ndarray: write torch.from_numpy(matrix)",
        ),
        (
            {"jac": lambda t, y: torch.eye(4)},
            ValueError,
            "jac(t, y) must return shape (5, 5), d func_i / d y_j with the index i of func first, as "
            "torch.func.jacfwd does; it returned shape (4, 4)",
        ),
        ({"jac": torch.eye(4)}, ValueError, "jac must be of shape (5, 5), d func_i / d y_j with the index i of func"),
        (
            {"jac": torch.eye(5).expand(3, 5, 5), "y0": ROWS, "batch_dims": 1},
            ValueError,
            "got shape (3, 5, 5): where rows have matrices of their own, pass them as args",
        ),
        ({"jac_sparsity": np.eye(4)}, ValueError, "jac_sparsity must be of shape (5, 5)"),
        ({"jac_sparsity": "banded"}, TypeError, "jac_sparsity must be a matrix or the widths of a band, got 'banded'"),
        ({"jac_sparsity": (-1, 1)}, TypeError, "got (-1, 1): write jac_sparsity=(1, 1) for a band"),
        (
            {"method": ODE_METHODS["radau5"].with_options(linear_solver="sparse")},
            RuntimeError,
            "linear_solver='sparse' factorises, on the CPU, matrices of which it knows where they have entries: pass "
            "jac_sparsity= to solve_ivp, or use 'krylov'",
        ),
    ],
)
def test_what_cannot_be_is_refused(options, kind, sentence):
    options = {"y0": Y0, "method": "radau5", **options}
    with pytest.raises(kind, match=re.escape(sentence)):
        solve_ivp(chain, SPAN, options.pop("y0"), **options)


def test_sparse_systems_where_asked_for_serve_small_problems():
    method = ODE_METHODS["radau5"].with_options(linear_solver="sparse")
    found = solve_ivp(chain, SPAN, Y0, method=method, jac_sparsity=(1, 1), rtol=1e-6, atol=1e-8)
    expected = solve_ivp(chain, SPAN, Y0, method="radau5", rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found.final, expected.final, rtol=1e-9, atol=1e-11)
