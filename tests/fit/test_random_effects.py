"""Random effects: parameters that differ between trajectories by chance."""

import numpy as np
import pandas
import pytest
import scipy.linalg
import scipy.special
from scipy.optimize import least_squares, minimize

from compilers import needs_compiler
from torchivp import fit
from torchivp.fitting import read_data
from torchivp.fitting.choices import Choices, list_quantities
from torchivp.fitting.levels import read_levels
from torchivp.fitting.measured import measurements
from torchivp.fitting.misfit import Misfit
from torchivp.fitting.random_effects.effects import find_effects
from torchivp.fitting.random_effects.laplace import LaplaceApproximation
from torchivp.fitting.random_effects.modes import Joint, Population
from torchivp.fitting.solving.kernels import ModelKernel
from torchivp.fitting.solving.stretches import Accuracy
from torchivp.models import Equations

LINE = Equations("y' = slope\ny(0) = 2.0\nslope = 1.0\n", positive=[])
DECAY = Equations("x' = -k*x\nx(0) = 2\nk = 0.5\n")
ORAL = Equations("gut' = -ka*gut\nbody' = ka*gut - ke*body\ngut(0) = 0\nbody(0) = 0\nka = 1.5\nke = 0.09\n")

# Theophylline in serum (mg/l) after a dose by mouth (mg/kg): dose; hours; concentrations. A. J. Boeckmann, L. B.
# Sheiner, S. L. Beal, "NONMEM Users Guide: Part V", University of California, San Francisco (1994); Theoph of R.
THEOPHYLLINE = """
4.02; 0 .25 .57 1.12 2.02 3.82 5.1 7.03 9.05 12.12 24.37; .74 2.84 6.57 10.5 9.66 8.58 8.36 7.47 6.89 5.94 3.28
4.4; 0 .27 .52 1 1.92 3.5 5.02 7.03 9 12 24.3; 0 1.72 7.91 8.31 8.33 6.85 6.08 5.4 4.55 3.01 .9
4.53; 0 .27 .58 1.02 2.02 3.62 5.08 7.07 9 12.15 24.17; 0 4.4 6.9 8.2 7.8 7.5 6.2 5.3 4.9 3.7 1.05
4.4; 0 .35 .6 1.07 2.13 3.5 5.02 7.02 9.02 11.98 24.65; 0 1.89 4.6 8.6 8.38 7.54 6.88 5.78 5.33 4.19 1.15
5.86; 0 .3 .52 1 2.02 3.5 5.02 7.02 9.1 12 24.35; 0 2.02 5.63 11.4 9.33 8.74 7.56 7.09 5.9 4.37 1.57
4; 0 .27 .58 1.15 2.03 3.57 5 7 9.22 12.1 23.85; 0 1.29 3.08 6.44 6.32 5.53 4.94 4.02 3.46 2.78 .92
4.95; 0 .25 .5 1.02 2.02 3.48 5 6.98 9 12.05 24.22; .15 .85 2.35 5.02 6.58 7.09 6.66 5.25 4.39 3.53 1.15
4.53; 0 .25 .52 .98 2.02 3.53 5.05 7.15 9.07 12.1 24.12; 0 3.05 3.05 7.31 7.56 6.59 5.88 4.73 4.57 3 1.25
3.1; 0 .3 .63 1.05 2.02 3.53 5.02 7.17 8.8 11.6 24.43; 0 7.37 9.03 7.14 6.33 5.66 5.67 4.24 4.11 3.16 1.12
5.5; 0 .37 .77 1.02 2.05 3.55 5.05 7.08 9.38 12.1 23.7; .24 2.89 5.22 6.41 7.83 10.21 9.18 8.02 7.14 5.68 2.42
4.92; 0 .25 .5 .98 1.98 3.6 5.02 7.03 9.03 12.12 24.08; 0 4.86 7.24 8 6.81 5.87 5.22 4.45 3.62 2.69 .86
5.3; 0 .25 .5 1 2 3.52 5.07 7.07 9.03 12.05 24.15; 0 1.25 3.96 7.82 9.72 9.75 8.57 6.59 6.11 4.57 1.17
"""


def lines(spread_of_slopes, seed=3):
    """Straight lines with different intercepts and slopes, seen at different times."""
    rng = np.random.default_rng(seed)
    tables = []
    for i in range(8):
        t = np.concatenate([[0.0], np.sort(rng.uniform(0.2, 5, rng.integers(3, 7)))])
        slope, start = 1.3 + spread_of_slopes * rng.standard_normal(), 2.0 + 0.8 * rng.standard_normal()
        y = start + slope * t + 0.4 * rng.standard_normal(len(t))
        tables.append(pandas.DataFrame({"time": t, "y": y, "subject": f"s{i}"}))
    return pandas.concat(tables, ignore_index=True)


class MixedLines:
    """The linear mixed model in closed form: y ~ N(X beta, X diag(omega^2) X' + sigma^2)."""

    def __init__(self, data):
        self.groups = [
            (np.stack([np.ones(len(own)), own["time"]], 1), own["y"].to_numpy()) for _, own in data.groupby("subject")
        ]

    def nll(self, x):
        beta, omega, sigma = x[:2], np.exp(x[2:4]), np.exp(x[4])
        total = 0.0
        for design, y in self.groups:
            v = (design * omega**2) @ design.T + sigma**2 * np.eye(len(y))
            left = y - design @ beta
            total += 0.5 * (left @ np.linalg.solve(v, left) + np.linalg.slogdet(2 * np.pi * v)[1])
        return total

    def predicted_effects(self, x):
        """Best linear unbiased predictions, and their covariances given beta."""
        beta, omega, sigma = x[:2], np.exp(x[2:4]), np.exp(x[4])
        for design, y in self.groups:
            precision = design.T @ design / sigma**2 + np.diag(omega**-2.0)
            covariance = np.linalg.inv(precision)
            yield covariance @ design.T @ (y - design @ beta) / sigma**2, covariance


def second_derivatives(function, x, step=1e-3):
    n = len(x)

    def moved(i, j, a, b):
        return function(x + step * (a * np.eye(n)[i] + b * np.eye(n)[j]))

    return np.array(
        [
            [
                (moved(i, j, 1, 1) - moved(i, j, 1, -1) - moved(i, j, -1, 1) + moved(i, j, -1, -1)) / (4 * step**2)
                for j in range(n)
            ]
            for i in range(n)
        ]
    )


@pytest.fixture(scope="module")
def line_fit():
    data = lines(0.6)
    random = {"slope": "normal", "y": "normal"}
    return data, fit(LINE, data, trajectory="subject", random=random, backend="fused")


@needs_compiler
def test_of_a_linear_mixed_model_it_is_the_exact_maximum_likelihood(line_fit):
    data, result = line_fit
    exact = MixedLines(data)
    best = minimize(exact.nll, [2.0, 1.3, -0.2, -0.5, -0.9], method="BFGS", options={"gtol": 1e-8})
    names = ["y(0)", "slope", "omega(y(0))", "omega(slope)", "sigma(y)"]
    values = np.concatenate([best.x[:2], np.exp(best.x[2:])])
    assert result.converged, result.message
    assert result.nll == pytest.approx(best.fun, abs=1e-7)
    np.testing.assert_allclose([result[name].value for name in names], values, rtol=1e-5)
    errors = np.sqrt(np.diag(np.linalg.inv(second_derivatives(exact.nll, best.x))))
    np.testing.assert_allclose([result[name].scale_error for name in names], errors, rtol=1e-3)
    assert (result.n_free, result.n_data) == (5, len(data))
    assert result.aic == pytest.approx(2 * best.fun + 10)
    assert result.bic == pytest.approx(2 * best.fun + 5 * np.log(len(data)))


@needs_compiler
def test_individual_values_are_the_best_predictions(line_fit):
    data, result = line_fit
    x = np.array(
        [result["y(0)"].value, result["slope"].value, *np.log(result.random.omega[::-1]), *np.log(result.sizes)]
    )
    effects, covariances = zip(*MixedLines(data).predicted_effects(x), strict=True)
    assert result.random.names == ["slope", "y(0)"]
    np.testing.assert_allclose(result.random.eta[:, ::-1], effects, atol=1e-6)
    np.testing.assert_allclose(result.random.covariances[:, ::-1, ::-1], covariances, atol=1e-6)
    np.testing.assert_allclose(result.random.values[:, 0], [result[f"slope[s{i}]"].value for i in range(8)])
    shrinkage = 1 - np.std(effects, axis=0)[::-1] / result.random.omega
    np.testing.assert_allclose(result.random.shrinkage, shrinkage, atol=1e-6)
    precision = np.linalg.inv(covariances)
    sigma = result["sigma(y)"].value
    designs = [design for design, _ in MixedLines(data).groups]
    spent = sum(np.trace(np.linalg.solve(p, d.T @ d)) for p, d in zip(precision, designs, strict=True)) / sigma**2
    assert result.random.freedom == pytest.approx(spent, rel=1e-5)
    assert result["slope[s3]"].kind == "derived" and result["omega(slope)"].kind == "random"
    assert result["omega(slope)"].description.endswith(f"shrinkage {shrinkage[0]:.0%}")


@needs_compiler
def test_uncertainty_of_individual_values_counts_that_of_the_population(line_fit):
    """Against the delta method on the best predictions, with the Hessian of the exact marginal likelihood."""
    data, result = line_fit
    exact = MixedLines(data)
    x = np.array(
        [result["y(0)"].value, result["slope"].value, *np.log(result.random.omega[::-1]), *np.log(result.sizes)]
    )
    covariance = np.linalg.inv(second_derivatives(exact.nll, x))

    def slope_of_s3(at):
        return at[1] + list(exact.predicted_effects(at))[3][0][1]

    slopes = np.array([(slope_of_s3(x + e) - slope_of_s3(x - e)) / 2e-5 for e in 1e-5 * np.eye(5)])
    variance = slopes @ covariance @ slopes + list(exact.predicted_effects(x))[3][1][1, 1]
    assert result["slope[s3]"].standard_error == pytest.approx(np.sqrt(variance), rel=1e-3)
    lower, upper = result.band([0.0, 3.0], 3)
    assert upper[0, 0] - lower[0, 0] == pytest.approx(2 * 1.96 * result["y(0)[s3]"].standard_error, rel=1e-3)


@needs_compiler
def test_predictions_and_residuals_are_individual_unless_the_population_is_asked_for(line_fit):
    data, result = line_fit
    t = np.array([0.0, 1.0, 4.0])
    own = result["y(0)[s2]"].value + result["slope[s2]"].value * t
    np.testing.assert_allclose(result.predict(t, 2)[:, 0], own, rtol=1e-7)
    typical = result["y(0)"].value + result["slope"].value * t
    np.testing.assert_allclose(result.predict(t, 2, population=True)[:, 0], typical, rtol=1e-7)
    np.testing.assert_allclose(result.observe(t, 2, population=True)[:, 0], typical, rtol=1e-7)
    assert result.model.slope.item() == pytest.approx(result["slope"].value)
    mine = data[data["subject"] == "s2"]
    left = result["y(0)[s2]"].value + result["slope[s2]"].value * mine["time"] - mine["y"]
    np.testing.assert_allclose(np.abs(result.residuals(2)[:, 0]), np.abs(left) / result["sigma(y)"].value, rtol=1e-6)
    assert "random={'slope': 'normal', 'y': 'normal'}" in result.call
    assert "omega(slope)" in result.summary() and '"random"' in result.to_json()
    assert result.derive("double", "2*slope")[3].value == pytest.approx(2 * result["slope[s3]"].value)


@needs_compiler
def test_differences_that_are_not_there_are_at_their_smallest_value():
    data = lines(0.0, seed=5)
    result = fit(LINE, data, trajectory="subject", random=["slope", "y"], backend="fused", start={"slope": 1.0})
    exact = MixedLines(data)
    assert result["omega(slope)"].value < 1e-3
    assert any("no differences between trajectories in slope" in warning for warning in result.warnings)
    best = minimize(lambda x: exact.nll([*x[:3], -20.0, x[3]]), [2.0, 1.3, -0.2, -0.9], method="BFGS")
    assert result.nll == pytest.approx(best.fun, abs=1e-4)
    assert result["slope"].value == pytest.approx(best.x[1], abs=1e-4)


@needs_compiler
def test_an_omega_on_its_flat_way_to_zero_is_taken_there():
    rng = np.random.default_rng(1)
    tables = []
    for i in range(6):
        t = np.array([0.0, 1.0, 2.0, 4.0])
        x = rng.uniform(1, 5) * np.exp(-0.5 * t + 0.05 * rng.standard_normal(4))
        tables.append(pandas.DataFrame({"time": t, "x": x, "s": f"s{i}"}))
    result = fit(DECAY, pandas.concat(tables), trajectory="s", random=["k"], noise="lognormal", start={"k": 0.4})
    plain = fit(DECAY, pandas.concat(tables), trajectory="s", noise="lognormal", start={"k": 0.4})
    assert result.converged and result["omega(k)"].value < 1e-3
    assert result.nll == pytest.approx(plain.nll, abs=1e-4)
    assert any("no differences between trajectories in k" in warning for warning in result.warnings)


@needs_compiler
def test_a_fit_goes_on_from_its_checkpoint(tmp_path):
    data = lines(0.6)
    options = {"trajectory": "subject", "random": ["slope"], "initial": "shared", "backend": "fused"}
    first = fit(LINE, data, **options, checkpoint=tmp_path / "fit")
    again = fit(LINE, data, **options, checkpoint=tmp_path / "fit")
    assert again.solves < 0.2 * first.solves
    assert again.nll == first.nll and again["omega(slope)"].value == first["omega(slope)"].value


def decays():
    rng = np.random.default_rng(0)
    tables = []
    for i in range(5):
        t = np.linspace(0.2 * (i % 2), 4, 6)
        h = 2 * np.exp(0.3 * rng.standard_normal() - 0.5 * np.exp(0.4 * rng.standard_normal()) * t)
        tables.append(pandas.DataFrame({"time": t, "y": h * np.exp(0.15 * rng.standard_normal(6)), "s": f"s{i}"}))
    return pandas.concat(tables, ignore_index=True)


def approximation(noise, observed, choices, kernel=[]):  # noqa: B006 (compiled once)
    model = DECAY.double()
    data = read_data(decays(), ["x"], trajectory="s", observe={"y": observed}, names={"k", "c"})
    levels = read_levels(data, noise, "separate", measurements(data))
    quantities = list_quantities(model, data, choices, ["x"])
    misfit = Misfit(model, data, quantities, Accuracy("dopri5", 1e-10, 1e-12, 100_000))
    if not kernel:
        kernel.append(ModelKernel(model, "dopri5"))
    misfit.use(kernel[0])
    effects = find_effects(choices.random, quantities, data, levels)
    assert effects is not None
    return LaplaceApproximation(Joint(misfit, levels, effects))


@needs_compiler
@pytest.mark.parametrize(
    ("noise", "sizes", "observed", "choices"),
    [
        ("normal", [0.2], "x", Choices(random={"k": "log", "x": "log"})),
        ("lognormal", [0.2], "x", Choices(random={"k": "log"})),
        ("proportional", [0.2], "c*x**2", Choices(parameters={"c": 0.6}, random={"k": "log", "c": "log"})),
        (
            "combined",
            [0.1, 0.15],
            "c*x**2",
            Choices(parameters={"c": 0.6}, random={"c": "log"}, priors={"k": (1.0, 0.3)}),
        ),
    ],
)
def test_the_gradient_is_that_of_the_approximation(noise, sizes, observed, choices):
    target = approximation(noise, observed, choices)
    quantities, q = target.joint.misfit.quantities, target.n_effects
    x = target.place(Population(quantities.theta() + 0.05, np.linspace(0.4, 0.3, q), np.array(sizes)))
    point = target.at(x, np.zeros((5, q)))
    assert point is not None

    def value(at):
        there = target.near(at, point)
        assert there is not None
        return there.value + there.penalty

    ways = 2e-3 * np.eye(len(x))
    expected = [
        (8 * (value(x + way) - value(x - way)) - (value(x + 2 * way) - value(x - 2 * way))) / (12 * 2e-3)
        for way in ways
    ]
    np.testing.assert_allclose(point.gradient, expected, atol=2e-4)
    near = target.near(x + ways[0], point)
    assert near is not None
    np.testing.assert_allclose((near.modes.z - point.modes.z) / 2e-3, point.z_slopes[..., 0], atol=2e-2)


class Oral:
    """One compartment with absorption in closed form; x: logs of ke, ka, cl, omegas of ka and cl, sigma."""

    def __init__(self, groups):
        self.groups = groups

    @staticmethod
    def concentration(t, dose, log_ke, log_ka, log_cl):
        ke, ka = np.exp(log_ke), np.exp(log_ka)
        return dose * ka * ke / np.exp(log_cl) * (np.exp(-ke * t) - np.exp(-ka * t)) / (ka - ke)

    def predict(self, x, t, dose, z):
        return self.concentration(t, dose, x[0], x[1] + np.exp(x[3]) * z[0], x[2] + np.exp(x[4]) * z[1])

    def modes(self, x):
        for dose, t, y in self.groups:
            found = least_squares(
                lambda z, t=t, y=y, dose=dose: np.append((self.predict(x, t, dose, z) - y) / np.exp(x[5]), z),
                [0.0, 0.0],
                jac="3-point",  # pyright: ignore[reportArgumentType]
                xtol=1e-12,
                ftol=1e-14,
                gtol=1e-12,
            )
            yield found.x, found.jac.T @ found.jac, 0.5 * found.fun @ found.fun

    def constant(self, x):
        return sum(len(y) for _, _, y in self.groups) * (x[5] + 0.5 * np.log(2 * np.pi))

    def laplace(self, x):
        return self.constant(x) + sum(cost + 0.5 * np.linalg.slogdet(curve)[1] for _, curve, cost in self.modes(x))

    def quadrature(self, x, count=9):
        """The marginal likelihood by adaptive Gauss-Hermite quadrature."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(count)
        grid = np.stack([each.ravel() for each in np.meshgrid(nodes, nodes)])
        logs = np.log(np.outer(weights, weights)).ravel() + 0.5 * (grid**2).sum(0) - np.log(2 * np.pi)
        total = self.constant(x)
        for (mode, curve, _), (dose, t, y) in zip(self.modes(x), self.groups, strict=True):
            root = scipy.linalg.inv(np.linalg.cholesky(curve)).T
            z = mode[:, None] + root @ grid
            left = (self.predict(x, t[:, None], dose, z) - y[:, None]) / np.exp(x[5])
            terms = logs - 0.5 * (left**2).sum(0) - 0.5 * (z**2).sum(0)
            total -= scipy.special.logsumexp(terms) + np.linalg.slogdet(root)[1]
        return total


def fit_oral(groups, **options):
    table = pandas.concat(
        [
            pandas.DataFrame({"time": t, "conc": y, "subject": f"p{i}"})[np.isfinite(y)]
            for i, (_, t, y) in enumerate(groups)
        ]
    )
    doses = pandas.DataFrame(
        {"time": 0.0, "amount": [dose for dose, _, _ in groups], "subject": [f"p{i}" for i in range(len(groups))]}
    )
    return fit(
        ORAL,
        table,
        trajectory="subject",
        observe={"conc": "body*ke/cl"},
        parameters={"cl": 0.04},
        fixed={"gut": 0, "body": 0},
        doses=doses,
        random={"ka": "lognormal", "cl": "lognormal"},
        backend="fused",
        **options,
    )


def gradient(function, x, step=1e-3):
    return np.array([(function(x + e) - function(x - e)) / (2 * step) for e in step * np.eye(len(x))])


def place(result):
    names = ["ke", "ka", "cl", "omega(ka)", "omega(cl)", "sigma(conc)"]
    return np.log([result[name].value for name in names])


@needs_compiler
def test_theophylline_by_laplaces_approximation_and_by_quadrature():
    groups = []
    for line in THEOPHYLLINE.strip().splitlines():
        dose, t, y = (np.array(part.split(), dtype=float) for part in line.split(";"))
        groups.append((dose[0], t, y))
    result = fit_oral(groups)
    exact, x = Oral(groups), place(result)
    assert result.converged and result.random is not None
    assert result.nll == pytest.approx(exact.laplace(x), abs=1e-5)
    order = [1, 0, 2, 3, 4, 5]  # x of the fit has ka first
    covariance = result.random.covariance[np.ix_(order, order)]
    slope = gradient(exact.laplace, x)
    assert slope @ covariance @ slope < 1e-6  # the maximum is nearer than 0.001 standard errors
    slope = gradient(exact.quadrature, x)
    assert slope @ covariance @ slope < 0.2**2  # and that of the marginal likelihood itself nearer than 0.2
    assert abs(result.nll - exact.quadrature(x)) < 1.0


@needs_compiler
def test_simulated_subjects_have_the_truth_in_their_intervals():
    rng = np.random.default_rng(5)
    t = np.array([0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 12.0, 24.0])
    truth = {"ke": 0.09, "ka": 1.5, "cl": 0.04, "omega(ka)": 0.5, "omega(cl)": 0.2, "sigma(conc)": 0.3}
    groups, values = [], []
    for weight in rng.uniform(55, 90, 12):
        dose = 320 / weight
        log_ka, log_cl = np.log([1.5, 0.04]) + np.array([0.5, 0.2]) * rng.standard_normal(2)
        values.append([np.exp(log_ka), np.exp(log_cl)])
        y = Oral.concentration(t, dose, np.log(0.09), log_ka, log_cl) + 0.3 * rng.standard_normal(len(t))
        groups.append((dose, t, y))
    result = fit_oral(groups, start={"ka": 1.0})
    assert result.converged
    inside = [result[name].lower < value < result[name].upper for name, value in truth.items()]
    assert all(inside)
    own = [
        result[f"{name}[p{i}]"].lower < value < result[f"{name}[p{i}]"].upper
        for i, both in enumerate(values)
        for name, value in zip(("ka", "cl"), both, strict=True)
    ]
    assert np.mean(own) >= 0.8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"random": {"slope": "cauchy"}}, "distribution 'cauchy'.* There are normal, lognormal, logitnormal"),
        ({"random": {"slope": "log-normal"}}, "Did you mean 'lognormal'"),
        ({"random": ["slop"]}, "random names 'slop', which is no parameter or state. Did you mean 'slope'"),
        ({"random": ["slope"], "by": {"slope": "subject"}}, "random and by both name 'slope'.*drop it from one"),
        (
            {"random": {"slope": "lognormal"}, "scale": {"slope": "linear"}},
            "normal on the log scale.*drop it from scale",
        ),
        ({"random": ["slope"], "fixed": {"slope": 1.0}}, "random names slope, whose value in the population is held"),
        (
            {"random": ["y"], "initial": {"y": 2.0}},
            "each trajectory has its own initial value: write initial={'y': 'shared'}",
        ),
        (
            {"random": ["slope"], "noise": "student_t"},
            "random takes noise that is normal, .*, got student_t.*noise='normal'",
        ),
        ({"random": ["slope"], "trajectory": None}, "there is one: name the column.*trajectory='subject'"),
        (
            {"random": ["slope"], "tied": {"slope": "2*other"}, "parameters": {"other": 1.0}},
            "'slope', which follows from",
        ),
        ({"random": {"slope": "logitnormal"}}, "slope is estimated on the logit scale, which needs bounds"),
    ],
)
def test_what_cannot_be_random_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        fit(LINE, lines(0.6), **{"trajectory": "subject", **options})


def test_random_is_a_list_or_a_dict():
    with pytest.raises(TypeError, match="random must be a list of names, or a dict such as"):
        fit(LINE, lines(0.6), trajectory="subject", random="slope")


def test_there_is_no_population_without_random_effects():
    result = fit(LINE, lines(0.0), initial="shared", trajectory="subject", start={"slope": 1.0})
    assert result.random is None
    with pytest.raises(ValueError, match="population=True is for fits with random effects"):
        result.predict([1.0], population=True)


@needs_compiler
def test_a_constraint_that_would_be_active_is_refused_and_one_that_is_not_changes_nothing():
    given = {"trajectory": "subject", "random": {"slope": "normal"}, "method": "dopri5", "rtol": 1e-6}
    given |= {"backend": "fused", "fixed": {"y": 2.0}, "start": {"slope": 0.7}, "shooting": "single"}
    words = "the constraint slope < 1 does not hold: a search with random= cannot go along it: leave it out, or give"
    with pytest.raises(RuntimeError, match=words):
        fit(LINE, lines(0.5), constraints=["slope < 1"], **given)
    held, free = fit(LINE, lines(0.5), constraints=["slope < 9"], **given), fit(LINE, lines(0.5), **given)
    assert held.converged and held.nll == pytest.approx(free.nll, abs=1e-6)
    assert not any("constraint" in each for each in held.warnings)
