"""Data simulated from a model, for tests of fits."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

import torchivp
from torchivp.models import Model


def simulate(
    model: Model,
    t: np.ndarray,
    y0: Sequence[float] | None = None,
    *,
    noise: float = 0.0,
    lognormal: bool = False,
    seed: int = 0,
) -> pd.DataFrame:
    """The states of the model at the times `t`, in columns named like them, with noise of a standard deviation."""
    start = torch.tensor(model.default_state if y0 is None else y0, dtype=torch.float64)
    with torch.no_grad():
        options = {"t_eval": t.tolist(), "method": "dopri8", "rtol": 1e-11, "atol": 1e-13}
        y = torchivp.solve_ivp(model, (float(t[0]), float(t[-1])), start, **options).y.numpy()
    errors = noise * np.random.default_rng(seed).standard_normal(y.shape)
    values = y * np.exp(errors) if lognormal else y + errors
    return pd.DataFrame({"time": t, **dict(zip(model.states, values.T, strict=True))})
