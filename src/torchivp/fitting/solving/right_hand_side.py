"""The right-hand side of a model at many states and parameters at once, and whether autograd can follow it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, vmap

from torchivp.dual_numbers import DualArithmetic, dual_level, dual_numbers, parts
from torchivp.models.model import Model

Way = Literal["together", "columns", "mapped", "singly"]
"""How to call a model with many rows: once, if it takes batches, with parameters of shape [n] or [n, 1]; by torch.vmap;
or once for each row."""

REFUSALS = (RuntimeError, IndexError, ValueError, TypeError, NotImplementedError)
"""What a model raises that cannot be called in some way."""


def call_rows(model: Model, parameters: Mapping[str, Tensor], t: Tensor, y: Tensor, way: Way) -> Tensor:
    """The derivatives of many rows, [n, n_states].

    Args:
        model: the model.
        parameters: by name, [n, *shape] each.
        t: the time, 0-d, or [n].
        y: the states, [n, n_states].
        way: how to call the model.
    """
    named = dict(parameters)
    if way in ("together", "columns"):
        column = way == "columns"
        shaped = {name: value[:, None] if column and value.ndim == 1 else value for name, value in named.items()}
        return functional_call(model, shaped, (t[:, None] if column and t.ndim else t, y))
    times = t.expand(len(y))

    def one(of_row: dict[str, Tensor], time: Tensor, state: Tensor) -> Tensor:
        return functional_call(model, of_row, (time, state))

    if way == "mapped":
        # A time that all share is no batch, so that a model may look at its value.
        in_dims = (0, 0, 0) if t.ndim else (0, None, 0)
        return vmap(one, in_dims, randomness="different")(named, times if t.ndim else t, y)
    rows = range(len(y))
    return torch.stack([one({name: value[i] for name, value in named.items()}, times[i], y[i]) for i in rows])


def way_forwards(model: Model, time: Tensor) -> Way:
    """The fastest way to call a model with rows of dual numbers that gives what a call for each row gives.

    Args:
        model: the model.
        time: that of all rows, 0-d, or one for each of n_states + 1 rows.

    A model that indexes states as `y[..., i]` takes batches; one that treats all states alike does so with parameters
    as columns. Others may mix the rows up without an error, which shows in their values.
    """
    with dual_numbers():  # what the first of them makes torch import warns of itself
        pass
    count = len(model.states) + 1
    spread = torch.linspace(1.0, 1.5, count, dtype=torch.float64)
    with torch.no_grad(), dual_level(), DualArithmetic():
        states = model.initial_state() + spread[:, None]
        states = forward_ad.make_dual(states, states)
        parameters = {name: _spread(value, spread) for name, value in model.named_parameters()}
        try:
            singly = call_rows(model, parameters, time, states, "singly")
        except REFUSALS:
            return "singly"
        ways: tuple[Way, ...] = ("together", "columns", "mapped")
        for way in ways:
            try:
                rows = call_rows(model, parameters, time, states, way)
            except REFUSALS:
                continue
            if rows.shape == states.shape and all(
                _same(*pair) for pair in zip(parts(rows), parts(singly), strict=True)
            ):
                return way
    return "singly"


def _spread(value: Tensor, spread: Tensor) -> Tensor:
    """A parameter [*shape] times each of some numbers [n], with these as tangents, [n, *shape]."""
    shaped = spread.reshape(-1, *[1] * value.ndim)
    return forward_ad.make_dual(value * shaped, shaped.expand(len(spread), *value.shape).clone())


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a.double(), b.double(), rtol=1e-4, equal_nan=True)


def check_gradient(model: Model, parameters: Mapping[str, Tensor], y0: Tensor, times: list[float]) -> None:
    """Refuse a right-hand side that takes no float64, or whose dependence on state or parameters autograd loses.

    Args:
        model: the model.
        parameters: where to look, by name, [*shape] each.
        y0: a state, [n_states].
        times: some times.

    Raises:
        ValueError: the message says which, and how to write the model.
    """
    names = [*model.states, *parameters]
    sizes = [*[1] * len(y0), *(value.numel() for value in parameters.values())]
    at = torch.cat([y0, *(value.reshape(-1) for value in parameters.values())]).detach()
    at = torch.where(at == 0, 0.1, at)  # where much may vanish by chance

    def derivative(inputs: Tensor, time: float) -> Tensor:
        parts = inputs[len(y0) :].split(sizes[len(y0) :]) if parameters else ()
        named = {name: part.view(parameters[name].shape) for name, part in zip(parameters, parts, strict=True)}
        t = torch.tensor(time, dtype=inputs.dtype)
        return functional_call(model, named, (t, inputs[: len(y0)]))

    _check_precision(model, lambda dtype: derivative(at.to(dtype), times[0]))
    with torch.no_grad():
        before = torch.get_rng_state()
        again = _same(derivative(at, times[0]), derivative(at, times[0]))
        # Of what is dropped now and then, the same may be dropped twice.
        if not (again and torch.equal(torch.get_rng_state(), before)):
            raise ValueError(
                f"the right-hand side of {type(model).__name__} returns something else when it is called again with "
                "the same numbers, and a fit needs a function: call model.eval() if there is dropout in it"
            )
    for time in times:
        with torch.no_grad():
            moved = set(_moved_by(lambda inputs, time=time: derivative(inputs, time).double(), at, sizes))
        if not moved:
            continue
        leaf = at.clone().requires_grad_()
        try:
            with torch.enable_grad():
                seen = derivative(leaf, time)
                slopes = [torch.autograd.grad(each, leaf, retain_graph=True)[0] for each in seen if each.requires_grad]
            reason = ""
        except REFUSALS as error:
            slopes, reason = [], f" ({error})"
        dead = torch.stack(slopes).eq(0).all(0) if slopes else torch.ones(len(at), dtype=torch.bool)
        blocks = dead.split(sizes)
        lost = [names[i] for i in sorted(moved) if bool(blocks[i].all())]
        if lost:
            raise ValueError(
                f"the right-hand side of {type(model).__name__} depends on {', '.join(lost)}, but its derivative with "
                f"respect to that is lost{reason}: compute it with torch operations on t, y and the parameters alone, "
                "return torch.stack([...]) instead of torch.tensor([...]), and convert nothing to numbers or NumPy"
            )


def _check_precision(model: Model, derivative: Callable[[torch.dtype], Tensor]) -> None:
    """Refuse a model that can be called in float32 alone."""
    with torch.no_grad():
        try:
            derivative(torch.float64)
        except REFUSALS as error:
            try:
                derivative(torch.float32)
            except REFUSALS:
                raise error from None
            raise ValueError(
                f"a fit solves in float64, and the right-hand side of {type(model).__name__} takes only float32 "
                f"({error}): register its tensors, self.register_buffer(name, tensor), or make them float64"
            ) from error


def _moved_by(function, at: Tensor, sizes: Sequence[int]) -> Iterator[int]:
    """The numbers of the inputs, of these sizes, that move a function smoothly: as much to one side as to the other."""
    here, ends = function(at), np.cumsum(sizes)
    for i, (size, end) in enumerate(zip(sizes, ends.tolist(), strict=True)):
        step = torch.zeros_like(at)
        step[end - size : end] = 1e-3 * at[end - size : end].abs()
        up, down = function(at + step) - here, here - function(at - step)
        moved = torch.linalg.vector_norm(up)
        if moved > 1e-9 * torch.linalg.vector_norm(here) and torch.linalg.vector_norm(up - down) < 0.5 * moved:
            yield i
