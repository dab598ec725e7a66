"""What the test stages say of trained networks, against the networks themselves."""

import io
import json
import math
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from pipeline import recipes
from pipeline.data.batches import read_list
from pipeline.errors import InputError
from pipeline.evaluation import diagnosis as names
from pipeline.evaluation.diagnosis import Arrays, parse, read_arrays
from pipeline.evaluation.latents import (
    Labelled,
    describe,
    evenly,
    principal_components,
    separable_pairs,
)
from pipeline.models import architectures, weights
from pipeline.params import Params
from pipeline.params_file import parse as parse_params
from pipeline.params_file import plain, read
from pipeline.records import RunId, read_json, runs_of, write_json
from pipeline.stages.baseline import baseline
from pipeline.stages.encoder import encoder
from pipeline.stages.head import head
from pipeline.stages.images import images
from pipeline.stages.prepare import prepare
from pipeline.stages.test import test as predict_test_split
from pipeline.stages.weights import make_weights
from pipeline.tasks.diagnosis import FEWEST_REPEATS, REPEATS, WARM_UPS, one_image_seconds, packed
from pipeline.tasks.verification.scoring import Scorer
from pipeline.tasks.verification.views import views
from tests.digits import write_digits

ROOT = Path(__file__).parents[2]
PHASE = {"epochs": 2, "lr": 0.05}
CLASSIFIERS = {
    "breakdown": {"recipe": "breakdown", "encoder": {"latent": "embedding"} | PHASE, "head": PHASE},
    "finetune": {"recipe": "finetune"} | PHASE,
    "scratch": {"recipe": "scratch"} | PHASE,
    "softmax": {"recipe": "features", "latent": "embedding", "head": {"kind": "linear"}},
    "early": {"recipe": "features", "latent": "features.3", "head": {"kind": "knn"}},
}  # fmt: skip
VERIFIERS = {
    "siamese": {"recipe": "siamese", "latent": "embedding", "head": {"kind": "euclidean"}} | PHASE,
    "breakdown": {
        "recipe": "breakdown",
        "encoder": {"latent": "features"} | PHASE,
        "head": {"pairs": {"kind": "difference"}} | PHASE,
    },
}  # fmt: skip
FIT = (names.TRAIN_ACCURACY, names.VAL_ACCURACY, names.TRAIN_LOSS, names.VAL_LOSS)


def params_of(task: str, latent: str | None) -> Params:
    source = read(ROOT / "configs/digits.yaml")
    tree = plain(source.tree)
    methods = CLASSIFIERS if task == "classification" else VERIFIERS
    tree |= {"task": task, "methods": methods, "diagnostics": {"latent": latent}}
    tree["compare"] |= {
        "breakdowns": ["breakdown"],
        "baselines": [method for method in methods if method != "breakdown"],
        "shots": [4] if task == "classification" else ["all"],
        "seeds": [0],
        "reference": "breakdown",
    }
    tree["tracking"]["live_after"] = None
    if task == "classification":
        tree["weights"]["source"]["epochs"] = 2
    else:
        tree["data"] |= {"source": None, "val_per_class": None}
        tree["weights"] = {"from": "none"}
        tree["model"]["views"] = 7
    return parse_params(Params, tree, source)


def make(folder: Path, params: Params, digits: list[int]) -> Path:
    """A project after all its runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_digits(folder / "data/target", digits, 16)
        write_digits(folder / "data/source", [0, 1, 2], 10)
        images(params)
        prepare(params)
        make_weights(params)
        for run in runs_of(params.compare):
            for part in (encoder, head) if run.method == "breakdown" else (baseline,):
                part(params, run)
            predict_test_split(params, run)
    return folder


@pytest.fixture(scope="module")
def classified(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classification")
    return make(folder, params_of("classification", "embedding"), [5, 6, 7])


@pytest.fixture(scope="module")
def verified(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verification")
    return make(folder, params_of("verification", None), list(range(8)))


@pytest.fixture
def project(classified, monkeypatch):
    monkeypatch.chdir(classified)


@pytest.fixture
def pairs_project(verified, monkeypatch):
    monkeypatch.chdir(verified)


@pytest.fixture
def copied(classified, tmp_path, monkeypatch):
    """A copy of the project, to be written to."""
    shutil.copytree(classified, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")


def of_run(method, shots=4):
    run = RunId(method, shots, 0)
    record = read_json(run.folder / "record.json")
    network = recipes.trained(record, run.folder / "model.safetensors")
    return run, record, network, parse(read_json(run.diagnosis))


def normalised(listed):
    rows, labels = read_list(listed)
    pixels = torch.from_numpy(np.load("prepared/images.npy")[rows])
    return architectures.normalise(pixels, "small"), labels


def whole(run, tensors=None):
    """The plain network with a run's encoder."""
    network = architectures.build("small", 3, 1, 8, None, 0).eval()
    own = tensors or load_file(run.folder / "model.safetensors")
    own = {key.removeprefix("encoder."): of for key, of in own.items() if "head." not in key}
    network.load_state_dict(own, strict=False)
    return network


@torch.no_grad()
def embedding(network, inputs):
    return network.embedding(network.flatten(network.features(inputs))).numpy()


def of_validation(latents):
    """What is said of validation images' latents alone."""
    return describe(None, latents, latents).values


@pytest.mark.parametrize("method", ["breakdown", "finetune", "scratch", "softmax"])
def test_every_method_is_looked_into_at_the_same_layer(project, method):
    run, _, _, found = of_run(method)
    network = whole(run)
    train, val, test = (
        Labelled(embedding(network, inputs), labels)
        for inputs, labels in map(
            normalised, (run.train_list, "prepared/splits/val.csv", "prepared/splits/test.csv")
        )
    )
    wanted = describe(train, val, test)
    assert found.latent == "embedding" and found.dimension == 64
    for name, value in wanted.values.items():
        assert found.values[name] == (None if value is None else pytest.approx(value, rel=1e-4))
    assert sum(found.same.counts) == sum(wanted.same.counts) > 0
    assert sum(found.different.counts) == sum(wanted.different.counts) > 0
    assert not found.collapsed and found.cause == ""
    arrays = read_arrays(run.latents)
    assert arrays.latents == pytest.approx(principal_components(test.latents, 50), abs=1e-3)
    assert arrays.labels.tolist() == test.labels.tolist()
    images = pd.read_csv(run.predictions)["image"]
    assert arrays.images.tolist() == images.tolist()


def test_a_network_that_ends_before_the_layer_is_looked_into_at_its_end(project):
    _, _, network, found = of_run("early")
    inputs, labels = normalised("prepared/splits/val.csv")
    with torch.no_grad():
        maps = network.encoder(inputs)  # (N, 32, 4, 4)
    wanted = of_validation(Labelled(maps.mean(dim=(2, 3)).numpy(), labels))
    assert found.latent == "features.3" and found.dimension == 32
    for name in (names.FISHER, names.EFFECTIVE_RANK, names.SPREAD):
        assert found.values[name] == pytest.approx(wanted[name], rel=1e-4)


@pytest.mark.parametrize("method", CLASSIFIERS)
def test_fit_is_accuracy_and_cross_entropy_of_images_as_they_are(project, method):
    run, _, network, found = of_run(method)
    wanted = {}
    for split, listed in (("train", run.train_list), ("val", "prepared/splits/val.csv")):
        inputs, labels = normalised(listed)
        with torch.no_grad():
            shares = network(inputs).double().softmax(dim=1).numpy()
        given = shares[np.arange(len(labels)), labels]
        wanted[f"fit/{split}_accuracy"] = np.mean(shares.argmax(axis=1) == labels)
        wanted[f"fit/{split}_loss"] = -np.log(given).mean()
    for name in FIT:
        assert found.values[name] == pytest.approx(wanted[name], rel=1e-4, abs=1e-5)
    gap = wanted[names.TRAIN_ACCURACY] - wanted[names.VAL_ACCURACY]
    assert found.values[names.ACCURACY_GAP] == pytest.approx(gap)
    gap = wanted[names.VAL_LOSS] - wanted[names.TRAIN_LOSS]
    assert found.values[names.LOSS_GAP] == pytest.approx(gap, rel=1e-4, abs=1e-5)


def test_weights_are_set_beside_those_that_the_method_began_with(project):
    start = load_file("weights/start.safetensors")
    for method in ("finetune", "scratch", "softmax"):
        run, _, _, found = of_run(method)
        own = load_file(run.folder / "model.safetensors")
        arrays = read_arrays(run.latents)
        first = next(own[key] for key in own if key.endswith("features.0.weight"))
        assert np.array_equal(arrays.filters_after, first.numpy())
        began = method != "scratch"
        assert (arrays.filters_before.size > 0) is began
        if began:
            assert np.array_equal(arrays.filters_before, start["features.0.weight"].numpy())
        layers = {layer.name: layer for layer in found.layers}
        assert (layers["embedding"].before is not None) is began
        assert (layers["embedding"].before == layers["embedding"].after) is (method == "softmax")
        if "classifier" in layers:
            assert layers["classifier"].before is None  # the last layer always begins at random


def test_size_and_cost_are_those_of_the_network(project):
    run, _, network, found = of_run("finetune")
    assert found.parameters == sum(of.numel() for of in network.parameters())
    assert found.model_bytes == (run.folder / "model.safetensors").stat().st_size
    layers = 8 * 8 * 32 * 9 + 4 * 4 * 64 * 32 * 9 + 256 * 64 + 64 * 3
    assert found.multiply_adds == layers


def test_a_null_latent_is_what_the_last_layer_takes_in(copied):
    run, _, network, _ = of_run("finetune")
    predict_test_split(params_of("classification", None), run)
    found = parse(read_json(run.diagnosis))
    inputs, labels = normalised("prepared/splits/val.csv")
    latents = torch.from_numpy(embedding(network, inputs)).relu().numpy()
    wanted = of_validation(Labelled(latents, labels))
    assert found.latent == "input of classifier"
    assert found.values[names.SPREAD] == pytest.approx(wanted[names.SPREAD], rel=1e-4)
    run, _, _, _ = of_run("softmax")
    predict_test_split(params_of("classification", None), run)
    assert parse(read_json(run.diagnosis)).latent == "embedding"


def test_a_layer_within_a_frozen_encoder_is_found(copied):
    run, _, network, _ = of_run("softmax")
    predict_test_split(params_of("classification", "features"), run)
    found = parse(read_json(run.diagnosis))
    inputs, labels = normalised("prepared/splits/val.csv")
    with torch.no_grad():
        maps = whole(run).features(inputs).mean(dim=(2, 3)).numpy()
        right = (network(inputs).argmax(dim=1).numpy() == labels).mean()
    wanted = of_validation(Labelled(maps, labels))
    assert found.latent == "features" and found.dimension == 64
    assert found.values[names.SPREAD] == pytest.approx(wanted[names.SPREAD], rel=1e-4)
    assert found.values[names.VAL_ACCURACY] == pytest.approx(right)


@pytest.mark.parametrize("method", ["finetune", "softmax"])
def test_a_wrong_latent_is_one_line(copied, method):
    run, _, _, _ = of_run(method)
    with pytest.raises(InputError, match=r"params\.yaml: diagnostics\.latent: latent 'no': "):
        predict_test_split(params_of("classification", "no"), run)


def test_only_so_many_test_images_are_looked_at(copied, monkeypatch):
    from pipeline.tasks.classification import diagnosis

    monkeypatch.setattr(diagnosis, "TEST_IMAGES", 5)
    run, *_ = of_run("finetune")
    predict_test_split(params_of("classification", "embedding"), run)
    inputs, labels = normalised("prepared/splits/test.csv")
    chosen = evenly(labels, 5)
    wanted = principal_components(embedding(whole(run), inputs)[chosen], 50)
    arrays = read_arrays(run.latents)
    assert len(chosen) == 5 < len(labels) and arrays.labels.tolist() == labels[chosen].tolist()
    assert arrays.latents == pytest.approx(wanted, abs=1e-3)
    assert arrays.images.tolist() == pd.read_csv(run.predictions)["image"][chosen].tolist()


def test_separable_pairs_are_those_of_test_images(copied, monkeypatch):
    from pipeline.tasks.classification import diagnosis

    monkeypatch.setattr(diagnosis, "IMAGES", 6)  # too few to say anything
    run, *_ = of_run("early")
    predict_test_split(params_of("classification", "features.0"), run)
    found = parse(read_json(run.diagnosis))
    inputs, labels = normalised("prepared/splits/test.csv")
    with torch.no_grad():
        maps = whole(run).features[0](inputs).mean(dim=(2, 3)).numpy()
    assert found.values[names.SEPARABLE] == separable_pairs(maps, labels) is not None


def test_a_forced_rerun_gives_the_same_bytes(copied):
    for method in CLASSIFIERS:
        run = RunId(method, 4, 0)
        files = (run.predictions, run.examples, run.diagnosis, run.latents)
        before = [path.read_bytes() for path in files]
        for path in files:
            path.unlink()
        predict_test_split(params_of("classification", "embedding"), run)
        assert [path.read_bytes() for path in files] == before
        with zipfile.ZipFile(io.BytesIO(before[-1])) as stored:
            assert {of.date_time for of in stored.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_a_dead_network_is_collapsed_and_its_cause_told(copied):
    run, record, _, _ = of_run("breakdown")
    path = run.folder / "model.safetensors"
    weights.save(path, {key: of * 0 for key, of in load_file(path).items()})
    predict_test_split(params_of("classification", "embedding"), run)
    found = parse(read_json(run.diagnosis))
    assert found.collapsed and found.cause.startswith("every unit gives zero whatever the image")
    assert found.values[names.SPREAD] == found.values[names.EFFECTIVE_RANK] == 0
    assert found.values[names.DISTANCE_AUC] == 0.5 and found.values[names.FISHER] is None
    assert found.values[names.VAL_LOSS] == pytest.approx(math.log(3))

    record["parameters"]["method"]["encoder"]["loss"]["weight_different"] = 0.0
    write_json(run.folder / "record.json", record)
    predict_test_split(params_of("classification", "embedding"), run)
    assert "weight_different of 0" in read_json(run.diagnosis)["cause"]
    write_json(run.folder / "record.json", record | {"status": "diverged"})
    predict_test_split(params_of("classification", "embedding"), run)
    assert read_json(run.diagnosis)["cause"].endswith("likely the training, which diverged")


def test_latents_that_are_not_finite_leave_a_readable_diagnosis(copied):
    run, *_ = of_run("finetune")
    path = run.folder / "model.safetensors"
    broken = load_file(path)
    broken["embedding.weight"] = torch.full((64, 256), 3e38)
    weights.save(path, broken)
    predict_test_split(params_of("classification", "embedding"), run)
    found = parse(json.loads(run.diagnosis.read_text(), parse_constant=pytest.fail))
    assert found.collapsed and "not finite" in found.cause
    assert found.values[names.SPREAD] is None and found.values[names.VAL_LOSS] is None
    assert np.isfinite(read_arrays(run.latents).latents).all()


@pytest.mark.parametrize(
    ("method", "latent"), [("siamese", "embedding"), ("breakdown", "features")]
)
def test_verification_is_looked_into_at_its_encodings(pairs_project, method, latent):
    run, _, network, found = of_run(method, "all")

    @torch.no_grad()
    def encode(rows):
        pixels = torch.from_numpy(np.load("prepared/images.npy")[rows])
        seen = [network.encode(architectures.normalise(of, "small")) for of in views(pixels, 7)]
        return sum(seen) / 7

    rows, labels = read_list("prepared/splits/val.csv")
    latents = encode(rows).numpy()
    wanted = of_validation(Labelled(latents, labels))
    assert found.latent == latent and found.dimension == latents.shape[1]
    assert found.values[names.PROBE_TRAIN] is found.values[names.PROBE_VAL] is None
    for name in (names.FISHER, names.DISTANCE_AUC, names.EFFECTIVE_RANK, names.SPREAD):
        assert found.values[name] == pytest.approx(wanted[name], rel=1e-3)
    for split, listed in (("train", run.trial_list), ("val", "prepared/trials/val.csv")):
        table = pd.read_csv(listed)
        pairs = table[table["set"] == "pairs"]
        chosen = evenly(pairs["same"].to_numpy(), 500)
        pairs = pairs.iloc[chosen]
        ends = (encode(pairs[side].to_numpy()) for side in ("left", "right"))
        with torch.no_grad():
            shares = network.head(*ends).double().sigmoid().numpy()
        same = pairs["same"].to_numpy()
        right = np.mean((shares >= found.values[names.THRESHOLD]) == same)
        loss = -np.log(np.where(same, shares, 1 - shares)).mean()
        assert found.values[f"fit/{split}_accuracy"] == pytest.approx(right, abs=1.5 / len(same))
        assert found.values[f"fit/{split}_loss"] == pytest.approx(loss, rel=1e-3)
    arrays = read_arrays(run.latents)
    assert set(arrays.images) <= set(pd.read_csv("prepared/images.csv")["image"])
    assert len(arrays.images) == len(arrays.labels) == len(arrays.latents) <= 500
    assert arrays.filters_before.size == 0 and arrays.filters_after.shape == (32, 1, 3, 3)
    layers = 8 * 8 * 32 * 9 + 4 * 4 * 64 * 32 * 9 + (256 * 64 if latent == "embedding" else 0)
    head = 0 if latent == "embedding" else 256
    assert found.multiply_adds == 7 * layers + head


def test_only_so_many_images_and_pairs_are_looked_at(pairs_project, monkeypatch):
    from pipeline.tasks.verification import diagnosis

    monkeypatch.setattr(diagnosis, "IMAGES", 9)
    monkeypatch.setattr(diagnosis, "PAIRS", 6)
    monkeypatch.setattr(diagnosis, "TEST_IMAGES", 4)
    run, record, network, _ = of_run("siamese", "all")
    test = Labelled(np.zeros((8, 2), np.float32), np.arange(8) % 2)
    seen = []
    encode = Scorer.encode
    monkeypatch.setattr(Scorer, "encode", lambda self, of: seen.append(len(of)) or encode(self, of))
    scorer = Scorer(network, "small", 7)
    found = diagnosis.look(run, record, scorer, 0.5, test, list("abcdefgh"), lambda: None)
    assert len(found.val.labels) == 9 and len(set(found.val.labels.tolist())) == 2
    assert len(found.test.labels) == 4 == len(found.images)
    assert seen[0] <= 12 and seen[1] <= 9 + 12


def test_the_timing_says_how_long_one_image_takes(project):
    for method in CLASSIFIERS:
        timing = read_json(RunId(method, 4, 0).test_timing)
        assert timing.keys() == {"phases", "one_image_seconds"}
        assert isinstance(timing["one_image_seconds"], float)
        assert 0 < timing["one_image_seconds"] < timing["phases"][0]["seconds"] * 10


@pytest.mark.parametrize("method", ["finetune", "softmax"])
def test_what_is_timed_is_the_plain_network_warmed_up(copied, monkeypatch, method):
    from pipeline.tasks import diagnosis
    from pipeline.tasks.classification import predictions

    events, timed = [], diagnosis.timed
    place_in, normalise = predictions.place_in, architectures.normalise

    def looked_into(*given):
        place = place_in(*given)
        return place._replace(seen=lambda of: events.append("latents") or place.seen(of))

    def clocked(answer, device):
        events.append("start")
        found = timed(answer, device)
        events.append("stop")
        return found

    monkeypatch.setattr(predictions, "place_in", looked_into)
    monkeypatch.setattr(diagnosis, "timed", clocked)
    monkeypatch.setattr(
        architectures, "normalise", lambda *given: events.append("images") or normalise(*given)
    )
    predict_test_split(params_of("classification", "features"), RunId(method, 4, 0))
    assert events[:4] == ["images", "start", "images", "stop"]  # warmed up, then the test split
    assert events.count("latents") == 3  # of training, validation and test images
    starts = [place for place, of in enumerate(events) if of == "start"]
    assert len(starts) > FEWEST_REPEATS
    assert all(events[place + 1 : place + 3] == ["images", "stop"] for place in starts)


def test_verification_is_warmed_up_before_it_is_timed(pairs_project, tmp_path, monkeypatch):
    from pipeline.tasks import diagnosis

    shutil.copytree(".", tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    events, timed, encode = [], diagnosis.timed, Scorer.encode
    monkeypatch.setattr(diagnosis, "timed", lambda *given: events.append("start") or timed(*given))
    monkeypatch.setattr(
        Scorer, "encode", lambda self, of: events.append("images") or encode(self, of)
    )
    predict_test_split(params_of("verification", None), RunId("siamese", "all", 0))
    # of validation, to warm up, and of the test
    assert events[:4] == ["images", "images", "start", "images"]


@pytest.mark.parametrize(("scale", "repeats"), [(0.01, REPEATS), (10.0, FEWEST_REPEATS)])
def test_one_image_is_timed_by_the_median_after_warming_up(monkeypatch, scale, repeats):
    slow, quick = [0.0, 5.0 * scale], [0.0, scale]
    clock = iter(slow * (repeats // 2 - 1) + quick * (repeats - repeats // 2 + 1))
    calls = []
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    assert one_image_seconds(lambda: calls.append(1), torch.device("cpu")) == scale
    assert len(calls) == WARM_UPS + repeats


def test_arrays_are_packed_and_read_back(tmp_path):
    arrays = Arrays(
        latents=np.ones((2, 3), np.float32),
        labels=np.array([0, 1]),
        images=np.array(["a é", "b"]),
        filters_before=np.zeros((0, 1, 3, 3), np.float32),
        filters_after=np.ones((4, 1, 3, 3), np.float32),
    )
    (tmp_path / "l.npz").write_bytes(packed(arrays))
    found = read_arrays(tmp_path / "l.npz")
    for name, value in vars(arrays).items():
        assert np.array_equal(getattr(found, name), value)
        assert getattr(found, name).dtype == value.dtype
