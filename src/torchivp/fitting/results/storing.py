"""Fits in files: all of one, by pickle, or its numbers, as JSON."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import torchivp
from torchivp.fitting.results.residual_checks import Verdict
from torchivp.fitting.results.summary import FORMAT, Estimate, FitSummary
from torchivp.fitting.results.uncertainty import Direction
from torchivp.fitting.solving.elsewhere import portable

if TYPE_CHECKING:
    from torchivp.fitting.results.result import FitResult

_MAGIC = b"torchivp fit "  # then the format and the version of torchivp, a line


class StoredFit(FitSummary):
    """The numbers of a fit, read from JSON: attributes and methods are those of `FitSummary`."""


def save(result: FitResult, path: str | Path) -> Path:
    """Store a fit; see `FitResult.save`."""
    try:
        body = pickle.dumps(portable(result), protocol=5)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"the fit cannot be stored: {_obstacle(result, error)}. result.to_json(path) stores its numbers"
        ) from error
    path = Path(path)
    path.write_bytes(_MAGIC + f"{FORMAT} {torchivp.__version__}\n".encode() + body)
    return path


def _obstacle(result: FitResult, error: Exception) -> str:
    """Which part of a fit pickle refuses, and what to do about it."""
    if not _can_be_stored(type(result.model)):
        return (
            f"the class of the model, {type(result.model).__qualname__}, cannot be imported: define it at the top of a "
            "module"
        )
    for column, observed in result.data.observe.items():
        if not _can_be_stored(observed):
            return (
                f"{column} observes a function that cannot be imported: write it as text, or define it at the top of a "
                "module"
            )
    for each in result.misfit.quantities.assignments:
        if not _can_be_stored(each):
            return (
                f"the formula of {', '.join(each.targets)} is a function that cannot be imported: write it as text, or "
                "define it at the top of a module"
            )
    if not _can_be_stored(result.misfit.inputs):
        return "schedule holds a function that cannot be imported: define it at the top of a module"
    return str(error)


def _can_be_stored(part: Any) -> bool:
    try:
        pickle.dumps(part)
    except (pickle.PicklingError, AttributeError, TypeError):
        return False
    return True


def load(path: str | Path) -> FitResult | StoredFit:
    """Read a fit; see `FitResult.load`."""
    path = Path(path)
    content = path.read_bytes()
    if content.startswith(_MAGIC):
        return _from_pickle(path, content)
    if content.lstrip()[:1] == b"{":
        return _from_json(path, content)
    raise ValueError(f"{path} holds no fit: FitResult.load reads what result.save(path) or result.to_json(path) wrote")


def _from_pickle(path: Path, content: bytes) -> FitResult:
    line, _, body = content.removeprefix(_MAGIC).partition(b"\n")
    number, _, version = line.decode().partition(" ")
    if number != str(FORMAT):
        raise ValueError(
            f"{path} is of format {number}, which torchivp {version} wrote, and this one reads format {FORMAT}: fit "
            "again"
        )
    try:
        return pickle.loads(body)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{path} needs what is not there: {error}. Import or define the class of its model, and its functions, "
            "where they were when it was stored"
        ) from error
    except (pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _from_json(path: Path, content: bytes) -> StoredFit:
    try:
        plain = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if plain.get("format") != FORMAT:
        raise ValueError(
            f"{path} is no fit of format {FORMAT}: FitResult.load reads what result.save(path) or result.to_json(path) "
            "wrote"
        )
    numbers = {each.name: plain[each.name] for each in fields(StoredFit) if each.name in plain}
    infinite = {name: math.inf for name in ("penalty", "aicc") if plain[name] is None}
    infinite |= {name: math.nan for name in ("aic", "bic", "n_effective") if plain[name] is None}
    if plain["aic"] is None:
        infinite["aicc"] = math.nan
    arrays = {name: _array(plain[name]) for name in ("sizes", "theta", "covariance", "correlation")}
    return StoredFit(
        **{**numbers, **infinite, **arrays}
        | {
            "model_name": plain["model"],
            "noises": plain["noise"],
            "estimates": [_estimate(each) for each in plain["estimates"]],
            "verdict": Verdict(plain["verdict"], plain["good"], plain["findings"]),
            "directions": [_direction(each) for each in plain["directions"]],
        }
    )


def _array(plain: Any) -> NDArray[np.float64]:
    return np.array(plain, dtype=np.float64)  # None becomes NaN


def _estimate(plain: Mapping[str, Any]) -> Estimate:
    """An estimate; numbers that were not finite are NaN if it was held, else infinite."""
    ends = {"lower": -math.inf, "upper": math.inf, "standard_error": math.inf, "scale_error": math.inf}
    lost = {name: math.nan if plain["held"] else end for name, end in ends.items() if plain[name] is None}
    return Estimate(**{name: value for name, value in {**plain, **lost}.items() if name != "held"})


def _direction(plain: Mapping[str, Any]) -> Direction:
    return Direction(**{**plain, "standard_error": plain["standard_error"] or math.inf})
