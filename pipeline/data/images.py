"""Decode image files of any common kind to arrays of one shape, as a person sees them."""

from __future__ import annotations

import ctypes
import io
import math
import os
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from pipeline.data.memory import Room, cores
from pipeline.data.sources import Item
from pipeline.errors import InputError
from pipeline.records import check_disk, whole_or_none

Resize = Literal["crop", "squash", "pad"]
Pixels = npt.NDArray[np.uint8]

# Pillow reads more; some of that starts other programs (EPS) or shows no picture
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")

# With antialiasing, as torchvision's ImageNet weights were validated; unlike bicubic it never
# leaves the range of the pixels it averages, so that line drawings get no halo.
FILTER = Image.Resampling.BILINEAR

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

LISTED = 20  # undecodable files that an error names
TASK = 64  # images that a thread takes at once at most: a task each costs more than a small image
PIXELS = 2**26  # in work at once, of up to 16 bytes each; a larger image comes alone
LARGE = 2**20  # pixels of an image whose memory is worth giving back at once
SHARE = 64  # and at least so many times, where there are images enough: none waits long at the end


def decode(data: bytes, size: int, resize: Resize, channels: Literal[1, 3]) -> Pixels:
    """One image file as uint8 pixels of shape (channels, size, size).

    The EXIF orientation is applied; transparent pixels show white; of an animation the first
    frame is taken; 16-bit grey keeps its full range, other deep grey see `_eight_bits`.

    ``resize`` is ``crop`` (shorter side to ``size``, then the centre), ``squash`` (both sides to
    ``size``) or ``pad`` (longer side to ``size``, centred, the outermost pixels repeated into the
    rest: a border in any fixed colour would be a shape of its own on some backgrounds). An image
    of the wanted size already keeps its pixels exactly.

    Of several threads that decode at once one waits where they would have more than ``PIXELS`` in
    memory, so that this is bounded whatever the number of cores.

    Raises:
        InputError: why the file cannot be decoded; without its name, which the caller knows.
    """
    try:
        image, pixels = _opened(data, size)
        with _room.of(pixels):
            decoded = _decoded(image, size, resize, channels)
            del image
            if pixels >= LARGE:
                _give_memory_back()
            return decoded
    except InputError:
        raise
    except UnidentifiedImageError:
        kind = (
            "is empty"
            if not data
            else "is no readable JPEG, PNG, GIF, BMP, TIFF, WebP or PNM image"
        )
        raise InputError(kind) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(
            f"has more than {Image.MAX_IMAGE_PIXELS} pixels; make it smaller"
        ) from None
    except MemoryError:
        raise InputError("needs more memory than there is; make it smaller") from None
    except Exception as error:  # Pillow's readers raise all sorts on damaged files
        raise InputError(f"is damaged: {_one_line(error)}") from None


def decode_all(
    items: Sequence[Item],
    out: Path,
    size: int,
    resize: Resize,
    channels: Literal[1, 3],
    workers: int | None = None,
    progress: bool = True,
) -> None:
    """Decode images in threads to a uint8 ``.npy`` of shape (len(items), channels, size, size).

    Pillow releases the interpreter's lock, so threads use all cores that this process may use
    (``workers`` null). The file is written beside ``out`` and moved there when whole; no more
    images are in memory than there are threads and than `decode` allows, and no more of the file.

    Raises:
        InputError: naming the files that cannot be decoded, each with its reason; or too little
            room on the disk.
    """
    shape = (len(items), channels, size, size)
    out.parent.mkdir(parents=True, exist_ok=True)
    needed = int(np.prod(shape))
    check_disk(out, needed, "the decoded images", "make room, or lower data.image_size")
    with (
        _disk_full(out),
        whole_or_none(out) as beside,
        beside.open("wb") as file,
        _pillow_warnings(),
    ):
        head = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, head)
        file.flush()
        start, each = file.tell(), int(np.prod(shape[1:]))
        file.truncate(start + needed)

        def work(rows: range) -> tuple[int, dict[int, str]]:
            wrong: dict[int, str] = {}
            for row in rows:
                if stopped.is_set():
                    break
                try:
                    pixels = decode(_bytes(items[row]), size, resize, channels)
                    # not through a memory map: its pages would count as this process's memory
                    os.pwrite(file.fileno(), pixels.data, start + row * each)
                except InputError as error:
                    wrong[row] = str(error)
            return len(rows), wrong

        from tqdm import tqdm  # here, as benchmarks.gpu runs without it

        wrong: dict[int, str] = {}
        stopped = threading.Event()
        threads = workers or cores()
        step = min(TASK, 1 + len(items) // (threads * SHARE))
        tasks = [range(row, min(row + step, len(items))) for row in range(0, len(items), step)]
        with (
            ThreadPoolExecutor(threads) as pool,
            tqdm(
                total=len(items),
                desc="decode",
                unit="image",
                disable=None if progress else True,  # None: quiet when no terminal
            ) as bar,
        ):
            try:
                for done, found in pool.map(work, tasks):
                    wrong |= found
                    bar.update(done)
            except BaseException:  # Ctrl-C: the pool waits for what is begun
                stopped.set()
                raise
        _check(items, wrong)


@contextmanager
def _disk_full(out: Path) -> Iterator[None]:
    """Say in one line that a file cannot be written, as where others fill the disk meanwhile."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written: {error.strerror}; make room, or lower data.image_size"
        ) from None


def _bytes(item: Item) -> bytes:
    try:
        return item.read()
    except Exception as error:  # the file system's errors, and all that zipfile raises
        reason = getattr(error, "strerror", None) or _one_line(error)
        raise InputError(f"cannot be read: {reason}") from None


def _check(items: Sequence[Item], reasons: Mapping[int, str]) -> None:
    """Raise one error over all files that have a reason, by row, why they were not decoded."""
    bad = [f"{items[row].place}: {reason}" for row, reason in sorted(reasons.items())]
    if len(bad) == 1:
        raise InputError(f"{bad[0]}; replace or remove this file")
    if bad:
        first = f"{len(bad)} of {len(items)} images cannot be decoded; replace or remove them:"
        rest = [f"and {len(bad) - LISTED} more"] if len(bad) > LISTED else []
        raise InputError(first, *bad[:LISTED], *rest)


@dataclass
class _Quiet:
    """How many threads are where Pillow's warnings are changed, and what they were before."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    inside: int = 0
    caught: warnings.catch_warnings[None] | None = None


_quiet = _Quiet()
_room = Room(PIXELS)


@contextmanager
def _pillow_warnings() -> Iterator[None]:
    """Make the warning of too many pixels an error and drop those of odd metadata.

    Warning filters belong to the whole process: the first thread to come changes them, the last
    to go puts them back, and none waits for another.
    """
    with _quiet.lock:
        if _quiet.inside == 0:
            _quiet.caught = warnings.catch_warnings()
            _quiet.caught.__enter__()
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
        _quiet.inside += 1
    try:
        yield
    finally:
        with _quiet.lock:
            _quiet.inside -= 1
            if _quiet.inside == 0 and _quiet.caught is not None:
                _quiet.caught.__exit__(None, None, None)


def _opened(data: bytes, size: int) -> tuple[Image.Image, int]:
    """The image, of which only the head is read yet, and how many pixels it will be in memory."""
    with _pillow_warnings():
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    whole = math.prod(image.size)
    # JPEG only: decoded at 1/2, 1/4 or 1/8, yet twice the wanted size, so that the filter still
    # decides how the result looks
    image.draft(None, (2 * size, 2 * size))
    # what comes in several passes is put together in full first
    return image, whole if "progressive" in image.info else math.prod(image.size)


def _give_memory_back() -> None:
    """Let others have what was freed: glibc keeps much of it for the thread that had it."""
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def _decoded(image: Image.Image, size: int, resize: Resize, channels: Literal[1, 3]) -> Pixels:
    image.load()
    turn = TURNS.get(_orientation(image))
    image = _flat(image, "L" if channels == 1 else "RGB")
    if turn is not None:
        image = image.transpose(turn)
    pixels = np.asarray(_resized(image, size, resize))
    if resize == "pad":
        pixels = _padded(pixels, size)
    planes = pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
    return np.ascontiguousarray(planes)


def _orientation(image: Image.Image) -> int:
    try:
        with _pillow_warnings():
            return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata: viewers show such an image as it is stored
        return 1


def _flat(image: Image.Image, mode: str) -> Image.Image:
    """The image as 8-bit grey ("L") or colour ("RGB"), on white where it is transparent."""
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(_eight_bits(image))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)  # it would copy


def _eight_bits(image: Image.Image) -> Pixels:
    """Deep grey as 0 to 255, by the range that its values are meant to have.

    16-bit files: 0 to 65535. 32-bit integers and floats, whose files do not tell: the first of
    0 to 1 (floats only), 0 to 255 and 0 to 65535 that holds all values, else the image's own
    least and greatest value.

    Raises:
        InputError: a value is not finite.
    """
    values = np.asarray(image).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(high - low):
        raise InputError("holds pixels that are not a number or infinite")
    if image.mode.startswith("I;16") or image.format in ("PNG", "PPM"):
        ranges = [65535.0]  # Pillow stretches a PNM's own range to this
    else:
        ranges = [1.0, 255.0, 65535.0] if image.mode == "F" else [255.0, 65535.0]
    top = next((top for top in ranges if low >= 0 and high <= top), None)
    if top is None:
        values -= low
        top = (high - low) or 1.0
    values *= 255 / top
    return np.rint(values, out=values).astype(np.uint8)


def _resized(image: Image.Image, size: int, resize: Resize) -> Image.Image:
    """The image at its new size: ``size`` on both sides, or on the longer one before padding."""
    width, height = image.size
    if resize == "pad":
        scale = size / max(width, height)
        return image.resize((_side(width, scale), _side(height, scale)), FILTER)
    if resize == "crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    return image.resize((size, size), FILTER)


def _side(length: int, scale: float) -> int:
    return max(1, round(length * scale))


def _padded(pixels: Pixels, size: int) -> Pixels:
    """(h, w[, 3]) pixels in the middle of (size, size[, 3]), their outermost ones repeated."""
    gaps = [(size - side) for side in pixels.shape[:2]]
    margins = [(gap // 2, gap - gap // 2) for gap in gaps] + [(0, 0)] * (pixels.ndim - 2)
    return np.pad(pixels, margins, mode="edge")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
