"""Latents: how far apart classes lie, and where images lie on a plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from pipeline.colours import MARKERS, PALETTE, colour
from pipeline.evaluation.collect import Run
from pipeline.evaluation.diagnosis import Arrays, Histogram
from pipeline.params import Compare
from pipeline.records import RunId
from pipeline.report import words
from pipeline.report.figures import base
from pipeline.report.figures.base import Panel

Floats = NDArray[np.float64]

BINS = 30
MOST_COLOURED = 10  # classes with a colour and a marker of their own
MOST_IMAGES = 300  # on one map
MOST_IN_ALL = 2400  # on the maps of all methods: the page stays small
PERPLEXITY = 30.0
FEWEST = 8  # images of which neighbours say anything
MAP_HEIGHTS = {1: 280, 2: 140, 3: 92}  # by how many stand in a row
OTHERS = to_rgba(base.INK, 0.3)
MAPS = {"pca": "Principal components of the latents", "tsne": "t-SNE of the latents"}


def distance_panels(runs: Sequence[Run], compare: Compare) -> list[Panel]:
    """Distances of same-class and different-class pairs at the last shots, a frame a method."""
    shots = compare.shots[-1]
    found = {
        method: [r.diagnosis for r in runs if (r.id.method, r.id.shots) == (method, shots)]
        for method in compare.methods
    }
    edges = {
        method: _common_edges([[d.same, d.different] for d in of]) for method, of in found.items()
    }
    shown = [method for method in compare.methods if len(edges[method])]
    if not shown:
        return []
    figure, frames = base.frames(shown, share_y=False, columns=base.across(shown))
    for axes, method in zip(frames, shown, strict=True):
        own = colour(compare.methods.index(method))
        same = mean_shares([d.same for d in found[method]], edges[method])
        different = mean_shares([d.different for d in found[method]], edges[method])
        axes.stairs(same, edges[method], color=(own, 0.55), fill=True)
        axes.stairs(different, edges[method], color=base.INK, linewidth=1.3)
        axes.set_yticks([])
        axes.set_ylim(bottom=0)
        axes.spines["left"].set_visible(False)
    figure.supxlabel("distance, 1 is the root mean square of all", fontsize=base.LABEL_SIZE)
    hints = [Patch(color=(base.INK, 0.4)), Line2D([], [], color=base.INK, linewidth=1.3)]
    base.key(figure, hints, ["same class (coloured)", "different classes"], above=True, columns=2)
    title = f"Distances of pairs of validation images with {words.budget(shots)}"
    return [base.panel(f"distances-n{shots}", "distances", title, figure)]


def map_panels(
    arrays: Mapping[RunId, Arrays], compare: Compare, classes: Sequence[str]
) -> list[Panel]:
    """Latents of test images on a plane by principal components and by t-SNE, a frame a method.

    The ten most frequent classes have colours and markers; ``classes`` names them, if it does.
    """
    usual = {
        run.method: thinned
        for run, of in arrays.items()
        if len(thinned := _thinned(of, len(arrays)).latents) and np.isfinite(thinned).all()
    }
    if not usual:
        return []
    labels = {run.method: _thinned(of, len(arrays)).labels for run, of in arrays.items()}
    ranked = _most_frequent(next(iter(arrays.values())).labels)
    shots = compare.shots[-1]
    planes: dict[str, dict[str, Floats]] = {"pca": {}, "tsne": {}}
    for method, latents in usual.items():
        planes["pca"][method] = principal_plane(latents)
        if len(neighbours := neighbour_plane(latents)):
            planes["tsne"][method] = neighbours
    return [
        base.panel(
            f"map-{kind}-n{shots}",
            "map",
            f"{MAPS[kind]} with {words.budget(shots)}",
            _map(plane, labels, ranked, classes),
        )
        for kind, plane in planes.items()
        if plane
    ]


def mean_shares(histograms: Sequence[Histogram], edges: Floats) -> Floats:
    """The share of pairs between ``edges`` (K + 1,), as a mean over histograms: (K,).

    Within a bin of its own each histogram is even. Those without a pair say nothing.
    """
    shares = []
    for histogram in histograms:
        counts = np.asarray(histogram.counts, dtype=np.float64)
        if counts.sum():
            below = np.concatenate([[0.0], np.cumsum(counts) / counts.sum()])
            shares.append(np.diff(np.interp(edges, histogram.edges, below)))
    return np.mean(shares, axis=0) if shares else np.zeros(len(edges) - 1)


def principal_plane(latents: NDArray[Any]) -> Floats:
    """The first two principal components (N, 2) of latents (N, D); what is lacking is zero.

    The largest coordinate of each component is positive, so that no sign is arbitrary.
    """
    centred = latents - latents.mean(axis=0, dtype=np.float64)
    with threadpool_limits(1):  # the number of threads changes sums
        left, scale, _ = np.linalg.svd(centred, full_matrices=False)
    plane = np.zeros((len(latents), 2))
    found = (left * scale)[:, :2]
    plane[:, : found.shape[1]] = found
    largest = plane[np.abs(plane).argmax(axis=0), (0, 1)]
    return plane * np.where(largest < 0, -1.0, 1.0)


def neighbour_plane(latents: NDArray[Any]) -> Floats:
    """t-SNE (N, 2) of latents (N, D), started from the principal components; of few images none.

    Source: van der Maaten and Hinton, "Visualizing data using t-SNE", JMLR 9, 2008.
    """
    from sklearn.manifold import TSNE  # takes a second to import

    start = principal_plane(latents)
    spread = start[:, 0].std()
    if len(latents) < FEWEST or spread < 1e-12:
        return np.empty((0, 2))
    perplexity = min(PERPLEXITY, (len(latents) - 1) / 3)
    with threadpool_limits(1):
        found: Floats = TSNE(
            perplexity=perplexity,
            init=(1e-4 * start / spread).astype(np.float32),
            random_state=0,
            n_jobs=1,
        ).fit_transform(np.ascontiguousarray(latents, dtype=np.float32))
    return found


def _common_edges(seeds: Sequence[Sequence[Histogram]]) -> Floats:
    """Edges over all distances that occur; none where there is none."""
    ends = [edge for of in seeds for histogram in of if sum(histogram.counts)
            for edge in base.finite(histogram.edges)]  # fmt: skip
    if not ends or min(ends) == max(ends):
        return np.empty(0)
    return np.linspace(min(ends), max(ends), BINS + 1)


def _thinned(of: Arrays, methods: int) -> Arrays:
    kept = base.evenly(len(of.labels), min(MOST_IMAGES, max(1, MOST_IN_ALL // methods)))
    return Arrays(of.latents[kept], of.labels[kept], of.images[kept], *[of.filters_before[:0]] * 2)


def _most_frequent(labels: NDArray[np.int64]) -> list[int]:
    """Of at most ten classes, the most frequent first, each in the order of its number."""
    numbers, counts = np.unique(labels, return_counts=True)
    most = numbers[np.argsort(-counts, kind="stable")[:MOST_COLOURED]]
    return sorted(most.tolist())


def _map(
    planes: Mapping[str, Floats],
    labels: Mapping[str, NDArray[np.int64]],
    ranked: Sequence[int],
    classes: Sequence[str],
) -> Any:
    columns = base.across(list(planes))
    figure, frames = base.frames(list(planes), False, False, columns, MAP_HEIGHTS[columns])
    others = any(not np.isin(labels[method], ranked).all() for method in planes)
    for axes, (method, plane) in zip(frames, planes.items(), strict=True):
        rest = ~np.isin(labels[method], ranked)
        axes.plot(*plane[rest].T, linestyle="none", **_mark(None))
        for place, number in enumerate(ranked):
            axes.plot(*plane[labels[method] == number].T, linestyle="none", **_mark(place))
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_aspect("equal", adjustable="datalim")
        axes.spines[:].set_visible(True)
    if classes:
        names = [classes[number] for number in ranked] + ["others"] * others
        marks = [_mark(place) for place in range(len(ranked))] + [_mark(None)] * others
        hints = [Line2D([], [], linestyle="none", **{**mark, "markersize": 7}) for mark in marks]
        longest = max(map(len, names))
        base.key(figure, hints, names, columns=3 if longest <= 10 else 2 if longest <= 18 else 1)
    return figure


def _mark(place: int | None) -> dict[str, Any]:
    if place is None:
        return {"color": OTHERS, "marker": ".", "markersize": 4, "markeredgewidth": 0}
    own = {"color": PALETTE[place], "marker": MARKERS[place]}
    return {**own, "markersize": 4, "markeredgewidth": 0}
