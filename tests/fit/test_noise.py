"""Noise models against SciPy's distributions, finite differences and their own simulated data."""

import mpmath
import numpy as np
import pytest
from scipy import integrate, optimize, stats

from torchivp.fitting.noise import NOISE_MODELS, NoiseModel, StudentT, find_noise
from torchivp.fitting.noise.standard import Student

MODELS = [*NOISE_MODELS.values(), StudentT(df=1), StudentT(df=30)]
CENSORABLE = [model for model in MODELS if model.refusal(np.ones(1), np.ones(1, dtype=np.int8)) is None]
COUNTS = [model for model in MODELS if model not in CENSORABLE]
each_model = pytest.mark.parametrize("model", MODELS, ids=repr)
each_censorable = pytest.mark.parametrize("model", CENSORABLE, ids=repr)
each_count = pytest.mark.parametrize("model", COUNTS, ids=repr)

pytestmark = pytest.mark.filterwarnings("error")


def exact(n: int) -> np.ndarray:
    return np.zeros(n, dtype=np.int8)


def sizes_of(model: NoiseModel, n: int, sizes=(0.4, 0.25)) -> np.ndarray:
    return np.tile(sizes[: len(model.sizes)], (n, 1)) if model.sizes else np.zeros((n, 0))


def distribution(model: NoiseModel, h, size):
    """SciPy's distribution of data around h, with the sizes of one datum or of all."""
    size = np.atleast_2d(size).T
    return {
        "normal": lambda: stats.norm(h, size[0]),
        "lognormal": lambda: stats.lognorm(size[0], scale=h),
        "proportional": lambda: stats.norm(h, size[0] * np.abs(h)),
        "combined": lambda: stats.norm(h, np.sqrt(size[0] ** 2 + (size[1] * h) ** 2)),
        "laplace": lambda: stats.laplace(h, size[0]),
        "student_t": lambda: stats.t(model.df, h, size[0]),
        "poisson": lambda: stats.poisson(h),
        "negative_binomial": lambda: stats.nbinom(1 / size[0], 1 / (1 + size[0] * h)),
    }[model.name]()


def problem(model: NoiseModel, n: int = 200, seed: int = 0):
    """Predictions, sizes that differ from datum to datum, and data."""
    rng = np.random.default_rng(seed)
    h = rng.uniform(0.5, 12, n)
    size = rng.uniform(0.1, 0.6, (n, len(model.sizes)))
    return model.draw(h, size, rng), h, size


# What the registry holds


def test_names_and_sizes():
    assert {name: model.sizes for name, model in NOISE_MODELS.items()} == {
        "normal": ("sigma",),
        "lognormal": ("sigma",),
        "proportional": ("relative",),
        "combined": ("sigma", "relative"),
        "laplace": ("scale",),
        "student_t": ("scale",),
        "poisson": (),
        "negative_binomial": ("dispersion",),
    }
    assert [name for name, model in NOISE_MODELS.items() if model.log] == ["lognormal"]
    assert NOISE_MODELS["student_t"] == StudentT(df=4.0)


def test_find_noise():
    assert find_noise("laplace") is NOISE_MODELS["laplace"]
    assert find_noise(StudentT(df=3)) == StudentT(df=3)
    with pytest.raises(ValueError, match=r"^unknown noise 'Student-t'\. Did you mean 'student_t'\? The noise models "):
        find_noise("Student-t")
    with pytest.raises(ValueError, match=r"^unknown noise 'xyz'\. The noise models are normal, lognormal, prop"):
        find_noise("xyz")
    with pytest.raises(TypeError, match=r"^noise must be a name, such as 'normal', or an instance .* not <class"):
        find_noise(StudentT)  # type: ignore[arg-type]


@pytest.mark.parametrize("df", [0.5, 2e4, np.nan])
def test_degrees_of_freedom_out_of_range_are_refused(df):
    with pytest.raises(ValueError, match=r"^df must be from 1 to 10000, not .*: StudentT\(df=4\) is usual"):
        StudentT(df=df)


@pytest.mark.parametrize(
    "name, y, censored, expected",
    [
        ("normal", [1.0, -2.0, 0.0], [0, 1, -1], None),
        ("lognormal", [1.0, 0.0, -1.0], [0, 0, 0], (1, "is not positive, as data with lognormal noise are")),
        ("proportional", [0.0, -1.0, 0.0], [-1, 0, 0], (2, "is zero, whose density under proportional noise grows")),
        ("poisson", [3.0, 0.0, 2.5], [0, 0, 0], (2, "is not a whole number from 0 on, as data with poisson noise are")),
        ("negative_binomial", [3.0, -1.0], [0, 0], (1, "is not a whole number from 0 on, as data with negative_bin")),
        ("poisson", [3.0, 4.0], [0, -1], (1, "is a limit, which data with poisson noise cannot be")),
        ("negative_binomial", [3.0, 4.0], [0, 0], None),
    ],
)
def test_data_that_cannot_be_of_a_noise(name, y, censored, expected):
    found = NOISE_MODELS[name].refusal(np.array(y), np.array(censored, dtype=np.int8))
    if expected is None:
        assert found is None
    else:
        assert found is not None and found[0] == expected[0] and found[1].startswith(expected[1])


def test_possible_predictions_and_the_scale_of_plots():
    h = np.array([-1.0, 0.0, 1.0, 1e101, np.inf, np.nan])
    for model in MODELS:
        positive = model.name in ("lognormal", "poisson", "negative_binomial")
        expected = [not positive, not positive and model.name != "proportional", True, False, False, False]
        np.testing.assert_array_equal(model.possible(h), expected)
        np.testing.assert_array_equal(model.transform(np.array([2.0])), [np.log(2.0) if model.log else 2.0])


# Likelihoods


@each_model
def test_nll_is_that_of_scipy(model):
    y, h, size = problem(model)
    reference = distribution(model, h, size)
    expected = -(reference.logpmf(y) if model in COUNTS else reference.logpdf(y))
    np.testing.assert_allclose(model.nll(y, h, size, exact(len(y))), expected, rtol=1e-11, atol=1e-11)


@each_censorable
def test_nll_of_limits_is_that_of_scipy(model):
    y, h, size = problem(model)
    below, above = exact(len(y)) - np.int8(1), exact(len(y)) + np.int8(1)
    reference = distribution(model, h, size)
    np.testing.assert_allclose(model.nll(y, h, size, below), -reference.logcdf(y), rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(model.nll(y, h, size, above), -reference.logsf(y), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("df", [1.0, 4.0, 30.0, 1e4])
def test_far_tails_of_student(df):
    u = np.array([1e-3, 1.0, 5.0, 37.0, 39.0, 1e3, 1e10, 1e80])
    with mpmath.workdps(60):
        x = [mpmath.mpf(df) / (df + mpmath.mpf(each) ** 2) for each in u]
        expected = [float(mpmath.log(mpmath.betainc(df / 2, 0.5, 0, each, regularized=True) / 2)) for each in x]
    np.testing.assert_allclose(Student(df).log_tail(u), expected, rtol=1e-12)


@pytest.mark.parametrize("dispersion", [1e-8, 1e-6, 1e-3, 0.0499, 0.0501, 1.0, 1e3])
def test_negative_binomial_for_any_dispersion(dispersion):
    model = NOISE_MODELS["negative_binomial"]
    y, h = np.array([0.0, 1.0, 7.0, 300.0, 7.0]), np.array([3.0, 3.0, 3.0, 250.0, 1e-3])
    with mpmath.workdps(60):
        n = 1 / mpmath.mpf(dispersion)
        expected = [
            float(
                mpmath.loggamma(k + 1) - mpmath.loggamma(k + n) + mpmath.loggamma(n)
                - n * mpmath.log(n / (n + m)) - k * mpmath.log(m / (n + m))
            )
            for k, m in zip(y, h, strict=True)
        ]  # fmt: skip
    np.testing.assert_allclose(model.nll(y, h, np.full((5, 1), dispersion), exact(5)), expected, rtol=1e-13, atol=1e-13)


# Residuals


def slopes_by_differences(model, y, h, size, censored):
    step = 1e-4 * np.abs(h - y) + 1e-8 if model.name == "laplace" else 1e-5 * np.abs(h)
    ahead, behind = (model.residuals(y, h + sign * step, size, censored)[0] for sign in (1, -1))
    further, back = (model.residuals(y, h + 2 * sign * step, size, censored)[0] for sign in (1, -1))
    return (8 * (ahead - behind) - (further - back)) / (12 * step[:, None])


def check_residuals(model, y, h, other, size, censored):
    """Against nll at two predictions, and against finite differences."""
    values, slopes = model.residuals(y, h, size, censored)
    others, _ = model.residuals(y, other, size, censored)
    found = 0.5 * np.sum(others**2 - values**2, axis=1)
    nll, other_nll = (model.nll(y, at, size, censored) for at in (h, other))
    slack = 1.01e-3 if model.name == "laplace" else 0.0
    scale = 1 + np.abs(nll) + np.abs(other_nll)
    np.testing.assert_array_less(np.abs(found - (other_nll - nll)), 1e-12 * scale + slack)
    atol = 1e-6 if model.name == "laplace" else 1e-9
    differences = slopes_by_differences(model, y, h, size, censored)
    np.testing.assert_allclose(slopes, differences, rtol=1e-7, atol=atol * np.abs(slopes).max())


@each_model
def test_residuals_make_up_the_likelihood(model):
    y, h, size = problem(model)
    check_residuals(model, y, h, h * np.linspace(0.3, 3, len(h)), size, exact(len(y)))
    values, slopes = model.residuals(y, h, size, exact(len(y)))
    assert values.shape == slopes.shape == (len(y), 2 if model.name == "combined" else 1)
    if model.name not in ("proportional", "combined"):
        assert (np.sign(values[:, 0]) == np.sign(h - y)).all()


@each_censorable
@pytest.mark.parametrize("side", [-1, 1])
def test_residuals_of_limits(model, side):
    y, h, size = problem(model)
    censored = np.where(np.arange(len(y)) % 3 == 0, 0, side).astype(np.int8)
    check_residuals(model, y, h, h * np.linspace(0.3, 3, len(h)), size, censored)


@each_censorable
def test_limits_far_out_have_finite_residuals(model):
    h = np.array([1e-6, 1e-3, 0.5, 2.0, 40.0, 1e3, 1e6])
    y, size = np.ones(len(h)), sizes_of(model, len(h), (1e-2, 1e-2))
    for side in (-1, 1):
        values, slopes = model.residuals(y, h, size, np.full(len(h), side, dtype=np.int8))
        nll = model.nll(y, h, size, np.full(len(h), side, dtype=np.int8))
        assert np.isfinite(values).all() and np.isfinite(slopes).all()
        np.testing.assert_allclose(0.5 * (values**2).sum(1), nll, rtol=1e-12)
        assert (slopes >= 0).all() and (slopes.max() > 0)


@each_model
def test_residuals_of_predictions_far_away(model):
    h = np.array([1e-12, 1e-6, 0.03, 5.0, 300.0, 1e6, 1e12])
    y, size = np.full(len(h), 4.0), sizes_of(model, len(h), (1e-6, 1e-6))
    values, slopes = model.residuals(y, h, size, exact(len(h)))
    assert np.isfinite(values).all() and np.isfinite(slopes).all()
    differences = slopes_by_differences(model, y, h, size, exact(len(h)))
    rounding = 1e-10 * np.abs(values) / h[:, None]
    np.testing.assert_array_less(np.abs(slopes - differences), 1e-6 * np.abs(slopes) + rounding + 1e-300)


@each_model
def test_everything_is_finite_wherever_a_prediction_is_possible(model):
    """Without warnings, too."""
    magnitudes = [0.0, 1e-250, 1e-60, 1e-16, 1.0, 1e8, 1e16, 1e100]
    h, y, s, side = (
        axis.ravel()
        for axis in np.meshgrid(
            np.concatenate([magnitudes, np.negative(magnitudes)]), [0.0, 1.0, 3.0, 1e6], [1e-8, 1.0, 1e3], [0, -1, 1]
        )
    )
    censored = side.astype(np.int8)
    fine = model.possible(h) & np.array(
        [model.refusal(y[i : i + 1], censored[i : i + 1]) is None for i in range(len(y))]
    )
    y, h, size, censored = y[fine], h[fine], np.tile(s[fine, None], (1, len(model.sizes))), censored[fine]
    values, slopes = model.residuals(y, h, size, censored)
    for found in (values, slopes, model.nll(y, h, size, censored), model.information(h, size, censored, y)):
        assert np.isfinite(found).all()
    assert np.isfinite(model.standardised(y, h, size, censored)[censored == 0]).all()


@each_model
def test_residuals_at_the_datum_itself(model):
    y = np.array([1.0, 6.0, 200.0])
    for size in (sizes_of(model, 3), sizes_of(model, 3, (1e-5, 1e-5))):
        for nearby in (0.0, 1e-15, 1e-9, 1e-4):
            values, slopes = model.residuals(y, y * (1 + nearby), size, exact(3))
            assert np.isfinite(values).all() and (slopes[:, 0] > 0).all()
            if model.name != "laplace":
                step = 1e-4 * size.min(initial=0.1)
                ahead, behind = (model.residuals(y, y * (1 + nearby) + d, size, exact(3))[0] for d in (step, -step))
                atol = 1e-6 * slopes.max()
                np.testing.assert_allclose(slopes, (ahead - behind) / (2 * step), rtol=1e-4, atol=atol)


@each_count
def test_residuals_of_empty_counts(model):
    h = np.array([1e-8, 1e-3, 1.0, 1e3, 1e6])
    for dispersion in (1e-8, 0.3, 50.0):
        y, size = np.zeros(5), sizes_of(model, 5, (dispersion,))
        values, slopes = model.residuals(y, h, size, exact(5))
        np.testing.assert_allclose(0.5 * values[:, 0] ** 2, model.nll(y, h, size, exact(5)), rtol=1e-12)
        np.testing.assert_allclose(slopes, slopes_by_differences(model, y, h, size, exact(5)), rtol=1e-8)


def test_negative_binomial_residuals_for_any_dispersion():
    model = NOISE_MODELS["negative_binomial"]
    y = np.array([1.0, 5.0, 5.0, 1e4, 1e6, 1e6])
    h = np.array([2.0, 5.01, 4.0, 1.0001e4, 1.5e6, 1e3])
    for dispersion in (1e-8, 1e-4, 1.0, 1e3):
        size = np.full((6, 1), dispersion)
        values, slopes = model.residuals(y, h, size, exact(6))
        np.testing.assert_allclose(slopes, slopes_by_differences(model, y, h, size, exact(6)), rtol=1e-6)
        with mpmath.workdps(60):
            n, deviances = 1 / mpmath.mpf(dispersion), []
            for k, m in zip(map(mpmath.mpf, y), map(mpmath.mpf, h), strict=True):
                deviances.append(2 * (k * mpmath.log(k / m) - (k + n) * mpmath.log((k + n) / (m + n))))
            expected = [float(mpmath.sqrt(each)) for each in deviances]
        np.testing.assert_allclose(np.abs(values[:, 0]), expected, rtol=1e-10)


@pytest.mark.parametrize("relative", [1e-8, 1e-3, 0.3, 5.0])
def test_proportional_residuals_for_any_size_and_sign(relative):
    model = NOISE_MODELS["proportional"]
    h = np.array([1e-3, 0.2, 1.0, 1.0 + relative, 40.0, -1e-3, -0.2, -1.0, -40.0])
    size = np.full((len(h), 1), relative)
    for y in (1.0, -1.0):
        check_residuals(model, np.full(len(h), y), h, 1.3 * h, size, exact(len(h)))


# Sizes


def optimum(model, y, h, censored, k):
    """The sizes that make data most likely, by a search of SciPy's on the log scale."""

    def nll(logs):
        return model.nll(y, h, np.tile(np.exp(logs), (len(y), 1)), censored).sum()

    options = {"xatol": 1e-9, "fatol": 1e-12, "maxiter": 2000}
    return np.exp(optimize.minimize(nll, np.full(k, -1.0), method="Nelder-Mead", options=options).x)


@each_model
@pytest.mark.parametrize("limits", [False, True])
def test_estimated_sizes_make_the_data_most_likely(model, limits):
    h = np.random.default_rng(1).uniform(0.5, 12, 300)
    y = model.draw(h, sizes_of(model, 300, (0.8, 0.15)), np.random.default_rng(2))
    censored = exact(300)
    if limits and model in CENSORABLE:
        limit = 2.0
        censored[y < limit], censored[y > 11] = -1, 1
        y = np.clip(y, limit, 11)
    found = model.estimate(y, h, censored, 1e-6)
    assert found.shape == (len(model.sizes),)
    if model.sizes:
        np.testing.assert_allclose(found, optimum(model, y, h, censored, len(found)), rtol=2e-5)
        np.testing.assert_allclose(found, sizes_of(model, 1, (0.8, 0.15))[0], rtol=0.35)


@each_model
def test_sizes_have_a_floor(model):
    h = np.arange(1.0, 9.0)
    found = model.estimate(h, h, exact(8), 1e-3)
    expected = {"relative": 1e-8, "dispersion": 1e-8}
    np.testing.assert_array_equal(found, [expected.get(name, 1e-3) for name in model.sizes])
    np.testing.assert_array_equal(model.estimate(h[:0], h[:0], exact(0), 1e-3), found)


def test_sizes_are_finite_where_the_likelihood_has_no_maximum():
    h = np.arange(1.0, 9.0)
    assert NOISE_MODELS["negative_binomial"].estimate(np.zeros(8), h / 1e3, exact(8), 1e-6) == pytest.approx(1e4)
    for model in CENSORABLE:
        for factor in (0.5, 2.0):  # said to lie above: the predictions do so as well, or they do not
            found = model.estimate(factor * h, h, exact(8) + np.int8(1), 1e-6)
            assert np.isfinite(found).all() and (found > 0).all()
            if factor < 1:
                np.testing.assert_allclose(found, np.where(np.array(model.sizes) == "relative", 1e-8, 1e-6))


def test_noise_of_one_kind_is_found_to_be_of_that_kind():
    h = np.random.default_rng(1).uniform(0.5, 12, 300)
    rng = np.random.default_rng(3)
    constant = h + 0.3 * rng.standard_normal(300)
    sigma, relative = NOISE_MODELS["combined"].estimate(constant, h, exact(300), 1e-6)
    assert 0.2 < sigma < 0.35 and relative < 0.03
    sigma, relative = NOISE_MODELS["combined"].estimate(h * (1 + 0.2 * rng.standard_normal(300)), h, exact(300), 1e-6)
    assert sigma < 0.1 and relative == pytest.approx(0.2, rel=0.1)
    steady = np.round(h)
    assert NOISE_MODELS["negative_binomial"].estimate(steady, h, exact(300), 1e-6) == 1e-8


@each_model
def test_least_squares_finds_the_maximum_of_the_likelihood(model):
    """A decay fitted at known sizes: the optimum is no lower for a search that sees nll only."""
    t = np.linspace(0, 3, 60)
    censored, size = exact(60), sizes_of(model, 60)
    y = model.draw(20 * np.exp(-0.5 * t), size, np.random.default_rng(7))
    if model in CENSORABLE:
        censored[y < 6] = -1
        y = np.maximum(y, 6)

    def predictions(p):
        return np.exp(p[0] - p[1] * t)

    def residuals(p):
        return model.residuals(y, predictions(p), size, censored)[0].ravel()

    def jacobian(p):
        h = predictions(p)
        slopes = model.residuals(y, h, size, censored)[1]
        return (slopes[:, :, None] * np.stack([h, -t * h], 1)[:, None]).reshape(-1, 2)

    def nll(p):
        return model.nll(y, predictions(p), size, censored).sum()

    found = optimize.least_squares(residuals, [1.0, 0.1], jacobian, xtol=1e-12, ftol=1e-12).x
    other = optimize.minimize(nll, found, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-10})
    np.testing.assert_allclose(found, [np.log(20), 0.5], atol=0.35)
    assert nll(found) <= other.fun + (2e-2 if model.name == "laplace" else 1e-8)


# Information


def squared_scores(model, h, size):
    """The expected outer product of the derivatives of log density with respect to (h, log sizes), by summation."""
    reference, k = distribution(model, h, size), len(model.sizes)

    def scores(y):
        at = np.concatenate([[h], np.log(size)])
        columns = []
        for j in range(1 + k):
            step = np.zeros(1 + k)
            step[j] = 1e-4 * (h if j == 0 else 1)
            values = [
                model.nll(y, np.full(len(y), p[0]), np.tile(np.exp(p[1:]), (len(y), 1)), exact(len(y)))
                for p in (at + step, at - step)
            ]
            columns.append((values[1] - values[0]) / (2 * step[j]))
        return np.stack(columns)

    if model in COUNTS:
        y = np.arange(np.max(reference.ppf(1 - 1e-13)) + 1)
        return (scores(y) * reference.pmf(y)) @ scores(y).T
    p = np.linspace(-1, 1, 40001)[1:-1]
    p = 0.5 * (1 + p * (1.5 - 0.5 * p**2))  # denser near 0 and 1
    y = reference.ppf(p)
    every = scores(y)
    return integrate.trapezoid(every[:, None] * every[None], p, axis=-1)


@each_model
@pytest.mark.parametrize("h", [0.7, 6.0])
def test_information_is_that_of_the_scores(model, h):
    size = sizes_of(model, 1)[0]
    found = model.information(np.array([h]), size[None], exact(1), np.array([h]))[0]
    expected = squared_scores(model, h, size)
    np.testing.assert_allclose(found, expected, rtol=5e-3, atol=3e-3 * np.abs(np.diag(expected)).max())


@pytest.mark.parametrize("h, dispersion", [(0.01, 1.0), (3.0, 1e-7), (400.0, 0.02), (2000.0, 2.0), (5.0, 40.0)])
def test_information_about_dispersion(h, dispersion):
    """By the formula of Lawless (1987), which sums probabilities instead of squared scores."""
    model, n = NOISE_MODELS["negative_binomial"], 1 / dispersion
    j = np.arange(200_000.0)
    above = stats.nbinom(n, 1 / (1 + dispersion * h)).sf(j)
    expected = n**2 * (np.sum(above / (n + j) ** 2) - h / (n * (n + h)))
    if dispersion < 1e-6:
        expected = 0.5 * (dispersion * h) ** 2  # its limit, to which the formula loses all digits
    found = model.information(np.array([h]), np.array([[dispersion]]), exact(1), np.array([h]))[0, 1, 1]
    assert found == pytest.approx(expected, rel=5e-3)


@each_model
def test_information_is_positive_semidefinite(model):
    y, h, size = problem(model)
    sides = [0, -1, 1] if model in CENSORABLE else [0]
    for side in sides:
        for factor in (1e-3, 1.0, 1e3):
            matrices = model.information(factor * h, size, np.full(len(y), side, dtype=np.int8), y)
            assert matrices.shape == (len(y), 1 + len(model.sizes), 1 + len(model.sizes))
            least = np.linalg.eigvalsh(matrices)[:, 0]
            assert (least >= -1e-12 * np.trace(matrices, axis1=1, axis2=2)).all()


@pytest.mark.parametrize("name", ["normal", "laplace", "student_t"])
def test_information_of_limits_about_the_prediction_is_observed(name):
    model, h = NOISE_MODELS[name], np.linspace(-2.0, 0.9, 30)
    y, size, limit = np.ones(30), np.full((30, 1), 0.7), np.full(30, 1, dtype=np.int8)
    nll = [model.nll(y, h + step, size, limit) for step in (-1e-4, 0.0, 1e-4)]
    curvature = (nll[0] - 2 * nll[1] + nll[2]) / 1e-8
    found = model.information(h, size, limit, y)[:, 0, 0]
    np.testing.assert_allclose(found, np.maximum(curvature, 0), atol=1e-5)


# Residuals, quantiles and draws


@each_model
def test_standardised_data_are_standard_normal(model):
    rng = np.random.default_rng(4)
    h, size = rng.uniform(100, 400, 4000), rng.uniform(0.1, 0.6, (4000, len(model.sizes)))
    y = model.draw(h, size, rng)
    found = model.standardised(y, h, size, exact(4000))
    assert stats.kstest(found, "norm").pvalue > 0.01
    tail = model.standardised(y[:3], h[:3], size[:3], np.array([-1, 0, 1], dtype=np.int8))
    np.testing.assert_array_equal(np.isnan(tail), [True, False, True])


@each_model
def test_standardised_data_far_out(model):
    """Where the probability is too small for a float, and where it is not."""
    h = np.full(9, 4000.0)
    y = np.array([0.0, 1.0, 2500.0, 3900.0, 4000.0, 4100.0, 5000.0, 2e4, 1e7])
    if model.name == "lognormal":
        y = np.maximum(y, 1e-3)
    found = model.standardised(y, h, sizes_of(model, 9, (0.03, 0.03)), exact(9))
    assert np.isfinite(found).all() and (np.diff(found) > 0).all()
    assert (found[:4] < 0).all() and (found[5:] > 0).all()


@each_count
def test_standardised_counts_are_mid_p_quantile_residuals(model):
    y, h = np.arange(40.0), np.full(40, 9.0)
    size = sizes_of(model, 40)
    reference = distribution(model, h, size)
    expected = stats.norm.ppf(reference.cdf(y - 1) + 0.5 * reference.pmf(y))
    found = model.standardised(y, h, size, exact(40))
    np.testing.assert_allclose(found[:20], expected[:20], rtol=1e-9, atol=1e-9)
    expected = stats.norm.isf(reference.sf(y) + 0.5 * reference.pmf(y))
    np.testing.assert_allclose(found[20:], expected[20:], rtol=1e-9)


@pytest.mark.parametrize("model", [StudentT(df=3), NOISE_MODELS["laplace"]], ids=repr)
def test_standardised_data_are_quantile_residuals(model):
    y, h, size = problem(model)
    reference = distribution(model, h, size)
    expected = np.where(y < h, stats.norm.ppf(reference.cdf(y)), stats.norm.isf(reference.sf(y)))
    np.testing.assert_allclose(model.standardised(y, h, size, exact(len(y))), expected, rtol=1e-9, atol=1e-12)


def test_the_least_dispersed_counts_are_those_of_poisson():
    y, h, poisson, other = np.arange(60.0), np.full(60, 9.0), NOISE_MODELS["poisson"], NOISE_MODELS["negative_binomial"]
    none, least = np.zeros((60, 0)), np.full((60, 1), 1e-8)
    for name in ("nll", "standardised"):
        expected = getattr(poisson, name)(y, h, none, exact(60))
        np.testing.assert_allclose(getattr(other, name)(y, h, least, exact(60)), expected, rtol=1e-6)
    for found, expected in zip(
        other.residuals(y, h, least, exact(60)), poisson.residuals(y, h, none, exact(60)), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    for p in (0.01, 0.6, 0.99):
        np.testing.assert_array_equal(other.quantiles(h, least, p), poisson.quantiles(h, none, p))


def test_tails_of_counts_join_where_their_probability_leaves_the_floats():
    y = np.arange(0.0, 300.0)
    found = NOISE_MODELS["poisson"].standardised(y, np.full(300, 900.0), np.zeros((300, 0)), exact(300))
    assert found[0] < -41 < -37 < found[-1]
    np.testing.assert_array_less(np.abs(np.diff(found, 2)), 5e-2)


@each_model
@pytest.mark.parametrize("p", [1e-6, 0.025, 0.3, 0.5, 0.975, 1 - 1e-6])
def test_quantiles_are_those_of_scipy(model, p):
    _, h, size = problem(model, 50)
    found = model.quantiles(h, size, p)
    np.testing.assert_allclose(found, distribution(model, h, size).ppf(p), rtol=1e-8, atol=1e-12)


@each_count
def test_quantiles_of_large_counts(model):
    h, size = np.array([1e-3, 1e6, 1e17]), sizes_of(model, 3)
    np.testing.assert_allclose(model.quantiles(h, size, 0.9), distribution(model, h, size).ppf(0.9), rtol=1e-9)


@each_model
def test_draws_are_from_the_distribution(model):
    h, size = np.full(4000, 250.0), sizes_of(model, 4000)
    y = model.draw(h, size, np.random.default_rng(5))
    assert y.dtype == np.float64 and y.shape == (4000,)
    reference, u = distribution(model, 250.0, size[0]), np.random.default_rng(6).uniform(size=4000)
    probability = u * reference.cdf(y) + (1 - u) * reference.cdf(y - 1) if model in COUNTS else reference.cdf(y)
    assert stats.kstest(probability, "uniform").pvalue > 0.01
    again = model.draw(h, size, np.random.default_rng(5))
    np.testing.assert_array_equal(y, again)
