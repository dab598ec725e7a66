"""What a run leaves behind: its folder, its files and their forms."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.errors import InputError, naming

PROJECT_FILE = "dvc.yaml"
CHECKPOINTS = ".checkpoints"  # in the project's folder
RECORD_VERSION = 1
REMAKE = "make it anew with 'dvc repro'"
# How outputs end that differ from one time to the next; all others are the same bytes again.
TIMED = ("timing.json", "costs.csv", "index.html", "report.md")
BUFFER = 1 << 20  # bytes of a table that are written at once
PAIRS = "pairs"  # the set of trials that are pairs; every other set consists of episodes
OFFICIAL = "official"  # the set of episodes that are given, not drawn
VAL_TRIALS = Path("prepared/trials/val.csv")  # pairs and episodes; of none in classification
TRIAL_COLUMNS = ("set", "episode", "left", "right", "same")
ANSWER_COLUMNS = (  # of a verification run's predictions
    *("set", "episode", "left", "right", "left_class", "right_class"),
    *("label", "predicted", "score"),
)


@dataclass(frozen=True, order=True)
class RunId:
    """One (method, shots, seed)."""

    method: str
    shots: int | str
    seed: int

    @property
    def name(self) -> str:
        """The run's name for people, such as ``breakdown-n10-s0``."""
        return f"{self.method}-n{self.shots}-s{self.seed}"

    @property
    def folder(self) -> Path:
        """Where the run's files lie."""
        return Path("runs", self.method, f"shots-{self.shots}", f"seed-{self.seed}")

    @property
    def predictions(self) -> Path:
        """The run's predictions on the test split."""
        return Path("predictions", f"{self.name}.csv")

    @property
    def examples(self) -> Path:
        """A picture of what the run is most sure of on the test split, rightly and wrongly."""
        return Path("predictions", f"{self.name}.png")

    @property
    def test_timing(self) -> Path:
        """What testing took: it differs from one time to the next."""
        return Path("predictions", f"{self.name}.timing.json")

    @property
    def diagnosis(self) -> Path:
        """What the trained network is like inside; see ``pipeline.evaluation.diagnosis``."""
        return Path("predictions", f"{self.name}.diagnosis.json")

    @property
    def latents(self) -> Path:
        """Latents of test images and first-layer filters, as arrays."""
        return Path("predictions", f"{self.name}.latents.npz")

    @property
    def gradients(self) -> Path:
        """Gradient norms while training: ``phase,epoch,layer,norm``."""
        return self.folder / "gradients.csv"

    @property
    def train_list(self) -> Path:
        """The run's training images; all methods with the same shots and seed share it."""
        return Path("prepared/train", f"shots-{self.shots}", f"seed-{self.seed}.csv")

    @property
    def pair_list(self) -> Path:
        """The run's training pairs."""
        return Path("prepared/pairs", f"shots-{self.shots}", f"seed-{self.seed}.csv")

    @property
    def trial_list(self) -> Path:
        """What the run learns to verify; of no pair in classification."""
        return Path("prepared/trials", f"shots-{self.shots}", f"seed-{self.seed}.csv")


def project_root() -> Path | None:
    """The project's folder: ``DVC_ROOT``, else the nearest one at or above here with a dvc.yaml.

    In a DVC experiment's temporary copy ``DVC_ROOT`` still names the real project. None outside of
    any project.
    """
    if root := os.environ.get("DVC_ROOT"):
        return Path(root).resolve()
    here = Path.cwd()
    found = (folder for folder in (here, *here.parents) if (folder / PROJECT_FILE).is_file())
    return next(found, None)


def write_atomically(path: Path | str, content: bytes | str) -> None:
    """Write a whole file or none: beside it first, then in its place."""
    with whole_or_none(path) as beside:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_or_none(path: Path | str) -> Iterator[Path]:
    """A path beside ``path`` to write to, moved there at the end, or gone after an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    clear_halves(path)
    try:
        with naming(path, beside):
            yield beside
            os.replace(beside, path)
    finally:
        with suppress(OSError):  # it was moved, or cannot have been made
            beside.unlink()


def check_disk(place: Path, needed: int, what: str, mend: str) -> None:
    """Refuse, before the work, what could not be written after it.

    Args:
        place: the file or folder to be written, in a folder that is there.
        needed: bytes.
        what: what takes them, for the message.
        mend: what to do where there is no room.

    Raises:
        InputError: the disk has less room.
    """
    room = shutil.disk_usage(place if place.is_dir() else place.parent).free
    if room < needed:
        raise InputError(
            f"{place}: needs {needed / 1e6:,.1f} MB for {what}, but its disk has "
            f"{room / 1e6:,.1f} MB left; {mend}"
        )


def clear_halves(path: Path) -> None:
    """Remove what killed processes left beside ``path`` while they made that file or folder."""
    for left in _left_behind(path.parent.absolute()):
        if left.stem == f".{path.name}":
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


@cache
def _left_behind(folder: Path) -> list[Path]:
    """Half files of processes that were killed, when this one first writes into a folder."""
    found = [path for path in folder.glob(".*.*") if path.suffix[1:].isdecimal()]
    return [path for path in found if not _is_alive(int(path.suffix[1:]))]


def _is_alive(process: int) -> bool:
    """Whether there is another process of this number."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is someone else's
        pass
    return True


def write_json(path: Path | str, content: Mapping[str, Any]) -> None:
    """Write JSON with sorted keys; NaN and infinity are errors, so that no reader chokes."""
    text = json.dumps(content, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
    write_atomically(path, text + "\n")


def read_json(path: Path | str) -> dict[str, Any]:
    """Read a JSON object."""
    content: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return content


def read_made(path: Path) -> dict[str, Any]:
    """Read a JSON object that the pipeline has made.

    Raises:
        InputError: it is missing or unreadable; the line says to make it anew.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; {REMAKE}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: no readable JSON ({error}): {REMAKE}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: no JSON object: {REMAKE}")
    return content


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def read_record(folder: Path) -> dict[str, Any]:
    """The ``record.json`` of a run, or of a part of one, in its folder.

    Raises:
        InputError: it is missing or unreadable, or has another version.
    """
    path = folder / "record.json"
    record = read_made(path)
    if (version := record.get("version")) != RECORD_VERSION:
        raise InputError(f"{path}: version is {version}, not {RECORD_VERSION}: {REMAKE}")
    return record


def places_of(path: Path | str, header: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Where columns stand in the header of a table that we wrote.

    Raises:
        InputError: one is missing, as in a table of another form.
    """
    missing = [name for name in wanted if name not in header]
    if missing:
        raise InputError(f"{path}: column '{missing[0]}' is missing: {REMAKE}")
    return [header.index(name) for name in wanted]


def write_table(path: Path | str, rows: Iterable[Sequence[Any]], header: Sequence[str]) -> None:
    """Write a CSV of plain values; floats in their shortest exact form, None as nothing.

    Rows are written as they come, so that any number of them needs no memory.
    """
    with (
        whole_or_none(path) as beside,
        beside.open("w", encoding="utf-8", newline="", buffering=BUFFER) as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def write_history(path: Path | str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write ``history.csv``: ``phase,epoch,images_seen``, then every metric that any row has."""
    first = ["phase", "epoch", "images_seen"]
    metrics = sorted({key for row in rows for key in row} - set(first))
    header = first + metrics
    write_table(path, ([row.get(key) for key in header] for row in rows), header)


def digest(*parts: bytes | str) -> str:
    """MD5, as DVC uses, over the parts, each with its length, so that none can be shifted."""
    total = hashlib.md5(usedforsecurity=False)
    for part in parts:
        part = part.encode() if isinstance(part, str) else part
        total.update(len(part).to_bytes(8, "little"))
        total.update(part)
    return total.hexdigest()


def file_digest(path: Path | str) -> str:
    """MD5 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def runs_of(compare: Any) -> list[RunId]:
    """The runs that ``compare`` names, methods outermost."""
    return [
        RunId(method, shots, seed)
        for method in compare.methods
        for shots in compare.shots
        for seed in compare.seeds
    ]
