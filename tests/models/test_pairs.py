"""Pair heads against naive loops in plain Python, and the network that they complete."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.models import architectures, pairs, weights
from pipeline.models.cut import cut
from pipeline.models.pairs import (
    Cosine,
    Difference,
    Euclidean,
    PairHead,
    Verifier,
    build_pair_head,
    restore_verifier,
)

P, D = 7, 5
KINDS = ("difference", "cosine", "euclidean")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build(kind: str, dimension: int = D) -> PairHead:
    return build_pair_head(kind, dimension, dropout=0.0, seed=3)


def naive_difference(head: Difference, left: list[float], right: list[float]) -> float:
    total = head.linear.bias.item()
    for alpha, one, other in zip(head.linear.weight[0].tolist(), left, right, strict=True):
        total += alpha * abs(one - other)
    return total


def naive_cosine(head: Cosine, left: list[float], right: list[float]) -> float:
    product = sum(one * other for one, other in zip(left, right, strict=True))
    lengths = math.hypot(*left) * math.hypot(*right)
    cosine = product / lengths if lengths else 0.0
    return math.exp(head.log_scale.item()) * cosine + head.bias.item()


def naive_euclidean(head: Euclidean, left: list[float], right: list[float]) -> float:
    square = sum((one - other) ** 2 for one, other in zip(left, right, strict=True))
    distance = math.sqrt(square / len(left))
    return head.bias.item() - math.exp(head.log_scale.item()) * distance


NAIVE: dict[str, Callable[..., float]] = {
    "difference": naive_difference,
    "cosine": naive_cosine,
    "euclidean": naive_euclidean,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_is_its_naive_loop(kind: str):
    head = build(kind)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter += 0.3  # off its start
    left, right = draw(P, D), draw(P, D, seed=1)
    left[0], right[1] = right[0], 0.0  # an equal pair, an encoding of zeros
    rows = zip(left.tolist(), right.tolist(), strict=True)
    wanted = torch.tensor([NAIVE[kind](head, one, other) for one, other in rows])
    logits = head(left, right)
    torch.testing.assert_close(logits, wanted)
    assert torch.equal(head(right, left), logits)


@pytest.mark.parametrize("kind", ["cosine", "euclidean"])
def test_the_start_is_even_odds_halfway(kind: str):
    if kind == "cosine":
        alike, halfway, apart = torch.tensor(
            [[1.0, 0.0], [0.5, 0.75**0.5], [0.0, 1.0]], dtype=torch.float32
        )
        left = torch.tensor([1.0, 0.0])
    else:
        alike, halfway, apart = torch.zeros(2), torch.full((2,), 0.5), torch.ones(2)
        left = torch.zeros(2)
    logits = build(kind)(left.expand(3, 2), torch.stack([alike, halfway, apart]))
    torch.testing.assert_close(logits, torch.tensor([5.0, 0.0, -5.0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_differences(kind: str):
    head = build(kind).double()
    left = draw(P, D).double().requires_grad_()
    right = draw(P, D, seed=1).double().requires_grad_()
    # ``forward`` would round to float32
    torch.autograd.gradcheck(head.logits, (left, right))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pair", ["equal", "both zero", "one zero"])
def test_gradients_are_finite_for_equal_encodings_and_for_zeros(kind: str, pair: str):
    head = build(kind)
    left = draw(P, D) * (pair == "equal")
    right = left.clone() if pair != "one zero" else draw(P, D)
    left.requires_grad_()
    right.requires_grad_()
    logits = head(left, right)
    logits.sum().backward()
    assert logits.isfinite().all()
    for tensor in (left, right, *head.parameters()):
        assert tensor.grad is not None and tensor.grad.isfinite().all()
    if pair == "both zero" or (pair == "equal" and kind != "cosine"):
        assert not left.grad.any() and not right.grad.any()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_a_number_stays_so(kind: str):
    left = draw(P, D)
    left[2, 3] = math.nan
    assert build(kind)(left, draw(P, D, seed=1)).isnan().tolist() == [at == 2 for at in range(P)]


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_float32_of_any_encodings_and_under_autocast(kind: str):
    head, left, right = build(kind), draw(P, D), draw(P, D, seed=1)
    plain = head(left, right)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(left, right), plain)
    halves = head(left.bfloat16(), right.bfloat16())
    assert halves.dtype == torch.float32
    assert torch.equal(halves, head(left.bfloat16().float(), right.bfloat16().float()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gathered", [1, 3 * D, 2**24])
def test_score_is_the_head_pair_by_pair(kind: str, gathered: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pairs, "GATHERED", gathered)
    head, encodings = build(kind).eval(), draw(4, D)
    left, right = torch.tensor([0, 1, 2, 3, 3, 0, 2]), torch.tensor([1, 2, 0, 3, 0, 0, 3])
    logits = head.score(encodings, left, right)
    assert not logits.requires_grad
    for at in range(P):
        one, other = left[at : at + 1], right[at : at + 1]
        wanted = head(encodings[one], encodings[other]).detach()
        torch.testing.assert_close(logits[at : at + 1], wanted)


def test_score_holds_few_pairs_at_a_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pairs, "GATHERED", 3 * D)
    head, seen = build("euclidean"), []
    head.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    head.score(draw(4, D), torch.zeros(P, dtype=torch.int64), torch.ones(P, dtype=torch.int64))
    assert seen == [3, 3, 1]
    none = torch.zeros(0, dtype=torch.int64)
    assert head.score(draw(4, D), none, none).shape == (0,)


@pytest.mark.parametrize("koch", [False, True])
def test_a_difference_starts_from_its_seed_alone(koch: bool):
    torch.manual_seed(1)
    first = Difference(D, 0.0, seed=7, koch=koch)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    again, other = (Difference(D, 0.0, seed=seed, koch=koch) for seed in (7, 8))
    assert torch.equal(torch.get_rng_state(), before)
    for key, value in first.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)
        assert not torch.equal(other.state_dict()[key], value)


def test_a_difference_starts_as_torch_draws_it():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        linear = nn.Linear(D, 1)
    head = Difference(D, 0.0, seed=7).linear
    assert torch.equal(head.weight, linear.weight) and torch.equal(head.bias, linear.bias)


def test_dropout_drops_differences_in_training():
    head = build_pair_head("difference", 1000, dropout=0.4, seed=0)
    with torch.no_grad():
        head.linear.weight.fill_(1.0)
        head.linear.bias.zero_()
    left, right = torch.zeros(200, 1000), torch.ones(200, 1000)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kept = head.train()(left, right).detach() * 0.6 / 1000
    assert kept.mean().item() == pytest.approx(0.6, abs=0.005)  # 5 standard errors
    assert kept.std() > 0.01
    assert (head.eval()(left, right) == 1000).all()


@pytest.mark.parametrize("kind", ["cosine", "euclidean"])
def test_the_scale_stays_positive_however_far_it_is_driven(kind: str):
    head = build(kind)
    optimizer = torch.optim.SGD(head.parameters(), lr=1.0)
    left, right = draw(P, D), draw(P, D, seed=1)
    start = head.log_scale.item()
    for _ in range(20):  # the wrong way: random pairs are alike, equal ones differ
        optimizer.zero_grad()
        (head(left, left) - head(left, right)).mean().backward()
        optimizer.step()
    assert head.log_scale.item() < start - 1
    alike, apart = head(left, left)[0], head(left, -left)[0]
    assert alike > apart


def test_a_wrong_kind_or_a_dropout_that_it_lacks_is_one_line():
    with pytest.raises(InputError, match=r"^there is no pair head 'cosin'; did you mean 'cosine'"):
        build("cosin")
    for kind in ("cosine", "euclidean"):
        with pytest.raises(InputError, match=rf"^a pair head '{kind}' has no dropout, .* is 0.4;"):
            build_pair_head(kind, D, dropout=0.4, seed=0)


def maps_of(channels: int = 2) -> nn.Module:
    """An encoder whose encodings are feature maps, with batch norm."""
    return nn.Sequential(nn.Conv2d(1, channels, 3), nn.BatchNorm2d(channels))


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_is_the_head_on_both_encodings(kind: str):
    encoder = maps_of()
    network = Verifier(encoder, build(kind, 2 * 2 * 2)).eval()
    left, right = draw(P, 1, 4, 4), draw(P, 1, 4, 4, seed=1)
    with torch.no_grad():
        encodings = network.encode(torch.cat([left, right]))
        assert encodings.shape == (2 * P, 8)
        torch.testing.assert_close(encodings[:P], encoder(left).flatten(1))
        logits = network(left, right)
        torch.testing.assert_close(logits, network.head(encodings[:P], encodings[P:]))
    places = torch.arange(P)
    torch.testing.assert_close(network.head.score(encodings, places, places + P), logits)


def test_both_sides_are_normalised_alike_in_training():
    network = Verifier(maps_of(), build("euclidean", 8)).train()
    left = draw(P, 1, 4, 4)
    with torch.no_grad():
        logits = network(left, 3 * left + 1)
        both = network.encoder(torch.cat([left, 3 * left + 1])).flatten(1)
    torch.testing.assert_close(logits, network.head(both[:P], both[P:]).detach())
    assert network.encoder[1].num_batches_tracked == 2


def whole(seed: int = 0) -> nn.Module:
    return architectures.build("small", 3, 1, 8, dropout=None, generator_seed=seed)


def trained(kind: str, path: Path) -> Verifier:
    network = Verifier(cut(whole(), "embedding")[0], build(kind, 64)).eval()
    with torch.no_grad():
        for parameter in network.head.parameters():
            parameter += 0.3  # off its start
    weights.save(path, network.state_dict())
    return network


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_comes_back_from_its_file(kind: str, tmp_path: Path):
    network = trained(kind, tmp_path / "model.safetensors")
    restored = restore_verifier(whole(1), "embedding", kind, tmp_path / "model.safetensors").eval()
    left, right = draw(P, 1, 8, 8), draw(P, 1, 8, 8, seed=1)
    assert torch.equal(restored(left, right), network(left, right))
    assert {key.split(".")[0] for key in network.state_dict()} == {"encoder", "head"}


def test_the_file_of_another_network_is_one_line(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    trained("cosine", path)
    for latent, kind in (("embedding", "difference"), ("features", "cosine")):
        with pytest.raises(InputError, match="is the model of another network"):
            restore_verifier(whole(), latent, kind, path)
    with pytest.raises(InputError, match="there is no pair head 'other'"):
        restore_verifier(whole(), "embedding", "other", path)
    with pytest.raises(InputError, match="there is no such file"):
        restore_verifier(whole(), "embedding", "cosine", tmp_path / "none.safetensors")


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_gives_the_same(kind: str):
    head, left, right = build(kind), draw(P, D), draw(P, D, seed=1)
    expected = head(left, right)
    logits = head.cuda()(left.cuda(), right.cuda())
    torch.testing.assert_close(logits.cpu(), expected, atol=1e-5, rtol=1e-5)
