"""``dvc repro`` with nothing to do, against that of a project of as many trivial stages."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ruamel.yaml import YAML

from benchmarks.measure import Row, Taken
from benchmarks.rows.commands import ROOT, call, seconds

MADE = ("prepared", "weights", "runs", "predictions", "reports")
LEAST = 1 / 1.5  # ours may take at most 1.5 times as long
DVC = (sys.executable, "-m", "dvc")
EPOCHS = (
    "weights.source.epochs",
    "methods.breakdown.encoder.epochs",
    "methods.breakdown.head.epochs",
    "methods.finetune.epochs",
    "methods.scratch.epochs",
)


@contextmanager
def nothing_to_do(seeds: int = 3) -> Iterator[Row]:
    """The seconds of ``dvc repro`` of the default project after a first one.

    The other project has as many stages, each with a small file to read and one it wrote, and
    a last one that always runs and imports MLflow.

    Args:
        seeds: of the default comparison, which has three; each adds eight stages.
    """
    with tempfile.TemporaryDirectory() as made:
        ours, other = Path(made, "ours"), Path(made, "other")
        _default_project(ours, seeds)
        stages = len(call(ours, *DVC, "stage", "list", "--name-only", code=ours).split())
        _trivial_project(other, stages)
        yield Row(
            name=f"dvc repro with nothing to do, {stages} stages",
            against="as many trivial stages, and an import of mlflow",
            ours=lambda: Taken(seconds(ours, *DVC, "repro", code=ours)),
            other=lambda: Taken(seconds(other, *DVC, "repro")),
            unit="seconds",
            wanted=LEAST,
            note="DVC",
        )


def _default_project(folder: Path, seeds: int) -> None:
    """A copy of this project with all stages done, by way of one process, one epoch a phase."""
    _copy_code(folder)
    call(folder, sys.executable, "scripts/default_data.py", "data", code=folder)
    changes = [f"{key}=1" for key in EPOCHS]
    changes += [f"compare.seeds={list(range(seeds))}", "tracking.live_after=null"]
    apart = folder.with_name("apart")
    words = ("-m", "benchmarks.compare", "configs/digits.yaml", "data", str(apart))
    call(folder, sys.executable, *words, *changes, code=folder)
    shutil.copy(apart / "params.yaml", folder)
    for name in MADE:
        shutil.copytree(apart / name, folder / name, dirs_exist_ok=True)
    call(folder, "git", "init", "-q")
    call(folder, *DVC, "commit", "--force", code=folder)
    call(folder, *DVC, "repro", code=folder)  # publishes


def _copy_code(folder: Path) -> None:
    """The files of this project that git knows or would take, but for tests, pages and data."""
    listed = call(ROOT, "git", "ls-files", "--cached", "--others", "--exclude-standard", "-z")
    for name in filter(None, listed.split("\0")):
        if not name.startswith(("tests/", "docs/", "dvcstore/files")) and (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


def _trivial_project(folder: Path, count: int) -> None:
    folder.mkdir()
    call(folder, "git", "init", "-q")
    call(folder, *DVC, "init", "-q")
    stages: dict[str, dict[str, object]] = {}
    for number in range(count - 1):
        (folder / f"{number}.in").write_text(f"{number}\n", encoding="utf-8")
        stages[f"copy{number}"] = {
            "cmd": f"cp {number}.in {number}.out",
            "deps": [f"{number}.in"],
            "outs": [f"{number}.out"],
        }
    stages["last"] = {
        "cmd": "python -c 'import mlflow'",
        "deps": ["0.out"],
        "always_changed": True,
    }
    with (folder / "dvc.yaml").open("w", encoding="utf-8") as file:
        YAML().dump({"stages": stages}, file)
    call(folder, *DVC, "repro")
