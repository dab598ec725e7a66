"""Hostile input: each case ends in one clear line and status 1, or is said to be valid and works.

Every case is a project of its own, attacked in a forked process with limits of time, memory and
file size. Nothing may change but ``prepared/`` and ``weights/``, and these only where the input
is valid.
"""

import csv
import gc
import io
import os
import pickle
import resource
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision  # noqa: F401  (loaded once, before any fork)
from PIL import Image
from safetensors.torch import save as safetensors_bytes

from pipeline import check
from pipeline.errors import command
from pipeline.models import architectures
from pipeline.stages.images import images
from pipeline.stages.weights import make_weights

ROOT = Path(__file__).parents[1]
PARAMS = (
    (ROOT / "configs/digits.yaml")
    .read_text(encoding="utf-8")
    .replace("source: data/source", "source: null")
    .replace("\n  from: source", "\n  from: none")
)
SECONDS = 10  # of one case, on a slow machine
MEMORY = 1 << 30  # bytes beyond what the test itself has
WRITTEN = 256 << 20  # bytes of one file
CHANGING = ("project/prepared", "project/weights")


# ---------------------------------------------------------------- what is attacked, and how


def run_images() -> None:
    images(check.load())


def run_weights() -> None:
    make_weights(check.load())


def run_check() -> None:
    check.check_models(check.load())


@dataclass(frozen=True)
class Case:
    """How a project becomes hostile, and what is said of it: None where it is valid."""

    build: Callable[[Path], object]
    said: str | None
    work: Callable[[], None] = run_images
    params: tuple[tuple[str, str], ...] = ()
    classes: tuple[str, ...] = ()  # what a valid set must give


@dataclass(frozen=True)
class Outcome:
    status: int
    err: str
    seconds: float


def attacked(work: Callable[[], None], folder: Path) -> Outcome:
    """``work`` as a command in ``folder``, in a process of its own with limits."""
    started = time.monotonic()
    with tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            os._exit(_limited(work, folder, err.fileno()))
        while (ended := os.wait4(child, os.WNOHANG))[0] == 0:
            if time.monotonic() - started > SECONDS:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.002)
        err.seek(0)
        said = err.read().decode(errors="replace")
    return Outcome(os.waitstatus_to_exitcode(ended[1]), said, time.monotonic() - started)


def _limited(work: Callable[[], None], folder: Path, err: int) -> int:
    try:
        gc.freeze()  # else it would touch, and so copy, all that the test has in memory
        os.chdir(folder)
        os.dup2(err, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.stderr, sys.stdout = os.fdopen(2, "w"), os.fdopen(1, "w")
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        room = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (room, room))
        resource.setrlimit(resource.RLIMIT_FSIZE, (WRITTEN, WRITTEN))
        command(work)
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        status = 70
    sys.stderr.flush()
    return status


def snapshot(folder: Path) -> dict[str, tuple[int, ...]]:
    """Everything in a folder that could be changed, by path; links are not followed."""
    found = {}
    for above, folders, files in os.walk(folder):  # passes over paths that are too long
        for path in (os.path.join(above, name) for name in (*folders, *files)):
            if len(path) < 4000 and not stat.S_ISDIR((status := os.lstat(path)).st_mode):
                of = (status.st_mode, status.st_size, status.st_mtime_ns)
                found[os.path.relpath(path, folder)] = of
    return found


def parted(found: dict[str, tuple[int, ...]]) -> tuple[dict[str, object], dict[str, object]]:
    """What a stage may write, and the rest."""
    own = {path: of for path, of in found.items() if path.startswith(CHANGING)}
    return own, {path: of for path, of in found.items() if path not in own}


# ---------------------------------------------------------------- what projects are made of


def picture(number: int = 0, side: int = 8) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)
    return Image.fromarray(pixels)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


PNG = saved(picture(99), "PNG")
NAMES = ("a/1.png", "a/2.png", "b/3.png", "b/4.png")
LINES = "a/1.png cat\na/2.png cat\nb/3.png dog\nb/4.png dog\n"
ROWS = "image,label\n" + LINES.replace(" ", ",")
PAIRS = "ann 1 2\nann 1 bob 1\n"


def put(folder: Path, name: str | bytes, content: str | bytes = PNG) -> Path:
    path = folder / os.fsdecode(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def project(root: Path, changes: tuple[tuple[str, str], ...]) -> Path:
    """A project that is right, with results of an earlier run, beside somebody's secrets."""
    home = root / "project"
    text = PARAMS
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    put(home, "params.yaml", text)
    put(home, "prepared/images.csv", "of an earlier run")
    put(home, "weights/start.safetensors", "of an earlier run")
    (home / "pretrained").mkdir()
    for number, name in enumerate(NAMES):
        put(home / "data/target", name, saved(picture(number), "PNG"))
    put(root / "outside", "secret.png", saved(picture(7), "PNG"))
    put(root / "outside", "cats/1.png", saved(picture(8), "PNG"))
    put(root / "outside", "cats/2.png", saved(picture(9), "PNG"))
    put(root / "outside", "train.txt", LINES)
    return home


def lists(text: str | bytes, said: str | None, *classes: str, allow: bool = False) -> Case:
    return _texts("lists", "train.txt", text, said, classes, allow)


def table(text: str | bytes, said: str | None, *classes: str, allow: bool = False) -> Case:
    return _texts("csv", "images.csv", text, said, classes, allow)


def _texts(
    layout: str, name: str, text: str | bytes, said: str | None, classes: tuple[str, ...],
    allow: bool,
) -> Case:  # fmt: skip
    changes = [("layout: folders", f"layout: {layout}")]
    if allow:
        changes.append(("image_size: 8", "allow_outside: true\n  image_size: 8"))

    def build(home: Path) -> None:
        content = text.encode() if isinstance(text, str) else text
        put(home, f"data/target/{name}", content.replace(b"{ROOT}", bytes(home.parent)))

    return Case(build, said, params=tuple(changes), classes=classes or ("cat", "dog"))


def sparse(name: str, layout: str, said: str, start: bytes = b"", size: int = 200 << 20) -> Case:
    """A file of one line of ``size`` bytes, most of them NUL and not on the disk."""

    def build(home: Path) -> None:
        with put(home / "data/target", name, start).open("r+b") as file:
            file.truncate(size)

    return Case(build, said, params=(("layout: folders", f"layout: {layout}"),))


def in_set(name: str | bytes, content: str | bytes, said: str | None, **more: object) -> Case:
    """One file more in class folders."""
    return Case(lambda home: put(home / "data/target", name, content), said, **more)


def tree(build: Callable[[Path], object], said: str | None, allow: bool = False) -> Case:
    """Class folders changed by ``build``, which gets ``data/target``."""
    change = (("image_size: 8", "allow_outside: true\n  image_size: 8"),) if allow else ()
    return Case(lambda home: build(home / "data/target"), said, params=change)


VERIFICATION = (
    (ROOT / "configs/lfw_squeezenet.yaml")
    .read_text(encoding="utf-8")
    .replace(
        "  from: file\n  file: pretrained/squeezenet1_1_imagenet.safetensors",
        "  from: none\n  file: pretrained",
    )
)


def of_verification(home: Path, layout: str) -> None:
    text = VERIFICATION
    lines = []
    for line in text.split("\n"):
        if line.strip().startswith("target:"):
            line = "  target: data/faces"
        if line.strip().startswith("layout:"):
            line = f"  layout: {layout}"
        lines.append(line)
    put(home, "params.yaml", "\n".join(lines))


def pairs(
    text: str | bytes, said: str | None, more: Callable[[Path], object] | None = None
) -> Case:
    def build(home: Path) -> None:
        of_verification(home, "pairs")
        faces = home / "data/faces"
        for number, name in enumerate(("ann_0001", "ann_0002", "bob_0001")):
            put(faces, f"{name[:3]}/{name}.png", saved(picture(number), "PNG"))
        for number, name in enumerate(("cid_0001", "cid_0002", "dan_0001")):
            put(faces, f"{name[:3]}/{name}.png", saved(picture(10 + number), "PNG"))
        put(faces, "pairs_train.txt", text)
        put(faces, "pairs_test.txt", "cid 1 2\ncid 1 dan 1\n")
        if more:
            more(faces)

    return Case(build, said)


def omniglot(answers: str | bytes, said: str | None, more: Callable[[Path], object] = id) -> Case:
    def build(home: Path) -> None:
        of_verification(home, "omniglot")
        at = home / "data/faces"
        for number in range(4):
            name = f"images_background/Greek/character0{number // 2}/{number}.png"
            put(at, name, saved(picture(number), "PNG"))
        for number, name in enumerate(("test/item01", "test/item02", "training/class01",
                                       "training/class02")):  # fmt: skip
            put(at, f"all_runs/run01/{name}.png", saved(picture(20 + number), "PNG"))
        put(at, "all_runs/run01/class_labels.txt", answers)
        more(at)

    return Case(build, said)


ANSWERS = (
    "run01/test/item01.png run01/training/class01.png\n"
    "run01/test/item02.png run01/training/class02.png\n"
)
ZIPPED = (("target: data/target", "target: data/set.zip"),)


def zipped(
    change: Callable[[zipfile.ZipFile], object], said: str | None, layout: str = "folders",
    raw: Callable[[bytes], bytes] = bytes,
) -> Case:  # fmt: skip
    """A zip of class folders with ``change`` added, its bytes then altered by ``raw``."""

    def build(home: Path) -> None:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for number, name in enumerate(NAMES):
                archive.writestr(name, saved(picture(number), "PNG"))
            change(archive)
        put(home, "data/set.zip", raw(file.getvalue()))

    return Case(build, said, params=(*ZIPPED, ("layout: folders", f"layout: {layout}")))


def member(name: str, content: bytes = PNG, **attributes: object) -> Callable[..., None]:
    def add(archive: zipfile.ZipFile) -> None:
        info = zipfile.ZipInfo(name)
        info.compress_type = zipfile.ZIP_DEFLATED
        for key, value in attributes.items():
            setattr(info, key, value)
        archive.writestr(info, content)

    return add


def twice(archive: zipfile.ZipFile) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("a/1.png", PNG)


def deflated_zeros(name: str, size: int, promised: int) -> Callable[..., None]:
    """A member that unpacks to ``size`` zeros, of one packed MiB again and again."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    mebibyte = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    crc = 0
    for _ in range(promised >> 20 if promised == size else 0):
        crc = zlib.crc32(bytes(1 << 20), crc)

    def add(archive: zipfile.ZipFile) -> None:
        info = zipfile.ZipInfo(name)
        archive.writestr(info, mebibyte * (size >> 20) + packer.copy().flush())
        info.compress_type, info.file_size, info.CRC = zipfile.ZIP_DEFLATED, promised, crc

    return add


def bomb(name: str, way: int, size: int, promised: int | None = None) -> Callable[..., None]:
    """A member of zeros that unpacks to ``size``, or promises another size."""

    def add(archive: zipfile.ZipFile) -> None:
        info = zipfile.ZipInfo(name)
        info.compress_type = way
        with archive.open(info, "w", force_zip64=True) as file:
            for _ in range(size >> 20):
                file.write(bytes(1 << 20))
        if promised is not None:
            archive.getinfo(
                name
            ).file_size = promised  # as the list of members is yet to be written

    return add


def directory_entry(**fields: int) -> Callable[[bytes], bytes]:
    """The last entry of a zip's list of members with other numbers."""
    places = {"flags": ("<H", 8), "packed": ("<I", 20), "size": ("<I", 24), "offset": ("<I", 42)}

    def change(content: bytes) -> bytes:
        altered = bytearray(content)
        at = content.rindex(b"PK\x01\x02")
        for name, value in fields.items():
            form, place = places[name]
            struct.pack_into(form, altered, at + place, value)
        return bytes(altered)

    return change


def end_record(place: int, form: str, value: int) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        altered = bytearray(content)
        struct.pack_into(form, altered, content.rindex(b"PK\x05\x06") + place, value)
        return bytes(altered)

    return change


def nothing(_: object) -> None: ...


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def png(width: int, height: int, *chunks: bytes, data: bytes = zlib.compress(b"\0")) -> bytes:
    """A grey PNG that claims a size."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    body = b"".join(chunks) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + body


def tiff(width: int, height: int, strip: int, size: int) -> bytes:
    """A grey TIFF whose one strip is said to lie at ``strip``."""
    tags = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1),
            (273, 4, strip), (277, 3, 1), (278, 4, height), (279, 4, size)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4)


def exif() -> bytes:
    """An orientation of four thousand million characters, in a directory that follows itself."""
    entry = struct.pack("<HHII", 0x0112, 2, 0xFFFFFFF0, 0x7FFFFFFF)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 8)


JPEG = saved(picture(50, 64), "JPEG")
FRAMES = [picture(number) for number in range(60, 64)]
TARGET = "data/target"


def network() -> dict[str, torch.Tensor]:
    """The state dict of the default's network."""
    return dict(architectures.build("small", 2, 1, 8, None, 0).state_dict())


class Harmful:
    """Its pickle touches ``harmed`` in the working folder."""

    def __reduce__(self) -> object:
        return Path.touch, (Path("harmed"),)


def start(name: str, content: Callable[[], object], said: str | None) -> Case:
    """Starting weights from a file: bytes as they are, anything else by ``torch.save``."""

    def build(home: Path) -> None:
        made = content()
        path = put(home, f"pretrained/{name}", made if isinstance(made, bytes) else b"")
        if not isinstance(made, bytes):
            torch.save(made, path)

    changes = (("\n  from: none", "\n  from: file"),
               ("file: pretrained", f"file: pretrained/{name}"))  # fmt: skip
    return Case(build, said, run_weights, changes)


def with_key(change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
    """The network's state with one tensor changed."""
    state = network()
    key = next(key for key in state if key.endswith(".weight"))
    state[key] = change(state[key])
    return state


def safetensors_of(header: str, data: bytes = b"", length: int | None = None) -> bytes:
    text = header.encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def deflated() -> bytes:
    """A file of ``torch.save`` whose records unpack to far more than they are."""
    made = io.BytesIO()
    torch.save({"w": torch.zeros(1)}, made)
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(made) as old,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as new,
    ):
        for info in old.infolist():
            if info.filename.endswith("/data/0"):
                bomb(info.filename, zipfile.ZIP_DEFLATED, 64 << 20)(new)
            else:
                new.writestr(info.filename, old.read(info))
    return packed.getvalue()


def params(old: str, new: str, said: str | None) -> Case:
    return Case(nothing, said, run_check, ((old, new),))


def params_file(content: Callable[[], str | bytes], said: str | None) -> Case:
    return Case(lambda home: put(home, "params.yaml", content()), said, run_check)


def lol() -> str:
    """Anchors that stand for each other ten times each: a billion laughs."""
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    return "\n".join(rows) + "\n" + PARAMS


def linked_folders(target: Path) -> None:
    """Thirty folders with two links each to the next: a billion paths."""
    for number in range(30):
        (target / f"a/d{number}").mkdir()
    for number in range(29):
        for name in "xy":
            (target / f"a/d{number}/{name}").symlink_to(f"../d{number + 1}")
    put(target, "a/d29/1.png")


def deep(target: Path) -> None:
    """Folders within folders, deeper than a path may be."""
    here = os.open(target / "a", os.O_RDONLY)
    for _ in range(30):
        os.mkdir("d" * 200, dir_fd=here)
        inner = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)


def link(name: str, to: str) -> Callable[[Path], object]:
    """A link in the data to a path, or outside the project to ``{ROOT}/…``."""

    def build(target: Path) -> None:
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(to.replace("{ROOT}", str(target.parents[2])))

    return build


def in_cache(target: Path) -> None:
    """A file as DVC leaves it where its cache is linked to."""
    cached = put(target.parents[2] / "cache/files/md5", f"ab/{'0' * 30}", PNG)
    (target / "a/5.png").symlink_to(cached)


def zip_of(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def bomb_file(path: Path, name: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        bomb(name, zipfile.ZIP_DEFLATED, 1 << 20, 1 << 30)(archive)


def npy_of(content: object) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(content, dtype=object), allow_pickle=True)
    return file.getvalue()


def torch_bytes(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def quantized(tensor: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such tensors are deprecated
        return torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8)


LONG = "x" * 300
SCRIPT = "<script>alert(1)</script>"
CASES: dict[str, Case] = {
    # lists
    "list above the data": lists(LINES + "../../../outside/secret.png cat", "outside data"),
    "list absolute": lists(LINES + "{ROOT}/outside/secret.png cat", "outside data"),
    "list above, allowed": lists(LINES + "../../../outside/secret.png cat", None, allow=True),
    "list absolute, allowed": lists(LINES + "{ROOT}/outside/secret.png cat", None, allow=True),
    "list above, within the data": lists(LINES + "../target/a/../a/1.png dog", "again"),
    "list into the project": lists(LINES + "../../params.yaml cat", "outside data"),
    "list of devices": lists(LINES + "/dev/zero cat", "there is no file", allow=True),
    "list with NUL": lists(LINES + "a/\0.png cat", "train.txt:5: there is no file 'a/\\x00.png'"),
    "list not UTF-8": lists(LINES.encode() + b"a/\xff.png cat\n", "is not UTF-8 text"),
    "list of UTF-16": lists(LINES.encode("utf-16"), "is not UTF-8 text"),
    "list with BOM": lists("\ufeff" + LINES, None),
    "list with CRLF": lists(LINES.replace("\n", "\r\n"), None),
    "list with lone CR": lists(LINES.replace("\n", "\r"), None),
    "list of one huge line": sparse("train.txt", "lists", "train.txt:1: has more than"),
    "list of a huge line later": sparse("train.txt", "lists", "train.txt:5: ", LINES.encode()),
    "list of a terabyte": sparse("train.txt", "lists", "cannot be read: holds", size=1 << 40),
    "list of blanks in a line": lists(LINES + "a" + " " * 900_000 + "b c\n", "there is no file"),
    "list with a formula": lists(LINES.replace("cat", "=1+1"), None, "=1+1", "dog"),
    "list of URLs": lists(LINES + "https://127.0.0.1/x.png cat", "there is no file"),
    "list is a link out": Case(
        lambda home: link("train.txt", "{ROOT}/outside/train.txt")(home / TARGET), "outside data",
        params=(("layout: folders", "layout: lists"),),
    ),
    "list of a pipe": Case(
        lambda home: os.mkfifo(home / "data/target/train.txt"), "is no regular file",
        params=(("layout: folders", "layout: lists"),),
    ),
    "list through a link out": Case(
        lambda home: (link("out", "{ROOT}/outside")(home / "data/target"),
                      put(home, "data/target/train.txt", LINES + "out/secret.png cat")),
        "outside data", params=(("layout: folders", "layout: lists"),),
    ),
    # tables
    "table above the data": table(ROWS + "../../../outside/secret.png,cat", "outside data"),
    "table absolute": table(ROWS + "{ROOT}/outside/secret.png,cat", "outside data"),
    "table absolute, allowed": table(ROWS + "{ROOT}/outside/secret.png,cat", None, allow=True),
    "table with NUL": table(ROWS + "a/\0.png,cat", "images.csv:6: "),
    "table with a newline in a name": table(ROWS + '"a/\n5.png",cat', "no file 'a/\\n5.png'"),
    "table not UTF-8": table(ROWS.encode() + b"a/5.png,\xff\n", "is not UTF-8 text"),
    "table with BOM": table("\ufeff" + ROWS, None),
    "table with CRLF": table(ROWS.replace("\n", "\r\n"), None),
    "table with lone CR": table(ROWS.replace("\n", "\r"), None),
    "table of a million columns": table("image,label" + ",x" * 999_998 + "\n", "csv:1: has more "),
    "table of many columns": table("," * 400_000 + "image\n", "has no column label"),
    "table with a formula": table(
        ROWS.replace("cat", '"=HYPERLINK(""x"")"'), None, '=HYPERLINK("x")', "dog"
    ),
    "table of one huge line": sparse("t.csv", "csv", "t.csv:1: has more than"),
    "table of an endless quote": table(ROWS + 'a/5.png,"' + "x,\n" * 200_000, "is no row of a CSV"),
    "table of empty lines": table(ROWS + "\n" * 500_000, None),
    "table with a huge cell": table(ROWS + "a/5.png," + "x" * 140_000, "is no row of a CSV"),
    "table of huge names": table(ROWS + "a/" + "x" * 100_000 + ",cat", "there is no file"),
    # pair lists and the runs of Omniglot
    "pairs above the data": pairs(PAIRS + "../../../outside/cats 1 2", "there is no folder"),
    "pairs with NUL": pairs(PAIRS + "a\0b 1 2", "there is no folder 'a\\x00b'"),
    "pairs with lone CR and BOM": pairs("\ufeff" + PAIRS.replace("\n", "\r"), None),
    "pairs not UTF-8": pairs(PAIRS.encode() + b"\xff 1 2\n", "is not UTF-8 text"),
    "pairs of a huge number": pairs(PAIRS + "ann 1 " + "9" * 10_000, "is no number"),
    "pairs of other digits": pairs(PAIRS + "ann 1 \u0662", "is no number"),
    "pairs of a negative number": pairs(PAIRS + "ann 1 -2", "is no number"),
    "pairs of one huge line": pairs("ann " * 500_000, "pairs_train.txt:1: has more than"),
    "pairs with a zip bomb": pairs(
        PAIRS.replace("ann 1 2", "ann 1 3"), "holds 1024 MiB",
        lambda faces: bomb_file(faces / "more.zip", "ann/ann_0003.png"),
    ),
    "pairs in a zip that leads out": pairs(
        PAIRS, "points outside the zip",
        lambda faces: put(faces, "m.zip", zip_of({"../../ann/ann_0003.png": PNG})),
    ),
    "pairs in a link out": pairs(
        PAIRS, "outside data",
        lambda faces: (faces / "eve").symlink_to(faces.parents[2] / "outside/cats"),
    ),
    "runs with NUL": omniglot(ANSWERS + "run01/\0 x\n", "is no image in run01/test"),
    "runs that lead out": omniglot("../../secret.png x\n", "is no image in run01/test"),
    "runs not UTF-8": omniglot(b"\xff\xfe", "is not UTF-8 text"),
    "runs with lone CR": omniglot(ANSWERS.replace("\n", "\r"), None),
    "runs of one huge line": omniglot("x" * 2_000_000, "class_labels.txt:1: has more than"),
    "runs with a newline in a name": omniglot(
        ANSWERS, "does not say what run01/test/item\\n3.png shows",
        lambda at: put(at, "all_runs/run01/test/item\n3.png", PNG),
    ),
    # folders
    "link to a file outside": tree(link("a/5.png", "{ROOT}/outside/secret.png"), "outside data"),
    "link to a folder outside": tree(link("a/out", "{ROOT}/outside/cats"), "outside data"),
    "link to a class outside": tree(link("cats", "{ROOT}/outside/cats"), "outside data"),
    "link outside, allowed": tree(link("cats", "{ROOT}/outside/cats"), None, allow=True),
    "link into DVC's cache": tree(in_cache, None),
    "link to nothing": tree(link("a/5.png", "nowhere.png"), "a/5.png"),
    "link to itself": tree(link("a/5.png", "5.png"), "a/5.png"),
    "circle of links": tree(link("a/deep/up", "../.."), "is a link to a folder that it lies in"),
    "a billion paths": tree(linked_folders, "is there already"),
    "target is a link out": Case(
        lambda home: (home / "data/cats").symlink_to(home.parent / "outside"), "outside data",
        params=(("target: data/target", "target: data/cats"),),
    ),
    "endless device": tree(link("a/5.png", "/dev/zero"), "is no regular file", allow=True),
    "pipe as image": tree(lambda target: os.mkfifo(target / "a/5.png"), "is no regular file"),
    "folders too deep": tree(deep, "cannot be read: File name too long"),
    "image of a terabyte": tree(
        lambda target: os.truncate(put(target, "a/5.png"), 1 << 40), "holds 1048576 MiB"
    ),
    "file name with a newline": in_set("a/5\n.txt.png", b"x", "a/5\\n.txt.png: is no readable"),
    "file name not UTF-8": in_set(b"a/\xff.png", b"x", "a/\\udcff.png: is no readable"),
    "file name with escapes": in_set("a/\x1b[2J.png", b"x", "a/\\x1b[2J.png: is no readable"),
    # images
    "bomb in PNG": in_set("a/x.png", png(30_000, 30_000), "has more than 89478485 pixels"),
    "bomb in TIFF": in_set("a/x.tif", tiff(60_000, 60_000, 200, 8), "has more than 89478485"),
    "bomb in a PNG's text": in_set(
        "a/x.png",
        png(8, 8, chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(80 << 20), 9))), "a/x.png: is ",
    ),
    "bomb in a PNG's profile": in_set(
        "a/x.png",
        png(8, 8, chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(80 << 20), 9)),
            data=zlib.compress(bytes(72))),
        "a/x.png: is damaged",
    ),
    "truncated JPEG": in_set("a/x.jpg", JPEG[: len(JPEG) // 2], "is damaged"),
    "truncated PNG": in_set("a/x.png", PNG[:60], "is damaged"),
    "TIFF that points past its end": in_set("a/x.tif", tiff(8, 8, 1 << 30, 64), "a/x.tif: is "),
    "TIFF of a huge strip": in_set("a/x.tif", tiff(8, 8, 150, 0xFFFFFFFF), "a/x.tif: is "),
    "no bytes": in_set("a/x.png", b"", "a/x.png: is empty"),
    "program as image": in_set("a/x.png", b"\x7fELF" + bytes(200), "is no readable"),
    "PostScript as image": in_set("a/x.png", b"%!PS\n(ls) system\n", "is no readable"),
    "SVG as image": in_set("a/x.png", b"<svg onload='alert(1)'/>", "is no readable"),
    "wrong suffix": in_set("a/x.png", JPEG, None),
    "one pixel": in_set("a/x.png", saved(picture(1, 1), "PNG"), None),
    "50,000 pixels wide": in_set(
        "a/x.png", png(50_000, 1, data=zlib.compress(bytes(50_001))), None
    ),
    "50,000 pixels wide, padded": Case(
        lambda home: put(home / "data/target", "a/x.png",
                         png(50_000, 1, data=zlib.compress(bytes(50_001)))),
        None, params=(("resize: crop", "resize: pad"),),
    ),
    "no pixels": in_set("a/x.png", png(0, 8), "a/x.png: is "),
    "negative size in BMP": in_set(
        "a/x.bmp",
        b"BM" + struct.pack("<IHHIIiiHH", 60, 0, 0, 54, 40, -8, 8, 1, 24) + bytes(32), "a/x.bmp: ",
    ),
    "PNM of a huge size": in_set("a/x.ppm", b"P6 " + b"9" * 5000 + b" 1 255\n", "a/x.ppm: is "),
    "CMYK": in_set("a/x.jpg", saved(picture(2).convert("CMYK"), "JPEG"), None),
    "16 bits": in_set(
        "a/x.png", saved(Image.fromarray(np.full((8, 8), 40_000, np.uint16)), "PNG"), None
    ),
    "animated GIF": in_set(
        "a/x.gif", saved(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), None
    ),
    "animated WebP": in_set(
        "a/x.webp", saved(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:]), None
    ),
    "hostile EXIF": in_set("a/x.jpg", saved(picture(3), "JPEG", exif=exif()), None),
    "damaged EXIF": in_set(
        "a/x.jpg", saved(picture(3), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"), None
    ),
    "hostile ICC profile": in_set(
        "a/x.jpg", saved(picture(3), "JPEG", icc_profile=b"\xff" * 60_000), None
    ),
    # zips
    "zip leads out": zipped(member("../outside/x.png"), "points outside the zip"),
    "zip leads out by backslash": zipped(member("..\\x.png"), "points outside the zip"),
    "zip absolute": zipped(member("/etc/x.png"), "points outside the zip"),
    "zip bomb as image": zipped(
        deflated_zeros("a/x.png", 16 << 20, 1 << 30), "holds 1024 MiB"
    ),
    "zip bomb that hides its size": zipped(
        deflated_zeros("a/x.png", 2 * MEMORY, 100), "a/x.png: "
    ),
    "zip bomb of bzip2": zipped(bomb("a/x.png", zipfile.ZIP_BZIP2, 32 << 20, 100), "a/x.png: "),
    "zip bomb of LZMA": zipped(bomb("a/x.png", zipfile.ZIP_LZMA, 32 << 20, 100), "a/x.png: "),
    "zip bomb as list": zipped(
        deflated_zeros("train.txt", 64 << 20, 64 << 20), "train.txt:1: has more", "lists"
    ),
    "zip encrypted": zipped(nothing, "is encrypted", raw=directory_entry(flags=1)),
    "zip overlapping": zipped(nothing, "b/4.png: ", raw=directory_entry(offset=0)),
    "zip of one name twice": zipped(
        twice, None
    ),
    "zip with a link": zipped(
        member("a/x.png", b"/etc/passwd", create_system=3, external_attr=0o120777 << 16),
        "is a link",
    ),
    "zip with a link to a folder": zipped(
        member("c", b"../../outside", create_system=3, external_attr=0o120777 << 16), "is a link"
    ),
    "zip of deep folders": zipped(member("a/" * 30_000 + "x.png"), "folders deep"),
    "zip with NUL": zipped(member("a/x\0.png", b"x"), "a/x"),
    "zip with a newline in a name": zipped(member("a/\n.png", b"x"), "a/\\n.png: is no readable"),
    "zip truncated": zipped(nothing, "cannot be read as a zip", raw=lambda content: content[:-40]),
    "zip of another offset": zipped(nothing, ": ", raw=directory_entry(offset=0xFFFFFFF0)),
    "zip of a huge packed size": zipped(nothing, ": ", raw=directory_entry(packed=0xFFFFFFF0)),
    "zip whose list lies elsewhere": zipped(
        nothing, "cannot be read as a zip", raw=end_record(16, "<I", 0xFFFFFFF0)
    ),
    "zip that lies behind itself": zipped(nothing, ": ", raw=end_record(16, "<I", 100_000)),
    "zip in a zip": zipped(member("a/x.zip", b"PK"), "is no kind of image"),
    # weights
    "pickle that executes": start("w.pth", lambda: pickle.dumps(Harmful()), "holds more than"),
    "checkpoint that executes": start(
        "w.pth", lambda: {"state_dict": network(), "x": Harmful()}, "holds more than tensors"
    ),
    "npy that executes": start(
        "w.npy", lambda: npy_of(Harmful()), "refused, since it holds 'pathlib.Path.touch"
    ),
    "pickle of a huge array": start("w.pth", lambda: b"\x80\x02cbuiltins\nbytearray\n"
                                      b"\x8a\x06\0\0\0\0\0\x10\x85R.", "w.pth: "),
    "checkpoint that unpacks": start("w.pth", deflated, "w.pth: "),
    "checkpoint truncated": start("w.pth", lambda: torch_bytes(network())[:3000], "is broken"),
    "checkpoint of no bytes": start("w.pt", lambda: b"", "is broken or no PyTorch file"),
    "checkpoint of sparse tensors": start(
        "w.pth", lambda: with_key(lambda w: w.to_sparse()), "is sparse"
    ),
    "checkpoint of complex numbers": start(
        "w.pth", lambda: with_key(lambda w: w.to(torch.complex64)), "complex64"
    ),
    "checkpoint of meta tensors": start(
        "w.pth", lambda: with_key(lambda w: w.to("meta")), "w.pth: "
    ),
    "checkpoint of quantized tensors": start("w.pth", lambda: with_key(quantized), "w.pth: "),
    "checkpoint of endless strides": start(
        "w.pth", lambda: with_key(lambda w: torch.zeros(1).expand(1 << 40)), "instead of"
    ),
    "checkpoint of NaN": start("w.pth", lambda: with_key(lambda w: w / 0 * 0), "NaN"),
    "checkpoint beyond float32": start(
        "w.pth", lambda: with_key(lambda w: w.double() * 0 + 1e300), "infinity"
    ),
    "checkpoint of an odd name": start("w.pth", lambda: {"a\n\x1b": torch.zeros(1)}, "w.pth: "),
    "safetensors of a long header": start(
        "w.safetensors", lambda: safetensors_of("{}", length=1 << 62), "not a whole safetensors"
    ),
    "safetensors of a short header": start(
        "w.safetensors", lambda: safetensors_of('{"a":1}', length=3), "not a whole safetensors"
    ),
    "safetensors whose shape overflows": start(
        "w.safetensors",
        lambda: safetensors_of(f'{{"a":{{"dtype":"F32","shape":[{1 << 62},{1 << 62}],'
                               '"data_offsets":[0,4]}}', bytes(4)),
        "not a whole safetensors",
    ),
    "safetensors of negative offsets": start(
        "w.safetensors",
        lambda: safetensors_of('{"a":{"dtype":"F32","shape":[1],"data_offsets":[8,4]}}', bytes(8)),
        "not a whole safetensors",
    ),
    "safetensors truncated": start(
        "w.safetensors", lambda: safetensors_bytes(network())[:-9], "not a whole safetensors"
    ),
    "safetensors of NaN": start(
        "w.safetensors", lambda: safetensors_bytes(with_key(lambda w: w / 0 * 0)), "NaN"
    ),
    "safetensors of one-byte floats": start(
        "w.safetensors",
        lambda: safetensors_bytes(with_key(lambda w: w.to(torch.float8_e4m3fn))), None,
    ),
    "safetensors of deep nesting": start(
        "w.safetensors", lambda: safetensors_of("[" * 100_000), "not a whole safetensors"
    ),
    "weights of a device": params(
        "file: pretrained", "file: /dev/zero", "is no regular file"
    ),
    # params
    "YAML tag": params("lr: 0.01\n", "lr: !!python/object/apply:os.system [id]\n", "tags"),
    "anchor bomb": params_file(lol, "anchors and aliases"),
    "duplicate key": params("image_size: 8", "image_size: 8\n  image_size: 9", "duplicate key"),
    "merge key": params("image_size: 8", "<<: {image_size: 8}", "params.yaml:"),
    "NaN": params("lr: 0.01\n", "lr: .nan\n", "finite"),
    "1e400": params("lr: 0.01\n", "lr: 1e400\n", "finite"),
    "infinity": params("lr: 0.01\n", "lr: .inf\n", "finite"),
    "negative size": params("image_size: 8", "image_size: -8", "greater than or equal to 4"),
    "huge size": params("image_size: 8", "image_size: 1000000000", "less than or equal to"),
    "seed of 2^64": params("seeds:\n  - 0", f"seeds:\n  - {1 << 64}", "less than 4294967296"),
    "number of 100,000 digits": params("seeds:\n  - 0", f"seeds:\n  - {'9' * 100_000}", ": "),
    "epochs without end": params("epochs: 120", f"epochs: {10**30}", "less than or equal to"),
    "pairs without end": params("per_image: 8", f"per_image: {10**15}", "less than or equal to"),
    "deep nesting of lists": params_file(lambda: "a: " + "[" * 50_000, "more than 32 blocks"),
    "deep nesting of maps": params_file(lambda: "{a: " * 900 + "1" + "}" * 900, "params.yaml"),
    "10 MB": params_file(lambda: PARAMS + "# x\n" * (10 << 18), "params.yaml: holds"),
    "5,000 keys": params_file(
        lambda: PARAMS + "".join(f"k{n}: 1\n" for n in range(5_000)), "unknown key"
    ),
    "params of NUL": params_file(lambda: PARAMS + "\0", "params.yaml"),
    "params of UTF-16": params_file(lambda: PARAMS.encode("utf-16"), "UTF-8"),
    "params of several documents": params_file(lambda: PARAMS + "---\n" + PARAMS, "params.yaml:"),
    "params of YAML 1.1": params_file(
        lambda: "%YAML 1.1\n---\n" + PARAMS.replace("flip: false", "flip: no"), "params.yaml:"
    ),
    "params of odd keys": params_file(lambda: PARAMS + "? [a, b]\n: 1\n", "params.yaml:"),
    "params of a map as key": params_file(lambda: PARAMS + "? {a: b}\n: 1\n", "params.yaml:"),
    "params of null as key": params_file(lambda: PARAMS + "null: 1\n", "params.yaml:"),
    "params of dates": params("lr: 0.01\n", "lr: 2001-01-01\n", "valid number"),
    "params with escapes": params("target: data/target", 'target: "data/\\e[2J\\n"', "data.target"),
    "params with NUL": params("target: data/target", 'target: "data/\\0"', "data.target"),
    "params with half characters": params(
        "target: data/target", 'target: "data/\\ud800"', "params.yaml"
    ),
    "recipe outside its folder": params("recipe: scratch", "recipe: ..check", "there is no"),
    "recipe of a module": params("recipe: scratch", "recipe: base", "there is no"),
    "recipe of a list": params("recipe: scratch", "recipe: [os]", "there is no"),
    "architecture of another module": params("architecture: small", "architecture: __init__", "no"),
    "latent of dunder names": params("latent: embedding", "latent: __class__.x", "latent"),
    "method of 300 characters": params_file(
        lambda: PARAMS.replace("  scratch:\n", f"  {LONG}:\n"), "name"
    ),
    "method that leads out": params_file(
        lambda: PARAMS.replace("  scratch:\n", "  ../../x:\n"), "name"
    ),
    "device without end": params("device: auto", "device: cuda:" + "9" * 30, "match pattern"),
    "target above the data": params("target: data/target", "target: data/../..", "must lie in"),
    "params is a folder": Case(
        lambda home: ((home / "params.yaml").unlink(), (home / "params.yaml").mkdir()),
        "params.yaml", run_check,
    ),
    "params is a pipe": Case(
        lambda home: ((home / "params.yaml").unlink(), os.mkfifo(home / "params.yaml")),
        "params.yaml", run_check,
    ),
    # class names
    "class with control characters": table(
        ROWS.replace("cat", "c\x1b[31m\x07"), None, "c\\x1b[31m\\x07", "dog"
    ),
    "class of script": table(ROWS.replace("cat", SCRIPT), None, SCRIPT, "dog"),
    "class with a dash": table(ROWS.replace("cat", "-rf"), None, "-rf", "dog"),
    "class with an equals sign": table(ROWS.replace("cat", "=1+1"), None, "=1+1", "dog"),
    "class of 300 characters": table(ROWS.replace("cat", LONG), None, LONG, "dog"),
    "class of another direction": table(ROWS.replace("cat", "\u202etac"), None, "\u202etac", "dog"),
    "class that is a path": table(ROWS.replace("cat", "../../x"), None, "../../x", "dog"),
    "class folder with a newline": Case(
        lambda home: [put(home / "data/target", f"c\nd/{n}.png", saved(picture(n), "PNG"))
                      for n in (30, 31)],
        None, classes=("a", "b", "c\\nd"),
    ),
    "class folder not UTF-8": Case(
        lambda home: [put(home / "data/target", b"\xff/%d.png" % n, saved(picture(n), "PNG"))
                      for n in (30, 31)],
        None, classes=("a", "b", "\\udcff"),
    ),
}  # fmt: skip


# ---------------------------------------------------------------- the attacks


def table_of(home: Path) -> list[dict[str, str]]:
    with (home / "prepared/images.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", CASES)
def test_hostile_input_ends_in_one_line_or_works(name, tmp_path):
    case = CASES[name]
    home = project(tmp_path, case.params)
    case.build(home)
    earlier, rest = parted(snapshot(tmp_path))
    outcome = attacked(case.work, home)
    left, rest_after = parted(snapshot(tmp_path))
    assert rest_after == rest, "something else was written"
    assert outcome.seconds < SECONDS
    if case.said is None:
        assert (outcome.status, outcome.err) == (0, "")
        if case.work is run_images:
            rows = table_of(home)
            assert len(np.load(home / "prepared/images.npy", mmap_mode="r")) == len(rows) >= 4
            if case.classes:
                assert {row["class"] for row in rows} == set(case.classes)
        return
    assert outcome.status == 1, outcome.err
    assert left == earlier, "results of the earlier run were touched"
    line, end, more = outcome.err.partition("\n")
    assert (end, more) == ("\n", "") and line.startswith("error: ")
    assert case.said in line
    assert len(line) < 1500 and line.isprintable()


def test_there_are_eighty_cases_at_least():
    assert len(CASES) >= 80 and sum(case.said is not None for case in CASES.values()) >= 80


def test_the_limits_hold():
    """A case that took all memory or time would be seen."""
    hungry = attacked(lambda: print(len(bytes(3 * MEMORY))), ROOT)
    assert hungry.status == 70 and "MemoryError" in hungry.err


END_TO_END = {
    "list absolute": "images", "bomb in PNG": "images", "zip leads out": "images",
    "anchor bomb": "check", "recipe outside its folder": "check",
}  # fmt: skip


@pytest.mark.parametrize("name", END_TO_END)
def test_programs_end_in_one_line_and_status_1(name, tmp_path):
    case = CASES[name]
    home = project(tmp_path, case.params)
    case.build(home)
    module = {"images": "pipeline.stages.images", "check": "pipeline.check"}[END_TO_END[name]]
    done = subprocess.run(
        [sys.executable, "-m", module],
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert case.said is not None and case.said in done.stderr
