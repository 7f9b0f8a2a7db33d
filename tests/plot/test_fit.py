import io
import sys
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from fake_fit import FakeFit, dataset, several_trajectories
from torchivp.plot import plot_correlation, plot_fit, plot_phase, plot_residuals


def rendered(figure: Figure) -> Figure:
    """The figure, after it has been drawn once without complaint."""
    figure.savefig(io.BytesIO(), format="png")
    return figure


def visible(figure: Figure) -> list:
    return [axes for axes in figure.axes if axes.get_visible()]


@pytest.mark.parametrize("plot", [plot_fit, plot_residuals, plot_phase, plot_correlation])
def test_pictures_leave_no_global_state(plot):
    sys.modules.pop("matplotlib.pyplot", None)
    settings = matplotlib.rcParams.copy()
    assert isinstance(rendered(plot(FakeFit())), Figure)
    assert "matplotlib.pyplot" not in sys.modules
    assert matplotlib.rcParams == settings


def test_fit_has_a_panel_per_observable_with_its_data_and_curve():
    result = FakeFit()
    panels = rendered(plot_fit(result)).axes
    assert [axes.get_ylabel() for axes in panels] == ["hare", "lynx"]
    assert [axes.get_xlabel() for axes in panels] == ["", "year"]
    assert panels[0].get_title("left") == "hare: population of the prey"
    for column, axes in enumerate(panels):
        curve, dots = axes.lines
        np.testing.assert_array_equal(dots.get_ydata(), result.data.trajectories[0].values[:, column])
        np.testing.assert_allclose(
            curve.get_ydata()[-1], result.predict(np.array([1900.0, 1920.0]))[-1, column], rtol=1e-4
        )


def test_fit_draws_the_curve_band_inside_the_prediction_band():
    axes = rendered(plot_fit(FakeFit())).axes[0]
    prediction, curve = (collection.get_datalim(axes.transData) for collection in axes.collections)
    assert prediction.y0 < curve.y0 < curve.y1 < prediction.y1


def test_fit_draws_the_state_that_a_column_observes():
    (trajectory,) = FakeFit().data.trajectories
    swapped = ("", trajectory.t, trajectory.values[:, ::-1])
    result = FakeFit(data=dataset([swapped], ["lynx", "hare"], ["predator", "prey"], "year"))
    curve = plot_fit(result).axes[0].lines[0].get_ydata()
    assert curve.max() < 60  # lynx, of which there are fewer than hare


def test_many_trajectories_of_two_observables_stand_two_in_a_row():
    t, values = FakeFit().data.trajectories[0].t, FakeFit().data.trajectories[0].values
    named = [(f"island {i}", t, (1 + i) * values) for i in range(6)]
    result = FakeFit(data=dataset(named, ["hare", "lynx"], ["prey", "predator"], "year"), starts=[[33.9, 5.93]] * 6)
    panels = visible(rendered(plot_fit(result)))
    assert [axes.get_title("left") for axes in panels] == [f"island {i // 2}" for i in range(12)]
    assert [axes.get_ylabel() for axes in panels] == ["hare", "lynx"] * 6
    assert len({axes.get_position().y0 for axes in panels}) == 3, "four in each of three rows"
    for k in (0, 1):
        assert len({axes.get_ylim() for axes in panels[k::2]}) == 1, "one scale for each observable"


def test_limits_are_triangles_that_the_legend_explains():
    result = FakeFit()
    censored = np.zeros((21, 2), dtype=np.int8)
    censored[:2, 0] = -1
    result.data.trajectories[0] = replace(result.data.trajectories[0], censored=censored)
    figure = rendered(plot_fit(result))
    (triangles,) = (line for line in figure.axes[0].lines if line.get_marker() == "v")
    np.testing.assert_array_equal(triangles.get_ydata(), result.data.trajectories[0].values[:2, 0])
    assert [text.get_text() for text in figure.legends[0].get_texts()][-1] == "value below this"


def test_trajectories_are_small_multiples_on_the_same_scale():
    figure = rendered(plot_fit(several_trajectories(5)))
    panels = visible(figure)
    assert [axes.get_title("left") for axes in panels] == [f"patient {number}" for number in range(1, 6)]
    assert len({axes.get_ylim() for axes in panels}) == 1
    assert [axes.get_xlabel() for axes in panels] == ["", "", "hours", "hours", "hours"]
    assert panels[0].get_ylabel() == "concentration (mg)"


def test_more_trajectories_than_anyone_looks_at_are_left_out_and_said_to_be():
    figure = plot_fit(several_trajectories(30))
    assert len(visible(figure)) == 24
    assert figure.get_supxlabel() == "the first 24 of 30 trajectories"


def test_lognormal_data_over_orders_of_magnitude_have_a_log_axis():
    result = several_trajectories(1)
    assert plot_fit(result).axes[0].get_yscale() == "linear"
    result.data.trajectories[0].values[0] = 500.0
    assert rendered(plot_fit(result)).axes[0].get_yscale() == "log"


def test_a_monstrous_band_does_not_flatten_the_data():
    class Wide(FakeFit):
        def prediction_band(self, t, trajectory=0):
            lower, upper = super().prediction_band(t, trajectory)
            return lower, upper * 1e6

    _, high = plot_fit(Wide()).axes[0].get_ylim()
    assert high < 200


@pytest.mark.parametrize("edge", [np.nan, np.inf])
@pytest.mark.parametrize("peak", [77.4, 5000.0])
def test_bands_that_are_not_known_do_not_hide_the_data(edge, peak):
    class Unknown(FakeFit):
        def band(self, t, trajectory=0):
            return np.full((len(t), 2), -edge), np.full((len(t), 2), edge)

        prediction_band = band

    result = Unknown()
    result.data.trajectories[0].values[3, 0] = peak  # 5000 makes the axis logarithmic
    axes = rendered(plot_fit(result)).axes[0]
    low, high = axes.get_ylim()
    assert low < 7.6
    assert peak < high < 1e7


def test_residuals_have_two_panels_per_observable():
    figure = rendered(plot_residuals(FakeFit()))
    over_time, quantiles = figure.axes[:2]
    assert over_time.get_title("left") == "hare"
    np.testing.assert_allclose(over_time.lines[-1].get_ydata(), FakeFit().residuals()[:, 0])
    np.testing.assert_allclose(quantiles.lines[-1].get_ydata(), np.sort(FakeFit().residuals()[:, 0]))


def test_residuals_of_all_trajectories_share_a_panel_without_the_missing_ones():
    result = several_trajectories(3)
    over_time, quantiles = rendered(plot_residuals(result)).axes
    assert len(over_time.lines) == 3 + 2 * 3
    assert len(quantiles.lines[-1].get_ydata()) == 3 * 8


def test_phase_plane_names_the_states_after_what_was_observed():
    axes = rendered(plot_phase(FakeFit())).axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("hare", "lynx")
    assert len(axes.collections) == 1  # the arrows


def test_phase_plane_without_data_on_both_states():
    (trajectory,) = FakeFit().data.trajectories
    series = ("", trajectory.t, trajectory.values[:, :1])
    axes = rendered(plot_phase(FakeFit(data=dataset([series], ["hare"], ["prey"], "year")))).axes[0]
    assert axes.get_ylabel() == "predator"


def test_phase_plane_needs_two_states():
    with pytest.raises(ValueError, match="at least two states, and the model has one: amount"):
        plot_phase(several_trajectories(1))


def test_correlation_writes_each_pair_once():
    result = FakeFit()
    axes = rendered(plot_correlation(result)).axes[0]
    assert len(axes.texts) == len(result.free_names) * (len(result.free_names) - 1) // 2
    assert axes.texts[0].get_text().replace("−", "-") == f"{result.correlation[1, 0]:.2f}"


def test_without_matplotlib_the_import_says_what_to_install(monkeypatch):
    for module in [name for name in sys.modules if name.startswith("torchivp.plot")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'torchivp\[fit\]'"):
        import torchivp.plot  # noqa: F401
