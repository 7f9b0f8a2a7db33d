"""`import torchdiffeq` gives the stand-in once it is installed. Each test is a program of its own."""

import subprocess
import sys
import textwrap


def run(program, *arguments):
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", textwrap.dedent(program), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_import_gives_the_stand_in_although_torchdiffeq_is_installed():
    run(
        """
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
        """
    )


def test_a_program_that_imported_torchdiffeq_earlier_is_warned():
    run(
        """
        import warnings

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


def test_importing_torchivp_installs_nothing():
    run(
        """
        import sys

        import torchivp
        import torchivp.compat.torchdiffeq

        assert "torchdiffeq" not in sys.modules
        """
    )


def test_a_training_script_that_offers_the_solvers_as_choices():
    program = """
        import torchivp.compat

        torchivp.compat.install()

        import argparse

        import torch
        import torchdiffeq
        from torchdiffeq._impl.odeint import SOLVERS

        parser = argparse.ArgumentParser()
        parser.add_argument("--ode_method", default="midpoint", choices=list(SOLVERS.keys()))
        parser.add_argument("--ode_options", default=None, type=eval)
        args = parser.parse_args()

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
        print(float(solution[-1, 0, 0]))
        """
    printed = run(program, "--ode_method", "heun3", "--ode_options", "{'step_size': 0.01}")
    assert abs(float(printed) - 0.36788) < 1e-4


def test_a_program_that_registers_a_solver_of_its_own():
    run(
        """
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
        """
    )
