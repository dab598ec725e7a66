"""What was answered, class by class: confusion matrices, recall and precision."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray
from scipy.special import ndtri

from pipeline.colours import colour, marker
from pipeline.evaluation.collect import Answers, Run
from pipeline.params import Compare
from pipeline.report import words
from pipeline.report.figures import base
from pipeline.report.figures.base import Panel

Floats = NDArray[np.float64]

DARKEST = 0.42  # opacity of 100 %, on which the text colour can still be read
SIDE_BY_SIDE = 6  # classes at most for two matrices beside each other
NUMBERED = 10  # classes at most for numbers in the cells
LEAST_SHOWN = 0.005  # a share that rounds to 1 %
SCALE = (0.01, 0.1, 0.5, 1.0)
Z = float(ndtri(0.975))


def confusion_panels(runs: Sequence[Run], compare: Compare, classes: Sequence[str]) -> list[Panel]:
    """Row shares of each method's confusion matrix at the last shots, as means over seeds.

    Few classes stand side by side in one panel, more in a panel a method.
    """
    shots = compare.shots[-1]
    found = {
        method: np.mean([confusion(answers, len(classes)) for answers in of], axis=0)
        for method, of in _answers(runs, compare, classes).items()
    }
    if not found:
        return []
    if len(classes) <= SIDE_BY_SIDE:
        title = f"True and predicted classes with {words.budget(shots)}"
        return [_confusion_panel(f"confusion-n{shots}", title, found, classes)]
    return [
        _confusion_panel(
            f"confusion-{method}-n{shots}",
            f"True and predicted classes: {method} with {words.budget(shots)}",
            {method: matrix},
            classes,
        )
        for method, matrix in found.items()
    ]


def class_panels(runs: Sequence[Run], compare: Compare, classes: Sequence[str]) -> list[Panel]:
    """Recall and precision of each class with Wilson 95 % intervals, at the last shots.

    Shares are of the answers of all seeds together, but the intervals are as wide as one test
    set of that size makes them: other seeds are no other images.
    """
    found = _answers(runs, compare, classes)
    if not found:
        return []
    per_row = max(24.0, 6.5 * len(found))
    height = 30 + per_row * len(classes)
    figure, frames = base.frames(["recall", "precision"], height=height)
    lowest = 1.0
    for index, (method, of) in enumerate(found.items()):
        offset = (index - (len(found) - 1) / 2) * 0.72 / len(found)
        counts = np.mean([_counts(answers, len(classes)) for answers in of], axis=0)
        for axes, total in zip(frames, (counts.sum(axis=1), counts.sum(axis=0)), strict=True):
            place = compare.methods.index(method)
            lowest = min(lowest, _class_column(axes, offset, np.diag(counts), total, place))
    for axes in frames:
        base.rows_of(axes, [base.cut(name, 14) for name in classes])
        axes.set_xlim(lowest - 0.03, 1.03)
        base.percent(axes.xaxis, 3)
    hints = [_mark(compare.methods.index(method)) for method in found]
    base.key(figure, hints, list(found))
    shots = compare.shots[-1]
    title = f"Recall and precision of each class with {words.budget(shots)}"
    return [base.panel(f"classes-n{shots}", "classes", title, figure)]


def confusion(answers: Answers, classes: int) -> Floats:
    """Of the images of each class (row), the share that is answered with each class (column).

    A class without images has a row of zeros.
    """
    counts = _counts(answers, classes)
    shares: Floats = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return shares


def wilson(hits: float, total: float) -> tuple[float, float]:
    """The 95 % score interval of a share; ``total`` > 0 may be a mean and no whole number.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference",
    Journal of the American Statistical Association 22, 1927.
    """
    share = hits / total
    centre = share + Z**2 / (2 * total)
    half = Z * math.sqrt(share * (1 - share) / total + (Z / (2 * total)) ** 2)
    scale = 1 + Z**2 / total
    return max((centre - half) / scale, 0.0), min((centre + half) / scale, 1.0)


def _answers(
    runs: Sequence[Run], compare: Compare, classes: Sequence[str]
) -> dict[str, list[Answers]]:
    """Each method's answers at the last shots, where classes are few enough to be shown."""
    if not 2 <= len(classes) <= base.MOST_CLASSES:
        return {}
    found: dict[str, list[Answers]] = {}
    for run in runs:
        if run.id.shots == compare.shots[-1] and run.answers is not None:
            found.setdefault(run.id.method, []).append(run.answers)
    return found


def _counts(answers: Answers, classes: int) -> Floats:
    cells = answers.labels * classes + answers.predicted
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes).astype(np.float64)


def _confusion_panel(
    name: str, title: str, found: Mapping[str, Floats], classes: Sequence[str]
) -> Panel:
    columns = base.across(list(found)) if len(classes) <= SIDE_BY_SIDE else 1
    height = {1: 300, 2: 165, 3: 110}[columns]
    figure, frames = base.frames(list(found), columns=columns, height=height)
    for axes, matrix in zip(frames, found.values(), strict=True):
        _matrix(axes, matrix, numbers=len(classes) <= NUMBERED)
    names = [base.cut(of, 14 if columns == 1 else 9) for of in classes]
    size = 9 if len(classes) <= NUMBERED else 8
    for axes in frames:
        rotation = 90 if max(map(len, names)) * len(names) > 40 // columns else 0
        axes.set_xticks(range(len(names)), names, rotation=rotation, fontsize=size)
        axes.set_yticks(range(len(names)), names, fontsize=size)
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_ylim(len(names) - 0.5, -0.5)
    figure.supxlabel("predicted class", fontsize=base.LABEL_SIZE)
    figure.supylabel("true class", fontsize=base.LABEL_SIZE)
    if len(classes) > NUMBERED:
        hints = [Patch(color=_shade(share)) for share in SCALE]
        labels = [f"{100 * share:g} %" for share in SCALE]
        base.key(figure, hints, labels, above=True, columns=len(SCALE))
    return base.panel(name, "confusion", title, figure)


def _matrix(axes: Any, matrix: Floats, numbers: bool) -> None:
    """Cells in the text colour, the darker the larger their share; empty ones are left out."""
    for row, column in np.argwhere(matrix >= LEAST_SHOWN).tolist():
        share = float(matrix[row, column])
        axes.bar(column, 1, bottom=row - 0.5, width=1, color=_shade(share))
        if numbers:
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", size=9)


def _shade(share: float) -> Any:
    """By the square root, so that rare confusions are seen."""
    return to_rgba(base.INK, DARKEST * math.sqrt(share))


def _class_column(axes: Any, offset: float, hits: Floats, total: Floats, index: int) -> float:
    """One method's shares of all classes; the lowest end of their intervals."""
    own, lowest = colour(index), 1.0
    for row in np.flatnonzero(total > 0).tolist():
        span = wilson(hits[row], total[row])
        axes.plot(span, [row + offset] * 2, color=own, linewidth=1.3, alpha=0.6)
        axes.add_line(_mark(index, at=(hits[row] / total[row], row + offset)))
        lowest = min(lowest, span[0])
    return lowest


def _mark(index: int, at: tuple[float, float] | None = None) -> Line2D:
    x, y = ([], []) if at is None else ([at[0]], [at[1]])
    style: dict[str, Any] = {"marker": marker(index), "markersize": 5, "markeredgewidth": 0}
    return Line2D(x, y, linestyle="none", color=colour(index), **style)
