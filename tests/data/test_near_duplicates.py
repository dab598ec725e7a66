"""Near duplicates: what is planted is found, strangers are not, and no pair is forgotten."""

import io
import os
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from pipeline.data import near_duplicates
from pipeline.data.images import decode
from pipeline.data.near_duplicates import ALIKE, find_near_duplicates

KINDS = ("resized", "recompressed", "brighter", "darker", "mirrored", "all")


def photo(rng, width=160, height=120):
    """Smooth colours with shapes and edges of several sizes."""
    image = np.zeros((height, width, 3))
    for side in (3, 6, 12, 24, 48):
        grid = rng.normal(0, 1 / np.sqrt(side), (side, side, 3))
        parts = [Image.fromarray(grid[:, :, c].astype(np.float32)) for c in range(3)]
        image += np.stack([part.resize((width, height)) for part in parts], axis=2)
    image = 128 + 60 * image / image.std()
    return Image.fromarray(image.clip(0, 255).astype(np.uint8))


def changed(image, kind, rng):
    """A copy as other people's programs leave it, anywhere in the range that is promised."""
    quality = 92
    if kind in ("resized", "all"):
        scale = 2 ** rng.uniform(-1 if kind == "all" else -2, 1)
        image = image.resize((round(image.width * scale), round(image.height * scale)))
    if kind in ("brighter", "darker", "all"):
        darker = kind == "darker" or (kind == "all" and rng.random() < 0.5)
        factor = rng.uniform(0.6, 0.9) if darker else rng.uniform(1.1, 1.4)
        image = ImageEnhance.Brightness(image).enhance(factor)
    if kind in ("mirrored", "all"):
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if kind in ("recompressed", "all"):
        quality = int(rng.integers(30, 80))
    return image, quality


def decoded(image, size, quality=92):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return decode(file.getvalue(), size, "crop", 3)


def shares(found, wanted, kinds):
    """The share of the copies of each kind that are found."""
    hits = {kind: [] for kind in KINDS}
    for pair, kind in zip(wanted, kinds, strict=True):
        hits[kind].append(pair in found)
    return {kind: sum(of) / len(of) for kind, of in hits.items()}


def brute_force(pixels):
    """Every pair, with plain loops over the pixels' neighbourhoods."""
    side = min(16, pixels.shape[2])
    vectors = []
    for image in pixels:
        weights = [0.299, 0.587, 0.114] if len(image) == 3 else [1.0]
        grey = sum(weight * channel for weight, channel in zip(weights, image, strict=True))
        grey = Image.fromarray(grey.astype(np.float32))
        small = np.rint(np.array(grey.resize((side, side), Image.Resampling.BOX)))
        sharp = np.empty((side, side))
        for row in range(side):
            for column in range(side):
                rows = [min(max(row + step, 0), side - 1) for step in (-1, 0, 1)]
                columns = [min(max(column + step, 0), side - 1) for step in (-1, 0, 1)]
                sharp[row, column] = small[row, column] - small[np.ix_(rows, columns)].mean()
        vectors.append(sharp)
    found = {}
    for left in range(len(pixels)):
        for right in range(left + 1, len(pixels)):
            for mirrored in (False, True):
                other = vectors[right][:, ::-1] if mirrored else vectors[right]
                alike = np.corrcoef(vectors[left].ravel(), other.ravel())[0, 1]
                if alike >= max(ALIKE, found.get((left, right), (0, 0))[0]):
                    found[left, right] = (alike, mirrored)
    return found


def as_dict(found):
    columns = (found.left, found.right, found.similarity, found.mirrored)
    return {(a, b): (c, d) for a, b, c, d in zip(*(of.tolist() for of in columns), strict=True)}


@pytest.fixture(scope="module")
def planted():
    """Photos, then a changed copy of each of the first: pixels and kinds of change."""
    rng = np.random.default_rng(5)
    photos = [photo(rng) for _ in range(180)]
    kinds = [KINDS[number % len(KINDS)] for number in range(120)]
    copies = [changed(image, kind, rng) for image, kind in zip(photos, kinds, strict=False)]
    originals = [decoded(image, 48) for image in photos]
    return np.stack([*originals, *(decoded(*copy[:1], 48, copy[1]) for copy in copies)]), kinds


def test_planted_copies_are_found_and_strangers_are_not(planted):
    pixels, kinds = planted
    found = as_dict(find_near_duplicates(pixels))
    wanted = [(number, 180 + number) for number in range(len(kinds))]
    assert len(found.keys() & set(wanted)) >= 0.95 * len(wanted)
    assert min(shares(found, wanted, kinds).values()) >= 0.9
    assert not found.keys() - set(wanted)
    mirrored = {pair[0] for pair, (_, mirrored) in found.items() if mirrored}
    assert mirrored <= {n for n, kind in enumerate(kinds) if kind in ("mirrored", "all")}


def test_none_is_forgotten_that_comparing_all_pairs_finds(planted):
    pixels = planted[0][np.r_[0:24, 180:204]]  # too few to have anything in common
    wanted, found = brute_force(pixels), as_dict(find_near_duplicates(pixels))
    assert len(wanted) >= 20
    near = {pair for pair, (alike, _) in wanted.items() if alike > ALIKE + 0.002}
    assert near <= found.keys() <= wanted.keys() | near
    for pair in near:
        assert found[pair] == pytest.approx(wanted[pair], abs=0.002)


def test_chunks_change_nothing(planted, monkeypatch):
    whole = find_near_duplicates(planted[0])
    monkeypatch.setattr(near_duplicates, "CHUNK_PIXELS", 7 * 3 * 48 * 48)
    found = find_near_duplicates(planted[0])
    assert as_dict(found).keys() == as_dict(whole).keys()
    assert found.similarity == pytest.approx(whole.similarity, abs=1e-5)


def test_copies_of_copies_are_one_group():
    rng = np.random.default_rng(0)
    one, other, *rest = rng.integers(0, 256, (122, 3, 16, 16), dtype=np.uint8)
    pixels = np.stack([*[one] * 50, other, one[:, :, ::-1], *[other] * 40, *rest])
    groups = find_near_duplicates(pixels).groups(np.arange(len(pixels)))
    assert np.sort(np.bincount(groups)).tolist() == [*[1] * 120, 41, 51]
    assert len({*groups[:50], groups[51]}) == 1


def families(pictures, copies, noise, side=16):
    """Some pictures, each many times with a little noise, mixed: pixels, and who is whose."""
    rng = np.random.default_rng(3)
    base = rng.integers(30, 226, (pictures, 1, side, side))
    of = rng.permutation(np.repeat(np.arange(pictures), copies))
    change = rng.integers(-noise, noise + 1, (len(of), 1, side, side))
    return (base[of] + change).astype(np.uint8), of


def test_many_pairs_are_bounded_by_the_images_and_all_are_joined(monkeypatch):
    pixels, of = families(pictures=8, copies=150, noise=3)
    every = find_near_duplicates(pixels)
    monkeypatch.setattr(near_duplicates, "MANY", 500)
    some = find_near_duplicates(pixels)
    assert len(every) > 20 * len(pixels) and 500 <= len(some) < 3 * len(pixels)
    assert as_dict(some).items() <= as_dict(every).items()
    for found in (every, some):
        groups = found.groups(np.arange(len(pixels)))
        assert len(np.unique(groups)) == 8 == len({*zip(groups.tolist(), of.tolist(), strict=True)})


@pytest.mark.parametrize(("noise", "side"), [(3, 16), (15, 16), (25, 16), (3, 8), (10, 8)])
def test_bits_leave_out_none_that_is_alike(noise, side, monkeypatch):
    pixels, _ = families(pictures=60, copies=10, noise=noise, side=side)
    found = find_near_duplicates(pixels)
    monkeypatch.setattr(near_duplicates, "SPREAD", 1000)
    assert as_dict(find_near_duplicates(pixels)) == as_dict(found)


@pytest.mark.torture
def test_the_worst_sets_take_bounded_memory_and_time():
    """A few pictures again and again, and pictures that are so simple that many are alike."""
    rng = np.random.default_rng(0)
    stripes = np.repeat(rng.integers(0, 256, (40_000, 1, 1, 8), dtype=np.uint8), 8, axis=2)
    for pixels in (families(pictures=40, copies=1_000, noise=3)[0], stripes):
        started = time.process_time()
        tracemalloc.start()
        try:
            found = find_near_duplicates(pixels)
            most = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert len(found) < near_duplicates.MANY + 3 * len(pixels)
        assert most < 250e6
        assert time.process_time() - started < 120


def test_what_all_images_have_in_common_makes_them_no_copies(planted):
    pixels, kinds = planted
    rim = np.zeros((48, 48), dtype=bool)
    rim[4:-4, 4:-4] = True
    framed = np.where(rim, 128 + (pixels.astype(int) - 128) // 3, 0).astype(np.uint8)
    found = as_dict(find_near_duplicates(framed))
    wanted = {(number, 180 + number) for number in range(len(kinds))}
    assert len(wanted & found.keys()) >= 0.9 * len(wanted)
    assert len(found.keys() - wanted) <= 2


def test_pictures_without_detail_are_nobodys_copies():
    plain = np.full((30, 1, 20, 20), 7, dtype=np.uint8)
    ramp = np.broadcast_to(np.arange(20, dtype=np.uint8), (30, 1, 20, 20))  # less than a grey level
    assert len(find_near_duplicates(plain)) == 0
    assert len(find_near_duplicates(np.concatenate([plain, ramp // 8]))) == 0


def test_a_few_pixels_are_too_few_to_tell():
    pixels = np.random.default_rng(0).integers(0, 256, (400, 1, 7, 7), dtype=np.uint8)
    assert len(find_near_duplicates(np.concatenate([pixels, pixels]))) == 0


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_images(count):
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, 32, 32), dtype=np.uint8)
    found = find_near_duplicates(np.repeat(pixels, count, axis=0))
    assert as_dict(found) == ({(0, 1): (pytest.approx(1, abs=1e-5), False)} if count == 2 else {})
    assert found.groups(np.arange(count)).tolist() == [0] * count


def test_small_digits_are_not_taken_for_one_another():
    from sklearn.datasets import load_digits

    pixels = (load_digits().images[:, None] / 16 * 255).round().astype(np.uint8)
    assert len(find_near_duplicates(pixels)) == 0


SETS = {
    "cats_dogs/cats_dogs.zip": (".jpg", 500),
    "lfw_pairs/lfw_faces.zip": (".jpg", 1000),
    "omniglot/images_background_small1.zip": (".png", 2700),
}


@pytest.mark.shared
@pytest.mark.parametrize(
    ("path", "size"),
    [(path, size) for path in SETS for size in ((28, 105) if "omniglot" in path else (32, 64))],
)
def test_of_each_kind_copies_of_real_images_are_found(path, size):
    root = Path(os.environ.get("SHARED_DATA", Path(__file__).parents[2] / "../shared")) / "data"
    if not (root / path).exists():
        pytest.skip(f"the development data is not at {root}")
    ending, most = SETS[path]
    rng = np.random.default_rng(2)
    with zipfile.ZipFile(root / path) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(ending))
        files = [archive.read(names[n]) for n in rng.permutation(len(names))[:most]]
    kinds = [KINDS[number % len(KINDS)] for number in range(240)]
    pictures = [Image.open(io.BytesIO(file)).convert("RGB") for file in files[: len(kinds)]]
    copies = [changed(image, kind, rng) for image, kind in zip(pictures, kinds, strict=True)]
    pixels = np.stack(
        [
            *(decode(file, size, "crop", 3) for file in files),
            *(decoded(image, size, quality) for image, quality in copies),
        ]
    )
    found = as_dict(find_near_duplicates(pixels)).keys()
    wanted = [(number, len(files) + number) for number in range(len(kinds))]
    assert min(shares(found, wanted, kinds).values()) >= 0.95
    pictures = {(left, right) for left, right in found if right < len(files)}  # that are not one
    assert len(pictures) <= 0.01 * len(files)
