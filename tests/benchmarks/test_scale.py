"""The scale benchmark on small sets: distinct images, both stages, one line a stage."""

import io
import json
import sys

import numpy as np
import pytest
from PIL import Image

from benchmarks import scale


def test_images_are_readable_and_no_two_are_the_same():
    numbers = [*range(2000), 10**6, 2**40]
    for side in (scale.SIDE, 32):
        files = [scale.png(number, side) for number in numbers]
        pixels = [np.asarray(Image.open(io.BytesIO(file))) for file in files]
        assert {image.shape for image in pixels} == {(side, side)}
        assert len({image.tobytes() for image in pixels}) == len(numbers)


@pytest.mark.parametrize("name", scale.OF_CLASS)
def test_both_stages_read_all_images_of_a_set(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    case = scale.Case(name, 400, per_image=2)
    scale.make(case, tmp_path / "data")
    for stage in ("images", "prepare"):
        scale.run_stage(case, tmp_path, stage)
    assert np.load("prepared/images.npy").shape == (400, 1, scale.SIDE, scale.SIDE)
    summary = json.loads((tmp_path / "prepared/summary.json").read_text())
    assert summary["classes"] == 400 / scale.OF_CLASS[name]
    assert summary["splits"]["train"]["images"] == 200
    assert summary["near_duplicates"]["pairs"] == 400 / scale.COPIED


@pytest.mark.parametrize(("side", "near", "apart"), [(8, "group", 0), (16, "warn", 2)])
def test_near_duplicates_are_grouped_where_asked(side, near, apart, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (case,) = scale.cases(["classes"], [300], [], side, near)
    scale.make(case, tmp_path / "data")
    for stage in ("images", "prepare"):
        scale.run_stage(case, tmp_path, stage)
    told = json.loads((tmp_path / "prepared/summary.json").read_text())["near_duplicates"]
    assert told == {"pairs": 6, "in_two_splits": apart, "of_two_classes": 0}


def test_each_stage_takes_time_and_memory_of_its_own(tmp_path):
    found = scale.run(scale.Case("classes", 300, per_image=4), tmp_path)
    assert [row.stage for row in found] == ["images", "prepare"]
    assert [row.pairs for row in found] == [0, 150 * 4]
    for row in found:
        assert row.used.processor > 0 and 20 < row.used.peak_mb < 1000
    assert "| classes | prepare | 300 | 600 |" in scale.table(found)


def test_pairs_asked_for_are_those_that_a_case_gives():
    (case,) = scale.cases([], [], [500_000])
    assert (case.rows, case.per_image) == (10_000, 100)
    assert case.rows * scale.TRAIN * case.per_image == 500_000


def test_the_table_comes_last_and_json_beside_it(tmp_path, monkeypatch, capsys):
    used = scale.Used(2.0, 1.5, 99.6)
    grown = [scale.Grown("people", stage, 1000, 0, used) for stage in ("images", "prepare")]
    monkeypatch.setattr(scale, "run", lambda case, folder: grown)
    file = tmp_path / "out/scale.json"
    words = ["scale", "--sets", "people", "--rows", "1000", "--pairs", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", words)
    scale.main()
    assert capsys.readouterr().out.endswith(
        "| people | prepare | 1,000 |  | 2.0 | 1.5 | 100 | 500 |\n"
    )
    assert json.loads(file.read_text())["rows"][0]["used"]["peak_mb"] == 99.6
