"""The breakdown's control: its two phases, but with cross-entropy in both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from pipeline.params import Classification
from pipeline.recipes.base import Baseline

if TYPE_CHECKING:
    from pipeline.training.phase import Phase
    from pipeline.training.run import Run


class Encoder(Classification):
    """The whole network, trained end to end, of which the part before ``latent`` is kept."""

    latent: str


class RetrainedHead(Baseline):
    """Train end to end by cross-entropy, fix the encoder, and train the head anew.

    The head begins as the breakdown's does, so what the breakdown gains over this is what its
    Siamese loss gives; what this gains over fine-tuning is what two phases give. Classifiers
    retrained on fixed features: Kang et al., "Decoupling Representation and Classifier for
    Long-Tailed Recognition" (ICLR 2020).
    """

    recipe: Literal["retrained_head"]
    blocks_are_phases: ClassVar[bool] = True
    encoder: Encoder
    head: Classification

    def phases(self, run: Run) -> Iterator[Phase]:
        """Two phases, ``end_to_end`` and ``head``."""
        from pipeline.training.loop import snapshot

        head = run.part(after=self.encoder.latent)
        start = snapshot(head)
        yield run.classification("end_to_end", run.network, self.encoder)
        head.load_state_dict(start)
        frozen = run.before(self.encoder.latent)
        yield run.classification("head", head, self.head, frozen=frozen)
