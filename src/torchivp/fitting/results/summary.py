"""What a fit says in numbers and words: estimates, measures of fit, verdict, as a table, text, JSON or HTML."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import torchivp
from torchivp.fitting.data import import_pandas
from torchivp.fitting.quantities import Kind, Quantity, Scale
from torchivp.fitting.results.residual_checks import Verdict
from torchivp.fitting.results.uncertainty import Direction

FORMAT = 1
"""The number of the format of JSON and of stored fits."""

_PLAIN = (
    *(
        "nll",
        "penalty",
        "aic",
        "aicc",
        "bic",
        "n_data",
        "n_free",
        "n_effective",
        "converged",
        "message",
        "warnings",
        "notes",
    ),
    *("iterations", "solves", "seconds", "free_names", "call"),
)
"""What is JSON already."""


@dataclass(frozen=True)
class Estimate:
    """A parameter, an initial state, a size of the noise, or what follows from these.

    Attributes:
        name: such as "alpha", "prey(1900)", "sigma(hare)".
        kind: "parameter", "tensor", "initial state", "random", "sigma" or "derived".
        value: the estimate, or the value at which it was held; the norm of a tensor.
        standard_error: of the value, by the delta method; NaN if it was held or is a tensor, or where bounds and
            constraints hold it; infinite if the data do not determine it.
        scale: the scale of estimation, "log", "linear" or "logit".
        scale_error: the standard error on that scale.
        lower: lower end of the 95 % interval; but for sigmas, it is symmetric on the scale of estimation.
        upper: its upper end.
        free: whether it was estimated.
        unit: its unit; may be empty.
        description: its meaning.
    """

    name: str
    kind: Kind
    value: float
    standard_error: float
    scale: Scale
    scale_error: float
    lower: float
    upper: float
    free: bool
    unit: str
    description: str

    @property
    def held(self) -> bool:
        """Whether it has no standard error: it was held, bounds or constraints hold it, or it is a tensor."""
        return math.isnan(self.standard_error)

    @staticmethod
    def build(quantity: Quantity, value: float, scale_error: float, reach: float) -> Estimate:
        """The estimate of a quantity with its interval, from its standard error and half the width on its scale."""
        at = quantity.to_scale(value) if quantity.free else value
        with np.errstate(over="ignore"):
            lower, upper = (quantity.from_scale(at + side) for side in (-reach, reach))
        return Estimate(
            quantity.name,
            quantity.kind,
            value,
            abs(quantity.slope(value)) * scale_error if np.isfinite(scale_error) else scale_error,
            quantity.scale,
            scale_error,
            lower,
            upper,
            quantity.free,
            quantity.unit,
            quantity.description,
        )

    @staticmethod
    def of_tensor(entry: Quantity, norm: float, shape: Sequence[int], free: bool) -> Estimate:
        """A tensor, of which this is an entry, by its norm; it has no interval."""
        size = " x ".join(map(str, shape))
        meaning = f"{entry.description}: norm of {size} numbers" if entry.description else f"norm of {size} numbers"
        return Estimate(
            *(entry.key, entry.kind, norm, math.nan, entry.scale, math.nan, math.nan, math.nan, free),
            entry.unit,
            meaning,
        )


@dataclass(repr=False, eq=False, kw_only=True)
class FitSummary:
    """The numbers of a fit, and what can be said of them without its model.

    `FitResult` is one, and so is what `FitResult.load` makes of JSON. Attributes are those of `FitResult`, and:

    Attributes:
        model_name: the name of the class of the model.
        source: where the data come from.
        observables: what each column observes, in words.
        noises: the kind of noise of each.
        fingerprint: what tells the data apart from others.
        directions: what `determined` returns.
    """

    estimates: list[Estimate]
    sizes: NDArray[np.float64]
    theta: NDArray[np.float64]
    nll: float
    penalty: float
    aic: float
    aicc: float
    bic: float
    rss: dict[str, float]
    n_data: int
    n_free: int
    n_effective: float
    converged: bool
    message: str
    warnings: list[str]
    notes: list[str]
    iterations: int
    solves: int
    seconds: float
    covariance: NDArray[np.float64]
    correlation: NDArray[np.float64]
    free_names: list[str]
    call: str
    verdict: Verdict
    model_name: str
    source: str
    observables: dict[str, str]
    noises: dict[str, str]
    fingerprint: str
    directions: list[Direction]

    def __getitem__(self, name: str) -> Estimate:
        """The estimate called `name`.

        Raises:
            KeyError: there is none of that name; the message lists the names.
        """
        for estimate in self.estimates:
            if estimate.name == name:
                return estimate
        raise KeyError(f"no estimate is called {name!r}; there are {', '.join(each.name for each in self.estimates)}")

    @property
    def noise(self) -> str:
        """The kind of noise, or the kinds of the observables in their order."""
        kinds = list(self.noises.values())
        return kinds[0] if len(set(kinds)) == 1 else ", ".join(kinds)

    @property
    def eigenvalues(self) -> NDArray[np.float64]:
        """Those of the Fisher information in typical changes, the largest first, [n]; see `determined`."""
        return np.array([direction.eigenvalue for direction in self.directions])

    def determined(self) -> list[Direction]:
        """The combinations of quantities that the data determine, well, weakly or not, the best determined first.

        These are the eigenvectors of the Fisher information about the free quantities on their scales of estimation, in
        typical changes; those that a bound holds are left out. Eigenvalues over many powers of ten are what J. J.
        Waterfall et al. call sloppy, "Sloppy-model universality class and the Vandermonde matrix", Physical Review
        Letters 97 (2006). As text, each says what it means: `for each in result.determined(): print(each)`.
        """
        return self.directions

    def to_frame(self) -> Any:
        """The estimates as a pandas DataFrame with a row for each, by name.

        Its columns are "estimate", "standard_error", "lower" and "upper" (of the 95 % interval), "scale", "unit",
        "kind", "free" and "description".

        Raises:
            ImportError: pandas is not installed.
        """
        pandas = import_pandas()
        names = ("value", "standard_error", "lower", "upper", "scale", "unit", "kind", "free", "description")
        columns = {name: [getattr(each, name) for each in self.estimates] for name in names}
        index = pandas.Index([each.name for each in self.estimates], name="name")
        return pandas.DataFrame(columns, index=index).rename(columns={"value": "estimate"})

    def dictionary(self) -> dict[str, Any]:
        """The result as plain numbers, strings, lists and dicts; what is not finite is None."""
        plain = {
            "format": FORMAT,
            "torchivp": torchivp.__version__,
            "model": self.model_name,
            "source": self.source,
            "fingerprint": self.fingerprint,
            "observables": self.observables,
            "noise": self.noises,
            "estimates": [dataclasses.asdict(each) | {"held": each.held} for each in self.estimates],
            "sizes": self.sizes.tolist(),
            "theta": self.theta.tolist(),
            "rss": self.rss,
            "covariance": self.covariance.tolist(),
            "correlation": self.correlation.tolist(),
            "directions": [dataclasses.asdict(direction) for direction in self.directions],
            "verdict": self.verdict.sentence,
            "good": self.verdict.good,
            "findings": self.verdict.findings,
        }
        return _finite({**plain, **{name: getattr(self, name) for name in _PLAIN}})

    def to_json(self, path: str | Path | None = None) -> str:
        """The result as JSON, also written to the file `path` if one is given."""
        text = json.dumps(self.dictionary(), indent=2, ensure_ascii=False)
        if path is not None:
            Path(path).write_text(text + "\n", encoding="utf-8")
        return text

    def summary(self) -> str:
        """The result as text: the estimates in a table, the measures of fit, the verdict and the warnings.

        Raises:
            ImportError: pandas is not installed.
        """
        table = import_pandas().DataFrame(
            {
                "": [estimate.name for estimate in self.estimates],
                "estimate": [estimate.value for estimate in self.estimates],
                "std. error": [estimate.standard_error for estimate in self.estimates],
                "95 % from": [estimate.lower for estimate in self.estimates],
                "to": [estimate.upper for estimate in self.estimates],
                "unit": [_unit(estimate) for estimate in self.estimates],
            }
        )
        warnings = [f"warning: {warning}" for warning in self.warnings]
        text = table.to_string(index=False, float_format="{:.6g}".format, na_rep="")
        end = [self._measures(), self.message, self.verdict.sentence]
        return "\n".join([self._head(), "", text, "", *end, *warnings])

    def _head(self) -> str:
        fewer = math.isfinite(self.n_effective) and abs(self.n_effective - self.n_free) > 0.05
        effective = f" that count as {round(self.n_effective, 1):g}" if fewer else ""
        return (
            f"{self.model_name} fitted to {self.source}: {self.n_data} values, {self.noise} noise, "
            f"{self.n_free} free quantities{effective}"
        )

    def _measures(self) -> str:
        return f"negative log-likelihood {self.nll:.6g}, AIC {self.aic:.6g}, AICc {self.aicc:.6g}, BIC {self.bic:.6g}"

    def __repr__(self) -> str:
        values = ", ".join(f"{estimate.name}={estimate.value:.6g}" for estimate in self.estimates)
        converged = "converged" if self.converged else "not converged"
        return f"{type(self).__name__}({values}; nll={self.nll:.6g}, {converged})"

    def _repr_html_(self) -> str:
        """What a notebook shows: the summary as a table."""
        heads = ("", "estimate", "std. error", "95 % interval", "unit", "meaning")
        rows = "".join(_row(_cells(estimate), "td") for estimate in self.estimates)
        warnings = "".join(f"<li>{escape(warning)}</li>" for warning in self.warnings)
        end = "<br>".join(escape(each) for each in (self._measures(), self.message, self.verdict.sentence))
        return (
            f"<div><p><b>{escape(self._head())}</b></p>"
            f"<table><thead>{_row(heads, 'th')}</thead><tbody>{rows}</tbody></table>"
            f"<p>{end}</p>{f'<ul>{warnings}</ul>' if warnings else ''}</div>"
        )


def _row(cells: Sequence[str], tag: str) -> str:
    """A row of a table in HTML."""
    written = (f'<{tag} style="text-align:left">{escape(each)}</{tag}>' for each in cells)
    return f"<tr>{''.join(written)}</tr>"


def _unit(estimate: Estimate) -> str:
    held = not estimate.free and estimate.kind != "derived"
    return f"{estimate.unit} (held)" if held else estimate.unit


def _cells(estimate: Estimate) -> list[str]:
    """An estimate as a row of a table."""
    known = not math.isnan(estimate.standard_error)
    error = f"{estimate.standard_error:.2g}" if known else ""
    interval = f"{estimate.lower:.4g} to {estimate.upper:.4g}" if known else ""
    return [estimate.name, f"{estimate.value:.6g}", error, interval, _unit(estimate), estimate.description]


def text_of(observed: Any) -> str:
    """What an observable is, in words."""
    return observed if isinstance(observed, str) else getattr(observed, "__name__", "a function")


def _finite(value: Any) -> Any:
    """The value with None for numbers that are not finite, at any depth."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
