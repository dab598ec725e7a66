"""Asking a trained run of verification about image files."""

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import check, predict
from pipeline.errors import InputError
from pipeline.models import architectures
from pipeline.models.cut import cut
from pipeline.models.pairs import Verifier, build_pair_head
from pipeline.models.weights import save
from pipeline.params_file import parse, plain, read
from pipeline.records import RunId, write_json
from tests.digits import write_digits
from tests.test_params import VERIFICATION

RUN = RunId("siamese", 4, 0)
THRESHOLD = 0.4
TESTED = {
    "asked": {"parameters": {"model": {"views": 1}}, "inputs": {}},
    "values": {"best/threshold": THRESHOLD},
}


def params_here():
    source = read("params.yaml")
    return parse(check.Params, plain(source.tree), source)


@pytest.fixture
def verifier(tmp_path, monkeypatch):
    """The network of a run, with the run's files and some digits in the working folder."""
    monkeypatch.chdir(tmp_path)
    Path("pretrained").mkdir()
    Path("params.yaml").write_text(VERIFICATION, encoding="utf-8")
    params = params_here()
    monkeypatch.setattr(check, "load", params_here)
    network = architectures.build("small", 2, 1, 8, None, 3)
    made = Verifier(cut(network, "embedding")[0], build_pair_head("euclidean", 4, 0.0, 0)).eval()
    with torch.no_grad():
        made.head.bias.fill_(1.0)
        made.head.log_scale.fill_(3.0)
    save(RUN.folder / "model.safetensors", made.state_dict())
    asked = {
        "method": params.methods["siamese"],
        "task": "verification",
        "model": {"architecture": "small"},
        "data": {"image_size": 8, "channels": 1},
    }
    write_json(RUN.folder / "record.json", {"version": 1, "classes": 2, "parameters": asked})
    write_json(RUN.diagnosis, TESTED)
    write_digits(Path("photos"), [5, 6, 7], 4)
    return made


def say(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["predict", "siamese", *map(str, arguments)])
    predict.main()
    return [line.split("\t") for line in capsys.readouterr().out.splitlines()]


@torch.no_grad()
def probability(verifier, left, right):
    """One pair at a time, by the formula of the head."""
    one, other = (
        verifier.encode(
            architectures.normalise(
                torch.from_numpy(np.array(Image.open(path)))[None, None], "small"
            )
        )
        for path in (left, right)
    )
    distance = (one - other).square().mean().sqrt()
    return float(torch.sigmoid(1.0 - torch.tensor(3.0).exp() * distance))


def test_each_two_images_are_the_same_or_different(verifier, monkeypatch, capsys):
    digits = sorted(Path("photos").rglob("*.png"))
    paths = [digits[0], digits[1], digits[0], digits[5], digits[8], digits[0], digits[2], digits[2]]
    found = say(monkeypatch, capsys, *paths)
    said = {line[2] for line in found}
    assert len(found) == 4 and said == {"same", "different"}
    for line, left, right in zip(found, paths[::2], paths[1::2], strict=True):
        expected = probability(verifier, left, right)
        assert line[:2] == [str(left), str(right)]
        assert line[2] == ("same" if expected >= THRESHOLD else "different")
        score, threshold = line[3].removeprefix("P(same) ").split(", threshold ")
        assert float(score) == pytest.approx(expected, abs=1e-4)
        assert float(threshold) == THRESHOLD


def test_views_are_those_of_the_test(verifier, monkeypatch, capsys):
    digits = sorted(Path("photos").rglob("*.png"))[:2]
    plainly = say(monkeypatch, capsys, *digits)
    RUN.diagnosis.write_text(RUN.diagnosis.read_text().replace('"views": 1', '"views": 7'))
    assert say(monkeypatch, capsys, *digits)[0][3] != plainly[0][3]


@pytest.mark.parametrize(
    "left", [None, "{", "[]", "{}", '{"values": {"best/threshold": null}}', json.dumps(TESTED)[:-9]]
)
def test_a_run_that_was_not_tested_has_no_threshold_to_answer_by(
    verifier, monkeypatch, capsys, left
):
    RUN.diagnosis.unlink()
    if left is not None:
        RUN.diagnosis.write_text(left)
    digits = sorted(Path("photos").rglob("*.png"))[:2]
    with pytest.raises(InputError, match=r"^predictions/siamese-n4-s0\.diagnosis\.json: does not"):
        say(monkeypatch, capsys, *digits)


def test_a_gallery_names_the_class_of_the_highest_mean_probability(verifier, monkeypatch, capsys):
    queries = [Path(f"photos/{digit}/003.png") for digit in (5, 6, 7)]
    known = {digit: [Path(f"photos/{digit}/00{n}.png") for n in (0, 1)] for digit in (5, 6, 7)}
    for digit, paths in known.items():
        for path in paths:
            copy = Path("gallery", f"class {digit}", path.name)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    Path("gallery/class 5/notes.txt").write_text("no image")
    found = say(monkeypatch, capsys, *queries, "--gallery", "gallery")
    assert len({line[1] for line in found}) > 1
    for line, query in zip(found, queries, strict=True):
        means = {
            f"class {digit}": np.mean([probability(verifier, query, path) for path in paths])
            for digit, paths in known.items()
        }
        best = max(means, key=means.get)
        assert line[:2] == [str(query), best]
        assert float(line[2]) == pytest.approx(means[best], abs=1e-4)
    with zipfile.ZipFile("gallery.zip", "w") as archive:
        for path in Path("gallery").rglob("*.png"):
            archive.write(path, path.relative_to("gallery"))
    assert say(monkeypatch, capsys, *queries, "--gallery", "gallery.zip") == found


def test_images_of_a_gallery_may_be_named_for_their_classes(verifier, monkeypatch, capsys):
    Path("gallery").mkdir()
    for digit in (5, 7):
        Path(f"gallery/Nr. {digit}.png").write_bytes(Path(f"photos/{digit}/000.png").read_bytes())
    found = say(monkeypatch, capsys, "photos/7/000.png", "--gallery", "gallery")
    assert found == [["photos/7/000.png", "Nr. 7", f"{torch.sigmoid(torch.tensor(1.0)):.4f}"]]


def make_gallery(*paths):
    for path in paths:
        Path("gallery", path).parent.mkdir(parents=True, exist_ok=True)
        if path.endswith("/"):
            Path("gallery", path).mkdir()
        else:
            Path("gallery", path).write_bytes(Path("photos/5/000.png").read_bytes())


WRONG_GALLERIES = [
    ((), "gallery: there is no such gallery"),
    (("notes.txt",), "gallery: holds no images; put one folder a class"),
    (("a/1.png", "b.png"), "gallery/b.png: lies beside folders of classes"),
    (("a/1.png", "b/1.png", "c/"), "gallery/c: holds no image"),
    (("a/1.png", "a/2.png"), "gallery: has the one class 'a'"),
]


@pytest.mark.parametrize(("paths", "said"), WRONG_GALLERIES, ids=lambda value: str(value)[-24:])
def test_what_is_wrong_with_a_gallery_is_named(verifier, monkeypatch, capsys, paths, said):
    make_gallery(*paths)
    with pytest.raises(InputError) as error:
        say(monkeypatch, capsys, "photos/5/000.png", "--gallery", "gallery")
    assert str(error.value).startswith(said) and "\n" not in str(error.value)


def test_an_image_of_a_gallery_that_is_none_is_named(verifier, monkeypatch, capsys):
    make_gallery("a/1.png", "b/1.png")
    Path("gallery/b/1.png").write_text("no picture")
    with pytest.raises(InputError, match=r"^gallery/b/1\.png: is no readable"):
        say(monkeypatch, capsys, "photos/5/000.png", "--gallery", "gallery")


def test_a_pipe_is_no_image_and_is_not_waited_for(verifier, monkeypatch, capsys):
    os.mkfifo("pipe.png")
    with pytest.raises(InputError, match=r"^pipe\.png: is no regular file"):
        say(monkeypatch, capsys, "pipe.png", "photos/5/000.png")


WRONG_IMAGES = [
    (("photos/5/000.png",), "command line: IMAGE: 1 image(s) cannot be compared two by two"),
    (("photos/5/000.png", "nowhere.png"), "nowhere.png: there is no such file"),
    (("photos/5", "photos/5/000.png"), "photos/5: is a folder; name the images in it"),
    (("params.yaml", "photos/5/000.png"), "params.yaml: is no readable JPEG"),
]


@pytest.mark.parametrize(("paths", "said"), WRONG_IMAGES, ids=lambda value: str(value)[:24])
def test_what_is_wrong_with_images_is_named(verifier, monkeypatch, capsys, paths, said):
    with pytest.raises(InputError) as error:
        say(monkeypatch, capsys, *paths)
    assert str(error.value).startswith(said) and "\n" not in str(error.value)
