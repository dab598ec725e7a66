"""What a training stage takes beside training, and what it costs to follow a phase live."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from ruamel.yaml import YAML

from benchmarks.measure import Row, Taken
from benchmarks.rows.commands import ROOT, call, seconds
from pipeline.records import RunId, read_json
from pipeline.tracking import away

CONFIG = ROOT / "configs" / "digits.yaml"
METHODS = {"baseline": "scratch", "encoder": "breakdown", "head": "breakdown"}
SHOTS, SEED = 10, 0
MOST_OUTSIDE = 5.0  # seconds
LEAST_FOLLOWED = 0.98  # at most 2 % of training

Stage = Literal["baseline", "head"]


@contextmanager
def outside_training(stage: Stage, followed: bool = False, epochs: int = 20) -> Iterator[Row]:
    """The seconds of a training stage that are not training, and those of ``import torch``.

    A real process each time, on the digits and the small network: from its start to its end, less
    the seconds of its phases as ``timing.json`` has them.

    Args:
        stage: ``baseline`` or ``head``; an encoder's is the same but for its loss.
        followed: in MLflow, from the start; else the run is too short for it.
        epochs: of each phase.
    """
    with _project(stage, epochs) as folder:
        if followed:
            _write_params(folder, epochs, {"live_after": 0})
        parts: dict[str, list[float]] = {}

        def ours() -> Taken:
            _forgive(folder)
            outside, found = _outside(folder, stage)
            for name, taken in found.items():
                parts.setdefault(name, []).append(taken)
            return Taken(outside)

        yield Row(
            name=f"stage {stage}, outside training" + (", followed live" if followed else ""),
            against="python -c 'import torch'",
            ours=ours,
            other=lambda: Taken(seconds(folder, sys.executable, "-c", "import torch")),
            unit="seconds",
            at_most=MOST_OUTSIDE,
            parts=parts,
            note="the import of torch",
        )


@contextmanager
def live_tracking(epochs: int = 400) -> Iterator[Row]:
    """The training seconds of a phase that is followed in MLflow from its start, and of one not.

    Each in a process of its own, on the small network with one thread; the store is SQLite.

    Args:
        epochs: of the phase; an epoch of it takes about ten milliseconds.
    """
    with _project("baseline", epochs) as folder:

        def training(after: float | None) -> Taken:
            _forgive(folder)
            _write_params(folder, epochs, {"live_after": after})
            call(folder, sys.executable, "-m", *_command("baseline"))
            return Taken(_trained(folder, "baseline"))

        yield Row(
            name="training, followed live in MLflow",
            against="not followed",
            ours=lambda: training(0),
            other=lambda: training(None),
            unit="seconds",
            wanted=LEAST_FOLLOWED,
            note="another process imports MLflow meanwhile",
        )


@contextmanager
def _project(stage: Stage, epochs: int) -> Iterator[Path]:
    """A project of the default images in which everything before a stage was made."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        call(folder, sys.executable, str(ROOT / "scripts" / "default_data.py"), "data")
        (folder / "pretrained").mkdir()
        _write_params(folder, epochs, {"live_after": None})
        for before in ("images", "prepare", "weights"):
            call(folder, sys.executable, "-m", f"pipeline.stages.{before}")
        if stage == "head":
            call(folder, sys.executable, "-m", *_command("encoder"))
        yield folder


def _forgive(folder: Path) -> None:
    """Have the store tried again: one that was too slow for the run before would be left alone."""
    (folder / away.FILE).unlink(missing_ok=True)


def _write_params(folder: Path, epochs: int, tracking: Mapping[str, Any]) -> None:
    form = YAML()
    tree = form.load(CONFIG.read_text(encoding="utf-8"))
    breakdown = tree["methods"]["breakdown"]
    for block in (breakdown["encoder"], breakdown["head"], tree["methods"]["scratch"]):
        block["epochs"] = epochs
    tree["weights"]["source"]["epochs"] = 1
    tree["compare"]["seeds"] = [SEED]
    tree["tracking"] |= tracking
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        form.dump(tree, file)


def _command(stage: str) -> list[str]:
    return [f"pipeline.stages.{stage}", METHODS[stage], str(SHOTS), str(SEED)]


def _outside(folder: Path, stage: Stage) -> tuple[float, dict[str, float]]:
    """Seconds of one run of a stage without those of its phases, in all and by part."""
    note = folder / "stopwatch.json"
    words = ["benchmarks.stopwatch", str(note), stage, *_command(stage)[1:]]
    started = time.time()
    taken = seconds(folder, sys.executable, "-m", *words)
    told = json.loads(note.read_text(encoding="utf-8"))
    parts: dict[str, float] = told["parts"]
    parts.pop("training")
    outside = taken - _trained(folder, stage)
    found = {"interpreter": told["started"] - started, **parts}
    return outside, {**found, "exit": max(0.0, started + taken - told["ended"])}


def _trained(folder: Path, stage: Stage) -> float:
    timing = folder / RunId(METHODS[stage], SHOTS, SEED).folder / "timing.json"
    return float(sum(phase["seconds"] for phase in read_json(timing)["phases"]))
