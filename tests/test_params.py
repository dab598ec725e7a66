"""params.yaml: one clear line for everything that can be wrong with it."""

import re
from pathlib import Path

import pytest

from pipeline import check, recipes
from pipeline.errors import InputError

ROOT = Path(__file__).parents[1]
DEFAULT = ROOT / "configs/digits.yaml"  # params.yaml is the user's to change


def with_short_lists(text):
    """The file with its block lists and the splits on one line each, to be replaced as such."""
    for name in ("breakdowns", "baselines", "shots", "seeds"):
        text = re.sub(
            rf"(  {name}:)[^\n]*\n((?:  - .*\n)+)",
            lambda m: f"{m[1]} [{', '.join(re.findall('- (.*)', m[2]))}]\n",
            text,
        )
    return text


PARAMS = with_short_lists(DEFAULT.read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def in_project(monkeypatch):
    monkeypatch.chdir(ROOT)


def load(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return check.load(path)


def line_of(text, part):
    return next(n for n, line in enumerate(text.splitlines(), 1) if part in line)


def test_the_default_is_right_and_whole():
    params = check.load(DEFAULT)
    assert params.compare.methods == ["breakdown", "finetune", "scratch"]
    breakdown = recipes.of(params.methods["breakdown"])
    assert isinstance(breakdown, recipes.Breakdown)


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_config_is_right_but_for_files_it_waits_for(config):
    params = check.load(config, files=False)
    assert params.compare.reference in params.compare.methods
    assert config.read_text(encoding="utf-8").startswith("# ")  # what its data must look like


WRONG = [
    # what is replaced, by what, where the message points, what it says
    ("reference: finetune", "referenc: finetune", "referenc:", "did you mean 'reference'"),
    ("reference: finetune", "reference: fine", "reference:", "did you mean 'finetune'"),
    ("lr: 0.01\n", "lr: fast\n", "lr: fast", "valid number, but it is 'fast'"),
    ("epochs: 120", "epochs: 1.5", "epochs: 1.5", "valid integer"),
    ("epochs: 120", "epochs: yes", "epochs: yes", "valid integer"),
    ("epochs: 120", "epochs: 0", "epochs: 0", "greater than or equal to 1"),
    ("epochs: 120", "epochs: -3", "epochs: -3", "greater than or equal to 1"),
    ("lr: 0.01\n", "lr: .nan\n", "lr: .nan", "finite"),
    ("lr: 0.01\n", "lr: 1e400\n", "lr: 1e400", "finite"),
    ("shots: [10]", "shots: [1]", "shots:", "needs; use 2 or more"),
    ("shots: [10]", "shots: [0]", "shots:", "at least 1"),
    ("shots: [10]", "shots: [ten]", "shots:", "'ten'"),
    ("shots: [10]", "shots: []", "shots:", "at least 1 item"),
    ("seeds: [0, 1, 2]", "seeds: [0, 0]", "seeds:", "named twice"),
    ("seeds: [0, 1, 2]", "seeds: [18446744073709551616]", "seeds:", "less than 4294967296"),
    ("seeds: [0, 1, 2]", "seeds: &a [0]", "seeds:", "anchors"),
    ("breakdowns: [breakdown]", "breakdowns: [finetune]", "breakdowns:", "goes under baselines"),
    ("breakdowns: [breakdown]", "breakdowns: [brakdown]", "breakdowns:", "mean 'breakdown'"),
    ("recipe: scratch", "recipe: scrach", "recipe: scrach", "did you mean 'scratch'"),
    ("  scratch:\n    recipe", "  Scratch-1:\n    recipe", "Scratch-1", "small letters"),
    ("latent: embedding", "latnt: embedding", "latnt", "did you mean 'latent'"),
    ("image_size: 8", "image_size: 8\n  image_size: 9", "image_size: 9", "duplicate key"),
    ("target: data/target", "target: ../secret", "target: ../secret", "must lie in data/"),
    ("target: data/target", "target: /etc", "target: /etc", "must lie in data/"),
    ("source: data/source", "source: null", "from: source  #", "needs data.source"),
    ("val: 0.2\n    test: 0.3", "val: 0.5\n    test: 0.5", "splits:", "less than 1"),
    ("name: contrastive", "name: contrastiv", "name: contrastiv", "did you mean 'contrastive'"),
    ("  shuffle_labels: false", "  #", "data:", "shuffle_labels: is missing; DVC watches it"),
    ("    flip: false\n", "    flip: no\n", "flip: no", "valid boolean"),
    ("recipe: scratch\n", "recipe: scratch\n    class_weights: balanced\n    sampler: balanced\n",
     "  scratch:", "choose one"),
    ("name: contrastive", "name: cosine", "margin_same", "a key of Cosine"),
    ("      loss:\n", "      per_class: 4\n      loss:\n", "encoder:", "is for losses on images"),
    ("latent: embedding", "latent: [relu, x]\n      keep: 0", "keep: 0", "to 1"),
    ("momentum: 0.9\n", "momentum: 0.0\n      nesterov: true\n", "encoder:", "a momentum above 0"),
    ("file: pretrained", "file: nowhere.pth", "nowhere", "is not there"),
    ("\n  from: source", "\n  from: file", "file: pretrained", "is a folder"),
    ("\n  from: source", "\n  from: imagenet", "from: imagenet", "no ImageNet weights of"),
    ("\n  from: source", "\n  from: hub", "from: hub", "'none', 'imagenet', 'file' or 'source'"),
    ("device: auto", "device: gpu", "device: gpu", "match pattern"),
    ("lr: 0.01\n", "lr: !!python/object/apply:os.system [id]\n", "lr: !!", "tags"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "place", "said"), WRONG, ids=lambda value: value[:24])
def test_what_is_wrong_is_named_with_its_line(tmp_path, old, new, place, said):
    assert old in PARAMS
    text = PARAMS.replace(old, new, 1)
    with pytest.raises(InputError) as error:
        load(tmp_path, text)
    message = str(error.value)
    assert "\n" not in message
    assert said in message
    assert f"params.yaml:{line_of(text, place)}: " in message


EVERY = (ROOT / "configs/all_methods.yaml").read_text(encoding="utf-8")
WRONG_IN_BLOCKS = [
    ("kernel: rbf", "kernel: linear\n      gamma: 1.0", "gamma is for kernel: rbf"),
    ("kind: linear", "kind: linear\n      k: 3", "features_linear.head.k: unknown key"),
    (
        "name: supcon\n        temperature: 0.1",
        "name: NTXentLoss\n        arguments:\n          temperature: .inf",
        "arguments: inf must be text, a finite number",
    ),
    ("keep: 3", "keep: 61", "keep: 61 is more than the epochs"),
    ("recipe: layerwise\n", "recipe: layerwise\n    rounds: 1\n", "2 values of lr for 1 rounds"),
]


@pytest.mark.parametrize(("old", "new", "said"), WRONG_IN_BLOCKS, ids=lambda value: value[:16])
def test_what_does_not_go_together_is_named(tmp_path, old, new, said):
    assert old in EVERY
    with pytest.raises(InputError) as error:
        load(tmp_path, EVERY.replace(old, new, 1))
    assert said in str(error.value) and "\n" not in str(error.value)
    assert re.search(r"params\.yaml:\d+: methods\.\w+", str(error.value))


@pytest.mark.parametrize(
    "text", ["", "- 1\n", "a: [", "a: b: c", "\t", "a: *b", "\x00", "{" * 3000]
)
def test_what_is_no_params_file_is_one_line(tmp_path, text):
    with pytest.raises(InputError) as error:
        load(tmp_path, text)
    assert str(error.value).startswith(str(tmp_path)) and "\n" not in str(error.value)


def test_no_file_and_no_text(tmp_path):
    with pytest.raises(InputError, match="there is no such file"):
        check.load(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        check.load(tmp_path / "params.yaml")


def test_small_numbers_are_numbers_and_all_is_a_number_of_shots(tmp_path):
    text = PARAMS.replace("lr: 0.01\n", "lr: 5e-5\n").replace("shots: [10]", "shots: [2, all]")
    params = load(tmp_path, text)
    assert params.methods["finetune"]["lr"] == 5e-5 and params.compare.shots == [2, "all"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("latent: embedding", "latent: embeding", "did you mean|embedding"),
        ("latent: embedding", "latent: classifier", "embedding"),
        ("latent: embedding", "latent: ''", "has no such module"),
        ("architecture: small", "architecture: resnet19", "resnet18"),
    ],
)
def test_models_are_checked_before_anything_runs(tmp_path, old, new, said):
    text = PARAMS.replace(old, new)
    params = load(tmp_path, text)
    with pytest.raises(InputError, match=said) as error:
        check.check_models(params, tmp_path / "params.yaml")
    assert f":{line_of(text, new)}: " in str(error.value) and "\n" not in str(error.value)


def test_a_latent_that_is_no_cut_lists_those_that_are(tmp_path):
    text = PARAMS.replace("architecture: small", "architecture: resnet18")
    text = text.replace("latent: embedding", "latent: layer2.0.conv1").replace(
        "image_size: 8", "image_size: 64"
    )
    with pytest.raises(InputError, match=r"layer2\.0") as error:
        check.check_models(load(tmp_path, text), tmp_path / "params.yaml")
    assert "layer1" in str(error.value) and "\n" not in str(error.value)


ENCODER = "    encoder:\n"
MODELS_WRONG = [
    # what is replaced, by what, where the message points, its key, what it says
    ("recipe: finetune\n", "recipe: finetune\n    weight_decays: {featurs: 0.1}\n",
     "weight_decays:", "methods.finetune.weight_decays", "did you mean 'features'"),
    ("recipe: finetune\n", "recipe: finetune\n    lr_factors: {relu: 0.1}\n",
     "lr_factors:", "methods.finetune.lr_factors", "no layer with weights is named 'relu'"),
    ("recipe: finetune\n", "recipe: finetune\n    freeze_to: classifier\n",
     "freeze_to:", "methods.finetune.freeze_to", "no layer with weights comes after it"),
    (ENCODER, ENCODER + "      weight_decays: {x: 0.1}\n",
     "weight_decays:", "methods.breakdown.encoder.weight_decays", "named 'x'"),
    (ENCODER, ENCODER + "      freeze_to: relu\n",
     "freeze_to:", "methods.breakdown.encoder.freeze_to", "between 'relu' and it"),
    (ENCODER, ENCODER + "      freeze_to: nowhere\n",
     "freeze_to:", "methods.breakdown.encoder.freeze_to", "has no such module"),
    ("    head:\n", "    head:\n      freeze_to: features.3\n",
     "freeze_to:", "methods.breakdown.head.freeze_to", "between 'embedding' and it"),
    ("latent: embedding", "latent: [embedding, features.3]",
     "latent:", "methods.breakdown.encoder.latent", "in order of execution"),
    ("latent: embedding", "latent: [features.3, features.3]",
     "latent:", "methods.breakdown.encoder.latent", "between 'features.3' and it"),
    ("  source:\n    epochs", "  source:\n    weight_decays: {conv: 0.1}\n    epochs",
     "weight_decays:", "weights.source.weight_decays", "no layer with weights is named 'conv'"),
]  # fmt: skip


def models_error(tmp_path, text):
    params = load(tmp_path, text)
    with pytest.raises(InputError) as error:
        check.check_models(params, tmp_path / "params.yaml")
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "place", "key", "said"), MODELS_WRONG, ids=lambda value: value[-32:].strip()
)
def test_what_a_network_does_not_have_is_named_with_its_line(tmp_path, old, new, place, key, said):
    assert old in PARAMS
    text = PARAMS.replace(old, new, 1)
    found = models_error(tmp_path, text)
    assert found.startswith(f"{tmp_path}/params.yaml:{line_of(text, place)}: {key}: ")
    assert said in found


def with_loss(loss):
    """The default with another loss on one line, for the breakdown's encoder."""
    text, count = re.subn(r"      loss:\n(?:        .*\n)+", f"      loss: {loss}\n", PARAMS)
    assert count == 1
    return text


@pytest.mark.parametrize(
    ("loss", "key", "said"),
    [
        ("{name: TripletMarginLos}", "name", "did you mean 'TripletMarginLoss'"),
        ("{name: SelfSupervisedLoss}", "name", "cannot be used here"),
        ("{name: TripletMarginLoss, arguments: {margn: 1}}", "arguments.margn", "mean 'margin'"),
        ("{name: ArcFaceLoss, arguments: {num_classes: 3}}", "arguments.num_classes", "leave it"),
        ("{name: ContrastiveLoss, miner: {name: HardMiner}}", "miner.name", "has no miner"),
    ],
)
def test_a_wrong_loss_of_pytorch_metric_learning_is_named_with_its_line(tmp_path, loss, key, said):
    text = with_loss(loss)
    found = models_error(tmp_path, text)
    line = line_of(text, "loss: {")
    assert found.startswith(
        f"{tmp_path}/params.yaml:{line}: methods.breakdown.encoder.loss.{key}: "
    )
    assert said in found


def test_the_right_names_pass(tmp_path):
    text = PARAMS.replace(ENCODER, ENCODER + "      freeze_to: features.3\n", 1)
    text = text.replace(
        "recipe: finetune\n",
        "recipe: finetune\n    lr_factors: {features: 0.1, embedding.bias: 0.0}\n",
    )
    check.check_models(load(tmp_path, text), tmp_path / "params.yaml")
    text = with_loss("{name: ArcFaceLoss, arguments: {margin: 20.0}}")
    check.check_models(load(tmp_path, text), tmp_path / "params.yaml")


def test_the_hidden_layer_of_features_has_names_of_its_own(tmp_path):
    block = "recipe: features\n    latent: flatten\n    head: {kind: mlp, epochs: 1, lr: 0.1, "
    text = re.sub(r"  scratch:\n    recipe: scratch\n(    .*\n)+", "", PARAMS)
    for layer, right in (("hidden", True), ("embedding", False)):
        asked = f"  scratch:\n    {block}weight_decays: {{{layer}: 0.1}}}}\n"
        changed = text.replace("methods:\n", "methods:\n" + asked, 1)
        if right:
            check.check_models(load(tmp_path, changed), tmp_path / "params.yaml")
        else:
            found = models_error(tmp_path, changed)
            assert "methods.scratch.head.weight_decays: no layer with weights" in found


@pytest.mark.parametrize("name", ["regnet_y_400mf", "mnasnet0_5", "vit_b_16"])
def test_networks_are_checked_without_memory_whatever_they_compute_on_the_way(tmp_path, name):
    text = PARAMS.replace("architecture: small", f"architecture: {name}")
    text = text.replace("image_size: 8", "image_size: 64")
    assert "latent 'embedding': the network has no such module" in models_error(tmp_path, text)
