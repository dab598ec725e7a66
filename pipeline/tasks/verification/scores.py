"""What runs of verification are worth on the test split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np

from pipeline.evaluation.collect import Scored, Tested, UnitInterval
from pipeline.evaluation.verification import (
    ACCURACY,
    EER,
    PAIR_METRICS,
    ROC_AUC,
    TAR_AT_FAR,
    EpisodeAnswers,
    Interval,
    PairAnswers,
    Sample,
    VerificationPredictions,
    accuracy_name,
    bootstrap,
    contributions,
    pairs_needed,
    read_predictions,
    verification_metrics,
)
from pipeline.params import Compare
from pipeline.records import OFFICIAL, RunId
from pipeline.report import words

EVEN = 0.005  # as far from a half, a share of pairs is called a half
PAIRS_NOTE = (
    "A pair's score is the probability, as a run has it, that both images show one class (one "
    "person, one character). A pair is accepted, that is taken for one class, where its score is "
    "at least a threshold."
)
NOTES = {
    ACCURACY: "Accuracy: the share of pairs that are judged rightly. Each run's threshold is the "
    "one that judges most of the validation pairs rightly; no test pair has a say in it. The other "
    "metrics of pairs need no chosen threshold.",
    ROC_AUC: "ROC AUC: how often a pair of one class scores higher than a pair of two. Guessing "
    f"gives 50{words.FIXED}%.",
    EER: "EER, the equal error rate: at the threshold where both kinds of error are as frequent, "
    "the share of pairs of two classes that are accepted, and of pairs of one class that are "
    f"rejected. Guessing gives 50{words.FIXED}%.",
    TAR_AT_FAR[0.01]: f"TAR at FAR 1{words.FIXED}%, the true accept rate at a false accept rate: "
    f"with a threshold so strict that at most 1{words.FIXED}% of the pairs of two classes are "
    "accepted, the share of the pairs of one class that still are. Guessing gives as much as the "
    "false accept rate.",
    TAR_AT_FAR[0.001]: f"TAR at FAR 0.1{words.FIXED}%: the same, so strict that at most "
    f"0.1{words.FIXED}% of them are accepted.",
    accuracy_name(OFFICIAL): "Official runs: the share of images whose class is picked among those "
    "of their run, shown one image of each.",
}
UNEVEN_NOTE = (
    " Where the validation pairs have another share of each kind than the test pairs, that "
    "threshold is not the best for these, and the commoner answer to all of them may do better."
)
EXAMPLES = (
    "Test pairs of one run, the surest first. P(same) is a pair's score; from the run's threshold "
    "on, the pair is taken for one class."
)
DRAWN_NOTE = (
    "N-way k-shot: the share of images whose class is picked among N, shown k images of each."
)


def read(path: Path, compare: Compare) -> Scored:
    """Read and score a run's answers; see ``pipeline.tasks.scores.Scores``.

    The primary metric is the accuracy on the official runs where there are any, else that on
    pairs, else that on the first set of episodes.

    Raises:
        InputError: the file is missing or damaged.
    """
    answers = read_predictions(path)
    values = verification_metrics(answers)
    headline = _headline(answers)
    tested = Tested(
        answers.tested,
        headline,
        _lede(answers),
        _notes(answers, headline),
        examples=EXAMPLES if len(answers.pairs.labels) else "",
    )
    return Scored({metric: values[metric] for metric in headline}, tested, contributions(answers))


def intervals(compare: Compare) -> list[UnitInterval]:
    """Bootstrap intervals over the test classes, and over the official runs.

    See ``pipeline.evaluation.verification.bootstrap``.

    Raises:
        InputError: a predictions file is missing or damaged.
    """
    samples = {
        (method, shots): _samples(method, shots, compare)
        for method in compare.methods
        for shots in compare.shots
    }
    return [
        row
        for (method, shots), own in samples.items()
        for row in _intervals(
            method,
            shots,
            own,
            {} if method == compare.reference else samples[compare.reference, shots],
        )
    ]


def _headline(answers: VerificationPredictions) -> tuple[str, ...]:
    """The metrics that there are: of official runs, of pairs, of drawn episodes."""
    drawn = [name for name in answers.episodes if name != OFFICIAL]
    official = [OFFICIAL] if OFFICIAL in answers.episodes else []
    pairs = PAIR_METRICS if len(answers.pairs.labels) else ()
    return (*map(accuracy_name, official), *pairs, *map(accuracy_name, drawn))


def _notes(answers: VerificationPredictions, headline: tuple[str, ...]) -> tuple[str, ...]:
    """What the metrics are."""
    known = [NOTES[metric] for metric in headline if metric in NOTES]
    if ACCURACY in headline:
        place = known.index(NOTES[ACCURACY])
        if _commoner(answers.pairs) >= 0.5 + EVEN:
            known[place] += UNEVEN_NOTE
        known.insert(place, PAIRS_NOTE)
    drawn = [m for m in headline if m not in NOTES and words.episodes_of(m)]
    few = [note for metric in headline if (note := _too_few(answers.pairs, metric))]
    return (*known, *([DRAWN_NOTE] if drawn else []), *few)


def _too_few(pairs: PairAnswers, metric: str) -> str:
    """What a metric's interval leaves out for want of test pairs of two classes, if it does."""
    different, needed = int(np.sum(pairs.labels == 0)), pairs_needed(metric)
    if different >= needed:
        return ""
    return (
        f"{words.column(metric)} hangs on the few highest scores among pairs of two classes: "
        f"{words.count(different)} such test pairs are too few to show how far it depends on which "
        f"classes are tested ({words.count(needed)} would do), so that its interval tells of new "
        "seeds alone; with one seed it has none."
    )


def _samples(method: str, shots: int | str, compare: Compare) -> dict[str, Sample]:
    """By metric, in the order of the headline."""
    runs = [RunId(method, shots, seed).predictions for seed in compare.seeds]
    answers = [read_predictions(path) for path in runs]
    found = bootstrap(answers)
    return {metric: found[metric] for metric in _headline(answers[0])}


def _intervals(
    method: str, shots: int | str, samples: dict[str, Sample], reference: dict[str, Sample]
) -> Iterator[UnitInterval]:
    for metric, sample in samples.items():
        own = sample.interval()
        row = UnitInterval(method, shots, metric, *astuple(own))
        row = replace(row, note=_why_none(metric, own))
        if metric in reference:
            found = sample.minus(reference[metric]).interval()
            row = replace(
                row,
                difference=found.mean,
                difference_low=found.low,
                difference_high=found.high,
            )
        yield row


def _why_none(metric: str, found: Interval) -> str:
    """Why a metric has no interval over the test units, where it has none."""
    if found.low is not None:
        return ""
    if found.units < 2:
        return "no interval: one test unit shows no spread"
    return f"no interval: fewer than {pairs_needed(metric)} test pairs of two classes"


def _lede(answers: VerificationPredictions) -> str:
    """What is tested, and how often a guess is right."""
    said = [f"{_pairs(answers.pairs)}."] if len(answers.pairs.labels) else []
    if answers.episodes:
        asked, guesses = zip(*(_episodes(*of) for of in answers.episodes.items()), strict=True)
        said.append(f"{words.listed(asked)}: a guess is right {words.listed(guesses)} of the time.")
    return " ".join(said)


def _pairs(pairs: PairAnswers) -> str:
    images = len(np.union1d(pairs.left, pairs.right))
    classes = len(np.union1d(pairs.left_class, pairs.right_class))
    commoner = _commoner(pairs)
    guess = (
        "a guess is right half of the time"
        if commoner < 0.5 + EVEN
        else f"the commoner answer is right {_percent(commoner)} of the time"
    )
    return (
        f"{words.count(len(pairs.labels))} pairs of {words.count(images)} images of "
        f"{words.count(classes)} classes that no method was trained on: {guess}"
    )


def _commoner(pairs: PairAnswers) -> float:
    """The share of the pairs that are of the commoner kind."""
    share = float(pairs.labels.mean())
    return max(share, 1 - share)


def _episodes(name: str, answers: EpisodeAnswers) -> tuple[str, str]:
    """A set of episodes, and how often a guess is right."""
    count = len(np.unique(answers.episode))
    ways = 1 + int(answers.labels.max())  # each class of an episode is asked for
    drawn = name != OFFICIAL
    what, of = (
        ("episode", words.episodes(name)) if drawn else ("official run", f"{ways}-way one-shot")
    )
    plural = "" if count == 1 else "s"
    return f"{words.count(count)} {what}{plural} of {of}", _percent(1 / ways)


def _percent(share: float) -> str:
    return f"{round(100 * share, 1):g}{words.FIXED}%"
