"""Phases that learn whether two images show one class: by binary cross-entropy, or solved."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from pipeline.data.batches import batch_count, image_batches
from pipeline.data.pairs import PairList
from pipeline.data.rows import Rows, Streamed, together
from pipeline.errors import InputError
from pipeline.models.pairs import GATHERED, PairHead, Scaled, Verifier
from pipeline.params import Optimization, Optimizer
from pipeline.training import runtime
from pipeline.training.feed import Feed
from pipeline.training.optimizers import longest, parameter_groups
from pipeline.training.phase import Phase, Solve

if TYPE_CHECKING:
    from pipeline.training.run import Run

SPREAD = 1e-6  # the least standard deviation of similarities that is told from none
SMALLEST = 1e-6  # a scale fitted to similarities that tell nothing may not reach zero


class _Batch(NamedTuple):
    """Images or latents of a batch, each once, and the pairs among them, as positions (P,)."""

    taken: Tensor
    left: Tensor
    right: Tensor
    same: Tensor

    def __len__(self) -> int:
        return len(self.taken)


def verification(
    run: Run,
    name: str,
    verifier: Verifier,
    settings: Optimization,
    frozen: bool,
    l2: Mapping[str, float],
) -> Phase:
    """See ``Run.verification``."""
    assert run.pairs is not None and run.val_pairs is not None
    run.begin_phase()
    run.network = verifier
    trained: nn.Module = verifier.head if frozen else verifier
    trained.requires_grad_(True)
    # each by itself, so that weight decays go by the names of the encoder's own layers
    parts = [verifier.head] if frozen else [verifier.encoder, verifier.head]
    feed = Feed(run, verifier.encoder if frozen else None)
    encode = _flat if frozen else verifier.encode
    penalised = [
        (parameter, strength)
        for of, parameter in verifier.encoder.named_parameters()
        if parameter.ndim > 1 and (strength := longest(l2, of))
    ]
    ends = torch.from_numpy(run.pairs.left), torch.from_numpy(run.pairs.right)
    same = torch.from_numpy(run.pairs.same == 1)
    size, order = run.batch_size(settings), runtime.generator(run.seed, "order")
    val_pairs = on_device(run.val_pairs, run.device)

    def batches() -> Iterator[_Batch]:
        drawn = image_batches(len(same), size, order)
        once = [
            torch.cat([of[pairs] for of in ends]).unique(return_inverse=True) for pairs in drawn
        ]
        images, places = [of for of, _ in once], [of for _, of in once]
        sent = together([*images, *places], run.device)
        truth = together([same[pairs] for pairs in drawn], run.device)
        taken = feed.stream(zip(images, sent[: len(images)], strict=True))
        for inputs, ends_of, of in zip(taken, sent[len(images) :], truth, strict=True):
            left, right = ends_of.chunk(2)
            yield _Batch(inputs, left, right, of)

    def loss(batch: _Batch) -> Tensor:
        encodings = encode(feed.inputs(batch.taken))  # (B, D)
        logits = verifier.head(encodings[batch.left], encodings[batch.right])
        return _cross_entropy(logits, batch.same) + _penalty(penalised)

    @torch.no_grad()
    def validate() -> dict[str, Tensor]:
        encodings = torch.cat([encode(inputs) for inputs in feed.val()])
        found = _judged("val", verifier.head, encodings, *val_pairs)
        return {**found, "val/loss": found["val/loss"] + _penalty(penalised)}

    return Phase(
        name=name,
        module=trained,
        groups=[group for part in parts for group in parameter_groups(part, settings)],
        settings=settings,
        steps=batch_count(len(same), size),
        batches=batches,
        loss=loss,
        validate=validate,
        rule=run.training.rule,
        training_mode=trained.train,
        network=verifier,
    )


def passes_of_pairs(run: Run, settings: Optimizer) -> float:
    """See ``Run.passes_of_pairs``."""
    assert run.pairs is not None
    ends = torch.from_numpy(np.stack([run.pairs.left, run.pairs.right]))  # (2, P)
    order = runtime.generator(run.seed, "order")
    batches = image_batches(ends.shape[1], run.batch_size(settings), order)
    return sum(len(ends[:, drawn].unique()) for drawn in batches) / len(run.train)


def distance(run: Run, name: str, verifier: Verifier) -> Solve:
    """See ``Run.distance``."""
    assert run.pairs is not None and run.val_pairs is not None
    run.network = verifier
    verifier.requires_grad_(False).eval()
    parts = {"train": (run.train, run.pairs), "val": (run.val, run.val_pairs)}
    encoded = {
        split: (run.keep(verifier.encode, images), *on_device(pairs, run.device))
        for split, (images, pairs) in parts.items()
    }

    @torch.no_grad()
    def metrics() -> dict[str, Tensor]:
        train, val = (_judged(split, verifier.head, *of) for split, of in encoded.items())
        return {**train, **val}

    def solve() -> dict[str, float]:
        try:
            return fit_scale(verifier.head, *encoded["train"])
        except InputError as error:
            raise InputError(f"params.yaml: methods.{run.method}: {error}") from None

    return Solve(
        name=name,
        module=verifier,
        solve=solve,
        images=len(run.train),
        metrics=metrics,
        rule=run.training.rule,
    )


@torch.no_grad()
def fit_scale(
    head: nn.Module, encodings: Rows, left: Tensor, right: Tensor, same: Tensor
) -> dict[str, float]:
    """Fit the scale and the bias of a head on a similarity, by logistic regression.

    Args:
        head: ``pipeline.models.pairs.Cosine`` or ``Euclidean``; changed in place.
        encodings: (N, D).
        left, right: rows of ``encodings`` (P,).
        same: whether the pair shows one class (P,) bool.

    Returns:
        the scale and the bias; the scale stays positive, however little the similarity tells.

    Raises:
        InputError: a similarity is not finite.
    """
    from sklearn.linear_model import LogisticRegression

    assert isinstance(head, Scaled)
    head.log_scale.zero_()
    head.bias.zero_()  # so that the logits are the similarities themselves
    similarity = score(head, encodings, left, right).double().cpu().numpy()
    if not np.isfinite(similarity).all():
        raise InputError(
            "similarities of the frozen network's latents are not all finite numbers; use other "
            "starting weights"
        )
    mean, spread = float(similarity.mean()), max(float(similarity.std()), SPREAD)
    fitted = LogisticRegression(C=1e6, class_weight="balanced", tol=1e-8, max_iter=1000)
    fitted.fit((similarity[:, None] - mean) / spread, same.cpu().numpy())
    scale, middle = float(fitted.coef_[0, 0]) / spread, float(fitted.intercept_[0])
    if scale < SMALLEST:
        scale, middle = SMALLEST, 0.0  # even odds are best where the similarity tells nothing
    bias = middle - scale * mean
    head.log_scale.fill_(math.log(scale))
    head.bias.fill_(bias)
    return {"scale": scale, "bias": bias}


@torch.no_grad()
def score(head: PairHead, encodings: Rows, left: Tensor, right: Tensor) -> Tensor:
    """``PairHead.score``, also of encodings that are streamed."""
    if not isinstance(encodings, Streamed):
        return head.score(encodings, left, right)
    step = max(1, GATHERED // math.prod(encodings.shape[1:]))
    chunks = zip(left.cpu().split(step), right.cpu().split(step), strict=True)
    found = encodings.stream([end for chunk in chunks for end in chunk])
    return torch.cat([head(one, other) for one, other in zip(found, found, strict=True)])


def on_device(pairs: PairList, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Left, right (P,) and whether they show one class (P,) bool, as tensors."""
    left, right, same = map(torch.from_numpy, (pairs.left, pairs.right, pairs.same))
    return left.to(device), right.to(device), same.to(device) == 1


def _flat(latents: Tensor) -> Tensor:
    return latents.flatten(1).float()


def _judged(
    split: str, head: PairHead, encodings: Rows, left: Tensor, right: Tensor, same: Tensor
) -> dict[str, Tensor]:
    """Mean cross-entropy of listed pairs, and the share judged rightly at even odds."""
    logits = score(head, encodings, left, right)
    rightly = (logits > 0) == same
    return {
        f"{split}/loss": _cross_entropy(logits, same).mean(),
        f"{split}/accuracy": rightly.float().mean(),
    }


def _cross_entropy(logits: Tensor, same: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(logits.float(), same.float(), reduction="none")


def _penalty(penalised: list[tuple[nn.Parameter, float]]) -> Tensor | float:
    """Sum of squares of the weights, each layer's times its strength."""
    return sum((strength * of.square().sum() for of, strength in penalised), start=0.0)
