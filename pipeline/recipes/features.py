"""Frozen features: the starting weights up to a latent, and a classifier fitted on top."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pipeline.errors import InputError
from pipeline.params import (
    Block,
    Classification,
    Count,
    Fraction,
    PairHead,
    Positive,
    Task,
    rule,
)
from pipeline.recipes.base import Baseline

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pipeline.training.phase import Phase, Solve
    from pipeline.training.run import Run


class Linear(Block):
    """Softmax regression with an L2 penalty of strength 1 / ``c``."""

    kind: Literal["linear"]
    c: Positive | None = None
    balanced: bool = False


class SVM(Block):
    """Support vector machines, one class against the rest, with Platt's probabilities."""

    kind: Literal["svm"]
    kernel: Literal["linear", "rbf"] = "linear"
    c: Positive | None = None
    gamma: Positive | None = None
    balanced: bool = False

    @model_validator(mode="after")
    def _gamma_is_of_rbf(self) -> Self:
        if self.gamma is not None and self.kernel != "rbf":
            raise rule("gamma is for kernel: rbf; a linear kernel has none")
        return self


class Neighbours(Block):
    """The votes of the ``k`` nearest training images."""

    kind: Literal["knn"]
    k: Count | None = None
    balanced: bool = False


class Distance(Block):
    """Verification: the ``metric`` of two encodings, its scale and offset fitted to the pairs."""

    kind: Literal["distance"]
    metric: Literal["cosine", "euclidean"] = "cosine"


class MLP(Classification):
    """A hidden layer of ``units``, then the classifier; trained step by step."""

    kind: Literal["mlp"]
    units: Count = 256
    dropout: Fraction = 0.0


Head = Annotated[Linear | SVM | Neighbours | MLP | Distance, Field(discriminator="kind")]


class Features(Baseline):
    """Fit a classifier on the latents of the network with its starting weights, which stay fixed.

    ``latent`` may be any layer at which the network can be cut; ``pool: average`` takes the mean
    of each feature map. ``c``, ``gamma`` and ``k`` that are null are chosen by cross-validation
    inside the training images (``pipeline.training.solve``). Source: Razavian et al., "CNN
    Features off-the-shelf" (CVPR workshops 2014).
    """

    recipe: Literal["features"]
    blocks_are_phases: ClassVar[bool] = True
    latent: str
    head: Head
    pool: Literal["none", "average"] = "none"

    @model_validator(mode="after")
    def _pool_is_of_classifiers(self) -> Self:
        if self.task == "verification" and self.pool != "none":
            raise rule("pool is for heads that classify; name a latent behind the pooling")
        return self

    @property
    def task(self) -> Task:
        """By the head."""
        return "verification" if isinstance(self.head, Distance) else "classification"

    def phases(self, run: Run) -> Iterator[Phase | Solve]:
        """One phase: ``solve``, or ``head`` for an ``mlp``."""
        if isinstance(self.head, Distance):
            yield run.distance("solve", run.verifier(self.latent, PairHead(kind=self.head.metric)))
        else:
            yield self._classifier(run)

    def _classifier(self, run: Run) -> Phase | Solve:
        from torch import nn

        from pipeline.models.heads import Assembled, MLPHead, flatten
        from pipeline.training import runtime

        encoder = run.part(upto=self.latent)
        if not isinstance(self.head, MLP):
            run.network = Assembled(encoder, nn.Identity())
            return run.solve("solve", run.network, partial(self._fit, run.method))
        latents = flatten(encoder.eval()(next(run.encode(None, run.val))[:1]), self.pool)
        seed = runtime.stream_seed(run.seed, "initialisation")
        head = MLPHead(latents.shape[1], self.head.units, run.classes, seed, self.head.dropout)
        run.network = Assembled(encoder, head.to(run.device))
        return run.classification("head", head, self.head, frozen=encoder)

    def layers(self, block: Block, network: nn.Module) -> nn.Module:
        """Those of the head, which is all that is trained."""
        from pipeline.models.heads import MLPHead

        return MLPHead(1, 1, 2, seed=0) if isinstance(block, MLP) else network

    def restore(self, network: nn.Module, path: Path) -> nn.Module:
        """The encoder of ``network`` with the head that the file holds."""
        from pipeline.models import weights
        from pipeline.models.cut import cut
        from pipeline.models.heads import Assembled, restore_head
        from pipeline.models.pairs import restore_verifier

        if isinstance(self.head, Distance):
            return restore_verifier(network, self.latent, self.head.metric, path)
        tensors = weights.load(path)
        own = {
            key.removeprefix("head."): of for key, of in tensors.items() if key.startswith("head.")
        }
        assembled = Assembled(cut(network, self.latent)[0], restore_head(self.head.kind, own))
        weights.restore(assembled, path)
        return assembled

    def _fit(
        self, method: str, latents: Tensor, labels: Tensor, classes: int
    ) -> tuple[nn.Module, dict[str, float]]:
        try:
            return self._fitted(latents, labels, classes)
        except InputError as error:
            raise InputError(f"params.yaml: methods.{method}: {error}") from None

    def _fitted(
        self, latents: Tensor, labels: Tensor, classes: int
    ) -> tuple[nn.Module, dict[str, float]]:
        from pipeline.models.heads import flatten
        from pipeline.training import solve

        rows, of = flatten(latents, self.pool).cpu().numpy(), labels.cpu().numpy()
        head = self.head
        if isinstance(head, Linear):
            return solve.fit_linear(rows, of, classes, head.c, head.balanced)
        if isinstance(head, SVM):
            return solve.fit_svm(rows, of, classes, head.kernel, head.c, head.gamma, head.balanced)
        assert isinstance(head, Neighbours)
        return solve.fit_knn(rows, of, classes, head.k, head.balanced)
