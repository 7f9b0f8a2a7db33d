"""The classes that a user's SDE may derive from, and the kinds of SDE there are."""

from __future__ import annotations

from torch import nn

SDE_TYPES = ("ito", "stratonovich")
NOISE_TYPES = ("general", "additive", "scalar", "diagonal", "commutative")


class BaseSDE(nn.Module):
    """An SDE dY = f(t, Y) dt + g(t, Y) dW as a module: derive from it and define `f` and `g`.

    With a state of shape [batch, d], `f(t, y)` returns [batch, d], and `g(t, y)`, by the type of the noise:

    - "diagonal": [batch, d], each element its own noise and a function of its own element of the state alone;
    - "scalar": [batch, d, 1], one noise for the whole state;
    - "additive": [batch, d, m], not a function of the state;
    - "commutative": [batch, d, m], whose columns g_j satisfy (∂g_j/∂y) g_k = (∂g_k/∂y) g_j;
    - "general": [batch, d, m].

    Args:
        noise_type: one of these.
        sde_type: "ito" or "stratonovich", the calculus in which the equation is meant.

    Raises:
        ValueError: there is no such type.
    """

    def __init__(self, noise_type: str, sde_type: str) -> None:
        super().__init__()
        self.noise_type: str = check_noise_type(noise_type)
        self.sde_type: str = check_sde_type(sde_type)


class SDEIto(BaseSDE):
    """A `BaseSDE` in Itô's calculus."""

    def __init__(self, noise_type: str) -> None:
        super().__init__(noise_type, "ito")


class SDEStratonovich(BaseSDE):
    """A `BaseSDE` in Stratonovich's calculus."""

    def __init__(self, noise_type: str) -> None:
        super().__init__(noise_type, "stratonovich")


def check_noise_type(noise_type: object) -> str:
    """One of `NOISE_TYPES`.

    Raises:
        ValueError: it is not.
    """
    if noise_type not in NOISE_TYPES:
        raise ValueError(f"noise_type must be one of {', '.join(map(repr, NOISE_TYPES))}, got {noise_type!r}")
    return str(noise_type)


def check_sde_type(sde_type: object) -> str:
    """One of `SDE_TYPES`.

    Raises:
        ValueError: it is not.
    """
    if sde_type not in SDE_TYPES:
        raise ValueError(
            f"sde_type must be 'ito' or 'stratonovich', got {sde_type!r}: it is the calculus in which the equation is "
            "meant"
        )
    return str(sde_type)
