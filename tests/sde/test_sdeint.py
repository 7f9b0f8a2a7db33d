"""The doors for SDEs: what they take, what they return, and what the noise is a function of."""

import math
import warnings
from itertools import pairwise

import pytest
import torch

import torchivp
from torchivp.sde.base import NOISE_TYPES
from torchivp.sde_loop.steps import Steps


class Problem(torch.nn.Module):
    """A nonlinear SDE with noise of any type, for states of any shape."""

    def __init__(self, noise_type="diagonal", sde_type="ito", size=3, channels=2):
        super().__init__()
        self.noise_type, self.sde_type = noise_type, sde_type
        generator = torch.Generator().manual_seed(0)
        self.A = torch.nn.Parameter(0.3 * torch.randn(size, size, generator=generator, dtype=torch.float64))
        self.B = torch.nn.Parameter(0.3 * torch.randn(size, channels, generator=generator, dtype=torch.float64))

    def f(self, t, y):
        return torch.tanh(y @ self.A) * torch.cos(t)

    def h(self, t, y):
        return -y

    def g(self, t, y):
        if self.noise_type == "diagonal":
            return 0.5 + 0.1 * torch.sin(y)
        if self.noise_type == "scalar":
            return 0.5 + 0.1 * (y @ self.A).unsqueeze(-1)
        if self.noise_type == "general":
            return self.B * (1 + 0.1 * y.unsqueeze(-1))
        return self.B.expand(*y.shape[:-1], *self.B.shape)  # additive, which is commutative


def solve(sde, y0, ts, seed=0, **kwargs):
    torch.manual_seed(seed)
    with torch.no_grad():
        return torchivp.sdeint(sde, y0, ts, **{"dt": 0.05, **kwargs})


def start(*shape):
    return torch.linspace(-1, 1, math.prod(shape), dtype=torch.float64).reshape(shape)


@pytest.mark.parametrize("noise_type", NOISE_TYPES)
@pytest.mark.parametrize("sde_type", ["ito", "stratonovich"])
@pytest.mark.parametrize("shape", [(5, 3), (3,), (2, 4, 3)])
class TestShapes:
    @pytest.mark.parametrize("options", [{}, {"interp": "linear"}])
    def test_outputs_have_the_shape_of_the_state(self, noise_type, sde_type, shape, options):
        y = solve(Problem(noise_type, sde_type), start(*shape), [0, 0.1, 0.33], options=options)
        assert y.shape == (3, *shape)
        assert torch.equal(y[0], start(*shape))
        assert y.isfinite().all()

    def test_adaptive(self, noise_type, sde_type, shape):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            y = solve(Problem(noise_type, sde_type), start(*shape), [0, 0.3], adaptive=True, rtol=0.01, atol=0.01)
        assert y.shape == (2, *shape) and y.isfinite().all()

    def test_divergence(self, noise_type, sde_type, shape):
        y, divergence = solve(Problem(noise_type, sde_type), start(*shape), [0, 0.1, 0.3], logqp=True)
        assert y.shape == (3, *shape)
        assert divergence.shape == (2, *shape[:-1])
        assert (divergence > 0).all()

    def test_a_batch_is_its_rows(self, noise_type, sde_type, shape):
        """The same noise, given as a path, solves each row by itself."""
        sde, y0 = Problem(noise_type, sde_type), start(*shape)
        channels = {"diagonal": 3, "scalar": 1}.get(noise_type, 2)
        path = torchivp.BrownianInterval(
            0, 1, size=(*shape[:-1], channels), dtype=torch.float64, entropy=3, levy_area_approximation="space-time"
        )
        whole = solve(sde, y0, [0, 1.0], bm=path)[-1]

        class Row(torchivp.BrownianInterval):
            def increment(self, ta, tb):
                found = path.increment(ta, tb)
                W, H = (x.reshape(-1, channels)[-1:] for x in (found.W, found.H))
                return type(found)(found.dt, W, H)

        last = Row(0, 1, size=(1, channels), dtype=torch.float64, levy_area_approximation="space-time")
        alone = solve(sde, y0.reshape(-1, 3)[-1:], [0, 1.0], bm=last)[-1]
        torch.testing.assert_close(whole.reshape(-1, 3)[-1:], alone)


def test_pytrees():
    class Tree:
        noise_type, sde_type = "diagonal", "stratonovich"

        def f(self, t, y):
            return {"a": -y["a"], "b": (y["b"][0] * 0,)}

        def g(self, t, y):
            return {"a": 0.1 + 0 * y["a"], "b": (0.2 + 0 * y["b"][0],)}

    y0 = {"a": torch.ones(4, 3), "b": (torch.zeros(4, 2),)}
    y = solve(Tree(), y0, [0, 0.5, 1])
    assert y["a"].shape == (3, 4, 3) and y["b"][0].shape == (3, 4, 2)


def test_a_pytree_with_general_noise():
    class Tree:
        noise_type, sde_type = "general", "ito"

        def f(self, t, y):
            return tuple(-x for x in y)

        def g(self, t, y):
            return tuple(x.unsqueeze(-1) * torch.tensor([0.1, 0.2]) for x in y)

    y = solve(Tree(), (torch.ones(4, 3), torch.ones(4, 1)), [0, 1.0])
    # Both leaves of a row have the same two noises.
    torch.testing.assert_close(y[0][-1], y[1][-1].expand(4, 3))


def test_images_with_one_noise_for_each():
    class Images:
        noise_type, sde_type = "scalar", "ito"

        def f(self, t, y):
            return 0 * y

        def g(self, t, y):
            return torch.ones_like(y).unsqueeze(-1)

    y = solve(Images(), torch.zeros(5, 3, 2, 2), [0, 1.0], batch_dims=1)[-1]
    assert y.std() > 0.1
    assert torch.equal(y, y[:, :1, :1, :1].expand_as(y))


def test_complex_states_have_real_noise():
    class Free:
        noise_type, sde_type = "diagonal", "ito"

        def f(self, t, y):
            return 1j * y

        def g(self, t, y):
            return torch.ones_like(y)

    y = solve(Free(), torch.zeros(1000, 1, dtype=torch.complex128), [0, 1e-9], dt=1)[-1]
    assert y.dtype == torch.complex128
    assert y.real.std() > 1e-6 and y.imag.abs().max() < 1e-9


class TestTimes:
    @pytest.mark.parametrize("ts", [[0, 1], (0.0, 1.0), torch.tensor([0.0, 1.0]), torch.tensor([0, 1])])
    def test_forms(self, ts):
        assert torch.equal(solve(Problem(), start(2, 3), ts), solve(Problem(), start(2, 3), [0.0, 1.0]))

    def test_one_time(self):
        assert torch.equal(solve(Problem(), start(2, 3), [0.5]), start(1, 2, 3))

    def test_more_outputs_on_the_steps_change_nothing(self):
        few = solve(Problem(), start(2, 3), [0, 1.0], dt=0.125)
        many = solve(Problem(), start(2, 3), [0, 0.25, 0.5, 1.0], dt=0.125)
        assert torch.equal(few[-1], many[-1])

    def test_steps_land_on_outputs(self):
        steps = Steps.landing([0.0, 1.0, 1.05, 0.8 + 1.2], 0.3)
        times = steps.times(0, steps.count)
        assert [times[k + 1] for k, _ in steps.outputs] == [0.0, 1.0, 1.05, 2.0]
        assert max(b - a for a, b in pairwise(times)) <= 0.3
        assert times == [steps.times(i, i)[0] for i in range(steps.count + 1)]

    def test_a_span_that_is_a_multiple_of_dt_has_so_many_steps(self):
        assert Steps.landing([0.0, 1.0], 0.1).count == 10
        assert Steps.landing([0.0, 0.3], 0.1).count == 3
        assert Steps.regular([0.0, 1.0], 0.1).count == 10

    def test_interpolated_outputs(self):
        """Between the ends of steps the states are interpolated linearly, and the last step ends at the last time."""
        fine = solve(Problem(), start(2, 3), [0, 0.3, 0.6, 0.7], dt=0.3, options={"interp": "linear"})
        between = solve(Problem(), start(2, 3), [0, 0.15, 0.45, 0.7], dt=0.3, options={"interp": "linear"})
        torch.testing.assert_close(between[1], (fine[0] + fine[1]) / 2)
        torch.testing.assert_close(between[2], (fine[1] + fine[2]) / 2)
        torch.testing.assert_close(between[3], fine[3])

    def test_large_times(self):
        y = solve(Problem(), start(2, 3).float().double(), [1e6, 1e6 + 1], dt=0.1)
        assert y.isfinite().all()

    def test_time_that_decreases_sees_the_path_backwards(self):
        class Path:
            noise_type, sde_type = "additive", "ito"

            def f(self, t, y):
                return torch.ones_like(y)

            def g(self, t, y):
                return torch.ones_like(y).unsqueeze(-1)

        path = torchivp.BrownianInterval(0, 2, size=(4, 1), dtype=torch.float64)
        y = solve(Path(), torch.zeros(4, 1, dtype=torch.float64), [2, 1.5, 0], bm=path, method="euler")
        torch.testing.assert_close(y[1], -0.5 - path(1.5, 2))
        torch.testing.assert_close(y[2], -2 - path(0, 2))


class TestSeeds:
    def test_manual_seed_governs(self):
        first, again, other = (solve(Problem(), start(2, 3), [0, 1], seed=seed) for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_solves_differ(self):
        torch.manual_seed(0)
        first, second = (torchivp.sdeint(Problem(), start(2, 3), [0, 1], dt=0.1) for _ in range(2))
        assert not torch.equal(first, second)

    @pytest.mark.parametrize("rng", ["torch", "counter"])
    def test_generator(self, rng):
        def once():
            generator = torch.Generator().manual_seed(5)
            return solve(Problem(), start(2, 3), [0, 1], seed=None or 0, generator=generator, rng=rng)

        torch.manual_seed(123)
        assert torch.equal(once(), once())

    def test_numbers_of_the_counter_do_not_depend_on_the_batch(self):
        def once(y0, rows=None):
            generator = torch.Generator().manual_seed(5)
            return solve(Problem(), y0, [0, 1], generator=generator, rng="counter", rows=rows)

        whole = once(start(6, 3))
        torch.testing.assert_close(once(start(6, 3)[4:], rows=range(4, 6)), whole[:, 4:], rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(once(start(6, 3)[[5, 1]], rows=[5, 1]), whole[:, [5, 1]], rtol=1e-14, atol=1e-14)

    @pytest.mark.parametrize("rng", ["torch", "counter"])
    def test_the_law_of_the_noise_of_a_grid(self, rng):
        class Area:
            """Y0 = W, and Y1 = the integral of W, which a drift of order 3/2 gets right from W and H."""

            noise_type, sde_type = "additive", "ito"

            def f(self, t, y):
                return torch.stack((0 * y[:, 0], y[:, 0]), dim=1)

            def g(self, t, y):
                return torch.tensor([[1.0], [0.0]], dtype=y.dtype).expand(len(y), 2, 1)

        y = solve(Area(), torch.zeros(20000, 2, dtype=torch.float64), [0, 0.7, 1], dt=0.3, method="sra1", rng=rng)
        W, U = y[-1].T
        n = len(W)
        assert abs(W.mean()) < 4 / n**0.5
        assert abs(W.var() - 1) < 4 * (2 / n) ** 0.5
        assert abs(U.var() - 1 / 3) < 4 * (2 / n) ** 0.5 / 3
        assert abs((W * U).mean() - 1 / 2) < 4 / n**0.5
        increments = y[1, :, 0], y[2, :, 0] - y[1, :, 0]
        assert abs((increments[0] * increments[1]).mean()) < 4 * (0.21 / n) ** 0.5

    def test_blocks_do_not_matter(self):
        """Far more steps than are drawn at once: each increment is used once."""
        y = solve(Random(), torch.zeros(64, 1, dtype=torch.float64), torch.linspace(0, 1, 1001), dt=1e-3)
        increments = (y[1:] - y[:-1]).flatten()
        assert len(increments.unique()) == len(increments)
        assert abs(increments.var() * 1000 - 1) < 0.03


class Random:
    noise_type, sde_type = "diagonal", "ito"

    def f(self, t, y):
        return 0 * y

    def g(self, t, y):
        return torch.ones_like(y)


class TestAdaptive:
    def test_error_falls_with_the_tolerance(self):
        class GBM:
            noise_type, sde_type = "diagonal", "ito"

            def f(self, t, y):
                return 0.5 * y

            def g(self, t, y):
                return 0.8 * y

        path = torchivp.BrownianInterval(
            0, 1, size=(32, 1), dtype=torch.float64, entropy=1, levy_area_approximation="space-time"
        )
        exact = torch.exp(0.5 - 0.32 + 0.8 * path(0, 1))
        errors = [
            solve(GBM(), torch.ones_like(exact), [0, 1.0], bm=path, adaptive=True, rtol=tol, atol=tol, dt=0.5)[-1]
            .sub(exact)
            .abs()
            .mean()
            for tol in (1e-1, 1e-2, 1e-3, 1e-4)
        ]
        assert errors[0] > 2 * errors[1] > 4 * errors[2] > 8 * errors[3]

    def test_the_smallest_step_is_taken_after_the_rejected_one(self):
        """A stiff drift: the large step that was rejected must not be accepted in its place."""

        class Stiff:
            noise_type, sde_type = "diagonal", "ito"

            def f(self, t, y):
                return -300 * y

            def g(self, t, y):
                return 0 * y

        y0 = torch.ones(1, 1, dtype=torch.float64)
        y = solve(Stiff(), y0, [0, 1.0], adaptive=True, dt=0.5, dt_min=0.004, method="milstein")
        assert abs(y[-1]) < 1e-3

    def test_a_warning_when_the_smallest_step_is_too_large(self):
        with pytest.warns(UserWarning, match="Hitting minimum allowed step size"):
            solve(Problem(), start(2, 3), [0, 1], adaptive=True, rtol=1e-9, atol=1e-9, dt_min=0.05)

    def test_the_budget_is_for_the_whole_solve(self):
        with pytest.raises(torchivp.SolveError, match=r"20 step attempts .* raise options"):
            solve(
                Problem(), start(2, 3), torch.linspace(0, 1, 11), adaptive=True, rtol=1e-6, atol=1e-6,
                options={"max_num_steps": 20},
            )  # fmt: skip

    def test_no_numbers(self):
        class Undefined(Random):
            def f(self, t, y):
                return torch.where(t > 0.5, torch.nan, 0.0) * y

        with pytest.raises(torchivp.SolveError, match="not finite"):
            solve(Undefined(), torch.ones(2, 2), [0, 1.0], adaptive=True, method="milstein")


def test_rows_that_are_not_finite_are_counted():
    class Explosive(Random):
        def f(self, t, y):
            return y**5

    with pytest.warns(UserWarning, match="not finite in 2 of 3 rows"):
        y = solve(Explosive(), torch.tensor([[0.0], [50.0], [60.0]]), [0, 1.0], dt=0.1)
    assert y[-1, 0].isfinite()


def test_what_asks_for_no_gradient_has_none():
    class Plain(Random):
        pass

    for row in torchivp.sde_methods(noise_type="diagonal"):
        sde = Plain()
        sde.sde_type = row.sde_type
        assert not torchivp.sdeint(sde, torch.ones(2, 2), [0, 0.2], dt=0.1, method=row.method).requires_grad, row


def test_the_table_of_methods():
    rows = torchivp.sde_methods()
    assert {row.method for row in rows} == set(torchivp.SDE_METHODS)
    assert torchivp.sde_methods("ito", "diagonal")[0].strong == 1.5
    assert {row.sde_type for row in torchivp.sde_methods("ito")} == {"ito"}
    with pytest.raises(ValueError, match="sde_type must be 'ito' or 'stratonovich', got 'itô'"):
        torchivp.sde_methods("itô")


class NoDrift:
    noise_type, sde_type = "diagonal", "ito"

    def g(self, t, y):
        return y


class Changed(Problem):
    """A problem with something else in its place."""

    def __init__(self, noise_type="diagonal", sde_type="ito", **others):
        super().__init__()
        self.noise_type, self.sde_type = noise_type, sde_type
        for name, value in others.items():
            setattr(self, name, value)


Y0 = start(2, 3)
REFUSALS = {
    "no noise_type": (object(), {}, ValueError, "the SDE, object, has no attribute noise_type: derive it from"),
    "bad noise_type": (Changed("white"), {}, ValueError, "noise_type must be one of 'general', .*, got 'white'"),
    "bad sde_type": (Changed(sde_type="levy"), {}, ValueError, "sde_type must be 'ito' or 'stratonovich', got 'levy'"),
    "no drift": (NoDrift(), {}, ValueError, r"the SDE has no drift: define f\(t, y\)"),
    "no diffusion": (Changed(g=None), {}, ValueError, r"the SDE has no diffusion: define g\(t, y\)"),
    "no prior": (Changed(h=None), {"logqp": True}, ValueError, r"logqp=True needs the prior drift: define h\(t, y\)"),
    "drift of another shape": (
        Changed(f=lambda t, y: y[:, :2]), {}, ValueError, r"f must return .* shape \(2, 3\), f\(t, y\) has .* \(2, 2\)"
    ),
    "diffusion of another shape": (
        Changed("scalar", g=lambda t, y: y), {}, ValueError, r"g must return \(2, 3, 1\).*has shape \(2, 3\); of scalar"
    ),
    "unknown name": (Problem(), {"names": {"drfit": "f"}}, ValueError, "names can rename 'drift', .*, not 'drfit'"),
    "name of nothing": (Problem(), {"names": {"drift": "force"}}, ValueError, "but the SDE has no method 'force'"),
    "unknown method": (Problem(), {"method": "eular"}, ValueError, "unknown method 'eular'. Did you mean 'euler'"),
    "method of the other calculus": (
        Problem(), {"method": "heun"}, ValueError, "'heun' does not solve SDEs of type 'ito' with diagonal .* do: 's"
    ),
    "method that is none": (Problem(), {"method": 3}, TypeError, "method must be a name such as 'euler', got int"),
    "times that turn": (Problem(), {"ts": [0, 1, 0.5]}, ValueError, r"ts must be strictly increasing or decreasing"),
    "times that move": (
        Problem(), {"ts": torch.tensor([0.0, 1.0], requires_grad=True)}, ValueError, "ts must not require a gradient"
    ),
    "dt of zero": (Problem(), {"dt": 0.0}, ValueError, "dt must be positive, got 0.0"),
    "dt that moves": (
        Problem(), {"dt": torch.tensor(0.1, requires_grad=True)}, ValueError, r"write dt=float\(dt\)"
    ),
    "too many steps": (
        Problem(), {"options": {"max_num_steps": 3}}, ValueError, "20 steps of dt=0.05 lead from 0 to 1, more than"
    ),
    "options that are none": (Problem(), {"options": [1]}, TypeError, "options must be a dict such as"),
    "interpolation unknown": (
        Problem(), {"options": {"interp": "cubic"}}, ValueError, r"options\['interp'\] must be 'linear'"
    ),
    "rng unknown": (Problem(), {"rng": "philox"}, ValueError, "rng must be 'torch' or 'counter', got 'philox'"),
    "rows without counter": (Problem(), {"rows": [0, 1]}, ValueError, "pass rng='counter' too"),
    "too few rows": (Problem(), {"rows": [0], "rng": "counter"}, ValueError, r"rows must be 2 whole numbers"),
    "path of another shape": (
        Problem(), {"bm": torchivp.BrownianInterval(0, 1, size=(2, 4))}, ValueError,
        r"bm has shape \(2, 4\), but diagonal noise of this problem has shape \(2, 3\): pass size=\(2, 3\)",
    ),
    "path without areas": (
        Problem(), {"bm": torchivp.BrownianInterval(0, 1, size=(2, 3)), "method": "srk"}, ValueError,
        "'srk' needs a Brownian motion with levy_area_approximation 'space-time' or .*, bm has 'none'",
    ),
    "path that is too short": (
        Problem(), {"bm": torchivp.BrownianInterval(0, 0.5, size=(2, 3)), "method": "euler"}, ValueError, "0.5",
    ),
    "path and generator": (
        Problem(), {"bm": torchivp.BrownianInterval(0, 1, size=(2, 3)), "rng": "counter"}, ValueError, "leave rng and"
    ),
    "path that is none": (Problem(), {"bm": 3}, ValueError, "bm must be a Brownian motion with a shape"),
    "noise of unknown size": (
        Changed("general", g=None, g_prod=lambda t, y, v: y), {}, ValueError, "cannot tell how many noises there are"
    ),
    "noise of impossible size": (Problem(), {"noise_size": 2}, ValueError, "has 3 channels, but noise_size=2"),
    "args": (Problem(), {"args": torch.ones(1)}, TypeError, r"args must be a tuple, got Tensor: write args=\(args,\)"),
    "gradient unknown": (Problem(), {"gradient": "adjoint"}, ValueError, "unknown gradient 'adjoint': it must be one"),
    "state of integers": (Problem(), {"y0": torch.ones(2, 3, dtype=torch.long)}, TypeError, r"write y0.double\(\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case):
    sde, arguments, error, sentence = REFUSALS[case]
    with pytest.raises(error, match=sentence):
        torchivp.sdeint(sde, **{"y0": Y0, "ts": [0, 1], "dt": 0.05, **arguments})


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"step_size": 3}, r"`sdeint`: Unexpected arguments \{'step_size': 3\} are ignored"),
        ({"options": {"grad_fre": True}}, r"`sdeint`: Unexpected options \{'grad_fre': True\} are ignored"),
        ({"adaptive": True, "method": "euler"}, "not guaranteed to converge .* euler of strong order 0.5"),
    ],
)
def test_warnings(arguments, sentence):
    with pytest.warns(UserWarning, match=sentence):
        torchivp.sdeint(Problem(), Y0, [0, 0.1], **{"dt": 0.05, **arguments})


def test_functions_that_are_missing_are_named():
    class Products:
        noise_type, sde_type = "scalar", "ito"

        def f_and_g_prod(self, t, y, v):
            return -y, v.expand_as(y)

    assert solve(Products(), Y0, [0, 1], method="euler").shape == (2, 2, 3)
    with pytest.raises(RuntimeError, match=r"Method `f` has not been provided.* the SDE has f_and_g_prod"):
        solve(Products(), Y0, [0, 1], method="milstein")


def test_noise_size_where_nothing_tells():
    class Products:
        noise_type, sde_type = "general", "ito"

        def f(self, t, y):
            return -y

        def g_prod(self, t, y, v):
            assert v.shape == (2, 4)
            return v[:, :3]

    assert solve(Products(), Y0, [0, 1], method="euler", noise_size=4).shape == (2, 2, 3)
