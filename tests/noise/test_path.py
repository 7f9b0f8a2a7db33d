"""Paths without an end, trees between given values, and paths from behind."""

import itertools
import math

import pytest
import torch
from scipy import stats

from torchivp.noise import BaseBrownian, BrownianInterval, BrownianPath, BrownianTree, ReverseBrownian, join

F64 = torch.float64


def normal(values, std):
    return stats.kstest((values / std).numpy().ravel(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("t0", [0.0, -2.5])
def test_path_law(t0):
    bm = BrownianPath(t0, torch.zeros(20000, dtype=F64), entropy=1)
    columns = []
    for a, b in itertools.pairwise([0.0, 0.3, 1.0, 1.7, 3.0, 1000.0]):
        columns.append(bm(t0 + a, t0 + b))
        assert normal(columns[-1], math.sqrt(b - a))
    assert (torch.corrcoef(torch.stack(columns)) - torch.eye(5)).abs().max() < 0.03
    torch.testing.assert_close(bm(t0 + 1000.0), sum(columns))
    torch.testing.assert_close(bm(t0 + 0.5, t0 + 4.0), bm(t0 + 4.0) - bm(t0 + 0.5))


def test_path_is_a_function_of_time():
    w0 = torch.arange(3.0)
    one, other = (BrownianPath(0.0, w0, entropy=4) for _ in range(2))
    assert torch.equal(one(0.0), w0)
    pairs = list(itertools.combinations([0.0, 0.5, 1.0, 1.5, 2.0, 900.0], 2))
    first = [one(*pair) for pair in pairs]
    assert all(torch.equal(x, other(*pair)) for x, pair in zip(first[::-1], pairs[::-1], strict=True))
    assert torch.equal(one(1.0, 1.0), torch.zeros(3)) and torch.equal(one(0.0, 0.0), torch.zeros(3))
    assert torch.equal(one(2.0, 2.0), torch.zeros(3)) and torch.equal(one(-1e-12), w0)
    assert one(0.1, 0.2, return_U=True)[1] is None
    assert isinstance(one, BaseBrownian) and one.size() == (3,) and one.levy_area_approximation == "none"
    assert repr(one) == "BrownianPath(t0=0.0, size=(3,), dtype=torch.float32, entropy=4)"


def test_path_seeds():
    torch.manual_seed(1)
    one = BrownianPath(0.0, torch.zeros(3))
    torch.manual_seed(1)
    assert torch.equal(BrownianPath(0.0, torch.zeros(3))(7.0), one(7.0))
    a, b = (BrownianPath(0.0, torch.zeros(3), generator=torch.Generator().manual_seed(2)) for _ in range(2))
    assert torch.equal(a(3.0), b(3.0))


def test_path_refusals():
    bm = BrownianPath(1.0, torch.zeros(3))
    with pytest.raises(ValueError, match=r"starts at t0=1.0 and was asked for t=0.5: make it with an earlier t0"):
        bm(0.5)
    with pytest.raises(ValueError, match=r"was asked for t=inf"):
        bm(1.5, math.inf)
    with pytest.raises(RuntimeError, match=r"must respect ta <= tb"):
        bm(2.0, 1.5)
    with pytest.raises(TypeError, match=r"w0 must be a tensor, the value of the path at t0, got float"):
        BrownianPath(0.0, 1.0)
    with pytest.raises(ValueError, match=r"noise is real: w0 must have a floating dtype"):
        BrownianPath(0.0, torch.zeros(3, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"t0 must be finite, got inf"):
        BrownianPath(math.inf, torch.zeros(3))
    with pytest.warns(UserWarning, match="window_size has no effect in BrownianPath"):
        BrownianPath(0.0, torch.zeros(3), 4)


def test_tree():
    w0, w1 = torch.randn(20000, dtype=F64), torch.randn(20000, dtype=F64)
    bm = BrownianTree(1.0, w0, 3.0, w1, entropy=6)
    torch.testing.assert_close(bm(3.0), w1)
    assert torch.equal(bm(1.0), w0)
    assert normal(bm(1.5) - (0.75 * w0 + 0.25 * w1), math.sqrt(2 * 0.25 * 0.75))
    torch.testing.assert_close(bm(1.2, 2.9), bm(2.9) - bm(1.2))
    assert bm.entropy == 6 and "entropy=6" in repr(bm)
    free = BrownianTree(t0=1.0, w0=w0)
    assert normal(free(2.0) - w0, 1.0)
    assert free(torch.tensor(2.0 + 1e-7)).shape == (20000,)
    with pytest.raises(ValueError, match=r"defined from t0=1.0 to t1=2.0"):
        free(2.5)


def test_tree_refusals():
    with pytest.raises(ValueError, match=r"w1 must be a tensor of the shape of w0, \(3,\), got \(4,\)"):
        BrownianTree(0.0, torch.zeros(3), w1=torch.zeros(4))
    with pytest.raises(ValueError, match=r"w1 must be a tensor of the shape of w0, \(3,\), got float"):
        BrownianTree(0.0, torch.zeros(3), w1=1.0)
    with pytest.warns(UserWarning, match="tol, safety have no effect in BrownianTree"):
        BrownianTree(0.0, torch.zeros(3), tol=1e-3, safety=0.1)


def test_reverse():
    base = BrownianInterval(0.0, 1.0, (4, 3), F64, entropy=2, levy_area_approximation="foster")
    back = ReverseBrownian(base)
    W, U, A = back(-0.7, -0.2, return_U=True, return_A=True)
    other = base.increment(0.2, 0.7)
    assert torch.equal(W, other.W) and torch.equal(A, -other.A)
    torch.testing.assert_close(U, 0.5 * other.W - other.U)
    assert (back.shape, back.dtype, back.device) == ((4, 3), F64, base.device)
    assert back.levy_area_approximation == "foster" and back.base_brownian is base
    assert repr(back).startswith("ReverseBrownian(base_brownian=BrownianInterval(")
    with pytest.raises(ValueError, match=r"ReverseBrownian has no start to count from: give both ends"):
        back(-0.5)
    with pytest.raises(RuntimeError, match=r"swap them"):
        back(-0.2, -0.7)


def test_reverse_parts_join():
    """With H as the other's, as torchsde has it, these would not agree."""
    back = ReverseBrownian(BrownianInterval(0.0, 1.0, (4,), F64, levy_area_approximation="space-time"))
    joined = join(back.increment(-0.9, -0.4), back.increment(-0.4, -0.1))
    whole = back.increment(-0.9, -0.1)
    torch.testing.assert_close(joined.W, whole.W)
    torch.testing.assert_close(joined.H, whole.H)


def test_path_far_from_its_start():
    """Late times are finite as long as they are answered, and are refused beyond."""
    for dtype, latest in ((F64, 9.9e14), (torch.float32, 9.9e14), (torch.float16, 1.6e7)):
        bm = BrownianPath(1.0, torch.zeros(200, dtype=dtype), entropy=3)
        assert normal(bm(1.0 + latest).double(), math.sqrt(latest))
        for t in (1.1 * latest, 1e300, 1.7e308):
            with pytest.raises(ValueError, match=r"from t0=1.0 reaches to .* after t0, and was asked for t=1"):
                bm(t)
            with pytest.raises(ValueError, match="use a smaller unit of time"):
                bm(2.0, t)
