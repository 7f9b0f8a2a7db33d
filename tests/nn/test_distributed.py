"""Two processes with half of the samples each find the gradients of one process with all of them."""

import os

import pytest
import torch

from programs import launch, run_program

WORKER = """
import sys
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torchivp.nn import JacobianNorm, KineticEnergy, NeuralODE, TimeLinear, TimeSequential, penalty

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
distributed.init_process_group("gloo")
rank = distributed.get_rank()
found = {}
for gradient in ("direct", "checkpointed", "backsolve"):
    for name, steps in {"fixed": {"method": "rk4", "step_size": 0.25}, "rows": {"batch_dims": 1}}.items():
        torch.manual_seed(0)  # the same parameters in both processes
        field = TimeSequential(TimeLinear(4, 8), nn.Tanh(), TimeLinear(8, 4))
        layer = NeuralODE(field, gradient=gradient, augment=1, regularisers=[KineticEnergy(0.1)], **steps)
        model = nn.Sequential(nn.Linear(2, 3), layer, nn.Linear(4, 1))
        x = torch.randn(8, 2)

        def gradients(model, x):
            model.zero_grad()
            (model(x).square().mean() + penalty(model)).backward()
            return torch.cat([p.grad.flatten() for p in model.parameters()])

        alone = gradients(model, x)
        together = gradients(DistributedDataParallel(model), x[4 * rank : 4 * rank + 4])
        found[gradient, name] = (alone, together)
if rank == 0:
    torch.save(found, sys.argv[1])
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_find_the_gradients_of_one(tmp_path):
    script, result = tmp_path / "worker.py", tmp_path / "gradients.pt"
    script.write_text(WORKER)
    run = run_program(launch(script, result, processes=2), env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, run.stderr
    found = torch.load(result)
    assert len(found) == 6
    for (gradient, steps), (alone, together) in found.items():
        # The error of a backward solve is measured over the samples that it solves for.
        rtol = 1e-3 if (gradient, steps) == ("backsolve", "rows") else 1e-11
        assert torch.allclose(together, alone, rtol=rtol, atol=1e-6 if rtol == 1e-3 else 1e-12), (gradient, steps)
