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
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from pipeline.colours import colour, marker
from pipeline.evaluation.collect import Run
from pipeline.evaluation.statistics import Estimate
from pipeline.params import Compare
from pipeline.report import words

LONG_NUMBER = re.compile(r"\d+\.\d{2,}")
NEEDLESS_SPACE = re.compile(r'(?<=[:;MLC]) | (?=[LCz] )| (?=")')  # of styles and paths
INK = "#010203"  # stands for the page's text colour until the SVG is written
WIDTH, HEIGHT = 340, 250  # points; one point is one pixel of the SVG
ROW_HEIGHT = 34
FRAME_HEIGHT = 105
LEGEND_ROW = 18
FRAMED = 6  # from so many methods on, curves have a frame a method
BACKDROP = {"color": INK, "linewidth": 1.1, "linestyle": "--", "alpha": 0.6}
MOST_POINTS = 200  # drawn of one curve
LOSSES: dict[str, dict[str, Any]] = {
    "train/loss": {"linewidth": 1.4, "linestyle": "--"},
    "val/loss": {"linewidth": 2.0, "linestyle": "-"},
}
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


def draw(runs: Sequence[Run], compare: Compare, estimates: Estimates, metric: str) -> list[Panel]:
    """All panels, group by group: ``accuracy``, ``learning``, ``training``, ``loss``, ``epochs``.

    ``metric``, a share, is that of the first two. From ``FRAMED`` methods on each method's curves
    have a frame of their own.

    ``learning`` needs two numbers of shots, ``loss`` a phase without an accuracy, such as an
    encoder's, ``epochs`` a phase with a loss of training and of validation.
    """
    with matplotlib.rc_context(STYLE):
        panels = _accuracy_panels(runs, compare, estimates, metric)
        if len(compare.shots) > 1:
            panels.append(_learning_panel(runs, compare, estimates, metric))
        panels += _curve_panels(runs, compare, "training", "val/accuracy", "Validation accuracy")
        panels += _curve_panels(runs, compare, "loss", "val/loss", "Validation loss")
        panels += _epoch_panels(runs, compare)
    return panels


def _accuracy_panels(
    runs: Sequence[Run], compare: Compare, estimates: Estimates, metric: str
) -> list[Panel]:
    limits = _limits(runs, estimates, metric)
    panels = []
    for shots in compare.shots:
        figure, axes = _new(70 + ROW_HEIGHT * len(compare.methods))
        for row, method in enumerate(compare.methods):
            seeds = [r for r in runs if r.id.method == method and r.id.shots == shots]
            estimate = estimates[method][str(shots)][metric]
            dots = [run.values[metric] for run in seeds]
            _accuracy_row(axes, row, dots, estimate)
        axes.set_yticks(range(len(compare.methods)), [_wrapped(m) for m in compare.methods])
        axes.set_ylim(len(compare.methods) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_xlim(*limits)
        percent(axes.xaxis)
        axes.set_xlabel(words.named(metric))
        title = f"{words.capital(words.named(metric))} with {words.budget(shots)}"
        panels.append(panel(f"accuracy-n{shots}", "accuracy", title, figure))
    return panels


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
    seen = [run.values[metric] for run in runs]
    for by_shots in estimates.values():
        for by_metric in by_shots.values():
            found = by_metric[metric]
            seen += [bound for bound in (found.low, found.high) if bound is not None]
    low, high = max(min(seen), 0.0), min(max(seen), 1.0)
    margin = max(0.04 * (high - low), 0.005)
    return low - margin, high + margin


def _learning_panel(
    runs: Sequence[Run], compare: Compare, estimates: Estimates, metric: str
) -> Panel:
    place = _shots_places(compare.shots)
    order = sorted(compare.shots, key=place.__getitem__)
    framed = len(compare.methods) >= FRAMED
    figure, frames = _frames(compare.methods) if framed else _one_frame(len(compare.methods))
    for index, (method, axes) in enumerate(zip(compare.methods, frames, strict=True)):
        found = [estimates[method][str(shots)][metric] for shots in order]
        dots = [(place[r.id.shots], r.values[metric]) for r in runs if r.id.method == method]
        _learning_curve(axes, index, method, sorted(place.values()), found, dots)
        if framed and method != compare.reference:
            means = [estimates[compare.reference][str(shots)][metric].mean for shots in order]
            axes.plot(sorted(place.values()), means, **BACKDROP)
    for axes in set(frames):
        axes.set_xscale("log")
        axes.set_xticks([place[shots] for shots in order], [str(shots) for shots in order])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_ylim(*_limits(runs, estimates, metric))
        percent(axes.yaxis)
    named = words.named(metric)
    _label(figure, frames, "training images a class", named)
    title = f"{words.capital(named)} by training images"
    return panel("learning-curve", "learning", title, figure)


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
    axes.plot(
        places, means, marker=marker(index), color=own, linewidth=2, markersize=6.5, label=method
    )
    axes.plot(
        [at for at, _ in dots],
        [value for _, value in dots],
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
        drawn.append(panel(f"{group}-n{shots}", group, panel_title, figure))
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
            percent(axes.yaxis)
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


def _epoch_panels(runs: Sequence[Run], compare: Compare) -> list[Panel]:
    """Training and validation loss of every phase by epoch, a panel a number of shots."""
    drawn = []
    for shots in compare.shots:
        found = {
            (method, phase): losses
            for method in compare.methods
            for phase, losses in _losses(
                [run.history for run in runs if (run.id.method, run.id.shots) == (method, shots)]
            ).items()
        }
        if found:
            figure = _epoch_figure(found, compare)
            title = f"Loss by epoch with {words.budget(shots)}"
            drawn.append(panel(f"epochs-n{shots}", "epochs", title, figure))
    return drawn


def _losses(histories: Sequence[pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """By phase and epoch, the mean losses over seeds, as far as all of them run.

    A phase of one epoch has no course.
    """
    kept = ["phase", "epoch", *LOSSES]
    whole = [h[kept][np.isfinite(h[list(LOSSES)]).all(axis=1)] for h in histories
             if {*LOSSES} <= {*h.columns}]  # fmt: skip
    if not whole:
        return {}
    rows = pd.concat(whole)
    found = {}
    for phase, of in rows.groupby("phase", sort=False):
        by_epoch = of.groupby("epoch")[list(LOSSES)]
        sizes = by_epoch.size()
        if len(sizes) > 1:
            found[str(phase)] = by_epoch.mean()[sizes == sizes.max()]
    return found


def _epoch_figure(found: Mapping[tuple[str, str], pd.DataFrame], compare: Compare) -> Figure:
    """A frame a phase, each with axes of its own: losses are on other scales."""
    names = [method if phase == "end_to_end" else f"{method}: {words.phase(phase)}"
             for method, phase in found]  # fmt: skip
    figure, frames = _frames(names, share_y=False, share_x=False)
    for axes, ((method, _), losses) in zip(frames, found.items(), strict=True):
        own = colour(compare.methods.index(method))
        for loss, style in LOSSES.items():
            _line(axes, losses.index.to_numpy(float), losses[loss].to_numpy(), color=own, **style)
        axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(3))
    figure.supxlabel("epoch", fontsize=11)
    figure.supylabel("loss", fontsize=11)
    lines = [Line2D([], [], color=INK, **style) for style in LOSSES.values()]
    figure.set_figheight(figure.get_figheight() + LEGEND_ROW / 72)
    figure.legend(lines, ["training", "validation"], loc="outside upper center", ncols=2)
    return figure


def _new(height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
    return figure, figure.subplots()


def _one_frame(methods: int) -> tuple[Figure, list[Any]]:
    """One axes for all methods."""
    figure, axes = _new(HEIGHT)
    return figure, [axes] * methods


def _frames(
    methods: Sequence[str], share_y: bool = True, share_x: bool = True
) -> tuple[Figure, list[Any]]:
    """An axes a method, two side by side, named above: many curves in one could not be told."""
    rows = math.ceil(len(methods) / 2)
    figure = Figure(figsize=(WIDTH / 72, (40 + FRAME_HEIGHT * rows) / 72), layout="constrained")
    grid = figure.subplots(rows, 2, sharex=share_x, sharey=share_y, squeeze=False)
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
    legend(figure, frames[0])


def legend(figure: Figure, axes: Any) -> None:
    """Put the legend of ``axes`` below the figure, which grows by its rows."""
    handles, labels = axes.get_legend_handles_labels()
    columns = 1 if max(map(len, labels)) > 18 else 2
    rows = math.ceil(len(labels) / columns)
    figure.set_figheight(figure.get_figheight() + LEGEND_ROW * rows / 72)
    figure.legend(
        handles,
        [label if len(label) <= 40 else label[:39] + "…" for label in labels],
        loc="outside lower center",
        ncols=columns,
        handlelength=1.4,
        borderaxespad=0.2,
    )


def percent(axis: Any) -> None:
    """Label an axis of shares in percent."""
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{round(100 * share, 1):g} %"))


def _wrapped(method: str, width: int = 18) -> str:
    """A method's name on one or two lines, broken at an underscore; what is longer is cut."""
    lines = textwrap.wrap(method.replace("_", "_ "), width, max_lines=2, placeholder="…")
    return "\n".join(line.replace("_ ", "_") for line in lines)


def panel(name: str, group: str, title: str, figure: Figure) -> Panel:
    """A figure as a panel; ``name`` must be unlike those of the page's other panels."""
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
    return _shortened(svg) + "\n"


def _shortened(svg: str) -> str:
    """The same picture in half of the bytes: short numbers, no spaces, and ids in use alone."""
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', svg))
    svg = re.sub(r'\sid="([^"]*)"', lambda found: found[0] if found[1] in used else "", svg)
    svg = re.sub(r'\stransform="rotate\(-?0 [^"]*"', "", svg)
    return re.sub(r">\s+<", "><", re.sub(r"<[^>]+>", _shortened_tag, svg)).strip()


def _shortened_tag(tag: re.Match[str]) -> str:
    short = LONG_NUMBER.sub(lambda number: _shortened_number(float(number[0])), tag[0])
    return NEEDLESS_SPACE.sub("", " ".join(short.split()))


def _shortened_number(number: float) -> str:
    """Tenths of a pixel for places in the panel, hundredths for the shapes of markers."""
    return f"{number:.1f}" if number >= 10 else f"{number:.2f}"
