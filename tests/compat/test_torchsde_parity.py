"""The same call along the same path gives the same result as torchsde's own; each exception says why."""

import math
import warnings
from functools import cache

import pytest
import torch
import torchsde as theirs
from torch import nn

from problems import covering
from torchivp import noise
from torchivp.compat import torchsde as ours

D = torch.float64
ROWS, SIZE, NOISES = 3, 2, 3

ITO = [("ito", method, kind) for method in ("euler", "milstein", "srk") for kind in ("diagonal", "scalar", "additive")]
STRATONOVICH = [
    ("stratonovich", method, kind)
    for method in ("euler_heun", "heun", "midpoint", "milstein", "log_ode", "reversible_heun")
    for kind in ("diagonal", "scalar", "additive", "general")
]
SOLVES = [
    *ITO,
    ("ito", "euler", "general"),
    *(solve for solve in STRATONOVICH if solve[1:] != ("milstein", "general")),
]
ONE_SCHEME = [solve for solve in SOLVES if solve[1:] != ("log_ode", "general")]
"""Those of which torchsde and torchivp take the very same steps: see `test_log_ode_of_general_noise`."""

SOME_SCHEMES = [
    ("ito", "srk", "diagonal"),
    ("ito", "euler", "general"),
    ("stratonovich", "midpoint", "general"),
    ("stratonovich", "reversible_heun", "scalar"),
]

ON_GRID = [0.0, 0.25, 0.5, 1.0]
OFF_GRID = [0.0, 0.1, 0.13, 0.77, 0.95]
VARIANTS = ["f, g", "f_and_g", "f, g_prod", "f_and_g_prod", "f, g, g_prod", "f, g, f_and_g, f_and_g_prod"]


class Problem(nn.Module):
    """An SDE that depends on time and has parameters, with the methods that `variant` names."""

    def __init__(self, sde_type, noise_type, variant="f, g"):
        super().__init__()
        self.sde_type, self.noise_type = sde_type, noise_type
        generator = torch.Generator().manual_seed(5)
        self.drift = nn.Parameter(0.7 * torch.randn(SIZE, SIZE, generator=generator, dtype=D))
        self.spread = nn.Parameter(0.3 + 0.2 * torch.rand(SIZE, NOISES, generator=generator, dtype=D))
        for name in filter(None, variant.split(", ")):
            setattr(self, name, getattr(self, f"_{name}"))

    def _f(self, t, y):
        return torch.tanh(y @ self.drift) - 0.5 * y + 0.3 * torch.sin(3 * t)

    def h(self, t, y):
        return -0.4 * y

    def _g(self, t, y):
        spread, kind = self.spread, self.noise_type
        if kind == "additive":
            return ((1 + 0.5 * torch.cos(t)) * spread).expand(len(y), SIZE, NOISES)
        elementwise = 0.4 + spread[:, 0] * torch.cos(2 * y + t)
        if kind == "diagonal":
            return elementwise
        if kind == "scalar":
            return elementwise.unsqueeze(2)
        return spread * (1 + 0.5 * torch.sin(y @ self.drift).unsqueeze(2) * torch.linspace(0.5, 1, NOISES, dtype=D))

    def _prod(self, g, v):
        return g * v if self.noise_type == "diagonal" else (g @ v.unsqueeze(2)).squeeze(2)

    def _f_and_g(self, t, y):
        return self._f(t, y), self._g(t, y)

    def _g_prod(self, t, y, v):
        return self._prod(self._g(t, y), v)

    def _f_and_g_prod(self, t, y, v):
        return self._f(t, y), self._g_prod(t, y, v)


def start():
    return torch.linspace(-0.5, 0.8, ROWS * SIZE, dtype=D).reshape(ROWS, SIZE).requires_grad_()


def channels(kind, logqp=False):
    return {"diagonal": SIZE + logqp, "scalar": 1}.get(kind, NOISES)


def path(kind, logqp=False, make=noise.BrownianInterval, t1=1.0, **kwargs):
    kwargs = {"entropy": 7, "levy_area_approximation": "foster", **kwargs}
    return make(0.0, t1, size=(ROWS, channels(kind, logqp)), dtype=D, **kwargs)


def solve(library, problem, ts, name="sdeint", bm=None, logqp=False, extra=False, **kwargs):
    """The solution in parts, and the gradients of a function of it by the initial state and the parameters."""
    y0 = start()
    bm = path(problem.noise_type, logqp) if bm is None else bm
    kwargs = {"dt": 1 / 16, **kwargs}
    result = getattr(library, name)(problem, y0, torch.tensor(ts, dtype=D), bm, logqp=logqp, extra=extra, **kwargs)
    parts = list(result) if logqp or extra else [result]
    if extra:
        parts[-1:] = parts[-1]
    tensors = [part for part in parts if part.requires_grad]
    loss = sum((part * torch.linspace(0.5, 1.5, part.numel(), dtype=D).reshape(part.shape)).sum() for part in tensors)
    inputs = [y0, *problem.parameters()]
    gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
    found = [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, gradients, strict=True)]
    return [part.detach() for part in parts], found


def assert_same(mine, other, tolerance=1e-10):
    assert len(mine) == len(other)
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("scheme", "ts", "logqp"), covering(ONE_SCHEME, SOME_SCHEMES, [ON_GRID, OFF_GRID], [False, True]), ids=str
)
def test_solutions_and_gradients(scheme, logqp, ts):
    sde_type, method, kind = scheme
    results = [
        solve(library, Problem(sde_type, kind), ts, method=method, logqp=logqp, extra=True)
        for library in (ours, theirs)
    ]
    for mine, other in zip(*results, strict=True):
        assert_same(mine, other)


@pytest.mark.parametrize(("scheme", "variant"), covering(ONE_SCHEME, SOME_SCHEMES, VARIANTS), ids=str)
def test_the_methods_that_an_sde_may_have(scheme, variant):
    """Whatever torchsde can do with them is done here too; where it cannot, neither, or the right thing."""
    sde_type, method, kind = scheme
    reference, gradients = solve(theirs, Problem(sde_type, kind), OFF_GRID, method=method)
    problem = Problem(sde_type, kind, variant)
    try:
        mine, mine_gradients = solve(ours, problem, OFF_GRID, method=method)
    except RuntimeError as error:
        assert "Method `" in str(error) and "has not been provided" in str(error)
        with pytest.raises(RuntimeError, match="has not been provided"):
            solve(theirs, problem, OFF_GRID, method=method)
    else:
        assert_same(mine, reference)
        assert_same(mine_gradients, gradients)


@pytest.mark.parametrize("make", [ours.BrownianInterval, theirs.BrownianInterval], ids=["ours", "torchsde's"])
@pytest.mark.parametrize(("sde_type", "method", "kind"), [*ITO, ("stratonovich", "log_ode", "scalar")])
def test_paths_of_both_libraries(sde_type, method, kind, make):
    """They answer by the order of queries, so that each solve needs its own."""
    results = [
        solve(library, Problem(sde_type, kind), OFF_GRID, method=method, bm=path(kind, make=make))
        for library in (ours, theirs)
    ]
    for mine, other in zip(*results, strict=True):
        assert_same(mine, other)


@pytest.mark.parametrize("kind", ["diagonal", "scalar", "additive"])
@pytest.mark.parametrize("make", ["BrownianTree", "BrownianPath", "ReverseBrownian"])
def test_the_other_brownian_motions(make, kind):
    def bm(library):
        w0 = torch.zeros(ROWS, channels(kind), dtype=D)
        if make == "ReverseBrownian":
            return library.ReverseBrownian(path(kind, make=theirs.BrownianInterval))
        return getattr(library, make)(0.0, w0, **({"entropy": 3} if make == "BrownianTree" else {}))

    times = torch.tensor(ON_GRID, dtype=D)
    times = -times.flip(0) if make == "ReverseBrownian" else times
    shared = bm(theirs)
    results = [
        library.sdeint(Problem("ito", kind), start(), times, shared, "euler", 1 / 16) for library in (ours, theirs)
    ]
    assert_same([results[0]], [results[1]])
    if make != "BrownianPath":  # whose entropy is drawn
        assert_same([ours.sdeint(Problem("ito", kind), start(), times, bm(ours), "euler", 1 / 16)], [results[1]])


@pytest.mark.parametrize("dt", [0.1, 0.07, 1e-2, 1 / 3, 2.0])
@pytest.mark.parametrize("ts", [[0.0, 1.0], [0.0, 0.3, 0.7, 1.0], [0.2, 0.9]])
def test_steps_that_rounding_errors_add_up_in(ts, dt):
    """torchsde adds dt to the time, step by step, which can leave a last step of 1e-16; torchivp multiplies."""
    results = [solve(library, Problem("ito", "diagonal"), ts, method="srk", dt=dt) for library in (ours, theirs)]
    assert_same(results[0][0], results[1][0], 1e-6)
    assert_same(results[0][1], results[1][1], 1e-5)


def test_single_precision():
    ts = torch.linspace(0.0, 1.0, 5)
    bm = noise.BrownianInterval(0.0, 1.0, size=(ROWS, SIZE), dtype=torch.float32, entropy=1)
    problem = Problem("stratonovich", "diagonal").float()
    results = [
        library.sdeint(problem, start().float(), ts, bm, "midpoint", 1 / 32).detach() for library in (ours, theirs)
    ]
    assert results[0].dtype == torch.float32
    assert_same([results[0]], [results[1]], 1e-5)


@pytest.mark.parametrize("ts", [(0, 1), [0.0, 0.4, 1.0], torch.tensor([0.0, 1.0])], ids=["ints", "list", "single"])
def test_times_of_all_kinds(ts):
    results = [
        library.sdeint(Problem("ito", "diagonal"), start(), ts, path("diagonal"), "euler", 1 / 8)
        for library in (ours, theirs)
    ]
    # torchsde gives drift and diffusion times of the dtype of `ts`, torchivp of the dtype of the state.
    assert_same([results[0]], [results[1]], 1e-7)


@pytest.mark.parametrize("sde_type", ["ito", "stratonovich"])
@pytest.mark.parametrize("kind", ["diagonal", "scalar", "additive", "general"])
def test_default_methods(sde_type, kind):
    results = [solve(library, Problem(sde_type, kind), ON_GRID) for library in (ours, theirs)]
    assert_same(results[0][0], results[1][0])


def test_renamed_methods():
    class Renamed(Problem):
        posterior, width, before = Problem._f, Problem._g, Problem.h

    names = {"drift": "posterior", "diffusion": "width", "prior_drift": "before"}
    problem = Renamed("ito", "diagonal", "")
    problem.h = None
    plain, _ = solve(theirs, Problem("ito", "diagonal"), ON_GRID, logqp=True)
    for library in (ours, theirs):
        assert_same(solve(library, problem, ON_GRID, logqp=True, names=names)[0], plain)
    both = Problem("ito", "diagonal", "")
    names = {"drift_and_diffusion": "_f_and_g", "drift_and_diffusion_prod": "_f_and_g_prod"}
    plain, _ = solve(theirs, Problem("ito", "diagonal"), ON_GRID, method="euler")
    for library in (ours, theirs):
        assert_same(solve(library, both, ON_GRID, method="euler", names=names)[0], plain)


@pytest.mark.parametrize(("sde_type", "kind"), [("ito", "diagonal"), ("ito", "scalar"), ("stratonovich", "additive")])
def test_milstein_without_derivatives(sde_type, kind):
    results = [
        solve(library, Problem(sde_type, kind), OFF_GRID, method="milstein", options={"grad_free": True})
        for library in (ours, theirs)
    ]
    for mine, other in zip(*results, strict=True):
        assert_same(mine, other)


def test_milstein_without_derivatives_in_stratonovichs_calculus():
    """torchsde's one-sided difference has an error of mean dt^1.5 in each step: it is of order 1/2 there."""
    y0, ts = torch.full((300, SIZE), 0.3, dtype=D), [0.0, 1.0]
    bm = noise.BrownianInterval(0.0, 1.0, size=(300, SIZE), dtype=D, entropy=1)
    problem = Problem("stratonovich", "diagonal")
    with torch.no_grad():
        fine = ours.sdeint(problem, y0, ts, bm, "milstein", 1 / 512)[-1]
        orders = []
        for library in (ours, theirs):
            found = [
                library.sdeint(problem, y0, ts, bm, "milstein", dt, options={"grad_free": True})[-1]
                for dt in (1 / 8, 1 / 32, 1 / 128)
            ]
            errors = [(y - fine).abs().mean().item() for y in found]
            orders.append(math.log(errors[0] / errors[2], 16))
    assert orders[0] > 0.85 and orders[1] < 0.7


@cache
def errors_of_linear_scalar_noise(library, sde_type, **options):
    """Mean errors of "milstein" for dY = A Y dW at W's end, where A is not symmetric, for dt = 1/32 and 1/128."""
    matrix = torch.tensor([[0.3, 0.9], [-0.2, 0.1]], dtype=D)

    class Linear(nn.Module):
        noise_type = "scalar"

        def f(self, t, y):
            return 0.5 * y @ (matrix @ matrix).T if sde_type == "ito" else 0 * y

        def g(self, t, y):
            return (y @ matrix.T).unsqueeze(2)

    sde, rows = Linear(), 300
    sde.sde_type = sde_type
    bm = noise.BrownianInterval(0.0, 1.0, size=(rows, 1), dtype=D, entropy=2)
    y0 = torch.ones(rows, 2, dtype=D)
    exact = (torch.matrix_exp(bm(0.0, 1.0).unsqueeze(2) * matrix) @ y0.unsqueeze(2)).squeeze(2)
    found = [
        library.sdeint(sde, y0, [0.0, 1.0], bm, "milstein", dt, options=dict(options))[-1] for dt in (1 / 32, 1 / 128)
    ]
    return [(y - exact).norm(dim=1).mean().item() for y in found]


@pytest.mark.parametrize("sde_type", ["ito", "stratonovich"])
def test_milstein_of_scalar_noise_that_couples_the_state(sde_type):
    """torchsde multiplies by the transpose of the diffusion's derivative, unless without derivatives."""
    mine, wrong = errors_of_linear_scalar_noise(ours, sde_type), errors_of_linear_scalar_noise(theirs, sde_type)
    right = errors_of_linear_scalar_noise(theirs, sde_type, grad_free=True)
    free = errors_of_linear_scalar_noise(ours, sde_type, grad_free=True)
    for found in (mine, right, free):
        assert math.log(found[0] / found[1], 4) == pytest.approx(1.0, abs=0.15)
    assert math.log(wrong[0] / wrong[1], 4) < 0.6
    assert mine[1] < 1.3 * right[1] and mine[1] < 0.1 * wrong[1]


def test_log_ode_of_general_noise():
    """torchsde leaves the areas out of the predictor of the middle; both converge to the same solution."""
    differences = []
    for steps in (8, 64):
        found = [
            solve(library, Problem("stratonovich", "general"), [0.0, 1.0], method="log_ode", dt=1 / steps)[0][0][-1]
            for library in (ours, theirs)
        ]
        differences.append((found[0] - found[1]).abs().max().item())
    assert differences[0] < 0.05 and differences[1] < differences[0] / 4


@pytest.mark.parametrize(("sde_type", "method", "kind"), [*ITO[:1], STRATONOVICH[9]])
def test_adaptive_steps_meet_the_tolerance(sde_type, method, kind):
    kwargs = {"method": method, "dt": 0.1, "adaptive": True, "rtol": 1e-3, "atol": 1e-3, "dt_min": 1e-5}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adaptive = [solve(library, Problem(sde_type, kind), ON_GRID, **kwargs)[0][0] for library in (ours, theirs)]
    fine = solve(ours, Problem(sde_type, kind), ON_GRID, method=method, dt=1 / 512)[0][0]
    for found in adaptive:
        torch.testing.assert_close(found, fine, rtol=0.05, atol=0.05)


def test_a_rejected_step_is_not_accepted_because_the_next_would_be_too_small():
    class Stiff(nn.Module):
        sde_type, noise_type = "ito", "additive"

        def f(self, t, y):
            return -300 * y

        def g(self, t, y):
            return torch.zeros(1, 1, 1, dtype=D)

    kwargs = {"method": "euler", "dt": 0.02, "adaptive": True, "dt_min": 6e-3, "rtol": 1e-6, "atol": 1e-6}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, other = (
            lib.sdeint(Stiff(), torch.ones(1, 1, dtype=D), [0.0, 0.02], **kwargs)[-1].abs().item()
            for lib in (ours, theirs)
        )
    assert found <= 1.0 < other


@pytest.mark.parametrize(("sde_type", "method", "kind"), ONE_SCHEME)
def test_adjoint_gradients(sde_type, method, kind):
    """Both solve the same adjoint equation; of Itô equations torchsde solves it by other methods."""
    kwargs = {"method": method, "dt": 1 / 8 if sde_type == "stratonovich" else 1 / 32, "name": "sdeint_adjoint"}
    mine, gradients = solve(ours, Problem(sde_type, kind), ON_GRID, **kwargs)
    other, their_gradients = solve(theirs, Problem(sde_type, kind), ON_GRID, **kwargs)
    assert_same(mine, other)
    if sde_type == "stratonovich":
        assert_same(gradients, their_gradients, 1e-8)
        return
    for a, b in zip(gradients, their_gradients, strict=True):
        assert (a - b).abs().max() < 0.2 * b.abs().max()


def test_adjoint_gradients_of_itos_equations_converge():
    _, exact = solve(ours, Problem("ito", "diagonal"), ON_GRID, method="srk", dt=1 / 128)
    errors = []
    for dt in (1 / 16, 1 / 256):
        _, found = solve(ours, Problem("ito", "diagonal"), ON_GRID, method="srk", dt=dt, name="sdeint_adjoint")
        errors.append(max((a - b).abs().max().item() for a, b in zip(found, exact, strict=True)))
    assert errors[1] < 0.2 * errors[0]


@pytest.mark.parametrize("kind", ["diagonal", "general"])
def test_adjoint_gradients_of_the_divergence(kind):
    kwargs = {"method": "reversible_heun", "name": "sdeint_adjoint", "logqp": True, "extra": True}
    results = [solve(library, Problem("stratonovich", kind), ON_GRID, **kwargs) for library in (ours, theirs)]
    for mine, other in zip(*results, strict=True):
        assert_same(mine, other)


def test_adjoint_gradients_between_steps():
    """torchsde's is approximate there, and says so."""
    kwargs = {"method": "reversible_heun", "dt": 1 / 16}
    with pytest.warns(UserWarning, match="not an integer multiple"):
        _, mine = solve(ours, Problem("stratonovich", "diagonal"), OFF_GRID, name="sdeint_adjoint", **kwargs)
    _, direct = solve(ours, Problem("stratonovich", "diagonal"), OFF_GRID, **kwargs)
    assert_same(mine, direct)
