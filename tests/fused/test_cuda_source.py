"""NVIDIA's compiler, which needs no GPU, takes kernels; what it refuses, and what is missing, is said in sentences."""

import builtins
import os
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch import nn

from compilers import needs_compiler
from fused import test_operations
from fused.emulated import BINDINGS, HostCompiler, emulated, needs_emulation
from fused.evaluation import Compiled
from fused.fields import FIELDS
from torchivp import ODE_METHODS, solve_ivp
from torchivp.fused import cache, nvidia
from torchivp.fused.compiler import CompileError, NoCompiler
from torchivp.fused.explicit import ExplicitCoefficients
from torchivp.fused.field import Field
from torchivp.fused.graphs import on_processor
from torchivp.fused.kernel import Form, Kernel
from torchivp.fused.nvidia import Gpu, Nvrtc, compiler_for
from torchivp.fused.rosenbrock import RosenbrockCoefficients
from torchivp.fused.tangents import TangentKernel
from torchivp.state import StateLayout


def has_nvrtc():
    try:
        return bool(compiler_for((9, 0)))
    except NoCompiler:
        return False


needs_nvrtc = pytest.mark.skipif(not has_nvrtc(), reason="needs cuda-bindings and NVRTC")
D = torch.float64


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    """A directory for compiled kernels that is empty, and nothing in memory."""
    monkeypatch.setenv("TORCHIVP_CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.setattr(cache, "_libraries", {})
    return tmp_path / "kernels"


def image(source, capability=(9, 0)):
    """What a source compiles to, the way of a solve."""
    return cache.from_disk_or_compiled(
        source, "kernel", nvidia._FLAGS, compiler_for(capability), lambda _, content: content
    )


def pendulum(t, y, w):
    return torch.stack([y[1], -w * torch.sin(y[0]) + torch.where(t > 1.0, torch.tanh(y[1]), y[0] ** 2)])


def network(t, y, w):
    return nn.functional.linear(torch.tanh(nn.functional.linear(y, w)), w.T)


def kernel_of(func, w, method, dtype, device="cpu"):
    y0, w = torch.ones(2, dtype=dtype, device=device), w.to(device)
    reading = Field(StateLayout(y0)).read(func, (w,))
    tableau = ODE_METHODS[method].tableau
    kind = RosenbrockCoefficients if method == "rodas5p" else ExplicitCoefficients
    return Kernel(reading.traced, Form(kind.of(tableau), dtype, 2, (0, 2), True, tuple(reading.roles)))


# --- what compiles ---------------------------------------------------------------------------------------------------


@needs_nvrtc
@needs_compiler
@pytest.mark.parametrize(
    ("func", "w", "method", "dtype"),
    [
        (pendulum, torch.tensor(2.0, dtype=D), "dopri5", D),
        (pendulum, torch.tensor(2.0, dtype=D), "rodas5p", D),
        (network, torch.ones(16, 2), "tsit5", torch.float32),
    ],
)
def test_kernels_are_cuda_too(func, w, method, dtype):
    kernel = kernel_of(func, w, method, dtype)
    shared = tuple(i for i, role in enumerate(kernel.roles) if role == "shared")
    for capability in [(8, 0), (9, 0)]:
        assert names_in(image(kernel.source("cuda.h"), capability)) == {b"prepare", b"solve"}
        for timed in (False, True):
            assert names_in(image(kernel.pull(shared, timed).source("cuda.h"), capability)) == {b"prepare", b"pull"}


def names_in(cubin):
    """The functions that a GPU's program has, which have a section each."""
    assert cubin.startswith(b"\x7fELF")
    return {name for name in (b"prepare", b"solve", b"pull") if b".text." + name + b"\0" in cubin}


@needs_nvrtc
@needs_compiler
@pytest.mark.parametrize("method", ["dopri5", "rodas5p"])
def test_sensitivities_are_cuda_too(method):
    reading = Field(StateLayout(torch.ones(2, dtype=D))).read(pendulum, (torch.ones((), dtype=D),))
    kind = RosenbrockCoefficients if method == "rodas5p" else ExplicitCoefficients
    form = Form(kind.of(ODE_METHODS[method].tableau), D, 6, (0, 2), True, tuple(reading.roles))
    moved = (reading.roles.index("shared"),)
    assert b"solve" in names_in(image(TangentKernel(reading.traced, form, moved).source("cuda.h")))


@needs_nvrtc
def test_a_gpu_that_is_newer_than_the_compiler_completes_what_it_is_given():
    compiler = compiler_for((99, 0))
    assert compiler.target.startswith("compute_") and compiler.suffixes == (".ptx", ".cu")
    text = image('extern "C" __global__ void solve(int* x) { *x = THREADS; }', (99, 0))
    assert b".entry solve" in text and text.endswith(b"\0")


@needs_nvrtc
def test_a_gpu_that_is_older_than_the_compiler_has_none():
    with pytest.raises(NoCompiler, match=r"compiles for compute capability \d+\.\d and newer, and this GPU has 3\.5"):
        compiler_for((3, 5))


# --- what was read on another device ---------------------------------------------------------------------------------


def makes_tensors(t, y, w):
    """On the device of the state."""
    grid = torch.linspace(0.0, 1.0, 2, dtype=y.dtype, device=y.device)
    dy = torch.zeros_like(y)
    dy[0] = w * y[1] + torch.arange(2, device=y.device).to(y.dtype)[1]
    dy[1] = -y[0] + torch.eye(2, dtype=y.dtype, device=y.device)[0, 0]
    return dy + grid.to(y.device)


@needs_compiler
@pytest.mark.parametrize("method", ["tsit5", "rodas5p"])
def test_kernels_are_made_on_the_processor_of_what_is_read_elsewhere(method):
    """Here on torch's device without memory, as there is no other."""
    w = torch.tensor(2.0, dtype=D)
    here, there = (kernel_of(makes_tensors, w, method, D, device) for device in ("cpu", "meta"))
    assert there.source() == here.source()
    shared = tuple(i for i, role in enumerate(here.roles) if role == "shared")
    assert there.pull(shared).source() == here.pull(shared).source()
    assert "meta" not in str(on_processor(there.traced.module).code) and "meta" in str(there.traced.module.code)


@needs_compiler
def test_kernels_are_made_on_the_processor_whatever_the_default_device_is():
    w = torch.tensor(2.0, dtype=D)
    expected = kernel_of(pendulum, w, "rodas5p", D)
    form = replace(expected.form, adaptive=False)
    shared = tuple(i for i, role in enumerate(expected.roles) if role == "shared")
    sources = []
    for device in ("meta", "cpu"):
        with torch.device(device):
            kernel = Kernel(expected.traced, form)
            sources.append((kernel.source(), kernel.pull(shared).source()))
    assert sources[0] == sources[1]


# --- what is kept ----------------------------------------------------------------------------------------------------


@needs_nvrtc
def test_code_for_gpus_is_kept_as_libraries_are(kernels, monkeypatch):
    calls, build = [], Nvrtc.build
    monkeypatch.setattr(Nvrtc, "build", lambda *given: calls.append(given) or build(*given))
    source = 'extern "C" __global__ void solve(int* x) { *x = THREADS; }'
    first = image(source)
    assert image(source) == first and len(calls) == 1
    files = sorted(path.suffix for path in kernels.iterdir())
    assert files == [".cubin", ".sha256"]
    (cubin,) = kernels.glob("*.cubin")
    cubin.write_bytes(first[:-1] + b"?")
    assert image(source) == first and len(calls) == 2
    assert image(source, (8, 0)) != first and len(calls) == 3


@pytest.mark.parametrize("suffix", [".so", ".cubin", ".ptx", ".sha256", ".cpp", ".cu"])
def test_all_that_is_kept_goes_when_there_is_too_much(suffix, tmp_path, monkeypatch):
    old, other = tmp_path / f"kernel-{'0' * 32}{suffix}", tmp_path / f"kernel{suffix}"
    for path in (old, other):
        path.write_bytes(bytes(100))
    monkeypatch.setattr(cache, "_LIMIT", 50)
    cache._limit(tmp_path)
    assert not old.exists() and other.exists()


@needs_nvrtc
def test_a_source_that_does_not_compile_is_kept(kernels):
    with pytest.raises(CompileError) as refusal:
        image("__device__ int broken = nowhere;\n" * 100)
    first, *lines, last = str(refusal.value).splitlines()
    assert first.startswith("NVRTC ") and first.endswith(" for sm_90 does not compile the kernel kernel:")
    assert "nowhere" in lines[0] and len(lines) == 10
    (kept,) = kernels.glob("*.cu")
    assert last == f"Its source is kept in {kept}" and kept.read_text().startswith("__device__ int broken")


@needs_emulation
def test_a_thread_that_works_with_too_much():
    sentence = "each thread of a GPU would work with 600000 bytes, and there are no more than 524288: solve on the CPU"
    with emulated() as driver:
        driver.work_with(600_000)
        try:
            with pytest.raises(ValueError, match=sentence):
                solve_ivp(lambda t, y: -0.7 * y, (0.0, 1.0), torch.ones(2, dtype=D), backend="fused")
        finally:
            driver.work_with(0)


@needs_emulation
def test_the_driver_refuses_code_that_it_does_not_know(kernels):
    """As one that is older than the compiler does."""
    with emulated():
        gpu = Gpu(torch.device("cpu"), 0)
        with (
            mock.patch.object(nvidia, "from_disk_or_compiled", lambda *_: b"PTX of a later version"),
            pytest.raises(CompileError) as refusal,
        ):
            gpu.load("source", "solve")
    assert str(refusal.value) == (
        "the driver of cpu refuses cuModuleLoadData: something is wrong (CUDA_ERROR_INVALID_IMAGE), for code that the "
        "emulation of NVRTC has made: a driver takes that of its own version of CUDA and of older ones, so update the "
        "driver or install an older NVRTC"
    )


# --- what is missing -------------------------------------------------------------------------------------------------


def without(name, monkeypatch):
    """A Python that has no module of this name."""
    real = builtins.__import__

    def imports(wanted, *rest):
        if wanted.startswith(name):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(wanted, *rest)

    monkeypatch.setattr(nvidia.importlib, "import_module", imports)


@pytest.mark.parametrize(
    ("cuda", "package"), [("12.8", "cuda-bindings==12.*"), ("13.0", "cuda-bindings==13.*"), (None, "cuda-bindings")]
)
def test_without_bindings(cuda, package, monkeypatch):
    without("cuda.bindings", monkeypatch)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    with pytest.raises(NoCompiler) as refusal:
        compiler_for((9, 0))
    assert str(refusal.value) == (
        "kernels on GPUs need NVIDIA's package cuda-bindings, which PyTorch's own packages for CUDA bring along: pip "
        f"install \"{package}\" (No module named 'cuda.bindings')"
    )


@pytest.mark.parametrize(
    ("version", "package"), [("12.9.7", "nvidia-cuda-nvrtc-cu12"), ("13.5.0", "nvidia-cuda-nvrtc")]
)
def test_without_nvrtc(version, package, monkeypatch):
    def nvrtc_version():
        raise RuntimeError("Failed to dlopen libnvrtc.so.12")

    modules = {
        "cuda.bindings": SimpleNamespace(__version__=version),
        "cuda.bindings.nvrtc": SimpleNamespace(nvrtcVersion=nvrtc_version),
    }
    monkeypatch.setattr(nvidia.importlib, "import_module", modules.__getitem__)
    with pytest.raises(NoCompiler) as refusal:
        compiler_for((9, 0))
    assert str(refusal.value) == (
        f"kernels on GPUs are compiled by NVRTC of CUDA {version[:2]}, which cannot be opened: pip install {package} "
        "(Failed to dlopen libnvrtc.so.12)"
    )


@pytest.mark.skipif(not BINDINGS, reason="needs cuda-bindings")
def test_without_a_driver(monkeypatch):
    def init(_):
        raise RuntimeError("Failed to dlopen libcuda.so.1")

    monkeypatch.setattr(nvidia, "compiler_for", lambda _: HostCompiler())
    monkeypatch.setattr(nvidia, "_capability", lambda _: (9, 0))
    monkeypatch.setattr(nvidia, "_bindings", lambda _: SimpleNamespace(cuInit=init))
    with pytest.raises(NoCompiler, match="kernels on GPUs need NVIDIA's driver: Failed to dlopen libcuda"):
        Gpu(torch.device("cuda"), 0)


def test_other_systems_are_refused(monkeypatch):
    with monkeypatch.context() as elsewhere, pytest.raises(NoCompiler) as refusal:
        elsewhere.setattr(os, "name", "nt")
        Gpu(torch.device("cuda"), 0)
    assert "on Linux only" in str(refusal.value)


@needs_emulation
def test_what_is_missing_is_why_there_is_no_kernel(monkeypatch):
    with emulated(), mock.patch.object(nvidia, "compiler_for", side_effect=NoCompiler("it is missing")):
        monkeypatch.setattr(cache, "_libraries", {})
        with pytest.raises(ValueError, match="backend='fused' has no kernel for this solve: it is missing"):
            solve_ivp(lambda t, y: -0.3 * y, (0.0, 1.0), torch.ones(2, dtype=D), backend="fused")


OPERATIONS = {
    "choices": [(3,), (3,)],
    "ties": [(3,)],
    "elementary": [(3,)],
    "activations": [(3,)],
    "powers": [(3,)],
    "comparisons": [(3,), (3,)],
    "two": [(3,), (3,)],
    "views": [(3, 4)],
    "whole": [(4,)],
    "places": [(3, 4), (6,)],
    "sums": [(3, 4)],
    "products": [(3, 4), (5, 4), (5,)],
}
"""The functions of `test_operations.py`, in which all operations are, with the shapes of their arguments."""


@needs_nvrtc
@needs_compiler
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "whole" else pytest.mark.sweep) for name in OPERATIONS]
)
def test_every_operation_is_cuda_too(name):
    compiled = Compiled(getattr(test_operations, name), *(torch.ones(shape, dtype=D) for shape in OPERATIONS[name]))
    assert b".text.one\0" in image(compiled.cuda)


@needs_nvrtc
@needs_compiler
@pytest.mark.sweep
@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_cuda_too(name):
    case = FIELDS[name]
    layout = StateLayout(case.y0)
    reading = Field(layout).read(case.func, case.args)
    parts = (*(part.start for part in layout.parts()), layout.size)
    form = Form(ExplicitCoefficients.of(ODE_METHODS["bosh3"].tableau), D, layout.size, parts, True, reading.kinds)
    kernel = Kernel(reading.traced, form)
    assert b"solve" in names_in(image(kernel.source("cuda.h")))
    wanted = [i for i, (x, role) in enumerate(zip(reading.inputs, reading.kinds, strict=True)) if role == "shared"]
    wanted = tuple(i for i in wanted if reading.inputs[i].is_floating_point())
    assert b"pull" in names_in(image(kernel.pull(wanted).source("cuda.h")))
