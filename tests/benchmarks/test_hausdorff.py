import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.hausdorff import answers, main
from pipeline.errors import command

ROOT = Path(__file__).parents[2]
SHAPES = {"bar": (slice(2, 4), slice(2, 18)), "post": (slice(2, 18), slice(2, 4)),
          "block": (slice(4, 14), slice(4, 14))}  # fmt: skip


def draw(path: Path, shape: str, shift: int = 0):
    image = np.full((24, 24), 255, np.uint8)
    image[SHAPES[shape]] = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.roll(image, shift, axis=(0, 1))).save(path)


def write_set(folder: Path, queries: list[str]) -> Path:
    """One run of as many queries as shapes, beside a background of one alphabet."""
    for number, shape in enumerate(SHAPES, start=1):
        for drawer in (1, 2):
            character = folder / "images_background" / "Alphabet" / f"character{number:02}"
            draw(character / f"{number:04}_{drawer:02}.png", shape)
        draw(folder / "all_runs/run01/training" / f"class{number:02}.png", shape)
    lines = []
    for number, shape in enumerate(queries, start=1):
        draw(folder / "all_runs/run01/test" / f"item{number:02}.png", shape, shift=2)
        lines.append(f"run01/test/item{number:02}.png run01/training/class{number:02}.png\n")
    (folder / "all_runs/run01/class_labels.txt").write_text("".join(lines))
    return folder


def test_moved_drawings_are_recognised_and_others_not(tmp_path):
    right = answers(write_set(tmp_path / "right", ["bar", "post", "block"]))
    np.testing.assert_array_equal(right.labels, right.predicted)
    np.testing.assert_array_equal(right.scores, 0)
    swapped = answers(write_set(tmp_path / "swapped", ["post", "bar", "block"]))
    np.testing.assert_array_equal(swapped.labels, [0, 1, 2])
    np.testing.assert_array_equal(swapped.predicted, [1, 0, 2])


def test_it_prints_the_error_rate(tmp_path, monkeypatch, capsys):
    target = write_set(tmp_path, ["post", "bar", "block"])
    monkeypatch.setattr(sys, "argv", ["hausdorff", str(target)])
    command(main)
    assert capsys.readouterr().out == "66.67% error (2 of 3)\n"


def no_runs(folder):
    shutil.rmtree(folder / "all_runs")


def blank(folder):
    Image.new("L", (24, 24), 255).save(folder / "all_runs/run01/test/item02.png")


def damaged(folder):
    (folder / "all_runs/run01/training/class03.png").write_bytes(b"no image")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (shutil.rmtree, "there is no such"),
        (no_runs, "has no official runs; put all_runs.zip there"),
        (blank, "item02.png: is no readable drawing: the image has no dark pixel"),
        (damaged, "class03.png: is no readable drawing: "),
    ],
)
def test_what_is_wrong_is_one_line(harm, said, tmp_path, monkeypatch, capsys):
    target = write_set(tmp_path / "set", ["bar", "post", "block"])
    harm(target)
    monkeypatch.setattr(sys, "argv", ["hausdorff", str(target)])
    with pytest.raises(SystemExit, match="1"):
        command(main)
    printed = capsys.readouterr().err
    assert said in printed and printed.count("\n") == 1


def test_it_says_how_it_is_called(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["hausdorff"])
    with pytest.raises(SystemExit, match="1"):
        command(main)
    assert "usage: python -m benchmarks.hausdorff TARGET" in capsys.readouterr().err


@pytest.mark.shared
def test_the_official_runs_give_the_published_error():
    root = Path(os.environ.get("SHARED_DATA", ROOT / "../shared"))
    target = root / "data/omniglot/images_background_small1.zip"
    if not target.exists():
        pytest.skip(f"{target} is not there; set SHARED_DATA")
    picked = answers(target)
    assert len(picked.labels) == 400
    assert int((picked.labels != picked.predicted).sum()) == 155  # 38.75 %
