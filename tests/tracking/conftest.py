"""A project with made-up runs, an MLflow database, and an MLflow server on loopback."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline.params import Params
from pipeline.records import RunId, runs_of, write_history, write_json, write_table
from pipeline.tracking import bulk, live, ui
from pipeline.tracking import client as tracking

REPOSITORY = Path(__file__).parents[2]
OURS = ("MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_EXP_NAME")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            for filter_ in MLFLOW_WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(filter_))


# what MLflow and its own dependencies warn of while they are imported
MLFLOW_WARNINGS = ("ignore:The ..noload.. loader strategy is deprecated",)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OURS:
        monkeypatch.delenv(name, raising=False)
    for name, value in tracking.SETTINGS.items():
        monkeypatch.setenv(name, value)
    live.given_up.clear()


@pytest.fixture(autouse=True)
def _hasty_disk() -> Iterator[None]:
    """MLflow does not wait for the disk: a test's store need not outlive a power cut."""
    with bulk.synchronous("OFF"):
        yield


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database, made once: its tables take a second."""
    folder = tmp_path_factory.mktemp("template")
    made = run_python(
        "from pathlib import Path; from pipeline.tracking import client as c;"
        "c.open_client(c.store(Path.cwd()))",
        folder,
    )
    assert made.returncode == 0, made.stderr
    return folder / "mlflow.db"


@dataclass
class Project:
    """A project's folder with runs in it."""

    root: Path
    compare: dict[str, Any]
    tracking: dict[str, Any] = field(default_factory=lambda: {"models": "none"})

    @property
    def params(self) -> Params:
        return make_params(self.compare, self.tracking)

    @property
    def store(self) -> tracking.Store:
        return tracking.store(self.root)

    def write(self, epochs: int = 3) -> None:
        """Make every compared run, and its scores."""
        scores = []
        for run in runs_of(self.params.compare):
            write_run(self.root, run, epochs)
            scores.append((run.method, run.shots, run.seed, "test/accuracy", 0.5 + run.seed / 10))
            scores.append((run.method, run.shots, run.seed, "other", 1))
        header = ("method", "shots", "seed", "metric", "value")
        write_table(self.root / "reports/results.csv", scores, header)


@pytest.fixture
def project(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Two methods, one with an encoder, two seeds; a folder with a name that needs encoding."""
    root = tmp_path / "my project #1, 50%"
    root.mkdir()
    (root / "dvc.yaml").write_text("stages: {}\n")
    made = Project(root, make_compare(["breakdown"], ["finetune"], [0, 1]))
    shutil.copy(database, root / "mlflow.db")
    monkeypatch.chdir(root)
    made.write()
    return made


def make_compare(breakdowns: list[str], baselines: list[str], seeds: list[int]) -> dict[str, Any]:
    return {
        "breakdowns": breakdowns,
        "baselines": baselines,
        "reference": "finetune",
        "shots": [10],
        "seeds": seeds,
    }


def make_params(compare: dict[str, Any], tracking: dict[str, Any]) -> Params:
    return Params.model_validate(
        {
            "task": "classification",
            "data": {"target": "data/target", "image_size": 8},
            "pairs": {"per_image": 4, "positive_fraction": 0.5},
            "model": {"architecture": "small"},
            "weights": {"from": "none"},
            "compare": compare,
            "training": {"batch_size": 8},
            "methods": {name: {} for name in compare["breakdowns"] + compare["baselines"]},
            "diagnostics": {"latent": None},
            "runtime": {"threads": 1},
            "tracking": tracking,
        }
    )


def write_run(root: Path, run: RunId, epochs: int = 3, **changes: Any) -> None:
    """A run's files as the training stages leave them; ``changes`` go into the record."""
    names = ["encoder", "head"] if run.method == "breakdown" else ["end_to_end"]
    rows: list[dict[str, Any]] = []
    for phase in names:
        for epoch in range(epochs):
            row: dict[str, Any] = {"phase": phase, "epoch": epoch}
            row |= {"images_seen": 50 * (len(rows) + 1), "train/loss": 2.0 / (epoch + 1)}
            row |= {"val/loss": 2.5 / (epoch + 1)}
            rows.append(row if phase == "encoder" else {**row, "val/accuracy": epoch / 10})
    folder = root / run.folder
    write_history(folder / "history.csv", rows)
    phases = [
        {"phase": name, "epochs": epochs, "chosen_epoch": epochs - 1, "rule": "val_loss",
         "images_seen": 50 * epochs, "status": "finished"}
        for name in names
    ]  # fmt: skip
    record = {
        "version": 1, "method": run.method, "recipe": run.method, "shots": run.shots,
        "seed": run.seed, "status": "finished", "reason": "", "classes": 5,
        "parameters": {"method": {"lr": 0.1, "margins": [0.0, 1.5], "head": {"lr": 5e-5}},
                       "training": {"batch_size": 8, "flip": False}},
        "phases": phases, "metrics": {"best/val_accuracy": 0.7, "cost/images_seen": 300},
        "inputs": {"train": "a" * 32}, "versions": {"torch": "2"}, "device": "cpu", "threads": 1,
    }  # fmt: skip
    write_json(folder / "record.json", {**record, **changes})
    (folder / "model.safetensors").write_bytes(run.name.encode() * 100)
    for name, peak in zip(names, (7, 9), strict=False):
        place = folder / "encoder" if name == "encoder" else folder
        timing = {"phase": name, "images_seen": 50 * epochs, "seconds": 1.5,
                  "images_per_second": 100.0, "peak_memory_mb": peak}  # fmt: skip
        write_json(place / "timing.json", {"phases": [timing]})
    write_table(
        root / run.predictions, [("a.png", 0, 0, 0.9)], ("image", "label", "predicted", "p_0")
    )


def run_python(code: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code of this project in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )


def environment() -> dict[str, str]:
    """This process's environment, with the project importable."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY)}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="session")
def server(database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real MLflow server."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(database, folder / "mlflow.db")
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1", "--artifacts-destination", str(folder / "a")]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=environment() | ui.SETTINGS,
        )
    try:
        wait_for(uri, process)
        yield uri
    finally:
        stop(process)


def wait_for(uri: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{uri}/health", timeout=1):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.1)
    pytest.fail(f"the MLflow server did not start; its exit status is {process.poll()}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the server with its workers, which are in a process group of their own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(5)
            return
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
