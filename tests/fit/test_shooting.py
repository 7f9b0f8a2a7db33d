"""Multiple shooting: its linear algebra, its derivatives, and fits that a path from one initial state does not find."""

import re

import numpy as np
import pandas as pd
import pytest

from compilers import needs_compiler
from simulated import simulate
from torchivp import fit
from torchivp.fitting import read_data
from torchivp.fitting.choices import Choices, list_quantities
from torchivp.fitting.data import read_doses
from torchivp.fitting.levels import read_levels
from torchivp.fitting.misfit import Misfit
from torchivp.fitting.searching.optimise import Search, Weighing
from torchivp.fitting.searching.segments import split
from torchivp.fitting.searching.shooting import _Reduced, _Shooter, shoot
from torchivp.fitting.solving.inputs import read_inputs
from torchivp.fitting.solving.kernels import ModelKernel
from torchivp.fitting.solving.stretches import Accuracy
from torchivp.models import Equations, FitzHughNagumo, Lorenz, LotkaVolterra, Pendulum

pytestmark = needs_compiler

ORAL = """
gut' = -ka*gut
body' = ka*gut - ke*body
ka = 1
ke = 0.3
gut(0) = 0
body(0) = 0.1
positive: body
"""
DOSES = {"time": [0.0, 6.0, 10.0], "amount": [4.0, 6.0, 3.0], "state": ["gut"] * 3}


def search_for(model, table, choices, *, doses=None, jump_times=(), rtol=1e-9, **reading):
    model = model.double()
    states = list(model.states)
    data = read_data(table, states, **reading)
    names = [series.name for series in data.trajectories]
    schedule = None if doses is None else read_doses(doses, names, states)
    quantities = list_quantities(model, data, choices)
    inputs = read_inputs(jump_times, schedule, names)
    misfit = Misfit(model, data, quantities, Accuracy("dopri8", rtol, rtol / 10, 10_000), inputs)
    misfit.use(ModelKernel(model, "dopri8"))
    levels = read_levels(data, "normal", 0.3, misfit.measured())
    return Search(misfit, levels, lambda *_: None, 100), Weighing(levels, np.ones(0))


@pytest.fixture(scope="module")
def oral():
    """Two series of a drug that enters through a hidden state, with doses within segments and at a border."""
    rng = np.random.default_rng(0)
    parts = [
        pd.DataFrame({"time": np.linspace(0, end, count), "level": 1 + rng.random(count), "who": who})
        for who, end, count in (("a", 12.0, 13), ("b", 15.0, 16))
    ]
    choices = Choices(free="all", priors={"ke": (0.3, 0.1)}, parameters={"scale": 2.0})
    return search_for(
        Equations(ORAL),
        pd.concat(parts),
        choices,
        doses=DOSES,
        trajectory="who",
        observe={"level": "scale * body"},
    )


def shooter_at(search, weighing):
    segments = split(search.misfit)
    shooter = _Shooter(search, segments, weighing, "")
    point = shooter.begin(search.misfit.quantities.theta() + 0.1)
    assert point is not None
    rng = np.random.default_rng(1)
    return shooter, shooter._solved(point.theta, point.nodes + 0.05 * rng.standard_normal(point.nodes.shape))


def test_segments_begin_where_no_input_acts_and_have_every_value_once(oral):
    search, _ = oral
    segments = split(search.misfit)
    starts = [part.t[0] for part, later in zip(segments.data.trajectories, segments.later, strict=True) if later]
    assert starts and not set(starts) & set(DOSES["time"])
    whole = [series.values[:, 0] for series in search.misfit.data.trajectories]
    for chain, values in zip(segments.chains, whole, strict=True):
        own = [segments.data.trajectories[i].values[:, 0] for i in chain]
        np.testing.assert_array_equal(np.concatenate([part[np.isfinite(part)] for part in own]), values)


def test_residuals_and_gaps_have_the_derivatives_of_their_differences(oral):
    shooter, point = shooter_at(*oral)
    n, (count, states) = len(point.theta), point.nodes.shape

    def numbers(change):
        theta = point.theta + change[:n] * shooter.quantities.magnitudes
        at = shooter._solved(theta, point.nodes + change[n:].reshape(count, states))
        return np.concatenate([at.rows.ravel(), at.gaps.ravel(), at.priors[0]])

    by_difference = np.stack(
        [(numbers(1e-5 * d) - numbers(-1e-5 * d)) / 2e-5 for d in np.eye(n + count * states)], axis=1
    )
    assert np.abs(by_difference).max() > 1
    np.testing.assert_allclose(dense(point), by_difference, rtol=1e-4, atol=1e-4)


def dense(point):
    """The whole Jacobian of residuals, gaps and priors by quantities and all nodes."""
    n, (count, states) = len(point.theta), point.nodes.shape
    m = point.rows.shape[1]
    rows, gaps = np.zeros((count, m, n + count * states)), np.zeros((count, states, n + count * states))
    rows[..., :n], gaps[..., :n] = point.slopes[..., :n], point.gap_slopes[..., :n]
    for i in range(count):
        own = slice(n + i * states, n + (i + 1) * states)
        rows[i, :, own], gaps[i, :, own] = point.slopes[i, :, n:], point.gap_slopes[i, :, n:]
        if i + 1 < count:
            gaps[i, :, own.stop : own.stop + states] = np.diag(point.node_slopes[i])
    priors = np.concatenate([point.priors[1], np.zeros((len(point.priors[1]), count * states))], 1)
    return np.concatenate([rows.reshape(count * m, -1), gaps.reshape(count * states, -1), priors])


@pytest.mark.parametrize("weight", [0.1, 1e6])
def test_a_step_is_the_solution_of_the_whole_least_squares_problem(oral, weight):
    shooter, point = shooter_at(*oral)
    n, (count, states) = len(point.theta), point.nodes.shape
    held = np.arange(n) == 1
    reduced = _Reduced(point, held, weight)
    quantities, nodes = reduced.step(shooter.segments.chains, 2.0, 0.5)

    whole = dense(point)
    root = np.ones(len(whole))
    root[point.rows.size : point.rows.size + point.gaps.size] = np.sqrt(weight)
    values = np.concatenate([point.rows.ravel(), point.gaps.ravel(), point.priors[0]])
    moved = np.append(~held, np.ones(count * states, dtype=bool))
    damping = np.diag(np.sqrt(np.append(np.full(n, 2.0), np.full(count * states, 0.5))))[:, moved]
    table = np.concatenate([root[:, None] * whole[:, moved], damping])
    expected = np.zeros(len(moved))
    expected[moved] = np.linalg.lstsq(table, -np.concatenate([root * values, np.zeros(len(damping))]), rcond=None)[0]
    np.testing.assert_allclose(np.append(quantities, nodes), expected, rtol=1e-6, atol=1e-8)
    linear = np.sum((root * (values + whole @ expected)) ** 2)
    assert reduced.cost(quantities, nodes) == pytest.approx(linear, rel=1e-6)


class RealLorenz(Lorenz):
    positive = ()


FAR = [
    pytest.param(RealLorenz(0.0, 0.5, 0.1), Lorenz(10, 28, 2.66), [1.0, 0.0, 0.0], id="Lorenz"),
    pytest.param(LotkaVolterra(5, 5, 5, 5), LotkaVolterra(1.5, 1, 3, 1), [1.0, 1.0], id="Lotka-Volterra"),
    pytest.param(
        FitzHughNagumo(1.75, 2.0, 0.2, 1.25),
        FitzHughNagumo(0.7, 0.8, 0.08, 0.5),
        [1.0, 1.0],
        id="FitzHugh-Nagumo",
        marks=pytest.mark.sweep,
    ),
]


@pytest.mark.parametrize(("begin", "truth", "y0"), FAR)
def test_segments_come_together_at_the_truth_from_far_away(begin, truth, y0):
    """From where others start, by solves of little accuracy."""
    table = simulate(truth, np.linspace(0, 30, 601), y0)
    fixed = dict(zip(truth.states, y0, strict=True))
    search, weighing = search_for(begin, table, Choices(fixed=fixed, start=begin.values()), rtol=1e-6)
    joined = shoot(search, search.misfit.quantities.theta(), weighing, "")
    np.testing.assert_allclose(
        search.misfit.quantities.free_values(joined.theta), list(truth.values().values()), rtol=1e-3
    )


@pytest.mark.slow
def test_a_long_chaotic_series_from_a_bad_start():
    """3001 points without noise from (0, 0.5, 0.1), as published: the search begins nowhere else."""
    truth, begin = Lorenz(10, 28, 2.66), RealLorenz(0.0, 0.5, 0.1)
    table = simulate(truth, np.linspace(0, 30, 3001), [1.0, 0.0, 0.0])
    fixed = {"x": 1.0, "y": 0.0, "z": 0.0}
    result = fit(begin, table, fixed=fixed, start=begin.values(), method="dopri8", backend="fused")
    for name, value in truth.values().items():
        assert result[name].value == pytest.approx(value, rel=1e-6)


def test_chaos_from_a_start_whose_path_dies_out():
    """At the start, the path comes to rest. One path ends in a wrong optimum, segments do not."""
    truth, begin = Lorenz(10, 28, 2.66), RealLorenz(0.0, 0.5, 0.1)
    table = simulate(truth, np.linspace(0, 15, 601), [1.0, 0.0, 0.0], noise=0.3)
    options = {"fixed": {"x": 1.0, "y": 0.0, "z": 0.0}, "start": begin.values(), "method": "dopri8"}
    single = fit(begin, table, shooting="single", backend="fused", **options)
    assert abs(single["rho"].value - 28) > 5
    for shooting in ("auto", "multiple"):
        result = fit(begin, table, shooting=shooting, backend="fused", **options)
        assert result.converged
        for name, value in truth.values().items():
            assert result[name].value == pytest.approx(value, abs=4 * result[name].standard_error)
        np.testing.assert_allclose(result.sigma, 0.3, rtol=0.1)
    assert "shooting='multiple'" in result.call


def swings(end=100, count=401):
    t = np.linspace(0, end, count)
    return simulate(Pendulum(length=1.0, damping=0.01), t, [1.0, 0.0], noise=0.02)[["time", "angle"]]


@pytest.mark.parametrize("length", [pytest.param(0.5, marks=pytest.mark.sweep), 2.0])
def test_a_wrong_frequency_is_mended_where_one_path_is_caught_in_a_local_minimum(length):
    """The velocity is hidden, and the path at the start is fifteen swings or more off at the end."""
    search, weighing = search_for(
        Pendulum(), swings(), Choices(free="all", start={"length": length, "damping": 0.01}), rtol=1e-6
    )
    theta = search.misfit.quantities.theta()
    caught = search.minimise(theta, weighing, "", tolerance=1e-5, max_iterations=60)
    joined = shoot(search, theta, weighing, "")
    left = search.minimise(joined.theta, weighing, "", tolerance=1e-8)
    assert caught.cost > 100 * left.cost
    assert left.cost == pytest.approx(joined.left, rel=1e-2)
    found, damping, *_ = search.misfit.quantities.free_values(joined.theta)
    assert found == pytest.approx(1.0, rel=1e-3)
    assert damping == pytest.approx(0.01, rel=0.05)


def test_the_way_to_the_optimum_leaves_no_trace_in_it():
    """Of series with doses, a hidden state, bounds and a prior."""
    t = np.linspace(0.5, 15, 30)
    later = [np.maximum(t - dose, 0) for dose in DOSES["time"]]
    level = sum(
        amount * 1.2 / (1.2 - 0.4) * (np.exp(-0.4 * each) - np.exp(-1.2 * each))
        for each, amount in zip(later, DOSES["amount"], strict=True)
    )
    noise = 0.1 * np.random.default_rng(0).standard_normal((2, len(t)))
    parts = [
        pd.DataFrame({"time": [0.0, *t], "body": [np.nan, *(level + own)], "who": who})
        for who, own in zip("ab", noise, strict=True)
    ]
    options = {
        "trajectory": "who",
        "doses": pd.concat([pd.DataFrame(DOSES).assign(who=who) for who in "ab"]),
        "fixed": {"gut": 0.0, "body": 1e-9},
        "bounds": {"ka": (0.5, 3.0)},
        "priors": {"ke": (0.4, 0.05)},
        "start": {"ka": 2.5, "ke": 0.1},
        "backend": "fused",
    }
    one, many = (fit(Equations(ORAL), pd.concat(parts), shooting=each, **options) for each in ("single", "multiple"))
    assert one.converged and many.converged
    assert many.nll == pytest.approx(one.nll, abs=1e-6)
    for name in ("ka", "ke"):
        assert many[name].value == pytest.approx(one[name].value, rel=1e-5)
        assert many[name].standard_error == pytest.approx(one[name].standard_error, rel=1e-4)


def test_a_fit_by_segments_goes_on_from_its_journal(tmp_path):
    options = {"start": {"length": 2.0, "damping": 0.05}, "shooting": "multiple", "fixed": {"velocity": 0.0}}
    options |= {"method": "dopri8", "backend": "fused"}
    table = swings(12, 61)
    whole, again = (fit(Pendulum(), table, checkpoint=tmp_path / "journal", **options) for _ in range(2))
    assert again.theta.tolist() == whole.theta.tolist()
    assert again.solves < 0.5 * whole.solves


def refused(words, error=ValueError):
    return pytest.raises(error, match=re.escape(words))


def test_what_multiple_shooting_cannot_do_is_refused():
    table = swings(40, 201)
    with refused("shooting must be one of 'auto', 'single', 'multiple', got 'double'"):
        fit(Pendulum(), table, shooting="double")
    with refused("starts=5 searches from many starts by single shooting: leave out shooting='multiple', or starts"):
        fit(Pendulum(), table, shooting="multiple", starts=5)
    with refused(
        "shooting='multiple' needs a time series with 9 different times or more, not all of them those of inputs, and "
        "the longest has 5"
    ):
        fit(Pendulum(), table[:5], shooting="multiple", fixed={"velocity": 0.0, "angle": 1.0})
