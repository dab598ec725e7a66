"""A table with groups, read, split and listed by the stages ``images`` and ``prepare``."""

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits

from pipeline.errors import InputError
from pipeline.params import Params
from pipeline.params_file import parse, plain, read
from pipeline.stages.images import images
from pipeline.stages.prepare import prepare
from tests.digits import write_digits

DEFAULT = Path(__file__).parents[2] / "configs/digits.yaml"
DIGITS, EACH, WRITERS = (5, 6, 7), 24, 12


def csv_params(**data) -> Params:
    """The default at a small size, reading a table; ``data`` replaces keys of that section."""
    source = read(DEFAULT)
    tree = plain(source.tree)
    tree["data"] |= {"layout": "csv", "source": None, "exact_duplicates": "drop"} | data
    tree["weights"] = {"from": "none"}
    tree["compare"] |= {"shots": [2, "all"], "seeds": [0, 1]}
    return parse(Params, tree, source)


def write_table(path: Path, header, rows) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def rows(split="", writers=WRITERS):
    return [
        (f"{digit}/{n:03}.png", f"digit {digit}", split, f"writer {n % writers}")
        for digit in DIGITS
        for n in range(EACH)
    ]


HEADER = ("image", "label", "split", "group")


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_digits(tmp_path / "data/target", list(DIGITS), EACH)
    return tmp_path


def lists(folder="prepared"):
    return {str(path): path.read_bytes() for path in sorted(Path(folder).rglob("*.csv"))}


@pytest.mark.parametrize("target", ["data/target", "data/target/digits.csv"])
def test_a_table_with_groups_becomes_lists(project, target, capsys):
    write_table(project / "data/target/digits.csv", HEADER, rows())
    images(csv_params(target=target))
    assert "72 images, 3 classes, 12 groups, splits to be drawn" in capsys.readouterr().out
    prepare(csv_params(target=target))
    table = pd.read_csv("prepared/images.csv")
    assert table["group"].nunique() == WRITERS
    found = load_digits()
    for digit in DIGITS:
        expected = found.images[found.target == digit][:EACH] * 15
        mine = np.load("prepared/images.npy")[table["class"] == f"digit {digit}", 0]
        assert (mine == expected.astype(np.uint8)).all()
    home = {
        name: set(table["group"][pd.read_csv(f"prepared/{path}.csv")["row"]])
        for name, path in {
            "val": "splits/val", "test": "splits/test", "train": "train/shots-all/seed-0",
        }.items()
    }  # fmt: skip
    assert sum(len(groups) for groups in home.values()) == len(set().union(*home.values())) == 12
    summary = json.loads(Path("prepared/summary.json").read_text())
    assert summary["groups"] == WRITERS
    assert {name: of["images"] for name, of in summary["splits"].items()} == {
        "train": 36, "val": 12, "test": 24,
    }  # fmt: skip


def test_the_lists_are_the_same_bytes_again(project):
    write_table(project / "data/target/digits.csv", HEADER, rows())
    images(csv_params())
    prepare(csv_params())
    once = lists()
    write_table(project / "data/target/digits.csv", HEADER, rows()[::-1])  # the order of lines
    images(csv_params())
    prepare(csv_params())
    assert lists() == once


def test_a_table_without_groups_is_split_as_folders_are(project):
    images(csv_params(layout="folders"))
    prepare(csv_params(layout="folders"))
    folders = {name: text for name, text in lists().items() if name != "prepared/images.csv"}
    write_table(project / "data/target/digits.csv", HEADER[:2], [row[:2] for row in rows()])
    images(csv_params())
    prepare(csv_params())
    table = {name: text for name, text in lists().items() if name != "prepared/images.csv"}
    assert table == folders
    assert json.loads(Path("prepared/summary.json").read_text())["groups"] == 0


def test_splits_and_groups_that_the_table_brings(project):
    given = [
        (image, label, ("train", "train", "valid", "Test")[int(group.split()[1]) % 4], group)
        for image, label, _, group in rows()
    ]
    write_table(project / "data/target/digits.csv", HEADER, given)
    images(csv_params())
    prepare(csv_params(val_per_class=4))
    table = pd.read_csv("prepared/images.csv")
    of_val = table.loc[pd.read_csv("prepared/splits/val.csv")["row"]]
    assert of_val["class"].value_counts().tolist() == [4, 4, 4]
    assert of_val["group"].nunique() == 2 and (of_val["split"] == "val").all()
    assert json.loads(Path("prepared/summary.json").read_text())["left_out"] == 6


def test_identical_images_in_two_groups_are_dropped(project):
    copy = project / "data/target/5/100.png"
    copy.write_bytes((project / "data/target/5/000.png").read_bytes())
    for n in range(20):  # groups of their own; with this many, some stand apart from the original
        copy.with_name(f"{101 + n}.png").write_bytes(copy.read_bytes())
    more = [(f"5/{100 + n}.png", "digit 5", "", f"other {n}") for n in range(21)]
    write_table(project / "data/target/digits.csv", HEADER, [*rows(), *more])
    images(csv_params())
    with pytest.raises(InputError, match="identical images stand in two splits"):
        prepare(csv_params(exact_duplicates="error"))
    prepare(csv_params())
    summary = json.loads(Path("prepared/summary.json").read_text())
    assert summary["identical_groups"] == 1 and summary["left_out"] > 0
    assert summary["groups"] == WRITERS + 21


def test_a_group_in_two_splits_stops_the_stage(project):
    given = [
        (image, label, "test" if image[2:] < "006" else "train", group)
        for image, label, _, group in rows()
    ]
    write_table(project / "data/target/digits.csv", HEADER, given)
    with pytest.raises(InputError) as error:
        images(csv_params())
    assert str(error.value).startswith(
        "data/target/digits.csv:14: group 'writer 0' stands in test (5/000.png) "
        "and in train (5/012.png); "
    )


def test_target_and_source_with_an_image_in_common(project):
    write_table(project / "data/target/all.csv", HEADER, rows())
    write_table(project / "data/target/some.csv", HEADER, rows()[20:30])
    both = {"target": "data/target/all.csv", "source": "data/target/some.csv"}
    with pytest.raises(
        InputError, match=r"data\.target has its image 'data/target/5/020\.png' too"
    ):
        images(csv_params(**both))
