"""Events and scheduled changes on the way of kernels: as the step loop has them, and as formulas have them."""

import math

import pytest
import torch

from compilers import needs_compiler
from torchivp import Event, GridSteps, Scheduled, solve_ivp

pytestmark = needs_compiler

D = torch.float64
TIMES = torch.linspace(0.0, 3.0, 13, dtype=D)


def double(*values):
    return torch.tensor(values, dtype=D)


def flight(t, y, g, c):
    """Up and down in gusts of wind; errors are those of the method, not of rounding, so that steps are the same."""
    height, speed = y.unbind(-1)
    gusts = 3.0 * torch.sin(9.0 * t.reshape(height.shape)) - 0.05 * speed * speed.abs()
    return torch.stack((speed, gusts - g.expand_as(height) + 0.0 * height), -1)


def height(t, y, g, c):
    return y[..., 0]


def speed(t, y, g, c):
    return y[..., 1] - 0.1


def bounced(t, y, g, c):
    return torch.stack((torch.zeros_like(y[..., 0]), -c * y[..., 1]), -1)


def raised(t, y, g, c):
    return y + 0.3 * g.unsqueeze(-1) / 9.81


def ball(**options):
    return Event(height, **{"direction": -1, "apply": bounced} | options)


APEX = Event(speed)
LIFTS = Scheduled([0.0, 0.7, 2.0], raised)
ROWS = 5
STARTS = torch.stack((torch.linspace(1.0, 9.0, ROWS, dtype=D), torch.linspace(-3.0, 3.0, ROWS, dtype=D)), -1)
OWN_LIFTS = Scheduled(torch.linspace(0.05, 2.95, 3 * ROWS, dtype=D).view(3, ROWS).T.contiguous(), raised)
OWN_TIMES = torch.stack([torch.linspace(0.1, 0.9 + 0.5 * row, 4, dtype=D) for row in range(ROWS)])
OWN_TIMES[1, 2:] = math.nan


def solved(backend, y0=STARTS[2], span=(0.0, 3.0), events=(), func=flight, batch_dims=0, dtype=D, **options):
    """A solution and the gradients of some of what it holds."""
    start = y0.to(dtype).requires_grad_()
    g = torch.full(y0.shape[:batch_dims], 9.81, dtype=dtype, requires_grad=True)
    c = torch.tensor(0.8, dtype=dtype, requires_grad=True)
    args = (g, c[None] if batch_dims else c)
    options = {"method": "tsit5"} | options
    solution = solve_ivp(func, span, start, args=args, events=events, batch_dims=batch_dims, backend=backend, **options)
    log = solution.events
    weights = torch.linspace(1.0, 2.0, solution.y.numel(), dtype=dtype).view(solution.y.shape)
    loss = torch.nan_to_num(solution.y * weights).sum() + torch.nan_to_num(solution.final**2).sum()
    loss = loss + solution.t_final.sum() + (log.t**2).sum() + log.y.sum() + torch.nan_to_num(log.y_after**2).sum()
    if solution.t.requires_grad:
        loss = loss + torch.nan_to_num(solution.t).sum()
    return solution, torch.autograd.grad(loss, (start, g, c), materialize_grads=True, allow_unused=True)


def of_rows(x):
    return list(x) if isinstance(x, list | tuple) or hasattr(x, "__getitem__") else [x]


CASES = {
    "bounces": {"events": [ball(), APEX], "t_eval": TIMES},
    "all steps": {"events": [ball(), APEX], "method": "bosh3", "rtol": 1e-5, "atol": 1e-7},
    "schedule": {"events": [ball(), APEX, LIFTS], "t_eval": TIMES},
    "schedule alone, all steps": {"events": LIFTS, "method": "bosh3", "rtol": 1e-5, "atol": 1e-7},
    "the third ends": {"events": [ball(max_count=3), APEX], "t_eval": TIMES},
    "ends": {"events": [Event(height, terminal=True), APEX], "t_eval": TIMES, "span": (0.0, math.inf)},
    "reported": {"events": [Event(height), APEX], "t_eval": TIMES},
    "rising": {"events": [Event(height, direction=1), Event(speed, direction=-1)], "t_eval": TIMES},
    "back in time": {"events": [ball(), APEX], "t_eval": 3.0 - TIMES, "span": (3.0, 0.0)},
    "at the start": {"events": [ball(), APEX], "t_eval": TIMES, "y0": double(0.0, 6.0)},
    "nothing": {"events": [ball(), APEX], "t_eval": TIMES, "y0": double(1e4, 500.0)},
    "first step": {"events": [ball(), APEX], "t_eval": TIMES, "first_step": 0.01, "max_step": 0.2},
    "rosenbrock": {"events": [ball(), APEX], "t_eval": TIMES, "method": "rodas5p", "rtol": 1e-4},
    "fixed": {"events": [ball(), APEX, LIFTS], "t_eval": TIMES, "method": "rk4", "step_size": 0.05},
    "grid": {
        "events": [ball(), APEX, LIFTS],
        "method": "rk4",
        "controller": GridSteps(lambda times: [0.1, 0.25, 0.7, 1.5, 2.2, 3.0]),
    },
    "single": {"events": [ball(), APEX], "t_eval": TIMES.float(), "dtype": torch.float32},
    "rows": {"events": [ball(), APEX], "t_eval": TIMES, "y0": STARTS, "batch_dims": 1},
    "rows of their own": {
        "events": [ball(max_count=2), APEX, OWN_LIFTS],
        "t_eval": OWN_TIMES,
        "span": (torch.zeros(ROWS, dtype=D), torch.linspace(1.0, 3.0, ROWS, dtype=D)),
        "y0": STARTS,
        "batch_dims": 1,
    },
    "events accumulate": {"events": [ball(), APEX], "t_eval": TIMES, "y0": double(0.01, 0.0), "throw": False},
    "out of steps": {"events": [ball(), APEX], "t_eval": TIMES, "max_steps": 40, "throw": False},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_what_happens_is_what_happens_in_the_step_loop(case):
    (eager, of_eager), (fused, of_fused) = solved("eager", **case), solved("fused", **case)
    single = case.get("dtype") is torch.float32
    close = {"rtol": 1e-3, "atol": 1e-3} if single else {"rtol": 1e-9, "atol": 1e-9}
    loose = close if single else {"rtol": 1e-6, "atol": 1e-7}
    for name in ("index", "row"):
        assert torch.equal(getattr(fused.events, name), getattr(eager.events, name))
    for name in ("t", "y", "y_after"):
        torch.testing.assert_close(getattr(fused.events, name), getattr(eager.events, name), **close)
    for name in ("t", "y", "final", "t_final"):
        mine, theirs = getattr(fused, name), getattr(eager, name)
        torch.testing.assert_close(mine, theirs, equal_nan=True, **loose)
        if "t_eval" in case and case.get("throw", True):
            torch.testing.assert_close(mine, theirs, equal_nan=True, **close)
    for mine, theirs in zip(of_rows(fused.status), of_rows(eager.status), strict=True):
        assert mine.outcome == theirs.outcome and (single or mine.message == theirs.message)
    for mine, theirs in zip(of_rows(fused.stats), of_rows(eager.stats), strict=True):
        assert mine.backend == "fused"
        assert single or (mine.accepted, mine.rejected) == (theirs.accepted, theirs.rejected)
    scale = 2e-2 if single else 1e-8 if "t_eval" in case else 1e-5
    for mine, theirs in zip(of_fused, of_eager, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=scale, atol=scale * float(theirs.abs().max()))


def free_fall(t, y, g):
    return torch.stack((y[1], -g + 0.0 * y[1]))


def test_a_ball_bounces_as_the_formula_says_with_its_derivatives():
    start, g, c = (torch.tensor(x, dtype=D, requires_grad=True) for x in (5.0, 9.81, 0.8))
    bounce = Event(
        lambda t, y, g: y[0], direction=-1, apply=lambda t, y: torch.stack((torch.zeros_like(y[0]), -c * y[1]))
    )
    y0 = torch.stack((start, torch.zeros_like(start)))
    solution = solve_ivp(free_fall, (0.0, 4.0), y0, args=(g,), events=bounce, backend="fused", params=(c,))
    first = torch.sqrt(2.0 * start / g)
    flights = torch.stack([2.0 * first * c**k for k in range(1, 4)])
    times = torch.cat((first[None], first + flights.cumsum(0)))
    times = times[times < 4.0]
    torch.testing.assert_close(solution.events.t, times, rtol=1e-10, atol=0.0)
    torch.testing.assert_close(solution.events.y_after[:, 1], g * first * c ** torch.arange(1, len(times) + 1))
    since = 4.0 - times[-1]
    last = g * first * c ** len(times) * since - 0.5 * g * since**2
    torch.testing.assert_close(solution.final[0], last, rtol=1e-9, atol=0.0)
    for mine, theirs in ((solution.final[0], last), (solution.events.t.sum(), times.sum())):
        found, expected = (torch.autograd.grad(x, (start, g, c), retain_graph=True) for x in (mine, theirs))
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def decay(t, y, k):
    return -k * y


@pytest.mark.parametrize("rows", [1, 3])
def test_doses_are_sums_of_exponentials_with_their_derivatives(rows):
    k = torch.linspace(0.3, 0.7, rows, dtype=D).unsqueeze(1).requires_grad_()
    amounts = torch.linspace(1.0, 4.0, 4, dtype=D).requires_grad_()
    at, t = double(0.0, 1.0, 2.5, 4.0), torch.linspace(0.0, 4.0, 17, dtype=D)
    doses = Scheduled(at, lambda t, y, dose: y + dose, amounts)
    options = {"rtol": 1e-11, "atol": 1e-12, "method": "dopri8", "t_eval": t, "events": doses, "backend": "fused"}
    solution = solve_ivp(decay, (0.0, 4.0), torch.zeros(rows, 1, dtype=D), args=(k,), batch_dims=1, **options)
    since = t[:, None] - at
    expected = torch.where(since >= 0.0, amounts * torch.exp(-k[..., None] * since), 0.0).sum(-1)
    torch.testing.assert_close(solution.y.squeeze(-1), expected, rtol=1e-9, atol=1e-10)
    weights = torch.linspace(1.0, 2.0, 17, dtype=D)
    found, wanted = (torch.autograd.grad((x * weights).sum(), (k, amounts)) for x in (solution.y.squeeze(-1), expected))
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)


def test_gradients_are_differences():
    base = double(4.0, 0.5, 9.81, 0.8)

    def results(x, backend="fused"):
        events = [ball(), APEX]
        return solve_ivp(
            flight, (0.0, 3.0), x[:2], args=(x[2], x[3]), events=events, method="tsit5", rtol=1e-11, atol=1e-12,
            backend=backend,
        )  # fmt: skip

    def numbers(x):
        solution = results(x)
        return torch.stack((solution.final[0], solution.final[1], solution.events.t[-1], solution.events.y_after[0, 1]))

    x = base.clone().requires_grad_()
    found = torch.stack([torch.autograd.grad(n, x, retain_graph=True)[0] for n in numbers(x)])
    h = 1e-5
    with torch.no_grad():
        differences = [(numbers(base + h * e) - numbers(base - h * e)) / (2 * h) for e in torch.eye(4, dtype=D)]
    torch.testing.assert_close(found, torch.stack(differences, 1), rtol=1e-6, atol=1e-6)


def test_derivatives_of_gradients_are_those_of_the_step_loop():
    def second(backend):
        k, dose = (torch.tensor(x, dtype=D, requires_grad=True) for x in ([0.7], [1.0, 2.0]))
        events = Scheduled([0.5, 1.5], lambda t, y, d, k: y + d * k, dose)
        options = {"args": (k,), "events": events, "method": "tsit5", "backend": backend}
        solution = solve_ivp(lambda t, y, k: -k * y * y, (0.0, 3.0), double(1.0), **options)
        first = torch.autograd.grad(solution.final.sum(), (k, dose), create_graph=True)
        return *first, *torch.autograd.grad(first[0].sum() + first[1].sum(), (k, dose))

    torch.testing.assert_close(second("fused"), second("eager"), rtol=1e-8, atol=1e-10)


def van_der_pol(t, y, mu):
    x, v = y.unbind(-1)
    return torch.stack((v, mu * (1.0 - x**2) * v - x), -1)


def test_rows_that_are_stiff_are_solved_again_with_their_events():
    mu = double(0.5, 300.0).requires_grad_()
    y0, t = double([2.0, 0.0]).repeat(2, 1), torch.linspace(0.0, 6.0, 11, dtype=D)
    kicks = Scheduled([3.0], lambda t, y, mu: 1.01 * y)
    falls = Event(lambda t, y, mu: y[..., 0] - 1.995, direction=-1)

    def by(**options):
        return solve_ivp(
            van_der_pol, (0.0, 6.0), y0, t_eval=t, args=(mu,), batch_dims=1, events=[kicks, falls], **options
        )

    found, exact = by(backend="fused"), by(method="rodas5p", rtol=1e-8, atol=1e-11)
    assert [bool(stats.stiff) for stats in found.stats] == [False, True]
    assert torch.equal(found.events.index, exact.events.index) and torch.equal(found.events.row, exact.events.row)
    torch.testing.assert_close(found.events.t, exact.events.t, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.y, exact.y, rtol=1e-4, atol=1e-4)
    grads = [torch.autograd.grad(x.final[:, 0].sum(), mu)[0] for x in (found, exact)]
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-3, atol=1e-5)


def test_tables_of_steps_grow_and_inputs_are_kept():
    def solve(backend):
        w, shift = torch.tensor(40.0, dtype=D, requires_grad=True), torch.tensor(0.5, dtype=D)
        solution = solve_ivp(
            lambda t, y, w, shift: torch.stack((y[1], -w * w * (y[0] - shift))), (0.0, 3.0), double(1.0, 0.0),
            args=(w, shift), events=Scheduled([1.0], lambda t, y: 0.9 * y), method="tsit5", rtol=1e-8, backend=backend,
        )  # fmt: skip
        if backend == "fused":
            shift.fill_(7.0)  # whose steps are over
        return solution.stats.accepted, *torch.autograd.grad(solution.final.sum(), w)

    (steps, grad), (same, expected) = solve("fused"), solve("eager")
    assert steps == same > 600
    torch.testing.assert_close(grad, expected, rtol=1e-8, atol=0.0)


def test_functions_that_hold_tensors_get_their_gradients():
    torch.manual_seed(0)
    net = torch.nn.Linear(2, 2, dtype=D)
    lift = Event(lambda t, y: y["a"][0] - 1.1, apply=lambda t, y: {"a": y["a"] + net.bias.sum() * net.weight[0]})

    def gradients(backend):
        func = lambda t, y: {"a": torch.tanh(net(y["a"]))}
        solution = solve_ivp(func, (0.0, 3.0), {"a": double(1.0, 0.2)}, events=lift, method="tsit5", backend=backend)
        assert solution.stats.backend == backend and len(solution.events.t) > 0
        return torch.autograd.grad(solution.final["a"].sum() + solution.events.t.sum(), list(net.parameters()))

    torch.testing.assert_close(gradients("fused"), gradients("eager"), rtol=1e-8, atol=1e-10)


MOVES = torch.tensor(2.0, dtype=D, requires_grad=True)


@pytest.mark.parametrize(
    ("events", "sentence"),
    [
        (lambda t, y: y[0] if t > 1 else -y[0], r"events\[0\].g depends on the values of its arguments"),
        ([Scheduled([1.0], lambda t, y: y), lambda t, y: torch.fft.fft(y).abs().sum()], r"events\[1\].g"),
        (Event(lambda t, y: y[0], checks=5000), "looks at 1 event functions at 5000 points within a step"),
        (Event(lambda t, y: y[0], apply=lambda t, y, w=2.0 * MOVES: w * y), r"pass them through args=\(tensor,\)"),
    ],
)
def test_what_has_no_kernel_is_refused_by_name_and_left_to_the_step_loop(events, sentence):
    def solve(backend):
        return solve_ivp(lambda t, y: -y, (0.0, 3.0), double(1.0, 2.0), events=events, backend=backend, method="tsit5")

    with pytest.raises(ValueError, match=r"backend='fused' has no kernel for this solve: .*" + sentence):
        solve("fused")
    stats = solve("auto").stats
    assert stats.backend.startswith("eager: ") and stats.accepted > 0


def test_a_number_for_the_value_of_an_event_is_refused():
    with pytest.raises(ValueError, match=r"events\[0\].g looks at values \(.*test_events.py"):
        solve_ivp(lambda t, y: -y, (0.0, 1.0), double(1.0), events=lambda t, y: float(y[0]), backend="fused")


@pytest.mark.parametrize("events", [None, Scheduled([1.0], lambda t, y: 0.5 * y)])
def test_params_name_what_gradients_other_than_direct_are_of(events):
    a, b = (torch.tensor(x, dtype=D, requires_grad=True) for x in (0.5, 0.3))

    def gradients(**options):
        solution = solve_ivp(
            lambda t, y: -a * b * y, (0.0, 3.0), double(1.0), events=events, method="tsit5", backend="fused", **options
        )  # fmt: skip
        return torch.autograd.grad(solution.final.sum(), (a, b), allow_unused=True)

    both = gradients()
    assert gradients(params=(a,)) == both == gradients(params=iter((a, b)), gradient="checkpointed")
    first, second = gradients(params=a, gradient="checkpointed")
    assert first == pytest.approx(both[0]) and second is None


def test_fixed_steps_need_an_end():
    def solve(backend):
        end = Event(lambda t, y: y[0] - 0.5, terminal=True)
        return solve_ivp(
            lambda t, y: -y, (0.0, math.inf), double(1.0), events=end, method="rk4", step_size=0.1, backend=backend
        )

    with pytest.raises(ValueError, match="t_span is infinite"):
        solve("fused")
    assert solve("auto").t_final == pytest.approx(math.log(2.0), abs=1e-6)


def test_rows_of_an_event_function_must_not_depend_on_each_other():
    with pytest.raises(ValueError, match=r"rows of events\[0\].g depend on each other"):
        solve_ivp(
            lambda t, y: -y, (0.0, 1.0), torch.rand(3, 2, dtype=D), batch_dims=1, backend="fused",
            events=lambda t, y: y[..., 0] - y[..., 0].mean(), method="tsit5",
        )  # fmt: skip


def test_rows_do_not_depend_on_their_neighbours():
    options = {"events": [ball(), APEX], "t_eval": TIMES, "batch_dims": 1}
    many, _ = solved("fused", y0=STARTS, **options)
    few, _ = solved("fused", y0=STARTS[1:4], **options)
    assert torch.equal(many.y[1:4], few.y)


def drift(t, y, rate):
    """Steps are as long as they may be: what happens, happens within one."""
    return rate * torch.ones_like(y) + 0.0 * y


def past_one(t, y, rate):
    return y[0] - 1.0


def past_a_little_more(t, y, rate):
    return y[0] - 1.05


def wave(t, y, rate):
    return torch.sin(6.0 * t) + 0.0 * y[0]


@pytest.mark.parametrize("scheduled", [(), (1.0, 2.0)])
def test_several_things_in_one_step_happen_one_after_the_other(scheduled):
    def half(t, y, rate):
        return y + torch.tensor([0.0, 0.5], dtype=D)

    events = [
        Event(past_one, apply=half),
        Event(past_a_little_more, apply=lambda t, y, rate: y * torch.tensor([1.0, 2.0], dtype=D)),
        Event(wave),
        Scheduled(scheduled, lambda t, y, rate: y - torch.tensor([0.0, 0.25], dtype=D)),
    ]
    rate = torch.tensor(1.0, dtype=D, requires_grad=True)
    solution = solve_ivp(
        drift, (0.0, 3.0), double(0.0, 1.0), args=(rate,), events=events, method="tsit5", backend="fused",
        t_eval=double(0.5, 1.02, 1.04, 1.06, 3.0),
    )  # fmt: skip
    dose = 0.25 if scheduled else 0.0
    doubled = 2.0 * (2.0 + 0.5 - dose + 0.05)
    expected = [1.5, 2.52 - dose, 2.54 - dose, doubled + 0.01, doubled + 1.95 - dose]
    torch.testing.assert_close(solution.y[:, 1], double(*expected), rtol=1e-12, atol=0.0)
    waves = [k * math.pi / 6.0 for k in range(1, 6)]
    found = solution.events
    for index, times in ((0, [1.0]), (1, [1.05]), (2, waves), (3, list(scheduled))):
        torch.testing.assert_close(found.t[found.index == index], double(*times), rtol=1e-12, atol=0.0)
    # A faster drift meets what it meets sooner, with what is scheduled where it is.
    (slope,) = torch.autograd.grad(found.t[found.index == 1].sum() + solution.final[1], rate)
    assert slope.item() == pytest.approx(-1.05 + 3.0, rel=1e-9)


@pytest.mark.parametrize("kind", ["number", "tensor", "level"])
def test_an_apply_that_changes_what_functions_use_is_refused(kind):
    """It is seen once it has happened, and the step loop cannot begin again: "auto" refuses it too."""
    held = {"number": 1.0, "tensor": torch.tensor(1.0, dtype=D), "level": 0.8}

    def change(t, y):
        held[kind] = 0.5 * held[kind]
        return y

    rate = {"number": lambda: held["number"], "tensor": lambda: held["tensor"], "level": lambda: 1.0}[kind]
    events = [Event(lambda t, y: y[0] - held["level"], apply=change)]
    name = r"events\[0\].g" if kind == "level" else "func"
    with torch.no_grad(), pytest.raises(ValueError, match=f"an apply has changed what {name} uses"):
        solve_ivp(lambda t, y: -rate() * y, (0.0, 3.0), double(1.0), events=events, method="tsit5", backend="auto")


@pytest.mark.parametrize("what", ["func", "apply", "random", "second", "second, no events"])
def test_a_gradient_that_calls_functions_again_sees_when_they_have_changed(what):
    k, shift, kick = (torch.tensor(x, dtype=D) for x in (2.0, 0.2, 0.1))
    k.requires_grad_()
    draw = torch.rand_like if what == "random" else torch.ones_like
    half = lambda t, y, *args: y + kick * draw(y)
    events = Event(lambda t, y, *args: y[0] - 0.6, apply=half)
    second = what.startswith("second")
    if second:
        events = None if what.endswith("no events") else Scheduled([1.0], half)
    solution = solve_ivp(
        lambda t, y, k, shift: -k * y * (y - shift), (0.0, 3.0), double(1.0), args=(k, shift), events=events,
        method="tsit5", backend="fused",
    )  # fmt: skip
    if what != "random":
        (kick if what == "apply" else shift).mul_(1.5)
    sentence = "changed in place after the solve" if second or what == "func" else "apply gave another state"
    with pytest.raises(RuntimeError, match=sentence):
        (first,) = torch.autograd.grad(solution.final.sum(), k, create_graph=second)
        first.backward()


@pytest.mark.parametrize("backend", ["eager", "fused"])
@pytest.mark.parametrize("needs_gradient", [False, True])
def test_states_after_changes_are_those_the_solve_went_on_with(backend, needs_gradient):
    kicks = Scheduled([1.0, 3.0], lambda t, y: y + torch.rand_like(y))
    y0 = double(1.0).requires_grad_(needs_gradient)
    options = {"method": "tsit5", "rtol": 1e-10, "atol": 1e-12, "backend": backend}
    solution = solve_ivp(lambda t, y: -y, (0.0, 3.0), y0, events=kicks, **options)
    at_kick = (solution.t == 1.0).nonzero().flatten()[-1]
    log, decayed = solution.events, solution.events.y_after[0] * math.exp(-2.0)
    assert torch.equal(log.y_after[0], solution.y[at_kick])
    assert torch.equal(log.y_after[1], solution.final)
    torch.testing.assert_close(log.y[1], decayed, rtol=1e-8, atol=0.0)
    if needs_gradient:
        with pytest.raises(RuntimeError, match="apply gave another state than in the solve"):
            log.y_after.sum().backward()


def test_a_batch_may_be_empty():
    options = {"events": [ball(), APEX, LIFTS], "t_eval": TIMES, "batch_dims": 1}
    solution, grads = solved("fused", y0=STARTS[:0], **options)
    assert solution.y.shape == (0, len(TIMES), 2) and len(solution.events.t) == 0
    assert [tuple(x.shape) for x in grads] == [(0, 2), (0,), ()]
