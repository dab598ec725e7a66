"""Decode image files of any common kind to arrays of one shape, as a person sees them."""

from __future__ import annotations

import io
import os
import shutil
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError
from tqdm import tqdm

from pipeline.data.sources import Item
from pipeline.errors import InputError

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

_filters = threading.Lock()


def decode(data: bytes, size: int, resize: Resize, channels: Literal[1, 3]) -> Pixels:
    """One image file as uint8 pixels of shape (channels, size, size).

    The EXIF orientation is applied; transparent pixels show white; of an animation the first
    frame is taken; 16-bit grey keeps its full range, other deep grey see `_eight_bits`.

    ``resize`` is ``crop`` (shorter side to ``size``, then the centre), ``squash`` (both sides to
    ``size``) or ``pad`` (longer side to ``size``, centred, the outermost pixels repeated into the
    rest: a border in any fixed colour would be a shape of its own on some backgrounds). An image
    of the wanted size already keeps its pixels exactly.

    Raises:
        InputError: why the file cannot be decoded; without its name, which the caller knows.
    """
    try:
        image = _load(data, size)
        turn = TURNS.get(_orientation(image))
        image = _flat(image, "L" if channels == 1 else "RGB")
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
    except Exception as error:  # Pillow's readers raise all sorts on damaged files
        raise InputError(f"is damaged: {_one_line(error)}") from None
    if turn is not None:
        image = image.transpose(turn)
    pixels = np.asarray(_resized(image, size, resize))
    if resize == "pad":
        pixels = _padded(pixels, size)
    planes = pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
    return np.ascontiguousarray(planes)


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

    Pillow releases the interpreter's lock, so threads use all cores (``workers`` null). The file
    is written through a memory map beside ``out`` and moved there when whole; no more images are
    in memory than there are threads.

    Raises:
        InputError: naming the files that cannot be decoded, each with its reason; or too little
            room on the disk.
    """
    shape = (len(items), channels, size, size)
    out.parent.mkdir(parents=True, exist_ok=True)
    room, needed = shutil.disk_usage(out.parent).free, int(np.prod(shape))
    if room < needed:  # a full disk under a memory map kills the process without a word
        raise InputError(
            f"{out}: needs {needed >> 20} MiB, but the disk has {room >> 20} MiB left; make room, "
            "or lower data.image_size"
        )
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        pixels = np.lib.format.open_memmap(beside, mode="w+", dtype=np.uint8, shape=shape)

        def work(row: int) -> str | None:
            try:
                pixels[row] = decode(_bytes(items[row]), size, resize, channels)
            except InputError as error:
                return str(error)
            return None

        with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
            reasons = list(
                tqdm(
                    pool.map(work, range(len(items))),
                    total=len(items),
                    desc="decode",
                    unit="image",
                    disable=None if progress else True,  # None: quiet when no terminal
                )
            )
        _check(items, reasons)
        os.replace(beside, out)
    finally:
        beside.unlink(missing_ok=True)


def _bytes(item: Item) -> bytes:
    try:
        return item.read()
    except Exception as error:  # the file system's errors, and all that zipfile raises
        reason = getattr(error, "strerror", None) or _one_line(error)
        raise InputError(f"cannot be read: {reason}") from None


def _check(items: Sequence[Item], reasons: Sequence[str | None]) -> None:
    """Raise one error over all files that have a reason why they could not be decoded."""
    bad = [f"{item.place}: {reason}" for item, reason in zip(items, reasons, strict=True) if reason]
    if len(bad) == 1:
        raise InputError(f"{bad[0]}; replace or remove this file")
    if bad:
        first = f"{len(bad)} of {len(items)} images cannot be decoded; replace or remove them:"
        rest = [f"and {len(bad) - LISTED} more"] if len(bad) > LISTED else []
        raise InputError("\n  ".join([first, *bad[:LISTED], *rest]))


@contextmanager
def _pillow_warnings() -> Iterator[None]:
    """Make the warning of too many pixels an error and drop those of odd metadata.

    Warning filters belong to the whole process, so one thread at a time may change them.
    """
    with _filters, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _load(data: bytes, size: int) -> Image.Image:
    with _pillow_warnings():
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    # JPEG only: decoded at 1/2, 1/4 or 1/8, yet twice the wanted size, so that the filter still
    # decides how the result looks
    image.draft(None, (2 * size, 2 * size))
    image.load()
    return image


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
    return image.convert(mode)


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
        values, top = values - low, (high - low) or 1.0
    return np.rint(values * (255 / top)).astype(np.uint8)


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
