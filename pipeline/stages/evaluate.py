"""Stage ``evaluate``: what the compared runs say together, as tables, figures and a page."""

from __future__ import annotations

import math
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, fields
from pathlib import Path
from typing import Any

from pipeline.errors import naming
from pipeline.evaluation.claims import Claim
from pipeline.evaluation.collect import COST_FIELDS, Evidence, Run, UnitInterval, collect
from pipeline.evaluation.findings import Findings, find
from pipeline.evaluation.statistics import Contrast, Crossover, Pair, Variance
from pipeline.params import Compare, Params
from pipeline.records import clear_halves, write_atomically, write_json, write_table
from pipeline.report import figures, page, words
from pipeline.report.summary import REPORTS, summary_table
from pipeline.stages import common
from pipeline.tasks import scores

COMPARED = ("difference", "low", "high", "p_value")
BEYOND = ("population", "error", "df", "detectable", "seeds_needed", "sign_flip_p")
CURVES = ("val/accuracy", "val/loss")
HEADLINE = ("mean", "low", "high", "n")


def evaluate(params: Params) -> None:
    """Write ``reports/`` from the runs that ``compare`` names, and print the short table.

    Raises:
        InputError: a run's file is missing or damaged, or as the task's ``scores``.
    """
    compare, task = params.compare, scores.BY_TASK[params.task]
    evidence = collect(compare, task.read)
    findings = find(evidence, compare, task.intervals(compare))
    panels = figures.draw(evidence, compare, findings)
    report = page.Report(params, evidence, findings, panels, page.made())
    _write_tables(evidence, compare, findings)
    _replace_folder(REPORTS / "figures", {f"{panel.name}.svg": panel.svg for panel in panels})
    write_atomically(REPORTS / "index.html", page.html(report))
    write_atomically(REPORTS / "report.md", page.markdown(report))
    print(summary_table(REPORTS))


def _write_tables(evidence: Evidence, compare: Compare, findings: Findings) -> None:
    runs, tested = evidence.runs, evidence.tested
    run, row = ("method", "shots", "seed"), ("method", "shots", "metric")
    tables: dict[str, tuple[Iterator[tuple[Any, ...]], Sequence[str]]] = {
        "results": (_results(runs), (*run, "metric", "value")),
        # wide, as dvc plots needs it
        "accuracy": (_primary(runs, tested.primary), (*run, "accuracy")),
        "training": (_curves(runs, compare), (*run, "phase", "epoch", "images_seen",
                                              *(of.replace("/", "_") for of in CURVES))),
        "confusion": (_confusion(evidence, compare),
                      ("method", "shots", "actual", "predicted", "images")),
        "comparison": (map(_contrast, findings.contrasts),
                       (*row, *COMPARED, "p_adjusted", "wins", "n", "verdict", *BEYOND)),
        "pairwise": ((_pair(row, tested.primary) for row in findings.pairs),
                     ("method", "other", *row[1:], *COMPARED, "p_adjusted", "n")),
        "variance": (map(astuple, findings.variances), _names(Variance)),
        "crossover": (_crossovers(findings.crossovers),
                      ("method", "metric", "shots", "difference", "low", "high", "crossing")),
        "claims": (map(astuple, findings.claims), _names(Claim)),
        "costs": (_costs(runs), (*run, "phase", *COST_FIELDS)),
        "identity_intervals": (map(astuple, findings.intervals), _names(UnitInterval)),
    }  # fmt: skip
    for name, (rows, header) in tables.items():
        write_table(REPORTS / f"{name}.csv", rows, header)
    write_json(
        REPORTS / "metrics.json",
        {
            method: {
                shots: {
                    metric: {key: asdict(by_metric[metric])[key] for key in HEADLINE}
                    for metric in tested.headline
                }
                for shots, by_metric in by_shots.items()
            }
            for method, by_shots in findings.estimates.items()
        },
    )


def _names(kind: type[Any]) -> list[str]:
    return [field.name for field in fields(kind)]


def _results(runs: Sequence[Run]) -> Iterator[tuple[Any, ...]]:
    for run in runs:
        for metric, value in run.values.items():
            yield *astuple(run.id), metric, value


def _primary(runs: Sequence[Run], metric: str) -> Iterator[tuple[Any, ...]]:
    return ((*astuple(run.id), run.values[metric]) for run in runs)


def _curves(runs: Sequence[Run], compare: Compare) -> Iterator[tuple[Any, ...]]:
    """Validation while training, at the last shots; a cell is empty where a phase has none."""
    for run in runs:
        if run.id.shots == compare.shots[-1]:
            for row in run.history.to_dict("records"):
                found = (row.get(metric, math.nan) for metric in CURVES)
                yield (
                    *(*astuple(run.id), row["phase"], int(row["epoch"]), int(row["images_seen"])),
                    *(None if math.isnan(value) else value for value in found),
                )


def _confusion(evidence: Evidence, compare: Compare) -> Iterator[tuple[Any, ...]]:
    """How often images of one class were taken for another, over all seeds at the last shots."""
    shots, classes = compare.shots[-1], evidence.tested.classes
    for method in compare.methods:
        found: Counter[tuple[int, int]] = Counter()
        for run in evidence.runs:
            if (run.id.method, run.id.shots) == (method, shots) and run.answers:
                found.update(zip(run.answers.labels.tolist(), run.answers.predicted.tolist(),
                                 strict=True))  # fmt: skip
        for (actual, predicted), images in sorted(found.items()):
            named = (words.plotted(classes[place]) for place in (actual, predicted))
            yield method, shots, *named, images


def _contrast(row: Contrast) -> tuple[Any, ...]:
    found = row.comparison
    numbers, beyond = ([getattr(found, name) for name in names] for names in (COMPARED, BEYOND))
    return (
        *(row.method, row.shots, words.plotted(row.metric), *numbers),
        *(row.p_adjusted, found.wins, found.n, row.verdict, *beyond),
    )


def _pair(row: Pair, metric: str) -> tuple[Any, ...]:
    found = row.comparison
    numbers = (getattr(found, name) for name in COMPARED)
    return row.method, row.other, row.shots, metric, *numbers, row.p_adjusted, found.n


def _crossovers(found: Sequence[Crossover]) -> Iterator[tuple[Any, ...]]:
    """The difference over shots, and a row without one where it changes its sign."""
    for row in found:
        for point in row.curve:
            yield row.method, row.metric, *astuple(point), ""
        for shots in row.crossings:
            yield row.method, row.metric, shots, 0.0, None, None, 1


def _costs(runs: Sequence[Run]) -> Iterator[tuple[Any, ...]]:
    for run in runs:
        for cost in (*run.costs, run.prediction):
            yield *astuple(run.id), cost.phase, *(getattr(cost, field) for field in COST_FIELDS)


def _replace_folder(folder: Path, files: dict[str, str]) -> None:
    """Put a folder with just these files in the place of whatever is there."""
    clear_halves(folder)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        with naming(folder, beside):
            beside.mkdir(parents=True)
            for name, text in files.items():
                write_atomically(beside / name, text)
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


if __name__ == "__main__":
    common.main(evaluate)
