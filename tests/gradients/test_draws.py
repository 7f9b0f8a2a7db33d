"""A func that draws random numbers: steps taken again draw the same, and a search draws none."""

import pytest
import torch

from torchivp import PIDController, SDEStratonovich, odeint_adjoint, sdeint, solve_ivp

D = torch.float64


class Dropout(torch.nn.Module):
    """y' = -w y, with some of the elements dropped at random in every evaluation."""

    sde_type, noise_type = "stratonovich", "diagonal"

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([0.5, 1.0, 1.5], dtype=D))

    def forward(self, t, y):
        return torch.nn.functional.dropout(-self.w * y, 0.5)

    f = forward

    def g(self, t, y):
        return 0.3 * torch.nn.functional.dropout(y.sin(), 0.2)


def found(solve, y0, second=False):
    """The states and the gradients, and what is drawn next."""
    torch.manual_seed(4)
    model, y0 = Dropout(), y0.clone().requires_grad_()
    y = solve(model, y0)
    after = torch.get_rng_state()
    gradients = torch.autograd.grad(y.sin().sum(), [y0, model.w], create_graph=second)
    if second:
        gradients = torch.autograd.grad(sum(x.square().sum() for x in gradients), [y0, model.w])
    assert torch.equal(after, torch.get_rng_state())  # the numbers of the backward pass are none of the user's
    return y.detach(), *gradients, after


def same(solve, y0, gradients=("direct", "checkpointed"), second=False):
    first, *others = (found(lambda func, y, g=gradient: solve(func, y, g), y0, second) for gradient in gradients)
    for other in others:
        for a, b in zip(first, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


ONES = torch.ones(3, dtype=D)
FIXED = {"euler": 0.1, "midpoint": 0.1, "rk4": 0.1, "explicit_adams": 0.05}


@pytest.mark.parametrize("method", FIXED)
@pytest.mark.parametrize("t_eval", [None, [0.33, 1.0]])
@pytest.mark.parametrize("second", [False, True])
def test_checkpointed_draws_again_what_was_drawn(method, t_eval, second):
    options = {"method": method, "step_size": FIXED[method], "t_eval": t_eval}
    same(
        lambda func, y0, gradient: solve_ivp(func, (0.0, 1.0), y0, gradient=gradient, **options).y, ONES, second=second
    )


@pytest.mark.parametrize("options", [{}, {"events": lambda t, y: y[0] - 0.99}], ids=["plain", "events"])
@pytest.mark.parametrize("first_step", [None, 0.9])
def test_adaptive_steps(options, first_step):
    """Also the first slope, which is drawn before the first step, or in an attempt at it that was rejected."""
    options = {"controller": PIDController(first_step=first_step), "rtol": 1e-3, "atol": 1e-3, **options}
    rejected = []

    def solve(func, y0, gradient):
        solution = solve_ivp(func, (0.0, 1.0), y0, t_eval=[0.2, 1.0], gradient=gradient, **options)
        rejected.append(solution.stats.rejected)
        return solution.y

    same(solve, ONES)
    assert rejected[0] == rejected[1] and (first_step is None or rejected[0] > 0)


@pytest.mark.parametrize("method", FIXED)
@pytest.mark.parametrize("gradient", ["direct", "checkpointed"])
def test_rows_that_take_the_same_steps(gradient, method):
    """Both take the steps again. The derivative is that of the numbers that were drawn, by central differences."""
    rows = {"batch_dims": 1} if method != "explicit_adams" else {"events": lambda t, y: y[0] + 1.0}
    y0 = ONES.expand(4, 3) if method != "explicit_adams" else ONES

    def last(w, y0):
        torch.manual_seed(2)
        model = Dropout()
        model.w = torch.nn.Parameter(torch.tensor([0.5, w, 1.5], dtype=D))
        options = {"t_eval": torch.tensor([0.33, 1.0], dtype=D), "method": method, "step_size": FIXED[method]}
        return model, solve_ivp(model, (0.0, 1.0), y0, gradient=gradient, **options, **rows).y.sin().sum()

    model, value = last(1.0, y0.clone().requires_grad_())
    value.backward()
    with torch.no_grad():
        expected = (last(1.0 + 1e-5, y0)[1] - last(1.0 - 1e-5, y0)[1]) / 2e-5
    torch.testing.assert_close(model.w.grad[1], expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("gradient", ["direct", "checkpointed"])
def test_rows_that_step_on_their_own_are_refused(gradient):
    torch.manual_seed(4)
    y0 = torch.tensor([[1.0, 1, 1], [5, 5, 5]], dtype=D, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"^func draws random numbers.*let all rows take the same steps.*use odeint"):
        solve_ivp(Dropout(), (0.0, 1.0), y0, batch_dims=1, gradient=gradient, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("method", ["euler_heun", "heun", "reversible_heun"])
def test_sdes(method, second):
    def solve(sde, y0, gradient):
        ts, generator = torch.tensor([0.0, 0.35, 1.0], dtype=D), torch.Generator().manual_seed(2)
        return sdeint(sde, y0, ts, dt=0.1, method=method, gradient=gradient, generator=generator)

    same(solve, ONES.expand(4, 3), second=second)


@pytest.mark.parametrize("gradient", ["direct", "checkpointed", "backsolve", "forward"])
def test_the_slope_at_an_event_draws_nothing(gradient):
    """The numbers are those of a solve without a gradient, and without the slope of the event, which is not needed."""
    for wanted in (False, True):
        torch.manual_seed(1)
        y0 = ONES.clone().requires_grad_(wanted)
        options = {"events": lambda t, y: y[0] - 0.9, "t_eval": [0.2, 1.0], "step_size": 0.1, "method": "euler"}
        y = solve_ivp(lambda t, y: Dropout()(t, y).detach() + 0.0 * y, (0.0, 1.0), y0, gradient=gradient, **options).y
        if not wanted:
            expected = y, torch.get_rng_state()
    assert torch.equal(y, expected[0]) and torch.equal(torch.get_rng_state(), expected[1])


def test_the_reversible_gradient_refuses():
    y0 = torch.ones(2, 3, dtype=D, requires_grad=True)
    y = sdeint(Dropout(), y0, [0.0, 1.0], dt=0.1, method="reversible_heun", gradient="reversible")
    with pytest.raises(RuntimeError, match=r"the SDE draws random numbers.*use sdeint with gradient='checkpointed'"):
        y.sum().backward()


@pytest.mark.parametrize("how", ["checkpointed", "backsolve", "rows", "sde"])
def test_numbers_that_are_drawn_once_for_all(how):
    """As FFJORD draws its direction in the first evaluation: not in the search, and again by the next to draw."""

    class Once(SDEStratonovich):
        def __init__(self):
            super().__init__("diagonal")
            self.w = torch.nn.Parameter(torch.tensor(0.5, dtype=D))
            self.drawn = None

        def forward(self, t, y):
            if self.drawn is None:
                self.drawn = torch.rand(3, dtype=D)
            return -self.w * self.drawn * y

        f = forward

        def g(self, t, y):
            return torch.zeros_like(y)

    torch.manual_seed(1)
    expected, following = torch.rand(3, dtype=D), torch.rand(1)
    torch.manual_seed(1)
    model, y0 = Once(), torch.ones(2, 3, dtype=D)
    if how == "rows":
        y = solve_ivp(model, (0.0, 1.0), y0, batch_dims=1, gradient="checkpointed", rtol=1e-8, atol=1e-8).y[:, -1]
    elif how == "sde":
        y = sdeint(model, y0, [0.0, 1.0], dt=1e-3, gradient="checkpointed")[-1]
    elif how == "backsolve":
        y = odeint_adjoint(model, y0, torch.tensor([0.0, 1.0], dtype=D), rtol=1e-8, atol=1e-8)[-1]
    else:
        y = solve_ivp(model, (0.0, 1.0), y0, gradient="checkpointed", rtol=1e-8, atol=1e-8).y[-1]
    assert torch.equal(model.drawn, expected)
    if how != "sde":  # whose noise draws its seed
        assert torch.equal(torch.rand(1), following)
    torch.testing.assert_close(y.detach(), torch.exp(-0.5 * expected).expand(2, 3), rtol=1e-5, atol=0)
    y.sum().backward()
    right = (-2 * expected * torch.exp(-0.5 * expected)).sum()
    torch.testing.assert_close(model.w.grad, right, rtol=1e-5, atol=0)


def test_looking_for_leaves_draws_nothing():
    """The closure is searched, and the numbers are those that a solve without a search draws."""
    model = Dropout()
    for gradient in ("direct", "checkpointed", "backsolve", "forward"):
        torch.manual_seed(3)
        y = solve_ivp(lambda t, y: model(t, y), (0.0, 1.0), ONES, gradient=gradient, method="rk4", step_size=0.1).y
        following = torch.rand(1)
        if gradient == "direct":
            expected = y.detach(), following
        assert torch.equal(y.detach(), expected[0]) and torch.equal(following, expected[1])


@pytest.mark.parametrize("gradient", ["direct", "checkpointed"])
def test_an_output_that_moves_against_its_step_has_no_slope_to_move_with(gradient):
    """Within the last step the numbers are those of the step; beyond its end others would be drawn."""
    t = torch.tensor([0.33, 1.0], dtype=D, requires_grad=True)
    y = solve_ivp(Dropout(), (0.0, 1.0), ONES.expand(4, 3), t_eval=t, batch_dims=1, method="euler", step_size=0.1,
                  gradient=gradient).y  # fmt: skip
    (found,) = torch.autograd.grad(y[:, 0].sum(), t, retain_graph=True)
    assert found[0] != 0 and found[1] == 0
    with pytest.raises(RuntimeError, match="it has no slope with which the state would move"):
        torch.autograd.grad(y[:, 1].sum(), t)
