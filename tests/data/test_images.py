import csv
import errno
import io
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import warnings
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data import images
from pipeline.data.images import decode, decode_all
from pipeline.data.memory import Room
from pipeline.data.sources import Item
from pipeline.errors import InputError
from pipeline.params import Data, Params
from pipeline.stages import images as stage

SIDE = 8
GREY = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
ALPHA = np.random.default_rng(2).integers(0, 256, (SIDE, SIDE), np.uint8)
BITS = np.where(GREY > 127, 255, 0).astype(np.uint8)
DEEP = (GREY.astype(np.uint16) * 257 + np.arange(64, dtype=np.uint16).reshape(8, 8)).clip(0, 65535)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def file_of(pixels: np.ndarray, kind: str = "PNG", **options) -> bytes:
    return encoded(Image.fromarray(pixels), kind, **options)


def as_colour(grey: np.ndarray) -> np.ndarray:
    return np.stack([grey] * 3)


def as_grey(colour: np.ndarray) -> np.ndarray:
    """Luma of ITU-R 601, of (3, H, W) pixels."""
    return (np.array([0.299, 0.587, 0.114]) @ colour.reshape(3, -1)).reshape(1, *colour.shape[1:])


def on_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha / 255
    return pixels * share + 255 * (1 - share)


def planes(colour: np.ndarray) -> np.ndarray:
    return colour.transpose(2, 0, 1)


def palette(**options) -> bytes:
    """An indexed image: the first 64 colours, each used once, in COLOUR's order."""
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(SIDE, SIDE), "P")
    image.putpalette(COLOUR.tobytes())
    return encoded(image, "PNG", **options)


INDEX = np.arange(64).reshape(SIDE, SIDE)
HALF = np.where(INDEX < 32, INDEX * 8, 255)  # the alpha of each palette entry below
LA = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)])
RGBA = Image.fromarray(np.dstack([COLOUR, ALPHA]))
LOSSLESS = {
    "png, grey": (file_of(GREY), as_colour(GREY)),
    "png, colour": (file_of(COLOUR), planes(COLOUR)),
    "png, 1 bit": (encoded(Image.fromarray(BITS).convert("1"), "PNG"), as_colour(BITS)),
    "png, palette": (palette(), planes(COLOUR)),
    "png, palette with a transparent colour": (
        palette(transparency=5),
        planes(np.where((INDEX == 5)[..., None], 255, COLOUR)),
    ),
    "png, palette with alpha": (
        palette(transparency=bytes(HALF.ravel().astype(np.uint8))),
        on_white(planes(COLOUR), HALF),
    ),
    "png, grey with a transparent value": (
        file_of(GREY, transparency=int(GREY[3, 4])),
        as_colour(np.where(np.equal(GREY, GREY[3, 4]), 255, GREY)),
    ),
    "png, colour with a transparent value": (
        file_of(COLOUR, transparency=tuple(map(int, COLOUR[3, 4]))),
        planes(np.where(np.equal(COLOUR, COLOUR[3, 4]).all(-1, keepdims=True), 255, COLOUR)),
    ),
    "png, grey and alpha": (encoded(LA, "PNG"), as_colour(on_white(GREY, ALPHA))),
    "png, colour and alpha": (encoded(RGBA, "PNG"), on_white(planes(COLOUR), ALPHA)),
    "png, 16 bit": (file_of(DEEP), as_colour(DEEP / 257)),
    "gif": (file_of(GREY, "GIF"), as_colour(GREY)),
    "bmp": (file_of(COLOUR, "BMP"), planes(COLOUR)),
    "tiff": (file_of(COLOUR, "TIFF"), planes(COLOUR)),
    "tiff, packed": (file_of(COLOUR, "TIFF", compression="tiff_lzw"), planes(COLOUR)),
    "tiff, alpha": (encoded(RGBA, "TIFF"), on_white(planes(COLOUR), ALPHA)),
    "tiff, 16 bit": (file_of(DEEP, "TIFF"), as_colour(DEEP / 257)),
    "tiff, 16 bit, big endian": (file_of(DEEP.astype(">u2"), "TIFF"), as_colour(DEEP / 257)),
    "tiff, 32 bit": (file_of(DEEP.astype(np.int32), "TIFF"), as_colour(DEEP / 257)),
    "tiff, 32 bit, small values": (file_of(GREY.astype(np.int32), "TIFF"), as_colour(GREY)),
    "tiff, 32 bit, any values": (
        file_of(INDEX.astype(np.int32) * 10**7 - 3, "TIFF"),
        as_colour(INDEX / 63 * 255),
    ),
    "tiff, float, 0 to 1": (
        file_of((DEEP / 65535).astype(np.float32), "TIFF"),
        as_colour(DEEP / 257),
    ),
    "tiff, float, 0 to 255": (file_of(GREY.astype(np.float32), "TIFF"), as_colour(GREY)),
    "tiff, float, 0 to 65535": (file_of(DEEP.astype(np.float32), "TIFF"), as_colour(DEEP / 257)),
    "tiff, float, any values": (
        file_of((INDEX / 10 - 2).astype(np.float32), "TIFF"),
        as_colour(INDEX / 63 * 255),
    ),
    "tiff, float, one value": (
        file_of(np.full((SIDE, SIDE), -2, np.float32), "TIFF"),
        as_colour(np.zeros((SIDE, SIDE))),
    ),
    "tiff, cmyk": (
        encoded(Image.fromarray(np.dstack([255 - COLOUR, GREY * 0]), "CMYK"), "TIFF"),
        planes(COLOUR),
    ),
    "webp": (file_of(COLOUR, "WEBP", lossless=True), planes(COLOUR)),
    "webp, alpha": (
        encoded(RGBA, "WEBP", lossless=True, exact=True),
        on_white(planes(COLOUR), ALPHA),
    ),
    "pgm": (file_of(GREY, "PPM"), as_colour(GREY)),
    "pgm, 16 bit": (b"P5 8 8 65535\n" + DEEP.astype(">u2").tobytes(), as_colour(DEEP / 257)),
    "pgm, 0 to 1000": (
        b"P5 8 8 1000\n" + (INDEX * 15).astype(">u2").tobytes(),
        as_colour(INDEX * 15 / 1000 * 255),
    ),
    "pgm, text": (
        b"P2 8 8 255\n" + b" ".join(b"%d" % v for v in GREY.ravel()),
        as_colour(GREY),
    ),
    "ppm": (file_of(COLOUR, "PPM"), planes(COLOUR)),
    "pbm": (encoded(Image.fromarray(BITS).convert("1"), "PPM"), as_colour(BITS)),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_every_format_and_mode(name):
    data, expected = LOSSLESS[name]
    colour, grey = decode(data, SIDE, "crop", 3), decode(data, SIDE, "crop", 1)
    assert (colour.shape, grey.shape) == ((3, SIDE, SIDE), (1, SIDE, SIDE))
    assert colour.dtype == grey.dtype == np.uint8
    assert colour.flags.c_contiguous and grey.flags.c_contiguous
    # at most one rounding each for the alpha and for the grey
    assert np.abs(colour - expected).max() <= 0.51 + ("alpha" in name) * 0.5
    assert np.abs(grey - as_grey(expected)).max() <= 0.51 + 0.5


@pytest.mark.parametrize(
    "name", ["png, grey", "png, colour", "png, palette", "bmp", "webp", "pgm", "gif"]
)
@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
def test_an_image_of_the_wanted_size_keeps_its_pixels(name, resize):
    data, expected = LOSSLESS[name]
    assert np.array_equal(decode(data, SIDE, resize, 3), expected)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg(mode):
    y, x = np.mgrid[:32, :32] * 8
    smooth = np.dstack([x, y, 255 - x]).astype(np.uint8)
    image = Image.fromarray(smooth).convert(mode)
    expected = planes(np.asarray(image.convert("RGB")).astype(float))
    pixels = decode(encoded(image, "JPEG", quality=95), 32, "crop", 3)
    assert np.abs(pixels - expected).mean() < 2


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_the_first_frame_of_many(kind):
    frames = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (10, 200)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (decode(data, 8, "crop", 1) == 10).all()


def test_the_first_picture_of_a_multi_picture_jpeg():
    frames = [Image.new("L", (16, 16), value) for value in (10, 200)]
    data = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert np.abs(decode(data, 16, "crop", 1).astype(int) - 10).max() <= 1


# What a camera stores, so that the picture shows upright: the EXIF standard's table of where its
# first row and first column are to be seen, each undone by plain indexing.
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: upright.swapaxes(0, 1)[::-1],
    7: lambda upright: upright.swapaxes(0, 1)[::-1, ::-1],
    8: lambda upright: upright.swapaxes(0, 1)[:, ::-1],
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    stored = np.ascontiguousarray(STORED[orientation](COLOUR))
    data = file_of(stored, kind, exif=exif, **options)
    assert np.array_equal(decode(data, SIDE, "crop", 3), planes(COLOUR))


def test_exif_orientation_of_a_photo_that_is_not_square():
    upright = np.zeros((32, 64), np.uint8)
    upright[:, 32:] = 255  # right half white
    exif = Image.Exif()
    exif[0x0112] = 6
    data = file_of(np.ascontiguousarray(STORED[6](upright)), "JPEG", exif=exif)
    pixels = decode(data, 32, "squash", 1)[0]
    assert pixels[:, :14].max() < 30 and pixels[:, 18:].min() > 225


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_unknown_orientations_change_nothing(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(decode(file_of(GREY, exif=exif), SIDE, "crop", 1)[0], GREY)


def test_damaged_metadata_changes_nothing():
    data = file_of(GREY, "TIFF")
    plain = file_of(np.full((16, 16), 90, np.uint8), "JPEG")
    broken = plain[:2] + b"\xff\xe1\x00\x10Exif\0\0II*\0\xff\xff\0\0" + plain[2:]
    assert np.array_equal(decode(data, SIDE, "crop", 1)[0], GREY)
    assert np.array_equal(decode(broken, 16, "crop", 1), decode(plain, 16, "crop", 1))


def shrunk(values: np.ndarray, size: int) -> np.ndarray:
    """Slow oracle of an antialiased bilinear resize along the first axis."""
    length = len(values)
    scale = length / size
    reach = max(scale, 1.0)
    rows = []
    for new in range(size):
        centre = (new + 0.5) * scale
        weights = [max(0.0, 1 - abs((old + 0.5 - centre) / reach)) for old in range(length)]
        rows.append(sum(w * values[old] for old, w in enumerate(weights)) / sum(weights))
    return np.array(rows)


def resized(grey: np.ndarray, height: int, width: int) -> np.ndarray:
    return shrunk(shrunk(grey.astype(float), height).T, width).T


SHAPES = [
    (20, 20),
    (20, 31),
    (31, 20),
    (5, 9),
    (9, 5),
    (12, 13),
    (13, 12),
    (1, 40),
    (40, 1),
    (1, 1),
]


@pytest.mark.parametrize("shape", SHAPES)
class TestResize:
    SIZE = 12

    @pytest.fixture
    def grey(self, shape):
        return np.random.default_rng(3).integers(0, 256, shape, np.uint8)

    def pixels(self, grey, resize):
        return decode(file_of(grey), self.SIZE, resize, 1)[0].astype(float)

    def test_crop_is_the_centre_square(self, grey):
        height, width = grey.shape
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = grey[top : top + side, left : left + side]
        expected = resized(square, self.SIZE, self.SIZE)
        assert np.abs(self.pixels(grey, "crop") - expected).max() <= 1.01

    def test_squash_is_all_of_it(self, grey):
        expected = resized(grey, self.SIZE, self.SIZE)
        assert np.abs(self.pixels(grey, "squash") - expected).max() <= 1.01

    def test_pad_repeats_the_outermost_pixels(self, grey):
        height, width = grey.shape
        longer = max(height, width)
        inner = resized(
            grey,
            max(1, round(height / longer * self.SIZE)),
            max(1, round(width / longer * self.SIZE)),
        )
        top, left = (self.SIZE - inner.shape[0]) // 2, (self.SIZE - inner.shape[1]) // 2
        expected = np.array(
            [
                [
                    inner[
                        min(max(y - top, 0), inner.shape[0] - 1),
                        min(max(x - left, 0), inner.shape[1] - 1),
                    ]
                    for x in range(self.SIZE)
                ]
                for y in range(self.SIZE)
            ]
        )
        assert np.abs(self.pixels(grey, "pad") - expected).max() <= 1.01

    def test_colour_is_three_greys(self, grey):
        colour = np.dstack([grey, 255 - grey, grey // 2])
        for resize in ("crop", "squash", "pad"):
            together = decode(file_of(colour), self.SIZE, resize, 3)
            for plane in range(3):
                alone = decode(
                    file_of(np.ascontiguousarray(colour[..., plane])), self.SIZE, resize, 1
                )
                assert np.array_equal(together[plane], alone[0])


def test_large_jpegs_decode_as_if_in_full():
    y, x = np.mgrid[:600, :800]
    waves = 127 + 60 * np.sin(x / 23) + 60 * np.cos(y / 31)
    data = file_of(waves.astype(np.uint8), "JPEG", quality=95)
    with Image.open(io.BytesIO(data)) as full:
        square = full.crop((100, 0, 700, 600)).resize((48, 48), images.FILTER)
    difference = decode(data, 48, "crop", 1)[0] - np.asarray(square).astype(float)
    assert np.abs(difference).max() <= 3


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def huge_png(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds almost nothing."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    )


JPEG = file_of(np.random.default_rng(4).integers(0, 256, (64, 64, 3), np.uint8), "JPEG")
BAD = {
    "empty": (b"", "is empty"),
    "text": (b"this is no picture\n", "is no readable JPEG, PNG, "),
    "truncated JPEG": (JPEG[: len(JPEG) // 2], "is damaged: image file is truncated"),
    "truncated PNG": (file_of(COLOUR)[:120], "is damaged: "),
    "damaged PNG": (file_of(COLOUR)[:60] + bytes(9) + file_of(COLOUR)[69:], "is damaged: "),
    "JPEG of a header": (JPEG[:20], "is "),
    "PostScript": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
        "is no readable JPEG, PNG, ",
    ),
    "large": (huge_png(10_000, 10_000), "has more than 89478485 pixels"),
    "enormous": (huge_png(60_000, 60_000), "has more than 89478485 pixels"),
    "infinite": (
        file_of(np.array([[0, np.inf]], np.float32), "TIFF"),
        "holds pixels that are not a number or infinite",
    ),
    "not a number": (
        file_of(np.array([[0, np.nan]], np.float32), "TIFF"),
        "holds pixels that are not a number or infinite",
    ),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("filters", ["error", "ignore", "default"])
def test_bad_files(name, filters):
    data, problem = BAD[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter(filters)
        with pytest.raises(InputError) as error:
            decode(data, 8, "crop", 3)
    assert not caught
    assert str(error.value).startswith(problem)
    assert "\n" not in str(error.value) and "0x" not in str(error.value)


def put(folder: Path, **files: bytes) -> list[Item]:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return [Item(f"a/{name}", folder / name, "a") for name in files]


class TestDecodeAll:
    def test_rows_are_the_items_in_order(self, tmp_path):
        rng = np.random.default_rng(5)
        pixels = rng.integers(0, 256, (50, 8, 8), np.uint8)
        items = put(tmp_path / "in", **{f"{i}.png": file_of(p) for i, p in enumerate(pixels)})
        for workers in (1, 3, None):
            out = tmp_path / f"{workers}" / "images.npy"
            decode_all(items, out, 8, "crop", 1, workers=workers)
            assert np.array_equal(np.load(out), pixels[:, None])
            assert [path.name for path in out.parent.iterdir()] == ["images.npy"]
        assert (tmp_path / "1/images.npy").read_bytes() == out.read_bytes()

    def test_no_items_give_no_rows(self, tmp_path):
        decode_all([], tmp_path / "x.npy", 16, "crop", 3)
        assert np.load(tmp_path / "x.npy").shape == (0, 3, 16, 16)

    def test_one_bad_file_is_one_line(self, tmp_path):
        items = put(tmp_path / "in", good=file_of(GREY), bad=b"text")
        with pytest.raises(InputError) as error:
            decode_all(items, tmp_path / "x.npy", 8, "crop", 1)
        assert str(error.value) == (
            f"{tmp_path}/in/bad: is no readable JPEG, PNG, GIF, BMP, TIFF, WebP or PNM image; "
            "replace or remove this file"
        )
        assert [path.name for path in tmp_path.iterdir()] == ["in"]

    def test_all_bad_files_are_listed(self, tmp_path):
        items = put(tmp_path / "in", good=file_of(GREY), **{f"{i}.jpg": b"" for i in range(20)})
        (tmp_path / "x.npy").write_bytes(b"before")
        with pytest.raises(InputError) as error:
            decode_all(items, tmp_path / "x.npy", 8, "crop", 1)
        first, *rest = str(error.value).split("\n")
        assert first == "20 of 21 images cannot be decoded; replace or remove them:"
        assert rest == [f"  {tmp_path}/in/{i}.jpg: is empty" for i in range(20)]
        assert (tmp_path / "x.npy").read_bytes() == b"before"

    def test_very_many_bad_files_are_counted(self, tmp_path):
        items = put(tmp_path / "in", **{f"{i}.jpg": b"" for i in range(23)})
        with pytest.raises(InputError) as error:
            decode_all(items, tmp_path / "x.npy", 8, "crop", 1)
        lines = str(error.value).split("\n")
        assert len(lines) == 22 and lines[-1] == "  and 3 more"

    def test_what_cannot_be_read_is_listed_too(self, tmp_path):
        archive = tmp_path / "set.zip"
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("a/1.png", GREY.tobytes() * 9)
        archive.write_bytes(archive.read_bytes().replace(GREY.tobytes(), bytes(64)))
        items = [
            Item("gone.png", tmp_path / "gone.png", "a"),
            Item("a/1.png", archive, "a", member="a/1.png"),
            Item("a/2.png", archive, "a", member="a/2.png"),
        ]
        with pytest.raises(InputError) as error:
            decode_all(items, tmp_path / "x.npy", 8, "crop", 1)
        gone, damaged, missing = str(error.value).split("\n")[1:]
        assert gone == f"  {tmp_path}/gone.png: cannot be read: No such file or directory"
        assert damaged.startswith(f"  {archive}/a/1.png: cannot be read: Bad CRC-32")
        assert missing.startswith(f"  {archive}/a/2.png: cannot be read: ")

    def test_a_full_disk_is_told_beforehand(self, tmp_path, monkeypatch):
        usage = type("Usage", (), {"free": 1 << 20})
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        items = put(tmp_path / "in", good=file_of(GREY))
        with pytest.raises(InputError, match=r"needs 3\.1 MB for the decoded images.* has 1\.0 MB"):
            decode_all(items, tmp_path / "x.npy", 1024, "crop", 3)

    def test_a_disk_that_others_fill_is_told_in_one_line(self, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(images.os, "pwrite", full)
        items = put(tmp_path / "in", good=file_of(GREY))
        with pytest.raises(
            InputError, match=r"x\.npy: cannot be written: No space left on device;"
        ):
            decode_all(items, tmp_path / "x.npy", 8, "crop", 1)
        assert [path.name for path in tmp_path.iterdir()] == ["in"]

    def test_ctrl_c_does_not_wait_for_the_images_that_are_begun(self, tmp_path, monkeypatch):
        decoded = []

        def slow(*arguments):
            decoded.append(time.sleep(0.01))
            if len(decoded) == 6:
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            return decode(*arguments)

        monkeypatch.setattr(images, "decode", slow)
        monkeypatch.setattr(images, "SHARE", 1)  # few and long tasks
        items = put(tmp_path / "in", **{f"{i}.png": file_of(GREY) for i in range(90)})
        with pytest.raises(KeyboardInterrupt):
            decode_all(items, tmp_path / "x.npy", 8, "crop", 1, workers=2)
        assert len(decoded) < 30
        assert [path.name for path in tmp_path.iterdir()] == ["in"]

    def test_no_more_images_in_memory_than_threads(self, tmp_path, monkeypatch):
        counter, lock, most = [0], threading.Lock(), [0]

        def counted(*arguments):
            with lock:
                counter[0] += 1
                most[0] = max(most[0], counter[0])
            try:
                return decode(*arguments)
            finally:
                with lock:
                    counter[0] -= 1

        monkeypatch.setattr(images, "decode", counted)
        items = put(tmp_path / "in", **{f"{i}.png": file_of(GREY) for i in range(60)})
        decode_all(items, tmp_path / "x.npy", 64, "crop", 3, workers=3)
        assert 1 <= most[0] <= 3

    def test_no_more_pixels_in_work_than_there_is_room_for(self, tmp_path, monkeypatch):
        most, lock, now = [0], threading.Lock(), [0]

        def watched(image, *arguments):
            with lock:
                now[0] += image.width * image.height
                most[0] = max(most[0], now[0])
            try:
                return whole(image, *arguments)
            finally:
                with lock:
                    now[0] -= image.width * image.height

        whole = images._decoded
        monkeypatch.setattr(images, "_decoded", watched)
        monkeypatch.setattr(images, "_room", Room(3 * 300**2))
        sides = [100, 300, 300, 200, 400, 300, 600, 20] * 6  # one of them larger than the room
        files = {
            f"{n}.png": file_of(np.zeros((side, side), np.uint8)) for n, side in enumerate(sides)
        }
        items = put(tmp_path / "in", **files)
        decode_all(items, tmp_path / "x.npy", 8, "crop", 1, workers=8)
        assert most[0] == 600**2
        assert np.load(tmp_path / "x.npy").shape == (len(sides), 1, 8, 8)

    def test_threads_are_as_many_as_cores_that_may_be_used(self, tmp_path, monkeypatch):
        asked = []

        class Pool(ThreadPoolExecutor):
            def __init__(self, threads):
                asked.append(threads)
                super().__init__(threads)

        monkeypatch.setattr(images, "ThreadPoolExecutor", Pool)
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 5, 6}, raising=False)
        decode_all([], tmp_path / "x.npy", 8, "crop", 1)
        assert asked == [3]

    def test_progress_is_quiet_without_a_terminal(self, tmp_path, capfd, monkeypatch):
        items = put(tmp_path / "in", good=file_of(GREY))
        decode_all(items, tmp_path / "x.npy", 8, "crop", 1)
        assert capfd.readouterr() == ("", "")
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        decode_all(items, tmp_path / "x.npy", 8, "crop", 1)
        assert "1/1" in capfd.readouterr().err
        decode_all(items, tmp_path / "x.npy", 8, "crop", 1, progress=False)
        assert capfd.readouterr().err == ""

    def test_threads_leave_the_warning_filters_alone(self, tmp_path):
        items = put(tmp_path / "in", **{f"{i}.png": file_of(GREY) for i in range(60)})
        before = list(warnings.filters)
        decode_all(items, tmp_path / "x.npy", 8, "crop", 1, workers=8)
        assert warnings.filters == before


def deep_png(side: int) -> bytes:
    """A file of few bytes with 16 bits a channel and transparency."""
    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(1 + 8 * side)) for _ in range(side)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 16, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(kind, data) for kind, data in ((b"IHDR", head), (b"IDAT", rows), (b"IEND", b""))
    )


PEAK = """
import re, sys
from pathlib import Path
from pipeline.data import images
from pipeline.data.memory import Room
from pipeline.data.sources import Item

def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

items = [Item(path, Path(path), "a") for path in sys.argv[2:]]
images._room, before = Room(int(sys.argv[1])), peak()
images.decode_all(items, Path("x.npy"), 32, "crop", 3, workers=8, progress=False)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells a process's peak")
@pytest.mark.parametrize(
    ("side", "room"),
    [(1500, 1500**2), (2000, 1), pytest.param(9400, images.PIXELS, marks=pytest.mark.torture)],
)
def test_memory_is_bounded_whatever_the_number_of_threads(side, room, tmp_path):
    picture = tmp_path / "in.png"
    picture.write_bytes(deep_png(side))
    command = [sys.executable, "-c", PEAK, str(room), *[str(picture)] * 8]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert 8 * side**2 < int(ended.stdout) < 18 * side**2 + 20e6


def params(task: str = "classification", **data) -> Params:
    return Params.model_construct(task=task, data=Data(image_size=8, channels=1, **data))


def table(path: str) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class TestStage:
    @pytest.fixture(autouse=True)
    def project(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for place, classes in (("target", ("10", "9")), ("source", ("cat", "dog", "emu"))):
            for name in classes:
                folder = Path("data", place, name)
                folder.mkdir(parents=True)
                for index in range(3):
                    value = len(name) * 10 + index
                    pixels = np.full((8, 8), value, np.uint8)
                    (folder / f"{index}.png").write_bytes(file_of(pixels))

    def test_tables_and_arrays(self, capsys):
        stage.images(params(target="./data/target", source="data/source"))
        rows = table("prepared/images.csv")
        assert list(rows[0]) == ["row", "image", "label", "class", "split", "group"]
        assert [row["row"] for row in rows] == [str(i) for i in range(6)]
        assert [(row["label"], row["class"]) for row in rows] == [("0", "9")] * 3 + [
            ("1", "10")
        ] * 3
        assert [row["image"] for row in rows[:2]] == ["9/0.png", "9/1.png"]
        pixels = np.load("prepared/images.npy")
        assert pixels[:, 0, 0, 0].tolist() == [10, 11, 12, 20, 21, 22]
        assert np.load("prepared/source.npy").shape == (9, 1, 8, 8)
        assert [row["class"] for row in table("prepared/source.csv")][::3] == ["cat", "dog", "emu"]
        assert capsys.readouterr().out == (
            "data/target: 6 images, 2 classes, splits to be drawn\n"
            "data/source: 9 images, 3 classes, splits to be drawn\n"
        )

    def test_without_a_source_its_files_are_empty(self):
        stage.images(params(target="data/target"))
        assert np.load("prepared/source.npy").shape == (0, 1, 8, 8)
        assert Path("prepared/source.csv").read_text() == "row,image,label,class,split,group\n"

    def test_the_same_bytes_twice(self):
        stage.images(params(target="data/target"))
        once = {path.name: path.read_bytes() for path in Path("prepared").iterdir()}
        stage.images(params(target="data/target"))
        assert {path.name: path.read_bytes() for path in Path("prepared").iterdir()} == once
        assert sorted(once) == [
            "images.csv", "images.npy", "listed.csv", "source.csv", "source.npy",
        ]  # fmt: skip

    def test_splits_that_are_brought(self, capsys):
        for part in ("Train", "test"):
            for name in "ab":
                folder = Path("data/split", part, name)
                folder.mkdir(parents=True)
                for index in range(2):
                    (folder / f"{index}.png").write_bytes(file_of(GREY))
        stage.images(params(target="data/split"))
        assert {row["split"] for row in table("prepared/images.csv")} == {"train", "test"}
        assert "splits brought: train 4, val 0, test 4" in capsys.readouterr().out

    def test_without_trials_their_table_is_empty(self):
        stage.images(params(target="data/target"))
        assert Path("prepared/listed.csv").read_text() == "split,set,episode,left,right,same\n"

    def test_pairs(self, capsys):
        for name, numbers in (("Ann", (1, 2)), ("Bo", (1, 10)), ("Cy", (1, 2)), ("Di", (3,))):
            folder = Path("data/lfw/faces", name)
            folder.mkdir(parents=True)
            for number in numbers:
                (folder / f"{name}_{number:04}.png").write_bytes(file_of(GREY))
        Path("data/lfw/pairs_train.txt").write_text("Bo 10 1\nAnn 2 Bo 1\nAnn 1 2\n")
        Path("data/lfw/pairs_test.txt").write_text("Cy 2 1\nDi 3 Cy 2\n")
        asked = params("verification", target="data/lfw", source="data/source", layout="pairs")
        with pytest.raises(InputError, match="data/source: has no lists of pairs"):
            stage.images(asked)
        stage.images(params("verification", target="data/lfw", layout="pairs"))
        rows = table("prepared/images.csv")
        assert [(row["image"].removeprefix("faces/"), row["label"], row["split"])
                for row in rows] == [
            ("Ann/Ann_0001.png", "0", "train"), ("Ann/Ann_0002.png", "0", "train"),
            ("Bo/Bo_0001.png", "1", "train"), ("Bo/Bo_0010.png", "1", "train"),
            ("Cy/Cy_0001.png", "2", "test"), ("Cy/Cy_0002.png", "2", "test"),
            ("Di/Di_0003.png", "3", "test"),
        ]  # fmt: skip
        assert Path("prepared/listed.csv").read_text() == (
            "split,set,episode,left,right,same\n"
            "train,pairs,,3,2,1\ntrain,pairs,,1,2,0\ntrain,pairs,,0,1,1\n"
            "test,pairs,,5,4,1\ntest,pairs,,6,5,0\n"
        )
        assert np.load("prepared/images.npy").shape == (7, 1, 8, 8)
        assert capsys.readouterr().out == (
            "data/lfw: 7 images, 4 classes, splits brought: train 4, val 0, test 3; "
            "pairs brought: train 3, val 0, test 2\n"
        )

    def test_omniglot(self, capsys):
        names = [f"images_background_x/{alphabet}/character01/1_{drawer}.png"
                 for alphabet in ("Greek", "Latin") for drawer in (1, 2)]  # fmt: skip
        for run in ("run01", "run02"):
            names += [f"all_runs/{run}/{kind}{number}.png"
                      for kind in ("test/item", "training/class") for number in (1, 2)]  # fmt: skip
        for name in names:
            path = Path("data/omniglot", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file_of(GREY))
        for run in ("run01", "run02"):
            lines = [f"{run}/test/item{one}.png {run}/training/class{two}.png\n"
                     for one, two in ((1, 2), (2, 1))]  # fmt: skip
            Path(f"data/omniglot/all_runs/{run}/class_labels.txt").write_text("".join(lines))
        stage.images(params("verification", target="data/omniglot", layout="omniglot"))
        rows = {row["image"]: row for row in table("prepared/images.csv")}
        assert [row["group"] for row in rows.values()] == (
            ["Greek"] * 2 + ["Latin"] * 2 + ["run01"] * 4 + ["run02"] * 4
        )
        listed = table("prepared/listed.csv")
        expected = [
            ("test", "official", run, f"item{query}", f"class{support}", str(int(query != support)))
            for run in ("run01", "run02") for query in (1, 2) for support in (1, 2)
        ]  # fmt: skip
        image = {row["row"]: Path(name).stem for name, row in rows.items()}
        assert [
            (row["split"], row["set"], row["episode"], image[row["left"]], image[row["right"]],
             row["same"]) for row in listed
        ] == expected  # fmt: skip
        assert capsys.readouterr().out == (
            "data/omniglot: 12 images, 6 classes, 4 groups, splits brought: train 4, val 0, "
            "test 8; 2 official runs (20 are published)\n"
        )

    def test_a_set_without_the_official_runs_is_told_of(self, capsys):
        for number in (1, 2, 3):
            place = Path(f"data/omniglot/images_background_small1/Greek/character0{number}")
            place.mkdir(parents=True)
            for name in ("1.png", "2.png"):
                (place / name).write_bytes(file_of(GREY))
        stage.images(params("verification", target="data/omniglot", layout="omniglot"))
        told = capsys.readouterr().out.splitlines()
        assert told[1:] == ["data/omniglot: no all_runs….zip, so that no official run is tested"]

    def test_a_source_set_is_to_be_classified_whatever_the_task(self):
        stage.images(params("verification", target="data/target", source="data/source"))
        assert len(table("prepared/source.csv")) == 9
        Path("data/source/cat/1.png").unlink()
        Path("data/source/cat/2.png").unlink()
        with pytest.raises(InputError, match="data/source: class 'cat' has a single image"):
            stage.images(params("verification", target="data/target", source="data/source"))

    @pytest.mark.parametrize("task", ["classification", "verification"])
    def test_a_source_that_has_images_of_the_target(self, task):
        copied = Path("data/target/9/1.png").read_bytes()
        for name in ("cat/0.png", "emu/2.png"):
            Path("data/source", name).write_bytes(copied)
        said = r"data\.source: its image 'cat/0\.png' is '9/1\.png' of data\.target too, and so"
        with pytest.raises(InputError, match=said):
            stage.images(params(task, target="data/target", source="data/source"))

    def test_a_source_may_have_images_that_the_target_trains_on(self):
        for split, name in (("train", "a"), ("train", "b"), ("test", "a"), ("test", "b")):
            place = Path("data/parts", split, name)
            place.mkdir(parents=True)
            for index in range(3):
                grey = np.full(
                    (8, 8), 100 * (split == "test") + 10 * ord(name) % 90 + index, np.uint8
                )
                (place / f"{index}.png").write_bytes(file_of(grey))
        trained, tested = (Path(f"data/parts/{split}/a/0.png") for split in ("train", "test"))
        Path("data/source/cat/0.png").write_bytes(trained.read_bytes())
        stage.images(params(target="data/parts", source="data/source"))
        Path("data/source/cat/0.png").write_bytes(tested.read_bytes())
        with pytest.raises(
            InputError, match=r"'cat/0\.png' is 'test/a/0\.png' of data\.target too, and w"
        ):
            stage.images(params(target="data/parts", source="data/source"))

    def test_a_source_that_has_a_person_of_the_target(self):
        Path("data/source/emu").rename("data/source/9")
        stage.images(params(target="data/target", source="data/source"))
        with pytest.raises(
            InputError, match=r"data\.source: has class '9', as data\.target has, and"
        ):
            stage.images(params("verification", target="data/target", source="data/source"))

    @pytest.mark.parametrize("layout", ["pairs", "omniglot"])
    def test_layouts_of_verification_are_none_of_classification(self, layout):
        with pytest.raises(InputError, match=f"params.yaml: data.layout: {layout} is for task: "):
            stage.images(params(target="data/target", layout=layout))

    @pytest.mark.parametrize("place", ["/data/x", "data/../x", "images", "../data", "", "."])
    @pytest.mark.parametrize("key", ["target", "source"])
    def test_places_outside_data(self, place, key):
        if key == "source" and not place:
            return
        places = {"target": "data/target", key: place}
        with pytest.raises(InputError, match=f"params.yaml: data.{key}: must lie under data/"):
            stage.images(params(**places))

    @pytest.mark.parametrize("source", ["data/target", "data", "data/target/9"])
    def test_a_source_that_shares_images_with_the_target(self, source):
        with pytest.raises(InputError, match="share images"):
            stage.images(params(target="data/target", source=source))


@pytest.mark.shared
def test_real_photos_in_threads_as_one_by_one(tmp_path):
    root = Path(os.environ.get("SHARED_DATA", Path(__file__).parents[2] / "../shared"))
    archive = root / "data/cats_dogs/cats_dogs.zip"
    if not archive.exists():
        pytest.skip(f"the development data is not at {root}")
    from pipeline.data.sources import find_images

    items = find_images(archive, "folders")[::40]
    decode_all(items, tmp_path / "x.npy", 64, "crop", 3)
    expected = [decode(item.read(), 64, "crop", 3) for item in items]
    assert np.array_equal(np.load(tmp_path / "x.npy"), expected)
