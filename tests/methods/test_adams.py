"""The Adams methods: coefficients, orders on grids of any spacing, dense output, varying order, gradients."""

import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch

from problems import DETEST, Counting, LotkaVolterra, covering, double, scipy_solution
from torchivp import GridSteps, Scheduled, odeint, solve_ivp
from torchivp.error_norm import ErrorNorm
from torchivp.methods.ode.adams import Adams, AdamsCarry, NextOrder
from torchivp.methods.ode.explicit_adams import ExplicitAdams
from torchivp.methods.ode.extrapolated_midpoint import extrapolated_midpoint
from torchivp.methods.ode.implicit_adams import ImplicitAdams
from torchivp.methods.ode.past_slopes import PastSlopes
from torchivp.methods.ode.slope_polynomial import integrals

FIXED = [ExplicitAdams, ImplicitAdams]
TIGHT = {"rtol": 1e-13, "atol": 1e-13}
unconverged = pytest.mark.filterwarnings("ignore:Functional iteration")


def solution(t):
    """Of both problems, which are not linear; all of its derivatives are of the same size at all times."""
    return torch.exp(1j * torch.as_tensor(t, dtype=torch.float64))


PROBLEMS = {"autonomous": lambda t, y: 1j * y * y.abs() ** 2, "with time": lambda t, y: 1j * y * y * solution(-t)}
ONE = torch.ones(1, dtype=torch.complex128)


def logistic(t, y):
    return y * (1.0 - y)


def weights_at(nodes):
    """Of the slopes at all of the nodes."""
    return integrals(nodes[None])[0][0, -1]


def spacing(kind, count):
    """The ends of `count` steps over a unit of time."""
    steps = {
        "equal": np.ones(count),
        "two spacings": np.where(np.arange(count) % 2 == 0, 1.0, 0.6),
        "random": np.random.default_rng(3).uniform(0.6, 1.4, count),
    }[kind]
    ends = np.concatenate(([0.0], np.cumsum(steps))) / steps.sum()
    return np.array([*ends[:-1], 1.0])


def order_found(sizes, errors, rounding=3e-15):
    kept = [(h, e) for h, e in zip(sizes, errors, strict=True) if e > rounding]
    assert len(kept) >= 3, errors
    return np.polyfit(*np.log(np.array(kept)[-5:]).T, 1)[0]


def exact_past(kind, count, h, func):
    """The slopes of the exact solution at the start of a step of size h and at the ends of the steps before it."""
    times = double(*(h * count * (spacing(kind, count)[::-1] - 1.0)))[:count]
    slopes = func(times, solution(times))[:, None]
    return PastSlopes(times[None, 1:], slopes[None, 1:], slopes[:1])


def with_room(past, count):
    """The same with places for so many slopes."""
    none = PastSlopes.none(past.current, count + 1)
    known = past.times.shape[1]
    times = torch.cat((past.times, none.times[:, known:]), 1)
    return PastSlopes(times, torch.cat((past.slopes, none.slopes[:, known:]), 1), past.current)


def made(method):
    return method(ONE[None], torch.float64, ErrorNorm(1e-14, 1e-14, [slice(0, 1)], ONE.dtype))


@pytest.mark.parametrize(
    ("explicit", "weights"),
    [
        (True, [[1], [3, -1], [23, -16, 5], [55, -59, 37, -9], [1901, -2774, 2616, -1274, 251]]),
        (False, [[1], [1, 1], [5, 8, -1], [9, 19, -5, 1], [251, 646, -264, 106, -19]]),
    ],
)
def test_coefficients_of_equal_steps(explicit, weights):
    """Those of the textbooks: Hairer, Norsett and Wanner, (III.1.5) and (III.1.9)."""
    for row in weights:
        nodes = (0.0 if explicit else 1.0) - np.arange(len(row))
        np.testing.assert_allclose(weights_at(nodes), np.array(row) / sum(row), rtol=1e-14)
        np.testing.assert_allclose(weights_at(torch.from_numpy(nodes)), np.array(row) / sum(row), rtol=1e-14)


@pytest.mark.parametrize("order", range(1, 13))
def test_coefficients_of_unequal_steps_integrate_polynomials(order):
    nodes = -np.cumsum(np.random.default_rng(0).uniform(0.5, 1.5, order))
    for power in range(order):
        weights = weights_at(nodes)
        rounding = 1e-14 * (abs(weights) @ abs(nodes) ** power)
        assert weights @ nodes**power == pytest.approx(1 / (power + 1), abs=rounding)


@pytest.mark.parametrize("order", range(1, 13))
def test_order_of_the_start(order):
    even = order + order % 2
    sizes = np.array([1.2, 1.0, 0.8, 0.6, 0.5, 0.4])
    y0, func = double(1.0)[None], lambda t, y: y
    f0 = func(0.0, y0)
    errors = [
        abs(extrapolated_midpoint(func, 0.0, h, y0, f0, order, torch.float64).item() - math.exp(h)) for h in sizes
    ]
    assert order_found(sizes, errors) == pytest.approx(even + 1, abs=0.4)


@unconverged
@pytest.mark.parametrize("kind", ["equal", "two spacings", "random"])
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("order", range(1, 13))
@pytest.mark.parametrize("method", FIXED)
def test_order_of_one_step_from_an_exact_past(method, order, problem, kind):
    """Also of those methods that are unstable at steps at which their errors are above rounding."""
    func, stepper = PROBLEMS[problem], made(method.with_options(max_order=order))
    sizes = np.geomspace(0.4, 0.1, 12) * min(1.0, order / 6)
    errors = []
    for h in sizes:
        step = stepper.step(func, 0.0, h, ONE[None], exact_past(kind, order, h, func))
        assert not step.stages[0].any(), "this is a step of another method"
        errors.append((step.y1 - solution(h)).abs().item())
    assert order_found(sizes, errors, 1e-13) == pytest.approx(order + 1, abs=0.35)


@unconverged
@pytest.mark.parametrize(  # one step of each order, kind and problem is looked at above
    ("chosen", "problem", "kind"),
    covering(
        [(ExplicitAdams, k) for k in range(1, 7)] + [(ImplicitAdams, k) for k in range(1, 9)],
        [(ExplicitAdams, 4)],
        PROBLEMS,
        ["equal", "two spacings", "random"],
    ),
)
def test_convergence_at_the_steps_and_between_them(chosen, problem, kind):
    method, order = chosen
    # The first of few steps are more precise than the others, which lowers the order a little.
    t = torch.linspace(0.02, 1.98, 61, dtype=torch.float64)
    counts = np.array([64, 96, 128, 192] if order < 6 else [24, 32, 40, 48])
    errors = [
        (
            solve_ivp(
                PROBLEMS[problem],
                (0.0, 2.0),
                ONE,
                t_eval=t,
                method=method.with_options(max_order=order),
                controller=GridSteps(lambda times, n=n: 2.0 * spacing(kind, n)),
                **TIGHT,
            ).y[:, 0]
            - solution(t)
        )
        .abs()
        .max()
        .item()
        for n in counts
    ]
    assert order_found(1.0 / counts, errors) > order - 0.6


@pytest.mark.parametrize("method", FIXED)
def test_an_oscillator_is_stable_at_the_default_order(method):
    """Where the methods of order 12 diverge."""
    y0 = double(1.0, 0.0)
    errors = [
        (solve_ivp(lambda t, y: torch.stack((y[1], -y[0])), (0.0, 2.0), y0, method=method, step_size=2.0 / n).y[-1]
         - double(math.cos(2.0), -math.sin(2.0))).abs().max().item()
        for n in (32, 64, 128)
    ]  # fmt: skip
    assert order_found([1 / 32, 1 / 64, 1 / 128], errors) > 3.75


def test_a_step_much_longer_than_the_one_before_it():
    """Coefficients of opposite signs, as large as the ratio of the steps to the power of the order, would ruin it."""
    for method in FIXED:
        grid = [0.0, 0.1, 0.2, 0.3, 0.4, 0.4 + 1e-13, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
        y = solve_ivp(logistic, (0.0, 1.0), double(0.25), method=method, controller=GridSteps(lambda times: grid)).y
        assert y[-1].item() == pytest.approx(1.0 / (1.0 + 3.0 * math.exp(-1.0)), abs=1e-5)


@pytest.mark.parametrize(("method", "most"), [("explicit_adams", 1.0), ("implicit_adams", 3.0)])
def test_evaluations_of_fixed_steps(method, most):
    solution = solve_ivp(logistic, (0.0, 10.0), double(0.25), method=method, step_size=0.01)
    assert solution.stats.evaluations <= most * 1000 + 20


def test_one_correction_reaches_the_order_and_more_the_tolerance():
    def run(iterations, **tolerances):
        method = ImplicitAdams.with_options(max_iters=iterations)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return solve_ivp(logistic, (0.0, 4.0), double(0.25), method=method, step_size=0.5, **tolerances)

    exact = 1.0 / (1.0 + 3.0 * math.exp(-4.0))
    once, often = run(1), run(50, rtol=1e-15, atol=1e-15)
    assert (once.y[-1] - exact).abs() < 1e-3 and (often.y[-1] - exact).abs() < 1e-3
    assert once.stats.evaluations < often.stats.evaluations
    torch.testing.assert_close(run(30, **TIGHT).y, often.y, rtol=1e-11, atol=1e-12)


def test_the_warning_of_corrections_that_do_not_converge_comes_once():
    with pytest.warns(UserWarning, match=r"did not converge in 3 iterations at t = .*, step size too large") as caught:
        solve_ivp(lambda t, y: -30.0 * y, (0.0, 1.0), double(1.0), step_size=0.1,
                  method=ImplicitAdams.with_options(max_iters=3))  # fmt: skip
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solve_ivp(lambda t, y: -y, (0.0, 1.0), double(1.0), step_size=0.1, method="implicit_adams")


def test_options():
    for method in FIXED:
        assert method.order == 4 and method.with_options(max_order=7).order == 7
        for wrong in (0, 13):
            with pytest.raises(ValueError, match=f"max_order must be a whole number between 1 and 12, got {wrong}"):
                method.with_options(max_order=wrong)
        for wrong in (True, 3.0, "4"):
            with pytest.raises(TypeError, match="max_order must be a whole number between 1 and 12, got"):
                method.with_options(max_order=wrong)
    with pytest.raises(ValueError, match="max_iters must be a whole number of at least 1, got 0"):
        ImplicitAdams.with_options(max_iters=0)
    with pytest.raises(TypeError, match="ExplicitAdams has no option 'max_iters'; its options: max_order"):
        ExplicitAdams.with_options(max_iters=4)
    with pytest.raises(ValueError, match="Adams chooses its step sizes together with its order"):
        solve_ivp(logistic, (0.0, 1.0), double(0.25), method="adams", step_size=0.1)


@pytest.mark.parametrize("tolerance", [1e-4, 1e-6, 1e-8, 1e-10, 1e-12])
@pytest.mark.parametrize("problem", DETEST)
def test_adams_error_is_proportional_to_the_tolerance(problem, tolerance):
    func, y0 = DETEST[problem]
    t = torch.linspace(0.0, 10.0, 21, dtype=torch.float64)
    exact = scipy_solution(func, y0, t)
    solution = solve_ivp(func, (0.0, 10.0), double(*y0), t_eval=t, method="adams", rtol=tolerance, atol=tolerance)
    assert (solution.y - exact).abs().max() < 100 * tolerance


@pytest.mark.parametrize(("tolerance", "fraction"), [(1e-6, 0.8), (1e-9, 0.45), (1e-12, 0.2)])
@pytest.mark.parametrize("problem", ["D2 orbit of eccentricity 0.3", "E2 van der Pol", "A3 oscillation"])
def test_adams_needs_fewer_evaluations_than_dopri5(problem, tolerance, fraction):
    func, y0 = DETEST[problem]
    adams, dopri5 = (
        solve_ivp(func, (0.0, 20.0), double(*y0), method=method, rtol=tolerance, atol=tolerance).stats.evaluations
        for method in ("adams", "dopri5")
    )
    assert adams < fraction * dopri5


def steps_of(func, span, y0, tolerance=1e-9, **options):
    """The steps of a solve by `adams`: their ends and their orders, tried and accepted."""
    tried = []

    class Watched(Adams):
        def step(self, func, t0, t1, y0, carry):
            step = super().step(func, t0, t1, y0, carry)
            tried.append((float(t0), float(t1), step.order))
            return step

    solution = solve_ivp(func, span, y0, method=Watched, rtol=tolerance, atol=tolerance, **options)
    return solution, tried


def test_the_order_rises_from_one():
    solution, tried = steps_of(lambda t, y: torch.stack((y[1], -y[0])), (0.0, 20.0), double(1.0, 0.0), 1e-10)
    orders = [order for *_, order in tried]
    assert orders[0] == 1 and max(orders) >= 9
    assert all(after <= before + 1 for before, after in pairwise(orders))
    assert next(i for i, order in enumerate(orders) if order >= 5) < 15
    assert solution.stats.evaluations <= 2 * len(tried) + 2


def test_the_order_falls_where_the_solution_is_not_smooth():
    """And rises again after it."""
    _, tried = steps_of(lambda t, y: torch.abs(t - 5.0) * torch.cos(t) - y, (0.0, 10.0), double(1.0))
    orders = {"before": 0, "at": 13, "after": 0}
    for _, t1, order in tried:
        place = "at" if abs(t1 - 5.0) < 0.1 else "before" if t1 < 5.0 else "after"
        orders[place] = min(orders[place], order) if place == "at" else max(orders[place], order)
    assert orders["at"] < min(orders["before"], orders["after"]) - 2


def test_a_rejected_step_costs_one_evaluation():
    func = Counting(lambda t, y: torch.where(t < 1.0, 1.0, 100.0) * torch.cos(20.0 * t) * y)
    solution = solve_ivp(func, (0.0, 2.0), double(1.0), method="adams", rtol=1e-8, atol=1e-8)
    assert solution.stats.rejected > 5
    assert solution.stats.evaluations <= 2 * solution.stats.accepted + solution.stats.rejected + 1


def test_a_restart_begins_at_order_one():
    y = torch.ones(1, 2, dtype=torch.float64)
    method = Adams(y, torch.float64, ErrorNorm(1e-6, 1e-6, [slice(0, 2)], y.dtype))
    step = method.step(lambda t, y: -y, 0.0, 0.1, y, None)
    orders = [step.order]
    for i in range(1, 4):
        step = method.step(lambda t, y: -y, 0.1 * i, 0.1 * (i + 1), step.y1, step.carry)
        orders.append(step.order)
    assert orders == [1, 2, 3, 4]
    assert method.step(lambda t, y: -y, 0.4, 0.5, step.y1, None).order == 1
    again = method.step(lambda t, y: -y, 0.3, 0.35, step.y0, step.retry)
    assert again.order == 4 and not again.carry.next.starting.any()
    assert method.step(lambda t, y: -y, 0.3, 0.35, step.y0, method.at_order(step.retry, 3)).order == 3
    known = method.step(lambda t, y: -y, 0.0, 0.1, y, method.initial_carry(-y))
    assert torch.equal(known.y1, method.step(lambda t, y: -y, 0.0, 0.1, y, None).y1)


@pytest.mark.parametrize("kind", ["equal", "two spacings", "random"])
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("order", range(1, 13))
def test_orders_of_the_error_estimates_and_of_the_result(order, problem, kind):
    func, stepper = PROBLEMS[problem], made(Adams)
    sizes = np.geomspace(0.4, 0.1, 12) * min(1.0, order / 6)
    errors = {}
    for h in sizes:
        past = exact_past(kind, min(order + 1, 12), h, func)
        carry = AdamsCarry(with_room(past, 11), NextOrder(np.array([order]), np.array([False])))
        step = stepper.step(func, 0.0, h, ONE[None], carry)
        assert step.order == order
        estimates = {order: step.error, "result": step.y1 - solution(h), **dict(step.others)}
        for key, error in estimates.items():
            errors.setdefault(key, []).append(error.abs().item())
    assert set(errors) == {order, "result"} | {k for k in (order - 1, order + 1) if 1 <= k <= 12}
    for key, found in errors.items():
        expected = order + 2 if key == "result" else key + 1
        assert order_found(sizes, found, 1e-13) > expected - (0.5 if order < 10 else 1.1), (key, found)


@pytest.mark.parametrize("tolerance", [1e-5, 1e-8, 1e-11])
def test_adams_between_the_steps(tolerance):
    func, y0 = DETEST["D2 orbit of eccentricity 0.3"]
    solution = solve_ivp(func, (0.0, 6.0), double(*y0), method="adams", rtol=tolerance, atol=tolerance,
                         dense_output=True)  # fmt: skip
    t = torch.linspace(0.0, 6.0, 400, dtype=torch.float64)
    exact = scipy_solution(func, y0, t)
    at_ends = (solution.y - scipy_solution(func, y0, solution.t)).abs().max()
    assert (solution.sol(t) - exact).abs().max() < 3 * at_ends + 10 * tolerance
    torch.testing.assert_close(solution.sol(solution.t), solution.y, rtol=1e-12, atol=1e-13)


def test_dense_output_costs_adams_nothing():
    plain, dense = (
        solve_ivp(logistic, (0.0, 5.0), double(0.25), method="adams", dense_output=dense) for dense in (False, True)
    )
    assert plain.stats.evaluations == dense.stats.evaluations


ALL = {
    "adams": {"rtol": 1e-9, "atol": 1e-9},
    "explicit_adams": {"step_size": 0.02},
    "implicit_adams": {"step_size": 0.02},
}


RATES = double(0.3, 1.0, 2.5)


def elimination(t, y, k):
    return -k * y * y * (2.0 - t * t)


@unconverged
@pytest.mark.parametrize("size", [1, 2, 300])
@pytest.mark.parametrize("method", [Adams, *FIXED])
def test_rows_take_the_steps_of_single_solves_to_the_last_bit(method, size):
    """Steps of other sizes in each row, and of other orders."""
    y0 = torch.linspace(0.5, 1.5, 3 * size, dtype=torch.float64).reshape(3, size)
    norm = ErrorNorm(1e-8, 1e-8, [slice(0, size)], y0.dtype)
    ends = torch.cumsum(torch.tensor([0.05, 0.08, 0.06], dtype=torch.float64)[:, None] * (1 + torch.arange(12) % 3), 1)
    ends = torch.cat((torch.zeros(3, 1, dtype=torch.float64), ends), 1)
    orders = np.array([[1, 2, 3, 4, 5, 6, 7, 8, 8, 7, 6, 5], [1, 1, 2, 2, 3, 3, 3, 2, 2, 1, 1, 2], [1, 2, 3, 4] * 3])

    def chain(step, stepper, y, k, times, at):
        carry, states = None, []
        for i in range(orders.shape[1]):
            carry = stepper.at_order(carry, at(i)) if method is Adams else carry
            taken = step(lambda t, y: elimination(t, y, k), times[i], times[i + 1], y, carry)
            y, carry = taken.y1, taken.carry
            states += [y] if taken.error is None else [y, taken.error]
        return torch.stack(states, 1)

    stepper = method(y0, torch.float64, norm)
    of_rows = lambda func, t0, t1, y, carry: stepper.step_rows(func, t0, t1, y, carry, norm)
    batch = chain(of_rows, stepper, y0, RATES[:, None], ends.split(1, 1), lambda i: orders[:, i])
    for row in range(3):
        alone = method(y0[:1], torch.float64, norm)
        single = chain(
            alone.step, alone, y0[row : row + 1], RATES[row], ends[row].tolist(), lambda i: int(orders[row, i])
        )
        assert torch.equal(batch[row : row + 1], single)


@unconverged
@pytest.mark.parametrize("gradient", ["direct", "checkpointed", "backsolve", "forward"])
@pytest.mark.parametrize("method", ALL)
def test_rows_that_start_anew_beside_rows_that_do_not(method, gradient):
    """Each is what it is alone, at outputs within the steps of the new start too, and so are the gradients."""
    doses = torch.tensor([[0.51, 1.1], [math.nan] * 2, [0.97, math.nan]], dtype=torch.float64)
    t_eval = double(0.0, 0.013, 0.505, 0.523, 0.99, 1.111, 1.5)
    options = {"rtol": 1e-6, "atol": 1e-8} if method == "adams" else {"step_size": 0.05}
    common = {"t_eval": t_eval, "method": method, "gradient": gradient, **options}
    found = []
    for together in (True, False):
        y0, k = double(1.0, 0.7, 0.4, grad=True), RATES.clone().requires_grad_()
        dose = lambda t, y: y + 0.5
        if together:
            y = solve_ivp(elimination, (0.0, 1.5), y0[:, None], args=(k[:, None],), batch_dims=1,
                          events=Scheduled(doses, dose), **common).y[..., 0]  # fmt: skip
        else:
            y = torch.stack([
                solve_ivp(elimination, (0.0, 1.5), y0[i : i + 1], args=(k[i],), events=Scheduled(doses[i], dose),
                          **common).y[:, 0]
                for i in range(3)
            ])  # fmt: skip
        (y * torch.linspace(0.2, 1.0, 21, dtype=torch.float64).reshape(3, 7)).sum().backward()
        found.append((y.detach(), y0.grad, k.grad))
    exact = {"rtol": 1e-4, "atol": 1e-5} if gradient == "backsolve" else {"rtol": 1e-11, "atol": 1e-13}
    for batch, alone in zip(*found, strict=True):
        torch.testing.assert_close(batch, alone, **exact)


@pytest.mark.parametrize("method", ALL)
def test_dense_output_of_rows(method):
    y0 = double(1.0, 0.7, 0.4)[:, None]
    batch = solve_ivp(elimination, (0.0, 2.0), y0, args=(RATES[:, None],), batch_dims=1, method=method,
                      dense_output=True, **ALL[method])  # fmt: skip
    t = torch.linspace(0.0, 2.0, 101, dtype=torch.float64)
    exact = 1.0 / (1.0 / y0 + RATES[:, None] * (2.0 * t - t**3 / 3.0))
    torch.testing.assert_close(batch.sol(t)[..., 0], exact, rtol=0, atol=2e-5)
    count = batch.stats[1].accepted + 1
    torch.testing.assert_close(batch.sol(batch.t[1, :count])[1], batch.y[1, :count], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("method", ALL)
def test_complex_states_backwards_in_time(method):
    rate = torch.tensor(-0.3 + 2.0j, dtype=torch.complex128)
    t = double(1.0, 0.35, -0.5)
    y = solve_ivp(lambda t, y: rate * y, (1.0, -0.5), torch.ones(2, dtype=torch.complex128), t_eval=t, method=method,
                  **ALL[method]).y  # fmt: skip
    exact = torch.exp(rate * (t - 1.0))[:, None].expand(-1, 2)
    torch.testing.assert_close(y, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ALL)
def test_single_precision(method):
    options = {"rtol": 1e-5, "atol": 1e-6} if method == "adams" else {"step_size": 0.05}
    solution = solve_ivp(lambda t, y: torch.cos(t) * y, (0.0, 6.0), torch.ones(3), method=method, **options)
    assert solution.y.dtype == torch.float32
    assert (solution.y[-1] - math.exp(math.sin(6.0))).abs().max() < 1e-4
    assert solution.stats.accepted < 200


@pytest.mark.parametrize("method", ALL)
def test_func_may_use_the_memory_of_its_result_again(method):
    memory = torch.empty(2, dtype=torch.float64)

    def func(t, y):
        return torch.mul(y, -torch.cos(t), out=memory)

    def careful(t, y):
        return y * -torch.cos(t)

    t = torch.linspace(0.0, 2.0, 11, dtype=torch.float64)
    y0 = double(1.0, 2.0)
    reused, fresh = (solve_ivp(f, (0.0, 2.0), y0, t_eval=t, method=method, **ALL[method]).y for f in (func, careful))
    torch.testing.assert_close(reused, fresh, rtol=0, atol=0)


def chain(method, times, y, rate, orders):
    """The states at the ends of steps of given orders, with a gradient through the times."""
    carry, states = None, []
    for t0, t1, order in zip(times[:-1], times[1:], orders, strict=True):
        carry = method.at_order(carry, order)
        step = method.step(lambda t, y: -rate * y * y * torch.cos(t), t0, t1, y, carry)
        inside = method.interpolant(None, step).evaluate([t0 + 0.4 * (t1 - t0)])
        y, carry = step.y1, step.carry
        states += [y, inside]
    return torch.cat(states)


def test_exact_gradients_of_adams():
    """Of steps of given sizes and orders, among them changes of both: state, every time and a parameter."""
    y0 = double(1.0, 0.5)[None].requires_grad_()
    method = Adams(y0.detach(), torch.float64, ErrorNorm(1e-6, 1e-6, [slice(0, 2)], y0.dtype))
    times = torch.cumsum(double(0.0, 0.1, 0.12, 0.2, 0.1, 0.15, 0.2), 0).requires_grad_()
    rate = double(0.7, grad=True)
    run = lambda times, y0, rate: chain(method, times.unbind(), y0, rate, [1, 2, 3, 4, 3, 4])
    assert torch.autograd.gradcheck(run, (times, y0, rate), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (times, y0, rate), fast_mode=True)
    plain = chain(method, times.tolist(), y0.detach(), rate.detach(), [1, 2, 3, 4, 3, 4])
    torch.testing.assert_close(plain, run(times, y0, rate).detach(), rtol=1e-14, atol=1e-14)


@unconverged
@pytest.mark.parametrize("order", [1, 2, 3, 6])
@pytest.mark.parametrize("method", FIXED)
def test_exact_gradients_of_other_orders(method, order):
    def run(y0, t, rate):
        return odeint(lambda t, y: -rate * y * y * torch.cos(t), y0, t, method=method.with_options(max_order=order),
                      rtol=1e-12, atol=1e-12)  # fmt: skip

    t = torch.cumsum(double(0.0, 0.1, 0.12, 0.2, 0.1, 0.15, 0.2, 0.13, 0.1), 0).requires_grad_()
    assert torch.autograd.gradcheck(run, (double(1.0, 0.5, grad=True), t, double(0.7, grad=True)), fast_mode=True)


@unconverged
@pytest.mark.parametrize("times", [[0.0, 0.5, 2.0], [2.0, 0.7, 0.1]])
@pytest.mark.parametrize("method", ALL)
def test_checkpointed_equals_direct_in_time_too(method, times):
    options = {"rtol": 1e-7, "atol": 1e-7} if method == "adams" else {"step_size": 0.07}
    gradients = []
    for gradient in ("direct", "checkpointed"):
        model, y0, t = LotkaVolterra(), double(1.0, 1.5, grad=True), double(*times, grad=True)
        solution = solve_ivp(model, (t[0], t[-1]), y0, t_eval=t, method=method, gradient=gradient, **options)
        (solution.y * double(1.0, 0.3)).square().sum().backward()
        gradients.append((y0.grad, t.grad, model.parameters_.grad))
    for direct, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(direct, checkpointed, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("method", ALL)
def test_function_transforms(method):
    rate = double(0.7)
    y0 = torch.rand(3, 2, dtype=torch.float64)
    solve = lambda y0, rate: solve_ivp(
        lambda t, y, rate: -rate * y * torch.cos(t), (0.0, 2.0), y0, args=(rate,), method=method, **ALL[method]
    ).y[-1]
    exact = y0 * torch.exp(-rate * math.sin(2.0))
    torch.testing.assert_close(torch.func.vmap(solve, (0, None))(y0, rate), exact, rtol=1e-5, atol=1e-5)
    jacobian = torch.func.jacrev(solve, 1)(y0[0], rate)
    torch.testing.assert_close(jacobian[:, 0], -math.sin(2.0) * exact[0], rtol=1e-5, atol=1e-5)
