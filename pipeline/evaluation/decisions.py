"""Decisions of verification: of pairs by a threshold, of episodes by the mean score.

A pair is accepted where its score is at least the threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Answers:
    """One answer for each of Q queries, in the order in which the queries first come.

    ``labels`` and ``predicted`` (Q,) are the positions of the true class and of the one picked
    among the classes of the episode, these in the order of the rows of their first support image;
    ``support`` (Q,) is the first support image of the class picked, ``scores`` (Q,) that class's
    mean score.
    """

    episode: NDArray[Any]
    query: Ints
    support: Ints
    labels: Ints
    predicted: Ints
    scores: Floats


def best_threshold(scores: Floats, same: NDArray[Any]) -> float:
    """The threshold of the highest accuracy; of several, the lower middle one of their list.

    Tried are the midpoints between neighbouring distinct scores, the next number below all scores
    (accept every pair) and the next above all (accept none). Both (P,), O(P log P).

    Raises:
        ValueError: no pairs, scores that are not finite, or arrays that do not match.
    """
    scores, alike = checked(scores, same)
    distinct, at = np.unique(scores, return_inverse=True)
    gained = np.bincount(at[~alike], minlength=len(distinct))  # pairs of two classes now rejected
    lost = np.bincount(at[alike], minlength=len(distinct))
    right = np.append(0, np.cumsum(gained - lost))  # less what accepting all gets right
    best = np.flatnonzero(right == right.max())
    middle = best[(len(best) - 1) // 2]
    if middle == 0:
        return float(np.nextafter(distinct[0], -np.inf))
    if middle == len(distinct):
        return float(np.nextafter(distinct[-1], np.inf))
    below, above = distinct[middle - 1], distinct[middle]
    halfway = below / 2 + above / 2
    return float(halfway if halfway > below else above)  # no number may lie between the two


def accuracy_at(scores: Floats, same: NDArray[Any], threshold: float) -> float:
    """Share of pairs (P,) that are rightly accepted or rejected at a threshold."""
    scores, alike = checked(scores, same)
    return float(np.mean((scores >= threshold) == alike))


def answer_episodes(
    episode: NDArray[Any],
    query: NDArray[Any],
    support: NDArray[Any],
    support_class: NDArray[Any],
    same: NDArray[Any],
    scores: Floats,
) -> Answers:
    """Answer each query of a set of episodes with the class of the highest mean score.

    Of classes that score alike, the first in the episode is picked.

    Args:
        episode: (T,) to which episode each trial belongs.
        query: (T,) row of the query image.
        support: (T,) row of the image that it is compared with.
        support_class: (T,) number of that image's class.
        same: (T,) whether the two show one class.
        scores: (T,) the higher, the likelier that they do.

    Raises:
        ValueError: a query's class is not just one of its episode's classes.
    """
    query, support, scores = (np.asarray(of) for of in (query, support, scores))
    asked, first_trial, of_query = _pairs_of(episode, query)
    _, first_of_class, of_candidate = _pairs_of(of_query, support_class)
    candidates = len(first_of_class)
    means = np.bincount(of_candidate, scores, candidates) / np.bincount(of_candidate)
    first = np.full(candidates, np.iinfo(np.int64).max)
    np.minimum.at(first, of_candidate, support)
    owner = of_query[first_of_class]
    true = _true_candidates(of_candidate, same, owner, asked)

    by_row = np.lexsort((first, owner))
    starts = np.searchsorted(owner[by_row], np.arange(asked))
    position = np.empty(candidates, np.int64)
    position[by_row] = np.arange(candidates) - starts[owner[by_row]]
    picked = np.lexsort((first, -means, owner))[starts]
    return Answers(
        episode=np.asarray(episode)[first_trial],
        query=query[first_trial],
        support=first[picked],
        labels=position[true],
        predicted=position[picked],
        scores=means[picked],
    )


def episode_accuracy(answers: Answers) -> float:
    """Share of queries whose class is picked."""
    return float(np.mean(answers.labels == answers.predicted))


def checked(scores: Floats, same: NDArray[Any]) -> tuple[Floats, Bools]:
    """Scores (P,) in float64 and truth (P,) as booleans.

    Raises:
        ValueError: no pairs, scores that are not finite, or arrays that do not match.
    """
    scores, alike = np.asarray(scores, np.float64), np.asarray(same, bool)
    if scores.ndim != 1 or scores.shape != alike.shape or not len(scores):
        raise ValueError(f"scores {scores.shape} and truth {alike.shape} must be (P,), P ≥ 1")
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite")
    return scores, alike


def _pairs_of(first: NDArray[Any], second: NDArray[Any]) -> tuple[int, Ints, Ints]:
    """Number the distinct pairs of values by where they first come.

    Returns how many there are, where each first comes, and the number of each (T,).
    """
    _, first = np.unique(first, return_inverse=True)
    values, second = np.unique(second, return_inverse=True)
    _, start, number = np.unique(
        first * len(values) + second, return_index=True, return_inverse=True
    )
    order = np.argsort(start)
    renumbered = np.empty(len(order), np.int64)
    renumbered[order] = np.arange(len(order))
    return len(order), start[order], renumbered[number]


def _true_candidates(of_candidate: Ints, same: NDArray[Any], owner: Ints, queries: int) -> Ints:
    """The one candidate (query and class) of each query that shows its class, (queries,)."""
    shows = np.bincount(of_candidate, np.asarray(same, bool))
    true = np.flatnonzero(shows)
    right = np.bincount(owner[true], minlength=queries) == 1
    if not right.all() or (shows[true] != np.bincount(of_candidate)[true]).any():
        raise ValueError("each query must show one class of its episode, and no other")
    return true[np.argsort(owner[true])]
