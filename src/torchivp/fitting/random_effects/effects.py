"""Which quantities differ between trajectories: the argument `random` of `fit`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchivp.checks import did_you_mean
from torchivp.fitting.data import Dataset
from torchivp.fitting.levels import Levels
from torchivp.fitting.quantities import Quantities, Quantity, Scale

KINDS: dict[str, Scale] = {"normal": "linear", "lognormal": "log", "logitnormal": "logit"}
"""The distributions of values, by the scale on which they are normal."""

NOISES = ("normal", "lognormal", "proportional", "combined")
"""The noise for which there is a marginal likelihood."""


@dataclass(frozen=True)
class Effects:
    """The quantities that differ between trajectories.

    Attributes:
        entries: their places in theta, [q].
        quantities: they, with the values of the population.
        names: what reports call them.
    """

    entries: NDArray[np.intp]
    quantities: list[Quantity]

    @property
    def names(self) -> list[str]:
        """Their names."""
        return [quantity.name for quantity in self.quantities]

    @property
    def magnitudes(self) -> NDArray[np.float64]:
        """The sizes of typical changes, [q]."""
        return np.array([quantity.magnitude for quantity in self.quantities])

    def shifts(self, eta: NDArray[np.float64], n_free: int) -> NDArray[np.float64]:
        """What the effects [n_trajectories, q] move theta by in each trajectory, [n_trajectories, n_free]."""
        shifts = np.zeros((len(eta), n_free))
        shifts[:, self.entries] = eta
        return shifts


def read_kinds(random: Any, scale: Mapping[str, Scale], by: Mapping[str, str]) -> dict[str, Scale | None]:
    """The scale on which each of the random quantities is normal; None for the one on which it is estimated anyway.

    Args:
        random: names, or a dict from name to distribution, as the user gave them.
        scale: the scales of estimation that the user gave.
        by: the quantities with a value for each label of a column.

    Raises:
        TypeError: `random` is neither.
        ValueError: a distribution is unknown, or another argument says something else.
    """
    if random is None:
        return {}
    if isinstance(random, str) or not isinstance(random, Iterable):
        raise TypeError(
            f"random must be a list of names, or a dict such as random={{'ka': 'lognormal'}}, got {random!r}"
        )
    kinds = dict(random) if isinstance(random, Mapping) else dict.fromkeys(random, None)
    scales: dict[str, Scale | None] = {}
    for name, kind in kinds.items():
        if kind is not None and kind not in KINDS:
            raise ValueError(
                f"random gives {name} the distribution {kind!r}.{did_you_mean(str(kind), KINDS)} There are "
                f"{', '.join(KINDS)}"
            )
        if name in by:
            raise ValueError(
                f"random and by both name {name!r}: it has a value of its own for each label, or differs by chance; "
                "drop it from one"
            )
        scales[name] = None if kind is None else KINDS[kind]
        if kind is not None and scale.get(name, KINDS[kind]) != KINDS[kind]:
            raise ValueError(
                f"random says that {name} is {kind}, which is normal on the {KINDS[kind]} scale, and scale says "
                f"{scale[name]!r}: drop it from scale"
            )
    return scales


def find_effects(
    random: Mapping[str, Scale | None], quantities: Quantities, data: Dataset, levels: Levels
) -> Effects | None:
    """The random quantities of a fit; None if there are none.

    Raises:
        ValueError: there is no marginal likelihood for them; the message says why.
    """
    if not random:
        return None
    if len(data.trajectories) < 2:
        raise ValueError(
            "random says what differs between trajectories, and there is one: name the column that tells them apart, "
            "trajectory='subject'"
        )
    for noise in levels.noises:
        if noise.name not in NOISES:
            raise ValueError(
                f"random takes noise that is {', '.join(NOISES)}, got {noise.name}: there is no approximation of the "
                "marginal likelihood for it; use noise='normal', or by={name: column} for values that are fixed effects"
            )
    if not quantities.single.all():
        names = ", ".join(quantities.labels(~quantities.single))
        raise ValueError(
            f"random estimates single numbers, and there is {names} free too: hold tensors, by free=[...] without them "
            "or their requires_grad_(False)"
        )
    entries = []
    for name in random:
        own = [each for each in quantities.all if name in (each.name, each.key)]
        for each in own:
            _check(each, len(data.trajectories))
            entries.append(quantities.free.index(each))
    return Effects(np.array(entries), [quantities.free[j] for j in entries])


def _check(quantity: Quantity, n_trajectories: int) -> None:
    """Refuse a quantity of which there is no population value to be estimated."""
    name = quantity.name
    if quantity.trajectories is not None and quantity.kind == "initial state":
        raise ValueError(
            f"random names {quantity.key!r}, of which each trajectory has its own initial value: write "
            f"initial={{{quantity.key!r}: 'shared'}}, or leave it out of initial"
        )
    if quantity.trajectories is not None:
        raise ValueError(
            f"random names {name}, which belongs to {len(quantity.trajectories)} of {n_trajectories} trajectories: "
            "name what all have in common"
        )
    if not quantity.free:
        raise ValueError(
            f"random names {name}, whose value in the population is held: estimate it, drop it from fixed or name it "
            "in free"
        )
