"""Transforms of `torch.func`, forward mode and inference mode over `sdeint`; and errors on the way."""

import pytest
import torch

import torchivp

D = torch.float64
KINDS = [(row.method, row.sde_type, row.noise_type) for row in torchivp.sde_methods()]


class Problem:
    """Its drift and its diffusion each have a parameter."""

    def __init__(self, sde_type, noise_type):
        self.sde_type, self.noise_type = sde_type, noise_type

    def f(self, t, y, drift, scale):
        return -drift * y

    def g(self, t, y, drift, scale):
        if self.noise_type == "diagonal":
            return scale * (1 + y * y).sqrt()
        if self.noise_type == "additive":
            return scale * torch.ones_like(y).unsqueeze(-1)
        turned = scale * (1 + y.flip(1) ** 2).sqrt()
        return turned.unsqueeze(-1) if self.noise_type == "scalar" else torch.stack([turned, scale * y], dim=2)


def last_of(method, sde_type, noise_type):
    def solve(drift, scale):
        return torchivp.sdeint(
            Problem(sde_type, noise_type),
            torch.full((2, 2), 0.5, dtype=D),
            [0.0, 0.3],
            method=method,
            dt=0.1,
            args=(drift, scale),
            generator=torch.Generator().manual_seed(0),
        )[-1].sum(0)

    return solve


def point():
    return torch.tensor(1.0, dtype=D), torch.tensor(0.4, dtype=D)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
class TestTransforms:
    def test_derivatives(self, kind):
        solve, parameters = last_of(*kind), point()
        expected = torch.autograd.functional.jacobian(solve, parameters)
        for transform in (torch.func.jacrev, torch.func.jacfwd):
            for found, right in zip(transform(solve, argnums=(0, 1))(*parameters), expected, strict=True):
                torch.testing.assert_close(found, right)
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(parameters[1], torch.ones((), dtype=D))
            tangent = torch.autograd.forward_ad.unpack_dual(solve(parameters[0], dual)).tangent
            torch.testing.assert_close(tangent, expected[1])

    @pytest.mark.parametrize("which", [0, 1])
    def test_vmap_over_a_parameter(self, kind, which):
        """All entries have the same noise, and it may enter the drift or the diffusion alone."""
        solve, parameters = last_of(*kind), point()
        many = torch.tensor([0.7, 0.9], dtype=D)
        found = torch.func.vmap(solve, in_dims=tuple(0 if i == which else None for i in range(2)))(
            *(many if i == which else x for i, x in enumerate(parameters))
        )
        for one, y in zip(many, found, strict=True):
            torch.testing.assert_close(y, solve(*(one if i == which else x for i, x in enumerate(parameters))))

    def test_inference_mode(self, kind):
        parameters = point()
        with torch.inference_mode():
            found = last_of(*kind)(*parameters)
        torch.testing.assert_close(found, last_of(*kind)(*parameters))


def test_tensors_made_in_inference_mode():
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"solve within torch.no_grad\(\) instead"):
        last_of("milstein", "ito", "diagonal")(*point())


def test_entries_of_a_vmap_may_have_different_noise():
    solve = last_of("srk", "ito", "diagonal")
    many = torch.full((2,), 0.7, dtype=D)
    same = torch.func.vmap(solve, in_dims=(0, None))(many, point()[1])
    different = torch.func.vmap(solve, in_dims=(0, None), randomness="different")(many, point()[1])
    assert torch.equal(same[0], same[1])
    assert not torch.equal(different[0], different[1])


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_an_error_of_the_user_comes_through_and_modes_are_restored(mode):
    class Broken:
        sde_type, noise_type, calls = "ito", "diagonal", 0

        def f(self, t, y):
            return -y

        def g(self, t, y):
            self.calls += 1
            if self.calls > 3:
                raise KeyError("user")
            return y

    with mode(), pytest.raises(KeyError, match="user"):
        torchivp.sdeint(Broken(), torch.ones(3, 2), [0.0, 1.0], dt=0.1, method="milstein")
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


@pytest.mark.parametrize(
    ("door", "arguments"),
    [
        (torchivp.sdeint, {"gradient": "reversible"}),
        (torchivp.sdeint, {"gradient": "checkpointed"}),
        (torchivp.sdeint_adjoint, {}),
        *(
            (torchivp.sdeint_adjoint, {"adjoint_method": method, "adjoint_adaptive": adaptive})
            for method in ("midpoint", "heun", "euler_heun", "milstein")
            for adaptive in (False, True)
        ),
    ],
)
def test_a_tensor_used_only_for_a_while_is_refused(door, arguments):
    """Its gradient would silently be missing."""
    parameter = torch.tensor(1.0, requires_grad=True)

    class Window:
        sde_type, noise_type = "stratonovich", "diagonal"

        def f(self, t, y):
            return parameter * y if 0.31 < t < 0.35 else -y

        def g(self, t, y):
            return 0.2 * y

    y0 = torch.ones(3, 1, requires_grad=True)
    y = door(Window(), y0, [0.0, 1.0], dt=0.01, method="reversible_heun", **arguments)
    with pytest.raises(RuntimeError, match="did not use it at the start of the solve"):
        y[-1].sum().backward()
