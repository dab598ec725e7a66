"""Near duplicates among the images, as pictures: whether they are copies is the reader's to say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

from pipeline.data.sheet import Row, Tile, sheet
from pipeline.evaluation.collect import NearPair
from pipeline.params import Task
from pipeline.report import words
from pipeline.report.page.document import Block, Fold, Sheet, note, paragraph, warning
from pipeline.report.page.report import Report

COLUMNS = 4
MOST = 3 * COLUMNS  # pairs of a kind that are shown
APART, MIXED, REST = "in two splits", "of two classes", "of one class in one split"
FOUND_BY = (
    "Found by the correlation of their details at 16 pixels a side, given below each pair: "
    "resized, recompressed, brighter, darker and mirrored copies reach 0.96."
)

Kinds = Mapping[str, Sequence[NearPair]]


def blocks(report: Report) -> Iterator[Block]:
    """How many near duplicates there are, and pictures of them, the worst kind first."""
    near = report.evidence.near
    if not near:
        yield paragraph("No two images were found to be changed copies of one picture.")
        return
    kinds: dict[str, list[NearPair]] = {APART: [], MIXED: [], REST: []}
    for pair in near:
        kinds[_kind(pair)].append(pair)
    yield from _said(kinds, report.params.task)
    shown = {kind: pairs[:MOST] for kind, pairs in kinds.items() if pairs}
    pixels = report.album.read([name for pair in chain(*shown.values()) for name in pair.images])
    tiles = (
        Tile(both, _caption(pair))
        for pair, *both in zip(chain(*shown.values()), pixels[::2], pixels[1::2], strict=True)
    )
    rows = []
    for kind, pairs in shown.items():
        of_kind = [next(tiles) for _ in pairs]
        title = f"{words.capital(kind)}: {_pairs(len(kinds[kind]))}"
        starts = range(0, len(pairs), COLUMNS)
        rows += [Row("" if n else title, of_kind[n : n + COLUMNS]) for n in starts]
    shows = "Pairs of images that were found to be changed copies of one picture"
    yield Fold(
        ("Pictures of near duplicates",), [Sheet(sheet(rows, COLUMNS), shows), note(FOUND_BY)]
    )


def _kind(pair: NearPair) -> str:
    if pair.splits[0] != pair.splits[1]:
        return APART
    return MIXED if pair.classes[0] != pair.classes[1] else REST


def _said(kinds: Kinds, task: Task) -> Iterator[Block]:
    """A warning where a copy is tested on, or taught as something else."""
    if kinds[APART]:
        advice = " data.near_duplicates: group keeps such images in one split."
        yield warning(
            f"{_pairs(len(kinds[APART]))} of near duplicates {_stand(kinds[APART])} in two splits: "
            f"if they are copies, {_too_good(kinds[APART])} scores are too good, since what was "
            "learnt from one is asked of the other."
            f"{advice if task == 'classification' else ''}"
        )
    if kinds[MIXED]:
        yield warning(
            f"{_pairs(len(kinds[MIXED]))} of near duplicates {_stand(kinds[MIXED])} under two "
            "classes; if they are copies, one of the labels is wrong."
        )
    if kinds[REST]:
        yield paragraph(
            f"{_pairs(len(kinds[REST]))} of near duplicates {_stand(kinds[REST])} within one class "
            "and split."
        )


def _too_good(apart: Sequence[NearPair]) -> str:
    """Which scores: a copy in the validation images alone alters no test score."""
    spoilt = {"test" if "test" in pair.splits else "validation" for pair in apart}
    return " and ".join(sorted(spoilt))


def _pairs(count: int) -> str:
    return "One pair" if count == 1 else f"{words.count(count)} pairs"


def _stand(pairs: Sequence[NearPair]) -> str:
    return "stands" if len(pairs) == 1 else "stand"


def _caption(pair: NearPair) -> str:
    """Class and split of both, and how alike they are."""
    classes, splits = (
        both[0] if both[0] == both[1] else f"{both[0]} | {both[1]}"
        for both in (pair.classes, pair.splits)
    )
    mirrored = ", mirrored" if pair.mirrored else ""
    return f"{classes}\n{splits}: {pair.similarity:.3f}{mirrored}"
