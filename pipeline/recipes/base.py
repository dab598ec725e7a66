"""What a recipe is: the typed fields of its method block, and the phases it trains in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pipeline.errors import InputError
from pipeline.params import PARAMS_FILE, Block, Optimization, Task, walk

if TYPE_CHECKING:  # recipes are read without torch, to check params.yaml in no time
    from torch import nn

    from pipeline.training.budget import Budget
    from pipeline.training.phase import Phase, Solve
    from pipeline.training.run import Run


class Recipe(Block):
    """A way of training. Its fields are the keys that a method of this recipe may have.

    ``latent`` and ``freeze_to``, here or in a block of the recipe, are checked to name modules at
    which the network can be cut.
    """

    recipe: str
    uses_start: ClassVar[bool] = True  # whether the network gets the starting weights
    # whether each block with ``epochs`` is one phase, each epoch of which has every image once
    blocks_are_phases: ClassVar[bool] = False

    @property
    def task(self) -> Task:
        """What a method with these settings learns."""
        return "classification"

    def epochs_in_all(self) -> int:
        """Epochs of all phases together, for the plan."""
        blocks = [self, *(value for _, value in self)]
        return sum(block.epochs for block in blocks if isinstance(block, Optimization))

    def matched(self, budget: Budget) -> Self:
        """The same method with the epochs that a budget gives it, in the proportion of its own.

        Where ``blocks_are_phases``, every block gets its share; other recipes say it themselves.
        One that is solved in closed form looks at each image once and stays as it is. With
        ``patience`` a phase may use less.

        Raises:
            InputError: naming the least budget that would do; the recipe does not say how it is
                matched.
        """
        if problem := self.unmatched():
            raise InputError(f"{PARAMS_FILE}: methods.{budget.method}.recipe: {problem}")
        own: list[int] = [self.epochs] if isinstance(self, Optimization) else []
        blocks = {name: value for name, value in self if isinstance(value, Optimization)}
        if not own and not blocks:
            return self
        epochs = budget.share([*own, *(block.epochs for block in blocks.values())])
        changes: dict[str, Any] = {"epochs": epochs.pop(0)} if own else {}
        for (name, block), count in zip(blocks.items(), epochs, strict=True):
            changes[name] = block.model_copy(update={"epochs": count})
        return self.model_copy(update=changes)

    def unmatched(self) -> str | None:
        """What is wrong with the recipe where no ``matched`` of it knows its phases, else None."""
        said = self.blocks_are_phases or type(self).matched is not Recipe.matched
        if said or not any(hasattr(block, "epochs") for _, block in walk(self)):
            return None
        return (
            f"{self.recipe} does not say how a matched budget becomes epochs of its phases; define "
            f"matched in pipeline/recipes/{self.recipe}.py, or blocks_are_phases = True where each "
            "block with epochs is one phase; or set compare.budget to own"
        )

    def cuts(self) -> Iterator[tuple[tuple[str | int, ...], list[str]]]:
        """Latents at which the network must come apart, in order, and where each list stands."""
        for place, block in walk(self):
            latents = getattr(block, "latent", [])
            latents = [latents] if isinstance(latents, str) else latents
            if latents:
                yield (*place, "latent"), latents
            if (frozen := getattr(block, "freeze_to", None)) is not None:
                yield (*place, "freeze_to"), [frozen, *latents[:1]]

    def fit_to(self, network: nn.Module) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """What else does not fit a network: the places of keys, and what is wrong with each."""
        yield from ()

    def layers(self, block: Block, network: nn.Module) -> nn.Module:
        """The module whose layers a block's ``weight_decays`` and ``lr_factors`` name."""
        return network

    def restore(self, network: nn.Module, path: Path) -> nn.Module:
        """The trained network, from one newly built and the run's ``model.safetensors``."""
        from pipeline.models import weights

        weights.restore(network, path)
        return network


class Baseline(Recipe):
    """A recipe that is trained in one stage, whatever its phases."""

    def phases(self, run: Run) -> Iterator[Phase | Solve]:
        """The phases in order; each is trained before the next is asked for."""
        raise NotImplementedError


class Breakdown(Recipe):
    """A recipe that is trained in two stages, with blocks ``encoder`` and ``head`` of its own."""

    encoder: Block
    head: Block

    def encoder_module(self, run: Run) -> nn.Module:
        """The part of ``run.network`` that the encoder stage trains."""
        raise NotImplementedError

    def encoder_phases(self, run: Run) -> Iterator[Phase]:
        """The phases before the cut; they need ``run.pairs``.

        The states that the last of them keeps are the encoders that get a head each.
        """
        raise NotImplementedError

    def head_phases(self, run: Run) -> Iterator[Phase]:
        """The phases after the cut, on an encoder as it was left."""
        raise NotImplementedError
