"""A run: its network, data and randomness, and the kinds of phases that recipes build of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.data.batches import ImageSet, auto_batch_size
from pipeline.data.pairs import PairList
from pipeline.data.rows import Rows, keep
from pipeline.models import architectures
from pipeline.models.cut import block_ends, split
from pipeline.models.heads import Assembled
from pipeline.models.pairs import Verifier, build_pair_head
from pipeline.params import (
    Classification,
    Optimization,
    Optimizer,
    PairHead,
    Placement,
    Supervised,
    Training,
)
from pipeline.training import classification, runtime, siamese, verification
from pipeline.training.losses import LossBlock
from pipeline.training.phase import Phase, Solve, image_batches

Factor = classification.Factor
Fit = Callable[[Tensor, Tensor, int], tuple[nn.Module, dict[str, float]]]


def unchanged(name: str) -> float:
    """The learning-rate factor of a layer that learns at the phase's rate."""
    return 1.0


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
        pairs, val_pairs: positions in ``train`` and ``val``; in classification only breakdowns
            have them.
        training: what all methods share.
        seed: draws order, augmentation and dropout, each from a stream of its own.
        phases: how many phases were begun, so that each augments anew.
        placement: where latents that are kept lie; it alters no number.
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
    phases: int = 0
    placement: Placement = "auto"

    def part(self, after: str | None = None, upto: str | None = None) -> nn.Module:
        """The part of the network between two latents, sharing its parameters.

        Args:
            after: the latent that it takes; None: the images.
            upto: the latent that it gives; None: the logits.
        """
        latents = [latent for latent in (after, upto) if latent is not None]
        if not latents:
            return self.network
        return split(self.network, latents)[0 if after is None else 1]

    def before(self, latent: str | None) -> nn.Module | None:
        """The part of the network up to a latent, to be frozen; None for None."""
        return None if latent is None else self.part(upto=latent)

    def last_blocks(self, count: int) -> tuple[nn.Module | None, nn.Module]:
        """What lies before the network's last ``count`` blocks (None: nothing), and these.

        See ``pipeline.models.cut.block_ends``.
        """
        ends = block_ends(self.network)
        after = ends[-count] if count <= len(ends) else None
        return self.before(after), self.part(after=after)

    def classification(
        self,
        name: str,
        module: nn.Module,
        settings: Classification,
        frozen: nn.Module | None = None,
        lr_factor: Factor = unchanged,
        training_mode: Callable[[], object] | None = None,
    ) -> Phase:
        """A phase that trains ``module`` by cross-entropy on the training images.

        With ``frozen``, ``module`` is what follows that fixed part, which stays in evaluation
        mode; without augmentation its latents are computed once. The batch order is the same for
        every phase of a seed, the augmentation is not. Validation takes plain cross-entropy,
        whatever ``settings`` say.

        Args:
            name: of the phase.
            module: what is trained, from images or from the latents of ``frozen`` to logits.
            settings: of the optimisation.
            frozen: what lies before ``module``.
            lr_factor: a parameter's name in ``module`` to the factor of its learning rate.
            training_mode: puts ``module`` into the mode it trains in, if not ``module.train()``.
        """
        return classification.classification(
            self, name, module, settings, frozen, lr_factor, training_mode
        )

    def siamese(
        self,
        name: str,
        encoder: nn.Module,
        settings: Optimization,
        loss: LossBlock,
        frozen: nn.Module | None = None,
        dropout: bool = False,
        per_class: int | None = None,
        keep: int = 1,
        key: str = "loss",
    ) -> Phase:
        """A phase that trains ``encoder`` by a Siamese loss on its latents.

        Feature maps are flattened. The epoch is chosen by the same loss on the validation images
        or their listed pairs.

        Args:
            name: of the phase.
            encoder: what is trained, from images or from the latents of ``frozen``.
            settings: of the optimisation.
            loss: on the run's listed pairs, or on all images of a batch.
            frozen: what lies before ``encoder``.
            dropout: whether dropout and stochastic depth stay on.
            per_class: images of a class in a batch, for losses on images; None shuffles.
            keep: how many of the best epochs' states are handed back.
            key: where ``loss`` stands in the method's block, for errors.
        """
        return siamese.siamese(
            self, name, encoder, settings, loss, frozen, dropout, per_class, keep, key
        )

    def joint(
        self,
        name: str,
        latent: str,
        settings: Supervised,
        loss: LossBlock,
        weight: float,
    ) -> Phase:
        """A phase that trains all layers by cross-entropy plus ``weight`` times a Siamese loss.

        The Siamese loss is that of all images of a batch, or all their pairs, on ``latent``.
        """
        encoder, head = self.part(upto=latent), self.part(after=latent)
        inputs = next(self.encode(None, self.val))
        objective = siamese.make(self, loss, siamese.dimension(encoder, inputs), "loss")
        return classification.joint(self, name, encoder, head, settings, objective, weight)

    def solve(self, name: str, network: Assembled, fit: Fit) -> Solve:
        """A phase in which ``fit`` makes the head of ``network`` on its fixed encoder.

        Args:
            name: of the phase.
            network: with any head; it gets the one that ``fit`` makes.
            fit: latents (N, ...), labels (N,) and the number of classes to a head that gives
                logits, and what was chosen on the way. The images are not augmented.
        """
        return classification.solve(self, name, network, fit)

    def verifier(self, latent: str, head: PairHead) -> Verifier:
        """The part of the network up to ``latent`` with a new head on pairs of latents."""
        encoder = self.part(upto=latent)
        dimension = siamese.dimension(encoder, next(self.encode(None, self.val)))
        built = build_pair_head(
            head.kind, dimension, head.dropout, runtime.stream_seed(self.seed, "pair head"),
            koch=self.architecture == architectures.KOCH,
        )  # fmt: skip
        return Verifier(encoder, built).to(self.device)

    def verification(
        self,
        name: str,
        verifier: Verifier,
        settings: Optimization,
        frozen: bool = False,
        l2: Mapping[str, float] | None = None,
    ) -> Phase:
        """A phase that learns by binary cross-entropy whether listed pairs show one class.

        A batch is ``batch_size`` pairs; an image in several of them goes through the encoder once.
        ``verifier`` becomes the run's network.

        Args:
            name: of the phase.
            verifier: encoder and head.
            settings: of the optimisation.
            frozen: whether the encoder stays as it is; without augmentation its encodings are
                computed once.
            l2: layers of the encoder, by prefix, to the strength that multiplies the sum of their
                squared weights in the loss, in validation too.
        """
        return verification.verification(self, name, verifier, settings, frozen, l2 or {})

    def distance(self, name: str, verifier: Verifier) -> Solve:
        """A phase that fits scale and offset of a verifier's head; its encoder stays as it is.

        Logistic regression on the similarities of the training pairs, both kinds of equal weight.
        ``verifier`` becomes the run's network.
        """
        return verification.distance(self, name, verifier)

    def passes_of_pairs(self, settings: Optimizer) -> float:
        """Images in the batches of an epoch of listed pairs, for each training image.

        Counted in the first epoch of a phase of verification with these settings.
        """
        return verification.passes_of_pairs(self, settings)

    def passes_of_classes(self, settings: Optimizer, per_class: int) -> float:
        """Images in the batches of an epoch of ``per_class`` a class, for each training image.

        Raises:
            InputError: no second class would fit into a batch.
        """
        return siamese.passes_of_classes(self, settings, per_class)

    @torch.no_grad()
    def encode(
        self, encoder: Callable[[Tensor], Tensor] | None, images: ImageSet
    ) -> Iterator[Tensor]:
        """Latents of all images in order, in batches, without augmentation; None: the inputs."""
        for pixels in image_batches(images.pixels):
            inputs = architectures.normalise(pixels, self.architecture)
            yield encoder(inputs) if encoder is not None else inputs

    def keep(self, encoder: Callable[[Tensor], Tensor], images: ImageSet) -> Rows:
        """Latents of all images in order, computed once; see ``pipeline.data.rows.keep``.

        Raises:
            InputError: they fit neither on the device nor into a temporary file.
        """
        latents = self.encode(encoder, images)
        return keep(latents, len(images), self.device, self.placement)

    def batch_size(self, settings: Optimizer) -> int:
        """The phase's own batch size, else the shared one; ``auto`` goes by the set's size."""
        size = settings.batch_size or self.training.batch_size
        return auto_batch_size(len(self.train)) if size == "auto" else size

    def begin_phase(self) -> None:
        """Count a phase and seed torch's own generator, the only one that dropout can draw from."""
        self.phases += 1
        torch.manual_seed(runtime.stream_seed(self.seed, self._of_phase("dropout")))

    def generator(self, stream: str) -> torch.Generator:
        """The generator of one stream in the phase that was begun last."""
        return runtime.generator(self.seed, self._of_phase(stream))

    def _of_phase(self, stream: str) -> str:
        return stream if self.phases == 1 else f"{stream} {self.phases}"
