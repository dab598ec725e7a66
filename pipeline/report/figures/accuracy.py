"""How well each method does: seed by seed, and by the number of training images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.colours import colour, marker
from pipeline.evaluation.collect import Run
from pipeline.evaluation.statistics.results import Estimate
from pipeline.params import Compare
from pipeline.report import words
from pipeline.report.figures import base
from pipeline.report.figures.base import Panel

Estimates = Mapping[str, Mapping[str, Mapping[str, Estimate]]]


def accuracy_panels(
    runs: Sequence[Run], compare: Compare, estimates: Estimates, metric: str
) -> list[Panel]:
    """``metric``, a share, of every run and as mean with interval: a panel a number of shots."""
    limits = _limits(runs, estimates, metric)
    panels = []
    for shots in compare.shots:
        figure, axes = base.new(70 + base.ROW_HEIGHT * len(compare.methods))
        for row, method in enumerate(compare.methods):
            seeds = [r for r in runs if r.id.method == method and r.id.shots == shots]
            estimate = estimates[method][str(shots)][metric]
            dots = [run.values[metric] for run in seeds]
            _accuracy_row(axes, row, dots, estimate)
        base.rows_of(axes, [base.wrapped(method) for method in compare.methods])
        axes.set_xlim(*limits)
        base.percent(axes.xaxis)
        axes.set_xlabel(words.named(metric))
        title = f"{words.capital(words.named(metric))} with {words.budget(shots)}"
        panels.append(base.panel(f"accuracy-n{shots}", "accuracy", title, figure))
    return panels


def learning_panels(
    runs: Sequence[Run], compare: Compare, estimates: Estimates, metric: str
) -> list[Panel]:
    """``metric`` over the number of training images, where there are two numbers of them.

    Of the methods that ``runs`` are of.
    """
    if len(compare.shots) < 2:
        return []
    place = base.shots_places(compare.shots)
    place = {shots: place[shots] for shots in sorted(place, key=place.__getitem__)}
    among = {run.id.method for run in runs}
    shown = [method for method in compare.methods if method in among]
    framed = len(shown) >= base.FRAMED
    figure, frames = base.frames(shown) if framed else base.one_frame(len(shown))
    for method, axes in zip(shown, frames, strict=True):
        index = compare.methods.index(method)
        found = [estimates[method][str(shots)][metric] for shots in place]
        dots = [(place[r.id.shots], r.values[metric]) for r in runs if r.id.method == method]
        _learning_curve(axes, index, method, list(place.values()), found, dots)
        if framed and method != compare.reference:
            means = [estimates[compare.reference][str(shots)][metric].mean for shots in place]
            axes.plot(list(place.values()), means, **base.BACKDROP)
    for axes in set(frames):
        base.shots_axis(axes, place)
        axes.set_ylim(*_limits(runs, estimates, metric))
        base.percent(axes.yaxis)
    named = words.named(metric)
    base.label(figure, frames, "training images a class", named)
    title = f"{words.capital(named)} by training images"
    return [base.panel("learning-curve", "learning", title, figure)]


def _accuracy_row(axes: Any, row: int, dots: list[float], estimate: Estimate) -> None:
    """One method: interval as a bar, mean as a line across it, every seed as a dot below."""
    own = colour(row)
    above, below = row - 0.13, row + 0.2
    if estimate.low is not None and estimate.high is not None:
        span = [max(estimate.low, 0.0), min(estimate.high, 1.0)]
        axes.plot(span, [above, above], color=own, linewidth=7, alpha=0.35, solid_capstyle="butt")
    axes.plot([estimate.mean] * 2, [above - 0.2, above + 0.2], color=own, linewidth=2.5)
    axes.plot(dots, [below] * len(dots), "o", color=own, alpha=0.75, markersize=5, mew=0)


def _limits(runs: Sequence[Run], estimates: Estimates, metric: str) -> tuple[float, float]:
    """One range for all panels: every seed and interval, within 0 and 1, with a margin."""
    found = [
        by_metric[metric] for by_shots in estimates.values() for by_metric in by_shots.values()
    ]
    ends = [bound for estimate in found for bound in (estimate.low, estimate.high)]
    seen = base.finite([*(run.values[metric] for run in runs), *ends]) or [0.0, 1.0]
    low, high = max(min(seen), 0.0), min(max(seen), 1.0)
    margin = max(0.04 * (high - low), 0.005)
    return low - margin, high + margin


def _learning_curve(
    axes: Any,
    index: int,
    method: str,
    places: Sequence[float],
    found: Sequence[Estimate],
    dots: Sequence[tuple[float, float]],
) -> None:
    """One method: the mean as a line, its interval as a band, every seed as a dot."""
    own = colour(index)
    if all(e.low is not None for e in found):
        low = [max(e.low or 0.0, 0.0) for e in found]
        high = [min(e.high or 0.0, 1.0) for e in found]
        axes.fill_between(places, low, high, color=own, alpha=0.13, linewidth=0)
    means = [e.mean for e in found]
    style = {"color": own, "linewidth": 2, "marker": marker(index), "markersize": 6.5}
    axes.plot(places, means, label=method, **style)
    at, values = [at for at, _ in dots], [value for _, value in dots]
    axes.plot(at, values, "o", color=own, alpha=0.6, markersize=3.5, mew=0)
