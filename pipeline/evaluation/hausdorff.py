"""The modified Hausdorff distance between drawings: a one-shot classifier that learns nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from pipeline.evaluation.metrics import Floats

INK_BELOW = 128  # grey value, of 0 (black) to 255 (white)


def ink(image: NDArray[Any]) -> Floats:
    """Coordinates (n, 2) of the dark pixels of a grey image (H, W), centred on their mean.

    Raises:
        ValueError: there is no dark pixel.
    """
    points = np.argwhere(np.asarray(image) < INK_BELOW)
    if not len(points):
        raise ValueError("the image has no dark pixel")
    return points - points.mean(axis=0)


def modified_hausdorff(a: Floats, b: Floats) -> float:
    """The larger of the mean distances from the points of one set to the nearest of the other.

    Source: Dubuisson and Jain 1994, "A modified Hausdorff distance for object matching", ICPR:
    d(A, B) = mean over a of min over b of |a - b|, and the distance is max(d(A, B), d(B, A)).
    ``a`` (n, 2) and ``b`` (m, 2), n and m ≥ 1.
    """
    return max(_mean_distance(a, b), _mean_distance(b, a))


def _mean_distance(points: Floats, others: Floats) -> float:
    """Mean distance from each point to the nearest of the others."""
    nearest, _ = KDTree(others).query(points)
    return float(nearest.mean())
