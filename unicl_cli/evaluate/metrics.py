"""Metrics from scores and targets: ranks, top-k, recall per class, calibration; pure functions with exact counts."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

NOT_FINITE = -1
"""Rank of a row whose scores hold NaN or +inf: never a hit, and an error for the caller."""


def target_ranks(scores: Tensor, targets: Tensor) -> Tensor:
    """Count the classes that rank before the true one: (n, C), (n,) -> int64 (n,); 0 = first.

    Among equal scores the lowest index is first, as in ``argmax`` (``torch.topk`` orders ties arbitrarily).
    ``-inf`` means that the class cannot be predicted; NaN or ``+inf`` in a row gives NOT_FINITE.
    """
    true = scores.gather(1, targets[:, None])
    earlier = torch.arange(scores.shape[1], device=scores.device)[None] < targets[:, None]
    ranks = ((scores > true) | ((scores == true) & earlier)).sum(1)
    return ranks.masked_fill((scores.isnan() | scores.isposinf()).any(1), NOT_FINITE)


def ties_for_first(scores: Tensor, targets: Tensor) -> Tensor:
    """Mark the rows whose true class shares the first place with another: (n, C), (n,) -> bool (n,)."""
    true = scores.gather(1, targets[:, None])
    return ((scores == true).sum(1) > 1) & ~(scores > true).any(1)


def best_classes(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the min(k, C) best scores of each row of (n, C) and their classes, lowest class first among equals."""
    values, order = scores.sort(dim=1, descending=True, stable=True)
    return values[:, :k], order[:, :k]


def top_k(ranks: Tensor, k: int) -> float:
    """Return the share of rows, from ranks int64 (n,), whose true class is among the first k; n >= 1."""
    return int(((ranks >= 0) & (ranks < k)).sum()) / len(ranks)


class ClassCounts(NamedTuple):
    """Rows of each class and the correct ones among them, both int64 (C,)."""

    rows: Tensor
    hits: Tensor


def per_class(hits: Tensor, targets: Tensor, num_classes: int) -> ClassCounts:
    """Count rows and hits per class from bool (n,), int64 (n,)."""
    return ClassCounts(
        torch.bincount(targets, minlength=num_classes), torch.bincount(targets[hits], minlength=num_classes)
    )


def mean_per_class(counts: ClassCounts) -> float:
    """Return the mean recall over the classes that have rows; a class without rows does not count as 0."""
    present = counts.rows > 0
    return float((counts.hits[present].double() / counts.rows[present]).mean())


def calibration(confidence: Tensor, hits: Tensor, bins: int = 15) -> dict[str, Any]:
    """Return the expected calibration error of (n,) in [0, 1], bool (n,) over equal bins (low, high], and the bins.

    The error is the mean over rows of the distance between the confidence of their bin and its share of hits. Bins
    without rows are left out.
    """
    places = ((confidence.double() * bins).ceil().long() - 1).clamp(0, bins - 1)
    rows: list[dict[str, Any]] = []
    error = 0.0
    for place in range(bins):
        inside = places == place
        n = int(inside.sum())
        if n:
            right, sure = float(hits[inside].double().mean()), float(confidence[inside].double().mean())
            error += n / len(hits) * abs(right - sure)
            rows.append(
                {"low": place / bins, "high": (place + 1) / bins, "n": n, "accuracy": right, "confidence": sure}
            )
    return {"ece": error, "reliability": rows}
