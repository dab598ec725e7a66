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

NO_PASSES = (
    "is null, but compare.budget is matched; give the images that count for each training image, "
    "such as the epochs of the longest method"
)


@dataclass(frozen=True)
class Budget:
    """What each method may use, and what the epochs of a run cost.

    Attributes:
        passes: images that count for each training image, over all phases.
        method: its name, for errors.
        blocks: how many the network has (``pipeline.models.cut.block_ends``, and the last).
        of_pairs: a phase's settings to how many images an epoch of listed pairs counts for each
            training image; an image in several pairs of a batch counts once.
        of_classes: a phase's settings and its images of a class in a batch to how many images an
            epoch of such batches counts for each training image.
    """

    passes: int
    method: str
    blocks: int
    of_pairs: Callable[[Optimizer], float]
    of_classes: Callable[[Optimizer, int], float]

    def share(self, epochs: Sequence[int], costs: Sequence[float] | None = None) -> list[int]:
        """All passes on phases of whole epochs, in the proportion of their own ``epochs``.

        Args:
            epochs: of each phase.
            costs: passes of an epoch of each phase; None: one.

        Raises:
            InputError: there are fewer passes than an epoch of each phase counts.
        """
        self.require(math.ceil(sum(costs or [1] * len(epochs))))
        return apportion(self.passes, epochs, costs=costs)

    def halves(
        self, first: Sequence[int], costs: Sequence[float], least: int, needed: int, times: int
    ) -> tuple[list[int], float]:
        """The passes on two stages, half each, whatever the epochs of the second are.

        So the second may change without the first. What it cannot use, being done several times
        over, is the first's; what whole epochs of the first are over or under is the second's.

        Args:
            first: the own epochs of the first stage's phases.
            costs: passes of an epoch of each of them.
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
        fewest = _passes(lows, costs)
        self.require(max(2 * times * needed, math.ceil(fewest + times * needed)))
        second = int(min(self.passes / 2, self.passes - fewest) / times)
        epochs = apportion(self.passes - times * second, first, lows, costs)
        return epochs, (self.passes - _passes(epochs, costs)) / times

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
        raise InputError(f"{PARAMS_FILE}: training.passes: {NO_PASSES}")
    return params.training.passes


def recorded_training(params: Params) -> dict[str, Any]:
    """The section ``training`` as a record has it: ``passes`` only where they count."""
    asked = params.training.model_dump()
    if passes_of(params) is None:
        del asked["passes"]
    return asked


def apportion(
    total: float,
    weights: Sequence[int],
    least: Sequence[int] | None = None,
    costs: Sequence[float] | None = None,
) -> list[int]:
    """Whole numbers in the proportion of weights whose costs come nearest to a total.

    Where each costs one, they sum to the total: largest remainders (Hamilton's method). Else no
    number could be one more or less and bring the sum nearer. Of equal remainders the earlier is
    rounded up.

    Args:
        total: what the numbers, each times its cost, come to.
        weights: positive.
        least: of each number, even where they come to more than the total; None: one.
        costs: of one of each, positive; None: one.
    """
    least, costs = least or [1] * len(weights), costs or [1] * len(weights)
    whole = _passes(weights, costs)
    quotas = [total * weight / whole for weight in weights]
    found = [max(low, int(quota)) for low, quota in zip(least, quotas, strict=True)]
    places = range(len(weights))

    def nearer(place: int, step: int) -> bool:
        over = _passes(found, costs) - total
        allowed = step > 0 or found[place] > least[place]
        return allowed and abs(over + step * costs[place]) < abs(over)

    def remainder(change: tuple[int, int]) -> float:
        place, step = change
        return step * (quotas[place] - found[place])

    while changes := [(n, step) for n in places for step in (1, -1) if nearer(n, step)]:
        place, step = max(changes, key=remainder)
        found[place] += step
    return found


def _passes(epochs: Sequence[int], costs: Sequence[float]) -> float:
    return sum(count * cost for count, cost in zip(epochs, costs, strict=True))


def one_or_list(epochs: list[int]) -> int | list[int]:
    """Epochs of several phases as a block has them: one number where all are equal."""
    return epochs[0] if len(set(epochs)) == 1 else epochs
