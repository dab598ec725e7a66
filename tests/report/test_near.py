"""Near duplicates on the page: told of by what they spoil, and shown."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pipeline.evaluation.collect import NearPair
from pipeline.report.page import near
from pipeline.report.page.document import Fold, Paragraph, Sheet
from pipeline.report.pictures import Album


@pytest.fixture
def album(tmp_path):
    """Four images, each of one shade."""
    names = [f"cat/{row}.png" for row in range(4)]
    lines = [f"{row},{name}" for row, name in enumerate(names)]
    (tmp_path / "images.csv").write_text("row,image\n" + "\n".join(lines), encoding="utf-8")
    shades = np.arange(4, dtype=np.uint8)[:, None, None, None] * 60
    np.save(tmp_path / "images.npy", np.broadcast_to(shades, (4, 3, 24, 24)))
    return Album(tmp_path / "images.csv", tmp_path / "images.npy")


def pair(left, right, classes=("cat", "cat"), splits=("train", "train"), mirrored=False):
    names = f"cat/{left}.png", f"cat/{right}.png"
    return NearPair(names, classes, splits, 0.9812, mirrored)


def blocks(album, *pairs, task="classification"):
    evidence, params = SimpleNamespace(near=pairs), SimpleNamespace(task=task)
    return list(near.blocks(SimpleNamespace(evidence=evidence, params=params, album=album)))


def test_only_what_the_task_has_is_advised(album):
    apart = pair(0, 1, splits=("train", "test"))
    said = [
        blocks(album, apart, task=task)[0].text[0] for task in ("classification", "verification")
    ]
    assert ["near_duplicates: group" in text for text in said] == [True, False]


@pytest.mark.parametrize("splits", [("train", "val"), ("train", "test"), ("val", "test")])
def test_the_scores_that_are_too_good_are_named(album, splits):
    text = blocks(album, pair(0, 1, splits=splits))[0].text[0]
    of = "test" if "test" in splits else "validation"
    assert f"if they are copies, {of} scores are too good" in text
    both = blocks(album, pair(0, 1, splits=splits), pair(2, 3, splits=("train", "val")))
    assert ("test and validation scores" in both[0].text[0]) == (of == "test")


def test_without_any_nothing_is_read():
    (said,) = blocks(Album())
    assert said.text == ("No two images were found to be changed copies of one picture.",)


def test_each_kind_is_told_by_what_it_spoils(album):
    *said, fold = blocks(
        album,
        pair(0, 1, splits=("train", "test")),
        pair(0, 2, splits=("val", "test"), classes=("cat", "dog")),
        pair(1, 3, classes=("cat", "dog")),
        pair(2, 3),
    )
    assert all(isinstance(block, Paragraph) for block in said)
    assert [block.role for block in said] == ["warning", "warning", "text"]
    starts = ["2 pairs of near duplicates stand in two", "One pair of near duplicates stands under"]
    starts.append("One pair of near duplicates stands within one class")
    for block, start in zip(said, starts, strict=True):
        assert block.text[0].startswith(start)
    assert isinstance(fold, Fold) and isinstance(fold.blocks[0], Sheet)


def test_pairs_are_shown_side_by_side_at_most_a_dozen_of_a_kind(album):
    pairs = [pair(0, 3, splits=("train", "test"))] * 30
    fold = blocks(album, *pairs)[-1]
    picture = np.asarray(Image.open(io.BytesIO(fold.blocks[0].png)).convert("L")).astype(int)
    once = np.asarray(Image.open(io.BytesIO(blocks(album, pairs[0])[-1].blocks[0].png)))
    assert picture.shape[0] > 2.5 * once.shape[0]  # three rows, the first alone with a title
    dark, light = (picture == 0).sum(), (picture == 180).sum()
    assert dark >= 12 * 80 * 80 and light >= 12 * 80 * 80  # 12 pairs, each of both


def test_captions_say_what_differs():
    same = near._caption(pair(0, 1))
    other = near._caption(pair(0, 1, ("cat", "dog"), ("train", "test"), mirrored=True))
    assert same == "cat\ntrain: 0.981"
    assert other == "cat | dog\ntrain | test: 0.981, mirrored"
