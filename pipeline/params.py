"""params.yaml: what a run is asked. The sections as typed, frozen models, and their reader.

The blocks under ``methods`` are typed by the recipes (``pipeline.recipes``); here they stay plain
dictionaries. ``pipeline.check`` puts the two together.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    ScalarEvent,
)

from pipeline.errors import InputError

PARAMS_FILE = "params.yaml"
METHOD_NAME = re.compile(r"[a-z][a-z0-9_]{0,99}\Z")  # a part of file names
LARGEST = 1 << 17  # bytes of a file
DEEPEST = 32  # blocks within blocks

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


class Source:
    """The parsed file with its name and line numbers, to word errors with."""

    def __init__(self, path: Path, tree: Any):
        self.path = path
        self.tree = tree

    def line(self, keys: tuple[str | int, ...]) -> int | None:
        """Line (from 1) at which the value under ``keys`` starts, as far as the path exists."""
        node, found = self.tree, None
        for key in keys:
            position = getattr(node, "lc", None)
            if position is None or not position.data or key not in position.data:
                break
            found = position.data[key][0] + 1
            node = node[key]
        return found

    def error(self, keys: tuple[str | int, ...], problem: str) -> InputError:
        """An InputError ``params.yaml:LINE: a.b.c: problem``."""
        line = self.line(keys)
        where = f"{self.path}:{line}" if line else str(self.path)
        dotted = ".".join(str(key) for key in keys)
        return InputError(f"{where}: {dotted}: {problem}" if dotted else f"{where}: {problem}")


def read(path: Path | str = PARAMS_FILE) -> Source:
    """Parse a YAML 1.2 file.

    Anchors, aliases, merge keys, tags, duplicate keys and other versions are refused, and what no
    person would write: more than ``LARGEST`` bytes or ``DEEPEST`` blocks within blocks.

    Raises:
        InputError: naming the file and the line.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is no file")
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; run in the project's folder") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    if len(content) > LARGEST:
        raise InputError(f"{path}: holds more than {LARGEST >> 10} KiB; is it the right file?")
    try:
        depth = 0
        for event in YAML(typ="safe", pure=True).parse(text):
            line = event.start_mark.line + 1 if event.start_mark else "?"
            depth += isinstance(event, CollectionStartEvent)
            depth -= isinstance(event, CollectionEndEvent)
            if depth > DEEPEST:
                raise InputError(f"{path}:{line}: has more than {DEEPEST} blocks in each other")
            if problem := _unsupported(event):
                raise InputError(f"{path}:{line}: {problem}")
        reader = YAML(typ="rt", pure=True)
        tree = reader.load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else "?"
        problem = " ".join((error.problem or "not valid YAML").split())
        raise InputError(f"{path}:{line}: {problem}") from None
    except (YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise InputError(
            f"{path}: must be a mapping of task and the sections data, pairs, model, …"
        )
    return Source(path, tree)


def _unsupported(event: Event) -> str:
    """What is wrong with a part of a file that is YAML, but none for here; nothing if it is."""
    if isinstance(event, AliasEvent) or getattr(event, "anchor", None):
        return (
            "anchors and aliases are not supported (an override of an anchored value would change "
            "nothing); write the value out"
        )
    if isinstance(event, DocumentStartEvent) and event.version not in (None, (1, 2)):
        return "is read as YAML 1.2; remove the line %YAML"
    if isinstance(event, ScalarEvent) and event.value == "<<" and event.implicit[0]:
        return "merge keys are not supported; write the values out"
    if getattr(event, "tag", None) and not getattr(event, "implicit", (True,)):
        return "YAML tags are not supported; remove the tag"
    return ""


def plain(node: Any) -> Any:
    """The parser's node as plain dict, list, str, int, float, bool or None."""
    if isinstance(node, dict):
        return {plain(key): plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [plain(value) for value in node]
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


def parse(
    schema: type[AnyBlock], value: Any, source: Source, at: tuple[str | int, ...] = ()
) -> AnyBlock:
    """``value`` as a ``schema``; the first error is worded with its place and the nearest key.

    Raises:
        InputError: naming the file, line and key.
    """
    try:
        return schema.model_validate(value)
    except ValidationError as invalid:
        first = min(
            map(_at_discriminator, invalid.errors()), key=lambda e: e["type"] != "extra_forbidden"
        )
        raise source.error(at + _place(first["loc"], value), _problem(schema, first)) from None


def nearest(word: str, valid: list[str]) -> str:
    """``; did you mean 'x'?`` or ``; valid are …`` for a wrong word."""
    close = difflib.get_close_matches(word, valid, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"valid are {', '.join(sorted(valid))}"


def _nth(values: Any, number: int) -> Any:
    return values[min(number, len(values) - 1)] if isinstance(values, list) else values


def _place(keys: tuple[str | int, ...], value: Any) -> tuple[str | int, ...]:
    """The keys that there are in ``value``, and one that is missing at their end.

    pydantic adds the tried branch of a union, such as ``int`` or ``list[str]``, to the place.
    """
    found: list[str | int] = []
    for number, key in enumerate(keys):
        inside = isinstance(value, dict) and key in value
        inside = inside or (isinstance(value, list) and key in range(len(value)))
        if inside:
            value = value[key]
        if inside or (number == len(keys) - 1 and isinstance(value, dict) and key != "[key]"):
            found.append(key)
    return tuple(found)


def _at_discriminator(error: Any) -> Any:
    """An error of the word that tells the blocks of a union apart, with that word's place."""
    if error["type"] not in ("union_tag_not_found", "union_tag_invalid"):
        return error
    place = (*error["loc"], error["ctx"]["discriminator"].strip("'"))
    kind = error["type"].replace("union_tag_not_found", "missing")
    return {**error, "loc": place, "type": kind}


def _problem(schema: type[Block], error: Any) -> str:
    place, kind = error["loc"], error["type"]
    if kind == "extra_forbidden":
        return f"unknown key; {nearest(str(place[-1]), _keys(schema, place[:-1]))}"
    if kind == "rule":
        return error["msg"]
    if kind == "missing":
        choices = ", ".join(_choices(schema, place))
        return f"is missing; valid are {choices}" if choices else "is missing; it has no default"
    if kind == "union_tag_invalid":
        word = error["ctx"]["tag"]
        return f"there is no '{word}'; {nearest(word, _choices(schema, place))}"
    if place[-1:] == ("[key]",):
        return "must be a name, in small letters, digits and _"
    if place[0:2] == ("compare", "shots") and len(place) > 2:
        return f"must be a whole number or all, but it is {error['input']!r}"
    given = repr(error["input"])
    given = given if len(given) <= 60 else given[:57] + "…"
    return f"{error['msg'][0].lower()}{error['msg'][1:]}, but it is {given}"


def _keys(schema: type[Block], place: tuple[str | int, ...]) -> list[str]:
    """The keys of the block at ``place``; where it may be one of several, those of all of them."""
    fields = [field for block in _blocks_at(schema, place) for field in block.model_fields.items()]
    return list(dict.fromkeys(field.alias or name for name, field in fields))


def _choices(schema: type[Block], place: tuple[str | int, ...]) -> list[str]:
    """The words that the value at ``place`` is chosen from; none if it is no such value."""
    *above, key = place
    return [
        word
        for block in _blocks_at(schema, tuple(above))
        for name, field in block.model_fields.items()
        if key in (name, field.alias)
        for word in _words(field.annotation)
    ]


def _blocks_at(schema: type[Block], place: tuple[str | int, ...]) -> list[type[Block]]:
    """The blocks that may stand at ``place``, of several the one that pydantic names in it.

    It names it after its key, by the value of the discriminator, or without one by the class.
    """
    blocks = [schema]
    for key in place:
        if len(blocks) > 1:
            blocks = [block for block in blocks if key in _names(block)] or blocks
            continue
        for name, field in blocks[0].model_fields.items():
            if key in (name, field.alias):
                blocks = list(_blocks_in(field.annotation)) or blocks
                break
    return blocks


def _blocks_in(annotation: Any) -> Iterator[type[Block]]:
    """The blocks that an annotation such as ``list[A | B] | None`` names."""
    if isinstance(annotation, type) and issubclass(annotation, Block):
        yield annotation
    for part in get_args(annotation):
        yield from _blocks_in(part)


def _names(block: type[Block]) -> set[str]:
    """What pydantic may call a block of a union: its class, or the word of a literal field."""
    words = (_words(field.annotation) for field in block.model_fields.values())
    return {block.__name__}.union(*words)


def _words(annotation: Any) -> list[str]:
    return [str(word) for word in get_args(annotation)] if get_origin(annotation) is Literal else []
