"""Operations of kernels and their gradients are torch's, also where a number is nothing, infinite or zero."""

import math

import pytest
import torch
import torch.nn.functional as F

from compilers import needs_compiler
from fused.evaluation import Compiled
from torchivp.fused.arrays import Array
from torchivp.fused.refusal import CannotFuse

pytestmark = needs_compiler

D = torch.float64
slow = pytest.mark.sweep
SPECIAL = torch.tensor([0.0, -0.0, math.nan, math.inf, -math.inf, 1.0, -1.0, 0.5], dtype=D)


def ones(*shape):
    return torch.ones(shape, dtype=D)


def assert_alike(compiled, *inputs, rtol=1e-12, sign=False):
    rows = inputs[0].shape[0]
    seed = torch.randn(rows, compiled.size, dtype=inputs[0].dtype)
    (value, grads), (expected, expected_grads) = (how(seed, *inputs) for how in (compiled, compiled.eager))
    torch.testing.assert_close(value, expected, rtol=rtol, atol=rtol, equal_nan=True)
    if sign:
        assert torch.equal(value.signbit()[value == 0], expected.signbit()[value == 0])
    for i, (grad, wanted) in enumerate(zip(grads, expected_grads, strict=True)):
        if i not in compiled.shared:  # those are summed over all rows by the kernels themselves
            torch.testing.assert_close(grad, wanted, rtol=rtol, atol=rtol, equal_nan=True)


def random_rows(compiled, rows):
    return [
        x if i in compiled.shared else torch.randn(rows, *x.shape, dtype=x.dtype)
        for i, x in enumerate(compiled.examples)
    ]


def elementary(x):
    functions = "sqrt exp log sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh expm1 log1p exp2 log2 log10"
    functions += " erf erfc sigmoid floor ceil trunc frac sign reciprocal rsqrt square abs neg isfinite isnan isinf"
    functions += " signbit logical_not nan_to_num sinc"
    return [getattr(torch, name)(x) for name in functions.split()]


def activations(x):
    kinds = "softplus silu gelu elu leaky_relu selu celu mish hardtanh hardswish softsign tanhshrink"
    kinds += " logsigmoid relu6 relu"
    return [getattr(F, name)(x) for name in kinds.split()]


def powers(x):
    exponents = (0, 1, 2, 3, 4, -1, -2, -0.5, 0.5, 1.5, 1 / 3, -3)
    return [*(x**e for e in exponents), *(b**x for b in (2.0, 0.0, -2.0))]


def comparisons(x, y):
    return [x == y, x != y, x < y, x <= y, x > y, x >= y, (x > 0) & (y > 0), (x > 0) ^ (y < 1), ~(x > y) | (x < 0)]


def choices(x, y):
    return [
        torch.where(x > 0, x.sqrt(), 0.0),  # the gradient of the root that is not taken is not a number, for both
        torch.where(x > y, x, 2 * y),
        x.clamp(0, 1),
        x.clamp(min=y),
        torch.clamp(x, 1, 0),
        torch.maximum(x, y),
        torch.minimum(x, y),
        torch.fmax(x, y),
        torch.fmin(x, y),
        torch.copysign(x, y),
    ]


def two(x, y):
    return [x + 3 * y, x * y, torch.atan2(x, y), torch.hypot(x, y), torch.fmod(x, y), x / y, torch.logaddexp(x, y)]


def ties(x):
    zero = x - x
    one = torch.stack([x, x])
    return [
        zero.abs(),
        zero.sgn(),
        zero.norm(),
        F.relu(zero),
        zero.clamp(min=0),
        (zero + 1).clamp(0, 1),
        torch.maximum(x, x),
        one.amax(0),
        one.max(0).values,
        one.max(),
        x.prod(),
        torch.where(zero >= 0, x, 2 * x),
    ]


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (choices, 2),
        (ties, 1),
        *(pytest.param(*case, marks=slow) for case in ((elementary, 1), (activations, 1), (powers, 1))),
        *(pytest.param(*case, marks=slow) for case in ((comparisons, 2), (two, 2))),
    ],
)
def test_pointwise(function, arguments):
    compiled = Compiled(function, *(ones(3) for _ in range(arguments)))
    for rows in (1, 8):
        assert_alike(compiled, *random_rows(compiled, rows))
    everything = [SPECIAL[:, None].expand(8, 3).contiguous(), SPECIAL.roll(3)[:, None].expand(8, 3).contiguous()]
    assert_alike(compiled, *everything[:arguments])
    for row in range(8):
        assert_alike(compiled, *(x[row : row + 1] for x in everything[:arguments]))


def test_signs_of_zero():
    def function(x):
        return [-x, x.sin(), x.tanh(), x.sqrt(), x.ceil(), x.abs(), 1 / x, x.trunc(), F.relu(x)]

    compiled = Compiled(function, ones(1))
    zeros = torch.tensor([0.0, -0.0] * 4, dtype=D)[:, None]
    assert_alike(compiled, zeros, sign=True)
    for row in range(2):
        assert_alike(compiled, zeros[row : row + 1], sign=True)


def test_quotients_are_floored_as_python_does():
    def function(x):
        return [x % 0.1, x % -0.3, torch.div(x, 0.1, rounding_mode="floor"), torch.div(x, 3, rounding_mode="trunc")]

    compiled = Compiled(function, ones(4))
    assert_alike(compiled, torch.tensor([[1.0, 0.3, -0.7, 5.5]], dtype=D))
    value, _ = compiled(torch.zeros(1, compiled.size, dtype=D), ones(1, 4))
    assert value[0, 8] == 1.0 // 0.1 == 9


def views(x):
    """[3, 4]: shapes that do not fit strides, and views written into."""
    dense = x.clone()
    dense.T[0] += x[1, 0]
    dense[1:, ::2].mul_(2.0)
    dense.view(-1)[3] = x[0, 0]
    dense[[0, 2], [1, 1]] = x[:2, 3]
    dense[dense > 1.0] = 0.5
    return [
        x.T.reshape(2, 6),
        x.T.contiguous().view(6, 2),
        x.permute(1, 0).reshape(2, 3, 2).transpose(0, 2).flatten(1),
        x[None].expand(2, 3, 4).reshape(-1),
        x.repeat(2, 1),
        x.flip(0).roll((1, -1), (0, 1)),
        torch.cat([x[:, :1], x[:, 2:], x.new_zeros(3, 0)], -1),
        torch.stack(x.unbind(-1)[::-1]),
        x.diagonal(1),
        torch.diag_embed(x[0]),
        x[:, :3].tril(-1) + x[:, 1:].triu(),
        F.pad(x, (-1, 2), value=3.0),
        F.pad(x[None], (1, 2), mode="circular"),
        dense,
    ]


def sums(x):
    """[3, 4]."""
    return [
        x.sum(),
        x.sum(0),
        x.mean((0, 1), keepdim=True),
        x.prod(-1),
        x.var(0),
        x.std(-1, unbiased=False),
        x.norm(dim=0),
        x.norm(p=1),
        x.norm(p=3),
        torch.linalg.vector_norm(x, math.inf),
        torch.linalg.vector_norm(x, -math.inf, dim=1),
        x.softmax(0),
        x.log_softmax(-1),
        x.logsumexp((0, 1)),
        x.cumsum(0),
        x.cumprod(-1),
        x.max(0).values,
        x.argmax(-1),
        x.amin(),
        (x > 0).any(0),
        (x > 0).all(),
        (x > 0).sum(1),
        x[:, :0].sum(1),
        x[:0].prod(),
        F.layer_norm(x, (4,)),
        F.normalize(x, dim=0),
    ]


def products(x, w, b):
    """[3, 4], [5, 4], [5]."""
    return [
        F.linear(x, w, b).tanh(),
        F.linear(x[0], w),
        x @ w.T,
        w @ x[0],
        x[0] @ x[1],
        torch.einsum("ij,kj->ik", x, x),
        torch.bmm(x[None].expand(2, 3, 4), w.T[None].expand(2, 4, 5)),
        torch.outer(b, x[0]),
        torch.linalg.cross(x[:, 0], x[:, 1]),
        torch.addmv(b, w, x[0], beta=2, alpha=3),
    ]


def places(x, table):
    """[3, 4], [6]."""
    i = (x.abs() * 3).long().clamp(max=5)
    knots = torch.linspace(-2, 2, 6, dtype=x.dtype)
    near = torch.searchsorted(knots, x[0, 0]).clamp(0, 5)
    return [
        table[i],
        table[-1 - i],
        table[near],
        torch.stack([table, 2 * table])[1, near],
        x[[2, 0], 1:],
        x[[0, 2], :, None][:, [1, 0]],
        x.gather(1, i.clamp(max=3)),
        x[x.argmax(0), torch.arange(4)],
        x.index_select(1, torch.tensor([3, 0, 0])),
        torch.bucketize(x, knots, right=True),
        torch.zeros(4, dtype=x.dtype).scatter_add(0, i[0].clamp(max=3), x[0]),
        x.new_zeros(6).index_add(0, i[1], x[1]),
        F.one_hot((x[0] > 0).long(), 2) * x[0][:, None],
    ]


def whole(x):
    """[4]."""
    i = (x * 3).long()
    quotients = [i // 2, i // -2, i % 3, i % -3, i / 2, torch.div(i, 2, rounding_mode="trunc")]
    narrow = [i.int() * 1_000_000_007, i.to(torch.int8) * 100, i.to(torch.uint8)]
    others = [i.abs(), i**2, i & 3, i.sign(), i.max(), i.cumsum(0), i * 0.5, torch.where(i > 0, i, 3), (i > 0) * i]
    return [x, *quotients, *narrow, *others]


@pytest.mark.parametrize(
    ("function", "examples", "shared"),
    [
        (views, [(3, 4)], ()),
        (whole, [(4,)], ()),
        (places, [(3, 4), (6,)], (1,)),
        pytest.param(sums, [(3, 4)], (), marks=slow),
        pytest.param(products, [(3, 4), (5, 4), (5,)], (1, 2), marks=slow),
        pytest.param(places, [(3, 4), (6,)], (), marks=slow),
    ],
)
def test_shapes_sums_products_and_places(function, examples, shared):
    compiled = Compiled(function, *(ones(*shape) for shape in examples), shared=shared)
    for rows in (1, 8):
        assert_alike(compiled, *random_rows(compiled, rows))


@slow
def test_loops_are_what_is_written_out():
    def function(x, w):
        return [
            x.T.reshape(-1),
            x.cumsum(1),
            x.softmax(0),
            (w @ x).tanh(),
            x.max(1).values,
            x[x.argmax(0), torch.arange(20)],
        ]

    compiled = Compiled(function, ones(9, 20), ones(17, 9), shared=(1,))
    for rows in (1, 8):
        assert_alike(compiled, *random_rows(compiled, rows))


@slow
def test_derivatives_within_the_function():
    def function(x):
        def energy(q):
            return (q**3).sum() * q[0].sin()

        return [
            torch.func.grad(energy)(x),
            torch.func.jacrev(lambda q: q * q.sum())(x),
            torch.func.jvp(torch.sin, (x,), (x,))[1],
            torch.vmap(lambda q: q * q)(x),
        ]

    compiled = Compiled(function, ones(3))
    assert_alike(compiled, *random_rows(compiled, 8))


def test_gradients_that_are_turned_off_stay_off():
    def function(x):
        with torch.no_grad():
            size = x.sum()
            parts = torch.zeros_like(x)
            parts[0] = x[1]
        return [x * size, x.detach() * x, parts * x, x.sin()]

    compiled = Compiled(function, ones(3))
    assert_alike(compiled, *random_rows(compiled, 8))


@slow
def test_single_precision_within_double_is_rounded():
    compiled = Compiled(lambda x: [x.float() * 1.1, (x.float() * 3).sin().double(), x.float()], ones(3))
    x = random_rows(compiled, 8)
    assert_alike(compiled, *x, rtol=2e-7)
    value, _ = compiled(torch.zeros(8, compiled.size, dtype=D), *x)
    assert torch.equal(value, value.float().double())


@slow
def test_single_precision():
    single = [torch.ones(3), torch.ones(3)]
    for function in (choices, two):
        compiled = Compiled(function, *single)
        assert_alike(compiled, *random_rows(compiled, 16), rtol=1e-5)


def test_a_failed_lowering_leaves_nothing_behind():
    compiled = Compiled(lambda x, w: [x * w.sin()], ones(3), ones(3), shared=(1,))
    before = list(compiled.lowering.once)
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = ones(3)
    waves = graph.call_function(torch.ops.aten.sin.default, (x,))
    found = graph.call_function(torch.ops.aten.erfinv.default, (waves,))
    for node in (waves, found):
        node.meta["val"] = ones(3)
    graph.output((found,))

    with pytest.raises(CannotFuse, match="erfinv is not among the operations"):
        compiled.lowering.lower(graph, [Array.stored("shared1", (3,), lanes=False)])
    assert compiled.lowering.once == before
