"""Checkpoints: how far training is at the end of an epoch, to go on from there after a crash.

A phase that goes on gives the same bytes as one that was never interrupted. A checkpoint is found
by a key of all that could make it give others: parameters, inputs, code, versions, device.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pipeline.records import whole_or_none
from pipeline.training.phase import Phase

Tree = Any  # dicts and lists of tensors and of what JSON has
CHECKPOINT_SECONDS = 5.0  # the least between two
SHARE = 0.02  # of training time that checkpoints may cost
SPEED = 2.5e8  # bytes a second, until the first one has shown it
TENSOR = "$tensor"


class Stateful(Protocol):
    """What can be taken down and put back."""

    def state_dict(self) -> Tree:
        """Its state."""

    def load_state_dict(self, state: Tree) -> None:
        """Take the state that ``state_dict`` gave."""


class Checkpoint:
    """The checkpoints of one stage of a run: a file for each of its phases.

    A file holds the phase as it was left, or after one of its epochs. It is replaced in one step.
    Files are written at the end of an epoch, when ``CHECKPOINT_SECONDS`` are over and writing takes
    no more than ``SHARE`` of the time since. A damaged file is ignored with one line: its phase
    begins anew. Where none can be written, one line says so, and training goes on.

    Copying waits for the device, which has nothing to do at the end of an epoch anyway, since its
    metrics were fetched.
    """

    def __init__(self, folder: Path, device: torch.device):
        """Nothing is read or written yet.

        Args:
            folder: of this stage, this run and this key alone.
            device: where the tensors of a phase are wanted.
        """
        self._folder, self._device = folder, device
        self._phase = 0
        self._finished: dict[int, Tree] = {}  # phases whose files do not say so yet
        self._known: Tree = None
        self._rests_since, self._speed, self._works = time.monotonic(), SPEED, True

    @property
    def known(self) -> Tree:
        """What was found of the phase at hand; None: it begins."""
        return self._known

    @property
    def phase_is_finished(self) -> bool:
        """Whether nothing is left to do in the phase at hand."""
        return bool(self._known and self._known["finished"])

    def begin(self) -> None:
        """The next phase of the stage is at hand."""
        self._phase += 1
        self._known = self._read(self._path(self._phase))

    def offer(self, make: Callable[[], Tree]) -> None:
        """Write what ``make`` says of the phase at hand, at the end of an epoch, if it is time."""
        waited = time.monotonic() - self._rests_since
        if not self._works or waited < CHECKPOINT_SECONDS:
            return
        trees = {**self._finished, self._phase: {**make(), "finished": False}}
        files = {self._path(number): _pack(tree) for number, tree in trees.items()}
        size = sum(tensor.nbytes for _, tensors in files.values() for tensor in tensors)
        if size / self._speed > waited * SHARE:
            return
        started = time.monotonic()
        try:
            for path, (tree, tensors) in files.items():
                _write(path, tree, tensors)
        except OSError as error:
            self._works = False
            self._warn(f"no checkpoint could be written ({_line(error)}); training goes on")
            return
        self._finished = {}
        self._rests_since = time.monotonic()
        self._speed = size / max(self._rests_since - started, 1e-6)

    def finish(self, tree: Tree) -> None:
        """The phase at hand was left as ``tree`` says, which the next file to be written needs."""
        if not self.phase_is_finished:
            self._finished[self._phase] = {**tree, "finished": True}

    def drop(self) -> None:
        """Remove all files: what they were for is done."""
        shutil.rmtree(self._folder, ignore_errors=True)
        with suppress(OSError):
            self._folder.parent.rmdir()  # if it was the last

    def _path(self, phase: int) -> Path:
        return self._folder / f"{phase}.safetensors"

    def _read(self, path: Path) -> Tree:
        try:
            return _read(path, self._device) if path.is_file() else None
        except (OSError, ValueError, LookupError, TypeError) as error:
            self._warn(f"is damaged and ignored ({_line(error)}); the phase begins anew", path)
            return None

    def _warn(self, problem: str, path: Path | None = None) -> None:
        print(f"warning: {path or self._folder}: {problem}", file=sys.stderr)


class Memory:
    """What a phase carries from one epoch to the next, beside its module and the optimizer.

    It is found by what the phase's functions can reach, through closures and attributes: torch's
    generators; tensors of modules outside the network, such as the proxies of a loss; and objects
    that have ``state_dict`` and ``load_state_dict``. Then there are torch's own generators. A
    function that remembers anything else needs an object with these two methods.
    """

    def __init__(self, phase: Phase, device: torch.device):
        self._device = device
        found = list(_reachable([phase.batches, phase.loss, phase.validate, phase.training_mode]))
        self._generators = [of for of in found if isinstance(of, torch.Generator)]
        modules = [of for of in found if isinstance(of, nn.Module)]
        self._others = [of for of in found if not isinstance(of, torch.Generator | nn.Module)]
        theirs = [tensor for module in modules for tensor in _tensors(module)]
        theirs += [parameter for group in phase.groups for parameter in group["params"]]
        network = [module for module in (phase.module, phase.network) if module is not None]
        known = {id(tensor) for module in network for tensor in _tensors(module)}
        self._tensors = list({id(of): of for of in theirs if id(of) not in known}.values())

    def state_dict(self) -> dict[str, Any]:
        """All of it as it is now; tensors of losses are not copied."""
        return {
            "generators": [generator.get_state() for generator in self._generators],
            "tensors": [tensor.detach() for tensor in self._tensors],
            "others": [other.state_dict() for other in self._others],
            "torch": _random_state(self._device),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what ``state_dict`` gave."""
        for generator, was in zip(self._generators, state["generators"], strict=True):
            generator.set_state(was)
        with torch.no_grad():
            for tensor, was in zip(self._tensors, state["tensors"], strict=True):
                tensor.copy_(was)
        for other, was in zip(self._others, state["others"], strict=True):
            other.load_state_dict(was)
        _set_random_state(self._device, state["torch"])


def _reachable(roots: list[Any]) -> Iterator[Any]:
    """Generators, modules and other objects with a state, each once, the nearest first."""
    waiting, seen = deque(roots), set[int]()
    while waiting:
        item = waiting.popleft()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, type | ModuleType | Tensor):
            continue
        if isinstance(item, torch.Generator) or hasattr(item, "load_state_dict"):
            yield item
        else:
            waiting.extend(_held(item))


def _held(item: Any) -> list[Any]:
    """What a function or another object holds."""
    if isinstance(item, dict):
        return list(item.values())
    if isinstance(item, list | tuple):
        return list(item)
    if isinstance(item, MethodType):
        return [item.__self__, item.__func__]
    if isinstance(item, partial):
        return [item.func, *item.args, *item.keywords.values()]
    if isinstance(item, FunctionType):
        cells = item.__closure__ or ()
        return [*_contents(cells), *(item.__defaults__ or ())]
    return list(getattr(item, "__dict__", {}).values())


def _contents(cells: tuple[Any, ...]) -> Iterator[Any]:
    for cell in cells:
        with suppress(ValueError):  # it is still empty
            yield cell.cell_contents


def _tensors(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers themselves."""
    return list(module.state_dict(keep_vars=True).values())


def _random_state(device: torch.device) -> list[Tensor]:
    """The states of torch's own generators, which dropout draws from."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    elif device.type == "mps":
        states.append(torch.mps.get_rng_state())
    return states


def _set_random_state(device: torch.device, states: list[Tensor]) -> None:
    own, *others = states
    torch.set_rng_state(own)
    for state in others:
        if device.type == "cuda":
            torch.cuda.set_rng_state(state, device)
        else:
            torch.mps.set_rng_state(state)


def _pack(tree: Tree) -> tuple[Tree, list[Tensor]]:
    """The tree with the numbers of its tensors in their place, and those, each once."""
    tensors: dict[int, Tensor] = {}
    places: dict[int, int] = {}

    def packed(part: Tree) -> Tree:
        if isinstance(part, Tensor):
            place = places.setdefault(id(part), len(places))
            tensors[place] = part
            return {TENSOR: place, "on": part.device.type}
        if isinstance(part, dict):
            return {key: packed(value) for key, value in part.items()}
        if isinstance(part, list | tuple):
            return [packed(value) for value in part]
        return part

    return packed(tree), list(tensors.values())


def _write(path: Path, tree: Tree, tensors: list[Tensor]) -> None:
    """Write a whole file or none; a checksum of each tensor tells whether it is sound.

    Raises:
        OSError: it could not be written.
    """
    from safetensors.torch import save_file

    rows = [of.detach().cpu().contiguous() for of in tensors]
    metadata = {"tree": json.dumps(tree), "crc32": json.dumps([_crc32(of) for of in rows])}
    named = {str(place): of for place, of in enumerate(rows)}
    with _safetensors_error_as(OSError), whole_or_none(path) as beside:
        save_file(named, beside, metadata)


@contextmanager
def _safetensors_error_as(kind: type[Exception]) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise kind(str(error)) from None


def _read(path: Path, device: torch.device) -> Tree:
    """The tree of a file; tensors that were not on the CPU are on ``device``.

    Raises:
        OSError, ValueError, LookupError, TypeError: it is damaged.
    """
    from safetensors import safe_open

    with _safetensors_error_as(ValueError), safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tree, sums = json.loads(metadata["tree"]), json.loads(metadata["crc32"])
        tensors = [file.get_tensor(str(place)) for place in range(len(sums))]
    if [_crc32(of) for of in tensors] != sums:
        raise ValueError("its checksums are others")

    def unpacked(part: Tree) -> Tree:
        if isinstance(part, list):
            return [unpacked(value) for value in part]
        if not isinstance(part, dict):
            return part
        if TENSOR in part:
            tensor = tensors[part[TENSOR]]
            return tensor if part["on"] == "cpu" else tensor.to(device)
        return {key: unpacked(value) for key, value in part.items()}

    return unpacked(tree)


def _crc32(tensor: Tensor) -> int:
    return zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
