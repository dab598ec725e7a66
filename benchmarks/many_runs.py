"""How time and sizes of ``evaluate``, ``publish`` and the report grow with the runs compared.

    python -m benchmarks.many_runs [--runs N ...] [--methods N] [--shots N] [--task TASK]
                                   [--no-publish]

Makes the files of so many runs up, trains nothing, and prints a table: seconds to evaluate them, to
publish them into a new SQLite store, or to the server of ``MLFLOW_TRACKING_URI``, and to publish
them again when nothing has changed; the processor's seconds of all these in this process, which a
busy machine does not lengthen; and the size of the page. ``--methods`` and ``--shots`` say how many
of each; the seeds are what grows.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from pipeline.params import Params, Task
from pipeline.records import read_json, runs_of, write_atomically, write_json
from pipeline.stages.evaluate import evaluate
from tests.report.fake_runs import (
    fake_params,
    verification_params,
    write_runs,
    write_verification_runs,
)

RUNS = (100, 200, 500)
TRAINED = {"rule": "val_loss", "images_seen": 4500}  # of each phase in a record


@dataclass(frozen=True)
class Taken:
    """Seconds of each stage for so many runs, of the processor, and the size of the page in MB."""

    runs: int
    evaluate: float
    publish: float
    publish_again: float
    processor: float
    page: float

    @property
    def line(self) -> str:
        """A row of the table."""
        whole = self.evaluate + self.publish
        return (
            f"{self.runs:>5} {self.evaluate:>10.1f} {self.publish:>10.1f} "
            f"{self.publish_again:>10.1f} {self.processor:>12.1f} {self.page:>8.1f} "
            f"{1000 * whole / self.runs:>10.0f}"
        )


def made_params(runs: int, methods: int, shots: int, task: Task = "classification") -> Params:
    """A comparison of at least so many runs."""
    classifies = task == "classification"
    first, others = ("finetune", "scratch") if classifies else ("siamese", "features")
    return (fake_params if classifies else verification_params)(
        shots=[5 * (1 + place) for place in range(shots)],
        seeds=range(-(-runs // (methods * shots))),
        baselines=[first, *(f"{others}_{number}" for number in range(methods - 2))],
    )


def make(params: Params) -> None:
    """Every file of the runs, in the working directory."""
    (write_runs if params.task == "classification" else write_verification_runs)(params)
    for run in runs_of(params.compare):
        write_atomically(run.folder / "model.safetensors", run.name)  # never read, but hashed
        record = read_json(run.folder / "record.json")
        record["phases"] = [{**phase, **TRAINED} for phase in record["phases"]]
        write_json(run.folder / "record.json", record)


def measure(params: Params, published: bool) -> Taken:
    """What the stages take in the working directory, where ``make`` was before."""
    nothing = [0.0, 0.0]
    begun = time.process_time()
    evaluated = seconds(lambda: evaluate(params))
    if published:
        from pipeline.stages.publish import publish

        nothing = [seconds(lambda: publish(params)) for _ in range(2)]
    processor = time.process_time() - begun
    page = Path("reports/index.html").stat().st_size / 1e6
    return Taken(len(runs_of(params.compare)), evaluated, *nothing, processor, page)


def seconds(work: Callable[[], object]) -> float:
    """How long ``work`` takes; what it prints is not shown."""
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        work()
    return time.perf_counter() - started


def main() -> None:
    """Measure each number of runs in a folder of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, nargs="+", default=RUNS)
    parser.add_argument("--methods", type=int, default=10)
    parser.add_argument("--shots", type=int, default=2)
    parser.add_argument("--task", choices=get_args(Task), default="classification")
    parser.add_argument("--no-publish", action="store_true")
    asked = parser.parse_args()
    print(" runs  evaluate s  publish s    again s  processor s  page MB  ms a run")
    here = Path.cwd()
    for runs in asked.runs:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            try:
                Path("dvc.yaml").write_text("stages: {}\n", encoding="utf-8")
                params = made_params(runs, asked.methods, asked.shots, asked.task)
                make(params)
                print(measure(params, not asked.no_publish).line, flush=True)
            finally:
                os.chdir(here)


if __name__ == "__main__":
    main()
