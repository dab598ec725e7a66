"""Verification: do two images show one class? Heads on pairs of encodings, and the network.

A head gives each pair a logit, the larger the more alike; its sigmoid is the probability that the
pair shows one class. All compute in float32, under autocast too, and give a pair and its mirror
image the same logit. An encoding is what an encoder makes of an image.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.models import weights
from pipeline.models.cut import cut
from pipeline.models.heads import flatten
from pipeline.models.koch import draw
from pipeline.params import nearest

GATHERED = 2**24  # elements of encodings on each side held at a time when many pairs are scored
STEEPNESS = 10.0  # of a cosine or a distance at the start


class PairHead(nn.Module):
    """What makes a logit of two encodings; a kind defines ``logits``."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Encodings (P, D) twice to logits (P,), float32."""
        with torch.autocast(left.device.type, enabled=False):
            return self.logits(left.float(), right.float())

    def logits(self, left: Tensor, right: Tensor) -> Tensor:
        """Float32 encodings (P, D) twice to logits (P,)."""
        raise NotImplementedError

    @torch.no_grad()
    def score(self, encodings: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Logits of any number of listed pairs, in bounded memory and without gradients.

        In training mode dropout acts here too; call ``eval()`` before.

        Args:
            encodings: (N, D).
            left, right: rows of ``encodings``, (P,) int64, on its device.

        Returns:
            (P,) float32.
        """
        step = max(1, GATHERED // encodings.shape[1])
        chunks = zip(left.split(step), right.split(step), strict=True)
        return torch.cat([self(encodings[one], encodings[other]) for one, other in chunks])


class Difference(PairHead):
    """``sum_j alpha_j |left_j - right_j| + b``: Koch et al. 2015, section 3.1.

    Args:
        dimension: D.
        dropout: probability that a difference is dropped in training.
        seed: of the initial values; the global generators stay untouched.
        koch: initial values as in ``koch.Koch``; else as torch draws them.
    """

    def __init__(self, dimension: int, dropout: float, seed: int, koch: bool = False) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = _linear(dimension, seed, koch)

    def logits(self, left: Tensor, right: Tensor) -> Tensor:
        """Float32 encodings (P, D) twice to logits (P,)."""
        return self.linear(self.dropout((left - right).abs())).squeeze(1)


class Scaled(PairHead):
    """``scale * similarity + bias``, both numbers trained; the scale by its logarithm stays > 0."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(STEEPNESS)))
        self.bias = nn.Parameter(torch.tensor(bias))

    def logits(self, left: Tensor, right: Tensor) -> Tensor:
        """Float32 encodings (P, D) twice to logits (P,)."""
        return self.log_scale.exp() * self.similarity(left, right) + self.bias

    def similarity(self, left: Tensor, right: Tensor) -> Tensor:
        """Float32 encodings (P, D) twice to (P,), the larger the more alike."""
        raise NotImplementedError


class Cosine(Scaled):
    """``scale cos(left, right) + bias``; an encoding of zeros has cosine 0, with gradient zero.

    It starts with scale 10 and bias -5: a cosine of 0.5 is even odds.
    """

    def __init__(self) -> None:
        super().__init__(bias=-STEEPNESS / 2)

    def similarity(self, left: Tensor, right: Tensor) -> Tensor:
        """Cosines (P,)."""
        return (_unit(left) * _unit(right)).sum(dim=1)


class Euclidean(Scaled):
    """``bias - scale d``, d the root-mean-square distance; equal encodings have gradient zero.

    It starts with scale 10 and bias 5: even odds at a distance of 0.5, halfway between the margins
    0 and 1 of a contrastive loss, at which the odds are those of cosines 1 and 0.
    """

    def __init__(self) -> None:
        super().__init__(bias=STEEPNESS / 2)

    def similarity(self, left: Tensor, right: Tensor) -> Tensor:
        """Negative distances (P,)."""
        square = (left - right).square().mean(dim=1)
        apart = square != 0  # the root's slope is infinite at zero; NaN must stay NaN
        return -square.where(apart, 1.0).sqrt().where(apart, 0.0)


class Verifier(nn.Module):
    """One encoder for both images of a pair, and a head on the two encodings."""

    def __init__(self, encoder: nn.Module, head: PairHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def encode(self, inputs: Tensor) -> Tensor:
        """Images (B, C, H, W) to encodings (B, D), float32."""
        return flatten(self.encoder(inputs)).float()

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Images (P, C, H, W) twice to logits (P,).

        All 2 P images are one batch, so that batch norm treats both sides alike.
        """
        one, other = self.encode(torch.cat([left, right])).chunk(2)
        return self.head(one, other)


def build_pair_head(
    kind: str, dimension: int, dropout: float, seed: int, koch: bool = False
) -> PairHead:
    """A head with its initial values, in training mode on the CPU.

    Args:
        kind: ``difference``, ``cosine`` or ``euclidean``.
        dimension: D, of the flattened encodings.
        dropout: of a ``difference``; zero for others.
        seed: of a ``difference``; others draw nothing.
        koch: whether a ``difference`` starts as the network ``koch`` does.

    Raises:
        InputError: there is no such kind, or it has no dropout.
    """
    kinds = {"cosine": Cosine, "euclidean": Euclidean}
    if kind == "difference":
        return Difference(dimension, dropout, seed, koch)
    if kind not in kinds:
        valid = ["difference", *kinds]
        raise InputError(f"there is no pair head '{kind}'; {nearest(kind, valid)}")
    if dropout:
        raise InputError(
            f"a pair head '{kind}' has no dropout, but here it is {dropout}; leave it out, or "
            "take the head difference"
        )
    return kinds[kind]()


def restore_verifier(network: nn.Module, latent: str, kind: str, path: Path | str) -> Verifier:
    """The trained model that a file holds, without dropout after the encodings.

    Args:
        network: whose part up to ``latent`` is the encoder; it is given the file's weights.
        latent: as for ``cut``.
        kind: of the head.
        path: a safetensors file of a ``Verifier``'s whole state.

    Raises:
        InputError: the file is broken or of another network, or there is no such latent or kind.
    """
    alphas = weights.load(path).get("head.linear.weight")
    dimension = 1 if alphas is None else alphas.shape[-1]  # that of a difference alone matters
    head = build_pair_head(kind, dimension, dropout=0.0, seed=0)
    verifier = Verifier(cut(network, latent)[0], head)
    weights.restore(verifier, path)
    return verifier


def _linear(dimension: int, seed: int, koch: bool) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        # of the CPU alone: torch.manual_seed would reset every GPU's generator too
        torch.default_generator.manual_seed(seed)
        linear = nn.Linear(dimension, 1)
        return draw(linear) if koch else linear


def _unit(encodings: Tensor) -> Tensor:
    """Rows (P, D) at length one; a row of zeros stays zero, with gradient zero."""
    square = encodings.square().sum(dim=1, keepdim=True)
    long = square != 0  # NaN too, which must stay NaN
    return encodings * square.where(long, 1.0).rsqrt().where(long, 0.0)
