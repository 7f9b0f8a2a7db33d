"""Interactive pictures: they show the numbers of the still ones, and names as they are."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import torchivp.plot.interactive
from fake_fit import FakeFit, dataset, several_trajectories
from torchivp.fitting.searching.multistart import Attempt
from torchivp.plot import plot_fit, plot_phase, plot_residuals, plot_starts
from torchivp.plot.interactive import interactive_fit, interactive_phase, interactive_residuals, interactive_starts


def traces(figure, **wanted):
    return [trace for trace in figure.data if all(getattr(trace, key) == value for key, value in wanted.items())]


def test_fit_shows_what_the_still_picture_shows():
    result = FakeFit()
    figure, still = interactive_fit(result), plot_fit(result)
    for k, axes in enumerate(still.axes):
        curve, dots = axes.lines
        drawn = traces(figure, name="fitted curve")[k]
        np.testing.assert_array_equal(drawn.x, curve.get_xdata())
        np.testing.assert_allclose(drawn.y, curve.get_ydata(), rtol=1e-6)
        np.testing.assert_array_equal(traces(figure, name="data")[k].y, dots.get_ydata())
        np.testing.assert_allclose(drawn.customdata[:, :2].T, np.array(result.observable_band(drawn.x))[..., k], 1e-6)
        np.testing.assert_allclose(drawn.customdata[:, 2:].T, np.array(result.prediction_band(drawn.x))[..., k], 1e-6)
        np.testing.assert_allclose(figure.layout[f"yaxis{k + 1 if k else ''}"].range, axes.get_ylim())
    assert [trace.name for trace in traces(figure, showlegend=True)] == [
        "95 % prediction band", "95 % band of the curve", "fitted curve", "data",
    ]  # fmt: skip


def test_each_of_several_trajectories_is_switched_by_its_name_and_their_bands_are_hidden():
    figure = interactive_fit(several_trajectories(4))
    groups = [trace.legendgroup for trace in traces(figure, showlegend=True)]
    assert groups == [f"patient {number}" for number in range(1, 5)]
    assert {trace.legendgroup for trace in figure.data} == set(groups)
    (button,) = figure.layout.updatemenus[0].buttons
    assert {figure.data[number].fill for number in button.args[1]} == {"none"} and len(button.args[1]) == 8
    assert button.args[0] == {"fill": "tonexty"} and button.args2[0] == {"fill": "none"}
    assert not interactive_fit(several_trajectories(2)).layout.updatemenus


def test_trajectories_beyond_the_last_that_is_shown_are_said_to_be_left_out(monkeypatch):
    monkeypatch.setattr(torchivp.plot.interactive, "MAX_TRAJECTORIES", 2)
    figure = interactive_fit(several_trajectories(3))
    assert len(traces(figure, showlegend=True)) == 2
    assert figure.layout.annotations[-1].text == "the first 2 of 3 trajectories"


def test_a_band_that_is_not_known_is_neither_drawn_nor_named():
    class Unknown(FakeFit):
        def prediction_band(self, t, trajectory=0):
            return np.full((len(t), 2), np.nan), np.full((len(t), 2), np.nan)

    figure, still = interactive_fit(Unknown()), plot_fit(Unknown())
    assert [trace.name for trace in traces(figure, showlegend=True)] == [
        "95 % band of the curve",
        "fitted curve",
        "data",
    ]
    assert traces(figure, name="fitted curve")[0].customdata.shape == (400, 2)
    assert "a new value" not in traces(figure, name="fitted curve")[0].hovertemplate
    assert [text.get_text() for text in still.legends[0].get_texts()] == [
        "data",
        "fitted curve",
        "95 % band of the curve",
    ]


def test_infinite_bands_are_drawn_out_of_sight():
    class Open(FakeFit):
        def prediction_band(self, t, trajectory=0):
            return np.full((len(t), 2), -np.inf), np.full((len(t), 2), np.inf)

    figure = interactive_fit(Open())
    low, high = figure.layout.yaxis.range
    upper = traces(figure, name="95 % prediction band")[0]
    assert np.isfinite(upper.y).all() and (upper.y > high).all()
    assert high < 200 and low > -100


def test_a_trajectory_of_one_time_has_a_mark_with_bars():
    point = ("", np.array([2.0]), np.array([[3.0]]))
    result = FakeFit(**vars_of(several_trajectories(1)), data=dataset([point], ["concentration"], ["amount"], "hours"))
    figure = interactive_fit(result)
    (mark,) = traces(figure, name="fitted curve")
    lower, upper = (float(edge[0, 0]) for edge in result.prediction_band(np.array([2.0])))
    assert mark.mode == "markers" and len(mark.x) == 1
    value = result.observe(np.array([2.0]))[0, 0]
    assert (value - mark.error_y.arrayminus[0], value + mark.error_y.array[0]) == pytest.approx((lower, upper))
    (line, *_) = plot_fit(result).axes[0].lines
    assert line.get_marker() == "_" and len(line.get_xdata()) == 1


def vars_of(result):
    return {"model": result.model, "starts": result.starts}


def test_limits_are_triangles():
    result = FakeFit()
    censored = np.zeros((21, 2), dtype=np.int8)
    censored[:2, 0] = -1
    result.data.trajectories[0] = replace(result.data.trajectories[0], censored=censored)
    (limits,) = traces(interactive_fit(result), name="value below this")
    assert limits.marker.symbol == "triangle-down" and "known to lie below" in limits.hovertemplate
    np.testing.assert_array_equal(limits.y, result.data.trajectories[0].values[:2, 0])


def test_a_logarithmic_axis_has_logarithmic_limits():
    result = several_trajectories(1)
    result.data.trajectories[0].values[0] = 500.0
    axis, still = interactive_fit(result).layout.yaxis, plot_fit(result).axes[0]
    assert axis.type == "log" and still.get_yscale() == "log"
    np.testing.assert_allclose(axis.range, np.log10(still.get_ylim()))


def test_values_that_are_not_positive_have_no_logarithmic_axis():
    result = several_trajectories(1)
    result.data.trajectories[0].values[:2, 0] = 500.0, 0.0
    assert interactive_fit(result).layout.yaxis.type != "log"
    assert plot_fit(result).axes[0].get_yscale() == "linear"


def test_names_are_shown_as_they_are():
    name = "<b>a</b> & %{y} $\\x_{$"
    (trajectory,) = FakeFit().data.trajectories
    data = dataset([("", trajectory.t, trajectory.values)], [name, "lynx"], ["prey", "predator"], "<i>year</i>")
    figure = interactive_fit(FakeFit(data=data))
    shown = "&lt;b&gt;a&lt;/b&gt; &amp; %&#123;y} $\\x_{$"
    assert figure.layout.yaxis.title.text == shown
    assert figure.layout.xaxis2.title.text == "&lt;i&gt;year&lt;/i&gt;"
    assert f"<br>{shown} %{{y:" in traces(figure, name="fitted curve")[0].hovertemplate
    still = plot_fit(FakeFit(data=data))
    still.canvas.draw()
    assert still.axes[0].get_ylabel() == name.replace("$", r"\$")


def test_long_names_are_shortened_beside_the_axes():
    (trajectory,) = FakeFit().data.trajectories
    long = "number of pelts of hares that were collected"
    data = dataset([("", trajectory.t, trajectory.values)], [long, "lynx"], ["prey", "predator"], "year")
    for label in (
        interactive_fit(FakeFit(data=data)).layout.yaxis.title.text,
        plot_fit(FakeFit(data=data)).axes[0].get_ylabel(),
    ):
        assert label == "number of p…re collected"


def test_residuals_are_those_of_the_still_picture():
    result = several_trajectories(3)
    over_time, quantiles = interactive_residuals(result)
    _, still = plot_residuals(result).axes
    drawn = np.concatenate([trace.y for trace in over_time.data])
    np.testing.assert_array_equal(np.sort(drawn), still.lines[-1].get_ydata())
    dots = quantiles.data[-1]
    np.testing.assert_array_equal([dots.x, dots.y], [still.lines[-1].get_xdata(), still.lines[-1].get_ydata()])
    largest = int(np.argmax(np.concatenate([np.nan_to_num(result.residuals(i)[:, 0], nan=-9) for i in range(3)])))
    assert dots.text[-1] == f"<b>patient {largest // 9 + 1}</b><br>hours {largest % 9}"
    levels = {shape.y0: shape.line.dash for shape in over_time.layout.shapes}
    assert levels == {0.0: "solid", -1.96: "dash", 1.96: "dash"}


def test_phase_plane_has_the_curve_the_data_and_arrows_that_follow_the_field():
    result = FakeFit()
    figure, still = interactive_phase(result), plot_phase(result).axes[0]
    (curve,) = traces(figure, name="fitted curve")
    np.testing.assert_array_equal(
        [curve.x, curve.y], next(line for line in still.lines if len(line.get_xdata()) == 400).get_data()
    )
    (arrows,) = traces(figure, name="direction field")
    tail, tip = (np.stack([arrows.x[i::7], arrows.y[i::7]], -1) for i in (0, 1))
    prey, predator = ((tail + tip) / 2).T
    slope = np.stack([0.547 * prey - 0.0281 * prey * predator, 0.0241 * prey * predator - 0.801 * predator], -1)
    cosine = np.sum((tip - tail) * slope, -1) / np.linalg.norm(tip - tail, axis=-1) / np.linalg.norm(slope, axis=-1)
    np.testing.assert_allclose(cosine, 1.0, atol=1e-9)


def with_attempts(*ends):
    result = FakeFit(attempts=[Attempt(np.zeros(6), np.full(6, 2.0), nll, converged) for nll, converged in ends])
    result.misfit = SimpleNamespace(
        quantities=SimpleNamespace(single_values=lambda theta: dict(zip(result.free_names, 10 * theta, strict=True)))
    )
    return result


def test_starts_are_linear_to_one_and_logarithmic_above():
    result = with_attempts((3.0, True), (3.5, True), (103.0, False), (np.inf, False))
    figure = interactive_starts(result)
    optimum, unsettled = figure.data[1:]
    np.testing.assert_allclose([*optimum.y, *unsettled.y], [0.0, 0.5, 3.0])
    np.testing.assert_allclose([*optimum.customdata, *unsettled.customdata], [0.0, 0.5, 100.0])
    ticks = dict(zip(figure.layout.yaxis.ticktext, figure.layout.yaxis.tickvals, strict=True))
    assert ticks == {"0": 0.0, "0.5": 0.5, "1": 1.0, "10": 2.0, "100": 3.0}
    assert optimum.text[0].startswith("alpha 20<br>beta 20<br>")
    assert figure.layout.annotations[0].text == plot_starts(result).axes[0].get_title("left") == "1 of 4 starts failed"


def test_values_too_small_for_single_precision_are_kept():
    class Tiny(FakeFit):
        def observe(self, t, trajectory=0):
            return 1e-60 * super().observe(t, trajectory)

    (curve, _) = traces(interactive_fit(Tiny()), name="fitted curve")
    np.testing.assert_allclose(curve.y, Tiny().observe(curve.x)[:, 0])


def test_without_plotly_the_import_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "torchivp.plot.interactive")
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(ImportError, match=r"plotly, which is missing: pip install 'torchivp\[fit\]'"):
        import torchivp.plot.interactive  # noqa: F401


def test_figures_are_small():
    assert len(json.dumps(json.loads(interactive_fit(FakeFit()).to_json()))) < 100_000
