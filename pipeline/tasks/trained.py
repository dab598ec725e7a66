"""A trained run of either task, ready to be asked about images that are in no list."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import recipes
from pipeline.data import images
from pipeline.data.items import Item
from pipeline.errors import InputError
from pipeline.params import Params
from pipeline.records import RunId, read_record
from pipeline.training import runtime


@dataclass(frozen=True)
class Trained:
    """A run's network in evaluation mode, and what its images must look like.

    Attributes:
        record: its ``record.json``.
        network: on ``device``.
        device: where to compute.
        resize: how images get their size; see ``pipeline.data.images.decode``.
    """

    record: dict[str, Any]
    network: nn.Module
    device: torch.device
    resize: images.Resize

    @property
    def architecture(self) -> str:
        """The network's name."""
        return str(self.record["parameters"]["model"]["architecture"])

    def pixels(self, data: bytes, place: Path | str) -> Tensor:
        """An image file's content as uint8 (C, H, W), on the CPU.

        Raises:
            InputError: it is no image; ``place`` says which.
        """
        asked = self.record["parameters"]["data"]
        try:
            found = images.decode(data, asked["image_size"], self.resize, asked["channels"])
        except InputError as error:
            raise InputError(f"{place}: {error}") from None
        return torch.from_numpy(np.array(found))

    def read(self, path: Path) -> Tensor:
        """An image file as uint8 (C, H, W), on the CPU.

        Raises:
            InputError: it is not there, cannot be read, or is no image.
        """
        if path.is_dir():
            raise InputError(f"{path}: is a folder; name the images in it")
        try:
            data = Item(str(path), path, "").read()
        except FileNotFoundError:
            raise InputError(f"{path}: there is no such file") from None
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise InputError(f"{path}: {error}") from None
        return self.pixels(data, path)


def load(params: Params, run: RunId) -> Trained:
    """Load a trained run by its record and its model file.

    Raises:
        InputError: the record or the model file is broken or of another form.
    """
    device = runtime.start(params.runtime)
    record = read_record(run.folder)
    network = recipes.trained(record, run.folder / "model.safetensors").to(device)
    return Trained(record, network, device, params.data.resize)
