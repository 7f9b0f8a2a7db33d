"""Batches whose rows step on their own: every row is what it is alone, whatever becomes of the others."""

import itertools
import math
import re

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from problems import METHODS, covering, sampled
from torchivp import ODE_METHODS, Outcome, PIController, PIDController, SolveError, solve_ivp
from torchivp.stepsize.constant import ConstantSteps

D = torch.float64
NAN = math.nan
SOME_METHODS = ["dopri5", "tsit5", "dopri8", "bosh3", "rk4", "gl4", "adams"]


def steps_of(name, step_size=0.1):
    """Options with which any method can solve the small problems here."""
    method = ODE_METHODS[name]
    adapts = method.error_order is not None or method.sizes_steps
    return {} if adapts else {"step_size": step_size}


def van_der_pol(t, y, mu):
    x, v = y[..., 0], y[..., 1]
    return torch.stack((v, mu * (1 - x * x) * v - x), -1)


VDP = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.5, -1.0], [-1.0, 0.3]], dtype=D)
MU = torch.tensor([0.5, 2.0, 5.0, 1.0], dtype=D)


def row_of(tree, index):
    return pytree.tree_map(lambda leaf: leaf[index], tree)


def rows_in(batch_shape):
    return list(torch.cartesian_prod(*(torch.arange(n) for n in batch_shape)).reshape(-1, len(batch_shape)).tolist())


def assert_row_is_alone(solution, number, single, rtol=1e-9, atol=1e-12):
    """Row `number` of the batch is the solution `single`, and NaN behind it."""
    index = tuple(rows_in(solution.batch_shape)[number])
    count = len(single.t)
    t = solution.t[index]
    torch.testing.assert_close(t[:count], single.t, rtol=rtol, atol=atol)
    assert t[count:].isnan().all()
    for leaf, expected in zip(pytree.tree_leaves(solution.y), pytree.tree_leaves(single.y), strict=True):
        assert leaf.dtype == expected.dtype
        torch.testing.assert_close(leaf[index][:count], expected, rtol=rtol, atol=atol, equal_nan=True)
        assert leaf[index][count:].isnan().all()
    stats = solution.stats[number]
    assert (stats.accepted, stats.rejected) == (single.stats.accepted, single.stats.rejected)
    assert solution.status[number].outcome == single.status.outcome


def times_of_row(t_eval, index, number):
    if t_eval is None or isinstance(t_eval, list):
        return t_eval if t_eval is None else t_eval[number]
    if t_eval.ndim == 1:
        return t_eval
    return t_eval[index][~t_eval[index].isnan()]


def singles(func, t_span, y0, batch_shape, args=(), t_eval=None, **options):
    """Every row solved alone. Tensors of the span and in args have an entry for each row."""
    for number, entry in enumerate(rows_in(batch_shape)):
        index = tuple(entry)
        span = [float(t[index]) if isinstance(t, torch.Tensor) and t.ndim else float(t) for t in t_span]
        chosen = [arg[index] for arg in args]
        yield solve_ivp(
            func, span, row_of(y0, index), t_eval=times_of_row(t_eval, index, number), args=chosen, **options
        )


def check_each_row(func, t_span, y0, batch_shape, *, args=(), t_eval=None, rtol_seen=1e-9, atol_seen=1e-12, **options):
    solution = solve_ivp(func, t_span, y0, t_eval=t_eval, args=args, batch_dims=len(batch_shape), **options)
    assert solution.batch_shape == batch_shape
    assert solution.success.shape == batch_shape
    alone = list(singles(func, t_span, y0, batch_shape, args, t_eval, **options))
    for number, single in enumerate(alone):
        assert_row_is_alone(solution, number, single, rtol_seen, atol_seen)
    return solution


# --- each row is the single solve


@pytest.mark.filterwarnings("ignore:Functional iteration")
@pytest.mark.parametrize("method", METHODS)
def test_each_row_is_the_single_solve(method):
    t_eval = torch.linspace(0.0, 1.0, 5, dtype=D)
    rtol = 1e-3 if ODE_METHODS[method].order < 3 else 1e-5
    options = {"rtol": rtol, "atol": rtol / 100, **steps_of(method)}
    check_each_row(van_der_pol, (0.0, 1.0), VDP, (4,), args=(MU,), t_eval=t_eval, method=method, **options)


@pytest.mark.filterwarnings("ignore:Functional iteration")
@pytest.mark.parametrize("method", sampled(METHODS))
def test_each_row_returns_its_steps(method):
    """Without t_eval the rows are of different lengths, filled up with NaN."""
    rtol = 1e-3 if ODE_METHODS[method].order < 3 else 1e-5
    options = {"rtol": rtol, "atol": rtol / 100, **steps_of(method)}
    solution = check_each_row(
        van_der_pol, (0.0, 1.0), VDP, (4,), args=(MU,), method=method, rtol_seen=1e-6, atol_seen=1e-7, **options
    )
    counts = [stats.accepted + 1 for stats in solution.stats]
    assert solution.t.shape == (4, max(counts))
    assert (~solution.t.isnan()).sum(1).tolist() == counts
    assert (~solution.y.isnan().any(-1)).sum(1).tolist() == counts


@pytest.mark.filterwarnings("ignore:Functional iteration")
@pytest.mark.parametrize(
    "method",
    sampled(name for name in METHODS if not (ODE_METHODS[name].varies_order or ODE_METHODS[name].sizes_steps)),
)
def test_each_row_takes_fixed_steps_with_any_method(method):
    check_each_row(van_der_pol, (0.0, 0.51), VDP, (4,), args=(MU,), method=method, step_size=0.1)


def scalar(t, y, a):
    return a * y * torch.cos(t)


def matrix(t, y, a):
    a = a[..., None, None]
    return -a * y + torch.sin(t) * y.flip(-1)


def pair(t, y, a):
    x, v = y
    return v, -a * x + 0.1 * torch.sin(t)


def uneven_pair(t, y, a):
    """Leaves of different dimensions: t has but those of the batch."""
    x, v = y
    return v.sum(-1) - a * x, -v * (x * a)[..., None] + torch.cos(t)[..., None]


def named(t, y, a):
    return {"x": y["v"]["w"], "v": {"w": -a[..., None] * y["x"]}}


def rotation(t, y, a):
    return 1j * a[..., None] * y


def shaped(*shape, dtype=D):
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=dtype)


def states(lead):
    return {
        "scalar": (scalar, shaped(*lead)),
        "vector": (lambda t, y, a: van_der_pol(t, y, a), shaped(*lead, 2)),
        "matrix": (matrix, shaped(*lead, 2, 3)),
        "pair": (pair, (shaped(*lead), shaped(*lead).flip(0))),
        "uneven": (uneven_pair, (shaped(*lead), shaped(*lead, 2))),
        "dict": (named, {"x": shaped(*lead, 2), "v": {"w": shaped(*lead, 2).flip(0)}}),
        "complex": (rotation, shaped(*lead, 2, dtype=torch.complex128)),
        "mixed": (lambda t, y, a: [a * y[1].real, 1j * a * y[1]], [shaped(*lead), shaped(*lead, dtype=torch.cdouble)]),
    }


@pytest.mark.parametrize(
    ("method", "lead", "state"), covering(SOME_METHODS, ["dopri5", "rk4", "adams"], [(3,), (2, 2)], states((1,)))
)
def test_states_of_any_structure(state, lead, method):
    func, y0 = states(lead)[state]
    a = torch.linspace(0.5, 3.0, math.prod(lead), dtype=D).reshape(lead)
    options = {"rtol": 1e-5, "atol": 1e-7, **steps_of(method)}
    t_eval = torch.tensor([0.2, 0.5, 1.0], dtype=D)
    check_each_row(func, (0.0, 1.0), y0, lead, args=(a,), t_eval=t_eval, method=method, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.float16, torch.bfloat16])
def test_states_of_single_precision_or_less(dtype):
    y0 = torch.tensor([[1.0, 0.5], [0.25, -1.0], [2.0, 0.0]]).to(dtype)
    a = torch.tensor([0.5, 1.0, 2.8])  # with which no error is about as large as the tolerance

    def func(t, y, a):
        assert y.dtype == dtype and t.dtype == dtype.to_real()
        return (-a[..., None] * y * (1 + t)).to(dtype)

    t_eval = torch.tensor([0.5, 1.0], dtype=D)
    coarse = {"rtol_seen": 1e-4, "atol_seen": 1e-5} if dtype.itemsize >= 4 else {"rtol_seen": 2e-2, "atol_seen": 1e-3}
    check_each_row(func, (0.0, 1.0), y0, (3,), args=(a,), t_eval=t_eval, method="bosh3", step_size=0.1, **coarse)
    if dtype.itemsize >= 4:
        check_each_row(func, (0.0, 1.0), y0, (3,), args=(a,), t_eval=t_eval, method="dopri5", **coarse)


STARTS = torch.tensor([0.0, 1.0, -0.5, 2.0], dtype=D)
ENDS = torch.tensor([1.0, 0.2, 0.5, 2.5], dtype=D)
PADDED = torch.tensor(
    [[0.0, 0.5, 0.75, 1.0], [0.9, 0.4, NAN, NAN], [NAN, NAN, NAN, NAN], [2.1, 2.3, 2.5, NAN]], dtype=D
)


def t_evals():
    return {
        "steps": None,
        "padded": PADDED,
        "list": [row[~row.isnan()] for row in PADDED],
    }


@pytest.mark.parametrize("method", [*SOME_METHODS, "scipy_solver", "radauIIA3"])
@pytest.mark.parametrize("t_eval", t_evals())
def test_rows_with_times_of_their_own(t_eval, method):
    """Spans of different lengths and directions, with the times that each row is asked for."""
    options = {"rtol": 1e-5, "atol": 1e-7, **steps_of(method)}
    check_each_row(
        lambda t, y, mu: van_der_pol(t, y, mu) + torch.cos(t),
        (STARTS, ENDS),
        VDP,
        (4,),
        args=(MU,),
        t_eval=t_evals()[t_eval],
        method=method,
        rtol_seen=1e-6,
        atol_seen=1e-7,
        **options,
    )


@pytest.mark.parametrize("method", ["dopri5", "rk4", "gl4"])
def test_times_shared_by_rows_with_spans_of_their_own(method):
    span = (torch.tensor([0.0, -1.0, 0.1, 0.2], dtype=D), torch.tensor([1.0, 2.0, 0.9, 1.5], dtype=D))
    t_eval = torch.tensor([0.3, 0.31, 0.8], dtype=D)
    check_each_row(van_der_pol, span, VDP, (4,), args=(MU,), t_eval=t_eval, method=method, **steps_of(method))


def test_times_of_a_batch_of_two_dimensions():
    lead = (2, 2)
    y0, mu, start, end = VDP.reshape(2, 2, 2), MU.reshape(lead), STARTS.reshape(lead), ENDS.reshape(lead)
    check_each_row(van_der_pol, (start, end), y0, lead, args=(mu,), t_eval=PADDED.reshape(2, 2, 4))
    check_each_row(van_der_pol, (0.0, end.abs()), y0, lead, args=(mu,), rtol_seen=1e-6, atol_seen=1e-7)


def kinds_of_t_eval():
    rows = [[0.25 * end, end] for end in ENDS.tolist()]
    tensor = torch.tensor(rows, dtype=D)
    return {"array": tensor.numpy(), "tensors": list(tensor), "arrays": list(tensor.numpy()), "lists": rows}


@pytest.mark.parametrize("kind", kinds_of_t_eval())
def test_times_may_be_numbers_arrays_and_lists(kind):
    asked = torch.from_numpy(kinds_of_t_eval()["array"])
    expected = solve_ivp(van_der_pol, (torch.zeros(4), ENDS), VDP, t_eval=asked, args=(MU,), batch_dims=1)
    t_eval = kinds_of_t_eval()[kind]
    found = solve_ivp(van_der_pol, (0, ENDS.numpy()), VDP, t_eval=t_eval, args=(MU,), batch_dims=1)
    assert torch.equal(found.t, asked) and torch.equal(expected.y, found.y)


def test_times_of_single_precision_meet_the_ends_of_their_rows():
    ends = torch.tensor([0.1, 0.3, 0.7], dtype=D)
    solution = solve_ivp(
        lambda t, y: -y, (0.0, ends), torch.ones(3, dtype=D), t_eval=ends.float()[:, None], batch_dims=1
    )
    assert torch.equal(solution.t[:, 0], ends)
    torch.testing.assert_close(solution.y[:, 0], torch.exp(-ends), rtol=1e-5, atol=0)


@pytest.mark.parametrize("method", ["dopri5", "bosh3", "adams"])
@pytest.mark.parametrize("shape", [(4, 2), (4, 1)], ids=str)
def test_every_row_has_its_tolerance(shape, method):
    tolerance = torch.tensor([1e-4, 1e-6, 1e-5, 1e-8], dtype=D)[:, None].expand(shape)
    options = {"args": (MU,), "method": method, "t_eval": torch.tensor([0.5, 1.0], dtype=D)}
    solution = solve_ivp(van_der_pol, (0.0, 1.0), VDP, rtol=tolerance, atol=tolerance, batch_dims=1, **options)
    for i in range(4):
        options["args"] = (MU[i],)
        own = float(tolerance[i, 0])
        assert_row_is_alone(solution, i, solve_ivp(van_der_pol, (0.0, 1.0), VDP[i], rtol=own, atol=own, **options))


@pytest.mark.parametrize("method", ["dopri5", "adams"])
@pytest.mark.parametrize("rtol", [torch.tensor([1e-4, 1e-7], dtype=D), torch.tensor(1e-5, dtype=D), [1e-4, 1e-7]])
def test_the_elements_of_a_row_have_their_tolerances(rtol, method):
    """A tolerance that broadcasts to the state of a row is that of every row."""
    options = {"method": method, "t_eval": torch.tensor([0.5, 1.0], dtype=D), "rtol": rtol, "atol": 1e-8}
    check_each_row(van_der_pol, (0.0, 1.0), VDP, (4,), args=(MU,), **options)


def test_the_leaves_of_a_row_have_their_tolerances():
    options = {"t_eval": torch.tensor([0.5, 1.0], dtype=D), "rtol": (1e-4, 1e-7), "atol": (1e-6, 1e-9)}
    check_each_row(pair, (0.0, 1.0), (shaped(4), shaped(4).flip(0)), (4,), args=(MU,), **options)


@pytest.mark.parametrize("method", ["dopri5", "adams"])
def test_a_norm_sees_the_scaled_error_of_one_row(method):
    seen = set()

    def largest(error):
        seen.add(tuple(error.shape))
        return error.abs().max()

    t_eval = torch.tensor([0.5, 1.0], dtype=D)
    check_each_row(van_der_pol, (0.0, 1.0), VDP, (4,), args=(MU,), t_eval=t_eval, norm=largest, method=method)
    assert seen == {(2,), (1, 2)} or seen == {(2,)}


@pytest.mark.parametrize(
    "options",
    [
        {"first_step": 0.01},
        {"max_step": 0.05},
        {"min_step": 1e-3, "rtol": 1e-3},
        {"controller": PIController()},
        {"controller": PIDController(kp=0.1, ki=0.3, kd=0.05)},
        {"controller": ConstantSteps(0.03)},
    ],
    ids=str,
)
@pytest.mark.parametrize("method", ["dopri5", "tsit5"])
def test_controllers(options, method):
    t_eval = torch.tensor([0.1, 0.5, 1.0], dtype=D)
    check_each_row(van_der_pol, (0.0, 1.0), VDP, (4,), args=(MU,), t_eval=t_eval, method=method, **options)


def test_arguments_at_any_depth_come_with_their_rows():
    def func(t, y, given, factor, fixed):
        assert fixed.shape == (3,)
        return -given["k"][0][..., None] * y * factor * fixed.sum()

    k, fixed = torch.tensor([0.5, 2.0], dtype=D), torch.ones(3, dtype=D)
    y0 = torch.ones(2, 2, dtype=D)
    solution = solve_ivp(func, (0.0, 1.0), y0, args=({"k": [k]}, 0.5, fixed), batch_dims=1)
    for i in range(2):
        alone = solve_ivp(func, (0.0, 1.0), y0[i], args=({"k": [k[i]]}, 0.5, fixed))
        assert_row_is_alone(solution, i, alone, 1e-6)


# --- to the last bit: func is made of + and *, which do not depend on how many rows there are


def growth(t, y, a):
    return a * y * y


def oscillator(t, y, w):
    x, v = y[..., 0], y[..., 1]
    return torch.stack((v, -w * w * x), -1)


def elementwise(t, y, a, b):
    return a * y + b * y * y * y + t * 0.1


def random_rows(rows, *shape, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.rand(*size, generator=generator, dtype=D)

    ones = (1,) * len(shape)
    return draw(rows, *shape) * 2 - 1, 2 * draw(rows, *ones) - 1.5, -draw(rows, *ones)


T_EVAL = torch.linspace(0.0, 2.0, 9, dtype=D)


@pytest.mark.filterwarnings("ignore:Functional iteration")
@pytest.mark.parametrize(
    ("method", "size"),
    [
        *itertools.product(["dopri5", "rk4"], [1, 2, 3, 5, 8, 31, 33, 64, 100]),
        *covering(METHODS, ["tsit5", "gl4", "adams", "rodas5p"], [2, 33]),
    ],
)
def test_a_row_does_not_depend_on_the_others_to_the_last_bit(method, size):
    """Alone or among others, in any order: sums over the elements of a row are taken in one order."""
    y0, a, b = random_rows(9, size)
    options = {"method": method, "rtol": 1e-4, "t_eval": T_EVAL[:5], "batch_dims": 1, **steps_of(method, 0.2)}
    together = solve_ivp(elementwise, (0.0, 1.0), y0, args=(a, b), **options)
    for rows in (torch.tensor([4]), torch.tensor([8, 2]), torch.tensor([3, 1, 2]), torch.randperm(9)[:7]):
        some = solve_ivp(elementwise, (0.0, 1.0), y0[rows], args=(a[rows], b[rows]), **options)
        assert torch.equal(some.y, together.y[rows])
        assert [(s.accepted, s.rejected) for s in some.stats] == [
            (together.stats[i].accepted, together.stats[i].rejected) for i in rows.tolist()
        ]


@pytest.mark.parametrize("t_eval", [None, T_EVAL], ids=["steps", "t_eval"])
@pytest.mark.parametrize("compact", [None, True, False])
def test_the_order_of_the_rows_does_not_matter(t_eval, compact):
    y0, a, b = random_rows(17, 3)
    solve = lambda y0, a, b: solve_ivp(
        elementwise, (0.0, 2.0), y0, args=(a, b), t_eval=t_eval, batch_dims=1, compact=compact
    )
    plain, order = solve(y0, a, b), torch.randperm(17)
    shuffled = solve(y0[order], a[order], b[order])
    assert (
        shuffled.y.equal(plain.y[order])
        if t_eval is not None
        else torch.equal(shuffled.y.nan_to_num(7.0), plain.y[order].nan_to_num(7.0))
    )
    assert [status.message for status in shuffled.status] == [plain.status[i].message for i in order.tolist()]
    assert shuffled.stats == [plain.stats[i] for i in order.tolist()]
    if t_eval is not None:
        parts = [solve(y0[part], a[part], b[part]).y for part in (slice(0, 1), slice(1, 8), slice(8, 17))]
        assert torch.equal(torch.cat(parts), plain.y)


def test_compact_or_not_is_the_same():
    y0, a, b = random_rows(20, 2)
    end = torch.linspace(0.1, 2.0, 20, dtype=D)
    solutions = [
        solve_ivp(elementwise, (0.0, end), y0, args=(a, b), batch_dims=1, compact=compact)
        for compact in (True, False, None)
    ]
    for other in solutions[1:]:
        assert torch.equal(solutions[0].y.nan_to_num(7.0), other.y.nan_to_num(7.0))
        assert torch.equal(solutions[0].t.nan_to_num(7.0), other.t.nan_to_num(7.0))
        assert [s.message for s in solutions[0].status] == [s.message for s in other.status]


def test_rows_in_two_dimensions_are_rows():
    y0, a, b = random_rows(12, 2)
    flat = solve_ivp(elementwise, (0.0, 2.0), y0, args=(a, b), t_eval=T_EVAL, batch_dims=1)
    lead = lambda x: x.reshape(3, 4, *x.shape[1:])
    square = solve_ivp(elementwise, (0.0, 2.0), lead(y0), args=(lead(a), lead(b)), t_eval=T_EVAL, batch_dims=2)
    assert torch.equal(square.y, lead(flat.y)) and torch.equal(square.t, lead(flat.t))
    assert square.stats == flat.stats


# --- failures stay where they are


def nan_later(t, y, a, late):
    """NaN from t = 1 on where `late` is."""
    return a * y + torch.where(t > 1.0, late, 0.0 * late) * y


def failing(kind):
    """A batch with rows that fail: func, y0, args, options, which rows, and how they end."""
    y0, a, _ = random_rows(8, 2)
    bad = torch.tensor([False, True, False, False, True, True, False, False])
    where = bad[:, None]
    if kind == "blow-up":
        y0 = torch.where(where, 1.0 + y0.abs(), -y0.abs() - 0.1)
        return growth, y0, (torch.ones(8, 1, dtype=D),), {}, bad, Outcome.STEP_UNDERFLOW
    if kind == "max_steps":
        w = torch.where(bad, 300.0, 2.0).to(D)
        return oscillator, y0, (w,), {"max_steps": 60}, bad, Outcome.MAX_STEPS
    if kind == "NaN in func":
        return lambda t, y, a: a * y, y0, (torch.where(where, NAN, a),), {}, bad, Outcome.NON_FINITE
    if kind == "NaN later":
        late = torch.where(where, NAN, torch.zeros_like(a))
        return nan_later, y0, (a, late), {}, bad, Outcome.NON_FINITE
    if kind == "NaN y0":
        return lambda t, y, a: a * y, torch.where(where, NAN, y0), (a,), {}, bad, Outcome.NON_FINITE
    if kind == "inf y0":
        return lambda t, y, a: a * y, torch.where(where, math.inf, y0), (a,), {}, bad, Outcome.NON_FINITE
    assert kind == "overflow"  # fixed steps
    y0 = torch.where(where, 1e3, -y0.abs() - 0.1)
    return growth, y0, (torch.ones(8, 1, dtype=D),), {"step_size": 0.1}, bad, Outcome.NON_FINITE


FAILURES = ["blow-up", "max_steps", "NaN in func", "NaN later", "NaN y0", "inf y0", "overflow"]


@pytest.mark.parametrize("compact", [None, False])
@pytest.mark.parametrize("method", ["dopri5", "tsit5", "bosh3", "dopri8"])
@pytest.mark.parametrize("kind", FAILURES)
def test_a_row_that_fails_does_not_touch_the_others(kind, method, compact):
    func, y0, args, options, bad, outcome = failing(kind)
    options = {"method": method, "t_eval": T_EVAL, "rtol": 1e-4, "atol": 1e-6, "throw": False, **options}
    solution = solve_ivp(func, (0.0, 2.0), y0, args=args, batch_dims=1, compact=compact, **options)
    assert torch.equal(solution.success, ~bad)
    assert all(status.outcome == outcome for status, is_bad in zip(solution.status, bad, strict=True) if is_bad)
    chosen = [arg[~bad] for arg in args]
    without = solve_ivp(func, (0.0, 2.0), y0[~bad], args=chosen, batch_dims=1, compact=compact, **options)
    assert torch.equal(solution.y[~bad], without.y)
    assert [solution.stats[i] for i in torch.nonzero(~bad).flatten().tolist()] == without.stats
    for i in torch.nonzero(bad).flatten().tolist():
        alone = solve_ivp(func, (0.0, 2.0), y0[i], args=[arg[i] for arg in args], **options)
        # Near a singularity the last steps are a matter of rounding.
        words = (lambda text: re.sub(r"[\d.e+-]+", "#", text)) if kind == "blow-up" else str
        assert words(solution.status[i].message) == words(alone.status.message)
        assert solution.status[i].t == pytest.approx(alone.status.t, rel=1e-6)
        reached, asked_before = ~alone.y.isnan().any(-1), solution.status[i].t >= T_EVAL
        torch.testing.assert_close(solution.t[i], alone.t, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(solution.y[i], alone.y, rtol=1e-6, atol=1e-9, equal_nan=True)
        assert not reached[~asked_before].any()
        assert reached[asked_before].all() or kind in ("NaN y0", "inf y0")


@pytest.mark.parametrize(("method", "kind"), [("adams", "blow-up"), ("gl4", "NaN later"), ("scipy_solver", "blow-up")])
def test_a_row_that_fails_does_not_touch_the_others_with_any_engine(method, kind):
    func, y0, args, options, bad, _ = failing(kind)
    options = {"method": method, "t_eval": T_EVAL, "throw": False, **options, **steps_of(method)}
    solution = solve_ivp(func, (0.0, 2.0), y0, args=args, batch_dims=1, **options)
    for i in range(8):
        alone = solve_ivp(func, (0.0, 2.0), y0[i], args=[arg[i] for arg in args], **options)
        assert_row_is_alone(solution, i, alone, 1e-6)
        # After a hundred iterations in vain the last correction is a matter of rounding.
        messages = [x.message for x in (solution.status[i], alone.status)]
        words = [re.sub(r"last correction [\d.e+-]+", "", message) for message in messages]
        assert words[0] == words[1]
    assert solution.success[~bad].all()


def test_failed_rows_without_t_eval_return_the_steps_they_took():
    func, y0, args, options, *_ = failing("max_steps")
    solution = solve_ivp(func, (0.0, 2.0), y0, args=args, batch_dims=1, throw=False, **options)
    for i in range(8):
        alone = solve_ivp(func, (0.0, 2.0), y0[i], args=[arg[i] for arg in args], throw=False, **options)
        assert_row_is_alone(solution, i, alone, 1e-6, 1e-6)


def test_all_rows_fail():
    solution = solve_ivp(growth, (0.0, 2.0), torch.full((3,), 2.0, dtype=D), args=(1.0,), batch_dims=1, throw=False)
    assert not solution.success.any()
    assert [status.t for status in solution.status] == pytest.approx([0.5] * 3, rel=1e-5)
    y0 = torch.full((3,), NAN, dtype=D)
    solution = solve_ivp(growth, (0.0, 2.0), y0, t_eval=T_EVAL, args=(1.0,), batch_dims=1, throw=False)
    assert not solution.success.any() and solution.y.isnan().all()
    assert all("the initial state is not finite: y = nan" in status.message for status in solution.status)


def test_the_failed_rows_are_named_when_all_are_done():
    func, y0, args, *_ = failing("blow-up")
    seen = []

    def watched(t, y, a):
        seen.append(float(t.max()))
        return func(t, y, a)

    with pytest.raises(SolveError) as info:
        solve_ivp(watched, (0.0, 2.0), y0, args=args, batch_dims=1)
    message = str(info.value)
    assert message.startswith("3 of 8 rows did not reach the end: row 1: step size underflow at t = ")
    assert "row 4: " in message and "row 5: " in message and "row 0" not in message
    assert message.endswith("With throw=False the others are returned, and NaN for these")
    assert info.value.status.outcome is Outcome.STEP_UNDERFLOW
    assert max(seen) == pytest.approx(2.0)  # the others went on to the end


def test_of_many_failed_rows_three_are_shown():
    with pytest.raises(SolveError, match=r"7 of 7 rows .* row 0: .*; row 1: .*; row 2: .*; and 4 more\. With throw"):
        solve_ivp(growth, (0.0, 2.0), torch.full((7,), 2.0, dtype=D), args=(1.0,), batch_dims=1)


def test_messages_name_the_element_of_a_row():
    y0 = torch.ones(2, 3, dtype=D)
    y0[1, 2] = NAN
    status = solve_ivp(lambda t, y: -y, (0.0, 1.0), y0, batch_dims=1, throw=False).status
    assert status[1].message == "the initial state is not finite: y[2] = nan"
    state = {"a": torch.ones(2, dtype=D), "b": y0}
    status = solve_ivp(lambda t, y: y, (0.0, 1.0), state, batch_dims=1, throw=False).status
    assert status[1].message == "the initial state is not finite: y['b'][2] = nan"


# --- what func sees


def captured(mu):
    return lambda t, y: van_der_pol(t, y, mu)


@pytest.mark.parametrize(("method", "compact"), [("dopri5", None), ("dopri5", False), ("scipy_solver", None)])
def test_func_may_capture_what_has_an_entry_for_each_row(method, compact):
    span, options = (STARTS, ENDS), {"t_eval": PADDED, "batch_dims": 1, "method": method}
    expected = solve_ivp(van_der_pol, span, VDP, args=(MU,), compact=True, **options)
    found = solve_ivp(captured(MU), span, VDP, compact=compact, **options)
    torch.testing.assert_close(found.y, expected.y, rtol=1e-9, atol=1e-12, equal_nan=True)
    assert [s.accepted for s in found.stats] == [s.accepted for s in expected.stats]


@pytest.mark.parametrize("rows", [2, 3, 4])
def test_a_func_that_needs_all_rows_is_refused_where_it_must_take_some(rows):
    with pytest.raises(ValueError, match="compact=True, but func gives other values for some of the rows"):
        solve_ivp(captured(MU[:rows]), (0.0, 1.0), VDP[:rows], batch_dims=1, compact=True)


def test_a_func_that_captures_rows_and_in_which_rows_fail():
    func, y0, args, *_ = failing("blow-up")
    expected = solve_ivp(func, (0.0, 2.0), y0, args=args, t_eval=T_EVAL, batch_dims=1, throw=False)
    seen = set()

    def capturing(t, y):
        seen.add(tuple(y.shape))
        return func(t, y, args[0])

    found = solve_ivp(capturing, (0.0, 2.0), y0, t_eval=T_EVAL, batch_dims=1, throw=False, compact=False)
    assert torch.equal(found.y.nan_to_num(7.0), expected.y.nan_to_num(7.0))
    assert seen == {(8, 2)}


@pytest.mark.parametrize("compact", [True, None, False])
def test_func_sees_fewer_rows_as_rows_come_through(compact):
    seen, ends = [], torch.linspace(0.1, 3.0, 16, dtype=D)

    def func(t, y):
        seen.append((tuple(t.shape), tuple(y.shape)))
        return -y

    solve_ivp(func, (0.0, ends), torch.ones(16, 2, 3, dtype=D), batch_dims=1, compact=compact, max_step=0.1)
    assert all(t == (y[0], 1, 1) and y[1:] == (2, 3) for t, y in seen)
    counts = [y[0] for _, y in seen]
    if compact is False:
        assert set(counts) == {16}
    else:
        last = counts[-1]
        assert last <= 2 and counts.index(16) < 3
        calls = sum(counts)
        assert calls < 0.75 * 16 * len(counts)


@pytest.mark.parametrize(
    ("state", "time"),
    [((), ()), ((2,), (1,)), ((2, 3), (1, 1))],
    ids=["scalar", "vector", "matrix"],
)
@pytest.mark.parametrize("lead", [(3,), (2, 2)], ids=str)
def test_the_shape_of_the_time_that_func_receives(lead, state, time):
    shapes, kinds = set(), set()

    def func(t, y):
        shapes.add(tuple(t.shape))
        kinds.add(t.dtype)
        assert (t + y).shape == y.shape
        return -y

    solve_ivp(func, (0.0, 1.0), torch.ones(*lead, *state), t_eval=[0.3, 1.0], batch_dims=len(lead), compact=False)
    assert shapes == {lead + time} and kinds == {torch.float32}
    shapes.clear()
    ends = torch.linspace(0.5, 2.0, math.prod(lead), dtype=D).reshape(lead)
    solve_ivp(func, (0.0, ends), torch.ones(*lead, *state), batch_dims=len(lead))
    assert all(len(shape) in (1 + len(time), len(lead) + len(time)) for shape in shapes)


def test_func_receives_the_time_of_every_row():
    start = torch.tensor([0.0, 10.0, -3.0], dtype=D)
    solution = solve_ivp(lambda t, y: 2 * t + 0 * y, (start, start + 1), start**2, batch_dims=1, rtol=1e-8)
    last = [float(y[~y.isnan()][-1]) for y in solution.y]
    assert last == pytest.approx(((start + 1) ** 2).tolist())


# --- corners


@pytest.mark.parametrize("method", ["dopri5", "rk4", "gl4", "adams"])
@pytest.mark.parametrize("t_eval", [None, torch.tensor([[0.0], [0.5], [1.0], [0.7]], dtype=D)], ids=["steps", "t_eval"])
def test_rows_without_length(method, t_eval):
    span = (torch.tensor([0.0, 0.5, 1.0, 0.2], dtype=D), torch.tensor([0.0, 0.5, 2.0, 0.7], dtype=D))
    solution = check_each_row(
        van_der_pol,
        span,
        VDP,
        (4,),
        args=(MU,),
        t_eval=t_eval,
        method=method,
        rtol_seen=1e-6,
        atol_seen=1e-7,
        **steps_of(method),
    )
    assert solution.success.all() and solution.stats[0].accepted == solution.stats[1].accepted == 0
    assert torch.equal(solution.y[0, 0], VDP[0])


def test_all_rows_without_length():
    solution = solve_ivp(lambda t, y: -y, (1.0, 1.0), VDP, t_eval=[1.0], batch_dims=1)
    assert torch.equal(solution.y[:, 0], VDP) and solution.success.all()


@pytest.mark.parametrize("method", SOME_METHODS)
def test_one_row(method):
    options = {"method": method, "t_eval": torch.tensor([0.5, 1.0], dtype=D), **steps_of(method)}
    check_each_row(van_der_pol, (0.0, 1.0), VDP[:1], (1,), args=(MU[:1],), **options)
    check_each_row(van_der_pol, (0.0, 1.0), VDP[:1, None], (1, 1), args=(MU[:1, None],), **options)


@pytest.mark.parametrize("method", SOME_METHODS)
@pytest.mark.parametrize("compact", [None, True, False])
def test_no_rows(method, compact):
    y0, mu = VDP[:0], MU[:0]
    options = {"method": method, "args": (mu,), "batch_dims": 1, "compact": compact, **steps_of(method)}
    solution = solve_ivp(van_der_pol, (0.0, 1.0), y0, t_eval=[0.5, 1.0], **options)
    assert solution.y.shape == (0, 2, 2) and solution.t.shape == (0, 2)
    assert solution.status == [] and solution.stats == [] and solution.success.shape == (0,)
    assert "no rows" in repr(solution)
    solution = solve_ivp(van_der_pol, (0.0, 1.0), y0, **options)
    assert solution.y.shape[0] == 0 and solution.y.shape[2:] == (2,) and solution.t.shape == solution.y.shape[:2]


def test_no_rows_in_two_dimensions_and_no_elements():
    solution = solve_ivp(lambda t, y: -y, (0.0, 1.0), torch.ones(2, 0, 3), t_eval=[0.5], batch_dims=2)
    assert solution.y.shape == (2, 0, 1, 3) and solution.batch_shape == (2, 0)
    solution = solve_ivp(lambda t, y: -y, (0.0, 1.0), torch.ones(2, 0), t_eval=[0.5], batch_dims=1)
    assert solution.y.shape == (2, 1, 0) and solution.success.all()


def test_no_times_are_asked_for():
    solution = solve_ivp(lambda t, y: -y, (0.0, 1.0), VDP, t_eval=[], batch_dims=1)
    assert solution.y.shape == (4, 0, 2) and solution.t.shape == (4, 0) and solution.success.all()


def test_the_summary_counts_the_rows():
    func, y0, args, *_ = failing("blow-up")
    solution = solve_ivp(func, (0.0, 2.0), y0, args=args, t_eval=T_EVAL, batch_dims=1, throw=False)
    assert repr(solution).startswith("BatchSolution(5 success, 3 step_underflow\n  t: (8, 9)\n  y: (8, 9, 2)\n")


def test_batch_dims_0_is_no_batch():
    solution = solve_ivp(lambda t, y: -y, (0.0, 1.0), VDP, batch_dims=0)
    assert torch.equal(solution.y, solve_ivp(lambda t, y: -y, (0.0, 1.0), VDP).y)


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_func_may_use_its_memory_again(method):
    memory = torch.empty(4, 2, dtype=D)

    def func(t, y):
        return torch.mul(y, -1.0, out=memory)

    options = {"method": method, "t_eval": [0.301, 1.0], "batch_dims": 1, **steps_of(method)}
    found = solve_ivp(func, (0.0, 1.0), VDP, compact=False, **options)
    expected = solve_ivp(lambda t, y: -y, (0.0, 1.0), VDP, **options)
    torch.testing.assert_close(found.y, expected.y, rtol=1e-13, atol=0)


def test_the_initial_state_is_left_alone():
    y0, start = VDP.clone(), STARTS.clone()
    first = solve_ivp(van_der_pol, (start, ENDS), y0, t_eval=PADDED, args=(MU,), batch_dims=1)
    assert torch.equal(y0, VDP) and torch.equal(start, STARTS)
    first.y.zero_()
    assert torch.equal(y0, VDP)


def test_stiff_and_easy_rows_cost_what_they_cost_alone():
    mu = torch.tensor([0.1, 50.0], dtype=D)
    solution = solve_ivp(van_der_pol, (0.0, 2.0), VDP[:2], args=(mu,), batch_dims=1)
    assert solution.stats[0].accepted * 5 < solution.stats[1].accepted
    assert solution.stats[0].evaluations * 3 < solution.stats[1].evaluations


@pytest.mark.slow
def test_thousands_of_random_rows():
    rows = 3_000
    y0 = 2 * torch.randn(rows, 2, dtype=D)
    mu = 0.1 + 19.9 * torch.rand(rows, dtype=D)
    t_eval = torch.tensor([1.0, 2.0, 3.0], dtype=D)
    solution = solve_ivp(van_der_pol, (0.0, 3.0), y0, args=(mu,), t_eval=t_eval, batch_dims=1)
    assert solution.success.all() and solution.y.isfinite().all()
    for i in torch.randperm(rows)[:20].tolist():
        alone = solve_ivp(van_der_pol, (0.0, 3.0), y0[i], args=(mu[i],), t_eval=t_eval)
        torch.testing.assert_close(solution.y[i], alone.y, rtol=1e-6, atol=1e-8)
        assert abs(solution.stats[i].accepted - alone.stats.accepted) <= 2


@pytest.mark.parametrize("name", ["func", "g"])
def test_a_tensor_that_all_rows_share_and_that_is_multiplied_by_zero_at_the_start(name):
    """It has as many entries as there are rows, and which is meant shows away from the start only."""
    b = torch.tensor([1.0, 5.0], dtype=D)
    y0, ends = torch.zeros(2, 2, dtype=D), torch.tensor([0.5, 1.0], dtype=D)
    if name == "func":
        solution = solve_ivp(lambda t, y, b: -b * y + t, (0.0, ends), y0, args=(b,), batch_dims=1)
        exact = (b - 1 + torch.exp(-b)) / b**2
        torch.testing.assert_close(solution.y[1][~solution.t[1].isnan()][-1], exact, rtol=1e-4, atol=0)
        return
    g = lambda t, y, b: (b * y).sum(-1) - 0.6
    log = solve_ivp(lambda t, y, b: 0 * y + 1, (0.0, ends), y0, args=(b,), batch_dims=1, events=g).events
    assert log.t.tolist() == pytest.approx([0.1, 0.1], abs=1e-12)


def test_a_func_that_is_not_defined_elsewhere_is_called_with_some_rows():
    """What is looked at away from the start is nobody's fault."""

    def func(t, y):
        assert (t <= 0.2).all() and (y <= 2.0).all()
        return 0 * y + 1

    y0 = torch.ones(3, 1, dtype=D)
    ends = torch.tensor([0.1, 0.15, 0.2], dtype=D)
    assert solve_ivp(func, (0.0, ends), y0, batch_dims=1, compact=True, rtol=1e-3).success.all()


class ReadsFiniteness(TorchFunctionMode):
    """Counts how often the program asks whether states are finite."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.isfinite
        return func(*args, **(kwargs or {}))


def test_fixed_steps_look_at_the_last_states_only():
    counts = []
    for step_size in (0.1, 0.01):
        with ReadsFiniteness() as reads:
            solve_ivp(lambda t, y: -y, (0.0, 1.0), torch.ones(3, 2, dtype=D), batch_dims=1, step_size=step_size)
        counts.append(reads.count)
    assert counts[0] == counts[1] < 5


@pytest.mark.parametrize("gradient", ["direct", "checkpointed"])
def test_fixed_steps_tell_the_first_bad_step_of_each_row(gradient):
    y0 = torch.tensor([[1.0], [0.1], [2.0]], dtype=D, requires_grad=True)
    solution = solve_ivp(
        lambda t, y: torch.where(t < 1 / y0.detach(), y**2, torch.inf), (0.0, 3.0), y0, t_eval=[0.25, 0.75, 3.0],
        batch_dims=1, method="rk4", step_size=0.25, gradient=gradient, throw=False,
    )  # fmt: skip
    assert [status.ok for status in solution.status] == [False, True, False]
    assert [status.t for status in solution.status] == [0.75, 3.0, 0.25]
    assert solution.stats[0].accepted == 3 and solution.stats[1].accepted == 12
    assert torch.isnan(solution.y[0, 2:]).all() and torch.isnan(solution.y[2, 1:]).all()
    exact = 0.1 / (1 - 0.1 * torch.tensor([0.25, 0.75, 3.0], dtype=D))
    assert torch.allclose(solution.y[1, :, 0], exact, rtol=1e-6)
    (slope,) = torch.autograd.grad(solution.y[1, 2, 0], y0)
    assert torch.allclose(slope[:, 0], torch.tensor([0.0, 1 / 0.49, 0.0], dtype=D), rtol=1e-4)


def test_jacobians_are_right_at_once_and_nothing_is_solved_twice():
    """That the slopes depend on the state, as Newton's iteration asks, is no sign of a gradient wanted."""
    calls = []

    def func(t, y):
        calls.append(t)
        return -y * y

    y0 = torch.rand(4, 3, dtype=torch.float64)
    solution = solve_ivp(func, (0.0, 1.0), y0, method="radauIIA5", step_size=0.1, batch_dims=1)
    assert len(calls) <= solution.stats[0].evaluations + 8
