"""A sheet of pictures in titled rows, as one PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

SIDE = 88  # of a picture on the sheet, in pixels
GAP, TITLE, CAPTION = 10, 24, 30
FONT = 13
PAPER, INK = "white", "#1c1d20"
NONE = "none"


@dataclass(frozen=True)
class Tile:
    """Pictures side by side, uint8 (C, H, W) each, and a caption of one line or two."""

    pictures: Sequence[npt.NDArray[np.uint8]]
    caption: str


@dataclass(frozen=True)
class Row:
    """Tiles under a title; there may be none."""

    title: str
    tiles: Sequence[Tile]


def sheet(rows: Sequence[Row], columns: int) -> bytes:
    """Draw the rows one below another, each ``columns`` tiles wide at most, and encode as PNG.

    Pictures of fewer pixels than they have room for keep hard edges. The same rows give the same
    bytes.
    """
    font = ImageFont.load_default(FONT)
    across = max((len(tile.pictures) for row in rows for tile in row.tiles), default=1)
    width, height = across * SIDE, SIDE + CAPTION
    tall = [TITLE + GAP + (height if row.tiles else 0) for row in rows]
    paper = Image.new("RGB", (GAP + columns * (width + GAP), GAP + sum(tall)), PAPER)
    draw = ImageDraw.Draw(paper)
    for row, top in zip(rows, accumulate(tall, initial=GAP), strict=False):
        draw.text((GAP, top), f"{row.title}{'' if row.tiles else f': {NONE}'}", INK, font)
        for column, tile in enumerate(row.tiles[:columns]):
            left = GAP + column * (width + GAP)
            for place, pixels in enumerate(tile.pictures):
                paper.paste(_picture(pixels), (left + place * SIDE, top + TITLE))
            caption = "\n".join(_shortened(line, width, font) for line in tile.caption.split("\n"))
            draw.text((left, top + TITLE + SIDE), caption, INK, font, spacing=1)
    encoded = io.BytesIO()
    paper.save(encoded, "PNG", optimize=True)
    return encoded.getvalue()


def _picture(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    planes = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    picture = Image.fromarray(np.ascontiguousarray(planes)).convert("RGB")
    hard = picture.height < SIDE
    way = Image.Resampling.NEAREST if hard else Image.Resampling.BILINEAR
    return picture.resize((SIDE, SIDE), way)


def _shortened(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text, cut where it would run into the next tile."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"
