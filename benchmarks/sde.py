"""Stochastic differential equations: torchivp against torchsde, and against a bare loop."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torchsde
from torch import Tensor, nn

import torchivp
from benchmarks.harness import Timing, compare


class GeometricBrownianMotion(nn.Module):
    """dX = mu X dt + sigma X dW, in either calculus."""

    noise_type = "diagonal"

    def __init__(self, sde_type: str) -> None:
        super().__init__()
        self.sde_type = sde_type
        self.mu = nn.Parameter(torch.tensor(0.1))
        self.sigma = nn.Parameter(torch.tensor(0.2))

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return self.mu * y

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return self.sigma * y

    def exact(self, y0: Tensor, W: Tensor) -> Tensor:
        """The solution at time 1 on a path that ends at W."""
        drift = self.mu - 0.5 * self.sigma**2 if self.sde_type == "ito" else self.mu
        return y0 * torch.exp(drift + self.sigma * W)


@dataclass(frozen=True)
class SDECase:
    """One call of both libraries: geometric Brownian motion, diagonal noise, single precision, from time 0 to 1.

    Attributes:
        method: the method.
        sde_type: the calculus.
        batch: the number of paths.
        steps: the number of steps.
        target: the ratio that the library sets itself; None for none.
        adjoint: whether the gradient of the parameters by `sdeint_adjoint` is part of the call.
        bare: whether the other side is a loop without a library.
        counter: whether torchivp draws counter-based noise.
    """

    method: str
    sde_type: str
    batch: int
    steps: int
    target: float | None = None
    adjoint: bool = False
    bare: bool = False
    counter: bool = False

    @property
    def name(self) -> str:
        what = ", adjoint" if self.adjoint else ", counter" if self.counter else ""
        return f"sde: {self.method}{what}, {self.batch} x {self.steps}"


CASES = [
    SDECase("euler", "ito", 1024, 1000, bare=True),
    SDECase("euler", "ito", 1024, 1000, 8.0),
    SDECase("milstein", "ito", 1024, 1000, 5.0),
    SDECase("srk", "ito", 1024, 1000, 5.0),
    SDECase("midpoint", "stratonovich", 1024, 1000),
    SDECase("heun", "stratonovich", 1024, 1000),
    SDECase("reversible_heun", "stratonovich", 1024, 1000, 5.0),
    SDECase("reversible_heun", "stratonovich", 1024, 1000, 4.0, adjoint=True),
    SDECase("midpoint", "stratonovich", 1024, 1000, adjoint=True),
    SDECase("euler", "ito", 1024, 1000, counter=True),
    SDECase("euler", "ito", 65536, 1000, 15.0),
    SDECase("milstein", "ito", 65536, 1000, 15.0),
    SDECase("srk", "ito", 65536, 1000, 15.0),
    SDECase("euler", "ito", 65536, 1000, bare=True),
]

ADJOINT = {"reversible_heun": "adjoint_reversible_heun", "midpoint": "midpoint"}
"""The methods of the backward solves."""


@dataclass(frozen=True)
class SDELine:
    """What was measured.

    Attributes:
        case: the case.
        timing: the times of both.
        errors: the root mean square of the error at the last time, on a given path, of torchivp and of the other.
    """

    case: SDECase
    timing: Timing
    errors: tuple[float, float]

    def as_json(self) -> dict[str, Any]:
        return {"name": self.case.name, **asdict(self.case), **asdict(self.timing), "strong_errors": self.errors}


def measure_sde(case: SDECase, repeats: int) -> SDELine:
    """Time the case, and measure the error of both on a path."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = _bare(case) if case.bare else _call(case, torchsde)
        timing = compare(_call(case, torchivp), theirs, min(repeats, 3) if case.batch > 10_000 else repeats)
        errors = (_error(case, torchivp), float("nan") if case.bare else _error(case, torchsde))
    return SDELine(case, timing, errors)


def own_calls() -> dict[str, Callable[[], object]]:
    """What torchivp does in each case, by the name of the case."""
    return {case.name: _call(case, torchivp) for case in CASES}


def _call(case: SDECase, library: Any) -> Callable[[], object]:
    sde, y0 = GeometricBrownianMotion(case.sde_type), torch.ones(case.batch, 1)
    ts = torch.tensor([0.0, 1.0])
    ours = {"rng": "counter"} if case.counter and library is torchivp else {}

    def solve() -> object:
        with torch.no_grad():
            return library.sdeint(sde, y0, ts, method=case.method, dt=1.0 / case.steps, **ours)

    def differentiate() -> object:
        y = library.sdeint_adjoint(
            sde, y0, ts, method=case.method, adjoint_method=ADJOINT[case.method], dt=1.0 / case.steps
        )
        return torch.autograd.grad(y[-1].square().mean(), list(sde.parameters()))

    return differentiate if case.adjoint else solve


def _bare(case: SDECase) -> Callable[[], object]:
    sde, y0, dt = GeometricBrownianMotion(case.sde_type), torch.ones(case.batch, 1), 1.0 / case.steps

    def solve() -> object:
        with torch.no_grad():
            y, root, t = y0, math.sqrt(dt), torch.tensor(0.0)
            for _ in range(case.steps):
                y = y + sde.f(t, y) * dt + sde.g(t, y) * torch.randn_like(y) * root
            return y

    return solve


def _error(case: SDECase, library: Any) -> float:
    """On a path that can be asked where it ends, in double precision."""
    sde, y0 = GeometricBrownianMotion(case.sde_type).double(), torch.ones(256, 1, dtype=torch.float64)
    path = library.BrownianInterval(
        0.0, 1.0, size=(256, 1), dtype=torch.float64, entropy=1, levy_area_approximation="space-time"
    )
    with torch.no_grad():
        y = library.sdeint(sde, y0, torch.tensor([0.0, 1.0]), bm=path, method=case.method, dt=1.0 / case.steps)[-1]
        return float((y - sde.exact(y0, path(0.0, 1.0))).square().mean().sqrt())
