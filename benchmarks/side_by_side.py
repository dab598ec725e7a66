"""The wall time of ``dvc repro`` against runs side by side, in two fresh copies of this project.

    python -m benchmarks.side_by_side [N]

N runs at a time, 2 if it is not given. Each copy reproduces everything from the images on; then the
outputs that DVC recorded are compared, but for those that hold times.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline.errors import InputError, command
from pipeline.jobs import number_of
from pipeline.records import TIMED

ROOT = Path(__file__).parents[1]
# what differs from one time to the next, and folders that hold such
DIFFER = (*TIMED, "runs", "predictions")


def copy(folder: Path) -> None:
    """What git knows of this project, and its data, in a folder under git of its own.

    Raises:
        InputError: there are no data to copy.
    """
    if not (ROOT / "data").exists():
        raise InputError("data: there is no such folder; dvc pull --remote embedded data.dvc")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file() and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "data", folder / "data")
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)


def seconds_of(words: list[str], folder: Path) -> float:
    """Wall time of a command in a folder.

    Raises:
        InputError: it failed.
    """
    own = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": own, "PYTHONPATH": str(folder)}
    started = time.perf_counter()
    done = subprocess.run(words, cwd=folder, env=environment)
    if done.returncode:
        raise InputError(f"{' '.join(words)}: ended with status {done.returncode}; see above")
    return time.perf_counter() - started


def recorded(folder: Path) -> dict[str, Any]:
    """A project's dvc.lock, in its order, without the hashes of what holds times."""
    lock: dict[str, Any] = YAML(typ="safe").load((folder / "dvc.lock").read_text(encoding="utf-8"))
    for stage in lock["stages"].values():
        for kind in ("deps", "outs"):
            stage[kind] = [_without_times(entry) for entry in stage.get(kind, [])]
    return lock


def differences(one: Path, other: Path) -> list[str]:
    """What differs in the dvc.lock of two projects: their stages' order, or a stage."""
    locks = [recorded(folder)["stages"] for folder in (one, other)]
    found = [] if list(locks[0]) == list(locks[1]) else ["the order of stages"]
    names = sorted(locks[0].keys() | locks[1].keys())
    return found + [name for name in names if locks[0].get(name) != locks[1].get(name)]


def _without_times(entry: dict[str, Any]) -> dict[str, Any]:
    return {"path": entry["path"]} if entry["path"].endswith(DIFFER) else entry


def main() -> None:
    """Time both and print the ratio."""
    number = number_of(sys.argv[1] if len(sys.argv) > 1 else "2")
    ways = {
        "dvc repro": [sys.executable, "-m", "dvc", "repro"],
        f"python -m pipeline.jobs {number}": [sys.executable, "-m", "pipeline.jobs", str(number)],
    }
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch, str(place)) for place in range(len(ways))]
        copy(folders[0])
        shutil.copytree(*folders)  # of the same moment, whatever is edited meanwhile
        taken = [
            seconds_of(words, folder) for folder, words in zip(folders, ways.values(), strict=True)
        ]
        different = differences(*folders)
    print("\n| what | seconds |\n| --- | --- |")
    for way, seconds in zip(ways, taken, strict=True):
        print(f"| `{way}` | {seconds:.1f} |")
    print(f"\nratio {taken[0] / taken[1]:.2f}")
    print(f"different: {', '.join(different)}" if different else "all outputs are the same")


if __name__ == "__main__":
    command(main)
