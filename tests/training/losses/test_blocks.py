"""Blocks of params.yaml: the name picks the loss, and mistakes end in one line."""

import subprocess
import sys

import pytest
import torch

from pipeline.errors import InputError
from pipeline.params import Block
from pipeline.params_file import parse, plain, read
from pipeline.training import losses
from pipeline.training.losses import Contrastive, Loss, MetricLearning, Objective, Setting, names


class Encoder(Block):
    loss: Loss = Contrastive()


def parsed(tmp_path, text):
    (tmp_path / "params.yaml").write_text(f"a:\n  loss: {text}\n")
    source = read(tmp_path / "params.yaml")
    return parse(Encoder, plain(source.tree["a"]), source, ("a",))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{name: contrastive, margin_same: [1, 2.0]}", Contrastive(margin_same=[1, 2.0])),
        ("{name: cosine, margin: -0.5}", losses.Cosine(margin=-0.5)),
        ("{name: supcon, temperature: 0.2}", losses.SupCon(temperature=0.2)),
        ("{name: triplet, mining: hard}", losses.Triplet(mining="hard")),
        (
            "{name: MarginLoss, arguments: {nu: 1}, miner: {name: HDCMiner}}",
            MetricLearning(name="MarginLoss", arguments={"nu": 1}, miner={"name": "HDCMiner"}),
        ),
    ],
)
def test_the_name_picks_the_block(tmp_path, text, expected):
    encoder = parsed(tmp_path, text)
    assert encoder.loss == expected and type(encoder.loss) is type(expected)
    assert Encoder.model_validate(encoder.model_dump()) == encoder  # nothing is lost on the way
    assert Encoder.model_validate({"loss": expected}).loss is expected


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "{name: tripplet}",
            "a.loss.name: must be one of contrastive, cosine, supcon, triplet, or a loss of "
            "pytorch-metric-learning (did you mean 'triplet'?), but it is 'tripplet'",
        ),
        (
            "{name: 3}",
            "a.loss.name: must be one of contrastive, cosine, supcon, triplet, or a loss of "
            "pytorch-metric-learning, but it is 3",
        ),
        ("{margin: 3}", "a.loss.name: is missing; it has no default"),
        (
            "triplet",
            "a.loss: must be a mapping such as {name: contrastive}, but it is 'triplet'",
        ),
        (
            "{name: triplet, margni: 2.0}",
            "a.loss.margni: must be a key of Triplet (did you mean 'margin'?), but it is 'margni'",
        ),
        (
            "{name: triplet, margin: 0}",
            "a.loss.margin: input should be greater than 0, but it is 0",
        ),
        (
            "{name: cosine, margin: 1.0}",
            "a.loss.margin: input should be less than 1, but it is 1.0",
        ),
        (
            "{name: triplet, mining: easy}",
            "a.loss.mining: input should be 'all', 'semihard' or 'hard', but it is 'easy'",
        ),
        (
            "{name: MarginLoss, miner: {nam: HDCMiner}}",
            "a.loss.miner.nam: must be a key of Miner (did you mean 'name'?), but it is 'nam'",
        ),
    ],
)
def test_a_mistake_is_one_line(tmp_path, text, line):
    with pytest.raises(InputError) as error:
        parsed(tmp_path, text)
    assert str(error.value) == f"{tmp_path / 'params.yaml'}:2: {line}"


@pytest.mark.parametrize("name", names())
def test_each_of_ours_makes_what_it_says(name):
    block = Encoder.model_validate({"loss": {"name": name}}).loss
    block.check("methods.m.encoder.loss")
    made = block.make(Setting(3, 4, torch.device("cpu"), 0, "methods.m.encoder.loss"))
    assert (made.of_pairs is not None) == (block.on == "pairs")
    assert (made.of_images is not None) == (block.on == "images")
    latents = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(6) % 3
    if made.of_pairs:
        assert made.of_pairs(latents[:3], latents[3:], labels[:3], labels[:3] > 0).shape == (3,)
    if made.of_images:
        values, counts = made.of_images(latents, labels)
        assert values.shape == counts.shape == (6,) and counts.all()


def test_an_objective_is_of_pairs_or_of_images():
    with pytest.raises(AssertionError):
        Objective()
    with pytest.raises(AssertionError):
        Objective(of_pairs=lambda *_: torch.zeros(1), of_images=lambda *_: (torch.zeros(1),) * 2)


def test_blocks_are_read_without_torch():
    code = (
        "import sys; from pipeline.training.losses import MetricLearning, names; "
        "MetricLearning(name='ArcFaceLoss'); "
        "assert not {'torch', 'pytorch_metric_learning'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
