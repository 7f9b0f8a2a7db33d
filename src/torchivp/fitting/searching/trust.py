"""Whether the numbers of a fit are those of the model: checks of the solves and their derivatives at the optimum."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from torchivp.fitting.levels import Levels
from torchivp.fitting.misfit import Misfit
from torchivp.fitting.parameters import TENSOR
from torchivp.fitting.predictions import Predictions
from torchivp.fitting.searching.linear_model import hoped_gain
from torchivp.fitting.searching.optimise import Likelihood, Weighing
from torchivp.fitting.solving.stretches import Accuracy
from torchivp.methods import find_method

SMALLEST_RTOL = 1e-13
"""Below this, rounding makes up the error of a solve."""

_FINE = 1e-7  # with this rtol or a smaller one, residuals as small as the error of the solver are none
_TOLERATED = 0.1  # how large the error of the solver may be, in sigmas
_LOOKS = 2000  # how often to look at the right-hand side in the span of a trajectory, to see what solves step over
_LOOKS_AT_ALL = 6000  # as often in all trajectories together
_DIFFERENCE = 1e-3  # the step of the differences with which derivatives are compared, in typical changes
_SEEN = 1e-3  # how much such a step must change all residuals together, in sigmas, to say something
_LITTLE_KNOWN = 2.0  # the standard error of a logarithm that may be on its way to minus infinity
_NO_WORSE = 0.01  # what a quantity may add to the likelihood that counts as nothing
_MUCH_LIKELIER = 3.0  # a logarithm of a ratio of likelihoods that hardly comes about by chance


@dataclass(frozen=True)
class Verdict:
    """What more accurate solves at the optimum showed.

    Attributes:
        sentences: what is wrong, in words; empty if nothing is.
        inaccurate: whether smaller tolerances would help.
    """

    sentences: list[str]
    inaccurate: bool = False


def check_solves(misfit: Misfit, levels: Levels, likelihood: Likelihood) -> Verdict:
    """Compare the solves at an optimum with more accurate ones, and with ones whose steps are short.

    Where the model fits its data exactly, even by fine solves, there is no noise to compare with, and nothing is found.
    """
    accuracy = misfit.accuracy
    if likelihood.at_floor and accuracy.rtol <= _FINE:
        return Verdict([])
    short = min(accuracy.max_step, _short_step(misfit))
    tight = replace(accuracy.scaled(max(1e-2, SMALLEST_RTOL / accuracy.rtol), 1e-2), max_steps=10 * accuracy.max_steps)
    found = _difference(misfit, levels, replace(tight, max_step=short), likelihood)
    if found is None:  # where the right-hand side jumps, the smaller tolerance may be out of reach
        found = _difference(misfit, levels, replace(accuracy, max_step=short, max_steps=tight.max_steps), likelihood)
    if found is None:
        return Verdict([f"the error of the solver could not be checked: {misfit.failure}"])
    sigmas, where = found
    if sigmas <= _TOLERATED:
        return Verdict([])
    alone = _difference(misfit, levels, tight, likelihood)
    if alone is None or alone[0] > 0.5 * _TOLERATED:
        sentence = (
            f"the error of the solver is not small against the noise: {sigmas:.2g} sigma in {where}: "
            "give a smaller rtol and atol"
        )
        return Verdict([sentence], inaccurate=True)
    sentence = (
        f"solves step over something short: with steps of at most {short:.3g} the model differs by {sigmas:.2g} sigma "
        f"in {where}: give the times at which inputs begin and end in jump_times, or max_step, at most the length of "
        "the shortest of them"
    )
    return Verdict([sentence])


def _short_step(misfit: Misfit) -> float:
    """The longest step that sees whatever lasts as long as a small part of the span of the data.

    A step sees what lasts longer than the widest gap between its evaluations.
    """
    series = misfit.data.trajectories
    looks = min(_LOOKS, max(_LOOKS // 10, _LOOKS_AT_ALL // len(series)))
    longest = max(each.t[-1] - each.t[0] for each in series)
    return float(longest / looks / find_method(misfit.accuracy.method).widest_gap)


def _difference(misfit: Misfit, levels: Levels, accuracy: Accuracy, likelihood: Likelihood) -> tuple[float, str] | None:
    """The largest change of a prediction at another accuracy, in sigmas, and where; None if that cannot be solved."""
    found = _found(likelihood)
    other = misfit.at_accuracy(accuracy).predictions(found.theta, derivatives=False)
    if other is None:
        return None
    sigmas = levels.distances(found, other, likelihood.sizes)
    worst, measured = int(sigmas.argmax()), found.measured
    row = misfit.data.trajectories[measured.trajectory[worst]].rows[measured.row[worst]]
    return float(sigmas[worst]), f"{misfit.data.observables[measured.observable[worst]]}, {row}"


def _found(likelihood: Likelihood) -> Predictions:
    assert likelihood.minimum.found is not None, "a finite likelihood has predictions"
    return likelihood.minimum.found


def check_derivatives(misfit: Misfit, levels: Levels, likelihood: Likelihood) -> list[str]:
    """Compare the Jacobian at an optimum with differences: what is wrong, in words; empty if nothing is.

    A parameter that acts through a comparison, such as a lag time, has an effect but no derivative. Only differences
    that are the same to both sides count: elsewhere they say nothing.
    """
    found = _found(likelihood)
    if found.jacobian.shape[1] < len(found.theta):  # there are too many, and the search had gradients of another way
        return []
    weights, probes = levels.weights(found, likelihood.sizes), misfit.quantities.probes()
    steps = _DIFFERENCE * np.stack(list(probes.values()))
    ends = misfit.predictions_at(found.theta + np.concatenate([steps, -steps]))
    wrong = []
    for j, (name, step) in enumerate(zip(probes, steps, strict=True)):
        both = ends[j], ends[j + len(steps)]
        if any(end is None for end in both):
            continue
        up, down = ((end.values - found.values) * weights for end in both if end is not None)
        slope = found.jacobian @ step * weights
        size = np.linalg.norm(up)
        smooth = np.linalg.norm(up + down) < 0.2 * size
        if size > _SEEN and smooth and np.linalg.norm(up - slope) > 0.5 * size:
            wrong.append(name)
    if not wrong:
        return []
    return [
        f"the model depends on {', '.join(wrong)} in a way that has no derivative, through a comparison perhaps: the "
        "search could not move it, and its standard error means nothing: hold it in fixed, or make the model smooth"
    ]


def held_by_constraints(misfit: Misfit, levels: Levels, likelihood: Likelihood) -> list[str]:
    """Whether a constraint holds the search back from a better place, in words; empty if none does.

    The search takes what violates a constraint for what cannot be solved. Where that is no comparison, or there are too
    many parameters for derivatives, it is not searched for the best place on it.
    """
    if not misfit.constraints or _found(likelihood).jacobian.shape[1] < len(misfit.quantities.free):
        return []
    gain, _ = hoped_gain(misfit, levels, _found(likelihood), likelihood.sizes)
    if gain <= _NO_WORSE:
        return []
    listed = ", ".join(constraint.expression.text for constraint in misfit.constraints)
    return [
        f"a constraint ({listed}) holds the estimates back: the likelihood grows beyond it, and what is reported is a "
        "place at the constraint, not the best one there. If it holds one quantity, give bounds instead, or "
        "tied={name: formula} for what it makes equal"
    ]


def quantities_at_zero(
    misfit: Misfit, levels: Levels, likelihood: Likelihood, errors: NDArray[np.float64]
) -> list[str]:
    """The names of the quantities that the search has driven to the bound of the log scale, zero.

    Those of which little is known, and without which the model explains the data as well.

    Args:
        misfit: model and data.
        levels: the noise.
        likelihood: the optimum.
        errors: the standard error of each quantity on the scale of estimation, [n_free].
    """
    names = []
    for j, quantity in enumerate(misfit.quantities.free):
        if not quantity.log or quantity.kind == TENSOR or quantity.lower > 0 or errors[j] < _LITTLE_KNOWN:
            continue
        theta = likelihood.minimum.theta.copy()
        theta[j] = -np.inf
        without = misfit.predictions(theta, derivatives=False)
        if without is None or not levels.possible(without):
            continue
        if levels.nll(without, likelihood.sizes) <= likelihood.nll + _NO_WORSE:
            names.append(quantity.name)
    return names


def worse_than_constant(misfit: Misfit, levels: Levels, likelihood: Likelihood) -> list[str]:
    """Of which observables a constant, their mean, explains clearly more than the model at an optimum, in words."""
    return [
        f"the model explains less of {name} than a constant would: this is a wrong optimum, which another "
        "start={name: value, ...} may avoid, or not the model of these data"
        for name, count, ratio in _against_constants(misfit, levels, likelihood)
        if 0.5 * count * np.log(ratio) > _MUCH_LIKELIER
    ]


def no_better_than_constant(misfit: Misfit, levels: Levels, likelihood: Likelihood) -> list[str]:
    """Of which other observables the model explains no more, counting what is estimated, in words."""
    estimated = misfit.quantities.single.sum() / len(misfit.data.observables)
    return [
        f"the model explains no more of {name} than a constant would: if {name} is not constant but for noise, "
        "give start={name: value, ...}"
        for name, count, ratio in _against_constants(misfit, levels, likelihood)
        if 0.5 * count * np.log(ratio) <= _MUCH_LIKELIER and ratio * (count - 1) >= max(count - estimated, 1)
    ]


def _against_constants(misfit: Misfit, levels: Levels, likelihood: Likelihood) -> Iterator[tuple[str, int, float]]:
    """The name of each observable, how many values it has, and how much more the model leaves than a constant does."""
    found = _found(likelihood)
    names, measured = misfit.data.observables, found.measured
    data = levels.transform(measured)
    plain = Weighing(levels.rough(np.ones(len(names))), np.ones(0))
    for k, (name, left) in enumerate(zip(names, plain.mean_squares(found), strict=True)):
        column = data[measured.of(k)]
        variance = column.var()
        if variance > 0 and left > 0:
            yield name, len(column), float(left / variance)
