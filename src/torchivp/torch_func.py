"""What the solvers must know of the function transforms of `torch.func`."""

from __future__ import annotations

from torch import Tensor
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]
from torch.autograd import forward_ad
from torch.func import debug_unwrap


def inside_transform() -> bool:
    """Whether a transform such as `torch.func.vmap` or `torch.func.grad` is at work.

    Then tensors may be batched or tracked behind the scenes, and must not be written into tensors that are not.
    """
    return _functorch.maybe_current_level() is not None


def may_be_tracked() -> bool:
    """Whether a transform or forward-mode differentiation is at work, which leave no mark on the tensors they track."""
    return inside_transform() or forward_ad._current_level >= 0


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


def entries(x: Tensor) -> Tensor:
    """The values of a tensor for each entry of the batch under `vmap`, [batch, *x.shape]; a batch of one otherwise."""
    shape, dims = x.shape, list(range(x.ndim))
    while _functorch.is_functorch_wrapped_tensor(x):
        if _functorch.is_batchedtensor(x):
            dims.insert(_functorch.maybe_get_bdim(x), -1)
        x = _functorch.get_unwrapped(x)
    batch_first = sorted(range(len(dims)), key=lambda i: dims[i])
    return x.detach().permute(batch_first).reshape(-1, *shape)


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
