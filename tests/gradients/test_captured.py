"""What func uses besides its arguments: found once, in whatever thread, and not mistaken for what func makes itself."""

import math
import threading

import pytest
import torch

from torchivp import SDEStratonovich, odeint, odeint_adjoint, sdeint, sdeint_adjoint, solve_ivp

D = torch.float64
TIGHT = {"rtol": 1e-9, "atol": 1e-9}
GRADIENTS = ["direct", "checkpointed", "backsolve", "forward"]


def one(value=1.0):
    return torch.tensor([value], dtype=D, requires_grad=True)


def ode(gradient):
    return lambda func, y0, **kwargs: solve_ivp(func, (0.0, 1.0), y0, gradient=gradient, **TIGHT, **kwargs).y[-1].sum()


def rows(gradient):
    def solve(func, y0, **kwargs):
        batch = y0.expand(2, 1)
        return solve_ivp(func, (0.0, 1.0), batch, batch_dims=1, gradient=gradient, **TIGHT, **kwargs).y[:, -1].mean()

    return solve


def events(gradient):
    def solve(func, y0, **kwargs):
        never = {"events": lambda t, y: y[0] + 1.0}
        return solve_ivp(func, (0.0, 1.0), y0, gradient=gradient, **never, **TIGHT, **kwargs).y[-1].sum()

    return solve


def by_scipy(func, y0, params=None):
    t = torch.tensor([0.0, 1.0], dtype=D)
    return odeint_adjoint(func, y0, t, method="scipy_solver", adjoint_params=params, **TIGHT)[-1].sum()


class Quiet(SDEStratonovich):
    """An ODE as an SDE without noise."""

    def __init__(self, func):
        super().__init__("diagonal")
        self.func = func

    def f(self, t, y):
        return self.func(t, y)

    def g(self, t, y):
        return torch.zeros_like(y)


def sde(gradient, method="midpoint"):
    def solve(func, y0, params=None):
        given = {"y0": y0.unsqueeze(0), "ts": torch.tensor([0.0, 1.0], dtype=D), "dt": 5e-3, "method": method}
        if gradient == "adjoint":
            return sdeint_adjoint(Quiet(func), **given, adjoint_params=params)[-1].sum()
        if params is not None:
            pytest.skip("sdeint takes no parameters")
        return sdeint(Quiet(func), **given, gradient=gradient)[-1].sum()

    return solve


SOLVES = {
    **{f"{gradient}": ode(gradient) for gradient in GRADIENTS},
    **{f"{gradient} of rows": rows(gradient) for gradient in GRADIENTS},
    **{f"{gradient} with events": events(gradient) for gradient in GRADIENTS},
    "scipy_solver": by_scipy,
    "direct of an SDE": sde("direct"),
    "checkpointed of an SDE": sde("checkpointed"),
    "reversible": sde("reversible", "reversible_heun"),
    "adjoint of an SDE": sde("adjoint"),
    "reversible adjoint of an SDE": sde("adjoint", "reversible_heun"),
}


@pytest.fixture(params=SOLVES)
def solve(request):
    """Solves from 0 to 1; gives the state at the end."""
    return SOLVES[request.param]


class Rate(torch.nn.Module):
    def __init__(self, value=0.5):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(value, dtype=D))


class Augmented(Rate):
    """y' = w y t, with the leaves of its own that a function makes to differentiate by its arguments, as FFJORD's."""

    def forward(self, t, y):
        with torch.enable_grad():
            t = t.requires_grad_()
            own = torch.ones((), dtype=D, requires_grad=True)
            return self.w * y * t * own


class Keeping(Augmented):
    """The same, which keeps the last leaf of its own."""

    def forward(self, t, y):
        with torch.enable_grad():
            self.own = torch.ones((), dtype=D, requires_grad=True)
            return self.w * y * t * self.own


@pytest.mark.parametrize(("kind", "held"), [(Augmented, "by a closure"), (Keeping, "by a module")])
def test_leaves_that_func_makes_for_itself_are_no_inputs(solve, kind, held):
    model = kind()
    func = model if held == "by a module" else lambda t, y: model(t, y)
    solve(func, torch.ones(1, dtype=D)).backward()
    assert model.w.grad.item() == pytest.approx(0.6420127, abs=1e-5)  # exp(w/2)/2


def test_a_parameter_of_which_func_uses_something_computed_outside(solve, request):
    """y' = -d y with d = exp(c), and the parameter named is c."""
    c = torch.tensor(0.3, dtype=D, requires_grad=True)
    d = c.exp()

    class Given(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.c = torch.nn.Parameter(c.detach())
            self.d = self.c.exp()

        def forward(self, t, y):
            return -self.d * y

    expected = -math.exp(0.3) * math.exp(-math.exp(0.3))
    model = Given()
    if request.node.callspec.params["solve"].startswith("forward"):  # which can not move the one with the other
        with pytest.raises(RuntimeError, match="func uses a tensor that was computed elsewhere from one that"):
            solve(model, torch.ones(1, dtype=D))
        return
    (found,) = torch.autograd.grad(solve(model, torch.ones(1, dtype=D)), model.c)  # found in the module
    assert found.item() == pytest.approx(expected, abs=1e-5)
    func = lambda t, y: -d * y
    for _ in range(2):
        (found,) = torch.autograd.grad(solve(func, torch.ones(1, dtype=D), params=(c,)), c, retain_graph=True)
        assert found.item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.filterwarnings("error")
def test_replicas_in_threads_give_the_gradient_once(solve):
    """What nn.DataParallel does: parameters copied by one node in the main thread, each copy used in another thread."""

    class Decay(Rate):
        def forward(self, t, y):
            return -self.w * y

    original = Decay()
    copies = torch.stack([original.w] * 3).unbind()
    results = {}

    def work(i):
        replica = original._replicate_for_data_parallel()
        replica.w = copies[i]
        replica._former_parameters = {"w": copies[i]}
        results[i] = solve(replica, one().detach())

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sum(results.values()).backward()
    assert original.w.grad.item() == pytest.approx(-3 * math.exp(-0.5), rel=1e-5)


def test_a_backward_pass_in_another_thread(solve):
    w, y0 = one(0.5), one(2.0)
    value = solve(lambda t, y: -w * y, y0)
    thread = threading.Thread(target=value.backward)
    thread.start()
    thread.join()
    assert w.grad.item() == pytest.approx(-2 * math.exp(-0.5), rel=1e-5)
    assert y0.grad.item() == pytest.approx(math.exp(-0.5), rel=1e-5)


@pytest.mark.parametrize("moving", [True, False], ids=["y0 needs a gradient", "nothing else does"])
def test_a_leaf_used_only_later_is_right_or_refused(solve, moving, request):
    """Used between t = 0.3 and 0.7 only, by no step at the start and by none at the end."""
    w, y0 = one(0.5), one().detach().requires_grad_(moving)
    name = request.node.callspec.params["solve"]
    func = lambda t, y: -w * y if 0.3 < float(t.max()) < 0.7 else 0.0 * y
    if "direct" in name or not (moving or name == "scipy_solver"):
        solve(func, y0).backward()
        assert w.grad.item() == pytest.approx(-0.4 * math.exp(-0.2), rel=2e-2)
        return
    with pytest.raises(RuntimeError, match=r"tensor of shape \(1,\) that .* but did not use it at the start"):
        solve(func, y0).backward()


def test_a_leaf_used_only_later_that_is_named():
    w = one(0.5)
    func = lambda t, y: -w * y if t > 0.5 else 0.0 * y
    t = torch.tensor([0.0, 1.0], dtype=D)
    for adjoint in (odeint_adjoint(func, one(), t, adjoint_params=(w,), **TIGHT), odeint(func, one(), t, **TIGHT)):
        (found,) = torch.autograd.grad(adjoint[-1].sum(), w)
        assert found.item() == pytest.approx(-0.5 * math.exp(-0.25), rel=1e-4)
