"""Many runs in one comparison: what is read, drawn and kept grows no faster than they do."""

from __future__ import annotations

import builtins
import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from benchmarks.many_runs import made_params, make
from pipeline.params import Compare
from pipeline.records import RunId, runs_of
from pipeline.report import figures
from pipeline.report.figures import MOST_FRAMED, base, detailed
from pipeline.stages.evaluate import evaluate

PANEL = figures.Panel("accuracy-n5", "accuracy", "Accuracy", "<svg></svg>\n")


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """How often each file of the project is opened."""
    monkeypatch.chdir(tmp_path)
    counts: Counter[str] = Counter()

    def counting(usual):
        def count(file, *given, **named):
            if not isinstance(file, int):
                counts[str(file)] += 1
            return usual(file, *given, **named)

        return count

    monkeypatch.setattr(builtins, "open", counting(builtins.open))
    monkeypatch.setattr(io, "open", counting(io.open))
    return counts


def test_files_are_read_a_fixed_number_of_times_however_many_runs_there_are(opened, monkeypatch):
    monkeypatch.setattr(figures, "draw", lambda *_: [PANEL])
    found = {}
    for runs in (12, 60):
        params = made_params(runs, methods=3, shots=2)
        assert len(runs_of(params.compare)) == runs
        make(params)
        opened.clear()
        evaluate(params)
        read = [
            path
            for path in opened
            if path.startswith(("runs/", "predictions/")) and not path.endswith((".png", ".npz"))
        ]
        found[runs] = sum(opened[path] for path in read) / runs
        assert max(opened[path] for path in read) <= 2  # a table, and its header
        assert sum(path.endswith(".npz") for path in opened) == 3  # of each method one
    assert found[60] == pytest.approx(found[12]) and found[60] > 5


def test_sizes_grow_with_the_runs_and_the_page_hardly(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(figures, "draw", lambda *_: [PANEL])
    sizes = {}
    for runs in (30, 60):
        params = made_params(runs, methods=3, shots=2)
        make(params)
        evaluate(params)
        names = ("results.csv", "costs.csv", "index.html")
        sizes[runs] = {name: (Path("reports") / name).stat().st_size for name in names}
    for name in ("results.csv", "costs.csv"):
        assert sizes[60][name] == pytest.approx(2 * sizes[30][name], rel=0.05)
    assert sizes[60]["index.html"] < 1.3 * sizes[30]["index.html"]


def test_of_very_many_methods_the_reference_and_the_best_are_shown_in_detail(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(base, "panel", named)  # to render them takes most of the time
    params = made_params(18, methods=18, shots=1)
    make(params)
    evaluate(params)
    drawn = {path.stem: path.read_text("utf-8") for path in Path("reports/figures").iterdir()}
    methods = params.compare.methods
    means = {m: float(np.mean(accuracies(m, params.compare))) for m in methods}
    others = sorted((m for m in methods if m != "finetune"), key=lambda m: -means[m])
    shown = {"finetune", *others[: MOST_FRAMED - 1]}
    assert {m for m in methods if f">{m}<" in drawn["training-n5"]} == shown
    assert all(f">{m}<" in drawn["accuracy-n5"] for m in methods if len(m) < 18)
    assert sum(name.startswith("weights-") for name in drawn) == MOST_FRAMED
    page = Path("reports/index.html").read_text("utf-8")
    assert f"finetune and the {MOST_FRAMED - 1} others that do best" in page


def named(name: str, group: str, title: str, figure: Figure) -> figures.Panel:
    """A panel that says what its frames and rows are called, and draws nothing."""
    texts = [text for axes in figure.axes for text in (axes.title, *axes.get_yticklabels())]
    texts += [axes.get_title("left") for axes in figure.axes]
    said = "".join(f"<text>{of if isinstance(of, str) else of.get_text()}</text>" for of in texts)
    return figures.Panel(name, group, title, f"<svg>{said}</svg>\n")


def accuracies(method: str, compare: Compare) -> list[float]:
    """Of each seed, by its predictions."""
    found = []
    for seed in compare.seeds:
        path = RunId(method, compare.shots[-1], seed).predictions
        rows = [line.split(",")[1:3] for line in path.read_text("utf-8").splitlines()[1:]]
        found.append(float(np.mean([label == said for label, said in rows])))
    return found


def test_few_methods_are_all_shown():
    compare = made_params(MOST_FRAMED, MOST_FRAMED, 1).compare
    assert detailed(compare, None, "test/accuracy") == compare.methods
