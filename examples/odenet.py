"""Recognise handwritten digits with one ODE in the place of six residual blocks: ODE-Net.

The networks of "Neural ordinary differential equations" (Chen, Rubanova, Bettencourt and Duvenaud, 2018). All three
make an image of 28 x 28 pixels smaller twice and end on the same classifier. Between them

- ResNet has six residual blocks;
- ODE-Net has one ODE whose right-hand side is about such a block, and takes its gradient by solving the adjoint
  equations backwards, in memory that does not grow with the number of steps;
- RK-Net is the same network with backpropagation through the steps of the solver.

The data are the digits that come with scikit-learn, or MNIST if torchvision is installed and has it in a folder.
The program draws how they learn, and what the tolerance of the solver costs in accuracy, time and memory.

    python examples/odenet.py                                # two minutes
    python examples/odenet.py --seeds 5                      # five trainings of each network
    python examples/odenet.py --data mnist --folder mnist    # larger networks, on MNIST
    python examples/odenet.py --quick                        # seconds, to see that it runs
"""

import argparse
import copy
import time
import weakref
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from torchivp import Checkpointed
from torchivp.nn import NeuralODE, TimeConv2d, TimeSequential

BATCH = 32
TOLERANCE = 1e-2  # relative and absolute, in training
TOLERANCES = 10.0 ** -np.arange(1, 6)
# Of the gradients in the comparison. A state is far smaller than the graph of a step, so every one is kept.
GRADIENTS = {"direct": "direct", "checkpointed": Checkpointed(checkpoints=1000), "backsolve": "backsolve"}
NETWORKS = ("ResNet", "RK-Net", "ODE-Net")
BLUE, ORANGE, GREEN, INK, GREY = "#0072B2", "#D55E00", "#009E73", "#222222", "#8A8A8A"
COLOURS = {"ResNet": INK, "RK-Net": ORANGE, "ODE-Net": BLUE, "direct": ORANGE, "checkpointed": GREEN, "backsolve": BLUE}


# The data.


@dataclass
class Digits:
    """Images [n, 1, 28, 28] between 0 and 1, and what they show, to train on and to test with."""

    images: torch.Tensor
    labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor


def scikit_learn_digits():
    """1797 images of 8 x 8 pixels, a third of them to test with."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    small = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    large = functional.pad(functional.interpolate(small, size=24, mode="bilinear", align_corners=False), [2] * 4)
    labels = torch.tensor(labels)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[600:], order[:600]
    return Digits(large[train], labels[train], large[test], labels[test])


def mnist(folder):
    """60 000 images of 28 x 28 pixels and 10 000 to test with; a sentence says so if they are not there."""
    try:
        from torchvision.datasets import MNIST
    except ImportError:
        raise SystemExit(
            "--data mnist needs torchvision: install it with `pip install torchvision`, or leave out --data mnist to "
            "train on the digits of scikit-learn"
        ) from None
    try:
        parts = [MNIST(folder, train=train, download=False) for train in (True, False)]
    except RuntimeError:
        raise SystemExit(
            f"--data mnist finds no MNIST in the folder {str(folder)!r}: name the folder that holds MNIST/raw with "
            "--folder, or leave out --data mnist to train on the digits of scikit-learn"
        ) from None
    return Digits(*(piece for part in parts for piece in (part.data[:, None] / 255, part.targets)))


def moved(images):
    """The images, each turned, scaled and shifted a little, by chance."""
    angle, scale = 0.2 * uniform(len(images)), 1 + 0.1 * uniform(len(images))
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    shift = 0.12 * uniform(2, len(images))
    matrix = torch.stack([cosine, -sine, shift[0], sine, cosine, shift[1]], dim=1).reshape(-1, 2, 3)
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def uniform(*shape):
    return 2 * torch.rand(shape) - 1


# The networks.


def norm(channels):
    return nn.GroupNorm(channels // 2, channels)


class ResidualBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        layers = [
            [norm(channels), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1, bias=False)] for _ in range(2)
        ]
        self.change = nn.Sequential(*layers[0], *layers[1])

    def forward(self, x):
        return x + self.change(x)


def ode_block(channels, gradient):
    layers = [[norm(channels), nn.ReLU(), TimeConv2d(channels, channels, 3, padding=1)] for _ in range(2)]
    block = TimeSequential(*layers[0], *layers[1], norm(channels))
    return NeuralODE(block, rtol=TOLERANCE, atol=TOLERANCE, gradient=gradient)


def network(name, channels):
    if name == "ResNet":
        middle = [ResidualBlock(channels) for _ in range(6)]
    else:
        middle = [ode_block(channels, "backsolve" if name == "ODE-Net" else "direct")]
    smaller = [
        nn.Conv2d(1, channels, 3),
        *(norm(channels), nn.ReLU(), nn.Conv2d(channels, channels, 4, stride=2, padding=1)),
        *(norm(channels), nn.ReLU(), nn.Conv2d(channels, channels, 4, stride=2, padding=1)),
    ]
    classifier = [norm(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, 10)]
    return nn.Sequential(*smaller, *middle, *classifier)


def ode_in(net):
    """Where in the network its ODE is, and the ODE; None and None in a ResNet."""
    return next(((i, layer) for i, layer in enumerate(net) if isinstance(layer, NeuralODE)), (None, None))


def with_solver(net, tolerance, gradient):
    """The network with the same parameters and another tolerance and gradient."""
    at, layer = ode_in(net)
    other = NeuralODE(layer.field, rtol=tolerance, atol=tolerance, gradient=gradient)
    return nn.Sequential(*net[:at], other, *net[at + 1 :])


def count_parameters(net):
    return sum(parameter.numel() for parameter in net.parameters())


# Training.


@dataclass
class Training:
    """A trained network, and what was seen after every epoch.

    `forward` and `backward` are evaluations of the ODE's right-hand side for a batch.
    """

    net: nn.Module
    losses: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    forward: list[float] = field(default_factory=list)
    backward: list[float] = field(default_factory=list)
    seconds: float = 0.0


def train(name, channels, digits, epochs, seed):
    torch.manual_seed(seed)
    net = network(name, channels)
    layer = ode_in(net)[1]
    training = Training(net)
    batches = -(-len(digits.labels) // BATCH)
    optimiser = torch.optim.Adam(net.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=epochs * batches)
    for epoch in range(epochs):
        start, losses = time.process_time(), []
        if layer is not None:
            layer.nfe.reset()
        for chosen in torch.randperm(len(digits.labels)).split(BATCH):
            loss = functional.cross_entropy(net(moved(digits.images[chosen])), digits.labels[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
        training.seconds += time.process_time() - start
        training.losses.append(float(np.mean(losses)))
        if layer is not None:
            training.forward.append(layer.nfe.forward / batches)
            training.backward.append(layer.nfe.backward / batches)
        training.errors.append(test_error(net, digits))
        print(f"{name}, seed {seed}, epoch {epoch + 1:2d}   loss {losses[-1]:.4f}   error {training.errors[-1]:.2f} %")
    return training


def test_error(net, digits):
    """The percentage of the test images that the network takes for others."""
    with torch.no_grad():
        chunks = zip(digits.test_images.split(500), digits.test_labels.split(500), strict=True)
        wrong = sum((net(images).argmax(dim=1) != labels).sum().item() for images, labels in chunks)
    return 100 * wrong / len(digits.test_labels)


# What a tolerance costs.


class PeakMemory(TorchDispatchMode):
    """Follows the bytes of all tensors that are made inside it, and keeps the largest sum that lived at one time."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.seen = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and (storage := leaf.untyped_storage()) not in self.seen:
                self.seen.add(storage)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.free, storage.nbytes())
        return result

    def free(self, size):
        self.now -= size


@dataclass
class Cost:
    """Of one training step: megabytes of tensors at the peak, seconds, and evaluations of the right-hand side."""

    memory: float
    seconds: float
    forward: int = 0
    backward: int = 0


def cost_of_a_step(net, images, labels):
    def step():
        net.zero_grad()
        functional.cross_entropy(net(images), labels).backward()

    step()
    seconds = []
    for _ in range(3):
        start = time.process_time()
        step()
        seconds.append(time.process_time() - start)
    layer = ode_in(net)[1]
    if layer is not None:
        layer.nfe.reset()
    net.zero_grad()
    with PeakMemory() as memory:
        step()
    counts = () if layer is None else (layer.nfe.forward, layer.nfe.backward)
    return Cost(memory.peak / 1e6, min(seconds), *counts)


def costs(resnet, odenet, digits):
    """A training step of a batch, by the gradient and in the order of the tolerances; the ResNet has none."""
    images, labels = digits.images[:BATCH], digits.labels[:BATCH]
    found = {"ResNet": [cost_of_a_step(resnet, images, labels)] * len(TOLERANCES)}
    for name, gradient in GRADIENTS.items():
        nets = [with_solver(odenet, tolerance, gradient) for tolerance in TOLERANCES]
        found[name] = [cost_of_a_step(net, images, labels) for net in nets]
    return found


def errors_of_the_state(odenet, digits):
    """The error of the end state at each tolerance, relative to its size: the root mean squares over test images."""
    at, layer = ode_in(odenet)
    with torch.no_grad():
        start = odenet[:at](digits.test_images[:BATCH])
        # ReLU has a kink, and so no adaptive method of high order is quick where the tolerance is very small.
        precise = NeuralODE(copy.deepcopy(layer.field).double(), method="rk4", step_size=1 / 200)
        exact = precise(start.double())
        ends = [NeuralODE(layer.field, rtol=tolerance, atol=tolerance)(start) for tolerance in TOLERANCES]
    return [((end - exact).norm() / exact.norm()).item() for end in ends]


# What is shown.


def table_of_networks(trainings):
    lines = ["network   parameters   test error, %                 seconds   evaluations forward, backward"]
    for name, runs in trainings.items():
        errors = [run.errors[-1] for run in runs]
        seconds = np.mean([run.seconds for run in runs])
        each = ", ".join(f"{error:.2f}" for error in errors)
        calls = f"{runs[-1].forward[-1]:.0f}, {runs[-1].backward[-1]:.0f}" if runs[-1].forward else "none"
        lines.append(
            f"{name:8}  {count_parameters(runs[0].net):10d}   {np.mean(errors):.2f} ({each})   {seconds:7.1f}   {calls}"
        )
    return lines


def table_of_tolerances(found, state_errors, test_errors):
    lines = ["tolerance  error of state  test error, %  gradient      evaluations  ms a step  peak memory, MB"]
    resnet = found["ResNet"][0]
    lines.append(f"{'':41}ResNet {'':18}  {1e3 * resnet.seconds:9.0f}  {resnet.memory:15.1f}")
    for i, tolerance in enumerate(TOLERANCES):
        for name in GRADIENTS:
            cost = found[name][i]
            calls = f"{cost.forward} + {cost.backward}"
            lines.append(
                f"{tolerance:9.0e}  {state_errors[i]:14.1e}  {test_errors[i]:13.2f}  {name:12}  {calls:>11}  "
                f"{1e3 * cost.seconds:9.0f}  {cost.memory:15.1f}"
            )
    return lines


def draw(path, trainings, found, state_errors):
    figure = Figure(figsize=(12.5, 7.4), dpi=110, layout="constrained")
    (learning, size, calls), (accuracy, duration, memory) = figure.subplots(2, 3)
    for name, runs in trainings.items():
        epochs = np.arange(1, len(runs[0].errors) + 1)
        learning.semilogy(epochs, np.mean([run.errors for run in runs], axis=0), color=COLOURS[name], label=name)
        errors = [run.errors[-1] for run in runs]
        thousands = count_parameters(runs[0].net) / 1e3
        # RK-Net has as many parameters as ODE-Net, and is drawn beside it.
        place = thousands * (1.15 if name == "RK-Net" else 1.0)
        size.plot([place] * len(runs), errors, "o", color=COLOURS[name], alpha=0.5, ms=5)
        size.plot(place, np.mean(errors), "_", color=COLOURS[name], ms=14, mew=2.5, label=name)
        if runs[0].forward:
            calls.plot(
                epochs, np.mean([run.forward for run in runs], axis=0), color=COLOURS[name], label=f"{name}, forward"
            )
        if name == "ODE-Net":
            backward = np.mean([run.backward for run in runs], axis=0)
            calls.plot(epochs, backward, color=COLOURS[name], ls="--", label=f"{name}, backward")
    learning.set(title="Learning", xlabel="epoch", ylabel="test error (%)")
    size.set(title="Size", xlabel="parameters (thousands)", ylabel="test error at the end (%)")
    size.set(xlim=(0, 1.2 * size.get_xlim()[1]), ylim=(0, 1.4 * size.get_ylim()[1]))
    calls.set(title="Evaluations in training", xlabel="epoch", ylabel="evaluations for a batch", ylim=(0, None))
    for axes in (learning, calls):
        axes.xaxis.get_major_locator().set_params(integer=True)

    accuracy.loglog(TOLERANCES, state_errors, "o-", color=BLUE, label="ODE-Net")
    accuracy.loglog(TOLERANCES, TOLERANCES, color=GREY, lw=1, ls=":", label="error = tolerance")
    accuracy.set(title="Accuracy of the solver", ylabel="relative error of the end state")
    for name, row in found.items():
        style = "--" if name == "ResNet" else "o-"
        duration.semilogx(TOLERANCES, [1e3 * cost.seconds for cost in row], style, color=COLOURS[name], label=name)
        memory.semilogx(TOLERANCES, [cost.memory for cost in row], style, color=COLOURS[name], label=name)
    duration.set(title="Time of a training step", ylabel="milliseconds", ylim=(0, None))
    memory.set(title="Peak memory of a training step", ylabel="megabytes of tensors", ylim=(0, None))
    learning.yaxis.set_major_formatter("{x:g}")
    learning.yaxis.set_minor_formatter("")
    for axes in (accuracy, duration, memory):
        axes.set_xlabel("tolerance")
        axes.invert_xaxis()
    for axes in figure.axes:
        axes.legend(frameon=False, fontsize=8.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set(fontweight="bold", fontsize=11)
    figure.savefig(path)


def positive(text):
    """A whole number from 1 on, for argparse."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a short training, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("."), help="the folder for the picture and the tables")
    parser.add_argument("--data", choices=("digits", "mnist"), default="digits", help="which images")
    parser.add_argument("--folder", type=Path, default=Path("."), help="where torchvision keeps MNIST")
    parser.add_argument("--seeds", type=positive, default=1, help="how many networks of each kind to train")
    parser.add_argument("--epochs", type=positive, help="12 by default, 5 on MNIST")
    parser.add_argument("--channels", type=positive, help="16 by default, 64 on MNIST, as in the paper; even")
    arguments = parser.parse_args()
    if arguments.channels is not None and arguments.channels % 2:
        parser.error(f"--channels must be even, got {arguments.channels}: channels are normalised in pairs")
    digits = mnist(arguments.folder) if arguments.data == "mnist" else scikit_learn_digits()
    epochs, channels = (12, 16) if arguments.data == "digits" else (5, 64)
    epochs, channels = arguments.epochs or epochs, arguments.channels or channels
    if arguments.quick:
        epochs, channels = 3, 8
        digits = Digits(*(tensor[:256] for tensor in vars(digits).values()))
    arguments.out.mkdir(parents=True, exist_ok=True)

    trainings = {
        name: [train(name, channels, digits, epochs, seed) for seed in range(arguments.seeds)] for name in NETWORKS
    }
    resnet, odenet = trainings["ResNet"][0].net, trainings["ODE-Net"][0].net
    found = costs(resnet, odenet, digits)
    state_errors = errors_of_the_state(odenet, digits)
    test_errors = [test_error(with_solver(odenet, tolerance, "direct"), digits) for tolerance in TOLERANCES]
    report = "\n".join([*table_of_networks(trainings), "", *table_of_tolerances(found, state_errors, test_errors)])
    (arguments.out / "odenet.txt").write_text(report + "\n", encoding="utf-8")
    path = arguments.out / "odenet.png"
    draw(path, trainings, found, state_errors)
    losses = trainings["ODE-Net"][0].losses
    print(report)
    print(f"loss from {losses[0]:.3g} to {losses[-1]:.3g}; picture: {path}")


if __name__ == "__main__":
    main()
