"""Device, arithmetic and randomness."""

from __future__ import annotations

import errno
import os
import platform
import resource
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch

from pipeline.errors import InputError
from pipeline.params import Runtime

# what errors of PyTorch say that have no class of their own
OUT_OF_MEMORY = ("out of memory", "DefaultCPUAllocator", "not enough memory", "_ALLOC_FAILED")
NOT_DETERMINISTIC = " does not have a deterministic implementation"
SMALLER = (
    "lower data.image_size or compare.shots, take a smaller model.architecture, "
    "data.placement: streamed, runtime.precision: bf16, or fewer JOBS"
)


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


@contextmanager
def in_one_line(what: str | Callable[[], str], advice: str = SMALLER) -> Iterator[None]:
    """Say in one line, with what to change, what this machine cannot do inside.

    Args:
        what: is being done, for the beginning of the line; called when it is needed.
        advice: what would need less memory.

    Raises:
        InputError: memory ran out, on the host or on the device, or an operation has no
            deterministic form there.
    """
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        said, doing = str(error), what if isinstance(what, str) else what()
        if is_out_of_memory(error):
            told = f" ({_cause(said)})" if said else ""
            raise InputError(f"{doing}: out of memory{told}; {advice}") from None
        if NOT_DETERMINISTIC in said:
            operation = said.partition(NOT_DETERMINISTIC)[0].split()[-1]
            raise InputError(
                f"{doing}: {operation} has no deterministic form on this device, and a rerun would "
                "give other numbers; take another model.architecture or loss, or "
                "runtime.device: cpu"
            ) from None
        raise


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the host or the device has too little memory."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in OUT_OF_MEMORY)


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


def _cause(text: str) -> str:
    """The sentence of PyTorch's error that says what there is too little of; else the first."""
    sentences = " ".join(text.split()).rstrip(".").split(". ")
    telling = (one for one in sentences if any(sign in one for sign in OUT_OF_MEMORY))
    return next(telling, sentences[0])
