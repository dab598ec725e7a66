"""Test images that tell methods apart or defeat them all, and what each method is most sure of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.collect import Answers
from pipeline.report import words
from pipeline.report.page.document import (
    Block,
    Fold,
    Method,
    Picture,
    Pictures,
    Section,
    Sheet,
    Small,
    note,
    paragraph,
)
from pipeline.report.page.report import Report

MOST = 24  # pictures in a row of them
MOST_ANSWERS = 2  # wrong answers named below a picture

Bools = NDArray[np.bool_]


def missed(report: Report) -> Section | None:
    """Images that no method ever gets right, and those that one alone gets right; last shots."""
    shots = report.compare.shots[-1]
    answers = {
        method: [run.answers for run in report.runs(method, shots) if run.answers is not None]
        for method in report.compare.methods
    }
    if not all(answers.values()):
        return None
    blocks: list[Block] = [*_by_all(report, answers)]
    if len(answers) > 1:
        blocks += _by_all_but_one(report, answers)
    title = f"Hard test images, with {words.budget(shots)}"
    return Section("missed", title, blocks)


def always_wrong(right: Mapping[str, Bools]) -> Bools:
    """Which of N images no method gets right in any seed; ``right`` is (seeds, N) a method."""
    never: Bools = np.logical_not(np.concatenate(list(right.values())).any(axis=0))
    return never


def right_in_most(right: Bools) -> Bools:
    """Which of N images more than half of the seeds get right; ``right`` is (seeds, N)."""
    most: Bools = np.asarray(2 * right.sum(axis=0) > len(right))
    return most


def _by_all(report: Report, answers: Mapping[str, list[Answers]]) -> Iterator[Block]:
    found = np.flatnonzero(always_wrong({m: _right(of) for m, of in answers.items()}))
    every = [answer for of in answers.values() for answer in of]
    who = "all methods" if len(answers) > 1 else "the method"
    yield paragraph(
        f"{words.images(len(found))} {_of(len(found))} missed by {who}, in every seed"
        f"{_shown(len(found))}. Below each its class, and what it is taken for most often."
        if len(found)
        else f"No test image is missed by {who} in every seed."
    )
    yield from _pictures(report, found, every)


def _by_all_but_one(report: Report, answers: Mapping[str, list[Answers]]) -> Iterator[Block]:
    most = {method: right_in_most(_right(of)) for method, of in answers.items()}
    once = np.sum(list(most.values()), axis=0) == 1
    if not once.any():
        yield paragraph("No test image is told right by one method alone.")
        return
    for method in answers:
        found = np.flatnonzero(once & most[method])
        if not len(found):
            continue
        others = [answer for name, of in answers.items() if name != method for answer in of]
        summary = (Method(method), Small(f"alone gets {words.images(len(found))} right"))
        yield Fold(summary, [*_pictures(report, found, others)])
    yield note("Right alone: in most of its seeds, as no other method is in most of theirs; below "
               "each image its class, and what the others take it for.")  # fmt: skip


def _right(answers: Sequence[Answers]) -> Bools:
    right: Bools = np.stack([of.labels == of.predicted for of in answers])
    return right


def _of(number: int) -> str:
    return "is" if number == 1 else "are"


def _shown(number: int) -> str:
    return f"; {MOST} of them, evenly taken, are shown" if number > MOST else ""


def _pictures(
    report: Report, found: NDArray[np.intp], answers: Sequence[Answers]
) -> Iterator[Block]:
    """At most ``MOST``, evenly taken, so that no class takes all the room."""
    if not len(found):
        return
    taken = found[np.linspace(0, len(found) - 1, min(len(found), MOST)).round().astype(int)]
    names = [answers[0].images[place] for place in taken]
    yield Pictures(
        [
            Picture(png, _class(report, int(answers[0].labels[place])),
                    _wrong(report, int(place), answers))
            for png, place in zip(report.album.small(names), taken, strict=True)
        ]
    )  # fmt: skip


def _wrong(report: Report, place: int, answers: Sequence[Answers]) -> list[str]:
    """The commonest wrong answers for an image, by how many runs give them."""
    given = Counter(
        int(of.predicted[place]) for of in answers if of.predicted[place] != of.labels[place]
    )
    several = len(answers) > 1
    return [
        f"→ {_class(report, number)}{f' ×{times}' if several else ''}"
        for number, times in sorted(given.items(), key=lambda of: (-of[1], of[0]))[:MOST_ANSWERS]
    ]


def _class(report: Report, number: int) -> str:
    return report.evidence.tested.classes[number]


def examples(report: Report) -> Section:
    """The pictures that the test stages made of each method's surest answers."""
    said, blocks = report.evidence.tested.examples, []
    for number, (run, png) in enumerate(report.evidence.examples.items()):
        summary = (Method(run.method), Small(f"{run.shots} shots, seed {run.seed}"))
        shows = f"Test images that {run.method} is most sure of, rightly and wrongly"
        blocks.append(Fold(summary, [Sheet(png, shows)], open=number == 0))
    notes = [note(said)] if said else []
    return Section("examples", "What each method is most sure of", [*notes, *blocks])
