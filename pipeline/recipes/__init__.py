"""Recipes, one file each, found and imported by name when a method uses them."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.recipes.base import Baseline, Breakdown, Recipe

if TYPE_CHECKING:
    from torch import nn


def names() -> list[str]:
    """Names of all recipes, which are the names of their files."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "base")


def load(name: str) -> type[Recipe]:
    """The one recipe class that the file ``name`` defines."""
    module = importlib.import_module(f"{__name__}.{name}")
    (found,) = (
        kind
        for kind in vars(module).values()
        if inspect.isclass(kind) and issubclass(kind, Recipe) and kind.__module__ == module.__name__
    )
    return found


def trained(record: dict[str, Any], path: Path) -> nn.Module:
    """The network that a run left, in evaluation mode, by its record and model file.

    Raises:
        InputError: the file is broken or of another network.
    """
    from pipeline.models import architectures

    asked = record["parameters"]
    network = architectures.build(
        asked["model"]["architecture"], record["classes"], asked["data"]["channels"],
        asked["data"]["image_size"], None, 0,
    )  # fmt: skip
    return of(asked["method"]).restore(network, path).eval()


def of(block: dict[str, Any]) -> Recipe:
    """A block that was checked already, as its recipe."""
    return load(block["recipe"]).model_validate(block)


__all__ = ["Baseline", "Breakdown", "Recipe", "load", "names", "of", "trained"]
