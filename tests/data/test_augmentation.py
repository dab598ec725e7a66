"""Augmentation and mixing against torchvision, image by image, and against plain loops."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import beta, kstest
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as vision

from pipeline.data import augmentation
from pipeline.data.augmentation import DRAWS, ELASTIC_POINTS, augment, changes, mix
from pipeline.params import Augmentation

EVERYTHING = {
    "flip": True,
    "rotation": 30.0,
    "zoom": 0.2,
    "shear": 10.0,
    "shift": 0.1,
    "crop": 0.5,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.2,
    "erasing": 0.5,
}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def noise(count=6, channels=3, side=9):
    """Random images (count, channels, side, side), bytes from 0 to 255."""
    shape = (count, channels, side, side)
    return torch.randint(0, 256, shape, generator=seeded(0), dtype=torch.uint8)


def draws(seed, count):
    """What ``augment`` draws: a dictionary of numbers for each image."""
    table = torch.rand(len(DRAWS), count, generator=seeded(seed)).double()
    return [dict(zip(DRAWS, column, strict=True)) for column in table.T.tolist()]


def between(low, high, draw):
    return low + (high - low) * draw


def either_way(draw):
    return 2 * draw - 1


def naive_box(areas, ratios, area_draw, ratio_draw):
    """Width and height of a box of drawn area; ratio log-uniform where both are at most 1."""
    area = between(*areas, area_draw)
    low, high = math.log(max(ratios[0], area)), math.log(min(ratios[1], 1 / area))
    ratio = math.exp(between(low, high, ratio_draw))
    return math.sqrt(area * ratio), math.sqrt(area / ratio)


# What stays as it is, what is drawn


@pytest.mark.parametrize("images", [noise(), noise().float()], ids=["bytes", "floats"])
def test_no_augmentation_is_no_change_and_no_draw(images):
    generator = seeded(0)
    assert augment(images, Augmentation(), generator) is images
    assert generator.get_state().equal(seeded(0).get_state())


@pytest.mark.parametrize("channels", [1, 3])
def test_bytes_and_floats_give_the_same_float_images_from_0_to_255(channels):
    images = noise(64, channels)
    out = augment(images, Augmentation(**EVERYTHING), seeded(0))
    assert out.dtype == torch.float32 and out.shape == images.shape
    assert out.min() >= -1e-3 and out.max() <= 255 + 1e-3
    floats = images.float()
    assert augment(floats, Augmentation(**EVERYTHING), seeded(0)).equal(out)
    assert floats.equal(images.float()), "the input was changed in place"


def test_a_seed_gives_the_same_bytes_and_another_others():
    first, again, other = (
        augment(noise(), Augmentation(**EVERYTHING), seeded(seed)) for seed in (1, 1, 2)
    )
    assert first.equal(again) and not first.equal(other)


@pytest.mark.parametrize("name", EVERYTHING)
def test_each_range_advances_the_generator_alike(name):
    generator, other = seeded(0), seeded(0)
    augment(noise(), Augmentation(**{name: EVERYTHING[name]}), generator)
    augment(noise(), Augmentation(**EVERYTHING), other)
    assert generator.get_state().equal(other.get_state())


@pytest.mark.parametrize("name", sorted(set(EVERYTHING) - {"flip", "erasing"}))
def test_equal_images_come_out_different(name):
    images = noise(1).expand(8, -1, -1, -1)
    out = augment(images, Augmentation(**{name: EVERYTHING[name]}), seeded(0))
    for k in range(8):
        for other in range(k):
            assert (out[k] - out[other]).abs().max() > 0.1


@pytest.mark.parametrize("at_once", [1, 7, 1000])
@pytest.mark.parametrize("elastic", [0.0, 0.05])
def test_many_batches_are_changed_as_one_after_another(at_once, elastic, monkeypatch):
    monkeypatch.setattr(augmentation, "AT_ONCE", at_once)
    settings = Augmentation(**EVERYTHING, elastic=elastic)
    batches = noise(13, side=8).split([4, 3, 1, 5])
    counts = (len(batch) for batch in batches)
    made = changes(counts, (8, 8), settings, seeded(0), torch.device("cpu"))
    one_by_one = seeded(0)
    for batch, change in zip(batches, made, strict=True):
        assert change(batch).equal(augment(batch, settings, one_by_one))


def test_nothing_waits_for_the_values_of_the_device():
    """The meta device has shapes and no values: whoever asked for one would fail."""
    images = torch.empty(4, 3, 16, 16, dtype=torch.uint8, device="meta")
    labels = torch.empty(4, dtype=torch.int64, device="meta")
    out = augment(images, Augmentation(**EVERYTHING, elastic=0.05), seeded(0))
    assert out.shape == images.shape and out.device.type == "meta"
    for mixup, cutmix in ((1.0, 0.0), (0.0, 1.0)):
        mixed, own, partners, share = mix(out, labels, mixup, cutmix, seeded(0))
        assert mixed.shape == out.shape and own.shape == partners.shape == labels.shape
        assert share.device.type == "cpu"


# Geometry


def test_flips_mirror_about_half_of_the_images_exactly():
    images = noise(200)
    out = augment(images, Augmentation(flip=True), seeded(3))
    mirrored = [draw["flip"] < 0.5 for draw in draws(3, 200)]
    for k, image in enumerate(images.float()):
        assert out[k].equal(vision.horizontal_flip(image) if mirrored[k] else image)
    assert 70 < sum(mirrored) < 130


def test_the_warp_is_the_naive_one():
    """Every output pixel by hand: where is it read in the input, and what is there."""
    geometry = ("flip", "rotation", "zoom", "shear", "shift", "crop")
    settings = Augmentation(**{name: EVERYTHING[name] for name in geometry})
    images = noise(4, 1).float()
    out = augment(images, settings, seeded(5))
    side = images.shape[-1]
    for k, draw in enumerate(draws(5, 4)):
        image = images[k].flip(2) if draw["flip"] < 0.5 else images[k]
        angle = math.radians(30) * either_way(draw["rotation"])
        slant = math.tan(math.radians(10) * either_way(draw["shear"]))
        zoom = [1 + 0.2 * either_way(draw[f"zoom_{axis}"]) for axis in "xy"]
        shift = np.array([0.2 * either_way(draw[f"shift_{axis}"]) for axis in "xy"])
        rotate = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        matrix = rotate @ np.array([[1, slant], [0, 1]]) @ np.diag(zoom)
        width, height = naive_box((0.5, 1), (3 / 4, 4 / 3), draw["crop_area"], draw["crop_ratio"])
        left = between(-1, 1 - 2 * width, draw["crop_x"])
        top = between(-1, 1 - 2 * height, draw["crop_y"])
        for y in range(side):
            for x in range(side):
                point = np.array(
                    [left + 2 * width * (x + 0.5) / side, top + 2 * height * (y + 0.5) / side]
                )
                point = matrix @ point + shift
                column, row = np.clip(((point + 1) * side - 1) / 2, 0, side - 1)
                x0, y0 = int(column), int(row)
                x1, y1 = min(x0 + 1, side - 1), min(y0 + 1, side - 1)
                a, b = column - x0, row - y0
                naive = (
                    image[0, y0, x0] * (1 - a) * (1 - b)
                    + image[0, y0, x1] * a * (1 - b)
                    + image[0, y1, x0] * (1 - a) * b
                    + image[0, y1, x1] * a * b
                )
                assert abs(float(out[k, 0, y, x] - naive)) < 0.01


@pytest.mark.parametrize("name", ["rotation", "shear", "shift"])
def test_affine_maps_are_those_of_torchvision_inside_the_image(name):
    """torchvision's translation says where a pixel goes, ours where it is read."""
    side, images = 32, noise(6, 3, 32).float()
    settings = Augmentation(**{name: EVERYTHING[name]})
    out = augment(images, settings, seeded(1))
    for image, found, draw in zip(images, out, draws(1, 6), strict=True):
        translate = [-settings.shift * side * either_way(draw[f"shift_{axis}"]) for axis in "xy"]
        theirs = vision.affine(
            image,
            angle=settings.rotation * -either_way(draw["rotation"]),
            translate=translate,
            scale=1.0,
            shear=[settings.shear * either_way(draw["shear"]), 0.0],
            interpolation=InterpolationMode.BILINEAR,
        )
        inside = slice(side // 4, -side // 4)
        assert torch.allclose(found[:, inside, inside], theirs[:, inside, inside], atol=0.05)


def test_crops_keep_the_drawn_share_of_the_area_and_lie_evenly_inside_the_image():
    """Images that hold their own coordinates tell where each crop was read."""
    side, count = 16, 4000
    place = (torch.arange(side) + 0.5) / side * 255
    across, down = place.expand(side, -1), place[:, None].expand(-1, side)
    images = torch.stack([across, down, across])
    out = augment(images.expand(count, -1, -1, -1), Augmentation(crop=0.3), seeded(0)) / 255
    middle = side // 2
    width = side * (out[:, 0, middle, middle] - out[:, 0, middle, middle - 1])
    height = side * (out[:, 1, middle, middle] - out[:, 1, middle - 1, middle])
    left = out[:, 0, middle, middle] - width * (middle + 0.5) / side
    top = out[:, 1, middle, middle] - height * (middle + 0.5) / side
    area, ratio = width * height, width / height
    assert area.min() > 0.3 - 1e-3 and area.max() < 1 + 1e-3
    assert ratio.min() > 3 / 4 - 1e-3 and ratio.max() < 4 / 3 + 1e-3
    for start, length in ((left, width), (top, height)):
        assert start.min() > -1e-3 and (start + length).max() < 1 + 1e-3
        free = length < 0.95
        assert kstest(start[free] / (1 - length[free]), "uniform").pvalue > 1e-3
    assert kstest((area - 0.3) / 0.7, "uniform").pvalue > 1e-3
    small = area < 3 / 4  # there every ratio fits in
    assert kstest(torch.log(ratio[small]) / math.log(16 / 9) + 0.5, "uniform").pvalue > 1e-3


# Elastic


def coordinates(side):
    """An image (2, side, side) that holds where it is read, in shares of the side times 255."""
    place = (torch.arange(side) + 0.5) / side * 255
    return torch.stack([place.expand(side, -1), place[:, None].expand(-1, side)])


def displacement(count, side, elastic, seed):
    """By how much each pixel is read elsewhere, in shares of the side: (count, 2, side, side)."""
    here = coordinates(side)
    three = torch.cat([here, here[:1]]).expand(count, -1, -1, -1)
    out = augment(three, Augmentation(elastic=elastic), seeded(seed))
    return (out[:, :2] - here) / 255


def test_elastic_leaves_what_the_others_draw():
    """The same images as without it, but for a distortion of almost nothing."""
    plain = augment(noise(), Augmentation(**EVERYTHING), seeded(3))
    bent = augment(noise(), Augmentation(**EVERYTHING, elastic=1e-9), seeded(3))
    assert torch.allclose(plain, bent, atol=0.05)


def test_elastic_draws_its_field_after_all_others():
    generator, other = seeded(0), seeded(0)
    augment(noise(), Augmentation(elastic=0.05), generator)
    assert not generator.get_state().equal(seeded(0).get_state())
    torch.rand(len(DRAWS), 6, generator=other)
    torch.randn(6, 2, ELASTIC_POINTS, ELASTIC_POINTS, generator=other)
    assert generator.get_state().equal(other.get_state())
    off = seeded(0)
    augment(noise(), Augmentation(rotation=5.0), off)
    assert not off.get_state().equal(other.get_state())


def test_elastic_gives_each_image_a_field_of_its_own():
    images = noise(1).expand(6, -1, -1, -1)
    out = augment(images, Augmentation(elastic=0.05), seeded(0))
    again = augment(images, Augmentation(elastic=0.05), seeded(0))
    assert out.equal(again) and out.dtype == torch.float32
    for k in range(6):
        for other in range(k):
            assert (out[k] - out[other]).abs().max() > 0.1


def test_elastic_moves_control_points_by_its_standard_deviation():
    """Where the grid's inner points lie, both ways apart; at the border nothing outside is seen."""
    step, elastic = 8, 0.01
    side = step * (ELASTIC_POINTS - 1) + 1
    moved = displacement(1500, side, elastic, seed=0)
    inner = slice(step, side - step, step)
    at_points = moved[:, :, inner, inner]
    assert at_points.shape == (1500, 2, ELASTIC_POINTS - 2, ELASTIC_POINTS - 2)
    assert at_points.std(dim=0).sub(elastic).abs().max() < 0.1 * elastic
    assert at_points.mean(dim=0).abs().max() < 0.1 * elastic
    assert kstest(at_points.flatten() / elastic, "norm").pvalue > 1e-3
    columns = at_points.flatten(1)
    apart = torch.corrcoef(columns.T) - torch.eye(columns.shape[1])
    assert apart.abs().max() < 0.15


def test_elastic_moves_control_points_as_drawn():
    step, elastic = 8, 0.01
    side = step * (ELASTIC_POINTS - 1) + 1
    generator = seeded(7)
    torch.rand(len(DRAWS), 4, generator=generator)
    drawn = torch.randn(4, 2, ELASTIC_POINTS, ELASTIC_POINTS, generator=generator)
    moved = displacement(4, side, elastic, seed=7)[:, :, ::step, ::step]
    inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    assert torch.allclose(moved[inner], elastic * drawn[inner], atol=1e-4)


def test_elastic_is_smooth():
    """Neighbouring pixels are moved nearly alike: the field bends slowly, without a jump."""
    side, elastic = 65, 0.01
    moved = displacement(20, side, elastic, seed=1)[:, :, 6:-6, 6:-6]
    between_points = (side - 1) / (ELASTIC_POINTS - 1)
    for axis in (2, 3):
        slope = moved.diff(dim=axis)
        bend = slope.diff(dim=axis)
        assert slope.abs().max() < 10 * elastic / between_points
        assert bend.abs().max() < 0.3 * slope.abs().max()


def test_elastic_goes_with_the_other_warps():
    """A shift alone moves all; the field comes on top of it."""
    side, settings = 33, {"shift": 0.1}
    here = coordinates(side)
    images = torch.cat([here, here[:1]]).expand(5, -1, -1, -1)
    shifted = augment(images, Augmentation(**settings), seeded(2))
    both = augment(images, Augmentation(**settings, elastic=0.01), seeded(2))
    inner = slice(8, -8)
    added = ((both - shifted) / 255)[:, :2, inner, inner]
    alone = displacement(5, side, 0.01, seed=2)[:, :, inner, inner]
    assert torch.allclose(added, alone, atol=1e-4)


# Colour


def theirs_in_turn(image, settings, draw):
    """torchvision's four adjustments of one image from 0 to 255, by the factors drawn."""
    image = image / 255
    for name in ("brightness", "contrast", "saturation"):
        factor = 1 + getattr(settings, name) * either_way(draw[name])
        image = getattr(vision, f"adjust_{name}")(image, factor)
    return vision.adjust_hue(image, settings.hue * either_way(draw["hue"])) * 255


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "settings",
    [
        Augmentation(brightness=0.9),
        Augmentation(contrast=0.9),
        Augmentation(saturation=0.9),
        Augmentation(hue=0.5),
        Augmentation(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
    ],
    ids=["brightness", "contrast", "saturation", "hue", "all"],
)
def test_colours_are_those_of_torchvision(settings, channels):
    images = noise(12, channels, 16)
    out = augment(images, settings, seeded(2))
    for image, found, draw in zip(images.float(), out, draws(2, 12), strict=True):
        assert torch.allclose(found, theirs_in_turn(image, settings, draw), atol=0.01)


def test_the_hue_of_pure_colours_and_greys_is_that_of_torchvision():
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 127.5, 255.0])] * 3)  # (27, 3)
    images = corners.T.reshape(3, 1, 27).expand(32, -1, -1, -1)
    settings = Augmentation(hue=0.5)
    out = augment(images, settings, seeded(4))
    for image, found, draw in zip(images, out, draws(4, 32), strict=True):
        assert torch.allclose(found, theirs_in_turn(image, settings, draw), atol=0.01)
    grey = corners.amax(dim=1) == corners.amin(dim=1)
    assert out[..., grey].equal(images[..., grey])


# Erasing


@pytest.mark.parametrize("side", [8, 31])
def test_erasing_fills_the_drawn_rectangle_with_grey(side):
    images = noise(40, 3, side)
    out = augment(images, Augmentation(erasing=0.6), seeded(6))
    for image, found, draw in zip(images.float(), out, draws(6, 40), strict=True):
        if draw["erasing"] < 0.6:
            shares = naive_box((0.02, 0.33), (0.3, 3.3), draw["erased_area"], draw["erased_ratio"])
            width, height = (max(1, round(share * side)) for share in shares)
            left = int(draw["erased_x"] * (side - width + 1))
            top = int(draw["erased_y"] * (side - height + 1))
            image = vision.erase(image, top, left, height, width, torch.tensor(127.5))
        assert found.equal(image)


def test_erasing_takes_its_share_of_the_images_and_of_their_area():
    images = torch.zeros(4000, 1, 64, 64, dtype=torch.uint8)
    erased = augment(images, Augmentation(erasing=0.25), seeded(0)) == 127.5
    area = erased.float().mean(dim=(1, 2, 3))
    assert 0.22 < (area > 0).float().mean() < 0.28
    area = area[area > 0]
    assert 0.015 < area.min() < 0.03 and 0.32 < area.max() < 0.34
    assert area.mean() == pytest.approx((0.02 + 0.33) / 2, abs=0.01)


# Mixing


@pytest.mark.parametrize("shape", [(5, 3, 6, 6), (5, 7)], ids=["images", "latents"])
def test_mixup_adds_up_each_image_and_its_partner(shape):
    images = torch.rand(shape, generator=seeded(0)) * 255
    labels = torch.arange(10, 15)
    mixed, own, partners, share = mix(images, labels, 0.4, 0.0, seeded(1))
    assert own.equal(labels) and sorted(partners.tolist()) == labels.tolist()
    for k, partner in enumerate(partners.tolist()):
        naive = share * images[k] + (1 - share) * images[partner - 10]
        assert torch.allclose(mixed[k], naive, atol=1e-3)


@pytest.mark.parametrize("size", [(8, 8), (9, 13)])
def test_cutmix_shares_labels_by_counted_pixels(size):
    """Each image is its own number, so that every pixel tells whose it is."""
    labels = torch.arange(6)
    images = labels.to(torch.uint8)[:, None, None, None].expand(-1, 3, *size)
    generator, shares = seeded(0), []
    for _ in range(100):
        mixed, own, partners, share = mix(images, labels, 0.0, 1.0, generator)
        moved = partners != own
        foreign = mixed != own[:, None, None, None]
        box = foreign[moved][0, 0]
        assert foreign[moved].eq(box).all() and not foreign[~moved].any()
        assert mixed[moved][:, :, box].eq(partners[moved][:, None, None]).all()
        assert float(share) == pytest.approx(1 - float(box.double().mean()))
        rows, columns = box.any(dim=1), box.any(dim=0)
        assert box.equal(rows[:, None] & columns)
        for marks in (rows, columns):  # in one piece
            assert int(marks.diff().sum()) <= 2
        shares.append(float(share))
    assert images.equal(labels.to(torch.uint8)[:, None, None, None].expand(-1, 3, *size))
    assert min(shares) < 0.2 and max(shares) > 0.95


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_mixup_shares_follow_their_beta_distribution(alpha):
    generator = seeded(0)
    images, labels = torch.zeros(2, 1), torch.arange(2)
    shares = [float(mix(images, labels, alpha, 0.0, generator)[3]) for _ in range(2000)]
    assert kstest(shares, beta(alpha, alpha).cdf).pvalue > 1e-3


def test_cutmix_boxes_lie_anywhere_and_lose_what_is_outside():
    """With alpha 1 and a centre anywhere a side s keeps s - s^2 / 4 on average; s^2 is uniform."""
    generator = seeded(0)
    images = torch.tensor([0.0, 1.0])[:, None, None, None].expand(-1, 1, 32, 32)
    labels, count = torch.arange(2), 3000
    shares, hits, drawn = [], torch.zeros(32, 32), 0
    for _ in range(count):
        mixed, _, partners, share = mix(images, labels, 0.0, 1.0, generator)
        shares.append(float(share))
        if int(partners[0]) == 1:
            hits, drawn = hits + mixed[0, 0], drawn + 1
    assert np.mean(shares) == pytest.approx(1 - (1 / 2 - 1 / 5 + 1 / 48), abs=0.02)
    chance = hits / drawn
    assert (chance - chance.flip(0)).abs().max() < 0.1 and (chance - chance.T).abs().max() < 0.1


def test_with_both_alphas_each_call_draws_one_of_the_two_evenly():
    generator, labels, cut = seeded(0), torch.arange(2), 0
    images = labels.float()[:, None, None, None].expand(-1, 1, 8, 8)
    for _ in range(400):
        mixed = mix(images, labels, 1.0, 1.0, generator)[0]
        cut += int(((mixed == 0) | (mixed == 1)).all())
    unmoved = 0.5  # of two images, half of the permutations swap none
    assert abs(cut / 400 - (0.5 + 0.5 * unmoved)) < 0.1


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 0.4), (1.0, 1.0)])
def test_mixing_is_the_same_for_a_seed_and_draws_alike_for_all_alphas(mixup, cutmix):
    images, labels = noise().float(), torch.arange(6)
    generator, other = seeded(3), seeded(3)
    first = mix(images, labels, mixup, cutmix, generator)
    again = mix(images, labels, mixup, cutmix, seeded(3))
    assert all(one.equal(two) for one, two in zip(first, again, strict=True))
    assert not first[0].equal(mix(images, labels, mixup, cutmix, seeded(4))[0])
    mix(images, labels, 0.0, 7.0, other)
    assert generator.get_state().equal(other.get_state())


def test_extreme_alphas_keep_shares_between_0_and_1():
    generator = seeded(0)
    for alpha in (1e-300, 1e-6, 1e6, 1e300):
        for mixup, cutmix in ((alpha, 0.0), (0.0, alpha)):
            mixed, *_, share = mix(noise(), torch.arange(6), mixup, cutmix, generator)
            assert 0 <= float(share) <= 1 and mixed.isfinite().all()


def test_mixing_without_an_alpha_is_refused():
    with pytest.raises(ValueError, match="alpha"):
        mix(noise(), torch.arange(6), 0.0, 0.0, seeded(0))
