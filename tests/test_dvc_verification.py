"""As `test_dvc`, of verification: who is on two photos."""

import json
from pathlib import Path

import pandas as pd
import pytest

from tests.projects import bytes_of, call, copy_project, edit, mlflow_runs, stages_run
from tests.verification_data import write_people

pytestmark = pytest.mark.slow

PHASE = {"epochs": 1, "lr": 0.05}
METHODS = {
    "siamese": {"recipe": "siamese", "latent": "embedding", **PHASE},
    "breakdown": {
        "recipe": "breakdown",
        "encoder": {"latent": "embedding", **PHASE},
        "head": {"pairs": {"kind": "difference"}, **PHASE},
    },
    "features": {"recipe": "features", "latent": "embedding", "head": {"kind": "distance"}},
}
SEEDS, TESTED = [0, 1], 6  # TESTED: people of the test
HEADS = {f"{stage}@breakdown-all-{seed}" for stage in ("head", "test_breakdown") for seed in SEEDS}
VERIFIED = HEADS | {f"encoder@breakdown-all-{seed}" for seed in SEEDS} | {
    f"{stage}@{method}-all-{seed}"
    for stage in ("baseline", "test_baseline") for method in ("siamese", "features")
    for seed in SEEDS
}  # fmt: skip
TESTS = {name for name in VERIFIED if name.startswith("test_")}
SCORES = {
    f"test/{score}" for score in ("accuracy", "roc_auc", "eer", "tar_at_far_0.01",
                                  "tar_at_far_0.001", "3_way_1_shot_accuracy")
}  # fmt: skip


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    folder = tmp_path_factory.mktemp("people")
    copy_project(folder)
    call(folder, "dvc", "remove", "data.dvc")
    write_people(folder / "data/people", train=12, test=TESTED)
    edit(
        folder,
        task="verification", data__target="data/people", data__source=None, data__layout="pairs",
        data__splits__val=0.3, data__val_per_class=None,
        weights={"from": "none", "file": "pretrained"},
        pairs__episodes=[{"ways": 3, "count": 8}], model__views=1, methods=METHODS,
        compare={"breakdowns": ["breakdown"], "baselines": ["siamese", "features"],
                 "reference": "siamese", "shots": ["all"], "seeds": SEEDS, "budget": "own"},
        diagnostics__latent=None,
    )  # fmt: skip
    call(folder, "dvc", "add", "data")
    call(folder, "dvc", "repro")
    call(folder, "git", "add", "-A")
    call(folder, "git", "commit", "-qm", "start")
    return folder


def test_verification_makes_every_run_and_the_report(people):
    runs = {run["name"]: run for run in mlflow_runs(people)}
    assert sorted(runs) == sorted(f"{method}-nall-s{seed}" for method in METHODS for seed in SEEDS)
    for name, run in runs.items():
        assert run["status"] == "FINISHED"
        validated = {"best/val_accuracy", "best/val_3_way_1_shot_accuracy"}
        assert SCORES | validated <= run["metrics"].keys()
        assert (run["params"]["task"], run["params"]["method.recipe"]) == (
            "verification", run["params"]["recipe"],
        )  # fmt: skip
        artifacts = people / "mlruns/siamese-breakdown" / run["id"] / "artifacts/predictions"
        for suffix in ("csv", "png", "timing.json"):
            own = people / "predictions" / f"{name}.{suffix}"
            assert (artifacts / own.name).read_bytes() == own.read_bytes()


def test_the_report_of_verification_has_intervals_and_pictures(people):
    table = pd.read_csv(people / "reports/identity_intervals.csv")
    known = table.dropna(subset=["low", "high"])
    for metric in ("test/accuracy", "test/roc_auc", "test/eer", "test/3_way_1_shot_accuracy"):
        rows = known[known["metric"] == metric]
        assert set(rows["method"]) == set(METHODS) and set(rows["units"]) == {TESTED}
        assert rows["low"].between(0, rows["high"]).all() and (rows["high"] <= 1).all()
    page = (people / "reports/index.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") >= len(METHODS)
    assert f"{TESTED} test classes" in page


def test_a_second_verification_runs_nothing_but_publish(people):
    assert stages_run(call(people, "dvc", "repro")) == {"publish"}
    assert call(people, "git", "status", "--porcelain").split("status")[0].strip() == ""


def test_a_changed_head_on_pairs_reruns_heads_alone(people):
    edit(people, methods__breakdown__head__lr=0.01)
    assert stages_run(call(people, "dvc", "repro")) == HEADS | {"evaluate", "publish"}
    assert len(mlflow_runs(people)) == len(METHODS) * len(SEEDS) + len(SEEDS)


def test_settings_of_pairs_matter_where_they_change_the_lists(people):
    edit(people, pairs__per_image=4)  # the layout lists the pairs, so none are drawn
    # the report says what was asked
    assert stages_run(call(people, "dvc", "repro")) == {"prepare", "evaluate", "publish"}


def test_episodes_and_views_train_nothing(people):
    before = mlflow_runs(people)
    edit(people, pairs__episodes=[{"ways": 2, "count": 8}])
    call(people, "dvc", "repro", "prepare")
    changed = json.loads(call(people, "dvc", "status", "--json").splitlines()[0])
    assert changed.keys() == TESTS | {"evaluate", "publish"}
    edit(people, pairs__episodes=[{"ways": 3, "count": 8}])
    assert stages_run(call(people, "dvc", "repro")) == {"publish"}
    edit(people, model__views=7)
    assert stages_run(call(people, "dvc", "repro")) == TESTS | {"evaluate", "publish"}
    known = {run["id"] for run in before}
    fresh = [run for run in mlflow_runs(people) if run["id"] not in known]
    assert len(fresh) == len(METHODS) * len(SEEDS)  # beside those of one view
    assert {run["params"]["model.views"] for run in fresh} == {"7"}
    edit(people, model__views=1)
    assert stages_run(call(people, "dvc", "repro")) == {"publish"}
    assert len(mlflow_runs(people)) == len(before) + len(fresh)


def test_a_forced_rerun_of_verification_gives_the_same_bytes(people):
    before, runs = bytes_of(people), len(mlflow_runs(people))
    made = {Path(name).suffix for name in before if name.startswith("predictions/")}
    assert made == {".csv", ".png", ".json", ".npz"} and "reports/identity_intervals.csv" in before
    assert stages_run(call(people, "dvc", "repro", "-f")) >= VERIFIED
    after = bytes_of(people)
    assert before.keys() == after.keys()
    assert [name for name in before if before[name] != after[name]] == []
    assert len(mlflow_runs(people)) == runs
