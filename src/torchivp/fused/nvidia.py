"""Kernels on NVIDIA's GPUs: NVRTC compiles them, the driver loads and launches them, both by way of cuda-bindings."""

from __future__ import annotations

import ctypes
import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from torchivp.fused.cache import from_disk_or_compiled, once
from torchivp.fused.compiler import CompileError, NoCompiler

THREADS = 64
"""The threads of a block: enough blocks of them fill a multiprocessor, and few rows still spread over several."""

_FLAGS = ("--std=c++17", "--disable-warnings", f"--define-macro=THREADS={THREADS}")
"""What NVRTC is given. `--use_fast_math` is not among it: functions and NaN are what they are on the processor."""

_GPUS = ("cuda",)
"""The types of devices that are NVIDIA's GPUs."""

_LINES = 10
"""How many lines of what the compiler says are passed on."""

_ROOM = 512 * 1024
"""A thread of a GPU has so many bytes for what it works with."""


class GpuError(RuntimeError):
    """The driver of a GPU refuses what is asked of it; the message has its words.

    Attributes:
        out_of_memory: whether it has no memory for it.
    """

    def __init__(self, message: str, out_of_memory: bool = False):
        super().__init__(message)
        self.out_of_memory = out_of_memory


def on_gpu(device: torch.device) -> bool:
    """Whether kernels for this device are those of this file: AMD's GPUs are of the same type in torch."""
    return device.type in _GPUS and torch.version.hip is None


def gpu_of(device: torch.device) -> Gpu:
    """The GPU that a device is.

    Raises:
        NoCompiler: what compiles for it or launches is missing; the message says what, and how to get it.
    """
    number = _number(device)
    return once(("gpu", number), lambda: Gpu(device, number))


class Gpu:
    """A GPU, in torch's own context.

    Args:
        device: the device.
        number: its number.

    Raises:
        NoCompiler: as for `gpu_of`.
    """

    def __init__(self, device: torch.device, number: int):
        if os.name != "posix":
            raise NoCompiler("kernels on GPUs are compiled on Linux only: on this system use the eager backend")
        self.compiler = compiler_for(_capability(device))
        self._device, self._number, self._driver = device, number, _bindings("driver")
        try:
            self._ask("cuInit", 0)
        except RuntimeError as error:  # by the bindings, if there is no driver at all
            raise NoCompiler(f"kernels on GPUs need NVIDIA's driver: {error}") from None
        self._context = self._ask("cuDevicePrimaryCtxRetain", self._ask("cuDeviceGet", number))

    def load(self, source: str, name: str) -> Program:
        """The function of this name of a source, compiled once and loaded once.

        Raises:
            CompileError: it does not compile, or the driver does not take what it was compiled to.
        """
        return once(("gpu", self._number, source), lambda: self._loaded(source, name))

    def _loaded(self, source: str, name: str) -> Program:
        image = from_disk_or_compiled(source, "kernel", _FLAGS, self.compiler, lambda _, content: content)
        with self:
            try:
                module = self._ask("cuModuleLoadData", image)
            except GpuError as error:
                raise CompileError(
                    f"{error}, for code that {self.compiler} has made: a driver takes that of its own version of CUDA "
                    "and of older ones, so update the driver or install an older NVRTC"
                ) from None
            prepare, function = (self._ask("cuModuleGetFunction", module, x.encode()) for x in ("prepare", name))
            local = self._driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES
            if (size := self._ask("cuFuncGetAttribute", local, function)) > _ROOM:
                raise CompileError(
                    f"each thread of a GPU would work with {size} bytes, and there are no more than {_ROOM}: solve on "
                    "the CPU"
                )
        return Program(self, prepare, function)

    def __enter__(self) -> None:
        """Make the context that of this thread: a thread of autograd's may have none."""
        self._ask("cuCtxPushCurrent", self._context)

    def __exit__(self, *of_error: Any) -> None:
        self._ask("cuCtxPopCurrent")

    def launch(self, function: Any, threads: int, call: ctypes.Structure) -> None:
        """Have so many threads call a function with a structure, on torch's current stream.

        Raises:
            GpuError: the driver refuses, as where it has no memory for what so many threads work with.
        """
        stream = self._driver.CUstream(_stream(self._device))
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(call))
        sizes = -(-threads // THREADS), 1, 1, THREADS, 1, 1
        launch = "cuLaunchKernel", function, *sizes, 0, stream, ctypes.addressof(parameters), 0
        with self:
            try:
                self._ask(*launch)
            except GpuError as error:
                if not error.out_of_memory:
                    raise
                torch.cuda.empty_cache()  # what torch holds and does not use, a kernel may need for its threads
                self._ask(*launch)

    def _ask(self, name: str, *arguments: Any) -> Any:
        """What a function of the driver gives.

        Raises:
            GpuError: it gives an error.
        """
        status, *values = getattr(self._driver, name)(*arguments)
        if int(status):
            _, words = self._driver.cuGetErrorString(status)
            raise GpuError(
                f"the driver of {self._device} refuses {name}: {(words or b'').decode()} ({status.name})",
                status == self._driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY,
            )
        return values[0] if values else None


@dataclass(frozen=True)
class Program:
    """What a source was compiled to, on a GPU.

    Attributes:
        gpu: the GPU.
        prepare: computes what all threads use, as the driver knows it.
        function: what they do.
    """

    gpu: Gpu
    prepare: Any
    function: Any

    def run(self, call: ctypes.Structure, threads: int, prepares: bool) -> None:
        """Have threads call the function; before that, one may compute what all of them use."""
        if not threads:
            return
        if prepares:
            self.gpu.launch(self.prepare, 1, call)
        self.gpu.launch(self.function, threads, call)


@dataclass(frozen=True)
class Nvrtc:
    """NVIDIA's runtime compiler, for one kind of GPU; it needs none.

    Attributes:
        target: what it compiles for: "sm_90", or where it knows no such GPU "compute_90", which the driver completes.
        version: its own.
    """

    target: str
    version: tuple[int, int]

    @property
    def identity(self) -> tuple[object, ...]:
        return "NVRTC", self.version, self.target

    @property
    def suffixes(self) -> tuple[str, str]:
        return ".ptx" if self._is_text else ".cubin", ".cu"

    @property
    def _is_text(self) -> bool:
        return self.target.startswith("compute")

    def build(self, source: str, name: str, flags: Sequence[str], folder: Path) -> Path:
        """Compile a source; see `Compiler.build`."""
        nvrtc, flags = _bindings("nvrtc"), [f"--gpu-architecture={self.target}", *flags]
        program = _compiled(nvrtc.nvrtcCreateProgram(source.encode(), f"{name}.cu".encode(), 0, None, None))
        try:
            (failed,) = nvrtc.nvrtcCompileProgram(program, len(flags), [flag.encode() for flag in flags])
            if int(failed):
                log = b" " * _compiled(nvrtc.nvrtcGetProgramLogSize(program))
                _compiled(nvrtc.nvrtcGetProgramLog(program, log))
                lines = log.decode(errors="replace").strip("\0 \n").splitlines()[:_LINES]
                raise CompileError("\n".join([f"{self} does not compile the kernel {name}:", *lines]))
            kind = "PTX" if self._is_text else "CUBIN"
            image = b" " * _compiled(getattr(nvrtc, f"nvrtcGet{kind}Size")(program))
            _compiled(getattr(nvrtc, f"nvrtcGet{kind}")(program, image))
        finally:
            _compiled(nvrtc.nvrtcDestroyProgram(program))
        path = folder / f"{name}{self.suffixes[0]}"
        path.write_bytes(image)
        return path

    def __str__(self) -> str:
        return f"NVRTC {'.'.join(map(str, self.version))} for {self.target}"


def compiler_for(capability: tuple[int, int]) -> Nvrtc:
    """What compiles for GPUs of a compute capability.

    Raises:
        NoCompiler: there is none; the message says how to get it.
    """
    nvrtc = _bindings("nvrtc")
    try:
        status, *version = nvrtc.nvrtcVersion()
    except Exception as error:  # of several kinds, as versions of the bindings differ
        package = f"nvidia-cuda-nvrtc{'-cu12' if _major() < 13 else ''}"
        raise NoCompiler(
            f"kernels on GPUs are compiled by NVRTC of CUDA {_major()}, which cannot be opened: pip install {package} "
            f"({error})"
        ) from None
    major, minor = _compiled((status, version))
    known, wanted = _compiled(nvrtc.nvrtcGetSupportedArchs()), capability[0] * 10 + capability[1]
    if wanted in known:
        return Nvrtc(f"sm_{wanted}", (major, minor))
    older = [x for x in known if x < wanted]
    if not older:
        raise NoCompiler(
            f"NVRTC {major}.{minor} compiles for compute capability {min(known) / 10} and newer, and this GPU has "
            f"{wanted / 10}: install an NVRTC that is older, or solve on the CPU"
        )
    return Nvrtc(f"compute_{max(older)}", (major, minor))


def _compiled(result: Any) -> Any:
    """What a function of NVRTC gives.

    Raises:
        CompileError: it gives an error.
    """
    status, *values = result
    if int(status):
        raise CompileError(f"NVRTC cannot compile: {status.name}")
    return values[0] if values else None


def _bindings(name: str) -> Any:
    """A module of cuda-bindings.

    Raises:
        NoCompiler: there is no such package.
    """
    try:
        return importlib.import_module(f"cuda.bindings.{name}")
    except ImportError as error:
        wanted = "" if torch.version.cuda is None else f"=={torch.version.cuda.split('.')[0]}.*"
        raise NoCompiler(
            "kernels on GPUs need NVIDIA's package cuda-bindings, which PyTorch's own packages for CUDA bring along: "
            f'pip install "cuda-bindings{wanted}" ({error})'
        ) from None


def _major() -> int:
    """The version of CUDA that the bindings are for."""
    return int(importlib.import_module("cuda.bindings").__version__.split(".")[0])


def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _number(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def _stream(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream
