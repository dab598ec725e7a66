"""Near duplicates: one picture twice, resized, recompressed, brighter, darker or mirrored.

Exact copies have equal bytes; these do not. What they share is detail: each image is reduced to 16
pixels a side and its own 3 x 3 mean is taken off, then what most images of the set have in common,
such as the rim of a lens; two images are near duplicates if what is left correlates. Brightness
and contrast cancel out, compression and resizing alter finer detail, and two photographs of one
thing do not correlate there.

Of photographs, faces and drawn characters, up to 3000 of 32 pixels or more, at least 95 % are found
of the copies that are 0.6 to 1.4 times as bright (93 % at 1.5 times, where highlights burn out),
resized to a quarter to twice the size, recompressed from JPEG quality 30 on, or mirrored, and of
those that are all of this, resized to half to twice the size. With them come false pairs, less
than 1 for 100 images. Of 16 to 31 pixels resized and mirrored copies are found less often, of 8 to
15 little but darker ones; copies that are cropped, turned or drawn upon are not looked for.

Candidates come from locality-sensitive hashing by random hyperplanes (Charikar, "Similarity
estimation techniques from rounding algorithms", STOC 2002), so that time grows with the number of
images, not with that of their pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse import csgraph

SIDE = 16  # of the reduced image
LEAST_SIDE = 8  # smaller images are too much alike to tell
ALIKE = 0.93  # correlation from which two images count as one
ALIKE_SMALL = 0.99  # of images of less than SIDE pixels, which say less
TABLES = 24  # of hashes; of a million images 68 % of pairs just ALIKE share one, 93 % from 0.96 on
SPARE_BITS = 3  # of a hash, beyond a bucket for each image: strangers seldom meet
WINDOW = 16  # images after one in its bucket that it is compared with; copies of one form a chain
MANY = 2**20  # pairs from which on only those are kept that join images not joined before
SPREAD = 5  # standard deviations by which bits may differ more than those of images just ALIKE
BLOCK = 2**16  # pairs whose bits are compared at a time
CHUNK_PIXELS = 2**22  # in memory at a time as floats
COMMON = 50  # images from which on there is something that most have in common
SAMPLED = 2000  # images that it is found by
OWN = 0.1  # share of an image's detail, as an amplitude, that must be its own to tell it by
PLAIN = 0.4  # mean square of detail, in grey levels, below which an image shows nothing

# of red, green and blue in what JPEG keeps in full (ITU-R BT.601): it is coarser with colours
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class NearDuplicates:
    """Pairs of images of which one is a changed copy of the other, by rows of ``images.npy``.

    Attributes:
        left, right: rows (P,), left below right, sorted; exact copies are among them.
        similarity: correlation of details (P,).
        mirrored: whether one is the other's mirror image (P,).
    """

    left: Ints
    right: Ints
    similarity: Floats
    mirrored: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.left)

    def but_within(self, rows: Ints) -> NearDuplicates:
        """All pairs but those of two of these rows, such as images that are repeated on purpose."""
        kept = ~(np.isin(self.left, rows) & np.isin(self.right, rows))
        return NearDuplicates(
            self.left[kept], self.right[kept], self.similarity[kept], self.mirrored[kept]
        )

    def groups(self, known: Ints) -> Ints:
        """Numbers (N,) that images share with their near duplicates, and these with theirs.

        Args:
            known: numbers (N,) of groups that stay together; one of its own for an image alone.
        """
        first = np.unique(known, return_index=True, return_inverse=True)
        left = np.concatenate([self.left, np.arange(len(known))])
        right = np.concatenate([self.right, first[1][first[2]]])
        edges = (np.ones(len(left), dtype=np.int8), (left, right))
        graph = sparse.coo_array(edges, shape=(len(known), len(known)))
        return csgraph.connected_components(graph, directed=False)[1].astype(np.int64)


def find_near_duplicates(pixels: npt.NDArray[np.uint8]) -> NearDuplicates:
    """Find the near duplicates among images, mirror images included.

    An image without any detail, such as an empty page, is nobody's duplicate here, nor is one of
    less than 8 pixels a side. Of many copies of one picture each is paired with some others, which
    ``groups`` joins.

    Args:
        pixels: (N, C, H, W), a memory map perhaps; never read whole.
    """
    side = min(SIDE, *pixels.shape[2:])
    small = np.concatenate([_reduced(chunk, side) for chunk in _chunks(pixels)])  # (N, side, side)
    bits = math.ceil(math.log2(max(2 * len(small), 2))) + SPARE_BITS
    rng = np.random.default_rng(0)
    planes = rng.standard_normal((side * side, TABLES * bits), dtype=np.float32)
    common = _common(small)
    codes, plain = _codes(small, common, planes, bits)
    plain |= side < LEAST_SIDE
    threshold = ALIKE if side >= SIDE else ALIKE_SMALL
    most_bits = _bits_of_alike(TABLES * bits, threshold)
    found = _Found.none(len(small))
    for one, other in _candidates(codes, plain):
        new = found.is_new(one, other)
        one, other = one[new], other[new]
        near = _differing_bits(codes, one, other) <= most_bits
        one, other = one[near], other[near]
        similarity = _similarity(small, common, one, other)
        alike = similarity >= threshold
        found = found.with_more(one[alike], other[alike], similarity[alike])
    return found.near_duplicates()


@dataclass(frozen=True)
class _Found:
    """Pairs that are alike so far, by positions: mirror images come after all images.

    From ``MANY`` on, as where one picture is there thousands of times, only pairs are looked for
    that join what is not joined yet: their number is then bounded by that of the images, and who
    is alike is in one group all the same.

    Attributes:
        images: how many there are, N.
        keys: the pairs as ``first * 2 N + second`` (P,), ascending.
        similarity: of them (P,).
        group: what each image is joined to (N,), once there are many.
    """

    images: int
    keys: Ints
    similarity: Floats
    group: Ints | None

    @classmethod
    def none(cls, images: int) -> _Found:
        """No pair."""
        return cls(images, np.empty(0, np.int64), np.empty(0, np.float32), None)

    def is_new(self, one: Ints, other: Ints) -> npt.NDArray[np.bool_]:
        """Whether candidates, by positions (K,), are still to be looked at."""
        if self.group is not None:
            new: npt.NDArray[np.bool_] = self.group[one] != self.group[other % self.images]
            return new
        if not len(self.keys):
            return np.ones(len(one), dtype=bool)
        keys = one * (2 * self.images) + other
        place = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
        return self.keys[place] != keys

    def with_more(self, one: Ints, other: Ints, similarity: Floats) -> _Found:
        """These and the further pairs, which are new."""
        if not len(one):
            return self
        keys = np.concatenate([self.keys, one * (2 * self.images) + other])
        order = np.argsort(keys, kind="stable")
        every = np.concatenate([self.similarity, similarity])
        more = _Found(self.images, keys[order], every[order], self.group)
        if len(keys) < MANY:
            return more
        known = np.arange(self.images) if self.group is None else self.group
        added = (
            more if self.group is None else _Found(self.images, keys[-len(one) :], similarity, None)
        )
        return replace(more, group=added.near_duplicates().groups(known))

    def near_duplicates(self) -> NearDuplicates:
        """Each pair once, as it is or mirrored, whichever is more similar."""
        one, other = np.divmod(self.keys, max(2 * self.images, 1))
        mirrored = other >= self.images
        other = other % max(self.images, 1)
        left, right = np.minimum(one, other), np.maximum(one, other)
        order = np.lexsort((mirrored, -self.similarity, right, left))
        first = np.ones(len(order), dtype=bool)
        first[1:] = (np.diff(left[order]) != 0) | (np.diff(right[order]) != 0)
        kept = order[first]
        return NearDuplicates(left[kept], right[kept], self.similarity[kept], mirrored[kept])


def _chunks(images: npt.NDArray[np.uint8]) -> Iterator[npt.NDArray[np.uint8]]:
    step = _step(images)
    for start in range(0, max(len(images), 1), step):
        yield images[start : start + step]


def _step(images: npt.NDArray[np.uint8]) -> int:
    """Images of a chunk."""
    return max(1, CHUNK_PIXELS // math.prod(images.shape[1:]))


def _reduced(images: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    """Grey images (N, side, side), each pixel the mean of the area that it stands for."""
    weights = LUMA if images.shape[1] == 3 else np.ones(1, dtype=np.float32)
    grey = np.einsum("nchw,c->nhw", images, weights, dtype=np.float32)
    rows, columns = (_areas(length, side) for length in grey.shape[1:])
    return np.rint(rows @ grey @ columns.T).astype(np.uint8)


def _areas(length: int, parts: int) -> Floats:
    """Weights (parts, length) that average a line over equal parts, pixels shared where cut."""
    ends = np.linspace(0, length, parts + 1)
    pixel = np.arange(length)
    inside = np.minimum(ends[1:, None], pixel + 1) - np.maximum(ends[:-1, None], pixel)
    weights = inside.clip(min=0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _common(small: npt.NDArray[np.uint8]) -> Floats:
    """The median detail (side^2,) of the images that show any; 0 of few."""
    step = max(1, len(small) // SAMPLED)
    details = _detail(small[::step])
    details = details[details.any(axis=1)]
    if len(details) < COMMON:
        return np.zeros(math.prod(small.shape[1:]), dtype=np.float32)
    return np.median(details, axis=0).astype(np.float32)


def _own(small: npt.NDArray[np.uint8], common: Floats) -> Floats:
    """The detail of images (N, side, side) less what is common, flat, of length 1; 0 if plain."""
    detail = _detail(small)
    shown = detail.any(axis=1)
    detail -= common
    length = np.sqrt(np.einsum("nd,nd->n", detail, detail))
    return detail * ((shown & (length >= OWN)) / np.maximum(length, 1e-6))[:, None]


def _detail(small: npt.NDArray[np.uint8]) -> Floats:
    """Images (N, side, side) less their 3 x 3 means, flat (N, side^2), of mean 0 and length 1.

    All zero where there is less than ``PLAIN``.
    """
    images = small.astype(np.float32)
    framed = np.pad(images, ((0, 0), (1, 1), (1, 1)), mode="edge")
    down = framed[:, :-2] + framed[:, 1:-1] + framed[:, 2:]
    means = (down[:, :, :-2] + down[:, :, 1:-1] + down[:, :, 2:]) / 9
    detail = (images - means).reshape(len(images), math.prod(images.shape[1:]))
    detail -= detail.mean(axis=1, keepdims=True)
    square = np.einsum("nd,nd->n", detail, detail)
    shown = square >= PLAIN * detail.shape[1]
    return detail * (shown / np.sqrt(np.maximum(square, 1e-12)))[:, None]


def _codes(
    small: npt.NDArray[np.uint8], common: Floats, planes: Floats, bits: int
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]:
    """Codes (2 N, TABLES), of the images and then of their mirror images; and which are plain.

    A bit says on which side of a plane an image's detail lies.
    """
    weights = (1 << np.arange(bits, dtype=np.uint32))[None, None]
    codes = np.empty((2, len(small), TABLES), dtype=np.uint32)
    plain = np.empty(len(small), dtype=bool)
    start = 0
    for chunk in _chunks(small):
        part = slice(start, start := start + len(chunk))
        both = [_own(images, common) for images in (chunk, chunk[:, :, ::-1])]
        for of, own in zip(codes, both, strict=True):
            sides = (own @ planes > 0).reshape(len(chunk), TABLES, bits)
            of[part] = (sides * weights).sum(axis=2, dtype=np.uint32)
        plain[part] = ~both[0].any(axis=1)
    return codes.reshape(2 * len(small), TABLES), plain


def _candidates(
    codes: npt.NDArray[np.uint32], plain: npt.NDArray[np.bool_]
) -> Iterator[tuple[Ints, Ints]]:
    """Images or mirror images that share a code: positions (K,) of one and of the other.

    One is below the other, and no mirror image. No pair comes twice by one code.
    """
    images = len(plain)
    shown = np.flatnonzero(~np.concatenate([plain, plain]))
    for table in range(TABLES):
        # in a bucket by another code, so that the nearest are neighbours however many it holds
        code, within = codes[shown, table], codes[shown, table - 1]
        order = np.lexsort((within, code))
        code, order = code[order], shown[order]
        for offset in range(1, WINDOW + 1):
            met = np.flatnonzero(code[offset:] == code[:-offset])
            if not len(met):
                break
            one, other = np.sort([order[met], order[met + offset]], axis=0)
            # two mirror images are alike as the images are; an image and its own mirror are one
            kept = (one < images) & (one != other % images)
            yield one[kept], other[kept]


def _bits_of_alike(bits: int, similarity: float) -> float:
    """How many of the bits of two images of this similarity differ at most, but for rare chance."""
    share = math.acos(similarity) / math.pi  # that a plane parts them
    return bits * share + SPREAD * math.sqrt(bits * share * (1 - share))


def _differing_bits(codes: npt.NDArray[np.uint32], one: Ints, other: Ints) -> Ints:
    """In how many bits the codes at two positions differ (K,)."""
    found = np.empty(len(one), dtype=np.int64)
    for start in range(0, len(one), BLOCK):
        part = slice(start, start + BLOCK)
        differing = codes[one[part]] ^ codes[other[part]]
        found[part] = np.bitwise_count(differing).sum(axis=1, dtype=np.int64)
    return found


def _similarity(small: npt.NDArray[np.uint8], common: Floats, one: Ints, other: Ints) -> Floats:
    """The correlation of details (K,) of images, and images or mirror images, by positions."""
    similarity = np.empty(len(one), dtype=np.float32)
    for start in range(0, len(one), _step(small)):
        part = slice(start, start + _step(small))
        mirrored, rows = np.divmod(other[part], len(small))
        others = small[rows]
        others = np.where(mirrored[:, None, None] > 0, others[:, :, ::-1], others)
        own = (_own(of, common) for of in (small[one[part]], others))
        similarity[part] = np.einsum("nd,nd->n", *own)
    return similarity
