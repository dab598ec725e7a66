"""Run a whole comparison in one process, without DVC and without MLflow.

    python -m benchmarks.compare CONFIG DATA FOLDER [KEY=VALUE ...]

CONFIG is a file like ``params.yaml``, DATA the folder that stands for its ``data/``, FOLDER where
the runs and the report go; a KEY such as ``compare.shots`` changes a value of CONFIG, which is
YAML: ``compare.shots=[5]``. For a borrowed GPU: it needs what ``pyproject.toml`` names but for dvc
and mlflow. Where DVC is at hand, ``dvc repro`` does the same and remembers it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline import check
from pipeline.errors import InputError, command
from pipeline.params import Params
from pipeline.records import runs_of


def place(config: Path, data: Path, folder: Path, changes: list[str]) -> None:
    """Make ``folder`` a project's working folder and go there.

    Raises:
        InputError: a file is missing, or a change is no ``KEY=VALUE`` of a key that there is.
    """
    for path in (config, data):
        if not path.exists():
            raise InputError(f"{path}: there is no such file")
    form = YAML()
    tree = form.load(config.read_text(encoding="utf-8"))
    for change in changes:
        _set(tree, change)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "dvc.yaml").exists():
        raise InputError(f"{folder}: is a project of its own; name another folder, or a new one")
    links = {"data": data, "pretrained": Path("pretrained")}
    for name, target in links.items():
        link = folder / name
        if link.exists() and not link.is_symlink():
            raise InputError(f"{link}: is there already; name another FOLDER, or a new one")
        link.unlink(missing_ok=True)
        link.symlink_to(target.resolve())
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        form.dump(tree, file)
    os.chdir(folder)


def run_stages(params: Params) -> None:
    """All stages in order, as DVC would run them."""
    from pipeline.stages.baseline import baseline
    from pipeline.stages.encoder import encoder
    from pipeline.stages.evaluate import evaluate
    from pipeline.stages.head import head
    from pipeline.stages.images import images
    from pipeline.stages.prepare import prepare
    from pipeline.stages.test import test
    from pipeline.stages.weights import make_weights

    for stage in (images, prepare, make_weights):
        stage(params)
    for run in runs_of(params.compare):
        trained = (encoder, head) if run.method in params.compare.breakdowns else (baseline,)
        for part in (*trained, test):
            started = time.perf_counter()
            part(params, run)
            print(f"{run.name}: {part.__name__}: {time.perf_counter() - started:.1f} s", flush=True)
    evaluate(params)


def run_all(
    program: str, comparisons: Mapping[str, tuple[str, list[str]]], given: list[str]
) -> None:
    """Run comparisons one after the other, each in ``FOLDER/<name>``.

    Args:
        program: its name among the benchmarks.
        comparisons: by name, the config and its changes.
        given: DATA, FOLDER and changes for all.

    Raises:
        InputError: arguments are missing, or a comparison failed.
    """
    if len(given) < 2:
        raise InputError(f"usage: python -m benchmarks.{program} DATA FOLDER [KEY=VALUE ...]")
    data, folder, *changes = given
    for name, (config, own) in comparisons.items():
        print(f"== {name}", flush=True)
        words = [config, data, str(Path(folder, name)), *own, *changes]
        done = subprocess.run([sys.executable, "-m", "benchmarks.compare", *words])
        if done.returncode:
            raise InputError(f"{name}: ended with status {done.returncode}; see above")


def _set(tree: Any, change: str) -> None:
    key, equals, value = change.partition("=")
    *path, last = key.split(".")
    for name in path:
        tree = tree.get(name) if isinstance(tree, dict) else None
    try:
        if not equals or not isinstance(tree, dict) or last not in tree:
            raise ValueError
        tree[last] = YAML(typ="safe").load(value)
    except (ValueError, YAMLError):
        raise InputError(
            f"command line: '{change}' must be KEY=VALUE of a key of the config"
        ) from None


def main() -> None:
    """Run what the command line asks for; ``evaluate`` prints the table of accuracies."""
    if len(sys.argv) < 4:
        raise InputError("usage: python -m benchmarks.compare CONFIG DATA FOLDER [KEY=VALUE ...]")
    config, data, folder = map(Path, sys.argv[1:4])
    place(config, data, folder, sys.argv[4:])
    params = check.load()
    params = params.model_copy(
        update={"tracking": params.tracking.model_copy(update={"live_after": None})}
    )
    check.check_models(params)
    run_stages(params)


if __name__ == "__main__":
    command(main)
