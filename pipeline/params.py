"""What a run is asked: the sections of params.yaml as typed, frozen models.

The blocks under ``methods`` are typed by the recipes (``pipeline.recipes``); here they stay plain
dictionaries. ``pipeline.params_file`` reads them, ``pipeline.check`` puts the two together.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

PARAMS_FILE = "params.yaml"
METHOD_NAME = re.compile(r"[a-z][a-z0-9_]{0,99}\Z")  # a part of file names

Task = Literal["classification", "verification"]
Placement = Literal["auto", "resident", "streamed"]
Shots = int | Literal["all"]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
# of a factor: torch takes no step beyond single precision, and Adam divides a learning rate by as
# little as 0.09999
MOST = 3e37
NonNegative = Annotated[float, Field(ge=0, le=MOST)]
Positive = Annotated[float, Field(gt=0, le=MOST)]
Count = Annotated[int, Field(ge=1, le=10**9)]
BatchSize = Annotated[int, Field(ge=2)]  # batch normalisation needs two images


class Block(BaseModel):
    """Base of every block: unknown keys, wrong types, NaN and infinity are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


AnyBlock = TypeVar("AnyBlock", bound=Block)
AnyOptimization = TypeVar("AnyOptimization", bound="Optimization")


def rule(problem: str) -> PydanticCustomError:
    """What a block's validator raises where its keys do not go together; said as it stands."""
    return PydanticCustomError("rule", "{problem}", {"problem": problem})


def walk(block: Block, at: tuple[str | int, ...] = ()) -> Iterator[tuple[Any, Block]]:
    """A block and all blocks in it, each with its place."""
    yield at, block
    for name, value in block:
        for key, part in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(part, Block):
                yield from walk(part, (*at, name) if key is None else (*at, name, key))


class Splits(Block):
    """Shares of the images that become validation and test set, and the seed that draws them.

    In verification whole classes are drawn (people, characters), or with ``whole: groups`` whole
    groups of them (alphabets), where the images have groups.
    """

    val: Annotated[float, Field(gt=0, lt=1)] = 0.2
    test: Annotated[float, Field(gt=0, lt=1)] = 0.3
    seed: Seed = 0
    whole: Literal["classes", "groups"] = "classes"


class Data(Block):
    """Where the images are and how they are made ready.

    ``near_duplicates`` are told of, drawn into one split (``group``) or refused.
    ``allow_outside`` lets lists, tables and links name files outside ``data/``, whose changes DVC
    does not see. ``placement`` says where the images, and latents that are kept, lie while a run
    works: all on the device, or streamed to it batch by batch; ``auto`` streams what would take
    more than half of the device's free memory. It alters no number, and no run depends on it.
    """

    target: str
    source: str | None = None
    layout: Literal["folders", "lists", "csv", "pairs", "omniglot"] = "folders"
    image_size: Annotated[int, Field(ge=4, le=1024)]
    resize: Literal["crop", "squash", "pad"] = "crop"
    channels: Literal[1, 3] = 3
    splits: Splits = Splits()
    val_per_class: Count | None = None
    exact_duplicates: Literal["error", "drop"] = "error"
    near_duplicates: Literal["warn", "group", "refuse"] = "warn"
    shuffle_labels: bool = False
    allow_outside: bool = False
    placement: Placement = "auto"


class Episodes(Block):
    """N-way k-shot tests: which of ``ways`` classes a query shows, by ``shots`` images of each.

    Each of ``count`` episodes draws its classes, from one group where images have groups, and
    then the images of each: ``shots`` to compare with, and one query.
    """

    ways: Annotated[int, Field(ge=2)]
    shots: Count = 1
    count: Count = 100

    @property
    def name(self) -> str:
        """The set of episodes in tables, such as ``5_way_1_shot``."""
        return f"{self.ways}_way_{self.shots}_shot"


class Pairs(Block):
    """How many pairs an image, and which share of them shows one class.

    Where the layout lists pairs, these are taken and none is drawn. ``episodes`` are for
    verification, drawn from validation and test classes.
    """

    per_image: Count
    positive_fraction: Annotated[float, Field(gt=0, lt=1)]
    episodes: list[Episodes] = []


class Model(Block):
    """The network: one of our own, such as ``small``, or a torchvision classification architecture.

    In verification, a trained network's encoding of an image is the mean over ``views`` of it: as
    it is, and slightly turned, shrunk or stretched (``pipeline.tasks.verification.views``). No
    training goes by them.
    """

    architecture: str
    dropout: Fraction | None = None
    views: Literal[1, 7] = 1


class Augmentation(Block):
    """Ranges of the random changes of a training image; the defaults are none.

    ``rotation`` and ``shear`` in degrees either way, ``zoom`` as the largest relative change of
    scale, ``shift`` as the largest share of the image's side, ``crop`` as the smallest share of
    the image's area that a random crop keeps, ``elastic`` as the standard deviation of a smooth
    random displacement, a share of the image's side. ``brightness``, ``contrast`` and
    ``saturation`` as the largest relative change, ``hue`` as the largest part of the colour
    circle, ``erasing`` as the probability that a random rectangle is greyed out.

    ``turns_as_classes`` is for verification and changes no image: 4 makes each quarter turn of a
    training class a class of its own, 8 those of its mirror images as well (Santoro et al.,
    "Meta-learning with memory-augmented neural networks", ICML 2016, section 4.1).
    """

    flip: bool = False
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    zoom: Fraction = 0.0
    shear: Annotated[float, Field(ge=0, lt=90)] = 0.0
    shift: Fraction = 0.0
    crop: Annotated[float, Field(gt=0, le=1)] = 1.0
    elastic: Fraction = 0.0
    brightness: Fraction = 0.0
    contrast: Fraction = 0.0
    saturation: Fraction = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    erasing: Annotated[float, Field(ge=0, le=1)] = 0.0
    turns_as_classes: Literal[1, 4, 8] = 1

    @property
    def off(self) -> bool:
        """Whether images stay as they are."""
        return self == Augmentation(turns_as_classes=self.turns_as_classes)


class Training(Block):
    """What all methods share.

    ``batch_size`` auto is about a tenth of the training images, as a power of two from 8 to 128.
    ``passes`` counts only with ``compare.budget: matched``: images seen for each training image,
    over all phases of a run.
    """

    batch_size: BatchSize | Literal["auto"]
    passes: Count | None = None
    rule: Literal["val_loss", "val_accuracy"] = "val_loss"
    augmentation: Augmentation = Augmentation()


class Optimizer(Block):
    """By which rule a phase learns, and when it stops.

    ``weight_decays`` sets another decay for the layers whose names begin with a key, the longest
    such key; ``decay_biases`` false spares biases and normalisation layers. Schedule ``step``
    multiplies the learning rate by ``step_factor`` every ``step_every`` epochs. ``warmup`` is the
    share of all steps over which the learning rate rises from zero (``one_cycle``: to its peak,
    0.3 of them if it is 0). ``patience`` counts the epochs without an improvement of more than
    ``min_delta`` in the selection metric after which the phase ends (0: never). ``batch_size``
    null takes the shared one.
    """

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    momentum: Fraction = 0.9
    nesterov: bool = False
    weight_decay: NonNegative = 0.0
    weight_decays: dict[str, NonNegative] = {}
    decay_biases: bool = True
    schedule: Literal["constant", "step", "cosine", "one_cycle"] = "cosine"
    step_every: Count = 30
    step_factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    warmup: Fraction = 0.0
    batch_size: BatchSize | Literal["auto"] | None = None
    patience: Annotated[int, Field(ge=0)] = 0
    min_delta: NonNegative = 0.0

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> Self:
        if self.nesterov and (self.optimizer != "sgd" or not self.momentum):
            raise rule("nesterov: true needs optimizer: sgd and a momentum above 0")
        return self


class Optimization(Optimizer):
    """One phase of optimisation: how long, how fast, by which rule."""

    epochs: Count
    lr: Positive


class Rounds(Optimizer):
    """Several phases one after the other; a list gives each its own value, the last to the rest."""

    epochs: Count | Annotated[list[Count], Field(min_length=1)]
    lr: Positive | Annotated[list[Positive], Field(min_length=1)]

    def at(self, number: int, kind: type[AnyOptimization]) -> AnyOptimization:
        """The settings of one phase, from 0, as a block of ``kind``."""
        shared = {name: value for name, value in self if name in kind.model_fields}
        return kind.model_validate(
            shared | {"epochs": _nth(self.epochs, number), "lr": _nth(self.lr, number)}
        )


class CrossEntropy(Block):
    """How cross-entropy is taken.

    ``class_weights`` and ``sampler`` balanced make up for classes of different size, in the loss
    or in the images drawn.
    """

    label_smoothing: Fraction = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    sampler: Literal["shuffled", "balanced"] = "shuffled"

    @model_validator(mode="after")
    def _balanced_once(self) -> Self:
        if self.class_weights == self.sampler == "balanced":
            raise rule("class_weights and sampler balanced would correct twice; choose one")
        return self


class Classifying(CrossEntropy):
    """How a network learns to classify.

    ``mixup`` (Zhang et al., ICLR 2018) and ``cutmix`` (Yun et al., ICCV 2019) are the alpha of
    their Beta distribution, 0 is off; with both, each batch draws one.
    """

    mixup: NonNegative = 0.0
    cutmix: NonNegative = 0.0


class Supervised(Optimization, CrossEntropy):
    """A phase of cross-entropy on images as they are, or augmented, but not mixed."""


class Classification(Supervised, Classifying):
    """A phase of cross-entropy."""


class PairHead(Block):
    """What makes of two encodings the probability that they show one class.

    ``difference`` weighs the absolute differences (Koch et al., "Siamese neural networks for
    one-shot image recognition", 2015), of which ``dropout`` drops some; ``cosine`` and
    ``euclidean`` take that similarity, with a scale and an offset.
    """

    kind: Literal["difference", "cosine", "euclidean"] = "difference"
    dropout: Fraction = 0.0

    @model_validator(mode="after")
    def _dropout_of_differences(self) -> Self:
        if self.dropout and self.kind != "difference":
            raise rule(f"dropout is for kind: difference; {self.kind} has none")
        return self


class SourceTraining(Classification):
    """Training on the source set (``weights.from: source``)."""

    val: Annotated[float, Field(gt=0, lt=1)] = 0.2
    seed: Seed = 0


class Weights(Block):
    """Where the starting weights come from.

    ``file`` is a dependency that DVC watches whatever ``from`` says, so it names the folder
    ``pretrained`` until there is a file.
    """

    from_: Literal["none", "imagenet", "file", "source"] = Field(alias="from")
    file: Annotated[str, Field(min_length=1)] = "pretrained"
    source: SourceTraining | None = None


class Compare(Block):
    """Which runs are made and compared, and with what.

    ``positive`` (a class, else the last) and ``beta`` are those of precision, recall and F-beta,
    which sets of two classes get. ``smallest_effect`` is the smallest difference of the primary
    metric that would matter to the user. ``budget`` matched lets every method see
    ``training.passes`` images for each training image.
    """

    breakdowns: list[str]
    baselines: list[str]
    reference: str
    positive: str | None = None
    beta: Positive = 1.0
    shots: list[Shots] = Field(min_length=1)
    seeds: list[Seed] = Field(min_length=1)
    smallest_effect: Annotated[float, Field(gt=0, lt=1)] = 0.02
    budget: Literal["own", "matched"] = "own"

    @property
    def methods(self) -> list[str]:
        """All compared methods, breakdowns first."""
        return [*self.breakdowns, *self.baselines]


class Diagnostics(Block):
    """Where networks are looked into: ``latent``, or null for what the last layer takes in.

    In verification it is always the encoding.
    """

    latent: str | None


class Runtime(Block):
    """Device, arithmetic and the number of CPU threads, which changes the order of sums.

    ``channels_last`` lays images out pixel by pixel, which convolutions are faster with on many
    devices; sums then have another order, too. ``cuda_graphs`` records steps of one form and
    launches them whole.
    """

    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:[0-9]{1,3})?)$")] = "auto"
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    threads: Annotated[int, Field(ge=1, le=1024)]
    channels_last: bool = False
    cuda_graphs: bool = False


class Tracking(Block):
    """What goes to MLflow beside parameters and metrics.

    A phase is followed live once it has run ``live_after`` seconds (null: never); ``publish``
    brings every finished run all the same.
    """

    models: Literal["none", "reference", "all"] = "reference"
    max_model_mb: Positive = 100.0
    live_after: Annotated[float, Field(ge=0, le=1e9)] | None = 10.0


class Params(Block):
    """The whole of params.yaml; ``methods`` still untyped."""

    task: Task
    data: Data
    pairs: Pairs
    model: Model
    weights: Weights
    compare: Compare
    training: Training
    methods: dict[str, dict[str, Any]]
    diagnostics: Diagnostics
    runtime: Runtime
    tracking: Tracking = Tracking()


def nearest(word: str, valid: list[str]) -> str:
    """``; did you mean 'x'?`` or ``; valid are …`` for a wrong word."""
    close = difflib.get_close_matches(word, valid, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"valid are {', '.join(sorted(valid))}"


def _nth(values: Any, number: int) -> Any:
    return values[min(number, len(values) - 1)] if isinstance(values, list) else values
