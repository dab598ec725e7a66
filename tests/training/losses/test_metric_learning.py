"""Losses and miners of pytorch-metric-learning, by name."""

import pytest
import torch
from pytorch_metric_learning import losses, miners

from pipeline.errors import InputError
from pipeline.training.losses import MetricLearning, Setting
from pipeline.training.losses.metric_learning import UNUSABLE

KEY = "methods.m.encoder.loss"
REQUIRED = {"RankedListLoss": {"margin": 1.0, "Tn": 1.0}}
ODD = ["all same", "all different", "equal latents", "zero latents"]
WEIGHTS = {  # shapes of a loss's own weights, for 3 classes and latents of 6
    "ArcFaceLoss": [(6, 3)],
    "P2SGradLoss": [(6, 3)],
    "ProxyAnchorLoss": [(3, 6)],
    "SoftTripleLoss": [(6, 30)],
    "SubCenterArcFaceLoss": [(6, 9)],
    "TripletMarginLoss": [],
}


def modules(package):
    return [
        name
        for name, found in sorted(vars(package).items())
        if isinstance(found, type) and issubclass(found, torch.nn.Module)
    ]


USABLE = [n for n in modules(losses) if n not in UNUSABLE and not n.startswith("Base")]
MINERS = [n for n in modules(miners) if n not in UNUSABLE and not n.startswith("Base")]


def setting(seed=0, classes=3, dimension=6):
    return Setting(classes, dimension, torch.device("cpu"), seed, KEY)


def batch(kind="balanced"):
    random = torch.Generator().manual_seed(0)
    latents, labels = torch.randn(12, 6, generator=random), torch.arange(12) % 3
    if kind == "all same":
        labels = torch.zeros(12, dtype=torch.int64)
    if kind == "all different":
        latents, labels = latents[:3], labels[:3]
    if kind == "equal latents":
        latents = latents[:1].expand(12, -1).clone()
    if kind == "zero latents":
        latents[::2] = 0
    if kind == "one image":
        latents, labels = latents[:1], labels[:1]
    return latents.requires_grad_(), labels


def block(name, **settings):
    return MetricLearning(name=name, arguments=REQUIRED.get(name, {}), **settings)


def run(made, kind="balanced"):
    latents, labels = batch(kind)
    values, counts = made.of_images(latents, labels)
    assert values.shape == labels.shape and counts.all() and counts.dtype == torch.bool
    assert (values == values[0]).all() and torch.isfinite(values).all()
    values.mean().backward()
    for tensor in (latents, *made.parameters):
        assert tensor.grad is None or torch.isfinite(tensor.grad).all()
        assert tensor.grad is None or tensor.grad.abs().max() < 1e9
    assert latents.grad is not None
    return values[0].item(), latents.grad


@pytest.mark.parametrize("name", USABLE)
def test_each_loss_trains(name):
    block(name).check(KEY)
    value, gradient = run(block(name).make(setting()))
    assert gradient.abs().sum() > 0
    again, same_gradient = run(block(name).make(setting()))
    assert again == value and torch.equal(gradient, same_gradient)


@pytest.mark.parametrize("name", USABLE)
def test_no_batch_gives_a_loss_or_gradient_that_is_no_number(name):
    made = block(name).make(setting())
    for kind in (*ODD, "one image"):
        run(made, kind)


@pytest.mark.parametrize("name", ["ArcFaceLoss", "TripletMarginLoss"])
@pytest.mark.parametrize("miner", MINERS)
def test_each_miner_works(miner, name):
    mined = block(name, miner={"name": miner})
    mined.check(KEY)
    made = mined.make(setting())
    value, gradient = run(made)
    again, same_gradient = run(made)
    assert again == value and torch.equal(gradient, same_gradient)
    for kind in ODD:
        run(made, kind)


def test_the_value_is_the_librarys_own():
    arguments = {"margin": 0.4, "reducer": {"name": "MeanReducer"}}
    arguments["distance"] = {"name": "LpDistance", "arguments": {"normalize_embeddings": False}}
    miner = {"name": "BatchHardMiner"}
    made = MetricLearning(name="TripletMarginLoss", arguments=arguments, miner=miner)
    latents, labels = batch()
    distance = losses.TripletMarginLoss().distance.__class__(normalize_embeddings=False)
    own = losses.TripletMarginLoss(0.4, distance=distance)
    mined = miners.BatchHardMiner()(latents, labels)
    expected = own(latents, labels, mined)
    positive = (latents[mined[0]] - latents[mined[1]]).norm(dim=1)
    negative = (latents[mined[0]] - latents[mined[2]]).norm(dim=1)
    naive = (positive - negative + 0.4).relu().mean().item()
    assert run(made.make(setting()))[0] == pytest.approx(naive, rel=1e-5)
    assert expected.item() >= naive  # its default reducer leaves out triplets that pay nothing


@pytest.mark.parametrize("name", sorted(WEIGHTS))
def test_a_losss_own_weights_come_from_the_seed_and_leave_the_global_generator(name):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    made, again, other = (block(name).make(setting(seed)) for seed in (0, 0, 1))
    assert [tuple(weight.shape) for weight in made.parameters] == WEIGHTS[name]
    for one, same, different in zip(
        made.parameters, again.parameters, other.parameters, strict=True
    ):
        assert isinstance(one, torch.nn.Parameter) and one.requires_grad
        assert torch.equal(one, same) and not torch.equal(one, different)
    run(made)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_is_drawn_depends_on_the_seed_and_the_batch_alone():
    drawn = block("TripletMarginLoss", miner={"name": "DistanceWeightedMiner"})
    made = drawn.make(setting(0))
    first = run(made)[0]
    torch.rand(3)
    assert run(made)[0] == first
    assert run(drawn.make(setting(1)))[0] != first


@pytest.mark.parametrize(
    "arguments",
    [
        {"weight_init_func": {"name": "xavier_uniform_", "arguments": {"gain": 2.0}}},
        {"weight_regularizer": {"name": "RegularFaceRegularizer"}},
        {"embedding_regularizer": {"name": "LpRegularizer", "arguments": {"p": 1}}},
        {"reducer": {"name": "ClassWeightedReducer", "arguments": {"weights": [1.0, 2, 3, 4]}}},
        {"reducer": {"name": "ThresholdReducer", "arguments": {"low": 0.1}}},
    ],
)
def test_arguments_that_are_modules_are_built(arguments):
    plain = run(block("NormalizedSoftmaxLoss").make(setting()))[0]
    special = MetricLearning(name="NormalizedSoftmaxLoss", arguments=arguments)
    special.check(KEY)
    found = run(special.make(setting()))[0]
    assert found != plain or arguments["reducer"]["name"] == "ThresholdReducer"


def test_reducers_of_parts_are_built():
    parts = {"pos_loss": {"name": "MeanReducer"}, "neg_loss": {"name": "SumReducer"}}
    reducer = {"name": "MultipleReducers", "arguments": {"reducers": parts}}
    summed = MetricLearning(name="ContrastiveLoss", arguments={"reducer": reducer})
    assert run(summed.make(setting()))[0] > run(block("ContrastiveLoss").make(setting()))[0]


def test_class_weights_must_be_enough_for_the_classes():
    reducer = {"name": "ClassWeightedReducer", "arguments": {"weights": [1.0, 2.0]}}
    weighted = MetricLearning(name="ArcFaceLoss", arguments={"reducer": reducer})
    weighted.check(KEY)
    run_of_two = weighted.make(setting(classes=2)).of_images
    assert torch.isfinite(run_of_two(batch()[0], torch.arange(12) % 2)[0]).all()
    with pytest.raises(InputError, match=f"{KEY}: ArcFaceLoss cannot take a batch"):
        weighted.make(setting(classes=3))


def wrong(name, arguments=None, miner=None):
    return MetricLearning(name=name, arguments=arguments or {}, miner=miner)


T = "TripletMarginLoss"
WRONG = [
    (wrong("TripletMarginLos"), ".name: ", "did you mean 'TripletMarginLoss'"),
    (wrong("BaseMetricLossFunction"), ".name: ", "no loss 'BaseMetricLossFunction'"),
    (wrong("WeightRegularizerMixin"), ".name: ", "no loss 'WeightRegularizerMixin'"),
    (wrong(T, {"margn": 1}), ".arguments.margn: ", "did you mean 'margin'"),
    (wrong(T, {"margin": "x"}), ": ", T),
    (wrong("RankedListLoss"), ".arguments: ", "'margin' and 'Tn'"),
    (wrong("ArcFaceLoss", {"num_classes": 3}), ".arguments.num_classes: ", "leave it out"),
    (wrong(T, {"distance": "LpDistance"}), ".arguments.distance: ", "CosineSimilarity"),
    (wrong(T, {"distance": {"nam": "LpDistance"}}), ".arguments.distance: ", "mapping of name"),
    (wrong(T, {"distance": {"name": "LpDist"}}), ".arguments.distance.name: ", "'LpDistance'"),
    (wrong(T, {"reducer": {"name": "LpDistance"}}), ".arguments.reducer.name: ", "MeanReducer"),
    (
        wrong(T, {"distance": {"name": "LpDistance", "arguments": {"q": 2}}}),
        ".arguments.distance.arguments.q: ",
        "normalize_embeddings",
    ),
    (
        wrong("ArcFaceLoss", {"weight_init_func": {"name": "xavier_uniform"}}),
        ".arguments.weight_init_func.name: ",
        "'xavier_uniform_'",
    ),
    (wrong(T, miner={"name": "BatchHardMinr"}), ".miner.name: ", "'BatchHardMiner'"),
    (
        wrong(T, miner={"name": "HDCMiner", "arguments": {"cut": 1}}),
        ".miner.arguments.cut: ",
        "filter_percentage",
    ),
    (wrong("P2SGradLoss", miner={"name": "BatchHardMiner"}), ": ", "indices_tuple"),
    *((wrong(name), ".name: ", reason) for name, reason in UNUSABLE.items() if "Loss" in name),
]


@pytest.mark.parametrize(("asked", "place", "said"), WRONG)
def test_what_cannot_work_is_said_in_one_line(asked, place, said):
    with pytest.raises(InputError) as error:
        asked.check(KEY)
    line = str(error.value)
    assert line.startswith(f"params.yaml: {KEY}{place}") and said in line and "\n" not in line


def test_a_batch_that_a_loss_refuses_is_said_in_one_line():
    made = block("SmoothAPLoss").make(setting())
    with pytest.raises(InputError) as error:
        made.of_images(batch()[0][:4], torch.tensor([0, 0, 0, 1]))
    assert str(error.value).startswith(f"params.yaml: {KEY}: SmoothAPLoss cannot take a batch of 4")
    assert "same number of elements" in str(error.value) and "\n" not in str(error.value)


def test_validation_leaves_no_trace():
    made = block("P2SGradLoss").make(setting())
    with torch.no_grad():
        made.parameters[0].mul_(3)  # the loss brings its weights back to length one
        before = made.parameters[0].clone()
        made.of_images(*batch())
        assert torch.equal(made.parameters[0], before)
