"""A fit result made by hand, with the interface of `torchivp.fitting.FitResult`: for tests of pictures and reports."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import torch

import torchivp
from torchivp.fitting import Dataset, Estimate, Trajectory
from torchivp.fitting.noise import find_noise
from torchivp.fitting.quantities import Quantity
from torchivp.fitting.results.residual_checks import judge
from torchivp.models import LotkaVolterra, Model

TABLE = np.loadtxt(Path(__file__).parent.parent / "examples/data/lynx_hare.csv", delimiter=",", skiprows=1)
RATES = {"alpha": 0.547, "beta": 0.0281, "gamma": 0.801, "delta": 0.0241}
SIGMA = 0.24


class Decay(Model):
    """One quantity that dies away."""

    states: ClassVar = {"amount": "drug in the blood"}
    units: ClassVar = {"amount": "mg"}
    default_state = (1.0,)

    def __init__(self):
        super().__init__(rate=0.3)

    def forward(self, t, y):
        return -self.rate * y


def estimate(name, kind, value, unit, description, error=0.06):
    """An estimate on the log scale whose relative error is `error`."""
    quantity = Quantity(name, kind, name, None, value, True, "log", 1.0, unit, description)
    return Estimate.build(quantity, value, error, 1.96 * error)


def dataset(trajectories, observables, states, time_name):
    """Data from `(name, t, values)` of each trajectory."""
    rows = [Trajectory(name, t, values, [f"line {i + 2}" for i in range(len(t))]) for name, t, values in trajectories]
    observe = dict(zip(observables, states, strict=True))
    return Dataset(rows, observables, states, time_name, "lynx_hare.csv", observe=observe)


@dataclass
class FakeFit:
    """A fit of lynx and hare whose numbers are close to the true ones."""

    model: torch.nn.Module = field(default_factory=lambda: LotkaVolterra(**RATES))
    data: Dataset = None
    starts: list = field(default_factory=lambda: [[33.9, 5.93]])
    noise: str = "lognormal"
    random: None = None
    notes: list = field(default_factory=list)
    attempts: list = field(default_factory=list)
    penalty: float = 0.0
    priors: dict = field(default_factory=dict)
    solver: str = "dopri5 in the step loop, rtol 1e-08, atol 1e-06"
    directions: list = field(default_factory=list)
    converged: bool = True
    message: str = "the gradient is zero to tolerance"
    call: str = "result = fit(LotkaVolterra(), data)"
    warnings: list = field(default_factory=list)
    nll: float = 134.97
    aic: float = 285.94
    aicc: float = 290.3
    bic: float = 299.8
    n_data: int = 42
    iterations: int = 31
    solves: int = 63
    seconds: float = 1.9

    def __post_init__(self):
        if self.data is None:
            self.data = dataset(
                [("", TABLE[:, 0], TABLE[:, 1:].copy())], ["hare", "lynx"], ["prey", "predator"], "year"
            )
        names = list(self.data.observables)
        self.observed_states = self.data.states
        self.levels = SimpleNamespace(noises=[find_noise(self.noise) for _ in names])
        initial = zip(self.model.states, self.starts[0], strict=True)
        self.estimates = [
            *(estimate(name, "parameter", value, "1/year", f"rate {name}") for name, value in RATES.items()),
            *(
                estimate(f"{name}(1900)", "initial state", value, "", f"initial value: {name}", 0.09)
                for name, value in initial
            ),
            *(estimate(f"sigma({name})", "sigma", SIGMA, "", "log-scale noise", 0.15) for name in names),
        ]
        self.free_names = [entry.name for entry in self.estimates if entry.kind != "sigma"]
        self.n_free = len(self.estimates)
        self.rss = {name: 1.3 for name in names}
        rng = np.random.default_rng(3)
        self.correlation = np.corrcoef(rng.normal(size=(len(self.free_names), 14)))
        self.covariance = self.correlation * 0.01

    @property
    def verdict(self):
        return judge(self)

    def determined(self):
        return self.directions

    def __getitem__(self, name):
        return next(entry for entry in self.estimates if entry.name == name)

    def predict(self, t, trajectory=0):
        start = torch.tensor(self.starts[trajectory], dtype=torch.float64)
        first = float(self.data.trajectories[trajectory].t[0])
        if t[-1] == first:
            return start.numpy()[None]
        times = torch.as_tensor(t, dtype=torch.float64)
        return torchivp.solve_ivp(self.model, (first, float(t[-1])), start, t_eval=times).y.detach().numpy()

    def observe(self, t, trajectory=0):
        return self.predict(t, trajectory)[:, [list(self.model.states).index(state) for state in self.observed_states]]

    def observable_band(self, t, trajectory=0):
        curve = self.observe(t, trajectory)
        return curve * math.exp(-0.15), curve * math.exp(0.15)

    def band(self, t, trajectory=0):
        curve = self.predict(t, trajectory)
        return curve * math.exp(-0.15), curve * math.exp(0.15)

    def prediction_band(self, t, trajectory=0):
        curve = self.observe(t, trajectory)
        return curve * math.exp(-0.55), curve * math.exp(0.55)

    def residuals(self, trajectory=0):
        data = self.data.trajectories[trajectory]
        order = [list(self.model.states).index(state) for state in self.observed_states]
        return (np.log(data.values) - np.log(self.predict(data.t, trajectory)[:, order])) / SIGMA

    def to_json(self, path=None):
        text = json.dumps({"nll": self.nll, "estimates": [asdict(entry) for entry in self.estimates]})
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text


def several_trajectories(count):
    """A fit of one decaying quantity, seen in `count` trajectories with a gap each."""
    rng = np.random.default_rng(1)
    t = np.linspace(0.0, 8.0, 9)
    starts = [[float(start)] for start in rng.uniform(3, 9, count)]
    trajectories = []
    for index, (start,) in enumerate(starts):
        values = start * np.exp(-0.3 * t + SIGMA * rng.normal(size=9))
        values[3] = np.nan
        trajectories.append((f"patient {index + 1}", t, values[:, None]))
    return FakeFit(model=Decay(), data=dataset(trajectories, ["concentration"], ["amount"], "hours"), starts=starts)
