"""Fine-tuning end to end: all layers by cross-entropy, from the starting weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pipeline.params import Optimization, Positive
from pipeline.recipes.base import Baseline

if TYPE_CHECKING:
    from pipeline.training.phase import Phase
    from pipeline.training.run import Run


class Finetune(Baseline, Optimization):
    """Minimise ``mean_i CE(network(x_i), y_i)`` over all parameters at once.

    The pretrained part, everything but the new last layer, learns at ``lr * pretrained_lr_factor``.
    Source: Yosinski et al., "How transferable are features in deep neural networks?" (NIPS 2014).
    """

    recipe: Literal["finetune"]
    pretrained_lr_factor: Positive = 1.0

    def phases(self, run: Run) -> Iterator[Phase]:
        """One phase, ``end_to_end``."""
        groups = run.split_groups(self.lr, self.pretrained_lr_factor)
        yield run.classification("end_to_end", run.network, groups, self)
