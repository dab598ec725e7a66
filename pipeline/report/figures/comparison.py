"""Methods against the reference: differences, crossovers, and what the uncertainty comes from."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from pipeline.colours import colour
from pipeline.evaluation.statistics.results import Contrast, Crossover, Variance
from pipeline.params import Compare
from pipeline.report import words
from pipeline.report.figures import base
from pipeline.report.figures.base import Panel

DECIDED = ("better", "worse")
BAND: dict[str, Any] = {
    "color": base.INK,
    "alpha": 0.08,
    "linewidth": 0,
}  # differences too small to matter
AHEAD: dict[str, Any] = {"linewidth": 6, "solid_capstyle": "round"}
CROSSOVER: dict[str, Any] = {"color": base.INK, "linewidth": 2.2, "linestyle": ":"}
FOOT = 0.04  # of a frame's height, where it is marked who is ahead
ROW, CURVE_HEIGHT, BAR_ROW = 28, 150, 26
REST = to_rgba(base.INK, 0.25)


def forest_panels(contrasts: Sequence[Contrast], compare: Compare, metric: str) -> list[Panel]:
    """Paired differences to the reference with their intervals, a panel a number of shots.

    A filled marker is a verdict, a hollow one none; the grey band are differences smaller than
    ``compare.smallest_effect``.
    """
    shown = [row for row in contrasts if row.metric == metric]
    limits = _limits(shown, compare.smallest_effect)
    panels = []
    for shots in compare.shots:
        rows = [row for row in shown if row.shots == shots]
        if not rows:
            continue
        figure, axes = base.new(70 + ROW * len(rows))
        axes.axvspan(-compare.smallest_effect, compare.smallest_effect, **BAND)
        axes.axvline(0, **base.ZERO)
        for place, row in enumerate(rows):
            _forest_row(axes, place, row, compare.methods.index(row.method))
        base.rows_of(axes, [base.wrapped(row.method) for row in rows])
        axes.set_xlim(*limits)
        base.points(axes.xaxis)
        axes.set_xlabel(f"{words.named(metric)} against {base.cut(compare.reference, 18)}, points")
        hints = [Patch(**BAND), *(_dot(base.INK, filled) for filled in (True, False))]
        base.key(figure, hints, ["too small to matter", "verdict", "no verdict"], columns=3)
        title = f"Difference to {compare.reference} with {words.budget(shots)}"
        panels.append(base.panel(f"forest-n{shots}", "forest", title, figure))
    return panels


def crossover_panels(crossovers: Sequence[Crossover], compare: Compare) -> list[Panel]:
    """The difference to the reference over the number of training images, a frame a method."""
    if not crossovers:
        return []
    names = [crossover.method for crossover in crossovers]
    figure, frames = base.frames(names, columns=base.across(names), height=CURVE_HEIGHT)
    place = base.shots_places(sorted(n for n in compare.shots if isinstance(n, int)))
    for axes, crossover in zip(frames, crossovers, strict=True):
        _crossover(axes, crossover, compare)
        base.shots_axis(axes, place)
        base.points(axes.yaxis)
    reference = base.cut(compare.reference, 18)
    figure.supxlabel("training images a class", fontsize=base.LABEL_SIZE)
    figure.supylabel(f"points against {reference}", fontsize=base.LABEL_SIZE)
    _crossover_key(figure, crossovers, compare)
    title = f"Difference to {compare.reference} by training images"
    return [base.panel("crossover", "crossover", title, figure)]


def crossover_stretches(crossover: Crossover) -> list[tuple[float, float]]:
    """From where one is last shown to be ahead to where the other first is, in shots."""
    return [
        (high, low)
        for (_, high, before), (low, _, after) in pairwise(sorted(crossover.ahead))
        if before != after
    ]


def variance_panels(variances: Sequence[Variance], compare: Compare, metric: str) -> list[Panel]:
    """What the variance of a mean, and of a difference, comes from: a panel a number of shots."""
    panels = []
    for shots in compare.shots:
        rows = [
            row
            for row in variances
            if (row.metric, row.shots) == (metric, shots) and base.finite([row.share_of_seeds])
        ]
        if not rows:
            continue
        kinds = [kind for kind in ("value", "difference") if any(row.of == kind for row in rows)]
        reference = f"against {base.cut(compare.reference, 10)}"
        titles = {"value": words.named(metric), "difference": reference}
        height = 20 + BAR_ROW * len(compare.methods)
        figure, frames = base.frames([titles[k] for k in kinds], columns=len(kinds), height=height)
        for axes, kind in zip(frames, kinds, strict=True):
            base.rows_of(axes, [base.wrapped(method) for method in compare.methods])
            axes.set_xlim(0, 1)
            base.percent(axes.xaxis, 2)
            for row in rows:
                if row.of == kind:
                    _bar(axes, compare.methods.index(row.method), row.share_of_seeds)
        figure.supxlabel("share of the variance of the mean", fontsize=base.LABEL_SIZE)
        hints = [Patch(color=base.INK, alpha=0.75), Patch(color=REST)]
        units = f"more {words.several(rows[0].unit)} alone"
        base.key(figure, hints, ["more seeds (coloured)", units], above=True, columns=2)
        title = f"What would take the uncertainty away, with {words.budget(shots)}"
        panels.append(base.panel(f"variance-n{shots}", "variance", title, figure))
    return panels


def _forest_row(axes: Any, place: int, row: Contrast, index: int) -> None:
    found, own = row.comparison, colour(index)
    if len(ends := base.finite([found.low, found.high])) == 2:
        axes.plot(ends, [place, place], color=own, linewidth=2.2, solid_capstyle="butt")
    for difference in base.finite([found.difference]):
        axes.add_line(_dot(own, row.verdict in DECIDED, at=(difference, place)))
        text = words.difference(row.metric, difference)
        axes.text(1.02, place, text, transform=axes.get_yaxis_transform(), va="center", size=10)


def _dot(own: str, filled: bool, at: tuple[float, float] | None = None) -> Line2D:
    """A filled or a hollow marker; the hollow one shows nothing but its rim."""
    style: dict[str, Any] = {"color": own, "marker": "o", "markersize": 8, "markeredgewidth": 1.8}
    face = own if filled else "none"
    x, y = ([], []) if at is None else ([at[0]], [at[1]])
    return Line2D(x, y, linestyle="none", markerfacecolor=face, **style)


def _limits(rows: Sequence[Contrast], smallest: float) -> tuple[float, float]:
    """One range for all panels, which shows zero and the smallest difference that matters."""
    ends = [end for row in rows for end in (row.comparison.low, row.comparison.high)]
    seen = base.finite([*ends, *(row.comparison.difference for row in rows), -smallest, smallest])
    margin = 0.06 * (max(seen) - min(seen))
    return min(seen) - margin, max(seen) + margin


def _crossover(axes: Any, crossover: Crossover, compare: Compare) -> None:
    own = colour(compare.methods.index(crossover.method))
    curve = [point for point in crossover.curve if base.finite([point.difference])]
    shots = [point.shots for point in curve]
    axes.axhspan(-compare.smallest_effect, compare.smallest_effect, **BAND)
    axes.axhline(0, **base.ZERO)
    band = [point.low for point in curve], [point.high for point in curve]
    axes.fill_between(shots, *band, color=own, alpha=0.2, linewidth=0)
    axes.plot(shots, [point.difference for point in curve], color=own, linewidth=2)
    foot = axes.get_xaxis_transform()
    for stretch in crossover_stretches(crossover):
        axes.plot(stretch, [FOOT] * 2, transform=foot, **CROSSOVER)
    for low, high, ahead in crossover.ahead:
        style = {"color": colour(compare.methods.index(ahead)), **AHEAD}
        axes.plot([low, high], [FOOT] * 2, transform=foot, **style)


def _crossover_key(figure: Any, crossovers: Sequence[Crossover], compare: Compare) -> None:
    hints, labels = [], []
    winners = {ahead for crossover in crossovers for _, _, ahead in crossover.ahead}
    if winners - {compare.reference}:
        hints.append(Line2D([], [], color=base.INK, **AHEAD))
        labels.append("ahead (in its colour)")
    if compare.reference in winners:
        own = colour(compare.methods.index(compare.reference))
        hints.append(Line2D([], [], color=own, **AHEAD))
        labels.append(f"{base.cut(compare.reference, 14)} is ahead")
    if any(map(crossover_stretches, crossovers)):
        hints.append(Line2D([], [], **CROSSOVER))
        labels.append("the crossover lies here")
    if hints:
        base.key(figure, hints, labels, above=True, columns=2)


def _bar(axes: Any, place: int, seeds: float) -> None:
    axes.barh(place, seeds, height=0.6, color=colour(place))
    axes.barh(place, 1 - seeds, left=seeds, height=0.6, color=REST)
