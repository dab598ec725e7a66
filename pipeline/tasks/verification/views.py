"""Several views of an image, whose mean encoding is steadier than one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

TURN = math.radians(10)
STRETCH = 1.12
COS, SIN = math.cos(TURN), math.sin(TURN)
# where the view's point (x, y) is read from the image: rows of a 2 x 2 matrix
MATRICES = (
    (1.0, 0.0, 0.0, 1.0),
    (COS, -SIN, SIN, COS),
    (COS, SIN, -SIN, COS),
    (STRETCH, 0.0, 0.0, 1.0),
    (1.0, 0.0, 0.0, STRETCH),
    (1 / STRETCH, 0.0, 0.0, 1 / STRETCH),
    (STRETCH, 0.0, 0.0, STRETCH),
)


def views(pixels: Tensor, count: int) -> Iterator[Tensor]:
    """The image as it is, turned ten degrees either way, narrowed, lowered, enlarged and shrunk.

    Args:
        pixels: (B, C, H, W), 0 to 255; what a view reads from outside repeats the border.
        count: how many of the seven.

    Returns:
        each view of all images in turn, (B, C, H, W); the first is ``pixels`` itself.
    """
    yield pixels
    for a, b, c, d in MATRICES[1:count]:
        matrix = torch.tensor([[a, b, 0.0], [c, d, 0.0]], device=pixels.device)
        grid = functional.affine_grid(
            matrix.expand(len(pixels), 2, 3), list(pixels.shape), align_corners=False
        )
        yield functional.grid_sample(
            pixels.to(torch.float32), grid, padding_mode="border", align_corners=False
        )


def mean_encoding(encode: Callable[[Tensor], Tensor], pixels: Tensor, count: int) -> Tensor:
    """The mean of what ``encode`` makes of ``count`` views, (B, D)."""
    return torch.stack([encode(view) for view in views(pixels, count)]).mean(dim=0)
