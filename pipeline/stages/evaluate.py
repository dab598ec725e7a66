"""Stage ``evaluate``: what the compared runs say together, as tables, figures and a page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, fields
from pathlib import Path
from typing import Any

from pipeline.evaluation.collect import COST_FIELDS, Run, UnitInterval, collect
from pipeline.evaluation.statistics import Contrast, contrasts, estimates
from pipeline.params import Params
from pipeline.records import write_atomically, write_json, write_table
from pipeline.report import figures, page
from pipeline.report.summary import REPORTS, summary_table
from pipeline.stages import common
from pipeline.tasks import scores

COMPARISON = ("difference", "low", "high", "p_value")


def evaluate(params: Params) -> None:
    """Write ``reports/`` from the runs that ``compare`` names, and print the short table.

    Raises:
        InputError: a run's file is missing or damaged, or as the task's ``scores``.
    """
    compare, task = params.compare, scores.BY_TASK[params.task]
    evidence = collect(compare, task.read)
    tested = evidence.tested
    values = {run.id: run.values for run in evidence.runs}
    means = estimates(values, compare, tested.metrics)
    rows = contrasts(values, compare, tested.metrics)
    intervals = task.intervals(compare)
    panels = figures.draw(evidence.runs, compare, means, tested.primary)

    write_table(
        REPORTS / "results.csv",
        _results(evidence.runs),
        ("method", "shots", "seed", "metric", "value"),
    )
    write_table(
        REPORTS / "accuracy.csv",  # wide, as dvc plots needs it
        (
            (run.id.method, run.id.shots, run.id.seed, run.values[tested.primary])
            for run in evidence.runs
        ),
        ("method", "shots", "seed", "accuracy"),
    )
    write_json(
        REPORTS / "metrics.json",
        {
            method: {
                shots: {metric: asdict(by_metric[metric]) for metric in tested.headline}
                for shots, by_metric in by_shots.items()
            }
            for method, by_shots in means.items()
        },
    )
    write_table(
        REPORTS / "comparison.csv",
        map(_comparison, rows),
        ("method", "shots", "metric", *COMPARISON, "p_adjusted", "wins", "n", "verdict"),
    )
    write_table(
        REPORTS / "costs.csv",
        _costs(evidence.runs),
        ("method", "shots", "seed", "phase", *COST_FIELDS),
    )
    write_table(
        REPORTS / "identity_intervals.csv",
        map(astuple, intervals),
        [field.name for field in fields(UnitInterval)],
    )
    _replace_folder(REPORTS / "figures", {f"{panel.name}.svg": panel.svg for panel in panels})
    text = page.render(params, evidence, means, rows, intervals, panels)
    write_atomically(REPORTS / "index.html", text)
    print(summary_table(REPORTS))


def _results(runs: Sequence[Run]) -> Iterator[tuple[Any, ...]]:
    for run in runs:
        for metric, value in run.values.items():
            yield run.id.method, run.id.shots, run.id.seed, metric, value


def _comparison(row: Contrast) -> tuple[Any, ...]:
    found = row.comparison
    numbers = (getattr(found, field) for field in COMPARISON)
    return (
        *(row.method, row.shots, row.metric, *numbers),
        *(row.p_adjusted, found.wins, found.n, row.verdict),
    )


def _costs(runs: Sequence[Run]) -> Iterator[tuple[Any, ...]]:
    for run in runs:
        for cost in (*run.costs, run.prediction):
            fields = (getattr(cost, field) for field in COST_FIELDS)
            yield run.id.method, run.id.shots, run.id.seed, cost.phase, *fields


def _replace_folder(folder: Path, files: dict[str, str]) -> None:
    """Put a folder with just these files in the place of whatever is there."""
    beside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        for name, text in files.items():
            write_atomically(beside / name, text)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


if __name__ == "__main__":
    common.main(evaluate)
