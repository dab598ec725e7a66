import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import InputError
from pipeline.models.architectures import build
from pipeline.models.cut import block_ends, cut, split, valid_latents

# architecture: side of the images, latents
CUTS = {
    "alexnet": (64, ["features.0", "features.2", "features", "classifier.2", "classifier.3"]),
    "vgg11_bn": (32, ["features.1", "features.3", "avgpool", "classifier.3"]),
    "squeezenet1_1": (64, ["features.0", "features.5", "features.12.squeeze", "classifier.0"]),
    "resnet18": (64, ["bn1", "layer1.0", "layer3", "avgpool"]),
    "resnet50": (64, ["maxpool", "layer2.3", "layer4"]),
    "mobilenet_v3_small": (64, ["features.0.1", "features.4", "avgpool", "classifier.0"]),
    "efficientnet_b0": (64, ["features.0", "features.4.0", "features.8.0", "avgpool"]),
    "convnext_tiny": (64, ["features.0.0", "features.3.1", "features.5", "classifier.0"]),
    "densenet121": (64, ["features.conv0", "features.denseblock2", "features.norm5", "features"]),
    "shufflenet_v2_x1_0": (64, ["conv1.1", "stage2.0", "stage3", "conv5.0"]),
    "vit_b_16": (32, ["encoder.dropout", "encoder.layers.encoder_layer_5", "encoder"]),
    "small": (8, ["features.0", "features.1", "features", "flatten", "embedding", "dropout"]),
    "drawings": (16, ["features.3", "features.4", "features", "flatten"]),
    "koch": (73, ["features.3", "features", "embedding"]),
    "swin_t": (64, ["features.0.0", "features.1.1", "norm"]),
    "googlenet": (64, ["conv1.bn", "inception4a", "inception5b"]),
    "regnet_y_400mf": (64, ["stem.1", "trunk_output.block2"]),
    "mnasnet0_5": (64, ["layers.1", "layers.9"]),
}
RANDOM_IN_TRAINING = {"alexnet", "vgg11_bn", "efficientnet_b0", "convnext_tiny", "small", "swin_t"}


def images(side: int, channels: int = 3, batch: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, side, side, generator=generator)


@pytest.fixture(scope="module", params=CUTS)
def case(request: pytest.FixtureRequest) -> Iterator[tuple[str, nn.Module, Tensor, list[str]]]:
    side, latents = CUTS[request.param]
    # torchvision's own default for dropout, but for the small network, which has none
    dropout = 0.5 if request.param == "small" else None
    network = build(request.param, 5, 3, side, dropout=dropout, generator_seed=0)
    yield request.param, network, images(side), latents


def test_the_parts_are_the_network_exactly(case: tuple[str, nn.Module, Tensor, list[str]]):
    _, network, batch, latents = case
    network.eval()
    own = network.state_dict(keep_vars=True)
    with torch.no_grad():
        wanted = network(batch)
        for latent in latents:
            encoder, head = cut(network, latent)
            latents_kept = encoder(batch)
            before = latents_kept.clone()
            assert torch.equal(head(latents_kept), wanted), latent
            assert torch.equal(latents_kept, before), f"the head overwrites {latent}"
            first, second = (part.state_dict(keep_vars=True) for part in (encoder, head))
            assert first.keys().isdisjoint(second.keys())
            assert first.keys() | second.keys() == own.keys()
            assert all((first | second)[key] is own[key] for key in own)
            assert min(len(list(part.parameters())) for part in (encoder, head)) > 0


def test_the_parts_train_as_the_network(case: tuple[str, nn.Module, Tensor, list[str]]):
    name, network, batch, latents = case
    buffers = {key: buffer.clone() for key, buffer in network.named_buffers()}

    def restore() -> None:
        for key, buffer in network.named_buffers():
            buffer.copy_(buffers[key])

    def train(*parts: nn.Module, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        restore()
        torch.manual_seed(seed)
        output = batch
        for part in parts:
            output = part.train()(output)
        return output, {key: buffer.clone() for key, buffer in network.named_buffers()}

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        encoder, head = cut(network.eval(), latents[1])
        wanted, moved = train(network)
        output, also_moved = train(encoder, head)
        assert torch.equal(output, wanted)
        assert all(torch.equal(also_moved[key], moved[key]) for key in moved)
        assert (name in RANDOM_IN_TRAINING) <= (not torch.equal(train(network, seed=1)[0], wanted))
        restore()
        fixed = head.eval()(encoder.eval()(batch))
        assert torch.equal(fixed, network.eval()(batch))


@pytest.mark.parametrize(
    ("architecture", "side"),
    [("small", 8), ("resnet18", 64), ("squeezenet1_1", 64), ("mobilenet_v3_small", 64)],
)
def test_valid_latents_are_all_those_that_fix_the_output(architecture: str, side: int):
    network = build(architecture, 5, 3, side, dropout=None, generator_seed=0).eval()
    assert valid_latents(network) == latents_that_fix_the_output(network, side)


def latents_that_fix_the_output(network: nn.Module, side: int) -> list[str]:
    """By experiment: put a module's output for one image in its place for another image.

    Cloned, since blocks add to their outputs in place.
    """
    one, other = images(side, batch=1), images(side, batch=1, seed=1)
    finished: list[tuple[str, Tensor]] = []
    hooks = [
        module.register_forward_hook(
            lambda _, __, out, name=name: finished.append((name, out.clone()))
        )
        for name, module in network.named_modules()
    ]
    with torch.no_grad():
        wanted = network(one)
    for hook in hooks:
        hook.remove()
    names = [name for name, _ in finished]
    weighted = [
        place
        for place, name in enumerate(names)
        if list(network.get_submodule(name).parameters(recurse=False))
    ]
    found = []
    for place, (name, output) in enumerate(finished):
        inside = range(weighted[0], weighted[-1])
        if names.count(name) > 1 or place not in inside:
            continue
        with torch.no_grad():
            assert not torch.equal(network(other), wanted)
            hook = network.get_submodule(name).register_forward_hook(
                lambda *_, out=output: out.clone()
            )
            if torch.equal(network(other), wanted):
                found.append(name)
            hook.remove()
    return found


def test_every_valid_latent_of_a_residual_network_cuts_it():
    network = build("resnet18", 5, 3, 64, dropout=None, generator_seed=0).eval()
    batch = images(64)
    with torch.no_grad():
        wanted = network(batch)
        for latent in valid_latents(network):
            encoder, head = cut(network, latent)
            assert torch.equal(head(encoder(batch)), wanted), latent


def test_a_relu_overwrites_what_a_layer_made_but_never_a_latent():
    network = build("alexnet", 3, 3, 64, dropout=None, generator_seed=0)
    encoder, head = cut(network, "features.3")  # a convolution, whose ReLU is the head's first
    latents = encoder(images(64)).detach()
    before = latents.clone()
    head(latents)
    assert torch.equal(latents, before) and (before < 0).any()

    taken: list[Tensor] = []
    whole, _ = cut(network, "features.4")
    layer = whole.get_submodule("features.3")
    with layer.register_forward_hook(lambda *call: taken.append(call[-1])):
        given = whole(images(64))
    assert taken[0].data_ptr() == given.data_ptr()


def test_what_is_read_twice_is_not_overwritten():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)
            self.relu = nn.ReLU()

        def forward(self, inputs: Tensor) -> Tensor:
            made = self.first(inputs)
            return self.second(self.relu(made) + made)

    network = nn.Sequential(Twice(), nn.Linear(2, 2))
    inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    encoder, head = cut(network, "0")
    assert torch.equal(head(encoder(inputs)), network(inputs))


def test_split_into_several_parts():
    network = build("resnet18", 5, 3, 64, dropout=None, generator_seed=0).eval()
    parts = split(network, ["layer1", "layer3.0", "avgpool"])
    batch = images(64)
    with torch.no_grad():
        assert torch.equal(nn.Sequential(*parts)(batch), network(batch))
    keys = [key for part in parts for key in part.state_dict()]
    assert len(keys) == len(set(keys))
    assert set(keys) == set(network.state_dict())


@pytest.mark.parametrize(
    "latents", [["layer3", "layer1"], ["layer3.1", "layer3"], ["layer3", "layer3"]]
)
def test_split_refuses_latents_without_layers_between(latents: list[str]):
    network = build("resnet18", 5, 3, 64, dropout=None, generator_seed=0)
    message = rf"^latent '{latents[1]}': there is no layer .* between '{latents[0]}' and it"
    with pytest.raises(InputError, match=message):
        split(network, latents)


@pytest.mark.parametrize(
    ("latent", "message"),
    [
        ("layer5", r"the network has no such module; valid are .*layer4.*"),
        ("", r"the network has no such module"),
        ("layer2.0.conv1", r"it is no cut: .* is used after it; valid are .*layer2\.0,"),
        ("layer1.0.relu", r"it is called 2 times in a pass.*; valid are"),
        ("fc", r"no layer with weights comes after it; valid are"),
    ],
)
def test_a_latent_that_is_no_cut_is_explained(latent: str, message: str):
    network = build("resnet18", 5, 3, 64, dropout=None, generator_seed=0)
    with pytest.raises(InputError, match=rf"^latent '{latent}': {message}") as raised:
        cut(network, latent)
    assert "\n" not in str(raised.value)


def test_a_long_list_of_latents_is_cut_to_the_nearest():
    network = build("densenet121", 5, 3, 64, dropout=None, generator_seed=0)
    with pytest.raises(InputError, match=r"valid are .*features\.norm5.* and \d+ more$") as raised:
        cut(network, "features.norm6")
    assert len(str(raised.value)) < 900


def test_a_short_list_of_latents_is_given_whole():
    network = nn.Sequential(nn.ReLU(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(InputError, match=r"^latent '5': .*; valid are 1, 2$"):
        cut(network, "5")
    with pytest.raises(InputError, match=r"^latent '0': no layer with weights comes before it"):
        cut(network, "0")


class Hazards(nn.Module):
    """What a careless cut would get wrong, for inputs (B, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.shaped = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.between = nn.Linear(4, 4)
        self.overwritten = nn.Linear(4, 4)
        self.unused = nn.Linear(4, 4)
        self.last = nn.Linear(4, 2)
        self.register_buffer("offset", torch.arange(4.0))
        self.scale = nn.Parameter(torch.full((4,), 2.0))

    def forward(self, batch: Tensor) -> Tensor:
        late = (self.scale * self.offset.flip(0)).exp()  # depends on no input: computed later
        first = self.first(batch)
        shaped = self.shaped(first).reshape(first.shape[0], 4)
        tied = self.tied(self.between(self.tied(shaped)))
        kept = functional.relu(self.overwritten(tied), inplace=True)
        return self.last(kept * late)


def test_hazards_are_seen():
    network = Hazards().eval()
    assert valid_latents(network) == ["first", "overwritten"]
    for latent in ("shaped", "between"):  # a shape from before it is used, or a layer once more
        with pytest.raises(InputError, match=rf"^latent '{latent}': it is no cut"):
            cut(network, latent)
    with pytest.raises(InputError, match=r"^latent 'unused': the network does not use"):
        cut(network, "unused")
    encoder, head = cut(network, "overwritten")
    batch = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        latents = encoder(batch)
        before = latents.clone()
        assert torch.equal(head(latents), network(batch))
    assert torch.equal(latents, before)
    assert {"scale", "offset"} < head.state_dict().keys()


def test_buffers_are_read_in_every_pass():
    network = Hazards().eval()
    _, head = cut(network, "overwritten")
    batch = torch.ones(1, 4)
    with torch.no_grad():
        before = head(batch)
        network.offset += 1.0
        assert not torch.equal(head(batch), before)


def test_training_the_head_leaves_the_encoder_alone():
    network = build("small", 5, 1, 8, dropout=None, generator_seed=0)
    encoder, head = cut(network, "embedding")
    state = copy.deepcopy(encoder.state_dict())
    latents = encoder.eval()(images(8, channels=1)).detach()
    head(latents).sum().backward()
    torch.optim.SGD(head.parameters(), lr=0.1).step()
    assert all(weight.grad is None for weight in encoder.parameters())
    assert all(torch.equal(encoder.state_dict()[key], state[key]) for key in state)
    assert network.classifier.bias.grad is not None


def test_a_part_can_be_copied():
    network = build("small", 5, 1, 8, dropout=None, generator_seed=0).eval()
    encoder, _ = cut(network, "embedding")
    twin = copy.deepcopy(encoder)
    batch = images(8, channels=1)
    assert torch.equal(twin(batch), encoder(batch))
    assert twin.state_dict().keys() == encoder.state_dict().keys()
    assert next(twin.parameters()) is not next(encoder.parameters())


# architecture: side of the images, blocks, some of their ends
BLOCKS = {
    "small": (8, 4, {"features.3", "flatten", "relu"}),
    "alexnet": (64, 8, {"features.2", "avgpool", "classifier.2", "classifier.5"}),
    "vgg16": (32, 16, {"features.1", "features.4", "avgpool", "classifier.1"}),
    "resnet18": (64, 10, {"maxpool", "layer1.0", "layer4.0", "avgpool"}),
    "squeezenet1_1": (64, 18, {"features.2", "features.3.squeeze_activation", "features"}),
    "densenet121": (64, 9, {"features.pool0", "features.transition1", "features"}),
    "vit_b_16": (32, 13, {"encoder.layers.encoder_layer_0", "encoder"}),
}


@pytest.mark.parametrize("architecture", BLOCKS)
def test_blocks_are_the_smallest_parts_with_a_weight_matrix(architecture: str):
    side, count, some = BLOCKS[architecture]
    with torch.device("meta"):
        channels = 1 if architecture == "small" else 3
        network = build(architecture, 5, channels, side, dropout=None, generator_seed=0)
    ends = block_ends(network)
    assert len(ends) + 1 == count and some <= set(ends)
    blocks = split(network, ends)
    assert len(blocks) == count
    kept = [key for block in blocks for key in block.state_dict()]
    assert sorted(kept) == sorted(network.state_dict())
    for block in blocks:
        assert any(parameter.ndim > 1 for parameter in block.parameters())
    for end in ends:
        assert not isinstance(network.get_submodule(end), nn.Dropout)


@pytest.mark.parametrize("architecture", ["small", "alexnet"])
def test_no_block_can_be_cut_into_two_with_weight_matrices(architecture: str):
    side, _, _ = BLOCKS[architecture]
    with torch.device("meta"):
        network = build(architecture, 5, 3, side, dropout=None, generator_seed=0)
    for block in split(network, block_ends(network)):
        names = {id(parameter) for parameter in block.parameters() if parameter.ndim > 1}
        for latent in valid_latents(network):
            before, after = (
                names & {id(parameter) for parameter in part.parameters()}
                for part in cut(network, latent)
            )
            assert not (before and after), latent


def test_blocks_of_a_network_with_one_matrix():
    assert block_ends(nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.ReLU())) == []
