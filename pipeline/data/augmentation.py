"""Random changes of training images: batched tensor operations, each image by its own draw.

Draws are made on the CPU and only values of size (B,) or (B, side), and the fields of elastic
distortions, go to the images' device, so that a seed gives the same changes everywhere and the
device is never waited for. What is made of them is made for many batches at once: for one, these
short operations take longer than its images.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.data.rows import together
from pipeline.params import Augmentation

WHITE = 255.0
GREY = 127.5
LUMA = (0.2989, 0.587, 0.114)  # weights of red, green and blue in grey, as torchvision has them
CROP_RATIOS = (3 / 4, 4 / 3)
ERASED_AREAS = (0.02, 0.33)
ERASED_RATIOS = (0.3, 3.3)
ELASTIC_POINTS = 5  # a side of the grid of displacements between which is interpolated
AT_ONCE = 4096  # images whose changes are drawn together

# All are drawn each time, in this order, so that no setting changes what another one draws.
DRAWS = (
    *("flip", "rotation", "shear", "zoom_x", "zoom_y", "shift_x", "shift_y"),
    *("crop_area", "crop_ratio", "crop_x", "crop_y"),
    *("brightness", "contrast", "saturation", "hue"),
    *("erasing", "erased_area", "erased_ratio", "erased_x", "erased_y"),
)

Draws = dict[str, Tensor]  # each (N,) in [0, 1)
Range = tuple[float, float]


@dataclass(frozen=True)
class Change:
    """What is to be done to each image of a batch, on the images' device.

    Attributes:
        values: by name, those of what is to be done: ``mirrored`` (B, 1, 1, 1) bool; ``matrix``
            (B, 2, 3), from points of the output to those of the input, in [-1, 1]; the factors
            ``brightness``, ``contrast`` and ``saturation`` and the turn ``hue``, (B, 1, 1, 1);
            ``rows`` (B, H) and ``columns`` (B, W) bool, of a rectangle to erase.
        points: of the output, as x, y and 1, (1, H * W, 3); for the matrix.
        bend: displacements beside the matrix, (B, 2, h, w) standard normal, on the CPU.
        elastic: their size, in sides of the image.
    """

    values: dict[str, Tensor]
    points: Tensor
    bend: Tensor | None
    elastic: float

    def __call__(self, pixels: Tensor) -> Tensor:
        """Images (B, C, H, W) of bytes, or floats from 0 to 255, changed; float32."""
        values = self.values
        if "mirrored" in values:  # while a pixel may still be a byte
            pixels = torch.where(values["mirrored"], pixels.flip(3), pixels)
        images = pixels.to(torch.float32)
        if "matrix" in values:
            images = self._warp(images)
        images = self._jitter(images)
        if "rows" in values:
            inside = values["rows"][:, None, :, None] & values["columns"][:, None, None, :]
            images = images.masked_fill(inside, GREY)
        return images

    def _warp(self, images: Tensor) -> Tensor:
        """One bilinear resampling; what is outside repeats the border."""
        count, size = len(images), list(images.shape[2:])
        # as torch's affine_grid, which makes the points anew each time
        grid = self.points.expand(count, -1, -1).bmm(self.values["matrix"].transpose(1, 2))
        grid = grid.view(count, *size, 2)
        if self.bend is not None:
            bend = functional.interpolate(self.bend, size, mode="bicubic", align_corners=True)
            (bend,) = together([bend], images.device)  # made on the CPU: the same everywhere
            grid = grid + 2 * self.elastic * bend.permute(0, 2, 3, 1)
        return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)

    def _jitter(self, images: Tensor) -> Tensor:
        """Brightness, contrast, saturation and hue, in this order."""
        values = self.values
        if "brightness" in values:
            images = (images * values["brightness"]).clamp_(0, WHITE)
        if "contrast" in values:
            mean = _grey(images).mean(dim=(1, 2, 3), keepdim=True)
            images = torch.lerp(mean, images, values["contrast"]).clamp_(0, WHITE)
        if images.shape[1] == 1:
            return images
        if "saturation" in values:
            images = torch.lerp(_grey(images), images, values["saturation"]).clamp_(0, WHITE)
        if "hue" in values:
            images = _turn_hue(images, values["hue"])
        return images


def changes(
    counts: Iterable[int],
    size: tuple[int, int],
    settings: Augmentation,
    generator: torch.Generator,
    device: torch.device,
) -> Iterator[Change]:
    """What to do to the images of batches, by draws from the ranges of ``settings``.

    Args:
        counts: images of each batch; taken until they come to ``AT_ONCE``, before the first
            change is given.
        size: height and width of the images.
        settings: the ranges, not all of them off.
        generator: as for ``augment``.
        device: of the images.
    """
    points, grid = _points(size, device), (ELASTIC_POINTS, ELASTIC_POINTS)
    for block in _blocks(counts):
        drawn, bends = [], []
        for count in block:
            drawn.append(torch.rand(len(DRAWS), count, generator=generator))
            if settings.elastic:
                bends.append(torch.randn(count, 2, *grid, generator=generator))
        draws = dict(zip(DRAWS, torch.cat(drawn, dim=1), strict=True))
        values = {
            name: together([of], device)[0].split(block)
            for name, of in _values(draws, settings, size).items()
        }
        for place in range(len(block)):
            bend = bends[place] if bends else None
            mine = {name: of[place] for name, of in values.items()}
            yield Change(mine, points, bend, settings.elastic)


def augment(pixels: Tensor, settings: Augmentation, generator: torch.Generator) -> Tensor:
    """Change each image of a batch by its own draw from the ranges of ``settings``.

    In this order: a flip; one bilinear resampling for rotation, zoom, shear, shift, crop and an
    elastic distortion (Simard, Steinkraus and Platt, ICDAR 2003); brightness, contrast, saturation
    and hue as in torchvision's ``ColorJitter`` (the last two leave a single channel alone); random
    erasing (Zhong et al., AAAI 2020) to mid grey. What a resampling reads from outside the image
    repeats its border.

    Args:
        pixels: (B, C, H, W) with C of 1 or 3, uint8, or float from 0 to 255.
        settings: the ranges; where all are off, ``pixels`` come back as they are.
        generator: of the CPU; it advances alike under all settings but off, and further with
            ``elastic``.

    Returns:
        (B, C, H, W) float32 from 0 to 255, on the device of ``pixels``.
    """
    if settings.off:
        return pixels
    height, width = pixels.shape[2:]
    (change,) = changes([len(pixels)], (height, width), settings, generator, pixels.device)
    return change(pixels)


def mix(
    images: Tensor, labels: Tensor, mixup: float, cutmix: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mix each image of a batch with a random partner of the same batch.

    mixup (Zhang et al., ICLR 2018) adds up images by a share drawn from Beta(alpha, alpha);
    cutmix (Yun et al., ICCV 2019, eq. 1 and 2) puts a box of the partner's in, whose area is one
    minus such a share before it is clipped to the image. Share and box are one draw for the whole
    batch. Cross-entropy is ``share`` times that of the image's label, the rest the partner's.

    Args:
        images: (B, C, H, W); for mixup alone any (B, ...).
        labels: (B,).
        mixup: alpha of mixup, 0 is off.
        cutmix: alpha of cutmix, 0 is off; where neither is, each call draws one of the two evenly.
        generator: of the CPU; it advances alike whatever the alphas.

    Returns:
        Images as float32; labels as given; the partners' labels (B,); the share of the image's
        own label, a scalar on the CPU, for cutmix counted in whole pixels after clipping.

    Raises:
        ValueError: both alphas are 0.
    """
    if mixup <= 0 and cutmix <= 0:
        raise ValueError("mix needs an alpha above 0")
    partner = torch.randperm(len(images), generator=generator)
    partner = partner.to(images.device, non_blocking=True)
    coin, quantile, x, y = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
    boxed = cutmix > 0 and (mixup <= 0 or coin < 0.5)
    share = _beta(cutmix if boxed else mixup, quantile)
    images = images.to(torch.float32)
    partners = images[partner]
    if boxed:
        side = math.sqrt(1 - share)
        rows, columns = _cut(y, side, images.shape[2]), _cut(x, side, images.shape[3])
        images = images.clone()
        images[:, :, rows, columns] = partners[:, :, rows, columns]
        area = (rows.stop - rows.start) * (columns.stop - columns.start)
        share = 1 - area / (images.shape[2] * images.shape[3])
    else:
        images = torch.lerp(partners, images, share)
    return images, labels, labels[partner], torch.tensor(share)


def _beta(alpha: float, quantile: float) -> float:
    """Beta(alpha, alpha) at a quantile: one uniform draw makes one, the same on every device."""
    from scipy.special import betaincinv  # most runs do without it

    # there shares are 0 or 1, or a half; beyond, some versions give NaN or none at all
    alpha = min(max(alpha, 1e-6), 1e12)
    return float(betaincinv(alpha, alpha, quantile))


def _cut(centre: float, length: float, side: int) -> slice:
    """An interval given in shares of ``side``, clipped to it and rounded to whole pixels."""
    ends = (centre - length / 2, centre + length / 2)
    start, stop = (round(side * min(max(end, 0.0), 1.0)) for end in ends)
    return slice(start, stop)


def _blocks(counts: Iterable[int]) -> Iterator[list[int]]:
    """Counts one after another, until they come to ``AT_ONCE``."""
    block, held = [], 0
    for count in counts:
        block.append(count)
        held += count
        if held >= AT_ONCE:
            yield block
            block, held = [], 0
    if block:
        yield block


def _values(draws: Draws, settings: Augmentation, size: tuple[int, int]) -> dict[str, Tensor]:
    """``Change.values`` of N images."""
    made: dict[str, Tensor] = {}
    if settings.flip:
        made["mirrored"] = _per_image(draws["flip"] < 0.5)
    ranges = settings.rotation, settings.zoom, settings.shear, settings.shift, settings.elastic
    if any(ranges) or settings.crop < 1:
        made["matrix"] = _matrix(settings, draws)
    for name in ("brightness", "contrast", "saturation"):
        if largest := getattr(settings, name):
            made[name] = _per_image(1 + largest * _either_way(draws[name]))
    if settings.hue:
        made["hue"] = _per_image(settings.hue * _either_way(draws["hue"]))
    if settings.erasing:
        made["rows"], made["columns"] = _erased(settings.erasing, draws, size)
    return made


def _points(size: tuple[int, int], device: torch.device) -> Tensor:
    """See ``Change.points``."""
    same = torch.eye(2, 3)[None]
    grid = functional.affine_grid(same, [1, 1, *size], align_corners=False).view(1, -1, 2)
    return together([torch.cat([grid, torch.ones_like(grid[:, :, :1])], dim=2)], device)[0]


def _matrix(settings: Augmentation, draws: Draws) -> Tensor:
    """Rotation, zoom, shear, shift and crop together, (N, 2, 3).

    A point of the output, in [-1, 1], goes into the crop's box, then through
    rotation x shear x zoom, then is shifted, by its own amount too where there is a bend; there
    the input is read.
    """
    angle = math.radians(settings.rotation) * _either_way(draws["rotation"])
    slant = torch.tan(math.radians(settings.shear) * _either_way(draws["shear"]))
    zoom_x = 1 + settings.zoom * _either_way(draws["zoom_x"])
    zoom_y = 1 + settings.zoom * _either_way(draws["zoom_y"])
    cos, sin = torch.cos(angle), torch.sin(angle)
    axis_x = torch.stack([cos, sin]) * zoom_x  # (2, N)
    axis_y = torch.stack([cos * slant - sin, sin * slant + cos]) * zoom_y
    # the shift is in sides of the image, which are 2 long
    shift = 2 * settings.shift * _either_way(torch.stack([draws["shift_x"], draws["shift_y"]]))

    origin = shift
    if settings.crop < 1:
        areas = (settings.crop, 1.0)
        width, height = _box(areas, CROP_RATIOS, draws["crop_area"], draws["crop_ratio"])
        centre_x = (1 - width) * _either_way(draws["crop_x"])
        centre_y = (1 - height) * _either_way(draws["crop_y"])
        origin = axis_x * centre_x + axis_y * centre_y + shift
        axis_x, axis_y = axis_x * width, axis_y * height
    return torch.stack([axis_x, axis_y, origin], dim=2).transpose(0, 1)


def _grey(images: Tensor) -> Tensor:
    """(B, 1, H, W) luma; a single channel is its own."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def _turn_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue of HSV, whose circle is 1 round, by ``turn`` (B, 1, 1, 1).

    The way back is that of HSV to RGB in one formula: a channel is the value less the chroma
    times a trapezoid of the distance between its own hue and the pixel's.
    """
    red, green, blue = images.split(1, dim=1)
    value, lowest = images.amax(dim=1, keepdim=True), images.amin(dim=1, keepdim=True)
    chroma = value - lowest
    divisor = chroma.clamp(min=torch.finfo(chroma.dtype).tiny)  # grey has no hue, and any will do
    hue = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )  # (B, 1, H, W) in sixths of the circle, from -1 to 5
    hue += 6 * turn
    offsets = torch.arange(5, 0, -2, device=hue.device).view(1, 3, 1, 1)  # red, green, blue
    distance = torch.remainder(hue + offsets, 6).sub_(2).abs_()
    return value - chroma * (2 - distance).clamp_(0, 1)


def _erased(probability: float, draws: Draws, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """A random rectangle of some images, by its rows (N, H) and columns (N, W)."""
    width, height = _box(ERASED_AREAS, ERASED_RATIOS, draws["erased_area"], draws["erased_ratio"])
    chosen = draws["erasing"] < probability
    rows = _span(height, draws["erased_y"], size[0]) & chosen[:, None]
    return rows, _span(width, draws["erased_x"], size[1])


def _span(share: Tensor, position: Tensor, side: int) -> Tensor:
    """Marks (N, side) of an interval of ``share`` of the side, a pixel at least, that fits in."""
    length = (share * side).round().clamp(1, side)
    start = torch.floor(position * (side - length + 1))
    place = torch.arange(side)
    return (place >= start[:, None]) & (place < (start + length)[:, None])


def _box(areas: Range, ratios: Range, area: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor]:
    """Width and height, as shares of the image's, of boxes drawn by area and aspect ratio.

    The area is uniform; the ratio is log-uniform among those with which the area fits into the
    image, so that nothing is drawn twice and no area is lost.
    """
    area = areas[0] + (areas[1] - areas[0]) * area
    limit = -torch.log(area)  # both sides are at most 1 when |log ratio| is at most this
    lowest = torch.clamp(-limit, min=math.log(ratios[0]))
    highest = torch.clamp(limit, max=math.log(ratios[1]))
    ratio = torch.exp(torch.lerp(lowest, highest, ratio))
    return torch.sqrt(area * ratio), torch.sqrt(area / ratio)


def _either_way(draw: Tensor) -> Tensor:
    """From [0, 1) to [-1, 1)."""
    return 2 * draw - 1


def _per_image(values: Tensor) -> Tensor:
    """(N,) as (N, 1, 1, 1)."""
    return values[:, None, None, None]
