import pytest

from pipeline.evaluation.statistics import Comparison, Contrast, Estimate
from pipeline.report import words

ACCURACY = "test/accuracy"


def test_metrics_in_words():
    assert words.title("test/5_way_1_shot_accuracy") == "5-way 1-shot accuracy"
    assert words.column("test/20_way_5_shot_accuracy") == "20-way 5-shot"
    assert words.column("test/official_accuracy") == "Official runs"
    assert words.named("test/official_accuracy") == "one-shot accuracy on the official runs"
    assert words.named("test/roc_auc") == "ROC AUC"
    assert words.named(ACCURACY) == "test accuracy"
    assert words.in_table("test/eer") == "EER"
    assert words.in_table("test/nll") == "log loss"
    assert words.episodes_of(ACCURACY) is None
    assert [words.listed(["a", "b", "c"][:n]) for n in (1, 2, 3)] == ["a", "a and b", "a, b and c"]


def test_numbers_in_words():
    assert words.difference(ACCURACY, -0.0124) == "−1.2"
    assert words.difference(ACCURACY, 0.006) == "+0.6"
    assert words.difference(ACCURACY, -0.0001) == "0.0"
    assert words.difference("test/nll", -0.0124) == "−0.012"
    assert words.value(ACCURACY, 0.93449) == "93.4"
    assert words.with_unit(ACCURACY, 0.93449) == f"93.4{words.FIXED}%"
    assert words.with_unit("test/nll", 1.5) == f"1.500{words.FIXED}nats"
    assert words.interval(ACCURACY, Estimate(0.95, 0.88, 1.02, 3)) == "88.0 to 100.0"
    assert words.interval("test/nll", Estimate(1.5, -0.1, 3.1, 3)) == "0.000 to 3.100"
    assert [words.p_value(p) for p in (0.0, 0.0123, 0.123, 1.0, None)] == [
        *("< 0.001", "0.012", "0.12", "1", "–"),
    ]
    assert words.count(1234567) == "1\u202f234\u202f567"
    assert [words.seconds(s) for s in (None, 0.0, 0.0251, 3.44, 99.94, 1234.5)] == [
        *("–", "0.0", "0.025", "3.4", "99.9", "1\u202f234"),
    ]
    assert [words.epoch_of(*of) for of in (([], []), ([3], [20]), ([3, 4], [5, 7]))] == [
        *("–", "3 of 20", "3.5 of 6"),
    ]


def test_an_interval_of_no_width_is_no_spread():
    assert words.interval(ACCURACY, Estimate(0.655, 0.655, 0.655, 3)) == "no spread"
    assert words.interval(ACCURACY, Estimate(0.655, None, None, 1)) == "–"
    assert words.difference_interval(ACCURACY, 0.0, 0.0) == "no spread"
    assert words.difference_interval(ACCURACY, -0.03, 0.006) == "−3.0 to +0.6"


def test_numbers_of_images_in_words():
    assert words.budgets([1]) == "1 image a class"
    assert words.budgets([5, 20]) == "5 and 20 images a class"
    assert words.budgets([5, 10, "all"]) == "5 and 10 images a class and all training images"
    assert words.budgets(["all"]) == "all training images"


def test_test_units_in_words():
    assert words.units(1, "image") == "1 test image"
    assert words.units(1200, "class") == "1\u202f200 test classes"
    assert words.population("both", ["official run"]) == "new seeds and new official runs"
    assert words.population("both", ["image", "class", "image"]) == (
        "new seeds, new test images and new test classes"
    )
    assert words.population("units", ["image"]).startswith("new test images for these trained")
    assert words.population("seeds", ["image"]) == "new seeds on this test set alone"


def row_of(**found):
    usual = {"difference": -0.012, "low": -0.03, "high": 0.006, "p_value": 0.1, "wins": 1, "n": 3}
    comparison = Comparison(**(usual | found))
    return Contrast("breakdown", 10, ACCURACY, comparison, 0.12, "no difference detected")


def test_findings_in_words():
    said = words.finding(row_of(), "finetune").replace(words.FIXED, " ")
    assert said == (
        "breakdown vs finetune: −1.2 points (95 % interval −3.0 to +0.6, adjusted p = 0.12, "
        "1 of 3 seeds won)"
    )
    one = Contrast("b", 10, ACCURACY, Comparison(0.01, None, None, None, 1, 1), None, "better")
    assert words.finding(one, "a") == "b vs a: +1.0 points (1 seed)"


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (-0.0213, -0.0003, "−2.1 to −0.03"),
        (-0.00001, 0.0131, "−0.0 to +1.3"),
        (0.0, 0.0131, "0.0 to +1.3"),
        (0.0, 0.0, words.NO_SPREAD),
    ],
)
def test_a_bound_tells_on_which_side_of_zero_it_lies(low, high, said):
    assert words.difference_interval(ACCURACY, low, high) == said


def test_what_could_have_been_detected_in_words():
    found = row_of(detectable=0.0323, seeds_needed=11)
    assert words.resolution(found, 0.02, "image") == (
        "Detectable: 3.2 points. To detect 2.0 points, as far as 3 seeds can tell, about 11 seeds "
        "are needed."
    )
    assert words.resolution(row_of(detectable=0.012, seeds_needed=2), 0.02, "image").endswith(
        "2.0 points would have been detected."
    )
    assert words.resolution(row_of(detectable=1.3, seeds_needed=None), 0.02, "class") == (
        "Detectable: more than 100\u00a0points. To detect 2.0 points, as far as 3 seeds can tell, "
        "no number of seeds would do: more test classes are needed."
    )
    assert words.resolution(row_of(), 0.02, "image") == ""


def test_numbers_of_seeds_are_said_as_roughly_as_they_are_known():
    said = {n: words.enough(n, 3, "") for n in (3, 4, 99, 104, 137, 200, 201, 1000)}
    assert said == {
        3: "about 3 seeds are needed (there are 3)",
        4: "about 4 seeds are needed",
        99: "about 99 seeds are needed",
        104: "about 100 seeds are needed",
        137: "about 140 seeds are needed",
        200: "about 200 seeds are needed",
        201: "more than 200 seeds are needed",
        1000: "more than 200 seeds are needed",
    }
