"""Following a phase while it trains: a progress bar, and the live run in MLflow."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from tqdm import tqdm

from pipeline.params import Params
from pipeline.records import RunId
from pipeline.tracking.live import Live
from pipeline.training.loop import Log
from pipeline.training.phase import Phase, Solve


def follow(params: Params, run: RunId) -> Callable[[Phase | Solve], AbstractContextManager[Log]]:
    """For a run, the context in which one of its phases is trained; it gives the phase its log."""

    @contextmanager
    def phase_context(phase: Phase | Solve) -> Iterator[Log]:
        name = f"{run.name}-{phase.name}"
        tags = {"method": run.method, "shots": str(run.shots), "seed": str(run.seed)}
        asked = phase.settings.model_dump() if isinstance(phase, Phase) else {}
        settings = {key: str(value) for key, value in asked.items()}
        with (
            Live(name, {**tags, "phase": phase.name}, settings, params.tracking.live_after) as live,
            tqdm(
                total=asked.get("epochs", 1),
                desc=name,
                unit="epoch",
                disable=not sys.stderr.isatty(),
                leave=False,
            ) as bar,
        ):

            def log(row: dict[str, Any]) -> None:
                metrics = {key: value for key, value in row.items() if "/" in key}
                live.log(int(row["images_seen"]), metrics)
                bar.update()
                bar.set_postfix({key: f"{value:.3f}" for key, value in metrics.items()})

            yield log

    return phase_context


def say(run: RunId, record: dict[str, Any], phase: int = -1) -> None:
    """One line on a finished run or phase, the one whose weights are left, for the log."""
    last = record["phases"][phase]
    chosen = {key: f"{value:.4f}" for key, value in last.items() if key.startswith("val/")}
    shown = ", ".join(f"{key} {value}" for key, value in chosen.items())
    if record["status"] == "diverged":
        print(f"{run.name}: diverged: {record['reason']}", file=sys.stderr)
    else:
        print(
            f"{run.name}: {last['phase']}: epoch {last['chosen_epoch']} of {last['epochs']}, "
            f"{shown} on {record['device']}"
        )
