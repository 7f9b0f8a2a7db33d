"""`import torchdiffeq` and `import torchsde` give the stand-ins once installed. Tests are programs of their own."""

import json
import sys
import textwrap

import pytest

from programs import run_program


def run(program, *arguments, warnings="error::UserWarning", **options):
    done = run_program([sys.executable, "-W", warnings, "-c", textwrap.dedent(program), *arguments], **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


INSTALLED = {
    "every import gives the stand in although torchdiffeq is installed": """
        import torchivp.compat

        torchivp.compat.install()
        torchivp.compat.install()  # a second time does nothing, and says nothing

        import importlib.util
        import sys

        import torchdiffeq
        import torchdiffeq._impl.solvers
        from torchdiffeq import odeint_adjoint as odeint
        from torchdiffeq._impl.odeint import SOLVERS

        from torchivp.compat import torchdiffeq as stand_in
        from torchivp.compat.torchdiffeq._impl import odeint as ours_of_impl

        assert torchdiffeq is stand_in and torchdiffeq.odeint is ours_of_impl
        assert odeint is stand_in.odeint_adjoint
        assert torchdiffeq._impl.solvers is sys.modules["torchivp.compat.torchdiffeq._impl.solvers"]
        assert importlib.util.find_spec("torchdiffeq") is not None
        assert len(SOLVERS) == 25 and all(cls.__module__.startswith("torchivp.") for cls in SOLVERS.values())
        assert tuple(map(int, torchdiffeq.__version__.split("."))) >= (0, 2, 5)

        try:
            import torchdiffeq._impl.nothing_of_the_kind
        except ModuleNotFoundError:
            pass
        else:
            raise AssertionError("a module that has no stand-in must not come from the real package")
        """,
    "a training script that offers the solvers as choices": """
        import torchivp.compat

        torchivp.compat.install()

        import argparse

        import torch
        import torchdiffeq
        from torchdiffeq._impl.odeint import SOLVERS

        parser = argparse.ArgumentParser()
        parser.add_argument("--ode_method", default="midpoint", choices=list(SOLVERS.keys()))
        parser.add_argument("--ode_options", default=None, type=eval)
        args = parser.parse_args(["--ode_method", "heun3", "--ode_options", "{'step_size': 0.01}"])

        x = torch.ones(2, 3)
        solution = torchdiffeq.odeint(
            lambda t, x: -x,
            x,
            torch.linspace(0, 1, 2),
            method=args.ode_method,
            options=args.ode_options,
            atol=1e-5,
            rtol=1e-5,
        )
        assert abs(float(solution[-1, 0, 0]) - 0.36788) < 1e-4
        """,
    "a program that registers a solver of its own": """
        import torchivp.compat

        torchivp.compat.install()

        import torch
        import torchdiffeq
        from torchdiffeq._impl.misc import Perturb
        from torchdiffeq._impl.odeint import SOLVERS
        from torchdiffeq._impl.solvers import FixedGridODESolver


        class Heun(FixedGridODESolver):
            order = 2

            def _step_func(self, func, t0, dt, t1, y0):
                f0 = func(t0, y0, perturb=Perturb.NEXT if self.perturb else Perturb.NONE)
                f1 = func(t1, y0 + dt * f0, perturb=Perturb.PREV if self.perturb else Perturb.NONE)
                return 0.5 * dt * (f0 + f1), f0


        SOLVERS["my_heun"] = Heun

        net = torch.nn.Linear(2, 2).double()
        y0 = torch.tensor([1.0, 0.5], dtype=torch.float64)
        t = torch.linspace(0, 1, 3, dtype=torch.float64)
        options = {"step_size": 0.125}
        gradients = []
        for method in ("my_heun", "heun2", Heun):
            for odeint in (torchdiffeq.odeint, torchdiffeq.odeint_adjoint):
                solution = odeint(lambda t, y: net(y), y0, t, method=method, options=options)
                gradients.append(torch.autograd.grad(solution.square().sum(), net.weight)[0])
        for one, other in zip(gradients, gradients[2:]):
            assert torch.allclose(one, other, rtol=1e-12)
        """,
    "every import of torchsde gives the stand in": """
        import torchivp.compat

        torchivp.compat.install()

        import sys

        import torchsde
        import torchsde._core.base_solver
        from torchsde import BaseSDE, BrownianInterval, sdeint_adjoint
        from torchsde._brownian import BaseBrownian
        from torchsde._core import base_sde, methods, misc
        from torchsde._core.base_sde import ForwardSDE
        from torchsde._core.base_solver import BaseSDESolver, adaptive_stepping, interp
        from torchsde._core.methods.euler import Euler
        from torchsde.settings import LEVY_AREA_APPROXIMATIONS, METHODS, NOISE_TYPES, SDE_TYPES
        from torchsde.types import Any, Dict, Optional, Scalar, Tensor, TensorOrTensors, Tensors, Tuple, Vector

        from torchivp.compat import torchsde as stand_in

        assert torchsde is stand_in and torchsde.BaseSDE is base_sde.BaseSDE
        assert methods.select("euler", "ito") is Euler and issubclass(Euler, BaseSDESolver)
        assert all(
            not name.startswith("torchsde") or module.__name__.startswith("torchivp.")
            for name, module in list(sys.modules.items())
        )
        assert torchsde.__version__ == "0.2.6"

        try:
            import torchsde._core.adjoint_sde
        except ModuleNotFoundError:
            pass
        else:
            raise AssertionError("a module that has no stand-in must not come from the real package")
        """,
    # The model that torchsde's example fits: a posterior and a prior with the same diffusion, under other names.
    "a latent sde": """
        import torchivp.compat

        torchivp.compat.install()

        import torch
        import torchsde
        from torch import distributions, nn


        class LatentSDE(torchsde.SDEIto):
            def __init__(self, theta=1.0, mu=0.0, sigma=0.5):
                super().__init__(noise_type="diagonal")
                logvar = torch.log(torch.tensor([[sigma**2 / (2.0 * theta)]]))
                self.register_buffer("theta", torch.tensor([[theta]]))
                self.register_buffer("mu", torch.tensor([[mu]]))
                self.register_buffer("sigma", torch.tensor([[sigma]]))
                self.register_buffer("py0_mean", torch.tensor([[mu]]))
                self.register_buffer("py0_logvar", logvar)
                self.net = nn.Sequential(nn.Linear(3, 20), nn.Tanh(), nn.Linear(20, 1))
                self.qy0_mean = nn.Parameter(torch.tensor([[mu]]))
                self.qy0_logvar = nn.Parameter(logvar.clone())

            def drift(self, t, y):
                if t.dim() == 0:
                    t = torch.full_like(y, fill_value=t)
                return self.net(torch.cat((torch.sin(t), torch.cos(t), y), dim=-1))

            def g(self, t, y):
                return self.sigma.repeat(y.size(0), 1)

            def h(self, t, y):
                return self.theta * (self.mu - y)

            def f_aug(self, t, y):
                y = y[:, 0:1]
                f, g, h = self.drift(t, y), self.g(t, y), self.h(t, y)
                return torch.cat([f, 0.5 * ((f - h) / g) ** 2], dim=1)

            def g_aug(self, t, y):
                g = self.g(t, y[:, 0:1])
                return torch.cat([g, torch.zeros_like(y[:, 1:])], dim=1)


        torch.manual_seed(0)
        model = LatentSDE()
        ts = torch.linspace(0.0, 1.0, 6)
        y0 = model.qy0_mean + torch.randn(16, 1) * torch.exp(0.5 * model.qy0_logvar)
        aug_y0 = torch.cat([y0, torch.zeros(16, 1)], dim=1)
        bm = torchsde.BrownianInterval(0.0, 1.0, size=(16, 2), entropy=1)
        for door in (torchsde.sdeint, torchsde.sdeint_adjoint):
            aug = door(
                sde=model,
                bm=bm,
                y0=aug_y0,
                ts=ts,
                method="euler",
                dt=0.05,
                adaptive=False,
                rtol=1e-3,
                atol=1e-3,
                names={"drift": "f_aug", "diffusion": "g_aug"},
            )
            ys, kl = torchsde.sdeint(
                model, aug_y0[:, :1], ts, bm=bm, method="euler", dt=0.05, names={"drift": "drift"}, logqp=True
            )
            assert torch.allclose(aug[..., :1], ys, atol=1e-5) and torch.allclose(aug[-1, :, 1], kl.sum(0), atol=1e-4)
            model.zero_grad()
            aug[-1].sum().backward(retain_graph=True)
            assert model.qy0_mean.grad is not None and model.net[0].weight.grad.abs().sum() > 0
        """,
    "the first example of torchsde": """
        import torchivp.compat

        torchivp.compat.install()

        import torch
        import torchsde

        batch_size, state_size, brownian_size = 32, 3, 2
        t_size = 20


        class SDE(torch.nn.Module):
            noise_type = "general"
            sde_type = "ito"

            def __init__(self):
                super().__init__()
                self.mu = torch.nn.Linear(state_size, state_size)
                self.sigma = torch.nn.Linear(state_size, state_size * brownian_size)

            def f(self, t, y):
                return self.mu(y)

            def g(self, t, y):
                return self.sigma(y).view(batch_size, state_size, brownian_size)


        sde = SDE()
        y0 = torch.full((batch_size, state_size), 0.1)
        ts = torch.linspace(0, 1, t_size)
        ys = torchsde.sdeint(sde, y0, ts, dt=1e-2)
        assert ys.shape == (t_size, batch_size, state_size)
        ys = torchsde.sdeint_adjoint(sde, y0, ts, dt=1e-2)
        ys[-1].sum().backward()
        assert sde.sigma.weight.grad is not None
        """,
    "a program that replaces the source of random numbers": """
        import torchivp.compat

        torchivp.compat.install()

        import torch
        from torchsde._brownian import brownian_interval
        from torchsde._brownian.brownian_interval import _randn

        seen = []


        def on_the_cpu(size, dtype, device, seed):
            seen.append(seed)
            return _randn(size, dtype, torch.device("cpu"), seed).to(device)


        brownian_interval._randn = on_the_cpu

        import torchsde

        plain = torchsde.BrownianTree(0.0, torch.zeros(2), 1.0, entropy=1)
        assert torch.allclose(plain(0.0, 0.5), torch.tensor([0.3239, 0.4195]), atol=1e-4) and seen
        """,
}
"""Programs that install the stand-ins first. They run in one process, in this order, each with variables of its own."""


@pytest.fixture(scope="module")
def failures():
    """What went wrong in which of them."""
    program = """
        import json
        import sys
        import textwrap
        import traceback

        failures = {}
        for name, source in json.load(sys.stdin).items():
            try:
                exec(compile(textwrap.dedent(source), name, "exec"), {"__name__": name})
            except BaseException:
                failures[name] = traceback.format_exc()
        print(json.dumps(failures))
        """
    return json.loads(run(program, input=json.dumps(INSTALLED)))


@pytest.mark.parametrize("program", INSTALLED)
def test_a_program_with_the_stand_ins(program, failures):
    assert program not in failures, failures[program]


def test_importing_torchivp_installs_nothing_and_a_program_that_imported_torchdiffeq_earlier_is_warned():
    run(
        """
        import sys
        import warnings

        import torchivp
        import torchivp.compat.torchdiffeq

        assert "torchdiffeq" not in sys.modules

        import torchdiffeq
        import torchdiffeq._impl.rk_common

        import torchivp.compat

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torchivp.compat.install()
        assert "torchdiffeq was imported before torchivp.compat.install()" in str(caught[0].message)
        assert caught[0].filename == "<string>"  # where the program installs it

        from torchdiffeq import odeint
        from torchdiffeq._impl.rk_common import _ButcherTableau

        assert odeint.__module__.startswith("torchivp.") and _ButcherTableau.__module__.startswith("torchivp.")
        assert torchdiffeq.odeint is not odeint  # what was imported until then stays
        """
    )


def test_the_noise_of_a_sampler_of_diffusion_models():
    """One tree for each row of a batch, with a seed of its own, asked for noise between noise levels."""
    program = """
        import sys

        if sys.argv[1] == "stand-in":
            import torchivp.compat

            torchivp.compat.install()

        import torch
        import torchsde


        class BatchedBrownianTree:
            def __init__(self, x, t0, t1, seed=None, **kwargs):
                self.cpu_tree = kwargs.pop("cpu", True)
                t0, t1, self.sign = self.sort(t0, t1)
                w0 = kwargs.get("w0", torch.zeros_like(x))
                self.batched = not isinstance(seed, int)
                seed = seed if self.batched else [seed]
                w0 = w0 if self.batched else w0[None]
                self.trees = [torchsde.BrownianTree(t0, w, t1, entropy=s, **kwargs) for w, s in zip(w0, seed)]

            @staticmethod
            def sort(a, b):
                return (a, b, 1) if a < b else (b, a, -1)

            def __call__(self, t0, t1):
                t0, t1, sign = self.sort(t0, t1)
                w = torch.stack([tree(t0, t1) for tree in self.trees]) * (self.sign * sign)
                return w if self.batched else w[0]


        x = torch.zeros(2, 1, 4, 4)
        sigmas = torch.linspace(14.6, 0.03, 10)
        noise = BatchedBrownianTree(x, sigmas.min(), sigmas.max(), [1, 2])
        for a, b in zip(sigmas, sigmas[1:]):
            w = noise(a, b) / (b - a).abs().sqrt()
            print(w.flatten().tolist())
        """
    # torchsde warns whenever t1 is not a number of single precision.
    assert run(program, "stand-in") == run(program, "torchsde", warnings="ignore")
