"""params.yaml: one clear line for everything that can be wrong with it."""

from pathlib import Path

import pytest

from pipeline import check, recipes
from pipeline.errors import InputError

ROOT = Path(__file__).parents[1]
DEFAULT = ROOT / "configs/digits.yaml"  # params.yaml is the user's to change
PARAMS = DEFAULT.read_text(encoding="utf-8")


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
    ("val: 0.2, test: 0.3", "val: 0.5, test: 0.5", "splits:", "less than 1"),
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
