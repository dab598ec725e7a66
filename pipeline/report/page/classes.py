"""Class by class: how often each is recognised, and how often an answer that names it is right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.collect import Answers, ClassRecall
from pipeline.report import words
from pipeline.report.figures.answers import wilson
from pipeline.report.page.document import (
    Block,
    Cell,
    Column,
    Fold,
    Section,
    Small,
    Table,
    cell,
    note,
)
from pipeline.report.page.plates import figures
from pipeline.report.page.report import Report

ACCURACY = "test/accuracy"  # in its form, shares are percent


def section(report: Report) -> Section | None:
    """Figures, and a table a method and shots, folded; only where classes are few."""
    shown = figures(report, "classes")
    recalls = report.evidence.tested.recalls
    if not recalls and not shown:
        return None
    folds = [_fold(report, shots) for shots in report.compare.shots] if recalls else []
    blocks: list[Block] = [*shown, *folds]
    if folds:
        blocks.append(
            note(
                "Recall is the share of a class's test images that is recognised, precision the "
                "share of the answers that name the class and are right; means over seeds, and "
                "below them the 95 % interval after Wilson for new test images alone. Verdicts "
                f"are those on the recall against {report.compare.reference}, adjusted over the "
                "methods, class by class: of many classes some differ by chance."
            )
        )
    return Section("classes", "Class by class", blocks)


def _fold(report: Report, shots: int | str) -> Fold:
    """The tables of all methods at some shots."""
    tables: list[Block] = []
    for method in report.compare.methods:
        answers = [run.answers for run in report.runs(method, shots) if run.answers is not None]
        if answers:
            tables.append(_table(report, method, shots, answers))
    title = f"Recall and precision of each class with {words.budget(shots)}"
    return Fold((title, Small("%")), tables)


def _table(report: Report, method: str, shots: int | str, answers: Sequence[Answers]) -> Table:
    classes = report.evidence.tested.classes
    counts = confusion_counts(answers, len(classes))
    rows = [
        [
            Cell((of.name,)),
            cell(words.count(of.images)),
            _share(counts[number, number], counts[number].sum(), _verdict(report, row=of,
                   method=method, shots=shots)),
            _share(counts[number, number], counts[:, number].sum()),
        ]
        for of in report.evidence.tested.recalls
        for number in [classes.index(of.name)]
    ]  # fmt: skip
    columns = [
        Column("Class", number=False),
        Column("Test images"),
        Column("Recall"),
        Column("Precision"),
    ]
    return Table(columns, rows, method)


def confusion_counts(answers: Sequence[Answers], classes: int) -> NDArray[np.float64]:
    """Test images by true (row) and answered class (column), (C, C); mean over seeds."""
    cells = [of.labels * classes + of.predicted for of in answers]
    counts = [np.bincount(of, minlength=classes**2).reshape(classes, classes) for of in cells]
    mean: NDArray[np.float64] = np.mean(counts, axis=0)
    return mean


def _share(hits: float, total: float, verdict: str = "") -> Cell:
    """A share with its interval; of nothing there is none."""
    if not total:
        return Cell((words.NONE,), "never answered")
    low, high = (words.value(ACCURACY, bound) for bound in wilson(hits, total))
    return Cell((words.value(ACCURACY, hits / total),), f"{low} to {high}", verdict)


def _verdict(report: Report, row: ClassRecall, method: str, shots: int | str) -> str:
    for found in report.contrasts(row.metric, shots):
        if found.method == method and found.verdict in ("better", "worse"):
            return found.verdict
    return ""
