"""The predictions of each task."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch

from pipeline.params import Params, Task
from pipeline.records import RunId
from pipeline.tasks.classification import predictions as classification
from pipeline.tasks.diagnosis import Tested
from pipeline.tasks.verification import predictions as verification


class Predictions(Protocol):
    """What a task's ``predictions`` does."""

    def write(
        self, params: Params, run: RunId, device: torch.device, test_list: Path, trials: Path
    ) -> Tested:
        """Write what a run says of the test split, the picture of its examples, its diagnosis.

        Args:
            params: the whole of params.yaml.
            run: which one; it is trained.
            device: where to compute.
            test_list: the test images.
            trials: which of them are compared.

        Returns:
            how many images there were, and the seconds from them to the predictions, of all
            and of one.
        """


BY_TASK: dict[Task, Predictions] = {
    "classification": classification,
    "verification": verification,
}
