"""Drift and diffusion as methods see them: functions of states laid out as [rows, size]."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from torchivp.torch_func import may_be_tracked, own_graph


class Terms(ABC):
    """The SDE dY = f(t, Y) dt + g(t, Y) dW on states [rows, size].

    Of diagonal noise, `g` is [rows, size] and its product with the increment of the path is elementwise; of all others
    `g` is [rows, size, channels].

    Attributes:
        sde_type: "ito" or "stratonovich".
        noise_type: "diagonal", "scalar", "additive", "commutative" or "general".
        size: the number of elements of the state in one row.
        channels: the number of independent noises in one row.
        args: further arguments of the user's functions.
        together: whether drift and diffusion at the same state cost less if they are evaluated at once, by `f_and_g`.
    """

    sde_type: str
    noise_type: str
    size: int
    channels: int
    args: tuple[Any, ...]
    together: bool = False

    @abstractmethod
    def with_args(self, args: Sequence[Any]) -> Terms:
        """The same SDE with other arguments."""

    @abstractmethod
    def f(self, t: Tensor, y: Tensor) -> Tensor:
        """The drift, [rows, size]."""

    @abstractmethod
    def g(self, t: Tensor, y: Tensor) -> Tensor:
        """The diffusion, [rows, size] or [rows, size, channels]."""

    def f_and_g(self, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Both."""
        return self.f(t, y), self.g(t, y)

    def g_prod(self, t: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """The diffusion times `v` of shape [rows, channels], [rows, size]."""
        return self.prod(self.g(t, y), v)

    def f_and_g_prod(self, t: Tensor, y: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The drift, and the diffusion times `v`."""
        return self.f(t, y), self.g_prod(t, y, v)

    @property
    def diagonal(self) -> bool:
        """Whether each element of the state has its own noise."""
        return self.noise_type == "diagonal"

    def prod(self, g: Tensor, v: Tensor) -> Tensor:
        """The product of a value of the diffusion with `v`."""
        if g.ndim == 2:
            return g * v
        if g.shape[2] == 1:
            return g.squeeze(2) * v
        return torch.bmm(g, v.unsqueeze(2)).squeeze(2)

    def column(self, g: Tensor, j: int) -> Tensor:
        """The diffusion of the noise `j`, [rows, size], from a value of a diffusion that is not diagonal."""
        return g[:, :, j]

    def units(self, like: Tensor) -> Iterator[Tensor]:
        """For each noise the weights that choose it, [rows, channels], with the rows, dtype and device of `like`."""
        for j in range(self.channels):
            unit = like.new_zeros(len(like), self.channels)
            unit[:, j] = 1.0
            yield unit

    def g_and_derivative(self, t: Tensor, y: Tensor, directions: _Directions) -> tuple[Tensor, Tensor]:
        """The diffusion g and its derivative with respect to `y` in directions that are a function of g, shaped alike.

        Of diagonal noise the derivative is ∂g/∂y times the directions, elementwise; of all others the sum over the
        noises of the derivatives of the columns, each in its own direction. It can be differentiated itself.
        """
        g, derivative = _differentiated(lambda x: (self.g(t, x),), y, directions, self.diagonal)
        return g, derivative

    def f_g_and_derivative(self, t: Tensor, y: Tensor, directions: _Directions) -> tuple[Tensor, Tensor, Tensor]:
        """The drift, and what `g_and_derivative` returns."""
        if not self.together:
            return (self.f(t, y), *self.g_and_derivative(t, y, directions))
        f, g, derivative = _differentiated(lambda x: self.f_and_g(t, x), y, directions, self.diagonal)
        return f, g, derivative

    def prod_and_derivative(self, t: Tensor, y: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The diffusion times `v`, and the derivative of that with respect to `y` in its own direction.

        For noise that is not diagonal. The derivative can be differentiated itself.
        """
        v = _ordinary(v)
        prod, derivative = _differentiated(lambda x: (self.g_prod(t, x, v),), y, lambda prod: prod, False)
        return prod, derivative

    def f_prod_and_derivative(self, t: Tensor, y: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The drift, and what `prod_and_derivative` returns."""
        if not self.together:
            return (self.f(t, y), *self.prod_and_derivative(t, y, v))
        v = _ordinary(v)
        f, prod, derivative = _differentiated(lambda x: self.f_and_g_prod(t, x, v), y, lambda prod: prod, False)
        return f, prod, derivative


def _ordinary(v: Tensor) -> Tensor:
    """The tensor, or a copy that autograd takes, if it was made in inference mode."""
    if not v.is_inference():
        return v
    with torch.inference_mode(False):
        return v.clone()


_Directions = Callable[[Tensor], Tensor]
_Evaluate = Callable[[Tensor], tuple[Tensor, ...]]


def _differentiated(evaluate: _Evaluate, y: Tensor, directions: _Directions, elementwise: bool) -> tuple[Tensor, ...]:
    """The values of functions of the state, and the derivative of the last, in directions that depend on its value.

    If `elementwise`, each element of the last depends on the same element of the state alone. If it has a third
    dimension, that of the noises, the derivatives in the directions of the same number are summed over them.
    """
    if may_be_tracked():
        return _transformed(evaluate, y, directions, elementwise)
    try:
        with _Watched(y, evaluate) as watched:
            along = directions(watched.values[-1])
            return *watched.values, watched.slope(along) if elementwise else watched.derivative(along)
    except RuntimeError as error:
        if "Inference tensors cannot be saved" not in str(error):
            raise
        raise RuntimeError(
            "this method differentiates the diffusion, which uses a tensor made within torch.inference_mode(): make it "
            "outside, solve within torch.no_grad() instead, or choose a method without derivatives"
        ) from error


def _transformed(evaluate: _Evaluate, y: Tensor, directions: _Directions, elementwise: bool) -> tuple[Tensor, ...]:
    """The same within transforms or forward derivatives."""
    if elementwise:

        def swapped(x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            values = evaluate(x)
            return values[-1], values[:-1]

        found: tuple[Any, ...] = torch.func.vjp(swapped, y, has_aux=True)
        last, pull_back, others = found
        return *others, last, pull_back(directions(last).conj())[0].conj()
    values = evaluate(y)
    along = directions(values[-1])
    if along.ndim == 2:
        return *values, _along(lambda x: evaluate(x)[-1], y, along)
    slopes = [
        _along(lambda x, j=j: evaluate(x)[-1][:, :, j], y, direction) for j, direction in enumerate(along.unbind(2))
    ]
    return *values, torch.stack(slopes).sum(0)


def _along(function: Callable[[Tensor], Tensor], y: Tensor, direction: Tensor) -> Tensor:
    """The derivative in a direction, by two reverse passes: forward mode cannot be nested in forward mode."""
    outer: tuple[Any, ...] = torch.func.vjp(function, y)
    value, pull_back = outer
    inner: tuple[Any, ...] = torch.func.vjp(lambda u: pull_back(u)[0], torch.zeros_like(value))
    return inner[1](direction)[0]


class _Watched:
    """Functions of a state that autograd watches, within a `with`, also where it watches nothing else.

    Args:
        y: the state.
        evaluate: the functions, of which the last is to be differentiated.

    Attributes:
        values: their values, which have a history only where somebody asks for it, like the derivatives.
    """

    def __init__(self, y: Tensor, evaluate: _Evaluate) -> None:
        self._grad_enabled = torch.is_grad_enabled()
        self._contexts: tuple[Any, ...] = (torch.inference_mode(False), torch.enable_grad(), own_graph())
        self._given = y
        self._evaluate = evaluate

    def __enter__(self) -> _Watched:
        for context in self._contexts:
            context.__enter__()
        try:
            y = self._y = self._leaf()
            values = self._evaluate(y)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        self._last = values[-1]
        self._differentiable = self._grad_enabled and (y is self._given or _has_other_sources(values, y))
        self.values = values if self._differentiable else tuple(map(Tensor.detach, values))
        return self

    def __exit__(self, *error: object) -> None:
        for context in reversed(self._contexts):
            context.__exit__(*error)

    def _leaf(self) -> Tensor:
        """The state itself, or a copy of it if nobody else watches it."""
        y = self._given
        if self._grad_enabled and y.requires_grad:
            return y
        return _ordinary(y).detach().requires_grad_()

    def slope(self, along: Tensor) -> Tensor:
        """The derivative of the last function times `along`, if it acts elementwise."""
        slope = None
        if self._last.requires_grad:
            (slope,) = torch.autograd.grad(
                self._last, self._y, along.conj(), create_graph=self._differentiable, allow_unused=True
            )
        return torch.zeros_like(self._given) if slope is None else slope.conj().resolve_conj()

    def derivative(self, along: Tensor) -> Tensor:
        """The derivative of the last function in the direction `along`; of several noises the sum."""
        values, directions = ((x,) if x.ndim == 2 else x.unbind(2) for x in (self._last, along))
        # The gradient of <u, value> is linear in u, by the transpose of the derivative: its own gradient is the latter.
        u = torch.zeros_like(values[0], requires_grad=True)
        pulled = [
            torch.autograd.grad(value, self._y, u, create_graph=True, allow_unused=True)[0]
            if value.requires_grad
            else None
            for value in values
        ]
        pairs = [(p, d) for p, d in zip(pulled, directions, strict=True) if p is not None and p.requires_grad]
        if not pairs:
            return torch.zeros_like(self._given)
        (total,) = torch.autograd.grad(
            [p for p, _ in pairs], u, [d for _, d in pairs], create_graph=self._differentiable, allow_unused=True
        )
        return torch.zeros_like(self._given) if total is None else total


def _has_other_sources(values: Sequence[Tensor], y: Tensor) -> bool:
    """Whether autograd knows tensors besides the leaf `y` that the `values` are computed from."""
    if any(value.requires_grad and value.is_leaf and value is not y for value in values):
        return True
    left = [value.grad_fn for value in values if value.grad_fn is not None]
    seen = set(left)
    while left:
        for node, _ in left.pop().next_functions:
            if node is None or node in seen:
                continue
            if node.name() == "torch::autograd::AccumulateGrad" and getattr(node, "variable", y) is not y:
                return True
            seen.add(node)
            left.append(node)
    return False


class StratonovichTerms(Terms):
    """An Itô SDE written in Stratonovich's calculus: the drift less half of the sum of (∂g_j/∂y) g_j."""

    sde_type = "stratonovich"

    def __init__(self, ito: Terms) -> None:
        self._ito = ito
        self.noise_type, self.size, self.channels = ito.noise_type, ito.size, ito.channels
        self.args = ito.args

    def with_args(self, args: Sequence[Any]) -> StratonovichTerms:
        return StratonovichTerms(self._ito.with_args(args))

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return self._ito.f(t, y) if self.noise_type == "additive" else self.f_and_g(t, y)[0]

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return self._ito.g(t, y)

    def f_and_g(self, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if self.noise_type == "additive":
            return self._ito.f_and_g(t, y)
        f, g, correction = self._ito.f_g_and_derivative(t, y, lambda g: g)
        return f - 0.5 * correction, g

    def g_prod(self, t: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return self._ito.g_prod(t, y, v)

    def f_and_g_prod(self, t: Tensor, y: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if self.noise_type == "additive":
            return self._ito.f_and_g_prod(t, y, v)
        f, g = self.f_and_g(t, y)
        return f, self.prod(g, v)
