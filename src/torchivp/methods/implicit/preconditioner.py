"""What a user knows about the linear systems of implicit methods: an approximate solution, for GMRES."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchivp.torch_func import own_graph

_CALL = "preconditioner(t, y, h, r)"


class Preconditioner:
    """The user's function that solves `(I - h J) x = r` about, with the Jacobian J of func at the time and state.

    Args:
        function: called as `function(t, y, h, r)` with the times and the coefficients h, [rows, 1], and the flattened
            states and right-hand sides, [rows, n]; returns x, [rows, n]. It is linear in r.
    """

    def __init__(self, function: Callable[..., Any]):
        self.function = function

    @staticmethod
    def check(name: str, value: Any) -> Preconditioner | None:
        """Check the option.

        Raises:
            TypeError: it is no function.
        """
        if value is None or isinstance(value, Preconditioner):
            return value
        if not callable(value):
            raise TypeError(f"{name} must be a function {_CALL}, or None, got {value!r}")
        return Preconditioner(value)

    def __call__(self, t: Tensor, y: Tensor, h: Tensor, r: Tensor) -> Tensor:
        """About the solutions, [rows, n].

        Raises:
            TypeError: it returned no tensor of the state's dtype.
            ValueError: it returned another shape.
        """
        x = self.function(t, y, h, r.clone())  # which it may overwrite
        if not isinstance(x, Tensor) or x.dtype != r.dtype:
            kind = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"{_CALL} must return a tensor of {r.dtype}, shaped like r, got {kind}")
        if x.shape != r.shape:
            raise ValueError(
                f"{_CALL} must return the shape of r, {tuple(r.shape)}, a row for each problem of a batch and a column "
                f"for each element of the flattened state; it returned shape {tuple(x.shape)}"
            )
        return x

    def transposed(self, t: Tensor, y: Tensor, h: Tensor, r: Tensor) -> Tensor:
        """The same for the transposed systems, by autograd; what autograd does not see is taken to be symmetric."""
        with torch.inference_mode(False), torch.enable_grad(), own_graph():
            leaf = torch.zeros_like(r, requires_grad=True)
            x = self(t, y, h, leaf)
            if x.requires_grad:
                (found,) = torch.autograd.grad(x, leaf, r, allow_unused=True, materialize_grads=True)
                return found
        return self(t, y, h, r)
