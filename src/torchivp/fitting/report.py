"""The report on a fit: a folder with one self-contained web page, its pictures and the numbers."""

from __future__ import annotations

import base64
import platform
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

import torchivp

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.figure import Figure

    from torchivp.fitting import FitResult

KINDS = {
    "parameter": "Parameters",
    "random": "Differences between trajectories",
    "derived": "Derived",
    "initial state": "Initial states",
    "sigma": "Noise",
}


def write_report(result: FitResult, folder: str | Path, command: str | None = None) -> Path:
    """Write a report on a fit.

    The folder receives `index.html`, a page that needs neither the network nor any other file; the pictures in it,
    `fit.png`, `residuals.png`, `phase.png` (models of two states or more) and `correlation.png` (two estimates or
    more); and `result.json`. Files of the same names are overwritten.

    Args:
        result: the fit.
        folder: where to write; made if it does not exist.
        command: what the page shows as the way to repeat the fit; None for the call of `fit` in Python.

    Returns:
        The path of `index.html`.

    Raises:
        ImportError: jinja2 or matplotlib is missing.
    """
    environment = _environment()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    images = {}
    for name, figure in _figures(result).items():
        path = folder / f"{name}.png"
        figure.savefig(path)
        images[name] = base64.b64encode(path.read_bytes()).decode("ascii")
    result.to_json(folder / "result.json")
    page = folder / "index.html"
    text = environment.get_template("report.html").render(
        result=result,
        model=type(result.model).__name__,
        observed=_observed(result),
        groups={title: [entry for entry in result.estimates if entry.kind == kind] for kind, title in KINDS.items()},
        images=images,
        code=command or result.call,
        versions={"torchivp": torchivp.__version__, "torch": torch.__version__, "Python": platform.python_version()},
        date=datetime.now().astimezone(),
    )
    page.write_text(text, encoding="utf-8")
    return page


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


def _figures(result: FitResult) -> dict[str, Figure]:
    """The pictures that make sense for this fit, by name."""
    from torchivp.plot import plot_correlation, plot_fit, plot_phase, plot_residuals

    figures = {"fit": plot_fit(result), "residuals": plot_residuals(result)}
    if len(result.model.states) > 1:
        figures["phase"] = plot_phase(result)
    if len(result.free_names) > 1 and np.isfinite(np.asarray(result.correlation)).all():
        figures["correlation"] = plot_correlation(result)
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
