"""What happened while training: accuracies and losses, by images seen and by epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from pipeline.colours import colour, marker
from pipeline.evaluation.collect import Run
from pipeline.params import Compare
from pipeline.report import words
from pipeline.report.figures import base
from pipeline.report.figures.base import Panel

LOSSES: dict[str, dict[str, Any]] = {
    "train/loss": {"linewidth": 1.4, "linestyle": "--"},
    "val/loss": {"linewidth": 2.0, "linestyle": "-"},
}

Mean = Callable[..., Any]  # of arrays, over axis 0


@dataclass(frozen=True)
class Curve:
    """One phase of one run: images seen and the metric, an entry an epoch."""

    phase: str
    seen: NDArray[np.float64]
    values: NDArray[np.float64]


def training_panels(runs: Sequence[Run], compare: Compare) -> list[Panel]:
    """Validation accuracy against images seen, a panel a number of shots."""
    return _panels(runs, compare, "training", "val/accuracy", "Validation accuracy")


def loss_panels(runs: Sequence[Run], compare: Compare) -> list[Panel]:
    """Validation loss of the phases that have no accuracy, such as an encoder's."""
    return _panels(runs, compare, "loss", "val/loss", "Validation loss")


def epoch_panels(runs: Sequence[Run], compare: Compare) -> list[Panel]:
    """Training and validation loss of every phase by epoch, a panel a number of shots."""
    drawn = []
    for shots in compare.shots:
        found = {
            (method, phase): losses
            for method in compare.methods
            for phase, losses in mean_losses(
                [run.history for run in runs if (run.id.method, run.id.shots) == (method, shots)]
            ).items()
        }
        if found:
            figure = _epoch_figure(found, compare)
            title = f"Loss by epoch with {words.budget(shots)}"
            drawn.append(base.panel(f"epochs-n{shots}", "epochs", title, figure))
    return drawn


def curves_of(
    history: pd.DataFrame, metric: str, wanted: Callable[[pd.DataFrame], bool]
) -> list[Curve]:
    """The finite values of ``metric`` in those phases of a history that are ``wanted``."""
    if metric not in history:
        return []
    curves = []
    for phase, rows in history.groupby("phase", sort=False):
        rows = rows[np.isfinite(rows[metric])]
        if len(rows) and wanted(rows):
            seen, values = rows["images_seen"].to_numpy(float), rows[metric].to_numpy(float)
            curves.append(Curve(str(phase), seen, values))
    return curves


def has_accuracy(rows: pd.DataFrame) -> bool:
    """Whether the phase of these rows classifies."""
    return "val/accuracy" in rows and bool(rows["val/accuracy"].notna().any())


def mean_curves(curves: Sequence[Curve], mean: Mean = np.mean) -> Iterator[tuple[Any, Any]]:
    """Images seen and mean value, epoch by epoch as far as all seeds run, of each phase."""
    for group in _by_phase(curves):
        shortest = min(len(curve.seen) for curve in group)
        seen = np.mean([curve.seen[:shortest] for curve in group], axis=0)
        yield seen, mean([curve.values[:shortest] for curve in group], axis=0)


def draw_curves(
    axes: Any, curves: Sequence[Curve], index: int, label: str, mean: Mean = np.mean
) -> None:
    """Every seed thin; over them the mean of each phase. A phase of one row is a point."""
    own = colour(index)
    for group in _by_phase(curves):
        if len(group) > 1:
            for curve in group:
                base.line(axes, curve.seen, curve.values, color=own, linewidth=0.7, alpha=0.45)
    for number, (seen, values) in enumerate(mean_curves(curves, mean)):
        name = label if number == 0 else None
        style = {"color": own, "linewidth": 2.2, "marker": marker(index), "markersize": 6}
        base.line(axes, seen, values, label=name, **style)


def mean_losses(histories: Sequence[pd.DataFrame]) -> dict[str, pd.DataFrame]:
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


def _panels(
    runs: Sequence[Run], compare: Compare, group: str, metric: str, title: str
) -> list[Panel]:
    share = metric == "val/accuracy"
    wanted = has_accuracy if share else _lacks_accuracy
    drawn = []
    for shots in compare.shots:
        found: dict[str, list[Curve]] = {method: [] for method in compare.methods}
        for run in runs:
            if run.id.shots == shots:
                found[run.id.method] += curves_of(run.history, metric, wanted)
        if not any(found.values()):
            continue
        figure = _figure(found, compare, title.lower(), share)
        panel_title = f"{title} with {words.budget(shots)}"
        drawn.append(base.panel(f"{group}-n{shots}", group, panel_title, figure))
    return drawn


def _figure(found: Mapping[str, list[Curve]], compare: Compare, title: str, share: bool) -> Figure:
    """The curves of all methods that have any; shares are on one scale and may be compared."""
    shown = [method for method in compare.methods if found[method]]
    framed = len(shown) >= base.FRAMED
    figure, frames = base.frames(shown, share_y=share) if framed else base.one_frame(len(shown))
    for method, axes in zip(shown, frames, strict=True):
        if framed and share and method != compare.reference:
            for seen, mean in mean_curves(found[compare.reference]):
                base.line(axes, seen, mean, **base.BACKDROP)
        draw_curves(axes, found[method], compare.methods.index(method), method)
    for axes in set(frames):
        axes.xaxis.set_major_locator(MaxNLocator(3 if framed else 5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: words.count(x)))
        if share:
            base.percent(axes.yaxis)
        elif framed:
            axes.yaxis.set_major_locator(MaxNLocator(4))
    base.label(figure, frames, "images seen", title)
    return figure


def _lacks_accuracy(rows: pd.DataFrame) -> bool:
    return not has_accuracy(rows)


def _by_phase(curves: Sequence[Curve]) -> list[list[Curve]]:
    by_phase: dict[str, list[Curve]] = {}
    for curve in curves:
        by_phase.setdefault(curve.phase, []).append(curve)
    return list(by_phase.values())


def _epoch_figure(found: Mapping[tuple[str, str], pd.DataFrame], compare: Compare) -> Figure:
    """A frame a phase, each with axes of its own: losses are on other scales."""
    names = [method if phase == "end_to_end" else f"{method}: {words.phase(phase)}"
             for method, phase in found]  # fmt: skip
    figure, frames = base.frames(names, share_y=False, share_x=False)
    for axes, ((method, _), losses) in zip(frames, found.items(), strict=True):
        own = colour(compare.methods.index(method))
        epochs = losses.index.to_numpy(float)
        for loss, style in LOSSES.items():
            base.line(axes, epochs, losses[loss].to_numpy(), color=own, **style)
        axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(3))
    figure.supxlabel("epoch", fontsize=base.LABEL_SIZE)
    figure.supylabel("loss", fontsize=base.LABEL_SIZE)
    lines = [Line2D([], [], color=base.INK, **style) for style in LOSSES.values()]
    base.key(figure, lines, ["training", "validation"], above=True)
    return figure
