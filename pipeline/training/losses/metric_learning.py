"""Any loss of pytorch-metric-learning by its name, with its arguments and a miner."""

from __future__ import annotations

import copy
import importlib
import inspect
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from pipeline.errors import InputError
from pipeline.params import nearest, rule
from pipeline.training.losses.base import LossBlock, Named, Objective, Setting

if TYPE_CHECKING:
    from torch import Tensor, nn

# those that cannot give a loss of one batch's latents and labels
UNUSABLE = {
    "CrossBatchMemory": "it is a wrapper, and keeps latents of old batches",
    "DoNothingReducer": "it does not give one number a batch",
    "DynamicSoftMarginLoss": "its histogram stays tied to earlier batches",
    "EmbeddingsAlreadyPackagedAsTriplets": "the batches are no triplets",
    "GenericPairLoss": "it is the base of others",
    "ManifoldLoss": "it takes no labels",
    "MultipleLosses": "it is a wrapper",
    "SelfSupervisedLoss": "it is a wrapper, and takes no labels",
    "VICRegLoss": "it takes no labels",
}
KINDS = {
    "losses": "loss",
    "miners": "miner",
    "distances": "distance",
    "reducers": "reducer",
    "regularizers": "regularizer",
}
INTERNAL = {"self", "args", "kwargs", "mat_based_loss", "collect_stats"}
FROM_DATA = {"num_classes", "embedding_size", "descriptors_dim"}
FEWEST_CLASSES = 2
MOST_CLASSES = 32  # of a trial, in which the number of triplets is bounded
TRIAL_PER_CLASS = 4
TRIAL_DIMENSION = 8
HISTOGRAM_RANGE = (-1 + 1e-6, 1 - 1e-6)
NO_DIRECTION = 1e-6  # size of what stands in for the numbers of a latent of zeros

ClassName = Annotated[str, Field(pattern=r"^[A-Z][A-Za-z0-9]*$")]


def _plain(value: Any) -> Any:
    """Refuse what no record could hold: NaN, infinity, dates."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    for part in inner:
        _plain(part)
    plain = isinstance(value, dict | list | str | int | None)
    if not plain and not (isinstance(value, float) and math.isfinite(value)):
        raise rule(f"arguments: {value} must be text, a finite number, true, false or null")
    return value


Arguments = Annotated[dict[str, Any], AfterValidator(_plain)]


class Miner(Named):
    """A miner of pytorch-metric-learning, which picks the pairs or triplets of a batch."""

    name: ClassName
    arguments: Arguments = Field(default_factory=dict)


class MetricLearning(LossBlock):
    """A loss of pytorch-metric-learning: class ``name`` of its ``losses``.

    ``arguments`` are its own. Where one is a distance, reducer or regularizer, it is a mapping
    ``{name, arguments}`` too; ``weight_init_func`` is one that names a function of
    ``torch.nn.init``. The number of classes and the latent's size come from the data.

    Source: Musgrave, Belongie and Lim, "PyTorch Metric Learning" (2020).
    """

    on: ClassVar[Literal["pairs", "images"]] = "images"
    name: ClassName
    arguments: Arguments = Field(default_factory=dict)
    miner: Miner | None = None

    def learns_classes(self) -> bool:
        """Whether the library's class asks how many classes there are."""
        found = _classes("losses").get(self.name)
        return found is not None and "num_classes" in _argument_names(found)

    def check(self, key: str) -> None:
        """Make the loss and try it on a small batch, on the CPU.

        Raises:
            InputError: no such class, wrong arguments, or it needs more than latents and labels.
        """
        import torch

        cpu = torch.device("cpu")
        _try(self, Setting(FEWEST_CLASSES, TRIAL_DIMENSION, cpu, 0, key))

    def make(self, setting: Setting) -> Objective:
        """The loss with weights from the seed, once it has been tried with these sizes and device.

        It gives the batch's loss for every image, and every image counts. What it draws depends on
        the seed and the batch alone, and the global generators stay as they are. Most of these
        losses and miners make the host wait for the device at every step.

        Raises:
            InputError: as ``check``; in training, if the loss cannot take a batch.
        """
        _try(self, setting)
        return _objective(self, setting)


def _objective(block: MetricLearning, setting: Setting) -> Objective:
    """Loss and miner as one function of latents and labels."""
    import torch

    with _seeded(setting):
        loss = _build("losses", block.name, block.arguments, setting, setting.key)
        miner = None
        if block.miner is not None:
            key = f"{setting.key}.miner"
            miner = _build("miners", block.miner.name, block.miner.arguments, setting, key)
    both = torch.nn.ModuleList([loss] if miner is None else [loss, miner]).to(setting.device)

    def of_images(latents: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        # validation leaves no trace in losses that remember
        used = list(both if torch.is_grad_enabled() else copy.deepcopy(both))
        directed = _directed(latents)
        try:
            with _seeded(setting):
                mined = used[1](directed, labels) if miner is not None else None
                value = used[0](directed, labels, mined)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # assertions and more, from code that is not ours
            raise InputError(
                f"params.yaml: {setting.key}: {block.name} cannot take a batch of "
                f"{len(labels)} images: {_reason(error)}"
            ) from error
        if not isinstance(value, torch.Tensor) or value.numel() != 1:
            problem = "does not give one number a batch; use another reducer"
            raise InputError(f"params.yaml: {setting.key}: {block.name} {problem}")
        value = _without_pairs(value.reshape(()), latents, labels)
        return value.expand(len(labels)), torch.ones_like(labels, dtype=torch.bool)

    return Objective(of_images=of_images, parameters=list(both.parameters()), recordable=False)


def _directed(latents: Tensor) -> Tensor:
    """Latents of zeros as tiny constants: most losses divide by a latent's length or variance."""
    import torch

    empty = (latents == 0).all(dim=1, keepdim=True)
    odd = torch.arange(latents.shape[1], device=latents.device) % 2
    return torch.where(empty, (2 * odd - 1) * NO_DIRECTION, latents)


def _without_pairs(value: Tensor, latents: Tensor, labels: Tensor) -> Tensor:
    """The loss, but 0 where it is the mean of no pair at all, which some losses make NaN."""
    alone = (labels[:, None] == labels[None, :]).sum() == len(labels)
    return value.masked_fill(value.isnan() & alone & latents.isfinite().all(), 0.0)


def _try(block: MetricLearning, setting: Setting) -> None:
    """Two steps on a small batch; a second shows losses that stay tied to the first."""
    import torch

    trial = _objective(block, setting)
    assert trial.of_images is not None
    random = torch.Generator().manual_seed(0)
    classes = min(setting.classes, MOST_CLASSES)
    images = classes * TRIAL_PER_CLASS
    labels = (setting.classes - 1 - torch.arange(images) % classes).to(setting.device)
    for _ in range(2):
        drawn = torch.randn(images, setting.dimension, generator=random)
        latents = drawn.to(setting.device).requires_grad_()
        values, _ = trial.of_images(latents, labels)
        try:
            values.mean().backward()
        except RuntimeError as error:
            problem = f"{block.name} cannot be trained: {_reason(error)}"
            raise InputError(f"params.yaml: {setting.key}: {problem}") from error
        if latents.grad is None or not torch.isfinite(latents.grad).all():
            problem = f"{block.name} has no finite gradient with these arguments"
            raise InputError(f"params.yaml: {setting.key}: {problem}")


def _build(kind: str, name: str, arguments: dict[str, Any], setting: Setting, key: str) -> Any:
    """One of the library's modules by name."""
    where = f"params.yaml: {key}"
    usable = _classes(kind)
    if name in UNUSABLE:
        raise InputError(f"{where}.name: {name} cannot be used here: {UNUSABLE[name]}")
    if name not in usable:
        problem = f"pytorch-metric-learning has no {KINDS[kind]} '{name}'"
        raise InputError(f"{where}.name: {problem}; {nearest(name, list(usable))}")
    valid = _argument_names(usable[name])
    given = {}
    for argument, value in arguments.items():
        place = f"{key}.arguments.{argument}"
        if argument in valid & FROM_DATA:
            raise InputError(f"params.yaml: {place}: comes from the data; leave it out")
        if argument not in valid:
            hint = nearest(argument, sorted(valid - FROM_DATA))
            raise InputError(f"params.yaml: {place}: {name} has no such argument; {hint}")
        given[argument] = _value(argument, value, setting, place)
    sizes = {
        "num_classes": setting.classes,
        "embedding_size": setting.dimension,
        "descriptors_dim": setting.dimension,
    }
    given |= {size: sizes[size] for size in sorted(valid & FROM_DATA)}
    try:
        made: Any = usable[name](**given)
    except Exception as error:  # whatever the class makes of wrong values
        problem = f"{name} cannot be made with these: {_reason(error)}"
        raise InputError(f"{where}.arguments: {problem}") from error
    if name == "HistogramLoss":  # a cosine that rounding takes to one is out of its bins
        made.distance.register_forward_hook(lambda *call: call[-1].clamp(*HISTOGRAM_RANGE))
    return made


def _value(argument: str, value: Any, setting: Setting, key: str) -> Any:
    """An argument's value; mappings that name a module become that module."""
    import torch

    if argument == "weight_init_func":
        return _initialiser(value, key)
    kind = next((kind for kind, word in KINDS.items() if word in argument), None)
    if kind is None or value is None or isinstance(value, int | float):  # a regularizer's weight
        return torch.tensor(value) if argument == "weights" and value else value
    if argument == "reducers" and isinstance(value, dict):  # MultipleReducers: one a part
        return {part: _value("reducer", v, setting, f"{key}.{part}") for part, v in value.items()}
    name, arguments = _named(value, key, list(_classes(kind)))
    return _build(kind, name, arguments, setting, key)


def _initialiser(value: Any, key: str) -> Any:
    """A function of ``torch.nn.init`` as pytorch-metric-learning takes it."""
    from torch.nn import init

    valid = [each for each in vars(init) if each.endswith("_") and not each.startswith("_")]
    name, arguments = _named(value, key, valid)
    if name not in valid:
        problem = f"torch.nn.init has no '{name}'; {nearest(name, valid)}"
        raise InputError(f"params.yaml: {key}.name: {problem}")
    common = importlib.import_module("pytorch_metric_learning.utils.common_functions")
    return common.TorchInitWrapper(getattr(init, name), **arguments)


def _named(value: Any, key: str, valid: list[str]) -> tuple[str, dict[str, Any]]:
    """Name and arguments of a mapping that has these two keys."""
    if isinstance(value, dict) and isinstance(value.get("name"), str):
        arguments = value.get("arguments", {})
        if value.keys() <= {"name", "arguments"} and isinstance(arguments, dict):
            return value["name"], arguments
    raise InputError(
        f"params.yaml: {key}: must be a mapping of name ({', '.join(valid)}) and perhaps "
        f"arguments, but it is {value!r}"
    )


def _classes(kind: str) -> dict[str, type[nn.Module]]:
    """Usable classes of one of the library's packages, by name."""
    from torch import nn

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = importlib.import_module(f"pytorch_metric_learning.{kind}")
    return {
        name: found
        for name, found in sorted(vars(package).items())
        if inspect.isclass(found)
        and issubclass(found, nn.Module)
        and not name.startswith("Base")
        and name not in UNUSABLE
    }


def _argument_names(found: type) -> set[str]:
    """Names that a class or, through ``**kwargs``, its bases take."""
    names: set[str] = set()
    for base in found.__mro__:
        if "__init__" in vars(base) and base.__module__.startswith("pytorch_metric_learning"):
            names |= set(inspect.signature(base).parameters)
    return names - INTERNAL


@contextmanager
def _seeded(setting: Setting) -> Iterator[None]:
    """Torch's global generators as the seed makes them, and afterwards as they were.

    In full precision, and without the warnings of the library's old NumPy and torch calls.
    """
    import torch

    kind = setting.device.type
    devices = [setting.device] if kind == "cuda" else []
    full = torch.autocast(kind, enabled=False)
    with torch.random.fork_rng(devices), full, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.default_generator.manual_seed(setting.seed)
        for device in devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(setting.seed)
        yield


def _reason(error: Exception) -> str:
    """An exception of the library in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
