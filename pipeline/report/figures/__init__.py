"""The figures of the report, as SVG panels no wider than a phone.

Each panel is a file of its own, so that a page can lay them side by side or one below another.
Backgrounds are transparent and everything but the methods' colours takes the text colour of the
page (``currentColor``), so that one file looks right in light and in dark. Text stays text. The
same input gives the same bytes.
"""

from __future__ import annotations

import matplotlib

from pipeline.evaluation.collect import Evidence
from pipeline.evaluation.findings import Findings
from pipeline.evaluation.statistics import LOWER_IS_BETTER
from pipeline.params import Compare
from pipeline.report.figures import accuracy, answers, comparison, curves, latents, network
from pipeline.report.figures.base import (
    HEIGHT,
    INK,
    STYLE,
    WIDTH,
    Panel,
    evenly,
    legend,
    panel,
    percent,
)

__all__ = [
    "HEIGHT",
    "INK",
    "STYLE",
    "WHOLE",
    "WIDTH",
    "Panel",
    "detailed",
    "draw",
    "legend",
    "panel",
    "percent",
]

MOST_FRAMED = 16  # methods in the panels that have a frame, a curve or a row of many for each
WHOLE = ("accuracy", "forest", "variance")  # groups that show every method
MOST_COURSES = 3  # numbers of shots with panels of the course of training


def detailed(compare: Compare, findings: Findings, metric: str) -> list[str]:
    """The methods that panels show in detail: all, or of very many the reference and the best.

    The best are those of the highest means of ``metric`` at the last shots. In compare order.
    """
    if len(compare.methods) <= MOST_FRAMED:
        return compare.methods
    sign = 1 if metric in LOWER_IS_BETTER else -1
    shots = str(compare.shots[-1])
    others = sorted(
        (method for method in compare.methods if method != compare.reference),
        key=lambda method: sign * findings.estimates[method][shots][metric].mean,
    )
    kept = {compare.reference, *others[: MOST_FRAMED - 1]}
    return [method for method in compare.methods if method in kept]


def draw(evidence: Evidence, compare: Compare, findings: Findings) -> list[Panel]:
    """All panels that there are data for, group by group.

    The groups are ``accuracy``, ``forest``, ``learning``, ``crossover``, ``training``, ``loss``,
    ``epochs``, ``confusion``, ``classes``, ``distances``, ``map``, ``gradients``, ``gap``,
    ``weights``, ``filters`` and ``variance``. Those from ``confusion`` on, but for ``gap`` and
    ``variance``, show the last shots alone. From ``FRAMED`` methods on each method's curves have a
    frame of their own. All groups but ``WHOLE`` show the methods of
    `detailed` alone, and the courses of training at most ``MOST_COURSES`` numbers of shots, the
    first and the last among them: time and page stay small however many runs there are.
    """
    metric, classes, runs = evidence.tested.primary, evidence.tested.classes, evidence.runs
    kept = set(detailed(compare, findings, metric))
    told = [run for run in runs if run.id.method in kept]
    arrays = {run: of for run, of in evidence.arrays.items() if run.method in kept}
    crossovers = [row for row in findings.crossovers if row.method in kept]
    shown = {compare.shots[place] for place in evenly(len(compare.shots), MOST_COURSES)}
    courses = [run for run in told if run.id.shots in shown]
    with matplotlib.rc_context(STYLE):
        return [
            *accuracy.accuracy_panels(runs, compare, findings.estimates, metric),
            *comparison.forest_panels(findings.contrasts, compare, metric),
            *accuracy.learning_panels(told, compare, findings.estimates, metric),
            *comparison.crossover_panels(crossovers, compare),
            *curves.training_panels(courses, compare),
            *curves.loss_panels(courses, compare),
            *curves.epoch_panels(courses, compare),
            *answers.confusion_panels(told, compare, classes),
            *answers.class_panels(told, compare, classes),
            *latents.distance_panels(told, compare),
            *latents.map_panels(arrays, compare, classes),
            *network.ratio_panels(told, compare),
            *network.layer_panels(told, compare),
            *network.gap_panels(courses, compare),
            *network.weight_panels(told, compare),
            *network.filter_panels(arrays, compare),
            *comparison.variance_panels(findings.variances, compare, metric),
        ]
