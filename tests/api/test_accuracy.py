"""Solutions of known problems, by every method and of every kind of state."""

import itertools
import math

import pytest
import torch

from problems import ADAPTIVE, DETEST, FIXED, METHODS, Counting, covering, sampled, scipy_solution
from torchivp import ODE_METHODS, PIController, PIDController, odeint, solve_ivp


@pytest.mark.parametrize(
    ("method", "problem"),
    sampled(itertools.product(ADAPTIVE, DETEST), covering(ADAPTIVE, ["dopri5", "radau5", "adams"], DETEST)),
)
def test_detest_problems_within_the_tolerance(method, problem):
    func, y0 = DETEST[problem]
    t = torch.linspace(0.0, 20.0, 41, dtype=torch.float64)
    rtol = 1e-4 if ODE_METHODS[method].order < 5 else 1e-8
    y = odeint(func, torch.tensor(y0, dtype=torch.float64), t, method=method, rtol=rtol, atol=rtol / 10)
    error = (y - scipy_solution(func, y0, t)).abs().max().item()
    assert error < {"fehlberg2": 3e4, "bdf": 4e3, "kencarp5": 4e3, "rosenbrock23": 3e3}.get(method, 1e3) * rtol


@pytest.mark.parametrize("controller", [PIDController(), PIController(), PIDController(kp=0.2, ki=0.4, kd=0.05)])
def test_every_controller_meets_the_tolerance(controller):
    func, y0 = DETEST["E2 van der Pol"]
    t = [0.0, 20.0]
    solution = solve_ivp(func, t, torch.tensor(y0, dtype=torch.float64), controller=controller, rtol=1e-8, atol=1e-8)
    assert (solution.y[-1] - scipy_solution(func, y0, t)[-1]).abs().max() < 1e-5
    assert solution.stats.rejected < 0.2 * solution.stats.accepted


@pytest.mark.parametrize("method", METHODS)
def test_backward_in_time_undoes_forward(method):
    func, y0 = DETEST["E2 van der Pol"]
    y0 = torch.tensor(y0, dtype=torch.float64)
    order = ODE_METHODS[method].order
    rtol = 1e-6 if method == "fehlberg2" else 1e-5 if 0 < order < 4 else 1e-8
    options = {"step_size": {1: 0.002, 2: 0.005}.get(order, 0.02)} if method in FIXED else {"rtol": rtol, "atol": rtol}
    there = solve_ivp(func, (1.0, 2.0), y0, method=method, **options)
    back = solve_ivp(func, (2.0, 1.0), there.y[-1], method=method, t_eval=[2.0, 1.7, 1.0], **options)
    tolerance = 1e-2 if order == 1 else 5e-4 if 0 < order < 4 else 1e-4
    torch.testing.assert_close(back.y[-1], y0, rtol=0, atol=tolerance)
    assert back.t.tolist() == [2.0, 1.7, 1.0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
def test_dtypes(method, dtype):
    rate = -1.0 + 2.0j if dtype.is_complex else -1.0
    seen = set()

    def func(t, y):
        seen.add(t.dtype)
        return rate * y

    y0 = torch.ones(3, dtype=dtype)
    options = {"step_size": 0.01} if method in FIXED else {"solver": "RK45"} if method == "scipy_solver" else None
    y = odeint(func, y0, torch.tensor([0.0, 0.4, 1.0]), method=method, options=options, rtol=1e-5, atol=1e-6)
    assert y.dtype == dtype
    assert seen == {dtype.to_real()}
    exact = torch.exp(torch.tensor([0.0, 0.4, 1.0], dtype=dtype) * rate)
    bounds = {"euler": 0.03, "implicit_euler": 0.03, "fehlberg2": 1e-3, "rosenbrock23": 3e-4, "kencarp5": 3e-4}
    assert (y - exact[:, None]).abs().max() < bounds.get(method, 1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_states_are_solved_in_single_precision(dtype):
    seen = set()

    def func(t, y):
        seen.add((t.dtype, y.dtype))
        return -y

    y = odeint(func, torch.ones(2, dtype=dtype), torch.linspace(0, 1, 5), rtol=1e-3, atol=1e-3)
    assert y.dtype == dtype
    assert seen == {(dtype, dtype)}
    assert abs(y[-1, 0].item() - math.exp(-1)) < 0.01


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (2, 1, 4), (0,), (0, 3)])
def test_shapes(shape):
    y = odeint(lambda t, y: -y, torch.ones(shape, dtype=torch.float64), torch.tensor([0.0, 1.0, 2.0]))
    assert y.shape == (3, *shape)
    torch.testing.assert_close(y[-1], torch.full(shape, math.exp(-2), dtype=torch.float64), rtol=1e-6, atol=0)


def test_pytrees():
    y0 = {"a": torch.ones(2, dtype=torch.float64), "b": [torch.ones(()), (torch.ones(1, 2, dtype=torch.complex64),)]}

    def func(t, y):
        return {"a": -y["a"], "b": [y["b"][0] * t, (1j * y["b"][1][0],)]}

    y = odeint(func, y0, torch.tensor([0.0, 0.5, 1.0]), rtol=1e-6, atol=1e-6)
    assert y["a"].shape == (3, 2) and y["a"].dtype == torch.float64
    assert y["b"][0].shape == (3,) and y["b"][0].dtype == torch.float32
    assert y["b"][1][0].shape == (3, 1, 2) and y["b"][1][0].dtype == torch.complex64
    assert y["a"][-1, 0].item() == pytest.approx(math.exp(-1), rel=1e-5)
    assert y["b"][0][-1].item() == pytest.approx(math.exp(0.5), rel=1e-5)
    assert complex(y["b"][1][0][-1, 0, 0]) == pytest.approx(complex(math.cos(1), math.sin(1)), rel=1e-5)


def test_tuple_state_may_be_returned_as_list():
    y = odeint(lambda t, y: [-y[0], y[1]], (torch.ones(2), torch.ones(1)), torch.tensor([0.0, 1.0]), rtol=1e-5)
    assert isinstance(y, tuple)
    assert y[1][-1].item() == pytest.approx(math.e, rel=1e-4)


def test_one_time_returns_the_initial_state_without_a_call():
    func = Counting(lambda t, y: -y)
    y0 = torch.ones(2)
    assert torch.equal(odeint(func, y0, torch.tensor([3.0])), y0[None])
    assert func.times == []


def test_a_span_of_no_length_returns_the_initial_state():
    solution = solve_ivp(lambda t, y: -y, (1.0, 1.0), torch.ones(2), t_eval=[1.0])
    assert solution.success and torch.equal(solution.y, torch.ones(1, 2))


@pytest.mark.parametrize(("method", "start"), covering(METHODS, ["euler", "rk4", "dopri5", "gl4"], [1e6, -1e6, 0.0]))
def test_single_precision_far_from_the_origin_of_time(method, start):
    """Times are double inside: steps do not stall where float32 has a spacing of 0.06, and the end is met exactly."""
    span = (start, start + 1.0)
    step = {"step_size": 0.01} if method in FIXED else {}
    solution = solve_ivp(lambda t, y: -y, span, torch.ones(1), method=method, rtol=1e-5, atol=1e-7, **step)
    assert solution.t[-1].item() == span[1]
    bounds = {"euler": 1e-2, "implicit_euler": 1e-2, "fehlberg2": 1e-3, "rosenbrock23": 3e-4}
    assert solution.y[-1].item() == pytest.approx(math.exp(-1), rel=bounds.get(method, 1e-4))


def test_func_is_never_called_outside_the_span():
    assert max(ODE_METHODS["kvaerno5"].tableau.c) > 1.2  # which says so
    for method in [name for name in METHODS if name != "kvaerno5"]:
        func = Counting(lambda t, y: torch.sqrt(2.0 - t) * y)
        step = {"step_size": 0.1} if method in FIXED else {}
        solve_ivp(func, (0.0, 2.0), torch.ones(1, dtype=torch.float64), method=method, **step)
        assert min(func.times) >= 0.0 and max(func.times) <= 2.0


def test_fixed_steps_are_counted_and_not_summed():
    func = Counting(lambda t, y: -y)
    solve_ivp(func, (0.0, 1.0), torch.ones(1, dtype=torch.float64), method="euler", step_size=0.1)
    assert func.times == [i * 0.1 for i in range(10)]
    func = Counting(lambda t, y: -y)
    solve_ivp(func, (0.0, 1.0), torch.ones(1, dtype=torch.float64), method="euler", step_size=0.3)
    assert func.times == [0.0, 0.3, 0.6, pytest.approx(0.9)]


def test_tolerances_of_every_form_agree():
    y0 = (torch.ones(2, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)

    def func(t, y):
        return -y[0], y[1]

    expected = odeint(func, y0, t, rtol=1e-5, atol=1e-7)
    for rtol, atol in [
        ((1e-5, 1e-5), 1e-7),
        (1e-5, [1e-7, torch.full((1,), 1e-7)]),
        (torch.tensor(1e-5, dtype=torch.float64), (torch.full((2,), 1e-7, dtype=torch.float64), 1e-7)),
    ]:
        y = odeint(func, y0, t, rtol=rtol, atol=atol)
        torch.testing.assert_close(y, expected, rtol=1e-8, atol=0)


def test_a_loose_tolerance_for_one_component_saves_steps():
    def func(t, y):
        return torch.stack((-y[0], torch.cos(40 * t)))

    y0 = torch.tensor([1.0, 0.0], dtype=torch.float64)
    tight = solve_ivp(func, (0.0, 2.0), y0, atol=1e-9)
    loose = solve_ivp(func, (0.0, 2.0), y0, atol=torch.tensor([1e-9, 1e3], dtype=torch.float64))
    assert loose.stats.accepted < tight.stats.accepted / 2


def test_a_norm_of_ones_own_sees_the_shape_of_the_state():
    shapes = set()

    def largest(y):
        shapes.add(y["a"].shape)
        return torch.maximum(y["a"].abs().max(), y["b"].abs().max())

    y0 = {"a": torch.ones(2, 3, dtype=torch.float64), "b": torch.ones((), dtype=torch.float64)}
    y = odeint(lambda t, y: {"a": -y["a"], "b": y["b"]}, y0, torch.tensor([0.0, 1.0]), options={"norm": largest})
    assert shapes == {(2, 3)}
    assert y["b"][-1].item() == pytest.approx(math.e, rel=1e-6)


def test_dense_output_at_any_time_and_shape():
    func, y0 = DETEST["D2 orbit of eccentricity 0.3"]
    solution = solve_ivp(
        func, (0.0, 10.0), torch.tensor(y0, dtype=torch.float64), dense_output=True, rtol=1e-9, atol=1e-9
    )
    t = torch.linspace(0, 10, 60, dtype=torch.float64)
    assert (solution.sol(t) - scipy_solution(func, y0, t)).abs().max() < 1e-6
    grid = t.reshape(3, 20).flip(1)
    torch.testing.assert_close(solution.sol(grid), solution.sol(t).reshape(3, 20, 4).flip(1))
    assert solution.sol(3.3).shape == (4,)
    assert torch.equal(solution.sol(10.0), solution.y[-1]) or torch.allclose(solution.sol(10.0), solution.y[-1])
    with pytest.raises(
        ValueError, match=r"t = 10.5 lies outside the solution's span \[0.0, 10.0\]: solve over a longer"
    ):
        solution.sol(10.5)


def test_dense_output_backward_in_time():
    solution = solve_ivp(lambda t, y: -y, (1.0, -1.0), torch.ones(1, dtype=torch.float64), dense_output=True)
    t = torch.linspace(-1, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(solution.sol(t)[:, 0], torch.exp(1 - t), rtol=1e-5, atol=0)


def test_every_accepted_step_is_returned_by_default():
    solution = solve_ivp(lambda t, y: -y, (0.0, 1.0), torch.ones(1, dtype=torch.float64))
    assert len(solution.t) == solution.stats.accepted + 1
    assert solution.t[0] == 0.0 and solution.t[-1] == 1.0
    torch.testing.assert_close(solution.y[:, 0], torch.exp(-solution.t), rtol=1e-5, atol=0)


def test_requested_times_need_not_hold_the_ends():
    solution = solve_ivp(lambda t, y: -y, (0.0, 1.0), torch.ones(1, dtype=torch.float64), t_eval=[0.2, 0.3])
    torch.testing.assert_close(solution.y[:, 0], torch.exp(-solution.t), rtol=1e-5, atol=0)
    assert solve_ivp(lambda t, y: -y, (0.0, 1.0), torch.ones(1), t_eval=[]).y.shape == (0, 1)


@pytest.mark.parametrize(("method", "each"), [("adaptive_heun", 1), ("fehlberg2", 2), ("bosh3", 3), ("dopri5", 6)])
def test_evaluations_of_a_step(method, each):
    """One stage fewer than the tableau has: the last of a step is the first of the next, alone and in a batch."""
    y0 = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    for batch in ({}, {"batch_dims": 1}):
        solution = solve_ivp(lambda t, y: -y * torch.cos(t), (0.0, 2.0), y0, method=method, rtol=1e-3, **batch)
        for stats in [solution.stats] if not batch else solution.stats:
            assert stats.evaluations == 2 + each * (stats.accepted + stats.rejected)


def test_statistics_count_what_happened():
    func = Counting(lambda t, y: torch.where(t < 0.5, 1.0, 50.0) * torch.cos(50 * t) * y)
    solution = solve_ivp(func, (0.0, 1.0), torch.ones(1, dtype=torch.float64), method="dopri5")
    stats = solution.stats
    assert stats.evaluations == len(func.times)
    assert stats.rejected > 0
    assert stats.evaluations == 2 + 6 * (stats.accepted + stats.rejected)


def test_repr_says_it_all():
    text = repr(solve_ivp(lambda t, y: -y, (0.0, 1.0), torch.ones(2), dense_output=True))
    for part in (
        "Solution(success: reached t = 1",
        "in [0, 1]",
        "evaluations",
        "accepted",
        "DenseSolution(t in [0, 1]",
    ):
        assert part in text
