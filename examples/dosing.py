"""Estimate the clearance of a drug in three patients, each with its own doses and its own blood samples.

The drug is injected into the blood, goes to the tissue and back, and is removed from the blood: a model with two
compartments. The doses are changes of the state at known times. The patients are the rows of a batch: each has its own
schedule, and times of its own at which it is measured. L-BFGS finds the clearances through the solve. Since the
equations are linear, there is a closed form to check all this against.

    python examples/dosing.py
    python examples/dosing.py --quick
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure

from torchivp import Scheduled, solve_ivp

PATIENTS = ("A", "B", "C")
CLEARANCE = torch.tensor([[6.0], [3.0], [1.6]], dtype=torch.float64)  # L/h, to be found
VOLUMES = torch.tensor([12.0, 25.0], dtype=torch.float64)  # L, of blood and tissue
EXCHANGE = 8.0  # L/h, between blood and tissue
NOISE = 0.12  # of a measured concentration, relative

NONE = float("nan")
DOSE_TIMES = torch.tensor(  # h; the shorter schedules are padded
    [[0.0, 8.0, 16.0, 24.0, 32.0, 40.0], [0.0, 12.0, 24.0, 36.0, NONE, NONE], [0.0, 24.0, NONE, NONE, NONE, NONE]],
    dtype=torch.float64,
)
DOSES = torch.tensor(  # mg
    [[150.0] * 6, [200.0, 150.0, 150.0, 150.0, NONE, NONE], [250.0, 180.0, NONE, NONE, NONE, NONE]],
    dtype=torch.float64,
)
SAMPLES = [  # h; no number of samples is asked for
    torch.tensor([0.5, 2, 5, 7.9, 16.5, 20, 23.9, 32.5, 39.9, 41, 44, 47], dtype=torch.float64),
    torch.tensor([1, 4, 11.9, 13, 23.9, 25, 30, 35.9, 37, 46], dtype=torch.float64),
    torch.tensor([1, 6, 23.9, 24.5, 30, 36, 47], dtype=torch.float64),
]
END = 48.0  # h
SOLVER = {"method": "dopri8", "rtol": 1e-8, "atol": 1e-8}
BLUE, ORANGE, GREEN, INK, GREY = "#0072B2", "#D55E00", "#009E73", "#222222", "#8A8A8A"


def compartments(t, amounts, clearance):
    """What is in blood and tissue, in mg, [patients, 2], and how it changes."""
    blood, tissue = (amounts / VOLUMES).split(1, dim=1)  # mg/L
    to_tissue = EXCHANGE * (blood - tissue)
    return torch.cat([-to_tissue - clearance * blood, to_tissue], dim=1)


def inject(t, amounts, dose):
    """What is there after a dose, [patients, 1], into the blood."""
    return amounts + dose * torch.tensor([1.0, 0.0], dtype=torch.float64)


def concentrations(clearance, times, dose_times=DOSE_TIMES):
    """The concentrations in the blood, mg/L, [patients, times]; NaN where a patient has no more times."""
    solution = solve_ivp(
        compartments,
        (0.0, END),
        torch.zeros(len(PATIENTS), 2, dtype=torch.float64),
        t_eval=times,
        args=(clearance,),
        batch_dims=1,
        events=Scheduled(dose_times, inject, DOSES),
        **SOLVER,
    )
    return solution.y[..., 0] / VOLUMES[0]


def closed_form(clearance, times, dose_times=DOSE_TIMES):
    """The same by the matrix exponential: each dose adds exp((t - its time) M) (dose, 0) after its time."""
    rows = []
    for patient, t in enumerate(times):
        out = clearance[patient] / VOLUMES[0]
        over, back = EXCHANGE / VOLUMES
        matrix = torch.stack([torch.cat([-over - out, back[None]]), torch.stack([over, -back])])
        concentration = torch.zeros_like(t)
        for at, dose in zip(dose_times[patient], DOSES[patient], strict=True):
            if not at.isnan():
                since = (t - at).clamp(min=0.0)[:, None, None]
                remaining = torch.linalg.matrix_exp(since * matrix)[:, 0, 0]
                concentration = concentration + torch.where(t >= at, dose / VOLUMES[0] * remaining, 0.0)
        rows.append(concentration)
    return rows


def together(rows):
    """The rows one after the other, without padding."""
    return torch.cat([row[~row.isnan()] for row in rows])


def largest_differences():
    """The solve against the closed form: concentrations, derivatives by the clearances and by the times of doses."""
    found = []
    for compute in (concentrations, closed_form):
        clearance = CLEARANCE.clone().requires_grad_()
        dose_times = DOSE_TIMES.clone().requires_grad_()
        values = together(compute(clearance, SAMPLES, dose_times))
        slopes = torch.autograd.grad(values.log().sum(), (clearance, dose_times))
        found.append((values.detach(), *(slope.nan_to_num() for slope in slopes)))
    return [((one - other).abs().max() / other.abs().max()).item() for one, other in zip(*found, strict=True)]


def fit(measured, guess, iterations):
    """The clearances that fit best, with standard errors, and the loss before and after.

    The loss is the negative logarithm of the likelihood, but for a constant; its second derivatives are its curvature.
    """
    log_clearance = guess.log().requires_grad_()
    optimiser = torch.optim.LBFGS([log_clearance], max_iter=iterations, line_search_fn="strong_wolfe")
    losses = []

    def misfit(log_clearance):
        predicted = together(concentrations(log_clearance.exp(), SAMPLES))
        return ((predicted.log() - measured.log()) / NOISE).square().sum() / 2

    def closure():
        optimiser.zero_grad()
        loss = misfit(log_clearance)
        loss.backward()
        losses.append(loss.item())
        return loss

    optimiser.step(closure)
    curvature = torch.autograd.functional.hessian(misfit, log_clearance.detach())
    errors = curvature.reshape(len(PATIENTS), -1).inverse().diagonal().sqrt()[:, None]
    clearance = log_clearance.detach().exp()
    return clearance, errors * clearance, losses


def draw(path, measured, guess, clearance, errors, points):
    figure = Figure(figsize=(11, 4.4), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(PATIENTS), sharey=True)
    t = torch.linspace(0.0, END, points, dtype=torch.float64)
    # At a dose the solution jumps: times just before them make the line upright.
    times = [torch.cat([t, doses[1:] - 1e-9, doses[1:]]) for doses in DOSE_TIMES]
    times = [row[~row.isnan()].unique() for row in times]
    with torch.no_grad():
        before, after = concentrations(guess, times), concentrations(clearance, times)
    samples = measured.split([len(row) for row in SAMPLES])
    for i, (panel, name) in enumerate(zip(panels, PATIENTS, strict=True)):
        count = len(times[i])
        panel.semilogy(times[i], before[i, :count], color=GREY, lw=1.1, ls="--", label="before the fit")
        panel.semilogy(times[i], after[i, :count], color=BLUE, lw=1.8, label="after the fit")
        panel.semilogy(
            SAMPLES[i], samples[i], "o", ms=5.5, mfc="white", mec=ORANGE, mew=1.8, zorder=4, label="measured"
        )
        doses = DOSE_TIMES[i][~DOSE_TIMES[i].isnan()]
        floor = panel.get_xaxis_transform()
        panel.plot(doses, [0.03] * len(doses), "^", ms=6, color=GREEN, transform=floor, clip_on=False, label="dose")
        panel.set(
            title=f"Patient {name}: clearance {clearance[i].item():.2f} ± {errors[i].item():.2f} L/h",
            xlabel="time (h)",
            xlim=(-1.0, END),
            xticks=range(0, 49, 12),
            ylim=(0.4, 25),
            yticks=[0.5, 1, 2, 5, 10, 20],
            yticklabels=["0.5", "1", "2", "5", "10", "20"],
        )
        panel.minorticks_off()
        panel.spines[["top", "right"]].set_visible(False)
        panel.title.set(fontweight="bold", fontsize=11)
    panels[0].set(ylabel="concentration in the blood (mg/L)")
    figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, ncols=4, loc="outside lower center")
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer iterations and a coarser picture")
    parser.add_argument("--out", type=Path, default=Path("."), help="the folder for the picture")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    differences = largest_differences()
    print(
        "relative differences from the closed form: concentrations {:.1e}, their derivatives with respect to "
        "clearances {:.1e} and times of doses {:.1e}".format(*differences)
    )

    exact = together(closed_form(CLEARANCE, SAMPLES))
    noise = torch.randn(exact.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    measured = exact * torch.exp(NOISE * noise)
    guess = torch.full_like(CLEARANCE, 4.0)
    clearance, errors, losses = fit(measured, guess, iterations=5 if arguments.quick else 50)
    for name, *numbers in zip(PATIENTS, *(x[:, 0].tolist() for x in (clearance, errors, CLEARANCE)), strict=True):
        print("patient {}: clearance {:.3f} ± {:.3f} L/h, in truth {:.3f}".format(name, *numbers))
    path = arguments.out / "dosing.png"
    draw(path, measured, guess, clearance, errors, points=100 if arguments.quick else 500)
    print(f"loss from {losses[0]:.3g} to {losses[-1]:.3g}; picture: {path}")
    if max(differences) > 1e-6 or not ((clearance - CLEARANCE).abs() < 4 * errors).all():
        raise SystemExit("the solve or the fit is wrong")


if __name__ == "__main__":
    main()
