"""What the solvers must know of the function transforms of `torch.func`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._C import _autograd, _functorch  # pyright: ignore[reportAttributeAccessIssue]
from torch.autograd import forward_ad
from torch.func import debug_unwrap


def inside_transform() -> bool:
    """Whether a transform such as `torch.func.vmap` or `torch.func.grad` is at work.

    Then tensors may be batched or tracked behind the scenes, and must not be written into tensors that are not.
    """
    return _functorch.maybe_current_level() is not None


def may_be_tracked() -> bool:
    """Whether a transform or forward-mode differentiation is at work, which leave no mark on the tensors they track."""
    return inside_transform() or in_forward_mode()


_own_level: list[int] = []
"""The thread that has entered forward mode for a gradient of the library's own, if one has."""


def in_forward_mode() -> bool:
    """Whether forward-mode differentiation (`torch.autograd.forward_ad`) is at work, with or without a gradient.

    Its level is one for all threads; that which a gradient has entered in another thread is none of this thread's.
    """
    if forward_ad._current_level < 0 or not torch._C._is_fwd_grad_enabled():
        return False
    return not _own_level or _own_level[-1] == threading.get_ident()


@contextmanager
def own_level() -> Iterator[None]:
    """Within this, a level of forward mode is one that this thread enters for a gradient of the library's own."""
    _own_level.append(threading.get_ident())
    try:
        yield
    finally:
        _own_level.pop()


def is_dual(x: Any) -> bool:
    """Whether `x` is a tensor with a tangent, of forward mode."""
    return in_forward_mode() and isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None


def any_dual(values: Iterable[Any]) -> bool:
    """Whether one of the values is a tensor with a tangent, of forward mode."""
    return in_forward_mode() and any(map(is_dual, values))


def as_leaf(x: Tensor) -> Tensor:
    """A copy that requires a gradient and has no history but the tangent of `x`, if it has one."""
    leaf = x.detach().clone().requires_grad_()
    return forward_ad.make_dual(leaf, forward_ad.unpack_dual(x).tangent) if is_dual(x) else leaf


def without_graph(x: Tensor) -> Tensor:
    """The same values, with the tangent of `x`, if it has one, and no graph."""
    if inside_transform() or not is_dual(x):
        return x.detach()
    primal, tangent = forward_ad.unpack_dual(x)
    assert tangent is not None
    return forward_ad.make_dual(primal.detach(), tangent.detach())


def moves(x: Tensor) -> bool:
    """Whether a derivative of any kind is wanted of `x`: a gradient, of autograd or a transform, or a tangent."""
    return x.requires_grad or (may_be_tracked() and (needs_gradient(x) or is_dual(x)))


def derivatives_enabled() -> bool:
    """Whether a derivative of any kind can be wanted: within `torch.no_grad()` there are tangents still."""
    return torch.is_grad_enabled() or may_be_tracked()


@contextmanager
def without_derivatives() -> Iterator[None]:
    """Neither a graph nor tangents."""
    with torch.no_grad(), forward_ad._set_fwd_grad_enabled(False):
        yield


def own_graph() -> AbstractContextManager[None]:
    """Within this, graphs are recorded that the library itself goes back through before the caller does.

    What the caller does with saved tensors, as `torch.utils.checkpoint` does, is not done with those of such a graph,
    also where the caller goes back through it later: the function that is checkpointed would be run again in the middle
    of its first run.
    """
    hooked = _autograd._top_saved_tensors_default_hooks(True) is not None
    # A node that kept its own result with its history would keep itself; torch restores the history when it is asked.
    return torch.autograd.graph.saved_tensors_hooks(Tensor.detach, lambda x: x) if hooked else nullcontext()


def derivative_depth() -> int:
    """How many transforms at work differentiate, such as `torch.func.grad` and `torch.func.jvp`."""
    if not inside_transform():
        return 0
    kinds = (_functorch.TransformType.Grad, _functorch.TransformType.Jvp)
    return sum(transform.key() in kinds for transform in _functorch.get_interpreter_stack() or ())


def read(x: Tensor) -> float:
    """The value of a 0-d tensor; under `vmap`, where it has one for each entry of the batch, the largest, or NaN."""
    if inside_transform():
        x = debug_unwrap(x).amax()
    return x.item()


def read_rows(x: Tensor) -> np.ndarray:
    """The values of a tensor [rows], as float64; under `vmap` the largest in the batch, or NaN."""
    if inside_transform():
        return np.array(entries(x).amax(0).tolist(), dtype=np.float64)
    if in_forward_mode():
        x = forward_ad.unpack_dual(x).primal
    x = x.detach()
    return (x if x.is_cpu and x.dtype is torch.float64 else x.cpu().double()).numpy()


def entries(x: Tensor) -> Tensor:
    """The values of a tensor for each entry of the batch under `vmap`, [batch, *x.shape]; a batch of one otherwise."""
    shape, dims = x.shape, list(range(x.ndim))
    while _functorch.is_functorch_wrapped_tensor(x):
        if _functorch.is_batchedtensor(x):
            dims.insert(_functorch.maybe_get_bdim(x), -1)
        x = _functorch.get_unwrapped(x)
    batch_first = sorted(range(len(dims)), key=lambda i: dims[i])
    return x.detach().permute(batch_first).reshape(-1, *shape)


def is_mapped(x: Tensor) -> bool:
    """Whether `x` stands for a batch, as in `torch.func.vmap` and in `torch.autograd.grad(is_grads_batched=True)`."""
    return _functorch.is_functorch_wrapped_tensor(x) or _functorch.is_legacy_batchedtensor(x)


def needs_gradient(x: Tensor) -> bool:
    """Whether `x` requires a gradient, of autograd or of any transform at work."""
    while not x.requires_grad:
        if not _functorch.is_functorch_wrapped_tensor(x):
            return False
        x = _functorch.get_unwrapped(x)
    return True


def version(x: Tensor) -> int:
    """A number that grows when somebody writes into `x`, or into a view of it, also within a transform.

    Raises:
        RuntimeError: `x` is an inference tensor, which has none.
    """
    while _functorch.is_functorch_wrapped_tensor(x):
        x = _functorch.get_unwrapped(x)
    return x._version


def of_its_own(x: Tensor) -> Tensor:
    """The tensor, or a copy if somebody has written into it: it may be memory that a function uses again."""
    try:
        return x.clone() if version(x) else x
    except RuntimeError:  # inference tensors do not tell
        return x.clone()


def pull_back(pull: Callable[[Tensor], Tensor], cotangents: Tensor) -> Tensor:
    """What a backward pass makes of each of the cotangents, stacked: of all at once, if it can.

    It cannot if it looks at a value, as a `torch.autograd.Function` of the user's may do, and as autograd does where it
    looks for anomalies, which would also blame the user for the attempt.

    Args:
        pull: the backward pass, which may be called many times.
        cotangents: [n, ...].
    """
    if not len(cotangents):
        return cotangents
    if not torch.is_anomaly_enabled():
        try:
            return torch.func.vmap(pull)(cotangents)
        except Exception:  # of any kind: if the cause is another, it will show itself again
            pass
    return torch.stack([pull(cotangent) for cotangent in cotangents])
