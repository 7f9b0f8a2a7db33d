"""A GPU that there is not: kernels for CUDA, compiled by the host compiler, on a driver that runs them on the CPU.

All of the way from a solve to a launch is the real one, through cuda-bindings: what stands in are NVRTC, the driver's
library, and the three questions that torch is asked about the device. The device is the processor's memory.
"""

import ctypes
import functools
import importlib.util
import tempfile
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch

from compilers import HERE
from torchivp.fused import nvidia, trace

FOLDER = Path(__file__).parent
SHIM = (FOLDER / "gpu_shim.h").read_text()
LAUNCHERS = """
#ifdef SOLVES
LAUNCHER(prepare, Solve) LAUNCHER(solve, Solve)
#endif
#ifdef PULLS
LAUNCHER(prepare, Pull) LAUNCHER(pull, Pull)
#endif
"""
BINDINGS = importlib.util.find_spec("cuda") is not None and importlib.util.find_spec("cuda.bindings") is not None
needs_emulation = pytest.mark.skipif(
    HERE is None or not BINDINGS or torch.cuda.is_available(),
    reason="needs a C++ compiler and cuda-bindings, and no GPU",
)

_fields = {}
"""What was read for the GPU, apart from what is read for the processor."""


class HostCompiler:
    """What stands in for NVRTC."""

    identity = "emulated", SHIM, HERE.identity if HERE else ()
    suffixes = ".so", ".cu"
    target = "no GPU"

    def build(self, source, name, flags, folder):
        threads = f"THREADS={nvidia.THREADS}"
        known = {
            "--std=c++17": "-std=c++17",
            "--disable-warnings": "-w",
            f"--define-macro={threads}": f"-D{threads}",
        }
        flags = [*(known[flag] for flag in flags), "-O1", "-fno-strict-aliasing", "-ffp-contract=fast"]
        return HERE.build("\n".join([SHIM, source, LAUNCHERS]), name, flags, folder)

    def __str__(self):
        return "the emulation of NVRTC"


@functools.cache
def driver():
    """The driver, as the library that cuda-bindings opens by its name."""
    folder = Path(tempfile.mkdtemp())
    source, library = (FOLDER / "gpu_driver.cpp").read_text(), folder / "libcuda.so.1"
    built = HERE.build(source, "driver", ["-w", "-Wl,-soname,libcuda.so.1", "-ldl"], folder)
    built.rename(library)
    found = ctypes.CDLL(str(library))
    found.launched.restype, found.launched.argtypes = ctypes.c_long, [ctypes.c_char_p]
    return found


@contextmanager
def emulated():
    """Within, the processor's memory is that of a GPU; gives the driver."""
    patches = {"_GPUS": ("cpu",), "_capability": lambda _: (9, 0), "_number": lambda _: 0, "_stream": lambda _: 7}
    found = driver()
    with (
        mock.patch.multiple(nvidia, compiler_for=lambda _: HostCompiler(), **patches),
        mock.patch.object(trace, "_fields", _fields),
    ):
        yield found


class OnGpu(torch.Tensor):
    """A tensor that says that it lies on a GPU."""


class Devices(torch.overrides.TorchFunctionMode):
    """Within, tensors made for "cuda" are `OnGpu`, and nothing may be done with those and others at a time.

    Attributes:
        places: where the memory begins and ends of tensors of the GPU that were asked for their addresses.
    """

    GPU = torch.device("cuda", 0)

    def __init__(self):
        super().__init__()
        self.places = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", str(func))
        tensors = [x for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        there = [x for x in tensors if isinstance(x, OnGpu)]
        if func == torch.Tensor.device.__get__:
            return self.GPU if there else func(*args)
        if func == torch.Tensor.is_cpu.__get__:
            return not there
        if name == "data_ptr" and there:
            (x,) = there
            self.places.append((func(x), func(x) + x.numel() * x.element_size()))
        if name in ("cpu", "numpy") and there:
            assert name == "cpu", "memory of a GPU is no array"
            return args[0].as_subclass(torch.Tensor).clone()
        if name == "to":
            goal = next((x for x in (*args[1:], *kwargs.values()) if isinstance(x, torch.device)), None)
            rest = [x for x in args[1:] if not isinstance(x, torch.device)]
            moved = args[0].as_subclass(torch.Tensor)
            moved = moved.to(*rest) if rest else moved.clone()
            return moved.as_subclass(OnGpu) if goal == self.GPU or (goal is None and there) else moved
        goal = kwargs.get("device")
        if goal == self.GPU:
            kwargs["device"] = "cpu"
        elif there and goal is None and name not in ("__getitem__", "__setitem__"):
            strangers = [x for x in tensors if not isinstance(x, OnGpu) and x.ndim]
            assert not strangers, f"{name} of tensors on two devices"
        found = func(*args, **kwargs)
        if goal == self.GPU or (there and goal is None):
            return torch.utils._pytree.tree_map_only(torch.Tensor, lambda x: x.as_subclass(OnGpu), found)
        return found

    def holds(self, address):
        """Whether memory of the GPU is there."""
        return any(begin <= address < end for begin, end in self.places)
