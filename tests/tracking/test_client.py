from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.tracking import client as tracking
from pipeline.tracking import views


def test_store_embedded(tmp_path: Path) -> None:
    place = tracking.store(tmp_path / "a b#c 50%")
    assert place.embedded and place.database == tmp_path / "a b#c 50%" / "mlflow.db"
    assert place.uri == f"sqlite:///{tmp_path}/a b#c 50%/mlflow.db"
    assert place.artifacts == f"file://{tmp_path}/a%20b%23c%2050%25/mlruns"


@pytest.mark.parametrize("name", ["q?x", "p%41z", "a b#c%20d?e 50%", "é\nline\u2028?"])
def test_a_folder_of_any_name_and_none_beside_it(
    tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    root = tmp_path / name / "project"
    root.mkdir(parents=True)
    shutil.copy(database, root / "mlflow.db")
    monkeypatch.chdir(root)
    place = tracking.store(root)
    assert place.database == root / "mlflow.db"
    assert tracking.shown(place.uri).isprintable()
    client = tracking.open_client(place)
    run = client.create_run(tracking.experiment(client, tracking.RESULTS, place))
    client.log_artifact(run.info.run_id, str(root / "mlflow.db"))
    with closing(sqlite3.connect(root / "mlflow.db")) as rows:
        assert rows.execute("SELECT run_uuid FROM runs").fetchall() == [(run.info.run_id,)]
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert sorted(path.name for path in root.iterdir()) == [".mlflow.lock", "mlflow.db", "mlruns"]


def test_a_folder_whose_name_is_no_text_is_refused(tmp_path: Path) -> None:
    root = tmp_path / os.fsdecode(b"caf\xe9")
    root.mkdir()
    place = tracking.store(root)
    assert place.database == root / "mlflow.db"
    with pytest.raises(tracking.TrackingError, match="name is UTF-8; rename it"):
        tracking.open_client(place)
    assert list(root.iterdir()) == []


def test_store_of_the_user_is_untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@host:1/x?token=t")
    place = tracking.store(tmp_path)
    assert (place.uri, place.artifacts) == ("http://me:secret@host:1/x?token=t", None)
    assert not place.embedded and place.database is None


def test_project_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / "p" / "a" / "b"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    with pytest.raises(InputError, match=r"no dvc\.yaml here or above"):
        tracking.project_root()
    (tmp_path / "p" / "dvc.yaml").touch()
    assert tracking.project_root() == tmp_path / "p"
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert tracking.project_root() == tmp_path


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("http://me:p@ss@host:5000/a", "http://host:5000/a"),
        ("postgresql://u:p@h/db?password=x", "postgresql://h/db"),
        ("sqlite:////a b/mlflow.db", "sqlite:////a b/mlflow.db"),
        ("databricks", "databricks"),
    ],
)
def test_credentials_are_never_shown(uri: str, expected: str) -> None:
    assert tracking.shown(uri) == expected
    assert tracking.reason(Exception(f"\n no answer from {uri}\nmore"), uri) == (
        f"no answer from {expected}"
    )


def test_reason_is_one_short_line() -> None:
    assert tracking.reason(ValueError("")) == "ValueError"
    assert tracking.reason(KeyError("recipe")) == "KeyError: 'recipe'"
    assert tracking.reason(Exception("API request to https://a:b@c/d failed")) == (
        "API request to https://c/d failed"
    )
    assert len(tracking.reason(Exception("x" * 5000))) == tracking.LONGEST_REASON
    assert tracking.reason(Exception("red \x1b[31m\x07")) == "red \\x1b[31m\\x07"


@pytest.mark.parametrize("part", ["://a:b", "://", "://a:b@", "Basic ", "Max retries exceeded "])
def test_an_answer_of_any_length_takes_no_time(part: str) -> None:
    start = time.process_time()
    assert len(tracking.reason(Exception(part * 60_000), "http://a:b@c")) <= 300
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        ("ResponseError('too many 500 error responses')", "answers with status 500"),
        ("ReadTimeoutError('read timed out')", "gives no answer"),
    ],
)
def test_a_server_without_an_answer_is_named(cause: str, said: str) -> None:
    uri = "http://me:secret@127.0.0.1:1"
    error = f"API request failed: Max retries exceeded with url: /api (Caused by {cause})"
    assert tracking.reason(Exception(error), uri) == f"http://127.0.0.1:1 {said}"


def test_flat() -> None:
    nested = {
        "a": {"b": 5e-5, "c": {"d": [1, None], "e": True}, "f": {}},
        "g": "x",
        "h é$": "y" * 7000,
    }
    assert tracking.flat(nested) == {
        "a.b": "5e-05",
        "a.c.d": "[1, null]",
        "a.c.e": "true",
        "a.f": "{}",
        "g": "x",
        "h é_": "y" * 6000,
    }


def test_metric_name() -> None:
    assert tracking.metric_name("encoder", "train/loss") == "encoder/train/loss"
    assert tracking.metric_name("encoder_2", "val/loss") == "encoder_2/val/loss"
    for phase in ("head", "head_5", "end_to_end", "round_8", "release", "joint", "solve"):
        assert tracking.metric_name(phase, "val/accuracy") == "val/accuracy"


def test_processes_are_recognised() -> None:
    own = tracking.process_tags()
    assert tracking.is_local(own) and tracking.is_alive(own)
    later = str(float(own["process.started"]) + 60)
    assert not tracking.is_alive({**own, "process.started": later})
    assert not tracking.is_alive({}) and not tracking.is_local({})
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    assert not tracking.is_alive({**own, "process.pid": str(child.pid)})


def test_experiment_is_made_once_and_restored(project) -> None:
    client = tracking.open_client(project.store)
    number = tracking.experiment(client, tracking.RESULTS, project.store)
    client.delete_experiment(number)
    assert tracking.experiment(client, tracking.RESULTS, project.store) == number
    found = client.get_experiment(number)
    assert found.lifecycle_stage == "active"
    assert found.tags["mlflow.experimentKind"] == "custom_model_development"
    note = found.tags["mlflow.note.content"]
    for words in ("best/val_accuracy", "best/val_5_way_1_shot_accuracy", "on images or pairs"):
        assert words in note
    assert found.tags[views.TAG] == views.saved_view()
    assert found.artifact_location == f"{project.store.artifacts}/{tracking.RESULTS}"


def test_a_note_of_the_user_stays_but_the_kind_is_set(project) -> None:
    client = tracking.open_client(project.store)
    number = client.create_experiment(
        tracking.PHASES,
        f"{project.store.artifacts}/{tracking.PHASES}",
        {"mlflow.note.content": "mine", "mlflow.experimentKind": "genai_development"},
    )
    assert tracking.experiment(client, tracking.PHASES, project.store) == number
    tags = client.get_experiment(number).tags
    assert tags["mlflow.note.content"] == "mine"
    assert tags["mlflow.experimentKind"] == "custom_model_development"


def test_a_race_for_the_experiment(project, monkeypatch: pytest.MonkeyPatch) -> None:
    client = tracking.open_client(project.store)
    number = tracking.experiment(client, tracking.RESULTS, project.store)
    asked = []
    real = client.get_experiment_by_name

    def late(name: str):
        asked.append(name)
        return None if len(asked) == 1 else real(name)

    monkeypatch.setattr(client, "get_experiment_by_name", late)
    assert tracking.experiment(client, tracking.RESULTS, project.store) == number


def test_a_moved_project_is_refused(project) -> None:
    client = tracking.open_client(project.store)
    client.create_experiment(tracking.RESULTS, "file:///elsewhere/mlruns")
    with pytest.raises(tracking.TrackingError, match=r"made elsewhere .*/elsewhere/mlruns"):
        tracking.experiment(client, tracking.RESULTS, project.store)


def test_a_file_that_is_no_database_is_refused_at_once(project) -> None:
    (project.root / "mlflow.db").write_text("no database " * 100)
    start = time.monotonic()
    with pytest.raises(tracking.TrackingError, match=r"mlflow\.db: file is not a database"):
        tracking.open_client(project.store)
    assert time.monotonic() - start < 10


@pytest.mark.slow
def test_two_processes_create_the_store_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pipeline.tracking import client as c;"
        "place = c.store(Path.cwd()); client = c.open_client(place);"
        "print(c.experiment(client, c.RESULTS, place), 'torch' in sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code], cwd=tmp_path, env=env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]  # fmt: skip
    answers = [process.communicate(timeout=60) for process in both]
    assert answers == [("1 False\n", "")] * 2, json.dumps(answers)


@pytest.mark.slow
def test_a_process_that_ends_while_the_store_is_made_leaves_no_half_of_it(tmp_path: Path) -> None:
    """As a stage does that ends just when it starts to follow a phase."""
    code = (
        "from pathlib import Path; from pipeline.tracking import client as c;"
        "c.open_client(c.store(Path.cwd()))"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=env, **quiet) as process:
        end = time.monotonic() + 60
        while not any(path.stat().st_size for path in tmp_path.glob("mlflow.db*")):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.001)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    place = tracking.store(tmp_path)
    assert not (tmp_path / "mlflow.db").exists()
    assert tracking.experiment(tracking.open_client(place), tracking.RESULTS, place) == "1"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mlflow.lock", "mlflow.db"]
