"""The rows that start programs: stages outside training, live tracking, an idle repro."""

import json
import shutil
import sys
from types import SimpleNamespace

import pytest

from benchmarks import stopwatch
from benchmarks.rows import repro, stages
from benchmarks.rows.commands import call
from pipeline import check
from pipeline.tracking import away
from pipeline.tracking.client import store


def test_a_part_within_another_counts_to_itself_alone():
    times = iter([0.0, 1.0, 4.0, 10.0, 20.0, 25.0])
    watch = stopwatch.Stopwatch(lambda: next(times))
    with watch.part("outer"), watch.part("inner"):
        pass
    with watch.part("outer"):
        pass
    assert watch.seconds == {"inner": 3.0, "outer": (10.0 - 3.0) + 5.0}


def test_a_wrapped_function_does_what_it_did_and_is_timed(monkeypatch):
    held = SimpleNamespace(double=lambda number: 2 * number)
    monkeypatch.setitem(sys.modules, "held", held)
    times = iter([1.0, 3.0])
    watch = stopwatch.Stopwatch(lambda: next(times))
    watch.wrap("held.double", "sums")
    assert held.double(4) == 8
    assert watch.seconds == {"sums": 2.0}


@pytest.mark.parametrize("function", stopwatch.FUNCTIONS)
def test_every_function_that_is_wrapped_exists(function):
    owner, name = stopwatch._find(function)
    assert callable(getattr(owner, name))


def test_a_program_that_fails_says_why(tmp_path):
    with pytest.raises(RuntimeError, match="status 3: no such thing"):
        call(tmp_path, sys.executable, "-c", "print('no such thing'); raise SystemExit(3)")


@pytest.mark.slow
def test_a_stage_is_taken_apart():
    with stages.outside_training("baseline", epochs=1) as row:
        taken = row.ours().seconds
        names = {"interpreter", "import of torch", "other imports", "checks", "reading"}
        assert names | {"writing", "tracking", "all else", "exit"} == row.parts.keys()
        shares = {name: times[0] for name, times in row.parts.items()}
        assert all(share >= 0 for share in shares.values())
        assert sum(shares.values()) == pytest.approx(taken, abs=0.1)  # phases count in neither
        assert shares["import of torch"] > 0.1


@pytest.mark.slow
def test_a_followed_phase_is_the_same_training(monkeypatch, tmp_path):
    kept, left = tmp_path / "kept", []

    def tried(folder, *words):
        left.append(away.left(store(kept)))
        return call(folder, *words)

    monkeypatch.setattr(stages.tempfile, "TemporaryDirectory", lambda: Kept(kept))
    with stages.live_tracking(epochs=2) as row:
        run = kept / "runs/scratch/shots-10/seed-0"
        row.other()
        assert check.load(kept / "params.yaml", files=False).tracking.live_after is None
        model = (run / "model.safetensors").read_bytes()
        (run / "model.safetensors").unlink()
        away.note(store(kept))  # as where it did not answer in time
        monkeypatch.setattr(stages, "call", tried)
        assert 0 < row.ours().seconds < 60
        assert check.load(kept / "params.yaml", files=False).tracking.live_after == 0
        assert (run / "model.safetensors").read_bytes() == model
        assert len(json.loads((run / "timing.json").read_text())["phases"]) == 1
        assert left == [0.0]  # the store is tried again


class Kept:
    """A temporary folder of a known name."""

    def __init__(self, folder):
        self.folder = folder

    def __enter__(self):
        self.folder.mkdir()
        return str(self.folder)

    def __exit__(self, *_):
        shutil.rmtree(self.folder)


@pytest.mark.slow
def test_trivial_stages_are_as_many_and_have_nothing_to_do(tmp_path):
    folder = tmp_path / "trivial"
    repro._trivial_project(folder, 3)
    assert call(folder, *repro.DVC, "stage", "list", "--name-only").split() == [
        "copy0",
        "copy1",
        "last",
    ]
    again = call(folder, *repro.DVC, "repro")
    assert again.count("didn't change, skipping") == 2 and "Running stage 'last'" in again
