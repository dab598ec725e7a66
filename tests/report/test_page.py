import base64
import re
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from pipeline.colours import PALETTE, colour, marker
from pipeline.evaluation.collect import Run, collect
from pipeline.evaluation.statistics import (
    Comparison,
    Contrast,
    Estimate,
    contrasts,
    estimates,
)
from pipeline.params import Compare
from pipeline.records import RunId, read_json, write_json
from pipeline.report import figures, words
from pipeline.report.page import render, supported_best
from pipeline.tasks import scores
from tests.report.fake_runs import (
    MANY_BASELINES,
    MANY_BREAKDOWNS,
    fake_params,
    verification_params,
    write_runs,
    write_verification_runs,
)

ACCURACY = "test/accuracy"


def made(params, draw=True):
    """The page and the panels of the fake runs in the working directory; drawing takes longest."""
    compare, task = params.compare, scores.BY_TASK[params.task]
    evidence = collect(compare, task.read)
    tested = evidence.tested
    values = {run.id: run.values for run in evidence.runs}
    means = estimates(values, compare, tested.metrics)
    rows = contrasts(values, compare, tested.metrics)
    panels = figures.draw(evidence.runs, compare, means, tested.primary) if draw else []
    return render(params, evidence, means, rows, task.intervals(compare), panels), panels


def text_of(page):
    """What a reader sees: without style, figures and tags, spaces as one."""
    page = re.sub(r"<(style|svg)\b.*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", page))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@dataclass(frozen=True)
class Made:
    """A comparison, its runs, and the page and panels made of them."""

    compare: Compare
    runs: list[Run]
    page: str
    panels: list[figures.Panel]


def made_of(params, folder):
    """The same, of classification, in a folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_runs(params)
        read = scores.BY_TASK[params.task].read
        return Made(params.compare, collect(params.compare, read).runs, *made(params))


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """A comparison of three methods, made once."""
    return made_of(fake_params(), tmp_path_factory.mktemp("usual"))


def test_the_page_needs_nothing_beside_it(usual, tmp_path_factory):
    page = usual.page
    for reference in ("http:", "https:", "@import", "<script", "<link", "//cdn", "file:/"):
        assert reference not in page
    assert set(re.findall(r'src="(.{22})', page)) == {"data:image/png;base64,"}
    targets = re.findall(r'(?:href="|url\()(.)', page)
    assert targets and set(targets) == {"#"}
    assert str(tmp_path_factory.getbasetemp()) not in page


def test_every_id_is_unique_and_every_reference_has_its_target(usual):
    page = usual.page
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', page)) <= set(ids)


def test_the_page_says_what_the_numbers_say(here):
    params = fake_params()
    write_runs(params, diverged=[RunId("scratch", 5, 1)])
    page, _ = made(params, draw=False)
    text = text_of(page)
    values = {
        run.id: run.values for run in collect(params.compare, scores.BY_TASK[params.task].read).runs
    }
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
    page, _ = made(params, draw=False)
    assert "<script" not in page and "<img onerror" not in page and "<b>\n" not in page
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
    params = fake_params(breakdowns=(), baselines=("finetune",), shots=(5,))
    write_runs(params)
    page, panels = made(params)
    assert "Every comparison" not in page
    assert not any(panel.group == "loss" for panel in panels)


def test_unequal_inputs_are_named(here):
    params = fake_params()
    write_runs(params)
    assert "read the same bytes" in text_of(made(params, draw=False)[0])
    path = "runs/scratch/shots-20/seed-2/record.json"
    record = read_json(path)
    write_json(path, record | {"inputs": record["inputs"] | {"train": "0" * 32}})
    text = text_of(made(params, draw=False)[0])
    assert "differs at 20 shots, seed 2" in text
    assert "read the same bytes" not in text


def test_panels_of_every_group(usual):
    panels = usual.panels
    assert [panel.name for panel in panels] == [
        *("accuracy-n5", "accuracy-n20", "learning-curve"),
        *("training-n5", "training-n20", "loss-n5", "loss-n20", "epochs-n5", "epochs-n20"),
    ]
    accuracy = panels[0].svg
    assert accuracy.startswith("<svg") and figures.INK not in accuracy
    assert "currentColor" in accuracy and "prefers-color-scheme" in accuracy
    for index, method in enumerate(usual.compare.methods):
        assert f">{method}</text>" in accuracy and PALETTE[index] in accuracy
    # only a breakdown has a phase without accuracy
    assert PALETTE[0] in panels[5].svg and PALETTE[1] not in panels[5].svg


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A comparison of twelve methods, made once, without its many losses by epoch."""
    params = fake_params(seeds=(0, 1), breakdowns=MANY_BREAKDOWNS, baselines=MANY_BASELINES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "_epoch_panels", lambda *_: [])
        return made_of(params, tmp_path_factory.mktemp("many"))


def test_twelve_methods_have_a_frame_each(many):
    by_name = {panel.name: panel for panel in many.panels}
    for name in ("learning-curve", "training-n5", "training-n20"):
        panel = by_name[name]
        assert panel.framed
        for index, method in enumerate(many.compare.methods):
            assert panel.svg.count(f">{method}</text>") == 1
            assert PALETTE[index] in panel.svg
        # the reference is drawn behind all but itself
        assert panel.svg.count("stroke-dasharray:") >= 11
    assert not by_name["loss-n5"].framed  # four methods have an encoder
    for method in many.compare.methods:
        shown = method in MANY_BREAKDOWNS
        assert (PALETTE[many.compare.methods.index(method)] in by_name["loss-n5"].svg) == shown
    assert len(by_name) == len(many.panels)


def test_an_odd_number_of_frames_leaves_none_empty():
    figure, frames = figures._frames([f"m{place}" for place in range(7)])
    assert figure.axes == frames and len(frames) == 7
    # the last of each column says what the axis is
    labelled = [axes.xaxis.get_tick_params()["labelbottom"] for axes in frames]
    assert [place for place, shown in enumerate(labelled) if shown] == [5, 6]


def test_a_shortened_picture_is_the_same_picture():
    svg = """<svg viewBox="0 0 9 9"><g id="p-axes_1">
      <path id="p-used" d="M 1.23456 7
      L 0.005 -12.3449 z
" style="fill: none; stroke: red"/><use href="#p-used" x="0.1"/>
      <text transform="rotate(-0 1.5 2)" x="8">1.23456</text>
      <text transform="rotate(-90 1.5 2)">a  b</text></g></svg>"""
    assert figures._shortened(svg) == (
        '<svg viewBox="0 0 9 9"><g>'
        '<path id="p-used" d="M1.23 7L0.01 -12.3z" style="fill:none;stroke:red"/>'
        '<use href="#p-used" x="0.1"/><text x="8">1.23456</text>'
        '<text transform="rotate(-90 1.5 2)">a  b</text></g></svg>'
    )


@pytest.mark.parametrize(
    ("phase", "points"), [("solve", 2), ("round_1", 0), ("encoder_1", None), ("head_5", 0)]
)
def test_a_phase_of_one_row_is_a_point(many, phase, points):
    """Of every method the mean and each seed; a marker is drawn where a line has no length."""
    runs = [run for run in many.runs if phase in set(run.history["phase"])]
    assert runs
    for run in runs[:1]:
        curves = [
            curve
            for curve in figures._curves(run.history, "val/accuracy", figures._has_accuracy)
            if curve.phase == phase
        ]
        assert len(curves) == (points is not None)
        axes = Figure().subplots()
        figures._draw_curves(axes, [*curves, *curves], 0, "label")
        marked = [line for line in axes.lines if line.get_marker() not in ("None", "")]
        assert len(marked) == (len(axes.lines) if points else 0)


def test_phases_follow_one_another(many):
    run = next(r for r in many.runs if r.id.method == "layerwise")
    curves = figures._curves(run.history, "val/accuracy", figures._has_accuracy)
    assert [curve.phase for curve in curves] == [f"round_{i}" for i in range(1, 9)]
    seen = np.concatenate([curve.seen for curve in curves])
    assert (np.diff(seen) > 0).all() and len(seen) == len(run.history)
    means = list(figures._means([*curves, *curves]))
    assert len(means) == 8
    np.testing.assert_array_equal(means[3][1], curves[3].values)


def test_costs_are_summed_by_run_and_shown_by_phase(many):
    page = many.page
    costs = page[page.index('id="costs"') : page.index('id="diverged"')]
    totals, phases = costs.split("phase by phase")
    methods, shots = many.compare.methods, many.compare.shots
    assert totals.count("<tr>") - 2 == len(methods) * len(shots)
    for name in ("encoder 1", "encoder 2", "head 5", "round 8", "release", "solve", "end to end"):
        assert f'data-label="Phase">{name}</td>' in phases
    layerwise = text_of(totals[totals.index("</i>layerwise") :][:400])
    assert "36 000" in layerwise  # eight rounds of 4500 images
    seconds = [sum(c.seconds for c in run.costs) for run in many.runs
               if (run.id.method, run.id.shots) == ("layerwise", 5)]  # fmt: skip
    assert f" {np.mean(seconds):.1f} " in layerwise


def row_after(table, *marks):
    """The cells of the first row of a table in which the marks come one after the other."""
    for row in table.split("<tr>"):
        if re.search(".*".join(map(re.escape, marks)), row, flags=re.DOTALL):
            return dict(re.findall(r'data-label="([^"]+)">([^<]*)<', row))
    raise AssertionError(f"no row of {marks}")


def test_predicting_is_no_part_of_training(usual):
    costs = usual.page[usual.page.index('id="costs"') :]
    of = [run for run in usual.runs if (run.id.method, run.id.shots) == ("breakdown", 5)]
    shown = row_after(costs, "</i>breakdown", 'data-label="Shots">5<')
    training = [sum(cost.seconds for cost in run.costs) for run in of]
    predicting = np.mean([run.prediction.seconds for run in of])
    assert all([cost.phase for cost in run.costs] == ["encoder", "head"] for run in of)
    assert shown["Seconds"] == f"{np.mean(training):.1f}" and shown["Images seen"] == "9\u202f000"
    assert shown["Predicting: seconds"] == f"{predicting:.1f}"
    assert shown["Predicting: images / s"] == f"{150 / predicting:.0f}"


def test_convergence_is_the_kept_epoch_and_the_seconds_until_it(usual):
    phases = usual.page[usual.page.index("phase by phase") :]
    of = [run for run in usual.runs if (run.id.method, run.id.shots) == ("breakdown", 20)]
    shown = row_after(phases, "</i>breakdown", 'data-label="Shots">20<', ">encoder<")
    # seeds 0, 1 and 2 have 20, 21 and 22 epochs, of which 11, 11 and 12 are kept
    assert shown["Epoch kept"] == "11.3 of 21"
    share = [11 / 20, 11 / 21, 12 / 22]
    seconds = np.mean([run.costs[0].seconds * n for run, n in zip(of, share, strict=True)])
    assert shown["Seconds until then"] == f"{seconds:.1f}"
    assert row_after(phases, "</i>finetune", 'data-label="Shots">5<')["Epoch kept"] == "23 of 45"


def test_what_is_solved_for_or_diverged_has_no_convergence(here):
    params = fake_params(
        shots=(5,), breakdowns=(), baselines=("finetune", "features_svm"), seeds=(0, 1)
    )
    write_runs(params)
    path = "runs/finetune/shots-5/seed-1/record.json"
    record = read_json(path)
    phase = record["phases"][0] | {"status": "diverged", "chosen_epoch": 0, "epochs": 0}
    write_json(path, record | {"phases": [phase]})
    page, _ = made(params, draw=False)
    phases = page[page.index("phase by phase") :]
    assert row_after(phases, "</i>features_svm")["Epoch kept"] == words.NONE
    assert row_after(phases, "</i>features_svm")["Seconds until then"] == words.NONE
    assert row_after(phases, "</i>finetune")["Epoch kept"] == "23 of 45"


def test_many_comparisons_are_folded_but_for_accuracy(many):
    page = many.page
    tables = page[page.index('id="comparison"') : page.index('id="costs"')]
    assert tables.count("<details open>") == 1 and tables.count("<details>") == 3
    assert tables.index("<details open><summary>Accuracy") < tables.index("<details>")
    assert tables.count('data-label="Verdict"') == 11 * 2 * 4


def test_two_classes_have_precision_recall_and_f_beta(here):
    params = fake_params(positive="healthy", beta=2.0)
    write_runs(params, ("canker", "healthy"))
    page, _ = made(params, draw=False)
    text = text_of(page)
    assert "Precision %Recall %F-beta %" in text
    assert "Precision, recall and F-beta (beta 2) are those of the class healthy. " in text
    recalls = page[page.index("Recall of each class") : page.index('id="figures"')]
    assert recalls.count("<tr>") == 2 * (1 + 3) and "75 images" in recalls
    run = collect(params.compare, scores.BY_TASK[params.task].read).runs[0]
    shown = f"{100 * run.values['test/recall']:.1f}"
    assert run.values["test/recall"] == run.values["test/recall/healthy"]
    params = fake_params(seeds=(0,), positive="healthy")
    page, _ = made(params, draw=False)
    assert f'data-label="Recall"><span class="">{shown}</span>' in page


def test_recalls_stand_seven_classes_side_by_side(here):
    classes = [f"class {c}" for c in range(9)]
    params = fake_params(shots=(5,))
    write_runs(params, classes)
    page, _ = made(params, draw=False)
    recalls = page[page.index("Recall of each class") : page.index('id="figures"')]
    heads = re.findall(r"<thead>.*?</thead>", recalls, flags=re.DOTALL)
    assert [head.count('class="n"') for head in heads] == [7, 2]
    assert all(f'data-label="{name}"' in recalls for name in classes)
    assert "Precision" not in page


def test_more_classes_than_a_table_bears_have_no_recall_of_their_own(here):
    params = fake_params(shots=(5,), seeds=(0,))
    write_runs(params, [f"class {c}" for c in range(21)])
    assert "Recall of each class" not in made(params, draw=False)[0]


def test_long_method_names_fit(here):
    names = ("finetune", "finetune_with_a_very_long_name_that_goes_on_and_on")
    params = fake_params(baselines=names, breakdowns=(), shots=(5,))
    write_runs(params)
    _, panels = made(params)
    shown = re.findall(r">([a-z_…]+)</text>", panels[0].svg)
    assert shown == ["finetune", "finetune_with_a_", "very_long_name_…"]


@pytest.mark.parametrize("background", [1.0, 0.008])  # luminance of white and of the dark page
def test_colours_stand_out_from_the_page(background):
    assert len(set(PALETTE)) == 16 and colour(0) == colour(16)
    for hexed in PALETTE:
        own = linear(hexed) @ [0.2126, 0.7152, 0.0722]
        low, high = sorted((own, background))
        assert (high + 0.05) / (low + 0.05) >= 2.75, hexed


def linear(hexed):
    """Linear RGB of a colour."""
    channels = np.array([int(hexed[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def oklab(rgb):
    """Linear RGB in Oklab (Ottosson 2020), where distances are about as large as they look."""
    cones = [[0.4122215, 0.5363325, 0.0514460], [0.2119035, 0.6806995, 0.1073970],
             [0.0883025, 0.2817188, 0.6299787]]  # fmt: skip
    axes = [[0.2104543, 0.7936178, -0.0040720], [1.9779985, -2.4285922, 0.4505937],
            [0.0259040, 0.7827718, -0.8086758]]  # fmt: skip
    return np.array(axes) @ np.cbrt(np.clip(np.array(cones) @ rgb, 0, 1))


# what red-green blind eyes see (Machado, Oliveira, Fernandes 2009, severity 1)
SIGHTS = {
    "full": np.eye(3),
    "protan": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                        [-0.003882, -0.048116, 1.051998]]),
    "deutan": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                        [-0.011820, 0.042940, 0.968881]]),
}  # fmt: skip


@pytest.mark.parametrize(("sight", "apart"), [("full", 0.09), ("protan", 0.055), ("deutan", 0.055)])
def test_colours_stand_apart_from_each_other(sight, apart):
    seen = {hexed: oklab(SIGHTS[sight] @ linear(hexed)) for hexed in PALETTE}
    for one, other in combinations(PALETTE, 2):
        assert np.linalg.norm(seen[one] - seen[other]) >= apart, (one, other)


def test_no_method_of_a_large_comparison_shares_colour_and_marker():
    assert len({(colour(index), marker(index)) for index in range(176)}) == 176


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


@pytest.fixture(scope="module")
def verified(tmp_path_factory):
    """A comparison of three methods that verify, made once: its page and panels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("verified"))
        params = verification_params(seeds=(0, 1))
        write_verification_runs(params, pairs=60)
        return made(params)


def test_a_page_of_verification_speaks_of_its_primary_metric(verified):
    page, panels = verified
    text = text_of(page).replace(words.FIXED, " ")
    assert "3 methods on data/target, 2 seeds. 60 pairs of 120 images of" in text
    assert re.search(r"mean one-shot accuracy on the official runs, \d\d\.\d %", text)
    assert "Higher is better, except for EER." in text
    assert "N-way k-shot: " in text and "Recall" not in text and "F1" not in text
    named = {panel.name: panel for panel in panels}
    assert ">one-shot accuracy on the official runs</text>" in named["accuracy-nall"].svg
    titles = re.findall(r"<summary>([^<]*) <small>points", page)
    assert [title.replace(words.FIXED, " ") for title in titles] == [
        *("One-shot accuracy on the official runs", "Accuracy", "ROC AUC", "Equal error rate"),
        *("TAR at FAR 1 %", "TAR at FAR 0.1 %", "5-way 1-shot accuracy"),
    ]
    assert "training pairs" in text and "validation pairs and episodes" in text


def test_the_page_says_how_much_hangs_on_who_was_tested(verified):
    page, _ = verified
    part = page[page.index('id="tested"') : page.index('id="data"')]
    assert part.count("<details") == 7 and part.count("<details open>") == 1
    assert "<details open><summary>One-shot accuracy" in part
    text = text_of(part)
    assert "over 20 official runs" in text and "over 30 test classes" in text
    assert "same trained networks" in text and "2 000 times" in text
    # 30 pairs of two classes are too few for either rate
    assert re.findall(r"fewer than ([\d ]+) test pairs of two classes", text) == [
        *("1 000", "10 000")
    ]
    strict = part[part.index("FAR\u00a00.1\u00a0%") :]
    assert row_after(strict, "</i>siamese")["95 % interval"] == words.NONE
    reference = part[part.index("</i>siamese") :].split("</tr>")[0]
    assert reference.count(">–</td>") == 2


def test_the_data_of_verification_are_a_table_and_not_raw(verified):
    page, _ = verified
    part = page[page.index('id="data"') : page.index('id="costs"')]
    rows = [text_of(row).split() for row in part.split("<tr>")[2:5]]
    assert [row[0] for row in rows] == ["training", "validation", "test"]
    shown = ["1", "471", "923", "1", "to", "53", "2", "3.5", "1", "100", "1", "200"]
    assert all(row[1:] == shown for row in rows)
    assert "official runs" in text_of(part)
    assert "analysis" not in text_of(page[page.index('id="fair"') :])


def test_classification_has_no_sections_of_verification(usual):
    page = usual.page
    assert 'id="tested"' not in page and 'id="data"' not in page
    assert "Higher is better, except for log loss and calibration error." in page


def test_many_scores_stand_in_two_tables(here):
    params = verification_params(seeds=(0,))
    sets = ("official", "5_way_1_shot", "20_way_1_shot", "5_way_5_shot")
    write_verification_runs(params, pairs=30, episodes=sets)
    page, _ = made(params, draw=False)
    part = page[page.index('id="scores"') : page.index('id="figures"')]
    heads, f = re.findall(r"<thead>.*?</thead>", part, flags=re.DOTALL), words.FIXED
    assert [re.findall(r'class="n">([^<]+) <', head) for head in heads] == [
        ["Official runs", "5-way 1-shot", "20-way 1-shot", "5-way 5-shot"],
        ["Accuracy", "ROC AUC", "EER", *(f"TAR at FAR{f}{s}{f}%" for s in ("1", "0.1"))],
    ]


def test_the_picture_of_every_method_is_in_the_page(here):
    params = fake_params(seeds=(3, 4))
    write_runs(params)
    page, _ = made(params, draw=False)
    for method in params.compare.methods:
        picture = RunId(method, 20, 3).examples.read_bytes()
        assert base64.b64encode(picture).decode() in page
    assert page.count("20 shots, seed 3") == 3 == page.count("<img ")


def test_losses_by_epoch_are_means_over_seeds_as_far_as_all_run():
    def history(losses, phase="head"):
        epochs = range(1, len(losses) + 1)
        rows = [(phase, epoch, loss - 1, loss) for epoch, loss in zip(epochs, losses, strict=True)]
        return pd.DataFrame(rows, columns=["phase", "epoch", "train/loss", "val/loss"])

    blind = pd.DataFrame({"phase": ["solve"], "epoch": [1.0], "val/accuracy": [0.5]})
    found = figures._losses([history([5.0, 3.0]), history([7.0, 5.0, 1.0]), blind])
    assert list(found) == ["head"]
    assert found["head"]["val/loss"].to_dict() == {1: 6.0, 2: 4.0}
    assert found["head"]["train/loss"].to_dict() == {1: 5.0, 2: 3.0}
    assert figures._losses([blind]) == {}
    assert figures._losses([history([np.nan])]) == {}
    assert figures._losses([history([2.0])]) == {}  # one epoch is no course


def test_every_phase_has_its_losses_by_epoch(here):
    params = fake_params(seeds=(0,), shots=(5,), baselines=("finetune", "features_svm"))
    write_runs(params)
    page, panels = made(params)
    panel = next(panel for panel in panels if panel.group == "epochs")
    for name in ("breakdown: encoder", "breakdown: head", "finetune"):
        assert panel.svg.count(f">{name}</text>") == 1
    assert "features_svm" not in panel.svg  # what is solved for has no epochs
    assert ">training</text>" in panel.svg and ">validation</text>" in panel.svg
    assert "<details><summary>Loss by epoch</summary>" in page


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
        return words.leader(ACCURACY, 10, methods, found, shown).replace(words.FIXED, " ")

    assert said(["a"], True) == (
        "With 10 images a class, a is best: test accuracy 94.3 % (95 % interval 91.1 to 97.5, "
        "3 seeds)."
    )
    assert said(["a"], False).startswith("With 10 images a class, no method is shown to be best: a")
    assert said(["a", "b"], False) == (
        "With 10 images a class, no method is shown to be best: a and b share the highest mean "
        "test accuracy, 94.3 %."
    )
