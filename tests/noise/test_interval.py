"""The law of a Brownian interval, and that it is a function of its seed and time."""

import itertools
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from scipy import stats

from torchivp.noise import BrownianInterval, brownian_interval_like, join
from torchivp.noise import interval as module
from torchivp.noise.dyadic import POINTS, weights

F64 = torch.float64
TIMES = [0.0, 0.1, 1 / 3, 0.5, 0.71828, 0.75, 1.0]


def make(size=(20000,), levy="none", entropy=1, t0=0.0, t1=1.0, dtype=F64, **kwargs):
    return BrownianInterval(t0, t1, size, dtype, entropy=entropy, levy_area_approximation=levy, **kwargs)


def normal(values, std):
    return stats.kstest((values.double() / std).numpy().ravel(), "norm").pvalue > 1e-3


def covariance_of(first, second, with_H):
    """The covariance matrix, by the weights alone, of (W, H) over two intervals of the unit interval."""

    def factors(a, b):
        w = weights(a, b, with_H)
        parts = [w.W] if w.H is None else [w.W, w.H]
        by_node = {node: np.array([part[i] for part in parts]) for i, node in enumerate(w.nodes)}
        return by_node, w.root * np.array([1, 12**-0.5])[: len(parts)]

    (p, p_root), (q, q_root) = factors(*first), factors(*second)
    return p_root @ q_root.T + sum(p[node] @ q[node].T for node in p.keys() & q.keys())


@pytest.mark.parametrize("with_H", [False, True])
def test_weights_have_the_exact_law(with_H):
    generator = np.random.default_rng(0)
    expected = np.diag([1, 1 / 12] if with_H else [1])
    for case in range(100):
        a, b, c, d = np.sort(generator.integers(0, POINTS, 4)).tolist()
        if case % 3 == 1:
            b, c = a + 1 + case, a + 1 + case  # tiny, beside a large one
        if case % 3 == 2:
            a, b, c = 0, POINTS // 2, max(c, POINTS // 2)
        d = max(d, c + 1)
        for one in ((a, b), (c, d)):
            dt = (one[1] - one[0]) / POINTS
            np.testing.assert_allclose(covariance_of(one, one, with_H) / dt, expected, atol=1e-12)
        scale = math.sqrt((b - a) * (d - c)) / POINTS
        np.testing.assert_allclose(covariance_of((a, b), (c, d), with_H) / scale, 0 * expected, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("levy", ["none", "space-time"])
@pytest.mark.parametrize(("ta", "tb"), [(0.0, 1.0), (0.0, 0.5), (0.1, 1 / 3), (0.3, 0.3 + 1e-9), (0.99, 1.0)])
def test_law_of_an_increment(dtype, levy, ta, tb):
    increment = make(levy=levy, dtype=dtype).increment(ta, tb)
    dt = tb - ta
    assert increment.dt == dt and increment.W.dtype == dtype
    assert normal(increment.W, math.sqrt(dt))
    if levy == "none":
        assert increment.H is None
    else:
        assert normal(increment.H, math.sqrt(dt / 12))
        assert abs(float(torch.corrcoef(torch.stack([increment.W, increment.H]))[0, 1])) < 0.03


@pytest.mark.parametrize("levy", ["none", "space-time"])
def test_increments_are_independent(levy):
    bm = make(levy=levy)
    columns = []
    for ta, tb in itertools.pairwise([*TIMES[:3], 1 / 3 + 1e-10, *TIMES[3:]]):
        increment = bm.increment(ta, tb)
        columns += [increment.W] if increment.H is None else [increment.W, increment.H]
    correlation = torch.corrcoef(torch.stack(columns))
    assert (correlation - torch.eye(len(columns))).abs().max() < 0.03


def test_joint_covariance_of_W_and_U():
    bm, times = make((40000,), "space-time"), [0.137, 0.38, 0.5, 0.831]
    columns, theory = [], np.zeros((8, 8))
    for t in times:
        columns += [*bm(0.0, t, return_U=True)]
    for i, s in enumerate(times):
        for j, t in enumerate(times):
            low, high = min(s, t), max(s, t)
            theory[2 * i, 2 * j] = low
            theory[2 * i + 1, 2 * j + 1] = low**2 * (3 * high - low) / 6
            # E W(s) U(t) = ∫ min(s, v) dv over [0, t]
            theory[2 * i, 2 * j + 1] = theory[2 * j + 1, 2 * i] = t**2 / 2 if t <= s else s * t - s * s / 2
    found = torch.cov(torch.stack(columns)).numpy()
    scale = np.sqrt(np.outer(np.diag(theory), np.diag(theory)))
    assert np.abs((found - theory) / scale).max() < 0.03


@pytest.mark.parametrize("levy", ["none", "space-time"])
def test_bridge_between_given_ends(levy):
    W = torch.full((20000,), 1.5, dtype=F64)
    H = torch.full((20000,), -0.4, dtype=F64) if levy != "none" else None
    bm = make(levy=levy, t0=2.0, t1=4.0, W=W, H=H)
    for r in (0.25, 0.37):
        value = bm(2.0, 2.0 + 2 * r)
        mean, variance = r * 1.5, 2 * r * (1 - r)
        if H is not None:
            mean += 6 * r * (1 - r) * -0.4
            variance -= (6 * r * (1 - r)) ** 2 * 2 / 12
        assert normal(value - mean, math.sqrt(variance))


@pytest.mark.parametrize("levy", ["none", "space-time"])
def test_given_values_are_honoured(levy):
    W, H = torch.randn(5, 3), torch.randn(5, 3)
    bm = BrownianInterval(1.0, 3.5, W=W, H=None if levy == "none" else H, levy_area_approximation=levy)
    assert (bm.shape, bm.dtype) == ((5, 3), torch.float32)
    whole = bm.increment(1.0, 3.5)
    assert torch.equal(whole.W, W)
    if levy != "none":
        assert torch.equal(whole.H, H)
        assert torch.equal(bm(1.0, 3.5, return_U=True)[1], 2.5 * (0.5 * W + H))
    torch.testing.assert_close(bm(1.0, 2.2) + bm(2.2, 3.5), W, rtol=0, atol=1e-6)


def test_gradients_reach_the_given_end():
    W = torch.randn(3, 2, requires_grad=True)
    BrownianInterval(0.0, 1.0, W=W)(0.0, 0.3).sum().backward()
    torch.testing.assert_close(W.grad, torch.full((3, 2), 0.3))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_parts_add_up(dtype):
    bm, eps = make((50, 2), "space-time", dtype=dtype, t0=-1.0, t1=2.0), torch.finfo(dtype).eps
    times = [-1.0, -0.3, 0.1, 0.1 + 1e-8, 0.25, 1.7, 2.0]
    for a, b, c in itertools.combinations(times, 3):
        first, second, both = bm.increment(a, b), bm.increment(b, c), bm.increment(a, c)
        joined = join(first, second)
        for name in ("W", "H"):
            error = (getattr(joined, name) - getattr(both, name)).abs().max()
            # The times themselves are rounded to 2^-48 of the span.
            assert float(error) < 30 * eps * math.sqrt(c - a) + 3 * 2.0**-48 / math.sqrt(c - a)
    bm = make((50, 2), dtype=dtype)
    for a, b, c in itertools.combinations(TIMES, 3):
        assert float((bm(a, b) + bm(b, c) - bm(a, c)).abs().max()) < 30 * eps * math.sqrt(c - a)


@pytest.mark.parametrize("t0", [0.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("levy", ["none", "space-time"])
def test_tiny_increments_after_large_ones(t0, dtype, levy):
    bm = make((20000,), levy, dtype=dtype, t0=t0, t1=t0 + 1)
    large = bm(t0 + 0.1, t0 + 0.9)
    start = t0 + 0.437
    columns = [large]
    for i in range(3):
        a, b = start + i * 1e-6, start + (i + 1) * 1e-6
        increment = bm.increment(a, b)
        assert normal(increment.W, math.sqrt(b - a))
        columns.append(increment.W)
        if levy != "none":
            assert normal(increment.H, math.sqrt((b - a) / 12))
            columns.append(increment.H)
    correlation = torch.corrcoef(torch.stack(columns).double())
    assert (correlation - torch.eye(len(columns), dtype=F64)).abs().max() < 0.03


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("levy", ["none", "space-time", "foster"])
def test_order_of_queries_changes_nothing(levy, dtype):
    pairs = list(itertools.combinations([0.0, 0.1, 0.2, 0.2 + 1e-12, 1 / 3, 0.5, 0.9, 1.0], 2))
    forwards = make((7, 3), levy, dtype=dtype)
    first = {pair: forwards.increment(*pair) for pair in pairs}
    backwards = make((7, 3), levy, dtype=dtype)
    for pair in reversed(pairs):
        same(first[pair], backwards.increment(*pair))
    for pair in pairs[::5]:
        same(first[pair], make((7, 3), levy, dtype=dtype).increment(*pair))


def same(one, other):
    for name in ("W", "H", "A"):
        x, y = getattr(one, name), getattr(other, name)
        assert (x is None and y is None) or torch.equal(x, y)


@pytest.mark.parametrize("size", [(9,), (9, 2), (5, 2, 3)])
@pytest.mark.parametrize("levy", ["none", "space-time"])
def test_nothing_remembered_changes_nothing(size, levy, monkeypatch):
    pairs = [(0.1, 0.2), (0.2, 0.3), (0.15, 0.3), (0.3, 0.31), (0.2, 0.3)]
    expected = [make(size, levy).increment(*pair) for pair in pairs]
    monkeypatch.setattr(module, "KEPT_NODES", 3)
    bm = make(size, levy)
    for pair, answer in zip(pairs, expected, strict=True):
        same(answer, bm.increment(*pair))
        assert len(bm._recent) <= 3
    monkeypatch.setattr(module, "KEPT_BYTES", 0)
    bm = make(size, levy)
    for numbers in (1, 300, 10**6):
        monkeypatch.setattr(module, "CPU_NUMBERS", numbers)
        for pair, answer in zip(pairs, expected, strict=True):
            same(answer, bm.increment(*pair))
            assert not bm._recent
    monkeypatch.setattr(module, "KEPT_BYTES", 1 << 20)
    monkeypatch.setattr(module, "CPU_NUMBERS", 100)
    same(expected[0], make(size, levy).increment(*pairs[0]))


def test_memory_is_bounded():
    bm = make((4,))
    for i in range(300):
        bm(i / 301, (i + 1) / 301)
    assert len(bm._recent) <= module.KEPT_NODES
    assert all(node.untyped_storage().nbytes() == 4 * 8 for node in bm._recent.values())


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("size", [(11,), (11, 1), (11, 3), (11, 2, 2)])
def test_parts_of_a_batch(size, dtype):
    levy = "foster"
    whole = make(size, levy, dtype=dtype)
    for rows in (range(4, 9), torch.tensor([10, 0, 5]), [2], np.array([3, 4]), torch.arange(3, dtype=torch.int32)):
        part = make((len(rows), *size[1:]), levy, dtype=dtype, rows=rows)
        for pair in ((0.0, 1.0), (0.1, 0.4), (0.4, 0.45)):
            one, other = whole.increment(*pair), part.increment(*pair)
            for name in ("W", "H", "A"):
                assert torch.equal(getattr(one, name)[torch.as_tensor(rows)], getattr(other, name))


@pytest.mark.parametrize("size", [(), (4,), (4, 3), (2, 3, 4, 5), (0, 3), (4, 0)])
@pytest.mark.parametrize("levy", ["none", "space-time", "davie", "foster"])
def test_shapes(size, levy):
    bm = BrownianInterval(size=size, levy_area_approximation=levy)
    assert bm.shape == bm.size() == size and bm.dtype == torch.get_default_dtype()
    assert bm.device == torch.device("cpu") and bm.levy_area_approximation == levy
    area = (*size, size[-1]) if len(size) >= 2 else size
    for ta, tb in ((0.2, 0.7), (0.3, 0.3), (0.0, 1.0)):
        W, U, A = bm(ta, tb, return_U=True, return_A=True)
        assert W.shape == size
        assert (U is None) == (levy == "none") and (A is None) == (levy in ("none", "space-time"))
        if A is not None:
            assert A.shape == area
        assert len(bm(ta, tb, return_U=True)) == len(bm(ta, tb, return_A=True)) == 2
    assert torch.equal(bm(0.3), bm(0.0, 0.3))
    assert torch.equal(bm(0.4, 0.4), torch.zeros(size))


def test_times_may_be_tensors():
    bm = make((3,), t0=0.0, t1=0.1)
    assert torch.equal(bm(torch.tensor(0.0), torch.tensor(0.1)), bm(0.0, 0.1))  # in float32 0.1 is beyond 0.1
    assert torch.equal(bm(torch.tensor(0.05, dtype=F64), np.float64(0.1)), bm(0.05, 0.1))
    assert torch.equal(bm(0, 0.1 + 1e-11), bm(0.0, 0.1))
    assert torch.equal(bm(-1e-11, 0.1), bm(0.0, 0.1))
    times = torch.tensor(0.3)
    assert BrownianInterval(times, times + 1, (3,)).t1 == float(times + 1)


def test_seeds():
    torch.manual_seed(5)
    one, two = BrownianInterval(size=(3,)), BrownianInterval(size=(3,))
    torch.manual_seed(5)
    again = BrownianInterval(size=(3,))
    assert torch.equal(one(0.1, 0.2), again(0.1, 0.2)) and not torch.equal(one(0.1, 0.2), two(0.1, 0.2))
    assert torch.equal(BrownianInterval(size=(3,), entropy=one.entropy)(0.1, 0.2), one(0.1, 0.2))
    a, b = (BrownianInterval(size=(3,), generator=torch.Generator().manual_seed(9)) for _ in range(2))
    assert a.entropy == b.entropy
    assert BrownianInterval(size=(3,), entropy=2**64 - 1).entropy == 2**64 - 1


def test_global_state_is_left_alone():
    bm = make((3,), "foster")
    state = torch.get_rng_state()
    bm(0.1, 0.2)
    assert torch.equal(state, torch.get_rng_state())


def test_single_precision_has_its_own_path_and_half_follows_it():
    single, half = make((1000,), dtype=torch.float32), make((1000,), dtype=torch.bfloat16)
    assert torch.equal(single(0.1, 0.7).bfloat16(), half(0.1, 0.7))
    torch.set_default_dtype(F64)
    assert BrownianInterval(size=(3,)).dtype == F64


def test_within_inference_mode_and_transforms():
    expected = make((3,))(0.1, 0.2)
    bm = make((3,))
    with torch.inference_mode():
        bm(0.1, 0.2)
    x = torch.ones(3, dtype=F64, requires_grad=True)
    (bm(0.1, 0.2) * x).sum().backward()
    assert torch.equal(x.grad, expected)
    bm = make((3,))
    inside = torch.func.grad(lambda y: (y * bm(0.1, 0.2)).sum())(torch.ones(3, dtype=F64))
    assert torch.equal(inside, expected) and torch.equal(bm(0.1, 0.2), expected)
    bm = make((3,))
    mapped = torch.func.vmap(lambda y: y * bm(0.1, 0.2))(torch.ones(2, 3, dtype=F64))
    assert torch.equal(mapped[1], expected) and torch.equal(bm(0.1, 0.2), expected)


def test_pickle():
    bm = make((3,), "foster")
    other = pickle.loads(pickle.dumps(bm))
    same(bm.increment(0.1, 0.2), other.increment(0.1, 0.2))


@pytest.mark.parametrize("levy", ["davie", "foster"])
def test_law_of_the_area(levy):
    bm = make((20000, 2), levy)
    for ta, tb in ((0.0, 1.0), (0.2, 0.3)):
        W, U, A = bm(ta, tb, return_U=True, return_A=True)
        dt = tb - ta
        H = U / dt - W / 2
        assert torch.equal(A, -A.mT)
        assert float(A[:, 0, 1].var()) == pytest.approx(dt**2 / 4, rel=0.06)
        rest = A[:, 0, 1] - H[:, 0] * W[:, 1] + W[:, 0] * H[:, 1]
        assert float(rest.var()) == pytest.approx(dt**2 / 12, rel=0.06)
        assert abs(float(rest.mean())) < 0.01 * dt
    assert torch.equal(bm(0.2, 0.3), make((20000, 2), "space-time")(0.2, 0.3))


def test_like():
    y = torch.zeros(4, 2, dtype=F64)
    bm = brownian_interval_like(y, 0.0, 2.0, entropy=3)
    assert (bm.shape, bm.dtype, bm.device, bm.t1, bm.entropy) == ((4, 2), F64, y.device, 2.0, 3)
    other = brownian_interval_like(y, size=(4, 5), dtype=torch.float32)
    assert (other.shape, other.dtype) == ((4, 5), torch.float32)


def test_repr_says_how_to_make_it_again():
    assert repr(make((3,))) == (
        "BrownianInterval(t0=0.0, t1=1.0, size=(3,), dtype=torch.float64, device='cpu', entropy=1, "
        "levy_area_approximation='none')"
    )


def test_what_has_no_effect_is_said():
    with pytest.warns(UserWarning, match="tol, halfway_tree have no effect in BrownianInterval") as caught:
        BrownianInterval(0.0, 1.0, (3,), tol=1e-6, halfway_tree=True)
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="cache_size has no effect"):
        BrownianInterval(0.0, 1.0, (3,), cache_size=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        BrownianInterval(0.0, 1.0, (3,), torch.float32, "cpu", 3, None, 0.0, 8, 45, False, "none")


REFUSED = [
    ({"size": None}, ValueError, r"give size, the shape of the noise.*or W or H"),
    ({"size": 3}, TypeError, r"size must be a tuple of whole numbers.*got 3"),
    ({"size": (3, -1)}, ValueError, r"an entry of size must be a whole number of at least 0, got -1"),
    ({"size": (3, 1.5)}, TypeError, r"an entry of size must be a whole number"),
    ({"t0": 1.0}, ValueError, r"t0 must be before t1 and both finite, got t0=1.0 and t1=1.0"),
    ({"t1": math.inf}, ValueError, r"t0 must be before t1 and both finite, got t0=0.0 and t1=inf"),
    ({"t0": math.nan}, ValueError, r"t0 must not be NaN"),
    ({"t0": "0"}, TypeError, r"t0 must be a number, got '0'"),
    ({"dtype": torch.complex64}, ValueError, r"noise is real: dtype must be a floating dtype.*got torch.complex64"),
    ({"dtype": torch.int64}, ValueError, r"noise is real.*got torch.int64"),
    ({"entropy": -1}, ValueError, r"entropy must be a whole number between 0 and 18446744073709551615, got -1"),
    ({"entropy": 1.5}, TypeError, r"entropy must be a whole number"),
    ({"levy_area_approximation": "levy"}, ValueError, r"must be one of 'none', 'space-time', 'davie', 'foster', got"),
    ({"H": torch.zeros(3)}, ValueError, r"H is given.*pass 'space-time', or leave H out"),
    ({"W": 1.0}, TypeError, r"W must be a tensor, got float"),
    ({"W": torch.zeros(4)}, ValueError, r"W has shape \(4,\).*and \(3,\)"),
    (
        {"W": torch.zeros(3, dtype=F64), "dtype": torch.float32},
        ValueError,
        r"W has shape \(3,\), torch.float64",
    ),
    ({"W": torch.zeros(3, dtype=torch.int64)}, ValueError, r"noise is real"),
    (
        {"rows": [0, 1]},
        ValueError,
        r"rows must be 3 whole numbers, one for each row, none of them negative, got \[0, 1\]: write rows=",
    ),
    ({"rows": [0, -1, 2]}, ValueError, r"none of them negative, got \[0, -1, 2\]"),
    ({"rows": [0.0, 1.0, 2.0]}, TypeError, r"rows must be 3 whole numbers, .* got \[0.0, 1.0, 2.0\]"),
    ({"rows": [[0, 1, 2]]}, TypeError, r"rows must be 3 whole numbers, .* got \[\[0, 1, 2\]\]"),
    ({"rows": [True, False, True]}, TypeError, r"rows must be 3 whole numbers, .* got \[True, False, True\]"),
    ({"rows": 3}, TypeError, r"rows must be 3 whole numbers, .* got 3"),
    ({"rows": "012"}, TypeError, r"rows must be 3 whole numbers, .* got '012'"),
    ({"rows": {0, 1, 2}}, TypeError, r"rows must be 3 whole numbers, .* got {0, 1, 2}"),
    ({"rows": [0, 1, 2**70]}, TypeError, r"rows must be 3 whole numbers, .* got \[0, 1, 1180591620717411303424\]"),
]


@pytest.mark.parametrize(("arguments", "error", "sentence"), REFUSED)
def test_refusals(arguments, error, sentence):
    with pytest.raises(error, match=sentence):
        BrownianInterval(**{"size": (3,), **arguments})


@pytest.mark.parametrize(
    ("times", "error", "sentence"),
    [
        ((0.5, 0.4), RuntimeError, r"Query times ta=0.5 and tb=0.4 must respect ta <= tb: swap them"),
        (
            (0.5, 1.1),
            ValueError,
            r"from t0=0.0 to t1=1.0, and was asked for t=1.1: make it with t0 and t1 around",
        ),
        ((-0.1, 0.5), ValueError, r"was asked for t=-0.1"),
        ((-0.1,), ValueError, r"was asked for t=-0.1"),
        ((1.0 + 1e-6,), ValueError, r"was asked for t=1.000001"),
        ((0.5, math.inf), ValueError, r"was asked for t=inf"),
        ((math.nan, 0.5), ValueError, r"ta must not be NaN"),
        ((0.5, torch.tensor(math.nan)), ValueError, r"tb must not be NaN"),
        ((0.5, torch.zeros(2)), TypeError, r"tb must be a number"),
    ],
)
def test_refused_times(times, error, sentence):
    with pytest.raises(error, match=sentence):
        make((3,))(*times)


def test_increment_refuses_nan():
    with pytest.raises(ValueError, match=r"must not be NaN, got nan"):
        make((3,)).increment(math.nan, 0.5)
