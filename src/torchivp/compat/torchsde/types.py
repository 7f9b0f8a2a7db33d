"""The names that programs take for annotations."""

from collections.abc import Callable, Sequence
from typing import Any, Dict, Optional, Tuple, Union  # noqa: UP035

import torch
from torch import Size, Tensor
from torch.nn import Module

Tensors = Sequence[Tensor]
TensorOrTensors = Tensor | Tensors

Scalar = float | Tensor
Vector = Sequence[float] | Tensor

Modules = Sequence[Module]
ModuleOrModules = Module | Modules

Sizes = Sequence[Size]

__all__ = [
    "Any",
    "Callable",
    "Dict",
    "Module",
    "ModuleOrModules",
    "Modules",
    "Optional",
    "Scalar",
    "Sequence",
    "Size",
    "Sizes",
    "Tensor",
    "TensorOrTensors",
    "Tensors",
    "Tuple",
    "Union",
    "Vector",
    "torch",
]
