"""Brownian motions give the numbers of torchsde's own, bit for bit; where they do not, a test says what is wanted."""

import copy
import io
import math
import pickle
import random
import sys
import warnings
from contextlib import redirect_stdout
from itertools import pairwise

import numpy as np
import pytest
import torch
import torchsde as theirs

from problems import covering
from torchivp.compat.torchsde import _brownian as ours
from torchivp.compat.torchsde._brownian import brownian_interval
from torchivp.compat.torchsde._brownian.interval_tree import IntervalTree

D = torch.float64
LEVY = ["none", "space-time", "davie", "foster"]
SHAPES = [(), (3,), (4, 2), (2, 3, 4, 5)]
ORDERS = ["forward", "backward", "random", "walk", "coarse", "nested"]

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*point evaluation",
    "ignore:.*answers queries of intervals",
    "ignore:Should have ta>=t0 but got ta=0.0299999",
)


def queries(order, n, t0=0.0, t1=1.0, seed=0):
    r = random.Random(f"{order}{n}{seed}")
    grid = [t0 + (t1 - t0) * i / n for i in range(n + 1)]
    if order == "forward":
        return list(pairwise(grid))
    if order == "backward":
        return list(pairwise(grid))[::-1]
    if order == "random":
        return [tuple(sorted((r.uniform(t0, t1), r.uniform(t0, t1)))) for _ in range(n)]
    if order == "coarse":  # repeats, shares ends, has length 0
        return [tuple(sorted((round(r.uniform(t0, t1), 1), round(r.uniform(t0, t1), 1)))) for _ in range(n)]
    if order == "nested":
        middle, half = (t0 + t1) / 2, (t1 - t0) / 2
        return [(middle - half * 0.9**i, middle + half * 0.93**i) for i in range(min(n, 100))]
    found, t = [], t0
    while len(found) < n:  # adjacent ones of all lengths, and earlier ones again
        end = t + (0.1 + 0.9 * r.random()) * (t1 - t0) / n
        found.append((t, end))
        t = end
        if r.random() < 0.2:
            found.append(r.choice(found))
    return found


def assert_same(mine, other, what=None):
    mine, other = (x if isinstance(x, tuple) else (x,) for x in (mine, other))
    assert len(mine) == len(other)
    for a, b in zip(mine, other, strict=True):
        assert (a is None) == (b is None), what
        if a is not None:
            assert a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b), what


def compare(t0, t1, asked, **options):
    pair = [module.BrownianInterval(t0, t1, **options) for module in (ours, theirs)]
    for i, (ta, tb) in enumerate(asked):
        assert_same(*(bm(ta, tb, return_U=True, return_A=ta < tb) for bm in pair), (i, ta, tb))


# The same numbers as torchsde


def test_known_values():
    tree = ours.BrownianTree(0.0, torch.zeros(2), entropy=1)(0.0, 0.5)
    interval = ours.BrownianInterval(0.0, 1.0, size=(2,), entropy=1)(0.0, 0.5)
    assert torch.allclose(tree, torch.tensor([0.3239, 0.4195]), atol=1e-4)
    assert torch.allclose(interval, torch.tensor([-0.3276, -0.2680]), atol=1e-4)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("levy", LEVY)
def test_every_order_and_levy_area(order, levy):
    for shape in SHAPES:
        compare(0.0, 1.0, queries(order, 25), size=shape, entropy=5, levy_area_approximation=levy)


@pytest.mark.parametrize(("order", "cache_size"), covering(ORDERS, ["random", "walk"], [None, 2, 7, 45, 300]))
def test_tree_adapted_to_observed_queries(order, cache_size):
    asked = queries("random", 20, -2.0, 3.5) + queries(order, 300, -2.0, 3.5) + queries("walk", 30, -2.0, 3.5)
    compare(-2.0, 3.5, asked, size=(2,), entropy=11, cache_size=cache_size)


@pytest.mark.parametrize("cache_size", [0, 1])
def test_hardly_a_cache(cache_size):
    compare(0.0, 1.0, queries("walk", 60), size=(2,), entropy=11, cache_size=cache_size)


def test_lengths_that_shrink_refine_the_tree_again():
    asked = [q for n in (120, 400, 900) for q in queries("walk", n, seed=n)]
    compare(0.0, 1.0, asked, size=(), entropy=2, cache_size=10)


@pytest.mark.parametrize(
    ("order", "dt"), covering(ORDERS, ["random", "walk"], [2.0, 0.3, 0.01, torch.tensor(1e-3)]), ids=str
)
def test_dt_hint(order, dt):
    asked = queries(order, 60)
    compare(0.0, 1.0, asked, size=(2,), entropy=3, dt=dt, cache_size=7, levy_area_approximation="space-time")


@pytest.mark.parametrize("tol", [1e-3, 1e-6, 5e-5])
@pytest.mark.parametrize("halfway", [True, False])
@pytest.mark.parametrize("levy", ["none", "foster"])
def test_rounded_times(tol, halfway, levy):
    asked = [(a, b) for order in ORDERS for a, b in queries(order, 10, 0.03, 14.6) if b - a > 2 * tol or a == b]
    options = {"size": (2, 2), "entropy": 9, "tol": tol, "halfway_tree": halfway, "levy_area_approximation": levy}
    compare(0.03, 14.6, asked, **options)


def test_queries_that_round_to_length_zero_leave_the_tree_of_torchsde():
    r = random.Random(0)
    asked = [(t, t + 1e-5) for t in (r.random() * 0.9 for _ in range(40))]
    asked = [q for pair in zip(asked, queries("random", 40), strict=True) for q in pair]
    compare(0.0, 1.0, asked, size=(2,), entropy=9, tol=1e-3, levy_area_approximation="space-time")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, D])
@pytest.mark.parametrize("shape", SHAPES)
def test_dtypes(dtype, shape):
    asked = queries("coarse", 20) + queries("random", 10)
    compare(0.0, 1.0, asked, size=shape, dtype=dtype, entropy=4, levy_area_approximation="foster")


def test_complex_samples():
    compare(0.0, 1.0, queries("random", 20), size=(3, 2), dtype=torch.complex64, entropy=4)


@pytest.mark.parametrize("given", ["W", "H", "WH"])
@pytest.mark.parametrize("halfway", [True, False])
def test_known_increment(given, halfway):
    known = {name: torch.linspace(-1, 1, 6, dtype=D).reshape(3, 2) * (1 + ord(name)) for name in given}
    options = {"tol": 1e-6, "halfway_tree": True} if halfway else {}
    compare(0.0, 2.0, queries("random", 30, 0.0, 2.0), entropy=6, levy_area_approximation="davie", **known, **options)
    bm = ours.BrownianInterval(0.0, 2.0, levy_area_approximation="space-time", entropy=1, **known)
    W, U = bm(0.0, 2.0, return_U=True)
    assert "W" not in known or torch.equal(W, known["W"])
    assert "H" not in known or torch.allclose(U / 2 - W / 2, known["H"])


@pytest.mark.parametrize("entropy", [0, 1, 2**31 - 2, 2**63 - 1, 2**80, [3, 4, 5]])
@pytest.mark.parametrize("pool_size", [4, 8, 24])
def test_entropies(entropy, pool_size):
    compare(0.0, 1.0, queries("random", 10), size=(2,), entropy=entropy, pool_size=pool_size)


def test_random_sequences_of_queries():
    for seed in range(40):
        r = random.Random(seed)
        t0, t1 = r.choice([(0.0, 1.0), (-2.0, 3.5), (0.03, 14.6), (100.0, 100.5)])
        asked = queries(r.choice(ORDERS), r.choice([10, 130]), t0, t1, seed)
        options = {
            "size": r.choice(SHAPES),
            "dtype": r.choice([torch.float32, D]),
            "cache_size": r.choice([None, 5, 45]),
            "levy_area_approximation": r.choice(LEVY),
            "dt": r.choice([None, 0.1]),
        }
        compare(t0, t1, asked, entropy=seed, **options)


@pytest.mark.parametrize("w1", [False, True])
@pytest.mark.parametrize("t1", [None, 3.0])
def test_tree(w1, t1):
    w0 = torch.arange(6, dtype=D).reshape(2, 3)
    options = {"entropy": 8, "w1": w0.sin() if w1 else None, "tol": 1e-5, "pool_size": 12}
    pair = [m.BrownianTree(1.0, w0, t1, **options, cache_depth=3, safety=0.1) for m in (ours, theirs)]
    for ta, tb in queries("random", 40, 1.0, t1 or 2.0) + queries("forward", 10, 1.0, t1 or 2.0):
        assert_same(*(bm(ta, tb) for bm in pair))
        assert_same(*(bm(ta) for bm in pair))
        assert_same(*(bm(ta, tb, return_U=True, return_A=True) for bm in pair))
        assert_same(*(bm(tb, return_U=True) for bm in pair))
    if w1:
        assert torch.allclose(pair[0](t1 or 2.0), w0.sin())


def karras(n, low, high, rho=7.0):
    ramp = torch.linspace(0, 1, n)
    low, high = low ** (1 / rho), high ** (1 / rho)
    return torch.cat([(high + ramp * (low - high)) ** rho, torch.zeros(1)])


@pytest.mark.parametrize("schedule", ["karras", "exponential", "half steps"])
@pytest.mark.parametrize("low, high", [(0.0291675, 14.614642), (0.002, 80.0), (0.4, 700.0)])
def test_noise_of_image_samplers(schedule, low, high):
    # The increments between the noise levels of a sampler, from the largest to the smallest, in float32.
    sigmas = karras(20, low, high)
    if schedule == "exponential":
        sigmas = torch.cat([torch.linspace(math.log(high), math.log(low), 20).exp(), torch.zeros(1)])
    if schedule == "half steps":
        between = (sigmas[:-2].log() + sigmas[1:-1].log()).div(2).exp()
        sigmas = torch.stack([sigmas[:-2], between], -1).flatten()
    positive = sigmas[sigmas > 0]
    x = torch.zeros(1, 4, 16, 16)
    bounds = positive.min(), positive.max()
    trees = [m.BrownianTree(bounds[0], x, bounds[1], entropy=1234567890123) for m in (ours, theirs)]
    for now, after in pairwise(positive):
        t0, t1 = min(now, after), max(now, after)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            mine = trees[0](t0, t1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert_same(mine, trees[1](t0, t1))


def test_path():
    w0 = torch.ones(3, 2, dtype=D)
    other = theirs._brownian.BrownianPath(0.5, w0, 4)
    mine = ours.BrownianPath(0.5, w0, 4, entropy=other._interval.entropy)
    for ta, tb in queries("random", 30, 0.5, 1.5) + queries("walk", 200, 0.5, 1.5):
        assert_same(mine(ta, tb), other(ta, tb))
        assert_same(mine(ta), other(ta))
        assert_same(mine(ta, tb, return_U=True, return_A=True), other(ta, tb, return_U=True, return_A=True))


def test_reverse_and_like():
    y = torch.zeros(3, 2, dtype=D)
    pair = [
        m.brownian_interval_like(y, t1=2.0, entropy=3, levy_area_approximation="davie")
        for m in (ours, theirs._brownian)
    ]
    backward = [m.ReverseBrownian(bm) for m, bm in zip((ours, theirs), pair, strict=True)]
    for ta, tb in queries("forward", 20, -2.0, 0.0):
        assert_same(*(bm(ta, tb, return_U=True, return_A=True) for bm in backward))
    assert backward[0].levy_area_approximation == "davie" and backward[0].size() == (3, 2)
    other = ours.brownian_interval_like(y, size=(5,), dtype=torch.float32, device="cpu")
    assert other.shape == (5,) and other.dtype is torch.float32 and other.device == torch.device("cpu")


def test_gradients_reach_a_known_increment():
    grads = []
    for m in (ours, theirs):
        W = torch.ones(2, 1, dtype=D, requires_grad=True)
        bm = m.BrownianInterval(0.0, 1.0, W=W, entropy=1)
        (bm(0.1, 0.4).sum() + bm(0.3, 0.7).sum()).backward()
        grads.append(W.grad)
    assert_same(*grads)


@pytest.mark.parametrize("options", [{}, {"dt": 0.02, "cache_size": 3}, {"halfway_tree": True, "tol": 0.01}])
def test_displayed_tree(options):
    shown = []
    for m in (ours, theirs):
        bm = m.BrownianInterval(0.0, 1.0, size=(), entropy=1, **options)
        for ta, tb in queries("random", 5) + queries("forward", 120)[:: 1 if not options else 40]:
            bm(ta, tb)
        with redirect_stdout(io.StringIO()) as out:
            bm.display_binary_tree()
        shown.append(out.getvalue())
    assert shown[0] == shown[1]


def test_properties():
    pair = [
        m.BrownianInterval(0, torch.tensor(2), (3, 2), D, torch.device("cpu"), 7, 0.1, 1e-4, 9, 11, False, "davie")
        for m in (ours, theirs)
    ]
    names = ["shape", "dtype", "device", "entropy", "levy_area_approximation"]
    for name in [*names, "dt", "tol", "pool_size", "cache_size", "halfway_tree"]:
        assert getattr(pair[0], name) == getattr(pair[1], name)
    assert pair[0].size() == pair[1].size() == (3, 2)
    assert repr(pair[0]) == repr(pair[1])
    for name in ("BrownianPath", "BrownianTree"):
        bm = getattr(ours, name)(0.0, torch.zeros(3, 2, dtype=D), entropy=1)
        assert (bm.shape, bm.size(), bm.dtype, bm.device) == ((3, 2), (3, 2), D, torch.device("cpu"))
        assert bm.levy_area_approximation == "none"
        assert name in repr(bm) and "entropy=1" in repr(bm)
    assert "BrownianInterval" in repr(ours.ReverseBrownian(pair[0]))


# What torchsde does otherwise, or not at all


def test_rounding_errors_outside_the_interval_are_silent():
    low, high = 0.0291675, 14.614642
    makers = [
        lambda: ours.BrownianTree(low, torch.zeros(2), high, entropy=1),
        lambda: ours.BrownianInterval(low, high, size=(2,), entropy=1),
        lambda: ours.BrownianInterval(low, high, size=(2,), entropy=1, tol=0.1, halfway_tree=True),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for make in makers:
            whole = make()(low, high)
            for ta, tb in [(low - 1e-6, high + 1e-6), (float(torch.tensor(low)), float(torch.tensor(high) + 2e-6))]:
                assert torch.allclose(make()(ta, tb), whole, atol=1e-5)
            assert not make()(high, high + 5e-6).any()


@pytest.mark.parametrize("ta, tb, text", [(-0.1, 0.5, "ta>=t0"), (0.5, 1.1, "tb<=t1"), (1.5, 1.6, "ta<=t1")])
def test_queries_outside_are_cut_off_with_a_warning(ta, tb, text):
    pair = [
        m.BrownianInterval(0.0, 1.0, size=(2,), entropy=1, levy_area_approximation="space-time") for m in (ours, theirs)
    ]
    results = []
    for bm in pair:
        with pytest.warns(UserWarning, match=f"Should have {text} but got"):
            results.append(bm(ta, tb, return_U=True))
    assert_same(*results)


def test_point_queries_warn():
    with pytest.warns(UserWarning, match="answers queries of intervals"):
        ours.BrownianInterval(size=(2,))(0.5)
    with pytest.warns(UserWarning, match="Should have ta<=t1"):
        ours.BrownianInterval(size=(2,))(1.5)


@pytest.mark.parametrize("bm", [ours.BrownianInterval(size=()), ours.BrownianPath(0.0, torch.zeros(()))])
def test_order_of_times(bm):
    with pytest.raises(RuntimeError, match="ta <= tb"):
        bm(0.7, 0.2)
    with pytest.raises(ValueError, match="nan"):
        bm(0.2, math.nan)


def test_order_of_times_far_along_a_path():
    with pytest.raises(RuntimeError, match="ta <= tb"):
        ours.BrownianPath(0.0, torch.zeros(2))(9.0, 7.0)
    with pytest.raises(ValueError, match="finite"):
        ours.BrownianPath(0.0, torch.zeros(2))(0.0, math.inf)


def test_a_batch_of_scalars_has_levy_areas_of_its_shape_over_an_empty_interval():
    # torchsde: [3, 3] here, [3] over any other interval.
    bm = ours.BrownianInterval(size=(3,), levy_area_approximation="davie")
    assert bm(0.5, 0.5, return_A=True)[1].shape == bm(0.2, 0.5, return_A=True)[1].shape == (3,)


def test_a_path_goes_on():
    w0 = torch.full((20000,), 3.0, dtype=D)
    bm = ours.BrownianPath(0.0, w0, entropy=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps = [bm(0.7 * i, 0.7 * (i + 1)) for i in range(10)]
    steps = torch.stack(steps)
    assert torch.allclose(steps.var(1), torch.full((10,), 0.7, dtype=D), rtol=0.06)
    assert (torch.corrcoef(steps) - torch.eye(10)).abs().max() < 0.04
    assert torch.allclose(steps.sum(0), bm(0.0, 7.0), atol=1e-12)
    assert torch.allclose(bm(7.0) - w0, bm(0.0, 7.0))
    assert torch.equal(bm(0.7 * 3, 0.7 * 4), steps[3])
    assert abs(bm(5.0, 1e6).std() / 1e3 - 1) < 0.03
    assert not bm(8.0, 8.0).any() and bm(3.0, 3.0).shape == w0.shape
    again = ours.BrownianPath(0.0, w0, entropy=1)
    assert torch.equal(again(0.0, 0.7), steps[0])
    assert bm(2.0, 3.0, return_U=True, return_A=True)[1:] == (None, None)
    with pytest.warns(UserWarning, match="ta>=t0"):
        bm(-1.0, 3.0)


def test_a_query_does_not_see_what_was_done_to_an_earlier_result():
    bm = ours.BrownianInterval(size=(2,), entropy=1, levy_area_approximation="space-time")
    for ta, tb in [(0.0, 1.0), (0.0, 0.5), (0.1, 0.9)]:
        results = bm(ta, tb, return_U=True, return_A=True)
        kept = results[0].clone(), results[1].clone(), None
        for result in results[:2]:
            result.zero_()
        assert_same(bm(ta, tb, return_U=True, return_A=True), kept)


def test_torchs_seed_decides():
    def samples():
        torch.manual_seed(12)
        return [
            ours.BrownianInterval(size=(2,))(0.1, 0.5),
            ours.BrownianPath(0.0, torch.zeros(2))(0.1, 0.5),
            ours.BrownianTree(0.0, torch.zeros(2))(0.1, 0.5),
        ]

    first = samples()
    np.random.seed(0)
    for a, b in zip(first, samples(), strict=True):
        assert torch.equal(a, b)
    state = torch.get_rng_state()
    ours.BrownianInterval(size=(2,), entropy=1)(0.1, 0.5)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("levy", ["none", "foster"])
def test_replaced_randn(monkeypatch, levy):
    def make(m):
        return m.BrownianInterval(0.0, 1.0, size=(3, 2), entropy=1, levy_area_approximation=levy)

    def numbers(size, dtype, device, seed):
        assert isinstance(device, torch.device)
        return torch.from_numpy(np.random.default_rng(int(seed)).standard_normal(size)).to(device, dtype)

    plain = make(ours)(0.2, 0.6)
    monkeypatch.setattr(brownian_interval, "_randn", numbers)
    monkeypatch.setattr(theirs._brownian.brownian_interval, "_randn", numbers)
    results = [make(m)(0.2, 0.6, return_U=True, return_A=True) for m in (ours, theirs)]
    assert_same(*results)
    assert not torch.equal(results[0][0], plain)


def test_an_interval_made_earlier_uses_what_replaces_randn(monkeypatch):
    bm = ours.BrownianTree(0.0, torch.zeros(2), entropy=1)
    monkeypatch.setattr(brownian_interval, "_randn", lambda size, dtype, device, seed: torch.zeros(size, dtype=dtype))
    assert torch.allclose(bm(0.0, 0.5), bm(0.5, 1.0))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda bm: pickle.loads(pickle.dumps(bm))])
def test_copies_go_on_alike(duplicate):
    interval = ours.BrownianInterval(size=(2, 2), entropy=1, levy_area_approximation="foster", tol=1e-4)
    motions = [interval, ours.BrownianPath(0.0, torch.zeros(2)), ours.BrownianTree(0.0, torch.zeros(2))]
    motions.append(ours.ReverseBrownian(ours.BrownianInterval(-1.0, 0.0, size=())))
    for bm in motions:
        for ta, tb in queries("walk", 60):
            bm(ta, tb)
        other = duplicate(bm)
        for ta, tb in queries("random", 20):
            assert torch.equal(bm(ta, tb), other(ta, tb))


def test_no_recursion():
    # A query of the whole now and then keeps the average length large, so that the tree becomes a chain.
    limit = sys.getrecursionlimit()
    bm = ours.BrownianInterval(size=(), entropy=1, cache_size=3)
    try:
        sys.setrecursionlimit(120)
        for i in range(1000):
            bm(i / 1000, (i + 1) / 1000)
            bm(0.0, 1.0)
        W = sum(bm(i / 1000, (i + 1) / 1000) for i in range(0, 1000, 200))
        copy.deepcopy(bm)
    finally:
        sys.setrecursionlimit(limit)
    assert W.isfinite()


@pytest.mark.parametrize("step", [1, -1])
def test_many_queries_in_a_row(step):
    n, asked = 5000, range(5000)[::step]
    bm = ours.BrownianInterval(size=(), entropy=1, dtype=D)
    W = sum(bm(i / n, (i + 1) / n) for i in asked)
    assert torch.allclose(W, bm(0.0, 1.0), atol=1e-9)


def test_thousands_of_queries():
    for order in ("forward", "walk"):
        compare(0.0, 1.0, queries(order, 1500), size=(), entropy=1)


@pytest.mark.parametrize("options", [{"cache_size": 0}, {"cache_size": 0, "dt": 1e-4}, {"dt": 1e-12}, {"dt": 1e-300}])
def test_trees_that_torchsde_cannot_make(options):
    bm = ours.BrownianInterval(size=(), entropy=1, dtype=D, **options)
    W = sum(bm(i / 150, (i + 1) / 150) for i in range(150))
    assert torch.allclose(W, bm(0.0, 1.0), atol=1e-9)


def test_a_very_short_query_costs_little():
    # torchsde cuts all of [0, 1] for queries of that length.
    bm = ours.BrownianInterval(size=(), entropy=1, dtype=D)
    for i in range(100):
        bm(i / 100, (i + 1) / 100)
    parts = bm(0.0, 0.3) + bm(0.3, 0.3 + 1e-14) + bm(0.3 + 1e-14, 1.0)
    assert torch.allclose(parts, bm(0.0, 1.0), atol=1e-9)
    assert len(bm._tree.child) < 20000


@pytest.mark.parametrize("levy", ["none", "foster"])
@pytest.mark.parametrize("halfway", [True, False])
def test_queries_shorter_than_the_tolerance(halfway, levy):
    options = {"tol": 1e-3, "halfway_tree": halfway, "levy_area_approximation": levy}
    bm = ours.BrownianInterval(size=(2, 2), entropy=1, **options)
    kept = bm(0.2, 0.7)
    for i in range(300):
        assert bm(i * 1e-3 + 1e-4, i * 1e-3 + 2e-4).abs().max() < 1e-7
    assert torch.equal(bm(0.2, 0.7), kept) or not halfway
    assert torch.allclose(bm(0.2, 0.5) + bm(0.5, 0.7), kept, atol=1e-6)


@pytest.mark.parametrize("cache_size", [0, 1, 5, None])
def test_neither_order_nor_cache_decide_a_halfway_tree(cache_size):
    options = {"size": (2,), "entropy": 3, "halfway_tree": True, "tol": 1e-6, "levy_area_approximation": "space-time"}
    asked = queries("random", 40)
    first, second = ours.BrownianInterval(**options), ours.BrownianInterval(**options, cache_size=cache_size)
    results = {q: first(*q, return_U=True) for q in asked}
    for q in random.Random(1).sample(asked, len(asked)):
        assert_same(second(*q, return_U=True), results[q])


@pytest.mark.parametrize("cache_size", [0, 3, None])
def test_the_cache_keeps_no_more_than_it_may(cache_size):
    bm = ours.BrownianInterval(size=(), cache_size=cache_size)
    for ta, tb in queries("random", 30):
        bm(ta, tb)
    assert len(bm._cache) >= 30 if cache_size is None else len(bm._cache) == cache_size


def test_a_tree_cut_when_asked_is_the_tree_cut_at_once():
    asked = queries("random", 15) + queries("walk", 40)
    lazy, eager = (IntervalTree(0.0, 1.0, 1, 8, None, math.inf) for _ in range(2))
    for i, (ta, tb) in enumerate(asked):
        if i % 5 == 0:
            for tree in (lazy, eager):
                tree.refine(0.3 / (i + 1))
        eager.cut_all()
        ends = [[(tree.start[j], tree.end[j], tree.seeds(j)) for j in tree.locate(ta, tb, 0)] for tree in (lazy, eager)]
        assert ends[0] == ends[1]
    assert len(lazy.child) < len(eager.child)


@pytest.mark.parametrize("levy", LEVY)
@pytest.mark.parametrize("shape", [(), (3,), (3, 2)])
def test_increment(levy, shape):
    def make():
        return ours.BrownianInterval(0.0, 2.0, size=shape, dtype=D, entropy=3, levy_area_approximation=levy)

    class Wrapped(ours.BaseBrownian):
        """A Brownian motion of a program's own, which knows nothing of `increment`."""

        inner = make()
        shape, dtype, device, levy_area_approximation = inner.shape, inner.dtype, inner.device, levy

        def __call__(self, ta, tb=None, return_U=False, return_A=False):
            return self.inner(ta, tb, return_U, return_A)

        def __repr__(self):
            return "Wrapped()"

    called, native, wrapped = make(), make(), Wrapped()
    for ta, tb in [*queries("random", 5, 0.0, 2.0), (0.5, 0.5)]:
        W, U, A = called(ta, tb, return_U=True, return_A=True)
        for increment in (native.increment(ta, tb), wrapped.increment(ta, tb)):
            assert increment.dt == tb - ta
            assert torch.equal(increment.W, W)
            assert (increment.H is None) == (U is None) and (increment.A is None) == (A is None)
            assert U is None or torch.allclose(increment.U, U, atol=1e-14)
            assert A is None or torch.equal(increment.A, A)
    assert torch.equal(ours.ReverseBrownian(native).increment(-0.7, -0.2).W, native(0.2, 0.7))
    for name in ("BrownianTree", "BrownianPath"):
        bm = getattr(ours, name)(0.0, torch.zeros(shape), entropy=2)
        assert torch.equal(bm.increment(0.1, 0.3).W, bm(0.1, 0.3))


def test_law_of_increments():
    bm = ours.BrownianInterval(0.0, 1.0, size=(50000, 2), dtype=D, entropy=1, levy_area_approximation="foster")
    for ta, tb in [(0.0, 1.0), (0.1, 0.3), (0.25, 0.8)]:
        dt = tb - ta
        step = bm.increment(ta, tb)
        assert abs(step.W.var() / dt - 1) < 0.02
        assert abs(step.H.var() / (dt / 12) - 1) < 0.02
        assert abs((step.W * step.H).mean()) < 0.02 * dt
        assert torch.allclose(step.A, -step.A.transpose(-1, -2), atol=1e-15)


WRONG = [
    ({"t0": 1.0, "t1": 0.0, "size": ()}, "t0 must not be after t1, got t0=1 and t1=0"),
    ({}, "give size, W or H"),
    ({"size": (3,), "W": torch.zeros(2)}, r"these must be equal, got size=\(3,\), W.shape="),
    ({"W": torch.zeros(2), "H": torch.zeros(3)}, "these must be equal, got W.shape="),
    ({"dtype": D, "W": torch.zeros(2)}, "these must be equal, got dtype=torch.float64, W.dtype=torch.float32"),
    ({"device": "meta", "W": torch.zeros(2)}, "these must be equal, got device=meta, W.device=cpu"),
    ({"W": torch.zeros(2, dtype=torch.int64)}, "W must be of a floating-point type, got torch.int64"),
    ({"H": torch.zeros(2, dtype=torch.int64)}, "H must be of a floating-point type, got torch.int64"),
    ({"W": 3.0, "size": ()}, "W must be a tensor, got 3.0"),
    ({"size": (), "levy_area_approximation": "no"}, "must be one of none, space-time, davie, foster, got 'no'"),
    ({"size": (), "tol": -1.0}, "tol must be 0 or positive, got -1"),
    ({"size": (), "halfway_tree": True}, "tol must be positive if halfway_tree is True, for example 1e-6, got 0"),
    ({"size": (), "halfway_tree": True, "tol": 1e-6, "dt": 0.1}, "dt has no effect if halfway_tree is True"),
    (
        {"size": (), "t0": torch.zeros(2)},
        r"t0 must be a number or .*, got a tensor of shape \[2\]",
    ),
    ({"size": (), "t1": "1.0"}, "t1 must be a number or a tensor of one element, got '1.0'"),
    ({"size": (), "dt": [0.1]}, r"dt must be a number or a tensor of one element, got \[0.1\]"),
]


@pytest.mark.parametrize("options, text", WRONG, ids=[text for _, text in WRONG])
def test_wrong_arguments(options, text):
    with pytest.raises(ValueError, match=text):
        ours.BrownianInterval(**options)
    with pytest.raises((ValueError, NotImplementedError)):
        theirs.BrownianInterval(**options)


@pytest.mark.parametrize(
    "options, text",
    [
        ({"t1": math.inf}, "t1 must be finite, got inf"),
        ({"dt": 0.0}, "dt, the length of a query, must be positive, got 0"),
        ({"cache_size": -1}, "cache_size must be None, 0 or positive, got -1"),
    ],
)
def test_arguments_that_torchsde_cannot_use_either(options, text):
    with pytest.raises(ValueError, match=text):
        ours.BrownianInterval(size=(), **options)


def test_a_reversed_motion_is_asked_for_intervals():
    with pytest.raises(ValueError, match="give ta and tb"):
        ours.ReverseBrownian(ours.BrownianInterval(-1.0, 0.0, size=()))(0.5)


def test_a_base_without_its_methods_cannot_be_made():
    with pytest.raises(TypeError):
        ours.BaseBrownian()
