"""What runs of classification are worth on the test split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.errors import InputError
from pipeline.evaluation.collect import (
    Answers,
    ClassRecall,
    Scored,
    Tested,
    UnitInterval,
    numbers,
    read_text_table,
)
from pipeline.evaluation.contributions import contributions
from pipeline.evaluation.metrics import (
    BINARY,
    CLASS_RECALL,
    HEADLINE,
    Floats,
    Predictions,
    all_metrics,
)
from pipeline.params import PARAMS_FILE, Compare
from pipeline.records import REMAKE, digest
from pipeline.report import words

BINARY_NOTE = "Precision, recall and F-beta (beta {:g}) are those of the class {}."
EXAMPLES = (
    "Test images of one run, the surest first, with the class that it takes them for and the "
    "probability that it gives this class."
)
LISTED_CLASSES = 20


def read(path: Path, compare: Compare) -> Scored:
    """Read and score a run's class probabilities; see ``pipeline.tasks.scores.Scores``.

    Raises:
        InputError: the file is missing or damaged, or ``compare.positive`` is no class.
    """
    names, classes, predictions = _predictions(path)
    positive = _positive(compare, classes)
    values = all_metrics(predictions, classes, positive, compare.beta)
    labels, binary = predictions.labels, len(classes) == 2
    by_class = np.bincount(labels, minlength=len(classes)).tolist()
    tested = Tested(
        digest=digest("\n".join(names), labels.tobytes()),
        headline=(*HEADLINE, *BINARY) if binary else HEADLINE,
        lede=_lede(len(labels), len(classes)),
        notes=(BINARY_NOTE.format(compare.beta, positive),) if binary else (),
        examples=EXAMPLES,
        classes=classes,
        recalls=tuple(
            ClassRecall(name, metric, images)
            for name, images in zip(classes, by_class, strict=True)
            if (metric := f"{CLASS_RECALL}{name}") in values
        ),
    )
    return Scored(
        values,
        tested,
        contributions(predictions, classes, positive, compare.beta),
        Answers(tuple(names), labels, predictions.predicted),
    )


def intervals(compare: Compare) -> list[UnitInterval]:
    """None: the classes are those to be told apart, not a sample of others."""
    return []


def _lede(images: int, classes: int) -> str:
    return (
        f"{words.count(classes)} classes, {words.count(images)} test images. A guess among the "
        f"classes is right {words.value(HEADLINE[0], 1 / classes)}{words.FIXED}% of the time."
    )


def _positive(compare: Compare, classes: Sequence[str]) -> str:
    positive = compare.positive
    if positive is None:
        return classes[-1]
    if positive not in classes:
        more = f" and {len(classes) - LISTED_CLASSES} more" if len(classes) > LISTED_CLASSES else ""
        raise InputError(
            f"{PARAMS_FILE}: compare.positive: '{positive}' is no class; the classes are "
            f"{', '.join(classes[:LISTED_CLASSES])}{more}"
        )
    return positive


def _predictions(path: Path) -> tuple[list[str], tuple[str, ...], Predictions]:
    """Names of the test images, the classes, and the run's answers."""
    table = read_text_table(path)
    columns = [str(column) for column in table.columns]
    classes = tuple(column.removeprefix("p_") for column in columns[3:])
    if columns[:3] != ["image", "label", "predicted"] or len(classes) < 2:
        raise InputError(f"{path}: columns must be image,label,predicted,p_<class>…: {REMAKE}")
    if table.empty:
        raise InputError(f"{path}: holds no image: {REMAKE}")
    labels, predicted = numbers(path, table[["label", "predicted"]], np.int64).T
    probabilities = numbers(path, table[columns[3:]], np.float64)
    for found in (labels, predicted):
        if found.min() < 0 or found.max() >= len(classes):
            raise InputError(f"{path}: labels must be class numbers below {len(classes)}: {REMAKE}")
    _check_probabilities(path, probabilities)
    return table["image"].tolist(), classes, Predictions(labels, predicted, probabilities)


def _check_probabilities(path: Path, probabilities: Floats) -> None:
    inside = np.isfinite(probabilities) & (probabilities >= 0) & (probabilities <= 1)
    wrong = ~inside.all(axis=1) | (np.abs(probabilities.sum(axis=1) - 1) > 1e-3)
    if wrong.any():
        line = int(np.argmax(wrong)) + 2  # after the header, from 1
        raise InputError(f"{path}:{line}: probabilities must sum to 1: {REMAKE}")
