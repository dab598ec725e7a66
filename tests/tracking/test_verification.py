"""Runs of verification in MLflow: their scores, settings, notes and pictures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.params import Params
from pipeline.records import RunId, read_json, runs_of, write_history, write_json, write_table
from pipeline.tracking import client as tracking
from pipeline.tracking import mirror
from pipeline.tracking.mirror import Done
from tests.tracking.conftest import Project, make_compare, make_params, write_run

SCORES = {
    "test/accuracy": 0.75, "test/roc_auc": 0.8, "test/eer": 0.25, "test/tar_at_far_0.01": 0.5,
    "test/tar_at_far_0.001": 0.125, "test/official_accuracy": 0.9,
    "test/5_way_1_shot_accuracy": 0.6,
}  # fmt: skip
VALIDATED = {"best/val_accuracy": 0.7, "best/val_5_way_1_shot_accuracy": 0.65}
SOLVED = RunId("features", "all", 0)
PICTURE = b"\x89PNG of the most confident pairs"


@pytest.fixture
def verified(project: Project) -> Project:
    """The project with an end-to-end run and one that is solved for, of verification."""
    project.compare = make_compare([], ["siamese", "features"], [0]) | {
        "reference": "siamese", "shots": ["all"],
    }  # fmt: skip
    for run in runs_of(params_of(project).compare):
        write_verification_run(project.root, run)
    rows = [
        (run.method, run.shots, run.seed, *score)
        for run in runs_of(project.params.compare)
        for score in SCORES.items()
    ]
    header = ("method", "shots", "seed", "metric", "value")
    write_table(project.root / "reports/results.csv", rows, header)
    return project


def params_of(project: Project) -> Params:
    return make_params(project.compare, project.tracking).model_copy(
        update={"task": "verification"}
    )


def write_verification_run(root: Path, run: RunId) -> None:
    write_run(root, run)
    folder = root / run.folder
    record = read_json(folder / "record.json")
    record["parameters"]["task"] = "verification"
    record |= {"metrics": {"cost/images_seen": 300}}
    if run == SOLVED:
        found = {"scale": 12.5, "bias": -6.25}
        solved = {"phase": "solve", "epochs": 1, "chosen_epoch": 1, "found": found}
        record["phases"] = [record["phases"][0] | solved]
        point = {"phase": "solve", "epoch": 1, "images_seen": 24, "val/accuracy": 0.75}
        write_history(folder / "history.csv", [point])
    write_json(folder / "record.json", record)
    (root / run.examples).write_bytes(PICTURE)
    write_diagnosis(root, run, views=1)


def write_diagnosis(root: Path, run: RunId, views: int) -> None:
    asked = {"parameters": {"model": {"views": views}}, "inputs": {"val_episodes": "c" * 32}}
    content = {"latent": "embedding", "dimension": 64, "values": VALIDATED, "asked": asked}
    write_json(root / run.diagnosis, content)


def published(project: Project) -> dict[str, Any]:
    """Publish, and the store's runs by name."""
    done = mirror.publish(params_of(project), project.root, project.store)
    assert done == Done(created=2, kept=0, replaced=0)
    client = tracking.open_client(project.store)
    number = client.get_experiment_by_name(tracking.RESULTS).experiment_id
    return {run.info.run_name: run for run in client.search_runs([number])}


def test_scores_and_settings_are_there_under_legal_names(verified: Project) -> None:
    runs = published(verified)
    assert sorted(runs) == ["features-nall-s0", "siamese-nall-s0"]
    for run in runs.values():
        metrics = run.data.metrics
        assert {name: metrics[name] for name in SCORES | VALIDATED} == SCORES | VALIDATED
        assert (run.data.params["task"], run.data.params["shots"]) == ("verification", "all")
        for name in [*metrics, *run.data.params]:
            assert re.fullmatch(r"[/\w.\- :]+", name) and tracking.safe_key(name) == name


def test_a_test_with_other_views_is_another_run(verified: Project) -> None:
    runs = published(verified)
    assert {run.data.params["model.views"] for run in runs.values()} == {"1"}
    write_diagnosis(verified.root, SOLVED, views=7)
    done = mirror.publish(params_of(verified), verified.root, verified.store)
    assert done == Done(created=1, kept=1, replaced=0)


def test_the_picture_and_the_answers_are_artifacts(verified: Project, tmp_path: Path) -> None:
    run = published(verified)["siamese-nall-s0"]
    client = tracking.open_client(verified.store)
    listed = {item.path for item in client.list_artifacts(run.info.run_id, "predictions")}
    assert {"predictions/siamese-nall-s0.csv", "predictions/siamese-nall-s0.png"} <= listed
    path = "predictions/siamese-nall-s0.png"
    got = client.download_artifacts(run.info.run_id, path, str(tmp_path))
    assert Path(got).read_bytes() == PICTURE


def test_the_note_says_what_was_solved_for(verified: Project) -> None:
    note = published(verified)["features-nall-s0"].data.tags["mlflow.note.content"]
    assert note.splitlines()[0] == "`features` (recipe `features`), all images a class, seed 0."
    assert note.splitlines()[-2].endswith("; `bias` -6.25; `scale` 12.5")
