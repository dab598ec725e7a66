"""What a set of many images costs in memory, image by image, as the stages go through it."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.scale import Case, make
from pipeline.data import pairs, splits
from pipeline.data.images import decode_all
from pipeline.data.sources import find
from pipeline.records import write_table

ROWS = 20_000
IMAGES = 6_000  # Python's own bookkeeping of memory makes small work slow


def peak(work: Callable[[], Any]) -> tuple[Any, int]:
    """What work returns, and the most bytes that Python held for it at once."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        made = work()
        return made, tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("many") / "data"
    make(Case("classes", IMAGES), folder)
    return folder / "set.zip"


def test_a_million_images_of_a_zip_are_found_within_a_gigabyte(archive):
    found, most = peak(lambda: find(archive, "folders", "classification"))
    assert len(found.items) == IMAGES
    assert most < 1000 * IMAGES


def test_decoding_holds_no_more_for_more_images(archive, tmp_path):
    items = find(archive, "folders", "classification").items
    decode_all(items[:10], tmp_path / "x.npy", 8, "crop", 1)
    few, many = (
        peak(lambda n=n: decode_all(items[:n], tmp_path / "x.npy", 8, "crop", 1, workers=2))[1]
        for n in (500, 3000)
    )
    assert many - few < 100 * 2500


def test_duplicates_are_found_in_few_bytes_an_image():
    images = np.arange(ROWS * 2)[:, None].view(np.uint8).reshape(-1, 1, 4, 4)
    found, most = peak(lambda: splits.find_duplicates(images))
    assert len(images) == ROWS and found.groups == []
    assert most < 110 * ROWS


def test_pairs_are_drawn_and_written_in_few_bytes_a_pair(tmp_path):
    labels = np.arange(ROWS) // 100

    def work():
        drawn, _ = pairs.draw_pairs(np.arange(ROWS), labels, 10, 0.5, np.random.default_rng(0))
        pairs.write_pairs(tmp_path / "pairs.csv", drawn)
        return drawn

    drawn, most = peak(work)
    assert len(drawn.same) == 10 * ROWS
    assert most < 120 * len(drawn.same)


def test_a_table_of_any_length_is_written_as_it_comes(tmp_path):
    rows = ((row, "name" * 20) for row in range(5 * ROWS))
    _, most = peak(lambda: write_table(tmp_path / "table.csv", rows, ("row", "name")))
    assert (tmp_path / "table.csv").stat().st_size > 8_000_000
    assert most < 5_000_000
