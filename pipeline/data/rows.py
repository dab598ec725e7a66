"""Rows of images or latents by position: kept on the device, or streamed to it batch by batch.

Where they lie alters no number: the same positions give the same bytes.
"""

from __future__ import annotations

import errno
import itertools
import math
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from threading import Thread
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.data.memory import available_memory
from pipeline.errors import InputError
from pipeline.params import Placement

Array: TypeAlias = npt.NDArray[np.int64]
Bytes: TypeAlias = npt.NDArray[np.uint8]

AHEAD = 2  # batches gathered while one is in use
SLOTS = AHEAD + 4  # page-locked buffers: how far the host may run ahead of a GPU
SHARE = 0.5  # of free memory that rows may take before they are streamed
GATHERING = "gather rows"  # the name of the threads


class Streamed:
    """Rows (N, ...) of a file mapped into memory, a batch at a time on the device.

    A batch is gathered by a thread of its own, ``AHEAD`` batches before it is asked for. The
    thread ends with its batch, so that whoever stops in the middle of an epoch has nothing to
    clear up; what goes wrong in it is raised where the batch is asked for.

    Args:
        content: the file, (M, bytes of a row).
        places: the row of ``content`` at each position, (N,).
        shape: of a row.
        dtype: of its elements.
        device: where batches are wanted.
        memory_format: of batches.
        turns: of square images, how each is turned, (N,) as in ``turned``; None: as they are.
    """

    def __init__(
        self,
        content: Bytes,
        places: Array,
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
        memory_format: torch.memory_format = torch.contiguous_format,
        turns: Array | None = None,
    ) -> None:
        self.content, self.places, self.device = content, places, device
        self.shape, self.dtype = torch.Size([len(places), *shape]), dtype
        self.memory_format, self.turns = memory_format, turns

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.places)

    def stream(self, drawn: Iterable[Tensor]) -> Iterator[Tensor]:
        """The rows (B, ...) at each of these positions (B,), which are on the CPU."""
        if self.device.type == "cuda":
            batches = self._stream_to_cuda(drawn)
        else:
            gathered = self._gathered(drawn, lambda number, rows: self._buffer(rows))
            batches = (batch.to(self.device) for batch in gathered)
        return (batch.contiguous(memory_format=self.memory_format) for batch in batches)

    def turned(self, turns: int) -> Streamed:
        """The images, and after them those of each further turn, (``turns`` * N, C, H, W)."""
        return Streamed(
            self.content,
            np.tile(self.places, turns),
            self.shape[1:],
            self.dtype,
            self.device,
            self.memory_format,
            np.arange(turns).repeat(len(self)),
        )

    def on_cpu(self) -> Tensor:
        """All rows in order as a tensor whose memory is the file's; they must be whole and as is.

        Only for what ``keep`` made: it takes ``content`` as it lies.
        """
        return _as(torch.from_numpy(self.content), self.shape, self.dtype)

    def _buffer(self, rows: int, pinned: bool = False) -> Tensor:
        return torch.empty(rows, self.content.shape[1], dtype=torch.uint8, pin_memory=pinned)

    def _gathered(
        self, drawn: Iterable[Tensor], buffer: Callable[[int, int], Tensor]
    ) -> Iterator[Tensor]:
        """Batches on the CPU, in memory that ``buffer`` has for each by its number and size."""
        waiting: deque[Future[Tensor]] = deque()
        for number, index in enumerate(drawn):
            memory = buffer(number, len(index))
            waiting.append(_in_thread(self._gather, index.numpy(), memory))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _gather(self, index: Array, buffer: Tensor) -> Tensor:
        # NumPy lets other threads run meanwhile; any mode but raise writes without a copy between
        np.take(self.content, self.places[index], axis=0, out=buffer.numpy(), mode="clip")
        rows = _as(buffer, [len(index), *self.shape[1:]], self.dtype)
        if self.turns is not None:
            turns = self.turns[index]
            for turn in np.unique(turns[turns > 0]).tolist():
                some = torch.from_numpy(np.flatnonzero(turns == turn))
                rows[some] = turned(rows[some], turn)
        return rows

    def _stream_to_cuda(self, drawn: Iterable[Tensor]) -> Iterator[Tensor]:
        """Each batch is copied on a stream of its own while the one before it is in use.

        All calls of CUDA are made here and none in the threads, so that a graph may be captured
        between two batches. A copy waits for the work on earlier batches: no more than two are
        on the device, besides those that their user still holds.
        """
        side = torch.cuda.Stream(self.device)
        buffers = [self._buffer(0)] * SLOTS
        copied = [torch.cuda.Event() for _ in buffers]

        def buffer(number: int, rows: int) -> Tensor:
            slot = number % SLOTS
            copied[slot].synchronize()  # waits only where the host is ``SLOTS`` batches ahead
            if len(buffers[slot]) < rows:
                buffers[slot] = self._buffer(rows, pinned=True)
            return buffers[slot][:rows]

        sent: list[tuple[Tensor, torch.cuda.Event]] = []
        for number, batch in enumerate(self._gathered(drawn, buffer)):
            side.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(side):
                sent.append((batch.to(self.device, non_blocking=True), copied[number % SLOTS]))
                sent[-1][1].record(side)
            if len(sent) > 1:
                yield _arrived(*sent.pop(0))
        for batch, event in sent:
            yield _arrived(batch, event)


Rows: TypeAlias = Tensor | Streamed


def stream(rows: Rows, drawn: Iterable[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
    """The rows (B, ...) of each batch of an epoch, on the device.

    Args:
        rows: (N, ...).
        drawn: positions of each batch (B,), on the CPU, and the same on the device.
    """
    if isinstance(rows, Streamed):
        return rows.stream(index for index, _ in drawn)
    return (rows[index] for _, index in drawn)


def in_order(rows: Rows, size: int) -> Iterator[Tensor]:
    """All rows in order, in batches of ``size``."""
    if isinstance(rows, Streamed):
        return rows.stream(torch.arange(len(rows)).split(size))
    return iter(rows.split(size))


def take(rows: Rows, index: Tensor) -> Tensor:
    """The rows at some positions (B,), which are on the CPU."""
    if isinstance(rows, Streamed):
        return next(rows.stream([index]))
    return rows[index.to(rows.device)]


def together(parts: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors of one type on the device after a single transfer, as views of what was sent."""
    if not parts:
        return []
    joined = torch.cat(list(parts))
    if device.type == "cuda":
        joined = joined.pin_memory()  # else the host would wait for all that the device has to do
    return list(joined.to(device, non_blocking=True).split([len(part) for part in parts]))


def keep(parts: Iterator[Tensor], count: int, device: torch.device, placement: Placement) -> Rows:
    """Keep rows that are made batch by batch, on the device if they fit there.

    Else they go to a temporary file, which has no name and is gone with the last use of it.

    Args:
        parts: batches (B, ...), one at least.
        count: rows in all, N.
        device: where they are wanted.
        placement: as of ``resident``; what fits is told from the first batch.

    Raises:
        InputError: there is no room for the file.
    """
    first = next(parts)
    parts = itertools.chain([first], parts)
    if resident(count * _row_bytes(first), device, placement):
        kept = torch.empty(
            (count, *first.shape[1:]),
            dtype=first.dtype, device=device, memory_format=_memory_format(first),
        )  # fmt: skip
        done = 0
        for part in parts:
            kept[done : done + len(part)] = part
            done += len(part)
        return kept
    content = _mapped(parts, count, _row_bytes(first))
    places = np.arange(count)
    return Streamed(content, places, first.shape[1:], first.dtype, device, _memory_format(first))


def resident(size: int, device: torch.device, placement: Placement) -> bool:
    """Whether rows of so many bytes are kept on the device.

    Args:
        size: bytes of all of them.
        device: where they are used.
        placement: ``resident`` or ``streamed``; ``auto`` goes by the device's free memory, of
            which they may take ``SHARE``.
    """
    if placement == "auto":
        return size <= SHARE * _free_memory(device)
    return placement == "resident"


def turned(images: Tensor, turn: int) -> Tensor:
    """Images (N, C, H, W) by quarter turns: 0 to 3, and 4 to 7 of the mirror image."""
    return torch.rot90(images.flip(3) if turn >= 4 else images, turn % 4, (2, 3))


def _arrived(batch: Tensor, event: torch.cuda.Event) -> Tensor:
    """A batch, once the device's own stream waits for its copy."""
    torch.cuda.current_stream(batch.device).wait_event(event)
    return batch


def _in_thread(work: Callable[..., Tensor], *arguments: Any) -> Future[Tensor]:
    """What ``work`` will give, in a thread that lives no longer than it does."""
    future: Future[Tensor] = Future()

    def run() -> None:
        try:
            future.set_result(work(*arguments))
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, name=GATHERING).start()
    return future


def _as(content: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Bytes (N, bytes of a row) as rows of another type and shape (N, ...), without a copy."""
    return content.view(dtype).view(*shape)


def _row_bytes(rows: Tensor) -> int:
    return math.prod(rows.shape[1:]) * rows.element_size()


def _memory_format(rows: Tensor) -> torch.memory_format:
    last = rows.ndim == 4 and rows.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last and not rows.is_contiguous() else torch.contiguous_format


def _mapped(parts: Iterator[Tensor], count: int, row_bytes: int) -> Bytes:
    """Batches as bytes (N, bytes of a row) in a file without a name, mapped into memory."""
    try:
        with tempfile.TemporaryFile() as file:
            for part in parts:
                file.write(part.contiguous().cpu().view(torch.uint8).numpy().data)
            file.flush()
            # copy on write, as torch takes no memory that it may not write to
            return np.memmap(file, np.uint8, mode="c", shape=(count, row_bytes))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise InputError(
            f"{tempfile.gettempdir()}: no room for the latents of {count} images, "
            f"{count * row_bytes / 1e9:.1f} GB; set TMPDIR to a folder with more, or lower "
            "compare.shots or data.image_size"
        ) from None


def _free_memory(device: torch.device) -> int:
    """Bytes of the device's memory, or of the machine's, that can still be had."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    return available_memory()
