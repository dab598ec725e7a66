"""From prepared files to runs: what is read, by what digest, and where it lies meanwhile."""

import json

import numpy as np
import pytest

from pipeline import workspace
from pipeline.data.rows import Streamed
from pipeline.records import RunId, digest
from pipeline.stages.images import images
from pipeline.stages.prepare import prepare
from pipeline.stages.weights import make_weights
from tests.digits import write_digits
from tests.test_stages import contents, tiny_params
from tests.training_runs import train_and_test


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_digits(tmp_path / "data/target", [5, 6, 7], 20)
    params = tiny_params(weights__from="none", data__source=None)
    for stage in (images, prepare, make_weights):
        stage(params)
    return params


def test_every_file_of_a_run_is_the_same_wherever_its_images_lie(project, monkeypatch):
    """Encoder, head, baseline and test stages; the record does not say where they lay."""
    kinds, found = set(), {}
    load_sets = workspace.load_sets

    def seen(*asked, **more):
        sets = load_sets(*asked, **more)
        kinds.update((placement, type(of.pixels)) for of in sets)
        return sets

    monkeypatch.setattr(workspace, "load_sets", seen)
    for placement in ("resident", "streamed"):
        train_and_test(
            tiny_params(weights__from="none", data__source=None, data__placement=placement)
        )
        found[placement] = contents("runs", "predictions", without=("timing.json", ".lock"))
    assert {(place, kind is Streamed) for place, kind in kinds} == {
        ("resident", False),
        ("streamed", True),
    }
    assert len(found["resident"]) > 10 and found["resident"] == found["streamed"]
    for path, content in found["streamed"].items():
        if path.endswith("record.json"):
            assert "images" not in json.loads(content)["parameters"]["runtime"]


def test_the_digest_of_images_goes_by_the_pixels_of_each_list(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workspace, "DIGEST_ROWS", 4)
    pixels = np.random.default_rng(0).integers(256, size=(30, 3, 5, 5)).astype(np.uint8)
    workspace.IMAGES.parent.mkdir()
    np.save(workspace.IMAGES, pixels)
    train, val = np.array([7, 3, 3, 29, 0, 1, 2]), np.array([11, 12])
    expected = digest(str((3, 5, 5)), pixels[train].tobytes(), pixels[val].tobytes())
    assert workspace._pixel_digest(train, val) == expected
    assert workspace._pixel_digest(train[:6], np.append(2, val)) != expected


def test_a_run_says_where_its_latents_lie(project):
    from pipeline import recipes

    run = RunId("finetune", 4, 0)
    recipe = recipes.of(project.methods["finetune"])
    for placement in ("auto", "resident", "streamed"):
        params = tiny_params(weights__from="none", data__source=None, data__placement=placement)
        made, _ = workspace.load_run(params, run, recipe, pairs=False)
        assert made.placement == placement
        assert isinstance(made.train.pixels, Streamed) == (placement == "streamed")
