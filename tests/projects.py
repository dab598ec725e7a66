"""Small projects in folders of their own, and programs that are run in them as users run them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML

from pipeline.records import TIMED
from tests.digits import write_digits

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
TRAINED = {
    "encoder@breakdown-3-0", "head@breakdown-3-0", "test_breakdown@breakdown-3-0",
    "baseline@finetune-3-0", "test_baseline@finetune-3-0",
}  # fmt: skip


def environment(folder: Path, **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "DVC_", "GIT_"))}
    return kept | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "PYTHONWARNINGS": "default",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b",
    } | more  # fmt: skip


def call(folder: Path, *words: str, check: bool = True, **more: str) -> str:
    done = subprocess.run(
        words, cwd=folder, env=environment(folder, **more), capture_output=True, text=True,
        timeout=400,
    )  # fmt: skip
    if check and done.returncode:
        raise AssertionError(f"{words} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return f"{done.stdout}\n{done.stderr}\nstatus {done.returncode}"


def stages_run(output: str) -> set[str]:
    return {
        line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage '")
    }


def edit(folder: Path, **changed) -> None:
    path = folder / "params.yaml"
    yaml = YAML()
    tree = yaml.load(path.read_text(encoding="utf-8"))
    for key, value in changed.items():
        *parts, last = key.split("__")
        place = tree
        for part in parts:
            place = place[part]
        place[last] = value
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(tree, file)


def copy_project(folder: Path) -> None:
    """What a clone of this project holds, under git of its own."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if not name.startswith(("tests/", "docs/", "dvcstore/files")) and (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    shutil.copy(ROOT / "configs/digits.yaml", folder / "params.yaml")
    (folder / "dvc.lock").unlink(missing_ok=True)
    call(folder, "git", "init", "-q")


def mlflow_runs(folder: Path, uri=None, experiment="siamese-breakdown", kind="result"):
    """The live runs of a kind in a store as dictionaries, asked from a process of its own."""
    program = (
        "import json, sys\n"
        "from mlflow import MlflowClient\n"
        "client = MlflowClient(sys.argv[1])\n"
        "found = client.get_experiment_by_name(sys.argv[2])\n"
        "runs = client.search_runs([found.experiment_id]) if found else []\n"
        "print(json.dumps([[r.info.run_id, r.info.run_name, r.data.tags, r.data.metrics,\n"
        "                   r.data.params, r.info.status] for r in runs]))\n"
    )
    uri = uri or f"sqlite:///{folder / 'mlflow.db'}"
    output = call(folder, sys.executable, "-W", "ignore", "-c", program, uri, experiment)
    keys = ("id", "name", "tags", "metrics", "params", "status")
    runs = json.loads(next(line for line in output.splitlines() if line.startswith("[")))
    found = [dict(zip(keys, run, strict=True)) for run in runs]
    return [run for run in found if run["tags"].get("kind") == kind]


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for part in ("prepared", "weights", "runs", "predictions", "reports")
        for path in sorted((folder / part).rglob("*"))
        if path.is_file() and not path.name.endswith((*TIMED, ".lock"))
    }


def small_project(folder: Path) -> None:
    """A project of two methods, one run each, on a few digits; nothing is run."""
    copy_project(folder)
    call(folder, "dvc", "remove", "data.dvc")
    write_digits(folder / "data/target", [5, 6], 16)
    write_digits(folder / "data/source", [0, 1], 10)
    edit(
        folder,
        compare__baselines=["finetune"], compare__shots=[3], compare__seeds=[0],
        weights__source__epochs=2, methods__breakdown__encoder__epochs=2,
        methods__breakdown__head__epochs=2, methods__finetune__epochs=3,
        tracking__models="all",
    )  # fmt: skip
    call(folder, "dvc", "add", "data")
