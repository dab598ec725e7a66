"""What a loss is: a block of params.yaml that makes functions of latents. Read without torch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from pipeline.params import Block, nearest

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    PairLoss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    ImageLoss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Setting:
    """What a loss needs to know of its phase.

    Attributes:
        classes: how many there are.
        dimension: size of a flattened latent.
        device: where latents and labels are.
        seed: of the loss's own weights and draws.
        key: its place in params.yaml, such as ``methods.breakdown.encoder.loss``, for errors.
    """

    classes: int
    dimension: int
    device: torch.device
    seed: int
    key: str


@dataclass(frozen=True)
class Objective:
    """A loss ready for training: a function of pairs or of images, never both.

    Attributes:
        of_pairs: latents left and right (P, D), class of the left image (P,) and whether the pair
            shows one class (P,) bool, to a loss a pair (P,).
        of_images: latents (B, D) and labels (B,) to a loss an anchor (B,) and which anchors
            count (B,) bool; one that does not count has loss 0. The batch's loss is
            ``(losses * counts).sum() / counts.sum().clamp(min=1)``.
        parameters: the loss's own, to be trained with the network.
        recordable: whether the same shapes make the same operations, as a CUDA graph needs.
    """

    of_pairs: PairLoss | None = None
    of_images: ImageLoss | None = None
    parameters: list[nn.Parameter] = field(default_factory=list)
    recordable: bool = True

    def __post_init__(self) -> None:
        assert (self.of_pairs is None) != (self.of_images is None)


class Named(Block):
    """A block that is told from others by its ``name``; an unknown key is worded by the block."""

    name: str

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: Any) -> Any:
        # a reader of the whole file cannot tell which block's keys would have been right
        for key in value if isinstance(value, dict) else ():
            if key not in cls.model_fields:
                valid = list(cls.model_fields)
                problem = f"must be a key of {cls.__name__} ({nearest(str(key), valid)})"
                if "arguments" in valid and "name" in value:
                    problem = f"must stand under arguments if it is one of {value['name']}'s"
                wrong(cls, key, problem)
        return value


class LossBlock(Named):
    """A loss on latents and its settings."""

    on: ClassVar[Literal["pairs", "images"]]

    def learns_classes(self) -> bool:
        """Whether it learns weights of its own for each training class, such as proxies."""
        return False

    def check(self, key: str) -> None:
        """Check what only torch can tell; ``key`` is the block's place in params.yaml.

        Raises:
            InputError: the loss cannot be made of these settings.
        """

    @abstractmethod
    def make(self, setting: Setting) -> Objective:
        """The loss as functions of latents.

        Raises:
            InputError: the settings do not fit the number of classes or the latent.
        """


def wrong(schema: type[Block], key: str, problem: str, given: Any = None) -> None:
    """Report the value under ``key`` as a pydantic error.

    Args:
        schema: the block that is read.
        key: in the block.
        problem: what would be right; ``, but it is …`` follows it.
        given: what it is; by default the key.

    Raises:
        ValidationError: always.
    """
    error = PydanticCustomError("loss", "{problem}", {"problem": problem})
    shown = key if given is None else given
    raise ValidationError.from_exception_data(
        schema.__name__, [InitErrorDetails(type=error, loc=(key,), input=shown)]
    )
