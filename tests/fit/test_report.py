import base64
import hashlib
import json
import re
import shutil
import sys
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from subprocess import run

import numpy as np
import pytest
from plotly.offline import get_plotlyjs

from fake_fit import FakeFit, several_trajectories
from torchivp.fitting import Direction, Profile
from torchivp.fitting.report import format_number, write_report
from torchivp.fitting.results.residual_checks import judge


class Page(HTMLParser):
    """The addresses that a page loads, its tags in order and its text."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.tags, self.words = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loads += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "poster")]

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


class NoisyFit(FakeFit):
    """A fit whose residuals are white noise of size `scale`."""

    scale = 1.0

    def residuals(self, trajectory=0):
        return self.scale * np.random.default_rng(trajectory).normal(
            size=self.data.trajectories[trajectory].values.shape
        )


DRAWN = {"test_the_folder_holds_page_pictures_and_numbers", "test_a_browser_draws_the_pictures"}
"""The tests that look at pictures. The others look at names and words, and a picture takes long to draw."""


@pytest.fixture(autouse=True)
def blank(request, monkeypatch):
    if request.function.__name__ not in DRAWN:
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path: path.write_bytes(b"blank"))


def read(result, folder, interactive=False, **options):
    return Page(write_report(result, folder, interactive=interactive, **options).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return read(FakeFit(), tmp_path_factory.mktemp("report"), interactive=True)


def test_the_folder_holds_page_pictures_and_numbers(tmp_path):
    folder = tmp_path / "new" / "report"
    index = write_report(FakeFit(), folder)
    assert index == folder / "index.html"
    names = {"index.html", "fit.png", "residuals.png", "phase.png", "correlation.png", "result.json"}
    assert {path.name for path in folder.iterdir()} == names
    assert json.loads((folder / "result.json").read_text())["nll"] == FakeFit().nll
    embedded = re.findall(r'<img src="data:image/png;base64,([^"]+)"', index.read_text())
    pictures = [(folder / f"{name}.png").read_bytes() for name in ("fit", "phase", "residuals", "correlation")]
    assert [base64.b64decode(picture) for picture in embedded] == pictures


def test_the_page_loads_nothing(page):
    outside = [address for address in page.loads if not address.startswith("data:image/png;base64,")]
    assert outside == ["result.json"]
    assert "link" not in page.tags


def scripts_of(folder):
    """The policy of the page in a folder, and its scripts: the figures, plotly.js, and what draws."""
    text = (folder / "index.html").read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1]
    figures, packed, draws = re.findall(r"<script[^>]*>(.*?)</script>", text, flags=re.DOTALL)
    return policy, json.loads(figures), zlib.decompress(base64.b64decode(packed)).decode(), draws


def test_the_page_may_run_its_own_two_scripts_and_load_nothing(tmp_path):
    write_report(FakeFit(), tmp_path)
    policy, _, plotly, draws = scripts_of(tmp_path)
    allowed = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in (plotly, draws)]
    assert policy.startswith("default-src 'none'; ")
    assert re.findall(r"script-src ([^;]+)", policy) == [" ".join(f"'sha256-{each}'" for each in allowed)]
    assert plotly == get_plotlyjs()


def test_every_picture_but_the_correlations_answers_the_pointer(tmp_path):
    write_report(FakeFit(), tmp_path, profiles={"alpha": profile_of("alpha"), "beta": profile_of("beta")})
    figures = scripts_of(tmp_path)[1]["figures"]
    assert {name: len(parts) for name, parts in figures.items()} == {
        "fit": 1,
        "residuals": 2,
        "phase": 1,
        "profiles": 2,
    }
    text = (tmp_path / "index.html").read_text()
    for name, parts in figures.items():
        assert f'<div class="plots" id="plots-{name}">{len(parts) * "<div></div>"}</div>' in text
    night = scripts_of(tmp_path)[1]["night"]
    used = {color[:7] for color in re.findall(r'color":"(#\w{6,8})"', json.dumps(figures, separators=(",", ":")))}
    assert used <= set(night), "each colour has one for dark pages"


@pytest.mark.parametrize("way", ["asked for", "without plotly"])
def test_still_pictures_alone(way, tmp_path, monkeypatch):
    if way == "without plotly":
        monkeypatch.delitem(sys.modules, "torchivp.plot.interactive", raising=False)
        monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    page = read(FakeFit(), tmp_path, interactive=way != "asked for")
    assert "script" not in page.tags and "script-src" not in (tmp_path / "index.html").read_text()
    assert ("since plotly is missing: pip install 'torchivp[fit]'" in page.text) == (way == "without plotly")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the browser chromium")
def test_a_browser_draws_the_pictures(tmp_path):
    write_report(FakeFit(), tmp_path, profiles={"alpha": profile_of("alpha")})
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=60000", "--dump-dom"]
    options += [f"--user-data-dir={tmp_path / 'browser'}"]
    drawn = run(["chromium", *options, (tmp_path / "index.html").as_uri()], capture_output=True, text=True, check=True)
    assert re.findall(r'<figure class="(\w+)[^"]*drawn', drawn.stdout) == ["fit", "profiles", "phase", "residuals"]
    assert drawn.stdout.count('class="main-svg"') >= 5


def test_a_band_of_measurements_that_is_not_known_is_not_promised(tmp_path, page):
    class Unknown(FakeFit):
        def prediction_band(self, t, trajectory=0):
            return np.full((len(t), 2), np.nan), np.full((len(t), 2), np.nan)

    text = read(Unknown(), tmp_path).text
    assert "There is none for a new measurement, whose standard deviation is not known." in text
    assert "the lighter one a new measurement" not in text and "the lighter one a new measurement" in page.text


def test_the_page_states_the_numbers(page):
    for entry in FakeFit().estimates:
        interval = f"{format_number(entry.lower)} to {format_number(entry.upper)}"
        row = f"{entry.name} {format_number(entry.value)} {format_number(entry.standard_error, 2)} {interval}"
        assert row in page.text
    for name, value in {"AIC": "285.940", "AICc": "290.300", "BIC": "299.800", "measurements": "42"}.items():
        assert f"{name} {value}" in page.text
    assert "negative log-likelihood 134.970" in page.text
    assert re.search(r"torchivp \d+\.\d+\.\d+, torch \d.*, Python 3\.\d+\.\d+, \d\d \w+ \d{4}", page.text)


def test_the_page_opens_with_what_was_fitted_to_what(page):
    assert page.text.startswith("LotkaVolterra fitted to hare, lynx")
    assert "hare is the model’s prey (population of the prey); lynx is the model’s predator" in page.text


def test_everything_is_escaped(tmp_path):
    evil = "<script>alert('x')</script>"
    result = FakeFit(warnings=[evil], message=evil, converged=False)
    result.data.observables[0] = evil
    result.estimates[0] = replace(result.estimates[0], name=evil, description=evil, unit=evil)
    page = read(result, tmp_path, interactive=True, command=f"torchivp fit {evil}")
    assert page.tags.count("script") == 3, "those of the page"
    assert page.text.count(evil) >= 6
    assert scripts_of(tmp_path)[1]["figures"]["fit"][0]["layout"]["yaxis"]["title"]["text"].startswith("&lt;script")


def test_fixed_quantities_are_said_to_be_fixed(tmp_path):
    result = FakeFit()
    result.estimates[0] = replace(result.estimates[0], free=False, standard_error=float("nan"))
    page = read(result, tmp_path)
    assert "alpha 0.5470 fixed –" in page.text


def test_one_state_has_no_phase_plane_and_unknown_correlations_no_picture(tmp_path):
    result = several_trajectories(2)
    result.correlation = np.full(2 * [len(result.free_names)], np.nan)
    page = read(result, tmp_path)
    assert not (tmp_path / "phase.png").exists()
    assert not (tmp_path / "correlation.png").exists()
    assert "Phase plane" not in page.text
    assert "42 measurements from lynx_hare.csv in 2 trajectories" in page.text


def test_the_command_is_shown_or_else_the_call(tmp_path):
    assert "torchivp fit 'my data.csv'" in read(FakeFit(), tmp_path, command="torchivp fit 'my data.csv'").text
    assert "result = fit(LotkaVolterra(), data)" in read(FakeFit(), tmp_path).text


def limited() -> FakeFit:
    """A fit in which two values of hare are only known to be small, and one of lynx to be large."""
    result = FakeFit()
    censored = np.zeros((21, 2), dtype=np.int8)
    censored[:2, 0], censored[5, 1] = -1, 1
    result.data.trajectories[0] = replace(result.data.trajectories[0], censored=censored)
    return result


def test_limits_are_counted_and_explained(tmp_path):
    text = read(limited(), tmp_path).text
    assert "Of the 21 values of hare, known to lie beyond limits are 2 below; of the 21 values of lynx, known" in text
    assert "Triangles are limits, and point to where the values lie." in text
    assert "Values that are known to lie beyond limits have no residuals." in text


def profile_of(name, **options) -> Profile:
    values = np.linspace(0.4, 0.7, 7)
    nll = 134.97 + 300 * (values - 0.55) ** 2
    return Profile(
        **{"name": name, "level": 0.95, "scale": "log", "estimate": 0.55, "error": 0.06, "values": values, "nll": nll}
        | {"thetas": np.zeros((7, 6)), "nll_min": 134.97, "fall": 1.92, "lower": 0.47, "upper": 0.63}
        | {"open_below": None, "open_above": None, "warnings": []}
        | options
    )


def test_profiles_are_shown_if_there_are_some(tmp_path, page):
    shut = profile_of("alpha", warnings=["the search is lost"])
    ajar = profile_of("beta", upper=np.inf, open_above="up to 9 the negative log-likelihood rises by 1 of the 1.92")
    text = read(FakeFit(), tmp_path, profiles={"alpha": shut, "beta": ajar}).text
    assert (tmp_path / "profiles.png").exists()
    assert "alpha 0.5500 0.4700 to 0.6300 The search is lost." in text
    assert "beta 0.5500 0.4700 to open Open above: up to 9 the negative log-likelihood rises by 1 of the 1.92." in text
    assert "Profile likelihoods" not in page.text


def test_all_profiles_are_computed_if_asked_for(tmp_path):
    result = FakeFit()
    result.profiles = lambda progress: {name: profile_of(name) for name in result.free_names}
    assert "beta 0.5500 0.4700 to 0.6300" in read(result, tmp_path, profiles=True).text


def test_priors_are_listed_and_derived_quantities_explained(tmp_path, page):
    result = FakeFit(priors={"alpha": "Normal(loc: 0.5, scale: 0.1)"}, penalty=0.3)
    result.estimates.append(replace(result.estimates[0], name="ratio", kind="derived", description="alpha/gamma"))
    text = read(result, tmp_path).text
    assert "Priors name estimate prior alpha 0.5470 Normal(loc: 0.5, scale: 0.1)" in text
    assert "the priors have fallen by 0.3000 from" in text
    assert "What is derived follows from the others, with its standard error by the delta method." in text
    assert "Priors" not in page.text and "What is derived" not in page.text


def test_the_least_determined_combinations_are_listed(tmp_path):
    made = [Direction(10.0 ** (4 - i), 10.0 ** (i / 2 - 2), "well", f"quantity {i}", {}) for i in range(8)]
    made.append(Direction(0.0, np.inf, "not", "the combination 0.71 log alpha -0.71 log beta", {}))
    text = read(FakeFit(directions=made), tmp_path).text
    assert "determined 0.71 log alpha -0.71 log beta – 0.00 not quantity 7 32 0.00100 well" in text
    assert "quantity 3" in text and "quantity 2" not in text
    assert "the least determined first; 3 more are determined better." in text


def test_the_page_says_how_the_model_was_solved(page):
    assert "The model was solved by dopri5 in the step loop, rtol 1e-08, atol 1e-06." in page.text


def test_verdict_on_noise():
    verdict = judge(NoisyFit())
    assert verdict.good
    assert re.search(r"look like noise: \d\d of 42 lie within ±1.96", verdict.sentence)


def test_verdict_on_a_fit_that_did_not_converge():
    verdict = judge(NoisyFit(converged=False))
    assert not verdict.good
    assert verdict.sentence == "The fit did not converge, so its estimates are not to be relied on."


def test_verdict_on_waves():
    class Wave(NoisyFit):
        def residuals(self, trajectory=0):
            return super().residuals() + [0, 1.5] * np.sin(np.arange(21) / 2)[:, None]

    verdict = judge(Wave())
    assert verdict.sentence == "The fit converged, but its residuals are not plain noise." and not verdict.good
    (finding,) = verdict.findings
    assert finding.startswith("the residuals of lynx resemble the ones before them (lag-1 autocorrelation 0.")


def test_verdict_does_not_mind_residuals_that_alternate():
    class Zigzag(NoisyFit):
        def residuals(self, trajectory=0):
            return 0.5 * super().residuals() + 0.8 * np.cos(np.pi * np.arange(21))[:, None]

    assert judge(Zigzag()).good


@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_verdict_on_the_wrong_sigma(scale):
    fit = NoisyFit()
    fit.scale = scale
    assert all("times as large as their sigma says" in finding for finding in judge(fit).findings)


def test_verdict_on_an_outlier():
    class Outlier(NoisyFit):
        def residuals(self, trajectory=0):
            residuals = 0.8 * super().residuals()
            residuals[10, 0] = 5.0
            return residuals

    assert "the residuals of hare are not normally distributed (largest: 5.0 sigma)" in judge(Outlier()).findings


@pytest.mark.parametrize("shape", ["normal", "laplace"])
def test_verdict_on_more_data_than_shapiro_and_wilk_allow(shape, recwarn):
    class Many(NoisyFit):
        def residuals(self, trajectory=0):
            return getattr(np.random.default_rng(0), shape)(size=(6000, 2)) / (1.0 if shape == "normal" else 2**0.5)

    verdict = judge(Many())
    assert [finding.partition(" (")[0] for finding in verdict.findings] == (
        [f"the residuals of {name} are not normally distributed" for name in ("hare", "lynx")]
        if shape == "laplace"
        else []
    )
    assert not recwarn


def test_verdict_does_not_judge_a_handful_of_data():
    class Few(NoisyFit):
        def residuals(self, trajectory=0):
            residuals = np.full((21, 2), np.nan)
            residuals[:3] = 9.0
            return residuals

    assert judge(Few()).sentence == "The fit converged, and 6 measurements are too few to judge it by its residuals."


def test_without_jinja2_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"pip install 'torchivp\[fit\]'"):
        write_report(FakeFit(), tmp_path)


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.5471, 4, "0.5471"),
        (33.9, 4, "33.90"),
        (-1.0, 4, "−1.000"),
        (12345.6, 4, "12346"),
        (123.4, 2, "123"),
        (999.99, 3, "1000"),
        (1.5e-7, 2, "1.5e−07"),
        (3e7, 4, "3.000e+07"),
        (0.0, 2, "0.0"),
        (float("nan"), 4, "–"),
        (float("inf"), 4, "–"),
    ],
)
def test_numbers(value, digits, text):
    assert format_number(value, digits) == text
