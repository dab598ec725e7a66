"""Fine-tuning end to end: all layers by cross-entropy, from the starting weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.params import Classification, NonNegative, Positive
from pipeline.recipes.base import Baseline

if TYPE_CHECKING:
    from pipeline.training.phase import Phase
    from pipeline.training.run import Run


class Finetune(Baseline, Classification):
    """Minimise ``mean_i CE(network(x_i), y_i)`` over all parameters at once.

    The pretrained part, everything but the new last layer, learns at ``lr * pretrained_lr_factor``
    (Yosinski et al., "How transferable are features in deep neural networks?", NIPS 2014). Each
    block below the last learns at ``lr_decay`` times the rate of the one above it (Howard and
    Ruder, "Universal Language Model Fine-tuning", ACL 2018, discriminative fine-tuning);
    ``lr_factors`` gives layers, by name, a factor in place of both; 0 leaves their weights, though
    not batch norm's statistics. Everything up to ``freeze_to`` stays fixed. ``freeze_batch_norm``
    keeps the statistics, scales and shifts of batch normalisation as they started.
    """

    recipe: Literal["finetune"]
    blocks_are_phases: ClassVar[bool] = True
    pretrained_lr_factor: Positive = 1.0
    lr_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    lr_factors: dict[str, NonNegative] = {}
    freeze_to: str | None = None
    freeze_batch_norm: bool = False

    def phases(self, run: Run) -> Iterator[Phase]:
        """One phase, ``end_to_end``."""
        from pipeline.models.cut import block_ends, split
        from pipeline.training.optimizers import batch_norms, longest
        from pipeline.training.siamese import train_mode

        module = run.part(after=self.freeze_to)
        blocks = reversed(split(run.network, block_ends(run.network)))
        depth = {name: deep for deep, block in enumerate(blocks) for name in block.state_dict()}
        fixed = batch_norms(module) if self.freeze_batch_norm else set()

        def lr_factor(name: str) -> float:
            if name in fixed:
                return 0.0
            chosen = longest(self.lr_factors, name)
            new = 1.0 if name in run.classifier else self.pretrained_lr_factor
            return new * self.lr_decay ** depth[name] if chosen is None else chosen

        yield run.classification(
            "end_to_end",
            module,
            self,
            frozen=run.before(self.freeze_to),
            lr_factor=lr_factor,
            training_mode=lambda: train_mode(module, batch_norm=not self.freeze_batch_norm),
        )
