"""How time and memory of the data stages grow with the images and the pairs of a set.

    python -m benchmarks.scale [--rows N ...] [--pairs N ...] [--sets NAME ...] [--side PIXELS]
                               [--near warn|group] [--json FILE]

Makes sets of tiny images on the fly, each one zip, runs the stages ``images`` and ``prepare`` each
in a process of its own, and prints a table: seconds, processor seconds and the most memory that
the process held. ``--rows`` are sizes of each set at ten pairs an image, ``--pairs`` numbers of
pairs drawn from a set of at most 100,000 images, ``--near`` what becomes of near duplicates in
classification: one image in fifty is a darker copy of the one before it.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import resource
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

SIDE = 8  # of an image, in pixels, where nothing else is asked for
COPIED = 50  # the last of so many images is a copy of the one before it
ROWS = (1_000, 10_000, 100_000, 1_000_000)
PAIRS = (5_000_000,)
PER_IMAGE = 10  # pairs an image, where images are what grows
MOST_IMAGES = 100_000  # of a set whose pairs are what grows
TRAIN = 0.5  # share of the images that are left to train on
OF_CLASS = {"classes": 100, "table": 100, "people": 10, "characters": 20}  # images of each
CHARACTERS = 50  # of an alphabet

SetName = Literal["classes", "table", "people", "characters"]
Near = Literal["warn", "group"]


@dataclass(frozen=True)
class Case:
    """A set and what is asked of it: ``rows`` images, ``per_image`` pairs of each."""

    name: SetName
    rows: int
    per_image: int = PER_IMAGE
    of_class: int | None = None  # images of each class, where not as `OF_CLASS` says
    side: int = SIDE
    near: Near = "warn"


@dataclass(frozen=True)
class Used:
    """What one process took: wall and processor seconds, and the most memory it held, in MB."""

    seconds: float
    processor: float
    peak_mb: float


@dataclass(frozen=True)
class Grown:
    """One stage on one set."""

    set: str
    stage: str
    rows: int
    pairs: int
    used: Used


def cases(
    sets: list[SetName], rows: list[int], pairs: list[int], side: int = SIDE, near: Near = "warn"
) -> list[Case]:
    """Every set at every size, then the sets whose pairs are many."""
    grown = [Case(name, size, side=side, near=near) for name in sets for size in rows]
    for wanted in pairs:
        images = min(MOST_IMAGES, max(1_000, wanted // 50))
        per_image = max(1, round(wanted / (images * TRAIN)))
        grown.append(Case("classes", images, per_image, images // 20, side, near))
    return grown


def run(case: Case, folder: Path) -> list[Grown]:
    """Make a set in an empty folder and run both stages on it, each in a fresh process."""
    alone(make, case, folder / "data")
    used = {stage: alone(run_stage, case, folder, stage) for stage in ("images", "prepare")}
    pairs = _lines(folder / "prepared/pairs/shots-all/seed-0.csv")
    made = {"images": 0, "prepare": pairs}
    return [Grown(case.name, stage, case.rows, made[stage], used[stage]) for stage in used]


def alone(work: Callable[..., None], *given: Any) -> Used:
    """Do work in a process that does nothing else, and say what it took, imports included."""
    started = time.perf_counter()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        processor, peak = pool.submit(_taken, work, given).result()
    return Used(time.perf_counter() - started, processor, peak)


def _taken(work: Callable[..., None], given: tuple[Any, ...]) -> tuple[float, float]:
    work(*given)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime, _peak_bytes() / 1e6


def _peak_bytes() -> int:
    """Most memory that this process held."""
    if sys.platform == "linux":  # where getrusage's figure begins with that of the parent
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def make(case: Case, folder: Path) -> None:
    """Write a set as one zip in ``folder``: no two of its images are the same."""
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / _file(case.name), "w") as archive:
        for number, (path, *_) in enumerate(_named(case)):
            archive.writestr(path, png(number, case.side))
        if case.name == "table":
            lines = (f"{path},{label}\n" for path, label in _named(case))
            archive.writestr("images.csv", "image,label\n" + "".join(lines))


def png(number: int, side: int = SIDE) -> bytes:
    """A grey image of its own for each number below 2**64 as a PNG file, some darker copies."""
    copied = number % COPIED == COPIED - 1
    pixels = hashlib.shake_128((number - copied).to_bytes(8, "little")).digest(side * side)
    if copied:
        pixels = bytes(pixel * 4 // 5 for pixel in pixels)
    scan = b"".join(b"\0" + pixels[side * row : side * (row + 1)] for row in range(side))
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(scan, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )


def _named(case: Case) -> Iterator[tuple[str, str]]:
    """The path and the class of every image."""
    each = case.of_class or OF_CLASS[case.name]
    for number in range(case.rows):
        label, place = divmod(number, each)
        if case.name == "table":
            yield f"pictures/{number:07}.png", f"class {label}"
        elif case.name == "characters":
            alphabet, character = divmod(label, CHARACTERS)
            name = f"Alphabet_{alphabet}/character{character + 1:02}"
            yield f"images_background/{name}/{number:07}_{place + 1:02}.png", name
        else:
            yield f"{case.name}/{label}/{number:07}.png", str(label)


def _file(name: SetName) -> str:
    return "images_background.zip" if name == "characters" else "set.zip"


def run_stage(case: Case, folder: Path, stage: str) -> None:
    """Run ``images`` or ``prepare`` in ``folder``; what it prints is left out."""
    from pipeline.stages.images import images
    from pipeline.stages.prepare import prepare

    os.chdir(folder)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        {"images": images, "prepare": prepare}[stage](_params(case))


def _params(case: Case) -> Any:
    from pipeline.params import Compare, Data, Pairs, Params, Splits

    verifying = case.name in ("people", "characters")
    layouts = {"table": "csv", "characters": "omniglot"}
    return Params.model_construct(
        task="verification" if verifying else "classification",
        data=Data(
            target=f"data/{_file(case.name)}",
            layout=layouts.get(case.name, "folders"),  # type: ignore[arg-type]
            image_size=case.side,
            channels=1,
            splits=Splits(val=0.2, test=1 - TRAIN - 0.2),
            near_duplicates="warn" if verifying else case.near,
        ),
        pairs=Pairs(per_image=case.per_image, positive_fraction=0.5),
        compare=Compare(
            breakdowns=["breakdown"], baselines=[], reference="breakdown", shots=["all"], seeds=[0]
        ),
    )


def _lines(path: Path) -> int:
    """The lines of a table below its header."""
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b"")) - 1


def table(rows: list[Grown]) -> str:
    """The measurements as a table in Markdown."""
    header = ["set", "stage", "images", "training pairs", "seconds", "processor seconds"]
    header += ["peak MB", "images/s"]
    lines = [header, ["---"] * len(header)]
    lines += [
        [
            *(row.set, row.stage, f"{row.rows:,}", f"{row.pairs:,}" if row.pairs else ""),
            *(f"{row.used.seconds:.1f}", f"{row.used.processor:.1f}", f"{row.used.peak_mb:.0f}"),
            f"{row.rows / row.used.seconds:,.0f}",
        ]
        for row in rows
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Measure what the command line asks for; the table last, JSON beside it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale")
    parser.add_argument("--rows", type=int, nargs="*", default=list(ROWS))
    parser.add_argument("--pairs", type=int, nargs="*", default=list(PAIRS))
    parser.add_argument("--sets", nargs="*", choices=list(OF_CLASS), default=list(OF_CLASS))
    parser.add_argument("--side", type=int, default=SIDE)
    parser.add_argument("--near", choices=["warn", "group"], default="warn")
    parser.add_argument("--json", type=Path, default=Path("reports/scale.json"))
    asked = parser.parse_args()
    found: list[Grown] = []
    for case in cases(asked.sets, asked.rows, asked.pairs, asked.side, asked.near):
        with tempfile.TemporaryDirectory() as folder:
            found += run(case, Path(folder))
        print("\n".join(table(found[-2:]).split("\n")[2:]), flush=True)
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    shown = {
        "cores": os.cpu_count(),
        "side": asked.side,
        "near": asked.near,
        "rows": [asdict(row) for row in found],
    }
    asked.json.write_text(json.dumps(shown, indent=2) + "\n", encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
