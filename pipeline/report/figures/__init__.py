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
from pipeline.params import Compare
from pipeline.report.figures import accuracy, answers, comparison, curves, latents, network
from pipeline.report.figures.base import HEIGHT, INK, STYLE, WIDTH, Panel, legend, panel, percent

__all__ = ["HEIGHT", "INK", "STYLE", "WIDTH", "Panel", "draw", "legend", "panel", "percent"]


def draw(evidence: Evidence, compare: Compare, findings: Findings) -> list[Panel]:
    """All panels that there are data for, group by group.

    The groups are ``accuracy``, ``forest``, ``learning``, ``crossover``, ``training``, ``loss``,
    ``epochs``, ``confusion``, ``classes``, ``distances``, ``map``, ``gradients``, ``gap``,
    ``weights``, ``filters`` and ``variance``. Those from ``confusion`` on, but for ``gap`` and
    ``variance``, show the last shots alone. From ``FRAMED`` methods on each method's curves have a
    frame of their own.
    """
    runs, metric = evidence.runs, evidence.tested.primary
    classes = evidence.tested.classes
    with matplotlib.rc_context(STYLE):
        return [
            *accuracy.accuracy_panels(runs, compare, findings.estimates, metric),
            *comparison.forest_panels(findings.contrasts, compare, metric),
            *accuracy.learning_panels(runs, compare, findings.estimates, metric),
            *comparison.crossover_panels(findings.crossovers, compare),
            *curves.training_panels(runs, compare),
            *curves.loss_panels(runs, compare),
            *curves.epoch_panels(runs, compare),
            *answers.confusion_panels(runs, compare, classes),
            *answers.class_panels(runs, compare, classes),
            *latents.distance_panels(runs, compare),
            *latents.map_panels(evidence.arrays, compare, classes),
            *network.ratio_panels(runs, compare),
            *network.layer_panels(runs, compare),
            *network.gap_panels(runs, compare),
            *network.weight_panels(runs, compare),
            *network.filter_panels(evidence.arrays, compare),
            *comparison.variance_panels(findings.variances, compare, metric),
        ]
