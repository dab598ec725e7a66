"""A machine with PyTorch alone: settings without their checks, where pydantic is not installed.

Rows of the tables write their settings in code, right as they stand; what they need of pydantic is
that a block is made of keys and values, with defaults, and blocks within it of mappings. That is
here. Nothing is checked, so that whatever reads a file must not go by it.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType, UnionType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Self,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

NONE = object()  # no default


def stand_in() -> None:
    """Let ``pydantic`` be what is here, where it is not installed."""
    if importlib.util.find_spec("pydantic") is not None:
        return
    pydantic, core = ModuleType("pydantic"), ModuleType("pydantic_core")
    vars(pydantic).update(
        BaseModel=BaseModel,
        ConfigDict=dict,
        Field=Field,
        PlainValidator=PlainValidator,
        AfterValidator=Unchecked,
        SerializeAsAny=Unchecked,
        ValidationError=ValueError,
        model_validator=lambda **_: lambda validator: validator,
    )
    vars(core).update(InitErrorDetails=dict, PydanticCustomError=ValueError)
    for module in (pydantic, core):
        module.__spec__ = ModuleSpec(module.__name__, None)  # it is found from now on
        sys.modules[module.__name__] = module


class Unchecked:
    """What checks a value or says how it is written, of which nothing is done."""

    def __init__(self, *_: Any):
        """Whatever it is given."""

    def __class_getitem__(cls, kind: Any) -> Any:
        return kind


@dataclass(frozen=True)
class PlainValidator:
    """Makes a value of what is given, in place of the annotation."""

    make: Callable[[Any], Any]


class Field:
    """A field's default and its name in files; its bounds are not kept."""

    def __init__(self, default: Any = NONE, alias: str | None = None, **_: Any):
        """As pydantic's, of which the rest is left out."""
        self.default, self.alias = default, alias
        self.annotation: Any = None


class BaseModel:
    """A block: its annotations are its fields."""

    model_fields: ClassVar[dict[str, Field]] = {}

    def __init_subclass__(cls) -> None:
        cls.model_fields = {}
        for name, annotation in get_type_hints(cls, include_extras=True).items():
            if get_origin(annotation) is ClassVar:
                continue
            given = next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), NONE)
            field = Field(given.default, given.alias) if isinstance(given, Field) else Field(given)
            field.annotation = annotation
            cls.model_fields[name] = field

    def __init__(self, **given: Any):
        known = {field.alias or name for name, field in self.model_fields.items()}
        if unknown := given.keys() - known - self.model_fields.keys():
            raise TypeError(f"{type(self).__name__} has no {', '.join(sorted(unknown))}")
        for name, field in self.model_fields.items():
            value = given.get(field.alias or name, given.get(name, field.default))
            if value is NONE:
                raise TypeError(f"{type(self).__name__} needs {name}")
            self.__dict__[name] = _made(field.annotation, value)

    @classmethod
    def model_validate(cls, value: Any) -> Self:
        """A block of a mapping; a block stays as it is."""
        return value if isinstance(value, cls) else cls(**value)

    def model_copy(self, update: dict[str, Any]) -> Self:
        """The same with other values."""
        copy = object.__new__(type(self))
        copy.__dict__ |= self.__dict__ | update
        return copy

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        yield from self.__dict__.items()

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={of!r}' for name, of in self)})"


def _made(annotation: Any, value: Any) -> Any:
    """What an annotation makes of a value: blocks of mappings, floats of whole numbers."""
    kind, parts = get_origin(annotation), get_args(annotation)
    if kind is Annotated:
        makers = [part for part in parts[1:] if isinstance(part, PlainValidator)]
        return makers[0].make(value) if makers else _made(parts[0], value)
    if annotation is float and type(value) is int:
        return float(value)
    if isinstance(value, list) and kind is list:
        return [_made(parts[0], each) for each in value]
    if (
        isinstance(value, dict)
        and isinstance(annotation, type)
        and issubclass(annotation, BaseModel)
    ):
        return annotation.model_validate(value)
    if kind in (Union, UnionType):
        tried = (_made(part, value) for part in parts)
        return next((made for made in tried if made is not value), value)
    return value
