"""`NeuralODE` returns the solution, is a module like others, counts what it does and integrates its regularisers."""

import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn

from torchivp import Backsolve, SolveError, odeint, solve_ivp
from torchivp.models import LotkaVolterra
from torchivp.nn import JacobianNorm, KineticEnergy, NeuralODE, TimeLinear, TimeSequential, penalty

GRADIENTS = ["direct", "checkpointed", "backsolve", "forward"]
WAYS = [(gradient, rows) for gradient in GRADIENTS[:3] for rows in (0, 1)]
WAYS += [pytest.param("forward", 0), pytest.param("forward", 1, marks=pytest.mark.sweep)]  # seconds each


class Field(nn.Module):
    """A field that counts its calls, in time or without."""

    def __init__(self, size=2, hidden=8):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(size, hidden), nn.Tanh(), nn.Linear(hidden, size))
        self.calls = 0

    def forward(self, y):
        self.calls += 1
        return self.net(y)


class TimedField(Field):
    def forward(self, t, y):
        self.calls += 1
        return self.net(y) * torch.cos(t)


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)


def parameters_gradient(layer, loss):
    found = torch.autograd.grad(loss, list(layer.parameters()))
    return torch.cat([part.flatten() for part in found])


# The solution


def test_the_end_and_the_trajectory_are_those_of_odeint():
    field, y0, t = TimedField(), torch.randn(5, 2), torch.linspace(0, 2, 7)
    expected = odeint(field, y0, t, rtol=1e-8, atol=1e-10)
    tolerances = {"rtol": 1e-8, "atol": 1e-10}
    assert torch.allclose(NeuralODE(field, t, output="trajectory", **tolerances)(y0), expected, rtol=1e-6)
    assert torch.allclose(NeuralODE(field, t, **tolerances)(y0), expected[-1], rtol=1e-6)
    assert torch.allclose(NeuralODE(field, 2.0, **tolerances)(y0), expected[-1], rtol=1e-6)
    assert torch.allclose(NeuralODE(field, **tolerances)(y0, t), expected[-1], rtol=1e-6)


def test_a_field_without_time_is_called_with_the_state_alone():
    field = Field()
    y0 = torch.randn(5, 2)
    expected = odeint(lambda t, y: field.net(y), y0, [0.0, 1.0])[-1]
    assert torch.allclose(NeuralODE(field)(y0), expected, rtol=1e-5)
    assert torch.allclose(NeuralODE(lambda y: field.net(y))(y0), expected, rtol=1e-5)
    assert torch.allclose(NeuralODE(field.net)(y0), expected, rtol=1e-5)
    assert torch.allclose(NeuralODE(lambda *a: field.net(a[-1]), takes_time=True)(y0), expected, rtol=1e-5)


def test_options_reach_the_solver():
    y0 = torch.randn(3, 2)
    layer = NeuralODE(TimedField(), method="rk4", step_size=0.25)
    expected = solve_ivp(layer.field, (0, 1), y0, method="rk4", step_size=0.25).y[-1]
    assert torch.equal(layer(y0), expected)
    with pytest.raises(SolveError, match="max_steps"):
        NeuralODE(TimedField(), rtol=1e-12, atol=1e-12, max_steps=2)(y0)


def test_times_for_each_sample():
    field, y0 = TimedField(), torch.randn(3, 2)
    series = [[0.0, 0.5, 2.0], [1.0, 1.25], [0.0, -1.0]]
    layer = NeuralODE(field, output="trajectory", rtol=1e-8, atol=1e-10)
    ragged = layer(y0, series)
    padded = torch.tensor([[0.0, 0.5, 2.0], [1.0, 1.25, math.nan], [0.0, -1.0, math.nan]])
    assert torch.equal(ragged[0], layer(y0, padded)[0])
    ends = NeuralODE(field, rtol=1e-8, atol=1e-10)(y0, padded)
    assert ragged.shape == (3, 3, 2) and ends.shape == (3, 2)
    for row, times in enumerate(series):
        alone = odeint(field, y0[row], times, rtol=1e-9, atol=1e-11)
        assert torch.allclose(ragged[row, : len(times)], alone, rtol=1e-6, atol=1e-8)
        assert torch.allclose(ends[row], alone[-1], rtol=1e-6, atol=1e-8)
        assert ragged[row, len(times) :].isnan().all()


def test_samples_that_step_on_their_own_do_not_depend_on_each_other():
    field = LotkaVolterra().double()
    y0 = torch.tensor([[1.0, 1.0], [30.0, 4.0]])
    layer = NeuralODE(field, (0, 0.5, 1), output="trajectory", batch_dims=1)
    assert layer(y0).shape == (2, 3, 2)
    assert torch.allclose(layer(y0)[:1], layer(y0[:1]), rtol=1e-13)
    assert not torch.allclose(
        NeuralODE(field, batch_dims=0)(y0)[:1], NeuralODE(field, batch_dims=0)(y0[:1]), rtol=1e-13
    )


def test_shifted_times_share_their_steps():
    field, y0, t = TimedField(), torch.randn(3, 2), torch.linspace(0, 1, 4)
    shift = torch.tensor([0.0, 0.7, -2.0])
    layer = NeuralODE(field, output="trajectory", rtol=1e-9, atol=1e-11)
    shifted = layer(y0, t, shift=shift)
    assert shifted.shape == (4, 3, 2)
    assert torch.allclose(shifted.transpose(0, 1), layer(y0, t + shift[:, None]), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("end", [[0.0, 0.7], 0.7])
def test_a_learned_end_has_the_slope_as_its_gradient(end):
    end = nn.Parameter(torch.tensor(end))
    layer = NeuralODE(lambda y: -y, end, rtol=1e-9, atol=1e-12)
    assert [name for name, _ in layer.named_parameters()] == ["t"] and "learned" in repr(layer)
    layer(torch.ones(1, 1)).sum().backward()
    assert math.isclose(end.grad.flatten()[-1], -math.exp(-0.7), rel_tol=1e-6)


def test_states_of_several_tensors_and_complex_ones():
    layer = NeuralODE(lambda t, y: {"a": -y["a"], "b": 1j * y["b"]})
    end = layer({"a": torch.ones(2), "b": torch.ones(3, dtype=torch.complex128)})
    assert torch.allclose(end["a"], torch.full((2,), math.exp(-1)), rtol=1e-4)
    assert torch.allclose(end["b"], torch.exp(torch.tensor(1j)).expand(3), rtol=1e-4)


# Gradients


@pytest.mark.parametrize(("gradient", "rows"), WAYS)
def test_the_gradient_of_states_and_parameters_is_that_of_finite_differences(gradient, rows):
    layer = NeuralODE(
        TimedField(hidden=3),
        (0.0, 1.5),
        gradient=gradient,
        batch_dims=rows,
        augment=1,
        keep_augmented=False,
        regularisers=[KineticEnergy(0.3), JacobianNorm(0.2)],
        method="dopri8",
        rtol=1e-9,
        atol=1e-11,
    )
    layer.field.net[0] = nn.Linear(3, 3)
    layer.field.net[2] = nn.Linear(3, 3)
    y0 = torch.randn(2, 2, requires_grad=True)

    def loss():
        torch.manual_seed(1)  # the same directions of the Jacobian's norm
        return layer(y0).square().sum() + penalty(layer)

    tensors = [y0, *layer.parameters()]
    found = torch.autograd.grad(loss(), tensors)
    directions = [torch.randn_like(tensor) for tensor in tensors]
    values, h = [], 1e-5
    with torch.no_grad():
        for step in (h, -2 * h):  # there, and back to the other side
            for tensor, direction in zip(tensors, directions, strict=True):
                tensor += step * direction
            values.append(loss().item())
    expected = (values[0] - values[1]) / (2 * h)
    slope = sum((g * d).sum() for g, d in zip(found, directions, strict=True)).item()
    assert math.isclose(slope, expected, rel_tol=1e-6)


# Evaluations


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("regularisers", [[], [KineticEnergy(), JacobianNorm()]])
@pytest.mark.parametrize("gradient", [each for each in GRADIENTS if each != "forward"])  # which calls copies at once
def test_evaluations_are_counted_as_the_field_counts_them(gradient, regularisers, rows):
    layer = NeuralODE(TimedField(), gradient=gradient, regularisers=regularisers, batch_dims=rows)
    end = layer(torch.randn(4, 2))
    forward = layer.field.calls
    assert (layer.nfe.forward, layer.nfe.backward) == (forward, 0) and forward > 6
    (end.sum() + penalty(layer)).backward()
    assert layer.nfe.forward == forward
    assert layer.nfe.backward == layer.field.calls - forward
    assert (layer.nfe.backward == 0) == (gradient == "direct")
    layer.nfe.reset()
    layer(torch.randn(4, 2)).sum()
    assert layer.nfe.forward > 0 == layer.nfe.backward


# Augmentation


def test_augmentation_appends_zeros_that_the_field_moves():
    rates = torch.tensor([-1.0, 2.0, 3.0])
    layer = NeuralODE(lambda y: rates * torch.ones_like(y), augment=2)
    layer.field = lambda y: rates[: y.shape[1]].expand_as(y)
    end = layer(torch.ones(4, 1))
    assert torch.allclose(end, torch.tensor([0.0, 2.0, 3.0]).expand(4, 3))
    layer.keep_augmented = False
    assert torch.allclose(layer(torch.ones(4, 1)), torch.zeros(4, 1))


def test_augmentation_of_channels_of_trajectories_and_of_a_single_state():
    images = torch.randn(2, 3, 4, 4)
    still = lambda y: torch.zeros_like(y)
    assert NeuralODE(still, augment=5)(images).shape == (2, 8, 4, 4)
    layer = NeuralODE(still, (0, 1, 2), output="trajectory", augment=5, keep_augmented=False)
    assert torch.equal(layer(images), images.expand(3, *images.shape))
    assert torch.equal(layer(images, torch.tensor([[0.0, 1], [0, 2]])), images[:, None].expand(2, 2, 3, 4, 4))
    assert NeuralODE(still, augment=1, augment_dim=0)(torch.ones(2)).tolist() == [1.0, 1.0, 0.0]


def test_an_augmented_layer_tells_apart_what_a_plain_one_cannot():
    """-x and x cannot change places on a line; with one more dimension they can."""
    x = torch.tensor([[1.0], [-1.0]])
    rotation = lambda y: torch.stack((-y[:, 1], y[:, 0]), 1)
    layer = NeuralODE(rotation, math.pi, augment=1, keep_augmented=False, rtol=1e-8, atol=1e-10)
    assert torch.allclose(layer(x), -x, atol=1e-6)


# Regularisers

ROTATION = torch.tensor([[0.0, -2.0], [2.0, 0.0]], dtype=torch.float64)


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("output", ["end", "trajectory"])
def test_kinetic_energy_and_jacobian_norm_in_closed_form(rows, output):
    y0 = torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    layer = NeuralODE(
        lambda y: y @ ROTATION.T,
        (0.0, 1.0, 1.5),
        output=output,
        batch_dims=rows,
        regularisers=[KineticEnergy(0.5), JacobianNorm(0.25)],
        rtol=1e-8,
        atol=1e-10,
    )
    layer(y0)
    # |A y|^2 = 4 |y|^2, and the norm of y is kept; e^T A has the norm of e times 2, for every e.
    assert torch.allclose(layer.integrals["kinetic_energy"], 1.5 * 4 * torch.tensor([1.0, 25.0]), rtol=1e-6)
    assert torch.allclose(layer.integrals["jacobian_norm"], 1.5 * torch.tensor([8.0, 8.0]), rtol=1e-6)
    expected = 0.5 * 1.5 * 4 * 13 + 0.25 * 1.5 * 8
    assert math.isclose(penalty(nn.Sequential(layer)).item(), expected, rel_tol=1e-6)


def test_integrals_end_where_the_times_of_a_sample_do():
    t = torch.tensor([[0.0, 1.0, 1.5], [0.0, 0.5, math.nan]])
    layer = NeuralODE(lambda y: torch.full_like(y, 2.0), regularisers=[KineticEnergy()], output="trajectory")
    layer(torch.zeros(2, 3), t)
    assert torch.allclose(layer.integrals["kinetic_energy"], 3 * 4 * torch.tensor([1.5, 0.5]))


def test_hutchinson_has_the_frobenius_norm_as_its_mean():
    matrix = torch.randn(3, 3)
    layer = NeuralODE(lambda y: y @ matrix.T, regularisers=[JacobianNorm()], method="rk4", step_size=0.5)
    layer(torch.randn(20_000, 3))
    samples = layer.integrals["jacobian_norm"]
    error = samples.mean() - matrix.square().sum()
    assert abs(error) < 4 * samples.std() / math.sqrt(len(samples))


def test_regularisers_change_neither_the_steps_nor_the_states():
    y0, field = torch.randn(4, 2), TimedField()
    plain, watched = NeuralODE(field), NeuralODE(field, regularisers=[KineticEnergy(), JacobianNorm()])
    for norm in (None, lambda error: error.abs().max()):
        plain.options, watched.options = {"norm": norm}, {"norm": norm}
        assert torch.allclose(watched(y0), plain(y0), rtol=1e-13)
        assert watched.nfe.forward == plain.nfe.forward


def test_in_eval_mode_nothing_is_integrated():
    layer = NeuralODE(Field(), regularisers=[JacobianNorm()])
    layer(torch.randn(4, 2))
    assert penalty(layer) > 0
    layer.eval()(torch.randn(4, 2))
    assert layer.integrals == {} and penalty(layer) == 0


def test_without_a_graph_the_integrals_are_the_same_and_leave_none():
    layer = NeuralODE(Field(), regularisers=[KineticEnergy(), JacobianNorm()])
    y0 = torch.randn(4, 2)
    torch.manual_seed(1)
    layer(y0)
    expected = {name: integral.detach() for name, integral in layer.integrals.items()}
    torch.manual_seed(1)
    with torch.no_grad():
        end = layer(y0)
    assert not end.requires_grad
    for name, integral in layer.integrals.items():
        assert torch.allclose(integral, expected[name]) and not integral.requires_grad


def test_a_field_that_does_not_depend_on_the_state_has_no_jacobian():
    layer = NeuralODE(lambda t, y: torch.ones_like(y) * t, regularisers=[JacobianNorm()])
    layer(torch.randn(4, 2))
    assert torch.equal(layer.integrals["jacobian_norm"], torch.zeros(4))


# A module like others


def model():
    layer = NeuralODE(Field(4), (0, 1), regularisers=[KineticEnergy()], method="rk4", step_size=0.25)
    return nn.Sequential(nn.Linear(3, 4), layer, nn.Linear(4, 2))


def test_sequential_state_dict_deepcopy_and_pickle():
    original, x = model(), torch.randn(5, 3)
    expected = original(x)
    assert len(original.state_dict()) == 8
    copied = copy.deepcopy(original)
    buffer = io.BytesIO()
    torch.save(original, buffer)
    buffer.seek(0)
    loaded = model()
    loaded.load_state_dict(original.state_dict())
    for other in (copied, pickle.loads(pickle.dumps(original)), torch.load(buffer, weights_only=False), loaded):
        assert torch.equal(other(x), expected)
    copied[1].nfe.reset()
    assert original[1].nfe.forward > 0


def test_dtypes_change_with_to():
    single = model().to(torch.float32)
    assert single(torch.randn(5, 3, dtype=torch.float32)).dtype == torch.float32
    assert model().to(torch.float32).double()(torch.randn(5, 3)).dtype == torch.float64


def test_devices_change_with_to():
    layer = NeuralODE(nn.Linear(2, 2)).to("meta")
    assert all(p.device.type == "meta" for p in layer.parameters())


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_compiled_network_is_a_field(gradient):
    torch._dynamo.reset()
    plain = TimeSequential(TimeLinear(2, 8), nn.Tanh(), TimeLinear(8, 2))
    compiled = torch.compile(plain, backend="eager")
    y0 = torch.randn(3, 2)
    results = []
    for field in (plain, compiled):
        layer = NeuralODE(field, gradient=gradient)
        end = layer(y0)
        results.append((end, parameters_gradient(layer, end.square().sum())))
    assert torch.allclose(results[0][0], results[1][0]) and torch.allclose(results[0][1], results[1][1])


def test_the_inner_network_of_a_field_may_be_compiled():
    torch._dynamo.reset()
    field = Field()
    plain = NeuralODE(field)(torch.ones(3, 2))
    field.net = torch.compile(field.net, backend="eager")
    assert torch.allclose(NeuralODE(field)(torch.ones(3, 2)), plain)


@pytest.mark.slow
def test_a_model_that_holds_a_layer_compiles():
    torch._dynamo.reset()
    model, x = nn.Sequential(nn.Linear(3, 2), NeuralODE(Field()), nn.Linear(2, 1)), torch.randn(5, 3)
    model[1].regularisers = (KineticEnergy(), JacobianNorm())
    results = []
    for called in (model, torch.compile(model, backend="eager")):
        torch.manual_seed(1)
        results.append(parameters_gradient(model, called(x).square().sum() + penalty(model)))
    assert torch.allclose(*results, rtol=1e-10)


@pytest.mark.parametrize(("gradient", "rows"), WAYS)
def test_autocast_reaches_the_field_and_nothing_else(gradient, rows):
    torch.set_default_dtype(torch.float32)
    seen = set()

    class Watched(Field):
        def forward(self, y):
            out = self.net(y)
            seen.add((y.dtype, out.dtype))
            return out

    regularisers = [KineticEnergy(), JacobianNorm()]
    # Forward takes a solve for every parameter.
    hidden, tolerance, end = (2, 1e-2, 0.2) if gradient == "forward" else (8, 1e-3, 1.0)
    field = Watched(hidden=hidden)
    options = {"gradient": gradient, "batch_dims": rows, "rtol": tolerance, "atol": tolerance}
    layer = NeuralODE(field, (0.0, end), regularisers=regularisers, **options)
    y0 = torch.randn(16, 2)

    def solved():
        torch.manual_seed(1)
        end = layer(y0)
        return end, end.square().sum() + penalty(layer)

    exact, loss = solved()
    expected = parameters_gradient(layer, loss)
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        end, loss = solved()
    assert end.dtype == torch.float32
    assert {integral.dtype for integral in layer.integrals.values()} == {torch.float32}
    found = parameters_gradient(layer, loss)  # outside of autocast
    assert seen == {(torch.float32, torch.bfloat16)}
    assert torch.allclose(end, exact, atol=2e-2)
    assert (found - expected).norm() < 3e-2 * expected.norm()


def replicated(module):
    """What DataParallel makes, which itself needs several GPUs: a shallow copy that holds copies of the parameters."""
    replica = module._replicate_for_data_parallel()
    replica._former_parameters = {}
    for name, child in module._modules.items():
        replica._modules[name] = replicated(child)
    for name, parameter in module._parameters.items():
        replica._former_parameters[name] = parameter * 1
        setattr(replica, name, replica._former_parameters[name])
    return replica


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_replicas_of_data_parallel_find_their_parameters(gradient):
    layer, y0 = NeuralODE(TimedField(), gradient=gradient), torch.randn(4, 2)
    expected = parameters_gradient(layer, layer(y0).square().sum())
    found = parameters_gradient(layer, replicated(layer)(y0).square().sum())
    assert torch.allclose(found, expected, rtol=1e-10)


def test_data_parallel_does_not_lose_a_penalty_silently():
    replica = replicated(NeuralODE(Field(), regularisers=[KineticEnergy()]))
    with pytest.raises(ValueError, match=r"use nn\.parallel\.DistributedDataParallel"):
        replica(torch.randn(4, 2))
    replica.eval()(torch.randn(4, 2))


# Refusals


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"field": 3}, TypeError, "field must be callable as field(t, y) or field(y), got int"),
        ({"field": lambda *a: a}, TypeError, "write takes_time=True or takes_time=False"),
        ({"field": lambda a, b, c: a}, TypeError, "function needs 3 arguments"),
        ({"t": [1.0]}, ValueError, "t must be an end, or a start and an end, or all times of a trajectory"),
        ({"t": nn.Parameter(torch.zeros(2, 2))}, ValueError, "times for each sample come with the samples"),
        ({"t": torch.zeros(2, 2)}, ValueError, "times for each sample come with the samples, layer(y0, t)"),
        ({"output": "last"}, ValueError, "output must be 'end' or 'trajectory', got 'last'"),
        ({"steps": 3}, TypeError, "NeuralODE has no argument 'steps'"),
        ({"method": "rk5"}, ValueError, "rk5"),
        ({"gradient": "adjoint"}, ValueError, "unknown gradient 'adjoint'"),
        ({"augment": -1}, ValueError, "augment must be a whole number of at least 0"),
        ({"regularisers": "kinetic"}, TypeError, "regularisers must be such as KineticEnergy(0.01)"),
        ({"regularisers": [KineticEnergy(), KineticEnergy()]}, ValueError, "regularisers must differ"),
    ],
)
def test_arguments_that_make_no_sense(arguments, error, sentence):
    with pytest.raises(error) as caught:
        NeuralODE(**{"field": Field(), **arguments})
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("layer", "arguments", "error", "sentence"),
    [
        ({"augment": 1}, (torch.ones(2),), ValueError, "write augment_dim=0 for a single state [n]"),
        ({"augment": 1, "batch_dims": 2}, (torch.ones(2, 2, 2),), ValueError, "behind those of the samples"),
        ({"augment": 1}, ((torch.ones(2), torch.ones(2)),), TypeError, "need a state that is one tensor, got tuple"),
        ({"regularisers": [KineticEnergy()]}, (torch.ones(2, 2) + 0j,), TypeError, "regularisers need a real state"),
        ({}, (torch.ones(2, 2), torch.ones(1)), ValueError, "t must hold at least a start and an end"),
    ],
)
def test_calls_that_make_no_sense(layer, arguments, error, sentence):
    with pytest.raises(error) as caught:
        NeuralODE(lambda t, y: y, **layer)(*arguments)
    assert sentence in str(caught.value)


def test_shifts_that_make_no_sense():
    layer = NeuralODE(lambda t, y: y)
    with pytest.raises(ValueError, match=r"shift must have the shape \(3,\), one number for each sample, got \(2,\)"):
        layer(torch.ones(3, 2), shift=torch.zeros(2))
    with pytest.raises(ValueError, match="layer\\(y0, t \\+ shift"):
        layer(torch.ones(3, 2), torch.zeros(3, 2), shift=torch.zeros(3))


def test_backsolve_with_options_is_taken_as_it_is():
    layer = NeuralODE(Field(), gradient=Backsolve(seminorm=True))
    assert layer.gradient.seminorm and "backsolve" in repr(layer)
