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
    ("lr: 0.01\n", "lr: 1e308\n", "lr: 1e308", "less than or equal to 3"),
    ("live_after: 10", "live_after: 1e30", "live_after: 1e30", "less than or equal to 1000000000"),
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
    ("lr: 0.01\n", "lr: !!float 1\n", "lr: !!", "tags"),
    ("lr: 0.01\n", "lr: 0.01  # a\u2028b: 1\n", "lr: 0.01  #", "the character U+2028"),
    ("shots: [10]", "shots: {10:1}", "shots:", "found unexpected ':'"),
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


@pytest.mark.parametrize(
    ("latent", "said"),
    [
        ("embeding", "the network has no such module; valid are "),
        ("classifier", "no layer with weights comes after it; valid are features.0, "),
    ],
)
def test_where_networks_are_looked_into_must_be_a_cut(tmp_path, latent, said):
    head, found, tail = PARAMS.partition("diagnostics:\n  latent: embedding")
    assert found
    text = f"{head}diagnostics:\n  latent: {latent}{tail}"
    line = line_of(text, f"latent: {latent}")
    problem = models_error(tmp_path, text)
    place = f"{tmp_path}/params.yaml:{line}: diagnostics.latent: latent '{latent}': "
    assert problem.startswith(place + said)
    text = f"{head}diagnostics:\n  latent: null{tail}"
    check.check_models(load(tmp_path, text), tmp_path / "params.yaml")


def test_verification_is_looked_into_at_its_encodings_alone(tmp_path):
    text = (ROOT / "configs/omniglot_minimal.yaml").read_text(encoding="utf-8")
    text = text.replace("diagnostics:\n  latent: null", "diagnostics:\n  latent: flatten")
    with pytest.raises(InputError, match="is for task: classification") as error:
        load(tmp_path, text)
    assert f":{line_of(text, 'latent: flatten')}: diagnostics.latent: " in str(error.value)


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


VERIFICATION = """\
task: verification
data:
  target: data/target
  source: null
  layout: folders
  image_size: 8
  resize: crop
  channels: 1
  splits:
    val: 0.2
  val_per_class: null
  exact_duplicates: error
  near_duplicates: warn
  shuffle_labels: false
pairs:
  per_image: 4
  positive_fraction: 0.5
  episodes: []
model:
  architecture: small
  dropout: null
weights:
  from: none
  file: pretrained
compare:
  breakdowns: [breakdown]
  baselines: [siamese, features]
  reference: siamese
  shots: [4]
  seeds: [0]
  budget: own
training:
  batch_size: 8
  passes: null
  rule: val_loss
  augmentation: {turns_as_classes: 4}
methods:
  breakdown:
    recipe: breakdown
    encoder: {latent: embedding, loss: {name: contrastive}, epochs: 2, lr: 0.1}
    head: {pairs: {kind: cosine}, epochs: 3, lr: 0.1}
  siamese:
    recipe: siamese
    latent: embedding
    head: {kind: euclidean}
    epochs: 5
    lr: 0.1
  features:
    recipe: features
    latent: embedding
    head: {kind: distance}
  classifier:
    recipe: finetune
    epochs: 5
    lr: 0.1
diagnostics:
  latent: null
runtime:
  threads: 1
"""


def changed(text, *changes):
    """A text after replacements, each of something that stands there once."""
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def test_a_method_of_the_other_task_may_stand_there_uncompared(tmp_path):
    assert load(tmp_path, VERIFICATION).methods["classifier"]["recipe"] == "finetune"


@pytest.mark.parametrize("recipe", sorted({*recipes.names()} - {"breakdown", "features"}))
@pytest.mark.parametrize("task", ["classification", "verification"])
def test_a_recipe_of_the_other_task_is_named_before_the_keys_it_lacks(tmp_path, task, recipe):
    base, others = {
        "classification": (CLASSIFIES, "baselines: [classifier]"),
        "verification": (VERIFICATION, "baselines: [siamese, features]"),
    }[task]
    more = others.replace("]", ", bare]")
    text = changed(
        base, (others, more), ("methods:\n", f"methods:\n  bare:\n    recipe: {recipe}\n")
    )
    found = message(tmp_path, text)
    place = f"{line_of(text, f'recipe: {recipe}')}: methods.bare.recipe: {recipe} is for task: "
    if (recipe == "siamese") == (task == "verification"):
        assert "is for task" not in found and "is missing" in found  # the keys that it lacks
    else:
        assert found.startswith(place) and "set the task" in found


@pytest.mark.parametrize("recipe", ["[]", "{}", "null", "7", "nothing", "base"])
def test_a_recipe_that_is_none_is_named_whatever_the_task(tmp_path, recipe):
    text = changed(VERIFICATION, ("recipe: siamese", f"recipe: {recipe}"))
    assert "methods.siamese.recipe: there is no recipe" in message(tmp_path, text)


OF_CLASSIFICATION = [
    # what is replaced, by what, where the message points, its key, what it says
    ("reference: siamese", "reference: siamese\n  positive: cat", "positive:",
     "compare.positive", "is for task: classification; leave it out, or set the task"),
    ("reference: siamese", "reference: siamese\n  beta: 2.0", "beta:",
     "compare.beta", "is for task: classification; leave it out"),
    ("pairs: {kind: cosine}, ", "", "head: {epochs: 3",
     "methods.breakdown.head", "classifies; for task: verification give it pairs"),
    ("{kind: distance}", "{kind: knn}", "{kind: knn}",
     "methods.features.head.kind", "classifies; for task: verification it must be distance"),
    ("siamese, features]", "siamese, classifier]", "recipe: finetune", "methods.classifier.recipe",
     "finetune is for task: classification; use siamese, breakdown or features"),
    ("shots: [4]", "shots: [1]", "shots:", "compare.shots", "which verification needs"),
    ("episodes: []", "episodes: [{ways: 5}, {ways: 5, shots: 2}, {ways: 5, count: 9}]", "episodes:",
     "pairs.episodes.2", "5_way_1_shot is named twice"),
    ("from: none", "from: imagenet", "from:", "weights.from", "no ImageNet weights of small"),
    ("layout: folders", "layout: pairs", "shots:", "compare.shots", "4 images a class cannot"),
    ("near_duplicates: warn", "near_duplicates: group", "near_duplicates:",
     "data.near_duplicates", "group is for task: classification"),
    ("layout: folders", "layout: omniglots", "layout:", "data.layout", "'pairs' or 'omniglot'"),
    ("    val: 0.2", "    val: 0.2\n    whole: alphabets", "whole:",
     "data.splits.whole", "'classes' or 'groups'"),
    ("turns_as_classes: 4", "turns_as_classes: 2", "turns_as_classes:",
     "training.augmentation.turns_as_classes", "1, 4 or 8, but it is 2"),
    ("task: verification", "task: verify", "task:", "task", "'classification' or 'verification'"),
]  # fmt: skip


def message(tmp_path, text):
    with pytest.raises(InputError) as error:
        load(tmp_path, text)
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(f"{tmp_path}/params.yaml:")


@pytest.mark.parametrize(
    ("old", "new", "place", "key", "said"), OF_CLASSIFICATION, ids=lambda value: value[:24]
)
def test_what_verification_does_not_have_is_named(tmp_path, old, new, place, key, said):
    text = changed(VERIFICATION, (old, new))
    found = message(tmp_path, text)
    assert found.startswith(f"{line_of(text, place)}: {key}: ") and said in found


@pytest.mark.parametrize("name", ["ArcFaceLoss", "ProxyAnchorLoss", "SoftTripleLoss"])
def test_verification_has_no_losses_that_learn_the_training_classes(tmp_path, name):
    text = changed(VERIFICATION, ("{name: contrastive}", f"[{{name: {name}}}]"))
    with pytest.raises(InputError) as error:
        check.check_models(load(tmp_path, text), tmp_path / "params.yaml")
    found = str(error.value).removeprefix(f"{tmp_path}/params.yaml:")
    assert found.startswith(f"{line_of(text, name)}: methods.breakdown.encoder.loss.0.name: ")
    assert f"{name} learns weights of the training classes" in found and "\n" not in found
    text = changed(VERIFICATION, ("{name: contrastive}", "{name: TripletMarginLoss}"))
    check.check_models(load(tmp_path, text), tmp_path / "params.yaml")


def test_one_shot_is_too_few_without_a_breakdown_too(tmp_path):
    text = changed(VERIFICATION, ("[breakdown]", "[]"), ("shots: [4]", "shots: [1]"))
    assert "compare.shots: one image a class makes no pair of one class" in message(tmp_path, text)


def test_listed_pairs_have_no_groups(tmp_path):
    text = changed(
        VERIFICATION,
        ("layout: folders", "layout: pairs"),
        ("    val: 0.2", "    val: 0.2\n    whole: groups"),
        ("shots: [4]", "shots: [all]"),
    )
    assert "data.splits.whole: layout pairs brings no groups" in message(tmp_path, text)
    text = changed(text, ("layout: pairs", "layout: omniglot"))
    assert load(tmp_path, text).data.splits.whole == "groups"


CLASSIFIES = changed(
    VERIFICATION,
    ("task: verification", "task: classification"),
    ("turns_as_classes: 4", "flip: false"),
    ("[breakdown]", "[]"),
    ("[siamese, features]", "[classifier]"),
    ("reference: siamese", "reference: classifier"),
)
OF_VERIFICATION = [
    ("layout: folders", "layout: pairs", "layout:", "data.layout",
     "pairs is for task: verification; use folders, lists or csv, or set the task"),
    ("layout: folders", "layout: omniglot", "layout:", "data.layout", "omniglot is for task"),
    ("    val: 0.2", "    val: 0.2\n    whole: groups", "whole:", "data.splits.whole",
     "is for task: verification; leave it out, or set the task"),
    ("episodes: []", "episodes: [{ways: 5}]", "episodes:", "pairs.episodes", "is for task"),
    ("architecture: small", "architecture: small\n  views: 7", "views:", "model.views", "is for"),
    ("flip: false", "turns_as_classes: 8", "turns_as_classes:",
     "training.augmentation.turns_as_classes", "is for task: verification"),
    ("[classifier]", "[classifier, siamese]", "recipe: siamese", "methods.siamese.recipe",
     "siamese is for task: verification; use another, such as finetune"),
    ("[classifier]", "[classifier, features]", "kind: distance", "methods.features.head.kind",
     "distance is for task: verification; use linear, svm, knn or mlp"),
    ("breakdowns: []", "breakdowns: [breakdown]", "pairs: {kind", "methods.breakdown.head.pairs",
     "is for task: verification; leave it out"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "place", "key", "said"), OF_VERIFICATION, ids=lambda value: value[-24:]
)
def test_what_classification_does_not_have_is_named(tmp_path, old, new, place, key, said):
    load(tmp_path, CLASSIFIES)
    text = changed(CLASSIFIES, (old, new))
    found = message(tmp_path, text)
    assert found.startswith(f"{line_of(text, place)}: {key}: ") and said in found


CHOSEN = [
    # a head of features, where the message points in it, what it says
    ("{kind: svm, k: 3}", "head.k", "unknown key; valid are balanced, c, gamma, kernel, kind"),
    ("{kind: svm, kernl: rbf}", "head.kernl", "unknown key; did you mean 'kernel'?"),
    ("{kind: knn, kernel: rbf}", "head.kernel", "unknown key; valid are balanced, k, kind"),
    ("{kind: mlp, unit: 3, epochs: 1, lr: 0.1}", "head.unit", "did you mean 'units'?"),
    ("{kind: distance, metrik: cosine}", "head.metrik", "did you mean 'metric'?"),
    ("{kind: smv}", "head.kind", "there is no 'smv'; did you mean 'svm'?"),
    ("{c: 1.0}", "head.kind", "is missing; valid are linear, svm, knn, mlp, distance"),
]


@pytest.mark.parametrize(("head", "key", "said"), CHOSEN, ids=lambda value: value[:24])
def test_keys_are_those_of_the_kind_that_was_chosen(tmp_path, head, key, said):
    found = message(tmp_path, changed(VERIFICATION, ("{kind: distance}", head)))
    line = line_of(VERIFICATION, "kind: distance")
    assert found.startswith(f"{line}: methods.features.{key}: ") and found.endswith(said)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("{kind: cosine}", "{knid: cosine}", "head.pairs.knid: unknown key; did you mean 'kind'?"),
        ("{name: contrastive}", "{name: supcon, margin: 1}", "a key of SupCon"),
        ("episodes: []", "episodes: [{ways: 5, shot: 1}]", "did you mean 'shots'?"),
        ("task: verification\n", "", "task: is missing; valid are classification, verification"),
    ],
)
def test_keys_of_blocks_in_unions_and_lists(tmp_path, old, new, said):
    assert said in message(tmp_path, changed(VERIFICATION, (old, new)))


def test_own_architectures_are_told_from_others_without_torch():
    from pipeline.models import architectures

    assert sorted(check.OWN_ARCHITECTURES) == sorted(architectures.OWN)


TRACKED = "outs:\n- md5: {md5}.dir\n  path: {path}\n"
DATA_FILES = {
    # what lies there: whether data/, and data.dvc; what is said
    "as it should be": (True, TRACKED.format(md5="0" * 32, path="data"), None),
    "to be fetched": (False, TRACKED.format(md5="0" * 32, path="data"), None),
    "never added": (True, None, "is not there, so DVC does not track data/"),
    "nothing": (False, None, "is not there, nor is data/; put your images into data/, then"),
    "of another folder": (True, TRACKED.format(md5="0" * 32, path="images"), "does not name data"),
    "of no output": (True, "outs: []\n", "does not name data"),
    "empty": (True, "", "is no file of DVC; remove it"),
    "a list": (True, "- data\n", "is no file of DVC; remove it"),
    "other keys": (True, "deps:\n- path: data\n", "is no file of DVC; remove it"),
    "no YAML": (True, "outs: [", "is no file of DVC; remove it"),
    "a conflict": (True, "<<<<<<< HEAD\nouts:\n=======\n", "is no file of DVC; remove it"),
}


@pytest.mark.parametrize(("data", "file", "said"), DATA_FILES.values(), ids=DATA_FILES)
def test_data_that_dvc_would_not_bring_along_is_told_of(
    tmp_path, monkeypatch, capsys, data, file, said
):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(PARAMS, encoding="utf-8")
    Path("pretrained").mkdir()
    if data:
        Path("data/target").mkdir(parents=True)
        Path("data/source").mkdir()
    if file is not None:
        Path("data.dvc").write_text(file)
    if not data and file is None:
        with pytest.raises(InputError, match=f"data.dvc: {said}"):
            check.main()
        return
    check.main()
    told = [line for line in capsys.readouterr().err.splitlines() if "data.dvc" in line]
    if said is None:
        assert told == []
    else:
        assert len(told) == 1 and told[0].startswith(f"warning: data.dvc: {said}")
        assert told[0].count("dvc add data") == 1


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (
            ["tagret", "source"],
            r"data\.target: data/target: there is no .* did you mean data/tagret",
        ),
        (["target"], r"data\.source: data/source: there is no .* set data\.source: null"),
    ],
)
def test_images_that_are_not_there_are_told_before_anything_runs(
    tmp_path, monkeypatch, there, said
):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(PARAMS, encoding="utf-8")
    Path("pretrained").mkdir()
    for name in there:
        Path("data", name).mkdir(parents=True)
    with pytest.raises(InputError, match=said):
        check.main()
