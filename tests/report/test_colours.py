from itertools import combinations

import numpy as np
import pytest

from pipeline.colours import PALETTE, colour, marker


@pytest.mark.parametrize("background", [1.0, 0.008])  # luminance of white and of the dark page
def test_colours_stand_out_from_the_page(background):
    assert len(set(PALETTE)) == 16 and colour(0) == colour(16)
    for hexed in PALETTE:
        own = linear(hexed) @ [0.2126, 0.7152, 0.0722]
        low, high = sorted((own, background))
        assert (high + 0.05) / (low + 0.05) >= 2.75, hexed


def linear(hexed):
    """Linear RGB of a colour."""
    channels = np.array([int(hexed[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def oklab(rgb):
    """Linear RGB in Oklab (Ottosson 2020), where distances are about as large as they look."""
    cones = [[0.4122215, 0.5363325, 0.0514460], [0.2119035, 0.6806995, 0.1073970],
             [0.0883025, 0.2817188, 0.6299787]]  # fmt: skip
    axes = [[0.2104543, 0.7936178, -0.0040720], [1.9779985, -2.4285922, 0.4505937],
            [0.0259040, 0.7827718, -0.8086758]]  # fmt: skip
    return np.array(axes) @ np.cbrt(np.clip(np.array(cones) @ rgb, 0, 1))


# what red-green blind eyes see (Machado, Oliveira, Fernandes 2009, severity 1)
SIGHTS = {
    "full": np.eye(3),
    "protan": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                        [-0.003882, -0.048116, 1.051998]]),
    "deutan": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                        [-0.011820, 0.042940, 0.968881]]),
}  # fmt: skip


@pytest.mark.parametrize(("sight", "apart"), [("full", 0.09), ("protan", 0.055), ("deutan", 0.055)])
def test_colours_stand_apart_from_each_other(sight, apart):
    seen = {hexed: oklab(SIGHTS[sight] @ linear(hexed)) for hexed in PALETTE}
    for one, other in combinations(PALETTE, 2):
        assert np.linalg.norm(seen[one] - seen[other]) >= apart, (one, other)


def test_no_method_of_a_large_comparison_shares_colour_and_marker():
    assert len({(colour(index), marker(index)) for index in range(176)}) == 176
