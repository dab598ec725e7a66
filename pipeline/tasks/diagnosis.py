"""What a trained run is like inside, as far as both tasks look at it alike, and its files."""

from __future__ import annotations

import dataclasses
import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline import recipes, workspace
from pipeline.evaluation.diagnosis import (
    ACCURACY_GAP,
    LOSS_GAP,
    TRAIN_ACCURACY,
    TRAIN_LOSS,
    VAL_ACCURACY,
    VAL_LOSS,
    Arrays,
    Diagnosis,
    Layer,
)
from pipeline.evaluation.latents import Labelled, describe, principal_components, pull_alone
from pipeline.models import weights
from pipeline.records import RunId, write_atomically, write_json
from pipeline.tasks import anatomy

IMAGES = 1000  # of training, and of validation, at most
TEST_IMAGES = 500
COMPONENTS = 50
WARM_UPS = 3
REPEATS = 20
FEWEST_REPEATS = 5
TIMED_SECONDS = 2.0  # after which fewer repeats do

Found = TypeVar("Found")


class Tested(NamedTuple):
    """What testing took: images, seconds for all of them, and for an answer about one alone."""

    images: int
    seconds: float
    one_image_seconds: float


class Fit(NamedTuple):
    """How a network does on a split in evaluation mode, on images as they are."""

    accuracy: float
    loss: float


@dataclass(frozen=True)
class Look:
    """What a task finds in one network.

    Attributes:
        latent: where, in words.
        train: latents of training images; None where the validation classes are others.
        val: of validation images.
        test: of test images.
        images: the names of those (N,).
        train_fit, val_fit: how the network does on both.
        multiply_adds: of an answer for one image.
        chosen: metrics of what validation chose for the answers.
        asked: see ``pipeline.evaluation.diagnosis.Diagnosis``.
    """

    latent: str
    train: Labelled | None
    val: Labelled
    test: Labelled
    images: Sequence[str]
    train_fit: Fit
    val_fit: Fit
    multiply_adds: int
    chosen: Mapping[str, float] = field(default_factory=dict)
    asked: dict[str, Any] = field(default_factory=dict)


def write(run: RunId, record: dict[str, Any], network: nn.Module, look: Look) -> None:
    """Write a run's diagnosis and latents."""
    described = describe(look.train, look.val, look.test, _known_cause(record))
    start = _start(record)
    diagnosis = Diagnosis(
        latent=look.latent,
        dimension=look.val.latents.shape[1],
        values={**described.values, **_fits(look.train_fit, look.val_fit), **look.chosen},
        collapsed=bool(described.cause),
        cause=described.cause,
        same=described.same,
        different=described.different,
        layers=[Layer(*found) for found in anatomy.weight_histograms(network, start)],
        parameters=anatomy.parameter_count(network),
        multiply_adds=look.multiply_adds,
        model_bytes=(run.folder / "model.safetensors").stat().st_size,
        asked=look.asked,
    )
    content = dataclasses.asdict(diagnosis)
    if not look.asked:
        del content["asked"]
    write_json(run.diagnosis, content)
    filters_before, filters_after = anatomy.first_filters(network, start)
    arrays = Arrays(
        latents=principal_components(look.test.latents, COMPONENTS),
        labels=look.test.labels.astype(np.int64),
        images=np.array(look.images, dtype=np.str_),
        filters_before=filters_before,
        filters_after=filters_after,
    )
    write_atomically(run.latents, packed(arrays))


def packed(arrays: Arrays) -> bytes:
    """A diagnosis's arrays as an ``.npz`` file, which has no times in it."""
    content = io.BytesIO()
    np.savez(content, **vars(arrays))
    return content.getvalue()


def cut_of(record: dict[str, Any]) -> str:
    """The latent at which a run's own encoder ends."""
    cuts = recipes.of(record["parameters"]["method"]).cuts()
    latents = [found[-1] for place, found in cuts if place[-1] == "latent"]
    return latents[-1] if latents else "encoder"


def as_array(latents: Tensor) -> NDArray[np.float32]:
    """Latents on the CPU, float32."""
    return latents.float().cpu().numpy()


def one_image_seconds(answer: Callable[[], object], device: torch.device) -> float:
    """Median time of an answer for one image, by a network as it is used: see ``timed``.

    Of ``REPEATS`` after ``WARM_UPS``, or of fewer where these take long.
    """
    for _ in range(WARM_UPS):
        answer()
    taken: list[float] = []
    while len(taken) < FEWEST_REPEATS or (len(taken) < REPEATS and sum(taken) < TIMED_SECONDS):
        taken.append(timed(answer, device)[1])
    return float(np.median(taken))


def timed(answer: Callable[[], Found], device: torch.device) -> tuple[Found, float]:
    """An answer and its seconds, with all that the device still has to do."""
    _wait(device)
    started = time.perf_counter()
    found = answer()
    _wait(device)
    return found, time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _start(record: dict[str, Any]) -> dict[str, Tensor]:
    """The starting weights that the run was given; none if it began at random."""
    given = recipes.of(record["parameters"]["method"]).uses_start
    return weights.load(workspace.START) if given else {}


def _known_cause(record: dict[str, Any]) -> str:
    """What record and settings say of a collapse, if there should be one."""
    if record["status"] == "diverged":
        return "the training, which diverged"
    method = record["parameters"]["method"]
    loss = (method.get("encoder") or method).get("loss")
    last = loss[-1] if isinstance(loss, list) else loss
    return pull_alone(last) if isinstance(last, dict) else ""


def _fits(train: Fit, val: Fit) -> dict[str, float | None]:
    """The metrics of fit; None instead of what is not finite."""
    found = {
        TRAIN_ACCURACY: train.accuracy,
        VAL_ACCURACY: val.accuracy,
        ACCURACY_GAP: train.accuracy - val.accuracy,
        TRAIN_LOSS: train.loss,
        VAL_LOSS: val.loss,
        LOSS_GAP: val.loss - train.loss,
    }
    return {name: value if np.isfinite(value) else None for name, value in found.items()}
