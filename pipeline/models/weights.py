"""Starting weights: where they come from, how they fit a network, and their file.

The file holds every tensor of a network's state dict but those of the last layer, whose shape
depends on the number of classes.
"""

from __future__ import annotations

import pickle
import re
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.models import bvlc
from pipeline.models.architectures import OWN, check_known
from pipeline.records import write_atomically

SHOWN = 3
# Names in torchvision's published files that its networks no longer use: those of DenseNet's
# layers and of ViT's perceptrons.
_RENAMED = (
    (re.compile(r"(\.denselayer\d+\.(?:norm|conv))\.(\d\.)"), r"\1\2"),
    (re.compile(r"(\.mlp)\.linear_1\."), r"\1.0."),
    (re.compile(r"(\.mlp)\.linear_2\."), r"\1.3."),
)


def save(path: Path | str, tensors: Mapping[str, Tensor]) -> None:
    """Write a whole safetensors file or none; the same tensors give the same bytes."""
    import safetensors.torch

    own = {
        # tensors that share memory, such as views, are refused
        key: tensors[key].detach().cpu().clone(memory_format=torch.contiguous_format)
        for key in sorted(tensors)
    }
    write_atomically(path, safetensors.torch.save(own))


def load(path: Path | str) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        InputError: there is none, or it is broken.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: there is no such file")
    return _load_safetensors(path, str(path))


def from_imagenet(architecture: str) -> dict[str, Tensor]:
    """torchvision's own weights, downloaded once and checked by their hash.

    Raises:
        InputError: the architecture has none, or they can be neither found nor downloaded.
    """
    check_known(architecture)
    if architecture in OWN:
        raise InputError(
            f"weights.from: imagenet: {architecture} has no such weights; use none, file or source"
        )
    import torchvision

    weights = torchvision.models.get_model_weights(architecture).DEFAULT
    place = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    try:
        tensors = weights.get_state_dict(
            progress=sys.stderr.isatty(), check_hash=True, weights_only=True
        )
    except (OSError, HTTPException) as error:
        raise InputError(
            f"weights.from: imagenet: could not download {weights.url}: {_sentence(error)}; "
            f"put the file at {place} or use weights.from: file"
        ) from None
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(
            f"weights.from: imagenet: {place} is not what {weights.url} should be: "
            f"{_sentence(error)}; remove it and try again"
        ) from None
    return _renamed(tensors)


def from_file(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors``, ``.pth``, ``.pt`` or ``.npy`` file.

    A state dict may stand under ``state_dict`` or ``model``, with other things beside it, and
    its names may begin with ``module.``, as data-parallel training writes them. A ``.npy`` file
    is the published one of ``bvlc_alexnet``: a dict of layers (``bvlc.state_dict``). Nothing in
    the file is executed.

    Raises:
        InputError: no such file, another suffix, a broken file, one with more than tensors (or
            arrays) and plain values, or one without a state dict (or layers).
    """
    path = Path(path)
    origin = f"weights.file: {path}"
    readers = {
        ".safetensors": _load_safetensors,
        ".pth": _unpickle,
        ".pt": _unpickle,
        ".npy": _load_npy,
    }
    if path.suffix not in readers:
        raise InputError(f"{origin}: must end in {', '.join(readers)}")
    if not path.is_file():
        raise InputError(f"{origin}: there is no such file")
    tensors = readers[path.suffix](path, origin)
    if not tensors:
        raise InputError(f"{origin}: holds no state dict (tensors by their names)")
    if all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): tensor for key, tensor in tensors.items()}
    return _renamed(tensors)


def fit(
    tensors: Mapping[str, Tensor], network: nn.Module, classifier: set[str], origin: str
) -> tuple[dict[str, Tensor], list[str]]:
    """What ``network`` takes from ``tensors``, in its own dtypes.

    The counters that batch norm had not in older files may be absent: they start from zero.

    Args:
        tensors: by their state-dict keys.
        network: the one to start from them.
        classifier: keys of the last layer, which is left out whatever ``tensors`` has for it.
        origin: where the tensors are from, for messages.

    Returns:
        A tensor for each key of the network but the classifier's, and notes on what was left
        out, one line each.

    Raises:
        InputError: a key of the network is absent, has another shape, is no plain tensor of real
            numbers, or is not finite in the network's dtype.
    """
    wanted = {key: own for key, own in network.state_dict().items() if key not in classifier}
    given = dict(tensors)
    for key, own in wanted.items():
        if key.endswith(".num_batches_tracked"):
            given.setdefault(key, torch.zeros_like(own, device="cpu"))
    odd = [f"{key} is {_odd(given[key])}" for key in wanted if key in given and _odd(given[key])]
    if odd:
        raise InputError(
            f"{origin}: {len(odd)} tensors are no plain real numbers ({_some(odd, '; ')}); save "
            "the state_dict() of a network in float32"
        )
    misfits = [
        f"{key} is {_shape(given[key])} instead of {_shape(own)}"
        if key in given
        else f"{key} is missing"
        for key, own in wanted.items()
        if key not in given or given[key].shape != own.shape
    ]
    if misfits:
        raise InputError(
            f"{origin}: {len(misfits)} of {len(wanted)} tensors do not fit the network "
            f"({_some(misfits, '; ')}); weights of another architecture or image size?"
        )
    fitted = {key: given[key].to(own.dtype) for key, own in wanted.items()}
    broken = [key for key in wanted if not _is_finite(given[key], fitted[key])]
    if broken:
        raise InputError(
            f"{origin}: {len(broken)} tensors hold NaN or infinity ({_some(broken, ', ')}); "
            "use the weights of a training that did not diverge"
        )
    extra = sorted(given.keys() - wanted.keys() - classifier)
    notes = [f"{origin}: {len(extra)} tensors not used ({_some(extra, ', ')})"] if extra else []
    return fitted, notes


def load_start(network: nn.Module, path: Path | str, classifier: set[str]) -> None:
    """Start ``network`` from the file that ``save`` wrote; an empty file leaves it as it is.

    Raises:
        InputError: the file is missing, broken, or of another network.
    """
    tensors = load(path)
    if tensors:
        put(network, fit(tensors, network, classifier, str(path))[0])


def put(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into a network, by their keys.

    ``load_state_dict`` will not do: MNASNet's refuses a dict that is no state dict of its own.
    """
    state = network.state_dict()
    with torch.no_grad():
        for key, tensor in tensors.items():
            state[key].copy_(tensor)


def restore(network: nn.Module, path: Path | str) -> None:
    """Load a trained model's file, which must hold the whole of the network and nothing else.

    Raises:
        InputError: the file is broken or of another network.
    """
    tensors = load(path)
    state = network.state_dict()
    same = tensors.keys() == state.keys()
    if not same or any(tensors[key].shape != state[key].shape for key in state):
        raise InputError(f"{path}: is the model of another network; train it again with dvc repro")
    put(network, tensors)


def _load_safetensors(path: Path | str, origin: str) -> dict[str, Tensor]:
    import safetensors.torch

    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{origin}: not a whole safetensors file: {_sentence(error)}") from None
    return tensors


def _unpickle(path: Path, origin: str) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles of other makers, which then fail
            _check_stored(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{origin}: holds more than tensors and plain values, or is no PyTorch "
            "file; save the network's state_dict() alone"
        ) from None
    except Exception:  # torch.load raises nearly any for a broken file
        raise InputError(f"{origin}: is broken or no PyTorch file") from None
    return _state_dict(content)


def _check_stored(path: Path) -> None:
    """ValueError if a file has packed records, as torch never writes them: they may be endless."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
                raise ValueError("packed records")


def _load_npy(path: Path, origin: str) -> dict[str, Tensor]:
    """A state dict of ``bvlc_alexnet`` from a 0-d array that holds a dict of its layers."""
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about headers that Python 2 wrote
            shape, dtype = _npy_header(file)
            content = _PlainUnpickler(file).load() if dtype.hasobject else None
    except _NotPlain as error:
        raise InputError(
            f"{origin}: refused, since it holds {str(error)[:100]!r}; right are NumPy arrays, "
            "dicts, lists, strings and numbers alone"
        ) from None
    except Exception:  # unpicklers raise nearly any for a broken file
        raise InputError(f"{origin}: is broken or no NumPy file") from None
    objects = _unwrapped(content)
    content = objects[0] if isinstance(objects, list) and len(objects) == 1 else None
    if shape != () or not isinstance(content, dict):
        raise InputError(
            f"{origin}: holds no dict of layers, as numpy.save writes it of "
            "{'conv1': [weights, biases], …}"
        )
    layers = {name: _with_arrays(_unwrapped(layer)) for name, layer in content.items()}
    return bvlc.state_dict(layers, origin)


def _with_arrays(layer: Any) -> Any:
    """A layer's list or dict with arrays in place of what stands for them."""
    if isinstance(layer, dict):
        return {key: _unwrapped(value) for key, value in layer.items()}
    if isinstance(layer, list | tuple):
        return [_unwrapped(value) for value in layer]
    return layer


def _unwrapped(value: Any) -> Any:
    return value.value if isinstance(value, _Array) else value


def _npy_header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype; ValueError if there is none. Version 3 is for names that are no Latin-1."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    return shape, dtype


class _NotPlain(pickle.UnpicklingError):
    """A pickle names something other than what makes up an array."""


class _Kind:
    """Stands for a dtype while a pickle is read."""

    def __init__(self, code: str, *_: Any):
        self.code, self.byte_order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.byte_order = state[1]

    def array(self, data: Any, shape: tuple[int, ...], order: Any) -> np.ndarray | list[Any]:
        """The array of these bytes, or the flat list of its objects."""
        if self.code in ("O", "O4", "O8"):
            return list(data)
        if not _NUMERIC.fullmatch(self.byte_order + self.code):
            raise _NotPlain(f"an array of {self.code}")
        # Python 2 wrote bytes as what is read as Latin-1 text
        data = data.encode("latin1") if isinstance(data, str) else data
        return np.frombuffer(data, self.byte_order + self.code).reshape(shape, order=order)


class _Array:
    """Stands for an array while a pickle is read, as ``numpy.core.multiarray._reconstruct``.

    NumPy's own would trust what the pickle says of a dtype's memory.
    """

    value: np.ndarray | list[Any] | None = None

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, data = state
        self.value = _Kind.array(kind, data, shape, "F" if fortran else "C")


class _BufferArray(_Array):
    """The same as ``numpy.core.numeric._frombuffer``, which protocol 5 uses."""

    def __init__(self, data: Any, kind: Any, shape: Any, order: Any, *_: Any):
        self.value = _Kind.array(kind, data, shape, order)


class _Latin1(bytes):
    """Stands for ``_codecs.encode``, by which protocols 0 to 2 write bytes."""

    def __new__(cls, text: str, _encoding: str) -> _Latin1:
        return super().__new__(cls, text.encode("latin1"))

    def __setstate__(self, state: Any) -> None:
        raise _NotPlain("bytes with a state")


_NUMERIC = re.compile(r"[<>=|]([biu]1|[iuf][248])")
_STAND_INS: dict[str, type | str] = {
    "numpy.dtype": _Kind,
    "numpy.ndarray": "an argument of _reconstruct that nothing needs",
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy.core.numeric._frombuffer": _BufferArray,
    "_codecs.encode": _Latin1,
}


def _keyed(opcode: bytes, keys: slice) -> Callable[[Any], None]:
    """What the unpickler does at an opcode that fills a dict, once its keys are found plain."""
    carry_out = pickle._Unpickler.dispatch[opcode[0]]

    def guarded(self: Any) -> None:
        for key in self.stack[keys]:
            if not isinstance(key, str | int | float | bytes | None):
                raise _NotPlain("a dict with keys that are no text or numbers")
        carry_out(self)

    return guarded


def _no_set(self: Any) -> None:
    raise _NotPlain("a set")


class _PlainUnpickler(pickle._Unpickler):
    """Reads a pickle of plain values and arrays; no function or class that it names is called.

    The few names of an array's pickle get classes from here instead, and all others are refused:
    calling what a pickle names is the only way in which one can execute anything. The unpickler
    in C would hash nested tuples, which can crash or take for ever, and take memory for whatever
    index a file gives a part; this one has few steps to make, as arrays are one each.
    """

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,
        pickle.SETITEM[0]: _keyed(pickle.SETITEM, slice(-2, None, 2)),
        pickle.SETITEMS[0]: _keyed(pickle.SETITEMS, slice(None, None, 2)),  # since the mark
        pickle.DICT[0]: _keyed(pickle.DICT, slice(None, None, 2)),
        pickle.EMPTY_SET[0]: _no_set,
        pickle.FROZENSET[0]: _no_set,
    }

    def __init__(self, file: BinaryIO):
        super().__init__(file, encoding="latin1")

    def find_class(self, module: str, name: str, /) -> Any:
        """Our stand-in for the name; raises ``_NotPlain`` if there is none."""
        full = f"{module}.{name}".replace("numpy._core.", "numpy.core.", 1)  # as in NumPy 2
        if full not in _STAND_INS:
            raise _NotPlain(full)
        return _STAND_INS[full]


def _state_dict(content: Any) -> dict[str, Tensor]:
    """The tensors of a state dict or of a checkpoint that holds one; none if it is neither."""
    if not isinstance(content, Mapping):
        return {}
    for key in ("state_dict", "model"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
    return {
        key: value
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for key, tensor in tensors.items():
        for old, new in _RENAMED:
            key = old.sub(new, key)
        renamed[key] = tensor
    return renamed


def _odd(tensor: Tensor) -> str:
    """What keeps a tensor from being an array of real numbers; nothing if it is one."""
    if tensor.is_nested:
        return "nested"
    if tensor.layout != torch.strided:
        return "sparse"
    if tensor.is_quantized:
        return "quantized"
    if tensor.device.type == "meta":
        return "without values"
    return str(tensor.dtype) if tensor.is_complex() else ""


def _is_finite(tensor: Tensor, fitted: Tensor) -> bool:
    """Whether all values are, as they are and in the network's dtype, which may hold less."""
    as_it_is = fitted if fitted.is_floating_point() else tensor.double()
    return bool(as_it_is.isfinite().all())


def _shape(tensor: Tensor) -> str:
    return "x".join(str(side) for side in tensor.shape) or "a single number"


def _some(texts: Iterable[str], separator: str) -> str:
    texts = list(texts)
    return separator.join(texts[:SHOWN] + ["…"] * (len(texts) > SHOWN))


def _sentence(error: Exception) -> str:
    """The first sentence of an error; torch's go on for a paragraph."""
    text = " ".join(str(getattr(error, "reason", "") or error).split())
    return text.split(". ")[0].rstrip(".") or type(error).__name__
