"""params.yaml as a file: how it is read, and where in it what is wrong.

What is read are the values that DVC reads, or an error: a change of it reruns no training.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError
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
from pipeline.params import PARAMS_FILE, AnyBlock, Block, nearest

LARGEST = 1 << 17  # bytes of a file
DEEPEST = 32  # blocks within blocks
BREAK = re.compile("[\x85\u2028\u2029]")  # a line break for libyaml, none for YAML 1.2


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

    Anchors, aliases, merge keys, tags, duplicate keys and other versions are refused, what DVC
    could not read or would read otherwise, and what no person would write: more than ``LARGEST``
    bytes or ``DEEPEST`` blocks within blocks.

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
    if found := BREAK.search(text):
        before = text[: found.start()].count("\n")
        raise InputError(
            f"{path}:{before + 1}: holds the character U+{ord(found[0]):04X}, where DVC would end "
            "the line; remove it, or write its code in double quotes"
        )
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
        YAML(typ="safe").load(text)  # as DVC does, by libyaml, which takes less
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
    if getattr(event, "tag", None):
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
