import hashlib
import math
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.text import Text
from scipy import stats
from sklearn.decomposition import PCA
from sklearn.metrics import confusion_matrix

from pipeline.colours import PALETTE
from pipeline.evaluation import collect
from pipeline.evaluation.collect import Answers, Cost, Evidence, Run
from pipeline.evaluation.diagnosis import Arrays, Diagnosis, Histogram, Layer
from pipeline.evaluation.statistics.results import (
    Comparison,
    Contrast,
    Crossover,
    CurvePoint,
    Estimate,
    Variance,
)
from pipeline.params import Compare
from pipeline.records import RunId
from pipeline.report import figures
from pipeline.report.figures import accuracy, answers, base, comparison, curves, latents, network

ACCURACY = "test/accuracy"
METHODS = ("breakdown", "finetune", "scratch")
CLASSES = ("five", "$six$", "_seven", "<eight> & nine")
GROUPS = (
    *("accuracy", "forest", "learning", "crossover", "training", "loss", "epochs"),
    *("confusion", "classes", "distances", "map", "gradients", "gap", "weights", "filters"),
    "variance",
)
LAYERS = ("features.0", "features.3", "classifier")


def asked(methods=METHODS, shots=(5, 20), seeds=(0, 1)):
    """Methods of which the first is a breakdown; the second, if there is one, is the reference."""
    return Compare(
        breakdowns=list(methods[:1]),
        baselines=list(methods[1:]),
        reference=methods[min(1, len(methods) - 1)],
        shots=list(shots),
        seeds=list(seeds),
    )


def a_run(run, compare, classes=CLASSES, layers=LAYERS):
    """A run that was never made; a breakdown has an encoder's phase before its head's."""
    draw = np.random.default_rng([*run.method.encode(), run.seed])
    accuracy = 0.7 + 0.1 * draw.random()
    phases = {"encoder": 6, "head": 4} if run.method in compare.breakdowns else {"end_to_end": 9}
    cost = Cost(run, "test", None, None, None, None)
    fit = {"fit/train_accuracy": accuracy + 0.1, "fit/val_accuracy": accuracy - 0.02}
    return Run(
        id=run,
        values={ACCURACY: accuracy, **fit},
        contributions={},
        answers=some_answers(draw, len(classes)) if classes else None,
        record={"status": "finished"},
        history=a_history(phases),
        gradients=some_gradients(draw, phases, layers),
        diagnosis=a_diagnosis(draw, layers),
        costs=[],
        prediction=cost,
        one_image_seconds=0.001,
    )


def some_answers(draw, classes, images=80):
    labels = np.arange(images) % classes
    right = draw.random(images) < 0.8
    predicted = np.where(right, labels, draw.integers(0, classes, images))
    return Answers(tuple(f"{i}.png" for i in range(images)), labels, predicted)


def a_history(phases):
    rows = []
    for phase, epochs in phases.items():
        for epoch in range(1, epochs + 1):
            loss = 1.0 / (len(rows) + 1)
            blind = phase == "encoder"
            rows.append(
                (phase, epoch, 20.0 * len(rows), 0.9 * loss, loss, np.nan if blind else 1 - loss)
            )
    names = ["phase", "epoch", "images_seen", "train/loss", "val/loss", "val/accuracy"]
    return pd.DataFrame(rows, columns=names)


def some_gradients(draw, phases, layers):
    of = {"encoder": layers[:-1], "head": layers[-1:], "end_to_end": layers}
    rows = [
        (phase, float(epoch), layer, float(10.0 ** -(place + draw.random()) / epoch))
        for phase, epochs in phases.items()
        for epoch in range(1, epochs + 1)
        for place, layer in enumerate(of[phase])
    ]
    return pd.DataFrame(rows, columns=["phase", "epoch", "layer", "norm"])


def a_diagnosis(draw, layers=LAYERS):
    def histogram(mean, width):
        counts, edges = np.histogram(draw.normal(mean, width, 2000).clip(0, 2), 30, (0, 2))
        return Histogram(edges.tolist(), counts.tolist())

    def layer(place, name):
        edges = np.linspace(-1, 1, 31)
        before = np.histogram(draw.normal(0, 0.2, 500), edges)[0].tolist()
        after = np.histogram(draw.normal(0, 0.3, 500), edges)[0].tolist()
        return Layer(name, edges.tolist(), before if place else None, after)

    return Diagnosis(
        latent="embedding",
        dimension=16,
        values={},
        collapsed=False,
        cause="",
        same=histogram(0.5, 0.2),
        different=histogram(1.1, 0.3),
        layers=[layer(place, name) for place, name in enumerate(layers)],
        parameters=1,
        multiply_adds=1,
        model_bytes=1,
    )


def some_arrays(draw, classes=4, images=60, before=True):
    labels = np.arange(images) % classes
    centres = 3 * draw.normal(size=(classes, 6))
    places = (centres[labels] + draw.normal(size=(images, 6))).astype(np.float32)
    names = np.array([f"{i}.png" for i in range(images)])
    filters = draw.normal(size=(12, 1, 3, 3)).astype(np.float32)
    return Arrays(places, labels, names, filters[: 12 * before], filters + 0.2)


def an_evidence(compare, classes=CLASSES):
    ids = [
        RunId(method, shots, seed)
        for method in compare.methods
        for shots in compare.shots
        for seed in compare.seeds
    ]
    shown = [RunId(method, compare.shots[-1], compare.seeds[0]) for method in compare.methods]
    draw = np.random.default_rng(7)
    return Evidence(
        runs=[a_run(run, compare, classes) for run in ids],
        tested=collect.Tested("digest", (ACCURACY,), "", classes=tuple(classes)),
        prepared={},
        examples={},
        arrays={
            run: some_arrays(draw, len(classes) or 14, before=run.method != "scratch")
            for run in shown
        },
        near=[],
    )


def some_findings(compare):
    """What statistics would find, made up; the first method is ahead at first."""
    others = [method for method in compare.methods if method != compare.reference]
    numbers = [shots for shots in compare.shots if shots != "all"]
    return SimpleNamespace(
        estimates={
            method: {
                str(shots): {ACCURACY: Estimate(0.75, 0.7, 0.8, len(compare.seeds), "both")}
                for shots in compare.shots
            }
            for method in compare.methods
        },
        contrasts=[
            Contrast(
                method, shots, ACCURACY, Comparison(0.04 - 0.03 * place, 0.01 - 0.03 * place,
                0.07 - 0.03 * place, 0.03, 2, 2, "both"), 0.05,
                "better" if place == 0 else "no difference detected",
            )
            for shots in compare.shots for place, method in enumerate(others)
        ],
        variances=[
            Variance(method, shots, ACCURACY, of, 0.01, 0.4, 0.1, "image", 0.2 + 0.5 * place)
            for shots in compare.shots for place, method in enumerate(compare.methods[:2])
            for of in ("value", "difference") if of == "value" or method != compare.reference
        ],
        crossovers=[a_crossover(method, compare.reference, numbers) for method in others]
        if len(numbers) > 1
        else [],
    )  # fmt: skip


def a_crossover(method, reference, numbers):
    grid = np.geomspace(numbers[0], numbers[-1], 9)
    differences = np.linspace(0.06, -0.06, 9)
    curve = [CurvePoint(float(n), float(d), d - 0.03, d + 0.03)
             for n, d in zip(grid, differences, strict=True)]  # fmt: skip
    ahead = [(float(grid[0]), float(grid[2]), method), (float(grid[6]), float(grid[8]), reference)]
    return Crossover(method, ACCURACY, curve, [float(grid[4])], ahead)


def drawn(compare=None, classes=CLASSES, change=lambda run: run):
    compare = compare or asked()
    evidence = an_evidence(compare, classes)
    evidence = replace(evidence, runs=[change(run) for run in evidence.runs])
    return figures.draw(evidence, compare, some_findings(compare))


@pytest.fixture(scope="module")
def usual():
    """All panels of three methods, drawn once, without t-SNE, which takes longest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latents, "neighbour_plane", latents.principal_plane)
        return drawn()


@pytest.fixture
def quick(monkeypatch):
    """No t-SNE."""
    monkeypatch.setattr(latents, "neighbour_plane", latents.principal_plane)


@pytest.fixture
def kept(monkeypatch, quick):
    """Figures instead of panels, laid out in the style of the report."""

    def keep(_name, _group, _title, figure):
        figure.draw_without_rendering()
        return figure

    monkeypatch.setattr(base, "panel", keep)


def names_of(panels):
    return [panel.name for panel in panels]


def test_panels_of_every_group(usual):
    assert names_of(usual) == [
        *("accuracy-n5", "accuracy-n20", "forest-n5", "forest-n20", "learning-curve", "crossover"),
        *("training-n5", "training-n20", "loss-n5", "loss-n20", "epochs-n5", "epochs-n20"),
        *("confusion-n20", "classes-n20", "distances-n20", "map-pca-n20", "map-tsne-n20"),
        *("gradients-n20", "gradient-layers-n20", "gap-n5", "gap-n20"),
        *("weights-breakdown-n20", "weights-finetune-n20", "weights-scratch-n20"),
        *("filters-n20", "variance-n5", "variance-n20"),
    ]
    assert list(dict.fromkeys(panel.group for panel in usual)) == list(GROUPS)


def test_a_page_of_panels_has_no_id_twice_and_looks_nothing_up(usual):
    ids, used = [], set()
    for panel in usual:
        root = ET.fromstring(panel.svg)
        ids += [element.get("id") for element in root.iter() if element.get("id")]
        used |= set(re.findall(r'(?:href="#|url\(#)([^")]+)', panel.svg))
        assert float(root.get("viewBox").split()[2]) == base.WIDTH
        assert base.INK not in panel.svg and "currentColor" in panel.svg
        others = re.findall(r'href="([^#].{20})', panel.svg)
        assert set(others) <= {"data:image/png;base64"}
        assert bool(others) == (panel.group == "filters")
        assert not re.search(r"<metadata|xlink|http://(?!www.w3.org/2000/svg)", panel.svg)
    assert len(ids) == len(set(ids)) and set(ids) == used


def test_class_names_are_text_and_not_markup(usual):
    for group, most in (("confusion", 9), ("classes", 14), ("map", 40)):
        panel = next(panel for panel in usual if panel.group == group)
        shown = [element.text for element in ET.fromstring(panel.svg).iter() if element.text]
        for name in CLASSES:
            assert base.cut(name, most) in shown


def test_methods_have_their_colours(usual):
    by_name = {panel.name: panel.svg for panel in usual}
    for name in ("accuracy-n5", "learning-curve", "training-n5", "gap-n20", "classes-n20"):
        for index, method in enumerate(METHODS):
            assert f">{method}</text>" in by_name[name] and PALETTE[index] in by_name[name]
    # only a breakdown has a phase without accuracy; the reference has no difference
    assert PALETTE[0] in by_name["loss-n5"] and PALETTE[1] not in by_name["loss-n5"]
    assert PALETTE[2] in by_name["forest-n5"] and PALETTE[1] not in by_name["forest-n5"]


def test_only_what_there_is_is_drawn(quick):
    one_seed = names_of(drawn(asked(("finetune", "scratch"), ("all",), (0,)), classes=()))
    assert one_seed == [
        *("accuracy-nall", "forest-nall", "training-nall", "loss-nall", "epochs-nall"),
        *("distances-nall", "map-pca-nall", "map-tsne-nall", "gradients-nall"),
        *("gradient-layers-nall", "gap-nall", "weights-finetune-nall", "weights-scratch-nall"),
        *("filters-nall", "variance-nall"),
    ]
    alone = asked(("finetune",), (5,), (0,))
    evidence = an_evidence(alone, classes=[f"class {n}" for n in range(21)])
    nothing = replace(evidence.runs[0].diagnosis, layers=[], same=Histogram([0, 1], [0]),
                      different=Histogram([0, 1], [0]))  # fmt: skip
    empty = evidence.runs[0].gradients.iloc[:0]
    run = replace(evidence.runs[0], diagnosis=nothing, gradients=empty, values={ACCURACY: 0.5})
    findings = some_findings(alone)
    findings.variances = []
    bare = figures.draw(replace(evidence, runs=[run], arrays={}), alone, findings)
    assert {panel.group for panel in bare} == {"accuracy", "training", "loss", "epochs"}


def test_a_diverged_run_spoils_no_panel(quick):
    def diverge(run):
        if run.id != RunId("breakdown", 5, 1):
            return run
        gradients = run.gradients.assign(norm=[*[np.nan, np.inf, 0.0] * 5, np.nan])
        history = run.history.assign(**{"val/loss": np.nan, "val/accuracy": np.inf})
        return replace(
            run,
            values=dict.fromkeys(run.values, np.nan),
            gradients=gradients,
            history=history,
            diagnosis=replace(run.diagnosis, same=Histogram([0.0, 1.0], [0])),
        )

    panels = drawn(asked(("breakdown", "finetune"), (5,)), change=diverge)
    assert {*GROUPS} - {panel.group for panel in panels} == {"learning", "crossover"}
    assert not any(re.search(r"\bnan\b", panel.svg) for panel in panels)


def test_no_text_lies_on_another(monkeypatch, quick):
    """Nor beyond the edge of the panel, however long the names are."""
    found, shown = [], []
    draw_text = Text.draw

    def noted(text, renderer):
        if text.get_visible() and text.get_text().strip():
            shown.append((text.get_text(), text.get_window_extent(renderer)))
        draw_text(text, renderer)

    def check(name, group, _title, figure):
        shown.clear()
        figure.draw_without_rendering()
        for place, (text, box) in enumerate(shown):
            if min(box.x0, box.y0) < -1 or box.x1 > figure.bbox.x1 + 1:
                found.append((name, text, "edge"))
            for other, of in shown[place + 1 :]:
                wide = min(box.x1, of.x1) - max(box.x0, of.x0)
                high = min(box.y1, of.y1) - max(box.y0, of.y0)
                if wide > 1 and high > 1:
                    found.append((name, text, other))
        return SimpleNamespace(name=name, group=group)

    monkeypatch.setattr(Text, "draw", noted)
    monkeypatch.setattr(base, "panel", check)
    drawn(asked(("breakdown", "fine_tuning_from_the_start"), (5,), (0,)), CLASSES[:2])
    many = [f"a_method_with_a_long_name_{n}" for n in range(base.FRAMED)]
    drawn(asked(many, (5, 20), (0,)), [f"a class called {n}" for n in range(7)])
    assert shown
    assert found == []


def test_the_same_input_gives_the_same_bytes():
    """In another process, too, whatever the seed of hashes: of the maps above all."""
    code = (
        "from tests.report.test_figures import *; import hashlib;"
        "panels = drawn(asked(('finetune',), (5,), (0,)));"
        "print(hashlib.md5(''.join(p.svg for p in panels).encode()).hexdigest(), end='')"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "2"}
    there = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
    )
    here = drawn(asked(("finetune",), (5,), (0,)))
    whole = "".join(panel.svg for panel in here).encode()
    assert there.stdout.decode() == hashlib.md5(whole).hexdigest()


@pytest.fixture(scope="module")
def many():
    """Panels of six methods, drawn once."""
    compare = asked([f"method_{n}" for n in range(base.FRAMED)], (5, 20), (0,))
    runs, found = an_evidence(compare).runs, some_findings(compare)
    with matplotlib.rc_context(base.STYLE):
        panels = [
            *accuracy.learning_panels(runs, compare, found.estimates, ACCURACY),
            *curves.training_panels(runs, compare),
            *curves.loss_panels(runs, compare),
            *network.ratio_panels(runs, compare),
        ]
    return compare, {panel.name: panel for panel in panels}


def test_many_methods_have_a_frame_each(many):
    compare, by_name = many
    for name in ("learning-curve", "training-n5", "training-n20", "gradients-n20"):
        panel = by_name[name]
        assert panel.framed
        for index, method in enumerate(compare.methods):
            assert panel.svg.count(f">{method}</text>") == 1
            assert PALETTE[index] in panel.svg
        # the reference, or a ratio of one, is drawn behind all but itself
        assert panel.svg.count("stroke-dasharray:") >= 5
    assert not by_name["loss-n5"].framed  # one method has an encoder


def test_three_frames_stand_in_a_row_where_two_would_leave_a_hole():
    short = [f"method_{place}" for place in range(9)]
    assert [base.across(short[:n]) for n in range(1, 10)] == [1, 2, 3, 2, 2, 2, 2, 2, 3]
    assert base.across([*short[:2], "m" * (base.NARROW + 1)]) == 2


def test_an_odd_number_of_frames_leaves_none_empty():
    figure, frames = base.frames([f"m{place}" for place in range(7)])
    assert figure.axes == frames and len(frames) == 7
    # the last of each column says what the axis is
    labelled = [axes.xaxis.get_tick_params()["labelbottom"] for axes in frames]
    assert [place for place, shown in enumerate(labelled) if shown] == [5, 6]


def test_a_shortened_picture_is_the_same_picture():
    svg = """<svg viewBox="0 0 9 9"><g id="axes_1">
      <path id="used" d="M 1.23456 7
      L 0.005 -12.3449 z
" style="fill: none; stroke: red"/><use href="#used" x="0.1"/>
      <text transform="rotate(-0 1.5 2)" x="8">1.23456</text>
      <text transform="rotate(-90 1.5 2)">a  b</text></g></svg>"""
    assert base._shortened(svg, "p") == (
        '<svg viewBox="0 0 9 9"><g>'
        '<path id="p-0" d="M1.23 7L0.01 -12.3z" style="fill:none;stroke:red"/>'
        '<use href="#p-0" x="0.1"/><text x="8">1.23456</text>'
        '<text transform="rotate(-90 1.5 2)">a  b</text></g></svg>'
    )


def test_marks_of_one_style_name_it_once():
    marks = '<g clip-path="url(#c)"><use x="1" style="{0}"/><use x="2" style="{1}"/></g>'
    same = marks.format("fill:red;fill-opacity:.5", "fill:red;fill-opacity:.5")
    assert base.MARKS.sub(base._styled_once, same) == (
        '<g clip-path="url(#c)" style="fill:red;fill-opacity:.5"><use x="1"/><use x="2"/></g>'
    )
    # other colours, or an opacity that would hold for all of them together
    for styles in (("fill:red", "fill:blue"), ("opacity:.5", "opacity:.5")):
        assert base.MARKS.sub(base._styled_once, marks.format(*styles)) == marks.format(*styles)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.02, "0.02"), (1, "1"), (5000, "5000"), (1e-6, "10⁻⁶"), (2e-6, "2·10⁻⁶"), (5e12, "5·10¹²")],
)
def test_powers_of_ten(number, text):
    assert base.power(number) == text


def test_long_curves_are_thinned_to_their_ends():
    axes = Figure().subplots()
    x = np.arange(1001.0)
    base.line(axes, x, 2 * x, color="red")
    base.line(axes, x[:1], x[:1], color="red")
    long, point = axes.lines
    assert len(long.get_xdata()) <= base.MOST_POINTS + 1 and long.get_marker() == "None"
    assert (long.get_xdata()[0], long.get_ydata()[-1]) == (0, 2000)
    assert point.get_marker() == "o"  # a line of one point has no length
    assert base.evenly(5, 8) == [0, 1, 2, 3, 4] and base.evenly(24, 3) == [0, 12, 23]
    assert base.evenly(0, 3) == []


def test_names_are_cut_and_printable():
    assert base.cut("abcdef", 6) == "abcdef" and base.cut("abcdefg", 6) == "abcde…"
    assert base.cut("a\x01b\udc80", 6) == "a\ufffdb\ufffd"


def test_an_unknown_glyph_is_no_warning():
    with matplotlib.rc_context(base.STYLE):
        figure, axes = base.new(100)
        axes.set_xlabel("\u56fd")
        assert ">\u56fd</text>" in base.panel("a", "a", "a", figure).svg


def test_the_forest_shows_differences_intervals_and_verdicts(kept):
    compare = asked(("breakdown", "finetune", "scratch"), (5,), (0, 1))
    figure = comparison.forest_panels(some_findings(compare).contrasts, compare, ACCURACY)[0]
    axes = figure.axes[0]
    zero, *drawn_lines = axes.lines
    assert list(zero.get_xdata()) == [0, 0]
    band = axes.patches[0]
    assert (band.get_x(), band.get_width()) == (-0.02, 0.04)
    spans = [of.get_xdata() for of in drawn_lines if of.get_marker() == "None"]
    np.testing.assert_allclose(spans, [[0.01, 0.07], [-0.02, 0.04]])
    dots = [of.get_xydata()[0] for of in drawn_lines if of.get_marker() == "o"]
    np.testing.assert_allclose(dots, [[0.04, 0], [0.01, 1]])
    faces = [of.get_markerfacecolor() for of in drawn_lines if of.get_marker() == "o"]
    assert faces == [PALETTE[0], "none"]  # the second has no verdict
    assert [text.get_text() for text in axes.texts] == ["+4.0", "+1.0"]
    low, high = axes.get_xlim()
    assert low < -0.02 and high > 0.07


def test_a_difference_without_an_interval_is_a_dot(kept):
    compare = asked(("breakdown", "finetune"), (5,), (0,))
    found = Comparison(0.5, None, None, None, 1, 1)
    row = Contrast("breakdown", 5, ACCURACY, found, None, "too few seeds to tell")
    lost = replace(row, comparison=replace(found, difference=math.nan))
    axes = comparison.forest_panels([row, lost], compare, ACCURACY)[0].axes[0]
    assert [line.get_marker() for line in axes.lines[1:]] == ["o"]
    assert axes.lines[1].get_markerfacecolor() == "none"


def test_the_crossover_shows_who_is_ahead(kept):
    compare = asked(("breakdown", "finetune"), (5, 20, "all"))
    crossover = a_crossover("breakdown", "finetune", [5, 20])
    figure = comparison.crossover_panels([crossover], compare)[0]
    axes = figure.axes[0]
    by_colour = {of.get_color(): of for of in axes.lines if of.get_linewidth() == 6}
    assert list(by_colour) == [PALETTE[0], PALETTE[1]]
    for of, (low, high, _) in zip(by_colour.values(), crossover.ahead, strict=True):
        assert list(of.get_xdata()) == [low, high]
    between = next(of for of in axes.lines if of.get_linestyle() == ":")
    (_, end, _), (start, _, _) = crossover.ahead
    assert list(between.get_xdata()) == [end, start]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["5", "20"]
    texts = {text.get_text() for text in figure.legends[0].get_texts()}
    assert texts == {"ahead (in its colour)", "finetune is ahead", "the crossover lies here"}


def test_variance_bars_are_whole(kept):
    compare = asked(("breakdown", "finetune", "scratch"), (5,))
    rows = some_findings(compare).variances
    lost = replace(rows[0], method="scratch", share_of_seeds=math.nan)
    mean, difference = comparison.variance_panels([*rows, lost], compare, ACCURACY)[0].axes
    bars = [(bar.get_y() + 0.3, bar.get_x(), bar.get_width()) for bar in mean.patches]
    assert [pytest.approx(bar) for bar in bars] == [
        (0, 0, 0.2), (0, 0.2, 0.8), (1, 0, 0.7), (1, 0.7, 0.3)
    ]  # fmt: skip
    assert len(difference.patches) == 2


@pytest.mark.parametrize(("hits", "total"), [(0, 5), (5, 5), (3, 7), (180, 200)])
def test_wilson_intervals_agree_with_scipy(hits, total):
    expected = stats.binomtest(hits, total).proportion_ci(method="wilson")
    assert answers.wilson(hits, total) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_confusion_agrees_with_scikit_learn():
    found = some_answers(np.random.default_rng(3), 4)
    expected = confusion_matrix(found.labels, found.predicted, normalize="true")
    np.testing.assert_allclose(answers.confusion(found, 4), expected, atol=1e-15)
    assert (answers.confusion(found, 5)[4] == 0).all()


def test_cells_are_means_over_seeds_in_percent(kept):
    compare = asked(("finetune",), (5,), (0, 1))
    runs = an_evidence(compare).runs
    axes = answers.confusion_panels(runs, compare, CLASSES)[0].axes[0]
    mean = np.mean([answers.confusion(run.answers, 4) for run in runs], axis=0)
    for text in axes.texts:
        column, row = text.get_position()
        assert text.get_text() == f"{100 * mean[row, column]:.0f}"
    assert len(axes.texts) == len(axes.patches) == (mean >= 0.005).sum()
    darkest = max(axes.patches, key=lambda cell: cell.get_facecolor()[3])
    assert darkest.get_facecolor()[:3] == to_rgba(base.INK)[:3]
    assert darkest.get_facecolor()[3] == pytest.approx(0.42 * mean.max() ** 0.5)


def test_many_classes_have_a_panel_a_method():
    compare = asked(("finetune", "scratch"), (5,), (0,))
    classes = [f"class {n}" for n in range(7)]
    with matplotlib.rc_context(base.STYLE):
        panels = answers.confusion_panels(an_evidence(compare, classes).runs, compare, classes)
    assert names_of(panels) == ["confusion-finetune-n5", "confusion-scratch-n5"]


def test_recall_is_of_all_seeds_and_its_interval_of_one_test_set(kept):
    compare = asked(("finetune",), (5,), (0, 1))
    runs = an_evidence(compare).runs
    recall, precision = answers.class_panels(runs, compare, CLASSES)[0].axes
    counts = sum(confusion_matrix(run.answers.labels, run.answers.predicted) for run in runs)
    for axes, totals in ((recall, counts.sum(axis=1)), (precision, counts.sum(axis=0))):
        spans, dots = axes.lines[::2], axes.lines[1::2]
        for row, (span, dot) in enumerate(zip(spans, dots, strict=True)):
            expected = answers.wilson(counts[row, row] / 2, totals[row] / 2)
            assert tuple(span.get_xdata()) == pytest.approx(expected)
            assert dot.get_xdata()[0] == pytest.approx(counts[row, row] / totals[row])


def test_histograms_of_other_edges_are_averaged():
    even, narrow = Histogram([0.0, 1.0, 2.0], [1, 1]), Histogram([0.0, 0.5, 1.0], [0, 4])
    edges = np.array([0.0, 0.5, 1.0, 2.0])
    nothing = Histogram([0.0, 1.0], [0])
    expected = [(0.25 + 0) / 2, (0.25 + 1) / 2, (0.5 + 0) / 2]
    found = latents.mean_shares([even, narrow, nothing], edges)
    np.testing.assert_allclose(found, expected)
    assert (latents.mean_shares([nothing], edges) == 0).all()


def test_the_principal_plane_agrees_with_scikit_learn():
    places = np.random.default_rng(1).normal(size=(30, 5)) * [5, 3, 1, 1, 1]
    found, expected = latents.principal_plane(places), PCA(2).fit_transform(places)
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-10)
    np.testing.assert_allclose(latents.principal_plane(-places)[:, 0] ** 2, found[:, 0] ** 2)
    for column in found.T:
        assert column.max() == np.abs(column).max()
    line = latents.principal_plane(np.array([[1.0], [2.0], [6.0]]))
    np.testing.assert_allclose(line, [[-2, 0], [-1, 0], [3, 0]], atol=1e-12)


def test_neighbours_stay_neighbours():
    draw = np.random.default_rng(0)
    groups = np.arange(40) % 2
    places = draw.normal(size=(40, 5)) + 30 * groups[:, None]
    plane = latents.neighbour_plane(places)
    distances = np.linalg.norm(plane[:, None] - plane[None], axis=2) + np.diag([np.inf] * 40)
    assert (groups[distances.argmin(axis=1)] == groups).all()
    assert latents.neighbour_plane(np.ones((40, 5))).shape == (0, 2)  # a collapsed latent
    assert latents.neighbour_plane(places[:7]).shape == (0, 2)


def test_the_rest_of_many_classes_is_grey(kept):
    compare = asked(("finetune",), (5,), (0,))
    labels = np.repeat(np.arange(12), [*range(3, 15)])  # classes 0 and 1 have fewest images
    arrays = some_arrays(np.random.default_rng(0), 12, len(labels))
    arrays = {RunId("finetune", 5, 0): replace(arrays, labels=labels)}
    figure = latents.map_panels(arrays, compare, [f"class {n}" for n in range(12)])[0]
    sizes = [len(line.get_xdata()) for line in figure.axes[0].lines]
    assert sizes == [3 + 4, *range(5, 15)]
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == [*(f"class {n}" for n in range(2, 12)), "others"]
    colours = {line.get_color() for line in figure.axes[0].lines[1:]}
    assert len(colours) == 10


def test_maps_are_thinned():
    arrays = some_arrays(np.random.default_rng(0), 5, 500)
    assert len(latents._thinned(arrays, 3).labels) == 300
    assert len(latents._thinned(arrays, 24).labels) == 100


def gradients_of(rows):
    return pd.DataFrame(rows, columns=["phase", "epoch", "layer", "norm"])


def test_ratios_are_of_the_first_layer_over_the_last():
    rows = [("encoder", e, layer, norm) for e, norms in ((1.0, (8, 3, 2)), (2.0, (1, 5, 0)))
            for layer, norm in zip("abc", norms, strict=True)]  # fmt: skip
    rows += [("head", 1.0, "d", 7.0)]
    rows += [("release", e, layer, n) for e in (1.0, 2.0) for layer, n in (("a", 6), ("d", 3))]
    found = network.ratios(gradients_of(rows))
    assert [curve.phase for curve in found] == ["encoder", "release"]
    np.testing.assert_array_equal(found[0].values, [4])  # the second would be infinite
    np.testing.assert_array_equal(found[1].seen, [4, 5])  # after two epochs and one
    np.testing.assert_array_equal(found[1].values, [2, 2])
    assert network.ratios(gradients_of([])) == []


def test_layers_stand_in_the_order_of_the_network():
    rounds = [("1", 1, "d"), *[("2", 1, name) for name in "cd"]]
    rounds += [("3", 1, name) for name in "abcd"]
    found = network.layer_norms([gradients_of([(*row, 1.0) for row in rounds])])
    assert list(found.index) == ["a", "b", "c", "d"]
    parts = [("encoder", 1, "a"), ("encoder", 1, "b"), ("head", 1, "c"), ("head", 1, "d")]
    found = network.layer_norms([gradients_of([(*row, 1.0) for row in parts])])
    assert list(found.index) == ["a", "b", "c", "d"]


def test_layer_norms_are_geometric_means_of_the_last_phase():
    def seed(scale):
        rows = [("encoder", e, "a", 99.0) for e in (1, 2)]
        rows += [("release", e, layer, scale * e) for e in (1, 2, 3) for layer in "ab"]
        return gradients_of(rows)

    lost = gradients_of([("release", 1, "a", np.nan), ("release", 1, "b", 0.0)])
    found = network.layer_norms([seed(1.0), seed(4.0), lost])
    np.testing.assert_allclose(found.to_numpy(), [[2, 4, 6]] * 2)


def test_gaps_are_means_over_seeds(kept):
    compare = asked(("finetune",), (5,), (0, 1))
    runs = an_evidence(compare).runs
    axes = network.gap_panels(runs, compare)[0].axes[0]
    train = np.mean([run.values["fit/train_accuracy"] for run in runs])
    val = np.mean([run.values["fit/val_accuracy"] for run in runs])
    hollow, filled = axes.lines[-2:]
    assert hollow.get_xdata()[0] == pytest.approx(train) and hollow.get_mfc() == "none"
    assert filled.get_xdata()[0] == pytest.approx(val) and filled.get_mfc() == PALETTE[0]


def test_at_most_eight_layers_are_drawn(kept):
    compare = asked(("finetune",), (5,), (3,))
    layers = [f"layer {n}" for n in range(24)]
    run = a_run(RunId("finetune", 5, 3), compare, layers=layers)
    figure = network.weight_panels([run, replace(run, id=RunId("finetune", 5, 4))], compare)[0]
    names = [axes.get_title(loc="left") for axes in figure.axes]
    assert len(names) == 8 and names[0] == "layer 0" and names[-1] == "layer 23"
    # the first began at random: nothing before
    assert [len(axes.patches) for axes in figure.axes] == [1, *[2] * 7]


def test_a_mosaic_has_filters_beside_each_other_and_grey_for_zero():
    filters = np.zeros((9, 1, 2, 2), dtype=np.float32)
    filters[0, 0] = [[1, -1], [np.nan, 0.5]]
    picture = network.mosaic(filters, 1.0)
    assert picture.shape == (5, 23, 4)
    np.testing.assert_array_equal(picture[:2, :2, 0], [[255, 0], [128, 191]])
    assert (picture[:, 2, 3] == 0).all() and (picture[2, :, 3] == 0).all()  # gaps
    assert (picture[3:, :2, 3] == 255).all() and (picture[3:, 3:, 3] == 0).all()  # the ninth
    assert (network.mosaic(np.zeros((1, 4, 2, 2), np.float32), 0.0)[..., :3] == 128).all()
    rgb = np.array([1, 0, -1], np.float32).reshape(1, 3, 1, 1)
    np.testing.assert_array_equal(network.mosaic(rgb, 1.0), [[[255, 128, 0, 255]]])


def test_phases_follow_one_another():
    compare = asked()
    run = a_run(RunId("breakdown", 5, 0), compare)
    found = curves.curves_of(run.history, "val/loss", lambda rows: True)
    assert [curve.phase for curve in found] == ["encoder", "head"]
    seen = np.concatenate([curve.seen for curve in found])
    assert (np.diff(seen) > 0).all() and len(seen) == len(run.history)
    shorter = replace(found[0], values=found[0].values[:4] + 2, seen=found[0].seen[:4])
    (_, mean), *_ = curves.mean_curves([found[0], shorter])
    np.testing.assert_allclose(mean, found[0].values[:4] + 1)
    (only,) = curves.curves_of(run.history, "val/accuracy", curves.has_accuracy)
    assert only.phase == "head"
    assert curves.curves_of(run.history, "none", curves.has_accuracy) == []


def test_losses_by_epoch_are_means_over_seeds_as_far_as_all_run():
    def history(losses, phase="head"):
        epochs = range(1, len(losses) + 1)
        rows = [(phase, epoch, loss - 1, loss) for epoch, loss in zip(epochs, losses, strict=True)]
        return pd.DataFrame(rows, columns=["phase", "epoch", "train/loss", "val/loss"])

    blind = pd.DataFrame({"phase": ["solve"], "epoch": [1.0], "val/accuracy": [0.5]})
    found = curves.mean_losses([history([5.0, 3.0]), history([7.0, 5.0, 1.0]), blind])
    assert list(found) == ["head"]
    assert found["head"]["val/loss"].to_dict() == {1: 6.0, 2: 4.0}
    assert found["head"]["train/loss"].to_dict() == {1: 5.0, 2: 3.0}
    assert curves.mean_losses([blind]) == {}
    assert curves.mean_losses([history([np.nan])]) == {}
    assert curves.mean_losses([history([2.0])]) == {}  # one epoch is no course
