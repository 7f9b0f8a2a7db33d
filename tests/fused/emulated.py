"""A GPU that there is not: kernels for CUDA, compiled by the host compiler, on a driver that runs grids on the processor.

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
        known = {"--std=c++17": "-std=c++17", f"--define-macro=THREADS={nvidia.THREADS}": f"-DTHREADS={nvidia.THREADS}"}
        flags = [*(known[flag] for flag in flags), "-O1", "-fno-strict-aliasing", "-ffp-contract=fast", "-w"]
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
    found = ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
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
