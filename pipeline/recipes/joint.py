"""Cross-entropy and a Siamese loss together, in one phase."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from pipeline.params import NonNegative, Supervised
from pipeline.recipes.base import Baseline
from pipeline.training.losses import Contrastive, Loss

if TYPE_CHECKING:
    from pipeline.training.phase import Phase
    from pipeline.training.run import Run


class Joint(Baseline, Supervised):
    """Minimise ``mean_i CE(network(x_i), y_i) + weight * L(encoder(x))`` over all parameters.

    ``L`` is the Siamese loss over all images of a batch, or all their pairs, on ``latent``. The
    epoch is chosen by cross-entropy, as in the other methods. Source: Sun et al., "Deep Learning
    Face Representation by Joint Identification-Verification" (NIPS 2014), equation 6.
    """

    recipe: Literal["joint"]
    blocks_are_phases: ClassVar[bool] = True
    latent: str
    loss: Loss = Contrastive(name="contrastive")
    weight: NonNegative = 1.0

    def phases(self, run: Run) -> Iterator[Phase]:
        """One phase, ``joint``."""
        yield run.joint("joint", self.latent, self, self.loss, self.weight)
