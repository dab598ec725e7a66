import csv
import json
import re
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t

from pipeline.errors import InputError
from pipeline.records import RunId, read_json, write_json
from pipeline.report import figures, summary
from pipeline.stages.evaluate import evaluate
from tests.report.fake_runs import (
    fake_params,
    verification_params,
    write_run,
    write_runs,
    write_verification_runs,
)

DETERMINISTIC = (
    *("results.csv", "metrics.json", "comparison.csv", "variance.csv", "crossover.csv"),
    *("claims.csv", "confusion.csv", "training.csv", "accuracy.csv", "figures"),
)
RUN = Path("runs/breakdown/shots-5/seed-0")
PREDICTIONS = Path("predictions/breakdown-n5-s0.csv")


PANEL = figures.Panel("accuracy-n5", "accuracy", "Accuracy", "<svg></svg>\n")
TEST_TIMING = Path("predictions/breakdown-n5-s0.timing.json")


@pytest.fixture
def undrawn(monkeypatch):
    """A panel that stands for all: drawing takes longest, and few tests are about it."""
    monkeypatch.setattr(figures, "draw", lambda *_: [PANEL])


@pytest.fixture
def drawn_params(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = fake_params(seeds=(0, 1))
    write_runs(params)
    return params


@pytest.fixture
def params(drawn_params, undrawn):
    return drawn_params


def rows_of(name):
    with open(f"reports/{name}", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def bytes_of(*names):
    roots = [Path("reports", name) for name in names]
    paths = [p for root in roots for p in (sorted(root.iterdir()) if root.is_dir() else [root])]
    return {str(path): path.read_bytes() for path in paths}


def test_results_are_tidy_and_recomputable(params):
    evaluate(params)
    rows = rows_of("results.csv")
    of_first = [row["metric"] for row in rows if list(row.values())[:3] == ["breakdown", "5", "0"]]
    assert of_first[:11] == [
        *("test/accuracy", "test/macro_f1", "test/nll", "test/ece"),
        *(f"test/recall/{name}" for name in ("five", "six", "seven", "eight", "nine")),
        *("best/val_accuracy", "cost/images_seen"),
    ]
    assert {name.split("/")[0] for name in of_first[11:-1]} == {"fit", "latent"}
    assert of_first[-1] == "diverged"
    methods = list(dict.fromkeys(row["method"] for row in rows))
    assert methods == params.compare.methods and len(rows) == 12 * len(of_first)
    accuracy = {
        (row["method"], row["shots"], row["seed"]): float(row["value"])
        for row in rows
        if row["metric"] == "test/accuracy"
    }
    for (method, shots, seed), value in accuracy.items():
        with open(f"predictions/{method}-n{shots}-s{seed}.csv", newline="", encoding="utf-8") as f:
            answers = [row["label"] == row["predicted"] for row in csv.DictReader(f)]
        assert value == sum(answers) / len(answers)
    metrics = json.loads(Path("reports/metrics.json").read_text(encoding="utf-8"))
    found = metrics["scratch"]["20"]["test/accuracy"]
    assert found["mean"] == np.mean([accuracy["scratch", "20", seed] for seed in "01"])
    assert found["low"] < found["mean"] < found["high"] and found["n"] == 2
    assert set(metrics["scratch"]["20"]) == {row["metric"] for row in rows[:4]}
    first = rows_of("comparison.csv")[0]
    differences = [
        accuracy["breakdown", "5", seed] - accuracy["finetune", "5", seed] for seed in "01"
    ]
    assert float(first["difference"]) == pytest.approx(np.mean(differences), abs=1e-15)
    assert (first["method"], first["shots"], first["n"]) == ("breakdown", "5", "2")


def test_the_recall_of_each_class_is_compared(params):
    evaluate(params)
    recalls = {
        (row["method"], row["shots"], row["seed"]): float(row["value"])
        for row in rows_of("results.csv")
        if row["metric"] == "test/recall/seven"
    }
    for (method, shots, seed), value in recalls.items():
        with open(f"predictions/{method}-n{shots}-s{seed}.csv", newline="", encoding="utf-8") as f:
            hits = [row["predicted"] == "2" for row in csv.DictReader(f) if row["label"] == "2"]
        assert value == sum(hits) / len(hits)
    rows = rows_of("comparison.csv")
    metrics = ["accuracy", "macro_f1", "nll", "ece"]
    metrics += [f"recall/{name}" for name in ("five", "six", "seven", "eight", "nine")]
    assert [(row["method"], row["shots"], row["metric"]) for row in rows] == [
        (method, shots, f"test/{metric}")
        for method in ("breakdown", "scratch")
        for shots in ("5", "20")
        for metric in metrics
    ]
    of = {(row["method"], row["metric"]): row for row in rows if row["shots"] == "20"}
    found = of["scratch", "test/recall/seven"]
    differences = [
        recalls["scratch", "20", seed] - recalls["finetune", "20", seed] for seed in "01"
    ]
    assert float(found["difference"]) == pytest.approx(np.mean(differences), abs=1e-15)
    hits = {}
    for method, seed in product(("scratch", "finetune"), "01"):
        with open(f"predictions/{method}-n20-s{seed}.csv", newline="", encoding="utf-8") as f:
            answers = [row["predicted"] == "2" for row in csv.DictReader(f) if row["label"] == "2"]
        hits[method, seed] = np.array(answers, float)
    table = np.array([hits["scratch", seed] - hits["finetune", seed] for seed in "01"])
    seeds, units = table.shape
    of_seeds = units * table.mean(axis=1).var(ddof=1)
    of_units = seeds * table.mean(axis=0).var(ddof=1)
    left = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()
    rest = (left**2).sum() / ((seeds - 1) * (units - 1))
    error = np.sqrt(max(of_seeds + of_units - rest, 0.4 * of_units) / table.size)
    expected = 2 * t.sf(abs(table.mean()) / error, df=1)  # n - 1 below five seeds
    assert float(found["p_value"]) == pytest.approx(expected, abs=1e-12)
    # of two methods, the smaller p doubles
    p = sorted(float(of[m, "test/recall/seven"]["p_value"]) for m in ("breakdown", "scratch"))
    adjusted = sorted(
        float(of[m, "test/recall/seven"]["p_adjusted"]) for m in ("breakdown", "scratch")
    )
    assert adjusted[0] == pytest.approx(min(1, 2 * p[0]))


@pytest.mark.parametrize(("positive", "label"), [("canker", 0), ("healthy", 1), (None, 1)])
def test_two_classes_have_metrics_of_the_positive_one(
    tmp_path, monkeypatch, undrawn, positive, label
):
    monkeypatch.chdir(tmp_path)
    params = fake_params(seeds=(0, 1), shots=(5,), positive=positive, beta=2.0)
    write_runs(params, ("canker", "healthy"))
    evaluate(params)
    with open("predictions/scratch-n5-s1.csv", newline="", encoding="utf-8") as file:
        answers = [(int(row["label"]), int(row["predicted"])) for row in csv.DictReader(file)]
    hits = answers.count((label, label))
    said = sum(predicted == label for _, predicted in answers)
    true = sum(own == label for own, _ in answers)
    expected = {
        "test/precision": hits / said,
        "test/recall": hits / true,
        "test/f_beta": 5 * hits / (4 * true + said),
    }
    results = {
        row["metric"]: float(row["value"])
        for row in rows_of("results.csv")
        if (row["method"], row["seed"]) == ("scratch", "1")
    }
    compared = {row["metric"] for row in rows_of("comparison.csv")}
    means = json.loads(Path("reports/metrics.json").read_text(encoding="utf-8"))["scratch"]["5"]
    for metric, value in expected.items():
        assert results[metric] == pytest.approx(value, abs=1e-12)
        assert metric in compared and means[metric]["n"] == 2
    assert "test/recall/canker" in compared and "test/recall/canker" not in means


@pytest.mark.parametrize("classes", [("canker", "healthy"), ("a", "b", "c")])
def test_a_positive_that_is_no_class_is_refused(tmp_path, monkeypatch, classes):
    monkeypatch.chdir(tmp_path)
    params = fake_params(positive="cankr")
    write_runs(params, classes)
    with pytest.raises(InputError) as error:
        evaluate(params)
    assert str(error.value) == (
        "params.yaml: compare.positive: 'cankr' is no class; the classes are " + ", ".join(classes)
    )


def test_costs_have_a_row_a_phase(params):
    evaluate(params)
    phases = [
        (row["phase"], row["images_seen"])
        for row in rows_of("costs.csv")
        if (row["shots"], row["seed"]) == ("5", "0")
    ]
    whole, tested = ("end_to_end", "4500"), ("test", "150")
    assert phases == [
        *(("encoder", "4500"), ("head", "4500"), tested, whole, tested, whole, tested),
    ]


def test_leftovers_change_nothing(params):
    evaluate(params)
    before = bytes_of(*DETERMINISTIC, "index.html", "costs.csv")
    write_run(RunId("finetune", 5, 7), breakdown=False)
    write_run(RunId("scratch", 99, 0), breakdown=False)
    write_run(RunId("removed", 5, 0), breakdown=False)
    Path("reports/figures/old.svg").write_text("old", encoding="utf-8")
    evaluate(params)
    assert bytes_of(*DETERMINISTIC, "index.html", "costs.csv") == before


@pytest.mark.parametrize("path", [RUN / "timing.json", TEST_TIMING])
def test_other_timings_change_costs_and_page_only(drawn_params, path):
    params = drawn_params.model_copy(
        update={"compare": drawn_params.compare.model_copy(update={"shots": [5]})}
    )
    evaluate(params)
    before = bytes_of(*DETERMINISTIC)
    costs = bytes_of("costs.csv", "index.html")
    timing = read_json(path)
    timing["phases"][0] |= {"seconds": 99.5, "peak_memory_mb": None}
    write_json(path, timing)
    shutil.rmtree("reports")
    evaluate(params)
    assert bytes_of(*DETERMINISTIC) == before
    after = bytes_of("costs.csv", "index.html")
    assert all(after[name] != costs[name] for name in costs)
    assert not list(Path("reports").glob(".*"))


def test_one_seed_speaks_of_test_images_alone(tmp_path, monkeypatch, undrawn):
    monkeypatch.chdir(tmp_path)
    params = fake_params(shots=(5,), seeds=(0,))
    write_runs(params)
    evaluate(params)
    metrics = json.loads(Path("reports/metrics.json").read_text(encoding="utf-8"))
    found = metrics["finetune"]["5"]["test/ece"]
    assert found["low"] < found["mean"] < found["high"] and found["n"] == 1
    row = rows_of("comparison.csv")[0]
    assert (row["p_value"], row["p_adjusted"], row["population"]) == ("", "", "units")
    assert row["verdict"] == "too few seeds to tell"


def test_a_diverged_run_is_a_result(params):
    write_runs(params, diverged=[RunId("scratch", 20, 1)])
    evaluate(params)
    marked = [
        (row["method"], row["shots"], row["seed"])
        for row in rows_of("results.csv")
        if row["metric"] == "diverged" and row["value"] == "1"
    ]
    assert marked == [("scratch", "20", "1")]


def test_the_printed_table_counts_diverged_runs_beside_the_seeds(params, capsys):
    write_runs(params, diverged=[RunId("scratch", 20, 1)])
    evaluate(params)
    lines = capsys.readouterr().out.splitlines()
    seeds = len(params.compare.seeds)
    marked = [line.split()[:2] for line in lines if f"  {seeds}, 1 diverged" in line]
    assert marked == [["20", "scratch"]]
    assert sum("1 diverged" in line for line in lines) == 1


@pytest.mark.parametrize(
    "path",
    [
        PREDICTIONS,
        *(RUN / name for name in ("record.json", "history.csv", "timing.json")),
        RUN / "encoder" / "timing.json",
        TEST_TIMING,
        Path("prepared/summary.json"),
    ],
)
@pytest.mark.parametrize("damage", ["missing", "empty", "binary"])
def test_a_missing_or_damaged_file_is_named(params, path, damage):
    path.unlink() if damage == "missing" else path.write_bytes(
        b"" if damage == "empty" else b"\xff\xfe\x00\x9d,\n"
    )
    with pytest.raises(InputError, match=re.escape(str(path))) as error:
        evaluate(params)
    assert "dvc repro" in str(error.value) and "\n" not in str(error.value)


def test_a_missing_picture_is_named(params):
    path = Path("predictions/scratch-n20-s0.png")
    path.unlink()
    with pytest.raises(InputError, match=re.escape(f"{path}: cannot be read (No such file")):
        evaluate(params)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("image,label", "picture,label", "columns must be"),
        ("five/image 0.png,0,", "five/image 0.png,9,", "class numbers below 5"),
        ("five/image 0.png,0,", "five/image 0.png,x,", "no number"),
        ("five/image 0.png", "other.png", "not of the test images and classes"),
        ("p_nine", "p_ten", "not of the test images and classes"),
    ],
)
def test_predictions_that_cannot_be_are_refused(params, old, new, said):
    path = Path("predictions/finetune-n5-s1.csv")
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(InputError, match=said) as error:
        evaluate(params)
    assert str(error.value).startswith(str(path))


def test_probabilities_that_do_not_sum_to_one_are_refused_with_their_line(params):
    lines = PREDICTIONS.read_text(encoding="utf-8").splitlines()
    lines[3] = ",".join(lines[3].split(",")[:3] + ["0.5"] * 5)
    PREDICTIONS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=f"{PREDICTIONS}:4: probabilities"):
        evaluate(params)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "version is 2"),
        ({"inputs": None}, "'inputs' is missing"),
        ({"seed": 5}, "record of another run"),
        ({"phases": [{"phase": "head"}]}, "each of 'phases' must have chosen_epoch, epochs, "),
    ],
)
def test_a_record_that_does_not_fit_is_refused(params, change, said):
    write_json(RUN / "record.json", read_json(RUN / "record.json") | change)
    with pytest.raises(InputError, match=said):
        evaluate(params)


def test_a_test_timing_of_another_phase_is_refused(params):
    write_json(TEST_TIMING, read_json(RUN / "timing.json"))
    with pytest.raises(InputError, match=f"^{TEST_TIMING}: 'phases' must be one phase 'test': "):
        evaluate(params)


def test_summary_table_needs_the_reports_alone(params, capsys):
    evaluate(params)
    printed = capsys.readouterr().out.strip()
    shutil.rmtree("runs")
    assert summary.summary_table() == printed
    metrics = json.loads(Path("reports/metrics.json").read_text(encoding="utf-8"))
    rows = [line.split() for line in printed.split("\n\n")[1].splitlines()[1:]]
    assert [row[:2] for row in rows] == [
        [shots, method] for shots in ("5", "20") for method in params.compare.methods
    ]
    for row in rows:
        assert row[2] == f"{100 * metrics[row[1]][row[0]]['test/accuracy']['mean']:.1f}"
    assert rows[1][-1] == "(reference)"
    summary.main()
    out = capsys.readouterr().out
    assert printed in out and "make ui" in out and "reports/index.html" in out


@pytest.fixture
def drawn_verified(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = verification_params(seeds=(0, 1))
    write_verification_runs(params, pairs=60)
    return params


@pytest.fixture
def verified(drawn_verified, undrawn):
    return drawn_verified


def test_the_tables_of_verification(verified):
    evaluate(verified)
    metrics = [
        *("test/official_accuracy", "test/accuracy", "test/roc_auc", "test/eer"),
        *("test/tar_at_far_0.01", "test/tar_at_far_0.001", "test/5_way_1_shot_accuracy"),
    ]
    results = rows_of("results.csv")
    assert [row["metric"] for row in results[:7]] == metrics
    with open("predictions/features-nall-s1.csv", newline="", encoding="utf-8") as file:
        official = [row for row in csv.DictReader(file) if row["set"] == "official"]
    right = sum(row["label"] == row["predicted"] for row in official) / len(official)
    values = {
        row["metric"]: float(row["value"])
        for row in results
        if (row["method"], row["seed"]) == ("features", "1")
    }
    assert len(official) == 400 and values["test/official_accuracy"] == right
    accuracy = {(row["method"], row["seed"]): row["accuracy"] for row in rows_of("accuracy.csv")}
    assert float(accuracy["features", "1"]) == right
    means = json.loads(Path("reports/metrics.json").read_text(encoding="utf-8"))
    assert set(means["features"]["all"]) == set(metrics)
    compared = {(row["method"], row["metric"]): row for row in rows_of("comparison.csv")}
    assert set(compared) == {(method, m) for method in ("breakdown", "features") for m in metrics}
    errors = compared["features", "test/eer"]
    # more errors are no win
    assert float(errors["difference"]) > 0 and errors["wins"] == "0"
    rows = rows_of("identity_intervals.csv")
    assert [row["metric"] for row in rows] == metrics * 3
    assert {row["unit"]: row["units"] for row in rows if row["metric"] in metrics[:2]} == {
        "run": "20",
        "identity": "30",
    }
    assert {row["method"] for row in rows if not row["difference"]} == {"siamese"}


def test_a_second_evaluation_of_verification_writes_the_same_bytes(drawn_verified):
    names = (*DETERMINISTIC, "identity_intervals.csv", "accuracy.csv", "index.html")
    evaluate(drawn_verified)
    before = bytes_of(*names)
    shutil.rmtree("reports")
    evaluate(drawn_verified)
    assert bytes_of(*names) == before


def test_the_printed_table_is_of_the_primary_metric(verified, capsys):
    evaluate(verified)
    printed = capsys.readouterr().out.strip()
    assert printed.startswith("One-shot accuracy on the official runs, mean over seeds and 95 %")
    means = json.loads(Path("reports/metrics.json").read_text(encoding="utf-8"))
    for row in (line.split() for line in printed.split("\n\n")[1].splitlines()[1:]):
        assert row[2] == f"{100 * means[row[1]]['all']['test/official_accuracy']['mean']:.1f}"


def test_other_questions_are_refused(verified):
    path = Path("predictions/features-nall-s1.csv")
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("/0a.jpg", "/0c.jpg", 1), encoding="utf-8")
    with pytest.raises(InputError, match=f"{path}: not of the test images and classes of"):
        evaluate(verified)


def test_classification_has_no_intervals_over_what_is_tested(params):
    evaluate(params)
    table = Path("reports/identity_intervals.csv").read_text(encoding="utf-8")
    assert table == (
        "method,shots,metric,mean,low,high,unit,units,difference,difference_low,difference_high,"
        "note\n"
    )


def test_a_summary_of_no_results_is_one_line(params, capsys):
    evaluate(params)
    Path("reports/results.csv").write_text("method,shots,seed,metric,value\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"^reports: its files do not belong together"):
        summary.summary_table()


def test_summary_without_reports_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        summary.main()
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "reports/results.csv" in error and "dvc repro" in error


def test_evaluate_and_the_report_import_no_torch():
    code = (
        "import sys, pipeline.stages.evaluate, pipeline.report.summary; "
        "sys.exit(sum(m in sys.modules for m in ('torch', 'mlflow', 'matplotlib.pyplot')))"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, timeout=60).returncode == 0
