"""Numbers that cannot be, runs that came to nothing, and test sets that hardly are any.

Each ends in defined results or in one line that names the file; never in a silent NaN.
"""

from __future__ import annotations

import csv
import errno
import io
import itertools
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import check, recipes
from pipeline.errors import InputError
from pipeline.params import Params
from pipeline.records import (
    ANSWER_COLUMNS,
    RunId,
    read_json,
    runs_of,
    write_atomically,
    write_history,
    write_json,
    write_table,
)
from pipeline.report import figures
from pipeline.stages import common
from pipeline.stages.evaluate import evaluate
from pipeline.training import checkpoints
from pipeline.training.checkpoints import Checkpoint
from pipeline.training.divergence import reason
from pipeline.training.loop import fit, snapshot
from pipeline.training.phase import Phase
from tests.digits import make_run
from tests.report.fake_runs import (
    CLASSES,
    fake_params,
    verification_params,
    write_runs,
    write_verification_runs,
)

NUMBERS = ("value", "difference", "low", "high", "p_value", "seconds", "norm")
PANEL = figures.Panel("accuracy-n5", "accuracy", "Accuracy", "<svg></svg>\n")
ONE_CLASS = "{} give every test image one class, whatever it shows"
RUN = RunId("breakdown", 5, 0)
CPU = torch.device("cpu")
IMAGE_COLUMNS = ("row", "image", "label", "class", "split", "group")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def undrawn(monkeypatch):
    """A panel that stands for all: drawing takes longest."""
    monkeypatch.setattr(figures, "draw", lambda *_: [PANEL])


def small(**more: Any) -> Params:
    return fake_params(**{"shots": (5,), "seeds": (0, 1), **more})


def answer(
    params: Params, labels: Sequence[int], shares: Callable[[RunId], Any], classes: Any = CLASSES
) -> Params:
    """Runs whose test images have these labels and whose probabilities are ``shares``."""
    write_runs(params, classes)
    names = [f"{classes[label]}/image {row}.png" for row, label in enumerate(labels)]
    images = [(n, name, labels[n], classes[labels[n]], "test", "") for n, name in enumerate(names)]
    write_table("prepared/images.csv", images, IMAGE_COLUMNS)
    header = ["image", "label", "predicted", *(f"p_{name}" for name in classes)]
    for run in runs_of(params.compare):
        found = np.asarray(shares(run), float)
        said = found.argmax(axis=1).tolist()
        rows = zip(names, labels, said, found.tolist(), strict=True)
        write_table(run.predictions, ([n, of, to, *p] for n, of, to, p in rows), header)
    return params


def drawn(run: RunId, images: int, classes: int = 5) -> Any:
    """Probabilities that differ from run to run."""
    draw = np.random.default_rng([*run.method.encode(), run.seed])
    return draw.dirichlet(np.ones(classes), images)


def check_reports() -> dict[str, Any]:
    """Nothing in ``reports/`` is NaN or infinite; the headline metrics."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in JSON")

    for path in Path("reports").glob("*.csv"):
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                found = [row[name] for name in NUMBERS if row.get(name)]
                assert all(math.isfinite(float(value)) for value in found), (path, row)
    shown = Path("reports/index.html").read_text(encoding="utf-8")
    assert not re.search(r">\s*[−-]?(nan|inf|None)\b", shown)
    told = Path("reports/report.md").read_text(encoding="utf-8")
    assert not re.search(r"\|\s*[−-]?(nan|inf|None)\s*\|", told)
    return json.loads(
        Path("reports/metrics.json").read_text(encoding="utf-8"), parse_constant=refuse
    )


LABELS = {
    "a class without test images": [0, 1, 2, 3] * 10,
    "one class has all test images": [2] * 20,
    "a class of one test image": [0, *[1, 2, 3, 4] * 10],
    "two test images": [2, 1],
    "one test image": [3],
}


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("seeds", [(0,), (0, 1)], ids=["one seed", "two seeds"])
def test_any_test_set_has_defined_results(undrawn, labels, seeds):
    params = answer(small(seeds=seeds), labels, lambda run: drawn(run, len(labels)))
    evaluate(params)
    found = check_reports()["finetune"]["5"]
    right = [
        np.mean(drawn(RunId("finetune", 5, seed), len(labels)).argmax(axis=1) == labels)
        for seed in seeds
    ]
    assert found["test/accuracy"]["mean"] == pytest.approx(np.mean(right))
    with open("reports/results.csv", newline="", encoding="utf-8") as file:
        recalls = {r["metric"] for r in csv.DictReader(file) if "recall/" in r["metric"]}
    assert recalls == {f"test/recall/{CLASSES[label]}" for label in set(labels)}


FIVE = np.arange(40) % 5
ANSWERS = {
    "all predictions one class": lambda run: np.tile(np.eye(5)[1], (40, 1)),
    "one method predicts one class": lambda run: (
        np.tile(np.eye(5)[1], (40, 1)) if run.method == "breakdown" else drawn(run, 40)
    ),
    "ties everywhere": lambda run: np.full((40, 5), 0.2),
    "all right": lambda run: np.eye(5)[FIVE],
    "all wrong": lambda run: np.eye(5)[(FIVE + 1) % 5],
    "one right, the others wrong": lambda run: np.eye(5)[(FIVE + (run.method != "finetune")) % 5],
    "equal in every seed": lambda run: drawn(RunId(run.method, 5, 0), 40),
    "equal in every method": lambda run: drawn(RunId("finetune", 5, run.seed), 40),
}


@pytest.mark.parametrize("shares", ANSWERS.values(), ids=ANSWERS)
def test_any_answers_have_defined_results(undrawn, shares):
    params = answer(small(seeds=range(7)), FIVE.tolist(), shares)
    evaluate(params)
    found = check_reports()
    for method in params.compare.methods:
        said = [shares(RunId(method, 5, seed)).argmax(axis=1) == FIVE for seed in range(7)]
        assert found[method]["5"]["test/accuracy"]["mean"] == pytest.approx(np.mean(said))


def test_runs_that_give_every_image_one_class_are_warned_of(undrawn):
    shares = ANSWERS["one method predicts one class"]
    evaluate(answer(small(), FIVE.tolist(), shares))
    assert ONE_CLASS.format("2 runs (of breakdown)") in Path("reports/report.md").read_text("utf-8")
    evaluate(answer(small(), [0] * 40, shares))  # here it is the right answer
    assert "whatever it shows" not in Path("reports/report.md").read_text("utf-8")


def test_two_classes_of_which_the_positive_one_is_never_met(undrawn):
    only = answer(small(), [0] * 12, lambda run: np.tile([1.0, 0.0], (12, 1)), ("no", "yes"))
    evaluate(only)
    found = check_reports()["breakdown"]["5"]
    assert [found[f"test/{of}"]["mean"] for of in ("precision", "recall", "f_beta")] == [0, 0, 0]


@pytest.mark.parametrize(
    "compare",
    [
        {"breakdowns": (), "baselines": ("finetune",)},
        {"baselines": (), "reference": "breakdown"},
        {"seeds": (3,), "shots": (1,)},
        {"shots": ("all",)},
        {"smallest_effect": 1e-300},
    ],
    ids=["one baseline", "one breakdown", "one seed and shot", "all shots", "no effect too small"],
)
def test_any_comparison_has_defined_results(undrawn, compare):
    params = small(**compare)
    write_runs(params)
    evaluate(params)
    assert set(check_reports()) == set(params.compare.methods)


def test_runs_that_all_diverged_at_once_still_make_a_report():
    """As they are left: no epoch, no gradient, latents that are not finite."""
    params = small()
    write_runs(params, diverged=runs_of(params.compare))
    for run in runs_of(params.compare):
        record = read_json(run.folder / "record.json")
        at_once = {"phase": "encoder", "status": "diverged", "epochs": 0, "chosen_epoch": 0}
        record |= {"phases": [at_once], "metrics": {"cost/images_seen": 40}}
        write_json(run.folder / "record.json", record)
        write_history(run.folder / "history.csv", [])
        write_table(run.gradients, [], ("phase", "epoch", "layer", "norm"))
        told = read_json(run.diagnosis)
        told["values"] = dict.fromkeys(told["values"])
        told |= {"collapsed": True, "cause": "60 of 60 latents are not finite"}
        for pairs in ("same", "different"):
            told[pairs]["counts"] = [0] * len(told[pairs]["counts"])
        write_json(run.diagnosis, told)
        change_latents(run, lambda of: {**of, "latents": np.full_like(of["latents"], np.nan)})
    evaluate(params)
    check_reports()
    shown = Path("reports/index.html").read_text(encoding="utf-8")
    assert "60 of 60 latents are not finite" in shown
    assert "head: train/loss was inf in epoch 3" in shown


def change_latents(run: RunId, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    with np.load(run.latents) as stored:
        arrays = change(dict(stored))
    packed = io.BytesIO()
    np.savez(packed, **arrays)
    write_atomically(run.latents, packed.getvalue())


LATENTS = {
    "one point": lambda of: {**of, "latents": np.full_like(of["latents"], 0.5)},
    "one image": lambda of: {
        **of, **{name: of[name][:1] for name in ("latents", "labels", "images")}
    },
    "infinite": lambda of: {**of, "latents": np.full_like(of["latents"], np.inf)},
    "one dimension": lambda of: {**of, "latents": of["latents"][:, :1]},
    "filters not finite": lambda of: {**of, "filters_after": of["filters_after"] * np.nan},
}  # fmt: skip


def test_any_latents_are_drawn_or_left_out():
    """A method has each kind, and one is told to have collapsed."""
    baselines = ("finetune", *(f"scratch_{number}" for number in range(len(LATENTS))))
    params = small(breakdowns=(), baselines=baselines, seeds=(0,))
    write_runs(params)
    for name, change in zip(baselines[1:], LATENTS.values(), strict=True):
        change_latents(RunId(name, 5, 0), change)
    collapsed = RunId(baselines[1], 5, 0).diagnosis
    write_json(collapsed, read_json(collapsed) | {"collapsed": True, "cause": "all the same"})
    evaluate(params)
    check_reports()
    assert "All the same" in Path("reports/index.html").read_text(encoding="utf-8")
    drawn = Path("reports/figures/map-pca-n5.svg").read_text(encoding="utf-8")
    kinds = dict(zip(LATENTS, baselines[1:], strict=True))
    assert kinds["one point"] in drawn and kinds["infinite"] not in drawn


def set_text(path: Path, pattern: str, put: str) -> None:
    text = path.read_text(encoding="utf-8")
    changed = re.sub(pattern, put, text, count=1)
    assert changed != text
    path.write_text(changed, encoding="utf-8")


RECORD, TIMING = RUN.folder / "record.json", RUN.folder / "timing.json"
NUMBER = r": [0-9.e+-]+"
BROKEN = {  # the file, a number in it, what stands there instead
    "a NaN among a record's metrics": (RECORD, f'"best/val_accuracy"{NUMBER}', "NaN"),
    "an infinite one": (RECORD, f'"best/val_accuracy"{NUMBER}', "-Infinity"),
    "one too large": (RECORD, f'"best/val_accuracy"{NUMBER}', "1e400"),
    "a metric in words": (RECORD, f'"best/val_accuracy"{NUMBER}', '"high"'),
    "a metric that is a list": (RECORD, f'"best/val_accuracy"{NUMBER}', "[0.5]"),
    "a metric that is true": (RECORD, f'"best/val_accuracy"{NUMBER}', "true"),
    "a NaN in a diagnosis": (RUN.diagnosis, f'"latent/fisher_ratio"{NUMBER}', "NaN"),
    "an infinite loss there": (RUN.diagnosis, f'"fit/train_loss"{NUMBER}', "Infinity"),
    "one too large there": (RUN.diagnosis, f'"fit/train_loss"{NUMBER}', "-1e999"),
    "seconds that are no number": (TIMING, f'"seconds"{NUMBER}', "NaN"),
    "seconds in words": (TIMING, f'"seconds"{NUMBER}', '"long"'),
    "memory without end": (TIMING, f'"peak_memory_mb"{NUMBER}', "1e400"),
    "a test that took NaN": (RUN.test_timing, f'"one_image_seconds"{NUMBER}', "NaN"),
    "a test that took for ever": (RUN.test_timing, f'"one_image_seconds"{NUMBER}', "1e400"),
}


@pytest.mark.parametrize(("path", "number", "put"), BROKEN.values(), ids=BROKEN)
def test_what_is_no_finite_number_is_refused_by_name(undrawn, path, number, put):
    params = small()
    write_runs(params)
    key = number.split('"')[1]
    set_text(path, number, f'"{key}": {put}')
    refused(params, path)


@pytest.mark.parametrize(
    ("path", "pattern", "put"),
    [
        (RUN.folder / "history.csv", r"\nencoder,2,", "\nencoder,,"),
        (RUN.folder / "history.csv", r"\nencoder,2,", "\nencoder,1.5,"),
        (RUN.folder / "history.csv", r"\nencoder,2,\d+", "\nencoder,2,inf"),
        (RUN.gradients, r"\nencoder,2,", "\nencoder,nan,"),
        (RUN.predictions, r"png,0,", "png,99999999999999999999,"),
        (RUN.predictions, r"png,0,", "png,0.5,"),
        (RUN.predictions, r"png,0,", "png,-1,"),
        (RUN.predictions, r"(png,\d,\d,)[^,]*", r"\1nan"),
        (RUN.predictions, r"(png,\d,\d,)[^,]*", r"\g<1>1e400"),
        (RUN.predictions, r"p_six", "p_five"),
    ],
)
def test_tables_with_cells_that_cannot_be_are_refused(undrawn, path, pattern, put):
    params = small()
    write_runs(params)
    set_text(path, pattern, put)
    refused(params, path)


def refused(params: Params, path: Path) -> None:
    """One line that names the file, and no report."""
    with pytest.raises(InputError) as error:
        evaluate(params)
    said = str(error.value)
    assert said.startswith(str(path)) and "dvc repro" in said and "\n" not in said
    assert not Path("reports").exists()


def test_losses_while_training_may_be_missing_or_infinite():
    """They are drawn as far as they go."""
    params = small(seeds=(0,))
    write_runs(params)
    for run in runs_of(params.compare):
        set_text(run.folder / "history.csv", r"(\n\w+,\d+,\d+,)[^,\n]*", r"\1inf")
        set_text(run.gradients, r"(\n\w+,1,[^,]*),[^,\n]*", r"\1,nan")
    evaluate(params)
    check_reports()


Row = dict[str, str]
ASKED: dict[str, Callable[[list[Row]], list[Row]]] = {
    "scores all equal": lambda rows: [{**row, "score": "0.5"} for row in rows],
    "two pairs": lambda rows: rows[:2],
    "one query": lambda rows: [row for row in rows if row["set"] == "official"][:1],
    "all right": lambda rows: [
        {**row, "predicted": row["label"], "score": row["label"]} if row["set"] == "pairs" else row
        for row in rows
    ],
}


@pytest.mark.parametrize("change", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize("seeds", [(0,), (0, 1)], ids=["one seed", "two seeds"])
def test_any_trials_have_defined_results(undrawn, change, seeds):
    params = verification_params(seeds=seeds)
    write_trials(params, change)
    evaluate(params)
    assert set(check_reports()) == set(params.compare.methods)


@pytest.mark.parametrize("label", ["0", "1"])
def test_pairs_of_one_kind_alone_are_refused(undrawn, label):
    params = verification_params(seeds=(0,))
    write_trials(params, lambda rows: [row for row in rows if row["label"] == label][:9])
    with pytest.raises(InputError, match="holds pairs of one kind alone"):
        evaluate(params)


def write_trials(params: Params, change: Callable[[list[Row]], list[Row]]) -> None:
    write_verification_runs(params, pairs=40)
    for run in runs_of(params.compare):
        with run.predictions.open(newline="", encoding="utf-8") as file:
            rows = change(list(csv.DictReader(file)))
        table = ([row[name] for name in ANSWER_COLUMNS] for row in rows)
        write_table(run.predictions, table, ANSWER_COLUMNS)


def losses(*values: float) -> list[torch.Tensor]:
    return [torch.tensor(value) for value in values]


FINE = {"weight": torch.ones(3)}
DIVERGED = [
    (
        (2, losses(1.0, math.inf, math.nan), {"train/loss": math.nan}, FINE),
        "head: the training loss was inf in epoch 2, batch 2; the learning rate is likely too "
        "high (lr 0.5)",
    ),
    (
        (1, losses(math.nan, math.nan), {"train/loss": math.nan}, FINE),
        "head: the training loss was nan in epoch 1, batch 1; no step was made before, so likely "
        "its inputs (the start weights' latents) are not finite, or the loss's margin, "
        "temperature or weight is far too large",
    ),
    (
        (1, losses(math.nan), {"train/loss": math.nan}, {"a": torch.tensor([1.0, math.nan])}),
        "head: the training loss was nan in epoch 1, batch 1; the weights that it began with are "
        "not finite, first in a",
    ),
    (
        (3, losses(1.0, 2.0), {"train/loss": 1.5, "val/loss": math.inf}, FINE),
        "head: val/loss was inf after epoch 3; the learning rate is likely too high (lr 0.5)",
    ),
    (
        (3, losses(1.0, 2.0), {"train/loss": 1.5, "val/loss": 1.0}, FINE),
        "head: weights were no longer finite after epoch 3; the learning rate is likely too high "
        "(lr 0.5)",
    ),
    (
        (1, [], {"val/loss": math.nan}, {"n": torch.tensor(3)}),
        "head: val/loss was nan after epoch 1; the learning rate is likely too high (lr 0.5)",
    ),
]


@pytest.mark.parametrize(("given", "said"), DIVERGED)
def test_a_divergence_names_epoch_batch_and_cause(given, said):
    epoch, of, values, start = given
    assert reason("head", epoch, of, values, 0.5, start) == said


# Out of memory


HOST = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 549755813888 bytes. Error code 12 (Cannot allocate memory)"
)
DEVICE = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 139.72 GiB of "
    "which 3.10 GiB is free. Including non-PyTorch memory, this process has …"
)
CUBLAS = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
SHORT = {
    "of PyTorch on the host": RuntimeError(HOST),
    "of PyTorch on the device": torch.OutOfMemoryError(DEVICE),
    "of CUDA itself": RuntimeError("CUDA error: out of memory"),
    "of cuBLAS": RuntimeError(CUBLAS),
    "of Python": MemoryError(),
    "of NumPy": MemoryError("Unable to allocate 1.00 TiB for an array with shape (1099511627776,)"),
    "of a mapped file": OSError(errno.ENOMEM, "Cannot allocate memory"),
}


def raising(error: BaseException, after: int = 0) -> Callable[..., Any]:
    """A function that raises at its call number ``after``, counted from 0."""
    calls = itertools.count()

    def function(*given: Any) -> Any:
        if next(calls) >= after:
            raise error
        return {"val/loss": torch.tensor(1.0), "val/accuracy": torch.tensor(1.0)}

    return function


def a_phase() -> Phase:
    """Six batches of three images an epoch, for two epochs."""
    recipe = recipes.of({"recipe": "finetune", "epochs": 2, "lr": 0.01})
    (phase,) = recipe.phases(make_run(classes=3, per_class=6, batch_size=3))
    return phase


def said_by(work: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as error:
        work()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("error", SHORT.values(), ids=SHORT)
def test_out_of_memory_names_the_batch_and_what_to_change(error):
    phase = replace(a_phase(), loss=raising(error))
    said = said_by(lambda: fit(phase, CPU, "fp32"))
    assert said.startswith("end_to_end: epoch 1, a batch of 3 images: out of memory")
    for key in ("training.batch_size", "model.architecture", "data.image_size",
                "runtime.precision: bf16", "data.placement: streamed"):  # fmt: skip
        assert key in said


@pytest.mark.parametrize("error", SHORT.values(), ids=SHORT)
def test_out_of_memory_in_validation_blames_no_batch(error):
    phase = replace(a_phase(), validate=raising(error, after=1))
    said = said_by(lambda: fit(phase, CPU, "fp32"))
    assert said.startswith("end_to_end: validation after epoch 2: out of memory")
    assert "batch" not in said and "data.image_size" in said


def test_out_of_memory_of_a_phase_solved_in_closed_form():
    run = make_run()
    frozen = {"recipe": "features", "latent": "embedding", "head": {"kind": "svm"}}
    (phase,) = recipes.of(frozen).phases(run)
    said = said_by(lambda: fit(replace(phase, solve=raising(MemoryError())), CPU, "fp32"))
    assert said.startswith(f"{phase.name}: out of memory; ") and "compare.shots" in said


def test_the_memory_that_is_really_not_there():
    """Errors as PyTorch and NumPy raise them, not as they are imitated above."""
    for ask in (lambda batch: torch.empty(1 << 55), lambda batch: np.empty(1 << 60, np.uint8)):
        said = said_by(lambda ask=ask: fit(replace(a_phase(), loss=ask), CPU, "fp32"))
        assert "out of memory (" in said and "llocate" in said


@pytest.mark.parametrize(
    "error",
    [RuntimeError("expected scalar type Float"), OSError(errno.ENOENT, "no"), ValueError("no")],
)
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as raised:
        fit(replace(a_phase(), loss=raising(error)), CPU, "fp32")
    assert raised.value is error


def test_a_run_out_of_memory_leaves_nothing_and_goes_on_from_its_checkpoint(monkeypatch):
    """The epochs before are kept; with the memory there, the rerun is as if nothing had been."""
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "SHARE", 1e9)
    expected = fit(phase := a_phase(), CPU, "fp32"), snapshot(phase.module)
    phase = a_phase()
    short = replace(phase, validate=raising(MemoryError(), after=1))
    kept = Checkpoint(Path("kept"), CPU)
    kept.begin()
    with pytest.raises(InputError):
        fit(short, CPU, "fp32", checkpoint=kept)
    assert list(Path("kept").iterdir()) == [Path("kept/1.safetensors")]
    again = Checkpoint(Path("kept"), CPU)
    again.begin()
    phase = a_phase()
    result = fit(phase, CPU, "fp32", checkpoint=again)
    assert len(result.history) == len(expected[0].history) == 2
    assert result.history[1]["train/loss"] == expected[0].history[1]["train/loss"]
    assert all(of.equal(expected[1][key]) for key, of in phase.module.state_dict().items())


def test_an_operation_without_a_deterministic_form_is_named():
    """As torch raises it; on a CPU there is hardly any."""

    def scatter(batch: Any) -> torch.Tensor:
        return torch.zeros(4).put_(torch.tensor([0]), torch.tensor([1.0]))

    said = said_by(lambda: fit(replace(a_phase(), loss=scatter), CPU, "fp32"))
    assert said.startswith("end_to_end: epoch 1, a batch of 3 images: put_ has no deterministic")
    assert "model.architecture" in said and "runtime.device: cpu" in said


@pytest.mark.parametrize("stage", ["test", "weights"])
def test_out_of_memory_in_a_stage_is_one_line_and_status_1(stage, monkeypatch, capsys):
    """Whatever it was at: loading images, latents, answers for the test split."""
    monkeypatch.setattr(check, "load", fake_params)
    monkeypatch.setattr(check, "check_models", lambda *_, **__: None)
    monkeypatch.setattr(common, "_end_with_parent", lambda: None)
    run = RunId("breakdown", 5, 0)
    arguments = [run.method, str(run.shots), str(run.seed)] if stage == "test" else []
    monkeypatch.setattr("sys.argv", [f"{stage}.py", *arguments])
    work = raising(torch.OutOfMemoryError(DEVICE))
    with pytest.raises(SystemExit) as ended:
        common.main_run(work) if stage == "test" else common.main(work)
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    at = run.name if stage == "test" else stage
    assert line.startswith(f"error: {at}: out of memory (CUDA out of memory); lower data.image_siz")


@pytest.mark.parametrize("error", ["MemoryError()", "OSError(errno.ENOMEM, 'no room')"])
def test_out_of_memory_loads_nothing_more(error):
    program = (
        "import errno, sys\n"
        "from pipeline.stages import common\n"
        "from tests.report.fake_runs import fake_params\n"
        "common.check.load = fake_params\n"
        "def stage(params):\n"
        f"    raise {error}\n"
        "try:\n"
        "    common.main(stage)\n"
        "finally:\n"
        "    assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
    )
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and line.endswith("out of memory; " + common.LESS)
