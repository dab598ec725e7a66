"""A whole breakdown from image files, against pytorch-metric-learning's own trainers."""

from __future__ import annotations

import contextlib
import copy
import io
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.measure import Row, Taken
from benchmarks.rows.made import (
    LR,
    MOMENTUM,
    Setting,
    as_a_loop,
    as_a_run,
    in_place,
    timed,
    without_validation,
    write_drawings,
    write_photos,
)
from pipeline import recipes
from pipeline.data import sources
from pipeline.data.batches import load_images
from pipeline.data.images import decode_all
from pipeline.models.cut import cut
from pipeline.params import Augmentation
from pipeline.training.loop import fit
from pipeline.training.phase import Phase
from pipeline.training.run import Run

PAIRS_PER_IMAGE = 10
PER_CLASS = 4  # images of a class in a row, as in the library's examples
SMALL_SIDE = 32  # up to here images are drawings


@contextmanager
def against_metric_learning(
    setting: Setting, latent: str, epochs: int = 20, workers: int = 2, wanted: float | None = None
) -> Iterator[Row]:
    """Epochs a second of encoder phase and head phase, whole, from image files.

    Ours decodes once, draws pairs and trains both phases. The other way is that of the library's
    examples: a ``DataLoader`` decodes each image whenever it is drawn, ``MPerClassSampler`` draws,
    ``MetricLossOnly`` trains the encoder with ``ContrastiveLoss``, and ``TrainWithClassifier`` the
    head while the encoder is frozen. It runs the frozen encoder in each epoch. Same network,
    batches and epochs; neither augments, since latents of changing images cannot be kept, nor
    validates, since the library's testers are apart from its trainers.

    The loader's workers are started once a phase and not once an epoch: with as few images as a
    benchmark can take, their start would weigh far more than it does with thousands.

    Args:
        setting: network, images and device; at most 32 pixels are drawings in PNG, else photos.
        latent: where the network is cut.
        epochs: of each phase.
        workers: processes that decode, of the other way.
        wanted: the ratio that is asked for.
    """
    start = setting.network()
    with tempfile.TemporaryDirectory() as place:
        files = Path(place, "files")
        if setting.side <= SMALL_SIDE:
            write_drawings(files, setting.images, setting.classes, setting.side)
        else:
            write_photos(files, setting.images, setting.classes)

        def ours() -> Taken:
            network = copy.deepcopy(start)
            with as_a_run(setting):
                return timed(lambda: _ours(setting, network, latent, epochs, files), setting.device)

        def other() -> Taken:
            network = in_place(copy.deepcopy(start))
            with as_a_loop(setting), _quietly():
                return timed(
                    lambda: _theirs(setting, network, latent, epochs, files, workers),
                    setting.device,
                )

        yield Row(
            name=f"encoder and head from files, {epochs} epochs each, {setting.name}",
            against="pytorch-metric-learning's trainers",
            ours=ours,
            other=other,
            unit="epochs",
            wanted=wanted,
            note=f"{setting.images} images in batches of {setting.batch_size}",
        )


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the trainers' progress bars, and what torch warns of in them."""
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Converting a tensor with requires_grad", UserWarning)
        yield


def _ours(setting: Setting, network: nn.Module, latent: str, epochs: int, files: Path) -> float:
    """From files to a trained head; the epochs of both phases."""
    items = sources.find(files, "folders", "classification").items
    packed = files.parent / "images.npy"
    decode_all(items, packed, setting.side, "crop", setting.channels, progress=False)  # type: ignore[arg-type]
    labels = _labels(items)
    train = load_images(packed, torch.arange(len(items)).numpy(), labels, setting.device)
    made = setting.run(Augmentation(), PAIRS_PER_IMAGE, network, train)
    for phase in _phases(made, latent, epochs):
        result = fit(
            without_validation(phase),
            setting.device,
            setting.precision,
            cuda_graphs=setting.cuda_graphs,
        )
        if result.status != "finished":
            raise RuntimeError(result.reason)
    return 2 * epochs


def _phases(made: Run, latent: str, epochs: int) -> Iterator[Phase]:
    settings = {"epochs": epochs, "lr": LR, "momentum": MOMENTUM, "schedule": "constant"}
    recipe = recipes.of(
        {"recipe": "breakdown", "encoder": {"latent": latent, **settings}, "head": settings}
    )
    assert isinstance(recipe, recipes.Breakdown)
    for phases in (recipe.encoder_phases, recipe.head_phases):  # the encoder is trained between
        for phase in phases(made):
            assert isinstance(phase, Phase)
            yield phase


def _labels(items: list[sources.Item]) -> Any:
    names = {name: label for label, name in enumerate(sources.class_names(items))}
    return torch.tensor([names[item.class_name] for item in items]).numpy()


def _theirs(
    setting: Setting, network: nn.Module, latent: str, epochs: int, files: Path, workers: int
) -> float:
    """The library's way; the epochs of both phases."""
    from pytorch_metric_learning import losses, trainers  # type: ignore[import-untyped]

    encoder, head = cut(network, latent)
    shape = encoder.eval()(setting.random_inputs(1)).shape[1:]
    models: dict[str, nn.Module] = {"trunk": encoder, "embedder": nn.Flatten()}
    metric = {"metric_loss": losses.ContrastiveLoss(pos_margin=0.0, neg_margin=1.0)}
    shared = _loading(setting, files, epochs, workers)
    first = trainers.MetricLossOnly(
        models=models,
        optimizers={"trunk_optimizer": _optimizer(encoder)},
        loss_funcs=metric,
        **shared,
    )
    _train(first)
    second = trainers.TrainWithClassifier(
        models={**models, "classifier": nn.Sequential(nn.Unflatten(1, shape), head)},
        optimizers={"classifier_optimizer": _optimizer(head)},
        loss_funcs={**metric, "classifier_loss": nn.CrossEntropyLoss()},
        loss_weights={"metric_loss": 0, "classifier_loss": 1},
        freeze_these=("trunk", "embedder"),
        **shared,
    )
    _train(second)
    return 2 * epochs


def _train(trainer: Any) -> None:
    """Train, and end the loader's workers: left to the garbage collector, that takes 20 seconds."""
    trainer.train(num_epochs=1)
    trainer.dataloader_iter = None


def _loading(setting: Setting, files: Path, epochs: int, workers: int) -> dict[str, Any]:
    """What both trainers take to load images; one pass of it is all epochs of a phase."""
    from pytorch_metric_learning.samplers import MPerClassSampler  # type: ignore[import-untyped]
    from torchvision import datasets, transforms

    grey = [transforms.Grayscale()] if setting.channels == 1 else []
    steps = [
        transforms.Resize(setting.side),
        transforms.CenterCrop(setting.side),
        *grey,
        transforms.ToTensor(),
        transforms.Normalize([0.5] * setting.channels, [0.25] * setting.channels),
    ]
    dataset = datasets.ImageFolder(str(files), transforms.Compose(steps))
    sampler = MPerClassSampler(
        dataset.targets, PER_CLASS, length_before_new_iter=len(dataset) * epochs
    )
    return {
        "batch_size": setting.batch_size,
        "mining_funcs": {},
        "dataset": dataset,
        "data_device": setting.device,
        "sampler": sampler,
        "dataloader_num_workers": workers,
    }


def _optimizer(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), LR, momentum=MOMENTUM)
