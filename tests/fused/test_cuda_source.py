"""The same kernels as CUDA: NVIDIA's compiler takes them, which needs no GPU."""

import ctypes
import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from compilers import needs_compiler
from torchivp import ODE_METHODS
from torchivp.fused.explicit import ExplicitCoefficients
from torchivp.fused.field import Field
from torchivp.fused.kernel import Form, Kernel
from torchivp.fused.rosenbrock import RosenbrockCoefficients
from torchivp.fused.tangents import TangentKernel
from torchivp.state import StateLayout


def nvrtc():
    """NVIDIA's runtime compiler, of the package nvidia-cuda-nvrtc-cu12; None without it."""
    found = importlib.util.find_spec("nvidia")
    places = [] if found is None else found.submodule_search_locations or []
    libraries = [path for place in places for path in Path(place).glob("cuda_nvrtc/lib/libnvrtc.so.*")]
    return ctypes.CDLL(str(libraries[0])) if libraries else None


NVRTC = nvrtc()
pytestmark = [needs_compiler, pytest.mark.skipif(NVRTC is None, reason="needs nvidia-cuda-nvrtc-cu12")]


def ptx(source):
    """What the source compiles to."""
    assert NVRTC is not None
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    assert NVRTC.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None) == 0
    options = (ctypes.c_char_p * 2)(b"--gpu-architecture=compute_80", b"--std=c++17")
    failed = NVRTC.nvrtcCompileProgram(program, 2, options)
    NVRTC.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    NVRTC.nvrtcGetProgramLog(program, log)
    assert not failed, log.value.decode()
    NVRTC.nvrtcGetPTXSize(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    NVRTC.nvrtcGetPTX(program, text)
    return text.value.decode()


def pendulum(t, y, w):
    return torch.stack([y[1], -w * torch.sin(y[0]) + torch.where(t > 1.0, torch.tanh(y[1]), y[0] ** 2)])


def network(t, y, w):
    return nn.functional.linear(torch.tanh(nn.functional.linear(y, w)), w.T)


@pytest.mark.parametrize(
    ("func", "w", "method", "dtype"),
    [
        (pendulum, torch.tensor(2.0, dtype=torch.float64), "dopri5", torch.float64),
        (pendulum, torch.tensor(2.0, dtype=torch.float64), "rodas5p", torch.float64),
        (network, torch.ones(16, 2), "tsit5", torch.float32),
    ],
)
def test_kernels_are_cuda_too(func, w, method, dtype):
    reading = Field(StateLayout(torch.ones(2, dtype=dtype))).read(func, (w,))
    tableau = ODE_METHODS[method].tableau
    kind = RosenbrockCoefficients if method == "rodas5p" else ExplicitCoefficients
    kernel = Kernel(reading.traced, Form(kind.of(tableau), dtype, 2, (0, 2), True, tuple(reading.roles)))
    assert ".entry solve" in ptx(kernel.source("cuda.h"))
    shared = tuple(i for i, role in enumerate(reading.roles) if role == "shared")
    for timed in (False, True):
        assert ".entry pull" in ptx(kernel.pull(shared, timed).source("cuda.h"))


@pytest.mark.parametrize("method", ["dopri5", "rodas5p"])
def test_sensitivities_are_cuda_too(method):
    reading = Field(StateLayout(torch.ones(2, dtype=torch.float64))).read(
        pendulum, (torch.ones((), dtype=torch.float64),)
    )
    kind = RosenbrockCoefficients if method == "rodas5p" else ExplicitCoefficients
    form = Form(kind.of(ODE_METHODS[method].tableau), torch.float64, 6, (0, 2), True, tuple(reading.roles))
    moved = (reading.roles.index("shared"),)
    assert ".entry solve" in ptx(TangentKernel(reading.traced, form, moved).source("cuda.h"))
