"""How methods for SDEs call the user's functions: how often, and that they leave alone what these return."""

import pytest
import torch

from torchivp import sde_methods, sdeint

D = torch.float64
KINDS = [(row.method, row.sde_type, row.noise_type) for row in sde_methods()]
CHANNELS = {"diagonal": 3, "scalar": 1, "additive": 2, "commutative": 2, "general": 2}


def states():
    return torch.linspace(-1, 1, 12, dtype=D).view(4, 3)


def solve(sde, method, y0=None, steps=4, **options):
    y0 = states() if y0 is None else y0
    generator = torch.Generator().manual_seed(1)
    return sdeint(sde, y0, [0.0, 0.05 * steps], method=method, dt=0.05, generator=generator, options=options)[-1]


class Constant:
    """Returns its own state and a diffusion that it keeps, or copies of them."""

    def __init__(self, sde_type, noise_type, copies):
        self.sde_type, self.noise_type, self.copies = sde_type, noise_type, copies
        shape = (4, 3) if noise_type == "diagonal" else (4, 3, CHANNELS[noise_type])
        self.kept = torch.linspace(0.1, 0.4, shape[-1], dtype=D).expand(shape)
        if noise_type == "diagonal":
            self.kept = self.kept.contiguous()

    def f(self, t, y):
        return y.clone() if self.copies else y

    def g(self, t, y):
        return self.kept.clone() if self.copies else self.kept


class Itself(Constant):
    """Returns its state as its diffusion too."""

    def g(self, t, y):
        value = y if self.noise_type == "diagonal" else y.unsqueeze(2).expand(-1, -1, CHANNELS[self.noise_type])
        return value.clone() if self.copies else value


ALIASES = [(*case, kind) for case in KINDS for kind in (Constant, Itself) if "additive" not in case or kind is Constant]


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(("method", "sde_type", "noise_type", "kind"), ALIASES)
def test_what_functions_return_is_not_modified(method, sde_type, noise_type, kind, grad):
    found = []
    for copies in (True, False):
        sde, y0 = kind(sde_type, noise_type, copies), states().requires_grad_(grad)
        kept = sde.kept.clone()
        y = solve(sde, method, y0)
        assert torch.equal(y0, states())
        assert torch.equal(sde.kept, kept)
        found.append([y.detach(), *(torch.autograd.grad(y.sum(), y0) if grad else ())])
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


class Counting:
    """Counts evaluations."""

    def __init__(self, sde_type, noise_type, together):
        self.sde_type, self.noise_type = sde_type, noise_type
        self.calls = {"f": 0, "g": 0, "f_and_g": 0}
        if together:
            self.f_and_g = lambda t, y: (self.count("f_and_g"), self.drift(y), self.diffusion(y))[1:]
        else:
            self.f = lambda t, y: (self.count("f"), self.drift(y))[1]
            self.g = lambda t, y: (self.count("g"), self.diffusion(y))[1]

    def count(self, name):
        self.calls[name] += 1

    def drift(self, y):
        return torch.sin(y)

    def diffusion(self, y):
        if self.noise_type == "diagonal":
            return 0.3 * torch.cos(y)
        scales = torch.tensor([0.3, 0.2], dtype=D)[: CHANNELS[self.noise_type]]
        other = y.flip(1) if self.noise_type == "general" else y
        return torch.stack([s * (torch.cos(other) if j else y) for j, s in enumerate(scales)], dim=2)


def evaluations(method, sde_type, noise_type, together, **options):
    """Of one step."""
    counts = []
    for steps in (4, 8):
        sde = Counting(sde_type, noise_type, together)
        solve(sde, method, steps=steps, **options)
        counts.append(sde.calls)
    return {name: (counts[1][name] - counts[0][name]) / 4 for name in counts[0] if counts[1][name]}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(
    ("method", "sde_type", "noise_type", "count"),
    [
        ("euler", "ito", "general", 1),
        ("midpoint", "stratonovich", "general", 2),
        ("reversible_heun", "stratonovich", "general", 1),
        ("log_ode", "stratonovich", "general", 2),
        *(("milstein", calculus, noise, 1) for calculus in ("ito", "stratonovich") for noise in ("diagonal", "scalar")),
        ("milstein", "ito", "commutative", 1),
        ("milstein", "stratonovich", "commutative", 1),
    ],
)
def test_evaluations(method, sde_type, noise_type, count, grad):
    with torch.set_grad_enabled(grad):
        assert evaluations(method, sde_type, noise_type, False) == {"f": count, "g": count}
        assert evaluations(method, sde_type, noise_type, True) == {"f_and_g": count}
    apart, together = (solve(Counting(sde_type, noise_type, each), method) for each in (False, True))
    torch.testing.assert_close(apart, together, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("method", "count"), [("ri6", 9), ("dri1", 9), ("srk", 4), ("slowrk", 5)])
def test_evaluations_of_the_diffusion(method, count):
    noise_type = {"srk": "diagonal", "slowrk": "commutative"}.get(method, "general")
    sde_type = "stratonovich" if method == "slowrk" else "ito"
    assert evaluations(method, sde_type, noise_type, False)["g"] == count


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("noise_type", ["diagonal", "scalar", "commutative"])
@pytest.mark.parametrize("sde_type", ["ito", "stratonovich"])
def test_results_need_a_gradient_only_where_asked(sde_type, noise_type, together):
    sde = Counting(sde_type, noise_type, together)
    assert not solve(sde, "milstein").requires_grad
    scale = torch.tensor(1.5, dtype=D, requires_grad=True)
    for factors in ((scale, 1.0), (1.0, scale)):
        sde = Counting(sde_type, noise_type, together)
        drift, diffusion = sde.drift, sde.diffusion
        sde.drift, sde.diffusion = (lambda y: drift(y) * factors[0]), (lambda y: diffusion(y) * factors[1])
        with torch.no_grad():
            assert not solve(sde, "milstein").requires_grad
        loss = solve(sde, "milstein", steps=3).sum()
        (found,) = torch.autograd.grad(loss, scale)
        values = []
        for change in (1e-6, -1e-6):
            with torch.no_grad():
                scale += change
                values.append(solve(sde, "milstein", steps=3).sum())
                scale -= change
        torch.testing.assert_close(found, (values[0] - values[1]) / 2e-6, rtol=1e-7, atol=1e-7)
