"""Where a network that classifies is looked into, and what is found there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pipeline import workspace
from pipeline.data.batches import ImageSet, load_images, read_list
from pipeline.data.rows import Rows, take
from pipeline.errors import InputError
from pipeline.evaluation.latents import Labelled, evenly
from pipeline.models import architectures, weights
from pipeline.models.cut import cut, split
from pipeline.models.heads import Assembled, flatten
from pipeline.records import RunId
from pipeline.tasks import anatomy
from pipeline.tasks.diagnosis import IMAGES, TEST_IMAGES, Fit, Look, as_array, cut_of
from pipeline.training.phase import image_batches


class Place(NamedTuple):
    """Where a network is looked into, in words, and images to what is there and the output."""

    latent: str
    seen: anatomy.Seen


def look(
    run: RunId,
    record: dict[str, Any],
    network: nn.Module,
    place: Place,
    test: ImageSet,
    names: Sequence[str],
) -> Look:
    """Look into a trained network.

    Args:
        run: which one.
        record: its ``record.json``.
        network: in evaluation mode, on its device.
        place: where.
        test: the test images.
        names: theirs (N,).
    """
    architecture = record["parameters"]["model"]["architecture"]
    splits = [_read(path, test.labels.device) for path in (run.train_list, workspace.VAL_LIST)]
    (train, train_fit), (val, val_fit) = (_outcome(place, architecture, of) for of in splits)
    labels = test.labels.cpu().numpy()
    chosen = evenly(labels, TEST_IMAGES)
    latents, _ = watch(place, architecture, take(test.pixels, torch.from_numpy(chosen)))
    first = take(test.pixels, torch.zeros(1, dtype=torch.int64))
    one = architectures.normalise(first, architecture)
    return Look(
        latent=place.latent,
        train=train,
        val=val,
        test=Labelled(as_array(latents), labels[chosen]),
        images=[names[number] for number in chosen],
        train_fit=train_fit,
        val_fit=val_fit,
        multiply_adds=anatomy.multiply_adds(lambda: network(one)),
    )


def place_in(network: nn.Module, record: dict[str, Any], latent: str | None) -> Place:
    """Where a network is looked into: at ``latent``, or before its last layer.

    A method whose network ends before that module, with a classifier of another kind, is looked
    into where its classifier begins; ``Place.latent`` says so.

    Raises:
        InputError: there is no such latent.
    """
    try:
        if isinstance(network, Assembled):
            return _place_in_assembled(network, record, latent)
        if latent is not None:
            return Place(latent, anatomy.seen_at(network, latent))
    except InputError as error:
        raise InputError(f"params.yaml: diagnostics.latent: {error}") from None
    asked = record["parameters"]
    (layer,) = {
        key.rpartition(".")[0]
        for key in architectures.classifier_keys(
            asked["model"]["architecture"], asked["data"]["channels"], asked["data"]["image_size"]
        )
    }
    return Place(f"input of {layer}", anatomy.seen_before(network, layer))


@torch.no_grad()
def watch(place: Place, architecture: str, pixels: Rows) -> tuple[Tensor, Tensor]:
    """Latents (N, D) and logits (N, classes) of images; maps are averaged over height and width."""
    latents, outputs = [], []
    for part in image_batches(pixels):
        maps, logits = place.seen(architectures.normalise(part, architecture))
        latents.append(flatten(maps.float(), "average"))
        outputs.append(logits)
    return torch.cat(latents), torch.cat(outputs)


def _read(path: Path, device: torch.device) -> ImageSet:
    rows, labels = read_list(path)
    chosen = evenly(labels, IMAGES)
    return load_images(workspace.IMAGES, rows[chosen], labels[chosen], device)


def _outcome(place: Place, architecture: str, images: ImageSet) -> tuple[Labelled, Fit]:
    """Latents of images, and how well they are classified."""
    latents, outputs = watch(place, architecture, images.pixels)
    logits, labels = outputs.double().cpu(), images.labels.cpu()
    accuracy = float((logits.argmax(dim=1) == labels).double().mean())
    fit = Fit(accuracy, float(cross_entropy(logits, labels)))
    return Labelled(as_array(latents), labels.numpy()), fit


def _place_in_assembled(network: Assembled, record: dict[str, Any], latent: str | None) -> Place:
    """At ``latent`` if it comes before the encoder's end, else there."""
    own = cut_of(record)
    parts = [] if latent in (None, own) else _encoder_parts(network.encoder, record, latent, own)
    first, *rest = parts or [network.encoder]
    head = nn.Sequential(*rest, network.head)

    def seen(inputs: Tensor) -> tuple[Tensor, Tensor]:
        maps = first(inputs)
        return maps, head(maps)

    return Place(latent if parts and latent else own, seen)


def _encoder_parts(
    encoder: nn.Module, record: dict[str, Any], latent: str | None, own: str
) -> list[nn.Module]:
    """The encoder cut at ``latent``, a module of the whole network; none if it ends before."""
    assert latent is not None
    asked = record["parameters"]
    whole = architectures.build(
        asked["model"]["architecture"], record["classes"], asked["data"]["channels"],
        asked["data"]["image_size"], None, 0,
    )  # fmt: skip
    cut(whole, latent)  # says what is wrong with it, if anything is
    try:
        parts = split(whole, [latent, own])[:2]
    except InputError:
        return []
    tensors = encoder.state_dict()
    weights.put(whole, tensors)
    device = next(iter(tensors.values())).device
    return [part.to(device).eval() for part in parts]
