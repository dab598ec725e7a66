import re

import pytest

from pipeline.colours import PALETTE, colour
from pipeline.evaluation.collect import collect
from pipeline.evaluation.statistics import (
    Comparison,
    Contrast,
    Estimate,
    contrasts,
    estimates,
)
from pipeline.records import RunId, read_json, write_json
from pipeline.report import figures, words
from pipeline.report.page import render, supported_best
from tests.report.fake_runs import fake_params, write_runs

ACCURACY = "test/accuracy"


def made(params):
    """The page and the panels of the fake runs in the working directory."""
    evidence = collect(params.compare)
    values = {run.id: run.values for run in evidence.runs}
    means, rows = estimates(values, params.compare), contrasts(values, params.compare)
    panels = figures.draw(evidence.runs, params.compare, means)
    return render(params, evidence, means, rows, panels), panels


def text_of(page):
    """What a reader sees: without style, figures and tags, spaces as one."""
    page = re.sub(r"<(style|svg)\b.*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", page))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_needs_nothing_beside_it(here):
    params = fake_params()
    write_runs(params)
    page, _ = made(params)
    for reference in ("http:", "https:", "src=", "@import", "<script", "<link", "//cdn", "file:/"):
        assert reference not in page
    targets = re.findall(r'(?:href="|url\()(.)', page)
    assert targets and set(targets) == {"#"}
    assert str(here) not in page


def test_every_id_is_unique_and_every_reference_has_its_target(here):
    params = fake_params()
    write_runs(params)
    page, _ = made(params)
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', page)) <= set(ids)


def test_the_page_says_what_the_numbers_say(here):
    params = fake_params()
    write_runs(params, diverged=[RunId("scratch", 5, 1)])
    page, _ = made(params)
    text = text_of(page)
    values = {run.id: run.values for run in collect(params.compare).runs}
    best = estimates(values, params.compare)["finetune"]["20"][ACCURACY]
    mean, low, high = (f"{100 * share:.1f}" for share in (best.mean, best.low, best.high))
    assert (
        f"With 20 images a class, finetune is best: test accuracy {mean} % "
        f"(95 % interval {low} to {high}, 3 seeds)."
    ) in text
    for row in contrasts(values, params.compare):
        if row.metric == ACCURACY:
            assert f"{row.method} vs finetune: " in text
            assert f"): {row.verdict}" in text
    assert "scratch, 5 shots, seed 1: head: train/loss was inf in epoch 3" in text
    assert "1 run diverged" in text
    assert not re.search(r"\d\.\d{5}", text)


def test_hostile_names_are_escaped(here):
    params = fake_params()
    hostile = ("<script>alert(1)</script>", 'a"b', "c&d", "e'f", "<b>")
    write_runs(params, hostile, diverged=[RunId("breakdown", 5, 0)])
    record = read_json("runs/breakdown/shots-5/seed-0/record.json")
    write_json("runs/breakdown/shots-5/seed-0/record.json", record | {"reason": "<img onerror=x>"})
    page, _ = made(params)
    assert "<script" not in page and "<img" not in page and "<b>\n" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&lt;img onerror=x&gt;" in page


def test_one_seed_is_said_to_tell_nothing(here):
    params = fake_params(shots=("all",), seeds=(4,))
    write_runs(params)
    page, panels = made(params)
    text = text_of(page)
    assert re.search(r"With all training images, no method is shown to be best: \w+ has", text)
    assert "95 % interval" not in text[: text.index("Scores on the test images")]
    assert "too few seeds to tell" in text
    assert "No score is marked as best" in text
    assert not any(panel.group == "learning" for panel in panels)


def test_one_method_has_no_comparison(here):
    params = fake_params(breakdowns=(), baselines=("finetune",))
    write_runs(params)
    page, panels = made(params)
    assert "Every comparison" not in page
    assert not any(panel.group == "loss" for panel in panels)


def test_unequal_inputs_are_named(here):
    params = fake_params()
    write_runs(params)
    assert "read the same bytes" in text_of(made(params)[0])
    path = "runs/scratch/shots-20/seed-2/record.json"
    record = read_json(path)
    write_json(path, record | {"inputs": record["inputs"] | {"train": "0" * 32}})
    text = text_of(made(params)[0])
    assert "differs at 20 shots, seed 2" in text
    assert "read the same bytes" not in text


def test_panels_of_every_group(here):
    params = fake_params()
    write_runs(params)
    _, panels = made(params)
    assert [panel.name for panel in panels] == [
        *("accuracy-n5", "accuracy-n20", "learning-curve"),
        *("training-n5", "training-n20", "loss-n5", "loss-n20"),
    ]
    accuracy = panels[0].svg
    assert accuracy.startswith("<svg") and figures.INK not in accuracy
    assert "currentColor" in accuracy and "prefers-color-scheme" in accuracy
    for index, method in enumerate(params.compare.methods):
        assert f">{method}</text>" in accuracy and PALETTE[index] in accuracy
    # only a breakdown has a phase without accuracy
    assert PALETTE[0] in panels[5].svg and PALETTE[1] not in panels[5].svg


def test_long_method_names_fit(here):
    names = ("finetune", "finetune_with_a_very_long_name_that_goes_on_and_on")
    params = fake_params(baselines=names, breakdowns=())
    write_runs(params)
    _, panels = made(params)
    shown = re.findall(r">([a-z_…]+)</text>", panels[0].svg)
    assert shown == ["finetune", "finetune_with_a_", "very_long_name_…"]


@pytest.mark.parametrize("background", [1.0, 0.008])  # luminance of white and of the dark page
def test_colours_stand_out_from_the_page(background):
    assert len(set(PALETTE)) == 10 and colour(0) == colour(10)
    for hexed in PALETTE:
        channels = [int(hexed[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        own = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        low, high = sorted((own, background))
        assert (high + 0.05) / (low + 0.05) >= 2.75, hexed


@pytest.mark.parametrize(
    ("verdicts", "best"),
    [
        ({"a": "worse", "b": "worse"}, "ref"),
        ({"a": "better", "b": "worse"}, "a"),
        ({"a": "better", "b": "better"}, None),
        ({"a": "better", "b": "no difference detected"}, None),
        ({"a": "no difference detected", "b": "worse"}, None),
        ({"a": "too few seeds to tell", "b": "too few seeds to tell"}, None),
    ],
)
def test_a_best_needs_verdicts(verdicts, best):
    assert supported_best(["a", "ref", "b"], "ref", verdicts) == best


def test_a_single_method_is_not_the_best():
    assert supported_best(["ref"], "ref", {}) is None


def test_numbers_in_words():
    assert words.difference(ACCURACY, -0.0124) == "−1.2"
    assert words.difference(ACCURACY, 0.006) == "+0.6"
    assert words.difference(ACCURACY, -0.0001) == "0.0"
    assert words.difference("test/nll", -0.0124) == "−0.012"
    assert words.value(ACCURACY, 0.93449) == "93.4"
    assert words.interval(ACCURACY, Estimate(0.95, 0.88, 1.02, 3)) == "88.0 to 100.0"
    assert words.interval("test/nll", Estimate(1.5, -0.1, 3.1, 3)) == "0.000 to 3.100"
    assert [words.p_value(p) for p in (0.0, 0.0123, 0.123, 1.0, None)] == [
        *("< 0.001", "0.012", "0.12", "1", "–"),
    ]
    assert words.count(1234567) == "1\u202f234\u202f567"


def test_findings_in_words():
    found = Comparison(-0.012, -0.030, 0.006, 0.12, 1, 3)
    row = Contrast("breakdown", 10, ACCURACY, found, 0.12, "no difference detected")
    said = words.finding(row, "finetune").replace(words.FIXED, " ")
    assert said == (
        "breakdown vs finetune: −1.2 points (95 % interval −3.0 to +0.6, adjusted p = 0.12, "
        "3 seeds)"
    )
    assert words.resolution([row]) == (
        "3 seeds: a difference of up to about 1.8 points could have gone unseen."
    )
    one = Contrast("b", 10, ACCURACY, Comparison(0.01, None, None, None, 1, 1), None, "better")
    assert words.finding(one, "a") == "b vs a: +1.0 points (1 seed)"
    assert words.resolution([one]) == ""


def test_the_leader_in_words():
    def said(methods, shown):
        found = Estimate(0.943, 0.911, 0.975, 3)
        return words.leader(10, methods, found, shown).replace(words.FIXED, " ")

    assert said(["a"], True) == (
        "With 10 images a class, a is best: test accuracy 94.3 % (95 % interval 91.1 to 97.5, "
        "3 seeds)."
    )
    assert said(["a"], False).startswith("With 10 images a class, no method is shown to be best: a")
    assert said(["a", "b"], False) == (
        "With 10 images a class, no method is shown to be best: a and b share the highest mean, "
        "94.3 %."
    )
