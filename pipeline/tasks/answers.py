"""What a trained run of each task says of image files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from pipeline.params import Params, Task
from pipeline.records import RunId
from pipeline.tasks.classification import answers as classification
from pipeline.tasks.verification import answers as verification


class Answers(Protocol):
    """What a task's ``answers`` does."""

    def say(
        self, params: Params, run: RunId, images: Sequence[Path], gallery: Path | None
    ) -> Iterator[tuple[str, ...]]:
        """The cells of each line of the answer, in the order of the images.

        Args:
            params: the whole of params.yaml.
            run: which one; it is trained.
            images: image files.
            gallery: known images of each class to compare them with; verification alone has that.

        Raises:
            InputError: an image is missing or no image, or this is nothing to ask such a run.
        """


BY_TASK: dict[Task, Answers] = {"classification": classification, "verification": verification}
