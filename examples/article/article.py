"""What the four experiments share: the article's loop, its rivals, tables and pictures."""

import argparse
import copy
import time
from pathlib import Path

import pandas
import torch
from matplotlib.figure import Figure
from torch.utils.data import DataLoader

import torchivp
from torchivp import fit, train
from torchivp.data import TrajectoryDataset, collate
from torchivp.nn import NeuralODE
from torchivp.training import Video

try:
    import torchdiffeq
except ImportError:
    torchdiffeq = None

SEED = 0
COLOURS = ("#0072B2", "#D55E00", "#009E73")
STYLES = ({"ls": "-", "lw": 1.2}, {"ls": (0, (1.5, 2.5)), "lw": 2.8})


def arguments(doc, **flags):
    """The options of an experiment, and its folder for pictures."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a short run, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("."), help="the folder for the pictures")
    for flag, meaning in flags.items():
        parser.add_argument(f"--{flag}", action="store_true", help=meaning)
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    return chosen


def in_single_precision(data):
    """The data as the article has them."""
    series = [data[i] for i in range(len(data))]
    return TrajectoryDataset([each.t.float() for each in series], [each.y.float() for each in series], names=data.names)


def article_loop(odeint, model, data, *, epochs, lr, batch_size, step_size):
    """The article's training loop. Returns the loss of every epoch, and the seconds of processor time it took."""
    torch.manual_seed(SEED)
    loader = DataLoader(data, batch_size=batch_size, shuffle=True, collate_fn=collate)
    optimiser = torch.optim.Adam(model.parameters(), lr=lr)
    began, losses = time.process_time(), []
    for _ in range(epochs):
        total = 0.0
        for t, y, y0 in loader:
            optimiser.zero_grad()
            # torchdiffeq draws straight lines between the steps, and torchivp only where it is asked to.
            options = {"step_size": step_size, "interp": "linear"}
            predicted = odeint(model, y0, t, method="rk4", options=options)
            loss = torch.nn.functional.mse_loss(predicted.transpose(0, 1), y)
            loss.backward()
            optimiser.step()
            total += loss.item()
        losses.append(total / len(loader))
    return losses, time.process_time() - began


def run_loops(start, data, **settings):
    """The article's loop with torchivp, and with torchdiffeq where it is installed: the same data, the same seed."""
    model = copy.deepcopy(start)
    losses, seconds = article_loop(torchivp.odeint, model, data, **settings)
    print(f"the article's loop, torchivp:    loss from {losses[0]:.4g} to {losses[-1]:.4g}; {seconds:.1f} s")
    if torchdiffeq is None:
        print("the article's loop, torchdiffeq: skipped, it is not installed: pip install torchdiffeq")
        return model, losses
    theirs = copy.deepcopy(start)
    their_losses, their_seconds = article_loop(torchdiffeq.odeint, theirs, data, **settings)
    apart = max(abs(a - b) / max(b, 1.0) for a, b in zip(losses, their_losses, strict=True))
    print(f"the article's loop, torchdiffeq: loss from {their_losses[0]:.4g} to {their_losses[-1]:.4g}; ", end="")
    print(f"{their_seconds:.1f} s; the losses differ by at most {apart:.1g}")
    return model, losses


def record_training(path, start, data, *, epochs, lr, batch_size, step_size):
    """The same training in one call, with its video."""
    torch.manual_seed(SEED)
    layer = NeuralODE(copy.deepcopy(start), output="trajectory", method="rk4", step_size=step_size)
    video = Video(path, every=max(1, epochs // 30), fps=8)
    history = train(layer, data, epochs=epochs, lr=lr, batch_size=batch_size, record=video)
    print(f"the same by train():             loss from {history.losses[0]:.4g} to {history.losses[-1]:.4g}")


def run_fit(start, data, truth, adam, **options):
    """Estimate the parameters by maximum likelihood, and print them beside the truth and what Adam found."""
    names = list(truth)
    tables, fixed = [], {}
    for i in range(len(data)):
        t, y, y0 = data[i]
        table = pandas.DataFrame(y.numpy(), columns=data.names).assign(time=t.numpy(), series=str(i))
        table.loc[0, data.names] = float("nan")  # the first state is known, and no observation
        fixed |= {f"{name}(0)[{i}]": float(value) for name, value in zip(data.names, y0, strict=True)}
        tables.append(table)
    began = time.process_time()
    result = fit(
        start,
        pandas.concat(tables),
        trajectory="series",
        free=names,
        fixed=fixed,
        start={name: start.values()[name] for name in names},
        sigma="shared",
        **options,
    )
    seconds = time.process_time() - began
    print(f"fit: {'converged' if result.converged else result.message}; {seconds:.1f} s")
    print(f"{'':10}{'truth':>9}{'start':>9}{'Adam':>9}{'off, s.e.':>11}{'fit':>12}{'s.e.':>9}{'off, s.e.':>11}")
    for name in names:
        error, value, found = result[name].standard_error, truth[name], adam.values()[name]
        print(f"{name:10}{value:9.4f}{start.values()[name]:9.4f}{found:9.4f}{(found - value) / error:11.1f}", end="")
        print(f"{result[name].value:12.6f}{error:9.2g}{(result[name].value - value) / error:11.2f}")
    return result


def trajectory(model, series, points=400):
    """The model's trajectory from the first state of a series, at many times."""
    t = torch.linspace(float(series.t[0]), float(series.t[-1]), points, dtype=series.t.dtype)
    with torch.no_grad():
        return t, torchivp.odeint(model, series.y0, t, rtol=1e-6, atol=1e-8)


def draw(path, series, names, rows, plane=(0, 1)):
    """Time series and phase plane of one trajectory, a row for each model: `rows` is {title: [(label, model), ...]}."""
    figure = Figure(figsize=(10, 3.0 * len(rows)), dpi=80, layout="constrained")
    panels = figure.subplots(len(rows), 2, width_ratios=(2.2, 1), squeeze=False)
    for (title, models), (time_axes, phase_axes) in zip(rows.items(), panels, strict=True):
        for k, name in enumerate(names):
            time_axes.plot(series.t, series.y[:, k], "o", ms=3, alpha=0.5, color=COLOURS[k], label=f"{name}, data")
        phase_axes.plot(*(series.y[:, k] for k in plane), "o", ms=3, alpha=0.4, color="#8A8A8A")
        for (label, model), style in zip(models, STYLES, strict=False):
            t, y = trajectory(model, series)
            for k in range(len(names)):
                time_axes.plot(t, y[:, k], **style, color=COLOURS[k], label=label if k == 0 else None)
            phase_axes.plot(*(y[:, k] for k in plane), **style, color="#222222")
        time_axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
        time_axes.set(xlabel="t")
        phase_axes.set(xlabel=names[plane[0]], ylabel=names[plane[1]])
        for axes, limited in ((time_axes, range(len(names))), (phase_axes, plane[1:])):
            low, high = (float(edge) for edge in torch.aminmax(series.y[:, list(limited)]))
            axes.set_ylim(low - 0.25 * (high - low), high + 0.25 * (high - low))
            axes.spines[["top", "right"]].set_visible(False)
        time_axes.legend(frameon=False, fontsize=8, ncols=5, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path)
    print(f"picture: {path}")
