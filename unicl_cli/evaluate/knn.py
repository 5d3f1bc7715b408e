"""Nearest neighbours on features for several k at once: votes weighted by cosine, as in DINO (Caron et al., 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from unicl_cli.evaluate.logistic_regression import Point

COUNTS = (1, 3, 5, 10, 20, 50, 100, 200)
TEMPERATURE = 0.07
KEPT_COSINES = 1 << 24


def vote_shares(
    features: Tensor, targets: Tensor, queries: Tensor, counts: Sequence[int], num_classes: int
) -> list[Tensor]:
    """Return the shares of the votes for each k of ``counts``: (n, d), int64 (n,), (q, d) -> (q, num_classes) each.

    A neighbour at cosine s has exp(s / 0.07) votes; a k above n is n.
    """
    bank = F.normalize(features.float(), dim=1)
    parts: list[list[Tensor]] = [[] for _ in counts]
    for chunk in F.normalize(queries.float(), dim=1).split(max(1, KEPT_COSINES // len(bank))):
        cosines, rows = (chunk @ bank.T).topk(min(max(counts), len(bank)), dim=1)
        weights = ((cosines - cosines[:, :1]) / TEMPERATURE).exp()
        for part, k in zip(parts, counts, strict=True):
            total = chunk.new_zeros(len(chunk), num_classes).scatter_add_(1, targets[rows[:, :k]], weights[:, :k])
            part.append(total / total.sum(1, keepdim=True))
    return [torch.cat(part) for part in parts]


def neighbour_curve(
    features: Tensor, targets: Tensor, queries: Tensor, answers: Tensor, num_classes: int
) -> list[Point]:
    """Return the result on validation data of each k of COUNTS that the rows allow, by ascending k."""
    counts = [k for k in COUNTS if k <= len(features)]
    found = vote_shares(features, targets, queries, counts, num_classes)
    return [
        Point(
            float(k),
            int((share.argmax(1) == answers).sum()) / len(answers),
            float(-share.gather(1, answers[:, None]).clamp_min(1e-6).log().mean()),
        )
        for k, share in zip(counts, found, strict=True)
    ]
