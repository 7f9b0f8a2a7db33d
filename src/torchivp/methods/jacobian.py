"""The derivative of a right-hand side with respect to the state: as matrices, or as products with one.

A matrix is what the user's own function gives, if there is one (`func.jacobian`), or found by autograd: a row for each
backward pass, several rows where the user says that they share no column (`func.sparsity`).

Outside of function transforms plain autograd finds them, and not `torch.func`: func may then call
`torch.autograd.grad` itself, as Hamiltonian networks and continuous flows do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchivp.methods.method import FlatFunc
from torchivp.sparsity import Sparsity
from torchivp.torch_func import as_leaf, inside_transform, own_graph, pull_back, without_derivatives, without_graph

_POWERS = 4
"""How many products with a Jacobian show its spectral radius."""


class Derivatives(NamedTuple):
    """Slopes and their derivatives at some times and states.

    Attributes:
        slope: [rows, size].
        jacobian: the matrices d slope_i / d y_j, [rows, size, size].
        by_time: the derivatives by time, [rows, size]; None if the slopes were not computed from it.
        seen: whether the slopes were computed from the state or the time where autograd sees it.
    """

    slope: Tensor
    jacobian: Tensor
    by_time: Tensor | None
    seen: bool = True

    def detached(self) -> Derivatives:
        """The same without history."""
        by_time = None if self.by_time is None else self.by_time.detach()
        return Derivatives(self.slope.detach(), self.jacobian.detach(), by_time, self.seen)


def jacobians(func: FlatFunc, t: Tensor, y: Tensor, by_autograd: bool = False) -> Tensor:
    """The matrices d func_i / d y_j at real `y`, [rows, size], of each row: [rows, size, size], without history.

    `by_autograd` says to find them so whatever the user gave, as derivatives of solutions need them exactly.
    """
    given = given_jacobian(func)
    if given is not None and not by_autograd:
        return given(t.detach().clone(), y.detach()).detach()
    return _differentiated(_at(func, t), (y.detach(),), False, sparsity_of(func)).jacobian.detach()


def sparse_jacobians(func: FlatFunc, sparsity: Sparsity, t: Tensor, y: Tensor, by_autograd: bool) -> Tensor:
    """Their entries at these places, [rows, n], without history; not within a function transform."""
    given = given_jacobian(func)
    if given is not None and not by_autograd:
        return sparsity.entries(given(t.detach().clone(), y.detach()).detach())
    leaves, slopes = _on_leaves(_at(func, t), (y.detach(),))
    if not slopes.requires_grad:
        return y.new_zeros(len(y), len(sparsity.rows))
    seeds = sparsity.seeds(y).unsqueeze(1).expand(-1, *y.shape)
    pull = partial(torch.autograd.grad, slopes, leaves, retain_graph=True, materialize_grads=True)
    return sparsity.values(pull_back(lambda v: pull(v)[0], seeds)).detach()


def given_jacobian(func: FlatFunc) -> FlatFunc | None:
    """What the user gave for the matrices, called as `func` is."""
    return getattr(func, "jacobian", None)


def sparsity_of(func: FlatFunc) -> Sparsity | None:
    """Where the user says that they may have entries."""
    return getattr(func, "sparsity", None)


def slopes_and_jacobians(func: Callable[[Tensor], Tensor], y: Tensor) -> tuple[Tensor, Tensor]:
    """The slopes at real `y`, [rows, size], and the matrix of each row's derivatives, [rows, size, size].

    Both without history.
    """
    found = _differentiated(func, (y.detach(),), recorded=False).detached()
    return found.slope, found.jacobian


def derivatives(func: FlatFunc, t: Tensor, y: Tensor, recorded: bool) -> Derivatives:
    """The slopes at real `y`, [rows, size], with all their derivatives, from one evaluation of `func`.

    `t` is [rows, 1], or 0-d for a single row. They are without history, unless they are to be `recorded` as functions
    of all that they depend on.
    """
    inputs, sparsity = (y, t) if recorded else (y.detach(), t.detach()), sparsity_of(func)
    given = None if recorded else given_jacobian(func)
    found = _differentiated(lambda y, t: func(t, y), inputs, recorded, sparsity, given)
    return found if recorded else found.detached()


def _differentiated(
    func: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    recorded: bool,
    sparsity: Sparsity | None = None,
    given: FlatFunc | None = None,
) -> Derivatives:
    """The slopes at the inputs, the state and perhaps the time, and their derivatives.

    A row of slopes depends on its own state and time alone, so that the gradient of an element summed over the rows has
    the derivatives of all of them. The matrices are those `given` for the time and the state, if there are such.
    """
    (rows, size), like = inputs[0].shape, inputs[0]
    sparsity = None if inside_transform() else sparsity  # what derivatives by time need is not to be had within one
    unit = torch.eye(size, dtype=like.dtype, device=like.device) if sparsity is None else sparsity.seeds(like)
    unit = unit.unsqueeze(1).expand(len(unit), rows, size)
    if inside_transform():
        slopes, pull, *_ = torch.func.vjp(func, *inputs)
    else:
        recorded = recorded and torch.is_grad_enabled()
        leaves, slopes = _on_leaves(func, _of_one_depth(inputs) if recorded else inputs)
        if not slopes.requires_grad:
            matrix = like.new_zeros(rows, size, size) if given is None else given(inputs[1], like)
            return Derivatives(slopes.clone(), matrix, None, seen=False)
        pull = partial(torch.autograd.grad, slopes, leaves, retain_graph=True, create_graph=recorded, allow_unused=True)

    def joined(v: Tensor) -> Tensor:
        by_state, *by_time = pull(v)
        by_state = torch.zeros_like(v) if by_state is None else by_state
        return torch.cat((by_state, *(x.reshape(-1, 1) for x in by_time if x is not None)), 1)

    if given is not None:
        matrix, by_time = given(inputs[1], like), _by_time(pull, slopes)
    elif sparsity is not None:
        products = pull_back(lambda v: joined(v)[:, :size], unit)
        matrix = sparsity.dense(sparsity.values(products))
        by_time = _by_time(pull, slopes) if len(inputs) > 1 else None
    else:
        found = pull_back(joined, unit).transpose(0, 1)
        matrix, by_time = found[:, :, :size], found[:, :, size] if found.shape[2] > size else None
    # func may use its memory again.
    return Derivatives((slopes if recorded else without_graph(slopes)).clone(), matrix, by_time)


def _of_one_depth(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    """The state and the time, of values as they are, and both with the history of the state.

    Autograd goes through all of the graph that lies above the shallowest of what it differentiates by. A time that is
    chosen by the solver is a leaf, below every step before it.
    """
    y, *times = inputs
    return [y, *(_with_history(t.reshape(-1, 1), y).reshape(t.shape) for t in times)]


def _with_history(x: Tensor, y: Tensor) -> Tensor:
    """`x` with the history of `y` besides its own; both are of [rows, n]."""
    return torch.cat((x, y.to(x.dtype)), 1)[:, : x.shape[1]]


def _by_time(pull: Callable[..., Any], slopes: Tensor) -> Tensor | None:
    """The derivatives by time, from one product with a seed, of which they are the derivative."""
    recorded = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad(), own_graph():
        seed = _with_history(torch.zeros_like(slopes).requires_grad_(), slopes)
        _, *by_time = pull(seed, create_graph=True)
        if not by_time or by_time[0] is None or not by_time[0].requires_grad:
            return None
        return torch.autograd.grad(by_time[0].sum(), seed, create_graph=recorded)[0]


class Linearisation:
    """Products of vectors with the Jacobians of `func` at real `y`, [rows, size], and with their transposes.

    One evaluation of `func`, and its graph, serve all products.

    Attributes:
        seen: whether autograd sees that `func` depends on anything.
    """

    def __init__(self, func: FlatFunc, t: Tensor, y: Tensor):
        (self._y,), self._slope = _on_leaves(_at(func, t), (y.detach(),))
        self._pulled: Tensor | None = None
        self.seen = self._slope.requires_grad
        with torch.inference_mode(False), own_graph():
            self._seed = torch.zeros_like(self._slope, requires_grad=True)
            if self.seen:
                # A function of the seed, linear: its derivative is the Jacobian.
                (self._pulled,) = torch.autograd.grad(
                    self._slope, self._y, self._seed, create_graph=True, allow_unused=True
                )

    def times(self, v: Tensor) -> Tensor:
        """The Jacobians times `v`, [rows, size]."""
        if self._pulled is None or not self._pulled.requires_grad:
            return torch.zeros_like(v)
        return torch.autograd.grad(self._pulled, self._seed, v, retain_graph=True)[0]

    def radius(self) -> Tensor:
        """About the spectral radii of the Jacobians, [rows]: by a few powers of them, so rather too small."""
        v = _direction(self._y.detach())
        for _ in range(_POWERS):
            v = v / torch.linalg.vector_norm(v, dim=1, keepdim=True).clamp(min=torch.finfo(v.dtype).tiny)
            v = self.times(v)
        return torch.linalg.vector_norm(v, dim=1)

    def transposed_times(self, v: Tensor) -> Tensor:
        """The transposes of the Jacobians times `v`, [rows, size]."""
        if self._pulled is None:
            return torch.zeros_like(v)
        return torch.autograd.grad(self._slope, self._y, v, retain_graph=True)[0]


def autograd_sees(func: FlatFunc, t: Tensor, y: Tensor) -> np.ndarray:
    """In which rows autograd finds how `func` depends on real `y`, [rows, size], and can differentiate that again.

    A product of the Jacobian with a vector, which takes two backward passes, is compared with a difference: so what
    `.detach()` or NumPy has cut from the graph shows, and so does chance. Not within transforms of torch.func.
    """
    no, given = np.zeros(len(y), dtype=bool), given_jacobian(func)
    with torch.inference_mode(False), without_derivatives():
        t, y = t.detach().clone(), y.detach().clone()
        try:
            exact = Linearisation(func, t, y)
            v = _direction(y)
            product = exact.times(v)
        except Exception:  # of any kind: func may not be made for it
            return no
        if given is not None:
            product = torch.bmm(given(t.clone(), y), v.unsqueeze(2)).squeeze(2)
        eps, seen = torch.finfo(y.dtype).eps, no
        for h in (eps ** (1 / 4), eps ** (1 / 3)):  # the second for what bends within the first
            here, after, before = (func(t.clone(), y + side * v).clone() for side in (0.0, h, -h))
            difference = (after - before) / (2 * h)
            # In units of the states, as rates. Rounding is that of the fastest one, and of the slope itself.
            error, rate = ((difference - product) / v).abs(), torch.maximum(difference.abs(), product.abs()) / v.abs()
            rounding = 100 * eps / h * torch.maximum(rate.amax(1, keepdim=True), (here / v).abs())
            allowed = (1e-2 + 10 * h**2) * rate + rounding
            seen = seen | (error <= allowed).all(1).cpu().numpy()
            if seen.all():
                break
        return seen


def spectral_bound(jacobian: Tensor) -> Tensor:
    """Bounds of the spectral radii of matrices, [rows, size, size]: their smaller norms, [rows]."""
    sizes = jacobian.detach().abs()
    return torch.minimum(sizes.sum(1).amax(1), sizes.sum(2).amax(1))


def _direction(y: Tensor) -> Tensor:
    """Changes of the states, [rows, size], in proportion to them, in which nothing cancels by chance."""
    number = torch.arange(1, y.shape[1] + 1, device=y.device)
    part = 0.1 + 0.2 * torch.frac(0.618034 * number.double()).to(y.dtype)
    largest = y.abs().amax(1, keepdim=True)
    size = torch.where(y == 0.0, torch.where(largest == 0.0, 1.0, 1e-3 * largest), y.abs())
    return size * part * (1 - 2 * (number * number // 3 % 2)).to(y.dtype)


def _at(func: FlatFunc, t: Tensor) -> Callable[[Tensor], Tensor]:
    """`func` of the state alone, at a copy of the time, which may come from inference mode."""
    return lambda y: func(t.detach().clone(), y)


def _on_leaves(func: Callable[..., Tensor], inputs: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Tensors that equal the inputs and require a gradient, and the slopes there with their graph.

    Also where the caller records none. An input that requires a gradient stands for itself.
    """
    with torch.inference_mode(False), torch.enable_grad(), own_graph():
        leaves = [x if x.requires_grad else as_leaf(x) for x in inputs]
        return leaves, func(*leaves)
