"""A run: its network, data and randomness, and the kinds of phases that recipes build of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.data.batches import ImageSet, PairBatch, PairBatches, augment, batch_count
from pipeline.data.batches import image_batches as draw_batches
from pipeline.data.pairs import PairList
from pipeline.errors import InputError
from pipeline.models import architectures
from pipeline.params import Optimization, Training
from pipeline.training import losses, runtime
from pipeline.training.phase import Phase, evaluate

SiameseLoss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
EVALUATION_BATCH = 256
DISTANCE_ELEMENTS = 2**24  # latents gathered at a time when many pairs are scored


@dataclass
class Run:
    """One (method, shots, seed) on its device, before and while it is trained.

    Attributes:
        network: the whole network with its starting weights, on ``device``.
        architecture: its name.
        classifier: state-dict keys of the last layer, which never has starting weights.
        classes: how many there are.
        train, val: labelled images.
        method: its name, for errors.
        pairs, val_pairs: positions in ``train`` and ``val``; only breakdowns have them.
        training: what all methods share.
        seed: draws order, augmentation and dropout, each from a stream of its own.
    """

    network: nn.Module
    architecture: str
    classifier: set[str]
    classes: int
    train: ImageSet
    val: ImageSet
    training: Training
    seed: int
    device: torch.device
    method: str = ""
    pairs: PairList | None = None
    val_pairs: PairList | None = None

    def classification(
        self,
        name: str,
        module: nn.Module,
        groups: list[dict[str, Any]],
        settings: Optimization,
        frozen: nn.Module | None = None,
    ) -> Phase:
        """A phase that trains ``module`` by cross-entropy on the training images.

        With ``frozen``, ``module`` is the head on that fixed encoder, which stays in evaluation
        mode; without augmentation its latents are computed once. The batch order is the same for
        every phase of a seed.
        """
        if frozen is not None:
            frozen.requires_grad_(False).eval()
        cached = frozen is not None and self.training.augmentation.off
        latents = torch.cat(list(self.encode(frozen, self.train))) if cached else None
        val_latents = list(self.encode(frozen, self.val))
        order = runtime.generator(self.seed, "order")
        augmentation = runtime.generator(self.seed, "augmentation")
        self._seed_dropout()
        size = settings.batch_size or self.training.batch_size

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for index in draw_batches(len(self.train), size, order):
                index = index.to(self.device)
                if latents is not None:
                    yield latents[index], self.train.labels[index]
                else:
                    yield self._augmented(index, augmentation), self.train.labels[index]

        def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
            inputs, labels = batch
            if frozen is not None and latents is None:
                with torch.no_grad():
                    inputs = frozen(inputs)
            return losses.cross_entropy(module(inputs), labels)

        return Phase(
            name=name,
            module=module,
            groups=groups,
            settings=settings,
            steps=batch_count(len(self.train), size),
            batches=batches,
            loss=loss,
            validate=lambda: evaluate(
                module, losses.cross_entropy, iter(val_latents), self.val.labels
            ),
            rule=self.training.rule,
            training_mode=module.train,
        )

    def siamese(
        self,
        name: str,
        encoder: nn.Module,
        groups: list[dict[str, Any]],
        settings: Optimization,
        pair_loss: SiameseLoss,
        dropout: bool,
    ) -> Phase:
        """A phase that trains ``encoder`` by a loss on the listed pairs of its latents.

        Each image of a batch goes through the encoder once, however many pairs it is in. Feature
        maps are flattened. The epoch is chosen by the loss on the validation pairs. Dropout and
        stochastic depth are off unless ``dropout``.

        Args:
            name: of the phase.
            encoder: what is trained.
            groups: its parameters and their learning rates.
            settings: of the optimisation.
            pair_loss: latents left and right (P, D), class of the left image (P,) and whether
                the pair shows one class (P,) to a loss a pair (P,).
            dropout: whether dropout stays on.
        """
        assert self.pairs is not None and self.val_pairs is not None
        size = settings.batch_size or self.training.batch_size
        composed = PairBatches(self.pairs, len(self.train), size)
        order = runtime.generator(self.seed, "order")
        augmentation = runtime.generator(self.seed, "augmentation")
        self._seed_dropout()
        val_inputs = list(self.encode(None, self.val))
        val_pairs = [
            torch.from_numpy(column).to(self.device)
            for column in (self.val_pairs.left, self.val_pairs.right, self.val_pairs.same)
        ]

        def batches() -> Iterator[tuple[Tensor, PairBatch]]:
            for batch in composed.epoch(order):
                yield self._augmented(batch.images.to(self.device), augmentation), batch

        def loss(item: tuple[Tensor, PairBatch]) -> Tensor:
            inputs, batch = item
            latents = encoder(inputs).flatten(1).float()  # (B, D)
            left, right = batch.left.to(self.device), batch.right.to(self.device)
            labels = self.train.labels[batch.images.to(self.device)]
            return pair_loss(
                latents[left], latents[right], labels[left], batch.same.to(self.device)
            )

        @torch.no_grad()
        def validate() -> dict[str, Tensor]:
            latents = torch.cat([encoder(inputs).flatten(1).float() for inputs in val_inputs])
            step = max(1, DISTANCE_ELEMENTS // latents.shape[1])
            scored = [
                pair_loss(latents[left], latents[right], self.val.labels[left], same == 1)
                for left, right, same in zip(*(c.split(step) for c in val_pairs), strict=True)
            ]
            return {"val/loss": torch.cat(scored).mean()}

        def training_mode() -> None:
            encoder.train()
            if not dropout:
                for module in encoder.modules():
                    if "Dropout" in type(module).__name__ or "Stochastic" in type(module).__name__:
                        module.eval()

        return Phase(
            name=name,
            module=encoder,
            groups=groups,
            settings=settings,
            steps=composed.batches,
            batches=batches,
            loss=loss,
            validate=validate,
            rule="val_loss",
            training_mode=training_mode,
        )

    @torch.no_grad()
    def encode(self, encoder: nn.Module | None, images: ImageSet) -> Iterator[Tensor]:
        """Latents of all images in order, in batches, without augmentation; None: the inputs."""
        for pixels in images.pixels.split(EVALUATION_BATCH):
            inputs = architectures.normalise(pixels, self.architecture)
            yield encoder(inputs) if encoder is not None else inputs

    def split_groups(self, lr: float, factor: float) -> list[dict[str, Any]]:
        """The network's parameters: the new last layer at ``lr``, all others at ``lr * factor``."""
        named = list(self.network.named_parameters())
        new = [parameter for name, parameter in named if name in self.classifier]
        pretrained = [parameter for name, parameter in named if name not in self.classifier]
        return [{"params": new, "lr": lr}, {"params": pretrained, "lr": lr * factor}]

    def per_class(self, value: float | list[float], key: str) -> Tensor:
        """A scalar, or a value a class, as a tensor (C,) on the device.

        Raises:
            InputError: a list has not as many values as there are classes; it names ``key``.
        """
        values = value if isinstance(value, list) else [value] * self.classes
        if len(values) != self.classes:
            raise InputError(
                f"params.yaml: methods.{self.method}.{key}: has {len(values)} values for "
                f"{self.classes} classes; give one number, or one a class in the labels' order"
            )
        return torch.tensor(values, dtype=torch.float32, device=self.device)

    def _augmented(self, index: Tensor, generator: torch.Generator) -> Tensor:
        inputs = architectures.normalise(self.train.pixels[index], self.architecture)
        return augment(inputs, self.training.augmentation, generator)

    def _seed_dropout(self) -> None:
        # dropout can only draw from torch's own generator; nothing else here does
        torch.manual_seed(runtime.stream_seed(self.seed, "dropout"))
