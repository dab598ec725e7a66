"""Heads on frozen latents, and the network that encoder and head make together.

Those that are fitted in closed form (``pipeline.training.solve``) have no parameters: all they
know are buffers, float32 unless said, which are the arguments of their constructors. So they live
in a safetensors file and are rebuilt from it. They standardise the latents, map (B, D) or feature
maps to log-probabilities (B, C), in training and evaluation mode alike, and compute in full
precision under autocast and TF32 too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import InputError

COLUMNS = 4096  # of latents held in double precision at a time
DISTANCES = 2**24  # held at a time
SAME = 1e-12  # squared distance, relative to the squared lengths, below which it is rounding


def flatten(maps: Tensor, pool: Literal["none", "average"] = "none") -> Tensor:
    """Latents as rows: (B, ...) to (B, D); ``average`` first takes the mean over H, W of maps."""
    if pool == "average" and maps.dim() == 4:
        maps = maps.mean(dim=(2, 3))
    return maps.flatten(1)


def standardise(latents: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """``(latents - mean) / scale``, column by column; (B, D), (D,) and (D,) to (B, D)."""
    return (latents - mean) / scale


def products(left: Tensor, right: Tensor) -> Tensor:
    """Inner products of rows in double precision; (B, D) and (N, D) to (B, N).

    Neither TF32 nor the order of a GPU's sums then shows in a head's output. Devices without
    double precision compute in float32.
    """
    exact = torch.float32 if left.device.type == "mps" else torch.float64
    total = torch.zeros(len(left), len(right), dtype=exact, device=left.device)
    for some, others in zip(left.split(COLUMNS, 1), right.split(COLUMNS, 1), strict=True):
        total = total + some.to(exact) @ others.to(exact).T
    return total


def square_distances(left: Tensor, right: Tensor) -> Tensor:
    """Squared Euclidean distances of rows; (B, D) and (N, D) to (B, N); equal rows give zero."""
    lengths = _square_lengths(left)[:, None] + _square_lengths(right)  # (B, N)
    apart = lengths - 2 * products(left, right)
    return torch.where(apart > SAME * lengths, apart, 0.0)


def nearest(latents: Tensor, neighbours: Tensor, k: int) -> Tensor:
    """The ``k`` nearest rows of ``neighbours`` (N, D), the nearest first; (B, D) to (B, k).

    Of equally near ones the first in ``neighbours`` comes first.
    """
    rows = max(1, DISTANCES // len(neighbours))
    return torch.cat(
        [
            # float32, so that the rounding of double precision decides no tie
            square_distances(some, neighbours).float().sort(dim=1, stable=True).indices[:, :k]
            for some in latents.split(rows)
        ]
    )


def vote(labels: Tensor, class_weights: Tensor) -> Tensor:
    """Log of the smoothed vote shares of neighbours' labels; (B, k) and (C,) to (B, C).

    A vote counts its class's weight; with weights one, a class has the share
    ``(votes + 1/C) / (k + 1)``, so that none is zero.
    """
    classes = len(class_weights)
    cast = labels[:, :, None] == torch.arange(classes, device=labels.device)  # (B, k, C)
    return (cast.sum(1) * class_weights + 1 / classes).log().log_softmax(1)


class _FittedHead(nn.Module):
    """Standardises the latents; all its state is buffers."""

    mean: Tensor
    scale: Tensor

    def __init__(self, **tensors: Tensor) -> None:
        super().__init__()
        for key, tensor in tensors.items():
            self.register_buffer(key, tensor.detach().clone())

    def forward(self, maps: Tensor) -> Tensor:
        """Latents (B, D) or feature maps to log-probabilities (B, C), float32."""
        with torch.autocast(maps.device.type, enabled=False):
            latents = _rows(maps.float(), len(self.mean))
            scores = self.scores(standardise(latents, self.mean, self.scale))
            return scores.log_softmax(1).float()

    def scores(self, latents: Tensor) -> Tensor:
        """Standardised latents (B, D) to log-probabilities that need not sum to one, (B, C)."""
        raise NotImplementedError


class LinearHead(_FittedHead):
    """Softmax regression: the log-softmax of ``weight z + bias``, z the standardised latent.

    Args:
        mean, scale: of the training latents, (D,).
        weight: (C, D).
        bias: (C,).
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, mean: Tensor, scale: Tensor, weight: Tensor, bias: Tensor) -> None:
        super().__init__(mean=mean, scale=scale, weight=weight, bias=bias)

    def scores(self, latents: Tensor) -> Tensor:
        """Logits."""
        return products(latents, self.weight) + self.bias


class SVMHead(_FittedHead):
    """One-vs-rest support vector machines with Platt's sigmoids.

    The decision for class c is ``f_c(z) = sum_s dual[c, s] k(z, vectors[s]) + intercept[c]``,
    its probability ``1 / (1 + exp(platt_a[c] f_c + platt_b[c]))``, divided by the sum over the
    classes. Two classes have one machine, M = 1, for the second of them; else M = C. Platt,
    "Probabilistic outputs for support vector machines" (1999).

    Args:
        mean, scale: of the training latents, (D,).
        vectors: standardised support vectors, (S, D).
        dual: (M, S).
        intercept, platt_a, platt_b: (M,).
        gamma: of the kernel ``exp(-gamma |z - v|^2)``, a scalar; None: the kernel is linear.
    """

    vectors: Tensor
    dual: Tensor
    intercept: Tensor
    platt_a: Tensor
    platt_b: Tensor
    gamma: Tensor | None

    def __init__(
        self,
        mean: Tensor,
        scale: Tensor,
        vectors: Tensor,
        dual: Tensor,
        intercept: Tensor,
        platt_a: Tensor,
        platt_b: Tensor,
        gamma: Tensor | None = None,
    ) -> None:
        super().__init__(
            mean=mean,
            scale=scale,
            vectors=vectors,
            dual=dual,
            intercept=intercept,
            platt_a=platt_a,
            platt_b=platt_b,
        )
        self.register_buffer("gamma", gamma if gamma is None else gamma.detach().clone())

    def scores(self, latents: Tensor) -> Tensor:
        """Logarithms of Platt's probabilities."""
        if self.gamma is None:
            kernel = products(latents, self.vectors)  # (B, S)
        else:
            kernel = (-self.gamma * square_distances(latents, self.vectors)).exp()
        decisions = kernel @ self.dual.to(kernel.dtype).T + self.intercept  # (B, M)
        exponents = self.platt_a * decisions + self.platt_b
        if exponents.shape[1] == 1:
            exponents = torch.cat([-exponents, exponents], dim=1)
        return functional.logsigmoid(-exponents)


class NeighboursHead(_FittedHead):
    """Votes of the k nearest training latents, Euclidean distance, smoothed as by ``vote``.

    Classes with equal votes have equal probabilities; argmax takes the lowest label.

    Args:
        mean, scale: of the training latents, (D,).
        latents: the standardised training latents, (N, D).
        labels: theirs, (N,) int64.
        class_weights: what a vote for each class counts, (C,).
        k: a scalar, int64.
    """

    latents: Tensor
    labels: Tensor
    class_weights: Tensor
    k: Tensor

    def __init__(
        self,
        mean: Tensor,
        scale: Tensor,
        latents: Tensor,
        labels: Tensor,
        class_weights: Tensor,
        k: Tensor,
    ) -> None:
        super().__init__(
            mean=mean,
            scale=scale,
            latents=latents,
            labels=labels,
            class_weights=class_weights,
            k=k,
        )

    def scores(self, latents: Tensor) -> Tensor:
        """Logarithms of the vote shares."""
        found = nearest(latents, self.latents, int(self.k))
        return vote(self.labels[found], self.class_weights)


class MLPHead(nn.Module):
    """One hidden layer, to be trained: latents (B, D) or feature maps to logits (B, C).

    Args:
        dimension: D, of the flattened latents or of the maps' averages.
        units: in the hidden layer.
        classes: C.
        seed: of the initial values, drawn as torch draws them; the global state stays as it is.
        dropout: probability that a hidden unit is dropped in training.
    """

    def __init__(
        self, dimension: int, units: int, classes: int, seed: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.hidden = nn.Linear(dimension, units)
            self.classifier = nn.Linear(units, classes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, maps: Tensor) -> Tensor:
        """Latents (B, D) or feature maps to logits (B, C)."""
        latents = _rows(maps, self.hidden.in_features)
        return self.classifier(self.dropout(self.hidden(latents).relu()))


class Assembled(nn.Module):
    """An encoder and the head on its latents as one network: ``head(encoder(x))``."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, inputs: Tensor) -> Tensor:
        """Images (B, ...) to logits (B, C)."""
        return self.head(self.encoder(inputs))


_FITTED: dict[str, type[_FittedHead]] = {
    "linear": LinearHead,
    "svm": SVMHead,
    "knn": NeighboursHead,
}
_KEYS = {
    "linear": {"mean", "scale", "weight", "bias"},
    "svm": {"mean", "scale", "vectors", "dual", "intercept", "platt_a", "platt_b"},
    "knn": {"mean", "scale", "latents", "labels", "class_weights", "k"},
    "mlp": {"hidden.weight", "hidden.bias", "classifier.weight", "classifier.bias"},
}


def restore_head(kind: str, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The head that a state dict was taken from.

    Args:
        kind: ``linear``, ``svm``, ``knn`` or ``mlp`` (which is restored without dropout).
        tensors: all of its state, by its own keys.

    Raises:
        InputError: there is no such kind, or its keys are others.
    """
    if kind not in _KEYS:
        raise InputError(f"there is no head '{kind}'; heads are {', '.join(_KEYS)}")
    if tensors.keys() - {"gamma"} != _KEYS[kind] or ("gamma" in tensors and kind != "svm"):
        raise InputError(
            f"a head '{kind}' is made of {', '.join(sorted(_KEYS[kind]))}, but here are "
            f"{', '.join(sorted(tensors)) or 'no tensors'}; train the method again with dvc repro"
        )
    if kind in _FITTED:
        return _FITTED[kind](**tensors)
    units, dimension = tensors["hidden.weight"].shape
    head = MLPHead(dimension, units, len(tensors["classifier.bias"]), seed=0)
    head.load_state_dict(dict(tensors))
    return head


def _rows(maps: Tensor, dimension: int) -> Tensor:
    """Feature maps flattened, or averaged where the head was made for as many as are channels.

    The two differ whenever a map has more than one element, so the head's own size tells.
    """
    averaged = maps.dim() == 4 and maps.shape[1] == dimension
    return flatten(maps, "average" if averaged else "none")


def _square_lengths(rows: Tensor) -> Tensor:
    exact = torch.float32 if rows.device.type == "mps" else torch.float64
    total = torch.zeros(len(rows), dtype=exact, device=rows.device)
    for some in rows.split(COLUMNS, 1):
        total = total + some.to(exact).square().sum(1)
    return total
