"""The sheet of pictures, read back from its PNG."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.data.sheet import CAPTION, GAP, SIDE, TITLE, Row, Tile, sheet

HEIGHT = TITLE + SIDE + CAPTION + GAP  # of a row


def read(png):
    """(H, W, 3) uint8."""
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG" and image.mode == "RGB"
    return np.asarray(image)


def plain(value, channels=1, side=4):
    return np.full((channels, side, side), value, np.uint8)


def at(pixels, row, column, across=1, place=0):
    """The pixels of one picture on the sheet."""
    top = GAP + row * HEIGHT + TITLE
    left = GAP + column * (across * SIDE + GAP) + place * SIDE
    return pixels[top : top + SIDE, left : left + SIDE]


def ink(pixels):
    return int((pixels < 128).any(axis=2).sum())


def test_every_picture_stands_in_its_place():
    rows = [
        Row("one", [Tile((plain(10 * n), plain(10 * n + 5)), str(n)) for n in range(1, 4)]),
        Row("two", [Tile((plain(100), plain(105)), "")]),
    ]
    pixels = read(sheet(rows, columns=3))
    assert pixels.shape == (GAP + 2 * HEIGHT, GAP + 3 * (2 * SIDE + GAP), 3)
    for n in range(1, 4):
        assert (at(pixels, 0, n - 1, 2, 0) == 10 * n).all()
        assert (at(pixels, 0, n - 1, 2, 1) == 10 * n + 5).all()
    assert (at(pixels, 1, 0, 2, 1) == 105).all()
    assert (at(pixels, 1, 1, 2, 0) == 255).all()


def test_colours_keep_their_places_and_grey_is_grey():
    red, green, blue = (np.array([[[255]], [[0]], [[0]]], np.uint8)[np.roll(range(3), n)]
                        for n in range(3))  # fmt: skip
    pictures = [red, green, blue, plain(77)]
    pixels = read(sheet([Row("", [Tile((of,), "") for of in pictures])], columns=4))
    for place, of in enumerate([[255, 0, 0], [0, 255, 0], [0, 0, 255], [77, 77, 77]]):
        assert (at(pixels, 0, place) == of).all()


def test_few_pixels_keep_hard_edges_and_many_are_shrunk():
    board = np.kron(np.indices((4, 4)).sum(axis=0) % 2, np.ones((1, 1))) * 255
    small = board[None].astype(np.uint8)
    large = np.kron(board, np.ones((100, 100)))[None].astype(np.uint8)
    pixels = read(sheet([Row("", [Tile((small,), ""), Tile((large,), "")])], columns=2))
    hard = np.kron(board, np.ones((SIDE // 4, SIDE // 4)))
    assert np.array_equal(at(pixels, 0, 0)[:, :, 0], hard)
    shrunk = at(pixels, 0, 1)[:, :, 0].astype(float)
    assert np.abs(shrunk - hard).mean() < 20 and len(np.unique(shrunk)) > 2


def test_titles_and_captions_are_written_beside_the_pictures():
    white = plain(255)
    named = read(sheet([Row("A title", [Tile((white,), "two\nlines")])], columns=1))
    below = GAP + TITLE + SIDE
    assert ink(named[: GAP + TITLE]) > 0 and ink(at(named, 0, 0)) == 0
    one = read(sheet([Row("A title", [Tile((white,), "two")])], columns=1))
    assert ink(named[below:]) > ink(one[below:]) > 0
    silent = read(sheet([Row("", [Tile((white,), "")])], columns=1))
    assert ink(silent) == 0


def test_a_long_caption_stays_out_of_the_next_tile():
    white, long = plain(255), "a caption that is much too long for its tile"
    rows = [Row("", [Tile((white,), long), Tile((white,), "")])]
    pixels = read(sheet(rows, columns=2))
    assert ink(pixels[:, : GAP + SIDE]) > 0
    assert ink(pixels[:, GAP + SIDE + 1 :]) == 0


def test_tiles_beyond_the_columns_are_left_out():
    tiles = [Tile((plain(value),), "") for value in (10, 20, 30)]
    assert sheet([Row("", tiles)], columns=2) == sheet([Row("", tiles[:2])], columns=2)


@pytest.mark.parametrize("others", [0, 1])
def test_a_row_without_tiles_says_so(others):
    rows = [Row("full", [Tile((plain(9),), "x")])] * others + [Row("empty", [])]
    pixels = read(sheet(rows, columns=2))
    named = read(sheet([Row("empty: none", [Tile((plain(255),), "")])], columns=2))
    top = others * HEIGHT
    strip = pixels[top + GAP : top + GAP + TITLE]
    assert ink(strip) > 0 and np.array_equal(strip, named[GAP : GAP + TITLE])
    assert len(pixels) == top + 2 * GAP + TITLE


def test_a_row_below_one_without_tiles_has_no_blank_band():
    full = Row("full", [Tile((plain(9),), "x")])
    pixels, alone = read(sheet([Row("empty", []), full], columns=2)), read(sheet([full], columns=2))
    assert np.array_equal(pixels[GAP + TITLE :], alone)


def test_the_same_rows_give_the_same_bytes():
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (3, 3, 30, 30), dtype=np.uint8)
    rows = [Row("random", [Tile((of,), "caption") for of in pictures])]
    assert sheet(rows, 3) == sheet(rows, 3) != sheet(rows, 4)
