"""Retrieval between images and captions: pessimistic ranks in bounded memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

COLLAPSED = 1e-6
KEPT_SCORES = 1 << 24  # scores alive at once: 64 MiB in float32


class Gallery(NamedTuple):
    """The items that are searched: item i has the vector ``features[rows[i]]`` and the identity ``ids[i]``.

    Equal texts share one row, so that they tie exactly whatever a matrix product does to its last bits.
    """

    features: Tensor
    """(U, D), unit norm."""
    rows: Tensor
    """int64 (G,)."""
    ids: Tensor
    """int64 (G,), from 0 on."""


class Answers(NamedTuple):
    """The right answers by identity of the query: those of query q are ``ids[starts[q]:starts[q + 1]]``."""

    starts: Tensor
    """int64 (queries + 1,)."""
    ids: Tensor
    """int64: identities of items in the gallery."""

    def mask(self, queries: Tensor, items: int) -> Tensor:
        """Return bool (Q, items): for each query's identity, int64 (Q,), whether an identity is an answer."""
        counts = self.starts[queries + 1] - self.starts[queries]
        places = torch.arange(int(counts.sum()), device=queries.device)
        places += (self.starts[queries] - (counts.cumsum(0) - counts)).repeat_interleave(counts)
        found = torch.zeros(len(queries), items, dtype=torch.bool, device=queries.device)
        found[torch.arange(len(queries), device=queries.device).repeat_interleave(counts), self.ids[places]] = True
        return found


def answers_of(queries: Tensor, items: Tensor) -> Answers:
    """Return the answers from pairs of identities of a query and an item, int64 (P,) each, which may repeat."""
    pairs = torch.unique(torch.stack([queries, items]), dim=1)
    return Answers(F.pad(torch.bincount(pairs[0]).cumsum(0), (1, 0)), pairs[1])


def rank_queries(queries: Tensor, query_ids: Tensor, gallery: Gallery, answers: Answers) -> tuple[Tensor, float]:
    """Rank queries, (Q, D) unit norm, int64 (Q,): int64 (Q,) and the spread (largest - smallest) of all scores.

    The rank of a query is the number of items that are no answer and score at least as high as its best answer:
    0 = found first. Ties count against it, so a model that scores everything the same finds nothing.
    """
    chunk = max(1, KEPT_SCORES // max(len(gallery.ids), len(gallery.features)))
    items = int(gallery.ids.max()) + 1
    found: list[Tensor] = []
    lowest, highest = torch.inf, -torch.inf
    for start in range(0, len(queries), chunk):
        distinct = queries[start : start + chunk].float() @ gallery.features.float().T
        lowest, highest = min(lowest, float(distinct.min())), max(highest, float(distinct.max()))
        scores = distinct[:, gallery.rows]
        own = answers.mask(query_ids[start : start + chunk], items)[:, gallery.ids]
        best = scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
        found.append(((scores >= best) & ~own).sum(1))
    return torch.cat(found), highest - lowest


def recalls(
    image_features: Tensor,
    text_features: Tensor,
    text_rows: Tensor,
    image_of_text: Tensor,
    image_ids: Tensor | None = None,
) -> dict[str, Any]:
    """Return the recalls of images (N, D) and distinct texts (U, D); each image has a caption.

    Caption t is ``text_features[text_rows[t]]`` of image ``image_of_text[t]``, both int64 (T,). Images with one of
    ``image_ids``, int64 (N,) from 0 on, are equal; None: all differ. An equal image and an equal text are hits, too: an
    image and a text belong together if any image equal to it has a caption equal to the text.

    The result is ``{"images", "texts", "text_to_image": {"r1", "r5", "r10"}, "image_to_text": {…}}`` and, if
    all scores are equal, ``"collapsed": True``. An image is a hit at k if any of its captions is among the first k.
    """
    images = torch.arange(len(image_features), device=image_features.device)
    ids = images if image_ids is None else image_ids
    pairs = ids[image_of_text], text_rows
    image_gallery = Gallery(image_features, images, ids)
    text_gallery = Gallery(text_features, text_rows, text_rows)
    images_of_text, texts_of_image = answers_of(pairs[1], pairs[0]), answers_of(*pairs)
    to_image, spread = rank_queries(text_features[text_rows], text_rows, image_gallery, images_of_text)
    to_text, _ = rank_queries(image_features, ids, text_gallery, texts_of_image)
    collapsed = spread < COLLAPSED and len(images) > 1
    if collapsed:  # rounding alone would now rank: everything ties with everything
        to_image = _count_others(text_rows, image_gallery, images_of_text)
        to_text = _count_others(ids, text_gallery, texts_of_image)
    out: dict[str, Any] = {
        "images": len(image_features),
        "texts": len(text_rows),
        "text_to_image": recall_at(to_image),
        "image_to_text": recall_at(to_text),
    }
    return out | {"collapsed": True} if collapsed else out


def _count_others(query_ids: Tensor, gallery: Gallery, answers: Answers) -> Tensor:
    """Count for each query the items that are no answer: its rank if everything ties."""
    zero = Gallery(gallery.features.new_zeros(1, 1), torch.zeros_like(gallery.rows), gallery.ids)
    return rank_queries(gallery.features.new_zeros(len(query_ids), 1), query_ids, zero, answers)[0]


def recall_at(found: Tensor) -> dict[str, float]:
    """Return the share of queries, from ranks int64 (Q,), found among the first 1, 5, 10."""
    return {f"r{k}": int((found < k).sum()) / len(found) for k in (1, 5, 10)}
