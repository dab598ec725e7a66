import base64
import json
import re
from dataclasses import replace

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.evaluation.statistics import Crossover, CurvePoint
from pipeline.records import RunId, read_json, write_json
from pipeline.report import words
from pipeline.report.page import Made, claims, html
from pipeline.report.page.advice import Advice, advise
from pipeline.report.page.again import MLFLOW
from pipeline.report.page.as_html import rendered
from pipeline.report.page.comparisons import crossover_sentences
from pipeline.report.page.costs import quantity
from pipeline.report.page.document import Document, Figure, Figures, Section
from pipeline.report.page.verdict import answer
from tests.report.fake_runs import (
    MANY_BASELINES,
    MANY_BREAKDOWNS,
    fake_params,
    verification_params,
    write_runs,
    write_verification_runs,
)
from tests.report.made_reports import ACCURACY, made_report, part_of, rows_of, text_of

SPACE = " "  # as `text_of` shows those between thousands


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made_in(folder, params, write=write_runs, **more):
    """A report and its page, made once in a folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write(params, **more)
        report = made_report(params)
        return report, html(report)


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """A comparison of three methods."""
    return made_in(tmp_path_factory.mktemp("usual"), fake_params())


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A comparison of twelve methods."""
    params = fake_params(seeds=(0, 1), breakdowns=MANY_BREAKDOWNS, baselines=MANY_BASELINES)
    return made_in(tmp_path_factory.mktemp("many"), params)


@pytest.fixture(scope="module")
def verified(tmp_path_factory):
    """A comparison of three methods that verify."""
    params = verification_params(seeds=(0, 1))
    folder = tmp_path_factory.mktemp("verified")
    return made_in(folder, params, write_verification_runs, pairs=60)


@pytest.mark.parametrize("made", ["usual", "many", "verified"])
def test_the_page_needs_nothing_beside_it(made, request, tmp_path_factory):
    _, page = request.getfixturevalue(made)
    page = page.replace(f'href="{MLFLOW.replace("&", "&amp;")}"', "", 1)  # to be followed by hand
    for reference in ("http:", "https:", "@import", "<script", "<link", "//cdn", "file:/"):
        assert reference not in page
    assert set(re.findall(r'src="(.{22})', page)) == {"data:image/png;base64,"}
    targets = re.findall(r'(?:href="|url\()(.)', page)
    assert targets and set(targets) == {"#"}
    assert str(tmp_path_factory.getbasetemp()) not in page


@pytest.mark.parametrize("made", ["usual", "many", "verified"])
def test_every_id_is_unique_and_every_reference_has_its_target(made, request):
    _, page = request.getfixturevalue(made)
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', page)) <= set(ids)
    assert set(re.findall(r'aria-labelledby="([^"]+)"', page)) <= set(ids)


@pytest.mark.parametrize("made", ["usual", "many", "verified"])
def test_no_number_has_many_digits_and_no_tag_stays_open(made, request):
    _, page = request.getfixturevalue(made)
    text = text_of(page[: page.index(">params.yaml</summary>")])
    assert not re.search(r"\d\.\d{5}|\d{8}|None|nan\b|\binf\b|\{\}", text)
    for tag in ("table", "details", "section", "ul", "figure", "p"):
        assert len(re.findall(rf"<{tag}[ >]", page)) == page.count(f"</{tag}>")


def test_the_name_of_the_page_says_what_is_compared(usual, many):
    names = [re.search("<title>(.*)</title>", page)[1] for _, page in (usual, many)]
    assert names == [
        "breakdown, finetune and scratch on data/target", "12 methods on data/target"
    ]  # fmt: skip


def test_a_figure_alone_in_its_row_has_its_caption_beside_it(usual):
    report, _ = usual
    one, two = report.panels[0], [replace(report.panels[0], name=name) for name in "ab"]
    for panels, lone in (
        ([[one]], [True]),
        ([[one], [one]], [False] * 2),
        ([[one], [one], [one]], [False, False, True]),
        ([two, [one], two, [one], [one]], [False, True, False, False, False]),
    ):
        figures = Figures([Figure("title", "caption", of) for of in panels])
        document = Document("title", "name", (), [Section("a", "A", [figures])])
        found = re.findall("<figure(.*)>", rendered(document, []))
        assert found == [' class="lone"' * alone for alone in lone]


def test_the_same_report_gives_the_same_bytes(usual, monkeypatch, tmp_path_factory):
    report, page = usual
    monkeypatch.chdir(next(tmp_path_factory.getbasetemp().glob("usual*")))
    assert html(report) == page


def test_the_answer_comes_first_and_says_what_the_verdicts_say(here):
    params = fake_params()
    write_runs(params, diverged=[RunId("scratch", 5, 1)])
    report = made_report(params)
    page = html(report)
    verdict = text_of(part_of(page, "verdict"))
    rows = [row for row in report.findings.contrasts if row.metric == ACCURACY]
    pairs = [pair for pair in report.findings.pairs if "finetune" in (pair.method, pair.other)]
    worst = max(pair.p_adjusted for pair in pairs)
    assert worst < 0.05
    assert verdict.startswith(
        "The verdict With 5 and 20 images a class, use finetune, shown to be better than every "
        f"other method (adjusted p at most {words.p_value(worst)}). "
        "This rests on 3 seeds of every method and 150 test images, and holds for the settings "
        "that each method has here. Besides the training images, "
    )
    assert "3 seeds are few" in verdict
    assert "The risk of a wrong verdict is 5 % for each number of shots, and larger for" in verdict
    for row in rows:
        low, high = (
            words.difference(ACCURACY, b) for b in (row.comparison.low, row.comparison.high)
        )
        assert f"{row.method} vs finetune: " in verdict
        assert f"(95 % interval {low} to {high}, adjusted p" in verdict
        assert f"Detectable: {100 * row.comparison.detectable:.1f} points." in verdict
    assert "The intervals speak of new seeds and new test images." in verdict
    assert "1 run diverged, and counts against the method" in verdict
    assert "scratch, 5 shots, seed 1: head: train/loss was inf in epoch 3" in text_of(page)


def test_where_no_method_is_shown_to_be_best_the_contenders_are_named(here):
    params = fake_params(shots=(10,), baselines=("finetune", "scratch"))
    write_runs(params, diverged=[RunId("breakdown", 10, 1), RunId("breakdown", 10, 2)])
    report = made_report(params)
    p = {(pair.method, pair.other): pair.p_adjusted for pair in report.findings.pairs}
    assert p["breakdown", "finetune"] > 0.05 > p["finetune", "scratch"]
    score = 100 * report.estimate("finetune", 10, ACCURACY).mean
    verdict = text_of(part_of(html(report), "verdict"))
    assert verdict.startswith(
        "The verdict With 10 images a class, no method is shown to be best: finetune has the "
        f"highest mean test accuracy ({score:.1f} %), and breakdown (2 of its 3 runs diverged) is "
        "not shown to be behind it; scratch is behind; take finetune: it loses less than 2.0 "
        "points to any method, and none sees fewer images in training."
    )
    assert "The risk of a wrong verdict is 5 %, for the comparisons with finetune" in verdict


@pytest.mark.parametrize(("seeds", "said"), [((0, 1), True), ((0, 1, 2), False)])
def test_two_seeds_are_said_to_bound_next_to_nothing(here, seeds, said):
    params = fake_params(shots=(10,), seeds=seeds)
    write_runs(params)
    verdict = part_of(html(made_report(params)), "verdict")
    assert ("Intervals from two seeds bound next to nothing." in verdict) == said


TWO = ("finetune", "scratch")


def advice_of(
    shots, ground, use, leaders=(), contenders=("breakdown", "finetune"), behind=(), level=()
):
    return Advice(shots, use, ground, leaders or (use,), contenders, behind, 0.03, level)


@pytest.mark.parametrize(
    ("advice", "expected"),
    [
        (
            [advice_of(5, "open", "finetune"), advice_of(20, "open", "finetune")],
            "With 5 and 20 images a class, no method is shown to be best: finetune has the highest "
            "mean test accuracy each time, and breakdown is not shown to be behind it; use "
            "finetune, or add seeds or test images to know.",
        ),
        (  # who shares mean and cost shares the advice, whatever the order of compare
            [advice_of(5, "open", "finetune", TWO, TWO, (), TWO)],
            "With 5 images a class, no method is shown to be best: finetune and scratch share the "
            "highest mean test accuracy (…); use finetune or scratch, or add seeds or test images "
            "to know.",
        ),
        (
            [advice_of(5, "open", "finetune"), advice_of(20, "open", "breakdown")],
            "With 5 and 20 images a class, no method is shown to be best: finetune with 5 and "
            "breakdown with 20 have the highest mean test accuracy, and none of breakdown and "
            "finetune is shown to be behind; use the one of the highest mean, or add seeds or test "
            "images to know.",
        ),
        (
            [
                advice_of(5, "open", "finetune"),
                advice_of(20, "cheapest", "breakdown", ("finetune",), behind=("scratch",)),
            ],
            "With 5 and 20 images a class, no method is shown to be best: use finetune with 5, by "
            "the mean alone, or add seeds or test images to know; take breakdown with 20: it "
            "loses less than 2.0 points to any method, and none sees fewer images in training.",
        ),
        (
            [
                advice_of(5, "best", "scratch", (), ("scratch",), ("breakdown", "finetune")),
                advice_of(20, "cheapest", "breakdown", ("finetune", "breakdown")),
            ],
            "With 5 images a class, use scratch, shown to be better than every other method (…, "
            "adjusted p at most 0.030). With 20 images a class, no method is shown to be best: "
            "finetune and breakdown share the highest mean test accuracy (…); take breakdown: it "
            "loses less than 2.0 points to any method, and none sees fewer images in training.",
        ),
        (
            [advice_of(5, "best", "finetune", (), ("finetune",), ("scratch",))],
            "With 5 images a class, use finetune, shown to be better than scratch (…, adjusted p "
            "at most 0.030).",
        ),
    ],
)
def test_equal_advice_is_said_once(usual, advice, expected):
    said = answer(usual[0], advice).replace(words.FIXED, " ")
    assert re.sub(r"(test accuracy )?\d\d\.\d %(, 95 % interval [\d.]+ to [\d.]+)?", "…", said) == (
        expected
    )


def test_one_seed_is_said_to_tell_nothing(here):
    params = fake_params(shots=("all",), seeds=(4,))
    write_runs(params)
    page = html(made_report(params))
    verdict = text_of(part_of(page, "verdict"))
    assert (
        "With all training images, one seed cannot tell the methods apart; finetune has" in verdict
    )
    assert "One seed shows no spread between trainings" in verdict
    assert "too few seeds to tell" in verdict and "adjusted p" not in verdict
    assert "for these trained networks alone" in verdict
    assert "No score is marked as best" in text_of(page)


def test_one_method_has_no_comparison(here):
    params = fake_params(breakdowns=(), baselines=("finetune",), shots=(5,))
    write_runs(params)
    page = html(made_report(params))
    assert "finetune was compared with no other method" in text_of(page)
    for section in ("comparison", "claims"):
        assert f'id="{section}"' not in page


def test_a_method_under_another_name_differs_by_nothing_that_was_seen(here):
    params = fake_params(shots=(5,), breakdowns=(), baselines=("finetune", "scratch"))
    write_runs(params)
    for seed in (0, 1, 2):
        same = RunId("finetune", 5, seed).predictions.read_bytes()
        RunId("scratch", 5, seed).predictions.write_bytes(same)
    row = rows_of(part_of(html(made_report(params)), "comparison"))[0]
    assert row["Difference"] == "0.0"
    assert re.fullmatch(r"−(\d\.\d) to \+\1", row["95 % interval"])
    assert (row["Wins"], row["Verdict"]) == ("0 of 3", "no difference detected")


HOSTILE = ("<script>alert(1)</script>", 'a"b', "c&d", "e'f", "<b>")


def test_hostile_names_are_escaped(here):
    params = fake_params()
    write_runs(params, HOSTILE, diverged=[RunId("breakdown", 5, 0)])
    path = "runs/breakdown/shots-5/seed-0/record.json"
    write_json(path, read_json(path) | {"reason": "<img onerror=x>"})
    diagnosis = RunId("breakdown", 5, 0).diagnosis
    write_json(diagnosis, read_json(diagnosis) | {"collapsed": True, "cause": "<img onload=x>"})
    page = html(made_report(params, Made("c0ffee", ("<img src=x>",), "<i>")))
    assert "<script" not in page and "<b>\n" not in page and "<i>" not in page
    assert not re.search(r"<img (onerror|onload|src=x)", page)
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 5
    assert "&lt;img onerror=x&gt;" in page and "&lt;img onload=x&gt;" in page


def test_scores_carry_interval_verdict_and_mark(usual):
    report, page = usual
    rows = rows_of(part_of(page, "scores"))
    assert [row[""] for row in rows] == ["breakdown", "finetune reference", "scratch"] * 2
    assert "<caption>With 20 images a class</caption>" in page
    for row, (method, shots) in zip(
        rows,
        [(m, s) for s in ("5", "20") for m in ("breakdown", "finetune", "scratch")],
        strict=True,
    ):
        found = report.findings.estimates[method][shots][ACCURACY]
        interval = words.interval(ACCURACY, found)
        verdict = "" if method == "finetune" else "worse"
        assert row["Accuracy"] == f"{100 * found.mean:.1f}{interval}{verdict}"
    assert "Higher is better, except for log loss and calibration error." in page
    assert part_of(page, "scores").count('class="best"') == 6  # not the calibration error


def test_controls_are_named_where_they_are_compared(here):
    names = ("finetune", "retrained_head", "features")
    params = fake_params(shots=(5,), baselines=names)
    write_runs(params)
    rows = rows_of(part_of(html(made_report(params)), "scores"))
    assert [row[""] for row in rows][2:] == [
        "retrained_head control: two phases, without a Siamese loss",
        "features control: untrained network",
    ]


def test_panels_stand_in_their_sections_with_title_and_caption(usual):
    _, page = usual
    for group, section in (
        *(("accuracy", "figures"), ("forest", "figures"), ("learning", "shots")),
        *(("gradients", "inside"), ("classes", "classes"), ("variance", "variance")),
    ):
        part = part_of(page, section)
        assert f"<h3>A panel of {group}</h3>" in part and f">{group}</svg>" in part
    training = part_of(page, "training")
    assert "<details><summary>Loss by epoch</summary>" in training
    assert 'role="img" aria-label="A panel of epochs"' in training
    assert "{" not in "".join(re.findall("<figcaption>.*?</figcaption>", page))
    assert "2.0 points either way" in part_of(page, "figures")


def test_crossovers_in_words(usual):
    report, _ = usual
    curve = [CurvePoint(2, -0.1, -0.2, 0.0), CurvePoint(40, 0.1, 0.05, 0.2)]
    found = [
        Crossover("a", ACCURACY, curve, [8.7654], [(2, 4.4449, "finetune"), (20, 40, "a")]),
        Crossover("b", ACCURACY, curve, [], []),
        Crossover("c", ACCURACY, curve, [], [(2, 40, "c")]),
        Crossover("d", ACCURACY, curve, [5, 6.5], [(2, 3, "d"), (9, 9, "d")]),
        Crossover("e", ACCURACY, curve, [4, 12], [(2, 3, "e"), (5, 9, "finetune"), (35, 40, "e")]),
        Crossover("f", ACCURACY, curve, [4, 30], [(2, 3, "f"), (5, 9, "finetune")]),
    ]
    said = crossover_sentences(replace(report, findings=replace(report.findings, crossovers=found)))
    assert ["".join(item.text) for item in said] == [
        "a vs finetune, between 2 and 40 images a class: finetune is ahead from 2 to 4.4; a is "
        "ahead from 20 to 40; all else is undecided. The crossover lies between 4.4 and 20.",
        "b vs finetune, between 2 and 40 images a class: at no number is either shown to be ahead. "
        "The means do not cross.",
        "c vs finetune, between 2 and 40 images a class: c is ahead from 2 to 40. The means do not "
        "cross.",
        "d vs finetune, between 2 and 40 images a class: d is ahead from 2 to 3 and at 9; all else "
        "is undecided. The means cross at about 5 and 6.5, which these runs do not pin down.",
        "e vs finetune, between 2 and 40 images a class: e is ahead from 2 to 3 and from 35 to 40; "
        "finetune is ahead from 5 to 9; all else is undecided. The crossovers lie between 3 and 5 "
        "and between 9 and 35.",
        "f vs finetune, between 2 and 40 images a class: f is ahead from 2 to 3; finetune is ahead "
        "from 5 to 9; all else is undecided. The crossover lies between 3 and 5. The means cross "
        "at about 30, which these runs do not pin down.",
    ]


def test_comparisons_are_folded_but_for_the_primary_metric(many):
    _, page = many
    tables = part_of(page, "comparison")
    assert tables.count("<details open>") == 1 and tables.count("<details>") == 4
    assert tables.index("<details open><summary>Accuracy") < tables.index("<details>")
    assert len(rows_of(tables)) == 11 * 2 * 4 + 2 * 12 * 11 // 2  # and all pairs
    verdict = part_of(page, "verdict")  # 22 findings are folded, too
    assert verdict.count("<details>") == 2 and "Against finetune: " in verdict


def test_sign_flips_stand_beside_from_six_seeds_on(here, usual):
    assert "sign-flip" not in usual[1]
    params = fake_params(shots=(5,), seeds=range(6))
    write_runs(params)
    report = made_report(params)
    part = part_of(html(report), "comparison")
    first = report.findings.contrasts[0].comparison
    assert "sign-flip test" in part
    assert rows_of(part)[0]["p by sign flips"] == words.p_value(first.sign_flip_p)


def test_variance_of_the_primary_metric_is_a_table(usual):
    report, page = usual
    rows = rows_of(part_of(page, "variance"))
    of_accuracy = [of for of in report.findings.variances if of.metric == ACCURACY]
    assert len(rows) == len(of_accuracy) == 3 * 2 + 2 * 2
    first = of_accuracy[0]
    assert rows[0]["Between seeds"] == f"{100 * first.seeds:.1f}"
    assert rows[0]["Between test images"] == f"{100 * first.units:.1f}"
    assert rows[0]["More seeds would take away"] == f"{100 * first.share_of_seeds:.0f}"


def test_claims_stand_beside_what_was_measured(usual):
    report, page = usual
    part = part_of(page, "claims")
    assert part.count("<details open>") == 1 and "With 20 images a class" in part
    rows = rows_of(part)
    assert len(rows) == len(report.findings.claims) == 2 * 7
    for row, claim in zip(rows, report.findings.claims, strict=True):
        assert row["Verdict"] == claim.verdict
    probe, gradients, cheaper = rows[0], rows[2], rows[6]
    assert probe[""] == "A more linearly separable latent than finetune&#39;s"
    assert probe["Measured"].startswith("Linear probe")  # all pairs alike, so the probe decides
    assert gradients["Measured"].endswith("features.0 and embedding")
    assert "goes by the adjusted verdict" in text_of(part)
    found = report.findings.claims[0]
    assert probe["Value"] == f"{100 * found.value:.1f}"
    assert rows[1][""] == "beside it" and rows[1]["Difference"] == f"0.0{words.NO_SPREAD}"
    assert gradients["Verdict"] == "held" and re.fullmatch(r"0\.\d\d", gradients["Value"])
    assert (cheaper["Value"], cheaper["finetune"]) == (f"9{SPACE}000", f"4{SPACE}500")
    assert cheaper["Difference"] == f"+4{SPACE}500" and cheaper["Verdict"] == "did not hold"


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.0001, 0.03, "+0.0 to +3.0"),  # held, though a bound is rounded to zero
        (-0.0001, 0.03, "−0.0 to +3.0"),
        (-0.03, -0.0001, "−3.0 to −0.0"),
        (0.0, 0.03, "0.0 to +3.0"),
        (-0.0002, 0.0003, "−0.0 to +0.0"),  # a spread, if a small one
        (0.015, 0.015, words.NO_SPREAD),
        (None, None, ""),
    ],
)
def test_a_bound_that_is_rounded_to_zero_keeps_its_side(usual, low, high, said):
    report, _ = usual
    claim = replace(report.findings.claims[0], shots=20, difference=0.015, low=low, high=high)
    section = claims.section(replace(report, findings=replace(report.findings, claims=[claim])))
    (table,) = section.blocks[-2].blocks  # of the last shots; an explanation follows
    difference = table.rows[0][4]
    assert (difference.text, difference.below) == (("+1.5",), said)


def test_collapsed_runs_are_warned_of_with_their_cause(here):
    params = fake_params(shots=(5,))
    write_runs(params)
    path = RunId("breakdown", 5, 2).diagnosis
    write_json(path, read_json(path) | {"collapsed": True, "cause": "one direction is left"})
    page = html(made_report(params))
    assert "The latents of 1 run collapsed" in text_of(part_of(page, "verdict"))
    said = text_of(part_of(page, "claims"))
    assert "breakdown, 5 shots, seed 2" in said and "One direction is left" in said


def test_precision_and_recall_of_each_class(usual):
    report, page = usual
    part = part_of(page, "classes")
    assert part.count("<details>") == 2
    rows = rows_of(part)
    assert len(rows) == 2 * 3 * 5
    runs = [
        run for run in report.evidence.runs if (run.id.method, run.id.shots) == ("breakdown", 5)
    ]
    five = [run.answers for run in runs]
    hits = np.mean([np.sum((of.labels == 0) & (of.predicted == 0)) for of in five])
    said = np.mean([np.sum(of.predicted == 0) for of in five])
    assert rows[0][""] == "five" and rows[0]["Test images"] == "30"
    assert rows[0]["Recall"].startswith(f"{100 * hits / 30:.1f}")
    assert rows[0]["Precision"].startswith(f"{100 * hits / said:.1f}")
    assert re.match(r"\d+\.\d\d+\.\d to \d+\.\d", rows[0]["Recall"])


def test_a_class_that_is_never_answered_has_no_precision(here):
    params = fake_params(shots=(5,), seeds=(0,), breakdowns=(), baselines=("finetune",))
    write_runs(params, ("one", "two"))
    path = RunId("finetune", 5, 0).predictions
    lines = path.read_text().splitlines()
    always = [",".join([*line.split(",")[:2], "0", "0.9", "0.1"]) for line in lines[1:]]
    path.write_text("\n".join([lines[0], *always]) + "\n")
    rows = rows_of(part_of(html(made_report(params)), "classes"))
    assert rows[1]["Precision"] == f"{words.NONE}never answered"
    assert rows[1]["Recall"].startswith("0.0")


def test_more_classes_than_a_table_bears_have_none(here):
    params = fake_params(shots=(5,), seeds=(0,))
    write_runs(params, [f"class {c}" for c in range(21)])
    assert "Recall and precision of each class" not in html(replace(made_report(params), panels=[]))


def write_answers(run, answers):
    """Predictions of a run: the answer to each of four images of two classes, true 0 0 1 1."""
    rows = [
        f"{'ab'[label]}/image {n}.png,{label},{answer},{1 - answer}.0,{answer}.0"
        for n, (label, answer) in enumerate(zip((0, 0, 1, 1), answers, strict=True))
    ]
    header = "image,label,predicted,p_a,p_b"
    run.predictions.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


def test_hard_images_are_shown_with_what_they_are_taken_for(here):
    params = fake_params(shots=(5,), seeds=(0, 1, 2))
    write_runs(params, ("a", "b"))
    table = "".join(f"{n},{'aabb'[n]}/image {n}.png,0,a,test,\n" for n in range(4))
    (here / "prepared/images.csv").write_text("row,image,label,class,split,group\n" + table)
    # image 0 is missed by all; image 3 is right for scratch in two of three seeds alone
    for seed in (0, 1, 2):
        write_answers(RunId("breakdown", 5, seed), (1, 0, 1, 0))
        write_answers(RunId("finetune", 5, seed), (1, 0, 1, int(seed == 0)))
        write_answers(RunId("scratch", 5, seed), (1, 0, 0, int(seed > 0)))
    part = part_of(html(made_report(params)), "missed")
    assert "1 image is missed by all methods, in every seed." in part
    pictures = [text_of(item) for item in re.findall("<li>.*?</li>", part)]
    assert pictures == ["a→ b ×9", "b→ a ×5"]
    assert "</i>scratch</span> <small>alone gets 1 image right</small>" in part
    assert part.count("<summary>") == 1
    with pytest.raises(InputError, match=r"^prepared/images.npy: no readable images"):
        (here / "prepared/images.npy").write_bytes(b"\x93NUMPY")
        html(made_report(params))


def test_the_picture_of_every_method_is_in_the_page(here):
    params = fake_params(seeds=(3, 4))
    write_runs(params)
    part = part_of(html(made_report(params)), "examples")
    for method in params.compare.methods:
        picture = RunId(method, 20, 3).examples.read_bytes()
        assert base64.b64encode(picture).decode() in part
    assert part.count("20 shots, seed 3") == 3 == part.count("<img ")


def test_the_data_of_classification(here):
    params = fake_params(shots=(5,), seeds=(0, 1))
    write_runs(params)
    summary = read_json("prepared/summary.json")
    summary["splits"]["train"]["by_class"]["six"] = 7
    write_json("prepared/summary.json", summary | {
        "left_out": 2, "groups": 12, "groups_in_two_splits": 2, "pairs": {"val": {"same": 400}},
    })  # fmt: skip
    part = part_of(html(made_report(params)), "data")
    rows = rows_of(part)
    assert rows[0] == {"": "training", "Images": "87", "Classes": "5", "Images a class": "7 to 20",
                       "Median": "20"}  # fmt: skip
    assert [row[""] for row in rows[3:8]] == ["five", "six", "seven", "eight", "nine"]
    assert rows[4] == {"": "six", "Training": "7", "Validation": "10", "Test": "30"}
    text = text_of(part)
    assert "300 images in all, each 8 × 8 pixels in grey" in text
    assert "the largest has 2.9 times as many training images" in text
    assert "3 groups of images with identical pixels" in text
    assert (
        "12 groups of images; 2 stand in two splits, as data.splits.whole: classes allows." in text
    )
    assert "2 images were left out of the splits (exact duplicates: error)" in text
    assert "same 400" in text


def test_costs_are_summed_by_run_and_shown_by_phase(many):
    report, page = many
    part = part_of(page, "costs")
    totals, phases = part.split("phase by phase")
    methods, shots = report.compare.methods, report.compare.shots
    assert len(rows_of(totals)) == 2 * len(methods) * len(shots)
    for name in ("encoder 1", "encoder 2", "head 5", "round 8", "release", "solve", "end to end"):
        assert f'data-label="Phase">{name}</td>' in phases
    row = next(r for r in rows_of(totals) if r[""] == "layerwise" and r["Shots"] == "5")
    assert row["Images seen in training"] == f"36{SPACE}000"  # eight rounds of 4500 images
    runs = [r for r in report.evidence.runs if (r.id.method, r.id.shots) == ("layerwise", 5)]
    assert row["Seconds"] == f"{np.mean([sum(c.seconds for c in r.costs) for r in runs]):.1f}"


def rows_with(rows, **cells):
    return [row for row in rows if all(row.get(key) == value for key, value in cells.items())]


def test_predicting_is_no_part_of_training(usual):
    report, page = usual
    training, predicting = (
        rows_with(rows_of(of), **{"": "breakdown", "Shots": "5"})[0]
        for of in part_of(page, "costs").split("<caption>Predicting")
    )
    of = [run for run in report.evidence.runs if (run.id.method, run.id.shots) == ("breakdown", 5)]
    assert all([cost.phase for cost in run.costs] == ["encoder", "head"] for run in of)
    seconds = np.mean([sum(cost.seconds for cost in run.costs) for run in of])
    assert training["Seconds"] == f"{seconds:.1f}"
    assert training["Images seen in training"] == f"9{SPACE}000"
    speed = 150 / np.mean([run.prediction.seconds for run in of])
    assert predicting["Images / s"] == f"{speed:.0f}" and predicting["One image, ms"] == "1.2"
    assert predicting["Parameters"] == f"12{SPACE}345" and predicting["Model, MB"] == "0.05"
    assert predicting["Multiply-adds"] == f"67{SPACE}890"


def test_large_numbers_have_three_digits():
    assert [quantity(n).replace(words.FIXED, " ") for n in (999, 999_499, 999_500, 1_236_789)] == [
        *("999", f"999{words.THIN}499", "1 million", "1.24 million"),
    ]
    assert quantity(4.0891e9) == f"4.09{words.FIXED}billion"


def test_convergence_is_the_kept_epoch_and_the_seconds_until_it(usual):
    report, page = usual
    rows = rows_of(part_of(page, "costs").split("phase by phase")[1])
    shown = rows_with(rows, **{"": "breakdown", "Shots": "20", "Phase": "encoder"})[0]
    of = [run for run in report.evidence.runs if (run.id.method, run.id.shots) == ("breakdown", 20)]
    # seeds 0, 1 and 2 have 20, 21 and 22 epochs, of which 11, 11 and 12 are kept
    assert shown["Epoch kept"] == "11.3 of 21"
    share = [11 / 20, 11 / 21, 12 / 22]
    seconds = np.mean([run.costs[0].seconds * n for run, n in zip(of, share, strict=True)])
    assert shown["Seconds until then"] == f"{seconds:.1f}"
    assert rows_with(rows, **{"": "finetune", "Shots": "5"})[0]["Epoch kept"] == "23 of 45"


def test_what_is_solved_for_or_diverged_has_no_convergence(here):
    params = fake_params(
        shots=(5,), breakdowns=(), baselines=("finetune", "features_svm"), seeds=(0, 1)
    )
    write_runs(params)
    path = "runs/finetune/shots-5/seed-1/record.json"
    record = read_json(path)
    phase = record["phases"][0] | {"status": "diverged", "chosen_epoch": 0, "epochs": 0}
    write_json(path, record | {"phases": [phase]})
    page = html(made_report(params))
    rows = rows_of(part_of(page, "costs").split("phase by phase")[1])
    svm, finetune = (rows_with(rows, **{"": name})[0] for name in ("features_svm", "finetune"))
    assert svm["Epoch kept"] == svm["Seconds until then"] == words.NONE
    assert finetune["Epoch kept"] == "23 of 45"
    assert "features_svm control: untrained network solved for" in text_of(
        part_of(page, "fair")
    ) or ("features_svm solved for" in text_of(part_of(page, "fair")))


def test_unequal_inputs_are_named(here):
    params = fake_params()
    write_runs(params)
    assert "read the same bytes" in text_of(html(made_report(params)))
    path = "runs/scratch/shots-20/seed-2/record.json"
    record = read_json(path)
    write_json(path, record | {"inputs": record["inputs"] | {"train": "0" * 32}})
    text = text_of(html(made_report(params)))
    assert "differs at 20 shots, seed 2" in text
    assert "read the same bytes" not in text


def test_budgets_stand_side_by_side(here):
    params = fake_params(shots=(5,), seeds=(0,), budget="matched")
    training = params.training.model_copy(update={"passes": 60})
    params = params.model_copy(update={"training": training})
    write_runs(params)
    part = part_of(html(made_report(params)), "fair")
    row = rows_with(rows_of(part), **{"": "breakdown", "Shots": "5"})[0]
    assert row["Images seen in training"] == f"9{SPACE}000"
    assert "every method sees 60 images for each of its training images" in text_of(part)
    assert "latents of a frozen part are computed once, and count in every epoch" in text_of(part)
    assert "Augmentation, for all methods: none." in part
    assert "the lowest validation loss" in part


def test_how_to_make_it_again(usual, monkeypatch, tmp_path_factory):
    report, _ = usual
    monkeypatch.chdir(next(tmp_path_factory.getbasetemp().glob("usual*")))
    default = fake_params(shots=(5,), baselines=("finetune",))
    changed = (*(f"{name}.py" for name in "abcdef"), "params.yaml")
    made = Made("c0ffee1234567890", changed, "3b7.dir", default, {"numpy": "2.4"})
    part = part_of(html(replace(report, made=made)), "again")
    text = text_of(part)
    assert (
        "Made of commit c0ffee1234567890, with changes that are not in it: a.py, b.py, c.py, "
        "d.py, e.py and 2 more. The commit alone is not enough. The data is 3b7.dir"
    ) in text
    assert (
        "git checkout c0ffee123456 # then put the params.yaml below in its place "
        "# then make the other changes named above make repro"
    ) in text
    assert "experiment siamese-breakdown" in text and "make ui" in text
    rows = {row[""]: row for row in rows_of(part)}
    assert rows["compare.shots"]["Here"] == "[5, 20]" and rows["compare.shots"]["Default"] == "[5]"
    assert rows["methods.scratch"]["Default"] == words.NONE
    assert "recipe: scratch" not in rows and '"recipe": "scratch"' in text_of(
        rows["methods.scratch"]["Here"].replace("&#34;", '"')
    )
    assert rows["cpu"]["Runs"] == "18" and "torch 2.15.0" in rows["cpu"]["Versions"]
    assert "Evaluated with numpy 2.4." in text
    clean = text_of(
        part_of(html(replace(report, made=Made("c0ffee", default=report.params))), "again")
    )
    assert "Made of commit c0ffee, unchanged." in clean and "All parameters are those of" in clean
    assert "git checkout c0ffee make repro" in clean
    tuned = text_of(part_of(html(replace(report, made=Made("c0ffee", ("params.yaml",)))), "again"))
    assert "params.yaml below in its place make repro" in tuned
    outside = text_of(part_of(html(replace(report, made=Made())), "again"))
    assert "It takes this project, the params.yaml below and this data." in outside
    assert "git checkout" not in outside


def test_shuffled_labels_are_warned_of(here):
    params = fake_params(shots=(5,), seeds=(0,))
    write_runs(params)
    assert "were shuffled" not in html(made_report(params))
    write_json(
        "prepared/summary.json", read_json("prepared/summary.json") | {"labels_shuffled": True}
    )
    assert "were shuffled" in part_of(html(made_report(params)), "verdict")


def test_a_page_of_verification_speaks_of_its_primary_metric(verified):
    _, page = verified
    text = text_of(page).replace(words.FIXED, " ")
    assert "3 methods on data/target, 2 seeds. 60 pairs of 120 images of" in text
    assert "2 seeds of every method and 20 official runs" in text
    assert re.search(r"mean one-shot accuracy on the official runs \(\d\d\.\d %\)", text)
    assert "Higher is better, except for EER." in text
    assert "N-way k-shot: " in text and "Recall" not in text and "F1" not in text
    titles = re.findall(r"<summary>([^<]*) <small>points", part_of(page, "comparison"))
    assert [title.replace(words.FIXED, " ") for title in titles] == [
        *("One-shot accuracy on the official runs", "Accuracy", "ROC AUC", "Equal error rate"),
        *("TAR at FAR 1 %", "TAR at FAR 0.1 %", "5-way 1-shot accuracy", "Every pair of methods"),
    ]
    assert "training pairs" in text and "validation pairs" in text
    assert 'id="missed"' not in page
    rows = rows_of(part_of(page, "claims"))
    assert rows[0]["Verdict"] == "not measured" and rows[0]["Value"] == words.NONE


def test_the_page_says_how_much_hangs_on_who_was_tested(verified):
    _, page = verified
    part = part_of(page, "tested")
    assert part.count("<details") == 7 and part.count("<details open>") == 1
    assert "<details open><summary>One-shot accuracy" in part
    text = text_of(part)
    assert "over 20 official runs" in text and "over 30 test classes" in text
    assert "same trained networks" in text and f"2{SPACE}000 times" in text
    # 30 pairs of two classes are too few for either rate
    assert re.findall(
        r"fewer than ([\d ]+) test pairs of two classes", text.replace(SPACE, " ")
    ) == [*("1 000", "10 000")]
    strict = rows_of(part[part.index("FAR\u00a00.1\u00a0%") :])
    assert strict[1][""] == "siamese" and strict[1]["95 % interval"] == words.NONE
    reference = rows_of(part)[1]
    assert [reference[key] for key in ("Difference to siamese", "95 % interval of it")] == [
        "–",
        "–",
    ]


def test_the_data_of_verification_are_a_table_and_not_raw(verified):
    _, page = verified
    part = part_of(page, "data")
    rows = rows_of(part)
    assert [row[""] for row in rows[:3]] == ["training", "validation", "test"]
    shown = [f"1{SPACE}471", "923", "1 to 53", "2", "3.5", f"1{SPACE}100", f"1{SPACE}200"]
    assert all(list(row.values())[1:] == shown for row in rows[:3])
    assert {row[""] for row in rows[3:5]} == {"official runs", "5-way 1-shot"}
    assert "analysis" not in text_of(part)


def test_many_scores_stand_in_two_tables(here):
    params = verification_params(seeds=(0,))
    sets = ("official", "5_way_1_shot", "20_way_1_shot", "5_way_5_shot")
    write_verification_runs(params, pairs=30, episodes=sets)
    part = part_of(html(made_report(params)), "scores")
    heads, f = re.findall(r"<thead>.*?</thead>", part, flags=re.DOTALL), words.FIXED
    assert [re.findall(r'class="n">([^<]+) <', head) for head in heads] == [
        ["Official runs", "5-way 1-shot", "20-way 1-shot", "5-way 5-shot"],
        ["Accuracy", "ROC AUC", "EER", *(f"TAR at FAR{f}{s}{f}%" for s in ("1", "0.1"))],
    ]


def test_two_classes_have_precision_recall_and_f_beta(here):
    params = fake_params(positive="healthy", beta=2.0, shots=(5,))
    write_runs(params, ("canker", "healthy"))
    report = made_report(params)
    part = part_of(html(report), "scores")
    text = text_of(part)
    assert "Precision %Recall %F-beta %" in text
    assert "Precision, recall and F-beta (beta 2) are those of the class healthy." in text
    found = report.findings.estimates["breakdown"]["5"]["test/recall"]
    assert rows_of(part)[0]["Recall"].startswith(f"{100 * found.mean:.1f}")


def test_the_default_run_of_the_tests_is_json(usual):
    """What the page says of parameters is YAML that reads back as they are."""
    from ruamel.yaml import YAML

    report, page = usual
    listing = page[page.index("<summary>params.yaml</summary>") :]
    text = re.search("<code>(.*?)</code>", listing, flags=re.DOTALL)[1]
    read = YAML(typ="safe", pure=True).load(text.replace("&#39;", "'").replace("&#34;", '"'))
    assert json.loads(json.dumps(read)) == report.params.model_dump(
        mode="json", by_alias=True, exclude={"tracking"}
    )


@pytest.mark.parametrize(("answered", "told"), [("one class", True), ("all right", False)])
def test_who_answers_no_better_than_one_class_is_no_advice(here, answered, told):
    params = fake_params(breakdowns=(), baselines=("finetune",), shots=(5,))
    write_runs(params)
    report = made_report(params)
    runs = []
    for run in report.evidence.runs:
        labels = run.answers.labels
        predicted = labels if answered == "all right" else np.zeros_like(labels)
        runs.append(replace(run, answers=replace(run.answers, predicted=predicted)))
    report = replace(report, evidence=replace(report.evidence, runs=runs))
    said = answer(report, [advise(report, 5)])
    assert ("nothing is shown to be learnt: finetune is not shown to be behind" in said) == told
    assert ("was compared with no other method" in said) != told
