"""What answers to "do these two images show one class?" are worth, and how sure one may be of it.

A pair has a score, the higher the likelier that it shows one class; it is accepted where its score
is at least a threshold. Accepted pairs of one class over all such pairs are the true accept rate,
accepted pairs of two classes over all of those the false accept rate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.evaluation.collect import numbers, read_text_table
from pipeline.evaluation.contributions import FEWEST_UNITS, pseudo_values
from pipeline.evaluation.decisions import Bools, Floats, Ints, checked
from pipeline.evaluation.metrics import accuracy
from pipeline.evaluation.statistics import LEVEL
from pipeline.evaluation.statistics.crossed import Contribution
from pipeline.records import ANSWER_COLUMNS, OFFICIAL, PAIRS, REMAKE, digest

FALSE_ACCEPT_RATES = (0.01, 0.001)
ACCURACY, ROC_AUC, EER = "test/accuracy", "test/roc_auc", "test/eer"
TAR_AT_FAR = {far: f"test/tar_at_far_{far}" for far in FALSE_ACCEPT_RATES}
QUANTILES = (EER, *TAR_AT_FAR.values())  # metrics that hang on a quantile of the scores
PAIR_METRICS = (ACCURACY, ROC_AUC, *QUANTILES)
ENOUGH_ACCEPTED = 10  # pairs of two classes that a false accept rate needs for an interval
DRAWS = 2000
GROUPS = 30  # of classes, at most, for metrics that hang on a quantile
ATTRACTED = 0.5  # of a wrong answer, what the class that was picked is charged with
BLOCK = 2**18  # weights held at once: what fits a processor's cache is fastest

Strings = NDArray[np.str_]
Unit = Literal["identity", "run"]


@dataclass(frozen=True)
class PairAnswers:
    """One run's answers for P test pairs: image and class names, truth, answer and score (P,)."""

    left: Strings
    right: Strings
    left_class: Strings
    right_class: Strings
    labels: Ints
    predicted: Ints
    scores: Floats


@dataclass(frozen=True)
class EpisodeAnswers:
    """One run's answers for Q queries of a set of episodes.

    ``left`` (Q,) names the query image, ``left_class`` its class; ``labels`` and ``predicted``
    are as in `Answers`.
    """

    episode: Strings
    left: Strings
    left_class: Strings
    labels: Ints
    predicted: Ints


@dataclass(frozen=True)
class VerificationPredictions:
    """One run's answers on the test split; there may be no pairs, or no episodes."""

    pairs: PairAnswers
    episodes: dict[str, EpisodeAnswers]

    @property
    def tested(self) -> str:
        """Digest of the questions: runs can be compared where it agrees."""
        pairs = self.pairs
        parts = [pairs.left, pairs.right, pairs.left_class, pairs.right_class, pairs.labels]
        for name, answers in self.episodes.items():
            parts += [np.array([name]), answers.episode, answers.left, answers.left_class]
            parts += [answers.labels]
        return digest(*("\n".join(map(str, part.tolist())) for part in parts))


@dataclass(frozen=True)
class Interval:
    """A mean over runs and its bootstrap interval over the ``units`` test units of a kind.

    One unit has no interval, nor has what so few pairs cannot show (`pairs_needed`).
    """

    mean: float
    low: float | None
    high: float | None
    unit: Unit
    units: int


@dataclass(frozen=True)
class Sample:
    """A metric on the whole test set, and on each draw of it (draws,); see `bootstrap`.

    ``drawn`` is None where the draws would not show how far the metric may be trusted.
    """

    mean: float
    drawn: Floats | None
    unit: Unit
    units: int

    def minus(self, other: Sample) -> Sample:
        """The difference, draw by draw: what is hard for both cancels."""
        drawn = None if self.drawn is None or other.drawn is None else self.drawn - other.drawn
        return Sample(self.mean - other.mean, drawn, self.unit, self.units)

    def interval(self, level: float = LEVEL) -> Interval:
        """The mean, and between which percentiles the share ``level`` of the draws lies."""
        if self.drawn is None or self.units < 2:
            return Interval(self.mean, None, None, self.unit, self.units)
        low, high = np.quantile(self.drawn, [(1 - level) / 2, (1 + level) / 2]).tolist()
        return Interval(self.mean, low, high, self.unit, self.units)


# --- metrics


def roc_auc(scores: Floats, same: NDArray[Any]) -> float:
    """Probability that a pair of one class scores higher than one of two; ties count half.

    The area under the ROC curve. Both (P,), O(P log P).

    Raises:
        ValueError: pairs of one kind alone, or as in `best_threshold`.
    """
    return float(_roc_auc(_plain_curve(scores, same))[0])


def equal_error_rate(scores: Floats, same: NDArray[Any]) -> float:
    """The rate at which pairs of two classes accepted and pairs of one rejected are as frequent.

    Linearly interpolated between the two ROC points around the crossing; the points are those of
    the distinct scores as thresholds, and of one above all. Both (P,), O(P log P).

    Raises:
        ValueError: as in `roc_auc`.
    """
    return float(_equal_error_rate(_plain_curve(scores, same))[0])


def true_accept_rate(scores: Floats, same: NDArray[Any], far: float) -> float:
    """The highest true accept rate at a false accept rate of at most ``far``.

    Thresholds are the distinct scores and one above all. Both (P,), O(P log P).

    Raises:
        ValueError: as in `roc_auc`.
    """
    return float(_true_accept_rate(_plain_curve(scores, same), far)[0])


def pair_metrics(scores: Floats, same: NDArray[Any], predicted: NDArray[Any]) -> dict[str, float]:
    """The metrics of pairs by name, in the order of ``PAIR_METRICS``. All arguments (P,).

    Raises:
        ValueError: as in `roc_auc`.
    """
    curve = _plain_curve(scores, same)
    right = float(np.mean(np.asarray(predicted, bool) == np.asarray(same, bool)))
    found = {name: float(values[0]) for name, values in _curve_metrics(curve).items()}
    return {ACCURACY: right, **found}


def accuracy_name(episodes: str) -> str:
    """The metric of a set of episodes, such as ``test/official_accuracy``."""
    return f"test/{episodes}_accuracy"


def verification_metrics(predictions: VerificationPredictions) -> dict[str, float]:
    """Every test metric of a run, by name: those of pairs, if any, then each set of episodes."""
    pairs, found = predictions.pairs, {}
    if len(pairs.labels):
        found = pair_metrics(pairs.scores, pairs.labels, pairs.predicted)
    for name, answers in predictions.episodes.items():
        found[accuracy_name(name)] = accuracy(answers.labels, answers.predicted)
    return found


# --- the predictions file


def read_predictions(path: Path) -> VerificationPredictions:
    """Read ``predictions/<run>.csv`` of a verification run.

    Raises:
        InputError: it is missing or damaged, or holds pairs of one kind alone.
    """
    table = read_text_table(path)
    if tuple(table.columns) != ANSWER_COLUMNS:
        raise InputError(f"{path}: columns must be {','.join(ANSWER_COLUMNS)}: {REMAKE}")
    if table.empty:
        raise InputError(f"{path}: holds no answer: {REMAKE}")
    labels, predicted = numbers(path, table[["label", "predicted"]], np.int64).T
    scores = numbers(path, table[["score"]], np.float64)[:, 0]
    _check_names(path, table)
    _check_answers(path, table, labels, predicted, scores)
    text = {name: np.array(table[name].tolist(), np.str_) for name in ANSWER_COLUMNS[:6]}
    one = text["set"] == PAIRS
    if one.any() and len(np.unique(labels[one])) < 2:
        raise InputError(
            f"{path}: holds pairs of one kind alone; the test split needs pairs that show one "
            "class and pairs that show two"
        )
    pairs = PairAnswers(
        left=text["left"][one],
        right=text["right"][one],
        left_class=text["left_class"][one],
        right_class=text["right_class"][one],
        labels=labels[one],
        predicted=predicted[one],
        scores=scores[one],
    )
    episodes = {}
    for name in dict.fromkeys(text["set"][~one].tolist()):
        of = text["set"] == name
        episodes[name] = EpisodeAnswers(
            episode=text["episode"][of],
            left=text["left"][of],
            left_class=text["left_class"][of],
            labels=labels[of],
            predicted=predicted[of],
        )
    return VerificationPredictions(pairs, episodes)


def _check_names(path: Path, table: pd.DataFrame) -> None:
    names = table[[name for name in ANSWER_COLUMNS[:6] if name != "episode"]]
    _check(path, (names == "").any(axis=1), "images, classes and sets must have names")
    paired, alone = table["set"] == PAIRS, table["episode"] == ""
    _check(path, paired != alone, "a query must have an episode, and a pair none")


def _check_answers(
    path: Path, table: pd.DataFrame, labels: Ints, predicted: Ints, scores: Floats
) -> None:
    paired = (table["set"] == PAIRS).to_numpy()
    one_class = (table["left_class"] == table["right_class"]).to_numpy()
    below_two = (predicted >= 0) & (predicted <= 1)
    _check(path, paired & ~below_two, "a pair's answer must be 1 (one class) or 0")
    _check(
        path,
        paired & (labels != one_class),
        "a pair's label must be 1 where its classes are one, else 0",
    )
    _check(path, (labels < 0) | (predicted < 0), "labels must be positions of classes, from 0")
    _check(
        path,
        ~paired & ((labels == predicted) != one_class),
        "a query's label and answer must be equal just where its classes are",
    )
    inside = np.isfinite(scores) & (scores >= 0) & (scores <= 1)
    _check(path, ~inside, "scores must be probabilities")


def _check(path: Path, wrong: Any, problem: str) -> None:
    wrong = np.asarray(wrong)
    if wrong.any():
        line = int(np.argmax(wrong)) + 2  # after the header, from 1
        raise InputError(f"{path}:{line}: {problem}: {REMAKE}")


# --- intervals over what is tested


def pairs_needed(metric: str) -> int:
    """How many pairs of two classes the interval of a metric needs.

    A true accept rate hangs on the few highest scores among them, and where fewer than ten may be
    accepted its interval lies too high: in simulated test sets, from no identity shared between
    pairs to 60 pairs of each, a 95 % interval held the true rate in 45 to 53 % where half of one
    may be accepted, in 77 to 82 % with one, 79 to 99 % with five, and 87 to 100 % with ten.
    """
    rates = {name: far for far, name in TAR_AT_FAR.items()}
    return round(ENOUGH_ACCEPTED / rates[metric]) if metric in rates else 1


def bootstrap(
    runs: Sequence[VerificationPredictions], draws: int = DRAWS, seed: int = 0
) -> dict[str, Sample]:
    """Each metric's mean over the runs of one method, and what it is on other test units.

    Which people, characters or official runs are in a test set is chance as well, and shared by
    all seeds; the interval says how far the mean over these runs would differ with others. The
    units of the test set are drawn with replacement, the metrics are computed with the weights
    that result, and the interval lies between percentiles of their means over the runs.

    For pairs and drawn episodes the unit is the identity (vertex bootstrap; Snijders and Borgatti
    1999, "Non-parametric standard errors and tests for network statistics", Connections 22(2),
    61-70): drawn w_a times, a pair of identities a and b weighs w_a w_b. There, a pair of two
    copies of one identity gets a random other pair's value; here it is left out, since a pair
    within identity a has a truth of its own, and weighs w_a. An episode's query weighs w of its
    class. What is particular to a pair of two identities then counts up to three times in the
    variance (Owen 2007, "The pigeonhole bootstrap", Annals of Applied Statistics 1(2), 386-411),
    so that where pairs share few identities the interval is too wide rather than too narrow. There
    is none for a false accept rate that so few pairs cannot show (`pairs_needed`).
    For ``official`` episodes the unit is the run, whose queries and support belong together.

    Weighted metrics are exact: what they would be with each row repeated so often. A draw that
    lacks pairs of one kind is drawn again. Draws depend on the test set and the seed alone.

    Args:
        runs: of one method, tested on the same.
        draws: how often the test set is drawn.
        seed: of the draws.

    Raises:
        ValueError: no runs, runs of different test sets, or pairs of one kind alone.
    """
    _check_comparable(runs)
    found = {}
    if len(runs[0].pairs.labels):
        found = _pair_samples([run.pairs for run in runs], draws, seed)
    for name in runs[0].episodes:
        answers = [run.episodes[name] for run in runs]
        found[accuracy_name(name)] = _episode_sample(name, answers, draws, seed)
    return found


def draw_units(units: int, draws: int, generator: np.random.Generator) -> Floats:
    """How often each unit comes in each draw of as many with replacement, (units, draws)."""
    drawn = generator.integers(units, size=(draws, units)) + np.arange(draws)[:, None] * units
    counts = np.bincount(drawn.ravel(), minlength=draws * units)
    return np.ascontiguousarray(counts.reshape(draws, units).T, np.float64)


def _check_comparable(runs: Sequence[VerificationPredictions]) -> None:
    if not runs:
        raise ValueError("there are no runs")
    if len({run.tested for run in runs}) > 1:
        raise ValueError("the runs were not tested on the same pairs and episodes")


def _episode_sample(name: str, runs: Sequence[EpisodeAnswers], draws: int, seed: int) -> Sample:
    unit: Unit = "run" if name == OFFICIAL else "identity"
    names, of = np.unique(
        runs[0].episode if unit == "run" else runs[0].left_class, return_inverse=True
    )
    # of all runs together, whole numbers, so that sums are exact in any order
    hits = np.sum([np.bincount(of, run.labels == run.predicted) for run in runs], axis=0)
    asked = len(runs) * np.bincount(of)
    drawn = draw_units(len(names), draws, np.random.default_rng(seed))
    mean = float(np.mean([accuracy(run.labels, run.predicted) for run in runs]))
    return Sample(mean, (hits @ drawn) / (asked @ drawn), unit, len(names))


def _pair_samples(runs: Sequence[PairAnswers], draws: int, seed: int) -> dict[str, Sample]:
    same = runs[0].labels == 1
    shown = [name for name in PAIR_METRICS if np.sum(~same) >= pairs_needed(name)]
    right = np.sum([run.predicted == run.labels for run in runs], axis=0)
    rankings = [_ranking(run.scores, same) for run in runs]
    identities, ends = np.unique([runs[0].left_class, runs[0].right_class], return_inverse=True)
    parts: dict[str, list[Floats]] = {name: [] for name in shown}
    for weights in _pair_weights(ends.reshape(2, -1), same, len(identities), draws, seed):
        parts[ACCURACY].append((right @ weights) / (len(runs) * weights.sum(axis=0)))
        of_runs = [_curve_metrics(_curve(ranking, weights), shown) for ranking in rankings]
        for name in of_runs[0]:
            parts[name].append(np.mean([of[name] for of in of_runs], axis=0))
    whole = [pair_metrics(run.scores, run.labels, run.predicted) for run in runs]
    return {
        name: Sample(
            float(np.mean([of[name] for of in whole])),
            np.concatenate(parts[name]) if name in shown else None,
            "identity",
            len(identities),
        )
        for name in PAIR_METRICS
    }


def _pair_weights(
    ends: Ints, same: Bools, identities: int, draws: int, seed: int
) -> Iterator[Floats]:
    """Weights of all pairs in some draws at a time (P, draws of a block), both kinds in each.

    ``ends`` (2, P) are the numbers of the pairs' identities.
    """
    generator = np.random.default_rng(seed)
    block = max(1, BLOCK // len(same))
    for done in range(0, draws, block):
        weights = np.empty((len(same), min(block, draws - done)))
        missing = np.ones(weights.shape[1], bool)
        while missing.any():
            drawn = draw_units(identities, int(missing.sum()), generator)
            fresh = drawn[ends[0]]
            fresh[~same] *= drawn[ends[1, ~same]]
            weights[:, missing] = fresh
            both = [np.any(weights[kind], axis=0) for kind in (same, ~same)]
            missing = ~np.logical_and(*both)
        yield weights


# --- what each test unit adds, for the intervals over seeds and test units together


def contributions(run: VerificationPredictions) -> dict[str, Contribution]:
    """What each test unit adds to the metrics of a run, by name, for those that it tells of.

    Pairs share classes, so the unit is a class (a person, a character): it adds what the metric
    would change by, to first order, if it were there more often (infinitesimal jackknife; Jaeckel
    1972, Bell Laboratories MM 72-1215-11), with all its pairs (vertex jackknife; Snijders and
    Borgatti 1999, "Non-parametric standard errors and tests for network statistics", Connections
    22(2), 61-70). For the ROC AUC a pair's part is its placement value (DeLong, DeLong and
    Clarke-Pearson 1988, "Comparing the areas under two or more correlated receiver operating
    characteristic curves", Biometrics 44(3), 837-845). A pair of two classes is charged to both,
    each with a share of it that makes up for what would count twice (`_class_shares`).

    EER and the true accept rates hang on quantiles, where deleting one class tells next to nothing
    (Shao and Wu 1989, "A general theory for jackknife variance estimation", Annals of Statistics
    17(3), 1176-1197). There, the unit is one of up to ``GROUPS`` random groups of classes, each
    deleted in turn. Left out is what so few pairs cannot show (`pairs_needed`), and what lacks
    pairs of one kind without some group.

    In drawn episodes a class adds the answers to its own queries, and for ``ATTRACTED`` of each
    the wrong answers that name it. ``official`` episodes have the run as unit.

    In simulated test sets, from 20 classes to 923 and from one pair of two classes each to 50, the
    variance so estimated was 0.9 to 1.5 times the true one for the accuracy and the ROC AUC, 1.0
    to 1.7 times for the EER, and 1.6 to 2.1 times for the true accept rate at 0.01; t intervals of
    95 % covered in 90 to 99 %. `bootstrap` gave 0.8 to 2.7 times.
    """
    pairs, found = run.pairs, {}
    if len(pairs.labels):
        found = _of_pairs(pairs)
    for name, answers in run.episodes.items():
        of = _of_runs(answers) if name == OFFICIAL else _of_episodes(answers)
        found[accuracy_name(name)] = of
    return {name: of for name, of in found.items() if len(of.values) >= FEWEST_UNITS}


def _of_pairs(run: PairAnswers) -> dict[str, Contribution]:
    same = run.labels == 1
    classes, ends = np.unique([run.left_class, run.right_class], return_inverse=True)
    ends, count = ends.reshape(2, -1), len(classes)
    shares = _class_shares(ends[:, ~same], count)
    right = (run.predicted == run.labels).astype(np.float64)
    # how many pairs there are of each kind is no chance
    surplus = right - np.where(same, right[same].mean(), right[~same].mean())
    auc, placed = _placements(_ranking(run.scores, same))
    found = {}
    for name, whole, parts in (
        (ACCURACY, right.mean(), surplus / len(right)),
        (ROC_AUC, auc, placed),
    ):
        charged = _charged(parts, ends, same, shares)
        found[name] = Contribution(whole + count * (charged - charged.mean()), "class")
    return found | _of_groups(run, ends, shares)


def _class_shares(ends: Ints, classes: int) -> Floats:
    """With which share each class is charged with its pairs of two classes, (classes,).

    Charged in full to both its classes, a pair brings each of them the chance of the other, too.
    With e_ab = h_a + h_b and n_ab such pairs, class a brings n_a = sum_b n_ab times h_a into the
    sum, so its variance should be n_a² v, but that of its charge is (n_a² + sum_b n_ab²) v. The
    share is the square root of their ratio: sqrt(1/2) of a class with one such pair, where the
    variance of a pair that hangs on nothing else comes out right as well, and near 1 of a class
    with many, where that of single pairs hardly matters. What classes bring is never less than it
    should be.

    Args:
        ends: the numbers of both classes of each pair of two, (2, D).
        classes: how many there are.
    """
    couples, counts = np.unique(np.sort(ends, axis=0), axis=1, return_counts=True)
    both, twice = couples.ravel(), np.tile(counts, 2).astype(np.float64)
    own = np.bincount(both, twice, classes) ** 2
    others = np.bincount(both, twice**2, classes)
    return np.sqrt(np.divide(own, own + others, out=np.ones(classes), where=own > 0))


def _charged(parts: Floats, ends: Ints, same: Bools, shares: Floats) -> Floats:
    """What each class is charged with of the pairs' parts (P,), (classes,)."""
    left, right = ends
    classes, shared = len(shares), parts[~same]
    whole = np.bincount(left[same], parts[same], classes).astype(np.float64)
    ends_of = (np.bincount(of[~same], shared, classes) for of in (left, right))
    return whole + shares * sum(ends_of)


def _placements(ranking: _Ranking) -> tuple[float, Floats]:
    """The ROC AUC, and by how much it rises with the weight of each pair, (P,); they sum to 0."""
    same, different = len(ranking.same), len(ranking.different)
    # for each pair, the share of the other kind that scores lower, or higher; half where equal
    lower = 1 - _middles(ranking.different_accepted, ranking.same_accepted) / different
    higher = _middles(ranking.same_accepted, ranking.different_accepted) / same
    auc = float(lower.mean())
    parts = np.empty(same + different)
    parts[ranking.same] = (lower - auc) / same
    parts[ranking.different] = (higher - auc) / different
    return auc, parts


def _middles(accepted: Ints, others: Ints) -> Floats:
    """For each pair of the others, how many pairs score higher, and half of those that equal it."""
    return np.repeat((accepted[:-1] + accepted[1:]) / 2, np.diff(others))


def _of_groups(run: PairAnswers, ends: Ints, shares: Floats) -> dict[str, Contribution]:
    """What groups of classes add to the metrics that hang on a quantile."""
    same = run.labels == 1
    shown = [name for name in QUANTILES if np.sum(~same) >= pairs_needed(name)]
    groups = min(GROUPS, len(shares))
    # by the classes alone, so that all runs have the same groups
    group_of = np.random.default_rng(0).permutation(len(shares)) % groups
    weights = _weights_without(group_of[ends], shares[ends], same, groups)
    if any((weights[kind] == 0).all(axis=0).any() for kind in (same, ~same)):
        return {}
    ranking = _ranking(run.scores, same)
    whole = _curve_metrics(_curve(ranking, np.ones((len(same), 1))), shown)
    without = _curve_metrics(_curve(ranking, weights), shown)
    return {
        name: Contribution(pseudo_values(float(whole[name][0]), without[name]), "group of classes")
        for name in shown
    }


def _weights_without(groups_of: Ints, shares: Floats, same: Bools, groups: int) -> Floats:
    """What each pair weighs without each group, (P, groups); both arguments of ends (2, P)."""
    pair, (left, right) = np.arange(len(same)), groups_of
    weights = np.ones((len(same), groups))
    weights[pair, left] -= shares[0]
    weights[pair, right] -= shares[1]
    weights[pair[left == right], left[left == right]] = 0  # both ends deleted, or one class
    return weights


def _of_episodes(answers: EpisodeAnswers) -> Contribution:
    """What each class adds to the accuracy on drawn episodes, where each is asked for once.

    A wrong answer is a matter of two classes, the one asked for and the one picked. With the
    first alone, classes that attract answers bring no variance; with both in full, the chance of
    which class was picked brings too much. In simulated test sets of 20 to 1,000 classes, 2 to 20
    ways and accuracies of 45 to 96 %, the estimated variance was 0.4 to 1.2 times the true one
    with the first alone, 1.1 to 4.0 times with both, and 0.8 to 1.7 times with half of the second
    (at an accuracy of a third in 20 ways, up to 2.5 times).
    """
    names, own = np.unique(answers.left_class, return_inverse=True)
    wrong = answers.labels != answers.predicted
    asked = np.bincount(own)
    attracted = np.bincount(_picked(answers, own)[wrong], minlength=len(names))
    # in an episode of W classes, each is one of the W - 1 others in as many queries, so as many
    # wrong answers as a query has would name it if all were alike
    errors = np.bincount(own, wrong) + ATTRACTED * attracted
    surplus = errors - wrong.mean() * (1 + ATTRACTED) * asked
    return Contribution((1 - wrong.mean()) - len(names) * surplus / len(wrong), "class")


def _picked(answers: EpisodeAnswers, classes: Ints) -> Ints:
    """The class that each query is taken for, (Q,), from the ``classes`` asked for."""
    _, episode = np.unique(answers.episode, return_inverse=True)
    ways = 1 + int(max(answers.labels.max(), answers.predicted.max()))
    at = np.zeros((len(answers.labels), ways), np.int64)
    at[episode, answers.labels] = classes
    return at[episode, answers.predicted]


def _of_runs(answers: EpisodeAnswers) -> Contribution:
    """What each official run adds to their accuracy: its own, where all have as many queries."""
    names, of = np.unique(answers.episode, return_inverse=True)
    right = (answers.labels == answers.predicted).astype(np.float64)
    surplus = np.bincount(of, right - right.mean())
    return Contribution(right.mean() + len(names) * surplus / len(right), "official run")


# --- the weighted ROC curve, many draws at once


@dataclass(frozen=True)
class _Ranking:
    """The pairs of each kind by falling score, and how many of them each threshold accepts.

    Thresholds are one above all scores, then the T distinct scores, falling.
    """

    same: Ints  # indices of the pairs of one class
    different: Ints
    same_accepted: Ints  # (T + 1,)
    different_accepted: Ints


@dataclass(frozen=True)
class _Curve:
    """The ROC curves of D draws, as weights accepted; whole numbers, exact in any order.

    ``same`` and ``different`` (pairs of a kind + 1, D) are sums over the first pairs by rank.
    """

    ranking: _Ranking
    same: Floats
    different: Floats

    def at(self, threshold: Ints) -> tuple[Floats, Floats]:
        """Weight of the pairs of one class and of two that each draw accepts, all (D,)."""
        draw = np.arange(self.same.shape[1])
        return (
            self.same[self.ranking.same_accepted[threshold], draw],
            self.different[self.ranking.different_accepted[threshold], draw],
        )

    def last(self, holds: Callable[[Floats, Floats], Bools]) -> Ints:
        """The last threshold at which it holds, (D,): at the first it does, later no more."""
        low = np.zeros(self.same.shape[1], np.int64)
        high = np.full_like(low, len(self.ranking.same_accepted))
        while (high - low > 1).any():
            middle = (low + high) // 2
            held = holds(*self.at(middle))
            low, high = np.where(held, middle, low), np.where(held, high, middle)
        return low


def _ranking(scores: Floats, same: Bools) -> _Ranking:
    if same.all() or not same.any():
        raise ValueError("there must be pairs of one class and pairs of two")
    distinct, at = np.unique(-scores, return_inverse=True)
    orders, accepted = [], []
    for kind in (np.flatnonzero(same), np.flatnonzero(~same)):
        orders.append(kind[np.argsort(at[kind], kind="stable")])
        accepted.append(np.append(0, np.cumsum(np.bincount(at[kind], minlength=len(distinct)))))
    return _Ranking(orders[0], orders[1], accepted[0], accepted[1])


def _curve(ranking: _Ranking, weights: Floats) -> _Curve:
    """The curves of pairs that weigh so much, (P, D)."""
    return _Curve(ranking, _sums(weights[ranking.same]), _sums(weights[ranking.different]))


def _plain_curve(scores: Floats, same: NDArray[Any]) -> _Curve:
    scores, alike = checked(scores, same)
    return _curve(_ranking(scores, alike), np.ones((len(scores), 1)))


def _sums(weights: Floats) -> Floats:
    sums = np.zeros((len(weights) + 1, weights.shape[1]))
    np.cumsum(weights, axis=0, out=sums[1:])
    return sums


def _curve_metrics(curve: _Curve, metrics: Sequence[str] = PAIR_METRICS) -> dict[str, Floats]:
    """Those of ``metrics`` that need no threshold, each (D,)."""
    found = {ROC_AUC: _roc_auc(curve), EER: _equal_error_rate(curve)}
    rates = {name: far for far, name in TAR_AT_FAR.items() if name in metrics}
    return found | {name: _true_accept_rate(curve, far) for name, far in rates.items()}


def _roc_auc(curve: _Curve) -> Floats:
    ranking = curve.ranking
    # for each pair of two classes, the pairs of one that score higher, and those no lower
    higher = np.repeat(ranking.same_accepted[:-1], np.diff(ranking.different_accepted))
    no_lower = np.repeat(ranking.same_accepted[1:], np.diff(ranking.different_accepted))
    beaten = curve.same[higher]
    beaten += curve.same[no_lower]
    twice = np.einsum("pd,pd->d", np.diff(curve.different, axis=0), beaten)
    return twice / (2 * curve.same[-1] * curve.different[-1])


def _equal_error_rate(curve: _Curve) -> Floats:
    all_same, all_different = curve.same[-1], curve.different[-1]

    def gap(same: Floats, different: Floats) -> Floats:
        """False accept rate minus false reject rate, made a whole number."""
        return different * all_same + same * all_different - all_same * all_different

    last = curve.last(lambda same, different: gap(same, different) < 0)
    before, after = curve.at(last), curve.at(last + 1)
    share = gap(*before) / (gap(*before) - gap(*after))
    return (before[1] + share * (after[1] - before[1])) / all_different


def _true_accept_rate(curve: _Curve, far: float) -> Floats:
    # dividing, not multiplying, keeps a rate of just 0.29 within far=0.29
    last = curve.last(lambda _, different: different / curve.different[-1] <= far)
    return curve.at(last)[0] / curve.same[-1]
