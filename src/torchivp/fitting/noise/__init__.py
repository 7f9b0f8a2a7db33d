"""Noise models: how data scatter around the predictions of a model."""

from __future__ import annotations

from torchivp.checks import did_you_mean
from torchivp.fitting.noise.continuous import Combined, Laplace, Lognormal, Normal, Proportional, StudentT
from torchivp.fitting.noise.counts import NegativeBinomial, Poisson
from torchivp.fitting.noise.model import NoiseModel

__all__ = [
    "NOISE_MODELS",
    "Combined",
    "Laplace",
    "Lognormal",
    "NegativeBinomial",
    "NoiseModel",
    "Normal",
    "Poisson",
    "Proportional",
    "StudentT",
    "find_noise",
]

NOISE_MODELS: dict[str, NoiseModel] = {
    model.name: model
    for model in (
        Normal(),
        Lognormal(),
        Proportional(),
        Combined(),
        Laplace(),
        StudentT(),
        Poisson(),
        NegativeBinomial(),
    )
}
"""The noise models by name."""


def find_noise(spec: str | NoiseModel) -> NoiseModel:
    """The noise model called `spec`, such as "lognormal", or `spec` itself if it is one, such as StudentT(df=3).

    Raises:
        ValueError: there is no noise of that name; the message lists those there are.
        TypeError: `spec` is neither a name nor a noise model.
    """
    if isinstance(spec, NoiseModel):
        return spec
    if not isinstance(spec, str):
        raise TypeError(
            "noise must be a name, such as 'normal', or an instance of a noise model, such as StudentT(df=3), "
            f"not {spec!r}"
        )
    if spec not in NOISE_MODELS:
        hint = did_you_mean(spec.replace("-", "_").replace(" ", "_"), NOISE_MODELS)
        raise ValueError(f"unknown noise {spec!r}.{hint} The noise models are {', '.join(NOISE_MODELS)}")
    return NOISE_MODELS[spec]
