"""What func uses has changed between a solve and its gradient: refused, where steps are taken again."""

import pytest
import torch

from torchivp import Event, Scheduled, odeint_adjoint, sdeint, sdeint_adjoint, solve_ivp

D = torch.float64


class Decay(torch.nn.Module):
    """Decay with a trained rate, a buffer that changes what happens late, and a mode."""

    sde_type, noise_type = "stratonovich", "diagonal"

    def __init__(self):
        super().__init__()
        self.rate = torch.nn.Parameter(torch.tensor(0.7, dtype=D))
        self.register_buffer("late", torch.tensor(0.3, dtype=D))

    def forward(self, t, y):
        push = self.late if self.training else 0.0
        return -self.rate * y + push * (t > 0.5)

    f = forward

    def g(self, t, y):
        return 0.1 * y


def single(model, y0):
    return solve_ivp(model, (0.0, 1.0), y0, gradient="checkpointed", method="dopri5").final


def implicit(model, y0):
    return solve_ivp(model, (0.0, 1.0), y0, gradient="checkpointed", method="rodas5p").final


def forward(model, y0):
    return solve_ivp(model, (0.0, 1.0), y0, gradient="forward", method="dopri5").final


def rows(model, y0):
    y0 = torch.stack([y0, 2 * y0])
    times = torch.tensor([1.0, 0.8], dtype=D)
    return solve_ivp(model, (torch.zeros(2, dtype=D), times), y0, batch_dims=1, gradient="checkpointed").final


def events(model, y0):
    bounce = Event(lambda t, y: y[0] - 0.75, apply=lambda t, y: y + 0.2, max_count=1)
    dose = Scheduled([0.4], apply=lambda t, y: y + 0.1)
    return solve_ivp(model, (0.0, 1.0), y0, events=[bounce, dose], gradient="checkpointed").final


def stochastic(model, y0):
    times = torch.tensor([0.0, 1.0], dtype=D)
    return sdeint(model, y0[None], times, dt=0.05, gradient="checkpointed")[-1]


def backsolved(model, y0):
    return solve_ivp(model, (0.0, 1.0), y0, gradient="backsolve").final


def backsolved_rows(model, y0):
    return solve_ivp(model, (0.0, 1.0), y0[:, None], batch_dims=1, gradient="backsolve").final


def fused(model, y0):
    return solve_ivp(model, (0.0, 1.0), y0, backend="fused", method="dopri5").final


def stochastic_adjoint(model, y0):
    return sdeint_adjoint(model, y0[None], torch.tensor([0.0, 1.0], dtype=D), dt=0.05)[-1]


CASES = [
    *((door, 1) for door in (single, implicit, forward, rows, events, stochastic)),
    *((door, 2) for door in (single, implicit, forward, rows, stochastic)),  # of events there is no second one
    *((door, 2) for door in (backsolved, backsolved_rows, fused, stochastic_adjoint)),  # the first takes no step again
]
CHANGES = {
    "a buffer": lambda model: model.late.mul_(2.0),
    "the mode": lambda model: model.eval(),
    "an attribute": lambda model: setattr(model, "late", torch.tensor(0.0, dtype=D)),
}


def gradient(door, change, order):
    model = Decay()
    y0 = torch.tensor([1.0, 0.5], dtype=D)
    end = door(model, y0).sum()
    change(model)
    (found,) = torch.autograd.grad(end, model.rate, create_graph=order == 2)
    if order == 2:
        (found,) = torch.autograd.grad(found, model.rate)
    return found


@pytest.mark.parametrize(("door", "order"), CASES)
@pytest.mark.parametrize("change", CHANGES)
def test_a_gradient_of_another_func_is_refused(door, change, order):
    if door is forward and order == 1:  # computed with the solve
        assert gradient(door, CHANGES[change], 1) == gradient(door, lambda model: None, 1)
        return
    refused = (
        r"do not lead to where they had led: something that func uses has changed|changed in place after the solve"
    )
    with pytest.raises(RuntimeError, match=refused):
        gradient(door, CHANGES[change], order)


@pytest.mark.parametrize(("door", "order"), CASES)
def test_what_does_not_matter_may_change(door, order):
    def change(model):
        model.of_others = 1
        model.rate.grad = torch.ones((), dtype=D)

    assert gradient(door, change, order).isfinite()


def small_row(rate, gradient, **options):
    """A batch of which one row is a millionth of the other, and what both rows use."""
    speeds = torch.ones(2, 1, dtype=D)
    y0 = torch.tensor([[1.0], [1e-6]], dtype=D)
    solution = solve_ivp(
        lambda t, y, s: -rate * s * y, (0.0, 1.0), y0, args=(speeds,), batch_dims=1, gradient=gradient, **options
    )
    return solution.final / y0, speeds


def small_element(rate, gradient, **options):
    speeds = torch.ones(2, dtype=D)
    y0 = torch.tensor([1.0, 1e-6], dtype=D)
    solution = solve_ivp(lambda t, y: -rate * speeds * y, (0.0, 1.0), y0, gradient=gradient, **options)
    return solution.final / y0, speeds


@pytest.mark.parametrize("method", ["dopri5", "rodas5p", "radau5", "bdf", "adams", "auto"])
@pytest.mark.parametrize(("gradient", "order"), [("checkpointed", 1), ("checkpointed", 2), ("forward", 2)])
@pytest.mark.parametrize("problem", [small_row, small_element])
def test_a_change_of_what_only_small_states_use_is_refused(problem, gradient, order, method):
    if problem is small_element and method == "bdf":
        return  # whose iteration leaves as much of the large element
    rate = torch.tensor(0.7, dtype=D, requires_grad=True)
    end, speeds = problem(rate, gradient, method=method)
    speeds[1] *= 2.0
    with pytest.raises(RuntimeError, match="something that func uses has changed"):
        (found,) = torch.autograd.grad(end.sum(), rate, create_graph=order == 2)
        torch.autograd.grad(found, rate)


def test_what_an_iteration_leaves_of_a_state_that_crosses_zero_is_no_change():
    def lorenz(t, y, r):
        return torch.stack([10 * (y[1] - y[0]), y[0] * (r - y[2]) - y[1], y[0] * y[1] - 8 / 3 * y[2]])

    r = torch.tensor(28.0, dtype=D, requires_grad=True)
    end = solve_ivp(lorenz, (0, 10), torch.ones(3, dtype=D), args=(r,), method="bdf", gradient="checkpointed").final
    (found,) = torch.autograd.grad(end.sum(), r)
    differences = -10.9483  # of SciPy's DOP853 at rtol=1e-13
    torch.testing.assert_close(found.item(), differences, rtol=1e-2, atol=0.0)


def test_a_way_back_of_a_small_row_that_leads_elsewhere_warns():
    rate = torch.tensor(0.7, dtype=D, requires_grad=True)
    end, speeds = small_row(rate, "backsolve")
    speeds[1] *= 2.0
    with pytest.warns(RuntimeWarning, match="does not come back to where the solve had passed"):
        end.sum().backward()


@pytest.mark.parametrize("batch_dims", [0, 1])
@pytest.mark.parametrize(
    "options", [{"gradient": "checkpointed"}, {"gradient": "backsolve"}, {"backend": "fused", "method": "dopri5"}]
)
def test_an_event_function_or_what_it_does_that_has_changed_is_refused(options, batch_dims):
    weights = {"g": 0.5, "apply": 1.0}
    event = Event(
        lambda t, y: (y[..., :1] + weights["g"] * y[..., 1:] - 0.8).squeeze(-1),
        apply=lambda t, y: weights["apply"] * y * torch.tensor([0.3, 1.0], dtype=D),
    )

    def by_start(changed):
        y0 = torch.tensor([[0.0, 1.0], [0.1, 0.7]], dtype=D)[slice(2) if batch_dims else 0].requires_grad_()
        end = solve_ivp(
            lambda t, y: torch.cat((1.0 + 0.0 * y[..., :1], -y[..., 1:]), -1),
            (0.0, 1.0),
            y0,
            events=event,
            batch_dims=batch_dims,
            **options,
        ).final
        before = dict(weights)
        if changed:
            weights[changed] = -3.0
        try:
            return torch.autograd.grad(end.sum(), y0)[0]
        finally:
            weights.update(before)

    assert by_start(None).isfinite().all()
    with pytest.raises(RuntimeError, match="an event function gives another value than in the solve"):
        by_start("g")
    with pytest.raises(RuntimeError, match=r"apply gave another state|do not lead to where they had led"):
        by_start("apply")


def test_a_parameter_changed_in_place_is_found_by_autograd():
    model = Decay()
    end = odeint_adjoint(model, torch.ones(2, dtype=D), torch.tensor([0.0, 1.0], dtype=D))[-1].sum()
    with torch.no_grad():
        model.rate.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        end.backward()
