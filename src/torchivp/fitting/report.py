"""The report on a fit: a folder with one self-contained web page, its pictures and the numbers."""

from __future__ import annotations

import base64
import hashlib
import json
import platform
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

import torchivp

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup
    from matplotlib.figure import Figure

    from torchivp.fitting import FitResult, Profile, Progress

_DIRECTIONS = 6  # how many combinations the page shows, those that the data determine least
KINDS = {
    "parameter": "Parameters",
    "tensor": "Tensors",
    "random": "Differences between trajectories",
    "derived": "Derived",
    "initial state": "Initial states",
    "sigma": "Noise",
}


def write_report(
    result: FitResult,
    folder: str | Path,
    command: str | None = None,
    profiles: bool | Mapping[str, Profile] = False,
    interactive: bool = True,
    progress: bool | Progress = False,
) -> Path:
    """Write a report on a fit.

    The folder receives `index.html`, a page that needs neither the network nor any other file; the pictures in it,
    `fit.png`, `residuals.png`, `phase.png` (models of two states or more), `correlation.png` (two estimates or
    more) and `profiles.png` (if there are profiles); and `result.json`. Files of the same names are overwritten.

    Args:
        result: the fit.
        folder: where to write; made if it does not exist.
        command: what the page shows as the way to repeat the fit; None for the call of `fit` in Python.
        profiles: True to compute the profile likelihoods of all free quantities and show them, or those that were.
        interactive: whether the pictures on the page answer the pointer, which takes 2 MB of it for plotly. Where
            that is not installed, or the reader's browser runs no scripts, the page shows the still ones.
        progress: who hears of profiles that are computed; see `FitResult.profiles`.

    Returns:
        The path of `index.html`.

    Raises:
        ImportError: jinja2 or matplotlib is missing.
    """
    environment = _environment()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shown = result.profiles(progress=progress) if profiles is True else dict(profiles or {})
    images = {}
    for name, figure in _figures(result, shown).items():
        path = folder / f"{name}.png"
        figure.savefig(path)
        images[name] = base64.b64encode(path.read_bytes()).decode("ascii")
    result.to_json(folder / "result.json")
    live, missing = _interactive(result, shown) if interactive else (None, "")
    page = folder / "index.html"
    text = environment.get_template("report.html").render(
        result=result,
        model=type(result.model).__name__,
        observed=_observed(result),
        limits=_limits(result),
        profiles=shown,
        directions=result.determined()[: -_DIRECTIONS - 1 : -1],
        groups={title: [entry for entry in result.estimates if entry.kind == kind] for kind, title in KINDS.items()},
        images=images,
        live=live,
        missing=missing,
        several=len(result.data.trajectories) > 1,
        prediction=_predicts(result),
        code=command or result.call,
        versions={"torchivp": torchivp.__version__, "torch": torch.__version__, "Python": platform.python_version()},
        date=datetime.now().astimezone(),
    )
    page.write_text(text, encoding="utf-8")
    return page


@dataclass(frozen=True)
class _Live:
    """What makes the pictures of a page answer the pointer.

    Attributes:
        counts: how many figures each picture consists of, by name.
        figures: the figures as JSON, and what stands for each colour on a dark page.
        plotly: plotly.js, compressed, as base64.
        script: what unpacks it and draws the figures.
        hashes: of both scripts, the only ones that the page may run.
    """

    counts: dict[str, int]
    figures: Markup
    plotly: str
    script: Markup
    hashes: str


def _interactive(result: FitResult, profiles: Mapping[str, Profile]) -> tuple[_Live | None, str]:
    """What makes the pictures answer the pointer; or None, and why not."""
    from markupsafe import Markup

    try:
        from torchivp.plot.interactive import interactive_pictures

        packed, plotly_hash = _packed_plotly()
    except ImportError:
        return None, "plotly is missing: pip install 'torchivp[fit]'"
    from torchivp.plot.style import NIGHT

    figures = interactive_pictures(result, profiles)
    each = ",".join(
        f"{json.dumps(name)}:[{','.join(str(figure.to_json()) for figure in parts)}]" for name, parts in figures.items()
    )
    # No "<" in JSON can end the element that it stands in, whatever the names are.
    text = f'{{"night":{json.dumps(NIGHT)},"figures":{{{each}}}}}'.replace("<", r"\u003c")
    script = files("torchivp.fitting").joinpath("templates/report.js").read_text(encoding="utf-8")
    live = _Live(
        counts={name: len(parts) for name, parts in figures.items()},
        figures=Markup(text),
        plotly=packed,
        script=Markup(script),
        hashes=f"'sha256-{plotly_hash}' 'sha256-{_hash(script)}'",
    )
    return live, ""


@cache
def _packed_plotly() -> tuple[str, str]:
    """plotly.js, compressed, as base64; and its hash."""
    from plotly.offline import get_plotlyjs

    plotly = get_plotlyjs()
    return base64.b64encode(zlib.compress(plotly.encode(), 9)).decode("ascii"), _hash(plotly)


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _predicts(result: FitResult) -> bool:
    """Whether there are prediction bands, which values with standard deviations of their own have none of."""
    from torchivp.plot.contents import has_band

    trajectories = enumerate(result.data.trajectories)
    return any(has_band(result.prediction_band(series.t[:1], number)) for number, series in trajectories)


def _observed(result: FitResult) -> list[tuple[str, str]]:
    """What each column observes, in words."""
    words = []
    for name, state in zip(result.data.observables, result.observed_states, strict=True):
        if state is not None:
            words.append((name, f"the model’s {state} ({result.model.states[state]})"))
        else:
            spec = result.data.observe[name]
            words.append((name, spec if isinstance(spec, str) else "a function of states and parameters"))
    return words


def _limits(result: FitResult) -> list[str]:
    """How many values of each column are limits, in words; empty if none are."""
    words = []
    for k, name in enumerate(result.data.observables):
        sides = [series.censored[:, k] for series in result.data.trajectories if series.censored is not None]
        every = np.concatenate(sides) if sides else np.zeros(0)
        counts = {"below": int((every == -1).sum()), "above": int((every == 1).sum())}
        said = " and ".join(f"{count} {side}" for side, count in counts.items() if count)
        if said:
            words.append(f"of the {len(result.data.column(k))} values of {name}, known to lie beyond limits are {said}")
    return words


def _figures(result: FitResult, profiles: Mapping[str, Profile]) -> dict[str, Figure]:
    """The pictures that make sense for this fit, by name."""
    from torchivp.plot import plot_correlation, plot_fit, plot_phase, plot_profiles, plot_residuals, plot_starts

    figures = {"fit": plot_fit(result), "residuals": plot_residuals(result)}
    if len(result.model.states) > 1:
        figures["phase"] = plot_phase(result)
    if len(result.free_names) > 1 and np.isfinite(np.asarray(result.correlation)).all():
        figures["correlation"] = plot_correlation(result)
    if result.attempts:
        figures["starts"] = plot_starts(result)
    if profiles:
        figures["profiles"] = plot_profiles(profiles)
    return figures


def _environment() -> Environment:
    """The templates, with everything that is put into them escaped."""
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise ImportError("a report needs jinja2, which is missing: pip install 'torchivp[fit]'") from error
    environment = Environment(
        loader=PackageLoader("torchivp.fitting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = format_number
    environment.filters["capitalize_first"] = lambda text: text[:1].upper() + text[1:]
    return environment


def format_number(value: float, digits: int = 4) -> str:
    """A number to so many significant digits, with a true minus sign; a dash for what is not a number."""
    if not np.isfinite(value):
        return "–"
    whole = 10**digits - 0.5 <= abs(value) < 1e6  # digits before the point are not rounded away
    text = f"{value:.0f}" if whole else f"{value:#.{digits}g}".removesuffix(".")
    return text.replace("-", "−")
