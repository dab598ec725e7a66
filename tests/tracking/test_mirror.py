from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import filelock
import psutil
import pytest

from pipeline.colours import colour
from pipeline.errors import InputError
from pipeline.records import RunId, read_json, runs_of, write_history, write_json, write_table
from pipeline.stages import publish as stage
from pipeline.tracking import client as tracking
from pipeline.tracking import entries, mirror, results
from pipeline.tracking.mirror import Done
from tests.tracking.conftest import (
    Project,
    environment,
    free_port,
    make_compare,
    make_params,
    run_python,
    write_run,
)

FIRST = RunId("breakdown", 10, 0)
RECORD = dict.fromkeys(("method", "shots", "seed", "recipe", "status", "device"), "") | {
    "phases": []
}
DIAGNOSIS = {
    "latent": "embedding", "dimension": 64, "collapsed": False, "cause": "",
    "values": {"latent/spread": 0.5, "latent/probe_val_accuracy": None, "fit/loss_gap": 0.25},
    "same": {}, "different": {}, "layers": [],
    "parameters": 1200, "multiply_adds": 3400, "model_bytes": 5_000_000,
}  # fmt: skip
PUBLISH = """
import json, sys
from pathlib import Path
from pipeline.params import Params
from pipeline.tracking import client, mirror
params, root = Params.model_validate(json.loads(sys.argv[1])), Path.cwd()
done = mirror.publish(params, root, client.store(root))
print(done.created, done.kept, done.replaced, "mlflow" in sys.modules, "torch" in sys.modules)
"""


def publish(project: Project) -> Done:
    return mirror.publish(project.params, project.root, project.store)


def arguments(project: Project) -> list[str]:
    return [json.dumps(project.params.model_dump(by_alias=True))]


def runs(project: Project, experiment: str = tracking.RESULTS) -> dict[str, Any]:
    """Active runs by name; two of one name are an error."""
    client = tracking.open_client(project.store)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return {}
    active = client.search_runs([found.experiment_id])
    by_name = {run.info.run_name: run for run in active}
    assert len(by_name) == len(active)
    return by_name


def ids(found: Iterable[Any]) -> set[str]:
    return {run.info.run_id for run in found}


def points(project: Project, run: Any, name: str) -> list[tuple[int, float]]:
    client = tracking.open_client(project.store)
    history = client.get_metric_history(run.info.run_id, name)
    times = [metric.timestamp for metric in history]
    assert times == sorted(times)
    return [(metric.step, metric.value) for metric in history]


def files(project: Project, run: Any, folder: str | None = None) -> list[str]:
    listed = tracking.open_client(project.store).list_artifacts(run.info.run_id, folder)
    return [item.path for item in listed]


def check_a_run(project: Project) -> None:
    """One run has exactly what its files have."""
    run = runs(project)["breakdown-n10-s0"]
    assert run.info.status == "FINISHED"
    assert run.data.params == {
        "method.lr": "0.1", "method.margins": "[0.0, 1.5]", "method.head.lr": "5e-05",
        "training.batch_size": "8", "training.flip": "false",
        "method": "breakdown", "shots": "10", "seed": "0", "recipe": "breakdown",
    }  # fmt: skip
    encoder = [(50, 2.0), (100, 1.0), (150, 2 / 3)]
    assert points(project, run, "encoder/train/loss") == encoder
    assert points(project, run, "train/loss") == [(200, 2.0), (250, 1.0), (300, 2 / 3)]
    assert points(project, run, "val/accuracy") == [(200, 0.0), (250, 0.1), (300, 0.2)]
    finals = {
        "best/val_accuracy": 0.7, "cost/images_seen": 300, "cost/train_seconds": 3.0,
        "cost/peak_memory_mb": 9, "test/accuracy": 0.5,
    }  # fmt: skip
    for name, value in finals.items():
        assert points(project, run, name) == [(0, value)]
    histories = {"encoder/train/loss", "encoder/val/loss", "train/loss", "val/loss", "val/accuracy"}
    system = {"system/images_per_second", "system/peak_memory_mb"}
    assert set(run.data.metrics) == histories | set(finals) | system
    assert points(project, run, "system/peak_memory_mb") == [(150, 7), (300, 9)]
    assert run.info.end_time - run.info.start_time == 3000
    assert files(project, run) == [
        "encoder",
        "history.csv",
        "predictions",
        "record.json",
        "timing.json",
    ]
    assert files(project, run, "predictions") == ["predictions/breakdown-n10-s0.csv"]


def check_tags(tags: dict[str, str]) -> None:
    expected = {
        "kind": "result", "method": "breakdown", "shots": "10", "seed": "0",
        "recipe": "breakdown", "status": "finished", "device": "cpu",
        "mlflow.runColor": colour(0),
    }  # fmt: skip
    assert {key: tags[key] for key in expected} == expected
    line = "- phase `head`: 3 epochs, 150 images seen; epoch 2 kept, by `val_loss`"
    assert line in tags["mlflow.note.content"].splitlines()
    unexpected = ("publishing", "process.", "git.", "data.", "dvc.", "mlflow.source", "model")
    assert not [key for key in tags if key.startswith(unexpected)]


def test_everything_is_there_and_a_second_time_changes_nothing(project: Project) -> None:
    assert publish(project) == Done(created=4, kept=0, replaced=0)
    check_a_run(project)
    first = runs(project)
    assert set(first) == {
        "breakdown-n10-s0",
        "breakdown-n10-s1",
        "finetune-n10-s0",
        "finetune-n10-s1",
    }
    check_tags(first["breakdown-n10-s0"].data.tags)
    assert first["finetune-n10-s1"].data.tags["mlflow.runColor"] == colour(1)
    assert (project.root / "mlruns").is_dir()
    assert sorted(path.name for path in project.root.parent.iterdir()) == [project.root.name]

    stamp = project.root / "mlflow.db.published"
    for forget in (False, True):  # what nothing has changed since, and a look into the store
        if forget:
            stamp.unlink()
        assert publish(project) == Done(created=0, kept=4, replaced=0)
        assert {name: run.to_dictionary() for name, run in runs(project).items()} == {
            name: run.to_dictionary() for name, run in first.items()
        }


def test_a_changed_result_is_replaced_and_nothing_else(project: Project) -> None:
    publish(project)
    before = runs(project)
    (project.root / FIRST.predictions).write_text("image,label,predicted,p_0\na.png,0,1,0.4\n")
    assert publish(project) == Done(created=0, kept=3, replaced=1)
    after = runs(project)
    changed = {name for name, run in before.items() if after[name].info.run_id != run.info.run_id}
    assert changed == {"breakdown-n10-s0"}


@pytest.mark.parametrize(
    "file",
    [
        *("history.csv", "model.safetensors", "record.json", "results.csv"),
        *("gradients.csv", "diagnosis.json", "latents.npz"),
    ],
)
def test_every_file_of_the_result_counts(project: Project, file: str) -> None:
    project.compare["seeds"] = [0]
    publish(project)
    if file == "results.csv":
        rows = [
            ("breakdown", 10, 0, "test/accuracy", 0.25),
            ("finetune", 10, 0, "test/accuracy", 0.5),
        ]
        header = ("method", "shots", "seed", "metric", "value")
        write_table(project.root / "reports/results.csv", rows, header)
    elif file == "record.json":
        write_run(project.root, FIRST, device="gpu")
    elif file == "diagnosis.json":
        write_json(project.root / FIRST.diagnosis, DIAGNOSIS)
    elif file == "latents.npz":
        (project.root / FIRST.latents).write_bytes(b"latents")
    else:
        with (project.root / FIRST.folder / file).open("a") as opened:
            opened.write("head,9,999,1,1,1\n")
    assert publish(project) == Done(created=0, kept=1, replaced=1)


def test_another_configuration_is_a_run_beside_the_first(project: Project) -> None:
    project.compare["seeds"] = [0]
    publish(project)
    write_run(project.root, FIRST, parameters={"method": {"lr": 0.2}})
    assert publish(project) == Done(created=1, kept=1, replaced=0)
    client = tracking.open_client(project.store)
    number = client.get_experiment_by_name(tracking.RESULTS).experiment_id
    named = client.search_runs([number], "tags.`mlflow.runName` = 'breakdown-n10-s0'")
    assert sorted(run.data.params["method.lr"] for run in named) == ["0.1", "0.2"]


def test_only_what_is_compared_and_there(project: Project) -> None:
    project.compare["seeds"] = [1, 2]
    assert publish(project) == Done(created=2, kept=0, replaced=0, missing=2)
    assert set(runs(project)) == {"breakdown-n10-s1", "finetune-n10-s1"}


def test_a_diverged_run_is_there_and_failed(project: Project) -> None:
    project.compare["seeds"] = [0]
    write_run(
        project.root, FIRST, status="diverged", reason="loss is NaN at epoch 1",
        metrics={"cost/images_seen": 100},
    )  # fmt: skip
    rows = [
        {"phase": "encoder", "epoch": 0, "images_seen": 50, "train/loss": 1e30},
        {"phase": "encoder", "epoch": 1, "images_seen": 100, "train/loss": math.inf},
    ]
    write_history(project.root / FIRST.folder / "history.csv", rows)
    (project.root / FIRST.predictions).unlink()
    assert publish(project).created == 2
    run = runs(project)["breakdown-n10-s0"]
    assert run.info.status == "FAILED"
    assert "**Diverged:** loss is NaN at epoch 1" in run.data.tags["mlflow.note.content"]
    assert points(project, run, "encoder/train/loss") == [(50, 1e30)]
    assert "best/val_accuracy" not in run.data.metrics


def test_the_newest_first_is_the_order_of_the_comparison(project: Project) -> None:
    timing = {"phase": "end_to_end", "seconds": 400.0, "images_seen": 150}
    slow = project.root / RunId("finetune", 10, 0).folder / "timing.json"
    write_json(slow, {"phases": [timing]})
    publish(project)
    found = sorted(runs(project).values(), key=lambda run: -run.info.start_time)
    assert [run.info.run_name for run in found] == [
        run.name for run in runs_of(project.params.compare)
    ]
    times = [run.info.end_time - run.info.start_time for run in found]
    assert times == [3000, 3000, 400_000, 1500]
    assert all(run.info.end_time <= 1000 * time.time() for run in found)


def test_a_phase_without_a_chosen_epoch_says_so() -> None:
    phase = {"phase": "head", "epochs": 2, "images_seen": 1200, "chosen_epoch": 0}
    assert results._phase_line(phase) == (
        "- phase `head`: 2 epochs, 1,200 images seen; no epoch kept"
    )


def test_a_step_is_drawn_once(tmp_path: Path) -> None:
    rows = [
        {"phase": "head", "epoch": 0, "images_seen": 10, "train/loss": 1.0},
        {"phase": "head", "epoch": 1, "images_seen": 10, "train/loss": 0.5},
    ]
    write_history(tmp_path / "history.csv", rows)
    assert results.history_points(tmp_path / "history.csv") == [("train/loss", 0.5, 10)]


def test_encoders_stay_apart_and_heads_follow_one_another(tmp_path: Path) -> None:
    rows = [
        {"phase": phase, "epoch": epoch, "images_seen": 20 * place + 10 * epoch,
         "train/loss": place + epoch / 10}
        for place, phase in enumerate(("encoder_1", "encoder_2", "head_1", "head_2", "release"))
        for epoch in (1, 2)
    ]  # fmt: skip
    write_history(tmp_path / "history.csv", rows)
    lines: dict[str, list[tuple[int, float]]] = {}
    for name, value, step in results.history_points(tmp_path / "history.csv"):
        lines.setdefault(name, []).append((step, value))
    assert lines == {
        "encoder_1/train/loss": [(10, 0.1), (20, 0.2)],
        "encoder_2/train/loss": [(30, 1.1), (40, 1.2)],
        "train/loss": [(50, 2.1), (60, 2.2), (70, 3.1), (80, 3.2), (90, 4.1), (100, 4.2)],
    }


def test_a_run_of_many_phases_is_published(project: Project) -> None:
    project.compare |= {"baselines": ["finetune", "layerwise"], "seeds": [0]}
    run = RunId("layerwise", 10, 0)
    names = [f"round_{number}" for number in range(1, 9)] + ["solve"]
    phases = [
        {"phase": name, "epochs": 1, "chosen_epoch": 1, "rule": "val_loss", "images_seen": 50,
         "status": "finished", **({"found": {"C": 10.0}} if name == "solve" else {})}
        for name in names
    ]  # fmt: skip
    write_run(project.root, run, phases=phases)
    rows = [
        {"phase": name, "epoch": 1, "images_seen": 50 * place, "val/accuracy": place / 10}
        for place, name in enumerate(names, start=1)
    ]
    write_history(project.root / run.folder / "history.csv", rows)
    timings = [{"phase": name, "seconds": 2.0, "peak_memory_mb": 5} for name in names]
    write_json(project.root / run.folder / "timing.json", {"phases": timings})
    publish(project)
    found = runs(project)["layerwise-n10-s0"]
    accuracies = [(50 * place, place / 10) for place in range(1, 10)]
    assert points(project, found, "val/accuracy") == accuracies
    assert points(project, found, "cost/train_seconds") == [(0, 18.0)]
    lines = found.data.tags["mlflow.note.content"].splitlines()
    assert lines[-9:-7] == [
        f"- phase `round_{number}`: 1 epoch, 50 images seen; epoch 1 kept, by `val_loss`"
        for number in (1, 2)
    ]
    assert lines[-1].endswith("; epoch 1 kept, by `val_loss`; `C` 10")


def test_scores_of_two_classes_are_published_and_those_of_single_classes_are_not(
    tmp_path: Path,
) -> None:
    names = ("test/accuracy", "test/recall", "test/f_beta", "test/recall/cat", "val/loss")
    rows = [("finetune", "all", 0, name, 0.5) for name in names]
    path = tmp_path / "results.csv"
    write_table(path, rows, ("method", "shots", "seed", "metric", "value"))
    assert results.test_scores(path) == {RunId("finetune", "all", 0): dict.fromkeys(names[:3], 0.5)}


def test_phases_of_one_name_cost_both(tmp_path: Path) -> None:
    phase = {"phase": "head", "seconds": 2, "peak_memory_mb": 3}
    write_json(tmp_path / FIRST.folder / "timing.json", {"phases": [phase, phase]})
    assert results.costs(tmp_path, FIRST)["cost/train_seconds"] == 4.0


def test_models(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    def with_model() -> list[str]:
        return [
            name
            for name, run in runs(project).items()
            if "model.safetensors" in files(project, run)
        ]

    project.compare["seeds"] = [0]
    project.tracking = {"models": "all", "max_model_mb": 0.001}
    publish(project)
    assert with_model() == []
    limit = "MLflow: models larger than tracking.max_model_mb (0.001 MB) left out: "
    assert capsys.readouterr().err == f"{limit}breakdown-n10-s0, finetune-n10-s0\n"
    project.tracking = {"models": "reference"}
    assert publish(project) == Done(created=0, kept=2, replaced=0)
    assert with_model() == ["finetune-n10-s0"]
    project.tracking = {"models": "all"}
    assert publish(project) == Done(created=0, kept=2, replaced=0)
    assert sorted(with_model()) == ["breakdown-n10-s0", "finetune-n10-s0"]


def test_experiments_that_share_a_run(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.compare["seeds"] = [0]
    for name in ("first-one", "second/2"):
        monkeypatch.setenv("DVC_EXP_NAME", name)
        publish(project)
        write_run(project.root, FIRST, parameters={"method": {"lr": 0.3}})
    (run,) = (run for name, run in runs_of_method(project, "finetune").items())
    tags = {key: value for key, value in run.data.tags.items() if key.startswith("dvc.")}
    assert tags == {
        "dvc.experiment": "first-one",
        "dvc.experiment.first-one": "true",
        "dvc.experiment.second/2": "true",
    }
    names = {
        run.data.tags["dvc.experiment"] for run in runs_of_method(project, "breakdown").values()
    }
    assert names == {"first-one", "second/2"}


def runs_of_method(project: Project, method: str) -> dict[str, Any]:
    client = tracking.open_client(project.store)
    number = client.get_experiment_by_name(tracking.RESULTS).experiment_id
    found = client.search_runs([number], f"tags.method = '{method}'")
    return {run.info.run_id: run for run in found}


def test_versions_follow_the_project_but_not_its_experiments(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        done = subprocess.run(
            ["git", *who, *arguments], cwd=project.root, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    project.compare |= {"breakdowns": [], "seeds": [0]}
    (project.root / "data.dvc").write_text("outs:\n- md5: 0e12.dir\n  path: data\n")
    git("init", "-q")
    commits = []
    for experiment in ("", "", "exp-1"):
        git("commit", "-q", "--allow-empty", "-m", "x")
        commits.append(git("rev-parse", "HEAD"))
        monkeypatch.setenv("DVC_EXP_NAME", experiment)
        publish(project)
    (run,) = runs(project).values()
    assert run.data.tags["git.commit"] == run.data.tags["mlflow.source.git.commit"] == commits[1]
    assert run.data.tags["data.md5"] == "0e12.dir"


def test_files_of_a_copy_go_to_the_store_of_the_project(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(project.root, copy, ignore=shutil.ignore_patterns("mlflow*", "mlruns"))
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_ROOT", str(project.root))
    stage.publish(project.params)
    shutil.rmtree(copy)
    assert len(runs(project)) == 4
    run = runs(project)["finetune-n10-s0"]
    client = tracking.open_client(project.store)
    record = client.download_artifacts(run.info.run_id, "record.json", str(tmp_path))
    assert read_json(record)["method"] == "finetune"


STEPS = {"_send_files": mirror, "send": tracking, "set_terminated": None}


@pytest.mark.parametrize("step", STEPS)
def test_an_interrupted_publish_leaves_nothing_for_long(
    project: Project, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    from mlflow.tracking import MlflowClient

    def stop(*arguments: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(STEPS[step] or MlflowClient, step, stop)
        with pytest.raises(KeyboardInterrupt):
            publish(project)
    halves = runs(project).values()
    assert halves and not any("config_key" in half.data.tags for half in halves)
    assert publish(project) == Done(created=4, kept=0, replaced=0)
    assert not ids(halves) & ids(runs(project).values())


def test_half_runs_of_others_stay_while_they_may_be_alive(project: Project) -> None:
    client = tracking.open_client(project.store)
    number = tracking.experiment(client, tracking.RESULTS, project.store)
    now = int(time.time())
    own = {**tracking.process_tags(), "publishing.since": f"{now - 4000}"}
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        living = {**own, "process.pid": str(child.pid)}
        living["process.started"] = str(psutil.Process(child.pid).create_time())
        other = {**own, "process.host": "x"}
        halves = {
            "alive": living,
            "dead": {**own, "process.pid": "1", "process.started": "0"},
            "other host": {**other, "publishing.since": f"{now}"},
            "other host, long ago": other,
        }
        for name, tags in halves.items():  # all of them trained for long
            client.create_run(number, 1000 * (now - 9000), {**tags, "publishing": "k"}, name)
        publish(project)
        child.communicate(b"\n")
    assert set(halves) & set(runs(project)) == {"alive", "other host"}


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"publishing": "draft"},
        {"result_digest": "d41d8cd98f00b204e9800998ecf8427e"},
        {"result_digest": "[1]"},
        {"result_digest": '{"publishing.since": null}'},
        {"publishing": "soon", "publishing.since": "yesterday"},
    ],
    ids=str,
)
def test_the_user_s_own_runs_stay(project: Project, tags: dict[str, str]) -> None:
    client = tracking.open_client(project.store)
    number = tracking.experiment(client, tracking.RESULTS, project.store)
    client.create_run(number, 1, tags, "mine")
    assert publish(project).created == 4
    assert "mine" in runs(project)


def test_doubles_of_raced_publishers_are_deleted(project: Project) -> None:
    project.compare |= {"breakdowns": [], "seeds": [0]}
    publish(project)
    (run,) = runs(project).values()
    client = tracking.open_client(project.store)
    marks = {key: run.data.tags[key] for key in ("config_key", "result_digest")}
    client.create_run(run.info.experiment_id, None, marks, "later")
    assert publish(project) == Done(created=0, kept=1, replaced=0)
    assert [left.info.run_id for left in runs(project).values()] == [run.info.run_id]


def test_a_held_lock_is_not_waited_for_for_ever(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mirror, "LOCK_SECONDS", 0.1)
    with filelock.FileLock(project.root / ".publish.lock"):
        stage.publish(project.params)
    printed = capsys.readouterr()
    assert printed.out == "" and "another publish holds" in printed.err
    assert printed.err.count("\n") == 1 and runs(project) == {}


@pytest.mark.slow
def test_a_deleted_store_comes_back_and_an_unchanged_one_is_not_opened(project: Project) -> None:
    def elsewhere() -> str:
        done = run_python(PUBLISH, project.root, *arguments(project))
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    assert elsewhere() == "4 0 0 True False\n"
    assert elsewhere() == "0 4 0 False False\n"
    (project.root / "mlflow.db").unlink()
    shutil.rmtree(project.root / "mlruns")
    assert elsewhere() == "4 0 0 True False\n"
    check_a_run(project)


@pytest.mark.parametrize("gone", ["all", "one run's", "one folder of a run"])
def test_deleted_artifacts_come_back(project: Project, gone: str) -> None:
    """The database alone says that the runs are whole."""
    project.tracking = {"models": "all"}
    publish(project)
    before = runs(project)
    place = project.root / "mlruns" / tracking.RESULTS
    own = place / before[FIRST.name].info.run_id / "artifacts"
    expected = {name: files(project, run) for name, run in before.items()}
    parts = {"all": place.parent, "one run's": own.parent, "one folder of a run": own / "encoder"}
    shutil.rmtree(parts[gone])
    if gone == "one folder of a run":
        (project.root / "mlflow.db.published").unlink()  # this, only a full look sees
    for _ in range(2):
        assert publish(project) == Done(created=0, kept=4, replaced=0)
        after = runs(project)
        assert ids(after.values()) == ids(before.values())
        assert {name: files(project, run) for name, run in after.items()} == expected
    model = own / "model.safetensors"
    assert model.read_bytes() == (project.root / FIRST.folder / model.name).read_bytes()


@pytest.mark.slow
def test_two_publishers_at_once(project: Project) -> None:
    both = [
        subprocess.Popen(
            [sys.executable, "-c", PUBLISH, *arguments(project)], cwd=project.root, text=True,
            env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]  # fmt: skip
    answers = [process.communicate(timeout=60) for process in both]
    assert sorted(out[:5] for out, _ in answers) == ["0 4 0", "4 0 0"], answers
    assert len(runs(project)) == 4


@pytest.mark.slow
def test_on_a_server(
    project: Project,
    server: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (project.root / "mlflow.db").unlink()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    project.tracking = {"models": "all"}
    for run in runs(project).values():  # another test's, of the same server
        tracking.open_client(project.store).delete_run(run.info.run_id)
    shown = f"in {server} (experiment siamese-breakdown)\n"
    stage.publish(project.params)
    assert capsys.readouterr().out == f"MLflow: 4 runs created, 0 replaced, 0 unchanged {shown}"
    stage.publish(project.params)
    assert capsys.readouterr() == (f"MLflow: 0 runs created, 0 replaced, 4 unchanged {shown}", "")
    run = runs(project)["finetune-n10-s1"]
    assert points(project, run, "train/loss") == [(50, 2.0), (100, 1.0), (150, 2 / 3)]
    client = tracking.open_client(project.store)
    got = client.download_artifacts(run.info.run_id, "model.safetensors", str(project.root))
    assert Path(got).read_bytes() == b"finetune-n10-s1" * 100
    assert not (project.root / "mlflow.db").exists() and not (project.root / "mlruns").exists()


def test_a_dead_server_is_a_warning(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{free_port()}")
    start = time.monotonic()
    stage.publish(project.params)
    assert time.monotonic() - start < 15
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert printed.err.startswith("warning: MLflow: not all runs are in http://127.0.0.1:")
    assert "secret" not in printed.err and printed.err.endswith("tries again\n")


@pytest.mark.parametrize("uri", ["nonsense://x", "sqlite:////dev/null/x.db"])
def test_a_wrong_address_is_a_warning(
    project: Project, uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    stage.publish(project.params)
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("warning: MLflow: ")
    assert printed.err.count("\n") == 1


def test_a_broken_record_is_named(project: Project) -> None:
    (project.root / FIRST.folder / "record.json").write_text("{")
    with pytest.raises(InputError, match=f"{FIRST.folder}/record.json: no readable JSON"):
        stage.publish(project.params)


def test_many_values_and_parameters(project: Project) -> None:
    project.compare |= {"breakdowns": [], "seeds": [0]}
    run = RunId("finetune", 10, 0)
    write_run(project.root, run, epochs=700, parameters={f"p{i}": i for i in range(250)})
    publish(project)
    (found,) = runs(project).values()
    assert len(found.data.params) == 254
    assert len(points(project, found, "val/accuracy")) == 700


def test_costs_without_memory_or_timing(tmp_path: Path) -> None:
    assert results.costs(tmp_path, FIRST) == {}
    phase = {"phase": "head", "seconds": 2, "peak_memory_mb": None}
    write_json(tmp_path / FIRST.folder / "timing.json", {"phases": [phase]})
    assert results.costs(tmp_path, FIRST) == {"cost/train_seconds": 2.0}


def test_predicting_costs_apart_from_training(tmp_path: Path) -> None:
    training = {"phase": "head", "seconds": 2, "peak_memory_mb": 3}
    write_json(tmp_path / FIRST.folder / "timing.json", {"phases": [training]})
    test = {"phase": "test", "seconds": 0.5, "peak_memory_mb": 900}
    write_json(tmp_path / FIRST.test_timing, {"phases": [test]})
    assert results.costs(tmp_path, FIRST) == {
        "cost/train_seconds": 2.0, "cost/peak_memory_mb": 3.0, "cost/predict_seconds": 0.5,
    }  # fmt: skip


def test_what_predicting_cost_is_in_the_run(project: Project) -> None:
    test = {"phase": "test", "seconds": 0.5, "peak_memory_mb": 900}
    write_json(project.root / FIRST.test_timing, {"phases": [test]})
    publish(project)
    found = runs(project)[FIRST.name]
    assert points(project, found, "cost/predict_seconds") == [(0, 0.5)]
    assert points(project, found, "cost/train_seconds") == [(0, 3.0)]
    assert found.info.end_time - found.info.start_time == 3000
    assert str(FIRST.test_timing) in files(project, found, "predictions")


def test_a_method_has_the_colour_of_the_report() -> None:
    names = [f"m{place}" for place in range(9)]
    params = make_params({**make_compare([], names, [0]), "reference": "m0"}, {})
    job = entries.Job(params, Path(), tracking.store(Path()), {}, "")
    result = results.Result(RunId("m8", 10, 0), RECORD, {}, {}, "", "")
    assert results.entry(job, result).changing["mlflow.runColor"] == colour(8)


def test_what_the_network_is_like_inside_is_in_the_run(project: Project) -> None:
    write_json(project.root / FIRST.diagnosis, DIAGNOSIS)
    (project.root / FIRST.latents).write_bytes(b"latents")
    gradients = [("encoder", 1, "conv1", 0.5)]
    write_table(project.root / FIRST.gradients, gradients, ("phase", "epoch", "layer", "norm"))
    rows = [
        {"phase": phase, "epoch": 1, "images_seen": seen, "grad/first_to_last": ratio}
        for phase, seen, ratio in (("encoder", 50, 2.0), ("head", 100, None), ("release", 150, 4.0))
    ]
    write_history(project.root / FIRST.folder / "history.csv", rows)
    publish(project)
    run = runs(project)[FIRST.name]
    metrics = {
        "latent/spread": 0.5, "fit/loss_gap": 0.25,
        "cost/parameters": 1200, "cost/multiply_adds": 3400, "cost/model_mb": 5,
    }  # fmt: skip
    for name, value in metrics.items():
        assert points(project, run, name) == [(0, value)]
    assert "latent/probe_val_accuracy" not in run.data.metrics
    assert points(project, run, "encoder/grad/first_to_last") == [(50, 2.0)]
    assert points(project, run, "grad/first_to_last") == [(150, 4.0)]
    assert run.data.tags["collapsed"] == "false"
    looked = "- `latent/…` looks at `embedding`, 64 numbers an image"
    assert run.data.tags["mlflow.note.content"].splitlines()[-1] == looked
    assert "gradients.csv" in files(project, run)
    kept = {str(FIRST.diagnosis), str(FIRST.latents)}
    assert kept <= set(files(project, run, "predictions"))


def test_a_collapsed_latent_is_said(project: Project) -> None:
    fallen = DIAGNOSIS | {"collapsed": True, "cause": "a rectifier that died"}
    write_json(project.root / FIRST.diagnosis, fallen)
    publish(project)
    tags = runs(project)[FIRST.name].data.tags
    assert tags["collapsed"] == "true"
    assert "**Collapsed latent:** a rectifier that died" in tags["mlflow.note.content"].splitlines()


def test_a_broken_diagnosis_is_named(project: Project) -> None:
    (project.root / FIRST.diagnosis).write_text("{")
    with pytest.raises(InputError, match=f"{FIRST.diagnosis}: no readable JSON"):
        stage.publish(project.params)


def test_times_alone_make_no_other_run(project: Project) -> None:
    publish(project)
    test = {"phases": [{"phase": "test", "seconds": 0.5}], "one_image_seconds": 0.002}
    write_json(project.root / FIRST.test_timing, test)
    assert publish(project) == Done(created=0, kept=4, replaced=0)


def test_what_one_image_costs(tmp_path: Path) -> None:
    test = {"phases": [{"phase": "test", "seconds": 0.5}], "one_image_seconds": 0.002}
    write_json(tmp_path / FIRST.test_timing, test)
    assert results.costs(tmp_path, FIRST) == {"cost/predict_seconds": 0.5, "cost/one_image_ms": 2.0}


def test_the_machine_s_values_stand_along_time(tmp_path: Path) -> None:
    folder = tmp_path / FIRST.folder
    phases = [
        {"phase": "head", "seconds": 2.5, "images_seen": 50, "images_per_second": 20.0},
        {"phase": "solve", "seconds": 0.5, "peak_memory_mb": 7, "images_per_second": None},
    ]
    write_json(folder / "encoder/timing.json", {"phases": [{"phase": "encoder"}]})
    write_json(folder / "timing.json", {"phases": phases})
    assert results.system_points(tmp_path, FIRST) == [
        ("system/images_per_second", 20.0, 2500, 50),
        ("system/peak_memory_mb", 7.0, 3000, 50),
    ]
