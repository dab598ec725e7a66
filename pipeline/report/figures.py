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
from collections.abc import Callable, Mapping, Sequence
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
    """One SVG file: its stem, the group it is shown with, its title, and its text."""

    name: str
    group: str
    title: str
    svg: str

    @property
    def inline(self) -> str:
        """The SVG as an element of an HTML page: accessible, without size and namespaces."""
        tag, rest = self.svg.split(">", 1)
        tag = re.sub(r'\s(width|height|version|xmlns(:\w+)?)="[^"]*"', "", tag)
        return f'{tag} role="img" aria-label="{html.escape(self.title)}">{rest}'


def draw(runs: Sequence[Run], compare: Compare, estimates: Estimates) -> list[Panel]:
    """All panels, group by group: ``accuracy``, ``learning``, ``training``, ``loss``.

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
            estimate = estimates[method][str(shots)]["test/accuracy"]
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
    dots = [run.values["test/accuracy"] for run in seeds]
    axes.plot(dots, [below] * len(dots), "o", color=own, alpha=0.75, markersize=5, mew=0)


def _accuracy_limits(runs: Sequence[Run], estimates: Estimates) -> tuple[float, float]:
    """One range for all panels: every seed and interval, within 0 and 1, with a margin."""
    seen = [run.values["test/accuracy"] for run in runs]
    for by_shots in estimates.values():
        for by_metric in by_shots.values():
            found = by_metric["test/accuracy"]
            seen += [bound for bound in (found.low, found.high) if bound is not None]
    low, high = max(min(seen), 0.0), min(max(seen), 1.0)
    margin = max(0.04 * (high - low), 0.005)
    return low - margin, high + margin


def _learning_panel(runs: Sequence[Run], compare: Compare, estimates: Estimates) -> Panel:
    figure, axes = _new(HEIGHT)
    place = _shots_places(compare.shots)
    order = sorted(compare.shots, key=place.__getitem__)
    for index, method in enumerate(compare.methods):
        own = colour(index)
        found = [estimates[method][str(shots)]["test/accuracy"] for shots in order]
        places = [place[shots] for shots in order]
        if all(e.low is not None for e in found):
            low = [max(e.low or 0.0, 0.0) for e in found]
            high = [min(e.high or 0.0, 1.0) for e in found]
            axes.fill_between(places, low, high, color=own, alpha=0.13, linewidth=0)
        axes.plot(
            places,
            [e.mean for e in found],
            marker=marker(index),
            color=own,
            linewidth=2,
            markersize=6.5,
            label=method,
        )
        seeds = [run for run in runs if run.id.method == method]
        axes.plot(
            [place[run.id.shots] for run in seeds],
            [run.values["test/accuracy"] for run in seeds],
            "o",
            color=own,
            alpha=0.6,
            markersize=3.5,
            mew=0,
        )
    axes.set_xscale("log")
    axes.set_xticks([place[shots] for shots in order], [str(shots) for shots in order])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(*_accuracy_limits(runs, estimates))
    _percent(axes.yaxis)
    axes.set_xlabel("training images a class")
    axes.set_ylabel("test accuracy")
    _legend(figure, axes)
    return _panel("learning-curve", "learning", "Test accuracy by training images", figure)


def _shots_places(shots: Sequence[int | str]) -> dict[int | str, float]:
    """Where each number of shots stands on a logarithmic axis; ``all`` beyond the largest."""
    numbers = [float(n) for n in shots if n != "all"]
    return {n: 2 * max(numbers, default=0.5) if n == "all" else float(n) for n in shots}


def _curve_panels(
    runs: Sequence[Run], compare: Compare, group: str, metric: str, title: str
) -> list[Panel]:
    """``metric`` against images seen, a panel a number of shots; losses of blind phases only."""
    wanted = _has_accuracy if metric == "val/accuracy" else _lacks_accuracy
    drawn = []
    for shots in compare.shots:
        figure, axes = _new(HEIGHT)
        for index, method in enumerate(compare.methods):
            seeds = [r for r in runs if r.id.method == method and r.id.shots == shots]
            curves = [c for run in seeds for c in _curves(run.history, metric, wanted)]
            _draw_curves(axes, curves, colour(index), method)
        if not axes.lines:
            continue
        axes.set_xlabel("images seen")
        axes.set_ylabel(title.lower())
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda x, _: f"{x:,.0f}".replace(",", "\u202f"))
        )
        if metric == "val/accuracy":
            _percent(axes.yaxis)
        _legend(figure, axes)
        panel_title = f"{title} with {words.budget(shots)}"
        drawn.append(_panel(f"{group}-n{shots}", group, panel_title, figure))
    return drawn


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


def _draw_curves(axes: Any, curves: list[_Curve], own: str, label: str) -> None:
    """Every seed thin; over them the mean, epoch by epoch, as far as all seeds run."""
    by_phase: dict[str, list[_Curve]] = {}
    for curve in curves:
        by_phase.setdefault(curve.phase, []).append(curve)
    for number, group in enumerate(by_phase.values()):
        shortest = min(len(curve.seen) for curve in group)
        if len(group) > 1:
            for curve in group:
                _line(axes, curve.seen, curve.values, color=own, linewidth=0.7, alpha=0.45)
        seen = np.mean([curve.seen[:shortest] for curve in group], axis=0)
        mean = np.mean([curve.values[:shortest] for curve in group], axis=0)
        _line(axes, seen, mean, color=own, linewidth=2.2, label=label if number == 0 else None)


def _line(axes: Any, x: Any, y: Any, **style: Any) -> None:
    step = max(1, math.ceil(len(x) / MOST_POINTS))
    kept = sorted({*range(0, len(x), step), len(x) - 1})
    single = {"marker": "o", "markersize": 3} if len(kept) == 1 else {}
    axes.plot(x[kept], y[kept], **style, **single)


def _new(height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
    return figure, figure.subplots()


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
    return Panel(name, group, title, _cleaned(file.getvalue(), name))


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
