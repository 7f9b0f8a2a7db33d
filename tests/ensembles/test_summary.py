"""Summaries of ensembles, against NumPy's, and their picture."""

import io
import warnings

import numpy as np
import pytest
import torch

import ensemble_problems as problems
from torchivp import ensemble, solve_ivp
from torchivp.ensembles import EnsembleSummary, moments, summarise
from torchivp.plot import plot_ensemble

RATES = torch.linspace(0.5, 2.0, 11, dtype=torch.float64)[:, None]


def with_gaps():
    values = torch.randn(40, 5, 2, dtype=torch.float64) + torch.tensor([1e6, 0.0], dtype=torch.float64)
    values[3, 2:], values[17, 4:], values[:, 3, 1], values[1:, 3, 0] = torch.nan, torch.nan, torch.nan, torch.nan
    return values


def test_a_summary_is_that_of_numpy():
    values = with_gaps()
    found, array = summarise(values, quantiles=(0.1, 0.5, 1.0), t=range(5)), values.numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        np.testing.assert_allclose(found.mean, np.nanmean(array, 0), rtol=1e-14)
        np.testing.assert_allclose(found.variance, np.nanvar(array, 0, ddof=1), rtol=1e-9)
        np.testing.assert_allclose(found.std, np.nanstd(array, 0, ddof=1), rtol=1e-9)
        for share in (0.1, 0.5, 1.0):
            np.testing.assert_allclose(found.quantiles[share], np.nanquantile(array, share, axis=0), rtol=1e-14)
    assert found.count.tolist() == (~np.isnan(array)).sum(0).tolist() and found.rows == 40 and found.failed == 0
    torch.testing.assert_close(found.standard_error, found.std / found.count.sqrt(), equal_nan=True)
    assert found.t.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("block", [1, 7, 40])
def test_moments_of_blocks_are_those_of_all(block):
    """Far from zero, where sums of squares would lose all digits."""
    values = with_gaps()
    total = None
    for part in values.split(block):
        total = moments(total, {"x": part, "n": part[:, 0, 0] > 0})
    whole = summarise({"x": values, "n": values[:, 0, 0] > 0}, quantiles=())
    for name in ("mean", "variance", "count"):
        torch.testing.assert_close(getattr(total, name), getattr(whole, name), rtol=1e-9, atol=1e-12, equal_nan=True)
    assert total.rows == 40 and total.t is None and not total.quantiles


def test_the_mean_of_an_ensemble_is_that_of_its_distribution():
    """Geometric Brownian motion: E y = exp(mu t), Var y = exp(2 mu t) (exp(sigma^2 t) - 1), but for the steps."""
    found = ensemble(problems.paths, 4000, reduce=moments)
    mean, variance = np.exp(0.1), np.exp(0.2) * (np.exp(0.09) - 1)
    assert abs(found.mean[-1, 0] - mean) < 5 * found.standard_error[-1, 0]
    assert abs(found.variance[-1, 0] - variance) < 0.1 * variance
    assert found.variance[0, 0] == 0.0 and found.rows == 4000


def test_rows_that_failed_are_left_out_and_counted():
    def solve(rows):
        explode = lambda t, y, speed: speed * y**2
        speed = rows.inputs
        return solve_ivp(
            explode, (0.0, 1.0), torch.ones_like(speed), t_eval=problems.T, args=(speed,), batch_dims=1, throw=False
        )

    speeds = torch.tensor([[0.1], [0.2], [3.0], [0.3], [5.0]], dtype=torch.float64)
    found = ensemble(solve, speeds, block=2)
    summary, streamed = summarise(found), ensemble(solve, speeds, block=2, reduce=moments)
    assert summary.failed == streamed.failed == 2 and summary.rows == streamed.rows == 5
    exact = 1 / (1 - speeds[[0, 1, 3]] * torch.tensor(problems.T))
    torch.testing.assert_close(summary.mean[:, 0], exact.mean(0), rtol=1e-5, atol=0)
    torch.testing.assert_close(streamed.variance[:, 0], exact.var(0), rtol=1e-3, atol=1e-12)
    title = plot_ensemble(summary, title="Growth").axes[0].get_title("left")
    assert title == "Growth; 2 of 5 rows failed, and are left out"
    none = summarise(ensemble(solve, speeds[[2, 4]]))
    assert none.failed == 2 and none.t is None and none.mean.isnan().all() and none.quantiles[0.5].isnan().all()


def test_rows_that_events_have_ended_count_until_then():
    heights = torch.tensor([0.1, 3.0, 5.0], dtype=torch.float64)
    for block in (1, 3):
        found = ensemble(problems.falling, heights, block=block, reduce=moments)
        assert found.count[:, 0].tolist() == [3, 2, 2, 2, 2] and found.failed == 0
        torch.testing.assert_close(found.mean[1:, 0], 4.0 - 0.5 * torch.tensor([0.5, 1.0, 1.5, 2.0]).double() ** 2)
        assert found.t.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert summarise(ensemble(problems.falling, heights)).t.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0]


def test_what_cannot_be_summarised_is_refused():
    own = solve_ivp(lambda t, y: -y, (0.0, torch.tensor([1.0, 2.0])), torch.ones(2, 1), batch_dims=1)
    with pytest.raises(ValueError, match=r"a summary needs rows with the same times, .* give t_eval, the same for all"):
        summarise(own)
    ends = lambda t: ensemble(
        lambda rows: solve_ivp(lambda t, y: -y, (0.0, t), torch.ones(2, 1), t_eval=[0.0, t], batch_dims=1), 2
    )
    with pytest.raises(ValueError, match="a summary needs rows with the same times"):
        moments(moments(None, ends(1.0)), ends(2.0))
    with pytest.raises(ValueError, match=r"quantiles must be shares between 0 and 1, such as 0\.975, got 97\.5"):
        summarise(torch.ones(3), quantiles=[97.5])
    with pytest.raises(TypeError, match=r"of real numbers: take torch\.view_as_real"):
        summarise(torch.ones(3, dtype=torch.complex64))
    with pytest.raises(TypeError, match="a summary is one of tensors with an entry for each row, got float"):
        summarise([1.0])
    with pytest.raises(ValueError, match="t is that of the BatchSolution: leave it out"):
        summarise(ends(1.0), t=[0.0, 1.0])
    with pytest.raises(ValueError, match=r"the batch has the shape \(2, 2\): solve with batch_dims=1"):
        summarise(solve_ivp(lambda t, y: -y, (0.0, 1.0), torch.ones(2, 2, 1), batch_dims=2))
    with pytest.raises(ValueError, match=r"blocks of rows of the same shape, got \(2,\) and \(3,\)"):
        moments(moments(None, torch.ones(3, 2)), torch.ones(3, 3))


def test_the_picture_has_a_panel_for_each_state_with_mean_and_bands():
    summary = summarise(ensemble(problems.falling, torch.tensor([3.0, 4.0, 5.0, 9.0]).double()))
    figure = plot_ensemble(summary, ["height", "speed"], time_name="s")
    figure.savefig(io.BytesIO())
    height, speed = figure.axes
    assert (height.get_ylabel(), speed.get_ylabel(), speed.get_xlabel()) == ("height", "speed", "s")
    assert [line.get_label() for line in height.lines] == ["median", "mean"]
    assert [band.get_label() for band in height.collections] == ["2.5 % to 97.5 %", "25 % to 75 %"]
    np.testing.assert_array_equal(height.lines[1].get_ydata(), summary.mean[:, 0])
    np.testing.assert_array_equal(height.lines[0].get_ydata(), summary.quantiles[0.5][:, 0])
    band = height.collections[0].get_paths()[0].vertices
    assert {summary.quantiles[0.025][2, 0].item(), summary.quantiles[0.975][2, 0].item()} <= set(band[:, 1])


def test_a_picture_of_moments_and_of_tensors():
    found = ensemble(problems.paths, 50, reduce=moments)
    (axes,) = plot_ensemble(found, ["price"], t=problems.T).axes
    (band,) = axes.collections
    assert band.get_label() == "mean ± standard deviation" and [line.get_label() for line in axes.lines] == ["mean"]
    with pytest.raises(ValueError, match="a summary of tensors has no times: give t"):
        plot_ensemble(found)
    with pytest.raises(ValueError, match=r"there are 2 times, and the summary has the shape \(3, 1\)"):
        plot_ensemble(found, t=[0.0, 1.0])
    with pytest.raises(ValueError, match="1 states need 1 names, got 2: a, b"):
        plot_ensemble(found, ["a", "b"], t=problems.T)
    with pytest.raises(TypeError, match="whose state is one tensor can be drawn"):
        plot_ensemble(EnsembleSummary({}, {}, {}))
