"""Heads against naive loops in plain Python, and their way through a file."""

import math

import pytest
import torch
from torch import nn

from pipeline.errors import InputError
from pipeline.models import heads, weights

D, N, C = 6, 20, 3


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def standardisation():
    return {"mean": draw(D, seed=1), "scale": draw(D, seed=2).abs() + 0.5}


def linear(dimension=D):
    made = {"weight": draw(C, dimension, seed=3), "bias": draw(C, seed=4)}
    return heads.LinearHead(draw(dimension, seed=1), draw(dimension, seed=2).abs() + 0.5, **made)


def svm(machines=C, gamma=0.1):
    return heads.SVMHead(
        **standardisation(),
        vectors=draw(7, D, seed=3),
        dual=draw(machines, 7, seed=4),
        intercept=draw(machines, seed=5),
        platt_a=-draw(machines, seed=6).abs(),
        platt_b=draw(machines, seed=7),
        gamma=None if gamma is None else torch.tensor(gamma),
    )


def knn(k=5, class_weights=(1.0, 1.0, 1.0)):
    return heads.NeighboursHead(
        **standardisation(),
        latents=draw(N, D, seed=3),
        labels=torch.arange(N) * 7 % C,
        class_weights=torch.tensor(class_weights),
        k=torch.tensor(k),
    )


def mlp():
    return heads.MLPHead(D, 5, C, seed=0)


HEADS = {
    "linear": linear,
    "svm": svm,
    "svm, linear kernel": lambda: svm(gamma=None),
    "svm, two classes": lambda: svm(machines=1),
    "knn": knn,
    "mlp": mlp,
}
FITTED = [name for name in HEADS if name != "mlp"]


def rows(head, latents):
    """Standardised latents as lists."""
    mean, scale = head.mean.tolist(), head.scale.tolist()
    return [
        [(x - m) / s for x, m, s in zip(row, mean, scale, strict=True)] for row in latents.tolist()
    ]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def apart(a, b):
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


def shares(values):
    return [value / sum(values) for value in values]


def test_linear_is_the_naive_softmax():
    head, latents = linear(), draw(9, D, seed=8)
    expected = [
        shares(
            [
                math.exp(dot(row, w) + b)
                for w, b in zip(head.weight.tolist(), head.bias.tolist(), strict=True)
            ]
        )
        for row in rows(head, latents)
    ]
    torch.testing.assert_close(head(latents).exp(), torch.tensor(expected))


@pytest.mark.parametrize("machines", [1, C])
@pytest.mark.parametrize("gamma", [None, 0.1])
def test_svm_is_the_naive_sum_over_support_vectors(machines, gamma):
    head, latents = svm(machines, gamma), draw(9, D, seed=8)
    vectors = head.vectors.tolist()
    expected = []
    for row in rows(head, latents):
        kernel = [
            dot(row, v) if gamma is None else math.exp(-gamma * apart(row, v)) for v in vectors
        ]
        decisions = [dot(kernel, dual) for dual in head.dual.tolist()]
        sigmoids = [
            1 / (1 + math.exp(a * (f + i) + b))
            for f, i, a, b in zip(
                decisions,
                head.intercept.tolist(),
                head.platt_a.tolist(),
                head.platt_b.tolist(),
                strict=True,
            )
        ]
        two = [1 - sigmoids[0], sigmoids[0]]
        expected.append(two if machines == 1 else shares(sigmoids))
    torch.testing.assert_close(head(latents).exp(), torch.tensor(expected))


@pytest.mark.parametrize("class_weights", [(1.0, 1.0, 1.0), (0.5, 2.0, 1.0)])
@pytest.mark.parametrize("k", [1, 4, N])
def test_neighbours_are_those_of_the_naive_loop(k, class_weights):
    head, latents = knn(k, class_weights), draw(9, D, seed=8)
    stored, labels = head.latents.tolist(), head.labels.tolist()
    expected = []
    for row in rows(head, latents):
        order = sorted(range(N), key=lambda at: apart(row, stored[at]))
        votes = [1 / C] * C
        for at in order[:k]:
            votes[labels[at]] += class_weights[labels[at]]
        expected.append(shares(votes))
    torch.testing.assert_close(head(latents).exp(), torch.tensor(expected))


def test_a_vote_without_weights_is_smoothed_by_one():
    found = heads.vote(torch.tensor([[0, 0, 1]]), torch.ones(3)).exp()
    expected = [(2 + 1 / 3) / 4, (1 + 1 / 3) / 4, (1 / 3) / 4]
    assert found[0].tolist() == pytest.approx(expected)


def test_of_equally_near_neighbours_the_first_comes_first_and_equal_votes_tie():
    neighbours = torch.tensor([[1.0, 0.1], [0.0, 0.3], [1.0, 0.1], [1.0, 0.1]])
    assert heads.nearest(torch.tensor([[1.0, 0.1]]), neighbours, 3).tolist() == [[0, 2, 3]]
    tied = heads.vote(torch.tensor([[2, 1]]), torch.ones(3))
    assert tied[0, 1] == tied[0, 2] and tied.argmax() == 1


def test_blocks_change_nothing(monkeypatch):
    left, right = draw(9, D), draw(N, D, seed=1)
    whole = heads.square_distances(left, right), heads.nearest(left, right, 4)
    monkeypatch.setattr(heads, "COLUMNS", 4)
    monkeypatch.setattr(heads, "DISTANCES", 2 * N)
    torch.testing.assert_close(heads.square_distances(left, right), whole[0])
    assert torch.equal(heads.nearest(left, right, 4), whole[1])


def test_small_distances_of_long_rows_keep_their_digits():
    left = torch.full((1, 1000), 100.0)
    right = left.clone()
    right[0, 0] += 0.5
    assert heads.square_distances(left, right).item() == pytest.approx(0.25, rel=1e-6)
    assert heads.square_distances(left, left).item() == 0


@pytest.mark.parametrize("name", HEADS)
def test_a_head_comes_back_from_its_file(name, tmp_path):
    head, latents = HEADS[name](), draw(9, D, seed=8)
    weights.save(tmp_path / "head.safetensors", head.state_dict())
    tensors = weights.load(tmp_path / "head.safetensors")
    restored = heads.restore_head(name.split(",")[0], tensors)
    assert type(restored) is type(head)
    assert torch.equal(restored(latents), head(latents))
    assert restored.state_dict().keys() == head.state_dict().keys()


@pytest.mark.parametrize("name", FITTED)
def test_fitted_heads_are_the_same_in_training_and_under_autocast(name):
    head, latents = HEADS[name](), draw(9, D, seed=8)
    plain = head.eval()(latents)
    assert not list(head.parameters())
    assert torch.equal(head.train()(latents), plain)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(latents), plain)
    assert plain.dtype == torch.float32
    torch.testing.assert_close(plain.exp().sum(1), torch.ones(9))
    from_half = head(latents.bfloat16())
    assert from_half.dtype == torch.float32
    assert torch.equal(from_half, head(latents.bfloat16().float()))


@pytest.mark.parametrize("name", HEADS)
def test_one_image_alone_is_the_image_in_its_batch(name):
    head, latents = HEADS[name]().eval(), draw(9, D, seed=8)
    torch.testing.assert_close(head(latents[4:5]), head(latents)[4:5])


@pytest.mark.parametrize("name", HEADS)
def test_feature_maps_are_flattened_or_averaged_as_the_head_was_made(name):
    head, maps = HEADS[name](), draw(4, D, 3, 5, seed=8)
    averaged = torch.stack([maps[:, channel].flatten(1).mean(1) for channel in range(D)], 1)
    torch.testing.assert_close(head(maps), head(averaged))
    torch.testing.assert_close(heads.flatten(maps, "average"), averaged)
    narrow = maps[:, :2, :3, :1]  # as many elements as the head has columns
    assert torch.equal(head(narrow), head(narrow.reshape(4, D)))
    assert torch.equal(heads.flatten(narrow), narrow.reshape(4, D))


def test_mlp_draws_as_torch_does_and_leaves_the_global_state():
    torch.manual_seed(5)
    hidden, classifier = nn.Linear(D, 5), nn.Linear(5, C)
    before = torch.get_rng_state()
    head = heads.MLPHead(D, 5, C, seed=5, dropout=0.5).eval()
    assert torch.equal(torch.get_rng_state(), before)
    latents = draw(9, D)
    assert torch.equal(head(latents), classifier(hidden(latents).relu()))
    assert not torch.equal(head.train()(latents), head(latents))  # dropout


def test_assembled_is_the_head_on_the_encoder():
    encoder = nn.Linear(4, D)
    head = linear()
    both = heads.Assembled(encoder, head)
    inputs = draw(9, 4)
    assert torch.equal(both(inputs), head(encoder(inputs)))
    assert {key.split(".")[0] for key in both.state_dict()} == {"encoder", "head"}


def test_wrong_tensors_are_one_line():
    with pytest.raises(InputError, match="there is no head 'tree'; heads are linear, svm, knn"):
        heads.restore_head("tree", {})
    with pytest.raises(InputError, match=r"a head 'svm' is made of dual, .* but here are bias,"):
        heads.restore_head("svm", linear().state_dict())
    with pytest.raises(InputError, match="but here are no tensors"):
        heads.restore_head("mlp", {})


@pytest.mark.gpu
@pytest.mark.parametrize("name", FITTED)
def test_a_gpu_gives_the_same(name):
    head, latents = HEADS[name](), draw(9, D, seed=8)
    expected = head(latents)
    torch.testing.assert_close(head.cuda()(latents.cuda()).cpu(), expected, atol=1e-6, rtol=0)
