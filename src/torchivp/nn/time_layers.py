"""Layers that see the time: it is one more feature or channel of what they transform."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torchivp.nn.field import needs_time


class TimeLinear(nn.Module):
    """A linear layer of the features and the time: `nn.Linear(in_features + 1, out_features)` of `(t, y)`.

    Called as `layer(t, y)` with `y` of shape [..., in_features], and `t` a number, a 0-d tensor, or a tensor that
    broadcasts to [..., 1].

    Args:
        in_features: the number of features, without the time.
        out_features: the number of features that it returns.
        bias: whether there is a bias.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        super().__init__()
        self.linear = nn.Linear(in_features + 1, out_features, bias=bias)

    def forward(self, t: float | Tensor, y: Tensor) -> Tensor:
        """The layer's value, [..., out_features]."""
        return self.linear(_with_time(t, y, -1))


class TimeConv2d(nn.Module):
    """A convolution of the channels and the time, the literature's `ConcatConv2d`, or a transposed one.

    `nn.Conv2d(in_channels + 1, out_channels, ...)` of an image one channel of which is the time. Called as
    `layer(t, y)` with `y` of shape [B, in_channels, H, W], and `t` a number, a 0-d tensor, or a tensor of shape
    [B, 1, 1, 1].

    Args:
        in_channels: the number of channels, without the time.
        out_channels: the number of channels that it returns.
        kernel_size: as in `nn.Conv2d`.
        stride: as in `nn.Conv2d`.
        padding: as in `nn.Conv2d`.
        dilation: as in `nn.Conv2d`.
        bias: whether there is a bias.
        transpose: whether to make it an `nn.ConvTranspose2d`.
        **options: further arguments of `nn.Conv2d` or `nn.ConvTranspose2d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        bias: bool = True,
        transpose: bool = False,
        **options: Any,
    ):
        super().__init__()
        kind = nn.ConvTranspose2d if transpose else nn.Conv2d
        self.conv = kind(
            in_channels + 1,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            bias=bias,
            **options,
        )

    def forward(self, t: float | Tensor, y: Tensor) -> Tensor:
        """The layer's value, [B, out_channels, H', W']."""
        return self.conv(_with_time(t, y, -3))


class TimeSequential(nn.Sequential):
    """`nn.Sequential` with a time: `layers(t, y)` gives `t` to those modules that take it.

    These are the layers of this package, and all whose `forward` needs two arguments, `(t, y)`.
    """

    def __init__(self, *modules: Any):
        super().__init__(*modules)
        self._find_timed()

    def _find_timed(self) -> None:
        remedy = "wrap it in a module whose forward needs (t, y), or y alone"
        self._timed = [needs_time(f"layer{i}", module, remedy) for i, module in enumerate(self)]

    def __setitem__(self, idx: Any, module: nn.Module) -> None:
        super().__setitem__(idx, module)
        self._find_timed()

    def forward(self, t: float | Tensor, y: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The value of the last module."""
        if len(self._timed) != len(self):
            self._find_timed()
        for module, timed in zip(self, self._timed, strict=True):
            y = module(t, y) if timed else module(y)
        return y


def _with_time(t: float | Tensor, y: Tensor, dim: int) -> Tensor:
    """`y` with the time in front of it along `dim`."""
    shape = list(y.shape)
    shape[dim] = 1
    time = torch.as_tensor(t, dtype=y.dtype, device=y.device).expand(shape)
    return torch.cat((time, y), dim)
