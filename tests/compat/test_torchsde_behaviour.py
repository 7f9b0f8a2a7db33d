"""What programs written for torchsde rely on besides the numbers: what is refused, warned of, returned."""

import itertools
import warnings

import pytest
import torch
import torchsde as theirs
from torch import nn

from torchivp import noise
from torchivp.compat import torchsde as ours
from torchivp.compat.torchsde.settings import LEVY_AREA_APPROXIMATIONS, METHODS, NOISE_TYPES, SDE_TYPES

D = torch.float64
TS = torch.linspace(0.0, 1.0, 5, dtype=D)
DOORS = ["sdeint", "sdeint_adjoint"]


def start():
    return torch.tensor([[0.5, -0.2], [0.3, 0.4], [0.1, 0.9]], dtype=D)


class SDE(nn.Module):
    """A linear SDE whose diffusion has `channels` columns."""

    def __init__(self, sde_type="ito", noise_type="diagonal", channels=3):
        super().__init__()
        self.sde_type, self.noise_type = sde_type, noise_type
        self.rate = nn.Parameter(torch.tensor(0.5, dtype=D))
        self.unused = nn.Parameter(torch.tensor(0.5, dtype=D))
        self.frozen = nn.Parameter(torch.tensor(0.3, dtype=D), requires_grad=False)
        self.channels = 1 if noise_type == "scalar" else channels

    def f(self, t, y):
        return -self.rate * y

    def h(self, t, y):
        return -y

    def g(self, t, y):
        if self.noise_type == "diagonal":
            return self.frozen * (1.5 + torch.sin(y))
        widths = torch.linspace(0.5, 1.0, 2 * self.channels, dtype=D).reshape(2, self.channels)
        if self.noise_type == "additive":
            return (self.frozen * widths).expand(len(y), 2, self.channels)
        return self.frozen * widths * (1.5 + torch.sin(y)).unsqueeze(2)


def path(channels=2, rows=3, levy="none", **kwargs):
    kwargs = {"entropy": 5, **kwargs}
    return noise.BrownianInterval(0.0, 1.0, size=(rows, channels), dtype=D, levy_area_approximation=levy, **kwargs)


def only_methods(sde, *names):
    """The same SDE with only these of its methods."""
    view = nn.Module()
    view.sde_type, view.noise_type = sde.sde_type, sde.noise_type

    def prod(g, v):
        return g * v if sde.noise_type == "diagonal" else torch.bmm(g, v.unsqueeze(2)).squeeze(2)

    methods = {
        "f": sde.f,
        "g": sde.g,
        "f_and_g": lambda t, y: (sde.f(t, y), sde.g(t, y)),
        "g_prod": lambda t, y, v: prod(sde.g(t, y), v),
        "f_and_g_prod": lambda t, y, v: (sde.f(t, y), prod(sde.g(t, y), v)),
    }
    for name in names:
        setattr(view, name, methods[name])
    return view


VARIANTS = [("f", "g"), ("f_and_g",), ("f", "g_prod"), ("f_and_g_prod",)]


@pytest.mark.parametrize("noise_type", NOISE_TYPES.all())
@pytest.mark.parametrize(("sde_type", "method"), [("ito", "euler"), ("stratonovich", "midpoint")])
def test_the_ways_to_write_an_sde_are_equal_to_the_last_bit(sde_type, method, noise_type):
    sde = SDE(sde_type, noise_type)
    bm = path(2 if noise_type == "diagonal" else sde.channels)
    first, *others = (
        ours.sdeint(only_methods(sde, *names), start(), TS, bm, method, 0.01, names={}) for names in VARIANTS
    )
    assert all(first.equal(other) for other in others)


ALLOWED = {
    "euler": ("ito", NOISE_TYPES.all()),
    "srk": ("ito", ["additive", "diagonal", "scalar"]),
    **{
        m: ("stratonovich", NOISE_TYPES.all()) for m in ("euler_heun", "heun", "midpoint", "log_ode", "reversible_heun")
    },
}
AREAS = {"srk": ["space-time", "davie", "foster"], "log_ode": ["davie", "foster"]}


def is_legal(sde_type, noise_type, method, levy):
    if method == "adjoint_reversible_heun":
        return False
    calculus, noises = ALLOWED.get(method, (sde_type, ["additive", "diagonal", "scalar"]))
    return sde_type == calculus and noise_type in noises and levy in AREAS.get(method, LEVY_AREA_APPROXIMATIONS.all())


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("method", METHODS.all())
def test_every_illegal_combination_is_a_value_error(method, door):
    y0, ts = start(), [0.0, 0.1]
    kinds = itertools.product(SDE_TYPES.all(), NOISE_TYPES.all(), LEVY_AREA_APPROXIMATIONS.all())
    for sde_type, noise_type, levy in kinds:
        sde = SDE(sde_type, noise_type)
        bm = path(2 if noise_type == "diagonal" else sde.channels, levy=levy)

        def solve(library, sde=sde, bm=bm):
            with torch.no_grad():
                return getattr(library, door)(sde, y0, ts, bm, method, dt=0.1)

        if is_legal(sde_type, noise_type, method, levy):
            assert solve(ours).shape == (2, 3, 2)
        else:
            for library in (ours, theirs):
                with pytest.raises(ValueError) as caught:
                    solve(library)
                if library is ours:
                    assert method in str(caught.value) and len(str(caught.value)) > 50


class Bare:
    """An SDE that is no module, and has what the arguments say."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)


F = SDE().f
G = SDE().g
KINDS = {"sde_type": "ito", "noise_type": "diagonal"}

REFUSALS = [
    ({"sde": Bare(f=F, g=G, sde_type="ito")}, "has no attribute noise_type: derive it from SDEIto"),
    ({"sde": Bare(f=F, g=G, noise_type="diagonal")}, "has no attribute sde_type: derive it from SDEIto"),
    ({"sde": Bare(f=F, g=G, sde_type="ito", noise_type="colored")}, "noise_type must be one of .*, got 'colored'"),
    ({"sde": Bare(f=F, g=G, sde_type="ito", noise_type="commutative")}, "noise_type must be one of"),
    ({"sde": Bare(f=F, g=G, sde_type="none", noise_type="scalar")}, "sde_type must be 'ito' or 'stratonovich'"),
    ({"sde": Bare(g=G, **KINDS)}, "the SDE has no drift: define f"),
    ({"sde": Bare(f=F, **KINDS)}, "the SDE has no diffusion: define g"),
    ({"sde": Bare(f=F, g=lambda t, y: y[:, :1], **KINDS)}, r"g must return .* the shape of y: .*\(3, 2\).*\(3, 1\)"),
    ({"sde": Bare(f=lambda t, y: y[:1], g=G, **KINDS)}, r"f must return .* in the shape of y"),
    ({"sde": Bare(f=F, g=lambda t, y: y.unsqueeze(2), **KINDS)}, "g must return"),
    ({"sde": Bare(f=F, g=G, sde_type="ito", noise_type="additive")}, "g must return"),
    (
        {"sde": Bare(f=F, g=lambda t, y: y.new_ones(3, 2, 2), sde_type="ito", noise_type="scalar")},
        "g must return .*scalar noise",
    ),
    (
        {"sde": Bare(f=F, g_prod=lambda t, y, v: y, sde_type="ito", noise_type="general")},
        "cannot tell how many noises there are.*noise_size=m, or a Brownian motion",
    ),
    ({"y0": [[0.1, 0.2]]}, r"y0 must be a tensor of shape \(batch, channels\), got list: reshape it"),
    ({"y0": torch.zeros(2)}, r"y0 must be .*, got a tensor of shape \(2,\): reshape it"),
    ({"y0": torch.zeros(2, 3, 4)}, r"y0 must be .*, got a tensor of shape \(2, 3, 4\)"),
    ({"ts": [0.0, 0.5, 0.5]}, "ts must be strictly increasing, got"),
    ({"ts": [1.0, 0.0]}, "ts must be strictly increasing.*torchivp.sdeint also solves backwards"),
    ({"ts": [0.0, float("nan")]}, "ts must be strictly increasing"),
    ({"ts": []}, "ts must hold at least one time: pass a 1-D tensor"),
    ({"ts": torch.zeros(2, 2)}, r"ts must be one-dimensional, got a tensor of shape \(2, 2\)"),
    ({"ts": torch.tensor(0.0)}, "ts must be one-dimensional"),
    ({"ts": "now"}, "ts must hold the times at which to return the solution, got 'now'"),
    ({"ts": 1.0}, "ts must hold the times"),
    ({"ts": TS.clone().requires_grad_()}, "Argument ts must not require gradient"),
    ({"dt": torch.tensor(0.1, requires_grad=True)}, "Argument dt must not require gradient"),
    ({"rtol": torch.tensor(0.1, requires_grad=True)}, "Argument rtol must not require gradient"),
    ({"atol": torch.tensor(0.1, requires_grad=True)}, "Argument atol must not require gradient"),
    ({"dt_min": torch.tensor(0.1, requires_grad=True)}, "Argument dt_min must not require gradient"),
    ({"dt": 0.0}, "dt must be positive, got 0.0"),
    ({"method": "eular"}, "unknown method 'eular'. Did you mean 'euler'"),
    ({"method": 3}, "method must be the name of a method, one of .*, got 3"),
    ({"method": "adjoint_reversible_heun"}, "unknown method"),
    (
        {"bm": path(3), "method": "euler"},
        r"bm has shape \(3, 3\), but diagonal noise of this problem has shape \(3, 2\): pass size=",
    ),
    ({"bm": path(rows=4), "method": "euler"}, r"bm has shape \(4, 2\)"),
    (
        {"bm": path(2), "method": "euler", "logqp": True},
        r"bm has shape \(3, 2\), .* one more channel .* pass size=\(3, 3\)",
    ),
    (
        {"bm": noise.BrownianInterval(0.0, 1.0, size=(6,))},
        r"bm must be a Brownian motion of shape \(batch, noise channels\), got the shape \(6,\)",
    ),
    ({"bm": lambda ta, tb: 0.0}, r"bm must be a Brownian motion of shape .*, got <function"),
    ({"bm": path(), "method": "srk"}, "method 'srk' needs a Brownian motion with levy_area_approximation 'space-time'"),
    ({"bm": path()}, "method 'srk' needs"),
    ({"extra_solver_state": (start(),)}, "extra_solver_state must be a tuple of 0 entries"),
    ({"names": {"drift": "velocity"}}, r"names=\{'drift': 'velocity'\}, but the SDE has no method 'velocity'"),
]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(("arguments", "message"), REFUSALS, ids=[str(i) for i in range(len(REFUSALS))])
def test_refusals(arguments, message, door):
    arguments = {"sde": SDE(), "y0": start(), "ts": [0.0, 0.1, 0.2], "dt": 0.05, **arguments}
    with pytest.raises(ValueError, match=message):
        getattr(ours, door)(**arguments)


def test_other_refusals():
    with pytest.raises(AttributeError, match="logqp=True needs the prior drift, and Bare has no attribute 'h'"):
        ours.sdeint(Bare(f=F, g=G, **KINDS), start(), TS, logqp=True)
    for name in ("adjoint_rtol", "adjoint_atol"):
        with pytest.raises(ValueError, match=f"Argument {name} must not"):
            ours.sdeint_adjoint(SDE(), start(), TS, **{name: torch.tensor(0.1, requires_grad=True)})
    with pytest.raises(TypeError, match="options must be a dict"):
        ours.sdeint(SDE(), start(), TS, options=[1])


@pytest.mark.parametrize(
    ("sde_type", "method", "names", "missing"),
    [
        ("ito", "srk", ("f_and_g_prod",), "f"),
        ("ito", "milstein", ("f_and_g_prod",), "f"),
        ("stratonovich", "reversible_heun", ("f_and_g_prod",), "f"),
        ("ito", "srk", ("f_and_g_prod", "f"), "g"),
    ],
)
def test_a_method_that_lacks_a_function_says_so(sde_type, method, names, missing):
    sde = only_methods(SDE(sde_type), *names)
    for library in (ours, theirs):
        with pytest.raises(RuntimeError, match=f"Method `{missing}` has not been provided"):
            library.sdeint(sde, start(), TS, path(levy="space-time"), method, 0.1)


@pytest.mark.parametrize("door", DOORS)
def test_unknown_arguments_and_names_are_warned_of_where_the_call_is(door):
    for arguments, message in (
        ({"adaptative": True}, f"`{door}`: Unexpected arguments {{'adaptative': True}}"),
        ({"names": {"difusion": "g"}}, "`names`: Unexpected arguments"),
    ):
        with pytest.warns(UserWarning, match=message) as caught:
            getattr(ours, door)(SDE(), start(), TS, dt=0.1, method="euler", **arguments)
        assert len(caught) == 1
    with pytest.warns(UserWarning, match="Unexpected options"):
        getattr(ours, door)(SDE(), start(), TS, dt=0.1, method="euler", options={"gradfree": True})


def test_names_that_are_of_no_use_do_no_harm():
    """torchsde looks for a prior drift only where one is needed."""
    sde = Bare(f=F, g=G, **KINDS)
    assert ours.sdeint(sde, start(), TS, dt=0.1, names={"prior_drift": "h"}).shape == (5, 3, 2)


@pytest.mark.parametrize("door", DOORS)
def test_adaptive_euler_steps_of_noise_that_is_not_additive_are_warned_of(door):
    for noise_type, expected in (("diagonal", True), ("scalar", True), ("general", True), ("additive", False)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            arguments = {"method": "euler", "dt": 0.1, "adaptive": True, "rtol": 0.1, "atol": 0.1}
            getattr(ours, door)(SDE(noise_type=noise_type), start(), TS, **arguments)
        warned = [w for w in caught if "not guaranteed to converge to the correct solution" in str(w.message)]
        assert bool(warned) is expected


@pytest.mark.parametrize("library", [ours, theirs], ids=["ours", "theirs"])
@pytest.mark.parametrize("door", DOORS)
def test_adaptive_euler_is_warned_of_before_it_is_refused(library, door):
    refused = pytest.raises(ValueError, match="stratonovich")
    with pytest.warns(UserWarning, match="not guaranteed to converge to the correct solution"), refused:
        getattr(library, door)(SDE("stratonovich"), start(), TS, method="euler", adaptive=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"adjoint_method": "midpoint"}, "adjoint_method!='adjoint_reversible_heun'"),
        ({"dt": 0.15}, "The spacing between time points `ts` is not an integer multiple of the time step `dt`"),
        ({"adjoint_adaptive": True}, "`adaptive` or `adjoint_adaptive`"),
        ({"adaptive": True}, "`adaptive` or `adjoint_adaptive`"),
    ],
)
def test_what_keeps_gradients_of_reversible_heun_from_being_exact_is_warned_of(arguments, message):
    sde = SDE("stratonovich", "additive")
    for library in (ours, theirs):
        with pytest.warns(UserWarning, match=message):
            kwargs = {"dt": 0.05, "method": "reversible_heun", "rtol": 0.1, "atol": 0.1, **arguments}
            library.sdeint_adjoint(sde, start(), TS, path(3), **kwargs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.sdeint_adjoint(sde, start(), TS, path(3), dt=0.05, method="reversible_heun")
        ours.sdeint(sde, start(), TS, path(3), dt=0.15, method="reversible_heun")


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("noise_type", NOISE_TYPES.all())
def test_what_is_returned(noise_type, door):
    sde = SDE("stratonovich", noise_type)
    channels = 3 if noise_type == "diagonal" else sde.channels  # with logqp one more than there are elements
    solve = lambda **kwargs: getattr(ours, door)(sde, start(), TS, method="reversible_heun", dt=0.05, **kwargs)
    ys, logqp, (f, g, z) = solve(bm=path(channels), logqp=True, extra=True)
    assert ys.shape == (5, 3, 2) and logqp.shape == (4, 3) and (logqp > 0).all()
    assert f.shape == z.shape == (3, 3) and g.shape[:2] == (3, 3)
    assert len(solve(logqp=True)) == 2 and len(solve(extra=True)) == 2
    assert solve().shape == (5, 3, 2)
    assert ours.sdeint(SDE(), start(), TS, dt=0.1, extra=True)[1] == ()


class Minus(nn.Module):
    """The same SDE in reversed time."""

    def __init__(self, sde):
        super().__init__()
        self.sde_type, self.noise_type, self.base = sde.sde_type, sde.noise_type, sde

    def f(self, t, y):
        return -self.base.f(-t, y)

    def g(self, t, y):
        return -self.base.g(-t, y)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("make", [noise.BrownianInterval, ours.BrownianInterval, theirs.BrownianInterval])
@pytest.mark.parametrize("noise_type", NOISE_TYPES.all())
def test_reversible_heun_runs_backwards_exactly(noise_type, make, door):
    sde = SDE("stratonovich", noise_type)
    bm = make(0.0, 1.0, size=(3, 2 if noise_type == "diagonal" else sde.channels), dtype=D, entropy=5)
    kwargs = {"method": "reversible_heun", "dt": 1 / 16, "extra": True}
    solve = getattr(ours, door)
    ys, (f, g, z) = solve(sde, start(), TS, bm=bm, **kwargs)
    back, (f0, g0, z0) = solve(
        Minus(sde), ys[-1], -TS.flip(0), bm=ours.ReverseBrownian(bm), extra_solver_state=(-f, -g, z), **kwargs
    )
    torch.testing.assert_close(back.flip(0), ys, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(z0, start(), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close([-f0, -g0], [sde.f(0.0, start()), sde.g(0.0, start())], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("door", DOORS)
def test_parameters_that_need_no_gradient_or_are_unused_are_fine(door):
    sde, y0 = SDE("stratonovich"), start().requires_grad_()
    getattr(ours, door)(sde, y0, TS, dt=0.05)[-1].sum().backward()
    assert y0.grad is not None and sde.rate.grad != 0 and sde.frozen.grad is None
    assert sde.unused.grad is None or sde.unused.grad == 0
    y0.grad, sde.rate.grad = None, None
    for parameter in sde.parameters():
        parameter.requires_grad_(False)
    getattr(ours, door)(sde, y0, TS, dt=0.05)[-1].sum().backward()
    assert y0.grad is not None


def test_adjoint_parameters_may_be_named():
    sde = SDE("stratonovich")
    for params in ((), (sde.rate,), [sde.rate, sde.frozen], iter([sde.rate])):
        ys = ours.sdeint_adjoint(sde, start().requires_grad_(), TS, dt=0.05, adjoint_params=params)
        ys[-1].sum().backward()
    with torch.no_grad():
        assert not ours.sdeint_adjoint(sde, start(), TS, dt=0.05).requires_grad
    plain = Bare(f=F, g=G, **KINDS)  # need not be a module
    assert ours.sdeint_adjoint(plain, start(), TS, dt=0.05).requires_grad


@pytest.mark.parametrize("adjoint_method", [None, "euler_heun", "heun", "midpoint", "milstein"])
def test_adjoint_methods(adjoint_method):
    gradients = []
    for door, kwargs in (("sdeint", {}), ("sdeint_adjoint", {"adjoint_method": adjoint_method})):
        sde = SDE("stratonovich")
        getattr(ours, door)(sde, start(), TS, path(), dt=1 / 64, **kwargs)[-1].sum().backward()
        gradients.append(sde.rate.grad)
    torch.testing.assert_close(*gradients, rtol=0.02, atol=0)


@pytest.mark.parametrize("adjoint_method", ["srk", "log_ode", "reversible_heun", "adjoint_reversible_heun", "nothing"])
def test_adjoint_methods_that_there_are_not(adjoint_method):
    with pytest.raises(ValueError, match=f"adjoint_method[ =]'{adjoint_method}'"):
        ours.sdeint_adjoint(SDE("stratonovich"), start(), TS, dt=0.05, adjoint_method=adjoint_method)


def test_the_seed_of_torch_decides_the_path():
    solutions = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        solutions.append(ours.sdeint(SDE(), start(), TS, dt=0.05))
    assert solutions[0].equal(solutions[1]) and not solutions[0].equal(solutions[2])


def test_steps_may_land_on_the_times_asked_for():
    ts, bm = torch.tensor([0.0, 0.13, 1.0], dtype=D), path()
    seen = []

    class Watched(SDE):
        def f(self, t, y):
            seen.append(t.item())
            return super().f(t, y)

    landed = ours.sdeint(Watched(), start(), ts, bm, "euler", 0.1, options={"interp": None})
    assert 0.13 in seen
    seen.clear()
    ours.sdeint(Watched(), start(), ts, bm, "euler", 0.1)
    assert seen[1:] == pytest.approx([i / 10 for i in range(10)])
    with torch.no_grad():
        two = ours.sdeint(SDE(), start(), ts[:2], bm, "euler", 0.1)
    torch.testing.assert_close(two[1], landed[1].detach(), rtol=0.2, atol=0.2)


class Doubled(ours.BrownianInterval):
    """A program's own path: twice that of another."""

    def __call__(self, ta, tb=None, return_U=False, return_A=False):
        return 2 * super().__call__(ta, tb)


class Straight(ours.BaseBrownian):
    """A path without chance: W(t) = t."""

    def __init__(self, shape):
        self._shape = shape

    def __call__(self, ta, tb=None, return_U=False, return_A=False):
        return torch.full(self._shape, float(tb - ta), dtype=D)

    def __repr__(self):
        return "Straight()"

    shape = property(lambda self: self._shape)
    dtype = property(lambda self: D)
    device = property(lambda self: torch.device("cpu"))
    levy_area_approximation = property(lambda self: "none")


class StraightCall:
    """The same, which derives from nothing."""

    shape, device, dtype, levy_area_approximation = (3, 2), "cpu", D, "none"

    def __call__(self, ta, tb):
        return torch.full(self.shape, float(tb - ta), dtype=D)


def test_paths_of_ones_own_are_asked_by_calls():
    class Ones(nn.Module):
        sde_type, noise_type = "ito", "diagonal"

        def f(self, t, y):
            return 0 * y

        def g(self, t, y):
            return torch.ones_like(y)

    for bm in (Straight((3, 2)), StraightCall(), ours.ReverseBrownian(Straight((3, 2)))):
        ys = ours.sdeint(Ones(), start(), TS, bm, "euler", 0.1)
        torch.testing.assert_close(ys[-1], start() + 1.0)
    size = {"size": (3, 2), "dtype": D, "entropy": 3}
    ys = ours.sdeint(Ones(), start(), TS, Doubled(0.0, 1.0, **size), "euler", 0.1)
    torch.testing.assert_close(ys[-1], start() + 2 * ours.BrownianInterval(0.0, 1.0, **size)(0.0, 1.0))


def test_a_single_time():
    assert ours.sdeint(SDE(), start(), [0.5]).equal(start().unsqueeze(0))


class UndefinedBelow(SDE):
    """Not a number for states that are small."""

    def f(self, t, y):
        return torch.where(y.detach() > self.level, -self.rate * y, torch.nan)


@pytest.mark.parametrize("library", [ours, theirs], ids=["ours", "theirs"])
@pytest.mark.parametrize("door", DOORS)
def test_a_solution_that_is_no_number_is_told_in_torchsdes_words(library, door):
    sde = UndefinedBelow("stratonovich", "additive")
    sde.level = 0.3
    with pytest.raises(AssertionError, match=r"^Found nans in the error estimate"):
        getattr(library, door)(sde, start().abs() + 0.2, TS, method="midpoint", dt=0.1, adaptive=True)


def test_so_is_a_backward_solve_that_leads_to_no_number():
    sde = UndefinedBelow("stratonovich", "additive")
    sde.level = -100.0
    ys = ours.sdeint_adjoint(sde, start(), TS, method="midpoint", dt=0.1, adaptive=True, adjoint_adaptive=True)
    sde.level = 100.0
    with pytest.raises(AssertionError, match=r"^Found nans in the error estimate"):
        ys.sum().backward()
