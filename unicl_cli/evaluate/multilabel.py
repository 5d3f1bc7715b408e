"""Metrics of rows with label sets: average precision, its influence values, and F1, exact and in bounded memory.

Scores come in blocks of classes, (B, n) for n rows, and are never held all at once. A pair of a row and a class that is
not known (`Annotations`) is left out of everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import erfc, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unicl_cli.evaluate.annotations import Annotations, Bools, Numbers
from unicl_cli.evaluate.statistics import Z95, Bounds, Difference, wilson

Floats = NDArray[np.floating]
Doubles = NDArray[np.float64]
Blocks = Callable[[], Iterator[tuple[int, Floats]]]
"""Yields the first class of each block and its scores, (B, n); each call yields the same."""


class Ranked(NamedTuple):
    """The distinct scores of the positives, ascending, and the pairs that reach each: all (L,)."""

    levels: Floats
    counts: Numbers
    """Positives that have exactly this score."""
    hits: Numbers
    """Positives with this score or a higher one."""
    reached: Numbers
    """Known pairs with this score or a higher one."""

    @property
    def positives(self) -> int:
        return int(self.counts.sum())

    def average_precision(self) -> float:
        """Return the mean over the positives of the precision at their score; equal scores are one threshold."""
        return float((self.counts * (self.hits / self.reached)).sum() / self.positives)

    def best_f1(self) -> float:
        """Return the score from which on answers have the largest F1; the highest of equally good ones."""
        f1 = 2 * self.hits / (self.positives + self.reached)
        return float(self.levels[len(f1) - 1 - int(f1[::-1].argmax())])


def count_reaching(levels: Floats, scores: Floats) -> Numbers:
    """Count the scores that are at least each of the ascending ``levels``, int64 (L,)."""
    bins = np.bincount(np.searchsorted(levels, scores, side="right"), minlength=len(levels) + 1)
    return bins[::-1].cumsum()[::-1][1:]


def rank_positives(positive: Floats, known: Floats) -> Ranked:
    """Rank the scores of at least one positive among those of all known pairs, the positives included."""
    levels, counts = np.unique(positive, return_counts=True)
    return Ranked(levels, counts, counts[::-1].cumsum()[::-1], count_reaching(levels, known))


def influence(ranked: Ranked, scores: Floats, positive: Bools) -> Doubles:
    """Return the derivative of the average precision by the weight of each known row, (n,).

    The infinitesimal jackknife (Jaeckel 1972; Efron 1982, ch. 6): with weights w, AP is the sum over positives of
    w TP(s) / N(s), divided by their weight; TP and N sum the weights of positives and of all rows that reach s.
    """
    precision = ranked.hits / ranked.reached
    gain = np.concatenate([[0.0], (ranked.counts / ranked.reached).cumsum()])
    loss = np.concatenate([[0.0], (ranked.counts * precision / ranked.reached).cumsum()])
    below = np.searchsorted(ranked.levels, scores, side="right")  # levels that a row reaches
    own = np.where(positive, precision[below - 1] - ranked.average_precision() + gain[below], 0.0)
    return (own - loss[below]) / ranked.positives


class Cut(NamedTuple):
    """A class is answered if the sigmoid of ``scale`` x score + ``bias`` reaches its threshold, (C,)."""

    scale: float
    bias: float
    thresholds: Doubles

    def probabilities(self, scores: Floats) -> Doubles:
        """Return the probability of each score, any shape; a score of -inf (a class that cannot be answered) has 0."""
        finite = scores > -np.inf
        return np.where(finite, sigmoid(self.scale * np.where(finite, scores, 0.0).astype(np.float64) + self.bias), 0.0)


def sigmoid(z: Doubles) -> Doubles:
    e = np.exp(-np.abs(z))
    return np.where(z >= 0, 1.0, e) / (1 + e)


class ClassFigures(NamedTuple):
    """Metrics of C classes; those without a positive have no average precision (NaN)."""

    positives: Numbers
    annotated: Numbers
    precision: Doubles
    """Average precision."""
    influence: Doubles
    """(G, n): the influence of each row, summed over the classes of each group."""
    answered: Numbers | None
    """Known rows that are answered with the class; None without thresholds."""
    hits: Numbers | None
    """The correct ones among them."""

    def f1(self) -> Doubles:
        """Return F1 of each class, (C,); NaN for a class that no row has and no answer names."""
        if self.answered is None or self.hits is None:
            raise ValueError("F1 needs thresholds")
        with np.errstate(invalid="ignore"):
            return 2 * self.hits / (self.answered + self.positives)


def measure_classes(blocks: Blocks, truth: Annotations, wanted: Bools, cut: Cut | None = None) -> ClassFigures:
    """Measure the ``wanted`` classes, bool (C,); the others have no positives and no metrics."""
    classes, groups = len(truth.groups), int(truth.groups.max()) + 1
    positives, annotated = np.zeros(classes, np.int64), np.zeros(classes, np.int64)
    found, sums = np.full(classes, np.nan), np.zeros((groups, len(truth)))
    answered, hits = np.zeros(classes, np.int64), np.zeros(classes, np.int64)
    for start, scores in blocks():
        stop = start + len(scores)
        for label, own, has, knows in zip(
            range(start, stop), scores, truth.has(start, stop), truth.knows(start, stop), strict=True
        ):
            if not wanted[label]:
                continue
            known, positive = own[knows], has[knows]
            positives[label], annotated[label] = positive.sum(), len(known)
            if cut is not None:
                answers = cut.probabilities(known) >= cut.thresholds[label]
                answered[label], hits[label] = answers.sum(), (answers & positive).sum()
            if positives[label]:
                ranked = rank_positives(known[positive], known)
                found[label] = ranked.average_precision()
                sums[truth.groups[label], knows] += influence(ranked, known, positive)
    both = (None, None) if cut is None else (answered, hits)
    return ClassFigures(positives, annotated, found, sums, *both)


def rank_all_pairs(blocks: Blocks, truth: Annotations, wanted: Bools) -> Ranked | None:
    """Rank the positives among all known pairs of the ``wanted`` classes; None without a positive.

    The scores are read twice: for the levels, then to count the pairs that reach each.
    """
    scored: list[Floats] = []
    for start, scores in blocks():
        inside = (start + wanted[start : start + len(scores)].nonzero()[0]).tolist()
        scored += [scores[label - start, truth.rows_of(label)] for label in inside]
    if not sum(map(len, scored)):
        return None
    levels, counts = np.unique(np.concatenate(scored), return_counts=True)
    reached = np.zeros(len(levels), np.int64)
    for start, scores in blocks():
        stop = start + len(scores)
        knows = truth.knows(start, stop) & wanted[start:stop, None]
        reached += count_reaching(levels, scores[knows])
    return Ranked(levels, counts, counts[::-1].cumsum()[::-1], reached)


def mean_and_interval(values: Doubles, influences: Doubles) -> tuple[float, Bounds]:
    """Return the mean of K average precisions, and its 95 % interval over n rows from their summed influences (n,).

    Without any variance it is Wilson's for n trials: a jackknife of rows that are all alike has no width.
    """
    mean, n = float(values.mean()), len(influences)
    centred = influences / len(values)
    half = Z95 * float(np.sqrt((centred * centred).sum() * n / max(1, n - 1)))
    if half < 1e-12:
        return mean, wilson(mean * n, n)
    return mean, (max(0.0, mean - half), min(1.0, mean + half))


def compare_means(first: tuple[Doubles, Doubles], second: tuple[Doubles, Doubles]) -> Difference:
    """Compare two models by the average precisions (K,) of the same classes and their summed influences (n,).

    The influences of a row on both means are paired; their difference gives the 95 % interval and a normal test. The
    result counts classes, not items, as better and worse.
    """
    (mine, rows), (theirs, others) = first, second
    n, more = len(rows), theirs - mine
    difference = float(more.mean())
    moved = (others - rows) / len(mine)
    error = float(np.sqrt((moved * moved).sum() * n / max(1, n - 1)))
    half = Z95 * error if error > 0 else wilson(0, n)[1]
    p = erfc(abs(difference) / error / sqrt(2)) if error > 0 else 1.0
    bounds = (max(-1.0, difference - half), min(1.0, difference + half))
    return Difference(n, difference, bounds, int((more > 0).sum()), int((more < 0).sum()), p)
