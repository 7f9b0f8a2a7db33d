"""The names that programs take from torchsde and from within it do what they do there."""

import importlib
import inspect
import pkgutil
from argparse import Namespace
from itertools import pairwise

import pytest
import torch
import torchsde as theirs
from torch import nn

from torchivp import noise
from torchivp.compat import torchsde as ours
from torchivp.compat.torchsde import settings, types
from torchivp.compat.torchsde._brownian import brownian_interval
from torchivp.compat.torchsde._core import adaptive_stepping, base_sde, base_solver, interp, methods, misc
from torchivp.compat.torchsde._core import sdeint as sdeint_module
from torchivp.compat.torchsde._core.base_solver import BaseSDESolver
from torchivp.compat.torchsde._core.methods.euler import Euler

D = torch.float64
Y0 = torch.tensor([[0.5, -0.2], [0.3, 0.4], [0.1, 0.9]], dtype=D)
TS = torch.tensor([0.0, 0.1, 0.5, 1.0], dtype=D)

NOT_HERE = {"adjoint_sde", "better_abc"}
"""Modules of torchsde that no program was found to import."""

# Imported before any test runs: one may install the stand-in, after which the names lead there.
THEIRS = {
    module.name: importlib.import_module(module.name)
    for module in pkgutil.walk_packages(theirs.__path__, f"{theirs.__name__}.")
}


def their(name):
    return THEIRS[f"torchsde.{name}"]


class SDE(nn.Module):
    def __init__(self, sde_type="ito", noise_type="diagonal"):
        super().__init__()
        self.sde_type, self.noise_type = sde_type, noise_type
        self.matrix = nn.Parameter(torch.tensor([[0.3, 0.9], [-0.4, 0.2]], dtype=D))

    def f(self, t, y):
        return torch.sin(y @ self.matrix) + t

    def h(self, t, y):
        return -y

    def g(self, t, y):
        if self.noise_type == "additive":
            return self.matrix.expand(len(y), 2, 2)
        g = 0.3 + 0.2 * torch.cos(2 * y + t)
        if self.noise_type == "diagonal":
            return g
        return g.unsqueeze(2) if self.noise_type == "scalar" else g.unsqueeze(2) * torch.cos(y @ self.matrix)[:, None]


def make_path(noise_type, **kwargs):
    channels = 1 if noise_type == "scalar" else 2
    kwargs = {"levy_area_approximation": "foster", "entropy": 3, **kwargs}
    return noise.BrownianInterval(0.0, 1.0, size=(3, channels), dtype=D, **kwargs)


def settings_of(bm, **kwargs):
    return {
        "bm": bm,
        "dt": 1 / 16,
        "adaptive": False,
        "rtol": 1e-3,
        "atol": 1e-3,
        "dt_min": 1e-4,
        "options": {},
        **kwargs,
    }


def test_every_public_name_is_there_with_the_same_arguments():
    public = [name for name in vars(theirs) if not name.startswith("_") and not inspect.ismodule(vars(theirs)[name])]
    for name in public:
        mine, other = (inspect.signature(getattr(library, name)) for library in (ours, theirs))
        if name in ("BaseBrownian", "ReverseBrownian"):
            continue
        assert list(other.parameters) == list(mine.parameters)[: len(other.parameters)]
        for key, parameter in other.parameters.items():
            if isinstance(parameter.default, int | float | str | None):
                assert mine.parameters[key].default == parameter.default, (name, key)
            assert mine.parameters[key].kind == parameter.kind or key in ("y", "brownian")
    assert set(public) <= set(ours.__all__) and ours.__version__ == theirs.__version__


def test_every_module_that_programs_import_has_a_stand_in():
    for name in THEIRS:
        if name.rpartition(".")[2] not in NOT_HERE:
            module = importlib.import_module(f"torchivp.compat.{name}")
            assert module.__name__.startswith("torchivp.")


@pytest.mark.parametrize(
    "module", ["_core.interp", "_core.misc", "_core.adaptive_stepping", "_core.base_sde", "_core.methods", "_brownian"]
)
def test_every_name_of_a_module(module):
    mine = importlib.import_module(f"torchivp.compat.torchsde.{module}")
    not_here = {"AdjointReversibleHeun"}
    for name, value in vars(their(module)).items():
        own = getattr(value, "__module__", "").startswith(f"torchsde.{module}")
        if own and not name.startswith("_") and name not in not_here:
            assert hasattr(mine, name), name


@pytest.mark.parametrize("name", ["METHODS", "NOISE_TYPES", "SDE_TYPES", "LEVY_AREA_APPROXIMATIONS", "METHOD_OPTIONS"])
def test_settings(name):
    mine, other = getattr(settings, name), getattr(their("settings"), name)
    assert mine.all() == other.all() and str(mine) == str(other) == f"{mine}"
    for value in other.all():
        assert value in mine
    assert "nothing" not in mine and None not in mine
    attributes = {key: value for key, value in vars(other).items() if not key.startswith("__")}
    assert all(getattr(mine, key) == value for key, value in attributes.items())


def test_types():
    for name in vars(their("types")):
        assert name.startswith("__") or hasattr(types, name), name


def test_base_classes():
    for cls, arguments in ((ours.BaseSDE, ("additive", "ito")), (ours.SDEIto, ("scalar",))):
        sde = cls(*arguments)
        assert isinstance(sde, ours.BaseSDE) and isinstance(sde, nn.Module) and sde.sde_type == "ito"
    assert ours.SDEStratonovich(noise_type="general").sde_type == "stratonovich"
    for arguments in (("nothing", "ito"), ("diagonal", "nothing"), ("commutative", "ito")):
        with pytest.raises(ValueError, match=r"must be (one of|'ito')"):
            ours.BaseSDE(*arguments)


@pytest.mark.parametrize("noise_type", ["diagonal", "scalar", "additive", "general"])
def test_forward_sde(noise_type):
    t, v = torch.tensor(0.3, dtype=D), torch.randn(3, 1 if noise_type == "scalar" else 2, dtype=D)
    a = torch.randn(3, v.shape[1], v.shape[1], dtype=D)
    sde = SDE("stratonovich", noise_type)
    mine, other = base_sde.ForwardSDE(sde), their("_core.base_sde").ForwardSDE(sde)
    assert isinstance(mine, ours.BaseSDE) and list(mine.parameters()) == list(sde.parameters())
    for call in (
        lambda s: (s.f(t, Y0), s.g(t, Y0), s.g_prod(t, Y0, v), s.prod(s.g(t, Y0), v)),
        lambda s: s.f_and_g(t, Y0),
        lambda s: s.f_and_g_prod(t, Y0, v),
        lambda s: s.g_prod_and_gdg_prod(t, Y0, v, v**2),
        lambda s: (s.dg_ga_jvp_column_sum(t, Y0, a),),
    ):
        if noise_type == "general" and "gdg" in inspect.getsource(call) and call(mine)[1].shape == (3, 2):
            continue  # torchsde multiplies by the transpose of the derivative, and has no use for it
        torch.testing.assert_close(list(call(mine)), list(call(other)))
    fast = their("_core.base_sde").ForwardSDE(sde, fast_dg_ga_jvp_column_sum=True).dg_ga_jvp_column_sum(t, Y0, a)
    again = base_sde.ForwardSDE(sde, fast_dg_ga_jvp_column_sum=True).dg_ga_jvp_column_sum(t, Y0, a)
    torch.testing.assert_close(again, fast)


def test_forward_sde_of_what_there_is():
    class Products(nn.Module):
        sde_type, noise_type = "ito", "general"

        def f_and_g_prod(self, t, y, v):
            return -y, v.sum(1, keepdim=True) * y

    forward = base_sde.ForwardSDE(Products())
    for call in (forward.f, forward.g, forward.f_and_g):
        with pytest.raises(RuntimeError, match=r"Method `[fg]` has not been provided"):
            call(0.0, Y0)
    assert forward.f_and_g_prod(0.0, Y0, Y0)[0].equal(-Y0)


@pytest.mark.parametrize("noise_type", ["diagonal", "scalar", "general"])
def test_sde_with_divergence_and_other_names(noise_type):
    t, y = torch.tensor(0.3, dtype=D), torch.cat([Y0, Y0[:, :1]], dim=1)

    class Renamed(SDE):
        posterior = SDE.f
        f = None

    names = {"drift": "posterior"}
    for call in (lambda s: s.f(t, y), lambda s: s.g(t, y), lambda s: torch.cat([x.flatten() for x in s.f_and_g(t, y)])):
        mine, other = (
            call(module.SDELogqp(module.RenameMethodsSDE(Renamed("ito", noise_type), **names)))
            for module in (base_sde, their("_core.base_sde"))
        )
        torch.testing.assert_close(mine, other)
    with pytest.raises(AttributeError, match="no attribute 'h'"):
        base_sde.SDELogqp(Namespace(f=None, g=None, noise_type="diagonal", sde_type="ito"))


def test_small_operations():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 3, 4, generator=generator, dtype=D), torch.randn(3, 4, generator=generator, dtype=D)
    mine, other = misc, their("_core.misc")
    torch.testing.assert_close(mine.batch_mvp(a, torch.ones(2, 4, dtype=D)), a.sum(2))
    for call in (
        lambda m: m.flatten([a, b]),
        lambda m: m.flat_to_shape(m.flatten([a, b]), [a.shape, b.shape]),
        lambda m: m.seq_add([1, 2], [3, 4]) + m.seq_sub([a], [a])[0].flatten().tolist(),
        lambda m: m.stable_division(b, torch.tensor([1e-9, -1e-9, 2.0, -3.0], dtype=D)),
        lambda m: [m.is_nan(b), m.is_nan(b / 0 - b / 0)],
        lambda m: [x.requires_grad for x in m.make_seq_requires_grad([a, b])],
        lambda m: m.convert_none_to_zeros([None, b], [a, b]),
        lambda m: [m.is_strictly_increasing(x) for x in ([0, 1, 2], [0, 0], TS, -TS)],
    ):
        torch.testing.assert_close(call(mine), call(other))
    assert mine.stable_division(b, 0 * b).isfinite().all()  # torchsde divides by zero
    x = b.clone().requires_grad_()
    for call in (
        lambda m: m.vjp(torch.sin(x), [x, a.requires_grad_()], grad_outputs=b, allow_unused=True),
        lambda m: m.jvp(torch.sin(x) * x.sum(), x, b),
    ):
        torch.testing.assert_close(call(mine), call(other))
    with pytest.raises(ValueError, match="Argument dt must not require gradient"):
        mine.assert_no_grad(["ts", "dt"], [TS, x])
    with pytest.warns(UserWarning, match="`here`: Unexpected arguments {'a': 1}") as caught:
        mine.handle_unused_kwargs({"a": 1}, msg="`here`")
    assert len(caught) == 1
    mine.handle_unused_kwargs({})


def test_adaptive_stepping():
    other = their("_core.adaptive_stepping")
    for y in (Y0, (Y0, 2 * Y0)):
        close = Y0 + 0.01 if y is Y0 else (Y0 + 0.01, 2 * Y0)
        assert adaptive_stepping.compute_error(y, close, 1e-2, 1e-3) == pytest.approx(
            other.compute_error(y, close, 1e-2, 1e-3)
        )
    with pytest.raises(AssertionError):
        adaptive_stepping.compute_error(Y0, Y0 * torch.nan, 1e-2, 1e-3)
    for error in (1e-7, 0.5, 1.0, 1.5, 100.0):
        for ratio in (None, 0.3, 5.0):
            assert adaptive_stepping.update_step_size(error, 0.1, prev_error_ratio=ratio) == pytest.approx(
                other.update_step_size(error, 0.1, prev_error_ratio=ratio)
            )


def test_interpolation():
    arguments = (0.5, Y0, 1.5, 3 * Y0, 0.75)
    torch.testing.assert_close(interp.linear_interp(*arguments), their("_core.interp").linear_interp(*arguments))
    with pytest.raises(AssertionError, match="t must be between"):
        interp.linear_interp(0.5, Y0, 1.5, Y0, 1.6)
    assert base_solver.interp is interp and base_solver.adaptive_stepping is adaptive_stepping


SOLVERS = [
    ("ito", "euler", "general"),
    ("ito", "milstein", "diagonal"),
    ("ito", "srk", "additive"),
    ("ito", "srk", "scalar"),
    *(("stratonovich", m, "diagonal") for m in ("midpoint", "heun", "euler_heun", "milstein", "log_ode")),
    ("stratonovich", "reversible_heun", "general"),
]


@pytest.mark.parametrize(("sde_type", "method", "noise_type"), SOLVERS)
def test_solvers_are_made_and_told_to_integrate(sde_type, method, noise_type):
    found = []
    for select, forward in (
        (methods.select, base_sde.ForwardSDE),
        (their("_core.methods").select, their("_core.base_sde").ForwardSDE),
    ):
        cls = select(method=method, sde_type=sde_type)
        solver = cls(sde=forward(SDE(sde_type, noise_type)), **settings_of(make_path(noise_type)))
        extra = solver.init_extra_solver_state(TS[0], Y0)
        ys, extra = solver.integrate(Y0, TS, extra)
        y1, _ = solver.step(TS[0], TS[1], Y0, solver.init_extra_solver_state(TS[0], Y0))
        found.append((cls, repr(solver), sorted(cls.noise_types), sorted(cls.levy_area_approximations), ys, y1, extra))
    (mine, *mine_rest), (other, *other_rest) = found
    assert mine.__name__ == other.__name__ and mine.sde_type == other.sde_type
    assert getattr(methods, mine.__name__) is mine
    assert mine_rest[1:3] == other_rest[1:3]
    if (method, noise_type) != ("reversible_heun", "diagonal"):
        assert mine_rest[0].split(", and")[0] == other_rest[0].split(", and")[0]
    torch.testing.assert_close(mine_rest[3:5], other_rest[3:5])
    torch.testing.assert_close(list(mine_rest[5]), list(other_rest[5]))
    torch.testing.assert_close(
        mine_rest[3], ours.sdeint(SDE(sde_type, noise_type), Y0, TS, make_path(noise_type), method, 1 / 16)
    )


def test_solvers_refuse_what_they_do_not_solve():
    for method, sde, levy, message in (
        ("euler", SDE("stratonovich"), "none", "Euler solves SDEs of type 'ito'"),
        ("milstein", SDE("ito", "general"), "none", r"MilsteinIto solves SDEs with noise of the types \["),
        ("srk", SDE(), "none", "SRK needs a Brownian motion with levy_area_approximation 'space-time'"),
        ("euler", SDE("ito", "scalar"), "none", r"must have shape \(batch, 1\), got \(3, 2\)"),
    ):
        bm = make_path("diagonal", levy_area_approximation=levy)
        with pytest.raises(ValueError, match=message):
            methods.select(method, "ito")(sde, **settings_of(bm))
    with pytest.raises(ValueError, match="got 'nothing'"):
        methods.select("nothing", "ito")


class Own(BaseSDESolver):
    """The Euler-Maruyama method, as a program would write it."""

    weak_order = 1.0
    sde_type = settings.SDE_TYPES.ito
    noise_types = settings.NOISE_TYPES.all()
    levy_area_approximations = settings.LEVY_AREA_APPROXIMATIONS.all()

    def __init__(self, sde, **kwargs):
        self.strong_order = 1.0 if sde.noise_type == settings.NOISE_TYPES.additive else 0.5
        super().__init__(sde=sde, **kwargs)

    def step(self, t0, t1, y0, extra0):
        assert t1 > t0
        f, g_prod = self.sde.f_and_g_prod(t0, y0, self.bm(t0, t1))
        return y0 + f * (t1 - t0) + g_prod, ()


@pytest.mark.parametrize("noise_type", ["diagonal", "general"])
def test_a_solver_of_ones_own(noise_type):
    bm = make_path(noise_type)
    solver = Own(base_sde.ForwardSDE(SDE("ito", noise_type)), **settings_of(bm))
    assert repr(solver) == "Own of strong order: 0.5, and weak order: 1.0"
    ys, extra = solver.integrate(Y0, TS, ())
    torch.testing.assert_close(ys, ours.sdeint(SDE("ito", noise_type), Y0, TS, bm, "euler", 1 / 16))
    assert extra == ()
    solver = Own(
        base_sde.ForwardSDE(SDE("ito", "additive")), **settings_of(make_path("additive"), adaptive=True, dt=0.1)
    )
    fine = ours.sdeint(SDE("ito", "additive"), Y0, TS, make_path("additive"), "euler", 1 / 512)
    torch.testing.assert_close(solver.integrate(Y0, TS, ())[0][-1], fine[-1], rtol=0.05, atol=0.05)


def test_a_solver_of_ones_own_that_hits_the_smallest_step():
    kwargs = settings_of(make_path("additive"), adaptive=True, dt=0.25, dt_min=0.2, rtol=1e-9, atol=1e-9)
    with pytest.warns(UserWarning, match="Hitting minimum allowed step size"):
        ys, _ = Own(base_sde.ForwardSDE(SDE("ito", "additive")), **kwargs).integrate(Y0, TS, ())
    assert ys.isfinite().all()


def test_a_solver_without_its_attributes_is_refused():
    class Short(BaseSDESolver):
        sde_type = "ito"

        def step(self, t0, t1, y0, extra0):
            return y0, ()

    with pytest.raises(NotImplementedError, match="Short must have the attributes strong_order, weak_order, noise"):
        Short(base_sde.ForwardSDE(SDE()), **settings_of(make_path("diagonal")))
    with pytest.raises(TypeError):
        BaseSDESolver(base_sde.ForwardSDE(SDE()), **settings_of(make_path("diagonal")))


def test_a_solver_that_only_integrates_differently():
    """A program's subclass of a method's class, which calls `step` from a loop of its own."""

    class Skip(Euler):
        def integrate(self, y0, ts, extra0):
            curr_t, curr_y, ys = ts[0], y0, [y0]
            for out_t in ts[1:]:
                while curr_t < out_t:
                    next_t = min(curr_t + self.dt, ts[-1])
                    prev_t, prev_y = curr_t, curr_y
                    curr_y, extra0 = self.step(curr_t, next_t, curr_y, extra0)
                    curr_t = next_t
                ys.append(interp.linear_interp(t0=prev_t, y0=prev_y, t1=curr_t, y1=curr_y, t=out_t))
            return torch.stack(ys, dim=0), extra0

    # The path comes later than the solver, as in one published program.
    later = Namespace(levy_area_approximation=settings.LEVY_AREA_APPROXIMATIONS.none)
    solver = Skip(sde=base_sde.ForwardSDE(SDE()), **settings_of(later))
    solver.bm = make_path("diagonal")
    expected = ours.sdeint(SDE(), Y0, TS, solver.bm, "euler", 1 / 16)
    torch.testing.assert_close(solver.integrate(Y0, TS, ())[0], expected)
    numbers = [0.0, 0.25, 0.5, 0.75, 1.0]  # a loop may work on numbers
    y = Y0
    for t0, t1 in pairwise(numbers):
        y, _ = solver.step(t0, t1, y, ())
    torch.testing.assert_close(y, ours.sdeint(SDE(), Y0, TS, solver.bm, "euler", 1 / 4)[-1])


@pytest.mark.parametrize("logqp", [False, True])
@pytest.mark.parametrize(
    ("sde_type", "method", "noise_type"), [("ito", None, "diagonal"), ("stratonovich", "log_ode", "scalar")]
)
def test_the_parts_of_sdeint(sde_type, method, noise_type, logqp):
    """A program's own `sdeint`, made of torchsde's parts."""
    sde = SDE(sde_type, noise_type)
    checked = sdeint_module.check_contract(sde, Y0, TS.tolist(), None, method, False, None, None, logqp)
    forward, y0, ts, bm, method, options = checked
    other = their("_core.sdeint").check_contract(sde, Y0, TS.tolist(), None, method, False, None, None, logqp)
    assert tuple(bm.shape) == tuple(other[3].shape) and bm.dtype == D and method == other[4] and options == other[5]
    assert bm.levy_area_approximation == other[3].levy_area_approximation
    torch.testing.assert_close([y0, ts], list(other[1:3]))
    cls = methods.select(method=method, sde_type=forward.sde_type)
    solver = cls(sde=forward, **settings_of(bm, options=options))
    ys, extra = solver.integrate(y0, ts, solver.init_extra_solver_state(ts[0], y0))
    mine = sdeint_module.parse_return(y0, ys, extra, True, logqp)
    expected = ours.sdeint(sde, Y0, TS, bm, method, 1 / 16, logqp=logqp, extra=True)
    torch.testing.assert_close(list(mine[:-1]), list(expected[:-1]))
    parsed = their("_core.sdeint").parse_return(y0, ys, extra, False, logqp)
    torch.testing.assert_close(sdeint_module.parse_return(y0, ys, extra, False, logqp), parsed)
    with pytest.raises(ValueError, match="bm has shape"):
        wrong = noise.BrownianInterval(0.0, 1.0, size=(7, 2), dtype=D)
        sdeint_module.check_contract(SDE(), Y0, TS, wrong, "euler", False, None, None, False)


@pytest.mark.parametrize("name", ["sra1", "sra2", "sra3", "srid1", "srid2"])
def test_tableaus(name):
    """torchsde's SRA2 and SRA3, which it never uses, have the other sign in beta2, against a condition of order 1.5."""
    other = their(f"_core.methods.tableaus.{name}")
    mine = importlib.import_module(f"torchivp.compat.torchsde._core.methods.tableaus.{name}")
    names = [key for key in vars(other) if not key.startswith("_")]
    assert {"STAGES", "A0", "beta2"} <= set(names)
    for key in names:
        expected = getattr(other, key)
        if key == "beta2" and name in ("sra2", "sra3"):
            expected = tuple(-x for x in expected)
        assert getattr(mine, key) == expected, key


def test_the_way_back_of_reversible_heun_is_no_solver_by_itself():
    theirs_too = their("_core.methods.reversible_heun").AdjointReversibleHeun
    for select, cls in ((methods.select, methods.AdjointReversibleHeun), (their("_core.methods").select, theirs_too)):
        assert select("adjoint_reversible_heun", "stratonovich") is cls
        assert cls.sde_type == "stratonovich" and "general" in cls.noise_types
        with pytest.raises(ValueError, match="adjoint_reversible_heun can only be used for adjoint_method"):
            cls(base_sde.ForwardSDE(SDE("stratonovich")), bm=None, dt=0.1)


def test_intervals_of_a_brownian_interval():
    trees = []
    for library in (ours, theirs):
        interval = their("_brownian.brownian_interval") if library is theirs else brownian_interval
        bm = library.BrownianInterval(0.0, 1.0, size=(3, 2), entropy=4, levy_area_approximation="foster", dtype=D)
        assert isinstance(bm, interval._Interval)
        parts = bm._loc(0.25, 0.75)
        assert all(isinstance(part, interval._Interval) for part in parts)
        seen = []
        for part in (bm, *parts, bm._left_child, bm._right_child):
            W, H, A = part._increment_and_levy_area()
            seen.append((part._start, part._end, part._midway, W, H, A))
        assert bm._right_child._parent is bm and bm._left_child._is_left and not bm._right_child._is_left
        trees.append(seen)
    torch.testing.assert_close(*trees, rtol=1e-14, atol=0)
