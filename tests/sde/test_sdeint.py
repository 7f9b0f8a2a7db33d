"""The doors for SDEs: what they take, what they return, and what the noise is a function of."""

import math
import warnings
from itertools import pairwise

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

import torchivp
from problems import covering
from torchivp.methods import ODE_METHODS
from torchivp.methods.sde.heun import Heun
from torchivp.sde.base import NOISE_TYPES
from torchivp.sde_loop.adaptive import AdaptiveSteps
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
        whole = solve(sde, y0, [0, 0.25], bm=path)[-1]

        class Row(torchivp.BrownianInterval):
            def increment(self, ta, tb):
                found = path.increment(ta, tb)
                W, H = (x.reshape(-1, channels)[-1:] for x in (found.W, found.H))
                return type(found)(found.dt, W, H)

        last = Row(0, 1, size=(1, channels), dtype=torch.float64, levy_area_approximation="space-time")
        alone = solve(sde, y0.reshape(-1, 3)[-1:], [0, 0.25], bm=last)[-1]
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

    def test_steps_near_the_spacing_of_numbers(self):
        """Time moves in all of them, whatever the last one is left with."""
        for start in (1.7e9, -1.7e9):
            unit = math.ulp(start)
            for size in (4.0, 4.3, 7.9):
                for span in range(1, 60):
                    ts = [start, start + span * unit]
                    for direction in (ts, ts[::-1]):
                        for steps in (Steps.landing(direction, size * unit), Steps.regular(direction, size * unit)):
                            times = steps.times(0, steps.count)
                            assert len(times) == steps.count + 1 and times[0] == direction[0]
                            assert len(set(times)) == len(times) and times[-1] == direction[-1]
                            assert times in (sorted(times), sorted(times, reverse=True))
                            assert steps.outputs[-1] == (steps.count - 1, 1.0)

    def test_adaptive_steps_begin_as_small_as_time_allows_there(self):
        y = solve(Problem(sde_type="stratonovich"), start(2, 3), [0, 1e3], dt=1e-13, adaptive=True, rtol=1.0, atol=1.0)
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

    def test_times_in_single_precision_end_where_the_path_does(self):
        """0.3 in single precision is larger than in double."""
        path = torchivp.BrownianInterval(0, 0.3, size=(2, 3), dtype=torch.float64)
        y = solve(Problem(), start(2, 3), torch.tensor([0.0, 0.3]), bm=path, method="euler")
        assert torch.equal(y, solve(Problem(), start(2, 3), [0.0, 0.3], bm=path, method="euler"))


class TestSeeds:
    def test_manual_seed_governs(self):
        first, again, other = (solve(Problem(), start(2, 3), [0, 1], seed=seed) for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    @pytest.mark.parametrize("door", [torchivp.sdeint, torchivp.sdeint_adjoint])
    @pytest.mark.parametrize("kwargs", [{}, {"rng": "counter"}, {"adaptive": True}, {"method": "euler"}])
    def test_seed(self, kwargs, door):
        """It is all that the noise depends on, and nothing is drawn from torch's generator."""
        before = torch.get_rng_state()
        first, again, other = (door(Problem(), start(2, 3), [0, 1], dt=0.1, seed=seed, **kwargs) for seed in (1, 1, 2))
        assert torch.equal(first, again) and not torch.equal(first, other)
        assert torch.equal(torch.get_rng_state(), before)
        if "adaptive" not in kwargs:
            drawn = torch.Generator().manual_seed(5)
            seed = int(torch.randint(0, 2**63 - 1, (), generator=drawn))
            given = door(Problem(), start(2, 3), [0, 1], dt=0.1, generator=torch.Generator().manual_seed(5), **kwargs)
            assert torch.equal(door(Problem(), start(2, 3), [0, 1], dt=0.1, seed=seed, **kwargs), given)

    @pytest.mark.parametrize("gradient", ["checkpointed", "reversible", "adjoint"])
    def test_every_gradient_has_the_path_of_the_seed(self, gradient):
        sde = Problem(sde_type="stratonovich")
        kwargs = {"method": "reversible_heun", "dt": 0.01, "seed": 2**64 - 1}
        expected = torchivp.sdeint(sde, Y0, [0, 0.5], **kwargs)
        found = (
            torchivp.sdeint_adjoint(sde, Y0, [0, 0.5], **kwargs)
            if gradient == "adjoint"
            else torchivp.sdeint(sde, Y0, [0, 0.5], gradient=gradient, **kwargs)
        )
        assert torch.equal(found, expected)

    @pytest.mark.parametrize(
        ("kwargs", "error", "sentence"),
        [
            ({"seed": -1}, ValueError, "seed must be a whole number between 0 and 18446744073709551615, got -1"),
            ({"seed": 0.5}, TypeError, "seed must be a whole number"),
            ({"seed": 1, "generator": torch.Generator()}, ValueError, "leave one of them out"),
            (
                {"seed": 1, "bm": torchivp.BrownianInterval(0, 1, (2, 3), torch.float64)},
                ValueError,
                "and rows out, seed too",
            ),
        ],
    )
    def test_what_a_seed_excludes(self, kwargs, error, sentence):
        for door in (torchivp.sdeint, torchivp.sdeint_adjoint):
            with pytest.raises(error, match=sentence):
                door(Problem(), start(2, 3), [0, 1], dt=0.1, **kwargs)

    def test_solves_differ(self):
        torch.manual_seed(0)
        first, second = (torchivp.sdeint(Problem(), start(2, 3), [0, 1], dt=0.1) for _ in range(2))
        assert not torch.equal(first, second)

    @pytest.mark.parametrize("rng", ["torch", "counter"])
    def test_generator(self, rng):
        def once():
            generator = torch.Generator().manual_seed(5)
            return solve(Problem(), start(2, 3), [0, 1], generator=generator, rng=rng)

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
    def test_rows_of_adaptive_steps(self, rng):
        """With steps of one size, forced by dt_min, the rows of a part are those of the whole."""

        def once(y0, rows=None):
            arguments = {"adaptive": True, "rtol": 1e-9, "atol": 1e-9, "dt": 0.05, "dt_min": 0.05, "rng": rng}
            with pytest.warns(UserWarning, match="Hitting minimum"):
                return solve(Problem(), y0, [0, 0.4], method="srk", rows=rows, **arguments)

        whole = once(start(6, 3))
        torch.testing.assert_close(once(start(6, 3)[4:], range(4, 6)), whole[:, 4:], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(once(start(6, 3)[[5, 1]], [5, 1]), whole[:, [5, 1]], rtol=1e-12, atol=1e-12)
        assert not torch.allclose(once(start(6, 3)[4:]), whole[:, 4:])

    def test_a_method_gets_the_areas_that_it_names(self):
        class Asks(Heun):
            levy_area = "davie"

            def step(self, terms, t0, t1, y0, noise, carry):
                assert noise.A is not None and noise.A.shape == (5, 2, 2)
                return super().step(terms, t0, t1, y0, noise, carry)

        sde, y0 = Problem("general", "stratonovich"), start(5, 3)
        for kind in ("davie", "foster"):
            bm = torchivp.BrownianInterval(size=(5, 2), dtype=torch.float64, levy_area_approximation=kind)
            solve(sde, y0, [0, 1], bm=bm, method=Asks)
        solve(sde, y0, [0, 1], method=Asks)
        with pytest.raises(ValueError, match=r"'davie' or 'foster', bm has 'none': make .*approximation='davie'"):
            solve(sde, y0, [0, 1], bm=torchivp.BrownianInterval(size=(5, 2), dtype=torch.float64), method=Asks)

    @pytest.mark.parametrize("noise_type", NOISE_TYPES)
    @pytest.mark.parametrize("method, needy", [("ri6", ("commutative", "general")), ("log_ode", ("general",))])
    def test_areas_are_asked_for_where_they_are_needed(self, noise_type, method, needy):
        sde = Problem(noise_type, "ito" if method == "ri6" else "stratonovich")
        size = (5, {"diagonal": 3, "scalar": 1}.get(noise_type, 2))
        bm = torchivp.BrownianInterval(size=size, dtype=torch.float64)
        if noise_type in needy:
            with pytest.raises(ValueError, match=f"'{method}' needs a Brownian motion"):
                solve(sde, start(5, 3), [0, 1], bm=bm, method=method)
        else:
            assert solve(sde, start(5, 3), [0, 1], bm=bm, method=method).isfinite().all()

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

    @pytest.mark.filterwarnings("ignore:Numerical solution is not guaranteed")
    @pytest.mark.parametrize(
        ("method", "interp", "ts"),
        covering(
            ["srk", "implicit_milstein", "reversible_heun"],
            ["milstein"],
            [None, "linear"],
            [(0, 0.1, 0.37, 0.371, 0.6), (0.6, 0.4, 0.0)],
        ),
    )
    def test_the_states_that_the_search_found_are_those_of_the_steps(self, method, interp, ts, monkeypatch):
        """With a graph the steps that were found are taken again, without one they are not."""
        chosen, times = [], []

        class Counted(Problem):
            def f(self, t, y):
                times.append(float(t))
                return super().f(t, y)

        def choose(*args):
            chosen.append(original(*args))
            times.clear()
            return chosen[-1]

        original = AdaptiveSteps.choose
        monkeypatch.setattr(AdaptiveSteps, "choose", choose)
        sde, y0 = Counted(sde_type="stratonovich" if method == "reversible_heun" else "ito"), start(2, 3)
        options = {"method": method, "adaptive": True, "rtol": 1e-2, "atol": 1e-2, "logqp": True, "extra": True}
        found = solve(sde, y0, ts, options={"interp": interp}, **options)
        assert not times
        torch.manual_seed(0)
        replayed = torchivp.sdeint(sde, y0, ts, dt=0.05, options={"interp": interp}, **options)
        assert times and replayed[0].requires_grad
        for a, b in zip(tree_leaves(found), tree_leaves(replayed), strict=True):
            assert torch.equal(a, b)
        for integration in chosen:
            steps = integration.steps
            assert steps.count > 4 and steps.outputs == [(-1, 1.0), *map(steps.place, ts[1:])]
            assert not integration.found

    @pytest.mark.filterwarnings("ignore:Numerical solution is not guaranteed")
    def test_the_search_serves_gradients_that_solve_without_a_graph(self):
        sde, y0 = Problem(sde_type="stratonovich"), start(2, 3).requires_grad_()
        options = {"method": "reversible_heun", "dt": 0.05, "adaptive": True, "rtol": 1e-2, "atol": 1e-2}
        results = []
        for gradient in ("direct", "checkpointed", "reversible", "adjoint"):
            torch.manual_seed(0)
            if gradient == "adjoint":
                y = torchivp.sdeint_adjoint(sde, y0, [0, 0.4, 1.0], **options)
            else:
                y = torchivp.sdeint(sde, y0, [0, 0.4, 1.0], gradient=gradient, **options)
            results.append((y, *torch.autograd.grad(y.square().sum(), [y0, sde.A])))
        for result in results[1:]:
            assert torch.equal(result[0], results[0][0])
            for a, b in zip(result[1:], results[0][1:], strict=True):
                torch.testing.assert_close(a, b)

    def test_a_tangent_takes_the_steps_again(self):
        y0 = start(2, 3)
        options = {"adaptive": True, "rtol": 1e-2, "atol": 1e-2}
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(y0, torch.ones_like(y0))
            y = solve(Problem(), dual, [0, 1.0], **options)
            value, tangent = torch.autograd.forward_ad.unpack_dual(y)
        assert torch.equal(value, solve(Problem(), y0, [0, 1.0], **options))
        assert tangent is not None and tangent[-1].abs().min() > 0.1

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


class Reusing(Problem):
    """The same, that writes what it returns into memory of its own, where it was before."""

    def __init__(self, *args):
        super().__init__(*args)
        self.memory = {}

    def put(self, name, value):
        memory = self.memory.setdefault((name, value.shape), torch.empty_like(value).detach())
        return memory.detach_().copy_(value)

    def f(self, t, y):
        return self.put("f", super().f(t, y))

    def g(self, t, y):
        return self.put("g", super().g(t, y))


@pytest.mark.parametrize("row", torchivp.sde_methods(), ids=lambda row: f"{row.method}-{row.sde_type}-{row.noise_type}")
def test_functions_may_use_their_memory_again(row):
    problems = [
        kind(row.noise_type, row.sde_type, 3, 1 if row.noise_type == "scalar" else 2) for kind in (Problem, Reusing)
    ]
    ends = [solve(problem, start(4, 3), [0.0, 0.2], method=row.method)[-1] for problem in problems]
    assert torch.equal(*ends)


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


class Nothing:
    """Constant noise for states and pytrees of any shape, those without elements included."""

    def __init__(self, noise_type, sde_type="ito"):
        self.noise_type, self.sde_type = noise_type, sde_type

    def f(self, t, y):
        return tree_map(torch.zeros_like, y)

    def g(self, t, y):
        wide = () if self.noise_type == "diagonal" else (2,)
        return tree_map(lambda x: x.new_ones(*x.shape, *wide), y)


class NoNoises(Problem):
    def g(self, t, y):
        return y.new_zeros(*y.shape, 0)


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
    "method that is none": (Problem(), {"method": 3}, TypeError, "method must be a name such as 'srk', got int"),
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
    "rows that are one": (Problem(), {"rows": 2, "rng": "counter"}, TypeError, r"rows must be 2 whole .* got 2: write"),
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
        Problem(), {"bm": torchivp.BrownianInterval(0, 0.5, size=(2, 3)), "method": "euler"}, ValueError,
        "bm lasts from t0=0.0 to t1=0.5, but the solve takes the times from 0.0 to 1.0: make it with t0=0.0, t1=1.0",
    ),
    "path and generator": (
        Problem(), {"bm": torchivp.BrownianInterval(0, 1, size=(2, 3)), "rng": "counter"}, ValueError, "leave rng, gen"
    ),
    "path and rows": (
        Problem(), {"bm": torchivp.BrownianInterval(0, 1, size=(2, 3)), "rows": [0, 1]}, ValueError, "tor and rows out"
    ),
    "path that is none": (Problem(), {"bm": 3}, ValueError, "bm must be a Brownian motion with a shape"),
    "noise of unknown size": (
        Changed("general", g=None, g_prod=lambda t, y, v: y), {}, ValueError, "cannot tell how many noises there are"
    ),
    "noise of impossible size": (Problem(), {"noise_size": 2}, ValueError, "noise_size=2: leave noise_size out"),
    "args": (Problem(), {"args": torch.ones(1)}, TypeError, r"args must be a tuple, got Tensor: write args=\(args,\)"),
    "gradient unknown": (Problem(), {"gradient": "adjoint"}, ValueError, "unknown gradient 'adjoint': it must be one"),
    "class, not object": (Problem, {}, TypeError, r"sde is the class Problem, not an object .*: write Problem\(...\)"),
    "names that are no dict": (
        Problem(), {"names": ["drift"]}, TypeError, r"names must be a dict such as {'drift': 'my_f'}, got \['drift'\]"
    ),
    "name that is no string": (Problem(), {"names": {"drift": 3}}, ValueError, "but the SDE has no method 3"),
    "function that changes the state": (
        Changed(f=lambda t, y: y.mul_(2)), {}, ValueError, r"f\(t, y\) changes y in place, .*: write y = y \+ 1"
    ),
    "several noises of diagonal type": (
        Changed(g=lambda t, y: y.unsqueeze(-1).expand(2, 3, 2)), {}, ValueError,
        r"y has shape \(2, 3\), .* \(2, 3, 2\); several noises for one element are noise_type='general'",
    ),
    "diagonal diffusion of general type": (
        Changed("general", g=lambda t, y: y), {}, ValueError,
        r"g must return \(2, 3, m\) for general noise, m the number of noises, got the shape \(2, 3\): .*'diagonal'",
    ),
    "diffusion of a strange shape": (
        Changed("additive", g=lambda t, y: y[:1, :, None]), {}, ValueError, r"\(2, 3, m\) .*, got the shape \(1, 3, 1\)"
    ),
    "path of more noises than g": (
        Problem("general"), {"bm": torchivp.BrownianInterval(0, 1, size=(2, 5))}, ValueError,
        r"bm has 5 noises, and g returns 2: pass size=\(2, 2\) to it",
    ),
    "more noises than g": (
        Problem("general"), {"noise_size": 5}, ValueError, "noise_size=5, and g returns 2 noises: leave noise_size out"
    ),
    "close name of an unsuitable method": (
        Problem(), {"method": "euler_hen"}, ValueError, "unknown method 'euler_hen'. Did you mean 'euler'. For an SDE"
    ),
    "method for ODEs": (
        Problem(), {"method": "dopri5"}, ValueError, "'dopri5' is a method for ODEs: for an SDE .* there are 'srk'"
    ),
    "class of a method for ODEs": (
        Problem(), {"method": ODE_METHODS["dopri5"]}, ValueError, "Dopri5 is a method for ODEs"
    ),
    "object of a method": (
        Problem(), {"method": torchivp.SDE_METHODS["euler"]()}, TypeError,
        "method is an object of Euler: pass the class, method=Euler, and its arguments in options",
    ),
    "infinite dt": (Problem(), {"dt": math.inf}, ValueError, "dt must be finite, got inf: write dt=1e-3"),
    "infinite dt_min": (
        Problem(), {"dt_min": math.inf, "adaptive": True}, ValueError, "dt_min must be finite, got inf"
    ),
    "negative dt_min of fixed steps": (Problem(), {"dt_min": -3}, ValueError, "dt_min must be positive, got -3"),
    "negative rtol of fixed steps": (Problem(), {"rtol": -1}, ValueError, "rtol must be finite and not negative"),
    "adaptive that is no flag": (Problem(), {"adaptive": "no"}, TypeError, "adaptive must be True or False, got 'no'"),
    "logqp that is no flag": (Problem(), {"logqp": "yes"}, TypeError, "logqp must be True or False, got 'yes'"),
    "extra that is no flag": (Problem(), {"extra": "x"}, TypeError, "extra must be True or False, got 'x'"),
    "generator that is a seed": (
        Problem(), {"generator": 0}, TypeError,
        r"generator must be a torch.Generator, got 0: write torch.Generator\(\).manual_seed\(0\)",
    ),
    "path that begins too late": (
        Problem(), {"bm": torchivp.BrownianInterval(0.5, 1, size=(2, 3))}, ValueError,
        "bm lasts from t0=0.5 to t1=1.0, but the solve takes the times from 0.0 to 1.0: make it with t0=0.0, t1=1.0",
    ),
    "endless path that begins too late": (
        Problem(), {"bm": torchivp.BrownianPath(0.5, torch.zeros(2, 3))}, ValueError,
        "bm starts at t0=0.5, but the solve .*: make it with t0=0.0$",
    ),
    "tree that ends too early": (
        Problem(), {"bm": torchivp.BrownianTree(0, torch.zeros(2, 3), 0.5)}, ValueError, "bm lasts from .* to t1=0.5"
    ),
    "tensor for a path": (
        Problem(), {"bm": torch.zeros(2, 3)}, ValueError, r"bm must be a Brownian motion .*got Tensor of shape \(2, 3\)"
    ),
    "adjoint of ODEs": (
        Problem(), {"gradient": torchivp.Backsolve()}, ValueError, r"Backsolve\(...\) is for ODEs: use sdeint_adjoint"
    ),
    "adjoint of ODEs by name": (
        Problem(), {"gradient": "backsolve"}, ValueError, "gradient='backsolve' is for ODEs: use sdeint_adjoint"
    ),
    "derivatives forwards": (
        Problem(), {"gradient": "forward"}, ValueError, "gradient='forward' is for ODEs: use gradient='direct', within"
    ),
    "carry of another shape": (
        Changed(sde_type="stratonovich"),
        {"method": "reversible_heun", "extra_solver_state": (torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(3, 2))},
        ValueError, r"extra_solver_state\[2\] must have the shape \(2, 3\), got \(3, 2\): pass what",
    ),
    "carry of too few": (
        Changed(sde_type="stratonovich"), {"method": "reversible_heun", "extra_solver_state": (Y0,)}, ValueError,
        "extra_solver_state must be a tuple of 3 entries, .*, got 1 entries",
    ),
    "carry of a method without": (
        Problem(), {"extra_solver_state": (Y0,)}, ValueError, "got 1 entries: leave extra_solver_state out"
    ),
    "no noises": (
        NoNoises("commutative"), {}, ValueError,
        "g returns no noises: the last dimension of commutative noise .* for an ODE use torchivp.odeint",
    ),
    "no noises by a method with areas": (
        NoNoises("general"), {"method": "log_ode"}, ValueError, "g returns no noises"
    ),
    "no noises of a path": (
        NoNoises("general"), {"bm": torchivp.BrownianInterval(0, 1, size=(2, 0))}, ValueError, "g returns no noises"
    ),
    "tolerances of zero": (
        Problem(), {"adaptive": True, "rtol": 0, "atol": 0}, ValueError,
        "rtol and atol are both 0, which no step can meet: pass rtol=1e-6 or atol=1e-9",
    ),
    "steps that do not move time": (
        Problem(), {"ts": [1.7e9, 1.7e9 + 1e-3], "dt": 1e-7}, ValueError,
        r"dt=1e-07 is too small to move time at t = 1.7e\+09: numbers there are 2.38e-07 apart; shift ts to start near "
        "0, or make dt larger",
    ),
    "steps that do not move time, with outputs between": (
        Problem(), {"ts": [-1.7e9, -1.7e9 + 1e-3], "dt": 1e-7, "options": {"interp": "linear"}}, ValueError,
        r"dt=1e-07 is too small to move time at t = -1.7e\+09",
    ),
    "steps without number": (
        Problem(), {"ts": [0, 1e300], "dt": 1e-300}, ValueError, "too small .* 1.49e.284 apart; make dt larger"
    ),
    "very many steps": (Problem(), {"dt": 1e-12}, ValueError, r"^1e\+12 steps of dt=1e-12 lead from 0 to 1, more than"),
    "state of integers": (Problem(), {"y0": torch.ones(2, 3, dtype=torch.long)}, TypeError, r"write y0.double\(\)"),
}  # fmt: skip


ADJOINT_REFUSALS = {
    "adaptive adjoint of the reversible method": (
        {"method": "reversible_heun", "adjoint_adaptive": True},
        "adjoint_adaptive=True has no meaning for adjoint_method='adjoint_reversible_heun', which takes back the steps "
        "of the forward solve: leave it out, or pass adjoint_method='midpoint'",
    ),
    "the same by name": (
        {"method": "reversible_heun", "adjoint_method": "adjoint_reversible_heun", "adjoint_adaptive": True},
        "adjoint_adaptive=True has no meaning",
    ),
    "adjoint method unknown": (
        {"method": "heun", "adaptive": True, "adjoint_method": "midpiont"}, "'midpiont'.* Did you mean 'midpoint'"
    ),
    "adjoint method of another equation": (
        {"method": "heun", "adaptive": True, "adjoint_method": "euler"}, "no adjoint_method 'euler' for SDEs of type"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ADJOINT_REFUSALS)
def test_refusals_of_the_adjoint(case, monkeypatch):
    """They come before any step is taken."""
    arguments, sentence = ADJOINT_REFUSALS[case]
    monkeypatch.setattr(AdaptiveSteps, "choose", lambda *args: pytest.fail("a search came first"))
    with pytest.raises(ValueError, match=sentence):
        torchivp.sdeint_adjoint(Problem(sde_type="stratonovich"), Y0, [0, 1], **{"dt": 0.05, **arguments})


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case):
    sde, arguments, error, sentence = REFUSALS[case]
    with pytest.raises(error, match=sentence):
        torchivp.sdeint(sde, **{"y0": Y0, "ts": [0, 1], "dt": 0.05, **arguments})


@pytest.mark.parametrize("door", [torchivp.sdeint, torchivp.sdeint_adjoint])
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"n_paths": 5},
            r"has no argument n_paths=: every row of y0 is a path of its own: pass y0.expand\(n_pat",
        ),
        ({"adaptiv": True}, r"has no argument adaptiv=: did you mean adaptive=\?"),
        ({"step_size": 0.1}, "has no argument step_size=: write dt="),
        ({"whatever": 1}, "has no argument whatever=: its arguments are sde, y0, ts, bm, method, "),
    ],
)
def test_unknown_keywords_are_refused(arguments, sentence, door):
    with pytest.raises(TypeError, match=rf"^{door.__name__}\(\) {sentence}"):
        door(Problem(), Y0, [0, 0.1], dt=0.05, **arguments)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"options": {"grad_fre": True}}, r"`sdeint`: Unexpected options \{'grad_fre': True\} are ignored"),
        ({"adaptive": True, "method": "euler"}, "not guaranteed to converge .* euler of strong order 0.5"),
    ],
)
def test_warnings(arguments, sentence):
    with pytest.warns(UserWarning, match=sentence):
        torchivp.sdeint(Problem(), Y0, [0, 0.1], **{"dt": 0.05, **arguments})


def test_a_function_that_changes_the_state_is_refused_before_it_does():
    y0 = Y0.clone()
    for name in ("f", "g"):
        with pytest.raises(ValueError, match="changes y in place"):
            torchivp.sdeint(Changed("general", **{name: lambda t, y: y.mul_(2)[..., None]}), y0, [0, 1], dt=0.05)
        assert torch.equal(y0, Y0)


def test_tolerances_of_elements_with_a_divergence():
    """The divergence has the smallest of them."""
    tolerances = [torch.tensor([1e-2, 1e-3, 1e-2], dtype=torch.float64), 1e-3]
    kwargs = {"logqp": True, "adaptive": True, "dt": 0.2, "method": "milstein"}
    few = [solve(Problem(), Y0, [0, 0.3], rtol=rtol, atol=rtol, **kwargs) for rtol in tolerances]
    for y, divergence in few:
        assert y.shape == (2, 2, 3) and divergence.shape == (1, 2)
    same = solve(Problem(), Y0, [0, 0.3], rtol=torch.full((3,), 1e-3), atol=torch.full((3,), 1e-3), **kwargs)
    torch.testing.assert_close(same, few[1])


def test_the_gradient_of_odes_that_is_the_same_here():
    sde = Problem()
    found = []
    for gradient in ("direct", torchivp.Direct(), torchivp.Checkpointed()):
        torch.manual_seed(0)
        y = torchivp.sdeint(sde, Y0, [0, 1], dt=0.1, gradient=gradient)
        found.append(torch.autograd.grad(y[-1].sum(), sde.A)[0])
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])


def test_what_is_carried_on_fits_again():
    for sde, y0 in ((Problem("general", "stratonovich"), start(2, 4, 3)), (Problem("diagonal", "stratonovich"), Y0)):
        for logqp in (False, True):
            kwargs = {"method": "reversible_heun", "extra": True, "logqp": logqp}
            *_, carry = solve(sde, y0, [0, 0.5], **kwargs)
            y, *_ = solve(sde, y0, [0.5, 1.0], extra_solver_state=carry, **kwargs)
            assert y.isfinite().all()


def test_a_path_that_does_not_tell_where_it_ends():
    class Callable:
        shape = (2, 3)

        def __call__(self, ta, tb):
            return torch.full(self.shape, tb - ta, dtype=torch.float64)

    assert solve(Problem(), Y0, [0, 1], bm=Callable(), method="euler").isfinite().all()


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


@pytest.mark.parametrize("noise_type", NOISE_TYPES)
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3)])
def test_an_empty_batch(noise_type, adaptive, shape):
    y0 = torch.zeros(shape, dtype=torch.float64)
    for options in ({}, {"logqp": True}, {"rtol": torch.full((3,), 1e-3)}):
        y = solve(Problem(noise_type), y0, [0, 0.5, 1], adaptive=adaptive, **options)
        assert (y[0] if "logqp" in options else y).shape == (3, *shape)


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_state_without_elements(adaptive):
    for noise_type, sde in (("diagonal", Nothing("diagonal")), ("general", Nothing("general"))):
        y0 = torch.zeros(3, 0)
        assert solve(sde, y0, [0, 0.5, 1], adaptive=adaptive).shape == (3, 3, 0), noise_type
        assert torchivp.sdeint(sde, y0.requires_grad_(), [0, 1], dt=0.5, gradient="checkpointed").shape == (2, 3, 0)


def test_a_carry_without_rows():
    sde = Nothing("general", "stratonovich")
    for shape in ((0, 3), (3, 0)):
        kwargs = {"method": "reversible_heun", "extra": True}
        y, carry = solve(sde, torch.zeros(shape), [0, 1], **kwargs)
        again, _ = solve(sde, y[-1], [1, 2], extra_solver_state=carry, **kwargs)
        assert again.shape == (2, *shape)
    pair = (torch.zeros(0, 3), torch.zeros(0, 2))
    assert [x.shape for x in solve(sde, pair, [0, 1], adaptive=True)] == [(2, 0, 3), (2, 0, 2)]


@pytest.mark.parametrize(("part", "infinite"), [(1.0, False), (0.5, True)])
def test_a_divergence_that_is_infinite_is_warned_of(part, infinite, recwarn):
    class OneNoise(torchivp.SDEIto):
        def f(self, t, y):
            return torch.tensor([[1.0, part]]).expand_as(y)

        def h(self, t, y):
            return torch.zeros_like(y)

        def g(self, t, y):
            return torch.full_like(y, 0.5).unsqueeze(2)

    _, divergence = torchivp.sdeint(OneNoise("scalar"), torch.zeros(3, 2), [0.0, 1.0], logqp=True, dt=0.1)
    assert any("the divergence from the prior is infinite" in str(w.message) for w in recwarn) == infinite
    if not infinite:
        torch.testing.assert_close(divergence, torch.full((1, 3), 2.0))  # u = 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_is_no_infinite_divergence(dtype, recwarn):
    class Close(torchivp.SDEIto):
        def f(self, t, y):
            return -y * (0.1 * 3)

        def h(self, t, y):
            return -y * 0.1 * 3

        def g(self, t, y):
            return torch.ones_like(y).unsqueeze(2)

    y0 = torch.tensor([[1.0, 2.7], [30.0, 0.3]], dtype=dtype)
    _, divergence = torchivp.sdeint(Close("scalar"), y0, [0.0, 1.0], logqp=True, dt=0.1)
    assert not recwarn.list
    assert (divergence < 1e-6).all()
