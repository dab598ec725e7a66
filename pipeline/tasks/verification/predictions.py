"""The answers of a run of verification on the test split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline import recipes, workspace
from pipeline.data import splits
from pipeline.data.batches import Trials, load_images, read_list, read_trials
from pipeline.data.sheet import Row, Tile, sheet
from pipeline.evaluation.decisions import answer_episodes
from pipeline.evaluation.diagnosis import THRESHOLD
from pipeline.evaluation.latents import Labelled
from pipeline.models.pairs import Verifier
from pipeline.params import Params
from pipeline.records import (
    ANSWER_COLUMNS,
    PAIRS,
    RunId,
    file_digest,
    read_record,
    write_atomically,
    write_table,
)
from pipeline.tasks import diagnosis
from pipeline.tasks.diagnosis import Tested
from pipeline.tasks.trials import VAL_EPISODES
from pipeline.tasks.verification.diagnosis import look
from pipeline.tasks.verification.scoring import Scorer, validate
from pipeline.training.phase import image_batches

EXAMPLES = 6  # of each kind
Answer = tuple[str, int, int, int, int, float]  # episode, left, right, label, predicted, score


def write(
    params: Params, run: RunId, device: torch.device, test_list: Path, trials: Path
) -> Tested:
    """Write what the run says of the test pairs, at its own threshold, and of each query.

    And its diagnosis. The threshold is chosen before an image of the test split is read.
    """
    record = read_record(run.folder)
    network = recipes.trained(record, run.folder / "model.safetensors").to(device)
    assert isinstance(network, Verifier)
    name = record["parameters"]["model"]["architecture"]
    scorer = Scorer(network, name, params.model.views)
    chosen = validate(scorer, device, params.data.placement)
    threshold = chosen[THRESHOLD]
    rows, labels = read_list(test_list)
    pixels = load_images(workspace.IMAGES, rows, labels, device, params.data.placement).pixels
    some = next(image_batches(pixels))
    asked_of = read_trials(trials, rows)

    def judge() -> tuple[torch.Tensor, dict[str, NDArray[np.float64]]]:
        found = scorer.encode(pixels)
        return found, {
            name: scorer.probabilities(found, of.left, of.right) for name, of in asked_of.items()
        }

    scorer.encode(some)  # the first use of a shape takes longer
    (encodings, scores), seconds = diagnosis.timed(judge, device)

    answers = {
        name: list(
            _pairs(of, scores[name], threshold)
            if name == PAIRS
            else _episodes(of, scores[name], labels)
        )
        for name, of in asked_of.items()
    }
    images = splits.read_images("prepared/images.csv").set_index("row").loc[rows]
    names = [images[key].tolist() for key in ("image", "class")]
    table = (
        (name, episode, *(of[place] for of in names for place in (left, right)), *said)
        for name, found in answers.items()
        for episode, left, right, *said in found
    )
    write_table(run.predictions, table, ANSWER_COLUMNS)
    images_of = np.load(workspace.IMAGES, mmap_mode="r")
    examples = _examples(answers.get(PAIRS, []), images_of, rows, threshold)
    write_atomically(run.examples, sheet(list(examples), EXAMPLES))
    shares = {name: np.mean([of[3] == of[4] for of in found]) for name, found in answers.items()}
    said = ", ".join(f"{len(answers[name])} {name} {of:.4f}" for name, of in shares.items())
    print(f"{run.name}: accuracy on {said}")

    def answer() -> NDArray[np.float64]:
        """Of one image, beside one that is known."""
        one = scorer.encode(some[:1])
        ends = np.zeros(1, np.int64), np.ones(1, np.int64)
        return scorer.probabilities(torch.cat([encodings[:1], one]), *ends)

    shown = Labelled(diagnosis.as_array(encodings), labels)
    seen = look(run, record, scorer, threshold, shown, names[0], answer)
    if record["status"] == "diverged":
        chosen = {THRESHOLD: threshold}  # what it reaches is no result
    seen = replace(seen, chosen=chosen, asked=_asked(params, trials))
    diagnosis.write(run, record, network, seen)
    return Tested(len(rows), seconds, diagnosis.one_image_seconds(answer, device))


def _asked(params: Params, trials: Path) -> dict[str, Any]:
    """See ``pipeline.evaluation.diagnosis.Diagnosis``."""
    return {
        "parameters": {"model": {"views": params.model.views}},
        "inputs": {"test_trials": file_digest(trials), "val_episodes": file_digest(VAL_EPISODES)},
    }


def _examples(
    answers: list[Answer],
    pixels: NDArray[np.uint8],
    rows: NDArray[np.int64],
    threshold: float,
) -> Iterator[Row]:
    """The pairs of each kind of which the run is most sure, rightly and wrongly."""
    kinds = {
        "One class, and taken for one": (1, 1),
        "Two classes, and taken for two": (0, 0),
        "One class, but taken for two": (1, 0),
        "Two classes, but taken for one": (0, 1),
    }
    for title, kind in kinds.items():
        found = [answer for answer in answers if answer[3:5] == kind]
        found.sort(key=lambda answer: answer[5], reverse=kind[1] == 1)
        tiles = [
            Tile((pixels[rows[left]], pixels[rows[right]]), f"P(same) {score:.4f}")
            for _, left, right, _, _, score in found[:EXAMPLES]
        ]
        yield Row(f"{title} (threshold {threshold:.4f})", tiles)


def _pairs(trials: Trials, scores: NDArray[np.float64], threshold: float) -> Iterator[Answer]:
    rows = zip(
        trials.left.tolist(), trials.right.tolist(), trials.same.tolist(), scores.tolist(),
        strict=True,
    )  # fmt: skip
    for left, right, same, score in rows:
        yield "", left, right, same, int(score >= threshold), score


def _episodes(
    trials: Trials, scores: NDArray[np.float64], labels: NDArray[np.int64]
) -> Iterator[Answer]:
    found = answer_episodes(
        trials.episode, trials.left, trials.right, labels[trials.right], trials.same, scores
    )
    columns = (found.query, found.support, found.labels, found.predicted, found.scores)
    rows = zip(found.episode.tolist(), *(column.tolist() for column in columns), strict=True)
    yield from rows
