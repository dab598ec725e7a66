"""Device, arithmetic and randomness."""

from __future__ import annotations

import os
import platform
import resource
import sys
import zlib
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

from pipeline.errors import InputError
from pipeline.params import Runtime


def start(runtime: Runtime) -> torch.device:
    """Set threads, precision and determinism for this process; choose and check the device.

    Raises:
        InputError: the device asked for is not there.
    """
    torch.set_num_threads(runtime.threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic with it
    # use_deterministic_algorithms(True) also imports torch's compiler: a second and 150 MB
    torch.set_deterministic_debug_mode("error")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    tf32 = runtime.precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    name = runtime.device
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"params.yaml: runtime.device: {name} is not there ({torch.cuda.device_count()} CUDA "
            "devices found); use auto or cpu"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("params.yaml: runtime.device: mps is not there; use auto or cpu")
    return device


def device_name(device: torch.device) -> str:
    """The device in words, such as ``cpu`` or ``cuda (NVIDIA H200)``."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return device.type


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context in which forward passes run."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def stream_seed(seed: int, stream: str) -> int:
    """The seed of one named stream of a repetition; equal for all methods."""
    return int(np.random.SeedSequence([zlib.crc32(stream.encode()), seed]).generate_state(1)[0])


def generator(seed: int, stream: str) -> torch.Generator:
    """A CPU generator of its own for one stream: ``order``, ``augmentation``, …"""
    return torch.Generator().manual_seed(stream_seed(seed, stream))


def peak_memory_mb(device: torch.device) -> float:
    """Most memory held so far, in MB: of the device if it has its own, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3


def versions() -> dict[str, str]:
    """Versions that can alter a model's bytes."""
    found = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": str(torch.__version__),
    }
    if torch.version.cuda and torch.cuda.is_available():
        found["cuda"] = torch.version.cuda
    return found
