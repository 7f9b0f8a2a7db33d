import io

import numpy as np
import pytest
import torch

from torchivp import solve_ivp
from torchivp.plot import plot_phase_plane, plot_solution


def rotate(t, y):
    return torch.stack([-y[..., 1], y[..., 0]], -1)


def rotation(*, dense_output=False, shape=(2,)):
    start = 1.0 + torch.rand(shape, dtype=torch.float64)
    return solve_ivp(rotate, (0.0, 6.0), start, dense_output=dense_output)


def test_solution_draws_a_named_curve_per_state():
    solution = rotation()
    figure = plot_solution(solution, ["east", "north"], time_name="hours", title="Rotation")
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines] == ["east", "north"]
    assert axes.get_xlabel() == "hours"
    assert axes.get_title("left") == "Rotation"
    np.testing.assert_array_equal(axes.lines[1].get_ydata(), solution.y[:, 1])


def test_dense_output_gives_smooth_curves():
    solution = rotation(dense_output=True)
    curve = plot_solution(solution).axes[0].lines[0].get_ydata()
    assert len(curve) == 1000
    assert abs(np.diff(curve)).max() < 0.02


def test_states_of_any_shape_and_number_can_be_told_apart():
    lines = plot_solution(rotation(shape=(5, 2))).axes[0].lines
    assert [line.get_label() for line in lines] == [f"y{index}" for index in range(10)]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 10


def test_a_solution_that_requires_grad_is_drawn():
    start = torch.ones(2, dtype=torch.float64, requires_grad=True)
    plot_solution(solve_ivp(rotate, (0.0, 1.0), start, dense_output=True))


def test_names_must_be_as_many_as_states():
    with pytest.raises(ValueError, match="2 states need 2 names, got 1: east"):
        plot_solution(rotation(), ["east"])


@pytest.mark.parametrize("start", [(torch.ones(1), torch.ones(1)), torch.ones(2, dtype=torch.complex128)])
def test_states_that_are_not_one_real_tensor_are_refused(start):
    solution = solve_ivp(lambda t, y: y, (0.0, 1.0), start)
    with pytest.raises(TypeError, match="one real tensor"):
        plot_solution(solution)


def test_phase_plane_arrows_follow_the_field():
    figure = plot_phase_plane(rotate, rotation(dense_output=True), names=["east", "north"])
    figure.savefig(io.BytesIO())
    (axes,) = figure.axes
    (arrows,) = axes.collections
    x, y = arrows.get_offsets().T
    direction = np.arctan2(arrows.V, arrows.U)
    width, height = np.ptp(axes.get_xlim()), np.ptp(axes.get_ylim())
    np.testing.assert_allclose(direction, np.arctan2(x / height, -y / width), atol=1e-9)
    np.testing.assert_allclose(np.hypot(arrows.U, arrows.V), 1)


def test_phase_plane_draws_every_trajectory_within_its_limits():
    start = torch.tensor([[1.0, 0.0], [3.0, 0.0]], dtype=torch.float64)
    axes = plot_phase_plane(rotate, solve_ivp(rotate, (0.0, 7.0), start, dense_output=True)).axes[0]
    assert axes.get_xlim()[0] < -3
    assert axes.get_xlim()[1] > 3
    curves = [line for line in axes.lines if len(line.get_xdata()) > 1]
    assert len(curves) == 2


def test_phase_plane_of_chosen_states():
    def spiral(t, y):
        return torch.stack([-y[1], y[0], torch.ones(()).double()])

    solution = solve_ivp(spiral, (0.0, 6.0), torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))
    axes = plot_phase_plane(spiral, solution, states=(2, 0)).axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("y2", "y0")


def test_phase_plane_of_a_solution_that_stays_put():
    solution = solve_ivp(lambda t, y: 0 * y, (0.0, 1.0), torch.ones(2, dtype=torch.float64), t_eval=[0.0, 1.0])
    plot_phase_plane(lambda t, y: 0 * y, solution).savefig(io.BytesIO())


def test_phase_plane_needs_two_states():
    solution = solve_ivp(lambda t, y: -y, (0.0, 1.0), torch.ones(1))
    with pytest.raises(ValueError, match="at least two states"):
        plot_phase_plane(lambda t, y: -y, solution)


@pytest.mark.parametrize("dense_output", [False, True])
def test_every_row_of_a_batch_is_drawn_as_far_as_it_goes(dense_output):
    start, ends = 1.0 + torch.rand(3, 2, dtype=torch.float64), torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
    solution = solve_ivp(rotate, (0.0, ends), start, batch_dims=1, dense_output=dense_output)
    (axes,) = plot_solution(solution, ["east", "north"]).axes
    lines = axes.lines
    assert [line.get_label() for line in lines[:2]] == ["east", "north"] and len(lines) == 6
    assert [line.get_xdata()[-1] for line in lines] == [1.0, 1.0, 2.0, 2.0, 6.0, 6.0]
    assert [line.get_color() for line in lines[2:4]] == [line.get_color() for line in lines[:2]]
    np.testing.assert_allclose([line.get_ydata()[-1] for line in lines], solution.final.flatten(), rtol=1e-12)
    (axes,) = plot_phase_plane(rotate, solution).axes
    assert sum(len(line.get_xdata()) > 1 for line in axes.lines) == 3


def test_a_batch_without_rows_is_refused():
    with pytest.raises(ValueError, match="the batch has no rows"):
        plot_solution(solve_ivp(rotate, (0.0, 1.0), torch.ones(0, 2), batch_dims=1))
