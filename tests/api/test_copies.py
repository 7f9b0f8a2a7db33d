"""Everything that torchivp returns or raises can be copied, pickled and sent to another process."""

import copy
import importlib
import inspect
import multiprocessing
import pickle
import pkgutil
import warnings
from functools import cache
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pandas
import pytest
import torch

import torchivp
from simulated import simulate
from torchivp import Event, Scheduled, SolveError, solve_ivp
from torchivp.compat import torchdiffeq, torchsde
from torchivp.ensembles.executors import WorkersDied
from torchivp.expressions import ExpressionError
from torchivp.fitting.searching.target import Settled
from torchivp.fused.compiler import CompileError, NoCompiler
from torchivp.fused.nvidia import GpuError
from torchivp.fused.refusal import CannotFuse, FuncFails
from torchivp.fused.solve import OutOfOrder
from torchivp.models import LotkaVolterra

D = torch.float64


def field(t, y):
    return -y


def explosion(t, y):
    return y**2


def decay(t, y):
    return -y


def unseen(t, y):
    return -y.detach()


def level(t, y):
    return y[..., 0] - 0.5


def doubled(t, y):
    return 2 * y


def dosed(t, y, amount):
    return y + amount


class Noisy(torchivp.SDEIto):
    def __init__(self):
        super().__init__("diagonal")
        self.rate = torch.nn.Parameter(torch.ones((), dtype=D))

    def f(self, t, y):
        return -self.rate * y

    def g(self, t, y):
        return 0.1 * y


class Rotating(torchivp.SDEStratonovich):
    def f(self, t, y):
        return -y

    g = f


class Recorded(torchivp.BaseSDE):
    f = g = field


def raised(solve, *args, **options):
    with pytest.raises((SolveError, torchivp.DataError, ValueError)) as caught:
        solve(*args, **options)
    return caught.value


def solutions():
    """Solutions of every kind: of every method, of rows, with events, and as nodes of a graph."""
    y0 = torch.ones(2, dtype=D)
    for name, method in torchivp.ODE_METHODS.items():
        steps = {} if method.error_order is not None or method.sizes_steps else {"step_size": 0.1}
        yield solve_ivp(field, (0.0, 1.0), y0, method=name, dense_output=True, rtol=1e-3, **steps)
        if method.differentiable:
            yield solve_ivp(
                field, (0.0, 1.0), y0.clone().requires_grad_(), method=name, dense_output=True, rtol=1e-3, **steps
            )
    yield solve_ivp(lambda t, y: {"a": -y["a"]}, (0.0, 1.0), {"a": y0}, dense_output=True)
    events = [Event(level, apply=doubled), Scheduled([0.2], dosed, values=torch.ones(1, 2))]
    for gradient in ("direct", "checkpointed", "backsolve", "forward"):
        one, many = (torch.ones(shape, dtype=D, requires_grad=True) for shape in (2, (3, 2)))
        yield solve_ivp(field, (0.0, 1.0), one, gradient=gradient)
        yield solve_ivp(field, (0.0, 1.0), one, gradient=gradient, events=events)
        yield solve_ivp(field, (0.0, 1.0), many, gradient=gradient, events=Event(level), batch_dims=1)


def paths():
    interval = torchivp.BrownianInterval(0.0, 1.0, (2, 2), dtype=D, levy_area_approximation="foster")
    tree = torchivp.BrownianTree(0.0, torch.zeros(2, dtype=D))
    path = torchivp.BrownianPath(0.0, torch.zeros(2, dtype=D))
    for made in (interval, tree, path):
        made.increment(0.1, 0.3)  # remembers what it made
        yield made
    yield torchivp.ReverseBrownian(path)


@cache
def examples():
    """What programs get, or make, of every public class."""
    model = LotkaVolterra()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = torchivp.fit(
            model,
            simulate(model, np.linspace(0.0, 8.0, 9), noise=0.01),
            free=["alpha"],
            start={"alpha": 1.0},
            backend="eager",
        )
    solved = list(solutions())
    return [
        *solved,
        *paths(),
        fitted,
        raised(solve_ivp, explosion, (0.0, 3.0), torch.ones(2, dtype=D)),
        raised(solve_ivp, explosion, (0.0, 3.0), torch.ones(2, 2, dtype=D), batch_dims=1),
        raised(torchivp.sdeint, Noisy(), torch.ones(1, 1), [0.0, 1.0], adaptive=True, options={"max_num_steps": 1}),
        raised(solve_ivp, unseen, (0.0, 1.0), torch.ones(2, dtype=D), method="rodas5p"),
        raised(torchivp.fit, model, pandas.DataFrame()),
        raised(torchdiffeq.odeint, explosion, torch.ones(2, dtype=D), torch.tensor([0.0, 3.0])),
        raised(torchsde.sdeint, Noisy(), torch.ones(1, 1), [0.0, 1.0], adaptive=True, options={"max_num_steps": 1}),
        CannotFuse("func draws random numbers"),
        Settled(1.0),
        FuncFails("func fails"),
        WorkersDied("three workers died of rows 0 to 9"),
        ExpressionError("unknown function"),
        CompileError("error: expected ';'"),
        NoCompiler("there is no compiler"),
        GpuError("the driver refuses", out_of_memory=True),
        OutOfOrder(),
        Event(level, apply=doubled),
        Scheduled([0.2], dosed, values=torch.ones(1, 2)),
        torchivp.steady_state(decay, torch.ones(2, dtype=D)),
        solved[-1].events,
        solved[0].status,
        solved[0].stats,
        solved[0].status.outcome,
        *torchivp.sde_methods(),
        Noisy(),
        Rotating("diagonal"),
        Recorded("diagonal", "ito"),
        torchivp.Backsolve(rtol=1e-3),
        torchivp.Checkpointed(20),
        torchivp.Forward(50),
        torchivp.ConstantSteps(0.1),
        torchivp.Direct(),
        torchivp.GridSteps(),
        torchivp.PIController(),
        torchivp.PIDController(),
        *(made() for made in torchivp.MODELS.values()),
    ]


def classes_of(value):
    """The classes that a public name stands for: itself, or the entries of a table."""
    return [x for x in (value.values() if isinstance(value, dict) else [value]) if inspect.isclass(x)]


def errors():
    """Every public exception class of the package."""
    for module in pkgutil.walk_packages(torchivp.__path__, "torchivp."):
        for name, value in vars(importlib.import_module(module.name)).items():
            public = inspect.isclass(value) and value.__module__.startswith("torchivp") and not name.startswith("_")
            if public and issubclass(value, BaseException):
                yield value


def test_there_is_an_example_of_every_public_class_and_error():
    public = {c for name in torchivp.__all__ for c in classes_of(getattr(torchivp, name))} | set(errors())
    methods = {*torchivp.ODE_METHODS.values(), *torchivp.SDE_METHODS.values()}  # classes, that travel by their names
    shown = {base for example in examples() for base in type(example).__mro__}
    assert {c.__name__ for c in public - methods - shown} == set()


def test_every_public_name_travels():
    for name in torchivp.__all__:
        value = getattr(torchivp, name)
        back = pickle.loads(pickle.dumps(value))
        assert back is value or (isinstance(value, dict) and back == value), name


def assert_same(copied, original, seen=None):
    """Of one class and with the same content, all the way down; tensors without their graph."""
    seen = set() if seen is None else seen
    if id(original) in seen or copied is original:
        return
    seen.add(id(original))
    assert type(copied) is type(original)
    if isinstance(original, torch.Tensor):
        assert copied.is_leaf
        assert copied.dtype == original.dtype
        torch.testing.assert_close(copied.detach(), original.detach(), rtol=0, atol=0, equal_nan=True)
    elif isinstance(original, np.ndarray) and original.dtype != object:
        np.testing.assert_array_equal(copied, original)
    elif isinstance(original, dict):
        assert list(copied) == list(original)
        for key, value in original.items():
            assert_same(copied[key], value, seen)
    elif isinstance(original, list | tuple):
        for a, b in zip(copied, original, strict=True):
            assert_same(a, b, seen)
    elif isinstance(original, int | float | str):
        assert copied == original or copied != copied  # or NaN
    else:
        for a, b in zip(content(copied), content(original), strict=True):
            assert_same(a, b, seen)


def content(x):
    if isinstance(x, BaseException):
        return [str(x), list(x.args), vars(x)]
    names = [name for c in type(x).__mro__ for name in getattr(c, "__slots__", ())]
    return [*(getattr(x, name) for name in names if hasattr(x, name)), getattr(x, "__dict__", {})]


WAYS = {
    "copy.deepcopy": copy.deepcopy,
    **{
        f"pickle {protocol}": lambda x, protocol=protocol: pickle.loads(pickle.dumps(x, protocol))
        for protocol in (2, pickle.HIGHEST_PROTOCOL)
    },
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("way", WAYS)
def test_everything_returned_or_raised_can_be_copied(way):
    for example in examples():
        assert_same(WAYS[way](example), example)


def test_a_copy_of_dense_output_gives_the_same_states():
    for solution in solutions():
        if isinstance(solution, torchivp.Solution) and solution.sol:
            t = torch.linspace(0.0, 1.0, 7, dtype=D)
            assert_same(copy.deepcopy(solution).sol(t), solution.sol(t))


def test_a_copy_holds_no_graph_and_a_shallow_one_does():
    y0 = torch.ones(2, dtype=D, requires_grad=True)
    solution = solve_ivp(field, (0.0, 1.0), y0, dense_output=True)
    assert not copy.deepcopy(solution).y.requires_grad
    assert not copy.deepcopy(solution).sol(0.5).requires_grad
    assert copy.copy(solution).y is solution.y


def test_an_error_keeps_its_status_and_what_was_added_to_it():
    error = raised(solve_ivp, explosion, (0.0, 3.0), torch.ones(2, dtype=D))
    error.add_note("row 7")
    for way in WAYS.values():
        again = way(error)
        assert type(again) is SolveError
        assert str(again) == str(error) == error.status.message
        assert again.status == error.status
        assert again.__notes__ == ["row 7"]


def echo(x):
    return x


def solve_in_worker(end):
    return solve_ivp(explosion, (0.0, end), torch.ones(2, dtype=D), t_eval=[end])


def test_dense_output_of_many_steps_needs_no_file_for_every_tensor():
    resource = pytest.importorskip("resource")
    solution = solve_ivp(field, (0.0, 1.0), torch.ones(2, dtype=D), method="rk4", step_size=1e-3, dense_output=True)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        assert len(ForkingPickler.dumps(solution)) > 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_everything_returned_or_raised_travels_to_a_process_and_back():
    """A pool that cannot unpickle what a worker raised waits for ever."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        for copied, original in zip(pool.map_async(echo, examples()).get(timeout=60), examples(), strict=True):
            assert_same(copied, original)
        (solution,) = pool.map_async(solve_in_worker, [0.5]).get(timeout=60)
        torch.testing.assert_close(solution.y, torch.full((1, 2), 2.0, dtype=D), rtol=1e-5, atol=0)
        with pytest.raises(SolveError, match=r"not finite|underflow") as caught:
            pool.map_async(solve_in_worker, [3.0]).get(timeout=60)
        assert caught.value.status.t == pytest.approx(1.0, abs=1e-3)
