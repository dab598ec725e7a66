"""The matched budget: every method passes as many images, whatever its own epochs say.

What counts is ``cost/images_seen``: an image counts once for each batch that it is in, in every
phase, whether it goes through the whole network, through a part of it, or comes as a latent that
was computed once. Read without torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import InputError
from pipeline.params import PARAMS_FILE, Optimizer, Params


@dataclass(frozen=True)
class Budget:
    """What each method may use, and what the epochs of a run cost.

    Attributes:
        passes: images that count for each training image, over all phases.
        method: its name, for errors.
        blocks: how many the network has (``pipeline.models.cut.block_ends``, and the last).
        of_pairs: a phase's settings to how many images an epoch of listed pairs counts for each
            training image; an image in several pairs of a batch counts once.
    """

    passes: int
    method: str
    blocks: int
    of_pairs: Callable[[Optimizer], float]

    def share(self, epochs: Sequence[int]) -> list[int]:
        """All passes on phases of whole epochs, in the proportion of their own ``epochs``.

        Raises:
            InputError: there are fewer passes than phases.
        """
        self.require(len(epochs))
        return apportion(self.passes, epochs)

    def epochs_of_pairs(self, settings: Optimizer) -> int:
        """All passes on epochs of listed pairs, as nearly as whole epochs come to them.

        Raises:
            InputError: there are fewer passes than one epoch counts.
        """
        one = self.of_pairs(settings)
        self.require(math.ceil(one))
        return round(self.passes / one)

    def halves(
        self, first: Sequence[int], least: int, needed: int, times: int
    ) -> tuple[list[int], int]:
        """The passes on two stages, half each, whatever the epochs of the second are.

        So the second may change without the first. What it cannot use, being done several times
        over, is the first's.

        Args:
            first: the own epochs of the first stage's phases.
            least: epochs that the last of them needs.
            needed: passes that the second stage needs each time.
            times: how often it is done.

        Returns:
            the epochs of the first stage's phases, in the proportion of their own, and the passes
            of the second stage, each time.

        Raises:
            InputError: there are fewer passes than phases need.
        """
        lows = [1] * (len(first) - 1) + [least]
        self.require(max(2 * times * needed, sum(lows) + times * needed))
        second = min(self.passes // 2, self.passes - sum(lows)) // times
        return apportion(self.passes - times * second, first, lows), second

    def require(self, least: int) -> None:
        """Refuse a budget that is too small.

        Raises:
            InputError: naming the key and the least that would do.
        """
        if self.passes < least:
            raise InputError(
                f"{PARAMS_FILE}: training.passes: {self.passes} are too few for methods."
                f"{self.method}, each of whose phases needs an epoch; give {least} or more"
            )


def passes_of(params: Params) -> int | None:
    """Passes that every method gets; None where each has its own budget.

    Raises:
        InputError: the budget is matched, but to no number of passes.
    """
    if params.compare.budget == "own":
        return None
    if params.training.passes is None:
        raise InputError(
            f"{PARAMS_FILE}: training.passes: is null, but compare.budget is matched; give the "
            "images that count for each training image, such as the epochs of the longest method"
        )
    return params.training.passes


def recorded_training(params: Params) -> dict[str, Any]:
    """The section ``training`` as a record has it: ``passes`` only where they count."""
    asked = params.training.model_dump()
    if passes_of(params) is None:
        del asked["passes"]
    return asked


def apportion(total: int, weights: Sequence[int], least: Sequence[int] | None = None) -> list[int]:
    """Whole numbers in the proportion of weights that sum to a total: largest remainders.

    Of equal remainders the earlier is rounded up first (Hamilton's method).

    Args:
        total: no less than the sum of ``least``.
        weights: positive.
        least: of each number; None: one.
    """
    least = least or [1] * len(weights)
    quotas = [total * weight / sum(weights) for weight in weights]
    found = [max(low, int(quota)) for low, quota in zip(least, quotas, strict=True)]
    places = range(len(weights))
    while sum(found) < total:
        found[max(places, key=lambda n: quotas[n] - found[n])] += 1
    while sum(found) > total:
        over = [n for n in places if found[n] > least[n]]
        found[max(over, key=lambda n: found[n] - quotas[n])] -= 1
    return found


def one_or_list(epochs: list[int]) -> int | list[int]:
    """Epochs of several phases as a block has them: one number where all are equal."""
    return epochs[0] if len(set(epochs)) == 1 else epochs
