"""Losses, one file each: typed blocks of params.yaml, and the functions they make.

A loss gives a value a pair or a value an image; the loop takes their mean. This package is read
without torch.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import PlainValidator, SerializeAsAny, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from pipeline.params import nearest
from pipeline.training.losses.base import LossBlock, Objective, Setting, wrong
from pipeline.training.losses.contrastive import Contrastive, contrastive
from pipeline.training.losses.cosine import Cosine, cosine
from pipeline.training.losses.cross_entropy import balanced_weights, cross_entropy
from pipeline.training.losses.distances import rms_distance
from pipeline.training.losses.metric_learning import MetricLearning, Miner
from pipeline.training.losses.samplers import m_per_class_batches
from pipeline.training.losses.supcon import SupCon, supcon
from pipeline.training.losses.triplet import Triplet, triplet

_BLOCKS: dict[str, type[LossBlock]] = {
    "contrastive": Contrastive,
    "cosine": Cosine,
    "supcon": SupCon,
    "triplet": Triplet,
}


def names() -> list[str]:
    """Names of the project's own losses."""
    return sorted(_BLOCKS)


def _block(value: Any) -> LossBlock:
    """The block that ``name`` picks: one of ours, or with a capital a pytorch-metric-learning."""
    if isinstance(value, LossBlock):
        return value
    ours = ", ".join(names())
    if not isinstance(value, dict):
        problem = "must be a mapping such as {name: contrastive}"
        raise PydanticCustomError("loss", "{problem}", {"problem": problem})
    if "name" not in value:
        missing = InitErrorDetails(type="missing", loc=("name",), input=value)
        raise ValidationError.from_exception_data("Loss", [missing])
    name = value["name"]
    if isinstance(name, str) and name[:1].isupper():
        return MetricLearning.model_validate(value)
    if name not in names():
        hint = nearest(str(name), names())
        hint = f" ({hint})" if hint.startswith("did") else ""
        problem = f"must be one of {ours}, or a loss of pytorch-metric-learning{hint}"
        wrong(LossBlock, "name", problem, name)
    return _BLOCKS[name].model_validate(value)


Loss = Annotated[SerializeAsAny[LossBlock], PlainValidator(_block)]

__all__ = [
    "Contrastive",
    "Cosine",
    "Loss",
    "LossBlock",
    "MetricLearning",
    "Miner",
    "Objective",
    "Setting",
    "SupCon",
    "Triplet",
    "balanced_weights",
    "contrastive",
    "cosine",
    "cross_entropy",
    "m_per_class_batches",
    "names",
    "rms_distance",
    "supcon",
    "triplet",
]
