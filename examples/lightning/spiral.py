"""A neural ODE trained by PyTorch Lightning, on as many processes as wanted.

`torchivp.nn.NeuralODE` is a module like others: Lightning moves it, shares its gradients and stores it as it does any.

    python examples/lightning/spiral.py                          # a minute; needs: pip install lightning
    python examples/lightning/spiral.py --devices 2              # two processes share each batch
    python examples/lightning/spiral.py --quick --devices 2      # seconds, to see that it runs
"""

import argparse
from pathlib import Path

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from torchivp import solve_ivp
from torchivp.nn import NeuralODE

T = torch.linspace(0.0, 1.0, 11)


def spirals(count):
    """States [count, 2] and where a damped rotation takes them, [count, len(T), 2]."""
    start = torch.randn(count, 2)
    turn = torch.tensor([[-0.3, 3.0], [-3.0, -0.3]])
    with torch.no_grad():
        return TensorDataset(start, solve_ivp(lambda t, y: y @ turn.T, (0.0, 1.0), start, t_eval=T, batch_dims=1).y)


class Spiral(lightning.LightningModule):
    """A field that is learned from paths."""

    def __init__(self):
        super().__init__()
        field = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))
        self.ode = NeuralODE(field, t=T, output="trajectory", batch_dims=1, rtol=1e-4, atol=1e-5)

    def training_step(self, batch, _):
        start, paths = batch
        loss = (self.ode(start) - paths).square().mean()
        self.log("loss", loss, prog_bar=True, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Losses(lightning.Callback):
    """Keeps the mean loss of each epoch."""

    def __init__(self):
        self.losses = []

    def on_train_epoch_end(self, trainer, module):
        self.losses.append(trainer.callback_metrics["loss"].item())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a short training, to see that it runs")
    parser.add_argument("--devices", type=int, default=1, help="how many processes")
    parser.add_argument("--out", type=Path, default=Path("."), help="the folder for the checkpoint")
    arguments = parser.parse_args()
    lightning.seed_everything(0, verbose=False)
    losses = Losses()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=arguments.devices,
        strategy="ddp" if arguments.devices > 1 else "auto",
        max_epochs=3 if arguments.quick else 30,
        default_root_dir=arguments.out,
        callbacks=[losses],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=not arguments.quick,
    )
    data = spirals(64 if arguments.quick else 1024)
    trainer.fit(Spiral(), DataLoader(data, batch_size=32 // arguments.devices, shuffle=True))
    trainer.save_checkpoint(arguments.out / "spiral.ckpt")
    if trainer.is_global_zero:
        print(f"{arguments.devices} at work: loss from {losses.losses[0]:.3g} to {losses.losses[-1]:.3g};")


if __name__ == "__main__":
    main()
