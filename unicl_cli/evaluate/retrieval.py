"""Retrieval between images and captions: pessimistic ranks in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unicl_cli.evaluate.statistics import Counts, share_interval

COLLAPSED = 1e-6
KEPT_SCORES = 1 << 24  # scores alive at once: 64 MiB in float32


class Gallery(NamedTuple):
    """The items that are searched: item i has the vector ``features[rows[i]]`` and belongs to image ``ids[i]``.

    Equal texts share one row, so that they tie exactly whatever a matrix product does to its last bits.
    """

    features: Tensor
    """(U, D), unit norm."""
    rows: Tensor
    """int64 (G,)."""
    ids: Tensor
    """int64 (G,)."""


def rank_queries(queries: Tensor, query_ids: Tensor, gallery: Gallery) -> tuple[Tensor, float]:
    """Rank queries, (Q, D) unit norm, int64 (Q,): int64 (Q,) and the spread (largest - smallest) of all scores.

    The rank of a query is the number of items that are not its own and score at least as high as its best own item:
    0 = found first. Ties count against it, so a model that scores everything the same finds nothing.
    """
    chunk = max(1, KEPT_SCORES // max(len(gallery.ids), len(gallery.features)))
    found: list[Tensor] = []
    lowest, highest = torch.inf, -torch.inf
    for start in range(0, len(queries), chunk):
        distinct = queries[start : start + chunk].float() @ gallery.features.float().T
        lowest, highest = min(lowest, float(distinct.min())), max(highest, float(distinct.max()))
        scores = distinct[:, gallery.rows]
        own = query_ids[start : start + chunk, None] == gallery.ids[None]
        best = scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
        found.append(((scores >= best) & ~own).sum(1))
    return torch.cat(found), highest - lowest


class Found(NamedTuple):
    """Ranks of a search in both directions, 0 = found first."""

    to_image: Tensor
    """int64 (T,): rank of the image of each caption."""
    to_text: Tensor
    """int64 (N,): rank of the best caption of each image."""
    image_of_text: Tensor
    """int64 (T,)."""
    collapsed: bool
    """True if all scores are equal."""


def search(image_features: Tensor, text_features: Tensor, text_rows: Tensor, image_of_text: Tensor) -> Found:
    """Search images (N, D) with distinct texts (U, D), and texts with images; each image has a caption.

    Caption t is ``text_features[text_rows[t]]`` of image ``image_of_text[t]``, both int64 (T,).
    """
    images = torch.arange(len(image_features), device=image_features.device)
    to_image, spread = rank_queries(text_features[text_rows], image_of_text, Gallery(image_features, images, images))
    to_text, _ = rank_queries(image_features, images, Gallery(text_features, text_rows, image_of_text))
    collapsed = spread < COLLAPSED and len(images) > 1
    if collapsed:  # rounding alone would now rank: everything ties with everything
        to_image = torch.full_like(to_image, len(images) - 1)
        to_text = len(text_rows) - torch.bincount(image_of_text, minlength=len(images))
    return Found(to_image, to_text, image_of_text, collapsed)


def recalls(found: Found) -> dict[str, Any]:
    """Return ``{"images", "texts", "text_to_image": {"r1", "r1_interval", "r5", …}, "image_to_text": {…}}``.

    An image is a hit at k if any of its captions is among the first k. Intervals are at 95 %.
    """
    return {
        "images": len(found.to_text),
        "texts": len(found.to_image),
        "text_to_image": recall_at(found, text_hits),
        "image_to_text": recall_at(found, image_hits),
    }


def recall_at(found: Found, hits: Callable[[Found, int], tuple[Counts, Counts]]) -> dict[str, Any]:
    """Return the share of queries found among the first 1, 5, 10, each with its interval."""
    shares: dict[str, Any] = {}
    for k in (1, 5, 10):
        right, queries = hits(found, k)
        shares[f"r{k}"] = int(right.sum()) / int(queries.sum())
        shares[f"r{k}_interval"] = list(share_interval(right, queries))
    return shares


def text_hits(found: Found, k: int) -> tuple[Counts, Counts]:
    """Return for each image how many of its captions find it among the first ``k``, and how many it has: (N,), (N,)."""
    images, hits = len(found.to_text), found.to_image < k
    right = torch.bincount(found.image_of_text[hits], minlength=images)
    return right.numpy(), torch.bincount(found.image_of_text, minlength=images).numpy()


def image_hits(found: Found, k: int) -> tuple[Counts, Counts]:
    """Return for each image whether it finds a caption of its own among the first ``k``, and 1: (N,), (N,)."""
    hits = (found.to_text < k).long().numpy()
    return hits, np.ones_like(hits)
