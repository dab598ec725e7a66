"""The figures of the report, as SVG panels no wider than a phone.

Each panel is a file of its own, so that a page can lay them side by side or one below another.
Backgrounds are transparent and everything but the methods' colours takes the text colour of the
page (``currentColor``), so that one file looks right in light and in dark. Text stays text. The
same input gives the same bytes.
"""

from __future__ import annotations

import html
import io
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from pipeline.colours import colour, marker
from pipeline.evaluation.collect import Run
from pipeline.evaluation.statistics import Estimate
from pipeline.params import Compare
from pipeline.report import words

INK = "#010203"  # stands for the page's text colour until the SVG is written
WIDTH, HEIGHT = 340, 250  # points; one point is one pixel of the SVG
ROW_HEIGHT = 34
FRAME_HEIGHT = 105
FRAMED = 6  # from so many methods on, curves have a frame a method
BACKDROP = {"color": INK, "linewidth": 1.1, "linestyle": "--", "alpha": 0.6}
ACCURACY = "test/accuracy"
MOST_POINTS = 200  # drawn of one curve
STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.size": 11,
    "grid.alpha": 0.18,
    "grid.color": INK,
    "grid.linewidth": 0.6,
    "legend.fontsize": 11,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "siamese-breakdown",
    "text.color": INK,
    "xtick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.color": INK,
    "ytick.major.width": 0.6,
}
# on its own a file follows the viewer's light or dark setting; inside a page it has no root to set
CSS = (
    "text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,sans-serif}"
    "svg:root{color:#1c1d20;background:#fff}"
    "@media(prefers-color-scheme:dark){svg:root{color:#e6e6e3;background:#16171a}}"
)

Estimates = Mapping[str, Mapping[str, Mapping[str, Estimate]]]


@dataclass(frozen=True)
class Panel:
    """One SVG file: its stem, the group it is shown with, its title, and its text.

    ``framed`` tells that every method has a frame of its own.
    """

    name: str
    group: str
    title: str
    svg: str
    framed: bool = False

    @property
    def inline(self) -> str:
        """The SVG as an element of an HTML page: accessible, without size and namespaces."""
        tag, rest = self.svg.split(">", 1)
        tag = re.sub(r'\s(width|height|version|xmlns(:\w+)?)="[^"]*"', "", tag)
        return f'{tag} role="img" aria-label="{html.escape(self.title)}">{rest}'


def draw(runs: Sequence[Run], compare: Compare, estimates: Estimates) -> list[Panel]:
    """All panels, group by group: ``accuracy``, ``learning``, ``training``, ``loss``.

    From ``FRAMED`` methods on each method's curves have a frame of their own.

    ``learning`` needs two numbers of shots, ``loss`` a phase without an accuracy, such as an
    encoder's.
    """
    with matplotlib.rc_context(STYLE):
        panels = _accuracy_panels(runs, compare, estimates)
        if len(compare.shots) > 1:
            panels.append(_learning_panel(runs, compare, estimates))
        panels += _curve_panels(runs, compare, "training", "val/accuracy", "Validation accuracy")
        panels += _curve_panels(runs, compare, "loss", "val/loss", "Validation loss")
    return panels


def _accuracy_panels(runs: Sequence[Run], compare: Compare, estimates: Estimates) -> list[Panel]:
    limits = _accuracy_limits(runs, estimates)
    panels = []
    for shots in compare.shots:
        figure, axes = _new(70 + ROW_HEIGHT * len(compare.methods))
        for row, method in enumerate(compare.methods):
            seeds = [r for r in runs if r.id.method == method and r.id.shots == shots]
            estimate = estimates[method][str(shots)][ACCURACY]
            _accuracy_row(axes, row, seeds, estimate)
        axes.set_yticks(range(len(compare.methods)), [_wrapped(m) for m in compare.methods])
        axes.set_ylim(len(compare.methods) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_xlim(*limits)
        _percent(axes.xaxis)
        axes.set_xlabel("test accuracy")
        title = f"Test accuracy with {words.budget(shots)}"
        panels.append(_panel(f"accuracy-n{shots}", "accuracy", title, figure))
    return panels


def _accuracy_row(axes: Any, row: int, seeds: list[Run], estimate: Estimate) -> None:
    """One method: interval as a bar, mean as a line across it, every seed as a dot below."""
    own = colour(row)
    above, below = row - 0.13, row + 0.2
    if estimate.low is not None and estimate.high is not None:
        span = [max(estimate.low, 0.0), min(estimate.high, 1.0)]
        axes.plot(span, [above, above], color=own, linewidth=7, alpha=0.35, solid_capstyle="butt")
    axes.plot([estimate.mean] * 2, [above - 0.2, above + 0.2], color=own, linewidth=2.5)
    dots = [run.values[ACCURACY] for run in seeds]
    axes.plot(dots, [below] * len(dots), "o", color=own, alpha=0.75, markersize=5, mew=0)


def _accuracy_limits(runs: Sequence[Run], estimates: Estimates) -> tuple[float, float]:
    """One range for all panels: every seed and interval, within 0 and 1, with a margin."""
    seen = [run.values[ACCURACY] for run in runs]
    for by_shots in estimates.values():
        for by_metric in by_shots.values():
            found = by_metric[ACCURACY]
            seen += [bound for bound in (found.low, found.high) if bound is not None]
    low, high = max(min(seen), 0.0), min(max(seen), 1.0)
    margin = max(0.04 * (high - low), 0.005)
    return low - margin, high + margin


def _learning_panel(runs: Sequence[Run], compare: Compare, estimates: Estimates) -> Panel:
    place = _shots_places(compare.shots)
    order = sorted(compare.shots, key=place.__getitem__)
    framed = len(compare.methods) >= FRAMED
    figure, frames = _frames(compare.methods) if framed else _one_frame(len(compare.methods))
    for index, (method, axes) in enumerate(zip(compare.methods, frames, strict=True)):
        found = [estimates[method][str(shots)][ACCURACY] for shots in order]
        seeds = [run for run in runs if run.id.method == method]
        _learning_curve(axes, index, method, place, found, seeds)
        if framed and method != compare.reference:
            means = [estimates[compare.reference][str(shots)][ACCURACY].mean for shots in order]
            axes.plot(sorted(place.values()), means, **BACKDROP)
    for axes in set(frames):
        axes.set_xscale("log")
        axes.set_xticks([place[shots] for shots in order], [str(shots) for shots in order])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_ylim(*_accuracy_limits(runs, estimates))
        _percent(axes.yaxis)
    _label(figure, frames, "training images a class", "test accuracy")
    return _panel("learning-curve", "learning", "Test accuracy by training images", figure)


def _learning_curve(
    axes: Any,
    index: int,
    method: str,
    place: Mapping[int | str, float],
    found: Sequence[Estimate],
    seeds: Sequence[Run],
) -> None:
    """One method: the mean as a line, its interval as a band, every seed as a dot."""
    own, places = colour(index), sorted(place.values())
    if all(e.low is not None for e in found):
        low = [max(e.low or 0.0, 0.0) for e in found]
        high = [min(e.high or 0.0, 1.0) for e in found]
        axes.fill_between(places, low, high, color=own, alpha=0.13, linewidth=0)
    means = [e.mean for e in found]
    axes.plot(
        places, means, marker=marker(index), color=own, linewidth=2, markersize=6.5, label=method
    )
    axes.plot(
        [place[run.id.shots] for run in seeds],
        [run.values[ACCURACY] for run in seeds],
        "o",
        color=own,
        alpha=0.6,
        markersize=3.5,
        mew=0,
    )


def _shots_places(shots: Sequence[int | str]) -> dict[int | str, float]:
    """Where each number of shots stands on a logarithmic axis; ``all`` beyond the largest."""
    numbers = [float(n) for n in shots if n != "all"]
    return {n: 2 * max(numbers, default=0.5) if n == "all" else float(n) for n in shots}


def _curve_panels(
    runs: Sequence[Run], compare: Compare, group: str, metric: str, title: str
) -> list[Panel]:
    """``metric`` against images seen, a panel a number of shots; losses of blind phases only."""
    share = metric == "val/accuracy"
    wanted = _has_accuracy if share else _lacks_accuracy
    drawn = []
    for shots in compare.shots:
        found: dict[str, list[_Curve]] = {method: [] for method in compare.methods}
        for run in runs:
            if run.id.shots == shots:
                found[run.id.method] += _curves(run.history, metric, wanted)
        if not any(found.values()):
            continue
        figure = _curve_figure(found, compare, title.lower(), share)
        panel_title = f"{title} with {words.budget(shots)}"
        drawn.append(_panel(f"{group}-n{shots}", group, panel_title, figure))
    return drawn


def _curve_figure(
    found: Mapping[str, list[_Curve]], compare: Compare, title: str, share: bool
) -> Figure:
    """The curves of all methods that have any; shares are on one scale and may be compared."""
    shown = [method for method in compare.methods if found[method]]
    framed = len(shown) >= FRAMED
    figure, frames = _frames(shown, share_y=share) if framed else _one_frame(len(shown))
    for method, axes in zip(shown, frames, strict=True):
        if framed and share and method != compare.reference:
            for seen, mean in _means(found[compare.reference]):
                _line(axes, seen, mean, **BACKDROP)
        _draw_curves(axes, found[method], compare.methods.index(method), method)
    for axes in set(frames):
        axes.xaxis.set_major_locator(MaxNLocator(3 if framed else 5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: words.count(x)))
        if share:
            _percent(axes.yaxis)
        elif framed:
            axes.yaxis.set_major_locator(MaxNLocator(4))
    _label(figure, frames, "images seen", title)
    return figure


@dataclass(frozen=True)
class _Curve:
    """One phase of one run: images seen and the metric, an entry an epoch."""

    phase: str
    seen: np.ndarray[Any, Any]
    values: np.ndarray[Any, Any]


def _curves(
    history: pd.DataFrame, metric: str, wanted: Callable[[pd.DataFrame], bool]
) -> list[_Curve]:
    if metric not in history:
        return []
    curves = []
    for phase, rows in history.groupby("phase", sort=False):
        rows = rows[np.isfinite(rows[metric])]
        if len(rows) and wanted(rows):
            seen, values = rows["images_seen"].to_numpy(float), rows[metric].to_numpy(float)
            curves.append(_Curve(str(phase), seen, values))
    return curves


def _has_accuracy(rows: pd.DataFrame) -> bool:
    return "val/accuracy" in rows and bool(rows["val/accuracy"].notna().any())


def _lacks_accuracy(rows: pd.DataFrame) -> bool:
    return not _has_accuracy(rows)


def _draw_curves(axes: Any, curves: list[_Curve], index: int, label: str) -> None:
    """Every seed thin; over them the mean of each phase. A phase of one row is a point."""
    own = colour(index)
    for group in _by_phase(curves):
        if len(group) > 1:
            for curve in group:
                _line(axes, curve.seen, curve.values, color=own, linewidth=0.7, alpha=0.45)
    for number, (seen, mean) in enumerate(_means(curves)):
        name = label if number == 0 else None
        style = {"color": own, "linewidth": 2.2, "marker": marker(index), "markersize": 6}
        _line(axes, seen, mean, label=name, **style)


def _by_phase(curves: Sequence[_Curve]) -> list[list[_Curve]]:
    by_phase: dict[str, list[_Curve]] = {}
    for curve in curves:
        by_phase.setdefault(curve.phase, []).append(curve)
    return list(by_phase.values())


def _means(curves: Sequence[_Curve]) -> Iterator[tuple[Any, Any]]:
    """Images seen and mean value, epoch by epoch as far as all seeds run, of each phase."""
    for group in _by_phase(curves):
        shortest = min(len(curve.seen) for curve in group)
        seen = np.mean([curve.seen[:shortest] for curve in group], axis=0)
        yield seen, np.mean([curve.values[:shortest] for curve in group], axis=0)


def _line(axes: Any, x: Any, y: Any, **style: Any) -> None:
    """A line of at most ``MOST_POINTS``; where there is one point only, its marker."""
    step = max(1, math.ceil(len(x) / MOST_POINTS))
    kept = sorted({*range(0, len(x), step), len(x) - 1})
    point = {"marker": style.pop("marker", "o"), "markersize": style.pop("markersize", 3)}
    axes.plot(x[kept], y[kept], **style, **(point if len(kept) == 1 else {}))


def _new(height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
    return figure, figure.subplots()


def _one_frame(methods: int) -> tuple[Figure, list[Any]]:
    """One axes for all methods."""
    figure, axes = _new(HEIGHT)
    return figure, [axes] * methods


def _frames(methods: Sequence[str], share_y: bool = True) -> tuple[Figure, list[Any]]:
    """An axes a method, two side by side, named above: many curves in one could not be told."""
    rows = math.ceil(len(methods) / 2)
    figure = Figure(figsize=(WIDTH / 72, (40 + FRAME_HEIGHT * rows) / 72), layout="constrained")
    grid = figure.subplots(rows, 2, sharex=True, sharey=share_y, squeeze=False)
    frames = list(grid.flat)
    for unused in frames[len(methods) :]:
        unused.remove()
        frames[len(methods) - 2].tick_params(labelbottom=True)  # now the last of its column
    for axes, method in zip(frames, methods, strict=False):
        name = method if len(method) <= 24 else f"{method[:23]}…"
        axes.set_title(name, fontsize=10, loc="left", pad=3)
        axes.tick_params(labelsize=9)
    return figure, frames[: len(methods)]


def _label(figure: Figure, frames: Sequence[Any], x: str, y: str) -> None:
    """Axis labels once, and a legend unless every method has its own frame."""
    if len(set(frames)) > 1:
        figure.supxlabel(x, fontsize=11)
        figure.supylabel(y, fontsize=11)
        return
    frames[0].set_xlabel(x)
    frames[0].set_ylabel(y)
    _legend(figure, frames[0])


def _legend(figure: Figure, axes: Any) -> None:
    """Below the panel, which grows by the legend's rows."""
    handles, labels = axes.get_legend_handles_labels()
    columns = 1 if max(map(len, labels)) > 18 else 2
    rows = math.ceil(len(labels) / columns)
    figure.set_figheight(figure.get_figheight() + 18 * rows / 72)
    figure.legend(
        handles,
        [label if len(label) <= 40 else label[:39] + "…" for label in labels],
        loc="outside lower center",
        ncols=columns,
        handlelength=1.4,
        borderaxespad=0.2,
    )


def _percent(axis: Any) -> None:
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{round(100 * share, 1):g} %"))


def _wrapped(method: str, width: int = 18) -> str:
    """A method's name on one or two lines, broken at an underscore; what is longer is cut."""
    lines = textwrap.wrap(method.replace("_", "_ "), width, max_lines=2, placeholder="…")
    return "\n".join(line.replace("_ ", "_") for line in lines)


def _panel(name: str, group: str, title: str, figure: Figure) -> Panel:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return Panel(name, group, title, _cleaned(file.getvalue(), name), len(figure.axes) > 1)


def _cleaned(svg: str, name: str) -> str:
    """Matplotlib's SVG with the page's text colour, ids of its own, and nothing to look up."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace("xlink:href", "href").replace(INK, "currentColor")
    svg = re.sub(r'\sxmlns:xlink="[^"]*"', "", svg)
    svg = re.sub(r'font-family: [^";]*;? ?', "", svg)
    svg = re.sub(r'(\sid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = svg.replace("</style>", f"{CSS}</style>", 1)
    return svg.rstrip() + "\n"
