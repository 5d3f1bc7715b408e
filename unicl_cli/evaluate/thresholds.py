"""Class thresholds: a logistic scale and bias for all scores, and per class the threshold with the largest F1."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from unicl_cli.evaluate.annotations import Annotations, Bools
from unicl_cli.evaluate.multilabel import Blocks, Cut, Doubles, rank_all_pairs, rank_positives, sigmoid

FEWEST = 5
"""Positives that a class needs for a threshold of its own."""
SLACK = 1e-6
"""A threshold lies this share below the lowest probability that it accepts, so that rounding loses no answer."""
STEPS, HALVINGS = 60, 40
CLOSE = 1e-13
"""Predicted decrease of the mean loss at which Newton's method has converged."""


class Calibration(NamedTuple):
    """The logistic fit of all known pairs, ``pairs`` of them, ``positives`` of which are positive."""

    scale: float
    bias: float
    pairs: int
    positives: int


class FittedCut(NamedTuple):
    """Thresholds, and what they rest on: ``own``, bool (C,), marks the classes with a threshold of their own."""

    cut: Cut
    calibration: Calibration
    common: float
    own: Bools


class _Moments(NamedTuple):
    """Counts of known pairs, and the mean and the standard deviation of their scores."""

    pairs: int
    positives: int
    mean: float
    deviation: float


def fit_thresholds(blocks: Blocks, truth: Annotations, wanted: Bools) -> FittedCut:
    """Fit scale and bias on all known pairs, then the threshold of each class that maximises its F1.

    Classes with fewer than FEWEST positives take the threshold that maximises F1 over all pairs. ``wanted`` marks the
    classes that the model scores. Raises ValueError if no wanted class has a positive.
    """
    fitted = fit_logistic(blocks, truth, wanted)
    cut = Cut(fitted.scale, fitted.bias, np.ones(len(wanted)))

    def probable() -> Iterator[tuple[int, Doubles]]:
        return ((start, cut.probabilities(scores)) for start, scores in blocks())

    ranked = rank_all_pairs(probable, truth, wanted)
    if ranked is None:
        raise ValueError("no class has a positive")
    common = ranked.best_f1() * (1 - SLACK)
    own = wanted & (truth.positives >= FEWEST)
    cut.thresholds[:] = common
    for start, scores in blocks():
        stop = start + len(scores)
        has, knows = truth.has(start, stop), truth.knows(start, stop)
        for label in (start + own[start:stop].nonzero()[0]).tolist():
            known, positive = cut.probabilities(scores[label - start, knows[label - start]]), has[label - start]
            ranks = rank_positives(known[positive[knows[label - start]]], known)
            cut.thresholds[label] = ranks.best_f1() * (1 - SLACK)
    return FittedCut(cut, fitted, common, own)


def fit_logistic(blocks: Blocks, truth: Annotations, wanted: Bools) -> Calibration:
    """Fit P(positive) = sigmoid(scale x score + bias) to all known pairs by Newton's method.

    The targets are Platt's (1999): (N+ + 1) / (N+ + 2) and 1 / (N- + 2), so that the optimum is finite also where the
    scores separate the pairs. Scores are standardised meanwhile.
    """
    found = _measure_scores(blocks, truth, wanted)
    if not found.positives:
        raise ValueError("no class has a positive")
    problem = _LogisticLoss(blocks, truth, wanted, found)
    at = problem.begin()
    if found.deviation == 0:  # all scores are equal: they say nothing
        return Calibration(0.0, float(at[1]), found.pairs, found.positives)
    here = problem.at(at)
    for _ in range(STEPS):
        step = -np.linalg.solve(here.bend + 1e-15 * np.eye(2), here.slope)
        if -float(step @ here.slope) < CLOSE:
            break
        for _ in range(HALVINGS):
            new = problem.at(at + step)
            if new.value <= here.value:
                break
            step = step / 2
        else:
            break
        at, here = at + step, new
    scale = float(at[0]) / found.deviation
    return Calibration(scale, float(at[1]) - scale * found.mean, found.pairs, found.positives)


class _Point(NamedTuple):
    """The mean loss at a place, its gradient (2,) and its Hessian (2, 2)."""

    value: float
    slope: Doubles
    bend: Doubles


class _LogisticLoss(NamedTuple):
    """The mean cross-entropy of all known pairs with Platt's targets, at (scale, bias) of standardised scores."""

    blocks: Blocks
    truth: Annotations
    wanted: Bools
    found: _Moments

    def targets(self) -> tuple[float, float]:
        positives, pairs = self.found.positives, self.found.pairs
        return (positives + 1) / (positives + 2), 1 / (pairs - positives + 2)

    def begin(self) -> Doubles:
        """Return the optimum among the scores' scale of 0."""
        high, low = self.targets()
        share = low + (high - low) * self.found.positives / self.found.pairs
        return np.array([0.0, math.log(share / (1 - share))])

    def at(self, place: Doubles) -> _Point:
        high, low = self.targets()
        value, slope, bend = 0.0, np.zeros(2), np.zeros((2, 2))
        for start, scores in self.blocks():
            stop = start + len(scores)
            knows = self.truth.knows(start, stop) & self.wanted[start:stop, None]
            x = (scores[knows].astype(np.float64) - self.found.mean) / self.found.deviation
            target = np.where(self.truth.has(start, stop)[knows], high, low)
            z = place[0] * x + place[1]
            p = sigmoid(z)
            error, weight = p - target, p * (1 - p)
            value += float((np.logaddexp(0, z) - target * z).sum())
            slope += [float(error @ x), float(error.sum())]
            cross = float(weight @ x)
            bend += [[float((weight * x) @ x), cross], [cross, float(weight.sum())]]
        pairs = self.found.pairs
        return _Point(value / pairs, slope / pairs, bend / pairs)


def _measure_scores(blocks: Blocks, truth: Annotations, wanted: Bools) -> _Moments:
    pairs = positives = 0
    total = squares = 0.0
    origin: float | None = None
    for start, scores in blocks():
        stop = start + len(scores)
        knows = truth.knows(start, stop) & wanted[start:stop, None]
        known = scores[knows].astype(np.float64)
        if not len(known):
            continue
        origin = float(known[0]) if origin is None else origin  # near the mean, so that the squares lose no digits
        pairs, positives = pairs + len(known), positives + int(truth.has(start, stop)[knows].sum())
        total, squares = total + float((known - origin).sum()), squares + float(((known - origin) ** 2).sum())
    if not pairs:
        return _Moments(0, 0, 0.0, 0.0)
    mean = total / pairs
    return _Moments(pairs, positives, mean + (origin or 0.0), math.sqrt(max(0.0, squares / pairs - mean * mean)))
