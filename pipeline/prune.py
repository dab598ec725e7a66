"""Remove what ``compare`` no longer names, and old checkpoints: ``python -m pipeline.prune``."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline import check
from pipeline.errors import command
from pipeline.params import Params
from pipeline.records import CHECKPOINTS, RunId, project_root, runs_of


def prune(params: Params) -> list[Path]:
    """Delete what is left of removed methods, shots and seeds; DVC's cache keeps its copy.

    Returns:
        What was removed.
    """
    runs = runs_of(params.compare)
    kept = {
        path
        for run in runs
        for path in (
            *(run.folder, run.predictions, run.examples, run.test_timing),
            *(run.diagnosis, run.latents),
        )
    }
    found = [*Path("runs").glob("*/shots-*/seed-*")]
    for kind in ("*.csv", "*.png", "*.json", "*.npz"):
        found += Path("predictions").glob(kind)
    removed = [path for path in sorted(found) if path not in kept]
    for path in removed:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for folder in sorted(Path("runs").glob("**/"), reverse=True):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    return removed + _old_checkpoints(runs)


def _old_checkpoints(runs: list[RunId]) -> list[Path]:
    """Delete checkpoints of runs that are no longer named, and all but the newest of a stage.

    That of a run that was interrupted stays, so that it can go on.
    """
    place = (project_root() or Path.cwd()) / CHECKPOINTS
    named = {f"{stage}-{run.name}" for run in runs for stage in ("encoder", "head", "baseline")}
    newest_first = sorted(place.glob("*.*"), key=lambda folder: -folder.stat().st_mtime)
    kept: set[str] = set()
    removed = []
    for folder in newest_first:
        name = folder.stem  # without the key
        if name in kept or (name not in named and not name.startswith("weights-")):
            shutil.rmtree(folder)
            removed.append(folder)
        kept.add(name)
    if place.is_dir() and not any(place.iterdir()):
        place.rmdir()
    return removed


def main() -> None:
    """Prune and say what went."""
    removed = prune(check.load())
    for path in removed:
        print(f"removed {path}")
    print(f"{len(removed)} leftovers removed")


if __name__ == "__main__":
    command(main)
