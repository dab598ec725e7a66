"""Inside the networks: gradients, what was learnt by heart, weights and first-layer filters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy.stats import gmean

from pipeline.colours import colour
from pipeline.evaluation.collect import Run
from pipeline.evaluation.diagnosis import TRAIN_ACCURACY, VAL_ACCURACY, Arrays, Layer
from pipeline.params import Compare
from pipeline.records import RunId
from pipeline.report import words
from pipeline.report.figures import base
from pipeline.report.figures.base import Panel
from pipeline.report.figures.curves import Curve, draw_curves

TIMES: dict[str, dict[str, Any]] = {
    "first epoch": {"linewidth": 1.1, "linestyle": ":"},
    "middle": {"linewidth": 1.4, "linestyle": "--"},
    "last epoch": {"linewidth": 2.0, "linestyle": "-"},
}
MOST_LAYERS = 8  # with a histogram
WEIGHTS_HEIGHT = 85
FILTERS_ACROSS = 8
FILTERS_WIDTH = 155  # of a picture, in points
GAP_ROW = 28


def ratio_panels(runs: Sequence[Run], compare: Compare) -> list[Panel]:
    """Gradient norm of the first trained layer over that of the last, at the last shots.

    Phases follow one another; one that trains a single layer has no ratio.
    """
    shots = compare.shots[-1]
    found: dict[str, list[Curve]] = {method: [] for method in compare.methods}
    for run in runs:
        if run.id.shots == shots:
            found[run.id.method] += ratios(run.gradients)
    shown = [method for method in compare.methods if found[method]]
    if not shown:
        return []
    framed = len(shown) >= base.FRAMED
    figure, frames = base.frames(shown) if framed else base.one_frame(len(shown))
    for method, axes in zip(shown, frames, strict=True):
        draw_curves(axes, found[method], compare.methods.index(method), method, gmean)
    for axes in set(frames):
        axes.axhline(1, **base.BACKDROP)
        axes.xaxis.set_major_locator(MaxNLocator(3 if framed else 5, integer=True, min_n_ticks=1))
    for axes in set(frames):
        base.logarithmic(axes)
    base.label(figure, frames, "epoch", "first over last layer")
    title = f"Gradient of the first layer over that of the last, with {words.budget(shots)}"
    return [base.panel(f"gradients-n{shots}", "gradients", title, figure)]


def layer_panels(runs: Sequence[Run], compare: Compare) -> list[Panel]:
    """Gradient norms by layer at the start, in the middle and at the end, a frame a method."""
    shots = compare.shots[-1]
    found = {
        method: layer_norms(
            [run.gradients for run in runs if (run.id.method, run.id.shots) == (method, shots)]
        )
        for method in compare.methods
    }
    shown = [method for method in compare.methods if len(found[method]) > 1]
    if not shown:
        return []
    figure, frames = base.frames(shown, share_x=False, columns=base.across(shown))
    for method, axes in zip(shown, frames, strict=True):
        own, norms = colour(compare.methods.index(method)), found[method]
        for time, style in TIMES.items():
            axes.plot(range(1, len(norms) + 1), norms[time], color=own, **style)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    for axes in frames:
        base.logarithmic(axes)
    figure.supxlabel("layer, from the input on", fontsize=base.LABEL_SIZE)
    figure.supylabel("norm of the gradient", fontsize=base.LABEL_SIZE)
    hints = [Line2D([], [], color=base.INK, **style) for style in TIMES.values()]
    base.key(figure, hints, list(TIMES), above=True, columns=3)
    title = f"Gradients by layer with {words.budget(shots)}"
    return [base.panel(f"gradient-layers-n{shots}", "gradients", title, figure)]


def gap_panels(runs: Sequence[Run], compare: Compare) -> list[Panel]:
    """Accuracy on training images against that on validation images, a panel a number of shots."""
    panels = []
    for shots in compare.shots:
        pairs = {
            method: np.array([
                (run.values[TRAIN_ACCURACY], run.values[VAL_ACCURACY])
                for run in runs
                if (run.id.method, run.id.shots) == (method, shots)
                and {TRAIN_ACCURACY, VAL_ACCURACY} <= run.values.keys()
            ])
            for method in compare.methods
        }  # fmt: skip
        shown = [method for method in compare.methods if len(pairs[method])]
        if not shown:
            continue
        figure, axes = base.new(70 + GAP_ROW * len(shown))
        for row, method in enumerate(shown):
            _gap_row(axes, row, pairs[method], colour(compare.methods.index(method)))
        base.rows_of(axes, [base.wrapped(method) for method in shown])
        base.percent(axes.xaxis)
        axes.set_xticks([tick for tick in axes.get_xticks() if 0 <= tick <= 1])
        axes.set_xlabel("accuracy")
        hints = [Line2D([], [], linestyle="none", **_gap_mark(base.INK, f)) for f in (False, True)]
        base.key(figure, hints, ["training images", "validation images"], columns=2)
        title = f"Training and validation accuracy with {words.budget(shots)}"
        panels.append(base.panel(f"gap-n{shots}", "gap", title, figure))
    return panels


def weight_panels(runs: Sequence[Run], compare: Compare) -> list[Panel]:
    """Weights by layer before and after training, of the first seed at the last shots.

    A panel a method.
    """
    shown = (compare.shots[-1], compare.seeds[0])
    return [
        _weight_panel(run, compare.methods.index(run.id.method))
        for run in runs
        if (run.id.shots, run.id.seed) == shown and run.diagnosis.layers
    ]


def filter_panels(arrays: Mapping[RunId, Arrays], compare: Compare) -> list[Panel]:
    """First-layer filters before and after training as pictures, a row a method."""
    shown = {run.method: of for run, of in arrays.items() if of.filters_after.size}
    if not shown:
        return []
    names = [f"{base.cut(method, 16)}, {when}" for method in shown for when in ("before", "after")]
    pictures = [picture for of in shown.values() for picture in _filter_pictures(of)]
    tallest = max(p.shape[0] / p.shape[1] for p in pictures if p is not None)
    height = 26 + FILTERS_WIDTH * tallest
    figure, frames = base.frames(names, False, False, height=height)
    for axes, picture in zip(frames, pictures, strict=True):
        axes.set_axis_off()
        axes.set_anchor("NW")
        if picture is None:
            axes.text(0, 1, "began at random", va="top", size=10)
        else:
            axes.imshow(picture, interpolation="none")
    shots = compare.shots[-1]
    title = f"First-layer filters with {words.budget(shots)}"
    return [base.panel(f"filters-n{shots}", "filters", title, figure)]


def ratios(gradients: pd.DataFrame) -> list[Curve]:
    """By phase and epoch, the norm of the first layer over that of the last.

    Layers stand in the network's order. Epochs count on from phase to phase.
    """
    curves, before = [], 0.0
    for phase, rows in gradients.groupby("phase", sort=False):
        by_epoch = rows.groupby("epoch")
        ends = by_epoch["norm"].agg(["first", "last"]).to_numpy(float)
        epochs = np.array(list(by_epoch.groups), dtype=float)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = ends[:, 0] / ends[:, 1]
        kept = np.isfinite(ratio) & (ratio > 0)
        if rows["layer"].nunique() > 1 and kept.any():
            curves.append(Curve(str(phase), before + epochs[kept], ratio[kept]))
        before += epochs.max()
    return curves


def layer_norms(seeds: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """By layer in the network's order, its gradient norm at ``TIMES``: geometric means over seeds.

    The times are of the last phase that trained the layer.
    """
    order: list[str] = []
    found: dict[str, list[Any]] = {}
    for gradients in seeds:
        last: dict[str, Any] = {}
        for _, rows in gradients.groupby("phase", sort=False):
            _merge(order, list(dict.fromkeys(rows["layer"])))
            epochs = sorted(rows["epoch"].unique())
            times = [epochs[0], epochs[(len(epochs) - 1) // 2], epochs[-1]]
            by_layer = rows.pivot_table(index="layer", columns="epoch", values="norm", dropna=False)
            last |= {layer: by_layer.loc[layer, times].to_numpy(float) for layer in by_layer.index}
        for layer, norms in last.items():
            found.setdefault(layer, []).append(np.where(norms > 0, norms, np.nan))
    means = [_geometric(np.array(found[layer])) for layer in order]
    return pd.DataFrame(means, index=order, columns=list(TIMES), dtype=float)


def mosaic(filters: NDArray[np.float32], largest: float) -> NDArray[np.uint8]:
    """Filters (K, C, h, w) beside and below each other as a picture (H, W, 4); grey is zero.

    Three channels are red, green and blue, of any others the mean is shown; ``largest`` is the
    size that is white, or black.
    """
    count, channels, height, width = filters.shape
    if channels != 3:
        filters = np.repeat(filters.mean(axis=1, keepdims=True), 3, axis=1)
    shades = np.nan_to_num(filters / (2 * largest or 1.0) + 0.5, nan=0.5).clip(0, 1)
    across = min(count, FILTERS_ACROSS)
    down = -(-count // across)
    picture = np.zeros((down * (height + 1) - 1, across * (width + 1) - 1, 4), dtype=np.uint8)
    for place, shade in enumerate(np.round(255 * shades.transpose(0, 2, 3, 1))):
        top, left = place // across * (height + 1), place % across * (width + 1)
        picture[top : top + height, left : left + width, :3] = shade
        picture[top : top + height, left : left + width, 3] = 255
    return picture


def _filter_pictures(of: Arrays) -> Iterator[NDArray[np.uint8] | None]:
    """Filters before and after training, on one scale; None where there are none."""
    both = [of.filters_before, of.filters_after]
    largest = max(float(np.abs(np.nan_to_num(f, posinf=0, neginf=0)).max(initial=0)) for f in both)
    for filters in both:
        yield mosaic(filters, largest) if filters.size else None


def _merge(order: list[str], layers: Sequence[str]) -> None:
    """Put layers that are new to ``order`` before the layer that follows them, else at its end."""
    following = len(order)
    for layer in reversed(layers):
        if layer in order:
            following = order.index(layer)
        else:
            order.insert(following, layer)


def _geometric(norms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over the first axis of what there is."""
    kept = np.isfinite(norms)
    logs = np.log(norms, where=kept, out=np.zeros_like(norms)).sum(axis=0)
    counts = kept.sum(axis=0)
    return np.where(counts, np.exp(logs / np.maximum(counts, 1)), np.nan)


def _gap_row(axes: Any, row: int, pairs: NDArray[np.float64], own: str) -> None:
    """One method: the mean of both, joined, and every seed as a thin line below."""
    for pair in pairs:
        axes.plot(pair, [row + 0.24] * 2, color=own, linewidth=0.9, alpha=0.5)
    train, val = pairs.mean(axis=0)
    axes.plot([train, val], [row, row], color=own, linewidth=2.2, zorder=1.5)
    for share, filled in ((train, False), (val, True)):
        axes.plot([share], [row], **_gap_mark(own, filled))


def _gap_mark(own: str, filled: bool) -> dict[str, Any]:
    face = own if filled else "none"
    return {"color": own, "marker": "o", "markersize": 7, "mfc": face, "mew": 1.6}


def _weight_panel(run: Run, index: int) -> Panel:
    layers = run.diagnosis.layers
    layers = [layers[place] for place in base.evenly(len(layers), MOST_LAYERS)]
    names = [layer.name for layer in layers]
    figure, frames = base.frames(names, False, False, height=WEIGHTS_HEIGHT)
    for axes, layer in zip(frames, layers, strict=True):
        _weights(axes, layer, colour(index))
    hints = [Line2D([], [], color=base.INK, linewidth=1.2), Patch(color=colour(index), alpha=0.55)]
    base.key(figure, hints, ["before training", "after"], above=True, columns=2)
    title = f"Weights of {run.id.method} by layer, {run.id.shots} shots, seed {run.id.seed}"
    return base.panel(f"weights-{run.id.method}-n{run.id.shots}", "weights", title, figure)


def _weights(axes: Any, layer: Layer, own: str) -> None:
    axes.stairs(layer.after, layer.edges, color=(own, 0.55), fill=True)
    if layer.before is not None:
        axes.stairs(layer.before, layer.edges, color=base.INK, linewidth=1.2)
    axes.set_yticks([])
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.spines["left"].set_visible(False)
