"""Fits side by side, what is determined, derivatives checked; and fits in files."""

import json
import pickle
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch

from torchivp.fitting import FitResult, StoredFit, compare, fit
from torchivp.models import Model

T = np.linspace(0.0, 4.0, 12)
DATA = pd.DataFrame({"time": T, "y": 2.0 * np.exp(-0.6 * T) + 0.05 * np.random.default_rng(0).normal(size=len(T))})


class Decay(Model):
    states: ClassVar = {"y": "what is left"}
    units: ClassVar = {"y": "mg"}
    default_state = (1.0,)

    def __init__(self, rate: float = 0.5):
        super().__init__(rate=rate)

    def forward(self, t, y):
        return -self.rate * y


class Leaky(Decay):
    """Decays to a level, whose half is in the parameter."""

    positive = ("rate",)

    def __init__(self, rate: float = 0.5, level: float = 0.1):
        Model.__init__(self, rate=rate, level=level)

    def forward(self, t, y):
        return -self.rate * (y - self.level)


class Product(Decay):
    def __init__(self):
        Model.__init__(self, a=0.5, b=1.0)

    def forward(self, t, y):
        return -self.a * self.b * y


def doubled(y, p):
    return 2.0 * y.y


def fit_quickly(model, data=DATA, **options):
    return fit(model, data, **{"backend": "eager", "rtol": 1e-6, "method": "dopri5", "shooting": "single", **options})


@pytest.fixture(scope="module")
def decay():
    return fit_quickly(Decay(), start={"rate": 0.7})


@pytest.fixture(scope="module")
def leaky():
    return fit_quickly(Leaky(), start={"rate": 0.7})


@pytest.fixture(scope="module")
def product():
    return fit_quickly(Product(), start={"a": 0.7})


def test_the_table_is_that_of_burnham_and_anderson(decay, leaky):
    table = compare({"plain": decay, "leaky": leaky})
    assert set(table.index) == {"plain", "leaky"} and table.index.name == "model"
    for name, result in {"plain": decay, "leaky": leaky}.items():
        k, n, row = result.n_free, 12, table.loc[name]
        assert (row["nll"], row["n_free"], row["converged"]) == (result.nll, k, True)
        assert row["AIC"] == pytest.approx(2 * result.nll + 2 * k)
        assert row["AICc"] == pytest.approx(2 * result.nll + 2 * k + 2 * k * (k + 1) / (n - k - 1))
        assert row["BIC"] == pytest.approx(2 * result.nll + k * np.log(n))
    delta = abs(decay.aicc - leaky.aicc)
    assert table["dAICc"].tolist() == pytest.approx([0.0, delta])
    assert table["weight"].tolist() == pytest.approx([1 / (1 + np.exp(-delta / 2)), 1 / (1 + np.exp(delta / 2))])


def test_with_priors_a_quantity_counts_by_what_the_data_say_of_it(decay, leaky, tmp_path):
    """A prior like no data is no prior, one like a wall holds; between them the trace of Hastie and Tibshirani."""
    wide = fit_quickly(Leaky(), start={"rate": 0.7}, priors={"level": (0.0, 100.0)})
    assert wide.n_free == leaky.n_free == 4
    assert wide.n_effective == pytest.approx(4, abs=1e-3)
    assert wide.aic == pytest.approx(leaky.aic, abs=1e-2)
    wall = fit_quickly(Leaky(), start={"rate": 0.7}, priors={"level": (0.0, 1e-5)})
    assert wall.n_effective == pytest.approx(3, abs=1e-3)
    assert (wall.aic, wall.aicc) == pytest.approx((decay.aic, decay.aicc), abs=1e-2)
    known = fit_quickly(Leaky(), start={"rate": 0.7}, priors={"level": (0.05, 0.03)}, sigma=0.05)
    jacobian = known.misfit.predictions(known.theta).jacobian / 0.05
    of_data = jacobian.T @ jacobian
    priors = np.zeros((3, 3))
    priors[1, 1] = 0.03**-2
    assert known.free_names == ["rate", "level", "y(0)"]
    assert known.n_effective == pytest.approx(np.trace(of_data @ np.linalg.inv(of_data + priors)), rel=1e-6)
    assert "3 free quantities that count as 2." in known.summary()

    table = compare({"leaky": leaky, "wide": wide})
    assert table.loc["wide", "n_effective"] == wide.n_effective
    assert np.isnan(table.loc["wide", ["BIC", "dBIC"]].astype(float)).all()
    assert table.loc["leaky", "dBIC"] == 0.0
    assert table["weight"].sum() == pytest.approx(1.0)
    wide.to_json(tmp_path / "wide.json")
    numbers = FitResult.load(tmp_path / "wide.json")
    assert np.isnan(numbers.bic)
    assert compare([numbers, leaky])["weight"].tolist() == pytest.approx(table["weight"].tolist())


def test_a_list_is_named_by_models(decay):
    assert compare([decay, decay]).index.tolist() == ["Decay", "Decay 2"]


def test_other_data_are_not_compared(decay):
    other = fit_quickly(Decay(), DATA.iloc[:-1], start={"rate": 0.7})
    with pytest.raises(
        ValueError, match=r"Decay and Decay 2 are not fitted to the same data \(12 values of the DataFr"
    ):
        compare([decay, other])
    with pytest.raises(ValueError, match=r"compare takes two fits or more, got 1: compare\(\[one, other\]\)"):
        compare([decay])
    with pytest.raises(TypeError, match=r"compare takes several fits, compare\(\[one, other\]\), got FitResult"):
        compare(decay)
    with pytest.raises(TypeError, match=r"compare takes what fit or FitResult\.load returned, got int"):
        compare([decay, 3])


def test_the_frame_has_a_row_for_each_estimate(decay):
    table = decay.to_frame()
    assert table.index.tolist() == ["rate", "y(0)", "sigma(y)"]
    assert table.loc["rate", "estimate"] == decay["rate"].value
    assert table.loc["y(0)", "unit"] == "mg"
    assert table.loc["rate", "upper"] == decay["rate"].upper


def test_directions_say_which_combination_is_not_determined(decay, product):
    assert [each.determined for each in decay.determined()] == ["well", "well"]
    scaled = decay.uncertainty.magnitudes
    information = np.linalg.inv(decay.covariance / np.outer(scaled, scaled))
    np.testing.assert_allclose(decay.eigenvalues, np.linalg.eigvalsh(information)[::-1], rtol=1e-8)
    *_, worst = product.determined()
    assert worst.determined == "not" and worst.standard_error == np.inf
    assert worst.combination in (
        "the combination 0.71 log a -0.71 log b",
        "the combination 0.71 log b -0.71 log a",
    )
    assert abs(worst.weights["a"] + worst.weights["b"]) < 1e-6 and abs(worst.weights["y(0)"]) < 1e-6
    assert str(worst).startswith("not determined: the combination 0.71 log ")


def test_derivatives_are_compared_with_differences(decay):
    found = decay.check_gradient()
    assert found.good and found.largest < 1e-4
    assert set(found.errors) == {"rate", "y(0)"}
    assert found.sentence.startswith("the derivatives agree with differences to ")


def test_a_wrong_derivative_is_found():
    class Wrong(Decay):
        def forward(self, t, y):
            rate = self.rate + 0.2 * (self.rate.detach() - self.rate)  # a fifth of its effect has no derivative
            return -rate * y

    result = fit_quickly(Wrong(), start={"rate": 0.6})
    found = result.check_gradient()
    assert not found.good and found.errors["rate"] == pytest.approx(0.2, abs=0.01)
    assert found.sentence.startswith("the derivatives by rate differ from differences by up to 0.2: make the model ")


def test_json_gives_the_numbers_back(product, tmp_path):
    product.to_json(tmp_path / "fit.json")
    loaded = FitResult.load(tmp_path / "fit.json")
    assert isinstance(loaded, StoredFit)
    assert loaded.summary() == product.summary()
    assert loaded.dictionary() == product.dictionary()
    pd.testing.assert_frame_equal(loaded.to_frame(), product.to_frame())
    assert loaded.verdict == product.verdict and loaded.warnings == product.warnings
    np.testing.assert_array_equal(loaded.covariance, product.covariance)
    np.testing.assert_array_equal(loaded.sizes, product.sizes)
    assert [str(each) for each in loaded.determined()] == [str(each) for each in product.determined()]
    assert compare([loaded, product])["weight"].tolist() == [0.5, 0.5]
    assert repr(loaded).startswith("StoredFit(a=")


def test_held_quantities_and_infinities_survive_json(tmp_path):
    result = fit_quickly(Decay(), DATA.iloc[:4], fixed={"y": 2.0}, start={"rate": 0.7}, derived={"half": "log(2)/rate"})
    result.aicc = np.inf
    result.to_json(tmp_path / "fit.json")
    loaded = FitResult.load(tmp_path / "fit.json")
    assert loaded.aicc == np.inf
    assert np.isnan(loaded["y(0)"].standard_error) and np.isnan(loaded["y(0)"].lower)
    assert loaded["half"] == result["half"]


def test_a_stored_fit_predicts(leaky, tmp_path):
    path = leaky.save(tmp_path / "leaky.fit")
    loaded = FitResult.load(path)
    assert isinstance(loaded, FitResult)
    assert loaded.summary() == leaky.summary()
    t = np.linspace(0, 6, 5)
    np.testing.assert_array_equal(loaded.predict(t), leaky.predict(t))
    for one, same in zip(loaded.prediction_band(t), leaky.prediction_band(t), strict=True):
        np.testing.assert_array_equal(one, same)
    assert loaded.derive("half", "log(2)/rate") == leaky.derive("half", "log(2)/rate")
    assert loaded.profile("level").upper == leaky.profile("level").upper
    assert compare([loaded, leaky])["dAIC"].tolist() == [0.0, 0.0]


def test_formulas_and_functions_of_modules_are_stored(tmp_path):
    data = DATA.assign(sum=2.0 * DATA["y"])
    options = {"observe": {"y": "y", "sum": doubled}, "tied": {"b": "2*a"}, "constraints": ["a > 0.01"]}
    result = fit_quickly(Product(), data, start={"a": 0.5}, **options)
    loaded = FitResult.load(result.save(tmp_path / "product.fit"))
    np.testing.assert_array_equal(loaded.observe([1.0, 2.0]), result.observe([1.0, 2.0]))


def test_what_cannot_be_stored_is_refused(tmp_path):
    class Inner(Decay):
        pass

    inner = fit_quickly(Inner(), start={"rate": 0.7})
    with pytest.raises(ValueError, match=r"cannot be stored: the class of the model, .*Inner, cannot be imported: def"):
        inner.save(tmp_path / "inner.fit")
    observed = fit_quickly(Decay(), DATA.rename(columns={"y": "z"}), observe={"z": lambda y, p: y.y}, free="all")
    with pytest.raises(ValueError, match=r"z observes a function that cannot be imported: write it as text, or define"):
        observed.save(tmp_path / "observed.fit")
    tied = fit_quickly(Product(), tied={"b": lambda p: 2 * p.a}, start={"a": 0.5})
    with pytest.raises(
        ValueError, match=r"the formula of b is a function that cannot be .*to_json\(path\) stores its n"
    ):
        tied.save(tmp_path / "tied.fit")


def test_files_that_hold_no_fit_are_refused(decay, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match=r"holds no fit: FitResult.load reads what result.save\(path\) or"):
        FitResult.load(path)
    path.write_text(json.dumps({"a": 1}))
    with pytest.raises(ValueError, match="is no fit of format 1"):
        FitResult.load(path)
    path.write_bytes(b"torchivp fit 99 7.0\n")
    with pytest.raises(ValueError, match=r"is of format 99, which torchivp 7.0 wrote, and this one reads format 1"):
        FitResult.load(path)
    stored = decay.save(path).read_bytes()
    path.write_bytes(stored[:-200])
    with pytest.raises(ValueError, match="is damaged"):
        FitResult.load(path)
    path.write_bytes(stored.replace(b"Decay", b"Decoy"))
    with pytest.raises(ValueError, match=r"needs what is not there: .*Decoy.*Import or define the class of its model"):
        FitResult.load(path)


def test_notebooks_show_a_table(product):
    text = product._repr_html_()
    assert text.count("<tr>") == 1 + len(product.estimates)
    assert "Product fitted to the DataFrame: 12 values" in text
    assert "<li>the data do not determine the combination" in text
    assert torch.is_tensor(product.model.a)
