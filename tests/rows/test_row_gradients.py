"""Gradients of batches whose rows step on their own."""

import math

import pytest
import torch
from torch.func import functional_call, stack_module_state, vmap

from problems import covering, sampled
from torchivp import ODE_METHODS, Backsolve, Checkpointed, Event, Scheduled, SolveError, solve_ivp
from torchivp.methods.ode.implicit_runge_kutta import ImplicitRungeKutta
from torchivp.methods.ode.tableau import ButcherTableau

D = torch.float64
NAN = math.nan
GRADIENTS = {
    "direct": "direct",
    "checkpointed": "checkpointed",
    "three checkpoints": Checkpointed(checkpoints=3),
    "backsolve": "backsolve",
    "forward": "forward",
}
TIGHT = {"rtol": 1e-9, "atol": 1e-11}
Y0 = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.5, -1.0], [-1.0, 0.3]], dtype=D)
MU = torch.tensor([0.5, 2.0, 4.0, 1.0], dtype=D)
T_EVAL = torch.tensor([0.0, 0.3, 0.31, 1.0], dtype=D)

each_gradient = pytest.mark.parametrize("gradient", GRADIENTS)


def accuracy(gradient):
    """How well the gradient of a batch agrees with that of single solves: the adjoint is solved anew."""
    return {"rtol": 1e-5, "atol": 1e-6} if gradient == "backsolve" else {"rtol": 1e-8, "atol": 1e-9}


def tolerances(gradient):
    """Those of comparisons with single solves: the other gradients are of the steps, however long these are."""
    return TIGHT if gradient == "backsolve" else {"rtol": 1e-5, "atol": 1e-7}


class Oscillators(torch.nn.Module):
    """Van der Pol with a push whose strength all rows share."""

    def __init__(self):
        super().__init__()
        self.push = torch.nn.Parameter(torch.tensor([0.7, -0.2], dtype=D))

    def forward(self, t, y, mu):
        x, v = y[..., 0], y[..., 1]
        pushed = self.push[0] * torch.cos(3 * (t[..., 0] if t.ndim else t)) + self.push[1] * x * x * x
        return torch.stack((v, mu * (1 - x * x) * v - x + pushed), -1)


def weights(y):
    return torch.linspace(0.3, 1.7, y.numel(), dtype=D).reshape(y.shape) * (-1.0) ** torch.arange(y.shape[-1])


def leaf(x):
    return x.clone().requires_grad_()


KNOWN = {}


def finite_differences(loss, x, eps=1e-5, known_as=None):
    """By central differences; they are kept where `known_as` says what for."""
    if known_as in KNOWN:
        return KNOWN[known_as]
    with torch.no_grad():
        grad = torch.zeros_like(x).reshape(-1)
        for i in range(x.numel()):
            step = torch.zeros_like(x).reshape(-1)
            step[i] = eps
            step = step.reshape(x.shape)
            grad[i] = (loss(x + step) - loss(x - step)) / (2 * eps)
    if known_as is not None:
        KNOWN[known_as] = grad.reshape(x.shape)
    return grad.reshape(x.shape)


def assert_all_close(found, expected, **accuracy):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, **accuracy)


# --- against single solves


@pytest.mark.parametrize(
    ("method", "gradient"), covering(["tsit5", "dopri8", "bosh3", "heun3"], ["dopri5", "rk4"], GRADIENTS)
)
def test_gradients_are_those_of_the_rows_alone(gradient, method):
    options = tolerances(gradient)
    if method in ("rk4", "heun3"):
        options = {"step_size": 0.02 if gradient == "backsolve" else 0.1}
    if method == "bosh3":
        options = {"rtol": 1e-5, "atol": 1e-7}

    def gradients(solve):
        func, y0, mu = Oscillators(), leaf(Y0), leaf(MU)
        y = solve(func, y0, mu)
        (y * weights(y)).sum().backward()
        return y.detach(), y0.grad, mu.grad, func.push.grad

    common = {"t_eval": T_EVAL, "method": method, "gradient": GRADIENTS[gradient], **options}
    batch = gradients(lambda f, y0, mu: solve_ivp(f, (0.0, 1.0), y0, args=(mu,), batch_dims=1, **common).y)
    alone = gradients(
        lambda f, y0, mu: torch.stack(
            [solve_ivp(f, (0.0, 1.0), y0[i], args=(mu[i],), **common).y for i in range(len(y0))]
        )
    )
    loose = {"rtol": 1e-3, "atol": 1e-4}
    assert_all_close(
        batch, alone, **(loose if gradient == "backsolve" and method in ("bosh3", "heun3") else accuracy(gradient))
    )


@pytest.mark.parametrize(
    ("gradient", "method"),
    [*((gradient, method) for gradient in GRADIENTS for method in ("gl4", "adams")), ("backsolve", "scipy_solver")],
)
def test_methods_with_much_to_hand_on(gradient, method):
    options = {"step_size": 0.1} if method == "gl4" else {"rtol": 1e-6, "atol": 1e-8}
    common = {"t_eval": T_EVAL, "method": method, "gradient": GRADIENTS[gradient], **options}

    def gradients(solve):
        func, y0, mu = Oscillators(), leaf(Y0[:3]), leaf(MU[:3])
        y = solve(func, y0, mu)
        (y * weights(y)).sum().backward()
        return y.detach(), y0.grad, mu.grad, func.push.grad

    batch = gradients(lambda f, y0, mu: solve_ivp(f, (0.0, 1.0), y0, args=(mu,), batch_dims=1, **common).y)
    alone = gradients(
        lambda f, y0, mu: torch.stack([solve_ivp(f, (0.0, 1.0), y0[i], args=(mu[i],), **common).y for i in range(3)])
    )
    assert_all_close(batch, alone, **({"rtol": 1e-3, "atol": 1e-4} if gradient == "backsolve" else accuracy(gradient)))


# --- against finite differences


@each_gradient
def test_initial_states_and_arguments_against_finite_differences(gradient):
    func = Oscillators()

    def loss(y0, mu, push, gradient):
        y = solve_ivp(
            lambda t, y, mu, push: functional_call(func, {"push": push}, (t, y, mu)),
            (0.0, 1.0),
            y0,
            t_eval=T_EVAL,
            args=(mu, push),
            batch_dims=1,
            method="dopri8",
            gradient=gradient,
            rtol=1e-10,
            atol=1e-12,
        ).y
        return (y * weights(y)).sum()

    given = (Y0, MU, torch.tensor([0.7, -0.2], dtype=D))
    leaves = [leaf(x) for x in given]
    loss(*leaves, GRADIENTS[gradient]).backward()
    for i, x in enumerate(leaves):
        one = lambda value: loss(*given[:i], value, *given[i + 1 :], "direct")
        torch.testing.assert_close(x.grad, finite_differences(one, given[i], known_as=i), rtol=1e-5, atol=1e-6)


STARTS = torch.tensor([0.0, 1.0, -0.5, 0.2], dtype=D)
ENDS = torch.tensor([1.0, 0.2, 0.5, 0.9], dtype=D)
ASKED = torch.tensor([[0.1, 0.5, 0.8], [0.9, 0.4, NAN], [NAN, NAN, NAN], [0.3, 0.5, 0.7]], dtype=D)


def push(t, y, mu):
    t = t[..., 0] if t.ndim else t
    return torch.stack((y[..., 1], -mu * y[..., 0] + torch.sin(3 * t)), -1)


@each_gradient
@pytest.mark.parametrize("method", ["dopri5", pytest.param("gl6", marks=pytest.mark.slow)])
def test_times_of_every_row_against_finite_differences(gradient, method):
    options = {"rtol": 1e-10, "atol": 1e-12} if method == "dopri5" else {"step_size": 0.04}

    def loss(start, end, asked, gradient):
        span = {"t_eval": asked, "args": (MU,), "batch_dims": 1, "gradient": gradient, "method": method, **options}
        y = solve_ivp(push, (start, end), Y0, **span).y
        return (y * weights(y)).nan_to_num(0.0).sum()

    given = (STARTS, ENDS, ASKED)
    leaves = [leaf(x) for x in given]
    loss(*leaves, GRADIENTS[gradient]).backward()
    at_start = finite_differences(lambda v: loss(v, ENDS, ASKED, "direct"), STARTS, known_as=(method, "start"))
    at_outputs = finite_differences(lambda v: loss(STARTS, ENDS, v, "direct"), ASKED, known_as=(method, "asked"))
    assert leaves[1].grad is None or (leaves[1].grad == 0).all()
    torch.testing.assert_close(leaves[0].grad, at_start, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(leaves[2].grad, at_outputs, rtol=1e-5, atol=1e-6)
    assert leaves[0].grad[2] == 0


IMPLICIT = [name for name in ODE_METHODS if issubclass(ODE_METHODS[name], ImplicitRungeKutta)]


def bouncing(y0, mu, method, gradient="direct", batch_dims=1, **options):
    """Rows that are thrown back when their speed falls below -0.4, some of them twice."""
    event = Event(lambda t, y, mu: y[..., 1] + 0.4, apply=lambda t, y, mu: torch.stack((y[..., 0], -y[..., 1]), -1))
    return solve_ivp(push, (0.0, 1.0), y0, args=(mu,), t_eval=T_EVAL, method=method, step_size=0.1, events=event,
                     gradient=gradient, batch_dims=batch_dims, **TIGHT, **options)  # fmt: skip


@pytest.mark.parametrize("method", sampled(IMPLICIT))
def test_implicit_methods_with_events_take_rows_to_the_last_bit(method):
    together = bouncing(Y0, MU, method)
    assert set(together.events.row.tolist()) - {0} and len(together.events.row) < 20
    for i in range(len(Y0)):
        alone = bouncing(Y0[i : i + 1], MU[i : i + 1], method)
        assert torch.equal(alone.y[0], together.y[i])
        single = bouncing(Y0[i], MU[i], method, batch_dims=0)
        torch.testing.assert_close(single.y, together.y[i], rtol=1e-9, atol=1e-10)


class HalfwaySlope(ImplicitRungeKutta):
    """The implicit midpoint rule beside an explicit stage: the slope at the start, which no step hands on."""

    tableau = ButcherTableau(order=2, c=(0, 1 / 2), a=((), (0, 1 / 2)), b=(0, 1))


@pytest.mark.parametrize("batch_dims", [0, 1])
def test_a_slope_that_only_dense_output_has_found_is_no_part_of_a_checkpoint(batch_dims):
    """A search for events evaluates it in a step, and no later step needs it."""

    def gradients(gradient):
        y0, mu = (leaf(x[:2] if batch_dims else x[0]) for x in (Y0, MU))
        y = bouncing(y0, mu, HalfwaySlope, gradient, batch_dims).y
        return torch.autograd.grad((y * weights(y)).sum(), (y0, mu))

    torch.testing.assert_close(gradients("checkpointed"), gradients("direct"), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("gradient", ["direct", "checkpointed"])
@pytest.mark.parametrize("method", ["radauIIA5", "gl6"])
def test_gradients_of_implicit_methods_with_events_against_finite_differences(method, gradient):
    def loss(y0, mu):
        y = bouncing(y0, mu, method, gradient).y
        return (y * weights(y)).sum()

    y0, mu = leaf(Y0[:3]), leaf(MU[:3])
    found = torch.autograd.grad(loss(y0, mu), (y0, mu))
    by_state = finite_differences(lambda x: loss(x, MU[:3]), Y0[:3], known_as=(method, "bouncing, y0"))
    by_mu = finite_differences(lambda x: loss(Y0[:3], x), MU[:3], known_as=(method, "bouncing, mu"))
    expected = by_state, by_mu
    assert_all_close(found, expected, rtol=1e-4, atol=1e-5)  # the event moves as that of the exact solution


@each_gradient
def test_the_ends_of_the_rows_are_asked_for(gradient):
    """t_eval holds the end itself, or there is none and the last step ends on it."""

    def last(start, end, gradient, by_steps=False):
        options = {"args": (MU,), "batch_dims": 1, "gradient": gradient, "rtol": 1e-10, "atol": 1e-12}
        if not by_steps:
            return solve_ivp(push, (start, end), Y0, t_eval=end[:, None], **options).y[:, 0]
        solution = solve_ivp(push, (start, end), Y0, **options)
        count = torch.tensor([stats.accepted for stats in solution.stats])
        return solution.y[torch.arange(4), count]

    loss = lambda start, end: (last(start, end, "direct") * weights(Y0)).sum()
    expected = [
        finite_differences(lambda v: loss(v, ENDS), STARTS, known_as="starts, to the ends"),
        finite_differences(lambda v: loss(STARTS, v), ENDS, known_as="ends"),
    ]
    for by_steps in (False, True):
        start, end = leaf(STARTS), leaf(ENDS)
        (last(start, end, GRADIENTS[gradient], by_steps) * weights(Y0)).sum().backward()
        assert_all_close((start.grad, end.grad), expected, rtol=1e-5, atol=1e-6)


@each_gradient
def test_times_that_all_rows_share(gradient):
    def loss(span, asked, gradient):
        options = {"args": (MU,), "batch_dims": 1, "gradient": gradient, "rtol": 1e-10, "atol": 1e-12}
        y = solve_ivp(push, (span[0], span[1]), Y0, t_eval=asked, **options).y
        return (y * weights(y)).sum()

    given = torch.tensor([0.0, 1.0], dtype=D), torch.tensor([0.2, 0.9], dtype=D)
    span, asked = leaf(given[0]), leaf(given[1])
    loss(span, asked, GRADIENTS[gradient]).backward()
    by_span = finite_differences(lambda v: loss(v, given[1], "direct"), given[0], known_as="shared span")
    by_asked = finite_differences(lambda v: loss(given[0], v, "direct"), given[1], known_as="shared times")
    torch.testing.assert_close(span.grad, by_span, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(asked.grad, by_asked, rtol=1e-5, atol=1e-6)


@each_gradient
def test_a_list_of_series_of_times(gradient):
    series = [leaf(torch.tensor([0.5, 1.0], dtype=D)), leaf(torch.tensor([0.25], dtype=D))]
    y0 = torch.tensor([1.0, 2.0], dtype=D)
    y = solve_ivp(lambda t, y: -y, (0.0, 1.0), y0, t_eval=series, batch_dims=1, gradient=GRADIENTS[gradient], **TIGHT).y
    y.nan_to_num(0.0).sum().backward()
    for times, start in zip(series, y0, strict=True):
        torch.testing.assert_close(times.grad, -start * torch.exp(-times.detach()), rtol=1e-6, atol=0)


# --- parameters in all places


@each_gradient
def test_stacked_models_each_with_its_row(gradient):
    models = [
        torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2)).double() for _ in range(3)
    ]
    stacked, _ = stack_module_state(models)
    stacked = {name: p.detach().requires_grad_() for name, p in stacked.items()}

    def func(t, y, parameters):
        return vmap(lambda p, y: functional_call(models[0], p, (y,)))(parameters, y)

    common = {"t_eval": T_EVAL, "gradient": GRADIENTS[gradient], **tolerances(gradient)}
    y = solve_ivp(func, (0.0, 1.0), Y0[:3], args=(stacked,), batch_dims=1, **common).y
    (y * weights(y)).sum().backward()
    pairs = zip(models, Y0[:3], strict=True)
    alone = torch.stack([solve_ivp(lambda t, y, m=m: m(y), (0.0, 1.0), y0, **common).y for m, y0 in pairs])
    torch.testing.assert_close(y, alone, rtol=1e-8, atol=1e-10)
    (alone * weights(alone)).sum().backward()
    for name, p in stacked.items():
        expected = torch.stack([dict(model.named_parameters())[name].grad for model in models])
        torch.testing.assert_close(p.grad, expected, **accuracy(gradient))


@each_gradient
@pytest.mark.parametrize("compact", [None, False])
def test_a_captured_tensor_with_an_entry_for_each_row(gradient, compact):
    """Found without being named, and differentiated although func cannot be called with some of the rows."""
    ends, mu, expected = torch.tensor([0.2, 1.0, 0.5, 0.7], dtype=D), leaf(MU), leaf(MU)
    options = {"t_eval": ends[:, None], "batch_dims": 1, **TIGHT}
    y = solve_ivp(
        lambda t, y: push(t, y, mu), (0.0, ends), Y0, gradient=GRADIENTS[gradient], compact=compact, **options
    ).y
    (y * weights(y)).sum().backward()
    y = solve_ivp(push, (0.0, ends), Y0, args=(expected,), **options).y
    (y * weights(y)).sum().backward()
    torch.testing.assert_close(mu.grad, expected.grad, **accuracy(gradient))


@each_gradient
@pytest.mark.parametrize("func", [lambda t, y, w: (w.sum() - 1.0) * y, lambda t, y, w: (w[0] - 1.0) * y])
def test_a_shared_tensor_as_long_as_the_batch_whose_numbers_are_all_the_same(gradient, func):
    """Some of them do as well as all for the values, and not for the gradients."""
    ends, w = torch.tensor([0.2, 1.0, 0.5, 0.7], dtype=D), torch.zeros(4, dtype=D, requires_grad=True)
    y = solve_ivp(func, (0.0, ends), Y0, args=(w,), batch_dims=1, gradient=GRADIENTS[gradient], **TIGHT).final
    y.sum().backward()
    by_rate = (ends[:, None] * torch.exp(-ends[:, None]) * Y0).sum()
    by_all = torch.autograd.functional.jacobian(
        lambda w: func(0.0, torch.ones((), dtype=D), w), torch.zeros(4, dtype=D)
    )
    torch.testing.assert_close(w.grad, by_rate * by_all, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("gradient", ["direct", "checkpointed", "forward", "backsolve"])
@pytest.mark.parametrize("what", ["schedule", "event"])
def test_steps_after_a_change_move_with_it_and_not_with_the_start(gradient, what):
    """BDF begins anew at order 1, whose first steps are so short that by their sizes they are far from exact."""
    t0, t1, when = (leaf(torch.tensor(t, dtype=D)) for t in ([0.0, 0.1], [2.0, 1.8], [0.9, 0.8]))
    y0 = torch.tensor([[1.0], [0.7]], dtype=D)
    doubled = {
        "schedule": Scheduled(when.unsqueeze(1), apply=lambda t, y, _: 2 * y),
        "event": Event(lambda t, y, when: t.squeeze(-1) - when, apply=lambda t, y, _: 2 * y),
    }[what]
    options = {"batch_dims": 1, "events": doubled, "method": "bdf", "gradient": gradient, "rtol": 1e-7, "atol": 1e-9}
    end = solve_ivp(lambda t, y, _: -t * y, (t0, t1), y0, args=(when,), **options).final
    exact = 2 * y0 * torch.exp((t0**2 - t1**2) / 2).unsqueeze(1)
    expected = torch.autograd.grad(exact.sum(), (t0, t1))
    found = torch.autograd.grad(end.sum(), (t0, t1, when))
    torch.testing.assert_close(found, (*expected, torch.zeros_like(when)), rtol=0.0, atol=2e-5)


@each_gradient
def test_a_pytree_in_two_batch_dimensions(gradient):
    def func(t, y, k):
        return {"x": y["v"].sum(-1), "v": -k[..., None] * y["v"] + torch.sin(y["x"] * t)[..., None]}

    x, v, k = torch.randn(2, 2, dtype=D), torch.randn(2, 2, 3, dtype=D), torch.rand(2, 2, dtype=D)
    common = {"t_eval": torch.tensor([0.4, 1.0], dtype=D), "gradient": GRADIENTS[gradient], **tolerances(gradient)}

    def gradients(solve):
        leaves = leaf(x), leaf(v), leaf(k)
        solve(*leaves).backward()
        return [tensor.grad for tensor in leaves]

    def batch(x, v, k):
        y = solve_ivp(func, (0.0, 1.0), {"x": x, "v": v}, args=(k,), batch_dims=2, **common).y
        return (y["x"] ** 2).sum() + (y["v"] ** 3).sum()

    def alone(x, v, k):
        total = 0.0
        for i in range(2):
            for j in range(2):
                y = solve_ivp(func, (0.0, 1.0), {"x": x[i, j], "v": v[i, j]}, args=(k[i, j],), **common).y
                total = total + (y["x"] ** 2).sum() + (y["v"] ** 3).sum()
        return total

    assert_all_close(gradients(batch), gradients(alone), **accuracy(gradient))


@each_gradient
def test_complex_states(gradient):
    def gradients(batch):
        y0, w = leaf(torch.tensor([[1 + 1j], [2 - 1j], [0.5j]], dtype=torch.cdouble)), leaf(MU[:3])
        func = lambda t, y, w: (1j * w[..., None] - 0.3) * y * y.abs()
        options = {"t_eval": torch.tensor([0.5, 1.0], dtype=D), "gradient": GRADIENTS[gradient], **tolerances(gradient)}
        if batch:
            y = solve_ivp(func, (0.0, 1.0), y0, args=(w,), batch_dims=1, **options).y
        else:
            y = torch.stack([solve_ivp(func, (0.0, 1.0), y0[i], args=(w[i],), **options).y for i in range(3)])
        (y * (1 - 2j)).real.sum().backward()
        return y0.grad, w.grad

    assert_all_close(gradients(True), gradients(False), **accuracy(gradient))


@pytest.mark.parametrize("count", [2, 3, 7, None])
def test_few_checkpoints_give_the_gradients_of_direct(count):
    """Rows of very different lengths, in all directions."""
    span = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=D), torch.tensor([0.1, 3.0, 1.0, 0.0], dtype=D)

    def gradients(gradient):
        func, y0, mu = Oscillators(), leaf(Y0), leaf(MU)
        y = solve_ivp(func, span, y0, args=(mu,), batch_dims=1, gradient=gradient, rtol=1e-5, atol=1e-7).y
        (y * weights(y)).nan_to_num(0.0).sum().backward()
        return y.detach().nan_to_num(7.0), y0.grad, mu.grad, func.push.grad

    checkpointed = Checkpointed() if count is None else Checkpointed(checkpoints=count)
    assert_all_close(gradients(checkpointed), gradients("direct"), rtol=1e-11, atol=1e-11)


# --- failed rows


def growth(t, y, a):
    return a * y * y


def failing():
    """Rows 1 and 3 blow up at t = 0.5."""
    return torch.tensor([[-1.0, 0.4], [2.0, 0.1], [0.3, 0.2], [0.5, 2.0]], dtype=D), torch.ones(4, 1, dtype=D)


MASKS = ["chosen", "where", "nan_to_num", "first output"]


@pytest.mark.parametrize(  # every mask with the gradient that most often is taken, every gradient with every failure
    ("fails", "gradient", "mask"),
    [
        *(("blow-up", gradient, mask) for gradient, mask in covering(GRADIENTS, ["checkpointed"], MASKS)),
        *(("NaN y0", gradient, mask) for gradient, mask in zip(GRADIENTS, [*MASKS, MASKS[0]], strict=True)),
        *(
            ("NaN in func", gradient, mask)
            for gradient, mask in zip(GRADIENTS, [*reversed(MASKS), MASKS[1]], strict=True)
        ),
    ],
)
def test_a_failed_row_masked_out_contributes_nothing(gradient, mask, fails):
    y0, a = failing()
    good = torch.tensor([True, False, True, False])
    if fails != "blow-up":
        y0 = torch.where(good[:, None], y0, 0.1)
    if fails == "NaN y0":
        y0 = torch.where(good[:, None], y0, NAN)
    if fails == "NaN in func":
        a = torch.where(good[:, None], a, NAN)

    def gradients(keep):
        factor, y, args = leaf(torch.tensor(0.9, dtype=D)), leaf(y0[keep]), leaf(a[keep])
        solution = solve_ivp(
            lambda t, y, a: growth(t, y, a) * factor,
            (0.0, 1.0),
            y,
            t_eval=torch.tensor([0.2, 0.6, 1.0], dtype=D),
            args=(args,),
            batch_dims=1,
            gradient=GRADIENTS[gradient],
            throw=False,
            rtol=1e-6,
            atol=1e-8,
        )
        ok = solution.success
        assert torch.equal(ok, good[keep])
        if mask == "chosen":
            loss = (solution.y[ok] ** 2).sum()
        elif mask == "where":
            loss = torch.where(ok[:, None, None], solution.y, 0.0).square().sum()
        elif mask == "nan_to_num":
            y_end = solution.y[:, -1]
            loss = torch.where(y_end.isnan(), 0.0, y_end).square().sum()
        else:
            loss = solution.y[:, 0][ok].square().sum()
        loss.backward()
        return y.grad, args.grad, factor.grad

    everything = torch.ones(4, dtype=torch.bool)
    of_all, of_good = gradients(everything), gradients(good)
    for tensor in of_all:
        assert tensor.isfinite().all()
    assert (of_all[0][~good] == 0).all() and (of_all[1][~good] == 0).all()
    assert_all_close((of_all[0][good], of_all[1][good], of_all[2]), of_good, rtol=1e-9, atol=1e-12)


@each_gradient
def test_what_a_failed_row_reached_is_differentiable(gradient):
    """The outputs before the failure are those of a solve that ends there."""
    y0, a = failing()

    def gradients(end, throw):
        y = leaf(y0)
        solution = solve_ivp(
            growth,
            (0.0, end),
            y,
            t_eval=torch.tensor([0.1, 0.3], dtype=D),
            args=(a,),
            batch_dims=1,
            gradient=GRADIENTS[gradient],
            throw=throw,
            **TIGHT,
        )
        (solution.y * weights(solution.y)).sum().backward()
        return y.grad

    torch.testing.assert_close(gradients(1.0, False), gradients(0.3, True), rtol=1e-5, atol=1e-7)


@each_gradient
def test_all_rows_failed(gradient):
    y0 = leaf(torch.full((2, 2), 2.0, dtype=D))
    options = {"t_eval": [0.8, 1.0], "batch_dims": 1, "gradient": GRADIENTS[gradient], "throw": False}
    solution = solve_ivp(lambda t, y: y * y, (0.0, 1.0), y0, **options)
    (solution.y.nan_to_num(0.0).sum() + 0 * y0.sum()).backward()
    assert (y0.grad == 0).all()


def test_a_backward_solve_that_fails_names_its_row():
    y0 = leaf(Y0)
    y = solve_ivp(
        lambda t, y: -1000.0 * y, (0.0, 0.1), y0, t_eval=[0.1], batch_dims=1, gradient=Backsolve(max_steps=3)
    ).y
    with pytest.raises(
        SolveError, match=r"in the backward solve of row 0: max_steps = 3 .* use gradient='checkpointed'"
    ):
        y.sum().backward()


# --- corners


@each_gradient
@pytest.mark.parametrize("rows", [0, 1])
def test_no_rows_and_one_row(gradient, rows):
    y0 = leaf(Y0[:rows])
    options = {"t_eval": [0.0, 1.0], "batch_dims": 1, "gradient": GRADIENTS[gradient], **TIGHT}
    solve_ivp(lambda t, y: -y, (0.0, 1.0), y0, **options).y[:, -1].sum().backward()
    torch.testing.assert_close(y0.grad, torch.full_like(y0, math.exp(-1)), rtol=1e-6, atol=0)


@each_gradient
def test_rows_without_length(gradient):
    y0, ends = leaf(Y0), torch.tensor([0.0, 1.0, 0.0, 2.0], dtype=D)
    options = {"t_eval": ends[:, None], "batch_dims": 1, "gradient": GRADIENTS[gradient], **TIGHT}
    solve_ivp(lambda t, y: -y, (0.0, ends), y0, **options).y.sum().backward()
    torch.testing.assert_close(y0.grad, torch.exp(-ends)[:, None].expand(4, 2), rtol=1e-6, atol=0)


@each_gradient
def test_only_some_rows_are_used(gradient):
    y0, mu = leaf(Y0), leaf(MU)
    options = {"t_eval": T_EVAL, "batch_dims": 1, "gradient": GRADIENTS[gradient], **TIGHT}
    solve_ivp(push, (0.0, 1.0), y0, args=(mu,), **options).y[2, 1].sum().backward()
    used = torch.tensor([False, False, True, False])
    assert (y0.grad[~used] == 0).all() and (mu.grad[~used] == 0).all()
    assert (y0.grad[2] != 0).all() and mu.grad[2] != 0


@each_gradient
def test_backward_twice_and_without_a_need(gradient):
    y0 = leaf(Y0)
    options = {"t_eval": T_EVAL, "batch_dims": 1, "gradient": GRADIENTS[gradient], "args": (MU,)}
    y = solve_ivp(push, (0.0, 1.0), y0, **options).y
    (first,) = torch.autograd.grad(y.sum(), y0, retain_graph=True)
    (second,) = torch.autograd.grad(y.sum(), y0)
    assert torch.equal(first, second)
    assert not solve_ivp(push, (0.0, 1.0), Y0, **options).y.requires_grad
    with torch.no_grad():
        assert not solve_ivp(push, (0.0, 1.0), y0, **options).y.requires_grad


@each_gradient
def test_the_values_do_not_depend_on_whether_a_gradient_is_wanted(gradient):
    options = {"t_eval": T_EVAL, "batch_dims": 1, "gradient": GRADIENTS[gradient], "args": (MU,)}
    wanted = solve_ivp(push, (0.0, 1.0), leaf(Y0), **options)
    plain = solve_ivp(push, (0.0, 1.0), Y0, **options)
    torch.testing.assert_close(wanted.y.detach(), plain.y, rtol=1e-13, atol=1e-14)
    assert [stats.accepted for stats in wanted.stats] == [stats.accepted for stats in plain.stats]


@pytest.mark.parametrize("gradient", ["direct", "checkpointed", "backsolve", "forward"])
def test_second_derivatives(gradient):
    def hessian(batch):
        y0, mu = leaf(Y0[:2]), leaf(MU[:2])
        func, options = Oscillators(), {"t_eval": [1.0], "gradient": gradient, **tolerances(gradient)}
        if batch:
            y = solve_ivp(func, (0.0, 1.0), y0, args=(mu,), batch_dims=1, **options).y
        else:
            y = torch.stack([solve_ivp(func, (0.0, 1.0), y0[i], args=(mu[i],), **options).y for i in range(2)])
        first = torch.autograd.grad((y**2).sum(), [y0, mu, func.push], create_graph=True)
        return torch.autograd.grad(sum((g**2).sum() for g in first), [y0, mu, func.push])

    assert_all_close(hessian(True), hessian(False), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("method", "step_size", "gradient"), [("rk4", 0.27, "checkpointed"), ("heun2", 0.33, "direct")]
)
def test_derivatives_by_times_are_those_of_the_steps(method, step_size, gradient):
    """Of first and second order: by start, end, outputs at and within steps, and by the times of doses."""
    start, end = leaf(torch.tensor([0.1, 0.0], dtype=D)), leaf(torch.tensor([1.0, 1.3], dtype=D))
    asked, doses = (
        leaf(torch.tensor([[0.2, 0.55, 0.9], [0.3, 0.7, 1.1]], dtype=D)),
        leaf(torch.tensor([[0.5, 0.8], [0.4, 1.2]], dtype=D)),
    )

    def run(y0, start, end, asked, doses, a):
        events = Scheduled(doses, lambda t, y, a: y + 0.3 * a * torch.cos(t))
        solution = solve_ivp(lambda t, y, a: -a * y**2 + torch.sin(3 * t), (start, end), y0, t_eval=asked, args=(a,),
                             batch_dims=1, events=events, method=method, step_size=step_size,
                             gradient=gradient)  # fmt: skip
        log = solution.events
        return solution.y, solution.final, solution.t_final, log.t, log.y, log.y_after

    inputs = (
        leaf(torch.tensor([[1.0, 0.5], [0.8, 0.2]], dtype=D)),
        start,
        end,
        asked,
        doses,
        leaf(torch.tensor(0.7, dtype=D)),
    )
    assert torch.autograd.gradcheck(run, inputs, atol=1e-6, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, atol=1e-5, fast_mode=True)


@pytest.mark.parametrize("gradient", ["direct", "checkpointed", "backsolve", "forward"])
@pytest.mark.parametrize("batch_dims", [0, 1])
def test_second_derivatives_by_times_of_adaptive_steps(batch_dims, gradient):
    """Of y0 exp(-a (t - t0)): with the start among the outputs, and at the ends of all steps."""
    start, t, y0 = (
        leaf(torch.tensor(0.2, dtype=D)),
        leaf(torch.tensor([0.2, 0.7, 1.1], dtype=D)),
        leaf(torch.tensor([[1.5], [0.7]], dtype=D)),
    )
    for asked in (t, None):
        solution = solve_ivp(lambda t, y: -0.7 * y, (start, t[-1]), y0, t_eval=asked, batch_dims=batch_dims,
                             gradient=gradient, rtol=1e-11, atol=1e-12)  # fmt: skip
        pairs = [(solution.final, solution.t_final.reshape(-1, 1))]
        if asked is not None:
            pairs += [(solution.y.select(batch_dims, i), t[i]) for i in range(3)]
        for found, when in pairs:
            expected = y0 * torch.exp(-0.7 * (when - start))
            for _ in range(2):
                found, expected = (
                    sum(g.sum() for g in torch.autograd.grad((x**2).sum(), (start, t, y0), create_graph=True))
                    for x in (found, expected)
                )
                torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("gradient", ["checkpointed", "backsolve"])
def test_params_are_all_that_is_differentiated(gradient):
    y0, named, other = leaf(Y0), leaf(torch.tensor(0.5, dtype=D)), leaf(torch.tensor(0.3, dtype=D))
    func = lambda t, y: -(named + other) * y
    options = {"t_eval": [1.0], "batch_dims": 1, "params": [named], "gradient": gradient, **TIGHT}
    solve_ivp(func, (0.0, 1.0), y0, **options).y.sum().backward()
    assert named.grad.item() == pytest.approx(-float(Y0.sum()) * math.exp(-0.8), rel=1e-6)
    assert other.grad is None


@pytest.mark.parametrize("events", [(), (Event(lambda t, y, mu: y[..., 0] - 0.8, apply=lambda t, y, mu: 0.7 * y),)])
@pytest.mark.parametrize("method", ["adaptive_heun", "fehlberg2"])
def test_methods_whose_rows_hand_on_what_cannot_be_computed_anew(method, events):
    """A replay from a checkpoint takes exactly the steps of the solve, also of rows that others change around."""
    func, found = Oscillators(), []
    for gradient in ("direct", Checkpointed(checkpoints=2)):
        y0 = leaf(Y0)
        solution = solve_ivp(
            func, (0.0, 0.5 + MU / 8), y0, args=(MU,), batch_dims=1, method=method, rtol=1e-3, atol=1e-4,
            gradient=gradient, events=events, params=tuple(func.parameters()),
        )  # fmt: skip
        loss = (solution.y.nan_to_num() * weights(solution.y)).sum()
        found.append((solution.y.detach(), *torch.autograd.grad(loss, (y0, func.push))))
    for direct, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(checkpointed, direct, rtol=1e-10, atol=1e-11, equal_nan=True)
