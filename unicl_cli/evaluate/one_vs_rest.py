"""Logistic regression for label sets: a sigmoid for each class, fitted on the rows that are annotated for it.

The objective of a class is scikit-learn's, ``|w|^2 / 2 + C * sum of cross-entropies`` over the known rows, with a free
bias. All classes and all C share the rotated features, and each is a fit of its own in the lockstep of
`logistic_regression`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from unicl_cli.evaluate.annotations import Annotations
from unicl_cli.evaluate.logistic_regression import (
    FLOOR,
    KEPT_LOGITS,
    PAIRS,
    Linear,
    Point,
    RotatedData,
    State,
    column,
    dot,
    minimise,
    rotate,
)
from unicl_cli.evaluate.multilabel import Blocks, measure_classes

KEPT = 1 << 25
"""Numbers that the fits of a block of classes keep: two per weight and pair of L-BFGS."""
SCORES = 1 << 22
"""Scores of a block of classes on validation data."""
ROUGH, LEAST = 1e-5, 1e-3
"""Relative tolerance of the search, and the mean cross-entropy below which it becomes absolute."""
UNKNOWN = -1
ALWAYS = torch.finfo(torch.float32).max
"""Bias of a class that every known row has: its optimum is infinite."""


class OneVsRestData(RotatedData):
    """Rotated data whose ``targets`` are int8 (n, B): 1, 0, or UNKNOWN. Fit f is of class f mod B."""

    def at(self, w: Tensor, decay: Tensor, fits: Tensor) -> State:
        """Compute the mean cross-entropy of each class, with weights (m, d + 1, 1), as `RotatedData.at` does."""
        n, m = len(self.targets), len(w)
        value, spread, flat = w.new_zeros(m), w.new_zeros(m), w[..., 0].T
        gradient = w.new_zeros(w.shape[1], m)
        columns = fits % self.targets.shape[1]
        for axes, targets in self.chunks(max(1, KEPT_LOGITS // m)):
            logits, own = axes @ flat, targets[:, columns]
            known, positive = own != UNKNOWN, (own > 0).to(w.dtype)
            value += ((torch.nn.functional.softplus(logits) - positive * logits) * known).sum(0)
            p = logits.sigmoid()
            spread += (p * (1 - p) * known).sum(0)
            gradient.addmm_(axes.T, (p - positive) * known)
        shrunk = w * self.penalised
        slopes = gradient.T[..., None] / n + column(decay) * shrunk
        spread = torch.maximum(spread / n, FLOOR * (value / n).clamp(max=1) / 2)
        return State(w, value / n + 0.5 * decay * dot(shrunk, shrunk), slopes, column(spread), decay, fits)


class OneVsRest:
    """Training rows (n, d) with label sets, rotated once to be fitted at any C.

    A class that no row has gets bias -inf, one that all known rows have the bias ALWAYS; both have no weights.
    """

    def __init__(self, features: Tensor, truth: Annotations, dtype: torch.dtype = torch.float64) -> None:
        self.truth = truth
        none = torch.zeros(len(features), dtype=torch.int8, device=features.device)
        self.problem, self.basis, self.mean = rotate(features, none, dtype)

    def fit(
        self, strengths: Sequence[float], *, rtol: float = 1e-8, least: float = 0.0, max_iter: int = 1000
    ) -> Linear:
        """Fit a classifier of all classes for each of M values of scikit-learn's C, classes block by block."""
        size, classes = self.problem.axes.shape[1], len(self.truth.groups)
        block = max(1, KEPT // (2 * PAIRS * size * len(strengths)))
        weights = self.mean.new_zeros(len(strengths), len(self.mean), classes)
        bias = self.mean.new_full((len(strengths), classes), -torch.inf)
        for start in range(0, classes, block):
            stop = min(start + block, classes)
            targets = self._targets(start, stop)
            have, lack = (targets == 1).any(0), (targets == 0).any(0)
            bias[:, start:stop] = bias[:, start:stop].masked_fill(have & ~lack, ALWAYS)
            open_ones = (have & lack).nonzero()[:, 0]
            if not len(open_ones):
                continue
            found, free = self._fit_block(targets[:, open_ones], strengths, rtol=rtol, least=least, max_iter=max_iter)
            weights[:, :, start + open_ones], bias[:, start + open_ones] = found, free
        return Linear(weights, bias)

    def _targets(self, start: int, stop: int) -> Tensor:
        has, knows = self.truth.has(start, stop), self.truth.knows(start, stop)
        return torch.from_numpy(np.where(knows, has, UNKNOWN).astype(np.int8).T.copy()).to(self.mean.device)

    def _fit_block(
        self, targets: Tensor, strengths: Sequence[float], *, rtol: float, least: float, max_iter: int
    ) -> tuple[Tensor, Tensor]:
        """Return weights (M, d, B) and bias (M, B) of the classes in ``targets``, (n, B)."""
        problem = OneVsRestData(*self.problem._replace(targets=targets))
        rows, count = targets.shape
        decay = (1 / (self.mean.new_tensor(strengths) * rows)).to(problem.axes.dtype).repeat_interleave(count)
        begin = decay.new_zeros(len(decay), problem.axes.shape[1], 1)
        w = minimise(problem, decay, begin, rtol=rtol, least=least, max_iter=max_iter).double()
        w = w.view(len(strengths), count, -1).mT
        found = self.basis @ w[:, :-1]
        return found, w[:, -1] - torch.einsum("d,mdk->mk", self.mean, found)


def class_blocks(model: Linear, features: Tensor) -> Blocks:
    """Return the reader of one classifier's scores of (n, d) features, class block by class block."""

    def read() -> Iterator[tuple[int, np.ndarray]]:
        size = max(1, SCORES // len(features))
        for start in range(0, model.weights.shape[2], size):
            part = Linear(model.weights[:, :, start : start + size], model.bias[:, start : start + size])
            yield start, part.logits(features)[0].T.float().cpu().contiguous().numpy()

    return read


def search_measure(
    train: OneVsRest, features: Tensor, truth: Annotations, advance: Callable[[int], None]
) -> Callable[[Sequence[float]], list[Point]]:
    """Return the function that `sweep` calls: mean average precision on validation rows at each C.

    ``truth`` has a positive. Of equal values the smaller C is chosen.
    """
    every = np.ones(len(truth.groups), bool)

    def measure(strengths: Sequence[float]) -> list[Point]:
        models = train.fit(strengths, rtol=ROUGH, least=LEAST)
        advance(len(strengths))
        found = [
            measure_classes(class_blocks(models.only(index), features), truth, every).precision
            for index in range(len(strengths))
        ]
        return [Point(c, float(np.nanmean(own)), 0.0) for c, own in zip(strengths, found, strict=True)]

    return measure
