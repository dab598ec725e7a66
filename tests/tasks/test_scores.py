"""What is read of a run's predictions, and what is said of the test set, in each task."""

from dataclasses import fields
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.evaluation.collect import UnitInterval
from pipeline.evaluation.verification import bootstrap, read_predictions
from pipeline.params import Task
from pipeline.records import ANSWER_COLUMNS, RunId, write_table
from pipeline.report.words import FIXED, THIN, column
from pipeline.tasks import scores
from tests.report.fake_runs import (
    fake_params,
    verification_params,
    write_runs,
    write_verification_runs,
)

PATH = Path("predictions.csv")
# left class, right class, taken for one class, probability
PAIRS = [("a", "a", 1, 0.9), ("a", "b", 0, 0.2), ("b", "c", 1, 0.8), ("c", "c", 0, 0.4)]
UNEVEN = [*PAIRS, ("d", "e", 0, 0.1)]
RATES = ("test/tar_at_far_0.01", "test/tar_at_far_0.001")
VERIFICATION = scores.BY_TASK["verification"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write_answers(pairs=PAIRS, episodes=()):
    """``episodes`` are (set, episode, label, predicted) of classes named by their positions."""
    rows = [
        ("pairs", "", f"{left}{n}.png", f"{right}{n}!.png", left, right, int(left == right), p, s)
        for n, (left, right, p, s) in enumerate(pairs)
    ]
    for name, of, label, picked in episodes:
        images = (f"{of} {label}.png", f"{of} {picked}!.png")
        row = (*images, f"{of} {label}", f"{of} {picked}", label, picked, 0.5)
        rows.append((name, of, *row))
    write_table(PATH, rows, ANSWER_COLUMNS)


def read(pairs=PAIRS, episodes=()):
    write_answers(pairs, episodes)
    return VERIFICATION.read(PATH, verification_params().compare)


OFFICIAL = [("official", f"run{run}", label, 0) for run in range(2) for label in range(4)]
DRAWN = [("5_way_1_shot", "0", label, label) for label in range(5)]
OF_PAIRS = ("accuracy", "roc_auc", "eer", "tar_at_far_0.01", "tar_at_far_0.001")


def test_there_are_scores_of_every_task():
    assert set(scores.BY_TASK) == set(get_args(Task))


@pytest.mark.parametrize(
    ("pairs", "episodes", "headline"),
    [
        (PAIRS, [], OF_PAIRS),
        (PAIRS, DRAWN, (*OF_PAIRS, "5_way_1_shot_accuracy")),
        (PAIRS, [*DRAWN, *OFFICIAL], ("official_accuracy", *OF_PAIRS, "5_way_1_shot_accuracy")),
        ([], DRAWN, ("5_way_1_shot_accuracy",)),
    ],
)
def test_the_primary_metric_comes_first(pairs, episodes, headline):
    found = read(pairs, episodes)
    named = tuple(f"test/{name}" for name in headline)
    assert found.tested.headline == tuple(found.values) == named
    assert found.tested.primary == named[0]
    assert found.tested.metrics == list(named)


def test_the_values_are_those_of_a_count():
    found = read(PAIRS, [*OFFICIAL, *DRAWN]).values
    assert found["test/accuracy"] == 2 / 4
    # same 0.9, 0.4 against different 0.2, 0.8: three of four comparisons are won
    assert found["test/roc_auc"] == 3 / 4
    assert found["test/official_accuracy"] == 2 / 8
    assert found["test/5_way_1_shot_accuracy"] == 1


def test_the_lede_says_what_a_guess_is_worth():
    assert read(PAIRS, [*OFFICIAL, *DRAWN]).tested.lede.replace(FIXED, " ") == (
        "4 pairs of 8 images of 3 classes that no method was trained on: a guess is right half of "
        "the time. 2 official runs of 4-way one-shot and 1 episode of 5-way 1-shot: a guess is "
        "right 25 % and 20 % of the time."
    )
    assert (
        read(UNEVEN)
        .tested.lede.replace(FIXED, " ")
        .endswith(": the commoner answer is right 60 % of the time.")
    )


def test_every_metric_has_its_note():
    notes = read(PAIRS, [*OFFICIAL, *DRAWN]).tested.notes
    heads = [note.split(":")[0].split(",")[0] for note in notes]
    assert heads == [
        *("Official runs", "A pair's score is the probability", "Accuracy", "ROC AUC", "EER"),
        *(f"TAR at FAR 1{FIXED}%", f"TAR at FAR 0.1{FIXED}%", "N-way k-shot"),
        *(
            f"{column(metric)} hangs on the few highest scores among pairs of two classes"
            for metric in RATES
        ),
    ]
    assert not any("commoner" in note for note in notes)
    assert any("commoner answer" in note for note in read(UNEVEN).tested.notes)
    assert not any("N-way" in note for note in read(PAIRS, OFFICIAL).tested.notes)


@pytest.mark.parametrize(
    ("different", "silent"), [(999, RATES), (1000, RATES[1:]), (9999, RATES[1:]), (10000, ())]
)
def test_a_rate_that_so_few_pairs_cannot_show_is_told_of(different, silent):
    pairs = [("a", "a", 1, 0.9), *(("a", f"b{n}", 0, 0.2) for n in range(different))]
    found = read(pairs)
    told = [note for note in found.tested.notes if "too few to show" in note]
    assert [note.split(" hangs")[0] for note in told] == [column(metric) for metric in silent]
    for note in told:
        assert f" {different:,} such test pairs".replace(",", THIN) in note
    rows = bootstrap([read_predictions(PATH)], draws=20)
    assert {name for name, of in rows.items() if of.interval().low is None} == {*silent}
    assert not {*silent} & found.contributions.keys()


def test_answers_leave_what_is_tested_alone_and_questions_do_not():
    tested = read().tested
    assert read([(a, b, 1 - p, 1 - s) for a, b, p, s in PAIRS]).tested == tested
    assert read(PAIRS[::-1]).tested != tested
    assert read(PAIRS, DRAWN).tested != tested


def test_pairs_of_one_kind_are_refused():
    with pytest.raises(InputError, match=rf"^{PATH}: .*one kind"):
        read(PAIRS[:1])


def test_intervals_are_those_of_the_runs():
    params = verification_params(seeds=(0, 1), shots=(5, "all"))
    write_verification_runs(params, pairs=60)
    rows = VERIFICATION.intervals(params.compare)
    headline = VERIFICATION.read(RunId("siamese", 5, 0).predictions, params.compare).tested.headline
    assert [(row.method, row.shots, row.metric) for row in rows] == [
        (method, shots, metric)
        for method in params.compare.methods
        for shots in (5, "all")
        for metric in headline
    ]
    of = {(row.method, row.metric): row for row in rows if row.shots == 5}
    predictions = [RunId("features", 5, seed).predictions for seed in (0, 1)]
    expected = bootstrap([read_predictions(path) for path in predictions])
    for metric in headline:
        row, reference = of["features", metric], of["siamese", metric]
        own = expected[metric].interval()
        assert (row.mean, row.low, row.high) == (own.mean, own.low, own.high)
        values = [VERIFICATION.read(path, params.compare).values[metric] for path in predictions]
        assert row.mean == pytest.approx(np.mean(values))
        assert row.difference == pytest.approx(row.mean - reference.mean)
        if metric.startswith("test/tar"):
            assert (row.low, row.difference_low) == (None, None)  # of so few pairs
        else:
            assert row.low <= row.high and row.difference_low <= row.difference_high
        assert (reference.difference, reference.difference_low) == (None, None)
        assert row.unit == ("run" if metric == "test/official_accuracy" else "identity")
    assert of["features", "test/official_accuracy"].units == 20


def test_an_interval_has_the_fields_of_its_table():
    assert [field.name for field in fields(UnitInterval)] == [
        *("method", "shots", "metric", "mean", "low", "high", "unit", "units"),
        *("difference", "difference_low", "difference_high", "note"),
    ]


def test_an_interval_that_is_not_there_is_accounted_for():
    params = verification_params()
    write_verification_runs(params)
    rows = VERIFICATION.intervals(params.compare)
    assert all((row.low is None) == (row.note != "") for row in rows)
    notes = {row.metric: row.note for row in rows if row.note}
    assert notes["test/tar_at_far_0.001"] == (
        "no interval: fewer than 10000 test pairs of two classes"
    )


def test_a_verification_run_tells_what_its_classes_and_official_runs_add():
    found = read(PAIRS, [*OFFICIAL, *DRAWN])
    units = {metric: of.unit for metric, of in found.contributions.items()}
    assert units == {
        "test/accuracy": "class",
        "test/roc_auc": "class",
        "test/eer": "group of classes",
        "test/official_accuracy": "official run",
        "test/5_way_1_shot_accuracy": "class",
    }
    for metric, of in found.contributions.items():
        assert of.values.mean() == pytest.approx(found.values[metric])
    assert found.answers is None


def test_a_classification_run_tells_what_its_images_add_and_its_answers():
    params = fake_params(seeds=(0,))
    write_runs(params)
    path = RunId("finetune", 5, 0).predictions
    found = scores.BY_TASK["classification"].read(path, params.compare)
    assert set(found.contributions) == set(found.tested.metrics)
    for metric, of in found.contributions.items():
        assert of.values.mean() == pytest.approx(found.values[metric])
    rows = [line.split(",") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    answers = found.answers
    expected = [(image, int(label), int(predicted)) for image, label, predicted, *_ in rows]
    columns = (answers.images, answers.labels.tolist(), answers.predicted.tolist())
    assert list(zip(*columns, strict=True)) == expected


def test_classification_has_no_intervals_over_what_is_tested():
    params = fake_params(seeds=(0,))
    write_runs(params)
    task = scores.BY_TASK["classification"]
    assert task.intervals(params.compare) == []
    tested = task.read(RunId("finetune", 5, 0).predictions, params.compare).tested
    assert tested.primary == "test/accuracy" and tested.notes == ()
    assert tested.lede.replace(FIXED, " ") == (
        "5 classes, 150 test images. A guess among the classes is right 20.0 % of the time."
    )
    assert [(of.name, of.images) for of in tested.recalls][:2] == [("five", 30), ("six", 30)]
