import io

import numpy as np
import pytest

from torchivp.fitting import Profile
from torchivp.plot import plot_profiles


def parabola(name, scale="log", low=0.4, high=0.7, **options) -> Profile:
    values = np.geomspace(low, high, 9)
    rise = 0.5 * (np.log(values / 0.5) / 0.1) ** 2
    return Profile(
        **{"name": name, "level": 0.95, "scale": scale, "estimate": 0.5, "error": 0.1, "values": values}
        | {"nll": 7.0 + rise, "thetas": np.zeros((9, 1)), "nll_min": 7.0, "fall": 1.92, "lower": 0.41, "upper": 0.61}
        | {"open_below": None, "open_above": None, "warnings": []}
        | options
    )


def test_each_profile_has_a_panel_with_its_points_and_its_parabola():
    profiles = {name: parabola(name) for name in ("alpha", "beta", "gamma", "delta")}
    figure = plot_profiles(profiles)
    figure.savefig(io.BytesIO(), format="png")
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title("left") for axes in panels] == list(profiles)
    end, bound, curve, points, optimum = panels[0].lines
    assert set(end.get_ydata()) == {1.92}
    np.testing.assert_allclose(points.get_ydata(), profiles["alpha"].nll - 7.0)
    for line in (bound, curve):  # a parabola is drawn as one
        x, y = line.get_xdata(), line.get_ydata()
        np.testing.assert_allclose(y, 0.5 * (np.log(x / 0.5) / 0.1) ** 2, atol=1e-3)
    assert (optimum.get_xdata()[0], optimum.get_ydata()[0]) == (0.5, 0.0)


def test_a_wide_profile_on_the_log_scale_has_a_logarithmic_axis():
    wide = parabola("alpha", low=1e-4, high=1e4, upper=np.inf, open_above="flat", error=np.inf)
    narrow = parabola("beta", scale="linear")
    figure = plot_profiles({"alpha": wide, "beta": narrow})
    figure.savefig(io.BytesIO(), format="png")
    assert [axes.get_xscale() for axes in figure.axes] == ["log", "linear"]


def test_a_profile_below_the_optimum_is_drawn_as_it_is():
    odd = parabola("alpha")
    odd.nll[0] = 6.0
    figure = plot_profiles({"alpha": odd})
    assert figure.axes[0].get_ylim()[0] < -1


def test_no_profiles_are_refused():
    with pytest.raises(ValueError, match=r"no profiles to draw: plot_profiles\(result.profiles\(\)\)"):
        plot_profiles({})
