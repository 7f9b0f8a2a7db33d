"""The latent ODE of latent_ode.py, trained on several processes by torch's own DistributedDataParallel.

Each process solves its part of every batch, and torch averages the gradients. The rows of a solve have steps of their
own (`batch_dims=1`), so that a series is solved by the same steps whatever stands beside it: but for rounding, the
gradients are those of one process with the whole batch, and so is the training.

    torchrun --nproc-per-node 2 examples/ddp_latent_ode.py            # minutes
    torchrun --nproc-per-node 2 examples/ddp_latent_ode.py --quick    # seconds, to see that it runs
    python examples/ddp_latent_ode.py --quick                         # the same training in one process

On a cluster, on each machine: `torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500`.
"""

import argparse
import os
import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from torchivp import solve_ivp

sys.path.insert(0, str(Path(__file__).resolve().parent))
from latent_ode import LATENT, LatentODE, dataset, draw


class RowsOfTheirOwn(LatentODE):
    """The latent ODE whose series have steps of their own; called, it is its loss, as DistributedDataParallel needs."""

    def latent(self, z0, t):
        solution = solve_ivp(
            lambda t, z: self.dynamics(z), (t[0], t[-1]), z0, t_eval=t, rtol=1e-3, atol=1e-4, batch_dims=1
        )
        return solution.y.movedim(1, 0)

    def forward(self, series, weight, noise):
        return self.loss(series, weight, noise)


def train(model, series, iterations, batch, rank, count):
    """Train on batches that all processes draw alike, of which each takes every count-th series."""
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    same_everywhere = torch.Generator().manual_seed(1)
    losses = []
    for i in range(iterations):
        chosen = torch.randperm(series.shape[1], generator=same_everywhere)[:batch]
        noise = torch.randn(batch, LATENT, generator=same_everywhere)
        own = slice(rank, None, count)
        loss = model(series[:, chosen[own]], min(1.0, 2 * i / iterations), noise[own])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        mean = loss.detach() / count
        if count > 1:
            distributed.all_reduce(mean)
        losses.append(mean.item())
        if rank == 0 and i % 50 == 0:
            print(f"iteration {i:5d}   loss {losses[-1]:.4f}")
    return losses


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a short training, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("."), help="the folder for the picture and the parameters")
    arguments = parser.parse_args()

    count = int(os.environ.get("WORLD_SIZE", "1"))  # torchrun says how many processes there are
    if count > 1:
        distributed.init_process_group("gloo")  # "nccl" where each process has a GPU
        torch.set_num_threads(1)
    rank = distributed.get_rank() if count > 1 else 0
    torch.manual_seed(0)
    series, _, _ = dataset(1000)
    model = RowsOfTheirOwn()
    batch = 16 if arguments.quick else 128
    if batch % count:
        raise SystemExit(f"{batch} series a batch cannot be shared evenly by {count} processes: take a power of two")
    trained = DistributedDataParallel(model) if count > 1 else model
    losses = train(trained, series, 20 if arguments.quick else 3000, batch, rank, count)
    if rank == 0:
        arguments.out.mkdir(parents=True, exist_ok=True)
        path = arguments.out / "ddp_latent_ode.png"
        torch.save(model.state_dict(), path.with_suffix(".pt"))
        draw(path, model, losses)
        print(f"{count} at work: loss from {losses[0]:.6g} to {losses[-1]:.6g}; picture: {path}")
    if count > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
