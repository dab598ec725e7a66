import math

import numpy as np
import pytest

from pipeline.evaluation.hausdorff import ink, modified_hausdorff


def naive_distance(a, b):
    def directed(points, others):
        return sum(min(math.dist(p, q) for q in others) for p in points) / len(points)

    return max(directed(a.tolist(), b.tolist()), directed(b.tolist(), a.tolist()))


@pytest.mark.parametrize("seed", range(10))
def test_the_distance_is_that_of_plain_loops(seed):
    draw = np.random.default_rng(seed)
    a, b = (draw.normal(size=(draw.integers(1, 30), 2)) for _ in range(2))
    assert modified_hausdorff(a, b) == pytest.approx(naive_distance(a, b), abs=1e-12)
    assert modified_hausdorff(a, b) == modified_hausdorff(b, a)


def test_the_larger_of_both_directions_counts():
    a, b = np.array([[0.0, 0.0]]), np.array([[0.0, 0.0], [3.0, 4.0]])
    assert modified_hausdorff(a, b) == 2.5  # from b to a: (0 + 5) / 2; from a to b: 0
    assert modified_hausdorff(a, a) == 0


def test_ink_is_dark_and_centred():
    image = np.full((5, 7), 255, np.uint8)
    image[1, 2] = image[3, 2] = 0
    image[0, 0] = 128  # no longer dark
    np.testing.assert_array_equal(ink(image), [[-1, 0], [1, 0]])
    moved = np.roll(image[1:], 3, axis=1)
    np.testing.assert_array_equal(ink(moved), ink(image))


def test_a_blank_image_has_no_ink():
    with pytest.raises(ValueError, match="no dark pixel"):
        ink(np.full((4, 4), 255, np.uint8))
