"""Retrieval between images and captions: pessimistic ranks in bounded memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

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


def recalls(image_features: Tensor, text_features: Tensor, text_rows: Tensor, image_of_text: Tensor) -> dict[str, Any]:
    """Return the recalls of images (N, D) and distinct texts (U, D); each image has a caption.

    Caption t is ``text_features[text_rows[t]]`` of image ``image_of_text[t]``, both int64 (T,).

    The result is ``{"images", "texts", "text_to_image": {"r1", "r5", "r10"}, "image_to_text": {…}}`` and, if
    all scores are equal, ``"collapsed": True``. An image is a hit at k if any of its captions is among the first k.
    """
    images = torch.arange(len(image_features), device=image_features.device)
    to_image, spread = rank_queries(text_features[text_rows], image_of_text, Gallery(image_features, images, images))
    to_text, _ = rank_queries(image_features, images, Gallery(text_features, text_rows, image_of_text))
    collapsed = spread < COLLAPSED and len(images) > 1
    if collapsed:  # rounding alone would now rank: everything ties with everything
        to_image = torch.full_like(to_image, len(images) - 1)
        to_text = len(text_rows) - torch.bincount(image_of_text, minlength=len(images))
    out: dict[str, Any] = {
        "images": len(image_features),
        "texts": len(text_rows),
        "text_to_image": recall_at(to_image),
        "image_to_text": recall_at(to_text),
    }
    return out | {"collapsed": True} if collapsed else out


def recall_at(found: Tensor) -> dict[str, float]:
    """Return the share of queries, from ranks int64 (Q,), found among the first 1, 5, 10."""
    return {f"r{k}": int((found < k).sum()) / len(found) for k in (1, 5, 10)}
